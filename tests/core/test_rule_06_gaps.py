"""Rule 6: holes are found, asked for again, and raised or marked."""

from __future__ import annotations

from typing import Any

import pytest

from resumable_stream._contract import Settled
from resumable_stream._errors import GapError, RetriesExhausted, StreamInterrupted
from resumable_stream._events import Gap, Outcome
from resumable_stream._notices import GapFound, NumberingStopped
from resumable_stream.protocols import CursorProtocol, LastEventID

from .simulation import DROPPED, Reply, Stream, ev, evs, play, policy, run, script, seqs

DONE = ev("[DONE]")


def numbered(**options: Any) -> CursorProtocol:
    return CursorProtocol(**{"read": "seq", "send": "query:after", "end": "[DONE]", "sequence": "contiguous", **options})


def asked(result: Any) -> list[str | None]:
    return [sent.params.get("after") for sent in result.stream.sent]


def sequences(result: Any) -> list[int | None]:
    return [event.sequence for event in result.events]


# --- promised numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_gap", ["refetch", "deliver"])
@pytest.mark.parametrize("together", [True, False])
def test_a_hole_is_asked_for_again_and_filled(on_gap: str, together: bool) -> None:
    """The event beyond it is dropped with its connection; the next one starts at the last contiguous cursor."""
    body = [seqs(1, 2, 3) + seqs(6, 7)] if together else [seqs(1, 2, 3), seqs(6), seqs(7)]
    result = play(Reply(body), Reply([seqs(4, 5, 6, 7), DONE]), protocol=numbered(), on_gap=on_gap)
    assert sequences(result) == [1, 2, 3, 4, 5, 6, 7, None]
    assert asked(result) == [None, "3"]
    assert not any(event.gap for event in result.events)
    assert result.stream.machine.stats.gaps == 1
    assert [notice.asked_again for notice in result.stream.kinds(GapFound)] == [True]


def test_a_hole_that_stays_open_is_an_error_with_numbers() -> None:
    result = play(Reply([seqs(1, 2, 5)]), Reply([seqs(5, 6)]), protocol=numbered())
    error = result.error
    assert isinstance(error, GapError)
    assert (error.expected, error.received) == (3, 5)
    assert sequences(result) == [1, 2]
    assert error.checkpoint is not None and (error.checkpoint.cursor, error.checkpoint.sequence) == ("2", 2)
    assert "expected sequence 3, received 5" in str(error)
    assert asked(result) == [None, "2"]


def test_a_hole_that_stays_open_is_marked_for_who_wants_to_go_on() -> None:
    result = play(Reply([seqs(1, 2, 5)]), Reply([seqs(5, 6), DONE]), protocol=numbered(), on_gap="deliver")
    assert sequences(result) == [1, 2, 5, 6, None]
    assert [event.gap for event in result.events] == [None, None, Gap(expected=3, received=5, after="2"), None, None]
    assert result.events[2].gap.missing == 2
    assert [notice.asked_again for notice in result.stream.kinds(GapFound)] == [True, False]


def test_a_cut_in_between_spends_the_retry_budget_not_the_refetch() -> None:
    result = play(
        Reply([seqs(1, 2, 5)]), DROPPED, Reply(["rst"]), Reply([b": ping\n\n"]), Reply([seqs(3, 4, 5), DONE]), protocol=numbered()
    )
    assert sequences(result) == [1, 2, 3, 4, 5, None]


def test_a_cut_in_between_leaves_the_refusal_to_an_event_beyond() -> None:
    result = play(Reply([seqs(1, 2, 5)]), DROPPED, Reply([seqs(5)]), protocol=numbered())
    assert isinstance(result.error, GapError)
    result = play(Reply([seqs(1, 2, 5)]), DROPPED, DROPPED, DROPPED, protocol=numbered(), delay=policy(attempts=2))
    assert isinstance(result.error, RetriesExhausted)


