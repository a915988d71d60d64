"""`AnthropicMessages`: an answer that cannot be resumed never ends in silence."""

from __future__ import annotations

import itertools
import json
import re
from bisect import bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from resumable_stream import (
    NotResumable,
    Outcome,
    ProtocolViolation,
    ResponseRejected,
    ResumableStreamError,
    StreamInterrupted,
    Timeouts,
    UpstreamError,
)
from resumable_stream._contract import Head, Settled, StreamState
from resumable_stream._events import Delta, StreamEvent
from resumable_stream.protocols.anthropic_messages import AnthropicMessages
from resumable_stream.testing import Fault, FlakyServer
from resumable_stream.testing import Reply as Answer
from resumable_stream.testing.server import RecordedRequest

from ..core.simulation import CUTS, DROPPED, UNSENT, Reply, Sent, Stream, cut_body, play, run

if TYPE_CHECKING:
    from tests.conftest import Row

URL = "https://api.anthropic.com/v1/messages"
BODY = {"model": "claude-x", "max_tokens": 64, "stream": True, "messages": [{"role": "user", "content": "Weather?"}]}


def frame(**data: Any) -> bytes:
    """One event, as the API writes it: the name twice, no id."""
    return f"event: {data['type']}\ndata: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def delta(index: int, **part: Any) -> bytes:
    return frame(type="content_block_delta", index=index, delta=part)


