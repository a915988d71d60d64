"""Wake every task that waits, at once: what an `asyncio.Condition` does, without its lock, for one event loop."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

__all__ = ["Listener", "Signal"]

_AT_ONCE: Final = 128
"""Listeners called before the loop runs anything else. 128: about a millisecond, if each sends something."""


class Listener(Protocol):
    """A callback for cases where waking a task would cost more than the work."""

    def heard(self, now: float) -> None:
        """It has happened, maybe several times; `now` is the time of the event loop. Called outside any task."""


class Signal:
    """
    Something that happens again and again.

    A waiter first checks whether its condition is already true. No other task runs between the check and the wait, so nothing is
    missed.
    """

    __slots__ = ("_busy", "_calling", "_due", "_listeners", "_waiters")

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[bool]] = set()
        self._listeners: dict[Listener, None] = {}
        self._calling: list[Listener] = []
        """Listeners still to be called in this round, the first one at the end."""
        self._due = False
        """Another round of calls begins after the current one."""
        self._busy = False
        """`_call()` is scheduled, or running."""

    def wake(self) -> None:
        """Wake all current waiters, and call the listeners soon."""
        if self._waiters:
            waiters, self._waiters = self._waiters, set()
            for waiter in waiters:
                _settle(waiter, True)
        if self._listeners and not self._due:
            # Listeners already called in the current round are called again after it.
            self._due = True
            if not self._busy:
                self._busy = True
                loop = asyncio.get_running_loop()
                loop.call_soon(self._call, loop)

    def listen(self, listener: Listener) -> None:
        """Call a listener after each `wake()`, until `unlisten()`."""
        self._listeners[listener] = None

    def unlisten(self, listener: Listener) -> None:
        """Stop calling a listener. A call already on its way may still come."""
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
            # Also if a listener raises.
            self._busy = bool(calling) or self._due
            if self._busy:
                loop.call_soon(self._call, loop)

    def waiter(self) -> asyncio.Future[bool]:
        """
        A future that the next `wake()` sets to true, for waits so frequent that a coroutine and a timer would cost too much.

        Call `discard()` after giving up the wait, or after setting the future.
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
        # Not `wait_for`: some Python versions make a task for it, and a reader waits once per event.
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
