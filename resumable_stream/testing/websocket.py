"""
WebSockets for tests: the server's side of a conversation, and a strict reader of what a client sends.

`FlakyServer(websocket=…)` hands a `ServerSocket` to a function, or plays a list of steps with it. `ScriptedClient` has no server:
there a `Reply(status=101)` lists what the client reads, and `Expect` between these bytes says what it must have written by then.

A client that breaks RFC 6455 is an `AssertionError`: no server should have to forgive it.
"""

from __future__ import annotations

import json
import time
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from ..framing.websocket import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, accept_for, apply_mask, encode, may_be_sent
from .faults import Close, Cut, Fault, OneByteWrites

if TYPE_CHECKING:
    from .server import RecordedRequest

__all__ = [
    "ClientSide",
    "Expect",
    "Message",
    "ServerSocket",
    "Step",
    "close_frame",
    "handler_of",
    "message_frames",
    "upgrade_headers",
]

Message: TypeAlias = str | bytes | Mapping[str, Any]
"""A text message, a binary message, or a JSON object to send as text."""


def message_frames(*messages: Message) -> bytes:
    """
    Encode messages as a server sends them: one frame each, not masked.

    Args:
        messages: A `str` is a text message, `bytes` are a binary message, a mapping is sent as JSON text.

    >>> message_frames("Hi", {"n": 1})
    b'\\x81\\x02Hi\\x81\\x08{"n": 1}'
    """
    return b"".join(encode(*_payload(message)) for message in messages)


def close_frame(code: int | None = 1000, reason: str = "") -> bytes:
    """
    Encode a close frame as a server sends it.

    Args:
        code: Its code; `None` for a frame without one.
        reason: At most 123 bytes of UTF-8.

    >>> close_frame(1001, "bye")
    b'\\x88\\x05\\x03\\xe9bye'
    """
    return encode(CLOSE, b"" if code is None else code.to_bytes(2, "big") + reason.encode())


@dataclass(frozen=True, slots=True)
class Expect:
    """
    A step of a conversation: what the client has to say next.

    Attributes:
        message: The message itself; a mapping is compared with the JSON in it. Or a function that gets the message (`str` or
            `bytes`) and returns whether it is right. `None`: any message.
    """

    message: Message | Callable[[str | bytes], object] | None = None

    def check(self, said: str | bytes) -> None:
        """
        Compare a message of the client's.

        Raises:
            AssertionError: It is another one.
        """
        wanted = self.message
        if wanted is None:
            return
        if isinstance(wanted, str | bytes):
            right = said == wanted
        elif isinstance(wanted, Mapping):
            try:
                right = json.loads(said) == wanted
            except ValueError:
                right = False
        else:
            right = bool(wanted(said))
        if not right:
            raise AssertionError(f"expected the client to say {wanted!r}, it said {said!r}")


