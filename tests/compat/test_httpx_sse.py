"""Code written for httpx-sse sees the same responses, events and errors; only a cut is no longer one of them."""

from __future__ import annotations

import contextlib
import itertools
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import httpx
import httpx_sse
import pytest

import resumable_stream as rs
from resumable_stream.compat import httpx_sse as compat
from resumable_stream.protocols import Consume, LastEventID
from resumable_stream.testing import Fault, FlakyServer, RecordedRequest, Reply, ServerEvent, numbered
from resumable_stream.testing.faults import How

QUICK = rs.RetryPolicy(attempts=3, wait=lambda state: 0.0)
# Making one costs 17 ms.
_CONTEXT = ssl.create_default_context()


@contextlib.asynccontextmanager
async def opened(row: Any, method: str, url: str, *, client: Any = None, **options: Any) -> AsyncIterator[Any]:
    """`connect_sse()` or `aconnect_sse()`, with a client of the row."""
    client = client or row.client()
    options = {"retry": QUICK, **options}
    if row.sync:
        with compat.connect_sse(client, method, url, **options) as source:
            yield source
    else:
        async with compat.aconnect_sse(client, method, url, **options) as source:
            yield source


async def rest(row: Any, source: Any) -> list[httpx_sse.ServerSentEvent]:
    return list(source.iter_sse()) if row.sync else [sse async for sse in source.aiter_sse()]


async def read(row: Any, server: Any, method: str = "GET", **options: Any) -> list[httpx_sse.ServerSentEvent]:
    async with opened(row, method, server.url, **options) as source:
        return await rest(row, source)


async def body_of(row: Any, response: Any) -> bytes:
    return response.read() if row.sync else await response.aread()


def told(events: list[httpx_sse.ServerSentEvent]) -> list[tuple[str, str, str, int | None]]:
    assert {type(sse) for sse in events} <= {httpx_sse.ServerSentEvent}
    return [(sse.event, sse.data, sse.id, sse.retry) for sse in events]


def plain() -> httpx.HTTPTransport:
    return httpx.HTTPTransport(verify=_CONTEXT)


def by_httpx_sse(server: Any) -> list[tuple[str, str, str, int | None]]:
    """The events as the original sees them."""
    with httpx.Client(transport=plain()) as client, httpx_sse.connect_sse(client, "GET", server.url) as source:
        return told(list(source.iter_sse()))


# --- events

TRANSCRIPTS = {
    "numbered": b"".join(event.encode() for event in numbered(6)),
    "without ids": b"data: a\n\ndata: b\n\nevent: named\ndata: c\n\n",
    "every field": b'event: login\nid: 7\nretry: 1500\ndata: {"user": 1}\n\nid: 8\ndata: x\n\n',
    "some ids": b"data: a\n\nid: 1\ndata: b\n\ndata: c\n\nid\ndata: d\n\n",
    "several lines": b"data: one\ndata:\ndata:  two \n\ndata\n\n",
    "line ends": b"data: a\r\n\r\ndata: b\r\rdata: c\n\n",
    "comments": b": hello\n\ndata: a\n: in between\ndata: b\n\n",
    "odd fields": b"unknown: x\ndata: a\nid: nul\0\n\nretry: soon\ndata: b\n\n",
    "not ASCII": "id: é\ndata: 日本語 \u2028 \x85 🎉\n\n".encode(),
}


@pytest.fixture(scope="module")
def transcripts() -> Iterator[dict[str, list[tuple[FlakyServer, Any]]]]:
    """Of each transcript two servers, with HTTP chunks of one event and of one byte; and what httpx-sse reads there."""
    with contextlib.ExitStack() as stack:
        servers = {
            name: [stack.enter_context(FlakyServer(log, chunk_bytes=size)) for size in (None, 1)]
            for name, log in TRANSCRIPTS.items()
        }
        yield {name: [(server, by_httpx_sse(server)) for server in some] for name, some in servers.items()}


@pytest.mark.parametrize("name", TRANSCRIPTS)
async def test_events_are_those_of_httpx_sse(row: Any, transcripts: Any, name: str) -> None:
    protocol, client = LastEventID(end="close", gap_events=()), row.client()
    for server, expected in transcripts[name]:
        asked = len(server.requests)
        assert told(await read(row, server, client=client, protocol=protocol)) == expected
        assert len(server.requests) == asked + 1


