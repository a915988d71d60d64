"""A whole document instead of a stream: some servers answer with JSON when there is nothing to stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .._errors import EventTooLarge, ResumableStreamError
from .._events import StreamEvent

__all__ = ["DocumentDecoder"]


class DocumentDecoder:
    """
    Collect a body, and turn it into events at its end.

    Args:
        event_bytes: Limit for the body, in bytes.
        read: Makes the events; returns `None` if the body is incomplete.

    Attributes:
        error: `EventTooLarge` once the body exceeds the limit, or the error that `read` raised.
        retry, last_event_id, silent: As in an `SSEDecoder` that has seen none of them.
        partial: The body ended cleanly, but is incomplete.
    """

    def __init__(self, *, event_bytes: int, read: Callable[[bytes], Sequence[StreamEvent] | None]) -> None:
        self.error: ResumableStreamError | None = None
        self.retry: int | None = None
        self.last_event_id = ""
        self.silent: list[tuple[int, str]] = []
        self.partial = False
        self._read = read
        self._limit = event_bytes
        self._size = 0
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> list[StreamEvent]:
        self._size += len(data)
        if self._size > self._limit:
            self.error = EventTooLarge(f"the answer is over {self._limit} bytes", limit=self._limit)
            self._parts.clear()
        elif self.error is None:
            self._parts.append(data)
        return []

    def eof(self) -> Sequence[StreamEvent]:
        if self.error is not None:
            return ()
        try:
            events = self._read(b"".join(self._parts))
        except ResumableStreamError as error:
            self.error = error
            events = ()
        self._parts.clear()
        self.partial = events is None
        return events or ()
