"""Rule 1: the place is the cursor plus the events taken since it last moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from resumable_stream._checkpoint import Checkpoint, chain, fingerprint
from resumable_stream._core.examining import Examiner
from resumable_stream._core.lanes import Lane
from resumable_stream._errors import StreamInterrupted
from resumable_stream._events import Outcome, StreamEvent
from resumable_stream._settings import Limits
from resumable_stream.protocols import CursorProtocol, LastEventID, ReplayFromZero, Settled, StreamState

from .simulation import EventServer, Reply, Stream, ev, evs, play, reading, rows_of, run, script, transcript


def digest(data: str) -> str:
    return fingerprint("message", data)


def place(checkpoint: Checkpoint) -> tuple[str | None, int, tuple[str, ...]]:
    return checkpoint.cursor, checkpoint.offset, checkpoint.since


MIXED = ev("a", "1") + ev("b") + ev("c") + ev("d", "2") + ev("e")
PLACES = [
    (None, 0, ()),
    ("1", 1, ()),
    ("1", 2, (digest("b"),)),
    ("1", 3, (digest("b"), digest("c"))),
    ("2", 4, ()),
    ("2", 5, (digest("e"),)),
]


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_the_place_moves_past_an_event_when_the_consumer_comes_back(chunk: int) -> None:
    body = MIXED
    stream = Stream(script(Reply([body[at : at + chunk] for at in range(0, len(body), chunk)]), Reply()))
    for index, _ in enumerate(stream):
        assert place(stream.checkpoint) == PLACES[index]
    assert place(stream.checkpoint) == PLACES[5]


def test_leaving_without_an_exception_takes_the_event_in_hand() -> None:
    stream = Stream(script(Reply([MIXED])))
    next(stream), next(stream)
    assert place(stream.checkpoint) == PLACES[1]
    assert place(stream.leave()) == PLACES[2]


def test_a_batch_is_one_unit() -> None:
    stream = Stream(script(Reply([MIXED]), Reply()))
    assert len(stream.next_batch()) == 5
    assert place(stream.checkpoint) == PLACES[0]
    assert run(stream).outcome is Outcome.ENDED
    assert place(stream.checkpoint) == PLACES[5]


def test_an_error_leaves_the_place_behind_all_that_was_delivered() -> None:
    result = run(Stream(script(Reply([ev("a"), "rst"]))))
    assert isinstance(result.error, StreamInterrupted)
    assert result.error.checkpoint is not None
    assert place(result.error.checkpoint) == (None, 1, ())


# --- what moves the cursor ------------------------------------------------------------------------------------------


def test_a_block_with_an_id_and_no_data_moves_the_cursor_and_delivers_nothing() -> None:
    result = play(Reply([ev("a", "1") + ev("b") + ev(None, "9"), "rst"]), Reply([ev("c") + ev("[DONE]")]))
    assert result.data == ["a", "b", "c", "[DONE]"]
    assert result.stream.cursors == [None, "9"]
    assert [event.id for event in result.events] == ["1", "1", "9", "9"]


@pytest.mark.parametrize("together", [True, False])
def test_a_block_without_data_clears_what_is_remembered_since(together: bool) -> None:
    parts = [ev("a", "1"), ev("b"), ev(None, "9"), ev("c")]
    stream = Stream(script(Reply([b"".join(parts)] if together else parts), Reply()))
    for _ in range(3):
        next(stream)
    assert place(stream.leave()) == ("9", 3, (digest("c"),))


def test_a_first_block_without_data_is_a_cursor_before_the_first_event() -> None:
    result = play(Reply([ev(None, "p"), "rst"]), Reply([ev("a", "1"), ev("[DONE]")]))
    assert result.data == ["a", "[DONE]"]
    assert result.stream.cursors == [None, "p"]


def test_an_empty_id_forgets_the_cursor() -> None:
    stream = Stream(script(Reply([ev("a", "1") + ev("b", "") + ev("c"), "rst"])))
    events = [next(stream) for _ in range(3)]
    assert [event.id for event in events] == ["1", "", ""]
    assert [event.cursor for event in events] == ["1", None, None]
    with pytest.raises(StreamInterrupted):
        next(stream)
    assert stream.checkpoint.cursor is None
    assert len(stream.sent) == 1


def test_an_empty_id_without_data_forgets_the_cursor_too() -> None:
    result = play(Reply([ev("a", "1") + b"id\n\n", "rst"]))
    assert result.data == ["a"]
    assert isinstance(result.error, StreamInterrupted)


def test_a_cursor_after_a_forgotten_one_counts_again() -> None:
    result = play(
        Reply([ev("a", "1") + ev("b", "") + ev("c") + ev("d", "4") + ev("e"), "rst"]), Reply([ev("e") + ev("f"), ev("[DONE]")])
    )
    assert result.data == ["a", "b", "c", "d", "e", "f", "[DONE]"]
    assert result.stream.cursors == [None, "4"]


def test_a_partial_event_at_the_end_is_dropped_and_its_id_with_it() -> None:
    result = play(Reply([ev("a", "1") + b"id: 2\ndata: half"]), Reply([ev("b", "2") + ev("[DONE]")]))
    assert result.data == ["a", "b", "[DONE]"]
    assert result.stream.cursors == [None, "1"]


def test_an_id_with_a_nul_is_none() -> None:
    result = play(Reply([ev("a", "1") + b"id: 2\x00\ndata: b\n\n", "rst"]), Reply([ev("b") + ev("[DONE]")]))
    assert result.data == ["a", "b", "[DONE]"]
    assert result.stream.cursors == [None, "1"]


def test_a_cursor_is_sent_as_it_came() -> None:
    cursor = "é ☃ = a;b,c\t%20"
    result = play(Reply([ev("a", cursor), "rst"]), Reply([ev("[DONE]")]))
    assert result.stream.cursors == [None, cursor]


# --- since ----------------------------------------------------------------------------------------------------------


def test_since_is_bounded_and_stays_comparable() -> None:
    """Past the window it is a count and a chained digest; the server's replay is still told from something else."""
    blocks = transcript(ev("s", "1"), *(ev(f"{number}") for number in range(100)), ev("[DONE]"))
    limits = Limits(window=4)
    server = EventServer(blocks, cuts=[(len(b"".join(block.raw for block in blocks[:80])), "rst")])
    stream = Stream(server, limits=limits)
    assert run(stream).rows == rows_of(blocks)

    stream = Stream(EventServer(blocks), limits=limits)
    for _ in range(61):
        next(stream)
    checkpoint = stream.leave()
    expected = chain("", [digest(f"{number}") for number in range(60)])
    assert checkpoint.since == (f"60*{expected}",) or checkpoint.since == tuple(digest(f"{number}") for number in range(60))
    rest = run(Stream(EventServer(blocks), limits=limits, checkpoint=Checkpoint.from_token(checkpoint.token())))
    assert rest.data == [f"{number}" for number in range(60, 100)] + ["[DONE]"]


