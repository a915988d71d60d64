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
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from types import TracebackType
from typing import Any, NoReturn

import httpx_sse
from httpx_sse import ServerSentEvent, SSEError

from .._api import aconnect, connect
from .._checkpoint import Checkpoint
from .._contract import ResumeProtocol
from .._drivers.async_ import AsyncResumableStream
from .._drivers.loop import at_once
from .._drivers.sync import ResumableStream
from .._errors import ResumableStreamError, StreamBusy, StreamReset, UnexpectedContentType
from .._notices import Notice
from .._policy import RetryPolicy
from .._settings import Limits, Timeouts
from .._twins import library_of
from ..framing import SSEDecoder
from ._errors import twin
from ._opening import EVENT_STREAM, NoEventStream, Watched, WatchedAsyncClient, WatchedClient, is_event_stream

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
    source = at_once(lambda: _opened(watched, stream))
    with stream if source.stream is not None else closing(source.response):
        yield source


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
    source = await _opened(watched, stream)
    async with stream if source.stream is not None else aclosing(source.response):
        yield source


async def _opened(watched: Watched, stream: Any) -> EventSource:
    """Of the stream, or of a response that is none."""
    place: Checkpoint | None = None
    try:
        await stream._open()
        response, found = watched.response, stream
    except NoEventStream as none:
        response, found, place = none.response, None, stream.checkpoint
    except ResumableStreamError as error:
        response, found, place = watched.refused(error), None, stream.checkpoint
    watched.opening = False
    return EventSource._of(response, found, place)


class EventSource(httpx_sse.EventSource):
    """
    httpx-sse's `EventSource`: `response`, `iter_sse()`, `aiter_sse()`.

    Those that `connect_sse()` and `aconnect_sse()` give resume. One that you make from a response of your own cannot,
    since a response does not know how it was asked for; it only decodes as the standard says.
    """

    _stream: ResumableStream | AsyncResumableStream | None = None
    _place: Checkpoint | None = None

    @classmethod
    def _of(cls, response: Any, stream: Any, place: Checkpoint | None) -> EventSource:
        made = cls(response)
        made._stream, made._place = stream, place
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


class _Reading:
    """What a read of either colour comes to: an event as httpx-sse has it, or an error of its users'."""

    def __init__(self, source: EventSource) -> None:
        self._source = source
        self._items: Any = None
        self._over = False

    def _begin(self, read: Callable[[Any], Any], decode: Callable[[Any], Any]) -> None:
        """
        Args:
            read: Makes an iterator of the stream.
            decode: Makes one of a response that is none of ours.
        """
        source = self._source
        self._over = True  # unless it begins
        source._check_content_type()
        self._items = decode(source._response) if source._stream is None else read(source._stream)
        self._over = False

    def _failed(self, error: ResumableStreamError) -> NoReturn:
        if not isinstance(error, StreamBusy):  # that is for another reader; ours goes on
            self._over = True
        self._source._raise(error)

    def _shown(self, event: Any) -> ServerSentEvent:
        if event.reset:
            self._failed(StreamReset("earlier events became void, which httpx-sse cannot express", offset=event.offset))
        return ServerSentEvent(event.event, event.data, event.id, event.retry)


class _Events(_Reading, Generator[ServerSentEvent, None, None]):
    """What `iter_sse()` returns: a generator's methods, and nothing to finalise when a loop is left early."""

    def __next__(self) -> ServerSentEvent:
        if self._over:
            raise StopIteration
        if self._items is None:
            self._begin(iter, _decoded)
        try:
            event = next(self._items)
        except ResumableStreamError as error:
            self._failed(error)
        return self._shown(event)

    def send(self, value: None) -> ServerSentEvent:
        return self.__next__()

    def throw(self, typ: Any, val: Any = None, tb: TracebackType | None = None) -> NoReturn:
        self.close()
        _throw(typ, val, tb)

    def close(self) -> None:
        """End the iteration; the connection is the context manager's."""
        self._over = True


class _AsyncEvents(_Reading, AsyncGenerator[ServerSentEvent, None]):
    """The asynchronous `_Events`."""

    async def __anext__(self) -> ServerSentEvent:
        if self._over:
            raise StopAsyncIteration
        if self._items is None:
            self._begin(aiter, _adecoded)
        try:
            event = await anext(self._items)
        except ResumableStreamError as error:
            self._failed(error)
        return self._shown(event)

    async def asend(self, value: None) -> ServerSentEvent:
        return await self.__anext__()

    async def athrow(self, typ: Any, val: Any = None, tb: TracebackType | None = None) -> NoReturn:
        await self.aclose()
        _throw(typ, val, tb)

    async def aclose(self) -> None:
        """End the iteration; the connection is the context manager's."""
        self._over = True
        if self._source._stream is None and (close := getattr(self._items, "aclose", None)) is not None:
            await close()


def _throw(typ: Any, val: Any, tb: TracebackType | None) -> NoReturn:
    error = val if isinstance(val, BaseException) else typ
    error = error() if isinstance(error, type) else error
    raise error.with_traceback(tb) if tb is not None else error


def _decoded(response: Any) -> Iterator[Any]:
    decoder = SSEDecoder()
    for chunk in response.iter_bytes():
        yield from _fed(decoder, chunk)
    yield from decoder.eof()


async def _adecoded(response: Any) -> AsyncIterator[Any]:
    decoder = SSEDecoder()
    async for chunk in response.aiter_bytes():
        for event in _fed(decoder, chunk):
            yield event
    for event in decoder.eof():
        yield event


def _fed(decoder: SSEDecoder, chunk: bytes) -> Iterator[Any]:
    """The events that a chunk completes; the decoder's error comes after them."""
    yield from decoder.feed(chunk)
    if decoder.error is not None:
        raise decoder.error
