"""Stop a process as a debugger does, for tests of what others make of that."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path


def stop(pid: int) -> None:
    """Send SIGSTOP to a process, which need not be a child, and wait until all its threads stand still."""
    os.kill(pid, signal.SIGSTOP)
    while not _stands_still(pid):
        time.sleep(0.001)


def _stands_still(pid: int) -> bool:
    threads = list(Path(f"/proc/{pid}/task").glob("*/stat"))
    if not threads:
        # Not Linux, where only the process as a whole can be looked at.
        import psutil

        return bool(psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE))
    try:
        # The state follows the name, which may hold any character: proc(5).
        return all(stat.read_text().rpartition(")")[2].split()[0] in "TtZX" for stat in threads)
    except OSError:
        # A thread ended in between.
        return False


async def stop_between_writes(pid: int, place: str) -> None:
    """
    Stop a process that writes to a log, and not inside a transaction: nobody else could write then.

    Args:
        pid: The process.
        place: The file of its log, or the URL of a Redis, which knows no such thing.
    """
    while True:
        stop(pid)
        if place.startswith("redis:") or _can_be_written(place):
            return
        os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(0.01)


def _can_be_written(path: str) -> bool:
    with closing(sqlite3.connect(path, timeout=0.5, isolation_level=None)) as database:
        try:
            database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        database.execute("ROLLBACK")
        return True
