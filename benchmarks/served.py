"""
The server of the serving rows: uvicorn in a separate process, whose CPU time and memory are measured.

    GET /hub/<id>             a stream of our hub
    GET /bare/<id>            the same events from a minimal ASGI app: bytes made once, one future per wait
    GET /sse-starlette/<id>   the same events by `EventSourceResponse`
    GET /bytes/<id>           the whole body of a finished stream, sent from memory

It reads commands as lines of JSON on its standard input and answers each with a line, so that the reader sets the pace: an event
is sent when every reader has the previous one. It ends with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import psutil
import uvicorn
from logs import chat, whole
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from resumable_stream.server import Generation, Hub, MemoryLog, SQLiteLog

PIECE = 256 << 10
HEAD = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]


class Bare:
    """A minimal stream: the encoded events, and the waiting readers."""

    def __init__(self) -> None:
        self.spans: list[bytes] = []
        self.events: list[tuple[int, str]] = []
        self.ended = False
        self._waiting: list[asyncio.Future[None]] = []
        self._loop = asyncio.get_running_loop()

    def wait(self) -> asyncio.Future[None]:
        future = self._loop.create_future()
        self._waiting.append(future)
        return future

    def wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def emit(self, words: list[str]) -> None:
        span = []
        for word in words:
            data = json.dumps({"text": word})
            self.events.append((len(self.events) + 1, data))
            span.append(f"id: 3f9a.{len(self.events)}\ndata: {data}\n\n")
        self.spans.append("".join(span).encode())
        self.wake()

    def end(self) -> None:
        self.ended = True
        self.wake()

    async def send(self, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        n = 0
        while True:
            if n < len(self.spans):
                body = self.spans[n] if n + 1 == len(self.spans) else b"".join(self.spans[n:])
                n = len(self.spans)
                await send({"type": "http.response.body", "body": body, "more_body": True})
            elif self.ended:
                return
            else:
                await self.wait()

    async def dictionaries(self) -> AsyncIterator[dict[str, str]]:
        n = 0
        while True:
            if n < len(self.events):
                number, data = self.events[n]
                n += 1
                yield {"id": f"3f9a.{number}", "data": data}
            elif self.ended:
                return
            else:
                await self.wait()


class Ours:
    """A stream of the hub, whose producer sends on command."""

    def __init__(self) -> None:
        self.generation: Generation | None = None
        self.begun = asyncio.Event()
        self._ended = asyncio.Event()

    async def __call__(self, generation: Generation) -> None:
        self.generation = generation
        self.begun.set()
        await self._ended.wait()

    def emit(self, words: list[str]) -> None:
        assert self.generation is not None, "the producer has not started"
        for word in words:
            self.generation.text(word)

    def end(self) -> None:
        self._ended.set()


class Served:
    """The state that the commands act on."""

    def __init__(self, log: str) -> None:
        self.log = SQLiteLog(log) if log else MemoryLog()
        self.stack = AsyncExitStack()
        self.hub: Hub | None = None
        self.streams: dict[str, Bare | Ours] = {}
        self.whole: dict[str, list[bytes]] = {}
        self.number = 0
        routes = [Route("/hub/{id}", self.ours), Route("/sse-starlette/{id}", self.peer)]
        self.starlette = Starlette(routes=routes)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        if path.startswith("/bare/"):
            await send({"type": "http.response.start", "status": 200, "headers": HEAD})
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            await self.streams[path.rpartition("/")[2]].send(send)  # type: ignore[union-attr]
            await send({"type": "http.response.body", "body": b""})
        elif path.startswith("/bytes/"):
            await send({"type": "http.response.start", "status": 200, "headers": HEAD})
            for piece in self.whole[path.rpartition("/")[2]]:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        else:
            await self.starlette(scope, receive, send)

    async def ours(self, request: Request) -> Response:
        assert self.hub is not None
        return await self.hub.respond(request, id=request.path_params["id"])

    async def peer(self, request: Request) -> Response:
        stream = self.streams[request.path_params["id"]]
        return EventSourceResponse(stream.dictionaries())  # type: ignore[union-attr]

    # --- commands

    async def restart(self) -> None:
        """A hub that does not know the contents of the log, as after a restart."""
        await self.stack.aclose()
        # No window: the reader sets the pace.
        self.hub = await self.stack.enter_async_context(Hub(self.log, flush=0.0))

    async def open(self, kind: str, ids: list[str]) -> None:
        """Replace the streams by new ones of one kind."""
        assert self.hub is not None
        self.streams, self.number = {}, 0
        for stream_id in ids:
            if kind == "hub":
                ours = self.streams[stream_id] = Ours()
                await self.hub.start(stream_id, ours)
                await ours.begun.wait()
            else:
                self.streams[stream_id] = Bare()

    async def emit(self, events: int) -> None:
        """Send that many events in each stream, at once."""
        words = [f" tok{number:06d}" for number in range(self.number, self.number + events)]
        self.number += events
        for stream in self.streams.values():
            stream.emit(words)

    async def end(self) -> None:
        """End all streams."""
        for stream in self.streams.values():
            stream.end()

    async def finished(self, id: str, tokens: int) -> int:
        """Make a finished chat answer. Returns the bytes of its body with ids."""
        assert self.hub is not None

        async def answer() -> AsyncIterator[bytes]:
            for chunk in chat(tokens, seed=id):
                yield chunk

        await self.hub.start(id, answer())
        body = await whole(self.hub, id)
        # The hub does this itself when a stream ends; this second call returns when it is done.
        await self.log.compact(id)
        self.whole[id] = [body[start : start + PIECE] for start in range(0, len(body), PIECE)]
        return len(body)

    async def usage(self) -> dict[str, float]:
        """CPU seconds of this process so far, and its bytes in memory."""
        return {"cpu": time.process_time(), "memory": psutil.Process().memory_info().rss}


async def main(log: str) -> None:
    served = Served(log)
    await served.restart()
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    # Installed by `uvicorn[standard]` where a wheel exists.
    config = uvicorn.Config(served, log_level="error", lifespan="off", backlog=2048)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    # The socket already listens; connections wait until uvicorn has started.
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(listener.getsockname()[1], flush=True)
    while line := await reader.readline():
        name, options = json.loads(line)
        answer = await getattr(served, name)(**options)
        os.write(1, json.dumps(answer).encode() + b"\n")
    server.should_exit = server.force_exit = True
    await serving
    await served.stack.aclose()


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(main(sys.argv[1]))
    else:
        uvloop.run(main(sys.argv[1]))
