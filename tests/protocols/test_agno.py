"""`Agno`: background runs of Agno AgentOS (PyPI `agno` 3.1.10, `os/routers/agents/router.py`)."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl

import pytest

from resumable_stream._checkpoint import Checkpoint
from resumable_stream._contract import Head, Position, StreamState
from resumable_stream._errors import (
    CursorExpired,
    NotResumable,
    ReplayDiverged,
    ResponseRejected,
    RetriesExhausted,
    StreamInterrupted,
    UpstreamError,
)
from resumable_stream._events import Delta, Outcome, StreamEvent
from resumable_stream.protocols import agno
from resumable_stream.protocols.agno import Agno
from resumable_stream.testing import Fault, FlakyServer
from resumable_stream.testing import Reply as WebReply
from resumable_stream.testing.server import RecordedRequest

from ..conftest import Row
from ..core.simulation import CUTS, Reply, Sent, Stream, cut_body, ev, policy, run, script

URL = "https://os.example.com/agents/weather/runs"
RUN = {"run_id": "r/1", "session_id": "s1"}


def frame(event: str, index: int | None = None, **fields: Any) -> bytes:
    body = {"created_at": 1, "event": event, **fields} | ({} if index is None else {"event_index": index})
    return ev(json.dumps({**body, **RUN, **fields}, ensure_ascii=False, separators=(",", ":")), event=event)


EVENTS = [
    frame("RunStarted", 0),
    frame("ModelRequestStarted", 1),
    frame("ReasoningContentDelta", 2, reasoning_content="Hm, "),
    frame("RunContent", 3, content="", reasoning_content="Köln."),
    frame("ToolCallStarted", 4, tool={"tool_name": "weather", "tool_args": {"city": "Köln"}}),
    frame("ToolCallCompleted", 5, content="7 °C"),
    frame("RunContent", 6, content="Sieben "),
    frame("RunContent", 7, content="Grad "),
    # A retry of the run skips numbers.
    frame("RunContent", 9, content="Grad "),
    frame("RunContent", 10, content="☔"),
    frame("RunContentCompleted", 11),
    frame("RunCompleted", 12, content="Sieben Grad Grad ☔"),
]
TEXT = "Sieben Grad Grad ☔"
EXPECTED = [block.decode().split("data: ")[1][:-2] for block in EVENTS]
SUBSCRIBED = frame("subscribed", status="running", current_event_count=12)
BEAT = b": heartbeat\n\n"


def replay(events: list[bytes], after: str | None = None, *, over: bool = False) -> bytes:
    """What the resume route sends behind `last_event_index`; without it all."""
    if after is not None:
        events = [each for each in events if json.loads(each.split(b"data: ")[1])["event_index"] > int(after)]
    if over:
        return frame("replay", status="completed", total_events=len(events), total_buffered=12) + b"".join(events)
    missed = frame("catch_up", missed_events=len(events)) + b"".join(events[:3]) if events else b""
    return missed + SUBSCRIBED + BEAT + b"".join(events[3:])


class AgentOS:
    def __init__(self, events: list[bytes] = EVENTS, *, cuts: Any = (), chunk: Any = None, over: bool = False) -> None:
        self.events, self.cuts, self.chunk, self.over, self.answers = events, list(cuts), chunk, over, 0
        self.sizes: list[int] = []

    def __call__(self, sent: Sent) -> Reply:
        first = self.answers == 0
        assert (sent.method, sent.path) == ("POST", "/agents/weather/runs" + ("" if first else "/r%2F1/resume"))
        assert sent.request.repeat == ("all" if first else "body")
        cut = self.cuts[self.answers] if self.answers < len(self.cuts) else None
        self.answers += 1
        body = b"".join(self.events) if first else replay(self.events, sent.form.get("last_event_index"), over=self.over)
        self.sizes.append(len(body))
        return Reply(cut_body(body, cut, self.chunk, 21))


def post(server: Any, **options: Any) -> Stream:
    return Stream(server, **{"method": "POST", "url": URL, "protocol": Agno(), **options})


def play(*steps: Any, **options: Any) -> Any:
    return run(post(script(*steps), **options))


HALF = Reply([b"".join(EVENTS[:5]), "rst"])


# --- cuts -----------------------------------------------------------------------------------------------------------


def test_resumes_may_be_cut_too() -> None:
    cuts = [(400, "rst"), *((at, CUTS[at % 5]) for at in range(3, 2000, 113))]
    result = run(post(AgentOS(cuts=cuts)))
    assert (result.data, result.outcome) == (EXPECTED, Outcome.COMPLETED)
    assert [event.sequence for event in result.events] == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12]


def test_nothing_is_sent_twice() -> None:
    server = AgentOS(cuts=[(len(b"".join(EVENTS[:10])), "rst")])
    result = run(post(server))
    assert (result.data, result.stream.machine.stats.duplicates) == (EXPECTED, 0)
    assert [sent.form for sent in result.stream.sent] == [{}, {"last_event_index": "10"}]
    assert server.sizes[1] == len(replay(EVENTS[10:]))


def test_a_run_that_is_over_and_held_whole_but_for_its_end_is_given_up() -> None:
    """All its events are here, and none of them ended it: the server has no more to say."""
    result = play(HALF, *[Reply([frame("replay", status="error", total_events=0, total_buffered=5)])] * 9, delay=policy(3))
    assert (type(result.error), result.data) == (RetriesExhausted, EXPECTED[:5])


@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx"], indirect=True)
async def test_over_sockets(row: Row, how: Any) -> None:
    def route(request: RecordedRequest) -> WebReply | None:
        form = dict(parse_qsl(request.body.decode()))
        assert (form["session_id"], form["message"]) == ("s1", "hï & ho")
        if not request.url.endswith("/resume"):
            assert "last_event_index" not in form
            return None
        assert request.headers["content-type"] == "application/x-www-form-urlencoded"
        body = replay(EVENTS, form["last_event_index"])
        return WebReply(body=body, headers={"content-type": "text/event-stream; charset=utf-8"})

    positions = range(len(EVENTS[0]), sum(map(len, EVENTS)), 173)
    with FlakyServer(EVENTS, [Fault.cut(after_bytes=at, how=how) for at in positions], on_request=route) as server:
        for _ in positions:
            form = {"message": "hï & ho", "stream": "true", "background": "true", "session_id": "s1"}
            async with row.connect("POST", f"{server.origin}/agents/a/runs", data=form, protocol=Agno()) as stream:
                assert await stream.read_text() == TEXT
            assert (stream.outcome, stream.stats.gaps, stream.stats.duplicates) == (Outcome.COMPLETED, 0, 0)


# --- answers to a resume --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, b'{"detail":"Stream resumption is not supported for remote agents"}', NotResumable),
        (400, b'{"detail":"session_id is required"}', ResponseRejected),
        (401, b"", ResponseRejected),
        (404, b'{"detail":"Agent not found"}', CursorExpired),
        (422, b"", ResponseRejected),
        (500, b"", RetriesExhausted),
        (503, b"", RetriesExhausted),
    ],
)
def test_what_a_status_to_the_resume_means(status: int, body: bytes, error: type) -> None:
    result = play(HALF, *[Reply([body], status=status, type="application/json")] * 9, delay=policy(3))
    assert (type(result.error), result.data) == (error, EXPECTED[:5])


@pytest.mark.parametrize(
    "answer",
    [
        ev('{"event":"error","error":"Run r1 not found in buffer or database"}', event="error"),
        ev("no json", event="error"),
        frame("replay", status="completed", total_events=0, message="Run completed with no stored events"),
    ],
)
def test_an_error_under_200_is_raised(answer: bytes) -> None:
    result = play(HALF, Reply([answer]))
    assert isinstance(result.error, UpstreamError)
    assert result.data == EXPECTED[:5] and result.error.checkpoint is not None and result.error.checkpoint.sequence == 4


def test_greetings_are_no_progress() -> None:
    """A server that subscribes us and closes is not asked for ever."""
    result = play(HALF, *[Reply([SUBSCRIBED + BEAT])] * 9, delay=policy(4))
    assert (type(result.error), result.data, len(result.stream.sent)) == (RetriesExhausted, EXPECTED[:5], 6)


def test_another_run_is_no_replay() -> None:
    other = ev('{"event":"RunContent","run_id":"r2","content":"x","event_index":4}', event="RunContent")
    assert isinstance(play(HALF, Reply([other])).error, ReplayDiverged)


def test_an_event_from_the_database_may_look_different() -> None:
    body = json.loads(EXPECTED[4])
    stored = ev(json.dumps(dict(sorted(body.items())), indent=None), event="ToolCallStarted")
    result = play(HALF, Reply([frame("replay", total_events=9), b"".join(EVENTS[:4]), stored, *EVENTS[5:]]))
    assert (result.data, result.outcome) == (EXPECTED, Outcome.COMPLETED)


def test_a_run_told_again_within_a_connection_is_dropped() -> None:
    result = play(Reply([*EVENTS[:4], *EVENTS[2:4], *EVENTS[4:]]))
    assert (result.data, result.stream.machine.stats.duplicates) == (EXPECTED, 2)


def test_two_equal_events_under_one_number_are_delivered_where_nothing_was_replayed() -> None:
    result = play(Reply([*EVENTS[:4], EVENTS[3], *EVENTS[4:]]))
    assert (result.data, result.stream.machine.stats.duplicates) == ([*EXPECTED[:4], EXPECTED[3], *EXPECTED[4:]], 0)


def test_without_background_nothing_can_be_resumed() -> None:
    result = play(Reply([frame("RunStarted"), frame("RunContent", content="x"), "rst"]))
    assert (len(result.data), type(result.error)) == (2, StreamInterrupted)
    assert result.stream.machine.requests.cancel() is None


# --- ends and text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "fields", "outcome"),
    [
        ("RunCompleted", {}, Outcome.COMPLETED),
        ("RunError", {}, Outcome.FAILED),
        ("RunCancelled", {}, Outcome.CANCELLED),
        ("RunPaused", {}, Outcome.INCOMPLETE),
        ("TeamRunCompleted", {}, Outcome.COMPLETED),
        ("WorkflowCompleted", {"workflow_id": "w"}, Outcome.COMPLETED),
        ("WorkflowCompleted", {"workflow_id": "w", "nested_depth": 1}, None),
        ("RunCompleted", {"parent_run_id": "r0"}, None),
        ("RunCompleted", {"workflow_id": "w"}, None),
        ("RunContentCompleted", {}, None),
        ("ToolCallCompleted", {}, None),
        ("Completed", {}, None),
    ],
)
def test_what_ends_a_run(event: str, fields: dict[str, Any], outcome: Outcome | None) -> None:
    assert Agno().end(StreamEvent(event=event, data=json.dumps(fields))) is outcome


def test_a_failure_is_delivered() -> None:
    result = play(Reply([*EVENTS[:3], frame("RunError", 3, content="boom")]))
    assert (len(result.data), result.outcome) == (4, Outcome.FAILED)


def test_the_deltas() -> None:
    events = [StreamEvent(event=json.loads(data)["event"], data=data) for data in EXPECTED]
    assert [delta for event in events for delta in Agno().deltas(event)] == [
        Delta("reasoning", "Hm, "),
        Delta("reasoning", "Köln."),
        Delta("tool", '{"city": "Köln"}'),
        *(Delta("text", text) for text in ("Sieben ", "Grad ", "Grad ", "☔")),
    ]
    team = StreamEvent(event="TeamRunContent", data='{"content":"T"}')
    member = StreamEvent(event="RunContent", data='{"content":"M","parent_run_id":"r0"}')
    step = StreamEvent(event="RunContent", data='{"content":"S","parent_run_id":"r0","workflow_id":"w"}')
    assert [[delta.text for delta in Agno().deltas(event)] for event in (team, member, step)] == [["T"], [], ["S"]]


@pytest.mark.parametrize("data", ["", "no json", "[]", '{"event_index":true}', '{"content":{"a":1}}'])
def test_odd_data_does_no_harm(data: str) -> None:
    event = StreamEvent(event="RunContent", data=data)
    assert (Agno().position(event), list(Agno().deltas(event)), Agno().end(event)) == (Position(None), [], None)


# --- going on elsewhere, stopping, detection ------------------------------------------------------------------------


def test_another_process_goes_on() -> None:
    for count in range(1, len(EVENTS)):
        stream = post(AgentOS())
        first = run(stream, at_most=count)
        place = Checkpoint.from_token(stream.leave().token())
        other = post(script(Reply([replay(EVENTS)])), checkpoint=place)
        assert first.data + run(other).data == EXPECTED
        assert other.sent[0].path == "/agents/weather/runs/r%2F1/resume"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        (URL, "/agents/weather/runs/r1/cancel"),
        ("https://os.example.com/v1/teams/t/runs?x=1", "/v1/teams/t/runs/r1/cancel"),
        ("https://os.example.com/workflows/w/runs/r0/continue", "/workflows/w/runs/r1/cancel"),
    ],
)
def test_it_can_be_stopped(url: str, path: str) -> None:
    state = StreamState("POST", url)
    state.stream_id = "r1"
    request = Agno().cancel_request(state)
    assert request is not None
    assert (request.method, request.url, request.repeat) == ("POST", f"https://os.example.com{path}", None)


@pytest.mark.parametrize(
    ("method", "path", "body", "kind", "found"),
    [
        ("POST", "/agents/a/runs", None, "text/event-stream", True),
        ("POST", "/api/teams/a/runs", None, "text/event-stream", True),
        ("POST", "/workflows/w/runs/r/continue", None, "text/event-stream", True),
        ("GET", "/agents/a/runs", None, "text/event-stream", False),
        ("POST", "/agents/a/runs", {"x": 1}, "text/event-stream", False),
        ("POST", "/agents/a/runs", None, "application/json", False),
        ("POST", "/threads/a/runs", None, "text/event-stream", False),
        ("POST", "/agents/a/runs/wait", None, "text/event-stream", False),
    ],
)
def test_it_is_known_by_its_route(method: str, path: str, body: Any, kind: str, found: bool) -> None:
    state = StreamState(method, f"https://os.example.com{path}", body)
    assert Agno().matches(state, Head(200, {"content-type": kind}, state.url)) is found


class Shallow:
    """`json` at a depth of the stack where what was read can no longer be written."""

    loads = staticmethod(json.loads)

    @staticmethod
    def dumps(*args: Any, **options: Any) -> str:
        raise RecursionError


def test_content_that_is_nested_too_deeply_is_known_by_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    first, last = frame("RunContent", 0, content=[[1]]), frame("RunCompleted", 1)
    monkeypatch.setattr(agno, "json", Shallow)
    result = play(Reply([first, "rst"]), Reply([first, last]))
    assert (len(result.events), result.outcome) == (2, Outcome.COMPLETED)


# --- bodies that are no `data=` -------------------------------------------------------------------------------------

FORM = "application/x-www-form-urlencoded"
MULTIPART = b'--B\r\nContent-Disposition: form-data; name="message"\r\n\r\nhi & bye=1\r\n--B--\r\n'


async def bodies(row: Row, content: Any, headers: dict[str, str]) -> list[RecordedRequest]:
    log = [
        ev('{"run_id":"r","event_index":0}', None, "RunStarted"),
        ev('{"run_id":"r","event_index":1}', None, "RunContent"),
        ev('{"run_id":"r","event_index":2}', None, "RunCompleted"),
    ]

    def rest(request: RecordedRequest) -> WebReply | None:
        resumed = request.path.endswith("/resume")
        return WebReply(headers={"content-type": "text/event-stream"}, body=b"".join(log[1:])) if resumed else None

    with FlakyServer(log, [Fault.cut(after_events=1)], on_request=rest) as server:
        url = f"{server.origin}/agents/a/runs"
        async with row.connect("POST", url, content=content, headers=headers, protocol=Agno()) as stream:
            assert len(await row.read(stream)) == 3
        return list(server.requests)


@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx2"], indirect=True)
@pytest.mark.parametrize(
    ("content", "merged"),
    [
        (b"message=hi", b"message=hi&last_event_index=0"),
        # Bytes that are no UTF-8, names that come twice, another spelling of a space.
        (b"m=h%FFi+%E9&f=a%20b&f=&e", b"m=h%FFi+%E9&f=a%20b&f=&e&last_event_index=0"),
        (b"m=\xff", b"m=\xff&last_event_index=0"),
        ("m=\u00e9", b"m=\xc3\xa9&last_event_index=0"),
        (b"last_event_index=7&m=1&last%5Fevent_index=8", b"m=1&last_event_index=0"),
        (b"", b"last_event_index=0"),
    ],
)
async def test_a_field_is_merged_into_a_form_as_it_stands(row: Row, content: Any, merged: bytes) -> None:
    first, second = await bodies(row, content, {"Content-Type": FORM})
    assert first.body == (content.encode() if isinstance(content, str) else content)
    assert (second.body, second.headers["content-type"]) == (merged, FORM)


@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx2"], indirect=True)
async def test_a_length_of_the_callers_is_of_the_first_body_alone(row: Row) -> None:
    first, second = await bodies(row, b"message=hi", {"Content-Type": FORM, "Content-Length": "10"})
    assert (first.headers["content-length"], second.headers["content-length"]) == ("10", "29")


@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx2"], indirect=True)
async def test_a_form_that_is_no_fields_is_refused(row: Row) -> None:
    with pytest.raises(TypeError, match="pass the body as data="):
        await bodies(row, MULTIPART, {"Content-Type": "multipart/form-data; boundary=B"})
