"""
From decoded items to delivered events: place them, look for ends and errors, and enter them into the ledger.

The machine's `receive_live()` is the hot path, and reads from here what it must check for a single event. All other batches go
through `Reading.enter()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._checkpoint import MAX_EXTRA
from .._contract import (
    Consume,
    Glance,
    Logged,
    Notes,
    Replayed,
    Reporting,
    ResumeProtocol,
    Settled,
    Shared,
    Stepped,
    Structured,
    Unproven,
    alarm_of,
    is_whole,
    overrides,
    placing,
    quiet_of,
    readable,
)
from .._events import Outcome
from . import plan
from .checkpoints import Checkpoints
from .connection import Connection, decoder_for
from .ending import CONFIRMED, Ending, Marks
from .ledger import Ledger
from .memory import KEPT_BYTES
from .requests import Requests, sendable
from .settings import Settings
from .skimming import LARGEST, Skimmer, Unread

__all__ = ["Reading"]

Silent = Sequence[tuple[int, str]]
"""Moves of the cursor without an event: the number of items of the batch before it, and the cursor."""
Changed = list[tuple[Any, dict[str, str], Notes]]
"""Events that may have changed what is remembered, each with the kept texts and all notes before it."""


class Reading:
    """
    Args:
        protocol: The stream's protocol. Which of its methods must be called is determined once.
        ledger: Takes the events.

    Attributes:
        ledger: As given.
        connection: The answer being read, or read last.
        bytes: Bytes of all bodies.
        condense_at: The number of bytes at which `condense()` is due.
        place: Completes items before anything else looks at them; `None`: the protocol has no such method.
        sse: The framing is server-sent events.
        by_id: The SSE id is the cursor, even if no event carries it.
        names, heads: Event names and first characters of data that may mark more than content.
        marks: The fourth characters of `heads`. They rule out nearly all data, and one character is not a new object.
        hot: A single event may be delivered unjudged, unless its name or the start of its data is among these.
        identifies: The stream has no id yet, and an event may bring it.
        keeps_events: The store keeps events.
        unread: Events that a driver passes on without reading them; `None`: it reads all.
    """

    def __init__(
        self,
        protocol: ResumeProtocol,
        ledger: Ledger,
        *,
        settings: Settings,
        requests: Requests,
        ending: Ending,
        checkpoints: Checkpoints,
    ) -> None:
        if len(protocol.keeps) > MAX_EXTRA:
            raise TypeError(f"{protocol.name}.keeps may name at most {MAX_EXTRA} texts, got {len(protocol.keeps)}")
        self._protocol = protocol
        self.ledger = ledger
        self._state = requests.state
        self._settings = settings
        self._requests = requests
        self._ending = ending
        self._checkpoints = checkpoints
        self.connection = Connection()
        self.bytes = 0
        self.condense_at = KEPT_BYTES
        self.place = placing(protocol)
        self.sse = protocol.framing == "sse"
        self.by_id = self.sse and not overrides(protocol, "position")
        self._judges = overrides(protocol, "end", "error") or protocol.ability(Reporting) is not None
        self._reporting = Reporting.of(protocol)
        self._structured = Structured.of(protocol)
        self._shared = protocol.ability(Shared)
        self._stepped = protocol.ability(Stepped) is not None
        self._alarm = alarm_of(protocol)
        self.names, self.heads = self._alarm or (frozenset(), frozenset())
        self.marks = frozenset(head[3:4] for head in self.heads)
        # If cursors name their log, each of them is checked.
        unwatched = self.sse and not (self._stepped or protocol.ability(Logged) is not None)
        self._simple = unwatched and (self._alarm is not None or not self._judges)
        self._learns = Glance.of(protocol).identifies_by_event and overrides(protocol, "identify")
        self.identifies = self._learns
        self.keeps_events = checkpoints.saving.keeps_events
        limits = settings.limits
        skims = settings.verbatim and not self.keeps_events and min(limits.event_bytes, limits.line_bytes) >= LARGEST
        unread = skims and (self._simple or (unwatched and quiet_of(protocol) is not None))
        self.choose_road()
        self.unread = Unread(protocol, ledger, self.place, self._count_unread) if unread else None

    def condense(self) -> None:
        """The stream has grown: let the ledger condense what it keeps of old events."""
        self.condense_at = self.bytes + KEPT_BYTES
        self.ledger.condense()

    def _count_unread(self, size: int) -> None:
        self.bytes += size
        if self.bytes > self.condense_at:
            self.condense()

    def choose_road(self) -> None:
        """Update `hot` after a change in what events must be checked for."""
        self.hot = self._simple and not self.identifies and self._ending.settled is None

    def start_over(self) -> None:
        """What was delivered is void."""
        self.identifies = self._learns
        self.choose_road()

    def enter(self, items: Sequence[Any], silent: Silent = ()) -> tuple[Sequence[Any], plan.Turn | None, bool]:
        """
        Judge a batch and enter it into the ledger.

        Returns:
            The events to deliver; what the batch causes after them; whether an outcome was settled, or is open again.
        """
        ledger, ending, connection = self.ledger, self._ending, self.connection
        turn: plan.Turn | None = None
        marks: Marks = ()
        changed: Changed = []
        try:
            if items:
                if self.place is not None:
                    self.place(items)
                if connection.onward is not None:
                    items[-1].cursor, items[-1].moves = connection.onward, True
                if self.identifies:
                    self._identify(items)
                if self._judges and (notable := self._look(items)):
                    whole = len(items)
                    items, marks, turn = self._judge(items, notable, silent, changed)
                    silent = [move for move in silent if move[0] < len(items) or len(items) == whole]
            if not connection.certain and self._protocol.sequence == "contiguous":
                # The identity may have come with this very batch, so that a gap in it can be requested.
                ledger.refetch = self._requests.resumable()
            items = ledger.receive(items, silent)
        except BaseException:
            # The batch comes again on the next connection.
            if changed:
                self._state.go_back(changed[0][2])
            raise
        if changed:
            self._keep_changes(changed, items)
        if ledger.problem is not None:
            # Anything after the problem does not count.
            turn = plan.Problem()
        turned = False
        if marks or ending.held or ending.settled is not None:
            turned = ending.settle(marks, items)
        if items and self._stepped:
            self._checkpoints.stepped(items)
        if self._simple:
            self.choose_road()
        return items, turn, turned

    def _identify(self, items: Sequence[Any]) -> None:
        state = self._state
        for item in items:
            if state.stream_id is not None:
                self.identifies = False
                return
            self._protocol.identify(state, item)
            state.stream_id = sendable(state.stream_id)

    def _look(self, items: Sequence[Any]) -> Sequence[Any]:
        """The items that may end the stream, by the alarm."""
        if self._alarm is None:
            return items
        names, heads, marks = self.names, self.heads, self.marks
        return [item for item in items if item.event in names or (item.data[3:4] in marks and item.data[:7] in heads)]

    def _judge(
        self, items: Sequence[Any], notable: Sequence[Any], silent: Silent, changed: Changed
    ) -> tuple[Sequence[Any], Marks, plan.Turn | None]:
        """Cut a batch at an event that ends the stream, and find the events that settle how it ends."""
        protocol, state = self._protocol, self._state
        marks: list[tuple[Any, Settled]] = []
        for item in notable:
            if self._alarm is not None and self._structured.reads_json(item) and not readable(item):
                return items[: _index(items, item)], marks, plan.Unreadable(item)
            if (error := protocol.error(item)) is not None:
                index = _index(items, item)
                if state.resuming and (lost := self._reporting.refusal(item, state)) is not None:
                    return items[:index], marks, plan.Refused(lost)
                if self._settings.verbatim:
                    return items[: index + 1], marks, plan.Ended(Outcome.FAILED)
                return items[:index], marks, plan.Failed(error)
            if (gap := self._reporting.gap(item)) is not None:
                index = _index(items, item)
                after = [(at - index - 1, own_id) for at, own_id in silent if at > index]
                return items[:index], marks, plan.Announced(gap, items[index + 1 :], after)
            end = protocol.end(item)
            if isinstance(end, Unproven):
                if not self._ending.is_settled(marks):
                    return items[: _index(items, item)], marks, plan.Unproven(end)
                marks.append((item, CONFIRMED))
                continue
            if end is not None and self._shared is not None:
                changed.append((item, self._checkpoints.kept(), state.notes()))
                end = self._shared.end_in(state, item, end)
            if isinstance(end, Settled):
                marks.append((item, end))
            elif end is not None:
                return items[: _index(items, item) + 1], marks, plan.Ended(end)
        return items, marks, None

    def _keep_changes(self, changed: Changed, items: Sequence[Any]) -> None:
        """Remember what delivered events said, and those that are still held. A repeat has said it before: undo that."""
        ledger, kept, delivered = self.ledger, self._checkpoints.kept, set(map(id, items))
        afters = [before for _, before, _ in changed[1:]] + [kept()]
        found: list[tuple[Any, dict[str, str]]] = []
        undone = False
        for (item, before, notes), after in zip(changed, afters, strict=True):
            if id(item) not in delivered and not ledger.holds(item):
                if not undone and before != after:
                    self._state.go_back(notes)
                    undone = True
                continue
            if undone:
                assert self._shared is not None
                before = kept()
                self._shared.end_in(self._state, item, self._protocol.end(item))  # type: ignore[arg-type]  # it is an end
                after = kept()
            if before != after and id(item) in delivered:
                found.append((item, before))
        if found:
            self._checkpoints.changed(found)

    # --- connections

    def open(self, found: Consume, *, spliced: bool) -> None:
        """A new body begins. `spliced`: its bytes follow those of an earlier connection."""
        before, self.connection = self.connection.decoder, Connection()
        if found.whole:
            self.connection.read_whole(self._protocol, self._state, event_bytes=self._settings.limits.event_bytes)
        else:
            self.connection.decoder = decoder_for(
                self._protocol, self.ledger, self._settings, before=before, by_id=self.by_id, skip=found.skip, spliced=spliced
            )

    def open_answer(self, *, resuming: bool, asking: bool, stored: bool = False) -> None:
        """New events begin: those of a body, or the stored ones of a stored result."""
        state = self._state
        self._ending.open_connection(stored=stored)
        self.ledger.open_connection(
            resuming=resuming,
            asking=asking,
            reaches_back=resuming and Replayed.of(self._protocol).reaches_back(state),
            stored=stored,
            joins=resuming or state.safe,
        )

    def enter_stored(self, items: Sequence[Any]) -> Sequence[Any]:
        """Enter the events of a stored result, which cannot be requested again."""
        self.ledger.refetch = False
        if items and self.place is not None:
            self.place(items)
        return self.ledger.receive(items) if items else ()

    def at_end(self, *, judged: bool) -> tuple[Sequence[Any], Silent]:
        """The body ended cleanly. Returns what its end completed. `judged`: an earlier event already decides what follows."""
        connection = self.connection
        items: Sequence[Any] = connection.decoder.eof()
        connection.inside = bool(connection.decoder.partial)
        if connection.inside and not items and not judged:
            items = self._last_without_its_end()
        return items, () if connection.onward is None else [(len(items), connection.onward)]

    def take_carried(self) -> bytes:
        """Bytes of the previous connection that belong before the first event of this one."""
        # A decoder that splits batches passes this call on.
        decoder = self.connection.decoder
        return decoder.take_carried() if hasattr(decoder, "take_carried") else b""

    def skimmer(self) -> Skimmer | None:
        """Finds events that need not be read. `None`: read every event."""
        if self.unread is None or self.identifies or self._ending.settled is not None:
            return None
        return self.unread.start(self.connection.decoder)

    # --- the end of a body

    def _last_without_its_end(self) -> Sequence[Any]:
        """
        The last event, if a clean close cut only its blank line and it says how the stream ends.

        If more may follow it and the stream can be resumed, it is requested from the server again instead.
        """
        decoder = self.connection.decoder
        judged = self._judges and self.sse and hasattr(decoder, "unfinished")
        if not judged or decoder.error is not None:
            return ()
        ended_line = not decoder.in_line
        items: Sequence[Any] = decoder.unfinished()
        for item in items:
            if not is_whole(item, ended_line=ended_line):
                return ()
        notes = self._state.notes()
        try:
            return items if any(self._ends(item) for item in items) else ()
        finally:
            self._state.go_back(notes)

    def _ends(self, item: Any) -> bool:
        """Whether the item says how the stream ends, or why."""
        protocol, state = self._protocol, self._state
        if protocol.error(item) is not None:
            return True
        end = protocol.end(item)
        if isinstance(end, Unproven):
            return self._ending.is_settled(())
        if end is not None and self._shared is not None:
            end = self._shared.end_in(state, item, end)
        if isinstance(end, Settled):
            asked = state.resuming and self.ledger.fresh == 0
            return end.outcome is not None and (asked or not self._requests.resumable())
        return end is not None


def _index(items: Sequence[Any], item: Any) -> int:
    """Index by identity, because events compare by content."""
    return next(index for index, other in enumerate(items) if other is item)
