"""
`ScriptedClient`: real httpx clients whose network is a script.

The clients are genuine `httpx.Client`, `httpx2.AsyncClient` …, because code under test checks a client's type, builds requests
with it and catches its exceptions. Only the transport is ours: it answers each request with the next step.

One script serves both families, sync and async. A failure therefore has a neutral name (`"read_error"`), which becomes the
exception of the family in use. The transport classes are created at call time, because the families share no base class.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeAlias

from .server import RecordedRequest, Reply
from .websocket import ClientSide, Expect, upgrade_headers

__all__ = ["ScriptedClient", "ScriptedSocket"]

_ERRORS = {
    "close_error": "CloseError",
    "connect_error": "ConnectError",
    "connect_timeout": "ConnectTimeout",
    "pool_timeout": "PoolTimeout",
    "proxy_error": "ProxyError",
    "read_error": "ReadError",
    "read_timeout": "ReadTimeout",
    "remote_protocol_error": "RemoteProtocolError",
    "write_error": "WriteError",
    "write_timeout": "WriteTimeout",
}

Outcome: TypeAlias = Reply | str | BaseException
Step: TypeAlias = Outcome | Callable[[RecordedRequest], Outcome]


class ScriptedClient:
    """
    A script of answers, and clients that play it.

    All clients of one `ScriptedClient` share its script: each request takes the next step. A step is a `Reply`; an exception to
    raise instead of an answer, or its neutral name; or a callable that gets the `RecordedRequest` and returns one of these. A
    request after the last step is an `AssertionError`.

    A `Reply(status=101)` opens a WebSocket. The client reads its body from the `network_stream` of the response;
    `ScriptedSocket` says what else may stand in that body. The headers that accept the request are added, unless the reply has
    its own.

    Neutral names: `close_error`, `connect_error`, `connect_timeout`, `pool_timeout`, `proxy_error`, `read_error`, `read_timeout`,
    `remote_protocol_error`, `write_error`, `write_timeout`. They are also allowed between the chunks of a body.

    Args:
        script: The steps, consumed lazily, so they may be endless. A single callable answers every request.
        family: `"httpx"` or `"httpx2"`: the library of the clients.

    Attributes:
        requests: Every request so far, oldest first.
        unclosed: Bodies that were returned but not closed yet.
        sockets: Every WebSocket so far, oldest first: what the client said is in its attributes.

    Raises:
        ImportError: `httpx2` is requested but not installed.
        ValueError: Another family.

    >>> script = ScriptedClient([Reply(body=[b"data: 1\\\\n\\\\n", "read_error"]), Reply(status=204)])
    >>> with script.sync() as client:
    ...     client.get("https://example.com/stream")
    Traceback (most recent call last):
    ...
    httpx.ReadError: scripted read_error
    """

    def __init__(
        self,
        script: Iterable[Step] | Callable[[RecordedRequest], Outcome],
        family: Literal["httpx", "httpx2"] = "httpx",
    ) -> None:
        if family not in ("httpx", "httpx2"):
            raise ValueError(f'family must be "httpx" or "httpx2", got {family!r}')
        try:
            self._family = importlib.import_module(family)
        except ImportError as exc:
            raise ImportError('family="httpx2" needs httpx2: pip install "resumable-stream-sdk[httpx2]"') from exc
        self.requests: list[RecordedRequest] = []
        self.unclosed = 0
        self.sockets: list[ScriptedSocket] = []
        self._script: Iterator[Step] = itertools.repeat(script) if callable(script) else iter(script)
        self._lock = threading.Lock()

    def sync(self, **options: Any) -> Any:
        """A new `Client` of the family; `options` are its own. The caller closes it."""
        return self._family.Client(transport=self.transport(), **options)

    def asynchronous(self, **options: Any) -> Any:
        """A new `AsyncClient` of the family; `options` are its own. The caller closes it."""
        return self._family.AsyncClient(transport=self.transport(), **options)

    def transport(self) -> Any:
        """A transport of the family, both sync and async, for use below another transport or in an SDK's client."""
        bases = (_Transport, self._family.BaseTransport, self._family.AsyncBaseTransport)
        return type("ScriptedTransport", bases, {})(self)

    # --- for the transport

    def _next(self, request: Any, body: bytes) -> tuple[RecordedRequest, Reply]:
        """Record a request and return it with its answer, or raise the answer."""
        recorded = RecordedRequest(
            method=request.method,
            url=str(request.url),
            headers={name.lower(): value for name, value in request.headers.items()},
            body=body,
            time=time.monotonic(),
            connection=len(self.requests),
        )
        with self._lock:
            self.requests.append(recorded)
            try:
                step = next(self._script)
            except StopIteration:
                raise AssertionError(
                    f"request {len(self.requests)} ({request.method} {request.url}) was not expected: the script has ended"
                ) from None
        answer = step(recorded) if callable(step) else step
        if isinstance(answer, Reply):
            return recorded, answer
        raise self._error(answer, request)

    def _respond(self, request: Any, body: bytes, network_stream: Callable[[ScriptedSocket], object]) -> Any:
        recorded, reply = self._next(request, body)
        parts = (reply.body,) if isinstance(reply.body, bytes) else tuple(reply.body)
        headers: dict[str, str] = reply.head()
        extensions: dict[str, Any] = {}
        socket: ScriptedSocket | None = None
        if reply.status == 101:
            headers = {**(upgrade_headers(recorded.headers) or {}), **{name.lower(): value for name, value in headers.items()}}
            socket = ScriptedSocket(recorded, parts, importlib.import_module(self._family.__name__.replace("httpx", "httpcore")))
            extensions, parts = {"http_version": b"HTTP/1.1", "network_stream": network_stream(socket)}, ()
        bases = (_Body, self._family.SyncByteStream, self._family.AsyncByteStream)
        stream = type("ScriptedBody", bases, {})(self, request, parts, socket)
        with self._lock:
            self.unclosed += 1
            if socket is not None:
                self.sockets.append(socket)
        return self._family.Response(reply.status, headers=headers, stream=stream, request=request, extensions=extensions)

    def _error(self, error: object, request: Any) -> BaseException:
        if isinstance(error, BaseException):
            return error
        if not isinstance(error, str) or error not in _ERRORS:
            raise TypeError(f"expected a Reply, an exception or one of {', '.join(_ERRORS)}, got {error!r}")
        made = getattr(self._family, _ERRORS[error])(f"scripted {error}", request=request)
        assert isinstance(made, BaseException)
        return made


