"""A whole document where a stream might have been: some servers answer with JSON when there is nothing to stream."""

from __future__ import annotations

from .._errors import EventTooLarge, ResumableStreamError
from .._events import StreamEvent

__all__ = ["DocumentDecoder"]


class DocumentDecoder:
    """
    Collect a body and make one event of it, at its end.

    Args:
        event_bytes: Most bytes that it may have.

    Attributes:
        error: `EventTooLarge`, once it has more.
        retry, last_event_id, silent: As an `SSEDecoder` that has seen none of them.
    """

    def __init__(self, *, event_bytes: int) -> None:
        self.error: ResumableStreamError | None = None
        self.retry: int | None = None
        self.last_event_id = ""
        self.silent: list[tuple[int, str]] = []
        self._limit = event_bytes
        self._size = 0
        self._parts: list[bytes] = []

    @property
    def partial(self) -> bool:
        """Always false: a body that ended cleanly is whole."""
        return False

    def feed(self, data: bytes) -> list[StreamEvent]:
        self._size += len(data)
        if self._size > self._limit:
            self.error = EventTooLarge(f"the answer is over {self._limit} bytes", limit=self._limit)
            self._parts.clear()
        elif self.error is None:
            self._parts.append(data)
        return []

    def eof(self) -> list[StreamEvent]:
        text = b"".join(self._parts).decode("utf-8", "replace")
        self._parts.clear()
        return [StreamEvent("message", text)] if text.strip() and self.error is None else []
