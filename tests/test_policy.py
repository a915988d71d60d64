"""The retry policy: tenacity's conditions, called as tenacity calls them."""

from __future__ import annotations

import datetime
import threading
from typing import Any

import pytest
import tenacity
from tenacity import stop, wait

from resumable_stream._core.settings import RetryState
from resumable_stream._policy import DEFAULT_STATUSES, RetryPolicy

from .core.simulation import DROPPED, Reply, Stream, ev, evs, run, script

NOW = 5000.0


def state(attempt: int = 1, *, elapsed: float = 0.0, slept: float = 0.0, error: BaseException | None = None) -> RetryState:
    return RetryState(attempt=attempt, elapsed=elapsed, slept=slept, error=error)


def delays(policy: RetryPolicy, attempts: int = 5) -> list[float | None]:
    return [policy.delay(state(attempt, elapsed=float(attempt)), now=NOW) for attempt in range(1, attempts + 1)]


# --- attempts and our own wait --------------------------------------------------------------------------------------


def test_attempts_without_progress_are_bounded() -> None:
    policy = RetryPolicy(attempts=3, wait=wait.wait_fixed(1))
    assert delays(policy) == [1.0, 1.0, None, None, None]


def test_ten_attempts_by_default() -> None:
    policy = RetryPolicy()
    assert policy.delay(state(9), now=NOW) is not None
    assert policy.delay(state(10), now=NOW) is None


def test_our_own_wait_is_full_jitter() -> None:
    policy = RetryPolicy(attempts=100)
    for attempt, ceiling in {1: 1.0, 2: 2.0, 3: 4.0, 5: 16.0, 6: 30.0, 50: 30.0}.items():
        found = [policy.delay(state(attempt), now=NOW) for _ in range(300)]
        assert all(delay is not None and 0 <= delay <= ceiling for delay in found)
        assert max(delay or 0 for delay in found) > ceiling * 0.9
        assert min(delay or 0 for delay in found) < ceiling * 0.1


def test_the_failure_of_the_prompt_reconnect_is_no_attempt() -> None:
    """A stop is not asked about it."""
    policy = RetryPolicy(attempts=1, wait=wait.wait_fixed(2), stop=lambda call: True)
    assert policy.delay(state(0), now=NOW) == 2.0
    assert policy.delay(state(1), now=NOW) is None


@pytest.mark.parametrize("attempts", [0, -1, 1.5, "3", None, True])
def test_attempts_must_be_a_count(attempts: Any) -> None:
    with pytest.raises(ValueError, match="attempts"):
        RetryPolicy(attempts=attempts)


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_the_servers_wait_must_be_seconds(seconds: float) -> None:
    with pytest.raises(ValueError, match="max_server_wait"):
        RetryPolicy(max_server_wait=seconds)


