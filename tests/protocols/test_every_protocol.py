"""What has to hold of every protocol: odd payloads raise nothing of their own, credentials stay, nobody's stream is hijacked."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from resumable_stream import protocols
from resumable_stream._checkpoint import Checkpoint
from resumable_stream._contract import (
    Answer,
    Backfilled,
    Batched,
    Head,
    Parted,
    Reporting,
    ResumeProtocol,
    Shared,
    Stored,
    StreamState,
    Structured,
    Verified,
    placing,
)
from resumable_stream._errors import OriginMismatch, ProtocolViolation, ResumableStreamError, StreamInterrupted
from resumable_stream._events import Outcome, StreamEvent
from resumable_stream._text import TextReader
from resumable_stream.protocols import CursorProtocol, GeminiGenerate, MCPStreamableHTTP, Relayed, detect
from resumable_stream.protocols._registry import PLAIN as PLAINEST
from resumable_stream.protocols._registry import SPECIFIC
from resumable_stream.protocols.relayed import can_relay

from ..core.simulation import Reply, Sent, Stream, ev, play, run, script

BASE = "https://api.example.com"
SSE = {"content-type": "text/event-stream"}
DEEP = "[" * 100_000
# Whatever a field may hold that no provider would put there.
ODD: list[Any] = [None, [], {}, 5, True, "", "x", [5], [[]], {"a": 1}, -1, 10**30, 0.5]
FIELDS = """
    type message_type status stop_reason finishReason finish_reason delta message error code choices candidates
    content parts artifacts additional_kwargs tool_call_chunks records headers body seq_num seq_id event_index run_id
    response interaction chunk id result params processed_at usage done steps tasks metadata values next method kind
    task statusUpdate artifactUpdate sequence_number
