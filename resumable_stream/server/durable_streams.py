"""
The streams of a hub in the Durable Streams protocol: its clients in many languages can read them, and write their own.

    app.mount("/ds", durable_streams(hub))                  # GET and HEAD /ds/{id}: streams made by hub.start()
    app.mount("/ds", durable_streams(hub, write=True))      # and PUT, POST and DELETE /ds/{any path}

A stream of the hub has its id as its path, and can be read from any byte: catch-up, long poll, server-sent events. Only its
producer appends to it. With `write=True`, clients create their own streams, and append to them through any process over the same
log.

`_durable` decides what an answer is, and `written` keeps the written streams; this module handles requests and responses.

Source: github.com/durable-streams/durable-streams, PROTOCOL.md of 2026-06 (draft).
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from .._errors import HistoryGone, LimitReached, LogUnavailable, StreamUnknown
from . import wire
from ._durable import (
    ALLOWED,
    EXPOSED,
    Asked,
    Events,
    Shown,
    answer_now,
    answer_to_head,
    asked,
    asked_to_append,
    asked_to_create,
    body_of,
    cursor_after,
    failure,
    nothing_yet,
    read_headers,
    sse_headers,
    ttl_of,
)
from ._starlette import ClientDisconnect, Request, Route, Starlette
from .answering import Opened, TooLarge, owner_of
from .asgi import HubResponse, facts_of, path_of, while_there
from .asgi import body_of as read_body
from .bodies import Body
from .log import Cursor, Ending, Gone, Unknown, check_stream_id
from .wire import Answer, Follow

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from .hub import Hub
    from .reading import Reader, Sink

__all__ = ["durable_streams"]

_CHUNK_BYTES: Final = 1 << 20
"""Size of one answer, unless one message is larger. 1 MiB: a client long away makes few requests, none of them large."""
_TIMEOUT: Final = 10.0
"""Seconds that a reader waits for the log before it gets an answer that it is unavailable."""
_LOOKS: Final = 5
"""Attempts to read a stream that is deleted and created again meanwhile."""
_MAX_PATH: Final = 2048
_RESERVED: Final = "__ds"

T = TypeVar("T")


def durable_streams(
    hub: Hub,
    *,
    write: bool = False,
    public: bool = False,
    cors: Sequence[str] = (),
    long_poll: float = 20.0,
    rotate: float = 60.0,
    retention: float = 30 * 86400.0,
    lifespan: bool = True,
) -> Starlette:
    """
    Make an app that speaks the Durable Streams protocol.

    | request | answer |
    |---|---|
    | `GET /{path}?offset=` | the data after the offset, up to 1 MiB; continue from `Stream-Next-Offset` |
    | `GET /{path}?offset=&live=long-poll` | the same, as soon as there is data; 204 if there is none for long |
    | `GET /{path}?offset=&live=sse` | the same as events `data` and `control`, then live data |
    | `HEAD /{path}` | its state |
    | `PUT /{path}` | 201: created, with the body as its first content; 200: it existed already |
    | `POST /{path}` | the body is appended; with `Stream-Closed: true` the stream is closed |
    | `DELETE /{path}` | 204: deleted |

    A path that is a valid stream id is that id; any other path is a separate name. Forks, subscriptions and webhooks are answered
    with 501.

    Args:
        hub: Hub of the streams. Its `authorize` is called for each request: `"read"`, `"create"`, `"append"` or `"forget"`.
        write: Clients may create, append, close and delete. Off, because the streams of a hub have producers.
        public: Anybody may read the streams, so caches may keep data for a minute. Off: a shared cache asks each time.
        cors: Origins whose pages may use the app, such as `https://app.example.com`; `["*"]`: all. None by default.
        long_poll: Seconds that a long poll waits. 20: below the usual idle limits of proxies.
        rotate: Seconds after which server-sent events end, and the client reconnects. 60: the protocol's own figure, which lets
            caches serve many readers with one request.
        retention: Seconds that a written stream is kept after its last append, and after it was closed, if it was created without
            `Stream-TTL` and `Stream-Expires-At`. 30 days.
        lifespan: The app enters the hub when it starts, and leaves it at the end. A mounted app gets neither call: there the
            outer app needs `lifespan=hub.lifespan`.

    Raises:
        ValueError: An origin that no browser sends, an invalid number, or `public` streams that have owners.
    """
    if public and hub.authorize is not None:
        raise ValueError("public streams cannot have owners: leave out public=True, or the hub's authorize")
    for name, seconds in (("long_poll", long_poll), ("rotate", rotate), ("retention", retention)):
        if not 0 < seconds < float("inf"):
            raise ValueError(f"{name} must be more than 0 seconds, got {seconds!r}")
    app = _DurableStreams(hub, write, public, wire.check_origins(cors), long_poll, rotate, retention)
    return Starlette(routes=[Route("/{path:path}", app)], lifespan=hub.lifespan if lifespan else None)


class _DurableStreams:
    """All methods of all paths."""

    def __init__(
        self, hub: Hub, write: bool, public: bool, origins: Sequence[str], long_poll: float, rotate: float, retention: float
    ) -> None:
        self._hub = hub
        self._write = write
        self._public = public
        self._origins = origins
        self._long_poll = long_poll
        self._rotate = rotate
        self._retention = retention
        self._methods = "GET, HEAD, PUT, POST, DELETE" if write else "GET, HEAD"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # In two steps, so that nothing of the request is kept while its stream is followed.
        response = await self._answer(Request(scope, receive))
        if response is not None:
            await response(scope, receive, send)

    async def _answer(self, request: Request) -> HubResponse | None:
        """The response; `None` if the client has left."""
        origin = request.headers.get("origin")
        extra = (
            ("X-Content-Type-Options", "nosniff"),
            ("Cross-Origin-Resource-Policy", "cross-origin" if self._origins else "same-origin"),
            *wire.cors_headers(origin, self._origins, exposed=EXPOSED),
        )
        try:
            found = await self._handle(request)
        except ClientDisconnect:
            return None
        except TooLarge as exc:
            found = failure(413, f"the body of a request may have at most {exc.limit} bytes")
        except StreamUnknown:
            found = _not_found()
        except (LogUnavailable, LimitReached):
            found = _unavailable()
        answer, opened, body = (found, None, Body) if isinstance(found, Answer) else found
        # Some answers come from the other routes, and have these headers already.
        extra = () if request.method == "OPTIONS" else tuple(each for each in extra if answer.header(each[0]) is None)
        return HubResponse(answer, opened, send_timeout=self._hub.send_timeout, extra=extra, body=body)

    async def _handle(self, request: Request) -> Answer | tuple[Answer, Opened, Callable[[Reader, Follow], Body]]:
        facts, path, method = facts_of(request), request.path_params["path"], request.method
        if method == "OPTIONS":
            return wire.preflight(facts, self._origins, methods=self._methods, headers=ALLOWED)
        if path.partition("/")[0] == _RESERVED:
            return failure(501, "this server does not support subscriptions")
        if method not in self._methods.split(", "):
            return failure(405, f"this server answers {self._methods} here", ("Allow", f"{self._methods}, OPTIONS"))
        id = _id_of(path)
        if id is None:
            return _not_found()
        action = {"PUT": "create", "POST": "append", "DELETE": "forget"}.get(method, "read")
        owner = await owner_of(self._hub, facts, id, action)
        if owner is None:
            return failure(403, "you may not create this stream") if method == "PUT" else _not_found()
        match method:
            case "HEAD":
                return answer_to_head(await self._hub._written.look(id, owner))
            case "GET":
                return await self._read(request, id, owner)
            case "DELETE":
                await self._hub._written.look(id, owner)
                await self._hub.forget(id, owner=owner)
                return Answer(204)
            case _:
                return await self._change(request, id, owner)

    async def _change(self, request: Request, id: str, owner: str) -> Answer:
        """PUT and POST."""
        if self._hub.draining:
            return _unavailable()
        facts, body = facts_of(request), await read_body(self._hub, request)
        if request.method == "POST":
            write = asked_to_append(facts, body)
            return write if isinstance(write, Answer) else await self._hub._written.append(id, owner, write)
        create = asked_to_create(facts, body)
        if isinstance(create, Answer):
            return create
        answer = await self._hub._written.create(id, owner, create, retention=self._retention)
        if answer.status != 201:
            return answer
        return answer.also(("Location", f"{request.url.scheme}://{request.url.netloc}{path_of(request)}"))

    # --- reading

    async def _read(
        self, request: Request, id: str, owner: str
    ) -> Answer | tuple[Answer, Opened, Callable[[Reader, Follow], Body]]:
        """GET."""
        hub, wanted = self._hub, asked(facts_of(request))
        if isinstance(wanted, Answer):
            return wanted
        if hub.draining:
            return _unavailable()
        shown = await self._look(id, owner)
        if isinstance(shown, Answer):
            return shown
        start = _start(shown, wanted)
        if isinstance(start, Answer):
            return start
        if wanted.now and wanted.live is None:
            return answer_now(shown)

        async def open_it() -> Reader:
            after = Cursor(shown.epoch, shown.oldest - 1)
            return await hub.reader(id, after, view="raw", from_byte=start, owner=owner)

        if wanted.live == "sse":

            async def opened(then: Follow) -> Reader | Answer:
                try:
                    return await open_it()
                except StreamUnknown:
                    return _not_found()
                except HistoryGone as exc:
                    return _gone(exc.gone)
                except (LogUnavailable, LimitReached):
                    return _unavailable()

            if not hub.has_room(id, owner=owner):
                return _unavailable()
            follow = Follow(view="raw", after=Cursor(shown.epoch, 0), from_byte=start)
            return Answer(200, sse_headers(shown), then=follow), opened, self._body(id, owner, shown, start, wanted.cursor)
        try:
            reader = await open_it()
        except HistoryGone as exc:
            return _gone(exc.gone)
        with reader:
            work = self._collect(reader, shown, wanted, start, id, owner)
            return await (work if wanted.live is None else while_there(request.receive, work))

    async def _look(self, id: str, owner: str) -> Shown | Answer:
        """
        The state of a stream, once all of it is in this process.

        A written stream is looked up in the log each time, so that a client that has appended through another process reads its
        own data.
        """
        hub = self._hub
        for _ in range(_LOOKS):
            page = await hub.look(id, owner=owner)
            if isinstance(page, Gone):
                # The first events are gone; others may remain.
                page = await hub.look(id, Cursor(page.epoch, page.oldest - 1), owner=owner)
            if isinstance(page, Unknown):
                return _not_found()
            if isinstance(page, Gone):
                continue
            if not page.head.written:
                return Shown.of(page)
            followed = hub._followed(id, owner)
            try:
                shown = await hub._written.look(id, owner, touch=True)
            except StreamUnknown:
                hub._following.forget(followed.key)
                raise
            mirror = followed.follower.mirror
            if mirror is None or mirror.epoch != shown.epoch:
                # Deleted and created again, but no bell has reported it.
                hub._following.forget(followed.key)
                continue
            await hub._following.reach(followed, shown.n, ended=shown.ending is not None, timeout=_TIMEOUT)
            return shown
        return _unavailable()

    async def _collect(self, reader: Reader, shown: Shown, wanted: Asked, start: int, id: str, owner: str) -> Answer:
        """The answer to a catch-up read, or to a long poll."""
        pieces: list[bytes] = []
        size = 0
        timeout = 0.0 if wanted.live is None else self._long_poll
        while chunk := await self._next(reader, shown, timeout, id, owner):
            pieces.append(chunk)
            size, timeout = size + len(chunk), 0.0
            if size >= _CHUNK_BYTES and not reader.caught_up:
                break
        data, end, ending = b"".join(pieces), reader.b, reader.ending
        if not data and reader.gone is not None:
            return _not_found() if isinstance(reader.gone, Unknown) else _gone(reader.gone)
        up_to_date = chunk is None or ending is not None
        if not shown.is_json and len(data) > _CHUNK_BYTES:
            # A message is one piece of bytes, which may be read in parts. A character stays in one part.
            cut = _CHUNK_BYTES
            while shown.is_text and cut > _CHUNK_BYTES - 3 and data[cut] & 0xC0 == 0x80:
                cut -= 1
            data, end, ending, up_to_date = data[:cut], start + cut, None, False
        cursor = None
        if wanted.live is not None:
            cursor = cursor_after(wanted.cursor, now=time.time(), random=random.random())
            if not data and (up_to_date or reader.left):
                return nothing_yet(shown, end, ending=ending, cursor=cursor)
        headers = read_headers(shown, start, end, up_to_date=up_to_date, ending=ending, cursor=cursor, public=self._public)
        if next(value for name, value in headers if name == "ETag") in wanted.etags and not wanted.now:
            return Answer(304, headers)
        return Answer(200, headers, body_of(shown, data))

    async def _next(self, reader: Reader, shown: Shown, timeout: float, id: str, owner: str) -> bytes | None:
        """The next data. Waiting for it keeps the stream from expiring."""
        ttl = ttl_of(shown.head) if shown.head.written else None
        until = reader_time() + timeout
        while True:
            left = max(0.0, until - reader_time())
            part = left if ttl is None else min(left, max(ttl / 3, 0.1))
            chunk = await reader.next(part)
            if chunk is not None or part == left:
                return chunk
            await self._hub._written.look(id, owner, touch=True)

    def _body(self, id: str, owner: str, shown: Shown, start: int, cursor: int | None) -> Callable[[Reader, Follow], Body]:
        heartbeat = self._hub.heartbeat or self._rotate
        ttl = ttl_of(shown.head) if shown.head.written and shown.ending is None else None

        async def touch() -> None:
            if ttl is not None:
                await self._hub._written.look(id, owner, touch=True)

        def made(reader: Reader, then: Follow) -> Body:
            every = heartbeat if ttl is None else min(heartbeat, max(ttl / 3, 0.1))
            return _SSEBody(reader, then, Events(shown, start), cursor, every, self._rotate, touch)

        return made


class _SSEBody(Body):
    """Server-sent events of this protocol: an event `data` for each piece, followed by an event `control`."""

    __slots__ = ("_ahead", "_cursor", "_events", "_heartbeat", "_quiet", "_silent", "_told", "_touch", "_until")

    def __init__(
        self,
        reader: Reader,
        then: Follow,
        events: Events,
        cursor: int | None,
        heartbeat: float,
        rotate: float,
        touch: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(reader, then)
        self._events = events
        self._cursor = cursor
        self._heartbeat = heartbeat
        self._until = reader_time() + rotate
        self._touch = touch
        self._told = False
        self._quiet = self._silent = False
        self._ahead: bytes | None = b""
        """Data read after the last piece: bytes, `None` if there was nothing yet, `b""` if nothing was read."""

    def pause(self, sink: Sink) -> asyncio.Future[bool] | None:
        """See `Body.pause()`. It does not use the sink: after each piece it checks whether that was the last."""
        if self._rest or self.over or not self._quiet:
            return None
        return self._reader.pause(max(0.0, min(self._heartbeat, self._until - reader_time())))

    def resume(self, woken: bool) -> bytes:
        """See `Body.resume()`."""
        chunk = self._reader.resume(woken)
        self._quiet = False
        self._silent = chunk is None
        if chunk:
            self._ahead = chunk
        return b""

    async def next(self) -> bytes:
        """See `Body.next()`."""
        if self._rest:
            return self._part()
        try:
            return await self._following()
        except (LogUnavailable, StreamUnknown):
            # The next request gets the reason, and continues from the last offset.
            self.over = True
            return b""

    async def _following(self) -> bytes:
        reader = self._reader
        if reader_time() >= self._until:
            self.over = True
            return b""
        chunk: bytes | None = self._ahead or None
        self._ahead = b""
        if chunk is None and not self._silent:
            wait = min(self._heartbeat, max(0.0, self._until - reader_time())) if self._told else 0.0
            chunk = await reader.next(wait)
        self._silent = False
        if chunk is None:
            await self._touch()
            self._quiet = True
            return self._control(up_to_date=True)
        if not chunk:
            return self._last(b"")
        data = self._events.data(chunk, reader.b)
        # Was it the last one? `control` has to say so.
        ahead = await reader.next(0.0)
        if ahead is None:
            self._quiet = True
            return self._cut(data + self._control(up_to_date=True))
        if not ahead:
            return self._last(data)
        self._ahead = ahead
        return self._cut(data + self._control(up_to_date=False))

    def _last(self, data: bytes) -> bytes:
        """Nothing follows: the stream has ended, the server is shutting down, or the log has lost it."""
        ending: Ending | None = self._reader.ending
        if ending is not None:
            data += self._events.rest()
        elif not data:
            self.over = True
            return b""
        closing = self._cut(data + self._control(up_to_date=ending is not None, ending=ending))
        self._until = 0.0
        self.over = not self._rest
        return closing

    def _control(self, *, up_to_date: bool, ending: Ending | None = None) -> bytes:
        self._told = True
        if ending is None:
            self._cursor = cursor_after(self._cursor, now=time.time(), random=random.random())
        return self._events.control(up_to_date=up_to_date, ending=ending, cursor=self._cursor or 0)


def reader_time() -> float:
    """Seconds on the clock of the event loop."""
    return asyncio.get_running_loop().time()


def _start(shown: Shown, wanted: Asked) -> int | Answer:
    """The first byte to send."""
    if wanted.now:
        return shown.b
    if wanted.place is None:
        return 0 if shown.oldest == 1 else failure(410, "the log no longer holds the beginning of the stream")
    if wanted.place.epoch != shown.epoch:
        return failure(410, "the log of this offset is gone")
    if wanted.place.b > shown.b:
        if shown.ending is None and not shown.head.written:
            # Its producer restores what the log has lost.
            return _unavailable()
        return failure(410, "the log has lost the data before this offset")
    return wanted.place.b


def _id_of(path: str) -> str | None:
    """
    The id of the stream at a path; `None`: it cannot exist.

    A path that is not an id is hashed to one; nobody can choose another path with the same hash.
    """
    if not path or len(path.encode("utf-8", "surrogatepass")) > _MAX_PATH:
        return None
    try:
        check_stream_id(path)
    except ValueError:
        pass
    else:
        if not path.startswith("~") and path not in (".", ".."):
            return path
    digest = hashlib.blake2b(path.encode("utf-8", "surrogatepass"), digest_size=20, person=b"rs-durable-path").hexdigest()
    return f"~path.{digest}"


def _not_found() -> Answer:
    return failure(404, "there is no such stream, or you may not see it")


def _gone(gone: Gone) -> Answer:
    return failure(410, f"the log no longer holds the data after this offset ({gone.why})")


def _unavailable() -> Answer:
    return wire.unavailable("log_unavailable", random=random.random())
