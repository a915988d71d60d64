"""How long to wait between two attempts while something is unavailable."""

from __future__ import annotations

import asyncio
import random
from typing import Final

__all__ = ["FIRST_RETRY", "LAST_RETRY", "Backoff"]

FIRST_RETRY: Final = 0.1
LAST_RETRY: Final = 2.0
"""Seconds before the second attempt, and at most between later ones: a failover takes seconds, and a fleet must not hammer it."""


class Backoff:
    """
    Waits that double, from `first` to `last` seconds, each shortened at random by up to a half.

    The randomness keeps clients that failed together from returning together.

    Args:
        first: Length of the first wait. `None`: `FIRST_RETRY`.
        last: Length of the longest. `None`: `LAST_RETRY`.
    """

    __slots__ = ("_first", "_last", "_next")

    def __init__(self, first: float | None = None, last: float | None = None) -> None:
        self._first, self._last = first, last
        self._next: float | None = None

    async def wait(self) -> None:
        """Wait before the next attempt."""
        first = FIRST_RETRY if self._first is None else self._first
        last = LAST_RETRY if self._last is None else self._last
        delay = min(first if self._next is None else self._next, last)
        self._next = min(2 * delay, last)
        await asyncio.sleep(delay * random.uniform(0.5, 1.0))

    def reset(self) -> None:
        """The attempt succeeded: the next wait is short again."""
        self._next = None
