"""The hub over each log, and over several processes: one generation, read exactly, whoever dies."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import resumable_stream as rs
from resumable_stream.framing import SSEDecoder
from resumable_stream.server import Cursor, Ending, Generation, Hub, MemoryLog, StreamLog
from tests.forked import Forked
from tests.redis_server import RedisServer

from ..stopping import stop_between_writes
from .producing import log_at
from .test_hub import data_of, read_all, words
from .virtual import run_in_real_time

COMPLETED = Ending(outcome=rs.Outcome.COMPLETED)
LOST = Ending(outcome=rs.Outcome.FAILED, reason="producer_lost")
Make = Callable[[], StreamLog]


@pytest.fixture(params=["memory", "sqlite", "redis"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes logs over one store."""
    if request.param == "memory":
        memory = MemoryLog()
        return lambda: memory
    text = shared(request.param, request, tmp_path)
    return lambda: log_at(text)


@pytest.fixture(params=["sqlite", "redis"])
def text(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store is that several processes share."""
    return shared(request.param, request, tmp_path)


def shared(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if kind == "redis":
        url: str = request.getfixturevalue("redis_server").url
        return url
    return str(tmp_path / "streams.db")


@pytest.fixture
def soon_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer is listened to after a tenth of a second without an event, not after one to two seconds."""
    monkeypatch.setattr("resumable_stream.server.generations._QUIET", 0.1)
    monkeypatch.setattr("resumable_stream.server.generations._LOOK", 0.05)


@contextlib.asynccontextmanager
async def hub_over(log: StreamLog, **options: Any) -> AsyncIterator[Hub]:
    try:
        async with Hub(log, **options) as hub:
            yield hub
    finally:
        if not isinstance(log, MemoryLog):
            await log.aclose()


def test_readers_that_are_cut_anywhere_go_on_at_any_instance(make: Make) -> None:
    async def scenario() -> None:
        async with hub_over(make()) as one, hub_over(make()) as two:
            await one.start("s", words(100, 0.003))

            async def cut_again_and_again(seed: int) -> list[str]:
                chance, got, after = random.Random(seed), [], None
                while True:
                    hub = chance.choice([one, two])
                    with await hub.reader("s", after) as reader:
                        chunks = [await reader.next() for _ in range(chance.randrange(1, 6))]
                        events = SSEDecoder().feed(b"".join(chunk for chunk in chunks if chunk))
                        # Cut behind any of them: what follows has not arrived.
                        taken = events[: chance.randrange(1, len(events) + 1)] if events else []
                        got += [event.data for event in taken]
                        after = Cursor.parse(taken[-1].id) if taken else after
                        if not chunks[-1] and len(taken) == len(events):
                            assert reader.ending == COMPLETED
                            return got

            for got in await asyncio.gather(*(cut_again_and_again(seed) for seed in range(20))):
                assert got == [f"word {n}" for n in range(100)]

    run_in_real_time(scenario)


def test_of_many_tabs_at_many_instances_one_generates(make: Make) -> None:
    async def scenario() -> None:
        started = []

        async def once() -> AsyncIterator[str]:
            started.append(1)
            for n in range(5):
                yield str(n)
                await asyncio.sleep(0)

        async with contextlib.AsyncExitStack() as stack:
            hubs = [await stack.enter_async_context(hub_over(make())) for _ in range(4)]
            for turn in range(5):

                async def tab(n: int, turn: int = turn) -> bytes:
                    hub = hubs[n % 4]
                    await hub.start(f"msg_{turn}", once())
                    return (await read_all(hub, f"msg_{turn}"))[0]

                bodies = await asyncio.gather(*(tab(n) for n in range(20)))
                assert len(set(bodies)) == 1 and data_of(bodies[0]) == ["0", "1", "2", "3", "4"]
                assert len(started) == turn + 1

    run_in_real_time(scenario)


def test_a_stop_and_a_message_reach_the_instance_that_generates(make: Make) -> None:
    async def scenario() -> None:
        async with hub_over(make(), lease=0.6) as one, hub_over(make(), lease=0.6) as two:

            async def agent(gen: Generation) -> None:
                while not gen.cancelled:
                    for message in await gen.wait_steered():
                        await gen.send(message.data, event="steered")

            await one.start("s", agent)
            await two.say("s", "left")
            with await two.reader("s") as reader:
                chunk = await reader.next()
                assert chunk and data_of(chunk) == ["left"]
                assert await two.cancel("s", "enough")
                while await reader.next():
                    pass
                assert reader.ending == Ending(outcome=rs.Outcome.CANCELLED, reason="enough")

    run_in_real_time(scenario)


@contextlib.asynccontextmanager
async def producer(text: str, count: int, pause: float, lease: float, *session: str) -> AsyncIterator[Forked]:
    arguments = (text, "s", str(count), str(pause), str(lease), *session)
    process = await asyncio.to_thread(Forked, "tests.server.producing", *arguments)
    assert process.stdout is not None
    try:
        assert await asyncio.to_thread(process.stdout.readline) == "started\n"
        yield process
    finally:
        process.close()


async def begun(hub: Hub) -> None:
    """Wait until the process has written something."""
    while (await hub.state("s")).n < 20:  # noqa: ASYNC110  it is another process
        await asyncio.sleep(0.01)


def test_readers_of_a_process_that_is_killed_get_all_of_it_and_an_honest_end(text: str) -> None:
    async def scenario() -> None:
        async with hub_over(log_at(text), lease=3.0, poll=0.2) as hub, producer(text, 10_000, 0.002, 3.0) as process:
            early = asyncio.create_task(read_all(hub, "s"))
            await begun(hub)
            process.kill()
            body, reader = await early
            assert reader.ending == LOST
            got = data_of(body)
            assert got == [f"word {n}" for n in range(len(got))] and got
            late, reader = await read_all(hub, "s")
            assert late == body and reader.ending == LOST

    run_in_real_time(scenario)


def test_a_killed_process_is_continued_by_another_one(text: str) -> None:
    async def scenario() -> None:
        async def go_on(gen: Generation) -> None:
            assert gen.resumed_from is not None
            for n in range(gen.resumed_from, gen.resumed_from + 20):
                await gen.send(f"word {n}")

        async with hub_over(log_at(text), lease=3.0, poll=0.2, on_lost=go_on) as hub:
            async with producer(text, 10_000, 0.002, 3.0) as process:
                early = asyncio.create_task(read_all(hub, "s"))
                await begun(hub)
                process.kill()
                body, reader = await early
            got = data_of(body)
            assert reader.ending == COMPLETED and len(got) > 20
            assert got == [f"word {n}" for n in range(len(got))]

    run_in_real_time(scenario)


def test_a_process_that_slept_past_its_lease_writes_nothing_more(text: str) -> None:
    async def scenario() -> None:
        async with hub_over(log_at(text), lease=3.0, poll=0.1) as hub, producer(text, 10_000, 0.002, 3.0) as process:
            early = asyncio.create_task(read_all(hub, "s"))
            await begun(hub)
            await stop_between_writes(process.pid, text)
            body, reader = await early
            assert reader.ending == LOST
            n = (await hub.state("s")).n
            process.send_signal(signal.SIGCONT)
            # It notices at its next write, is fenced, and its own readers get the end that the others got.
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline) == "done\n"
            assert (await hub.state("s")).n == n == len(data_of(body))

    run_in_real_time(scenario)


