"""
Side requests: for the run's status, its stored result, or its history.

They are sent one at a time. The protocol interprets their answers; this module turns that into a `Next`, or into events to enter.
"""

from __future__ import annotations

from typing import Final

from .._contract import Answer, Backfill, Backfilled, Claim, Notes, Request, ResumeProtocol, Snapshot, Stored, Verified
from .._contract import verdicts as verdict
from .._errors import CursorExpired, ResumableStreamError, RetriesExhausted
from . import actions as act
from .clocks import Clocks
from .plan import INSIDE, Ask, AskAgain, GoOn, Leave, Next, NoWayBack, Purpose, Stop, TryAgain, TurnPage
from .requests import Requests
from .settings import Settings

__all__ = ["PAGES", "Side"]

# Enough for a provider's error document.
ERROR_BODY: Final = 64 * 1024
# Enough for a million events in pages of the usual 1,000. A server with more pages than that never ends.
PAGES: Final = 1_000
# How often the run's status is requested before giving up: a protocol may believe a status only if it comes twice.
LAST_WORDS: Final = 2


class Side:
    """
    Attributes:
        purpose: Purpose of the latest side request.
    """

    def __init__(self, protocol: ResumeProtocol, requests: Requests, clocks: Clocks, settings: Settings) -> None:
        self.purpose: Purpose = "status"
        self._protocol = protocol
        self._requests = requests
        self._clocks = clocks
        self._settings = settings
        self._aside: tuple[TurnPage, ...] = ()
        self._pages = 0
        """Pages of history requested on this connection."""
        self._last_words = 0
        self._exhausted: RetriesExhausted | None = None
        self._before: Notes | None = None

    # --- requests

    def explanation(self, now: float) -> act.Fetch:
        """Read the rest of the current response: the body of an error status, which explains it."""
        self.purpose = "status"
        return act.Fetch(None, self._clocks.error_body(now), ERROR_BODY)

    def send(self, ask: Ask, now: float) -> act.Fetch | NoWayBack | Stop:
        """Send a request, or say why it cannot be."""
        if not ask.request.sendable:
            return NoWayBack("an id that cannot be sent")
        try:
            self._requests.check_origin(ask.request)
        except ResumableStreamError as error:
            return Stop(error)
        self.purpose = ask.purpose
        large = ask.purpose in ("snapshot", "backfill")
        limit = self._settings.limits.event_bytes if large else ERROR_BODY * 16
        return act.Fetch(ask.request, self._clocks.side(now), limit)

    def send_again(self, again: AskAgain) -> Ask | NoWayBack:
        """The request for the same purpose, from the stream's current position."""
        request = self.snapshot_request() if again.purpose == "snapshot" else self.status_request()
        return NoWayBack(again.reason, again.error) if request is None else Ask(again.purpose, request)

    def status_request(self) -> Request | None:
        """The request for the run's status; `None` if there is none."""
        protocol, requests = self._protocol, self._requests
        requests.sync()
        request = Verified.of(protocol).status_request(requests.state)
        if request is None and isinstance(found := protocol.on_clean_close(requests.state), verdict.Verify):
            request = found.request
        return request

    def snapshot_request(self) -> Request | None:
        """The request for the stored result; `None` if there is none."""
        self._requests.sync()
        return self._protocol.snapshot_request(self._requests.state)

    # --- answers

    def on_answer(self, answer: Answer) -> Next | verdict.Verdict | Snapshot | Backfill:
        """What follows from the whole answer to a request of ours, or the events to enter."""
        protocol, state, purpose = self._protocol, self._requests.state, self.purpose
        failed = answer.status in self._settings.statuses
        if purpose == "backfill":
            return Backfilled.of(protocol).on_backfill(answer, state)
        if purpose == "last":
            return self._on_last_words(None if failed else answer)
        if failed:
            return self._repeat(f"status {answer.status}")
        if purpose == "snapshot":
            match Stored.of(protocol).on_snapshot(answer, state) if answer.status < 400 else None:
                case None:
                    text = f"the stored result is not available either: the server answered {answer.status}"
                    return Stop(CursorExpired(text))
                case verdict.Retry(message):
                    return self._repeat(message or "the result is not ready")
                case snapshot:
                    return snapshot
        match self._on_verified(answer):
            case verdict.Resume():
                # After a silence, the status shows that the run is alive, so the silent connection was not a failed attempt.
                leave = Leave.NEUTRAL if purpose == "alive" else Leave.LOST
                return GoOn("closed before the end", leave, checked=True)
            case verdict.Retry(message):
                return self._repeat(message or f"status {answer.status}")
            case found:
                return found

    def on_failure(self, error: BaseException, *, inside: bool) -> Next | verdict.Verdict:
        """There was no whole answer. `inside`: the caller ended the request, not the network."""
        if self.purpose == "last" and not inside:
            return self._on_last_words(None)
        if self.purpose == "backfill":
            return GoOn(INSIDE, Leave.INSIDE, error) if inside else GoOn("history not read", error=error)
        if inside:
            return AskAgain(self.purpose, INSIDE, error)
        return self._repeat("status check failed", error)

    def _repeat(self, reason: str, error: BaseException | None = None) -> TryAgain:
        what = "the request for the stored result" if self.purpose == "snapshot" else "the status check"
        seen = f"failed: {type(error).__name__ if error is not None else reason}"
        return TryAgain(reason, error, AskAgain(self.purpose, reason, error), failed=f"{what} {seen}")

    def _on_verified(self, answer: Answer) -> verdict.Verdict:
        """
        Judge what the provider says about its run.

        A claim that the run is over is believed once the rest was requested in vain; until then it is a `Resume`.
        """
        state = self._requests.state
        found = Verified.of(self._protocol).on_verified(answer, state)
        if not isinstance(found, verdict.Over):
            if isinstance(found, verdict.Resume):
                state.over = None
            return found
        asked = 0
        if state.over is not None and state.over[:2] == (found.outcome, state.offset):
            asked = state.over.asked + 1
        state.over = Claim(found.outcome, state.offset, asked)
        if asked < found.asks:
            return verdict.Resume()
        return verdict.Lost(found.lost) if found.lost else verdict.Finished(found.outcome)

    # --- history

    def first_page(self) -> Ask | None:
        """The request for what happened before this connection was opened; `None` if the connection brings that itself."""
        self._aside, self._pages, state = (), 1, self._requests.state
        request = Backfilled.of(self._protocol).backfill_request(state) if state.resuming else None
        return None if request is None else Ask("backfill", request)

    def set_aside(self, *steps: TurnPage) -> tuple[TurnPage, ...]:
        """Set a page aside while what its events caused comes first. Returns what was set aside before."""
        before, self._aside = self._aside, steps
        return before

    def after_page(self, page: Backfill) -> Ask | GoOn | None:
        """Get the next page; `None`: that was the last, so read the live events."""
        if page.more is None:
            return None
        if self._pages >= PAGES:
            return GoOn(f"a history of more than {PAGES:,} pages")
        self._pages += 1
        return Ask("backfill", page.more)

    # --- before giving up

    def last_request(self, exhausted: RetriesExhausted) -> Ask | Stop:
        """
        Request the run's status before the stream is given up, if there is a request for it.

        The run may have ended although its stream can no longer be read.
        """
        state = self._requests.state
        if not state.resuming or self._last_words >= LAST_WORDS:
            return Stop(exhausted)
        if not self._last_words:
            self._before = state.notes()
        if (request := self.status_request()) is None:
            return Stop(exhausted)
        self._last_words += 1
        self._exhausted = exhausted
        return Ask("last", request)

    def _on_last_words(self, answer: Answer | None) -> Next | verdict.Verdict:
        """
        Judge the answer to the last request. Only an end, or a result that can be read instead, changes anything.

        Args:
            answer: The answer; `None` if there was none, or it says nothing.
        """
        exhausted, state = self._exhausted, self._requests.state
        assert exhausted is not None
        if answer is not None:
            before = state.notes()
            match self._on_verified(answer):
                case verdict.Finished() | verdict.Lost(stored=True) as found:
                    return found
                case verdict.Resume() if state.notes() != before:
                    # The provider says that the run is over, and has to repeat that.
                    if isinstance(again := self.last_request(exhausted), Ask):
                        return again
        # Do not put these last notes into the checkpoint, so that another process starts its own checks.
        assert self._before is not None
        state.go_back(self._before)
        return Stop(exhausted)
