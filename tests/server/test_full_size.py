"""
What `make test` tries on a small scale, on a large one: many processes, many kills, a thousand readers.

Everything waits for a condition, and all bounds leave room for a busy machine. What is measured is printed (`pytest -s`).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import re
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import redis

import resumable_stream as rs
from resumable_stream.framing import NDJSONDecoder, SSEDecoder, VerbatimDecoder
from resumable_stream.server import Cursor, Ending, Generation, Head, Hub, HubLimits, MemoryLog, RedisLog, SQLiteLog
from resumable_stream.server import wire as wire_module
from resumable_stream.server.asgi import create_app
from resumable_stream.testing.faulty_log import FaultyLog
from tests.redis_server import RedisServer

from . import full_size_app
from .producing import log_at
from .serving import PATIENCE, Served, wait_until
from .test_hub import data_of, read_all
from .test_hub_over_logs import hub_over, shared

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
COMPLETED = Ending(outcome=rs.Outcome.COMPLETED)
LOST = Ending(outcome=rs.Outcome.FAILED, reason="producer_lost")


@pytest.fixture(params=["sqlite", "redis"])
def text(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store is that several processes share."""
    return shared(request.param, request, tmp_path)


@pytest.fixture(autouse=True)
def _open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8_000
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


# --- a bell that is the last one


def test_a_last_bell_that_is_lost_is_found_by_the_next_poll(text: str) -> None:
    """Nothing follows that would show the hole, so the poll alone finds it."""
    poll, rounds = 1.0, 12

    async def scenario() -> None:
        log, other = log_at(text), log_at(text)
        deaf = FaultyLog(other, lose=1.0, double=0.0, swap=0.0)
        async with hub_over(log) as one, hub_over(deaf, poll=poll) as two:  # type: ignore[arg-type]
            waits = []

            async def once(number: int) -> None:
                go_on, sent_at = asyncio.Event(), 0.0

                async def agent(gen: Generation) -> None:
                    nonlocal sent_at
                    await gen.send("first")
                    await go_on.wait()
                    await gen.send("last")
                    await gen.flush()
                    sent_at = time.monotonic()
                    await asyncio.Event().wait()

                await one.start(f"s{number}", agent)
                with await two.reader(f"s{number}") as reader:
                    got = b""
                    while b"first" not in got:
                        got += await reader.next() or b""
                    # At another moment between two polls each time.
                    await asyncio.sleep(poll * number / rounds)
                    go_on.set()
                    while b"last" not in got:
                        got += await reader.next() or b""
                    waits.append(time.monotonic() - sent_at)
                await one.cancel(f"s{number}")

            async with asyncio.timeout(250):
                await asyncio.gather(*(once(number) for number in range(rounds)))
            print(f"\nlast bell lost, poll {poll} s: found after {statistics.median(waits):.2f} s, at most {max(waits):.2f} s")
            # Nothing else looks within a lease; the rest is what a busy machine takes.
            assert statistics.median(waits) <= poll + 5
            assert max(waits) < two.lease

    asyncio.run(scenario())


# --- cut at every byte, with heartbeats in between

LANES = 100
"""Readers of one stream, each of which is cut at another byte."""
WORDS = 12


