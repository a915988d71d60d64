"""What a caller may set: clocks and limits. Values validate themselves; every bound has a default and a reason."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Final, Literal

__all__ = ["AUTO", "Limits", "Timeouts"]

AUTO: Final = "auto"
"""Let the stream choose: the value depends on whether it can be resumed (see `Timeouts`)."""

LONGEST: Final = 1e9
"""In seconds, about 30 years: the most that the clocks of all platforms can count."""

_MiB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Timeouts:
    """
    The clocks of a stream. All values are seconds; `None` switches a clock off.

    All but `deadline` run only while the library waits for the network: a slow consumer pauses them.
    If the stream can be resumed, a clock that runs out means *reconnect*; if it cannot, `StreamInterrupted` names the clock.
    Once an event has reported how the stream ends, `idle` and `stall` are at most 10, and the stream ends when one runs out.

    Attributes:
        connect: To set up one connection. 10: what a TLS handshake over a bad mobile link needs.
        first_event: From the start until the first event. 300: a reasoning model thinks for minutes before its first token.
        idle: Without a byte. AUTO: 60 if the stream can be resumed (a false alarm costs one reconnect),
            600 if it cannot (it would cost the answer).
        stall: Without an event, heartbeats not counted. AUTO: 300 if the stream can be resumed, 1800 if it cannot
            (local models have taken 20 minutes, and heartbeats show that the server is alive), off for a feed.
        deadline: Wall time for the whole stream, from its opening; checked only while waiting.
            `None`, because only the caller knows how long an answer is worth waiting for.
    """

    connect: float | None = 10.0
    first_event: float | None = 300.0
    idle: float | None | Literal["auto"] = AUTO
    stall: float | None | Literal["auto"] = AUTO
    deadline: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None or (value == AUTO and field.name in ("idle", "stall")):
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or math.isnan(value) or not 0 < value <= LONGEST:
                raise ValueError(
                    f"Timeouts.{field.name} must be seconds > 0 (at most {LONGEST:.0e}), or None to switch it off, got {value!r}"
                )

    def idle_or(self, resumable: bool) -> float | None:
        """`idle` in seconds, with AUTO resolved."""
        if self.idle == AUTO:
            return 60.0 if resumable else 600.0
        return self.idle

    def stall_or(self, endless: bool, *, resumable: bool = True) -> float | None:
        """`stall` in seconds, with AUTO resolved."""
        if self.stall == AUTO:
            return None if endless else 300.0 if resumable else 1800.0
        return self.stall


@dataclass(frozen=True, slots=True)
class Limits:
    """
    How much a stream may hold.

    Attributes:
        event_bytes: One event. 16 MiB: a base64 image of 10 MB fits; the largest text event seen is 210 KiB.
        line_bytes: One line. 16 MiB: such an image is one line.
        window: Events remembered for the overlap after a reconnect. 4096: twice as many as SDKs that deduplicate keep.
        text_bytes: What `read_text()` and `.text_so_far` may hold. 16 MiB: a hundred times the longest answer of a model.
        redirects: Redirects followed for one connection. 5: browsers allow 20, an API needs 1 or 2.
    """

    event_bytes: int = 16 * _MiB
    line_bytes: int = 16 * _MiB
    window: int = 4096
    text_bytes: int = 16 * _MiB
    redirects: int = 5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            lowest = 0 if field.name == "redirects" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise ValueError(f"Limits.{field.name} must be an integer >= {lowest}, got {value!r}")
