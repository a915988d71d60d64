"""Rule 8: the rest cannot be had by resuming. Raise, restart, or take the stored result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from resumable_stream._checkpoint import Checkpoint
from resumable_stream._contract import Answer, Consume, Request, ResumeProtocol, Snapshot, StreamState, Verdict
from resumable_stream._contract import Lost as LostBecause
from resumable_stream._errors import CursorExpired, GapError, NotResumable, RetriesExhausted, StreamInterrupted, UpstreamError
from resumable_stream._events import Outcome, StreamEvent
from resumable_stream._notices import Lost, Restarted
from resumable_stream.protocols import ByteRange, CursorProtocol, LastEventID

from .simulation import DROPPED, Reply, Sent, Stream, ev, evs, play, policy, run, script, seqs

DONE = ev("[DONE]")
NAMED = LastEventID(end="[DONE]")


def gone(status: int = 410) -> Reply:
    return Reply([b'{"error": "expired"}'], status=status, type="application/json")


# --- raise ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [404, 410])
def test_a_cursor_that_the_server_no_longer_holds_is_expired(status: int) -> None:
    result = play(Reply([evs(1, 3), "rst"]), gone(status))
    assert isinstance(result.error, CursorExpired)
    assert result.data == ["d1", "d2", "d3"]
    assert result.error.checkpoint is not None and result.error.checkpoint.cursor == "3"
    assert str(status) in str(result.error)
    assert result.stream.kinds(Lost)


@pytest.mark.parametrize("status", [405, 501])
def test_a_resume_that_the_server_does_not_offer_is_not_resumable(status: int) -> None:
    result = play(Reply([evs(1, 3), "rst"]), gone(status), method="POST", protocol=LastEventID(resume="/x"))
    assert isinstance(result.error, NotResumable)


@pytest.mark.parametrize("status", [404, 410])
def test_the_same_status_at_the_start_is_a_rejection(status: int) -> None:
    result = play(gone(status))
    assert not isinstance(result.error, CursorExpired)
    assert result.error is not None and result.error.status == status


def test_a_checkpoint_that_nothing_can_continue_says_so_without_a_request() -> None:
    checkpoint = Checkpoint(protocol="LastEventID", method="POST", url="https://api.example.com/stream", cursor="3", offset=3)
    result = play(method="POST", checkpoint=checkpoint)
    assert isinstance(result.error, NotResumable)
    assert result.stream.sent == []


def test_an_expired_checkpoint_of_another_process_is_expired() -> None:
    first = run(Stream(script(Reply([evs(1, 3)]))), at_most=3).stream
    result = play(gone(), checkpoint=first.leave())
    assert isinstance(result.error, CursorExpired)


# --- restart --------------------------------------------------------------------------------------------------------


def test_a_restart_sends_the_first_request_again_and_says_so() -> None:
    result = play(Reply([evs(1, 3), "rst"]), gone(), Reply([ev("n1", "x1") + ev("n2", "x2") + DONE]), on_lost="restart")
    assert result.data == ["d1", "d2", "d3", "n1", "n2", "[DONE]"]
    assert [event.reset for event in result.events] == [False, False, False, True, False, False]
    assert [event.offset for event in result.events] == [0, 1, 2, 0, 1, 2]
    assert result.stream.cursors == [None, "3", None]
    assert result.outcome is Outcome.COMPLETED
    assert result.stream.machine.stats.events == 6
    assert [notice.offset for notice in result.stream.kinds(Restarted)] == [0]


def test_a_restart_repeats_a_post_whole() -> None:
    result = play(
        Reply([evs(1, 2), "rst"]),
        Reply([ev("n", "1") + DONE]),
        method="POST",
        json={"prompt": "p"},
        params={"v": "1"},
        on_lost="restart",
    )
    assert [(sent.method, sent.json, sent.params) for sent in result.stream.sent] == [("POST", {"prompt": "p"}, {"v": "1"})] * 2
    assert result.data == ["d1", "d2", "n", "[DONE]"]
    assert result.events[2].reset


def test_what_the_first_run_delivered_is_no_repeat_in_the_second() -> None:
    result = play(Reply([evs(1, 3), "rst"]), gone(), Reply([evs(1, 3) + DONE]), on_lost="restart")
    assert result.data == ["d1", "d2", "d3"] * 2 + ["[DONE]"]
    assert result.stream.machine.stats.duplicates == 0


def test_a_restarted_stream_resumes_by_its_own_cursors() -> None:
    result = play(
        Reply([evs(1, 3), "rst"]), gone(), Reply([ev("n1", "x1"), "rst"]), Reply([ev("n2", "x2") + DONE]), on_lost="restart"
    )
    assert result.stream.cursors == [None, "3", None, "x1"]
    assert [event.reset for event in result.events] == [False] * 3 + [True, False, False]


def test_a_restart_forgets_where_the_first_run_lived() -> None:
    result = play(
        Reply([evs(1, 1), "rst"], headers={"location": "/runs/1"}),
        gone(),
        Reply([ev("n1", "1"), "rst"], headers={"location": "/runs/2"}),
        Reply([DONE]),
        method="POST",
        on_lost="restart",
    )
    assert [(sent.method, sent.path) for sent in result.stream.sent] == [
        ("POST", "/stream"), ("GET", "/runs/1"), ("POST", "/stream"), ("GET", "/runs/2")
    ]  # fmt: skip


def test_the_reset_is_marked_even_if_the_restart_needs_several_connections() -> None:
    result = play(Reply([evs(1, 1), "rst"]), gone(), DROPPED, Reply([]), Reply([ev("n", "9") + DONE]), on_lost="restart")
    assert result.data == ["d1", "n", "[DONE]"]
    assert result.events[1].reset


def test_a_restart_that_another_process_finishes_is_marked_there() -> None:
    failed = play(Reply([evs(1, 3), "rst"]), gone(), Reply(status=400, type=""), on_lost="restart")
    assert failed.error is not None and failed.error.checkpoint is not None
    place = Checkpoint.from_token(failed.error.checkpoint.token())
    assert (place.offset, place.cursor) == (0, None)
    stream = Stream(script(Reply([evs(1, 5) + DONE])), checkpoint=place)
    events = list(stream)
    assert [(event.data, event.offset, event.reset) for event in events[:2]] == [("d1", 0, True), ("d2", 1, False)]
    assert not any(event.reset for event in events[1:])
    # It is said once.
    assert "reset" not in stream.checkpoint.extra


def test_the_place_after_a_restart_is_in_the_new_run() -> None:
    stream = Stream(script(Reply([evs(1, 3), "rst"]), gone(), Reply([ev("n1", "x1") + ev("n2")])), on_lost="restart")
    for _ in range(5):
        next(stream)
    checkpoint = stream.leave()
    assert (checkpoint.cursor, checkpoint.offset, len(checkpoint.since)) == ("x1", 2, 1)
    assert [pair[0] for pair in checkpoint.recent_ids] == ["x1"]


def test_a_stream_that_dies_again_and_again_is_not_restarted_for_ever() -> None:
    """Each restart may be paid for; progress does not make it free."""
    result = run(Stream(lambda sent: Reply([ev("a"), "rst"]), method="POST", on_lost="restart", delay=policy(4)))
    assert isinstance(result.error, RetriesExhausted)
    assert len(result.stream.sent) <= 5


def test_numbers_start_again_with_a_restart() -> None:
    protocol = CursorProtocol(read="seq", send="query:after", end="[DONE]", sequence="contiguous", first_sequence=1)
    result = play(Reply([seqs(1, 2), "rst"]), gone(), Reply([seqs(1, 2, 3) + DONE]), protocol=protocol, on_lost="restart")
    assert [event.sequence for event in result.events] == [1, 2, 1, 2, 3, None]
    assert result.error is None


def test_bytes_restart_at_zero() -> None:
    def body(text: bytes, etag: str, **headers: str) -> Reply:
        return Reply(
            [text, "rst"] if len(text) < 6 else [text], headers={"etag": etag, "content-length": "6", **headers}, type=""
        )

    result = play(body(b"abc", '"1"'), body(b"ABCDEF", '"2"'), body(b"ABCDEF", '"2"'), protocol=ByteRange(), on_lost="restart")
    assert b"".join(result.data) == b"abcABCDEF"
    assert [(chunk.sequence, chunk.reset) for chunk in result.events] == [(0, False), (0, True)]
    assert result.stream.sent[1].headers["if-range"] == '"1"'
    assert "range" not in result.stream.sent[2].headers


def test_an_error_of_the_provider_is_not_a_loss() -> None:
    result = play(Reply([evs(1, 1) + ev('{"error": {"message": "m"}}')]), on_lost="restart")
    assert isinstance(result.error, UpstreamError)


# --- snapshot -------------------------------------------------------------------------------------------------------


class Stored(CursorProtocol):
    """An endpoint that keeps the finished result at `/result`: `{"events": […], "reset": …, "outcome": …}`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"read": "seq", "send": "query:after", "end": "[DONE]", "name": "Stored", **options})

    def snapshot_request(self, state: StreamState) -> Request | None:
        return Request(method="GET", url="/result", params={"have": str(state.offset)})

    def on_snapshot(self, answer: Answer, state: StreamState) -> Snapshot | None:
        found = json.loads(answer.body)
        if found is None:
            return None
        outcome = Outcome(found["outcome"]) if found.get("outcome") else None
        return Snapshot([StreamEvent(data=json.dumps(event)) for event in found["events"]], found["reset"], outcome)


