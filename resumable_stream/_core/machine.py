"""
The state machine of one resumable stream: inputs in, actions out.

    next(now) ──► Connect ──► receive_head ──► Read ──► receive_data ──► events
       ▲             │             │             │
       │             └─ connect_failed           └─ receive_eof · read_failed · read_timed_out
       └──────────── Disconnect · Save · Sleep · Fetch · Finish ◄───── what follows from it

A driver asks `next()` what to do, does it, and reports. `receive_data()` is the only hot call: it returns the events that
a chunk completed, and while nothing else is due the driver goes on reading without asking.

Rules of this file:

- Time, waits and randomness are arguments. An input never raises for what the *network* did: it plans what follows,
  and `next()` raises when the plan is to give up. Then every event that came before has been delivered.
- A verdict that an event brings about (end, error, hole) waits until the events before it were taken.
- Only a new event is progress, and only progress resets the retry budget.

What would break it: reading on while events are still in hand, or calling two inputs for one action.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Any, Final, Literal
from urllib.parse import urljoin, urlsplit

from .._checkpoint import Checkpoint, public_url
from .._errors import (
    CursorExpired,
    DeadlineExceeded,
    NotResumable,
    OriginMismatch,
    ResponseRejected,
    ResumableStreamError,
    RetriesExhausted,
    StreamInterrupted,
    UnexpectedContentType,
)
from .._events import Gap, Item, Outcome
from .._settings import AUTO, Limits, Timeouts
from ..framing import NDJSONDecoder, RawDecoder, SSEDecoder
from . import actions as act
from . import interfaces as verdict
from .interfaces import Answer, Detect, Head, Request, ResumeProtocol, Settled, Snapshot, StreamState
from .ledger import FIRST_KEY, HoleFound, Ledger, Place, StartedOver

__all__ = ["Machine", "RetryState", "Settings", "Stats", "origin_of", "retry_after"]

# Rule 7c. A server that answers and closes within 5 s has nothing to wait for.
QUICK: Final = 5.0
# Rule 7c. So many quick answers with new events are believed; a server that hands out one event a request must say so.
BELIEVED: Final = 3
# Rule 3. Enough to spread a fleet that lost one server, too little for a reader to notice.
PROMPT: Final = 0.25
# Enough for a provider's error document.
ERROR_BODY: Final = 64 * 1024
# RFC 9110 and the providers' pages: these say that the request was not accepted (529: Anthropic, overloaded).
NOT_ACCEPTED: Final = frozenset({425, 429, 503, 529})
OUTCOME_KEY: Final = "outcome"
LOCATION_KEY: Final = "location"
# Headers of a response that grant access: they stay out of errors.
_PRIVATE_HEADERS: Final = frozenset({"set-cookie", "set-cookie2", "www-authenticate", "proxy-authenticate", "authorization", "authentication-info"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryState:
    """
    What a retry policy may look at.

    Attributes:
        attempt: Failed attempts since the last new event; 0 when only the prompt reconnect failed.
        elapsed: Seconds since the first of these failures.
        slept: Seconds of them spent waiting.
        error: What the last one ended with.
    """

    attempt: int
    elapsed: float
    slept: float
    error: BaseException | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the caller chose, in the terms of the core."""

    timeouts: Timeouts
    limits: Limits
    delay: Callable[[RetryState], float | None]
    jitter: Callable[[], float]
    statuses: frozenset[int]
    max_server_wait: float
    on_gap: Literal["refetch", "deliver"] = "refetch"
    on_lost: Literal["raise", "restart", "snapshot"] = "raise"
    manual: bool = False
    idempotent: bool = False
    """The first request carries an `Idempotency-Key`."""
    refreshable: bool = False
    """Asking again may bring other credentials."""
    saving: bool = False
    keep_events: bool = False
    save_interval: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """
    What happened so far.

    Attributes:
        events: Delivered, those of a store included.
        bytes: Of bodies read.
        duplicates: Events that came again and were dropped.
        gaps: Holes found, filled or not.
        connections: Responses whose body was read.
        reconnects: Those of them after the first.
        seconds_offline: Between the loss of a connection and the head of the next.
        cursor_ignored: The server answered a resume with the stream's beginning.
    """

    events: int = 0
    bytes: int = 0
    duplicates: int = 0
    gaps: int = 0
    connections: int = 0
    reconnects: int = 0
    seconds_offline: float = 0.0
    cursor_ignored: bool = False


Then = Callable[[float], None]
Plan = act.Action | Then


