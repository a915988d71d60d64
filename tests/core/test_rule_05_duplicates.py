"""Rule 5: what comes again after a reconnect is dropped once, and nothing else is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from resumable_stream._checkpoint import fingerprint
from resumable_stream._core.memory import KEPT_BYTES
from resumable_stream._errors import ReplayDiverged, RetriesExhausted
from resumable_stream._events import Outcome
from resumable_stream._notices import CursorIgnored, DuplicateDropped, NumberingStopped, NumberOutOfOrder
from resumable_stream._settings import Limits, Timeouts
from resumable_stream.protocols import CursorProtocol, LastEventID, ReplayFromZero, ResumeProtocol

from ..cutting import Where
from .simulation import EventServer, Reply, Stream, Wait, ev, evs, play, policy, rows_of, run, script, seqs, transcript

DONE = ev("[DONE]")
NAMED = LastEventID(end="[DONE]")
NUMBERED = CursorProtocol(read="seq", send="query:after", end="[DONE]", sequence="contiguous")


class Named(CursorProtocol):
    """Its cursors are `<log>/<number>`."""

    def lineage(self, cursor: str) -> str:
        log, slash, _ = cursor.rpartition("/")
        return log + slash


@pytest.mark.parametrize("ids", [["a/1", "a/2", "b/3"], ["a/1", None, "b/2"], ["a/1", "x", "a/2"]])
@pytest.mark.parametrize("together", [True, False])
def test_an_event_of_another_log_is_a_divergence_on_any_connection(ids: list[str | None], together: bool) -> None:
    protocol = Named(read="id", send="query:after", end="[DONE]")
    blocks = [ev(str(at), own_id) for at, own_id in enumerate(ids)]
    at = next(at for at, own_id in enumerate(ids) if own_id is not None and not own_id.startswith("a/"))
    steps: list[Any] = [b"".join(blocks)] if together else blocks
    first = play(Reply([*steps, DONE]), protocol=protocol)
    resumed = play(Reply([*blocks[:at], "rst"]), Reply(blocks[at:]), protocol=protocol)
    for result in (first, resumed):
        assert (type(result.error), len(result.data)) == (ReplayDiverged, at)
        assert "another log" in str(result.error) and repr(ids[at]) in str(result.error)


def test_cursors_that_name_no_log_are_not_compared() -> None:
    protocol = Named(read="id", send="query:after", end="[DONE]")
    result = play(Reply([ev("a", "1"), ev("b", "2"), ev("c", "x/3"), ev("d", "x/4"), DONE]), protocol=protocol)
    assert result.outcome is Outcome.COMPLETED


# --- the overlap: events without an id of their own -----------------------------------------------------------------


def test_events_behind_the_cursor_come_again_and_are_dropped() -> None:
    result = play(Reply([ev("a", "1") + ev("b") + ev("c"), "rst"]), Reply([ev("b") + ev("c") + ev("d") + DONE]))
    assert result.data == ["a", "b", "c", "d", "[DONE]"]
    assert result.stream.machine.stats.duplicates == 2
    assert len(result.stream.kinds(DuplicateDropped)) == 2


def test_equal_events_are_counted_not_merged() -> None:
    result = play(Reply([ev("a", "1") + ev("x") * 2, "rst"]), Reply([ev("x") * 3 + DONE]))
    assert result.data == ["a", "x", "x", "x", "[DONE]"]


def test_the_first_unequal_event_ends_the_overlap() -> None:
    """A server that goes on behind what it sent (it kept the place itself) is believed."""
    result = play(Reply([ev("a", "1") + ev("b") + ev("c"), "rst"]), Reply([ev("d") + ev("b") + ev("c") + DONE]))
    assert result.data == ["a", "b", "c", "d", "b", "c", "[DONE]"]


def test_a_shorter_replay_is_no_end_of_the_overlap() -> None:
    """The replay itself is cut inside the overlap, twice."""
    result = play(
        Reply([ev("a", "1") + ev("b") + ev("c") + ev("d"), "rst"]),
        Reply([ev("b"), "rst"]),
        Reply([ev("b") + ev("c"), "fin"]),
        Reply([ev("b") + ev("c") + ev("d") + ev("e") + DONE]),
    )
    assert result.data == ["a", "b", "c", "d", "e", "[DONE]"]


def test_the_type_of_an_event_is_part_of_it() -> None:
    result = play(Reply([ev("a", "1") + ev("b", event="x"), "rst"]), Reply([ev("b", event="y") + DONE]))
    assert [(event.event, event.data) for event in result.events] == [
        ("message", "a"),
        ("x", "b"),
        ("y", "b"),
        ("message", "[DONE]"),
    ]


def test_equal_words_under_one_id_are_delivered_on_the_first_connection() -> None:
    body = ev("a", "1") * 3 + ev("b") * 3 + ev("a", "1") * 2
    result = play(Reply([body, DONE]))
    assert result.data == ["a"] * 3 + ["b"] * 3 + ["a"] * 2 + ["[DONE]"]
    assert result.stream.machine.stats.duplicates == 0


def test_the_sticky_id_is_no_identity() -> None:
    """Events that merely report the id "1" are not repeats of the event that carried it."""
    result = play(Reply([ev("a", "1"), "rst"]), Reply([ev("a") + ev("a") + DONE]))
    assert result.data == ["a", "a", "a", "[DONE]"]


def test_a_cut_after_an_event_without_id_and_a_replay_that_names_the_cursor_event_too() -> None:
    """Inclusive servers send the event of the cursor again, then what followed it."""
    first = ev("z", "0") + ev("a", "1") + ev("b") + ev("c")
    result = play(Reply([first, "rst"]), Reply([ev("a", "1") + ev("b") + ev("c") + ev("d") + DONE]), protocol=NAMED)
    assert result.data == ["z", "a", "b", "c", "d", "[DONE]"]


def test_the_second_overlap_holds_what_the_first_one_did_not() -> None:
    result = play(
        Reply([ev("a", "1") + ev("b"), "rst"]),
        Reply([ev("b") + ev("c") + ev("b"), "rst"]),
        Reply([ev("b") + ev("c") + ev("b") + ev("b") + ev("e", "2") + ev("f"), "rst"]),
        Reply([ev("f") + ev("g") + DONE]),
    )
    assert result.data == ["a", "b", "c", "b", "b", "e", "f", "g", "[DONE]"]


def test_a_cursor_that_moved_between_them_leaves_the_events_expected_again(where: Where) -> None:
    """Ids ahead of their events: a block without data moves the cursor, and the server replays from there."""
    blocks = transcript(ev("a", "1"), ev("b"), ev(None, "2"), ev("c"), ev(None, "3"), ev("d"), ev("e", "4"), ev("f"), DONE)
    for first in where([block.raw for block in blocks]):
        for second in (3, 11, 17, 30, 44):
            result = run(Stream(EventServer(blocks, cuts=[(first, "rst"), (second, "rst")])))
            assert result.rows == rows_of(blocks), (first, second)


# --- identity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("back", [1, 2, 3, 8, 20])
def test_events_before_the_cursor_that_come_again_are_known_by_their_id(back: int) -> None:
    blocks = transcript(*(ev(f"{n % 2}", f"i{n}") for n in range(30)), DONE)
    at = len(b"".join(block.raw for block in blocks[:25]))
    result = run(Stream(EventServer(blocks, cuts=[(at, "rst")], replay=back), protocol=NAMED))
    assert result.rows == rows_of(blocks)
    assert result.stream.machine.stats.duplicates == back


def test_events_without_an_id_in_between_are_known_by_their_order() -> None:
    blocks = transcript(*(ev(f"{n}", f"i{n}" if n % 4 == 0 else None) for n in range(20)), DONE)
    at = len(b"".join(block.raw for block in blocks[:19]))
    # The cursor is i16, the server goes back to i12, i8, i4.
    for back in (5, 9, 13):
        result = run(Stream(EventServer(blocks, cuts=[(at, "rst")], replay=back), protocol=NAMED))
        assert result.rows == rows_of(blocks), back


def test_an_id_with_other_content_is_another_event() -> None:
    result = play(Reply([ev("a", "x") + ev("b", "y"), "rst"]), Reply([ev("B", "x") + ev("b", "y") + ev("c", "z") + DONE]))
    assert result.data == ["a", "b", "B", "c", "[DONE]"]


@pytest.mark.parametrize("replay", [[], [ev("c", "x")], [ev("d")]], ids=["none", "one before the cursor", "one since"])
@pytest.mark.parametrize("how", ["rst", "close"])
def test_an_id_that_two_events_had_identifies_neither(replay: list[bytes], how: str) -> None:
    """
    A server that names events by message sends two words under one id. When a third event under that id has the text of the
    second, no replay is proved by it: the cursor was `x`, and a server that goes on after it says the word once more.
    Taken for the newest event of that id it would be dropped, and a word of the answer with it.
    """
    server = script(
        Reply([ev("one", "m"), ev("two", "m"), ev("c", "x"), ev("d"), how]),
        Reply([*replay, ev("two", "m"), ev("e", "y"), ev("[DONE]")]),
    )
    result = run(Stream(server))
    assert result.data == ["one", "two", "c", "d", "two", "e", "[DONE]"]
    assert result.stream.machine.stats.duplicates == len(replay)


def test_the_same_content_under_another_id_is_another_event() -> None:
    result = play(Reply([ev("a", "x"), "rst"]), Reply([ev("a", "y") + ev("a", "z") + DONE]))
    assert result.data == ["a", "a", "a", "[DONE]"]


@pytest.mark.parametrize("together", [True, False])
def test_late_repeats_are_known_too(together: bool) -> None:
    """Where replay meets live: the repeat comes behind new events."""
    more = [ev("c", "z"), ev("b", "y"), ev("d", "w"), ev("e"), ev("a", "x"), ev("f", "v"), DONE]
    result = play(Reply([ev("a", "x") + ev("b", "y"), "rst"]), Reply([b"".join(more)] if together else more))
    assert result.data == ["a", "b", "c", "d", "e", "f", "[DONE]"]


def test_behind_the_window_an_id_may_come_again() -> None:
    first = b"".join(ev(f"{n}", f"i{n}") for n in range(3))
    more = b"".join(ev(f"m{n}", f"j{n}") for n in range(4))
    again = ev("2", "i2")
    limits = Limits(window=4)
    result = play(Reply([first, "rst"]), Reply([more + again + DONE]), limits=limits)
    assert result.data[-2:] == ["2", "[DONE]"]
    result = play(Reply([first, "rst"]), Reply([more[: len(more) // 2] + again + DONE]), limits=limits)
    assert result.data[-2:] == ["m1", "[DONE]"]


class Unique(LastEventID):
    unique_ids = True


@pytest.mark.parametrize("together", [True, False])
def test_where_ids_are_promised_unique_a_repeat_is_one_at_any_time(together: bool) -> None:
    parts = [ev("a", "1"), ev("b", "2"), ev("a", "1"), ev("c", "3"), DONE]
    result = play(Reply([b"".join(parts)] if together else parts), protocol=Unique(end="[DONE]"))
    assert result.data == ["a", "b", "c", "[DONE]"]


@pytest.mark.parametrize("protocol", [NAMED, Unique(end="[DONE]")], ids=["trusted", "promised"])
@pytest.mark.parametrize("together", [True, False])
def test_a_long_id_after_short_ones_is_known_when_it_comes_again(together: bool, protocol: LastEventID) -> None:
    def short(first: int) -> list[bytes]:
        return [ev(f"d{n}", f"{n}x") for n in range(first, first + 40)]

    long = [ev(f"long {n}", f"{n}".rjust(300, "x")) for n in range(3)]
    parts = [*short(0), *long, *short(40), *long, DONE]
    result = play(Reply([b"".join(parts[:40]), b"".join(parts[40:])] if together else parts), protocol=protocol)
    assert result.stream.machine.stats.duplicates == 3
    assert len(result.data) == 84


class Repeating(LastEventID):
    replays = True


@pytest.mark.parametrize("chunk", [None, 11, 200])
@pytest.mark.parametrize("first", [[ev("a", ""), ev("b", "")], [ev("a", "1"), ev("b", "")], [ev("a", "1"), ev(None, "")]])
def test_a_replay_whose_ids_stopped_is_never_delivered_twice(first: list[bytes], chunk: int | None) -> None:
    """An empty id leaves no cursor, so the events after it have to be remembered one by one: they come again."""
    blocks = transcript(*first, *(ev(f"d{n}") for n in range(90)), DONE)
    server = EventServer(blocks, cuts=[(sum(len(block.raw) for block in blocks) - 40, "rst")], replay="zero", chunk=chunk)
    result = run(Stream(server, protocol=Repeating(end="[DONE]")))
    texts = [row[1] for row in rows_of(blocks)]
    assert result.data == texts[: len(result.data)]
    assert isinstance(result.error, ReplayDiverged)


class Stamped(LastEventID):
    """Each sending of an event carries another time stamp."""

    def fingerprint(self, event: Any) -> str:
        return fingerprint(event.event, str(json.loads(event.data)["text"]) if event.data != "[DONE]" else "")


def test_a_protocol_may_leave_volatile_fields_out() -> None:
    def stamped(text: str, sent: int, id: str | None = None) -> bytes:
        return ev(json.dumps({"text": text, "sent": sent}), id)

    result = play(
        Reply([stamped("a", 1, "x") + stamped("b", 2), "rst"]),
        Reply([stamped("b", 9) + stamped("c", 10) + DONE]),
        protocol=Stamped(end="[DONE]"),
    )
    assert [event.data[:12] for event in result.events] == ['{"text": "a"', '{"text": "b"', '{"text": "c"', "[DONE]"]


class Counting(LastEventID):
    """Counts the digests that were taken."""

    calls = 0

    def fingerprint(self, event: Any) -> str:
        self.calls += 1
        return super().fingerprint(event)


@pytest.mark.parametrize("named", ["{n}", "i{n}", "i{n} now and then"])
@pytest.mark.parametrize("sequence", ["auto", None])
def test_a_replay_costs_each_event_a_few_digests(named: str, sequence: Any) -> None:
    def digests(count: int) -> float:
        def block(n: int) -> bytes:
            return ev(f"token {n}", None if n % 4 and "now" in named else named.split(" ")[0].format(n=n))

        protocol = Counting(end="[DONE]", sequence=sequence)
        blocks = [block(n) for n in range(1, count + 1)]
        # The server goes back almost to the start.
        result = play(Reply([b"".join(blocks), "rst"]), Reply([b"".join(blocks[7:]) + DONE]), protocol=protocol)
        assert len(result.events) == count + 1
        assert result.stream.machine.stats.duplicates == count - 7
        return protocol.calls / count

    assert digests(100) <= 4
    assert digests(800) <= 4


@pytest.mark.parametrize("length", [10, 256, 257, 3_000])
def test_an_event_with_a_long_id_is_known_when_it_comes_again(length: int) -> None:
    names = [f"{n}".rjust(length, "x") for n in range(6)]
    first = b"".join(ev(f"d{n}", name) for n, name in enumerate(names))
    result = play(Reply([first, "rst"]), Reply([first + ev("new", "y" * length) + DONE]), protocol=NAMED)
    assert result.data == [*(f"d{n}" for n in range(6)), "new", "[DONE]"]


def test_long_ids_are_not_kept() -> None:
    size, count = 100_000, 100
    names = [f"{n}".rjust(size, "x") for n in range(count)]
    chunks = [ev(f"d{n}", name) for n, name in enumerate(names)]
    stream = Stream(script(Reply([*chunks, "rst"]), Reply([*chunks[-3:], ev("new", "y" * size), DONE])), protocol=NAMED)
    events = [event.data for event in stream]
    assert events == [*(f"d{n}" for n in range(count)), "new", "[DONE]"]
    kept = sum(len(item.own_id or "") for item in stream.machine._ledger._examiner.memory.items)
    assert kept <= KEPT_BYTES + size, "10 MB of ids came"


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("back", range(1, 9))
def test_numbers_that_come_again_are_dropped(back: int) -> None:
    result = play(Reply([seqs(*range(1, 9)), "rst"]), Reply([seqs(*range(9 - back, 12)) + DONE]), protocol=NUMBERED)
    assert [event.sequence for event in result.events] == [*range(1, 12), None]
    assert result.stream.machine.stats.duplicates == back


def test_a_promised_number_with_other_content_is_a_divergence() -> None:
    result = play(Reply([seqs(1, 2, 3), "rst"]), Reply([seqs(3, 4, x="other")]), protocol=NUMBERED)
    assert isinstance(result.error, ReplayDiverged)
    assert [event.sequence for event in result.events] == [1, 2, 3]
    assert result.error.checkpoint is not None and result.error.checkpoint.cursor == "3"


def test_a_promised_counter_that_starts_again_is_a_divergence() -> None:
    result = play(Reply([seqs(1, 2, 3), "rst"]), Reply([seqs(1, 2, 3, 4, x="second run")]), protocol=NUMBERED)
    assert isinstance(result.error, ReplayDiverged)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("count", [3, 40])
def test_a_promised_counter_that_starts_again_where_nothing_was_replayed_loses_nothing(count: int, together: bool) -> None:
    """
    One uncut connection, and other content under the old numbers: how the provider counts is its own business.

    BerriAI/litellm#32579: an error event that carried an old number was taken for a contradiction, and its words were lost.
    Also once the window has forgotten the number.
    """
    parts = [seqs(*range(1, count + 1)), seqs(*range(1, count + 1), x="second run"), seqs(count + 1), DONE]
    result = play(Reply([b"".join(parts)] if together else parts), protocol=NUMBERED, limits=Limits(window=8))
    assert result.error is None
    assert [event.sequence for event in result.events] == [*range(1, count + 1), *range(1, count + 2), None]
    assert result.stream.machine.stats.duplicates == 0
    notices = result.stream.kinds(NumberOutOfOrder)
    assert [(each.expected, each.received) for each in notices] == [(count + 1, number) for number in range(1, count + 1)]


@pytest.mark.parametrize("together", [True, False])
def test_two_equal_events_that_share_a_number_are_both_delivered_where_nothing_was_replayed(together: bool) -> None:
    """Two equal words under one number are text; only in a replay is the second one a repeat (rule 5)."""
    parts = [seqs(1), seqs(2, x="ha"), seqs(2, x="ha"), seqs(3), DONE]
    result = play(Reply([b"".join(parts)] if together else parts), protocol=NUMBERED, method="POST")
    assert [event.sequence for event in result.events] == [1, 2, 2, 3, None]
    assert len(result.stream.kinds(NumberOutOfOrder)) == 1


def test_an_odd_number_does_not_move_the_place() -> None:
    """After it, the stream resumes from the highest number, and the odd event is expected once more."""
    body = seqs(1, 2, 3) + seqs(1, x="odd")
    result = play(Reply([body, "rst"]), Reply([seqs(1, x="odd") + seqs(4) + DONE]), protocol=NUMBERED)
    assert [event.sequence for event in result.events] == [1, 2, 3, 1, 4, None]
    assert [sent.params.get("after") for sent in result.stream.sent] == [None, "3"]


def test_the_place_after_an_odd_number_within_a_batch_keeps_the_count() -> None:
    stream = Stream(script(Reply([seqs(1, 2, 3) + seqs(1, x="odd") + seqs(4) + DONE])), protocol=NUMBERED)
    places = []
    for _ in range(5):
        next(stream)
        places.append((stream.checkpoint.cursor, stream.checkpoint.sequence))
    assert places == [(None, None), ("1", 1), ("2", 2), ("3", 3), ("3", 3)]


def test_a_promised_number_far_behind_what_is_remembered_is_still_a_repeat() -> None:
    result = play(
        Reply([seqs(*range(1, 61)), "rst"]), Reply([seqs(*range(1, 63)) + DONE]), protocol=NUMBERED, limits=Limits(window=8)
    )
    assert [event.sequence for event in result.events] == [*range(1, 63), None]


def test_a_counter_that_was_only_watched_may_start_again() -> None:
    """Plain SSE promises no numbers: the event is delivered, the observer told."""
    result = play(Reply([evs(1, 10), "rst"]), Reply([ev("new", "1") + ev("newer", "2") + DONE]))
    assert result.data == [*(f"d{n}" for n in range(1, 11)), "new", "newer", "[DONE]"]
    assert result.stream.kinds(NumberingStopped)
    assert not any(event.gap for event in result.events)


def test_a_watched_counter_that_starts_again_with_other_content_is_delivered() -> None:
    """Hal0ai/hal0#785: after a restart of the server its ids start again at 1."""
    again = b"".join(ev(f"again {n}", f"{n}") for n in range(1, 13))
    result = play(Reply([evs(1, 10) + again + DONE]))
    assert result.data == [*(f"d{n}" for n in range(1, 11)), *(f"again {n}" for n in range(1, 13)), "[DONE]"]
    assert result.stream.machine.stats.duplicates == 0
    assert not any(event.gap for event in result.events)


