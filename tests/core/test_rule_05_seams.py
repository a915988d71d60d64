"""
Rule 5, within one answer: where replay meets live, a run of events comes again in its old order. It is delivered once.

And the opposite: many servers put one id (of the message, the request, the run) on every event, and nothing of that is dropped.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resumable_stream._core.seams import LONGEST, PATIENCE, TRIM, TRUSTED
from resumable_stream._errors import ReplayDiverged, UpstreamError
from resumable_stream._events import Outcome
from resumable_stream._notices import NumberOutOfOrder
from resumable_stream._settings import Limits
from resumable_stream.protocols import CursorProtocol, LastEventID

from ..cutting import Where
from .simulation import (
    CUTS,
    DROPPED,
    Block,
    EventServer,
    Reply,
    Sent,
    Stream,
    cut_body,
    ev,
    play,
    rows_of,
    run,
    script,
    transcript,
)

DONE = ev("[DONE]")
NAMED = LastEventID(end="[DONE]")
NUMBERED = CursorProtocol(read="seq", send="query:after", end="[DONE]", sequence="contiguous")


def numbered(*numbers: int) -> bytes:
    return b"".join(ev(f'{{"seq": {number}, "text": "{number % 2}"}}') for number in numbers)


def chunked(parts: list[bytes], how: str) -> list[bytes]:
    body = b"".join(parts)
    return {"whole": [body], "event": parts, "byte": [body[at : at + 1] for at in range(len(body))]}[how]


# --- seams ----------------------------------------------------------------------------------------------------------


def test_a_cut_before_the_first_event_does_not_repeat_the_replay() -> None:
    """The first connection brought a head and nothing else, so the second starts at nothing too. It joins what already runs."""
    events = [ev(f"t{n}", f"e{n}") for n in (1, 2, 3, 2, 3, 4)]
    result = play(Reply([]), Reply([b"".join(events) + DONE]))
    assert result.data == ["t1", "t2", "t3", "t4", "[DONE]"]
    assert result.outcome is Outcome.COMPLETED
    assert result.stream.machine.stats.duplicates == 2


RUNS = [
    *((before, again) for before in range(2, 9) for again in range(2, before + 1)),
    (15, 2),
    (40, 2),
    (40, 1),
    (40, 40),
    (90, 70),
]
HOWS = ("whole", "event", "byte")


@pytest.mark.parametrize(
    ("before", "again", "name", "how"),
    [
        # The ways to arrive take turns; all of them in `make soak`.
        pytest.param(*lengths, name, how, marks=() if how == HOWS[(turn + other) % 3] else pytest.mark.soak)
        for turn, lengths in enumerate(RUNS)
        for other, name in enumerate(["e{}", "{}", "seq"])
        for how in HOWS
    ],
)
def test_a_run_told_again_on_the_first_answer_is_delivered_once(before: int, again: int, name: str, how: str) -> None:
    """Every length of the run, while ids are new and once they are trusted; equal words in between."""
    numbers = [*range(1, before + 1), *range(before - again + 1, before + 3)]
    if name == "seq":
        if again == 1:
            pytest.skip("one event that shares its number with the one before it is delivered: see test_rule_05_duplicates")
        parts, protocol = [numbered(number) for number in numbers], NUMBERED
    else:
        parts, protocol = [ev(f"{number % 2}", name.format(number)) for number in numbers], NAMED
    result = play(Reply(chunked([*parts, DONE], how)), protocol=protocol)
    assert len(result.events) == before + 3
    assert result.data[:-1] == play(Reply(parts[:before] + parts[-2:] + [DONE]), protocol=protocol).data[:-1]
    assert result.stream.machine.stats.duplicates == again
    assert not any(event.gap for event in result.events)
    assert not result.stream.kinds(NumberOutOfOrder)


@pytest.mark.parametrize("before", [4, 5, 6, 30])
def test_events_without_an_id_within_the_run_are_part_of_it(before: int) -> None:
    parts = [ev("same", f"e{n}" if n % 3 == 0 else None) for n in range(before)]
    for first in range(0, before - 3, 3):
        result = play(Reply([b"".join([*parts, *parts[first:], ev("new", "z"), DONE])]), protocol=NAMED)
        assert result.data == ["same"] * before + ["new", "[DONE]"], first


def test_two_seams_in_one_answer() -> None:
    parts = [ev(f"d{n}", f"e{n}") for n in range(12)]
    result = play(Reply([b"".join([*parts[:5], *parts[2:8], *parts[5:], DONE])]), protocol=NAMED)
    assert result.data == [*(f"d{n}" for n in range(12)), "[DONE]"]


class Seam(EventServer):
    """
    Each of its answers holds a seam.

    Args:
        at: The block after which what is live begins; later in an answer that starts beyond it.
        back: So many blocks of the replay come again.
    """

    def __init__(self, blocks: list[Block], *, at: int, back: int, **options: Any) -> None:
        super().__init__(blocks, **options)
        self.at, self.back = at, back

    def __call__(self, sent: Sent) -> Reply:
        start = self.start(sent)
        meet = min(max(self.at, start + self.back), len(self.blocks) - 1)
        told = [*self.blocks[start:meet], *self.blocks[max(start, meet - self.back) :]]
        cut = self.cuts[self.answers] if self.answers < len(self.cuts) else None
        self.answers += 1
        return Reply(cut_body(b"".join(block.raw for block in told), cut, self.chunk, self.tail))


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", ["e{}", "{}"])
def test_a_seam_may_be_cut_anywhere(cut: str, name: str, where: Where) -> None:
    """Before the seam, within the run that comes again, and after it; the answer that follows holds a seam too."""
    blocks = transcript(*(ev(f"{n % 2}", name.format(n)) for n in range(1, 10)), DONE)
    for position in where([block.raw for block in [*blocks[:6], *blocks[2:]]]):
        result = run(Stream(Seam(blocks, at=6, back=4, cuts=[(position, cut)]), protocol=NAMED))
        assert (result.rows, result.outcome, result.error) == (rows_of(blocks), Outcome.COMPLETED, None), position


# The run of a seam names at least two ids.
@given(
    st.integers(2, 60),
    st.integers(2, 70),
    st.integers(0, 60),
    st.lists(st.tuples(st.integers(0, 400), st.sampled_from(CUTS)), max_size=3),
    st.one_of(st.none(), st.lists(st.integers(1, 60), min_size=1, max_size=4)),
    st.sampled_from(["e{}", "{}"]),
    st.lists(st.sampled_from(["a", "b"]), min_size=60, max_size=60),
)
def test_no_seam_is_delivered_twice(count: int, back: int, at: int, cuts: Any, chunk: Any, name: str, words: list[str]) -> None:
    blocks = transcript(*(ev(words[n % 60], name.format(n)) for n in range(1, count + 1)), DONE)
    at = min(max(at, 2), count)
    result = run(Stream(Seam(blocks, at=at, back=min(back, at), cuts=cuts, chunk=chunk), protocol=NAMED))
    assert (result.rows, result.outcome, result.error) == (rows_of(blocks), Outcome.COMPLETED, None)


def test_one_number_told_again_is_a_repeat_where_the_stream_may_have_been_running() -> None:
    """A GET joins; a POST starts, so that two equal events under one number are the provider's own."""
    body = [numbered(1), numbered(2), numbered(2), numbered(3), DONE]
    joined = play(Reply(body), protocol=NUMBERED)
    assert [event.sequence for event in joined.events] == [1, 2, 3, None]
    started = play(Reply(body), protocol=NUMBERED, method="POST")
    assert [event.sequence for event in started.events] == [1, 2, 2, 3, None]


