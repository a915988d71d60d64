"""A real hub on two instances over one log, behind a proxy that cuts: our client gets every event once, wherever it is cut."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import resumable_stream as rs
from resumable_stream.server import Hub, MemoryLog, RedisLog, SQLiteLog, StreamLog
from resumable_stream.server.asgi import create_app
from resumable_stream.server.log import Head

from .serving import Served

EVENTS = 30
# The server asks for half a second between two connections, which 1,000 cuts would spend waiting.
AT_ONCE = rs.RetryPolicy(attempts=1000, wait=lambda state: 0.0, max_server_wait=0.0)
HEAD_BYTES = 700


class CuttingProxy:
    """Forwards each connection to the next instance; the first one is cut after so many bytes of the answer."""

    def __init__(self, instances: list[str]) -> None:
        self._instances = itertools.cycle(urlsplit(each).port for each in instances)
        self.cut_after: int | None = None
        self.sent = 0

    async def __aenter__(self) -> CuttingProxy:
        self._connections: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def everywhere(self, begin: int, step: int) -> Iterator[int]:
        """
        Where an answer is cut: after byte `begin`, and each `step` bytes further.

        The first one is not cut, and says how long an answer is.
        """
        length = None
        for place in itertools.count(begin, step):
            if length is not None and place > length:
                return
            self.cut_after, self.sent = place if length is not None else None, 0
            yield place
            length = length or self.sent

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        room, self.cut_after = self.cut_after, None
        there, back = await asyncio.open_connection("127.0.0.1", next(self._instances))
        upward = asyncio.create_task(self._pass_on(reader, back, None))
        try:
            await self._pass_on(there, writer, room)
        finally:
            upward.cancel()
            for each in (writer, back):
                each.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, room: int | None) -> None:
        try:
            while data := await reader.read(65536):
                piece = data if room is None else data[:room]
                writer.write(piece)
                await writer.drain()
                self.sent += len(piece)
                if room is not None:
                    room -= len(piece)
                    if not room:
                        return
            if writer.can_write_eof():
                writer.write_eof()
                await writer.drain()
        except ConnectionError:
            return


@pytest.fixture(params=["memory", "sqlite", "redis"])
def instances(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Served]]:
    """Two servers over one log; one for the log in memory, which belongs to one process."""
    logs: list[StreamLog] = []
    match request.param:
        case "memory":
            logs = [MemoryLog()]
        case "sqlite":
            logs = [SQLiteLog(tmp_path / "streams.db") for _ in range(2)]
        case "redis":
            url = request.getfixturevalue("redis_server").url
            logs = [RedisLog(url) for _ in range(2)]

    started: list[str] = []

    async def words(gen: Any) -> None:
        started.append(gen.id)
        for n in range(EVENTS):
            await gen.text(f"wörd {n} ")
            # In a few spans, so that a cut may come between replay and live.
            await asyncio.sleep(0.002 if n % 10 == 0 else 0)

    async def lines() -> AsyncIterator[dict[str, int]]:
        for n in range(EVENTS):
            yield {"n": n}

    served = []
    for log in logs:
        hub = Hub(log, heartbeat=1.0)
        hub.kind("words")(words)
        one = Served(create_app(hub))
        one.__enter__()
        one.hub, one.log, one.lines, one.started = hub, log, lines, started  # type: ignore[attr-defined]
        served.append(one)
    yield served
    for one in served:
        if not isinstance(one.log, MemoryLog):  # type: ignore[attr-defined]
            one.call(one.log.aclose())  # type: ignore[attr-defined]
        one.__exit__()


@pytest.mark.parametrize("step", [211, pytest.param(5, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_a_prompt_that_is_posted_is_answered_once_and_whole_wherever_it_is_cut(instances: list[Served], step: int) -> None:
    """From the first byte of the head on; named, so that a lost head is asked for again with the same key."""

    async def scenario() -> None:
        async with CuttingProxy([one.url for one in instances]) as proxy:
            whole = "".join(f"wörd {n} " for n in range(EVENTS))
            answers = 0
            for place in proxy.everywhere(1, step):
                stream = rs.aconnect(
                    "POST", f"{proxy.url}/streams", json={"kind": "words"}, protocol=rs.protocols.HubStream(), retry=AT_ONCE
                )
                async with stream:
                    text = await stream.read_text()
                assert text == whole, f"cut after byte {place}"
                assert stream.outcome is rs.Outcome.COMPLETED
                answers += 1
            assert len(instances[0].started) == answers  # type: ignore[attr-defined]

    asyncio.run(scenario())


@pytest.mark.parametrize("step", [151, pytest.param(3, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
@pytest.mark.parametrize("framing", ["sse", "ndjson"])
def test_a_stream_that_is_there_is_read_whole_wherever_it_is_cut(instances: list[Served], framing: str, step: int) -> None:
    """By detection alone, through the view with ids."""
    one = instances[0]
    content_type = "text/event-stream" if framing == "sse" else "application/x-ndjson"
    head = Head(content_type=content_type, framing=framing)  # type: ignore[arg-type]
    one.call(one.hub.start("s", one.lines(), head=head))  # type: ignore[attr-defined]

    async def scenario() -> None:
        async with CuttingProxy([each.url for each in instances]) as proxy:
            for place in proxy.everywhere(HEAD_BYTES, step):
                stream = rs.aconnect("GET", f"{proxy.url}/streams/s", retry=AT_ONCE)
                async with stream:
                    data = [event.data async for event in stream if event.event != "end"]
                assert data == [f'{{"n":{n}}}' for n in range(EVENTS)], f"cut after byte {place}"
                assert stream.outcome is rs.Outcome.COMPLETED

    asyncio.run(scenario())
