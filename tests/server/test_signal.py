"""Who is woken, and who is called, when something happens again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from resumable_stream.server._signal import _AT_ONCE, Signal


class Counts:
    """A listener that counts, and does something else if it is told to."""

    def __init__(self, then: Callable[[], None] | None = None) -> None:
        self.heard_at: list[float] = []
        self._then = then

    def heard(self, now: float) -> None:
        self.heard_at.append(now)
        if self._then is not None:
            self._then()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await scenario()

    asyncio.run(bounded())


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(0)


def test_listeners_are_called_soon_and_not_by_who_wakes() -> None:
    async def scenario() -> None:
        signal, listener = Signal(), Counts()
        signal.listen(listener)
        before = asyncio.get_running_loop().time()
        signal.wake()
        signal.wake()
        assert not listener.heard_at
        await until(lambda: bool(listener.heard_at))
        # Both were before the call, which has seen what they are about.
        assert before <= listener.heard_at[0] <= asyncio.get_running_loop().time()
        signal.unlisten(listener)
        signal.wake()
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(listener.heard_at) == 1

    run(scenario)


def test_the_loop_gets_to_other_things_between_many_listeners() -> None:
    async def scenario() -> None:
        signal = Signal()
        listeners = [Counts() for _ in range(3 * _AT_ONCE + 1)]
        for listener in listeners:
            signal.listen(listener)
        signal.wake()
        steps = []
        while not listeners[-1].heard_at:
            await asyncio.sleep(0)
            steps.append(sum(len(each.heard_at) for each in listeners))
        assert steps == [_AT_ONCE, 2 * _AT_ONCE, 3 * _AT_ONCE, 3 * _AT_ONCE + 1]

    run(scenario)


@pytest.mark.parametrize("at", [0, 1, _AT_ONCE - 1, _AT_ONCE, 2 * _AT_ONCE - 1])
def test_a_wake_among_the_calls_is_heard_by_everybody(at: int) -> None:
    """Those who were called before it, too: what they have seen is not all there is now."""

    async def scenario() -> None:
        signal, woken = Signal(), []

        def wake() -> None:
            if not woken:
                woken.append([bool(each.heard_at) for each in listeners].count(True))
                signal.wake()

        listeners = [Counts(wake if index == at else None) for index in range(2 * _AT_ONCE)]
        for listener in listeners:
            signal.listen(listener)
        signal.wake()
        await until(lambda: all(len(each.heard_at) == 2 for each in listeners))
        assert woken == [at + 1]
        for _ in range(5):
            await asyncio.sleep(0)
        assert all(len(each.heard_at) == 2 for each in listeners)

    run(scenario)


def test_who_begins_or_stops_to_listen_among_the_calls_disturbs_nobody() -> None:
    async def scenario() -> None:
        signal, late = Signal(), Counts()

        def change() -> None:
            signal.unlisten(first)
            signal.listen(late)

        first, second = Counts(change), Counts()
        signal.listen(first)
        signal.listen(second)
        signal.wake()
        await until(lambda: bool(second.heard_at))
        assert not late.heard_at
        signal.wake()
        await until(lambda: bool(late.heard_at))
        assert (len(first.heard_at), len(second.heard_at)) == (1, 2)

    run(scenario)


def test_a_listener_that_raises_keeps_no_other_from_being_called() -> None:
    async def scenario() -> None:
        def fails() -> None:
            raise RuntimeError("of the first")

        reported = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
        signal, second = Signal(), Counts()
        signal.listen(Counts(fails))
        signal.listen(second)
        signal.wake()
        await until(lambda: bool(second.heard_at))
        assert [str(each) for each in reported] == ["of the first"]

    run(scenario)


def test_tasks_that_wait_are_woken_beside_the_listeners() -> None:
    async def scenario() -> None:
        signal, listener = Signal(), Counts()
        signal.listen(listener)
        waiting = asyncio.create_task(signal.wait(60.0))
        await asyncio.sleep(0)
        signal.wake()
        assert await waiting
        assert len(listener.heard_at) == 1
        assert not await signal.wait(0.0)

    run(scenario)
