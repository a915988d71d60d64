"""
A small fleet of real hubs, in one process and on a virtual clock: the reference for the model of `fleet.py`.

Everything above the log is the package itself: `Hub`, its mirrors, leases, retries and answers. Below it, each shard of Redis is
a `MemoryLog` behind a queue: commands take their time one after another, connections are refused while it is unavailable, and
bells are lost and subscribed to again as in `RedisLog`. Readers wait like an `EventSource` or like the client half.

The loop has its own time: with nothing left to do, it jumps to the next timer. Like epoll, it rounds waits up to a millisecond.
"""

from __future__ import annotations

import asyncio
import math
import random
import selectors
import zlib
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from fleet_plan import COSTS, Plan, Report, client_wait

from resumable_stream import LogUnavailable
from resumable_stream.server import Hub, MemoryLog
from resumable_stream.server.log import Bell, reached

__all__ = ["VirtualLoop", "run_real"]


# --- time ---------------------------------------------------------------------------------------------------------------


class _Jumping(selectors.DefaultSelector):
    """A selector that does not wait: it moves the clock."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("everything waits, and nothing will happen")
            self.loop.now += math.ceil(max(timeout, 0.0) * 1000) / 1000
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose seconds take no time."""

    def __init__(self) -> None:
        selector = _Jumping()
        self.now = 0.0
        super().__init__(selector)
        selector.loop = self

    def time(self) -> float:
        return self.now


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _until(when: float) -> None:
    if (left := when - _now()) > 0:
        await asyncio.sleep(left)


# --- Redis --------------------------------------------------------------------------------------------------------------


class Shard:
    """One Redis: a log, one thread, and the commands that it received."""

    def __init__(self, plan: Plan, report: Report, number: int) -> None:
        self.plan, self.report, self.number = plan, report, number
        self.up = True
        self.busy_until = 0.0
        self.log = MemoryLog(clock=_now, max_bytes=1 << 40)

    def lose(self) -> None:
        self.up = False
        self.log = MemoryLog(clock=_now, max_bytes=1 << 40)

    async def do(self, name: str, times: int = 1) -> None:
        """The time that some commands take, with their round trip."""
        arrives = _now() + self.plan.latency / 2
        work = times * COSTS[name] * 1e-6
        self.busy_until = max(arrives, self.busy_until) + work
        self.report.commands(self.number, self.busy_until, name, times)
        await _until(self.busy_until + self.plan.latency / 2)


class Client:
    """What `RedisLog` is for a Cluster, as one instance uses it."""

    def __init__(self, fleet: RealFleet) -> None:
        self.fleet = fleet
        self.reachable = True
        self.free = asyncio.Semaphore(32)
        self.links: list[_Bells] = []

    def shard(self, key: str) -> Shard:
        return self.fleet.shards[zlib.crc32(key.encode()) % len(self.fleet.shards)]

    def shard_of(self, key: str) -> str:
        return str(self.shard(key).number)

    async def _trip(self, name: str, keys: list[str], then: Callable[[str], Awaitable[Any]]) -> list[Any]:
        try:
            async with asyncio.timeout(20.0), self.free:
                counts = Counter(self.shard(key) for key in keys)
                away = [shard for shard in counts if not (shard.up and self.reachable)]
                here = [shard for shard in counts if shard not in away]
                if away:
                    await asyncio.sleep(self.fleet.plan.latency)
                await asyncio.gather(*(shard.do(name, counts[shard]) for shard in here))
                failure = LogUnavailable("connection refused")
                found = [failure if self.shard(key) in away else await then(key) for key in keys]
        except TimeoutError:
            raise LogUnavailable("no answer within 20 s") from None
        if not self.reachable:
            raise LogUnavailable("connection refused")
        return reached(found, keys)

    async def append(self, batch: Any) -> Any:
        items = iter(batch)
        by_key = {item.writer.stream_id: item for item in items}

        async def one(key: str) -> Any:
            return (await self.shard(key).log.append([by_key[key]]))[0]

        return await self._trip("append", list(by_key), one)

    async def renew(self, writers: Any) -> Any:
        by_key = {writer.stream_id: writer for writer in writers}

        async def one(key: str) -> Any:
            return (await self.shard(key).log.renew([by_key[key]]))[0]

        return await self._trip("renew", list(by_key), one)

    async def orphans(self, limit: int = 100) -> list[str]:
        found: list[str] = []
        for shard in self.fleet.shards:
            if shard.up and self.reachable:
                found += await shard.log.orphans(limit)
            elif shard.number == 0 or not self.reachable:
                raise LogUnavailable("connection refused")
        await self.fleet.shards[0].do("orphans", 2 + len(found[:500]))
        return found[:limit]

    def bells(self) -> _Bells:
        self.links.append(_Bells(self))
        return self.links[-1]

    def __getattr__(self, name: str) -> Any:
        async def verb(first: Any, *args: Any, **options: Any) -> Any:
            key = first if isinstance(first, str) else first.stream_id

            async def one(key: str) -> Any:
                return await getattr(self.shard(key).log, name)(first, *args, **options)

            if name == "claim":
                self.fleet.report.claims += 1
            return (await self._trip(name, [key], one))[0]

        return verb


