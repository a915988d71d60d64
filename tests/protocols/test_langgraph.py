"""
LangGraph runs and thread streams, against servers that do what langgraph-api 0.16.7 and langgraph-runtime-inmem 0.36.7 do.

Read on 2026-11-20: `api/runs`, `api/threads`, `inmem_stream.StreamManager.restore_messages`, `ops.Runs.Stream.join`,
and the join of langgraph-sdk 0.4.14.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest

import resumable_stream as rs
from resumable_stream._contract import Head, StreamState
from resumable_stream._errors import CursorExpired, ResponseRejected, RetriesExhausted, StreamInterrupted, UpstreamError
from resumable_stream._events import Delta, Outcome
from resumable_stream._notices import CursorIgnored, DuplicateDropped
from resumable_stream.protocols.langgraph import LangGraphRun, LangGraphThread
from resumable_stream.testing import FlakyServer
from resumable_stream.testing import Reply as Scripted
from resumable_stream.testing.server import RecordedRequest
from tests.core.simulation import CUTS, Reply, Result, Sent, Stream, cut_body, run
from tests.cutting import Where

URL = "https://api.example.com/mounted/threads/t-1/runs/stream"
RUN = "/mounted/threads/t-1/runs/r-1"
JOIN = f"https://api.example.com{RUN}/stream"
BODY = {"assistant_id": "a", "stream_mode": ["messages-tuple", "updates"], "stream_resumable": True, "stream_subgraphs": True}


def frame(event: str, data: Any, id: str | None) -> bytes:
    """CRLF, and the id behind the data."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"event: {event}\r\ndata: {text}\r\n{f'id: {id}' + chr(13) + chr(10) if id else ''}\r\n".encode()


def chunk(content: Any, **more: Any) -> list[Any]:
    return [{"content": content, "type": "AIMessageChunk", **more}, {}]


def call(arguments: str) -> list[Any]:
    return chunk("", tool_call_chunks=[{"args": arguments, "index": 1}])


# (event, data, milliseconds): the development server gives all of one millisecond the same id, equal ones among them.
LOG: list[tuple[str, Any, int]] = [
    ("metadata", {"run_id": "r-1", "attempt": 1}, 0),
    ("messages", [{"content": "Wie geht es?", "type": "human", "id": "h1"}, {}], 0),
    ("messages", chunk([{"type": "thinking", "thinking": "Hm."}]), 2),
    ("messages", chunk("Grüß "), 3),
    ("messages|sub:1", chunk("dich"), 3),
    ("messages|sub:1", chunk("!"), 3),
    ("messages|sub:1", chunk("!"), 3),
    ("messages", chunk([{"type": "text", "text": " 🦊", "index": 0}]), 4),
    ("messages", call('{"city":'), 5),
    ("messages", call('"Ulm"}'), 5),
    ("updates", {"tools": {"messages": [{"content": "18 °C", "type": "tool"}]}}, 6),
    ("messages", [{"content": "18 °C", "type": "tool", "id": "t1"}, {}], 6),
    ("messages", chunk("18 "), 7),
    ("messages", chunk("°C."), 8),
    ("updates", {"agent": {"messages": []}}, 8),
]
TEXT = "Grüß dich!! 🦊18 °C."
STATE = {"values": {"messages": ["all"]}, "next": [], "tasks": [], "metadata": {"run_id": "r-1"}}


# The least that has one of each: five kinds of cut behind each of its bytes.
BRIEF = [LOG[0], *LOG[4:7]]


def id_at(ms: int) -> str:
    return f"{1763600000000 + ms}-0"


def rows(log: Iterable[tuple[str, Any, int]]) -> list[tuple[str, Any]]:
    return [(event, data) for event, data, _ in log]


def raw(log: Iterable[tuple[str, Any, int]]) -> list[tuple[str, str]]:
    return [(event, json.dumps(data, ensure_ascii=False, separators=(",", ":"))) for event, data, _ in log]


