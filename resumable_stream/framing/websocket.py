"""
WebSocket messages, from bytes: the client's side of RFC 6455, and the handshake that comes before them.

A chunk is read frame by frame:

    one whole text frame, nothing else  ──▶ `feed`: a live stream
    whole text frames in a row          ──▶ the loop of `_read_frames`: a replay
    every other whole frame             ──▶ `_read_frame`: fragments, binary, control frames, errors
    half a frame                        ──▶ held, and not looked at again until the rest of its header or payload has arrived

What bounds memory:

- A message, in one frame or in many, has at most `event_bytes`. Its size is checked as soon as a header announces it.
- Fragments are joined as they come, so empty ones cost nothing.
- Half a frame is at most a message and its header. It is held in one buffer that grows in linear time.
- A ping that follows an unanswered ping takes its place (RFC 6455 section 5.5.3), so `outgoing` has one pong at most.

Where decoding stops, and with which error, does not depend on how the bytes were cut into chunks.

No extension is read: a client that offers none gets none. The randomness of keys and masks is an argument.
"""

from __future__ import annotations

import enum
import hashlib
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from .._errors import EventTooLarge, ProtocolViolation, ResumableStreamError
from .._events import Chunk, StreamEvent
from .._settings import Limits

__all__ = [
    # frames
    "BINARY",
    "CLOSE",
    "CONTINUATION",
    "PING",
    "PONG",
    "TEXT",
    "WebSocketDecoder",
    "apply_mask",
    "encode",
    # close codes
    "CLOSE_CODES",
    "CloseMeaning",
    "closed_with",
    "may_be_sent",
    "meaning_of",
    # handshake
    "accept_for",
    "key_from",
    "refusal",
    "request_headers",
]

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

_FINAL: Final = 0x80
_RESERVED: Final = 0x70
_MASKED: Final = 0x80
# Section 5.5: the payload of a control frame. Above it, the length of other frames takes two or eight bytes more.
_SHORT: Final = 125
_WHOLE_TEXT: Final = _FINAL | TEXT
_NEVER: Final = 256  # not a byte
_DEFAULT = Limits()

_new = StreamEvent.__new__  # see `sse.py`; a test compares it with `__init__`