def result_of(numbers: Sequence[int], *, reset: bool, outcome: str | None) -> Reply:
    events = [{"seq": number, "text": f"t{number}"} for number in numbers]
    body = json.dumps({"events": events, "reset": reset, "outcome": outcome})
    return Reply([body.encode()], type="application/json")


LOST = (Reply([seqs(1, 2), "rst"]), gone())


def test_a_snapshot_brings_the_missing_remainder() -> None:
    result = play(*LOST, result_of([3, 4], reset=False, outcome="completed"), protocol=Stored(), on_lost="snapshot")
    assert [event.sequence for event in result.events] == [1, 2, 3, 4]
    assert [event.offset for event in result.events] == [0, 1, 2, 3]
    assert not any(event.reset for event in result.events)
    assert result.outcome is Outcome.COMPLETED
    assert result.stream.sent[-1].side and result.stream.sent[-1].params == {"have": "2"}
    assert result.stream.machine.stats.events == 4
    assert result.stream.checkpoint.complete and result.stream.checkpoint.offset == 4


def test_a_snapshot_may_replace_everything() -> None:
    result = play(*LOST, result_of([1, 2, 3], reset=True, outcome="incomplete"), protocol=Stored(), on_lost="snapshot")
    assert [(event.sequence, event.offset, event.reset) for event in result.events] == [
        (1, 0, False), (2, 1, False), (1, 0, True), (2, 1, False), (3, 2, False)
    ]  # fmt: skip
    assert result.outcome is Outcome.INCOMPLETE