def seen(result: Result) -> list[tuple[str, Any]]:
    return [(event.event, event.json()) for event in result.events]


_parts: dict[tuple[int, bool], list[bytes]] = {}


def parts(event: str, data: Any, ms: int, *, ids: bool = True) -> list[bytes]:
    """An event, and the heartbeat behind some."""
    key = (id(data), ids)
    if key not in _parts:
        _parts[key] = [frame(event, data, id_at(ms) if ids else None), *([b": heartbeat\r\n\r\n"] if ms % 3 == 0 else [])]
    return _parts[key]


def size_of(log: Iterable[tuple[str, Any, int]]) -> int:
    return sum(len(part) for entry in log for part in parts(*entry))


class RunServer:
    """
    Args:
        cuts: Of each stream answer in turn: `(bytes, kind)`, or `None`.
        resumable: The run was created with `stream_resumable`.
        statuses: Of the run, for each time it is asked for; the last one holds.
        kept: Events are still replayed.
        error: The run fails with this; the event is not stored, so a joined stream does not bring it again.
        seam: So many events of the first replay come again from the live queue.
    """

    def __init__(
        self,
        cuts: Iterable[tuple[int, str] | None] = (),
        *,
        resumable: bool = True,
        statuses: Iterable[str] = ("success",),
        kept: bool = True,
        error: Any = None,
        seam: int = 0,
        chunk: int | None = None,
        join: Reply | None = None,
        state: Any = STATE,
        log: list[tuple[str, Any, int]] = LOG,
    ) -> None:
        self.log = log
        self.cuts = list(cuts)
        self.resumable, self.kept, self.error, self.seam, self.chunk = resumable, kept, error, seam, chunk
        self.statuses = list(statuses)
        self.join, self.state = join, state
        self.created = 0

    def __call__(self, sent: Sent) -> Reply:
        where = (sent.method, sent.path)
        if where == ("POST", "/mounted/threads/t-1/runs/stream"):
            self.created += 1
            log = self.frames(self.log)
            if self.error is not None:
                log.append(frame("error", self.error, id_at(9) if self.resumable else None))
            headers = {"content-location": "/threads/t-1/runs/r-1", "location": "/threads/t-1/runs/r-1/stream"}
            return self.stream(log, headers)
        if where == ("GET", f"{RUN}/stream"):
            if self.join is not None:
                return self.join
            assert sent.cursor is not None, "without the header only what is new is sent"
            assert json.loads(sent.params["stream_mode"]) == ["messages-tuple", "updates", "metadata", "error"]
            assert (sent.params["stream_subgraphs"], sent.params["cancel_on_disconnect"]) == ("true", "0")
            assert sent.request.repeat == "query"
            stored = [entry for entry in self.log if id_at(entry[2]) > sent.cursor] if self.kept else []
            seam, self.seam = self.seam, 0
            return self.stream(self.frames([*stored, *(stored[-seam:] if seam else [])]), {})
        if where == ("GET", RUN):
            status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
            if status.isdigit():
                return Reply([b'{"detail":"Run not found"}'], status=int(status), type="application/json")
            return Reply([json.dumps({"run_id": "r-1", "status": status}).encode()], type="application/json")
        assert where == ("GET", "/mounted/threads/t-1/state"), where
        return Reply([json.dumps(self.state).encode()], type="application/json")

    def frames(self, log: Iterable[tuple[str, Any, int]]) -> list[bytes]:
        return [part for entry in log for part in parts(*entry, ids=self.resumable)]

    def stream(self, log: list[bytes], headers: dict[str, str]) -> Reply:
        cut = self.cuts.pop(0) if self.cuts else None
        return Reply(cut_body(b"".join(log), cut, self.chunk), headers=headers)


def created(server: RunServer, **options: Any) -> Stream:
    body = {**BODY, "stream_resumable": server.resumable}
    return Stream(server, method="POST", url=URL, json=body, protocol=LangGraphRun(), **options)


