"""What stands in for a rest that cannot be requested (rule 8): the stream from its start, its stored result, or an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .._contract import verdicts as verdict
from .._errors import CursorExpired, NotResumable, ResumableStreamError, StreamInterrupted
from .account import Account
from .budget import Budget
from .ending import Ending
from .ledger import Ledger
from .plan import INSIDE, Ask, Done, Next, NoWayBack, Restart, Stop
from .requests import Requests
from .settings import Settings
from .side import Side

__all__ = ["Lost"]

TAKEN_ALONG: Final = (
    "Something in this process interrupted the read (a cancellation or timeout around it, or a signal), which closes the "
    "connection. To limit how long a read may take, pass timeouts=; to poll, read in a separate task or thread and wait for it"
)


@dataclass(slots=True)
class Lost:
    """Decides by what the other parts know; it has no state of its own."""

    ledger: Ledger
    requests: Requests
    side: Side
    ending: Ending
    budget: Budget
    account: Account
    settings: Settings

    def after_cut(self, cut: NoWayBack) -> Next:
        """The stream was cut, and there is no request for the rest."""
        events, reason, error, unproven = self.ledger.offset, cut.reason, cut.error, self.ending.unproven
        seen = f"{reason}: {type(error).__name__}" if error is not None else reason
        if (refused := self.requests.refused) is not None and self.settings.on_lost == "raise":
            return Stop(refused, error)
        if unproven is not None:
            seen = unproven.text
        elif self.ending.disproved:
            seen += "; more of the answer came after the event that said how it ends, so that event proves nothing"
        text = f"the stream was interrupted after {events} event{'s' * (events != 1)} ({seen}) and cannot be resumed"
        if why := self.requests.why_not():
            text += f": {why}"
        if unproven is not None and unproven.advice:
            text += f". {unproven.advice}"
        if reason == INSIDE:
            text += f". {TAKEN_ALONG}"
        return self._instead(text, StreamInterrupted(text + self.settings.way_out, reason=reason), error)

    def after_refusal(self, lost: verdict.Lost) -> Next:
        """The server said that the rest is not available."""
        kind = CursorExpired if lost.expired else NotResumable
        return self._instead(lost.message, kind(lost.message + self.settings.way_out), stored=lost.stored)

    def _instead(
        self, text: str, failure: ResumableStreamError, error: BaseException | None = None, *, stored: bool = False
    ) -> Next:
        if self.ending.settled is not None:
            # The outcome was settled, possibly in another process; only details of the end are missing.
            return Done(self.ending.settled)
        self.account.lost_for_good(text)
        choice, requests = self.settings.on_lost, self.requests
        # A server that forgot a finished answer would be asked for all of it again and again.
        if choice == "restart" and not stored and not requests.asking and not requests.elsewhere:
            self.account.then("restart")
            seconds = self.budget.restart(error)
            return Stop(self.budget.too_many("restarts", error), error) if seconds is None else Restart(seconds)
        if (choice == "snapshot" or stored) and (request := self.side.snapshot_request()) is not None:
            return Ask("snapshot", request)
        return Stop(failure, error)
