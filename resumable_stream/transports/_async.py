"""The asynchronous transport, for either library, on asyncio and trio."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from operator import length_hint
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self

import anyio

from .._drivers.async_ import AsyncResumableStream
from .._drivers.worker import in_thread
from .._errors import ResumableStreamError
from .._twins import twin
from ._splice import Configured, Port, Skimming, Splicer, Wire
from ._start import Start

__all__ = ["AsyncSplicedBody", "AsyncSplicingTransport"]


class AsyncPort(Port):
    async def send(self, request: Any, **options: Any) -> Any:
        if self.first is not None:
            return self.take_first(request)
        self.add_cookies(request, options)
        if self.refreshes(options):
            assert self.refresh is not None
            request = self.refresh(request)
            request = self.refreshed(await request if inspect.isawaitable(request) else request)
        response = await self.transport.handle_async_request(request)
        response.request = request
        self.keep_cookies(response, options)
        return response


class AsyncSplicedStream(Skimming, AsyncResumableStream):
    """The stream below a body. Look at it, or `cancel()` it; what reads it is the SDK."""

    async def _load(self) -> None:
        """The transport has opened the store."""

    async def read(self, read: Callable[[], Awaitable[bytes]] | None = None, live: Any = None) -> list[Any]:
        """
        The next event, and what came with it. All of it is in hand until the next call.

        Args:
            read: A read of `live` that is over, to be had once more.

        Raises:
            StopAsyncIteration: The stream has ended.
        """
        if read is not None:
            self._settle()
            self._live = read
        elif self._busy:
            raise self._second_reader("task")
        found = [await anext(self)]
        if read is not None and self._live is read:
            self._live = live
        if length_hint(self._events):
            found += self._hand_rest()
        self._look_for_calm()
        return found

    async def _leave(self, state: str) -> None:
        self._settle()
        await super()._leave(state)

    async def leave(self) -> None:
        """The SDK is done with it; what it was given is taken."""
        if self._busy:
            await self.aclose()
        else:
            self._settle()
            await self.__aexit__(None, None, None)


def _again(chunk: bytes | None, failure: BaseException | None) -> Callable[[], Awaitable[bytes]]:
    async def read() -> bytes:
        if failure is not None:
            raise failure
        assert chunk is not None
        return chunk

    return read


class AsyncSplicedBody:
    """The body of a response: whole events only, across connections. One reader."""

    def __init__(self, stream: AsyncSplicedStream, wire: Wire, port: Port) -> None:
        self._stream = stream
        self._wire = wire
        self._port = port

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        stream = self._stream
        skim, live = stream.skim, stream._live
        if skim is None or live is None or stream._busy:
            return await self._read()
        # A calm stream, flat: what a call costs here is paid for every event.
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
            stream.take_back(chunk)
            return await self._read(_again(None, failure), live)
        return await self._read(_again(chunk, None), live)

    async def _read(self, read: Callable[[], Awaitable[bytes]] | None = None, live: Any = None) -> bytes:
        try:
            return self._wire.of(await self._stream.read(read, live))
        except ResumableStreamError as error:
            raise self._wire.error(error) from error.__cause__

    async def aclose(self) -> None:
        try:
            await self._stream.leave()
        except ResumableStreamError as error:
            raise self._wire.error(error) from error.__cause__
        finally:
            self._port.restore()


class AsyncSplicingTransport(Configured):
    """See `resumable_stream.transports.httpx.AsyncResumableTransport`."""

    _body: ClassVar[type[Any]]
    _default, _base = "AsyncHTTPTransport", "AsyncBaseTransport"

    async def handle_async_request(self, request: Any) -> Any:
        splicer = self._splicer
        splicer.check(request)
        request, start = splicer.prepare(request)
        try:
            return await self._handle(splicer, request, start)
        except ResumableStreamError as error:
            if isinstance(error, self._library.RequestError):
                raise
            raise twin(error, self._library, request) from error.__cause__

    async def _handle(self, splicer: Splicer, request: Any, start: Start | None) -> Any:
        port = AsyncPort(splicer.library, request, self._next, splicer.refresh)
        fence = None
        if (key := splicer.key_of(request)) is not None:
            checkpoint = await in_thread(partial(splicer.stored, key))
            if checkpoint is not None and splicer.is_place_of(key, checkpoint, request):
                plan = splicer.plan(port, protocol=splicer.named(checkpoint, request), key=key, checkpoint=checkpoint)
                stream = AsyncSplicedStream(plan)
                if splicer.answers(stream):
                    _, fence = await in_thread(partial(splicer.store.open, key))
                    stream.adopt(fence, iter(await in_thread(partial(splicer.store.replay, key))))
                    return await self._response(splicer, None, stream, port)
        response = await (self._next.handle_async_request(request) if start is None else self._start(port, request, start))
        # As the client does when it has it.
        response.request = request
        try:
            protocol = splicer.choose(port, response)
            if protocol is None:
                return response
            port.first = response
            if key is not None:
                fence = await in_thread(partial(splicer.take_over, key, request))
            stream = AsyncSplicedStream(splicer.plan(port, protocol=protocol, key=key))
            stream.adopt(fence)
            return await self._response(splicer, response, stream, port)
        except BaseException:
            await response.aclose()
            raise

    async def _start(self, port: AsyncPort, request: Any, start: Start) -> Any:
        """Send a request until it is answered."""
        send = self._next.handle_async_request
        while True:
            try:
                response = await send(request)
                wait = start.wait_for(response)
                if wait is None:
                    return response
                await response.aclose()
            except Exception as failure:
                wait = start.wait_after(failure)
                if wait is None:
                    raise
            await anyio.sleep(wait)
            # With fresh credentials, as before each reconnect.
            send = port.send

    async def _response(self, splicer: Splicer, first: Any, stream: AsyncSplicedStream, port: Port) -> Any:
        await stream.open()
        body = self._body(stream, Wire(stream, splicer.library, port.request), port)
        return splicer.response(first, stream, body)

    def handle_request(self, request: Any) -> NoReturn:
        raise self._wrong_client()

    if not TYPE_CHECKING:
        # What a Client calls first, depending on how it is used.
        def __enter__(self) -> NoReturn:
            raise self._wrong_client()

        def __exit__(self, *exc: object) -> None:
            """Never entered."""

        def close(self) -> None:
            """The client of the wrong kind is closed: what it was told before is what matters."""

    def _wrong_client(self) -> TypeError:
        library = self._library.__name__
        return TypeError(
            f"{type(self).__name__} is for an {library}.AsyncClient; a sync {library}.Client takes the ResumableTransport "
            f"of resumable_stream.transports.{library}"
        )

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
