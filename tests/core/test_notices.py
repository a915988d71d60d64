"""What the machine counts and reports, and how it opens, ends and fails."""

from __future__ import annotations

import pytest

from resumable_stream import _notices as note
from resumable_stream._contract import Head
from resumable_stream._core import actions as act
from resumable_stream._errors import RetriesExhausted
from resumable_stream._events import Outcome
from resumable_stream.protocols import LastEventID

from .simulation import UNSENT, Reply, Stream, Wait, ev, evs, play, policy, run, script

DONE = ev("[DONE]")


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
        note.Connected, note.Disconnected, note.Retrying, note.Connected, note.DuplicateDropped, note.Finished
    ]  # fmt: skip
    first, lost, retrying, second, duplicate, finished = result.stream.notices
    assert first == note.Connected(200, False, None)
    assert lost == note.Disconnected("connection lost", "NetworkError")
    assert retrying == note.Retrying(0, 0.25)
    assert second == note.Connected(200, True, "3")
    assert duplicate == note.DuplicateDropped("3")
    assert finished == note.Finished(Outcome.COMPLETED)


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