class ClientSide:
    """
    What a client has sent over one WebSocket. Shared by the real server and the scripted client.

    Attributes:
        received: Every message, oldest first: `str` for text, `bytes` for binary.
        pings, pongs: Payloads of its pings and pongs.
        close_code: Code of its close frame; 1005 if it had none, `None` if there was no close frame.
        close_reason: The reason in it.
    """

    def __init__(self) -> None:
        self.received: list[str | bytes] = []
        self.pings: list[bytes] = []
        self.pongs: list[bytes] = []
        self.close_code: int | None = None
        self.close_reason = ""
        self._unread: deque[str | bytes] = deque()
        self._held = bytearray()
        self._opcode = CONTINUATION
        self._fragments = bytearray()

    def _hear(self, data: bytes) -> list[tuple[int, bytes]]:
        """
        Read what the client wrote.

        Returns:
            Its control frames: opcode and payload.

        Raises:
            AssertionError: It is not what RFC 6455 allows a client to send.
        """
        controls = []
        self._held += data
        while (found := self._next_frame()) is not None:
            opcode, payload, final = found
            assert self.close_code is None, "the client sent a frame after its close frame"
            if opcode == PING:
                self.pings.append(payload)
            elif opcode == PONG:
                self.pongs.append(payload)
            elif opcode == CLOSE:
                assert len(payload) != 1, "the client sent a close frame with half a code"
                self.close_code = int.from_bytes(payload[:2], "big") if payload else 1005
                assert not payload or may_be_sent(self.close_code), (
                    f"the client closed with {self.close_code}, which is not allowed"
                )
                self.close_reason = _decoded(payload[2:])
            else:
                self._take(opcode, payload, final=final)
                continue
            controls.append((opcode, payload))
        return controls

    def _next_frame(self) -> tuple[int, bytes, bool] | None:
        data = self._held
        if len(data) < 2:
            return None
        first, length = data[0], data[1] & 0x7F
        opcode, final = first & 0xF, first >= 0x80
        assert data[1] & 0x80, "the client sent a frame without a mask"
        assert not first & 0x70, "the client set reserved bits"
        assert opcode in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG), f"the client sent a frame with opcode {opcode}"
        assert opcode < CLOSE or (final and length < 126), "the client sent a control frame that is fragmented or too long"
        start = 2 if length < 126 else 4 if length == 126 else 10
        if len(data) < start + 4:
            return None
        if length >= 126:
            size = length
            length = int.from_bytes(data[2:start], "big")
            assert length >= (126 if size == 126 else 65536), "the client wrote a length in more bytes than it needs"
        end = start + 4 + length
        if len(data) < end:
            return None
        payload = apply_mask(bytes(data[start + 4 : end]), bytes(data[start : start + 4]))
        del data[:end]
        return opcode, payload, final

    def _take(self, opcode: int, payload: bytes, *, final: bool) -> None:
        inside = self._opcode != CONTINUATION
        assert (opcode == CONTINUATION) is inside, "the client mixed up the fragments of its messages"
        self._opcode = self._opcode or opcode
        self._fragments += payload
        if final:
            whole = bytes(self._fragments)
            message = whole if self._opcode == BINARY else _decoded(whole)
            self._opcode, self._fragments = CONTINUATION, bytearray()
            self.received.append(message)
            self._unread.append(message)


class _CutOff(ConnectionAbortedError):
    """The schedule has cut this WebSocket: nothing more can be sent."""


