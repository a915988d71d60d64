"""Rule 8, as values: what `Lost` puts in the place of a rest that cannot be requested, and what `Side` makes of the answers."""

from __future__ import annotations

from typing import Any

import pytest

from resumable_stream._contract import (
    Answer,
    Backfill,
    Claim,
    Finished,
    Over,
    Request,
    Resume,
    Retry,
    Snapshot,
    StreamState,
    Unproven,
    Verdict,
)
from resumable_stream._contract import Lost as Refusal
from resumable_stream._core import plan
from resumable_stream._core import side as sides
from resumable_stream._core.machine import Machine
from resumable_stream._core.plan import INSIDE, Ask, AskAgain, Done, GoOn, Leave, NoWayBack, Purpose, Restart, Stop, TryAgain
from resumable_stream._errors import CursorExpired, NotResumable, OriginMismatch, RetriesExhausted, StreamInterrupted
from resumable_stream._events import Outcome
from resumable_stream.protocols import LastEventID

from .simulation import NetworkError, evs, policy, reading

RESET = NetworkError("reset")
CUT = NoWayBack("connection lost", RESET)
RUN = Request(method="GET", url="/run")
OK = Answer(200, {}, b"")


class Stored(LastEventID):
    """What its provider says is a test's."""

    says: Verdict = Resume()
    stored: Snapshot | Retry | None = None

    def snapshot_request(self, state: StreamState) -> Request | None:
        return RUN

    def status_request(self, state: StreamState) -> Request | None:
        return RUN

    def on_verified(self, answer: Answer, state: StreamState) -> Verdict:
        return self.says

    def on_snapshot(self, answer: Answer, state: StreamState) -> Snapshot | Retry | None:
        return self.stored


def cut(**options: Any) -> Any:
    return reading(evs(1, 2), **options)._lost.after_cut(CUT)


# --- instead of the rest --------------------------------------------------------------------------------------------


def test_by_default_the_loss_is_an_error_with_its_cause() -> None:
    found = cut()
    assert isinstance(found.error, StreamInterrupted) and found.cause is RESET
    assert str(found.error).startswith("the stream was interrupted after 2 events (connection lost: NetworkError)")


def test_an_event_that_proved_nothing_is_named_as_the_reason() -> None:
    machine = reading(evs(1, 2))
    claim = Unproven("[DONE] came without a finish reason", "pass end=")
    machine._ending.after(plan.Unproven(claim), 1000.0, broken_off="")
    found: Any = machine._lost.after_cut(CUT)
    assert "([DONE] came without a finish reason)" in str(found.error) and str(found.error).endswith(". pass end=")


def test_a_read_that_the_caller_interrupted_says_what_to_do_instead() -> None:
    found: Any = reading()._lost.after_cut(NoWayBack(INSIDE, RESET))
    assert "pass timeouts=" in str(found.error)


@pytest.mark.parametrize(("expired", "kind"), [(True, CursorExpired), (False, NotResumable)])
def test_a_refusal_is_the_error_that_it_says(expired: bool, kind: type[Exception]) -> None:
    found: Any = reading()._lost.after_refusal(Refusal("gone", expired=expired))
    assert isinstance(found.error, kind)


def test_a_settled_outcome_needs_no_rest() -> None:
    machine = reading(evs(1, 2))
    machine._ending.settled = Outcome.COMPLETED
    assert machine._lost.after_cut(CUT) == Done(Outcome.COMPLETED)
    assert machine._lost.after_refusal(Refusal("gone")) == Done(Outcome.COMPLETED)


def test_a_restart_waits_and_is_bounded_by_the_policy() -> None:
    machine = reading(evs(1, 2), on_lost="restart", delay=policy(attempts=2))
    assert machine._lost.after_cut(CUT) == Restart(0.25)
    found: Any = machine._lost.after_cut(CUT)
    assert isinstance(found.error, RetriesExhausted) and "2 restarts" in str(found.error)


def test_the_stored_result_is_asked_for_if_the_caller_or_the_protocol_wants_that() -> None:
    assert cut(protocol=Stored(), on_lost="snapshot") == Ask("snapshot", RUN)
    assert reading(protocol=Stored())._lost.after_refusal(Refusal("gone", stored=True)) == Ask("snapshot", RUN)
    assert isinstance(cut(on_lost="snapshot"), Stop), "this protocol has no stored result"


# --- side requests --------------------------------------------------------------------------------------------------


def asked(purpose: Purpose, **options: Any) -> Machine:
    machine = reading(evs(1, 2), **options)
    machine._side.send(Ask(purpose, RUN), 1000.0)
    return machine


