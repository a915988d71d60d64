"""
`ScriptedClient`: real httpx clients whose network is a script.

The clients that come out are genuine `httpx.Client`, `httpx2.AsyncClient` …, since code under test asks a client for its type,
builds requests with it and catches its exceptions. Only the transport below is ours: it answers each request with the next step.

One script serves both families and both colours. A failure is therefore given by a neutral name (`"read_error"`), which becomes
the exception of the family in use; the transport classes are put together at call time, since the families share no base class.
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

__all__ = ["ScriptedClient"]

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

    All clients of one `ScriptedClient` share its script: each request takes the next step.
    A step is a `Reply`; an exception to raise instead of an answer, or its neutral name; or a callable that gets the
    `RecordedRequest` and returns one of these. A request behind the last step is an `AssertionError`.

    Neutral names: `close_error`, `connect_error`, `connect_timeout`, `pool_timeout`, `proxy_error`, `read_error`, `read_timeout`,
    `remote_protocol_error`, `write_error`, `write_timeout`; they also stand between the chunks of a body.

    Args:
        script: The steps; consumed lazily, so they may be endless. A single callable answers every request.
        family: `"httpx"` or `"httpx2"`: whose clients are made.

    Attributes:
        requests: Every request so far, oldest first.
        unclosed: Bodies that were handed out and not closed yet.

    Raises:
        ImportError: `httpx2` is wanted and not installed.
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
        self._script: Iterator[Step] = itertools.repeat(script) if callable(script) else iter(script)
        self._lock = threading.Lock()

    def sync(self, **options: Any) -> Any:
        """A new `Client` of the family; `options` are its own. The caller closes it."""
        return self._family.Client(transport=self.transport(), **options)

    def asynchronous(self, **options: Any) -> Any:
        """A new `AsyncClient` of the family; `options` are its own. The caller closes it."""
        return self._family.AsyncClient(transport=self.transport(), **options)

    def transport(self) -> Any:
        """A transport of the family, sync and async in one: to put under another transport, or into an SDK's own client."""
        bases = (_Transport, self._family.BaseTransport, self._family.AsyncBaseTransport)
        return type("ScriptedTransport", bases, {})(self)

    # --- for the transport

    def _next(self, request: Any, body: bytes) -> Reply:
        """Record a request and return its answer, or raise it."""
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
                    f"request {len(self.requests)} ({request.method} {request.url}) was not expected: the script is used up"
                ) from None
        answer = step(recorded) if callable(step) else step
        if isinstance(answer, Reply):
            return answer
        raise self._error(answer, request)

    def _respond(self, request: Any, body: bytes) -> Any:
        reply = self._next(request, body)
        parts = (reply.body,) if isinstance(reply.body, bytes) else tuple(reply.body)
        bases = (_Body, self._family.SyncByteStream, self._family.AsyncByteStream)
        stream = type("ScriptedBody", bases, {})(self, request, parts)
        with self._lock:
            self.unclosed += 1
        return self._family.Response(reply.status, headers=reply.head(), stream=stream, request=request)

    def _error(self, error: object, request: Any) -> BaseException:
        if isinstance(error, BaseException):
            return error
        if not isinstance(error, str) or error not in _ERRORS:
            raise TypeError(f"expected a Reply, an exception or one of {', '.join(_ERRORS)}, got {error!r}")
        made = getattr(self._family, _ERRORS[error])(f"scripted {error}", request=request)
        assert isinstance(made, BaseException)
        return made


class _Transport:
    """What both transports of a family have in common: nothing is kept between requests."""

    def __init__(self, script: ScriptedClient) -> None:
        self._script = script

    def handle_request(self, request: Any) -> Any:
        return self._script._respond(request, request.read())

    async def handle_async_request(self, request: Any) -> Any:
        # Where a real client would wait for the network, so that a cancelled caller is noticed here too.
        await _checkpoint()
        return self._script._respond(request, await request.aread())


class _Body:
    """A body that plays its parts, sync or async."""

    def __init__(self, script: ScriptedClient, request: Any, parts: tuple[object, ...]) -> None:
        self._play = _Play(script, request, parts)
        self._script = script
        self._begun = self._closed = False

    def _begin(self) -> _Play:
        # A body off the network can be read once; a second reader would silently miss the beginning.
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
            with self._script._lock:
                self._script.unclosed -= 1

    async def aclose(self) -> None:
        self.close()


class _Play:
    """The iterator of a body. Not a generator: it may be left at any point and nothing is left to finalise."""

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


async def _checkpoint() -> None:
    import anyio.lowlevel

    await anyio.lowlevel.checkpoint()