def test_fingerprints_do_not_change_from_one_process_to_the_next() -> None:
    assert digest("héllo") == "3327c000c3036010"
    assert fingerprint("a", "b") != fingerprint("ab", "")
    assert fingerprint("a", "b\nc") == fingerprint("a", "b\nc")


# --- manual commit --------------------------------------------------------------------------------------------------


def manual(*steps: object, **options: object) -> Stream:
    return Stream(script(*steps), manual=True, **options)  # type: ignore[arg-type]


def test_only_commit_moves_a_manual_place() -> None:
    stream = manual(Reply([MIXED]), Reply())
    first = next(stream)
    next(stream), next(stream)
    assert place(stream.checkpoint) == PLACES[0]
    stream.commit(first)
    assert place(stream.checkpoint) == PLACES[1]
    stream.commit()
    assert place(stream.checkpoint) == PLACES[3]
    for _ in stream:
        pass
    assert place(stream.checkpoint) == PLACES[3]
    assert not stream.checkpoint.complete
    stream.commit()
    assert place(stream.checkpoint) == PLACES[5]
    assert stream.checkpoint.complete


@pytest.mark.parametrize("chunk", [1, 9, 1000])
def test_each_event_can_be_committed_by_itself(chunk: int) -> None:
    stream = manual(Reply([MIXED[at : at + chunk] for at in range(0, len(MIXED), chunk)]), Reply())
    for index, event in enumerate(stream):
        stream.commit(event)
        assert place(stream.checkpoint) == PLACES[index + 1]


