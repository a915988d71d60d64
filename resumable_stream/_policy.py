"""When to retry. The waits and stops are tenacity's; this module translates between them and the core."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tenacity import Future, RetryCallState, Retrying
from tenacity.stop import stop_never

from ._core.settings import RetryState

__all__ = ["DEFAULT_STATUSES", "RetryPolicy"]

DEFAULT_STATUSES = frozenset({408, 425, 429, 529, *range(500, 600)} - {501, 505, 511})
"""
Statuses worth another attempt: the server is busy or broken, but has not refused.

501 and 505 (the server will never do that) and 511 (a login page of the network) are not among them.
"""

# Full jitter after Amazon's "Exponential Backoff And Jitter" (2015): the spread matters more than the growth.
_BASE, _CEILING = 0.5, 30.0


def _full_jitter(state: RetryCallState) -> float:
    return random.uniform(0.0, min(_CEILING, _BASE * 2.0 ** min(state.attempt_number, 16)))


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """
    How long to keep trying.

    Only a new event resets the count; a connection that opens and delivers nothing is a failed attempt.
    The first reconnect after progress is prompt (within 0.25 s) and is not counted.

    Attributes:
        attempts: Failed attempts without a new event before `RetriesExhausted`. 10: with the default wait 76 s on average and
            at most 152 s, which is longer than a rolling deploy.
        wait: Seconds before an attempt: any tenacity wait, or a callable of its `RetryCallState`.
            `None`: uniform between 0 and min(30, 0.5 * 2**n) for the n-th attempt.
        stop: An additional condition to give up: any tenacity stop, or a callable of its `RetryCallState`.
            `None`: only `attempts` counts.
        max_server_wait: Longest wait in seconds that a server may request with `Retry-After` or `retry:`.
            60: the most that an interactive user can be expected to wait.
        statuses: HTTP statuses that count as a failed attempt; others end the stream. Default: 408, 425, 429 and 5xx
            except 501, 505 and 511. A request that may not be repeated is not repeated just because its status is listed here.
    """

    attempts: int = 10
    wait: Callable[[RetryCallState], float] | None = None
    stop: Callable[[RetryCallState], bool] | None = None
    max_server_wait: float = 60.0
    statuses: frozenset[int] = field(default=DEFAULT_STATUSES)

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1:
            raise ValueError(f"RetryPolicy.attempts must be an integer >= 1, got {self.attempts!r}")
        if not self.max_server_wait >= 0:
            raise ValueError(f"RetryPolicy.max_server_wait must be seconds >= 0, got {self.max_server_wait!r}")
        for name in ("wait", "stop"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"RetryPolicy.{name} must be a tenacity {name} or a callable of a RetryCallState, got {value!r}")
        object.__setattr__(self, "statuses", frozenset(self.statuses))

    def delay(self, state: RetryState, *, now: float) -> float | None:
        """
        Seconds until the next attempt, or `None` to give up.

        Args:
            state: What happened since the last new event.
            now: Monotonic time in seconds.
        """
        if state.attempt >= self.attempts:
            return None
        call = _call_state(state, now)
        call.upcoming_sleep = max(0.0, float((self.wait or _full_jitter)(call)))
        # Attempt 0: only the prompt reconnect failed, which `stop` does not count as an attempt.
        if state.attempt and self.stop is not None and self.stop(call):
            return None
        return call.upcoming_sleep


def _call_state(state: RetryState, now: float) -> RetryCallState:
    """Build a complete state: tenacity's own conditions read its outcome and its times."""
    call: Any = RetryCallState(retry_object=_RETRYING, fn=None, args=(), kwargs={})
    call.attempt_number = max(1, state.attempt)
    call.start_time = now - state.elapsed
    call.idle_for = state.slept
    outcome = Future(call.attempt_number)
    outcome.set_exception(state.error or ConnectionError("the connection brought nothing new"))
    call.outcome = outcome
    call.outcome_timestamp = now
    return call  # type: ignore[no-any-return]


_RETRYING = Retrying(stop=stop_never)
