"""
The clocks of a stream (rule 4): which one runs out next, and which one has run out.

Except for the deadline, they count only time spent waiting for the network: a read starts them, and its end stops them.
"""

from __future__ import annotations

from typing import Final, Literal

from .._errors import DeadlineExceeded
from .._settings import Timeouts

__all__ = ["Clock", "Clocks"]

Clock = Literal["first_event", "idle", "stall", "deadline"]

# Seconds. Usage and `[DONE]` follow the finish reason at once, but some servers send heartbeats for ever after it.
AFTER_THE_END: Final = 10.0


class Clocks:
    """
    Args:
        timeouts: What the caller set.
        longest_read: Maximum seconds for one read; `None`: as long as the clocks allow.
    """

    def __init__(self, timeouts: Timeouts, longest_read: float | None = None) -> None:
        self._timeouts = timeouts
        self._longest_read = longest_read
        self._opened: float | None = None
        self.started_at = 0.0
        self._waited = 0.0
        self._next: Clock = "idle"
        self._idle: float | None = None
        self.nearest: float | None = None
        self._stall: float | None = None
        self.waiting_for_first = True
        """No event has been delivered yet."""
        self.steady = False
        """Events come with every read: `nearest` is how long the next one may take."""

    # --- the whole stream

    def restore(self, *, begun: bool) -> None:
        """The stream continues from a checkpoint. `begun`: events were delivered before."""
        self.waiting_for_first = not begun

    def open(self, now: float) -> None:
        self._opened = now

    def left(self, now: float) -> float | None:
        """Seconds until the deadline; `None` without one."""
        deadline = self._timeouts.deadline
        if deadline is None or self._opened is None:
            return None
        return self._opened + deadline - now

    def expired(self, now: float) -> bool:
        left = self.left(now)
        return left is not None and left <= 0

    def deadline_error(self) -> DeadlineExceeded:
        """The error for a stream that is not over by its deadline."""
        return DeadlineExceeded(f"the stream did not end within its deadline of {self._timeouts.deadline} seconds")

    def limit(self, name: str) -> float | None:
        """The limit of a clock; `None` if the name is not a clock's."""
        match name:
            case "first_event":
                return self._timeouts.first_event
            case "idle":
                return self._idle if self._idle is not None else self._shorter(self._timeouts.idle_or(True))
            case "stall":
                return self._stall
            case "deadline":
                return self._timeouts.deadline
        return None

    # --- a request

    def send(self, now: float, *, again: bool, resumable: bool) -> float | None:
        """A request is sent. Returns how long its head may take: for the first request, as long as the first event."""
        self.started_at = now
        return self._at_most(self._shorter(self._timeouts.idle_or(resumable) if again else self._timeouts.first_event), now)

    def side(self, now: float) -> float | None:
        """How long the whole answer to a side request (status, snapshot) may take."""
        return self._at_most(self._shorter(self._timeouts.idle_or(True)), now)

    def error_body(self, now: float) -> float | None:
        """How long the body of an error may take: before the first event, the rest of the time allowed for that."""
        limit, first = self.side(now), self._timeouts.first_event
        if not self.waiting_for_first or first is None:
            return limit
        left = max(first - (now - self.started_at), 0.001)
        return left if limit is None else min(limit, left)

    def _shorter(self, seconds: float | None) -> float | None:
        return min((each for each in (seconds, self._longest_read) if each is not None), default=None)

    def _at_most(self, seconds: float | None, now: float) -> float | None:
        left = self.left(now)
        if left is None:
            return seconds
        return left if seconds is None else min(seconds, left)

    def begin_body(self, now: float, *, endless: bool) -> None:
        if endless:
            self.waiting_for_first = False
        # The clock for the first event has been running since the request was sent.
        self._waited = now - self.started_at if self.waiting_for_first else 0.0
        self.steady = False

    # --- reads

    def set(self, *, resumable: bool, endless: bool, settled: bool = False) -> None:
        """
        Resolve AUTO.

        Args:
            settled: The outcome is known: anything still to come follows at once, or never.
        """
        idle, stall = self._timeouts.idle_or(resumable), self._timeouts.stall_or(endless, resumable=resumable)
        if settled:
            idle, stall = (min(AFTER_THE_END, AFTER_THE_END if each is None else each) for each in (idle, stall))
            self.steady = False
        self._idle = self._shorter(idle)
        self._stall = stall

    def read(self, now: float) -> float | None:
        """A read begins. Returns how long it may take: `None` without limit, 0 if a clock has run out."""
        self.started_at = now
        if self.steady:
            return self.nearest
        limits: list[tuple[float, Clock]] = []
        if self.waiting_for_first:
            if self._timeouts.first_event is not None:
                limits.append((self._timeouts.first_event - self._waited, "first_event"))
            if self._longest_read is not None:
                limits.append((self._longest_read, "idle"))
        else:
            if self._idle is not None:
                limits.append((self._idle, "idle"))
            if self._stall is not None:
                limits.append((self._stall - self._waited, "stall"))
        if (left := self.left(now)) is not None:
            limits.append((left, "deadline"))
        if not limits:
            return None
        seconds, self._next = min(limits)
        return max(seconds, 0.0)

    def bytes_only(self, now: float) -> Clock | None:
        """A read brought bytes but no event, which resets only the byte clock. Returns another clock that has run out, if any."""
        self._waited += now - self.started_at
        self.steady = False
        name: Clock = "first_event" if self.waiting_for_first else "stall"
        limit = self._timeouts.first_event if self.waiting_for_first else self._stall
        return name if limit is not None and self._waited >= limit else None

    def event(self, *, settled: bool) -> None:
        """
        Events arrived.

        Args:
            settled: It is known for good whether the stream can be resumed, so the clocks will not change.
        """
        self._waited = 0.0
        self.waiting_for_first = False
        self.steady = settled and self._timeouts.deadline is None
        stall_first = self._stall is not None and (self._idle is None or self._stall < self._idle)
        self.nearest, self._next = (self._stall, "stall") if stall_first else (self._idle, "idle")

    def ran_out(self) -> Clock:
        """The clock that ended a read which took as long as it may."""
        return self._next
