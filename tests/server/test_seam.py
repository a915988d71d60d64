"""Readers attach at any moment of a stream at full speed, while bells are lost, doubled and swapped: each event comes once."""

from __future__ import annotations

import asyncio
import random

import pytest

from resumable_stream import LogUnavailable, Outcome
from resumable_stream.server import Ending, Head, MemoryLog, Span, StreamLog
from resumable_stream.server.log import Appended, Bells, Done, Writer
from resumable_stream.server.mirror import Follower, Listen, Phase, Read, Step, Wake
from resumable_stream.testing.faulty_log import FaultyLog

HEAD = Head(content_type="text/event-stream", framing="sse")
OK = Ending(outcome=Outcome.COMPLETED)
INSTANCES = 8


class Instance:
    """One process: its bells, and one mirror."""

    def __init__(self, log: StreamLog) -> None:
        self.log = log
        self.bells: Bells = log.bells()
        self.follower = Follower()
        self.changed = asyncio.Event()
        self.heard = asyncio.Event()
        self.polls = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(self.listen())
            await self.do(self.follower.listen())
            while self.follower.phase is not Phase.ENDED:
                self.heard.clear()
                try:
                    # Short, since every last bell is lost by and by.
                    async with asyncio.timeout(0.05):
                        await self.heard.wait()
                except TimeoutError:
                    self.polls += 1
                    await self.do(self.follower.poll())
            listening.cancel()
        await self.bells.aclose()

    async def listen(self) -> None:
        async for bell in self.bells:
            await self.do(self.follower.bell(bell))
            self.heard.set()

    async def do(self, steps: list[Step]) -> None:
        for step in steps:
            match step:
                case Listen():
                    while True:
                        try:
                            await self.bells.add("s")
                        except LogUnavailable:
                            # The connection was cut just now; a driver tries again.
                            await asyncio.sleep(0.01)
                        else:
                            break
                    await asyncio.sleep(0)
                    await self.do(self.follower.heard())
                case Read(after):
                    answer = await self.log.read("s", after)
                    await asyncio.sleep(0)  # the answer takes its time
                    await self.do(self.follower.read(answer))
                case Wake():
                    self.changed.set()
                    self.changed = asyncio.Event()

    async def read(self) -> list[bytes]:
        n, got = 0, b""
        while True:
            changed, mirror = self.changed, self.follower.mirror
            chunk, n = mirror.after(n) if mirror is not None else (b"", n)
            got += chunk
            if chunk:
                continue
            if mirror is not None and mirror.ending is not None:
                return got.split(b"\n\n")[:-1]
            await changed.wait()


def _play(*, seed: int, events: int, readers: int) -> None:
    async def scenario() -> None:
        chance = random.Random(seed)
        memory = MemoryLog()
        log = FaultyLog(memory, seed=seed)
        writer = await memory.create("s", HEAD, lease=600.0)
        assert isinstance(writer, Writer)
        instances = [Instance(log) for _ in range(INSTANCES)]
        starts = sorted(chance.randrange(events - 10) for _ in range(readers))
        async with asyncio.timeout(100), asyncio.TaskGroup() as group:
            reading: list[asyncio.Task[list[bytes]]] = []
            running: set[Instance] = set()
            n = b = 0
            while n < events:
                while starts and starts[0] <= n:
                    starts.pop(0)
                    instance = chance.choice(instances)
                    if instance not in running:
                        running.add(instance)
                        group.create_task(instance.run())
                    reading.append(group.create_task(instance.read()))
                some = [b"data: %d\n\n" % number for number in range(n + 1, min(events, n + chance.choice((1, 1, 2, 5))) + 1)]
                data = b"".join(some)
                n, b = n + len(some), b + len(data)
                span = Span(n=n, b=b, lengths=tuple(map(len, some)), data=data)
                assert await memory.append([(writer, span, None)]) == [Appended(n)]
                await asyncio.sleep(0)
            assert await memory.finish(writer, n, OK) == Done(events)
        expected = [b"data: %d" % number for number in range(1, events + 1)]
        assert len(reading) == readers
        assert [task.result() == expected for task in reading] == [True] * readers
        assert min(log.faults["lost"], log.faults["doubled"], log.faults["swapped"]) > 100
        assert all(instance.follower.mirror is not None and instance.follower.mirror.n == events for instance in running)

    asyncio.run(scenario())


@pytest.mark.parametrize("seed", range(3))
def test_every_reader_gets_every_event_once(seed: int) -> None:
    _play(seed=seed, events=1000, readers=100)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10, 25))
def test_many_readers_get_every_event_of_a_long_stream_once(seed: int) -> None:
    _play(seed=seed, events=2000, readers=200)
