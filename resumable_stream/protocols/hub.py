"""
The streams of `resumable_stream.server`: server-sent events from a log that outlives the connection.

    POST /chat                              →  200, Content-Location: /streams/msg_42, Stream-Id: msg_42
                                               id: k7q2.1 …
    GET  /streams/msg_42                    →  what follows event 1247 of the log `k7q2`, then what is live
         Last-Event-ID: k7q2.1247
    POST /streams/msg_42/cancel             →  the generation stops; leaving does not stop it

An id is `<epoch>.<n>`: `n` numbers the events of the log from 1 without gaps, and the epoch names the log, so that a recreated
log is never mistaken for a lost one. The last event is `event: end` and carries the outcome. A request from after that event
is answered 204, with the outcome in a header.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self
from urllib.parse import parse_qs, unquote, urljoin, urlsplit, urlunsplit

from .._checkpoint import fingerprint
from .._contract import KEY, ResumeProtocol
from .._contract.abilities import Documents, Explained, Glance, Joined, Logged, Shared, Stepped, Stored, Structured
from .._contract.values import Alarm, Answer, Document, Head, Memo, Position, Promises, Request, Snapshot, StreamState
from .._contract.verdicts import Ask, Consume, Finished, Lost, Reject, Resume, Settled, Verdict
from .._events import Delta, Item, Outcome, StreamEvent
from ._ends import TextOf
from ._json import JSONPath, object_of, parsed, payload_of
from ._shape import said

__all__ = ["HubStream"]

# 18 digits fit a signed 64-bit integer.
_PLACE: Final = re.compile(r"([^.\s]{1,64})\.([0-9]{1,18})")
_FEED: Final = re.compile(r".*/sessions/[^/]+/feed/?")
# Events about the connection, which have no position in the log.
_CONTROL: Final = frozenset({"caught-up", "presence", "snapshot"})
_OUTCOMES: Final = {outcome.value: outcome for outcome in Outcome}
REASON: Final = re.compile(r';\s*reason\s*=\s*"?([^";]*)')
# Query parameters that choose where an answer begins, or its form. A returning reader sends its own cursor instead.
_WHERE: Final[dict[str, str | None]] = dict.fromkeys(("after", "view"))
# Headers that belong only to the request that starts a stream.
STARTING: Final[dict[str, str | None]] = dict.fromkeys(("Idempotency-Key", "Prefer"))
# Maximum characters of a server's text in messages.
_SHOWN: Final = 200


@dataclass(slots=True)
class Reason(Memo):
    """Why the stream ended, as the server said."""

    reason: str = ""


class HubStream(ResumeProtocol, Documents, Explained, Joined, Logged, Shared, Stepped, Stored, Structured, Glance):
    """
    A stream of our own server: `hub.respond()`, `POST /streams`, `GET /streams/{id}`, and the feed of a session.

    It is chosen automatically if a response has the header `Stream-Id`, and resumes by a GET of its `Content-Location`
    with `Last-Event-ID`. Ids are numbered, so a gap is detected. An event of another epoch comes from another log and raises
    `ReplayDiverged`.

    If the caller names it (`protocol=HubStream()`), a POST carries a random `Idempotency-Key`, unless the caller chose one. If
    its response is lost, it is sent again with the same key, and the server joins it to the stream that it started.

    `event: end` ends the stream with the outcome that it carries, and so does 204. After any other close the stream reconnects:
    a server that shuts down sends `retry:` and closes, or answers 503.
    If the log no longer holds what follows the cursor, the server answers 410, which raises `CursorExpired` with the reason. With
    `on_lost="snapshot"` the text that the server has stored (`GET …/message`) is delivered as a reset.

    Events are what the producer wrote. Besides `end`, the server itself uses four names. `snapshot`, the first event of
    `?view=snapshot`, holds the text of everything before it. `reset` takes back the text so far, because the producer starts
    over. `caught-up`, requested by `?control=1`, has no id and says that the replay is over; it may come once per
    connection. `presence`, requested by `?presence=1`, has no id either and says how many readers follow a session now.

    Args:
        end: `"auto"`: `event: end` ends the stream, and a close without it is a cut. `"never"`: a feed, such as a session's;
            only 204 ends it.
        text: Where to find the visible text of an unnamed event: a dotted path into the JSON of its `data`, or a callable
            of any event (→ text or `None`).

    >>> HubStream()
    <HubStream: resumable, numbered, has_end>
    >>> HubStream(end="never")
    <HubStream: resumable, numbered>
    """

    keeps = frozenset({"reason", KEY})
    sequence = "contiguous"
    identifies_by_event = False
    joins = True
    alarm = Alarm(frozenset({"end"}), frozenset())

    def __init__(self, *, end: Literal["auto", "never"] = "auto", text: TextOf = "text") -> None:
        if end not in ("auto", "never"):
            raise ValueError(f"end must be 'auto' or 'never', got {end!r}")
        if not (callable(text) or isinstance(text, str)):
            raise TypeError(f"text must be a dotted path into the JSON of data, or a callable of the event, got {text!r}")
        self._feed = self.endless = end == "never"
        self._given = text
        self._text = JSONPath(text) if isinstance(text, str) else text
        if isinstance(text, str):
            self.json_names = frozenset({"message", "snapshot"})
        if self._feed:
            self.alarm = Alarm(frozenset(), frozenset())

    @property
    def promises(self) -> Promises:
        return Promises(resumable=True, numbered=True, has_end=not self._feed)

    @property
    def options(self) -> str:
        if not self._feed and self._given == "text":
            return ""
        # A callable has no text that is the same in every process.
        return fingerprint("options", repr((self._feed, "callable" if callable(self._given) else self._given)))

    @classmethod
    def for_request(cls, request: StreamState) -> Self:
        feed = request.method == "GET" and _FEED.fullmatch(urlsplit(request.url).path) is not None
        return cls(end="never" if feed else "auto")

    def matches(self, request: StreamState, head: Head) -> bool:
        headers = head.headers
        if head.status == 204:
            return "stream-outcome" in headers
        # A relay's answer has the header too, and its epoch beside it: that is the provider's stream, without ids of ours.
        # The other one is of the Durable Streams protocol.
        if "stream-id" not in headers or "stream-epoch" in headers or "stream-next-offset" in headers:
            return False
        if head.status == 202 and "location" in headers:
            return True
        if head.content_type != "text/event-stream":
            return False
        url = urlsplit(request.url)
        if parse_qs(url.query).get("view") == ["verbatim"]:
            return False
        # Other servers may use a header of that name.
        named = unquote(url.path).rstrip("/").endswith(f"/{headers['stream-id']}")
        return "content-location" in headers or named or (request.method == "GET" and _FEED.fullmatch(url.path) is not None)

    def identify(self, state: StreamState, source: Head | Item) -> None:
        if isinstance(source, Head) and not state.resuming:
            state.stream_id = source.headers.get("stream-id") or None
            state.location = source.headers.get("content-location") or source.headers.get("location")

    def position(self, event: Any) -> Position:
        own_id = event.own_id
        if event.event in _CONTROL and not own_id:
            return Position(None)
        # What the producer wrote may begin with a block that delivers nothing, and the id is on that block.
        cursor = own_id if own_id is not None else event.id or None
        found = _PLACE.fullmatch(cursor) if cursor else None
        return Position(cursor, int(found[2]) if found else None, own_id)

    def place(self, events: Sequence[Any]) -> None:
        # The same as `position()`, without writing what the event already has: its id is the cursor.
        for event in events:
            own_id = event.own_id
            if event.event in _CONTROL and not own_id:
                event.moves = False
                continue
            number = (own_id if own_id is not None else event.id).rpartition(".")[2]
            if number.isascii() and number.isdigit() and len(number) < 19:
                event.sequence = int(number)

    def lineage(self, cursor: str) -> str:
        found = _PLACE.fullmatch(cursor)
        return f"{found[1]}." if found else ""

    def end(self, event: Any) -> Outcome | None:
        if self._feed or event.event != "end":
            return None
        outcome = payload_of(event).get("outcome")
        # Without an outcome it is the application's own event, despite its name.
        return outcome_of(outcome) if isinstance(outcome, str) else None

    def end_in(self, state: StreamState, event: Any, end: Outcome | Settled) -> Outcome | Settled:
        body = payload_of(event)
        error = object_of(body.get("error"))
        said = (body.get("reason"), error.get("reason"), error.get("message"))
        note_reason(state, ": ".join(each for each in said if isinstance(each, str) and each))
        return end

    def deltas(self, event: Any) -> Sequence[Delta]:
        if event.event == "snapshot":
            text = payload_of(event).get("text")
        elif event.event == "message" or callable(self._given):
            text = self._text(event)
        else:
            return ()
        return said("text", text)

    def step(self, event: Any) -> Literal["begin", "void"] | None:
        return "void" if event.event == "reset" else None

    def why_not(self, state: StreamState) -> str:
        return "" if home_of(state) is not None else "the answer has no Content-Location, so the rest cannot be requested"

    def why_ended(self, state: StreamState) -> str:
        return state.memo(Reason).reason

    def resume_request(self, state: StreamState) -> Request | None:
        home = home_of(state)
        if home is None:
            return None
        headers, params = dict(STARTING), {}
        if state.cursor is not None:
            headers["Last-Event-ID"] = state.cursor
            params = dict(_WHERE)
        # The request's own URL may have a query that grants access.
        return Request(method="GET", url=home, headers=headers, params=params, repeat="all" if home == state.url else None)

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        match status:
            case 202 if state.location is None and not state.resuming and "location" in headers and _deferred(headers):
                return Consume(whole=True)
            case 204:
                # This answers a cursor after the end, so nothing is missing, whatever else the head says.
                told = headers.get("stream-outcome", "")
                if (reason := REASON.search(told)) is not None:
                    note_reason(state, reason[1].strip())
                return Finished(outcome_of(told.partition(";")[0].strip()), verified=True)
            case 404:
                text = absent("server", _named(state))
                return Lost(text) if state.resuming else Reject(text)
            case 409:
                return Reject(conflict(headers, body))
            case 410:
                said = object_of(parsed(body))
                if said.get("error") == "history_gone":
                    return Lost(_gone(said, state))
        return None

    def on_document(self, body: bytes, state: StreamState) -> Document:
        # The body of a deferred answer. What matters is in its head.
        return Document(())

    def on_clean_close(self, state: StreamState) -> Verdict:
        head = state.head
        if head is not None and head.status == 202 and _deferred(head.headers) and state.location is not None:
            # That response was not the stream, which is now read from its `Location`, without waiting.
            return Ask()
        return Resume()

    def snapshot_request(self, state: StreamState) -> Request | None:
        home = home_of(state)
        return None if self._feed or home is None else beside(home, "message", "GET", own=home == state.url)

    def on_snapshot(self, answer: Answer, state: StreamState) -> Snapshot | None:
        body = object_of(parsed(answer.body))
        text, cursor, outcome = body.get("text"), body.get("cursor"), body.get("outcome")
        if not isinstance(text, str) or not isinstance(cursor, str) or _PLACE.fullmatch(cursor) is None:
            return None
        event = StreamEvent(
            "snapshot", json.dumps({"text": text}, ensure_ascii=False, separators=(",", ":")), id=cursor, own_id=cursor
        )
        return Snapshot([event], reset=state.offset > 0, outcome=outcome_of(outcome) if isinstance(outcome, str) else None)

    def cancel_request(self, state: StreamState) -> Request | None:
        home = home_of(state)
        return None if self._feed or home is None else beside(home, "cancel", "POST", own=home == state.url)


def home_of(state: StreamState) -> str | None:
    """The URL to read a stream from again: the one its answer named, or a GET's own URL if that is the same resource."""
    if state.location is None:
        return state.url if state.safe else None
    location = urljoin(state.url, state.location)
    same = state.safe and unquote(urlsplit(location).path) == unquote(urlsplit(state.url).path)
    return state.url if same else location


