"""Properties: whatever is cut, repeated, split and restarted, what is delivered is what was sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resumable_stream._checkpoint import Checkpoint
from resumable_stream._errors import GapError
from resumable_stream._events import Outcome
from resumable_stream._settings import Limits
from resumable_stream.protocols import ByteRange, CursorProtocol, LastEventID, ReplayFromZero, ResumeProtocol

from .simulation import CUTS, Block, EventServer, Reply, Sent, Stream, cut_body, ev, rows_of, run, transcript
from .test_every_cut import ByteServer

DONE = ev("[DONE]")

cut_kinds = st.sampled_from(CUTS)
cuts = st.lists(st.tuples(st.integers(0, 250), cut_kinds), min_size=2, max_size=3)
chunks = st.one_of(st.none(), st.lists(st.integers(1, 40), min_size=1, max_size=4))
# Few different texts: equal neighbours are what makes a replay hard to recognise.
texts = st.sampled_from(["a", "b", "a\nb", "é", ""])
# What a block carries: its own id, none, or an id and no data. The first has an id, or nothing could be resumed.
shapes = st.lists(st.tuples(st.sampled_from(["id", "id", "none", "none", "alone", "ping"]), texts), min_size=1, max_size=24)


def blocks_of(drawn: list[tuple[str, str]], *, done: bytes = DONE) -> list[Block]:
    raws = [ev("first", "c0")]
    for index, (shape, text) in enumerate(drawn, start=1):
        match shape:
            case "id":
                raws.append(ev(text, f"c{index}"))
            case "none":
                raws.append(ev(text))
            case "alone":
                raws.append(ev(None, f"c{index}"))
            case _:
                raws.append(b": ping\n\n")
    return transcript(*raws, done)


@given(shapes, cuts, chunks)
def test_cuts_at_random_places_lose_and_repeat_nothing(drawn: Any, cuts: Any, chunk: Any) -> None:
    blocks = blocks_of(drawn)
    result = run(Stream(EventServer(blocks, cuts=cuts, chunk=chunk), protocol=LastEventID(end="[DONE]")))
    assert (result.rows, result.outcome, result.error) == (rows_of(blocks), Outcome.COMPLETED, None)
    assert [event.offset for event in result.events] == list(range(len(result.events)))


@given(shapes, cuts, chunks, st.sampled_from(["close", "204"]))
def test_without_a_marker_too(drawn: Any, cuts: Any, chunk: Any, empty: str) -> None:
    blocks = blocks_of(drawn, done=ev("last", "z"))
    (at, cut), (then_at, then) = cuts[:2]
    # A question that is answered cleanly with nothing is the end (rule 7c), so the second answer does not close cleanly.
    twice = [(max(1, at), cut), (then_at, "rst" if then in ("close", "half") else then)]
    server = EventServer(blocks, cuts=twice, chunk=chunk, empty=empty)
    result = run(Stream(server, protocol=LastEventID()))
    assert (result.rows, result.outcome, result.error) == (rows_of(blocks), Outcome.ENDED, None)


class Resender(EventServer):
    """After a reconnect it sends some of the blocks before the cursor once more, beginning at one that has an id."""

    def start(self, sent: Sent) -> int:
        at = super().start(sent)
        while 0 < at < len(self.blocks) and not (self.blocks[at].moves and self.blocks[at].row):
            at -= 1
        return at


@given(shapes, cuts, chunks, st.lists(st.integers(0, 30), min_size=3, max_size=3))
def test_blocks_that_the_server_resends_are_dropped(drawn: Any, cuts: Any, chunk: Any, resend: Any) -> None:
    blocks = blocks_of(drawn)
    server = Resender(blocks, cuts=cuts, chunk=chunk, resend=resend)
    result = run(Stream(server, protocol=LastEventID(end="[DONE]")))
    assert (result.rows, result.outcome, result.error) == (rows_of(blocks), Outcome.COMPLETED, None)


@given(shapes, cuts, chunks)
def test_a_server_that_ignores_the_cursor_repeats_in_vain(drawn: Any, cuts: Any, chunk: Any) -> None:
    blocks = blocks_of(drawn)
    server = EventServer(blocks, cuts=cuts, chunk=chunk, replay="zero")
    result = run(Stream(server, protocol=LastEventID(end="[DONE]")))
    assert (result.rows, result.outcome, result.error) == (rows_of(blocks), Outcome.COMPLETED, None)


@given(shapes, cuts, chunks, st.sampled_from([2, 4096]))
def test_a_replay_from_zero_is_spliced(drawn: Any, cuts: Any, chunk: Any, window: int) -> None:
    blocks = blocks_of(drawn)
    server = EventServer(blocks, cuts=cuts, chunk=chunk, replay="zero")
    result = run(Stream(server, protocol=ReplayFromZero(end="[DONE]"), limits=Limits(window=window)))
    assert (result.rows, result.outcome, result.error) == (rows_of(blocks), Outcome.COMPLETED, None)


class Echo:
    """Replay meets live: after a reconnect, events that were delivered come again anywhere between new ones."""

    def __init__(self, count: int, name: str, cuts: list[int], echoes: list[list[int]], chunk: Any) -> None:
        self.events = [ev(f"{number % 2}", name.format(number)) for number in range(1, count + 1)]
        self.name, self.cuts, self.echoes, self.chunk = name, cuts, echoes, chunk
        self.answers = 0

    def __call__(self, sent: Sent) -> Reply:
        start = (
            0
            if sent.cursor is None
            else 1 + self.events.index(next(e for e in self.events if f"id: {sent.cursor}\n".encode() in e))
        )
        out: list[bytes] = []
        echoes = iter(self.echoes[self.answers - 1]) if 0 < self.answers <= len(self.echoes) else iter(())
        for number in range(start, len(self.events)):
            out.append(self.events[number])
            back = next(echoes, 0)
            if back and start:
                # Delivered before the reconnect, and behind a new event: one that leads looks like a server that starts over.
                out.append(self.events[max(0, start - back)])
        cut = (self.cuts[self.answers], "rst") if self.answers < len(self.cuts) else None
        self.answers += 1
        return Reply(cut_body(b"".join([*out, DONE]), cut, self.chunk))


@given(
    st.integers(1, 20),
    st.sampled_from(["{0}", "op-{0}"]),
    st.lists(st.integers(0, 250), max_size=3),
    st.lists(st.lists(st.integers(0, 5), max_size=20), max_size=3),
    chunks,
    st.sampled_from([None, "auto", "contiguous"]),
)
def test_repeats_between_new_events_are_dropped(count: int, name: str, cuts: Any, echoes: Any, chunk: Any, sequence: Any) -> None:
    server = Echo(count, name, cuts, echoes, chunk)
    result = run(Stream(server, protocol=LastEventID(end="[DONE]", sequence=sequence)))
    ids = [event.id for event in result.events[:-1]]
    assert (ids, result.outcome, result.error) == (
        [name.format(number) for number in range(1, count + 1)],
        Outcome.COMPLETED,
        None,
    )
    assert not any(event.gap for event in result.events)


# --- numbers and holes ----------------------------------------------------------------------------------------------


class Numbers:
    """
    A server of numbered events.

    Args:
        last: The highest number.
        holes: For each connection in turn, numbers that it leaves out; connections behind the last leave out none.
        missing: Numbers that are gone for good.
    """

    def __init__(self, last: int, *, holes: list[set[int]], missing: set[int], cuts: Any, chunk: Any, back: list[int]) -> None:
        self.last, self.holes, self.missing, self.cuts, self.chunk, self.back = last, holes, missing, cuts, chunk, back
        self.answers = 0

    def __call__(self, sent: Sent) -> Reply:
        after = max(0, int(sent.params.get("after", 0)) - (self.back[self.answers % len(self.back)] if self.answers else 0))
        gone = self.missing | (self.holes[self.answers] if self.answers < len(self.holes) else set())
        cut = self.cuts[self.answers] if self.answers < len(self.cuts) else None
        self.answers += 1
        body = b"".join(ev(f'{{"seq": {number}}}') for number in range(after + 1, self.last + 1) if number not in gone)
        return Reply(cut_body(body + DONE, cut, self.chunk))


numbered: ResumeProtocol = CursorProtocol(read="seq", send="query:after", end="[DONE]", sequence="contiguous", first_sequence=1)
holes = st.lists(st.sets(st.integers(1, 14), max_size=3), max_size=3)


@given(
    st.integers(1, 14),
    holes,
    cuts,
    chunks,
    st.lists(st.integers(0, 4), min_size=1, max_size=3),
    st.sampled_from(["refetch", "deliver"]),
)
def test_holes_that_can_be_filled_are_filled(last: int, holes: Any, cuts: Any, chunk: Any, back: Any, on_gap: str) -> None:
    # The last event is followed by the marker alone: a hole at the very end cannot be seen.
    holes = [found - {last} for found in holes]
    server = Numbers(last, holes=holes, missing=set(), cuts=cuts, chunk=chunk, back=back)
    result = run(Stream(server, protocol=numbered, on_gap=on_gap))
    numbers = [event.sequence for event in result.events if event.sequence is not None]
    if result.error is None:
        assert result.outcome is Outcome.COMPLETED
        if any(event.gap for event in result.events):
            assert on_gap == "deliver"
            assert sorted(set(numbers)) == numbers
        else:
            assert numbers == list(range(1, last + 1))
    else:
        # A server may leave the same number out twice in a row: that is a refusal.
        assert isinstance(result.error, GapError)
        assert on_gap == "refetch"
        assert numbers == list(range(1, result.error.expected or 0))


@given(
    st.integers(2, 14), st.sets(st.integers(1, 13), max_size=4), cuts, chunks, st.lists(st.integers(0, 4), min_size=1, max_size=3)
)
def test_holes_that_stay_are_raised_or_marked_each_exactly_once(
    last: int, missing: Any, cuts: Any, chunk: Any, back: Any
) -> None:
    missing = {number for number in missing if number < last}
    present = [number for number in range(1, last + 1) if number not in missing]
    make = lambda: Numbers(last, holes=[], missing=missing, cuts=cuts, chunk=chunk, back=back)  # noqa: E731
    result = run(Stream(make(), protocol=numbered, on_gap="deliver"))
    assert [event.sequence for event in result.events] == [*present, None]
    for event, before in zip(result.events, [0, *present], strict=False):
        if event.sequence is not None:
            assert (event.gap.missing if event.gap else 0) == event.sequence - before - 1
    result = run(Stream(make(), protocol=numbered))
    if missing:
        assert isinstance(result.error, GapError)
        assert [event.sequence for event in result.events] == list(range(1, min(missing)))
    else:
        assert result.outcome is Outcome.COMPLETED


# --- across processes -----------------------------------------------------------------------------------------------


def restart(server: Any, make: Any, stops: list[int], how: list[str], *, manual: bool) -> tuple[list[Any], Outcome | None]:
    """
    Run a stream through several processes.

    Each is killed at an event in hand (`"dies"`), or leaves behind it (`"leaves"`), or, under manual commit, dies some events
    after the last one committed. The place goes through a token.

    Returns:
        What was done with: under `"dies"` the event in hand was not.
    """
    done: list[Any] = []
    checkpoint: Checkpoint | None = None
    for turn in range(len(stops) + 1):
        stream: Stream = make(checkpoint)
        left = stops[turn] if turn < len(stops) else 10**9
        pending: list[Any] = []
        died = False
        for event in stream:
            left -= 1
            pending.append((event.event, event.data, event.id))
            if left < 0:
                died = True
                break
            if manual and how[turn % len(how)] == "leaves":
                stream.commit(event if left % 2 else None)
                done += pending
                pending = []
        if manual:
            if not died:
                stream.commit()
                done += pending
            checkpoint = stream.checkpoint
        elif died and how[turn % len(how)] == "dies":
            done += pending[:-1]
            checkpoint = stream.checkpoint
        else:
            done += pending
            checkpoint = stream.leave()
        if not died:
            return done, stream.outcome
        checkpoint = Checkpoint.from_token(checkpoint.token())
    raise AssertionError("the last process did not end")


habits = st.lists(st.sampled_from(["dies", "leaves"]), min_size=1, max_size=3)
stops = st.lists(st.integers(0, 12), min_size=1, max_size=3)


@given(shapes, cuts, chunks, stops, habits, st.booleans())
def test_another_process_goes_on_where_this_one_stopped(
    drawn: Any, cuts: Any, chunk: Any, stops: Any, how: Any, manual: bool
) -> None:
    """With the event in hand not done, what was done with is exact: it is delivered at least once, done exactly once."""
    blocks = blocks_of(drawn)
    server = EventServer(blocks, cuts=cuts, chunk=chunk)
    protocol = LastEventID(end="[DONE]")
    done, outcome = restart(
        server,
        lambda checkpoint: Stream(server, protocol=protocol, checkpoint=checkpoint, manual=manual),
        stops,
        how,
        manual=manual,
    )
    assert (done, outcome) == (rows_of(blocks), Outcome.COMPLETED)


@given(shapes, cuts, chunks, stops, habits, st.booleans(), st.sampled_from([3, 4096]))
def test_another_process_compares_a_replay_from_zero(
    drawn: Any, cuts: Any, chunk: Any, stops: Any, how: Any, manual: bool, window: int
) -> None:
    blocks = blocks_of(drawn)
    server = EventServer(blocks, cuts=cuts, chunk=chunk, replay="zero")
    limits = Limits(window=window)
    make = lambda checkpoint: Stream(  # noqa: E731
        server, protocol=ReplayFromZero(end="[DONE]"), checkpoint=checkpoint, manual=manual, limits=limits
    )
    done, outcome = restart(server, make, stops, how, manual=manual)
    assert (done, outcome) == (rows_of(blocks), Outcome.COMPLETED)


@given(st.integers(2, 20), cuts, chunks, stops, habits, st.booleans())
def test_another_process_goes_on_by_number(last: int, cuts: Any, chunk: Any, stops: Any, how: Any, manual: bool) -> None:
    server = Numbers(last, holes=[], missing=set(), cuts=cuts, chunk=chunk, back=[0, 2])
    make = lambda checkpoint: Stream(server, protocol=numbered, checkpoint=checkpoint, manual=manual)  # noqa: E731
    done, outcome = restart(server, make, stops, how, manual=manual)
    assert [row[1] for row in done] == [*(f'{{"seq": {number}}}' for number in range(1, last + 1)), "[DONE]"]
    assert outcome is Outcome.COMPLETED


@given(
    st.binary(min_size=1, max_size=120),
    st.lists(st.tuples(st.integers(0, 100), st.sampled_from(["rst", "close"])), max_size=3),
    chunks,
    stops,
)
def test_bytes_go_on_in_another_process(body: bytes, cuts: Any, chunk: Any, stops: Any) -> None:
    server = ByteServer(body, cuts=cuts, chunk=chunk)
    got, checkpoint = b"", None
    for stop in [*stops, 10**9]:
        stream = Stream(server, protocol=ByteRange(), checkpoint=checkpoint)
        result = run(stream, at_most=stop + 1)
        got += b"".join(result.data)
        assert result.error is None
        checkpoint = Checkpoint.from_token(stream.leave().token())
        if stream.outcome is not None:
            break
    assert got == body
    assert checkpoint is not None and checkpoint.complete
    assert checkpoint.cursor == str(len(body))


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", ["{0}", "op-{0}", None], ids=["counting", "opaque", "none"])
def test_a_long_stream_keeps_what_the_window_holds(id: str | None) -> None:
    import gc
    import tracemalloc

    def body(sent: Sent) -> Reply:
        first = ev("start", "0") if id is not None else b""
        step = b"".join(ev(f"some text {n}", id.format(n)) if id else ev(f"text {n}") for n in range(1, 101))
        return Reply([first, *(step.replace(b"id: ", b"id: %d-" % n) for n in range(30))] if id else [step] * 30)

    limits = Limits(window=64)
    stream = Stream(body, protocol=LastEventID(end="close"), limits=limits)
    sizes = []
    tracemalloc.start()
    try:
        for index, _ in enumerate(stream):
            if index % 500 == 499:
                gc.collect()
                stream.reads.clear()
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert len(sizes) == 6
    assert max(sizes[2:]) - min(sizes[2:]) < 60_000, sizes


def test_what_is_compared_is_json_stable() -> None:
    """The place of one process is read by another; nothing in it depends on the interpreter."""
    stream = Stream(EventServer(transcript(ev("a", "1"), ev("b"), ev("c"), DONE)))
    for _ in range(3):
        next(stream)
    found = json.loads(stream.leave().to_json())
    assert found["since"] == ["4c9c5e42a3d4ab39", "71d48e5e9d9f170a"]
    assert found["recent_ids"][0][0] == "1"
