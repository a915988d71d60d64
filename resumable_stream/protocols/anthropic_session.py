"""
Anthropic's Managed Agents: the events of a session, which outlives every connection.

    GET /v1/sessions/{id}/events/stream                          what happens from now on
    GET /v1/sessions/{id}/events?order=asc&created_at[gte]=T     what has happened; pages by `next_page`

The stream has no cursor and no replay. So it is opened first, and then the history is read from the time of the last event
we have; events in both are dropped by their id. An event that is queued and processed later comes twice, without a time
and with one: these are two events. Previews (`event_start`, `event_delta`) are never replayed; the final event is complete.

Source: the PyPI package anthropic 2.10.0 (`resources/beta/sessions/events.py`, `types/beta/sessions/*`,
`lib/tools/_beta_session_runner.py`), beta `managed-agents-2026-04-01`. Older pages of the API name `/v1/sessions/{id}/stream`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal
from urllib.parse import urlsplit, urlunsplit

from .._checkpoint import fingerprint
from .._contract import Answer, Backfill, Head, Memo, Position, Promises, Request, ResumeProtocol, StreamState
from .._contract.abilities import Backfilled, Glance, Replayed, Structured
from .._contract.verdicts import Lost, Reject, Retry, Settled, Verdict
from .._events import Delta, Item, Outcome, StreamEvent
from ._json import object_of, payload_of
from ._shape import said

__all__ = ["AnthropicSession"]

_STREAM: Final = re.compile(r"(.*/v1/sessions/([^/]+)(?:/threads/[^/]+)?)(?:/events)?/stream")
# 60 s: history is ordered by the time an event was processed, the stream by the time it was sent. Repeats are dropped.
_OVERLAP: Final = timedelta(seconds=60)
_EVER: Final = datetime(1970, 1, 2, tzinfo=UTC)
_TURN: Final[Mapping[str, Outcome]] = {
    "end_turn": Outcome.COMPLETED,
    "retries_exhausted": Outcome.FAILED,
    "refusal": Outcome.INCOMPLETE,
    "budget_reached": Outcome.INCOMPLETE,
}


@dataclass(slots=True)
class _Memo(Memo):
    """When the stream was opened, the earliest event that belongs to it, and where the list of the history starts."""

    opened: str = ""
    floor: str = ""
    since: str = ""


class AnthropicSession(ResumeProtocol, Backfilled, Replayed, Structured, Glance):
    """
    `GET /v1/sessions/{id}/events/stream`, or that of one of its threads.

    Every persisted event arrives once. After a cut, missed events come from the history, before the live ones.
    Events from the history are named `message`, and their JSON is that of the list. Previews lost to a cut are gone,
    and so is an event that was still queued (it comes again when it is processed).

    `iter_text()` yields the text of `agent.message` events, not of their previews, which would repeat it.

    Args:
        until: `"session"`: a feed, which ends when the session is terminated or deleted. `"turn"`: it also ends when the agent
            goes idle, unless it waits for an action of yours.

    >>> AnthropicSession(until="turn")
    <AnthropicSession: resumable, has_end>
    """

    promises = Promises(resumable=True, numbered=False, has_end=True)
    json_names = frozenset({"message"})
    unique_ids = True
    keeps = frozenset({"opened"})
    identifies_by_event = False

    def __init__(self, *, until: Literal["session", "turn"] = "session") -> None:
        if until not in ("session", "turn"):
            raise ValueError(f"until must be 'session' or 'turn', got {until!r}")
        self._turn = until == "turn"
        self.endless = not self._turn

    @property
    def options(self) -> str:
        return "turn" if self._turn else ""

    def matches(self, request: StreamState, head: Head) -> bool:
        known = any(name.startswith("anthropic-") for name in head.headers) or "beta=true" in urlsplit(head.url).query
        named = _STREAM.fullmatch(urlsplit(request.url).path) is not None
        return known and named and request.method == "GET" and head.content_type == "text/event-stream"

    def identify(self, state: StreamState, source: Head | Item) -> None:
        if not isinstance(source, Head):
            return
        if (found := _STREAM.fullmatch(urlsplit(state.url).path)) is not None:
            state.stream_id = found[2]
        # From this time on everything belongs to the stream, even if the connection is lost before the first event.
        if not state.memo(_Memo).opened and (opened := _date(source.headers.get("date", ""))) is not None:
            state.memo(_Memo).opened = opened.isoformat()

    def position(self, event: Any) -> Position:
        payload = payload_of(event)
        own_id, time = payload.get("id"), payload.get("processed_at")
        if not isinstance(own_id, str):
            return Position(None)
        return Position(time, None, own_id) if isinstance(time, str) else Position(None, None, f"{own_id} queued")

    def fingerprint(self, event: Any) -> str:
        # The stream and the list may write the same event differently; its type and id do not change.
        payload = payload_of(event)
        kind = str(payload.get("type"))
        own_id = self.position(event).own_id
        return fingerprint(kind, own_id if own_id is not None else event.data)

    def end(self, event: Any) -> Outcome | Settled | None:
        payload = payload_of(event)
        match payload.get("type"):
            case "session.status_terminated":
                return Outcome.COMPLETED
            case "session.deleted":
                return Outcome.CANCELLED
            case "session.status_idle" if self._turn:
                reason = payload.get("stop_reason")
                kind = reason.get("type") if isinstance(reason, dict) else None
                return None if kind == "requires_action" else _TURN.get(str(kind), Outcome.INCOMPLETE)
        return None

    def deltas(self, event: Any) -> Sequence[Delta]:
        match payload_of(event):
            case {"type": "agent.message", "content": [*blocks]}:
                return tuple(each for at, block in enumerate(blocks) for each in said("text", object_of(block).get("text"), at))
        return ()

    def resume_request(self, state: StreamState) -> Request | None:
        return Request(method="GET", url=state.url, repeat="all")

    def reaches_back(self, state: StreamState) -> bool:
        # The history is read from a minute before the cursor.
        return True

    def backfill_request(self, state: StreamState) -> Request | None:
        since = _time(state.cursor)
        memo = state.memo(_Memo)
        opened = _time(memo.opened)
        # Events from before the stream was opened are not part of it: the idle event of the previous turn would end this one.
        memo.floor = (opened or since or _EVER).isoformat()
        since = opened if since is None else max(since, _EVER) - _OVERLAP
        # All pages belong to one list, so its start must stay fixed while the cursor moves with the events of the first pages.
        memo.since = "" if since is None else since.isoformat().replace("+00:00", "Z")
        return _history(state, None)

    def on_backfill(self, answer: Answer, state: StreamState) -> Backfill | Verdict:
        if answer.status in (404, 410):
            return Lost(f"the server answered {answer.status}: the session is gone")
        if answer.status >= 400:
            transient = answer.status in (408, 409, 429) or answer.status >= 500
            return Retry() if transient else Reject(f"the server answered the request for the history with {answer.status}")
        try:
            page = json.loads(answer.body)
            events = [StreamEvent(data=json.dumps(item, ensure_ascii=False)) for item in page["data"] if _ours(item, state)]
        except (RecursionError, ValueError, TypeError, KeyError):
            return Retry("the history cannot be read")
        following = page.get("next_page")
        return Backfill(events, _history(state, following) if isinstance(following, str) and following else None)

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        return Retry("the session is busy") if status == 409 else None

    def cancel_request(self, state: StreamState) -> Request | None:
        return Request(method="POST", url=_events(state), json={"events": [{"type": "user.interrupt"}]})


def _events(state: StreamState) -> str:
    parts = urlsplit(state.url)
    found = _STREAM.fullmatch(parts.path)
    return urlunsplit(parts._replace(path=f"{found[1]}/events" if found is not None else parts.path))


def _history(state: StreamState, page: str | None) -> Request:
    wanted: dict[str, str | None] = {"event_deltas": None, "limit": "1000", "order": "asc", "page": page}
    wanted["created_at[gte]"] = state.memo(_Memo).since or None
    return Request(method="GET", url=_events(state), headers={"Accept": "application/json"}, params=wanted, repeat="all")


def _ours(item: Any, state: StreamState) -> bool:
    if not isinstance(item, dict):
        return False
    time, floor = item.get("processed_at"), _time(state.memo(_Memo).floor)
    when = _time(time) if isinstance(time, str) else None
    return when is None or floor is None or when >= floor


def _time(text: str | None) -> datetime | None:
    try:
        found = datetime.fromisoformat(text) if text else None
        return found.replace(tzinfo=UTC) if found is not None and found.tzinfo is None else found
    except ValueError:
        return None


def _date(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text).astimezone(UTC)
    except (ValueError, TypeError):
        return None
