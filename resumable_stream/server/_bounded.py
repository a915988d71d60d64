"""
A log that answers within a time, or is unavailable.

The logs of this package time out by themselves. A caller's own log may not, and a disk may hang. Without a bound, one call that
never returns would silently hold up all generations of a process.

A call that took too long is cancelled, and may have taken effect anyway, then or later. Repeating it is safe, as after a
lost reply: the log recognises a repeated span, note, ending or claim, or rejects it because the token has changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from types import CoroutineType, coroutine
from typing import Any, TypeVar, cast

from .._errors import LogUnavailable
from .log import Bell, Bells, StreamLog, shard_of

__all__ = ["bounded"]

T = TypeVar("T")


def bounded(log: StreamLog, seconds: float) -> StreamLog:
    """
    Make each call of a log raise `LogUnavailable` after some time.

    Args:
        log: Any log. Closing the returned one does not close it.
        seconds: Longest time for one call.
    """
    return cast(StreamLog, _Bounded(log, seconds))


class _Bounded:
    """All methods of a log, also those added later."""

    def __init__(self, log: StreamLog, seconds: float) -> None:
        self._log = log
        self._seconds = seconds

    def __repr__(self) -> str:
        return repr(self._log)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._log, name)
        return _within(self._seconds, name, found) if callable(found) else found

    def shard_of(self, stream_id: str) -> str:
        return shard_of(self._log, stream_id)

    def bells(self) -> Bells:
        return _BoundedBells(self._log.bells(), self._seconds)


class _BoundedBells:
    def __init__(self, bells: Bells, seconds: float) -> None:
        self._bells = bells
        self.add = _within(seconds, "bells().add", bells.add)
        self.discard = _within(seconds, "bells().discard", bells.discard)
        self.aclose = bells.aclose

    def __aiter__(self) -> AsyncIterator[Bell]:
        # Waiting for a bell may take long: no limit.
        return self._bells.__aiter__()


def _within(seconds: float, name: str, call: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def within(*args: Any, **options: Any) -> Any:
        work: Awaitable[Any] = call(*args, **options)
        if isinstance(work, CoroutineType):
            # A log in memory answers at once, and a timer would cost as much as the call.
            try:
                waits_for = work.send(None)
            except StopIteration as done:
                return done.value
            work = _resumed(work, waits_for)
        scope = asyncio.timeout(seconds)
        try:
            async with scope:
                return await work
        except TimeoutError as exc:
            if not scope.expired():
                raise
            raise LogUnavailable(
                f"the log did not answer {name}() within {seconds:g} s; it may have taken effect (Hub(call_timeout=…))"
            ) from exc

    return within


@coroutine
def _resumed(work: CoroutineType[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    """The rest of a coroutine that has begun and is waiting for something."""
    try:
        while True:
            try:
                answer = yield waits_for
            except GeneratorExit:
                work.close()
                raise
            except BaseException as exc:  # noqa: BLE001
                waits_for = work.throw(exc)
            else:
                waits_for = work.send(answer)
    except StopIteration as done:
        result: T = done.value
        return result