@pytest.mark.parametrize(("view", "framing"), [("verbatim", "sse"), ("verbatim", "ndjson"), ("events", "sse")])
def test_a_reader_is_exact_wherever_it_is_cut_between_heartbeats(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, view: str, framing: str
) -> None:
    """Over two instances on one Redis, at every byte of the body, comments included."""
    monkeypatch.setattr(wire_module, "HEARTBEATS", (0.01, 300.0))
    logs = [RedisLog(redis_server.url) for _ in range(2)]
    # They are looked after twice in a poll.
    hubs = [Hub(log, heartbeat=0.01, poll=0.04, flush=0.0) for log in logs]
    sent = [
        (f'data: {{"text":"wörd {n}"}}\n\n' if framing == "sse" else f'{{"text":"wörd {n}"}}\n').encode() for n in range(WORDS)
    ]
    head = Head(content_type="text/event-stream" if framing == "sse" else "application/x-ndjson", framing=framing)  # type: ignore[arg-type]
    with contextlib.ExitStack() as stack:
        served = [stack.enter_context(Served(create_app(hub))) for hub in hubs]
        for one, log in zip(served, logs, strict=True):
            stack.callback(lambda one=one, log=log: one.call(log.aclose()))
        beats = cut_in_beats = longest = place = batch = 0
        beat = wire_module.heartbeat(framing)  # type: ignore[arg-type]

        async def slow() -> AsyncIterator[bytes]:
            for event in sent:
                yield event
                await asyncio.sleep(0.05)
                # On a busy machine all of it would be written before the readers are here.
                so_far = beats
                while beats < so_far + 5:  # noqa: ASYNC110  they are counted in another thread
                    await asyncio.sleep(0.01)

        async def read(client: httpx.AsyncClient, stream_id: str, cut: int, turn: int) -> bytes:
            nonlocal beats, cut_in_beats, longest
            got, n, epoch, first = b"", 0, "", True
            while True:
                headers, params = {}, {"view": view}
                if view == "verbatim":
                    headers["Stream-Heartbeat"] = "0"
                if epoch:
                    params["after"] = f"{epoch}.{n}"
                base = served[turn % 2].url
                turn += 1
                inner: Any = SSEDecoder() if framing == "sse" else NDJSONDecoder()
                decoder = VerbatimDecoder(inner, framing=framing) if view == "verbatim" else SSEDecoder()  # type: ignore[arg-type]
                size, last = 0, b""
                # On a busy machine a connection that was kept may be closed as it is used again: one more way to be cut.
                with contextlib.suppress(httpx.RemoteProtocolError, httpx.ReadError):
                    async with client.stream("GET", f"{base}/streams/{stream_id}", params=params, headers=headers) as response:
                        if response.status_code == 204:
                            assert response.headers["stream-outcome"] == "completed"
                            return got
                        assert response.status_code == 200, await response.aread()
                        epoch = epoch or response.headers.get("stream-epoch", "")
                        async for piece in response.aiter_raw():
                            data = piece if not first else piece[: cut - size]
                            size += len(data)
                            last = last[-4:] + data
                            for item in decoder.feed(data):
                                if view == "verbatim":
                                    # What stands in front of an event is a part of its block, heartbeats too.
                                    event = item.wire
                                    while event.startswith(beat):
                                        event = event.removeprefix(beat)
                                    got, n = got + event, n + 1
                                elif item.event != "end":
                                    epoch, _, number = item.id.partition(".")
                                    assert int(number) == n + 1
                                    got, n = got + f"data: {item.data}\n\n".encode(), n + 1
                                else:
                                    assert int(item.id.partition(".")[2]) == n + 1
                                    return got
                            beats += piece.count(beat) if framing == "sse" else piece.count(b"\n\n") + (piece == beat)
                            if first and size >= cut:
                                break
                longest = max(longest, size)
                # In the middle of a comment; that of NDJSON is one byte.
                cut_in_beats += first and last.endswith((b"\n:", b"\n:\n"))
                first = False

        async def many() -> None:
            nonlocal place, batch
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False, limits=limits) as client:
                while True:
                    name = f"{view}-{framing}-{batch}"
                    served[0].call(hubs[0].start(name, slow(), head=head))
                    cuts = range(place + 1, place + 1 + LANES)
                    bodies = await asyncio.gather(*(read(client, name, cut, cut) for cut in cuts))
                    wrong = [cut for cut, body in zip(cuts, bodies, strict=True) if body != b"".join(sent)]
                    assert wrong == [], f"cut after {wrong[:5]}: {bodies[wrong[0] - cuts[0]]!r}"
                    place, batch = place + LANES, batch + 1
                    if place > longest:
                        return

        asyncio.run(many())
        print(f"\n{view}, {framing}: cut after each of {longest} bytes, {beats} heartbeats, {cut_in_beats} cuts within one")
        assert beats > 100


# --- producers that are killed


