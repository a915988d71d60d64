"""The history of a value that events change, for every position that can still be committed."""

from __future__ import annotations

from bisect import bisect_left
from operator import itemgetter
from typing import Generic, TypeVar

__all__ = ["Timeline"]

T = TypeVar("T")


class Timeline(Generic[T]):
    """
    The changes of one value. Its owner keeps the value itself.

    Args:
        most: Maximum number of changes kept, besides the one that the oldest position needs.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._changes: list[tuple[int, T]] = []

    def __len__(self) -> int:
        return len(self._changes)

    def changed(self, offset: int, before: T) -> None:
        """The event at `offset` changed the value; `before` is the old value."""
        self._changes.append((offset, before))

    def at(self, offset: int, now: T) -> T:
        """The value after `offset` events. `now`: its current value."""
        # The first later change holds the value from before it.
        index = bisect_left(self._changes, offset, key=itemgetter(0))
        return self._changes[index][1] if index < len(self._changes) else now

    def forget(self, oldest: int) -> None:
        """No position before `oldest` will be requested."""
        del self._changes[: bisect_left(self._changes, oldest, key=itemgetter(0))]
        # A late manual commit: the oldest position needs the first change, and those in between are dropped.
        del self._changes[1 : -self._most]

    def clear(self) -> None:
        self._changes.clear()