async def test_half_an_event_is_no_end(row: Any, flaky_server: Any) -> None:
    # httpx-sse drops it and says nothing.
    server = flaky_server(b"id: 1\ndata: whole\n\nid: 2\ndata: half")
    assert len(by_httpx_sse(server)) == 1
    with pytest.raises(row.module.RemoteProtocolError) as caught:
        await read(row, server, protocol=LastEventID(end="close"))
    assert isinstance(caught.value, rs.StreamInterrupted) and caught.value.checkpoint.offset == 1


async def test_between_two_attempts_it_waits(row: Any, flaky_server: Any) -> None:
    server = flaky_server(numbered(6), [Fault.status(503), Fault.status(503), Fault.cut(after_events=3)])
    waits: list[int] = []

    def wait(state: Any) -> float:
        waits.append(state.attempt_number)
        return 0.01

    assert [sse.id for sse in await read(row, server, retry=rs.RetryPolicy(attempts=5, wait=wait))] == list("123456")
    assert len(waits) >= 2


@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
async def test_cuts_are_resumed(row: Any, flaky_server: Any, how: How) -> None:
    log = [ServerEvent(id=str(n), event=("delta", None)[n % 2], data=f"event {n}\nof 30", retry=n % 2 or None) for n in range(30)]
    cuts = [Fault.cut(after_bytes=size, how=how) for size in (100, 33, 250, 41)]
    server = flaky_server(log, [None, *cuts])
    expected = by_httpx_sse(server)
    assert len(expected) == 30
    assert told(await read(row, server)) == expected
    assert [request.last_event_id is None for request in server.requests[:3]] == [True, True, False]
    assert len(server.requests) > 4


def test_a_cut_at_any_byte_loses_nothing_and_repeats_nothing(flaky_server: Any) -> None:
    cuts: list[Fault] = []
    server = flaky_server(numbered(4), (cuts.pop() if cuts else None for _ in itertools.count()))
    expected = by_httpx_sse(server)
    with httpx.Client(transport=plain()) as client:
        for size in range(len(server.transcript) + 1):
            cuts.append(Fault.cut(after_bytes=size))
            with compat.connect_sse(client, "GET", server.url, retry=QUICK) as source:
                assert told(list(source.iter_sse())) == expected, size
            assert not cuts


@pytest.mark.parametrize(
    ("transcript", "expected", "original"),
    [
        # Executed: what httpx-sse 0.4.3 makes of it stands in the last column.
        pytest.param(
            b"id: 1\ndata: a\n\n: ping\n\n: ping\n\ndata: b\n\n", ["a", "b"], ["a", "", "", "b"], id="a heartbeat is no event"
        ),
        pytest.param("\ufeffdata: a\n\ndata: b\n\n".encode(), ["a", "b"], ["b"], id="a byte-order mark hides no event"),
        pytest.param(b"id: 1\n\nretry: 10\n\nevent: ping\n\ndata: a\n\n", ["a"], ["", "", "", "a"], id="no data is no event"),
    ],
)
async def test_faults_of_httpx_sse_are_not_reproduced(
    row: Any, flaky_server: Any, transcript: bytes, expected: list[str], original: list[str]
) -> None:
    server = flaky_server(transcript)
    assert [data for _, data, _, _ in by_httpx_sse(server)] == original
    assert [sse.data for sse in await read(row, server)] == expected


async def test_a_reconnection_time_is_digits_only(row: Any, flaky_server: Any) -> None:
    server = flaky_server("retry: -5\ndata: a\n\nretry: ٣\ndata: b\n\nretry: 1_0\ndata: c\n\nretry: 20\ndata: d\n\n")
    assert [sse.retry for sse in await read(row, server)] == [None, None, None, 20]