class Machine:
    """
    One stream, from its first request to its end.

    Args:
        state: The first request; belongs to the machine from now on.
        protocol: How to resume; `None` lets `detect` choose by the first response.
        settings: What the caller chose.
        checkpoint: Continue there.
    """

    def __init__(
        self,
        *,
        state: StreamState,
        protocol: ResumeProtocol | None,
        detect: Detect,
        settings: Settings,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.state = state
        self.settings = settings
        self.notices: list[act.Notice] = []
        self.outcome: Outcome | None = None
        self._detect = detect
        self._todo: deque[Plan] = deque()
        self._then: Then | None = None
        self._error: ResumableStreamError | None = None
        self._request: Request | None = None
        self._decoder: Any = None
        self._ledger: Ledger | None = None
        self.protocol: ResumeProtocol | None = None
        self._restored = checkpoint
        self._origin = origin_of(state.url)
        # This connection.
        self._reading = False
        self._asking = False
        self._head_at = 0.0
        self._redirects = 0
        self._sse_id = ""
        self._purpose: Literal["status", "verify", "alive", "snapshot"] = "status"
        # This stream.
        self._settled: Outcome | None = None
        self._started = False
        self._asked_empty = False
        self._quick_answers = 0
        self._refreshed = False
        self._restarts = 0
        # The retry budget.
        self._attempt = 0
        self._prompt = False
        self._failing_since: float | None = None
        self._slept = 0.0
        self._retry_floor = 0.0
        self._after_floor = 0.0
        # Clocks.
        self._opened: float | None = None
        self._read_at = 0.0
        self._waited = 0.0
        self._clock = "idle"
        self._idle: float | None = None
        self._stall: float | None = None
        self._steady = False
        # Counting.
        self._events = 0
        self._bytes = 0
        self._connections = 0
        self._offline_since: float | None = None
        self._offline = 0.0
        # Saving.
        self._saved: Place | None = None
        self._saved_at = 0.0
        self._saving: tuple[Place, int] | None = None
        self._unsaved: deque[Item] = deque()
        if protocol is not None:
            self._adopt(protocol)

    def _adopt(self, protocol: ResumeProtocol) -> None:
        self.protocol = protocol
        own = type(protocol)
        self._places = protocol.places
        # The SSE id is the cursor, also where no event carries it.
        self._by_id = protocol.framing == "sse" and own.position is ResumeProtocol.position
        self._judges = any(getattr(own, name) is not getattr(ResumeProtocol, name) for name in ("end", "error", "gap", "notable"))
        self._identifies = own.identify is not ResumeProtocol.identify
        settings = self.settings
        self._ledger = Ledger(protocol, window=settings.limits.window, on_gap=settings.on_gap, notices=self.notices)
        if self._restored is not None:
            self._restore(self._restored)

    def _restore(self, checkpoint: Checkpoint) -> None:
        assert self._ledger is not None and self.protocol is not None
        self._ledger.restore(checkpoint)
        state = self.state
        state.stream_id = checkpoint.stream_id
        state.extra = {name: value for name, value in checkpoint.extra.items() if name in self.protocol.keeps}
        if (location := checkpoint.extra.get(LOCATION_KEY)) is not None:
            state.location = self._same_origin(location)
        self._sync_state()
        self._saved = self._ledger.place(0)
        if checkpoint.complete:
            self.outcome = Outcome(checkpoint.extra.get(OUTCOME_KEY, Outcome.ENDED.value))

    # --- what the driver asks

    def settle(self) -> None:
        """The caller has come back for more: it is done with everything it was given."""
        if self._ledger is not None:
            self._ledger.settle()

    def next(self, now: float) -> act.Action:
        """
        What to do now. The caller has taken every event it was given.

        Raises:
            ResumableStreamError: The stream is over without an honest end; it carries the checkpoint.
        """
        if self._opened is None:
            self._opened = now
            self._start(now)
        while True:
            if self._then is not None:
                then, self._then = self._then, None
                then(now)
                continue
            if not self._todo:
                if self._error is not None:
                    raise self._error
                if self._reading:
                    return act.Read()
                assert self.outcome is not None, "the machine has no plan"
                return act.Finish(self.outcome)
            step = self._todo.popleft()
            if not callable(step):
                if isinstance(step, act.Sleep):
                    self._slept += step.seconds
                return step
            step(now)

    def save(self, now: float, taken: int, *, force: bool = False, blocks: Callable[[], bool] | None = None) -> act.Save | None:
        """
        Is a save due? Called with `force` on leaving, with `blocks` before a read, without either at an event.

        Args:
            taken: Items of the latest batch that the caller is done with.
            blocks: Tells whether the read will have to wait; asked only when it matters.
        """
        if not self.settings.saving or self._ledger is None:
            return None
        place = self._place(taken)
        final = self.outcome is not None
        if place == self._saved and not (final and force):
            return None
        if not force and now - self._saved_at < self.settings.save_interval and len(self._unsaved) < self.settings.limits.window:
            if blocks is None or not blocks():
                return None
        self._saving = (place, self._unsaved_upto(place))
        unsaved = self._unsaved
        return act.Save(self.checkpoint(taken), [unsaved[index] for index in range(self._saving[1])])

    def saved(self, now: float) -> None:
        """The latest `Save` was written. Without this the same events are saved again next time."""
        assert self._saving is not None
        (self._saved, count), self._saving = self._saving, None
        self._saved_at = now
        for _ in range(count):
            self._unsaved.popleft()

    def _unsaved_upto(self, place: Place) -> int:
        unsaved = self._unsaved
        count = len(unsaved)
        while count and unsaved[count - 1].offset != place.offset - 1:
            count -= 1
        return count

    def checkpoint(self, taken: int) -> Checkpoint:
        """The place when `taken` items of the latest batch are taken, or the committed one under manual commit."""
        state, ledger = self.state, self._ledger
        if ledger is None:
            restored = self._restored
            return restored or Checkpoint(protocol="", method=state.method, url=public_url(state.url))
        place = self._place(taken)
        assert self.protocol is not None
        extra = {name: value for name, value in state.extra.items() if name in self.protocol.keeps}
        if state.location is not None:
            extra[LOCATION_KEY] = public_url(state.location)
        if (first := ledger.beginning()) is not None and place.offset:
            extra[FIRST_KEY] = first
        complete = self.outcome is not None and place.offset == ledger.offset
        if complete:
            assert self.outcome is not None
            extra[OUTCOME_KEY] = self.outcome.value
        return Checkpoint(
            protocol=self.protocol.name,
            method=state.method,
            url=public_url(state.url),
            stream_id=state.stream_id,
            cursor=place.cursor,
            sequence=place.sequence,
            offset=place.offset,
            since=ledger.since(place),
            recent_ids=ledger.recent_ids(place),
            extra=extra,
            complete=complete,
        )

    def _place(self, taken: int) -> Place:
        assert self._ledger is not None
        return self._ledger.committed if self.settings.manual else self._ledger.place(taken)

    def commit(self, item: Any, taken: int) -> None:
        """Under manual commit: move the committed position behind `item`, or behind what is taken."""
        if self._ledger is not None:
            self._ledger.commit(item, taken=taken)

    @property
    def stats(self) -> Stats:
        ledger = self._ledger
        return Stats(
            events=self._events + (ledger.fresh if ledger else 0),
            bytes=self._bytes,
            duplicates=ledger.duplicates if ledger else 0,
            gaps=ledger.gaps if ledger else 0,
            connections=self._connections,
            reconnects=max(0, self._connections - 1),
            seconds_offline=self._offline,
            cursor_ignored=ledger.cursor_ignored if ledger else False,
        )

    def count_replayed(self, events: int) -> None:
        """So many events came from the store."""
        self._events += events

    @property
    def due(self) -> bool:
        """Something other than reading on is due: ask `next()`."""
        return self._then is not None or not self._reading

    @property
    def accept(self) -> str:
        """`Accept` header, unless the caller sets one."""
        if self.protocol is not None:
            return self.protocol.accept
        return "text/event-stream, application/x-ndjson;q=0.9, */*;q=0.5"

    # --- requests

    def _start(self, now: float) -> None:
        if self.outcome is not None:
            self._todo.append(act.Finish(self.outcome))
            return
        state = self.state
        if self._restored is None:
            first = self.protocol.first_request(state) if self.protocol is not None else ResumeProtocol().first_request(state)
            self._connect(first, resuming=False)
            return
        request = self._rest_request()
        if request is None:
            assert self.protocol is not None
            self._lost(now, verdict.Lost(f"{self.protocol!r} cannot continue {state.method} {public_url(state.url)}", expired=False))
        else:
            self._connect(request, resuming=True)

    def _connect(self, request: Request, *, resuming: bool, asking: bool = False) -> None:
        self._redirects = 0
        self.state.resuming = resuming
        self.state.asking = self._asking = asking
        self._todo.append(lambda now: self._send(request, now))

    def _send(self, request: Request, now: float) -> None:
        timeouts = self.settings.timeouts
        self._request = request
        self._read_at = now
        limit = timeouts.idle_or(self._resumable()) if self._started else timeouts.first_event
        left = self._deadline_left(now)
        if left is not None and left <= 0:
            self._fail(self._deadline_error())
            return
        self._todo.append(act.Connect(request, limit if left is None else left if limit is None else min(limit, left)))

    def _same_origin(self, url: str) -> str:
        """Resolve a URL that the server gave, and refuse it if credentials would leave their origin (rule 10)."""
        base = self.state.head.url if self.state.head is not None else self.state.url
        absolute = urljoin(base, url)
        if (seen := origin_of(absolute)) != self._origin:
            raise OriginMismatch(
                f"the server names {seen} to resume from, but the stream and its credentials belong to {self._origin}",
                expected=self._origin,
                received=seen,
            )
        return absolute

    def _rest_request(self) -> Request | None:
        """How to go on after what was delivered, or `None`."""
        protocol, ledger, state = self.protocol, self._ledger, self.state
        if protocol is None or ledger is None:
            return None
        self._sync_state()
        if ledger.cursor is None and ledger.offset and not protocol.replays:
            return None
        request = protocol.resume_request(state)
        if request is None:
            return None
        url = urljoin(state.url, request.url)
        if (seen := origin_of(url)) != self._origin:
            raise OriginMismatch(
                f"the resume URL is on {seen}, but the stream and its credentials belong to {self._origin}",
                expected=self._origin,
                received=seen,
            )
        return request

    def _next_request(self) -> tuple[Request, bool] | None:
        """The request after a failure, and whether it resumes; `None` when repeating might pay twice (rule 9)."""
        state, protocol = self.state, self.protocol
        nothing = self._ledger is None or (self._ledger.offset == 0 and self._ledger.cursor is None)
        if (self._started or self._restored is not None) and (rest := self._rest_request()) is not None:
            return rest, True
        if not nothing:
            return None
        if not self._started or self.settings.idempotent or (state.safe and not (protocol and protocol.promises.tied)):
            first = (protocol or ResumeProtocol()).first_request(state)
            return first, False
        return None

    def _resumable(self) -> bool:
        try:
            return (self._started or self._restored is not None) and self._rest_request() is not None
        except OriginMismatch:
            return False

    def _sync_state(self) -> None:
        ledger, state = self._ledger, self.state
        if ledger is not None:
            state.cursor, state.sequence, state.offset = ledger.cursor, ledger.sequence, ledger.offset

    # --- heads

    def connect_failed(self, error: BaseException, now: float, *, sent: bool, timed_out: bool = False) -> None:
        """
        The request brought no response.

        Args:
            sent: The server may have received it; False only for errors that prove it was not (rule 9a).
        """
        reason = ("idle" if self._started else "first_event") if timed_out else "connection lost" if sent else "cannot connect"
        self._lose_connection(now, reason, error)
        left = self._deadline_left(now)
        if left is not None and left <= 0:
            self._fail(self._deadline_error(), error)
            return
        if sent and not (self.settings.idempotent or self.state.safe or self.state.resuming):
            self._no_way_back(now, reason, error)
            return
        request = self._first_of_redirects()
        self._count_attempt(now, reason, error, lambda: self._connect(request, resuming=self.state.resuming, asking=self._asking))

    def receive_head(self, head: Head, now: float, *, wall: float) -> None:
        """
        A response has begun.

        Args:
            wall: Unix time in seconds, for a `Retry-After` date.
        """
        self.state.head = head
        self._head_at = now
        self._reading = False
        self._decoder = None
        if head.status in (301, 302, 303, 307, 308) and "location" in head.headers:
            self._todo.append(act.Disconnect())
            self._redirect(head, now)
            return
        floor = retry_after(head.headers, now=wall, ceiling=self.settings.max_server_wait)
        self._after_floor = floor or 0.0
        if head.status >= 400:
            self._purpose = "status"
            self._todo.append(act.Fetch(None, self._side_timeout(now), ERROR_BODY))
            return
        self._judge_head(head, b"", now)

    def _redirect(self, head: Head, now: float) -> None:
        request = self._request
        assert request is not None
        self._redirects += 1
        if self._redirects > self.settings.limits.redirects:
            self._reject(head, b"", f"more than {self.settings.limits.redirects} redirects")
            return
        target = urljoin(head.url, head.headers["location"])
        method = request.method
        if head.status == 303 or (head.status in (301, 302) and method == "POST"):
            method = "GET"
        here, there = origin_of(head.url), origin_of(target)
        if there == here:
            keeps_body = method == request.method and request.repeat is not None
            follow = Request(
                method=method,
                url=target,
                headers=request.headers,
                json=request.json if keeps_body else None,
                repeat="body" if keeps_body else None,
                bare=request.bare,
            )
        elif method != "GET" or method != request.method or (here.startswith("https:") and not there.startswith("https:")):
            self._fail(
                OriginMismatch(
                    f"the server redirects {request.method} from {here} to {there}: not followed, credentials or the body would leave their origin",
                    expected=here,
                    received=there,
                )
            )
            return
        else:
            follow = Request(method="GET", url=target, headers=request.headers, bare=True)
        self._send(follow, now)

    def _judge_head(self, head: Head, body: bytes, now: float) -> None:
        if self.protocol is None:
            if head.status < 400 and head.status not in (204, 205):
                chosen = self._detect(self.state, head)
                if chosen is None:
                    self._fail(
                        UnexpectedContentType(
                            f"expected a stream (text/event-stream, application/x-ndjson or a byte stream) from {public_url(head.url)}, "
                            f"received content type {head.content_type!r}; pass protocol= if this is one",
                            expected="text/event-stream",
                            received=head.content_type,
                        )
                    )
                    return
                self._adopt(chosen)
            else:
                self._apply_head(self._default_verdict(head), head, body, now)
                return
        assert self.protocol is not None
        found = self.protocol.on_status(head.status, head.headers, body, self.state)
        self._apply_head(found or self._default_verdict(head), head, body, now)

    def _default_verdict(self, head: Head) -> verdict.Verdict:
        """The table for statuses (DESIGN rules 8 and 9, WIRE 15.6)."""
        status, resuming = head.status, self.state.resuming
        if status in (204, 205):
            if self.protocol is not None and resuming and self.protocol.promises.has_end:
                return verdict.Lost("the server has nothing more, and the end of the stream was never seen")
            return verdict.Finished(Outcome.ENDED)
        if status < 300:
            return verdict.Consume()
        if resuming and status in (404, 410):
            return verdict.Lost(f"the server answered {status}: it no longer holds this stream")
        if resuming and status in (405, 501):
            return verdict.Lost(f"the server answered {status}: this stream cannot be resumed", expired=False)
        if status in self.settings.statuses and (
            resuming or self.state.safe or status in NOT_ACCEPTED or self.settings.idempotent
        ):
            return verdict.Retry()
        return verdict.Reject()

    def _apply_head(self, found: verdict.Verdict, head: Head, body: bytes, now: float) -> None:
        refused = head.status in (401, 403) and isinstance(found, verdict.Reject)
        if refused and not self._refreshed and (self.state.resuming or self.settings.refreshable):
            # Credentials run out while a long answer is read: the client's auth, or a callable `headers`, may bring new ones.
            self._refreshed = True
            request = self._first_of_redirects()
            self._todo.append(act.Disconnect())
            self._connect(request, resuming=self.state.resuming, asking=self._asking)
            return
        match found:
            case verdict.Consume():
                self._consume(found, head, now)
            case verdict.Finished(outcome):
                self._todo.append(act.Disconnect())
                self._finish(outcome)
            case verdict.Reject(message):
                self._todo.append(act.Disconnect())
                self._reject(head, body, message)
            case verdict.Retry(message):
                self._retry_status(head, body, message, now)
            case verdict.Lost():
                self._todo.append(act.Disconnect())
                self._lost(now, found)
            case _:
                self._todo.append(act.Disconnect())
                self._apply_close(found, now)

    def _first_of_redirects(self) -> Request:
        planned = self._next_request()
        assert self._request is not None
        return planned[0] if planned is not None else self._request

    def _retry_status(self, head: Head, body: bytes, message: str, now: float) -> None:
        error = self._rejection(head, body, message)
        self._todo.append(act.Disconnect())
        self._lose_connection(now, f"status {head.status}", error)
        request = self._first_of_redirects()
        self._count_attempt(
            now, f"status {head.status}", error, lambda: self._connect(request, resuming=self.state.resuming, asking=self._asking)
        )

    def _rejection(self, head: Head, body: bytes, message: str) -> ResponseRejected:
        headers = {name: value for name, value in head.headers.items() if name not in _PRIVATE_HEADERS}
        text = message or f"the server answered {head.status}"
        shown = body[:200].decode("utf-8", "replace").strip()
        method = self._request.method if self._request is not None else self.state.method
        return ResponseRejected(
            f"{text} to {method} {public_url(head.url)}" + (f": {shown}" if shown else ""),
            status=head.status,
            headers=MappingProxyType(headers),
            body=body,
        )

    def _reject(self, head: Head, body: bytes, message: str) -> None:
        self._fail(self._rejection(head, body, message))

    def _consume(self, found: verdict.Consume, head: Head, now: float) -> None:
        protocol, ledger, state = self.protocol, self._ledger, self.state
        assert protocol is not None and ledger is not None
        kinds = protocol.content_types
        if kinds and not found.any_type and head.content_type and head.content_type not in kinds:
            self._todo.append(act.Disconnect())
            self._fail(
                UnexpectedContentType(
                    f"expected {' or '.join(kinds)} from {public_url(head.url)}, received {head.content_type}",
                    expected=", ".join(kinds),
                    received=head.content_type,
                )
            )
            return
        if found.reset:
            self._notice_restart(0)
            ledger.restart(offset=0)
            state.extra.clear()
        self._started = True
        try:
            if self._identifies:
                protocol.identify(state, head)
            if state.location is not None:
                state.location = self._same_origin(state.location)
        except OriginMismatch as error:
            self._todo.append(act.Disconnect())
            self._fail(error)
            return
        limits = self.settings.limits
        if protocol.framing == "sse":
            # As EventSource does: the last event id outlives the connection.
            self._sse_id = (ledger.cursor or "") if self._by_id else ""
            self._decoder = SSEDecoder(
                last_event_id=self._sse_id, event_bytes=limits.event_bytes, line_bytes=limits.line_bytes
            )
        elif protocol.framing == "ndjson":
            self._decoder = NDJSONDecoder(line_bytes=limits.line_bytes)
        else:
            self._decoder = RawDecoder(start=int(ledger.cursor or 0), skip=found.skip)
        self._sse = protocol.framing == "sse"
        self._events += ledger.fresh
        ledger.open_connection(resuming=state.resuming, asking=self._asking)
        self._reading = True
        # The clock of the first event has run since the request was sent.
        self._waited = now - self._read_at if self._nothing_yet() else 0.0
        self._after_floor = 0.0
        self._steady = False
        self._connections += 1
        if self._offline_since is not None:
            self._offline += now - self._offline_since
            self._offline_since = None
        self._set_clocks()
        self.notices.append(act.Connected(head.status, state.resuming, ledger.cursor if state.resuming else None))

    # --- bodies

    def receive_data(self, chunk: bytes, now: float) -> Sequence[Any]:
        """
        A piece of the body.

        Returns:
            The events it completed, to be handed out in order before `next()` is asked again.
        """
        decoder = self._decoder
        items = decoder.feed(chunk)
        self._bytes += len(chunk)
        ledger = self._ledger
        assert ledger is not None
        trailing = None
        if self._sse and decoder.last_event_id != self._sse_id:
            # The id moved: with the last event, or behind it in a block without data.
            self._sse_id = decoder.last_event_id
            if self._by_id and not (items and items[-1].id == self._sse_id):
                trailing = self._sse_id
        if items:
            items = self._enter(items, chunk, len(chunk), trailing)
        elif trailing is not None:
            ledger.receive((), 0, trailing)
        if decoder.error is not None and self._then is None:
            self._then = self._on_framing_error
        if not items:
            self._wait_on(now)
        return items

    def _enter(self, items: Sequence[Any], chunk: bytes, size: int, trailing: str | None) -> Sequence[Any]:
        """Judge a batch and enter it into the ledger."""
        ledger = self._ledger
        assert ledger is not None
        items = self._examine(items, chunk)
        if items:
            items = ledger.receive(items, size, trailing if self._then is None else None)
            if ledger.problem is not None:
                self._then = self._on_problem
        if items:
            if not self._steady:
                self._note_progress(items)
            if self.settings.keep_events:
                self._unsaved.extend(items)
        return items

    def _examine(self, items: Sequence[Any], chunk: bytes) -> Sequence[Any]:
        """Place the items, and stop where one of them ends the stream."""
        protocol = self.protocol
        assert protocol is not None
        if self._places:
            protocol.place(items)
        if self._identifies and self.state.stream_id is None:
            for item in items:
                protocol.identify(self.state, item)
                if self.state.stream_id is not None:
                    break
        if not self._judges:
            return items
        for item in protocol.notable(items, chunk):
            if (error := protocol.error(item)) is not None:
                self._then = lambda now, error=error: self._end_with(error)
                return items[: _index(items, item)]
            if (gap := protocol.gap(item)) is not None:
                index = _index(items, item)
                rest = items[index + 1 :]
                self._then = lambda now, gap=gap, rest=rest: self._on_announced(gap, rest, chunk, now)
                return items[:index]
            end = protocol.end(item)
            if isinstance(end, Settled):
                self._settled = end.outcome
            elif end is not None:
                outcome = end
                self._then = lambda now, outcome=outcome: self._end_with(outcome)
                return items[: _index(items, item) + 1]
        return items

    def _on_announced(self, gap: Gap, rest: Sequence[Any], chunk: bytes, now: float) -> None:
        """The server says that history was lost: ask again once, then go on behind the hole or fail."""
        ledger = self._ledger
        assert ledger is not None
        if ledger.hole(gap) is False:
            self._on_problem(now)
        elif rest and (rest := self._examine(rest, chunk)):
            self._deliver(ledger.receive(rest, 0))
            if ledger.problem is not None:
                self._then = self._on_problem

    def _deliver(self, items: Sequence[Any]) -> None:
        if items:
            self._note_progress(items)
            if self.settings.keep_events:
                self._unsaved.extend(items)
            self._todo.append(act.Deliver(items))

    def _note_progress(self, items: Sequence[Any]) -> None:
        """The first events of a connection, or the first after a silence."""
        self._waited = 0.0
        self._attempt = 0
        self._prompt = False
        self._failing_since = None
        self._slept = 0.0
        self._refreshed = False
        self._set_clocks()
        # Steady: the byte clock alone is due at each read. A deadline is looked at each time; until the stream
        # can be resumed its first cursor may still change the clocks.
        assert self._ledger is not None and self.protocol is not None
        settled = self._ledger.cursor is not None or not self.protocol.promises.resumable
        stall_first = self._stall is not None and (self._idle is None or self._stall < self._idle)
        self._steady = settled and self.settings.timeouts.deadline is None and not stall_first

    def before_read(self, now: float) -> float | None:
        """
        A read is about to begin.

        Returns:
            Seconds it may take; `None` without limit; 0 when a clock has run out, then report `read_timed_out()`.
        """
        self._read_at = now
        if self._steady:
            return self._idle
        limits: list[tuple[float, str]] = []
        ledger = self._ledger
        first = self.settings.timeouts.first_event
        if ledger is not None and self._nothing_yet():
            if first is not None:
                limits.append((first - self._waited, "first_event"))
        else:
            if self._idle is not None:
                limits.append((self._idle, "idle"))
            if self._stall is not None:
                limits.append((self._stall - self._waited, "stall"))
        if (left := self._deadline_left(now)) is not None:
            limits.append((left, "deadline"))
        if not limits:
            return None
        left, self._clock = min(limits)
        return max(left, 0.0)

    def _nothing_yet(self) -> bool:
        return self._events + (self._ledger.fresh if self._ledger else 0) == 0 and (self._ledger is None or self._ledger.offset == 0)

    def _wait_on(self, now: float) -> None:
        """Bytes came, an event did not: heartbeats feed the byte clock only."""
        self._waited += now - self._read_at
        self._steady = False
        limit = self.settings.timeouts.first_event if self._nothing_yet() else self._stall
        if limit is not None and self._waited >= limit and self._then is None:
            self._clock = "first_event" if self._nothing_yet() else "stall"
            self._then = self._on_clock

    def receive_eof(self, now: float) -> Sequence[Any]:
        """
        The body ended cleanly.

        Returns:
            The events that its end completed.
        """
        self._then = self._on_clean_close
        items = self._decoder.eof()
        if not items:
            return ()
        self._then = None
        items = self._enter(items, b"", 0, None)
        self._then = self._then or self._on_clean_close
        return items

    def read_failed(self, error: BaseException, now: float) -> None:
        """The connection broke, or its body could not be decoded."""
        self._cut(now, "connection lost", error)

    def read_timed_out(self, now: float, error: BaseException | None = None) -> None:
        """The time that `before_read()` gave has passed."""
        if self._steady:
            self._clock = "idle"
        self._on_clock(now, error)

    def _on_clock(self, now: float, error: BaseException | None = None) -> None:
        if self._clock == "deadline":
            self._lose_connection(now, "deadline", None)
            self._todo.append(act.Disconnect())
            self._fail(self._deadline_error(), error)
            return
        protocol = self.protocol
        assert protocol is not None and self._ledger is not None
        if self._ledger.fresh == 0 and self._settled is None and self._resumable():
            self._sync_state()
            if (request := protocol.status_request(self.state)) is not None:
                self._lose_connection(now, self._clock, error)
                self._todo.append(act.Disconnect())
                self._fetch("alive", request, now)
                return
        self._cut(now, self._clock, error)

    def _on_problem(self, now: float) -> None:
        ledger = self._ledger
        assert ledger is not None
        match ledger.problem:
            case HoleFound():
                self._cut(now, "gap", None)
            case StartedOver():
                self._todo.append(act.Disconnect())
                self._finish(Outcome.ENDED)
            case ResumableStreamError() as error:
                self._todo.append(act.Disconnect())
                self._fail(error)

    def _on_framing_error(self, now: float) -> None:
        self._todo.append(act.Disconnect())
        self._fail(self._decoder.error)

    def _end_with(self, end: Outcome | ResumableStreamError) -> None:
        self._todo.append(act.Disconnect())
        if isinstance(end, Outcome):
            self._finish(end)
        else:
            self._fail(end)

    # --- the end of a connection

    def _on_clean_close(self, now: float) -> None:
        protocol, ledger = self.protocol, self._ledger
        assert protocol is not None and ledger is not None
        if self._settled is not None:
            self._end_with(self._settled)
            return
        if self._decoder.partial:
            self._cut(now, "closed inside an event", None)
            return
        self._sync_state()
        self._apply_close(protocol.on_clean_close(self.state), now)

    def _apply_close(self, found: verdict.Verdict, now: float) -> None:
        """What a clean close means, as the protocol sees it, or as the provider said when asked."""
        match found:
            case verdict.Finished(outcome):
                self._end_with(outcome)
            case verdict.Ask():
                self._ask(now)
            case verdict.Verify(request):
                self._lose_connection(now, "closed", None)
                self._todo.append(act.Disconnect())
                self._fetch("verify", request, now)
            case verdict.Interrupted(reason):
                self._todo.append(act.Disconnect())
                self._no_way_back(now, reason, None)
            case verdict.Lost():
                self._todo.append(act.Disconnect())
                self._lost(now, found)
            case verdict.Reject(message):
                self._todo.append(act.Disconnect())
                self._fail(StreamInterrupted(message or "the provider will not continue the stream", reason="rejected"))
            case _:
                self._rotate(now)

    def _rotate(self, now: float) -> None:
        """A close that is not an end. One that was held open with nothing to say is neither progress nor failure."""
        assert self._ledger is not None and self.protocol is not None
        if self.protocol.endless and self._ledger.fresh == 0 and now - self._head_at > QUICK:
            self._go_on(now, "closed", None, neutral=True)
        else:
            self._cut(now, "closed before the end", None)

    def _ask(self, now: float) -> None:
        """Rule 7c and e: nothing tells an end from a cut."""
        ledger, state = self._ledger, self.state
        assert ledger is not None
        fresh, quick = ledger.fresh, now - self._head_at <= QUICK
        if ledger.offset == 0 and ledger.cursor is None:
            if self._asked_empty:
                self._end_with(Outcome.ENDED)
            else:
                # A first answer without an event is a cut; a GET may be asked again, once.
                self._asked_empty = True
                self._go_on(now, "closed before the first event", None, neutral=True)
            return
        if not self._resumable():
            self._end_with(Outcome.ENDED)
            return
        if state.resuming:
            if fresh == 0 and quick and self._asking:
                self._end_with(Outcome.ENDED)
                return
            if fresh == 0 and not quick:
                self._go_on(now, "closed", None, neutral=True, asking=True)
                return
            if fresh and quick and not ledger.numbered:
                self._quick_answers += 1
                if self._quick_answers > BELIEVED:
                    self._todo.append(act.Disconnect())
                    self._no_way_back(
                        now,
                        "an end cannot be told from a cut",
                        None,
                        hint="; the server answers a few events at a time: name the end (end=…), or declare a feed (end='never')",
                    )
                    return
            elif fresh:
                self._quick_answers = 0
        self._go_on(now, "closed", None, asking=True)

    def _cut(self, now: float, reason: str, error: BaseException | None) -> None:
        if self._settled is not None:
            self._end_with(self._settled)
            return
        self._go_on(now, reason, error)

    def _go_on(
        self, now: float, reason: str, error: BaseException | None, *, neutral: bool = False, asking: bool = False
    ) -> None:
        """Leave this connection and plan the next."""
        ledger = self._ledger
        assert ledger is not None
        if self._reading:
            self._todo.append(act.Disconnect())
        self._lose_connection(now, reason, error)
        left = self._deadline_left(now)
        if left is not None and left <= 0:
            self._fail(self._deadline_error(), error)
            return
        try:
            planned = self._next_request()
        except OriginMismatch as mismatch:
            self._fail(mismatch, error)
            return
        if planned is None:
            self._no_way_back(now, reason, error)
            return
        request, resuming = planned
        asking = asking or (self._asking and ledger.fresh == 0)

        def connect() -> None:
            self._connect(request, resuming=resuming, asking=asking)

        if asking and not neutral and reason == "closed":
            self._prompt = True
            self._wait(0.0, 0, now)
            connect()
        elif ledger.fresh or neutral:
            self._prompt = True
            self._attempt = 0
            self._wait(PROMPT * self.settings.jitter(), 0, now)
            connect()
        else:
            self._count_attempt(now, reason, error, connect)

    def _lose_connection(self, now: float, reason: str, error: BaseException | None) -> None:
        self._reading = False
        if self._offline_since is None:
            self._offline_since = now
        if self._decoder is not None and self._sse and self._decoder.retry is not None:
            self._retry_floor = min(self._decoder.retry / 1000, self.settings.max_server_wait)
        self.notices.append(act.Disconnected(reason, type(error).__name__ if error is not None else None))

    def _count_attempt(self, now: float, reason: str, error: BaseException | None, connect: Callable[[], None]) -> None:
        """A connection brought nothing new: wait as the policy says, or give up."""
        if self._failing_since is None:
            self._failing_since = now
        if self._prompt:
            # The reconnect after progress was free (rule 3).
            self._prompt = False
        else:
            self._attempt += 1
        delay = self.settings.delay(
            RetryState(attempt=self._attempt, elapsed=now - self._failing_since, slept=self._slept, error=error)
        )
        if delay is None:
            count = self._attempt
            seen = f"{type(error).__name__}: {error}" if error is not None else reason
            self._fail(
                RetriesExhausted(
                    f"gave up after {count} attempt{'s' * (count != 1)} without a new event; the last one: {seen}",
                    attempts=count,
                    last_error=error if error is not None else reason,
                ),
                error,
            )
            return
        self._wait(delay, max(self._attempt, 1), now)
        connect()

    def _wait(self, seconds: float, attempt: int, now: float) -> None:
        """Sleep before the next connection; what the server asked for is a floor."""
        seconds = max(seconds, self._retry_floor, self._after_floor)
        self._after_floor = 0.0
        if (left := self._deadline_left(now)) is not None:
            seconds = min(seconds, left)
        self.notices.append(act.Retrying(attempt, seconds))
        if seconds > 0:
            self._todo.append(act.Sleep(seconds))

    # --- lost

    def _no_way_back(self, now: float, reason: str, error: BaseException | None, hint: str = "") -> None:
        """A cut on a stream that cannot be resumed."""
        if self.settings.on_lost != "raise" and not hint:
            self._lost(now, verdict.Lost(f"cut ({reason}), and this stream cannot be resumed", expired=False), error)
            return
        cause = f"{type(error).__name__}" if error is not None else reason
        events = self._ledger.offset if self._ledger is not None else 0
        text = f"the stream was interrupted after {events} events ({cause if reason == 'connection lost' else reason}) and cannot be resumed"
        self._fail(StreamInterrupted(text + hint, reason=reason), error)

    def _lost(self, now: float, lost: verdict.Lost, error: BaseException | None = None) -> None:
        """Rule 8."""
        self.notices.append(act.Lost(lost.message))
        choice = self.settings.on_lost
        if choice == "snapshot" and self.protocol is not None:
            self._sync_state()
            if (request := self.protocol.snapshot_request(self.state)) is not None:
                self._fetch("snapshot", request, now)
                return
        if choice == "restart":
            self._restart(now, error)
            return
        kind = CursorExpired if lost.expired else NotResumable
        self._fail(kind(lost.message), error)

    def _restart(self, now: float, error: BaseException | None) -> None:
        ledger, state = self._ledger, self.state
        self._restarts += 1
        if ledger is not None:
            # A stream that dies again and again would be paid for again and again: restarts are attempts that no progress resets.
            if self.settings.delay(RetryState(attempt=self._restarts, elapsed=0.0, slept=0.0, error=error)) is None:
                self._fail(
                    RetriesExhausted(
                        f"gave up after {self._restarts} restarts", attempts=self._restarts, last_error=error or "restarted"
                    ),
                    error,
                )
                return
            self._events += ledger.fresh
            ledger.fresh = 0
            self._notice_restart(0)
            ledger.restart(offset=0)
        state.stream_id = state.location = None
        state.extra.clear()
        self._settled = None
        self._quick_answers = 0
        self._asked_empty = False
        self._sync_state()
        protocol = self.protocol or ResumeProtocol()
        self._prompt = True
        self._wait(PROMPT * self.settings.jitter(), 0, now)
        self._connect(protocol.first_request(state), resuming=False)

    def _notice_restart(self, offset: int) -> None:
        self.notices.append(act.Restarted(offset))

    # --- side requests

    def _fetch(self, purpose: Literal["verify", "alive", "snapshot"], request: Request, now: float) -> None:
        self._purpose = purpose
        limit = ERROR_BODY if purpose == "alive" else self.settings.limits.event_bytes
        self._todo.append(act.Fetch(request, self._side_timeout(now), limit))

    def _side_timeout(self, now: float) -> float | None:
        limit = self.settings.timeouts.idle_or(True)
        left = self._deadline_left(now)
        return limit if left is None else left if limit is None else min(limit, left)

    def receive_answer(self, answer: Answer, now: float) -> None:
        """The whole answer to a `Fetch`."""
        if self._purpose == "status":
            head = self.state.head
            assert head is not None
            self._judge_head(head, answer.body, now)
            return
        protocol = self.protocol
        assert protocol is not None and self._ledger is not None
        if answer.status in self.settings.statuses:
            self._retry_fetch(now, f"status {answer.status}", None)
            return
        if self._purpose == "snapshot":
            self._on_snapshot(protocol.on_snapshot(answer, self.state) if answer.status < 400 else None, answer)
            return
        found = protocol.on_verified(answer, self.state)
        if isinstance(found, verdict.Resume) and self._purpose == "alive":
            self._go_on(now, "silent", None, neutral=True)
        elif isinstance(found, verdict.Retry):
            self._retry_fetch(now, found.message or f"status {answer.status}", None)
        elif isinstance(found, verdict.Resume):
            self._go_on(now, "closed before the end", None)
        else:
            self._apply_close(found, now)

    def _on_snapshot(self, snapshot: Snapshot | None, answer: Answer) -> None:
        ledger, protocol = self._ledger, self.protocol
        assert ledger is not None and protocol is not None
        if snapshot is None:
            self._fail(CursorExpired(f"the stored result cannot be had either: the server answered {answer.status}"))
            return
        self._events += ledger.fresh
        if snapshot.reset:
            self._notice_restart(0)
            ledger.restart(offset=0)
        ledger.open_connection(resuming=False, asking=False)
        events: Sequence[Any] = snapshot.events
        if events and self._places:
            protocol.place(events)
        if events:
            self._deliver(ledger.receive(events, len(answer.body)))
        outcome = snapshot.outcome
        if outcome is not None:
            self._todo.append(lambda now: self._finish(outcome))
        else:
            self._todo.append(lambda now: self._go_on(now, "snapshot", None))

    def fetch_failed(self, error: BaseException, now: float) -> None:
        """A `Fetch` brought no whole answer."""
        if self._purpose == "status":
            # The status is known; only the explanation is missing.
            head = self.state.head
            assert head is not None
            self._judge_head(head, b"", now)
        else:
            self._retry_fetch(now, "status check failed", error)

    def _retry_fetch(self, now: float, reason: str, error: BaseException | None) -> None:
        purpose, protocol = self._purpose, self.protocol
        assert protocol is not None and purpose != "status"

        def again() -> None:
            request = (
                protocol.snapshot_request(self.state)
                if purpose == "snapshot"
                else protocol.status_request(self.state)
            )
            if request is None:
                found = protocol.on_clean_close(self.state)
                request = found.request if isinstance(found, verdict.Verify) else None
            if request is None:
                self._todo.append(lambda now: self._no_way_back(now, reason, error))
            else:
                asked = request
                self._todo.append(lambda now: self._fetch(purpose, asked, now))

        self._count_attempt(now, reason, error, again)

    def cancel_request(self) -> Request | None:
        """How to stop the generation, or `None` where the protocol has no such call."""
        if self.protocol is None:
            return None
        self._sync_state()
        return self.protocol.cancel_request(self.state)

    # --- ends

    def _finish(self, outcome: Outcome) -> None:
        self._reading = False
        self.outcome = outcome
        self.notices.append(act.Finished(outcome))
        self._todo.append(act.Finish(outcome))

    def _fail(self, error: ResumableStreamError, cause: BaseException | None = None) -> None:
        self._reading = False
        if cause is not None and error.__cause__ is None:
            error.__cause__ = cause
        self._error = error

    # --- clocks

    def _set_clocks(self) -> None:
        timeouts, resumable = self.settings.timeouts, self._resumable()
        if self._ledger is not None:
            self._ledger.refetch = resumable
        self._idle = timeouts.idle_or(resumable)
        endless = self.protocol is not None and self.protocol.endless
        self._stall = timeouts.stall_or(endless)

    def _deadline_left(self, now: float) -> float | None:
        deadline = self.settings.timeouts.deadline
        if deadline is None or self._opened is None:
            return None
        return self._opened + deadline - now

    def _deadline_error(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"the stream did not end within its deadline of {self.settings.timeouts.deadline} seconds")


def origin_of(url: str) -> str:
    """
    Scheme, host and port of a URL, in one form.

    >>> origin_of("HTTPS://API.example.com/v1"), origin_of("https://api.example.com:443")
    ('https://api.example.com:443', 'https://api.example.com:443')
    """
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme.lower(), 0)
    host = parts.hostname or ""
    return f"{parts.scheme.lower()}://{f'[{host}]' if ':' in host else host}:{port}"


def retry_after(headers: Mapping[str, str], *, now: float, ceiling: float = 60.0) -> float | None:
    """
    Read how long the server asked us to wait.

    Both forms of the header are understood: delta seconds and HTTP date.

    Args:
        headers: Response headers, names in lower case.
        now: Unix time in seconds, used for the date form.
        ceiling: Longest wait honoured, in seconds. 60 keeps an interactive caller alive; the policy may raise it.

    Returns:
        Seconds to wait, in ``[0, ceiling]``; `None` when absent or malformed (a bad header never ends a stream).

    Source: RFC 9110 section 10.2.3.
    """
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:10]), ceiling)
    try:
        then = parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(then - now, 0.0), ceiling)


def _index(items: Sequence[Any], item: Any) -> int:
    """Position by identity: events compare by content."""
    return next(index for index, other in enumerate(items) if other is item)
