"""
A store in plain files: no server, no dependency, readable with a pager.

A directory holds, for each key:

    <name>.checkpoint    line 1: key, fence, and how many bytes of the events count; line 2: `Checkpoint.to_json()`
    <name>.events        line 1: key; then one event per line, append-only (only with `keep_events`)

and one `.lock` for all. `<name>` is a readable part of the key and a digest of the whole key, so that any text can be a key:
no path traversal is possible, no name is too long, and `a` and `A` remain distinct if file names ignore case.

*Both or neither.* Events are appended first, after the bytes that count. Then the checkpoint file, which says how many count
now, is written aside and renamed into place: this one step makes both take effect. After a crash before it, the old checkpoint
is in force, and the surplus events do not count; the next save truncates them.

*The fence* is in the checkpoint file and compared under the lock, across processes.
It also takes the time into account, so that a key that was deleted and opened again does not get an old number.

Foreign files are never overwritten: every file begins with a magic string that identifies it.
By default nothing waits for the disk: a crash of the program loses nothing, a power cut at most the last seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from .._checkpoint import Checkpoint
from .._errors import StoreError
from ._lock import locked
from .base import Kept, Listed, check_interval, check_key, checkpoint_to_json, item_from_json, item_to_json, superseded

__all__ = ["FileStore"]

CHECKPOINT_MAGIC: Final = b'{"resumable_stream.checkpoint":1,'
EVENTS_MAGIC: Final = b'{"resumable_stream.events":1,'
# Line 1 holds a key of at most 4096 characters, line 2 at most 8 KiB. A larger file is not from this library, and not read.
MAX_CHECKPOINT_FILE: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """The files of one key."""

    checkpoint: Path
    events: Path
    temporary: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """The content of a checkpoint file."""

    fence: int
    events_bytes: int = 0
    """How many bytes of the events file count, including its first line; 0 before the first event."""
    whole: bool = True
    """Every event up to the checkpoint was kept."""
    checkpoint: str | None = None


@dataclass(slots=True, kw_only=True)
class Moving:
    """
    A place on its way into another store.

    Attributes:
        fence: The newest fence that was issued.
        checkpoint: The place as JSON; `None`: nothing was saved yet.
        events: The kept events, oldest first; read them while the place is held.
        whole: Whether all events up to the place were kept.
        moved: Set this once the other store has everything. The files are then removed.
    """

    fence: int
    checkpoint: str | None
    events: Iterator[Kept]
    whole: bool
    moved: bool = False


class FileStore:
    """
    Keep places in files of one directory, for any number of processes on one machine.

    Files have mode 0600, and a directory created here has 0700: events are as private as the answer.
    Nothing is touched before the first `open()`.

    Args:
        path: The directory; created when needed. With `one_file`, the checkpoint file itself.
        keep_events: Keep the events too, for `replay()`.
        save_interval: Seconds between two saves while events flow; see `Store`. 1.0: a save costs about 0.5 ms (one rename).
        fsync: Wait until each save is on the disk, so that it survives a power cut. Off by default: it costs some milliseconds
            each time, and lost events are requested again.
        one_file: `path` is the file, for one stream: `FileStore("answer.place", one_file=True)`. The first key is written into
            it; any other key is refused. Events go to `<path>.events`, and the lock is `.<name>.lock` next to it.

    Network file systems work if their `flock()` does: NFS since version 4.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        keep_events: bool = False,
        save_interval: float = 1.0,
        fsync: bool = False,
        one_file: bool = False,
    ) -> None:
        self.keep_events = keep_events
        self.save_interval = check_interval(save_interval)
        self.fsync = fsync
        # Absolute, so that a later chdir() changes nothing; resolved, so that a link keeps pointing at the file we replace.
        target = Path(os.path.realpath(path))
        self._file = target if one_file else None
        self._directory = target.parent if one_file else target
        self._lock_file = self._directory / (f".{target.name}.lock" if one_file else ".lock")
        # On POSIX the file lock alone would be enough, by polling. With this lock, threads of one store need not poll.
        self._threads = threading.Lock()

    def __repr__(self) -> str:
        return f"FileStore({str(self._file or self._directory)!r}, keep_events={self.keep_events})"

    def open(self, key: str) -> tuple[Checkpoint | None, int]:
        """See `Store.open()`."""
        files = self._files(key)
        with self._exclusive(files):
            state = _read_state(files, key)
            saved = None if state is None else _checkpoint(files, state)
            # Microseconds: they grow across delete() too, and stay below 2**53, which any JSON reader takes.
            fence = max(time.time_ns() // 1000, 0 if state is None else state.fence + 1)
            self._write_state(files, key, replace(state or _State(fence=0), fence=fence))
        return saved, fence

    def load(self, key: str) -> Checkpoint | None:
        """Read the place without taking over the key."""
        files = self._files(key)
        if not self._directory.is_dir():
            return None
        with self._exclusive(files):
            state = _read_state(files, key)
            return None if state is None else _checkpoint(files, state)

    def save(self, key: str, checkpoint: Checkpoint, events: Iterable[Kept] = (), *, fence: int) -> None:
        """See `Store.save()`."""
        files = self._files(key)
        place = checkpoint_to_json(key, checkpoint)
        # Before anything is touched: `events` may be a generator that raises.
        lines = [f"{item_to_json(item)}\n".encode() for item in events] if self.keep_events else []
        with self._exclusive(files):
            state = _read_state(files, key)
            if state is None or state.fence != fence:
                raise superseded(key, fence, None if state is None else state.fence)
            # Saving a place without its events leaves a gap, which `replay()` must report.
            whole = state.whole and (self.keep_events or checkpoint.offset == 0 or place == state.checkpoint)
            end = self._append(files, key, state.events_bytes, lines) if lines else state.events_bytes
            self._write_state(files, key, _State(fence=fence, events_bytes=end, whole=whole, checkpoint=place))

    def replay(self, key: str) -> Iterator[Kept]:
        """See `Store.replay()`."""
        files = self._files(key)
        if not self.keep_events or not self._directory.is_dir():
            return iter(())
        with self._exclusive(files):
            state = _read_state(files, key)
        if state is None:
            return iter(())
        if not state.whole:
            raise StoreError(
                f"{files.checkpoint}: not all events up to its place were kept, because a store with keep_events=False "
                "wrote it; continue with keep_events=False, or delete() the key and start over"
            )
        return _read_events(files.events, state.events_bytes)

    def delete(self, key: str) -> None:
        """See `Store.delete()`."""
        files = self._files(key)
        if not self._directory.is_dir():
            return
        with self._exclusive(files):
            try:
                _read_state(files, key)
            except _Damaged:
                pass  # ours, and this is the way to get rid of it
            self._remove(files)

    def places(self) -> Iterator[Listed]:
        """
        List what is kept, in the order of the file names. To count events, their files are read.

        Yields:
            Each place. A damaged one is listed with its `damage`; one whose key cannot be read any more under its file name.

        Raises:
            StoreError: The directory cannot be read.
        """
        try:
            paths = [self._file] if self._file is not None else sorted(self._directory.glob("*.checkpoint"))
        except OSError as exc:
            raise StoreError(f"cannot use {self._directory}: {exc}") from exc
        return (listed for path in paths if (listed := self._listed(path)) is not None)

    @contextmanager
    def _moving(self, key: str) -> Iterator[Moving | None]:
        """
        Hold a place while another store takes it over. Its writer gets `StoreError` at its next save.

        Yields:
            The place, or `None` if there is none.

        Raises:
            StoreError: It cannot be read, or is damaged or not ours. Nothing was changed.
        """
        files = self._files(key)
        if not files.checkpoint.exists():
            yield None
            return
        with self._exclusive(files):
            state = _read_state(files, key)
            if state is None:
                yield None
                return
            _checkpoint(files, state)
            events = _read_events(files.events, state.events_bytes)
            place = Moving(fence=state.fence, checkpoint=state.checkpoint, events=events, whole=state.whole)
            yield place
            if place.moved:
                self._remove(files)

    def _listed(self, path: Path) -> Listed | None:
        key, checkpoint, events, size, damage = path.name, None, 0, 0, None
        try:
            with path.open("rb") as file:
                head = file.readline(MAX_CHECKPOINT_FILE)
            found = path.stat()
            if not head.startswith(CHECKPOINT_MAGIC):
                raise StoreError(f"{path} is not ours: expected {CHECKPOINT_MAGIC.decode()!r}, found {head[:40]!r}")
            try:
                key = check_key(json.loads(head)["key"])
            except (ValueError, KeyError, TypeError):
                raise _Damaged(f"{path} is damaged: expected a key, found {head[:80]!r}; delete the file to start over") from None
            files = self._files(key)
            if files.checkpoint != path:
                raise _Damaged(f"{path} is damaged: expected it to be called {files.checkpoint.name}")
            if (state := _read_state(files, key)) is None:
                return None
            size = found.st_size + state.events_bytes
            checkpoint = _checkpoint(files, state)
            events = sum(1 for _ in _read_events(files.events, state.events_bytes))
        except FileNotFoundError:
            return None  # deleted meanwhile
        except OSError as exc:
            raise StoreError(f"cannot use {path}: {exc}") from exc
        except StoreError as exc:
            damage = str(exc)
        return Listed(
            key=key, checkpoint=checkpoint, events=events, size_bytes=size or found.st_size, saved=found.st_mtime, damage=damage
        )

    def _remove(self, files: _Files) -> None:
        _refuse_foreign_events(files.events)
        # The checkpoint first: without it the events do not count.
        for path in (files.checkpoint, files.events, files.temporary):
            path.unlink(missing_ok=True)
        self._sync_directory()

    def _files(self, key: str) -> _Files:
        check_key(key)
        if self._file is not None:
            name = self._file.name
            return _Files(
                checkpoint=self._file,
                events=self._file.with_name(f"{name}.events"),
                temporary=self._file.with_name(f".{name}.tmp"),
            )
        readable = re.sub(r"[^A-Za-z0-9_-]+", "_", key)[:48]
        name = f"{readable}-{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}"
        return _Files(
            checkpoint=self._directory / f"{name}.checkpoint",
            events=self._directory / f"{name}.events",
            temporary=self._directory / f".{name}.tmp",
        )

    @contextmanager
    def _exclusive(self, files: _Files) -> Iterator[None]:
        """Allow one caller at a time, across processes, and raise errors of the system as `StoreError`."""
        try:
            try:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            except FileExistsError as exc:
                raise StoreError(
                    f"expected a directory at {self._directory}, found a file; pass one_file=True to use a file"
                ) from exc
            with self._threads, locked(self._lock_file):
                yield
        except OSError as exc:
            raise StoreError(f"cannot use {files.checkpoint}: {exc}") from exc

    def _append(self, files: _Files, key: str, end: int, lines: list[bytes]) -> int:
        """Write events after the first `end` bytes, over anything left by a crash, and return the new end."""
        _refuse_foreign_events(files.events)
        fd = os.open(files.events, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        with open(fd, "r+b", buffering=64 * 1024) as file:
            size = file.seek(0, os.SEEK_END)
            if size < end:
                raise StoreError(f"{files.events} is damaged: expected at least {end} bytes, found {size}")
            file.seek(end)
            file.truncate()
            if end == 0:
                file.write(EVENTS_MAGIC + f'"key":{json.dumps(key)}}}\n'.encode())
            file.writelines(lines)
            file.flush()
            if self.fsync:
                os.fsync(file.fileno())
            return file.tell()

    def _write_state(self, files: _Files, key: str, state: _State) -> None:
        head = {"key": key, "fence": state.fence, "events_bytes": state.events_bytes, "whole": state.whole}
        text = json.dumps(head, separators=(",", ":")).encode()
        # The lock makes us the only user of the temporary name, so an existing file was left by a crash.
        files.temporary.unlink(missing_ok=True)
        fd = os.open(files.temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        with open(fd, "wb") as file:
            file.write(CHECKPOINT_MAGIC + text[1:] + b"\n" + (state.checkpoint or "null").encode() + b"\n")
            file.flush()
            if self.fsync:
                os.fsync(file.fileno())
        os.replace(files.temporary, files.checkpoint)
        self._sync_directory()

    def _sync_directory(self) -> None:
        # A rename is on the disk once its directory is; Windows cannot open a directory.
        if self.fsync and os.name == "posix":
            fd = os.open(self._directory, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


class _Damaged(StoreError):
    """A file of this store that can no longer be read. `delete()` may remove it."""


def _read_state(files: _Files, key: str) -> _State | None:
    """Read the checkpoint file; `None` if it does not exist."""
    path = files.checkpoint
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CHECKPOINT_FILE + 1)
    except FileNotFoundError:
        return None
    except IsADirectoryError as exc:
        raise StoreError(f"expected a checkpoint file at {path}, found a directory") from exc
    hint = "delete() the key to start over"
    if not content:
        raise _Damaged(f"{path} is damaged: expected a checkpoint, found an empty file; {hint}")
    if not content.startswith(CHECKPOINT_MAGIC[: len(content)]):
        raise StoreError(
            f"{path} is not ours and was left unchanged: "
            f"expected it to begin with {CHECKPOINT_MAGIC.decode()!r}, found {content[:40]!r}"
        )
    lines = content.split(b"\n")
    if len(content) > MAX_CHECKPOINT_FILE or len(lines) != 3 or lines[2]:
        raise _Damaged(f"{path} is damaged: expected two lines, found {len(content)} bytes in {len(lines)}; {hint}")
    try:
        head = json.loads(lines[0])
        state = _State(
            fence=int(head["fence"]),
            events_bytes=int(head["events_bytes"]),
            whole=head["whole"] is True,
            checkpoint=None if lines[1] == b"null" else lines[1].decode(),
        )
        found = head["key"]
    except (ValueError, KeyError, TypeError) as exc:
        raise _Damaged(f"{path} is damaged: expected key, fence and events_bytes, found {lines[0][:200]!r}; {hint}") from exc
    if found != key:
        raise StoreError(
            f"{path} holds the place of another key: expected {key!r:.200}, found {found!r:.200}; "
            "use another file for another stream, or delete this one to start over"
        )
    return state


def _checkpoint(files: _Files, state: _State) -> Checkpoint | None:
    if state.checkpoint is None:
        return None
    try:
        return Checkpoint.from_json(state.checkpoint)
    except ValueError as exc:
        raise _Damaged(f"{files.checkpoint} cannot be read: {exc}; delete() the key to start over") from exc


def _refuse_foreign_events(path: Path) -> None:
    """Refuse to overwrite a foreign `answer.events` next to our `answer`."""
    try:
        with path.open("rb") as file:
            start = file.read(len(EVENTS_MAGIC))
    except FileNotFoundError:
        return
    if not EVENTS_MAGIC.startswith(start):
        raise StoreError(
            f"{path} is not ours and was left unchanged: expected it to begin with {EVENTS_MAGIC.decode()!r}, found {start!r}"
        )


def _read_events(path: Path, end: int) -> Iterator[Kept]:
    """Read the first `end` bytes, line by line: later appends and leftovers of a crash come after them."""
    if end == 0:
        return
    position = number = 0
    try:
        with path.open("rb") as file:
            for line in file:
                number += 1
                position += len(line)
                if position > end or not line.endswith(b"\n"):
                    break  # a line across the end is not what was written
                if number == 1:
                    if not line.startswith(EVENTS_MAGIC):
                        raise StoreError(f"{path} is not ours: expected {EVENTS_MAGIC.decode()!r}, found {line[:40]!r}")
                else:
                    try:
                        item = item_from_json(line)
                    except ValueError as exc:
                        raise StoreError(f"{path} is damaged in line {number}: {exc}") from exc
                    yield item
                if position == end:
                    return
    except OSError as exc:
        raise StoreError(f"cannot read the kept events: {exc}") from exc
    raise StoreError(f"{path} is damaged: expected {end} bytes of events, found {position} that are whole lines")