def test_an_older_event_may_be_committed_after_a_newer_batch() -> None:
    stream = manual(Reply([evs(1, 3), evs(4, 20), "rst"]), Reply([evs(21, 30)]), Reply())
    events = list(stream)
    for event in events:
        stream.commit(event)
        assert place(stream.checkpoint) == (event.id, event.offset + 1, ())


def test_an_event_of_the_future_cannot_be_committed() -> None:
    stream, other = manual(Reply([evs(1, 2)])), manual(Reply([evs(1, 9)]))
    next(stream)
    for _ in range(9):
        last = next(other)
    with pytest.raises(ValueError, match="only 2 events"):
        stream.commit(last)


def test_what_was_not_committed_comes_again_in_another_process() -> None:
    blocks = transcript(*(ev(f"{n}", f"{n}" if n % 3 == 0 else None) for n in range(12)), ev("[DONE]"))
    for committed in range(12):
        first = Stream(EventServer(blocks), manual=True)
        for index in range(12):
            event = next(first)
            if index == committed:
                first.commit(event)
        second = run(Stream(EventServer(blocks), checkpoint=first.checkpoint))
        assert second.rows == rows_of(blocks)[committed + 1 :]


@pytest.mark.parametrize("committed", [1, 3, 9])
def test_a_committed_place_stays_as_it_was_however_many_events_follow(committed: int) -> None:
    """
    Beyond twice the window what came since the cursor folds into a count and a digest, from which no earlier place can be told.
    A place that was committed while it could be told is what the caller relies on: it is kept as it was then.
    """
    blocks = transcript(ev("s", "1"), *(ev(f"{number}") for number in range(200)), ev("[DONE]"))
    stream = Stream(EventServer(blocks, chunk=1), manual=True, limits=Limits(window=4))
    for index in range(150):
        event = next(stream)
        if index == committed:
            stream.commit(event)
            then = place(stream.checkpoint)
    assert then == ("1", committed + 1, tuple(digest(f"{number}") for number in range(committed)))
    assert place(stream.checkpoint) == then
    rest = run(Stream(EventServer(blocks), checkpoint=stream.leave(), limits=Limits(window=4)))
    assert rest.rows == rows_of(blocks)[committed + 1 :]


# --- other positions ------------------------------------------------------------------------------------------------


def test_a_number_in_the_json_is_the_cursor_and_an_event_without_one_is_since() -> None:
    body = ev('{"seq": 5}') + ev('{"other": 1}') + ev('{"seq": 6}')
    stream = Stream(
        script(Reply([body])), protocol=CursorProtocol(read="seq", send="query:after", sequence="contiguous", end="x")
    )
    places = []
    for _ in range(3):
        event = next(stream)
        places.append((event.cursor, event.sequence))
    assert places == [("5", 5), ("5", None), ("6", 6)]
    assert (stream.checkpoint.cursor, stream.checkpoint.sequence, len(stream.checkpoint.since)) == ("5", 5, 1)


def test_a_replay_from_zero_counts_all_since_the_start() -> None:
    stream = Stream(script(Reply([evs(1, 4)])), protocol=ReplayFromZero(end="[DONE]"))
    for _ in range(3):
        next(stream)
    assert place(stream.leave()) == (None, 3, tuple(digest(f"d{number}") for number in (1, 2, 3)))


def test_a_finished_stream_keeps_its_place_and_asks_for_nothing() -> None:
    done = play(Reply([evs(1, 2) + ev("[DONE]", "3")]))
    checkpoint = done.stream.checkpoint
    assert (checkpoint.complete, checkpoint.cursor, checkpoint.offset) == (True, "3", 3)
    again = run(Stream(script(), checkpoint=Checkpoint.from_token(checkpoint.token())))
    assert (again.events, again.outcome, again.stream.sent) == ([], Outcome.COMPLETED, [])
    assert again.stream.checkpoint == checkpoint


def test_a_place_taken_before_the_last_event_is_not_complete() -> None:
    stream = Stream(script(Reply([evs(1, 2) + ev("[DONE]", "3")])))
    for _ in range(3):
        next(stream)
    assert not stream.checkpoint.complete
    assert stream.checkpoint.offset == 2


def test_options_of_the_protocol_do_not_change_the_place() -> None:
    stream = Stream(script(Reply([evs(1, 3)])), protocol=LastEventID(cursor_param="after", sequence=None))
    next(stream), next(stream)
    assert place(stream.checkpoint) == ("1", 1, ())


