"""
Upstash Realtime: a feed of channels; the newest id of each goes back as `last_ack_<channel>`.

Source: upstash.com/docs, "Realtime"; npm `@upstash/realtime` 1.1.0 (`server/handler.js`, `client/provider.js`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from .._core.interfaces import Head, Position, Promises, Request, Resume, ResumeProtocol, StreamState, Verdict
from .._errors import UpstreamError
from .._events import Delta
from ._ends import upstream_error
from ._json import payload_of

__all__ = ["UpstashRealtime"]

# About the connection, not of a channel.
_FRAMES: Final = frozenset({"connected", "reconnect", "disconnected", "ping"})
_ID: Final = re.compile(r"([0-9]{1,18})-[0-9]{1,18}")
# Events of several channels are sent in another order than their ids, which are milliseconds, by less than this.
_OVERLAP_MS: Final = 5000


class UpstashRealtime(ResumeProtocol):
    """
    The events of Upstash Realtime channels: a feed that never ends.

    The server closes before its function's time is up and says `reconnect`; we come back with the id of the newest event,
    and it sends what was added since. With one channel that is exact. Over several channels one place must do for all,
    so each is read again from 5 seconds before it, and what was delivered is dropped by its id.
    Before its first event the feed has no place: what is sent while it is disconnected then is missed, unless the
    first URL has a `last_ack_<channel>`.

    Frames about the connection (`connected`, `ping`, `reconnect`) are not delivered; `error` is `UpstreamError`.
    Pings come each 60 seconds: raise `Timeouts(idle=90)` to spare a reconnect on a quiet feed.

    >>> UpstashRealtime()
    <UpstashRealtime: resumable>

    Source: upstash.com/docs, "Realtime"; npm `@upstash/realtime` 1.1.0.
    """

    sequence = None
    unique_ids = True
    endless = True
    identifies_by_event = False

    @property
    def promises(self) -> Promises:
        return Promises(resumable=True, numbered=False, has_end=False)

    def matches(self, request: StreamState, head: Head) -> bool:
        # Nothing but its acknowledgements tells it from another feed.
        query = parse_qs(urlsplit(request.url).query, keep_blank_values=True)
        acks = any(name.startswith("last_ack_") for name in query)
        return request.method == "GET" and acks and head.content_type == "text/event-stream"

    # -- reading

    def unpack(self, event: Any) -> Sequence[Any]:
        return () if _is_frame(event) else (event,)

    def position(self, event: Any) -> Position:
        body = payload_of(event)
        cursor, channel = body.get("id"), body.get("channel")
        if not isinstance(cursor, str) or not _ID.fullmatch(cursor):
            return Position(None)
        return Position(cursor, None, f"{channel} {cursor}")

    def error(self, event: Any) -> UpstreamError | None:
        body = payload_of(event)
        if body.get("type") != "error" or "id" in body:
            return None
        return upstream_error({"message": body.get("error")}, body)

    def deltas(self, event: Any) -> Sequence[Delta]:
        data = payload_of(event).get("data")
        return (Delta("text", data),) if isinstance(data, str) and data else ()

    # -- going on

    def resume_request(self, state: StreamState) -> Request | None:
        found = _ID.fullmatch(state.cursor or "")
        if found is None:
            return Request(method="GET", url=state.url, repeat="all")
        channels = parse_qs(urlsplit(state.url).query).get("channel", ["default"])
        exact = len(set(channels)) == 1
        place = found[0] if exact else f"{max(0, int(found[1]) - _OVERLAP_MS)}-0"
        params = {f"last_ack_{channel}": place for channel in channels}
        return Request(method="GET", url=state.url, params=params, repeat="all")

    def on_clean_close(self, state: StreamState) -> Verdict:
        return Resume()


def _is_frame(event: Any) -> bool:
    body = payload_of(event)
    return "id" not in body and str(body.get("type")) in _FRAMES
