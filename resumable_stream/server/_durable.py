"""
Durable Streams on the wire, as functions of values: what a request asks for, what may be appended, and the bytes of answers.

A stream of a log is shown as bytes. A place is an offset, `<epoch>_<byte, 16 digits>`. Within one epoch a later offset is the
greater text, and an offset of a lost log never fits the log that replaced it.

    content type                      kept as                    shown as
    application/json, one a line      lines (framing "ndjson")   an array of messages
    text/…                            bytes                      bytes; over SSE as text
    everything else                   bytes                      bytes; over SSE in base64

What the writers of a stream share (the sequence numbers of its producers, and who closed it) is a note in the log, which is
stored in the same step as the events.

Source: github.com/durable-streams/durable-streams, PROTOCOL.md of 2026-06 (draft). This module has no I/O and no clock.
"""

from __future__ import annotations

import base64
import codecs
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import parse_qsl

from .._events import Outcome
from .log import MAX_PLACE, Ending, Framing, Head, Page, Span, check_text
from .wire import Answer, Facts, outcome_header, to_json

__all__ = [
    # requests
    "Asked",
    "Create",
    "Live",
    "Place",
    "Producer",
    "Write",
    "asked",
    "asked_to_append",
    "asked_to_create",
    # streams
    "Accepted",
    "Notes",
    "Shown",
    "decide_append",
    "decide_create",
    "expires_at",
    "messages_of",
    "ttl_of",
    # answers
    "Events",
    "answer_now",
    "answer_to_head",
    "bad",
    "body_of",
    "cursor_after",
    "failure",
    "offset_of",
    "read_headers",
    "sse_headers",
]

Live: TypeAlias = Literal["long-poll", "sse"]

NEXT: Final = "Stream-Next-Offset"
UP_TO_DATE: Final = "Stream-Up-To-Date"
CLOSED: Final = "Stream-Closed"
CURSOR: Final = "Stream-Cursor"
TTL: Final = "Stream-TTL"
EXPIRES: Final = "Stream-Expires-At"
OUTCOME: Final = "Stream-Outcome"

ALLOWED: Final = (
    "Authorization, Content-Type, If-None-Match, Stream-Seq, Stream-TTL, Stream-Expires-At, Stream-Closed, Producer-Id, "
    "Producer-Epoch, Producer-Seq"
)
EXPOSED: Final = (
    "ETag, Location, Retry-After, Stream-Next-Offset, Stream-Cursor, Stream-Up-To-Date, Stream-Closed, Stream-Outcome, "
    "Stream-SSE-Data-Encoding, Stream-TTL, Stream-Expires-At, Producer-Epoch, Producer-Seq, Producer-Expected-Seq, "
    "Producer-Received-Seq"
)

_NO_STORE: Final = ("Cache-Control", "no-store")
_TRUE: Final = "true"
_OFFSET: Final = re.compile(r"([a-z2-7]{4,8})_([0-9]{16})", re.ASCII)
_WHOLE: Final = re.compile(r"0|[1-9][0-9]{0,15}", re.ASCII)
_DIGITS: Final = re.compile(r"[0-9]{1,20}", re.ASCII)
_MEDIA: Final = re.compile(r"[\w-]+/[\w-]+", re.ASCII)
_LINE_END: Final = re.compile(r"\r\n|\r|\n")

_INTERVAL: Final = 20
_INTERVALS_FROM: Final = 1_728_432_000
"""Cursors count intervals of 20 seconds from 2024-10-09 (section 10.1)."""
_JITTER: Final = 3600
_MAX_TTL: Final = 100 * 366 * 86400
_MAX_PRODUCERS: Final = 1000
_MAX_NOTE: Final = 128 << 10
"""Producers remembered per stream, and bytes of the note that holds them. Those silent longest are dropped first."""
_MAX_PRODUCER_ID: Final = 256
_MAX_SEQ: Final = 1024
_MAX_MESSAGES: Final = 100_000
_SHOWN: Final = 80

COMPLETED: Final = Ending(outcome=Outcome.COMPLETED)
"""How a stream ends that a client closed."""