def closing(reason: str | None = "tool_use") -> list[bytes]:
    return [
        frame(type="message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage={"output_tokens": 9}),
        frame(type="message_stop"),
    ]


MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": [], "stop_reason": None}
OPENING = [
    frame(type="message_start", message={**MESSAGE, "usage": {"input_tokens": 5, "output_tokens": 1}}),
    frame(type="content_block_start", index=0, content_block={"type": "thinking", "thinking": "", "signature": ""}),
    frame(type="ping"),
    delta(0, type="thinking_delta", thinking="Där?"),
    delta(0, type="signature_delta", signature="c2ln"),
    frame(type="content_block_stop", index=0),
    frame(type="content_block_start", index=1, content_block={"type": "text", "text": "Hé"}),
    delta(1, type="text_delta", text="llo 🦊"),
    b": a proxy's heartbeat\n\n",
    delta(1, type="text_delta", text=" wörld"),
    frame(type="content_block_stop", index=1),
    frame(type="content_block_start", index=2, content_block={"type": "tool_use", "id": "t", "name": "w", "input": {}}),
    delta(2, type="input_json_delta", partial_json=""),
    delta(2, type="input_json_delta", partial_json='{"a":1}'),
    frame(type="content_block_stop", index=2),
]
FRAMES = [*OPENING, *closing()]
WHOLE = b"".join(FRAMES)
TEXT = "Héllo 🦊 wörld"
# Where each event is complete, and the text up to there.
DATA = [raw.decode().split("data: ")[1].rstrip() for raw in FRAMES if b"data:" in raw]
ENDS = [end for end, raw in zip(itertools.accumulate(map(len, FRAMES)), FRAMES, strict=True) if b"data:" in raw]


def event(data: object, name: str) -> StreamEvent:
    return StreamEvent(event=name, data=data if isinstance(data, str) else json.dumps(data))


class API:
    """The endpoint to the letter: it reads no cursor, and each POST it accepts is another generation."""

    def __init__(self, body: bytes = WHOLE, cut: tuple[int, str] | None = None) -> None:
        self.body, self.cut, self.generations = body, cut, 0

    def __call__(self, sent: Sent) -> Reply:
        assert (sent.method, sent.json, sent.cursor) == ("POST", BODY, None)
        self.generations += 1
        return Reply(cut_body(self.body, self.cut, None), type="text/event-stream; charset=utf-8")


def stream(server: Any, **options: Any) -> Stream:
    return Stream(server, method="POST", url=URL, json=BODY, protocol=AnthropicMessages(), **options)


# --- cuts -----------------------------------------------------------------------------------------------------------


def test_a_whole_answer_is_complete() -> None:
    result = run(stream(API()))
    assert (result.data, result.outcome, result.error) == (DATA, Outcome.COMPLETED, None)
    assert len(DATA) == 16
    assert result.stream.state.stream_id == "msg_1"


@pytest.mark.parametrize("chunk", [1, 7])
def test_the_size_of_the_chunks_does_not_matter(chunk: int) -> None:
    result = run(stream(lambda sent: Reply(cut_body(WHOLE, (ENDS[-2] - 20, "close"), chunk))))
    assert result.data == DATA[:-2]
    assert isinstance(result.error, StreamInterrupted)
    assert result.error.reason == "closed inside an event"


def test_a_clean_close_between_two_events_is_a_cut() -> None:
    result = play(Reply([b"".join(FRAMES[:-2])]), method="POST", url=URL, json=BODY, protocol=AnthropicMessages())
    assert isinstance(result.error, StreamInterrupted)
    assert result.error.reason == "closed before the end"
    assert result.error.checkpoint is not None and result.error.checkpoint.stream_id == "msg_1"


def test_nothing_is_read_behind_the_end() -> None:
    result = run(stream(API(WHOLE + frame(type="ping"))))
    assert (result.data, result.outcome) == (DATA, Outcome.COMPLETED)


def test_a_cut_answer_cannot_be_resumed_in_another_process() -> None:
    first = run(stream(API(cut=(ENDS[4], "rst"))))
    assert first.error is not None and first.error.checkpoint is not None
    second = run(stream(API(), checkpoint=first.error.checkpoint))
    assert isinstance(second.error, NotResumable)
    assert second.stream.sent == []


def test_a_restart_is_another_answer_and_says_so() -> None:
    cuts = iter([(ENDS[8], "rst"), None])
    result = run(stream(lambda sent: API(cut=next(cuts))(sent), on_lost="restart"))
    assert (result.data, result.outcome) == (DATA[:9] + DATA, Outcome.COMPLETED)
    assert [event.offset for event in result.events if event.reset] == [0]


# --- how it ends ----------------------------------------------------------------------------------------------------

EARLY = ["max_tokens", "model_context_window_exceeded", "pause_turn", "compaction", "refusal"]


WHOLE_REASONS = ["end_turn", "tool_use", "stop_sequence"]


@pytest.mark.parametrize("reason", WHOLE_REASONS)
@pytest.mark.parametrize("cut", CUTS)
def test_a_stop_reason_settles_it_before_its_last_event(reason: str, cut: str) -> None:
    """`message_delta` has the reason, and all content blocks have stopped before it: esengine/DeepSeek-Reasonix#8756."""
    body = b"".join([*OPENING, *closing(reason)])
    for position in (len(body) - len(closing()[1]), len(body) - 3):
        result = run(stream(API(body, (position, cut))))
        assert (result.outcome, result.error, result.data[-1]) == (
            Outcome.COMPLETED,
            None,
            body.decode().split("data: ")[-2].split("\n")[0],
        )


@pytest.mark.parametrize("reason", [None, "something new"])
def test_without_a_reason_that_is_known_an_answer_needs_its_last_event(reason: str | None) -> None:
    body = b"".join([*OPENING, *closing(reason)])
    assert run(stream(API(body))).outcome is Outcome.COMPLETED
    assert isinstance(run(stream(API(body, (len(body) - len(closing()[1]), "rst")))).error, StreamInterrupted)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("reason", EARLY)
def test_an_answer_that_stopped_early_is_incomplete_one_event_earlier(reason: str, cut: str) -> None:
    body = b"".join([*OPENING, *closing(reason)])
    for position in range(len(body) - len(closing()[1]), len(body)):
        result = run(stream(API(body, (position, cut))))
        assert (result.outcome, result.error) == (Outcome.INCOMPLETE, None)


@pytest.mark.parametrize("reason", EARLY)
def test_the_last_event_does_not_make_it_whole(reason: str) -> None:
    assert run(stream(API(b"".join([*OPENING, *closing(reason)])))).outcome is Outcome.INCOMPLETE


@pytest.mark.parametrize(
    "data", ["", "{", "[]", '{"type":"message_delta"}', '{"delta":null}', '{"delta":"max_tokens"}', '{"delta":{}}']
)
def test_a_message_delta_that_says_nothing_settles_nothing(data: str) -> None:
    assert AnthropicMessages().end(event(data, "message_delta")) is None


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (frame(type="error", error={"type": "overloaded_error", "message": "Overloaded"}), "overloaded_error"),
        (frame(type="error", error={"type": "api_error", "message": "Internal"}), "api_error"),
        (b"event: error\ndata: not json\n\n", ""),
        (b'data: {"error":{"type":"gateway","message":"upstream"}}\n\n', "gateway"),
    ],
)
def test_an_error_in_the_stream_is_raised_behind_what_came_before(raw: bytes, kind: str) -> None:
    result = run(stream(API(b"".join(OPENING) + raw + b"".join(closing()))))
    assert isinstance(result.error, UpstreamError)
    assert result.error.type == kind
    assert result.data == DATA[:14]