@contextlib.asynccontextmanager
async def _producer(text: str, stream_id: str, lease: float) -> AsyncIterator[asyncio.subprocess.Process]:
    command = [sys.executable, "-m", "tests.server.producing", text, stream_id, "100000", "0.002", str(lease)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"started\n"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize("how", ["ended", "continued"])
def test_producers_killed_at_any_event_leave_what_their_readers_saw(text: str, how: str) -> None:
    # A lease that a producer keeps on a busy machine, until it is killed.
    lease, kills, together = 5.0, 50, 5
    chance = random.Random(how + text[:5])

    async def scenario() -> None:
        async def go_on(gen: Generation) -> None:
            assert gen.resumed_from is not None
            for n in range(gen.resumed_from, gen.resumed_from + 5):
                await gen.send(f"word {n}")

        waits: list[float] = []
        at: list[int] = []
        on_lost: Any = "fail" if how == "ended" else go_on
        async with hub_over(log_at(text), lease=lease, poll=0.2, on_lost=on_lost) as hub:

            async def once(number: int) -> None:
                stream_id, wanted = f"s{number}", chance.randrange(1, 150)
                async with _producer(text, stream_id, lease) as process:
                    got = b""
                    with await hub.reader(stream_id) as reader:
                        while got.count(b"data: ") < wanted:
                            chunk = await reader.next()
                            assert chunk != b"", reader.ending
                            got += chunk or b""
                        # Somewhere in the next events.
                        await asyncio.sleep(chance.random() * 0.004)
                        process.kill()
                        killed = time.monotonic()
                        while chunk := await reader.next():
                            got += chunk
                    waits.append(time.monotonic() - killed)
                words = data_of(got)
                assert words == [f"word {n}" for n in range(len(words))] and len(words) >= wanted
                assert reader.ending == (LOST if how == "ended" else COMPLETED)
                late, again = await read_all(hub, stream_id)
                assert late == got and again.ending == reader.ending
                at.append(len(words))

            async with asyncio.timeout(800):
                for begin in range(0, kills, together):
                    await asyncio.gather(*(once(number) for number in range(begin, begin + together)))
        print(
            f"\n{kills} kills, at events {min(at)} to {max(at)}: {how} after {statistics.median(waits):.1f} s, {max(waits):.1f} s"
        )
        assert statistics.median(waits) <= lease + 10
        assert max(waits) <= lease + 60

    asyncio.run(scenario())


# --- servers in processes of their own


class Processes:
    """Several uvicorns over one log."""

    def __init__(self, number: int, text: str, started: Path) -> None:
        command = [sys.executable, "-m", "uvicorn", "--factory", "tests.server.full_size_app:app", "--port", "0"]
        command += ["--backlog", "2048", "--no-access-log", "--timeout-keep-alive", "600"]
        environment = {**os.environ, "LOG": text, "STARTED": str(started)}
        started.touch()
        self._files = [started.with_name(f"server-{index}") for index in range(number)]
        self.running = []
        for path in self._files:
            with path.open("wb") as file:
                self.running.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file))
        self.urls = []
        for index in range(number):
            wait_until(lambda index=index: "running on" in self.said(index), "the server's start")  # type: ignore[misc]
            found = re.search(r"running on (http://\S+)", self.said(index))
            assert found is not None
            self.urls.append(found[1])

    def said(self, index: int) -> str:
        """What a server has written so far."""
        return self._files[index].read_text(errors="replace")

    def close(self) -> None:
        for process in self.running:
            process.kill()
        for process in self.running:
            process.wait(PATIENCE)
        for index in range(len(self.running)):
            print(re.sub(r"^INFO:.*\n", "", self.said(index), flags=re.MULTILINE), end="")


@pytest.fixture
def started(tmp_path: Path) -> Path:
    return tmp_path / "started"


@pytest.fixture
def four(text: str, started: Path) -> Iterator[Processes]:
    processes = Processes(4, text, started)
    yield processes
    processes.close()


