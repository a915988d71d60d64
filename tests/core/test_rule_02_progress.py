"""Rules 2 and 3: only a new event is progress; how long to wait before the next connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from resumable_stream._core.settings import RetryState
from resumable_stream._errors import ResponseRejected, RetriesExhausted
from resumable_stream._events import Outcome
from resumable_stream._notices import Retrying
from resumable_stream.protocols import LastEventID

from .simulation import (
    DROPPED,
    EPOCH,
    UNSENT,
    NetworkError,
    NeverEnds,
    Reply,
    Sent,
    Stream,
    Wait,
    ev,
    evs,
    play,
    policy,
    run,
    script,
)

DONE = ev("[DONE]")
NAMED = LastEventID(end="[DONE]")


def busy(status: int = 503, **headers: str) -> Reply:
    return Reply(status=status, headers={name.replace("_", "-"): value for name, value in headers.items()}, type="text/plain")


# --- rule 2: progress -----------------------------------------------------------------------------------------------


def endless_failures(first: bytes, reply: Any) -> Any:
    """Deliver something once, and then only this."""
    calls = 0

    def server(sent: Sent) -> Any:
        nonlocal calls
        calls += 1
        return Reply([first, "rst"]) if calls == 1 else reply(calls) if callable(reply) else reply

    return server


@pytest.mark.parametrize(
    "reply",
    [
        UNSENT,
        DROPPED,
        busy(),
        Reply(["rst"]),
        Reply([b": ping\n\n", "rst"]),
        Reply([b"retry: 5\n\n"]),
        Reply([ev("d1", "1"), "rst"]),
        Reply([ev(None, "7"), "rst"]),
        Reply([ev("d1", "1")]),
        Reply([]),
        Reply([b"data: half"]),
        Reply(["silence"]),
        lambda calls: Reply([b": ping %d\n\n" % calls, "rst"]),
    ],
    ids=[
        "refused",
        "dropped",
        "503",
        "rst",
        "heartbeat",
        "retry",
        "duplicate",
        "id",
        "clean",
        "empty",
        "half",
        "silence",
        "pings",
    ],
)
def test_what_is_no_new_event_spends_the_budget(reply: Any) -> None:
    stream = Stream(endless_failures(evs(1, 2), reply), protocol=NAMED, delay=policy(attempts=4), connections=50)
    result = run(stream)
    assert result.data == ["d1", "d2"]
    assert isinstance(result.error, RetriesExhausted)
    assert result.error.attempts == 4
    # The first, the prompt one, and four that counted.
    assert len(stream.sent) == 1 + 1 + 4


def test_a_delivered_event_resets_the_budget() -> None:
    calls = 0

    def server(sent: Sent) -> Any:
        nonlocal calls
        calls += 1
        if calls > 60:
            return Reply([DONE])
        return Reply([ev(f"{calls}", f"n{calls}"), "rst"]) if calls % 3 == 1 else DROPPED

    result = run(Stream(server, delay=policy(attempts=2)))
    assert result.outcome is Outcome.COMPLETED
    assert len(result.events) == 21


def test_a_connection_that_opens_does_not_reset_the_budget() -> None:
    steps = [Reply([evs(1, 1), "rst"]), *[Reply(["rst"]), DROPPED] * 20]
    result = run(Stream(script(*steps), delay=policy(attempts=5)))
    assert isinstance(result.error, RetriesExhausted)
    assert len(result.stream.sent) == 7


def test_a_rotation_with_nothing_new_does_not_give_a_failing_server_a_new_budget() -> None:
    """Rule 7c: "neither progress nor failure". Rule 2: only progress resets."""
    calls = 0

    def server(sent: Sent) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            return Reply([evs(1, 1), "rst"])
        return Reply([Wait(6)]) if calls % 3 == 0 else busy()

    for protocol in (LastEventID(), LastEventID(end="never")):
        calls = 0
        result = run(Stream(server, protocol=protocol, delay=policy(attempts=4), connections=60))
        assert isinstance(result.error, RetriesExhausted)


def test_a_stream_that_never_began_counts_every_attempt() -> None:
    result = play(*[UNSENT] * 3, delay=policy(attempts=3))
    assert isinstance(result.error, RetriesExhausted)
    assert result.error.attempts == 3
    assert result.stream.sleeps == [1.0, 1.0]


# --- rule 3: waits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jitter", [0.0, 0.5, 0.999])
def test_the_first_reconnect_after_progress_is_prompt(jitter: float) -> None:
    result = play(Reply([evs(1, 1), "rst"]), Reply([evs(2, 2), "fin"]), Reply([evs(3, 3), DONE]), jitter=jitter)
    assert result.data == ["d1", "d2", "d3", "[DONE]"]
    assert sum(result.stream.sleeps) == pytest.approx(2 * 0.25 * jitter)
    assert all(wait <= 0.25 for wait in result.stream.sleeps)
    assert [notice.attempt for notice in result.stream.kinds(Retrying)] == [0, 0]


def test_the_policy_is_asked_from_the_second_reconnect_on() -> None:
    seen: list[RetryState] = []

    def delay(state: RetryState) -> float:
        seen.append(state)
        return 2.0 ** len(seen)

    result = play(Reply([evs(1, 1), "rst"]), DROPPED, UNSENT, busy(502), Reply([evs(2, 2), DONE]), delay=delay, jitter=1.0)
    assert result.outcome is Outcome.COMPLETED
    assert result.stream.sleeps == [0.25, 2.0, 4.0, 8.0]
    assert [state.attempt for state in seen] == [0, 1, 2]
    assert [state.elapsed for state in seen] == [0.0, 2.0, 6.0]
    assert [state.slept - seen[0].slept for state in seen] == pytest.approx([0.0, 2.0, 6.0])
    assert isinstance(seen[0].error, NetworkError)
    assert isinstance(seen[2].error, ResponseRejected)


def test_a_question_after_a_clean_close_is_asked_at_once() -> None:
    result = play(Reply([evs(1, 2)]), Reply([]))
    assert (result.outcome, result.stream.sleeps) == (Outcome.ENDED, [])


@pytest.mark.parametrize(
    ("retry", "wait"), [(b"3000", 3.0), (b"100", 0.25), (b"0", 0.25), (b"999999999", 60.0), (b"9" * 400, 60.0)]
)
def test_retry_is_a_floor_with_a_cap(retry: bytes, wait: float) -> None:
    result = play(Reply([b"retry: " + retry + b"\n" + evs(1, 1), "rst"]), Reply([DONE]))
    assert result.stream.sleeps == [wait]


@pytest.mark.parametrize("retry", [b"-5", b"1.5", b"5s", b"", b"\xd9\xa3", b"+9"])
def test_a_retry_that_is_no_number_is_ignored(retry: bytes) -> None:
    result = play(Reply([b"retry: " + retry + b"\n" + evs(1, 1), "rst"]), Reply([DONE]))
    assert result.stream.sleeps == [0.25]


def test_retry_is_kept_for_the_stream() -> None:
    result = play(
        Reply([b"retry: 4000\n\n" + evs(1, 1), "rst"]),
        Reply([evs(2, 2), "rst"]),
        DROPPED,
        Reply([evs(3, 3), "rst"]),
        Reply([DONE]),
    )
    assert result.stream.sleeps == [4.0] * 4


def test_a_newer_retry_replaces_an_older_one() -> None:
    result = play(Reply([b"retry: 4000\n\n" + evs(1, 1), "rst"]), Reply([b"retry: 1000\n\n" + evs(2, 2), "rst"]), Reply([DONE]))
    assert result.stream.sleeps == [4.0, 1.0]


def test_retry_is_a_floor_under_the_question_too() -> None:
    result = play(Reply([b"retry: 2000\n\n" + evs(1, 1)]), Reply([]))
    assert (result.outcome, result.stream.sleeps) == (Outcome.ENDED, [2.0])


def http_date(seconds: float, zone: str = "GMT") -> str:
    import email.utils

    return email.utils.formatdate(EPOCH + 1000.0 + seconds, usegmt=True).replace("GMT", zone)


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0", 1.0),
        ("0.5", 1.0),
        ("3600", 60.0),
        ("9" * 400, 60.0),
        ("-5", 1.0),
        ("soon", 1.0),
        ("", 1.0),
        ("٣", 1.0),
        (http_date(20), 20.0),
        (http_date(-20), 1.0),
        (http_date(86400), 60.0),
        ("Fri, 31 Feb 2026 00:00:00 GMT", 1.0),
        ("Fri, 20 Nov 99999 00:00:00 GMT", 1.0),
    ],
)
def test_retry_after_is_a_floor_with_a_cap(value: str, wait: float) -> None:
    result = play(busy(retry_after=value), Reply([evs(1, 1), DONE]))
    assert result.outcome is Outcome.COMPLETED
    assert result.stream.sleeps == [pytest.approx(wait)]


def test_a_date_without_a_zone_is_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9110 section 5.6.7: an HTTP date is in UTC; `-0000` says so without naming a zone."""
    import time

    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    try:
        result = play(busy(retry_after=http_date(20, "-0000")), Reply([evs(1, 1), DONE]))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert result.stream.sleeps == [pytest.approx(20.0)]