SIZE = len(b"".join(RunServer().frames(LOG)))
FIRST = len(frame(*LOG[0][:2], id_at(0)))


# --- cuts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_replay_from_the_first_id_ignores_no_cursor(count: int) -> None:
    """Before the second id the place is in front of the first one, so the replay begins as the run did."""
    log = [LOG[0], LOG[1], *LOG[2:6]]
    at = size_of(log[:count])
    for resumed in (False, True):
        stream = created(RunServer([] if resumed else [(at, "rst")], log=log))
        first = run(stream, at_most=count if resumed else 100)
        if resumed:
            place = rs.Checkpoint.from_token(stream.leave().token())
            stream = created(RunServer(log=log), checkpoint=place)
            first.events += run(stream).events
        assert [(event.event, event.data) for event in first.events] == raw(log)
        assert not stream.machine.stats.cursor_ignored and not stream.kinds(CursorIgnored)


def test_a_server_that_starts_over_later_is_found_out() -> None:
    def server(sent: Sent) -> Reply:
        assert sent.path == f"{RUN}/stream", sent.path
        return Reply([b"".join(parts(*entry)[0] for entry in LOG), b"event: end\r\ndata: null\r\n\r\n"])

    stream = created(RunServer())
    first = run(stream, at_most=5)
    rest = run(created(RunServer(), checkpoint=stream.leave()))
    assert not rest.stream.machine.stats.cursor_ignored
    over = Stream(server, method="POST", url=URL, json=BODY, protocol=LangGraphRun(), checkpoint=stream.checkpoint)
    again = run(over)
    assert [(event.event, event.data) for event in [*first.events, *again.events]] == [*raw(LOG), ("end", "null")]
    assert over.machine.stats.cursor_ignored


def test_a_run_that_is_cut_again_and_again_arrives_whole() -> None:
    for kind in ("rst", "fin", "half", "close"):
        result = run(created(RunServer([(position, kind) for position in (130, 400, 260, 333, 301, 500, 280)])))
        assert (seen(result), result.outcome) == (rows(LOG), Outcome.COMPLETED), kind


@pytest.mark.parametrize("cut", CUTS)
def test_a_run_without_ids_is_interrupted_and_never_ends_in_silence(cut: str, where: Where) -> None:
    """Without `stream_resumable` the server keeps nothing."""
    for position in where(RunServer(resumable=False).frames(LOG))[:-1]:
        server = RunServer([(position, cut)], resumable=False, statuses=["running"])
        result = run(created(server))
        count = len(result.events)
        assert seen(result) == rows(LOG)[:count], position
        if count:
            assert isinstance(result.error, StreamInterrupted), position
            assert [sent.path for sent in result.stream.sent if sent.path.endswith("/r-1/stream")] == []


def test_a_run_without_ids_ends_as_its_status_tells() -> None:
    result = run(created(RunServer(resumable=False)))
    assert (seen(result), result.outcome) == (rows(LOG), Outcome.COMPLETED)


# --- ids that repeat ------------------------------------------------------------------------------------------------


def test_the_cursor_is_the_id_before_the_last_one() -> None:
    result = run(created(RunServer()))
    before = {event.json()[0]["content"]: event.cursor for event in result.events if event.event == "messages|sub:1"}
    assert before == {"dich": id_at(2), "!": id_at(2)}
    assert [event.cursor for event in result.events[:3]] == ["-1", "-1", id_at(0)]
    assert [event.id for event in result.events] == [id_at(ms) for _, _, ms in LOG]


def test_equal_events_of_one_millisecond_are_all_delivered() -> None:
    twins = len(b"".join(RunServer().frames(LOG[:6]))) - len(b": heartbeat\r\n\r\n")
    result = run(created(RunServer([(twins, "rst")])))
    assert [event.data for event in result.events].count(result.events[5].data) == 2
    # Three of the second answer, and what shares the last id in the one that proves the end.
    assert result.stream.machine.stats.duplicates == 3 + 2


