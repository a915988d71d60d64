"""
A store in one SQLite file: for notebooks, scripts and the command line.

    place(key, fence, checkpoint, events, …)    one row for each key; `events` says how many are kept
    kept(key, first, z)                         the events of one save are one row: `first` is the number of events before it

*Both or neither.* A save appends its events and moves the place in one transaction. A process that is killed during it leaves
the old place and the old events.

*The fence* is a column of `place`, compared inside the transaction, so it works between threads and between processes. It also
takes the time into account, so that a key that was deleted and opened again does not get an old number.

*Locking.* The file is in WAL mode: readers never wait, and writers take turns. A transaction takes well under a millisecond. If
another process holds the lock for longer than `busy_timeout`, that is reported as an error.

*Connections.* Each thread has one, which it opens on first use. SQLite connections must not be carried across a `fork()`, and
even one that is only left open in the parent does harm in the child: SQLite remembers its locks per process, and the child would
believe it held them. All connections are therefore closed just before a fork, and each side opens its own again.

*The file is checked before each use.* If it was deleted or replaced, an open connection would continue to write into the old
file, which nobody can read. It is reopened instead, and a writer gets an error that its key is gone.

Places that `FileStore` kept in the same directory are found again; see `SQLiteStore`.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from .._checkpoint import Checkpoint
from .._errors import StoreError
from .._forks import close_at_forks, opening
from ._packing import pack, unpack
from .base import Kept, Listed, check_expires, check_interval, check_key, checkpoint_to_json, superseded
from .file import CHECKPOINT_MAGIC, FileStore, Moving

__all__ = ["SQLiteStore"]

T = TypeVar("T")

DATABASE: Final = "places.db"
"""Name of the file if `path` is a directory."""

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS place (
    key TEXT PRIMARY KEY,
    fence INTEGER NOT NULL,
    checkpoint TEXT,
    events INTEGER NOT NULL DEFAULT 0,
    whole INTEGER NOT NULL DEFAULT 1,
    born INTEGER NOT NULL,
    saved REAL NOT NULL,
    expires REAL
);
CREATE INDEX IF NOT EXISTS place_expires ON place (expires) WHERE expires IS NOT NULL;
CREATE TABLE IF NOT EXISTS kept (key TEXT NOT NULL, first INTEGER NOT NULL, z BLOB NOT NULL, PRIMARY KEY (key, first));
"""
_COLUMNS: Final = {
    "place": {"key", "fence", "checkpoint", "events", "whole", "born", "saved", "expires"},
    "kept": {"key", "first", "z"},
}
# A server log of this package may be in the same file. Any other table belongs to another program.
_NEIGHBOURS: Final = {"stream", "span"}

# Expired places deleted by one `open()`. 100: a few milliseconds, so that no caller waits long for the clean-up.
_SWEEP: Final = 100
# Places read at once by `places()`.
_PAGE: Final = 100
# The write-ahead log is truncated to this size if it was longer. 4 MiB: SQLite's own limit between checkpoints.
_WAL_BYTES: Final = 4 * 1024 * 1024

_ROW: Final = "fence, checkpoint, events, whole, born, expires"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A row of `place`, without its key."""

    fence: int
    checkpoint: str | None
    events: int
    whole: bool
    """Every event up to the checkpoint was kept."""
    born: int
    """The first fence, which distinguishes a key from the same key deleted and opened again."""
    expires: float | None


class _Handle:
    """The connection of one thread. The lock is for closing it from another thread."""

    __slots__ = ("__weakref__", "connection", "inode", "lock")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.connection: sqlite3.Connection | None = None
        self.inode: tuple[int, int] | None = None

    def close(self) -> None:
        """Close the connection. An open transaction is rolled back."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()

    def __del__(self) -> None:
        # The thread or the store is gone.
        self.close()


class _Local(threading.local):
    handle: _Handle | None = None


