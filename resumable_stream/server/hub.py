"""
Generations that belong to no connection: started once, kept in a log, read by anybody from any position.

    hub = Hub(SQLiteLog("streams.db"))

    async with hub:
        stream = await hub.start("msg_42", answer(prompt))     # created here, or joined if it exists
        async for chunk in hub.follow("msg_42"):               # bytes of server-sent events, with ids
            …

A producer runs in its own task. A reader who leaves does not stop it; `cancel()` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import math
import random
import secrets
import signal as signals
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias, get_args

from .._errors import (
    HistoryGone,
    HubDraining,
    KeyReused,
    LimitReached,
    LogUnavailable,
    StreamBusy,
    StreamEnded,
    StreamUnknown,
)
from .._events import Outcome
from . import wire
from ._backoff import Backoff
from ._bounded import bounded
from .answering import HubAnswer, answer_of
from .bodies import Body, pieces
from .feeds import Feed
from .following import Followed, Following
from .generation import Pace
from .generations import FORGOTTEN, Generations, OnLost, Producer, check_producer, close
from .log import (
    CANCEL,
    AlsoRefused,
    Append,
    Control,
    Cursor,
    Ended,
    Ending,
    Existing,
    Full,
    Gone,
    Head,
    Message,
    Page,
    Said,
    StreamLog,
    Unknown,
    Writer,
    check_seconds,
    check_stream_id,
    check_text,
    epoch_of,
)
from .mirror import Mirror, Phase
from .presence import Presence
from .reading import Reader, View
from .sessions import NOWHERE, Session, Sessions, is_feed_id
from .texts import SoFar, TextOf
from .wire import Facts, Follow
from .written import Written

if TYPE_CHECKING:
    from starlette.requests import Request

    from ..protocols import ResumeProtocol
    from .asgi import HubResponse
    from .portal import SyncHub

__all__ = ["Authorize", "Hub", "HubLimits", "IfBusy", "OnLost", "Producer", "State", "Stream"]

logger = logging.getLogger("resumable_stream.server")

Authorize: TypeAlias = Callable[[Facts, str | None, str], Awaitable[str | None]]
"""
Returns the owner whose streams a request may see, from its facts, the id of the stream or `None`, and the action: one of
`"create"`, `"read"`, `"say"`, `"cancel"`, `"forget"`, `"append"` (to a stream that clients write) and `"feed"` (to follow a
session, or to ask for its stream). `None`: the request is refused.
"""

IfBusy: TypeAlias = Literal["parallel", "reject", "interrupt"]
"""What a start does while another stream of its session is running."""

_OPEN_TIMEOUT: Final = 10.0
"""Seconds that a reader waits for the log before it is answered as unavailable."""
_MOST_ASKED: Final = 1000
"""Unanswered starts that are remembered. 1,000: some seconds of a busy process whose log is unavailable."""
_LOOKS: Final = 5
"""Attempts to open a reader of a stream that is deleted and created again meanwhile."""
_CANCEL_ID: Final = "\x1fcancel"
"""Id of the message that cancels a stream. No request can use it: such a message would block the real cancel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubLimits:
    """
    Limits of one process.

    Attributes:
        streams: Generations running here at once.
        readers: Readers at once.
        readers_per_stream: Readers of one stream.
        stream_bytes: Of one stream. 64 MiB: a thousand long answers.
        event_bytes: Of one event; the default of the client half is the same.
        body_bytes: Of a request that the routes of the hub read.
        pending_bytes: Of one stream that the log has not acknowledged, before its producer waits.
        mirror_bytes: Of all copies of streams in this process.
        session_events: Of the feed of one session. Older ones are replaced by a snapshot with at most half as many messages,
            the newest.
        session_bytes: Of the feed of one session, likewise.
    """

    streams: int = 10_000
    readers: int = 20_000
    readers_per_stream: int = 2_000
    stream_bytes: int = 64 << 20
    event_bytes: int = 16 << 20
    body_bytes: int = 16 << 20
    pending_bytes: int = 1 << 20
    mirror_bytes: int = 256 << 20
    session_events: int = 10_000
    session_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a positive whole number, got {value!r}")


@dataclass(frozen=True, slots=True)
class Stream:
    """
    The result of `Hub.start()`.

    Attributes:
        id: As readers name it.
        epoch: Epoch of its log.
        joined: It existed already: this call started nothing.
        ending: How it ended, if it had ended already.
    """

    id: str
    epoch: str
    joined: bool
    ending: Ending | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """
    The state of a stream.

    Attributes:
        id: As readers name it.
        head: As created.
        epoch: Epoch of its log.
        oldest: Number of the oldest event held.
        n: Number of the last event.
        b: Byte position after it.
        ending: How it ended; `None` while it runs.
    """

    id: str
    head: Head
    epoch: str
    oldest: int
    n: int
    b: int
    ending: Ending | None

    @property
    def cursor(self) -> Cursor:
        """The cursor after the last event."""
        return Cursor(self.epoch, self.n)