# --- what a proxy may do to it --------------------------------------------------------------------------------------


def without_names(body: bytes) -> bytes:
    return re.sub(rb"(?m)^event: .*\n", b"", body)


def test_events_without_their_names_are_read_by_their_type() -> None:
    """rossoctl/cortex#656: a proxy drops the `event:` lines; the JSON repeats them as `type` (API reference, "Event types")."""
    result = run(stream(API(without_names(WHOLE))))
    parts = [part for item in result.events for part in AnthropicMessages().deltas(item)]
    assert "".join(part.text for part in parts if part.kind == "text") == TEXT
    assert (result.data, result.outcome, result.stream.state.stream_id) == (DATA, Outcome.COMPLETED, "msg_1")
    assert isinstance(run(stream(API(without_names(b"".join(FRAMES[:-2]))))).error, StreamInterrupted)
    early = b"".join([*OPENING, *closing("max_tokens")])
    assert run(stream(API(without_names(early)))).outcome is Outcome.INCOMPLETE


@pytest.mark.parametrize(
    "told",
    [
        '{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}',
        '{\n  "type": "error",\n  "error": {\n    "type": "overloaded_error",\n    "message": "Overloaded"\n  }\n}',
        '{\n  "error": {"type": "overloaded_error", "message": "Overloaded"}\n}',
    ],
)
def test_an_error_without_its_name_keeps_the_providers_words(told: str) -> None:
    lines = "".join(f"data: {line}\n" for line in told.split("\n"))
    result = run(stream(API(b"".join(OPENING) + f"{lines}\n".encode())))
    assert isinstance(result.error, UpstreamError)
    assert ("Overloaded" in str(result.error), result.error.type) == (True, "overloaded_error")


@pytest.mark.parametrize("name", ["message_delta", "message"])
def test_a_stop_reason_that_cannot_be_read_is_an_error_with_its_place(name: str) -> None:
    """What follows says that the message is over, not whether it is whole."""
    broken = f'event: {name}\ndata: {{"type":"message_delta","delta":{{"stop_rea\n\n'.encode()
    result = run(stream(API(b"".join([*OPENING, broken, closing()[1]]))))
    assert isinstance(result.error, ProtocolViolation)
    assert (result.error.offset, result.error.excerpt) == (14, '{"type":"message_delta","delta":{"stop_rea')
    assert result.data == DATA[:14]


@pytest.mark.parametrize("odd", [b"event: ping\ndata: pong\n\n", b"event: new\ndata: x\n\n", b"data\n\n", b"data: [DONE]\n\n"])
def test_what_holds_no_content_need_not_be_json(odd: bytes) -> None:
    body = b"".join([*OPENING, odd, *closing()])
    assert run(stream(API(body))).outcome is Outcome.COMPLETED


