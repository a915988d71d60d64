"""
Events that are passed on as bytes and not read unless necessary.

While a stream is calm, an event of the usual shape changes only the count: it ends nothing, is not a repeat, and leaves
no gap. Then its reader needs only its bytes. They are kept as long as an event would be remembered, and are decoded
when the position is requested, or when the connection is lost and repeats may come. Events that have left the window by then
are never read.

Recognition is strict, so unread events are byte-identical to what reading would deliver: one whole block of `id`,
`event` and one line of `data`, ended by LF; a name and a beginning that do not raise the protocol's alarm; an id, or none, as
the lane requires; the very next number if numbers are promised or have been seen to count.

The events of an answer look alike: once one has been parsed, a pattern made of its name and beginning matches the next.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from .._checkpoint import MAX_RECENT_IDS
from .._contract import Glance, ResumeProtocol, alarm_of, quiet_of
from ..framing import SSEDecoder, VerbatimDecoder
from .lanes import COUNTING, NUMBERED, OPAQUE, PLAIN, Lane
from .ledger import Ledger
from .seams import Seams

__all__ = ["LARGEST", "Skimmer", "Unread"]

LARGEST: Final = 16 * 1024
"""Bytes; unread events are smaller."""
SKIMMED: Final = (PLAIN, OPAQUE, COUNTING, NUMBERED)
"""The ledger's lanes in which an event may go unread."""

# `.` matches anything but LF; CR is checked separately, which is faster than excluding it here. One space after the colon is not
# part of the value, and `?+` does not give it back, so empty values do not match. Longer data is read; a token's has 200 bytes.
_BLOCK: Final = re.compile(
    rb"(?:id: ?+(?P<first>.{1,1024})\n)?(?:event: ?+(?P<name>.{1,1024})\n)?(?:id: ?+(?P<second>.{1,1024})\n)?"
    rb"data: ?+(?P<head>.{0,7}).{0,8192}(?:\nid: ?+(?P<third>.{1,1024}))?\n\n"
).fullmatch
_NUL, _CR = b"\0\r"
# An alarm's seven characters have at least this many bytes in any encoding.
_HEAD: Final = 7
# How many are kept here before all but the newest go to the ledger, unread. Few enough to stay in the processor's cache.
_KEPT: Final = 512
# Maximum patterns per stream; providers have about ten kinds of delta.
_PATTERNS: Final = 16

# A miss costs as much as four unread events save.
_PATIENCE: Final = 16
_WORTH: Final = 4
_REST: Final = rb".{0,8192}"

Match = Callable[[bytes], Any]