class Hub:
    """
    Runs generations, keeps them in a log, and serves their readers. One object per process, in one event loop.

    Use it in an `async with` block, or pass `hub.lifespan` to Starlette or FastAPI.

    Args:
        log: Where streams are kept.
        lease: Seconds without a sign of life after which another process may take a generation over. 15: noticed before its
            readers lose patience, and two renewals may fail.
        flush: Seconds between two spans of one stream. The first event after a silence does not wait. 0.025: at 20 tokens a
            second nothing waits, and at 100 no event waits longer than that.
        flush_bytes: Waiting bytes that are sent without waiting for `flush`.
        poll: Seconds of silence after which the log of a running stream is read, in case its last bell was lost; and after which
            an ended stream is looked up again for a new reader, in case it was deleted meanwhile.
        retention: Seconds that an ended stream is kept; a day.
        session_retention: Seconds after its last event at which the feed of a session is forgotten; 30 days.
        abandon_after: Seconds without any reader in this process after which a generation is cancelled. `None`: never, because
            a reader who left may return.
        on_lost: What happens to a stream whose producer died. `"fail"`: it ends as `FAILED`, reason `producer_lost`.
            `"restart_if_empty"`: if it has no event yet, the next start with its id runs it; it may be billed twice.
            A producer: it continues, from `gen.resumed_from` and `gen.note`.
        cancel_grace: Seconds between `gen.cancelled` and the cancellation of the producer's task. An async generator cannot
            check `gen.cancelled`, so it is cancelled at once.
        log_timeout: Seconds that the log may be unavailable before waiting generations are given up, and readers of other
            processes' generations are sent elsewhere, spread over a lease.
        call_timeout: Seconds that one call of the log may take; then the log counts as unavailable, and the call is repeated.
            30: the logs of this package time out before that, so it is for a log of yours or a disk that hangs, and it fits
            into `log_timeout` twice.
        limits: See `HubLimits`.
        text_of: Text of an event for `message()`: a callable of a `StreamEvent` (→ text or `None`), or a protocol, such as
            `OpenAIChat()`, which knows the text in its events. `None`: the value of `text` in the JSON of events without a
            name, as `gen.text()` writes it.
        authorize: Returns the owner whose streams a request may see, or `None` to refuse it. An async callable, called for
            every request with its `Facts`, the id of the stream (`None` if none is named), and the action (`"create"`,
            `"read"`, `"say"`, `"cancel"`, `"forget"`, `"append"`, or `"feed"`, of a session). `None`: streams have no owners;
            whoever knows an id may read it.
        presence: Readers of a session who ask for it are counted over all processes, and receive the number; see
            `Session.follow()`. `False`: nobody is counted. Counting costs each process a write every `lease` seconds per
            session that is followed this way.
        heartbeat: Seconds of silence after which readers with ids get a comment. 15: proxies close connections that are silent
            for 30 to 60. `None`: never.
        send_timeout: Seconds that a client may accept no bytes before it is cut. 60: it is asleep, and returns with its cursor.

    Raises:
        ValueError: A number is invalid.
    """

    def __init__(
        self,
        log: StreamLog,
        *,
        lease: float = 15.0,
        flush: float = 0.025,
        flush_bytes: int = 16384,
        poll: float = 5.0,
        retention: float = 86400.0,
        session_retention: float = 30 * 86400.0,
        abandon_after: float | None = None,
        on_lost: OnLost = "fail",
        cancel_grace: float = 5.0,
        log_timeout: float = 60.0,
        call_timeout: float = 30.0,
        limits: HubLimits | None = None,
        text_of: TextOf | ResumeProtocol | None = None,
        authorize: Authorize | None = None,
        presence: bool = False,
        heartbeat: float | None = 15.0,
        send_timeout: float = 60.0,
    ) -> None:
        for name, seconds in (
            ("flush", flush),
            ("retention", retention),
            ("cancel_grace", cancel_grace),
            ("log_timeout", log_timeout),
            ("abandon_after", 0.0 if abandon_after is None else abandon_after),
        ):
            check_seconds(name, seconds)
        positive = (("lease", lease), ("poll", poll), ("call_timeout", call_timeout), ("session_retention", session_retention))
        for name, seconds in positive:
            if not check_seconds(name, seconds):
                raise ValueError(f"{name} must be more than 0 seconds")
        if on_lost not in ("fail", "restart_if_empty") and not callable(on_lost):
            raise ValueError(f"on_lost must be 'fail', 'restart_if_empty' or a producer, got {on_lost!r}")
        self.lease = lease
        self.limits = limits or HubLimits()
        self.retention = retention
        self.session_retention = session_retention
        self._on_lost = on_lost
        self.authorize = authorize
        self.presence = presence
        self.heartbeat = heartbeat
        self.send_timeout = send_timeout
        self._readers: dict[Reader, None] = {}
        # One bound method for all readers, because there are many.
        self._forget_closed = self._forget_reader
        self._kinds: dict[str, Producer] = {}
        self._entered = self._closed = False
        self._creating = 0
        self._asked: OrderedDict[tuple[str, Head, bytes], tuple[str, float]] = OrderedDict()
        """Streams whose creation has an unknown result: the epoch, and until when it counts."""
        self._starting: set[asyncio.Task[Stream]] = set()
        self._text_of = text_of
        self._poll = poll
        self._call_timeout = call_timeout
        self._pace = Pace(
            lease=lease,
            flush=flush,
            cancel_grace=cancel_grace,
            log_timeout=log_timeout,
            abandon_after=abandon_after,
            flush_bytes=flush_bytes,
            pending_bytes=self.limits.pending_bytes,
            event_bytes=self.limits.event_bytes,
            stream_bytes=self.limits.stream_bytes,
            streams=self.limits.streams,
        )
        self._keep_in(log)

    def _keep_in(self, log: StreamLog) -> None:
        self.log = log
        self._log = log = bounded(log, self._call_timeout)
        self._following = Following(
            log,
            poll=self._poll,
            mirror_bytes=self.limits.mirror_bytes,
            lease=self.lease,
            log_timeout=self._pace.log_timeout,
            on_control=lambda key, control: self._generations.hear_control(key, control),
            on_orphan=lambda key: self._generations.notice_orphan(key),
            on_back=lambda key: self._generations.log_is_back(key),
        )
        self._sessions = Sessions(
            log,
            key_of,
            retention=self.session_retention,
            events=self.limits.session_events,
            bytes=self.limits.session_bytes,
        )
        self._generations = Generations(log, self._following, self._sessions, self._pace, self._on_lost)
        self._presence = Presence(log, self._following, key_of, period=self.lease)
        self._written = Written(
            log,
            key_of,
            compact=self._generations.compact_soon,
            stream_bytes=self.limits.stream_bytes,
            event_bytes=self.limits.event_bytes,
        )

    def __repr__(self) -> str:
        return f"<Hub over {self.log!r}: {len(self._generations)} generations, {len(self._readers)} readers>"

    # --- life

    def use_log(self, log: StreamLog) -> None:
        """
        Use another log than the one passed to the hub, as `resumable-stream serve --store` does.

        Raises:
            RuntimeError: The hub is already running, and has streams in the first one.
        """
        if self._entered:
            raise RuntimeError("this hub is already running; change its log before it is entered")
        successor = self._generations.successor
        self._keep_in(log)
        self._generations.successor = successor

    @property
    def running(self) -> bool:
        """It was entered and not closed: streams can be started, until it drains, and read."""
        return self._entered and not self._closed

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError("this hub is already running; enter it only once")
        self._entered = True
        self._following.start()
        self._generations.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """
        Stop at once: running generations are released or end as `FAILED`, reason `shutdown`; readers are disconnected.

        Call `drain()` first to give them time. The log stays open: whoever made it closes it.
        """
        if self._entered:
            for reader in list(self._readers):
                reader.leave()
            await self._presence.aclose()
            await self._generations.aclose()
            if self._starting:
                # They delete what they have created meanwhile.
                await asyncio.wait(self._starting, timeout=self._generations.pace.cancel_grace)
            await self._following.aclose()
            self._closed = True

    @contextlib.asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """For `Starlette(lifespan=hub.lifespan)` and `FastAPI(lifespan=hub.lifespan)`."""
        async with self:
            yield

    @property
    def draining(self) -> bool:
        """It is shutting down, and starts nothing."""
        return self._generations.closing

    async def drain(self, timeout: float = 25.0, spread: float = 5.0) -> None:
        """
        Shut down without losing anything: start nothing more, send readers away, let generations finish.

        Args:
            timeout: Seconds that generations may still take. Those still running are then released, if they can be continued,
                and otherwise end as `FAILED`, reason `shutdown`; they get at most `cancel_grace` for that.
            spread: Seconds over which readers are sent away, so that they do not all return at once.
        """
        self._generations.closing = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        readers = list(self._readers)
        leaving = loop.create_task(self._send_away(readers, spread))
        while self._generations and loop.time() < deadline:
            await self._generations.changed.wait(deadline - loop.time())
        await leaving
        # Readers who arrived during the shutdown; few, because most are refused.
        await self._send_away(list(self._readers), 0.0)
        await self._generations.stop()

    def drain_on(self, *signal_numbers: int, timeout: float = 25.0, spread: float = 5.0) -> None:
        """
        Drain when a signal arrives, and then call the previous handler.

        Call it in the event loop, in the main thread. Defaults to `signal.SIGTERM`. A second signal does not wait.
        """
        loop = asyncio.get_running_loop()
        for number in signal_numbers or (signals.SIGTERM,):
            before = signals.getsignal(number)

            def handle(received: int, frame: object, before: Any = before) -> None:
                async def work() -> None:
                    await self.drain(timeout, spread)
                    if callable(before):
                        before(received, None)
                    elif before == signals.SIG_DFL:
                        signals.signal(received, signals.SIG_DFL)
                        signals.raise_signal(received)

                if self._generations.closing and callable(before):
                    before(received, None)
                else:
                    loop.call_soon_threadsafe(lambda: self._generations.tasks.spawn(work()))

            signals.signal(number, handle)

    async def _send_away(self, readers: list[Reader], spread: float) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for index, reader in enumerate(readers):
            # By the clock: each sleep takes a little longer than it should, and there are thousands.
            wait = begun + spread * index / len(readers) - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            reader.leave()

    # --- starting

    async def start(
        self,
        id: str | None,
        run: Producer,
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
        Create a stream and run its producer, or join the existing stream.

        Of any number of concurrent calls with one id, in any number of processes over one log, one runs its producer.

        Args:
            id: 1 to 256 characters of `A-Z a-z 0-9 . _ ~ -`; `None`: 128 random bits.
            run: Makes the events. It is called at most once; a generator that is not needed is closed.
            request: Stored with the stream, for a later producer; and, unless `fingerprint` is given, digested to detect another
                request under the same id.
            owner: Owner of the stream: only this owner's readers see it. Each owner has a separate set of ids.
            session: The conversation that it belongs to. Its feed tells all who follow it that the stream begins, and how it
                ends.
            if_busy: What to do while another stream of the session is running. `"parallel"`: start this one as well. `"reject"`:
                raise `StreamBusy`. `"interrupt"`: start this one, and cancel the others. Of two simultaneous calls the log
                decides which one came first.
            by: Who starts it, for those who follow the session.
            supersedes: A stream to cancel: the answer to the prompt that was changed.
            head: Content type, framing and the rest. `None`: server-sent events.
            fingerprint: Digest of the request; `""`: not compared.
            again: `"failed"`: a stream that ended as failed is started anew under a new epoch. `None`: it is joined as it is,
                because it may have been billed.

        Raises:
            KeyReused: The id belongs to another request.
            StreamBusy: Another stream of the session is running, and `if_busy` is `"reject"`. `.active` is its id.
            ValueError: The id is invalid.
            HubDraining: The hub is shutting down.
            LimitReached: Too many generations run here.
            LogUnavailable: The log cannot be reached.
        """
        self._check_running()
        check_producer(run)
        work = self._begin(
            id, run, request=request, owner=owner, session=session, if_busy=if_busy, by=by, supersedes=supersedes, head=head,
            fingerprint=fingerprint, again=again,
        )  # fmt: skip
        # Shielded: a caller who leaves must not leave behind a created stream without a producer.
        starting = asyncio.get_running_loop().create_task(work)
        self._starting.add(starting)
        starting.add_done_callback(self._starting.discard)
        return await asyncio.shield(starting)

    async def _begin(self, id: str | None, run: Producer, *, owner: str, supersedes: str | None, **options: Any) -> Stream:
        replaced = [] if supersedes is None else [supersedes]
        try:
            stream = await self._start(id, run, owner=owner, replaced=replaced, **options)
        except BaseException:
            await close(run)
            raise
        if stream.joined:
            await close(run)
        for other in dict.fromkeys(replaced):
            # Last, so that a refused start leaves the old stream alone. An unknown stream needs no cancelling.
            if other != stream.id:
                with contextlib.suppress(StreamUnknown):
                    await self.cancel(other, "superseded", owner=owner, by=options["by"])
        return stream

    async def _start(
        self, id: str | None, run: Producer, *, request: bytes | None, owner: str, session: str | None, if_busy: IfBusy, by: str,
        replaced: list[str], head: Head | None, fingerprint: str | None, again: Literal["failed"] | None,
    ) -> Stream:  # fmt: skip
        if if_busy not in get_args(IfBusy):
            raise ValueError(f"if_busy must be one of {', '.join(get_args(IfBusy))}, got {if_busy!r}")
        if if_busy != "parallel" and session is None:
            raise ValueError(f"if_busy={if_busy!r} needs the session that may be busy")
        if again not in (None, "failed"):
            raise ValueError(f"again must be None or 'failed', got {again!r}")
        stream_id = secrets.token_urlsafe(16) if id is None else check_stream_id(id)
        check_text("by", by, limit=256)
        for other in replaced:
            check_stream_id(other)
        if is_feed_id(stream_id):
            raise ValueError(f"a stream cannot have the id {stream_id!r}, which is the id of a session's feed; choose another")
        if fingerprint is None:
            fingerprint = "" if request is None else hashlib.blake2b(request, digest_size=16).hexdigest()
        head = replace(
            head or Head(content_type="text/event-stream", framing="sse", retention=self.retention),
            owner=owner, fingerprint=fingerprint, session=session,
        )  # fmt: skip
        key = key_of(stream_id, owner)
        head = replace(head, public_id="" if key == stream_id else stream_id, feed=False)
        replaces = None

        def decide(feed: Feed) -> bytes | None:
            others = [each for each in feed.streams if each not in (stream_id, *explicit)]
            if others and if_busy == "reject":
                raise StreamBusy(f"stream {others[-1]!r} of session {str(session)[:80]!r} is running", active=others[-1])
            replaced[:] = explicit
            if if_busy == "interrupt":
                # A stream that is already running interrupts those before it, but none that came later.
                earlier = itertools.takewhile(lambda each: each != stream_id, feed.streams)
                replaced.extend(each for each in earlier if each not in explicit)
            return feed.started(stream_id, by=by, supersedes=replaced)

        explicit = list(replaced)
        while True:
            answer = await self._create(key, head, request, replaces, decide)
            if isinstance(answer, Writer):
                self._generations.run(stream_id, answer, head, run, request)
                return Stream(stream_id, answer.epoch, joined=False)
            if answer.ending is not None:
                # Joined, or started anew in the next round: by itself it interrupts nothing.
                replaced[:] = explicit
            is_other = bool(answer.head.fingerprint and fingerprint and answer.head.fingerprint != fingerprint)
            if answer.head.owner != owner or answer.head.written or is_other:
                raise KeyReused(
                    f"stream {stream_id!r} answers another request; choose another id for this one", stream_id=stream_id
                )
            if replaces != answer.epoch and self._is_to_be_replaced(answer, again):
                replaces = answer.epoch
                self._following.forget(key)
                continue
            is_empty = answer.ending is None and answer.n == 0
            if is_empty and self._on_lost == "restart_if_empty" and self._generations.may_claim(key):
                writer = await self._generations.claim(key, go_on=True)
                if isinstance(writer, Writer) and writer.handover is not None:
                    was_empty = writer.handover.n == 0 and writer.handover.whole and not self._generations.is_behind(writer)
                    if was_empty and not self._is_full:
                        self._generations.run(stream_id, writer, answer.head, run, request)
                        return Stream(stream_id, writer.epoch, joined=False)
                    self._generations.tasks.spawn(self._generations.end_lost(writer))
            followed = self._following.find(key)
            if followed is not None and followed.follower.mirror is not None and followed.follower.mirror.epoch != answer.epoch:
                # It was deleted and started again elsewhere, but no bell has reported it.
                self._following.forget(key)
            return Stream(stream_id, answer.epoch, joined=True, ending=answer.ending)

    def _is_to_be_replaced(self, existing: Existing, again: Literal["failed"] | None) -> bool:
        ending = existing.ending
        if ending is None or ending.outcome is not Outcome.FAILED:
            return False
        # The process that first noticed the missing producer of an empty stream has ended it.
        is_empty = self._on_lost == "restart_if_empty" and existing.n == 0 and ending.reason == "producer_lost"
        return again == "failed" or is_empty

    @property
    def _is_full(self) -> bool:
        return len(self._generations) + self._creating >= self.limits.streams

    async def _create(
        self, key: str, head: Head, request: bytes | None, replaces: str | None, decide: Callable[[Feed], bytes | None]
    ) -> Writer | Existing:
        """Create the stream, if there is room for it here; joining an existing one needs none."""
        if self._generations.closing:
            raise HubDraining("the hub is shutting down and starts nothing; ask another instance")
        if self._is_full:
            there = Unknown() if replaces is not None else await self._log.read(key, None, limit_bytes=0)
            if isinstance(there, Unknown):
                raise LimitReached(
                    f"{len(self._generations)} generations already run here (HubLimits.streams)", limit=self.limits.streams
                )
            return Existing(there.epoch, there.n, there.head, there.ending)
        asked = key, head, hashlib.blake2b(request or b"", digest_size=16).digest()
        now = self._following.now()
        epoch, until = self._asked.pop(asked, ("", now))
        if until <= now:
            epoch, until = epoch_of(secrets.token_bytes(8)), now + self.lease
        self._creating += 1
        try:
            answer = await self._create_in_session(key, head, request, replaces, epoch, decide)
        except BaseException:
            # It may have been created. Nobody else can have it before its first lease ends.
            self._asked[asked] = epoch, until
            if len(self._asked) > _MOST_ASKED:
                self._asked.popitem(last=False)
            raise
        finally:
            self._creating -= 1
        if isinstance(answer, Writer) and self.draining:
            # Deleted, so that another instance can start it. Nobody has seen an event of it.
            await self._log.delete(key)
            if head.session is not None:
                id, ending = head.public_id or key, Ending(outcome=Outcome.CANCELLED, reason="shutdown")
                await self._tell_feed(head.session, head.owner, lambda feed: feed.ended(id, ending))
            raise HubDraining("the hub is shutting down and starts nothing; ask another instance")
        return answer

    async def _create_in_session(
        self,
        key: str,
        head: Head,
        request: bytes | None,
        replaces: str | None,
        epoch: str,
        decide: Callable[[Feed], bytes | None],
    ) -> Writer | Existing:
        """Create the stream, and record its start in the feed of its session."""

        async def create(also: Append | None) -> Writer | Existing | AlsoRefused:
            options = {} if also is None else {"also": also}
            return await self._log.create(key, head, lease=self.lease, request=request, replaces=replaces, epoch=epoch, **options)

        if head.session is None:
            answer = await create(None)
            assert not isinstance(answer, AlsoRefused)
            return answer
        for last in (False, True):
            try:
                return await self._sessions.step(head.session, head.owner, decide, create)
            except StreamBusy:
                # An existing stream is joined, whatever else is running.
                there = await self._log.read(key, None, limit_bytes=0)
                if not isinstance(there, Unknown) and there.epoch != replaces:
                    return Existing(there.epoch, there.n, there.head, there.ending)
                if last:
                    raise
                # The running one may be dead.
                await self._settled(head.session, head.owner)
        raise AssertionError("unreachable")

    # --- sessions

    def session(self, id: str, *, owner: str = "") -> Session:
        """
        A conversation: its running streams, its messages, and the feed that reports everything to those who follow it.

        Nothing is stored before the first event.

        Args:
            id: Text of 1 to 1024 bytes.
            owner: Its owner; each owner has separate sessions.
        """
        return Session(self, self._sessions, id, owner)

    async def active(self, session: str, *, owner: str = "") -> list[str]:
        """Ids of the running streams of a session, in the order in which they began."""
        return await self.session(session, owner=owner).active()

    async def _tell_feed(self, session: str, owner: str, decide: Callable[[Feed], bytes | None]) -> None:
        """
        Append to the feed of a session, or log a failure.

        A feed that is unavailable or damaged must not keep anybody from stopping or deleting a stream. The next process that asks
        what runs in the session records the end.
        """
        try:
            await self._sessions.append(session, owner, decide)
        except LogUnavailable as exc:
            logger.warning("the feed of session %s misses a change: %s", session[:80], exc)

    async def _settled(self, session: str, owner: str, *, make: bool = False) -> Feed | None:
        self._check_running()
        now, notice = self._following.now(), self._generations.notice_orphan
        return await self._sessions.settle(session, owner, now, self.lease, notice, make=make)

    def kind(self, name: str) -> Callable[[Producer], Producer]:
        """Register a producer under a name, for `POST /streams`: `hub.kind("chat")(run)`, or as a decorator."""

        def register(run: Producer) -> Producer:
            self._kinds[name] = run
            return run

        return register

    @property
    def kinds(self) -> Mapping[str, Producer]:
        """The producers that were registered, by name."""
        return self._kinds

    def portal(self, *, close_log: bool = True) -> SyncHub:
        """
        The same methods as plain calls, for programs without an event loop: Flask and other WSGI applications, scripts.

        The hub then runs in a thread of the portal, and must not be entered otherwise. See `SyncHub`.

        Args:
            close_log: The portal also closes the log. True: a log belongs to one event loop, which only the portal can reach.
        """
        from .portal import SyncHub

        return SyncHub(self, close_log=close_log)

    async def respond(self, request: Request, /, run: Producer | None = None, **options: Any) -> HubResponse:
        """
        Answer a request of Starlette or FastAPI: start or join a stream and follow it, or follow an existing one.

        See `resumable_stream.server.asgi.respond`; it needs the extra `server`.
        """
        from .asgi import respond

        return await respond(self, request, run, **options)

    async def answer(
        self,
        method: str,
        headers: Mapping[str, str] | Iterable[tuple[str, str]],
        query: str | bytes = "",
        *,
        id: str | None = None,
        run: Producer | None = None,
        path: str | None = None,
        body: bytes | None = None,
        owner: str | None = None,
        location: str | None = None,
        **options: Any,
    ) -> HubAnswer:
        """
        Answer a request, for a framework that `respond()` does not know: Django, Quart, aiohttp, Litestar, Sanic.

            answer = await hub.answer(request.method, request.headers, request.META["QUERY_STRING"], id=id, path=request.path)
            return StreamingHttpResponse(answer, status=answer.status, headers=dict(answer.headers))

        It does what `respond()` does: it honours the requested cursor and view, and every obstacle becomes an answer with its
        status, not an exception. Two things differ: the framework's own limits apply to the body of the request, and to a client
        that accepts no bytes, because only `respond()` uses `send_timeout`.

        Args:
            method: `GET`, `HEAD` or `POST`.
            headers: Headers of the request, by name, case-insensitively.
            query: The part after the `?`, still encoded.
            id: Id of the stream. `None`: the request's `Idempotency-Key`, or else 128 random bits.
            run: Makes the events if the stream is started here, see `start()`. `None`: the stream is only followed.
            path: Path of the request, as the client knows it, for `Content-Location`: the path of a GET; after a start that path,
                a slash and the id. A client that was cut while it read the answer to its POST continues there. `None`: it cannot.
            body: Body of the request. With method and path, it distinguishes requests under the same id. `None`: not compared.
            owner: Owner of the stream. `None`: the result of `authorize`.
            location: Path at which the stream can be read again, if `path` does not give it.
            options: As for `start()`.

        Raises:
            ValueError: Neither `run` nor `id` is given.
        """
        return await answer_of(
            self, method, headers, query, id=id, run=run, path=path, body=body, owner=owner, location=location, options=options
        )

    def _check_running(self) -> None:
        if not self._entered:
            raise RuntimeError("the hub is not running: use it in an `async with hub:` block, or pass hub.lifespan to the app")
        if self._closed:
            raise RuntimeError("the hub was closed: make another one, because a hub is entered only once")

    # --- the inbox

    async def say(self, id: str, data: str, *, mid: str | None = None, kind: str = "message", owner: str = "") -> int:
        """
        Post a message to the producer of a running stream.

        Args:
            id: The stream.
            data: The message.
            mid: Its id; a repeated id means the same message. `None`: a random one.
            kind: The application's own word, but not `"cancel"`.
            owner: As given to `start()`.

        Returns:
            Its place in the inbox, from 1; the same for the same `mid`. Accepted does not mean applied: a message counts as
                applied with the next event of its producer, and `Ending.applied` is the place of the last one that was.

        Raises:
            StreamUnknown: There is no such stream.
            StreamEnded: It has ended and accepts no messages; or this one was accepted before, but not applied.
            LimitReached: The inbox is full.
            ValueError: The kind is that of a cancel.
        """
        if kind == CANCEL:
            raise ValueError(f"a message of the kind {CANCEL!r} stops the producer: call hub.cancel(), or choose another kind")
        if mid == _CANCEL_ID:
            raise ValueError(f"a message cannot have the id {mid!r}, which is the id of a cancel; choose another")
        verdict = await self._say(id, Message(id=mid or secrets.token_urlsafe(12), data=data, kind=kind), owner)
        match verdict:
            case Said(k, ending) if ending is not None and k > ending.applied:
                raise StreamEnded(
                    f"stream {id!r} has ended ({ending.outcome.value}); the message was accepted at place {k} but not applied, "
                    f"because its producer applied only those up to {ending.applied}",
                    ending=ending,
                )
            case Said(k):
                return k
            case Ended(ending):
                raise StreamEnded(f"stream {id!r} has ended ({ending.outcome.value})", ending=ending)
            case Full(limit):
                raise LimitReached(f"the inbox of stream {id!r} is full", limit=limit)
            case Unknown():
                raise unknown(id)

    async def cancel(self, id: str, reason: str = "cancelled_by_user", *, owner: str = "", by: str = "") -> bool:
        """
        Ask the producer of a stream to stop, wherever it runs.

        Args:
            id: The stream.
            reason: Readers get it as the reason of the ending.
            owner: As given to `start()`.
            by: Who cancels it, for those who follow its session.

        Returns:
            Whether it was running. Repeated calls have no further effect.

        Raises:
            StreamUnknown: There is no such stream.
        """
        self._check_running()
        if is_feed_id(check_stream_id(id)):
            raise unknown(id)
        # Where it runs the head is known, and one trip is enough.
        head = self._generations.head_of(key_of(id, owner)) or (await self.state(id, owner=owner)).head
        return await self._cancel(id, head, reason, owner, by)

    async def _cancel(self, id: str, head: Head, reason: str, owner: str, by: str) -> bool:
        if head.written:
            # It has no producer to ask.
            return await self._written.end(id, owner, Ending(outcome=Outcome.CANCELLED, reason=reason))
        session = head.session
        if session is not None:
            # First: the stream may end before there is another chance, and then nobody would learn why.
            await self._tell_feed(session, owner, lambda feed: feed.cancelled(id, by=by))
        verdict = await self._say(id, Message(id=_CANCEL_ID, data=reason, kind=CANCEL), owner)
        if isinstance(verdict, Unknown):
            raise unknown(id)
        if isinstance(verdict, Said):
            key = key_of(id, owner)
            self._generations.hear_control(key, Control(verdict.k, reason))
            # A repeated cancel gets the same answer, whether the stream has ended meanwhile or not.
            return verdict.ending is None
        return False

    async def _say(self, id: str, message: Message, owner: str) -> Said | Ended | Full | Unknown:
        self._check_running()
        key = key_of(check_stream_id(id), owner)
        if is_feed_id(id):
            return Unknown()  # nobody runs it
        verdict = await self._log.say(key, message)
        if isinstance(verdict, Said) and message.kind != CANCEL:
            self._generations.hear_control(key, Control(verdict.k))
        return verdict

    # --- reading

    @property
    def readers(self) -> int:
        """How many readers there are here now."""
        return len(self._readers)

    def has_room(self, id: str, *, owner: str = "") -> bool:
        """Whether another reader of this stream is within the limits of this process."""
        followed = self._following.find(key_of(check_stream_id(id), owner))
        return len(self._readers) < self.limits.readers and (
            followed is None or followed.readers < self.limits.readers_per_stream
        )

    async def state(self, id: str, *, owner: str = "") -> State:
        """
        The current state of a stream, from the log.

        Raises:
            StreamUnknown: There is no such stream.
            LogUnavailable: The log cannot be reached.
        """
        answer = await self._log.read(key_of(check_stream_id(id), owner), None, limit_bytes=0)
        if isinstance(answer, Page) and answer.head.owner == owner:
            return State(
                id=id, head=answer.head, epoch=answer.epoch, oldest=answer.oldest, n=answer.n, b=answer.b, ending=answer.ending
            )
        raise unknown(id)

    async def message(self, id: str, *, owner: str = "") -> SoFar:
        """
        The text of a stream so far, in one piece.

        Raises:
            StreamUnknown: There is no such stream.
            HistoryGone: The log no longer holds its beginning.
            LogUnavailable: The log cannot be reached.
        """
        with await self.reader(id, view="verbatim", owner=owner) as reader:
            so_far = reader.so_far(self._text_of)
            async with so_far.lock:
                reader.n = so_far.n
                while chunk := await reader.next(0.0):
                    so_far.feed(chunk, reader.n)
                if reader.gone is not None:
                    raise unknown(id) if isinstance(reader.gone, Unknown) else _gone(id, reader.cursor, reader.gone)
                return SoFar(so_far.text, reader.cursor, reader.ending)

    async def look(self, id: str, after: Cursor | None = None, *, owner: str = "") -> Page | Gone | Unknown:
        """
        The answer of the log to a cursor, without events, and mostly without a trip to the log.

        Returns:
            As `StreamLog.read()`. Also `Unknown` for a stream of another owner.
        """
        self._check_running()
        key = key_of(check_stream_id(id), owner)
        followed = self._following.find(key)
        if followed is not None and followed.is_over:
            # There was no such stream, or another one; it may exist now.
            self._following.forget(key)
            followed = None
        if followed is None or not followed.settled or self._following.is_cut_off(followed):
            followed = self._following.get(key)
            await self._following.settle(followed, timeout=_OPEN_TIMEOUT)
        await self._following.confirm(followed, timeout=_OPEN_TIMEOUT)
        follower, mirror = followed.follower, followed.follower.mirror
        if follower.phase is not Phase.GONE and mirror is not None and follower.head is not None:
            if follower.head.owner != owner:
                return Unknown()
            last = mirror.n + (mirror.ending is not None)
            start = 0 if after is None else after.n
            if (after is None or after.epoch == mirror.epoch) and mirror.oldest - 1 <= start <= last:
                return Page(
                    head=follower.head,
                    epoch=mirror.epoch,
                    oldest=mirror.oldest,
                    n=mirror.n,
                    b=mirror.b or 0,
                    ending=mirror.ending,
                )
        answer = await self._log.read(key, after, limit_bytes=1)
        if isinstance(answer, Unknown):
            if follower.phase is Phase.GONE and not followed.readers:
                self._following.forget(key)
            return answer
        if answer.head.owner != owner:
            return Unknown()
        return answer

    async def reader(
        self, id: str, after: Cursor | None = None, *, view: View = "events", from_byte: int = 0, owner: str = ""
    ) -> Reader:
        """
        Start reading a stream.

        Args:
            id: The stream.
            after: The last event that the reader has; `None`: from the first.
            view: See `View`.
            from_byte: In the view `"raw"`, the byte to start from instead.
            owner: As given to `start()`.

        Raises:
            StreamUnknown: There is no such stream.
            HistoryGone: The log no longer holds the events after the cursor.
            LimitReached: Too many readers.
            LogUnavailable: The log cannot be reached.
        """
        key = key_of(check_stream_id(id), owner)
        for _ in range(_LOOKS):
            answer = await self.look(id, after, owner=owner)
            if isinstance(answer, Unknown):
                raise unknown(id)
            found = self._following.find(key)
            if found is not None and found.settled and not (found.is_over and isinstance(answer, Page)):
                followed = found
                break
        else:
            raise LogUnavailable(f"stream {id!r} was deleted and created again {_LOOKS} times meanwhile", stream_id=key)
        hopeful = isinstance(answer, Gone) and answer.why == "went_back" and answer.ending is None and not answer.head.feed
        if isinstance(answer, Gone) and not (hopeful and answer.running_until):
            raise _gone(id, after, answer)
        self._check_room(id, followed)
        mirror = followed.follower.mirror
        if mirror is None:
            mirror = Mirror(answer.epoch, answer.head.framing)
        reader = Reader(self._log, self._following, followed, mirror, view=view, n=0 if after is None else after.n, b=from_byte)
        reader.ahead = answer if isinstance(answer, Gone) else None
        return self._admitted(reader)

    def _check_room(self, id: str, followed: Followed) -> None:
        if len(self._readers) >= self.limits.readers:
            raise LimitReached(f"{len(self._readers)} readers are already here (HubLimits.readers)", limit=self.limits.readers)
        if followed.readers >= self.limits.readers_per_stream:
            raise LimitReached(
                f"{followed.readers} readers read stream {id!r} here (HubLimits.readers_per_stream)",
                limit=self.limits.readers_per_stream,
            )

    def _admitted(self, reader: Reader) -> Reader:
        self._readers[reader] = None
        reader.on_close = self._forget_closed
        if self.draining:
            # It gets the existing events, and returns elsewhere for the rest.
            reader.leave()
        return reader

    async def _awaited(self, id: str, *, view: View, owner: str, patience: float | None) -> Reader:
        """
        Start reading a feed that nobody has begun: all of it, once it exists.

        Args:
            id: Id of the feed.
            view: See `View`.
            owner: Its owner.
            patience: Most seconds to wait for it; `None`: no limit.

        Raises:
            LimitReached: Too many readers.
            LogUnavailable: The log cannot be reached.
        """
        self._check_running()
        key = key_of(id, owner)
        followed = self._following.get(key)
        if followed.is_over and followed.follower.mirror is not None:
            # From a feed that is gone.
            self._following.forget(key)
            followed = self._following.get(key)
        self._check_room(id, followed)
        until = math.inf if patience is None else self._following.now() + patience
        reader = Reader(self._log, self._following, followed, Mirror(NOWHERE, "sse"), view=view, n=0, awaits=until)
        try:
            # From now on its start is noticed.
            await self._following.settle(followed, timeout=_OPEN_TIMEOUT)
        except BaseException:
            reader.close()
            raise
        return self._admitted(reader)

    def follow(
        self,
        id: str,
        after: Cursor | str | None = None,
        view: View = "events",
        *,
        from_byte: int = 0,
        owner: str = "",
    ) -> AsyncGenerator[bytes, None]:
        """
        Read a stream as the body of an HTTP response: the events after a cursor, then live ones, up to the end.

        In the view `"events"` these are server-sent events: a `retry:` line, events with ids, a comment after each `heartbeat`
        seconds of silence, and `event: end` as the last one. A hub that shuts down ends the body with a `retry:` line instead,
        and the reader returns with its cursor. In the other views it is what the producer wrote.

        Statuses (204, 404, 410 and so on) are up to the caller; `answer()` handles them.

        Args:
            id: The stream.
            after: The last event that the reader has, as a cursor or as the text of a `Last-Event-ID`. `None` or `""`: from the
                first. After the end there is nothing more, not even the end.
            view: See `View`.
            from_byte: In the view `"raw"`, the byte to start from.
            owner: As given to `start()`.

        Returns:
            An iterator. The reader is opened with the first piece, and released at the end, or by `aclose()`; the stream
            continues
                without it. Pieces have at most 256 KiB.

        Raises:
            ValueError: `after` is not a cursor, or a stream of raw bytes is to be shown as events.
            StreamUnknown: There is no such stream. This error and the following are raised by the iterator.
            HistoryGone: The log no longer holds the events after the cursor.
            LimitReached: Too many readers.
            LogUnavailable: The log cannot be reached.
            ReaderCut: The data so far is incomplete, so the response must not be ended cleanly: a stream without ids failed, or
                the log became unavailable.
        """
        return pieces(self._opens(id, after, view, from_byte, owner))

    def _opens(
        self, id: str, after: Cursor | str | None, view: View, from_byte: int, owner: str
    ) -> Callable[[], Awaitable[Body]]:
        """The body that `follow()` reads, not yet opened."""
        check_stream_id(id)
        if view not in get_args(View):
            raise ValueError(f"view must be one of {', '.join(get_args(View))}, got {view!r}")
        cursor = after if isinstance(after, Cursor) else Cursor.parse(after) if after else None

        async def opened() -> Body:
            reader = await self.reader(id, cursor, view=view, from_byte=from_byte, owner=owner)
            if view == "events" and reader.framing == "raw":
                reader.close()
                raise ValueError(f"stream {id!r} has raw bytes, which cannot be shown as events: use the view 'verbatim'")
            if view != "events":
                return Body(reader, Follow(view=view, after=reader.cursor))
            return self._body_of_events(reader)

        return opened

    def _body_of_events(self, reader: Reader) -> Body:
        heartbeat = b"" if self.heartbeat is None else wire.heartbeat("sse")
        then = Follow(view="events", after=reader.cursor, heartbeat=heartbeat, every=self.heartbeat)
        body = Body(reader, then, first=wire.retry_line(random.random(), wire.retry_bounds(self.readers)))
        if reader.seen_the_end:
            body.close()
        return body

    def _followed(self, id: str, owner: str) -> Followed:
        """A stream, followed from now on."""
        return self._following.get(key_of(id, owner))

    def _forget_reader(self, reader: Reader) -> None:
        self._readers.pop(reader, None)
        self._presence.leave(reader)

    async def forget(self, id: str, *, owner: str = "") -> None:
        """
        Cancel a stream and delete everything of it.

        Raises:
            StreamUnknown: There is no such stream.
        """
        if is_feed_id(check_stream_id(id)):
            raise unknown(id)
        state = await self.state(id, owner=owner)
        key = key_of(id, owner)
        if state.head.written:
            await self._written.delete(id, owner)
            self._following.forget(key)
            return
        with contextlib.suppress(StreamUnknown):
            await self._cancel(id, state.head, FORGOTTEN, owner, "")
        if key in self._generations:
            await self._generations.forget(key)
        else:
            await self._wait_for_end(key)
        if (session := state.head.session) is not None:
            # If its producer is dead, or does not stop, nobody else records the end. It must be there before a new start.
            ending = state.ending or Ending(outcome=Outcome.CANCELLED, reason=FORGOTTEN)
            await self._tell_feed(session, owner, lambda feed: feed.ended(id, ending))
        await self._log.delete(key)
        self._following.forget(key)

    async def _wait_for_end(self, key: str) -> None:
        """
        Give a producer in another process time to stop; otherwise it would restore the stream as one that its log has lost.

        It learns of a cancel at once, or at its next renewal, and then has `cancel_grace`.
        """
        pace, backoff = self._generations.pace, Backoff(0.01, 0.5)
        deadline = self._following.now() + pace.cancel_grace + pace.lease / 2
        while self._following.now() < deadline:
            page = await self._log.read(key, None, limit_bytes=0)
            if not isinstance(page, Page) or page.ending is not None or page.lease_left == 0.0:
                return
            await backoff.wait()


def key_of(stream_id: str, owner: str) -> str:
    """
    The key of a stream in the log. Each owner has separate ids, so the `msg_1` of two users never collide.

    An id without an owner that looks like such a key is rejected, so nobody else can reach or take an owner's stream by it.
    """
    if not owner and not stream_id.startswith("~"):
        return stream_id
    digest = hashlib.blake2b(digest_size=20, person=b"rs-owned-stream")
    for part in (owner.encode(), stream_id.encode()):
        digest.update(len(part).to_bytes(4, "big") + part)
    return f"~{digest.hexdigest()}"


def _gone(stream_id: str, after: Cursor | None, gone: Gone) -> HistoryGone:
    return HistoryGone(
        f"the log of stream {stream_id!r} does not hold the events after {after or 'its beginning'}: {gone.why}; it holds events "
        f"{gone.oldest} to {gone.n} of epoch {gone.epoch}",
        gone=gone,
    )


def unknown(stream_id: str) -> StreamUnknown:
    """The error for a stream that does not exist, or that the caller may not see: the two look the same."""
    return StreamUnknown(f"there is no stream {stream_id[:80]!r}, or you may not see it", stream_id=stream_id)
