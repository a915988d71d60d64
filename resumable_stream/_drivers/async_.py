"""The asynchronous stream: drives the machine over an `httpx.AsyncClient` or an `httpx2.AsyncClient`, on asyncio and trio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from operator import length_hint
from time import monotonic
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

import anyio

from .._errors import StoreError
from .._events import Delta, TextReset
from .base import NOTHING, Pieces, Plan
from .clock import ReadClock, read_clock
from .coding import decoding_of
from .http import RearmedTimeout, network_errors, over_httpcore, shut_down
from .loop import Loop
from .misuse import AsyncOnly
from .worker import in_thread

__all__ = ["AsyncResumableStream"]

T = TypeVar("T")

# Seconds that leaving may wait for the network, and for a store. A dead peer must not block a cancelled task.
_CLOSE_SECONDS = 2.0
_SAVE_SECONDS = 10.0
# Enough for what h11 may have buffered of a body that is being left: 64 KiB in chunks of a few bytes.
_LEFTOVER_CHUNKS = 20_000


class _Body:
    """
    The chunks of one response, decoded, with a read timeout that can change.

    Over httpcore the timeout is a `RearmedTimeout` in the request; elsewhere we run our own clock for reads.
    """

    def __init__(self, response: Any, rearm: RearmedTimeout) -> None:
        self.response = response
        self._decoding = decoding_of(response.headers.get("content-encoding", ""))
        self._pieces: Iterator[bytes] = NOTHING
        self._raw = aiter(response.stream)
        self._read_raw: Callable[[], Awaitable[bytes]] = self._raw.__anext__
        self._rearm = rearm.arm
        self._rearms = over_httpcore(response)
        self._clock: ReadClock | None = None
        if not self._rearms or response.extensions.get("http_version") == b"HTTP/2":
            # An HTTP/2 socket carries other streams, so it cannot be shut down to wake a reader; a clock can wake it.
            self._clock = read_clock()
            self._read_raw = partial(self._clock.run, self._read_raw)
        if self._clock is not None and not self._rearms:
            # A timeout set by the transport would also run while nobody reads.
            self._rearm(None)
            self._rearm = self._clock.arm
        self.ended = False
        # If nothing has to be decoded, the driver takes chunks directly from here.
        self.plain = self._read_raw if self._decoding is None else None

    def arm(self, timeout: float | None) -> bool:
        """Arm the reads from `plain`."""
        self._rearm(timeout)
        return True

    async def read(self, timeout: float | None) -> bytes | None:
        """The next chunk, or `None` at the end."""
        for piece in self._pieces:
            return piece
        self._rearm(timeout)
        try:
            while True:
                chunk = await self._read_raw()
                if self._decoding is None:
                    return chunk
                self._pieces = self._decoding.decode(chunk)
                for piece in self._pieces:
                    return piece
        except StopAsyncIteration:
            self.ended = True
            return None
        except BaseException:
            self.ended = True
            raise

    def wake(self) -> None:
        """End the read that another task waits in."""
        if self._clock is not None:
            self._clock.wake()
        else:
            shut_down(self.response)

    async def finish(self) -> None:
        """Nothing to do: `close()` reads what an honest end leaves unread."""

    async def close(self) -> None:
        if self._clock is not None:
            self._clock.stop()
        if not self.ended and self._rearms:
            await self._unwind()
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            for iterator in (self._raw, self.response):
                if (aclose := getattr(iterator, "aclose", None)) is not None:
                    with suppress(RuntimeError):  # an iterator that is still running cannot be closed; the response can
                        await aclose()

    async def _unwind(self) -> None:
        """
        Let the transport's nested generators end by themselves.

        Closing a response in mid-stream leaves them to the garbage collector, which trio reports. A read under an already
        cancelled scope makes the innermost one raise, and then all those around it. Data that has already arrived is read
        without waiting, so that after an honest end the connection can be reused.
        """
        with anyio.CancelScope(shield=True) as scope:
            scope.cancel()
            with suppress(StopAsyncIteration, *network_errors()):
                for _ in range(_LEFTOVER_CHUNKS):
                    await anext(self._raw)


class AsyncResumableStream(Loop, AsyncOnly):
    """
    The asynchronous `ResumableStream`, for asyncio and trio. Made by `aconnect()` and `aresume()`.

    One consumer, one task; only `aclose()` may be called from another.

        async with rs.aconnect("GET", url) as stream:
            async for event in stream:
                print(event.data)
    """

    _opens = "async with"
    _one, _kind = "task", "AsyncClient"

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._closing: anyio.Event | None = None  # ends a wait between two attempts
        self._waiting: anyio.CancelScope | None = None

    # --- opening and leaving

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._exit(exc)

    async def open(self) -> Self:
        """
        Make the first connection, retries included. `async with` does it for you; otherwise you owe an `aclose()`.

        Raises:
            ResumableStreamError: The stream cannot be opened.
        """
        await self._open()
        return self

    async def aclose(self) -> None:
        """
        Detach: close the connection and keep the position. The generation continues if the provider lets it; see `cancel()`.

        May be called from another task: a reader that is waiting gets `StreamClosed`.
        """
        await self._close()

    # --- iterating

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        for event in self._events:
            return event
        if (live := self._live) is not None and (self._store is None or self._may_read_on()):
            # A live stream, inlined: any call here is paid for by every event.
            machine = self._machine
            self._live = None  # until this read is done: after a cancellation, use the full path
            self._in_hand = 0
            started = 0.0
            try:
                self._busy = True
                started = monotonic()
                chunk = await live()
                events = machine.receive_live(chunk)
            except BaseException as error:  # noqa: BLE001 - it is raised again where reads are judged
                self._failure = error
            else:
                self._busy = False
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
            await self._refill()
        for event in self._events:
            return event
        raise StopAsyncIteration

    def iter_batches(self) -> AsyncIterator[Sequence[Any]]:
        """
        Iterate over lists of events, each list from one read. This is the fastest way through a long replay.

        A batch is one unit of delivery: if you leave in its middle, only what `commit(event)` named counts as taken.
        """
        return _Batches(self)

    @overload
    def iter_text(self, *, resets: Literal[False] = False) -> AsyncIterator[str]: ...
    @overload
    def iter_text(self, *, resets: bool) -> AsyncIterator[str | TextReset]: ...
    def iter_text(self, *, resets: bool = False) -> AsyncIterator[Any]:
        """
        Iterate over the visible text, piece by piece. Reasoning and tool arguments are left out: see `iter_deltas()`.

        Args:
            resets: Yield a `TextReset` when earlier text becomes void.

        Raises:
            StreamReset: Earlier text became void, and `resets` is false.
        """
        return _Texts(self, self._new_reader("text", resets=resets))

    def iter_deltas(self) -> AsyncIterator[Delta]:
        """Iterate over the content of the events as `Delta` (kind, index, text), in one shape for all providers."""
        return _Texts(self, self._new_reader("deltas", resets=False))

    async def read_text(self) -> str:
        """
        Read the stream to its end.

        Returns:
            The visible text; after a reset, only what is still valid.

        Raises:
            EventTooLarge: The text exceeds `Limits.text_bytes`.
        """
        reader = self._new_reader("text", resets=True, strict=True)
        async for _ in _Texts(self, reader):
            pass
        return reader.so_far()

    async def commit(self, event: Any = None) -> None:
        """
        Mark `event`, or everything delivered so far, as processed.

        With `commit="manual"`, only this moves `checkpoint`; otherwise it moves `checkpoint` before the loop's next turn.

        Raises:
            ValueError: The event is older than `Limits.window` events and had no cursor of its own.
        """
        self._commit(event)
        await self._after_commit()

    async def cancel(self) -> None:
        """
        Stop the generation at the provider, if it has a call for that. The stream then ends as the provider reports.

        Raises:
            ResumableStreamError: The protocol has no such call, the server refused (`ResponseRejected`), or it gave no answer.
        """
        await self._cancel()

    # --- the primitives

    def _me(self) -> int:
        return 1

    def _read_elsewhere(self) -> bool:
        return bool(self._busy) and self._failure is None

    async def _send(self, built: Any, **options: Any) -> Any:
        response = None
        with anyio.CancelScope() as self._waiting:
            try:
                response = await self._client.send(built, **options)
            finally:
                self._waiting = None
        if response is None:
            self._check_closing()
        return response

    def _clock(self, seconds: float | None) -> RearmedTimeout:
        return RearmedTimeout(seconds)

    def _new_body(self, response: Any, clock: Any) -> _Body:
        return _Body(response, clock)

    async def _wait(self, seconds: float) -> None:
        self._closing = anyio.Event()
        if not self._stopped:
            with anyio.move_on_after(seconds):
                await self._closing.wait()

    def _wake(self) -> None:
        if self._closing is not None:
            self._closing.set()
        if self._waiting is not None:
            self._waiting.cancel()
        elif (body := self._side or self._body) is not None:
            body.wake()

    async def _call(self, function: Callable[[], T]) -> T:
        return await in_thread(function)

    async def _save_at_last(self) -> None:
        with anyio.move_on_after(_SAVE_SECONDS, shield=True) as scope:
            await self._save_now()
        if scope.cancelled_caught:
            raise self._with_place(StoreError(f"the store did not save within {_SAVE_SECONDS} seconds"))

    async def _close_client(self, client: Any) -> None:
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await client.aclose()


class _Batches(AsyncOnly):
    """Iterator over lists of events."""

    def __init__(self, stream: AsyncResumableStream) -> None:
        self._stream = stream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[Any]:
        stream = self._stream
        stream._live = None
        if not length_hint(stream._events) and not await stream._refill():
            raise StopAsyncIteration
        return stream._hand_batch()


class _Texts(Pieces, AsyncOnly):
    """Iterator over pieces of text."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        while True:
            for piece in self._pieces:
                return piece
            if self.ended:
                raise StopAsyncIteration
            try:
                event = await anext(self._stream)
            except StopAsyncIteration:
                self._finish()
            else:
                self._take(event)
