"""
The state machine of one resumable stream: inputs in, actions out.

    next(now) ──► Connect ──► receive_head ──► Read ──► receive_data ──► events
       ▲             │             │             │
       │             └─ connect_failed           └─ receive_eof · read_failed · read_timed_out
       └──────────── Disconnect · Save · Sleep · Fetch · Finish ◄───── what follows from it

A driver asks `next()` what to do, does it, and reports the result. `receive_data()` is the only hot call: it returns the events
that a chunk completed, and while nothing else is `due` the driver keeps reading without asking.

This file holds the plan: the phase, the waiting turn, and the steps to come. The decisions are made in parts that own their
state and return values:

    Requests     which request may be sent                      rules 8-10
    Reading      items → events, and at most one `Turn`         rules 2, 5-7, over the ledger
    Ending       what a close means → a `Next`                  rule 7
    Side         status, stored result, history                 rules 7, 8
    Checkpoints  the position, and when it is saved             rule 1
    Budget, Clocks                                              rules 3, 4
    Account      counters and notices

Rules of this file:

- Time, waits and randomness are arguments. An input never raises for what the *network* did: it plans what follows,
  and `next()` raises if the plan is to give up. By then every earlier event has been delivered.
- What an event causes (end, error, gap) is a `Turn`, and waits in `_turn` until the events before it have been taken.
- The phase decides which inputs are legal: see `phases.py`.

Reading on while events are still in hand would break this.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, assert_never

from .. import _notices as note
from .._checkpoint import Checkpoint
from .._contract import Answer, Backfill, Detect, Head, Request, ResumeProtocol, Snapshot, StreamState, not_json
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
from . import actions as act
from . import plan
from .account import Account
from .budget import Budget, retry_after
from .checkpoints import LOCATION_KEY, Checkpoints
from .clocks import Clock, Clocks
from .connection import Connection, decoder_for
from .ending import Ending
from .heads import STREAMS, default_verdict, has_right_type, rejection, unexpected_type
from .ledger import HoleFound, Ledger, StartedOver
from .origins import REDIRECTS
from .phases import TRANSITIONS, IllegalInput, Phase
from .plan import Leave
from .reading import Reading
from .requests import Requests, sendable
from .settings import Settings, Stats
from .side import PAGES, Exhausted, Side
from .skimming import Skimmer

__all__ = ["Machine"]

# Enough for a provider's error document.
ERROR_BODY: Final = 64 * 1024
# The reason for a connection that was not ended by the network.
INSIDE: Final = "interrupted from inside"
TAKEN_ALONG: Final = (
    "Something in this process interrupted the read (a cancellation or time-out around it, a signal), and that closes the "
    "connection. To limit how long a read may take, pass timeouts=; to poll, read in a task or thread of its own and wait for it"
)


class Machine:
    """
    One stream, from its first request to its end.

    Args:
        state: The first request; the machine owns it from now on.
        protocol: How to resume; `None` lets `detect` choose by the first response.
        settings: What the caller chose.
        checkpoint: Where to continue.

    Attributes:
        protocol: As given or detected.
        requests: Which request may be sent, and why another may not.
        notices: For an observer; the driver removes those it has shown.
        calm: The latest read brought events, and the next may begin at once with the same time limit.
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
        self.calm = False
        self._detect = detect
        # The plan: steps in order, then `_error`. The turn comes first, once the events in hand have been taken.
        self._phase = Phase.BETWEEN
        self._feed: Callable[[bytes], Sequence[Any]] | None = None  # while a body is read
        self._turn: plan.Turn | None = None
        self._todo: deque[act.Action | plan.Step] = deque()
        self._error: ResumableStreamError | None = None
        self._page: plan.TurnPage | None = None  # how the history continues after a gap in it
        self._begun = False
        # The parts that decide.
        self._account = Account()
        self._clocks = Clocks(settings.timeouts, settings.longest_read)
        self._budget = Budget(settings)
        self.requests = Requests(state, settings, known=checkpoint is not None)
        self._ending = Ending(settings, self.requests, self._clocks)
        self._checkpoints = Checkpoints(state, settings, self._ending, checkpoint)
        self._side = Side(self.requests)
        # Set once the protocol is known.
        self._ledger: Ledger | None = None
        self._reading: Reading | None = None
        self.notices = self._account.notices
        if protocol is not None:
            self._adopt(protocol)
            if checkpoint is None:
                self.requests.choose_key()

    def _adopt(self, protocol: ResumeProtocol) -> None:
        """The protocol is now known, and with it the meaning of a position."""
        settings = self.settings
        self.protocol = protocol
        self._ledger = ledger = Ledger(protocol, window=settings.limits.window, on_gap=settings.on_gap, notices=self.notices)
        for part in (self.requests, self._ending, self._checkpoints):
            part.adopt(protocol, ledger)
        self._side.adopt(protocol)
        self._reading = Reading(
            protocol, ledger, settings=settings, requests=self.requests, ending=self._ending, checkpoints=self._checkpoints
        )
        if (checkpoint := self._checkpoints.restored) is not None:
            ledger.restore(checkpoint)
            self._clocks.waiting_for_first = checkpoint.offset == 0
            state, extra = self.state, checkpoint.extra
            state.stream_id = sendable(checkpoint.stream_id)
            state.extra = {name: value for name, value in extra.items() if name in protocol.keeps}
            self.requests.restored(extra.get(LOCATION_KEY))
            self.requests.sync()
            self._checkpoints.restore(checkpoint)
            self._reading.choose_road()

    # --- what the driver asks

    def next(self, now: float) -> act.Action:
        """
        What to do now. By calling this, the caller confirms that it is done with every event it was given.

        Raises:
            ResumableStreamError: The stream is over without an honest end.
        """
        self._expect("next")
        if not self._begun:
            self._begun = True
            self._clocks.open(now)
            self._checkpoints.saving.open(now)
            self._begin(now)
        while True:
            if self._turn is not None:
                turn, self._turn = self._turn, None
                self._take_turn(turn, now)
                continue
            if not self._todo:
                if self._phase is Phase.READING and self._error is None:
                    return act.Read()
                self._move(Phase.OVER)
                if self._error is not None:
                    raise self._error
                if self.outcome is None:
                    # The previous input raised an exception from the protocol, or from the caller's `resume=`.
                    raise NotResumable("the stream stopped at an exception of your code; continue from its checkpoint")
                return act.Finish(self.outcome)
            match self._todo.popleft():
                case act.Connect() as action:
                    self._move(Phase.CONNECTING)
                    return action
                case act.Fetch(request) as action:
                    self._move(Phase.JUDGING if request is None else Phase.ASKING)
                    return action
                case act.Finish() as action:
                    self._move(Phase.OVER)
                    return action
                case act.Sleep(seconds) as action:
                    self._budget.slept(seconds)
                    return action
                case act.Deliver() | act.Save() | act.Disconnect() | act.Read() as action:
                    return action
                case step:
                    self._take_step(step, now)

    def put_back(self, action: act.Action) -> None:
        """The action was not carried out: an exception unrelated to the network was raised first."""
        self._expect("put_back")
        if isinstance(action, act.Sleep):
            self._budget.slept(-action.seconds)
        if not isinstance(action, act.Read):
            self._todo.appendleft(action)

    def woken(self, ends: float, now: float) -> None:
        """
        A `Sleep` was interrupted from inside. The rest of it comes before anything else.

        Args:
            ends: When the sleep would have ended. Time until the caller comes back counts.
        """
        self._expect("woken")
        self._budget.slept(now - ends)
        self._todo.appendleft(plan.SleepUntil(ends))

    @property
    def phase(self) -> Phase:
        """The phase of the stream, which decides the legal inputs."""
        return self._phase

    @property
    def planned(self) -> tuple[plan.Turn | plan.Step | act.Action, ...]:
        """What comes next, in order, as far as known. An error that ends the stream comes after all of it."""
        return (*(() if self._turn is None else (self._turn,)), *self._todo)

    @property
    def due(self) -> bool:
        """Whether something other than reading on is due: ask `next()`."""
        return self._turn is not None or self._phase is not Phase.READING

    @property
    def outcome(self) -> Outcome | None:
        """How the stream ended; `None` while it runs."""
        return self._ending.outcome

    @property
    def verified(self) -> bool:
        """Whether the protocol, the server when asked, or the caller's `end=` vouches for `outcome`."""
        return self._ending.verified

    @property
    def accept(self) -> str:
        """`Accept` header, unless the caller sets one."""
        if self.protocol is not None:
            return self.protocol.accept
        return "text/event-stream, application/x-ndjson;q=0.9, */*;q=0.5"

    @property
    def stats(self) -> Stats:
        """What has happened so far."""
        return self._account.stats(self._ledger, self._reading.bytes if self._reading is not None else 0)

    @property
    def latest(self) -> Sequence[Any]:
        """The latest batch, for a driver that was interrupted before handing it out."""
        return self._ledger.latest if self._ledger is not None else ()

    def count_replayed(self, events: int) -> None:
        """Count events that came from the store."""
        self._account.count_events(events)

    def detect_with(self, detect: Detect) -> None:
        """Use another function to choose the protocol by the first response."""
        self._detect = detect

    # --- the place

    def checkpoint(self, taken: int, batch: Sequence[Any] | None = None) -> Checkpoint:
        """The position after `taken` items of `batch` (`None`: the latest), or the committed one under manual commit."""
        return self._checkpoints.make(taken, batch, self.outcome or self._ending.by(self._turn))

    def step_at(self, offset: int) -> int | None:
        """Offset at which the step of an event began; `None` if the protocol has no steps, or the start is not known."""
        return self._checkpoints.step_at(offset)

    def conclude(self, taken: int, batch: Sequence[Any]) -> bool:
        """The caller leaves without an exception. True: it has taken the event that ends the stream, which sets the outcome."""
        ledger = self._ledger
        if ledger is None or self.outcome is not None or ledger.place(taken, batch).offset != ledger.offset:
            return False
        self._ending.outcome = self._ending.on_leaving(self._turn, batch)
        return self.outcome is not None

    def commit(self, item: Any, taken: int, batch: Sequence[Any] | None = None) -> None:
        """Under manual commit: move the committed position to after `item`, or after what is taken."""
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
        The save that is due, if any. Called with `force` on leaving, with `blocks` before a read, and with neither at an event.

        Args:
            taken: Items of `batch` (`None`: the latest) that the caller is done with.
            blocks: Returns whether the next read will have to wait.
        """
        outcome = self.outcome or self._ending.by(self._turn)
        return self._checkpoints.save(now, taken, batch, outcome, force=force, blocks=blocks)

    @property
    def save_at(self) -> float:
        """The moment before which `save()` finds nothing due, except with `force`."""
        return self._checkpoints.saving.earliest

    def saved(self, now: float) -> None:
        """The latest `Save` was written."""
        self._checkpoints.saving.done(now)

    # --- the plan

    def _move(self, phase: Phase) -> None:
        self._phase = phase
        self._feed = None
        if phase is Phase.READING and self._reading is not None:
            self._feed = self._reading.connection.decoder.feed

    def _expect(self, given: str) -> None:
        """Check that an input is legal now. It ends what was under way, except for a body, which is read on."""
        if given not in TRANSITIONS[self._phase]:
            raise IllegalInput(self._phase, given)
        if self._phase is not Phase.READING:
            self._move(Phase.BETWEEN)

    def _take_turn(self, turn: plan.Turn, now: float) -> None:
        match turn:
            case plan.Ended(outcome):
                self._todo.append(act.Disconnect())
                self._finish(self._ending.with_settled(outcome))
            case plan.Failed(error):
                self._break_off(error)
            case plan.Unreadable(item):
                assert self._ledger is not None
                self._break_off(not_json(item, self._ledger.offset))
            case plan.Broken(error):
                self._break_off(error)
            case plan.Unproven(found):
                self._on_unproven(found, now)
            case plan.Refused(lost):
                self._todo.append(act.Disconnect())
                self._lost(now, lost)
            case plan.Announced(gap, rest, silent):
                self._on_announced(gap, rest, silent, now)
            case plan.RanOut(clock):
                self._on_clock(clock, None, now)
            case plan.Problem():
                self._on_problem(now)
            case plan.Closed():
                connection = self._connection
                self._todo.append(act.Disconnect())
                inside, before = connection.broken_off, connection.cursor_before
                self._follow(self._ending.on_clean_close(now, inside=inside, cursor_before=before), now)
            case _:
                assert_never(turn)

    def _take_step(self, step: plan.Step, now: float) -> None:
        match step:
            case plan.Send():
                self.requests.begin(step)
                self._send(step.request, now)
            case plan.Ask(purpose, reason, error):
                request = self._side.request_again(purpose)
                if request is None:
                    self._no_way_back(now, reason, error)
                else:
                    self._fetch(purpose, request, now)
            case plan.SleepUntil(ends):
                if ends > now:
                    self._todo.appendleft(act.Sleep(ends - now))
            case plan.ReadOn():
                self._move(Phase.READING)
            case plan.TurnPage(page):
                self._after_page(page, now)
            case plan.Conclude(outcome):
                self._finish(outcome)
            case plan.Resume(reset=True):
                self._after_reset(now)
            case plan.Resume():
                # A snapshot that brought nothing new was a failed attempt.
                self._go_on(now, "snapshot", None)
            case plan.Problem():
                self._on_problem(now)
            case _:
                assert_never(step)

    def _follow(self, found: plan.Next, now: float, error: BaseException | None = None) -> None:
        """Do what the close of a connection means. It is disconnected already, or that is planned."""
        match found:
            case plan.Done(outcome):
                self._finish(outcome)
            case plan.Unverified():
                self._finish_unverified()
            case plan.GoOn(reason, leave, moved):
                if moved:
                    self._budget.progress()
                self._go_on(now, reason, error, leave)
            case plan.AskProvider(request, reason):
                self._lose_connection(now, reason, None)
                self._fetch("verify", request, now)
            case plan.NoWayBack(reason):
                self._no_way_back(now, reason, error)
            case verdict.Lost():
                self._lost(now, found)
            case plan.Stop(failure):
                self._fail(failure)
            case _:
                assert_never(found)

    def _judge(self, found: verdict.Verdict, now: float, *, asked: bool = False) -> None:
        """Follow a verdict of the protocol as for a close."""
        before = self._reading.connection.cursor_before if self._reading is not None else None
        self._follow(self._ending.judge(found, now, cursor_before=before, asked=asked), now)

    @property
    def _connection(self) -> Connection:
        assert self._reading is not None
        return self._reading.connection

    # --- requests

    def _begin(self, now: float) -> None:
        if self.outcome is not None:
            self._todo.append(act.Finish(self.outcome))
            return
        if self._checkpoints.restored is None or (self.protocol is None and self.state.safe):
            # This includes a checkpoint from a process that never got an answer, and so saw nothing of the stream.
            self.requests.known = False
            self._todo.append(plan.Send(self.requests.first(), resuming=False))
            return
        try:
            planned = self.requests.next()
        except ResumableStreamError as error:
            self._fail(error)
            return
        if planned is None:
            what = f"{self.protocol or 'the stream'!r} of {self.state.method} {self.state.public_url} cannot be continued"
            self._lost(now, verdict.Lost(what, expired=False))
        else:
            self._todo.append(plan.Send(*planned))

    def _send(self, request: Request, now: float) -> None:
        if self._clocks.expired(now):
            self._fail(self._deadline_error())
        elif (error := self.requests.send(request, now)) is not None:
            self._fail(error, self._account.last_error)
        else:
            timeout = self._clocks.send(now, again=self.requests.known, resumable=self.requests.resumable())
            self._todo.append(act.Connect(request, timeout))

    # --- heads

    def connect_failed(
        self, error: BaseException, now: float, *, sent: bool, timed_out: bool = False, inside: bool = False
    ) -> None:
        """
        The request brought no response.

        Args:
            sent: The server may have received it; False only for errors that prove it was not sent (rule 9a).
            inside: As in `read_failed()`.
        """
        self._expect("connect_failed")
        if inside:
            reason = INSIDE
        elif timed_out:
            reason = "idle" if self.requests.known else "first_event"
        else:
            reason = "connection lost" if sent else "cannot connect"
        self._lose_connection(now, reason, error)
        if sent:
            self.requests.arrived()
        if self._clocks.expired(now):
            self._fail(self._deadline_error(), error)
        elif sent and not self.requests.may_repeat():
            self._no_way_back(now, reason, error)
        elif timed_out and self._ending.waits and self.state.resuming:
            # An answer that is held back until there is something to send cannot show that the connection is alive.
            self._wait(self._budget.prompt(free=False), now)
            self._todo.append(self.requests.again())
        elif inside:
            self._wait(self._budget.interrupted(free=False), now)
            self._todo.append(self.requests.again())
        else:
            self._try_again(now, reason, error)

    def receive_head(self, head: Head, now: float, *, wall: float) -> None:
        """
        A response has begun.

        Args:
            wall: Unix time in seconds, for a `Retry-After` date.
        """
        self._expect("receive_head")
        self.state.head = head
        self.requests.answered_at = now
        self.requests.arrived()
        self._budget.server_retry_after(retry_after(head.headers, now=wall, ceiling=self.settings.max_server_wait))
        if head.status in REDIRECTS and "location" in head.headers:
            self._todo.append(act.Disconnect())
            self._redirect(head, now)
        elif head.status >= 400:
            self._side.purpose = "status"
            self._todo.append(act.Fetch(None, self._clocks.error_body(now), ERROR_BODY))
        else:
            self._judge_head(head, b"", now)

    def _redirect(self, head: Head, now: float) -> None:
        self.requests.redirects += 1
        if self.requests.redirects > self.settings.limits.redirects:
            self._fail(self._rejection(head, b"", f"more than {self.settings.limits.redirects} redirects"))
            return
        try:
            follow = self.requests.redirect(head)
        except ResumableStreamError as error:
            self._fail(error)
            return
        self._send(follow, now)

    def _judge_head(self, head: Head, body: bytes, now: float) -> None:
        if self.protocol is None and (head.status in STREAMS or head.status == 204):
            chosen = self._detect(self.state, head)
            if chosen is None and head.status != 204:
                expected = "a stream (text/event-stream, application/x-ndjson or bytes); pass protocol= if this is one"
                self._break_off(unexpected_type(expected, head, self.state.private))
                return
            if chosen is not None:
                self._adopt(chosen)
                if not self.requests.makes_sense():
                    # The checkpoint was made before the protocol was known.
                    self._break_off(NotResumable(f"the checkpoint does not fit {chosen!r}: its cursor is not a byte offset"))
                    return
        found = None
        if self.protocol is not None:
            found = self.protocol.on_status(head.status, head.headers, body, self.state)
        if found is None:
            found = default_verdict(head.status, self.state, self.protocol, self.settings, repeatable=self.requests.may_repeat())
        self._apply_head(found, head, body, now)

    def _apply_head(self, found: verdict.Verdict, head: Head, body: bytes, now: float) -> None:
        if isinstance(found, verdict.Consume):
            self._consume(found, head, now)
            return
        self._todo.append(act.Disconnect())
        settled = self._ending.settled if self.protocol is not None and self.protocol.resumes_settled else None
        if settled is not None and not isinstance(found, verdict.Retry):
            # The request was only for what may follow the outcome.
            self._finish(settled)
            return
        if head.status in (401, 403) and isinstance(found, verdict.Reject) and self.requests.refresh():
            # Credentials may expire during a long answer; the client's auth, or a callable `headers`, may return new ones.
            self._todo.append(self.requests.again())
            return
        match found:
            case verdict.Reject(message):
                self._fail(self._rejection(head, body, message))
            case verdict.Retry(message):
                reason, error = f"status {head.status}", self._rejection(head, body, message)
                self._lose_connection(now, reason, error)
                self._try_again(now, reason, error)
            case _:
                self._judge(found, now)

    def _rejection(self, head: Head, body: bytes, message: str) -> ResponseRejected:
        method = self.requests.latest.method if self.requests.latest is not None else self.state.method
        return rejection(head, body, message, method=method, private=self.state.private)

    def _consume(self, found: verdict.Consume, head: Head, now: float) -> None:
        protocol, ledger, reading, state = self.protocol, self._ledger, self._reading, self.state
        assert protocol is not None and ledger is not None and reading is not None
        if not (found.any_type or found.whole or has_right_type(protocol, state, head)):
            self._break_off(unexpected_type(" or ".join(protocol.content_types), head, state.private))
            return
        if found.reset:
            kept = self._checkpoints.kept()
            self._start_over(ledger)
            state.extra.update(kept)
        self.requests.known = True
        protocol.identify(state, head)
        self.requests.answered(head)
        before, reading.connection = reading.connection.decoder, Connection()
        self._page = None
        if found.whole:
            reading.connection.read_whole(protocol, state, event_bytes=self.settings.limits.event_bytes)
        else:
            spliced = self._account.connections > 0
            reading.connection.decoder = decoder_for(
                protocol, ledger, self.settings, before=before, by_id=reading.by_id, skip=found.skip, spliced=spliced
            )
        self._open(ledger, resuming=state.resuming, asking=self.requests.asking)
        self._budget.server_retry_after(None)
        # A feed may stay quiet for any time, as long as its connection is alive.
        self._clocks.begin_body(now, endless=protocol.endless)
        self._set_clocks()
        self._account.connected(head.status, ledger, now, resuming=state.resuming, asking=self.requests.asking)
        if state.resuming and (request := protocol.backfill_request(state)) is not None:
            # The connection stays open in the meantime, and live events wait in it.
            self._side.pages = 1
            self._fetch("backfill", request, now)
        else:
            self._move(Phase.READING)

    def _open(self, ledger: Ledger, *, resuming: bool, asking: bool, stored: bool = False) -> None:
        self._account.count_events(ledger.fresh)
        self._connection.cursor_before = ledger.cursor
        reaches_back = resuming and self.protocol is not None and self.protocol.reaches_back(self.state)
        joins = resuming or self.state.safe
        ledger.open_connection(resuming=resuming, asking=asking, reaches_back=reaches_back, stored=stored, joins=joins)

    def _set_clocks(self) -> None:
        assert self._ledger is not None and self.protocol is not None
        resumable = self.requests.resumable()
        self._ledger.refetch = resumable
        self._clocks.set(resumable=resumable, endless=self.protocol.endless, settled=self._ending.settled is not None)

    # --- bodies

    def before_read(self, now: float) -> float | None:
        """
        A read is about to begin. The caller is done with every event it was given.

        Returns:
            Seconds that it may take; `None` without limit; 0 if a clock has run out: then report `read_timed_out()`.
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
        if (clock := self._clocks.bytes_only(now)) is not None and self._turn is None:
            self._turn = plan.RanOut(clock)

    def receive_live(self, chunk: bytes) -> Sequence[Any]:
        """
        `receive_data()` without reading the clock, for a driver that reads on while the machine is `calm`.

        If it returns no event, call `receive_nothing()`.
        """
        if (feed := self._feed) is None:
            raise IllegalInput(self._phase, "receive_data")
        reading = self._reading
        assert reading is not None
        items: Sequence[Any] = feed(chunk)
        decoder = reading.connection.decoder
        reading.bytes = total = reading.bytes + len(chunk)
        if total > reading.condense_at:
            reading.condense()
        if reading.hot and len(items) == 1 and self._clocks.steady and decoder.error is None:
            # A live stream with one event per chunk: only the order has to be checked.
            item = items[0]
            if reading.place is not None:
                reading.place(items)
            content = item.event not in reading.names and item.data[:7] not in reading.heads and not decoder.silent
            if content and reading.ledger.receive_one(item, items):
                if reading.keeps_events:
                    self._checkpoints.saving.delivered(items)
                self.calm = True
                return items
        silent: Sequence[tuple[int, str]] = ()
        if reading.sse and decoder.silent:
            silent, decoder.silent = decoder.silent if reading.by_id else (), []
        if items or silent:
            items = self._enter(items, silent)
        if decoder.error is not None and self._turn is None:
            self._turn = plan.Broken(decoder.error)
        self.calm = bool(items) and self._turn is None and self._clocks.steady
        return items

    def _enter(self, items: Sequence[Any], silent: Sequence[tuple[int, str]] = ()) -> Sequence[Any]:
        """Judge a batch and enter it into the ledger."""
        reading = self._reading
        assert reading is not None
        items, turn, turned = reading.enter(items, silent)
        if turn is not None:
            self._turn = turn
        if turned:
            self._set_clocks()
        if items:
            if not self._clocks.steady:
                self._on_progress()
            if reading.keeps_events:
                self._checkpoints.saving.delivered(items)
        return items

    def _on_progress(self) -> None:
        """The first events of a connection, or the first after a silence."""
        protocol, ledger, connection = self.protocol, self._ledger, self._connection
        assert protocol is not None and ledger is not None
        if self._ending.is_progress():
            self._budget.progress()
            self.requests.progress()
        if not connection.certain:
            # The first cursor shows whether the stream can be resumed; after that the clocks do not change.
            connection.certain = ledger.cursor is not None or ledger.plain or not protocol.promises.resumable
            self._set_clocks()
        self._clocks.event(settled=connection.certain and ledger.progress > 0)

    def receive_eof(self, now: float) -> Sequence[Any]:
        """
        The body ended cleanly.

        Returns:
            The events that its end completed.
        """
        self._expect("receive_eof")
        reading = self._reading
        assert reading is not None
        connection = reading.connection
        items: Sequence[Any] = connection.decoder.eof()
        connection.inside = bool(connection.decoder.partial)
        if connection.inside and not items and self._turn is None:
            items = reading.last_without_its_end()
        if items or connection.onward is not None:
            items = self._enter(items, () if connection.onward is None else [(len(items), connection.onward)])
        if self._turn is None:
            error = connection.decoder.error
            self._turn = plan.Broken(error) if error is not None else plan.Closed()
        return items

    def read_failed(self, error: BaseException, now: float, *, inside: bool = False) -> None:
        """
        The connection broke, its body could not be decoded, or its data was never entered.

        Args:
            inside: The exception came from inside this process and is passed to the caller: a cancellation, a signal handler,
                a bug in a callable. The network did not fail, so this is not a failed attempt and causes no wait.
        """
        self._expect("read_failed")
        self._turn = None
        self.calm = False
        self._cut(now, INSIDE if inside else "connection lost", error, Leave.INSIDE if inside else Leave.LOST)

    def read_timed_out(self, now: float, error: BaseException | None = None) -> None:
        """The time that `before_read()` gave has passed."""
        self._expect("read_timed_out")
        self._on_clock(self._clocks.ran_out(), error, now)

    # --- bytes that are handed on unread

    def skimmer(self) -> Skimmer | None:
        """For a driver that passes bytes through: finds events that need not be read. `None`: read every event."""
        reading = self._reading
        if reading is None or reading.unread is None or not self.calm:
            return None
        if reading.identifies or self._ending.settled is not None:
            return None
        return reading.unread.start(reading.connection.decoder)

    def settle(self, *, leaving: bool = True) -> None:
        """
        Read what was skimmed. `latest` then holds the newest of these events, which were already handed out.

        Args:
            leaving: What comes next is read normally, so the front of an unfinished event is read too.
        """
        if self._reading is not None and self._reading.unread is not None:
            self._reading.unread.settle(leaving=leaving)
            if self._ledger is not None and self._ledger.problem is not None:
                self._turn = plan.Problem()

    def take_back(self, chunk: bytes) -> None:
        """The chunk skimmed last is not handed out after all. The connection has to end."""
        if self._reading is not None and self._reading.unread is not None:
            self._reading.unread.take_back(chunk)

    def take_carried(self) -> bytes:
        """Bytes of the previous connection that belong before the first event of this one."""
        # A decoder that splits batches passes this call on.
        decoder = self._connection.decoder
        return decoder.take_carried() if hasattr(decoder, "take_carried") else b""

    # --- what an event or a clock causes, once the events before it have been taken

    def _on_announced(self, gap: Gap, rest: Sequence[Any], silent: Sequence[tuple[int, str]], now: float) -> None:
        """The server reports lost history: request it once, then continue after the gap or fail."""
        ledger = self._ledger
        assert ledger is not None
        if not ledger.hole(gap):
            self._on_problem(now)
        else:
            if items := self._enter(rest, silent):
                self._todo.append(act.Deliver(items))
            if self._turn is None and self._page is not None:
                self._todo.append(self._page)
                self._page = None

    def _on_problem(self, now: float) -> None:
        assert self._ledger is not None
        match self._ledger.problem:
            case HoleFound():
                # Even after an event that settled the outcome, missing events are requested: the numbers promised them.
                self._todo.append(act.Disconnect())
                self._go_on(now, "gap", None)
            case StartedOver():
                # The server did not answer the question. The observer has been notified that the cursor was ignored.
                self._todo.append(act.Disconnect())
                self._finish(self._ending.with_settled(Outcome.ENDED), verified=False)
            case ResumableStreamError() as error:
                self._break_off(error)

    def _on_unproven(self, found: verdict.Unproven, now: float) -> None:
        """The sender claims to be done, and nothing before it proves that: treat it as a cut."""
        protocol, ledger = self.protocol, self._ledger
        assert protocol is not None and ledger is not None
        self._connection.unproven = found
        if ledger.behind:
            self._cut(now, "closed inside the replay", None)
            return
        self._todo.append(act.Disconnect())
        self.requests.sync()
        self._judge(protocol.on_unproven(self.state), now)

    def _on_clock(self, clock: Clock, error: BaseException | None, now: float) -> None:
        if clock == "deadline" and self._ending.settled is None:
            self._todo.append(act.Disconnect())
            self._lose_connection(now, clock, None)
            self._fail(self._deadline_error(), error)
            return
        protocol, ledger = self.protocol, self._ledger
        assert protocol is not None and ledger is not None
        if ledger.progress == 0 and self._ending.settled is None and self.requests.resumable():
            request = protocol.status_request(self.state)
            if request is not None:
                self._todo.append(act.Disconnect())
                self._lose_connection(now, clock, error)
                self._fetch("alive", request, now)
                return
        # A restated state counts as a status check: the run is quiet, and this was not a failed attempt.
        self._cut(now, clock, error, Leave.NEUTRAL if ledger.fresh > 0 and ledger.progress == 0 else Leave.LOST)

    # --- from one connection to the next

    def _cut(self, now: float, reason: str, error: BaseException | None, leave: Leave = Leave.LOST) -> None:
        if self._phase is Phase.READING:
            self._todo.append(act.Disconnect())
        self._follow(self._ending.on_cut(now, reason, leave), now, error)

    def _go_on(self, now: float, reason: str, error: BaseException | None, leave: Leave = Leave.LOST) -> None:
        """Leave this connection and plan the next."""
        ledger = self._ledger
        assert ledger is not None
        self._move(Phase.BETWEEN)
        if leave is not Leave.ONWARD:
            self._lose_connection(now, reason, error)
        if self._clocks.expired(now):
            self._fail(self._deadline_error(), error)
            return
        try:
            planned = self.requests.next()
        except ResumableStreamError as mismatch:
            self._fail(mismatch, error)
            return
        if planned is None:
            self._no_way_back(now, reason, error)
            return
        request, resuming = planned
        # A question whose answer was cut is asked again.
        unanswered = self.requests.asking and ledger.fresh == 0 and (error is None or leave is Leave.INSIDE)
        send = plan.Send(request, resuming, asking=leave in (Leave.QUESTION, Leave.QUIET) or unanswered)
        match leave:
            case Leave.INSIDE:
                self._wait(self._budget.interrupted(free=ledger.progress > 0), now)
            case Leave.ONWARD:
                self._account.routine = True
                wait = self._budget.at_once(free=ledger.fresh > 0)
                if wait > 0 or self.settings.saving:
                    # The next answer may take long. A sleep, even of no length, saves what was taken.
                    self._todo.append(act.Sleep(wait))
            case Leave.QUESTION:
                self._account.then("ask")
                self._wait(self._budget.at_once(free=ledger.fresh > 0), now)
            case Leave.LOST | Leave.NEUTRAL | Leave.QUIET:
                if (ledger.progress and not self._ending.only_restated(now)) or leave is not Leave.LOST:
                    self._wait(self._budget.prompt(free=ledger.progress > 0), now)
                else:
                    self._try_again(now, reason, error, send)
                    return
        self._todo.append(send)

    def _lose_connection(self, now: float, reason: str, error: BaseException | None) -> None:
        self._move(Phase.BETWEEN)
        decoder = self._reading.connection.decoder if self._reading is not None else None
        if (retry := getattr(decoder, "retry", None)) is not None:
            self._budget.server_retry(retry)
        self._account.lost(reason, error, self._ledger, now, seconds=self._clocks.limit(reason))

    def _try_again(
        self, now: float, reason: str, error: BaseException | None, again: plan.Step | None = None, *, failed: str = ""
    ) -> None:
        """
        After a failed attempt, wait as the policy says, or give up.

        Args:
            again: What follows the wait; `None`: the latest request again.
            failed: What failed, in words, unless it was a connection of the stream, which already has a notice.
        """
        settled = self._ending.settled
        if settled is not None and self._ending.gives_up(now):
            self._finish(settled)
            return
        wait = self._budget.failed(now, error)
        if wait is not None:
            self._wait(wait, now, attempt=self._budget.next_attempt, reason=failed)
            self._todo.append(again or self.requests.again())
        elif settled is not None:
            self._finish(settled)
        else:
            count = self._budget.attempts
            seen = f"{type(error).__name__}: {error}" if error is not None else reason
            text = f"gave up after {count} attempt{'s' * (count != 1)} without a new event; the last one: {seen}"
            exhausted = RetriesExhausted(text, attempts=count, last_error=error if error is not None else reason)
            exhausted.__cause__ = error
            # If the server cannot be reached, or the status check itself failed, there is no point in asking.
            nobody = failed or reason == "cannot connect"
            request = None if nobody else self._side.last_request(exhausted)
            if request is None:
                self._fail(exhausted)
            else:
                self._fetch("last", request, now)

    def _wait(self, seconds: float, now: float, attempt: int = 0, *, reason: str = "") -> None:
        left = self._clocks.left(now)
        if left is not None:
            seconds = min(seconds, max(left, 0.0))
        self._account.then("reconnect")
        self.notices.append(note.Retrying(attempt, seconds, attempts=self.settings.attempts, reason=reason))
        if seconds > 0:
            self._todo.append(act.Sleep(seconds))

    # --- no way back, and what may stand in for it (rule 8)

    def _no_way_back(self, now: float, reason: str, error: BaseException | None) -> None:
        """A cut on a stream that cannot be resumed."""
        events = self._ledger.offset if self._ledger is not None else 0
        seen = f"{reason}: {type(error).__name__}" if error is not None else reason
        if (refused := self.requests.refused) is not None and self.settings.on_lost == "raise":
            self._fail(refused, error)
            return
        unproven = self._reading.connection.unproven if self._reading is not None else None
        if unproven is not None:
            seen = unproven.text
        elif self._ending.disproved:
            seen += "; more of the answer came after the event that said how it ends, so that event proves nothing"
        text = f"the stream was interrupted after {events} event{'s' * (events != 1)} ({seen}) and cannot be resumed"
        if why := self.requests.why_not():
            text += f": {why}"
        if unproven is not None and unproven.advice:
            text += f". {unproven.advice}"
        if reason == INSIDE:
            text += f". {TAKEN_ALONG}"
        self._replace(now, text, StreamInterrupted(text + self.settings.way_out, reason=reason), error)

    def _lost(self, now: float, lost: verdict.Lost) -> None:
        """The server said that the rest is not available."""
        kind = CursorExpired if lost.expired else NotResumable
        self._replace(now, lost.message, kind(lost.message + self.settings.way_out), None, stored=lost.stored)

    def _replace(
        self, now: float, text: str, failure: ResumableStreamError, error: BaseException | None, *, stored: bool = False
    ) -> None:
        self._move(Phase.BETWEEN)
        if self._ending.settled is not None:
            # The outcome was settled, possibly in another process; only details of the end are missing.
            self._finish(self._ending.settled)
            return
        self.notices.append(note.Lost(text))
        choice = self.settings.on_lost
        # A server that forgot a finished answer would be asked for all of it again and again.
        if choice == "restart" and not stored and not self.requests.asking and not self.requests.elsewhere:
            self._account.then("restart")
            self._restart(now, error)
            return
        stands_in = (choice == "snapshot" or stored) and self.protocol is not None
        if stands_in and (request := self._side.snapshot_request()) is not None:
            self._fetch("snapshot", request, now)
        else:
            self._fail(failure, error)

    def _restart(self, now: float, error: BaseException | None) -> None:
        budget = self._budget
        wait = budget.restart(error)
        if wait is None:
            text = f"gave up after {budget.restarts} restarts"
            self._fail(RetriesExhausted(text, attempts=budget.restarts, last_error=error or text), error)
            return
        if self._ledger is not None:
            self._start_over(self._ledger, anew=True)
        self.requests.start_over()
        self._ending.restart()
        self.requests.sync()
        self._wait(wait, now)
        self._todo.append(plan.Send(self.requests.first(), resuming=False))

    def _start_over(self, ledger: Ledger, *, anew: bool = False) -> None:
        self._ending.start_over()
        if self._reading is not None:
            self._reading.start_over()
        self.state.extra.clear()
        self.state.over = None
        self._checkpoints.start_over()
        self._account.count_events(ledger.fresh)
        self.notices.append(note.Restarted(0))
        ledger.restart(offset=0, anew=anew)

    # --- side requests

    def _fetch(self, purpose: plan.Purpose, request: Request, now: float) -> None:
        if not request.sendable:
            self._no_way_back(now, "an id that cannot be sent", None)
            return
        try:
            self.requests.check_origin(request)
        except ResumableStreamError as error:
            self._fail(error)
            return
        self._side.purpose = purpose
        self._account.then("fetch" if purpose == "snapshot" else "check")
        limit = self.settings.limits.event_bytes if purpose in ("snapshot", "backfill") else ERROR_BODY * 16
        self._todo.append(act.Fetch(request, self._clocks.side(now), limit))

    def receive_answer(self, answer: Answer, now: float) -> None:
        """The whole answer to a `Fetch`."""
        self._expect("receive_answer")
        purpose, protocol = self._side.purpose, self.protocol
        if purpose == "status":
            head = self.state.head
            assert head is not None
            self._judge_head(head, answer.body, now)
            return
        assert protocol is not None
        if purpose == "backfill":
            self._on_backfill(protocol.on_backfill(answer, self.state), now)
        elif purpose == "last":
            self._on_last_words(None if answer.status in self.settings.statuses else answer, now)
        elif answer.status in self.settings.statuses:
            self._fetch_again(now, f"status {answer.status}", None)
        elif purpose == "snapshot":
            match protocol.on_snapshot(answer, self.state) if answer.status < 400 else None:
                case verdict.Retry(message):
                    self._fetch_again(now, message or "the result is not ready", None)
                case snapshot:
                    self._on_snapshot(snapshot, answer)
        else:
            match self._side.on_verified(answer):
                case verdict.Resume():
                    self._account.checked = True
                    # After a silence, the status shows that the run is alive, so the silent connection was not a failed attempt.
                    self._go_on(now, "closed before the end", None, Leave.NEUTRAL if purpose == "alive" else Leave.LOST)
                case verdict.Retry(message):
                    self._fetch_again(now, message or f"status {answer.status}", None)
                case found:
                    self._judge(found, now, asked=purpose == "verify")

    def fetch_failed(self, error: BaseException, now: float, *, inside: bool = False) -> None:
        """
        A `Fetch` brought no whole answer.

        Args:
            inside: As in `read_failed()`.
        """
        self._expect("fetch_failed")
        purpose = self._side.purpose
        if self._clocks.expired(now):
            self._break_off(self._deadline_error(), error)
        elif purpose == "status" and inside and self.requests.may_repeat():
            # The network did not fail, so repeat the request: the explanation may change the verdict.
            self._todo.append(act.Disconnect())
            self._lose_connection(now, INSIDE, error)
            self._wait(self._budget.interrupted(free=False), now)
            self._todo.append(self.requests.again())
        elif purpose == "status":
            # The status is known; only the explanation is missing.
            head = self.state.head
            assert head is not None
            self._judge_head(head, b"", now)
        elif purpose == "last" and not inside:
            self._on_last_words(None, now)
        elif purpose == "backfill":
            self._todo.append(act.Disconnect())
            self._go_on(now, INSIDE if inside else "history not read", error, Leave.INSIDE if inside else Leave.LOST)
        else:
            self._fetch_again(now, INSIDE if inside else "status check failed", error, inside=inside)

    def _fetch_again(self, now: float, reason: str, error: BaseException | None, *, inside: bool = False) -> None:
        again = plan.Ask(self._side.purpose, reason, error)
        if inside:
            self._todo.append(again)
            return
        what = "the request for the stored result" if again.purpose == "snapshot" else "the status check"
        seen = f"failed: {type(error).__name__ if error is not None else reason}"
        self._try_again(now, reason, error, again, failed=f"{what} {seen}")

    def _on_last_words(self, answer: Answer | None, now: float) -> None:
        match self._side.on_last_words(answer):
            case Exhausted(error):
                self._fail(error)
            case Request() as request:
                self._fetch("last", request, now)
            case found:
                self._judge(found, now)

    def _on_backfill(self, found: Backfill | verdict.Verdict, now: float) -> None:
        """Enter a page of history: events from the time without a connection come before live ones."""
        if not isinstance(found, Backfill):
            self._todo.append(act.Disconnect())
            self._judge(found, now)
            return
        if found.events and (items := self._enter(found.events)):
            self._todo.append(act.Deliver(items))
        if self._turn is None:
            self._after_page(found, now)
        else:
            # The turn that the page caused comes first. If that is a gap that is accepted, the history continues after it.
            self._page = plan.TurnPage(found)

    def _after_page(self, found: Backfill, now: float) -> None:
        """After a page of history, get the next page or read the live events."""
        if found.more is None:
            self._todo.append(plan.ReadOn())
        elif self._side.pages < PAGES:
            self._side.pages += 1
            self._fetch("backfill", found.more, now)
        else:
            self._todo.append(act.Disconnect())
            self._go_on(now, f"a history of more than {PAGES:,} pages", None)

    def _on_snapshot(self, snapshot: Snapshot | None, answer: Answer) -> None:
        """Deliver the stored result in place of the lost rest."""
        ledger, reading = self._ledger, self._reading
        assert ledger is not None and reading is not None
        if snapshot is None:
            self._fail(CursorExpired(f"the stored result cannot be had either: the server answered {answer.status}"))
            return
        if snapshot.reset:
            self._start_over(ledger)
        self._open(ledger, resuming=False, asking=False, stored=True)
        # A stored result cannot be refetched.
        ledger.refetch = False
        if snapshot.events:
            items: Sequence[Any] = snapshot.events
            if reading.place is not None:
                reading.place(items)
            if items := ledger.receive(items):
                self._checkpoints.saving.delivered(items)
                self._on_progress()
                self._todo.append(act.Deliver(items))
        outcome = snapshot.outcome
        if ledger.problem is not None:
            self._todo.append(plan.Problem())
        elif outcome is not None:
            self._todo.append(plan.Conclude(outcome))
        else:
            self._todo.append(plan.Resume(snapshot.reset))

    def _after_reset(self, now: float) -> None:
        """The run continues and what was delivered is void, as after a restart."""
        wait = self._budget.restart(None)
        planned = self.requests.next()
        if wait is None or planned is None:
            text = f"gave up after {self._budget.restarts} resets"
            self._fail(RetriesExhausted(text, attempts=self._budget.restarts, last_error=text))
        else:
            self._wait(wait, now)
            self._todo.append(plan.Send(*planned))

    # --- ends

    def _finish_unverified(self) -> None:
        """Finish after a clean close that nothing vouches for. If there were ids, a notice says why the end was not checked."""
        protocol, ledger = self.protocol, self._ledger
        # For raw bytes, the cursor is only their count.
        if ledger is not None and ledger.cursor is not None and protocol is not None and protocol.framing != "raw":
            count = ledger.offset
            advice = [self.requests.why_not()]
            if not protocol.promises.has_end:
                advice.append("if the stream marks its end, name it (end=…)")
            why = "; ".join(filter(None, advice)) or "the protocol has no way to do so"
            text = (
                f"the stream closed cleanly after {count} event{'s' * (count != 1)}, and whether that was its end could not be "
                f"asked: {why}"
            )
            self.notices.append(note.EndUnverified(text))
        self._finish(Outcome.ENDED, verified=False)

    def _finish(self, outcome: Outcome, *, verified: bool = True) -> None:
        self._hand_over_held()
        self._move(Phase.BETWEEN)
        self._ending.outcome, self._ending.verified = outcome, verified
        self._account.then("end")
        offset = self._ledger.offset if self._ledger is not None else 0
        after_loss = self._account.offline or self.requests.asking
        self.notices.append(note.Finished(outcome, offset=offset, after_loss=after_loss))
        self._todo.append(act.Finish(outcome))

    def _break_off(self, error: ResumableStreamError, cause: BaseException | None = None) -> None:
        """Fail while a connection is open."""
        self._todo.append(act.Disconnect())
        self._fail(error, cause)

    def _fail(self, error: ResumableStreamError, cause: BaseException | None = None) -> None:
        if self._phase is Phase.READING or self._ledger is None or not self._ledger.refetch:
            self._hand_over_held()
        # Otherwise the connection was lost, and held events will come again after the position that the error carries.
        self._move(Phase.BETWEEN)
        if cause is not None and error.__cause__ is None:
            error.__cause__ = cause
        self._error = error

    def _hand_over_held(self) -> None:
        """Nothing more will come, so events held as possible repeats are new."""
        if self._ledger is not None and (items := self._ledger.release()):
            self._checkpoints.saving.delivered(items)
            self._todo.append(act.Deliver(items))

    def _deadline_error(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"the stream did not end within its deadline of {self.settings.timeouts.deadline} seconds")
