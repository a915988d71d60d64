"""What providers send, and what their clients ask. The payloads are invented, the shapes are those of the API references."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from resumable_stream.testing import FlakyServer

KEY = "sk-secret-of-one-client"
OTHER_KEY = "sk-secret-of-another-client"
PROMPT = "the-prompt-that-is-kept-nowhere"


@dataclass(frozen=True)
class Wire:
    """One provider."""

    name: str
    path: str
    body: Mapping[str, Any]
    blocks: tuple[bytes, ...]
    query: str = ""
    format: Literal["sse", "ndjson", "bytes"] = "sse"
    content_type: str = "text/event-stream; charset=utf-8"
    key_header: str = "authorization"
    events: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def transcript(self) -> bytes:
        return b"".join(self.blocks)

    @property
    def target(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path

    def credentials(self, key: str = KEY) -> dict[str, str]:
        return {self.key_header: f"Bearer {key}" if self.key_header == "authorization" else key}

    def server(self, *schedule: Any, **options: Any) -> FlakyServer:
        options = {"headers": self.headers, "keep_alive": False, **options}
        transcript = list(self.blocks)
        return FlakyServer(transcript, schedule, format=self.format, content_type=self.content_type, **options)

    def __repr__(self) -> str:
        return self.name


def _sse(payload: Any, end: str = "\n\n") -> bytes:
    return f"data: {json.dumps(payload, ensure_ascii=False, separators=(',', ':'))}{end}".encode()


def _chat(delta: dict[str, Any], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return _sse({"id": "c1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]})


def _claude(**data: Any) -> bytes:
    return f"event: {data['type']}\n".encode() + _sse(data)


def _gemini(text: str, **candidate: Any) -> bytes:
    content = {"parts": [{"text": text}], "role": "model"}
    return _sse({"candidates": [{"content": content, "index": 0, **candidate}], "responseId": "r1"}, "\r\n\r\n")


def _interaction(kind: str, n: int, **data: Any) -> bytes:
    return f"event: {kind}\n".encode() + _sse({"event_type": kind, **data, "event_id": f"e{n}"})


def _ollama(text: str, **more: Any) -> bytes:
    line = {"model": "m", "message": {"role": "assistant", "content": text}, "done": False, **more}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


TEXT = ("Grüße", ", ", '"世界"', " 🦊", "\n\n", "data: no event", "!")
_MESSAGES = [{"role": "user", "content": PROMPT}]

OPENAI = Wire(
    "openai",
    "/v1/chat/completions",
    {"model": "m", "messages": _MESSAGES, "stream": True},
    (
        b": OPENROUTER PROCESSING\n\n" + _chat({"role": "assistant", "content": ""}),
        *(_chat({"content": text}) for text in TEXT),
        _chat({}, "stop"),
        b"data: [DONE]\n\n",
    ),
    headers={"x-request-id": "req_1", "openai-version": "2020-10-01", "set-cookie": "a=b", "x-ratelimit-remaining": "7"},
    events=len(TEXT) + 3,
)
ANTHROPIC = Wire(
    "anthropic",
    "/v1/messages",
    {"model": "m", "max_tokens": 9, "messages": _MESSAGES, "stream": True},
    (
        _claude(type="message_start", message={"id": "msg_1", "type": "message", "role": "assistant", "content": []}),
        _claude(type="content_block_start", index=0, content_block={"type": "text", "text": ""}),
        _claude(type="ping"),
        *(_claude(type="content_block_delta", index=0, delta={"type": "text_delta", "text": text}) for text in TEXT),
        _claude(type="content_block_stop", index=0),
        _claude(type="message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 9}),
        _claude(type="message_stop"),
    ),
    key_header="x-api-key",
    headers={"request-id": "req_2", "anthropic-organization-id": "o"},
    events=len(TEXT) + 6,
)
GEMINI = Wire(
    "gemini",
    "/v1beta/models/m:streamGenerateContent",
    {"contents": [{"role": "user", "parts": [{"text": PROMPT}]}]},
    (*(_gemini(text) for text in TEXT), _gemini("", finishReason="STOP")),
    query="alt=sse",
    key_header="x-goog-api-key",
    events=len(TEXT) + 1,
)
OLLAMA = Wire(
    "ollama",
    "/api/chat",
    {"model": "m", "messages": _MESSAGES},
    (*(_ollama(text) for text in TEXT), _ollama("", done=True, done_reason="stop")),
    format="ndjson",
    content_type="application/x-ndjson",
    events=len(TEXT) + 1,
)
INTERACTIONS = Wire(
    "interactions",
    "/v1beta/interactions",
    # What is stored upstream can be resumed; see relay_upstreams.py.
    {"model": "m", "input": PROMPT, "stream": True, "store": False},
    (
        _interaction("interaction.created", 0, interaction={"id": "i1", "object": "interaction", "status": "in_progress"}),
        _interaction("step.start", 1, index=0, step={"type": "model_output"}),
        *(_interaction("step.delta", n, index=0, delta={"type": "text", "text": text}) for n, text in enumerate(TEXT, 2)),
        _interaction("step.stop", 9, index=0),
        _interaction("interaction.completed", 10, interaction={"id": "i1", "object": "interaction", "status": "completed"}),
        b"event: done\ndata: [DONE]\n\n",
    ),
    key_header="x-goog-api-key",
    events=len(TEXT) + 5,
)
WIRES = (OPENAI, ANTHROPIC, GEMINI, OLLAMA, INTERACTIONS)
