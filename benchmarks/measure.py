"""
How times are measured: CPU seconds, peers in turn, medians of rounds.

Each ratio compares adjacent samples of one round, and the result is the median of the ratios: a machine that slows down halfway
slows both sides. Rows that measure waiting use wall time.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import geometric_mean, median, quantiles
from time import process_time

__all__ = ["Measured", "Size", "Skipped", "cpu_seconds", "in_turn", "ratio", "ratios"]

Sample = Callable[[], float]


@dataclass(frozen=True)
class Size:
    """How much to measure."""

    rounds: int
    events: int
    """Events of a decoder's sample; `httpx-sse` takes about 30 ms for 20,000."""
    streamed: int
    """Events of a sample over HTTP."""
    trials: int
    """Samples of a latency."""
    endless: int
    """Events of the stream whose memory is measured."""
    readers: int
    """Readers of one stream on a server, and streams with one reader each."""


class Skipped(Exception):
    """A row cannot be measured here; the message names what is missing."""


@dataclass(frozen=True)
class Measured:
    """
    A row's result.

    Attributes:
        value: The number compared with floor and aim.
        low, high: Quartiles over the rounds; equal to `value` without rounds.
        parts: The numbers it is calculated from, by name.
    """

    value: float
    low: float
    high: float
    parts: Mapping[str, float] = field(default_factory=dict)


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of this process for one call."""
    # Do not charge this sample for the previous one's garbage. Collections that a sample causes itself are part of its cost.
    gc.collect()
    begun = process_time()
    work()
    return process_time() - begun


def in_turn(samples: Mapping[str, Sample], rounds: int) -> dict[str, list[float]]:
    """Take each sample once per round, in an order that rotates every round."""
    taken: dict[str, list[float]] = {name: [] for name in samples}
    order = list(samples)
    for sample in samples.values():
        sample()  # imports, caches
    for _ in range(rounds):
        for name in order:
            taken[name].append(samples[name]())
        order.append(order.pop(0))
    return taken


def ratio(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """The ratio of two samples of one round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def ratios(found: Mapping[str, Sequence[float]]) -> Measured:
    """The geometric mean of the parts, round by round."""
    rounds = [geometric_mean(values) for values in zip(*found.values(), strict=True)]
    low, _, high = quantiles(rounds, n=4) if len(rounds) > 1 else (rounds[0],) * 3
    return Measured(median(rounds), low, high, {name: median(values) for name, values in found.items()})
