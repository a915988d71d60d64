"""`GeminiGenerate`: an answer that cannot be resumed never ends in silence."""

from __future__ import annotations

import itertools
import json
from bisect import bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from resumable_stream import (
    NotResumable,
    Outcome,
    ResponseRejected,
    ResumableStreamError,
    StreamInterrupted,
    Timeouts,
    UnexpectedContentType,
    UpstreamError,
)
from resumable_stream._contract import Head, Settled, StreamState
from resumable_stream._events import Delta, StreamEvent
from resumable_stream.protocols.gemini_generate import GeminiGenerate
from resumable_stream.testing import Fault, FlakyServer
from resumable_stream.testing import Reply as Answer
from resumable_stream.testing.server import RecordedRequest

from ..core.simulation import CUTS, DROPPED, UNSENT, Reply, Sent, Stream, cut_body, play, run

if TYPE_CHECKING:
    from tests.conftest import Row

URL = "https://generativelanguage.googleapis.com/v1beta/models/gemini-x:streamGenerateContent?alt=sse"
BODY = {"contents": [{"role": "user", "parts": [{"text": "Weather?"}]}]}


def frame(payload: object) -> bytes:
    """One event, as the API writes it: nothing but data, and CRLF."""
    return f"data: {json.dumps(payload, ensure_ascii=False, separators=(',', ':'))}\r\n\r\n".encode()


def chunk(*parts: Any, **candidate: Any) -> bytes:
    return frame({"candidates": [{"content": {"parts": list(parts)}, "index": 0, **candidate}], "responseId": "r1"})


OPENING = [
    chunk({"text": "Där?", "thought": True}),
    chunk({"text": "So.", "thought": True}),
    chunk({"text": "Hé"}),
    chunk({"text": "l"}),
    chunk({"text": "l"}),
    chunk({"text": "o 🦊"}),
    chunk({"text": ' "finishReason"'}),
    chunk({"text": ""}),
    chunk({"text": " {"}, {"text": "}"}),
    chunk({"functionCall": {"name": "w", "args": {"ö": 1}}, "thoughtSignature": "cw=="}),
    chunk({"inlineData": {"mimeType": "image/png", "data": ""}}),
]


def closing(reason: str = "STOP") -> bytes:
    return chunk({"text": "!"}, finishReason=reason)


FRAMES = [*OPENING, closing()]
WHOLE = b"".join(FRAMES)
TEXT = 'Héllo 🦊 "finishReason" {}!'
DATA = [raw.decode().removeprefix("data: ").rstrip() for raw in FRAMES]
# An event is complete with the CR of its empty line.
ENDS = [end - 1 for end in itertools.accumulate(map(len, FRAMES))]


def event(data: object) -> StreamEvent:
    return StreamEvent(data=data if isinstance(data, str) else json.dumps(data))


class API:
    """The endpoint to the letter: it reads no cursor, and each POST it accepts is another generation."""

    def __init__(self, body: bytes = WHOLE, cut: tuple[int, str] | None = None) -> None:
        self.body, self.cut, self.generations = body, cut, 0

    def __call__(self, sent: Sent) -> Reply:
        assert (sent.method, sent.json, sent.cursor, sent.params) == ("POST", BODY, None, {"alt": "sse"})
        self.generations += 1
        return Reply(cut_body(self.body, self.cut, None), type="text/event-stream")


def stream(server: Any, **options: Any) -> Stream:
    return Stream(server, method="POST", url=URL, json=BODY, protocol=GeminiGenerate(), **options)


# --- cuts -----------------------------------------------------------------------------------------------------------


def test_a_whole_answer_is_complete() -> None:
    result = run(stream(API()))
    assert (result.data, result.outcome, result.error) == (DATA, Outcome.COMPLETED, None)
    assert len(DATA) == 12
    assert result.stream.state.stream_id == "r1"


@pytest.mark.parametrize("size", [1, 7])
def test_the_size_of_the_chunks_does_not_matter(size: int) -> None:
    result = run(stream(lambda sent: Reply(cut_body(WHOLE, (ENDS[-2] + 1, "close"), size))))
    assert result.data == DATA[:-1]
    assert isinstance(result.error, StreamInterrupted)
    assert result.error.reason == "closed before the end"


def test_a_cut_answer_cannot_be_resumed_in_another_process() -> None:
    first = run(stream(API(cut=(ENDS[4], "rst"))))
    assert first.error is not None and first.error.checkpoint is not None
    second = run(stream(API(), checkpoint=first.error.checkpoint))
    assert isinstance(second.error, NotResumable)
    assert second.stream.sent == []