# --- events that are taken apart ------------------------------------------------------------------------------------


class Apart(LastEventID):
    """Plain SSE whose batches hold several texts, and whose pings are none of them."""

    def unpack(self, event: Any) -> Sequence[Any]:
        if event.event == "ping":
            return ()
        texts = event.data.split("|")
        return [StreamEvent(data=text, id=event.id, own_id=event.own_id if text is texts[-1] else None) for text in texts]


@pytest.mark.parametrize("whole", [True, False])
def test_an_event_is_taken_apart_and_ids_without_an_event_keep_their_places(whole: bool) -> None:
    blocks = [ev("a|b", "1"), ev("x", event="ping"), ev(None, "2"), ev("c", "3"), ev(None, "4")]
    first = [b"".join(blocks)] if whole else blocks
    result = play(Reply([*first, "rst"]), Reply([ev("d", "5") + ev("[DONE]", "6")]), protocol=Apart(end="[DONE]"))
    assert result.data == ["a", "b", "c", "d", "[DONE]"]
    assert [event.offset for event in result.events] == list(range(5))
    # An id without data counts too, wherever it stood among those that were taken apart.
    assert result.stream.cursors == [None, "4"]


# --- a bug between two events ---------------------------------------------------------------------------------------


class Buggy(LastEventID):
    """The caller's own protocol, with a bug that shows at one event."""

    def fingerprint(self, event: Any) -> str:
        if event.data == "odd":
            raise KeyError("odd")
        return super().fingerprint(event)


ODD = ev("odd")


def bug(*answers: Reply, taken: int, **options: Any) -> Stream:
    """A stream that meets the bug after so many events."""
    stream = Stream(script(*answers), **{"protocol": Buggy(end="[DONE]"), **options})
    for _ in range(taken):
        next(stream)
    with pytest.raises(KeyError):
        next(stream)
    return stream


def test_a_bug_of_the_callers_protocol_leaves_the_place_before_the_batch() -> None:
    """None of the batch was handed out, so all of it comes again: no event is lost, none is taken for a repeat."""
    stream = bug(Reply([evs(1, 1), ev(None, "2") + ev("no id") + ODD]), taken=1)
    here = stream.machine.checkpoint(0, ())
    assert place(here)[:2] == ("1", 1)
    rest = play(Reply([ev("no id") + ev("[DONE]")]), checkpoint=here)
    assert (rest.data, rest.stream.machine.stats.duplicates) == (["no id", "[DONE]"], 0)


def test_repeats_before_the_bug_are_counted_once() -> None:
    """What was dropped in the batch of the bug is dropped again by whoever goes on: it is one repeat, not two."""
    stream = bug(Reply([evs(1, 1), ev("a"), ev("b"), "rst"]), Reply([ev("a") + ODD]), taken=3)
    assert stream.machine.stats.duplicates == 0
    assert place(stream.machine.checkpoint(0, ()))[:2] == ("1", 3)


def test_a_hole_before_the_bug_was_not_there() -> None:
    """The batch with the hole did not come, so neither did the hole: whoever goes on asks for what follows the last event."""
    holed = evs(3, 3)
    protocol = Buggy(sequence="contiguous", end="[DONE]")
    stream = bug(Reply([evs(1, 1), holed]), Reply([holed + ODD]), taken=1, protocol=protocol, on_gap="deliver")
    assert stream.machine.stats.gaps == 1, "the one that was asked for again"
    rest = play(Reply([evs(2, 3) + ev("[DONE]")]), checkpoint=stream.machine.checkpoint(0, ()), on_gap="deliver")
    assert rest.data == ["d2", "d3", "[DONE]"]
    assert not any(event.gap for event in rest.events)


