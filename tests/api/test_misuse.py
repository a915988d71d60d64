"""What `connect()` refuses, and what it says then."""

# ruff: noqa: PT012  -- the exception comes out of a whole `async with` block: that is what is tested

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest

import resumable_stream as rs
from resumable_stream import Checkpoint, Limits, Outcome, RetryPolicy, Timeouts
from resumable_stream.protocols import NDJSON, ByteRange, CursorProtocol, LastEventID, LlamaCpp, Measured, ResumeProtocol
from resumable_stream.stores import MemoryStore
from resumable_stream.testing import Fault, FlakyServer, Reply, ScriptedClient, ServerEvent, numbered

if TYPE_CHECKING:
    from tests.conftest import Row

Start = Callable[..., FlakyServer]
Scripted = Callable[..., ScriptedClient]
URL = "https://api.example.com/v1/stream"
ALL = [str(n) for n in range(1, 13)]
BOTH = pytest.mark.parametrize("connect", [rs.connect, rs.aconnect])


def ids(events: Any) -> list[str]:
    return [event.id for event in events]


@BOTH
@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"timeout": 5}, TypeError, "timeouts=Timeouts"),
        ({"hedaers": {}}, TypeError, "'hedaers'.*headers"),
        ({"follow_redirects": True}, TypeError, "follow_redirects"),
        ({"stream": True}, TypeError, "stream"),
        ({"key": "k"}, TypeError, "store and key"),
        ({"store": MemoryStore()}, TypeError, "store and key"),
        ({"store": object(), "key": "k"}, TypeError, "Store"),
        ({"store": MemoryStore, "key": "k"}, TypeError, "Store|instance"),
        ({"store": MemoryStore(), "key": 7}, TypeError, "key"),
        ({"store": MemoryStore(), "key": ""}, ValueError, "key"),
        ({"protocol": LastEventID}, TypeError, r"LastEventID\(\)"),
        ({"protocol": "LastEventID"}, TypeError, "instance"),
        ({"retry": 3}, TypeError, "RetryPolicy"),
        ({"retry": RetryPolicy}, TypeError, "RetryPolicy"),
        ({"timeouts": 5.0}, TypeError, "Timeouts"),
        ({"limits": {"window": 5}}, TypeError, "Limits"),
        ({"commit": "always"}, ValueError, "'auto' or 'manual'"),
        ({"commit": True}, ValueError, "'auto' or 'manual'"),
        ({"on_gap": "ignore"}, ValueError, "'refetch' or 'deliver'"),
        ({"on_lost": "retry"}, ValueError, "'raise' or 'restart' or 'snapshot'"),
        ({"observer": "print"}, TypeError, "observer"),
        ({"checkpoint": 7}, TypeError, "Checkpoint"),
        ({"checkpoint": "not a token!"}, ValueError, "token"),
        ({"checkpoint": "{}"}, ValueError, "schema"),
        ({"headers": 7}, (TypeError, ValueError), "."),
    ],
)
def test_a_wrong_option_is_refused_with_what_to_pass(connect: Any, options: dict[str, Any], kind: Any, text: str) -> None:
    with pytest.raises(kind, match=text):
        connect("GET", URL, **options)


