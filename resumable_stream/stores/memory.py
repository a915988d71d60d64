"""A store within one process, for tests, and for streams that must outlive their reader but not the program."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .._checkpoint import Checkpoint
from .._errors import StoreError
from .base import Kept, check_interval, check_key, checkpoint_to_json, item_from_json, item_to_json, superseded

__all__ = ["MemoryStore"]


@dataclass(slots=True)
class _Record:
    fence: int
    # JSON text, not objects: later changes to the caller's events must not affect what was saved.
    checkpoint: str | None = None
    events: list[str] = field(default_factory=list)


class MemoryStore:
    """
    Keep places in memory, for as long as the store object lives.

    Nothing is evicted, because losing a place can mean paying for the answer twice: `delete()` a key when it is done.

    Args:
        keep_events: Keep the events too, for `replay()`.
        save_interval: Seconds between two saves while events flow; see `Store`. 1.0, as for all stores.
        max_bytes: Bound on everything kept, counted in characters of JSON; a save beyond it raises `StoreError`.
            256 MiB: more than a thousand long answers. `None` removes the bound.
    """

    def __init__(
        self, *, keep_events: bool = False, save_interval: float = 1.0, max_bytes: int | None = 256 * 1024 * 1024
    ) -> None:
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes must be >= 1 or None, got {max_bytes!r}")
        self.keep_events = keep_events
        self.save_interval = check_interval(save_interval)
        self.max_bytes = max_bytes
        self._records: dict[str, _Record] = {}
        self._size = 0
        # One counter for all keys, so that a key that was deleted and opened again never gets an old number.
        self._fences = itertools.count(1)
        self._lock = threading.Lock()

    def open(self, key: str) -> tuple[Checkpoint | None, int]:
        """See `Store.open()`."""
        check_key(key)
        with self._lock:
            record = self._records.setdefault(key, _Record(0))
            record.fence = next(self._fences)
            saved = record.checkpoint
            fence = record.fence
        return (None if saved is None else Checkpoint.from_json(saved)), fence

    def load(self, key: str) -> Checkpoint | None:
        """Read the place without taking over the key."""
        check_key(key)
        with self._lock:
            record = self._records.get(key)
            saved = None if record is None else record.checkpoint
        return None if saved is None else Checkpoint.from_json(saved)

    def save(self, key: str, checkpoint: Checkpoint, events: Iterable[Kept] = (), *, fence: int) -> None:
        """See `Store.save()`."""
        check_key(key)
        place = checkpoint_to_json(key, checkpoint)
        lines = [item_to_json(item) for item in events] if self.keep_events else []
        added = len(place) + sum(map(len, lines))
        with self._lock:
            record = self._records.get(key)
            if record is None or record.fence != fence:
                raise superseded(key, fence, None if record is None else record.fence)
            size = self._size + added - len(record.checkpoint or "")
            if self.max_bytes is not None and size > self.max_bytes:
                raise StoreError(
                    f"the store is full: {size} bytes are over max_bytes={self.max_bytes}; delete() keys that are done"
                )
            self._size = size
            record.checkpoint = place
            record.events += lines

    def replay(self, key: str) -> Iterator[Kept]:
        """See `Store.replay()`."""
        check_key(key)
        with self._lock:
            record = self._records.get(key)
            events = record.events if record is not None and self.keep_events else []
            count = len(events)
        # The list only ever grows, so its first `count` items are a snapshot without a copy.
        return map(item_from_json, itertools.islice(events, count))

    def delete(self, key: str) -> None:
        """See `Store.delete()`."""
        check_key(key)
        with self._lock:
            record = self._records.pop(key, None)
            if record is not None:
                self._size -= len(record.checkpoint or "") + sum(map(len, record.events))