def test_events_that_come_again_where_the_replay_meets_the_live_queue_are_dropped() -> None:
    result = run(created(RunServer([(600, "rst")], seam=4)))
    assert (seen(result), result.outcome) == (rows(LOG), Outcome.COMPLETED)
    assert len(result.stream.kinds(DuplicateDropped)) >= 4


# --- the end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("success", Outcome.COMPLETED),
        ("error", Outcome.FAILED),
        ("timeout", Outcome.FAILED),
        ("interrupted", Outcome.INCOMPLETE),
    ],
)
def test_the_status_of_the_run_tells_how_it_ended(status: str, outcome: Outcome) -> None:
    result = run(created(RunServer(statuses=[status])))
    assert (seen(result), result.outcome) == (rows(LOG), outcome)
    assert [sent.path for sent in result.stream.sent][1:] == [RUN, f"{RUN}/stream"]


def test_a_run_that_ended_between_the_close_and_the_question_is_read_to_its_end() -> None:
    """The status alone would end a stream whose second half was never sent."""
    result = run(created(RunServer([(500, "close"), (60, "close")], statuses=["success"])))
    assert (seen(result), result.outcome) == (rows(LOG), Outcome.COMPLETED)


def test_a_close_while_the_run_runs_is_a_cut() -> None:
    result = run(created(RunServer([(FIRST * 2, "close")], statuses=["running", "pending", "success"])))
    assert (seen(result), result.outcome) == (rows(LOG), Outcome.COMPLETED)


def test_a_silent_connection_is_no_failed_attempt_while_the_run_runs() -> None:
    silences: list[tuple[int, str] | None] = [(FIRST, "silence"), *[(0, "silence")] * 20]
    result = run(created(RunServer(silences, statuses=["running"] * 20 + ["success"])))
    assert (seen(result), result.outcome) == (rows(LOG), Outcome.COMPLETED)


def test_an_error_event_ends_the_run_as_failed() -> None:
    result = run(created(RunServer(error={"error": "ValueError", "message": "no"})))
    assert (len(result.events), result.outcome) == (len(LOG) + 1, Outcome.FAILED)
    assert [sent.method for sent in result.stream.sent] == ["POST"]


def test_an_error_event_that_is_not_replayed_still_fails_the_run() -> None:
    server = RunServer([(SIZE + 3, "rst")], error={"error": "ValueError", "message": "no"}, statuses=["error"])
    result = run(created(server))
    assert (seen(result), result.outcome) == (rows(LOG), Outcome.FAILED)


def test_an_event_named_end_ends_it_where_a_server_sends_one() -> None:
    reply = Reply([frame("values", {}, "1-0"), frame("end", None, None)], headers={"content-location": "/threads/t-1/runs/r-1"})
    result = run(Stream(lambda sent: reply, method="POST", url=URL, json=BODY, protocol=LangGraphRun()))
    assert ([event.event for event in result.events], result.outcome) == (["values", "end"], Outcome.COMPLETED)


# --- lost -----------------------------------------------------------------------------------------------------------


def test_a_history_that_has_expired_is_not_taken_for_the_end() -> None:
    """The answer is empty: not even the events that share the last id, which the cursor asks for again, are in it."""
    result = run(created(RunServer([(500, "rst")], kept=False)))
    assert isinstance(result.error, CursorExpired)
    assert result.error.checkpoint is not None
    assert result.error.checkpoint.offset == len(result.events)


