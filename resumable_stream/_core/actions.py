"""What the machine tells a driver to do, and what it tells an observer. Both are closed sets of small frozen values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .._checkpoint import Checkpoint
from .._events import Gap, Item, Outcome
from .interfaces import Request

__all__ = [
    "Action",
    "Connect",
    "Connected",
    "CursorIgnored",
    "Deliver",
    "Disconnect",
    "Disconnected",
    "DuplicateDropped",
    "Fetch",
    "Finish",
    "Finished",
    "GapFound",
    "Lost",
    "Notice",
    "NumberingStopped",
    "Read",
    "Restarted",
    "Retrying",
    "Save",
    "Sleep",
]


# --- actions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connect:
    """Send `request`, wait at most `timeout` seconds for the head, then `receive_head()` or `connect_failed()`."""

    request: Request
    timeout: float | None


@dataclass(frozen=True, slots=True)
class Fetch:
    """
    Send `request` and read the whole answer, or, with `request=None`, what is left of the current one.

    Then `receive_answer()` or `fetch_failed()`.
    """

    request: Request | None
    timeout: float | None
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class Read:
    """Read chunks: `before_read()`, then `receive_data()`, `receive_eof()` or `read_failed()`."""


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand out events that did not come from a read."""

    events: Sequence[Item]


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait, then ask again."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Save:
    """Write to the store."""

    checkpoint: Checkpoint
    events: Sequence[Item]


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the current response."""


@dataclass(frozen=True, slots=True)
class Finish:
    """There is nothing more."""

    outcome: Outcome


Action = Connect | Fetch | Read | Deliver | Sleep | Save | Disconnect | Finish


# --- notices --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connected:
    """A response of the stream is being read."""

    status: int
    resuming: bool
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A connection is over, before the stream is. `error` names the exception's type, never its text."""

    reason: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Retrying:
    """The next connection follows in `wait` seconds. `attempt` is 0 for the prompt reconnect after progress."""

    attempt: int
    wait: float


@dataclass(frozen=True, slots=True)
class GapFound:
    """Events are missing. `asked_again`: they are being asked for; otherwise the hole stays."""

    gap: Gap
    asked_again: bool


@dataclass(frozen=True, slots=True)
class DuplicateDropped:
    """The server sent an event again."""

    id: str | None


@dataclass(frozen=True, slots=True)
class NumberingStopped:
    """Ids that looked like a counter broke their own rule; gaps are no longer watched for."""

    expected: int
    received: str


@dataclass(frozen=True, slots=True)
class CursorIgnored:
    """The server answered a resume with the stream's beginning."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The rest of the stream cannot be had by resuming."""

    message: str


@dataclass(frozen=True, slots=True)
class Restarted:
    """What was delivered is void from `offset` on; the stream starts again there."""

    offset: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The stream has ended."""

    outcome: Outcome


Notice = (
    Connected
    | Disconnected
    | Retrying
    | GapFound
    | DuplicateDropped
    | NumberingStopped
    | CursorIgnored
    | Lost
    | Restarted
    | Finished
)
