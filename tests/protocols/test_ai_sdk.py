"""`AISDKStream`: the UI message stream of the Vercel AI SDK (ai-sdk.dev, "Stream protocols", "Chatbot resume streams")."""

from __future__ import annotations

import json
from typing import Any

import pytest

from resumable_stream._checkpoint import Checkpoint
from resumable_stream._contract import Head, Settled, StreamState
from resumable_stream._errors import (
    CursorExpired,
    ReplayDiverged,
    ResponseRejected,
    RetriesExhausted,
    StreamInterrupted,
    StreamReset,
)
from resumable_stream._events import Delta, Outcome, StreamEvent, TextReset
from resumable_stream.protocols.ai_sdk import AISDKStream
from resumable_stream.protocols.workflow import WorkflowRun
from resumable_stream.testing import Fault, FlakyServer
from resumable_stream.testing import Reply as WebReply
from resumable_stream.testing.server import RecordedRequest

from ..conftest import Row
from ..core.simulation import CUTS, Reply, Sent, Stream, cut_body, ev, play, policy, run

URL = "https://app.example.com/api/chat"
BODY = {"id": "chat/1 é", "messages": [{"role": "user", "parts": [{"type": "text", "text": "hi"}]}], "trigger": "submit-message"}
HEADERS = {"x-vercel-ai-ui-message-stream": "v1", "x-accel-buffering": "no"}

PARTS: list[dict[str, Any]] = [
    {"type": "start", "messageId": "m1"},
    {"type": "start-step"},
    {"type": "reasoning-start", "id": "r0"},
    {"type": "reasoning-delta", "id": "r0", "delta": "Über "},
    {"type": "reasoning-end", "id": "r0"},
    {"type": "tool-input-start", "toolCallId": "t1", "toolName": "weather"},
    {"type": "tool-input-delta", "toolCallId": "t1", "inputTextDelta": '{"city":"Köln"}'},
    {"type": "tool-input-available", "toolCallId": "t1", "toolName": "weather", "input": {"city": "Köln"}},
    {"type": "tool-output-available", "toolCallId": "t1", "output": {"c": 7}},
    {"type": "data-note", "data": {"type": "finish"}},
    {"type": "text-start", "id": "0"},
    {"type": "text-delta", "id": "0", "delta": "Sieben ☔"},
    {"type": "text-delta", "id": "0", "delta": ' "finish"'},
    {"type": "text-delta", "id": "0", "delta": ' "finish"'},
    {"type": "text-end", "id": "0"},
    {"type": "finish-step"},
    {"type": "finish"},
]
TEXT = 'Sieben ☔ "finish" "finish"'


def wire(part: dict[str, Any]) -> bytes:
    return ev(json.dumps(part, ensure_ascii=False, separators=(",", ":")))


BLOCKS = [*map(wire, PARTS[:4]), b": keep-alive\n\n", *map(wire, PARTS[4:]), ev("[DONE]")]
WIRE = b"".join(BLOCKS)
EXPECTED = [json.dumps(part, ensure_ascii=False, separators=(",", ":")) for part in PARTS] + ["[DONE]"]
FINISHED_AT = WIRE.index(wire(PARTS[-1])) + len(wire(PARTS[-1]))
# What is cut behind each byte: a part of each kind, since the price is the square of the bytes.
BRIEF = [wire(PARTS[at]) for at in (0, 1, 2, 3, 6, 10, 11, 13, 13, 15)] + [b": \n\n", wire(PARTS[16]), ev("[DONE]")]


class Chat:
    """The route of the SDK's guide: POST starts an answer, GET replays it from its start while it is being made."""

    def __init__(self, body: bytes = WIRE, *, cuts: Any = (), chunk: Any = None) -> None:
        self.body, self.cuts, self.chunk, self.answers = body, list(cuts), chunk, 0

    def __call__(self, sent: Sent) -> Reply:
        first = self.answers == 0
        assert (sent.method, sent.path) == (("POST", "/api/chat") if first else ("GET", "/api/chat/chat%2F1%20%C3%A9/stream"))
        assert sent.json == (BODY if first else None)
        cut = self.cuts[self.answers] if self.answers < len(self.cuts) else None
        self.answers += 1
        return Reply(cut_body(self.body, cut, self.chunk, 21), headers=HEADERS)


