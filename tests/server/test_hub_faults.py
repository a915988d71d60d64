"""The log fails under a living producer, in every way a log can: readers get every event once, or are told the truth."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

import resumable_stream as rs
from resumable_stream.framing import SSEDecoder
from resumable_stream.server import Ending, Generation, Hub, MemoryLog
from resumable_stream.server.log import Writer
from resumable_stream.server.memory import _size_of
from resumable_stream.testing.faulty_log import FaultyLog

from .test_hub import data_of, read_all, run, words

COMPLETED = Ending(outcome=rs.Outcome.COMPLETED)


class Moody(MemoryLog):
    """
    A log that fails at random.

    `before`: the command never arrives. `after`: it does, and the reply is lost. `tail`: a fail-over loses the last spans.
    `all`: it comes back empty.
    """

    def __init__(self, chance: random.Random, *faults: str, p: float = 0.3) -> None:
        super().__init__()
        self.chance, self.faults, self.p = chance, faults, p
        self.hit: dict[str, int] = dict.fromkeys(faults, 0)

    async def append(self, batch: Any) -> Any:
        return await self._perhaps(super().append, batch)

    async def finish(self, *args: Any) -> Any:
        return await self._perhaps(super().finish, *args)

    async def renew(self, writers: Any) -> Any:
        return await self._perhaps(super().renew, writers)

    async def _perhaps(self, command: Any, *args: Any) -> Any:
        await asyncio.sleep(0)
        fault = self.chance.choice(self.faults) if self.chance.random() < self.p else None
        if fault is not None:
            self.hit[fault] += 1
        match fault:
            case "before":
                raise rs.LogUnavailable("the command got lost")
            case "after":
                await command(*args)
                raise rs.LogUnavailable("the reply got lost")
            case "tail":
                for stream in self._streams.values():
                    if stream.record.ending is None and stream.spans:
                        keep = self.chance.randrange(len(stream.spans))
                        lost = stream.spans[keep:]
                        del stream.spans[keep:]
                        self._grow(stream, -sum(map(_size_of, lost)), spans=True)
                        record = stream.record
                        record.c = keep
                        record.n -= sum(len(span.lengths) for span in lost)
                        record.b -= sum(len(span.data) for span in lost)
            case "all":
                for key in [key for key, stream in self._streams.items() if stream.record.ending is None]:
                    await self.delete(key)
        return await command(*args)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resumable_stream.server.flusher._FIRST_RETRY", 0.001)
    monkeypatch.setattr("resumable_stream.server.flusher._LAST_RETRY", 0.002)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("faults", ["before", "after", "tail", "all", "before after tail all"])
def test_a_living_producer_mends_the_log(faults: str, seed: int) -> None:
    chance = random.Random(seed)

    async def scenario() -> None:
        log = Moody(chance, *faults.split())
        async with Hub(log, flush=0.0) as hub:

            async def agent(gen: Generation) -> None:
                for n in range(60):
                    await gen.send(f"word {n}")
                    if chance.random() < 0.5:
                        await asyncio.sleep(0)
                    if n % 7 == 0:
                        await gen.flush(note=str(n))

            stream = await hub.start("s", agent)
            readers = [asyncio.create_task(read_all(hub, "s")) for _ in range(3)]
            await asyncio.sleep(0.005)
            late = await read_all(hub, "s")
            for body, reader in [late, *[await task for task in readers]]:
                assert data_of(body) == [f"word {n}" for n in range(60)]
                assert reader.ending == COMPLETED
                assert [event.id for event in SSEDecoder().feed(body)] == [f"{stream.epoch}.{n}" for n in range(1, 61)]
            # The log itself has it too.
            assert (await log.read("s")).n == 60  # type: ignore[union-attr]
            assert sum(log.hit.values()) > 0

    run(scenario)


@pytest.mark.parametrize("seed", range(5))
def test_readers_of_another_process_get_every_event_once(seed: int) -> None:
    chance = random.Random(seed)

    async def scenario() -> None:
        log = Moody(chance, "before", "after", "tail", p=0.2)
        bells = FaultyLog(log, seed=seed)
        async with Hub(log, flush=0.0) as one, Hub(bells, poll=0.05, lease=5.0) as two:
            await one.start("s", words(100, 0.001))
            bodies = await asyncio.gather(*(read_all(two, "s") for _ in range(5)))
            for body, reader in bodies:
                assert data_of(body) == [f"word {n}" for n in range(100)]
                assert reader.ending == COMPLETED

    run(scenario)


def test_a_log_that_stays_away_ends_the_stream_here_and_says_why() -> None:
    async def scenario() -> None:
        log = Moody(random.Random(1), "before", p=1.0)
        async with Hub(log, log_timeout=0.1) as hub:
            await hub.start("s", words(10_000, 0.001))
            _, reader = await read_all(hub, "s")
            assert reader.ending == Ending(outcome=rs.Outcome.FAILED, reason="log_unavailable")

    run(scenario)


def test_a_producer_that_was_superseded_writes_nothing_more() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        async with Hub(log, lease=0.05) as hub:
            stopped = asyncio.Event()

            async def agent(gen: Generation) -> None:
                try:
                    while True:
                        await gen.send("mine")
                        await asyncio.sleep(0.01)
                finally:
                    stopped.set()

            await hub.start("s", agent)
            await asyncio.sleep(0.03)
            # As after a pause: nobody renewed, and somebody else took it.
            log._streams["s"].record.until = 0.0
            other = await log.claim("s", lease=60.0)
            assert isinstance(other, Writer) and other.handover is not None
            n = other.handover.n
            await stopped.wait()
            await asyncio.sleep(0.1)
            page = await log.read("s")
            assert page.n == n  # type: ignore[union-attr]
            await log.finish(other, n, COMPLETED)
            body, reader = await read_all(hub, "s")
            assert data_of(body) == ["mine"] * n and reader.ending == COMPLETED

    run(scenario)


def test_a_note_that_was_lost_with_its_events_is_stored_again() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        gate = asyncio.Event()
        async with Hub(log, flush=0.0) as hub:

            async def agent(gen: Generation) -> None:
                await gen.send("one")
                await gen.flush()
                await gen.send("two")
                await gen.flush(note="at two")
                stream = log._streams["s"]
                stream.record.n, stream.record.b, stream.record.c = 1, len(stream.spans[0].data), 1
                stream.record.note, stream.record.note_n = None, 0
                del stream.spans[1:]
                await gen.send("three")
                await gen.flush()
                gate.set()
                await asyncio.Event().wait()

            await hub.start("s", agent)
            await gate.wait()
            record = log._streams["s"].record
            assert (record.n, record.note, record.note_n) == (3, "at two", 2)

    run(scenario)


@pytest.mark.parametrize("at", range(4))
def test_a_message_is_handed_on_until_an_event_shows_that_it_was_applied(at: int) -> None:
    """The first producer dies at each moment around a message; the second one applies what the first did not."""

    async def scenario() -> None:
        log = MemoryLog()

        async def agent(gen: Generation) -> None:
            first = gen.resumed_from is None
            await gen.send("hello")
            if first and at == 0:
                await asyncio.Event().wait()
            while True:
                for message in await gen.wait_steered():
                    if first and at == 1:
                        await asyncio.Event().wait()
                    await gen.send(message.data, event="steered")
                    if first and at == 2:
                        await gen.flush()
                        await asyncio.Event().wait()
                    if message.data == "last":
                        return
                    if first and at == 3:
                        await asyncio.Event().wait()

        one = Hub(log, lease=0.3, on_lost=agent)
        await one.__aenter__()
        await one.start("s", agent)
        await one.say("s", "turn left", mid="1")
        await asyncio.sleep(0.05)
        async with Hub(log, lease=0.3, poll=0.05, on_lost=agent) as two:
            await one.aclose()
            await two.say("s", "last", mid="2")
            body, reader = await read_all(two, "s")
            steered = [event.data for event in SSEDecoder().feed(body) if event.event == "steered"]
            assert steered == ["turn left", "last"]
            assert reader.ending == COMPLETED

    run(scenario)