def test_numbers_that_never_change_drop_nothing() -> None:
    """Some proxies number each event 0; equal words follow each other all the same."""
    words = ["ha", "ha", "ho", "ha", "ha"]
    body = b"".join(ev(f'{{"seq": 0, "text": "{word}"}}') for word in words)
    for method in ("GET", "POST"):
        result = play(Reply([body + DONE]), protocol=NUMBERED, method=method)
        assert [event.json()["text"] for event in result.events[:-1]] == words, method


# --- ids that are not identities ------------------------------------------------------------------------------------


def test_one_id_on_every_event_drops_nothing() -> None:
    """Chat servers put the id of the message there; "ha ha" is two words."""
    words = ["ha", "ha", "ha", " and ", "ha", "ha", "ha"] * 20
    for how in ("whole", "event"):
        result = play(Reply(chunked([*(ev(word, "msg_1") for word in words), DONE], how)), protocol=NAMED)
        assert result.data == [*words, "[DONE]"]
        assert result.stream.machine.stats.duplicates == 0


@given(
    st.lists(st.lists(st.sampled_from(["ha", "ho"]), min_size=1, max_size=6), min_size=1, max_size=12),
    st.one_of(st.none(), st.lists(st.integers(1, 60), min_size=1, max_size=4)),
    st.sampled_from(["msg_{}", "{}", "{}00"]),
    st.sampled_from([None, "auto"]),
)
def test_no_equal_word_is_dropped_where_an_id_names_a_message(
    messages: list[list[str]], chunk: Any, name: str, sequence: Any
) -> None:
    """All events of a message share its id; no message comes back once the next has begun."""
    blocks = transcript(*(ev(word, name.format(n)) for n, words in enumerate(messages, 1) for word in words), DONE)
    body = b"".join(block.raw for block in blocks)
    result = run(Stream(script(Reply(cut_body(body, None, chunk))), protocol=LastEventID(end="[DONE]", sequence=sequence)))
    assert (result.rows, result.error) == (rows_of(blocks), None)
    assert result.stream.machine.stats.duplicates == 0


