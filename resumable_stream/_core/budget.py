"""
The retry budget (rules 2 and 3): how long to wait before the next request, and when to give up.

Only a new event is progress. The first reconnect after progress is prompt and free; after that the caller's policy decides.
What the server asks for (`retry:`, `Retry-After`) is the minimum of every wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

from .._errors import RetriesExhausted
from .plan import Leave
from .settings import RetryState, Settings

__all__ = ["Budget", "retry_after"]

# Seconds. Enough to spread out a fleet that lost one server, too short for a reader to notice.
PROMPT: Final = 0.25


class Budget:
    """
    Attributes:
        attempts: Failed attempts since the last new event.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.attempts = 0
        self._free = False
        self._failing_since: float | None = None
        self._slept = 0.0
        self._retry = 0.0
        self._retry_after = 0.0
        self._restarts = 0

    @property
    def next_attempt(self) -> int:
        """Number of the next attempt, from 1; the prompt reconnect after progress has number 0."""
        return self.attempts + 1

    def progress(self) -> None:
        """A new event was delivered."""
        self.attempts = 0
        self._free = False
        self._failing_since = None
        self._slept = 0.0

    def server_retry(self, milliseconds: int) -> None:
        """The stream announced a reconnection time; it holds for the rest of the stream."""
        self._retry = min(milliseconds / 1000, self._settings.max_server_wait)

    def server_retry_after(self, seconds: float | None) -> None:
        """A response asked for a wait; it holds for the next one."""
        self._retry_after = seconds or 0.0

    def slept(self, seconds: float) -> None:
        self._slept += seconds

    def wait(self, leave: Leave, *, free: bool = False) -> float:
        """
        Seconds before a request that follows no failed attempt.

        Args:
            leave: How the last connection was left. Only after a loss is there a wait that the server did not ask for.
            free: The request follows progress, so a failure is not counted. Otherwise the count stays as it is.
        """
        self._free = self._free or free
        if leave is Leave.INSIDE:
            return 0.0
        return self._floor(0.0 if leave in (Leave.ONWARD, Leave.QUESTION) else PROMPT * self._settings.jitter())

    def failed(self, now: float, error: BaseException | None) -> float | None:
        """A request brought nothing new. Returns the seconds to wait before the next, or `None` to give up."""
        if self._failing_since is None:
            self._failing_since = now
        if self._free:
            self._free = False
        else:
            self.attempts += 1
        state = RetryState(attempt=self.attempts, elapsed=now - self._failing_since, slept=self._slept, error=error)
        delay = self._settings.delay(state)
        return None if delay is None else self._floor(delay)

    def exhausted(self, reason: str, error: BaseException | None) -> RetriesExhausted:
        """The error after too many failed attempts. The latest failed for `reason`."""
        seen = f"{type(error).__name__}: {error}" if error is not None else reason
        text = f"gave up after {self.attempts} attempt{'s' * (self.attempts != 1)} without a new event; the last one: {seen}"
        exhausted = RetriesExhausted(text, attempts=self.attempts, last_error=error if error is not None else reason)
        exhausted.__cause__ = error
        return exhausted

    def restart(self, error: BaseException | None = None) -> float | None:
        """
        The stream starts over. Returns the seconds to wait, or `None` to give up.

        Each restart is billed again, so restarts count as attempts that progress does not reset.
        """
        self._restarts += 1
        state = RetryState(attempt=self._restarts, elapsed=0.0, slept=0.0, error=error)
        return None if self._settings.delay(state) is None else self.wait(Leave.LOST, free=True)

    def too_many(self, what: str, error: BaseException | None = None) -> RetriesExhausted:
        """The error after too many restarts. `what`: what they are called."""
        text = f"gave up after {self._restarts} {what}"
        return RetriesExhausted(text, attempts=self._restarts, last_error=error or text)

    def _floor(self, seconds: float) -> float:
        seconds = max(seconds, self._retry, self._retry_after)
        self._retry_after = 0.0
        return seconds


def retry_after(headers: Mapping[str, str], *, now: float, ceiling: float = 60.0) -> float | None:
    """
    Read how long the server asked us to wait.

    Both forms of the header are understood: delta seconds and HTTP date.

    Args:
        headers: Response headers, names in lower case.
        now: Unix time in seconds, used for the date form.
        ceiling: Longest wait honoured, in seconds. 60 keeps an interactive caller alive; the policy may raise it.

    Returns:
        Seconds to wait, in ``[0, ceiling]``; `None` when absent or malformed (a bad header never ends a stream).

    Source: RFC 9110 section 10.2.3.
    """
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:10]), ceiling)
    try:
        date = parsedate_to_datetime(value)
        # "-0000" also means UTC, from a server that does not state its time zone (RFC 5322 section 3.3).
        then = (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(then - now, 0.0), ceiling)
