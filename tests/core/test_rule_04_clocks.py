"""Rule 4: first_event, idle, stall, deadline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from resumable_stream._contract import Answer, Interrupted, Request, Resume, StreamState, Verdict, Verify
from resumable_stream._contract import Finished as Done
from resumable_stream._contract import Retry as Again
from resumable_stream._errors import DeadlineExceeded, RetriesExhausted, StreamInterrupted
from resumable_stream._events import Outcome
from resumable_stream._settings import Timeouts
from resumable_stream.protocols import NDJSON, ByteRange, LastEventID

from .simulation import DROPPED, NO_ANSWER, UNSENT, Reply, Sent, Stream, Wait, ev, evs, play, policy, run, script

DONE = ev("[DONE]")
PING = b": ping\n\n"
NAMED = LastEventID(end="[DONE]")


def interrupted(result: Any, reason: str) -> None:
    assert isinstance(result.error, StreamInterrupted), result
    assert result.error.reason == reason


# --- first_event ----------------------------------------------------------------------------------------------------


def test_the_first_event_may_take_five_minutes_of_silence() -> None:
    result = play(Reply([Wait(299), evs(1, 1), DONE]))
    assert result.outcome is Outcome.COMPLETED
    assert len(result.stream.sent) == 1


def test_the_head_and_the_first_event_share_one_clock() -> None:
    result = play(Reply([Wait(150), evs(1, 1), DONE], after=100))
    assert result.outcome is Outcome.COMPLETED
    result = play(Reply([Wait(250), evs(1, 1)], after=100), Reply([DONE]))
    assert len(result.stream.sent) == 2
    assert result.stream.sent[0].timeout == 300.0
    assert result.stream.sent[1].at == pytest.approx(1300.0, abs=2)


def test_heartbeats_do_not_feed_the_clock_of_the_first_event() -> None:
    beats = [Wait(10), PING] * 40
    result = play(Reply(beats), Reply([evs(1, 1), DONE]))
    assert result.outcome is Outcome.COMPLETED
    assert 299 <= result.stream.sent[1].at - 1000 <= 311


def test_a_post_that_is_silent_from_the_start_is_interrupted_not_repeated() -> None:
    result = play(Reply([Wait(1000)]), method="POST", timeouts=Timeouts(first_event=20.0))
    interrupted(result, "first_event")
    assert result.stream.elapsed == pytest.approx(20.0)
    result = play(NO_ANSWER, method="POST", timeouts=Timeouts(first_event=20.0))
    interrupted(result, "first_event")


def test_the_head_of_a_reconnect_has_the_idle_time() -> None:
    result = play(Reply([evs(1, 1), "rst"]), NO_ANSWER, Reply([DONE]), timeouts=Timeouts(idle=7.0))
    assert [sent.timeout for sent in result.stream.sent] == [300.0, 7.0, 7.0]


def test_none_switches_a_clock_off() -> None:
    result = play(
        Reply([Wait(1e6), evs(1, 1), Wait(1e6), PING, Wait(1e6), DONE]),
        timeouts=Timeouts(first_event=None, idle=None, stall=None),
    )
    assert result.outcome is Outcome.COMPLETED
    assert result.stream.sent[0].timeout is None


# --- idle -----------------------------------------------------------------------------------------------------------


def test_silence_of_a_minute_reconnects_where_the_stream_can_be_resumed() -> None:
    result = play(Reply([evs(1, 1), Wait(59), evs(2, 2), Wait(61)]), Reply([evs(3, 3), DONE]))
    assert result.data == ["d1", "d2", "d3", "[DONE]"]
    assert result.stream.sent[1].at - 1000 == pytest.approx(59 + 60 + 0.25)


def test_silence_of_ten_minutes_ends_what_cannot_be_resumed() -> None:
    result = play(Reply([ev("a"), Wait(299), ev("b"), Wait(700)]), timeouts=Timeouts(stall=None))
    assert result.data == ["a", "b"]
    interrupted(result, "idle")
    assert result.stream.elapsed == pytest.approx(299 + 600)


def test_the_first_id_turns_the_long_clock_into_the_short_one() -> None:
    result = play(Reply([ev("a"), Wait(100), ev("b", "2"), Wait(100)]), Reply([DONE]))
    assert result.data == ["a", "b", "[DONE]"]
    assert result.stream.sent[1].at - 1000 == pytest.approx(100 + 60 + 0.25)


def test_an_id_alone_turns_the_clock_too() -> None:
    result = play(Reply([ev("a"), Wait(1), ev(None, "2"), Wait(100)]), Reply([DONE]))
    assert result.data == ["a", "[DONE]"]


def test_bytes_of_any_kind_feed_the_idle_clock() -> None:
    result = play(
        Reply([evs(1, 1), *[Wait(50), PING] * 5, Wait(50), b"data", Wait(50), b": x\n\n", DONE]), timeouts=Timeouts(stall=None)
    )
    assert len(result.stream.sent) == 1
    assert result.outcome is Outcome.COMPLETED


def test_a_slow_consumer_stops_the_clocks() -> None:
    stream = Stream(
        script(Reply([evs(1, 2), Wait(50), PING, evs(3, 3), Wait(50), DONE])),
        timeouts=Timeouts(first_event=60, idle=60, stall=120),
    )
    data = []
    for event in stream:
        data.append(event.data)
        stream.clock.now += 10_000
    assert data == ["d1", "d2", "d3", "[DONE]"]
    assert len(stream.sent) == 1


def test_a_consumer_that_is_slow_before_the_first_read_has_no_say() -> None:
    stream = Stream(script(Reply([Wait(200), evs(1, 1), DONE]))).open()
    stream.clock.now += 10_000
    assert run(stream).outcome is Outcome.COMPLETED


# --- stall ----------------------------------------------------------------------------------------------------------


def test_heartbeats_alone_do_not_keep_a_generation_alive() -> None:
    result = play(Reply([evs(1, 1), *[Wait(15), PING] * 100]), Reply([evs(2, 2), DONE]))
    assert result.data == ["d1", "d2", "[DONE]"]
    assert 300 <= result.stream.sent[1].at - 1000 <= 316


def test_a_heartbeat_with_an_id_is_no_event_either() -> None:
    beats = [step for number in range(100) for step in (Wait(15), ev(None, f"k{number}"))]
    result = play(Reply([evs(1, 1), *beats]), Reply([evs(2, 2), DONE]))
    assert result.data == ["d1", "d2", "[DONE]"]
    assert len(result.stream.sent) == 2


def test_repeats_do_not_keep_a_generation_alive() -> None:
    result = play(Reply([evs(1, 1), "rst"]), Reply([ev("d1", "1"), Wait(15)] * 100), Reply([evs(2, 2), DONE]), protocol=NAMED)
    assert result.data == ["d1", "d2", "[DONE]"]
    assert 300 <= result.stream.sent[2].at - 1000 <= 320


def test_half_an_event_for_ever_is_a_stall() -> None:
    result = play(Reply([evs(1, 1), b"data: ", *[Wait(10), b"x"] * 100]), Reply([evs(2, 2), DONE]))
    assert result.data == ["d1", "d2", "[DONE]"]


def test_an_event_starts_the_stall_clock_anew() -> None:
    body = [Wait(15), PING] * 15 + [Wait(15), b"data: x\n\n"]
    result = play(Reply([evs(1, 1), *body * 4, DONE]))
    assert len(result.stream.sent) == 1
    assert result.outcome is Outcome.COMPLETED


def test_a_stall_of_what_cannot_be_resumed_names_itself() -> None:
    result = play(Reply([ev("a"), *[Wait(15), PING] * 100]), timeouts=Timeouts(stall=100.0))
    interrupted(result, "stall")
    assert 100 <= result.stream.elapsed <= 116


def test_a_feed_may_be_quiet_for_ever() -> None:
    quiet = [Wait(15), PING] * 500
    result = play(
        Reply([evs(1, 1), *quiet, evs(2, 2), *quiet, evs(3, 3)]), Reply(status=204, type=""), protocol=LastEventID(end="never")
    )
    assert result.data == ["d1", "d2", "d3"]
    assert len(result.stream.sent) == 2


def test_a_stall_can_be_asked_of_a_feed() -> None:
    result = play(
        Reply([evs(1, 1), *[Wait(15), PING] * 100]),
        Reply(status=204, type=""),
        protocol=LastEventID(end="never"),
        timeouts=Timeouts(stall=100),
    )
    assert result.outcome is Outcome.ENDED
    assert 100 <= result.stream.elapsed <= 117


def test_the_stall_clock_is_exact_when_it_is_the_next_to_run_out() -> None:
    result = play(Reply([evs(1, 1), Wait(40), PING, Wait(1000)]), Reply([DONE]), timeouts=Timeouts(idle=60, stall=70))
    assert result.stream.sent[1].at - 1000 == pytest.approx(70.25)
    result = play(Reply([evs(1, 1), Wait(1000)]), Reply([DONE]), timeouts=Timeouts(idle=60, stall=30))
    assert result.stream.sent[1].at - 1000 == pytest.approx(30.25)


def test_bytes_stall_too() -> None:
    result = play(
        Reply([b"abc", Wait(1000)], headers={"etag": '"1"', "content-length": "6"}, type=""),
        Reply([b"def"], status=206, headers={"content-range": "bytes 3-5/6"}, type=""),
        protocol=ByteRange(),
    )
    assert result.data == [b"abc", b"def"]
    assert result.outcome is Outcome.COMPLETED


def test_ndjson_that_falls_silent_is_interrupted() -> None:
    result = play(
        Reply([b'{"a": 1}\n', Wait(5000)], type="application/x-ndjson"),
        protocol=NDJSON(),
        method="POST",
        timeouts=Timeouts(stall=None),
    )
    interrupted(result, "idle")


# --- deadline -------------------------------------------------------------------------------------------------------


def test_a_deadline_counts_wall_time_from_the_opening() -> None:
    result = play(Reply([evs(1, 1), *[Wait(15), evs(2, 2)] * 100]), timeouts=Timeouts(deadline=40.0))
    assert isinstance(result.error, DeadlineExceeded)
    assert result.stream.elapsed == pytest.approx(40.0)
    assert result.error.checkpoint is not None and result.error.checkpoint.cursor == "2"


def test_a_deadline_runs_while_the_consumer_works() -> None:
    stream = Stream(script(Reply([evs(1, 2), Wait(1), evs(3, 3)])), timeouts=Timeouts(deadline=40.0))
    next(stream)
    stream.clock.now += 100
    assert next(stream).data == "d2"  # it is looked at when we wait
    with pytest.raises(DeadlineExceeded):
        next(stream)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_deadline_ends_waits_and_connecting(method: str) -> None:
    busy = Reply(status=503, type="", headers={"retry-after": "30"})
    result = run(Stream(lambda sent: busy, method=method, timeouts=Timeouts(deadline=70.0)))
    assert isinstance(result.error, DeadlineExceeded)
    assert result.stream.elapsed <= 70.0
    result = run(Stream(lambda sent: NO_ANSWER, timeouts=Timeouts(deadline=70.0)))
    assert isinstance(result.error, DeadlineExceeded)
    assert result.stream.elapsed == pytest.approx(70.0)
    assert result.stream.sent[0].timeout == 70.0


def test_a_deadline_on_a_stream_that_cannot_be_resumed_is_a_deadline() -> None:
    result = play(Reply([ev("a"), Wait(1000)]), method="POST", timeouts=Timeouts(deadline=5.0))
    assert isinstance(result.error, DeadlineExceeded)


def test_a_deadline_bounds_a_feed_that_rotates() -> None:
    result = run(
        Stream(
            lambda sent: Reply([Wait(30)]) if sent.cursor else Reply([evs(1, 1)]),
            protocol=LastEventID(end="never"),
            timeouts=Timeouts(deadline=600.0),
        )
    )
    assert isinstance(result.error, DeadlineExceeded)


class OneByOne(LastEventID):
    """Each answer is complete, and the next one is asked for as routine."""

    def on_clean_close(self, state: StreamState) -> Verdict:
        return Resume(routine=True)


def test_a_deadline_bounds_the_wait_before_a_routine_answer() -> None:
    """The server asked for 30 s between two requests, and the first of two such waits has passed."""
    steps = Reply([b"retry: 30000\n", evs(1, 1), "rst"]), *[Reply([evs(at, at)]) for at in (2, 3, 4)]
    result = play(*steps, protocol=OneByOne(), timeouts=Timeouts(deadline=40.0))
    assert isinstance(result.error, DeadlineExceeded)
    assert (result.stream.elapsed, result.stream.sleeps) == (40.0, [30.0, 10.0])


class Asks(LastEventID):
    """After a clean close the provider is asked how the run went."""

    def on_clean_close(self, state: StreamState) -> Verdict:
        return Verify(Request(method="GET", url="/run"))


@pytest.mark.parametrize("answer", [NO_ANSWER, Reply(["rst"], after=50)], ids=["silence", "cut"])
def test_a_deadline_ends_the_question_how_it_went(answer: Any) -> None:
    """Whatever else the question becomes, the caller has waited as long as they said they would."""
    result = play(Reply([evs(1, 1), Wait(30)]), answer, *[answer] * 3, protocol=Asks(), timeouts=Timeouts(deadline=60.0))
    assert isinstance(result.error, DeadlineExceeded)
    assert result.stream.elapsed <= 81.0


def test_a_cut_after_the_deadline_is_the_deadline() -> None:
    """The consumer took longer than the stream may: it is not asked for again, although it could be."""
    stream = Stream(script(Reply([evs(1, 1), "rst"])), timeouts=Timeouts(deadline=40.0))
    next(stream)
    stream.clock.now += 100
    with pytest.raises(DeadlineExceeded):
        next(stream)
    assert len(stream.sent) == 1


# --- the status check -----------------------------------------------------------------------------------------------


class Checked(LastEventID):
    """Its run can be asked after."""

    def __init__(self, found: Verdict = Resume(), **options: Any) -> None:  # noqa: B008
        super().__init__(end="[DONE]", **options)
        self.found = found

    def status_request(self, state: StreamState) -> Request | None:
        return Request(method="GET", url="/status")

    def on_verified(self, answer: Answer, state: StreamState) -> Verdict:
        return self.found


def silent(sent: Sent) -> Reply:
    if sent.side:
        return Reply([b"{}"], type="application/json")
    return Reply([evs(1, 1), "rst"]) if sent.cursor is None else Reply(["silence"])


def test_a_silent_connection_of_a_run_that_runs_is_no_failed_attempt() -> None:
    result = run(
        Stream(silent, protocol=Checked(), delay=policy(attempts=3), timeouts=Timeouts(deadline=5000.0), connections=500)
    )
    assert isinstance(result.error, DeadlineExceeded)
    assert len([sent for sent in result.stream.sent if sent.side]) > 20


def test_without_a_status_check_silence_is_a_failed_attempt() -> None:
    result = run(Stream(silent, protocol=NAMED, delay=policy(attempts=3)))
    assert isinstance(result.error, RetriesExhausted)


def test_a_status_check_that_says_running_does_not_give_failures_a_new_budget() -> None:
    calls = 0

    def server(sent: Sent) -> Any:
        nonlocal calls
        if sent.side:
            return Reply([b"{}"], type="application/json")
        calls += 1
        if calls == 1:
            return Reply([evs(1, 1), "rst"])
        return Reply(["silence"]) if calls % 3 == 0 else Reply(status=503, type="")

    result = run(Stream(server, protocol=Checked(), delay=policy(attempts=4)))
    assert isinstance(result.error, RetriesExhausted)


@pytest.mark.parametrize(
    ("found", "outcome"),
    [(Done(Outcome.FAILED), Outcome.FAILED), (Done(Outcome.COMPLETED), Outcome.COMPLETED), (Interrupted("gone"), None)],
)
def test_a_status_check_may_end_the_stream(found: Verdict, outcome: Outcome | None) -> None:
    result = run(Stream(silent, protocol=Checked(found)))
    assert result.outcome is outcome
    if outcome is None:
        interrupted(result, "gone")


def test_a_status_check_that_fails_is_a_failed_attempt() -> None:
    def server(sent: Sent) -> Any:
        return Reply(status=500, type="") if sent.side else silent(sent)

    result = run(Stream(server, protocol=Checked(), delay=policy(attempts=3)))
    assert isinstance(result.error, RetriesExhausted)


def test_each_clock_of_its_own_is_reported_where_nothing_can_be_resumed() -> None:
    for name, steps in {
        "first_event": [Wait(100)],
        "idle": [ev("a"), Wait(100)],
        "stall": [ev("a"), *[Wait(4), PING] * 20],
    }.items():
        timeouts = Timeouts(first_event=9.0, idle=9.0, stall=30.0)
        interrupted(play(Reply(steps), method="POST", timeouts=timeouts), name)


# --- the question before giving up ----------------------------------------------------------------------------------


def failing(how: Any) -> Callable[[Sent], Any]:
    """One event, then nothing that can be read; the status can."""

    def server(sent: Sent) -> Any:
        if sent.side:
            return Reply([b"{}"], type="application/json")
        return Reply([evs(1, 1), "rst"]) if sent.cursor is None else how

    return server


WAYS = [Reply(["rst"]), Reply(["fin"]), Reply(["close"]), Reply(status=503, type=""), DROPPED, NO_ANSWER]


@pytest.mark.parametrize("how", WAYS, ids=["rst", "fin", "close", "503", "dropped", "no answer"])
def test_whoever_can_say_how_the_run_stands_is_asked_before_giving_up(how: Any) -> None:
    """a2aproject/A2A#174. The run has ended, its stream can no longer be read: that is an end, however the reads failed."""
    stream = Stream(failing(how), protocol=Checked(Done(Outcome.FAILED)), delay=policy(attempts=3))
    result = run(stream)
    assert (result.outcome, result.error, result.data) == (Outcome.FAILED, None, ["d1"])
    assert stream.sent[-1].side