""".split()  # noqa: SIM905
OUTER = ["message", "delta", "response", "error", "choices", "candidates", "records", "chunk", "result", "content_block"]
NAMES = ["message", "batch", "messages", "messages/partial", "data", "control", "error", "content_block_delta", "message_delta",
         "content_block_start", "message_start", "interaction.created", "step.delta", "metadata", "values"]  # fmt: skip


def payloads(*, every: bool = False) -> list[str]:
    """Each field with each odd value, alone and one level down; there, unless `every`, with two of eight values by turns."""
    found = [json.dumps({field: value}) for field in FIELDS for value in ODD]
    for row, outer in enumerate(OUTER):
        for column, field in enumerate(FIELDS):
            for turn, value in enumerate(ODD[:8]):
                if every or (row + column + turn) % 4 == 0:
                    inner: Any = {field: value}
                    found.append(json.dumps({outer: [inner] if outer.endswith("s") else inner}))
    return [*found, "[]", "null", "5", '"x"', "{", "", '{"error":' + DEEP]


PAYLOADS = payloads()
EVERY_PAYLOAD = payloads(every=True)
ASKS = ((Verified, "on_verified"), (Stored, "on_snapshot"), (Backfilled, "on_backfill"))


def through_a_relay(cls: type[ResumeProtocol]) -> Callable[[], ResumeProtocol]:
    """What makes the protocol within `Relayed`."""

    def make() -> ResumeProtocol:
        return Relayed(cls())

    make.__name__ = cls.__name__
    return make


CANDIDATES = [*SPECIFIC, *PLAINEST]
RELAYED = [through_a_relay(cls) for cls in CANDIDATES if can_relay(cls())]
each_protocol = pytest.mark.parametrize(
    "cls",
    [*CANDIDATES, *RELAYED],
    ids=[*(cls.__name__ for cls in CANDIDATES), *(f"Relayed-{make.__name__}" for make in RELAYED)],
)


# Each payload under one name, by turns; under every name in `make soak`.
@pytest.mark.parametrize("names", ["by turns", pytest.param("every", marks=pytest.mark.soak)])
@each_protocol
def test_an_odd_payload_raises_nothing_of_its_own(cls: type[ResumeProtocol], names: str) -> None:
    protocol = cls()
    if protocol.framing == "raw":
        pytest.skip("bytes have no payload")
    state = StreamState("POST", f"{BASE}/v1/x", {"jsonrpc": "2.0", "id": 1, "method": []})
    for turn, data in enumerate(EVERY_PAYLOAD if names == "every" else PAYLOADS):
        chosen = NAMES if len(data) < 1_000 else NAMES[:2]
        for name in chosen if names == "every" else [chosen[turn % len(chosen)]]:
            events = list(Batched.of(protocol).unpack(StreamEvent(name, data, "1")))
            if (place := placing(protocol)) is not None:
                place(events)
            for event in events:
                protocol.identify(state, event)
                protocol.error(event)
                Reporting.of(protocol).gap(event)
                Parted.of(protocol).part(event)
                if (end := protocol.end(event)) is not None:
                    Shared.of(protocol).end_in(state, event, end)
                list(protocol.deltas(event))


# One event of each protocol that holds content: its name, and its data.
CONTENT = {
    "A2A": ("message", '{"kind":"message","parts":[{"text":"x"}]}'),
    "AISDKStream": ("message", '{"type":"text-delta","id":"0","delta":"x"}'),
    "Agno": ("RunContent", '{"content":"x","event_index":1}'),
    "AnthropicMessages": ("content_block_delta", '{"index":0,"delta":{"type":"text_delta","text":"x"}}'),
    "AnthropicSession": ("message", '{"type":"agent.message","content":[{"text":"x"}]}'),
    "DurableStreams": ("message", '"x"'),
    "GeminiGenerate": ("message", '{"candidates":[{"content":{"parts":[{"text":"x"}]}}]}'),
    "GeminiInteractions": ("step.delta", '{"index":0,"delta":{"type":"text","text":"x"}}'),
    "HubStream": ("message", '{"text":"x"}'),
    "LangGraphRun": ("messages|node:1", '[{"type":"ai","content":"x"},{}]'),
    "LangGraphThread": ("messages", '[{"type":"ai","content":"x"},{}]'),
    "Letta": ("message", '{"message_type":"assistant_message","content":"x"}'),
    "MCPStreamableHTTP": ("message", '{"id":1,"result":{"content":[{"type":"text","text":"x"}]}}'),
    "OllamaNDJSON": ("message", '{"response":"x"}'),
    "OpenAIChat": ("message", '{"choices":[{"delta":{"content":"x"}}]}'),
    "OpenAIResponses": ("response.output_text.delta", '{"delta":"x"}'),
    "S2": ("record", '{"body":"x"}'),
    "TanStackAI": ("message", '{"type":"TEXT_MESSAGE_CONTENT","delta":"x"}'),
    "TanStackAINDJSON": ("message", '{"id":"1","chunk":{"type":"TEXT_MESSAGE_CONTENT","delta":"x"}}'),
    "TriggerDev": ("record", '{"body":"{\\"data\\":\\"x\\"}"}'),
    "UpstashRealtime": ("message", '{"id":"1-0","channel":"c","data":"x"}'),
    "WorkflowRun": ("message", '{"type":"text-delta","id":"0","delta":"x"}'),
}
# Their events need not be JSON.
PLAIN = {"AblySSE", "ByteRange", "LastEventID", "NDJSON", "ResumableStreamNPM"}


def text_in(protocol: ResumeProtocol, event: StreamEvent) -> list[str]:
    return list(TextReader(lambda: protocol, mode="text", resets=True, limit=1000, strict=False).read(event))


@each_protocol
def test_content_that_is_not_json_is_an_error_and_never_nothing(cls: type[ResumeProtocol]) -> None:
    """
    A proxy cut an event short, or joined two (rexxars/eventsource-parser#31): read as nothing, the rest is "the whole answer".

    What holds no content stays silent: empty data, `[DONE]`, and events of names that the protocol does not know.
    """
    protocol = cls()
    if cls.__name__ in PLAIN:
        assert not Structured.of(protocol).reads_json(StreamEvent("message", "x"))
        return
    name, data = CONTENT[cls.__name__]
    assert text_in(protocol, StreamEvent(name, data)) == ["x"]
    for broken in (data[:-1], data[1:], "no json", data[:2]):
        with pytest.raises(ProtocolViolation, match="expected JSON as the data of event 0") as caught:
            text_in(protocol, StreamEvent(name, broken))
        assert broken.startswith(caught.value.excerpt.removesuffix("…"))
    for quiet in ("", " ", "[DONE]"):
        assert text_in(protocol, StreamEvent(name, quiet)) == []
    for unknown in ("ping", "keepalive", "something.new"):
        assert text_in(protocol, StreamEvent(unknown, "12:00")) in ([], ["12:00"])


# Each payload as one answer, by turns; as each of them in `make soak`.
@pytest.mark.parametrize("asks", ["by turns", pytest.param("every", marks=pytest.mark.soak)])
@each_protocol
def test_an_odd_answer_raises_nothing_of_its_own(cls: type[ResumeProtocol], asks: str) -> None:
    for turn, data in enumerate(EVERY_PAYLOAD if asks == "every" else PAYLOADS):
        answer = Answer(200, {"content-type": "application/json"}, data.encode())
        for kind, ask in ASKS if asks == "every" else [ASKS[turn % len(ASKS)]]:
            state = StreamState("POST", f"{BASE}/threads/t/runs/stream", {"method": "message/send"})
            state.stream_id, state.location, state.offset = "s1", f"{BASE}/threads/t/runs/r", 3
            found = getattr(kind.of(cls()), ask)(answer, state)
            # Events may be made as they are asked for.
            list(getattr(found, "events", ()))


FORGED = ["x", "é\n", "1" * 5_000, "xyz t1", "-1", ",", "0001-01-01T00:00:00Z", ""]
REQUESTS = [("GET", "/v1/streams/s/records"), ("POST", "/rpc"), ("POST", "/v1/agents/a/messages/stream"), ("GET", "/x")]


@each_protocol
def test_a_forged_place_raises_nothing_of_its_own(cls: type[ResumeProtocol]) -> None:
    for cursor, (method, path) in itertools.product(FORGED, REQUESTS):
        place = Checkpoint(
            protocol=cls.__name__, method=method, url=BASE + path, stream_id="t1", cursor=cursor, offset=3, extra={"version": "9"}
        )

        def answer(sent: Sent) -> Reply:
            return Reply([b"{}"], status=404, type="application/json") if sent.side else Reply([ev('{"a":1}')])

        try:
            result = run(Stream(answer, method=method, url=BASE + path, protocol=cls(), checkpoint=place, connections=20))
        except AssertionError:
            # A server that answers for ever with an event is asked for ever: that is no failure of the place.
            continue
        assert result.error is None or isinstance(result.error, ResumableStreamError), (cursor, method, path)


# --- origins --------------------------------------------------------------------------------------------------------

CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {}}


def test_a_session_id_does_not_follow_a_redirect_to_another_origin() -> None:
    result = play(
        Reply([ev('{"jsonrpc":"2.0","method":"notifications/progress"}', "a1"), "rst"], headers={"mcp-session-id": "s3cret"}),
        Reply(status=307, headers={"location": "https://other.example.net/x"}, type=""),
        method="POST",
        json=CALL,
        protocol=MCPStreamableHTTP(),
    )
    assert isinstance(result.error, OriginMismatch)
    assert "s3cret" not in str(result.error)
    assert len(result.stream.sent) == 2
    assert result.error.checkpoint is not None


def test_a_cursor_in_a_header_of_its_own_does() -> None:
    protocol = CursorProtocol(read="seq", send="header:X-After", end="[DONE]")
    result = play(
        Reply([ev('{"seq": 1}'), "rst"]),
        Reply(status=307, headers={"location": "https://other.example.net/x"}, type=""),
        Reply([ev('{"seq": 2}') + ev("[DONE]")]),
        protocol=protocol,
    )
    assert result.outcome is Outcome.COMPLETED
    assert result.stream.sent[-1].headers["x-after"] == "1"


# --- detection ------------------------------------------------------------------------------------------------------

BLOCKS = [ev("a", "1"), ev("b", "2"), ev("[DONE]", "3")]
FOREIGN = [
    ("GET", "/api/threads/7/stream", None, {}),
    ("GET", "/api/threads/7/runs/9/stream", None, {}),
    ("GET", "/logs?runId=7&offset=0", None, {}),
    ("GET", "/v2/interactions/x?stream=true", None, {}),
    ("GET", "/responses/corresp_7", None, {}),
    ("GET", "/x", None, {"x-workflow-run-id": "9"}),
    ("POST", "/ci/workflows/7/runs", None, {"location": "/jobs/1"}),
    ("POST", "/v1/messages", {"stream": True, "room": 5}, {"location": "/jobs/1"}),
    ("POST", "/v1/responses", None, {"location": "/jobs/1"}),
]


@pytest.mark.parametrize("cut", ["rst", "fin", None])
@pytest.mark.parametrize(("method", "path", "body", "headers"), FOREIGN, ids=[row[1] for row in FOREIGN])
def test_a_stream_of_nobody_known_is_read_as_plain_sse(
    method: str, path: str, body: Any, headers: Mapping[str, str], cut: str | None
) -> None:
    def answer(sent: Sent) -> Reply:
        assert not sent.side
        if sent.cursor:
            return Reply(BLOCKS[int(sent.cursor) :])
        return Reply(BLOCKS if cut is None else [BLOCKS[0], cut], headers=headers)  # type: ignore[list-item]

    result = run(Stream(answer, method=method, url=BASE + path, json=body, detecting=True))
    assert result.data == ["a", "b", "[DONE]"]
    assert result.outcome is Outcome.COMPLETED
    assert sum(sent.method == "POST" for sent in result.stream.sent) == (method == "POST")


def test_a_page_is_nobodys_stream() -> None:
    head = Head(200, {"content-type": "application/json"}, BASE)
    assert detect(StreamState("GET", f"{BASE}/feed?offset=-1&runId=3", None), head) is None


@pytest.mark.parametrize(
    ("path", "body", "event"),
    [
        (
            "/v1/chat/completions",
            {"stream": True, "messages": [], "n": 2},
            {"choices": [{"index": 0, "delta": {"content": "a"}}]},
        ),
        (
            "/v1/models/m:streamGenerateContent",
            {"generationConfig": {"candidateCount": 2}},
            {"candidates": [{"index": 0, "content": {"parts": [{"text": "a"}]}}]},
        ),
    ],
    ids=["choices", "candidates"],
)
def test_half_of_several_answers_is_not_whole(path: str, body: Any, event: Any) -> None:
    result = play(Reply([ev(json.dumps(event))]), method="POST", url=BASE + path, json=body, detecting=True)
    assert isinstance(result.error, StreamInterrupted)


def test_one_of_two_candidates_that_ended_says_nothing_of_the_other() -> None:
    event = {"candidates": [{"index": 0, "content": {"parts": [{"text": "a"}]}, "finishReason": "STOP"}]}
    protocol = GeminiGenerate(candidates=2)
    body = {"generationConfig": {"candidateCount": 2}}
    for cut in ("rst", "close"):
        result = play(Reply([ev(json.dumps(event)), cut]), method="POST", json=body, protocol=protocol)
        assert isinstance(result.error, StreamInterrupted)
    with pytest.raises(ValueError, match="candidates=2"):
        play(method="POST", json=body, protocol=GeminiGenerate())


# --- ends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        (
            "TanStackAI",
            [{"type": "RUN_STARTED"}, {"type": "RUN_FINISHED"}, {"type": "RUN_STARTED"}, {"type": "TEXT_MESSAGE_CONTENT"}],
        ),
        ("AISDKStream", [{"type": "start"}, {"type": "finish"}, {"type": "start"}, {"type": "text-delta", "delta": "half"}]),
    ],
)
@pytest.mark.parametrize("chunk", [None, 1])
def test_a_part_that_begins_behind_a_finished_one_may_be_cut(name: str, blocks: list[Any], chunk: int | None) -> None:
    events = [ev(json.dumps(block)) for block in blocks]
    steps = events if chunk else [b"".join(events)]
    result = play(Reply([*steps, "rst"]), method="POST", json={}, protocol=getattr(protocols, name)())
    assert result.outcome is None
    assert isinstance(result.error, ResumableStreamError)


def test_the_end_of_the_turn_before_does_not_end_this_one() -> None:
    at: Callable[[int], str] = lambda second: f"2026-11-20T10:00:{second}Z"  # noqa: E731
    idle = {"type": "session.status_idle", "stop_reason": {"type": "end_turn"}}
    before = {**idle, "id": "e0", "processed_at": at(10)}
    half = {"type": "agent.message", "id": "e1", "processed_at": at(40), "content": [{"type": "text", "text": "half"}]}
    rest = {"type": "agent.message", "id": "e2", "processed_at": at(45), "content": [{"type": "text", "text": "rest"}]}
    end = {**idle, "id": "e3", "processed_at": at(50)}
    headers = {"date": "Fri, 20 Nov 2026 10:00:30 GMT"}
    result = run(
        Stream(
            script(
                Reply([ev(json.dumps(half)), "rst"], headers=headers),
                Reply([ev(json.dumps(end))], headers=headers),
                Reply([json.dumps({"data": [before, half, rest], "next_page": None}).encode()], type="application/json"),
            ),
            url=f"{BASE}/v1/sessions/s1/events/stream",
            protocol=protocols.AnthropicSession(until="turn"),
        )
    )
    assert [json.loads(data)["id"] for data in result.data] == ["e1", "e2", "e3"]
    assert result.outcome is Outcome.COMPLETED
