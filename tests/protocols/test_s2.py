"""`S2`: records of an S2 stream (s2.dev/docs, "Read records"; npm `@s2-dev/streamstore` 0.27.0)."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from resumable_stream._checkpoint import Checkpoint
from resumable_stream._contract import Head, StreamState
from resumable_stream._errors import (
    CursorExpired,
    DeadlineExceeded,
    GapError,
    ReplayDiverged,
    ResponseRejected,
    RetriesExhausted,
)
from resumable_stream._events import Delta, Outcome, StreamEvent
from resumable_stream._settings import Timeouts
from resumable_stream.protocols.s2 import S2
from resumable_stream.testing import Fault, FlakyServer
from resumable_stream.testing import Reply as WebReply
from resumable_stream.testing.server import RecordedRequest

from ..conftest import Row
from ..core.simulation import CUTS, Reply, Sent, Stream, cut_body, ev, policy, run, script

URL = "https://basin.b.s2.dev/v1/streams/run/records"
BODIES = ["Über ", "Köln: ", "sieben ", "Grad ", "Grad ", "", "☔", "!", " a", " b", " c", " d"]
FIRST = 40
TEXT = "".join(BODIES)


def record(at: int) -> dict[str, Any]:
    made: dict[str, Any] = {"seq_num": FIRST + at, "timestamp": at, "body": BODIES[at]}
    if not BODIES[at]:
        return {**made, "headers": [["", "fence"]]}
    return made


RECORDS = [record(at) for at in range(len(BODIES))]


def batch(first: int, last: int) -> bytes:
    body = {"records": RECORDS[first : last + 1]}
    return ev(json.dumps(body, ensure_ascii=False), f"{FIRST + last},{last + 1},{(last + 1) * 10}", "batch")


PING = ev('{"timestamp":3,"tail":{"seq_num":42,"timestamp":2}}', None, "ping")


def blocks(start: int, step: int, stop: int = len(RECORDS)) -> list[bytes]:
    """Batches from a record on; they need not be those of another answer."""
    return [block for at in range(start, stop, step) for block in (batch(at, min(at + step, stop) - 1), PING)]


class Basin:
    """A read that is bounded by `count=12`: the id of a batch says how much of the bound is used."""

    def __init__(self, *, cuts: Any = (), size: Any = None, step: int = 4, stop: int = len(RECORDS)) -> None:
        self.cuts, self.size, self.step, self.stop, self.answers = list(cuts), size, step, stop, 0

    def __call__(self, sent: Sent) -> Reply:
        assert (sent.method, sent.path) == ("GET", "/v1/streams/run/records")
        start = int(sent.params["seq_num"]) - FIRST
        if sent.cursor:
            number, count, size = sent.cursor.split(",")
            start = int(count)
            assert (int(number), int(size)) == (FIRST + start - 1, start * 10)
        cut = self.cuts[self.answers] if self.answers < len(self.cuts) else None
        self.answers += 1
        return Reply(cut_body(b"".join(blocks(start, self.step, self.stop)), cut, self.size, 21))


def get(server: Any, **options: Any) -> Stream:
    return Stream(server, **{"url": f"{URL}?seq_num=40&count=12", "protocol": S2(), **options})


def play(*steps: Any, **options: Any) -> Any:
    return run(get(script(*steps), **options))


def numbers(result: Any) -> list[int]:
    return [event.sequence for event in result.events]


ALL = list(range(FIRST, FIRST + len(BODIES)))
HALF = Reply([*blocks(0, 4)[:1], "rst"])

# --- cuts -----------------------------------------------------------------------------------------------------------


def test_resumes_may_be_cut_too() -> None:
    cuts = [(at, CUTS[:2][at % 2]) for at in range(200, 900, 67)]
    result = run(get(Basin(cuts=cuts, step=2)))
    assert (numbers(result), result.outcome) == (ALL, Outcome.ENDED)


@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx"], indirect=True)
async def test_over_sockets(row: Row, how: Any) -> None:
    def resume(request: RecordedRequest) -> WebReply | None:
        if request.last_event_id is None:
            return None
        return WebReply(body=b"".join(blocks(int(request.last_event_id.split(",")[1]), 3)))

    positions = range(len(batch(0, 3)), len(b"".join(blocks(0, 4))), 61)
    schedule = [Fault.cut(after_bytes=at, how=how) for at in positions]
    with FlakyServer(blocks(0, 4), schedule, path="/v1/streams/run/records", on_request=resume) as server:
        for _ in positions:
            params = {"seq_num": "40", "count": "12"}
            async with row.connect("GET", server.url, params=params, protocol=S2()) as stream:
                assert await stream.read_text() == TEXT
            assert (stream.outcome, stream.stats.events) == (Outcome.ENDED, len(ALL))


def test_behind_a_whole_batch_its_id_goes_back() -> None:
    """The server then knows how much of the bound is used; one batch a chunk is what a live stream is made of."""
    result = play(Reply([*blocks(0, 2)[:8], "rst"]), Reply(blocks(8, 4)), Reply())
    assert (numbers(result), result.stream.sent[1].cursor) == (ALL, "47,8,80")
    assert [event.cursor for event in result.events][:4] == ["40", "41,2,20", "42", "43,4,40"]


# --- holes, repeats -------------------------------------------------------------------------------------------------


def test_a_trimmed_stream_is_a_hole() -> None:
    """S2 answers with what it still has, from the new head on, and says nothing of it."""
    rest = Reply(blocks(8, 4))
    result = play(HALF, rest, rest)
    assert isinstance(result.error, GapError)
    assert (result.error.expected, result.error.received, numbers(result)) == (44, 48, ALL[:4])
    delivered = play(HALF, rest, rest, Reply(), on_gap="deliver")
    assert (numbers(delivered), delivered.events[4].gap.missing) == (ALL[:4] + ALL[8:], 4)


def test_a_hole_inside_a_batch_is_filled() -> None:
    holed = {"records": [RECORDS[0], RECORDS[2]]}
    result = play(Reply([ev(json.dumps(holed), "42,2,20", "batch")]), Reply(blocks(1, 5)), Reply())
    assert (numbers(result), result.stream.machine.stats.gaps) == (ALL, 1)
    assert result.stream.sent[1].params["seq_num"] == "41"


def test_an_overlap_is_dropped_whatever_the_batches() -> None:
    result = play(HALF, Reply(blocks(1, 5)), Reply())
    assert (numbers(result), result.stream.machine.stats.duplicates) == (ALL, 3)


def test_another_record_under_the_same_number() -> None:
    other = ev('{"records":[{"seq_num":43,"timestamp":1,"body":"other"}]}', "43,1,5", "batch")
    assert isinstance(play(HALF, Reply([other])).error, ReplayDiverged)


# --- the end --------------------------------------------------------------------------------------------------------


def test_a_read_without_a_bound_never_ends() -> None:
    result = run(get(Basin(), url=f"{URL}?seq_num=40", timeouts=Timeouts(deadline=600.0)))
    assert isinstance(result.error, DeadlineExceeded | RetriesExhausted)
    assert numbers(result) == ALL


def test_pings_and_errors_are_no_events_and_no_progress() -> None:
    answers = [Reply([PING, ev("internal", None, "error")])] * 9
    result = play(HALF, *answers, url=f"{URL}?seq_num=40", delay=policy(4))
    assert (type(result.error), numbers(result), len(result.stream.sent)) == (RetriesExhausted, ALL[:4], 6)


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (416, b'{"tail":{"seq_num":44,"timestamp":1}}', None),
        (416, b'{"tail":{"seq_num":7,"timestamp":1}}', CursorExpired),
        (416, b"", CursorExpired),
        (400, b'{"message":"bad"}', ResponseRejected),
        (403, b"", ResponseRejected),
        (404, b'{"code":"stream_not_found"}', CursorExpired),
        (409, b"", ResponseRejected),
        (429, b"", RetriesExhausted),
        (500, b"", RetriesExhausted),
        (503, b"", RetriesExhausted),
    ],
)
def test_what_a_status_means(status: int, body: bytes, error: type | None) -> None:
    result = play(HALF, *[Reply([body], status=status, type="application/json")] * 9, delay=policy(3))
    assert (type(result.error) if error else result.error, numbers(result)) == (error, ALL[:4])
    assert (result.outcome is Outcome.ENDED) is (error is None)


def test_a_start_beyond_the_tail_is_the_callers() -> None:
    assert isinstance(play(Reply([b"{}"], status=416)).error, ResponseRejected)


# --- text, going on elsewhere, detection ----------------------------------------------------------------------------


def test_the_text_is_that_of_the_records() -> None:
    events = run(get(Basin())).events
    assert [delta.text for event in events for delta in S2().deltas(event)] == [body for body in BODIES if body]


def test_bodies_as_base64() -> None:
    coded = base64.b64encode("☔".encode()).decode()
    assert list(S2(base64=True).deltas(StreamEvent(data=json.dumps({"body": coded})))) == [Delta("text", "☔")]
    assert list(S2(base64=True).deltas(StreamEvent(data='{"body":"x"}'))) == []
    result = run(get(Basin(cuts=[(900, "rst")]), protocol=S2(base64=True)))
    assert {sent.headers["s2-format"] for sent in result.stream.sent} == {"base64"}


@pytest.mark.parametrize("data", ["", "no json", "[]", '{"records":5}', '{"seq_num":"4"}'])
def test_odd_data_is_delivered_as_it_is(data: str) -> None:
    result = play(Reply([ev(data, None, "batch")]), Reply(), Reply())
    assert result.data == [data]
    assert list(S2().deltas(result.events[0])) == []


def test_another_process_goes_on_between_two_records() -> None:
    for count in range(1, len(ALL)):
        stream = get(Basin())
        first = run(stream, at_most=count)
        other = get(Basin(), checkpoint=Checkpoint.from_token(stream.leave().token()))
        second = run(other)
        assert numbers(first) + numbers(second) == ALL
        sent = other.sent[0]
        assert (sent.cursor is not None) if count % 4 == 0 else (sent.params["seq_num"] == str(FIRST + count))


def test_a_start_by_time_gives_way_to_the_number() -> None:
    state = StreamState("GET", f"{URL}?timestamp=5&tail_offset=1")
    state.cursor = "41"
    request = S2().resume_request(state)
    assert request is not None and request.params == {"timestamp": None, "tail_offset": None, "seq_num": "42"}


@pytest.mark.parametrize(
    ("method", "path", "kind", "found"),
    [
        ("GET", "/v1/streams/a/records", "text/event-stream", True),
        ("GET", "/v1/streams/a%2Fb/records", "text/event-stream", True),
        ("POST", "/v1/streams/a/records", "text/event-stream", False),
        ("GET", "/v1/streams/a/records", "application/json", False),
        ("GET", "/v1/streams/a", "text/event-stream", False),
        ("GET", "/v1/records", "text/event-stream", False),
    ],
)
def test_it_is_known_by_its_route(method: str, path: str, kind: str, found: bool) -> None:
    state = StreamState(method, f"https://b.s2.dev{path}")
    assert S2().matches(state, Head(200, {"content-type": kind}, state.url)) is found
    assert S2().cancel_request(state) is None
