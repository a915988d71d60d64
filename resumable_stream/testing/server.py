"""
`FlakyServer`: a real server on the loopback interface that fails on schedule.

HTTP/1.1 is written by hand here in order to break it: a library would refuse to send half a chunk.

One thread accepts, and one thread serves each connection. A thread only waits in socket calls, and `close()` shuts every socket
down, which wakes them all; so closing needs neither the client's cooperation nor timeouts. The normal path has no sleep: 500
connections with a cut each take well under a second. The server is sync and needs no event loop, so the same one serves sync,
asyncio and trio tests.

For each request, `_route` plans the undisturbed `Answer` (cursor, range, status), `disturb` applies the schedule's next entry,
and `_send` sends it.
"""

from __future__ import annotations

import http
import json
import os
import re
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, TypeAlias
from urllib.parse import parse_qsl, urlsplit

from .faults import Answer, Fault, HeartbeatPiece, disturb, disturb_upgrade
from .websocket import Expect, ServerSocket, Step, handler_of, upgrade_headers

__all__ = ["FlakyServer", "RecordedRequest", "Reply", "ServerEvent", "numbered"]

_CONTENT_TYPES = {
    "sse": "text/event-stream; charset=utf-8",
    "ndjson": "application/x-ndjson",
    "bytes": "application/octet-stream",
}
_LINE_END = re.compile(rb"\r\n|\n|\r")
# An event ends at an empty line; the three line ends may be mixed. `\r(?!\n)`: CRLF is one line end, not two.
_BLOCK = re.compile(rb".*?(?:(?:\r\n|\n|\r(?!\n)){2}|\Z)", re.DOTALL)
_LINE = re.compile(rb"[^\n]*\n|[^\n]+\Z")
_FLUSH_BYTES = 64 * 1024  # fewer system calls than one per event; the HTTP chunks stay one per event
_HEAD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerEvent:
    """
    One SSE block, as the server sends it.

    Attributes:
        id: The `id` field; `""` sends an empty one, which makes a client forget its cursor. `None`: no such field.
        event: The `event` field, or `None`.
        data: The payload, with one `data` line per line. `None`: no data, so a client delivers nothing
            (an id alone still moves its cursor).
        retry: Reconnection time in milliseconds, or `None`.
        comment: A comment line before it, or `None`.

    >>> ServerEvent(id="7", data="two\\nlines").encode()
    b'id: 7\\ndata: two\\ndata: lines\\n\\n'
    """

    id: str | None = None
    event: str | None = None
    data: str | None = None
    retry: int | None = None
    comment: str | None = None

    def encode(self) -> bytes:
        """The block on the wire, with LF line ends. For other line ends, give the server raw bytes."""
        lines = [] if self.comment is None else [f": {self.comment}"]
        for name, value in (("event", self.event), ("id", self.id), ("retry", self.retry)):
            if value is not None:
                lines.append(f"{name}: {value}")
        if self.data is not None:
            lines += [f"data: {line}" for line in re.split(r"\r\n|\n|\r", self.data)]
        return ("\n".join(lines) + "\n\n").encode()