class _Transport:
    """The common part of both transports of a family; it keeps nothing between requests."""

    def __init__(self, script: ScriptedClient) -> None:
        self._script = script

    def handle_request(self, request: Any) -> Any:
        return self._script._respond(request, request.read(), _SyncStream)

    async def handle_async_request(self, request: Any) -> Any:
        # A real client would wait for the network here, so that a cancelled caller is noticed here too.
        await _checkpoint()
        return self._script._respond(request, await request.aread(), _AsyncStream)


class _Body:
    """A body that plays its parts, sync or async."""

    def __init__(self, script: ScriptedClient, request: Any, parts: tuple[object, ...], socket: ScriptedSocket | None) -> None:
        self._play = _Play(script, request, parts)
        self._script = script
        self._socket = socket
        self._begun = self._closed = False

    def _begin(self) -> _Play:
        # A body from the network can be read once; a second reader would silently miss the beginning.
        assert not self._begun, f"the body of {self._play} was iterated twice"
        assert not self._closed, f"the body of {self._play} was iterated after it was closed"
        self._begun = True
        return self._play

    def __iter__(self) -> _Play:
        return self._begin()

    def __aiter__(self) -> _Play:
        return self._begin()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._socket is not None:
                self._socket.closed = True
            with self._script._lock:
                self._script.unclosed -= 1

    async def aclose(self) -> None:
        self.close()


