"""
Streams of a hub over HTTP, for Starlette and FastAPI: a response that follows a stream, and an app with all routes.

    @app.post("/chat")
    async def chat(request: Request):
        body = await request.json()
        return await hub.respond(request, answer(body), id=body["message_id"])

    @app.get("/chat/{id}")
    async def again(request: Request, id: str):
        return await hub.respond(request, id=id)

    app.mount("/", create_app(hub))           # or all of it: POST /streams, GET /streams/{id}, …

`wire`, `answering` and `bodies` decide what the answer is; this module sends it. It needs starlette (extra `server`).
"""

from __future__ import annotations

import asyncio
import json
import random
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, get_args
from urllib.parse import quote

from .._errors import HistoryGone, LimitReached, ReaderCut
from . import wire
from ._starlette import ClientDisconnect, Headers, Request, Response, Route, Starlette
from .answering import (
    PATH_SAFE,
    TROUBLE,
    Opened,
    TooLarge,
    answer_to_active,
    answer_to_feed,
    answer_to_request,
    answer_to_trouble,
    fingerprint_of,
    owner_of,
    wrong_id,
)
from .bodies import CHUNK_BYTES, Body
from .hub import IfBusy
from .log import CANCEL
from .wire import Answer, Facts, Follow

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from .hub import Hub, Producer
    from .reading import Reader

__all__ = ["CHUNK_BYTES", "HubResponse", "create_app", "respond"]

T = TypeVar("T")

_START: Final = "http.response.start"
_BODY: Final = "http.response.body"


# --- a response that follows a stream -----------------------------------------------------------------------------------


