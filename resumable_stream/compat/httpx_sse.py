"""
httpx-sse's own interface over a stream that resumes.

    from httpx_sse import connect_sse                           # before
    from resumable_stream.compat.httpx_sse import connect_sse   # after

    with connect_sse(client, "GET", url) as event_source:
        for sse in event_source.iter_sse():
            print(sse.event, sse.data, sse.id, sse.retry)

A cut is resumed inside `iter_sse()`. What cannot be resumed raises what httpx raises there; it is a
`ResumableStreamError` with a checkpoint as well.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Final, NoReturn

import httpx_sse
from httpx_sse import ServerSentEvent, SSEError

from .._api import aconnect, connect
from .._checkpoint import Checkpoint
from .._core.actions import Notice
from .._core.interfaces import ResumeProtocol
from .._drivers.async_ import AsyncResumableStream
from .._drivers.sync import ResumableStream
from .._errors import ResumableStreamError, StreamBusy, StreamReset, UnexpectedContentType
from .._policy import RetryPolicy
from .._settings import Limits, Timeouts
from .._twins import library_of
from ..framing import SSEDecoder
from ._errors import twin
from ._opening import EVENT_STREAM, NoEventStream, WatchedAsyncClient, WatchedClient, is_event_stream

__all__ = [
    # opening
    "connect_sse",
    "aconnect_sse",
    "EventSource",
    # of httpx-sse
    "ServerSentEvent",
    "SSEError",
]


@contextmanager
def connect_sse(
    client: Any,
    method: str,
    url: Any,
    *,
    protocol: ResumeProtocol | None = None,
    retry: RetryPolicy | None = None,
    timeouts: Timeouts | None = None,
    limits: Limits | None = None,
    observer: Callable[[Notice], object] | None = None,
    **kwargs: Any,
) -> Iterator[EventSource]:
    """
    `httpx_sse.connect_sse()`, resumed after a cut.

    Args:
        client: An `httpx.Client` or `httpx2.Client`.
        method: HTTP method. A POST is never repeated once the server may have accepted it.
        url: Absolute, or relative to the client's `base_url`.
        protocol: As for `resumable_stream.connect()`, like the four that follow.
        retry: When to try again.
        timeouts: Clocks; instead of `timeout`.
        limits: What the stream may hold.
        observer: Called with a notice at each reconnect.
        **kwargs: As for `client.stream()`. Of `timeout` (or the client's), `connect` keeps its meaning and `read` is how long
            to wait for the head, and later for bytes; where the stream can be resumed that means reconnect.
            Redirects are followed if `follow_redirects` (or the client) says so, at most `limits.redirects`.
            `headers` may be a callable, asked at every connection.

    Yields:
        An `EventSource`, whatever the response is.

    Raises:
        httpx.TransportError: No response could be had, retries included; also a `ResumableStreamError`.
    """
    watched = WatchedClient(client)
    options = watched.options(kwargs, timeouts, limits)
    stream = connect(method, url, client=client, protocol=protocol, retry=retry, observer=observer, **options)
    watched.step_in(stream)
    source = None
    try:
        stream.open()
    except NoEventStream as found:
        source = EventSource._of_response(found.response, stream.checkpoint)
    except ResumableStreamError as error:
        source = EventSource._of_response(watched.refused(error), stream.checkpoint)
    watched.opening = False
    if source is not None:
        try:
            yield source
        finally:
            source.response.close()
        return
    with stream:
        yield EventSource._of_stream(watched.response, stream)


@asynccontextmanager
async def aconnect_sse(
    client: Any,
    method: str,
    url: Any,
    *,
    protocol: ResumeProtocol | None = None,
    retry: RetryPolicy | None = None,
    timeouts: Timeouts | None = None,
    limits: Limits | None = None,
    observer: Callable[[Notice], object] | None = None,
    **kwargs: Any,
) -> AsyncIterator[EventSource]:
    """`connect_sse()` for asyncio and trio: an async client, and `EventSource.aiter_sse()`."""
    watched = WatchedAsyncClient(client)
    options = watched.options(kwargs, timeouts, limits)
    stream = aconnect(method, url, client=client, protocol=protocol, retry=retry, observer=observer, **options)
    watched.step_in(stream)
    source = None
    try:
        await stream.open()
    except NoEventStream as found:
        source = EventSource._of_response(found.response, stream.checkpoint)
    except ResumableStreamError as error:
        source = EventSource._of_response(watched.refused(error), stream.checkpoint)
    watched.opening = False
    if source is not None:
        try:
            yield source
        finally:
            await source.response.aclose()
        return
    async with stream:
        yield EventSource._of_stream(watched.response, stream)


class EventSource(httpx_sse.EventSource):
    """
    httpx-sse's `EventSource`: `response`, `iter_sse()`, `aiter_sse()`.

    Those that `connect_sse()` and `aconnect_sse()` give resume. One that you make from a response of your own cannot,
    since a response does not know how it was asked for; it only decodes as the standard says.
    """

    _stream: ResumableStream | AsyncResumableStream | None = None
    _place: Checkpoint | None = None

    @classmethod
    def _of_stream(cls, response: Any, stream: ResumableStream | AsyncResumableStream) -> EventSource:
        made = cls(response)
        made._stream = stream
        return made

    @classmethod
    def _of_response(cls, response: Any, place: Checkpoint) -> EventSource:
        made = cls(response)
        made._place = place
        return made

    @property
    def stream(self) -> ResumableStream | AsyncResumableStream | None:
        """The stream behind it: `checkpoint`, `stats`, `outcome`. `None` when the response is no event stream."""
        return self._stream

    def iter_sse(self) -> Generator[ServerSentEvent, None, None]:
        """
        Iterate over the events, across reconnects.

        Raises:
            SSEError: The response is no event stream.
            httpx.TransportError: The stream is cut and cannot be resumed; also a `ResumableStreamError`.
        """
        return _Events(self)

    def aiter_sse(self) -> AsyncGenerator[ServerSentEvent, None]:
        """`iter_sse()` of an `aconnect_sse()`."""
        return _AsyncEvents(self)

    def _check_content_type(self) -> None:
        headers = self._response.headers
        if not is_event_stream(headers):
            received = headers.get("content-type", "").partition(";")[0]
            message = f"Expected response header Content-Type to contain '{EVENT_STREAM}', got {received!r}"
            self._raise(UnexpectedContentType(message, expected=EVENT_STREAM, received=received))

    def _raise(self, error: ResumableStreamError) -> NoReturn:
        if error.checkpoint is None:
            error.checkpoint = self._stream.checkpoint if self._stream is not None else self._place
        raise twin(error, library_of(self._response), self._response.request) from error.__cause__


class _Events(Generator[ServerSentEvent, None, None]):
    """What `iter_sse()` returns: a generator's methods, and nothing to finalise when a loop is left early."""

    def __init__(self, source: EventSource) -> None:
        self._source = source
        self._items: Iterator[Any] | None = None

    def __next__(self) -> ServerSentEvent:
        if self._items is None:
            self._items = _NOTHING  # unless it begins
            self._items = self._begin()
        try:
            event = next(self._items)
        except ResumableStreamError as error:
            if not isinstance(error, StreamBusy):  # that is for another thread; ours goes on
                self._items = _NOTHING
            self._source._raise(error)
        if event.reset:
            self._items = _NOTHING
            self._source._raise(StreamReset("earlier events became void, which httpx-sse cannot say", offset=event.offset))
        return ServerSentEvent(event.event, event.data, event.id, event.retry)

    def _begin(self) -> Iterator[Any]:
        source = self._source
        source._check_content_type()
        stream: Any = source._stream
        return _decoded(source._response) if stream is None else iter(stream)

    def send(self, value: None) -> ServerSentEvent:
        return self.__next__()

    def throw(self, typ: Any, val: Any = None, tb: TracebackType | None = None) -> NoReturn:
        self.close()
        _throw(typ, val, tb)

    def close(self) -> None:
        """End the iteration; the connection is the context manager's."""
        self._items = _NOTHING


class _AsyncEvents(AsyncGenerator[ServerSentEvent, None]):
    """The asynchronous `_Events`."""

    def __init__(self, source: EventSource) -> None:
        self._source = source
        self._items: AsyncIterator[Any] | None = None

    async def __anext__(self) -> ServerSentEvent:
        if self._items is None:
            self._items = _ANOTHING  # unless it begins
            self._items = self._begin()
        try:
            event = await anext(self._items)
        except ResumableStreamError as error:
            if not isinstance(error, StreamBusy):
                self._items = _ANOTHING
            self._source._raise(error)
        if event.reset:
            self._items = _ANOTHING
            self._source._raise(StreamReset("earlier events became void, which httpx-sse cannot say", offset=event.offset))
        return ServerSentEvent(event.event, event.data, event.id, event.retry)

    def _begin(self) -> AsyncIterator[Any]:
        source = self._source
        source._check_content_type()
        stream: Any = source._stream
        return _adecoded(source._response) if stream is None else aiter(stream)

    async def asend(self, value: None) -> ServerSentEvent:
        return await self.__anext__()

    async def athrow(self, typ: Any, val: Any = None, tb: TracebackType | None = None) -> NoReturn:
        await self.aclose()
        _throw(typ, val, tb)

    async def aclose(self) -> None:
        """End the iteration; the connection is the context manager's."""
        items, self._items = self._items, _ANOTHING
        if self._source._stream is None and (close := getattr(items, "aclose", None)) is not None:
            await close()


class _Nothing(AsyncIterator[Any]):
    async def __anext__(self) -> NoReturn:
        raise StopAsyncIteration


_NOTHING: Final[Iterator[Any]] = iter(())
_ANOTHING: Final[AsyncIterator[Any]] = _Nothing()


def _throw(typ: Any, val: Any, tb: TracebackType | None) -> NoReturn:
    error = val if isinstance(val, BaseException) else typ
    error = error() if isinstance(error, type) else error
    raise error.with_traceback(tb) if tb is not None else error


def _decoded(response: Any) -> Iterator[Any]:
    decoder = SSEDecoder()
    for chunk in response.iter_bytes():
        yield from decoder.feed(chunk)
        if decoder.error is not None:
            raise decoder.error
    yield from decoder.eof()


async def _adecoded(response: Any) -> AsyncIterator[Any]:
    decoder = SSEDecoder()
    async for chunk in response.aiter_bytes():
        for event in decoder.feed(chunk):
            yield event
        if decoder.error is not None:
            raise decoder.error
    for event in decoder.eof():
        yield event
