"""
Sessions: conversations whose tabs, devices and agents all see one order of events.

    session = hub.session("chat_7")
    await session.publish("message", {"role": "user", "data": "Hi"}, mid="m1")     # a repeated mid counts once
    await session.edit("m1", "Hi there")
    async for chunk in session.follow():                                           # bytes of server-sent events, never ends
        …

The feed of a session is a stream in the log, see `feeds`. Each process appends an event that follows the state it knows; if the
log has moved on, it reads the new events and decides again.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from .._errors import LogUnavailable
from .._events import Outcome
from . import wire
from .bodies import Body, pieces
from .feeds import ActiveStream, Feed, SessionMessage, check_event, check_message, snapshot_block
from .log import (
    AlsoRefused,
    Append,
    Appended,
    Behind,
    Cursor,
    Ended,
    Ending,
    Existing,
    Fenced,
    Gone,
    Head,
    Lost,
    Page,
    SpanRefused,
    StreamLog,
    Unknown,
    Writer,
    check_text,
    epoch_of,
    only,
)
from .shared import Known, SharedStreams

if TYPE_CHECKING:
    from starlette.requests import Request

    from .answering import HubAnswer
    from .asgi import HubResponse
    from .hub import Hub
    from .reading import Reader

__all__ = ["Session", "SessionMessage", "Sessions", "feed_id_of", "is_feed_id"]

_PREFIX: Final = "~session."
NOWHERE: Final = "aaaa"
"""Placeholder epoch of a feed that nobody has begun. It is never shown."""
_KEPT: Final = 1000
"""Streams unknown to the log whose first check this process remembers."""
_TRIES_TO_TRIM: Final = 3
"""Attempts before one event. 3: a feed that is busy elsewhere is trimmed there, and before the next event here."""
_TRIES_TO_FORGET: Final = 10
"""How often a feed is deleted while others restore it. 10: each of them learns of the deletion at its first attempt."""

LOST: Final = Ending(outcome=Outcome.FAILED, reason="producer_lost")

T = TypeVar("T")


def feed_id_of(session: str) -> str:
    """The id of the stream that is the feed of a session. Nobody can start, cancel or delete a stream by such an id."""
    check_text("the id of a session", session, limit=1024)
    if not session:
        raise ValueError("the id of a session must be text of 1 to 1024 bytes, got ''")
    return _PREFIX + hashlib.blake2b(session.encode(), digest_size=20, person=b"rs-session-feed").hexdigest()


def is_feed_id(stream_id: str) -> bool:
    """Whether an id is that of a feed."""
    return stream_id.startswith(_PREFIX)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the feed of a session is kept."""

    session: str
    owner: str
    key: str


_Known = Known[_Place, Feed]