def post(server: Any, **options: Any) -> Stream:
    return Stream(server, **{"method": "POST", "url": URL, "json": BODY, "protocol": AISDKStream(), **options})


def reply(*steps: Any, **options: Any) -> Reply:
    return Reply(steps, headers=HEADERS, **options)


HALF = reply(b"".join(BLOCKS[:5]), "rst")


# --- cuts -----------------------------------------------------------------------------------------------------------


def test_many_cuts_in_one_answer() -> None:
    cuts = [(at, CUTS[at % len(CUTS)]) for at in range(30, FINISHED_AT, 29)]
    result = run(post(Chat(cuts=cuts)))
    assert (result.data, result.outcome) == (EXPECTED, Outcome.COMPLETED)
    assert result.stream.machine.stats.duplicates > 100


@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx"], indirect=True)
async def test_over_sockets(row: Row, how: Any) -> None:
    positions = range(1, FINISHED_AT - 1, 97)
    schedule = [fault for at in positions for fault in (Fault.cut(after_bytes=at, how=how), None)]
    with FlakyServer(WIRE, schedule, headers=HEADERS, ignore_cursor=True) as server:
        for _ in positions:
            async with row.connect("POST", f"{server.origin}/api/chat", json=BODY, protocol=AISDKStream()) as stream:
                assert await stream.read_text() == TEXT
            assert stream.outcome is Outcome.COMPLETED
        assert {request.method for request in server.requests} == {"POST", "GET"}


@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx"], indirect=True)
async def test_204_over_sockets(row: Row) -> None:
    def gone(request: RecordedRequest) -> WebReply | None:
        return WebReply(status=204) if request.method == "GET" else None

    with FlakyServer(WIRE, [Fault.cut(after_events=13)], headers=HEADERS, on_request=gone) as server:
        async with row.connect("POST", f"{server.origin}/api/chat", json=BODY, protocol=AISDKStream()) as stream:
            with pytest.raises(CursorExpired, match="message store") as caught:
                [event async for event in stream]
        assert caught.value.checkpoint is not None and caught.value.checkpoint.stream_id == BODY["id"]


# --- statuses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (204, CursorExpired),
        (422, CursorExpired),
        (404, CursorExpired),
        (410, CursorExpired),
        (400, ResponseRejected),
        (401, ResponseRejected),
        (403, ResponseRejected),
        (429, RetriesExhausted),
        (500, RetriesExhausted),
        (503, RetriesExhausted),
    ],
)
def test_what_a_status_to_the_resume_means(status: int, error: type) -> None:
    refusal = Reply(status=status, type="")
    result = play(HALF, *[refusal] * 9, method="POST", url=URL, json=BODY, protocol=AISDKStream(), delay=policy(3))
    assert isinstance(result.error, error)
    assert result.data == EXPECTED[:4]


def test_no_active_answer_at_the_start_is_an_empty_stream() -> None:
    result = play(Reply(status=204, type=""), url=f"{URL}/c1/stream", protocol=AISDKStream())
    assert (result.data, result.outcome, result.error) == ([], Outcome.ENDED, None)


@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_refused_post_is_never_repeated(status: int) -> None:
    result = play(Reply(status=status, type=""), method="POST", url=URL, json=BODY, protocol=AISDKStream())
    assert isinstance(result.error, ResponseRejected)


# --- replays that are none ------------------------------------------------------------------------------------------


def test_an_endpoint_that_sends_only_the_rest_is_no_replay() -> None:
    result = play(HALF, reply(b"".join(BLOCKS[5:])), method="POST", url=URL, json=BODY, protocol=AISDKStream())
    assert isinstance(result.error, ReplayDiverged)
    assert result.data == EXPECTED[:4]


