"""`TanStackAI` and `TanStackAINDJSON`: durable runs (npm `@tanstack/ai` 0.58.0, `@tanstack/ai-client`)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from resumable_stream._checkpoint import Checkpoint
from resumable_stream._contract import Head, Position, Settled, StreamState
from resumable_stream._errors import CursorExpired, ResponseRejected, RetriesExhausted, StreamInterrupted, UpstreamError
from resumable_stream._events import Delta, Outcome, StreamEvent
from resumable_stream.protocols.tanstack import TanStackAI, TanStackAINDJSON
from resumable_stream.testing import Fault, FlakyServer
from resumable_stream.testing import Reply as WebReply
from resumable_stream.testing.server import RecordedRequest

from ..conftest import Row
from ..core.simulation import Reply, Sent, Stream, Wait, cut_body, policy, run, script

URL = "https://app.example.com/api/chat"
BODY = {"threadId": "t1", "runId": "run 1", "messages": []}
CHUNKS: list[dict[str, Any]] = [
    {"type": "CUSTOM", "name": "run.accepted", "value": {}},
    {"type": "RUN_STARTED", "runId": "run 1"},
    {"type": "REASONING_MESSAGE_CONTENT", "delta": "Hm, Köln."},
    {"type": "TOOL_CALL_START", "toolCallId": "c", "toolCallName": "weather"},
    {"type": "TOOL_CALL_ARGS", "toolCallId": "c", "delta": '{"city":"Köln"}'},
    {"type": "TOOL_CALL_END", "toolCallId": "c"},
    {"type": "RUN_FINISHED", "runId": "run 1", "finishReason": "tool_calls"},
    {"type": "TOOL_CALL_RESULT", "toolCallId": "c", "content": "7"},
    {"type": "TEXT_MESSAGE_START", "messageId": "m"},
    {"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": "Sieben "},
    {"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": "Grad "},
    {"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": "Grad "},
    {"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": "☔"},
    {"type": "RUN_FINISHED", "runId": "run 1", "metadata": {"tanstack": {"finishReason": "stop"}}},
]
TEXT = "Sieben Grad Grad ☔"
PROTOCOLS = {"sse": TanStackAI(), "ndjson": TanStackAINDJSON()}
TYPES = {"sse": "text/event-stream", "ndjson": "application/x-ndjson"}


def offset(at: int) -> str:
    return f"memory:v1:run%201:{at + 1}"


def wire(form: str, at: int, chunk: dict[str, Any], *, tagged: bool = True) -> bytes:
    text = json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))
    if form == "sse":
        return (f"id: {offset(at)}\n" if tagged else "").encode() + f"data: {text}\n\n".encode()
    if tagged:
        text = json.dumps({"id": offset(at), "chunk": chunk}, ensure_ascii=False, separators=(",", ":"))
    return f"{text}\n".encode()


def log(form: str, chunks: list[dict[str, Any]] = CHUNKS, **options: bool) -> list[bytes]:
    return [wire(form, at, chunk, **options) for at, chunk in enumerate(chunks)]


def chunks_of(form: str, result: Any) -> list[Any]:
    return [PROTOCOLS[form].chunk(event) for event in result.events]  # type: ignore[attr-defined]


class Route:
    """The log is read strictly after the offset; a log that is closed and has nothing more is an empty answer."""

    def __init__(
        self, form: str, chunks: list[dict[str, Any]], *, cuts: Any = (), size: Any = None, method: str = "POST"
    ) -> None:
        self.form, self.blocks, self.cuts, self.size, self.method = form, log(form, chunks), list(cuts), size, method
        self.answers = 0

    def __call__(self, sent: Sent) -> Reply:
        # The same request each time; only the offset is added.
        assert (sent.method, sent.path, sent.json) == (self.method, "/api/chat", BODY if self.method == "POST" else None)
        start = int(sent.cursor.rpartition(":")[2]) if sent.cursor else 0
        assert bool(start) == bool(self.answers)
        cut = self.cuts[self.answers] if self.answers < len(self.cuts) else None
        self.answers += 1
        steps = cut_body(b"".join(self.blocks[start:]), cut, self.size, 21)
        if self.form == "ndjson":
            steps = [b'{"id' if step == b"data: ha" else step for step in steps]
        return Reply(steps, type=TYPES[self.form])


def post(server: Any, form: str = "sse", **options: Any) -> Stream:
    return Stream(server, **{"method": "POST", "url": URL, "json": BODY, "protocol": PROTOCOLS[form], **options})


def play(*steps: Any, form: str = "sse", **options: Any) -> Any:
    return run(post(script(*steps), form, **options))


HALF = Reply([b"".join(log("sse")[:5]), "rst"])

# --- cuts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", TYPES)
def test_resumes_may_be_cut_too(form: str) -> None:
    cuts = [(at, ("rst", "fin", "silence")[at % 3]) for at in range(150, 700, 41)]
    result = run(post(Route(form, CHUNKS, cuts=cuts), form))
    assert (chunks_of(form, result), result.outcome) == (CHUNKS, Outcome.COMPLETED)
    assert [event.cursor for event in result.events] == [offset(at) for at in range(len(CHUNKS))]


@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
@pytest.mark.parametrize("form", TYPES)
@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx"], indirect=True)
async def test_over_sockets(row: Row, form: Any, how: Any) -> None:
    blocks = log(form)

    def resume(request: RecordedRequest) -> WebReply | None:
        assert (request.method, request.json()) == ("POST", BODY)
        if request.last_event_id is None:
            return None
        rest = blocks[int(request.last_event_id.rpartition(":")[2]) :]
        return WebReply(body=b"".join(rest), headers={"content-type": TYPES[form]})

    positions = range(len(blocks[0]), len(b"".join(blocks)) - 150, 211)
    faults = [Fault.cut(after_bytes=at, how=how) for at in positions]
    with FlakyServer(blocks, faults, format=form, on_request=resume) as server:
        for _ in positions:
            async with row.connect("POST", server.url, json=BODY, protocol=PROTOCOLS[form]) as stream:
                assert await stream.read_text() == TEXT
            assert stream.outcome is Outcome.COMPLETED


# --- turns ----------------------------------------------------------------------------------------------------------


def test_a_cut_between_two_turns_is_a_cut() -> None:
    for how in ("rst", "fin", "silence", "close"):
        result = play(Reply([*log("sse")[:7], how]), Reply(log("sse")[7:]))
        assert (chunks_of("sse", result), result.outcome) == (CHUNKS, Outcome.COMPLETED)


def test_a_turn_whose_tools_are_the_callers_ends_with_the_close() -> None:
    """The run hands over to the client, and its log is closed: an empty answer says so."""
    result = play(Reply(log("sse")[:7]), Reply())
    assert (chunks_of("sse", result), result.outcome, result.error) == (CHUNKS[:7], Outcome.ENDED, None)


def test_a_clean_close_elsewhere_is_never_an_end() -> None:
    result = play(Reply(log("sse")[:9]), *[Reply()] * 9, delay=policy(3))
    assert isinstance(result.error, RetriesExhausted)


def test_the_turn_is_remembered_in_another_process() -> None:
    stream = post(script(Reply([*log("sse")[:7], Wait(5.0)])))
    first = run(stream, at_most=7)
    assert len(first.data) == 7 and stream.leave().extra["turn"] == "tools"
    other = post(script(Reply(), Reply()), checkpoint=Checkpoint.from_token(stream.checkpoint.token()))
    assert run(other).outcome is Outcome.ENDED


@pytest.mark.parametrize(
    ("chunk", "end"),
    [
        ({"type": "RUN_FINISHED"}, Settled(Outcome.COMPLETED)),
        ({"type": "RUN_FINISHED", "finishReason": "stop"}, Settled(Outcome.COMPLETED)),
        ({"type": "RUN_FINISHED", "finishReason": "length"}, Settled(Outcome.INCOMPLETE)),
        ({"type": "RUN_FINISHED", "metadata": {"tanstack": {"finishReason": "content_filter"}}}, Settled(Outcome.INCOMPLETE)),
        ({"type": "RUN_FINISHED", "outcome": {"type": "interrupt"}}, Settled(Outcome.INCOMPLETE)),
        ({"type": "RUN_FINISHED", "finishReason": "tool_calls"}, None),
        ({"type": "RUN_FINISHED", "metadata": {"tanstack": {"finishReason": "tool_calls"}}}, None),
        ({"type": "RUN_ERROR", "message": "boom"}, Settled(Outcome.FAILED)),
        ({"type": "RUN_ERROR", "message": "Request aborted", "code": "aborted"}, Settled(Outcome.CANCELLED)),
        ({"type": "RUN_STARTED"}, Settled(None)),
        ({"type": "TEXT_MESSAGE_CONTENT", "delta": '"RUN_FINISHED"'}, None),
    ],
)
@pytest.mark.parametrize("form", TYPES)
def test_what_ends_a_run(form: str, chunk: dict[str, Any], end: Any) -> None:
    data = json.dumps(chunk if form == "sse" else {"id": "o1", "chunk": chunk})
    assert PROTOCOLS[form].end(StreamEvent(data=data)) == end


def test_a_failure_is_delivered() -> None:
    failed = wire("sse", 5, {"type": "RUN_ERROR", "message": "boom"}, tagged=False)
    result = play(Reply([*log("sse")[:5], failed]))
    assert (len(result.data), result.outcome) == (6, Outcome.FAILED)


# --- answers to a resume --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, ResponseRejected),
        (401, ResponseRejected),
        (404, CursorExpired),
        (429, RetriesExhausted),
        (500, RetriesExhausted),
        (503, RetriesExhausted),
    ],
)
def test_what_a_status_to_the_resume_means(status: int, error: type) -> None:
    result = play(HALF, *[Reply(status=status, type="")] * 9, delay=policy(3))
    assert (type(result.error), chunks_of("sse", result)) == (error, CHUNKS[:5])


def test_a_run_that_the_server_forgot() -> None:
    text = 'Unknown or expired memory stream run: "run 1"'
    result = play(HALF, Reply([wire("sse", 0, {"type": "RUN_ERROR", "message": text}, tagged=False)]))
    assert isinstance(result.error, UpstreamError) and result.error.type == "unknown run"
    assert result.error.checkpoint is not None and result.error.checkpoint.cursor == offset(4)


@pytest.mark.parametrize("form", TYPES)
def test_a_route_without_durability_is_never_asked_twice(form: str) -> None:
    blocks = log(form, tagged=False)
    for steps in ([*blocks[:5], "rst"], blocks[:5]):
        result = play(Reply(steps, type=TYPES[form]), form=form)
        assert (type(result.error), len(result.data), len(result.stream.sent)) == (StreamInterrupted, 5, 1)
    assert play(Reply(blocks, type=TYPES[form]), form=form).outcome is Outcome.COMPLETED


@pytest.mark.parametrize("form", TYPES)
def test_an_overlap_is_dropped(form: str) -> None:
    blocks = log(form)
    half = Reply([*blocks[:11], "rst"], type=TYPES[form])
    result = play(half, Reply(blocks[9:], type=TYPES[form]), form=form)
    assert (chunks_of(form, result), result.stream.machine.stats.duplicates) == (CHUNKS, 2)


def test_an_empty_offset_takes_the_place_back() -> None:
    assert PROTOCOLS["ndjson"].position(StreamEvent(data='{"id":"","chunk":{}}')) == Position("", None, None)
    blocks = [*log("ndjson")[:3], b'{"id":"","chunk":{"type":"CUSTOM"}}\n', "rst"]
    assert isinstance(play(Reply(blocks, type=TYPES["ndjson"]), form="ndjson").error, StreamInterrupted)


# --- text, going on elsewhere, detection ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", TYPES)
def test_the_deltas(form: str) -> None:
    events = run(post(Route(form, CHUNKS), form)).events
    assert [delta for event in events for delta in PROTOCOLS[form].deltas(event)] == [
        Delta("reasoning", "Hm, Köln."),
        Delta("tool", '{"city":"Köln"}'),
        *(Delta("text", text) for text in ("Sieben ", "Grad ", "Grad ", "☔")),
    ]


@pytest.mark.parametrize("data", ["", "no json", "[]", '{"id":5,"chunk":7}', '"RUN_ERROR"', '{"type":"TEXT_MESSAGE_CONTENT"}'])
@pytest.mark.parametrize("form", TYPES)
def test_odd_data_does_no_harm(form: str, data: str) -> None:
    protocol, event = PROTOCOLS[form], StreamEvent(data=data)
    assert (list(protocol.deltas(event)), protocol.end(event), protocol.error(event)) == ([], None, None)
    assert protocol.position(event).cursor is None


@pytest.mark.parametrize("form", TYPES)
def test_another_process_goes_on(form: str) -> None:
    for count in range(1, len(CHUNKS)):
        stream = post(Route(form, CHUNKS), form)
        first = run(stream, at_most=count)
        server = Route(form, CHUNKS)
        server.answers = 1
        second = run(post(server, form, checkpoint=Checkpoint.from_token(stream.leave().token())))
        assert chunks_of(form, first) + chunks_of(form, second) == CHUNKS


def test_a_join_reads_from_the_start_and_resumes() -> None:
    url = f"{URL}?offset=-1&runId=run+1"
    server = Route("sse", CHUNKS, cuts=[(300, "rst")], method="GET")
    result = run(post(server, method="GET", url=url, json=None))
    assert (chunks_of("sse", result), result.outcome) == (CHUNKS, Outcome.COMPLETED)
    assert [sent.params for sent in result.stream.sent] == [{"offset": "-1", "runId": "run 1"}] * 2


def test_there_is_no_call_that_stops_it() -> None:
    assert TanStackAI().cancel_request(StreamState("POST", URL, BODY)) is None


@pytest.mark.parametrize(
    ("method", "query", "kind", "found"),
    [
        ("GET", "?offset=-1&runId=r", "text/event-stream", "sse"),
        ("GET", "?offset=-1&runId=r", "application/x-ndjson", "ndjson"),
        ("GET", "?offset=-1", "text/event-stream", None),
        ("GET", "", "text/event-stream", None),
        # A POST looks like any AG-UI run.
        ("POST", "?offset=-1&runId=r", "text/event-stream", None),
        ("GET", "?offset=-1&runId=r", "text/html", None),
    ],
)
def test_only_a_join_is_recognised(method: str, query: str, kind: str, found: str | None) -> None:
    state = StreamState(method, URL + query, BODY if method == "POST" else None)
    matching = [form for form in TYPES if PROTOCOLS[form].matches(state, Head(200, {"content-type": kind}, URL))]
    assert matching == ([found] if found else [])