# --- statuses of the POST -------------------------------------------------------------------------------------------


def refusal(status: int, kind: str) -> Reply:
    body = json.dumps({"type": "error", "error": {"type": kind, "message": f"{kind} told"}, "request_id": "req_1"})
    return Reply([body.encode()], status=status, type="application/json", headers={"request-id": "req_1"})


@pytest.mark.parametrize(
    ("status", "kind", "again"),
    [
        (400, "invalid_request_error", False),
        (401, "authentication_error", False),
        (402, "billing_error", False),
        (403, "permission_error", False),
        (404, "not_found_error", False),
        (408, "request_timeout", False),
        (409, "conflict_error", False),
        (413, "request_too_large", False),
        (429, "rate_limit_error", True),
        (500, "api_error", False),
        (503, "unavailable", True),
        (504, "timeout_error", False),
        (529, "overloaded_error", True),
    ],
)
def test_only_a_refusal_that_says_not_accepted_is_tried_again(status: int, kind: str, again: bool) -> None:
    replies = [refusal(status, kind), Reply([WHOLE])]
    result = run(stream(lambda sent: replies.pop(0)))
    if again:
        assert (result.data, result.outcome) == (DATA, Outcome.COMPLETED)
    else:
        assert isinstance(result.error, ResponseRejected)
        assert result.error.status == status
        assert f"{kind} told" in str(result.error)


def test_retry_after_is_heeded() -> None:
    busy = refusal(429, "rate_limit_error")
    busy.headers = {"retry-after": "17"}
    replies = [busy, Reply([WHOLE])]
    result = run(stream(lambda sent: replies.pop(0)))
    assert (result.outcome, result.stream.sleeps) == (Outcome.COMPLETED, [17.0])


def test_without_an_answer_only_what_was_never_sent_is_sent_again() -> None:
    replies: list[Any] = [UNSENT, Reply([WHOLE])]
    assert run(stream(lambda sent: replies.pop(0))).outcome is Outcome.COMPLETED
    assert isinstance(run(stream(lambda sent: DROPPED)).error, StreamInterrupted)


# --- content --------------------------------------------------------------------------------------------------------


def test_the_deltas_of_an_answer() -> None:
    found = [part for item in run(stream(API())).events for part in AnthropicMessages().deltas(item)]
    assert found == [
        Delta("reasoning", "Där?", 0),
        Delta("text", "Hé", 1),
        Delta("text", "llo 🦊", 1),
        Delta("text", " wörld", 1),
        Delta("tool", '{"a":1}', 2),
    ]


@pytest.mark.parametrize("name", ["content_block_start", "content_block_delta"])
@pytest.mark.parametrize(
    "data",
    ["", "{", "[]", "{}", '{"delta":1,"content_block":1}', {"delta": {"type": "text_delta", "text": 5}},
     {"delta": {"type": "citations_delta", "citation": {}}, "content_block": {"type": "image", "text": "no"}},
     {"delta": {"type": "unheard_of", "text": "no"}, "content_block": {"type": "text"}}],
)  # fmt: skip
def test_what_is_no_content_is_no_text(data: Any, name: str) -> None:
    assert tuple(AnthropicMessages().deltas(event(data, name))) == ()


# --- detection ------------------------------------------------------------------------------------------------------

SSE = {"content-type": "text/event-stream; charset=utf-8"}


@pytest.mark.parametrize(
    ("method", "url", "body", "headers", "found"),
    [
        ("POST", URL, BODY, SSE, True),
        ("POST", f"{URL}?beta=true", BODY, SSE, True),
        ("POST", "https://gateway.example.com/anthropic/v1/messages", BODY, SSE, True),
        ("POST", URL, None, {**SSE, "anthropic-organization-id": "o"}, True),
        ("POST", URL, None, SSE, False),
        ("POST", URL, {**BODY, "stream": False}, SSE, False),
        ("POST", URL, [], SSE, False),
        ("GET", URL, BODY, SSE, False),
        ("POST", f"{URL}/count_tokens", BODY, SSE, False),
        ("POST", "https://api.example.com/messages", BODY, SSE, False),
        ("POST", URL, BODY, {"content-type": "application/json"}, False),
    ],
)
def test_it_knows_its_own_endpoint(method: str, url: str, body: Any, headers: dict[str, str], found: bool) -> None:
    assert AnthropicMessages().matches(StreamState(method, url, body), Head(200, headers, url)) is found


