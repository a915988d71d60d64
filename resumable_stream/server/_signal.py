"""Wake every task that waits, at once: what an `asyncio.Condition` does, without its lock, for one event loop."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

__all__ = ["Listener", "Signal"]

_AT_ONCE: Final = 128
"""Listeners that are called before the loop gets to anything else. 128: about a millisecond, if each sends something."""


class Listener(Protocol):
    """Who wants to be called, where waking a task would cost more than what it does."""

    def heard(self, now: float) -> None:
        """It has happened, maybe several times; `now` is the time of the event loop. It is called from no task."""


class Signal:
    """
    Something that happens again and again.

    Who waits, looks first whether what it waits for is true already. Between the look and the wait there is no other task, so
    nothing is missed.
    """

    __slots__ = ("_busy", "_calling", "_due", "_listeners", "_waiters")

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[bool]] = set()
        self._listeners: dict[Listener, None] = {}
        self._calling: list[Listener] = []
        """Who is called next, the first one at the end."""
        self._due = False
        """A round of calls begins, after the one that is under way."""
        self._busy = False
        """The loop gets to `_call()`, or is in it."""

    def wake(self) -> None:
        """Wake all who wait now, and call the listeners soon."""
        if self._waiters:
            waiters, self._waiters = self._waiters, set()
            for waiter in waiters:
                _settle(waiter, True)
        if self._listeners and not self._due:
            # Of a round that is under way, those who were called already are called again when it is over.
            self._due = True
            if not self._busy:
                self._busy = True
                loop = asyncio.get_running_loop()
                loop.call_soon(self._call, loop)

    def listen(self, listener: Listener) -> None:
        """Call a listener after each `wake()`, until `unlisten()`."""
        self._listeners[listener] = None

    def unlisten(self, listener: Listener) -> None:
        """Stop that. A call that is on its way may still come."""
        self._listeners.pop(listener, None)

    def _call(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._calling:
            self._due = False
            self._calling = list(reversed(self._listeners))
        calling, now = self._calling, loop.time()
        try:
            for _ in range(min(len(calling), _AT_ONCE)):
                calling.pop().heard(now)
        finally:
            # Also if one of them raises what only the loop can deal with.
            self._busy = bool(calling) or self._due
            if self._busy:
                loop.call_soon(self._call, loop)

    def waiter(self) -> asyncio.Future[bool]:
        """
        A future that the next `wake()` sets to true; for who waits so often that a coroutine and a timer would count.

        Whoever gives up waiting, or sets it, calls `discard()`.
        """
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        return waiter

    def discard(self, waiter: asyncio.Future[bool]) -> None:
        """Forget a future of `waiter()`."""
        self._waiters.discard(waiter)

    async def wait(self, timeout: float | None = None) -> bool:
        """
        Wait for the next `wake()`.

        Args:
            timeout: Most seconds to wait; `None`: for ever.

        Returns:
            Whether it came within the timeout.
        """
        waiter = self.waiter()
        # Not `wait_for`: some Pythons make a task for it, and a reader waits once for each event.
        timer = None if timeout is None else waiter.get_loop().call_later(timeout, _settle, waiter, False)
        try:
            return await waiter
        finally:
            self.discard(waiter)
            if timer is not None:
                timer.cancel()


def _settle(waiter: asyncio.Future[bool], woken: bool) -> None:
    if not waiter.done():
        waiter.set_result(woken)
