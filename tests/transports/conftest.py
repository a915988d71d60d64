"""A transport of each family over a server that is a function: no socket, so every byte can be tried."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

import resumable_stream as rs

if TYPE_CHECKING:
    from tests.conftest import Row

SSE = {"content-type": "text/event-stream"}
CUTS = ("rst", "fin", "close", "half", "silence")
"""Ways to lose a connection. `half` is a clean close inside an event; `close` a clean close wherever it falls."""
NO_WAITS = rs.RetryPolicy(wait=lambda state: 0.0)


@dataclass
class Reply:
    """A response; after its chunks the body ends as `cut` says."""

    chunks: Sequence[bytes] = ()
    cut: str = "close"
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: dict(SSE))
    # It passes for a connection of httpcore's, whose read timeout can change within a body.
    calm: bool = True


class Socketless:
    def get_extra_info(self, name: str) -> None:
        return None


Server = Callable[[Any], Reply | BaseException]


def cut(body: bytes, position: int, how: str, size: int) -> Reply:
    body = body[:position]
    if how == "half" and (not body or body.endswith((b"\n\n", b"\r\n\r\n"))):
        body += b"data: ha"
    return Reply([body[at : at + size] for at in range(0, len(body), size)], "close" if how == "half" else how)


def failure(module: Any, how: str) -> BaseException | None:
    match how:
        case "rst":
            found: BaseException = module.ReadError("reset by peer")
        case "fin":
            found = module.RemoteProtocolError("peer closed connection without sending complete message body")
        case "silence":
            found = module.ReadTimeout("timed out")
        case _:
            return None
    return found


class Rig:
    """What a test needs of one row: transports, clients, and one way to read."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.module = row.module
        self.transports = importlib.import_module(f"resumable_stream.transports.{row.family}")
        self.sent: list[Any] = []
        self.closed = 0

    def fake(self, server: Server) -> Any:
        """The next transport: hands each request to a function."""
        rig, module = self, self.module

        class Body:
            """As httpcore's: a fresh iterator goes on where the last one stopped. No generator, which trio wants closed."""

            def __init__(self, reply: Reply) -> None:
                self.left = iter(reply.chunks)
                self.error = failure(module, reply.cut)

            def __iter__(self) -> Iterator[bytes]:
                return self

            def __next__(self) -> bytes:
                for chunk in self.left:
                    return chunk
                raise self.error or StopIteration

            def __aiter__(self) -> AsyncIterator[bytes]:
                return self

            async def __anext__(self) -> bytes:
                for chunk in self.left:
                    return chunk
                raise self.error or StopAsyncIteration

            def close(self) -> None:
                rig.closed += 1

            async def aclose(self) -> None:
                rig.closed += 1

        def answer(request: Any) -> Any:
            rig.sent.append(request)
            reply = server(request)
            if isinstance(reply, BaseException):
                raise reply
            kind = type("Stream", (Body, module.SyncByteStream if rig.row.sync else module.AsyncByteStream), {})
            extensions = {"network_stream": Socketless()} if reply.calm else {}
            return module.Response(reply.status, headers=reply.headers, stream=kind(reply), extensions=extensions)

        if self.row.sync:
            return type("Next", (module.BaseTransport,), {"handle_request": lambda _, request: answer(request)})()

        async def handle(_: Any, request: Any) -> Any:
            return answer(request)

        return type("Next", (module.AsyncBaseTransport,), {"handle_async_request": handle})()

    def transport(self, next_transport: Any = None, **options: Any) -> Any:
        kind = self.transports.ResumableTransport if self.row.sync else self.transports.AsyncResumableTransport
        return kind(next_transport, **{"retry": NO_WAITS, **options})

    def client(self, server: Server | None = None, *, transport: Any = None, client: Any = None, **options: Any) -> Any:
        """A client over our transport, over a function or the network."""
        if transport is None:
            transport = self.transport(self.fake(server) if server is not None else None, **options)
        return self.row.keep(self.row.client_class(transport=transport, trust_env=False, **(client or {})))

    async def read(self, client: Any, method: str, url: str, *, raw: bool = True, **request: Any) -> tuple[Any, list[bytes]]:
        """Send a request and read its body: the response, and the chunks."""
        chunks: list[bytes] = []
        response = await self.send(client, method, url, **request)
        try:
            await self.drain(response, chunks, raw=raw)
        finally:
            await self.close(response)
        return response, chunks

    async def send(self, client: Any, method: str, url: str, **request: Any) -> Any:
        built = client.build_request(method, url, **request)
        sent = client.send(built, stream=True)
        return sent if self.row.sync else await sent

    def reader(self, response: Any, *, raw: bool = True) -> Any:
        """What the library iterates over, for `drain()` in several goes."""
        if self.row.sync:
            return response.iter_raw() if raw else response.iter_bytes()
        return response.aiter_raw() if raw else response.aiter_bytes()

    async def drain(
        self, response: Any, chunks: list[bytes], *, raw: bool = True, most: int | None = None, reader: Any = None
    ) -> None:
        """Read chunks, all or so many."""
        iterator = reader if reader is not None else self.reader(response, raw=raw)
        while most is None or len(chunks) < most:
            try:
                chunks.append(next(iterator) if self.row.sync else await anext(iterator))
            except (StopIteration, StopAsyncIteration):
                return

    async def close(self, response: Any) -> None:
        if self.row.sync:
            response.close()
        else:
            await response.aclose()


@pytest.fixture
def rig(row: Row) -> Rig:
    return Rig(row)
