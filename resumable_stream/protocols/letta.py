"""
Letta: a background run numbers its chunks, and `POST /v1/runs/{run_id}/stream` sends those after `starting_after`.

Source: docs.letta.com, "Streaming" (background mode); PyPI `letta-client` 1.12.1 (`types/agents/letta_streaming_response.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote, urljoin, urlsplit

from .._contract import Batched, Head, Position, Promises, Request, ResumeProtocol, Settled, StreamState, Structured, Unproven
from .._errors import UpstreamError
from .._events import Delta, Item, Outcome
from ._ends import EndRule, unproven_done
from ._json import payload_of
from ._shape import texts_in

__all__ = ["Letta"]

_ROUTE: Final = re.compile(r"(.*)/v1/(agents|conversations)/([^/]+)/messages(?:/stream)?/?")
_ERRORS: Final = EndRule("never")
_STOPS: Final = {
    "end_turn": Outcome.COMPLETED,
    "tool_rule": Outcome.COMPLETED,
    "no_tool_call": Outcome.COMPLETED,
    "cancelled": Outcome.CANCELLED,
    "max_steps": Outcome.INCOMPLETE,
    "max_tokens_exceeded": Outcome.INCOMPLETE,
    "context_window_overflow_in_system_prompt": Outcome.FAILED,
    "error": Outcome.FAILED,
    "llm_api_error": Outcome.FAILED,
    "invalid_llm_response": Outcome.FAILED,
    "invalid_tool_call": Outcome.FAILED,
    "insufficient_credits": Outcome.FAILED,
    # The run waits for a person; continuing it takes another request.
    "requires_approval": Outcome.INCOMPLETE,
}


class Letta(ResumeProtocol, Batched, Structured):
    """
    Messages of a Letta agent or conversation, streamed with `"background": true`.

    The run continues without a connection. A POST to `/v1/runs/{run_id}/stream` returns what follows `seq_id`. It repeats the
    first body with `starting_after` added, since `include_pings` applies there too; the server uses nothing else of it.
    Without `background` there is no `seq_id`, and a cut is `StreamInterrupted`.

    The `stop_reason` message gives the outcome; usage and `[DONE]` follow it. `[DONE]` alone proves nothing.
    Numbers grow, but no document says that they have no gaps, so a gap cannot be proven. Pings are not delivered.

    >>> Letta()
    <Letta: resumable, has_end>
    """

    promises = Promises(resumable=True, numbered=False, has_end=True)
    json_names = frozenset({"message"})
    sequence = "increasing"

    def claims(self, request: StreamState, head: Head) -> bool:
        found = _ROUTE.fullmatch(urlsplit(request.url).path) if request.method == "POST" else None
        return found is not None and isinstance(request.json, dict) and request.json.get("background") is True

    def identify(self, state: StreamState, source: Head | Item) -> None:
        if not isinstance(source, Head):
            body = payload_of(source)
            if type(body.get("seq_id")) is int and isinstance(body.get("run_id"), str):
                state.stream_id = body["run_id"] or None

    def position(self, event: Any) -> Position:
        number = payload_of(event).get("seq_id")
        return Position(str(number), number) if type(number) is int else Position(None)

    def unpack(self, event: Any) -> Sequence[Any]:
        return () if '"ping"' in event.data and payload_of(event).get("message_type") == "ping" else (event,)

    def end(self, event: Any) -> Outcome | Settled | Unproven | None:
        if event.data.startswith("[DONE]"):
            # The SDK stops here.
            return unproven_done(event, "a stop_reason")
        body = payload_of(event)
        match body.get("message_type"):
            case "stop_reason":
                return Settled(_STOPS.get(str(body.get("stop_reason")), Outcome.INCOMPLETE))
            case "error_message":
                return Settled(Outcome.FAILED)
        return None

    def error(self, event: Any) -> UpstreamError | None:
        return _ERRORS.error(event)

    def deltas(self, event: Any) -> Sequence[Delta]:
        body = payload_of(event)
        match body.get("message_type"):
            case "assistant_message":
                return tuple(Delta("text", text) for text in texts_in(body.get("content")))
            case "reasoning_message":
                return tuple(Delta("reasoning", text) for text in texts_in(body.get("reasoning")))
            case "tool_call_message" | "approval_request_message":
                call = body.get("tool_call")
                return tuple(Delta("tool", text) for text in texts_in(call.get("arguments") if isinstance(call, dict) else None))
        return ()

    def resume_request(self, state: StreamState) -> Request | None:
        found = _ROUTE.fullmatch(urlsplit(state.url).path)
        if state.stream_id is None or state.cursor is None or not re.fullmatch(r"[0-9]{1,18}", state.cursor) or found is None:
            return None
        path = f"{found[1]}/v1/runs/{quote(state.stream_id, safe='')}/stream"
        return Request(method="POST", url=urljoin(state.url, path), json={"starting_after": int(state.cursor)}, repeat="body")

    def cancel_request(self, state: StreamState) -> Request | None:
        found = _ROUTE.fullmatch(urlsplit(state.url).path)
        if state.stream_id is None or found is None:
            return None
        path = f"{found[1]}/v1/{found[2]}/{found[3]}"
        if found[2] == "conversations":
            return Request(method="POST", url=urljoin(state.url, f"{path}/cancel"))
        return Request(method="POST", url=urljoin(state.url, f"{path}/messages/cancel"), json={"run_ids": [state.stream_id]})