@pytest.mark.parametrize("how", ["kept", "empty", "away"])
def test_a_redis_that_dies_under_a_living_producer_loses_nothing(how: str) -> None:
    server = RedisServer(persistent=how == "kept").start()

    async def scenario() -> None:
        async with hub_over(log_at(server.url), poll=0.2) as one, hub_over(log_at(server.url), poll=0.2) as two:
            await one.start("s", words(150, 0.005))
            readers = [asyncio.create_task(read_all(hub, "s")) for hub in (one, two)]
            while not (one._readers and two._readers):  # noqa: ASYNC110  who begins to read while it is away is told so
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.2)
            if how == "away":
                server.pause()
                await asyncio.sleep(0.5)
                server.go_on()
            else:
                await asyncio.to_thread(server.restart, empty=how == "empty")
            for body, reader in [await task for task in readers]:
                assert data_of(body) == [f"word {n}" for n in range(150)]
                assert reader.ending == COMPLETED

    try:
        run_in_real_time(scenario)
    finally:
        server.close()


@pytest.mark.usefixtures("soon_quiet")
def test_a_producer_that_is_quiet_hears_at_once_what_is_said_at_another_instance(make: Make) -> None:
    """The lease is so long that no renewal brings the news within this test."""

    async def scenario() -> None:
        async with hub_over(make(), lease=600.0) as one, hub_over(make(), lease=600.0) as two:
            heard = asyncio.Event()

            async def thinking(gen: Generation) -> None:
                await gen.wait_steered()
                heard.set()
                await asyncio.Event().wait()

            async def silent() -> AsyncIterator[str]:
                await asyncio.Event().wait()
                yield "never"

            await one.start("told", thinking)
            await two.say("told", "left")
            await heard.wait()
            await one.start("stopped", silent())
            reading = asyncio.create_task(read_all(two, "stopped"))
            await two.cancel("stopped")
            body, reader = await reading
            assert body == b"" and reader.ending.outcome is rs.Outcome.CANCELLED
            await one.forget("told")

    run_in_real_time(scenario)
