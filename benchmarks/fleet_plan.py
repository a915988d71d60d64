"""Common parts of both fleets, the real hubs and the model: sizes, costs, how clients wait, and the report."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Final

from resumable_stream import RetryPolicy
from resumable_stream._core.budget import PROMPT
from resumable_stream._core.settings import RetryState

__all__ = ["COSTS", "SCENARIOS", "Plan", "Report", "client_wait"]

SCENARIOS: Final = ("deploy", "shard", "shard+kill", "region")

COSTS: Final = defaultdict(
    lambda: 40.0, {"append": 60.0, "read": 25.0, "subscribe": 10.0, "renew": 20.0, "orphans": 10.0, "restore": 200.0}
)
"""Microseconds of a shard per command: assumed, rounded up from the scripts alone. An append rings for ten listeners."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    A fleet, and what happens to it. Times are in seconds.

    Attributes:
        interval: Time between two events of a stream.
        begin: When the fault begins.
        latency: Round trip to Redis.
        open_seconds: CPU time of an instance for one request of a reader.
        browsers: Share of readers that are an `EventSource`; the others use this package's client half.
        probe: Time until the balancer sends no one to a dead instance.
        at_once: Instances that a deploy replaces at once.
        outage: How long the shard is unavailable; a region twice as long.
        kill: Whether an instance dies meanwhile.
    """

    scenario: str
    seed: int = 1
    instances: int = 10
    streams: int = 300
    readers: int = 3000
    shards: int = 4
    interval: float = 1.0
    begin: float = 20.0
    flush: float = 0.025
    latency: float = 0.001
    open_seconds: float = 0.0005
    browsers: float = 0.7
    probe: float = 2.0
    at_once: int = 1
    drain_timeout: float = 25.0
    drain_spread: float = 5.0
    outage: float = 30.0

    @property
    def lasts(self) -> float:
        """Seconds until all of it is over, and has been for a while."""
        match self.scenario:
            case "deploy":
                return self.begin + math.ceil(self.instances / self.at_once) * (self.drain_timeout + 1.0) + 30.0
            case "region":
                return self.begin + 2 * self.outage + 30.0
        return self.begin + self.outage + 60.0

    @property
    def events(self) -> int:
        """Events of each stream, which runs all the time."""
        return math.ceil(self.lasts / self.interval)

    @property
    def kill(self) -> bool:
        return self.scenario == "shard+kill"


_POLICY: Final = RetryPolicy()


def client_wait(browser: bool, retry: float, retry_after: float, attempt: int, rng: random.Random) -> float:
    """
    Seconds before a reader asks again.

    An `EventSource` waits for the last `retry:`, whatever the failure. The client half takes that as a minimum, reconnects
    promptly after an event, and then backs off.

    Args:
        attempt: Connections without an event since the last event; 0: this is the first reconnect.
    """
    if browser:
        return retry
    if attempt == 0:
        wait: float | None = PROMPT * rng.random()
    else:
        wait = _POLICY.delay(RetryState(attempt=min(attempt, _POLICY.attempts - 1), elapsed=0.0, slept=0.0, error=None), now=0.0)
    assert wait is not None
    return max(wait, retry, retry_after)


@dataclass(slots=True)
class Report:
    """The results of a run. Times in the counters are whole seconds since the fault."""

    plan: Plan
    reconnects: Counter[int] = field(default_factory=Counter)
    tenths: Counter[int] = field(default_factory=Counter)
    of_instance: Counter[tuple[int, int]] = field(default_factory=Counter)
    redis: Counter[tuple[int, int]] = field(default_factory=Counter)
    busy: Counter[tuple[int, int]] = field(default_factory=Counter)
    named: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    claims: int = 0
    claims_before: int = 0
    exact: int = 0
    lost: int = 0
    wrong: list[str] = field(default_factory=list)

    def begin(self) -> None:
        self.claims_before = self.claims

    def reconnect(self, now: float, instance: int, times: int = 1) -> None:
        since = now - self.plan.begin
        self.reconnects[math.floor(since)] += times
        self.tenths[math.floor(since * 10)] += times
        self.of_instance[instance, math.floor(since)] += times

    def commands(self, shard: int, now: float, name: str, times: int) -> None:
        second = math.floor(now - self.plan.begin)
        work = times * COSTS[name] * 1e-6
        self.named[name, shard, second] += times
        self.redis[shard, second] += times
        self.busy[shard, second] += work

    def check(self, right: bool, what: str) -> None:
        if not right:
            self.wrong.append(what)

    def finished(self, number: int, n: int, events: int, lost: bool, longest: float) -> None:
        """A reader reached its end: all events, or an honest loss."""
        self.waits.append(longest)
        if lost:
            self.lost += 1
        elif n == events:
            self.exact += 1
        else:
            self.wrong.append(f"reader {number} has {n} of {events} events")

    def assert_exact(self) -> None:
        """
        Check that every reader got each event once, in order, or an error that the stream is lost.

        Raises:
            AssertionError: One did not.
        """
        assert not self.wrong, f"{len(self.wrong)} of what readers got is wrong, for example {self.wrong[0]!r}"
        assert self.exact + self.lost == self.plan.readers, (
            f"{self.exact} + {self.lost} of {self.plan.readers} readers came to an end"
        )

    @property
    def figures(self) -> dict[str, float]:
        """The figures that are printed and compared."""
        after = [count for (_, second), count in self.redis.items() if second >= 0]
        before = [count for (_, second), count in self.redis.items() if -5 <= second < -1]
        waits = sorted(self.waits)
        return {
            "reconnects": sum(self.reconnects.values()),
            "most in a second": max(self.reconnects.values(), default=0),
            "most in a tenth": max(self.tenths.values(), default=0),
            "most of an instance": max(self.of_instance.values(), default=0),
            "commands before": sum(before) / max(len(before), 1),
            "commands at most": max(after, default=0),
            "busiest shard": max(self.busy.values(), default=0.0),
            "claims": self.claims - self.claims_before,
            "longest wait": waits[-1] if waits else 0.0,
            "median wait": waits[len(waits) // 2] if waits else 0.0,
            "lost": self.lost,
        }
