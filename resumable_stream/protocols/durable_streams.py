"""
Durable Streams in its three modes: catch-up, long-poll and server-sent events.

A cursor is one of the server's offsets: the one to read *next*. Over SSE a `control` event names it, after the data it covers;
in the other two modes the answers are documents, and their headers name it.

Source: github.com/durable-streams/durable-streams, PROTOCOL.md sections 4 to 10 (draft).
"""

from __future__ import annotations

import base64
import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self
from urllib.parse import parse_qs, urlsplit

from .._checkpoint import encodable, fingerprint
from .._contract import Document, Head, Memo, Position, Promises, Request, ResumeProtocol, StreamState
from .._contract.abilities import Batched, Documents, Replayed, Structured
from .._contract.verdicts import Consume, Finished, Lost, Reject, Resume, Retry, Verdict
from .._errors import EventTooLarge
from .._events import Delta, Item, Outcome, StreamEvent
from ._json import payload_of

__all__ = ["DurableStreams"]

Live = Literal["sse", "long-poll"]

_MODES: Final = ("sse", "long-poll", None)
_NEXT: Final = "stream-next-offset"
_OUTCOMES: Final = frozenset(outcome.value for outcome in Outcome)
# Maximum length of the cache hint; the protocol's own is a number of about eight digits.
_COLLAPSE: Final = 1024
# Maximum messages per answer or batch. Each event takes about 500 bytes, however short, so this is 50 MB.
_MESSAGES: Final = 100_000


@dataclass(slots=True)
class _Memo(Memo):
    collapse: str = ""