def test_a_snapshot_of_a_run_that_still_runs_goes_on_by_resuming() -> None:
    result = play(
        *LOST,
        result_of([3, 4], reset=False, outcome=None),
        Reply([seqs(5) + DONE]),
        protocol=Stored(sequence="contiguous"),
        on_lost="snapshot",
    )
    assert [event.sequence for event in result.events] == [1, 2, 3, 4, 5, None]
    assert result.stream.sent[-1].params == {"after": "4"}


@pytest.mark.parametrize("numbers", [[], [1, 2]], ids=["nothing", "what is known"])
def test_a_snapshot_of_a_run_that_still_runs_and_brings_nothing_new_is_a_failed_attempt(numbers: list[int]) -> None:
    def server(sent: Sent) -> Reply:
        if sent.side:
            return result_of(numbers, reset=False, outcome=None)
        return gone() if sent.params else Reply([seqs(1, 2), "rst"])

    protocol = Stored(sequence="contiguous")
    result = run(Stream(server, protocol=protocol, on_lost="snapshot", delay=policy(3)))
    assert isinstance(result.error, RetriesExhausted)
    assert [event.sequence for event in result.events] == [1, 2]
    assert len(result.stream.sent) <= 10
    assert result.stream.sleeps


def test_snapshots_that_replace_everything_again_and_again_end_bounded() -> None:
    def server(sent: Sent) -> Reply:
        if sent.side:
            return result_of([1, 2, 3], reset=True, outcome=None)
        return gone() if sent.params else Reply([seqs(1, 2), "rst"])

    result = run(Stream(server, protocol=Stored(), on_lost="snapshot", delay=policy(3)))
    assert isinstance(result.error, RetriesExhausted)
    assert len(result.stream.sent) <= 12
    assert result.stream.sleeps


