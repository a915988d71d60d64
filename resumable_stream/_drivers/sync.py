"""The synchronous stream: obeys the machine over an `httpx.Client` or an `httpx2.Client`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from operator import length_hint
from threading import get_ident
from time import monotonic
from types import TracebackType
from typing import Any, Literal, Self, overload

from .._core.actions import Action, Connect, Deliver, Disconnect, Fetch, Finish, Read, Save, Sleep
from .._core.interfaces import Answer
from .._errors import ResumableStreamError, StoreError, StreamClosed
from .._events import Delta, TextReset
from .._text import TextReader
from .base import NOTHING, Plan, StreamBase, seconds_left
from .coding import decoding_of
from .http import (
    WatchedConnection,
    classify,
    network_errors,
    over_httpcore,
    own_client,
    shut_down,
    status_errors,
    watch_connection,
    will_block,
)
from .misuse import SyncOnly

__all__ = ["ResumableStream"]

# At an honest end: the last chunk of HTTP is there already, or as good as. A millisecond is cheaper than a TLS handshake.
_LEFTOVER_CHUNKS = 4
_LEFTOVER_SECONDS = 0.005
# A re-armed iterator is kept until the response is closed, so they must stay few: a clock may be late by 1 %.
_TOLERANCE = 0.01


class _Body:
    """
    The chunks of one response, decoded, with a read timeout that can change.

    Sync httpcore fixes the timeout when the iteration begins, so a new one needs a fresh iterator. Closing the old one
    would close the connection: all are kept, and closed after the newest.
    """

    def __init__(self, response: Any, armed: float | None) -> None:
        self._response = response
        self._stream = response.stream
        self._decoding = decoding_of(response.headers.get("content-encoding", ""))
        self._pieces: Iterator[bytes] = NOTHING
        self._raw = iter(self._stream)
        # Where nothing has to be decoded and no clock moved, the driver takes chunks from here directly.
        self.plain = self._raw if self._decoding is None else None
        self._old: list[Any] = []
        self.armed = armed
        self._rearms = over_httpcore(response)
        self.ended = False

    def read(self, timeout: float | None) -> bytes | None:
        """The next chunk, or `None` at the end."""
        for piece in self._pieces:
            return piece
        while True:
            if timeout != self.armed and self._rearms:
                self._arm(timeout)
            chunk: bytes | None = next(self._raw, None)
            if chunk is None:
                self.ended = True
                return None
            if self._decoding is None:
                return chunk
            self._pieces = self._decoding.decode(chunk)
            for piece in self._pieces:
                return piece

    def is_armed(self, timeout: float | None) -> bool:
        """A read from `plain` takes no longer than that, as far as this transport can tell."""
        return timeout == self.armed or not self._rearms

    def _arm(self, timeout: float | None) -> None:
        armed = self.armed
        if timeout is not None and armed is not None and abs(armed - timeout) <= max(_TOLERANCE * timeout, 0.001):
            return
        self.armed = timeout
        self._response.request.extensions["timeout"]["read"] = timeout
        self._old.append(self._raw)
        self._raw = iter(self._stream)
        if self.plain is not None:
            self.plain = self._raw

    def finish(self) -> None:
        """Read what little an honest end leaves behind, so that the connection can be used again."""
        if self.ended or not self._rearms:
            return
        for _ in range(_LEFTOVER_CHUNKS):
            if self.read(_LEFTOVER_SECONDS) is None:
                return

    def close(self) -> None:
        with ExitStack() as stack:
            for iterator in self._old:
                stack.callback(iterator.close)
            stack.callback(self._response.close)
            if (close := getattr(self._raw, "close", None)) is not None:
                stack.callback(self._close_raw, close)

    def _close_raw(self, close: Any) -> None:
        try:
            close()
        except ValueError:
            # Another thread has begun to read meanwhile. A generator that runs cannot be closed; its socket can.
            shut_down(self._response)


class ResumableStream(StreamBase, SyncOnly):
    """
    An iterator over the events of a stream that survives the loss of its connection. Made by `connect()` and `resume()`.

    Use it as a context manager: the first connection is made on entering, and all is closed on leaving.
    One consumer, one thread; only `close()` may be called from another.

        with rs.connect("GET", url) as stream:
            for event in stream:
                print(event.data)
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._closing = threading.Event()
        self._leaving = threading.RLock()  # a signal handler may close too
        self._socket: WatchedConnection | None = None
        self._kept = 0  # events that this stream has saved

    # --- opening and leaving

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        self._left = True
        if self._busy not in (0, get_ident()):
            # It is read in another thread, which leaves it when it is woken.
            self.close()
            return
        if exc is None:
            self._take_in_hand()
            self._leave("ended" if self._concluded() else "closed")
            return
        try:
            self._leave("closed")
        except StoreError as error:
            # The exception under way matters more; the place it carries is right, only the store's is older.
            exc.add_note(f"resumable_stream: the checkpoint could not be saved: {error}")

    def open(self) -> Self:
        """
        Make the first connection, retries included. `with` does it for you; otherwise you owe a `close()`.

        Raises:
            ResumableStreamError: The stream cannot be opened.
        """
        if self._state != "new":
            self._check_readable()
            return self
        self._state = "open"
        self._busy = get_ident()
        try:
            self._load()
            if self._replay is None:
                self._advance(opening=True)
            # Another thread's close() either saw that we were busy, or is seen here.
            self._busy = 0
            self._check_closing()
        except BaseException as error:
            self._busy = 0
            self._note_place(error)
            if isinstance(error, ResumableStreamError):
                self._with_place(error)
            self._abandon("closed" if isinstance(error, StreamClosed) else "failed")
            raise
        return self

    def close(self) -> None:
        """
        Detach: close the connection and keep the place. The generation goes on where the provider lets it; see `cancel()`.

        May be called from another thread: a reader that is blocked there gets `StreamClosed`.
        """
        self._stopped = self._left = True
        self._live = None
        self._closing.set()
        if not self._busy:
            self._leave("closed")
        elif (connection := self._socket) is not None:
            connection.shut_down()
        elif (response := self._side or self._response) is not None:
            shut_down(response)

    def _leave(self, state: str) -> None:
        with self._leaving:
            opened, self._state = self._state == "open", state if self._state in ("new", "open") else self._state
        if not opened:
            self._release()
            return
        try:
            self._save_now()
        finally:
            self._final = self._machine.checkpoint(self._taken(), self._batch)
            self._release()

    def _abandon(self, state: str) -> None:
        """After an exception that matters more than what closing may raise."""
        with suppress(StoreError):
            self._leave(state)

    def _release(self) -> None:
        """Close whatever is open; never fails because the network does."""
        with self._leaving:
            body, self._body, self._response, self._live = self._body, None, None, None
            replay, self._replay = self._replay, None
            client, self._client = (self._client, None) if self._owns_client else (None, self._client)
        with ExitStack() as stack:
            if client is not None:
                stack.callback(client.close)
            if replay is not None:
                stack.callback(getattr(replay, "close", lambda: None))
            if body is not None:
                stack.callback(self._close_body, body)

    def _close_body(self, body: _Body) -> None:
        with suppress(*network_errors()):
            body.close()

    # --- iterating

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        for event in self._events:
            return event
        failure: BaseException | None = None
        if (live := self._live) is not None and (self._store is None or self._may_read_on()):
            # A live stream, flat: what a call costs here is paid for every event.
            machine = self._machine
            self._live = None  # until this read is through: an interrupt goes the long way
            self._in_hand = 0
            started = 0.0
            try:
                self._busy = get_ident()
                started = monotonic()
                chunk = next(live)
                events = machine.receive_live(chunk)
            except BaseException as error:  # noqa: BLE001 - it is raised again where reads are judged
                failure = error
            else:
                self._busy = 0
                if events:
                    self._hand_out(events)
                else:
                    machine.receive_nothing(started, monotonic())
                if machine.calm and not machine.notices:
                    self._live = None if self._stopped else live
                    return next(self._events)
                if machine.notices:
                    self._notify()
        if not length_hint(self._events) and not self._refill(failure):
            raise StopIteration
        return next(self._events)

    def iter_batches(self) -> Iterator[Sequence[Any]]:
        """
        Iterate over lists of events, each the harvest of one read: the quickest way through a long replay.

        A batch is one unit of delivery: leaving in its middle takes only what `commit(event)` named.
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
            resets: Yield a `TextReset` where earlier text became void.

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
            The visible text; after a reset, what is valid of it.

        Raises:
            EventTooLarge: It is over `Limits.text_bytes`.
        """
        reader = self._new_reader("text", resets=True, strict=True)
        for _ in _Texts(self, reader):
            pass
        return reader.so_far()

    def commit(self, event: Any = None) -> None:
        """
        Say that `event`, or everything handed out so far, is done with.

        Under `commit="manual"` this alone moves `checkpoint`; otherwise it moves it ahead of the loop's next turn.

        Raises:
            ValueError: The event is older than `Limits.window` events and had no cursor of its own.
        """
        self._commit(event)
        if self._final is None:
            self._save_if_due()
        else:
            self._save_now()

    def cancel(self) -> None:
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
        try:
            response = self._send(request, self._build(request, read=self._timeouts.connect))
            try:
                answer = self._read_whole(response, 65536, None)
            finally:
                response.close()
        except network_errors() as error:
            raise self._unheard_cancel() from error
        self._check_cancel(answer)

    # --- driving

    def _refill(self, failure: BaseException | None = None) -> bool:
        """Get the next events; False when the stream has ended. `failure`: what the live read ended with."""
        if self._state != "open":
            self._check_readable()
        if self._busy not in (0, get_ident()):
            raise self._second_reader("thread")
        if self._store is not None and self._upto < len(self._batch):
            self._in_hand = 0
            self._save_if_due()
            self._hand_on()
            return True
        self._in_hand = 0
        latest = self._machine.latest
        if latest and latest is not self._batch and self._replay is None:
            # An interrupt came between its arrival and here. It is the caller's, also if that was a moment ago.
            self._hand_out(latest)
            if failure is not None:
                self._busy = 0
                raise failure
            return True
        self._busy = get_ident()
        try:
            # Another thread's close() either sees that we are busy, or is seen here.
            if self._stopped and (failure is None or isinstance(failure, Exception)):
                self._check_closing()
            found = self._replay is not None and self._next_replayed()
            if not found:
                found = (not self._machine.due and self._read(failure)) or self._advance()
        except BaseException as error:
            self._busy = 0
            ours = self._translate(error)
            if ours is error:
                raise
            raise ours from error
        self._busy = 0
        if not found:
            try:
                self._leave("ended")
            except ResumableStreamError:
                raise
            except BaseException:
                # Interrupted in its last save: who asks again has it made, and is told of the end then.
                self._state = "open"
                raise
        return found

    def _translate(self, error: BaseException) -> BaseException:
        """Our own errors end the stream and carry its place; a foreign one (Ctrl-C) leaves it as a loop body's would."""
        if self._stopped and isinstance(error, Exception) and not isinstance(error, StreamClosed):
            error = StreamClosed("the stream was closed by another thread")
        self._note_place(error)
        if isinstance(error, ResumableStreamError):
            self._with_place(error)
            self._abandon("closed" if isinstance(error, StreamClosed) else "failed")
        elif self._stopped:
            # Ctrl-C, while another thread closes: it has left the closing to us.
            self._abandon("closed")
        return error

    def _check_closing(self) -> None:
        if self._stopped:
            raise StreamClosed("the stream was closed by another thread")

    def _advance(self, *, opening: bool = False) -> bool:
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
                    if self._read():
                        return True
                case Deliver(events):
                    self._hand_out(events)
                    return True
                case Connect():
                    self._connect(action)
                case Fetch():
                    self._fetch(action)
                case Disconnect():
                    self._disconnect()
                case Sleep(seconds):
                    ends = monotonic() + seconds
                    try:
                        if seconds > 0:
                            self._save_now()
                        else:
                            # Before an answer that may be long in coming; another comes at once where the server does not wait.
                            self._save_if_due(before_read=True)
                        self._sleep(seconds)
                    except BaseException:
                        self._machine.woken(ends, monotonic())
                        raise
                case Save():
                    self._write(action)
                case Finish():
                    if self._machine.notices:
                        self._notify()
                    return False

    def _read(self, failure: BaseException | None = None) -> bool:
        """
        Read until there are events (True), or until the machine has something else to say (False).

        Args:
            failure: What a read under way has ended with already.
        """
        machine, body = self._machine, self._body
        while True:
            if self._store is not None and failure is None:
                self._save_if_due(before_read=True)
            now = monotonic()
            timeout = machine.before_read(now)
            if timeout is not None and timeout <= 0:
                machine.read_timed_out(now)
                return False
            try:
                if failure is not None:
                    raise failure
                events = self._receive(body.read(timeout))
            except StopIteration:
                # Of the live read: the end of the body.
                body.ended = True
                events = machine.receive_eof(monotonic())
            except network_errors() as error:
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
                if machine.calm and not self._stopped and body.is_armed(machine.before_read(now)):
                    self._live = body.plain
            if machine.notices:
                self._notify()
            if events:
                return True
            if machine.due:
                return False
            self._check_closing()

    def _sleep(self, seconds: float) -> None:
        self._closing.wait(seconds)
        self._check_closing()

    # --- HTTP

    def _build(self, request: Any, *, read: float | None) -> Any:
        if self._client is None:
            self._client = own_client("Client")
        built = self._family.build(
            self._client, request, self._plan.call, accept=self._machine.accept, timeouts=self._timeouts, read=read
        )
        # So that close() can wake us while we wait for the head.
        self._socket = watch_connection(built.extensions)
        return built

    def _send(self, request: Any, built: Any) -> Any:
        try:
            return self._client.send(built, **self._family.send_arguments(request, self._plan.call))
        except status_errors() as error:
            return error.response  # type: ignore[attr-defined]
        finally:
            self._socket = None

    def _connect(self, action: Connect) -> None:
        machine = self._machine
        try:
            built = self._build(action.request, read=action.timeout)
        except BaseException:
            # The caller's own (a callable `headers`): nothing was sent.
            machine.put_back(action)
            raise
        try:
            response = self._send(action.request, built)
        except network_errors() as error:
            kind = classify(error)
            machine.connect_failed(error, monotonic(), sent=kind != "unsent", timed_out=kind == "timeout")
            return
        except BaseException as error:
            machine.connect_failed(error, monotonic(), sent=True, inside=True)
            raise
        self._response = response
        self._head = self._family.head(response)
        self._body = _Body(response, action.timeout)
        machine.receive_head(self._head, monotonic(), wall=time.time())

    def _fetch(self, action: Fetch) -> None:
        machine, response = self._machine, self._response
        side = action.request is not None
        try:
            if side:
                response = self._send(action.request, self._build(action.request, read=action.timeout))
                self._side = response
            try:
                answer = self._read_whole(response, action.limit_bytes, None if side else self._body, action.timeout)
            finally:
                if side:
                    self._side = None
                    response.close()
        except network_errors() as error:
            machine.fetch_failed(error, monotonic())
            return
        except BaseException as error:
            machine.fetch_failed(error, monotonic(), inside=True)
            raise
        machine.receive_answer(answer, monotonic())

    def _read_whole(self, response: Any, limit: int, body: _Body | None, timeout: float | None = None) -> Answer:
        """The body, up to a limit and within a time for all of it; what is beyond the limit is cut off."""
        reader = body or _Body(response, timeout)
        parts: list[bytes] = []
        size = 0
        ends = None if timeout is None else monotonic() + timeout
        while size < limit and (chunk := reader.read(seconds_left(ends))) is not None:
            parts.append(chunk)
            size += len(chunk)
        head = self._family.head(response)
        return Answer(head.status, head.headers, b"".join(parts)[:limit])

    def _disconnect(self) -> None:
        body, self._body, self._response = self._body, None, None
        if body is None:
            return
        try:
            if self._machine.outcome is not None:
                body.finish()
        except network_errors():
            # The stream has ended; only the connection is lost.
            return
        finally:
            self._close_body(body)

    # --- the store

    def _load(self) -> None:
        if self._store is None:
            return
        checkpoint, self._fence = self._store.open(self._plan.key)
        if checkpoint is None:
            return
        self._plan.check(checkpoint)
        self._machine = self._plan.machine(checkpoint)
        if self._starts_over():
            self._store.delete(self._plan.key)
            _, self._fence = self._store.open(self._plan.key)
            self._machine = self._plan.machine(None)
            return
        if self._store.keep_events:
            self._replay = iter(self._store.replay(self._plan.key))

    def _next_replayed(self) -> bool:
        assert self._replay is not None
        try:
            if self._torn:
                self._replay = islice(self._store.replay(self._plan.key), self._replayed, None)
                self._torn = False
            event = next(self._replay, None)
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

    def _save_if_due(self, *, before_read: bool = False) -> None:
        if self._store is None or monotonic() < self._machine.save_at:
            return
        response = self._response
        save = self._due_save(before_read=(lambda: response is None or will_block(response)) if before_read else None)
        if save is not None:
            self._write(save)

    def _save_now(self) -> None:
        if self._store is not None and (save := self._due_save(force=True)) is not None:
            self._write(save)

    def _write(self, save: Save) -> None:
        try:
            self._store.save(self._plan.key, save.checkpoint, save.events, fence=self._fence)
        except StoreError as error:
            raise self._with_place(error) from error.__cause__
        except BaseException:
            # An interrupt comes before or after the store's one write. Saved again, the events would stand there twice.
            if self._has_written(save):
                self._saved(save)
            raise
        self._saved(save)

    def _saved(self, save: Save) -> None:
        self._kept += len(save.events)
        self._machine.saved(monotonic())

    def _has_written(self, save: Save) -> bool:
        if not self._store.keep_events or not save.events:
            return False
        with suppress(StoreError):
            return sum(1 for _ in self._store.replay(self._plan.key)) == self._replayed + self._kept + len(save.events)
        return False


class _Batches(SyncOnly):
    """Iterator over lists of events."""

    def __init__(self, stream: ResumableStream) -> None:
        self._stream = stream

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Sequence[Any]:
        stream = self._stream
        stream._live = None
        if not length_hint(stream._events) and not stream._refill():
            raise StopIteration
        return stream._hand_batch()


class _Texts(SyncOnly):
    """Iterator over pieces of text; the event stays in hand until its last piece is done with."""

    def __init__(self, stream: ResumableStream, reader: TextReader) -> None:
        self._stream = stream
        self._reader = reader
        self._pieces: Iterator[Any] = NOTHING
        self.ended = False

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