def test_a_hole_that_is_filled_in_part_is_asked_for_again() -> None:
    result = play(Reply([seqs(1, 2, 9)]), Reply([seqs(3, 4, 9)]), Reply([seqs(5, 6, 7, 8, 9), DONE]), protocol=numbered())
    assert sequences(result) == [*range(1, 10), None]
    assert asked(result) == [None, "2", "4"]


def test_two_holes_are_asked_for_one_after_the_other() -> None:
    result = play(Reply([seqs(1, 3)]), Reply([seqs(2, 3, 4, 7)]), Reply([seqs(5, 6, 7), DONE]), protocol=numbered())
    assert sequences(result) == [*range(1, 8), None]


def test_the_same_hole_found_after_a_cut_is_asked_for_only_once() -> None:
    def server(sent: Any) -> Reply:
        after = sent.params.get("after")
        return Reply([seqs(1, 2, 5)]) if after is None else Reply([seqs(5, 6), "rst"])

    result = run(Stream(server, protocol=numbered()))
    assert isinstance(result.error, GapError)
    assert len(result.stream.sent) == 2


def test_a_hole_at_the_very_start_is_seen_where_the_first_number_is_promised() -> None:
    result = play(Reply([seqs(2, 3)]), Reply([seqs(1, 2, 3), DONE]), protocol=numbered(first_sequence=1))
    assert sequences(result) == [1, 2, 3, None]
    result = play(Reply([seqs(2, 3)]), Reply([seqs(2)]), protocol=numbered(first_sequence=1))
    assert isinstance(result.error, GapError)
    assert (result.error.expected, result.error.received) == (1, 2)
    result = play(Reply([seqs(2, 3), DONE]), protocol=numbered())
    assert sequences(result) == [2, 3, None]


@pytest.mark.parametrize("on_gap", ["refetch", "deliver"])
def test_a_hole_where_nobody_can_be_asked_is_marked_and_reported(on_gap: str) -> None:
    """
    One answer that was never cut, of a stream that cannot be asked again: a jump is how the provider counts.

    To end the stream would lose the rest of an answer of which nothing is known to be missing (BerriAI/litellm#32579).
    """
    result = play(Reply([seqs(1, 3), DONE]), protocol=numbered(), method="POST", on_gap=on_gap)
    assert sequences(result) == [1, 3, None]
    assert result.events[1].gap == Gap(expected=2, received=3, after="1")
    assert [notice.asked_again for notice in result.stream.kinds(GapFound)] == [False]
    assert result.stream.machine.stats.gaps == 1


def test_an_event_without_a_number_is_no_hole() -> None:
    result = play(Reply([seqs(1) + ev('{"x": 1}') + seqs(2) + ev("not json") + seqs(3) + DONE]), protocol=numbered())
    assert sequences(result) == [1, None, 2, None, 3, None]


def test_a_hole_between_processes_is_found() -> None:
    first = Stream(script(Reply([seqs(1, 2, 3)])), protocol=numbered())
    for _ in range(3):
        next(first)
    second = run(Stream(script(Reply([seqs(5)]), Reply([seqs(4, 5), DONE])), protocol=numbered(), checkpoint=first.leave()))
    assert sequences(second) == [4, 5, None]


# --- what stands beyond a hole does not count -----------------------------------------------------------------------


def test_a_terminal_event_beyond_a_hole_ends_nothing() -> None:
    protocol = numbered(end=lambda event: '"last": true' in event.data)
    result = play(Reply([seqs(1, 2) + seqs(5, last=True)]), Reply([seqs(3, 4) + seqs(5, last=True)]), protocol=protocol)
    assert sequences(result) == [1, 2, 3, 4, 5]
    assert result.outcome is Outcome.COMPLETED
    assert len(result.stream.sent) == 2


def settling(event: Any) -> Any:
    if event.data == "[DONE]":
        return Outcome.COMPLETED
    return Settled(Outcome.COMPLETED) if '"finish"' in event.data else None


