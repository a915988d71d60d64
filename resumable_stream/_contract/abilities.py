"""
What a protocol can do beyond the minimum. Each ability is a small class: inherit those that your endpoint needs.

    class Acme(ResumeProtocol, Verified, Stored): ...

A class that has a member of an ability without naming it inherits the ability by itself, when it is created.
What events need is looked up once per stream, so an ability that is absent costs nothing per event.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Self, cast

from .._events import Delta, Gap, Outcome, StreamEvent
from .values import Alarm, Answer, Backfill, Document, Request, Snapshot, StreamState
from .verdicts import Lost, Resume, Retry, Settled, Verdict

if TYPE_CHECKING:
    from .protocol import ResumeProtocol

__all__ = [
    "Ability",
    "Backfilled",
    "Batched",
    "Documents",
    "Doubted",
    "Explained",
    "Glance",
    "Joined",
    "Logged",
    "Measured",
    "Parted",
    "Replayed",
    "Reporting",
    "Shared",
    "Stepped",
    "Stored",
    "Structured",
    "Verified",
]


class Ability:
    """The base of all abilities. An ability by itself answers that there is nothing to do."""

    @classmethod
    def of(cls, protocol: ResumeProtocol) -> Self:
        """The protocol, if it has this ability; otherwise an object that answers with the defaults."""
        if (found := protocol.ability(cls)) is not None:
            return found
        # Options that the protocol's constructor sets, although its class does not declare them.
        options = _MEMBERS[cls] & vars(protocol).keys()
        if not options:
            return cast(Self, _ABSENT[cls])
        made = cls()
        vars(made).update({name: vars(protocol)[name] for name in options})
        return made


class Verified(Ability):
    """The provider can be asked whether the run is still running, and how it ended."""

    def status_request(self, state: StreamState) -> Request | None:
        """Build the request that asks whether the run is still running. If it is, a silent connection is not a failed attempt."""
        return None

    def on_verified(self, answer: Answer, state: StreamState) -> Verdict:
        """Judge the answer to a `Verify` request or a `status_request()`."""
        return Resume()


class Stored(Ability):
    """The provider stores the result; `ResumeProtocol.snapshot_request()` asks for it."""

    def on_snapshot(self, answer: Answer, state: StreamState) -> Snapshot | Retry | None:
        """Turn the stored result into events; `Retry` if it is not ready, `None` if it cannot be used."""
        return None


class Backfilled(Ability):
    """The stream starts with new events only, and what was missed is read from a history."""

    def backfill_request(self, state: StreamState) -> Request | None:
        """
        Build the request for what happened before this connection was opened; `None` if the connection brings that itself.

        Requesting history before connecting would lose what happens in between.
        """
        return None

    def on_backfill(self, answer: Answer, state: StreamState) -> Backfill | Verdict:
        """Turn the answer to a backfill request into events, or return a verdict as for a close."""
        return Resume()


class Documents(Ability):
    """Answers can be whole documents instead of streams (`Consume.whole`)."""

    def on_document(self, body: bytes, state: StreamState) -> Document | Retry | None:
        """
        Read a whole document. The default makes one event of its text, and requires JSON to be complete.

        Returns:
            `None` if the document is incomplete although the connection closed cleanly, which counts as a cut. `Retry`, with
            the reason, if the document cannot be used.

        Raises:
            EventTooLarge: It holds more events than fit in memory. That ends the stream.
        """
        text = body.decode("utf-8", "replace")
        if text.strip() and state.head is not None and state.head.is_json and not _is_whole(body):
            return None
        return Document([StreamEvent("message", text)] if text.strip() else [])


class Batched(Ability):
    """An event of the wire is not always one event to deliver."""

    def unpack(self, event: Any) -> Iterable[Any]:
        """
        Split an event from the wire into the events to deliver: several for a batch, none for a connection ping.

        What is left out does not count as progress, so a connection that brings nothing else is a failed attempt.

        Raises:
            EventTooLarge: It holds more than can be split in memory. That ends the stream.
        """
        return (event,)


class Reporting(Ability):
    """Some events say something about the stream itself: history was lost, a resume is refused, the answer starts over."""

    def gap(self, event: Any) -> Gap | None:
        """Does this event say that history was lost?"""
        return None

    def refusal(self, event: Any, state: StreamState) -> Lost | None:
        """Does this error only refuse our resume, in an event rather than a status? Called for errors after a resume."""
        return None

    def tells_reset(self, event: Any) -> bool:
        """Whether this reset is visible in the raw event, so byte-level readers can see it as well."""
        return False


class Replayed(Ability):
    """The answer to a resume repeats events that were already delivered."""

    replays: bool = False
    """Every answer starts at the first event. After a resume, the events already delivered are compared and dropped."""

    def reaches_back(self, state: StreamState) -> bool:
        """
        May the answer to a resume from here start with the beginning of the stream, although the server honours the cursor?

        If not, such an answer comes from a server that ignores the cursor, and everything delivered is expected again, in order.
        If so, repeats are recognised by their ids alone.
        """
        return False


class Measured(Ability):
    """The position is a count that we keep instead of a cursor that the server gave, or the first number is known."""

    counted: bool = False
    """The position is the number of events delivered (`StreamState.offset`), so a stream without a cursor can be resumed."""
    measured: bool = False
    """The cursor is a byte offset in the body; `position()` reads it from `event.ends`, where the event's bytes end."""
    first_sequence: int | None = None
    """Number of the first event, if the protocol promises one. It reveals a gap at the very start as well."""


