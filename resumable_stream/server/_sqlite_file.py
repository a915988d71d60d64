"""
One SQLite file and this process's connections to it: opening, checking, forking, and what errors mean.

*The file is checked before each use.* If it was deleted or replaced, an open connection would keep writing to the old file, which
nobody can read. That connection is closed, and the current file is opened.

*Forks.* SQLite must not be carried across a `fork()`, and even a connection left open in the parent does harm in the child:
SQLite remembers its locks per process, and the child would believe it held them. So all connections are closed just before a
fork, and each side opens its own again.

*Doubt.* A machine that lost power may have lost the last transactions, unless the file is `durable`, and a file from a backup
lacks everything after it. The tables show neither. So the file stores the boot id of the machine and its own inode number: if
either differs at the next opening, running streams are put into `doubt`.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from .._errors import LogUnavailable
from .._forks import close_at_forks

__all__ = ["Handle", "SQLiteFile", "code_of"]

VERSION: Final = 1
"""Version of the tables below, stored in `stream_log`."""
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS stream_log (version INTEGER NOT NULL);
INSERT INTO stream_log SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM stream_log);
CREATE TABLE IF NOT EXISTS stream (
    id TEXT PRIMARY KEY,
    epoch TEXT NOT NULL,
    fence INTEGER NOT NULL,
    n INTEGER NOT NULL,
    b INTEGER NOT NULL,
    c INTEGER NOT NULL,
    held INTEGER NOT NULL,
    oldest INTEGER NOT NULL,
    until INTEGER NOT NULL,
    out TEXT,
    head TEXT NOT NULL,
    note TEXT,
    note_n INTEGER NOT NULL,
    taken INTEGER NOT NULL,
    k INTEGER NOT NULL,
    cancel TEXT,
    mark INTEGER NOT NULL,
    claimed TEXT NOT NULL,
    born INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    lapse INTEGER NOT NULL,
    due INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS stream_lapse ON stream (lapse) WHERE out IS NULL;
CREATE INDEX IF NOT EXISTS stream_due ON stream (due);
CREATE TABLE IF NOT EXISTS request (stream TEXT PRIMARY KEY, d BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS span (
    stream TEXT NOT NULL,
    n INTEGER NOT NULL,
    b INTEGER NOT NULL,
    l TEXT NOT NULL,
    d BLOB,
    z BLOB,
    PRIMARY KEY (stream, n)
);
CREATE TRIGGER IF NOT EXISTS span_deleted AFTER DELETE ON span BEGIN
    UPDATE stream SET held = held - 1 WHERE id = OLD.stream AND held > 0;
END;
CREATE TABLE IF NOT EXISTS inbox (
    stream TEXT NOT NULL,
    k INTEGER NOT NULL,
    kind TEXT NOT NULL,
    mid TEXT NOT NULL,
    d TEXT NOT NULL,
    PRIMARY KEY (stream, k),
    UNIQUE (stream, mid)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS origin (boot TEXT NOT NULL, file TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS doubt (stream TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_OURS: Final = {"stream_log", "stream", "span", "request", "inbox", "origin", "doubt"}
# A store of this package may share the file. Any other table is foreign.
_NEIGHBOURS: Final = {"place", "kept"}

# The write-ahead log is truncated to this. 4 MiB: what SQLite itself lets it grow to between checkpoints.
_WAL_BYTES: Final = 4 << 20
# The byte of the `-shm` file that SQLite locks while it writes.
_WRITE_LOCK: Final = 120

_logger = logging.getLogger("resumable_stream.server")


class SQLiteFile:
    """
    Where a log is stored, and how to open it.

    Raises:
        ValueError: `path` cannot be a file.
    """

    def __init__(self, path: str | os.PathLike[str], *, durable: bool, busy_timeout: float) -> None:
        text = os.fspath(path)
        if not isinstance(text, str) or not text or text == ":memory:" or text.startswith("file:") or "\0" in text:
            raise ValueError(f"path must be the name of a file, got {text!r:.200}; for a log in memory, use MemoryLog()")
        # Absolute, so that a later chdir() has no effect.
        self.path = Path(os.path.realpath(text))
        if self.path.is_dir():
            raise ValueError(
                f"path must be the name of a file, {self.path} is a directory; name a file in it, as in 'streams.db'"
            )
        self.durable = durable
        self.busy_timeout = busy_timeout

    def inode(self) -> tuple[int, int] | None:
        """Identity of the current file; `None`: there is none."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def open(self, *, writes: bool) -> tuple[sqlite3.Connection, tuple[int, int] | None]:
        """
        Open a connection; create the file and the tables if needed.

        Returns:
            The connection, and the identity of the file just before.

        Raises:
            LogUnavailable: The file is not ours, or was written by a later version.
            sqlite3.Error: SQLite cannot open it.
            OSError: The system cannot create it.
        """
        self._create()
        # Before opening: if the file is replaced in between, the next check notices.
        inode = self.inode()
        # SQLite gives the `-wal` and `-shm` files the same mode.
        connection = sqlite3.connect(self.path, timeout=self.busy_timeout, isolation_level=None, check_same_thread=False)
        try:
            self._set_up(connection)
            if not writes:
                connection.execute("PRAGMA query_only = ON")
        except BaseException:
            connection.close()
            raise
        return connection, inode

    def _create(self) -> None:
        """
        Create a missing file, readable by the owner only.

        Closing a descriptor drops all locks of this process on the file, so a file that SQLite may be using is never opened here:
        an empty file is made under another name and then linked, which fails if the name is taken.
        """
        if self.path.exists():
            return
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone_in(self.path.parent):
            if self.path.exists():
                return
            # Only the database file was deleted. Its `-wal` and `-shm` may still be in use by connections to the old file, and
            # must not be used by connections to the new one.
            for end in ("-wal", "-shm"):
                Path(f"{self.path}{end}").unlink(missing_ok=True)
            empty = self.path.with_name(f".{self.path.name[:200]}.{secrets.token_hex(8)}")
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
            os.close(os.open(empty, flags, 0o600))
            try:
                os.link(empty, self.path)
            except FileExistsError:
                pass
            except (OSError, NotImplementedError):
                # A file system without hard links.
                try:
                    os.close(os.open(self.path, flags, 0o600))
                except FileExistsError:
                    pass
            finally:
                empty.unlink()

    def _set_up(self, connection: sqlite3.Connection) -> None:
        found = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if found and not found & (_OURS | _NEIGHBOURS):
            raise self._foreign(f"found the tables {', '.join(sorted(found))[:200]}")
        if "stream_log" in found:
            self._check_version(connection)
        elif found & {"stream", "span", "request", "inbox"}:
            raise self._foreign(f"found tables of these names without stream_log: {', '.join(sorted(found))[:200]}")
        if not found:
            # Only possible before the first table.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        self._set_mode(connection)
        connection.execute(f"PRAGMA synchronous = {'FULL' if self.durable else 'NORMAL'}")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        # Overwrite deleted data: a deleted answer must not survive in a free page.
        connection.execute("PRAGMA secure_delete = ON")
        if not found >= _OURS:
            # Two processes may get here; the second finds the first one's tables.
            connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT;")
            self._check_version(connection)
        self._doubt(connection)

    def _doubt(self, connection: sqlite3.Connection) -> None:
        """Record which streams ran when the file was last used before a reboot, or under another inode number."""
        inode = self.inode()
        origin = _boot(), "" if inode is None else str(inode[1])
        if connection.execute("SELECT boot, file FROM origin").fetchall() == [origin]:
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            known = connection.execute("SELECT boot, file FROM origin").fetchall()
            # A durable file loses nothing when the power fails.
            if [file for _, file in known] != [origin[1]] or (known != [origin] and not self.durable):
                connection.execute("INSERT OR IGNORE INTO doubt SELECT id FROM stream WHERE out IS NULL")
            connection.execute("DELETE FROM origin")
            connection.execute("INSERT INTO origin (boot, file) VALUES (?, ?)", origin)
            connection.execute("COMMIT")
        except BaseException:
            connection.rollback()
            raise

    def _check_version(self, connection: sqlite3.Connection) -> None:
        rows = connection.execute("SELECT version FROM stream_log LIMIT 2").fetchall()
        if rows == [(VERSION,)]:
            return
        if len(rows) == 1 and isinstance(rows[0][0], int) and rows[0][0] > VERSION:
            raise LogUnavailable(
                f"{self.path} was written by a later version of resumable_stream (format {rows[0][0]}, this one reads {VERSION});"
                " upgrade this process"
            )
        raise LogUnavailable(
            f"{self.path} is damaged: expected the version {VERSION} in its table stream_log, found {rows!r:.100}; "
            "take it from a backup, or delete it to start over"
        )

    def _set_mode(self, connection: sqlite3.Connection) -> None:
        """
        Turn on the write-ahead log, once in the life of the file.

        If that is impossible, SQLite keeps its rollback journal, which is as safe but slower. While another process does the
        same, SQLite does not wait but fails at once.
        """
        deadline = time.monotonic() + self.busy_timeout
        pause = 0.001
        while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as exc:
                if code_of(exc) != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                    raise
            time.sleep(pause)
            pause = min(pause * 2, 0.05)

    # --- errors

    def explained(self, exc: Exception, *, stream_id: str | None = None) -> LogUnavailable:
        """The error for the caller: what was expected, what was found, what to do."""
        if isinstance(exc, LogUnavailable):
            return exc
        path = self.path
        match code_of(exc):
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED | sqlite3.SQLITE_PROTOCOL:
                text = (
                    f"cannot use {path}: its lock was not free for {self.busy_timeout:g} s, held by {self._holder()}; "
                    "try again, or look for a program that keeps a transaction open or is suspended in one"
                )
            case sqlite3.SQLITE_NOTADB:
                return self._foreign("found a file of another kind", stream_id=stream_id)
            case sqlite3.SQLITE_CORRUPT:
                text = f"{path} is damaged: {exc}; take it from a backup, or delete it to start over"
            case sqlite3.SQLITE_FULL:
                text = f"cannot write to {path}: {exc}; nothing was stored: free some space and try again"
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
                text = f"cannot write to {path}: {exc}; this process needs to write to the file and to its directory"
            case sqlite3.SQLITE_IOERR:
                text = f"cannot use {path}: {exc}; try again, and if that does not help, check the disk"
            case _ if path.is_dir():
                text = f"cannot use {path}: expected a file, found a directory"
            case _:
                text = f"cannot use {path}: {exc}"
        return LogUnavailable(text, stream_id=stream_id)

    def _foreign(self, seen: str, *, stream_id: str | None = None) -> LogUnavailable:
        return LogUnavailable(
            f"{self.path} is not ours and was left unchanged: expected an SQLite database of resumable_stream, {seen}; "
            "name another file",
            stream_id=stream_id,
        )

    def _holder(self) -> str:
        """Who holds the lock, if known: Linux lists all locks, and reading that list does not open the file."""
        try:
            inode = os.stat(f"{self.path}-shm").st_ino
            locks = Path("/proc/locks").read_text()
            pid = next(
                int(found[1])
                for found in re.finditer(r"POSIX +ADVISORY +WRITE +(\d+) \S+:(\d+) (\d+) (\d+|EOF)$", locks, re.MULTILINE)
                if int(found[2]) == inode and int(found[3]) <= _WRITE_LOCK and found[4] != "EOF" and int(found[4]) >= _WRITE_LOCK
            )
            if pid == os.getpid():
                return "this process"
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            return f"the process {pid} ({name})"
        except (OSError, StopIteration, ValueError):
            return "another process or connection"


