"""
The clock of reads whose transport takes no time-out from us: see docs/decisions/0003-rearmed-timeouts.md.

On asyncio it is one timer for all reads of a body, which a read does not touch: it notes when it began. On trio it is a cancel
scope around each read, because a scope cannot stay open while the caller has an event in hand.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, CancelledError, Task, TimerHandle, current_task, get_running_loop
from collections.abc import Awaitable, Callable
from math import inf
from time import monotonic
from typing import Any, Protocol

import anyio

__all__ = ["ReadClock", "ReadScope", "ReadTimer", "read_clock"]

# Seconds. A loop's timer may be early by its resolution (1 ms in uvloop): what is left then is waited for, not spun through.
_FINEST = 0.001
# Seconds after which a read that took no notice of its cancellation is cancelled again.
_AGAIN = 1.0


class ReadClock(Protocol):
    """Ends a read that takes too long. One read at a time."""

    def arm(self, seconds: float | None) -> None:
        """The next reads may take so long; `None`: any time."""

    async def run(self, read: Callable[[], Awaitable[bytes]]) -> bytes:
        """
        Raises:
            TimeoutError: It took too long, or `wake()` was called. A cancellation from elsewhere comes out as it is.
        """

    def wake(self) -> None:
        """End the read under way, and whichever would begin."""

    def stop(self) -> None:
        """No more reads: leave no timer behind."""


class ReadTimer:
    """
    For a task of asyncio.

    When the timer rings, it looks when the read under way began, and waits for the rest. One that is over is cancelled as
    `asyncio.timeout()` does it: our cancellations are counted and taken back, so that one of somebody else's, which may come at
    the same moment, is left over and goes its way.
    """

    __slots__ = ("_awake", "_began", "_cancels", "_handle", "_loop", "_rings", "_seconds", "_task")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._seconds = inf
        self._task: Task[Any] | None = None  # of the read under way
        self._began = 0.0
        self._rings = inf  # when the timer does
        self._handle: TimerHandle | None = None
        self._cancels = 0  # of the read under way, by us
        self._awake = False

    def arm(self, seconds: float | None) -> None:
        self._seconds = inf if seconds is None else seconds

    async def run(self, read: Callable[[], Awaitable[bytes]]) -> bytes:
        task = current_task()
        assert task is not None
        before = task.cancelling()
        self._began = began = monotonic()
        if self._rings > began + self._seconds:
            self._ring_at(began + self._seconds, began)
        if self._awake:
            raise self._error()
        try:
            self._task = task
            return await read()
        except CancelledError as error:
            if self._cancels and self._take_back(task) <= before:
                raise self._error() from error
            raise
        finally:
            self._task = None
            if self._cancels:
                self._take_back(task)

    def wake(self) -> None:
        self._awake = True
        # Not at once: whoever wakes may be the task itself, inside its read, which may be over by then.
        self._loop.call_soon(self._end, self._began)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle, self._rings, self._task = None, inf, None

    def _ring_at(self, when: float, now: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle, self._rings = self._loop.call_later(max(when - now, _FINEST), self._ring), when

    def _ring(self) -> None:
        self._handle, self._rings = None, inf
        if self._task is None:
            # Between two reads: the next one sets it again.
            return
        now, ends = monotonic(), self._began + self._seconds
        if ends > now:
            if ends < inf:
                self._ring_at(ends, now)
            return
        # After a loop that was held up, its data may have come in this very turn, and the task goes on in the next.
        self._loop.call_soon(self._end, self._began)

    def _end(self, began: float) -> None:
        task = self._task
        if task is not None and self._began == began:
            self._cancels += 1
            task.cancel()
            now = monotonic()
            self._ring_at(now + _AGAIN, now)

    def _take_back(self, task: Task[Any]) -> int:
        """Of our cancellations; how many of others are left."""
        for _ in range(self._cancels):
            task.uncancel()
        self._cancels = 0
        return task.cancelling()

    def _error(self) -> TimeoutError:
        return _too_long(self._seconds, self._awake)


class ReadScope:
    """For a task of trio."""

    __slots__ = ("_awake", "_scope", "_seconds")

    def __init__(self) -> None:
        self._seconds: float | None = None
        self._scope: anyio.CancelScope | None = None
        self._awake = False

    def arm(self, seconds: float | None) -> None:
        self._seconds = seconds

    async def run(self, read: Callable[[], Awaitable[bytes]]) -> bytes:
        if not self._awake:
            with anyio.move_on_after(self._seconds) as self._scope:
                return await read()
        raise _too_long(self._seconds, self._awake)

    def wake(self) -> None:
        self._awake = True
        if self._scope is not None:
            self._scope.cancel()

    def stop(self) -> None:
        self._scope = None


def _too_long(seconds: float | None, awake: bool) -> TimeoutError:
    return TimeoutError("the stream is being closed" if awake else f"no bytes within {seconds} seconds")


def read_clock() -> ReadClock:
    """For the task that runs now."""
    try:
        # In trio's guest mode a loop of asyncio runs, but no task of it does.
        if current_task() is not None:
            return ReadTimer(get_running_loop())
    except RuntimeError:
        # No loop of asyncio.
        return ReadScope()
    return ReadScope()
