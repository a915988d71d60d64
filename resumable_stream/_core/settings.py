"""What the caller chose, and what a retry policy is shown, in the terms of the core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .._settings import Limits, Timeouts

__all__ = ["RetryState", "Settings", "Stats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryState:
    """
    What a retry policy may look at.

    Attributes:
        attempt: Failed attempts since the last new event; 0 when only the prompt reconnect failed.
        elapsed: Seconds since the first of these failures.
        slept: Seconds of them spent waiting.
        error: What the last one ended with.
    """

    attempt: int
    elapsed: float
    slept: float
    error: BaseException | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """
    Attributes:
        delay: Seconds until the next attempt, or `None` to give up.
        attempts: How many attempts that allows, for notices; `None`: it does not say.
        jitter: A number in [0, 1), drawn anew at each call.
        statuses: HTTP statuses that are failed attempts.
        max_server_wait: Longest wait in seconds that a server may ask for.
        manual: Only `commit()` moves the place.
        idempotent: The first request carries an `Idempotency-Key` of the caller's.
        new_key: Makes a random one, for a protocol whose server joins a repeated request; `None`: none is sent.
        single_use: The first request's body can be sent only once.
        started_elsewhere: The first request is another process's, read from a token.
        refreshable: Asking again may bring other credentials.
        longest_read: Seconds that one read may take whatever the clocks say: a timeout of the HTTP library's own user.
        verbatim: The bytes are handed on to somebody who knows the protocol: items keep them (`Item.wire`), and a provider's
            error is an item like any other.
        saving: There is a store; `keep_events` and `save_interval` (seconds) are its own.
        way_out: What to do about a kept half that cannot be continued, for errors; `""` where nothing is kept.
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
    What happened so far.

    Attributes:
        events: Delivered, those of a store included.
        bytes: Of bodies read.
        duplicates: Events that came again and were dropped.
        gaps: Holes found, filled or not.
        connections: Responses whose body was read.
        reconnects: Those of them that came after the loss of one. The next answer of a stream that is read answer by answer is
            none.
        seconds_offline: Between the loss of a connection and the head of the next.
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