def test_another_answer_is_no_replay() -> None:
    other = wire({"type": "start", "messageId": "m2"}) + b"".join(BLOCKS[1:])
    result = play(HALF, reply(other), method="POST", url=URL, json=BODY, protocol=AISDKStream())
    assert isinstance(result.error, ReplayDiverged)


def test_a_replay_with_a_hole_is_told() -> None:
    holed = b"".join([*BLOCKS[:2], *BLOCKS[3:]])
    result = play(HALF, reply(holed), method="POST", url=URL, json=BODY, protocol=AISDKStream())
    assert isinstance(result.error, ReplayDiverged)


def test_equal_parts_are_no_duplicates() -> None:
    assert EXPECTED[12] == EXPECTED[13]
    assert run(post(Chat())).data.count(EXPECTED[12]) == 2


def test_a_restart_voids_what_was_delivered() -> None:
    result = play(
        HALF,
        Reply(status=204, type=""),
        reply(WIRE),
        method="POST",
        url=URL,
        json=BODY,
        on_lost="restart",
        protocol=AISDKStream(),
    )
    assert result.outcome is Outcome.COMPLETED
    assert [event.offset for event in result.events if event.reset] == [0]
    assert [sent.method for sent in result.stream.sent] == ["POST", "GET", "POST"]


# --- ends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "outcome"),
    [
        ({"type": "finish"}, Settled(Outcome.COMPLETED)),
        ({"type": "finish", "finishReason": "stop"}, Settled(Outcome.COMPLETED)),
        ({"type": "finish", "finishReason": "tool-calls"}, Settled(Outcome.COMPLETED)),
        ({"type": "finish", "finishReason": "length"}, Settled(Outcome.INCOMPLETE)),
        ({"type": "finish", "finishReason": "content-filter"}, Settled(Outcome.INCOMPLETE)),
        ({"type": "finish", "finishReason": "interrupted"}, Settled(Outcome.INCOMPLETE)),
        ({"type": "finish", "finishReason": "other"}, Settled(Outcome.COMPLETED)),
        ({"type": "finish", "finishReason": "error"}, Settled(Outcome.FAILED)),
        ({"type": "abort", "reason": "user"}, Settled(Outcome.CANCELLED)),
        ({"type": "error", "errorText": "overloaded"}, Outcome.FAILED),
        ({"type": "finish-step"}, None),
        ({"type": "data-x", "data": "finish"}, None),
        ({"type": "tool-output-error", "errorText": "x"}, None),
    ],
)
def test_what_ends_a_message(part: dict[str, Any], outcome: Any) -> None:
    assert AISDKStream().end(StreamEvent(data=json.dumps(part))) == outcome


def test_an_error_is_delivered_and_a_finish_behind_it_does_not_make_it_good() -> None:
    body = b"".join(BLOCKS[:3]) + wire({"type": "error", "errorText": "x"}) + wire({"type": "finish"}) + ev("[DONE]")
    result = play(reply(body), method="POST", url=URL, json=BODY, protocol=AISDKStream())
    assert (result.outcome, json.loads(result.data[-1])["type"]) == (Outcome.FAILED, "error")


def test_parts_behind_a_finish_are_read() -> None:
    """An application that merges two model calls into one message sends one `finish` each."""
    result = play(reply(WIRE.removesuffix(ev("[DONE]")) + WIRE), method="POST", url=URL, json=BODY, protocol=AISDKStream())
    assert (result.data, result.outcome) == (EXPECTED[:-1] + EXPECTED, Outcome.COMPLETED)


def test_done_alone_proves_nothing() -> None:
    body = b"".join(BLOCKS[:6]) + ev("[DONE]")
    result = play(reply(body), Reply(status=204, type=""), method="POST", url=URL, json=BODY, protocol=AISDKStream())
    assert isinstance(result.error, CursorExpired)
    assert result.data == EXPECTED[:5], "whoever reads stops at [DONE]"