@BOTH
@pytest.mark.parametrize(
    "url",
    [
        "",
        "/relative",
        "example.com/stream",
        "ftp://example.com",
        "http://",
        "http:///path",
        "https://[::1",
        "http://a:b",
        None,
        7,
    ],
)
def test_a_bad_url_is_refused(connect: Any, url: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        connect("GET", url)
    assert not isinstance(caught.value, httpx.InvalidURL)


@BOTH
@pytest.mark.parametrize("method", ["", "GET /", "G\r\nET", None, 7, b"GET"])
def test_a_bad_method_is_refused(connect: Any, method: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        connect(method, URL)


@pytest.mark.parametrize("method", ["get", "Post", "QUERY"])
def test_a_method_is_taken_in_any_case(method: str) -> None:
    assert f" {method.upper()} " in repr(rs.connect(method, URL))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Timeouts(idle=0),
        lambda: Timeouts(idle=-1),
        lambda: Timeouts(connect="auto"),  # type: ignore[arg-type]
        lambda: Timeouts(idle=float("nan")),
        lambda: Timeouts(deadline=True),
        lambda: Timeouts(connect=float("inf")),
        lambda: Timeouts(first_event=float("inf")),
        lambda: Timeouts(idle=float("inf")),
        lambda: Timeouts(stall=1e10),
        lambda: Timeouts(deadline=float("inf")),
        lambda: Limits(window=0),
        lambda: Limits(event_bytes=1.5),  # type: ignore[arg-type]
        lambda: RetryPolicy(attempts=0),
        lambda: RetryPolicy(max_server_wait=-1),
    ],
)
def test_settings_check_themselves(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"Timeouts|Limits|RetryPolicy"):
        make()


def test_nothing_is_sent_before_the_stream_is_opened(flaky_server: Start) -> None:
    server = flaky_server(numbered(12))
    stream = rs.connect("GET", server.url)
    assert server.connections == 0
    assert stream.response is None
    assert stream.outcome is None
    assert stream.protocol is None
    with pytest.raises(rs.StreamClosed, match="with"):
        next(stream)
    stream.close()


# --- statements of the other world


async def wait_for(thing: Any) -> Any:
    return await thing


async def enter(thing: Any) -> None:
    async with thing:
        pass


async def loop(thing: Any) -> None:
    async for _ in thing:
        pass


def enter_sync(thing: Any) -> None:
    with thing:
        pass


def opened(async_: bool) -> Any:
    """A stream that sends nothing: what is asked of it fails before that."""
    return (rs.aconnect if async_ else rs.connect)("GET", URL)


@pytest.mark.parametrize(
    ("use", "async_", "words"),
    [
        (enter_sync, True, ("`with`", "`async with … as stream`", "connect() or resume()")),
        (list, True, ("`for`", "`async for … in stream`", "connect() or resume()")),
        (wait_for, True, ("`await`", "`async with … as stream`")),
        (lambda stream: list(stream.iter_text()), True, ("`for`", "Texts", "`async for")),
        (lambda stream: list(stream.iter_deltas()), True, ("`for`", "`async for")),
        (lambda stream: list(stream.iter_batches()), True, ("`for`", "Batches", "`async for")),
        (enter, False, ("`async with`", "`with … as stream`", "aconnect() or aresume()")),
        (loop, False, ("`async for`", "`for … in stream`", "aconnect() or aresume()")),
        (wait_for, False, ("`await`", "`with … as stream`", "aconnect()")),
        (lambda stream: loop(stream.iter_text()), False, ("`async for`", "Texts")),
        (lambda stream: loop(stream.iter_deltas()), False, ("`async for`",)),
        (lambda stream: loop(stream.iter_batches()), False, ("`async for`", "Batches")),
    ],
)
def test_a_statement_of_the_other_world_says_what_to_write(use: Any, async_: bool, words: tuple[str, ...]) -> None:
    """
    The first mistakes of a new user. Python's own words ("object is not iterable", "missed __aexit__ method") name what is
    missing, not what to write.
    """

    async def run() -> None:
        result = use(opened(async_))
        if inspect.isawaitable(result):
            await result

    with pytest.raises(TypeError) as caught:
        anyio.run(run)
    for word in words:
        assert word in str(caught.value)


async def test_an_unopened_stream_says_which_statement_opens_it(row: Row) -> None:
    stream = row.connect("GET", URL)
    with pytest.raises(rs.StreamClosed, match="use `with`" if row.sync else "use `async with`"):
        await anext(stream)