def test_of_fifty_tabs_at_four_processes_one_generates(four: Processes, started: Path) -> None:
    tabs, rounds = 50, 60
    whole = [f"word {n}" for n in range(full_size_app.EVENTS)]

    async def scenario() -> None:
        # None is kept: uvicorn closes an idle one after 5 s, perhaps just when it is used again.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(timeout=PATIENCE * 2, trust_env=False, limits=limits) as client:

            async def tab(number: int, turn: int) -> tuple[str, list[str]]:
                url = f"{four.urls[number % len(four.urls)]}/streams"
                key = {"Idempotency-Key": f"msg_{turn}"}
                response = await client.post(url, json={"kind": "answer"}, headers=key)
                assert response.status_code == 200, response.text
                events = SSEDecoder().feed(response.content)
                assert events[-1].event == "end" and '"completed"' in events[-1].data
                return events[0].id, [event.data for event in events[:-1]]

            for turn in range(rounds):
                answers = await asyncio.gather(*(tab(number, turn) for number in range(tabs)))
                assert all(words == whole for _, words in answers)
                assert len({first for first, _ in answers}) == 1

    asyncio.run(scenario())
    counted = Counter(started.read_text().split())
    assert counted == Counter({f"msg_{turn}": 1 for turn in range(rounds)})
    print(f"\n{tabs} tabs, 4 processes, {rounds} rounds: {sum(counted.values())} generations, {tabs * rounds} readers exact")


class Tab:
    """A reader of a socket, as little as it can be: what it has got, and when it was sent away."""

    def __init__(self, stream_id: str) -> None:
        self.stream_id = stream_id
        self.body = b""
        self.left_at = 0.0

    async def read(self, port: int, ready: asyncio.Semaphore) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /streams/{self.stream_id} HTTP/1.0\r\nhost: t\r\n\r\n".encode())
        try:
            while data := await reader.read(1 << 16):
                if b"data: " in data and b"data: " not in self.body:
                    self.body += data
                    ready.release()
                else:
                    self.body += data
            self.left_at = time.monotonic()
        finally:
            writer.close()


def test_a_drain_with_a_thousand_readers_is_spread_in_time_and_loses_nothing(tmp_path: Path, started: Path) -> None:
    streams, readers = 50, 1_000
    path = str(tmp_path / "streams.db")
    processes = Processes(1, path, started)
    (process,) = processes.running

    async def scenario() -> tuple[list[Tab], float, float]:
        port = urlsplit(processes.urls[0]).port
        assert port is not None
        async with httpx.AsyncClient(base_url=processes.urls[0], timeout=PATIENCE, trust_env=False) as client:
            for number in range(streams):
                key = {"Idempotency-Key": f"s{number}", "Prefer": "respond-async"}
                assert (await client.post("/streams", json={"kind": "endless"}, headers=key)).status_code == 202
        tabs = [Tab(f"s{number % streams}") for number in range(readers)]
        ready = asyncio.Semaphore(0)
        async with asyncio.timeout(250):
            reading = [asyncio.create_task(tab.read(port, ready)) for tab in tabs]
            for _ in range(readers):
                await ready.acquire()
            process.send_signal(signal.SIGTERM)
            begun = time.monotonic()
            await asyncio.gather(*reading)
            await asyncio.to_thread(process.wait, PATIENCE)
        return tabs, begun, time.monotonic() - begun

    try:
        tabs, begun, took = asyncio.run(scenario())
    finally:
        processes.close()
    left = sorted(tab.left_at - begun for tab in tabs)
    spread = left[-1] - left[0]
    print(f"\ndrain of {readers} readers: exit after {took:.2f} s, readers left over {spread:.2f} s")
    # A busy machine takes longer to end, and sees some of them leave together.
    assert full_size_app.DRAIN - 0.5 <= took <= full_size_app.DRAIN + 60
    assert spread >= 0.4 * full_size_app.SPREAD
    # And not in one heap: no tenth of the time takes half of them.
    heaps = Counter(int((moment - left[0]) / spread * 10) for moment in left)
    assert max(heaps.values()) < readers / 2, heaps

    async def rest() -> None:
        """Each comes back, to another process, with the last event that it has seen."""
        log = SQLiteLog(path)
        async with Hub(log, limits=HubLimits(readers_per_stream=readers)) as hub:
            for tab in tabs:
                body = tab.body.partition(b"\r\n\r\n")[2]
                events = SSEDecoder().feed(body)
                assert events and b"event: end" not in body
                assert body.rstrip().rpartition(b"\n")[2].startswith(b"retry: ")
                more, reader = await read_all(hub, tab.stream_id, Cursor.parse(events[-1].id))
                words = [event.data for event in events] + data_of(more)
                state = await hub.state(tab.stream_id)
                assert words == [f"word {n}" for n in range(state.n)]
                assert reader.ending is not None and reader.ending.reason == "shutdown"
        await log.aclose()

    asyncio.run(rest())


