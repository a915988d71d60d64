"""`DurableStreams` answer by answer: catch-up and long-poll (durable-streams/durable-streams, PROTOCOL.md 5.5, 5.6, 6 and 7)."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import pytest

import resumable_stream as rs
from resumable_stream._checkpoint import Checkpoint
from resumable_stream._contract import Head, StreamState
from resumable_stream._errors import CursorExpired, ResponseRejected, RetriesExhausted
from resumable_stream._events import Outcome
from resumable_stream.protocols import detect
from resumable_stream.protocols.durable_streams import DurableStreams
from resumable_stream.testing import Fault, FlakyServer
from resumable_stream.testing import Reply as WebReply
from resumable_stream.testing.server import RecordedRequest

from ..conftest import Row
from ..core.simulation import CUTS, DROPPED, NO_ANSWER, Reply, Sent, Stream, cut_body, policy, run, script

URL = "https://streams.example.com/v1/stream/a"
MESSAGES: list[Any] = ["Über ", {"n": 2}, "Köln: ", "sieben ", "Grad ", "Grad ", [1], "☔", "!", None, 5]
TEXT = "".join(message for message in MESSAGES if isinstance(message, str))
BYTES = "Über Köln: sieben Grad ☔💡!".encode()
# What cannot hide in text or bytes: HTTP itself tells that the body is half.
TOLD = ("rst", "fin", "silence")
LIVES: tuple[Any, ...] = (None, "long-poll")
each_live = pytest.mark.parametrize("live", LIVES, ids=["catch-up", "long-poll"])


def offset(at: int) -> str:
    # Opaque, and in need of quoting.
    return f"o+{at:04} %"


def head(
    at: int | None, *, tail: bool = False, closed: bool = False, kind: str = "application/json", **more: str
) -> dict[str, str]:
    headers = {"content-type": kind, **{name.replace("_", "-"): value for name, value in more.items()}}
    if at is not None:
        headers |= {"stream-next-offset": offset(at), "stream-cursor": f"c{at}"}
    return headers | ({"stream-up-to-date": "true"} if tail else {}) | ({"stream-closed": "true"} if closed else {})


def answer(messages: list[Any], at: int, **more: Any) -> Reply:
    return Reply([json.dumps(messages, ensure_ascii=False).encode()], type="", headers=head(at, **more))


class Server:
    """
    A closed stream, handed out in pieces of `steps[0]` messages (or bytes) in the first answer, `steps[1]` in the next …

    Args:
        late: The last piece does not say that the stream is closed, as one from a cache.
    """

    def __init__(
        self,
        content: Sequence[Any] = MESSAGES,
        *,
        kind: str = "application/json",
        cuts: Any = (),
        size: Any = None,
        steps: Any = (4, 3),
        late: bool = False,
    ) -> None:
        self.content, self.kind, self.cuts, self.size, self.steps, self.late = content, kind, list(cuts), size, steps, late
        self.hint: str | None = None
        self.answers = 0

    def __call__(self, sent: Sent) -> Reply:
        assert (sent.method, sent.path) == ("GET", "/v1/stream/a")
        status, headers, body = self.answer(sent.params)
        cut = self.cuts[self.answers - 1] if self.answers <= len(self.cuts) else None
        return Reply(cut_body(body, cut, self.size), status=status, headers=headers, type="")

    def answer(self, query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        live, total = query.get("live"), len(self.content)
        at = 0 if query["offset"] == "-1" else int(query["offset"][2:6])
        known = query["offset"] != "-1"
        assert query["offset"] in ("-1", offset(at))
        # Of the latest answer, also one that was cut; another process brings its own along.
        hint = self.hint or query.get("cursor")
        assert query.get("cursor") == (hint if known and live else None)
        step = self.steps[self.answers % len(self.steps)]
        self.answers += 1
        stop = min(at + step, total)
        closed = stop == total and (at == total or not self.late)
        headers = head(stop, tail=stop == total, closed=closed, kind=self.kind)
        self.hint = headers["stream-cursor"]
        if stop == total and not closed:
            headers["age"] = "3"
        piece = self.content[at:stop]
        if at == total and live == "long-poll":
            return 204, headers, b""
        return 200, headers, piece if isinstance(piece, bytes) else json.dumps(piece, ensure_ascii=False).encode()


def get(server: Any, live: Any = None, **options: Any) -> Stream:
    return Stream(server, **{"url": URL, "protocol": DurableStreams(live=live), **options})


def play(*steps: Any, live: Any = None, **options: Any) -> Any:
    return run(get(script(*steps), live, **options))


def messages_of(result: Any) -> list[Any]:
    assert {event.event for event in result.events} <= {"message"}
    return [event.json() if event.data != "null" else None for event in result.events]


def text_of(result: Any) -> str:
    assert {event.event for event in result.events} <= {"data"}
    return "".join(delta.text for event in result.events for delta in DurableStreams().deltas(event))


# --- offsets that do not move ---------------------------------------------------------------------------------------


@each_live
@pytest.mark.parametrize(("kind", "body"), [("application/json", b'["a","b"]'), ("text/plain", b"ab"), ("image/png", b"ab")])
@pytest.mark.parametrize("more", [{}, {"tail": True, "age": "5"}], ids=["", "from a cache"])
def test_an_answer_that_leads_back_to_where_it_began_is_a_failed_attempt(kind: str, body: bytes, more: Any, live: Any) -> None:
    """Section 5.6: the offset is the one to read next. A cache that leaves out the query gives the same piece for ever."""
    result = run(get(lambda sent: Reply([body], type="", headers=head(2, kind=kind, **more)), live, delay=policy(3)))
    once = run(get(script(Reply([body], type="", headers=head(2, kind=kind, closed=True))), live))
    assert result.data == once.data
    assert isinstance(result.error, RetriesExhausted) and "Stream-Next-Offset is the offset that was requested" in str(
        result.error
    )
    # Also the very first one, where the URL names a place.
    url = f"{URL}?offset=o%2B0002%20%25"
    result = run(get(lambda sent: Reply([body], type="", headers=head(2, kind=kind, **more)), live, delay=policy(3), url=url))
    assert (result.data, type(result.error)) == ([], RetriesExhausted)


# --- cuts -----------------------------------------------------------------------------------------------------------


@each_live
def test_every_answer_may_be_cut(live: Any) -> None:
    cuts = [(at, CUTS[at % 5]) if at % 3 else None for at in range(60)]
    result = run(get(Server(cuts=cuts, steps=(2, 3, 1), late=True), live, delay=policy(50)))
    assert (messages_of(result), result.outcome) == (MESSAGES, Outcome.COMPLETED)


# By default each number of bytes in one of the ways.
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["by turns", "every"])
@each_live
@pytest.mark.parametrize("cut", TOLD)
def test_text_arrives_once_whatever_bytes_an_answer_ends_at(cut: str, live: Any, every: bool) -> None:
    for step in range(1, len(BYTES) + 1):
        if not every and (step - TOLD.index(cut)) % len(TOLD):
            continue
        for position in {0, step // 2, step}:
            server = Server(
                BYTES, kind="text/plain; charset=utf-8", steps=(step,), cuts=[None, (position, cut)], late=step % 2 > 0
            )
            result = run(get(server, live))
            assert (text_of(result), result.outcome, result.error) == (BYTES.decode(), Outcome.COMPLETED, None), step


@each_live
@pytest.mark.parametrize("cut", TOLD)
def test_bytes_come_as_base64(cut: str, live: Any) -> None:
    for step in range(1, len(BYTES) + 1):
        server = Server(BYTES, kind="application/octet-stream", steps=(step,), cuts=[None, (step // 2, cut)])
        result = run(get(server, live))
        assert (b"".join(map(base64.b64decode, result.data)), result.outcome) == (BYTES, Outcome.COMPLETED)


@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
@pytest.mark.parametrize("live", ["", "&live=long-poll"], ids=["catch-up", "long-poll"])
async def test_over_sockets(row: Row, how: Any, live: str) -> None:
    log = Server(steps=(5, 4, 3), late=True)
    whole = json.dumps(MESSAGES[:5], ensure_ascii=False).encode()
    schedule = [Fault.cut(after_bytes=at, how=how) for at in range(1, len(whole), 17)]

    def route(request: RecordedRequest) -> WebReply | None:
        if request.query["offset"] == "-1" and server.faults_used < len(schedule):
            return None
        status, headers, body = log.answer(request.query)
        return WebReply(status=status, headers=headers, body=body)

    with FlakyServer(whole, schedule, on_request=route, headers=head(5)) as server:
        url = f"{server.url}?offset=-1{live}"
        async with row.connect("GET", url, protocol=None) as stream:
            assert await stream.read_text() == TEXT
        assert repr(stream.protocol) == repr(DurableStreams())
        assert (stream.outcome, stream.stats.duplicates) == (Outcome.COMPLETED, 0)
        assert stream.stats.reconnects == len(schedule)


# --- the loop -------------------------------------------------------------------------------------------------------


@each_live
def test_one_answer_follows_the_other_at_once(live: Any) -> None:
    result = run(get(Server(steps=(2,)), live, delay=policy(1)))
    stats = result.stream.machine.stats
    assert (stats.connections, stats.reconnects, stats.seconds_offline) == (6, 0, 0.0)
    assert (result.stream.sleeps, result.stream.elapsed) == ([], 0.0)
    starts = [sent.params["offset"] for sent in result.stream.sent]
    assert starts == ["-1", *(offset(at) for at in range(2, 12, 2))]
    assert all(sent.params.get("live") == live for sent in result.stream.sent)


def test_up_to_date_ends_a_catch_up_read_and_its_token_reads_on() -> None:
    stream = get(script(answer(["a"], 1), answer(["b"], 2, tail=True)))
    result = run(stream)
    assert (messages_of(result), result.outcome) == (["a", "b"], Outcome.ENDED)
    place = Checkpoint.from_token(stream.leave().token())
    nothing = get(script(answer([], 2, tail=True)), checkpoint=place)
    assert (run(nothing).data, nothing.outcome) == ([], Outcome.ENDED)
    again = get(script(answer(["c"], 3, tail=True, closed=True)), checkpoint=nothing.leave())
    assert (messages_of(run(again)), again.outcome, again.sent[0].params) == (["c"], Outcome.COMPLETED, {"offset": offset(2)})
    done = get(script(), checkpoint=again.leave())
    assert (run(done).outcome, done.sent) == (Outcome.COMPLETED, [])


def test_a_last_piece_from_a_cache_is_not_believed_to_be_the_last() -> None:
    cached = answer(["a"], 1, tail=True, age="20")
    closed = play(cached, answer([], 1, tail=True, closed=True))
    assert (messages_of(closed), closed.outcome) == (["a"], Outcome.COMPLETED)
    grown = play(cached, answer(["b"], 2, tail=True))
    assert (messages_of(grown), grown.outcome) == (["a", "b"], Outcome.ENDED)
    # The question itself may be answered from a cache.
    still = play(cached, answer([], 1, tail=True, age="20"))
    assert (messages_of(still), still.outcome) == (["a"], Outcome.ENDED)


NOTHING_YET = Reply(status=204, type="", after=30.0, headers=head(1, tail=True))


def test_a_poll_that_finds_nothing_is_repeated_for_as_long_as_it_takes() -> None:
    result = play(answer(["a"], 1), *[NOTHING_YET] * 40, answer(["b"], 2, closed=True), live="long-poll", delay=policy(1))
    assert (messages_of(result), result.outcome) == (["a", "b"], Outcome.COMPLETED)
    assert (result.stream.sleeps, result.stream.elapsed, result.stream.machine.stats.reconnects) == ([], 1200.0, 0)


def test_polls_that_take_longer_than_the_wait_for_an_answer_are_no_failed_attempts() -> None:
    """A quiet feed: the server holds each of them for 70 s, and `Timeouts.idle` is 60 s."""
    late = [NO_ANSWER] * 40
    result = play(answer(["a"], 1), *late, answer(["b"], 2, closed=True), live="long-poll", delay=policy(1))
    assert (messages_of(result), result.outcome) == (["a", "b"], Outcome.COMPLETED)
    assert max(result.stream.sleeps) <= 0.25
    # The first answer tells that there is somebody; a read to the tail waits for nothing; and a refused connection is none.
    for steps, live in (
        ([NO_ANSWER] * 5, "long-poll"),
        ([answer(["a"], 1), *[NO_ANSWER] * 5], None),
        ([answer(["a"], 1), *[DROPPED] * 5], "long-poll"),
    ):
        assert isinstance(play(*steps, live=live, delay=policy(3)).error, RetriesExhausted)


def test_polls_that_find_nothing_at_once_are_bounded() -> None:
    quick = Reply(status=204, type="", headers=head(1, tail=True))
    result = play(answer(["a"], 1), *[quick] * 5, live="long-poll", delay=policy(4))
    assert (type(result.error), messages_of(result), len(result.stream.sent)) == (RetriesExhausted, ["a"], 6)


def test_catch_up_answers_that_go_nowhere_are_bounded() -> None:
    result = play(answer(["a"], 1), *[answer([], 1)] * 5, delay=policy(4))
    assert isinstance(result.error, RetriesExhausted)
    # However long each of them takes: only a poll is meant to wait.
    slow = Reply([b"[]"], type="", after=6.0, headers=head(1))
    assert isinstance(run(get(lambda sent: slow, delay=policy(4))).error, RetriesExhausted)


@each_live
def test_empty_answers_that_lead_on_lead_to_what_is_behind_them(live: Any) -> None:
    empty = [answer([], at) for at in range(1, 16)]
    result = play(*empty, answer(["a"], 16, closed=True), live=live, delay=policy(1))
    assert (messages_of(result), result.outcome, result.stream.sleeps) == (["a"], Outcome.COMPLETED, [])


def test_a_poll_may_end_with_the_news_that_the_stream_is_closed() -> None:
    result = play(answer(["a"], 1), Reply(status=204, type="", headers=head(1, tail=True, closed=True)), live="long-poll")
    assert (messages_of(result), result.outcome) == (["a"], Outcome.COMPLETED)


@pytest.mark.parametrize("status", [200, 204])
def test_an_offset_behind_something_that_was_not_sent_is_not_believed(status: int) -> None:
    """What was appended between the end of a poll and the writing of its head must not be skipped."""
    early = Reply(status=status, type="", headers=head(9, tail=True, closed=True, kind="text/plain"))
    text = Reply([b"a"], type="", headers=head(1, kind="text/plain"))
    result = play(text, early, Reply([b"b"], type="", headers=head(2, closed=True, kind="text/plain")), live="long-poll")
    assert (text_of(result), result.outcome) == ("ab", Outcome.COMPLETED)
    assert [sent.params["offset"] for sent in result.stream.sent] == ["-1", offset(1), offset(1)]


def test_from_now_on_the_place_is_known_before_the_first_message() -> None:
    stream = get(script(NOTHING_YET, DROPPED, answer(["b"], 2, closed=True)), "long-poll", url=f"{URL}?offset=now")
    assert (messages_of(run(stream)), stream.outcome) == (["b"], Outcome.COMPLETED)
    assert [sent.params["offset"] for sent in stream.sent] == ["now", offset(1), offset(1)]


@pytest.mark.parametrize(("body", "kind"), [(b"[]", "application/json"), (b"", "text/plain")])
def test_a_catch_up_read_from_now_is_a_token_of_the_tail(body: bytes, kind: str) -> None:
    tail = Reply([body], type="", headers=head(7, tail=True, kind=kind))
    stream = get(script(tail), url=f"{URL}?offset=now")
    assert (run(stream).outcome, stream.machine.stats.events) == (Outcome.ENDED, 0)
    place = Checkpoint.from_token(stream.leave().token())
    again = get(script(Reply([body], type="", headers=head(7, tail=True, kind=kind))), checkpoint=place)
    run(again)
    assert again.sent[0].params == {"offset": offset(7)}


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/octet-stream"])
def test_an_empty_stream(kind: str) -> None:
    body = b"[]" if kind == "application/json" else b""
    for closed in (False, True):
        result = play(Reply([body], type="", headers=head(0, tail=True, closed=closed, kind=kind)))
        assert (result.data, result.outcome) == ([], Outcome.COMPLETED if closed else Outcome.ENDED)


def test_half_a_character_at_the_end_of_a_closed_stream() -> None:
    """Nothing will make it whole."""
    half = Reply(["a☔".encode()[:-1]], type="", headers=head(1, kind="text/plain"))
    for end in (
        Reply(status=204, type="", headers=head(1, closed=True)),
        Reply([b""], type="", headers=head(1, closed=True, kind="text/plain")),
    ):
        result = play(half, end, live="long-poll")
        assert (text_of(result), result.outcome) == ("a\ufffd", Outcome.COMPLETED)


def test_half_a_character_at_the_tail_waits_in_the_token() -> None:
    first = get(script(Reply(["a☔".encode()[:-1]], type="", headers=head(1, tail=True, kind="text/plain"))))
    assert (text_of(run(first)), first.outcome) == ("a", Outcome.ENDED)
    place = Checkpoint.from_token(first.leave().token())
    second = get(script(Reply(["☔b".encode()[2:]], type="", headers=head(2, closed=True, kind="text/plain"))), checkpoint=place)
    assert text_of(run(second)) == "☔b"
    assert second.sent[0].params == {"offset": offset(1)}


# --- another process ------------------------------------------------------------------------------------------------


@each_live
@pytest.mark.parametrize("steps", [(3,), (9,), (1,)])
def test_another_process_goes_on_between_two_messages(live: Any, steps: Any) -> None:
    """Whatever the answers hold the next time: larger arrays, or smaller ones."""
    for count in range(1, len(MESSAGES) + 1):
        stream = get(Server(steps=(5, 4)), live)
        first = run(stream, at_most=count)
        place = Checkpoint.from_token(stream.leave().token())
        second = run(get(Server(steps=steps), live, checkpoint=place, delay=policy(2)))
        assert messages_of(first) + messages_of(second) == MESSAGES, count
        assert second.outcome is Outcome.COMPLETED


@each_live
def test_another_process_goes_on_between_two_pieces_of_text(live: Any) -> None:
    for step in range(1, 8):
        for count in range(1, 9):
            stream = get(Server(BYTES, kind="text/plain", steps=(step,)), live)
            first = run(stream, at_most=count)
            place = Checkpoint.from_token(stream.leave().token())
            second = run(get(Server(BYTES, kind="text/plain", steps=(9 - step,)), live, checkpoint=place))
            assert text_of(first) + text_of(second) == BYTES.decode()


@pytest.mark.parametrize("query", ["", "?offset=-1", "?live=long-poll&offset=-1"])
@pytest.mark.parametrize("row", ["sync-httpx", "sync-httpx2"], indirect=True)
async def test_a_token_says_how_the_stream_is_read(row: Row, query: str) -> None:
    def route(request: RecordedRequest) -> WebReply:
        status, headers, body = log.answer({"offset": "-1", **request.query})
        return WebReply(status=status, headers=headers, body=body)

    with FlakyServer(b"", on_request=route) as server:
        log = Server(steps=(4,))
        async with row.connect("GET", server.url + query) as stream:
            first = [(await anext(stream)).json() for _ in range(3)]
        assert isinstance(stream.protocol, DurableStreams)
        async with row.resume(stream.token, origin=server.url) as rest:
            second = [json.loads(event.data) async for event in rest]
    assert first + second == MESSAGES
    assert rest.outcome is Outcome.COMPLETED


def test_a_token_of_another_mode_than_the_urls_wants_its_protocol() -> None:
    for protocol in (DurableStreams(live="long-poll"), DurableStreams(json=False, live=None)):
        stream = get(Server(), protocol=protocol)
        run(stream, at_most=1)
        token = stream.leave().token()
        with pytest.raises(ValueError, match="read by DurableStreams with options"), rs.resume(token, origin=URL):
            pass


# --- answers --------------------------------------------------------------------------------------------------------


@each_live
@pytest.mark.parametrize(
    ("status", "headers", "error"),
    [
        (200, {}, ResponseRejected),
        (304, {}, ResponseRejected),
        (400, {}, ResponseRejected),
        (401, {}, ResponseRejected),
        (404, {}, CursorExpired),
        (410, {}, CursorExpired),
        (429, {}, RetriesExhausted),
        (500, {}, RetriesExhausted),
        (503, {}, RetriesExhausted),
        (204, {"stream-closed": "true"}, None),
    ],
)
def test_what_a_status_means(status: int, headers: dict[str, str], error: type | None, live: Any) -> None:
    result = play(answer(["a"], 1), *[Reply(status=status, type="", headers=headers)] * 9, live=live, delay=policy(3))
    assert messages_of(result) == ["a"]
    assert (type(result.error), result.outcome) == ((error, None) if error else (type(None), Outcome.COMPLETED))
    if error is not RetriesExhausted:
        # Credentials may have run out, so 401 is asked once more.
        assert len(result.stream.sent) == 2 + (status == 401)


@each_live
@pytest.mark.parametrize("status", [429, 503])
def test_a_throttled_answer_is_asked_for_when_the_server_says(status: int, live: Any) -> None:
    busy = Reply(status=status, type="", headers={"retry-after": "7"})
    result = play(answer(["a"], 1), busy, answer(["b"], 2, closed=True), live=live)
    assert (messages_of(result), result.stream.sleeps) == (["a", "b"], [7.0])


@each_live
@pytest.mark.parametrize("status", [400, 404, 410])
def test_a_start_that_is_refused_is_not_repeated(status: int, live: Any) -> None:
    result = play(Reply(status=status, type=""), live=live)
    assert isinstance(result.error, ResponseRejected | CursorExpired)
    assert len(result.stream.sent) == 1


def test_a_lost_place_may_start_over() -> None:
    result = play(
        answer(["a"], 1), Reply(status=410, type=""), answer(["c"], 3, closed=True), live="long-poll", on_lost="restart"
    )
    assert ([event.reset for event in result.events], messages_of(result)) == ([False, True], ["a", "c"])
    assert result.stream.sent[-1].params == {"live": "long-poll", "offset": "-1"}


@pytest.mark.parametrize("body", ['{"a": 1}', '"x"', "5", "[[]]"])
def test_odd_json_is_delivered_as_it_is(body: str) -> None:
    result = play(Reply([body.encode()], type="", headers=head(1, closed=True)))
    value = json.loads(body)
    assert (messages_of(result), result.outcome) == (value if isinstance(value, list) else [value], Outcome.COMPLETED)


@pytest.mark.parametrize("body", [b"", b"[", b"[1", b"[" * 100_000, b'["\xff"]'])
def test_what_is_no_json_is_a_cut(body: bytes) -> None:
    result = play(*[Reply([body], type="", headers=head(1, closed=True))] * 4, delay=policy(3))
    assert (type(result.error), result.data) == (RetriesExhausted, [])


@pytest.mark.parametrize("kind", ["application/vnd.api+json", "application/json; charset=utf-8"])
def test_other_names_of_json(kind: str) -> None:
    assert messages_of(play(answer([1, 2], 2, closed=True, kind=kind))) == [1, 2]


# --- detection ------------------------------------------------------------------------------------------------------

NEXT = {"stream-next-offset": "1"}


@pytest.mark.parametrize(
    ("method", "query", "status", "headers", "mode"),
    [
        ("GET", "", 200, NEXT, None),
        ("GET", "?offset=-1", 200, {**NEXT, "content-type": "application/json"}, None),
        ("GET", "?offset=-1", 200, {**NEXT, "content-type": "text/event-stream"}, None),
        ("GET", "?offset=5&live=long-poll", 200, {**NEXT, "content-type": "text/plain"}, "long-poll"),
        ("GET", "?offset=now&live=long-poll", 204, NEXT, "long-poll"),
        ("GET", "?offset=5&live=sse", 200, {"content-type": "text/event-stream"}, "sse"),
    ],
)
def test_each_mode_is_known(method: str, query: str, status: int, headers: dict[str, str], mode: Any) -> None:
    state = StreamState(method, URL + query)
    found = detect(state, Head(status, headers, URL))
    assert isinstance(found, DurableStreams)
    request = found.resume_request(state)
    assert request is not None
    assert request.params["live"] == mode


@pytest.mark.parametrize(
    ("method", "query", "status", "headers"),
    [
        ("GET", "?offset=-1", 200, {"content-type": "application/json"}),
        ("GET", "?offset=-1&live=long-poll", 200, {"content-type": "application/octet-stream"}),
        ("GET", "?offset=-1&live=long-poll", 204, {}),
        ("GET", "?offset=-1&live=yes", 200, {**NEXT, "content-type": "application/json"}),
        ("POST", "?offset=-1", 200, {**NEXT, "content-type": "text/event-stream"}),
    ],
)
def test_others_are_not(method: str, query: str, status: int, headers: dict[str, str]) -> None:
    found = detect(StreamState(method, URL + query), Head(status, headers, URL))
    assert not isinstance(found, DurableStreams)


def test_an_answer_without_content_is_nobodys_bytes() -> None:
    assert detect(StreamState("GET", URL), Head(204, {}, URL)) is None


def test_a_first_poll_that_finds_nothing_is_known_too() -> None:
    stream = Stream(script(NOTHING_YET, answer(["b"], 2, closed=True)), url=f"{URL}?offset=now&live=long-poll", detecting=True)
    assert (messages_of(run(stream)), stream.outcome) == (["b"], Outcome.COMPLETED)


def test_the_url_says_how_it_is_read_and_the_option_where_it_does_not() -> None:
    for query, live, expected in [
        ("?live=long-poll", "sse", "long-poll"),
        ("?live=sse", None, "sse"),
        ("", None, None),
        ("", "long-poll", "long-poll"),
    ]:
        request = DurableStreams(live=live).first_request(StreamState("GET", URL + query))  # type: ignore[arg-type]
        assert request.params["live"] == expected
    with pytest.raises(ValueError, match="live must be"):
        DurableStreams(live="true")  # type: ignore[arg-type]
