"""
The threads of a log in SQLite: one that writes, a few that read.

*One transaction for all waiting calls.* Calls that arrive during a transaction share the next one. A call is answered when its
transaction is committed. If the commit fails, each call is tried again by itself, so that one that cannot succeed does not harm
the others.

*Other processes* are noticed by `PRAGMA data_version`, which changes when another connection has committed. While there are
listeners, the writer checks it every 20 ms, and compares their streams when it has changed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

from .._errors import LogUnavailable
from ._sqlite_file import Handle, SQLiteFile, code_of
from ._sqlite_rows import State, Step, look, spans_between
from .log import Bell, Released, SpanRefused

__all__ = ["Engine", "Listener"]

T = TypeVar("T")

READERS: Final = 4
"""Threads that read. 4: a page takes a millisecond or less, and more threads would only wait for the GIL."""
WAITING: Final = 1024
"""Calls of one event loop that are under way; further calls wait."""
_GROUP: Final = 256
"""Most calls in one transaction. 256: about 20 ms, so that the first need not wait long for the last."""
_DEAF: Final = 1.0
"""Seconds between two checks of a file that cannot be read."""
_LONGEST_STOP: Final = 30.0
"""Seconds to wait for the writer to end. It may be waiting for another process, `busy_timeout` per call."""

_logger = logging.getLogger("resumable_stream.server")


class Listener(Protocol):
    """Receives the bells of streams."""

    def rung(self, bells: Sequence[Bell]) -> None:
        """Accept bells, from any thread."""
        ...

    def hears(self, stream_id: str) -> bool:
        """Whether it still listens to a stream."""
        ...


class _Call(Generic[T]):
    """A call that waits for the writer."""

    __slots__ = ("future", "loop", "work", "writes")

    def __init__(self, work: Callable[[Any], T], *, writes: bool) -> None:
        self.work, self.writes = work, writes
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self.loop.create_future()


_Answer: TypeAlias = tuple[_Call[Any], Any, Exception | None]


class Engine:
    """
    The threads and connections of one log object in one process.

    Args:
        file: The file.
        clock: Seconds, the same for all users of the file.
        poll: Seconds between two checks for commits of other processes, while there are listeners.
    """

    def __init__(self, file: SQLiteFile, *, clock: Callable[[], float], poll: float) -> None:
        self.pid = os.getpid()
        self._file, self._clock, self._poll = file, clock, poll
        self._calls: SimpleQueue[_Call[Any] | None] = SimpleQueue()
        self._writer = Handle(file, writes=True)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        # Readers' connections: the most recently used is used next, because its cache is warm.
        self._readers: list[Handle] = []
        self._idle: list[Handle] = []
        self._pool: ThreadPoolExecutor | None = None
        # The rest belongs to the writer thread, except `_listeners`, which the lock guards.
        self._listeners: dict[str, set[Listener]] = {}
        self._watched: dict[str, State | None] = {}
        self._version: tuple[int, int] | None = None
        self._deaf = False
        self._next_look = 0.0
        self._surplus = False
        self._turn: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None

    @property
    def usable(self) -> bool:
        """Whether it belongs to this process and is not closed."""
        return self.pid == os.getpid() and not self._closed

    def now(self) -> float:
        """The clock, in whole milliseconds, so that stored values compare exactly with computed ones."""
        return int(self._clock() * 1000) / 1000

    # --- called in the event loop

    async def write(self, work: Callable[[Step], T]) -> T:
        """Run a call in a transaction, together with others; returns when the transaction is committed."""
        return await self._ask(_Call(work, writes=True))

    async def listen(self, listener: Listener, stream_id: str) -> None:
        """Ring for every commit to a stream from the return on."""

        def begin(db: sqlite3.Connection) -> None:
            if stream_id not in self._watched:
                self._watched[stream_id] = look(db, stream_id)
            with self._lock:
                # It may have been closed meanwhile.
                if listener.hears(stream_id):
                    self._listeners.setdefault(stream_id, set()).add(listener)

        await self._ask(_Call(begin, writes=False))

    def ignore(self, listener: Listener, stream_ids: Iterable[str]) -> None:
        """Stop ringing."""
        with self._lock:
            for stream_id in stream_ids:
                listeners = self._listeners.get(stream_id, set())
                listeners.discard(listener)
                if not listeners:
                    self._listeners.pop(stream_id, None)

    async def _ask(self, call: _Call[T]) -> T:
        loop = call.loop
        if self._turn is None or self._turn[0] is not loop:
            self._turn = loop, asyncio.Semaphore(WAITING)
        async with self._turn[1]:
            with self._lock:
                if self._closed:
                    raise LogUnavailable(f"the log in {self._file.path} was closed while this call waited")
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name=f"SQLiteLog {self._file.path.name}", daemon=True)
                    self._thread.start()
                self._calls.put(call)
            return await call.future

    async def read(self, work: Callable[[sqlite3.Connection], T], *, stream_id: str | None = None) -> T:
        """Run a call that reads one state of the file, in a thread."""
        with self._lock:
            if self._closed:
                raise LogUnavailable(f"the log in {self._file.path} is closed")
            if self._pool is None:
                self._pool = ThreadPoolExecutor(READERS, thread_name_prefix=f"SQLiteLog {self._file.path.name}")
            pool = self._pool
        try:
            reading = asyncio.get_running_loop().run_in_executor(pool, self._read, work, stream_id)
        except RuntimeError as exc:
            # Closed in between, or Python is shutting down.
            raise LogUnavailable(f"the log in {self._file.path} is closed ({exc})") from exc
        return await reading

    def stop(self, *, wait: bool = False) -> None:
        """
        Finish the waiting writes, and close the connections. May be called from any thread, and repeatedly.

        Args:
            wait: Also wait for the readers. Not allowed in one of their threads.
        """
        if self.pid != os.getpid():
            return  # the threads belong to the parent
        with self._lock:
            first, self._closed = not self._closed, True
            thread, pool = self._thread, self._pool
            if first:
                self._calls.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join(_LONGEST_STOP)
        if pool is not None:
            pool.shutdown(wait=wait)
        for handle in [self._writer, *self._readers]:
            with handle.lock:
                handle.close()

    # --- in the threads that read

    def _read(self, work: Callable[[sqlite3.Connection], T], stream_id: str | None) -> T:
        with self._lock:
            if self._closed:
                raise LogUnavailable(f"the log in {self._file.path} was closed while this call waited")
            handle = self._idle.pop() if self._idle else None
        if handle is None:
            # Outside the lock: a fork waits for handles, and their users wait for the lock.
            handle = Handle(self._file, writes=False)
            with self._lock:
                self._readers.append(handle)
        try:
            with handle.lock:
                try:
                    db = handle.connection()
                    # One transaction, so that record and spans are from the same moment.
                    db.execute("BEGIN")
                    try:
                        return work(db)
                    finally:
                        if db.in_transaction:
                            db.execute("ROLLBACK")
                except (sqlite3.Error, OSError) as exc:
                    handle.close()
                    raise self._file.explained(exc, stream_id=stream_id) from exc
        finally:
            with self._lock:
                self._idle.append(handle)

    # --- in the thread that writes

    def _run(self) -> None:
        calls: list[_Call[Any]] = []
        try:
            while True:
                calls = []
                if not self._next_calls(calls):
                    return
                if calls:
                    self._answer(calls)
                if self._watched and time.monotonic() >= self._next_look:
                    started = time.monotonic()
                    self._look()
                    ended = time.monotonic()
                    # Checking many streams takes a while; limit it to a tenth of the time.
                    self._next_look = max(self._next_look, ended + max(self._poll, 10 * (ended - started)))
        except BaseException as exc:
            # A bug of this module. No call may wait for a dead thread; the next call starts another engine.
            with self._lock:
                self._closed = True
            error = LogUnavailable(f"the thread that writes {self._file.path} has failed: {exc!r}; try again")
            while True:
                self._settle([(call, None, _caused(LogUnavailable(str(error)), exc)) for call in calls])
                calls = []
                if not self._next_calls(calls, wait=False):
                    break
            with self._writer.lock:
                self._writer.close()
            raise

    def _next_calls(self, calls: list[_Call[Any]], *, wait: bool = True) -> bool:
        """Wait for calls, or until the next check; false at the end, or if there are none and `wait` is false."""
        try:
            if wait:
                call = self._calls.get(timeout=max(0.0, self._next_look - time.monotonic()) if self._watched else None)
            else:
                call = self._calls.get_nowait()
            while call is not None:
                calls.append(call)
                if len(calls) >= _GROUP:
                    return True
                call = self._calls.get_nowait()
        except Empty:
            return wait or bool(calls)
        if calls:
            self._calls.put(None)  # first answer the calls that came before the end
        return bool(calls)

    def _answer(self, calls: list[_Call[Any]]) -> None:
        calls = [call for call in calls if not call.future.cancelled()]
        answers: list[_Answer] = []
        looking = [call for call in calls if not call.writes]
        writing = [call for call in calls if call.writes]
        bells: list[Bell] = []
        with self._writer.lock:
            for call in looking:
                answers.append(self._listen(call))
            if writing:
                answers += self._transaction(writing, bells)
        self._settle(answers)
        self._ring(bells)

    def _settle(self, answers: list[_Answer]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[_Answer]] = {}
        for answer in answers:
            by_loop.setdefault(answer[0].loop, []).append(answer)
        for loop, each in by_loop.items():
            try:
                loop.call_soon_threadsafe(_settle, each)
            except RuntimeError:
                pass  # the loop is closed, so nothing in it waits

    def _listen(self, call: _Call[Any]) -> _Answer:
        try:
            return call, call.work(self._writer.connection()), None
        except (sqlite3.Error, OSError, LogUnavailable) as exc:
            self._writer.close()
            return call, None, self._explained(exc)

    def _transaction(self, calls: list[_Call[Any]], bells: list[Bell]) -> list[_Answer]:
        answers: list[_Answer] = []
        try:
            db = self._writer.connection()
            # IMMEDIATE: a transaction that reads first and writes later may be refused without waiting.
            db.execute("BEGIN IMMEDIATE")
        except (sqlite3.Error, OSError, LogUnavailable) as exc:
            if code_of(exc) != sqlite3.SQLITE_BUSY:
                self._writer.close()
            text = str(self._explained(exc))
            # One error each, because each is raised in another task.
            return [(call, None, _caused(LogUnavailable(text), exc)) for call in calls]
        try:
            # The time inside the transaction: a call that waited for the lock is judged by the clock after the wait.
            step = Step(db, self.now(), self._watched)
            step.sweep()
            for call in calls:
                try:
                    answers.append((call, call.work(step), None))
                except (LogUnavailable, SpanRefused) as exc:
                    answers.append((call, None, exc))
            step.flush()
            surplus = (step.freed or self._surplus) and step.give_back()
            db.execute("COMMIT")
        except Exception as exc:  # noqa: BLE001  # it goes to the caller
            self._roll_back(db, exc)
            if len(calls) > 1:
                return self._one_by_one(calls, bells)
            # An OverflowError is a text or a blob above SQLite's limit of 1 GB.
            ours = isinstance(exc, sqlite3.Error | OSError | OverflowError)
            return [(calls[0], None, self._explained(exc) if ours else exc)]
        self._surplus = surplus
        bells += step.bells
        for stream_id, state in step.states().items():
            if stream_id in self._watched:
                self._watched[stream_id] = state
        return answers

    def _one_by_one(self, calls: list[_Call[Any]], bells: list[Bell]) -> list[_Answer]:
        answers: list[_Answer] = []
        for number, call in enumerate(calls):
            answers += self._transaction([call], bells)
            error = answers[-1][2]
            if error is not None and code_of(error.__cause__ or error) == sqlite3.SQLITE_BUSY:
                # The others would each wait just as long.
                answers += [(each, None, _caused(LogUnavailable(str(error)), error.__cause__)) for each in calls[number + 1 :]]
                break
        return answers

    def _roll_back(self, db: sqlite3.Connection, exc: Exception) -> None:
        try:
            if db.in_transaction:
                db.execute("ROLLBACK")
        except sqlite3.Error:
            self._writer.close()
        if isinstance(exc, sqlite3.Error) and code_of(exc) != sqlite3.SQLITE_FULL:
            # Whatever it was, the next transaction opens the file anew.
            self._writer.close()

    def _explained(self, exc: Exception) -> LogUnavailable:
        return _caused(self._file.explained(exc), exc)

    def _look(self) -> None:
        """Ring the streams that other connections have changed."""
        with self._lock:
            heard = set(self._listeners)
        for stream_id in self._watched.keys() - heard:
            del self._watched[stream_id]
        if not self._watched:
            return
        bells: list[Bell] = []
        with self._writer.lock:
            try:
                db = self._writer.connection()
                # Before reading the streams: a commit in between changes it again. Each connection counts from its own start.
                version = self._writer.opened, db.execute("PRAGMA data_version").fetchone()[0]
                if version == self._version and not self._deaf:
                    return
                states = {}
                for stream_id, before in self._watched.items():
                    state = states[stream_id] = look(db, stream_id)
                    if self._deaf:
                        # Nothing was heard for a while, so every stream rings.
                        bells += _bells_of(db, stream_id, None, state)
                    elif state != before:
                        bells += _bells_of(db, stream_id, before, state)
            except (sqlite3.Error, OSError, LogUnavailable) as exc:
                if not self._deaf:
                    _logger.warning("cannot hear other processes: %s", self._explained(exc))
                self._writer.close()
                self._deaf = True
                self._next_look = time.monotonic() + _DEAF
                return
            self._watched.update(states)
            self._version, self._deaf = version, False
        self._ring(bells)

    def _ring(self, bells: list[Bell]) -> None:
        if not bells:
            return
        rung: dict[Listener, list[Bell]] = {}
        with self._lock:
            for bell in bells:
                for listener in self._listeners.get(bell.id, ()):
                    rung.setdefault(listener, []).append(bell)
        for listener, each in rung.items():
            listener.rung(each)


def _bells_of(db: sqlite3.Connection, stream_id: str, before: State | None, state: State | None) -> list[Bell]:
    match before, state:
        case (str(epoch), fence, int(after), *others), (str(now), *_) if (
            now == epoch and state[1] == fence and list(state[3:]) == others and isinstance(state[2], int)
        ):
            # It has grown, and nothing else changed.
            spans = spans_between(db, stream_id, after, state[2])
            if spans:
                return [Bell(id=stream_id, item=span, epoch=epoch, n=span.n) for span in spans]
    match state:
        case (str(epoch), _, int(n), _, _, 0, int(oldest), 1) if before is not None and before[:7] == state[:7]:
            return [Bell(id=stream_id, item=Released(), epoch=epoch, n=n, oldest=oldest if oldest > 1 else None)]
        case (str(epoch), _, int(n), _, _, _, int(oldest), _):
            return [Bell(id=stream_id, epoch=epoch, n=n, oldest=oldest if oldest > 1 else None)]
        case _:
            return [Bell(id=stream_id)]


def _caused(error: LogUnavailable, exc: BaseException | None) -> LogUnavailable:
    """Set the cause, like `raise error from exc`."""
    if error is not exc:
        error.__cause__ = exc
    return error


def _settle(answers: list[_Answer]) -> None:
    for call, result, error in answers:
        if call.future.done():
            continue
        if error is None:
            call.future.set_result(result)
        else:
            call.future.set_exception(error)
