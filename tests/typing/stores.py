"""How users write stores into their code. Type-checked, never run."""

from collections.abc import Iterable, Iterator

import redis

from resumable_stream._checkpoint import Checkpoint
from resumable_stream.stores import (
    FileStore,
    Kept,
    Listed,
    MemoryStore,
    RedisStore,
    SQLiteStore,
    Store,
    item_from_json,
    item_to_json,
)

memory: Store = MemoryStore()
directory: Store = FileStore("places", keep_events=True, save_interval=0.5, fsync=True)
database: Store = SQLiteStore("places.db", keep_events=True, save_interval=0.5, expires=86400.0, busy_timeout=1.0, durable=True)
far: Store = RedisStore("redis://localhost:6379/0", keep_events=True, expires=None, prefix="app:", timeout=1.0)
mine_too: Store = RedisStore(redis.Redis(), save_interval=0.5)
listed: list[Listed] = list(SQLiteStore("places.db").places())
single: Store = FileStore("answer.place", one_file=True)


class Mine:
    """A store of the user's own needs no base class."""

    keep_events = True
    save_interval = 1.0

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.place: Checkpoint | None = None

    def open(self, key: str) -> tuple[Checkpoint | None, int]:
        return self.place, 1

    def save(self, key: str, checkpoint: Checkpoint, events: Iterable[Kept] = (), *, fence: int) -> None:
        self.lines += [item_to_json(item) for item in events]
        self.place = checkpoint

    def replay(self, key: str) -> Iterator[Kept]:
        return map(item_from_json, self.lines)

    def delete(self, key: str) -> None:
        self.lines, self.place = [], None


mine: Store = Mine()

place, fence = memory.open("k")
if place is not None:
    memory.save("k", place, fence=fence)
data: list[str | bytes] = [item.data for item in memory.replay("k")]
