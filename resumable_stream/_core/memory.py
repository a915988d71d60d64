"""
Knowing a repeat by its identity: the newest events delivered, by their own id.

Bounded twice: by the window, and in bytes; beyond those bytes digests stand in for the events.
An id that the server used for two events identifies neither.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from .._checkpoint import MAX_RECENT_IDS

__all__ = ["Memory", "Seen"]

# Bytes of events kept alive to recognise repeats. 4 MiB: 4096 events of 1 KiB.
KEPT_BYTES: Final = 4 * 1024 * 1024
_AMBIGUOUS: Final = None


class Seen(NamedTuple):
    """What is left of an event whose text is no longer kept. `offset` is -1 for one of another process."""

    offset: int
    own_id: str | None
    fingerprint: str
    sequence: int | None


class Memory:
    """
    Args:
        window: Events remembered.
        fingerprint: The protocol's.
        unique: The protocol promises that no two events share an id.
    """

    def __init__(self, window: int, fingerprint: Callable[[Any], str], *, unique: bool) -> None:
        self._window = window
        self._digest = fingerprint
        self._unique = unique
        self._items: deque[Any] = deque(maxlen=window)
        self._bytes = 0
        self._index: dict[str, Any] | None = None
        self._restored: tuple[tuple[str, str], ...] = ()
        # Ids of blocks without data: not events, but their replay must be known too. As many as a checkpoint keeps.
        self._silent: deque[str] = deque(maxlen=MAX_RECENT_IDS)

    def restore(self, recent_ids: Iterable[tuple[str, str]]) -> None:
        """What a checkpoint remembers."""
        self._restored = tuple(recent_ids)

    def remember(self, items: Sequence[Any], size: int) -> None:
        """Enter a batch that arrived in `size` bytes."""
        if len(items) == 1:
            self._items.append(items[0])
        else:
            self._items.extend(items)
        self._bytes += size
        if self._bytes > KEPT_BYTES:
            self._condense()
        if self._index is not None:
            self._enter(self._index, items)

    def remember_silent(self, own_id: str) -> None:
        """Enter the id of a block without data."""
        self._silent.append(own_id)

    def knows(self, own_id: str) -> bool:
        return own_id in self._silent or own_id in self._known()

    def find(self, own_id: str) -> Any:
        """The event (or `Seen`) of that id; `None` when it is unknown or ambiguous."""
        return self._known().get(own_id)

    def fingerprint(self, item: Any) -> str:
        return item.fingerprint if isinstance(item, Seen) else self._digest(item)

    def newest_first(self) -> Iterator[Any]:
        return reversed(self._items)

    def recent_ids(self, before: int) -> tuple[tuple[str, str], ...]:
        """`(id, fingerprint)` of the newest events with an offset below `before` that have an id, oldest first, at most 64."""
        found: list[tuple[str, str]] = []
        for item in self.newest_first():
            if item.offset < before and item.own_id:
                found.append((item.own_id, self.fingerprint(item)))
                if len(found) == MAX_RECENT_IDS:
                    break
        found.reverse()
        return (self._restored + tuple(found))[-MAX_RECENT_IDS:]

    def _condense(self) -> None:
        """So many bytes came since the last look: where the window really holds them, keep digests in place of texts."""
        items = self._items
        self._bytes = sum(len(item.data) for item in items if not isinstance(item, Seen))
        if self._bytes > KEPT_BYTES // 2:
            digests = [
                item if isinstance(item, Seen) else Seen(item.offset, item.own_id, self.fingerprint(item), item.sequence)
                for item in items
            ]
            items.clear()
            items.extend(digests)
            self._bytes = 0

    def _known(self) -> dict[str, Any]:
        """Built when the first repeat may come, kept up to date while one may."""
        index = self._index
        if index is None or len(index) > 2 * self._window:
            index = self._index = {own_id: Seen(-1, own_id, fingerprint, None) for own_id, fingerprint in self._restored}
            self._enter(index, self._items)
        return index

    def _enter(self, index: dict[str, Any], items: Iterable[Any]) -> None:
        for item in items:
            key = item.own_id or (str(item.sequence) if item.sequence is not None else None)
            if key is not None:
                index[key] = item if self._unique or key not in index else _AMBIGUOUS
