"""
The providers' answers to "count to 300", to be cut by `compare.py` and tests/integration.

A `FlakyServer` serves each wire over real sockets. It continues after a cut if the provider's API can.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from resumable_stream.testing import Fault, FlakyServer, RecordedRequest, Reply, ServerEvent
from resumable_stream.testing.faults import How

TOKENS: Final = 300
CUT_AT: Final = 150
ASK: Final = [{"role": "user", "content": "Count."}]
WORDS: Final = [f"t{n} " for n in range(TOKENS)]  # all different, so that a repeat or a hole is visible


@dataclass(frozen=True, kw_only=True)
class Wire:
    """
    The answer of a provider.

    Attributes:
        frames: The whole answer, one item per event.
        lead: Events before the first token.
        options: For the `FlakyServer`: how clients request the rest from this API, if they can.
    """

    frames: Sequence[bytes]
    lead: int
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def behind(self) -> int:
        """Events before the cut."""
        return self.lead + CUT_AT

    def cut(self, how: How) -> Fault:
        """End an answer at token 150."""
        return Fault.cut(after_events=self.behind, how=how)

    def serve(self, *faults: Fault | None) -> FlakyServer:
        """A server that disturbs only its first answers, like this."""
        return FlakyServer(self.frames, faults, **self.options)


def sse(*payloads: dict[str, Any] | str, named: bool = False) -> list[bytes]:
    """Events as most providers write them; `named` repeats the payload's type as the event's name."""
    return [
        ServerEvent(
            event=item["type"] if named and isinstance(item, dict) else None,
            data=item if isinstance(item, str) else json.dumps(item),
        ).encode()
        for item in payloads
    ]


def field_of(name: str) -> Callable[[bytes], str | None]:
    """Reads a field of an event's JSON that holds its place."""
    pattern = re.compile(rf'"{name}": "?(\w+)'.encode())

    def read(frame: bytes) -> str | None:
        found = pattern.search(frame)
        return found[1].decode() if found else None

    return read


def document(value: object) -> Reply:
    return Reply(headers={"content-type": "application/json"}, body=json.dumps(value).encode())


def responses(words: Sequence[str] = WORDS, *, background: bool = True) -> Wire:
    """A background response: every event is numbered, `GET …?stream=true&starting_after=N` sends what follows N."""
    part = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    text = {"type": "output_text", "text": "".join(words), "annotations": []}
    item: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    whole = {**item, "status": "completed", "content": [text]}

    def response(status: str, output: Sequence[object] = ()) -> dict[str, Any]:
        return {
            "id": "resp_1",
            "object": "response",
            "created_at": 1,
            "model": "m",
            "background": background,
            "status": status,
            "output": list(output),
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        }

    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": response("queued")},
        {"type": "response.in_progress", "response": response("in_progress")},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", **part, "part": {**text, "text": ""}},
        *({"type": "response.output_text.delta", **part, "delta": word, "logprobs": []} for word in words),
        {"type": "response.output_text.done", **part, "text": text["text"], "logprobs": []},
        {"type": "response.content_part.done", **part, "part": text},
        {"type": "response.output_item.done", "output_index": 0, "item": whole},
        {"type": "response.completed", "response": response("completed", [whole])},
    ]

    def status(request: RecordedRequest) -> Reply | None:
        if request.method != "GET" or request.query.get("stream") == "true":
            return None
        return document(response("in_progress"))

    return Wire(
        frames=sse(*({**event, "sequence_number": n} for n, event in enumerate(events)), named=True),
        lead=4,
        options={"cursor_param": "starting_after", "cursor_of": field_of("sequence_number"), "on_request": status},
    )


def chat(words: Sequence[str] = WORDS) -> Wire:
    def chunk(delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}

    chunks = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": word}) for word in words), chunk({}, "stop")]
    return Wire(frames=sse(*chunks, "[DONE]"), lead=1)


def messages(words: Sequence[str] = WORDS) -> Wire:
    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
    }
    counted = {"input_tokens": 1, "output_tokens": 1}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message, "stop_sequence": None, "usage": counted}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}} for word in words),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": len(words)},
        },
        {"type": "message_stop"},
    ]
    return Wire(frames=sse(*events, named=True), lead=3)


def gemini(words: Sequence[str] = WORDS) -> Wire:
    def chunk(text: str, **more: str) -> dict[str, Any]:
        candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0, **more}
        return {"candidates": [candidate], "modelVersion": "m", "responseId": "r1"}

    return Wire(frames=sse(*map(chunk, words), chunk("", finishReason="STOP")), lead=0)


def interactions(words: Sequence[str] = WORDS) -> Wire:
    """A stored interaction: every event has an id, `GET …?stream=true&last_event_id=E` sends what follows E."""

    def interaction(status: str) -> dict[str, Any]:
        return {"id": "i1", "object": "interaction", "model": "m", "status": status}

    def delta(text: str) -> dict[str, Any]:
        return {"event_type": "step.delta", "index": 0, "delta": {"type": "text", "text": text}}

    events: list[dict[str, Any]] = [
        {"event_type": "interaction.created", "interaction": interaction("in_progress")},
        {"event_type": "step.start", "index": 0, "step": {"type": "model_output"}},
        *map(delta, words),
        {"event_type": "step.stop", "index": 0},
        {"event_type": "interaction.completed", "interaction": interaction("completed")},
    ]

    def status(request: RecordedRequest) -> Reply | None:
        asked = request.method == "GET" and request.query.get("stream") != "true"
        return document(interaction("in_progress")) if asked else None

    numbered = [
        ServerEvent(event=event["event_type"], data=json.dumps({**event, "event_id": f"e{n}"})) for n, event in enumerate(events)
    ]
    return Wire(
        frames=[event.encode() for event in [*numbered, ServerEvent(data="[DONE]")]],
        lead=2,
        options={"cursor_param": "last_event_id", "cursor_of": field_of("event_id"), "on_request": status},
    )


def plain(words: Sequence[str] = WORDS) -> Wire:
    """A GET stream with ids, as in the standard: `Last-Event-ID` requests the rest, and 204 means that there is none."""
    events = [ServerEvent(id=str(n), data=word, retry=100 if n == 0 else None) for n, word in enumerate(words)]
    done = ServerEvent(id=str(len(words)), data="[DONE]")
    return Wire(frames=[event.encode() for event in [*events, done]], lead=0, options={"no_content_at_end": True})