def test_retry_after_holds_for_one_wait() -> None:
    result = play(busy(retry_after="9"), busy(), Reply([evs(1, 1), "rst"]), Reply([DONE]))
    assert result.stream.sleeps == [9.0, 1.0, 0.25]


def test_retry_after_does_not_hold_for_a_connection_that_fails_later() -> None:
    """RFC 9110 section 10.2.3: it says how long to wait before the follow-up request. Later ones are not asked to wait."""
    result = play(busy(retry_after="9"), DROPPED, DROPPED, Reply([evs(1, 1), DONE]))
    assert result.stream.sleeps == [9.0, 1.0, 1.0]


def test_retry_after_on_a_good_answer_is_not_a_wait() -> None:
    result = play(Reply([evs(1, 1), "rst"], headers={"retry-after": "30"}), Reply([DONE]))
    assert result.stream.sleeps == [0.25]


def test_the_cap_is_the_callers() -> None:
    result = play(busy(retry_after="50"), Reply([b"retry: 50000\n" + evs(1, 1), "rst"]), Reply([DONE]), max_server_wait=5.0)
    assert result.stream.sleeps == [5.0, 5.0]


def test_the_longer_of_policy_and_server_is_waited() -> None:
    result = play(busy(retry_after="2"), Reply([evs(1, 1), DONE]), delay=lambda state: 6.0)
    assert result.stream.sleeps == [6.0]


