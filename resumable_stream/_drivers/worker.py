"""
Run a store's call in a worker thread, and never leave it running in the background.

An asyncio task that is cancelled natively (`task.cancel()`) leaves `to_thread.run_sync` at once, shielded or not, while
the thread continues. Then nobody knows whether the save happened, and the next one runs at the same time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar, cast

import anyio
import anyio.to_thread

__all__ = ["in_thread"]

T = TypeVar("T")


async def in_thread(call: Callable[[], T]) -> T:
    """
    Run `call` in a thread. When this returns or raises, `call` has ended, or will never begin.

    Raises:
        BaseException: What `call` raised, or a cancellation, delivered once the call is over.
    """
    lock = threading.Lock()
    ended = threading.Event()
    begun = abandoned = False

    def run() -> T | None:
        nonlocal begun
        with lock:
            if abandoned:
                return None
            begun = True
        try:
            return call()
        finally:
            ended.set()

    try:
        return cast(T, await anyio.to_thread.run_sync(run))  # None only where nobody looks
    except BaseException:
        with lock:
            abandoned = not begun
        if begun and not ended.is_set():
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(ended.wait)
        raise