def numbered(count: int, *, start: int = 1, data: str = "event {n}", event: str | None = None) -> list[ServerEvent]:
    """
    Make a log of events with the ids `start`, `start + 1` …

    Args:
        count: How many.
        start: First id.
        data: Payload; `{n}` becomes the number, other braces are unchanged.
        event: Event type of all of them, or `None`.

    >>> [item.data for item in numbered(2)]
    ['event 1', 'event 2']
    """
    return [ServerEvent(id=str(n), event=event, data=data.replace("{n}", str(n))) for n in range(start, start + count)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRequest:
    """
    One request as it arrived.

    Attributes:
        method: In upper case.
        url: The full URL.
        headers: Names in lower case; the values of a repeated name are joined with `", "`.
        body: The whole body, without chunked coding.
        time: `time.monotonic()` after it had arrived.
        connection: 0-based number of its TCP connection; for a `ScriptedClient`, of the request itself.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(hash=False)
    body: bytes = b""
    time: float = 0.0
    connection: int = 0

    @property
    def path(self) -> str:
        """The path, without the query."""
        return urlsplit(self.url).path

    @property
    def query(self) -> dict[str, str]:
        """The parameters of the query; for a repeated name, the last one."""
        return dict(parse_qsl(urlsplit(self.url).query, keep_blank_values=True))

    @property
    def last_event_id(self) -> str | None:
        """The `Last-Event-ID` header, or `None`."""
        return self.headers.get("last-event-id")

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """
    One complete answer: a step of a `ScriptedClient`, or the result of `FlakyServer(on_request=…)`.

    Attributes:
        status: The status code.
        headers: The headers. `None` is the content type of SSE for status 200, and no headers for any other status.
        body: Bytes, or for a `ScriptedClient` also a sequence of parts: chunks of bytes, exceptions to raise (or their
            neutral names, see `ScriptedClient`), and callables without arguments, called when the reader gets there
            (an async client awaits an awaitable result). With status 101, what a `ScriptedSocket` plays.
            For a `FlakyServer` only bytes.
    """

    status: int = 200
    headers: Mapping[str, str] | None = field(default=None, hash=False)
    body: bytes | Sequence[bytes | str | BaseException | Expect | Callable[[], object]] = ()

    def head(self) -> dict[str, str]:
        """The headers to send, in a new dict."""
        if self.headers is None:
            return {"content-type": _CONTENT_TYPES["sse"]} if self.status == 200 else {}
        return dict(self.headers)


Event: TypeAlias = ServerEvent | bytes | str | Mapping[str, Any]
Scheduled: TypeAlias = Fault | Sequence[Fault] | None
Transfer: TypeAlias = Literal["chunked", "length", "close"]


class FlakyServer:
    """
    A server with a log of events, which breaks its answers as scheduled and can be resumed.

    Use it in a `with` block (sync, also in async tests), or call `start()` and `close()`. Each stream request, on any TCP
    connection, takes the next entry of `schedule`; after the last one, answers are undisturbed. Every path serves the same log;
    `requests` shows what was requested.

    SSE and NDJSON resume from the cursor: the answer starts right after the *last* event with that id. Bytes resume with `Range`
    and `If-Range`, as in RFC 9110 sections 13.1.5 and 14.

    A reset (`how="rst"`) is sent once every byte before it has left (Linux reports it; elsewhere the server waits 5 ms). Linux
    still delivers these bytes to the reader afterwards; other systems may discard those not yet read.

    A request for a WebSocket is answered by `websocket`. What it sends is not part of the log; its schedule entry may delay or
    replace the answer (`Fault.delay`, `.no_answer`, `.status`, `.redirect`, `.content_type`), cut or close the connection at any
    byte (`Fault.cut`, `.close`), or send it byte by byte (`Fault.one_byte_writes`).

    Args:
        events: The log. `ServerEvent` values; `bytes` or `str` frames, sent unchanged, one event each; for `format="ndjson"`
            also mappings, one JSON line each. A single `bytes` value is a whole transcript: it is split after each event (SSE)
            or each LF (NDJSON), or is the document (bytes).
        schedule: For each stream request a `Fault`, a list of them applied in order, or `None` for an undisturbed answer.
            Consumed lazily, so it may be endless (`itertools.repeat(Fault.cut(after_bytes=100))`).
        format: `"sse"`, `"ndjson"` or `"bytes"`.
        content_type: Replaces that of the format.
        headers: Additional headers of every stream answer.
        path: Path of `url`.
        transfer: How the end of a body is marked: `"chunked"` (default), `"length"` (default for bytes), `"close"` (by closing:
            the client cannot distinguish a cut from the end).
        chunk_bytes: Size of an HTTP chunk, regardless of events. `None`: one HTTP chunk per event (bytes: 16 KiB).
        pace: Seconds before each HTTP chunk except the first. 0.0: no wait, but one write each.
            `None`: as fast as possible, many HTTP chunks in one write.
        hold_open: After the last event, keep the connection open and wait for `append()`, like a feed. `False`: end the body.
        no_content_at_end: Answer 204 if nothing follows the cursor. `False`: an empty body.
        ignore_cursor: Always start at the beginning, as many servers do.
        cursor_param: Read the cursor from this query parameter instead of the `Last-Event-ID` header.
        cursor_of: Returns the cursor of a frame, or `None` if it has none. Default: the `id` field of an SSE block;
            an NDJSON line has none. With `cursor_param` this makes a server that counts inside its JSON.
        unknown_id: What to do with an unknown cursor: `"replay"` everything, or a status such as 404 or 410.
        location: `Location` header of the answers to POST: where a GET resumes. A path or a URL.
        content_location: `Content-Location`, likewise.
        etag: Entity tag of `format="bytes"`, with its quotes: `'"v1"'`, or weak: `'W/"v1"'`. Assignable while running.
        last_modified: `Last-Modified` of `format="bytes"`, an HTTP date. Assignable while running.
        accept_ranges: `False`: ignore `Range` and answer 200 with the whole document.
        sticky_cookie: Name of a cookie that ties a client to this server, as set by a load balancer (`"AWSALB"`).
            Every answer sets it. A request for the rest (with a cursor or a range) without it reaches another back end, which
            does not know the stream: 404.
        keep_alive: `False`: close the TCP connection after each answer.
        on_request: Called first for each request; a `Reply` answers it at once without using the schedule, `None` continues.
            Runs in the thread of the connection, so it must not block for long.
        websocket: What is said over a WebSocket: a function that gets a `ServerSocket`, or a list of steps, played on each
            connection. A step is a message to send (`str`, `bytes`, a mapping for JSON), an `Expect` for one to wait for, or a
            function that gets the `ServerSocket`. After the last step the server closes with 1000.
            `None`: a request for a WebSocket is answered like any other.

    Attributes:
        requests: Every request so far, oldest first. A request is in it before the first byte of its answer is sent.
        connections: TCP connections accepted so far.
        faults_used: Entries of the schedule used so far.
        sockets: Every WebSocket so far, oldest first: what the client said is in its attributes.
        errors: What `websocket` raised, except for `OSError`, since a client that leaves is not an error. The `with` block raises
            the first of them at its end.
    """

    def __init__(
        self,
        events: Iterable[Event] | bytes = (),
        schedule: Iterable[Scheduled] = (),
        *,
        format: Literal["sse", "ndjson", "bytes"] = "sse",
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        path: str = "/stream",
        transfer: Transfer | None = None,
        chunk_bytes: int | None = None,
        pace: float | None = None,
        hold_open: bool = False,
        no_content_at_end: bool = False,
        ignore_cursor: bool = False,
        cursor_param: str | None = None,
        cursor_of: Callable[[bytes], str | None] | None = None,
        unknown_id: Literal["replay"] | int = "replay",
        location: str | None = None,
        content_location: str | None = None,
        etag: str | None = None,
        last_modified: str | None = None,
        accept_ranges: bool = True,
        sticky_cookie: str | None = None,
        keep_alive: bool = True,
        on_request: Callable[[RecordedRequest], Reply | None] | None = None,
        websocket: Callable[[ServerSocket], object] | Sequence[Step] | None = None,
    ) -> None:
        if format not in _CONTENT_TYPES:
            raise ValueError(f"format must be one of {', '.join(_CONTENT_TYPES)}, got {format!r}")
        if chunk_bytes is not None and chunk_bytes < 1:
            raise ValueError(f"chunk_bytes must be at least 1, got {chunk_bytes}")
        if hold_open and transfer == "length":
            raise ValueError('hold_open needs a body without a length: transfer="chunked" or "close"')
        if isinstance(schedule, Fault):
            raise TypeError("schedule must be a list with one entry per request, got a single Fault")
        self.etag = etag
        self.last_modified = last_modified
        self.requests: list[RecordedRequest] = []
        self.connections = 0
        self.faults_used = 0
        self.sockets: list[ServerSocket] = []
        self.errors: list[BaseException] = []
        self._format = format
        self._headers = {"content-type": content_type or _CONTENT_TYPES[format], **_lower(headers or {})}
        self._path = path
        self._transfer: Transfer = transfer or ("length" if format == "bytes" else "chunked")
        self._chunk_bytes = chunk_bytes or (16 * 1024 if format == "bytes" else None)
        self._pace = pace
        self._hold_open = hold_open
        self._no_content_at_end = no_content_at_end
        self._ignore_cursor = ignore_cursor
        self._cursor_param = cursor_param
        self._cursor_of = cursor_of or (_own_id if format == "sse" else lambda frame: None)
        self._unknown_id = unknown_id
        self._post_headers = {
            name: value for name, value in (("location", location), ("content-location", content_location)) if value is not None
        }
        self._accept_ranges = accept_ranges
        self._sticky_cookie = sticky_cookie
        self._keep_alive = keep_alive
        self._on_request = on_request
        self._websocket = None if websocket is None else handler_of(websocket)
        self._schedule = iter(schedule)
        # Guards everything below and the counters above; notified when a connection has closed.
        self._changed = threading.Condition()
        self._frames: list[bytes] = []
        self._behind: dict[str, int] = {}  # id → index of the frame after the last event with it
        self._open: set[_Connection] = set()
        self._threads: list[threading.Thread] = []  # a thread stays here a little longer than its connection
        self._listener: socket.socket | None = None
        self._port: int | None = None
        self._closing = False
        self.replace(events)

    # --- life

    def start(self) -> FlakyServer:
        """
        Listen on a free port of 127.0.0.1.

        Raises:
            RuntimeError: It was started before; a server can be used only once.
        """
        if self._port is not None:
            raise RuntimeError("this FlakyServer has already been started: make a new one")
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        # Non-blocking: a client that leaves between `select` and `accept` must not block the accepting thread.
        self._listener.setblocking(False)
        self._port = self._listener.getsockname()[1]
        self._wake, wake = socket.socketpair()
        self._acceptor = threading.Thread(target=self._accept, args=(self._listener, wake), name="flaky-server", daemon=True)
        self._acceptor.start()
        return self

    def close(self) -> None:
        """Close every connection and wait for the threads. May be called twice; later connections to `url` are refused."""
        with self._changed:
            if self._listener is None or self._closing:
                return
            self._closing = True
        self._wake.close()
        self._acceptor.join()
        with self._changed:
            for connection in self._open:
                connection.shut_down()
        for thread in self._threads:
            # Only `on_request` can keep a thread from ending: it is the caller's code, so do not wait forever.
            if thread is not threading.current_thread():
                thread.join(10.0)

    def __enter__(self) -> FlakyServer:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        if error is None and self.errors:
            raise self.errors[0]

    @property
    def origin(self) -> str:
        """`http://127.0.0.1:<port>`; after `close()` it is still valid, but refuses connections."""
        if self._port is None:
            raise RuntimeError("this FlakyServer has no URL yet: use it in a `with` block or call start()")
        return f"http://127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        """URL of the stream: origin and path."""
        return self.origin + self._path

    @property
    def ws_url(self) -> str:
        """`url` with the scheme `ws`."""
        return "ws" + self.url.removeprefix("http")

    # --- the log

    @property
    def frames(self) -> list[bytes]:
        """The log as it is sent: one item per event (a copy)."""
        with self._changed:
            return list(self._frames)

    @property
    def transcript(self) -> bytes:
        """The whole log as one body."""
        return b"".join(self.frames)

    def append(self, *events: Event) -> None:
        """Add events after the last one. Connections that are held open send them at once (within 5 ms)."""
        self._extend(map(self._encode, events))

    def replace(self, events: Iterable[Event] | bytes) -> None:
        """Start another log, like a redeployed server. Answers under way continue with the old one."""
        with self._changed:
            self._frames, self._behind = [], {}
            self._extend(self._split(events) if isinstance(events, bytes) else map(self._encode, events))

    def _extend(self, frames: Iterable[bytes]) -> None:
        with self._changed:
            for frame in frames:
                self._frames.append(frame)
                if cursor := self._cursor_of(frame):
                    self._behind[cursor] = len(self._frames)

    def _split(self, transcript: bytes) -> list[bytes]:
        if self._format == "bytes":
            return [transcript] if transcript else []
        return [frame for frame in (_BLOCK if self._format == "sse" else _LINE).findall(transcript) if frame]

    def _encode(self, event: Event) -> bytes:
        match event:
            case ServerEvent():
                return event.encode()
            case bytes():
                return event
            case str():
                return event.encode()
            case Mapping() if self._format == "ndjson":
                return json.dumps(dict(event), ensure_ascii=False).encode() + b"\n"
            case _:
                raise TypeError(f"an event must be ServerEvent, bytes, str or (in NDJSON) a mapping, got {type(event).__name__}")

    # --- waiting in tests

    def wait_disconnected(self, timeout: float = 5.0) -> bool:
        """
        Wait until no client connection is open.

        Args:
            timeout: Longest wait, in seconds.

        Returns:
            Whether it succeeded. A client that keeps its connections alive must be closed first.
        """
        with self._changed:
            return self._changed.wait_for(lambda: not self._open, timeout)

    # --- threads

    def _accept(self, listener: socket.socket, wake: socket.socket) -> None:
        with listener, wake, selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(wake, selectors.EVENT_READ)
            while not self._closing:
                selector.select()
                try:
                    sock, _ = listener.accept()
                except BlockingIOError:
                    continue
                except OSError:
                    # Out of file descriptors, or the client has already left. The former passes when connections close.
                    time.sleep(0.01)
                    continue
                with self._changed:
                    connection = _Connection(sock, self.connections)
                    self.connections += 1
                    thread = threading.Thread(
                        target=self._serve, args=(connection,), name=f"flaky-server-{connection.number}", daemon=True
                    )
                    self._open.add(connection)
                    thread.start()
                    self._threads = [*filter(threading.Thread.is_alive, self._threads), thread]

    def _serve(self, connection: _Connection) -> None:
        try:
            while (request := connection.read_request(self.origin)) is not None:
                with self._changed:
                    self.requests.append(request)
                if not self._respond(connection, request):
                    break
        except OSError:
            pass  # the client left, or `close()` shut the socket down
        finally:
            with self._changed:
                # Forgotten before it is closed: `close()` must not shut down a descriptor that was reused meanwhile.
                self._open.remove(connection)
                connection.close()
                self._changed.notify_all()

    def _respond(self, connection: _Connection, request: RecordedRequest) -> bool:
        """Answer one request; True if the connection may serve another one."""
        reply = self._on_request(request) if self._on_request is not None else None
        if reply is not None:
            body = reply.body if isinstance(reply.body, bytes) else b"".join(map(_only_bytes, reply.body))
            answer = Answer(code=reply.status, headers=_lower(reply.head()), pieces=[body] if body else [], transfer="length")
            return self._send(connection, request, answer, log=[])
        if self._websocket is not None and "upgrade" in request.headers:
            return self._upgrade(connection, request, self._websocket)
        answer, log = self._plan(request)
        return self._send(connection, request, answer, log)

    def _upgrade(self, connection: _Connection, request: RecordedRequest, handler: Callable[[ServerSocket], object]) -> bool:
        """Answer a request for a WebSocket, and serve it until it ends."""
        headers = upgrade_headers(request.headers)
        if headers is None:
            return self._send(connection, request, _status(400), log=[])
        # The content type is that of the log.
        further = {name: value for name, value in self._headers.items() if name != "content-type"}
        answer = Answer(code=101, headers=headers | further, pieces=[], transfer="close")
        with self._changed:
            faults = self._next_faults()
            socket = ServerSocket(connection, request, number=len(self.sockets), closing=lambda: self._closing)
            try:
                socket._faults = disturb_upgrade(answer, faults)
            except TypeError as error:
                self.errors.append(error)
                return False
            if answer.code == 101 and answer.answered:
                # Known before the client can know of it.
                self.sockets.append(socket)
        if answer.code != 101 or not answer.answered:
            return self._send(connection, request, answer, log=[])
        if answer.delay:
            connection.wait(answer.delay)
        connection.write(_head(answer, "close", keep=True))
        connection.flush()
        socket._serve(handler, self.errors)
        return False

    # --- planning

    def _plan(self, request: RecordedRequest) -> tuple[Answer, list[bytes]]:
        """The disturbed answer to a stream request, and the log for a connection that is held open."""
        with self._changed:
            faults = self._next_faults()
            answer = self._route(request)
            # `replace()` sets another list.
            log = self._frames
        disturb(answer, faults)
        return answer, log

    def _next_faults(self) -> Sequence[Fault]:
        """The schedule's next entry."""
        try:
            faults = next(self._schedule)
        except StopIteration:
            return ()
        self.faults_used += 1
        return [faults] if isinstance(faults, Fault) else faults or ()

    def _route(self, request: RecordedRequest) -> Answer:
        headers = dict(self._headers)
        if request.method == "POST":
            headers |= self._post_headers
        if self._format == "bytes":
            cursor = request.headers.get("range")
        else:
            cursor = request.query.get(self._cursor_param) if self._cursor_param else request.last_event_id
        if self._sticky_cookie is not None:
            pair = f"{self._sticky_cookie}=here"
            if cursor and pair not in re.split(r";\s*", request.headers.get("cookie", "")):
                return _status(404)
            headers["set-cookie"] = f"{pair}; Path=/"
        if self._format == "bytes":
            return self._range(request, headers)
        start = 0
        if cursor and not self._ignore_cursor:
            if cursor in self._behind:
                start = self._behind[cursor]
            elif self._unknown_id != "replay":
                return _status(self._unknown_id)
            if start == len(self._frames) and self._no_content_at_end:
                return _status(204)
        return Answer(
            code=200,
            headers=headers,
            pieces=self._frames[start:],
            transfer=self._transfer,
            ending="hold" if self._hold_open else "clean",
            position=len(self._frames),
        )

    def _range(self, request: RecordedRequest, headers: dict[str, str]) -> Answer:
        document = b"".join(self._frames)
        headers["accept-ranges"] = "bytes" if self._accept_ranges else "none"
        if self.etag is not None:
            headers["etag"] = self.etag
        if self.last_modified is not None:
            headers["last-modified"] = self.last_modified
        total, code = len(document), 200
        wanted = _byte_range(request.headers.get("range"), total) if request.method == "GET" and self._accept_ranges else None
        condition = request.headers.get("if-range")
        if wanted is not None and (condition is None or self._matches(condition)):
            first, last = wanted
            if first >= total:
                return _status(416, {"content-range": f"bytes */{total}"})
            headers["content-range"] = f"bytes {first}-{last}/{total}"
            document, code = document[first : last + 1], 206
        size = self._chunk_bytes or len(document)
        pieces = [document[at : at + size] for at in range(0, len(document), size)]
        return Answer(code=code, headers=headers, pieces=pieces, transfer=self._transfer)

    def _matches(self, condition: str) -> bool:
        """RFC 9110 section 13.1.5: dates must be exactly equal, entity tags must be equal and both strong."""
        if condition.startswith(('"', "W/")):
            return condition == self.etag and not condition.startswith("W/")
        return condition == self.last_modified

    # --- sending

    def _send(self, connection: _Connection, request: RecordedRequest, answer: Answer, log: list[bytes]) -> bool:
        """Send an answer; True if the connection may serve another request."""
        if answer.delay:
            connection.wait(answer.delay)
        if answer.answered:
            transfer: Transfer = "close" if answer.transfer == "chunked" and connection.http10 else answer.transfer
            keep = self._keep_alive and transfer != "close" and connection.keep_alive
            connection.write(_head(answer, transfer, keep=keep))
            if request.method == "HEAD":
                connection.flush()
                return keep
            self._send_body(connection, answer, chunked=transfer == "chunked")
        else:
            transfer, keep = "close", False
        match answer.ending:
            case "clean":
                if transfer == "chunked" and answer.code not in (204, 304):
                    connection.write(b"0\r\n\r\n")
                connection.flush()
                return keep
            case "rst":
                connection.flush()
                connection.reset(lambda: self._closing)
            case "fin":
                connection.flush()
            case "silence":
                connection.flush()
                connection.wait(None)
            case "hold":
                self._follow(connection, log, answer.position, chunked=transfer == "chunked")
            case "heartbeats":
                beat = answer.heartbeat or HeartbeatPiece()
                while True:
                    connection.flush()
                    connection.wait(beat.wait)
                    connection.write_part(beat, chunked=transfer == "chunked")
            case "endless":
                return self._send_endless(connection, answer, chunked=transfer == "chunked") and keep
        return False

    def _send_body(self, connection: _Connection, answer: Answer, *, chunked: bool) -> None:
        size = 1 if answer.one_byte else self._chunk_bytes
        flush = answer.one_byte or self._pace is not None
        # Only a body that is not split into chunks of one size can end inside a chunk.
        last = -1 if size else len(answer.pieces) - 1
        for index, part in enumerate(_rechunk(answer.pieces, size) if size else answer.pieces):
            pause = self._pace or 0.0 if index else 0.0
            if isinstance(part, HeartbeatPiece):
                pause += part.wait
            if pause:
                connection.flush()
                connection.wait(pause)
            connection.write_part(part, chunked=chunked, missing=answer.missing if index == last else 0)
            if flush:
                connection.flush()

    def _follow(self, connection: _Connection, log: list[bytes], position: int, *, chunked: bool) -> None:
        """Send new events of the log, until the client leaves."""
        while True:
            for frame in log[position:]:
                connection.write_part(frame, chunked=chunked)
                position += 1
            connection.flush()
            # Polling every 5 ms is simpler than waiting for a socket and a condition at once.
            connection.wait(0.005)

    def _send_endless(self, connection: _Connection, answer: Answer, *, chunked: bool) -> bool:
        left = answer.limit_bytes
        block = b"data: " + b"x" * (16 * 1024 - 6)
        while left is None or left > 0:
            part = block if left is None else block[:left]
            connection.write_part(part, chunked=chunked)
            connection.flush()
            left = None if left is None else left - len(part)
            block = b"x" * (16 * 1024)
        connection.write(b"0\r\n\r\n" if chunked else b"")
        connection.flush()
        return True


class _Connection:
    """One TCP connection: reads requests, writes through a buffer, and notices during waits that the client left."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        sock.settimeout(None)  # a test suite may have set a default
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = number
        self.keep_alive = True
        self.http10 = False
        self._sock = sock
        self._received = bytearray()
        self._buffer = bytearray()

    # --- reading

    def read_request(self, origin: str) -> RecordedRequest | None:
        """The next request, or `None` if the client left or does not speak HTTP."""
        end = self._receive_until(b"\r\n\r\n", limit=_HEAD_BYTES)
        if end is None:
            return None
        lines = _text(self._take(end)).split("\r\n")
        try:
            method, target, version = lines[0].split(" ")
            headers: dict[str, str] = {}
            for line in filter(None, lines[1:]):
                name, _, value = line.partition(":")
                name, value = name.lower(), value.strip()
                headers[name] = f"{headers[name]}, {value}" if name in headers else value
            body = self._read_body(headers)
        except ValueError:
            return None
        if body is None:
            return None
        self.http10 = version == "HTTP/1.0"
        self.keep_alive = not self.http10 and "close" not in headers.get("connection", "").lower()
        url = target if target.startswith("http") else origin + target
        return RecordedRequest(
            method=method.upper(), url=url, headers=headers, body=body, time=time.monotonic(), connection=self.number
        )

    def _read_body(self, headers: Mapping[str, str]) -> bytes | None:
        if "chunked" not in headers.get("transfer-encoding", ""):
            return self._receive(int(headers.get("content-length", "0")))
        body = b""
        while (end := self._receive_until(b"\r\n", limit=_HEAD_BYTES)) is not None:
            size = int(self._take(end).split(b";")[0], 16)
            part = self._receive(size + 2)
            if part is None or not size:
                return None if part is None else body
            body += part[:-2]
        return None

    def _receive(self, size: int) -> bytes | None:
        while len(self._received) < size:
            if not self._receive_more():
                return None
        return self._take(size)

    def _receive_until(self, mark: bytes, *, limit: int) -> int | None:
        while (at := self._received.find(mark)) < 0:
            if len(self._received) > limit or not self._receive_more():
                return None
        return at + len(mark)

    def _receive_more(self) -> bool:
        data = self._sock.recv(64 * 1024)
        self._received += data
        return bool(data)

    def read_some(self, timeout: float | None) -> bytes:
        """
        Bytes that have arrived, or the next that do; `b""` when the client left.

        Raises:
            OSError: The connection broke; nothing arrived in `timeout` seconds (`TimeoutError`; `BlockingIOError` if it is 0).
        """
        if not self._received:
            self._sock.settimeout(timeout)
            try:
                self._receive_more()
            finally:
                self._sock.settimeout(None)
        return self._take(len(self._received))

    def _take(self, size: int) -> bytes:
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    # --- writing

    def write(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) >= _FLUSH_BYTES:
            self.flush()

    def write_part(self, part: bytes, *, chunked: bool, missing: int = 0) -> None:
        """Write a part of a body, announcing `missing` further bytes that are never sent."""
        if not chunked:
            self.write(part)
        elif part:
            self.write(b"%x\r\n%b%b" % (len(part) + missing, part, b"" if missing else b"\r\n"))

    def flush(self) -> None:
        if self._buffer:
            self._sock.sendall(self._buffer)
            self._buffer.clear()

    # --- waiting and leaving

    def wait(self, seconds: float | None) -> None:
        """
        Wait; `None`: without limit.

        Raises:
            ConnectionError: The client left, or the server is closing.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            self._sock.settimeout(left)
            try:
                # An early request is kept for `read_request`.
                if not self._receive_more():
                    raise ConnectionAbortedError("the client left")
            except TimeoutError:
                return
            finally:
                self._sock.settimeout(None)

    def reset(self, hurry: Callable[[], bool]) -> None:
        """
        Make `close` send a reset, after the earlier writes have arrived: a reset discards unsent data.

        The client's full receive window holds data back: wait for that, at most 2 s if it does not read at all. Wait only 1 ms
        for an acknowledgement: on a kept-alive connection it comes 40 ms late, long after the bytes.
        """
        started = time.monotonic()
        while not hurry() and (unsent := _waiting(self._sock, _SIOCOUTQNSD)) != 0:
            if unsent is None:
                time.sleep(0.005)
            if unsent is None or time.monotonic() - started > 2.0:
                break
            time.sleep(0.0005)
        if _waiting(self._sock, _SIOCOUTQ):
            time.sleep(0.001)
        # On Windows both halves of `struct linger` are shorts.
        linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def shut_down(self) -> None:
        """Wake the thread that is waiting in this socket."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the client was faster

    def close(self) -> None:
        try:
            # Unread bytes would turn the FIN into a reset.
            self._sock.setblocking(False)
            while self._sock.recv(64 * 1024):
                pass
        except OSError:
            pass
        self._sock.close()


def _head(answer: Answer, transfer: Transfer, *, keep: bool) -> bytes:
    headers = dict(answer.headers)
    if answer.code not in (204, 304):
        if transfer == "chunked":
            headers["transfer-encoding"] = "chunked"
        elif transfer == "length":
            length = sum(map(len, answer.pieces)) if answer.announced is None else answer.announced
            headers["content-length"] = str(length)
    if not keep:
        headers["connection"] = "close"
    lines = [f"HTTP/1.1 {answer.code} {_reason(answer.code)}", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _reason(code: int) -> str:
    try:
        return http.HTTPStatus(code).phrase
    except ValueError:
        return ""  # 529 and other private ones


def _status(code: int, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(code=code, headers=dict(headers or {}), pieces=[], transfer="length")


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _text(raw: bytes) -> str:
    # A Last-Event-ID is sent as UTF-8 (WHATWG HTML, section 9.2.5); other header values are at most Latin-1.
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _only_bytes(part: object) -> bytes:
    if not isinstance(part, bytes):
        raise TypeError(f"a FlakyServer only sends bytes; exceptions and calls are for a ScriptedClient: {part!r}")
    return part


def _own_id(frame: bytes) -> str | None:
    """The id of an SSE block; `None` without one, and for an unfinished block, which no client accepts."""
    if b"id" not in frame:
        return None
    found, lines = None, _LINE_END.split(frame.removeprefix(b"\xef\xbb\xbf"))
    if lines[-2:] != [b"", b""]:
        return None
    for line in lines:
        name, _, value = line.partition(b":")
        if name == b"id" and b"\0" not in value:
            found = value.removeprefix(b" ").decode(errors="replace")
    return found


def _byte_range(header: str | None, total: int) -> tuple[int, int] | None:
    """First and last position of a single range; `None` for no range, several, or a malformed one: all are ignored."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", (header or "").replace(" ", ""), re.ASCII | re.IGNORECASE)
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        # The last n bytes; zero bytes are not satisfiable.
        return (max(0, total - int(last)) if int(last) else total), total - 1
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last), total - 1) if last else total - 1


def _rechunk(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Split a body into parts of one size; a heartbeat with a wait keeps its position in time."""
    rest = b""
    for piece in pieces:
        if isinstance(piece, HeartbeatPiece) and piece.wait:
            yield from filter(None, (rest, piece))
            rest = b""
            continue
        rest += piece
        at = len(rest) - len(rest) % size
        yield from (rest[start : start + size] for start in range(0, at, size))
        rest = rest[at:]
    if rest:
        yield rest


# linux/sockios.h: bytes not acknowledged, and bytes not sent.
_SIOCOUTQ, _SIOCOUTQNSD = 0x5411, 0x894B


def _waiting(sock: socket.socket, queue: int) -> int | None:
    """Bytes in one of the socket's send queues; `None` if the system does not report it."""
    if sys.platform != "linux":
        return None
    import fcntl

    return int(struct.unpack("i", fcntl.ioctl(sock, queue, bytes(4)))[0])