@pytest.mark.parametrize("on_gap", ["refetch", "deliver"])
def test_an_event_that_settles_the_outcome_beyond_a_hole_settles_nothing(on_gap: str) -> None:
    protocol = numbered(end=settling)
    body = seqs(1, 2) + seqs(5, finish=1)
    result = play(Reply([body]), Reply([seqs(3, 4) + seqs(5, finish=1) + DONE]), protocol=protocol, on_gap=on_gap)
    assert sequences(result) == [1, 2, 3, 4, 5, None]


def test_an_outcome_settled_beyond_a_hole_is_forgotten_with_its_connection() -> None:
    result = play(
        Reply([seqs(1, 2) + seqs(5, finish=1)]),
        Reply([seqs(3), "rst"]),
        Reply([seqs(4) + seqs(5, finish=1)]),
        protocol=numbered(end=settling),
    )
    assert sequences(result) == [1, 2, 3, 4, 5]
    assert result.outcome is Outcome.COMPLETED


def test_a_hole_behind_the_event_that_settled_the_outcome_is_no_silent_loss() -> None:
    result = play(Reply([seqs(1) + seqs(2, finish=1) + seqs(4)]), Reply([seqs(3, 4) + DONE]), protocol=numbered(end=settling))
    assert sequences(result) == [1, 2, 3, 4, None]


def test_an_error_frame_beyond_a_hole_waits_for_the_hole() -> None:
    result = play(
        Reply([seqs(1) + seqs(4) + ev('{"error": {"message": "m"}}')]), Reply([seqs(2, 3, 4) + DONE]), protocol=numbered()
    )
    assert sequences(result) == [1, 2, 3, 4, None]


def test_an_id_alone_beyond_a_hole_does_not_move_the_cursor() -> None:
    protocol = LastEventID(sequence="contiguous", end="[DONE]")
    result = play(Reply([evs(1, 2) + evs(5, 5) + ev(None, "9")]), Reply([evs(3, 5) + DONE]), protocol=protocol)
    assert result.data == ["d1", "d2", "d3", "d4", "d5", "[DONE]"]
    assert result.stream.cursors == [None, "2"]


# --- plain SSE, contiguous ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_gap", ["refetch", "deliver"])
def test_ids_promised_contiguous_are_held_to_it(on_gap: str) -> None:
    protocol = LastEventID(sequence="contiguous", end="[DONE]")
    result = play(Reply([evs(1, 2), evs(4, 4)]), Reply([evs(3, 4), DONE]), protocol=protocol, on_gap=on_gap)
    assert result.data == ["d1", "d2", "d3", "d4", "[DONE]"]
    refused = play(Reply([evs(1, 2), evs(4, 4)]), Reply([evs(4, 4), DONE]), protocol=protocol, on_gap=on_gap)
    if on_gap == "refetch":
        assert isinstance(refused.error, GapError)
    else:
        assert [event.gap is not None for event in refused.events] == [False, False, True, False]


# --- plain SSE, auto ------------------------------------------------------------------------------------------------


def test_a_watched_jump_is_marked_and_told_without_a_reconnect() -> None:
    result = play(Reply([evs(1, 8), evs(11, 12), DONE]))
    assert result.data == [*(f"d{n}" for n in range(1, 9)), "d11", "d12", "[DONE]"]
    assert [event.offset for event in result.events if event.gap] == [8]
    assert result.events[8].gap == Gap(expected=9, received=11, after="8")
    assert len(result.stream.sent) == 1
    assert result.stream.machine.stats.gaps == 1
    assert [notice.asked_again for notice in result.stream.kinds(GapFound)] == [False]


@pytest.mark.parametrize("before", range(1, 8))
def test_a_jump_within_the_first_eight_is_no_gap(before: int) -> None:
    result = play(Reply([evs(1, before), evs(before + 3, before + 20), DONE]))
    assert not any(event.gap for event in result.events)
    assert not result.stream.kinds(GapFound)


@pytest.mark.parametrize("start", [0, 1, 41])
def test_the_watch_begins_at_any_number(start: int) -> None:
    result = play(Reply([evs(start, start + 7), evs(start + 10, start + 11), DONE]))
    assert [event.gap.missing for event in result.events if event.gap] == [2]


