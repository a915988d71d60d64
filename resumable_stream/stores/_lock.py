"""
A lock between processes that the system releases when its holder dies.

The lock belongs to an open file, not to its content or existence, so no stale lock can remain. The file is never removed:
otherwise one process could lock the old file and another a new one of the same name.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["locked"]

# A save holds the lock for about 0.1 ms, with fsync for about 10 ms. A holder that takes longer than this is stopped or hung.
PATIENCE_SECONDS: Final = 10.0

if sys.platform == "win32":
    import msvcrt

    def _try_lock(fd: int) -> bool:
        # Windows locks cover bytes at the current file position; byte 0 need not exist.
        os.lseek(fd, 0, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    try:
        import fcntl
    except ImportError:  # WebAssembly: one process, so the store's own thread lock is enough

        def _try_lock(fd: int) -> bool:
            return True
    else:

        def _try_lock(fd: int) -> bool:
            # flock(), not lockf(): it excludes other threads too, and closing a second descriptor does not drop it.
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True


@contextmanager
def locked(path: str | os.PathLike[str], *, patience: float = PATIENCE_SECONDS) -> Iterator[None]:
    """
    Hold the lock of a file, which is created (mode 0600) if it does not exist, and never written.

    Args:
        path: The lock file. Its directory must exist.
        patience: Seconds to wait for another holder.

    Raises:
        TimeoutError: Another holder did not release it in time.
        OSError: The file cannot be opened.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        deadline = time.monotonic() + patience
        pause = 0.0005
        while not _try_lock(fd):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"another user has held its lock for {patience:g} s")
            time.sleep(pause)
            pause = min(pause * 2, 0.05)
        yield
    finally:
        os.close(fd)  # releases the lock
