"""`ResumableStreamNPM`: routes made with npm `resumable-stream` 2.2.13 (its readme)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from resumable_stream._checkpoint import Checkpoint
from resumable_stream._contract import Head, StreamState
from resumable_stream._errors import CursorExpired, ReplayDiverged, ResponseRejected, RetriesExhausted, StreamInterrupted
from resumable_stream._events import Delta, Outcome, StreamEvent
from resumable_stream.protocols.resumable_stream_npm import ResumableStreamNPM
from resumable_stream.testing import Fault, FlakyServer

from ..conftest import Row
from ..core.simulation import CUTS, Block, Reply, Sent, Stream, cut_body, ev, policy, rows_of, run, script, transcript

URL = "https://app.example.com/api/stream/s1?resumeAt=0"
# The package stores text as the application made it: emoji are two UTF-16 units, one code point and four bytes.
BLOCKS = transcript(
    ev("a"),
    ev("é 😀", None, "token"),
    ev("same"),
    ev("same"),
    b": ping\n\n",
    ev("two\nlines"),
    *(ev(f"t{at}") for at in range(6)),
    ev("☔"),
    ev("[DONE]"),
)
ROWS = rows_of(BLOCKS)


class Route:
    """While it is being made the answer is replayed from its start."""

    def __init__(self, blocks: list[Block] = BLOCKS, *, cuts: Any = (), size: Any = None) -> None:
        self.body = b"".join(block.raw for block in blocks)
        self.cuts, self.size, self.answers = list(cuts), size, 0

    def __call__(self, sent: Sent) -> Reply:
        assert (sent.method, sent.path, sent.params) == ("GET", "/api/stream/s1", {"resumeAt": "0"})
        cut = self.cuts[self.answers] if self.answers < len(self.cuts) else None
        self.answers += 1
        return Reply(cut_body(self.body, cut, self.size, 21))


def get(server: Any, **options: Any) -> Stream:
    return Stream(server, **{"url": URL, "protocol": ResumableStreamNPM(), **options})


def play(*steps: Any, **options: Any) -> Any:
    return run(get(script(*steps), **options))


HALF = Reply([b"".join(block.raw for block in BLOCKS[:4]), "rst"])
WHOLE = Reply([b"".join(block.raw for block in BLOCKS)])


def test_replays_may_be_cut_too() -> None:
    result = run(get(Route(cuts=[(at, CUTS[at % 5]) for at in (20, 70, 30, 0, 90, 90, 160)])))
    assert (result.rows, result.outcome) == (ROWS, Outcome.COMPLETED)


@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx"], indirect=True)
async def test_over_sockets(row: Row, how: Any) -> None:
    body = b"".join(block.raw for block in BLOCKS)
    positions = range(1, len(body) - 8, 23)
    schedule = [fault for at in positions for fault in (Fault.cut(after_bytes=at, how=how), None)]
    with FlakyServer(body, schedule, ignore_cursor=True) as server:
        for _ in positions:
            async with row.connect("GET", server.url, protocol=ResumableStreamNPM()) as stream:
                rows = [(event.event, event.data, event.id) async for event in stream]
            assert (rows, stream.outcome) == (ROWS, Outcome.COMPLETED)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (204, CursorExpired),
        (422, CursorExpired),
        (404, CursorExpired),
        (410, CursorExpired),
        (400, ResponseRejected),
        (401, ResponseRejected),
        (429, RetriesExhausted),
        (500, RetriesExhausted),
    ],
)
def test_what_a_status_to_the_resume_means(status: int, error: type) -> None:
    result = play(HALF, *[Reply([b""], status=status, type="")] * 9, delay=policy(3))
    assert (type(result.error), result.rows) == (error, ROWS[:4])


@pytest.mark.parametrize("status", [204, 422])
def test_an_answer_that_is_done_before_we_come_is_an_empty_stream(status: int) -> None:
    result = play(Reply([b"Stream is already done"], status=status, type=""))
    assert (result.rows, result.outcome, result.error) == ([], Outcome.ENDED, None)


def test_422_to_a_post_is_a_refusal() -> None:
    assert isinstance(play(Reply(status=422, type=""), method="POST").error, ResponseRejected)


def test_a_dead_producer_looks_like_an_end_and_is_none() -> None:
    dead = Reply([b"".join(block.raw for block in BLOCKS[:4])])
    result = play(dead, Reply(status=422, type=""))
    assert (type(result.error), result.rows) == (CursorExpired, ROWS[:4])
    believed = play(dead, protocol=ResumableStreamNPM(end="close"))
    assert (believed.outcome, believed.rows) == (Outcome.ENDED, ROWS[:4])


def test_another_answer_under_the_same_id_is_told() -> None:
    other = Reply([ev("a"), ev("other"), ev("[DONE]")])
    result = play(HALF, other)
    assert (type(result.error), result.rows) == (ReplayDiverged, ROWS[:4])


def test_a_post_resumes_elsewhere_or_not_at_all() -> None:
    result = play(HALF, WHOLE, method="POST", protocol=ResumableStreamNPM(resume="/api/resume/s1"))
    assert (result.rows, result.outcome) == (ROWS, Outcome.COMPLETED)
    assert [(sent.method, sent.path) for sent in result.stream.sent] == [("POST", "/api/stream/s1"), ("GET", "/api/resume/s1")]
    assert isinstance(play(HALF, method="POST").error, StreamInterrupted)


def test_an_end_of_your_own() -> None:
    protocol = ResumableStreamNPM(end=lambda event: json.loads(event.data).get("done"))
    result = play(Reply([ev('{"t":"a"}'), ev('{"done":true}')]), protocol=protocol)
    assert (result.outcome, len(result.data)) == (Outcome.COMPLETED, 2)
    with pytest.raises(ValueError, match="end"):
        ResumableStreamNPM(end="never")


def test_the_text_is_the_data() -> None:
    assert list(ResumableStreamNPM().deltas(StreamEvent(data="é"))) == [Delta("text", "é")]
    assert list(ResumableStreamNPM().deltas(StreamEvent(data="[DONE]"))) == []


def test_another_process_goes_on() -> None:
    for count in range(1, len(ROWS)):
        stream = get(Route())
        first = run(stream, at_most=count)
        second = run(get(Route(), checkpoint=Checkpoint.from_token(stream.leave().token())))
        assert first.rows + second.rows == ROWS


def test_nothing_on_the_wire_tells_it() -> None:
    state = StreamState("GET", URL)
    assert not ResumableStreamNPM().matches(state, Head(200, {"content-type": "text/event-stream"}, URL))
    assert ResumableStreamNPM().cancel_request(state) is None