def test_a_watched_counter_that_is_told_again_with_the_same_content_is_a_repeat() -> None:
    """Ten ids in their old order, each with its old content: the server replayed what it had sent."""
    result = play(Reply([evs(1, 10) + evs(1, 10) + evs(5, 6) + evs(11, 12) + DONE]))
    assert result.data == [*(f"d{n}" for n in range(1, 13)), "[DONE]"]
    assert result.stream.machine.stats.duplicates == 12
    assert not result.stream.kinds(NumberingStopped)


def test_a_watched_number_with_other_content_switches_the_watch_off() -> None:
    result = play(Reply([evs(1, 10), "rst"]), Reply([ev("other", "10") + ev("d11", "11") + ev("d99", "99") + DONE]))
    assert result.data[10:] == ["other", "d11", "d99", "[DONE]"]
    assert result.stream.kinds(NumberingStopped)
    assert not any(event.gap for event in result.events)


def test_a_watched_number_with_the_same_content_is_a_repeat() -> None:
    result = play(Reply([evs(1, 10), "rst"]), Reply([evs(8, 12) + DONE]))
    assert result.data[10:] == ["d11", "d12", "[DONE]"]
    assert not result.stream.kinds(NumberingStopped)


def test_increasing_numbers_may_jump_and_repeat() -> None:
    protocol = CursorProtocol(read="seq", send="query:after", end="[DONE]", sequence="increasing")
    result = play(Reply([seqs(1, 5, 9), "rst"]), Reply([seqs(5, 9, 20, 21) + DONE]), protocol=protocol)
    assert [event.sequence for event in result.events] == [1, 5, 9, 20, 21, None]
    assert not any(event.gap for event in result.events)
    diverged = play(Reply([seqs(1, 5, 9), "rst"]), Reply([seqs(9, x="other")]), protocol=protocol)
    assert isinstance(diverged.error, ReplayDiverged)


