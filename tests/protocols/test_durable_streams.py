"""`DurableStreams` over server-sent events (durable-streams/durable-streams, PROTOCOL.md 5.7)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from resumable_stream._checkpoint import Checkpoint
from resumable_stream._contract import Head, StreamState
from resumable_stream._errors import CursorExpired, EventTooLarge, ReplayDiverged, ResponseRejected, RetriesExhausted
from resumable_stream._events import Delta, Outcome
from resumable_stream.protocols import durable_streams
from resumable_stream.protocols.durable_streams import DurableStreams
from resumable_stream.testing import Fault, FlakyServer
from resumable_stream.testing import Reply as WebReply
from resumable_stream.testing.server import RecordedRequest

from ..conftest import Row
from ..core.simulation import CUTS, Reply, Sent, Stream, cut_body, ev, policy, run, script

URL = "https://streams.example.com/v1/stream/a"
MESSAGES: list[Any] = ["Über ", {"n": 2}, "Köln: ", "sieben ", "Grad ", "Grad ", [1], "☔", "!", " a", " b", " c", " d"]
TEXT = "".join(message for message in MESSAGES if isinstance(message, str))


def offset(at: int) -> str:
    return f"0000_{at:04}"


def control(at: int, *, closed: bool = False, **fields: Any) -> bytes:
    body = {"streamNextOffset": offset(at), **fields} | ({"streamClosed": True} if closed else {"streamCursor": f"c{at}"})
    return ev(json.dumps(body), None, "control")


def data(messages: list[Any]) -> bytes:
    # An array over several lines, as the protocol's own examples have it.
    rows = [json.dumps(message, ensure_ascii=False) for message in messages]
    return ev("[\n" + ",\n".join(rows) + "\n]", None, "data")


class Server:
    """Sends what follows the offset, in batches of `steps[0]` messages on the first connection, `steps[1]` on the next …"""

    def __init__(self, messages: list[Any] = MESSAGES, *, cuts: Any = (), size: Any = None, steps: Any = (2, 3)) -> None:
        self.messages, self.cuts, self.size, self.steps, self.answers = messages, list(cuts), size, steps, 0

    def __call__(self, sent: Sent) -> Reply:
        assert (sent.method, sent.path, sent.params["live"]) == ("GET", "/v1/stream/a", "sse")
        at = 0 if sent.params["offset"] == "-1" else int(sent.params["offset"].partition("_")[2])
        assert sent.params.get("cursor", "c").startswith("c")
        cut = self.cuts[self.answers] if self.answers < len(self.cuts) else None
        step = self.steps[self.answers % len(self.steps)]
        self.answers += 1
        return Reply(cut_body(body(self.messages, at, step), cut, self.size, 21))


def body(messages: list[Any], at: int, step: int) -> bytes:
    total, out = len(messages), b""
    while at < total:
        stop = min(at + step, total)
        out += data(messages[at:stop]) + control(stop, closed=stop == total, upToDate=stop == total)
        at = stop
    return out or control(total, closed=True)


def get(server: Any, **options: Any) -> Stream:
    return Stream(server, **{"url": URL, "protocol": DurableStreams(), **options})


def play(*steps: Any, **options: Any) -> Any:
    return run(get(script(*steps), **options))


def messages_of(result: Any) -> list[Any]:
    return [event.json() for event in result.events if event.event != "control"]


FIRST = Reply([data(MESSAGES[:2]), control(2), data(MESSAGES[2:4]), "rst"])


def test_resumes_may_be_cut_too() -> None:
    cuts = [(at, CUTS[at % 5]) for at in range(10, 400, 29)]
    result = run(get(Server(cuts=cuts, steps=range(2, 40))))
    assert (messages_of(result), result.outcome) == (MESSAGES, Outcome.COMPLETED)


@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx"], indirect=True)
async def test_over_sockets(row: Row, how: Any) -> None:
    def resume(request: RecordedRequest) -> WebReply | None:
        start = request.query["offset"]
        if start == "-1" and server.faults_used < len(schedule):
            return None
        return WebReply(body=body(MESSAGES, 0 if start == "-1" else int(start.partition("_")[2]), 3))

    whole = body(MESSAGES, 0, 2)
    schedule = [Fault.cut(after_bytes=at, how=how) for at in range(1, len(whole) - 120, 173)]
    with FlakyServer(whole, schedule, on_request=resume) as server:
        for _ in schedule:
            async with row.connect("GET", server.url, protocol=DurableStreams()) as stream:
                assert await stream.read_text() == TEXT
            assert stream.outcome is Outcome.COMPLETED


def test_the_place_moves_at_control_events() -> None:
    rest = Reply([data(MESSAGES[2:6]), control(6), data(MESSAGES[6:]), control(13, closed=True)])
    result = play(FIRST, rest)
    assert (messages_of(result), result.stream.machine.stats.duplicates) == (MESSAGES, 2)
    assert result.stream.sent[0].params == {"live": "sse", "offset": "-1"}
    assert result.stream.sent[1].params == {"live": "sse", "offset": offset(2), "cursor": "c2"}


def test_other_messages_at_the_same_offset_are_told() -> None:
    result = play(FIRST, Reply([data(["other"]), control(3)]))
    assert (type(result.error), messages_of(result)) == (ReplayDiverged, MESSAGES[:4])


def test_a_control_event_within_what_comes_again_is_told() -> None:
    """Nothing says whether what stands behind it was delivered: better an error than a message twice."""
    result = play(FIRST, Reply([data(MESSAGES[2:3]), control(3), data(MESSAGES[3:4]), control(4, closed=True)]))
    assert (type(result.error), messages_of(result)) == (ReplayDiverged, MESSAGES[:4])


def test_text_that_comes_again_in_other_pieces_is_told() -> None:
    text = DurableStreams(json=False)
    first = Reply([ev("Hel", None, "data"), control(3), ev("lo ", None, "data"), "rst"])
    same = play(first, Reply([ev("lo ", None, "data"), control(6, closed=True)]), protocol=text)
    assert [delta.text for event in same.events for delta in text.deltas(event)] == ["Hel", "lo "]
    assert same.outcome is Outcome.COMPLETED
    other = play(first, Reply([ev("lo world", None, "data"), control(11, closed=True)]), protocol=text)
    assert isinstance(other.error, ReplayDiverged)


def test_a_rotation_without_news_is_no_progress() -> None:
    """The control event names the place where we are: it is not delivered again, and a server that only greets is given up."""
    quiet = Reply([control(2, upToDate=True)])
    result = play(Reply([data(MESSAGES[:2]), control(2)]), *[quiet] * 9, delay=policy(4))
    assert (type(result.error), len(result.data), len(result.stream.sent)) == (RetriesExhausted, 3, 6)


def test_up_to_date_is_no_end() -> None:
    result = play(
        Reply([data(MESSAGES[:2]), control(2, upToDate=True)]), Reply([control(2, closed=True)]), protocol=DurableStreams()
    )
    assert (messages_of(result), result.outcome) == (MESSAGES[:2], Outcome.COMPLETED)


@pytest.mark.parametrize(
    ("status", "headers", "error"),
    [
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
def test_what_a_status_to_the_resume_means(status: int, headers: dict[str, str], error: type | None) -> None:
    result = play(FIRST, *[Reply(status=status, type="", headers=headers)] * 9, delay=policy(3))
    assert messages_of(result) == MESSAGES[:4]
    assert (type(result.error), result.outcome) == ((error, None) if error else (type(None), Outcome.COMPLETED))


def test_the_callers_start_is_kept_before_the_first_control() -> None:
    result = play(
        Reply([data(MESSAGES[:1]), "rst"]), Reply([data(MESSAGES[:2]), control(2, closed=True)]), url=f"{URL}?offset={offset(0)}"
    )
    assert messages_of(result) == MESSAGES[:2]
    assert [sent.params["offset"] for sent in result.stream.sent] == [offset(0)] * 2


def test_the_deltas() -> None:
    events = run(get(Server())).events
    assert [delta for event in events for delta in DurableStreams().deltas(event)] == [
        Delta("text", message) for message in MESSAGES if isinstance(message, str)
    ]


@pytest.mark.parametrize("text", ["", "no json", "{}", "5"])
def test_odd_data_is_delivered_as_it_is(text: str) -> None:
    result = play(Reply([ev(text, None, "data"), ev(text, None, "control"), control(1, closed=True)]))
    assert (result.data[:2], result.outcome) == ([text, text], Outcome.COMPLETED)
    assert [delta for event in result.events for delta in DurableStreams().deltas(event)] == []


def test_another_process_goes_on_between_two_messages() -> None:
    for count in range(1, 19):
        stream = get(Server())
        first = run(stream, at_most=count)
        server = Server(steps=(3,))
        second = run(get(server, checkpoint=Checkpoint.from_token(stream.leave().token())))
        assert messages_of(first) + messages_of(second) == MESSAGES


@pytest.mark.parametrize(
    ("method", "query", "kind", "found"),
    [
        ("GET", "?offset=-1&live=sse", "text/event-stream", True),
        ("GET", "?live=sse", "text/event-stream", False),
        ("GET", "?offset=-1&live=long-poll", "application/json", False),
        ("GET", "?offset=-1", "text/event-stream", False),
        ("GET", "?offset=-1&live=true", "text/event-stream", False),
        ("POST", "?offset=-1&live=sse", "text/event-stream", False),
    ],
)
def test_it_is_known_by_its_query(method: str, query: str, kind: str, found: bool) -> None:
    state = StreamState(method, URL + query)
    assert DurableStreams().matches(state, Head(200, {"content-type": kind}, URL)) is found
    assert DurableStreams().cancel_request(state) is None


class Shallow:
    """`json` at a depth of the stack where what was read can no longer be written."""

    loads = staticmethod(json.loads)

    @staticmethod
    def dumps(*args: Any, **options: Any) -> str:
        raise RecursionError


def test_messages_that_are_nested_too_deeply_to_be_taken_apart_come_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable_streams, "json", Shallow)
    result = play(Reply([data(["a", [[1]]]), control(2, closed=True)]))
    assert ([json.loads(event.data) for event in result.events[:1]], result.outcome) == ([["a", [[1]]]], Outcome.COMPLETED)
    headers = {"content-type": "application/json", "stream-next-offset": offset(2), "stream-closed": "true"}
    whole = play(Reply([b'["a",[[1]]]'], headers=headers, type=""), url=URL, protocol=DurableStreams(live=None))
    assert (whole.data, whole.outcome) == (['["a",[[1]]]'], Outcome.COMPLETED)


def test_a_hint_for_caches_that_is_too_long_for_a_checkpoint_is_not_kept() -> None:
    hint = json.dumps({"streamNextOffset": offset(1), "streamCursor": "c" * 9000})
    first = data(["a"]) + ev(hint, event="control")
    stream = get(script(Reply([first, "rst"]), Reply([data(["b"]), control(2, closed=True)])))
    for _ in range(2):
        next(stream)
    assert len(Checkpoint.from_token(stream.leave().token()).to_json()) < 1000
    result = play(Reply([first, "rst"]), Reply([data(["b"]), control(2, closed=True)]))
    assert result.outcome is Outcome.COMPLETED
    assert "cursor" not in result.stream.sent[1].params


def test_a_batch_of_more_messages_than_memory_should_hold_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable_streams, "_MESSAGES", 3)
    good = data([1, 2, 3]) + control(3)
    result = play(Reply([good + data([1] * 4) + control(7, closed=True)]))
    assert (len(result.events), type(result.error), result.outcome) == (4, EventTooLarge, None)
    assert "4 messages" in str(result.error)
    assert result.error.checkpoint is not None and result.error.checkpoint.cursor == offset(3)
    headers = {"content-type": "application/json", "stream-next-offset": offset(2), "stream-closed": "true"}
    for body, count in ((b"[1,1,1]", 3), (b"[1,1,1,1]", 0)):
        whole = play(Reply([body], headers=headers, type=""), url=URL, protocol=DurableStreams(live=None))
        assert (len(whole.events), type(whole.error)) == (count, type(None) if count else EventTooLarge)
        assert len(whole.stream.sent) == 1
