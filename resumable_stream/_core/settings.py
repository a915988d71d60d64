"""What the caller chose, and what a retry policy sees, in the core's terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .._settings import Limits, Timeouts

__all__ = ["RetryState", "Settings", "Stats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryState:
    """
    What a retry policy can base its decision on.

    Attributes:
        attempt: Failed attempts since the last new event; 0 if only the prompt reconnect failed.
        elapsed: Seconds since the first of these failures.
        slept: How many of these seconds were spent waiting.
        error: The error of the last attempt.
    """

    attempt: int
    elapsed: float
    slept: float
    error: BaseException | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """
    Attributes:
        delay: Returns the seconds until the next attempt, or `None` to give up.
        attempts: How many attempts `delay` allows, for notices; `None`: not known.
        jitter: Returns a new random number in [0, 1) at each call.
        statuses: HTTP statuses that count as failed attempts.
        max_server_wait: Longest wait in seconds that a server may ask for.
        manual: Only `commit()` moves the position.
        idempotent: The first request carries the caller's own `Idempotency-Key`.
        new_key: Makes a random key, for a protocol whose server joins a repeated request; `None`: no key is sent.
        single_use: The first request's body can be sent only once.
        started_elsewhere: The first request was made by another process and read from a token.
        refreshable: Asking again may bring other credentials.
        longest_read: Seconds that one read may take whatever the clocks say: a timeout that the HTTP client's user set.
        verbatim: The bytes are passed on to a reader that knows the protocol: items keep them (`Item.wire`), and a provider's
            error is an item like any other.
        saving: There is a store, to which `keep_events` and `save_interval` (seconds) belong.
        way_out: What to do about a stored partial answer that cannot be continued, for errors; `""` if nothing is stored.
        request: Digest of the request, for the store's record; `None`: not known.
    """

    timeouts: Timeouts
    limits: Limits
    delay: Callable[[RetryState], float | None]
    jitter: Callable[[], float]
    statuses: frozenset[int]
    max_server_wait: float
    attempts: int | None = None
    on_gap: Literal["refetch", "deliver"] = "refetch"
    on_lost: Literal["raise", "restart", "snapshot"] = "raise"
    manual: bool = False
    idempotent: bool = False
    new_key: Callable[[], str] | None = None
    single_use: bool = False
    started_elsewhere: bool = False
    refreshable: bool = False
    longest_read: float | None = None
    verbatim: bool = False
    saving: bool = False
    way_out: str = ""
    request: str | None = None
    keep_events: bool = False
    save_interval: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """
    What has happened so far.

    Attributes:
        events: Events delivered, including those from a store.
        bytes: Bytes of the bodies read.
        duplicates: Repeated events that were dropped.
        gaps: Gaps found, filled or not.
        connections: Responses whose body was read.
        reconnects: Connections that followed the loss of one. If a stream is read one answer at a time, the next answer does not
            count.
        seconds_offline: Seconds between the loss of a connection and the head of the next.
        cursor_ignored: The server answered a resume with the stream's beginning.
    """

    events: int = 0
    bytes: int = 0
    duplicates: int = 0
    gaps: int = 0
    connections: int = 0
    reconnects: int = 0
    seconds_offline: float = 0.0
    cursor_ignored: bool = False