def test_a_restart_is_another_answer_and_says_so() -> None:
    cuts = iter([(ENDS[5], "close"), None])
    result = run(stream(lambda sent: API(cut=next(cuts))(sent), on_lost="restart"))
    assert (result.data, result.outcome) == (DATA[:6] + DATA, Outcome.COMPLETED)
    assert [item.offset for item in result.events if item.reset] == [0]


# --- how it ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        ("STOP", Outcome.COMPLETED),
        ("MAX_TOKENS", Outcome.INCOMPLETE),
        ("SAFETY", Outcome.INCOMPLETE),
        ("MALFORMED_FUNCTION_CALL", Outcome.INCOMPLETE),
        ("SOMETHING_NEW", Outcome.INCOMPLETE),
    ],
)
def test_the_finish_reason_settles_it_and_any_close_behind_is_the_end(reason: str, outcome: Outcome, cut: str) -> None:
    body = b"".join([*OPENING, closing(reason), frame({"usageMetadata": {"totalTokenCount": 9}})])
    for position in range(len(body) - 40, len(body) + 1):
        result = run(stream(API(body, (position, cut))))
        assert (result.outcome, result.error) == (outcome, None)


def test_a_blocked_prompt_has_no_answer() -> None:
    blocked = frame({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {}, "responseId": "r1"})
    assert run(stream(API(blocked))).outcome is Outcome.FAILED


def test_an_event_settles_when_all_its_candidates_are_finished() -> None:
    protocol = GeminiGenerate()
    half = {"candidates": [{"index": 0, "finishReason": "STOP"}, {"index": 1, "content": {"parts": [{"text": "x"}]}}]}
    assert protocol.end(event(half)) is None
    both = {"candidates": [{"index": 0, "finishReason": "STOP"}, {"index": 1, "finishReason": "SAFETY"}]}
    assert protocol.end(event(both)) == Settled(Outcome.INCOMPLETE)


A, B = {"index": 0, "content": {"parts": [{"text": "a"}]}}, {"index": 1, "content": {"parts": [{"text": "b"}]}}
STOP_A, STOP_B = {"index": 0, "finishReason": "STOP"}, {"index": 1, "finishReason": "STOP"}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    ("events", "outcome"),
    [
        ([[A, B], [STOP_A, STOP_B]], Outcome.COMPLETED),
        ([[A], [B], [STOP_B], [STOP_A]], Outcome.COMPLETED),
        ([[A, {**B, "finishReason": "MAX_TOKENS"}], [STOP_A]], Outcome.INCOMPLETE),
        ([[A, {**B, "finishReason": "STOP"}], [STOP_A, {"index": 1}]], Outcome.COMPLETED),
        ([[{"content": A["content"], "finishReason": "STOP"}], [STOP_B]], Outcome.COMPLETED),
        ([[A, B], [STOP_A]], None),
        ([[A, B], [STOP_A, {"index": 1}], [STOP_A]], None),
        ([[A, {**B, "finishReason": "FINISH_REASON_UNSPECIFIED"}], [STOP_A]], None),
    ],
)
def test_an_answer_of_several_candidates_is_whole_when_each_has_a_reason(
    events: list[list[dict[str, Any]]], outcome: Outcome | None, cut: str
) -> None:
    """A reason is of its candidate (API reference, `Candidate.finishReason`), so a close before the last one is a cut."""
    body = {"generationConfig": {"candidateCount": 2}}
    frames = [frame({"candidates": candidates}) for candidates in events]
    result = play(
        Reply([*frames, "rst" if cut == "half" else cut]),
        method="POST",
        url=URL,
        json=body,
        protocol=GeminiGenerate(candidates=2),
    )
    assert result.outcome is outcome
    assert (outcome is None) is isinstance(result.error, StreamInterrupted)


def test_a_blocked_prompt_has_no_candidates() -> None:
    blocked = frame({"promptFeedback": {"blockReason": "SAFETY"}})
    body = {"generationConfig": {"candidateCount": 2}}
    result = play(Reply([blocked]), method="POST", url=URL, json=body, protocol=GeminiGenerate(candidates=2))
    assert result.outcome is Outcome.FAILED


