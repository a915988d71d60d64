"""Rule 7, as values: what `Ending` answers to a turn."""

from __future__ import annotations

from typing import Any

import pytest

from resumable_stream._contract import Finished, Request, Resume, StreamState, Unproven, Verdict
from resumable_stream._contract import Lost as Refusal
from resumable_stream._core import plan
from resumable_stream._core.plan import Ask, Done, GoOn, Leave, Stop
from resumable_stream._errors import DeadlineExceeded, EventTooLarge, GapError, ProtocolViolation, UpstreamError
from resumable_stream._events import Gap, Outcome, StreamEvent
from resumable_stream._settings import Timeouts
from resumable_stream.protocols import CursorProtocol, LastEventID

from .simulation import ev, evs, reading, seqs

NOW = 1001.0
ERROR = UpstreamError("overloaded")
CUT = EventTooLarge("too large", limit=1)
LOST = Refusal("the log is gone")
NUMBERED = CursorProtocol(read="seq", send="query:after", sequence="contiguous", first_sequence=1)


class Told(LastEventID):
    """What it says about a close is a test's."""

    found: Verdict = Finished(Outcome.ENDED, verified=True)

    def on_clean_close(self, state: StreamState) -> Verdict:
        return self.found

    def on_unproven(self, state: StreamState) -> Verdict:
        return Resume()


def after(turn: plan.Turn, body: bytes = evs(1, 2), *, broken_off: str = "", now: float = NOW, **options: Any) -> plan.Next:
    return reading(body, **options)._ending.after(turn, now, broken_off=broken_off)


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        (plan.Ended(Outcome.COMPLETED), Done(Outcome.COMPLETED)),
        (plan.Failed(ERROR), Stop(ERROR)),
        (plan.Broken(CUT), Stop(CUT)),
        (plan.Refused(LOST), LOST),
        (plan.Closed(), Done(Outcome.ENDED)),
        (plan.Unproven(Unproven("[DONE] without a finish reason")), GoOn("closed before the end")),
        (plan.RanOut("idle"), GoOn("idle")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_turn_has_one_answer(turn: plan.Turn, expected: plan.Next) -> None:
    assert after(turn, protocol=Told()) == expected


def test_a_marker_that_only_says_over_does_not_replace_a_settled_outcome() -> None:
    machine = reading(evs(1, 2))
    machine._ending.settled = Outcome.INCOMPLETE
    assert machine._ending.after(plan.Ended(Outcome.COMPLETED), NOW, broken_off="") == Done(Outcome.INCOMPLETE)


def test_a_close_inside_an_event_is_a_cut_whatever_the_protocol_says() -> None:
    assert after(plan.Closed(), broken_off="closed inside an event", protocol=Told()) == GoOn("closed inside an event")


def test_what_is_not_json_is_reported_with_its_place() -> None:
    found = after(plan.Unreadable(StreamEvent("message", "{bad")))
    assert isinstance(found, Stop) and isinstance(found.error, ProtocolViolation)
    assert found.error.offset == 2


def test_a_hole_is_asked_for_once_and_then_is_an_error() -> None:
    machine = reading(seqs(1, 3), protocol=NUMBERED)
    turn, machine._turn = machine._turn, None
    assert turn == plan.Problem()
    assert machine._ending.after(turn, NOW, broken_off="") == GoOn("gap")
    assert not machine._ledger.hole(Gap(expected=2, received=3))
    found = machine._ending.after(plan.Announced(Gap(expected=2, received=3), (), ()), NOW, broken_off="")
    assert isinstance(found, Stop) and isinstance(found.error, GapError)


def test_the_deadline_is_an_error_and_says_why_the_connection_is_over() -> None:
    found = after(plan.RanOut("deadline"), timeouts=Timeouts(deadline=1.0))
    assert isinstance(found, Stop) and isinstance(found.error, DeadlineExceeded)
    assert found.reason == "deadline"


class Checked(LastEventID):
    def status_request(self, state: StreamState) -> Request | None:
        return Request(method="GET", url="/run")


def test_a_silence_without_progress_is_a_question_to_the_provider() -> None:
    assert after(plan.RanOut("idle"), b"id: 7\n\n", protocol=Checked()) == Ask("alive", Checked().status_request(None), "idle")  # type: ignore[arg-type]
    assert after(plan.RanOut("idle"), evs(1, 2), protocol=Checked()) == GoOn("idle")


def test_nothing_vouches_for_a_close_and_the_answer_says_what_to_pass() -> None:
    found = after(plan.Closed(), ev("a", id="7"), protocol=_vague())
    assert isinstance(found, Done) and not found.verified
    assert "1 event" in found.doubt and "end=…" in found.doubt


def _vague() -> LastEventID:
    protocol = Told()
    protocol.found = Finished(Outcome.ENDED)
    return protocol


def test_a_feed_that_was_held_open_has_not_failed() -> None:
    protocol = LastEventID(end="never")
    assert after(plan.Closed(), b"id: 7\n\n", protocol=protocol, now=1060.0) == GoOn("closed before the end", Leave.NEUTRAL)
    assert after(plan.Closed(), b"id: 7\n\n", protocol=protocol) == GoOn("closed before the end")