class WebSocketDecoder:
    """
    Decode what a server sends after the handshake, fed in chunks of any size.

    A text message becomes `StreamEvent("message", text)`, a binary message becomes one `Chunk`.

    Args:
        event_bytes: Limit for one message, in bytes, all its fragments together.
        new_mask: Returns four new random bytes, unpredictable for others (`os.urandom(4)`): a client masks what it sends, so
            that a page cannot make it write chosen bytes (RFC 6455 section 10.3).
        start: Bytes of all binary messages before this connection; `Chunk.sequence` continues from there.

    Attributes:
        outgoing: Encoded frames to send at once, oldest first: pongs, the answer to a close frame, and what `say()` and
            `close()` added. Whoever sends them empties the list or replaces it.
        code: Code of the server's close frame; 1005 if it had none; `None` until a close frame arrives.
        reason: Its reason; `""` if it had none. At most 123 bytes of UTF-8.
        partial: The connection is not closed properly, so an end here is a cut: no close frame has arrived, or it arrived inside
            a message. Stays true after an error.
        error: Why decoding stopped: `EventTooLarge`, or `ProtocolViolation` if the server broke RFC 6455; otherwise `None`.
            The close frame that reports it to the server is then in `outgoing`.
        closing: A close frame of ours is, or was, in `outgoing`. No other frame follows it there.
    """

    __slots__ = (
        "_event_bytes",
        "_held",
        "_hot",
        "_message",
        "_need",
        "_new_mask",
        "_opcode",
        "_over",
        "_pong",
        "_position",
        "_whole",
        "closing",
        "code",
        "error",
        "outgoing",
        "partial",
        "reason",
    )

    def __init__(self, *, new_mask: Callable[[], bytes], event_bytes: int = _DEFAULT.event_bytes, start: int = 0) -> None:
        self.outgoing: list[bytes] = []
        self.code: int | None = None
        self.reason = ""
        self.partial = True
        self.error: ResumableStreamError | None = None
        self.closing = False
        self._new_mask = new_mask
        self._event_bytes = event_bytes
        self._position = start
        # The first byte of a frame that may be read the quick ways. They check no limit: their longest frame must be within it.
        self._hot = self._whole = _WHOLE_TEXT if event_bytes >= 0xFFFF else _NEVER
        # Half a frame, and the size at which it is looked at again.
        self._held = bytearray()
        self._need = 0
        # The unfinished message: TEXT, BINARY, or CONTINUATION if there is none; and its fragments.
        self._opcode = CONTINUATION
        self._message = bytearray()
        self._over = False
        self._pong = b""

    def feed(self, data: bytes) -> list[StreamEvent | Chunk]:
        """
        Decode a chunk.

        Args:
            data: The next bytes of the connection, of any length.

        Returns:
            The messages that the chunk completed; none after a close frame or an error. Empty messages are messages too.
        """
        size = len(data)
        if size > 3 and data[0] == self._whole and not self._held:
            length = data[1]
            if length == size - 2 and length < 126:
                payload = data[2:]
            elif length == 126 and data[2] << 8 | data[3] == size - 4:
                payload = data[4:]
            else:
                return self._read_frames(data)
            try:
                text = payload.decode()
            except UnicodeDecodeError:
                return self._read_frames(data)
            event = _new(StreamEvent)
            event.event = "message"
            event.data = text
            event.id = ""
            event.retry = event.own_id = None
            event.offset = 0
            event.sequence = event._rare = None
            return [event]
        return self._read_frames(data)

    def _read_frames(self, data: bytes) -> list[StreamEvent | Chunk]:
        items: list[StreamEvent | Chunk] = []
        held = self._held
        if held:
            held += data
            if len(held) < self._need:
                return items
            data = bytes(held)
            held.clear()
        size = len(data)
        last = size - 1
        whole = self._whole
        at = 0
        try:
            while at < last:
                length = data[at + 1]
                if length < 126:
                    start = at + 2
                elif length == 126 and at + 3 < size:
                    length = data[at + 2] << 8 | data[at + 3]
                    start = at + 4
                else:
                    start = size + 1  # not for this loop
                end = start + length
                if end <= size and data[at] == whole:
                    event = _new(StreamEvent)
                    event.event = "message"
                    event.data = data[start:end].decode()
                    event.id = ""
                    event.retry = event.own_id = None
                    event.offset = 0
                    event.sequence = event._rare = None
                    items.append(event)
                    at = end
                    continue
                at = self._read_frame(data, at, items)
                whole = self._whole
        except UnicodeDecodeError as error:
            self._fail(1007, f"a text message is not UTF-8: {error.reason}")
        if at == last and not self._over:
            held += data[at:]
            self._need = 2
        return items

    def eof(self) -> list[StreamEvent | Chunk]:
        """
        End the connection. Nothing is proven by it: only a close frame ends a WebSocket (RFC 6455 section 7.1.5, code 1006).

        Returns:
            Nothing. Half a message is dropped.
        """
        self._stop()
        return []

    def say(self, message: str | bytes) -> bool:
        """
        Add a message to `outgoing`: a text message for `str`, a binary one for `bytes`.

        Returns:
            False if nothing was added, because a close frame of ours comes before it.

        Raises:
            UnicodeEncodeError: The text contains half a surrogate pair, which UTF-8 cannot express.
        """
        opcode, payload = (TEXT, message.encode()) if isinstance(message, str) else (BINARY, message)
        return self._send(opcode, payload)

    def close(self, code: int = 1000, reason: str = "") -> bool:
        """
        Add a close frame to `outgoing`. What the server sends before its own close frame is still read.

        Args:
            code: 1000: the connection is not needed any more.
            reason: Text for the server's log. Cut at 123 bytes of UTF-8, which is all that fits.

        Returns:
            False if nothing was added, because there was one already.
        """
        text = reason.encode("utf-8", "replace")[: _SHORT - 2].decode("utf-8", "ignore")
        return self._send(CLOSE, code.to_bytes(2, "big") + text.encode())

    def _read_frame(self, data: bytes, at: int, items: list[StreamEvent | Chunk]) -> int:
        """
        Read any frame.

        Args:
            data: Has at least two bytes after `at`.

        Returns:
            Where the next frame begins; the end of `data` if this one is incomplete (it is then held), or the last one.
        """
        size = len(data)
        if self._over:
            return size
        first, length = data[at], data[at + 1]
        opcode = first & 0xF
        if problem := self._problem(first, length):
            self._fail(1002, problem)
            return size
        start = at + 2
        if length > _SHORT:
            start += 2 if length == 126 else 8
            # A length that takes more bytes than it needs is read all the same: it is wrong, and harms nobody.
            length = int.from_bytes(data[at + 2 : start], "big")
        end = start + length
        if start <= size and opcode < CLOSE and len(self._message) + length > self._event_bytes:
            message = f"message of at least {len(self._message) + length} bytes, the limit is {self._event_bytes}"
            self._fail(1009, EventTooLarge(message, limit=self._event_bytes))
            return size
        if end > size or start > size:
            self._held += data[at:]
            self._need = max(start, end if start <= size else 0) - at
            return size
        payload = data[start:end]
        if opcode == CLOSE:
            self._read_close(payload)
            return size
        if opcode == PING:
            self._answer(payload)
        elif opcode != PONG:
            self._take(opcode, payload, items, final=first >= _FINAL)
        return end

    def _problem(self, first: int, length: int) -> str:
        """What is wrong with the first two bytes of a frame; `""` if nothing is."""
        opcode = first & 0xF
        if first & _RESERVED:
            return "a frame has reserved bits set, but no extension was agreed on"
        if length & _MASKED:
            return "a frame is masked, which only a client may do"
        if opcode >= CLOSE:
            if opcode > PONG:
                return f"unknown opcode {opcode}"
            if first < _FINAL:
                return "a control frame is fragmented"
            return "a control frame is longer than 125 bytes" if length > _SHORT else ""
        if opcode > BINARY:
            return f"unknown opcode {opcode}"
        if opcode == CONTINUATION:
            return "" if self._opcode else "a continuation frame continues nothing"
        return "a message begins inside another" if self._opcode else ""

    def _take(self, opcode: int, payload: bytes, items: list[StreamEvent | Chunk], *, final: bool) -> None:
        """
        A frame of a message.

        Raises:
            UnicodeDecodeError: The message is complete, and its text is not UTF-8.
        """
        if opcode:
            self._opcode = opcode
        if not final:
            self._message += payload
            self._whole = _NEVER
            return
        opcode, self._opcode = self._opcode, CONTINUATION
        self._whole = self._hot
        if self._message:
            self._message += payload
            payload, self._message = bytes(self._message), bytearray()
        if opcode == TEXT:
            items.append(StreamEvent("message", payload.decode()))
        else:
            items.append(Chunk(payload, self._position))
            self._position += len(payload)

    def _answer(self, payload: bytes) -> None:
        """Answer a ping. If the pong for an earlier one has not been sent yet, it is not needed any more."""
        if self.outgoing and self.outgoing[-1] is self._pong:
            self.outgoing.pop()
        if self._send(PONG, payload):
            self._pong = self.outgoing[-1]

    def _read_close(self, payload: bytes) -> None:
        code, reason = 1005, ""
        if payload:
            code = int.from_bytes(payload[:2], "big")
            if len(payload) == 1:
                self._fail(1002, "a close frame has half a code")
                return
            if not may_be_sent(code):
                self._fail(1002, f"a close frame has the code {code}, which may not be sent")
                return
            try:
                reason = payload[2:].decode()
            except UnicodeDecodeError as error:
                self._fail(1007, f"the reason in a close frame is not UTF-8: {error.reason}")
                return
        self.code, self.reason = code, reason
        self.partial = bool(self._opcode)
        self._send(CLOSE, payload[:2])
        self._stop()

    def _send(self, opcode: int, payload: bytes) -> bool:
        if self.closing:
            return False
        self.closing = opcode == CLOSE
        self.outgoing.append(encode(opcode, payload, self._new_mask()))
        return True

    def _fail(self, code: int, problem: str | ResumableStreamError) -> None:
        self.error = ProtocolViolation(f"broken WebSocket: {problem}") if isinstance(problem, str) else problem
        self._send(CLOSE, code.to_bytes(2, "big"))
        self._stop()

    def _stop(self) -> None:
        self._over = True
        self._whole = _NEVER
        self._held, self._message = bytearray(), bytearray()


