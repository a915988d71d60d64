"""
A log that answers within a time, or is unavailable.

The logs of this package give up by themselves. One of the caller's may not, and neither does a disk that hangs: without a bound,
one call that never returns would hold up all generations of a process, and nobody would learn of it.

A call that took too long is cancelled, and may have been done all the same, then or later. Whoever sends it again is safe for the
same reason as after a lost reply: a span, a note, an ending or a claim that comes late meets a log that knows it, or another
token.
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
        log: Any log; it is not closed with the one that is returned.
        seconds: Most that one call may take.
    """
    return cast(StreamLog, _Bounded(log, seconds))


class _Bounded:
    """All verbs of a log, also those that a later one has."""

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
        # To wait long for a bell is what they are for.
        return self._bells.__aiter__()


def _within(seconds: float, name: str, call: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def within(*args: Any, **options: Any) -> Any:
        work: Awaitable[Any] = call(*args, **options)
        if isinstance(work, CoroutineType):
            # A log in memory answers at once, and a timer would cost as much as what it does.
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
                f"the log did not answer {name}() within {seconds:g} s; it may have been done all the same (Hub(call_timeout=…))"
            ) from exc

    return within


@coroutine
def _resumed(work: CoroutineType[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    """The rest of a coroutine that has begun, and waits for something."""
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