class ServerSocket(ClientSide):
    """
    The server's side of one WebSocket of a `FlakyServer`, for the function that serves it.

    All methods block, and are called by that function only; a test reads the attributes. A method raises `ConnectionError` once
    the client has left or the schedule has cut the connection: let it pass, the server expects it.
    Pings of the client are answered while a method waits for it. When the function returns, the server closes with 1000.

    Attributes:
        request: The request that asked for it.
        number: 0-based number among the WebSockets of the server.
        received: Every message of the client so far, oldest first: `str` for text, `bytes` for binary.
        pings, pongs: Payloads of the client's pings and pongs so far.
        close_code: Code of the client's close frame; 1005 if it had none, `None` if there was no close frame.
        close_reason: The reason in it.
    """

    def __init__(self, connection: Any, request: RecordedRequest, *, number: int, closing: Callable[[], bool]) -> None:
        super().__init__()
        self.request = request
        self.number = number
        self._connection = connection
        self._server_closing = closing
        self._faults: Sequence[Fault] = ()
        self._fault: Cut | Close | None = None
        self._one_byte = False
        self._sent_bytes = self._sent_messages = 0
        self._said_goodbye = False
        self._cut_off = False

    # --- sending

    def send(self, *messages: Message) -> None:
        """
        Send messages, all in one write.

        Args:
            messages: A `str` is a text message, `bytes` are a binary message, a mapping is sent as JSON text.
        """
        for message in messages:
            self._put(encode(*_payload(message)), message=True)
        self._connection.flush()

    def send_frame(self, opcode: int, payload: bytes = b"", *, final: bool = True) -> None:
        """
        Send one frame of any kind: a fragment, a ping, a pong.

        Args:
            opcode: 0 continuation, 1 text, 2 binary, 8 close, 9 ping, 10 pong.
            final: False: more fragments of this message follow.
        """
        self._put(encode(opcode, payload, final=final), message=final and opcode < CLOSE)
        self._connection.flush()

    def ping(self, payload: bytes = b"") -> None:
        """Send a ping. The client's answer is in `pongs`, once a method has waited for it."""
        self.send_frame(PING, payload)

    def write(self, data: bytes) -> None:
        """Send bytes as they are: broken frames, half a frame, anything. They count as bytes, not as a message."""
        self._put(data)
        self._connection.flush()

    def close(self, code: int | None = 1000, reason: str = "") -> None:
        """Send a close frame, if none was sent yet. `code=None`: one without a code."""
        if not self._said_goodbye:
            self._said_goodbye = True
            self._put(close_frame(code, reason))
            self._connection.flush()

    def cut(self, how: Literal["rst", "fin"] = "rst") -> None:
        """
        End the connection without a close frame.

        Args:
            how: `"rst"`: it is reset. `"fin"`: it is closed.

        Raises:
            ConnectionError: Always: there is nothing left to do.
        """
        self._fault = Cut(after_bytes=self._sent_bytes, after_events=None, how=how)
        self._end_early()

    # --- listening

    def receive(self, timeout: float = 10.0) -> str | bytes:
        """
        Wait for the client's next message.

        Args:
            timeout: Seconds. 10: far more than a client in the same process needs.

        Raises:
            AssertionError: The client did not say anything in that time, or it broke RFC 6455.
            ConnectionError: The client left.
        """
        deadline = time.monotonic() + timeout
        while not self._unread:
            if not self._read(deadline):
                raise AssertionError(f"the client said nothing for {timeout:g} s")
        return self._unread.popleft()

    def receive_json(self, timeout: float = 10.0) -> Any:
        """`receive()`, parsed as JSON."""
        return json.loads(self.receive(timeout))

    def expect(self, message: Message | Callable[[str | bytes], object] | None = None, timeout: float = 10.0) -> str | bytes:
        """
        Wait for the client's next message, and compare it.

        Args:
            message: See `Expect`.
            timeout: Seconds.

        Raises:
            AssertionError: The client said something else, or nothing.
            ConnectionError: The client left.
        """
        said = self.receive(timeout)
        Expect(message).check(said)
        return said

    def wait(self, seconds: float | None = None) -> None:
        """
        Wait, and record what the client says.

        Args:
            seconds: How long; `None`: until the client leaves.

        Raises:
            ConnectionError: The client left.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while self._read(deadline):
            pass

    # --- for the server

    def _serve(self, handler: Callable[[ServerSocket], object], errors: list[BaseException]) -> None:
        """Serve the connection to its end; what the function raises is added to `errors`."""
        self._fault = next((fault for fault in self._faults if isinstance(fault, Cut | Close)), None)
        self._one_byte = any(isinstance(fault, OneByteWrites) for fault in self._faults)
        try:
            try:
                if self._fault is not None and 0 in (self._fault.after_bytes, self._fault.after_events):
                    self._end_early()
                handler(self)
                if self._fault is not None:
                    self._end_early()
                self.close()
                self._await_goodbye()
            finally:
                self._drain()
        except OSError:
            pass  # the client left, or the connection was cut
        except BaseException as error:  # noqa: BLE001  whatever it is, the test has to learn of it
            errors.append(error)
            self._connection.reset(self._server_closing)

    def _drain(self) -> None:
        """Record what the client sent and nobody has read, as far as it has arrived."""
        try:
            while data := self._connection.read_some(0.0):
                self._hear(data)
        except OSError:
            pass  # nothing more

    def _await_goodbye(self) -> None:
        while self.close_code is None:
            self._read(None)

    def _read(self, deadline: float | None) -> bool:
        """Read once. Returns: whether something came before the deadline."""
        if self.close_code is not None:
            raise ConnectionAbortedError(f"the client closed with {self.close_code}")
        left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
        if left == 0.0:
            return False
        try:
            data = self._connection.read_some(left)
        except TimeoutError:
            return False
        if not data:
            raise ConnectionAbortedError("the client left")
        for opcode, payload in self._hear(data):
            if opcode == PING:
                self.send_frame(PONG, payload)
            elif opcode == CLOSE and not self._said_goodbye:
                self._said_goodbye = True
                self.send_frame(CLOSE, payload[:2])
        return True

    def _put(self, data: bytes, *, message: bool = False) -> None:
        if self._cut_off:
            raise _CutOff("this WebSocket was cut")
        fault = self._fault
        if fault is not None and fault.after_bytes is not None:
            left = fault.after_bytes - self._sent_bytes
            if len(data) >= left:
                # A close frame cannot stand inside another frame.
                self._write(data[:left] if isinstance(fault, Cut) or len(data) == left else b"")
                self._end_early()
        self._write(data)
        self._sent_bytes += len(data)
        self._sent_messages += message
        if fault is not None and message and self._sent_messages == fault.after_events:
            self._end_early()

    def _write(self, data: bytes) -> None:
        if not self._one_byte:
            self._connection.write(data)
            return
        for byte in data:
            self._connection.write(bytes((byte,)))
            self._connection.flush()

    def _end_early(self) -> None:
        fault, self._fault = self._fault, None
        self._cut_off = True
        self._connection.flush()
        match fault:
            case Close(code=code, reason=reason):
                if not self._said_goodbye:
                    self._said_goodbye = True
                    self._connection.write(close_frame(code, reason))
                    self._connection.flush()
                self._await_goodbye()
            case Cut(how="rst"):
                self._connection.reset(self._server_closing)
            case Cut(how="silence"):
                self._connection.wait(None)
        raise _CutOff("this WebSocket was cut")


Step: TypeAlias = Message | Expect | Callable[[ServerSocket], object]
"""Of a conversation: a message to send, one to wait for, or a function that does something with the socket."""


def handler_of(websocket: Callable[[ServerSocket], object] | Sequence[Step]) -> Callable[[ServerSocket], object]:
    """
    The function that serves a WebSocket: as given, or one that plays a list of steps.

    Raises:
        TypeError: A step is none.
    """
    if callable(websocket):
        return websocket
    if isinstance(websocket, str | bytes):
        raise TypeError(f"websocket is a function or a list of steps, got {type(websocket).__name__}")
    steps = list(websocket)
    for step in steps:
        if not (isinstance(step, str | bytes | Mapping | Expect) or callable(step)):
            raise TypeError(f"a step is a message (str, bytes, mapping), an Expect or a function, got {type(step).__name__}")

    def play(socket: ServerSocket) -> None:
        for step in steps:
            if isinstance(step, Expect):
                socket.expect(step.message)
            elif isinstance(step, str | bytes | Mapping):
                socket.send(step)
            else:
                step(socket)

    return play


_VERSION: Final = "13"


def upgrade_headers(headers: Mapping[str, str]) -> dict[str, str] | None:
    """
    The headers that accept a request for a WebSocket; `None` if it is not a valid one.

    Args:
        headers: The request's, names in lower case.
    """
    key = headers.get("sec-websocket-key", "")
    try:
        valid = len(b64decode(key, validate=True)) == 16
    except ValueError:
        valid = False
    asked = "upgrade" in headers.get("connection", "").lower() and headers.get("upgrade", "").lower() == "websocket"
    if not (valid and asked and headers.get("sec-websocket-version") == _VERSION):
        return None
    return {"upgrade": "websocket", "connection": "Upgrade", "sec-websocket-accept": accept_for(key)}


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise AssertionError(f"the client sent text that is not UTF-8: {error}") from error


def _payload(message: Message) -> tuple[int, bytes]:
    if isinstance(message, bytes):
        return BINARY, message
    return TEXT, (message if isinstance(message, str) else json.dumps(dict(message), ensure_ascii=False)).encode()
