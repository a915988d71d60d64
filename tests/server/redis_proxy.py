"""A TCP proxy in front of a Redis: it loses replies, cuts connections, holds back what is sent, and changes the server."""

from __future__ import annotations

import asyncio
from types import TracebackType


class RedisProxy:
    """
    Listens on a port of its own and passes everything on.

    Attributes:
        port: Where it listens.
        target: Port of the server that new connections go to.
        connections: How many were made.
        lost: How many replies were lost.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.connections = 0
        self.lost = 0
        self._lose = 0
        self._after = b""
        self._open: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._held: bytes | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def __aenter__(self) -> RedisProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._server.close()
        self.flow()
        self.cut()
        await asyncio.gather(*self._open, return_exceptions=True)

    def lose_replies(self, count: int, *, after: bytes = b"EVALSHA") -> None:
        """The server does the next `count` requests that contain `after`, and the connections break before it answers."""
        self._lose, self._after = count, after

    def cut(self) -> None:
        """Break all connections."""
        for task in self._open:
            task.cancel()

    def hold(self, connections_with: bytes) -> None:
        """From now on pass nothing on that the server sends over connections on which this was sent. They stay open."""
        self._held = connections_with
        self._flows.clear()

    def flow(self) -> None:
        """Pass it on again."""
        self._held = None
        self._flows.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self.connections += 1
        far_writer: asyncio.StreamWriter | None = None
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
            await self._pass_on(reader, writer, far_reader, far_writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            for each in (writer, far_writer):
                if each is not None:
                    each.transport.abort()

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        far_writer: asyncio.StreamWriter,
    ) -> None:
        doomed = False
        sent = b""

        async def there() -> None:
            nonlocal doomed, sent
            while data := await reader.read(1 << 16):
                sent = (sent + data)[-(1 << 20) :]
                if self._lose > 0 and self._after in data:
                    self._lose -= 1
                    doomed = True
                far_writer.write(data)
                await far_writer.drain()

        async def back() -> None:
            while data := await far_reader.read(1 << 16):
                if doomed:
                    self.lost += 1
                    return
                while self._held is not None and self._held in sent:
                    await self._flows.wait()
                writer.write(data)
                await writer.drain()

        ways = [asyncio.create_task(there()), asyncio.create_task(back())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
