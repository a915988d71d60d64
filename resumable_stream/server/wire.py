"""
The server's answers over HTTP, as functions of values: no sockets, no clock, no framework.

    Facts of a request ──asked()──▶ Asked ──answer_to_reader(…, state)──▶ Answer: status, headers, first bytes, the rest
                                  └▶ Answer with status 400, which says what was expected

A stream can be read in four views:

    events      server-sent events, each with `id: <epoch>.<n>`, and `event: end` as the last one
    snapshot    the same, but the events so far are one event `snapshot`
    verbatim    the bytes as the producer wrote them, from event n + 1 on, in their own content type
    raw         the same bytes, from a byte position on

*A verbatim or raw body never ends cleanly unless the producer's work did.* Most SDKs take a clean close for success. So the body
of a stream that failed, or was cancelled, is cut (`Closing.clean` is false), and the next request gets the outcome from a 204.

*`Last-Event-ID` wins over `?after=`.* An `EventSource` repeats its URL with each reconnect, including the `after` that the page
once put there. The header is newer, because it names the last event that has arrived.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, get_args
from urllib.parse import parse_qsl, quote

from .._events import Outcome
from .log import Cursor, Ending, Framing, Gone, Head, Unknown, check_stream_id

__all__ = [
    # a request
    "Facts",
    "View",
    "Asked",
    "asked",
    # how a stream stands
    "Standing",
    "Missing",
    "Unavailable",
    "State",
    # answers
    "Answer",
    "Follow",
    "Closing",
    "answer_to_reader",
    "answer_to_awaited",
    "answer_to_message",
    "accepted",
    "bad_request",
    "busy",
    "closing",
    "ended",
    "forbidden",
    "forgotten",
    "healthy",
    "inbox_full",
    "key_reused",
    "nothing_runs",
    "method_not_allowed",
    "not_found",
    "problem",
    "said",
    "told_to_stop",
    "to_json",
    "too_large",
    "unavailable",
    # pieces of an event stream
    "caught_up",
    "end_event",
    "event_block",
    "heartbeat",
    "retry_bounds",
    "retry_line",
    "snapshot_event",
    # headers
    "check_header",
    "check_origins",
    "cors_headers",
    "encode_headers",
    "outcome_header",
    "path_of",
    "preflight",
]

View: TypeAlias = Literal["events", "verbatim", "snapshot", "raw"]
"""How a stream is shown."""

RETRY_MS: Final = (500, 1000)
"""Bounds of `retry:`. Half a second is not noticeable, and the other half spreads the readers of a server that went away."""
MOST_RETRY_MS: Final = 5000
"""Upper bound of `retry:` for a server with very many readers: roughly what browsers wait by default (3 to 5 s)."""
COME_BACK_MS: Final = (5000, 15000)
"""Bounds of `retry:` while a browser cannot be served: an `EventSource` asks at this pace until it is."""
RETRY_AFTER: Final = (1, 5)
"""Bounds of `Retry-After`, in seconds. Shorter than for browsers, because such clients back off by themselves."""
REPORTED: Final = "upstream_reported"
"""Reason of a failure that the stream's last events report themselves: readers of the bytes see it, so no cut is needed."""
HEARTBEATS: Final = (1.0, 300.0)
"""Bounds of a requested heartbeat, in seconds: no more work than an event each, and below the usual idle limits."""

_KEY: Final = re.compile(r"[!-~]{1,256}", re.ASCII)
_DIGITS: Final = re.compile(r"0|[1-9][0-9]{0,15}", re.ASCII)
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+", re.ASCII)
# Characters of a quoted reason that need no percent-encoding, besides letters, digits and `_.-~`.
_IN_QUOTES: Final = " !#$&'()*+,/:<=>?@[]^`{|}"
_SHOWN: Final = 80

_NO_STORE: Final = ("Cache-Control", "no-store")
_NO_SNIFF: Final = ("X-Content-Type-Options", "nosniff")
# `no-transform` and `X-Accel-Buffering` are for proxies that would compress or buffer a stream.
_LIVE: Final = (("Cache-Control", "no-cache, no-transform"), ("X-Accel-Buffering", "no"), _NO_SNIFF)
_EVENT_STREAM: Final = ("Content-Type", "text/event-stream")
# Headers of an upstream that concern one connection, or that this answer sets itself.
_OURS: Final = frozenset(
    {
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-location",
        "content-type",
        "keep-alive",
        "location",
        "proxy-authenticate",
        "set-cookie",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "vary",
        "x-accel-buffering",
        "x-content-type-options",
    }
)
_EXPOSED: Final = (
    "Content-Location, Location, Retry-After, Stream-Id, Stream-Epoch, Stream-Tail, Stream-Bytes, Stream-Closed, Stream-Outcome"
)
_ALLOWED: Final = "Authorization, Last-Event-ID, Idempotency-Key, Content-Type, Prefer, Stream-Heartbeat"
_METHODS: Final = "GET, HEAD, POST, DELETE"


