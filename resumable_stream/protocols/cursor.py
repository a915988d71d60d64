"""
A resume protocol described by a few facts: where to find the cursor in an event, and where to put it in the next request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal
from urllib.parse import urljoin

from .._contract import Explained, Head, Measured, Position, Request, StreamState
from .._events import Item
from ._ends import End, TextOf, _EndedProtocol, filled, located
from ._json import JSONPath

__all__ = ["CursorProtocol"]


class CursorProtocol(_EndedProtocol, Explained, Measured):
    """
    An endpoint whose events carry a cursor that the next request sends back.

    Args:
        read: Where to find the cursor: `"id"` (the SSE id), a dotted path into the JSON of `data`, or a callable of the event
            (→ text, integer or `None`). An integer is also the event's sequence number.
        send: Where to put it: `"header:NAME"`, `"query:NAME"` or `"body:NAME"` (a key of the JSON body).
        inclusive: The server repeats the event that the cursor names, and the repeat is dropped.
            An integer cursor is sent plus one instead, which names the next event.
        end: What ends the stream, as for `LastEventID`.
        url: Where to request the rest, with `{stream_id}` filled in, or a callable of the `StreamState`. `None`: the
            first URL; after a POST, the `Location` or `Content-Location` of its answer.
        method: Method of that request. A POST repeats the first body, so use it only if that does not start another generation.
        stream_id: Where to find the stream's id: a dotted path into the first events, or `"header:NAME"`.
        sequence: `"contiguous"`: integers that grow by one, a jump is a gap; `"increasing"`: they grow; `None`: opaque.
        first_sequence: The first event's number, if it is promised.
        text: Where to find an event's visible text: a dotted path, or a callable of the event (→ text or `None`);
            `None`: all of `data`.
        framing: `"sse"` or `"ndjson"`.
        name: The protocol's name in checkpoints; give each of your protocols its own.

    >>> CursorProtocol(read="seq", send="query:after", end="[DONE]", sequence="contiguous", name="Acme")
    <Acme: resumable, numbered, has_end>
    """

    def __init__(
        self,
        *,
        read: str | Callable[[Any], str | int | None],
        send: str,
        inclusive: bool = False,
        end: End = "auto",
        url: str | Callable[[StreamState], str | None] | None = None,
        method: Literal["GET", "POST"] = "GET",
        stream_id: str | None = None,
        sequence: Literal["contiguous", "increasing"] | None = None,
        first_sequence: int | None = None,
        text: TextOf | None = None,
        framing: Literal["sse", "ndjson"] = "sse",
        name: str | None = None,
    ) -> None:
        place, _, key = send.partition(":")
        if place not in ("header", "query", "body") or not key:
            raise ValueError(f"send must be 'header:NAME', 'query:NAME' or 'body:NAME', got {send!r}")
        if method not in ("GET", "POST"):
            raise ValueError(f"method must be 'GET' or 'POST', got {method!r}")
        if place == "body" and method == "GET":
            raise ValueError("a cursor in the body needs method='POST'")
        if framing not in ("sse", "ndjson"):
            raise ValueError(f"framing must be 'sse' or 'ndjson', got {framing!r}")
        if sequence not in ("contiguous", "increasing", None):
            raise ValueError(f"sequence must be 'contiguous', 'increasing' or None, got {sequence!r}")
        self._path = None if callable(read) or read == "id" else JSONPath(read)
        self._read: Callable[[Any], Any] = read if callable(read) else self._path or _own_id
        self._place, self._key = place, key
        self._inclusive = inclusive
        super().__init__(end, text=text, stream_id=stream_id)
        self._tied = self._end.mode == "close" and url is None and method == "GET"
        self._url = url
        self._method = method
        self._name = name
        self.identifies_by_event = self._id_path is not None
        self.sequence = sequence
        self.first_sequence = first_sequence
        self.framing = framing  # type: ignore[misc]  # a class attribute elsewhere, an option here
        if framing == "ndjson":
            self.accept = "application/x-ndjson"  # type: ignore[misc]
            self.content_types = ()  # type: ignore[misc]

    @property
    def name(self) -> str:
        return self._name or type(self).__name__

    def identify(self, state: StreamState, source: Head | Item) -> None:
        self._identify(state, source)
        if isinstance(source, Head) and self._url is None and self._method == "GET":
            located(state, source)

    def position(self, event: Any) -> Position:
        value = self._read(event)
        if value is None or isinstance(value, bool):
            return Position(None)
        cursor = str(value)
        return Position(cursor, value if isinstance(value, int) else self._number(cursor), cursor)

    def place(self, events: Sequence[Any]) -> None:
        # The same as `position()`, with as few writes as possible: a promised number is also the identity and the cursor.
        path = self._path
        if self.sequence is not None and path is not None:
            # A counter is usually one more than the last. Comparing the text is then enough, and nothing is parsed.
            # The guess is only a hint, so streams may share it.
            learned, guess = path.learned, path.guess
            kind = prefix = None
            for event in events:
                if event.event != kind:
                    kind = event.event
                    prefix = learned.get(kind)
                if prefix is not None and event.data.startswith(f"{prefix}{guess},"):
                    event.sequence = guess
                    event.own_id = None
                    if event.id:
                        event.cursor = str(guess)
                    guess += 1
                else:
                    value = path(event)
                    self._write(event, value)
                    if type(value) is int:
                        guess = value + 1
                    kind = None  # its prefix may have been learned just now
            path.guess = guess
        else:
            for event in events:
                self._write(event, self._read(event))

    def _write(self, event: Any, value: Any) -> None:
        if type(value) is int and self.sequence is not None:
            event.sequence = value
            event.own_id = None
            if event.id:
                event.cursor = str(value)
        elif value is None or isinstance(value, bool):
            event.own_id = None
            event.moves = False
        else:
            event.cursor = cursor = str(value)
            event.sequence = value if isinstance(value, int) else self._number(cursor)
            event.own_id = cursor
            event.moves = True

    def counter_in(self, name: str) -> str | None:
        return self._path.learned.get(name) if self._path is not None else None

    def _number(self, cursor: str) -> int | None:
        # Decimal text counts as a number only if numbers are promised.
        return int(cursor) if self.sequence and cursor.isascii() and cursor.isdigit() and len(cursor) < 20 else None

    def why_not(self, state: StreamState) -> str:
        if callable(self._url):
            return "url= returned no URL for this stream"
        if self._url is not None:
            return "the answer did not contain the stream id that url= needs" if state.stream_id is None else ""
        if self._method != state.method:
            return f"a {state.method} is not repeated, and the answer named no Location: pass url=, the URL of the rest"
        return "with end='close' a GET is not repeated after an answer" if self._tied else ""

    def resume_request(self, state: StreamState) -> Request | None:
        target = self._url(state) if callable(self._url) else self._url
        if target is not None:
            if (target := filled(target, state)) is None:
                return None
        elif callable(self._url):
            return None
        elif self._method == "GET" and not state.safe:
            target = state.location
        same = target is None
        if same and (self._method != state.method or self._tied):
            return None
        cursor = state.cursor
        if cursor is not None and self._inclusive and state.sequence is not None:
            cursor = str(state.sequence + 1)
        sent = {self._key: cursor} if cursor is not None else {}
        return Request(
            method=self._method,
            url=state.url if target is None else urljoin(state.url, target),
            headers=sent if self._place == "header" else {},
            params=sent if self._place == "query" else {},
            json={self._key: _plain(cursor, state)} if self._place == "body" and cursor is not None else None,
            repeat="all" if same else "body" if self._method == "POST" else None,
        )


def _own_id(event: Any) -> str | None:
    return event.own_id or None


def _plain(cursor: str, state: StreamState) -> str | int:
    """A numeric cursor is put into a JSON body as a number."""
    counts = state.sequence is not None and cursor.isascii() and cursor.isdecimal() and len(cursor) < 20
    return int(cursor) if counts else cursor