class DurableStreams(ResumeProtocol, Batched, Documents, Replayed, Structured):
    """
    A stream of the Durable Streams protocol, from `offset=-1` unless the URL names another.

    The URL's `live` parameter chooses the mode; without it, the option `live=` does:

    - `sse`: everything stored, then live events, over server-sent events.
    - `long-poll`: the same, one answer at a time; each request waits until there is something to send.
    - without: catch-up. One answer at a time to the tail (`Stream-Up-To-Date`), and no further.

    A JSON stream yields one event named `message` per message. A stream of text or bytes yields one event named `data` per
    piece, with bytes as base64. Over SSE, `control` events are delivered too.

    *The cursor.* Over SSE it moves at `control` events, otherwise after each answer, which is delivered whole or not at all.
    Events delivered since are sent again after a cut, compared and dropped; messages may come again in other batches.
    Over SSE, if `control` events appear among the repeated events, or text is split differently, the stream raises
    `ReplayDiverged` and never delivers a piece twice.
    A character split over two answers is delivered with the second; until then the cursor carries the bytes of the first.

    *The end.* `Stream-Closed` (`streamClosed`) is `COMPLETED`, unless `Stream-Outcome` (`streamOutcome`), which the server of
    this package sends, says otherwise. A catch-up read that reaches the tail of an open stream is
    `ENDED`, and its token reads on from there. Everything else is routine: being up to date, an SSE connection that is closed
    each minute, a poll that found nothing.

    Args:
        json: Over SSE, whether the stream's content type is JSON. `False`: text, or bytes as base64, as the server sends them.
            In the other modes the response headers say so.
        live: `"sse"`, `"long-poll"` or `None` (catch-up), if the URL does not say.

    >>> DurableStreams()
    <DurableStreams: resumable, has_end>

    Raises:
        ValueError: `live` is not one of these modes.
    """

    promises = Promises(resumable=True, numbered=False, has_end=True)
    # Documents have the stream's own content type.
    accept = "text/event-stream, */*;q=0.5"
    json_names = frozenset({"message"})
    # After a resume, events after the cursor are expected again, in order and unchanged.
    replays = True
    # A control event that names our current offset is a duplicate.
    unique_ids = True
    endless = True
    keeps = frozenset({"collapse"})

    def __init__(self, *, json: bool = True, live: Live | None = "sse") -> None:
        if live not in _MODES:
            raise ValueError(f"live must be 'sse', 'long-poll' or None (catch-up), got {live!r}")
        self._json = json
        self._live = live

    @property
    def options(self) -> str:
        return " ".join(["json=False"] * (not self._json) + [f"live={self._live}"] * (self._live != "sse"))

    @classmethod
    def for_request(cls, request: StreamState) -> Self:
        return cls(live="sse" if "live" in _query(request.url) else None)

    def matches(self, request: StreamState, head: Head) -> bool:
        query = _query(request.url)
        live = query.get("live")
        if request.method != "GET" or live not in _MODES:
            return False
        return ("offset" in query and head.content_type == "text/event-stream") if live == "sse" else _NEXT in head.headers

    def _mode(self, state: StreamState) -> Live | None:
        match _query(state.url).get("live"):
            case "sse":
                return "sse"
            case "long-poll":
                return "long-poll"
            case _:
                return self._live

    def _start(self, state: StreamState) -> dict[str, str | None]:
        start: dict[str, str | None] = {"live": self._mode(state)}
        return start if "offset" in _query(state.url) else {**start, "offset": "-1"}

    def first_request(self, state: StreamState) -> Request:
        return Request(method=state.method, url=state.url, params=self._start(state), repeat="all")

    def identify(self, state: StreamState, source: Head | Item) -> None:
        # The server's hint for caches, to be echoed; it is unrelated to the offset.
        if isinstance(source, StreamEvent):
            if source.event == "control":
                _remember(state, payload_of(source).get("streamCursor"))
        elif isinstance(source, Head) and self._mode(state) != "sse":
            _remember(state, source.headers.get("stream-cursor"))

    def unpack(self, event: Any) -> Iterable[Any]:
        # A repeated batch may contain other messages, so it is split.
        if not self._json or event.event != "data":
            return (event,)
        try:
            value = event.json()
            return _messages(value) if isinstance(value, list) else (StreamEvent("message", event.data),)
        except (ValueError, RecursionError):
            return (StreamEvent("message", event.data),)

    def on_document(self, body: bytes, state: StreamState) -> Document | Retry | None:
        document = self._document(body, state)
        asked = _parts(state.cursor)[0] or _query(state.url).get("offset")
        there = state.head.headers.get(_NEXT) if state.head is not None else None
        if document is not None and document.events and body and there == asked:
            # The next request would be the same: a cache that leaves out the query, or a server that ignores it.
            return Retry("the answer has data, but its Stream-Next-Offset is the offset that was requested")
        return document

    def _document(self, body: bytes, state: StreamState) -> Document | None:
        head = state.head
        assert head is not None
        there, kind, closed = head.headers.get(_NEXT), head.content_type, _says(head, "stream-closed")
        json_type = head.is_json
        place, held = _parts(state.cursor)
        if body and json_type:
            return _document_of_json(body, there)
        if body and not kind.startswith("text/"):
            return Document([StreamEvent("data", base64.b64encode(body).decode())], there)
        if body:
            return _document_of_text(held + body, there, final=closed)
        # Without data the cursor stays, so nothing is lost. Only `now` means another offset with each request.
        if place is None:
            if json_type and head.status == 200:
                # Not even an empty array: the body was cut before its first byte.
                return None
            return Document([], there if _query(state.url).get("offset") == "now" else None)
        if there not in (None, place):
            # There is data before that offset that was not sent: the body was cut, or its head is newer.
            return None
        return _document_of_text(held, there, final=True) if closed else Document([])

    def position(self, event: Any) -> Position:
        offset = payload_of(event).get("streamNextOffset") if event.event == "control" else None
        if not isinstance(offset, str) or not offset:
            return Position(None)
        return Position(offset, None, offset)

    def fingerprint(self, event: Any) -> str:
        if event.event != "control":
            return fingerprint(event.event, event.data)
        control = payload_of(event)
        return fingerprint("control", f"{control.get('streamNextOffset')} {control.get('streamClosed') is True}")

    def end(self, event: Any) -> Outcome | None:
        control = payload_of(event) if event.event == "control" else {}
        return _outcome(control.get("streamOutcome")) if control.get("streamClosed") is True else None

    def deltas(self, event: Any) -> Sequence[Delta]:
        text: Any = None
        if event.event == "data":
            text = event.data
        elif event.event == "message":
            try:
                text = event.json()
            except ValueError:
                text = None
        return (Delta("text", text),) if isinstance(text, str) and text else ()

    def resume_request(self, state: StreamState) -> Request | None:
        params, mode = self._start(state), self._mode(state)
        if state.cursor is not None:
            params["offset"] = state.cursor if mode == "sse" else _parts(state.cursor)[0]
            if mode is not None:
                params["cursor"] = state.memo(_Memo).collapse or None
        return Request(method="GET", url=state.url, params=params, repeat="all")

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        if status == 410:
            return Lost("the stream no longer holds this offset, or was deleted")
        if self._mode(state) == "sse":
            closed = status == 204 and headers.get("stream-closed", "").lower() == "true"
            return Finished(_outcome(headers.get("stream-outcome"))) if closed else None
        if status == 200 and _NEXT not in headers:
            return Reject("the answer has no Stream-Next-Offset, so it is not from a durable stream")
        return Consume(whole=True) if status in (200, 204) else None

    def on_clean_close(self, state: StreamState) -> Verdict:
        mode, head = self._mode(state), state.head
        if mode == "sse" or head is None:
            return Resume()
        if _says(head, "stream-closed"):
            return Finished(_outcome(head.headers.get("stream-outcome")))
        if mode is None and _says(head, "stream-up-to-date"):
            # A cached last piece may predate the close of the stream, or newer data (RFC 9111: a cache adds an Age). Ask again at
            # the tail that it names, unless this was the answer from there.
            stale = "age" in head.headers and _query(head.url).get("offset") != head.headers.get(_NEXT)
            return Resume(routine=True) if stale else Finished(Outcome.ENDED, more=True, verified=True)
        return Resume(routine=True, waits=mode == "long-poll")