@pytest.mark.parametrize(
    "data",
    ["", '{"finishReason"', '["finishReason"]', '{"finishReason": "STOP"}', '{"candidates": {"finishReason": 1}}',
     {"candidates": [{"finishReason": None}]}, {"candidates": [{"finishReason": "FINISH_REASON_UNSPECIFIED"}]},
     {"promptFeedback": {}}, {"promptFeedback": 5}, {"promptFeedback": {"safetyRatings": []}, "candidates": [{}]}],
)  # fmt: skip
def test_what_names_no_reason_settles_nothing(data: Any) -> None:
    assert GeminiGenerate().end(event(data)) is None


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_error_in_the_stream_is_raised_behind_what_came_before(separators: tuple[str, str], indent: int | None) -> None:
    error = {"error": {"code": 503, "message": "überlastet", "status": "UNAVAILABLE"}}
    lines = json.dumps(error, separators=separators, indent=indent, ensure_ascii=False).split("\n")
    raw = "".join(f"data: {line}\r\n" for line in lines).encode() + b"\r\n"
    result = run(stream(API(b"".join(OPENING) + raw)))
    assert isinstance(result.error, UpstreamError)
    assert (result.error.type, result.error.body, result.data) == ("UNAVAILABLE", error, DATA[:-1])
    assert "überlastet" in str(result.error)


def test_an_error_in_bare_lines_is_no_event_and_no_end() -> None:
    raw = json.dumps({"error": {"code": 503, "message": "x", "status": "UNAVAILABLE"}}, indent=2).encode()
    result = run(stream(API(b"".join(OPENING) + raw)))
    assert type(result.error) is StreamInterrupted
    assert result.data == DATA[:-1]


@pytest.mark.parametrize("data", ['{"error"', {"error": "text"}, {"error": None}, {"candidates": [], "error": {}}])
def test_what_only_looks_like_an_error_is_none(data: Any) -> None:
    assert GeminiGenerate().error(event(data)) is None


# --- statuses of the POST -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "name", "again"),
    [
        (400, "INVALID_ARGUMENT", False),
        (401, "UNAUTHENTICATED", False),
        (403, "PERMISSION_DENIED", False),
        (404, "NOT_FOUND", False),
        (408, "CANCELLED", False),
        (409, "ABORTED", False),
        (429, "RESOURCE_EXHAUSTED", True),
        (500, "INTERNAL", False),
        (502, "BAD_GATEWAY", False),
        (503, "UNAVAILABLE", True),
        (504, "DEADLINE_EXCEEDED", False),
    ],
)
def test_only_a_refusal_that_says_not_accepted_is_tried_again(status: int, name: str, again: bool) -> None:
    body = json.dumps({"error": {"code": status, "message": f"{name} told", "status": name}}).encode()
    replies = [Reply([body], status=status, type="application/json"), Reply([WHOLE])]
    result = run(stream(lambda sent: replies.pop(0)))
    if again:
        assert (result.data, result.outcome) == (DATA, Outcome.COMPLETED)
    else:
        assert isinstance(result.error, ResponseRejected)
        assert result.error.status == status
        assert f"{name} told" in str(result.error)


def test_without_an_answer_only_what_was_never_sent_is_sent_again() -> None:
    replies: list[Any] = [UNSENT, Reply([WHOLE])]
    assert run(stream(lambda sent: replies.pop(0))).outcome is Outcome.COMPLETED
    assert isinstance(run(stream(lambda sent: DROPPED)).error, StreamInterrupted)


def test_the_array_that_comes_without_alt_sse_is_refused() -> None:
    result = run(stream(lambda sent: Reply([b"[{}]"], type="application/json")))
    assert isinstance(result.error, UnexpectedContentType)


# --- content --------------------------------------------------------------------------------------------------------


def test_the_deltas_of_an_answer() -> None:
    found = [part for item in run(stream(API())).events for part in GeminiGenerate().deltas(item)]
    assert found == [
        Delta("reasoning", "Där?"),
        Delta("reasoning", "So."),
        *(Delta("text", text) for text in ("Hé", "l", "l", "o 🦊", ' "finishReason"', " {", "}")),
        Delta("tool", '{"ö": 1}'),
        Delta("text", "!"),
    ]


def test_candidates_are_told_apart_by_index() -> None:
    payload = {"candidates": [{"index": n, "content": {"parts": [{"text": f"t{n}"}]}} for n in (1, 0)]}
    assert list(GeminiGenerate().deltas(event(payload))) == [Delta("text", "t1", 1), Delta("text", "t0", 0)]