def encode(opcode: int, payload: bytes, mask: bytes = b"", *, final: bool = True) -> bytes:
    """
    Encode a frame.

    Args:
        opcode: `TEXT`, `BINARY`, `CLOSE`, `PING`, `PONG`; `CONTINUATION` for all fragments of a message but the first.
        payload: Of a control frame at most 125 bytes.
        mask: Four random bytes, new for each frame, for what a client sends; `b""` for what a server sends.
        final: False: more fragments of this message follow.

    Raises:
        ValueError: The mask has another length, or the payload does not fit into a control frame.

    >>> encode(TEXT, b"Hello", bytes.fromhex("37fa213d")).hex(" ")
    '81 85 37 fa 21 3d 7f 9f 4d 51 58'

    Source: RFC 6455, sections 5.2 and 5.3; the example is in 5.7.
    """
    size = len(payload)
    first = _FINAL | opcode if final else opcode
    if size > _SHORT and opcode >= CLOSE:
        raise ValueError(f"a control frame has at most {_SHORT} bytes, got {size}")
    masked = _MASKED if mask else 0
    if size <= _SHORT:
        head = bytes((first, masked | size))
    elif size <= 0xFFFF:
        head = bytes((first, masked | 126, size >> 8, size & 0xFF))
    else:
        head = bytes((first, masked | 127)) + size.to_bytes(8, "big")
    return head + mask + apply_mask(payload, mask) if mask else head + payload