@pytest.mark.parametrize("start", [0, 1, 58, 940, 9_950, 1_999_930])
@pytest.mark.parametrize("wrong", [0, 1, 39, 40, 59, 60, 158, 159])
def test_one_wrong_id_in_a_long_batch_is_noticed(start: int, wrong: int) -> None:
    """Long batches are compared as one text, a hundred numbers at a time."""
    first, rest = evs(start, start + 9), [ev(f"d{number}", str(number)) for number in range(start + 10, start + 170)]
    whole = play(Reply([first, b"".join(rest), DONE]))
    assert [event.sequence for event in whole.events[:-1]] == list(range(start, start + 170))
    assert [event.offset for event in whole.events] == list(range(171))
    assert not whole.stream.kinds(NumberingStopped)
    for id in (f"0{start + 10 + wrong}", f"{start + 10 + wrong} ", "x", ""):
        rest[wrong] = ev("other", id)
        found = play(Reply([first, b"".join(rest), DONE]))
        assert len(found.events) == 171
        assert len(found.stream.kinds(NumberingStopped)) == 1
    rest[wrong] = ev("other")
    without = play(Reply([first, b"".join(rest), DONE]))
    assert [event.gap.missing for event in without.events if event.gap] == ([1] if wrong < 159 else [])


def test_a_watched_jump_over_a_reconnect_is_marked_too() -> None:
    result = play(Reply([evs(1, 9), "rst"]), Reply([evs(12, 13), DONE]))
    assert [event.id for event in result.events if event.gap] == ["12"]
    assert len(result.stream.sent) == 2


def test_a_watched_jump_over_processes_is_marked_too() -> None:
    first = run(Stream(script(Reply([evs(1, 9), "rst"]))), at_most=9).stream
    second = run(Stream(script(Reply([evs(12, 13), DONE])), checkpoint=first.leave()))
    assert [event.id for event in second.events if event.gap] == ["12"]


def test_each_watched_jump_is_marked_by_itself() -> None:
    result = play(Reply([evs(1, 9) + evs(12, 13) + evs(20, 21), DONE]))
    assert [event.id for event in result.events if event.gap] == ["12", "20"]


def test_an_event_without_an_id_does_not_disturb_the_watch() -> None:
    result = play(Reply([evs(1, 5) + ev("x") + evs(6, 9) + ev("y") + evs(12, 12), DONE]))
    assert [event.id for event in result.events if event.gap] == ["12"]


@pytest.mark.parametrize("id", ["abc", "-1", "9.0", "010", "٩", "1" * 40, "10a", ""])
def test_an_id_that_is_no_number_ends_the_watch(id: str) -> None:
    result = play(Reply([evs(1, 9) + ev("x", id) + evs(30, 31) + evs(50, 50), DONE]))
    assert not any(event.gap for event in result.events)
    assert result.stream.kinds(NumberingStopped)


def test_none_switches_the_watch_off() -> None:
    result = play(Reply([evs(1, 9) + evs(12, 13), DONE]), protocol=LastEventID(sequence=None))
    assert not any(event.gap or event.sequence for event in result.events)
    assert not result.stream.kinds(GapFound)


@pytest.mark.parametrize("on_gap", ["refetch", "deliver"])
def test_the_callers_choice_does_not_touch_a_watched_jump(on_gap: str) -> None:
    result = play(Reply([evs(1, 9) + evs(12, 13), DONE]), on_gap=on_gap)
    assert len(result.events) == 12
    assert len(result.stream.sent) == 1


# --- the server says so ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gap", "session_lost", "resume_gap", "stream_gap"])
def test_a_gap_that_the_server_announces_is_asked_for_once(name: str) -> None:
    result = play(Reply([evs(1, 2) + ev("{}", event=name) + evs(5, 6)]), Reply([evs(3, 6) + DONE]))
    assert result.data == [*(f"d{n}" for n in range(1, 7)), "[DONE]"]
    assert result.stream.cursors == [None, "2"]


