"""What the ten rules leave between them: resets by the protocol, limits, notices and counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from resumable_stream._core import actions as act
from resumable_stream._core.interfaces import Consume, Finished, Head, StreamState, Verdict
from resumable_stream._errors import EventTooLarge, RetriesExhausted
from resumable_stream._events import Outcome
from resumable_stream._settings import Limits
from resumable_stream.protocols import NDJSON, LastEventID

from .simulation import DROPPED, UNSENT, Reply, Stream, Wait, ev, evs, play, policy, run, script

DONE = ev("[DONE]")


# --- a protocol whose resume is a snapshot --------------------------------------------------------------------------


class Snapshots(LastEventID):
    """Each resume starts with the whole state (as A2A does): what was delivered is void."""

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        return Consume(reset=True) if status == 200 and state.resuming else None


def test_a_resume_that_begins_with_the_state_is_a_reset() -> None:
    result = play(
        Reply([evs(1, 2), "rst"]),
        DROPPED,
        Reply([ev("d1 d2 d3", "3"), "rst"]),
        Reply([ev("d1 d2 d3 d4", "4") + DONE]),
        protocol=Snapshots(end="[DONE]"),
    )
    assert result.data == ["d1", "d2", "d1 d2 d3", "d1 d2 d3 d4", "[DONE]"]
    assert [(event.reset, event.offset) for event in result.events] == [(False, 0), (False, 1), (True, 0), (True, 0), (False, 1)]
    assert result.stream.cursors == [None, "2", "2", "3"]
    assert [notice.offset for notice in result.stream.kinds(act.Restarted)] == [0, 0]
    assert result.stream.machine.stats.duplicates == 0


def test_a_state_that_is_cut_before_it_arrived_voids_nothing_silently() -> None:
    """The resume that brought nothing was void itself; the next one must still be a resume, and its state a reset."""
    result = play(Reply([evs(1, 2), "rst"]), Reply(["rst"]), Reply([ev("state", "3") + DONE]), protocol=Snapshots(end="[DONE]"))
    assert result.data == ["d1", "d2", "state", "[DONE]"]
    assert [event.reset for event in result.events] == [False, False, True, False]
    assert result.stream.cursors[1:] in (["2", "2"], ["2", None])


class Gone(LastEventID):
    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        return Finished(Outcome.CANCELLED) if status == 409 and b"cancelled" in body else None


def test_a_status_may_tell_the_outcome() -> None:
    result = play(
        Reply([evs(1, 2), "rst"]), Reply([b'{"state": "cancelled"}'], status=409, type="application/json"), protocol=Gone()
    )
    assert (result.data, result.outcome) == (["d1", "d2"], Outcome.CANCELLED)


# --- ids without data, where ids are counted ------------------------------------------------------------------------


@pytest.mark.parametrize("together", [True, False])
def test_a_block_without_data_takes_its_number(together: bool) -> None:
    """Promised contiguous: the number of a heartbeat that has an id is no hole."""
    parts = [ev("a", "1"), ev(None, "2"), ev("c", "3"), ev(None, "4"), ev(None, "5"), ev("f", "6"), DONE]
    result = play(Reply([b"".join(parts)] if together else parts), protocol=LastEventID(sequence="contiguous", end="[DONE]"))
    assert (result.data, result.error) == (["a", "c", "f", "[DONE]"], None)
    assert len(result.stream.sent) == 1


def test_a_block_without_data_takes_its_number_across_a_cut_too() -> None:
    protocol = LastEventID(sequence="contiguous", end="[DONE]")
    result = play(Reply([ev("a", "1") + ev(None, "2"), "rst"]), Reply([ev("c", "3") + DONE]), protocol=protocol)
    assert (result.data, result.error) == (["a", "c", "[DONE]"], None)


def test_a_hole_behind_a_block_without_data_is_one() -> None:
    protocol = LastEventID(sequence="contiguous", end="[DONE]")
    result = play(Reply([ev("a", "1") + ev(None, "2") + ev("e", "5")]), Reply([evs(3, 5) + DONE]), protocol=protocol)
    assert result.data == ["a", "d3", "d4", "d5", "[DONE]"]
    assert result.stream.cursors == [None, "2"]


def test_a_watched_counter_is_not_disturbed_by_a_block_without_data() -> None:
    result = play(Reply([evs(1, 9) + ev(None, "10") + evs(11, 12) + DONE]))
    assert not any(event.gap for event in result.events)
    apart = play(Reply([evs(1, 9), ev(None, "10"), evs(11, 12) + DONE]))
    assert not any(event.gap for event in apart.events)


# --- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [3, 1000])
def test_an_event_that_is_too_large_ends_the_stream_after_what_came_before_it(chunk: int) -> None:
    body = evs(1, 2) + ev("x" * 200, "3")
    pieces = [body[at : at + chunk] for at in range(0, len(body), chunk)]
    result = play(Reply(pieces), limits=Limits(event_bytes=100))
    assert result.data == ["d1", "d2"]
    assert isinstance(result.error, EventTooLarge)
    assert result.error.checkpoint is not None and result.error.checkpoint.cursor == "2"
    assert len(result.stream.sent) == 1


def test_a_line_that_never_ends_is_bounded() -> None:
    result = play(Reply([evs(1, 1), b"data: ", *[b"x" * 50] * 10]), limits=Limits(line_bytes=200))
    assert isinstance(result.error, EventTooLarge)
    lines = play(
        Reply([b'{"a": 1}\n', *[b"x" * 50] * 10], type="application/x-ndjson"), limits=Limits(line_bytes=200), protocol=NDJSON()
    )
    assert isinstance(lines.error, EventTooLarge)
    assert lines.data == ['{"a": 1}']


def test_a_marker_in_front_of_what_is_too_large_is_still_the_end() -> None:
    result = play(Reply([evs(1, 1) + DONE + ev("x" * 200)]), limits=Limits(event_bytes=100))
    assert (result.data, result.outcome) == (["d1", "[DONE]"], Outcome.COMPLETED)


# --- the question and what answers it -------------------------------------------------------------------------------


def test_a_finished_stream_that_the_server_forgot_is_not_paid_again_and_again() -> None:
    """Everything was delivered and closed cleanly; the question finds that the server keeps nothing. That is one loss at most."""
    body = [ev("a", "i1") + ev("b", "i2")]

    def server(sent: Any) -> Reply:
        return Reply(body) if sent.cursor is None else Reply(status=404, type="")

    result = run(Stream(server, on_lost="restart"))
    assert len([sent for sent in result.stream.sent if sent.cursor is None]) <= 2


# --- counts and notices ---------------------------------------------------------------------------------------------


def test_the_counts_tell_what_happened() -> None:
    result = play(
        Reply([evs(1, 3), Wait(10), "rst"]), UNSENT, Reply([evs(2, 4), "fin"]), Reply([DONE]), protocol=LastEventID(end="[DONE]")
    )
    stats = result.stream.machine.stats
    assert (stats.events, stats.duplicates, stats.connections, stats.reconnects) == (5, 2, 3, 2)
    assert stats.bytes == len(evs(1, 3) + evs(2, 4) + DONE)
    assert stats.seconds_offline == pytest.approx(0.25 + 1.0 + 0.25)
    assert not stats.cursor_ignored


def test_an_observer_is_told_in_order() -> None:
    result = play(Reply([evs(1, 3), "rst"]), Reply([ev("d3", "3") + DONE]), protocol=LastEventID(end="[DONE]"))
    assert [type(notice) for notice in result.stream.notices] == [
        act.Connected, act.Disconnected, act.Retrying, act.Connected, act.DuplicateDropped, act.Finished
    ]  # fmt: skip
    first, lost, retrying, second, duplicate, finished = result.stream.notices
    assert first == act.Connected(200, False, None)
    assert lost == act.Disconnected("connection lost", "NetworkError")
    assert retrying == act.Retrying(0, 0.25)
    assert second == act.Connected(200, True, "3")
    assert duplicate == act.DuplicateDropped("3")
    assert finished == act.Finished(Outcome.COMPLETED)


def test_a_finished_machine_stays_finished() -> None:
    stream = Stream(script(Reply([evs(1, 1) + DONE])))
    run(stream)
    for _ in range(3):
        assert stream.machine.next(stream.clock.now) == act.Finish(Outcome.COMPLETED)


def test_a_failed_machine_stays_failed() -> None:
    stream = Stream(script(UNSENT), delay=policy(1))
    error = run(stream).error
    assert isinstance(error, RetriesExhausted)
    for _ in range(3):
        with pytest.raises(RetriesExhausted):
            stream.machine.next(stream.clock.now)
    assert stream.machine.outcome is None


def test_opening_stops_in_front_of_the_first_read() -> None:
    stream = Stream(script(UNSENT, Reply(status=503, type=""), Reply([evs(1, 1), DONE]))).open()
    assert len(stream.sent) == 3
    assert stream.reads == []
    assert stream.state.head == Head(200, {"content-type": "text/event-stream"}, "https://api.example.com/stream")
    assert run(stream).data == ["d1", "[DONE]"]
