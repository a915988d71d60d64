"""
Counts who follows a session now, over all processes that use the log.

Each process writes its number of followers into one shared record of the session, when the number changes and every `period`
seconds, and adds up the numbers of all. A process that has not written for three periods is dead and no longer counts; nobody has
to clean up.

    process a   3 readers   tick 41     this process, 5 s ago
    process b   1 reader    tick 38     another one, 14 s ago
    process c   2 readers   tick 7      the same tick for three periods: killed, and left out by the next writer

The record is a stream in the log with one event, because each event replaces the previous one. It is not part of any history: a
reader gets the number as an event without an id, and one who returns gets the current number. The log drops the record when
nobody has written for four periods.

Clocks are not compared: each process measures how long ago *it* saw another one's tick change, while it could read the log.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from .._errors import LogUnavailable
from ._tasks import Tasks
from ._values import Cursor, Span
from .following import Followed, Following
from .log import Append, Behind, Ended, Fenced, Head, Lost, Page, StreamLog, Unknown, Writer
from .mirror import NotHeld
from .reading import Aside, Reader
from .shared import Known, SharedStreams
from .wire import event_block, to_json

__all__ = ["Presence"]

logger = logging.getLogger("resumable_stream.server")

APART: Final = 1.0
"""Seconds between two numbers sent to readers, and between two that are written. 1: nobody would notice it sooner."""
_DEAD: Final = 3
"""Periods without a sign of life after which a process no longer counts. 3: two writes may fail."""
_LOOK: Final = 0.2
"""Seconds between two checks whether the log was heard of. 0.2: the delay before a death is noticed."""
_MOST: Final = 1000
"""Processes per session. 1,000: about 30 KB in one event; those that wrote the longest ago are left out."""
_TRIES: Final = 10
"""How often a record is read while others write it. 10: each failed attempt is a write of theirs."""
_KIND: Final = "application/x-ndjson"

Said: TypeAlias = "dict[str, tuple[int, int]]"
"""For each process, how many follow the session there, and the number of the event that last wrote it: its tick."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the record of a session is kept."""

    session: str
    owner: str
    key: str


@dataclass(frozen=True, slots=True)
class Record:
    """
    What all processes report.

    Attributes:
        epoch: Epoch of the log.
        n: Number of the event with these numbers; 0: there is none.
        b: Byte position after it.
        said: The numbers, by process.
    """

    epoch: str
    n: int = 0
    b: int = 0
    said: Said | None = None

    def next(self, said: Said) -> Span:
        """The event that replaces it."""
        newest = sorted(said.items(), key=lambda each: -each[1][1])[:_MOST]
        data = to_json({name: list(each) for name, each in newest}).encode() + b"\n"
        return Span(n=self.n + 1, b=self.b + len(data), lengths=(len(data),), data=data)


