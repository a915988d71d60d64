"""
The servers of the relay's rows, each in its own process: an API that streams, and the servers in front of it.

    relayed.py upstream                    the API: one HTTP chunk for each token, by the clock
    relayed.py hub LOG                     an app with a hub that makes the same tokens, by the same clock
    relayed.py relay LOG PORT              our relay
    relayed.py httpx "" PORT               a proxy as Starlette and httpx make one, without a log
    relayed.py aiohttp "" PORT             the same over aiohttp

LOG is the URL of a Redis; empty: a log in memory. All except the API run in uvicorn with the same settings. Like `served.py`,
each reads commands as lines of JSON and answers each with a line. A stream sends its head at once, its first token after `go`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from relaying import answer
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from resumable_stream.server import Hub, MemoryLog, RedisLog, Relay

PATH = "/v1/chat/completions"
_CONNECT, _IDLE = 10.0, 600.0
"""The clock of the tokens, shared by all servers."""
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_HOP = frozenset((b"connection", b"content-length", b"host", b"transfer-encoding"))


class Clock:
    """When the events of each stream are due. Streams are not in step with one another."""

    def __init__(self) -> None:
        self._going: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._random = random.Random(7)

    def go(self) -> None:
        """Begin with the current streams; later ones wait for the next `go()`."""
        self._going.set_result(asyncio.get_running_loop().time())
        self._going = asyncio.get_running_loop().create_future()

    async def events(self, body: bytes) -> AsyncIterator[bytes]:
        """Yield the events that the body of a request asks for, each when it is due."""
        asked, loop = json.loads(body), asyncio.get_running_loop()
        pause = 1 / asked["per_second"]
        begun = await asyncio.shield(self._going) + self._random.random() * pause
        for number, event in enumerate(answer(asked["max_tokens"])):
            await asyncio.sleep(begun + number * pause - loop.time())
            yield event


# --- the API


async def api(clock: Clock) -> socket.socket:
    """Start to serve like an API, and return the address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                size = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
                body = await reader.readexactly(size)
                writer.write(_HEAD)
                async for event in clock.events(body):
                    writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                writer.write(b"0\r\n\r\n")
        writer.close()

    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    await asyncio.start_server(serve, sock=listener)
    return listener


# --- the servers in front of it


def _kept(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [each for each in headers if each[0].lower() not in _HOP]


@contextlib.asynccontextmanager
async def by_hub(log: Any, clock: Clock) -> AsyncIterator[Any]:
    """An app that makes its tokens."""
    async with Hub(log) as hub:

        async def create(request: Request) -> Response:
            return await hub.respond(request, clock.events(await request.body()))

        yield Starlette(routes=[Route(PATH, create, methods=["POST"])])


@contextlib.asynccontextmanager
async def by_relay(log: Any, upstream: str) -> AsyncIterator[Any]:
    """Our relay."""
    async with Relay(upstream, log, connect=_CONNECT, idle=_IDLE) as relay:
        yield relay


@contextlib.asynccontextmanager
async def by_httpx(upstream: str) -> AsyncIterator[Any]:
    """The proxy that the documentation of Starlette and httpx suggests."""
    import httpx

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=httpx.Timeout(_IDLE, connect=_CONNECT), limits=limits) as client:

        async def pass_on(request: Request) -> Response:
            url, headers = f"{upstream}{PATH}", _kept(request.headers.raw)
            sent = client.build_request("POST", url, headers=headers, content=await request.body())
            response = await client.send(sent, stream=True)
            passed = StreamingResponse(
                response.aiter_raw(), status_code=response.status_code, background=BackgroundTask(response.aclose)
            )
            passed.raw_headers = _kept(response.headers.raw)
            return passed

        yield Starlette(routes=[Route(PATH, pass_on, methods=["POST"])])


@contextlib.asynccontextmanager
async def by_aiohttp(upstream: str) -> AsyncIterator[Any]:
    """The same over aiohttp."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_IDLE)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False, timeout=timeout) as client:

        async def pass_on(request: Request) -> Response:
            headers = [(name.decode(), value.decode()) for name, value in _kept(request.headers.raw)]
            response = await client.post(f"{upstream}{PATH}", headers=headers, data=await request.body())

            async def close() -> None:
                response.close()

            passed = StreamingResponse(response.content.iter_any(), status_code=response.status, background=BackgroundTask(close))
            passed.raw_headers = _kept(list(response.raw_headers))
            return passed

        yield Starlette(routes=[Route(PATH, pass_on, methods=["POST"])])


# --- the process


async def main(kind: str, log: str = "", port: str = "") -> None:
    clock = Clock()
    async with contextlib.AsyncExitStack() as stack:
        upstream = f"http://127.0.0.1:{port}"
        store = RedisLog(log) if log else MemoryLog()
        stack.push_async_callback(store.aclose)
        serving: asyncio.Task[None] | None = None
        if kind == "upstream":
            listener = await api(clock)
        else:
            app = await stack.enter_async_context(
                {
                    "hub": lambda: by_hub(store, clock),
                    "relay": lambda: by_relay(store, upstream),
                    "httpx": lambda: by_httpx(upstream),
                    "aiohttp": lambda: by_aiohttp(upstream),
                }[kind]()
            )
            listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
            server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", backlog=2048))
            serving = asyncio.create_task(server.serve(sockets=[listener]))
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        print(listener.getsockname()[1], flush=True)
        while line := await reader.readline():
            name, _ = json.loads(line)
            found = None
            if name == "go":
                clock.go()
            else:
                found = {"cpu": time.process_time()}
            os.write(1, json.dumps(found).encode() + b"\n")
        if serving is not None:
            server.should_exit = server.force_exit = True
            await serving


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(main(*sys.argv[1:]))
    else:
        uvloop.run(main(*sys.argv[1:]))