def answered(purpose: Purpose, answer: Answer = OK, *, says: Verdict = Resume(), stored: Any = None) -> Any:  # noqa: B008
    protocol = Stored()
    protocol.says, protocol.stored = says, stored
    return asked(purpose, protocol=protocol)._side.on_answer(answer)


def test_a_run_that_goes_on_was_no_failed_attempt_after_a_silence() -> None:
    assert answered("alive") == GoOn("closed before the end", Leave.NEUTRAL, checked=True)
    assert answered("verify") == GoOn("closed before the end", Leave.LOST, checked=True)


@pytest.mark.parametrize("purpose", ["verify", "alive", "snapshot"])
def test_an_answer_that_failed_is_asked_for_again(purpose: Purpose) -> None:
    found = answered(purpose, Answer(503, {}, b""))
    assert found.again == AskAgain(purpose, "status 503", None)
    assert found.failed.endswith("failed: status 503")


def test_a_claim_that_the_run_is_over_is_believed_once_the_rest_was_asked_for() -> None:
    protocol = Stored()
    protocol.says = Over(Outcome.COMPLETED)
    machine = asked("verify", protocol=protocol)
    machine.requests.sync()
    assert isinstance(machine._side.on_answer(OK), GoOn)
    assert machine.state.over == Claim(Outcome.COMPLETED, 2, 0)
    assert machine._side.on_answer(OK) == Finished(Outcome.COMPLETED)


def test_the_stored_result_is_there_or_not_yet_or_not_at_all() -> None:
    snapshot = Snapshot([], False, Outcome.COMPLETED)
    assert answered("snapshot", stored=snapshot) is snapshot
    assert answered("snapshot", stored=Retry()) == TryAgain(
        "the result is not ready",
        again=AskAgain("snapshot", "the result is not ready", None),
        failed="the request for the stored result failed: the result is not ready",
    )
    assert isinstance(answered("snapshot").error, CursorExpired)
    assert isinstance(answered("snapshot", Answer(404, {}, b""), stored=snapshot).error, CursorExpired)


def test_a_request_that_fails_is_asked_again_at_once_if_the_caller_ended_it() -> None:
    side = asked("verify")._side
    assert side.on_failure(RESET, inside=True) == AskAgain("verify", INSIDE, RESET)
    assert isinstance(side.on_failure(RESET, inside=False), TryAgain)
    side = asked("backfill")._side
    assert side.on_failure(RESET, inside=True) == GoOn(INSIDE, Leave.INSIDE, RESET)
    assert side.on_failure(RESET, inside=False) == GoOn("history not read", error=RESET)


def test_what_cannot_be_sent_is_no_request() -> None:
    side = reading()._side
    assert side.send(Ask("verify", Request(method="GET", url="/\ud800")), 0.0) == NoWayBack("an id that cannot be sent")
    found: Any = side.send(Ask("verify", Request(method="GET", url="https://other.example/")), 0.0)
    assert isinstance(found.error, OriginMismatch)


def test_the_run_is_asked_after_twice_before_the_stream_is_given_up() -> None:
    protocol = Stored()
    machine = reading(evs(1, 2), protocol=protocol)
    side, error = machine._side, RetriesExhausted("gave up", attempts=1, last_error="idle")
    assert side.last_request(error) == Stop(error), "nothing was resumed yet, so the error says it all"
    machine.state.resuming = True
    assert side.last_request(error) == Ask("last", RUN)
    side.send(Ask("last", RUN), 0.0)
    protocol.says = Over(Outcome.COMPLETED)
    assert side.on_answer(OK) == Ask("last", RUN)
    assert side.on_answer(OK) == Finished(Outcome.COMPLETED)


def test_last_words_that_lead_nowhere_leave_no_note() -> None:
    protocol = Stored()
    machine = reading(evs(1, 2), protocol=protocol)
    side, error = machine._side, RetriesExhausted("gave up", attempts=1, last_error="idle")
    machine.state.resuming = True
    side.last_request(error)
    side.send(Ask("last", RUN), 0.0)
    assert side.on_answer(OK) == Stop(error)
    assert side.on_failure(RESET, inside=False) == Stop(error)
    assert machine.state.over is None


def test_pages_of_history_are_read_to_the_last_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides, "PAGES", 2)
    side = reading(evs(1, 2))._side
    assert side.first_page() is None, "this protocol's connections bring it"
    assert side.after_page(Backfill([])) is None
    assert side.after_page(Backfill([], RUN)) == Ask("backfill", RUN)
    assert side.after_page(Backfill([], RUN)) == GoOn("a history of more than 2 pages")