async def test_events_without_an_id_of_their_own_survive_a_cut(row: Any, flaky_server: Any) -> None:
    # `sse.id` is the last id seen, as the standard says; an event that repeats it is not a duplicate.
    server = flaky_server(b"id: 1\ndata: a\n\ndata: a\n\ndata: a\n\nid: 2\ndata: b\n\n", [Fault.cut(after_events=2)])
    assert [(sse.id, sse.data) for sse in await read(row, server)] == [("1", "a"), ("1", "a"), ("1", "a"), ("2", "b")]


async def test_every_event_is_the_callers_to_judge(row: Any, flaky_server: Any) -> None:
    log = b'event: error\ndata: {"message": "m"}\n\nevent: gap\ndata: 1\n\ndata: {"error": "e"}\n\ndata: after\n\n'
    server = flaky_server(log)
    expected = by_httpx_sse(server)
    assert len(expected) == 4 and told(await read(row, server)) == expected


async def test_a_named_protocol_decides_about_errors_in_the_stream(row: Any, flaky_server: Any) -> None:
    server = flaky_server(b'data: a\n\nevent: error\ndata: {"message": "overloaded"}\n\n')
    with pytest.raises(rs.UpstreamError, match="overloaded") as caught:
        await read(row, server, protocol=LastEventID())
    assert isinstance(caught.value, row.module.RemoteProtocolError)


async def test_json_is_parsed(row: Any, flaky_server: Any) -> None:
    server = flaky_server(b'data: {"user_id": "4135"}\n\n')
    (sse,) = await read(row, server)
    assert sse.json() == {"user_id": "4135"}


# --- the response


async def test_the_response_is_the_librarys_own(row: Any, flaky_server: Any) -> None:
    server = flaky_server(numbered(2), [Fault.cut(after_events=1)], headers={"x-request-id": "r1"})
    async with opened(row, "GET", server.url) as source:
        assert isinstance(source.response, row.module.Response) and isinstance(source, httpx_sse.EventSource)
        assert source.response.status_code == 200 and source.response.headers["x-request-id"] == "r1"
        assert source.response.raise_for_status() is source.response and str(source.response.request.url) == server.url
        await rest(row, source)
        assert source.stream.stats.reconnects == 2 and source.stream.outcome is rs.Outcome.ENDED
    assert source.response.is_closed


async def test_an_error_response_enters_the_block(row: Any, flaky_server: Any) -> None:
    problem = json.dumps({"detail": "no such stream"}).encode()
    server = flaky_server(schedule=[Fault.status(404, body=problem, headers={"x-request-id": "r1"})])
    async with opened(row, "GET", server.url) as source:
        response = source.response
        assert response.status_code == 404 and response.reason_phrase == "Not Found" and response.headers["x-request-id"] == "r1"
        assert response.json() == {"detail": "no such stream"} and await body_of(row, response) == problem
        with pytest.raises(row.module.HTTPStatusError):
            response.raise_for_status()
        with pytest.raises(httpx_sse.SSEError, match=r"to contain 'text/event-stream', got 'application/json'") as caught:
            await rest(row, source)
        assert source.stream is None
    error: Any = caught.value
    assert isinstance(error, rs.UnexpectedContentType) and error.received == "application/json"
    assert isinstance(error, row.module.TransportError) and error.request.method == "GET"
    assert error.checkpoint.offset == 0 and len(server.requests) == 1
    if row.family == "httpx2":
        assert isinstance(error, row.module.SSEError)


@pytest.mark.usefixtures("spotless")
async def test_another_content_type_enters_the_block_unread(row: Any, flaky_server: Any) -> None:
    page = b"<p>" + b"x" * 200_000
    server = flaky_server(schedule=[Fault.content_type("text/html", body=page)] * 2)
    async with opened(row, "POST", server.url) as source:
        assert not source.response.is_closed
        assert await body_of(row, source.response) == page
        with pytest.raises(compat.SSEError, match="got 'text/html'"):
            await rest(row, source)
    # Nor does leaving it unread hurt.
    async with opened(row, "GET", server.url) as source:
        with pytest.raises(rs.UnexpectedContentType):
            await rest(row, source)
    assert source.response.is_closed and len(server.requests) == 2


