"""
Vercel AI SDK, UI message stream: it has no cursor; the resume endpoint replays the whole answer from its start.

Source: ai-sdk.dev, "Stream protocols" (UI message stream) and "Chatbot resume streams"; npm `ai`, `DefaultChatTransport`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from .._contract import Glance, Head, Position, Promises, Replayed, Request, ResumeProtocol, Stepped, StreamState, Structured
from .._contract.verdicts import Lost, Settled, Unproven, Verdict
from .._events import Delta, Item, Outcome
from ._ends import unproven_done
from ._json import payload_of
from ._shape import Text, deltas_of

__all__ = ["AISDKStream", "stream_url"]

_HEADER: Final = "x-vercel-ai-ui-message-stream"
_TEXTS: Final = {
    "text-delta": Text("text", "delta"),
    "reasoning-delta": Text("reasoning", "delta"),
    "tool-input-delta": Text("tool", "inputTextDelta"),
}
# Parts that end a message. Text in a delta has its quotes escaped, so hardly any other part matches and is parsed.
_ENDS: Final = ('"start"', '"finish"', '"abort"', '"error"')
_EARLY: Final = {
    "length": Outcome.INCOMPLETE,
    "content-filter": Outcome.INCOMPLETE,
    # The model's own stream broke off (ai 7).
    "interrupted": Outcome.INCOMPLETE,
    "error": Outcome.FAILED,
}


class AISDKStream(ResumeProtocol, Replayed, Stepped, Structured, Glance):
    """
    A chat route of the Vercel AI SDK that answers with a UI message stream.

    A POST resumes by `GET {url}/{chat id}/stream`, a GET by repeating itself. Either replays the answer from its beginning: what
    was delivered is counted, compared and dropped. An answer that begins elsewhere is `ReplayDiverged`, never a silent gap.
    204 to a resume means that the answer is no longer being generated. What came in the meantime is in the application's
    message store, and the stream raises `CursorExpired`.

    A `finish` part ends the stream, `abort` gives `CANCELLED`, `error` gives `FAILED`. `[DONE]` alone proves nothing:
    it is written after failures too.

    A `reset-step` part takes back the parts of its step, which is tried again. If some of them were already yielded,
    `iter_text()` raises `StreamReset` and `iter_text(resets=True)` reports the reset; `read_text()` leaves them out.

    Args:
        chat_id: Id of the chat in the resume URL. `None`: `id` of the JSON body, where the SDK's own client puts it.
        resume: Where to GET the answer instead: a URL, absolute or relative to the first one, or a callable of the
            `StreamState`. For routes that do not follow the SDK's default layout.

    >>> AISDKStream()
    <AISDKStream: resumable, has_end>
    """

    promises = Promises(resumable=True, numbered=False, has_end=True)
    json_names = frozenset({"message"})
    replays = True
    identifies_by_event = False

    def __init__(self, *, chat_id: str | None = None, resume: str | Callable[[StreamState], str | None] | None = None) -> None:
        if chat_id in ("", ".", ".."):
            raise ValueError(f"chat_id must not be empty or dots, got {chat_id!r}: it would name the route itself, or another")
        self._chat_id = chat_id
        self._resume = resume

    def matches(self, request: StreamState, head: Head) -> bool:
        # The header identifies the stream; the content type must not contradict it.
        return _HEADER in head.headers and head.content_type in ("text/event-stream", "")

    def identify(self, state: StreamState, source: Head | Item) -> None:
        if state.stream_id is None:
            named = state.json.get("id") if isinstance(state.json, dict) else None
            state.stream_id = self._chat_id or (named if isinstance(named, str) and named else None)

    def position(self, event: Any) -> Position:
        return Position(None)

    def end(self, event: Any) -> Outcome | Settled | Unproven | None:
        if not any(mark in event.data for mark in _ENDS):
            return unproven_done(event, "a finish part")
        part = payload_of(event)
        match part.get("type"):
            case "finish":
                # More may follow if the application merges streams, so read on.
                return Settled(_EARLY.get(str(part.get("finishReason")), Outcome.COMPLETED))
            case "start":
                return Settled(None)
            case "abort":
                return Settled(Outcome.CANCELLED)
            case "error":
                # End at once: a later `finish` must not turn it into a success. The SDK's own client stops here too.
                return Outcome.FAILED
        return None

    def deltas(self, event: Any) -> Sequence[Delta]:
        part = payload_of(event)
        block = part.get("id")
        index = int(block) if isinstance(block, str) and block.isascii() and block.isdigit() and len(block) < 10 else 0
        return deltas_of(_TEXTS, part.get("type"), part, index)

    def step(self, event: Any) -> Literal["begin", "void"] | None:
        if '-step"' not in event.data:
            return None
        match payload_of(event).get("type"):
            case "start-step":
                return "begin"
            case "reset-step":
                # The SDK's agents write one before each attempt at a step, including the first.
                return "void"
        return None

    def resume_request(self, state: StreamState) -> Request | None:
        target = self._resume(state) if callable(self._resume) else self._resume
        if target is not None:
            return Request(method="GET", url=urljoin(state.url, target))
        if callable(self._resume):
            return None
        if state.method == "GET":
            return Request(method="GET", url=state.url, repeat="all")
        url = stream_url(state)
        return None if url is None else Request(method="GET", url=url)

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        # 204: the SDK's guide; 422: the readme of npm `resumable-stream`, which most routes are built on.
        if state.resuming and status in (204, 422):
            return Lost(f"the server answered {status}: the answer is no longer being generated; load it from the message store")
        return None


def stream_url(state: StreamState) -> str | None:
    """The URL at which routes of the SDK and of its workflows replay a stream: below their own path, with their query."""
    # Dots would name the route itself or its parent, even when quoted. The SDK's own client refuses them too.
    if state.stream_id in (None, ".", ".."):
        return None
    parts = urlsplit(state.url)
    path = f"{parts.path.rstrip('/')}/{quote(str(state.stream_id), safe='')}/stream"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))
