"""The synchronous stream: drives the machine over an `httpx.Client` or an `httpx2.Client`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from operator import length_hint
from threading import get_ident
from time import monotonic
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

from .._core.actions import Save
from .._errors import StoreError
from .._events import Delta, TextReset
from .base import NOTHING, Pieces, Plan
from .coding import decoding_of
from .http import WatchedConnection, over_httpcore, shut_down, watch_connection
from .loop import Loop, at_once
from .misuse import SyncOnly

__all__ = ["ResumableStream"]

T = TypeVar("T")

# Seconds. After an honest end, the last HTTP chunk has usually arrived already. A millisecond is cheaper than a TLS handshake.
_LEFTOVER_CHUNKS = 4
_LEFTOVER_SECONDS = 0.005
# Re-armed iterators are kept until the response is closed, so there must be few: a clock may be late by 1 %.
_TOLERANCE = 0.01


class _Body:
    """
    The chunks of one response, decoded, with a read timeout that can change.

    Sync httpcore fixes the timeout when the iteration begins, so a new timeout needs a new iterator. Closing the old one
    would close the connection, so all are kept, and closed after the newest.
    """

    def __init__(self, response: Any, armed: float | None) -> None:
        self.response = response
        self._stream = response.stream
        self._decoding = decoding_of(response.headers.get("content-encoding", ""))
        self._pieces: Iterator[bytes] = NOTHING
        self._raw = iter(self._stream)
        # If nothing has to be decoded and no clock has moved, the driver takes chunks directly from here.
        self.plain = self._raw if self._decoding is None else None
        self._old: list[Any] = []
        self.armed = armed
        self._rearms = over_httpcore(response)
        self.ended = False

    async def read(self, timeout: float | None) -> bytes | None:
        """The next chunk, or `None` at the end."""
        for piece in self._pieces:
            return piece
        while True:
            if timeout != self.armed and self._rearms:
                self._rearm(timeout)
            chunk: bytes | None = next(self._raw, None)
            if chunk is None:
                self.ended = True
                return None
            if self._decoding is None:
                return chunk
            self._pieces = self._decoding.decode(chunk)
            for piece in self._pieces:
                return piece

    def arm(self, timeout: float | None) -> bool:
        """Whether a read from `plain` takes at most that long, as far as this transport knows."""
        return timeout == self.armed or not self._rearms

    def _rearm(self, timeout: float | None) -> None:
        armed = self.armed
        if timeout is not None and armed is not None and abs(armed - timeout) <= max(_TOLERANCE * timeout, 0.001):
            return
        self.armed = timeout
        self.response.request.extensions["timeout"]["read"] = timeout
        self._old.append(self._raw)
        self._raw = iter(self._stream)
        if self.plain is not None:
            self.plain = self._raw

    def wake(self) -> None:
        """End the read that another thread is blocked in."""
        shut_down(self.response)

    async def finish(self) -> None:
        """Read the little that an honest end leaves unread, so that the connection can be reused."""
        if self.ended or not self._rearms:
            return
        for _ in range(_LEFTOVER_CHUNKS):
            if await self.read(_LEFTOVER_SECONDS) is None:
                return

    async def close(self) -> None:
        with ExitStack() as stack:
            for iterator in self._old:
                stack.callback(iterator.close)
            stack.callback(self.response.close)
            if (close := getattr(self._raw, "close", None)) is not None:
                stack.callback(self._close_raw, close)

    def _close_raw(self, close: Any) -> None:
        try:
            close()
        except ValueError:
            # Another thread has begun to read in the meantime. A running generator cannot be closed, but its socket can.
            self.wake()


class ResumableStream(Loop, SyncOnly):
    """
    An iterator over the events of a stream that survives the loss of its connection. Made by `connect()` and `resume()`.

    Use it as a context manager: the first connection is made on entering, and everything is closed on leaving.
    One consumer, one thread; only `close()` may be called from another.

        with rs.connect("GET", url) as stream:
            for event in stream:
                print(event.data)
    """

    _one, _kind = "thread", "Client"

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._closing = threading.Event()
        self._socket: WatchedConnection | None = None

    # --- opening and leaving

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        at_once(lambda: self._exit(exc))

    def open(self) -> Self:
        """
        Make the first connection, retries included. `with` does it for you; otherwise you owe a `close()`.

        Raises:
            ResumableStreamError: The stream cannot be opened.
        """
        at_once(self._open)
        return self

    def close(self) -> None:
        """
        Detach: close the connection and keep the position. The generation continues if the provider lets it; see `cancel()`.

        May be called from another thread: a reader that is blocked gets `StreamClosed`.
        """
        at_once(self._close)

    # --- iterating

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        for event in self._events:
            return event
        if (live := self._live) is not None and (self._store is None or self._may_read_on()):
            # A live stream, inlined: any call here is paid for by every event.
            machine = self._machine
            self._live = None  # until this read is done: after an interrupt, use the full path
            self._in_hand = 0
            started = 0.0
            try:
                self._busy = get_ident()
                started = monotonic()
                chunk = next(live)
                events = machine.receive_live(chunk)
            except BaseException as error:  # noqa: BLE001 - it is raised again where reads are judged
                self._failure = error
            else:
                self._busy = 0
                if events:
                    self._hand_out(events)
                else:
                    machine.receive_nothing(started, monotonic())
                if machine.calm and not machine.notices:
                    self._live = None if self._stopped else live
                    for event in self._events:
                        return event
                if machine.notices:
                    self._notify()
        if not length_hint(self._events):
            try:
                # Created and started at once, as in `at_once()`.
                self._refill().send(None)
            except StopIteration:
                pass
        # Not `next()`: an interrupt comes after a call, and the event would be lost.
        for event in self._events:
            return event
        raise StopIteration

    def iter_batches(self) -> Iterator[Sequence[Any]]:
        """
        Iterate over lists of events, each list from one read. This is the fastest way through a long replay.

        A batch is one unit of delivery: if you leave in its middle, only what `commit(event)` named counts as taken.
        """
        return _Batches(self)

    @overload
    def iter_text(self, *, resets: Literal[False] = False) -> Iterator[str]: ...
    @overload
    def iter_text(self, *, resets: bool) -> Iterator[str | TextReset]: ...
    def iter_text(self, *, resets: bool = False) -> Iterator[Any]:
        """
        Iterate over the visible text, piece by piece. Reasoning and tool arguments are left out: see `iter_deltas()`.

        Args:
            resets: Yield a `TextReset` when earlier text becomes void.

        Raises:
            StreamReset: Earlier text became void, and `resets` is false.
        """
        return _Texts(self, self._new_reader("text", resets=resets))

    def iter_deltas(self) -> Iterator[Delta]:
        """Iterate over the content of the events as `Delta` (kind, index, text), in one shape for all providers."""
        return _Texts(self, self._new_reader("deltas", resets=False))

    def read_text(self) -> str:
        """
        Read the stream to its end.

        Returns:
            The visible text; after a reset, only what is still valid.

        Raises:
            EventTooLarge: The text exceeds `Limits.text_bytes`.
        """
        reader = self._new_reader("text", resets=True, strict=True)
        for _ in _Texts(self, reader):
            pass
        return reader.so_far()

    def commit(self, event: Any = None) -> None:
        """
        Mark `event`, or everything delivered so far, as processed.

        With `commit="manual"`, only this moves `checkpoint`; otherwise it moves `checkpoint` before the loop's next turn.

        Raises:
            ValueError: The event is older than `Limits.window` events and had no cursor of its own.
        """
        self._commit(event)
        at_once(self._after_commit)

    def cancel(self) -> None:
        """
        Stop the generation at the provider, if it has a call for that. The stream then ends as the provider reports.

        Raises:
            ResumableStreamError: The protocol has no such call, the server refused (`ResponseRejected`), or it gave no answer.
        """
        at_once(self._cancel)

    # --- the primitives: each blocks, and none suspends

    def _me(self) -> int:
        return get_ident()

    def _read_elsewhere(self) -> bool:
        return self._busy not in (0, get_ident())

    async def _send(self, built: Any, **options: Any) -> Any:
        self._socket = watch_connection(built.extensions)
        try:
            return self._client.send(built, **options)
        finally:
            self._socket = None

    def _clock(self, seconds: float | None) -> None:
        return None

    def _new_body(self, response: Any, clock: Any) -> _Body:
        return _Body(response, clock)

    async def _wait(self, seconds: float) -> None:
        self._closing.wait(seconds)

    def _wake(self) -> None:
        self._closing.set()
        if (connection := self._socket) is not None:
            connection.shut_down()
        elif (body := self._side or self._body) is not None:
            body.wake()

    async def _call(self, function: Callable[[], T]) -> T:
        return function()

    def _wrote(self, save: Save) -> bool:
        if not self._store.keep_events or not save.events:
            return False
        with suppress(StoreError):
            return sum(1 for _ in self._store.replay(self._plan.key)) == self._replayed + self._kept + len(save.events)
        return False

    async def _close_client(self, client: Any) -> None:
        client.close()


class _Batches(SyncOnly):
    """Iterator over lists of events."""

    def __init__(self, stream: ResumableStream) -> None:
        self._stream = stream

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Sequence[Any]:
        stream = self._stream
        stream._live = None
        if not length_hint(stream._events) and not at_once(stream._refill):
            raise StopIteration
        return stream._hand_batch()


class _Texts(Pieces, SyncOnly):
    """Iterator over pieces of text."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        while True:
            for piece in self._pieces:
                return piece
            if self.ended:
                raise StopIteration
            try:
                event = next(self._stream)
            except StopIteration:
                self._finish()
            else:
                self._take(event)