@pytest.mark.parametrize("protocol", [NUMBERED, LastEventID(end="[DONE]")], ids=["promised", "watched"])
def test_a_number_repeated_for_ever_ends_bounded(protocol: ResumeProtocol) -> None:
    again = seqs(3) if protocol is NUMBERED else ev("d3", "3")
    first = seqs(1, 2, 3) if protocol is NUMBERED else evs(1, 3)

    def server(sent: Any) -> Reply:
        return Reply([first, "rst"]) if not (sent.cursor or sent.params) else Reply([again, Wait(1)] * 2000)

    result = run(Stream(server, protocol=protocol, delay=policy(attempts=3), timeouts=Timeouts(stall=60)))
    assert isinstance(result.error, RetriesExhausted)
    assert len(result.events) == 3
    assert len(result.stream.sent) == 5


def test_a_number_repeated_once_a_connection_ends_bounded() -> None:
    def server(sent: Any) -> Reply:
        return Reply([seqs(1, 2, 3), "rst"]) if not sent.params else Reply([seqs(3)])

    result = run(Stream(server, protocol=NUMBERED, delay=policy(attempts=3)))
    assert isinstance(result.error, RetriesExhausted)


def test_ids_that_are_all_the_same_lose_nothing() -> None:
    """The id names no event here; the sender's content and order are all there is."""
    result = play(Reply([ev("a", "x") + ev("b", "x") + ev("c", "x") + ev("b", "x") + DONE]))
    assert result.data == ["a", "b", "c", "b", "[DONE]"]