class HubResponse(Response):
    """
    Sends what a reader of a stream gets, until the stream ends or the client leaves.

    `hub.respond()` makes it. It is an ordinary response: its headers can be changed, cookies set, and background tasks run after
    it. The reader is opened when the response is sent, so one that is never sent uses no resources.

    The stream keeps running when a client leaves. A client that accepts no bytes for `send_timeout` seconds is cut; nothing is
    buffered for it meanwhile, and it can return with its cursor. If the stream of a body without ids fails, the body is cut by
    raising `ReaderCut` for the server, so that nobody mistakes the part for the whole.

    Args:
        answer: What to send.
        opened: Opens the reader, or returns why it cannot; `None`: the answer has its complete body.
        send_timeout: Seconds that the server may block a send, to within two.
        extra: Additional headers, also sent with the other answer if the reader cannot be opened.
        body: Makes the body from the reader.
    """

    def __init__(
        self,
        answer: Answer,
        opened: Opened | None = None,
        *,
        send_timeout: float = 60.0,
        extra: Sequence[tuple[str, str]] = (),
        body: Callable[[Reader, Follow], Body] = Body,
    ) -> None:
        super().__init__(None, answer.status)
        self._opened = opened
        self._body_of = body
        self._send_timeout = send_timeout
        self._extra = tuple(extra)
        self._use(answer)

    def _use(self, answer: Answer) -> None:
        self.status_code = answer.status
        self.body = answer.body
        self.raw_headers = wire.encode_headers((*answer.headers, *self._extra))
        self._then = answer.then if self._opened is not None else None
        if self._then is None and answer.status != 204:
            self.raw_headers.append((b"content-length", b"%d" % len(answer.body)))

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """Send the response, as an ASGI app does."""
        # No extra frame while waiting for the client to leave: there are as many of these as readers.
        return self._send_whole(scope, send) if self._then is None else self._follow(scope, receive, send)

    async def _send_whole(self, scope: Scope, send: Send) -> None:
        head = scope["method"] == "HEAD"
        # The length would be that of a GET's answer, which was never made.
        headers = [each for each in self.raw_headers if each[0] != b"content-length"] if head else self.raw_headers
        await send({"type": _START, "status": self.status_code, "headers": headers})
        await send({"type": _BODY, "body": b"" if head else self.body})
        await self._afterwards()

    async def _afterwards(self) -> None:
        if self.background is not None:
            await self.background()

    async def _follow(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._opened is not None and self._then is not None
        reader = await self._opened(self._then)
        # A thousand waiting responses must be small: drop what is no longer needed.
        self._opened = None
        if isinstance(reader, Answer):
            self._use(reader)
            await self._send_whole(scope, send)
            return
        # On most servers `send()` to a client that has left does not raise: only `receive()` reports it. So this task waits for
        # the client to leave, and another one sends.
        with reader:
            sender = _Sender(send, self._send_timeout)
            sender.begin(self._stream(self._body_of(reader, self._then), sender))
            reader.watch = sender.look
            try:
                while (await receive())["type"] != "http.disconnect":
                    pass
            except asyncio.CancelledError:
                if not sender.is_the_cause():
                    raise
            finally:
                await sender.stop()
            sender.result()
        await self._afterwards()

    async def _stream(self, body: Body, sender: _Sender) -> None:
        # One frame between an event and the task: there are as many of these as readers.
        try:
            await sender.send({"type": _START, "status": self.status_code, "headers": self.raw_headers})
            self.raw_headers = []
            # Send the head now: some servers hold it back until the first byte of the body.
            await sender.send({"type": _BODY, "body": self.body, "more_body": True})
            sender.sending = False
            while not body.over:
                waiter = body.pause(sender)
                if waiter is None:
                    piece = await body.next()
                else:
                    try:
                        woken = await waiter
                    except asyncio.CancelledError as exc:
                        await sender.finish(exc)
                        raise
                    await sender.finish()
                    piece = body.resume(woken)
                    if not piece:
                        continue
                sender.sends += 1
                sender.sending = True
                await sender.send({"type": _BODY, "body": piece, "more_body": not body.over})
                sender.sending = False
        except OSError:
            # From a send: newer servers raise it when the client has left.
            pass


class _Sender:
    """
    The sends of one response: by its task, or, while that waits, directly from the event.

    Waking a task per event and reader would cost a quarter of a reader's time. A send that blocks is left to the task.

    It also checks about every second whether a send has blocked for too long; a timer per send would cost as much as the send.

    Args:
        send: The server's, perhaps wrapped by middleware.
        seconds: Longest time that a send may block.

    Attributes:
        sending: A send is under way.
        sends: Number of sends.
        over: A send took too long, and the task was cancelled.
    """

    __slots__ = (
        "_cancels",
        "_context",
        "_loop",
        "_owner",
        "_seconds",
        "_seen",
        "_since",
        "_task",
        "_unfinished",
        "_woken",
        "over",
        "send",
        "sending",
        "sends",
    )

    def __init__(self, send: Send, seconds: float) -> None:
        self.send = send
        self.sends = 0
        self.sending = True
        self.over = False
        self._unfinished: tuple[Generator[Any, Any, None], Any] | None = None
        self._seconds = seconds
        self._seen = -1
        self._since = 0.0

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the sending work in a task. When it is done, the current task is cancelled; see `is_the_cause()`."""
        owner = asyncio.current_task()
        assert owner is not None
        self._owner: asyncio.Task[Any] | None = owner
        self._cancels, self._woken = owner.cancelling(), False
        self._loop = owner.get_loop()
        self._context = copy_context()
        self._task = self._loop.create_task(work, context=self._context)
        self._task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            # Retrieved, so that asyncio does not report it if the other task is cancelled too.
            task.exception()
        if self._owner is not None:
            self._woken = True
            self._owner.cancel()

    def is_the_cause(self) -> bool:
        """The owner was cancelled because everything is sent, and by nobody else."""
        return self._woken and self._owner is not None and self._owner.uncancel() <= self._cancels

    async def stop(self) -> None:
        """Stop sending, and wait until it has stopped."""
        self._owner = None
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    def result(self) -> None:
        """
        Raise the error of the work, if any.

        Raises:
            ReaderCut: A send took too long.
            Exception: Raised by the task.
        """
        if not self._task.cancelled():
            self._task.result()
        elif self.over:
            raise ReaderCut(f"a client took no bytes for {self._seconds} s and was cut; it can return with its cursor")

    def take(self, piece: bytes) -> bool:
        """
        Send a piece at once, as the task would: middleware sees its context, and the task as the current one.

        Returns:
            Whether it is sent. If not, the task has to call `finish()`.

        Raises:
            Exception: From the send.
        """
        self.sends += 1
        asyncio._enter_task(self._loop, self._task)
        try:
            step = self.send({"type": _BODY, "body": piece, "more_body": True}).__await__()
            waits_for = self._context.run(next, step)
        except StopIteration:
            return True
        finally:
            asyncio._leave_task(self._loop, self._task)
        if asyncio.isfuture(waits_for):
            # The future is marked as awaited by a task. Until `finish()` nothing awaits it, and others may.
            waits_for._asyncio_future_blocking = False
        self.sending = True
        self._unfinished = step, waits_for
        return False

    async def finish(self, error: asyncio.CancelledError | None = None) -> None:
        """Finish a blocked send, if any, in the task. `error`: the task was cancelled, and so is the send."""
        if self._unfinished is not None:
            (step, waits_for), self._unfinished = self._unfinished, None
            await _go_on(step, waits_for, error)
            self.sending = False

    def look(self, now: float) -> None:
        """Cancel the task that sends, if its send has taken too long."""
        if not self.sending:
            self._seen = -1
        elif self._seen != self.sends:
            self._seen, self._since = self.sends, now
        elif now - self._since >= self._seconds and not self._task.done():
            self.over = True
            self._task.cancel()


@types.coroutine
def _go_on(step: Generator[Any, Any, None], waits_for: Any, error: BaseException | None) -> Generator[Any, Any, None]:
    """Await the rest of an awaitable that was started outside a task up to `waits_for`, or raise `error` there."""
    while True:
        try:
            if error is None:
                if asyncio.isfuture(waits_for):
                    # As it came from the `await`; see `_Sender.take()`.
                    waits_for._asyncio_future_blocking = True
                try:
                    yield waits_for
                except BaseException as exc:  # noqa: BLE001  it belongs to the awaitable
                    error = exc
            if error is None:
                waits_for = next(step)
            else:
                raised, error = error, None
                waits_for = step.throw(raised)
        except StopIteration:
            return


# --- from a request to a response ---------------------------------------------------------------------------------------


async def respond(
    hub: Hub,
    request: Request,
    /,
    run: Producer | None = None,
    *,
    id: str | None = None,
    owner: str | None = None,
    location: str | None = None,
    extra: Sequence[tuple[str, str]] = (),
    **options: Any,
) -> HubResponse:
    """
    Start or join a stream and follow it, or follow an existing one. `hub.respond()` is this function.

    It honours `Last-Event-ID`, `?after=`, `?view=`, `?from=`, `?control=`, `Stream-Heartbeat`, and, if a stream is started,
    `Prefer: respond-async` and `Idempotency-Key`. Every obstacle (an unknown stream, a key that belongs to another request, an
        unavailable log) becomes an answer with its status, not an exception.

    Args:
        hub: Hub of the stream.
        request: The request to answer.
        run: Makes the events if the stream is started here, see `Hub.start`. `None`: the stream is only followed.
        id: Id of the stream. `None`: the request's `Idempotency-Key`, or else 128 random bits.
        owner: Owner of the stream. `None`: the result of the hub's `authorize`.
        location: Path at which the stream can be read again, for `Content-Location`. `None`: the path of a GET; for a POST, its
            path, a slash and the id.
        extra: Headers that are sent with any answer.
        options: As for `Hub.start`, such as `request=await request.body()`, which is stored for a later producer. Without
            `fingerprint`, the method, path and body of the request are digested.

    Raises:
        ValueError: Neither `run` nor `id` is given.
    """
    answer, opened = await _respond(hub, request, run, id, owner, location, options)
    return HubResponse(answer, opened, send_timeout=hub.send_timeout, extra=extra)


async def _respond(
    hub: Hub,
    request: Request,
    run: Producer | None,
    id: str | None,
    owner: str | None,
    location: str | None,
    options: dict[str, Any],
) -> tuple[Answer, Opened | None]:
    return await answer_to_request(
        hub,
        facts_of(request),
        run,
        id=id,
        owner=owner,
        location=location,
        path=request.scope["path"],
        fingerprint=lambda: _fingerprint(hub, request),
        options=options,
    )


def facts_of(request: Request) -> Facts:
    """The facts of a Starlette request."""
    # Not `request.headers`: the request would keep them as long as its stream is followed.
    return Facts(request.method, dict(Headers(scope=request.scope)), request.scope["query_string"].decode("latin-1"))


async def left(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_there(receive: Receive, work: Coroutine[Any, Any, T] | asyncio.Future[T]) -> T:
    """
    Await something as long as the client is connected.

    Raises:
        ClientDisconnect: The client left; the work was cancelled.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        for each in (working, leaving):
            if not each.done():
                each.cancel()
                # Close what it opened before continuing.
                await asyncio.wait({each})


def path_of(request: Request) -> str:
    """The path of a Starlette request, percent-encoded."""
    # A path that begins with two slashes would be another host.
    return "/" + quote(request.scope["path"].strip("/"), safe=PATH_SAFE)


# --- bodies -------------------------------------------------------------------------------------------------------------


async def body_of(hub: Hub, request: Request) -> bytes:
    """The body of a request, within the hub's limit."""
    limit = hub.limits.body_bytes
    if hasattr(request, "_body"):
        return await request.body()
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told) > limit:
        raise TooLarge(limit)
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise TooLarge(limit)
        pieces.append(piece)
    # Stored as Starlette does, so that it can be read again.
    request._body = b"".join(pieces)
    return request._body