class SQLiteStore:
    """
    Keep places in one SQLite file, for any number of threads and processes on one machine.

    The file has mode 0600, and a directory created here has 0700: events are as private as the answer. While a process has it
    open, there are `-wal` and `-shm` files next to it. Nothing is touched before the first `open()`.

    *If you used `FileStore` before.* If `path` is a directory, the database is the file `places.db` in it. A key that is not in
    the database is looked up among the places that `FileStore` left in the directory; `open()` moves it into the database with
    its events. `SQLiteStore("answers")` therefore continues what `FileStore("answers")` began.

    Args:
        path: The file, created when needed with its directory; or a directory.
        keep_events: Keep the events too, for `replay()`. They are compressed, usually to a tenth.
        save_interval: Seconds between two saves while events flow; see `Store`. 1.0: a save costs about 0.2 ms.
        expires: Seconds after its last `open()` or `save()` at which a place is deleted. `None`, the default, keeps it until you
            delete it, because losing a place can mean paying for the answer twice.
        busy_timeout: Seconds to wait for another process that is writing. 5.0: a transaction takes a millisecond, so a process
            that takes longer is stopped or hung.
        durable: Wait until each save is on the disk, so that it survives a power cut. Off by default: it costs some milliseconds
            each time, and lost events are requested again. A crash of the program loses nothing either way.

    Do not use it on network file systems: SQLite's write-ahead log needs memory that all its users share.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        keep_events: bool = False,
        save_interval: float = 1.0,
        expires: float | None = None,
        busy_timeout: float = 5.0,
        durable: bool = False,
    ) -> None:
        self.keep_events = keep_events
        self.save_interval = check_interval(save_interval)
        self.expires = check_expires(expires)
        if isinstance(busy_timeout, bool) or not isinstance(busy_timeout, (int, float)) or not 0 <= busy_timeout <= 3600:
            raise ValueError(f"busy_timeout must be seconds from 0 to 3600, got {busy_timeout!r}")
        self.busy_timeout = float(busy_timeout)
        self.durable = durable
        # Absolute, so that a later chdir() changes nothing.
        target = Path(os.path.realpath(path))
        self._old = FileStore(target, keep_events=True) if target.is_dir() else None
        self._path = target / DATABASE if self._old is not None else target
        self._local = _Local()
        self._handles: weakref.WeakSet[_Handle] = weakref.WeakSet()
        self._registry = threading.RLock()
        # Runs at exit too: a connection that is closed properly leaves one file instead of three.
        # Locks are taken in this order: the registry, the lock of a handle, `opening`.
        weakref.finalize(self, _close_all, self._registry, self._handles)
        close_at_forks(self)

    def __repr__(self) -> str:
        return f"SQLiteStore({str(self._path)!r}, keep_events={self.keep_events})"

    def open(self, key: str) -> tuple[Checkpoint | None, int]:
        """See `Store.open()`."""
        check_key(key)
        now = time.time()

        def take_over(database: sqlite3.Connection) -> tuple[Checkpoint | None, int]:
            self._forget_expired(database, key, now)
            place = self._read_place(database, key, now)
            if place is None and old is not None:
                place = self._move_in(database, key, old, now)
            saved = None if place is None else self._checkpoint(key, place)
            # Microseconds: they grow across delete() too, and stay below 2**53, which any JSON reader takes.
            fence = max(time.time_ns() // 1000, 0 if place is None else place.fence + 1)
            database.execute(
                "INSERT INTO place (key, fence, born, saved, expires) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (key) DO UPDATE SET fence = excluded.fence, saved = excluded.saved, expires = excluded.expires",
                (key, fence, fence, now, self._expiry(now)),
            )
            return saved, fence

        with self._moving(key) as old:
            taken = self._write(take_over)
            if old is not None:
                old.moved = True
        return taken

    def load(self, key: str) -> Checkpoint | None:
        """Read the place without taking over the key."""
        check_key(key)
        place = self._find(key)
        if place is not None:
            return self._checkpoint(key, place)
        return None if self._old is None else self._old.load(key)

    def save(self, key: str, checkpoint: Checkpoint, events: Iterable[Kept] = (), *, fence: int) -> None:
        """See `Store.save()`."""
        check_key(key)
        text = checkpoint_to_json(key, checkpoint)
        # Before anything is touched: `events` may be a generator that raises.
        rows = list(pack(events)) if self.keep_events else []
        now = time.time()

        def move(database: sqlite3.Connection) -> None:
            place = self._read_place(database, key, now)
            if place is None or place.fence != fence:
                gone = "was deleted" if self.expires is None else "was deleted or has expired"
                raise superseded(key, fence, None if place is None else place.fence, gone=gone)
            # Saving a place without its events leaves a gap, which `replay()` must report.
            whole = place.whole and (self.keep_events or checkpoint.offset == 0 or text == place.checkpoint)
            end = place.events
            for count, z in rows:
                _append(database, key, end, z)
                end += count
            database.execute(
                "UPDATE place SET checkpoint = ?, events = ?, whole = ?, saved = ?, expires = ? WHERE key = ?",
                (text, end, whole, now, self._expiry(now), key),
            )

        self._write(move)

    def replay(self, key: str) -> Iterator[Kept]:
        """See `Store.replay()`."""
        check_key(key)
        if not self.keep_events:
            return iter(())
        place = self._find(key)
        if place is None:
            return iter(()) if self._old is None else self._old.replay(key)
        if not place.whole:
            raise StoreError(
                f"{self._path}: not all events of the key {key!r:.80} up to its place were kept, because a store with "
                "keep_events=False wrote it; continue with keep_events=False, or delete() the key and start over"
            )
        return self._events(key, place.born, place.events)

    def delete(self, key: str) -> None:
        """See `Store.delete()`."""
        check_key(key)
        # Delete the old place first: otherwise it would reappear after a crash in between.
        if self._old is not None:
            self._old.delete(key)
        if self._path.exists():
            self._write(lambda database: _forget(database, key))

    def places(self) -> Iterator[Listed]:
        """
        List what is kept, in the order of the keys. A place that is saved meanwhile may be listed in its old or new state.

        Yields:
            Each place. A damaged one is listed with its `damage`.

        Raises:
            StoreError: The file cannot be read, or is not ours.
        """
        seen: set[str] = set()
        after: str | None = None
        while self._path.exists():
            page = self._read(partial(self._page, after=after))
            if not page:
                break
            for listed in page:
                if self._old is not None:
                    seen.add(listed.key)
                yield listed
            after = page[-1].key
        if self._old is not None:
            yield from (listed for listed in self._old.places() if listed.key not in seen)

    def hold_at_fork(self, held: ExitStack) -> None:
        """See `close_at_forks()`."""
        held.enter_context(self._registry)
        for handle in list(self._handles):
            held.enter_context(handle.lock)
            handle.close()

    def close(self) -> None:
        """
        Close the connections of all threads. The store may be used again, and opens new ones.

        Calling this is optional: connections are closed when their thread ends, when the store is unreferenced, and at exit.
        """
        _close_all(self._registry, self._handles)

    # --- places

    def _find(self, key: str) -> _Place | None:
        if not self._path.exists():
            return None
        return self._read(lambda database: self._read_place(database, key, time.time()))

    def _read_place(self, database: sqlite3.Connection, key: str, now: float) -> _Place | None:
        """The row of a key; `None` if it does not exist or has expired."""
        row = database.execute(f"SELECT {_ROW} FROM place WHERE key = ?", (key,)).fetchone()  # noqa: S608
        if row is None:
            return None
        fence, checkpoint, events, whole, born, expires = row
        if (
            not all(isinstance(number, int) and number >= 0 for number in (fence, events, whole, born))
            or not isinstance(checkpoint, str | None)
            or not isinstance(expires, int | float | None)
        ):
            raise StoreError(
                f"{self._path} is damaged: expected fence, checkpoint and number of events of the key {key!r:.80}, "
                f"found {row!r:.200}; delete() the key to start over"
            )
        if expires is not None and expires <= now:
            return None
        return _Place(fence=fence, checkpoint=checkpoint, events=events, whole=bool(whole), born=born, expires=expires)

    def _checkpoint(self, key: str, place: _Place) -> Checkpoint | None:
        if place.checkpoint is None:
            return None
        try:
            return Checkpoint.from_json(place.checkpoint)
        except ValueError as exc:
            raise StoreError(
                f"{self._path}: the place of the key {key!r:.80} cannot be read: {exc}; delete() the key to start over"
            ) from exc

    def _events(self, key: str, born: int, end: int) -> Iterator[Kept]:
        """Read the first `end` events, a row at a time. No transaction stays open in between, as it would delay checkpoints."""
        position = 0

        def read(database: sqlite3.Connection) -> tuple[int, object] | None:
            found: tuple[int, object] | None = database.execute(
                "SELECT born, z FROM place LEFT JOIN kept ON kept.key = place.key AND first = ? WHERE place.key = ?",
                (position, key),
            ).fetchone()
            return found

        while position < end:
            row = self._read(read) if self._path.exists() else None
            if row is None or row[0] != born:
                raise StoreError(f"{self._path}: the key {key!r:.80} was deleted while its events were read")
            if row[1] is None:
                raise StoreError(f"{self._path} is damaged: expected {end} events of the key {key!r:.80}, found {position}")
            try:
                for item in unpack(row[1]):
                    position += 1
                    if position > end:
                        raise ValueError(f"expected {end} events, found more")
                    yield item
            except ValueError as exc:
                raise StoreError(f"{self._path} is damaged in event {position} of the key {key!r:.80}: {exc}") from exc

    def _expiry(self, now: float) -> float | None:
        return None if self.expires is None else now + self.expires

    def _forget_expired(self, database: sqlite3.Connection, key: str, now: float) -> None:
        expired = database.execute(
            "SELECT key FROM place WHERE expires <= ? ORDER BY key = ? DESC LIMIT ?", (now, key, _SWEEP)
        ).fetchall()
        for (each,) in expired:
            _forget(database, each)

    def _page(self, database: sqlite3.Connection, after: str | None) -> list[Listed]:
        rows = database.execute(
            f"SELECT key, saved, {_ROW},"  # noqa: S608
            " coalesce(length(CAST(checkpoint AS BLOB)), 0)"
            " + coalesce((SELECT sum(length(z)) FROM kept WHERE kept.key = place.key), 0)"
            " FROM place WHERE (? IS NULL OR key > ?) AND (expires IS NULL OR expires > ?) ORDER BY key LIMIT ?",
            (after, after, time.time(), _PAGE),
        ).fetchall()
        page = []
        for key, saved, *_, size in rows:
            checkpoint, events, expires, damage = None, 0, None, None
            try:
                if (place := self._read_place(database, key, 0)) is not None:
                    events, expires = place.events, place.expires
                    checkpoint = self._checkpoint(key, place)
            except StoreError as exc:
                damage = str(exc)
            page.append(
                Listed(
                    key=key,
                    checkpoint=checkpoint,
                    events=events,
                    size_bytes=size,
                    saved=saved,
                    expires=expires,
                    damage=damage,
                )
            )
        return page

    # --- places of FileStore

    def _moving(self, key: str) -> AbstractContextManager[Moving | None]:
        """The place that `FileStore` has for a key missing in the database, locked against other users."""
        if self._old is None or self._find(key) is not None:
            return nullcontext()
        return self._old._moving(key)

    def _move_in(self, database: sqlite3.Connection, key: str, old: Moving, now: float) -> _Place:
        end = 0
        for count, z in pack(old.events):
            _append(database, key, end, z)
            end += count
        place = _Place(
            fence=old.fence, checkpoint=old.checkpoint, events=end, whole=old.whole, born=time.time_ns() // 1000, expires=None
        )
        database.execute(
            "INSERT INTO place (key, fence, checkpoint, events, whole, born, saved) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (key, place.fence, place.checkpoint, place.events, place.whole, place.born, now),
        )
        return place

    # --- the file

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run statements that only read, each in its own transaction."""
        handle = self._handle()
        with handle.lock:
            try:
                return work(self._connection(handle))
            except (sqlite3.Error, OSError) as exc:
                raise self._explained(exc) from exc

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run statements as one transaction: all of them or none, whatever is raised in between."""
        handle = self._handle()
        with handle.lock:
            try:
                database = self._connection(handle)
                try:
                    # IMMEDIATE: a transaction that reads first and writes later may be refused without waiting.
                    database.execute("BEGIN IMMEDIATE")
                    result = work(database)
                    database.execute("COMMIT")
                except BaseException:
                    if database.in_transaction:
                        database.execute("ROLLBACK")
                    raise
            except (sqlite3.Error, OSError, OverflowError) as exc:
                # An OverflowError means a text or a blob over SQLite's limit of 1 GB.
                raise self._explained(exc) from exc
            return result

    def _handle(self) -> _Handle:
        handle = self._local.handle
        if handle is None:
            with self._registry:
                handle = self._local.handle = _Handle()
                self._handles.add(handle)
        return handle

    def _connection(self, handle: _Handle) -> sqlite3.Connection:
        """The open connection of this thread, to the current file."""
        connection = handle.connection
        if connection is not None:
            if handle.inode == _inode(self._path):
                # An interrupt may have come between the parts of a transaction, and even of its end.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                return connection
            handle.close()
        with opening:
            self._create()
            # Checked before it is opened: if the file is replaced in between, the next check notices.
            handle.inode = _inode(self._path)
            # SQLite gives the log and the index next to it the mode of the file.
            connection = sqlite3.connect(self._path, timeout=self.busy_timeout, isolation_level=None, check_same_thread=False)
            try:
                self._set_up(connection)
            except BaseException:
                connection.close()
                raise
        handle.connection = connection
        return connection

    def _create(self) -> None:
        """
        Make the file if it is missing, readable by the owner only.

        An existing file is never opened except by SQLite: closing any other descriptor would drop the locks that this process
        holds on it. So the caller holds a lock: the descriptor that makes the file is closed before another thread uses it.
        """
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            pass

    def _set_up(self, connection: sqlite3.Connection) -> None:
        found = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if found and not (found & _COLUMNS.keys() or found >= _NEIGHBOURS):
            raise StoreError(
                f"{self._path} is not ours and was left unchanged: expected an SQLite database with the tables place and kept, "
                f"found the tables {', '.join(sorted(found))[:200]}"
            )
        for table in _COLUMNS.keys() & found:
            columns = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            if not columns >= _COLUMNS[table]:
                raise StoreError(
                    f"{self._path} is not ours and was left unchanged: expected a table {table} with the columns "
                    f"{', '.join(sorted(_COLUMNS[table]))}, found {', '.join(sorted(columns))[:200]}"
                )
        self._set_mode(connection)
        connection.execute(f"PRAGMA synchronous = {'FULL' if self.durable else 'NORMAL'}")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        # Overwrite deleted data, so that a deleted answer does not remain in a free page.
        connection.execute("PRAGMA secure_delete = ON")
        if not found >= _COLUMNS.keys():
            # Not inside our own transaction: two processes may both get here, and the second finds the tables of the first.
            connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT;")

    def _set_mode(self, connection: sqlite3.Connection) -> None:
        """
        Turn on the write-ahead log, once for the life of the file.

        If that is not possible, SQLite keeps its rollback journal, which is as safe but slower. While another process does the
        same, SQLite refuses at once instead of waiting.
        """
        deadline = time.monotonic() + self.busy_timeout
        pause = 0.001
        while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as exc:
                if _code(exc) != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                    raise
            time.sleep(pause)
            pause = min(pause * 2, 0.05)

    def _explained(self, exc: Exception) -> StoreError:
        """The error for the caller: what was expected, what was found, what to do."""
        path = self._path
        match _code(exc):
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return StoreError(
                    f"cannot use {path}: another user has held its lock for {self.busy_timeout:g} s; "
                    "try again, or look for a program that keeps a transaction open"
                )
            case sqlite3.SQLITE_NOTADB:
                return self._foreign()
            case sqlite3.SQLITE_CORRUPT:
                return StoreError(f"{path} is damaged: {exc}; take it from a backup, or delete it to start over")
            case sqlite3.SQLITE_FULL:
                return StoreError(f"cannot use {path}: {exc}; nothing was saved: free some space and try again")
            case _:
                hint = "; expected a file, found a directory" if path.is_dir() else ""
                return StoreError(f"cannot use {path}: {exc}{hint}")

    def _foreign(self) -> StoreError:
        try:
            with open(self._path, "rb") as file:
                start = file.read(40)
        except OSError as exc:
            return StoreError(f"cannot use {self._path}: {exc}")
        if start.startswith(CHECKPOINT_MAGIC):
            return StoreError(
                f"{self._path} is a file of FileStore and was left unchanged: use FileStore({str(self._path)!r}, one_file=True)"
            )
        return StoreError(
            f"{self._path} is not ours and was left unchanged: expected an SQLite database, found a file beginning with {start!r}"
        )


def _append(database: sqlite3.Connection, key: str, first: int, z: bytes) -> None:
    database.execute("INSERT INTO kept (key, first, z) VALUES (?, ?, ?)", (key, first, z))


def _forget(database: sqlite3.Connection, key: str) -> None:
    database.execute("DELETE FROM kept WHERE key = ?", (key,))
    database.execute("DELETE FROM place WHERE key = ?", (key,))


def _code(exc: Exception) -> int:
    """SQLite's primary result code; 0 for other errors."""
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _close_all(registry: threading.RLock, handles: weakref.WeakSet[_Handle]) -> None:
    with registry:
        for handle in list(handles):
            with handle.lock:
                handle.close()