# --- giving up ------------------------------------------------------------------------------------------------------


def test_the_error_tells_the_attempts_and_the_last_failure() -> None:
    result = play(Reply([evs(1, 3), "rst"]), DROPPED, DROPPED, UNSENT, delay=policy(attempts=2))
    error = result.error
    assert isinstance(error, RetriesExhausted)
    assert error.attempts == 2
    assert isinstance(error.last_error, NetworkError)
    assert error.__cause__ is error.last_error
    assert error.checkpoint is not None and error.checkpoint.cursor == "3"
    assert "2 attempts" in str(error) and "connection refused" in str(error)


def test_without_an_exception_the_last_failure_is_a_sentence() -> None:
    result = play(Reply([evs(1, 1)]), Reply([]), Reply([]), delay=policy(attempts=1), protocol=NAMED)
    assert isinstance(result.error, RetriesExhausted)
    assert isinstance(result.error.last_error, str) and result.error.last_error
    assert "1 attempt " in str(result.error)


def test_a_status_is_told_in_the_error() -> None:
    result = play(busy(503), busy(503), delay=policy(attempts=2))
    assert isinstance(result.error, RetriesExhausted)
    assert isinstance(result.error.last_error, ResponseRejected)
    assert result.error.last_error.status == 503


def test_the_simulation_itself_is_bounded() -> None:
    with pytest.raises(NeverEnds):
        run(Stream(lambda sent: UNSENT, delay=lambda state: 0.0))


class Pings(LastEventID):
    """Plain SSE whose pings are events of the wire, and none of the stream."""

    def unpack(self, event: Any) -> Sequence[Any]:
        return () if event.event == "ping" else (event,)


def test_a_connection_with_nothing_but_pings_is_a_failed_attempt() -> None:
    result = run(Stream(lambda sent: Reply([ev("x", event="ping"), "rst"]), protocol=Pings(end="[DONE]"), delay=policy(3)))
    assert isinstance(result.error, RetriesExhausted)
    assert result.events == []
