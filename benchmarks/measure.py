"""
How times are taken: CPU seconds, peers in turn, medians of rounds.

A ratio is taken within a round, between samples that follow each other, and the median is that of the ratios: a machine that
slows down half-way then slows both sides. Wall time is used where waiting is what is measured.
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
    """Of a decoder's sample; a sample of `httpx-sse` takes some 30 ms with 20,000."""
    streamed: int
    """Of a sample over HTTP."""
    trials: int
    """Of a latency."""
    endless: int
    """Of the stream whose memory is watched."""
    readers: int
    """Of one stream on a server, and streams of one reader."""


class Skipped(Exception):
    """A row cannot be measured here; the message says what is missing."""


@dataclass(frozen=True)
class Measured:
    """
    A row's result.

    Attributes:
        value: The number that is held against floor and aim.
        low, high: Quartiles over the rounds; equal to `value` where there are none.
        parts: What it was made of, by name.
    """

    value: float
    low: float
    high: float
    parts: Mapping[str, float] = field(default_factory=dict)


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of this process for one call."""
    # The garbage of the sample before is not this one's. Collections that a sample causes itself are part of its price.
    gc.collect()
    begun = process_time()
    work()
    return process_time() - begun


def in_turn(samples: Mapping[str, Sample], rounds: int) -> dict[str, list[float]]:
    """Take each sample once a round, in an order that is turned every round."""
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
    """Of two samples of one round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def ratios(found: Mapping[str, Sequence[float]]) -> Measured:
    """The geometric mean of the parts, round by round."""
    rounds = [geometric_mean(values) for values in zip(*found.values(), strict=True)]
    low, _, high = quantiles(rounds, n=4) if len(rounds) > 1 else (rounds[0],) * 3
    return Measured(median(rounds), low, high, {name: median(values) for name, values in found.items()})
