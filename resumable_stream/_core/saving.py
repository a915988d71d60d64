"""
When to save, and what: coalesced, and never less than the caller has taken.

A save is due when the interval has passed at an event, before a read that will wait, before a sleep, and on leaving.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from .._events import Item
from .ledger import NOWHERE, Place
from .settings import Settings

__all__ = ["Saving"]


class Saving:
    """What is in the store already, and what waits for the next save."""

    def __init__(self, settings: Settings) -> None:
        self._on = settings.saving
        self._interval = settings.save_interval
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
        if self.keeps_events:
            self._events.extend(items)

    def due(
        self, place: Place, reset: int | None, now: float, *, force: bool, final: bool, blocks: Callable[[], bool] | None
    ) -> bool:
        """
        Args:
            place: What the caller has taken.
            reset: What the next event will say is void.
            force: Leaving, or about to sleep.
            final: The stream has ended: its outcome is worth a save even without a new event.
            blocks: Tells whether the read about to begin will have to wait; asked only when it matters.
        """
        known = place == self._place and reset == self._reset
        if not self._on or (known and not (final and force)):
            return False
        if force or now - self._at >= self._interval or len(self._events) >= self._most:
            return True
        return blocks is not None and blocks()

    def begin(self, place: Place, reset: int | None) -> Sequence[Item]:
        """A save of `place` begins. Returns the events that go with it."""
        events = self._events
        count = len(events)
        while count and events[count - 1].offset != place.offset - 1:
            count -= 1
        self._writing = (place, reset, count)
        return [events[index] for index in range(count)]

    def done(self, now: float) -> None:
        """It was written. Until then the same events are saved again."""
        assert self._writing is not None
        (self._place, self._reset, count), self._writing = self._writing, None
        self._at = now
        for _ in range(count):
            self._events.popleft()
