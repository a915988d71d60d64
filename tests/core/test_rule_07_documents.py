"""A stream that is read answer by answer: each is one document, and says where the next one begins."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

from resumable_stream import _notices as note
from resumable_stream._checkpoint import Checkpoint
from resumable_stream._contract import (
    Consume,
    Document,
    Finished,
    Position,
    Promises,
    Request,
    Resume,
    ResumeProtocol,
    StreamState,
    Verdict,
)
from resumable_stream._core import ending
from resumable_stream._errors import DeadlineExceeded, EventTooLarge, ReplayDiverged, RetriesExhausted
from resumable_stream._events import Outcome, StreamEvent
from resumable_stream._settings import Limits, Timeouts

from ..cutting import Where
from .simulation import CUTS, DROPPED, Reply, Sent, Stream, Wait, cut_body, play, policy, run


class Pages(ResumeProtocol):
    """`{"items": […], "next": "5"}`; `"last": true` ends the stream, `"idle": true` only this reading of it."""

    replays = True
    endless = True

    @property
    def promises(self) -> Promises:
        return Promises(resumable=True, numbered=False, has_end=True)

    def position(self, event: Any) -> Position:
        return Position(None)

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        return Consume(whole=True) if status == 200 else None

    def on_document(self, body: bytes, state: StreamState) -> Document | None:
        try:
            page = json.loads(body)
        except ValueError:
            return None
        state.extra["page"] = "last" if page.get("last") else "idle" if page.get("idle") else ""
        return Document([StreamEvent("message", item) for item in page["items"]], page.get("next"))

    def on_clean_close(self, state: StreamState) -> Verdict:
        match state.extra["page"]:
            case "last":
                return Finished(Outcome.COMPLETED)
            case "idle":
                return Finished(Outcome.ENDED, more=True)
            case _:
                return Resume(routine=True, waits="waits" in state.url)

    def resume_request(self, state: StreamState) -> Request:
        return Request(method="GET", url=state.url, params={"from": state.cursor})


def page(items: str, at: int | None, **more: Any) -> Reply:
    return Reply([json.dumps({"items": list(items), "next": None if at is None else str(at), **more}).encode()], type="")


class Book:
    """Pages of `step` items behind the cursor, of another size each time."""

    def __init__(self, items: str, *, steps: Any = (3,), cuts: Any = (), size: Any = None) -> None:
        self.items, self.steps, self.cuts, self.size, self.answers = items, steps, list(cuts), size, 0

    def __call__(self, sent: Sent) -> Reply:
        at = int(sent.params.get("from", 0))
        step = self.steps[self.answers % len(self.steps)]
        cut = self.cuts[self.answers] if self.answers < len(self.cuts) else None
        self.answers += 1
        stop = min(at + step, len(self.items))
        body = page(self.items[at:stop], stop, last=stop == len(self.items)).steps[0]
        assert isinstance(body, bytes)
        return Reply(cut_body(body, cut, self.size), type="application/json")


def read(server: Any, **options: Any) -> Any:
    return run(Stream(server, protocol=Pages(), **options))


def pages(*steps: Any, **options: Any) -> Any:
    return play(*steps, protocol=Pages(), **options)


def test_the_next_answer_is_asked_for_at_once_and_is_no_reconnect() -> None:
    result = read(Book("abcdefgh"))
    assert ("".join(result.data), result.outcome) == ("abcdefgh", Outcome.COMPLETED)
    assert [sent.params.get("from") for sent in result.stream.sent] == [None, "3", "6"]
    stats = result.stream.machine.stats
    assert (stats.connections, stats.reconnects, stats.seconds_offline, result.stream.sleeps) == (3, 0, 0.0, [])
    assert not result.stream.kinds(note.Disconnected) and not result.stream.kinds(note.Retrying)


def test_the_last_event_of_a_document_carries_the_cursor() -> None:
    assert [event.cursor for event in read(Book("abcd", steps=(2,))).events] == [None, "2", "2", "4"]


@pytest.mark.parametrize("cut", CUTS)
def test_nothing_of_half_a_document_is_delivered(cut: str, where: Where) -> None:
    for position in where(re.findall(rb"[^,]+,?", page("abc", 3).steps[0])):
        result = read(Book("abcdefgh", cuts=[(position, cut)] * 2, size=(None, 7, 1)[position % 3]))
        assert ("".join(result.data), result.outcome, result.error) == ("abcdefgh", Outcome.COMPLETED, None), position
        assert result.stream.machine.stats.duplicates == 0


def test_a_request_that_fails_is_a_reconnect_and_a_failed_attempt() -> None:
    result = pages(page("ab", 2), DROPPED, DROPPED, page("c", 3, last=True), delay=policy(3))
    assert ("".join(result.data), result.stream.machine.stats.reconnects) == ("abc", 1)
    assert result.stream.sleeps == [1.0, 1.0]
    gone = pages(page("ab", 2), *[DROPPED] * 4, delay=policy(3))
    assert isinstance(gone.error, RetriesExhausted)


def test_a_document_without_events_moves_the_cursor() -> None:
    stream = Stream(lambda sent: page("", 7, idle=True), protocol=Pages())
    assert (run(stream).outcome, stream.checkpoint.cursor, stream.checkpoint.offset) == (Outcome.ENDED, "7", 0)


def test_nothing_new_at_once_is_a_failed_attempt() -> None:
    result = pages(page("ab", 2), *[page("", 2)] * 5, delay=policy(4))
    assert (type(result.error), len(result.stream.sent)) == (RetriesExhausted, 6)


def test_nothing_new_after_a_while_is_neither_progress_nor_failure() -> None:
    slow = [Reply(page("", 2).steps, type="", after=30.0) for _ in range(50)]
    url = "https://api.example.com/v1/waits"
    result = pages(page("ab", 2), *slow, page("c", 3, last=True), delay=policy(1), url=url)
    assert ("".join(result.data), result.stream.sleeps, result.stream.machine.stats.reconnects) == ("abc", [], 0)


def test_where_nothing_is_waited_for_a_slow_answer_without_anything_new_is_a_failed_attempt() -> None:
    slow = [Reply(page("", 2).steps, type="", after=30.0) for _ in range(50)]
    assert type(pages(page("ab", 2), *slow, delay=policy(3)).error) is RetriesExhausted


def test_documents_without_events_that_lead_on_are_progress() -> None:
    empty = [page("", at) for at in range(3, 40)]
    result = pages(page("ab", 2), *empty, page("c", 41, last=True), delay=policy(1))
    assert ("".join(result.data), result.outcome, result.stream.sleeps) == ("abc", Outcome.COMPLETED, [])
    # And what failed before them is not counted any more.
    broken = [step for at in range(3, 20) for step in (page("", at), DROPPED, DROPPED)]
    result = pages(page("ab", 2), *broken, page("c", 41, last=True), delay=policy(3))
    assert ("".join(result.data), result.outcome) == ("abc", Outcome.COMPLETED)


def test_a_document_over_the_limit_is_told() -> None:
    assert isinstance(read(Book("a" * 100, steps=(100,)), limits=Limits(event_bytes=80)).error, EventTooLarge)


def test_the_deadline_holds_between_answers() -> None:
    server = lambda sent: Reply([Wait(4.0), *page("a", 0).steps], type="")  # noqa: E731
    assert isinstance(read(server, timeouts=Timeouts(deadline=10.0)).error, DeadlineExceeded)


def test_what_was_taken_is_saved_before_the_next_answer_is_waited_for() -> None:
    book, saved = Book("abcdefgh"), []

    def answer(sent: Sent) -> Reply:
        saved.append([save.checkpoint.cursor for save in stream.saves])
        # Not sooner after a save than the next one may come.
        stream.clock.now += 0.1
        return book(sent)

    stream = Stream(answer, protocol=Pages(), saving=True, save_interval=1000.0)
    run(stream)
    assert saved == [[], ["3"], ["3", "6"]]
    assert [save.checkpoint.cursor for save in stream.saves] == ["3", "6", "8"]


# --- another process ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("steps", [(3,), (5,), (1,), (2, 1)])
def test_another_process_goes_on_within_a_document_whatever_is_in_it_the_next_time(steps: Any, manual: bool) -> None:
    for count in range(1, 12):
        stream = Stream(Book("abcabcabcab", steps=(4,)), protocol=Pages(), manual=manual)
        first = run(stream, at_most=count)
        if manual:
            stream.commit(first.events[-1])
        place = Checkpoint.from_token(stream.leave().token())
        second = read(Book("abcabcabcab", steps=steps), checkpoint=place, delay=policy(2))
        assert "".join(first.data + second.data) == "abcabcabcab", count
        assert (second.outcome, second.error) == (Outcome.COMPLETED, None)


def test_documents_that_end_within_what_we_hold_spend_no_attempts() -> None:
    stream = Stream(Book("a" * 40, steps=(40,)), protocol=Pages())
    run(stream, at_most=30)
    second = read(Book("a" * 40, steps=(1,)), checkpoint=stream.leave(), delay=policy(1))
    assert ("".join(second.data), second.stream.sleeps) == ("a" * 10, [])


def test_a_place_too_far_within_a_document_is_known_only_as_a_whole() -> None:
    """A token holds a few hundred fingerprints; of more than that, one digest."""
    stream = Stream(Book("a" * 900, steps=(900,)), protocol=Pages())
    run(stream, at_most=800)
    place = Checkpoint.from_token(stream.leave().token())
    whole = read(Book("a" * 900, steps=(850,)), checkpoint=place, delay=policy(1))
    assert "".join(whole.data) == "a" * 100
    parts = read(Book("a" * 900, steps=(10,)), checkpoint=place, delay=policy(3))
    assert (type(parts.error), parts.data) == (RetriesExhausted, [])


def test_other_content_is_told() -> None:
    stream = Stream(Book("abcdef", steps=(6,)), protocol=Pages())
    run(stream, at_most=4)
    assert isinstance(read(Book("abXdef", steps=(2,)), checkpoint=stream.leave()).error, ReplayDiverged)


def test_a_server_that_no_longer_has_what_we_hold_does_not_end_the_stream() -> None:
    stream = Stream(Book("abcdef", steps=(6,)), protocol=Pages())
    run(stream, at_most=4)
    place = stream.leave()
    for answer in (page("ab", 2, idle=True), page("", None, last=True), page("", 0, idle=True), page("abc", None, last=True)):
        result = read(lambda sent, answer=answer: answer, checkpoint=place, delay=policy(3))
        assert (result.events, result.outcome) == ([], None)
    # Neither does one that takes its time to say so.
    slow = Reply(page("abc", None, last=True).steps, type="", after=30.0)
    assert isinstance(read(lambda sent: slow, checkpoint=place, delay=policy(3)).error, RetriesExhausted)


def test_a_reading_that_is_over_is_read_on_from_its_token() -> None:
    first = Stream(lambda sent: page("ab", 2, idle=True), protocol=Pages())
    assert run(first).outcome is Outcome.ENDED
    place = first.leave()
    assert not place.complete
    second = Stream(lambda sent: page("c", 3, last=True), protocol=Pages(), checkpoint=place)
    assert (run(second).data, second.sent[0].params, second.leave().complete) == (["c"], {"from": "2"}, True)


def test_empty_pages_that_never_end_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each leads to another place, so each looks like progress. Beyond a bound they are failed attempts, with waits."""
    monkeypatch.setattr(ending, "EMPTY_PAGES", 50)
    asked = itertools.count(1)
    stream = Stream(lambda sent: page("", next(asked)), protocol=Pages(), delay=policy(attempts=3))
    assert isinstance(run(stream).error, RetriesExhausted)
    assert 50 < len(stream.sent) < 60


def test_many_empty_pages_before_an_event_are_read_at_once() -> None:
    def server(sent: Sent) -> Reply:
        at = len(stream.sent)
        return page("", at) if at < 150 else page("z", at, last=True)

    stream = Stream(server, protocol=Pages())
    assert run(stream).data == ["z"]
    assert stream.elapsed == 0
