"""How a reader waits: without a timer of its own where the wait is long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from resumable_stream.server import Generation, Hub, MemoryLog
from resumable_stream.server.reading import Reader


def run(scenario: Callable[[Hub, Reader], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60), Hub(MemoryLog(), flush=0.0) as hub:
            await hub.start("s", waits)
            with await hub.reader("s") as reader:
                assert b"first" in (await reader.next() or b"")
                await scenario(hub, reader)

    asyncio.run(bounded())


async def waits(gen: Generation) -> None:
    gen.text("first")
    await gen.wait_steered()
    gen.text("second")


async def begun(reader: Reader, timeout: float | None) -> asyncio.Task[bytes | None]:
    task = asyncio.create_task(reader.next(timeout))
    while reader._waiter is None:  # noqa: ASYNC110
        await asyncio.sleep(0)
    return task


def test_a_long_wait_ends_at_the_first_tick_after_its_timeout() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        before = asyncio.get_running_loop().time()
        task = await begun(reader, 1000.0)
        reader.tick(before + 999.0)
        await asyncio.sleep(0)
        assert not task.done()
        after = asyncio.get_running_loop().time()
        reader.tick(after + 1000.0)
        # A second tick before the reader has run changes nothing.
        reader.tick(after + 1001.0)
        assert await task is None
        assert not reader._followed.grown._waiters

    run(scenario)


def test_the_clock_of_the_process_ticks() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        seen: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        reader.watch = lambda now: seen.done() or seen.set_result(now)
        task = await begun(reader, 2.0)
        assert await seen <= asyncio.get_running_loop().time()
        assert await task is None

    run(scenario)


def test_a_wait_without_a_timeout_ends_with_the_next_event() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        task = await begun(reader, None)
        reader.tick(asyncio.get_running_loop().time() + 1e9)
        await asyncio.sleep(0)
        assert not task.done()
        await hub.say("s", "go on")
        assert b"second" in (await task or b"")

    run(scenario)


def test_a_wait_that_is_given_up_leaves_nothing() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        task = await begun(reader, 1000.0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() and reader._waiter is None and not reader._followed.grown._waiters
        reader.tick(asyncio.get_running_loop().time() + 1e9)

    run(scenario)


def test_a_closed_reader_is_not_looked_at() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        assert reader in hub._following.readers
        reader.close()
        reader.close()
        assert reader not in hub._following.readers

    run(scenario)


# --- to wait without a coroutine


def test_a_pause_ends_with_the_next_event() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        waiter = reader.pause(1000.0)
        assert waiter is not None and not waiter.done()
        await hub.say("s", "go on")
        chunk = reader.resume(await waiter)
        assert chunk is not None and b"second" in chunk
        assert reader._waiter is None

    run(scenario)


def test_a_pause_ends_at_the_first_tick_after_its_timeout() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        waiter = reader.pause(1000.0)
        assert waiter is not None
        reader.tick(asyncio.get_running_loop().time() + 1001.0)
        assert reader.resume(await waiter) is None
        assert reader._waiter is None and not reader._followed.grown._waiters

    run(scenario)


def test_a_pause_that_was_ended_for_nothing_is_told_so() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        waiter = reader.pause(None)
        assert waiter is not None
        reader._followed.grown.wake()
        assert reader.resume(await waiter) == b""
        assert reader.pause(None) is not None

    run(scenario)


def test_a_wake_for_nothing_does_not_put_the_timeout_off() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        waiter = reader.pause(1000.0)
        assert waiter is not None
        due = reader._due
        reader._followed.grown.wake()
        assert reader.resume(await waiter) == b""
        waiter = reader.pause(1000.0)
        assert waiter is not None and reader._due == due
        reader.tick(due)
        assert reader.resume(await waiter) is None
        # After the timeout another one begins.
        assert reader.pause(1000.0) is not None
        assert reader._due > due - 1000.0 and reader._due != due

    run(scenario)


def test_there_is_no_pause_where_something_is_to_be_done() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        # A short timeout has a timer.
        assert reader.pause(1.9) is None
        with await hub.reader("s") as behind:
            assert behind.pause(1000.0) is None
        reader.leave()
        assert reader.pause(1000.0) is None

    run(scenario)


def test_there_is_no_pause_at_the_end_of_a_stream() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        await hub.say("s", "go on")
        while await reader.next():
            pass
        assert reader.ending is not None
        assert reader.pause(1000.0) is None

    run(scenario)


def test_a_pause_that_is_given_up_leaves_nothing_once_the_reader_is_closed() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        waiter = reader.pause(1000.0)
        assert waiter is not None
        waiter.cancel()
        reader.close()
        assert reader._waiter is None and not reader._followed.grown._waiters
        reader.tick(asyncio.get_running_loop().time() + 1e9)
        assert reader.pause(1000.0) is None

    run(scenario)
