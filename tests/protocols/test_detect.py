"""
Which protocol an answer is read by, where its content type is missing, wrong or there twice.

A request that asks for a stream of a known protocol is answered by that protocol or refused. Taken for a file, half of the
answer could not be told from the whole, and the wire's own text would pass for the model's (nearai/private-ml-sdk#20).
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from resumable_stream._contract import Head, StreamState
from resumable_stream._errors import StreamInterrupted, UnexpectedContentType
from resumable_stream._events import Outcome
from resumable_stream.protocols import (
    A2A,
    AISDKStream,
    AnthropicMessages,
    ByteRange,
    GeminiGenerate,
    GeminiInteractions,
    LangGraphRun,
    LastEventID,
    Letta,
    MCPStreamableHTTP,
    OllamaNDJSON,
    OpenAIChat,
    OpenAIResponses,
    ResumeProtocol,
    detect,
)

from ..core.simulation import DROPPED, Reply, Result, play

MESSAGES = [{"role": "user", "content": "hi"}]
RPC = {"jsonrpc": "2.0", "id": 1}
API = "https://api.example.com"
UUID = "1f0b2c3d-0000-4000-8000-000000000001"


def sse(*bodies: dict[str, Any]) -> list[bytes]:
    return [f"event: {body['type']}\ndata: {json.dumps(body)}\n\n".encode() for body in bodies]


def data(*bodies: dict[str, Any]) -> list[bytes]:
    return [f"data: {json.dumps(body)}\n\n".encode() for body in bodies]


def choice(text: str, reason: str | None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]}


def candidate(text: str, **more: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": [{"text": text}]}, **more}]}


Asked = tuple[type[ResumeProtocol], str, dict[str, Any], list[bytes]]
# What is asked for, and an answer whose last event proves the end.
ASKED: list[Asked] = [
    (
        OpenAIChat,
        f"{API}/v1/chat/completions",
        {"model": "m", "messages": MESSAGES, "stream": True},
        data(choice("Hel", None), choice("lo", "stop")),
    ),
    (
        OpenAIChat,
        f"{API}/openai/deployments/m/completions?api-version=1",
        {"prompt": "hi", "stream": True},
        data({"choices": [{"text": "Hel"}]}, {"choices": [{"text": "lo", "finish_reason": "stop"}]}),
    ),
    (
        OpenAIResponses,
        f"{API}/v1/responses",
        {"model": "m", "input": "hi", "stream": True},
        sse(
            {"type": "response.output_text.delta", "sequence_number": 0, "delta": "Hello"},
            {"type": "response.completed", "sequence_number": 1, "response": {"id": "resp_1", "status": "completed"}},
        ),
    ),
    (
        AnthropicMessages,
        f"{API}/v1/messages",
        {"model": "m", "messages": MESSAGES, "stream": True},
        sse({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hello"}}, {"type": "message_stop"}),
    ),
    (
        GeminiGenerate,
        f"{API}/v1beta/models/m:streamGenerateContent?alt=sse",
        {"contents": []},
        data(candidate("Hel"), candidate("lo", finishReason="STOP")),
    ),
    (
        GeminiInteractions,
        f"{API}/v1beta/interactions",
        {"model": "m", "input": "hi", "stream": True, "store": False},
        sse(
            {"type": "step.delta", "delta": {"type": "text", "text": "Hello"}},
            {"type": "interaction.completed", "event_type": "interaction.completed", "interaction": {"status": "completed"}},
        ),
    ),
    (
        MCPStreamableHTTP,
        f"{API}/mcp",
        {**RPC, "method": "tools/call"},
        data({"jsonrpc": "2.0", "method": "notifications/message", "params": {}}, {**RPC, "result": {"content": []}}),
    ),
    (
        A2A,
        f"{API}/agent",
        {**RPC, "method": "SendStreamingMessage", "params": {}},
        data(
            {**RPC, "result": {"artifactUpdate": {"artifact": {"parts": [{"text": "Hello"}]}}}},
            {**RPC, "result": {"statusUpdate": {"status": {"state": "TASK_STATE_COMPLETED"}}}},
        ),
    ),
    (
        Letta,
        f"{API}/v1/agents/a/messages",
        {"messages": MESSAGES, "streaming": True, "background": True},
        data(
            {"message_type": "assistant_message", "content": "Hello"}, {"message_type": "stop_reason", "stop_reason": "end_turn"}
        ),
    ),
    (
        OllamaNDJSON,
        f"{API}/api/chat",
        {"model": "m", "messages": MESSAGES, "stream": True},
        [
            json.dumps({"message": {"content": "Hello"}, "done": done, "done_reason": "stop"}).encode() + b"\n"
            for done in (False, True)
        ],
    ),
]
each_protocol = pytest.mark.parametrize("asked", ASKED, ids=lambda asked: f"{asked[0].__name__} {asked[1][23:45]}")


def answer(asked: Asked, type: str, frames: list[bytes], end: str = "close") -> Result:
    _, url, body, _ = asked
    return play(Reply([b"".join(frames), end], type=type), DROPPED, method="POST", url=url, json=body, detecting=True)


TYPELESS = ["", "application/octet-stream", "text/plain; charset=utf-8"]


@pytest.mark.parametrize(
    ("asked", "type"),
    # Ollama's path is that of many an application too, whose answer is plain text.
    [(asked, type) for asked in ASKED for type in (TYPELESS[:2] if asked[0] is OllamaNDJSON else TYPELESS)],
)
def test_an_answer_without_a_type_is_what_the_request_asked_for(asked: Asked, type: str) -> None:
    """A type that is missing, or says nothing (RFC 9110 section 8.3), leaves it to the recipient what the body is."""
    whole = answer(asked, type, asked[3])
    assert isinstance(whole.stream.machine.protocol, asked[0])
    assert (whole.outcome, whole.error, len(whole.events)) == (Outcome.COMPLETED, None, 2)
    for end in ("close", "rst"):
        half = answer(asked, type, asked[3][:1], end)
        assert isinstance(half.error, StreamInterrupted), "half an answer is no file"
        assert len(half.events) == 1


@each_protocol
@pytest.mark.parametrize("type", ["text/html", "image/png", "application/pdf", "text/event-streams", "multipart/mixed"])
def test_an_answer_of_another_type_is_refused(asked: Asked, type: str) -> None:
    result = answer(asked, type, asked[3])
    assert isinstance(result.error, UnexpectedContentType)
    assert (result.events, result.error.received) == ([], type)
    assert asked[0].content_types[0] in result.error.expected


@pytest.mark.parametrize("type", ["application/x-ndjson", "application/jsonl"])
def test_lines_of_json_are_no_chat(type: str) -> None:
    assert isinstance(answer(ASKED[0], type, ASKED[0][3]).error, UnexpectedContentType)


@pytest.mark.parametrize(
    "type",
    [
        "text/event-stream, text/event-stream",
        "text/event-stream; charset=utf-8, text/event-stream; charset=utf-8",
        "text/html, text/event-stream",
        'text/plain; note="a, \\"b", TEXT/Event-Stream',
        "text/event-stream, */*",
        "text/event-stream, nonsense",
        "text/event-stream,",
    ],
)
def test_of_several_types_the_last_that_is_one_counts(type: str) -> None:
    """The Fetch standard, "extract a MIME type": each value in turn, leaving out `*/*` and what is none; the last one stays."""
    assert Head(200, {"content-type": type}, API).content_type == "text/event-stream"
    assert answer(ASKED[0], type, ASKED[0][3]).outcome is Outcome.COMPLETED
    feed = play(Reply([b"data: [DONE]\n\n"], type=type), detecting=True)
    assert isinstance(feed.stream.machine.protocol, LastEventID)


def test_types_that_are_none_are_told_as_the_first_of_them() -> None:
    assert Head(200, {"content-type": "nonsense, more"}, API).content_type == "nonsense"
    assert Head(200, {"content-type": "text/event-stream, text/html"}, API).content_type == "text/html"


@pytest.mark.parametrize(
    ("method", "url", "body", "expected"),
    [
        # What did not ask for a stream may be a file.
        ("POST", f"{API}/v1/chat/completions", {"messages": MESSAGES}, ByteRange),
        ("POST", f"{API}/v1/responses", {"input": "hi", "stream": False}, ByteRange),
        ("POST", f"{API}/v1/messages", {"messages": MESSAGES}, ByteRange),
        ("GET", f"{API}/v1/responses/resp_1", None, ByteRange),
        ("GET", f"{API}/v1/responses/resp_1?stream=true", None, OpenAIResponses),
        ("POST", f"{API}/threads/{UUID}/runs/stream", {"assistant_id": "a"}, LangGraphRun),
        ("POST", f"{API}/threads/{UUID}/runs/stream", {}, ByteRange),
        ("POST", f"{API}/api/chat", {"model": "m", "messages": MESSAGES}, ByteRange),
        ("POST", f"{API}/v1/speech", {"input": "hi", "stream": True}, ByteRange),
        ("GET", f"{API}/file", None, ByteRange),
    ],
)
def test_only_a_request_for_a_stream_is_one(method: str, url: str, body: Any, expected: type[ResumeProtocol]) -> None:
    assert type(detect(StreamState(method, url, body), Head(200, {}, url))) is expected


def test_an_event_stream_of_another_kind_than_the_request_suggests_stays_one() -> None:
    """The path of Ollama's chat is that of many an application."""
    request = StreamState("POST", f"{API}/api/chat", {"model": "m", "stream": True})
    assert type(detect(request, Head(200, {"content-type": "text/event-stream"}, request.url))) is LastEventID
    assert type(detect(request, Head(200, {"content-type": "text/plain"}, request.url))) is ByteRange


def test_the_header_of_the_ai_sdk_says_what_it_is_without_a_type() -> None:
    request = StreamState("POST", f"{API}/chat", {"messages": []})
    head = Head(200, {"x-vercel-ai-ui-message-stream": "v1"}, request.url)
    assert type(detect(request, head)) is AISDKStream


@pytest.mark.parametrize("type", ["text/plain", "text/html"])
def test_a_protocol_that_is_named_is_judged_by_the_same_rule(type: str) -> None:
    options: Any = {"method": "POST", "url": f"{API}/my/chat", "json": ASKED[0][2], "protocol": OpenAIChat()}
    reply = Reply(ASKED[0][3], type=type)
    # The path says nothing, so the type has to.
    assert isinstance(play(reply, **options).error, UnexpectedContentType)
    options["url"] = ASKED[0][1]
    known = play(reply, **options)
    assert known.outcome is (Outcome.COMPLETED if type == "text/plain" else None)
