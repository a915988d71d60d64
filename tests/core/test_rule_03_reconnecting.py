"""Rule 3, as values: what `Reconnecting` answers once a connection is over."""

from __future__ import annotations

from typing import Any

import pytest

from resumable_stream._contract import Request, StreamState
from resumable_stream._core.plan import INSIDE, AskAgain, Done, GoOn, Leave, NoWayBack, Send, Stop, TryAgain, Wait
from resumable_stream._errors import DeadlineExceeded, RetriesExhausted
from resumable_stream._events import Outcome
from resumable_stream._settings import Timeouts
from resumable_stream.protocols import LastEventID

from .simulation import NetworkError, ev, evs, policy, reading

NOW = 1000.0
RESET = NetworkError("reset")


def left(how: Leave, body: bytes = b"", error: BaseException | None = RESET, **options: Any) -> Any:
    machine = reading(body, **options)
    return machine._reconnecting.after(GoOn("connection lost", how, error), NOW)


@pytest.mark.parametrize(
    ("leave", "body", "seconds", "attempt", "follows"),
    [
        (Leave.LOST, evs(1, 2), 0.25, 0, "reconnect"),
        (Leave.LOST, b"id: 7\n\n", 1.0, 2, "reconnect"),
        (Leave.NEUTRAL, b"id: 7\n\n", 0.25, 0, "reconnect"),
        (Leave.INSIDE, b"id: 7\n\n", 0.0, 0, "reconnect"),
        (Leave.ONWARD, evs(1, 2), 0.0, 0, None),
        (Leave.QUESTION, evs(1, 2), 0.0, 0, "ask"),
        (Leave.QUIET, b"id: 7\n\n", 0.25, 0, "reconnect"),
    ],
)
def test_the_wait_follows_from_how_the_connection_was_left(
    leave: Leave, body: bytes, seconds: float, attempt: int, follows: str | None
) -> None:
    found = left(leave, body)
    assert (found.seconds, found.attempt, found.follows) == (seconds, attempt, follows)
    assert found.then.resuming
    assert found.then.asking is (leave in (Leave.QUESTION, Leave.QUIET))


def test_without_a_place_there_is_no_way_back_and_nothing_of_an_unsafe_request_is_repeated() -> None:
    assert left(Leave.LOST, ev("a"), method="POST") == NoWayBack("connection lost", RESET)


def test_after_the_deadline_there_is_no_next_connection() -> None:
    machine = reading(evs(1, 2), timeouts=Timeouts(deadline=5.0))
    found: Any = machine._reconnecting.after(GoOn("connection lost", error=RESET), NOW + 5)
    assert isinstance(found.error, DeadlineExceeded)
    assert found.cause is RESET


def test_a_question_that_was_cut_is_asked_again_only_if_it_was_not_answered() -> None:
    for body, again in ((b"", True), (evs(3, 3), False)):
        machine = reading(evs(1, 2))
        machine.requests.begin(Send(Request(method="GET", url="/"), resuming=True, asking=True))
        machine._ledger.open_connection(resuming=True, asking=True)
        if body:
            machine.receive_data(body, NOW)
        found = machine._reconnecting.after(GoOn(INSIDE, Leave.INSIDE, RESET), NOW)
        assert isinstance(found, Wait) and isinstance(found.then, Send)
        assert found.then.asking is again


def test_the_policy_gives_up_with_the_latest_error() -> None:
    reconnecting = reading(delay=policy(attempts=1))._reconnecting
    found = reconnecting.try_again(TryAgain("connection lost", RESET), NOW)
    assert isinstance(found, Stop) and isinstance(found.error, RetriesExhausted)
    assert found.error.last_error is RESET and found.error.__cause__ is RESET


def test_a_failed_side_request_is_repeated_as_what_it_was() -> None:
    again = AskAgain("verify", "status 503", None)
    failed = TryAgain("status 503", again=again, failed="the status check failed: status 503")
    assert reading()._reconnecting.try_again(failed, NOW) == Wait(1.0, again, 2, failed.failed)


def test_a_settled_outcome_is_not_worth_a_third_failed_attempt() -> None:
    machine = reading()
    machine._ending.settled = Outcome.COMPLETED
    assert machine._reconnecting.try_again(TryAgain("connection lost", RESET), NOW) == Done(Outcome.COMPLETED)


@pytest.mark.parametrize(("sent", "method"), [(True, "GET"), (False, "GET"), (False, "POST")])
def test_a_request_without_a_response_is_sent_again_if_that_is_not_billed_twice(sent: bool, method: str) -> None:
    reconnecting = reading(method=method)._reconnecting
    found = reconnecting.unanswered("cannot connect", RESET, NOW, sent=sent, timed_out=False, inside=False)
    assert isinstance(found, Wait) and found.attempt == 2


def test_a_request_that_may_have_arrived_is_not_sent_again_if_it_is_billed() -> None:
    reconnecting = reading(method="POST")._reconnecting
    found = reconnecting.unanswered("connection lost", RESET, NOW, sent=True, timed_out=False, inside=False)
    assert found == NoWayBack("connection lost", RESET)


class Elsewhere(LastEventID):
    """Its answer would come from another origin."""

    def resume_request(self, state: StreamState) -> Request | None:
        return Request(method="GET", url="https://other.example/")


def test_a_next_request_that_is_not_allowed_is_an_answer_and_no_exception() -> None:
    found = left(Leave.LOST, evs(1, 2), protocol=Elsewhere())
    assert isinstance(found, Stop) and found.cause is RESET
    assert "other.example" in str(found.error)
