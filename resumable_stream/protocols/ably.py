"""
Ably over server-sent events: an event's id covers all channels of the connection, and is sent back as `lastEvent`.

Source: ably.com/docs, "SSE" (protocols/sse, api/sse), "Updates and deletes" (messages/updates-deletes) and the pages of its
error codes (platform/errors/codes); npm `ably` 2.28.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from .._contract import Batched, Glance, Head, Parted, Promises, Reporting, Request, ResumeProtocol, StreamState
from .._contract.verdicts import Lost, Resume, Retry, Verdict
from .._errors import UpstreamError
from .._events import Delta, Gap
from ._ends import upstream_error
from ._json import object_of, parsed, payload_of

__all__ = ["AblySSE"]

# Codes for a connection whose state is gone.
_LOST: Final = frozenset({80008, 80018})
# The `action` of a message. 0 creates a message, and 5 appends to it.
_UPDATE, _DELETE, _META, _SUMMARY = 1, 2, 3, 4
# Codes for a dropped transport, or state kept elsewhere: npm `ably`, `isRetriable()`, and the pages of the codes.
_DROPPED: Final = frozenset({80000, 80002, 80003, 80017, 80022})


class AblySSE(ResumeProtocol, Batched, Parted, Reporting, Glance):
    """
    Messages of Ably channels over `/sse` or `/event-stream`: a feed that never ends.

    The cursor is the SSE id, which depends on connection state that Ably keeps for 2 minutes after a cut. Within that time every
    message arrives once and in order. Later, Ably may continue with new messages; no documented signal marks that.
    If Ably does say so (codes 80008, 80018), the gap is reported: `GapError`, or `.gap` with `on_gap="deliver"`.

    An expired token closes the connection with an `error` event. The stream reconnects from its cursor, so pass a callable as
    `headers=` that returns a new token. The same applies when Ably drops the connection (80003 and similar codes) or reports a
    server error (5xxxx). All other errors are `UpstreamError`.

    Messages may be updated (`action` 1), deleted (2) or appended to (5) on channels that allow it. The text of an event is the
    `data` of its message, if that is text. When reading as text, an update that continues where its message stopped counts as an
    append, since Ably may send one as the other. Any other update voids the text from that message on (`TextReset`,
    `StreamReset`), and what other messages said since is repeated. Events are delivered as they come, without `.reset`: one
    message is replaced, not the stream.

    >>> AblySSE()
    <AblySSE: resumable>
    """

    promises = Promises(resumable=True, numbered=False, has_end=False)
    endless = True
    identifies_by_event = False

    def matches(self, request: StreamState, head: Head) -> bool:
        parts = urlsplit(request.url)
        host = parts.hostname or ""
        ours = host.endswith((".ably.io", ".ably.net", ".ably-realtime.com"))
        path = parts.path.rstrip("/") in ("/sse", "/event-stream")
        return request.method == "GET" and ours and path and head.content_type == "text/event-stream"

    def unpack(self, event: Any) -> Sequence[Any]:
        # An event that only says "connect again" or "still here" (`heartbeats=true`) belongs to no channel.
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

    def resume_request(self, state: StreamState) -> Request | None:
        # Ably ignores `rewind` when it resumes.
        params: Mapping[str, str] = {"lastEvent": state.cursor} if state.cursor is not None else {}
        return Request(method="GET", url=state.url, params=params, repeat="all")

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        error = object_of(object_of(parsed(body)).get("error"))
        if state.resuming and _code(error) in _LOST:
            return Lost(f"Ably no longer keeps this connection: {str(error.get('message', ''))[:200]}")
        if state.resuming and _code(error) in _DROPPED:
            # 80022 comes with status 410, but nothing is lost.
            return Retry(f"Ably dropped the connection: {str(error.get('message', ''))[:200]}")
        return None

    def on_clean_close(self, state: StreamState) -> Verdict:
        return Resume()


def _code(error: dict[str, Any]) -> int:
    code = error.get("code")
    return code if type(code) is int else 0


def _passes(error: dict[str, Any]) -> bool:
    """Whether to connect again: the token expired, the transport was dropped, or Ably reports a server error."""
    code, status = _code(error), error.get("statusCode")
    if code in _LOST:
        return False
    trouble = 50000 <= code < 60000 or (type(status) is int and status >= 500)
    return 40140 <= code < 40150 or code in _DROPPED or trouble