@pytest.mark.parametrize("status", [200, 204, 304])
async def test_a_response_without_a_content_type_is_no_event_stream(row: Any, flaky_server: Any, status: int) -> None:
    server = flaky_server(on_request=lambda request: Reply(status=status, headers={}))
    async with opened(row, "GET", server.url) as source:
        assert source.response.status_code == status
        with pytest.raises(httpx_sse.SSEError, match="got ''"):
            await rest(row, source)
    assert len(server.requests) == 1


async def test_a_content_type_need_only_contain_it(row: Any, flaky_server: Any) -> None:
    server = flaky_server(numbered(4), [Fault.cut(after_events=2)], content_type="application/text/event-stream; v=1")
    assert len(await read(row, server)) == 4


async def test_an_error_response_of_events_is_read(row: Any, flaky_server: Any) -> None:
    reply = Reply(status=400, headers={"content-type": "text/event-stream"}, body=b"event: error\ndata: bad request\n\n")
    server = flaky_server(on_request=lambda request: reply)
    async with opened(row, "POST", server.url) as source:
        assert source.response.status_code == 400
        assert told(await rest(row, source)) == [("error", "bad request", "", None)]


async def test_a_busy_server_is_asked_again(row: Any, flaky_server: Any) -> None:
    server = flaky_server(numbered(2), [Fault.status(503), Fault.status(429)])
    async with opened(row, "POST", server.url) as source:
        assert source.response.status_code == 200 and len(await rest(row, source)) == 2
    server = flaky_server(schedule=[Fault.status(503, body=b'{"busy": true}')] * 9)
    async with opened(row, "GET", server.url) as source:
        assert source.response.status_code == 503 and source.response.json() == {"busy": True}
    assert len(server.requests) == 3


async def test_a_coded_error_document_is_decoded(row: Any, flaky_server: Any) -> None:
    import gzip

    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    server = flaky_server(on_request=lambda request: Reply(status=400, headers=headers, body=gzip.compress(b'{"a": 1}')))
    async with opened(row, "GET", server.url) as source:
        assert source.response.json() == {"a": 1}


async def test_an_event_hook_that_checks_the_status_is_heard(row: Any, flaky_server: Any) -> None:
    def check(response: Any) -> None:
        response.raise_for_status()

    async def acheck(response: Any) -> None:
        response.raise_for_status()

    server = flaky_server(schedule=[Fault.status(404)])
    client = row.client(event_hooks={"response": [check if row.sync else acheck]})
    with pytest.raises(row.module.HTTPStatusError) as caught:
        await read(row, server, client=client)
    assert caught.value.response.status_code == 404 and isinstance(rs.error_of(caught.value), rs.ResponseRejected)


# --- the request


async def test_arguments_of_a_request_arrive(row: Any, flaky_server: Any) -> None:
    server = flaky_server(numbered(2))
    headers = {"Authorization": "Bearer t", "accept": "application/json"}
    await read(row, server, "POST", headers=headers, params={"q": "1"}, json={"a": 1}, cookies={"c": "2"}, auth=("user", "pass"))
    assert headers == {"Authorization": "Bearer t", "accept": "application/json"}
    (request,) = server.requests
    assert request.query == {"q": "1"} and request.json() == {"a": 1} and request.headers["cookie"] == "c=2"
    assert request.headers["accept"] == "text/event-stream" and request.headers["cache-control"] == "no-store"
    assert request.headers["authorization"].startswith("Basic ")
    await read(row, server, "PUT", content=b"raw", headers=None)
    assert server.requests[-1].body == b"raw" and server.requests[-1].method == "PUT"


async def test_headers_may_be_a_callable(row: Any, flaky_server: Any) -> None:
    server = flaky_server(numbered(2), [Fault.cut(after_events=1)])
    tokens = iter("abcdef")
    await read(row, server, headers=lambda: {"x-token": next(tokens)})
    sent = [request.headers["x-token"] for request in server.requests]
    assert len(set(sent)) == len(sent) >= 2
    assert {request.headers["accept"] for request in server.requests} == {"text/event-stream"}


async def test_a_last_event_id_of_the_caller_is_where_it_begins(row: Any, flaky_server: Any) -> None:
    server = flaky_server(numbered(6), [Fault.cut(after_events=2)])
    assert [sse.id for sse in await read(row, server, headers={"Last-Event-ID": "2"})] == ["3", "4", "5", "6"]
    assert [request.last_event_id for request in server.requests] == ["2", "4", "6"]


