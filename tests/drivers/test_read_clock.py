"""The clock of reads over a transport that takes no timeout from us: its own end is never taken for somebody else's."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from resumable_stream._drivers import clock
from resumable_stream._drivers.clock import ReadScope, ReadTimer, read_clock
from resumable_stream._drivers.http import RearmedTimeout

LONG = 60.0
BOTH = pytest.mark.parametrize("backend", ["asyncio", "trio"])


class Counted:
    """A loop whose timers are known."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.timers: list[asyncio.TimerHandle] = []

    def call_soon(self, *args: Any) -> Any:
        return self.loop.call_soon(*args)

    def call_later(self, *args: Any) -> Any:
        self.timers.append(self.loop.call_later(*args))
        return self.timers[-1]

    def waiting(self) -> list[asyncio.TimerHandle]:
        return [timer for timer in self.timers if not timer.cancelled() and timer in self.loop._scheduled]  # type: ignore[attr-defined]


def on_asyncio(scenario: Callable[[ReadTimer, Counted], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        loop = Counted()
        timer = ReadTimer(loop)  # type: ignore[arg-type]
        await scenario(timer, loop)
        timer.stop()
        assert loop.waiting() == []
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


def cancellations() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def silence() -> bytes:
    await anyio.sleep(LONG)
    return b"late"


async def chunk() -> bytes:
    return b"chunk"


def run_on(backend: str, scenario: Callable[[], Awaitable[None]]) -> None:
    anyio.run(scenario, backend=backend)


@BOTH
def test_a_silent_read_ends_and_leaves_no_cancellation(backend: str) -> None:
    async def scenario() -> None:
        found = read_clock()
        assert isinstance(found, ReadTimer if backend == "asyncio" else ReadScope)
        found.arm(0.02)
        for _ in range(3):
            with pytest.raises(TimeoutError, match=r"no bytes within 0\.02 seconds"):
                await found.run(silence)
            await anyio.lowlevel.checkpoint()
        assert await found.run(chunk) == b"chunk"
        found.stop()

    run_on(backend, scenario)


@BOTH
def test_time_between_reads_is_not_counted(backend: str) -> None:
    async def scenario() -> None:
        found = read_clock()
        found.arm(0.05)
        for _ in range(3):
            assert await found.run(chunk) == b"chunk"
            await anyio.sleep(0.12)
        with pytest.raises(TimeoutError):
            await found.run(silence)
        found.stop()

    run_on(backend, scenario)


@BOTH
@pytest.mark.parametrize(
    "error", [StopAsyncIteration(), ZeroDivisionError(), KeyboardInterrupt(), TimeoutError("the transport's")]
)
def test_what_a_read_raises_comes_out_as_it_is(backend: str, error: BaseException) -> None:
    async def fails() -> bytes:
        raise error

    async def scenario() -> None:
        found = read_clock()
        found.arm(LONG)
        with pytest.raises(type(error)) as caught:
            await found.run(fails)
        assert caught.value is error
        found.stop()

    run_on(backend, scenario)


@BOTH
def test_an_outer_cancellation_passes(backend: str) -> None:
    async def scenario() -> None:
        found = read_clock()
        found.arm(LONG)
        with anyio.move_on_after(0.02) as scope:
            await found.run(silence)
        assert scope.cancelled_caught
        assert await found.run(chunk) == b"chunk"
        found.stop()

    run_on(backend, scenario)


@BOTH
@pytest.mark.parametrize("when", ["before the read", "in the read", "by the read itself"])
def test_whoever_wakes_ends_the_read(backend: str, when: str) -> None:
    async def scenario() -> None:
        found = read_clock()

        async def wakes() -> bytes:
            found.wake()
            return await silence()

        if when == "before the read":
            found.wake()
        async with anyio.create_task_group() as group:
            if when == "in the read":

                async def wake() -> None:
                    await anyio.sleep(0.01)
                    found.wake()

                group.start_soon(wake)
            with pytest.raises(TimeoutError, match="the stream is being closed"):
                await found.run(wakes if when == "by the read itself" else silence)
        await anyio.lowlevel.checkpoint()
        with pytest.raises(TimeoutError, match="the stream is being closed"):
            await found.run(chunk)
        found.stop()

    run_on(backend, scenario)


def test_a_wake_that_comes_as_the_read_ends_strikes_nobody() -> None:
    async def scenario(timer: ReadTimer, loop: Counted) -> None:
        async def ends() -> bytes:
            timer.wake()
            return b"last"

        assert await timer.run(ends) == b"last"
        await asyncio.sleep(0.01)
        assert cancellations() == 0

    on_asyncio(scenario)


def test_reads_share_one_timer() -> None:
    async def scenario(timer: ReadTimer, loop: Counted) -> None:
        timer.arm(LONG)
        for _ in range(100):
            await timer.run(chunk)
        assert len(loop.timers) == 1
        timer.arm(2 * LONG)
        await timer.run(chunk)
        assert len(loop.timers) == 1, "it rings too early and looks again"
        timer.arm(LONG / 2)
        await timer.run(chunk)
        assert len(loop.timers) == 2 and len(loop.waiting()) == 1
        timer.arm(None)
        await timer.run(chunk)
        assert len(loop.timers) == 2

    on_asyncio(scenario)


def test_a_clock_that_is_off_sets_no_timer_and_an_earlier_one_strikes_nobody() -> None:
    async def scenario(timer: ReadTimer, loop: Counted) -> None:
        await timer.run(chunk)
        assert loop.timers == []
        timer.arm(0.01)
        await timer.run(chunk)
        timer.arm(None)

        async def pause() -> bytes:
            await asyncio.sleep(0.05)
            return b"at last"

        assert await timer.run(pause) == b"at last"
        assert loop.waiting() == []

    on_asyncio(scenario)


def test_a_longer_clock_is_waited_for_to_its_end() -> None:
    async def scenario(timer: ReadTimer, loop: Counted) -> None:
        timer.arm(0.02)
        await timer.run(chunk)
        timer.arm(0.1)
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            await timer.run(silence)
        assert time.monotonic() - begun >= 0.1

    on_asyncio(scenario)


def test_a_wait_that_was_held_up_with_its_data_there_is_no_timeout() -> None:
    """The loop was busy with something else for longer than the clock; the bytes have come meanwhile."""

    async def scenario(timer: ReadTimer, loop: Counted) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)

            def hold_up() -> None:
                theirs.send(b"in time")
                time.sleep(0.1)

            timer.arm(0.03)
            # In the turn after the one in which the read begins to wait.
            loop.loop.call_soon(hold_up)
            assert await timer.run(lambda: loop.loop.sock_recv(ours, 100)) == b"in time"

    on_asyncio(scenario)


# --- two cancellations at once


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("again", [0, 1])
def test_a_foreign_cancel_at_the_same_moment_goes_its_way(ours_first: bool, again: int) -> None:
    async def scenario(timer: ReadTimer, loop: Counted) -> None:
        task = asyncio.current_task()
        assert task is not None
        for _ in range(again):
            # The task has been cancelled before, and goes on all the same.
            task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)

        def both() -> None:
            for strike in (ours, task.cancel) if ours_first else (task.cancel, ours):
                strike()

        def ours() -> None:
            timer._end(timer._began)

        loop.loop.call_later(0.01, both)
        with pytest.raises(asyncio.CancelledError):
            await timer.run(silence)
        assert task.cancelling() == 1 + again
        for _ in range(1 + again):
            task.uncancel()
        await asyncio.sleep(0.01)

    on_asyncio(scenario)


