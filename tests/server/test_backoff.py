"""Waits between two tries double, have an end, and do not meet."""

from __future__ import annotations

import asyncio
import random

import pytest

from resumable_stream.server import _backoff
from resumable_stream.server._backoff import Backoff


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return slept


async def _wait(backoff: Backoff, times: int) -> None:
    for _ in range(times):
        await backoff.wait()


@pytest.mark.parametrize(
    ("backoff", "expected"),
    [
        (Backoff(), [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]),
        (Backoff(0.01, 0.05), [0.01, 0.02, 0.04, 0.05, 0.05]),
        (Backoff(3.0), [2.0, 2.0]),
    ],
)
def test_waits_double_up_to_the_last_and_begin_anew(waits: list[float], backoff: Backoff, expected: list[float]) -> None:
    for _ in range(2):
        waits.clear()
        asyncio.run(_wait(backoff, len(expected)))
        assert len(waits) == len(expected)
        assert all(most / 2 <= wait <= most for wait, most in zip(waits, expected, strict=True))
        backoff.reset()


def test_what_failed_in_one_moment_does_not_come_back_in_one(waits: list[float]) -> None:
    random.seed(7)
    for _ in range(100):
        asyncio.run(_wait(Backoff(), 1))
    # As even as chance is: a quarter of the spread holds no more than half of them.
    for start in (0.05, 0.0625, 0.075, 0.0875):
        assert 5 < sum(start <= wait < start + 0.0125 for wait in waits) < 50


def test_an_outage_of_a_minute_costs_few_tries(waits: list[float]) -> None:
    backoff = Backoff()
    while sum(waits) < 60.0:
        asyncio.run(backoff.wait())
    assert len(waits) < 70
    assert _backoff.LAST_RETRY == 2.0
