"""
The values that a log takes and returns.

All are immutable and validate themselves, so a log never receives an invalid one. Numbers: `n` counts events from 1 without
holes; `b` counts bytes from the start of the log. A number that marks an end (`Span.n`, `Cursor.n`) includes what ends there.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, get_args

from .._events import Outcome

__all__ = [
    "CANCEL",
    "MAX_PLACE",
    "AlsoRefused",
    "Append",
    "Appended",
    "Behind",
    "Bell",
    "Control",
    "Cursor",
    "Done",
    "Ended",
    "Ending",
    "Existing",
    "Fenced",
    "Framing",
    "Full",
    "Gone",
    "GoneWhy",
    "Handover",
    "Head",
    "Held",
    "Lost",
    "Message",
    "Page",
    "Released",
    "Said",
    "Span",
    "SpanRefused",
    "Unavailable",
    "Unknown",
    "Writer",
    "check_seconds",
    "check_stream_id",
    "check_text",
    "epoch_of",
]

CANCEL: Final = "cancel"
"""The `kind` of a message that asks the producer to stop. Its data is the reason."""
MAX_PLACE: Final = 2**53 - 1
"""Largest `n` and `b`. 2**53 - 1: the largest integer that Lua, JavaScript and JSON readers hold exactly."""
MAX_ID_CHARS: Final = 256
MAX_NOTE_BYTES: Final = 256 << 10
"""256 KiB: a checkpoint token of the client half has at most 8 KiB; the rest is room for notes of the application."""
MAX_MESSAGE_BYTES: Final = 1 << 20
"""1 MiB: a message to a producer is a sentence or a form, not a file."""

_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz234567"
_EPOCH: Final = re.compile(r"[a-z2-7]{4,8}", re.ASCII)
_CLAIMANT: Final = re.compile(r"[A-Za-z0-9_]{1,64}")
_CURSOR: Final = re.compile(r"([a-z2-7]{4,8})\.(0|[1-9][0-9]{0,15})", re.ASCII)
_ID: Final = re.compile(r"[A-Za-z0-9._~-]{1,256}", re.ASCII)
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)


# --- checks -----------------------------------------------------------------------------------------------------------


def check_text(what: str, text: str, *, limit: int) -> str:
    """
    Validate text and its size.

    Args:
        what: Name of the value, for the message.
        text: Must be encodable as UTF-8: no lone surrogates.
        limit: Most bytes in UTF-8.

    Raises:
        TypeError: Not text.
        ValueError: It cannot be encoded, or is too long.
    """
    if not isinstance(text, str):
        raise TypeError(f"{what} must be text, got {type(text).__name__}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as exc:
        raise ValueError(f"{what} must be text that UTF-8 can carry: {exc.reason} at character {exc.start}") from exc
    if size > limit:
        raise ValueError(f"{what} may have at most {limit} bytes in UTF-8, got {size}")
    return text


def check_stream_id(stream_id: str) -> str:
    """
    Validate the id of a stream: 1 to 256 characters of `A-Z a-z 0-9 . _ ~ -`.

    Raises:
        TypeError: Not text.
        ValueError: Empty, too long, or with another character.
    """
    if not isinstance(stream_id, str):
        raise TypeError(f"a stream id must be text, got {type(stream_id).__name__}")
    if not _ID.fullmatch(stream_id):
        raise ValueError(f"a stream id has 1 to {MAX_ID_CHARS} characters of A-Z a-z 0-9 . _ ~ -, got {stream_id[:300]!r}")
    return stream_id


def check_seconds(what: str, seconds: float) -> float:
    """
    Validate a finite number of seconds >= 0.

    Raises:
        ValueError: It is not.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{what} must be a number of seconds >= 0, got {seconds!r}")
    return float(seconds)