async def test_redirects_are_followed_only_where_httpx_would(row: Any, flaky_server: Any) -> None:
    def answer(request: RecordedRequest) -> Reply | None:
        return Reply(status=307, headers={"location": "/there"}) if request.path == "/stream" else None

    server = flaky_server(numbered(2), on_request=answer)
    async with opened(row, "GET", server.url) as source:
        assert source.response.status_code == 307 and source.response.has_redirect_location
        with pytest.raises(httpx_sse.SSEError):
            await rest(row, source)
    assert len(server.requests) == 1
    for options in ({"follow_redirects": True}, {"client": row.client(follow_redirects=True)}):
        async with opened(row, "GET", server.url, **options) as source:
            assert source.response.url.path == "/there" and len(await rest(row, source)) == 2
    circle = flaky_server(on_request=lambda request: Reply(status=302, headers={"location": "/again"}))
    with pytest.raises(row.module.TooManyRedirects) as caught:
        await read(row, circle, follow_redirects=True, limits=rs.Limits(redirects=2))
    assert isinstance(caught.value, rs.ResponseRejected) and len(circle.requests) == 3


def test_what_cannot_be_asked_for_is_refused() -> None:
    client = httpx.Client(transport=plain())
    with pytest.raises(TypeError, match="not both"):
        compat.connect_sse(client, "GET", "http://x", timeout=3, timeouts=rs.Timeouts()).__enter__()
    with pytest.raises(TypeError, match="unknown argument 'store'"):
        compat.connect_sse(client, "GET", "http://x", store=1).__enter__()
    with pytest.raises(TypeError, match="expected an object of httpx or httpx2, got builtins.int"):
        compat.connect_sse(3, "GET", "http://x").__enter__()
    with pytest.raises(TypeError, match="is for aconnect"):
        compat.connect_sse(httpx.AsyncClient(transport=httpx.MockTransport(print)), "GET", "http://x").__enter__()


# --- timeouts


@pytest.mark.parametrize(
    ("timeout", "expected"),
    [
        ((), rs.Timeouts(connect=4.0, first_event=300.0, idle=4.0, stall=None)),
        (httpx.USE_CLIENT_DEFAULT, rs.Timeouts(connect=4.0, first_event=300.0, idle=4.0, stall=None)),
        (600, rs.Timeouts(connect=600, first_event=600, idle=600, stall=None)),
        (None, rs.Timeouts(connect=None, first_event=None, idle=None, stall=None)),
        (httpx.Timeout(2.0, read=30.0), rs.Timeouts(connect=2.0, first_event=300.0, idle=30.0, stall=None)),
        ((1.0, 2.0, 3.0, 4.0), rs.Timeouts(connect=1.0, first_event=300.0, idle=2.0, stall=None)),
    ],
)
def test_a_timeout_becomes_clocks(monkeypatch: pytest.MonkeyPatch, timeout: Any, expected: rs.Timeouts) -> None:
    seen = []
    monkeypatch.setattr(compat, "connect", lambda *args, **options: seen.append(options["timeouts"]) or 1 / 0)
    options = {} if timeout == () else {"timeout": timeout}
    with httpx.Client(timeout=4.0, transport=plain()) as client, pytest.raises(ZeroDivisionError):
        compat.connect_sse(client, "GET", "http://x", **options).__enter__()
    assert seen == [expected]


async def test_silence_is_resumed_or_is_the_timeout_it_was(row: Any, flaky_server: Any) -> None:
    silence = Fault.cut(after_events=2, how="silence")
    server = flaky_server(numbered(4), [silence, None, None, silence])
    assert len(await read(row, server, timeout=1.5)) == 4 and server.faults_used == 3
    with pytest.raises(row.module.ReadTimeout) as caught:
        await read(row, server, "POST", timeout=1.5)
    assert isinstance(caught.value, rs.StreamInterrupted) and caught.value.reason == "idle" and len(server.requests) == 4