@BOTH
@pytest.mark.parametrize("headers", [["a"], "a: b", 7, [("a", "b", "c")], {"a": object()}])
def test_headers_of_another_shape_are_refused_with_what_to_pass(connect: Any, headers: Any) -> None:
    with pytest.raises(TypeError, match=r"mapping of names to texts, a list of \(name, value\) pairs, or a callable"):
        connect("GET", URL, headers=headers)


def test_headers_of_another_shape_from_a_callable_are_refused_too(scripted_client: Scripted) -> None:
    with (
        scripted_client([], "httpx").sync() as client,
        pytest.raises(TypeError, match="headers must be a mapping.*got a list"),
        rs.connect("GET", URL, client=client, headers=lambda: ["SECRET"]),
    ):
        pass


# --- answers that are no stream


@pytest.mark.parametrize(
    ("protocol", "content_type"),
    [
        (None, "text/html"),
        (None, "text/html; charset=utf-8"),
        (None, "application/json"),
        (LastEventID(), "text/html"),
        (LastEventID(), "application/json"),
        (NDJSON(), "text/html"),
        (NDJSON(), "text/event-stream"),
    ],
)
async def test_an_answer_of_another_content_type_is_refused(
    row: Row, flaky_server: Start, protocol: ResumeProtocol | None, content_type: str
) -> None:
    server = flaky_server(numbered(12), [Fault.content_type(content_type, body=b"<html>please log in</html>")])
    with pytest.raises(rs.UnexpectedContentType) as caught:
        await row.connect("GET", server.url, protocol=protocol).open()
    assert caught.value.received == content_type.partition(";")[0]
    assert len(server.requests) == 1
    await row.close_clients()
    assert server.wait_disconnected(30.0)


async def test_a_page_in_place_of_a_reconnect_is_refused_with_the_place(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.cut(after_events=5), Fault.content_type("text/html", body=b"<html>")])
    stream = row.connect("GET", server.url)
    with pytest.raises(rs.UnexpectedContentType) as caught:
        await row.read(stream)
    assert caught.value.checkpoint is not None
    assert caught.value.checkpoint.offset == 5
    rest = row.connect("GET", server.url, checkpoint=caught.value.checkpoint)
    assert ids(await row.read(rest)) == ALL[5:]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 413, 422, 501])
async def test_a_status_that_retrying_will_not_mend_is_raised_from_the_with_line(
    row: Row, flaky_server: Start, status: int
) -> None:
    server = flaky_server(
        numbered(12), [Fault.status(status, body=b'{"error": "nope"}', headers={"X-Request-Id": "7", "Set-Cookie": "s=1"})]
    )
    entered = False
    with pytest.raises(rs.ResponseRejected, match="nope") as caught:
        async with row.connect("GET", server.url):
            entered = True
    assert not entered
    assert caught.value.status == status
    assert caught.value.body == b'{"error": "nope"}'
    assert caught.value.headers["x-request-id"] == "7"
    assert "set-cookie" not in caught.value.headers
    assert len(server.requests) == 1


async def test_204_at_the_start_is_an_empty_stream(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.status(204)])
    stream = row.connect("GET", server.url)
    assert await row.read(stream) == []
    assert stream.outcome is Outcome.ENDED


# --- limits


@pytest.mark.parametrize("limits", [Limits(event_bytes=200), Limits(line_bytes=200)])
@pytest.mark.parametrize("chunk_bytes", [None, 10_000])
async def test_an_event_over_the_limit_ends_the_stream_behind_the_events_before_it(
    row: Row, flaky_server: Start, limits: Limits, chunk_bytes: int | None
) -> None:
    log = [*numbered(5), ServerEvent(id="6", data="x" * 500), *numbered(3, start=7)]
    server = flaky_server(log, chunk_bytes=chunk_bytes)
    seen = []
    stream = row.connect("GET", server.url, limits=limits)
    with pytest.raises(rs.EventTooLarge) as caught:
        async with stream:
            async for event in stream:
                seen.append(event.id)
    assert seen == ALL[:5]
    assert caught.value.limit == 200
    assert caught.value.checkpoint is not None
    assert caught.value.checkpoint.offset == 5
    # With a higher limit nothing is lost.
    rest = row.connect("GET", server.url, checkpoint=caught.value.checkpoint)
    assert ids(await row.read(rest)) == ["6", "7", "8", "9"]