def apply_mask(payload: bytes, mask: bytes) -> bytes:
    """
    Mask a payload, or remove the mask: both are the same.

    Args:
        mask: Four bytes.

    Raises:
        ValueError: The mask has another length.

    Source: RFC 6455 section 5.3.
    """
    if len(mask) != 4:
        raise ValueError(f"a mask has 4 bytes, got {len(mask)}")
    # All bytes at once, as two large numbers: 4 ns for each byte.
    size = len(payload)
    pad = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(pad, "little")).to_bytes(size, "little")


# --- close codes


class CloseMeaning(enum.Enum):
    """What the end of a WebSocket means for the stream, if its protocol does not know better."""

    END = "end"
    """Closed on purpose. Whether the stream is complete is for the protocol to say."""
    CUT = "cut"
    """The connection ended, the stream did not: reconnect as after a lost connection."""
    BUSY = "busy"
    """The server cannot serve it now: a failed attempt, even after progress."""
    REFUSED = "refused"
    """The credentials are not accepted: once more with fresh ones, then it is an error."""
    REJECTED = "rejected"
    """The server does not accept what was sent, or cannot send what was asked for. It would happen again."""
    PRIVATE = "private"
    """Only the protocol knows. Libraries and applications use the same numbers for different things."""


CLOSE_CODES: Final[Mapping[int, tuple[str, CloseMeaning]]] = {
    1000: ("normal closure", CloseMeaning.END),
    1001: ("going away", CloseMeaning.CUT),
    1002: ("protocol error", CloseMeaning.REJECTED),
    1003: ("unsupported data", CloseMeaning.REJECTED),
    1005: ("no code", CloseMeaning.CUT),
    1006: ("no close frame", CloseMeaning.CUT),
    1007: ("invalid data", CloseMeaning.REJECTED),
    1008: ("policy violation", CloseMeaning.REFUSED),
    1009: ("message too big", CloseMeaning.REJECTED),
    1010: ("extension required", CloseMeaning.REJECTED),
    1011: ("internal error", CloseMeaning.CUT),
    1012: ("service restart", CloseMeaning.CUT),
    1013: ("try again later", CloseMeaning.BUSY),
    1014: ("bad gateway", CloseMeaning.CUT),
    3000: ("unauthorized", CloseMeaning.REFUSED),
    3003: ("forbidden", CloseMeaning.REFUSED),
}
"""
Name and meaning of each close code. 1005 and 1006 are never sent: they stand for a close frame without a code, and for none.

Source: RFC 6455 section 7.4.1, and the IANA registry of WebSocket close codes (November 2026).
"""