async def test_a_head_that_does_not_come_is_the_timeout_it_was(row: Any, flaky_server: Any) -> None:
    server = flaky_server(numbered(2), [Fault.no_answer(how="silence")] * 3)
    with pytest.raises(row.module.ReadTimeout) as caught:
        await read(row, server, timeout=1.0, retry=rs.RetryPolicy(attempts=2, wait=lambda state: 0.0))
    assert isinstance(caught.value, rs.RetriesExhausted) and caught.value.attempts == 2
    with pytest.raises(row.module.ReadTimeout) as caught:
        await read(row, server, "POST", timeout=1.0)
    assert isinstance(caught.value, rs.StreamInterrupted) and len(server.requests) == 3
    assert len(await read(row, server, timeout=60)) == 2


async def test_the_timeout_of_the_head_is_not_that_of_the_first_event(row: Any, flaky_server: Any) -> None:
    server = flaky_server(numbered(2), [Fault.heartbeats(count=12, interval=0.2)])
    assert len(await read(row, server, timeout=2.0)) == 2
    assert [request.last_event_id for request in server.requests] == [None, "2"]


# --- errors


@pytest.mark.parametrize("how", ["rst", "fin", "clean_inside"])
async def test_a_post_is_not_repeated_and_its_cut_is_caught_both_ways(row: Any, flaky_server: Any, how: How) -> None:
    native = {"rst": row.module.ReadError, "fin": row.module.RemoteProtocolError, "clean_inside": row.module.RemoteProtocolError}
    server = flaky_server(numbered(4), [Fault.cut(after_events=2, how=how)])
    async with opened(row, "POST", server.url, json={}) as source:
        iterator = source.iter_sse() if row.sync else source.aiter_sse()
        seen = [(next(iterator) if row.sync else await anext(iterator)).id for _ in range(2)]
        with pytest.raises(native[how]) as caught:
            _ = next(iterator) if row.sync else await anext(iterator)
    error: Any = caught.value
    assert isinstance(error, rs.StreamInterrupted) and isinstance(error, row.module.TransportError)
    assert seen == ["1", "2"] and error.checkpoint.cursor == "2" and len(server.requests) == 1
    assert str(error.request.url) == server.url and "after 2 events" in str(error)
    if how != "clean_inside":
        assert type(error.__cause__) is native[how]


async def test_a_post_resumes_where_its_response_says(row: Any, flaky_server: Any) -> None:
    server = flaky_server(numbered(4), [Fault.cut(after_events=2)], location="/stream/1")
    assert [sse.id for sse in await read(row, server, "POST", json={})] == ["1", "2", "3", "4"]
    assert [(request.method, request.path) for request in server.requests[:2]] == [("POST", "/stream"), ("GET", "/stream/1")]


async def test_a_server_that_is_not_there_is_a_connect_error(row: Any, flaky_server: Any) -> None:
    server = flaky_server()
    server.close()
    with pytest.raises(row.module.ConnectError) as caught:
        await read(row, server)
    error: Any = caught.value
    assert isinstance(error, rs.RetriesExhausted) and error.attempts == 3
    assert isinstance(error.last_error, row.module.ConnectError)
    assert type(error).__name__ == "RetriesExhaustedConnectError" and error.checkpoint is not None
    with pytest.raises(RuntimeError, match="has not been set"):
        _ = error.request


async def test_no_answer_to_a_post_is_what_it_was(row: Any, flaky_server: Any) -> None:
    server = flaky_server(schedule=[Fault.no_answer()])
    with pytest.raises(row.module.RemoteProtocolError) as caught:
        await read(row, server, "POST")
    assert isinstance(caught.value, rs.StreamInterrupted) and len(server.requests) == 1


async def test_a_lost_cursor_is_a_protocol_error(row: Any, flaky_server: Any) -> None:
    server = flaky_server(numbered(4), [Fault.cut(after_events=2), Fault.status(410)])
    with pytest.raises(row.module.RemoteProtocolError) as caught:
        await read(row, server)
    assert isinstance(caught.value, rs.CursorExpired)


