"""A value that events change, as it was at every place that can still be committed."""

from __future__ import annotations

from bisect import bisect_left
from operator import itemgetter
from typing import Generic, TypeVar

__all__ = ["Timeline"]

T = TypeVar("T")


class Timeline(Generic[T]):
    """
    The changes of one value. The value itself is kept by its owner.

    Args:
        most: Changes that are kept, besides the one that the oldest place needs.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._changes: list[tuple[int, T]] = []

    def __len__(self) -> int:
        return len(self._changes)

    def changed(self, offset: int, before: T) -> None:
        """The event at `offset` changed the value; `before` is what it was."""
        self._changes.append((offset, before))

    def at(self, offset: int, now: T) -> T:
        """The value when `offset` events were taken. `now`: what it is after all of them."""
        # The first event after that place that changed anything has kept it.
        index = bisect_left(self._changes, offset, key=itemgetter(0))
        return self._changes[index][1] if index < len(self._changes) else now

    def forget(self, oldest: int) -> None:
        """No place before `oldest` will be asked for."""
        del self._changes[: bisect_left(self._changes, oldest, key=itemgetter(0))]
        # Committed by hand, and late: the oldest place needs the first change, and what lies between is given up.
        del self._changes[1 : -self._most]

    def clear(self) -> None:
        self._changes.clear()