async def _fingerprint(hub: Hub, request: Request) -> str:
    """Distinguishes requests under the same id: method, path and body, but no header, which may be a secret."""
    try:
        body = await body_of(hub, request)
    except RuntimeError:
        # The application has read it piece by piece: it is gone, and nothing is compared.
        return ""
    return fingerprint_of(request.method, request.scope["path"], body)


async def _json_body(hub: Hub, request: Request) -> dict[str, Any] | Answer:
    body = await body_of(hub, request)
    try:
        value = json.loads(body)
    except ValueError as exc:
        return wire.bad_request("the body", "JSON", str(exc))
    if not isinstance(value, dict):
        return wire.bad_request("the body", "a JSON object", type(value).__name__)
    return value


def _text(body: Mapping[str, Any], name: str, *, limit: int = 1024) -> str | Answer | None:
    value = body.get(name)
    try:
        if value is None or (isinstance(value, str) and 0 < len(value.encode()) <= limit):
            return value
    except UnicodeEncodeError:
        pass  # half of a character: JSON can carry it, but it cannot be stored
    return wire.bad_request(f"{name!r} in the body", f"text of 1 to {limit} bytes, or nothing", str(value))


# --- the app ------------------------------------------------------------------------------------------------------------

Handler: TypeAlias = "Callable[[Request], Awaitable[Answer | tuple[Answer, Opened | None]]]"


