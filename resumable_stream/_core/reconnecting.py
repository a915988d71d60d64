"""From one connection to the next (rules 2 and 3): what is requested, after which wait, and when the stream is given up."""

from __future__ import annotations

from .budget import Budget
from .ending import Ending
from .ledger import Ledger
from .plan import Ask, Done, GoOn, Leave, NoWayBack, Onward, Send, Stop, TryAgain, Wait
from .requests import Requests
from .side import Side

__all__ = ["Reconnecting"]


class Reconnecting:
    """
    Args:
        ledger: The stream's events.
        requests, side: The stream's requests.
        ending: What is known about the stream's end.
        budget: Counts the attempts.
    """

    def __init__(self, ledger: Ledger, requests: Requests, side: Side, *, ending: Ending, budget: Budget) -> None:
        self._ledger = ledger
        self._requests = requests
        self._side = side
        self._ending = ending
        self._budget = budget

    def after(self, left: GoOn, now: float) -> Wait | Onward | Done | Ask | NoWayBack | Stop:
        """A connection was left, and there is more to come."""
        ledger, leave, error = self._ledger, left.leave, left.error
        # A question whose answer was cut is asked again.
        unanswered = self._requests.asking and ledger.fresh == 0 and (error is None or leave is Leave.INSIDE)
        send = self._requests.next(asking=leave in (Leave.QUESTION, Leave.QUIET) or unanswered)
        if send is None:
            return NoWayBack(left.reason, error)
        if not isinstance(send, Send):
            return Stop(send, error)
        if leave is Leave.LOST and (not ledger.progress or self._ending.only_restated(now)):
            return self.try_again(TryAgain(left.reason, error, send), now)
        if leave is Leave.ONWARD:
            return Onward(self._budget.wait(leave, free=ledger.fresh > 0), send)
        if leave is Leave.QUESTION:
            return Wait(self._budget.wait(leave, free=ledger.fresh > 0), send, follows="ask")
        return Wait(self._budget.wait(leave, free=ledger.progress > 0), send)

    def unanswered(
        self, reason: str, error: BaseException, now: float, *, sent: bool, timed_out: bool, inside: bool
    ) -> Wait | Done | Ask | NoWayBack | Stop:
        """
        A request of the stream brought no response.

        Args:
            sent: The server may have received it (rule 9a).
            timed_out: Nothing came for as long as a head may take.
            inside: The caller ended it, not the network.
        """
        if sent and not self._requests.may_repeat():
            return NoWayBack(reason, error)
        if timed_out and self._ending.may_wait and self._requests.state.resuming:
            # An answer that is held back until there is something to send cannot show that the connection is alive.
            return self.again(Leave.NEUTRAL)
        if inside:
            return self.again(Leave.INSIDE)
        return self.try_again(TryAgain(reason, error), now)

    def again(self, leave: Leave) -> Wait:
        """The latest request again, after an attempt that brought nothing and did not fail."""
        return Wait(self._budget.wait(leave), self._requests.again())

    def try_again(self, failed: TryAgain, now: float) -> Wait | Done | Ask | Stop:
        """After a failed attempt, wait as the policy says, or give up."""
        settled, budget = self._ending.settled, self._budget
        if settled is not None and self._ending.gives_up(now):
            return Done(settled)
        if (seconds := budget.failed(now, failed.error)) is not None:
            return Wait(seconds, failed.again or self._requests.again(), budget.next_attempt, failed.failed)
        if settled is not None:
            return Done(settled)
        # If the server cannot be reached, or the status check itself failed, there is no point in asking.
        nobody = failed.failed or failed.reason == "cannot connect"
        exhausted = budget.exhausted(failed.reason, failed.error)
        return Stop(exhausted) if nobody else self._side.last_request(exhausted)

    def after_reset(self) -> Wait | Stop:
        """The run continues and what was delivered is void, as after a restart."""
        seconds, send = self._budget.restart(), self._requests.next()
        if seconds is None or send is None:
            return Stop(self._budget.too_many("resets"))
        return Wait(seconds, send) if isinstance(send, Send) else Stop(send)
