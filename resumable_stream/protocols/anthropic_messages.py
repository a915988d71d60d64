"""
Anthropic's Messages API: one answer, bound to its connection.

    message_start → (content_block_start → content_block_delta… → content_block_stop)… → message_delta → message_stop
                                            ping anywhere, error instead of the rest

No event has an id and no call returns the rest of an answer, so a cut is a cut. What can be promised is an honest end.

Source: the PyPI package anthropic 2.10.0 (`_streaming.py`, `types/raw_message_stream_event.py`, `types/stop_reason.py`,
`types/beta/beta_stop_reason.py`) and its API reference, "Streaming Messages".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from .._core.interfaces import Alarm, Head, Interrupted, Promises, ResumeProtocol, Settled, StreamState, Verdict
from .._errors import UpstreamError
from .._events import Delta, Item, Outcome
from ._ends import EndRule
from ._json import payload_of

__all__ = ["AnthropicMessages"]

Kind = Literal["text", "reasoning", "tool", "refusal"]

# The SDK raises on `event: error`; gateways in front of it also send a bare `{"error": …}`.
_ERRORS: Final = EndRule("close")
# Delta type → (its field, what it is). Signatures, citations and compactions are no content that a person reads.
_DELTAS: Final[Mapping[str, tuple[str, Kind]]] = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "reasoning"),
    "input_json_delta": ("partial_json", "tool"),
}
_BLOCKS: Final[Mapping[str, Kind]] = {"text": "text", "thinking": "reasoning"}
# Stop reasons by which the answer is not whole; `pause_turn` and `compaction` ask for another request that goes on.
_EARLY: Final = frozenset({"max_tokens", "model_context_window_exceeded", "pause_turn", "compaction", "refusal"})


class AnthropicMessages(ResumeProtocol):
    """
    `POST /v1/messages` with `"stream": true`.

    It cannot be resumed: a cut before `message_stop` raises `StreamInterrupted`, also when the body closed cleanly,
    which most clients take for the end. The request is never repeated once it may have been accepted, since that would be
    another, paid answer; ask for that with `on_lost="restart"`.

    The outcome is `COMPLETED` behind `message_stop`. It is `INCOMPLETE` when the stop reason says that the answer is not whole
    (`max_tokens`, `model_context_window_exceeded`, `pause_turn`, `compaction`, `refusal`): that is known one event earlier,
    so a cut in between changes nothing. An `error` event raises `UpstreamError`.

    `stream_id` is the id of the message.

    >>> AnthropicMessages()
    <AnthropicMessages: has_end, tied>
    """

    alarm = Alarm(frozenset({"message_delta", "message_stop", "error"}), frozenset({'{"error'}))

    @property
    def promises(self) -> Promises:
        return Promises(resumable=False, numbered=False, has_end=True, tied=True)

    def matches(self, request: StreamState, head: Head) -> bool:
        if head.content_type != "text/event-stream":
            return False
        # The path alone is too plain a name; a body that was not given as JSON is vouched for by the server's own headers.
        vouched = any(name.startswith("anthropic-") for name in head.headers)
        return (_is_ours(request) and vouched) or self.claims(request, head)

    def claims(self, request: StreamState, head: Head) -> bool:
        body = request.json
        asked = isinstance(body, dict) and body.get("stream") is True and isinstance(body.get("messages"), list)
        return asked and _is_ours(request)

    def identify(self, state: StreamState, source: Head | Item) -> None:
        if not isinstance(source, Head):
            message = payload_of(source).get("message")
            if isinstance(message, dict) and isinstance(message.get("id"), str):
                state.stream_id = message["id"]

    # -- reading

    def end(self, event: Any) -> Outcome | Settled | None:
        if event.event == "message_stop":
            return Outcome.COMPLETED
        if event.event == "message_delta":
            delta = payload_of(event).get("delta")
            if isinstance(delta, dict) and str(delta.get("stop_reason")) in _EARLY:
                return Settled(Outcome.INCOMPLETE)
        return None

    def error(self, event: Any) -> UpstreamError | None:
        return _ERRORS.error(event)

    def deltas(self, event: Any) -> Sequence[Delta]:
        field: str
        if event.event == "content_block_delta":
            part = payload_of(event).get("delta")
            if not isinstance(part, dict) or str(part.get("type")) not in _DELTAS:
                return ()
            field, kind = _DELTAS[part["type"]]
        elif event.event == "content_block_start":
            # Empty as a rule; what stands here is the beginning of the block all the same.
            part = payload_of(event).get("content_block")
            if not isinstance(part, dict) or str(part.get("type")) not in _BLOCKS:
                return ()
            field = part["type"]
            kind = _BLOCKS[field]
        else:
            return ()
        text, index = part.get(field), payload_of(event).get("index")
        return (Delta(kind, text, index if isinstance(index, int) else 0),) if isinstance(text, str) and text else ()

    # -- going on: there is no way

    def on_clean_close(self, state: StreamState) -> Verdict:
        return Interrupted("closed before the end")


def _is_ours(request: StreamState) -> bool:
    return request.method == "POST" and urlsplit(request.url).path.endswith("/v1/messages")