def create_app(hub: Hub, *, cors: Sequence[str] = (), lifespan: bool = True) -> Starlette:
    """
    Make an app with all routes of a hub.

    | request | answer |
    |---|---|
    | `POST /streams` `{"kind", "input", "session", "if_busy", "by", "supersedes"}` | the started or joined stream |
    | `GET /streams/{id}` | the events after `Last-Event-ID` or `?after=`, then live events |
    | `HEAD /streams/{id}` | its state, in headers |
    | `DELETE /streams/{id}` | 204: cancelled and deleted |
    | `GET /streams/{id}/message` | its text so far, in one piece |
    | `POST /streams/{id}/messages` `{"data", "kind"}` | 202 and the place in the inbox |
    | `POST /streams/{id}/cancel` | 202, or 200 if it has ended |
    | `GET /sessions/{session}/stream` | the newest running stream of the session, or 204 |
    | `GET /sessions/{session}/feed` | the events of the session, see `Hub.session()`; it never ends |
    | `GET /health` | 200, or 503 while the hub shuts down |

    A stream is started by a producer that was registered with `hub.kind(name)`; its `gen.request` is the body of the request.
    `Idempotency-Key` is the id of the stream.

    It can be mounted anywhere: `Content-Location` has the full path. Error answers are JSON.

    Args:
        hub: Hub of the streams.
        cors: Origins whose pages may use the routes, such as `https://app.example.com`; `["*"]`: all. None by default.
        lifespan: The app enters the hub when it starts, and leaves it at the end. A mounted app gets neither call: there the
            outer app needs `lifespan=hub.lifespan`, and this may stay as it is.

    Raises:
        ValueError: An origin that no browser sends.
    """
    app = _Routes(hub)
    paths: dict[str, dict[str, Handler]] = {
        "/streams": {"POST": app.start},
        "/streams/{id}": {"GET": app.read, "DELETE": app.forget},
        "/streams/{id}/message": {"GET": app.message},
        "/streams/{id}/messages": {"POST": app.say},
        "/streams/{id}/cancel": {"POST": app.cancel},
        "/sessions/{session:path}/stream": {"GET": app.active},
        "/sessions/{session:path}/feed": {"GET": app.feed},
        "/health": {"GET": app.health},
    }
    return app_of(hub, paths, wire.check_origins(cors), lifespan=hub.lifespan if lifespan else None)


