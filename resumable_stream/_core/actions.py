"""The actions that the machine requests from a driver: a closed set of small frozen values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .._checkpoint import Checkpoint
from .._contract import Request
from .._events import Item, Outcome

__all__ = ["Action", "Connect", "Deliver", "Disconnect", "Fetch", "Finish", "Read", "Save", "Sleep"]


@dataclass(frozen=True, slots=True)
class Connect:
    """Send `request`, wait at most `timeout` seconds for the head, then `receive_head()` or `connect_failed()`."""

    request: Request
    timeout: float | None


@dataclass(frozen=True, slots=True)
class Fetch:
    """
    Send `request` and read the whole answer, or, with `request=None`, the rest of the current one.

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
    """Deliver events that did not come from a read."""

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
    """The stream is over."""

    outcome: Outcome


Action = Connect | Fetch | Read | Deliver | Sleep | Save | Disconnect | Finish