# --- a request ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Facts:
    """
    A request without its path and body.

    Attributes:
        method: `GET`, `HEAD`, …
        headers: By name, case-insensitively.
        query: The part after the `?`, still encoded.
    """

    method: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", self.method.upper())
        object.__setattr__(self, "headers", MappingProxyType({name.lower(): value for name, value in self.headers.items()}))

    @property
    def is_browser(self) -> bool:
        """
        Whether it comes from a browser: it has `Sec-Fetch-Dest`, or an agent that begins with `Mozilla/`.

        Chromium sends the first with every `EventSource`; the second covers other browsers.
        """
        return "sec-fetch-dest" in self.headers or self.headers.get("user-agent", "").startswith("Mozilla/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """
    A parsed request.

    Attributes:
        method: As in `Facts`.
        view: How to show the stream; `None`: unspecified, which means `events`, or `verbatim` for a stream of raw bytes.
        after: The last event that the reader has; `None`: from the start.
        from_byte: In the raw view, the position of the first byte wanted.
        control: Send `event: caught-up` when the replay is over.
        presence: Count this reader of a feed, and send it the number of readers.
        heartbeat: Seconds of silence before a heartbeat; `None`: unspecified.
        respond_async: Answer a POST that starts a stream with 202 instead of the stream.
        key: Value of `Idempotency-Key`.
        browser: As `Facts.is_browser`.
    """

    method: str = "GET"
    view: View | None = None
    after: Cursor | None = None
    from_byte: int | None = None
    control: bool = False
    presence: bool = False
    heartbeat: float | None = None
    respond_async: bool = False
    key: str | None = None
    browser: bool = False


def asked(facts: Facts) -> Asked | Answer:
    """
    Parse a request; parameters with other names are left to the application.

    Args:
        facts: Facts of the request.

    Returns:
        The parsed request, or an answer with status 400 that says which part was wrong, and what was expected.
    """
    query: dict[str, str] = {}
    for name, value in parse_qsl(facts.query, keep_blank_values=True):
        if name not in ("view", "after", "from", "control", "presence"):
            continue
        if name in query:
            return bad_request(f"query parameter {name!r}", "given once", "given twice")
        query[name] = value
    headers = facts.headers

    view = query.get("view")
    if view is not None and view not in get_args(View):
        return bad_request("query parameter 'view'", f"one of {', '.join(get_args(View))}", view)

    from_byte = None
    if (text := query.get("from")) is not None:
        if _DIGITS.fullmatch(text) is None:
            return bad_request("query parameter 'from'", "the position of a byte: a whole number >= 0", text)
        if view not in (None, "raw"):
            return bad_request("query parameter 'from'", "view=raw or no view, because other views count events", f"view={view}")
        from_byte, view = int(text), "raw"
    elif view == "raw":
        from_byte = 0

    # An `EventSource` that has seen no id sends an empty header.
    where, text = "header 'Last-Event-ID'", headers.get("last-event-id") or None
    if text is None:
        where, text = "query parameter 'after'", query.get("after")
    after = None
    if text is not None:
        if view == "raw":
            return bad_request(where, "no cursor in the raw view, which uses 'from'", text)
        try:
            after = Cursor.parse(text)
        except ValueError:
            return bad_request(where, "a cursor: an epoch, a dot and a number, as in 'k7q2.1247'", text)

    control = query.get("control", "0")
    if control not in ("0", "1"):
        return bad_request("query parameter 'control'", "0 or 1", control)

    presence = query.get("presence", "0")
    if presence not in ("0", "1"):
        return bad_request("query parameter 'presence'", "0 or 1", presence)

    beat = None
    if (text := headers.get("stream-heartbeat")) is not None:
        if _DIGITS.fullmatch(text.strip()) is None:
            return bad_request("header 'Stream-Heartbeat'", "a whole number of seconds", text)
        beat = min(max(float(text), HEARTBEATS[0]), HEARTBEATS[1])

    key = headers.get("idempotency-key")
    if key is not None:
        key = key.strip()
        # The draft of the header has a quoted string, but most clients send it bare.
        if len(key) >= 2 and key[0] == key[-1] == '"':
            key = key[1:-1]
        if _KEY.fullmatch(key) is None:
            return bad_request("header 'Idempotency-Key'", "1 to 256 visible ASCII characters", key)

    preferences = (each.partition(";")[0].strip().lower() for each in headers.get("prefer", "").split(","))
    return Asked(
        method=facts.method,
        view=view,  # type: ignore[arg-type]  # one of the four
        after=after,
        from_byte=from_byte,
        control=control == "1",
        presence=presence == "1",
        heartbeat=beat,
        respond_async="respond-async" in preferences,
        key=key,
        browser=facts.is_browser,
    )


# --- the state of a stream ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """
    A stream that exists, running or ended.

    Attributes:
        head: As created.
        epoch: Epoch of its log.
        n: Number of its last event.
        b: Byte position after it.
        oldest: Number of the oldest event held; n + 1 if none is.
        oldest_b: Byte position of the first byte held.
        ending: How it ended; `None` while it runs.
        snapshot: Data of the event `snapshot` that stands for all events up to `n`: for a stream `{"text": …}`.
            `None`: there is none, so the snapshot view shows the events themselves.
    """

    head: Head
    epoch: str
    n: int
    b: int
    oldest: int = 1
    oldest_b: int = 0
    ending: Ending | None = None
    snapshot: Mapping[str, Any] | None = None

    @property
    def tail(self) -> Cursor:
        """The last event."""
        return Cursor(self.epoch, self.n)


@dataclass(frozen=True, slots=True)
class Missing:
    """
    The stream is unknown.

    Attributes:
        private: Streams have owners here. A cursor then proves nothing, and the answer is the same as for another owner's
            stream. Without owners a cursor shows that the stream existed, and a 410 says that its log was lost.
    """

    private: bool = True


@dataclass(frozen=True, slots=True)
class Unavailable:
    """
    The stream cannot be served now.

    Attributes:
        reason: Why, in one word: `draining`, `too_many_readers`, `log_unavailable` …
    """

    reason: str


State: TypeAlias = Standing | Gone | Unknown | Missing | Unavailable
"""The state of a stream. `Unknown` comes from a log; it is answered as `Missing(private=True)`, like another owner's stream."""


# --- answers ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Follow:
    """
    The body continues with the events for a reader of the stream.

    Attributes:
        view: How the stream is shown.
        after: The event after which the reader starts.
        from_byte: In the raw view, the byte at which it starts instead.
        heartbeat: Sent after a silence of `every`; empty: nothing.
        every: Seconds.
        control: Send `caught_up()` as soon as the replay is over.
    """

    view: View
    after: Cursor
    from_byte: int | None = None
    heartbeat: bytes = b""
    every: float | None = None
    control: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """
    An HTTP answer.

    Attributes:
        status: HTTP status.
        headers: Names and values, without `Content-Length`.
        body: The body, or its first bytes.
        then: The rest of the body; `None`: the body is complete.

    Raises:
        ValueError: A header could be mistaken for two.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = field(default=b"", repr=False)
    then: Follow | None = None

    def __post_init__(self) -> None:
        for name, value in self.headers:
            check_header(name, value)

    def header(self, name: str) -> str | None:
        """The value of a header, case-insensitively; `None` if it is missing."""
        return next((value for each, value in self.headers if each.lower() == name.lower()), None)

    def also(self, *headers: tuple[str, str]) -> Answer:
        """The same answer with more headers."""
        return replace(self, headers=(*self.headers, *headers))


@dataclass(frozen=True, slots=True)
class Closing:
    """
    How the body of a reader ends.

    Attributes:
        body: The last bytes.
        clean: The body is complete. False: the connection is cut, so that nobody mistakes the part for the whole.
    """

    body: bytes
    clean: bool


def answer_to_reader(
    request: Asked,
    state: State,
    *,
    stream_id: str,
    location: str | None = None,
    random: float,
    heartbeat_every: float | None = 15.0,
    readers: int = 0,
) -> Answer:
    """
    Answer a GET or HEAD of a stream, or a POST that has started or joined one.

    | the stream | views with ids | verbatim, raw |
    |---|---|---|
    | is missing, or not the reader's | 404 | 404 |
    | runs | 200 | 200 |
    | has ended, and the reader has not seen the end | 200 | 200 |
    | has ended, and the reader has seen the end | 204, outcome in the head | 204, outcome in the head |
    | does not hold the events after the cursor | 410 | 410 |
    | cannot be served now | 503; to a browser 200, `retry:`, close | 503 |

    A browser gets no 503, because an `EventSource` gives up for good at any status other than 200. Other clients do, because many
    of them take an empty body with status 200 for the end of the stream.

    A HEAD without a cursor asks for the state of the stream: 200 with `Stream-Tail`, `Stream-Bytes` and, after the end,
    `Stream-Closed` and `Stream-Outcome`. With a cursor it gets the head of the GET.

    Args:
        request: The parsed request.
        state: State of the stream.
        stream_id: For the header `Stream-Id`.
        location: The path at which the stream can be read again, for `Content-Location`; `None`: there is none.
        random: From 0 up to but not including 1; it spreads the reconnects of many readers.
        heartbeat_every: Seconds of silence before a heartbeat, in the views with ids. 15: proxies close connections that are
            silent for 30 to 60. `None`: never.
        readers: Number of readers of this server; see `retry_bounds`.

    Returns:
        The answer. For a HEAD its body is empty.
    """
    answer = _answer(request, state, stream_id, location, random, heartbeat_every, readers)
    return replace(answer, body=b"", then=None) if request.method == "HEAD" else answer


def answer_to_awaited(
    request: Asked,
    head: Head,
    *,
    stream_id: str,
    location: str | None = None,
    random: float,
    heartbeat_every: float | None = 15.0,
    readers: int = 0,
    snapshot: Mapping[str, Any],
) -> Answer:
    """
    Answer a GET or HEAD of a feed that nobody has begun: 200, and the body waits.

    It has no epoch yet, so neither a header nor an id names a position, and its snapshot has no id. A cursor belongs to a feed
    that was lost: 410.

    Args:
        request: The parsed request.
        head: Head of the future feed.
        snapshot: Its state.
        stream_id, location, random, heartbeat_every, readers: As for `answer_to_reader`.
    """
    if request.after is not None:
        return _history_gone("went_back", oldest=None, tail=Cursor(request.after.epoch, 0), feed=True)
    state = Standing(head=head, epoch="aaaa", n=0, b=0)
    found = answer_to_reader(
        request,
        state,
        stream_id=stream_id,
        location=location,
        random=random,
        heartbeat_every=heartbeat_every,
        readers=readers,
    )
    body = found.body
    if found.then is not None and request.view == "snapshot":
        body += event_block(to_json(snapshot), event="snapshot")
    headers = tuple(each for each in found.headers if each[0] not in ("Stream-Tail", "Stream-Bytes", "Stream-Epoch"))
    return replace(found, headers=headers, body=body)


def _answer(
    request: Asked,
    state: State,
    stream_id: str,
    location: str | None,
    random: float,
    heartbeat_every: float | None,
    readers: int,
) -> Answer:
    match state:
        case Unavailable():
            if request.browser and request.method == "GET" and request.view in (None, "events", "snapshot"):
                named = _named(stream_id, location)
                return Answer(200, (_EVENT_STREAM, *_LIVE, *named), retry_line(random, COME_BACK_MS))
            return unavailable(state.reason, random=random)
        case Missing(private=False) if request.after is not None:
            return _history_gone("went_back", oldest=None, tail=Cursor(request.after.epoch, 0), feed=False)
        case Missing() | Unknown():
            return not_found()
        case Gone():
            return _gone(state)
    return _stands(request, state, stream_id, location, random, heartbeat_every, readers)


def _stands(
    request: Asked,
    state: Standing,
    stream_id: str,
    location: str | None,
    random: float,
    heartbeat_every: float | None,
    readers: int,
) -> Answer:
    head, after = state.head, request.after
    view: View = request.view or ("verbatim" if head.framing == "raw" else "events")
    with_ids = view in ("events", "snapshot")
    if with_ids and head.framing == "raw":
        expected = "verbatim or raw, because this stream has raw bytes, which cannot be shown as events"
        return bad_request("query parameter 'view'", expected, view)
    closed = _closed(state.ending)
    named = _named(stream_id, location)
    if request.method == "HEAD" and after is None and request.from_byte is None:
        kind = _EVENT_STREAM if with_ids else ("Content-Type", head.content_type)
        return Answer(200, (kind, *_LIVE, *named, *_tail(state), *closed))

    # A reader with a position continues there, even if the URL asks for a snapshot: an `EventSource` repeats its URL.
    joining = view == "snapshot" and after is None and state.snapshot is not None
    if not joining and (gone := _why_gone(state, after, request.from_byte)) is not None:
        return _history_gone(gone, oldest=_before(state.epoch, state.oldest), tail=state.tail, feed=head.feed)
    if state.ending is not None and _has_seen_the_end(state, request, with_ids=with_ids):
        return Answer(204, (*_LIVE, *named, *_tail(state), *closed))

    begin = state.tail if joining else Cursor(state.epoch, 0 if after is None else after.n)
    if with_ids:
        body = retry_line(random, retry_bounds(readers))
        if joining:
            assert state.snapshot is not None
            body += snapshot_event(state.tail, state.snapshot)
        every = heartbeat_every if request.heartbeat is None else request.heartbeat
        then = Follow(
            view=view, after=begin, heartbeat=b"" if every is None else heartbeat("sse"), every=every, control=request.control
        )
        return Answer(200, (_EVENT_STREAM, *_LIVE, *named, *closed), body, then)

    passed = tuple(
        (name, value)
        for name, value in head.headers
        if name.lower() not in _OURS and not name.lower().startswith(("stream-", "access-control-"))
    )
    # The reader counts events, or bytes, and needs the epoch for its cursor.
    epoch = ("Stream-Epoch", state.epoch)
    beat = b"" if request.heartbeat is None else heartbeat(head.framing)
    then = Follow(
        view=view,
        after=begin,
        from_byte=request.from_byte,
        heartbeat=beat,
        every=request.heartbeat if beat else None,
        control=False,
    )
    headers = (("Content-Type", head.content_type), *_LIVE, *named, epoch, *closed, *passed)
    return Answer(head.status, headers, b"", then)


def _why_gone(state: Standing, after: Cursor | None, from_byte: int | None) -> str | None:
    """Why the log does not hold the events after a position."""
    if from_byte is not None:
        if from_byte > state.b:
            return "went_back"
        return "trimmed" if from_byte < state.oldest_b else None
    if after is None:
        return "trimmed" if state.oldest > 1 else None
    if after.epoch != state.epoch:
        return "other_epoch"
    if after.n > (state.n if state.ending is None else state.n + 1):
        return "went_back"
    return "trimmed" if after.n < state.oldest - 1 else None


def _has_seen_the_end(state: Standing, request: Asked, *, with_ids: bool) -> bool:
    # Without a position nobody has seen anything, so the empty body of a stream without events is a 200.
    if request.from_byte is not None:
        return request.from_byte == state.b and request.from_byte > 0
    return request.after is not None and request.after.n >= state.n + (1 if with_ids else 0)


def _before(epoch: str, oldest: int) -> Cursor:
    """The cursor that reads everything left."""
    return Cursor(epoch, oldest - 1)


def _gone(state: Gone) -> Answer:
    oldest, tail = _before(state.epoch, state.oldest), Cursor(state.epoch, state.n)
    return _history_gone(state.why, oldest=oldest, tail=tail, feed=state.head.feed)


def _history_gone(why: str, *, oldest: Cursor | None, tail: Cursor, feed: bool) -> Answer:
    body: dict[str, Any] = {
        "error": "history_gone",
        "why": why,
        "oldest": None if oldest is None else str(oldest),
        "tail": str(tail),
    }
    if feed:
        body["snapshot"] = 1
    return _json(410, body, _NO_STORE)


def closing(view: View, *, epoch: str, n: int, ending: Ending | None) -> Closing:
    """
    How a body ends once its reader has got everything.

    Args:
        view: View of the reader.
        epoch: Epoch of the log.
        n: Number of the last event.
        ending: How the stream ended; `None`: it has not, or the reader has lost it, and learns more at its next request.

    Returns:
        In the views with ids a clean end, after `event: end` if the stream has ended. A verbatim body ends cleanly only if the
        stream was completed, or stopped where its producer says so, or if its own events report the failure (`REPORTED`).
    """
    if view in ("events", "snapshot"):
        return Closing(b"" if ending is None else end_event(epoch, n, ending), True)
    whole = ending is not None and (ending.outcome not in (Outcome.FAILED, Outcome.CANCELLED) or ending.reason == REPORTED)
    return Closing(b"", whole)


def answer_to_message(state: State, *, text: str = "", random: float) -> Answer:
    """
    Answer `GET …/message`: the text so far as one value.

    Args:
        state: State of the stream.
        text: The text of its events up to `state.n`.
        random: As for `answer_to_reader`.

    Returns:
        `{"text", "cursor", "outcome", "events"}`; the outcome is null while the stream runs.
    """
    match state:
        case Unavailable():
            return unavailable(state.reason, random=random)
        case Standing():
            outcome = None if state.ending is None else state.ending.outcome.value
            body = {"text": text, "cursor": str(state.tail), "outcome": outcome, "events": state.n}
            return _json(200, body, ("Cache-Control", "no-cache, no-transform"))
        case Gone():
            return _gone(state)
    return not_found()


def accepted(stream_id: str, location: str) -> Answer:
    """Answer a POST with `Prefer: respond-async`: 202, with the stream's URL in `Location`."""
    headers = (("Location", location), ("Preference-Applied", "respond-async"), ("Stream-Id", stream_id), _NO_STORE)
    return _json(202, {"id": stream_id, "location": location}, *headers)


def said(position: int) -> Answer:
    """Answer a message to a producer: 202, with its place in the inbox. It is accepted, but the producer has not seen it yet."""
    return _json(202, {"position": position}, _NO_STORE)


def told_to_stop(ending: Ending | None) -> Answer:
    """Answer `POST …/cancel`: 202 while the stream runs, and 200 with the outcome if it has ended."""
    if ending is None:
        return _json(202, {"outcome": None}, _NO_STORE)
    return _json(200, _end_data(ending), _NO_STORE)


def forgotten() -> Answer:
    """Answer a DELETE: 204."""
    return Answer(204, (_NO_STORE, _NO_SNIFF))


def bad_request(part: str, expected: str, got: str) -> Answer:
    """
    Answer an invalid request: 400.

    Args:
        part: The part of the request that was wrong.
        expected: What it has to be.
        got: What it was; the first 80 characters are shown.
    """
    shown = got[:_SHOWN]
    more = {"part": part, "expected": expected, "got": shown}
    return problem(400, "bad_request", f"{part}: expected {expected}; got {shown!r}", **more)


def not_found() -> Answer:
    """Answer for a stream that is unknown, expired, or another owner's: 404, the same for all three."""
    return _json(404, {"error": "not_found"}, _NO_STORE)


def forbidden() -> Answer:
    """Answer a start by a client that may not start streams: 403. It reveals nothing about existing streams."""
    return problem(403, "forbidden", "these credentials may not start a stream")


def healthy() -> Answer:
    """Answer `GET /health` of a server that accepts work: 200."""
    return _json(200, {"status": "ok"}, _NO_STORE)


def key_reused() -> Answer:
    """Answer a start whose key or id belongs to another request: 409."""
    text = "this Idempotency-Key was used for another request; use a new key for another request"
    return problem(409, "key_reused", text)


def busy(active_location: str) -> Answer:
    """Answer a start in a session in which another stream is running: 409, with its URL in `Content-Location`."""
    text = "another stream of the session is running; wait for its end, cancel it, or read it"
    answer = problem(409, "session_busy", text, active=active_location)
    return answer.also(("Content-Location", active_location))


def nothing_runs() -> Answer:
    """Answer a request for the running stream of a session when there is none: 204."""
    return Answer(204, (_NO_STORE,))


def ended(ending: Ending) -> Answer:
    """Answer a message to a stream that has ended: 409, with the outcome."""
    return problem(409, "ended", "the stream has ended and accepts no messages", **_end_data(ending, error="failure"))


def inbox_full(limit: int) -> Answer:
    """Answer a message that does not fit into the inbox: 429."""
    return problem(429, "inbox_full", f"the stream takes at most {limit} messages", limit=limit)


def too_large(limit: int) -> Answer:
    """Answer a body of more than `limit` bytes: 413."""
    return problem(413, "too_large", f"a body may have at most {limit} bytes", limit=limit)


def method_not_allowed(*methods: str) -> Answer:
    """Answer a method that a path does not support: 405, with the supported ones in `Allow`."""
    allow = ", ".join(methods)
    return problem(405, "method_not_allowed", f"expected one of {allow}").also(("Allow", allow))


def unavailable(reason: str, *, random: float) -> Answer:
    """
    Answer a request that cannot be served now: 503 with `Retry-After`, 1 to 5 seconds.

    Args:
        reason: As in `Unavailable`.
        random: From 0 up to but not including 1.
    """
    low, high = RETRY_AFTER
    seconds = low + math.floor(_fraction(random) * (high - low + 1))
    answer = problem(503, "unavailable", "the server cannot answer now; retry after Retry-After seconds", reason=reason)
    return answer.also(("Retry-After", str(seconds)))


def problem(status: int, error: str, message: str, **more: Any) -> Answer:
    """
    An error answer as JSON.

    Args:
        status: HTTP status.
        error: For programs: one word.
        message: For people.
        more: Additional fields.
    """
    return _json(status, {"error": error, "message": message, **more}, _NO_STORE)


def _json(status: int, body: Mapping[str, Any], *headers: tuple[str, str]) -> Answer:
    return Answer(status, (("Content-Type", "application/json"), _NO_SNIFF, *headers), to_json(body).encode())


# Made once: with options, `json.dumps` makes an encoder per call, which costs as much as the call.
_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
SURROGATE: Final = re.compile("[\ud800-\udfff]")


def to_json(value: object) -> str:
    """
    Encode a value compactly and on one line, because JSON escapes the line ends within its strings.

    Half of a character, whose other half is in the next piece of text, is escaped: UTF-8 cannot carry it, but JSON can.
    """
    text = _encode(value)
    return text if text.isascii() or not SURROGATE.search(text) else json.dumps(value, separators=(",", ":"))


# --- pieces of an event stream ------------------------------------------------------------------------------------------


def event_block(data: str, *, event: str | None = None, id: str | None = None) -> bytes:
    """
    Write one event.

    Args:
        data: May have several lines.
        event: Its name; `None`: it has none.
        id: Its id; `None`: it has none, and the reader keeps the last one.

    Raises:
        ValueError: The name or the id has a line end or a NUL.
    """
    for what, value in (("event", event), ("id", id)):
        if value is not None and re.search(r"[\r\n\0]", value):
            raise ValueError(f"the {what} of an event must be one line without NUL, got {value[:_SHOWN]!r}")
    lines = [f"id: {id}"] if id is not None else []
    lines += [f"event: {event}"] if event is not None else []
    lines += [f"data: {line}" for line in re.split(r"\r\n|\r|\n", data)]
    return ("\n".join(lines) + "\n\n").encode()


def end_event(epoch: str, n: int, ending: Ending) -> bytes:
    """
    Write the last event of a stream, which has the number after the last one of the producer.

    >>> end_event("k7q2", 2, Ending(outcome=Outcome.COMPLETED))
    b'id: k7q2.3\\nevent: end\\ndata: {"outcome":"completed"}\\n\\n'

    Args:
        epoch: Of the log.
        n: Number of the last event of the producer.
        ending: The reason of a failure goes into `error`, any other reason next to the outcome.
    """
    return event_block(to_json(_end_data(ending)), event="end", id=f"{epoch}.{n + 1}")


def _end_data(ending: Ending, error: str = "error") -> dict[str, Any]:
    data: dict[str, Any] = {"outcome": ending.outcome.value}
    failed = ending.outcome is Outcome.FAILED
    if ending.reason is not None and not failed:
        data["reason"] = ending.reason
    if failed or ending.error is not None:
        told = {"reason": ending.reason if failed else None, "message": ending.error}
        data[error] = {name: value for name, value in told.items() if value is not None}
    if ending.applied:
        data["applied"] = ending.applied
    return data


def snapshot_event(cursor: Cursor, data: Mapping[str, Any]) -> bytes:
    """
    Write the event that stands for all events up to a cursor.

    Args:
        cursor: The last event covered.
        data: For a stream `{"text": …}`.
    """
    return event_block(to_json(data), event="snapshot", id=str(cursor))


def caught_up() -> bytes:
    """Write the event that reports the end of the replay. It has no id, so the reader's position does not move."""
    return event_block("{}", event="caught-up")


def heartbeat(framing: Framing) -> bytes:
    """
    Data that fills a silence without being an event: a comment, or an empty line in NDJSON.

    Raw bytes have no equivalent, so there it is empty.
    """
    return {"sse": b":\n\n", "ndjson": b"\n", "raw": b""}[framing]


def retry_bounds(readers: int) -> tuple[int, int]:
    """
    Bounds of `retry:` for a server with this many readers. They widen with the number that would reconnect when it goes away.

    A server may disappear in an instant. Up to 1,000 readers return within half a second; above that, 2,000 per second, roughly
    what the remaining servers can accept; from 9,000 readers on the wait stays at most 5 s.

    >>> retry_bounds(100), retry_bounds(5000), retry_bounds(20_000)
    ((500, 1000), (500, 3000), (500, 5000))
    """
    low, high = RETRY_MS
    return low, min(max(high, low + readers // 2), MOST_RETRY_MS)


def retry_line(random: float, bounds: tuple[int, int] = RETRY_MS) -> bytes:
    """
    Tell a reader when to reconnect after a cut.

    >>> retry_line(0.463)
    b'retry: 731\\n\\n'

    Args:
        random: From 0 up to but not including 1.
        bounds: In milliseconds. 500 to 1,000: soon, but not all readers of a server at once.
    """
    low, high = bounds
    return b"retry: %d\n\n" % (low + math.floor(_fraction(random) * (high - low)))


def _fraction(random: float) -> float:
    if not 0 <= random < 1:
        raise ValueError(f"random must be from 0 up to but not including 1, got {random!r}")
    return random


# --- headers ------------------------------------------------------------------------------------------------------------


def path_of(stream_id: str, *, prefix: str = "/streams/") -> str:
    """
    The path of a stream.

    >>> path_of("msg_42")
    '/streams/msg_42'

    Args:
        stream_id: Its id.
        prefix: The path before it, already percent-encoded.

    Raises:
        ValueError: It is not a valid id, or it is `.` or `..`, which clients remove from a path before they send it.
    """
    check_stream_id(stream_id)
    if stream_id in (".", ".."):
        raise ValueError(f"a stream id in a path must not be '.' or '..', which clients resolve; got {stream_id!r}")
    return prefix + quote(stream_id, safe="~")


def check_header(name: str, value: str) -> None:
    """
    Validate a header that could be mistaken for two.

    Raises:
        ValueError: The name is not a token, or the value has control characters.
    """
    if _TOKEN.fullmatch(name) is None:
        raise ValueError(f"the name of a header must be a token, got {name[:_SHOWN]!r}")
    if any((ord(character) < 32 and character != "\t") or ord(character) == 127 for character in value):
        # The value is left out: it may be a secret.
        raise ValueError(f"the header {name!r} must not contain control characters")


def encode_headers(headers: Sequence[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    """
    Headers as ASGI servers expect them: names in lower case, values in Latin-1, or in UTF-8 if Latin-1 is not enough.

    Raises:
        ValueError: As for `check_header`.
    """
    encoded = []
    for name, value in headers:
        check_header(name, value)
        try:
            raw = value.encode("latin-1")
        except UnicodeEncodeError:
            raw = value.encode()
        encoded.append((name.lower().encode(), raw))
    return encoded


def outcome_header(ending: Ending) -> str:
    """
    The value of `Stream-Outcome`.

    >>> outcome_header(Ending(outcome=Outcome.FAILED, reason="producer_lost"))
    'failed; reason=producer_lost'

    A reason of more than one word is quoted, and characters that a header cannot carry are percent-encoded.
    """
    if not ending.reason:
        return ending.outcome.value
    if _TOKEN.fullmatch(ending.reason):
        return f"{ending.outcome.value}; reason={ending.reason}"
    return f'{ending.outcome.value}; reason="{quote(ending.reason, safe=_IN_QUOTES)}"'


def _named(stream_id: str, location: str | None) -> tuple[tuple[str, str], ...]:
    named = (("Stream-Id", stream_id),)
    return named if location is None else (("Content-Location", location), *named)


def _tail(state: Standing) -> tuple[tuple[str, str], ...]:
    return (("Stream-Tail", str(state.tail)), ("Stream-Bytes", str(state.b)))


def _closed(ending: Ending | None) -> tuple[tuple[str, str], ...]:
    return () if ending is None else (("Stream-Closed", "true"), ("Stream-Outcome", outcome_header(ending)))


def check_origins(origins: Sequence[str]) -> tuple[str, ...]:
    """
    Validate origins as browsers send them in `Origin`.

    Args:
        origins: Such as `https://app.example.com`; `"*"`: every origin.

    Raises:
        TypeError: A single text instead of a list.
        ValueError: An origin with a path, a final slash, or capitals.
    """
    if isinstance(origins, str):
        raise TypeError(f"cors takes a list of origins, got the text {origins!r}")
    for origin in origins:
        if origin != "*" and _ORIGIN.fullmatch(origin) is None:
            raise ValueError(f"an origin is a scheme, a host and maybe a port, as in 'https://app.example.com'; got {origin!r}")
    return tuple(origins)


def cors_headers(origin: str | None, allowed: Sequence[str], *, exposed: str = _EXPOSED) -> tuple[tuple[str, str], ...]:
    """
    Headers that allow a page of another origin to read an answer.

    Args:
        origin: The request's `Origin`.
        allowed: As checked by `check_origins`; empty: none is allowed, and there are no such headers.
        exposed: Headers that it may read.

    Returns:
        Includes `Vary: Origin` if the answer depends on it, so that a cache does not give it to another origin.
    """
    if not allowed:
        return ()
    if "*" in allowed:
        return (("Access-Control-Allow-Origin", "*"), ("Access-Control-Expose-Headers", exposed))
    vary = ("Vary", "Origin")
    if origin is None or origin not in allowed:
        return (vary,)
    return (("Access-Control-Allow-Origin", origin), ("Access-Control-Expose-Headers", exposed), vary)


def preflight(facts: Facts, allowed: Sequence[str], *, methods: str = _METHODS, headers: str = _ALLOWED) -> Answer:
    """Answer an OPTIONS request: 204, and, to a page of an allowed origin, the methods and headers that it may use."""
    cors = cors_headers(facts.headers.get("origin"), allowed)
    if any(name == "Access-Control-Allow-Origin" for name, _ in cors):
        # Ten minutes: a preflight costs a round trip before each reconnect.
        told = (("Access-Control-Allow-Methods", methods), ("Access-Control-Allow-Headers", headers))
        cors = (*cors, *told, ("Access-Control-Max-Age", "600"))
    return Answer(204, (("Allow", f"{methods}, OPTIONS"), _NO_SNIFF, *cors))
