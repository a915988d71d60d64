"""`TriggerDev`: realtime streams (npm `@trigger.dev/core` 4.8.3, `v3/apiClient/runStream.js`)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from resumable_stream._checkpoint import Checkpoint
from resumable_stream._contract import Head, StreamState
from resumable_stream._errors import CursorExpired, ResponseRejected, RetriesExhausted, UpstreamError
from resumable_stream._events import Delta, Outcome, StreamEvent
from resumable_stream.protocols.trigger_dev import TriggerDev
from resumable_stream.testing import Fault, FlakyServer
from resumable_stream.testing import Reply as WebReply
from resumable_stream.testing.server import RecordedRequest

from ..conftest import Row
from ..core.simulation import Reply, Sent, Stream, cut_body, ev, policy, run, script

URL = "https://api.trigger.dev/realtime/v1/streams/run_1/self/ai"
WORDS = ["Über ", "Köln: ", "sieben ", "Grad ", "Grad ", "☔", "!", " a", " b", " c", " d", " e"]
TEXT = "".join(WORDS)
COMMAND = -1
V2 = {"x-stream-version": "v2"}


def v1(words: list[str]) -> list[bytes]:
    return [ev(json.dumps(word, ensure_ascii=False), f"17636000000{at:02}-0") for at, word in enumerate(words)]


def record(at: int, word: str, written: str | None = None) -> dict[str, Any]:
    if not word:
        return {"seq_num": at, "timestamp": at, "body": "", "headers": [["", "trim"]]}
    return {"seq_num": at, "timestamp": at, "body": json.dumps({"id": written or f"c{at}", "data": word}, ensure_ascii=False)}


def batches(words: list[str], start: int = 0, step: int = 3) -> list[bytes]:
    records = [record(at, word) for at, word in enumerate(words)]
    return [
        ev(json.dumps({"records": records[at : at + step]}, ensure_ascii=False), None, "batch")
        for at in range(start, len(words), step)
    ]


class Server:
    """Version 1: an id for each event; version 2: `Last-Event-ID` is the number of the last record, and batches vary."""

    def __init__(self, version: str, words: list[str], *, cuts: Any = (), size: Any = None, step: int = 3) -> None:
        self.version, self.words, self.cuts, self.size, self.step, self.answers = version, words, list(cuts), size, step, 0

    def __call__(self, sent: Sent) -> Reply:
        assert (sent.method, sent.path) == ("GET", "/realtime/v1/streams/run_1/self/ai")
        if self.version == "v1":
            start = int(sent.cursor.partition("-")[0][-2:]) + 1 if sent.cursor else 0
            blocks = v1(self.words)[start:]
        else:
            blocks = batches(self.words, int(sent.cursor) + 1 if sent.cursor else 0, self.step)
        cut = self.cuts[self.answers] if self.answers < len(self.cuts) else None
        self.answers += 1
        body = b"".join(block + b": ping\n\n" for block in blocks)
        return Reply(cut_body(body, cut, self.size, 21), headers={"x-stream-version": self.version})


def get(server: Any, **options: Any) -> Stream:
    return Stream(server, **{"url": URL, "protocol": TriggerDev(), **options})


def play(*steps: Any, **options: Any) -> Any:
    return run(get(script(*steps), **options))


def words(result: Any) -> list[str]:
    return [delta.text for event in result.events for delta in TriggerDev().deltas(event)]


VERSIONS = ["v1", "v2"]

# --- cuts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_resumes_may_be_cut_too(version: str) -> None:
    cuts = [(at, ("rst", "fin", "silence")[at % 3]) for at in range(100, 900, 71)]
    result = run(get(Server(version, WORDS, cuts=cuts)))
    assert (words(result), result.outcome) == (WORDS, Outcome.ENDED)


@pytest.mark.parametrize("how", ["rst", "fin", "clean_inside"])
@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx"], indirect=True)
async def test_over_sockets(row: Row, how: Any) -> None:
    def resume(request: RecordedRequest) -> WebReply | None:
        if request.last_event_id is None:
            return None
        return WebReply(body=b"".join(batches(WORDS, int(request.last_event_id) + 1, 2)))

    log = batches(WORDS)
    positions = range(1, len(b"".join(log)), 101)
    schedule = [Fault.cut(after_bytes=at, how=how) for at in positions]
    headers = {**V2, "x-session-settled": "true"}
    path = "/realtime/v1/sessions/s/out"
    with FlakyServer(log, schedule * 2, path=path, headers=headers, on_request=resume) as server:
        for _ in positions:
            async with row.connect("GET", server.url, protocol=TriggerDev()) as stream:
                assert await stream.read_text() == TEXT


# --- repeats, ends --------------------------------------------------------------------------------------------------


def test_a_record_that_was_written_twice_is_dropped() -> None:
    twice = [record(0, "a"), record(1, "b"), {**record(2, "b", "c1"), "timestamp": 9}, record(3, "c")]
    result = play(Reply([ev(json.dumps({"records": twice}), None, "batch")], headers=V2))
    assert (words(result), result.stream.machine.stats.duplicates) == (["a", "b", "c"], 1)
    assert result.events[-1].cursor == "3"


def test_equal_chunks_of_two_writes_are_two() -> None:
    result = run(get(Server("v2", ["a", "a", "a"])))
    assert words(result) == ["a"] * 3


def test_command_records_are_no_data() -> None:
    result = run(get(Server("v2", ["a", "", "b"], cuts=[(150, "rst")])))
    assert (words(result), [event.sequence for event in result.events]) == (["a", "b"], [0, 2])


def test_control_records_are_delivered_without_text() -> None:
    control = {"seq_num": 5, "timestamp": 1, "body": "", "headers": [["trigger-control", "turn-complete"]]}
    result = play(Reply([ev(json.dumps({"records": [control]}), None, "batch")], headers=V2))
    assert (len(result.data), words(result), result.events[0].cursor) == (1, [], "5")


@pytest.mark.parametrize("version", VERSIONS)
def test_an_overlap_is_dropped(version: str) -> None:
    log = v1(WORDS) if version == "v1" else batches(WORDS, step=1)
    result = play(Reply([*log[:8], "rst"]), Reply(log[3:]))
    assert (words(result), result.stream.machine.stats.duplicates) == (WORDS, 5)


@pytest.mark.parametrize(("settled", "outcome"), [("true", Outcome.COMPLETED), ("false", Outcome.ENDED)])
def test_a_settled_session_is_complete(settled: str, outcome: Outcome) -> None:
    assert play(Reply(batches(WORDS), headers={**V2, "x-session-settled": settled})).outcome is outcome


@pytest.mark.parametrize("data", ["internal", '{"message":"internal"}'])
def test_an_error_frame_is_raised(data: str) -> None:
    result = play(Reply([*batches(WORDS)[:1], ev(data, None, "error")]))
    assert isinstance(result.error, UpstreamError)
    assert "internal" in str(result.error) and words(result) == WORDS[:3]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, ResponseRejected),
        (401, ResponseRejected),
        (404, CursorExpired),
        (409, ResponseRejected),
        (410, CursorExpired),
        (422, ResponseRejected),
        (429, RetriesExhausted),
        (500, RetriesExhausted),
    ],
)
def test_what_a_status_to_the_resume_means(status: int, error: type) -> None:
    half = Reply([*batches(WORDS)[:1], "rst"])
    result = play(half, *[Reply(status=status, type="")] * 9, delay=policy(3))
    assert (type(result.error), words(result)) == (error, WORDS[:3])


# --- text, going on elsewhere, detection ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ('"a"', "a"),
        ("plain", "plain"),
        ('{"type":"text-delta","id":"0","delta":"a"}', "a"),
        ('{"type":"text-delta","text":"a"}', "a"),
        ('{"type":"reasoning-delta","delta":"a"}', None),
        ("{}", None),
        ("5", None),
        ("", None),
    ],
)
def test_the_text_of_a_chunk(data: str, text: str | None) -> None:
    expected = [Delta("text", text)] if text else []
    assert list(TriggerDev().deltas(StreamEvent(data=data))) == expected


@pytest.mark.parametrize("data", ["", "no json", "[]", '{"records":5}', '{"records":[5]}', '{"records":[{"headers":[[]]}]}'])
def test_odd_batches_do_no_harm(data: str) -> None:
    assert play(Reply([ev(data, None, "batch")])).error is None


@pytest.mark.parametrize("version", VERSIONS)
def test_another_process_goes_on(version: str) -> None:
    for count in range(1, len(WORDS)):
        stream = get(Server(version, WORDS))
        first = run(stream, at_most=count)
        place = Checkpoint.from_token(stream.leave().token())
        second = run(get(Server(version, WORDS), checkpoint=place))
        assert words(first) + words(second) == WORDS


def test_a_start_at_the_latest_gives_way_to_the_cursor() -> None:
    state = StreamState("GET", URL)
    request = TriggerDev().resume_request(state)
    assert request is not None and request.headers == {}
    state.cursor = "5"
    request = TriggerDev().resume_request(state)
    assert request is not None and request.headers == {"X-Trigger-Stream-Start": None, "Last-Event-ID": "5"}
    assert TriggerDev().cancel_request(state) is None
    assert TriggerDev().resume_request(StreamState("POST", URL)) is None


@pytest.mark.parametrize(
    ("method", "path", "kind", "found"),
    [
        ("GET", "/realtime/v1/streams/run_1/self/ai", "text/event-stream", True),
        ("GET", "/realtime/v1/sessions/s/out", "text/event-stream", True),
        ("POST", "/realtime/v1/streams/run_1/self/ai", "text/event-stream", False),
        ("GET", "/realtime/v1/runs/run_1", "text/event-stream", False),
        ("GET", "/realtime/v1/streams/run_1/self/ai", "application/json", False),
    ],
)
def test_it_is_known_by_its_route(method: str, path: str, kind: str, found: bool) -> None:
    state = StreamState(method, f"https://api.trigger.dev{path}")
    assert TriggerDev().matches(state, Head(200, {"content-type": kind}, state.url)) is found