async def test_an_endless_line_ends_the_stream_at_the_limit(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.endless_line(after_events=5)])
    seen = []
    with pytest.raises(rs.EventTooLarge):
        async with row.connect("GET", server.url, limits=Limits(line_bytes=100_000)) as stream:
            async for event in stream:
                seen.append(event.id)
    assert seen == ALL[:5]
    assert server.wait_disconnected(30.0)


# --- a stream that is over


async def test_a_finished_stream_ends_once_and_then_says_so(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12))
    stream = row.connect("GET", server.url)
    await row.read(stream)
    for _ in range(2):
        with pytest.raises(rs.StreamConsumed) as caught:
            await anext(stream)
        assert isinstance(caught.value, RuntimeError)
        assert caught.value.checkpoint == stream.checkpoint
    for iterate in (stream.iter_text, stream.iter_deltas, stream.iter_batches):
        with pytest.raises(rs.StreamConsumed):
            await anext(iterate())
    with pytest.raises(rs.StreamConsumed):
        await stream.read_text()


async def test_a_loop_after_the_end_inside_the_block_says_so(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12))
    async with row.connect("GET", server.url) as stream:
        assert len([event async for event in stream]) == 12
        with pytest.raises(rs.StreamConsumed):
            [event async for event in stream]
    assert stream.outcome is Outcome.ENDED


async def test_a_stream_that_failed_says_so_again_and_keeps_its_place(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.cut(after_events=5)])
    stream = row.connect("POST", server.url, json={})
    with pytest.raises(rs.StreamInterrupted):
        await row.read(stream)
    with pytest.raises(rs.StreamConsumed):
        await anext(stream)
    assert stream.outcome is None
    assert stream.checkpoint.offset == 5


async def test_a_closed_stream_says_so(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12))
    async with row.connect("GET", server.url) as stream:
        await anext(stream)
    with pytest.raises(rs.StreamClosed) as caught:
        await anext(stream)
    assert not isinstance(caught.value, rs.StreamConsumed)
    with pytest.raises(rs.StreamClosed):
        async with stream:
            pass


async def test_entering_twice_opens_once(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12))
    stream = await row.connect("GET", server.url).open()
    async with stream:
        assert ids([event async for event in stream]) == ALL
    assert [request.last_event_id for request in server.requests] == [None, "12"]


async def test_raise_for_outcome_tells_good_ends_from_bad_ones(row: Row, flaky_server: Start) -> None:
    server = flaky_server([*numbered(3), ServerEvent(data="stop")])
    ends = {
        Outcome.COMPLETED: None,
        Outcome.INCOMPLETE: "incomplete",
        Outcome.FAILED: "failed",
        Outcome.CANCELLED: "cancelled",
    }
    for outcome, reason in ends.items():
        protocol = LastEventID(end=lambda event, outcome=outcome: outcome if event.data == "stop" else None)  # type: ignore[misc]
        async with row.connect("GET", server.url, protocol=protocol) as stream:
            with pytest.raises(rs.StreamClosed):
                stream.raise_for_outcome()
            assert len([event async for event in stream]) == 4
        assert stream.outcome is outcome
        if reason is None:
            stream.raise_for_outcome()
        else:
            with pytest.raises(rs.StreamInterrupted) as caught:
                stream.raise_for_outcome()
            assert caught.value.reason == reason


async def test_cancel_without_such_a_call_says_so(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12))
    async with row.connect("GET", server.url) as stream:
        with pytest.raises(rs.ResumableStreamError, match="close"):
            await stream.cancel()
        assert len([event async for event in stream]) == 12


# --- checkpoints and tokens


