"""
Side requests: for the run's status, its stored result, or its history.

They are sent one at a time. The protocol interprets their answers; this module turns that into a `Next` or the next request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .._contract import Answer, Claim, Request, ResumeProtocol
from .._contract import verdicts as verdict
from .._errors import RetriesExhausted
from .plan import Purpose
from .requests import Requests

__all__ = ["PAGES", "Exhausted", "Side"]

# Enough for a million events in pages of the usual 1,000. A server with more pages than that never ends.
PAGES: Final = 1_000
# How often the run's status is requested before giving up: a protocol may believe a status only if it comes twice.
LAST_WORDS: Final = 2


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The status brought nothing new: the stream is given up."""

    error: RetriesExhausted


class Side:
    """
    Args:
        requests: The stream's requests.

    Attributes:
        purpose: Purpose of the latest side request.
        pages: Pages of history requested on this connection.
    """

    def __init__(self, requests: Requests) -> None:
        self.purpose: Purpose = "status"
        self.pages = 0
        self._requests = requests
        self._protocol: ResumeProtocol | None = None
        self._last_words = 0
        self._exhausted: RetriesExhausted | None = None
        self._before: tuple[dict[str, str], Claim | None] = {}, None

    def adopt(self, protocol: ResumeProtocol) -> None:
        """The protocol is now known."""
        self._protocol = protocol

    def status_request(self) -> Request | None:
        """The request for the run's status; `None` if there is none."""
        protocol, requests = self._protocol, self._requests
        assert protocol is not None
        requests.sync()
        request = protocol.status_request(requests.state)
        if request is None and isinstance(found := protocol.on_clean_close(requests.state), verdict.Verify):
            request = found.request
        return request

    def snapshot_request(self) -> Request | None:
        """The request for the stored result; `None` if there is none."""
        assert self._protocol is not None
        self._requests.sync()
        return self._protocol.snapshot_request(self._requests.state)

    def on_verified(self, answer: Answer) -> verdict.Verdict:
        """
        Judge what the provider says about its run.

        A claim that the run is over is believed once the rest was requested in vain; until then it is a `Resume`.
        """
        protocol, state = self._protocol, self._requests.state
        assert protocol is not None
        found = protocol.on_verified(answer, state)
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

    def request_again(self, purpose: Purpose) -> Request | None:
        """The request again, from the stream's current position."""
        return self.snapshot_request() if purpose == "snapshot" else self.status_request()

    # --- before giving up

    def last_request(self, exhausted: RetriesExhausted) -> Request | None:
        """
        The request for the run's status before the stream is given up; `None` if there is none to make.

        The run may have ended although its stream can no longer be read.
        """
        if self._protocol is None or not self._requests.state.resuming or self._last_words >= LAST_WORDS:
            return None
        if not self._last_words:
            state = self._requests.state
            self._before = dict(state.extra), state.over
        if (request := self.status_request()) is not None:
            self._last_words += 1
            self._exhausted = exhausted
        return request

    def on_last_words(self, answer: Answer | None) -> verdict.Verdict | Request | Exhausted:
        """
        Judge the answer to the last request. Only an end, or a result that can be read instead, changes anything.

        Args:
            answer: The answer; `None` if there was none, or it says nothing.
        """
        exhausted, state = self._exhausted, self._requests.state
        assert exhausted is not None
        if answer is not None:
            before = dict(state.extra), state.over
            match self.on_verified(answer):
                case verdict.Finished() | verdict.Lost(stored=True) as found:
                    return found
                case verdict.Resume() if (state.extra, state.over) != before:
                    # The provider says that the run is over, and has to repeat that.
                    if (request := self.last_request(exhausted)) is not None:
                        return request
        # Do not put these last notes into the checkpoint, so that another process starts its own checks.
        state.extra, state.over = self._before
        return Exhausted(exhausted)