class _Play:
    """The iterator of a body. Not a generator, so that it can be abandoned at any point without a finaliser."""

    def __init__(self, script: ScriptedClient, request: Any, parts: tuple[object, ...]) -> None:
        self._script = script
        self._request = request
        self._parts = iter(parts)

    def __iter__(self) -> _Play:
        return self

    def __aiter__(self) -> _Play:
        return self

    def __next__(self) -> bytes:
        for part in self._parts:
            if isinstance(part, bytes):
                return part
            if not callable(part):
                raise self._script._error(part, self._request)
            part()
        raise StopIteration

    async def __anext__(self) -> bytes:
        await _checkpoint()
        for part in self._parts:
            if isinstance(part, bytes):
                return part
            if not callable(part):
                raise self._script._error(part, self._request)
            result = part()
            if inspect.isawaitable(result):
                await result
        raise StopAsyncIteration

    def __str__(self) -> str:
        return f"{self._request.method} {self._request.url}"


class ScriptedSocket(ClientSide):
    """
    A WebSocket of a `ScriptedClient`: `Reply(status=101, body=[…])`.

    The body lists what happens, in order. Bytes are read by the client, as many as it asks for at most; `message_frames()` and
    `close_frame()` make them. An `Expect` takes the next message that the client has written. A function is called. The name of a
    failure is raised: that of a write by the client's next write, any other by its next read, as an exception of httpcore or
    httpcore2, since `network_stream` is theirs. After `"read_timeout"` the client may read on. Where the list ends, the server
    has closed the connection.

    Attributes:
        request: The request that asked for it.
        received: Every message of the client so far, oldest first: `str` for text, `bytes` for binary.
        pings, pongs: Payloads of the client's pings and pongs so far.
        close_code: Code of the client's close frame; 1005 if it had none, `None` if there was no close frame.
        close_reason: The reason in it.
        closed: The client has closed the stream.
    """

    def __init__(self, request: RecordedRequest, parts: Iterable[object], errors: Any) -> None:
        super().__init__()
        self.request = request
        self.closed = False
        self._parts = list(parts)
        self._errors = errors

    def _next(self, max_bytes: int) -> bytes | Callable[[], object]:
        """What the next read brings, or a function to call before it."""
        if self.closed:
            raise self._errors.ReadError("scripted stream: read after it was closed")
        while self._parts:
            part = self._parts.pop(0)
            match part:
                case bytes():
                    if rest := part[max_bytes:]:
                        self._parts.insert(0, rest)
                    if part:
                        return part[:max_bytes]
                case Expect():
                    assert self._unread, f"the client should have said {part.message!r} by now; it has said {self.received!r}"
                    part.check(self._unread.popleft())
                case "write_error" | "write_timeout":
                    raise AssertionError(f"the script has a {part} here, but the client reads")
                case _ if callable(part):
                    return part
                case _:
                    raise self._error(part)
        return b""

    def _write(self, data: bytes) -> None:
        if self.closed:
            raise self._errors.WriteError("scripted stream: write after it was closed")
        if self._parts and self._parts[0] in ("write_error", "write_timeout"):
            raise self._error(self._parts.pop(0))
        self._hear(data)

    def _error(self, error: object) -> BaseException:
        if isinstance(error, BaseException):
            return error
        made = getattr(self._errors, _ERRORS.get(str(error), ""), None)
        if made is None:
            raise TypeError(f"expected bytes, an Expect, a function, an exception or the name of one of httpcore, got {error!r}")
        raised = made(f"scripted {error}")
        assert isinstance(raised, BaseException)
        return raised


class _SyncStream:
    """`network_stream` of a sync client: what httpcore's has, less TLS."""

    def __init__(self, socket: ScriptedSocket) -> None:
        self._socket = socket

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        while not isinstance(part := self._socket._next(max_bytes), bytes):
            part()
        return part

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._socket._write(buffer)

    def close(self) -> None:
        self._socket.closed = True

    def get_extra_info(self, info: str) -> None:
        return None


class _AsyncStream:
    """`network_stream` of an async client."""

    def __init__(self, socket: ScriptedSocket) -> None:
        self._socket = socket

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        await _checkpoint()
        while not isinstance(part := self._socket._next(max_bytes), bytes):
            result = part()
            if inspect.isawaitable(result):
                await result
        return part

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await _checkpoint()
        self._socket._write(buffer)

    async def aclose(self) -> None:
        self._socket.closed = True

    def get_extra_info(self, info: str) -> None:
        return None


async def _checkpoint() -> None:
    import anyio.lowlevel

    await anyio.lowlevel.checkpoint()