def app_of(
    hub: Hub,
    paths: Mapping[str, Mapping[str, Handler]],
    origins: Sequence[str],
    *,
    more: Sequence[Route] = (),
    lifespan: Callable[[Any], Any] | None,
) -> Starlette:
    """
    Make an app from handlers.

    Args:
        hub: Hub of the streams.
        paths: Handlers by method, by path.
        origins: Origins whose pages may use it, validated.
        more: Routes that answer by themselves.
        lifespan: Entered when the app starts; `None`: nothing.
    """

    async def not_found(request: Request, exc: Exception) -> Response:
        return HubResponse(wire.not_found(), extra=wire.cors_headers(request.headers.get("origin"), origins))

    routes = [Route(path, _Resource(hub, handlers, origins)) for path, handlers in paths.items()]
    return Starlette(routes=[*routes, *more], exception_handlers={404: not_found}, lifespan=lifespan)


class _Resource:
    """One path: its methods, OPTIONS, and the headers of every answer."""

    def __init__(self, hub: Hub, handlers: Mapping[str, Handler], origins: Sequence[str]) -> None:
        self._hub = hub
        self._handlers = dict(handlers)
        if "GET" in handlers:
            self._handlers["HEAD"] = handlers["GET"]
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # In two steps, so that nothing of the request is kept while its stream is followed.
        response = await self._answer(Request(scope, receive))
        if response is not None:
            await response(scope, receive, send)

    async def _answer(self, request: Request) -> HubResponse | None:
        """The response; `None` if the client left in the middle of its request."""
        extra = wire.cors_headers(request.headers.get("origin"), self._origins)
        handler = self._handlers.get(request.method)
        opened: Opened | None = None
        if request.method == "OPTIONS":
            answer, extra = wire.preflight(facts_of(request), self._origins), ()
        elif handler is None:
            answer = wire.method_not_allowed(*self._handlers, "OPTIONS")
        else:
            try:
                found = await handler(request)
            except ClientDisconnect:
                return None
            except TooLarge as exc:
                found = wire.too_large(exc.limit)
            answer, opened = (found, None) if isinstance(found, Answer) else found
        return HubResponse(answer, opened, send_timeout=self._hub.send_timeout, extra=extra)