async def checkpoint_of(row: Row, server: FlakyServer, taken: int = 5, **options: Any) -> Checkpoint:
    async with row.connect("GET", server.url, **options) as stream:
        async for event in stream:
            if event.id == str(taken):
                break
    return stream.checkpoint  # type: ignore[no-any-return]


async def test_resume_goes_on_from_a_token_a_checkpoint_and_its_json(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12))
    place = await checkpoint_of(row, server)
    for form in (place, place.token(), place.to_json()):
        assert ids(await row.read(row.resume(form, origin=server.origin))) == ALL[5:]
        assert ids(await row.read(row.connect("GET", server.url, checkpoint=form))) == ALL[5:]
    client = row.client(base_url=server.origin + "/whatever")
    assert ids(await row.read(row.resume(place.token(), client=client))) == ALL[5:]


async def test_resume_without_an_origin_is_a_type_error(row: Row, flaky_server: Start) -> None:
    place = await checkpoint_of(row, flaky_server(numbered(12)))
    with pytest.raises(TypeError, match="origin"):
        row.resume(place)
    with pytest.raises(TypeError, match="origin"):
        rs.resume(place)
    with pytest.raises(TypeError, match="origin"):
        rs.aresume(place)


@pytest.mark.parametrize(
    "origin", ["https://{host}:{port}", "http://{host}:1", "http://evil.example:{port}", "http://{host}.evil.example:{port}"]
)
async def test_resume_at_another_origin_is_refused_and_nothing_sent(row: Row, flaky_server: Start, origin: str) -> None:
    server = flaky_server(numbered(12))
    place = await checkpoint_of(row, server)
    count = len(server.requests)
    host, port = server.origin.removeprefix("http://").split(":")
    with pytest.raises(rs.OriginMismatch) as caught:
        row.resume(place, origin=origin.format(host=host, port=port))
    assert caught.value.received == server.origin
    with pytest.raises(rs.OriginMismatch):
        row.connect("GET", origin.format(host=host, port=port) + "/stream", checkpoint=place)
    assert len(server.requests) == count


@pytest.mark.parametrize("origin", ["", "api.example.com", "ftp://api.example.com", "https://", 7])
def test_an_origin_that_is_none_is_refused(origin: Any) -> None:
    place = Checkpoint(protocol="LastEventID", method="GET", url=URL)
    with pytest.raises((ValueError, TypeError)):
        rs.resume(place, origin=origin)


def test_every_way_to_damage_a_token_is_a_value_error() -> None:
    place = Checkpoint(
        protocol="LastEventID", method="GET", url=URL, cursor="ünï", offset=7, since=("0" * 16,), recent_ids=(("a", "1" * 16),)
    )
    token = place.token()
    assert Checkpoint.from_token(token) == place
    for size in range(len(token)):
        with pytest.raises(ValueError, match=r"token|checkpoint"):
            rs.resume(token[:size], origin=URL)
    fields = json.loads(place.to_json())
    wrong: list[tuple[str, Any]] = [
        ("schema", 2),
        ("schema", None),
        ("schema", True),
        ("protocol", 7),
        ("protocol", ""),
        ("method", None),
        ("url", "file:///etc/passwd"),
        ("url", 7),
        ("cursor", 7),
        ("offset", -1),
        ("offset", "7"),
        ("offset", True),
        ("offset", 1.5),
        ("sequence", "1"),
        ("since", "0" * 16),
        ("since", ["xyz"]),
        ("since", ["9" * 5000 + "*" + "0" * 16]),
        ("recent_ids", [["a"]]),
        ("recent_ids", [["a", "b"]] * 65),
        ("extra", {"a": 1}),
        ("extra", {str(n): "x" for n in range(40)}),
        ("complete", 1),
        ("unheard_of", 1),
        ("method", "GET / HTTP/1.1\r\nX: y"),
        ("url", "https://[::1"),
        ("url", "https://api.example.com:99999/"),
    ]
    taken = []
    for name, value in wrong:
        try:
            rs.resume(json.dumps({**fields, name: value}), origin=URL)
        except ValueError:
            continue
        taken.append((name, str(value)[:50]))
    assert taken == []