def test_an_answer_goes_on_after_a_done_that_proved_nothing() -> None:
    """The replay has no `[DONE]` at that place, so it must not be counted among the parts."""
    body = b"".join(BLOCKS[:6]) + ev("[DONE]")
    result = play(reply(body), reply(WIRE), method="POST", url=URL, json=BODY, protocol=AISDKStream())
    assert (result.data, result.outcome) == (EXPECTED, Outcome.COMPLETED)


@pytest.mark.parametrize("data", ["[]", "null", "no json", '"finish"', ""])
def test_what_is_no_part_is_no_end_and_no_text(data: str) -> None:
    event = StreamEvent(data=data)
    assert AISDKStream().end(event) is None
    assert list(AISDKStream().deltas(event)) == []


# --- text -----------------------------------------------------------------------------------------------------------


def test_the_deltas() -> None:
    events = [StreamEvent(data=data) for data in EXPECTED]
    assert [delta for event in events for delta in AISDKStream().deltas(event)] == [
        Delta("reasoning", "Über "),
        Delta("tool", '{"city":"Köln"}'),
        Delta("text", "Sieben ☔"),
        Delta("text", ' "finish"'),
        Delta("text", ' "finish"'),
    ]
    second = StreamEvent(data='{"type":"text-delta","id":"1","delta":"x"}')
    assert list(AISDKStream().deltas(second)) == [Delta("text", "x", 1)]


AGENT = [
    {"type": "start"},
    {"type": "start-step"},
    {"type": "reset-step"},
    {"type": "text-start", "id": "0"},
    {"type": "text-delta", "id": "0", "delta": "Sieben"},
    {"type": "text-end", "id": "0"},
    {"type": "finish-step"},
    {"type": "start-step"},
    {"type": "reset-step"},
    {"type": "text-delta", "id": "0", "delta": " reset-step"},
    {"type": "reset-step"},
    {"type": "text-delta", "id": "0", "delta": " Grad"},
    {"type": "finish-step"},
    {"type": "finish"},
]


@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx"], indirect=True)
async def test_a_step_that_is_tried_again_takes_its_text_back(row: Row) -> None:
    """`WorkflowAgent` of `@ai-sdk/workflow` writes `reset-step` before each attempt at a step."""
    with FlakyServer([*map(wire, AGENT), ev("[DONE]")], headers=HEADERS, ignore_cursor=True) as server:
        async with row.connect("POST", server.url, json=BODY) as stream:
            assert isinstance(stream.protocol, AISDKStream)
            assert await stream.read_text() == "Sieben Grad"
        async with row.connect("POST", server.url, json=BODY) as stream:
            assert [text async for text in stream.iter_text(resets=True)] == ["Sieben", " reset-step", TextReset(7), " Grad"]
        async with row.connect("POST", server.url, json=BODY) as stream:
            with pytest.raises(StreamReset) as caught:
                [text async for text in stream.iter_text()]
        assert (caught.value.offset, caught.value.text_so_far) == (7, "Sieben reset-step")


@pytest.mark.parametrize("route", ["replays", "counts"])
@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx"], indirect=True)
async def test_another_process_knows_where_the_step_began(row: Row, route: str) -> None:
    """What it was told of the step elsewhere is void too, and what finished steps said is not."""
    protocol = AISDKStream if route == "replays" else WorkflowRun
    headers = HEADERS if route == "replays" else {**HEADERS, "x-workflow-run-id": "wrun_1"}
    log = [*map(wire, AGENT), ev("[DONE]")]

    def counted(request: RecordedRequest) -> WebReply | None:
        start = int(request.query.get("startIndex", 0))
        return WebReply(headers={**headers, "content-type": "text/event-stream"}, body=b"".join(log[start:]))

    for taken in range(1, 11):
        with FlakyServer(log, headers=headers, ignore_cursor=True, on_request=counted) as server:
            async with row.connect("POST", server.url, json=BODY, protocol=protocol()) as stream:
                told = 0
                async for _ in stream:
                    told += 1
                    if told > taken:
                        break
                place = stream.checkpoint.token()
            async with row.resume(place, origin=server.url) as stream:
                resets = [piece.offset async for piece in stream.iter_text(resets=True) if isinstance(piece, TextReset)]
        assert resets == ([1] * (taken == 2) + [7] if taken != 8 else [7, 7]), taken