# --- one that does not read


def _memory(process: psutil.Process | None = None) -> float:
    gc.collect()
    return float((process or psutil.Process()).memory_info().rss) / 1e6


def test_a_reader_that_never_reads_stops_none_of_a_thousand() -> None:
    """In one process with its readers, so the times are those of a busy server; what counts is that they are the same."""
    readers, blocks, ticks = 1_000, 300, 40
    block = "x" * 30_000

    async def scenario() -> None:
        hub = Hub(MemoryLog(), flush=0.0, limits=HubLimits(readers_per_stream=2 * readers), send_timeout=600.0)
        generations: dict[str, Generation] = {}
        begun = {name: asyncio.Event() for name in ("first", "calm", "blocked")}

        async def agent(gen: Generation) -> None:
            generations[gen.id] = gen
            begun[gen.id].set()
            await asyncio.Event().wait()

        with Served(create_app(hub)) as served:
            port = urlsplit(served.url).port or 0

            async def tell(name: str, content: str) -> None:
                await generations[name].send(content)
                await generations[name].flush()

            p99, grown = {}, {}
            # The first one is not counted: whatever is done for the first time takes memory.
            for name in ("first", "calm", "blocked"):
                await asyncio.to_thread(served.call, hub.start(name, agent))
                await asyncio.wait_for(asyncio.wrap_future(_in(served, begun[name].wait())), PATIENCE)
                stuck = None
                if name == "blocked":
                    stuck = await _stuck(port, name)
                before = _memory()
                for _ in range(blocks):
                    await asyncio.wrap_future(_in(served, tell(name, block)))
                state = await asyncio.wrap_future(_in(served, hub.state(name)))
                latencies: list[float] = []
                arrived = asyncio.Semaphore(0)
                sent_at = 0.0

                async def one(after: str) -> None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    path = f"/streams/{name}?after={after}"  # noqa: B023  it is not kept
                    writer.write(f"GET {path} HTTP/1.0\r\nhost: t\r\n\r\n".encode())
                    await reader.readuntil(b"retry: ")
                    arrived.release()  # noqa: B023
                    try:
                        for _ in range(ticks):
                            await reader.readuntil(b"data: tick\n\n")
                            latencies.append(time.monotonic() - sent_at)  # noqa: B023
                            arrived.release()  # noqa: B023
                    finally:
                        writer.close()

                reading = [asyncio.create_task(one(f"{state.epoch}.{state.n}")) for _ in range(readers)]
                for _ in range(readers):
                    await arrived.acquire()
                for _ in range(ticks):
                    sent_at = time.monotonic()
                    await asyncio.wrap_future(_in(served, tell(name, "tick")))
                    for _ in range(readers):
                        await arrived.acquire()
                await asyncio.gather(*reading)
                latencies.sort()
                p99[name] = latencies[int(len(latencies) * 0.99)]
                grown[name] = _memory() - before
                print(f"\n{name}: p99 {p99[name] * 1e3:.0f} ms, {grown[name]:.1f} MB more")
                await asyncio.wrap_future(_in(served, hub.cancel(name)))
                if stuck is not None:
                    # Nothing was kept for it, and nothing is lost: what it had not been sent is read now.
                    stuck[1].transport.resume_reading()  # type: ignore[attr-defined]
                    body = await asyncio.wait_for(stuck[0].read(), PATIENCE)
                    stuck[1].close()
                    words = [event.data for event in SSEDecoder().feed(body.partition(b"\r\n\r\n")[2]) if event.id]
                    assert words[:-1] == [block] * blocks + ["tick"] * ticks
                await asyncio.wrap_future(_in(served, hub.forget(name)))
            # Whoever waits for the one that is stuck waits for 600 s. The machine is shared, and one may have had less of it.
            assert p99["blocked"] <= 10 * p99["calm"] + 2.0
            # A queue of its own would be the size of the stream.
            assert grown["blocked"] <= grown["calm"] + blocks * len(block) / 1e6 / 2

    async def _stuck(port: int, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(f"GET /streams/{name} HTTP/1.0\r\nhost: t\r\n\r\n".encode())
        return reader, writer

    def _in(served: Served, work: Any) -> Any:
        assert served.loop is not None
        return asyncio.run_coroutine_threadsafe(work, served.loop)

    asyncio.run(asyncio.wait_for(scenario(), 800))


# --- for a long time


def test_many_runs_leave_no_memory_no_keys_and_no_sockets(own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an agent server has them: runs that are joined, cancelled, and asked for twice in one session."""
    # What nobody has read for so long is let go of; by default only after half a minute.
    monkeypatch.setattr("resumable_stream.server.following._IDLE", 1.0)
    waves, runs, events, retention = 6, 30, 800, 8.0

    async def scenario() -> None:
        admin: Any = redis.Redis(port=own_redis.port)
        logs = [RedisLog(own_redis.url) for _ in range(2)]
        options: dict[str, Any] = {"retention": retention, "session_retention": retention, "lease": 5.0}
        outcomes: Counter[str] = Counter()
        memory = []
        async with Hub(logs[0], **options) as one, Hub(logs[1], **options) as two:
            hubs = [one, two]
            chance = random.Random(7)

            async def agent(gen: Generation) -> None:
                for n in range(events):
                    await gen.send({"n": n, "step": "values"})
                    if n % 20 == 0:
                        await asyncio.sleep(0.002)

            async def read(hub: Hub, name: str) -> None:
                body, reader = await read_all(hub, name)
                found = data_of(body)
                assert found == [f'{{"n":{n},"step":"values"}}' for n in range(len(found))]
                assert reader.ending is not None
                assert len(found) == events or reader.ending.outcome is not rs.Outcome.COMPLETED
                outcomes[reader.ending.outcome.value] += 1

            async def run(wave: int, number: int) -> None:
                name, session = f"run-{wave}-{number}", f"thread-{wave}-{number}"
                at = chance.choice(hubs)
                await at.start(name, agent, session=session)
                await at.start(name, agent, session=session)
                reading = [asyncio.create_task(read(hub, name)) for hub in hubs]
                match number % 3:
                    case 1:
                        await asyncio.sleep(chance.random() * 0.05)
                        await chance.choice(hubs).cancel(name, "enough")
                    case 2:
                        again = f"{name}-again"
                        await chance.choice(hubs).start(again, agent, session=session, if_busy="interrupt")
                        reading.append(asyncio.create_task(read(chance.choice(hubs), again)))
                await asyncio.gather(*reading)

            for wave in range(waves):
                async with asyncio.timeout(250):
                    await asyncio.gather(*(run(wave, number) for number in range(runs)))
                    # Streams of the wave before are gone from memory by themselves.
                    while admin.dbsize():  # noqa: ASYNC110  Redis tells nobody
                        await asyncio.sleep(0.1)
                memory.append(_memory())
        for log in logs:
            await log.aclose()
        admin.close()
        print(f"\n{sum(outcomes.values())} readers of {waves * runs} runs and more: {dict(outcomes)}")
        print("MB after each wave:", ", ".join(f"{found:.1f}" for found in memory))
        assert outcomes["completed"] > 0 and outcomes["cancelled"] > 0
        # The first waves fill the caches.
        assert memory[-1] <= memory[2] * 1.05 + 2

    asyncio.run(scenario())
    still = [each for each in psutil.Process().net_connections("tcp") if each.raddr and each.raddr.port == own_redis.port]
    assert still == []
