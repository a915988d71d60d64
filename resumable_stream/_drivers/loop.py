"""
The loop that drives the machine, written once for sync and async.

Everything that may wait is a coroutine here, over a few primitives: send, sleep, call a store, close a client, and the body's
`read()` and `close()`. The async stream awaits them. The primitives of the sync stream block and never suspend, so its
coroutines run from their first line to their last in one `send()`.

Two things would break this: a primitive of the sync stream that awaits something which suspends, and a `StopIteration` that
leaves a coroutine, which Python turns into a `RuntimeError`. For the caller's own `StopIteration` (a callable that calls `next()`
on an exhausted iterator) that is right, since it would otherwise end the stream silently; the end of the stream is a value here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from functools import partial
from itertools import islice
from threading import RLock
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from .._contract import Answer
from .._core.actions import Action, Connect, Deliver, Disconnect, Fetch, Finish, Read, Save, Sleep
from .._errors import ResumableStreamError, StoreError, StreamClosed
from .base import Plan, StreamBase
from .http import RearmedTimeout, classify, network_errors, own_client, status_errors, will_block

__all__ = ["Body", "Loop", "at_once"]

T = TypeVar("T")

# Maximum bytes read of the answer to a cancel request: enough for any provider's error.
_CANCEL_BYTES = 65_536


def at_once(begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """
    Run a coroutine whose primitives never suspend.

    Args:
        begin: Makes the coroutine. It is called here, in one expression with the start: if an interrupt kept a coroutine from
            starting, Python would warn that it was never awaited.
    """
    try:
        begin().send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise RuntimeError("a primitive of the sync stream suspended")


class Body(Protocol):
    """
    The chunks of one response, decoded, with a read timeout that can change.

    Attributes:
        response: The library's response.
        plain: The source of chunks that need neither decoding nor our own clock; `None`: always use `read()`.
        ended: Nothing more can be read.
    """

    response: Any
    plain: Any
    ended: bool

    async def read(self, timeout: float | None) -> bytes | None:
        """The next chunk, or `None` at the end."""

    def arm(self, timeout: float | None) -> bool:
        """Whether a read from `plain` takes at most that long, as far as this transport knows."""

    def wake(self) -> None:
        """End the read that another thread or task is waiting in."""

    async def finish(self) -> None:
        """Read the little that an honest end leaves unread, so that the connection can be reused."""

    async def close(self) -> None:
        """Close the response."""


class Loop(StreamBase):
    """What a stream does, in sync and async code alike."""

    _one: ClassVar[str]  # who reads it: a thread, or a task
    _kind: ClassVar[Literal["Client", "AsyncClient"]]

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._leaving = RLock()  # a signal handler may close too
        self._begun = False  # the latest action has begun, so its result must be reported to the machine
        self._kept = 0  # events that this stream has saved

    # --- the primitives

    @abstractmethod
    def _me(self) -> int:
        """The value of `_busy` while the caller reads."""

    @abstractmethod
    def _read_elsewhere(self) -> bool:
        """Whether another thread or task is reading."""

    @abstractmethod
    async def _send(self, built: Any, **options: Any) -> Any:
        """The response, once its head is there. `_wake()` ends the wait."""

    @abstractmethod
    def _clock(self, seconds: float | None) -> RearmedTimeout | None:
        """A replacement for the read timeout, if bodies re-arm it; otherwise `None`."""

    @abstractmethod
    def _new_body(self, response: Any, clock: Any) -> Body:
        """The body of a response; `clock` is the read timeout of its request."""

    @abstractmethod
    async def _wait(self, seconds: float) -> None:
        """Wait some seconds. `_wake()` ends the wait."""

    @abstractmethod
    def _wake(self) -> None:
        """The stream is closed from elsewhere: end whatever its reader is waiting in."""

    @abstractmethod
    async def _call(self, function: Callable[[], T]) -> T:
        """Call a store, which may touch a disk."""

    def _wrote(self, save: Save) -> bool:
        """Whether the store has the events of an interrupted save, if the call itself does not report that."""
        return False

    async def _save_at_last(self) -> None:
        """The last save."""
        await self._save_now()

    @abstractmethod
    async def _close_client(self, client: Any) -> None: ...

    # --- opening and leaving

    async def _open(self) -> None:
        if self._state != "new":
            self._check_readable()
            return
        self._state = "open"
        self._busy = self._me()
        try:
            await self._load()
            if self._replay is None:
                await self._advance(opening=True)
            # A concurrent close either saw that we were busy, or is seen here.
            self._busy = 0
            self._check_closing()
        except BaseException as error:
            self._busy = 0
            self._note_place(error)
            if isinstance(error, ResumableStreamError):
                self._with_place(error)
            await self._abandon("closed" if isinstance(error, StreamClosed) else "failed")
            raise

    async def _exit(self, exc: BaseException | None) -> None:
        self._left = True
        if self._read_elsewhere():
            # The reader leaves the stream when it is woken.
            await self._close()
            return
        if exc is None:
            self._take_in_hand()
            await self._leave("ended" if self._concluded() else "closed")
            return
        try:
            await self._leave("closed")
        except StoreError as error:
            # The exception being raised matters more. It carries the right position; only the store's is older.
            exc.add_note(f"resumable_stream: the checkpoint could not be saved: {error}")

    async def _close(self) -> None:
        self._stopped = self._left = True
        self._live = None
        if self._busy:
            self._wake()
        else:
            await self._leave("closed")

    async def _leave(self, state: str) -> None:
        with self._leaving:
            opened, self._state = self._state == "open", state if self._state in ("new", "open") else self._state
        if not opened:
            await self._release()
            return
        try:
            await self._save_at_last()
        finally:
            self._final = self._machine.checkpoint(self._taken(), self._batch)
            self._withhold()
            await self._release()

    async def _abandon(self, state: str) -> None:
        """Leave after an exception that matters more than anything closing may raise."""
        with suppress(StoreError):
            await self._leave(state)

    async def _release(self) -> None:
        """Close whatever is open. A network failure does not make this fail."""
        with self._leaving:
            body, self._body, self._live = self._body, None, None
            replay, self._replay = self._replay, None
            client, self._client = (self._client, None) if self._owns_client else (None, self._client)
        async with AsyncExitStack() as stack:
            if client is not None:
                stack.push_async_callback(self._close_client, client)
            if replay is not None:
                stack.callback(getattr(replay, "close", lambda: None))
            if body is not None:
                stack.push_async_callback(self._close_body, body)

    async def _close_body(self, body: Body) -> None:
        with suppress(*network_errors()):
            await body.close()

    async def _cancel(self) -> None:
        request, seconds = self._machine.requests.cancel(), self._timeouts.connect
        if request is None:
            raise self._no_cancel()
        if self._client is None:
            raise StreamClosed("the stream is closed")
        try:
            body = await self._exchange(request, self._build(request, seconds))
            try:
                answer = await self._read_whole(body, _CANCEL_BYTES, seconds)
            finally:
                await self._close_body(body)
        except network_errors() as error:
            raise self._unheard_cancel() from error
        self._check_cancel(answer)

    # --- driving

    async def _refill(self) -> bool:
        """Get the next events; False when the stream has ended."""
        if self._state != "open":
            self._check_readable()
        if self._read_elsewhere():
            raise self._second_reader(self._one)
        if self._store is not None and self._upto < len(self._batch):
            self._in_hand = 0
            await self._save_if_due()
            self._hand_on()
            return True
        self._in_hand = 0
        latest = self._machine.latest
        if latest and latest is not self._batch and self._replay is None:
            # An interrupt came after the batch arrived and before it was delivered. Deliver it now.
            self._hand_out(latest)
            failure, self._failure = self._failure, None
            if failure is not None:
                self._busy = 0
                raise failure
            return True
        self._busy = self._me()
        try:
            # A concurrent close either sees that we are busy, or is seen here.
            if self._failure is None or isinstance(self._failure, Exception):
                self._check_closing()
            found = self._replay is not None and await self._next_replayed()
            if not found:
                found = (not self._machine.due and await self._read()) or await self._advance()
        except BaseException as error:
            self._busy = 0
            ours = await self._translate(error)
            if ours is error:
                raise
            raise ours from error
        self._busy = 0
        if not found:
            try:
                await self._leave("ended")
            except ResumableStreamError:
                raise
            except BaseException:
                # The last save was interrupted. The next call repeats it, and then reports the end.
                self._state = "open"
                raise
        return found

    async def _translate(self, error: BaseException) -> BaseException:
        """Our own errors end the stream and carry its position; others (an interrupt) leave it as one in a loop body would."""
        if self._stopped and isinstance(error, Exception) and not isinstance(error, StreamClosed):
            error = self._closed_by_another()
        self._note_place(error)
        if isinstance(error, ResumableStreamError):
            self._with_place(error)
            await self._abandon("closed" if isinstance(error, StreamClosed) else "failed")
        elif self._stopped:
            # Interrupted while the stream is being closed from elsewhere, which leaves the closing to us.
            await self._abandon("closed")
        return error

    def _check_closing(self) -> None:
        if self._stopped:
            raise self._closed_by_another()

    def _closed_by_another(self) -> StreamClosed:
        return StreamClosed(f"the stream was closed by another {self._one}")

    async def _advance(self, *, opening: bool = False) -> bool:
        """Drive the machine until there are events (True) or the stream ends (False); `opening` stops at the first read."""
        machine = self._machine
        while True:
            try:
                action: Action = machine.next(self._now())
            except ResumableStreamError:
                # First show the notices that led to the error, since a log without the reason does not help.
                self._notify()
                raise
            self._begun = False
            try:
                if machine.notices:
                    self._notify()
                self._check_closing()
                match action:
                    case Read():
                        if opening:
                            return False
                        if await self._read():
                            return True
                    case Deliver(events):
                        self._begun = True
                        self._hand_out(events)
                        return True
                    case Connect():
                        await self._connect(action)
                    case Fetch():
                        await self._fetch(action)
                    case Disconnect():
                        await self._disconnect()
                    case Sleep(seconds):
                        await self._sleep(seconds)
                    case Save():
                        await self._write(action)
                    case Finish():
                        if machine.notices:
                            self._notify()
                        return False
            except BaseException:
                if not self._begun:
                    # An interrupt, or the caller's code (an observer, a callable `headers`), raised before anything was done.
                    machine.put_back(action)
                raise

    async def _read(self) -> bool:
        """Read until there are events (True), or until the machine wants something else (False)."""
        machine, body = self._machine, self._body
        while True:
            failure = self._failure
            if self._store is not None and failure is None:
                await self._save_if_due(before_read=True)
            now = self._now()
            timeout = machine.before_read(now)
            if timeout is not None and timeout <= 0 and failure is None:
                machine.read_timed_out(now)
                return False
            try:
                if failure is None:
                    chunk = await body.read(timeout)
                elif isinstance(failure, (StopIteration, StopAsyncIteration)):
                    # The live read reached the end of the body.
                    body.ended, chunk = True, None
                else:
                    raise failure
                events = self._receive(chunk)
            except network_errors() as error:
                body.ended = True
                if classify(error) == "timeout":
                    machine.read_timed_out(self._now(), error)
                else:
                    machine.read_failed(error, self._now())
                self._failure = None
                return False
            except BaseException as error:
                # The iterator is dead, or the chunk was never entered, so continuing needs a reconnect.
                machine.read_failed(error, self._now(), inside=True)
                self._failure = None
                raise
            self._failure = None
            if events:
                self._hand_out(events)
                live = body.plain
                if live is not None and machine.calm and not self._stopped and body.arm(machine.before_read(now)):
                    self._live = live
            if machine.notices:
                self._notify()
            if events:
                return True
            if machine.due:
                return False
            self._check_closing()

    async def _sleep(self, seconds: float) -> None:
        ends = self._now() + seconds
        self._begun = True
        try:
            if seconds > 0:
                await self._save_now()
            else:
                # Save before an answer that may take long; if the server does not wait, the answer comes at once.
                await self._save_if_due(before_read=True)
            await self._wait(seconds)
            self._check_closing()
        except BaseException:
            self._machine.woken(ends, self._now())
            raise

    # --- HTTP

    def _build(self, request: Any, seconds: float | None) -> Any:
        if self._client is None:
            self._client = own_client(self._kind)
        return self._family.build(
            self._client,
            request,
            self._plan.call,
            accept=self._machine.accept,
            timeouts=self._timeouts,
            read=seconds,
            rearm=self._clock(seconds),
        )

    async def _exchange(self, request: Any, built: Any) -> Body:
        """Send a request, and return the body of its response once the head is there."""
        clock = built.extensions["timeout"]["read"]
        try:
            response = await self._send(built, **self._family.send_arguments(request, self._plan.call))
        except status_errors() as error:
            response = error.response  # type: ignore[attr-defined]
        return self._new_body(response, clock)

    async def _connect(self, action: Connect) -> None:
        machine, built = self._machine, self._build(action.request, action.timeout)
        self._begun = True
        if (left := self._body) is not None:
            # An interrupt came before the head was judged.
            self._body = None
            await self._close_body(left)
        try:
            self._body = body = await self._exchange(action.request, built)
            self._head = self._family.head(body.response)
        except network_errors() as error:
            kind = classify(error)
            machine.connect_failed(error, self._now(), sent=kind != "unsent", timed_out=kind == "timeout")
            return
        except BaseException as error:
            machine.connect_failed(error, self._now(), sent=True, inside=True)
            raise
        machine.receive_head(self._head, self._now(), wall=self._wall())

    async def _fetch(self, action: Fetch) -> None:
        machine, request = self._machine, action.request
        self._begun = True
        try:
            if request is None:
                answer = await self._read_whole(self._body, action.limit_bytes, action.timeout)
            else:
                self._side = body = await self._exchange(request, self._build(request, action.timeout))
                try:
                    answer = await self._read_whole(body, action.limit_bytes, action.timeout)
                finally:
                    self._side = None
                    await self._close_body(body)
        except network_errors() as error:
            machine.fetch_failed(error, self._now())
            return
        except BaseException as error:
            machine.fetch_failed(error, self._now(), inside=True)
            raise
        machine.receive_answer(answer, self._now())

    async def _read_whole(self, body: Body, limit: int, seconds: float | None) -> Answer:
        """Read the whole body, up to `limit` bytes and within `seconds`; anything beyond the limit is cut off."""
        parts: list[bytes] = []
        size = 0
        ends = None if seconds is None else self._now() + seconds
        while size < limit and (chunk := await body.read(self._seconds_left(ends))) is not None:
            parts.append(chunk)
            size += len(chunk)
        head = self._family.head(body.response)
        return Answer(head.status, head.headers, b"".join(parts)[:limit])

    async def _disconnect(self) -> None:
        self._begun = True
        body, self._body = self._body, None
        if body is None:
            return
        try:
            if self._machine.outcome is not None:
                await body.finish()
        except network_errors():
            # The stream has ended; only the connection is lost.
            return
        finally:
            await self._close_body(body)

    # --- the store

    async def _load(self) -> None:
        if self._store is None:
            return
        checkpoint, self._fence = await self._call(partial(self._store.open, self._plan.key))
        if checkpoint is None:
            return
        self._plan.check(checkpoint)
        self._machine = self._plan.machine(checkpoint)
        if self._starts_over():
            await self._call(partial(self._store.delete, self._plan.key))
            _, self._fence = await self._call(partial(self._store.open, self._plan.key))
            self._machine = self._plan.machine(None)
            return
        if self._store.keep_events:
            self._replay = iter(await self._call(partial(self._store.replay, self._plan.key)))

    async def _next_replayed(self) -> bool:
        assert self._replay is not None
        try:
            if self._torn:
                again = await self._call(partial(self._store.replay, self._plan.key))
                self._replay = islice(again, self._replayed, None)
                self._torn = False
            event = await self._call(partial(next, self._replay, None))
            if event is None:
                self._replay = None
                return False
            # Replayed events are already before the stored position, so none of them is ever in hand.
            self._events = iter((event,))
            self._replayed += 1
        except BaseException:
            self._torn = True
            raise
        self._machine.count_replayed(1)
        return True

    async def _after_commit(self) -> None:
        if self._final is None:
            await self._save_if_due()
        else:
            await self._save_now()

    async def _save_if_due(self, *, before_read: bool = False) -> None:
        if self._store is None or self._now() < self._machine.save_at:
            return
        save = self._due_save(before_read=self._will_block if before_read else None)
        if save is not None:
            await self._write(save)

    def _will_block(self) -> bool:
        return self._body is None or will_block(self._body.response)

    async def _save_now(self) -> None:
        if self._store is not None and (save := self._due_save(force=True)) is not None:
            await self._write(save)

    async def _write(self, save: Save) -> None:
        written, self._begun = False, True

        def write() -> None:
            nonlocal written
            self._store.save(self._plan.key, save.checkpoint, save.events, fence=self._fence)
            written = True

        try:
            await self._call(write)
        except StoreError as error:
            raise self._with_place(error) from error.__cause__
        except BaseException:
            # An interrupt comes before or after the store's one write. If saved again, the events would be stored twice.
            if written or self._wrote(save):
                self._saved(save)
            raise
        self._saved(save)

    def _saved(self, save: Save) -> None:
        self._kept += len(save.events)
        self._machine.saved(self._now())