def test_an_empty_remainder_is_an_end() -> None:
    result = play(*LOST, result_of([], reset=False, outcome="completed"), protocol=Stored(), on_lost="snapshot")
    assert (len(result.events), result.outcome) == (2, Outcome.COMPLETED)


def test_a_snapshot_with_a_hole_is_no_completed_stream() -> None:
    protocol = Stored(sequence="contiguous")
    result = play(*LOST, result_of([3, 5], reset=False, outcome="completed"), protocol=protocol, on_lost="snapshot")
    assert isinstance(result.error, GapError)
    marked = play(
        *LOST, result_of([3, 5], reset=False, outcome="completed"), protocol=protocol, on_lost="snapshot", on_gap="deliver"
    )
    assert [event.sequence for event in marked.events] == [1, 2, 3, 5]
    assert marked.events[3].gap is not None


def test_a_snapshot_that_repeats_what_was_delivered_is_deduplicated_where_numbers_are_promised() -> None:
    protocol = Stored(sequence="contiguous")
    result = play(*LOST, result_of([1, 2, 3], reset=False, outcome="completed"), protocol=protocol, on_lost="snapshot")
    assert [event.sequence for event in result.events] == [1, 2, 3]


@pytest.mark.parametrize("answer", [gone(404), gone(403), Reply([b"null"], type="application/json")])
def test_a_snapshot_that_cannot_be_had_is_an_expired_cursor(answer: Reply) -> None:
    result = play(*LOST, answer, protocol=Stored(), on_lost="snapshot")
    assert isinstance(result.error, CursorExpired)


def test_a_snapshot_is_asked_for_again_when_the_server_is_busy() -> None:
    result = play(
        *LOST,
        Reply(status=503, type=""),
        DROPPED,
        result_of([3], reset=False, outcome="completed"),
        protocol=Stored(),
        on_lost="snapshot",
    )
    assert len(result.events) == 3
    failing = play(*LOST, *[Reply(status=503, type="")] * 9, protocol=Stored(), on_lost="snapshot", delay=policy(3))
    assert isinstance(failing.error, RetriesExhausted)


def test_a_protocol_without_a_snapshot_raises_as_before() -> None:
    result = play(Reply([evs(1, 2), "rst"]), gone(), on_lost="snapshot")
    assert isinstance(result.error, CursorExpired)
    post = play(Reply([ev("a"), "rst"]), method="POST", on_lost="snapshot")
    assert isinstance(post.error, StreamInterrupted | NotResumable)


def test_the_snapshot_is_a_batch_with_places_in_between() -> None:
    stream = Stream(script(*LOST, result_of([3, 4, 5], reset=False, outcome="completed")), protocol=Stored(), on_lost="snapshot")
    places = []
    for _ in stream:
        places.append((stream.checkpoint.cursor, stream.checkpoint.offset))
    assert places == [(None, 0), ("1", 1), ("2", 2), ("3", 3), ("4", 4)]