async def test_a_complete_token_gives_an_empty_stream_with_its_outcome_and_asks_nobody(row: Row, flaky_server: Start) -> None:
    server = flaky_server([*numbered(5), ServerEvent(data="[DONE]")])
    stream = row.connect("GET", server.url)
    await row.read(stream)
    assert stream.checkpoint.complete
    assert stream.checkpoint.cursor == "5"
    count = len(server.requests)
    for again in (row.resume(stream.token, origin=server.origin), row.connect("GET", server.url, checkpoint=stream.checkpoint)):
        assert await row.read(again) == []
        assert again.outcome is Outcome.COMPLETED
        assert again.checkpoint == stream.checkpoint
        assert again.stats.events == 0
    assert len(server.requests) == count


async def test_a_token_of_an_unknown_protocol_asks_for_it(row: Row, flaky_server: Start) -> None:
    class Mine(LastEventID):
        pass

    server = flaky_server(numbered(12))
    place = await checkpoint_of(row, server, protocol=Mine())
    assert place.protocol == "Mine"
    with pytest.raises(ValueError, match="'Mine'.*protocol="):
        row.resume(place, origin=server.origin)
    with pytest.raises(ValueError, match="'Mine'"):
        row.resume(place, origin=server.origin, protocol=ByteRange())
    assert ids(await row.read(row.resume(place, origin=server.origin, protocol=Mine()))) == ALL[5:]


async def test_what_the_caller_adds_is_merged_into_the_resume_request(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.cut(after_events=2, how="silence")])
    place = await checkpoint_of(row, server, taken=2, params={"topic": "news", "api_key": "s3cret"})
    assert "s3cret" not in place.url
    stream = row.resume(place, origin=server.origin, params={"api_key": "s3cret"}, headers={"X-Mine": "1"})
    assert ids(await row.read(stream)) == ALL[2:]
    request = server.requests[1]
    assert request.query["api_key"] == "s3cret"
    assert request.headers["x-mine"] == "1"
    assert request.last_event_id == "2"


@pytest.mark.parametrize("base", [True, False], ids=["base_url", "no base_url"])
async def test_params_of_a_resume_are_added_to_the_query_of_the_place(row: Row, flaky_server: Start, base: bool) -> None:
    server = flaky_server(numbered(12), [Fault.cut(after_events=2, how="silence")])
    url = server.url + "?topic=news&page=1&api_key=s3cret"
    async with row.connect("GET", url) as stream:
        async for event in stream:
            if event.id == "2":
                break
    client = row.client(base_url=server.origin, params={"v": "1"}) if base else row.client(params={"v": "1"})
    again = row.resume(stream.token, origin=server.origin, client=client, params={"api_key": "s3cret", "page": "2"})
    assert ids(await row.read(again)) == ALL[2:]
    for request in server.requests[1:]:
        # What the caller gives wins, as in the libraries.
        assert request.query == {"topic": "news", "page": "2", "api_key": "s3cret", "v": "1"}