class _Bells:
    """Bells of all shards; one connection to each, which reconnects by itself."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.queue: asyncio.Queue[Bell] = asyncio.Queue()
        self.ids: dict[int, dict[str, None]] = defaultdict(dict)
        self.inner: dict[int, Any] = {}
        self.pumps: dict[int, asyncio.Task[None]] = {}

    def _connect(self, shard: Shard) -> None:
        self.inner[shard.number] = inner = shard.log.bells()

        async def pump() -> None:
            async for bell in inner:
                self.queue.put_nowait(bell)

        self.pumps[shard.number] = asyncio.ensure_future(pump())

    async def add(self, key: str) -> None:
        shard = self.client.shard(key)
        if not (shard.up and self.client.reachable):
            await asyncio.sleep(self.client.fleet.plan.latency)
            raise LogUnavailable("the bells cannot be heard")
        if shard.number not in self.inner:
            self._connect(shard)
        self.ids[shard.number][key] = None
        await shard.do("subscribe")
        if shard.number in self.inner:
            await self.inner[shard.number].add(key)

    async def discard(self, key: str) -> None:
        shard = self.client.shard(key)
        self.ids[shard.number].pop(key, None)
        if shard.number in self.inner:
            await self.inner[shard.number].discard(key)

    def lost(self, shard: Shard) -> None:
        """The connection to this shard broke; it is made again as in `_redis_bells`."""
        if shard.number in self.inner:
            del self.inner[shard.number]
            self.pumps.pop(shard.number).cancel()
            self.client.fleet.spawn(self._again(shard))

    async def _again(self, shard: Shard) -> None:
        failures = 1
        while True:
            await asyncio.sleep(min(2.0, 0.05 * 2 ** min(failures, 10)) * random.uniform(0.5, 1.0))
            failures += 1
            if shard.up and self.client.reachable:
                break
        self._connect(shard)
        for key in list(self.ids[shard.number]):
            await self.inner[shard.number].add(key)
        await shard.do("subscribe", len(self.ids[shard.number]))
        for key in list(self.ids[shard.number]):
            self.queue.put_nowait(Bell(id=key))

    def __aiter__(self) -> _Bells:
        return self

    async def __anext__(self) -> Bell:
        return await self.queue.get()

    async def aclose(self) -> None:
        for pump in self.pumps.values():
            pump.cancel()


# --- instances and readers ----------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Place:
    """An instance: a hub, its connection to Redis, and its readers."""

    number: int
    hub: Hub
    client: Client
    alive: bool = True
    routed: bool = True
    busy_until: float = 0.0
    connections: set[asyncio.Task[Any]] = field(default_factory=set)

    def cut(self) -> None:
        for connection in list(self.connections):
            connection.cancel()


class RealFleet:
    """A fleet of hubs."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.report = Report(plan)
        self.shards = [Shard(plan, self.report, number) for number in range(plan.shards)]
        self.places: list[Place] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self.made: Counter[str] = Counter()

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def add(self) -> Place:
        client = Client(self)
        hub = Hub(client, flush=self.plan.flush, on_lost=self.produce)  # type: ignore[arg-type]
        await hub.__aenter__()
        place = Place(len(self.places), hub, client)
        self.places.append(place)
        return place

    async def produce(self, gen: Any) -> None:
        """Makes its events at fixed times, so that a successor catches up."""
        n = gen.resumed_from or 0
        phase = zlib.crc32(b"phase" + gen.id.encode()) % 1000 / 1000 * self.plan.interval
        while n < self.plan.events:
            n += 1
            await _until(phase + n * self.plan.interval)
            await gen.send(f"{gen.id}:{n}")

    async def read(self, number: int, stream: str) -> None:
        """One reader, from its first request to the end of its stream."""
        plan, report = self.plan, self.report
        browser = random.random() < plan.browsers
        state = _Reading(stream, report)
        attempt, first = 0, True
        while True:
            where = random.choice([place for place in self.places if place.routed])
            if not first:
                report.reconnect(_now(), where.number)
            if where.alive:
                connection = self.spawn(self._connected(where, state, browser))
                where.connections.add(connection)
                await asyncio.wait([connection])
                where.connections.discard(connection)
                if not connection.cancelled():
                    connection.result()
            if state.done:
                break
            attempt = 0 if state.progress else attempt + 1
            state.progress, first = False, False
            await asyncio.sleep(client_wait(browser, state.retry, state.retry_after, attempt, random))
            state.retry_after = 0.0
        report.finished(number, state.n, plan.events, state.lost, state.longest)

    async def _connected(self, where: Place, state: _Reading, browser: bool) -> None:
        where.busy_until = max(_now(), where.busy_until) + self.plan.open_seconds
        await _until(where.busy_until)
        headers = {"last-event-id": state.cursor} if state.cursor else {}
        if browser:
            headers["sec-fetch-dest"] = "empty"
        answer = await where.hub.answer("GET", headers, id=state.stream, path=f"/{state.stream}")
        if answer.status == 503:
            state.retry_after = float(answer.header("retry-after") or 0)
        elif answer.status in (404, 410):
            # Its log and its producer are gone.
            state.done = state.lost = True
        elif answer.status == 204:
            state.done = True
        else:
            async for piece in answer:
                state.take(piece)

    async def kill(self, place: Place) -> None:
        """Like kill -9: none of its actions has an effect any more."""
        place.alive = place.client.reachable = False
        place.cut()
        for tasks in (place.hub._generations.tasks, place.hub._following._tasks):
            await tasks.cancel(timeout=0.0)


