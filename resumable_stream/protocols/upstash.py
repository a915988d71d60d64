"""
Upstash Realtime: a feed of channels; the newest id of each is sent back as `last_ack_<channel>`.

An event's id belongs to its channel, so for several channels the cursor is the newest id of each, written as a query.

Source: upstash.com/docs, "Realtime"; npm `@upstash/realtime` 1.1.0 (`server/handler.js`, `client/provider.js`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs, urlencode, urlsplit

from .._contract import Batched, Head, Memo, Position, Promises, Request, Resume, ResumeProtocol, StreamState, Structured, Verdict
from .._errors import UpstreamError
from .._events import Delta, Item, StreamEvent
from ._ends import upstream_error
from ._json import payload_of
from ._shape import said

__all__ = ["UpstashRealtime"]

# Frames about the connection, not of a channel.
_FRAMES: Final = frozenset({"connected", "reconnect", "disconnected", "ping"})
_ID: Final = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")
# A channel that has no event yet, and no id in the first URL, is read from this long before the first event of any channel.
# Ids are milliseconds, and events of several channels are out of order by less than this.
_EARLIER_MS: Final = 5000


@dataclass(slots=True)
class _Memo(Memo):
    places: str = ""


class UpstashRealtime(ResumeProtocol, Batched, Structured):
    """
    The events of Upstash Realtime channels: a feed that never ends.

    The server closes before its function's time is up and sends `reconnect`. The stream then resumes from the id of the newest
    event, and the server sends what was added since. Each channel has its own position; between channels the order may
    change at a reconnect. A channel without an event so far is read from 5 seconds before the first event of any channel.
    Before its first event the feed has no position: events sent during a disconnect are then missed, unless the
    first URL has a `last_ack_<channel>`.

    Frames about the connection (`connected`, `ping`, `reconnect`) are not delivered; `error` is `UpstreamError`.
    Pings come every 60 seconds: set `Timeouts(idle=90)` to avoid reconnects on a quiet feed.

    >>> UpstashRealtime()
    <UpstashRealtime: resumable>
    """

    promises = Promises(resumable=True, numbered=False, has_end=False)
    json_names = frozenset({"message"})
    unique_ids = True
    endless = True

    def matches(self, request: StreamState, head: Head) -> bool:
        # Only the acknowledgements distinguish it from another feed.
        query = parse_qs(urlsplit(request.url).query, keep_blank_values=True)
        acks = any(name.startswith("last_ack_") for name in query)
        return request.method == "GET" and acks and head.content_type == "text/event-stream"

    def unpack(self, event: Any) -> Sequence[Any]:
        return () if _is_frame(event) else (event,)

    def position(self, event: Any) -> Position:
        body = payload_of(event)
        cursor, channel = body.get("id"), body.get("channel")
        if not isinstance(cursor, str) or not _ID.fullmatch(cursor):
            return Position(None)
        return Position(cursor, None, f"{channel} {cursor}")

    def identify(self, state: StreamState, source: Head | Item) -> None:
        # Not an identity, but the rest of the cursor: it depends on earlier events of the other channels.
        if isinstance(source, Head):
            state.memo(_Memo).places = state.cursor or ""
            return
        channels = _channels(state)
        if not isinstance(source, StreamEvent) or not source.cursor or len(channels) == 1:
            return
        places = _places(state, channels, state.memo(_Memo).places or source.cursor)
        channel = payload_of(source).get("channel")
        if isinstance(channel, str) and channel in places and _order(source.cursor) > _order(places[channel]):
            places[channel] = source.cursor
        source.cursor = state.memo(_Memo).places = urlencode(places)

    def error(self, event: Any) -> UpstreamError | None:
        body = payload_of(event)
        if body.get("type") != "error" or "id" in body:
            return None
        return upstream_error({"message": body.get("error")}, body)

    def deltas(self, event: Any) -> Sequence[Delta]:
        return said("text", payload_of(event).get("data"))

    def resume_request(self, state: StreamState) -> Request | None:
        channels = _channels(state)
        places = _places(state, channels, state.cursor) if state.cursor is not None else {}
        params = {f"last_ack_{channel}": place for channel, place in places.items()}
        return Request(method="GET", url=state.url, params=params, repeat="all")

    def on_clean_close(self, state: StreamState) -> Verdict:
        return Resume()


def _is_frame(event: Any) -> bool:
    body = payload_of(event)
    return "id" not in body and str(body.get("type")) in _FRAMES


def _channels(state: StreamState) -> list[str]:
    return list(dict.fromkeys(parse_qs(urlsplit(state.url).query).get("channel", ["default"])))


def _places(state: StreamState, channels: list[str], cursor: str) -> dict[str, str]:
    """The newest id of each channel. A cursor that is a plain id is the first event's; in any other form it holds no ids."""
    if (found := _ID.fullmatch(cursor)) is not None:
        if len(channels) == 1:
            return {channels[0]: cursor}
        asked = parse_qs(urlsplit(state.url).query)
        earlier = f"{max(0, int(found[1]) - _EARLIER_MS)}-0"
        return {channel: asked.get(f"last_ack_{channel}", [earlier])[-1] for channel in channels}
    held = {name: values[-1] for name, values in parse_qs(cursor).items()}
    return {channel: held[channel] for channel in channels if channel in held}


def _order(place: str) -> tuple[int, int]:
    """Sort key: ids in order of time; anything else, which a first URL may hold, comes before them."""
    found = _ID.fullmatch(place)
    return (int(found[1]), int(found[2])) if found is not None else (0, 0)