async def test_a_page_in_place_of_the_rest_is_an_sse_error(row: Any, flaky_server: Any) -> None:
    server = flaky_server(numbered(4), [Fault.cut(after_events=2), Fault.content_type("text/html", body=b"<p>")])
    with pytest.raises(httpx_sse.SSEError) as caught:
        await read(row, server)
    assert isinstance(caught.value, rs.UnexpectedContentType) and isinstance(caught.value, row.module.TransportError)


@pytest.mark.parametrize("no", [Fault.status(404), Fault.status(204), Fault.content_type("text/html", body=b"<p>")], ids=str)
async def test_a_clean_end_stays_one_where_the_server_cannot_be_asked_for_more(row: Any, flaky_server: Any, no: Fault) -> None:
    server = flaky_server(numbered(4), [None, no])
    async with opened(row, "GET", server.url) as source:
        assert len(await rest(row, source)) == 4 and source.stream.outcome is rs.Outcome.ENDED
    assert len(server.requests) == 2


async def test_an_event_over_the_limit_is_caught_both_ways(row: Any, flaky_server: Any) -> None:
    server = flaky_server([ServerEvent(id="1", data="x" * 100)])
    with pytest.raises(row.module.TransportError) as caught:
        await read(row, server, limits=rs.Limits(event_bytes=50))
    assert isinstance(caught.value, rs.EventTooLarge) and caught.value.limit == 50


async def test_a_reset_is_an_error(row: Any, flaky_server: Any) -> None:
    class Snapshots(LastEventID):
        def on_status(self, status: int, headers: Any, body: bytes, state: Any) -> Any:
            return Consume(reset=True) if state.resuming else None

    server = flaky_server(numbered(4), [Fault.cut(after_events=2)])
    with pytest.raises(rs.StreamReset) as caught:
        await read(row, server, protocol=Snapshots())
    assert isinstance(caught.value, row.module.TransportError) and caught.value.offset == 0


async def test_the_checkpoint_of_an_error_continues_elsewhere(row: Any, flaky_server: Any) -> None:
    server = flaky_server(numbered(6), [Fault.cut(after_events=2), *[Fault.status(503)] * 4])
    with pytest.raises(row.module.TransportError) as caught:
        await read(row, server)
    token = caught.value.checkpoint.token()
    assert [event.id for event in await row.read(row.resume(token, origin=server.url))] == ["3", "4", "5", "6"]


@pytest.mark.usefixtures("spotless")
async def test_the_body_of_the_block_keeps_its_own_exceptions(row: Any, flaky_server: Any) -> None:
    server = flaky_server(numbered(4))
    sources: list[Any] = []

    async def scenario() -> None:
        async with opened(row, "GET", server.url) as source:
            sources.append(source)
            iterator = source.iter_sse() if row.sync else source.aiter_sse()
            _ = next(iterator) if row.sync else await anext(iterator)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await scenario()
    assert sources[0].response.is_closed


# --- iterating


@pytest.mark.usefixtures("spotless")
async def test_a_loop_may_be_left_and_taken_up(row: Any, flaky_server: Any) -> None:
    server = flaky_server(numbered(9))
    async with opened(row, "GET", server.url) as source:
        first: Any = None
        if row.sync:
            for first in source.iter_sse():  # noqa: B007
                break
        else:
            async for first in source.aiter_sse():  # noqa: B007
                break
        assert first.id == "1"
        assert [sse.id for sse in await rest(row, source)] == [str(n) for n in range(2, 10)]
        with pytest.raises(row.module.StreamConsumed) as consumed:
            await rest(row, source)
        assert isinstance(consumed.value, rs.StreamConsumed)
    async with opened(row, "GET", server.url) as source:
        pass
    with pytest.raises(row.module.StreamClosed) as closed:
        await rest(row, source)
    assert isinstance(closed.value, rs.StreamClosed)