def test_the_state_of_the_thread_stands_in_for_an_expired_history() -> None:
    result = run(created(RunServer([(500, "rst")], kept=False), on_lost="snapshot"))
    last = result.events[-1]
    assert (last.event, last.json(), last.reset, result.outcome) == ("values", STATE["values"], True, Outcome.COMPLETED)


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({"next": ["agent"], "tasks": [{"interrupts": [{"value": "sure?"}]}]}, Outcome.INCOMPLETE),
        ({"next": ["agent"], "tasks": [{"error": "ValueError"}]}, Outcome.FAILED),
        ({"next": ["agent"]}, None),
        ({"metadata": {"run_id": "another"}}, None),
    ],
)
def test_a_state_tells_how_the_run_ended_or_is_of_no_use(change: dict[str, Any], outcome: Outcome | None) -> None:
    result = run(created(RunServer([(500, "rst")], kept=False, state={**STATE, **change}), on_lost="snapshot"))
    assert result.outcome is outcome
    assert isinstance(result.error, CursorExpired) is (outcome is None)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply([b"{}"], status=404, type="application/json"), CursorExpired),
        (Reply([b"{}"], status=410, type="application/json"), CursorExpired),
        (Reply([b'{"detail":"Invalid"}'], status=422, type="application/json"), CursorExpired),
        (Reply([b"{}"], status=400, type="application/json"), ResponseRejected),
        (Reply([b"{}"], status=401, type="application/json"), ResponseRejected),
        (Reply([b"{}"], status=403, type="application/json"), ResponseRejected),
        (Reply([b"{}"], status=408, type="application/json"), RetriesExhausted),
        (Reply([b"{}"], status=429, type="application/json"), RetriesExhausted),
        (Reply([b"{}"], status=503, type="application/json"), RetriesExhausted),
        (Reply([frame("error", {"error": "HTTPException", "message": "404: Run not found"}, None)]), UpstreamError),
    ],
    ids=["404", "410", "422", "400", "401", "403", "408", "429", "503", "404 inside 200"],
)
def test_what_a_refused_join_becomes(reply: Reply, expected: type[Exception]) -> None:
    result = run(created(RunServer([(500, "rst")], join=reply)))
    assert isinstance(result.error, expected)
    assert result.events


def test_a_run_that_was_deleted_is_lost() -> None:
    result = run(created(RunServer([(500, "close")], statuses=["404"])))
    assert isinstance(result.error, CursorExpired)


def test_a_location_on_another_origin_gets_nothing() -> None:
    head = {"content-location": "https://evil.example.net/threads/t-1/runs/r-1"}
    replies = [Reply([*RunServer().frames(LOG[:3]), "rst"], headers=head)]
    server: Callable[[Sent], Reply] = lambda sent: replies.pop() if replies else RunServer()(sent)  # noqa: E731
    result = run(Stream(server, method="POST", url=URL, json=BODY, protocol=LangGraphRun()))
    assert seen(result) == rows(LOG)
    assert all(sent.url.startswith("https://api.example.com/") for sent in result.stream.sent)


def test_a_stateless_run_cannot_be_joined() -> None:
    reply = Reply([frame("values", {}, "1-0"), "rst"], headers={"content-location": "/runs/r-1", "location": "/runs/r-1/stream"})
    url = "https://api.example.com/runs/stream"
    result = run(Stream(lambda sent: reply, method="POST", url=url, json=BODY, protocol=LangGraphRun()))
    assert isinstance(result.error, StreamInterrupted)
    assert len(result.stream.sent) == 1


# --- another process ------------------------------------------------------------------------------------------------


def test_another_process_continues_behind_any_event() -> None:
    for count in range(1, len(LOG)):
        stream = created(RunServer())
        first = [next(stream) for _ in range(count)]
        token = stream.leave().token()
        place = rs.Checkpoint.from_token(token)
        rest = run(Stream(RunServer(), method="POST", url=place.url, protocol=LangGraphRun(), checkpoint=place))
        assert [(event.event, event.json()) for event in first] + seen(rest) == rows(LOG), count
        assert rest.outcome is Outcome.COMPLETED
        assert rest.stream.sent[0].path == f"{RUN}/stream"


# --- content --------------------------------------------------------------------------------------------------------