@pytest.mark.parametrize("name", ["wait", "stop"])
def test_a_wait_or_stop_must_be_callable(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        RetryPolicy(**{name: 5})  # type: ignore[arg-type]


def test_default_statuses() -> None:
    assert {408, 425, 429, 500, 502, 503, 504, 520, 529} <= DEFAULT_STATUSES
    assert not {400, 401, 403, 404, 410, 422, 501, 505, 511} & DEFAULT_STATUSES
    assert RetryPolicy(statuses={404}).statuses == frozenset({404})  # type: ignore[arg-type]


# --- every wait of tenacity -----------------------------------------------------------------------------------------

WAITS: dict[str, tuple[Any, list[tuple[float, float]]]] = {
    "wait_none": (wait.wait_none(), [(0, 0)] * 3),
    "wait_fixed": (wait.wait_fixed(2), [(2, 2)] * 3),
    "wait_fixed timedelta": (wait.wait_fixed(datetime.timedelta(seconds=2)), [(2, 2)] * 3),
    "wait_random": (wait.wait_random(1, 3), [(1, 3)] * 3),
    "wait_combine": (wait.wait_combine(wait.wait_fixed(1), wait.wait_fixed(2)), [(3, 3)] * 3),
    "sum": (wait.wait_fixed(1) + wait.wait_random(0, 1), [(1, 2)] * 3),
    "wait_chain": (wait.wait_chain(wait.wait_fixed(1), wait.wait_fixed(5)), [(1, 1), (5, 5), (5, 5)]),
    "wait_incrementing": (wait.wait_incrementing(1, 2), [(1, 1), (3, 3), (5, 5)]),
    "wait_exponential": (wait.wait_exponential(1, max=3), [(1, 1), (2, 2), (3, 3)]),
    "wait_random_exponential": (wait.wait_random_exponential(1), [(0, 1), (0, 2), (0, 4)]),
    "wait_exponential_jitter": (wait.wait_exponential_jitter(1, jitter=1), [(1, 2), (2, 3), (4, 5)]),
    "wait_exception": (wait.wait_exception(lambda error: 7.0 if isinstance(error, ConnectionError) else 1.0), [(7, 7)] * 3),
    "callable": (lambda call: call.attempt_number * 2.0, [(2, 2), (4, 4), (6, 6)]),
    "negative": (lambda call: -5.0, [(0, 0)] * 3),
}


@pytest.mark.parametrize("name", WAITS)
def test_every_wait_of_tenacity_works(name: str) -> None:
    given, expected = WAITS[name]
    policy = RetryPolicy(wait=given)
    for attempt, (low, high) in enumerate(expected, start=1):
        delay = policy.delay(state(attempt, error=ConnectionError("reset")), now=NOW)
        assert delay is not None
        assert low <= delay <= high


def test_no_wait_of_tenacity_was_forgotten() -> None:
    known = {name for name in vars(wait) if name.startswith("wait_")} - {"wait_base", "wait_unset"}
    assert known <= {name.partition(" ")[0] for name in WAITS}


def test_a_wait_by_exception_sees_the_failure() -> None:
    seen: list[BaseException] = []

    def by(error: BaseException) -> float:
        seen.append(error)
        return 1.0

    policy = RetryPolicy(wait=wait.wait_exception(by))
    error = OSError("gone")
    assert policy.delay(state(error=error), now=NOW) == 1.0
    # A clean close is a failure too, but no exception: a wait by exception still gets one.
    assert policy.delay(state(error=None), now=NOW) == 1.0
    assert seen[0] is error
    assert isinstance(seen[1], BaseException)


# --- every stop of tenacity -----------------------------------------------------------------------------------------


def stops_at(given: Any, **options: Any) -> int | None:
    """The attempt at which it gives up; each attempt takes one second, the waits between them two."""
    policy = RetryPolicy(attempts=50, wait=wait.wait_fixed(2), stop=given)
    for attempt in range(1, 30):
        now = state(attempt, elapsed=3.0 * (attempt - 1), slept=2.0 * (attempt - 1), error=OSError(), **options)
        if policy.delay(now, now=NOW + attempt) is None:
            return attempt
    return None


EVENT = threading.Event()
EVENT.set()
STOPS: dict[str, tuple[Any, int | None]] = {
    "stop_never": (stop.stop_never, None),
    "stop_after_attempt": (stop.stop_after_attempt(4), 4),
    "stop_after_delay": (stop.stop_after_delay(10), 5),  # 12 s have passed
    "stop_before_delay": (stop.stop_before_delay(10), 4),  # 9 s, and the next wait would take it to 11
    "stop_after_delay timedelta": (stop.stop_after_delay(datetime.timedelta(seconds=10)), 5),
    "stop_when_event_set": (stop.stop_when_event_set(EVENT), 1),
    "stop_any": (stop.stop_any(stop.stop_after_attempt(9), stop.stop_after_delay(10)), 5),
    "stop_all": (stop.stop_all(stop.stop_after_attempt(9), stop.stop_after_delay(10)), 9),
    "or": (stop.stop_after_attempt(3) | stop.stop_after_delay(100), 3),
    "and": (stop.stop_after_attempt(3) & stop.stop_after_delay(20), 8),
    "callable": (lambda call: call.idle_for >= 6.0, 4),
}


@pytest.mark.parametrize("name", STOPS)
def test_every_stop_of_tenacity_works(name: str) -> None:
    given, expected = STOPS[name]
    assert stops_at(given) == expected


def test_no_stop_of_tenacity_was_forgotten() -> None:
    known = {name for name in vars(stop) if name.startswith("stop_")} - {"stop_base"}
    assert known <= {name.partition(" ")[0] for name in STOPS}


def test_a_stop_does_not_outlive_the_attempts() -> None:
    assert RetryPolicy(attempts=2, stop=stop.stop_never).delay(state(2), now=NOW) is None


def test_the_state_is_whole() -> None:
    """What a callable of tenacity's may look at is there (it was built by us, not by a retry loop)."""
    seen: list[tenacity.RetryCallState] = []

    def look(call: tenacity.RetryCallState) -> float:
        seen.append(call)
        return 1.5

    def judge(call: tenacity.RetryCallState) -> bool:
        assert call.upcoming_sleep == 1.5
        return False

    error = OSError("gone")
    assert RetryPolicy(wait=look, stop=judge).delay(state(3, elapsed=8.0, slept=6.0, error=error), now=NOW) == 1.5
    (call,) = seen
    assert (call.attempt_number, call.idle_for, call.seconds_since_start) == (3, 6.0, 8.0)
    assert (call.start_time, call.outcome_timestamp) == (NOW - 8.0, NOW)
    assert call.outcome is not None and call.outcome.failed and call.outcome.exception() is error
    assert call.outcome.attempt_number == 3
    assert call.retry_object is not None
    assert (call.fn, call.args, call.kwargs) == (None, (), {})
    assert "RetryCallState" in repr(call)


def test_tenacitys_own_loggers_can_be_used() -> None:
    import logging

    log = tenacity.before_sleep_log(logging.getLogger("test"), logging.DEBUG)

    def logged(call: tenacity.RetryCallState) -> float:
        return 1.0

    calls: list[tenacity.RetryCallState] = []
    policy = RetryPolicy(wait=logged, stop=lambda call: bool(calls.append(call)))
    policy.delay(state(error=OSError("gone")), now=NOW)
    call = calls[0]
    call.next_action = None
    assert call.outcome is not None
    assert log is not None


# --- in a stream ----------------------------------------------------------------------------------------------------


def test_a_policy_steers_a_stream() -> None:
    policy = RetryPolicy(
        attempts=6, wait=wait.wait_chain(wait.wait_fixed(1), wait.wait_fixed(3)), stop=stop.stop_before_delay(100)
    )
    stream = Stream(
        script(Reply([evs(1, 1), "rst"]), DROPPED, DROPPED, DROPPED, Reply([ev("[DONE]")])),
        delay=lambda state: policy.delay(state, now=0.0),
    )
    assert run(stream).data == ["d1", "[DONE]"]
    assert stream.sleeps == [0.25, 1.0, 1.0, 3.0]


def test_a_stop_after_a_delay_ends_a_stream_that_makes_no_progress() -> None:
    clock: list[float] = []
    policy = RetryPolicy(attempts=1000, wait=wait.wait_fixed(7), stop=stop.stop_after_delay(60))
    stream = Stream(
        lambda sent: DROPPED, delay=lambda state: clock.append(state.elapsed) or policy.delay(state, now=100.0 + state.elapsed)
    )  # type: ignore[func-returns-value]
    assert run(stream).error is not None
    assert 60 <= stream.elapsed < 70
    assert clock == sorted(clock)
