"""Stop a process as a debugger does, for tests of what others make of that."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from contextlib import closing


def stop(pid: int) -> None:
    """Send SIGSTOP to a child, and wait until all its threads stand still."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


async def stop_between_writes(pid: int, place: str) -> None:
    """
    Stop a child that writes to a log, and not inside a transaction: nobody else could write then.

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
