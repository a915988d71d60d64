"""
How a stream ends (rule 7): what its events say about the end, and what follows from an event, a clock or a close.

Three things end a stream: an event that says so, a close that the protocol or its server vouches for, and a close after an event
that settled the outcome. Any other close is a cut, or leads to a question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias, assert_never

from .._contract import SENTINEL, Doubted, ResumeProtocol, Settled, Unproven, Verified, has_content, not_json
from .._contract import verdicts as verdict
from .._errors import StreamInterrupted
from .._events import Outcome
from . import plan
from .clocks import Clock, Clocks
from .ledger import HoleFound, Ledger, StartedOver
from .plan import Done, GoOn, Leave, Next, Stop
from .requests import Requests
from .settings import Settings
from .timeline import Timeline

__all__ = ["CONFIRMED", "Ending", "Marks"]

# Seconds. Rule 7c: a server that answers and closes within 5 s is not waiting for events.
QUICK: Final = 5.0
# Rule 7c: how many quick answers with new events are accepted. A server that sends a few events per request must be declared.
BELIEVED: Final = 3
# How many answers in a row may only restate the current state and close within 5 s: a slow run with a hasty proxy before it,
# or two servers that disagree. Any more count as failed attempts.
RESTATED: Final = 20
# Failed attempts to read what may follow a settled outcome. That is worth a second and a third attempt, but no long wait.
AFTER_SETTLED: Final = 3
# Enough for a million events in pages of the usual 1,000. A server with more pages than that never ends.
EMPTY_PAGES: Final = 1_000

Marks: TypeAlias = Sequence[tuple[Any, Settled]]
"""Events that say how the stream ends, in order."""
CONFIRMED: Final = Settled(Outcome.ENDED)
"""Marks an event that only says "over", which confirms the outcome claimed before."""


class Ending:
    """
    Attributes:
        outcome: How the stream ended; `None` while it runs.
        verified: The protocol, the server when asked, or the caller's `end=` vouches for `outcome`.
        settled: The outcome that an event settled, although more may follow.
        resumes_later: Only this reading has ended: its checkpoint can be used to read on.
        may_wait: The server may hold back the next answer until there is something to send.
        unproven: The verdict on an event of this connection that claimed the end without proof.
        disproved: An outcome was settled, but a piece of the answer followed.
        held: The marks of events that the ledger holds back. While there are any, every delivered event is checked.
    """

    def __init__(self, protocol: ResumeProtocol, ledger: Ledger, requests: Requests, clocks: Clocks, settings: Settings) -> None:
        self.outcome: Outcome | None = None
        self.verified = True
        self.settled: Outcome | None = None
        self.resumes_later = False
        self.may_wait = False
        self.unproven: Unproven | None = None
        self.disproved = False
        self.held: Marks = ()
        self._protocol = protocol
        self._ledger = ledger
        self._requests = requests
        self._clocks = clocks
        self._settings = settings
        self._settlements: Timeline[Outcome | None] = Timeline(settings.limits.window)
        self._claimed: Outcome | None = None
        """The outcome that events have claimed since `settled` was disproved, which alone proves nothing."""
        self._cursor_before: str | None = None
        """The cursor at the start of this connection."""
        self._asked_empty = False
        self._quick_answers = 0
        self._empty_pages = 0
        self._restated = 0
        self._failed_attempts = 0
        """To read what follows the event that settled the outcome."""

    def restore(self, settled: Outcome | None, outcome: Outcome | None, *, verified: bool) -> None:
        """The stream continues from a checkpoint, which holds these."""
        self.settled, self.outcome, self.verified = settled, outcome, verified

    def open_connection(self, *, stored: bool) -> None:
        """A new answer begins. `stored`: it is the stored result."""
        self._cursor_before = self._ledger.cursor
        if not stored:
            self.unproven = None

    def start_over(self) -> None:
        """What was delivered is void."""
        self.settled, self.held = None, ()
        self.disproved, self._claimed = False, None
        self._settlements.clear()

    def restart(self) -> None:
        """The first request is sent again."""
        self._quick_answers = 0
        self._asked_empty = False

    def finish(self, outcome: Outcome, *, verified: bool) -> None:
        """The stream has ended."""
        self.outcome, self.verified = outcome, verified

    # --- what events say

    def settle(self, marks: Marks, items: Sequence[Any]) -> bool:
        """
        Update the settled outcome from delivered events.

        Only a delivered event settles anything: not one beyond a gap, and not one that is still held back. A repeated event
        has already done so, and others may have followed it since.

        Args:
            marks: The events of the batch that say how the stream ends.
            items: The delivered events.

        Returns:
            Whether the outcome was settled, or is open again.
        """
        protocol, ledger = self._protocol, self._ledger
        marks = (*self.held, *marks)
        self.held = [mark for mark in marks if ledger.holds(mark[0])]
        said = {id(item): settled for item, settled in marks}
        turned = False
        for item in items:
            mark = said.get(id(item))
            before = self.settled
            if before is None and mark is None:
                continue
            # "Over" alone proves little: if one stream carries several answers, another may continue.
            if mark is CONFIRMED:
                mark = Settled(self._claimed) if before is None and self._claimed is not None else None
            doubted = self.disproved or before not in (None, Outcome.ENDED)
            if doubted and (mark is None or mark.outcome is not None) and has_content(protocol, item):
                self.disproved, self.settled = True, None
                self._claimed = mark.outcome if mark is not None else None
            elif mark is not None and (before is None or mark.outcome is not Outcome.ENDED):
                self.disproved, self._claimed = False, None
                self.settled = mark.outcome
            if self.settled is not before:
                self._settlements.changed(item.offset, before)
            turned = turned or (before is None) is not (self.settled is None)
        if len(self._settlements) > 1:
            self._settlements.forget(ledger.oldest(manual=self._settings.manual))
        return turned

    def is_settled(self, marks: Marks) -> bool:
        """Whether the outcome is known or claimed, including what the current batch has said so far."""
        if marks := (*self.held, *marks):
            return marks[-1][1].outcome is not None
        return self.settled is not None or self._claimed is not None

    def settled_at(self, offset: int) -> Outcome | None:
        """The outcome that was settled after `offset` events."""
        return self._settlements.at(offset, self.settled)

    def with_settled(self, end: Outcome) -> Outcome:
        """Prefer a settled outcome to `COMPLETED`: a marker that only says "over" does not make an incomplete answer whole."""
        return self.settled if end is Outcome.COMPLETED and self.settled is not None else end

    def by(self, turn: plan.Turn | None) -> Outcome | None:
        """The outcome that the latest event brought, even if the caller has not asked for the next event."""
        if isinstance(turn, plan.Ended) and self._ledger.problem is None:
            return self.with_settled(turn.outcome)
        return None

    def on_leaving(self, turn: plan.Turn | None, batch: Sequence[Any]) -> bool:
        """The caller leaves after the newest event. True: nothing obtainable is missed, which sets the outcome."""
        outcome = self.by(turn)
        as_settled = self.settled is not None and turn is None and not self.resumes_later and self._ledger.problem is None
        if outcome is None and as_settled:
            # Callers who know the API stop reading at its sentinel.
            sentinel = bool(batch) and batch[-1].data == SENTINEL
            outcome = self.settled if sentinel or not self._requests.resumable() else None
        if outcome is not None:
            self.finish(outcome, verified=True)
        return outcome is not None

    # --- what follows a settled outcome

    def wants_more(self, now: float) -> bool:
        """Whether what may follow a settled outcome (usage, `[DONE]`) should and can be requested."""
        return Doubted.of(self._protocol).resumes_settled and self._requests.resumable() and not self._clocks.expired(now)

    def gives_up(self, now: float) -> bool:
        """An attempt to read what follows the settled outcome failed. Returns whether it was the last one."""
        self._failed_attempts += 1
        return self._failed_attempts >= AFTER_SETTLED or not self.wants_more(now)

    # --- what a connection was worth

    def is_progress(self) -> bool:
        """Whether the events of this connection count as progress."""
        ledger = self._ledger
        return ledger.progress > 0 and not (ledger.only_resets and self._restated >= RESTATED)

    def only_restated(self, now: float) -> bool:
        """Bound how often we reconnect to a server that only repeats its current state and closes."""
        quick = self._ledger.only_resets and self._quick(now)
        self._restated = self._restated + 1 if quick else 0
        return self._restated > RESTATED

    def _quick(self, now: float) -> bool:
        return now - self._requests.answered_at <= QUICK

    # --- what follows

    def after(self, turn: plan.Turn, now: float, *, broken_off: str) -> Next:
        """
        What follows from a turn, once the events before it have been taken.

        Args:
            broken_off: If the body ended inside an event, or its document cannot be used: the reason. Otherwise `""`.
        """
        match turn:
            case plan.Ended(outcome):
                return Done(self.with_settled(outcome))
            case plan.Failed(error) | plan.Broken(error):
                return Stop(error)
            case plan.Unreadable(item):
                return Stop(not_json(item, self._ledger.offset))
            case plan.Unproven(found):
                return self._on_unproven(found, now)
            case plan.Refused(lost):
                return lost
            case plan.Problem() | plan.Announced():
                return self._on_problem()
            case plan.RanOut(clock):
                return self.on_clock(clock, now)
            case plan.Closed():
                return self._on_clean_close(now, broken_off)
            case _:
                assert_never(turn)

    def _on_problem(self) -> Next:
        """The ledger takes no more events."""
        match self._ledger.problem:
            case HoleFound():
                # Even after an event that settled the outcome, missing events are requested: the numbers promised them.
                return GoOn("gap")
            case StartedOver():
                # The server did not answer the question. The observer has been notified that the cursor was ignored.
                return Done(self.with_settled(Outcome.ENDED), verified=False)
            case problem:
                assert problem is not None
                return Stop(problem)

    def _on_unproven(self, found: Unproven, now: float) -> Next:
        """The sender claims to be done, and nothing before it proves that: treat it as a cut."""
        self.unproven = found
        if self._ledger.behind:
            return self.on_cut("closed inside the replay", now)
        self._requests.sync()
        protocol, state = self._protocol, self._requests.state
        return self.judge(Doubted.of(protocol).on_unproven(state) or protocol.on_clean_close(state), now)

    def on_clock(self, clock: Clock, now: float, error: BaseException | None = None) -> Next:
        """A clock ran out. `error`: how the read ended, if it did."""
        ledger = self._ledger
        if clock == "deadline" and self.settled is None:
            return Stop(self._clocks.deadline_error(), error, reason=clock)
        if ledger.progress == 0 and self.settled is None and self._requests.resumable():
            request = Verified.of(self._protocol).status_request(self._requests.state)
            if request is not None:
                return plan.Ask("alive", request, clock, error)
        # A restated state counts as a status check: the run is quiet, and this was not a failed attempt.
        return self.on_cut(clock, now, error, Leave.NEUTRAL if ledger.fresh > 0 and ledger.progress == 0 else Leave.LOST)

    def on_cut(self, reason: str, now: float, error: BaseException | None = None, leave: Leave = Leave.LOST) -> Next:
        """A connection broke off."""
        if self.settled is not None and not self.wants_more(now):
            return Done(self.settled)
        return GoOn(reason, leave, error)

    def _on_clean_close(self, now: float, broken_off: str) -> Next:
        """A body ended cleanly."""
        ledger = self._ledger
        if self.settled is not None and not (broken_off and self.wants_more(now)):
            return Done(self.settled)
        if broken_off:
            return self.on_cut(broken_off, now)
        if ledger.behind:
            return self._onward(now) if ledger.nearer else self.on_cut("closed inside the replay", now)
        self._requests.sync()
        return self.judge(self._protocol.on_clean_close(self._requests.state), now)

    def judge(self, found: verdict.Verdict, now: float) -> Next:
        """What a close means, by the protocol's verdict or the provider's answer."""
        match found:
            case verdict.Finished(outcome, more, verified):
                self.resumes_later = more
                return self._unverified() if outcome is Outcome.ENDED and not verified else Done(outcome)
            case verdict.Resume(routine=True, waits=waits):
                self.may_wait = waits
                return self._onward(now)
            case verdict.Ask():
                return self._ask(now)
            case verdict.Verify(request):
                return plan.Ask("verify", request, "closed")
            case verdict.Interrupted(reason):
                return plan.NoWayBack(reason)
            case verdict.Lost():
                return found
            case verdict.Reject(message):
                return Stop(StreamInterrupted(message or "the provider will not continue the stream", reason="rejected"))
        return self._rotated(now)

    def _rotated(self, now: float) -> Next:
        """A close that is not an end. A feed that was held open without events has made no progress, but has not failed."""
        ledger, protocol, requests = self._ledger, self._protocol, self._requests
        if ledger.fresh == 0 and not protocol.endless and requests.state.resuming:
            # The answer brought nothing new. If the provider can report the run's status, ask before counting a failure.
            requests.sync()
            if (request := Verified.of(protocol).status_request(requests.state)) is not None:
                return plan.Ask("verify", request, "closed before the end")
        held_open = protocol.endless and ledger.fresh == 0 and not self._quick(now)
        return GoOn("closed before the end", Leave.NEUTRAL if held_open else Leave.LOST)

    def _onward(self, now: float) -> Next:
        """
        Request the next answer as routine.

        An answer without anything new was a failed attempt, unless the cursor moved, or the server was meant to wait and did.
        """
        ledger = self._ledger
        moved = ledger.cursor != self._cursor_before
        self._empty_pages = self._empty_pages + 1 if moved and ledger.fresh == 0 else 0
        if self._empty_pages > EMPTY_PAGES:
            moved = False
        waited = self.may_wait and now - self._requests.sent_at > QUICK
        onward = ledger.fresh > 0 or ledger.nearer or moved or waited
        return GoOn("answered with nothing new", Leave.ONWARD if onward else Leave.LOST, moved=moved)

    def _ask(self, now: float) -> Next:
        """Rule 7c and e: the close may be an end or a cut."""
        ledger, requests = self._ledger, self._requests
        resuming, quick = requests.state.resuming, self._quick(now)
        if ledger.offset == 0 and ledger.cursor is None:
            if self._asked_empty:
                return Done(Outcome.ENDED)
            # A first answer without an event is a cut; a GET may be repeated once.
            self._asked_empty = True
            return GoOn("closed before the first event", Leave.NEUTRAL)
        if not requests.resumable():
            return self._unverified()
        if requests.asking and quick and ledger.fresh == 0:
            return Done(Outcome.ENDED)
        if resuming and not quick and ledger.fresh == 0:
            # Feeds rotate connections: one held open without events is neither progress nor failure.
            return GoOn("closed", Leave.QUIET)
        if resuming and ledger.fresh and not self._believes(quick):
            text = (
                "the server answers a few events at a time, so its end looks like a cut: "
                "name the end (end=…), or declare a feed (end='never')"
            )
            return Stop(StreamInterrupted(text, reason="an end looks like a cut"))
        return GoOn("closed", Leave.QUESTION)

    def _believes(self, quick: bool) -> bool:
        """Whether an answer with new events that closed cleanly is accepted as a piece of the stream."""
        self._quick_answers = self._quick_answers + 1 if quick and not self._ledger.numbered else 0
        return self._quick_answers <= BELIEVED

    def _unverified(self) -> Done:
        """Nothing vouches for a clean close. If there were ids, say why the end was not checked."""
        protocol, ledger, doubt = self._protocol, self._ledger, ""
        # For raw bytes, the cursor is only their count.
        if ledger.cursor is not None and protocol.framing != "raw":
            advice = [self._requests.why_not()]
            if not protocol.promises.has_end:
                advice.append("if the stream marks its end, name it (end=…)")
            why = "; ".join(filter(None, advice)) or "the protocol has no way to do so"
            events = f"{ledger.offset} event{'s' * (ledger.offset != 1)}"
            doubt = f"the stream closed cleanly after {events}, but it could not be checked whether that was its end: {why}"
        return Done(Outcome.ENDED, verified=False, doubt=doubt)