# --- what is shown ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """
    A place in the bytes of a log.

    Attributes:
        epoch: Epoch of the log.
        b: Number of bytes before it.
    """

    epoch: str
    b: int


def offset_of(epoch: str, b: int) -> str:
    """
    The offset of a byte.

    >>> offset_of("k7q2", 1247)
    'k7q2_0000000000001247'
    """
    return f"{epoch}_{b:016d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """
    The state of a stream, as readers of this protocol see it.

    Attributes:
        head: As created.
        epoch: Epoch of its log.
        n: Number of its last event.
        b: Byte position after it.
        oldest: Number of the oldest event held.
        ending: How it ended; `None` while it is open.
    """

    head: Head
    epoch: str
    n: int
    b: int
    oldest: int = 1
    ending: Ending | None = None

    @classmethod
    def of(cls, page: Page) -> Shown:
        """From a page of the log."""
        return cls(head=page.head, epoch=page.epoch, n=page.n, b=page.b, oldest=page.oldest, ending=page.ending)

    @property
    def is_json(self) -> bool:
        """It consists of JSON messages, one per line."""
        return _is_json(self.head.content_type) and self.head.framing == "ndjson"

    @property
    def content_type(self) -> str:
        """As created, except that JSON not stored as lines is `application/octet-stream`: its pieces are not messages."""
        if _is_json(self.head.content_type) and not self.is_json:
            return "application/octet-stream"
        return self.head.content_type

    @property
    def is_text(self) -> bool:
        """Its bytes can be sent as the data of server-sent events."""
        return self.is_json or _media(self.head.content_type).startswith("text/")

    @property
    def tail(self) -> str:
        """The offset after the last byte."""
        return offset_of(self.epoch, self.b)


def _media(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _is_json(content_type: str) -> bool:
    return _media(content_type) == "application/json"


def ttl_of(head: Head) -> int | None:
    """Seconds without a read or a write after which a stream is forgotten; `None`: not set."""
    found = _header_of(head, TTL)
    return None if found is None else int(found)


def expires_at(head: Head) -> float | None:
    """Unix time at which a stream is forgotten; `None`: not set."""
    found = _header_of(head, EXPIRES)
    return None if found is None else _timestamp(found)


def _header_of(head: Head, name: str) -> str | None:
    return next((value for each, value in head.headers if each == name), None)


def _timestamp(text: str) -> float | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    # RFC 3339: a date, a time and a UTC offset.
    return found.timestamp() if found.tzinfo is not None and "T" in text.upper() else None


# --- requests -----------------------------------------------------------------------------------------------------------


def bad(what: str, expected: str, seen: str | None = None) -> Answer:
    """A 400 that says what was expected."""
    return failure(400, f"{what} must be {expected}" + ("" if seen is None else f", got {seen[:_SHOWN]!r}"))


def failure(status: int, message: str, *headers: tuple[str, str]) -> Answer:
    """An error answer with a text for people; clients act on the status and the headers."""
    text = message.encode("utf-8", "backslashreplace")
    return Answer(status, (("Content-Type", "text/plain; charset=utf-8"), _NO_STORE, *headers), text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """
    What a GET asks for.

    Attributes:
        live: How it waits for more; `None`: it does not wait.
        place: Where to start; `None`: at the first byte.
        now: Start at the tail, wherever it is.
        cursor: The `Stream-Cursor` that the client sends back; `None`: none, or not a number.
        etags: Tags of what the client already has.
    """

    live: Live | None = None
    place: Place | None = None
    now: bool = False
    cursor: int | None = None
    etags: tuple[str, ...] = ()


def asked(facts: Facts) -> Asked | Answer:
    """Read a GET; parameters with other names are ignored."""
    query: dict[str, str] = {}
    for name, value in parse_qsl(facts.query, keep_blank_values=True):
        if name not in ("offset", "live", "cursor"):
            continue
        if name in query:
            return bad(f"the query parameter {name!r}", "given once")
        query[name] = value
    live = query.get("live")
    if live not in (None, "long-poll", "sse"):
        return bad("'live'", "'long-poll' or 'sse'", live)
    offset, place = query.get("offset"), None
    if offset is None and live is not None:
        return bad("'offset'", f"given with live={live}")
    if offset not in (None, "-1", "now"):
        found = _OFFSET.fullmatch(offset or "")
        if found is None or int(found[2]) > MAX_PLACE:
            return bad("'offset'", "-1, now, or a Stream-Next-Offset of this server", offset)
        place = Place(found[1], int(found[2]))
    cursor = query.get("cursor", "")
    tags = (each.strip().removeprefix("W/") for each in facts.headers.get("if-none-match", "").split(","))
    return Asked(
        live=live,  # type: ignore[arg-type]  # one of the two, or nothing
        place=place,
        now=offset == "now",
        cursor=int(cursor) if _WHOLE.fullmatch(cursor) else None,
        etags=tuple(each for each in tags if each),
    )


@dataclass(frozen=True, slots=True)
class Producer:
    """
    Who appends, and the number of the append.

    Attributes:
        id: Id of the producer.
        epoch: Epoch of the producer, unrelated to that of the log.
        seq: Number of the append within that epoch, from 0.
    """

    id: str
    epoch: int
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """
    What a POST asks for.

    Attributes:
        content_type: Content type of the body; `""`: no body, the request only closes the stream.
        pieces: Data to append, one event each.
        closes: Close the stream afterwards.
        seq: Value of `Stream-Seq`.
        producer: From the three `Producer-*` headers.
    """

    content_type: str = ""
    pieces: tuple[bytes, ...] = field(default=(), repr=False)
    closes: bool = False
    seq: str | None = None
    producer: Producer | None = None


def asked_to_append(facts: Facts, body: bytes) -> Write | Answer:
    """Read a POST."""
    headers = facts.headers
    producer = _producer(headers)
    if isinstance(producer, Answer):
        return producer
    closes, seq = _closes(headers), headers.get("stream-seq")
    if seq is not None and not _fits(seq, _MAX_SEQ):
        return bad("Stream-Seq", f"text of 1 to {_MAX_SEQ} bytes", seq)
    if not body:
        if not closes:
            return bad("the body", "not empty, unless Stream-Closed: true is sent to close the stream")
        return Write(closes=True, seq=seq, producer=producer)
    content_type = headers.get("content-type", "")
    if not content_type.strip():
        return bad("Content-Type", "that of the stream, because there is a body")
    pieces = _pieces(content_type, body)
    if isinstance(pieces, Answer):
        return pieces
    if not pieces:
        return bad("the body", "a JSON value, or an array with at least one", "[]")
    return Write(content_type=content_type, pieces=pieces, closes=closes, seq=seq, producer=producer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Create:
    """
    What a PUT asks for.

    Attributes:
        content_type: Content type of the stream.
        pieces: Its first events.
        closes: Close it at once.
        ttl: Seconds without a read or a write after which it is forgotten.
        expires: RFC 3339 time at which it is forgotten.
    """

    content_type: str
    pieces: tuple[bytes, ...] = field(default=(), repr=False)
    closes: bool = False
    ttl: int | None = None
    expires: str | None = None

    @property
    def framing(self) -> Framing:
        """How its bytes are split into events."""
        return "ndjson" if _is_json(self.content_type) else "raw"

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """The headers that the head of the stream keeps."""
        found = ((TTL, None if self.ttl is None else str(self.ttl)), (EXPIRES, self.expires))
        return tuple((name, value) for name, value in found if value is not None)


def asked_to_create(facts: Facts, body: bytes) -> Create | Answer:
    """Read a PUT."""
    headers = facts.headers
    forks = [name for name in headers if name.startswith("stream-fork")]
    if forks:
        return failure(501, "this server does not fork streams")
    content_type = headers.get("content-type", "").strip()
    if _MEDIA.match(content_type) is None or not _fits(content_type, 1024):
        content_type = "application/octet-stream"
    ttl, expires = headers.get("stream-ttl"), headers.get("stream-expires-at")
    if ttl is not None and expires is not None:
        return bad("Stream-TTL and Stream-Expires-At", "not given together")
    if ttl is not None and (_WHOLE.fullmatch(ttl) is None or int(ttl) > _MAX_TTL):
        return bad("Stream-TTL", f"a whole number of seconds from 0 to {_MAX_TTL}, without leading zeros", ttl)
    if expires is not None and _timestamp(expires) is None:
        return bad("Stream-Expires-At", "a time of RFC 3339, as in '2026-11-29T12:00:00Z'", expires)
    pieces = _pieces(content_type, body) if body else ()
    if isinstance(pieces, Answer):
        return pieces
    return Create(
        content_type=content_type,
        pieces=pieces,
        closes=_closes(headers),
        ttl=None if ttl is None else int(ttl),
        expires=expires,
    )


def _closes(headers: Mapping[str, str]) -> bool:
    return headers.get("stream-closed", "").strip().lower() == _TRUE


def _fits(text: str, limit: int) -> bool:
    try:
        return bool(check_text("a header", text, limit=limit))
    except ValueError:
        return False


def _producer(headers: Mapping[str, str]) -> Producer | None | Answer:
    id, epoch, seq = (headers.get(f"producer-{name}") for name in ("id", "epoch", "seq"))
    if id is None and epoch is None and seq is None:
        return None
    if id is None or epoch is None or seq is None:
        return bad("Producer-Id, Producer-Epoch and Producer-Seq", "given together")
    if not _fits(id, _MAX_PRODUCER_ID):
        return bad("Producer-Id", f"text of 1 to {_MAX_PRODUCER_ID} bytes", id)
    numbers = []
    for name, text in (("Producer-Epoch", epoch), ("Producer-Seq", seq)):
        if _DIGITS.fullmatch(text) is None or int(text) > MAX_PLACE:
            return bad(name, "a whole number from 0 to 2^53 - 1", text)
        numbers.append(int(text))
    return Producer(id, numbers[0], numbers[1])


# --- JSON ---------------------------------------------------------------------------------------------------------------


def _pieces(content_type: str, body: bytes) -> tuple[bytes, ...] | Answer:
    if not _is_json(content_type):
        return (body,)
    try:
        return tuple(message.encode() + b"\n" for message in messages_of(body))
    except ValueError as exc:
        return failure(400, f"the body must be JSON: {exc}")
    except RecursionError:
        return failure(400, "the body must be JSON that is less deeply nested")


def messages_of(body: bytes) -> list[str]:
    """
    The messages of a body: the elements of an array, or the one value.

    Each keeps its spelling, but on one line: a line end in JSON is white space.

    >>> messages_of(b'[{"a": 1.0}, [2]]')
    ['{"a": 1.0}', '[2]']

    Raises:
        ValueError: It is not JSON, or holds more messages than one request may.
    """
    text = body.decode("utf-8-sig")
    place = _skip(text, 0)
    if text[place : place + 1] != "[":
        message, place = _value(text, place)
        _nothing_after(text, place)
        return [message]
    messages: list[str] = []
    place = _skip(text, place + 1)
    if text[place : place + 1] == "]":
        _nothing_after(text, place + 1)
        return messages
    while True:
        message, place = _value(text, place)
        messages.append(message)
        if len(messages) > _MAX_MESSAGES:
            raise ValueError(f"one request may hold {_MAX_MESSAGES:,} messages, but this one holds more")
        place = _skip(text, place)
        follows = text[place : place + 1]
        if follows == "]":
            _nothing_after(text, place + 1)
            return messages
        if follows != ",":
            raise ValueError(f"a comma or a bracket must follow the element that ends at character {place}")
        place = _skip(text, place + 1)


def _value(text: str, start: int) -> tuple[str, int]:
    _, end = _DECODER.raw_decode(text, start)
    return _one_line(text[start:end]), end


def _nothing_after(text: str, place: int) -> None:
    if _skip(text, place) != len(text):
        raise ValueError(f"unexpected text after the value, at character {place}")


def _skip(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def _one_line(text: str) -> str:
    return text.replace("\r", " ").replace("\n", " ")


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON value")


_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant)


def body_of(shown: Shown, data: bytes) -> bytes:
    """The body of an answer with these bytes; for a stream of JSON, the array of its messages."""
    return b"[" + b",".join(_lines(data)) + b"]" if shown.is_json else data


def _lines(data: bytes) -> Iterator[bytes]:
    return (line for each in data.split(b"\n") if (line := each.strip()))


# --- what writers share -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """
    State kept with the events of a stream.

    Attributes:
        producers: Epoch and last number of each producer, the most recent writer last.
        seq: The last `Stream-Seq`, across all writers of the stream.
        closed: It is closed, even if its log does not say so yet.
        closed_by: The producer that closed it, if one did.
    """

    producers: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    seq: str | None = None
    closed: bool = False
    closed_by: Producer | None = None

    def to_json(self) -> str:
        """The text to store."""
        producers = dict(list(self.producers.items())[-_MAX_PRODUCERS:])
        while len(text := self._text(producers)) * 4 > _MAX_NOTE and len(text.encode()) > _MAX_NOTE:
            # An eighth at a time, because each attempt encodes the whole note.
            producers = dict(list(producers.items())[1 + len(producers) // 8 :])
        return text

    def _text(self, producers: Mapping[str, tuple[int, int]]) -> str:
        by = self.closed_by
        found: dict[str, Any] = {"producers": {id: list(numbers) for id, numbers in producers.items()}}
        if self.seq is not None:
            found["seq"] = self.seq
        if self.closed:
            found["closed"] = [] if by is None else [by.id, by.epoch, by.seq]
        return to_json(found)

    @classmethod
    def from_json(cls, text: str | None) -> Notes:
        """
        Read the output of `to_json`; `None`: nothing is stored.

        Raises:
            ValueError: It is malformed.
        """
        if text is None:
            return cls()
        found = json.loads(text)
        try:
            closed = found.get("closed")
            return cls(
                producers={id: (epoch, seq) for id, (epoch, seq) in found["producers"].items()},
                seq=found.get("seq"),
                closed=closed is not None,
                closed_by=Producer(*closed) if closed else None,
            )
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"the note of the stream cannot be read ({exc})") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """
    An accepted request: what to do, and the answer.

    Attributes:
        span: Span to append; `None`: nothing.
        notes: New notes of the stream; `None`: unchanged.
        answer: Sent once that is done.
    """

    span: Span | None
    notes: Notes | None
    answer: Answer


def decide_append(shown: Shown, notes: Notes, write: Write) -> Accepted | Answer:
    """
    Decide on a POST to a stream in this state.

    An append that was accepted before succeeds whatever has happened since, even if the stream was closed. Otherwise section 5.2
    gives the order of the checks: closed, another content type, a number that does not follow.
    """
    closed = shown.ending is not None or notes.closed
    at = (NEXT, shown.tail)
    producer = write.producer
    if producer is not None and (known := notes.producers.get(producer.id)) is not None:
        told = ("Producer-Epoch", str(known[0])), ("Producer-Seq", str(known[1]))
        if producer.epoch < known[0]:
            return failure(403, f"producer {producer.id[:_SHOWN]!r} has a later epoch now", told[0])
        if producer.epoch == known[0] and producer.seq <= known[1]:
            return Answer(204, (at, *told, *_closed(closed)))
    if closed:
        if not write.pieces and producer is None:
            return Answer(204, (at, *_closed(True)))
        return failure(409, "the stream is closed", (CLOSED, _TRUE), at)
    if write.pieces and _media(write.content_type) != _media(shown.head.content_type):
        return failure(409, f"the stream is {shown.head.content_type[:_SHOWN]!r}, but got {write.content_type[:_SHOWN]!r}")
    if (refused := _out_of_order(notes, write)) is not None:
        return refused
    span = span_after(shown.n, shown.b, write.pieces) if write.pieces else None
    b = shown.b if span is None else span.b
    headers = [(NEXT, offset_of(shown.epoch, b)), *_closed(write.closes)]
    after = notes
    if write.seq is not None and write.pieces:
        after = replace(after, seq=write.seq)
    if producer is not None:
        others = {id: numbers for id, numbers in after.producers.items() if id != producer.id}
        after = replace(after, producers={**others, producer.id: (producer.epoch, producer.seq)})
        headers += [("Producer-Epoch", str(producer.epoch)), ("Producer-Seq", str(producer.seq))]
    if write.closes:
        after = replace(after, closed=True, closed_by=producer)
    status = 200 if producer is not None and write.pieces else 204
    return Accepted(span=span, notes=None if after is notes else after, answer=Answer(status, tuple(headers)))


def _out_of_order(notes: Notes, write: Write) -> Answer | None:
    producer = write.producer
    if producer is not None:
        epoch, last = notes.producers.get(producer.id, (producer.epoch, -1))
        if producer.epoch > epoch and producer.seq != 0:
            return bad("Producer-Seq", "0 for the first append of a new Producer-Epoch", str(producer.seq))
        expected = 0 if producer.epoch > epoch else last + 1
        if producer.seq != expected:
            told = ("Producer-Expected-Seq", str(expected)), ("Producer-Received-Seq", str(producer.seq))
            return failure(409, f"the next Producer-Seq is {expected}, got {producer.seq}", *told)
    # Text is compared by its bytes (section 5.2).
    if write.pieces and write.seq is not None and notes.seq is not None and write.seq.encode() <= notes.seq.encode():
        return failure(409, "Stream-Seq must be greater than the last one")
    return None


def span_after(n: int, b: int, pieces: Sequence[bytes]) -> Span:
    """The span of events that follow event `n`, which ends at byte `b`."""
    data = b"".join(pieces)
    return Span(n=n + len(pieces), b=b + len(data), lengths=tuple(map(len, pieces)), data=data)


def decide_create(shown: Shown, notes: Notes, create: Create) -> Answer:
    """Decide on a PUT of a stream that exists."""
    head = shown.head
    closed = shown.ending is not None or notes.closed
    same = (
        head.written
        and _media(head.content_type) == _media(create.content_type)
        and ttl_of(head) == create.ttl
        and expires_at(head) == (None if create.expires is None else _timestamp(create.expires))
        and closed == create.closes
    )
    if not same:
        return failure(409, "the stream exists, and was created with other settings")
    return created(200, shown, closed)


def created(status: int, shown: Shown, closed: bool, *headers: tuple[str, str]) -> Answer:
    """The answer for a stream that exists now."""
    return Answer(status, (("Content-Type", shown.head.content_type), (NEXT, shown.tail), *_closed(closed), *headers))


def _closed(closed: bool) -> tuple[tuple[str, str], ...]:
    return ((CLOSED, _TRUE),) if closed else ()


# --- answers to readers -------------------------------------------------------------------------------------------------


def cursor_after(cursor: int | None, *, now: float, random: float) -> int:
    """
    The cursor for a client's next request, which keeps a cache from repeating this answer.

    Args:
        cursor: The cursor of this request.
        now: Unix time.
        random: From 0 up to but not including 1.

    Returns:
        The number of the 20-second interval, and always more than `cursor` (section 10.1).
    """
    interval = max(0, math.floor((now - _INTERVALS_FROM) / _INTERVAL))
    if cursor is None or cursor < interval:
        return interval
    return cursor + math.ceil((1 + math.floor(random * _JITTER)) / _INTERVAL)


def closing_headers(ending: Ending | None) -> tuple[tuple[str, str], ...]:
    """
    Headers saying that nothing will follow.

    A stream that failed or was stopped has ended too. This protocol has no field for that, so an extra header gives the outcome.
    """
    if ending is None:
        return ()
    return (CLOSED, _TRUE), (OUTCOME, outcome_header(ending))


def answer_to_head(shown: Shown) -> Answer:
    """The state of a stream, as headers."""
    kept = ((name, value) for name, value in shown.head.headers if name in (TTL, EXPIRES))
    headers = (("Content-Type", shown.content_type), (NEXT, shown.tail), _NO_STORE, *closing_headers(shown.ending))
    return Answer(200, (*headers, *(kept if shown.head.written else ())))


def answer_now(shown: Shown) -> Answer:
    """The position of the tail, for a client that wants none of the existing data."""
    headers = (("Content-Type", shown.content_type), (NEXT, shown.tail), (UP_TO_DATE, _TRUE), _NO_STORE)
    return Answer(200, (*headers, *closing_headers(shown.ending)), body_of(shown, b""))


def read_headers(
    shown: Shown, start: int, end: int, *, up_to_date: bool, ending: Ending | None, cursor: int | None, public: bool
) -> tuple[tuple[str, str], ...]:
    """
    The headers of an answer with the bytes from `start` to `end`.

    Args:
        shown: The stream.
        start: Byte position of the first one.
        end: Byte position after the last one.
        up_to_date: Nothing followed them when the answer was made.
        ending: How the stream had ended, if nothing will ever follow.
        cursor: For an answer to a long poll.
        public: Anybody may read it, so caches may keep it.
    """
    tag = f'"{shown.epoch}:{start}:{end}{":c" if ending is not None else ""}"'
    if not public:
        cache = "private, no-cache"
    else:
        # An empty answer must not be cached: data may arrive at any moment.
        cache = "public, max-age=60, stale-while-revalidate=300" if end > start else "no-cache"
    found = [("Content-Type", shown.content_type), (NEXT, offset_of(shown.epoch, end)), ("ETag", tag), ("Cache-Control", cache)]
    if cursor is not None:
        found.append((CURSOR, str(cursor)))
    if up_to_date:
        found.append((UP_TO_DATE, _TRUE))
    return (*found, *closing_headers(ending))


def nothing_yet(shown: Shown, b: int, *, ending: Ending | None, cursor: int) -> Answer:
    """204: a long poll found nothing, or the stream is closed."""
    headers = ((NEXT, offset_of(shown.epoch, b)), (UP_TO_DATE, _TRUE), (CURSOR, str(cursor)), _NO_STORE)
    return Answer(204, (*headers, *closing_headers(ending)))


def sse_headers(shown: Shown) -> tuple[tuple[str, str], ...]:
    """The headers of server-sent events."""
    found = (("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache, no-transform"), ("X-Accel-Buffering", "no"))
    return found if shown.is_text else (*found, ("Stream-SSE-Data-Encoding", "base64"))


class Events:
    """
    The server-sent events for one reader of a stream.

    A character split over two pieces is sent with the second; until then the position stays before it.

    Args:
        shown: The stream.
        b: Byte to start from.
    """

    __slots__ = ("_decoder", "_shown", "b", "held")

    def __init__(self, shown: Shown, b: int) -> None:
        self._shown = shown
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.b = b
        self.held = 0

    def data(self, data: bytes, b: int) -> bytes:
        """An event `data` with bytes that end at byte `b`; empty if they are only part of a character."""
        self.b = b
        if self._shown.is_json:
            return _event("data", body_of(self._shown, data).decode("utf-8", "replace"))
        if not self._shown.is_text:
            return _event("data", base64.b64encode(data).decode())
        text = self._decoder.decode(data)
        self.held = len(self._decoder.getstate()[0])
        return _event("data", text) if text else b""

    def rest(self) -> bytes:
        """The rest of a character that the end of the stream cut off."""
        self.held = 0
        text = self._decoder.decode(b"", True)
        return _event("data", text) if text else b""

    def control(self, *, up_to_date: bool, ending: Ending | None, cursor: int) -> bytes:
        """The event `control` that gives the reader's position."""
        told: dict[str, Any] = {"streamNextOffset": offset_of(self._shown.epoch, self.b - self.held)}
        if ending is None:
            told["streamCursor"] = str(cursor)
        if up_to_date:
            told["upToDate"] = True
        if ending is not None:
            told |= {"upToDate": True, "streamClosed": True, "streamOutcome": outcome_header(ending)}
        return _event("control", to_json(told))


def _event(name: str, data: str) -> bytes:
    # A space goes only before a line that begins with one, because readers strip one. The protocol's suite wants none elsewhere.
    lines = "\n".join(f"data:{' ' if line.startswith(' ') else ''}{line}" for line in _LINE_END.split(data))
    return f"event: {name}\n{lines}\n\n".encode("utf-8", "replace")
