"""Rule 7: what ends a stream, and what only looks like it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from resumable_stream._contract import (
    Answer,
    Consume,
    Finished,
    Interrupted,
    Over,
    Request,
    Resume,
    ResumeProtocol,
    Retry,
    Settled,
    StreamState,
    Verdict,
    Verify,
)
from resumable_stream._errors import (
    CursorExpired,
    DeadlineExceeded,
    EventTooLarge,
    RetriesExhausted,
    StreamInterrupted,
    UpstreamError,
)
from resumable_stream._events import Outcome
from resumable_stream._notices import CursorIgnored
from resumable_stream._settings import Limits, Timeouts
from resumable_stream.protocols import NDJSON, ByteRange, CursorProtocol, LastEventID, ReplayFromZero

from .simulation import (
    DROPPED,
    EventServer,
    Reply,
    Sent,
    Stream,
    Wait,
    ev,
    evs,
    play,
    policy,
    rows_of,
    run,
    script,
    seqs,
    transcript,
)

DONE = ev("[DONE]")
CLOSED = LastEventID(end="close")
FEED = LastEventID(end="never")
NO_CONTENT = Reply(status=204, type="")


def ended(result: Any, *data: str) -> None:
    assert (result.data, result.outcome, result.error) == (list(data), Outcome.ENDED, None)


# --- a: markers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", ["rst", "fin", "close", "silence"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_marker_ends_the_stream_even_if_the_socket_then_fails(after: str, method: str) -> None:
    result = play(Reply([evs(1, 2), DONE, after]), method=method)
    assert (result.data, result.outcome) == (["d1", "d2", "[DONE]"], Outcome.COMPLETED)
    assert len(result.stream.sent) == 1


def test_what_follows_a_marker_is_not_read() -> None:
    assert play(Reply([evs(1, 1) + DONE + evs(2, 2)])).data == ["d1", "[DONE]"]


@pytest.mark.parametrize("data", [" [DONE]", "[DONE] ", "[done]", "[DONE]\nx", '"[DONE]"'])
def test_only_the_marker_itself_is_one(data: str) -> None:
    assert play(Reply([evs(1, 1) + ev(data)]), Reply()).outcome is Outcome.ENDED


def test_a_marker_may_be_named() -> None:
    result = play(Reply([evs(1, 1) + DONE + ev("fin\nis") + evs(2, 2)]), protocol=LastEventID(end="fin\nis"))
    assert (result.data, result.outcome) == (["d1", "[DONE]", "fin\nis"], Outcome.COMPLETED)


@pytest.mark.parametrize("outcome", [Outcome.COMPLETED, Outcome.FAILED, Outcome.INCOMPLETE, Outcome.CANCELLED])
def test_a_terminal_event_tells_how_it_ended(outcome: Outcome) -> None:
    protocol = LastEventID(end=lambda event: Outcome(event.event) if event.event != "message" else False)
    result = play(Reply([evs(1, 1) + ev("{}", event=outcome.value), "rst"]), protocol=protocol)
    assert (result.data, result.outcome) == (["d1", "{}"], outcome)


def test_an_error_event_that_the_end_knows_is_delivered_not_raised() -> None:
    protocol = LastEventID(end=lambda event: Outcome.FAILED if event.event == "error" else None)
    result = play(Reply([evs(1, 1) + ev('{"error": "x"}', event="error")]), protocol=protocol)
    assert (len(result.events), result.outcome) == (2, Outcome.FAILED)


# --- a: settled, read on --------------------------------------------------------------------------------------------


def finish(event: Any) -> Any:
    if event.data == "[DONE]":
        return Outcome.COMPLETED
    return Settled(Outcome.INCOMPLETE if "length" in event.data else Outcome.COMPLETED) if "finish" in event.data else None


@pytest.mark.parametrize("after", ["rst", "fin", "close", "silence"])
@pytest.mark.parametrize("half", [b"", b"data: ha"])
def test_any_close_after_a_settled_outcome_is_the_end(after: str, half: bytes) -> None:
    for method in ("GET", "POST"):
        result = play(
            Reply([evs(1, 1), ev("finish: length"), ev("usage"), half, after]), method=method, protocol=LastEventID(end=finish)
        )
        assert (result.data, result.outcome) == (["d1", "finish: length", "usage"], Outcome.INCOMPLETE)
        assert len(result.stream.sent) == 1


def test_a_settled_outcome_is_read_on_to_the_marker() -> None:
    result = play(Reply([evs(1, 1) + ev("finish") + ev("usage") + DONE + ev("x")]), protocol=LastEventID(end=finish))
    assert (result.data, result.outcome) == (["d1", "finish", "usage", "[DONE]"], Outcome.COMPLETED)


def test_an_error_behind_a_settled_outcome_is_told() -> None:
    result = play(Reply([ev("finish") + ev('{"error": {"message": "m"}}')]), protocol=LastEventID(end=finish))
    assert isinstance(result.error, UpstreamError)


# --- a: error frames ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "type", "text"),
    [
        (ev('{"error": {"type": "overloaded_error", "message": "Busy"}}'), "overloaded_error", "Busy"),
        (ev('{ "error": {"code": "rate", "message": "Slow"}}'), "rate", "Slow"),
        (ev('{"error": "boom"}'), "", "boom"),
        (ev('{"type": "server", "message": "m"}', event="error"), "server", "m"),
        (ev("plain words", event="error"), "", "plain words"),
        (ev("", event="error"), "", ""),
        (ev('{"error": {"message": "Überlast ☃"}}'), "", "Überlast ☃"),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_an_error_frame_raises_after_what_came_before_it(frame: bytes, type: str, text: str, together: bool) -> None:
    result = play(Reply([evs(1, 2) + frame + evs(3, 3)] if together else [evs(1, 2), frame, evs(3, 3)]))
    assert result.data == ["d1", "d2"]
    assert isinstance(result.error, UpstreamError)
    assert result.error.type == type
    assert text in str(result.error)
    assert result.error.checkpoint is not None and result.error.checkpoint.cursor == "2"
    assert len(result.stream.sent) == 1


@pytest.mark.parametrize(
    "data", ['{"error": null}', '{"error": ""}', '{"error": false, "x": 1}', '{"x": {"error": 1}}', "error", '{"error']
)
def test_what_only_mentions_an_error_is_delivered(data: str) -> None:
    result = play(Reply([ev(data, "1") + DONE]))
    assert result.data == [data, "[DONE]"]


def test_an_error_frame_ends_other_protocols_too() -> None:
    frame = ev('{"error": {"message": "m"}}')
    for protocol in (CursorProtocol(read="seq", send="query:a", end="[DONE]"), ReplayFromZero(end="[DONE]")):
        result = play(Reply([seqs(1) + frame]), protocol=protocol)
        assert isinstance(result.error, UpstreamError)
        assert len(result.events) == 1
    result = play(Reply([b'{"a": 1}\n{"error": "m"}\n'], type="application/x-ndjson"), protocol=NDJSON())
    assert isinstance(result.error, UpstreamError)
    assert result.data == ['{"a": 1}']


# --- b: a clean close where the protocol knows better ---------------------------------------------------------------


@pytest.mark.parametrize(
    "protocol",
    [
        LastEventID(end="[DONE]"),
        LastEventID(end=lambda event: event.data == "[DONE]"),
        CursorProtocol(read="id", send="header:Last-Event-ID", end="[DONE]"),
    ],
    ids=["text", "callable", "cursor"],
)
def test_a_clean_close_before_the_marker_is_a_cut(protocol: Any) -> None:
    result = play(Reply([evs(1, 2)]), Reply([evs(3, 3)]), Reply([]), Reply([evs(4, 4), DONE]), protocol=protocol)
    assert (result.data, result.outcome) == (["d1", "d2", "d3", "d4", "[DONE]"], Outcome.COMPLETED)


@pytest.mark.parametrize("first", [evs(1, 2), b"", ev(None, "1"), b": ping\n\n"])
def test_without_the_marker_it_never_ended(first: bytes) -> None:
    result = run(
        Stream(lambda sent: Reply([first] if sent.cursor is None else []), protocol=LastEventID(end="[DONE]"), delay=policy(3))
    )
    assert result.outcome is None
    assert isinstance(result.error, RetriesExhausted)


def test_nothing_more_before_the_marker_is_no_end() -> None:
    result = play(Reply([evs(1, 2), "rst"]), NO_CONTENT, protocol=LastEventID(end="[DONE]"))
    assert result.error is not None and result.outcome is None


def test_a_post_with_a_marker_that_closes_early_is_interrupted() -> None:
    result = play(Reply([evs(1, 2)]), method="POST", protocol=LastEventID(end="[DONE]"))
    assert isinstance(result.error, StreamInterrupted)
    assert result.data == ["d1", "d2"]


class Verified(LastEventID):
    """After a clean close, the run is asked after."""

    def __init__(self, *answers: Verdict) -> None:
        super().__init__(end="[DONE]")
        self.answers = list(answers)

    def on_clean_close(self, state: StreamState) -> Verdict:
        return Verify(Request(method="GET", url="/runs/1"))

    def on_verified(self, answer: Answer, state: StreamState) -> Verdict:
        assert answer.body == b"{}"
        return self.answers.pop(0)


STATUS = Reply([b"{}"], type="application/json")


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_status_check_vouches_for_the_end(outcome: Outcome) -> None:
    result = play(Reply([evs(1, 2)]), STATUS, protocol=Verified(Finished(outcome)))
    assert (result.data, result.outcome) == (["d1", "d2"], outcome)
    assert [sent.side for sent in result.stream.sent] == [False, True]


def test_a_status_check_may_say_that_it_goes_on() -> None:
    result = play(Reply([evs(1, 2)]), STATUS, Reply([evs(3, 3), DONE]), protocol=Verified(Resume()))
    assert (result.data, result.outcome) == (["d1", "d2", "d3", "[DONE]"], Outcome.COMPLETED)


def test_a_status_check_may_say_that_it_is_lost() -> None:
    result = play(Reply([evs(1, 2)]), STATUS, protocol=Verified(Interrupted("the run was deleted")))
    assert isinstance(result.error, StreamInterrupted)
    assert result.error.reason == "the run was deleted"


def test_a_status_check_is_repeated_like_any_safe_request() -> None:
    result = play(
        Reply([evs(1, 2)]),
        Reply(status=503, type=""),
        DROPPED,
        STATUS,
        STATUS,
        protocol=Verified(Retry(), Finished(Outcome.FAILED)),
    )
    assert result.outcome is Outcome.FAILED
    failing = play(Reply([evs(1, 2)]), *[Reply(status=503, type="")] * 5, protocol=Verified(), delay=policy(3))
    assert isinstance(failing.error, RetriesExhausted)


REST = Reply([])


@pytest.mark.parametrize("asks", [0, 1, 2, 3])
def test_a_run_that_is_over_is_believed_after_the_rest_was_asked_for(asks: int) -> None:
    over = Over(Outcome.FAILED, asks=asks)
    result = play(Reply([evs(1, 2)]), STATUS, *[REST, STATUS] * asks, protocol=Verified(*[over] * (asks + 1)))
    assert (result.data, result.outcome) == (["d1", "d2"], Outcome.FAILED)
    assert [sent.cursor for sent in result.stream.sent if not sent.side] == [None, *["2"] * asks]


def test_a_run_that_is_over_still_brings_its_last_event() -> None:
    result = play(Reply([evs(1, 2)]), STATUS, Reply([evs(3, 3), DONE]), protocol=Verified(Over(Outcome.FAILED)))
    assert (result.data, result.outcome) == (["d1", "d2", "d3", "[DONE]"], Outcome.COMPLETED)


@pytest.mark.parametrize("asks", [1, 3])
def test_a_run_without_the_last_event_that_it_has_to_have_is_lost(asks: int) -> None:
    over = Over(Outcome.COMPLETED, asks=asks, lost="the last event does not come")
    result = play(Reply([evs(1, 2)]), STATUS, *[REST, STATUS] * asks, protocol=Verified(*[over] * (asks + 1)))
    assert isinstance(result.error, CursorExpired) and "the last event does not come" in str(result.error)
    assert result.data == ["d1", "d2"]


@pytest.mark.parametrize(
    "between",
    [
        pytest.param([Reply([evs(3, 3)]), STATUS], id="something new"),
        pytest.param([REST, STATUS, REST, STATUS], id="it runs"),
        pytest.param([REST, STATUS, REST, STATUS], id="another outcome"),
    ],
)
def test_it_is_counted_anew_after(between: list[Reply], request: pytest.FixtureRequest) -> None:
    """Each time the rest has to be asked for twice in vain, after the same was said at the same place."""
    over, kind = Over(Outcome.FAILED, asks=2), request.node.callspec.id
    said: dict[str, list[Verdict]] = {"something new": [], "it runs": [over, Resume()]}
    said["another outcome"] = [over, Over(Outcome.CANCELLED, asks=2)]
    answers = [over, *said[kind], over, over, over]
    tail = [REST, STATUS, REST, STATUS] if kind == "something new" else [REST, STATUS, REST, STATUS, REST, STATUS]
    result = play(Reply([evs(1, 2)]), STATUS, *between, *tail, protocol=Verified(*answers), delay=policy(20))
    assert result.outcome is Outcome.FAILED and result.error is None
    assert result.stream.machine.protocol.answers == []


def test_another_process_counts_anew_and_no_checkpoint_says_what_was_said() -> None:
    over = Over(Outcome.FAILED)
    first = Stream(script(Reply([evs(1, 2)]), STATUS, Reply([evs(3, 4)])), protocol=Verified(over))
    events = [next(first) for _ in range(3)]
    assert first.state.over == (Outcome.FAILED, 2, 0)
    place = first.leave()
    assert len(events) == 3 and "failed" not in place.to_json()
    second = run(Stream(script(REST, STATUS, REST, STATUS), protocol=Verified(over, over), checkpoint=place))
    assert (second.data, second.outcome) == ([], Outcome.FAILED)


def test_a_generation_that_is_made_anew_has_not_been_said_to_be_over() -> None:
    lost = Over(Outcome.FAILED, asks=1, lost="gone")
    script_ = [Reply([evs(1, 2)]), STATUS, REST, STATUS, Reply([evs(1, 2)]), STATUS, REST, STATUS]
    protocol = Verified(lost, lost, Over(Outcome.FAILED), Over(Outcome.FAILED))
    result = play(*script_, protocol=protocol, on_lost="restart")
    assert result.outcome is Outcome.FAILED and protocol.answers == []


@pytest.mark.parametrize(("asks", "expected"), [(1, Outcome.FAILED), (2, None)])
def test_before_a_stream_is_given_up_its_run_is_asked_about_twice(asks: int, expected: Outcome | None) -> None:
    """Its stream cannot be read any more. A run that needs more than two answers to be believed is given up."""

    class Asked(Verified):
        def status_request(self, state: StreamState) -> Request | None:
            return Request(method="GET", url="/runs/1")

    def server(sent: Sent) -> Reply:
        if sent.side:
            return STATUS
        return Reply([evs(1, 2), "rst"]) if sent.cursor is None else Reply(status=503, type="")

    result = run(Stream(server, protocol=Asked(*[Over(Outcome.FAILED, asks=asks)] * 2), delay=policy(3)))
    assert result.outcome is expected
    if expected is None:
        assert isinstance(result.error, RetriesExhausted)
        assert result.stream.state.over is None


def test_a_run_that_always_runs_and_never_says_anything_ends_bounded() -> None:
    result = run(
        Stream(
            lambda sent: STATUS if sent.side else Reply([evs(1, 1)] if sent.cursor is None else []),
            protocol=Verified(*[Resume()] * 99),
            delay=policy(4),
        )
    )
    assert isinstance(result.error, RetriesExhausted)


# --- c: a clean close of a plain GET --------------------------------------------------------------------------------


def test_a_clean_close_is_asked_about_once_from_the_cursor() -> None:
    result = play(Reply([evs(1, 2)]), Reply([]))
    ended(result, "d1", "d2")
    assert result.stream.cursors == [None, "2"]
    assert result.stream.sleeps == []


def test_no_content_is_an_answer() -> None:
    ended(play(Reply([evs(1, 2)]), NO_CONTENT), "d1", "d2")


@pytest.mark.parametrize("body", [[], [b": nothing\n\n"], [evs(2, 2)], [Wait(4.9)], [b"retry: 1\n\n", Wait(4)], [ev(None, "3")]])
def test_a_quick_answer_with_nothing_new_means_no_more(body: list[Any]) -> None:
    ended(play(Reply([evs(1, 2)]), Reply(body)), "d1", "d2")


def test_the_five_seconds_begin_at_the_head() -> None:
    ended(play(Reply([evs(1, 2)]), Reply([Wait(3)], after=30)), "d1", "d2")


def test_an_answer_held_open_with_nothing_new_is_a_feed_that_rotates() -> None:
    result = play(Reply([evs(1, 2)]), Reply([Wait(30)]), Reply([Wait(30)]), Reply([Wait(20), evs(3, 3), Wait(10)]), Reply([]))
    ended(result, "d1", "d2", "d3")
    assert all(wait <= 0.25 for wait in result.stream.sleeps)


def test_a_feed_may_rotate_more_often_than_there_are_attempts() -> None:
    result = play(Reply([evs(1, 2)]), *[Reply([Wait(30)])] * 30, Reply([evs(3, 3), DONE]), delay=policy(attempts=3))
    assert result.outcome is Outcome.COMPLETED


def test_a_feed_that_rotates_in_its_first_quiet_minute_is_asked_again() -> None:
    """Nothing was delivered: a first answer that closed before its first event is a cut, and repeating a GET repeats nothing."""
    result = play(Reply([Wait(60)]), Reply([evs(1, 1), DONE]))
    assert (result.data, result.outcome) == (["d1", "[DONE]"], Outcome.COMPLETED)


def test_a_close_inside_an_event_is_a_cut() -> None:
    result = play(Reply([evs(1, 2) + b"data: ha"]), Reply([b"data"]), Reply([evs(3, 3) + b"id: 4\n"]), Reply([evs(4, 4), DONE]))
    assert (result.data, result.outcome) == (["d1", "d2", "d3", "d4", "[DONE]"], Outcome.COMPLETED)


@pytest.mark.parametrize("tail", [b": half a comment", b"\r", b"\n"])
def test_a_comment_that_was_cut_is_no_event(tail: bytes) -> None:
    ended(play(Reply([evs(1, 2) + tail]), Reply([])), "d1", "d2")


def test_a_first_answer_without_an_event_is_a_cut() -> None:
    result = play(Reply([]), Reply([evs(1, 1), DONE]))
    assert result.outcome is Outcome.COMPLETED
    ended(play(Reply([]), Reply([])))
    ended(play(Reply([b": hello\n\n"]), Reply([b": hello\n\n"])))


def test_an_answer_that_is_cut_while_we_ask_is_asked_again() -> None:
    result = play(Reply([evs(1, 2)]), DROPPED, Reply([evs(3, 3), "rst"]), Reply([evs(4, 4), DONE]))
    assert result.data == ["d1", "d2", "d3", "d4", "[DONE]"]


@pytest.mark.parametrize("delivered", [1, 2, 9])
def test_a_server_that_ignores_the_cursor_has_ended(delivered: int) -> None:
    """After a clean close: nothing of the answer is delivered."""
    body = b"".join(ev(f"x{n}", f"i{n}") for n in range(delivered))
    result = play(Reply([body]), Reply([body]))
    ended(result, *(f"x{n}" for n in range(delivered)))
    assert result.stream.machine.stats.cursor_ignored
    assert result.stream.kinds(CursorIgnored)


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_a_server_that_starts_another_generation_has_ended(chunk: int) -> None:
    """The same first event, then something else: the GET was repeated, and its answer is not ours."""
    first = ev("hello", "1") + ev("one", "2") + ev("two", "3")
    other = ev("hello", "1") + ev("uno", "2") + ev("dos", "3") + ev("tres", "4")
    result = play(Reply([first]), Reply([other[at : at + chunk] for at in range(0, len(other), chunk)]))
    ended(result, "hello", "one", "two")
    assert result.stream.machine.stats.cursor_ignored


def test_a_beginning_without_an_id_is_known_by_what_follows() -> None:
    first = ev("hi") + ev("a", "1") + ev("b", "2")
    ended(play(Reply([first]), Reply([first])), "hi", "a", "b")
    # "hi" alone is not the beginning: it may be how each answer starts.
    result = play(Reply([first]), Reply([ev("hi") + ev("c", "3") + DONE]))
    assert result.data == ["hi", "a", "b", "hi", "c", "[DONE]"]


def test_a_server_that_ignores_the_cursor_is_known_in_another_process_too() -> None:
    body = evs(1, 6)
    first = run(Stream(script(Reply([body]))), at_most=6).stream
    second = run(Stream(script(Reply([body]), Reply([body])), checkpoint=first.leave(), connections=5))
    assert second.data == []


def test_quick_answers_are_believed_three_times() -> None:
    body = [ev(f"x{n}", f"i{n}") for n in range(9)]
    result = play(Reply([body[0]]), *(Reply([body[n]]) for n in range(1, 6)))
    assert isinstance(result.error, StreamInterrupted)
    assert result.data == ["x0", "x1", "x2", "x3", "x4"]
    assert "end" in str(result.error) and "never" in str(result.error)
    assert result.error.checkpoint is not None and result.error.checkpoint.cursor == "i4"
    ended(play(Reply([body[0]]), *(Reply([body[n]]) for n in range(1, 4)), Reply([])), "x0", "x1", "x2", "x3")


def test_three_in_a_row_means_in_a_row() -> None:
    body = [ev(f"x{n}", f"i{n}") for n in range(20)]
    quick = [Reply([body[n]]) for n in range(1, 4)]
    slow = Reply([Wait(6), body[4]])
    more = [Reply([body[n]]) for n in range(5, 8)]
    ended(play(Reply([body[0]]), *quick, slow, *more, Reply([])), *(f"x{n}" for n in range(8)))


def test_a_cut_between_quick_answers_is_not_one_of_them() -> None:
    body = [ev(f"x{n}", f"i{n}") for n in range(20)]
    steps = [Reply([body[n], "rst"]) for n in range(1, 10)]
    ended(play(Reply([body[0]]), *steps, Reply([]), Reply([])), *(f"x{n}" for n in range(10)))


def test_contiguous_numbers_prove_that_quick_answers_belong_together() -> None:
    ended(
        run(
            Stream(
                lambda sent: Reply([evs(n, n)] if (n := int(sent.cursor or 0) + 1) < 30 else []),
                protocol=LastEventID(sequence="contiguous"),
            )
        ),
        *(f"d{n}" for n in range(1, 30)),
    )
    ended(
        run(
            Stream(
                lambda sent: Reply(
                    [evs(1, 9)] if sent.cursor is None else [evs(n, n)] if (n := int(sent.cursor) + 1) < 30 else []
                )
            )
        ),
        *(f"d{n}" for n in range(1, 30)),
    )


def test_a_server_that_makes_up_new_ids_ends_bounded() -> None:
    """It ignores the cursor and names its events anew: that cannot be told from a stream, so it is not believed for ever."""
    calls = 0

    def server(sent: Sent) -> Reply:
        nonlocal calls
        calls += 1
        return Reply([b"".join(ev(f"w{n}", f"run{calls}-{n}") for n in range(3))])

    result = run(Stream(server, connections=20))
    assert isinstance(result.error, StreamInterrupted)
    assert len(result.stream.sent) == 5


# --- d: declared ends -----------------------------------------------------------------------------------------------


def test_a_clean_close_that_is_declared_the_end_is_not_asked_about() -> None:
    result = play(Reply([evs(1, 2)]), protocol=CLOSED)
    ended(result, "d1", "d2")
    ended(play(Reply([]), protocol=CLOSED))
    ended(play(Reply([evs(1, 2)]), protocol=CLOSED, method="POST"), "d1", "d2")
    ended(play(Reply([seqs(1)]), protocol=CursorProtocol(read="seq", send="query:a", end="close")), '{"seq": 1, "text": "t1"}')


def test_a_marker_still_counts_there() -> None:
    assert play(Reply([evs(1, 2) + DONE]), protocol=CLOSED).outcome is Outcome.COMPLETED


@pytest.mark.parametrize(
    "protocol", [CLOSED, CursorProtocol(read="id", send="header:Last-Event-ID", end="close")], ids=["sse", "cursor"]
)
@pytest.mark.parametrize(
    "body", [["rst"], [b": x\n\n", "rst"], [b"data: ha"], ["silence"], [evs(1, 2), "rst"], [evs(1, 2) + b"data: ha"]]
)
def test_a_get_that_starts_a_generation_is_never_repeated_after_it_answered(protocol: Any, body: list[Any]) -> None:
    """G3: `end="close"` declares it."""
    result = play(Reply(body), protocol=protocol)
    assert isinstance(result.error, StreamInterrupted)
    assert len(result.stream.sent) == 1


def test_a_feed_does_not_end_by_closing() -> None:
    steps = [Reply([evs(n, n)]) for n in range(2, 20)]
    result = play(Reply([evs(1, 1)]), *steps, NO_CONTENT, protocol=FEED)
    ended(result, *(f"d{n}" for n in range(1, 20)))


def test_a_feed_that_rotates_in_quiet_is_no_failure() -> None:
    result = play(Reply([evs(1, 1)]), *[Reply([Wait(30)])] * 50, NO_CONTENT, protocol=FEED, delay=policy(attempts=2))
    ended(result, "d1")


def test_a_feed_that_closes_at_once_every_time_is_a_failing_server() -> None:
    result = run(Stream(lambda sent: Reply([]), protocol=FEED, delay=policy(attempts=3)))
    assert isinstance(result.error, RetriesExhausted)


def test_done_is_just_text_in_a_feed() -> None:
    result = play(Reply([evs(1, 1) + DONE + ev("more", "2")]), NO_CONTENT, protocol=FEED)
    ended(result, "d1", "[DONE]", "more")


def test_a_deadline_ends_a_feed() -> None:
    result = run(Stream(lambda sent: Reply([Wait(50), ev("x", "1")]), protocol=FEED, timeouts=Timeouts(deadline=500)))
    assert isinstance(result.error, DeadlineExceeded)


# --- e: no cursor ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_a_cursor_a_clean_close_is_all_there_is(method: str) -> None:
    result = play(Reply([ev("a") + ev("b")]), method=method)
    ended(result, "a", "b")
    assert len(result.stream.sent) == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("steps", "reason"), [(["rst"], "connection lost"), ([b"data: h"], "closed inside an event"), (["silence"], "idle")]
)
def test_without_a_cursor_anything_else_is_interrupted(method: str, steps: list[Any], reason: str) -> None:
    result = play(Reply([ev("a") + ev("b"), *steps]), method=method)
    assert isinstance(result.error, StreamInterrupted)
    assert result.error.reason == reason
    assert result.data == ["a", "b"]
    assert len(result.stream.sent) == 1
    assert result.error.checkpoint is not None and result.error.checkpoint.offset == 2


def test_a_get_that_delivered_nothing_is_asked_again() -> None:
    result = play(Reply(["rst"]), DROPPED, Reply([b": x\n\n", "fin"]), Reply(["silence"]), Reply([ev("a")]))
    ended(result, "a")


def test_a_post_that_delivered_nothing_is_not() -> None:
    for steps in (["rst"], [], [b": x\n\n"], ["silence"]):
        result = play(Reply(steps), method="POST")
        assert isinstance(result.error, StreamInterrupted), steps


def test_ids_that_begin_later_make_the_stream_resumable() -> None:
    result = play(Reply([ev("a") + ev("b") + ev("c", "3"), "rst"]), Reply([ev("d", "4") + DONE]))
    assert result.data == ["a", "b", "c", "d", "[DONE]"]


# --- other protocols ------------------------------------------------------------------------------------------------


def test_json_lines_end_by_closing_or_by_their_marker() -> None:
    lines = b'{"a": 1}\n{"a": 2, "done": true}\n'
    kind = "application/x-ndjson"
    ended(play(Reply([lines], type=kind), protocol=NDJSON(), method="POST"), '{"a": 1}', '{"a": 2, "done": true}')
    done = NDJSON(end=lambda event: event.json().get("done"))
    assert play(Reply([lines, "rst"], type=kind), protocol=done).outcome is Outcome.COMPLETED
    # A last line without LF is whole if it is JSON.
    assert play(Reply([lines[:-1]], type=kind), protocol=done).outcome is Outcome.COMPLETED
    for body in (lines[:9], lines[:-5], b""):
        cut = play(Reply([body], type=kind), protocol=done, method="POST")
        assert isinstance(cut.error, StreamInterrupted), body
    half = play(Reply([lines[:-5]], type=kind), protocol=NDJSON(), method="POST")
    assert isinstance(half.error, StreamInterrupted)
    assert half.data == ['{"a": 1}']


def test_a_replay_from_zero_that_closes_is_the_end_only_where_that_was_declared() -> None:
    ended(play(Reply([evs(1, 3)]), protocol=ReplayFromZero()), "d1", "d2", "d3")
    blocks = transcript(ev("a"), ev("b"), DONE)
    result = run(Stream(EventServer(blocks, cuts=[(9, "close")], replay="zero"), protocol=ReplayFromZero(end="[DONE]")))
    assert (result.rows, result.outcome) == (rows_of(blocks), Outcome.COMPLETED)


def test_a_replay_from_zero_that_closes_before_our_place_is_no_end() -> None:
    """A replay shorter than what was delivered is a cut replay, whatever the close looks like."""
    steps = [Reply([evs(1, 5), "rst"]), Reply([evs(1, 3)]), Reply([evs(1, 7)])]
    ended(play(*steps, protocol=ReplayFromZero()), *(f"d{n}" for n in range(1, 8)))


def test_bytes_end_when_all_of_them_are_here() -> None:
    def answer(*steps: Any, status: int = 200, **headers: str) -> Reply:
        return Reply(steps, status=status, headers={name.replace("_", "-"): value for name, value in headers.items()}, type="")

    assert play(answer(b"abc", content_length="3"), protocol=ByteRange()).outcome is Outcome.COMPLETED
    ended(play(answer(b"abc"), protocol=ByteRange()), b"abc")  # type: ignore[arg-type]
    result = play(answer(b"abc", accept_ranges="bytes"), answer(status=416, content_range="bytes */3"), protocol=ByteRange())
    assert (result.data, result.outcome) == ([b"abc"], Outcome.COMPLETED)
    assert result.stream.sent[1].headers["range"] == "bytes=3-"
    short = play(answer(b"abc", content_length="5"), answer(b"de", status=206, content_range="bytes 3-4/5"), protocol=ByteRange())
    assert (short.data, short.outcome) == ([b"abc", b"de"], Outcome.COMPLETED)
    lost = play(answer(b"abc", "rst"), method="POST", protocol=ByteRange())
    assert isinstance(lost.error, StreamInterrupted)


# --- what a head says of the end ------------------------------------------------------------------------------------


class Gone(LastEventID):
    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        return Finished(Outcome.CANCELLED) if status == 409 and b"cancelled" in body else None


def test_a_status_may_tell_the_outcome() -> None:
    result = play(
        Reply([evs(1, 2), "rst"]), Reply([b'{"state": "cancelled"}'], status=409, type="application/json"), protocol=Gone()
    )
    assert (result.data, result.outcome) == (["d1", "d2"], Outcome.CANCELLED)


class OneAnswer(ResumeProtocol):
    """A stream, or one JSON document in its place."""

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        return Consume(whole=True) if headers.get("content-type") == "application/json" else None

    def end(self, event: Any) -> Outcome | None:
        return Outcome.COMPLETED if event.data == '{"id": 1}' else None


@pytest.mark.parametrize("chunk", [1, 4, 9])
def test_a_document_in_place_of_a_stream_is_one_event(chunk: int) -> None:
    body = b'{"id": 1}'
    steps = [body[start : start + chunk] for start in range(0, len(body), chunk)]
    result = play(Reply(steps, type="application/json"), protocol=OneAnswer(), method="POST")
    assert result.data == ['{"id": 1}']
    assert result.outcome is Outcome.COMPLETED


def test_a_document_that_breaks_off_is_no_event() -> None:
    result = play(Reply([b'{"id"', "rst"], type="application/json"), protocol=OneAnswer(), method="POST")
    assert result.data == []
    assert result.error is not None


def test_a_document_is_bounded() -> None:
    result = play(Reply([b"x" * 2_000], type="application/json"), protocol=OneAnswer(), limits=Limits(event_bytes=1_000))
    assert isinstance(result.error, EventTooLarge)
    assert result.data == []
