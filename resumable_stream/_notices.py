"""
What an observer is told: a closed set of small frozen values.

The `str()` of a notice is a sentence for a person: that is what the log shows. Its `repr()` is the value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ._events import Gap, Outcome

__all__ = [
    "Connected",
    "CursorIgnored",
    "Disconnected",
    "DuplicateDropped",
    "EndUnverified",
    "Finished",
    "GapFound",
    "Lost",
    "Notice",
    "NumberOutOfOrder",
    "NumberingStopped",
    "Restarted",
    "Retrying",
    "Then",
]

Then = Literal["reconnect", "ask", "check", "fetch", "restart", "end", "give up"]
_NEXT: dict[Then, str] = {
    "reconnect": "reconnecting",
    "ask": "asking whether there is more",
    "check": "checking the run's status",
    "fetch": "fetching the stored result",
    "restart": "starting over",
    "end": "the outcome was already known",
    "give up": "giving up",
}
# `Disconnected.reason` as a person says it. A clock's reason takes the seconds that it ran.
_WHY: dict[str, str] = {
    "connection lost": "the connection was lost",
    "interrupted from inside": "the connection was closed: the read was interrupted from inside this process",
    "cannot connect": "no connection",
    "idle": "no byte for {0:g} s",
    "stall": "no event for {0:g} s",
    "first_event": "no first event within {0:g} s",
    "deadline": "the deadline of {0:g} s has passed",
    "gap": "events are missing",
    "closed": "the server closed the connection cleanly",
    "closed before the end": "the server closed the connection cleanly before the end",
    "closed before the first event": "the server closed the connection cleanly",
    "closed inside an event": "the server closed the connection inside an event",
    "closed inside the replay": "the server closed the connection inside its replay",
    "snapshot": "the run continues after its stored result",
}
# A cursor is as long as the server likes.
_SHOWN = 60


def _place(offset: int, cursor: str | None) -> str:
    """Where the stream stands, in words."""
    if not offset:
        return "before the first event" if cursor is None else f"at the cursor {_short(cursor)}"
    return f"after event {offset:,}" + (f" (cursor {_short(cursor)})" if cursor is not None else "")


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…")


@dataclass(frozen=True, slots=True)
class _Notice:
    """
    What all notices have.

    Attributes:
        stream: Which stream it is about: method, path, the provider's id once known, and a number of this process.
            Like the other attributes that only explain, it does not count when notices are compared.
    """

    stream: str = field(default="", kw_only=True, compare=False)


@dataclass(frozen=True, slots=True)
class Connected(_Notice):
    """
    A response of the stream is being read.

    Attributes:
        status: HTTP status code.
        resuming: It was asked for what follows `cursor`, not for the stream's start.
        cursor: Where it goes on.
        offset: Events delivered so far.
        offline: Seconds since the connection was lost; `None` when none was.
        asking: It was asked whether there is more, after a clean close.
    """

    status: int
    resuming: bool
    cursor: str | None
    offset: int = field(default=0, kw_only=True, compare=False)
    offline: float | None = field(default=None, kw_only=True, compare=False)
    asking: bool = field(default=False, kw_only=True, compare=False)

    def __str__(self) -> str:
        where = f"continuing {_place(self.offset, self.cursor)}" if self.resuming else "from the start"
        if self.offline is None:
            return f"connected, status {self.status}, {where}"
        if self.asking:
            return f"the server answered when asked for more, {_place(self.offset, self.cursor)}"
        return f"back after {self.offline:.1f} s, {where}"


@dataclass(frozen=True, slots=True)
class Disconnected(_Notice):
    """
    A connection is over, or could not be made, before the stream has ended.

    Attributes:
        reason: Why, in a few words: `"connection lost"`, `"idle"`, `"closed before the end"`, `"status 503"` …
        error: The exception's type, never its text.
        offset, cursor: Where the stream stands: events delivered so far, and what the last of them can be resumed from.
        seconds: Of a clock that ran out: how long it ran.
        then: What happens next: another connection (`"reconnect"`), one that asks whether there is more (`"ask"`), a question
            for the run's status (`"check"`) or its stored result (`"fetch"`), the first request again (`"restart"`); the end,
            which was known (`"end"`); or an exception (`"give up"`).
        checked: The run's status was asked for, and says that it goes on. The notice before this one has the loss itself.
    """

    reason: str
    error: str | None = None
    offset: int = field(default=0, kw_only=True, compare=False)
    cursor: str | None = field(default=None, kw_only=True, compare=False)
    seconds: float | None = field(default=None, kw_only=True, compare=False)
    then: Then = field(default="reconnect", kw_only=True, compare=False)
    checked: bool = field(default=False, kw_only=True, compare=False)

    def __str__(self) -> str:
        if self.checked:
            return f"the run continues, as its status shows, {_place(self.offset, self.cursor)}; {_NEXT[self.then]}"
        why = _WHY.get(self.reason, self.reason)
        if "{0" in why:
            why = why.format(self.seconds) if self.seconds is not None else f"the {self.reason} clock ran out"
        elif self.reason.startswith("status "):
            why = f"the server answered with {self.reason}"
        elif self.error is not None:
            why = f"{why} ({self.error})"
        return f"{why} {_place(self.offset, self.cursor)}; {_NEXT[self.then]}"


@dataclass(frozen=True, slots=True)
class Retrying(_Notice):
    """
    The next request follows in `wait` seconds.

    Attributes:
        attempt: 0 for the prompt reconnect after progress, 1 for the first attempt after a failed one.
        wait: Seconds.
        attempts: How many the retry policy allows; `None` where it does not count them.
        reason: What failed, where that was not a connection: `"status check: status 503"`.
    """

    attempt: int
    wait: float
    attempts: int | None = field(default=None, kw_only=True, compare=False)
    reason: str = field(default="", kw_only=True, compare=False)

    def __str__(self) -> str:
        failed = f"{self.reason}; " if self.reason else ""
        return f"{failed}retrying {self.when}"

    @property
    def when(self) -> str:
        """In how many seconds, and which attempt that is."""
        wait = f"in {self.wait:.1f} s" if self.wait >= 0.05 else "at once"
        if not self.attempt:
            return wait
        of = f" of {self.attempts}" if self.attempts is not None else ""
        return f"{wait}, attempt {self.attempt}{of}"


@dataclass(frozen=True, slots=True)
class GapFound(_Notice):
    """Events are missing. `asked_again`: they are being asked for; otherwise the hole stays."""

    gap: Gap
    asked_again: bool

    def __str__(self) -> str:
        gap = self.gap
        seen = f" (expected {gap.expected}, received {gap.received})" if gap.expected is not None else ""
        after = f" after cursor {_short(gap.after)}" if gap.after is not None else ""
        return f"Gap: events are missing{after}{seen}; " + ("requesting them again" if self.asked_again else "the gap remains")


@dataclass(frozen=True, slots=True)
class DuplicateDropped(_Notice):
    """The server sent an event again."""

    id: str | None

    def __str__(self) -> str:
        return f"dropped a duplicate{f' (id {_short(self.id)})' if self.id is not None else ''}"


@dataclass(frozen=True, slots=True)
class NumberingStopped(_Notice):
    """Ids that looked like a counter broke their own rule; gaps are no longer watched for."""

    expected: int
    received: str

    def __str__(self) -> str:
        seen = f"expected {self.expected}, received {_short(str(self.received))}"
        return f"Numbering stopped: the ids turned out not to be a counter ({seen}); gaps are no longer detected"


@dataclass(frozen=True, slots=True)
class NumberOutOfOrder(_Notice):
    """An event has a number that was used before, on a connection that replayed nothing. It was delivered all the same."""

    expected: int
    received: int

    def __str__(self) -> str:
        return f"Number out of order: expected {self.expected}, received {self.received}; the event was delivered anyway"


@dataclass(frozen=True, slots=True)
class CursorIgnored(_Notice):
    """The server answered a resume with the stream's beginning."""

    def __str__(self) -> str:
        return "Cursor ignored: the server answered a resume with the stream's beginning"


