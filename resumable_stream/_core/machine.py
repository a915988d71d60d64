"""
The state machine of one resumable stream: inputs in, actions out.

    next(now) ──► Connect ──► receive_head ──► Read ──► receive_data ──► events
       ▲             │             │             │
       │             └─ connect_failed           └─ receive_eof · read_failed · read_timed_out
       └──────────── Disconnect · Save · Sleep · Fetch · Finish ◄───── what follows from it

A driver asks `next()` what to do, does it, and reports. `receive_data()` is the only hot call: it returns the events that
a chunk completed, and while nothing else is `due` the driver goes on reading without asking.

Rules of this file:

- Time, waits and randomness are arguments. An input never raises for what the *network* did: it plans what follows,
  and `next()` raises when the plan is to give up. Then every event that came before has been delivered.
- A verdict that an event brings about (end, error, hole) waits in `_then` until the events before it were taken.
- What is known of the stream lives in the ledger, what time it is in `Clocks`, what may still be tried in `Budget`.

What would break it: reading on while events are still in hand, or calling two inputs for one action.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any, Final, Literal
from urllib.parse import quote, unquote

from .. import _notices as note
from .._checkpoint import CORE_EXTRA, MAX_EXTRA, Checkpoint, encodable, public_url, withheld
from .._contract import (
    KEY,
    SENTINEL,
    Answer,
    Backfill,
    Detect,
    Head,
    Request,
    ResumeProtocol,
    Settled,
    Snapshot,
    StreamState,
    Unproven,
    alarm_of,
    not_json,
    origin_of,
    quiet_of,
    readable,
    same_origin,
)
from .._contract import verdicts as verdict
from .._errors import (
    CursorExpired,
    DeadlineExceeded,
    NotResumable,
    ResponseRejected,
    ResumableStreamError,
    RetriesExhausted,
    StreamInterrupted,
)
from .._events import Gap, Outcome
from ..framing import DocumentDecoder, NDJSONDecoder, RawDecoder, SSEDecoder, VerbatimDecoder
from . import actions as act
from .budget import Budget, retry_after
from .clocks import Clock, Clocks
from .heads import STREAMS, default_verdict, has_right_type, rejection, unexpected_type
from .ledger import HoleFound, Ledger, Place, StartedOver
from .memory import KEPT_BYTES
from .origins import REDIRECTS, redirected
from .saving import Saving
from .settings import Settings, Stats
from .skimming import LARGEST, Skimmer, Unread
from .unpacking import Unpacking

__all__ = ["UNKNOWN", "Machine"]

# Rule 7c. A server that answers and closes within 5 s has nothing to wait for.
QUICK: Final = 5.0
# Rule 7c. So many quick answers with new events are believed; a server that hands out a few events a request must say so.
BELIEVED: Final = 3
# So many answers in a row that say how things stand, and no more, and close within 5 s: a slow run behind a hasty proxy, or two
# servers that disagree. Then they are failed attempts.
RESTATED: Final = 20
# So many failed attempts to read what may follow a settled outcome. It is worth a second and a third one, but no long wait.
BEHIND: Final = 3
# Enough for a provider's error document.
ERROR_BODY: Final = 64 * 1024
# Why a connection is over that the network did not end.
INSIDE: Final = "interrupted from inside"
TAKEN_ALONG: Final = (
    "Something in this process interrupted the read (a cancellation or time-out around it, a signal), and that closes the "
    "connection. To limit how long a read may take, pass timeouts=; to poll, read in a task or thread of its own and wait for it"
)
# A million events in the usual pages of 1,000: more than that is a server whose pages never end.
BACKFILL_PAGES: Final = 1_000
OUTCOME_KEY, LOCATION_KEY, FIRST_KEY, RESET_KEY, OPTIONS_KEY, SETTLED_KEY, STEP_KEY, UNVERIFIED_KEY, WITHHELD_KEY = CORE_EXTRA
_BYTES: Final = re.compile(r"[0-9]{1,18}")
# `Checkpoint.protocol` before the first answer, when it is still to be detected.
UNKNOWN: Final = "auto"

Then = Callable[[float], None]
# Events that say how the stream ends, in their order.
Marks = Sequence[tuple[Any, Settled]]
# Of an event that says no more than "over": what was claimed holds.
_CONFIRMED: Final = Settled(Outcome.ENDED)
Purpose = Literal["status", "verify", "alive", "last", "snapshot", "backfill"]


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
        self.protocol: ResumeProtocol | None = None
        self.outcome: Outcome | None = None
        self.verified = True
        """The protocol, the server when it was asked, or the caller's `end=` vouches for `outcome`."""
        self.notices: list[note.Notice] = []
        self._detect = detect
        self._restored = checkpoint
        self._origin = origin_of(state.url)
        self._clocks = Clocks(settings.timeouts, settings.longest_read)
        self._budget = Budget(settings)
        self._saving = Saving(settings)
        self._ledger: Ledger | None = None
        self._unread: Unread | None = None
        # The plan: steps in order, then `_error`; `_then` comes before them, when the events in hand were taken.
        self._todo: deque[act.Action | Then] = deque()
        self._then: Then | None = None
        self.calm = False
        """The latest read brought events, and the next one may begin at once and take as long as the last."""
        self._error: ResumableStreamError | None = None
        self._begun = False
        # This connection.
        self._request: Request | None = None
        self._body_sent = False
        self._last_error: BaseException | None = None
        self._decoder: Any = None
        self._inside = False  # the body closed inside an event
        self._reading = False
        self._asking = False
        self._head_at = 0.0
        self._asked_at = 0.0
        self._behind: str | None = None  # where the stream goes on behind this document
        self._unusable = ""  # why this document is as good as none
        self._unproven: Unproven | None = None  # what said that it is done, and proved nothing
        self._cursor_at_open: str | None = None
        self._certain = False
        self._redirects = 0
        self._purpose: Purpose = "status"
        self._pages = 0
        self._onward: Then | None = None  # how the history goes on after a hole in it
        # This stream.
        self._known = checkpoint is not None  # the server has answered it
        self._accepted: Request | None = None  # where a redirect sent us after the first request was taken
        self._ending: Outcome | None = None  # what the latest event says of the end, until it was taken
        self._settled: Outcome | None = None
        self._settled_at = 0  # events up to the one that settled it
        self._failed_behind = 0  # attempts to read what follows it
        self._unsettled: Marks = ()  # of events that are held back
        # An outcome was settled, and a piece of the answer followed: what the events say since then, which proves nothing alone.
        self._disproved = False
        self._claimed: Outcome | None = None
        self._refused: ResumableStreamError | None = None  # why the resume URL that the server named is not used
        self._asked_empty = False
        self._quick_answers = 0
        self._empty_pages = 0
        self._restated = 0
        # Before giving up: how often the run was asked about, and the error if that changes nothing.
        self._last_words = 0
        self._exhausted: RetriesExhausted | None = None
        self._extra_before: dict[str, str] = {}
        self._refreshed = False
        self._step_starts: list[int] = []  # offsets, as far as they are known
        self._more = False  # it has ended as far as it can be read now
        self._waits = False  # the next answer may be held back until there is something to say
        # What events changed in what checkpoints keep: (offset of the event, those texts before it), oldest first.
        self._noted: list[tuple[int, dict[str, str]]] = []
        self._noting: list[tuple[Any, dict[str, str]]] = []  # of the batch at hand
        # Counting.
        self._events = 0
        self._bytes = 0
        self._condense_at = KEPT_BYTES
        self._connections = 0
        self._answers = 0  # connections of those that were the next one as a matter of routine
        self._routine = False
        self._offline_since: float | None = None
        self._checked = False  # the status of the run was asked for, and says that it goes on
        self._parting: note.Disconnected | None = None  # the notice of the latest loss, until it is known what follows
        self._offline = 0.0
        if protocol is not None:
            self._adopt(protocol)
            if checkpoint is None:
                self._choose_key()

    def _adopt(self, protocol: ResumeProtocol) -> None:
        """Now the protocol is known, and with it what a place means."""
        self.protocol = protocol
        own, base = type(protocol), ResumeProtocol
        self._place = protocol.place if protocol.places else None
        self._sse = protocol.framing == "sse"
        # The SSE id is the cursor, also where no event carries it.
        self._by_id = protocol.framing == "sse" and own.position is base.position
        if len(protocol.keeps) > MAX_EXTRA:
            raise TypeError(f"{protocol.name}.keeps may name at most {MAX_EXTRA} texts, got {len(protocol.keeps)}")
        self._judges = any(getattr(own, name) is not getattr(base, name) for name in ("end", "error", "gap"))
        self._alarm = alarm_of(protocol)
        self._names, self._heads = self._alarm or (frozenset(), frozenset())
        self._steps = protocol.steps
        # Where cursors name their log, each of them is looked at.
        tells_log = own.lineage is not base.lineage
        self._hot = self._sse and not (self._steps or tells_log) and (self._alarm is not None or not self._judges)
        self._keeps_events = self._saving.keeps_events
        self._narrows = own.end_in is not base.end_in
        self._learns = protocol.identifies_by_event and own.identify is not base.identify
        self._identifies = self._learns
        settings = self.settings
        ledger = Ledger(protocol, window=settings.limits.window, on_gap=settings.on_gap, notices=self.notices)
        self._ledger = ledger
        limits = settings.limits
        tells = self._hot or (self._sse and not (self._steps or tells_log) and quiet_of(protocol) is not None)
        skims = settings.verbatim and tells and not self._keeps_events and min(limits.event_bytes, limits.line_bytes) >= LARGEST
        self._unread = Unread(protocol, ledger, self._place, self._count_late) if skims else None
        if self._steps:
            self._step_starts = [0]
        if self._restored is not None:
            self._restore(self._restored, protocol, ledger)

    def _restore(self, checkpoint: Checkpoint, protocol: ResumeProtocol, ledger: Ledger) -> None:
        ledger.restore(checkpoint)
        self._clocks.waiting_for_first = checkpoint.offset == 0
        state, extra = self.state, checkpoint.extra
        state.stream_id = _sendable(checkpoint.stream_id)
        state.extra = {name: value for name, value in extra.items() if name in protocol.keeps}
        if (location := extra.get(LOCATION_KEY)) is not None:
            state.location = same_origin(location, base=state.url, origin=self._origin)
        if self._steps and checkpoint.offset:
            began = extra.get(STEP_KEY, "")
            self._step_starts = [int(began[:18])] if began.isascii() and began.isdecimal() else []
        self._sync_state()
        self._saving.restored(ledger.place(0), ledger.pending_reset)
        if settled := extra.get(SETTLED_KEY):
            self._settled, self._settled_at = Outcome(settled), checkpoint.offset
        if checkpoint.complete:
            self.outcome = Outcome(extra.get(OUTCOME_KEY, Outcome.ENDED.value))
            self.verified = UNVERIFIED_KEY not in extra

    # --- what the driver asks

    def next(self, now: float) -> act.Action:
        """
        What to do now. The caller is done with every event it was given.

        Raises:
            ResumableStreamError: The stream is over without an honest end.
        """
        if not self._begun:
            self._begun = True
            self._clocks.open(now)
            self._saving.open(now)
            self._begin(now)
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
                if self.outcome is None:
                    # An exception of the protocol's (a `resume=` of the caller's) came out of the input before.
                    raise NotResumable("the stream stopped at an exception of your code; continue from its checkpoint")
                return act.Finish(self.outcome)
            step = self._todo.popleft()
            if callable(step):
                step(now)
                continue
            if isinstance(step, act.Sleep):
                self._budget.slept(step.seconds)
            return step

    def put_back(self, action: act.Action) -> None:
        """The action was not carried out: an exception that is none of the network's came first."""
        if isinstance(action, act.Sleep):
            self._budget.slept(-action.seconds)
        if not isinstance(action, act.Read):
            self._todo.appendleft(action)

    def woken(self, ends: float, now: float) -> None:
        """
        A `Sleep` was interrupted from inside. What is left of it is slept before anything else.

        Args:
            ends: When it would have been over. The time until the caller comes back counts.
        """
        self._budget.slept(now - ends)

        def sleep_on(now: float) -> None:
            if ends > now:
                self._todo.appendleft(act.Sleep(ends - now))

        self._todo.appendleft(sleep_on)

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

    @property
    def stats(self) -> Stats:
        ledger = self._ledger
        return Stats(
            events=self._events + (ledger.fresh if ledger else 0),
            bytes=self._bytes,
            duplicates=ledger.duplicates if ledger else 0,
            gaps=ledger.gaps if ledger else 0,
            connections=self._connections,
            reconnects=max(0, self._connections - 1 - self._answers),
            seconds_offline=self._offline,
            cursor_ignored=ledger.cursor_ignored if ledger else False,
        )

    @property
    def latest(self) -> Sequence[Any]:
        """The latest batch: for a driver that an interrupt kept from handing it out."""
        return self._ledger.latest if self._ledger is not None else ()

    def count_replayed(self, events: int) -> None:
        """So many events came from the store."""
        self._events += events

    # --- the place

    def checkpoint(self, taken: int, batch: Sequence[Any] | None = None) -> Checkpoint:
        """The place when `taken` items of `batch` (`None`: the latest) are taken, or the committed one under manual commit."""
        state, ledger, protocol = self.state, self._ledger, self.protocol
        if ledger is None or protocol is None:
            return self._restored or Checkpoint(protocol=UNKNOWN, method=state.method, url=state.public_url)
        place = self._place_of(ledger, taken, batch)
        extra = self._kept(protocol)
        changed = bisect_left(self._noted, place.offset, key=itemgetter(0))
        if changed < len(self._noted):
            # The first event after the place that changed anything: so it was there.
            extra = dict(self._noted[changed][1])
        if state.location is not None:
            extra[LOCATION_KEY] = public_url(state.location, state.private)
        if place.offset and (first := ledger.beginning()) is not None:
            extra[FIRST_KEY] = first
        if (reset := ledger.pending_reset) is not None:
            extra[RESET_KEY] = str(reset)
        if protocol.options:
            extra[OPTIONS_KEY] = protocol.options
        if self._settled is not None and place.offset >= self._settled_at:
            extra[SETTLED_KEY] = self._settled.value
        if place.offset and (began := self.step_at(place.offset - 1)) is not None:
            extra[STEP_KEY] = str(began)
        if names := self._withheld():
            extra[WITHHELD_KEY] = names
        outcome = self.outcome or self._ended_by(ledger)
        complete = outcome is not None and place.offset == ledger.offset and not self._more
        if complete and outcome is not None:
            extra[OUTCOME_KEY] = outcome.value
            if not self.verified:
                extra[UNVERIFIED_KEY] = "1"
        return Checkpoint(
            protocol=protocol.name,
            method=state.method,
            url=state.public_url,
            stream_id=state.stream_id,
            cursor=place.cursor,
            sequence=place.sequence,
            offset=place.offset,
            since=ledger.since(place),
            recent_ids=ledger.recent_ids(place),
            extra=extra,
            complete=complete,
        )

    def _withheld(self) -> str:
        """Names of what is missing in the URLs of a checkpoint; those of another process's are still missing there."""
        state, told = self.state, (self._restored.extra.get(WITHHELD_KEY, "") if self._restored is not None else "")
        if "?" not in state.url and (state.location is None or "?" not in state.location):
            return told
        names = [*told.split("&"), *withheld(state.url, state.private), *withheld(state.location or "", state.private)]
        # Bounded: it is an aid, and the place itself must fit.
        found = dict.fromkeys(quote(unquote(name), safe="") for name in names if 0 < len(name) <= 64)
        return "&".join(list(found)[:16])

    def _kept(self, protocol: ResumeProtocol) -> dict[str, str]:
        return {name: value for name, value in self.state.extra.items() if name in protocol.keeps}

    def step_at(self, offset: int) -> int | None:
        """Offset at which the step began that an event is of; `None` where the protocol has none, or it began elsewhere."""
        index = bisect_right(self._step_starts, offset)
        return self._step_starts[index - 1] if index else None

    def _place_of(self, ledger: Ledger, taken: int, batch: Sequence[Any] | None) -> Place:
        return ledger.committed if self.settings.manual else ledger.place(taken, batch)

    def _ended_by(self, ledger: Ledger) -> Outcome | None:
        """The outcome that the latest event brought, although nobody has come back to hear of it."""
        if self._ending is None or self._then is None or ledger.problem is not None:
            return None
        return self._with_settled(self._ending)

    def conclude(self, taken: int, batch: Sequence[Any]) -> bool:
        """The caller leaves without an exception. True: it has taken the event that ends the stream, so that is the outcome."""
        ledger = self._ledger
        if ledger is None or self.outcome is not None or ledger.place(taken, batch).offset != ledger.offset:
            return False
        self.outcome = self._ended_by(ledger) or self._settled_by(ledger, batch)
        return self.outcome is not None

    def _settled_by(self, ledger: Ledger, batch: Sequence[Any]) -> Outcome | None:
        """The outcome that is known already, where whoever leaves now misses nothing that could still be had."""
        if self._settled is None or self._then is not None or ledger.problem is not None or self._more:
            return None
        # Those who know the API stop reading at its sentinel.
        sentinel = bool(batch) and batch[-1].data == SENTINEL
        return self._settled if sentinel or not self.resumable() else None

    def commit(self, item: Any, taken: int, batch: Sequence[Any] | None = None) -> None:
        """Under manual commit: move the committed place behind `item`, or behind what is taken."""
        if self._ledger is not None:
            self._ledger.commit(item, taken=taken, batch=batch)

    def save(
        self,
        now: float,
        taken: int,
        batch: Sequence[Any] | None = None,
        *,
        force: bool = False,
        blocks: Callable[[], bool] | None = None,
    ) -> act.Save | None:
        """
        The save that is due, if any. Called with `force` on leaving, with `blocks` before a read, without either at an event.

        Args:
            taken: Items of `batch` (`None`: the latest) that the caller is done with.
            blocks: Tells whether the read about to begin will have to wait.
        """
        if self._ledger is None:
            return None
        place, reset = self._place_of(self._ledger, taken, batch), self._ledger.pending_reset
        if not self._saving.due(place, reset, now, force=force, final=self.outcome is not None, blocks=blocks):
            return None
        checkpoint = self.checkpoint(taken, batch)
        if self.settings.request is not None:
            checkpoint = replace(checkpoint, request=self.settings.request)
        return act.Save(checkpoint, self._saving.begin(place, reset))

    @property
    def save_at(self) -> float:
        """Before this moment `save()` finds nothing due, but with `force`."""
        return self._saving.earliest

    def saved(self, now: float) -> None:
        """The latest `Save` was written."""
        self._saving.done(now)

    # --- requests

    def _begin(self, now: float) -> None:
        if self.outcome is not None:
            self._todo.append(act.Finish(self.outcome))
            return
        if self._restored is None or (self.protocol is None and self.state.safe):
            # Also where another process never got an answer: nothing was seen of the stream.
            self._known = False
            self._connect(self._first_request(), resuming=False)
            return
        try:
            planned = self._next_request()
        except ResumableStreamError as error:
            self._fail(error)
            return
        if planned is None:
            what = f"{self.protocol or 'the stream'!r} of {self.state.method} {self.state.public_url} cannot be continued"
            self._lost(now, verdict.Lost(what, expired=False))
        else:
            self._connect(planned[0], resuming=planned[1])

    def _first_request(self) -> Request:
        protocol = self.protocol or ResumeProtocol()
        request, key = protocol.first_request(self.state), self.state.extra.get(KEY)
        headers = {**request.headers, **protocol.first_headers, **({} if key is None else {"Idempotency-Key": key})}
        return replace(request, headers=headers) if headers else request

    def _choose_key(self) -> None:
        """
        A key for the first request, where the server joins one that comes again to the stream that it started.

        Not where that request was sent already: by another process, without a key, or before the protocol was known.
        """
        protocol, settings = self.protocol, self.settings
        joins = protocol is not None and protocol.joins and not self.state.safe
        if joins and settings.new_key is not None and not (settings.idempotent or settings.started_elsewhere):
            self.state.extra[KEY] = settings.new_key()

    def _rest_request(self) -> Request | None:
        """How to go on after what was delivered, or `None`."""
        protocol, ledger = self.protocol, self._ledger
        if protocol is None or ledger is None or not self._known:
            return None
        if ledger.cursor is None and ledger.offset and not (protocol.replays or protocol.counted or protocol.endless):
            # Nothing says where we are. Only a replay, a count, or a feed (which goes on with what is new) may be asked again.
            return None
        if not self._makes_sense():
            return None
        self._sync_state()
        request = protocol.resume_request(self.state)
        if request is None or not request.sendable:
            return None
        same_origin(request.url, base=self.state.url, origin=self._origin)
        return request

    def _makes_sense(self) -> bool:
        """A cursor that counts bytes is a number. That of a checkpoint may be anything."""
        protocol, ledger = self.protocol, self._ledger
        if protocol is None or ledger is None or not (protocol.measured or protocol.framing == "raw"):
            return True
        return not ledger.cursor or _BYTES.fullmatch(ledger.cursor) is not None

    def _next_request(self) -> tuple[Request, bool] | None:
        """The next request, and whether it resumes; `None` when repeating might pay twice (rule 9)."""
        if (rest := self._rest_request()) is not None:
            return rest, True
        ledger, protocol = self._ledger, self.protocol
        if ledger is not None and (ledger.offset or ledger.cursor is not None):
            return None
        if self._accepted is not None and not self._known:
            return self._accepted, False
        if self.settings.started_elsewhere and not self.state.safe:
            # Method and URL are those of a token: what another process may start is not for us to start.
            return None
        tied = protocol is not None and protocol.promises.tied
        if not self._known or self._idempotent or (self.state.safe and not tied):
            return self._first_request(), False
        return None

    def resumable(self) -> bool:
        """The rest of the stream can be asked for from where it stands."""
        try:
            return self._rest_request() is not None
        except ResumableStreamError:
            return False

    def _sync_state(self) -> None:
        ledger, state = self._ledger, self.state
        if ledger is not None:
            state.cursor, state.sequence, state.offset = ledger.cursor, ledger.sequence, ledger.offset
            if ledger.beyond_gap and self.protocol is not None and self.protocol.endless:
                # Asked from there, a feed would tell of the hole again and again. It goes on with what is new.
                state.cursor = None

    def _connect(self, request: Request, *, resuming: bool, asking: bool = False) -> None:
        def send(now: float) -> None:
            self._redirects = 0
            self.state.resuming, self.state.asking = resuming, asking
            self._asking = asking
            self._send(request, now)

        self._todo.append(send)

    def _connect_again(self) -> None:
        """Send the latest request once more; after redirects, the one that led to them."""
        resuming, asking = self.state.resuming, self._asking
        planned = self._next_request()
        request = planned[0] if planned is not None else self._request
        assert request is not None
        self._connect(request, resuming=resuming, asking=asking)

    def _send(self, request: Request, now: float) -> None:
        if self._clocks.expired(now):
            self._fail(self._deadline_error())
            return
        if self._body_sent and request.repeat in ("all", "body"):
            text = "the request would have to be sent again, but its body can be sent only once: pass it as bytes"
            self._fail(NotResumable(text), self._last_error)
            return
        self._request = request
        self._asked_at = now
        self._todo.append(act.Connect(request, self._clocks.send(now, again=self._known, resumable=self.resumable())))

    # --- heads

    def connect_failed(
        self, error: BaseException, now: float, *, sent: bool, timed_out: bool = False, inside: bool = False
    ) -> None:
        """
        The request brought no response.

        Args:
            sent: The server may have received it; False only for errors that prove it was not (rule 9a).
            inside: As in `read_failed()`.
        """
        if inside:
            reason = INSIDE
        elif timed_out:
            reason = "idle" if self._known else "first_event"
        else:
            reason = "connection lost" if sent else "cannot connect"
        self._lose_connection(now, reason, error)
        self._body_sent = self._body_sent or (sent and self.settings.single_use)
        if self._clocks.expired(now):
            self._fail(self._deadline_error(), error)
        elif sent and not self._may_repeat():
            self._no_way_back(now, reason, error)
        elif timed_out and self._waits and self.state.resuming:
            # An answer that is held back until there is something cannot show that it lives.
            self._wait(self._budget.prompt(free=False), now)
            self._connect_again()
        elif inside:
            self._wait(self._budget.interrupted(free=False), now)
            self._connect_again()
        else:
            self._try_again(now, reason, error, self._connect_again)

    def _may_repeat(self) -> bool:
        """The latest request may be sent again, whether or not the server received it (rule 9)."""
        return self._idempotent or self.state.safe or self.state.resuming or self._accepted is not None

    @property
    def _idempotent(self) -> bool:
        """The first request carries an `Idempotency-Key`, the same whenever it is sent."""
        return self.settings.idempotent or KEY in self.state.extra

    def receive_head(self, head: Head, now: float, *, wall: float) -> None:
        """
        A response has begun.

        Args:
            wall: Unix time in seconds, for a `Retry-After` date.
        """
        self.state.head = head
        self._head_at = now
        self._body_sent = self._body_sent or self.settings.single_use
        self._budget.server_retry_after(retry_after(head.headers, now=wall, ceiling=self.settings.max_server_wait))
        if head.status in REDIRECTS and "location" in head.headers:
            self._todo.append(act.Disconnect())
            self._redirect(head, now)
        elif head.status >= 400:
            self._purpose = "status"
            self._todo.append(act.Fetch(None, self._clocks.error_body(now), ERROR_BODY))
        else:
            self._judge_head(head, b"", now)

    def _redirect(self, head: Head, now: float) -> None:
        assert self._request is not None
        self._redirects += 1
        if self._redirects > self.settings.limits.redirects:
            self._fail(self._rejection(head, b"", f"more than {self.settings.limits.redirects} redirects"))
            return
        try:
            follow = redirected(self._request, head, self.state.cursor)
        except ResumableStreamError as error:
            self._fail(error)
            return
        if follow.method != self._request.method:
            # The server has taken the request; only what it points to may be asked for again.
            self._accepted = follow
        self._send(follow, now)

    def _judge_head(self, head: Head, body: bytes, now: float) -> None:
        if self.protocol is None and (head.status in STREAMS or head.status == 204):
            chosen = self._detect(self.state, head)
            if chosen is None and head.status != 204:
                self._todo.append(act.Disconnect())
                self._fail(
                    unexpected_type(
                        "a stream (text/event-stream, application/x-ndjson or bytes); pass protocol= if this is one",
                        head,
                        self.state.private,
                    )
                )
                return
            if chosen is not None:
                self._adopt(chosen)
                if not self._makes_sense():
                    # The checkpoint of a stream that nobody knew yet.
                    self._todo.append(act.Disconnect())
                    self._fail(NotResumable(f"the place is none in {chosen!r}: its cursor is no number of bytes"))
                    return
        found = None
        if self.protocol is not None:
            found = self.protocol.on_status(head.status, head.headers, body, self.state)
        if found is None:
            found = default_verdict(head.status, self.state, self.protocol, self.settings, repeatable=self._may_repeat())
        self._apply_head(found, head, body, now)

    def _apply_head(self, found: verdict.Verdict, head: Head, body: bytes, now: float) -> None:
        if isinstance(found, verdict.Consume):
            self._consume(found, head, now)
            return
        self._todo.append(act.Disconnect())
        behind = self._settled is not None and self.protocol is not None and self.protocol.resumes_settled
        if behind and self._settled is not None and not isinstance(found, verdict.Retry):
            # Only what may have followed the outcome was asked for.
            self._finish(self._settled)
            return
        refused = head.status in (401, 403) and isinstance(found, verdict.Reject)
        if refused and not self._refreshed and (self.state.resuming or self.settings.refreshable):
            # Credentials run out while a long answer is read: the client's auth, or a callable `headers`, may bring new ones.
            self._refreshed = True
            self._connect_again()
            return
        match found:
            case verdict.Reject(message):
                self._fail(self._rejection(head, body, message))
            case verdict.Retry(message):
                reason, error = f"status {head.status}", self._rejection(head, body, message)
                self._lose_connection(now, reason, error)
                self._try_again(now, reason, error, self._connect_again)
            case _:
                self._apply_close(found, now)

    def _rejection(self, head: Head, body: bytes, message: str) -> ResponseRejected:
        method = self._request.method if self._request is not None else self.state.method
        return rejection(head, body, message, method=method, private=self.state.private)

    def _consume(self, found: verdict.Consume, head: Head, now: float) -> None:
        protocol, ledger, state = self.protocol, self._ledger, self.state
        assert protocol is not None and ledger is not None
        if not (found.any_type or found.whole or has_right_type(protocol, state, head)):
            self._todo.append(act.Disconnect())
            self._fail(unexpected_type(" or ".join(protocol.content_types), head, self.state.private))
            return
        if found.reset:
            kept = self._kept(protocol)
            self._start_over(ledger)
            state.extra.update(kept)
        self._known = True
        protocol.identify(state, head)
        state.stream_id = _sendable(state.stream_id)
        if state.location is not None:
            location, state.location = state.location, None
            try:
                state.location = same_origin(location, base=head.url, origin=self._origin)
            except ResumableStreamError as error:
                # The answer may be whole without it; it matters when the rest has to be asked for.
                self._refused = error
        self._behind = None
        self._unusable = ""
        self._unproven = None
        self._onward = None
        self._decoder = (
            DocumentDecoder(event_bytes=self.settings.limits.event_bytes, read=self._read_document)
            if found.whole
            else self._new_decoder(protocol, ledger, found.skip)
        )
        self._open(ledger, resuming=state.resuming, asking=self._asking)
        self._reading = True
        self._connections += 1
        self._answers += self._routine
        self._routine = False
        offline = None
        if self._offline_since is not None:
            offline = now - self._offline_since
            self._offline += offline
            self._offline_since = None
        self._budget.server_retry_after(None)
        self._certain = False
        # A feed may be quiet for as long as it likes, if only it lives.
        self._clocks.begin_body(now, endless=protocol.endless)
        self._set_clocks()
        cursor = ledger.cursor if state.resuming else None
        self.notices.append(
            note.Connected(head.status, state.resuming, cursor, offset=ledger.offset, offline=offline, asking=self._asking)
        )
        if state.resuming and (request := protocol.backfill_request(state)) is not None:
            # The connection stays open meanwhile: what is live waits in it.
            self._reading = False
            self._pages = 1
            self._fetch("backfill", request, now)

    def _read_document(self, body: bytes) -> Sequence[Any] | None:
        assert self.protocol is not None
        document = self.protocol.on_document(body, self.state)
        if document is None or isinstance(document, verdict.Retry):
            self._unusable = document.message if document is not None else ""
            return None
        self._behind = document.cursor
        return document.events

    def _new_decoder(self, protocol: ResumeProtocol, ledger: Ledger, skip: int) -> Any:
        decoder = self._new_framing(protocol, ledger, skip)
        # A decoder in front, and no look at it for every chunk of all the others.
        return decoder if type(protocol).unpack is ResumeProtocol.unpack else Unpacking(decoder, protocol.unpack)

    def _new_framing(self, protocol: ResumeProtocol, ledger: Ledger, skip: int) -> Any:
        limits, framing = self.settings.limits, protocol.framing
        decoder: Any
        if framing == "raw":
            return RawDecoder(start=int(ledger.cursor or 0), skip=skip)
        if framing == "sse":
            # As EventSource does: the last event id outlives the connection.
            if self._by_id:
                last = ledger.cursor or ""
            else:
                last = "" if protocol.replays or self._decoder is None else self._decoder.last_event_id
            decoder = SSEDecoder(last_event_id=last, event_bytes=limits.event_bytes, line_bytes=limits.line_bytes)
        else:
            decoder = NDJSONDecoder(line_bytes=limits.line_bytes)
        if not (protocol.measured or self.settings.verbatim):
            return decoder
        start = int(ledger.cursor or 0) if protocol.measured else 0
        carried = self._decoder.carry() if hasattr(self._decoder, "carry") else b""
        spliced = self._connections > 0
        return VerbatimDecoder(decoder, framing=framing, start=start, carried=carried, spliced=spliced, beat=protocol.heartbeat)

    def _set_clocks(self) -> None:
        assert self._ledger is not None and self.protocol is not None
        resumable = self.resumable()
        self._ledger.refetch = resumable
        self._clocks.set(resumable=resumable, endless=self.protocol.endless, settled=self._settled is not None)

    # --- bodies

    def before_read(self, now: float) -> float | None:
        """
        A read is about to begin. The caller is done with every event it was given.

        Returns:
            Seconds it may take; `None` without limit; 0 when a clock has run out: then report `read_timed_out()`.
        """
        clocks = self._clocks
        if clocks.steady:
            clocks.started_at = now
            return clocks.nearest
        return clocks.read(now)

    def receive_data(self, chunk: bytes, now: float) -> Sequence[Any]:
        """
        A piece of the body.

        Returns:
            The events it completed, to be handed out in order before `next()` is asked again.
        """
        items = self.receive_live(chunk)
        if not items:
            self._only_bytes(now)
        return items

    def receive_nothing(self, started: float, now: float) -> None:
        """`receive_live()` brought no event; `started` is when the read began."""
        self._clocks.started_at = started
        self._only_bytes(now)

    def _only_bytes(self, now: float) -> None:
        if (clock := self._clocks.bytes_only(now)) is not None and self._then is None:
            self._then = partial(self._on_clock, clock, None)

    def receive_live(self, chunk: bytes) -> Sequence[Any]:
        """
        `receive_data()` for a driver that reads on while the machine is `calm`, without a look at the clock.

        If it brings no event, `receive_nothing()` is due.
        """
        decoder = self._decoder
        items: Sequence[Any] = decoder.feed(chunk)
        self._bytes = total = self._bytes + len(chunk)
        if total > self._condense_at:
            self._condense_if_due()
        hot = self._hot and self._settled is None
        if hot and len(items) == 1 and self._clocks.steady and decoder.error is None and not self._identifies:
            # A live stream, one event a chunk: nothing but its order is to be looked at.
            item = items[0]
            if self._place is not None:
                self._place(items)
            if item.event not in self._names and item.data[:7] not in self._heads and not decoder.silent:
                assert self._ledger is not None
                if self._ledger.receive_one(item, items):
                    if self._keeps_events:
                        self._saving.delivered(items)
                    self.calm = True
                    return items
        silent: Sequence[tuple[int, str]] = ()
        if self._sse and decoder.silent:
            silent, decoder.silent = decoder.silent if self._by_id else (), []
        if items or silent:
            items = self._enter(items, silent)
        if decoder.error is not None and self._then is None:
            self._then = self._on_framing_error
        self.calm = bool(items) and self._then is None and self._clocks.steady
        return items

    def skimmer(self) -> Skimmer | None:
        """For a driver that hands on bytes: what recognises an event that need not be read. `None`: each has to be."""
        unread = self._unread
        if unread is None or not self.calm or self._identifies or self._settled is not None:
            return None
        return unread.start(self._decoder)

    def settle(self, *, leaving: bool = True) -> None:
        """
        Read what was skimmed: its newest events are `latest` then. They were handed out.

        Args:
            leaving: What comes next is read, so the front of an event is too.
        """
        if self._unread is not None:
            self._unread.settle(leaving=leaving)
            if self._ledger is not None and self._ledger.problem is not None:
                self._then = self._on_problem

    def take_back(self, chunk: bytes) -> None:
        """What was skimmed last is not handed out after all. The connection has to end."""
        if self._unread is not None:
            self._unread.take_back(chunk)

    def take_carried(self) -> bytes:
        """Bytes of the connection before, which belong in front of the first event that this one delivers."""
        # Also where a decoder that takes batches apart stands in front.
        return self._decoder.take_carried() if hasattr(self._decoder, "take_carried") else b""

    def _count_late(self, size: int) -> None:
        """So many bytes went unread."""
        self._bytes += size
        self._condense_if_due()

    def _condense_if_due(self) -> None:
        if self._bytes > self._condense_at:
            self._condense_at = self._bytes + KEPT_BYTES
            if self._ledger is not None:
                self._ledger.condense()

    def receive_eof(self, now: float) -> Sequence[Any]:
        """
        The body ended cleanly.

        Returns:
            The events that its end completed.
        """
        items: Sequence[Any] = self._decoder.eof()
        self._inside = bool(self._decoder.partial)
        if self._inside and not items:
            items = self._last_without_its_end()
        if items or self._behind is not None:
            items = self._enter(items, () if self._behind is None else [(len(items), self._behind)])
        if self._then is None:
            self._then = self._on_framing_error if self._decoder.error is not None else self._on_clean_close
        return items

    def _last_without_its_end(self) -> Sequence[Any]:
        """
        The event that a clean close left without its blank line, if it is whole and says how the stream ends.

        The standard drops it, since nothing shows that it is whole. This does: JSON that can be read, `[DONE]`, or an ended line.
        Where more may follow it and the stream can be resumed, the server is asked for it once more instead.
        """
        decoder, protocol = self._decoder, self.protocol
        judged = self._judges and self._sse and hasattr(decoder, "unfinished")
        if not judged or decoder.error is not None or self._then is not None:
            return ()
        assert protocol is not None
        ended_line = not decoder.in_line
        items: Sequence[Any] = decoder.unfinished()
        for item in items:
            if not (ended_line or item.data.startswith(SENTINEL) or _is_json(item.data)):
                return ()
        kept = dict(self.state.extra)
        try:
            return items if any(self._ends(protocol, item) for item in items) else ()
        finally:
            self.state.extra = kept

    def _ends(self, protocol: ResumeProtocol, item: Any) -> bool:
        """Does it say how the stream ends, or why?"""
        if protocol.error(item) is not None:
            return True
        end = protocol.end(item)
        if isinstance(end, Unproven):
            return self._is_settled(())
        if end is not None and self._narrows:
            end = protocol.end_in(self.state, item, end)
        if isinstance(end, Settled):
            asked = self.state.resuming and self._ledger is not None and self._ledger.fresh == 0
            return end.outcome is not None and (asked or not self.resumable())
        return end is not None

    def read_failed(self, error: BaseException, now: float, *, inside: bool = False) -> None:
        """
        The connection broke, its body could not be decoded, or what it brought was never entered.

        Args:
            inside: The exception came from inside this process and goes on to the caller: a cancellation, a signal handler,
                a bug in a callable. The network did not fail, so this counts as no attempt and nothing waits for it.
        """
        self._then = None
        self.calm = False
        self._cut(now, INSIDE if inside else "connection lost", error, inside=inside)

    def read_timed_out(self, now: float, error: BaseException | None = None) -> None:
        """The time that `before_read()` gave has passed."""
        self._on_clock(self._clocks.ran_out(), error, now)

    def _enter(self, items: Sequence[Any], silent: Sequence[tuple[int, str]] = ()) -> Sequence[Any]:
        """Judge a batch and enter it into the ledger."""
        ledger = self._ledger
        assert ledger is not None
        marks: Marks = ()
        self._ending = None
        if items:
            if self._place is not None:
                self._place(items)
            if self._behind is not None:
                items[-1].cursor, items[-1].moves = self._behind, True
            if self._identifies:
                self._identify(items)
            if self._judges and (notable := self._look(items)):
                whole = len(items)
                items, marks = self._stop_at(items, notable, silent)
                silent = [move for move in silent if move[0] < len(items) or len(items) == whole]
        if not self._certain and self.protocol is not None and self.protocol.sequence == "contiguous":
            # The identity may have come with this very batch: then a hole in it can be asked for.
            ledger.refetch = self.resumable()
        items = ledger.receive(items, silent)
        if self._noting:
            self._note(ledger)
        if ledger.problem is not None:
            # What stands beyond it does not count.
            self._then, self._ending = self._on_problem, None
        if marks or self._unsettled or self._settled is not None:
            self._settle_by((*self._unsettled, *marks), items, ledger)
        if items:
            if not self._clocks.steady:
                self._on_progress(ledger)
            if self._keeps_events:
                self._saving.delivered(items)
            if self._steps and self.protocol is not None:
                self._step_starts += [item.offset for item in items if self.protocol.step(item) == "begin"]
                # No place further back can be committed.
                del self._step_starts[: -self.settings.limits.window]
        return items

    def _note(self, ledger: Ledger) -> None:
        """Keep what events changed in the kept texts, as long as a place before them may still be asked for."""
        self._noted += [(item.offset, before) for item, before in self._noting]
        self._noting = []
        oldest = ledger.committed.offset if self.settings.manual else ledger.place(0).offset
        del self._noted[: bisect_left(self._noted, oldest, key=itemgetter(0))]
        # Committed by hand, and late: of all that changed since, what the committed place needs, and the newest.
        del self._noted[1 : -self.settings.limits.window]

    def _settle_by(self, marks: Marks, items: Sequence[Any], ledger: Ledger) -> None:
        """
        Only an event that is delivered settles anything: not one beyond a hole, nor one that is held back (not yet); and one that
        comes again has done so before, and others may have followed it since.
        """
        protocol = self.protocol
        assert protocol is not None
        self._unsettled = [mark for mark in marks if ledger.holds(mark[0])]
        said = {id(item): settled for item, settled in marks}
        for item in items:
            mark = said.get(id(item))
            if self._settled is None and mark is None:
                continue
            # "Over" alone is weak: of several answers in one stream, another may go on.
            before = self._settled
            if mark is _CONFIRMED:
                mark = Settled(self._claimed) if before is None and self._claimed is not None else None
            doubted = self._disproved or self._settled not in (None, Outcome.ENDED)
            if doubted and (mark is None or mark.outcome is not None) and protocol.has_content(item):
                self._disproved, self._settled = True, None
                self._claimed = mark.outcome if mark is not None else None
            elif mark is not None and (self._settled is None or mark.outcome is not Outcome.ENDED):
                self._disproved, self._claimed = False, None
                self._settled, self._settled_at = mark.outcome, item.offset + 1
            if (before is None) is not (self._settled is None):
                self._set_clocks()

    def _identify(self, items: Sequence[Any]) -> None:
        protocol, state = self.protocol, self.state
        assert protocol is not None
        for item in items:
            if state.stream_id is not None:
                self._identifies = False
                return
            protocol.identify(state, item)
            state.stream_id = _sendable(state.stream_id)

    def _look(self, items: Sequence[Any]) -> Sequence[Any]:
        """The items that may end the stream, at a glance."""
        if self._alarm is None:
            return items
        names, heads = self._alarm
        return [item for item in items if item.event in names or item.data[:7] in heads]

    def _stop_at(
        self, items: Sequence[Any], notable: Sequence[Any], silent: Sequence[tuple[int, str]]
    ) -> tuple[Sequence[Any], Marks]:
        """Cut a batch where one of its events ends the stream, and plan what follows; and find the events that settle it."""
        protocol = self.protocol
        assert protocol is not None
        marks: list[tuple[Any, Settled]] = []
        for item in notable:
            if self._alarm is not None and protocol.reads_json(item) and not readable(item):
                self._then = partial(self._on_unreadable, item)
                return items[: _index(items, item)], marks
            if (error := protocol.error(item)) is not None:
                if self.state.resuming and (lost := protocol.refusal(item, self.state)) is not None:
                    self._then = partial(self._on_refusal, lost)
                    return items[: _index(items, item)], marks
                if self.settings.verbatim:
                    self._then = partial(self._on_end, Outcome.FAILED)
                    self._ending = Outcome.FAILED
                    return items[: _index(items, item) + 1], marks
                self._then = partial(self._on_end, error)
                return items[: _index(items, item)], marks
            if (gap := protocol.gap(item)) is not None:
                index = _index(items, item)
                behind = [(at - index - 1, own_id) for at, own_id in silent if at > index]
                self._then = partial(self._on_announced, gap, items[index + 1 :], behind)
                return items[:index], marks
            end = protocol.end(item)
            if isinstance(end, Unproven):
                if not self._is_settled(marks):
                    self._then = partial(self._on_unproven, end)
                    return items[: _index(items, item)], marks
                marks.append((item, _CONFIRMED))
                continue
            if end is not None and self._narrows:
                before = self._kept(protocol)
                end = protocol.end_in(self.state, item, end)
                if before != self._kept(protocol):
                    self._noting.append((item, before))
            if isinstance(end, Settled):
                marks.append((item, end))
            elif end is not None:
                self._then = partial(self._on_end, end)
                self._ending = end
                return items[: _index(items, item) + 1], marks
        return items, marks

    def _on_progress(self, ledger: Ledger) -> None:
        """The first events of a connection, or the first after a silence."""
        protocol = self.protocol
        assert protocol is not None
        progress = ledger.progress > 0
        if progress and not (ledger.only_resets and self._restated >= RESTATED):
            self._budget.progress()
            self._refreshed = False
        if not self._certain:
            # Whether it can be resumed shows with the first cursor; then the clocks will not change any more.
            self._certain = ledger.cursor is not None or ledger.plain or not protocol.promises.resumable
            self._set_clocks()
        self._clocks.event(settled=self._certain and progress)

    # --- what an event or a clock brings about, once the events before it were taken

    def _on_announced(self, gap: Gap, rest: Sequence[Any], silent: Sequence[tuple[int, str]], now: float) -> None:
        """The server says that history was lost: ask again once, then go on behind the hole or fail."""
        ledger = self._ledger
        assert ledger is not None
        if ledger.hole(gap) is False:
            self._on_problem(now)
        else:
            if items := self._enter(rest, silent):
                self._todo.append(act.Deliver(items))
            if self._then is None and self._onward is not None:
                self._todo.append(self._onward)
                self._onward = None

    def _on_problem(self, now: float) -> None:
        assert self._ledger is not None
        match self._ledger.problem:
            case HoleFound():
                # Also behind an event that settled the outcome: what is missing was promised.
                self._todo.append(act.Disconnect())
                self._go_on(now, "gap", None)
            case StartedOver():
                # It was asked, and did not answer the question: the observer knows that the cursor was ignored.
                self._todo.append(act.Disconnect())
                self._finish(self._with_settled(Outcome.ENDED), verified=False)
            case ResumableStreamError() as error:
                self._on_end(error, now)

    def _on_unreadable(self, item: Any, now: float) -> None:
        assert self._ledger is not None
        self._on_end(not_json(item, self._ledger.offset), now)

    def _on_framing_error(self, now: float) -> None:
        self._on_end(self._decoder.error, now)

    def _on_end(self, end: Outcome | ResumableStreamError, now: float) -> None:
        """The end of the stream, or what puts an end to it."""
        self._todo.append(act.Disconnect())
        if isinstance(end, Outcome):
            self._finish(self._with_settled(end))
        else:
            self._fail(end)

    def _is_settled(self, marks: Marks) -> bool:
        """Is the outcome known, or claimed, with what this batch has said so far?"""
        if marks := (*self._unsettled, *marks):
            return marks[-1][1].outcome is not None
        return self._settled is not None or self._claimed is not None

    def _on_unproven(self, found: Unproven, now: float) -> None:
        """The sender says that it is done, and nothing before vouches for that: a close that is a cut."""
        protocol, ledger = self.protocol, self._ledger
        assert protocol is not None and ledger is not None
        self._unproven = found
        if ledger.behind:
            self._cut(now, "closed inside the replay", None)
            return
        self._todo.append(act.Disconnect())
        self._sync_state()
        self._apply_close(protocol.on_unproven(self.state), now)

    def _on_refusal(self, lost: verdict.Lost, now: float) -> None:
        self._todo.append(act.Disconnect())
        self._lost(now, lost)

    def _with_settled(self, end: Outcome) -> Outcome:
        """A marker that says no more than "over" does not make whole what is known to have stopped early."""
        return self._settled if end is Outcome.COMPLETED and self._settled is not None else end

    def _on_clock(self, clock: Clock, error: BaseException | None, now: float) -> None:
        if clock == "deadline" and self._settled is None:
            self._todo.append(act.Disconnect())
            self._lose_connection(now, clock, None)
            self._fail(self._deadline_error(), error)
            return
        protocol, ledger = self.protocol, self._ledger
        assert protocol is not None and ledger is not None
        if ledger.progress == 0 and self._settled is None and self.resumable():
            request = protocol.status_request(self.state)
            if request is not None:
                self._todo.append(act.Disconnect())
                self._lose_connection(now, clock, error)
                self._fetch("alive", request, now)
                return
        # The state that came once more is a status check: the run is quiet, and this was no failed attempt.
        self._cut(now, clock, error, neutral=ledger.fresh > 0 and ledger.progress == 0)

    def _on_clean_close(self, now: float) -> None:
        protocol = self.protocol
        assert protocol is not None
        if self._settled is not None and not (self._inside and self._wants_more(now)):
            self._on_end(self._settled, now)
        elif self._inside:
            self._cut(now, self._unusable or "closed inside an event", None)
        elif self._ledger is not None and self._ledger.behind:
            if self._ledger.nearer:
                self._todo.append(act.Disconnect())
                self._ask_onward(now)
            else:
                self._cut(now, "closed inside the replay", None)
        else:
            self._todo.append(act.Disconnect())
            self._sync_state()
            self._apply_close(protocol.on_clean_close(self.state), now)

    # --- the end of a connection (which is disconnected already, or is planned to be)

    def _apply_close(self, found: verdict.Verdict, now: float) -> None:
        """What a close means, as the protocol sees it, or as the provider said when asked."""
        match found:
            case verdict.Finished(outcome, more, verified):
                self._more = more
                if outcome is Outcome.ENDED and not verified:
                    self._finish_unverified()
                else:
                    self._finish(outcome)
            case verdict.Resume(routine=True, waits=waits):
                self._waits = waits
                self._ask_onward(now)
            case verdict.Ask():
                self._ask(now)
            case verdict.Verify(request):
                self._lose_connection(now, "closed", None)
                self._fetch("verify", request, now)
            case verdict.Interrupted(reason):
                self._no_way_back(now, reason, None)
            case verdict.Lost():
                self._lost(now, found)
            case verdict.Reject(message):
                self._fail(StreamInterrupted(message or "the provider will not continue the stream", reason="rejected"))
            case _:
                self._rotate(now)

    def _rotate(self, now: float) -> None:
        """A close that is not an end. A feed that was held open with nothing to say has neither moved nor failed."""
        ledger, protocol = self._ledger, self.protocol
        assert ledger is not None and protocol is not None
        held_open = protocol.endless and ledger.fresh == 0 and now - self._head_at > QUICK
        if ledger.fresh == 0 and not protocol.endless and self.state.resuming and self._purpose != "verify":
            # An answer with nothing new. Whoever can say how the run stands is asked before it counts as a failure.
            self._sync_state()
            if (request := protocol.status_request(self.state)) is not None:
                self._lose_connection(now, "closed before the end", None)
                self._fetch("verify", request, now)
                return
        self._go_on(now, "closed before the end", None, neutral=held_open)

    def _ask_onward(self, now: float) -> None:
        """
        The next answer, as a matter of routine.

        One that brought nothing new was a failed attempt, unless the place has moved, or it was to wait and did.
        """
        ledger = self._ledger
        assert ledger is not None
        moved = ledger.cursor != self._cursor_at_open
        self._empty_pages = self._empty_pages + 1 if moved and ledger.fresh == 0 else 0
        if self._empty_pages > BACKFILL_PAGES:
            # A server whose empty pages never end.
            moved = False
        if moved:
            # Empty pages lead on too: there are fewer of them left.
            self._budget.progress()
        waited = self._waits and now - self._asked_at > QUICK
        self._go_on(now, "answered with nothing new", None, routine=ledger.fresh > 0 or ledger.nearer or moved or waited)

    def _ask(self, now: float) -> None:
        """Rule 7c and e: nothing tells an end from a cut."""
        ledger = self._ledger
        assert ledger is not None
        quick = now - self._head_at <= QUICK
        if ledger.offset == 0 and ledger.cursor is None:
            if self._asked_empty:
                self._finish(Outcome.ENDED)
            else:
                # A first answer without an event is a cut; a GET may be asked again, once.
                self._asked_empty = True
                self._go_on(now, "closed before the first event", None, neutral=True)
        elif not self.resumable():
            self._finish_unverified()
        elif self._asking and quick and ledger.fresh == 0:
            self._finish(Outcome.ENDED)
        elif self.state.resuming and not quick and ledger.fresh == 0:
            # Feeds rotate: held open with nothing to say is neither progress nor failure.
            self._go_on(now, "closed", None, neutral=True, asking=True)
        elif self.state.resuming and ledger.fresh and not self._believe(quick, ledger):
            text = (
                "the server answers a few events at a time, so its end cannot be told from a cut: "
                "name the end (end=…), or declare a feed (end='never')"
            )
            self._fail(StreamInterrupted(text, reason="an end cannot be told from a cut"))
        else:
            self._go_on(now, "closed", None, asking=True)

    def _believe(self, quick: bool, ledger: Ledger) -> bool:
        """An answer with new events closed cleanly. Is it a piece of the stream?"""
        self._quick_answers = self._quick_answers + 1 if quick and not ledger.numbered else 0
        return self._quick_answers <= BELIEVED

    def _cut(self, now: float, reason: str, error: BaseException | None, *, neutral: bool = False, inside: bool = False) -> None:
        if self._reading:
            self._todo.append(act.Disconnect())
        if self._settled is not None and not self._wants_more(now):
            self._finish(self._settled)
        else:
            self._go_on(now, reason, error, neutral=neutral, inside=inside)

    def _wants_more(self, now: float) -> bool:
        """The outcome is settled; what may follow that (usage, `[DONE]`) can be asked for, and has to be."""
        wants = self.protocol is not None and self.protocol.resumes_settled
        return wants and self.resumable() and not self._clocks.expired(now)

    def _go_on(
        self,
        now: float,
        reason: str,
        error: BaseException | None,
        *,
        neutral: bool = False,
        inside: bool = False,
        asking: bool = False,
        routine: bool = False,
    ) -> None:
        """
        Leave this connection and plan the next.

        Args:
            neutral: The connection was no failed attempt, though it brought nothing.
            inside: It was the caller who ended it: the next one follows at once.
            asking: The next one is a question (rule 7c).
            routine: The next one is a matter of routine; nothing was lost.
        """
        ledger = self._ledger
        assert ledger is not None
        self._reading = False
        if not routine:
            self._lose_connection(now, reason, error)
        if self._clocks.expired(now):
            self._fail(self._deadline_error(), error)
            return
        try:
            planned = self._next_request()
        except ResumableStreamError as mismatch:
            self._fail(mismatch, error)
            return
        if planned is None:
            self._no_way_back(now, reason, error)
            return
        request, resuming = planned
        connect = partial(
            self._connect,
            request,
            resuming=resuming,
            asking=asking or (self._asking and ledger.fresh == 0 and (error is None or inside)),
        )
        if inside:
            self._wait(self._budget.interrupted(free=ledger.progress > 0), now)
            connect()
        elif routine:
            self._routine = True
            wait = self._budget.at_once(free=ledger.fresh > 0)
            if wait > 0 or self.settings.saving:
                # The answer may be long in coming; before a sleep, what was taken is saved.
                self._todo.append(act.Sleep(wait))
            connect()
        elif asking and not neutral:
            self._then_follows("ask")
            self._wait(self._budget.at_once(free=ledger.fresh > 0), now)
            connect()
        elif (ledger.progress and not self._only_restated(now)) or neutral:
            self._wait(self._budget.prompt(free=ledger.progress > 0), now)
            connect()
        else:
            self._try_again(now, reason, error, connect)

    def _only_restated(self, now: float) -> bool:
        """A server that states how things stand and closes at once, whatever it says, is not asked for ever."""
        assert self._ledger is not None
        quick = self._ledger.only_resets and now - self._head_at <= QUICK
        self._restated = self._restated + 1 if quick else 0
        return self._restated > RESTATED

    def _lose_connection(self, now: float, reason: str, error: BaseException | None) -> None:
        self._reading = self._routine = False
        if self._offline_since is None:
            self._offline_since = now
        retry = getattr(self._decoder, "retry", None)
        if retry is not None:
            self._budget.server_retry(retry)
        self._last_error = error
        ledger = self._ledger
        self._parting = note.Disconnected(
            reason,
            type(error).__name__ if error is not None else None,
            offset=ledger.offset if ledger is not None else 0,
            cursor=ledger.cursor if ledger is not None else None,
            seconds=self._clocks.limit(reason),
            then="give up",
            checked=self._checked,
        )
        self._checked = False
        self.notices.append(self._parting)

    def _then_follows(self, then: note.Then) -> None:
        """Now it is known what comes after the connection that was lost: its notice says so, unless that went out already."""
        parting, self._parting = self._parting, None
        for index, notice in enumerate(self.notices):
            if notice is parting:
                self.notices[index] = replace(parting, then=then)

    def _try_again(
        self, now: float, reason: str, error: BaseException | None, again: Callable[[], None], *, failed: str = ""
    ) -> None:
        """
        A failed attempt: wait as the policy says, or give up.

        Args:
            failed: What failed, in words, if that was not a connection of the stream: that has its notice already.
        """
        if self._settled is not None:
            self._failed_behind += 1
            if self._failed_behind >= BEHIND or not self._wants_more(now):
                self._finish(self._settled)
                return
        wait = self._budget.failed(now, error)
        if wait is None and self._settled is not None:
            self._finish(self._settled)
            return
        if wait is None:
            count = self._budget.attempts
            seen = f"{type(error).__name__}: {error}" if error is not None else reason
            text = f"gave up after {count} attempt{'s' * (count != 1)} without a new event; the last one: {seen}"
            exhausted = RetriesExhausted(text, attempts=count, last_error=error if error is not None else reason)
            exhausted.__cause__ = error
            # Where nobody can be reached, or the question was what failed, there is nobody to ask.
            if failed or reason == "cannot connect" or not self._ask_before_giving_up(exhausted, now):
                self._fail(exhausted)
            return
        self._wait(wait, now, attempt=self._budget.next_attempt, reason=failed)
        again()

    def _ask_before_giving_up(self, exhausted: RetriesExhausted, now: float) -> bool:
        """
        Ask the protocol's server how the run stands before the stream is given up. False: there is nobody to ask.

        The run may have ended although its stream can no longer be read. A protocol that believes a status only when it is
        reported twice is asked twice.
        """
        protocol = self.protocol
        if protocol is None or not self.state.resuming or self._last_words >= 2:
            return False
        self._sync_state()
        if not self._last_words:
            self._extra_before = dict(self.state.extra)
        request = protocol.status_request(self.state)
        if request is None and isinstance(found := protocol.on_clean_close(self.state), verdict.Verify):
            request = found.request
        if request is None:
            return False
        self._last_words += 1
        self._exhausted = exhausted
        self._fetch("last", request, now)
        return True

    def _on_last_words(self, answer: Answer, now: float) -> None:
        """The answer to the question before giving up. Only an end, or a result that can be read instead, changes anything."""
        protocol, exhausted = self.protocol, self._exhausted
        assert protocol is not None and exhausted is not None
        if answer.status not in self.settings.statuses:
            before = dict(self.state.extra)
            match protocol.on_verified(answer, self.state):
                case verdict.Finished() | verdict.Lost(stored=True) as found:
                    self._apply_close(found, now)
                    return
                case verdict.Resume() if self.state.extra != before and self._ask_before_giving_up(exhausted, now):
                    return
        self._give_up(exhausted)

    def _give_up(self, exhausted: RetriesExhausted) -> None:
        # Another process may ask in peace: what was noted in haste does not travel in the checkpoint.
        self.state.extra = self._extra_before
        self._fail(exhausted)

    def _wait(self, seconds: float, now: float, attempt: int = 0, *, reason: str = "") -> None:
        left = self._clocks.left(now)
        if left is not None:
            seconds = min(seconds, max(left, 0.0))
        self._then_follows("reconnect")
        self.notices.append(note.Retrying(attempt, seconds, attempts=self.settings.attempts, reason=reason))
        if seconds > 0:
            self._todo.append(act.Sleep(seconds))

    # --- no way back, and what may stand in for it (rule 8)

    def _no_way_back(self, now: float, reason: str, error: BaseException | None) -> None:
        """A cut on a stream that cannot be resumed."""
        events = self._ledger.offset if self._ledger is not None else 0
        seen = f"{reason}: {type(error).__name__}" if error is not None else reason
        if self._refused is not None and self.settings.on_lost == "raise":
            self._fail(self._refused, error)
            return
        unproven = self._unproven
        if unproven is not None:
            seen = unproven.text
        elif self._disproved:
            seen += "; more of the answer came after the event that said how it ends, so that event proves nothing"
        text = f"the stream was interrupted after {events} event{'s' * (events != 1)} ({seen}) and cannot be resumed"
        if why := self.why_not():
            text += f": {why}"
        if unproven is not None and unproven.advice:
            text += f". {unproven.advice}"
        if reason == INSIDE:
            text += f". {TAKEN_ALONG}"
        self._replace(now, text, StreamInterrupted(text + self.settings.way_out, reason=reason), error)

    def _lost(self, now: float, lost: verdict.Lost) -> None:
        """The server said that the rest cannot be had."""
        kind = CursorExpired if lost.expired else NotResumable
        self._replace(now, lost.message, kind(lost.message + self.settings.way_out), None, stored=lost.stored)

    def _replace(
        self, now: float, text: str, failure: ResumableStreamError, error: BaseException | None, *, stored: bool = False
    ) -> None:
        self._reading = False
        if self._settled is not None:
            # In another process: what was still to come would have been a word about the end.
            self._finish(self._settled)
            return
        self.notices.append(note.Lost(text))
        choice, protocol = self.settings.on_lost, self.protocol
        # A server that forgot what it had finished would be asked for all of it again and again.
        elsewhere = self.settings.started_elsewhere and not self.state.safe
        if choice == "restart" and not stored and not self._asking and not elsewhere:
            self._then_follows("restart")
            self._restart(now, error)
            return
        if (choice == "snapshot" or stored) and protocol is not None:
            self._sync_state()
            if (request := protocol.snapshot_request(self.state)) is not None:
                self._fetch("snapshot", request, now)
                return
        self._fail(failure, error)

    def _restart(self, now: float, error: BaseException | None) -> None:
        state, budget = self.state, self._budget
        wait = budget.restart(error)
        if wait is None:
            text = f"gave up after {budget.restarts} restarts"
            self._fail(RetriesExhausted(text, attempts=budget.restarts, last_error=error or text), error)
            return
        if self._ledger is not None:
            self._start_over(self._ledger, anew=True)
        state.stream_id = state.location = None
        # The one before belongs to what is lost.
        self._choose_key()
        self._accepted = None
        self._quick_answers = 0
        self._asked_empty = False
        self._sync_state()
        self._wait(wait, now)
        self._connect(self._first_request(), resuming=False)

    def _start_over(self, ledger: Ledger, *, anew: bool = False) -> None:
        self._settled, self._unsettled = None, ()
        self._disproved, self._claimed = False, None
        self._identifies = self._learns
        self.state.extra.clear()
        self._noted.clear()
        self._step_starts = [0] if self._steps else []
        self._events += ledger.fresh
        self.notices.append(note.Restarted(0))
        ledger.restart(offset=0, anew=anew)

    def _open(self, ledger: Ledger, *, resuming: bool, asking: bool, stored: bool = False) -> None:
        self._events += ledger.fresh
        self._cursor_at_open = ledger.cursor
        reaches_back = resuming and self.protocol is not None and self.protocol.reaches_back(self.state)
        joins = resuming or self.state.safe
        ledger.open_connection(resuming=resuming, asking=asking, reaches_back=reaches_back, stored=stored, joins=joins)

    # --- side requests

    def _fetch(self, purpose: Purpose, request: Request, now: float) -> None:
        if not request.sendable:
            self._no_way_back(now, "an id that cannot be sent", None)
            return
        try:
            same_origin(request.url, base=self.state.url, origin=self._origin)
        except ResumableStreamError as error:
            self._fail(error)
            return
        self._purpose = purpose
        self._then_follows("fetch" if purpose == "snapshot" else "check")
        limit = self.settings.limits.event_bytes if purpose in ("snapshot", "backfill") else ERROR_BODY * 16
        self._todo.append(act.Fetch(request, self._clocks.side(now), limit))

    def receive_answer(self, answer: Answer, now: float) -> None:
        """The whole answer to a `Fetch`."""
        if self._purpose == "status":
            head = self.state.head
            assert head is not None
            self._judge_head(head, answer.body, now)
            return
        protocol = self.protocol
        assert protocol is not None
        if self._purpose == "backfill":
            self._on_backfill(protocol.on_backfill(answer, self.state), answer, now)
        elif self._purpose == "last":
            self._on_last_words(answer, now)
        elif answer.status in self.settings.statuses:
            self._fetch_again(now, f"status {answer.status}", None)
        elif self._purpose == "snapshot":
            match protocol.on_snapshot(answer, self.state) if answer.status < 400 else None:
                case verdict.Retry(message):
                    self._fetch_again(now, message or "the result is not ready", None)
                case snapshot:
                    self._on_snapshot(snapshot, answer)
        else:
            match protocol.on_verified(answer, self.state):
                case verdict.Resume():
                    self._checked = True
                    # Asked because of a silence: it runs, so the silent connection was no failed attempt.
                    self._go_on(now, "closed before the end", None, neutral=self._purpose == "alive")
                case verdict.Retry(message):
                    self._fetch_again(now, message or f"status {answer.status}", None)
                case found:
                    self._apply_close(found, now)

    def fetch_failed(self, error: BaseException, now: float, *, inside: bool = False) -> None:
        """
        A `Fetch` brought no whole answer.

        Args:
            inside: As in `read_failed()`.
        """
        if self._clocks.expired(now):
            self._todo.append(act.Disconnect())
            self._fail(self._deadline_error(), error)
        elif self._purpose == "status" and inside and self._may_repeat():
            # The network is sound, so the explanation can be had: what it says may change the verdict.
            self._todo.append(act.Disconnect())
            self._lose_connection(now, INSIDE, error)
            self._wait(self._budget.interrupted(free=False), now)
            self._connect_again()
        elif self._purpose == "status":
            # The status is known; only the explanation is missing.
            head = self.state.head
            assert head is not None
            self._judge_head(head, b"", now)
        elif self._purpose == "last" and not inside and self._exhausted is not None:
            self._give_up(self._exhausted)
        elif self._purpose == "backfill":
            self._todo.append(act.Disconnect())
            self._go_on(now, INSIDE if inside else "history not read", error, inside=inside)
        else:
            self._fetch_again(now, INSIDE if inside else "status check failed", error, inside=inside)

    def _fetch_again(self, now: float, reason: str, error: BaseException | None, *, inside: bool = False) -> None:
        purpose, protocol = self._purpose, self.protocol
        assert protocol is not None

        def again() -> None:
            self._todo.append(plan)

        def plan(now: float) -> None:
            self._sync_state()
            request = protocol.snapshot_request(self.state) if purpose == "snapshot" else protocol.status_request(self.state)
            if request is None and isinstance(found := protocol.on_clean_close(self.state), verdict.Verify):
                request = found.request
            if request is None:
                self._no_way_back(now, reason, error)
            else:
                self._fetch(purpose, request, now)

        if inside:
            again()
            return
        what = "the request for the stored result" if purpose == "snapshot" else "the status check"
        seen = f"failed: {type(error).__name__ if error is not None else reason}"
        self._try_again(now, reason, error, again, failed=f"{what} {seen}")

    def _on_backfill(self, found: Backfill | verdict.Verdict, answer: Answer, now: float) -> None:
        """What happened while nobody was connected comes in front of what is live."""
        if not isinstance(found, Backfill):
            self._todo.append(act.Disconnect())
            self._apply_close(found, now)
            return
        if found.events and (items := self._enter(found.events)):
            self._todo.append(act.Deliver(items))
        if self._then is None:
            self._after_page(found, now)
        else:
            # What the page brought about comes first. If that is a hole that was granted, the history goes on after it.
            self._onward = partial(self._after_page, found)

    def _after_page(self, found: Backfill, now: float) -> None:
        """What follows a page of history: the next one, or what is live."""
        if found.more is None:
            self._todo.append(self._read_on)
        elif self._pages < BACKFILL_PAGES:
            self._pages += 1
            self._fetch("backfill", found.more, now)
        else:
            self._todo.append(act.Disconnect())
            self._go_on(now, f"a history of more than {BACKFILL_PAGES:,} pages", None)

    def _read_on(self, now: float) -> None:
        self._reading = True

    def _on_snapshot(self, snapshot: Snapshot | None, answer: Answer) -> None:
        """The stored result stands in for the lost rest."""
        ledger, protocol = self._ledger, self.protocol
        assert ledger is not None and protocol is not None
        if snapshot is None:
            self._fail(CursorExpired(f"the stored result cannot be had either: the server answered {answer.status}"))
            return
        if snapshot.reset:
            self._start_over(ledger)
        self._open(ledger, resuming=False, asking=False, stored=True)
        # There is nobody to ask again.
        ledger.refetch = False
        if snapshot.events:
            items: Sequence[Any] = snapshot.events
            if self._place is not None:
                self._place(items)
            if items := ledger.receive(items):
                self._saving.delivered(items)
                self._on_progress(ledger)
                self._todo.append(act.Deliver(items))
        outcome = snapshot.outcome
        if ledger.problem is not None:
            self._todo.append(self._on_problem)
        elif outcome is not None:
            self._todo.append(lambda now: self._finish(outcome))
        else:
            self._todo.append(self._after_reset if snapshot.reset else self._after_remainder)

    def _after_remainder(self, now: float) -> None:
        """The run goes on. A snapshot that brought nothing new was a failed attempt."""
        self._go_on(now, "snapshot", None)

    def _after_reset(self, now: float) -> None:
        """The run goes on, and what was delivered is void: as after a restart."""
        wait = self._budget.restart(None)
        planned = self._next_request()
        if wait is None or planned is None:
            text = f"gave up after {self._budget.restarts} resets"
            self._fail(RetriesExhausted(text, attempts=self._budget.restarts, last_error=text))
        else:
            self._wait(wait, now)
            self._connect(planned[0], resuming=planned[1])

    def cancel_request(self) -> Request | None:
        """How to stop the generation, or `None` where the protocol has no such call."""
        if self.protocol is None:
            return None
        self._sync_state()
        request = self.protocol.cancel_request(self.state)
        if request is None or not request.sendable:
            return None
        same_origin(request.url, base=self.state.url, origin=self._origin)
        return request

    # --- ends

    def _finish_unverified(self) -> None:
        """A clean close that nothing vouches for. Where there are ids, they might have been asked about."""
        protocol, ledger = self.protocol, self._ledger
        # Of bytes, the cursor is only their number.
        if ledger is not None and ledger.cursor is not None and protocol is not None and protocol.framing != "raw":
            count = ledger.offset
            advice = [self.why_not()]
            if not protocol.promises.has_end:
                advice.append("if the stream marks its end, name it (end=…)")
            why = "; ".join(filter(None, advice)) or "the protocol has no way to do so"
            text = (
                f"the stream closed cleanly after {count} event{'s' * (count != 1)}, and whether that was its end could not be "
                f"asked: {why}"
            )
            self.notices.append(note.EndUnverified(text))
        self._finish(Outcome.ENDED, verified=False)

    def why_not(self) -> str:
        """Why the rest cannot be asked for, and what the caller can pass; `""` where there is nothing to say."""
        if self._refused is not None:
            return str(self._refused)
        protocol, ledger = self.protocol, self._ledger
        if protocol is None or ledger is None:
            return ""
        placeless = ledger.offset and ledger.cursor is None and not (protocol.replays or protocol.counted or protocol.endless)
        if placeless and protocol.promises.resumable:
            return "no event had an id, or anything else to resume from"
        return protocol.why_not(self.state)

    def _finish(self, outcome: Outcome, *, verified: bool = True) -> None:
        self._hand_over_held()
        self._reading = False
        self.outcome = outcome
        self.verified = verified
        self._then_follows("end")
        offset = self._ledger.offset if self._ledger is not None else 0
        self.notices.append(note.Finished(outcome, offset=offset, after_loss=self._offline_since is not None or self._asking))
        self._todo.append(act.Finish(outcome))

    def _fail(self, error: ResumableStreamError, cause: BaseException | None = None) -> None:
        if self._reading or self._ledger is None or not self._ledger.refetch:
            self._hand_over_held()
        # Otherwise the connection was lost, and what was held with it is still to come from the place that the error carries.
        self._reading = False
        if cause is not None and error.__cause__ is None:
            error.__cause__ = cause
        self._error = error

    def _hand_over_held(self) -> None:
        """Nothing more will come, so what was held as a possible repeat is none."""
        if self._ledger is not None and (items := self._ledger.release()):
            self._saving.delivered(items)
            self._todo.append(act.Deliver(items))

    def _deadline_error(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"the stream did not end within its deadline of {self.settings.timeouts.deadline} seconds")


def _sendable(stream_id: str | None) -> str | None:
    """An id with half of a surrogate pair can be written into no request: as good as none."""
    return stream_id if stream_id is None or encodable(stream_id) else None


def _index(items: Sequence[Any], item: Any) -> int:
    """Position by identity: events compare by content."""
    return next(index for index, other in enumerate(items) if other is item)


def _is_json(text: str) -> bool:
    """A whole JSON object or array. Of a number or a word, a piece may be one too."""
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False
