"""The asynchronous transport, for either library, on asyncio and trio."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

import anyio

from .._drivers.async_ import AsyncResumableStream
from .._drivers.worker import in_thread
from .._errors import ResumableStreamError
from ._port import SendingPort
from ._splice import Splicing
from ._wire import Skimming, Spliced

__all__ = ["AsyncSplicedBody", "AsyncSplicingTransport"]


T = TypeVar("T")


class AsyncPort(SendingPort):
    async def send(self, request: Any, **options: Any) -> Any:
        return await self.exchange(request, options)

    async def handle(self, request: Any) -> Any:
        return await self.transport.handle_async_request(request)

    async def refreshed(self, request: Any) -> Any:
        assert self.refresh is not None
        request = self.refresh(request)
        return await request if inspect.isawaitable(request) else request

    async def ask_store(self, function: Callable[[], T]) -> T:
        return await in_thread(function)

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def close(self, response: Any) -> None:
        await response.aclose()


class AsyncSplicedStream(Skimming, AsyncResumableStream):
    """The stream below a body. Inspect or `cancel()` it; the SDK reads it."""


def _again(chunk: bytes) -> Callable[[], Awaitable[bytes]]:
    async def read() -> bytes:
        return chunk

    return read


class AsyncSplicedBody(Spliced):
    """See `Spliced`."""

    _stream: AsyncSplicedStream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        stream = self._stream
        skim, live = stream.skim, stream._live
        if skim is None or live is None or stream._busy:
            return await self._read()
        # A calm stream, inlined: any call here is paid for by every event.
        chunk = b""
        try:
            stream._busy = True
            while True:
                chunk = await live()
                whole = skim(chunk)
                if whole:
                    stream._busy = False
                    return whole
                if whole is None:
                    break
        except BaseException as failure:  # noqa: BLE001 - it is raised again where reads are judged
            stream._failure = failure
            stream.take_back(chunk)
            return await self._read()
        stream._busy = False
        return await self._read(_again(chunk), live)

    async def _read(self, read: Any = None, live: Any = None) -> bytes:
        stream = self._stream
        try:
            stream.come_back(read)
            return self._wire.of(stream.gather(await anext(stream), read, live))
        except ResumableStreamError as error:
            raise self._wire.error(error) from error.__cause__

    async def aclose(self) -> None:
        await self._close()


class AsyncSplicingTransport(Splicing):
    """See `resumable_stream.transports.httpx.AsyncResumableTransport`."""

    _default, _base = "AsyncHTTPTransport", "AsyncBaseTransport"
    _for, _instead = "an {0}.AsyncClient", "a sync {0}.Client takes the ResumableTransport"
    _port, _stream = AsyncPort, AsyncSplicedStream

    async def handle_async_request(self, request: Any) -> Any:
        return await self._answer(request)

    def handle_request(self, request: Any) -> NoReturn:
        raise self._wrong_client()

    if not TYPE_CHECKING:
        # The methods that a Client calls first, depending on how it is used.
        def __enter__(self) -> NoReturn:
            raise self._wrong_client()

        def __exit__(self, *exc: object) -> None:
            """Never entered."""

        def close(self) -> None:
            """The client of the wrong kind is closed; it has already raised the error that matters."""

    async def aclose(self) -> None:
        await self._next.aclose()

    async def __aenter__(self) -> Self:
        await self._next.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        exc: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self._next.__aexit__(kind, exc, traceback)