@pytest.mark.parametrize("together", [True, False])
def test_an_announced_gap_that_stays_is_an_error_or_a_mark(together: bool) -> None:
    gap = ev("{}", event="gap")
    again = [gap + evs(5, 6) + DONE] if together else [gap, evs(5, 5), evs(6, 6), DONE]
    refused = play(Reply([evs(1, 2) + gap]), Reply(again))
    assert isinstance(refused.error, GapError)
    assert (refused.error.expected, refused.error.received) == (None, None)
    assert refused.data == ["d1", "d2"]

    marked = play(Reply([evs(1, 2) + gap]), Reply(again), on_gap="deliver")
    assert marked.data == ["d1", "d2", "d5", "d6", "[DONE]"]
    assert [bool(event.gap) for event in marked.events] == [False, False, True, False, False]
    assert marked.events[2].gap == Gap(after="2")
    assert marked.events[2].gap.missing is None
    assert marked.stream.checkpoint.cursor == "6"


def test_an_announced_gap_with_an_id_of_its_own_does_not_move_the_cursor_before_it_is_asked_for() -> None:
    result = play(Reply([evs(1, 2) + ev("{}", "7", "gap")]), Reply([evs(3, 4) + DONE]))
    assert result.stream.cursors == [None, "2"]
    assert result.data == ["d1", "d2", "d3", "d4", "[DONE]"]


def test_an_id_alone_behind_an_announced_gap_moves_the_cursor() -> None:
    gap = ev("{}", event="gap")
    result = play(Reply([evs(1, 2) + gap]), Reply([gap + evs(5, 5) + ev(None, "9"), "rst"]), Reply([DONE]), on_gap="deliver")
    assert result.stream.cursors[-1] == "9"


def test_a_gap_on_a_stream_that_cannot_be_resumed_is_refused_at_once() -> None:
    result = play(Reply([ev("a") + ev("{}", event="gap") + ev("b")]), method="POST")
    assert isinstance(result.error, GapError)
    result = play(Reply([ev("a") + ev("{}", event="gap") + ev("b") + DONE]), method="POST", on_gap="deliver")
    assert result.data == ["a", "b", "[DONE]"]
    assert result.events[1].gap is not None


def test_the_names_of_gap_events_are_the_callers() -> None:
    protocol = LastEventID(gap_events={"lost"})
    result = play(Reply([evs(1, 1) + ev("x", event="gap") + ev("x", event="lost")]), Reply([DONE]), protocol=protocol)
    assert [event.event for event in result.events] == ["message", "gap", "message"]
    none = play(Reply([evs(1, 1) + ev("x", event="gap") + DONE]), protocol=LastEventID(gap_events=()))
    assert len(none.events) == 3


def test_a_terminal_marker_behind_a_refused_gap_still_ends() -> None:
    gap = ev("{}", event="gap")
    result = play(Reply([evs(1, 1) + gap]), Reply([gap + DONE]), on_gap="deliver")
    assert result.outcome is Outcome.COMPLETED
    assert result.events[-1].gap is not None


def test_endless_gaps_end_bounded() -> None:
    gap = ev("{}", event="gap")
    result = run(
        Stream(
            lambda sent: Reply([evs(1, 1) + gap] if sent.cursor is None else [gap]), on_gap="deliver", delay=policy(attempts=3)
        )
    )
    assert result.outcome is Outcome.ENDED or isinstance(result.error, RetriesExhausted | StreamInterrupted)


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


def test_an_end_beyond_a_hole_is_not_taken_for_the_end_of_the_next_connection() -> None:
    """The reader leaves on the newest event of the second connection. Four events exist, it has two, and nothing has ended."""
    protocol = numbered(end=lambda event: '"last": true' in event.data, first_sequence=1)
    error = ev('{"error": {"message": "overloaded"}}', event="error")
    stream = Stream(script(Reply([seqs(1, 3) + seqs(4, last=True)]), Reply([seqs(2) + error])), protocol=protocol)
    for event in stream:
        if event.sequence == 2:
            break
    checkpoint = stream.leave()
    assert (stream.outcome, checkpoint.complete, checkpoint.offset) == (None, False, 2)