def test_a_hole_that_was_seen_before_an_interrupt_goes_with_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The batch counts as not received, so it proves nothing either: not that an event before it is missing.
    A hole that stayed would keep the outcome from whoever leaves now on the event that settles it.
    """
    stream = Stream(script(Reply([evs(1, 2), evs(4, 4)])), protocol=LastEventID(sequence="contiguous", end="[DONE]"))
    next(stream), next(stream)
    choose, ledger = Examiner._choose_lane, stream.machine._ledger
    assert ledger is not None

    def struck(self: Examiner) -> Lane:
        if self.problem is not None:
            raise KeyboardInterrupt
        return choose(self)

    monkeypatch.setattr(Examiner, "_choose_lane", struck)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert ledger.problem is None
    assert ledger.gaps == 0


class Turns(LastEventID):
    """Each event changes a text that checkpoints keep."""

    keeps = frozenset({"turn"})
    alarm = None

    def end(self, event: Any) -> Any:
        return Settled(None)

    def end_in(self, state: StreamState, event: Any, end: Any) -> Any:
        state.extra["turn"] = event.id
        return None


class Latest(LastEventID):
    """Remembers which of several answers ended last."""

    keeps = frozenset({"ended"})

    def end(self, event: Any) -> Any:
        return Outcome.COMPLETED if event.data.startswith("end") else None

    def end_in(self, state: StreamState, event: Any, end: Any) -> Any:
        state.extra["ended"] = event.data
        if event.data == "end raises":
            raise KeyboardInterrupt
        return end if event.data == "end of all" else None


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("elsewhere", [True, False])
@pytest.mark.parametrize("more", [[], [ev("end C", "5"), ev("y", "6"), ev("end of all", "7"), ev("never read", "8")]])
def test_a_repeated_end_is_not_noted_again(more: list[bytes], elsewhere: bool, together: bool) -> None:
    first = [ev("end A", "1"), ev("w", "2"), ev("end B", "3"), ev("x", "4")]
    again = [*first, *more] if more else first[:2]
    rest = Reply([b"".join(again), "rst"] if together else [*again, "rst"])
    last = Reply([ev("end of all", "5")])
    if elsewhere:
        stream = Stream(script(Reply(first)), protocol=Latest())
        seen = [next(stream).data for _ in range(4)]
        place = stream.leave()
        assert place.extra["ended"] == "end B"
        result = run(Stream(script(rest, last), protocol=Latest(), checkpoint=place))
    else:
        seen = []
        result = play(Reply([*first, "rst"]), rest, last, protocol=Latest())
    assert [*seen, *result.data] == ["end A", "w", "end B", "x", *(["end C", "y"] if more else []), "end of all"]
    assert result.outcome is Outcome.COMPLETED


@pytest.mark.parametrize("together", [True, False])
def test_a_checkpoint_after_a_repeated_end_has_the_latest(together: bool) -> None:
    first = [ev("w", "a"), ev("end A", "b"), ev("end B", "c")]
    again = [ev("end A", "b"), ev("x", "d")]
    answers = Reply([*first, "rst"]), Reply([b"".join(again)] if together else again)
    stream = Stream(script(*answers), protocol=Latest())
    assert [next(stream).data for _ in range(4)] == ["w", "end A", "end B", "x"]
    assert stream.checkpoint.extra["ended"] == stream.leave().extra["ended"] == "end B"


def test_the_ends_of_an_interrupted_batch_are_not_noted() -> None:
    machine = reading(evs(1, 1), protocol=Latest())
    with pytest.raises(KeyboardInterrupt):
        machine.receive_data(ev("end A", "2") + ev("end raises", "3"), 1000.0)
    machine.read_failed(KeyboardInterrupt(), 1000.0, inside=True)
    assert "ended" not in machine.state.extra
    assert "ended" not in machine.checkpoint(1).extra


@pytest.mark.parametrize("manual", [False, True])
def test_what_events_changed_is_known_for_the_places_that_can_be_asked_for_and_no_others(manual: bool) -> None:
    """A feed of many turns: one entry each would grow for ever, and be searched at every checkpoint."""
    body = [ev("x", str(n)) for n in range(1, 1001)]
    stream = Stream(script(Reply(body)), protocol=Turns(end="never"), manual=manual, limits=Limits(window=100))
    for number, event in enumerate(stream, 1):
        place = stream.checkpoint
        if not manual:
            assert place.extra.get("turn") == (str(number - 1) if number > 1 else None)
        elif number % 50 == 0:
            assert place.extra.get("turn") == (str(number - 50) if number > 50 else None)
            stream.commit(event)
            assert stream.checkpoint.extra["turn"] == event.id
        if number == 1000:
            break
    assert len(stream.machine._checkpoints._kept) <= 102
