"""
Anthropic's Messages API: one answer, bound to its connection.

    message_start → (content_block_start → content_block_delta… → content_block_stop)… → message_delta → message_stop
                                            ping anywhere, error instead of the rest

No event has an id and no call returns the rest of an answer, so a cut cannot be resumed. What can be promised is an honest end.

Source: the PyPI package anthropic 2.10.0 (`_streaming.py`, `types/raw_message_stream_event.py`, `types/stop_reason.py`,
`types/beta/beta_stop_reason.py`) and its API reference, "Streaming Messages".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from .._contract import Alarm, Glance, Head, Promises, ResumeProtocol, Settled, StreamState, Structured
from .._errors import UpstreamError
from .._events import Delta, Item, Outcome
from ._ends import ERROR_HEADS, EndRule, upstream_error
from ._json import kind_of, object_of, payload_of
from ._shape import Text, deltas_of, posted

__all__ = ["AnthropicMessages"]

# The SDK raises on `event: error`; gateways in front of it also send a bare `{"error": …}`.
_ERRORS: Final = EndRule("close")
# Signatures, citations and compactions are not content that a person reads.
_DELTAS: Final = {
    "text_delta": Text("text", "text"),
    "thinking_delta": Text("reasoning", "thinking"),
    "input_json_delta": Text("tool", "partial_json"),
}
# Usually empty; any text here is the beginning of the block.
_BLOCKS: Final = {"text": Text("text", "text"), "thinking": Text("reasoning", "thinking")}
_HOLDERS: Final = {"content_block_delta": ("delta", _DELTAS), "content_block_start": ("content_block", _BLOCKS)}
# Stop reasons and their outcomes. `pause_turn` and `compaction` expect another request that continues the answer.
_REASONS: Final = {
    **dict.fromkeys(("end_turn", "stop_sequence", "tool_use"), Outcome.COMPLETED),
    **dict.fromkeys(("max_tokens", "model_context_window_exceeded", "pause_turn", "compaction", "refusal"), Outcome.INCOMPLETE),
}


class AnthropicMessages(ResumeProtocol, Structured, Glance):
    """
    `POST /v1/messages` with `"stream": true`.

    It cannot be resumed: a cut before `message_stop` raises `StreamInterrupted`, even if the body closed cleanly,
    which most clients take for the end. Once the request may have been accepted it is never repeated, since that would bill
    another answer; request that with `on_lost="restart"`.

    The outcome is known with the stop reason, one event before `message_stop`, so a cut in between changes nothing. It is
    `INCOMPLETE` if the reason says that the answer is not whole (`max_tokens`, `model_context_window_exceeded`, `pause_turn`,
    `compaction`, `refusal`), and `COMPLETED` for `end_turn`, `stop_sequence` and `tool_use`. After an unknown reason,
    `message_stop` decides. An `error` event raises `UpstreamError`.

    If a proxy dropped an event's `event:` line, the `type` in its JSON is used.

    `stream_id` is the id of the message.

    >>> AnthropicMessages()
    <AnthropicMessages: has_end, tied>
    """

    promises = Promises(resumable=False, numbered=False, has_end=True, tied=True)
    # "message": an event whose name a proxy dropped.
    alarm = Alarm(frozenset({"message_delta", "message_stop", "error", "message"}), ERROR_HEADS)
    json_names = frozenset({"content_block_delta", "content_block_start", "message_delta", "message"})

    def matches(self, request: StreamState, head: Head) -> bool:
        if head.content_type != "text/event-stream":
            return False
        # The path alone is too generic. If the body was not given as JSON, the server's own headers must confirm it.
        vouched = any(name.startswith("anthropic-") for name in head.headers)
        return (_is_ours(request) and vouched) or self.claims(request, head)

    def claims(self, request: StreamState, head: Head) -> bool:
        body = posted(request, "/v1/messages")
        return body.get("stream") is True and isinstance(body.get("messages"), list)

    def identify(self, state: StreamState, source: Head | Item) -> None:
        if not isinstance(source, Head):
            message = payload_of(source).get("message")
            if isinstance(message, dict) and isinstance(message.get("id"), str):
                state.stream_id = message["id"]

    def end(self, event: Any) -> Outcome | Settled | None:
        kind = kind_of(event)
        if kind == "message_stop":
            return Outcome.COMPLETED
        if kind == "message_delta":
            delta = object_of(payload_of(event).get("delta"))
            outcome = _REASONS.get(str(delta.get("stop_reason")))
            return None if outcome is None else Settled(outcome)
        return None

    def error(self, event: Any) -> UpstreamError | None:
        if event.event == "message" and kind_of(event) == "error":
            body = payload_of(event)
            return upstream_error(object_of(body.get("error")) or body, body)
        return _ERRORS.error(event)

    def deltas(self, event: Any) -> Sequence[Delta]:
        if (found := _HOLDERS.get(kind_of(event))) is None:
            return ()
        holder, texts = found
        payload = payload_of(event)
        part = object_of(payload.get(holder))
        return deltas_of(texts, part.get("type"), part, payload.get("index"))


def _is_ours(request: StreamState) -> bool:
    return request.method == "POST" and urlsplit(request.url).path.endswith("/v1/messages")
