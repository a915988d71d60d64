"""A stream that begins with what is new: what was missed is read beside it, and comes in front."""

from __future__ import annotations

import json
from typing import Any

import pytest

from resumable_stream._contract import Answer, Backfill, Request, Resume, StreamState, Verdict
from resumable_stream._core import side
from resumable_stream._errors import RetriesExhausted
from resumable_stream._events import Gap, Outcome, StreamEvent
from resumable_stream.protocols import CursorProtocol

from ..cutting import Where
from .simulation import CUTS, Failure, Reply, Sent, Stream, cut_body, ev, play, policy, run, seqs

DONE = ev("[DONE]")


class Live(CursorProtocol):
    """Numbered events; the stream brings what is new, and `/history?after=N` two of the old ones a page."""

    def __init__(self) -> None:
        super().__init__(read="seq", send="query:after", sequence="contiguous", end="[DONE]")

    def resume_request(self, state: StreamState) -> Request:
        return Request(method="GET", url=state.url)

    def backfill_request(self, state: StreamState) -> Request | None:
        return Request(method="GET", url="/history", params={"after": state.cursor or "0"})

    def on_backfill(self, answer: Answer, state: StreamState) -> Backfill | Verdict:
        if answer.status != 200:
            return Resume()
        found = json.loads(answer.body)
        events = [StreamEvent(data=event) for event in found["events"]]
        return Backfill(events, None if found["last"] else Request(method="GET", url="/history", params={"after": found["next"]}))


def page(*numbers: int, last: bool, end: bool = False) -> Reply:
    events = [json.dumps({"seq": number, "text": f"t{number}"}) for number in numbers] + ["[DONE]"] * end
    body = {"events": events, "last": last, "next": str(numbers[-1]) if numbers else None}
    return Reply([json.dumps(body).encode()], type="application/json")


def test_what_was_missed_comes_in_front_of_what_is_live() -> None:
    result = play(
        Reply([seqs(1, 2), "rst"]),
        Reply([seqs(6, 7) + DONE]),
        page(3, 4, last=False),
        page(5, 6, last=True),
        protocol=Live(),
    )
    assert [event.sequence for event in result.events] == [1, 2, 3, 4, 5, 6, 7, None]
    assert [event.offset for event in result.events] == list(range(8))
    assert result.outcome is Outcome.COMPLETED
    # The new connection first: asking before it would lose what happens in between.
    assert [(sent.path, sent.params) for sent in result.stream.sent[1:]] == [
        ("/stream", {}),
        ("/history", {"after": "2"}),
        ("/history", {"after": "4"}),
    ]


def test_the_first_connection_asks_for_no_history() -> None:
    result = play(Reply([seqs(1) + DONE]), protocol=Live())
    assert len(result.stream.sent) == 1


def test_the_end_may_stand_in_the_history() -> None:
    result = play(Reply([seqs(1, 2), "rst"]), Reply([]), page(3, last=False, end=True), protocol=Live())
    assert [event.sequence for event in result.events] == [1, 2, 3, None]
    assert result.outcome is Outcome.COMPLETED
    assert len(result.stream.sent) == 3


@pytest.mark.parametrize("failure", [Failure(), Failure(timeout=True), Reply(status=500), Reply(status=404)], ids=repr)
def test_a_history_that_cannot_be_read_is_tried_again_with_its_stream(failure: Any) -> None:
    result = play(
        Reply([seqs(1, 2), "rst"]), Reply([seqs(5) + DONE]), failure, Reply([DONE]), page(3, 4, 5, last=True), protocol=Live()
    )
    assert [event.sequence for event in result.events] == [1, 2, 3, 4, 5, None]


def test_a_history_that_never_can_be_read_exhausts_the_retries() -> None:
    def answer(sent: Sent) -> Reply:
        return Reply(status=404) if sent.side else Reply([seqs(1, 2), "rst"])

    result = run(Stream(answer, protocol=Live(), delay=policy(attempts=4)))
    assert isinstance(result.error, RetriesExhausted)
    assert [event.sequence for event in result.events] == [1, 2]


def test_pages_without_end_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side, "PAGES", 5)
    asked = 0

    def answer(sent: Sent) -> Reply:
        nonlocal asked
        asked += sent.side
        return page(1, 2, last=False) if sent.side else Reply([seqs(1, 2), "rst"])

    result = run(Stream(answer, protocol=Live(), delay=policy(attempts=3)))
    assert isinstance(result.error, RetriesExhausted)
    assert asked % 5 == 0


@pytest.mark.parametrize("cut", CUTS)
def test_every_cut_of_the_live_stream_is_mended_by_the_history(cut: str, where: Where) -> None:
    body = seqs(1, 2, 3, 4) + DONE
    for position in where(body)[:-1]:
        result = play(
            Reply(cut_body(body, (position, cut), None)),
            lambda sent: Reply([DONE]),
            lambda sent: page(*range(int(sent.params["after"]) + 1, 5), last=True),
            protocol=Live(),
        )
        assert [event.sequence for event in result.events] == [1, 2, 3, 4, None], position


class Announced(Live):
    """Its history says where events are missing."""

    def gap(self, event: Any) -> Gap | None:
        found = json.loads(event.data) if event.data.startswith("{") else {}
        return Gap(expected=None, received=None, after=None) if found.get("lost") else None


@pytest.mark.parametrize("where", ["first page", "last page", "twice"])
def test_a_gap_that_is_announced_in_the_history_is_granted_and_the_history_goes_on(where: str) -> None:
    def lossy(*numbers: int, last: bool, lost: bool) -> Reply:
        events = [json.dumps({"lost": True})] * lost + [json.dumps({"seq": number}) for number in numbers]
        body = {"events": events, "last": last, "next": str(numbers[-1])}
        return Reply([json.dumps(body).encode()], type="application/json")

    def server(sent: Sent) -> Reply:
        if sent.path == "/history":
            first = sent.params["after"] == "2"
            numbers = (5, 6) if first else (7, 8)
            lost = where == "twice" or where == ("first page" if first else "last page")
            return lossy(*(numbers if where != "last page" or not first else (3, 4)), last=not first, lost=lost)
        return Reply([seqs(1, 2), "rst"]) if len(stream.sent) == 1 else Reply([seqs(9, 10) + DONE])

    stream = Stream(server, protocol=Increasing(), on_gap="deliver")
    result = run(stream)
    assert (result.error, result.outcome) == (None, Outcome.COMPLETED)
    numbers = [event.sequence for event in result.events]
    assert numbers == ([1, 2, 3, 4] if where == "last page" else [1, 2, 5, 6]) + [7, 8, 9, 10, None]
    assert [event.gap is not None for event in result.events].count(True) == (2 if where == "twice" else 1)


class Increasing(Announced):
    """Its numbers may jump."""

    def __init__(self) -> None:
        super().__init__()
        self.sequence = "increasing"
