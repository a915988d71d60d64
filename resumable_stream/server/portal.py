"""
A hub for programs without an event loop: WSGI applications such as Flask, and scripts.

    portal = Hub(SQLiteLog("streams.db")).portal()

    portal.start("msg_42", answer(prompt))          # an async generator, or a plain one
    for chunk in portal.follow("msg_42"):           # bytes of server-sent events, with ids
        …

The hub runs in an event loop in its own thread, which starts with the first call and ends with `close()`, or with the
interpreter. All methods may be called from any other thread.
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias, TypeVar

from .._errors import ReaderCut
from .bodies import Body
from .events import Content

if TYPE_CHECKING:
    from .answering import HubAnswer
    from .generation import Generation
    from .hub import Hub, IfBusy, Producer, State, Stream
    from .log import Cursor, Head
    from .reading import View
    from .sessions import Session, SessionMessage
    from .texts import SoFar

__all__ = ["SyncAnswer", "SyncBody", "SyncHub", "SyncProducer", "SyncSession"]

logger = logging.getLogger("resumable_stream.server")

T = TypeVar("T")

SyncProducer: TypeAlias = "Producer | Iterator[Content] | Callable[[], Iterator[Content]]"
"""What makes the events: anything that `Hub.start()` takes, a plain generator, or a generator function."""

_CLOSE_TIMEOUT: Final = 30.0
"""Seconds that `close()` waits for the thread. 30: an unavailable log may take its time, but a program has to end."""


class _Closed(RuntimeError):
    """The portal is closed, or was closed during a call."""


class SyncHub:
    """
    The methods of a hub, as plain calls. `Hub.portal()` makes it.

    It opens at its first use, or with `open()`, and closes with `close()`, at the end of a `with` block, or at the exit of the
    interpreter. Closing the portal closes its hub and, unless `close_log` is false, the log.

    *Processes.* An event loop does not survive a fork. A portal that was opened before the fork raises a `RuntimeError` after it.
    One that is first used in the worker process works, as in a server that forks before it answers, such as gunicorn.

    Args:
        hub: A hub that is not entered otherwise.
        close_log: Also close the log. True: a log belongs to one event loop, which only the portal can reach.
    """

    def __init__(self, hub: Hub, *, close_log: bool = True) -> None:
        self._hub = hub
        self._close_log = close_log
        self._opening = threading.Lock()
        # Guards the following attributes.
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._closed = False
        self._waiting: set[Future[Any]] = set()

    def __repr__(self) -> str:
        stands = "closed" if self._closed else "open" if self._thread is not None else "not open yet"
        return f"<SyncHub ({stands}) of {self._hub!r}>"

    # --- life

    def open(self) -> Self:
        """
        Start the thread and enter the hub. Calling it twice has no further effect.

        Raises:
            RuntimeError: The portal was closed, or opened in another process, or the hub is running elsewhere.
        """
        self._check_process()
        with self._opening:
            if self._closed:
                raise _Closed("this portal is closed; make another hub and its portal")
            if self._thread is None:
                started: Future[None] = Future()
                thread = threading.Thread(target=self._run, args=(started,), name="resumable_stream hub", daemon=True)
                thread.start()
                started.result()
                self._thread, self._pid = thread, os.getpid()
                atexit.register(self._at_exit)
        return self

    def close(self, timeout: float = _CLOSE_TIMEOUT) -> None:
        """
        Stop at once, as `Hub.aclose()` does, and end the thread. Waiting readers are released. Calling it twice has no further
        effect.

        Call `drain()` first to give generations time.

        Args:
            timeout: Most seconds to wait for it.

        Raises:
            TimeoutError: It took longer. The thread ends with the process.
        """
        if self._thread is not None and self._pid != os.getpid():
            return  # It belongs to the parent, which closes it.
        self._check_thread()
        with self._opening:
            self._closed = True
            thread = self._thread
        with self._lock:
            if self._loop is not None and self._stop is not None:
                self._loop.call_soon_threadsafe(self._stop.set)
            self._loop = self._stop = None
        if thread is not None:
            atexit.unregister(self._at_exit)
            thread.join(timeout)
            if thread.is_alive():
                self._give_up()
                raise TimeoutError(f"the hub did not close within {timeout} s; its log may be unavailable")

    def _at_exit(self) -> None:
        # Python's thread pools are already gone, and a log may need them to close. Its files and sockets go with the process.
        self._close_log = False
        self.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def drain(self, timeout: float = 25.0, spread: float = 5.0) -> None:
        """Shut down without losing anything, see `Hub.drain()`. Close the portal afterwards."""
        self._call(lambda: self._hub.drain(timeout, spread))

    def _run(self, started: Future[None]) -> None:
        async def main() -> None:
            stop = asyncio.Event()
            try:
                async with self._hub:
                    with self._lock:
                        self._loop, self._stop = asyncio.get_running_loop(), stop
                    started.set_result(None)
                    await stop.wait()
            finally:
                if started.done() and self._close_log:
                    await self._hub.log.aclose()

        try:
            asyncio.run(main())
        except BaseException as exc:  # passed to the waiter, or logged
            if started.done():
                logger.error("the hub of a portal failed", exc_info=exc)
            else:
                started.set_exception(exc)
        finally:
            self._give_up()

    def _give_up(self) -> None:
        """Cancel the calls that wait for a loop that no longer runs."""
        with self._lock:
            self._loop = self._stop = None
            waiting = list(self._waiting)
        for future in waiting:
            future.cancel()

    def _check_process(self) -> None:
        if self._thread is not None and self._pid != os.getpid():
            raise RuntimeError(
                f"this portal was opened in process {self._pid}, but process {os.getpid()} was forked from it: an event loop "
                "does not survive a fork. Make the hub and its portal in each process, or use them first after the fork"
            )

    def _check_thread(self) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError("a portal is for other threads; in its event loop, await the methods of the hub instead")

    def _call(self, work: Callable[[], Awaitable[T]]) -> T:
        """
        Run something in the loop, and wait for it.

        Raises:
            RuntimeError: The portal is closed, or was closed meanwhile.
        """
        self.open()
        self._check_thread()

        async def awaited() -> T:
            return await work()

        with self._lock:
            if self._loop is None:
                raise _Closed("this portal is closed")
            future = asyncio.run_coroutine_threadsafe(awaited(), self._loop)
            self._waiting.add(future)
        try:
            return future.result()
        except CancelledError:
            raise _Closed("the portal was closed before the call finished") from None
        except BaseException:
            # Raised in this thread, such as Ctrl-C: the work is no longer wanted. Otherwise it is already done.
            future.cancel()
            raise
        finally:
            with self._lock:
                self._waiting.discard(future)

    def _post(self, work: Callable[[], None]) -> None:
        """Run something in the loop soon, unless it has ended. Never waits, so it may be called anywhere."""
        loop = self._loop
        if loop is not None and self._pid == os.getpid():
            try:
                loop.call_soon_threadsafe(work)
            except RuntimeError:
                # The loop has just been closed, with everything in it.
                pass

    # --- methods

    @property
    def hub(self) -> Hub:
        """The hub. Its own methods belong to its event loop."""
        return self._hub

    def start(
        self,
        id: str | None,
        run: SyncProducer,
        *,
        request: bytes | None = None,
        owner: str = "",
        session: str | None = None,
        if_busy: IfBusy = "parallel",
        by: str = "",
        supersedes: str | None = None,
        head: Head | None = None,
        fingerprint: str | None = None,
        again: Literal["failed"] | None = None,
    ) -> Stream:
        """
        Create a stream and run its producer, or join the existing stream. See `Hub.start()`.

        Args:
            id: Id of the stream.
            run: Anything that `Hub.start()` takes, which runs in the event loop of the portal; or a plain generator, or a
                generator function, which runs in its own thread. A plain generator that is cancelled is closed after its next
                item, because nothing can interrupt it while it waits.
            request, owner, session, if_busy, by, supersedes, head, fingerprint, again: As for `Hub.start()`.
        """
        producer = self._producer(run)
        return self._call(
            lambda: self._hub.start(
                id,
                producer,
                request=request,
                owner=owner,
                session=session,
                if_busy=if_busy,
                by=by,
                supersedes=supersedes,
                head=head,
                fingerprint=fingerprint,
                again=again,
            )
        )

    def follow(
        self,
        id: str,
        after: Cursor | str | None = None,
        view: View = "events",
        *,
        from_byte: int = 0,
        owner: str = "",
    ) -> SyncBody:
        """
        Read a stream as the body of an HTTP response. See `Hub.follow()`, also for the errors.

        Returns:
            A plain iterator. It releases the reader at its end, by `close()`, or when it is dropped. `close()` may be called from
                another thread, and ends a waiting `next()`. If it is being read when the portal closes, it raises `ReaderCut`.
        """
        return SyncBody(self, self._hub._opens(id, after, view, from_byte, owner))

    def answer(
        self,
        method: str,
        headers: Mapping[str, str] | Iterable[tuple[str, str]],
        query: str | bytes = "",
        *,
        id: str | None = None,
        run: SyncProducer | None = None,
        path: str | None = None,
        body: bytes | None = None,
        owner: str | None = None,
        location: str | None = None,
        **options: Any,
    ) -> SyncAnswer:
        """
        Answer a request. See `Hub.answer()`; `run` may be a plain generator, as for `start()`.

            answer = portal.answer(request.method, request.headers, request.query_string, id=id, path=request.path)
            return Response(answer, status=answer.status, headers=answer.headers)          # Flask
        """
        producer = None if run is None else self._producer(run)
        # Read them here: some frameworks find the request by the current thread.
        pairs = dict(headers)
        found = self._call(
            lambda: self._hub.answer(
                method,
                pairs,
                query,
                id=id,
                run=producer,
                path=path,
                body=body,
                owner=owner,
                location=location,
                **options,
            )
        )
        return SyncAnswer(self, found)

    def state(self, id: str, *, owner: str = "") -> State:
        """The current state of a stream. See `Hub.state()`."""
        return self._call(lambda: self._hub.state(id, owner=owner))

    def message(self, id: str, *, owner: str = "") -> SoFar:
        """The text of a stream so far. See `Hub.message()`."""
        return self._call(lambda: self._hub.message(id, owner=owner))

    def say(self, id: str, data: str, *, mid: str | None = None, kind: str = "message", owner: str = "") -> int:
        """Post a message to the producer of a running stream. See `Hub.say()`."""
        return self._call(lambda: self._hub.say(id, data, mid=mid, kind=kind, owner=owner))

    def cancel(self, id: str, reason: str = "cancelled_by_user", *, owner: str = "", by: str = "") -> bool:
        """Ask the producer of a stream to stop. See `Hub.cancel()`."""
        return self._call(lambda: self._hub.cancel(id, reason, owner=owner, by=by))

    def forget(self, id: str, *, owner: str = "") -> None:
        """Cancel a stream and delete everything of it. See `Hub.forget()`."""
        self._call(lambda: self._hub.forget(id, owner=owner))

    def session(self, id: str, *, owner: str = "") -> SyncSession:
        """A conversation. See `Hub.session()`."""
        return SyncSession(self, self._hub.session(id, owner=owner))

    def active(self, session: str, *, owner: str = "") -> list[str]:
        """Ids of the running streams of a session. See `Hub.active()`."""
        return self._call(lambda: self._hub.active(session, owner=owner))

    def _producer(self, run: SyncProducer) -> Any:
        if isinstance(run, Iterator) or inspect.isgeneratorfunction(run):
            return _InThread(self, run)
        return run


class SyncSession:
    """The methods of a `Session`, as plain calls. `SyncHub.session()` makes it, and it costs nothing."""

    def __init__(self, portal: SyncHub, session: Session) -> None:
        self._portal = portal
        self._session = session

    def __repr__(self) -> str:
        return f"<SyncSession {self._session.id[:80]!r}>"

    def publish(self, event: str, data: Any, *, mid: str | None = None) -> Cursor:
        """Append an event to the feed. See `Session.publish()`."""
        return self._portal._call(lambda: self._session.publish(event, data, mid=mid))

    def edit(self, mid: str, data: Any) -> Cursor:
        """Change the data of a message. See `Session.edit()`."""
        return self._portal._call(lambda: self._session.edit(mid, data))

    def delete(self, mid: str) -> Cursor:
        """Delete a message. See `Session.delete()`."""
        return self._portal._call(lambda: self._session.delete(mid))

    def messages(self) -> list[SessionMessage]:
        """The messages in their current form. See `Session.messages()`."""
        return self._portal._call(self._session.messages)

    def active(self) -> list[str]:
        """Ids of the running streams. See `Session.active()`."""
        return self._portal._call(self._session.active)

    def snapshot(self) -> tuple[dict[str, Any], Cursor]:
        """The state as JSON data. See `Session.snapshot()`."""
        return self._portal._call(self._session.snapshot)

    def follow(self, after: Cursor | str | None = None, *, presence: bool = False) -> SyncBody:
        """Read the feed as server-sent events. See `Session.follow()`, and `SyncHub.follow()` for the iterator."""
        return SyncBody(self._portal, self._session._opens(after, presence=presence))

    def answer(
        self,
        method: str,
        headers: Mapping[str, str] | Iterable[tuple[str, str]],
        query: str | bytes = "",
        *,
        path: str | None = None,
    ) -> SyncAnswer:
        """Answer a request for the feed. See `Session.answer()`."""
        pairs = dict(headers)
        return SyncAnswer(self._portal, self._portal._call(lambda: self._session.answer(method, pairs, query, path=path)))

    def forget(self) -> None:
        """Delete the feed. See `Session.forget()`."""
        self._portal._call(self._session.forget)


class SyncBody(Iterator[bytes]):
    """
    The body of a response, as a plain iterator. `SyncHub.follow()` makes it; one thread iterates.

    Args:
        portal: Portal of the reader.
        opens: Opens the body, with the first piece.
    """

    def __init__(self, portal: SyncHub, opens: Callable[[], Awaitable[Body]]) -> None:
        self._portal = portal
        self._opens = opens
        self._body: Body | None = None
        self._over = False
        self._task: asyncio.Task[Any] | None = None

    def __iter__(self) -> SyncBody:
        return self

    def __next__(self) -> bytes:
        """
        The next piece.

        Raises:
            ReaderCut: As for `Hub.follow()`, and when the portal was closed.
        """
        if self._over or (self._body is not None and self._body.over):
            self.close()
            raise StopIteration
        try:
            piece = self._portal._call(self._next)
        except _Closed as exc:
            left, self._over = self._over, True
            if left:
                raise StopIteration from None
            raise ReaderCut(f"{exc}, so the body is cut; a request to another process continues it") from None
        except BaseException:
            self.close()
            raise
        if piece is None:
            self.close()
            raise StopIteration
        return piece

    async def _next(self) -> bytes | None:
        self._task = asyncio.current_task()
        try:
            if self._body is None:
                body = await self._opens()
                # Before anything else can happen, so that `_let_go()` finds it.
                self._body = body
            while not self._over and not self._body.over:
                if piece := await self._body.next():
                    return piece
            return None
        finally:
            self._task = None
            if self._over:
                self._let_go()

    def close(self) -> None:
        """Release the reader. May be called from any thread, and more than once."""
        self._over = True
        self._portal._post(self._let_go)

    def _let_go(self) -> None:
        if self._task is not None:
            self._task.cancel()
        elif self._body is not None:
            self._body.close()

    def __del__(self) -> None:
        if not self._over:
            self.close()


class SyncAnswer:
    """
    What a WSGI framework has to send. `SyncHub.answer()` makes it; see `HubAnswer`.

    Attributes:
        status: HTTP status.
        headers: Names and values.
        live: The body follows a stream; otherwise it is complete.
    """

    def __init__(self, portal: SyncHub, answer: HubAnswer) -> None:
        self.status = answer.status
        self.headers = list(answer.headers)
        self.live = answer.live
        self._portal = portal
        self._answer = answer
        self._given: list[SyncBody] = []

    def __repr__(self) -> str:
        return repr(self._answer).replace("HubAnswer", "SyncAnswer")

    def header(self, name: str) -> str | None:
        """The value of a header, case-insensitively; `None` if it is missing."""
        return self._answer.header(name)

    @property
    def body(self) -> bytes:
        """The whole body. See `HubAnswer.body`."""
        return self._answer.body

    def __iter__(self) -> Iterator[bytes]:
        """The body, piece by piece. Each iteration has its own reader."""
        if not self.live:
            return iter([self._answer.body] if self._answer.body else [])
        body = SyncBody(self._portal, self._answer.open)
        self._given.append(body)
        return body

    def close(self) -> None:
        """Release its readers. WSGI servers call it, even if the client has left."""
        for body in self._given:
            body.close()


class _InThread:
    """A plain generator as the producer of a stream: it runs in its own thread, and the loop takes what it yields."""

    def __init__(self, portal: SyncHub, run: Iterator[Content] | Callable[[], Iterator[Content]]) -> None:
        self._portal = portal
        self._run = run
        self._begun = False

    async def __call__(self, gen: Generation) -> None:
        self._begun = True
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        left = threading.Event()

        def settle(error: BaseException | None) -> None:
            if not done.done():
                if error is None:
                    done.set_result(None)
                elif isinstance(error, Exception):
                    done.set_exception(error)
                else:
                    # Such as SystemExit, which would end the loop for everybody.
                    done.set_exception(RuntimeError(f"the producer raised {type(error).__name__}"))

        def work() -> None:
            trouble: BaseException | None = None
            try:
                source = iter(self._run() if callable(self._run) else self._run)
                try:
                    for content in source:
                        if left.is_set() or gen.cancelled:
                            break
                        self._portal._call(partial(gen.send, content))
                finally:
                    _close(source)
            except BaseException as exc:  # noqa: BLE001  # the hub logs it, and ends the stream as failed
                trouble = exc
            self._portal._post(partial(settle, trouble))

        threading.Thread(target=work, name=f"resumable_stream producer of {gen.id[:40]}", daemon=True).start()
        try:
            await done
        finally:
            left.set()

    async def aclose(self) -> None:
        """Close a generator that is not needed."""
        if not self._begun:
            _close(self._run)


def _close(source: object) -> None:
    close = getattr(source, "close", None)
    if close is not None:
        close()