def beside(home: str, verb: str, method: str, *, own: bool) -> Request:
    """A request for a resource below a stream. `own`: the stream is at the caller's own URL, whose query may grant access."""
    parts = urlsplit(home)
    url = urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{verb}"))
    headers, params = {**STARTING, "Last-Event-ID": None}, {**_WHERE, "control": None}
    return Request(method=method, url=url, headers=headers, params=params, repeat="query" if own else None)


def outcome_of(value: str) -> Outcome:
    """The named outcome; `ENDED` for one that only a later version knows."""
    return _OUTCOMES.get(value, Outcome.ENDED)


def note_reason(state: StreamState, reason: str) -> None:
    """Remember why the stream ended, for people. Checkpoints keep it, so its length is bounded."""
    if reason:
        state.memo(Reason).reason = reason[:_SHOWN]


def _deferred(headers: Mapping[str, str]) -> bool:
    """Whether the server honoured `Prefer: respond-async`: the response describes the stream and is not the stream itself."""
    return not headers.get("content-type", "").lower().startswith("text/event-stream")


def _named(state: StreamState) -> str:
    return repr(state.stream_id) if state.stream_id else urlsplit(state.url).path


def _gone(said: dict[str, Any], state: StreamState) -> str:
    """Why the log no longer has what follows our cursor, and what is available instead."""
    if said.get("snapshot"):
        way = "params={'view': 'snapshot'} begins with its state"
    else:
        way = "on_lost='snapshot' gets the text that the server has stored"
    return f"{gone(said, state.cursor, _named(state))}; {way}"