class Logged(Ability):
    """Every cursor names the log that it belongs to."""

    def lineage(self, cursor: str) -> str:
        """
        The prefix that all cursors of one log share: `"k7q2."` of `"k7q2.1247"`; `""` if the cursors do not identify the log.

        An event whose cursor has another prefix comes from another log, whatever its number. That raises `ReplayDiverged`.
        """
        return ""


class Shared(Ability):
    """The stream may also carry the events of other answers."""

    def end_in(self, state: StreamState, event: Any, end: Outcome | Settled) -> Outcome | Settled | None:
        """
        Does what `end()` found end *this* stream? Called only for ends.

        What it remembers belongs to the position after the event. A checkpoint before that does not contain it.
        It may be called again for a repeat of an event, so note *which* answers have ended, not how many calls said so.
        """
        return end

    def deltas_in(self, state: StreamState, event: Any) -> Iterable[Delta]:
        """
        The content of an event of *this* stream: to `deltas()` what `end_in()` is to `end()`.

        Later events may have been read already, so use only state that does not change from one event to the next.
        """
        return self.deltas(event)

    if TYPE_CHECKING:

        def deltas(self, event: Any) -> Iterable[Delta]: ...


class Structured(Ability):
    """The content is in JSON, so an event that is not JSON was damaged on the way, which raises `ProtocolViolation`."""

    json_names: frozenset[str] = frozenset()
    """Names of the events whose data must be JSON and may hold content (`"message"`: events without a name)."""

    def reads_json(self, event: Any) -> bool:
        """
        May this event hold content, and must it be JSON?

        Called for events in which `deltas()` finds no content, and for the few that raise the `alarm`.
        Empty data and `[DONE]` hold no content.
        """
        return event.event in self.json_names


class Parted(Ability):
    """The text belongs to messages that can be replaced one by one."""

    def part(self, event: Any) -> tuple[str, bool] | None:
        """Which message an event's text belongs to, and whether the text replaces what that message said before."""
        return None


class Stepped(Ability):
    """The server may take back parts of an answer."""

    def step(self, event: Any) -> Literal["begin", "void"] | None:
        """Does this event begin a step of the answer, or void everything since the last step began? Called only for text."""
        return None