async def test_the_iterator_has_a_generators_methods(row: Any, flaky_server: Any) -> None:
    server = flaky_server(numbered(9))
    async with opened(row, "GET", server.url) as source:
        if row.sync:
            with contextlib.closing(source.iter_sse()) as events:
                assert next(events).id == "1" and events.send(None).id == "2"
            assert list(events) == []
            thrown = source.iter_sse()
            with pytest.raises(KeyError):
                thrown.throw(KeyError("k"))
            assert list(thrown) == []
        else:
            async with contextlib.aclosing(source.aiter_sse()) as events:
                assert (await anext(events)).id == "1" and (await events.asend(None)).id == "2"
            assert [sse async for sse in events] == []
            thrown = source.aiter_sse()
            with pytest.raises(KeyError):
                await thrown.athrow(KeyError)
            assert [sse async for sse in thrown] == []


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("family", ["httpx", "httpx2"])
def test_a_cancelled_read_leaves_the_stream_usable(flaky_server: Any, backend: str, family: str) -> None:
    import importlib

    async def scenario() -> None:
        server = flaky_server(numbered(2), hold_open=True)
        async with importlib.import_module(family).AsyncClient(trust_env=False, verify=_CONTEXT) as client:
            async with compat.aconnect_sse(client, "GET", server.url, retry=QUICK) as source:
                events = source.aiter_sse()
                assert [(await anext(events)).id, (await anext(events)).id] == ["1", "2"]
                with anyio.move_on_after(0.02):
                    await anext(events)
                server.append(*numbered(1, start=3))
                assert (await anext(events)).id == "3"

    anyio.run(scenario, backend=backend)


async def test_a_response_of_ones_own_is_only_decoded(row: Any, flaky_server: Any) -> None:
    server = flaky_server("\ufeffid: 1\ndata: a\n\n: ping\n\ndata: b\n\n", [None, Fault.content_type("text/html"), None])
    client = row.client()

    async def events() -> list[httpx_sse.ServerSentEvent]:
        if row.sync:
            with client.stream("GET", server.url) as response:
                return await rest(row, compat.EventSource(response))
        async with client.stream("GET", server.url) as response:
            async with contextlib.aclosing(compat.EventSource(response).aiter_sse()) as source:
                return [sse async for sse in source]

    assert told(await events()) == [("message", "a", "1", None), ("message", "b", "1", None)]
    with pytest.raises(httpx_sse.SSEError):
        await events()


async def test_options_go_through(row: Any, flaky_server: Any) -> None:
    server = flaky_server(numbered(4), [Fault.cut(after_events=2)])
    notices: list[Any] = []
    protocol = LastEventID(end="close", resume="/stream")
    events = await read(row, server, observer=notices.append, protocol=protocol, timeouts=rs.Timeouts(idle=60.0))
    # `end="close"`: nothing is asked after the clean close.
    assert len(events) == 4 and len(server.requests) == 2
    assert any(isinstance(notice, rs.Disconnected) for notice in notices)


async def test_an_asgi_app_is_called_in_process(row: Any) -> None:
    if row.sync:
        return  # ASGI is async

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"event: login\ndata: 1\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b"data: 2\n\n"})

    client = row.client(transport=row.module.ASGITransport(app))
    async with opened(row, "GET", "http://app/sse", client=client) as source:
        assert told(await rest(row, source)) == [("login", "1", "", None), ("message", "2", "", None)]


def test_the_other_names_are_those_of_httpx_sse() -> None:
    assert compat.ServerSentEvent is httpx_sse.ServerSentEvent and compat.SSEError is httpx_sse.SSEError
    assert set(httpx_sse.__all__) - {"__version__"} == set(compat.__all__)
    assert rs.compat.httpx_sse is compat


async def test_a_second_reader_is_refused_and_the_first_one_loses_nothing(row: Any, flaky_server: Any) -> None:
    server = flaky_server(numbered(6), [Fault.heartbeats(after_events=3, count=10, interval=0.3)], no_content_at_end=True)
    seen: list[str] = []
    async with opened(row, "GET", server.url) as source:
        events = source.iter_sse() if row.sync else source.aiter_sse()

        async def second() -> None:
            await row.until(lambda: len(seen) == 3)
            await row.sleep(0.02)
            with pytest.raises(rs.StreamBusy) as caught:
                next(events) if row.sync else await anext(events)
            assert isinstance(caught.value, row.module.StreamError)

        async with row.beside(second):
            with contextlib.suppress(StopIteration, StopAsyncIteration):
                while True:
                    seen.append((next(events) if row.sync else await anext(events)).id)
    assert seen == [str(n) for n in range(1, 7)]