# --- a server that ignores the cursor -------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", ["all", "some", "first none"])
@pytest.mark.parametrize("delivered", [1, 2, 5, 20])
def test_a_replay_from_the_beginning_is_recognised_and_dropped(delivered: int, ids: str) -> None:
    def id_of(number: int) -> str | None:
        if ids == "first none":
            return f"i{number}" if number else None
        return f"i{number}" if ids == "all" or number % 3 == 0 else None

    blocks = transcript(*(ev(f"{number % 2}", id_of(number)) for number in range(22)), DONE)
    at = len(b"".join(block.raw for block in blocks[: max(delivered, 2 if ids == "first none" else 1)]))
    result = run(Stream(EventServer(blocks, cuts=[(at, "rst")], replay="zero"), protocol=NAMED))
    assert result.rows == rows_of(blocks)
    if delivered > 1:
        assert result.stream.machine.stats.cursor_ignored
        assert result.stream.kinds(CursorIgnored)


def test_a_replay_from_the_beginning_with_other_content_is_a_divergence() -> None:
    result = play(
        Reply([ev("a", "1") + ev("b", "2") + ev("c", "3"), "rst"]),
        Reply([ev("a", "1") + ev("B", "2") + ev("C", "3") + ev("d", "4")]),
        protocol=LastEventID(end="[DONE]", sequence=None),
    )
    assert isinstance(result.error, ReplayDiverged)
    assert result.data == ["a", "b", "c"]


