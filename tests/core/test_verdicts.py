"""What a protocol may say of a head or a close, beyond the rules' own tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from resumable_stream._core.interfaces import (
    Answer,
    Consume,
    Lost,
    Request,
    ResumeProtocol,
    Snapshot,
    StreamState,
    Verdict,
)
from resumable_stream._errors import CursorExpired, EventTooLarge, RetriesExhausted
from resumable_stream._events import Outcome, StreamEvent
from resumable_stream._settings import Limits
from resumable_stream.protocols import LastEventID

from .simulation import Reply, Stream, ev, play, policy, run


class Kept(ResumeProtocol):
    """Replays nothing; `/state` has the finished result."""

    def __init__(self, *, stored: bool) -> None:
        self.stored = stored

    def resume_request(self, state: StreamState) -> Request:
        return Request(method="GET", url=state.url, repeat="all")

    def on_clean_close(self, state: StreamState) -> Verdict:
        return Lost("it is over", stored=self.stored)

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


def test_a_connection_with_nothing_but_pings_is_a_failed_attempt() -> None:
    result = run(Stream(lambda sent: Reply([ev("x", event="ping"), "rst"]), protocol=Apart(end="[DONE]"), delay=policy(3)))
    assert isinstance(result.error, RetriesExhausted)
    assert result.events == []