class Sessions(SharedStreams[_Place, Feed]):
    """
    The feeds that this process reads and appends to.

    Args:
        log: Where they are kept.
        key_of: Returns the key of a stream in the log, from its id and owner.
        retention: Seconds after the last event at which a feed is forgotten.
        events: Most events of one feed; older ones are replaced by a snapshot.
        bytes: Most bytes of one feed, likewise.
    """

    def __init__(self, log: StreamLog, key_of: Callable[[str, str], str], *, retention: float, events: int, bytes: int) -> None:
        super().__init__(log)
        self._key_of = key_of
        self._retention = retention
        self._events = events
        self._bytes = bytes
        self._missing: OrderedDict[str, float] = OrderedDict()

    # --- steps

    async def step(
        self,
        session: str,
        owner: str,
        decide: Callable[[Feed], bytes | None],
        act: Callable[[Append | None], Awaitable[T | AlsoRefused]],
    ) -> T:
        """
        Append one event to the feed, together with another action.

        Args:
            session: Id of the session.
            owner: Its owner.
            decide: What to append to a feed in this state; `None`: the feed already says it. It may refuse by raising.
            act: Does it, with the append, or without one. `AlsoRefused`: the append was refused, and nothing was done.

        Raises:
            LogUnavailable: The log cannot be reached, or others keep appending.
            Exception: Raised by `decide` or `act`.
        """
        async with self._held(self._place(session, owner)) as known:
            asked = known.state is None
            if asked and await self._find(known) is None:
                # If an empty feed refuses the event, or does not need it, do not create the feed.
                if decide(Feed(NOWHERE)) is None:
                    found = await act(None)
                    assert not isinstance(found, AlsoRefused)
                    return found
                await self._make(known)
            # Trim first, because a freshly created stream must not wait for it.
            await self._trim(known)

            def decided(feed: Feed) -> Append | None:
                block = decide(feed)
                return None if block is None else Append(self._writer(known, feed), feed.span(block), exact=True)

            return await self._step(known, decided, act, asked=asked)

    async def append(self, session: str, owner: str, decide: Callable[[Feed], bytes | None]) -> Cursor:
        """
        Append one event to the feed, unless the feed already says it.

        Returns:
            The last event of the feed; if nobody has begun it, number 0 of the placeholder epoch.
        """
        cursor: Cursor | None = None

        def decided(feed: Feed) -> bytes | None:
            nonlocal cursor
            block = decide(feed)
            cursor = Cursor(feed.epoch, feed.n + (block is not None))
            return block

        await self.step(session, owner, decided, self._append)
        assert cursor is not None
        return cursor

    async def feed(self, session: str, owner: str, *, make: bool = False) -> Feed | None:
        """
        The current state, from the log.

        Args:
            session: Id of the session.
            owner: Its owner.
            make: Create a missing feed. False: a mere query leaves nothing in the log, whatever id it asks for.

        Returns:
            `None`: nobody has begun it.
            `None`: nobody has begun it.
        """
        async with self._held(self._place(session, owner)) as known:
            if known.state is None:
                return await self._load(known) if make else await self._find(known)
            await self._catch_up(known)
            assert known.state is not None
            return known.state

    async def delete(self, session: str, owner: str) -> None:
        """Delete the feed of a session; its streams stay."""
        async with self._held(self._place(session, owner)) as known:
            if known.state is None and await self._find(known) is None:
                return  # nobody has begun it
            key = known.place.key
            for _ in range(_TRIES_TO_FORGET):
                known.state = None
                await self._log.delete(key)
                # Recreate it at once: other processes remember it, and would restore what the log has lost.
                made = await self._log.create(key, self.head(session, owner), lease=self._retention)
                if isinstance(made, Writer):
                    known.state, known.fence = Feed(made.epoch), made.fence
                    return
            raise LogUnavailable(f"the feed of session {session[:80]!r} was restored by other processes meanwhile", stream_id=key)

    # --- what is known

    def _place(self, session: str, owner: str) -> _Place:
        return _Place(session, owner, self._key_of(feed_id_of(session), owner))

    def _took(self, known: _Known, append: Append) -> None:
        assert known.state is not None and append.span is not None
        known.state.take([append.span])

    def _writer(self, known: _Known, feed: Feed) -> Writer:
        # Nobody claims it: it is forgotten when its lease ends.
        return Writer(known.place.key, feed.epoch, known.fence, self._retention, 0.0)

    def head(self, session: str, owner: str) -> Head:
        """The head of a feed."""
        return Head(content_type="text/event-stream", framing="sse", owner=owner, session=session, retention=0.0, feed=True)

    async def _load(self, known: _Known) -> Feed:
        """Read the whole feed; create it if there is none."""
        while True:
            feed = await self._find(known) or await self._make(known)
            if feed is not None:
                return feed

    async def _make(self, known: _Known) -> Feed | None:
        """Create a feed without events. `None`: another process was faster."""
        head = self.head(known.place.session, known.place.owner)
        made = await self._log.create(known.place.key, head, lease=self._retention)
        if not isinstance(made, Writer):
            return None
        known.state, known.fence = Feed(made.epoch), made.fence
        return known.state

    async def _find(self, known: _Known) -> Feed | None:
        """Read the whole feed. `None`: there is none."""
        key = known.place.key
        while True:
            found = await self._log.read(key, None)
            if isinstance(found, Unknown):
                return None
            feed = Feed(found.epoch)
            if isinstance(found, Gone):
                # The front was dropped: the rest begins with a snapshot of it.
                left = await self._log.read(key, Cursor(found.epoch, found.oldest - 1))
                if not isinstance(left, Page):
                    continue
                found = left
                first_b = found.spans[0].start if found.spans else found.b
                feed = Feed(found.epoch, found.oldest - 1, first_b)
            known.state, known.fence = feed, 1
            feed.take(found.spans)
            feed.first = found.oldest
            if feed.n < found.n:
                await self._catch_up(known)
            return known.state

    async def _catch_up(self, known: _Known) -> None:
        """Read what others have appended."""
        feed = known.state
        assert feed is not None
        while True:
            found = await self._log.read(known.place.key, Cursor(feed.epoch, feed.n))
            if isinstance(found, Unknown):
                await self._restore(known, feed)
                return
            if isinstance(found, Gone):
                if found.why == "went_back":
                    await self._begin_again(known, feed)
                else:
                    await self._reload(known)
                return
            feed.take(found.spans)
            feed.first = found.oldest
            if feed.n >= found.n:
                return

    async def _mend(self, known: _Known, verdict: Fenced | Ended | Behind | Lost) -> None:
        """Update the state after an append was refused."""
        feed = known.state
        assert feed is not None
        match verdict:
            case Behind(n) if n > feed.n:
                await self._catch_up(known)
            case Lost():
                await self._restore(known, feed)
            case Fenced(current):
                epoch, _, fence = current.rpartition(".")
                if epoch != feed.epoch:
                    await self._reload(known)
                known.fence = int(fence)
            case Behind():
                await self._begin_again(known, feed)
            case Ended(ending):
                raise LogUnavailable(
                    f"the feed of session {known.place.session[:80]!r} has ended ({ending.reason}), which must never happen; "
                    "forget() the session",
                    stream_id=known.place.key,
                )

    async def _begin_again(self, known: _Known, feed: Feed) -> None:
        """The log went back. Others have seen the lost events, so their numbers must not be given to other events."""
        found = await self._log.read(known.place.key, None, limit_bytes=0)
        if not isinstance(found, Unknown):
            if found.epoch != feed.epoch or found.n >= feed.n:
                # Another process was faster.
                await self._reload(known)
                return
            await self._log.delete(known.place.key)
        await self._restore(known, feed)

    async def _restore(self, known: _Known, feed: Feed) -> None:
        """The log has lost the feed, or part of it: restore its state, under a new epoch."""
        head, epoch = self.head(known.place.session, known.place.owner), epoch_of(secrets.token_bytes(8))
        fresh = Feed(epoch)
        spans = [fresh.span(snapshot_block(self._snapshot(feed)))]
        made = await self._log.restore(self._writer(known, feed), head, epoch, spans)
        if isinstance(made, Existing):
            await self._reload(known)
            return
        fresh.take(spans)
        known.state, known.fence = fresh, made.fence

    async def _trim(self, known: _Known) -> None:
        """
        Replace old events by a snapshot.

        The events since the previous snapshot are kept, so that a reader who is a little behind misses nothing.
        """
        for _ in range(_TRIES_TO_TRIM):
            feed = known.state
            if feed is None or (
                feed.n - feed.stands < max(1, self._events // 2 - 1) and feed.b - feed.stands_b <= self._bytes // 2
            ):
                return
            span = feed.span(snapshot_block(self._snapshot(feed)))
            trims = feed.stands
            try:
                verdict = only(await self._log.append([Append(self._writer(known, feed), span, exact=True, trims=trims)]))
                if isinstance(verdict, Appended):
                    feed.take([span])
                    feed.first = max(feed.first, trims)
                    return
                await self._mend(known, verdict)
            except (LogUnavailable, SpanRefused):
                return  # The event itself will fail the same way; the next one tries again.

    def _snapshot(self, feed: Feed) -> dict[str, Any]:
        # A quarter: together with the events after it, less than half of the limit.
        return feed.standing(events=self._events // 2, bytes=self._bytes // 4)

    # --- streams of a session

    async def settle(
        self, session: str, owner: str, now: float, lease: float, notice: Callable[[str], None], *, make: bool = False
    ) -> Feed | None:
        """
        The current state, without streams that the log knows to have ended.

        A stream unknown to the log may be just about to be created. It counts as lost a lease later.

        Args:
            session: Id of the session.
            owner: Its owner.
            now: The time of this process.
            lease: Seconds.
            notice: Called with the key of a stream whose producer is dead.
            make: Create a missing feed.

        Returns:
            `None`: nobody has begun the feed.
        """
        feed, changed = await self.feed(session, owner, make=make), False
        if feed is None:
            return None
        for stream_id, stream in list(feed.streams.items()):
            key = self._key_of(stream_id, owner)
            found = await self._log.read(key, None, limit_bytes=0)
            ending: Ending | None = None
            if isinstance(found, Page):
                self._missing.pop(key, None)
                ending = found.ending
                if ending is None and found.lease_left == 0.0:
                    notice(key)
            elif isinstance(found, Unknown):
                ending = self._lost_since(key, now, lease)
            if ending is not None:
                await self.append(session, owner, partial(_ended, stream, ending))
                changed = True
        return await self.feed(session, owner) if changed else feed

    def _lost_since(self, key: str, now: float, lease: float) -> Ending | None:
        since = self._missing.setdefault(key, now)
        if len(self._missing) > _KEPT:
            self._missing.popitem(last=False)
        if now - since < lease:
            return None
        self._missing.pop(key, None)
        return LOST


class Session:
    """
    One session of a hub: `hub.session(id)` makes it, and it costs nothing.

    Attributes:
        id: Id of the session.
        owner: Its owner. Each owner has separate sessions, as with streams.
    """

    def __init__(self, hub: Hub, sessions: Sessions, id: str, owner: str) -> None:
        self.id = id
        self.owner = owner
        self._hub = hub
        self._sessions = sessions
        self._feed_id = feed_id_of(id)

    def __repr__(self) -> str:
        return f"<Session {self.id[:80]!r}>"

    async def publish(self, event: str, data: Any, *, mid: str | None = None) -> Cursor:
        """
        Append an event to the feed.

        Args:
            event: `"message"`, or a name of the application's own.
            data: For a message `{"role": "user", "data": …}`; otherwise any JSON value.
            mid: Its id; a repeated id means the same event, as long as the feed remembers it. `None`: a random one.

        Returns:
            The last event of the feed afterwards.

        Raises:
            ValueError: The name is the server's own, the data is not that of a message, or the event is larger than 1 MiB.
            LogUnavailable: The log cannot be reached.
        """
        check_event(event)
        if event == "message":
            check_message(data)
        name = secrets.token_urlsafe(12) if mid is None else _checked(mid)
        return await self._append(lambda feed: feed.published(event, data, name))

    async def edit(self, mid: str, data: Any) -> Cursor:
        """
        Change the data of a message.

        Raises:
            MessageUnknown: There is no such message, or it was deleted.
            ValueError: The event would be larger than 1 MiB.
            LogUnavailable: The log cannot be reached.
        """
        return await self._append(lambda feed: feed.edited(_checked(mid), data))

    async def delete(self, mid: str) -> Cursor:
        """
        Delete a message. Repeating it has no further effect.

        Raises:
            MessageUnknown: There was never such a message.
            LogUnavailable: The log cannot be reached.
        """
        return await self._append(lambda feed: feed.deleted(_checked(mid)))

    async def messages(self) -> list[SessionMessage]:
        """The messages in their current form, with edits and deletions applied, in the order in which they were said."""
        self._hub._check_running()
        feed = await self._sessions.feed(self.id, self.owner)
        return [] if feed is None else list(feed.messages.values())

    async def active(self) -> list[str]:
        """Ids of the running streams, in the order in which they began."""
        feed = await self._hub._settled(self.id, self.owner)
        return [] if feed is None else list(feed.streams)

    async def snapshot(self) -> tuple[dict[str, Any], Cursor]:
        """
        The state as JSON data, and the event after which the feed continues from it.

        This creates a feed that nobody has begun, because otherwise it would have no position.

        Returns:
            `{"messages": [{"mid", "role", "data"}], "streams": [{"id", "by"}]}` and the cursor.
        """
        feed = await self._hub._settled(self.id, self.owner, make=True)
        assert feed is not None
        return feed.snapshot(), Cursor(feed.epoch, feed.n)

    def follow(self, after: Cursor | str | None = None, *, presence: bool = False) -> AsyncGenerator[bytes, None]:
        """
        Read the feed as server-sent events: the events after a cursor, then live ones. It never ends by itself.

        Args:
            after: The last event that the reader has; `None`: from the first one held.
            presence: Count this reader, and send it the number of readers: an event `presence` with `{"readers": n}` and without
                an id, at the start and when it changes, at most once a second. Readers without this are not counted.

        Returns:
            As `Hub.follow()`, which also lists the errors of the iterator.

        Raises:
            ValueError: The hub was made without `presence=True`.
        """
        return pieces(self._opens(after, presence=presence))

    def _opens(self, after: Cursor | str | None, *, presence: bool = False) -> Callable[[], Awaitable[Body]]:
        if presence and not self._hub.presence:
            raise ValueError("this hub does not count readers: make it with Hub(…, presence=True)")
        cursor = after if isinstance(after, Cursor) else Cursor.parse(after) if after else None

        async def opened() -> Body:
            self._hub._check_running()
            begin = cursor
            if begin is None:
                feed = await self._sessions.feed(self.id, self.owner)
                if feed is None:
                    reader = await self._hub._awaited(self._feed_id, view="events", owner=self.owner, patience=None)
                    return self._hub._body_of_events(joined(reader))
                begin = Cursor(feed.epoch, feed.first - 1)
            reader = await self._hub.reader(self._feed_id, begin, owner=self.owner)
            return self._hub._body_of_events(joined(reader))

        def joined(reader: Reader) -> Reader:
            if presence:
                self._hub._presence.join(self.id, self.owner, reader)
            return reader

        return opened

    async def answer(
        self,
        method: str,
        headers: Mapping[str, str] | Iterable[tuple[str, str]],
        query: str | bytes = "",
        *,
        path: str | None = None,
    ) -> HubAnswer:
        """
        Answer a request for the feed, for any framework. See `Hub.answer()`.

        With `?view=snapshot` the first event is the state, `snapshot()`, and later events follow. A browser's `EventSource` whose
        cursor is gone after a long sleep gets it again; any other client gets 410, and asks for it.

        Args:
            method: `GET` or `HEAD`.
            headers: Headers of the request, by name, case-insensitively.
            query: The part after the `?`, still encoded.
            path: Path of the request, as the client knows it, for `Content-Location`.
        """
        from .answering import HubAnswer, answer_to_feed, facts_from

        facts = facts_from(method, headers, query)
        answer, opened = await answer_to_feed(self._hub, facts, self.id, owner=self.owner, location=path)
        return HubAnswer(answer, opened, head=method == "HEAD")

    async def respond(self, request: Request) -> HubResponse:
        """Answer a request of Starlette or FastAPI with the feed. See `answer()`; it needs the extra `server`."""
        from .answering import answer_to_feed
        from .asgi import HubResponse, facts_of, path_of

        answer, opened = await answer_to_feed(self._hub, facts_of(request), self.id, owner=self.owner, location=path_of(request))
        return HubResponse(answer, opened, send_timeout=self._hub.send_timeout)

    async def _standing(self) -> tuple[Feed, wire.Standing] | None:
        """The state, and the feed as its HTTP readers see it. `None`: nobody has begun it."""
        feed = await self._hub._settled(self.id, self.owner)
        if feed is None:
            return None
        head = self._sessions.head(self.id, self.owner)
        return feed, wire.Standing(head=head, epoch=feed.epoch, n=feed.n, b=feed.b, oldest=feed.first)

    async def forget(self) -> None:
        """
        Delete the feed, and what all processes remember of it. Streams of the session are not touched.

        An empty feed replaces it, for `session_retention` like any other. If nobody has begun one, nothing is stored.
        """
        self._hub._check_running()
        await self._sessions.delete(self.id, self.owner)

    async def _append(self, decide: Callable[[Feed], bytes | None]) -> Cursor:
        self._hub._check_running()
        return await self._sessions.append(self.id, self.owner, decide)


def _ended(stream: ActiveStream, ending: Ending, feed: Feed) -> bytes | None:
    now = feed.streams.get(stream.id)
    # It may have been started again meanwhile.
    return feed.ended(stream.id, ending) if now is not None and now.n == stream.n else None


def _checked(mid: str) -> str:
    check_text("the id of a message", mid, limit=256)
    if not mid:
        raise ValueError("the id of a message must be text of 1 to 256 bytes, got ''")
    return mid