def gone(said: dict[str, Any], cursor: str | None, name: str) -> str:
    """
    Why a log no longer has what follows a cursor, in a sentence.

    Args:
        said: The body of the 410.
        cursor: Our cursor; `None`: the beginning.
        name: Name of the stream.
    """
    why, oldest, tail = (str(said.get(each) or "")[:_SHOWN] for each in ("why", "oldest", "tail"))
    place = f"what follows {cursor!r}" if cursor is not None else "the beginning"
    match why:
        case "trimmed":
            what = f"its log was trimmed: it begins at {oldest}"
        case "other_epoch":
            what = f"its log was lost and replaced by a new one, which reaches {tail}"
        case "went_back":
            what = f"its log lost its end: it reaches no further than {tail}"
        case _:
            what = f"its reason is {why!r}"
    return f"the server no longer holds {place} of stream {name} ({why or 'history_gone'}): {what}"


def absent(who: str, name: str) -> str:
    """Explain a 404."""
    return (
        f"the {who} answered 404: it has no stream {name}, or the stream is not yours. Its retention may "
        "have ended, or it may have been started with other credentials"
    )


def conflict(headers: Mapping[str, str], body: bytes) -> str:
    """Explain a 409 to a request that starts a stream: another request has used its key, or its session is busy."""
    said = object_of(parsed(body))
    kind = str(said.get("error") or "")
    active = str(said.get("active") or headers.get("content-location") or "")[:_SHOWN]
    if "busy" in kind or (active and "key" not in kind):
        where = f" ({active})" if active else ""
        seen = f"the server answered 409: the session is busy, another stream of it is running{where}"
        return f"{seen}. Wait for its end, cancel it, or read it"
    return (
        "the server answered 409: the Idempotency-Key, or the id of the stream, was used for another request. One key starts one "
        "stream, so use a new key for another request"
    )