def epoch_of(random_bytes: bytes) -> str:
    """
    Make an epoch from random bytes, one letter for each of the first eight.

    >>> epoch_of(bytes([10, 31, 16, 26]))
    'k7q2'

    Raises:
        ValueError: Fewer than four bytes.
    """
    if len(random_bytes) < 4:
        raise ValueError(f"an epoch needs 4 to 8 random bytes, got {len(random_bytes)}")
    return "".join(_ALPHABET[byte & 31] for byte in random_bytes[:8])


def _check_epoch(epoch: str) -> None:
    if not isinstance(epoch, str) or not _EPOCH.fullmatch(epoch):
        raise ValueError(f"an epoch has 4 to 8 characters of a-z and 2-7, got {epoch!r}")


def check_claimant(claimant: str | None) -> str | None:
    """
    Validate the name of a claimant.

    Raises:
        ValueError: It is not 1 to 64 characters of `A-Z a-z 0-9 _`.
    """
    if claimant is not None and (not isinstance(claimant, str) or not _CLAIMANT.fullmatch(claimant)):
        raise ValueError(f"a claimant has 1 to 64 characters of A-Z a-z 0-9 _, got {claimant!r:.80}")
    return claimant


def _check_place(what: str, number: int, lowest: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{what} must be a whole number, got {number!r}")
    if not lowest <= number <= MAX_PLACE:
        raise ValueError(f"{what} must be from {lowest} to 2**53 - 1, got {number}")


# --- places and content -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cursor:
    """
    A position in a log. `str()` gives its form on the wire, such as `"k7q2.1247"`.

    Attributes:
        epoch: Identity of the log, 4 to 8 characters of `a-z2-7`, random for each log. A log that was lost and created again
            has another one, so its events are never mistaken for those of the first.
        n: Number of the last event taken; 0 before any. The ending counts as the event after the last.
    """

    epoch: str
    n: int

    def __post_init__(self) -> None:
        _check_epoch(self.epoch)
        _check_place("n of a cursor", self.n, 0)

    def __str__(self) -> str:
        return f"{self.epoch}.{self.n}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """
        Parse the output of `str()`.

        >>> Cursor.parse("k7q2.1247")
        Cursor(epoch='k7q2', n=1247)

        Raises:
            ValueError: Anything else, including another spelling of the same number (`"k7q2.007"`).
        """
        found = _CURSOR.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise ValueError(f"a cursor is an epoch, a dot and a number, as in 'k7q2.1247'; got {str(text)[:80]!r}")
        return cls(found[1], int(found[2]))


class SpanRefused(ValueError):
    """
    A writer tried to append a span that does not continue the bytes of its log: a bug of the writer.

    Nothing of the span was stored.

    Attributes:
        stream_id: The stream of the span.
    """

    def __init__(self, message: str, *, stream_id: str) -> None:
        super().__init__(message)
        self.stream_id = stream_id

    def __reduce__(self) -> tuple[object, ...]:
        return _refused, (self.args[0], self.stream_id)


def _refused(message: str, stream_id: str) -> SpanRefused:
    return SpanRefused(message, stream_id=stream_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """
    Events that were appended together.

    An event is what `framing` delivers: an SSE block with its blank line (a block without data goes with the next one,
    comments are not stored), a line of NDJSON with its line feed, or a piece of raw bytes.

    Attributes:
        n: Number of its last event.
        b: Byte position after its last byte, counted from the start of the log.
        lengths: Bytes of each event; at least one event, each of at least one byte; their sum is `len(data)`.
        data: The events as the producer wrote them.

    Raises:
        TypeError: A number is not whole, `lengths` is not a tuple, or `data` not bytes.
        ValueError: The numbers contradict each other.
    """

    n: int
    b: int
    lengths: tuple[int, ...]
    data: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.lengths, tuple) or not isinstance(self.data, bytes):
            raise TypeError(
                f"a span takes a tuple of lengths and bytes, got {type(self.lengths).__name__} and {type(self.data).__name__}"
            )
        _check_place("n of a span", self.n, 1)
        _check_place("b of a span", self.b, 1)
        if not self.lengths:
            raise ValueError("a span holds at least one event, got none")
        # In two steps: `type is int` excludes booleans and floats, and costs a tenth of a loop over the items.
        if set(map(type, self.lengths)) != {int}:
            raise TypeError(f"the lengths of a span must be whole numbers, got {self.lengths[:20]!r}")
        if min(self.lengths) < 1:
            raise ValueError(f"each event of a span has at least one byte, got lengths {self.lengths[:20]!r}")
        if sum(self.lengths) != len(self.data):
            raise ValueError(f"the lengths of a span add up to {sum(self.lengths)}, but its data has {len(self.data)} bytes")
        if self.n < len(self.lengths):
            raise ValueError(f"the last of {len(self.lengths)} events cannot be number {self.n}: numbers begin at 1")
        if self.b < len(self.data):
            raise ValueError(f"{len(self.data)} bytes cannot end at position {self.b}: positions begin at 0")

    @property
    def first(self) -> int:
        """Number of its first event."""
        return self.n - len(self.lengths) + 1

    @property
    def start(self) -> int:
        """Byte position of its first byte."""
        return self.b - len(self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """
    How a stream ended.

    Attributes:
        outcome: As in the client half.
        reason: Why, in one word: `producer_lost`, `upstream_cut`, `upstream_error`, `upstream_reported` (its last events say so),
            `cancelled_by_user`, `abandoned`, `too_long`, `log_unavailable`, `shutdown`, or the application's own; at most 256
            bytes.
        error: For people; without secrets; at most 8 KiB.
        applied: Place in the inbox of the last message that was applied. Later messages were accepted but not applied.
    """

    outcome: Outcome
    reason: str | None = None
    error: str | None = None
    applied: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.outcome, Outcome):
            raise TypeError(f"the outcome of an ending must be an Outcome, got {self.outcome!r}")
        if self.reason is not None:
            check_text("the reason of an ending", self.reason, limit=256)
        if self.error is not None:
            check_text("the error of an ending", self.error, limit=8192)
        _check_place("applied of an ending", self.applied, 0)


Framing: TypeAlias = Literal["sse", "ndjson", "raw"]
"""How the bytes of a log are split into events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """
    What is fixed when a stream is created.

    Attributes:
        content_type: Content type of the body as the producer writes it.
        framing: How the body is split into events.
        status: HTTP status of the body, 200 to 599.
        headers: Headers of the upstream that readers get too, names and values, at most 100.
        owner: Opaque: whose stream it is. `""`: nobody's.
        fingerprint: Digest of the request that made the stream (method, path, body; no header); `""`: none was taken.
        session: The conversation that the stream belongs to.
        retention: Seconds that an ended stream is kept. 86400: a day, so that a page opened the next morning still finds it.
        public_id: The id by which readers name the stream, if the log uses another key for it; `""`: the key.
        feed: It is the feed of a session: it never ends, and every process appends to it.
        written: Clients append to it over HTTP, through any process. Nobody holds it; it is forgotten when its lease ends.
    """

    content_type: str
    framing: Framing
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    owner: str = ""
    fingerprint: str = ""
    session: str | None = None
    retention: float = 86400.0
    public_id: str = ""
    feed: bool = False
    written: bool = False

    def __post_init__(self) -> None:
        _check_header("the content type of a head", self.content_type)
        if not self.content_type:
            raise ValueError("the content type of a head must not be empty")
        if self.framing not in get_args(Framing):
            raise ValueError(f"framing must be 'sse', 'ndjson' or 'raw', got {self.framing!r}")
        if type(self.status) is not int or not 200 <= self.status <= 599:
            raise ValueError(f"the status of a head must be from 200 to 599, got {self.status!r}")
        if not isinstance(self.headers, tuple) or len(self.headers) > 100:
            raise ValueError("the headers of a head must be a tuple of at most 100 pairs of name and value")
        for pair in self.headers:
            if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str) or not _TOKEN.fullmatch(pair[0]):
                # The value is left out: it may be a secret.
                raise ValueError(f"each header of a head must be a pair of name and value, got {str(pair)[:40]!r}")
            _check_header(f"the header {pair[0]!r} of a head", pair[1])
        check_text("the owner of a head", self.owner, limit=1024)
        check_text("the fingerprint of a head", self.fingerprint, limit=256)
        if self.session is not None:
            check_text("the session of a head", self.session, limit=1024)
        check_seconds("the retention of a head", self.retention)
        check_text("the public id of a head", self.public_id, limit=MAX_ID_CHARS)
        for name, value in (("feed", self.feed), ("written", self.written)):
            if type(value) is not bool:
                raise TypeError(f"{name} must be True or False, got {value!r}")