def test_what_it_promises() -> None:
    assert repr(AnthropicMessages()) == "<AnthropicMessages: has_end, tied>"
    known = StreamState("POST", URL, BODY)
    protocol = AnthropicMessages()
    assert (protocol.resume_request(known), protocol.cancel_request(known), protocol.snapshot_request(known)) == (None,) * 3
    assert protocol.end(event({"delta": {"stop_reason": "refusal"}}, "message_delta")) == Settled(Outcome.INCOMPLETE)


@pytest.mark.parametrize("data", ["", "{", "[]", {"message": 1}, {"message": {}}, {"message": {"id": 5}}])
def test_a_message_without_an_id_stays_unknown(data: Any) -> None:
    known = StreamState("POST", URL)
    AnthropicMessages().identify(known, event(data, "message_start"))
    assert known.stream_id is None


# --- real sockets ---------------------------------------------------------------------------------------------------

QUICKLY = Timeouts(first_event=2, idle=2)


@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
async def test_over_a_socket_a_cut_raises_with_the_text_so_far(
    row: Row, flaky_server: Callable[..., FlakyServer], how: Any
) -> None:
    positions = [0, 1, ENDS[0], ENDS[7] - 1, ENDS[7], ENDS[8] + 40, ENDS[-2] - 9]
    server = flaky_server(FRAMES, [Fault.cut(after_bytes=position, how=how) for position in positions])
    for position in positions:
        answer = row.connect("POST", server.url, json=BODY, protocol=AnthropicMessages(), timeouts=QUICKLY)
        pieces: list[str] = []
        with pytest.raises(StreamInterrupted) as caught:
            await read_into(pieces, answer)
        # On a reset some systems throw away what was not fetched yet, so no more than what was sent is certain.
        assert TEXT.startswith("".join(pieces))
        assert caught.value.text_so_far == "".join(pieces)
        if how == "clean":
            assert "".join(pieces) == text_until(position)
    assert len(server.requests) == len(positions)


async def read_into(pieces: list[str], answer: Any) -> None:
    async with answer:
        async for piece in answer.iter_text():
            pieces.append(piece)


def text_until(position: int) -> str:
    items = (event(data, json.loads(data)["type"]) for data in DATA[: bisect_right(ENDS, position)])
    return "".join(part.text for item in items for part in AnthropicMessages().deltas(item) if part.kind == "text")


async def test_over_a_socket_a_whole_answer_is_read_as_text(row: Row, flaky_server: Callable[..., FlakyServer]) -> None:
    server = flaky_server(FRAMES, [[Fault.one_byte_writes()]])
    answer = row.connect("POST", server.url, json=BODY, protocol=AnthropicMessages())
    async with answer:
        assert await answer.read_text() == TEXT
        assert (answer.outcome, answer.stream_id) == (Outcome.COMPLETED, "msg_1")
        with pytest.raises(ResumableStreamError):
            await answer.cancel()


async def test_over_a_socket_an_overloaded_server_is_asked_again(row: Row, flaky_server: Callable[..., FlakyServer]) -> None:
    refusals = iter([Answer(status=529, headers={"content-type": "application/json"}, body=b'{"type":"error"}')])

    def overloaded(request: RecordedRequest) -> Answer | None:
        return next(refusals, None)

    server = flaky_server(FRAMES, on_request=overloaded)
    answer = row.connect("POST", server.url, json=BODY, protocol=AnthropicMessages())
    assert [item.data for item in await row.read(answer)] == DATA
    assert [request.json() for request in server.requests] == [BODY, BODY]
