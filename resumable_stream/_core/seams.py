"""
Where a replay meets live events within one answer: a run of events is sent again, in the same order.

    e1 e2 e3 | e2 e3 e4          the server replayed up to e3; its live part had begun at e2

Any answer may contain such a seam, even the first, since a first request may join something that is already running.
Only events with their own id or number can be recognised, and only while ids are unique.
Many servers put one id (of the message, the request, the run) on every event. Two equal words in a row then have the
same id, and both are text. Hence two rules:

- *Trusted ids.* After `TRUSTED` events whose ids all differed, an id that comes again with equal content is a repeat, at once.
- *Before that, and once two events have shared an id,* the order decides. If an id that the stream has already left comes
  back with equal content, a run may begin. Its events are held while they follow in the same order as before. The run is a seam
  if it reaches the newest event and has at least two ids, or if it is `LONGEST` events long. Otherwise all of it is delivered.
  Once an id that was left has come back with other content, ids return on this stream, and no longer prove anything.

A seam of one event, right after that event, looks like an equal word until ids are trusted, so it is delivered.

Delivering an event while others are held would break this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count, islice
from typing import Any, Final

from .memory import shortened

__all__ = ["TRIM", "Seams"]

# Few servers that put one id on all events of a message begin with 16 messages of one event each.
TRUSTED: Final = 16
# This many events in the same order as before are not a coincidence. The limit also bounds what is held.
LONGEST: Final = 64
# After this many runs that were not seams, ids are known to return on this stream, and prove nothing.
PATIENCE: Final = 8
# The oldest ids are forgotten this many at a time. A power of two, because the ledger checks the low bits of an offset.
TRIM: Final = 256


class Seams:
    """
    How far the ids of one stream can be trusted, and the run that may be a seam.

    Args:
        newest: Returns the events remembered, oldest first.
        name: Returns the identity of an event.
        fingerprint: Returns the digest of its content.
        window: Events remembered.

    Attributes:
        ids: Ids of the newest events, oldest first, at least as many as are remembered. An id that is not here is new.
        raw: Ids of unread events, as they came; see `skimming`. They are not in `ids`.
        shared: Two different events had the same id.
        latest: The id of the newest event that has one.
        held: Events of a run, until it is known whether it is a seam.
    """

    def __init__(
        self,
        newest: Callable[[], Iterable[Any]],
        name: Callable[[Any], str | None],
        fingerprint: Callable[[Any], str],
        *,
        window: int,
    ) -> None:
        self._newest = newest
        self._name = name
        self._fingerprint = fingerprint
        self._window = window
        # A dict, since `setdefault()` looks up and enters an id in one step. The values are offsets.
        self.ids: dict[str, int] = {}
        self.raw: dict[bytes, int] = {}
        self.shared = False
        self.latest: str | None = None
        self.held: list[Any] = []
        self._log: list[Any] = []
        # Where the run may be in the log: for each possible beginning, the index of the event that has to come next.
        self._places: list[int] = []
        self._names: set[str | None] = set()
        self._proven = False
        self._single = False
        self._failed = 0

    @property
    def open(self) -> bool:
        """Whether a run is under way."""
        return bool(self._places)

    @property
    def trusted(self) -> bool:
        """Whether ids have been unique for long enough."""
        return not self.shared and max(len(self.ids), len(self.raw)) >= TRUSTED

    def knows(self, own_id: str) -> bool:
        """Whether an event with this id was delivered, perhaps too long ago to be remembered."""
        own_id = shortened(own_id)
        return own_id in self.ids or (bool(self.raw) and own_id.encode("utf-8", "surrogatepass") in self.raw)

    def enter(self, own_id: str, offset: int) -> int:
        """Like `ids.setdefault()`, for streams where events may have gone unread."""
        return -1 if own_id.encode("utf-8", "surrogatepass") in self.raw else self.ids.setdefault(own_id, offset)

    def enter_all(self, ids: list[str], before: str | None, offset: int) -> bool:
        """
        Enter ids without a look at their events, if all are new. If events share ids, an id may follow itself.

        Args:
            before: The id before them.
            offset: Offset of the first event.

        Returns:
            False: one of them is known, and none was entered.
        """
        if self.shared:
            ids = [own_id for own_id, previous in zip(ids, [before, *ids], strict=False) if own_id != previous]
        new = set(ids)
        known = self.ids
        if len(new) != len(ids) or not known.keys().isdisjoint(new):
            return False
        if self.raw and not self.raw.keys().isdisjoint(own_id.encode("utf-8", "surrogatepass") for own_id in new):
            return False
        known.update(zip(ids, count(offset)))
        self.trim()
        return True

    def learn(self, own_id: str, offset: int) -> None:
        """An event with this id was delivered."""
        self.ids[shortened(own_id)] = offset
        self.latest = own_id

    def restore(self, ids: Iterable[str]) -> None:
        """Enter ids that were known in another process."""
        self.ids.update((own_id, -1) for own_id in ids if own_id not in self.ids)

    def trim(self) -> None:
        """Keep the bound. Called once per `TRIM` events, or per batch."""
        for known in (self.ids, self.raw):
            if (surplus := len(known) - self._window) > TRIM:
                _forget_oldest(known, surplus)

    def begin(self, item: Any, *, single: bool = False) -> bool:
        """
        Hold an event that may begin a run, since the stream had left its identity. False: the event is new.

        Args:
            single: A run of this event alone counts too, if an event with another identity follows.
        """
        if self._failed >= PATIENCE:
            return False
        log = list(self._newest())
        name, fingerprint = self._name(item), self._fingerprint(item)
        places = [
            place
            for place, seen in enumerate(log, start=1)
            if self._name(seen) == name and self._fingerprint(seen) == fingerprint
        ]
        if not places:
            # The identity came back with other content.
            self._failed = PATIENCE
            return False
        self._log, self._places = log, places
        self._names = {name}
        self._proven = False
        self._single = single
        self.held = [item]
        return True

    def follow(self, item: Any) -> bool:
        """Whether this event continues the run; if so, it is held. False: the run is over; see `over()`."""
        log, name, fingerprint = self._log, self._name(item), None
        places = []
        for place in self._places:
            if place < len(log) and self._name(log[place]) == name:
                fingerprint = fingerprint or self._fingerprint(item)
                if self._fingerprint(log[place]) == fingerprint:
                    places.append(place + 1)
        if not places:
            # A single event is followed by one with another identity.
            self._proven = self._proven or (self._single and len(self.held) == 1 and name not in self._names)
            return False
        self._places = places
        self._names.add(name)
        self.held.append(item)
        return True

    def repeats(self) -> list[Any]:
        """Take the held events that are now proven to be repeats. The run is over once it has reached the newest event."""
        reached = len(self._log) in self._places
        self._proven = self._proven or (reached and len(self._names) > 1) or len(self.held) >= LONGEST
        if not self._proven:
            return []
        repeats, self.held = self.held, []
        if reached:
            self._close()
        return repeats

    def over(self) -> tuple[list[Any], bool]:
        """The run is over. Returns the events still held, and whether they are repeats."""
        held, self.held = self.held, []
        proven = self._proven
        self._failed += not proven
        self._close()
        return held, proven

    def cut(self) -> list[Any]:
        """The connection is over. Returns the held events, which the server sends again if they are new."""
        held, self.held = self.held, []
        self._close()
        return held

    def kept(self) -> tuple[bool, str | None, int, tuple[Any, ...]]:
        """What `put_back()` needs."""
        return self.shared, self.latest, self._failed, tuple(self.held)

    def put_back(self, kept: tuple[bool, str | None, int, tuple[Any, ...]]) -> None:
        """
        Undo a batch whose connection is over.

        The run is over as well. Events held before the batch stay held; they are new if the next connection brings nothing.
        An id that came with the batch stays known, like that of an event that is no longer remembered.
        """
        self.shared, self.latest, self._failed, held = kept
        self._close()
        self.held = list(held)

    def _close(self) -> None:
        self._places = []
        self._log = []


def _forget_oldest(known: dict[Any, int], count: int) -> None:
    for own_id in list(islice(known, count)):
        del known[own_id]
