"""
Turns a request into its answer, with a hub, and without any framework.

`respond()` in `asgi` and `Hub.answer()` both use it, so that a stream is answered the same way everywhere.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import quote

from .._errors import (
    HistoryGone,
    HubDraining,
    KeyReused,
    LimitReached,
    LogUnavailable,
    ReaderCut,
    StreamBusy,
    StreamEnded,
    StreamUnknown,
)
from . import wire
from .bodies import Body, pieces
from .feeds import Feed
from .log import Cursor, Gone, Page, Unknown
from .sessions import NOWHERE, feed_id_of, is_feed_id
from .wire import Answer, Asked, Facts, Follow

if TYPE_CHECKING:
    from .hub import Hub, Producer
    from .reading import Reader

__all__ = [
    "PATH_SAFE",
    "TROUBLE",
    "HubAnswer",
    "Opened",
    "TooLarge",
    "answer_to_active",
    "answer_to_feed",
    "answer_of",
    "answer_to_request",
    "answer_to_trouble",
    "facts_from",
    "fingerprint_of",
    "owner_of",
    "wrong_id",
]

PATH_SAFE: Final = "/~!$&'()*+,;=:@"
"""Characters of a path that need no percent-encoding."""
TROUBLE: Final = (HubDraining, KeyReused, LimitReached, LogUnavailable, StreamEnded, StreamUnknown)
"""Errors of a hub that are answers to a client."""

PATIENCE: Final = 300.0
"""
Seconds that a reader waits for a feed that nobody has begun; then its body ends, and it reconnects. 300: an open one costs almost
nothing, and one that a proxy has forgotten does not stay for ever.
"""

Opened: TypeAlias = "Callable[[Follow], Awaitable[Reader | Answer]]"
"""Opens a reader, or returns an answer if it can no longer be opened."""


class TooLarge(Exception):
    """A request body larger than the hub accepts. Not an error of this package: the answer is a 413."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit


# --- an answer for any framework ----------------------------------------------------------------------------------------


class HubAnswer:
    """
    What a framework has to send: a status, headers, and a body to iterate over. `Hub.answer()` makes it.

    The body of a stream is opened at the first iteration, so an answer that is never sent uses no resources. A framework that
    stops iterating, because the client has left, leaves the stream running. If the body raises `ReaderCut`, the connection must
    be closed without ending the body; every server does that when an iterator raises.

    Attributes:
        status: HTTP status.
        headers: Names and values.
        live: The body follows a stream; otherwise it is complete, and at most a few hundred bytes long.
    """

    def __init__(self, answer: Answer, opened: Opened | None = None, *, head: bool = False) -> None:
        if head:
            answer = replace(answer, body=b"", then=None)
        self.status = answer.status
        self.headers = answer.headers
        self.live = answer.then is not None and opened is not None
        # For a HEAD the length would be that of a GET's answer, which was never made.
        if not self.live and answer.status != 204 and not head:
            self.headers = (*answer.headers, ("Content-Length", str(len(answer.body))))
        self._answer = answer
        self._opened = opened

    def __repr__(self) -> str:
        return f"<HubAnswer {self.status}{' with a stream' if self.live else ''}>"

    def header(self, name: str) -> str | None:
        """The value of a header, case-insensitively; `None` if it is missing."""
        return self._answer.header(name)

    @property
    def body(self) -> bytes:
        """
        The complete body.

        Raises:
            TypeError: It follows a stream: iterate over the answer.
        """
        if self.live:
            raise TypeError("the body of this answer follows a stream: iterate over the answer")
        return self._answer.body

    def __aiter__(self) -> AsyncIterator[bytes]:
        """
        The body, piece by piece. Each iteration has its own reader, which is released when the iterator is closed.

        Raises:
            ReaderCut: The body is incomplete, and must not be ended cleanly.
        """
        return pieces(self.open) if self.live else _whole(self._answer.body)

    async def open(self) -> Body:
        """
        Open the body of a stream.

        Raises:
            TypeError: The body does not follow a stream.
            ReaderCut: The stream could be read when the request was answered, but no longer.
        """
        then = self._answer.then
        if then is None or self._opened is None:
            raise TypeError("the body of this answer is complete: use `body`")
        reader = await self._opened(then)
        if isinstance(reader, Answer):
            raise ReaderCut(
                f"the stream can no longer be read (a request would now get {reader.status}), so the body is cut; "
                "the next request gets the reason"
            )
        return Body(reader, then, first=self._answer.body)