@dataclass(frozen=True, slots=True)
class Lost(_Notice):
    """The rest of the stream cannot be had by resuming."""

    message: str

    def __str__(self) -> str:
        return f"Lost: {self.message}"


@dataclass(frozen=True, slots=True)
class Restarted(_Notice):
    """What was delivered is void from `offset` on; the stream starts again there."""

    offset: int

    def __str__(self) -> str:
        return f"Restarted: everything delivered from event {self.offset + 1:,} on is void; the stream starts again there"


@dataclass(frozen=True, slots=True)
class EndUnverified(_Notice):
    """The stream closed cleanly, has ids, and could not be asked whether that was its end: what came may be a part of it."""

    message: str

    def __str__(self) -> str:
        return f"End not verified: {self.message}"


@dataclass(frozen=True, slots=True)
class Finished(_Notice):
    """
    The stream has ended.

    Attributes:
        outcome: How.
        offset: Events delivered.
        after_loss: That became known without a connection, or by the answer to the question whether there is more.
    """

    outcome: Outcome
    offset: int = field(default=0, kw_only=True, compare=False)
    after_loss: bool = field(default=False, kw_only=True, compare=False)

    def __str__(self) -> str:
        return f"the stream has ended after {self.offset:,} event{'s' * (self.offset != 1)}: {self.outcome.value}"


Notice = (
    Connected
    | Disconnected
    | Retrying
    | GapFound
    | DuplicateDropped
    | NumberingStopped
    | NumberOutOfOrder
    | CursorIgnored
    | Lost
    | Restarted
    | EndUnverified
    | Finished
)
