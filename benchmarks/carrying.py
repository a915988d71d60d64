"""
The input of `capacity.py`: the CPU time and memory of one send, one span, one bell and one copy.

The readers are those of `serving.py`, the producers those of `logs.py`. Only CPU time is measured, so a busy machine makes the
results less exact, but not wrong.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from statistics import median
from urllib.parse import urlsplit

import logs
import psutil
import serving

from resumable_stream.server import Head, Hub, RedisLog, Span
from resumable_stream.server.log import Append, Writer

SLOW, FAST = 20, 100
"""Events per stream and second: with the first, each is a span; with the second, a span has two or three."""
STREAMS = 50
TOGETHER = 10
"""Spans in a trip, in the rows that measure the Redis server: several processes do not share a trip."""
SUBSCRIBERS = 8
TRIPS = 2_000
EVENTS = 400
ROUNDS = 3
_PATIENCE = 60.0


def measure() -> dict[str, float]:
    """All figures, by name; see `capacity.Figures`."""
    found: dict[str, float] = {}
    found |= _sends()
    for name in logs.LOGS:
        found |= _appends(name)
    found |= _redis()
    found |= _bells()
    found |= _memory()
    found |= _replay()
    return found


def _sends() -> dict[str, float]:
    taken: dict[str, list[float]] = {"hub": [], "bare": []}
    with serving.served() as server:
        for kind in taken:
            serving.live(server, kind, readers=200, many=False, span=1, ticks=serving.TICKS)
        for _ in range(2 * ROUNDS):
            for kind, values in taken.items():
                values.append(serving.live(server, kind, readers=200, many=False, span=1, ticks=serving.TICKS))
    return {"send_us": median(taken["hub"]) * 1e6, "bare_send_us": median(taken["bare"]) * 1e6}


def _appends(name: str) -> dict[str, float]:
    """The cost of an event and of a span: two rates, two unknowns."""
    slow, fast = ([asyncio.run(logs.appending(name, STREAMS, 2.0, rate)) for _ in range(ROUNDS)] for rate in (SLOW, FAST))
    cpu = [median(each.cpu for each in found) * 1e6 for found in (slow, fast)]
    spans = [median(each.spans for each in found) for found in (slow, fast)]
    span = max((cpu[0] - cpu[1]) / (spans[0] - spans[1]), 0.0)
    return {
        f"{name}_span_us": span,
        f"{name}_event_us": max(cpu[1] - span * spans[1], 0.0),
        f"{name}_trips": median(each.trips for each in fast),
    }


# --- the Redis server


def _port(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


def _process(port: int) -> psutil.Process:
    (found,) = {each.pid for each in psutil.net_connections("tcp") if each.status == "LISTEN" and each.laddr.port == port}
    return psutil.Process(found)


def _cpu(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)


@contextmanager
def _subscribed(port: int, channels: list[bytes], number: int) -> Iterator[None]:
    """Connections that receive everything from these channels, like the processes of a deployment."""
    command = b"*%d\r\n$9\r\nSUBSCRIBE\r\n" % (len(channels) + 1)
    command += b"".join(b"$%d\r\n%b\r\n" % (len(channel), channel) for channel in channels)
    threads, connections = [], []

    heard = [0] * number

    def drain(connection: socket.socket, index: int) -> None:
        # Closed while the server still has more to send.
        with suppress(ConnectionResetError):
            while data := connection.recv(1 << 18):
                heard[index] += data.count(b"\r\nmessage\r\n")

    for index in range(number):
        connection = socket.create_connection(("127.0.0.1", port), _PATIENCE)
        connection.sendall(command)
        got = b""
        while got.count(b"subscribe") < len(channels):
            got += connection.recv(1 << 16)
        connection.settimeout(None)
        thread = threading.Thread(target=drain, args=(connection, index), daemon=True)
        thread.start()
        threads.append(thread)
        connections.append(connection)
    try:
        yield
    finally:
        for connection in connections:
            connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(_PATIENCE)
        for connection in connections:
            connection.close()
    # A message may be split over two reads.
    if min(heard) < 0.9 * TOGETHER * TRIPS:
        raise AssertionError(f"the subscribers heard {heard} of {TOGETHER * TRIPS} spans")


async def _spans(url: str, prefix: str, process: psutil.Process) -> float:
    """CPU seconds of the server per span of three events."""
    event = b'data: {"text":" tok000000"}\n\n'
    log = RedisLog(url)
    writers = []
    for number in range(TOGETHER):
        head = Head(content_type="text/event-stream", framing="sse")
        writer = await log.create(f"{prefix}-{number}", head, lease=600.0)
        assert isinstance(writer, Writer)
        writers.append(writer)
    begun = 0.0
    for trip in range(TRIPS + 5):
        if trip == 5:
            begun = _cpu(process)
        n = (trip + 1) * 3
        span = Span(n=n, b=n * len(event), lengths=(len(event),) * 3, data=event * 3)
        await log.append([Append(writer, span) for writer in writers])
    taken = _cpu(process) - begun
    await log.aclose()
    return taken / (TRIPS * TOGETHER)


def _redis() -> dict[str, float]:
    alone, heard = [], []
    with logs.redis() as url:
        process = _process(_port(url))
        for turn in range(ROUNDS):
            alone.append(asyncio.run(_spans(url, f"alone{turn}", process)))
            channels = [f"rs:{{heard{turn}-{number}}}".encode() for number in range(TOGETHER)]
            with _subscribed(_port(url), channels, SUBSCRIBERS):
                heard.append(asyncio.run(_spans(url, f"heard{turn}", process)))
    span, with_copies = median(alone) * 1e6, median(heard) * 1e6
    return {"redis_span_us": span, "redis_copy_us": max(with_copies - span, 0.0) / SUBSCRIBERS}


# --- bells, in a process that does not produce


async def _produce(url: str, seconds: float) -> None:
    producers = logs.Streams(STREAMS, SLOW)
    log = RedisLog(url)
    async with Hub(log) as hub:
        for number in range(STREAMS):
            await hub.start(f"stream-{number}", producers.produce)
        await producers.begun.wait()
        print("started", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await producers.run(seconds)
        producers.ended.set()
        await asyncio.to_thread(sys.stdin.readline)
    await log.aclose()


async def _listen(url: str, seconds: float) -> float:
    """CPU seconds of this process per span produced by another process, with one reader per stream."""
    command = [sys.executable, __file__, url, str(seconds)]
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    log = RedisLog(url)
    try:
        async with Hub(log) as hub:
            assert await process.stdout.readline() == b"started\n"
            readers = [await hub.reader(f"stream-{number}") for number in range(STREAMS)]

            async def read(number: int) -> int:
                events = 0
                with readers[number] as reader:
                    while chunk := await reader.next():
                        events += chunk.count(b'data: {"text"')
                return events

            reading = [asyncio.create_task(read(number)) for number in range(STREAMS)]
            await asyncio.sleep(0.2)  # until they have subscribed to their bells
            begun = time.process_time()
            process.stdin.write(b"go\n")
            async with asyncio.timeout(_PATIENCE):
                events = sum(await asyncio.gather(*reading))
            taken = time.process_time() - begun
            assert events == STREAMS * int(seconds * SLOW), f"{events} events arrived"
    finally:
        process.stdin.close()
        await process.wait()
        await log.aclose()
    return taken / events


def _bells() -> dict[str, float]:
    taken = []
    for _ in range(ROUNDS):
        with logs.redis() as url:
            taken.append(asyncio.run(_listen(url, 2.0)))
    return {"bell_us": median(taken) * 1e6}


# --- memory, replay


def _memory() -> dict[str, float]:
    found = {"reader_kb": serving.idle(serving.IDLE).value}
    with serving.served() as server:
        serving.live(server, "hub", readers=20, many=True, span=1, ticks=20)
        ids = [f"memory-{number}" for number in range(serving.IDLE)]
        before = server.tell("usage")["memory"]
        server.tell("open", kind="hub", ids=ids)
        opened = server.tell("usage")["memory"]
        begun = server.cpu()
        with serving.Readers(server.port, [f"/hub/{name}" for name in ids]) as group:
            group.until(lambda body: b"\r\n\r\n" in body)
            found["join_us"] = (server.cpu() - begun) / serving.IDLE * 1e6
            joined = server.tell("usage")["memory"]
            for tick in range(1, EVENTS // 4 + 1):
                server.begin("emit", events=4)
                group.until(lambda body, total=4 * tick: body.count(b"data: ") >= total)  # type: ignore[misc]
                server.answer()
            grown = server.tell("usage")["memory"] - joined
            data = sum(len(f'data: {{"text":" tok{number:06d}"}}\n\n') for number in range(EVENTS))
            server.tell("end")
    found["generation_kb"] = max(opened - before, 0) / 1e3 / serving.IDLE
    found["event_bytes"] = grown / serving.IDLE / EVENTS
    found["event_data_bytes"] = data / EVENTS
    return found


def _replay() -> dict[str, float]:
    parts: Mapping[str, float] = serving.replay(ROUNDS).parts
    return {
        "replay_held_mb_per_s": parts["held, MB per CPU second"],
        "replay_read_mb_per_s": parts["SQLiteLog, MB per CPU second"],
    }


if __name__ == "__main__":
    if len(sys.argv) == 3:
        asyncio.run(_produce(sys.argv[1], float(sys.argv[2])))
    else:
        print(json.dumps(measure(), indent=2))