async def _whole(body: bytes) -> AsyncGenerator[bytes, None]:
    if body:
        yield body


def facts_from(method: str, headers: Mapping[str, str] | Iterable[tuple[str, str]], query: str | bytes) -> Facts:
    """The facts of a request of any framework."""
    return Facts(method, dict(headers), query.decode("latin-1") if isinstance(query, bytes) else query)


async def answer_of(
    hub: Hub,
    method: str,
    headers: Mapping[str, str] | Iterable[tuple[str, str]],
    query: str | bytes = "",
    *,
    id: str | None,
    run: Producer | None,
    path: str | None,
    body: bytes | None,
    owner: str | None,
    location: str | None,
    options: dict[str, Any],
) -> HubAnswer:
    """Implements `Hub.answer()`, see there."""
    facts = facts_from(method, headers, query)

    async def fingerprint() -> str:
        return "" if body is None else fingerprint_of(facts.method, path or "", body)

    answer, opened = await answer_to_request(
        hub, facts, run, id=id, owner=owner, location=location, path=path, fingerprint=fingerprint, options=options
    )
    return HubAnswer(answer, opened, head=facts.method == "HEAD")


# --- from a request to its answer ---------------------------------------------------------------------------------------


async def answer_to_request(
    hub: Hub,
    facts: Facts,
    run: Producer | None,
    *,
    id: str | None,
    owner: str | None,
    location: str | None,
    path: str | None,
    fingerprint: Callable[[], Awaitable[str]],
    options: dict[str, Any],
) -> tuple[Answer, Opened | None]:
    """
    Start or join a stream, or look at one, and return the answer to the request.

    Args:
        hub: Hub of the stream.
        facts: Facts of the request.
        run: Makes the events, if the stream is started here; `None`: the stream is only followed.
        id: Id of the stream. `None`: the request's `Idempotency-Key`, or else random.
        owner: Owner of the stream. `None`: the result of the hub's `authorize`.
        location: Where the stream can be read again. `None`: derived from `path`.
        path: Path of the request, without percent-encoding; `None`: unknown, so there is no `Content-Location`.
        fingerprint: Digest of the request; called only if a stream is to be started.
        options: As for `Hub.start`.

    Returns:
        The answer, and the function that opens its reader; `None` for the latter if the body is complete.

    Raises:
        ValueError: Neither `run` nor `id` is given.
    """
    if run is None and id is None:
        raise ValueError("an answer needs a producer to start, or the id of a stream to follow")
    asked = wire.asked(facts)
    if isinstance(asked, Answer):
        return asked, None
    if run is not None:
        id = asked.key if id is None else id
    if id is not None and (wrong := wrong_id(id)) is not None:
        # An invalid id is unknown to a reader, and refused when a stream is started.
        return (wire.not_found() if run is None else wrong), None
    if run is not None and id is not None and is_feed_id(id):
        return wire.bad_request("the id of the stream", "another one, because this is the id of a session's feed", id), None
    if owner is None:
        owner = await owner_of(hub, facts, id, "read" if run is None else "create")
        if owner is None:
            return (wire.not_found() if run is None else wire.forbidden()), None
    if run is not None:
        try:
            if options.get("fingerprint") is None:
                options["fingerprint"] = await fingerprint()
            stream = await hub.start(id, run, owner=owner, **options)
        except TooLarge as exc:
            return wire.too_large(exc.limit), None
        except StreamBusy as exc:
            active = exc.active or ""
            if location is not None and id is not None and location.endswith(f"/{id}"):
                return wire.busy(location.removesuffix(id) + active), None
            return wire.busy(wire.path_of(active) if path is None else _own_path(path, active, starts=True)), None
        except TROUBLE as exc:
            return answer_to_trouble(exc), None
        id = stream.id
    assert id is not None
    if location is None and path is not None:
        location = _own_path(path, id, starts=run is not None)
    # A preference may be ignored: a 202 is useless without a place to read the stream.
    if run is not None and asked.respond_async and location is not None:
        return wire.accepted(id, location), None
    return await _read(hub, asked, id, owner, location)