class Handle:
    """
    A connection that is opened when needed. Its user holds `lock`.

    Attributes:
        opened: How often it was opened. Another number means another connection, perhaps to another file.
    """

    def __init__(self, file: SQLiteFile, *, writes: bool) -> None:
        self.file = file
        self.lock = threading.RLock()
        self.opened = 0
        self._writes = writes
        self._connection: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        close_at_forks(self)

    def hold_at_fork(self, held: ExitStack) -> None:
        """See `close_at_forks()`."""
        held.enter_context(self.lock)
        self.close()

    def connection(self) -> sqlite3.Connection:
        """
        The open connection to the current file.

        Raises:
            LogUnavailable: The file is not ours, or was written by a later version.
            sqlite3.Error: SQLite cannot open it.
            OSError: The system cannot open it.
        """
        inode = self.file.inode()
        if self._connection is not None:
            if self._inode == inode:
                return self._connection
            self.close()
            if self._writes:
                _logger.warning(
                    "%s was deleted or replaced while it was in use: the log continues with %s",
                    self.file.path,
                    "a new, empty file" if inode is None else "the current file",
                )
        self._connection, self._inode = self.file.open(writes=self._writes)
        self.opened += 1
        return self._connection

    def close(self) -> None:
        """Close the connection. An open transaction is rolled back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


if sys.platform == "win32":

    @contextmanager
    def _alone_in(directory: Path) -> Iterator[None]:
        """Windows does not delete files in use."""
        yield
else:
    import fcntl

    @contextmanager
    def _alone_in(directory: Path) -> Iterator[None]:
        """Create one file at a time, across processes. The lock is on the directory, so it leaves no lock file."""
        fd = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _boot() -> str:
    """Id of the current boot; empty if the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def code_of(exc: BaseException) -> int:
    """SQLite's primary result code; 0 for other errors."""
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF
