"""
How many follow a session now, counted over all processes that use the log.

Each process writes into one shared record of the session how many follow it there, when that changes and every `period` seconds,
and adds up what all of them say. One that has not written for three periods is dead, and counts no more; nobody has to clean up.

    process a   3 readers   tick 41     this process, 5 s ago
    process b   1 reader    tick 38     another one, 14 s ago
    process c   2 readers   tick 7      the same tick for three periods: killed, and left out by whoever writes next

The record is a stream in the log with one event, since each takes the place of the one before it. It belongs to no history: a
reader gets the number as an event without an id, and one who comes back gets the number of that moment. It is forgotten by the
log when nobody has written for four periods.

Clocks are not compared: each process measures how long ago *it* saw another one's tick change, while the log could be read.
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
"""Seconds between two changes that readers are told of, and between two that are written. 1: nobody sees it sooner."""
_DEAD: Final = 3
"""Periods without a sign of life after which a process counts no more. 3: two writes may fail."""
_LOOK: Final = 0.2
"""Seconds between two looks whether the log was heard of. 0.2: so much later a death is noticed."""
_MOST: Final = 1000
"""Processes of one session. 1,000: some 30 KB in one event; those that wrote the longest ago are left out."""
_TRIES: Final = 10
"""How often a record is read that is written at the same moment. 10: each try that fails is a write of theirs."""
_KIND: Final = "application/x-ndjson"

Said: TypeAlias = "dict[str, tuple[int, int]]"
"""Of each process how many follow the session there, and the event that said so first or again: its tick."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the record of a session is kept."""

    session: str
    owner: str
    key: str


@dataclass(frozen=True, slots=True)
class Record:
    """
    What all processes say.

    Attributes:
        epoch: Of the log.
        n: Number of the event that says so; 0: nobody has said anything.
        b: Byte position after it.
        said: By whom.
    """

    epoch: str
    n: int = 0
    b: int = 0
    said: Said | None = None

    def next(self, said: Said) -> Span:
        """The event that takes its place."""
        newest = sorted(said.items(), key=lambda each: -each[1][1])[:_MOST]
        data = to_json({name: list(each) for name, each in newest}).encode() + b"\n"
        return Span(n=self.n + 1, b=self.b + len(data), lengths=(len(data),), data=data)


def read(data: bytes) -> Said:
    """What an event says; whatever is no number of readers of a process is left out."""
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
    The readers of one session in this process, and what it knows of those in others.

    Attributes:
        place: Where the record is kept.
        readers: Those here.
        followed: The record, as this process hears of it.
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
        """The epoch of the record that was lost before this one."""
        self._seen: dict[str, tuple[int, float]] = {}
        """Of each other process its last tick, and when this process saw it first."""

    def wake(self) -> None:
        """Something has changed here."""
        if self.followed is not None:
            self.followed.grown.wake()

    def fold(self, record: Record, now: float) -> None:
        """Take what the log says."""
        known = self._record
        if known is not None:
            if record.epoch == self._left or (record.epoch == known.epoch and record.n <= known.n):
                # What this process hears may be older than what it has read.
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
        """What the other processes say that live, at a time when the log was last heard of."""
        said = {} if self._record is None else self._record.said or {}
        alive = {name for name, (_, since) in self._seen.items() if heard_at - since < self._dead_after}
        return {name: each for name, each in said.items() if name in alive}

    def count(self, heard_at: float) -> int:
        """How many follow the session, here and elsewhere."""
        return len(self.readers) + sum(readers for readers, _ in self.others(heard_at).values())

    def next_death(self, heard_at: float) -> float:
        """When the next process will count no more, unless it writes."""
        deaths = (since + self._dead_after for _, since in self._seen.values())
        return min((death for death in deaths if death > heard_at), default=float("inf"))

    def tell(self, readers: int) -> None:
        """Let all readers here know."""
        self.say(event_block(to_json({"readers": readers}), event="presence"))
        for followed in {reader.followed for reader in self.readers}:
            followed.grown.wake()


_Known = Known[_Place, Record]


class Presence(SharedStreams[_Place, Record]):
    """
    The sessions that are followed here by readers who want to know of the others.

    Args:
        log: Where the records are kept.
        following: Hears of what others write.
        key_of: The key of a stream in the log, of its id and its owner.
        period: Seconds between two writes of a process that has nothing new to say.
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
        """Count a reader of a session from now on, and tell it how many there are."""
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
        """It has left."""
        room = self._of.pop(reader, None)
        if room is not None:
            room.readers.pop(reader, None)
            room.wake()

    async def aclose(self) -> None:
        """Say that nobody follows any session here. What cannot be said now is known three periods later."""
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
                    # Of a record that the log has forgotten, or lost.
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
                # A death is noticed when the log is heard of after it, so there may be nothing to wait for but that.
                await followed.grown.wait(max(wait, min(_LOOK, self._period / 10)))
        finally:
            followed.readers -= 1
            if self._rooms.get(room.place.key) is room:
                del self._rooms[room.place.key]

    def _follow(self, key: str) -> Followed:
        followed = self._following.get(key)
        # Polled, and not forgotten.
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
        # What came before is of no use to anybody.
        mirror.trim(len(data))

    async def _write(self, room: Room) -> None:
        """Say how many follow the session here."""
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
        raise LogUnavailable("the readers of a session are counted by too many at this moment", stream_id=key)

    async def _catch_up(self, known: _Known) -> None:
        await self._reload(known)

    async def _mend(self, known: _Known, verdict: Fenced | Ended | Behind | Lost) -> None:
        if isinstance(verdict, Ended):
            # Nobody ends it; whoever did, it is made anew.
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
