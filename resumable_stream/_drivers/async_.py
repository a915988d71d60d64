"""The asynchronous stream: obeys the machine over an `httpx.AsyncClient` or an `httpx2.AsyncClient`, on asyncio and trio."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from operator import length_hint
from time import monotonic
from types import TracebackType
from typing import Any, Literal, Self, overload

import anyio

from .._core.actions import Action, Connect, Deliver, Disconnect, Fetch, Finish, Read, Save, Sleep
from .._core.interfaces import Answer
from .._errors import ResumableStreamError, StoreError, StreamClosed
from .._events import Delta, TextReset
from .._text import TextReader
from .base import NOTHING, Plan, StreamBase, seconds_left
from .coding import decoding_of
from .http import (
    RearmedTimeout,
    classify,
    network_errors,
    over_httpcore,
    own_client,
    shut_down,
    status_errors,
    will_block,
)
from .misuse import AsyncOnly
from .worker import in_thread

__all__ = ["AsyncResumableStream"]

# Leaving may wait this long for the network, and for a store. A dead peer must not hold a cancelled task.
_CLOSE_SECONDS = 2.0
_SAVE_SECONDS = 10.0
# What h11 may hold of a body that is being left: 64 KiB in chunks of a few bytes.
_LEFTOVER_CHUNKS = 20_000


class _Body:
    """
    The chunks of one response, decoded, with a read timeout that can change.

    Over httpcore the timeout is a `RearmedTimeout` in the request; elsewhere a cancel scope around each read.
    """

    def __init__(self, response: Any, rearm: RearmedTimeout) -> None:
        self._response = response
        self._decoding = decoding_of(response.headers.get("content-encoding", ""))
        self._pieces: Iterator[bytes] = NOTHING
        self._raw = aiter(response.stream)
        self._rearm = rearm
        self._rearms = over_httpcore(response)
        # The socket of HTTP/2 carries other streams: it cannot be shut down to wake a reader, so a read needs a scope.
        self._shared = response.extensions.get("http_version") == b"HTTP/2"
        self.scope: anyio.CancelScope | None = None
        self.ended = False
        # Where nothing has to be decoded and no scope is needed, the driver takes chunks from here directly.
        self.plain = self._raw.__anext__ if self._decoding is None and self._rearms and not self._shared else None

    def arm(self, timeout: float | None) -> None:
        """The next reads may take so long."""
        self._rearm.arm(timeout)

    async def read(self, timeout: float | None) -> bytes | None:
        """The next chunk, or `None` at the end."""
        for piece in self._pieces:
            return piece
        while (chunk := await self._read_raw(timeout)) is not None:
            if self._decoding is None:
                return chunk
            self._pieces = self._decoding.decode(chunk)
            for piece in self._pieces:
                return piece
        return None

    async def _read_raw(self, timeout: float | None) -> bytes | None:
        try:
            if self._rearms:
                self._rearm.arm(timeout)
                if not self._shared:
                    return await anext(self._raw)
                timeout = None
            with anyio.move_on_after(timeout) as self.scope:
                return await anext(self._raw)
        except StopAsyncIteration:
            self.ended = True
            return None
        except BaseException:
            self.ended = True
            raise
        self.ended = True
        raise TimeoutError(f"no bytes within {timeout} seconds")

    def wake(self) -> None:
        """End the read that another task waits in."""
        if self.scope is not None:
            self.scope.cancel()
        else:
            shut_down(self._response)

    async def close(self) -> None:
        if not self.ended and self._rearms:
            await self._unwind()
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            for iterator in (self._raw, self._response):
                if (aclose := getattr(iterator, "aclose", None)) is not None:
                    with suppress(RuntimeError):  # an iterator that is still running cannot be closed; the response can
                        await aclose()

    async def _unwind(self) -> None:
        """
        Let the transport's nested generators end by themselves.

        Closing a response in mid-stream leaves them to the garbage collector, which trio reports. A read under a scope
        that is cancelled already makes the innermost one raise, and so all around it. What is there already is read
        without waiting, so that after an honest end the connection can be used again.
        """
        with anyio.CancelScope(shield=True) as scope:
            scope.cancel()
            with suppress(StopAsyncIteration, *network_errors()):
                for _ in range(_LEFTOVER_CHUNKS):
                    await anext(self._raw)


class AsyncResumableStream(StreamBase, AsyncOnly):
    """
    The asynchronous `ResumableStream`, for asyncio and trio. Made by `aconnect()` and `aresume()`.

    One consumer, one task; only `aclose()` may be called from another.

        async with rs.aconnect("GET", url) as stream:
            async for event in stream:
                print(event.data)
    """

    _opens = "async with"

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._closing: anyio.Event | None = None
        self._waiting: anyio.CancelScope | None = None

    # --- opening and leaving

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._left = True
        if self._busy:
            # It is read in another task, which leaves it when it is woken.
            await self.aclose()
            return
        if exc is None:
            self._take_in_hand()
            await self._leave("ended" if self._concluded() else "closed")
            return
        try:
            await self._leave("closed")
        except StoreError as error:
            # The exception under way matters more; the place it carries is right, only the store's is older.
            exc.add_note(f"resumable_stream: the checkpoint could not be saved: {error}")

    async def open(self) -> Self:
        """
        Make the first connection, retries included. `async with` does it for you; otherwise you owe an `aclose()`.

        Raises:
            ResumableStreamError: The stream cannot be opened.
        """
        if self._state != "new":
            self._check_readable()
            return self
        self._state = "open"
        self._closing = anyio.Event()
        self._busy = True
        try:
            await self._load()
            if self._replay is None:
                await self._advance(opening=True)
            self._check_closing()
        except BaseException as error:
            self._busy = False
            self._note_place(error)
            if isinstance(error, ResumableStreamError):
                self._with_place(error)
            await self._abandon("closed" if isinstance(error, StreamClosed) else "failed")
            raise
        self._busy = False
        return self

    async def aclose(self) -> None:
        """
        Detach: close the connection and keep the place. The generation goes on where the provider lets it; see `cancel()`.

        May be called from another task: a reader that waits there gets `StreamClosed`.
        """
        self._stopped = self._left = True
        self._live = None
        if self._closing is not None:
            self._closing.set()
        if not self._busy:
            await self._leave("closed")
        elif self._waiting is not None:
            self._waiting.cancel()
        elif (body := self._side or self._body) is not None:
            body.wake()

    async def _leave(self, state: str) -> None:
        if self._state != "open":
            if self._state == "new":
                self._state = state
            await self._release()
            return
        self._state = state
        try:
            with anyio.move_on_after(_SAVE_SECONDS, shield=True) as scope:
                await self._save_now()
            if scope.cancelled_caught:
                raise self._with_place(StoreError(f"the store did not save within {_SAVE_SECONDS} seconds"))
        finally:
            self._final = self._machine.checkpoint(self._taken(), self._batch)
            await self._release()

    async def _abandon(self, state: str) -> None:
        """After an exception that matters more than what closing may raise."""
        with suppress(StoreError):
            await self._leave(state)

    async def _release(self) -> None:
        """Close whatever is open; never fails because the network does."""
        body, self._body, self._response, self._live = self._body, None, None, None
        replay, self._replay = self._replay, None
        client, self._client = (self._client, None) if self._owns_client else (None, self._client)
        try:
            if body is not None:
                await self._close_body(body)
        finally:
            if replay is not None and (close := getattr(replay, "close", None)) is not None:
                close()
            if client is not None:
                with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
                    await client.aclose()

    async def _close_body(self, body: _Body) -> None:
        with suppress(*network_errors()):
            await body.close()

    # --- iterating

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        for event in self._events:
            return event
        failure: BaseException | None = None
        if (live := self._live) is not None and (self._store is None or self._may_read_on()):
            # A live stream, flat: what a call costs here is paid for every event.
            machine = self._machine
            self._live = None  # until this read is through: a cancellation goes the long way
            self._in_hand = 0
            started = 0.0
            try:
                self._busy = True
                started = monotonic()
                chunk = await live()
                events = machine.receive_live(chunk)
            except BaseException as error:  # noqa: BLE001 - it is raised again where reads are judged
                failure = error
            else:
                self._busy = False
                if events:
                    self._hand_out(events)
                else:
                    machine.receive_nothing(started, monotonic())
                if machine.calm and not machine.notices:
                    self._live = None if self._stopped else live
                    return next(self._events)
                if machine.notices:
                    self._notify()
        if not length_hint(self._events) and not await self._refill(failure):
            raise StopAsyncIteration
        return next(self._events)

    def iter_batches(self) -> AsyncIterator[Sequence[Any]]:
        """
        Iterate over lists of events, each the harvest of one read: the quickest way through a long replay.

        A batch is one unit of delivery: leaving in its middle takes only what `commit(event)` named.
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
            resets: Yield a `TextReset` where earlier text became void.

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
            The visible text; after a reset, what is valid of it.

        Raises:
            EventTooLarge: It is over `Limits.text_bytes`.
        """
        reader = self._new_reader("text", resets=True, strict=True)
        async for _ in _Texts(self, reader):
            pass
        return reader.so_far()

    async def commit(self, event: Any = None) -> None:
        """
        Say that `event`, or everything handed out so far, is done with.

        Under `commit="manual"` this alone moves `checkpoint`; otherwise it moves it ahead of the loop's next turn.

        Raises:
            ValueError: The event is older than `Limits.window` events and had no cursor of its own.
        """
        self._commit(event)
        if self._final is None:
            await self._save_if_due()
        else:
            await self._save_now()

    async def cancel(self) -> None:
        """
        Stop the generation at the provider, where it has a call for that. The stream then ends as the provider says.

        Raises:
            ResumableStreamError: The protocol has no such call, the server refused (`ResponseRejected`), or it gave no answer.
        """
        request = self._machine.cancel_request()
        if request is None:
            raise self._no_cancel()
        if self._client is None:
            raise StreamClosed("the stream is closed")
        rearm = RearmedTimeout(self._timeouts.connect)
        try:
            body = _Body(response := await self._send(request, self._build(request, rearm)), rearm)
            try:
                answer = await self._read_whole(response, 65536, body, self._timeouts.connect)
            finally:
                await self._close_body(body)
        except network_errors() as error:
            raise self._unheard_cancel() from error
        self._check_cancel(answer)

    # --- driving

    async def _refill(self, failure: BaseException | None = None) -> bool:
        """Get the next events; False when the stream has ended. `failure`: what the live read ended with."""
        if self._state != "open":
            self._check_readable()
        if self._busy and failure is None:
            raise self._second_reader("task")
        if self._store is not None and self._upto < len(self._batch):
            self._in_hand = 0
            await self._save_if_due()
            self._hand_on()
            return True
        self._in_hand = 0
        latest = self._machine.latest
        if latest and latest is not self._batch and self._replay is None:
            # An interrupt came between its arrival and here. It is the caller's, also if that was a moment ago.
            self._hand_out(latest)
            if failure is not None:
                self._busy = False
                raise failure
            return True
        self._busy = True
        try:
            # Another task's aclose() either sees that we are busy, or is seen here.
            if self._stopped and (failure is None or isinstance(failure, Exception)):
                self._check_closing()
            found = self._replay is not None and await self._next_replayed()
            if not found:
                found = (not self._machine.due and await self._read(failure)) or await self._advance()
        except BaseException as error:
            self._busy = False
            ours = await self._translate(error)
            if ours is error:
                raise
            raise ours from error
        self._busy = False
        if not found:
            try:
                await self._leave("ended")
            except ResumableStreamError:
                raise
            except BaseException:
                # Interrupted in its last save: who asks again has it made, and is told of the end then.
                self._state = "open"
                raise
        return found

    async def _translate(self, error: BaseException) -> BaseException:
        """Our own errors end the stream and carry its place; a foreign one (cancellation) leaves it as a loop body's would."""
        if self._stopped and isinstance(error, Exception) and not isinstance(error, StreamClosed):
            error = StreamClosed("the stream was closed by another task")
        self._note_place(error)
        if isinstance(error, ResumableStreamError):
            self._with_place(error)
            await self._abandon("closed" if isinstance(error, StreamClosed) else "failed")
        elif self._stopped:
            # A cancellation, while another task closes: it has left the closing to us.
            await self._abandon("closed")
        return error

    def _check_closing(self) -> None:
        if self._stopped:
            raise StreamClosed("the stream was closed by another task")

    async def _advance(self, *, opening: bool = False) -> bool:
        """Obey the machine until there are events (True) or the stream has ended (False); `opening` stops at the first read."""
        while True:
            try:
                action: Action = self._machine.next(monotonic())
            except ResumableStreamError:
                # What led to it comes first: a log that ends before the reason is no help.
                self._notify()
                raise
            try:
                if self._machine.notices:
                    self._notify()
                self._check_closing()
            except BaseException:
                self._machine.put_back(action)
                raise
            match action:
                case Read():
                    if opening:
                        return False
                    if await self._read():
                        return True
                case Deliver(events):
                    self._hand_out(events)
                    return True
                case Connect():
                    await self._connect(action)
                case Fetch():
                    await self._fetch(action)
                case Disconnect():
                    await self._disconnect()
                case Sleep(seconds):
                    ends = monotonic() + seconds
                    try:
                        if seconds > 0:
                            await self._save_now()
                        else:
                            # Before an answer that may be long in coming; another comes at once where the server does not wait.
                            await self._save_if_due(before_read=True)
                        await self._sleep(seconds)
                    except BaseException:
                        self._machine.woken(ends, monotonic())
                        raise
                case Save():
                    await self._write(action)
                case Finish():
                    if self._machine.notices:
                        self._notify()
                    return False

    async def _read(self, failure: BaseException | None = None) -> bool:
        """
        Read until there are events (True), or until the machine has something else to say (False).

        Args:
            failure: What a read under way has ended with already.
        """
        machine, body = self._machine, self._body
        while True:
            if self._store is not None and failure is None:
                await self._save_if_due(before_read=True)
            now = monotonic()
            timeout = machine.before_read(now)
            if timeout is not None and timeout <= 0:
                machine.read_timed_out(now)
                return False
            try:
                if failure is not None:
                    raise failure
                events = self._receive(await body.read(timeout))
            except StopAsyncIteration:
                # Of the live read: the end of the body.
                body.ended = True
                events = machine.receive_eof(monotonic())
            except network_errors() as error:
                body.ended = True
                if classify(error) == "timeout":
                    machine.read_timed_out(monotonic(), error)
                else:
                    machine.read_failed(error, monotonic())
                return False
            except BaseException as error:
                # The iterator is dead, or the chunk was never entered: going on must be a reconnect.
                machine.read_failed(error, monotonic(), inside=True)
                raise
            failure = None
            if events:
                self._hand_out(events)
                if machine.calm and not self._stopped:
                    body.arm(machine.before_read(now))
                    self._live = body.plain
            if machine.notices:
                self._notify()
            if events:
                return True
            if machine.due:
                return False
            self._check_closing()

    async def _sleep(self, seconds: float) -> None:
        assert self._closing is not None
        with anyio.move_on_after(seconds):
            await self._closing.wait()
        self._check_closing()

    # --- HTTP

    def _build(self, request: Any, rearm: RearmedTimeout) -> Any:
        if self._client is None:
            self._client = own_client("AsyncClient")
        return self._family.build(
            self._client,
            request,
            self._plan.call,
            accept=self._machine.accept,
            timeouts=self._timeouts,
            read=rearm.seconds,
            rearm=rearm,
        )

    async def _send(self, request: Any, built: Any) -> Any:
        response = None
        # So that aclose() can end the wait for the head.
        with anyio.CancelScope() as self._waiting:
            try:
                response = await self._client.send(built, **self._family.send_arguments(request, self._plan.call))
            except status_errors() as error:
                response = error.response  # type: ignore[attr-defined]
            finally:
                self._waiting = None
        if response is None:
            self._check_closing()
        return response

    async def _connect(self, action: Connect) -> None:
        machine, rearm = self._machine, RearmedTimeout(action.timeout)
        try:
            built = self._build(action.request, rearm)
        except BaseException:
            # The caller's own (a callable `headers`): nothing was sent.
            machine.put_back(action)
            raise
        try:
            response = await self._send(action.request, built)
        except network_errors() as error:
            kind = classify(error)
            machine.connect_failed(error, monotonic(), sent=kind != "unsent", timed_out=kind == "timeout")
            return
        except BaseException as error:
            machine.connect_failed(error, monotonic(), sent=True, inside=True)
            raise
        self._response = response
        self._head = self._family.head(response)
        self._body = _Body(response, rearm)
        machine.receive_head(self._head, monotonic(), wall=time.time())

    async def _fetch(self, action: Fetch) -> None:
        machine, rearm = self._machine, RearmedTimeout(action.timeout)
        try:
            if action.request is None:
                answer = await self._read_whole(self._response, action.limit_bytes, self._body, action.timeout)
            else:
                self._side = body = _Body(response := await self._send(action.request, self._build(action.request, rearm)), rearm)
                try:
                    answer = await self._read_whole(response, action.limit_bytes, body, action.timeout)
                finally:
                    self._side = None
                    await self._close_body(body)
        except network_errors() as error:
            machine.fetch_failed(error, monotonic())
            return
        except BaseException as error:
            machine.fetch_failed(error, monotonic(), inside=True)
            raise
        machine.receive_answer(answer, monotonic())

    async def _read_whole(self, response: Any, limit: int, body: _Body, timeout: float | None) -> Answer:
        """The body, up to a limit and within a time for all of it; what is beyond the limit is cut off."""
        parts: list[bytes] = []
        size = 0
        ends = None if timeout is None else monotonic() + timeout
        while size < limit and (chunk := await body.read(seconds_left(ends))) is not None:
            parts.append(chunk)
            size += len(chunk)
        head = self._family.head(response)
        return Answer(head.status, head.headers, b"".join(parts)[:limit])

    async def _disconnect(self) -> None:
        body, self._body, self._response = self._body, None, None
        if body is not None:
            await self._close_body(body)

    # --- the store (its calls may touch a disk: they go to a worker thread)

    async def _load(self) -> None:
        if self._store is None:
            return
        checkpoint, self._fence = await in_thread(partial(self._store.open, self._plan.key))
        if checkpoint is None:
            return
        self._plan.check(checkpoint)
        self._machine = self._plan.machine(checkpoint)
        if self._starts_over():
            await in_thread(partial(self._store.delete, self._plan.key))
            _, self._fence = await in_thread(partial(self._store.open, self._plan.key))
            self._machine = self._plan.machine(None)
            return
        if self._store.keep_events:
            self._replay = iter(await in_thread(partial(self._store.replay, self._plan.key)))

    async def _next_replayed(self) -> bool:
        assert self._replay is not None
        try:
            if self._torn:
                self._replay = islice(await in_thread(partial(self._store.replay, self._plan.key)), self._replayed, None)
                self._torn = False
            event = await in_thread(partial(next, self._replay, None))
            if event is None:
                self._replay = None
                return False
            # Replayed events are behind the stored place already, so none of them is ever in hand.
            self._events = iter((event,))
            self._replayed += 1
        except BaseException:
            self._torn = True
            raise
        self._machine.count_replayed(1)
        return True

    async def _save_if_due(self, *, before_read: bool = False) -> None:
        if self._store is None or monotonic() < self._machine.save_at:
            return
        response = self._response
        save = self._due_save(before_read=(lambda: response is None or will_block(response)) if before_read else None)
        if save is not None:
            await self._write(save)

    async def _save_now(self) -> None:
        if self._store is not None and (save := self._due_save(force=True)) is not None:
            await self._write(save)

    async def _write(self, save: Save) -> None:
        written = False

        def write() -> None:
            nonlocal written
            self._store.save(self._plan.key, save.checkpoint, save.events, fence=self._fence)
            written = True

        try:
            await in_thread(write)
        except StoreError as error:
            raise self._with_place(error) from error.__cause__
        finally:
            # Also when a cancellation comes out: what is written is not written again.
            if written:
                self._machine.saved(monotonic())


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


class _Texts(AsyncOnly):
    """Iterator over pieces of text; the event stays in hand until its last piece is done with."""

    def __init__(self, stream: AsyncResumableStream, reader: TextReader) -> None:
        self._stream = stream
        self._reader = reader
        self._pieces: Iterator[Any] = NOTHING
        self.ended = False

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
                self.ended = True
                self._pieces = iter(self._reader.finish())
                continue
            try:
                self._pieces = iter(self._reader.read(event))
            except ResumableStreamError as error:
                raise self._stream._with_place(error) from None
            except Exception as error:
                self._stream._note_place(error)
                raise
