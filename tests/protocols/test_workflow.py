"""`WorkflowRun`: streams of Workflow DevKit runs (npm `@workflow/ai`, `@ai-sdk/workflow`)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from resumable_stream._checkpoint import Checkpoint
from resumable_stream._contract import Head, StreamState
from resumable_stream._errors import CursorExpired, NotResumable, ResponseRejected, RetriesExhausted, StreamInterrupted
from resumable_stream._events import Delta, Outcome
from resumable_stream.protocols.workflow import WorkflowRun
from resumable_stream.testing import Fault, FlakyServer
from resumable_stream.testing import Reply as WebReply
from resumable_stream.testing.server import RecordedRequest

from ..conftest import Row
from ..core.simulation import CUTS, Reply, Sent, Stream, Wait, cut_body, ev, policy, run, script

URL = "https://app.example.com/api/chat"
BODY = {"messages": [{"role": "user", "content": "hi"}]}
HEADERS = {"x-workflow-run-id": "wrun_1", "x-vercel-ai-ui-message-stream": "v1"}
PARTS: list[dict[str, Any]] = [
    {"type": "start", "messageId": "m1"},
    {"type": "start-step"},
    {"type": "reasoning-start", "id": "r"},
    {"type": "reasoning-delta", "id": "r", "delta": "Über "},
    {"type": "reasoning-end", "id": "r"},
    {"type": "tool-input-delta", "toolCallId": "t", "inputTextDelta": '{"city":"Köln"}'},
    {"type": "text-start", "id": "0"},
    {"type": "text-delta", "id": "0", "delta": "Sieben "},
    {"type": "text-delta", "id": "0", "delta": "Grad "},
    {"type": "text-delta", "id": "0", "delta": "Grad "},
    {"type": "text-delta", "id": "0", "delta": "☔"},
    {"type": "text-end", "id": "0"},
    {"type": "finish-step"},
    {"type": "finish"},
]
TEXT = "Sieben Grad Grad ☔"
DONE = ev("[DONE]")


def wire(parts: list[dict[str, Any]]) -> list[bytes]:
    return [ev(json.dumps(part, ensure_ascii=False, separators=(",", ":"))) for part in parts]


class Route:
    def __init__(self, parts: list[dict[str, Any]] = PARTS, *, cuts: Any = (), size: Any = None, method: str = "POST") -> None:
        self.parts, self.cuts, self.size, self.method, self.answers = parts, list(cuts), size, method, 0

    def __call__(self, sent: Sent) -> Reply:
        first = self.answers == 0 and self.method == "POST"
        assert (sent.method, sent.path) == (("POST", "/api/chat") if first else ("GET", "/api/chat/wrun_1/stream"))
        start = int(sent.params.get("startIndex", 0))
        headers = dict(HEADERS)
        if start < 0:
            headers["x-workflow-stream-tail-index"] = str(len(self.parts) - 1)
            start = len(self.parts) + start
        cut = self.cuts[self.answers] if self.answers < len(self.cuts) else None
        self.answers += 1
        body = b"".join(wire(self.parts[start:])) + b": ping\n\n" + DONE
        return Reply(cut_body(body, cut, self.size, 21), headers=headers)


def post(server: Any, **options: Any) -> Stream:
    return Stream(server, **{"method": "POST", "url": URL, "json": BODY, "protocol": WorkflowRun(), **options})


def play(*steps: Any, **options: Any) -> Any:
    return run(post(script(*steps), **options))


def parts_of(result: Any) -> list[Any]:
    return [json.loads(data) for data in result.data]


HALF = Reply([*wire(PARTS)[:5], "rst"], headers=HEADERS)


def test_resumes_may_be_cut_too() -> None:
    result = run(post(Route(cuts=[(at, CUTS[at % 5]) for at in range(90, 600, 41)])))
    assert (parts_of(result), result.outcome) == (PARTS, Outcome.COMPLETED)
    indexes = [int(sent.params["startIndex"]) for sent in result.stream.sent[1:]]
    assert indexes == sorted(indexes) and indexes[-1] < len(PARTS)


def test_a_body_that_is_done_before_the_finish_has_run_out_of_time() -> None:
    result = play(Reply([*wire(PARTS)[:5], DONE], headers=HEADERS), Reply([*wire(PARTS)[5:], DONE]))
    assert (parts_of(result), result.outcome) == (PARTS, Outcome.COMPLETED)
    assert result.stream.sent[1].params == {"startIndex": "5"}


@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx"], indirect=True)
async def test_over_sockets(row: Row, how: Any) -> None:
    def resume(request: RecordedRequest) -> WebReply | None:
        if request.method == "POST":
            return None
        assert request.url.startswith(f"{server.origin}/api/chat/wrun_1/stream?")
        return WebReply(body=b"".join(wire(PARTS[int(request.query["startIndex"]) :])) + DONE)

    positions = range(1, len(b"".join(wire(PARTS))), 119)
    schedule = [Fault.cut(after_bytes=at, how=how) for at in positions]
    with FlakyServer([*wire(PARTS), DONE], schedule, headers=HEADERS, path="/api/chat", on_request=resume) as server:
        for _ in positions:
            async with row.connect("POST", server.url, json=BODY, protocol=WorkflowRun()) as stream:
                assert await stream.read_text() == TEXT
            assert stream.outcome is Outcome.COMPLETED


@pytest.mark.parametrize(
    ("start", "first"), [("", 0), ("?startIndex=0", 0), ("?startIndex=6", 6), ("?startIndex=-8", 6), ("?startIndex=-99", 0)]
)
def test_a_get_may_start_anywhere(start: str, first: int) -> None:
    if start == "?startIndex=-99":
        tail = {"x-workflow-stream-tail-index": "13"}
        half = Reply([*wire(PARTS)[:2], "rst"], headers=HEADERS | tail)
        result = play(half, Reply(wire(PARTS)[2:]), method="GET", json=None, url=f"{URL}/wrun_1/stream{start}")
    else:
        server = Route(cuts=[(150, "rst")], method="GET")
        result = run(post(server, method="GET", json=None, url=f"{URL}/wrun_1/stream{start}"))
    assert (parts_of(result), result.outcome) == (PARTS[first:], Outcome.COMPLETED)


def test_a_start_from_the_end_that_nobody_counts_cannot_resume() -> None:
    result = play(HALF, method="GET", json=None, url=f"{URL}/wrun_1/stream?startIndex=-9")
    assert (type(result.error), len(result.data)) == (StreamInterrupted, 5)


@pytest.mark.parametrize("steps", [[], wire(PARTS)[:5]], ids=["nothing", "five parts"])
def test_a_run_that_only_pings_has_stalled(steps: list[Any]) -> None:
    """A run is no feed: the clocks of a generation hold, and answers without a part are failed attempts."""
    pings = [step for _ in range(60) for step in (Wait(30.0), b": ping\n\n")]
    result = play(*[Reply([*(steps if at == 0 else []), *pings], headers=HEADERS) for at in range(9)], delay=policy(3))
    assert (type(result.error), parts_of(result)) == (RetriesExhausted, PARTS[: len(steps)])
    assert result.stream.elapsed < 3_000


def test_answers_that_are_held_open_without_a_part_are_failed_attempts() -> None:
    result = play(HALF, *[Reply([Wait(20.0), DONE], headers=HEADERS)] * 9, delay=policy(3))
    assert (type(result.error), len(result.stream.sent)) == (RetriesExhausted, 5)


def test_without_a_run_id_it_cannot_resume() -> None:
    result = play(Reply([*wire(PARTS)[:5], "rst"]))
    assert (type(result.error), len(result.data), len(result.stream.sent)) == (StreamInterrupted, 5, 1)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, ResponseRejected),
        (401, ResponseRejected),
        (404, CursorExpired),
        (405, NotResumable),
        (410, CursorExpired),
        (429, RetriesExhausted),
        (500, RetriesExhausted),
        (204, CursorExpired),
    ],
)
def test_what_a_status_to_the_resume_means(status: int, error: type) -> None:
    result = play(HALF, *[Reply(status=status, type="")] * 9, delay=policy(3))
    assert (type(result.error), parts_of(result)) == (error, PARTS[:5])


@pytest.mark.parametrize(
    ("part", "outcome"),
    [
        ({"type": "finish", "finishReason": "length"}, Outcome.INCOMPLETE),
        ({"type": "abort"}, Outcome.CANCELLED),
        ({"type": "error", "errorText": "boom"}, Outcome.FAILED),
    ],
)
def test_other_ends(part: dict[str, Any], outcome: Outcome) -> None:
    result = play(Reply([*wire([*PARTS[:3], part]), DONE], headers=HEADERS))
    assert (result.outcome, parts_of(result)) == (outcome, [*PARTS[:3], part])


def test_the_deltas() -> None:
    events = run(post(Route())).events
    assert [delta for event in events for delta in WorkflowRun().deltas(event)] == [
        Delta("reasoning", "Über "),
        Delta("tool", '{"city":"Köln"}'),
        *(Delta("text", text) for text in ("Sieben ", "Grad ", "Grad ", "☔")),
    ]


def test_another_process_goes_on() -> None:
    for count in range(1, len(PARTS)):
        stream = post(Route())
        first = run(stream, at_most=count)
        server = Route()
        server.answers = 1
        second = run(post(server, checkpoint=Checkpoint.from_token(stream.leave().token()), json=None))
        assert parts_of(first) + parts_of(second) == PARTS


def test_a_restart_counts_anew() -> None:
    gone = Reply(status=404, type="")
    result = play(HALF, gone, Reply([*wire(PARTS)[:2], "rst"], headers=HEADERS), Reply(wire(PARTS)[2:]), on_lost="restart")
    assert result.outcome is Outcome.COMPLETED
    assert result.stream.sent[3].params == {"startIndex": "2"}


SSE = {"content-type": "text/event-stream", "x-vercel-ai-ui-message-stream": "v1"}
TAIL = {"x-workflow-stream-tail-index": "8"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "found"),
    [
        ("POST", "", {**SSE, **HEADERS}, True),
        ("POST", "", SSE, False),
        ("POST", "", {**HEADERS, "content-type": "application/json"}, False),
        ("POST", "", {**SSE, **TAIL}, False),
        # What the guides of the AI SDK and of the DevKit answer where a run is read again.
        ("GET", "/wrun_1/stream", {**SSE, **HEADERS}, True),
        ("GET", "/wrun_1/stream", {**SSE, **TAIL}, True),
        ("GET", "/wrun_1/stream", SSE, False),
        ("GET", "/wrun_1", {**SSE, **HEADERS, **TAIL}, False),
        ("GET", "/wrun_1/stream", {**TAIL, "content-type": "application/json"}, False),
    ],
)
def test_it_is_known_by_its_header(method: str, path: str, headers: dict[str, str], found: bool) -> None:
    state = StreamState(method, URL + path, BODY if method == "POST" else None)
    assert WorkflowRun().matches(state, Head(200, headers, URL)) is found
    assert WorkflowRun().cancel_request(state) is None
