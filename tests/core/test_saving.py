"""When the machine asks for a save, and what it writes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from resumable_stream._checkpoint import Checkpoint
from resumable_stream._core.ledger import NOWHERE, Place
from resumable_stream._core.saving import Saving
from resumable_stream._core.settings import Settings
from resumable_stream._events import Outcome
from resumable_stream._settings import Limits, Timeouts

from .simulation import DROPPED, EventServer, Reply, Stream, Wait, ev, evs, policy, run, script, transcript

DONE = ev("[DONE]")


def saving(*steps: Any, **options: Any) -> Stream:
    return Stream(script(*steps), saving=True, **options)


def cursors(stream: Stream) -> list[str | None]:
    return [save.checkpoint.cursor for save in stream.saves]


def test_a_stream_without_a_store_never_saves() -> None:
    stream = Stream(script(Reply([evs(1, 3), Wait(5), evs(4, 4), DONE])))
    run(stream)
    assert stream.saves == []


def test_a_save_comes_before_a_read_that_will_block() -> None:
    """A consumer that is done with all it got may die while it waits."""
    stream = saving(Reply([evs(1, 3), Wait(0.11), evs(4, 5), Wait(0.11), DONE]))
    run(stream)
    assert cursors(stream) == ["3", "5", "5"]
    assert stream.saves[-1].checkpoint.complete


@pytest.mark.parametrize("keep_events", [True, False])
def test_a_live_stream_is_saved_ten_times_a_second_whatever_its_chunks(keep_events: bool) -> None:
    """It waits before every read: a save for each would be one for every token. 3,000 tokens in 30 s are 300 saves, not 3,000."""
    parts = [part for n in range(1, 3001) for part in (ev(f"d{n}", str(n)), Wait(0.01))]
    stream = saving(Reply([*parts, DONE]), keep_events=keep_events, save_interval=1.0)
    times = []
    before = 0
    for _ in stream:
        if len(stream.saves) > before:
            before = len(stream.saves)
            times.append(stream.clock.now)
    assert 200 <= len(stream.saves) <= 302
    assert all(later - earlier > 0.099 for earlier, later in itertools.pairwise(times))
    assert stream.saves[-1].checkpoint.offset == 3001


def test_the_first_save_is_not_held_back() -> None:
    """A process that is killed early has a place, and the id that it needs to resume."""
    stream = saving(Reply([ev("d1", "1"), Wait(0.001), ev("d2", "2"), Wait(0.001), DONE]))
    run(stream)
    assert cursors(stream) == ["1", "2"]


def test_a_shorter_interval_is_the_callers_to_choose() -> None:
    stream = saving(Reply([part for n in range(1, 11) for part in (ev(f"d{n}", str(n)), Wait(0.01))] + [DONE]), save_interval=0)
    run(stream)
    assert len(stream.saves) >= 10


def test_so_many_kept_events_that_memory_is_at_stake_do_not_wait_for_the_floor() -> None:
    parts = [part for n in range(1, 41) for part in (ev(f"d{n}", str(n)), Wait(0.0001))]
    stream = saving(Reply([*parts, DONE]), keep_events=True, save_interval=100.0, limits=Limits(window=8))
    run(stream)
    assert 5 <= len(stream.saves) <= 7
    assert max(len(save.events) for save in stream.saves) <= 8


def test_no_save_comes_before_a_read_that_will_not() -> None:
    stream = saving(Reply([evs(1, 3), evs(4, 5), evs(6, 9), DONE]))
    run(stream)
    assert len(stream.saves) == 1
    assert stream.saves[0].checkpoint.complete


def test_saves_are_coalesced_while_events_flow() -> None:
    stream = saving(Reply([ev(f"d{n}", f"{n}") for n in range(1, 101)] + [DONE]), save_interval=1.0)
    for _ in stream:
        stream.clock.now += 0.1
    assert 9 <= len(stream.saves) <= 12


def test_an_interval_may_pass_inside_a_batch() -> None:
    stream = saving(Reply([evs(1, 100) + DONE]), save_interval=1.0)
    for _ in stream:
        stream.clock.now += 0.1
    assert 9 <= len(stream.saves) <= 12
    assert [int(cursor or 0) for cursor in cursors(stream)] == sorted(int(cursor or 0) for cursor in cursors(stream))


def test_a_save_comes_before_a_wait() -> None:
    stream = saving(Reply([evs(1, 3), "rst"]), DROPPED, Reply([DONE]))
    run(stream)
    assert cursors(stream)[0] == "3"
    assert len(stream.saves) == 2


def test_nothing_new_is_nothing_to_save() -> None:
    stream = saving(Reply([Wait(30), b": ping\n\n", Wait(30), evs(1, 1), Wait(5), b": ping\n\n", Wait(5), DONE]))
    run(stream)
    # The start may be saved too: a POST's resume URL is known with its head.
    assert [cursor for cursor in cursors(stream) if cursor] == ["1", "1"]


def test_leaving_saves_the_event_in_hand() -> None:
    stream = saving(Reply([evs(1, 9)]))
    for _ in range(4):
        next(stream)
    assert stream.leave().cursor == "4"
    assert cursors(stream) == ["4"]


def test_an_event_in_hand_is_not_saved_before_the_consumer_comes_back() -> None:
    stream = saving(Reply([evs(1, 2), Wait(10), evs(3, 3)]), save_interval=0.0)
    for event in stream:
        if event.id == "3":
            break
    assert all(int(cursor or 0) <= 2 for cursor in cursors(stream))


def test_under_manual_commit_only_what_was_committed_is_saved() -> None:
    stream = saving(Reply([evs(1, 3), Wait(10), evs(4, 6), Wait(10), DONE]), manual=True)
    for event in stream:
        if event.id == "2":
            stream.commit(event)
    assert set(cursors(stream)) == {"2"}
    assert not stream.saves[-1].checkpoint.complete


def test_what_was_saved_continues_the_stream() -> None:
    blocks = transcript(*(ev(f"d{n}", f"{n}" if n % 3 == 0 else None) for n in range(12)), DONE)
    for stop in range(12):
        stream = Stream(EventServer(blocks, chunk=9), saving=True)
        for _ in range(stop + 1):
            next(stream)
        stream.leave()
        rest = run(Stream(EventServer(blocks), checkpoint=Checkpoint.from_token(stream.saves[-1].checkpoint.token())))
        assert [row[1] for row in rest.rows] == [*(f"d{n}" for n in range(stop + 1, 12)), "[DONE]"]


# --- kept events ----------------------------------------------------------------------------------------------------


def kept(stream: Stream) -> list[str]:
    return [event.data for save in stream.saves for event in save.events]


def test_events_are_kept_once_and_with_the_place_behind_them() -> None:
    stream = saving(Reply([evs(1, 3), Wait(10), evs(4, 6), "rst"]), Reply([evs(5, 9), DONE]), keep_events=True)
    assert run(stream).outcome is Outcome.COMPLETED
    assert kept(stream) == [*(f"d{n}" for n in range(1, 10)), "[DONE]"]
    count = 0
    for save in stream.saves:
        count += len(save.events)
        assert save.checkpoint.offset == count


def test_events_are_kept_up_to_the_place_and_no_further() -> None:
    stream = saving(Reply([evs(1, 9)]), keep_events=True)
    for _ in range(4):
        next(stream)
    stream.leave()
    assert kept(stream) == ["d1", "d2", "d3", "d4"]


def test_a_save_that_failed_is_made_good_by_the_next() -> None:
    """`saved()` was not called: the same events come again."""
    stream = saving(Reply([evs(1, 2), Wait(1), evs(3, 3), Wait(1), DONE]), keep_events=True)
    next(stream), next(stream)
    machine = stream.machine
    first = machine.save(stream.clock.now, stream.taken, force=True)
    again = machine.save(stream.clock.now, stream.taken, force=True)
    assert first is not None and again is not None
    assert [event.data for event in first.events] == [event.data for event in again.events] == ["d1"]
    run(stream)
    assert kept(stream) == ["d1", "d2", "d3", "[DONE]"]


def test_without_kept_events_a_save_is_the_place_alone() -> None:
    stream = saving(Reply([evs(1, 3), Wait(10), DONE]))
    run(stream)
    assert kept(stream) == []


def test_a_batch_of_more_than_a_window_is_saved_before_the_interval() -> None:
    """What is kept for the store is bounded, however fast events come."""
    body = [b"".join(ev(f"d{n}", f"i{n}") for n in range(start, start + 10)) for start in range(0, 100, 10)]
    stream = saving(Reply([*body, DONE]), keep_events=True, save_interval=1e9, limits=Limits(window=20))
    run(stream)
    assert len(stream.saves) >= 4
    assert max(len(save.events) for save in stream.saves) <= 41
    assert len(kept(stream)) == 101


def test_a_restart_is_saved_as_a_new_run() -> None:
    stream = saving(
        Reply([evs(1, 2), "rst"]), Reply(status=410, type=""), Reply([evs(1, 1) + DONE]), keep_events=True, on_lost="restart"
    )
    run(stream)
    assert stream.saves[-1].checkpoint.offset == 2
    assert [(event.data, event.reset) for event in stream.saves[-1].events] == [("d1", True), ("[DONE]", False)]


def test_a_finished_stream_of_another_process_is_not_saved_again() -> None:
    first = saving(Reply([evs(1, 2) + DONE]))
    run(first)
    second = saving(checkpoint=first.saves[-1].checkpoint)
    assert run(second).outcome is Outcome.COMPLETED
    assert all(save.checkpoint == first.saves[-1].checkpoint for save in second.saves)


def test_a_pending_reset_is_worth_a_save_though_the_place_is_the_beginning() -> None:
    settings = Settings(
        timeouts=Timeouts(), limits=Limits(), delay=policy(), jitter=float, statuses=frozenset(), max_server_wait=60.0,
        saving=True, save_interval=3_600.0,
    )  # fmt: skip
    saving, nowhere = Saving(settings), Place._make(NOWHERE)
    assert not saving.due(nowhere, None, 1.0, force=True, final=False, blocks=None)
    assert saving.due(nowhere, 0, 1.0, force=True, final=False, blocks=None)
    saving.begin(nowhere, 0)
    saving.done(1.0)
    assert not saving.due(nowhere, 0, 2.0, force=True, final=False, blocks=None)
    assert saving.due(nowhere, None, 2.0, force=True, final=False, blocks=None)