def test_text_reasoning_and_tool_arguments_are_told_apart() -> None:
    protocol = LangGraphRun()
    deltas = [delta for event in run(created(RunServer([(600, "fin")]))).events for delta in protocol.deltas(event)]
    assert "".join(delta.text for delta in deltas if delta.kind == "text") == TEXT
    assert [delta for delta in deltas if delta.kind != "text"] == [
        Delta("reasoning", "Hm."),
        Delta("tool", '{"city":', 1),
        Delta("tool", '"Ulm"}', 1),
    ]


@pytest.mark.parametrize("data", ["not json", "[]", "null", "[1,2]", '[{"type":"ai"},{}]', '[{"type":"ai","content":[7,{}]},{}]'])
def test_a_message_of_another_shape_has_no_text(data: str) -> None:
    assert list(LangGraphRun().deltas(rs.StreamEvent("messages", data))) == []


# --- the thread -----------------------------------------------------------------------------------------------------

THREAD = "https://api.example.com/threads/t-1/stream"


class ThreadServer:
    """Never ends: the last answer is silent until the test has what it wants."""

    def __init__(self, cuts: list[tuple[int, str]]) -> None:
        self.cuts = cuts

    def __call__(self, sent: Sent) -> Reply:
        assert (sent.method, sent.url.partition("?")[0]) == ("GET", THREAD)
        assert sent.cursor is None or sent.cursor.replace("-", "", 1).isdigit(), "anything else is answered 422"
        log = [entry for entry in LOG if sent.cursor is None or id_at(entry[2]) > sent.cursor]
        done = frame("metadata", {"status": "run_done", "run_id": "r-1"}, id_at(9))
        body = b"".join([*RunServer().frames(log), done])
        cut = self.cuts.pop(0) if self.cuts else None
        return Reply([*cut_body(body, cut, None), *(["silence"] if cut is None else [])])


def test_a_thread_goes_on_after_an_error_of_one_run() -> None:
    log = [frame("error", {"error": "ValueError"}, "1-0"), frame("end", None, "2-0"), frame("values", {}, "3-0")]
    result = run(Stream(lambda sent: Reply([*log, "silence"]), url=THREAD, protocol=LangGraphThread()), at_most=3)
    assert [event.event for event in result.events] == ["error", "end", "values"]


@pytest.mark.parametrize(("status", "expected"), [(404, CursorExpired), (422, CursorExpired), (503, RetriesExhausted)])
def test_what_a_refused_thread_becomes(status: int, expected: type[Exception]) -> None:
    replies = [Reply([frame("values", {}, "1-0"), "rst"])]
    server: Callable[[Sent], Reply] = lambda sent: replies.pop() if replies else Reply([b"{}"], status=status)  # noqa: E731
    result = run(Stream(server, url=THREAD, protocol=LangGraphThread()))
    assert isinstance(result.error, expected)


# --- detection ------------------------------------------------------------------------------------------------------

SSE = {"content-type": "text/event-stream; charset=utf-8"}
RUN_HEAD = {**SSE, "content-location": "/threads/t/runs/r"}


@pytest.mark.parametrize(
    ("method", "url", "headers", "expected"),
    [
        ("POST", "https://h/threads/t/runs/stream", RUN_HEAD, LangGraphRun),
        ("POST", "https://h/api/threads/t/runs/stream?x=1", RUN_HEAD, LangGraphRun),
        (
            "GET",
            "https://h/threads/0198f3a2-1111-7000-8000-000000000001/runs/0198f3a2-1111-7000-8000-000000000002/stream",
            SSE,
            LangGraphRun,
        ),
        ("GET", "https://h/threads/0198f3a2-1111-7000-8000-000000000001/stream?stream_modes=lifecycle", SSE, LangGraphThread),
        # Agent Servers have UUIDs; the chat of somebody else has such paths too.
        ("GET", "https://h/api/threads/7/runs/9/stream", SSE, None),
        ("GET", "https://h/api/threads/7/stream", SSE, None),
        ("POST", "https://h/threads/t/runs/stream", SSE, None),
        ("POST", "https://h/v1/threads/t/runs", RUN_HEAD, None),
        ("POST", "https://h/runs/stream", RUN_HEAD, None),
        ("POST", "https://h/threads/t/stream/events", SSE, None),
        ("GET", "https://h/stream", SSE, None),
        ("GET", "https://h/threads/t/runs/r/stream", {"content-type": "application/json"}, None),
    ],
)
def test_what_is_detected(method: str, url: str, headers: dict[str, str], expected: type | None) -> None:
    state, head = StreamState(method, url, {"assistant_id": "a"}), Head(200, headers, url)
    for kind in (LangGraphRun, LangGraphThread):
        assert kind().matches(state, head) is (kind is expected)


