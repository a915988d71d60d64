"""Wake every task that waits, at once: what an `asyncio.Condition` does, without its lock, for one event loop."""

from __future__ import annotations

import asyncio

__all__ = ["Signal"]


class Signal:
    """
    Something that happens again and again.

    Who waits, looks first whether what it waits for is true already. Between the look and the wait there is no other task, so
    nothing is missed.
    """

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[bool]] = set()

    def wake(self) -> None:
        """Wake all who wait now."""
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            _settle(waiter, True)

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
