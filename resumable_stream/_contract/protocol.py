"""
How one kind of endpoint is resumed.

A protocol says *how* to request the rest and what ends a stream. The machine decides *when*.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from .._checkpoint import fingerprint, fingerprint_bytes
from .._errors import UpstreamError
from .._events import Chunk, Delta, Gap, Item, Outcome, StreamEvent
from .values import Alarm, Answer, Backfill, Document, Head, Position, Promises, Request, Snapshot, StreamState
from .verdicts import Finished, Lost, Resume, Retry, Settled, Unproven, Verdict

__all__ = ["Detect", "ResumeProtocol"]


class ResumeProtocol:
    """
    How to resume one kind of endpoint. Subclass it for your own; the defaults fit plain SSE.

    Methods are pure functions of their arguments. An instance holds only options, so one instance can serve many streams.
    """

    framing: ClassVar[Literal["sse", "ndjson", "raw"]] = "sse"
    """How the body is split into items."""
    accept: ClassVar[str] = "text/event-stream"
    """`Accept` header, unless the caller sets one."""
    content_types: ClassVar[tuple[str, ...]] = ("text/event-stream",)
    """Accepted media types; empty accepts any. A response without a content type is accepted too."""
    keeps: frozenset[str] = frozenset()
    """Names in `StreamState.extra` that go into the checkpoint. Never list anything that grants access."""
    sequence: Literal["auto", "contiguous", "increasing"] | None = None
    """What the numbers promise: each is one more than the last, each is merely larger, or nothing (`None`).
    `"auto"`: infer it from the stream."""
    first_sequence: int | None = None
    """Number of the first event, if the protocol promises one. It reveals a gap at the very start as well."""
    unique_ids: bool = False
    """No two events of the stream share an own id, so an id seen before is always a duplicate."""
    replays: bool = False
    """Every answer starts at the first event. After a resume, the events already delivered are compared and dropped."""
    counted: bool = False
    """The position is the number of events delivered (`StreamState.offset`), so a stream without a cursor can be resumed."""
    resumes_settled: bool = False
    """
    If the connection is cut after an event that settled the outcome, request what follows it (usage, `[DONE]`), up to three
    times. Otherwise any close after such an event is the end.
    """
    heartbeat: bytes = b""
    """What the server sends during a silence because we asked for it. Byte-level readers did not, so it is left out for them."""
    in_parts: bool = False
    """The text belongs to messages that can be replaced one by one: see `part()`."""
    identifies_by_event: bool = True
    """`identify()` needs to see events. If the response head is enough, `False` saves a call per event."""
    alarm: Alarm | None = None
    """
    Which events are passed to `end()`, `error()` and `gap()`; `None`: every event. This only affects speed.

    A subclass that overrides one of the three without declaring its own alarm is asked about every event.
    """
    endless: bool = False
    """The stream is a feed, so there is no generation that could stall."""
    resets_itself: bool = False
    """A reset is visible in the raw event, so byte-level readers can see it as well.
    If that holds for some events only, override `tells_reset()`."""
    measured: bool = False
    """The cursor is a byte offset in the body; `position()` reads it from `event.ends`, where the event's bytes end."""
    json_names: frozenset[str] = frozenset()
    """Names of the events whose data must be JSON and may hold content (`"message"`: events without a name).
    See `reads_json()`."""
    steps: bool = False
    """The server may take back parts of an answer, so `step()` is called."""

    first_headers: Mapping[str, str] = {}
    """Headers of the request that starts a stream, for those that the caller does not set."""
    joins: bool = False
    """
    The server joins a repeated request with the same `Idempotency-Key` to the stream that the first one started.

    An unsafe request then carries a random key, unless the caller chose one, so it can be sent again if its response was lost.
    This needs `protocol=`, since detection happens after the first response. Below an SDK, `claims()` must also recognise the
    request. The key is `StreamState.extra["idempotency_key"]`. List that name in `keeps` so that another process that
    repeats the request sends the same key.
    """

    @property
    def name(self) -> str:
        """The protocol's name in checkpoints."""
        return type(self).__name__

    @property
    def options(self) -> str:
        """
        Digest of the options that differ from the defaults; `""` if none do.

        The checkpoint keeps it. A process that continues without naming a protocol then gets an error that says to pass it.
        """
        return ""

    @property
    def promises(self) -> Promises:
        """What the protocol vouches for. If no option changes it, an attribute is enough: `promises = Promises(…)`."""
        return Promises(resumable=True, numbered=self.sequence == "contiguous", has_end=False)

    def __repr__(self) -> str:
        told = [name for name in ("resumable", "numbered", "has_end", "tied") if getattr(self.promises, name)]
        return f"<{self.name}: {', '.join(told) or 'promises nothing'}>"

    # -- starting

    @classmethod
    def for_request(cls, request: StreamState) -> Self:
        """Create the protocol with the options that a request implies. Used by detection."""
        return cls()

    def matches(self, request: StreamState, head: Head) -> bool:
        """Is this the protocol of that response? Called only if the caller named no protocol."""
        return False

    def claims(self, request: StreamState, head: Head) -> bool:
        """
        Does the request ask for a stream of this protocol, whatever the content type of the response?

        Such a response is read by this protocol or refused. Without a content type, or with a generic one
        (`text/plain`, `application/octet-stream`), it is read; any other raises `UnexpectedContentType`.
        It is never read as a file, since a truncated file cannot be told from a whole one. For protocols that vouch for
        their end.
        """
        return False

    def first_request(self, state: StreamState) -> Request:
        """Build the request that starts the stream. The default is the caller's own."""
        return Request(method=state.method, url=state.url, repeat="all")

    def identify(self, state: StreamState, source: Head | Item) -> None:
        """
        Learn the stream's identity from the first response head or from an event.

        Called for every head, and for events until `state.stream_id` is set.
        """

    # -- reading

    def position(self, event: Any) -> Position:
        """The position of an event. The default is plain SSE's: the event's own id is the cursor."""
        return Position(event.own_id, None, event.own_id)

    def end(self, event: Any) -> Outcome | Settled | Unproven | None:
        """Does this event end the stream, and how?"""
        return None

    def has_content(self, event: Any) -> bool:
        """
        Does this event bring a piece of the answer? Called after an event that settled the outcome: such a piece disproves it.

        The default asks `deltas()` if the protocol overrides it. Otherwise no event disproves the outcome, since in plain
        events usage looks like text.
        """
        return type(self).deltas is not ResumeProtocol.deltas and any(delta.text for delta in self.deltas(event))

    def end_in(self, state: StreamState, event: Any, end: Outcome | Settled) -> Outcome | Settled | None:
        """
        Does what `end()` found end *this* stream? For streams that also carry the ends of others. Called only for ends.

        What it writes into `state.extra` belongs to the position after the event. A checkpoint before that does not contain it.
        """
        return end

    def error(self, event: Any) -> UpstreamError | None:
        """Does this event report a provider error that is not one of its regular events? It is then raised, not delivered."""
        return None

    def refusal(self, event: Any, state: StreamState) -> Lost | None:
        """Does this error only refuse our resume, in an event rather than a status? Called for errors after a resume."""
        return None

    def gap(self, event: Any) -> Gap | None:
        """Does this event say that history was lost?"""
        return None

    def deltas(self, event: Any) -> Iterable[Delta]:
        """The content of an event. The default is all of `data`."""
        return (Delta("text", event.data),)

    def deltas_in(self, state: StreamState, event: Any) -> Iterable[Delta]:
        """
        The content of an event of *this* stream, for streams that also carry other answers: to `deltas()` what `end_in()` is
        to `end()`.

        Later events may have been read already, so use only state that does not change from one event to the next.
        """
        return self.deltas(event)

    def reads_json(self, event: Any) -> bool:
        """
        May this event hold content, and must it be JSON?

        Called for events in which `deltas()` finds no content, and for the few that raise the `alarm`. If such an event is not
        JSON, its content was damaged on the way, which raises `ProtocolViolation`. Empty data and `[DONE]` hold no content.
        """
        return event.event in self.json_names

    def part(self, event: Any) -> tuple[str, bool] | None:
        """
        Which message an event's text belongs to, and whether the text replaces what that message said before.

        Called if `in_parts` is set and the stream is read as text.
        """
        return None

    def step(self, event: Any) -> Literal["begin", "void"] | None:
        """Does this event begin a step of the answer, or void everything since the last step began? Called only for text."""
        return None

    def fingerprint(self, event: Any) -> str:
        """Digest an event so that a repeat can be recognised. Leave out fields that differ each time the event is sent."""
        if isinstance(event, Chunk):
            return fingerprint_bytes(event.data)
        return fingerprint(event.event, event.data)

    def lineage(self, cursor: str) -> str:
        """
        The prefix that all cursors of one log share: `"k7q2."` of `"k7q2.1247"`; `""` if the cursors do not identify the log.

        An event whose cursor has another prefix comes from another log, whatever its number. That raises `ReplayDiverged`.
        """
        return ""

    @property
    def places(self) -> bool:
        """Whether `place()` must be called. For plain SSE the decoder already knows the positions."""
        own = type(self)
        return own.position is not ResumeProtocol.position or own.place is not ResumeProtocol.place

    def place(self, events: Sequence[Any]) -> None:
        """Write the `position()` of each event into a batch. Called once per chunk; override it only for speed."""
        for event in events:
            cursor, event.sequence, event.own_id = self.position(event)
            event.moves = cursor is not None
            if cursor is not None:
                event.cursor = cursor

    def quiet(self, event: bytes) -> bool:
        """
        Do the raw bytes show that `end()`, `error()` and `gap()` need not see this event?

        Called where bytes are passed through, for protocols without an `alarm`. This only affects speed: when in doubt, return
        `False`, which costs little.
        """
        return False

    def counter_in(self, name: str) -> str | None:
        """The text before the number in the data of events with that name; `None` if not known. This only affects speed."""
        return None

    def unpack(self, event: Any) -> Iterable[Any]:
        """
        Split an event from the wire into the events to deliver: several for a batch, none for a connection ping.

        What is left out does not count as progress, so a connection that brings nothing else is a failed attempt.

        Raises:
            EventTooLarge: It holds more than can be split in memory. That ends the stream.
        """
        return (event,)

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

    # -- resuming

    def resume_request(self, state: StreamState) -> Request | None:
        """Build the request for what follows the cursor, or return `None` if this stream cannot be resumed."""
        return None

    def reaches_back(self, state: StreamState) -> bool:
        """
        May the answer to a resume from here start with the beginning of the stream, although the server honours the cursor?

        If not, such an answer comes from a server that ignores the cursor, and everything delivered is expected again, in order.
        If so, repeats are recognised by their ids alone.
        """
        return False

    def backfill_request(self, state: StreamState) -> Request | None:
        """
        Build the request for what happened before this connection was opened; `None` if the connection brings that itself.

        For streams that start with new events only. Requesting history before connecting would lose what happens in between.
        """
        return None

    def on_backfill(self, answer: Answer, state: StreamState) -> Backfill | Verdict:
        """Turn the answer to a backfill request into events, or return a verdict as for a close."""
        return Resume()

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        """Judge a response by its status; `None` leaves it to the core's table. For a status below 400, `body` is empty."""
        return None

    def on_clean_close(self, state: StreamState) -> Verdict:
        """Judge a body that ended cleanly although no event ended the stream."""
        return Finished(Outcome.ENDED)

    def on_unproven(self, state: StreamState) -> Verdict:
        """Judge a sender that claims to be done without proof (`Unproven`). By default this counts as a clean close."""
        return self.on_clean_close(state)

    def why_not(self, state: StreamState) -> str:
        """
        Why `resume_request()` returns `None` for this stream, and what the caller can pass to change that. For error messages.

        Returns:
            Text that follows "it cannot be resumed: "; `""` if there is nothing to say.
        """
        return "" if self.promises.resumable else f"{self.name} has no way to ask for the rest"

    def why_ended(self, state: StreamState) -> str:
        """What the provider said about an unsuccessful end, for `raise_for_outcome()`; `""` if it said nothing."""
        return ""

    def status_request(self, state: StreamState) -> Request | None:
        """Build the request that asks whether the run is still running. If it is, a silent connection is not a failed attempt."""
        return None

    def on_verified(self, answer: Answer, state: StreamState) -> Verdict:
        """Judge the answer to a `Verify` request or a `status_request()`."""
        return Resume()

    def tells_reset(self, event: Any) -> bool:
        """Whether this reset is visible in the raw event itself. Called for byte-level readers."""
        return self.resets_itself

    def snapshot_request(self, state: StreamState) -> Request | None:
        """Build the request for the stored result, for `on_lost="snapshot"`."""
        return None

    def on_snapshot(self, answer: Answer, state: StreamState) -> Snapshot | Retry | None:
        """Turn the stored result into events; `Retry` if it is not ready, `None` if it cannot be used."""
        return None

    def cancel_request(self, state: StreamState) -> Request | None:
        """Build the request that stops the generation, or return `None` if the provider has no such call."""
        return None


def _is_whole(body: bytes) -> bool:
    try:
        json.loads(body)
    except ValueError:
        return False
    except RecursionError:
        # Too deeply nested to parse; nothing suggests that it is incomplete.
        return True
    return True


Detect = Callable[[StreamState, Head], ResumeProtocol | None]
