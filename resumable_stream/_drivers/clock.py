"""
The clock for reads whose transport does not accept our timeout: see docs/decisions/0003-rearmed-timeouts.md.

On asyncio there is one timer for all reads of a body. A read does not touch it, but only notes when it began. On trio there is a
cancel scope around each read, because a scope cannot stay open while the caller handles an event.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, CancelledError, Task, TimerHandle, current_task, get_running_loop
from collections.abc import Awaitable, Callable
from math import inf
from time import monotonic
from typing import Any, Protocol

import anyio

__all__ = ["ReadClock", "ReadScope", "ReadTimer", "read_clock"]

# Seconds. A loop's timer may be early by its resolution (1 ms in uvloop). The rest is then waited for, without spinning.
_FINEST = 0.001
# Seconds after which a read that ignored its cancellation is cancelled again.
_AGAIN = 1.0


class ReadClock(Protocol):
    """Ends a read that takes too long. One read at a time."""

    def arm(self, seconds: float | None) -> None:
        """Limit the next reads to this many seconds; `None`: no limit."""

    async def run(self, read: Callable[[], Awaitable[bytes]]) -> bytes:
        """
        Raises:
            TimeoutError: The read took too long, or `wake()` was called. A cancellation from elsewhere is passed on unchanged.
        """

    def wake(self) -> None:
        """End the current read, and any that would begin."""

    def stop(self) -> None:
        """No more reads: remove the timer."""


class ReadTimer:
    """
    The clock for an asyncio task.

    When the timer fires, it checks when the current read began, and waits for the rest. A read that is over its limit is
    cancelled as in `asyncio.timeout()`: our cancellations are counted and taken back, so that a cancellation from elsewhere,
    which may come at the same moment, is preserved and passed on.
    """

    __slots__ = ("_awake", "_began", "_cancels", "_handle", "_loop", "_rings", "_seconds", "_task")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._seconds = inf
        self._task: Task[Any] | None = None  # of the current read
        self._began = 0.0
        self._rings = inf  # when the timer fires
        self._handle: TimerHandle | None = None
        self._cancels = 0  # our cancellations of the current read
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
        # Not at once: the caller may be the task itself, inside its read, which may be over by then.
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
            # Between two reads; the next one sets the timer again.
            return
        now, ends = monotonic(), self._began + self._seconds
        if ends > now:
            if ends < inf:
                self._ring_at(ends, now)
            return
        # If the loop was blocked, the read's data may have arrived in this very turn, and the task continues in the next.
        self._loop.call_soon(self._end, self._began)

    def _end(self, began: float) -> None:
        task = self._task
        if task is not None and self._began == began:
            self._cancels += 1
            task.cancel()
            now = monotonic()
            self._ring_at(now + _AGAIN, now)

    def _take_back(self, task: Task[Any]) -> int:
        """Take back our cancellations; returns how many others remain."""
        for _ in range(self._cancels):
            task.uncancel()
        self._cancels = 0
        return task.cancelling()

    def _error(self) -> TimeoutError:
        return _too_long(self._seconds, self._awake)


class ReadScope:
    """The clock for a trio task."""

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
    """The clock for the current task."""
    try:
        # In trio's guest mode an asyncio loop is running, but none of its tasks is.
        if current_task() is not None:
            return ReadTimer(get_running_loop())
    except RuntimeError:
        # There is no asyncio loop.
        return ReadScope()
    return ReadScope()