def test_equal_words_of_a_message_that_began_after_a_reconnect_are_delivered() -> None:
    """The second message was not there before the cut, so its words cannot be repeats of anything."""
    first = ev("a", "m1") + ev("b", "m1")
    result = play(Reply([first, "rst"]), Reply([ev("ha", "m2") * 3 + ev("x", "m2") + DONE]), protocol=LastEventID(end="[DONE]"))
    assert result.data == ["a", "b", "ha", "ha", "ha", "x", "[DONE]"]


def test_messages_that_take_turns_drop_nothing() -> None:
    """Two messages at once: an id comes back with an equal word, but what follows it is not what followed it before."""
    words = [("m1", "ha"), ("m2", "ho"), ("m1", "ha"), ("m2", "hi"), ("m1", "ha"), ("m2", "ho"), ("m1", "he")]
    result = play(Reply([b"".join(ev(word, own_id) for own_id, word in words) + DONE]), protocol=NAMED)
    assert result.data == [*(word for _, word in words), "[DONE]"]


def test_ids_that_keep_coming_back_are_given_up_on() -> None:
    """After some runs that led nowhere nothing is held any more, and the search for their beginnings is over."""
    words = [(f"m{n % 2}", f"{n // 2 % 2}{n % 5}") for n in range(40 * PATIENCE)]
    stream = Stream(script(Reply([*(ev(word, own_id) for own_id, word in words), DONE])), protocol=NAMED)
    assert [event.data for event in stream] == [*(word for _, word in words), "[DONE]"]


# --- what is held ---------------------------------------------------------------------------------------------------


def test_what_is_held_when_the_stream_ends_is_delivered() -> None:
    """The run never reached the newest event, so the word was said twice."""
    held = ev("x", "a") + ev("y", "b") + ev("x", "a")
    assert play(Reply([held + DONE]), protocol=NAMED).data == ["x", "y", "x", "[DONE]"]
    plain = play(Reply([held]), Reply(status=204, type=""), protocol=LastEventID())
    assert (plain.data, plain.outcome) == (["x", "y", "x"], Outcome.ENDED)
    closed = play(Reply([held]), protocol=LastEventID(end="close"))
    assert (closed.data, closed.outcome) == (["x", "y", "x"], Outcome.ENDED)