def _query(url: str) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(urlsplit(url).query).items()}


def _says(head: Head, name: str) -> bool:
    return head.headers.get(name, "").strip().lower() == "true"


def _outcome(told: Any) -> Outcome:
    """How a closed stream ended. The protocol does not say; our server does, for example `failed; reason=producer_lost`."""
    word = told.partition(";")[0].strip().lower() if isinstance(told, str) else ""
    return Outcome(word) if word in _OUTCOMES else Outcome.COMPLETED


def _remember(state: StreamState, collapse: Any) -> None:
    # It is only a hint, and a checkpoint has a limit of 8 KiB.
    usable = isinstance(collapse, str) and len(collapse) <= _COLLAPSE and encodable(collapse)
    state.memo(_Memo).collapse = collapse if usable else ""


def _parts(cursor: str | None) -> tuple[str | None, bytes]:
    """
    The offset in a cursor, and the bytes of a character that began before it.

    An offset contains no comma (section 6), so a comma separates the two.
    """
    offset, _, held = (cursor or "").partition(",")
    try:
        return (offset if cursor else None), bytes.fromhex(held)
    except ValueError:
        return offset, b""


def _document_of_text(body: bytes, there: str | None, *, final: bool) -> Document:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(body, final)
    held = decoder.getstate()[0]
    cursor = f"{there},{held.hex()}" if there is not None and held else there
    return Document([StreamEvent("data", text)] if text else [], cursor)


def _document_of_json(body: bytes, there: str | None) -> Document | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        # HTTP closed cleanly, but the array is incomplete.
        return None
    try:
        events = _messages(value if isinstance(value, list) else [value])
    except RecursionError:
        # JSON nested this deeply can be parsed but not serialized.
        events = [StreamEvent("message", body.decode("utf-8", "replace"))]
    return Document(events, there)


def _messages(values: Sequence[Any]) -> list[StreamEvent]:
    if len(values) > _MESSAGES:
        raise EventTooLarge(f"one answer holds {len(values):,} messages, the limit is {_MESSAGES:,}", limit=_MESSAGES)
    return [StreamEvent("message", json.dumps(value, ensure_ascii=False, separators=(",", ":"))) for value in values]