@pytest.mark.parametrize(
    "data",
    ["", "{", "[]", "{}", {"candidates": 1}, {"candidates": [1]}, {"candidates": [{}]}, {"candidates": [{"content": {}}]},
     {"candidates": [{"content": {"parts": 1}}]}, {"candidates": [{"content": {"parts": [1, {}, {"text": 5}]}}]},
     {"candidates": [{"content": {"parts": [{"functionCall": {"name": "f"}}, {"text": "", "thought": True}]}}]}],
)  # fmt: skip
def test_what_is_no_content_is_no_text(data: Any) -> None:
    assert tuple(GeminiGenerate().deltas(event(data))) == ()


# --- detection ------------------------------------------------------------------------------------------------------

SSE = {"content-type": "text/event-stream"}
VERTEX = "https://europe-west1-aiplatform.googleapis.com/v1/projects/p/locations/l/publishers/google/models/m"


@pytest.mark.parametrize(
    ("method", "url", "headers", "found"),
    [
        ("POST", URL, SSE, True),
        ("POST", f"{VERTEX}:streamGenerateContent?alt=sse", SSE, True),
        ("POST", URL, {"content-type": "application/json"}, False),
        ("GET", URL, SSE, False),
        ("POST", f"{VERTEX}:generateContent", SSE, False),
        ("POST", f"{VERTEX}:streamRawPredict", SSE, False),
        ("POST", "https://api.example.com/streamGenerateContent", SSE, False),
    ],
)
def test_it_knows_its_own_endpoint(method: str, url: str, headers: dict[str, str], found: bool) -> None:
    assert GeminiGenerate().matches(StreamState(method, url, BODY), Head(200, headers, url)) is found


def test_what_it_promises() -> None:
    protocol, known = GeminiGenerate(), StreamState("POST", URL, BODY)
    assert repr(protocol) == "<GeminiGenerate: has_end, tied>"
    assert (protocol.resume_request(known), protocol.cancel_request(known), protocol.snapshot_request(known)) == (None,) * 3


@pytest.mark.parametrize("data", ["", "{", "[]", {}, {"responseId": ""}, {"responseId": 5}])
def test_an_answer_without_an_id_stays_unknown(data: Any) -> None:
    known = StreamState("POST", URL)
    GeminiGenerate().identify(known, event(data))
    assert known.stream_id is None


# --- real sockets ---------------------------------------------------------------------------------------------------

QUICKLY = Timeouts(first_event=2, idle=2)


@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
async def test_over_a_socket_a_cut_raises_with_the_text_so_far(
    row: Row, flaky_server: Callable[..., FlakyServer], how: Any
) -> None:
    positions = [0, 1, ENDS[0], ENDS[3] - 1, ENDS[3], ENDS[5] + 40, ENDS[-1] - 9]
    server = flaky_server(FRAMES, [Fault.cut(after_bytes=position, how=how) for position in positions])
    for position in positions:
        answer = row.connect("POST", server.url, json=BODY, protocol=GeminiGenerate(), timeouts=QUICKLY)
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
    items = map(event, DATA[: bisect_right(ENDS, position)])
    return "".join(part.text for item in items for part in GeminiGenerate().deltas(item) if part.kind == "text")


async def test_over_a_socket_a_whole_answer_is_read_as_text(row: Row, flaky_server: Callable[..., FlakyServer]) -> None:
    server = flaky_server(FRAMES, [[Fault.one_byte_writes()]])
    answer = row.connect("POST", server.url, json=BODY, protocol=GeminiGenerate())
    async with answer:
        assert await answer.read_text() == TEXT
        assert (answer.outcome, answer.stream_id) == (Outcome.COMPLETED, "r1")
        with pytest.raises(ResumableStreamError):
            await answer.cancel()


async def test_over_a_socket_an_overloaded_server_is_asked_again(row: Row, flaky_server: Callable[..., FlakyServer]) -> None:
    refusals = iter([Answer(status=503, headers={"content-type": "application/json"}, body=b'{"error":{}}')])

    def overloaded(request: RecordedRequest) -> Answer | None:
        return next(refusals, None)

    server = flaky_server(FRAMES, on_request=overloaded)
    answer = row.connect("POST", server.url, json=BODY, protocol=GeminiGenerate())
    assert [item.data for item in await row.read(answer)] == DATA
    assert [request.json() for request in server.requests] == [BODY, BODY]