@pytest.mark.parametrize("how", WAYS[:2] + WAYS[3:5], ids=["rst", "fin", "503", "dropped"])
@pytest.mark.parametrize("found", [Resume(), Interrupted("gone"), Again("busy")])
def test_what_is_no_end_leaves_the_error_as_it_was(how: Any, found: Verdict) -> None:
    """The error names what failed, which is the stream; and one question is enough."""
    stream = Stream(failing(how), protocol=Checked(found), delay=policy(attempts=3))
    result = run(stream)
    assert isinstance(result.error, RetriesExhausted)
    assert result.error.attempts == 3
    assert len([sent for sent in stream.sent if sent.side]) == 1


@pytest.mark.parametrize("answer", [Reply(status=503, type=""), DROPPED, NO_ANSWER], ids=["503", "dropped", "no answer"])
def test_a_question_without_an_answer_leaves_the_error_as_it_was(answer: Any) -> None:
    def server(sent: Sent) -> Any:
        return answer if sent.side else failing(Reply(["rst"]))(sent)

    stream = Stream(server, protocol=Checked(Done(Outcome.FAILED)), delay=policy(attempts=3))
    result = run(stream)
    assert isinstance(result.error, RetriesExhausted)
    assert len([sent for sent in stream.sent if sent.side]) == 1


def test_where_nobody_can_be_reached_nobody_is_asked() -> None:
    stream = Stream(failing(UNSENT), protocol=Checked(Done(Outcome.FAILED)), delay=policy(attempts=3))
    assert isinstance(run(stream).error, RetriesExhausted)
    assert not [sent for sent in stream.sent if sent.side]