class Doubted(Ability):
    """What follows an event that settled the outcome, or that claims the end without proof, may change the outcome."""

    resumes_settled: bool = False
    """
    If the connection is cut after an event that settled the outcome, request what follows it (usage, `[DONE]`), up to three
    times. Otherwise any close after such an event is the end.
    """

    def has_content(self, event: Any) -> bool | None:
        """
        Does this event bring a piece of the answer? Called after an event that settled the outcome: such a piece disproves it.

        `None`, the default: if the protocol has `deltas()`, they say so. Without them no event disproves the outcome, since in
        plain events usage looks like text.
        """
        return None

    def on_unproven(self, state: StreamState) -> Verdict | None:
        """Judge a sender that claims to be done without proof (`Unproven`). `None`: this counts as a clean close."""
        return None


class Joined(Ability):
    """The server accepts what we add to the request that starts a stream."""

    joins: bool = False
    """
    The server joins a repeated request with the same `Idempotency-Key` to the stream that the first one started.

    An unsafe request then carries a random key, unless the caller chose one, so it can be sent again if its response was lost.
    This needs `protocol=`, since detection happens after the first response. Below an SDK, `claims()` must also recognise the
    request. The key is `StreamState.extra["idempotency_key"]`. List that name in `keeps` so that another process that
    repeats the request sends the same key.
    """
    first_headers: Mapping[str, str] = {}
    """Headers of the request that starts a stream, for those that the caller does not set."""
    heartbeat: bytes = b""
    """What the server sends during a silence because we asked for it. Byte-level readers did not, so it is left out for them."""


class Explained(Ability):
    """The protocol can say more than the core about why a stream ended or cannot be resumed. For messages only."""

    def why_not(self, state: StreamState) -> str:
        """
        Why `resume_request()` returns `None` for this stream, and what the caller can pass to change that.

        Returns:
            Text that follows "it cannot be resumed: "; `""` if there is nothing to say.
        """
        return ""

    def why_ended(self, state: StreamState) -> str:
        """What the provider said about an unsuccessful end, for `raise_for_outcome()`; `""` if it said nothing."""
        return ""


class Glance(Ability):
    """
    How to tell cheaply what an event is. All of it affects speed only: when in doubt, leave it out.

    What a class declares here describes the methods that it has or inherits. A subclass that overrides one of these methods
    without declaring anew is called for every event.
    """

    alarm: Alarm | None = None
    """Which events are passed to `end()`, `error()` and `gap()`; `None`: every event."""
    identifies_by_event: bool = True
    """`identify()` needs to see events. If the response head is enough, `False` saves a call per event."""
    places: bool = True
    """Whether `place()` must be called. `False` if the decoder already knows the positions, as for plain SSE."""

    def place(self, events: Sequence[Any]) -> None:
        """Write the `position()` of each event into a batch. Called once per chunk instead of `position()`."""

    def quiet(self, event: bytes) -> bool:
        """
        Do the raw bytes show that `end()`, `error()` and `gap()` need not see this event?

        Called where bytes are passed through, for protocols without an `alarm`.
        """
        return False

    def counter_in(self, name: str) -> str | None:
        """The text before the number in the data of events with that name; `None` if not known."""
        return None


_EVERY: Final[tuple[type[Ability], ...]] = tuple(Ability.__subclasses__())


_MEMBERS: Final = {kind: frozenset(name for name in vars(kind) if not name.startswith("_")) for kind in _EVERY}
_ABSENT: Final = {kind: kind() for kind in _EVERY}
"""Each ability, for the protocols that do not have it. Nothing is ever written to these."""


def adopt(cls: type[ResumeProtocol]) -> None:
    """
    Let a class inherit the abilities of which it has a member without naming them.

    Every class lists all its abilities, after its other bases and in one order: two protocols can then be combined, whichever
    order their authors named abilities in.
    """
    named = [base for base in cls.__bases__ if base not in _EVERY]
    had = [kind for kind in _EVERY if issubclass(cls, kind) or any(hasattr(cls, name) for name in _MEMBERS[kind])]
    if cls.__bases__ != (bases := (*named, *had)):
        cls.__bases__ = bases


def _is_whole(body: bytes) -> bool:
    try:
        json.loads(body)
    except ValueError:
        return False
    except RecursionError:
        # Too deeply nested to parse; nothing suggests that it is incomplete.
        return True
    return True
