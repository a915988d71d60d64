"""A hub behind a real uvicorn, in a thread, for tests that use real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import uvicorn
import uvicorn.server

PATIENCE = 120.0


class _Asyncio:
    """What uvicorn takes for asyncio: it looks each 0.1 s whether to go on, and takes two such looks to stop."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    async def sleep(seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01))


uvicorn.server.asyncio = _Asyncio()  # type: ignore[attr-defined]


def wait_until(true: Callable[[], object], what: str) -> None:
    """Look until it is true; a busy machine may take its time."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.005)


class Gate:
    """What a producer in the server's loop waits for, and a test opens."""

    def __init__(self) -> None:
        self._event = threading.Event()

    async def wait(self) -> None:
        # The test opens it in another thread.
        while not self._event.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    def open(self) -> None:
        self._event.set()


class Served:
    """An app that is being served."""

    def __init__(self, app: Any) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        config = uvicorn.Config(
            app, log_level="critical", lifespan="on", ws="none", timeout_graceful_shutdown=5, timeout_keep_alive=600
        )
        self._server = uvicorn.Server(config)
        self.loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            await self._server.serve(sockets=[self._listener])

        asyncio.run(serve())

    def __enter__(self) -> Served:
        self._thread.start()
        wait_until(lambda: self._server.started or not self._thread.is_alive(), "the server's start")
        assert self._server.started
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self._listener.close()

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the server's loop."""
        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)

    @contextlib.contextmanager
    def client(self, **options: Any) -> Iterator[httpx.Client]:
        with httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False, **options) as client:
            yield client

    @contextlib.contextmanager
    def raw(self, request: bytes, *, receive_buffer: int | None = None) -> Iterator[socket.socket]:
        """A socket on which a request was sent, and nothing is read by itself."""
        with socket.socket() as sock:
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.settimeout(PATIENCE)
            sock.connect(("127.0.0.1", urlsplit(self.url).port or 0))
            sock.sendall(request)
            yield sock


def read_until(sock: socket.socket, wanted: bytes) -> bytes:
    """What arrives on a socket up to and with some bytes."""
    got = b""
    while wanted not in got:
        piece = sock.recv(65536)
        assert piece, f"closed after {got!r}"
        got += piece
    return got
