"""
Recognise repeats by identity: the newest delivered events, by their own id.

The memory is bounded by the window and in bytes; beyond those bytes, digests replace the events.
An id that the server used for two events identifies neither.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

from .._checkpoint import MAX_RECENT_IDS, fingerprint

__all__ = ["KEPT_BYTES", "LONGEST_ID", "Memory", "Seen", "shortened"]

# Bytes of events kept to recognise repeats. 4 MiB: 4096 events of 1 KiB. `condense()` is called once per as many bytes.
KEPT_BYTES: Final = 4 * 1024 * 1024
# Longer ids are remembered by their digest. 256: UUIDs, ULIDs and providers' ids have fewer than 100 characters.
LONGEST_ID: Final = 256
_AMBIGUOUS: Final = None


class Seen(NamedTuple):
    """What remains of an event whose text is no longer kept. `offset` is -1 for an event of another process."""

    offset: int
    own_id: str | None
    fingerprint: str
    sequence: int | None


class _Unread(NamedTuple):
    read: Callable[[], Iterable[Any]]
    size: int
    stop: int


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
        self.items: deque[Any] = deque(maxlen=window)
        self._index: dict[str, Any] | None = None
        self._restored: tuple[tuple[str, str], ...] = ()
        # Events that were never read, and how to read them. They may lie anywhere between events that were read.
        self._unread: list[_Unread] = []
        # Ids of blocks without data: not events, but their replay must be recognised too. As many as a checkpoint keeps.
        self._silent: tuple[str, ...] = ()

    def restore(self, recent_ids: Iterable[tuple[str, str]]) -> None:
        """Enter the ids that a checkpoint holds."""
        self._restored = tuple(recent_ids)

    def remember(self, item: Any) -> None:
        """Enter an event in the index too: the next event of the same chunk may repeat it."""
        self.items.append(item)
        if self._index is not None:
            self._enter(self._index, item)

    def remember_unread(self, read: Callable[[], Iterable[Any]], *, size: int, stop: int) -> None:
        """
        Enter events that are read only if a repeat may come.

        Args:
            read: Decodes them, with their offsets.
            size: Their size in bytes.
            stop: Offset after the last.
        """
        # At most `window` events are kept, so older runs are forgotten once that many events have come since.
        self._unread = [run for run in self._unread if run.stop > stop - self._window]
        self._unread.append(_Unread(read, size, stop))
        self._index = None

    def _read(self) -> None:
        if self._unread:
            unread, self._unread = self._unread, []
            items = [*self.items, *(item for run in unread for item in run.read())]
            items.sort(key=lambda item: item.offset)
            self.items.clear()
            self.items.extend(items)

    def kept(self) -> tuple[str, ...]:
        """State that `put_back()` cannot restore by itself."""
        return self._silent

    def put_back(self, kept: tuple[str, ...], offset: int) -> None:
        """
        Undo a batch.

        Args:
            offset: Offset of its first event.
        """
        while self.items and self.items[-1].offset >= offset:
            self.items.pop()
        self._silent = kept
        self._index = None

    def starting_at(self, offset: int) -> Iterator[Any]:
        """The events delivered from `offset` on, as far as they are remembered without a gap."""
        self._read()
        items = self.items
        index = len(items) - (items[-1].offset - offset + 1) if items else 0
        while 0 <= index < len(items) and items[index].offset == offset:
            yield items[index]
            index += 1
            offset += 1

    def oldest_first(self) -> Iterator[Any]:
        self._read()
        return iter(self.items)

    def ids(self) -> Iterator[str]:
        """Ids of the events remembered, and those restored from a checkpoint."""
        self._read()
        yield from (own_id for own_id, _ in self._restored)
        yield from (item.own_id for item in self.items if item.own_id)

    def name_of(self, item: Any) -> str:
        """The id of an event as it is remembered."""
        return shortened(item.own_id)

    def is_ambiguous(self, own_id: str) -> bool:
        """Whether two events had this id."""
        index = self._known()
        key = shortened(own_id)
        return key in index and index[key] is _AMBIGUOUS

    def steady(self) -> None:
        """No repeat can come for now: events are appended to `items` directly, and the index is rebuilt when one can."""
        self._index = None

    def remember_silent(self, own_id: str) -> None:
        """Enter the id of a block without data."""
        self._silent = (*self._silent, shortened(own_id))[-MAX_RECENT_IDS:]

    def knows(self, own_id: str) -> bool:
        return shortened(own_id) in self._silent or shortened(own_id) in self._known()

    def find(self, own_id: str) -> Any:
        """The event (or `Seen`) with that id; `None` if it is unknown or ambiguous."""
        return self._known().get(shortened(own_id))

    def fingerprint(self, item: Any) -> str:
        return item.fingerprint if isinstance(item, Seen) else self._digest(item)

    def newest_first(self) -> Iterator[Any]:
        self._read()
        yield from reversed(self.items)

    def recent_ids(self, before: int) -> tuple[tuple[str, str], ...]:
        """`(id, fingerprint)` of the newest events with an offset below `before` that have an id, oldest first, at most 64."""
        found: list[tuple[str, str]] = []
        # Unread events are older: the newest of each run have been read.
        for item in reversed(self.items):
            if item.offset < before and item.own_id and len(item.own_id) <= LONGEST_ID and not item.own_id.startswith("\0"):
                found.append((item.own_id, self.fingerprint(item)))
                if len(found) == MAX_RECENT_IDS:
                    break
        found.reverse()
        return (self._restored + tuple(found))[-MAX_RECENT_IDS:]

    def condense(self) -> None:
        """Called once per `KEPT_BYTES`: if the window really holds that much, keep digests in place of texts."""
        items = self.items
        size = sum(len(item.data) + len(item.own_id or "") for item in items if not isinstance(item, Seen))
        if size + sum(run.size for run in self._unread) <= KEPT_BYTES // 2:
            return
        self._read()
        digests = [
            item
            if isinstance(item, Seen)
            else Seen(item.offset, shortened(item.own_id) if item.own_id else None, self.fingerprint(item), item.sequence)
            for item in items
        ]
        items.clear()
        items.extend(digests)
        self._index = None

    def _known(self) -> dict[str, Any]:
        """The index by id, built when the first repeat may come and kept up to date while one may."""
        self._read()
        index = self._index
        if index is None or len(index) > 2 * self._window + len(self._restored):
            index = self._index = {}
            for own_id, fingerprint in self._restored:
                self._enter(index, Seen(-1, own_id, fingerprint, None))
            for item in self.items:
                self._enter(index, item)
        return index

    def _enter(self, index: dict[str, Any], item: Any) -> None:
        key = shortened(item.own_id) if item.own_id else str(item.sequence) if item.sequence is not None else None
        if key is not None:
            index[key] = item if self._unique or key not in index else _AMBIGUOUS


def shortened(own_id: str) -> str:
    """An id in the form that is remembered. Ids cannot contain NUL, so a digest is never taken for an id."""
    return own_id if len(own_id) <= LONGEST_ID or own_id[0] == "\0" else f"\0{fingerprint('id', own_id)}"
