"""
Durable Streams over server-sent events: `control` events name the offset to read next.

Source: github.com/durable-streams/durable-streams, PROTOCOL.md sections 4 to 10 (draft).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .._checkpoint import fingerprint
from .._core.interfaces import (
    Finished,
    Head,
    Lost,
    Position,
    Promises,
    Request,
    Resume,
    ResumeProtocol,
    StreamState,
    Verdict,
)
from .._events import Delta, Item, Outcome, StreamEvent
from ._json import payload_of

__all__ = ["DurableStreams"]


class DurableStreams(ResumeProtocol):
    """
    A stream of the Durable Streams protocol, read live over server-sent events (`live=sse`);
    from `offset=-1`, unless the URL names another.

    The place moves at `control` events, which are delivered. What came behind the last one is sent again after a cut, is compared
    with what was delivered, and dropped. A stream of JSON (the default) yields one event for each message, so it may come
    again in a larger batch. Where it comes in smaller ones, with `control` events in between, or where text or bytes come in
    other pieces, that is `ReplayDiverged`, never a doubled piece.

    `streamClosed` ends the stream: `COMPLETED`. Any other close is routine (servers rotate connections each minute), and so is
    being up to date. Catch-up and long-poll reads are other wire formats, and are not read by this class.

    Args:
        json: The stream's content type is JSON. `False`: text, or bytes as base64, as the server sends them.

    >>> DurableStreams()
    <DurableStreams: resumable, has_end>

    Source: github.com/durable-streams/durable-streams, PROTOCOL.md sections 4 to 10 (draft).
    """

    sequence = None
    # What follows the last control event is expected again, in order, and must be the same.
    replays = True
    # A control event that names the place where we are says nothing new.
    unique_ids = True
    endless = True
    keeps = frozenset({"collapse"})

    def __init__(self, *, json: bool = True) -> None:
        self._json = json

    @property
    def promises(self) -> Promises:
        return Promises(resumable=True, numbered=False, has_end=True)

    def matches(self, request: StreamState, head: Head) -> bool:
        query = parse_qs(urlsplit(request.url).query)
        ours = query.get("live") == ["sse"] and "offset" in query
        return request.method == "GET" and ours and head.content_type == "text/event-stream"

    def first_request(self, state: StreamState) -> Request:
        return Request(method=state.method, url=state.url, params=_start(state), repeat="all")

    def identify(self, state: StreamState, source: Head | Item) -> None:
        # The server's hint for caches, to be echoed; it has nothing to do with the place.
        if isinstance(source, StreamEvent) and source.event == "control":
            cursor = payload_of(source).get("streamCursor")
            if isinstance(cursor, str) and cursor:
                state.extra["collapse"] = cursor
            else:
                state.extra.pop("collapse", None)

    # -- reading

    def unpack(self, event: Any) -> Iterable[Any]:
        # A batch may have other messages in it when it comes again: take it apart.
        return _messages(event) if self._json else (event,)

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
        closed = event.event == "control" and payload_of(event).get("streamClosed") is True
        return Outcome.COMPLETED if closed else None

    def deltas(self, event: Any) -> Sequence[Delta]:
        if event.event == "control":
            return ()
        text: Any = event.data
        if self._json:
            try:
                text = event.json()
            except ValueError:
                text = None
        return (Delta("text", text),) if isinstance(text, str) and text else ()

    # -- going on

    def resume_request(self, state: StreamState) -> Request | None:
        params = _start(state)
        if state.cursor is not None:
            params = {**params, "offset": state.cursor, "cursor": state.extra.get("collapse")}
        return Request(method="GET", url=state.url, params=params, repeat="all")

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        if status == 204 and headers.get("stream-closed", "").lower() == "true":
            return Finished(Outcome.COMPLETED)
        if status == 410:
            return Lost("the stream no longer holds this offset, or was deleted")
        return None

    def on_clean_close(self, state: StreamState) -> Verdict:
        return Resume()


def _start(state: StreamState) -> dict[str, str | None]:
    named = "offset" in parse_qs(urlsplit(state.url).query)
    return {"live": "sse"} if named else {"live": "sse", "offset": "-1"}


def _messages(event: Any) -> Iterator[Any]:
    messages: Any = None
    if event.event == "data":
        try:
            messages = event.json()
        except ValueError:
            messages = None
    if not isinstance(messages, list):
        yield event
        return
    for message in messages:
        yield StreamEvent("message", json.dumps(message, ensure_ascii=False, separators=(",", ":")))