@pytest.mark.parametrize("ours_first", [True, False])
def test_an_outer_timeout_of_asyncio_at_the_same_moment_is_its_own(ours_first: bool) -> None:
    async def scenario(timer: ReadTimer, loop: Counted) -> None:
        def both() -> None:
            for strike in (ours, outer._on_timeout) if ours_first else (outer._on_timeout, ours):  # type: ignore[attr-defined]
                strike()

        def ours() -> None:
            timer._end(timer._began)

        loop.loop.call_later(0.01, both)
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(LONG) as outer:
                await timer.run(silence)
        assert outer.expired() and "no bytes" not in str(caught.value)
        assert cancellations() == 0
        await asyncio.sleep(0.01)

    on_asyncio(scenario)


@pytest.mark.parametrize("ours_first", [True, False])
def test_an_outer_scope_at_the_same_moment_is_cancelled(ours_first: bool) -> None:
    async def scenario(timer: ReadTimer, loop: Counted) -> None:
        def both() -> None:
            for strike in (ours, scope.cancel) if ours_first else (scope.cancel, ours):
                strike()

        def ours() -> None:
            timer._end(timer._began)

        loop.loop.call_later(0.01, both)
        with anyio.CancelScope() as scope:
            # A scope is patient: what was ours comes out first, and the next wait is cancelled.
            with suppress(TimeoutError):
                await timer.run(silence)
            await anyio.sleep(LONG)
        assert scope.cancelled_caught
        assert cancellations() == 0
        await anyio.sleep(0.01)

    on_asyncio(scenario)


def test_a_read_that_saves_its_data_from_the_cancellation_keeps_it() -> None:
    async def scenario(timer: ReadTimer, loop: Counted) -> None:
        async def saves() -> bytes:
            with suppress(asyncio.CancelledError):
                await silence()
            return b"saved"

        timer.arm(0.01)
        assert await timer.run(saves) == b"saved"
        assert cancellations() == 0
        await asyncio.sleep(0.01)

    on_asyncio(scenario)


def test_a_read_that_takes_no_notice_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_AGAIN", 0.01)

    async def scenario(timer: ReadTimer, loop: Counted) -> None:
        async def stubborn() -> bytes:
            for _ in range(3):
                with suppress(asyncio.CancelledError):
                    await silence()
            return await silence()

        timer.arm(0.01)
        with pytest.raises(TimeoutError, match="no bytes"):
            await timer.run(stubborn)
        assert cancellations() == 0
        await asyncio.sleep(0.05)
        assert await timer.run(chunk) == b"chunk"

    on_asyncio(scenario)


def test_each_read_may_be_of_another_task() -> None:
    async def scenario(timer: ReadTimer, loop: Counted) -> None:
        timer.arm(LONG)
        assert await asyncio.wait_for(timer.run(chunk), LONG) == b"chunk"
        timer.arm(0.01)
        with pytest.raises(TimeoutError, match="no bytes"):
            await asyncio.create_task(timer.run(silence))

    on_asyncio(scenario)


# --- the timeout that a transport is handed


def test_a_timeout_is_asked_anew_in_whatever_unit_and_is_falsy_when_it_is_off() -> None:
    timeout = RearmedTimeout(1.0)
    timeout.arm(30.0)
    assert 100.0 + timeout == 130.0 and round(timeout * 1000) == 30_000 and round(1000 * timeout) == 30_000
    assert timeout
    timeout.arm(None)
    assert not timeout and 100.0 + timeout > 1e8
