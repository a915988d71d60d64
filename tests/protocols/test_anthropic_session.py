"""`AnthropicSession`: what happened while nobody was connected comes from the history, once."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from resumable_stream import Checkpoint, CursorExpired, Outcome, ResponseRejected, ResumableStreamError, RetriesExhausted
from resumable_stream._contract import Head, StreamState
from resumable_stream._events import Delta, StreamEvent
from resumable_stream.protocols.anthropic_session import AnthropicSession
from resumable_stream.testing import Fault, FlakyServer
from resumable_stream.testing import Reply as Whole
from resumable_stream.testing.server import RecordedRequest

from ..core.simulation import CUTS, DROPPED, Failure, Reply, Sent, Stream, cut_body, run

if TYPE_CHECKING:
    from tests.conftest import Row

SESSION = "https://api.anthropic.com/v1/sessions/sesn_1"
URL = f"{SESSION}/events/stream?beta=true"
START = datetime(2026, 11, 20, tzinfo=UTC)
OPENED = "Fri, 20 Nov 2026 00:00:00 GMT"


def at(minutes: float) -> str:
    return (START + timedelta(minutes=minutes)).isoformat().replace("+00:00", "Z")


def text(*pieces: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": piece} for piece in pieces]


LOG: list[dict[str, Any]] = [
    {"type": "user.message", "id": "e1", "processed_at": None, "content": text("go")},
    {"type": "user.message", "id": "e1", "processed_at": at(1), "content": text("go")},
    {"type": "session.status_running", "id": "e2", "processed_at": at(1.5)},
    {"type": "event_start", "event": {"type": "agent.message", "id": "e3"}},
    {
        "type": "event_delta",
        "event_id": "e3",
        "delta": {"type": "content_delta", "index": 0, "content": {"type": "text", "text": "Hé"}},
    },
    {
        "type": "event_delta",
        "event_id": "e3",
        "delta": {"type": "content_delta", "index": 0, "content": {"type": "text", "text": "Hé"}},
    },
    {"type": "agent.message", "id": "e3", "processed_at": at(4), "content": text("Hé", "llo 🦊")},
    {"type": "agent.tool_use", "id": "e4", "processed_at": at(5.5), "name": "w", "input": {}},
    {
        "type": "session.status_idle",
        "id": "e5",
        "processed_at": at(7),
        "stop_reason": {"type": "requires_action", "event_ids": ["e4"]},
    },
    {"type": "agent.message", "id": "e6", "processed_at": at(9), "content": text(" wörld")},
    {"type": "session.status_idle", "id": "e7", "processed_at": at(10), "stop_reason": {"type": "end_turn"}},
    {"type": "session.status_terminated", "id": "e8", "processed_at": at(11)},
]


def frame(item: dict[str, Any]) -> bytes:
    return f"event: message\ndata: {json.dumps(item, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


FRAMES = [frame(item) for item in LOG]
ENDS = list(itertools.accumulate(map(len, FRAMES)))
KEPT = [item for item in LOG if item.get("processed_at")]


class API:
    """
    The session to the letter: a stream brings what happens from its opening on, the list what has happened.

    Args:
        cuts: For each stream in turn where and how it is cut.
        missed: So many events happen while nobody is connected.
        both: So many happen between the opening of a stream and the answer of the list: they are in both.
        page: Events on a page of the list.
        refuse: Answers to the requests behind the first, one each.
    """

    def __init__(
        self,
        cuts: Sequence[tuple[int, str]] = (),
        *,
        missed: int = 0,
        both: int = 0,
        page: int = 3,
        refuse: Sequence[Reply | Failure] = (),
        log: Sequence[dict[str, Any]] = LOG,
    ) -> None:
        self.cuts, self.missed, self.both, self.page, self.refuse = list(cuts), missed, both, page, list(refuse)
        self.log = list(log)
        self.happened = 0
        self.streams = 0

    def __call__(self, sent: Sent) -> Reply | Failure:
        assert (sent.method, sent.cursor, sent.params.get("beta")) == ("GET", None, "true")
        self.streams += sent.path == "/v1/sessions/sesn_1/events/stream"
        if self.streams > 1 and self.refuse:
            return self.refuse.pop(0)
        if sent.path == "/v1/sessions/sesn_1/events/stream":
            return self.stream()
        assert (sent.path, sent.side) == ("/v1/sessions/sesn_1/events", True)
        return self.list(sent.params)

    def stream(self) -> Reply:
        self.happened = min(self.happened + (self.missed if self.streams > 1 else 0), len(self.log))
        frames = [frame(item) for item in self.log[self.happened :]]
        cut = self.cuts.pop(0) if self.cuts else None
        if cut is not None:
            # What was on its way when the connection went has happened.
            ends = itertools.accumulate(map(len, frames))
            self.happened += sum(end - len(raw) < cut[0] for end, raw in zip(ends, frames, strict=True))
        else:
            self.happened += self.both
        return Reply(cut_body(b"".join(frames), cut, None), headers={"date": OPENED})

    def list(self, params: dict[str, str]) -> Reply:
        assert (params["order"], params["limit"]) == ("asc", "1000")
        since = datetime.fromisoformat(params["created_at[gte]"])
        held = [item for item in self.log[: self.happened] if item.get("processed_at")]
        held = [item for item in held if datetime.fromisoformat(item["processed_at"]) >= since]
        start = int(params.get("page", "0"))
        following = str(start + self.page) if start + self.page < len(held) else None
        body = {"data": held[start : start + self.page], "next_page": following}
        return Reply([json.dumps(body, indent=1).encode()], type="application/json")


def stream(server: Any, **options: Any) -> Stream:
    return Stream(server, **{"url": URL, "protocol": AnthropicSession(), **options})


def items(events: Sequence[Any]) -> list[dict[str, Any]]:
    return [event.json() for event in events]


def kept(events: Sequence[Any]) -> list[dict[str, Any]]:
    return [item for item in items(events) if item.get("processed_at")]


# --- cuts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", CUTS)
def test_it_is_resumed_however_often_it_is_cut(cut: str) -> None:
    for step in (40, 110, 200):
        result = run(stream(API([(step, cut)] * 30, missed=1)))
        assert (kept(result.events), result.outcome, result.error) == (KEPT, Outcome.COMPLETED, None)


def test_nothing_is_asked_for_while_the_connection_holds() -> None:
    api = API()
    result = run(stream(api))
    assert (items(result.events), result.outcome, len(result.stream.sent)) == (LOG, Outcome.COMPLETED, 1)
    assert result.stream.state.stream_id == "sesn_1"


def test_the_history_is_asked_behind_the_opening_and_from_a_minute_before_the_last_event() -> None:
    result = run(stream(API([(ENDS[7], "rst")], page=2, missed=2)))
    _, opened, *pages = result.stream.sent
    assert (opened.path, opened.params) == ("/v1/sessions/sesn_1/events/stream", {"beta": "true"})
    assert [page.params.get("page") for page in pages] == [None, "2"]
    # The pages belong to one list, so its start stays what it was.
    assert {page.params["created_at[gte]"] for page in pages} == {at(4.5)}


def test_a_history_that_reaches_back_to_the_beginning_ignores_no_cursor() -> None:
    log = LOG[1:]
    result = run(stream(API([(sum(map(len, FRAMES[1:3])), "rst")], log=log)))
    assert [event.json() for event in result.events] == log
    stats = result.stream.machine.stats
    assert (stats.duplicates, stats.cursor_ignored) == (2, False)


def test_a_queued_event_and_the_same_processed_are_two() -> None:
    result = run(stream(API([(ENDS[0], "rst")])))
    assert [(item["id"], item["processed_at"]) for item in items(result.events)[:2]] == [("e1", None), ("e1", at(1))]


def test_a_list_that_fails_loses_nothing() -> None:
    for failure in (DROPPED, Reply(status=503), Reply(status=409), Reply([b"<html>"]), Reply([b"{}"])):
        api = API([(ENDS[5], "rst")], missed=2, both=1)
        api.refuse = []
        asked = iter([failure])
        result = run(stream(lambda sent: (next(asked, None) if sent.side else None) or api(sent)))  # noqa: B023
        assert (kept(result.events), result.outcome, result.error) == (KEPT, Outcome.COMPLETED, None)


def test_another_process_goes_on_with_what_happened_since() -> None:
    for taken in range(1, len(LOG)):
        api = API()
        first = stream(api)
        before = [next(first).json() for _ in range(taken)]
        checkpoint = Checkpoint.from_token(first.leave().token())
        api.happened, api.missed = taken, 2
        second = run(stream(api, checkpoint=checkpoint))
        found = [item for item in [*before, *items(second.events)] if item.get("processed_at")]
        assert (found, second.outcome) == (KEPT, Outcome.COMPLETED)


# --- how it ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        ("end_turn", Outcome.COMPLETED),
        ("retries_exhausted", Outcome.FAILED),
        ("refusal", Outcome.INCOMPLETE),
        ("budget_reached", Outcome.INCOMPLETE),
        ("something_new", Outcome.INCOMPLETE),
    ],
)
def test_a_turn_ends_when_the_agent_is_idle_for_good(reason: str, outcome: Outcome) -> None:
    log = [*LOG[:10], {**LOG[10], "stop_reason": {"type": reason}}, LOG[11]]
    result = run(stream(API(log=log), protocol=AnthropicSession(until="turn")))
    assert (items(result.events), result.outcome) == (log[:11], outcome)


def test_a_deleted_session_is_cancelled() -> None:
    log = [*LOG[:3], {"type": "session.deleted", "id": "e9", "processed_at": at(2)}]
    assert run(stream(API(log=log))).outcome is Outcome.CANCELLED


def test_an_end_that_was_missed_is_found_in_the_history() -> None:
    result = run(stream(API([(ENDS[4], "fin")], missed=20)))
    assert (kept(result.events), result.outcome) == (KEPT, Outcome.COMPLETED)


@pytest.mark.parametrize("until", ["never", None, True])
def test_an_option_that_is_none_is_told_at_once(until: Any) -> None:
    with pytest.raises(ValueError, match="until"):
        AnthropicSession(until=until)


# --- statuses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, ResponseRejected),
        (401, ResponseRejected),
        (403, ResponseRejected),
        (404, CursorExpired),
        (410, CursorExpired),
        (408, None),
        (409, None),
        (429, None),
        (500, None),
        (529, None),
    ],
)
def test_what_the_answer_to_a_resume_request_means(status: int, error: type[ResumableStreamError] | None) -> None:
    refuse = [Reply(status=status, type="application/json")] * (2 if status in (401, 403) else 1)
    result = run(stream(API([(ENDS[6], "rst")], refuse=refuse)))
    assert type(result.error) is (error or type(None))
    assert kept(result.events) == (KEPT[:3] if error else KEPT)


def test_a_session_that_is_always_refused_spends_the_retries() -> None:
    assert isinstance(run(stream(API([(ENDS[6], "rst")], refuse=[Reply(status=503)] * 50))).error, RetriesExhausted)


# --- content, requests, detection -----------------------------------------------------------------------------------


def test_the_text_is_that_of_the_final_events() -> None:
    found = [part for event in run(stream(API())).events for part in AnthropicSession().deltas(event)]
    assert found == [Delta("text", "Hé", 0), Delta("text", "llo 🦊", 1), Delta("text", " wörld", 0)]


@pytest.mark.parametrize("data", ["", "[]", "{}", '{"type":"agent.message","content":[1,{}]}', '{"type":"agent.message"}'])
def test_what_is_no_content_is_no_text(data: str) -> None:
    assert tuple(AnthropicSession().deltas(StreamEvent(data=data))) == ()


def test_cancel_interrupts_the_agent() -> None:
    request = AnthropicSession().cancel_request(StreamState("GET", URL))
    assert request is not None
    assert (request.method, request.url, request.json) == (
        "POST",
        f"{SESSION}/events?beta=true",
        {"events": [{"type": "user.interrupt"}]},
    )


SSE = {"content-type": "text/event-stream"}


@pytest.mark.parametrize(
    ("method", "url", "headers", "found"),
    [
        ("GET", URL, SSE, True),
        ("GET", f"{SESSION}/stream", {**SSE, "anthropic-organization-id": "o"}, True),
        ("GET", f"{SESSION}/threads/t1/stream?beta=true", SSE, True),
        ("GET", f"{SESSION}/stream", SSE, False),
        ("POST", URL, SSE, False),
        ("GET", f"{SESSION}/events?beta=true", SSE, False),
        ("GET", URL, {"content-type": "application/json"}, False),
    ],
)
def test_it_knows_its_own_endpoint(method: str, url: str, headers: dict[str, str], found: bool) -> None:
    assert AnthropicSession().matches(StreamState(method, url), Head(200, headers, url)) is found


def test_what_it_promises() -> None:
    assert repr(AnthropicSession()) == "<AnthropicSession: resumable, has_end>"


# --- real sockets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
async def test_over_a_socket_every_event_arrives_once(row: Row, flaky_server: Callable[..., FlakyServer], how: Any) -> None:
    def history(request: RecordedRequest) -> Whole | None:
        if request.path.endswith("/stream"):
            return None
        body = {"data": KEPT[: 2 * len(server.requests)], "next_page": None}
        return Whole(headers={"content-type": "application/json"}, body=json.dumps(body).encode())

    cuts = [Fault.cut(after_bytes=position, how=how) for position in (0, ENDS[1] + 3, 40, ENDS[3])]
    server = flaky_server(FRAMES, cuts, path="/v1/sessions/sesn_1/events/stream", on_request=history)
    answer = row.connect("GET", server.url, protocol=AnthropicSession())
    assert kept(await row.read(answer)) == KEPT
    assert answer.outcome is Outcome.COMPLETED
