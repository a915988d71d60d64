"""`Letta`: background streams (docs.letta.com, "Streaming"; PyPI `letta-client` 1.12.1)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from resumable_stream._checkpoint import Checkpoint
from resumable_stream._contract import Head, Position, Settled, StreamState
from resumable_stream._errors import (
    CursorExpired,
    ReplayDiverged,
    ResponseRejected,
    RetriesExhausted,
    StreamInterrupted,
    UpstreamError,
)
from resumable_stream._events import Delta, Outcome, StreamEvent
from resumable_stream.protocols.letta import Letta
from resumable_stream.testing import Fault, FlakyServer
from resumable_stream.testing import Reply as WebReply
from resumable_stream.testing.server import RecordedRequest

from ..conftest import Row
from ..core.simulation import CUTS, Reply, Sent, Stream, cut_body, ev, policy, run, script

URL = "https://api.letta.com/v1/agents/agent-1/messages"
BODY = {"messages": [{"role": "user", "content": "hi"}], "streaming": True, "background": True, "include_pings": True}


def chunk(seq: int | None, kind: str, **fields: Any) -> bytes:
    body = {"id": "message-1", "message_type": kind, **fields, "run_id": "run-1"} | ({} if seq is None else {"seq_id": seq})
    return ev(json.dumps(body, ensure_ascii=False))


PING = chunk(None, "ping", date="2026-11-20T00:00:00Z")
CHUNKS = [
    chunk(1, "reasoning_message", reasoning="Hm, "),
    chunk(2, "reasoning_message", reasoning="Köln."),
    PING,
    chunk(3, "tool_call_message", tool_call={"name": "weather", "arguments": '{"city":'}),
    chunk(4, "tool_call_message", tool_call={"name": None, "arguments": '"Köln"}'}),
    chunk(5, "tool_return_message", tool_return="7"),
    chunk(6, "assistant_message", content="Sieben "),
    chunk(8, "assistant_message", content=[{"type": "text", "text": "Grad "}]),
    chunk(9, "assistant_message", content="Grad "),
    chunk(10, "assistant_message", content="☔"),
    ev('{"message_type":"stop_reason","stop_reason":"end_turn"}'),
    ev('{"message_type":"usage_statistics","total_tokens":5}'),
    ev("[DONE]"),
]
EVENTS = [block for block in CHUNKS if block is not PING]
TEXT = "Sieben Grad Grad ☔"


def data(blocks: list[bytes]) -> list[str]:
    return [block.decode()[6:-2] for block in blocks if block != PING]


def after(blocks: list[bytes], seq: int) -> list[bytes]:
    """What the route sends from `starting_after` on; what has no number belongs behind the last that has one."""
    rest = [at for at, block in enumerate(blocks) if f'"seq_id": {seq}}}'.encode() in block]
    return blocks[rest[-1] + 1 :]


class Server:
    def __init__(self, blocks: list[bytes] = CHUNKS, *, cuts: Any = (), size: Any = None) -> None:
        self.blocks, self.cuts, self.size, self.answers = blocks, list(cuts), size, 0

    def __call__(self, sent: Sent) -> Reply:
        first = self.answers == 0
        assert (sent.method, sent.path) == ("POST", "/v1/agents/agent-1/messages" if first else "/v1/runs/run-1/stream")
        cut = self.cuts[self.answers] if self.answers < len(self.cuts) else None
        self.answers += 1
        blocks = self.blocks if first else after(self.blocks, sent.json["starting_after"])
        return Reply(cut_body(b"".join(blocks), cut, self.size, 21))


def post(server: Any, **options: Any) -> Stream:
    return Stream(server, **{"method": "POST", "url": URL, "json": BODY, "protocol": Letta(), **options})


def play(*steps: Any, **options: Any) -> Any:
    return run(post(script(*steps), **options))


HALF = Reply([b"".join(CHUNKS[:4]), "rst"])


# --- cuts -----------------------------------------------------------------------------------------------------------


def test_resumes_may_be_cut_too() -> None:
    result = run(post(Server(cuts=[(at, CUTS[at % 5]) for at in range(120, 800, 37)])))
    assert (result.data, result.outcome) == (data(CHUNKS), Outcome.COMPLETED)
    assert [event.sequence for event in result.events][:9] == [1, 2, 3, 4, 5, 6, 8, 9, 10]
    assert result.stream.sent[0].json == BODY
    assert all(sent.json == {**BODY, "starting_after": sent.json["starting_after"]} for sent in result.stream.sent[1:])


@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx"], indirect=True)
async def test_over_sockets(row: Row, how: Any) -> None:
    def route(request: RecordedRequest) -> WebReply | None:
        if not request.url.endswith("/v1/runs/run-1/stream"):
            return None
        return WebReply(body=b"".join(after(CHUNKS, request.json()["starting_after"])))

    positions = range(len(CHUNKS[0]), len(b"".join(CHUNKS[:9])), 131)
    with FlakyServer(CHUNKS, [Fault.cut(after_bytes=at, how=how) for at in positions], on_request=route) as server:
        for _ in positions:
            url = f"{server.origin}/v1/agents/agent-1/messages"
            async with row.connect("POST", url, json=BODY, protocol=Letta()) as stream:
                assert await stream.read_text() == TEXT
            assert stream.outcome is Outcome.COMPLETED


# --- answers to a resume --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, ResponseRejected),
        (401, ResponseRejected),
        (404, CursorExpired),
        (410, CursorExpired),
        (422, ResponseRejected),
        (429, RetriesExhausted),
        (500, RetriesExhausted),
    ],
)
def test_what_a_status_to_the_resume_means(status: int, error: type) -> None:
    result = play(HALF, *[Reply(status=status, type="")] * 9, delay=policy(3))
    assert (type(result.error), result.data) == (error, data(CHUNKS[:4]))


def test_pings_are_no_progress_and_no_events() -> None:
    result = play(HALF, *[Reply([PING])] * 9, delay=policy(4))
    assert (type(result.error), result.data, len(result.stream.sent)) == (RetriesExhausted, data(CHUNKS[:4]), 6)


def test_a_server_that_sends_more_is_put_right() -> None:
    result = play(HALF, Reply(CHUNKS))
    assert (result.data, result.outcome, result.stream.machine.stats.duplicates) == (data(CHUNKS), Outcome.COMPLETED, 3)


def test_another_run_is_no_rest() -> None:
    assert isinstance(play(HALF, Reply([chunk(3, "assistant_message", content="other")])).error, ReplayDiverged)


def test_without_background_nothing_can_be_resumed() -> None:
    result = play(Reply([ev('{"message_type":"assistant_message","content":"x"}'), "rst"]), json={"messages": []})
    assert (len(result.data), type(result.error)) == (1, StreamInterrupted)


def test_done_alone_proves_nothing() -> None:
    result = play(Reply([*CHUNKS[:4], CHUNKS[-1]]), *[Reply([CHUNKS[-1]])] * 9, delay=policy(3))
    assert isinstance(result.error, RetriesExhausted)
    assert result.data == data(CHUNKS[:4]), "letta-client stops reading at [DONE]"
    assert play(Reply([*CHUNKS[:4], CHUNKS[-1], "silence"]), Reply(CHUNKS[4:])).data == data(CHUNKS)


# --- ends and text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        ("end_turn", Outcome.COMPLETED),
        ("tool_rule", Outcome.COMPLETED),
        ("no_tool_call", Outcome.COMPLETED),
        ("max_steps", Outcome.INCOMPLETE),
        ("max_tokens_exceeded", Outcome.INCOMPLETE),
        ("requires_approval", Outcome.INCOMPLETE),
        ("cancelled", Outcome.CANCELLED),
        ("error", Outcome.FAILED),
        ("llm_api_error", Outcome.FAILED),
        ("insufficient_credits", Outcome.FAILED),
    ],
)
def test_the_stop_reason_tells_the_outcome(reason: str, outcome: Outcome) -> None:
    stop = ev(json.dumps({"message_type": "stop_reason", "stop_reason": reason}))
    result = play(Reply([*CHUNKS[:3], stop, *CHUNKS[-2:]]))
    assert (result.outcome, len(result.data)) == (outcome, 5)


def test_a_failure_is_delivered() -> None:
    failed = chunk(7, "error_message", error_type="llm", message="boom")
    result = play(Reply([CHUNKS[0], failed, ev("[DONE]")]))
    assert (result.outcome, result.data) == (Outcome.FAILED, [*data([CHUNKS[0], failed]), "[DONE]"])


@pytest.mark.parametrize(
    "frame", [ev('{"error":{"message":"boom","type":"x"}}', event="error"), ev('{"error":"boom"}'), ev("boom", event="error")]
)
def test_an_error_frame_is_raised(frame: bytes) -> None:
    result = play(Reply([CHUNKS[0], frame]))
    assert isinstance(result.error, UpstreamError)
    assert "boom" in str(result.error) and result.data == data(CHUNKS[:1])


def test_the_deltas() -> None:
    assert [delta for text in data(CHUNKS) for delta in Letta().deltas(StreamEvent(data=text))] == [
        Delta("reasoning", "Hm, "),
        Delta("reasoning", "Köln."),
        Delta("tool", '{"city":'),
        Delta("tool", '"Köln"}'),
        *(Delta("text", text) for text in ("Sieben ", "Grad ", "Grad ", "☔")),
    ]


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"seq_id":"1"}', '{"message_type":"assistant_message","content":[7]}'])
def test_odd_data_does_no_harm(text: str) -> None:
    event = StreamEvent(data=text)
    assert (Letta().position(event), list(Letta().deltas(event)), Letta().end(event)) == (Position(None), [], None)


@pytest.mark.parametrize("reason", ['"new"', "null", "[]"])
def test_an_unknown_reason_is_not_a_whole_answer(reason: str) -> None:
    event = StreamEvent(data=f'{{"message_type":"stop_reason","stop_reason":{reason}}}')
    assert Letta().end(event) == Settled(Outcome.INCOMPLETE)


# --- going on elsewhere, stopping, detection ------------------------------------------------------------------------


def test_another_process_goes_on_without_the_body() -> None:
    for count in range(1, 9):
        stream = post(Server())
        first = run(stream, at_most=count)
        place = Checkpoint.from_token(stream.leave().token())
        other = post(lambda sent: Reply(after(CHUNKS, sent.request.json["starting_after"])), checkpoint=place, json=None)
        assert first.data + run(other).data == data(CHUNKS)
        assert other.sent[0].path == "/v1/runs/run-1/stream"


@pytest.mark.parametrize(
    ("path", "stop", "body"),
    [
        ("/v1/agents/agent-1/messages", "/v1/agents/agent-1/messages/cancel", {"run_ids": ["run-1"]}),
        ("/v1/agents/agent-1/messages/stream", "/v1/agents/agent-1/messages/cancel", {"run_ids": ["run-1"]}),
        ("/own/v1/conversations/conv-1/messages", "/own/v1/conversations/conv-1/cancel", None),
    ],
)
def test_it_can_be_stopped(path: str, stop: str, body: Any) -> None:
    state = StreamState("POST", f"https://api.letta.com{path}", BODY)
    assert Letta().cancel_request(state) is None
    state.stream_id = "run-1"
    request = Letta().cancel_request(state)
    # The messages of the first request are no business of this one.
    assert request is not None and (request.url, request.json, request.repeat) == (f"https://api.letta.com{stop}", body, None)


@pytest.mark.parametrize(
    ("method", "path", "body", "kind", "found"),
    [
        ("POST", "/v1/agents/agent-1/messages", BODY, "text/event-stream", True),
        ("POST", "/v1/agents/agent-1/messages/stream", BODY, "text/event-stream", True),
        ("POST", "/v1/conversations/conv-1/messages", BODY, "text/event-stream", True),
        ("POST", "/v1/agents/agent-1/messages", {"messages": []}, "text/event-stream", False),
        ("POST", "/v1/agents/agent-1/messages", BODY, "application/json", False),
        ("POST", "/v1/responses", BODY, "text/event-stream", False),
        ("POST", "/v1/agents/agent-1/messages", None, "text/event-stream", False),
        ("GET", "/v1/agents/agent-1/messages", BODY, "text/event-stream", False),
    ],
)
def test_it_is_known_by_its_route_and_flag(method: str, path: str, body: Any, kind: str, found: bool) -> None:
    state = StreamState(method, f"https://api.letta.com{path}", body)
    assert Letta().matches(state, Head(200, {"content-type": kind}, state.url)) is found