def read(data: bytes) -> Said:
    """Parse an event; invalid entries are left out."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        name: (each[0], each[1])
        for name, each in found.items()
        if isinstance(each, list) and len(each) == 2 and all(type(number) is int and number >= 0 for number in each)
    }


class Room(Aside):
    """
    The readers of one session in this process, and the known numbers of other processes.

    Attributes:
        place: Where the record is kept.
        readers: Those here.
        followed: The record, as this process follows it.
    """

    def __init__(self, place: _Place, me: str, *, dead_after: float) -> None:
        super().__init__()
        self.place = place
        self.readers: dict[Reader, None] = {}
        self.followed: Followed | None = None
        self._me = me
        self._dead_after = dead_after
        self._record: Record | None = None
        self._left = ""
        """The epoch of the lost record before this one."""
        self._seen: dict[str, tuple[int, float]] = {}
        """The last tick of each other process, and when this process first saw it."""

    def wake(self) -> None:
        """Something has changed here."""
        if self.followed is not None:
            self.followed.grown.wake()

    def fold(self, record: Record, now: float) -> None:
        """Process a record from the log."""
        known = self._record
        if known is not None:
            if record.epoch == self._left or (record.epoch == known.epoch and record.n <= known.n):
                # A bell may bring an older record than the last read.
                return
            if record.epoch != known.epoch:
                self._left = known.epoch
        self._record = record
        before, self._seen = self._seen, {}
        for name, (_, tick) in (record.said or {}).items():
            if name != self._me:
                last = before.get(name)
                self._seen[name] = last if last is not None and last[0] == tick else (tick, now)

    def others(self, heard_at: float) -> Said:
        """The numbers of the other processes that were alive when the log was last heard of."""
        said = {} if self._record is None else self._record.said or {}
        alive = {name for name, (_, since) in self._seen.items() if heard_at - since < self._dead_after}
        return {name: each for name, each in said.items() if name in alive}

    def count(self, heard_at: float) -> int:
        """How many follow the session, here and elsewhere."""
        return len(self.readers) + sum(readers for readers, _ in self.others(heard_at).values())

    def next_death(self, heard_at: float) -> float:
        """When the next process will stop counting, unless it writes."""
        deaths = (since + self._dead_after for _, since in self._seen.values())
        return min((death for death in deaths if death > heard_at), default=float("inf"))

    def tell(self, readers: int) -> None:
        """Send the number to all readers here."""
        self.say(event_block(to_json({"readers": readers}), event="presence"))
        for followed in {reader.followed for reader in self.readers}:
            followed.grown.wake()


_Known = Known[_Place, Record]


class Presence(SharedStreams[_Place, Record]):
    """
    The followed sessions whose readers want to know the number of readers.

    Args:
        log: Where the records are kept.
        following: Follows what other processes write.
        key_of: Returns the key of a stream in the log, from its id and owner.
        period: Seconds between two writes of a process without news.
    """

    def __init__(self, log: StreamLog, following: Following, key_of: Callable[[str, str], str], *, period: float) -> None:
        super().__init__(log)
        self._following = following
        self._key_of = key_of
        self._period = period
        self._me = secrets.token_hex(6)
        self._rooms: dict[str, Room] = {}
        self._of: dict[Reader, Room] = {}
        self._tasks = Tasks("the readers of a session could not be counted")

    # --- readers

    def join(self, session: str, owner: str, reader: Reader) -> None:
        """Count a reader of a session from now on, and send it the number."""
        key = self._key_of(_id_of(session), owner)
        room = self._rooms.get(key)
        if room is None:
            room = self._rooms[key] = Room(_Place(session, owner, key), self._me, dead_after=_DEAD * self._period)
            self._tasks.spawn(self._run(room))
        room.readers[reader] = None
        self._of[reader] = room
        reader.aside = room
        room.wake()

    def leave(self, reader: Reader) -> None:
        """A reader has left."""
        room = self._of.pop(reader, None)
        if room is not None:
            room.readers.pop(reader, None)
            room.wake()

    async def aclose(self) -> None:
        """Record that nobody follows any session here. If that fails, others notice it three periods later."""
        rooms = list(self._rooms.values())
        await self._tasks.cancel()
        for room in rooms:
            room.readers.clear()
        if rooms:
            saying = [asyncio.ensure_future(self._write(room)) for room in rooms]
            _, late = await asyncio.wait(saying, timeout=1.0)
            for each in late:
                each.cancel()
            for done in await asyncio.gather(*saying, return_exceptions=True):
                if isinstance(done, Exception) and not isinstance(done, LogUnavailable):
                    logger.error("the readers of a session could not be counted", exc_info=done)

    # --- a session

    async def _run(self, room: Room) -> None:
        never = float("-inf")
        written, wrote_at, failed, told, told_at, heard_at = -1, never, False, -1, never, never
        followed = room.followed = self._follow(room.place.key)
        try:
            while True:
                if followed.dropped or (followed.is_over and followed.follower.mirror is not None):
                    # The log has dropped, or lost, the record.
                    followed.readers -= 1
                    self._following.forget(room.place.key)
                    followed = room.followed = self._follow(room.place.key)
                now = self._following.now()
                self._look(room, followed, now)
                here = len(room.readers)
                due = wrote_at + (self._period if here == written and not failed else APART)
                if now >= due:
                    wrote_at, failed = now, False
                    try:
                        await self._write(room)
                    except LogUnavailable as exc:
                        failed = True
                        logger.info("the readers of session %s cannot be counted now: %s", room.place.session[:80], exc)
                    else:
                        written, heard_at = here, self._following.now()
                    continue
                if written == 0 and not here:
                    return
                heard_at = max(heard_at, followed.read_at)
                count = room.count(heard_at)
                if written >= 0 and count != told and now >= told_at + APART:
                    told, told_at = count, now
                    room.tell(count)
                wait = min(due, room.next_death(heard_at), told_at + APART if count != told else float("inf")) - now
                # A death is noticed when the log is next heard of after it, so there may be nothing else to wait for.
                await followed.grown.wait(max(wait, min(_LOOK, self._period / 10)))
        finally:
            followed.readers -= 1
            if self._rooms.get(room.place.key) is room:
                del self._rooms[room.place.key]

    def _follow(self, key: str) -> Followed:
        followed = self._following.get(key)
        # Marked as read, so that it is polled and kept.
        followed.readers += 1
        self._following.do(followed, followed.follower.listen())
        return followed

    def _look(self, room: Room, followed: Followed, now: float) -> None:
        mirror = followed.follower.mirror
        if mirror is None or not mirror.n or mirror.b is None:
            return
        try:
            data, n = mirror.after(mirror.n - 1)
        except NotHeld:
            return
        room.fold(Record(mirror.epoch, n, mirror.b, read(data)), now)
        # Older records are not needed.
        mirror.trim(len(data))

    async def _write(self, room: Room) -> None:
        """Write how many follow the session here."""
        async with self._held(room.place) as known:

            def decide(record: Record) -> Append | None:
                now = self._following.now()
                room.fold(record, now)
                said = room.others(now)
                if room.readers:
                    said[self._me] = len(room.readers), record.n + 1
                elif self._me not in (record.said or {}):
                    return None
                span = record.next(said)
                return Append(self._writer(known, record), span, exact=True, trims=span.n)

            await self._step(known, decide, self._append)

    # --- what is known

    def _writer(self, known: _Known, record: Record) -> Writer:
        return Writer(known.place.key, record.epoch, known.fence, (_DEAD + 1) * self._period, 0.0)

    async def _load(self, known: _Known) -> Record:
        key, place = known.place.key, known.place
        for _ in range(_TRIES):
            stands = await self._log.read(key, None, limit_bytes=0)
            if isinstance(stands, Unknown):
                head = Head(
                    content_type=_KIND, framing="ndjson", owner=place.owner, session=place.session, retention=0.0, feed=True
                )
                made = await self._log.create(key, head, lease=(_DEAD + 1) * self._period)
                if isinstance(made, Writer):
                    known.state, known.fence = Record(made.epoch), made.fence
                    return known.state
                continue
            if not isinstance(stands, Page):
                continue
            if not stands.n:
                known.state, known.fence = Record(stands.epoch), 1
                return known.state
            page = await self._log.read(key, Cursor(stands.epoch, stands.n - 1))
            if isinstance(page, Page) and page.spans:
                span = page.spans[-1]
                known.state, known.fence = Record(page.epoch, span.n, span.b, read(span.data[-span.lengths[-1] :])), 1
                return known.state
        raise LogUnavailable("too many processes are counting the readers of a session at this moment", stream_id=key)

    async def _catch_up(self, known: _Known) -> None:
        await self._reload(known)

    async def _mend(self, known: _Known, verdict: Fenced | Ended | Behind | Lost) -> None:
        if isinstance(verdict, Ended):
            # Nothing ends it. If somebody did, recreate it.
            await self._log.delete(known.place.key)
        await self._reload(known)
        if isinstance(verdict, Fenced):
            known.fence = int(verdict.current.rpartition(".")[2])

    def _took(self, known: _Known, append: Append) -> None:
        assert known.state is not None and append.span is not None
        known.state = Record(known.state.epoch, append.span.n, append.span.b, read(append.span.data))


def _id_of(session: str) -> str:
    digest = hashlib.blake2b(session.encode(), digest_size=20, person=b"rs-presence").hexdigest()
    return f"~session.{digest}"
