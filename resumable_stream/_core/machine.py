"""
The state machine of one resumable stream: inputs in, actions out.

    next(now) ──► Connect ──► receive_head ──► Read ──► receive_data ──► events
       ▲             │             │             │
       │             └─ connect_failed           └─ receive_eof · read_failed · read_timed_out
       └──────────── Disconnect · Save · Sleep · Fetch · Finish ◄───── what follows from it

A driver asks `next()` what to do, does it, and reports the result. `receive_data()` is the only hot call: it returns the events
that a chunk completed, and while nothing else is `due` the driver keeps reading without asking.

This file holds the plan: the phase, the waiting turn, and the steps to come. The decisions are made in parts that own their
state and return values, and the machine carries these out:

    Checkpoints     the position, and when it is saved              rule 1
    Reconnecting    what is requested next, after which wait        rules 2, 3, over the Budget
    Clocks          which clock runs out next                       rule 4
    Reading         items → events, and at most one `Turn`          rules 2, 5, 6, over the Ledger
    Ending          what follows from a `Turn`                      rule 7
    Side            status, stored result, history                  rules 7, 8
    Lost            what stands in for the rest                     rule 8
    Requests        which request may be sent                       rules 8-10
    Heads           what a status means                             rules 8-10
    Account         counters and notices

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
from typing import Any, assert_never

from .. import _notices as note
from .._checkpoint import Checkpoint
from .._contract import Answer, Backfill, Detect, Head, Request, ResumeProtocol, Snapshot, StreamState
from .._contract import verdicts as verdict
from .._errors import NotResumable, ResumableStreamError
from .._events import Outcome
from . import actions as act
from . import plan
from .account import Account
from .budget import Budget, retry_after
from .checkpoints import LOCATION_KEY, UNKNOWN, Checkpoints
from .clocks import Clocks
from .ending import Ending
from .heads import STREAMS, Heads, no_stream
from .ledger import Ledger
from .lost import Lost
from .origins import REDIRECTS
from .phases import TRANSITIONS, IllegalInput, Phase
from .plan import INSIDE, Leave
from .reading import Reading
from .reconnecting import Reconnecting
from .requests import Requests
from .saving import Blocks, Saving
from .settings import Settings, Stats
from .side import Side
from .skimming import Skimmer

__all__ = ["Machine"]


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
        self.calm = False
        self._detect = detect
        self._restored = checkpoint
        # The plan: steps in order, then `_error`. The turn comes first, once the events in hand have been taken.
        self._phase = Phase.BETWEEN
        self._feed: Callable[[bytes], Sequence[Any]] | None = None  # while a body is read
        self._turn: plan.Turn | None = None
        self._todo: deque[act.Action | plan.Step] = deque([plan.Begin()])
        self._error: ResumableStreamError | None = None
        # The parts that decide. Those that depend on the protocol are made by `_adopt()`.
        self._account = Account(settings)
        self.notices = self._account.notices
        self._clocks = Clocks(settings.timeouts, settings.longest_read)
        self._budget = Budget(settings)
        self._saving = Saving(settings)
        self.requests = Requests(state, settings, answered=checkpoint is not None)
        self._adopt(protocol)
        if checkpoint is None:
            self.requests.choose_key()

    def _adopt(self, protocol: ResumeProtocol | None) -> None:
        """The protocol is now known, and with it the meaning of a position. `None`: one that resumes nothing stands in for it."""
        self.protocol = protocol
        self._protocol = known = protocol or ResumeProtocol()
        settings, requests, clocks = self.settings, self.requests, self._clocks
        self._ledger = ledger = Ledger(known, window=settings.limits.window, on_gap=settings.on_gap, notices=self.notices)
        requests.adopt(known, ledger)
        self._heads = Heads(known, requests, settings)
        self._side = side = Side(known, requests, clocks, settings)
        self._ending = ending = Ending(known, ledger, requests, clocks, settings)
        self._reconnecting = Reconnecting(ledger, requests, side, ending, clocks, self._budget)
        self._lost = Lost(ledger, requests, side, ending, self._budget, self._account, settings)
        self._checkpoints = Checkpoints(known, ledger, self.state, settings, ending=ending, saving=self._saving)
        self._reading = Reading(known, ledger, settings=settings, requests=requests, ending=ending, checkpoints=self._checkpoints)
        if protocol is not None and (checkpoint := self._restored) is not None:
            ledger.restore(checkpoint)
            clocks.restore(begun=checkpoint.offset > 0)
            requests.restore(checkpoint, checkpoint.extra.get(LOCATION_KEY))
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
                    raise NotResumable("the stream stopped because your code raised an exception; continue from its checkpoint")
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
        """A `Sleep` until `ends` was interrupted from inside. What is left of it when the caller comes back comes first."""
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
        return self._account.stats(self._ledger, self._reading.bytes)

    @property
    def latest(self) -> Sequence[Any]:
        """The latest batch, for a driver that was interrupted before handing it out."""
        return self._ledger.latest

    def count_replayed(self, events: int) -> None:
        """Count events that came from the store."""
        self._account.count_events(events)

    def detect_with(self, detect: Detect) -> None:
        """Use another function to choose the protocol by the first response."""
        self._detect = detect

    # --- the place

    def checkpoint(self, taken: int, batch: Sequence[Any] | None = None) -> Checkpoint:
        """The position after `taken` items of `batch` (`None`: the latest), or the committed one under manual commit."""
        if self.protocol is None:
            state = self.state
            return self._restored or Checkpoint(protocol=UNKNOWN, method=state.method, url=state.public_url)
        return self._checkpoints.make(taken, batch, self.outcome or self._ending.by(self._turn))

    def step_at(self, offset: int) -> int | None:
        """Offset at which the step of an event began; `None` if the protocol has no steps, or the start is not known."""
        return self._checkpoints.step_at(offset)

    def conclude(self, taken: int, batch: Sequence[Any]) -> bool:
        """The caller leaves without an exception. True: it has taken the event that ends the stream, which sets the outcome."""
        newest = self._ledger.place(taken, batch).offset == self._ledger.offset
        return newest and self.outcome is None and self._ending.on_leaving(self._turn, batch)

    def commit(self, item: Any, taken: int, batch: Sequence[Any] | None = None) -> None:
        """Under manual commit: move the committed position to after `item`, or after what is taken."""
        if self.protocol is not None:
            self._ledger.commit(item, taken=taken, batch=batch)

    def save(
        self, now: float, taken: int, batch: Sequence[Any] | None = None, *, force: bool = False, blocks: Blocks = None
    ) -> act.Save | None:
        """
        The save that is due after `taken` items of `batch` (`None`: the latest), if any.

        Called with `force` on leaving, with `blocks` before a read, and with neither at an event.
        """
        if self.protocol is None:
            return None
        outcome = self.outcome or self._ending.by(self._turn)
        return self._checkpoints.save(now, taken, batch, outcome, force=force, blocks=blocks)

    @property
    def save_at(self) -> float:
        """The moment before which `save()` finds nothing due, except with `force`."""
        return self._saving.earliest

    def saved(self, now: float) -> None:
        """The latest `Save` was written."""
        self._saving.done(now)

    # --- the plan

    def _move(self, phase: Phase) -> None:
        self._phase = phase
        self._feed = None
        if phase is Phase.READING:
            self._feed = self._reading.connection.decoder.feed

    def _expect(self, given: str) -> None:
        """Check that an input is legal now. It ends what was under way, except for a body, which is read on."""
        if given not in TRANSITIONS[self._phase]:
            raise IllegalInput(self._phase, given)
        if self._phase is not Phase.READING:
            self._move(Phase.BETWEEN)

    def _take_turn(self, turn: plan.Turn, now: float) -> None:
        if isinstance(turn, plan.Announced) and self._ledger.hole(turn.gap):
            # The caller accepts the gap, so continue after it.
            if items := self._enter(turn.rest, turn.silent):
                self._todo.append(act.Deliver(items))
            if self._turn is None:
                self._todo += self._side.set_aside()
            return
        self._todo.append(act.Disconnect())
        self._follow(self._ending.after(turn, now, broken_off=self._reading.connection.broken_off), now)

    def _take_step(self, step: plan.Step, now: float) -> None:
        match step:
            case plan.Begin():
                self._clocks.open(now)
                self._saving.open(now)
                self._begin(now)
            case plan.Send():
                self.requests.begin(step)
                self._send(step.request, now)
            case plan.SleepUntil(ends):
                if ends > now:
                    self._todo.appendleft(act.Sleep(ends - now))
            case plan.TurnPage(page):
                self._turn_page(page, now)
            case plan.AskAgain():
                self._follow(self._side.send_again(step), now)
            case plan.AfterReset():
                self._follow(self._reconnecting.after_reset(), now)
            case plan.Problem():
                self._take_turn(step, now)
            case plan.Done() | plan.GoOn():
                self._follow(step, now)
            case _:
                assert_never(step)

    def _follow(self, found: plan.Next | verdict.Verdict | Request, now: float) -> None:
        """Do what follows. The connection is closed already, or that is planned."""
        match found:
            case plan.Done(outcome, verified, doubt):
                if doubt:
                    self.notices.append(note.EndUnverified(doubt))
                self._finish(outcome, verified=verified)
            case plan.Stop(failure, cause, reason):
                if reason:
                    self._lose_connection(now, reason, None)
                self._fail(failure, cause)
            case plan.GoOn(reason, leave, error):
                if leave is Leave.ONWARD:
                    self._move(Phase.BETWEEN)
                else:
                    self._lose_connection(now, reason, error, checked=found.checked)
                self._follow(self._reconnecting.after(found, now), now)
            case plan.TryAgain(reason, error, _, failed):
                if not failed:
                    self._lose_connection(now, reason, error)
                self._follow(self._reconnecting.try_again(found, now), now)
            case plan.Wait():
                self._wait(found, now)
            case plan.Send() | plan.AskAgain():
                self._todo.append(found)
            case Request():
                self._send(found, now)
            case plan.Ask(_, _, reason, error):
                if reason:
                    self._lose_connection(now, reason, error)
                self._ask(found, now)
            case plan.NoWayBack():
                self._move(Phase.BETWEEN)
                self._follow(self._lost.after_cut(found), now)
            case verdict.Lost():
                self._move(Phase.BETWEEN)
                self._follow(self._lost.after_refusal(found), now)
            case plan.Restart(seconds):
                self._restart(seconds, now)
            case _:
                self._follow(self._ending.judge(found, now), now)

    # --- requests

    def _begin(self, now: float) -> None:
        if self.outcome is not None:
            self._todo.append(act.Finish(self.outcome))
            return
        if self._restored is None or (self.protocol is None and self.state.safe):
            # This includes a checkpoint from a process that never got an answer, and so saw nothing of the stream.
            self._todo.append(self.requests.anew())
            return
        send = self.requests.next()
        if send is None:
            what = f"{self.protocol or 'the stream'!r} of {self.state.method} {self.state.public_url} cannot be continued"
            self._follow(verdict.Lost(what, expired=False), now)
        else:
            self._follow(send, now)

    def _send(self, request: Request, now: float) -> None:
        if self._clocks.expired(now):
            self._fail(self._clocks.deadline_error())
        elif (error := self.requests.send(request, now)) is not None:
            self._fail(error, self._account.last_error)
        else:
            timeout = self._clocks.send(now, again=self.requests.answered, resumable=self.requests.resumable())
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
            reason = "idle" if self.requests.answered else "first_event"
        else:
            reason = "connection lost" if sent else "cannot connect"
        self._lose_connection(now, reason, error)
        self._follow(self._reconnecting.unanswered(reason, error, now, sent=sent, timed_out=timed_out, inside=inside), now)

    def receive_head(self, head: Head, now: float, *, wall: float) -> None:
        """A response has begun. `wall`: Unix time in seconds, for a `Retry-After` date."""
        self._expect("receive_head")
        self.requests.head_came(head, now)
        self._budget.server_retry_after(retry_after(head.headers, now=wall, ceiling=self.settings.max_server_wait))
        if head.status in REDIRECTS and "location" in head.headers:
            self._todo.append(act.Disconnect())
            self._follow(self._heads.redirect(head), now)
        elif head.status >= 400:
            self._todo.append(self._side.explanation(now))
        else:
            self._judge_head(b"", now)

    def _judge_head(self, body: bytes, now: float) -> None:
        """`body`: of an error, as far as it was read."""
        head = self.state.head
        assert head is not None
        found = self._detected(head) or self._heads.judge(head, body, self._ending.settled)
        if isinstance(found, verdict.Consume):
            self._consume(found, head, now)
        else:
            self._todo.append(act.Disconnect())
            self._follow(found, now)

    def _detected(self, head: Head) -> plan.Stop | None:
        """Choose the protocol by the first response, or say why there is none."""
        if self.protocol is not None or not (head.status in STREAMS or head.status == 204):
            return None
        chosen = self._detect(self.state, head)
        if chosen is None:
            return None if head.status == 204 else plan.Stop(no_stream(head, self.state))
        self._adopt(chosen)
        if self.requests.makes_sense():
            return None
        # The checkpoint was made before the protocol was known.
        return plan.Stop(NotResumable(f"the checkpoint does not fit {chosen!r}: its cursor is not a byte offset"))

    def _consume(self, found: verdict.Consume, head: Head, now: float) -> None:
        protocol, state, requests = self._protocol, self.state, self.requests
        if found.reset:
            kept = self._checkpoints.kept()
            self._start_over()
            state.extra.update(kept)
        requests.read_head(head)
        self._account.count_events(self._ledger.fresh)
        self._reading.open(found, spliced=self._account.connections > 0)
        self._reading.open_answer(resuming=state.resuming, asking=requests.asking)
        self._budget.server_retry_after(None)
        # A feed may stay quiet for any time, as long as its connection is alive.
        self._clocks.begin_body(now, endless=protocol.endless)
        self._set_clocks()
        self._account.connected(head.status, self._ledger, now, resuming=state.resuming, asking=requests.asking)
        if (page := self._side.first_page()) is not None:
            # The connection stays open in the meantime, and live events wait in it.
            self._ask(page, now)
        else:
            self._move(Phase.READING)

    def _set_clocks(self) -> None:
        resumable = self.requests.resumable()
        self._ledger.refetch = resumable
        self._clocks.set(resumable=resumable, endless=self._protocol.endless, settled=self._ending.settled is not None)

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
        items: Sequence[Any] = feed(chunk)
        decoder = reading.connection.decoder
        reading.bytes = total = reading.bytes + len(chunk)
        if total > reading.condense_at:
            reading.condense()
        if reading.hot and len(items) == 1 and self._clocks.steady and decoder.error is None:
            # A live stream with one event per chunk: only the order has to be checked.
            item = items[0]
            if (place := reading.place) is not None:
                place(items)
            notable = item.event in reading.names or (item.data[3:4] in reading.marks and item.data[:7] in reading.heads)
            if not notable and not decoder.silent and reading.ledger.receive_one(item, items):
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
        ledger, connection = self._ledger, self._reading.connection
        if self._ending.is_progress():
            self._budget.progress()
            self.requests.progress()
        if not connection.certain:
            # The first cursor shows whether the stream can be resumed; after that the clocks do not change.
            connection.certain = ledger.cursor is not None or ledger.plain or not self._protocol.promises.resumable
            self._set_clocks()
        self._clocks.event(settled=connection.certain and ledger.progress > 0)

    def receive_eof(self, now: float) -> Sequence[Any]:
        """The body ended cleanly. Returns the events that its end completed."""
        self._expect("receive_eof")
        items, silent = self._reading.at_end(judged=self._turn is not None)
        if items or silent:
            items = self._enter(items, silent)
        if self._turn is None:
            error = self._reading.connection.decoder.error
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
        self._todo.append(act.Disconnect())
        reason = INSIDE if inside else "connection lost"
        self._follow(self._ending.on_cut(reason, now, error, Leave.INSIDE if inside else Leave.LOST), now)

    def read_timed_out(self, now: float, error: BaseException | None = None) -> None:
        """The time that `before_read()` gave has passed."""
        self._expect("read_timed_out")
        self._todo.append(act.Disconnect())
        self._follow(self._ending.on_clock(self._clocks.ran_out(), now, error), now)

    # --- bytes that are passed on unread

    def skimmer(self) -> Skimmer | None:
        """For a driver that passes bytes through: finds events that need not be read. `None`: read every event."""
        return self._reading.skimmer() if self.calm else None

    def settle(self, *, leaving: bool = True) -> None:
        """
        Read what was skimmed. `latest` then holds the newest of these events, which were already handed out.

        Args:
            leaving: What comes next is read normally, so the front of an unfinished event is read too.
        """
        if (unread := self._reading.unread) is not None:
            unread.settle(leaving=leaving)
            if self._ledger.problem is not None:
                self._turn = plan.Problem()

    def take_back(self, chunk: bytes) -> None:
        """The chunk skimmed last is not handed out after all. The connection has to end."""
        if (unread := self._reading.unread) is not None:
            unread.take_back(chunk)

    def take_carried(self) -> bytes:
        """Bytes of the previous connection that belong before the first event of this one."""
        return self._reading.take_carried()

    # --- from one connection to the next

    def _lose_connection(self, now: float, reason: str, error: BaseException | None, *, checked: bool = False) -> None:
        self._move(Phase.BETWEEN)
        if (retry := getattr(self._reading.connection.decoder, "retry", None)) is not None:
            self._budget.server_retry(retry)
        self._account.lost(reason, error, self._ledger, now, seconds=self._clocks.limit(reason), checked=checked)

    def _wait(self, wait: plan.Wait, now: float) -> None:
        left = self._clocks.left(now)
        seconds = wait.seconds if left is None else min(wait.seconds, max(left, 0.0))
        self._account.waits(wait, seconds)
        # The next routine answer may take long. A sleep, even of no length, saves what was taken.
        if seconds > 0 or (wait.follows is None and self.settings.saving):
            self._todo.append(act.Sleep(seconds))
        self._todo.append(wait.then)

    def _restart(self, seconds: float, now: float) -> None:
        if self.protocol is not None:
            self._start_over(anew=True)
        self.requests.start_over()
        self._ending.restart()
        self.requests.sync()
        self._wait(plan.Wait(seconds, plan.Send(self.requests.first(), resuming=False)), now)

    def _start_over(self, *, anew: bool = False) -> None:
        self._ending.start_over()
        self._reading.start_over()
        self.state.forget()
        self._checkpoints.start_over()
        self._account.count_events(self._ledger.fresh)
        self.notices.append(note.Restarted(0))
        self._ledger.restart(offset=0, anew=anew)

    # --- side requests

    def _ask(self, ask: plan.Ask, now: float) -> None:
        match self._side.send(ask, now):
            case act.Fetch() as fetch:
                self._account.then("fetch" if ask.purpose == "snapshot" else "check")
                self._todo.append(fetch)
            case found:
                self._follow(found, now)

    def receive_answer(self, answer: Answer, now: float) -> None:
        """The whole answer to a `Fetch`."""
        self._expect("receive_answer")
        if self._side.purpose == "status":
            self._judge_head(answer.body, now)
            return
        match self._side.on_answer(answer):
            case Backfill() as page:
                self._on_backfill(page)
            case Snapshot() as snapshot:
                self._on_snapshot(snapshot)
            case found:
                if self._side.purpose == "backfill":
                    self._todo.append(act.Disconnect())
                self._follow(found, now)

    def fetch_failed(self, error: BaseException, now: float, *, inside: bool = False) -> None:
        """A `Fetch` brought no whole answer. `inside`: as in `read_failed()`."""
        self._expect("fetch_failed")
        if self._clocks.expired(now):
            self._todo.append(act.Disconnect())
            self._fail(self._clocks.deadline_error(), error)
        elif self._side.purpose != "status":
            if self._side.purpose == "backfill":
                self._todo.append(act.Disconnect())
            self._follow(self._side.on_failure(error, inside=inside), now)
        elif inside and self.requests.may_repeat():
            # The network did not fail, so repeat the request: the explanation may change the verdict.
            self._todo.append(act.Disconnect())
            self._lose_connection(now, INSIDE, error)
            self._wait(self._reconnecting.again(Leave.INSIDE), now)
        else:
            # The status is known; only the explanation is missing.
            self._judge_head(b"", now)

    def _on_backfill(self, page: Backfill) -> None:
        """Enter a page of history: events from the time without a connection come before live ones."""
        if page.events and (items := self._enter(page.events)):
            self._todo.append(act.Deliver(items))
        if self._turn is None:
            self._todo.append(plan.TurnPage(page))
        else:
            # The turn that the page caused comes first. If that is a gap that is accepted, the history continues after it.
            self._side.set_aside(plan.TurnPage(page))

    def _turn_page(self, page: Backfill, now: float) -> None:
        match self._side.after_page(page):
            case None:
                self._move(Phase.READING)
            case plan.Ask() as ask:
                self._ask(ask, now)
            case left:
                self._todo.append(act.Disconnect())
                self._follow(left, now)

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        """Deliver the stored result in place of the lost rest."""
        if snapshot.reset:
            self._start_over()
        self._account.count_events(self._ledger.fresh)
        self._reading.open_answer(resuming=False, asking=False, stored=True)
        if items := self._reading.enter_stored(snapshot.events):
            self._saving.delivered(items)
            self._on_progress()
            self._todo.append(act.Deliver(items))
        if self._ledger.problem is not None:
            self._todo.append(plan.Problem())
        elif snapshot.outcome is not None:
            self._todo.append(plan.Done(snapshot.outcome))
        else:
            # A snapshot that brought nothing new was a failed attempt.
            self._todo.append(plan.AfterReset() if snapshot.reset else plan.GoOn("snapshot"))

    # --- ends

    def _finish(self, outcome: Outcome, *, verified: bool) -> None:
        self._hand_over_held()
        self._move(Phase.BETWEEN)
        self._ending.finish(outcome, verified=verified)
        self._account.finished(outcome, self._ledger, asking=self.requests.asking)
        self._todo.append(act.Finish(outcome))

    def _fail(self, error: ResumableStreamError, cause: BaseException | None = None) -> None:
        if self._phase is Phase.READING or not self._ledger.refetch:
            self._hand_over_held()
        # Otherwise the connection was lost, and held events will come again after the position that the error carries.
        self._move(Phase.BETWEEN)
        if cause is not None and error.__cause__ is None:
            error.__cause__ = cause
        self._error = error

    def _hand_over_held(self) -> None:
        """Nothing more will come, so events held as possible repeats are new."""
        if items := self._ledger.release():
            self._saving.delivered(items)
            self._todo.append(act.Deliver(items))
