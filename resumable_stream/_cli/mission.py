"""
The demo's mission: read a story of 2,000 tokens over a connection that is lost, and account for every one of them.

`Mission.run()` is what a program of yours would do; the rest writes down what it was told.
Every number comes from `stream.stats`, from the stream's notices, or from the events themselves.
A reporter (`plain`, `live`) is called as things happen, and may look at the mission at any time, also from its own thread:
what it reads is replaced, never changed in place.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
from tenacity import wait_exponential, wait_random

from .. import _api as rs
from .._core.actions import Connected, Disconnected, DuplicateDropped, Finished, GapFound, Notice, Retrying
from .._core.machine import Stats
from .._policy import RetryPolicy
from ..protocols import LastEventID
from .server import StoryServer
from .story import TOKENS, digest, tokens

__all__ = ["Mission", "Pace", "Reporter", "Without"]

LOST_AT = 1247


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """
    The demo's times, in seconds. Attributes: `story`, to write all tokens; `outage`, the port is closed; `unit`, of the waits.
    """

    story: float
    outage: float
    unit: float

    @classmethod
    def normal(cls) -> Pace:
        return cls(story=30.0, outage=8.0, unit=1.0)

    @classmethod
    def fast(cls) -> Pace:
        """The same proportions in a tenth of the time."""
        return cls(story=3.0, outage=0.8, unit=0.1)

    def retry(self) -> RetryPolicy:
        """Waits that grow and are never in step with those of others; tenacity's own, added up."""
        unit = self.unit
        return RetryPolicy(
            attempts=30, wait=wait_exponential(multiplier=0.5 * unit, max=1.5 * unit) + wait_random(0.0, 0.5 * unit)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Without:
    """What a plain HTTP client got from the same server: how many tokens, and the name of the exception that ended it."""

    tokens: int
    error: str | None


class Reporter(Protocol):
    """Shows the mission to a person."""

    def started(self, mission: Mission) -> None: ...
    def noticed(self, mission: Mission, notice: Notice) -> None: ...
    def received(self, mission: Mission) -> None: ...
    def ended(self, mission: Mission) -> None: ...


class Mission:
    """
    Attributes:
        state: `"connecting"`, `"connected"`, `"offline"`, `"resumed"` or the outcome.
        last: Number of the newest token.
        lost_at, resumed_at: Number of the last token before the outage and of the first one after it.
        lost_because: Name of the exception that was the outage.
        attempts: Connections tried since then, and `refused`: what the newest of them ended with.
        retry_at: `time.monotonic()` of the next attempt.
        stats: The stream's own.
        text_tail: The newest part of the text.
    """

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        sent = tokens()
        self.total = TOKENS
        self.sent_digest = digest("".join(sent))
        self.received_digest = ""
        self.server = StoryServer(sent, seconds=pace.story, cut_after=LOST_AT, outage=pace.outage)
        self.without: Without | None = None
        self.state = "connecting"
        self.stats = Stats()
        self.last = 0
        self.lost_at: int | None = None
        self.lost_because: str | None = None
        self.resumed_at: int | None = None
        self.attempts = 0
        self.refused: str | None = None
        self.retry_at = 0.0
        self.text_tail = ""
        self._began = time.monotonic()
        self._ended: float | None = None
        self._offline_since: float | None = None
        self._stream: Any = None

    @property
    def elapsed(self) -> float:
        """Seconds since the stream was opened."""
        return (self._ended or time.monotonic()) - self._began

    @property
    def seconds_offline(self) -> float:
        """What the ledger says, and the seconds of an outage that still lasts."""
        since = self._offline_since
        return self.stats.seconds_offline + (0.0 if since is None else time.monotonic() - since)

    @property
    def identical(self) -> bool:
        return self.received_digest == self.sent_digest

    def run(self, reporter: Reporter) -> bool:
        """
        Returns:
            Whether the text received is the text sent.
        """
        # A proxy of the environment has nothing to do with the loopback interface.
        with self.server, httpx.Client(trust_env=False) as client:
            self.without = _read_without(client, self.server.at_once_url)
            self._began = time.monotonic()
            reporter.started(self)
            self._read(client, reporter)
        reporter.ended(self)
        return self.identical

    def _read(self, client: httpx.Client, reporter: Reporter) -> None:
        def observer(notice: Notice) -> None:
            self._note(notice)
            reporter.noticed(self, notice)

        received = hashlib.sha256()
        with rs.connect(
            "GET",
            self.server.url,
            client=client,
            protocol=LastEventID(sequence="contiguous", end=lambda event: event.event == "last"),
            retry=self.pace.retry(),
            observer=observer,
        ) as self._stream:
            for event in self._stream:
                received.update(event.data.encode())
                self._take(event)
                reporter.received(self)
        self._ended = time.monotonic()
        self.stats = self._stream.stats
        self.received_digest = received.hexdigest()

    def _take(self, event: Any) -> None:
        self.last = event.sequence
        self.stats = self._stream.stats
        self.text_tail = (self.text_tail + event.data)[-4000:]
        if self.lost_at is not None and self.resumed_at is None:
            self.resumed_at = self.last

    def _note(self, notice: Notice) -> None:
        match notice:
            case Connected(resuming=resuming):
                self.state = "resumed" if resuming else "connected"
                self._offline_since = None
            case Disconnected(error=error) if self.lost_at is None:
                self.state, self.lost_at, self.lost_because = "offline", self.last, error
                self._offline_since = time.monotonic()
            case Disconnected(error=error):
                self.refused = error
            case Retrying(wait=wait):
                self.attempts += 1
                self.retry_at = time.monotonic() + wait
            case Finished(outcome):
                self.state = outcome.value
            case DuplicateDropped() | GapFound() | _:
                pass  # counted in the stats
        if self._stream is not None:
            self.stats = self._stream.stats


def _read_without(client: httpx.Client, url: str) -> Without:
    """Read the same story as most programs do."""
    count = 0
    try:
        with client.stream("GET", url) as response:
            for line in response.iter_lines():
                count += not line  # an empty line ends an event
    except httpx.HTTPError as error:
        return Without(tokens=count, error=type(error).__name__)
    return Without(tokens=count, error=None)
