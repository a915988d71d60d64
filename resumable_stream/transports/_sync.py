"""The synchronous transport, for either library."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import get_ident
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

from .._checkpoint import Checkpoint
from .._core.settings import Stats
from .._drivers.base import Plan
from .._drivers.loop import at_once
from .._drivers.sync import ResumableStream
from .._errors import ResumableStreamError
from ._port import SendingPort
from ._splice import Splicing
from ._wire import Skimming, Spliced

__all__ = ["SplicedBody", "SplicingTransport"]

T = TypeVar("T")
# Seconds between two positions that another thread is shown; making one takes 50 µs.
_GLIMPSES = 0.05


class SyncPort(SendingPort):
    def send(self, request: Any, **options: Any) -> Any:
        return at_once(lambda: self.exchange(request, options))

    async def handle(self, request: Any) -> Any:
        return self.transport.handle_request(request)

    async def refreshed(self, request: Any) -> Any:
        assert self.refresh is not None
        return self.refresh(request)

    async def ask_store(self, function: Callable[[], T]) -> T:
        return function()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - no event loop is running here

    async def close(self, response: Any) -> None:
        response.close()


class SplicedStream(Skimming, ResumableStream):
    """The stream below a body. Inspect or `cancel()` it; the SDK reads it."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._reader: int | None = None  # the thread that read last
        self._glimpse: Checkpoint | None = None
        self._glimpsed_at = 0.0

    @property
    def checkpoint(self) -> Checkpoint:
        if self._glimpse is not None and self._reader != get_ident():
            # Another thread is inspecting the stream. From now on the reader publishes its position from time to time.
            self._watched = True
            return self._final or self._glimpse
        return super().checkpoint

    @property
    def stats(self) -> Stats:
        return super().stats if self._reader in (None, get_ident()) else self._machine.stats

    def _show_place(self) -> None:
        now = monotonic()
        if self._glimpse is None or (self._watched and now - self._glimpsed_at >= _GLIMPSES):
            self._glimpse, self._glimpsed_at = super().checkpoint, now


class SplicedBody(Spliced):
    """See `Spliced`."""

    _stream: SplicedStream

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        stream = self._stream
        skim, live = stream.skim, stream._live
        if skim is None or live is None or stream._busy:
            return self._read()
        # A calm stream, inlined: any call here is paid for by every event.
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
            stream._failure = failure
            stream.take_back(chunk)
            return self._read()
        return self._read(iter((chunk,)), live)

    def _read(self, read: Any = None, live: Any = None) -> bytes:
        stream = self._stream
        try:
            stream.come_back(read)
            stream._reader = get_ident()
            return self._wire.of(stream.gather(next(stream), read, live))
        except ResumableStreamError as error:
            raise self._wire.error(error) from error.__cause__

    def close(self) -> None:
        at_once(self._close)


class SplicingTransport(Splicing):
    """See `resumable_stream.transports.httpx.ResumableTransport`."""

    _default, _base = "HTTPTransport", "BaseTransport"
    _for, _instead = "a sync {0}.Client", "an {0}.AsyncClient takes the AsyncResumableTransport"
    _port, _stream = SyncPort, SplicedStream

    def handle_request(self, request: Any) -> Any:
        return at_once(lambda: self._answer(request))

    async def handle_async_request(self, request: Any) -> NoReturn:
        raise self._wrong_client()

    if not TYPE_CHECKING:
        # The methods that an AsyncClient calls first, depending on how it is used.
        async def __aenter__(self) -> NoReturn:
            raise self._wrong_client()

        async def __aexit__(self, *exc: object) -> None:
            """Never entered."""

        async def aclose(self) -> None:
            """The client of the wrong kind is closed; it has already raised the error that matters."""

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
