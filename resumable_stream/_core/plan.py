"""
What a stream does next, as three closed sets of small frozen values. A plan of them can be printed, compared and tested.

- A `Turn` is what a batch, a clock or a close causes. It waits until the events before it have been taken.
- A `Next` is what follows from a turn, an answer or a failure. The parts decide it, and the machine carries it out.
- A `Step` is something that the machine itself does when `next()` reaches it, between the driver's actions.

`Leave` says how a connection is left: what the next one is for, and whether the last one counts as a failed attempt.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from .._contract import Backfill, Request
from .._contract import verdicts as verdict
from .._errors import ResumableStreamError
from .._events import Gap, Outcome
from .._notices import Then
from .clocks import Clock

__all__ = [
    "INSIDE",
    "AfterReset",
    "Announced",
    "Ask",
    "AskAgain",
    "Begin",
    "Broken",
    "Closed",
    "Done",
    "Ended",
    "Failed",
    "GoOn",
    "Leave",
    "Next",
    "NoWayBack",
    "Problem",
    "Purpose",
    "RanOut",
    "Refused",
    "Restart",
    "Send",
    "SleepUntil",
    "Step",
    "Stop",
    "TryAgain",
    "Turn",
    "TurnPage",
    "Unproven",
    "Unreadable",
    "Wait",
]

Purpose: TypeAlias = Literal["status", "verify", "alive", "last", "snapshot", "backfill"]
"""
What a side request is for.

- `"status"`: not a request of its own, but the body of an error status, which explains it.
- `"verify"`: is the stream complete? `"alive"`: is the run still running, although it is silent?
- `"last"`: what is the run's status, before the stream is given up?
- `"snapshot"`: the stored result. `"backfill"`: a page of what happened while nobody was connected.
"""


INSIDE: Final = "interrupted from inside"
"""The reason for a connection that was not ended by the network."""


class Leave(enum.Enum):
    """
    How a connection is left.

    Attributes:
        LOST: It was cut. Without progress it was a failed attempt.
        NEUTRAL: It was cut or ran dry, but is not a failed attempt although it brought nothing.
        INSIDE: The caller ended it. The next one follows at once.
        ONWARD: It was complete, and the next one is routine. Nothing was lost.
        QUESTION: It closed cleanly, and the next one asks whether there is more (rule 7c).
        QUIET: It was held open without events. The next one asks whether there is more, without hurry.
    """

    LOST = enum.auto()
    NEUTRAL = enum.auto()
    INSIDE = enum.auto()
    ONWARD = enum.auto()
    QUESTION = enum.auto()
    QUIET = enum.auto()


# --- turns ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ended:
    """The newest event ends the stream."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Failed:
    """What followed the newest event is an error, and ends the stream."""

    error: ResumableStreamError


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What followed should have been JSON, and is not."""

    item: Any


@dataclass(frozen=True, slots=True)
class Unproven:
    """The sender claims to be done, but no earlier event says so."""

    found: verdict.Unproven


@dataclass(frozen=True, slots=True)
class Refused:
    """The server refused our resume, in an event."""

    lost: verdict.Lost


@dataclass(frozen=True, slots=True)
class Announced:
    """The server reports that history was lost before `rest`. `silent`: moves of the cursor in `rest` without an event."""

    gap: Gap
    rest: Sequence[Any]
    silent: Sequence[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class RanOut:
    """A clock ran out."""

    clock: Clock


@dataclass(frozen=True, slots=True)
class Problem:
    """The ledger takes no more events: see `Ledger.problem`."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The decoder reads no more bytes."""

    error: ResumableStreamError


@dataclass(frozen=True, slots=True)
class Closed:
    """The body ended cleanly."""


Turn: TypeAlias = Ended | Failed | Unreadable | Unproven | Refused | Announced | RanOut | Problem | Broken | Closed


# --- what follows ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Done:
    """
    The stream has ended.

    Attributes:
        verified: The protocol, the server, or the caller's `end=` vouches for the outcome.
        doubt: Why the end could not be checked, for an observer; `""` if there is nothing to report.
    """

    outcome: Outcome
    verified: bool = True
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class Stop:
    """The stream fails. `reason`: why the connection is over, if the error is not about that."""

    error: ResumableStreamError
    cause: BaseException | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class GoOn:
    """
    There is more to come: leave this connection.

    Attributes:
        reason: Why the connection is over.
        leave: How it is left.
        error: What broke it.
        moved: The cursor moved, even if no event came. Each empty page also leaves fewer to read.
        checked: The status of the run was requested, and the run is still running.
    """

    reason: str
    leave: Leave = Leave.LOST
    error: BaseException | None = None
    moved: bool = False
    checked: bool = False


@dataclass(frozen=True, slots=True)
class NoWayBack:
    """The stream was cut and cannot be resumed. `reason`: why the connection is over."""

    reason: str
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Restart:
    """Request the stream from its start, after so many seconds. What was delivered is void."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request of the stream. `asking`: it asks whether there is more (rule 7c)."""

    request: Request
    resuming: bool
    asking: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """
    Send a side request.

    Attributes:
        reason: Why the connection is over; `""` if it is not, or if that was reported.
        error: What broke it.
    """

    purpose: Purpose
    request: Request
    reason: str = ""
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class AskAgain:
    """Repeat the request for `purpose`. `reason` is why there was no answer, for the error if it can no longer be repeated."""

    purpose: Purpose
    reason: str
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class TryAgain:
    """
    An attempt failed: wait as the policy says, or give up.

    Attributes:
        reason: Why it failed.
        again: What follows the wait; `None`: the latest request again.
        failed: What failed, in words; `""` for a connection of the stream, which has a notice of its own.
    """

    reason: str
    error: BaseException | None = None
    again: Send | AskAgain | None = None
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    """
    Wait, then do `then`.

    Attributes:
        attempt: Number of the attempt that follows; 0 if the last one did not fail.
        failed: As in `TryAgain`.
        follows: What the observer is told about a lost connection; `None`: none was lost, and the next answer is routine.
    """

    seconds: float
    then: Send | AskAgain
    attempt: int = 0
    failed: str = ""
    follows: Then | None = "reconnect"


Next: TypeAlias = Done | Stop | GoOn | NoWayBack | verdict.Lost | Restart | Send | Ask | AskAgain | TryAgain | Wait


# --- steps ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """Open the stream."""


@dataclass(frozen=True, slots=True)
class SleepUntil:
    """Sleep on after an interruption."""

    ends: float


@dataclass(frozen=True, slots=True)
class TurnPage:
    """A page of history has been entered: get the next one, or read live events from the connection, which stayed open."""

    page: Backfill


@dataclass(frozen=True, slots=True)
class AfterReset:
    """The stored result voided what was delivered before, and the run continues after it."""


Step: TypeAlias = Begin | Send | AskAgain | SleepUntil | TurnPage | AfterReset | Problem | Done | GoOn