def test_a_replay_longer_than_the_window_is_still_compared_where_it_can_be() -> None:
    blocks = transcript(*(ev(f"{n}", f"i{n}") for n in range(40)), DONE)
    at = len(b"".join(block.raw for block in blocks[:30]))
    result = run(Stream(EventServer(blocks, cuts=[(at, "rst")], replay="zero"), protocol=NAMED, limits=Limits(window=8)))
    assert result.rows == rows_of(blocks)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("window", [4, 4096])
@pytest.mark.parametrize("changed", [0, 1, 12, 24])
def test_a_replay_from_zero_that_differs_is_a_divergence(window: int, changed: int, together: bool) -> None:
    """
    Count and chained digest once it is longer than the window: the difference is found at the latest after it.

    The log is folded into the digest between two chunks, so it stays whole where everything came in one.
    """
    good = [ev(f"{n}") for n in range(30)]
    bad = [ev(f"{n}" if n != changed else "other") for n in range(30)]
    result = play(
        Reply([*([b"".join(good[:25])] if together else good[:25]), "rst"]),
        Reply([b"".join(bad) + DONE]),
        protocol=ReplayFromZero(end="[DONE]"),
        limits=Limits(window=window),
    )
    assert isinstance(result.error, ReplayDiverged)
    assert result.data == [f"{n}" for n in range(25)]


@pytest.mark.parametrize("window", [4, 4096])
def test_a_replay_from_zero_is_cut_often_and_arrives_whole(window: int) -> None:
    blocks = transcript(*(ev(f"{n % 3}") for n in range(40)), DONE)
    body = b"".join(block.raw for block in blocks)
    cuts = [(at, "rst") for at in range(10, len(body), 37)]
    result = run(
        Stream(EventServer(blocks, cuts=cuts, replay="zero"), protocol=ReplayFromZero(end="[DONE]"), limits=Limits(window=window))
    )
    assert (result.rows, result.outcome) == (rows_of(blocks), Outcome.COMPLETED)