# --- where to resume ------------------------------------------------------------------------------------------------


def known(method: str = "POST", url: str = URL, **values: Any) -> StreamState:
    state = StreamState(method, url, BODY if method == "POST" else None)
    for name, value in values.items():
        setattr(state, name, value)
    return state


@pytest.mark.parametrize(
    ("protocol", "state", "url"),
    [
        (AISDKStream(), known(stream_id="c1"), "https://app.example.com/api/chat/c1/stream"),
        (AISDKStream(), known(url=f"{URL}/?a=b", stream_id="c1"), "https://app.example.com/api/chat/c1/stream?a=b"),
        (AISDKStream(resume="/api/resume"), known(), "https://app.example.com/api/resume"),
        (AISDKStream(resume=lambda state: f"/r/{state.stream_id}"), known(stream_id="c1"), "https://app.example.com/r/c1"),
        (AISDKStream(), known("GET", f"{URL}/c1/stream"), "https://app.example.com/api/chat/c1/stream"),
    ],
)
def test_where_it_resumes(protocol: AISDKStream, state: StreamState, url: str) -> None:
    request = protocol.resume_request(state)
    assert request is not None and (request.method, request.url) == ("GET", url)


def test_the_id_of_the_chat() -> None:
    head = Head(200, HEADERS, URL)
    for protocol, body, expected in [
        (AISDKStream(), BODY, BODY["id"]),
        (AISDKStream(chat_id="c9"), BODY, "c9"),
        (AISDKStream(), {"id": 5}, None),
        (AISDKStream(), None, None),
        (AISDKStream(), [1], None),
    ]:
        state = StreamState("POST", URL, body)
        protocol.identify(state, head)
        assert state.stream_id == expected
    for name in ("", ".", ".."):
        with pytest.raises(ValueError, match="chat_id"):
            AISDKStream(chat_id=name)


@pytest.mark.parametrize(
    ("body", "protocol"),
    [
        ({"messages": []}, AISDKStream()),
        ({"messages": []}, AISDKStream(resume=lambda state: None)),
        # They would name the route itself, or the one above it.
        ({"id": "."}, AISDKStream()),
        ({"id": ".."}, AISDKStream()),
    ],
)
def test_without_an_id_it_cannot_resume(body: Any, protocol: AISDKStream) -> None:
    result = play(HALF, method="POST", url=URL, json=body, protocol=protocol)
    assert isinstance(result.error, StreamInterrupted)
    assert result.data == EXPECTED[:4]


def test_another_process_goes_on() -> None:
    for count in range(1, len(PARTS)):
        stream = post(Chat(cuts=[(FINISHED_AT - 3, "rst")]))
        first = run(stream, at_most=count)
        place = Checkpoint.from_token(stream.leave().token())
        other = Stream(
            lambda sent: Reply([WIRE], headers=HEADERS), method="POST", url=URL, checkpoint=place, protocol=AISDKStream()
        )
        second = run(other)
        assert first.data + second.data == EXPECTED
        assert (other.sent[0].method, other.sent[0].path) == ("GET", "/api/chat/chat%2F1%20%C3%A9/stream")


def test_there_is_no_call_that_stops_it() -> None:
    assert AISDKStream().cancel_request(known(stream_id="c1")) is None


# --- detection ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"content-type": "text/event-stream", **HEADERS}, True),
        ({"content-type": "text/event-stream; charset=utf-8", **HEADERS}, True),
        ({"content-type": "text/event-stream"}, False),
        ({"content-type": "text/plain", **HEADERS}, False),
    ],
)
def test_it_is_known_by_its_header(headers: dict[str, str], found: bool) -> None:
    assert AISDKStream().matches(known(), Head(200, headers, URL)) is found
