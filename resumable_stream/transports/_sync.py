"""The synchronous transport, for either library."""

from __future__ import annotations

from collections.abc import Iterator
from operator import length_hint
from threading import get_ident
from time import monotonic, sleep
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self

from .._checkpoint import Checkpoint
from .._core.settings import Stats
from .._drivers.base import Plan
from .._drivers.sync import ResumableStream
from .._errors import ResumableStreamError
from .._twins import twin
from ._splice import Configured, Port, Skimming, Splicer, Wire
from ._start import Start

__all__ = ["SplicedBody", "SplicingTransport"]


# Seconds between two places that another thread is shown: making one takes 50 µs.
_GLIMPSES = 0.05


class SyncPort(Port):
    def send(self, request: Any, **options: Any) -> Any:
        if self.first is not None:
            return self.take_first(request)
        self.add_cookies(request, options)
        if self.refreshes(options):
            assert self.refresh is not None
            request = self.refreshed(self.refresh(request))
        response = self.transport.handle_request(request)
        response.request = request
        self.keep_cookies(response, options)
        return response


class SplicedStream(Skimming, ResumableStream):
    """The stream below a body. Look at it, or `cancel()` it; what reads it is the SDK."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._reader: int | None = None  # the thread that read last
        self._glimpse: Checkpoint | None = None
        self._glimpsed_at = 0.0

    async def _load(self) -> None:
        """The transport has opened the store."""

    def read(self, read: Iterator[bytes] | None = None, live: Any = None) -> list[Any]:
        """
        The next event, and what came with it. All of it is in hand until the next call.

        Args:
            read: A read of `live` that is over, to be had once more.

        Raises:
            StopIteration: The stream has ended.
        """
        if self._busy not in (0, get_ident()):
            raise self._second_reader("thread")
        self._reader = get_ident()
        if read is not None:
            self._settle()
            self._live = read
        found = [next(self)]
        if read is not None and self._live is read:
            self._live = live
        if length_hint(self._events):
            found += self._hand_rest()
        self._leave_glimpse()
        self._look_for_calm()
        return found

    async def _leave(self, state: str) -> None:
        self._settle()
        await super()._leave(state)

    def leave(self) -> None:
        """The SDK is done with it; what it was given is taken."""
        if self._busy not in (0, get_ident()):
            self.close()
        else:
            self._busy = 0
            self._settle()
            self.__exit__(None, None, None)

    @property
    def checkpoint(self) -> Checkpoint:
        if self._glimpse is not None and self._reader != get_ident():
            # Another thread looks. From now on the reader leaves a glimpse of its place behind, now and then.
            self._watched = True
            return self._final or self._glimpse
        return super().checkpoint

    @property
    def stats(self) -> Stats:
        return super().stats if self._reader in (None, get_ident()) else self._machine.stats

    def _leave_glimpse(self) -> None:
        now = monotonic()
        if self._glimpse is None or (self._watched and now - self._glimpsed_at >= _GLIMPSES):
            self._glimpse, self._glimpsed_at = super().checkpoint, now


class _Failed:
    """A read that has failed, to be had once more."""

    def __init__(self, failure: BaseException) -> None:
        self._failure = failure

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        raise self._failure


class SplicedBody:
    """The body of a response: whole events only, across connections. One reader."""

    def __init__(self, stream: SplicedStream, wire: Wire, port: Port) -> None:
        self._stream = stream
        self._wire = wire
        self._port = port

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        stream = self._stream
        skim, live = stream.skim, stream._live
        if skim is None or live is None or stream._busy:
            return self._read()
        # A calm stream, flat: what a call costs here is paid for every event.
        chunk = b""
        try:
            stream._busy = get_ident()
            while True:
                chunk = next(live)
                whole = skim(chunk)
                if whole:
                    stream._busy = 0
                    return whole
                if whole is None:
                    break
        except BaseException as failure:  # noqa: BLE001 - it is raised again where reads are judged
            stream.take_back(chunk)
            return self._read(_Failed(failure), live)
        return self._read(iter((chunk,)), live)

    def _read(self, read: Iterator[bytes] | None = None, live: Any = None) -> bytes:
        try:
            return self._wire.of(self._stream.read(read, live))
        except ResumableStreamError as error:
            raise self._wire.error(error) from error.__cause__

    def close(self) -> None:
        try:
            self._stream.leave()
        except ResumableStreamError as error:
            raise self._wire.error(error) from error.__cause__
        finally:
            self._port.restore()


class SplicingTransport(Configured):
    """See `resumable_stream.transports.httpx.ResumableTransport`."""

    _body: ClassVar[type[Any]]
    _default, _base = "HTTPTransport", "BaseTransport"

    def handle_request(self, request: Any) -> Any:
        splicer = self._splicer
        splicer.check(request)
        request, start = splicer.prepare(request)
        try:
            return self._handle(splicer, request, start)
        except ResumableStreamError as error:
            if isinstance(error, self._library.RequestError):
                raise
            raise twin(error, self._library, request) from error.__cause__

    def _handle(self, splicer: Splicer, request: Any, start: Start | None) -> Any:
        port = SyncPort(splicer.library, request, self._next, splicer.refresh)
        fence = None
        if (key := splicer.key_of(request)) is not None:
            checkpoint = splicer.stored(key)
            if checkpoint is not None and splicer.is_place_of(key, checkpoint, request):
                plan = splicer.plan(port, protocol=splicer.named(checkpoint, request), key=key, checkpoint=checkpoint)
                stream = SplicedStream(plan)
                if splicer.answers(stream):
                    _, fence = splicer.store.open(key)
                    stream.adopt(fence, iter(splicer.store.replay(key)))
                    return self._response(splicer, None, stream, port)
        response = self._next.handle_request(request) if start is None else self._start(port, request, start)
        # As the client does when it has it.
        response.request = request
        try:
            protocol = splicer.choose(port, response)
            if protocol is None:
                return response
            port.first = response
            if key is not None:
                fence = splicer.take_over(key, request)
            stream = SplicedStream(splicer.plan(port, protocol=protocol, key=key))
            stream.adopt(fence)
            return self._response(splicer, response, stream, port)
        except BaseException:
            response.close()
            raise

    def _start(self, port: SyncPort, request: Any, start: Start) -> Any:
        """Send a request until it is answered."""
        send = self._next.handle_request
        while True:
            try:
                response = send(request)
                wait = start.wait_for(response)
                if wait is None:
                    return response
                response.close()
            except Exception as failure:
                wait = start.wait_after(failure)
                if wait is None:
                    raise
            sleep(wait)
            # With fresh credentials, as before each reconnect.
            send = port.send

    def _response(self, splicer: Splicer, first: Any, stream: SplicedStream, port: Port) -> Any:
        stream.open()
        body = self._body(stream, Wire(stream, splicer.library, port.request), port)
        return splicer.response(first, stream, body)

    async def handle_async_request(self, request: Any) -> NoReturn:
        raise self._wrong_client()

    if not TYPE_CHECKING:
        # What an AsyncClient calls first, depending on how it is used.
        async def __aenter__(self) -> NoReturn:
            raise self._wrong_client()

        async def __aexit__(self, *exc: object) -> None:
            """Never entered."""

        async def aclose(self) -> None:
            """The client of the wrong kind is closed: what it was told before is what matters."""

    def _wrong_client(self) -> TypeError:
        library = self._library.__name__
        return TypeError(
            f"{type(self).__name__} is for a sync {library}.Client; an {library}.AsyncClient takes the AsyncResumableTransport "
            f"of resumable_stream.transports.{library}"
        )

    def close(self) -> None:
        self._next.close()

    def __enter__(self) -> Self:
        self._next.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        exc: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self._next.__exit__(kind, exc, traceback)