class Skimmer:
    """
    Args:
        protocol: The protocol, for its alarm and for where its numbers are.
        make_room: Takes most of the held events. False: they have to be read.

    Attributes:
        held: The events since the last `start()`, unread, oldest first.
        front: The beginning of one more event, if its end has not come yet.
        misses, total: How often an event had to be read after all, and how many did not.
    """

    def __init__(self, protocol: ResumeProtocol, make_room: Callable[[], bool]) -> None:
        names, heads = alarm_of(protocol) or (frozenset(), frozenset())
        self._names = frozenset(name.encode() for name in names) | ({None} if "message" in names else frozenset())
        self._heads = frozenset(head.encode()[:_HEAD] for head in heads)
        self._glance = Glance.of(protocol)
        self._quiet = quiet_of(protocol)
        self._make_room = make_room
        self._patterns: dict[tuple[Any, ...], Match] = {}
        self._shape: Match = _never
        self.held: list[bytes] = []
        self.front = b""
        self.misses = self.total = 0
        self._lane: Lane = PLAIN
        self._counts = False
        self._next = 0
        # For opaque ids: the function that enters an id, and the number that a new one is entered with.
        self._named = False
        self._seams: Seams | None = None
        self._enter: Callable[[bytes, int], int] = dict[bytes, int]().setdefault
        self._at = 0
        self._latest = b""
        self._synced = 0

    @property
    def useless(self) -> bool:
        """Whether skimming costs more than it saves, because most events differ in their beginning or are short."""
        return self.misses >= _PATIENCE and self.total < _WORTH * self.misses

    def start(self, lane: Lane, number: int | None, seams: Seams) -> None:
        """Start after events that have been read; `number` is the last one's, `seams` knows how far ids can be trusted."""
        self.held.clear()
        self._named = lane is OPAQUE
        if self._named:
            self._know(seams)
        if lane is not self._lane:
            self._patterns.clear()
            self._shape = _never
        self._lane = lane
        self._counts = lane in (COUNTING, NUMBERED)
        self._next = 0 if number is None else number + 1

    def skim(self, chunk: bytes) -> bytes | None:
        """
        Look at the next bytes of the body.

        Returns:
            One event that changes nothing: it is kept, and may be passed on. `b""`: only the front of an event so far.
            `None`: the chunk has to be read, after everything that was kept.
        """
        # Inlined: any call here is paid for by every event.
        match = self._shape(chunk)
        if match is None or self.front or _CR in chunk or _NUL in chunk:
            return self._look_closer(chunk)
        if self._quiet is not None and not self._quiet(chunk):
            return None
        held = self.held
        if len(held) == _KEPT and not self._make_room():
            return None
        if self._counts:
            if match[1] != b"%d" % self._next:
                return None
            self._next += 1
        elif self._named:
            own_id, at = match[1], self._at
            if self._enter(own_id, at) != at and not self._may_follow(own_id):
                return None
            self._at = at + 1
            self._latest = own_id
        held.append(chunk)
        return chunk

    def _know(self, seams: Seams) -> None:
        """Enter the ids of the events that have been read since the last time."""
        if seams is not self._seams:
            self._seams, self._enter, self._synced = seams, seams.raw.setdefault, 0
        fresh = []
        for own_id, offset in reversed(seams.ids.items()):
            if offset < self._synced:
                break
            fresh.append(own_id)
        for own_id in reversed(fresh):
            self._latest = own_id.encode("utf-8", "surrogatepass")
            seams.raw.setdefault(self._latest, -1)
        self._synced = max(self._synced, next(reversed(seams.ids.values()), -1) + 1)

    def _may_follow(self, own_id: bytes) -> bool:
        """Whether a known id may belong to a new event: if events share ids, an id may follow itself."""
        return self._seams is not None and self._seams.shared and own_id == self._latest

    def _look_closer(self, chunk: bytes) -> bytes | None:
        front, chunk = self.front, self.front + chunk
        if _CR in chunk or _NUL in chunk:
            return None
        shape = self._find(chunk) if self._lane in SKIMMED else None
        if shape is None or (match := shape(chunk)) is None:
            if front or b"\n\n" in chunk:
                return None
            self.front = chunk
            return b""
        if self._quiet is not None and not self._quiet(chunk):
            return None
        if len(self.held) == _KEPT and not self._make_room():
            return None
        if self._counts:
            if match[1] != b"%d" % self._next:
                return None
            self._next += 1
        elif self._named:
            own_id, at = match[1], self._at
            if self._enter(own_id, at) != at and not self._may_follow(own_id):
                return None
            self._at = at + 1
            self._latest = own_id
        self._shape = shape
        self.front = b""
        self.held.append(chunk)
        return chunk

    def _find(self, chunk: bytes) -> Match | None:
        """A pattern for events like this one; `None` if it has to be read."""
        match = _BLOCK(chunk)
        if match is None:
            return None
        name, head = match["name"], match["head"]
        ids = [group for group in ("first", "second", "third") if match[group] is not None]
        if name in self._names or len(head) < _HEAD or head in self._heads:
            return None
        if len(ids) != (self._lane in (OPAQUE, COUNTING)):
            return None
        key = (name, head, *ids)
        if (known := self._patterns.get(key)) is not None:
            return known
        if len(self._patterns) == _PATTERNS or (made := self._make(chunk, match, ids)) is None:
            return None
        found = self._patterns[key] = re.compile(made).fullmatch
        return found

    def _make(self, chunk: bytes, match: re.Match[bytes], ids: list[str]) -> bytes | None:
        """Make a pattern of everything before the data's eighth character, with the id or the number left open."""
        end = match.end("head")
        if self._lane is NUMBERED:
            name = match["name"].decode("utf-8", "replace") if match["name"] is not None else "message"
            known = self._glance.counter_in(name)
            if known is None or len(known) < _HEAD:
                return None
            return re.escape(chunk[: match.start("head")] + known.encode()) + rb"(\d+)," + _REST + rb"\n\n"
        if not ids:
            return re.escape(chunk[:end]) + _REST + rb"\n\n"
        start, stop = match.span(ids[0])
        if ids[0] == "third":
            front = chunk.rindex(b"\n", 0, start)
            return re.escape(chunk[:end]) + _REST + re.escape(chunk[front:start]) + rb"(.{1,256})\n\n"
        return re.escape(chunk[:start]) + rb"(.{1,256})" + re.escape(chunk[stop:end]) + _REST + rb"\n\n"


