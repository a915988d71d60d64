"""
Run a scenario on a virtual clock: its waits, leases and timeouts cost nothing, and a busy machine takes no time away from them.

For whatever needs no socket, no process and no thread of its own: a hub over a `MemoryLog`, and all that stands on it.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from resumable_stream.server import MemoryLog

T = TypeVar("T")
_LOOK = 1e-5
"""Seconds from one look at the clock to the next: it never stands still, and each step of the loop looks at it once."""


class _Jumping(selectors.DefaultSelector):
    """A selector that moves the clock instead of waiting."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        while not ready and self.loop.away and timeout != 0:
            # Somebody works in a thread: however long that takes, it takes no time.
            ready = super().select(1.0)
        if not ready and timeout is None:
            raise RuntimeError("everybody waits, and for nothing that will come")
        if not ready and timeout:
            # As epoll does, which waits for whole milliseconds.
            self.loop.now += math.ceil(timeout * 1000) / 1000
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that jumps to its next timer when there is nothing else to do."""

    def __init__(self) -> None:
        selector = _Jumping()
        # Not 0.0, which says of a lease that it is over.
        self.now = 1000.0
        self.away = 0
        super().__init__(selector)
        selector.loop = self

    def time(self) -> float:
        self.now += _LOOK
        return self.now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        future = super().run_in_executor(executor, func, *args)
        self.away += 1
        future.add_done_callback(self._back)
        return future

    async def shutdown_default_executor(self) -> None:
        self.away += self._default_executor is not None  # type: ignore[attr-defined]
        await super().shutdown_default_executor()

    def _back(self, _: object) -> None:
        self.away -= 1


async def _within(seconds: float, scenario: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async with asyncio.timeout(seconds):
        return await scenario()


def run(scenario: Callable[[], Coroutine[Any, Any, T]], seconds: float = 60.0) -> T:
    """Run a scenario that has that many virtual seconds. Each `MemoryLog` that it makes has the clock of the loop."""

    with asyncio.Runner(loop_factory=VirtualLoop) as runner, pytest.MonkeyPatch.context() as patch:
        patch.setitem(MemoryLog.__init__.__kwdefaults__, "clock", runner.get_loop().time)
        return runner.run(_within(seconds, scenario))


def run_in_real_time(scenario: Callable[[], Coroutine[Any, Any, T]], seconds: float = 200.0) -> T:
    """Run a scenario that needs sockets, processes or threads."""
    return asyncio.run(_within(seconds, scenario))
