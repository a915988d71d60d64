"""
How one kind of endpoint is resumed.

A protocol says *how* to ask for the rest and what ends a stream. The machine decides *when*.
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
    How to resume one kind of endpoint. Subclass it for yours; the defaults fit plain SSE.

    Methods are pure functions of their arguments. Instances hold options only, so one serves many streams.
    """

    framing: ClassVar[Literal["sse", "ndjson", "raw"]] = "sse"
    """How the body is cut into items."""
    accept: ClassVar[str] = "text/event-stream"
    """`Accept` header, unless the caller sets one."""
    content_types: ClassVar[tuple[str, ...]] = ("text/event-stream",)
    """Media types that will do; empty: any. An answer without a content type is let pass."""
    keeps: frozenset[str] = frozenset()
    """Names in `StreamState.extra` that go into the checkpoint. Nothing that grants access."""
    sequence: Literal["auto", "contiguous", "increasing"] | None = None
    """What the numbers promise: each is one more than the last, merely more, or nothing. `"auto"`: watch and see."""
    first_sequence: int | None = None
    """Number of the first event where the protocol promises one, so that a hole at the very start is seen too."""
    unique_ids: bool = False
    """No two events of the stream share an own id, so a repeat is a duplicate at any time."""
    replays: bool = False
    """Every answer starts at the first event: resuming drops as many as were delivered, and compares them."""
    counted: bool = False
    """The place is how many events were delivered (`StreamState.offset`), so a stream without a cursor can be resumed."""
    resumes_settled: bool = False
    """
    What follows an event that settled the outcome (usage, `[DONE]`) is asked for as well where the connection was cut before
    it, up to three times. Otherwise any close is the end then.
    """
    heartbeat: bytes = b""
    """What the server sends into a silence because we asked it to. Whoever reads the bytes did not, so he is not given it."""
    in_parts: bool = False
    """Its text belongs to messages that may be replaced one by one: see `part()`."""
    identifies_by_event: bool = True
    """`identify()` wants to see events. If the head says it all, `False` saves a call for each event."""
    alarm: Alarm | None = None
    """
    Which events are worth asking `end()`, `error()` and `gap()` about; `None`: each one. Only a matter of speed.

    A subclass that overrides one of the three without an alarm of its own is asked about each event.
    """
    endless: bool = False
    """A feed: it has no generation that could stall."""
    resets_itself: bool = False
    """The event that makes void what came before says so in its own terms, so whoever reads the bytes knows it too.
    Where only some do: `tells_reset()`."""
    measured: bool = False
    """Its cursor is a position in the body: `position()` finds in `event.ends` where the event's bytes end."""
    json_names: frozenset[str] = frozenset()
    """Names of the events whose data is JSON and may hold content (`"message"`: those without a name). See `reads_json()`."""
    steps: bool = False
    """`step()` has work to do: parts of an answer may be taken back by the server."""

    first_headers: Mapping[str, str] = {}
    """Headers of the request that starts a stream, unless the caller sets them."""
    joins: bool = False
    """
    The server joins a request that comes again with the same `Idempotency-Key` to the stream that the first one started.

    A request that is not safe then carries a random key, unless the caller chose one, so that it is sent again where its answer
    got lost. Only where `protocol=` names it, since detection comes after the first answer; below an SDK also only where
    `claims()` knows the request. The key is in `StreamState.extra` as
    `"idempotency_key"`: with that name in `keeps`, another process that has to send the request again sends the same.
    """

    @property
    def name(self) -> str:
        """What checkpoints call it."""
        return type(self).__name__

    @property
    def options(self) -> str:
        """
        Digest of options that are not the defaults; `""` where they are.

        A checkpoint keeps it, so that another process that names no protocol is told to pass this one again.
        """
        return ""

    @property
    def promises(self) -> Promises:
        """What it vouches for. Where no option changes it, an attribute says it: `promises = Promises(…)`."""
        return Promises(resumable=True, numbered=self.sequence == "contiguous", has_end=False)

    def __repr__(self) -> str:
        told = [name for name in ("resumable", "numbered", "has_end", "tied") if getattr(self.promises, name)]
        return f"<{self.name}: {', '.join(told) or 'promises nothing'}>"

    # -- starting

    @classmethod
    def for_request(cls, request: StreamState) -> Self:
        """The protocol with the options that a request implies; for detection."""
        return cls()

    def matches(self, request: StreamState, head: Head) -> bool:
        """Is this the protocol of that response? Asked only when the caller named none."""
        return False

    def claims(self, request: StreamState, head: Head) -> bool:
        """
        Does the request ask for a stream of this protocol, whatever the content type of its answer?

        Such an answer is read by this protocol or refused: without a content type, or with one that says nothing
        (`text/plain`, `application/octet-stream`), it is read; with any other it is `UnexpectedContentType`.
        It is never taken for a file, whose half nobody could tell from the whole. For protocols that vouch for their end.
        """
        return False

    def first_request(self, state: StreamState) -> Request:
        """The request that starts the stream: the caller's own."""
        return Request(method=state.method, url=state.url, repeat="all")

    def identify(self, state: StreamState, source: Head | Item) -> None:
        """
        Learn the stream's identity from the first response head or from an event.

        Heads are shown always, events until `state.stream_id` is set.
        """

    # -- reading

    def position(self, event: Any) -> Position:
        """Where an event stands. The default is plain SSE's: its own id is the cursor."""
        return Position(event.own_id, None, event.own_id)

    def end(self, event: Any) -> Outcome | Settled | Unproven | None:
        """Does this event end the stream, and how?"""
        return None

    def has_content(self, event: Any) -> bool:
        """
        Does this event bring a piece of the answer? Asked after one that settled the outcome: such a piece disproves it.

        The default asks `deltas()`, where the protocol has its own. Of plain events, usage looks like text: none disproves it.
        """
        return type(self).deltas is not ResumeProtocol.deltas and any(delta.text for delta in self.deltas(event))

    def end_in(self, state: StreamState, event: Any, end: Outcome | Settled) -> Outcome | Settled | None:
        """
        Does what `end()` found end *this* stream? For those that carry the ends of others too; asked of ends alone.

        What it writes into `state.extra` is of the place behind the event: a checkpoint in front of that does not have it.
        """
        return end

    def error(self, event: Any) -> UpstreamError | None:
        """Is this event the provider's report of an error outside its vocabulary? It is then raised, not delivered."""
        return None

    def refusal(self, event: Any, state: StreamState) -> Lost | None:
        """Is this error no more than the answer to our resume, in an event in place of a status? Asked of errors of a resume."""
        return None

    def gap(self, event: Any) -> Gap | None:
        """Does this event say that history was lost?"""
        return None

    def deltas(self, event: Any) -> Iterable[Delta]:
        """The content in an event. The default is the whole `data`."""
        return (Delta("text", event.data),)

    def deltas_in(self, state: StreamState, event: Any) -> Iterable[Delta]:
        """
        The content in an event of *this* stream, for those that carry the answers to others too: `end_in()` of `deltas()`.

        Events after this one may have been read already, so look only at what does not change from one event to the next.
        """
        return self.deltas(event)

    def reads_json(self, event: Any) -> bool:
        """
        May this event hold content, and has it to be JSON?

        Asked where an event has no content for `deltas()`, and of the few that raise the `alarm`. If it is not JSON, what it said
        was lost on the way, and that is an error (`ProtocolViolation`). Empty data and `[DONE]` hold nothing.
        """
        return event.event in self.json_names

    def part(self, event: Any) -> tuple[str, bool] | None:
        """
        Which message of the stream an event's text belongs to, and whether it takes the place of what that said before.

        Asked where the stream is read as text, if `in_parts`.
        """
        return None

    def step(self, event: Any) -> Literal["begin", "void"] | None:
        """Does this event begin a step of the answer, or take back what came since the last one began? Asked of text only."""
        return None

    def fingerprint(self, event: Any) -> str:
        """Digest an event so that its repeat is known. Leave out fields that differ from one sending to the next."""
        if isinstance(event, Chunk):
            return fingerprint_bytes(event.data)
        return fingerprint(event.event, event.data)

    def lineage(self, cursor: str) -> str:
        """
        What the cursors of a log begin with as long as it is the same log: `"k7q2."` of `"k7q2.1247"`; `""`: they do not tell.

        An event whose cursor begins otherwise is of another log, whatever its number says. That is `ReplayDiverged`.
        """
        return ""

    @property
    def places(self) -> bool:
        """`place()` has work to do. Plain SSE's positions are known from the decoder."""
        own = type(self)
        return own.position is not ResumeProtocol.position or own.place is not ResumeProtocol.place

    def place(self, events: Sequence[Any]) -> None:
        """Write `position()` into a batch. Called once a chunk; override it only for speed."""
        for event in events:
            cursor, event.sequence, event.own_id = self.position(event)
            event.moves = cursor is not None
            if cursor is not None:
                event.cursor = cursor

    def quiet(self, event: bytes) -> bool:
        """
        Is there nothing in an event to ask `end()`, `error()` and `gap()` about? Told from its bytes, without reading it.

        Asked where bytes are handed on, of a protocol without an `alarm`. Only a matter of speed; a false alarm costs little.
        """
        return False

    def counter_in(self, name: str) -> str | None:
        """What stands in front of the number in the data of each event of that name; `None`: not known. A matter of speed."""
        return None

    def unpack(self, event: Any) -> Iterable[Any]:
        """
        Take an event of the wire apart into those to deliver: more than one for a batch, none for a ping of the connection.

        What is left out is no progress, so that a connection without anything else is a failed attempt.

        Raises:
            EventTooLarge: It holds more than can be told apart in memory. That ends the stream.
        """
        return (event,)

    def on_document(self, body: bytes, state: StreamState) -> Document | Retry | None:
        """
        Read a whole document. The default is one event of its text; JSON has to be whole.

        Returns:
            `None`: it is not whole, although its connection closed cleanly. That is a cut. `Retry`: it is of no use, and why.

        Raises:
            EventTooLarge: It holds more events than memory can. That ends the stream.
        """
        text = body.decode("utf-8", "replace")
        if text.strip() and state.head is not None and state.head.is_json and not _is_whole(body):
            return None
        return Document([StreamEvent("message", text)] if text.strip() else [])

    # -- going on

    def resume_request(self, state: StreamState) -> Request | None:
        """Ask for what follows the cursor, or `None` when this stream offers no way."""
        return None

    def reaches_back(self, state: StreamState) -> bool:
        """
        May what is asked for from this place begin with the stream's beginning, although the server heeds the cursor?

        Otherwise such an answer comes from a server that ignores it, and all that was delivered is expected again, in order.
        Where it may, repeats are known by their ids alone.
        """
        return False

    def backfill_request(self, state: StreamState) -> Request | None:
        """
        Ask for what happened before this connection, now that it is open; `None`: it brings that itself.

        For streams that begin with what is new. Asking first and connecting then would lose what happens in between.
        """
        return None

    def on_backfill(self, answer: Answer, state: StreamState) -> Backfill | Verdict:
        """Turn the answer into events, or judge it as a close."""
        return Resume()

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        """Judge a response; `None` leaves it to the core's table. For a status below 400 `body` is empty."""
        return None

    def on_clean_close(self, state: StreamState) -> Verdict:
        """The body ended as it should, and no event ended the stream."""
        return Finished(Outcome.ENDED)

    def on_unproven(self, state: StreamState) -> Verdict:
        """The sender says that it is done, and nothing proves it (`Unproven`). By default that is as good as a clean close."""
        return self.on_clean_close(state)

    def why_not(self, state: StreamState) -> str:
        """
        Why `resume_request()` has none for this stream, and what the caller can pass so that it has: for messages.

        Returns:
            Words that follow "it cannot be resumed: "; `""` where there is nothing to say.
        """
        return "" if self.promises.resumable else f"{self.name} has no way to ask for the rest"

    def why_ended(self, state: StreamState) -> str:
        """What the provider said of an end that is no success, for `raise_for_outcome()`; `""` where it said nothing."""
        return ""

    def status_request(self, state: StreamState) -> Request | None:
        """Ask whether the run still runs; a silent connection is then no failed attempt."""
        return None

    def on_verified(self, answer: Answer, state: StreamState) -> Verdict:
        """Judge the answer to a `Verify` request or to `status_request()`."""
        return Resume()

    def tells_reset(self, event: Any) -> bool:
        """Whether this event, which makes void what came before it, says so in its own terms. Asked for readers of bytes."""
        return self.resets_itself

    def snapshot_request(self, state: StreamState) -> Request | None:
        """Ask for the stored result, for `on_lost="snapshot"`."""
        return None

    def on_snapshot(self, answer: Answer, state: StreamState) -> Snapshot | Retry | None:
        """Turn the stored result into events; `Retry` when it is not ready, `None` when it is of no use."""
        return None

    def cancel_request(self, state: StreamState) -> Request | None:
        """Stop the generation, or `None` where the provider has no such call."""
        return None


def _is_whole(body: bytes) -> bool:
    try:
        json.loads(body)
    except ValueError:
        return False
    except RecursionError:
        # Deeper than can be followed: nothing speaks against it.
        return True
    return True


Detect = Callable[[StreamState, Head], ResumeProtocol | None]