def _never(chunk: bytes) -> None:
    return None


class Unread:
    """
    The events of a calm stream that were passed on as bytes, and how they are entered into the ledger later.

    Args:
        place: The protocol's `place()`, if it has one.
        count: Called with the number of bytes that went unread.

    Reading on without `settle()` would break this.
    """

    def __init__(
        self,
        protocol: ResumeProtocol,
        ledger: Ledger,
        place: Callable[[Sequence[Any]], None] | None,
        count: Callable[[int], None],
    ) -> None:
        self._ledger = ledger
        ledger.expect_unread()
        self._place = place
        self._count = count
        self._skimmer = Skimmer(protocol, self._pass_over)
        self._decoder: Any = None

    def start(self, decoder: Any) -> Skimmer | None:
        """Begin after an event that was read; `None` if the next has to be read too."""
        skimmer, lane = self._skimmer, self._ledger.lane
        if skimmer.useless or lane not in SKIMMED or type(decoder) is not VerbatimDecoder or not decoder.idle:
            return None
        if decoder.last_event_id and lane in (PLAIN, NUMBERED):
            return None
        self._decoder = decoder
        skimmer.start(lane, self._ledger.sequence, self._ledger.seams)
        return skimmer

    def settle(self, *, leaving: bool) -> None:
        """Read the newest events, so that the position is known, and on leaving the front of the event that follows."""
        skimmer, ledger = self._skimmer, self._ledger
        self._pass_over()
        held, offset = list(skimmer.held), ledger.offset
        try:
            skimmer.held.clear()
            if held:
                self._read(b"".join(held))
        except BaseException:
            # Ctrl-C: undo the call.
            if ledger.offset == offset:
                skimmer.held[:] = held
            raise
        skimmer.start(ledger.lane, ledger.sequence, ledger.seams)
        if not leaving:
            return
        skimmer.misses += 1
        skimmer.total += len(held)
        if skimmer.front:
            front, skimmer.front = skimmer.front, b""
            self._decoder.feed(front)
            self._count(len(front))

    def take_back(self, chunk: bytes) -> None:
        """The chunk skimmed last is not handed out after all."""
        held = self._skimmer.held
        if held and held[-1] is chunk:
            held.pop()

    def _read(self, data: bytes) -> None:
        items = self._decoder.read_late(data)
        if self._place is not None:
            self._place(items)
        self._ledger.receive_late(items)
        self._count(len(data))

    def _pass_over(self) -> bool:
        """
        Leave all but the newest unread. A checkpoint holds the ids of the newest; the others matter only if the connection is
        lost.
        """
        skimmer, ledger = self._skimmer, self._ledger
        held, offset = skimmer.held, ledger.offset
        older = held[:-MAX_RECENT_IDS]
        if not older:
            return False
        unread = b"".join(older)
        try:
            del held[: len(older)]
            ledger.pass_over(len(older), unread, self._read_older)
        except BaseException:
            if ledger.offset == offset and len(held) <= MAX_RECENT_IDS:
                held[:0] = older
            raise
        ledger.seams.trim()
        skimmer.total += len(older)
        self._decoder.pass_over(len(unread))
        self._count(len(unread))
        return True

    def _read_older(self, data: bytes, offset: int, number: int | None) -> Sequence[Any]:
        items = SSEDecoder().feed(data)
        if self._place is not None:
            self._place(items)
        for at, item in enumerate(items):
            item.offset = offset + at
            if number is not None:
                item.sequence = number + at
        return items