# --- the stored result after a clean close --------------------------------------------------------------------------


class Kept(ResumeProtocol):
    """Replays nothing; `/state` has the finished result."""

    def __init__(self, *, stored: bool) -> None:
        self.stored = stored

    def resume_request(self, state: StreamState) -> Request:
        return Request(method="GET", url=state.url, repeat="all")

    def on_clean_close(self, state: StreamState) -> Verdict:
        return LostBecause("it is over", stored=self.stored)

    def snapshot_request(self, state: StreamState) -> Request:
        return Request(method="GET", url="/state")

    def on_snapshot(self, answer: Answer, state: StreamState) -> Snapshot:
        return Snapshot([StreamEvent(data=answer.body.decode())], True, Outcome.FAILED)


@pytest.mark.parametrize(("stored", "options"), [(True, {}), (True, {"on_lost": "restart"}), (False, {"on_lost": "snapshot"})])
def test_the_stored_result_behind_a_clean_close_is_taken_once(stored: bool, options: dict[str, Any]) -> None:
    result = play(Reply([ev("a", "1")]), Reply([b"whole"]), protocol=Kept(stored=stored), method="POST", **options)
    assert result.data == ["a", "whole"]
    assert result.events[-1].reset
    assert result.outcome is Outcome.FAILED


def test_without_either_it_is_lost() -> None:
    result = play(Reply([ev("a", "1")]), protocol=Kept(stored=False))
    assert isinstance(result.error, CursorExpired)
    assert len(result.stream.sent) == 1


# --- a resume that is a reset ---------------------------------------------------------------------------------------


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
    assert [notice.offset for notice in result.stream.kinds(Restarted)] == [0, 0]
    assert result.stream.machine.stats.duplicates == 0


def test_a_state_that_is_cut_before_it_arrived_voids_nothing_silently() -> None:
    """The resume that brought nothing was void itself; the next one must still be a resume, and its state a reset."""
    result = play(Reply([evs(1, 2), "rst"]), Reply(["rst"]), Reply([ev("state", "3") + DONE]), protocol=Snapshots(end="[DONE]"))
    assert result.data == ["d1", "d2", "state", "[DONE]"]
    assert [event.reset for event in result.events] == [False, False, True, False]
    assert result.stream.cursors[1:] in (["2", "2"], ["2", None])


class Names(ResumeProtocol):
    """Remembers two names, of which one outlives a reset."""

    keeps = ("kept",)

    def identify(self, state: StreamState, source: Any) -> None:
        state.extra.setdefault("kept", state.method)
        state.extra.setdefault("forgotten", str(state.resuming))

    def resume_request(self, state: StreamState) -> Request:
        return Request(method="GET", url=state.url)

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        return Consume(reset=state.resuming)

    def end(self, event: Any) -> Outcome | None:
        return Outcome.COMPLETED if event.data == "end" else None


def test_a_reset_forgets_all_but_what_the_protocol_keeps() -> None:
    result = play(Reply([ev("a", "1"), "rst"]), Reply([ev("b", "2") + ev("end")]), protocol=Names())
    assert result.data == ["a", "b", "end"]
    assert result.events[1].reset
    assert result.stream.machine.state.extra["kept"] == "GET"
    assert result.stream.machine.state.extra["forgotten"] == "True"


# --- the question whether there is more -----------------------------------------------------------------------------


def test_a_finished_stream_that_the_server_forgot_is_not_paid_again_and_again() -> None:
    """Everything was delivered and closed cleanly; the question finds that the server keeps nothing. That is one loss at most."""
    body = [ev("a", "i1") + ev("b", "i2")]

    def server(sent: Any) -> Reply:
        return Reply(body) if sent.cursor is None else Reply(status=404, type="")

    result = run(Stream(server, on_lost="restart"))
    assert len([sent for sent in result.stream.sent if sent.cursor is None]) <= 2