class _Reading:
    """What a reader has received, and whether it is correct."""

    def __init__(self, stream: str, report: Report) -> None:
        self.stream, self.report = stream, report
        self.cursor = ""
        self.n = 0
        self.retry = 3.0 if report is not None else 0.0
        self.retry_after = 0.0
        self.done = self.lost = self.progress = False
        self.longest = 0.0
        self.last = _now()

    def take(self, piece: bytes) -> None:
        for block in piece.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
            if "retry" in fields:
                self.retry = int(fields["retry"]) / 1000
            if fields.get("event") == "end":
                self.done = True
                self.lost = '"completed"' not in block
            elif "data" in fields:
                name, _, n = fields["data"].partition(":")
                self.report.check(name == self.stream and int(n) == self.n + 1 and fields["id"].endswith(f".{n}"), block)
                self.n, self.cursor, self.progress = int(n), fields["id"], True
                self.longest, self.last = max(self.longest, _now() - self.last), _now()


# --- scenarios ----------------------------------------------------------------------------------------------------------


async def _deploy(fleet: RealFleet) -> None:
    plan, old = fleet.plan, list(fleet.places)
    for start in range(0, len(old), plan.at_once):
        leaving = old[start : start + plan.at_once]
        for place in leaving:
            place.routed = False
            await fleet.add()
        await asyncio.gather(*(place.hub.drain(plan.drain_timeout, plan.drain_spread) for place in leaving))
        for place in leaving:
            await place.hub.aclose()


async def _shard(fleet: RealFleet) -> None:
    plan, shard = fleet.plan, fleet.shards[0]
    shard.lose()
    for place in fleet.places:
        for bells in place.client.links:
            bells.lost(shard)
    if plan.kill:
        await asyncio.sleep(plan.outage / 3)
        await fleet.kill(fleet.places[0])
        await asyncio.sleep(plan.probe)
        fleet.places[0].routed = False
        await asyncio.sleep(plan.outage * 2 / 3 - plan.probe)
    else:
        await asyncio.sleep(plan.outage)
    shard.up = True


async def _region(fleet: RealFleet) -> None:
    plan = fleet.plan
    cut = fleet.places[: plan.instances // 3]
    for place in cut:
        place.client.reachable = place.alive = False
        for bells in place.client.links:
            for shard in fleet.shards:
                bells.lost(shard)
        place.cut()
    await asyncio.sleep(plan.probe)
    for place in cut:
        place.routed = False
    await asyncio.sleep(2 * plan.outage - plan.probe)
    for place in cut:
        place.client.reachable = place.alive = place.routed = True


_HAPPENS = {"deploy": _deploy, "shard": _shard, "shard+kill": _shard, "region": _region}


async def _run(plan: Plan) -> Report:
    fleet = RealFleet(plan)
    for _ in range(plan.instances):
        await fleet.add()
        # Not in step: each checks its clock once a second.
        await asyncio.sleep(random.random() / plan.instances)
    names = [f"s{number}" for number in range(plan.streams)]
    for number, name in enumerate(names):
        await fleet.places[number % plan.instances].hub.start(name, fleet.produce)
    readers = [fleet.spawn(fleet.read(number, names[number % plan.streams])) for number in range(plan.readers)]
    await _until(plan.begin)
    fleet.report.begin()
    await _HAPPENS[plan.scenario](fleet)
    await asyncio.wait(readers)
    for reader in readers:
        reader.result()
    for place in fleet.places:
        if place.hub.running and place.alive:
            await place.hub.aclose()
    for task in list(fleet.tasks):
        task.cancel()
    return fleet.report


def run_real(plan: Plan) -> Report:
    """Run a scenario with real hubs."""
    random.seed(plan.seed)
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(_run(plan))
    finally:
        loop.close()
