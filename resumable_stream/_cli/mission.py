"""
The demo's mission: read a story of 2,000 tokens over a connection that is lost, and account for every token.

`_read()` is what your program would do; the rest records what it reports. Every number comes from `stream.stats`, from the
stream's notices, or from the events themselves. A reporter (`plain`, `live`) is called as things happen, and may read the mission
at any time, even from its own thread: its values are replaced as a whole, never changed in place.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import httpx
from tenacity import wait_exponential, wait_random

import resumable_stream as rs

from .server import StoryServer
from .story import TOKENS, digest, tokens

__all__ = ["Entry", "Mission", "Pace", "Reporter", "Without"]

LOST_AT = 1247


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """
    The demo's times.

    Attributes:
        story: Seconds for writing the story.
        outage: Seconds for which its port is closed.
        unit: Length of "one second" of the retry policy, in seconds.
    """

    story: float = 30.0
    outage: float = 8.0
    unit: float = 1.0

    @classmethod
    def fast(cls) -> Pace:
        """The same proportions in a tenth of the time."""
        return cls(story=3.0, outage=0.8, unit=0.1)

    def retry(self) -> rs.RetryPolicy:
        """Growing waits with jitter: two of tenacity's strategies, added up."""
        growing = wait_exponential(multiplier=0.25 * self.unit, max=self.unit)
        return rs.RetryPolicy(attempts=30, wait=growing + wait_random(0.0, 0.25 * self.unit))


@dataclass(frozen=True, slots=True, kw_only=True)
class Without:
    """The result of a plain HTTP client on the same server: how many tokens, and the name of the exception that ended it."""

    tokens: int
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A line of the log: `at` seconds after the opening."""

    at: float
    kind: Literal["connected", "lost", "retry", "resumed", "gap", "ended"]
    text: str


class Reporter(Protocol):
    """Shows the mission to a person."""

    def started(self, mission: Mission) -> None: ...

    def logged(self, mission: Mission, entry: Entry) -> None: ...

    def received(self, mission: Mission) -> None: ...

    def ended(self, mission: Mission) -> None: ...


class Mission:
    """
    One run of the demo.

    Attributes:
        state: `"connecting"`, `"connected"`, `"offline"`, `"resumed"` or `"ended"`.
        last: Number of the newest token.
        text: Everything received.
        stats: The stream's statistics.
        lost_at, resumed_at: Number of the last token before the outage and of the first one after it.
        attempts: Retries announced during the outage.
        retry_at: `time.monotonic()` of the next one.
        without: The result of a plain client.
        log: What happened, oldest first.
    """

    def __init__(self, pace: Pace, reporter: Reporter) -> None:
        self.pace = pace
        self.total = TOKENS
        sent = tokens()
        self.sent_digest = digest("".join(sent))
        self.received_digest: str | None = None
        self.server = StoryServer(sent, seconds=pace.story, cut_after=LOST_AT, outage=pace.outage)
        self.without: Without | None = None
        self.state: Literal["connecting", "connected", "offline", "resumed", "ended"] = "connecting"
        self.last = 0
        self.text = ""
        self.stats = rs.Stats()
        self.lost_at: int | None = None
        self.resumed_at: int | None = None
        self.attempts = 0
        self.retry_at = 0.0
        self.log: tuple[Entry, ...] = ()
        self._reporter = reporter
        self._refused = ""
        self._began = time.monotonic()
        self._ended: float | None = None
        self._offline_since: float | None = None
        self._stream: rs.ResumableStream | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the stream was opened."""
        return (self._ended or time.monotonic()) - self._began

    @property
    def seconds_offline(self) -> float:
        """The stream's figure, plus the seconds of a current outage."""
        since = self._offline_since
        return self.stats.seconds_offline + (0.0 if since is None else time.monotonic() - since)

    @property
    def identical(self) -> bool:
        """The whole text was received, and equals the sent one."""
        return self.received_digest == self.sent_digest

    def run(self) -> bool:
        """
        Returns:
            Whether the received text equals the sent one.
        """
        # The environment's proxy does not apply to the loopback interface.
        with self.server, httpx.Client(trust_env=False) as client:
            self.without = _read_without(client, self.server.at_once_url)
            self._began = time.monotonic()
            self._reporter.started(self)
            self._read(client)
        self._reporter.ended(self)
        return self.identical

    def _read(self, client: httpx.Client) -> None:
        with rs.connect(
            "GET",
            self.server.url,
            client=client,
            protocol=rs.protocols.LastEventID(sequence="contiguous", end=lambda event: event.event == "last"),
            retry=self.pace.retry(),
            observer=self._note,
        ) as stream:
            self._stream = stream
            for event in stream:
                self._take(event)
        self._ended = time.monotonic()
        self.stats = stream.stats
        self.received_digest = digest(self.text)

    def _take(self, event: Any) -> None:
        self._count()
        self.last = event.sequence
        self.text += event.data
        if self.state == "resumed" and self.resumed_at is None:
            self.resumed_at = self.last
            again = self.stats.duplicates
            dropped = f", {again} duplicate{'s' * (again != 1)} dropped" if again else ""
            self._enter("resumed", f"resumed at {self.last:,}{dropped}")
        self._reporter.received(self)

    def _note(self, notice: rs.Notice) -> None:
        self._count()
        match notice:
            case rs.Connected(resuming=False):
                self.state = "connected"
                self._enter("connected", "connected")
            case rs.Connected():
                # Logged at the first new event: only then has it resumed.
                self.state, self._offline_since = "resumed", None
            case rs.Disconnected(reason=reason, error=error) if self.state != "offline":
                self.state, self.lost_at, self._offline_since = "offline", self.last, time.monotonic()
                self._enter("lost", f"lost at {self.last:,}: {error or reason}")
            case rs.Disconnected(reason=reason, error=error):
                self._refused = f"{error or reason}, "
            case rs.Retrying(wait=wait):
                self.attempts += 1
                self.retry_at = time.monotonic() + wait
                self._enter("retry", f"{self._refused}retry {self.attempts} in {wait:.2f} s")
            case rs.GapFound(gap=gap):
                self._enter("gap", f"gap: expected {gap.expected}, received {gap.received}")
            case rs.Finished(outcome=outcome):
                self.state = "ended"
                self._enter("ended", f"{outcome.value} at {self.last:,}")
            case _:
                pass  # counted in the stats

    def _count(self) -> None:
        if self._stream is not None:
            self.stats = self._stream.stats

    def _enter(self, kind: Any, text: str) -> None:
        entry = Entry(at=self.elapsed, kind=kind, text=text)
        self.log = (*self.log, entry)
        self._reporter.logged(self, entry)


def _read_without(client: httpx.Client, url: str) -> Without:
    """Read the same story the way most programs do."""
    count = 0
    try:
        with client.stream("GET", url) as response:
            for line in response.iter_lines():
                count += not line  # an empty line ends an event
    except httpx.HTTPError as error:
        return Without(tokens=count, error=type(error).__name__)
    return Without(tokens=count, error=None)