async def answer_to_feed(
    hub: Hub, facts: Facts, session: str, *, owner: str | None, location: str | None
) -> tuple[Answer, Opened | None]:
    """
    Answer a client that wants to follow a session: its feed. If nobody has begun the feed, the reader waits for it.

    Args:
        hub: Hub of the session.
        facts: Facts of the request, a GET or a HEAD.
        session: Its id.
        owner: Its owner. `None`: the result of the hub's `authorize`.
        location: Where the feed can be read again.
    """
    asked = wire.asked(facts)
    if isinstance(asked, Answer):
        return asked, None
    if owner is None:
        owner = await owner_of(hub, facts, None, "feed")
    try:
        id = feed_id_of(session)
    except ValueError as exc:
        return wire.bad_request("the id of the session", "text of 1 to 1024 bytes", str(exc)), None
    if owner is None:
        return wire.not_found(), None
    if hub.draining:
        return await _read(hub, asked, id, owner, location)
    try:
        standing = await hub.session(session, owner=owner)._standing()
    except LogUnavailable as exc:
        return wire.unavailable(_unavailable(exc).reason, random=random.random()), None
    wanted = asked.presence and hub.presence and asked.view in (None, "events", "snapshot")

    def present(answered: tuple[Answer, Opened | None]) -> tuple[Answer, Opened | None]:
        answer, opened = answered
        if opened is None or not wanted:
            return answered

        async def joined(then: Follow) -> Reader | Answer:
            reader = await opened(then)
            if not isinstance(reader, Answer):
                hub._presence.join(session, owner, reader)
            return reader

        return answer, joined

    if standing is None:
        if asked.view == "snapshot" and asked.browser:
            asked = replace(asked, after=None)
        return present(_await(hub, asked, id, session, owner, location))
    feed, state = standing
    head_only = facts.method == "HEAD" and asked.after is None
    if asked.view == "snapshot" and (asked.after is None or (asked.browser and not _holds(state, asked.after))):
        # An `EventSource` that slept for long can only send its old cursor to the URL that asks for a snapshot.
        state = replace(state, snapshot=feed.snapshot())
        return present(await _read(hub, replace(asked, after=None), id, owner, location, state))
    if asked.after is None and not head_only:
        # A snapshot event stands for everything before it.
        asked = replace(asked, after=Cursor(state.epoch, state.oldest - 1))
    return present(await _read(hub, asked, id, owner, location))


def _await(hub: Hub, asked: Asked, id: str, session: str, owner: str, location: str | None) -> tuple[Answer, Opened]:
    """Answer a reader of a feed that nobody has begun. Nothing is stored: a client may ask for any number of ids."""

    def refused(exc: Exception) -> Answer:
        return wire.answer_to_reader(asked, _unavailable(exc), stream_id=id, location=location, random=random.random())

    async def opened(then: Follow) -> Reader | Answer:
        view = "events" if then.view == "snapshot" else then.view
        try:
            return await hub._awaited(id, view=view, owner=owner, patience=PATIENCE)
        except (LimitReached, LogUnavailable) as exc:
            return refused(exc)

    found = wire.answer_to_awaited(
        asked,
        hub._sessions.head(session, owner),
        stream_id=id,
        location=location,
        random=random.random(),
        heartbeat_every=hub.heartbeat,
        readers=hub.readers,
        snapshot=Feed(NOWHERE).snapshot(),
    )
    if found.then is not None and not hub.has_room(id, owner=owner):
        found = refused(LimitReached("too many readers", limit=hub.limits.readers))
    return found, opened


def _holds(state: wire.Standing, cursor: Cursor) -> bool:
    return cursor.epoch == state.epoch and state.oldest - 1 <= cursor.n <= state.n


async def answer_to_active(
    hub: Hub, facts: Facts, session: str, *, owner: str | None, location_of: Callable[[str], str]
) -> tuple[Answer, Opened | None]:
    """
    Answer a client that wants the running stream of a session: the newest one, or 204.

    Args:
        hub: Hub of the session.
        facts: Facts of the request, a GET or a HEAD.
        session: Its id.
        owner: Its owner. `None`: the result of the hub's `authorize`.
        location_of: Returns the path of a stream, from its id.
    """
    if owner is None:
        owner = await owner_of(hub, facts, None, "feed")
    if owner is None:
        return wire.not_found(), None
    try:
        active = await hub.active(session, owner=owner)
    except ValueError as exc:
        return wire.bad_request("the id of the session", "text of 1 to 1024 bytes", str(exc)), None
    except LogUnavailable as exc:
        return wire.unavailable(_unavailable(exc).reason, random=random.random()), None
    if not active:
        return wire.nothing_runs(), None
    asked = wire.asked(facts)
    if isinstance(asked, Answer):
        return asked, None
    return await _read(hub, asked, active[-1], owner, location_of(active[-1]))