def test_what_is_held_when_the_provider_reports_an_error_comes_before_it() -> None:
    result = play(Reply([ev("x", "a") + ev("y", "b") + ev("x", "a") + ev("no", event="error")]), protocol=NAMED)
    assert result.data == ["x", "y", "x"]
    assert isinstance(result.error, UpstreamError)


def test_what_is_held_when_the_stream_cannot_go_on_is_delivered() -> None:
    result = play(Reply([ev("x", "a") + ev("y", "b") + ev("x", "a"), "rst"]), protocol=NAMED, method="POST")
    assert result.data == ["x", "y", "x"]
    assert result.error is not None and result.error.checkpoint is not None
    assert result.error.checkpoint.offset == 3


def test_what_is_held_when_the_connection_is_cut_comes_again_or_was_a_repeat() -> None:
    cut = Reply([ev("x", "a") + ev("y", "b") + ev("x", "a"), "rst"])
    assert play(cut, DROPPED, Reply([ev("z", "c") + DONE]), protocol=NAMED).data == ["x", "y", "z", "[DONE]"]


def test_the_place_stays_before_what_is_held() -> None:
    stream = Stream(script(Reply([ev("x", "a"), ev("y", "b"), ev("x", "a"), ev("z", "c"), DONE])), protocol=NAMED)
    seen = []
    for event in stream:
        seen.append((event.data, stream.checkpoint.cursor, stream.checkpoint.offset))
    assert seen[:3] == [("x", None, 0), ("y", "a", 1), ("x", "b", 2)]


def test_no_more_is_held_than_the_longest_run() -> None:
    parts = [ev(f"{n}", f"e{n}") for n in range(10 * LONGEST)]
    shared = ev("twice", "e0")
    stream = Stream(script(Reply([parts[0], shared, *parts[1:], *parts[1:], DONE])), protocol=NAMED)
    most = 0
    count = 0
    for _ in stream:
        count += 1
        most = max(most, len(stream.machine._ledger._examiner.seams.held))
    assert count == len(parts) + 2
    assert most <= LONGEST


# --- trusted ids ----------------------------------------------------------------------------------------------------


def test_a_single_event_that_comes_again_is_dropped_once_ids_are_trusted() -> None:
    parts = [ev("same", f"e{n}") for n in range(TRUSTED)]
    for again in range(TRUSTED):
        result = play(Reply([*parts, parts[again], ev("new", "z"), DONE]), protocol=NAMED)
        assert result.data == ["same"] * TRUSTED + ["new", "[DONE]"], again


def test_an_id_with_other_content_ends_the_trust() -> None:
    parts = [ev("same", f"e{n}") for n in range(TRUSTED)]
    result = play(Reply([*parts, ev("other", "e3"), parts[5], ev("new", "z"), DONE]), protocol=NAMED)
    assert result.data == ["same"] * TRUSTED + ["other", "same", "new", "[DONE]"]


def test_trust_is_kept_in_another_process() -> None:
    parts = [ev("same", f"e{n}") for n in range(TRUSTED)]
    first = Stream(script(Reply(parts)), protocol=NAMED)
    for _ in parts:
        next(first)
    answer = Reply([parts[-1] + ev("new", "y") + ev("new", "y") + ev("newer", "z") + DONE])
    second = run(Stream(script(answer), protocol=NAMED, checkpoint=first.leave()))
    assert second.data == ["new", "newer", "[DONE]"]


