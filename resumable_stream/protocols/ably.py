"""
Ably over server-sent events: the id of an event covers all channels of the connection, and goes back as `lastEvent`.

Source: ably.com/docs, "SSE" (protocols/sse, api/sse), "Updates and deletes" (messages/updates-deletes) and the pages of its
error codes (platform/errors/codes); npm `ably` 2.28.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from .._contract import Head, Lost, Promises, Request, Resume, ResumeProtocol, Retry, StreamState, Verdict
from .._errors import UpstreamError
from .._events import Delta, Gap
from ._ends import upstream_error
from ._json import object_of, parsed, payload_of

__all__ = ["AblySSE"]

# The state of the connection is gone.
_LOST: Final = frozenset({80008, 80018})
# What a message does. 0 creates one, and 5 appends to it.
_UPDATE, _DELETE, _META, _SUMMARY = 1, 2, 3, 4
# The transport was dropped, or its state is elsewhere: npm `ably`, `isRetriable()`, and the pages of the codes.
_DROPPED: Final = frozenset({80000, 80002, 80003, 80017, 80022})


class AblySSE(ResumeProtocol):
    """
    Messages of Ably channels over `/sse` or `/event-stream`: a feed that never ends.

    The place is the SSE id, which counts on the connection that Ably keeps for 2 minutes after a cut. Within them every message
    arrives once and in order; after them Ably may go on with what is new, without a word that is documented.
    Where it says so (codes 80008, 80018), the hole is told: `GapError`, or `.gap` with `on_gap="deliver"`.

    A token that ran out closes the connection with an `error` event: we connect again with the place, so pass a callable as
    `headers=` that brings a new token. So it is where Ably dropped the connection (80003 and its like) or is in trouble
    (5xxxx). All other errors are `UpstreamError`.

    Messages may be updated (`action` 1), deleted (2) or appended to (5) on channels that allow it. The text of an event is the
    `data` of its message, if that is a text. As text, an update that goes on where its message stopped is an append, since Ably
    may send one as the other; any other voids the text from that message on (`TextReset`, `StreamReset`), and what other messages
    said since is told again. Events are told as they come, without `.reset`: it is one message that is replaced, not the stream.

    >>> AblySSE()
    <AblySSE: resumable>

    Source: ably.com/docs, protocols/sse, api/sse and messages/updates-deletes.
    """

    promises = Promises(resumable=True, numbered=False, has_end=False)
    endless = True
    in_parts = True
    identifies_by_event = False

    def matches(self, request: StreamState, head: Head) -> bool:
        parts = urlsplit(request.url)
        host = parts.hostname or ""
        ours = host.endswith((".ably.io", ".ably.net", ".ably-realtime.com"))
        path = parts.path.rstrip("/") in ("/sse", "/event-stream")
        return request.method == "GET" and ours and path and head.content_type == "text/event-stream"

    # -- reading

    def unpack(self, event: Any) -> Sequence[Any]:
        # What only says "connect again", or "still here" (`heartbeats=true`), is no event of a channel.
        if event.event == "heartbeat" or (event.event == "error" and _passes(payload_of(event))):
            return ()
        return (event,)

    def error(self, event: Any) -> UpstreamError | None:
        if event.event != "error" or _code(payload_of(event)) in _LOST:
            return None
        body = payload_of(event)
        return upstream_error({"type": body.get("code"), "message": body.get("message") or event.data}, body or event.data)

    def gap(self, event: Any) -> Gap | None:
        return Gap(after=event.cursor) if event.event == "error" and _code(payload_of(event)) in _LOST else None

    def part(self, event: Any) -> tuple[str, bool] | None:
        body = payload_of(event)
        serial = body.get("serial")
        if event.event != "message" or not isinstance(serial, str):
            return None
        return f"{body.get('channel')} {serial}", body.get("action") in (_UPDATE, _DELETE)

    def deltas(self, event: Any) -> Sequence[Delta]:
        if event.event != "message":
            return ()
        body = payload_of(event)
        if "id" in body and body.get("action") in (_DELETE, _META, _SUMMARY):
            return ()
        text: Any = body.get("data") if "id" in body else event.data
        if body.get("encoding") == "json":
            text = parsed(text) if isinstance(text, str) else None
        elif body.get("encoding"):
            # Binary or encrypted.
            text = None
        return (Delta("text", text),) if isinstance(text, str) and text else ()

    # -- going on

    def resume_request(self, state: StreamState) -> Request | None:
        # Ably ignores `rewind` while it resumes.
        params: Mapping[str, str] = {"lastEvent": state.cursor} if state.cursor is not None else {}
        return Request(method="GET", url=state.url, params=params, repeat="all")

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        error = object_of(object_of(parsed(body)).get("error"))
        if state.resuming and _code(error) in _LOST:
            return Lost(f"Ably no longer keeps this connection: {str(error.get('message', ''))[:200]}")
        if state.resuming and _code(error) in _DROPPED:
            # 80022 comes with 410, and loses nothing.
            return Retry(f"Ably let go of the connection: {str(error.get('message', ''))[:200]}")
        return None

    def on_clean_close(self, state: StreamState) -> Verdict:
        return Resume()


def _code(error: dict[str, Any]) -> int:
    code = error.get("code")
    return code if type(code) is int else 0


def _passes(error: dict[str, Any]) -> bool:
    """Connect again: the token ran out, the transport was dropped, or it is Ably's own trouble."""
    code, status = _code(error), error.get("statusCode")
    if code in _LOST:
        return False
    trouble = 50000 <= code < 60000 or (type(status) is int and status >= 500)
    return 40140 <= code < 40150 or code in _DROPPED or trouble