async def _read(
    hub: Hub, asked: Asked, id: str, owner: str, location: str | None, state: wire.State | None = None
) -> tuple[Answer, Opened]:
    """Answer a reader, and return how to open it. `state` is read if it is `None`."""

    def answer(state: wire.State) -> Answer:
        return wire.answer_to_reader(
            asked,
            state,
            stream_id=id,
            location=location,
            random=random.random(),
            heartbeat_every=hub.heartbeat,
            readers=hub.readers,
        )

    async def opened(then: Follow) -> Reader | Answer:
        try:
            view = "events" if then.view == "snapshot" else then.view
            return await hub.reader(id, then.after, view=view, from_byte=then.from_byte or 0, owner=owner)
        except HistoryGone as exc:
            return answer(exc.gone)
        except StreamUnknown:
            return answer(wire.Missing(private=hub.authorize is not None))
        except (LimitReached, LogUnavailable) as exc:
            return answer(_unavailable(exc))

    found = answer(state if state is not None else await _state(hub, asked, id, owner))
    if found.then is not None and not hub.has_room(id, owner=owner):
        # Most frameworks need the status before the reader is opened.
        found = answer(wire.Unavailable("limit_reached"))
    return found, opened


async def _state(hub: Hub, asked: Asked, id: str, owner: str) -> wire.State:
    """The state of a stream, as far as this request needs it."""
    if hub.draining:
        return wire.Unavailable("draining")
    missing = wire.Missing(private=hub.authorize is not None)
    try:
        if asked.method == "HEAD" and asked.after is None and asked.from_byte is None:
            # Also for a trimmed log, which a reader without a cursor cannot read.
            state = await hub.state(id, owner=owner)
            return wire.Standing(
                head=state.head, epoch=state.epoch, n=state.n, b=state.b, oldest=state.oldest, ending=state.ending
            )
        found = await hub.look(id, asked.after, owner=owner)
        if asked.view == "snapshot" and asked.after is None and isinstance(found, Page):
            so_far = await hub.message(id, owner=owner)
            return replace(_standing(found), n=so_far.cursor.n, ending=so_far.ending, snapshot={"text": so_far.text})
    except StreamUnknown:
        return missing
    except HistoryGone as exc:
        return exc.gone
    except (LogUnavailable, LimitReached) as exc:
        return _unavailable(exc)
    match found:
        case Unknown():
            return missing
        case Gone(why="went_back", ending=None, running_until=until) if until and asked.after is not None and not found.head.feed:
            # Its producer is alive and will repair the log: the reader waits for that.
            return wire.Standing(head=found.head, epoch=found.epoch, n=asked.after.n, b=0, oldest=found.oldest)
        case Gone():
            return found
    return _standing(found)


def _standing(page: Page) -> wire.Standing:
    return wire.Standing(head=page.head, epoch=page.epoch, n=page.n, b=page.b, oldest=page.oldest, ending=page.ending)


def _unavailable(exc: Exception) -> wire.Unavailable:
    match exc:
        case HubDraining():
            return wire.Unavailable("draining")
        case LimitReached():
            return wire.Unavailable("limit_reached")
    return wire.Unavailable("log_unavailable")


def answer_to_trouble(exc: Exception) -> Answer:
    """The answer to a failed request that would have changed something."""
    match exc:
        case StreamUnknown():
            return wire.not_found()
        case KeyReused():
            return wire.key_reused()
        case StreamEnded(ending=ending):
            return wire.ended(ending)
    return wire.unavailable(_unavailable(exc).reason, random=random.random())


async def owner_of(hub: Hub, facts: Facts, id: str | None, action: str) -> str | None:
    """The owner whose streams a request may see; `None`: none."""
    return "" if hub.authorize is None else await hub.authorize(facts, id, action)


def wrong_id(id: str) -> Answer | None:
    """The answer to an invalid id; `None` if the id is valid."""
    try:
        wire.path_of(id)
    except ValueError:
        expected = "1 to 256 characters of A-Z a-z 0-9 . _ ~ -, and neither '.' nor '..', because it becomes part of a path"
        return wire.bad_request("the id of the stream", expected, id)
    return None


def _own_path(path: str, id: str, *, starts: bool) -> str:
    # A path that begins with two slashes would be another host.
    path = "/" + quote(path.strip("/"), safe=PATH_SAFE)
    return wire.path_of(id, prefix=path.rstrip("/") + "/") if starts else path


def fingerprint_of(method: str, path: str, body: bytes) -> str:
    """Distinguishes requests under the same id: method, path and body, but no header, which may be a secret."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (method.encode(), path.encode(), body):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()