@pytest.mark.parametrize(
    ("protocol", "plain"),
    [
        (LastEventID(end="close"), LastEventID()),
        (LastEventID(end="[END]"), LastEventID()),
        (LastEventID(end=lambda event: False), LastEventID()),
        (LastEventID(sequence=None), LastEventID()),
        (LastEventID(cursor_param="after"), LastEventID()),
        (NDJSON(end="[END]"), NDJSON()),
    ],
    ids=["close", "marker", "callable", "sequence", "param", "ndjson"],
)
def test_a_token_of_a_protocol_with_options_asks_for_them(protocol: ResumeProtocol, plain: ResumeProtocol) -> None:
    def token(read_with: ResumeProtocol) -> str:
        content_type = "application/x-ndjson" if isinstance(read_with, NDJSON) else "text/event-stream"
        script = ScriptedClient([Reply(headers={"content-type": content_type}, body=[b"id: 1\ndata: 1\n\n", b'{"n": 1}\n'])])
        with script.sync() as client, rs.connect("GET", URL, client=client, protocol=read_with) as stream:
            next(stream)
        return stream.token

    for resume in (rs.resume, rs.aresume):
        with pytest.raises(ValueError, match=f"{protocol.name}.*protocol="):
            resume(token(protocol), origin=URL)
        resume(token(protocol), origin=URL, protocol=protocol)
        # Options that are the defaults need not be told.
        resume(token(plain), origin=URL)


async def test_a_forged_resume_location_in_a_token_is_refused(row: Row, flaky_server: Start) -> None:
    there = flaky_server(numbered(12))
    here = flaky_server(numbered(12), location="/runs/7")
    async with row.connect("POST", here.url, json={}) as stream:
        await anext(stream)
    fields = json.loads(stream.checkpoint.to_json())
    assert "location" in fields["extra"]
    fields["extra"]["location"] = there.url
    with pytest.raises(rs.OriginMismatch):
        await row.read(row.resume(json.dumps(fields), origin=here.origin, headers={"Authorization": "Bearer s3cret"}))
    assert there.requests == []


async def test_a_forged_token_cannot_choose_an_unsafe_method(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12))
    for method in ("PUT", "PATCH", "POST"):
        place = Checkpoint(protocol="LastEventID", method=method, url=server.url, cursor="3", offset=3)
        with pytest.raises(rs.ResumableStreamError):
            await row.read(row.resume(place, origin=server.origin))
    assert {request.method for request in server.requests} <= {"GET"}


@pytest.mark.parametrize("method", ["DELETE", "OPTIONS", "TRACE", "CONNECT", "MKCOL"])
def test_a_token_of_another_method_is_refused(method: str) -> None:
    token = Checkpoint(protocol="LastEventID", method=method, url=URL, offset=3).token()
    for resume in (rs.resume, rs.aresume):
        with pytest.raises(ValueError, match="GET, HEAD, POST"):
            resume(token, origin=URL)


@pytest.mark.parametrize("method", ["QUERY", "DELETE"])
async def test_a_place_of_another_method_goes_on_by_its_own_call(row: Row, scripted_client: Scripted, method: str) -> None:
    token = Checkpoint(protocol="LastEventID", method=method, url=URL, cursor="3", offset=3).token()
    script = scripted_client([Reply(body=[b"id: 4\ndata: 4\n\n", b"data: [DONE]\n\n"])], row.family)
    stream = row.connect(method, URL, client=row.scripted(script), checkpoint=token, protocol=LastEventID(resume=URL))
    assert ids(await row.read(stream))[0] == "4"


@pytest.mark.parametrize("options", [{"on_lost": "restart"}, {"headers": {"Idempotency-Key": "k"}}, {"on_lost": "snapshot"}])
@pytest.mark.parametrize("offset", [0, 3])
async def test_what_a_forged_token_names_is_not_started(
    row: Row, scripted_client: Scripted, options: dict[str, Any], offset: int
) -> None:
    script = scripted_client([], row.family)
    token = Checkpoint(protocol="LastEventID", method="POST", url=URL, offset=offset).token()
    stream = row.resume(token, origin=URL, client=row.scripted(script), json={"all": True}, **options)
    with pytest.raises(rs.ResumableStreamError):
        await row.read(stream)
    assert script.requests == []


