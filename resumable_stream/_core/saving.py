"""
When to save, and what: saves are coalesced, and never cover less than the caller has taken.

A save is due at an event once the interval has passed, before a read that will wait, before a sleep, and on leaving.

A live stream waits before almost every read, which alone would mean a save for every token. So there are at least 0.1 s
between two saves, whatever the chunks are, unless the stream is left or sleeps. A process that is killed loses what it
took within 0.1 s of the last save, and in a burst what it took since then, at most one interval's worth.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from math import inf
from typing import Final, TypeAlias

from .._events import Item
from .position import NOWHERE, Place
from .settings import Settings

__all__ = ["Blocks", "Saving"]

# Seconds between two saves of a live stream. 0.1: at 0.4 ms per save, that is less than half a percent of the time.
FLOOR: Final = 0.1
# Seconds before checking again whether a read will wait, since the check is a system call and data is flowing.
PATIENCE: Final = 0.01

Blocks: TypeAlias = Callable[[], bool] | None
"""Returns whether the next read will have to wait; called only if it matters. `None` if no read comes next."""


class Saving:
    """
    What is already in the store, and what waits for the next save.

    Attributes:
        earliest: Before this moment a save is due only on leaving or before a sleep, so a driver need not ask.
    """

    def __init__(self, settings: Settings) -> None:
        self._on = settings.saving
        self._interval = settings.save_interval
        self._floor = min(FLOOR, self._interval)
        # The first save is not held back, since there is no earlier one.
        self.earliest = -inf if self._on else inf
        self._most = settings.limits.window
        self.keeps_events = settings.saving and settings.keep_events
        self._events: deque[Item] = deque()
        self._place = Place._make(NOWHERE)
        self._reset: int | None = None
        self._at = 0.0
        self._writing: tuple[Place, int | None, int] | None = None

    def open(self, now: float) -> None:
        """The first interval begins."""
        self._at = now

    def restored(self, place: Place, reset: int | None) -> None:
        """The stream continues from what the store holds."""
        self._place = place
        self._reset = reset

    def delivered(self, items: Iterable[Item]) -> None:
        """Add events to the next save, if the store keeps events."""
        if self.keeps_events:
            self._events.extend(items)
            if len(self._events) >= self._most:
                self.earliest = -inf

    def due(self, place: Place, reset: int | None, now: float, *, force: bool, final: bool, blocks: Blocks) -> bool:
        """
        Args:
            place: What the caller has taken.
            reset: The offset from which the next event will void what was delivered.
            force: The caller is leaving, or a sleep is about to begin.
            final: The stream has ended: its outcome is saved even without a new event.
        """
        known = place == self._place and reset == self._reset
        if not self._on or (known and not (final and force)):
            return False
        if force or now - self._at >= self._interval or len(self._events) >= self._most:
            return True
        if blocks is None or now < self.earliest:
            return False
        if blocks():
            return True
        self.earliest = min(now + PATIENCE, self._at + self._interval)
        return False

    def begin(self, place: Place, reset: int | None) -> Sequence[Item]:
        """A save of `place` begins. Returns the events to save with it."""
        events = self._events
        count = len(events)
        while count and events[count - 1].offset != place.offset - 1:
            count -= 1
        self._writing = (place, reset, count)
        return list(islice(events, count))

    def done(self, now: float) -> None:
        """The save was written. Until then the same events are saved again."""
        assert self._writing is not None
        (self._place, self._reset, count), self._writing = self._writing, None
        self._at = now
        self.earliest = now + self._floor
        if count == len(self._events):
            self._events.clear()
        for _ in range(min(count, len(self._events))):
            self._events.popleft()
        if len(self._events) >= self._most:
            self.earliest = -inf
