"""
Endpoints that replay from the start: they have no cursor, so the position is the number of events delivered.

The replay is compared with what was delivered (count, and digests); a difference is `ReplayDiverged`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import urljoin

from .._contract import Explained, Head, Position, Replayed, Request, StreamState
from .._events import Item
from ._ends import End, _EndedProtocol

__all__ = ["ReplayFromZero"]


class ReplayFromZero(_EndedProtocol, Explained, Replayed):
    """
    An endpoint that sends the whole stream again on every GET.

    Args:
        end: What ends the stream, as for `LastEventID`; a clean close without it is a cut. `"close"`: a clean close is the end.
        resume: Where to GET it: a URL, absolute or relative to the first one, or a callable of the `StreamState`.
            `None`: the first request again, if it was a GET.
        keep: Names of headers of the first response that `resume` needs, as for `LastEventID`.

    >>> ReplayFromZero(end="[DONE]")
    <ReplayFromZero: resumable, has_end>
    """

    replays = True

    def __init__(
        self,
        *,
        end: End = "close",
        resume: str | Callable[[StreamState], str | None] | None = None,
        keep: Collection[str] = (),
    ) -> None:
        super().__init__(end, keep=keep)
        if self._end.mode in ("auto", "never"):
            raise ValueError(f"a replay from zero has an end: give its text, a callable or 'close', got {end!r}")
        self._resume = resume
        # The head is enough, unless a subclass looks at events.
        self.identifies_by_event = type(self).identify is not ReplayFromZero.identify

    def matches(self, request: StreamState, head: Head) -> bool:
        return False

    def identify(self, state: StreamState, source: Head | Item) -> None:
        self._identify(state, source)

    def position(self, event: Any) -> Position:
        return Position(None)

    def why_not(self, state: StreamState) -> str:
        if state.method == "GET":
            return ""
        what = "resume= returned no URL for this stream" if callable(self._resume) else f"pass {self.name}(resume=URL)"
        return f"a {state.method} is not repeated: {what}"

    def resume_request(self, state: StreamState) -> Request | None:
        target = self._resume(state) if callable(self._resume) else self._resume
        if target is not None:
            return Request(method="GET", url=urljoin(state.url, target))
        return Request(method="GET", url=state.url, repeat="all") if state.method == "GET" else None