@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx2", "trio-httpx"], indirect=True)
@pytest.mark.parametrize("given", ["call", "client", "callable"])
@pytest.mark.parametrize("range", ["bytes=100-", "bytes=0-49"])
async def test_a_range_of_the_callers_own_is_refused(row: Row, flaky_server: Start, given: str, range: str) -> None:
    server = flaky_server(bytes(200), format="bytes", etag='"v1"')
    headers: Any = {"Range": range}
    client = row.client(headers=headers if given == "client" else None)
    options: dict[str, Any] = {"call": {"headers": headers}, "client": {}, "callable": {"headers": lambda: headers}}[given]
    for protocol in (None, ByteRange()):
        with pytest.raises((rs.ResponseRejected, ValueError), match="(?i)range"):
            await row.read(row.connect("GET", server.url, client=client, protocol=protocol, **options))


async def test_the_checkpoint_is_small_whatever_the_server_sends(row: Row, scripted_client: Scripted) -> None:
    frames = [f"id: {n}-{'x' * 500}\ndata: {n}\n\n".encode() for n in range(100)]
    script = scripted_client(
        [Reply(body=[b"".join(frames), b"data: no id\n\n" * 5000, "read_error"]), Reply(status=410)], row.family
    )
    stream = row.connect("GET", URL, client=row.scripted(script))
    with pytest.raises(rs.CursorExpired) as caught:
        await row.read(stream)
    assert caught.value.checkpoint is not None
    text = caught.value.checkpoint.to_json()
    assert len(text.encode()) <= 8192
    assert caught.value.checkpoint.offset == 5100


@pytest.mark.parametrize("cursor", ["abc", "-5", "5.0", " 5", "\u0665", "9" * 19])
@pytest.mark.parametrize("protocol", [LlamaCpp("c"), ByteRange()], ids=lambda protocol: str(protocol.name))
async def test_a_place_in_bytes_that_is_no_number_cannot_be_continued(
    row: Row, scripted_client: Scripted, protocol: ResumeProtocol, cursor: str
) -> None:
    method = "POST" if Measured.of(protocol).measured else "GET"
    place = Checkpoint(
        protocol=protocol.name, method=method, url="https://api.example.com/v1/chat/completions", cursor=cursor, offset=3
    )
    client = row.scripted(scripted_client([], row.family))
    with pytest.raises(rs.NotResumable, match="cannot be continued"):
        await row.read(row.resume(place.token(), origin=URL, protocol=protocol, client=client))


async def test_a_place_that_makes_no_sense_in_the_stream_that_is_found(row: Row, scripted_client: Scripted) -> None:
    place = Checkpoint(protocol="auto", method="GET", url="https://api.example.com/f", cursor="abc", offset=3)
    client = row.scripted(scripted_client([Reply(headers={"content-type": "application/octet-stream"}, body=[b"x"])], row.family))
    with pytest.raises(rs.NotResumable, match="its cursor is not a byte offset"):
        await row.read(row.resume(place.token(), origin=URL, client=client))


async def test_a_length_in_a_token_that_is_no_number_is_none(row: Row, scripted_client: Scripted) -> None:
    place = Checkpoint(
        protocol="ByteRange", method="GET", url="https://api.example.com/f", cursor="3", offset=1, extra={"length": "x"}
    )
    answer = Reply(status=206, headers={"content-range": "bytes 3-4/*", "content-type": "x/y"}, body=[b"de"])
    client = row.scripted(scripted_client([answer], row.family))
    assert [chunk.data for chunk in await row.read(row.resume(place.token(), origin=URL, client=client))] == [b"de"]


async def test_a_number_in_a_token_that_is_none_is_sent_as_text(row: Row, scripted_client: Scripted) -> None:
    protocol = CursorProtocol(read="n", send="body:after", method="POST", url="/r")
    place = Checkpoint(
        protocol="CursorProtocol", method="POST", url="https://api.example.com/s", cursor="x", sequence=5, offset=1
    )
    script = scripted_client([Reply(status=410)], row.family)
    with pytest.raises(rs.CursorExpired):
        await row.read(row.resume(place.token(), origin=URL, protocol=protocol, client=row.scripted(script)))
    assert script.requests[0].body == b'{"after":"x"}'
