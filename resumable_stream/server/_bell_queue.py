"""A bounded queue of bells for one listener."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from .log import Bell

__all__ = ["MOST_WAITING", "MOST_WAITING_BYTES", "BellQueue"]

MOST_WAITING: Final = 10_000
"""Bells kept for a slow listener. 10,000: a few seconds of a busy server. Their content is in the log anyway."""
MOST_WAITING_BYTES: Final = 16 << 20


class BellQueue:
    """
    Bells on their way to one listener, in one event loop.

    When too many wait, they are merged into one bell per stream, without content: the listener then reads the log.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Bell, int]] = deque()
        self._bytes = 0
        self._rung = asyncio.Event()
        self._closed = False

    def put(self, bell: Bell, size: int = 0, *, streams: int) -> None:
        """
        Add a bell.

        Args:
            bell: Dropped if the queue is closed.
            size: Bytes that it keeps in memory; 0 if they are in memory anyway.
            streams: How many streams are listened to. Two bells for each always fit.
        """
        if self._closed:
            return
        if len(self._waiting) >= max(MOST_WAITING, 2 * streams) or self._bytes + size > MOST_WAITING_BYTES:
            self._waiting = deque((Bell(id=stream_id), 0) for stream_id in dict.fromkeys(each.id for each, _ in self._waiting))
            self._bytes = 0
        self._waiting.append((bell, size))
        self._bytes += size
        self._rung.set()

    async def get(self) -> Bell:
        """
        The next bell.

        Raises:
            StopAsyncIteration: The queue is closed.
        """
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._rung.clear()
            await self._rung.wait()
        bell, size = self._waiting.popleft()
        self._bytes -= size
        return bell

    def close(self) -> None:
        """Drop the waiting bells and release the listener."""
        self._closed = True
        self._waiting.clear()
        self._bytes = 0
        self._rung.set()