# --- sockets --------------------------------------------------------------------------------------------------------


def respond(server: RunServer) -> Callable[[RecordedRequest], Scripted | None]:
    """The side requests; streams go through the schedule of the real server."""

    def answer(request: RecordedRequest) -> Scripted | None:
        if request.path.endswith("/cancel"):
            return Scripted(status=202)
        if request.path.endswith("/runs/r-1"):
            return Scripted(headers={"content-type": "application/json"}, body=b'{"status":"success"}')
        return None

    return answer


def served(flaky_server: Callable[..., FlakyServer], schedule: Iterable[Any] = ()) -> FlakyServer:
    """The real server replays strictly behind the last event of an id, as the string comparison of the runtime does."""
    return flaky_server(
        b"".join(RunServer().frames(LOG)),
        schedule,
        path="/threads/t-1/runs/stream",
        location="/threads/t-1/runs/r-1/stream",
        content_location="/threads/t-1/runs/r-1",
        on_request=respond(RunServer()),
    )


@pytest.mark.parametrize("driver", ["sync-httpx", "asyncio-httpx2"])
@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
def test_a_run_arrives_whole_over_sockets(driver: str, how: Any, flaky_server: Callable[..., FlakyServer]) -> None:
    from tests.conftest import Row

    row = Row(*driver.split("-"))  # type: ignore[arg-type]

    async def scenario() -> None:
        for position in range(40, SIZE, SIZE // 6):
            server = served(flaky_server, [rs_cut(position, how), rs_cut(170, how)])
            stream = row.connect("POST", server.url, json=BODY, protocol=LangGraphRun())
            async with stream:
                text = "".join([piece async for piece in stream.iter_text()])
            assert (text, stream.outcome) == (TEXT, Outcome.COMPLETED), position
            assert [request.method for request in server.requests].count("POST") == 1

    row.run(scenario)


def rs_cut(position: int, how: Any) -> Any:
    from resumable_stream.testing import Fault

    return Fault.cut(after_bytes=position, how=how)


def test_a_run_is_cancelled_at_its_own_address(flaky_server: Callable[..., FlakyServer]) -> None:
    server = served(flaky_server)
    with rs.connect("POST", server.url, json=BODY, protocol=LangGraphRun()) as stream:
        next(iter(stream))
        stream.cancel()
    cancelled = server.requests[-1]
    assert (cancelled.method, cancelled.path) == ("POST", "/threads/t-1/runs/r-1/cancel")
    assert cancelled.query == {"wait": "0", "action": "interrupt"}


def test_a_token_continues_a_run_in_another_process(flaky_server: Callable[..., FlakyServer]) -> None:
    server = served(flaky_server)
    headers = {"x-api-key": "secret-key"}
    with rs.connect("POST", server.url, json=BODY, headers=headers, protocol=LangGraphRun()) as stream:
        events = [next(stream) for _ in range(6)]
    assert "secret-key" not in stream.checkpoint.to_json()
    with rs.resume(stream.token, origin=server.url, headers=headers, protocol=LangGraphRun()) as rest:
        events += list(rest)
    assert [(event.event, event.json()) for event in events] == rows(LOG)
