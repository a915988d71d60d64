"""The seam between replay and live over a real Redis: readers attach at any moment, bells go wrong, connections are cut."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
import redis

from resumable_stream import LogUnavailable, Outcome
from resumable_stream.server import Ending, Head, RedisLog, Span
from resumable_stream.server.log import Appended, Done, Writer
from resumable_stream.testing.faulty_log import FaultyLog

from ..redis_server import RedisServer
from .test_seam import Instance

HEAD = Head(content_type="text/event-stream", framing="sse")
OK = Ending(outcome=Outcome.COMPLETED)


def _play(server: RedisServer, *, seed: int, events: int, readers: int, cuts: int) -> None:
    async def scenario() -> None:
        chance = random.Random(seed)
        producer = RedisLog(server.url)
        logs = [RedisLog(server.url) for _ in range(4)]
        faulty = [FaultyLog(log, seed=seed + number) for number, log in enumerate(logs)]
        writer = await producer.create("s", HEAD, lease=600.0)
        assert isinstance(writer, Writer)
        instances = [Instance(log) for log in faulty]
        starts = sorted(chance.randrange(events - 10) for _ in range(readers))
        cutting = sorted(chance.randrange(events - 10) for _ in range(cuts))
        reading: list[asyncio.Task[list[bytes]]] = []
        running: set[Instance] = set()
        admin: Any = redis.Redis(port=server.port)
        async with asyncio.timeout(200), asyncio.TaskGroup() as group:
            n = b = 0
            while n < events:
                while starts and starts[0] <= n:
                    starts.pop(0)
                    instance = chance.choice(instances)
                    if instance not in running:
                        running.add(instance)
                        group.create_task(instance.run())
                    reading.append(group.create_task(instance.read()))
                while cutting and cutting[0] <= n:
                    cutting.pop(0)
                    admin.client_kill_filter(_type="pubsub")
                some = [b"data: %d\n\n" % number for number in range(n + 1, min(events, n + chance.choice((1, 1, 2, 5))) + 1)]
                data = b"".join(some)
                n, b = n + len(some), b + len(data)
                span = Span(n=n, b=b, lengths=tuple(map(len, some)), data=data)
                assert await producer.append([(writer, span, None)]) == [Appended(n)]
            assert await producer.finish(writer, n, OK) == Done(events)
        admin.close()
        expected = [b"data: %d" % number for number in range(1, events + 1)]
        assert len(reading) == readers
        assert [task.result() == expected for task in reading] == [True] * readers
        assert all(sum(log.faults[fault] for log in faulty) > 20 for fault in ("lost", "doubled", "swapped"))
        for each in (producer, *logs):
            await each.aclose()

    asyncio.run(scenario())


def test_every_reader_gets_every_event_once(redis_server: RedisServer) -> None:
    _play(redis_server, seed=1, events=500, readers=60, cuts=4)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 22))
def test_many_readers_get_every_event_of_a_long_stream_once(redis_server: RedisServer, seed: int) -> None:
    _play(redis_server, seed=seed, events=2000, readers=200, cuts=20)


def test_bells_that_cannot_be_added_are_an_error_and_no_hang(own_redis: RedisServer) -> None:
    async def scenario() -> None:
        log = RedisLog(own_redis.url, socket_timeout=1.0)
        assert isinstance(await log.create("s", HEAD, lease=600.0), Writer)
        own_redis.pause()
        bells = log.bells()
        adding = [asyncio.create_task(bells.add(f"s{number}")) for number in range(20)]
        for each in await asyncio.gather(*adding, return_exceptions=True):
            assert isinstance(each, LogUnavailable)
        own_redis.go_on()
        await asyncio.gather(*(bells.add(f"s{number}") for number in range(20)))
        await log.aclose()

    asyncio.run(scenario())
