"""
Events that a producer has sent and the log has not acknowledged: pure, one object per generation.

    put, put, put → take() → Span → the log → acknowledged() | behind() | lost
                       ▲                             │
                       └──────── the same span ──────┘  until it is acknowledged

A span that may be in the log is never changed: if it were sent again with more events, the log could not recognise it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from ._values import Span

__all__ = ["Outbox"]

SPAN_BYTES: Final = 256 << 10
"""Most bytes of a span, unless one event is larger. 256 KiB: the size of one send to a reader."""


class Outbox:
    """
    Events on their way into the log.

    Args:
        n: Number of the last event in the log.
        b: Byte position after it.
        flush: Seconds between two spans. The first event after a silence does not wait.
        flush_bytes: Waiting bytes that are sent without waiting for `flush`.

    Attributes:
        n: Number of the last event that was put in.
        b: Byte position after it.
        acked: Number of the last event that the log has acknowledged.
        size: Bytes that the log has not acknowledged.
    """

    __slots__ = ("_again", "_bytes", "_flying", "_last", "_waiting", "acked", "b", "flush", "flush_bytes", "n", "size", "urgent")

    def __init__(self, n: int = 0, b: int = 0, *, flush: float = 0.025, flush_bytes: int = 16384) -> None:
        self.n = self.acked = n
        self.b = b
        self.flush = flush
        self.flush_bytes = flush_bytes
        self.size = 0
        self.urgent = False
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._flying: Span | None = None
        self._again: deque[Span] = deque()
        self._last = float("-inf")

    def put(self, event: bytes) -> int:
        """Add an event, and return its number."""
        self._waiting.append(event)
        self._bytes += len(event)
        self.size += len(event)
        self.n += 1
        self.b += len(event)
        return self.n

    @property
    def empty(self) -> bool:
        """Everything is in the log."""
        return self._flying is None and not self._waiting and not self._again

    @property
    def is_resending(self) -> bool:
        """Events that the log had acknowledged, and then lost, are not yet back in it."""
        return bool(self._again) or (self._flying is not None and self._flying.n <= self.acked)

    def due(self) -> float | None:
        """When to call `take()`, on the same clock; `-inf`: now. `None`: nothing waits."""
        if self.empty:
            return None
        if self.urgent or self._flying is not None or self._again or self._bytes >= self.flush_bytes:
            return float("-inf")
        return self._last + self.flush

    def take(self, now: float, *, until: int | None = None) -> Span | None:
        """
        The span to append next: the same one until it is acknowledged.

        Args:
            now: Seconds on any monotonic clock.
            until: A new span that contains this event ends with it.
        """
        self._last = now
        if self._flying is not None:
            return self._flying
        if self._again:
            self._flying = self._again.popleft()
            return self._flying
        if not self._waiting:
            return None
        first = self.n - len(self._waiting) + 1
        most = len(self._waiting) if until is None or until < first else until - first + 1
        events = [self._waiting.popleft()]
        size = len(events[0])
        while self._waiting and len(events) < most and size + len(self._waiting[0]) <= SPAN_BYTES:
            events.append(self._waiting.popleft())
            size += len(events[-1])
        self._bytes -= size
        waiting = len(self._waiting)
        self._flying = Span(n=self.n - waiting, b=self.b - self._bytes, lengths=tuple(map(len, events)), data=b"".join(events))
        return self._flying

    def acknowledged(self) -> Span:
        """The span taken last is in the log. Returns it."""
        span = self._flying
        assert span is not None, "nothing was taken"
        self._flying = None
        if span.n > self.acked:
            self.acked = span.n
            self.size -= len(span.data)
        if self.empty:
            self.urgent = False
        return span

    def resend(self, spans: Sequence[Span]) -> None:
        """The log has lost its end: append these acknowledged spans first, then the span taken last."""
        if self._flying is not None:
            self._again.appendleft(self._flying)
            self._flying = None
        self._again.extendleft(reversed(spans))