def _check_header(what: str, text: str) -> None:
    check_text(what, text, limit=8192)
    if any((ord(character) < 32 and character != "\t") or ord(character) == 127 for character in text):
        raise ValueError(f"{what} must not contain control characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """
    A message to the producer of a stream.

    Attributes:
        id: Chosen by the sender; a repeated id means the same message. 1 to 256 bytes.
        data: Text, often JSON; at most 1 MiB.
        kind: `"message"`, `"cancel"` (see `CANCEL`), or the application's own word; 1 to 64 bytes.
        k: Its place in the inbox, from 1; 0 before the log has accepted it.
    """

    id: str
    data: str = ""
    kind: str = "message"
    k: int = 0

    def __post_init__(self) -> None:
        check_text("the id of a message", self.id, limit=256)
        check_text("the data of a message", self.data, limit=MAX_MESSAGE_BYTES)
        check_text("the kind of a message", self.kind, limit=64)
        if not self.id or not self.kind:
            raise ValueError("a message needs an id and a kind")
        _check_place("k of a message", self.k, 0)


@dataclass(frozen=True, slots=True)
class Control:
    """
    The state of a stream's inbox.

    Attributes:
        k: Messages accepted so far.
        cancel: Reason of the first cancel (may be `""`); `None`: nobody asked the producer to stop.
    """

    k: int
    cancel: str | None = None


@dataclass(frozen=True, slots=True)
class Released:
    """Nobody writes to the stream now: its writer has released it, and any claim succeeds at once."""


# --- writers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """
    The state that a writer continues from after it has claimed a stream.

    Attributes:
        head: As created.
        n: Number of the last event in the log; 0: none.
        b: Byte position after it.
        note: The newest note; `None`: none, or the events before it are lost.
        note_n: The event after which the note was stored. The note does not cover later events.
        taken: How many messages of the inbox the earlier writers have dealt with.
        control: State of the inbox.
        request: The request given to `create`.
        whole: The log holds every appended event. False: events were lost. The stream then has a new epoch and no events,
            but readers may have seen some, so it is not a stream that never began.
        before: The previous epoch of the events; `None`: they keep theirs. The log may have lost events after them, so numbering
            continues under another epoch.
    """

    head: Head
    n: int
    b: int
    note: str | None
    note_n: int
    taken: int
    control: Control | None
    request: bytes | None = field(repr=False)
    whole: bool = True
    before: str | None = None


@dataclass(frozen=True, slots=True)
class Writer:
    """
    The right to append to one stream, until another writer claims it.

    Attributes:
        stream_id: The stream.
        epoch: Epoch of its log.
        fence: Counts the writers of the log, from 1. The highest holds the right.
        lease: Seconds for which each write renews the right, on the log's clock. 15: a dead producer is noticed before
            its readers lose patience, and two renewals may fail. `renew` with 0 releases the stream.
        retention: As in the head.
        handover: What the stream held when it was claimed; `None` after `create` and `restore`.
    """

    stream_id: str
    epoch: str
    fence: int
    lease: float = field(default=15.0, compare=False)
    retention: float = field(default=86400.0, compare=False)
    handover: Handover | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_stream_id(self.stream_id)
        _check_epoch(self.epoch)
        _check_place("the fence of a writer", self.fence, 1)
        check_seconds("the lease of a writer", self.lease)
        check_seconds("the retention of a writer", self.retention)

    @property
    def token(self) -> str:
        """`<epoch>.<fence>`: what the log compares. A fence alone would admit the writer of a lost log to the new one."""
        return f"{self.epoch}.{self.fence}"


@dataclass(frozen=True, slots=True)
class Existing:
    """
    The stream exists already: join it.

    Attributes:
        epoch: Epoch of its log.
        n: Number of its last event.
        head: As created; compare `head.fingerprint` and `head.owner` with your own.
        ending: How it ended; `None` while it runs.
    """

    epoch: str
    n: int
    head: Head
    ending: Ending | None = None


@dataclass(frozen=True, slots=True)
class Append:
    """
    One item of a batch: a span, and what is stored in the same step.

    Attributes:
        writer: Who appends.
        span: The events. `None`: only the note and `taken` are stored.
        note: Replaces the note of the stream; `None` keeps it.
        taken: How many messages of the inbox are dealt with, from the first; `None` keeps it.
        n: Without a span: the last event that note and `taken` belong to; the log must be exactly there.
        exact: Store the span only if the log ends right before it; otherwise the answer is `Behind`. For a log that several
            processes append to as one writer: a span that is already there may be another's.
        trims: Drop the events before this one in the same step, except those that share a span with it. 0: none.
        mark: Without a span: number of this append among those of its writer, from 1. A late repeat that arrives after a newer
            one is recognised by it and changes nothing. 0: not counted, so it replaces the stored values in any case.
    """

    writer: Writer
    span: Span | None
    note: str | None = None
    taken: int | None = None
    n: int | None = None
    exact: bool = False
    trims: int = 0
    mark: int = 0

    def __post_init__(self) -> None:
        _check_place("trims of an append", self.trims, 0)
        _check_place("mark of an append", self.mark, 0)
        if self.note is not None:
            check_text("a note", self.note, limit=MAX_NOTE_BYTES)
        if self.taken is not None:
            _check_place("taken", self.taken, 0)
        if self.span is None:
            if self.n is None:
                raise ValueError("an append without a span needs n, the event that its note belongs to")
            _check_place("n of an append", self.n, 0)
            if self.exact or self.trims:
                raise ValueError("an append without a span can neither be exact nor trim")
        elif self.mark:
            raise ValueError(f"an append with a span is identified by its events and takes no mark, got {self.mark}")
        elif self.trims > self.span.n:
            raise ValueError(f"an append of events up to {self.span.n} cannot drop those before {self.trims}")
        elif self.n is not None and self.n != self.span.n:
            raise ValueError(f"an append with a span takes n from it, got n={self.n} with a span that ends at {self.span.n}")

    @property
    def first(self) -> int:
        """Number of its first event; without a span, of the next event."""
        return self.last + 1 if self.span is None else self.span.first

    @property
    def last(self) -> int:
        """Number of the last event in the log afterwards."""
        if self.span is not None:
            return self.span.n
        assert self.n is not None
        return self.n


# --- verdicts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Appended:
    """
    The span is in the log, now or since an earlier attempt.

    Attributes:
        n: Number of the last event in the log.
        control: State of the inbox; `None` before the first message.
    """

    n: int
    control: Control | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """
    The ending is in the log, now or since an earlier attempt.

    Attributes:
        n: Number of the last event.
    """

    n: int


@dataclass(frozen=True, slots=True)
class Fenced:
    """
    Another writer has the stream; nothing changed. Stop producing.

    Attributes:
        current: The token of that writer, `<epoch>.<fence>`.
    """

    current: str


@dataclass(frozen=True, slots=True)
class Ended:
    """
    The stream has ended; nothing changed.

    Attributes:
        ending: How it ended.
        n: Number of its last event.
    """

    ending: Ending
    n: int = 0


@dataclass(frozen=True, slots=True)
class Behind:
    """
    The log does not end where the writer says; nothing changed. Send the events after `n`.

    Attributes:
        n: Number of the last event in the log.
    """

    n: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The log, or some of its spans, is gone; nothing changed. `restore` it, if you have all of it."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """
    This stream cannot be reached, while others of the same call can. The call may have taken effect: repeat it.

    Attributes:
        stream_id: The stream.
        why: For people, the text of a `LogUnavailable`.
    """

    stream_id: str
    why: str


@dataclass(frozen=True, slots=True)
class AlsoRefused:
    """
    The append to another stream in the same step was refused, so nothing was done.

    Attributes:
        verdict: The answer to that append.
    """

    verdict: Fenced | Ended | Behind | Lost


@dataclass(frozen=True, slots=True)
class Held:
    """
    Another writer holds the lease.

    Attributes:
        seconds: Until the lease ends, if it is not renewed.
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class Said:
    """
    The message is in the inbox, now or since an earlier attempt.

    Attributes:
        k: Its place, from 1.
        ending: How the stream has ended; `None` while it runs, and so for every new message.
    """

    k: int
    ending: Ending | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Full:
    """
    The inbox accepts no more messages, except a cancel.

    Attributes:
        limit: Its size.
    """

    limit: int


@dataclass(frozen=True, slots=True)
class Unknown:
    """There is no such stream, or no longer."""


GoneWhy: TypeAlias = Literal["trimmed", "other_epoch", "went_back"]


@dataclass(frozen=True, slots=True)
class Gone:
    """
    The events after the cursor are not in the log.

    Attributes:
        oldest: Number of the oldest event held; n + 1 if none is. A cursor at `oldest - 1` reads what is left.
        n: Number of the last event.
        why: `trimmed`: the front of the log was dropped. `other_epoch`: the cursor is from another log. `went_back`: the cursor
            is ahead of the log, which lost its tail.
        epoch: Epoch of the log.
        head: Head of the stream, to check its owner.
        ending: How the stream ended; `None` while it runs.
        running_until: As in `Page`.
        now: As in `Page`.
    """

    oldest: int
    n: int
    why: GoneWhy
    epoch: str
    head: Head
    ending: Ending | None = None
    running_until: float | None = None
    now: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """
    The events of a log after a cursor, or the first part of them.

    Attributes:
        head: Head of the stream.
        epoch: Epoch of the log.
        oldest: Number of the oldest event held; n + 1 if none is.
        n: Number of the last event in the log.
        b: Byte position after it.
        spans: In order, from the event after the cursor, without a hole. Empty: nothing yet while `ending` is `None`, no more
            when it is set. A page that stops before `n` is full: continue after its last span.
        ending: How the stream ended, as event n + 1; `None` while it runs.
        running_until: When the lease of its writer ends, in seconds on the log's clock; 0.0: released. `None` after the end.
        now: The log's clock at the time of reading.
        note: The newest note, if the page was read with `limit_bytes=0`; otherwise `None`.
    """

    head: Head
    epoch: str
    oldest: int
    n: int
    b: int
    spans: tuple[Span, ...] = ()
    ending: Ending | None = None
    running_until: float | None = None
    now: float = 0.0
    note: str | None = field(default=None, repr=False)

    @property
    def lease_left(self) -> float:
        """Seconds until the stream may be claimed; 0.0 if it may be now, or has ended."""
        return 0.0 if self.running_until is None else max(0.0, self.running_until - self.now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bell:
    """
    A hint that a log has changed. It may be lost, duplicated or out of order.

    Attributes:
        id: The stream.
        item: What was appended: a span, the ending, or the state of the inbox; or that the stream was released. `None`:
            something has changed, read the log.
        epoch: Epoch of the log; `None` if unknown.
        n: Number of the last event in the log when it rang; `None` if unknown.
        oldest: Number of the oldest event held, if the front of the log was trimmed.
    """

    id: str
    item: Span | Ending | Control | Released | None = None
    epoch: str | None = None
    n: int | None = None
    oldest: int | None = None
