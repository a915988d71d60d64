"""
What a stream does next, as three closed sets of small frozen values. A plan of them can be printed, compared and tested.

- A `Turn` is what a batch, a clock or a close causes. It waits until the events before it have been taken.
- A `Step` is something that the machine itself does when `next()` reaches it, between the driver's actions.
- A `Next` is what the close of a connection means for the stream.

`Leave` says how a connection is left: what the next one is for, and whether the last one counts as a failed attempt.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from .._contract import Backfill, Request
from .._contract import verdicts as verdict
from .._errors import ResumableStreamError
from .._events import Gap, Outcome
from .clocks import Clock

__all__ = [
    "Announced",
    "Ask",
    "AskProvider",
    "Broken",
    "Closed",
    "Conclude",
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
    "ReadOn",
    "Refused",
    "Resume",
    "Send",
    "SleepUntil",
    "Step",
    "Stop",
    "Turn",
    "TurnPage",
    "Unproven",
    "Unreadable",
    "Unverified",
]

Purpose: TypeAlias = Literal["status", "verify", "alive", "last", "snapshot", "backfill"]
"""
What a side request is for.

- `"status"`: not a request of its own, but the body of an error status, which explains it.
- `"verify"`: is the stream complete? `"alive"`: is the run still running, although it is silent?
- `"last"`: what is the run's status, before the stream is given up?
- `"snapshot"`: the stored result. `"backfill"`: a page of what happened while nobody was connected.
"""


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


# --- steps ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request of the stream. `asking`: it asks whether there is more (rule 7c)."""

    request: Request
    resuming: bool
    asking: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """Repeat the request for `purpose`. `reason` is why there was no answer, for the error if it can no longer be repeated."""

    purpose: Purpose
    reason: str
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class SleepUntil:
    """Sleep on after an interruption."""

    ends: float


@dataclass(frozen=True, slots=True)
class ReadOn:
    """The history has been read: read live events from the connection, which stayed open."""


@dataclass(frozen=True, slots=True)
class TurnPage:
    """A page of history has been entered: get the next one, or read on."""

    page: Backfill


@dataclass(frozen=True, slots=True)
class Conclude:
    """The stored result says how the stream ended."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Resume:
    """The run continues after its stored result. `reset`: the result voided what was delivered before."""

    reset: bool


Step: TypeAlias = Send | Ask | SleepUntil | ReadOn | TurnPage | Conclude | Resume | Problem


# --- what a close means ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Done:
    """The stream has ended."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Unverified:
    """The stream seems to have ended: it closed cleanly, but nothing vouches for the end."""


@dataclass(frozen=True, slots=True)
class GoOn:
    """
    There is more to come.

    Attributes:
        reason: Why the connection is over.
        leave: How it is left.
        moved: The cursor moved, even if no event came. Each empty page also leaves fewer to read.
    """

    reason: str
    leave: Leave = Leave.LOST
    moved: bool = False


@dataclass(frozen=True, slots=True)
class AskProvider:
    """Ask for the run's status. `reason`: why the connection is over."""

    request: Request
    reason: str


@dataclass(frozen=True, slots=True)
class NoWayBack:
    """The stream was cut and cannot be resumed. `reason`: why the connection is over."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The stream fails."""

    error: ResumableStreamError


Next: TypeAlias = Done | Unverified | GoOn | AskProvider | NoWayBack | verdict.Lost | Stop
