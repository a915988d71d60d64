"""From one connection to the next (rules 2 and 3): what is requested, after which wait, and when the stream is given up."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .._notices import Then
from .budget import Budget
from .clocks import Clocks
from .ending import Ending
from .ledger import Ledger
from .plan import Done, GoOn, Leave, Next, NoWayBack, Send, Stop, TryAgain, Wait
from .requests import Requests
from .side import Side

__all__ = ["Reconnecting"]


@dataclass(slots=True)
class Reconnecting:
    """Decides by what the other parts know; it has no state of its own."""

    ledger: Ledger
    requests: Requests
    side: Side
    ending: Ending
    clocks: Clocks
    budget: Budget

    def after(self, left: GoOn, now: float) -> Next:
        """A connection was left, and there is more to come."""
        ledger, leave, error = self.ledger, left.leave, left.error
        if self.clocks.expired(now):
            return Stop(self.clocks.deadline_error(), error)
        if left.moved:
            self.budget.progress()
        # A question whose answer was cut is asked again.
        unanswered = self.requests.asking and ledger.fresh == 0 and (error is None or leave is Leave.INSIDE)
        send = self.requests.next(asking=leave in (Leave.QUESTION, Leave.QUIET) or unanswered)
        if send is None:
            return NoWayBack(left.reason, error)
        if not isinstance(send, Send):
            return replace(send, cause=error)
        if leave is Leave.LOST and (not ledger.progress or self.ending.only_restated(now)):
            return self.try_again(TryAgain(left.reason, error, send), now)
        answered = leave in (Leave.ONWARD, Leave.QUESTION)
        seconds = self.budget.wait(leave, free=(ledger.fresh if answered else ledger.progress) > 0)
        follows: Then | None = "ask" if leave is Leave.QUESTION else None if leave is Leave.ONWARD else "reconnect"
        return Wait(seconds, send, follows=follows)

    def unanswered(self, reason: str, error: BaseException, now: float, *, sent: bool, timed_out: bool, inside: bool) -> Next:
        """
        A request of the stream brought no response.

        Args:
            sent: The server may have received it (rule 9a).
            timed_out: Nothing came for as long as a head may take.
            inside: The caller ended it, not the network.
        """
        if sent:
            self.requests.arrived()
        if self.clocks.expired(now):
            return Stop(self.clocks.deadline_error(), error)
        if sent and not self.requests.may_repeat():
            return NoWayBack(reason, error)
        if timed_out and self.ending.may_wait and self.requests.state.resuming:
            # An answer that is held back until there is something to send cannot show that the connection is alive.
            return self.again(Leave.NEUTRAL)
        if inside:
            return self.again(Leave.INSIDE)
        return self.try_again(TryAgain(reason, error), now)

    def again(self, leave: Leave) -> Wait:
        """The latest request again, after an attempt that brought nothing and did not fail."""
        return Wait(self.budget.wait(leave), self.requests.again())

    def try_again(self, failed: TryAgain, now: float) -> Next:
        """After a failed attempt, wait as the policy says, or give up."""
        settled, budget = self.ending.settled, self.budget
        if settled is not None and self.ending.gives_up(now):
            return Done(settled)
        if (seconds := budget.failed(now, failed.error)) is not None:
            return Wait(seconds, failed.again or self.requests.again(), budget.next_attempt, failed.failed)
        if settled is not None:
            return Done(settled)
        # If the server cannot be reached, or the status check itself failed, there is no point in asking.
        nobody = failed.failed or failed.reason == "cannot connect"
        exhausted = budget.exhausted(failed.reason, failed.error)
        return Stop(exhausted) if nobody else self.side.last_request(exhausted)

    def after_reset(self) -> Next:
        """The run continues and what was delivered is void, as after a restart."""
        seconds, send = self.budget.restart(), self.requests.next()
        if seconds is None or send is None:
            return Stop(self.budget.too_many("resets"))
        return Wait(seconds, send) if isinstance(send, Send) else send
