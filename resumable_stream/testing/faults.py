"""
What can go wrong with one response: the faults as values, and the effect of each on the planned response.

Nothing here touches a socket. `FlakyServer` plans a complete `Answer`, has it disturbed, and then only sends it. The faults of
one response are a list, applied in order, each to the result of the earlier ones: `[Fault.duplicate(after_events=3),
Fault.cut(after_bytes=500)]` includes the repeated event in the 500 bytes.

Positions are counted in *this* response, not in the log: `after_events=3` means after the third event sent here, so a schedule
`[Fault.cut(after_events=3)] * 4` advances a resuming client by three events per connection. An event is one frame of the log: a
block with an id and no data counts, a heartbeat added by another fault does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

__all__ = ["Fault", "How"]

How = Literal["rst", "fin", "clean", "clean_inside", "silence"]
"""The ways to cut a body: see `Fault.cut`."""


class Fault:
    """
    One thing that goes wrong with one response; made by the class methods.

    The values are frozen and hashable, so the same one can occur in a schedule many times, and name a test case.

    >>> Fault.cut(after_events=2, how="fin")
    Cut(after_bytes=None, after_events=2, how='fin')
    """

    __slots__ = ()

    @classmethod
    def cut(cls, *, after_bytes: int | None = None, after_events: int | None = None, how: How = "rst") -> Fault:
        """
        End the body early. A shorter body is cut at its end, so the fault always happens.

        Args:
            after_bytes: Body bytes that arrive before the cut; the cut may fall inside an event or a character.
            after_events: Complete events that arrive before the cut. Give exactly one of the two.
            how: `"rst"`: the connection is reset, as by a crashed process or a NAT table that forgot it.
                `"fin"`: the connection is closed before the body is complete, if necessary in the middle of an HTTP chunk.
                `"clean"`: the body ends properly in terms of HTTP (zero chunk, matching length), wherever that is.
                `"clean_inside"`: the same, but always inside an event: if the cut falls between two events, the first half of
                the next one is sent as well.
                `"silence"`: nothing more arrives; the connection stays open until the client leaves or the server closes.
                A WebSocket knows only `"rst"`, `"fin"` and `"silence"`; see `close()`.

        Raises:
            ValueError: Not exactly one position, a negative one, or an unknown `how`.
        """
        return Cut(after_bytes=after_bytes, after_events=after_events, how=how)

    @classmethod
    def close(
        cls, code: int | None = 1001, reason: str = "", *, after_bytes: int | None = None, after_events: int | None = None
    ) -> Fault:
        """
        Close a WebSocket early, with a close frame. If less is sent than asked for, it is closed at its end.

        Args:
            code: Code of the close frame; `None`: a frame without a code.
            reason: Its reason.
            after_bytes: Bytes of frames that arrive before it. A frame that does not fit is left out, because a close frame
                cannot stand inside another.
            after_events: Whole messages that arrive before it. Exactly one of the two is given.

        Raises:
            ValueError: Not exactly one position, or a negative one.
        """
        return Close(code=code, reason=reason, after_bytes=after_bytes, after_events=after_events)

    @classmethod
    def no_answer(cls, *, how: Literal["rst", "fin", "silence"] = "fin") -> Fault:
        """Read the request but send no answer, not even a status line: the client cannot know whether it was accepted."""
        return NoAnswer(how=how)

    @classmethod
    def delay(cls, seconds: float) -> Fault:
        """Wait this many seconds between the request and the status line."""
        return Delay(seconds=seconds)

    @classmethod
    def heartbeats(
        cls, *, after_events: int = 0, count: int | None = None, interval: float = 0.01, frame: bytes = b": heartbeat\n\n"
    ) -> Fault:
        """
        Send heartbeats between two events.

        Args:
            after_events: Events before them.
            count: How many; then the events continue. `None`: only heartbeats from here on, until the client leaves.
            interval: Seconds before each heartbeat. 0.01 keeps tests short; real servers use 5 to 60.
            frame: The bytes of a heartbeat. The default is an SSE comment; for NDJSON use `b"\\n"`.
        """
        return Heartbeats(after_events=after_events, count=count, interval=interval, frame=frame)

    @classmethod
    def duplicate(cls, *, after_events: int, count: int = 1) -> Fault:
        """After the given number of events, send the last `count` of them again, in order."""
        return Duplicate(after_events=after_events, count=count)

    @classmethod
    def seam(cls, *, after_events: int, overlap: int) -> Fault:
        """
        Join a running stream: replay the first events, then continue live with the last of them sent again.

        Servers that subscribe before they read their log do this to every late reader. The repeated events are identical, in the
        same order, with the same ids. Unlike a repeat after a reconnect, a seam can occur in any answer, including the first. On
        the wire it is `duplicate`; the name says which promise a test is about.

        Args:
            after_events: Events in the replay.
            overlap: How many of the last of them the live part repeats.
        """
        return Duplicate(after_events=after_events, count=overlap)

    @classmethod
    def insert(cls, *frames: bytes, after_events: int) -> Fault:
        """
        Send frames that are not in the log: an error object in the middle, or content after the event that settled the end.

        Args:
            frames: Raw, one event each, with their line ends.
            after_events: Events before them.
        """
        return Insert(after_events=after_events, frames=frames)

    @classmethod
    def no_blank_line(cls) -> Fault:
        """End the body cleanly, as planned, but leave out the last line end: in SSE the blank line that completes an event."""
        return NoBlankLine()

    @classmethod
    def hole(cls, *, after_events: int, count: int = 1) -> Fault:
        """Leave out `count` events after the given number of events."""
        return Hole(after_events=after_events, count=count)

    @classmethod
    def reorder(cls, *, after_events: int, count: int = 2) -> Fault:
        """Send `count` events after the given number of events in reverse order."""
        return Reorder(after_events=after_events, count=count)

    @classmethod
    def status(
        cls, code: int, *, retry_after: float | str | None = None, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Fault:
        """
        Answer with this status instead of the stream.

        Args:
            code: 204, 401, 404, 409, 410, 429, 500, 503 …
            retry_after: Value of `Retry-After`: seconds, or an HTTP date as text. `None`: no such header.
            body: The error document; 204 and 304 have none.
            headers: Additional headers; the body's `content-type` is `application/json` unless set here.
        """
        return Status(code=code, retry_after=retry_after, body=body, headers=dict(headers or {}))

    @classmethod
    def content_type(cls, value: str, *, body: bytes | None = None) -> Fault:
        """
        Answer 200 with another content type, as a login page or a captive portal does.

        Args:
            value: The header's value.
            body: Sent instead of the events; `None`: the events, with the wrong type.
        """
        return ContentType(value=value, body=body)

    @classmethod
    def redirect(cls, url: str, *, status: int = 307) -> Fault:
        """
        Answer with a redirect; the request that follows it takes the next entry of the schedule.

        Args:
            url: Value of `Location`: a path stays on this origin, the `url` of a second `FlakyServer` is another origin.
            status: 301, 302, 303, 307 or 308. 307 keeps the method.
        """
        return Redirect(url=url, code=status)

    @classmethod
    def one_byte_writes(cls) -> Fault:
        """Send every byte of the body in its own HTTP chunk and write."""
        return OneByteWrites()

    @classmethod
    def endless_line(cls, *, after_events: int = 0, limit_bytes: int | None = None) -> Fault:
        """
        Start a `data:` line that does not end.

        Args:
            after_events: Events before it.
            limit_bytes: Bytes after which the body ends cleanly anyway; `None`: when the client leaves.
        """
        return EndlessLine(after_events=after_events, limit_bytes=limit_bytes)


def _not_negative(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")


# The closed set of `Fault`. No field may share a name with one of its class methods:
# dataclasses would use the inherited method as the field's default.


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut(Fault):
    after_bytes: int | None
    after_events: int | None
    how: How

    def __post_init__(self) -> None:
        if (self.after_bytes is None) == (self.after_events is None):
            raise ValueError("a cut needs exactly one of after_bytes and after_events")
        if self.how not in get_args(How):
            raise ValueError(f"how must be one of {', '.join(get_args(How))}, got {self.how!r}")
        _not_negative(after_bytes=self.after_bytes, after_events=self.after_events)


@dataclass(frozen=True, slots=True, kw_only=True)
class Close(Fault):
    code: int | None
    reason: str
    after_bytes: int | None
    after_events: int | None

    def __post_init__(self) -> None:
        if (self.after_bytes is None) == (self.after_events is None):
            raise ValueError("a close needs exactly one of after_bytes and after_events")
        _not_negative(after_bytes=self.after_bytes, after_events=self.after_events)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAnswer(Fault):
    how: Literal["rst", "fin", "silence"]

    def __post_init__(self) -> None:
        if self.how not in ("rst", "fin", "silence"):
            raise ValueError(f"how must be one of rst, fin, silence, got {self.how!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay(Fault):
    seconds: float

    def __post_init__(self) -> None:
        _not_negative(seconds=self.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeats(Fault):
    after_events: int
    count: int | None
    interval: float
    frame: bytes

    def __post_init__(self) -> None:
        _not_negative(after_events=self.after_events, count=self.count, interval=self.interval)
        if not self.frame:
            raise ValueError("a heartbeat needs at least one byte")


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate(Fault):
    after_events: int
    count: int

    def __post_init__(self) -> None:
        _not_negative(after_events=self.after_events, count=self.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Insert(Fault):
    after_events: int
    frames: tuple[bytes, ...]

    def __post_init__(self) -> None:
        _not_negative(after_events=self.after_events)
        if not self.frames or not all(isinstance(frame, bytes) for frame in self.frames):
            raise ValueError(f"insert takes at least one frame, as bytes, got {self.frames!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NoBlankLine(Fault):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Hole(Fault):
    after_events: int
    count: int

    def __post_init__(self) -> None:
        _not_negative(after_events=self.after_events, count=self.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reorder(Fault):
    after_events: int
    count: int

    def __post_init__(self) -> None:
        _not_negative(after_events=self.after_events, count=self.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status(Fault):
    code: int
    retry_after: float | str | None
    body: bytes
    headers: Mapping[str, str] = field(hash=False)

    def __post_init__(self) -> None:
        if not 200 <= self.code <= 599:
            raise ValueError(f"a final status is between 200 and 599, got {self.code}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentType(Fault):
    value: str
    body: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirect(Fault):
    url: str
    code: int

    def __post_init__(self) -> None:
        if self.code not in (301, 302, 303, 307, 308):
            raise ValueError(f"a redirect has status 301, 302, 303, 307 or 308, got {self.code}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OneByteWrites(Fault):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class EndlessLine(Fault):
    after_events: int
    limit_bytes: int | None

    def __post_init__(self) -> None:
        _not_negative(after_events=self.after_events, limit_bytes=self.limit_bytes)


Ending: TypeAlias = Literal["clean", "hold", "rst", "fin", "silence", "heartbeats", "endless"]


class HeartbeatPiece(bytes):
    """A heartbeat among the pieces of a body: it does not count as an event, and `wait` seconds precede it."""

    wait: float = 0.0


@dataclass(slots=True, kw_only=True)
class Answer:
    """
    A planned response.

    Attributes:
        code: Status.
        headers: As sent, except those that frame the body.
        pieces: The body, one event per piece if there are events.
        transfer: How the end of the body is marked: chunked, by `Content-Length`, or by closing the connection.
        ending: What happens after the last piece.
        position: Index of the log's frame after the pieces, for `ending="hold"`.
        answered: False: no status line is sent, and `ending` follows at once.
        announced: Value of `Content-Length`; `None`: the size of the pieces.
        missing: Bytes cut off the last piece, so that its HTTP chunk announces more than it holds.
        delay: Seconds before the status line.
        one_byte: Send single bytes.
        heartbeat: Sent by `ending="heartbeats"`.
        limit_bytes: Where `ending="endless"` ends anyway; `None`: nowhere.
    """

    code: int
    headers: dict[str, str]
    pieces: list[bytes]
    transfer: Literal["chunked", "length", "close"]
    ending: Ending = "clean"
    position: int = 0
    answered: bool = True
    announced: int | None = None
    missing: int = 0
    delay: float = 0.0
    one_byte: bool = False
    heartbeat: HeartbeatPiece | None = None
    limit_bytes: int | None = None

    def behind(self, events: int) -> int:
        """Index of the piece after this many events; the number of pieces if there are fewer."""
        for index, piece in enumerate(self.pieces):
            if events <= 0:
                return index
            if not isinstance(piece, HeartbeatPiece):
                events -= 1
        return len(self.pieces)


def disturb(answer: Answer, faults: Iterable[Fault]) -> None:
    """Apply faults to a planned answer, in order."""
    for fault in faults:
        match fault:
            case Cut():
                _cut(answer, fault)
            case NoAnswer(how=how):
                answer.answered, answer.ending = False, how
            case Delay(seconds=seconds):
                answer.delay += seconds
            case Heartbeats():
                _heartbeats(answer, fault)
            case Duplicate(after_events=events, count=count):
                at = answer.behind(events)
                answer.pieces[at:at] = answer.pieces[max(0, at - count) : at]
            case Insert(after_events=events, frames=frames):
                at = answer.behind(events)
                answer.pieces[at:at] = frames
            case NoBlankLine():
                _drop_last_line_end(answer)
            case Hole(after_events=events, count=count):
                at = answer.behind(events)
                del answer.pieces[at : at + count]
            case Reorder(after_events=events, count=count):
                at = answer.behind(events)
                answer.pieces[at : at + count] = reversed(answer.pieces[at : at + count])
            case Status(code=code, retry_after=retry_after, body=body, headers=headers):
                extra = {} if retry_after is None else {"retry-after": str(retry_after)}
                _replace(answer, code, {"content-type": "application/json", **headers, **extra}, body)
            case Redirect(url=url, code=code):
                _replace(answer, code, {"location": url}, b"")
            case ContentType(value=value, body=None):
                answer.headers["content-type"] = value
            case ContentType(value=value, body=bytes(body)):
                _replace(answer, 200, {"content-type": value}, body)
            case OneByteWrites():
                answer.one_byte = True
            case Close():
                raise TypeError("Fault.close() is for a WebSocket: FlakyServer(websocket=…)")
            case EndlessLine(after_events=events, limit_bytes=limit):
                del answer.pieces[answer.behind(events) :]
                answer.ending, answer.limit_bytes, answer.transfer = "endless", limit, _unbounded(answer)
            case _:
                raise TypeError(f"not a Fault: {fault!r}")


def disturb_upgrade(answer: Answer, faults: Iterable[Fault]) -> list[Fault]:
    """
    Apply the faults of a handshake to its planned answer.

    Returns:
        Those that concern what follows it.

    Raises:
        TypeError: A fault needs a log of events, or a body.
    """
    later: list[Fault] = []
    for fault in faults:
        if isinstance(fault, Close | OneByteWrites) or (isinstance(fault, Cut) and fault.how in ("rst", "fin", "silence")):
            later.append(fault)
        elif isinstance(fault, NoAnswer | Delay | Status | Redirect) or (
            isinstance(fault, ContentType) and fault.body is not None
        ):
            disturb(answer, [fault])
        else:
            raise TypeError(f"a WebSocket has no log and no body, so this cannot happen to it: {fault!r}")
    return later


def _replace(answer: Answer, code: int, headers: dict[str, str], body: bytes) -> None:
    answer.code, answer.headers, answer.transfer, answer.ending = code, headers, "length", "clean"
    answer.pieces = [body] if body and code not in (204, 304) else []
    answer.announced, answer.missing = None, 0


def _drop_last_line_end(answer: Answer) -> None:
    if answer.pieces:
        last = answer.pieces[-1]
        answer.pieces[-1] = last.removesuffix(b"\r\n") if last.endswith(b"\r\n") else last[: -1 if last[-1:] in b"\r\n" else None]


def _unbounded(answer: Answer) -> Literal["chunked", "close"]:
    # A body without end has no length to announce.
    return "close" if answer.transfer == "close" else "chunked"


def _heartbeats(answer: Answer, fault: Heartbeats) -> None:
    beat = HeartbeatPiece(fault.frame)
    beat.wait = fault.interval
    at = answer.behind(fault.after_events)
    if fault.count is None:
        del answer.pieces[at:]
        answer.ending, answer.heartbeat, answer.transfer = "heartbeats", beat, _unbounded(answer)
    else:
        answer.pieces[at:at] = [beat] * fault.count


def _cut(answer: Answer, fault: Cut) -> None:
    """Shorten the pieces to what arrives, and choose the ending."""
    pieces, inside = answer.pieces, 0
    full = sum(map(len, pieces))
    if fault.after_bytes is None:
        at = answer.behind(fault.after_events or 0)
    else:
        at, inside = 0, fault.after_bytes
        while at < len(pieces) and inside >= len(pieces[at]):
            inside -= len(pieces[at])
            at += 1
    if at == len(pieces):
        inside = 0
    if fault.how == "clean_inside" and not inside:
        if at == len(pieces):
            # After the last event: the start of one that is not in the log.
            pieces.append(b"data: ")
        inside = max(1, len(pieces[at]) // 2)
    last = pieces[at : at + 1]
    del pieces[at:]
    answer.missing = 0
    if inside:
        pieces.append(last[0][:inside])
        answer.missing = len(last[0]) - inside
    if fault.how == "clean" or fault.how == "clean_inside":
        answer.ending, answer.announced, answer.missing = "clean", None, 0
    else:
        answer.ending = fault.how
        # The head promised the whole body, which lets the client notice. One byte more if the cut falls after the last one:
        # otherwise the body would look complete.
        answer.announced = full + (full == sum(map(len, pieces)))