def test_the_ids_that_are_kept_are_bounded() -> None:
    window = 64
    stream = Stream(
        script(Reply([*(ev("x", f"e{n}") for n in range(40 * 1024)), DONE])), protocol=NAMED, limits=Limits(window=window)
    )
    most = 0
    for _ in stream:
        seams = stream.machine._ledger._examiner.seams
        most = max(most, len(seams.ids))
    assert most <= window + 2 * TRIM


# --- a seam that is cut, or lies within a replay -------------------------------------------------------------------


@pytest.mark.parametrize("refused", [Reply(status=400), Reply([b"<h1>"], type="text/html"), Reply(status=410)])
@pytest.mark.parametrize("name", ["e{}", "{}", "seq"])
def test_a_run_that_a_cut_leaves_open_is_not_delivered_before_the_error(name: str, refused: Reply) -> None:
    """
    The connection was lost within a run that may be a seam, and then the server refuses to go on.

    What is delivered before an error is an exact prefix. The place is in front of the run, so what was new in it would
    come again from the checkpoint; what was a repeat must not have been delivered.
    """
    numbers = (0, 1, 2, 0, 1)
    if name == "seq":
        body, protocol = b"".join(numbered(number) for number in numbers), NUMBERED
    else:
        body, protocol = b"".join(ev(f"t{number}", name.format(number)) for number in numbers), NAMED
    result = play(Reply([body, "rst"]), refused, protocol=protocol)
    assert len(result.events) == 3
    assert result.error is not None and result.error.checkpoint is not None
    assert result.error.checkpoint.offset == 3


def test_a_run_is_delivered_where_the_server_reports_an_error_on_the_same_connection() -> None:
    """Nothing was cut: what came before a provider's error is delivered before it."""
    body = b"".join(ev(f"t{number}", f"e{number}") for number in (0, 1, 2, 0))
    result = play(Reply([body + ev('{"error": {"message": "overloaded"}}')]), protocol=NAMED)
    assert result.data == ["t0", "t1", "t2", "t0"]
    assert isinstance(result.error, UpstreamError)


@pytest.mark.parametrize(("before", "again"), [(4, 2), (3, 3), (5, 4), (5, 1)])
def test_a_seam_within_a_replay_from_the_start_is_no_divergence(before: int, again: int) -> None:
    """A replay diverges if it contradicts what was delivered. One that says a part of it twice does not."""
    events = [ev(f"t{number}", f"e{number}") for number in range(7)]
    replay = [*events[:before], *events[before - again : before], *events[before:], DONE]
    result = play(Reply([b"".join(events[:5]), "rst"]), Reply([b"".join(replay)]), protocol=NAMED)
    assert (result.data, result.error) == ([*(f"t{number}" for number in range(7)), "[DONE]"], None)


def test_other_content_within_a_replay_from_the_start_is_still_a_divergence() -> None:
    events = [ev(f"t{number}", f"e{number}") for number in range(7)]
    replay = [*events[:3], ev("other", "e1"), *events[3:], DONE]
    result = play(Reply([b"".join(events[:5]), "rst"]), Reply([b"".join(replay)]), protocol=NAMED)
    assert isinstance(result.error, ReplayDiverged)


@pytest.mark.parametrize("delivered", [1, 2, 3, 4])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_an_equal_word_right_after_a_replay_is_delivered_where_an_id_names_a_message(delivered: int, elsewhere: bool) -> None:
    """The server starts over, since the id of a message names no place. Each word comes as often as it was sent."""
    blocks = transcript(*(ev("ha", "msg_1") for _ in range(4)), ev("b", "msg_1"), DONE)
    server = EventServer(blocks, cuts=[(len(blocks[0].raw) * delivered, "rst")], replay="zero")
    if elsewhere:
        first = Stream(EventServer(blocks, replay="zero"), protocol=NAMED)
        for _ in range(delivered):
            next(first)
        rest = run(Stream(server, checkpoint=first.leave(), protocol=NAMED))
        assert rest.rows == rows_of(blocks)[delivered:]
    else:
        assert run(Stream(server, protocol=NAMED)).rows == rows_of(blocks)