class _Routes:
    """The handlers of the routes."""

    def __init__(self, hub: Hub, *, streams: str = "/streams") -> None:
        self._hub = hub
        self._streams = streams

    def _path(self, request: Request, id: str) -> str:
        root = quote(request.scope.get("root_path", "").strip("/"), safe=PATH_SAFE)
        return wire.path_of(id, prefix=f"/{root}{self._streams}/" if root else f"{self._streams}/")

    def _location(self, request: Request, id: str, owner: str) -> str:
        """Where a stream that is being read can be read again."""
        return self._path(request, id)

    async def _allowed(self, request: Request, action: str) -> tuple[str, str] | Answer:
        """The id in the path, and the owner whose streams the request may see."""
        id = request.path_params["id"]
        owner = await owner_of(self._hub, facts_of(request), id, action)
        if owner is None or wrong_id(id) is not None:
            return wire.not_found()
        return id, owner

    async def start(self, request: Request) -> Answer | tuple[Answer, Opened | None]:
        """`POST /streams`."""
        body = await _json_body(self._hub, request)
        if isinstance(body, Answer):
            return body
        kind = body.get("kind")
        run = self._hub.kinds.get(kind) if isinstance(kind, str) else None
        if run is None:
            return wire.bad_request("'kind' in the body", "the name of a kind that the server has registered", str(kind))
        session, supersedes = _text(body, "session"), _text(body, "supersedes", limit=256)
        if_busy, by = _text(body, "if_busy"), _text(body, "by", limit=256)
        for each in (session, supersedes, if_busy, by):
            if isinstance(each, Answer):
                return each
        if if_busy not in (None, *get_args(IfBusy)) or (if_busy not in (None, "parallel") and session is None):
            return wire.bad_request("'if_busy' in the body", f"{' or '.join(get_args(IfBusy))}, and a session", str(if_busy))
        if isinstance(supersedes, str) and wrong_id(supersedes) is not None:
            return wire.bad_request("'supersedes' in the body", "the id of a stream", supersedes)
        options = {
            "request": await body_of(self._hub, request),
            "session": session,
            "if_busy": if_busy or "parallel",
            "by": by or "",
            "supersedes": supersedes,
        }
        return await _respond(self._hub, request, run, None, None, None, options)

    async def read(self, request: Request) -> Answer | tuple[Answer, Opened | None]:
        """`GET` and `HEAD /streams/{id}`."""
        allowed = await self._allowed(request, "read")
        if isinstance(allowed, Answer):
            return allowed
        id, owner = allowed
        return await _respond(self._hub, request, None, id, owner, self._location(request, id, owner), {})

    async def message(self, request: Request) -> Answer:
        """`GET /streams/{id}/message`."""
        allowed = await self._allowed(request, "read")
        if isinstance(allowed, Answer):
            return allowed
        id, owner = allowed
        try:
            state, so_far = await self._hub.state(id, owner=owner), await self._hub.message(id, owner=owner)
        except HistoryGone as exc:
            return wire.answer_to_message(exc.gone, random=random.random())
        except TROUBLE as exc:
            return answer_to_trouble(exc)
        cursor = so_far.cursor
        standing = wire.Standing(head=state.head, epoch=cursor.epoch, n=cursor.n, b=state.b, ending=so_far.ending)
        return wire.answer_to_message(standing, text=so_far.text, random=random.random())

    async def say(self, request: Request) -> Answer:
        """`POST /streams/{id}/messages`."""
        allowed = await self._allowed(request, "say")
        if isinstance(allowed, Answer):
            return allowed
        asked = wire.asked(facts_of(request))
        if isinstance(asked, Answer):
            return asked
        body = await _json_body(self._hub, request)
        if isinstance(body, Answer):
            return body
        kind = _text(body, "kind", limit=64)
        if isinstance(kind, Answer):
            return kind
        if kind == CANCEL:
            return wire.bad_request("'kind' in the body", f"a word of the application; {CANCEL!r} has its own route", kind)
        if "data" not in body:
            return wire.bad_request("'data' in the body", "text, or any JSON value", "nothing")
        data = body["data"]
        text = data if isinstance(data, str) else wire.to_json(data)
        id, owner = allowed
        try:
            return wire.said(await self._hub.say(id, text, mid=asked.key, kind=kind or "message", owner=owner))
        except LimitReached as exc:
            return wire.inbox_full(exc.limit)
        except TROUBLE as exc:
            return answer_to_trouble(exc)
        except ValueError as exc:
            return wire.bad_request("'data' in the body", str(exc), text)

    async def cancel(self, request: Request) -> Answer:
        """`POST /streams/{id}/cancel`."""
        allowed = await self._allowed(request, "cancel")
        if isinstance(allowed, Answer):
            return allowed
        id, owner = allowed
        try:
            running = await self._hub.cancel(id, owner=owner)
            return wire.told_to_stop(None if running else (await self._hub.state(id, owner=owner)).ending)
        except TROUBLE as exc:
            return answer_to_trouble(exc)

    async def forget(self, request: Request) -> Answer:
        """`DELETE /streams/{id}`."""
        allowed = await self._allowed(request, "forget")
        if isinstance(allowed, Answer):
            return allowed
        id, owner = allowed
        try:
            await self._hub.forget(id, owner=owner)
        except TROUBLE as exc:
            return answer_to_trouble(exc)
        return wire.forgotten()

    async def active(self, request: Request) -> tuple[Answer, Opened | None]:
        """`GET` and `HEAD /sessions/{session}/stream`."""
        session = request.path_params["session"]
        return await answer_to_active(
            self._hub, facts_of(request), session, owner=None, location_of=lambda id: self._path(request, id)
        )

    async def feed(self, request: Request) -> tuple[Answer, Opened | None]:
        """`GET` and `HEAD /sessions/{session}/feed`."""
        session = request.path_params["session"]
        return await answer_to_feed(self._hub, facts_of(request), session, owner=None, location=path_of(request))

    async def health(self, request: Request) -> Answer:
        """`GET /health`: whether this instance accepts work."""
        if self._hub.draining:
            return wire.unavailable("draining", random=random.random())
        return wire.healthy()