def meaning_of(code: int | None) -> CloseMeaning:
    """
    What a close code means; see `CLOSE_CODES`.

    Args:
        code: `WebSocketDecoder.code`; `None`: the connection ended without a close frame.

    Returns:
        `PRIVATE` for every other code that a server may send: those from 3000 to 4999.

    >>> meaning_of(None), meaning_of(1013), meaning_of(4003)
    (<CloseMeaning.CUT: 'cut'>, <CloseMeaning.BUSY: 'busy'>, <CloseMeaning.PRIVATE: 'private'>)
    """
    return CLOSE_CODES[1006 if code is None else code][1] if code is None or code in CLOSE_CODES else CloseMeaning.PRIVATE


def closed_with(code: int | None, reason: str = "") -> str:
    """
    Describe the end of a connection, for errors and notices.

    Args:
        code, reason: Those of the decoder. What is not printable in the server's reason is replaced.

    >>> closed_with(1011, "out of memory"), closed_with(4009), closed_with(None)
    ('closed with 1011: out of memory', 'closed with 4009', 'closed without a close frame')
    """
    if code is None or code == 1006:
        return "closed without a close frame"
    text = "".join(char if char.isprintable() else "\ufffd" for char in reason) or CLOSE_CODES.get(code, ("",))[0]
    return f"closed with {code}: {text}" if text else f"closed with {code}"


def may_be_sent(code: int) -> bool:
    """
    Whether a close frame may have this code: 1004 to 1006 and 1015 are never sent, others below 3000 must be defined first.

    Source: RFC 6455 section 7.4.
    """
    return 3000 <= code <= 4999 or (code in CLOSE_CODES and code not in (1005, 1006))


# --- handshake

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def key_from(random: bytes) -> str:
    """
    The `Sec-WebSocket-Key` of a connection.

    Args:
        random: 16 random bytes, new for each connection.

    Raises:
        ValueError: There are not 16 of them.
    """
    if len(random) != 16:
        raise ValueError(f"a key is made from 16 bytes, got {len(random)}")
    return b64encode(random).decode()


def accept_for(key: str) -> str:
    """
    What a server that speaks WebSocket answers to a key, as `Sec-WebSocket-Accept`.

    >>> accept_for("dGhlIHNhbXBsZSBub25jZQ==")
    's3pPLMBiTxaQ9kYGzzhZRbK+xOo='

    Source: RFC 6455 section 4.2.2; the example is in 1.3.
    """
    return b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()


def request_headers(key: str, *, subprotocols: Sequence[str] = ()) -> dict[str, str]:
    """
    The headers that ask for a WebSocket, for a GET over HTTP/1.1.

    Args:
        key: The result of `key_from()`.
        subprotocols: Names of the subprotocols to offer, the preferred first.
    """
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": key}
    if subprotocols:
        headers["Sec-WebSocket-Protocol"] = ", ".join(subprotocols)
    return headers


def refusal(status: int, headers: Mapping[str, str], *, key: str, subprotocols: Sequence[str] = ()) -> str:
    """
    Check the answer to a request for a WebSocket.

    Args:
        status: Its status.
        headers: Its headers, names in lower case.
        key: The key that was sent.
        subprotocols: The subprotocols that were offered.

    Returns:
        Why the connection must not be used; `""` if it may be.

    Source: RFC 6455 section 4.1, the client's requirements.
    """
    if status != 101:
        return f"the server did not upgrade: it answered {status}"
    if "websocket" not in _tokens(headers, "upgrade") or "upgrade" not in _tokens(headers, "connection"):
        return "the server upgraded to something that is not a WebSocket"
    if headers.get("sec-websocket-accept", "").strip() != accept_for(key):
        return "the server's Sec-WebSocket-Accept does not belong to our key: the answer may be another request's"
    if extensions := headers.get("sec-websocket-extensions", "").strip():
        return f"the server uses an extension that was not offered: {extensions[:80]!r}"
    subprotocol = headers.get("sec-websocket-protocol", "").strip()
    if subprotocol and subprotocol not in subprotocols:
        return f"the server chose a subprotocol that was not offered: {subprotocol[:80]!r}"
    return ""


def _tokens(headers: Mapping[str, str], name: str) -> list[str]:
    return [token.strip() for token in headers.get(name, "").lower().split(",")]
