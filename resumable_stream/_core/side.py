"""
Requests beside the stream: how the run stands, its stored result, its history.

One at a time. What their answers mean is the protocol's to say; here it becomes a `Next`, or the next request.
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

# A million events in the usual pages of 1,000: more than that is a server whose pages never end.
PAGES: Final = 1_000
# Before a stream is given up, its run is asked about so many times: a protocol may believe a status only when it comes twice.
LAST_WORDS: Final = 2


@dataclass(frozen=True, slots=True)
class Exhausted:
    """Nobody knows more: the stream is given up."""

    error: RetriesExhausted


class Side:
    """
    Args:
        requests: Those of the stream.

    Attributes:
        purpose: Of the latest request beside the stream.
        pages: Of the history that were asked for, on this connection.
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
        """Now the protocol is known."""
        self._protocol = protocol

    def status_request(self) -> Request | None:
        """Ask how the run stands; `None`: nobody knows."""
        protocol, requests = self._protocol, self._requests
        assert protocol is not None
        requests.sync()
        request = protocol.status_request(requests.state)
        if request is None and isinstance(found := protocol.on_clean_close(requests.state), verdict.Verify):
            request = found.request
        return request

    def snapshot_request(self) -> Request | None:
        """Ask for the stored result; `None`: there is none."""
        assert self._protocol is not None
        self._requests.sync()
        return self._protocol.snapshot_request(self._requests.state)

    def on_verified(self, answer: Answer) -> verdict.Verdict:
        """
        What the provider says of its run.

        That it is over is believed after the rest was asked for in vain; until then it is a `Resume`.
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
        """The request once more, from where the stream stands now."""
        return self.snapshot_request() if purpose == "snapshot" else self.status_request()

    # --- before giving up

    def last_request(self, exhausted: RetriesExhausted) -> Request | None:
        """
        Ask how the run stands before the stream is given up; `None`: there is nobody to ask.

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
        The answer to the last question. Only an end, or a result that can be read instead, changes anything.

        Args:
            answer: `None`: there was none, or none that says anything.
        """
        exhausted, state = self._exhausted, self._requests.state
        assert exhausted is not None
        if answer is not None:
            before = dict(state.extra), state.over
            match self.on_verified(answer):
                case verdict.Finished() | verdict.Lost(stored=True) as found:
                    return found
                case verdict.Resume() if (state.extra, state.over) != before:
                    # It says that the run is over, and has to say so again.
                    if (request := self.last_request(exhausted)) is not None:
                        return request
        # Another process may ask in peace: what was noted in haste does not travel in the checkpoint.
        state.extra, state.over = self._before
        return Exhausted(exhausted)
