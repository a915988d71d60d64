"""
`OpenAIResponses` against a server that behaves as OpenAI's guide "Background mode" and the `openai` package 3.51 say.

The payloads are invented; their fields are those of `openai.types.responses` (2026-11).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

import resumable_stream as rs
from resumable_stream._contract import Answer, Head, Interrupted, Lost, Over, Reject, Resume, StreamState, Verify
from resumable_stream._errors import (
    CursorExpired,
    GapError,
    NotResumable,
    ProtocolViolation,
    ReplayDiverged,
    ResponseRejected,
    RetriesExhausted,
    StreamInterrupted,
    UpstreamError,
)
from resumable_stream._events import Delta, Outcome, StreamEvent
from resumable_stream._notices import NumberOutOfOrder
from resumable_stream.protocols.openai_responses import OpenAIResponses
from resumable_stream.testing import Fault, FlakyServer

from ..core.simulation import CUTS, Reply, Sent, Stream, cut_body, policy, run, script
from ..cutting import Where

if TYPE_CHECKING:
    from resumable_stream.testing.server import RecordedRequest
    from resumable_stream.testing.server import Reply as HTTPReply
    from tests.conftest import Row

URL = "https://api.example.com/v1/responses"
BODY = {"model": "m", "input": "hi", "background": True, "stream": True}
ID = "resp_1"
TEXT = "Grüße, 世界 🦊"


# --- the server -----------------------------------------------------------------------------------------------------


def _log(*, background: bool = True) -> list[dict[str, Any]]:
    whole = {"id": ID, "object": "response", "created_at": 0, "model": "m", "output": []}
    whole |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
    head = {**whole, "background": background}
    summary = {"item_id": "rs_1", "output_index": 0, "summary_index": 0}
    text = {"item_id": "msg_1", "output_index": 1, "content_index": 0, "logprobs": []}
    tool = {"item_id": "fc_1", "output_index": 2}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {**head, "status": "queued"}},
        {"type": "response.queued", "response": {**whole, "status": "queued"}},
        {"type": "response.in_progress", "response": {**whole, "status": "in_progress"}},
        {"type": "response.output_item.added", "output_index": 0, "item": {"id": "rs_1", "type": "reasoning", "summary": []}},
        {"type": "response.reasoning_summary_text.delta", **summary, "delta": "Hm…"},
        {"type": "response.output_text.delta", **text, "delta": "Grüße"},
        {"type": "response.output_text.delta", **text, "delta": ", "},
        {"type": "response.output_text.delta", **text, "delta": "世界"},
        {"type": "response.output_text.delta", **text, "delta": " 🦊"},
        {"type": "response.output_text.done", **text, "text": TEXT},
        {"type": "response.function_call_arguments.delta", **tool, "delta": '{"q":1}'},
        {"type": "response.function_call_arguments.done", **tool, "arguments": '{"q":1}'},
        {"type": "response.completed", "response": {**whole, "status": "completed"}},
    ]
    return [{"type": event.pop("type"), "sequence_number": number, **event} for number, event in enumerate(events)]


LOG = _log()
RESULT = {
    "id": ID,
    "status": "completed",
    "output": [
        {"id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm…"}]},
        {"id": "msg_1", "type": "message", "content": [{"type": "output_text", "text": TEXT}]},
        {"id": "fc_1", "type": "function_call", "arguments": '{"q":1}'},
        {"id": "msg_2", "type": "message", "content": [{"type": "refusal", "refusal": "No."}, {"type": "x"}]},
    ],
}


def sse(event: Mapping[str, Any], padding: str = "") -> bytes:
    if padding and event["type"].endswith(".delta"):
        event = {**event, "obfuscation": padding}
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


@functools.cache
def frames(padding: str) -> list[bytes]:
    return [sse(event, padding) for event in LOG]


def error(message: str, param: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}}).encode()


NOT_BACKGROUND = error("This response cannot be streamed because it was not created with background=true.", "stream")
NOT_STREAMED = error("This response cannot be streamed because it was not created with stream=true.", "stream")
OLD = error("This response can no longer be streamed because it is more than 5 minutes old.", "stream")
AZURE_OLD = error("The response was not created with stream=true or the stream TTL has expired.")
BAD_CURSOR = error("starting_after must be an integer.", "starting_after")
UNKNOWN = error("Response with id 'resp_1' not found.")


class Responses:
    """
    Keeps one response.

    Args:
        cuts: For each streaming answer in turn, `(position in the whole stream, kind)` or `None`.
        status: What plain GETs say, in turn; the last one stays. `None`: as far as the events got.
        refuse: Status and body for each request that resumes.
        skip, resend: Events left out of, or repeated in front of, each answer that resumes, in turn.
        keepalive: A comment in front of each event, as Azure's servers send.
    """

    def __init__(
        self,
        log: list[dict[str, Any]] = LOG,
        *,
        cuts: Any = (),
        chunk: int | None = None,
        status: tuple[str, ...] = (),
        refuse: tuple[int, bytes] | None = None,
        skip: tuple[int, ...] = (),
        resend: tuple[int, ...] = (),
        keepalive: bytes = b"",
        hang: bool = False,
        result: Mapping[str, Any] = RESULT,
    ) -> None:
        self.log, self.cuts, self.chunk = log, list(cuts), chunk
        self.status, self.refuse, self.result = list(status), refuse, result
        self.skip, self.resend, self.keepalive, self.hang = list(skip), list(resend), keepalive, hang
        self.answers = 0
        self.cancelled = False

    def __call__(self, sent: Sent) -> Reply:
        if sent.method == "POST" and sent.path == f"/v1/responses/{ID}/cancel":
            assert sent.json is None
            self.cancelled = True
            return Reply([b'{"status": "cancelled"}'], type="application/json")
        if sent.method == "POST":
            assert (sent.path, self.answers) == ("/v1/responses", 0), "the response is never created twice"
            return self.stream(0)
        assert (sent.method, sent.path, sent.json) == ("GET", f"/v1/responses/{ID}", None)
        if sent.params.get("stream") != "true":
            assert "starting_after" not in sent.params
            return self.poll()
        if self.refuse is not None:
            return Reply([self.refuse[1]], status=self.refuse[0], type="application/json")
        after = sent.params.get("starting_after")
        start = 0 if after is None else int(after) + 1
        start = max(0, start - (self.resend.pop(0) if self.resend else 0))
        return self.stream(start + (self.skip.pop(0) if self.skip else 0))

    def poll(self) -> Reply:
        if self.status:
            status = self.status.pop(0) if len(self.status) > 1 else self.status[0]
        else:
            status = "completed"
        if status == "404":
            return Reply([UNKNOWN], status=404, type="application/json")
        if status.isdigit():
            return Reply([b"{}"], status=int(status), type="application/json")
        document = self.result if status == "completed" else {**self.result, "status": status}
        return Reply([json.dumps(document).encode()], type="application/json")

    def stream(self, start: int) -> Reply:
        self.answers += 1
        # The padding is random: another at every sending, and of one length, so that positions stay what they are.
        padding = "xyz"[self.answers % 3]
        log = frames(padding) if self.log is LOG else [sse(event, padding) for event in self.log]
        cut = self.cuts.pop(0) if self.cuts else None
        if cut is not None:
            cut = (cut[0] - sum(map(len, log[:start])), cut[1])
        body = b"".join(self.keepalive + frame for frame in log[start:])
        steps = cut_body(body, cut, self.chunk)
        return Reply([*steps, "silence"] if self.hang and cut is None else steps)


def stream(server: Callable[[Sent], Any], **options: Any) -> Stream:
    options = {"method": "POST", "url": URL, "json": BODY, "protocol": OpenAIResponses(), **options}
    return Stream(server, **options)


def payloads(events: list[Any]) -> list[dict[str, Any]]:
    """What was delivered, without the padding."""
    return [{name: value for name, value in event.json().items() if name != "obfuscation"} for event in events]


def text_of(events: list[Any], kind: str = "text") -> str:
    protocol = OpenAIResponses()
    return "".join(delta.text for event in events for delta in protocol.deltas(event) if delta.kind == kind)


def event(data: Any, kind: str = "message") -> StreamEvent:
    return StreamEvent(event=kind, data=data if isinstance(data, str) else json.dumps(data))


def known(**values: Any) -> StreamState:
    made = StreamState("POST", URL, BODY)
    made.stream_id, made.cursor, made.offset, made.resuming = ID, "4", 5, True
    made.extra["background"] = "1"
    for name, value in values.items():
        setattr(made, name, value)
    return made


# --- cut everywhere -------------------------------------------------------------------------------------------------

FRAMES = frames("x")
FIRST, TOTAL = len(FRAMES[0]), sum(map(len, FRAMES))
LONGEST = max(map(len, FRAMES))
PROTOCOL = OpenAIResponses()


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_in_every_event_loses_nothing(cut: str, where: Where) -> None:
    """One run is cut in every event after the first, each time at the same distance from the cut before."""
    for start in where([bytes(LONGEST)])[:-1]:
        cuts = [(position, cut) for position in range(FIRST + start, TOTAL + 1, LONGEST)]
        server = Responses(cuts=cuts)
        result = run(stream(server, protocol=PROTOCOL))
        assert [event.sequence for event in result.events] == list(range(len(LOG))), f"{cut} after byte {start}"
        assert (result.outcome, result.error) == (Outcome.COMPLETED, None), f"{cut} after byte {start}"
        assert payloads(result.events) == LOG
        # Before a clean close the last event ends the response without its empty line.
        enough = TOTAL - 2 if cut in ("close", "half") else TOTAL
        assert server.answers == len(cuts) + 1 - (cuts[-1][0] >= enough)


def test_the_resume_is_a_get_with_the_last_number_and_no_body() -> None:
    server = Responses(cuts=[(FIRST, "rst"), (sum(map(len, FRAMES[:5])) + 9, "fin")])
    result = run(stream(server, url=f"{URL}?api-version=preview"))
    asked = [(sent.method, sent.path, sent.params, sent.json) for sent in result.stream.sent]
    query = {"api-version": "preview"}
    assert asked == [
        ("POST", "/v1/responses", query, BODY),
        ("GET", "/v1/responses/resp_1", {**query, "stream": "true", "starting_after": "0"}, None),
        ("GET", "/v1/responses/resp_1", {**query, "stream": "true", "starting_after": "4"}, None),
    ]


def test_comments_keep_it_alive_and_deliver_nothing() -> None:
    result = run(stream(Responses(keepalive=b": keep-alive\n\n", cuts=[(700, "rst")], chunk=7)))
    assert (payloads(result.events), result.outcome) == (LOG, Outcome.COMPLETED)


def _with_keepalives() -> list[dict[str, Any]]:
    """One after each of the events, and three at the end of a long silence; all are numbered."""
    events = [{name: value for name, value in each.items() if name != "sequence_number"} for each in LOG]
    mixed = [each for one in events[:-1] for each in (one, {"type": "keepalive"})]
    mixed += [{"type": "keepalive"}, {"type": "keepalive"}, events[-1]]
    return [{"type": each["type"], "sequence_number": number, **each} for number, each in enumerate(mixed)]


@pytest.mark.parametrize("cut", CUTS)
def test_keepalives_that_are_numbered_are_events_like_any_other(cut: str) -> None:
    """
    openai/openai-node#1964: on a long silence the API sends `keepalive` events, which take a number of the stream's.

    They are not documented. Left out, they would be holes; taken for pings, the cursor would lie before them.
    """
    log = _with_keepalives()
    sent = [sse(each) for each in log]
    for count in range(1, len(log)):
        first, longer = sum(map(len, sent[:count])), len(sent[count]) // 2
        for position in {first, first + longer}:
            cuts = [(position, cut), (sum(map(len, sent[: count + 1])), cut)] if count + 1 < len(log) else [(position, cut)]
            result = run(stream(Responses(log, cuts=cuts)))
            assert [event.sequence for event in result.events] == list(range(len(log))), f"{cut} after byte {position}"
            assert (payloads(result.events), result.outcome) == (log, Outcome.COMPLETED)
            assert text_of(result.events) == TEXT
            assert result.stream.machine.stats.gaps == 0


def test_a_get_of_a_background_response_is_resumed_too() -> None:
    # Inside the event behind number 3.
    server = Responses(cuts=[(sum(map(len, frames("")[:4])) + 20, "close")])
    url = f"{URL}/{ID}?stream=true&starting_after=2"
    result = run(stream(server, method="GET", url=url, json=None))
    assert [event.sequence for event in result.events] == list(range(3, 13))
    assert [sent.params["starting_after"] for sent in result.stream.sent if "stream" in sent.params] == ["2", "3"]
    assert result.stream.state.stream_id == ID


def test_a_get_that_is_cut_before_its_first_event_is_asked_again_from_where_the_caller_said() -> None:
    server = Responses(cuts=[(sum(map(len, FRAMES[:3])) + 5, "rst")])
    url = f"{URL}/{ID}?stream=true&starting_after=2"
    result = run(stream(server, method="GET", url=url, json=None))
    assert [event.sequence for event in result.events] == list(range(3, 13))


# --- duplicates, holes ----------------------------------------------------------------------------------------------


def test_events_sent_again_are_dropped_although_their_padding_differs() -> None:
    result = run(stream(Responses(cuts=[(1100, "rst")], resend=(4,))))
    assert (payloads(result.events), result.outcome) == (LOG, Outcome.COMPLETED)
    assert result.stream.machine.stats.duplicates == 4


def test_a_number_that_comes_again_with_other_content_is_no_repeat() -> None:
    """In a replay it contradicts what was delivered; on a connection that replayed nothing it is the server's way to count."""
    other = [*LOG[:7], {**LOG[6], "delta": "!"}, *LOG[7:]]
    result = run(stream(Responses(other)))
    assert (payloads(result.events), result.outcome) == (other, Outcome.COMPLETED)
    assert len(result.stream.kinds(NumberOutOfOrder)) == 1
    changed = [*LOG[:6], {**LOG[6], "delta": "!"}, *LOG[7:]]
    server = script(Reply([*(sse(event) for event in LOG[:7]), "rst"]), Reply([sse(event) for event in changed[5:]]))
    assert isinstance(run(stream(server)).error, ReplayDiverged)


@pytest.mark.parametrize("background", [True, False])
def test_an_error_with_an_old_number_is_the_providers_error(background: bool) -> None:
    """BerriAI/litellm#32579: `sequence_number` 1 after 4. The openai package raises for an object `error`, numbered or not."""
    body = [sse(event) for event in LOG[:5]]
    failure = sse({"type": "error", "sequence_number": 1, "error": {"message": "overloaded", "type": "server_error"}})
    result = run(stream(script(Reply([*body, failure])), json={**BODY, "background": background}))
    assert payloads(result.events) == LOG[:5]
    assert isinstance(result.error, UpstreamError)
    assert "overloaded" in str(result.error)


def test_a_hole_is_asked_for_again() -> None:
    server = Responses(cuts=[(1100, "rst")], skip=(1,))
    result = run(stream(server))
    assert (payloads(result.events), result.outcome, server.answers) == (LOG, Outcome.COMPLETED, 3)


def test_a_hole_that_stays_is_an_error_or_marked() -> None:
    holey = [*LOG[:5], *LOG[6:]]
    error = run(stream(HoleServer(holey))).error
    assert isinstance(error, GapError) and (error.expected, error.received) == (5, 6)
    marked = run(stream(HoleServer(holey), on_gap="deliver"))
    assert (len(marked.events), marked.outcome) == (12, Outcome.COMPLETED)
    assert marked.events[5].gap is not None


class HoleServer(Responses):
    def stream(self, start: int) -> Reply:
        self.answers += 1
        return Reply([sse(event) for event in self.log if event["sequence_number"] >= start])


def test_a_proxy_that_numbers_every_event_zero_is_read_to_the_end() -> None:
    zeros = [{**event, "sequence_number": 0} for event in LOG]
    result = run(stream(Responses(zeros)))
    assert (payloads(result.events), result.outcome) == (zeros, Outcome.COMPLETED)
    odd = [{**event, "sequence_number": 5} for event in LOG]
    result = run(stream(Responses(odd)))
    assert (payloads(result.events), result.outcome) == (odd, Outcome.COMPLETED)
    result = run(stream(Responses(odd), protocol=OpenAIResponses(numbered=False)))
    assert (payloads(result.events), result.outcome) == (odd, Outcome.COMPLETED)
    assert {event.cursor for event in result.events} == {None}


def test_a_server_that_leaves_the_names_of_events_out_is_understood() -> None:
    body = b"".join(frame.partition(b"\n")[2] for frame in FRAMES)
    result = run(stream(lambda sent: Reply([body])))
    assert (payloads(result.events), result.outcome, text_of(result.events)) == (LOG, Outcome.COMPLETED, TEXT)


# --- ends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["completed", "incomplete", "failed", "cancelled"])
@pytest.mark.parametrize("cut", CUTS)
def test_a_terminal_event_ends_it_whatever_the_socket_does(name: str, cut: str) -> None:
    log = [*LOG[:5], {"type": f"response.{name}", "sequence_number": 5, "response": {"id": ID, "status": name}}]
    result = run(stream(Responses(log, cuts=[(10**6, "rst")], hang=True)))
    assert (len(result.events), result.outcome) == (6, Outcome(name))


@pytest.mark.parametrize("cut", ["close", "rst", "silence"])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("status", "outcome"), [("completed", Outcome.COMPLETED), ("incomplete", Outcome.INCOMPLETE), ("failed", Outcome.FAILED)]
)
def test_a_done_event_ends_it_by_its_status(status: str, outcome: Outcome, named: bool, cut: str) -> None:
    """can1357/oh-my-pi#4692: a gateway writes the last event as `response.done`, as the API's WebSocket has it."""
    done = {"type": "response.done", "sequence_number": 6, "response": {"id": ID, "status": status}}
    last = sse(done) if named else f"data: {json.dumps(done)}\n\n".encode()
    result = run(stream(script(Reply([*[sse(event) for event in LIVE[:6]], last, cut])), json=LIVE_BODY))
    assert (result.outcome, result.error, len(result.data)) == (outcome, None, 7)


def test_a_done_event_without_a_final_status_proves_nothing() -> None:
    done = {"type": "response.done", "sequence_number": 6, "response": {"id": ID, "status": "in_progress"}}
    answer = Reply([sse(event) for event in [*LIVE[:6], done]])
    result = run(stream(script(answer, Reply([b"{}"], status=404, type="application/json")), json=LIVE_BODY))
    assert isinstance(result.error, StreamInterrupted)


def test_a_terminal_event_that_is_not_json_is_an_error() -> None:
    broken = b'event: response.completed\ndata: {"type":"response.comp\n\n'
    result = run(stream(script(Reply([*[sse(event) for event in LIVE[:6]], broken])), json=LIVE_BODY))
    assert isinstance(result.error, ProtocolViolation)
    assert (result.error.offset, result.error.excerpt) == (6, '{"type":"response.comp')


def test_a_cancelled_response_ends_without_an_event_and_is_asked_how_it_stands() -> None:
    cut = sum(map(len, FRAMES[:6]))
    server = Responses(LOG[:8], cuts=[(cut, "close")], status=("cancelled",))
    result = run(stream(server))
    # The connection may have been cut before the cancel: what follows the cursor is asked for once, then believed.
    assert (payloads(result.events), result.outcome) == (LOG[:8], Outcome.CANCELLED)
    assert [sent.params.get("starting_after", "poll") for sent in result.stream.sent[1:]] == ["poll", "5", "poll", "7", "poll"]


@pytest.mark.parametrize("refusal", [(400, NOT_STREAMED), (404, UNKNOWN)])
def test_a_cancelled_response_that_is_no_longer_streamed_is_cancelled(refusal: tuple[int, bytes]) -> None:
    result = run(stream(Responses(LOG[:6], status=("cancelled",), refuse=refusal)))
    assert (payloads(result.events), result.outcome) == (LOG[:6], Outcome.CANCELLED)


def test_a_clean_close_of_a_running_response_is_a_cut() -> None:
    result = run(stream(Responses(cuts=[(900, "close"), (1300, "close")], status=("in_progress",))))
    assert (payloads(result.events), result.outcome) == (LOG, Outcome.COMPLETED)


def test_an_unproven_done_of_a_background_response_is_asked_about_and_resumed() -> None:
    """OpenAI's own streams end with the terminal event; the SDK stops at `[DONE]` (openai 3.51, `_streaming.py`)."""
    done = b"data: [DONE]\n\n"
    whole = Responses()

    def server(sent: Sent) -> Any:
        if not whole.answers:
            whole.answers += 1
            return Reply([*FRAMES[:5], done, "silence"])
        whole.status = ("in_progress",)
        return whole(sent)

    result = run(stream(server))
    assert (payloads(result.events), result.outcome) == (LOG, Outcome.COMPLETED)


@pytest.mark.parametrize("done", [b"data: [DONE]\n\n", b"event: done\ndata: [DONE]\n\n", b"data: [DONE] \n\n"])
def test_an_unproven_done_of_a_response_that_cannot_be_resumed_is_not_delivered(done: bytes) -> None:
    answer = Reply([*[sse(event) for event in LIVE[:6]], done, "silence"])
    result = run(stream(script(answer, Reply([b"{}"], status=404, type="application/json")), json=LIVE_BODY))
    assert isinstance(result.error, StreamInterrupted)
    assert "[DONE] came without a terminal event" in str(result.error)
    assert payloads(result.events) == LIVE[:6]


def test_a_finished_response_whose_stream_never_ends_is_lost_and_not_complete() -> None:
    result = run(stream(Responses(LOG[:-1])))
    assert isinstance(result.error, CursorExpired) and len(result.events) == 12
    taken = run(stream(Responses(LOG[:-1]), on_lost="snapshot"))
    assert (taken.outcome, taken.events[12].reset) == (Outcome.COMPLETED, True)


def test_a_stream_that_hangs_after_a_failure_is_left() -> None:
    """vLLM's generator returns only on `response.completed`: a resume of a failed response waits for ever."""
    server = Responses(LOG[:6], status=("in_progress", "in_progress", "failed"), hang=True)
    result = run(stream(server))
    assert (payloads(result.events), result.outcome) == (LOG[:6], Outcome.FAILED)
    assert result.stream.elapsed < 6 * 61


def test_an_error_event_is_delivered_and_the_response_asked_what_became_of_it() -> None:
    failure = {"type": "error", "sequence_number": 5, "code": "server_error", "message": "boom", "param": None}
    result = run(stream(Responses([*LOG[:5], failure], status=("failed",))))
    assert (result.events[-1].json(), result.outcome) == (failure, Outcome.FAILED)
    log = [*LOG[:5], failure, *({**event, "sequence_number": event["sequence_number"] + 1} for event in LOG[5:])]
    cut = sum(len(sse(event, "x")) for event in log[:6])
    result = run(stream(Responses(log, cuts=[(cut, "close")], status=("in_progress",))))
    assert (payloads(result.events), result.outcome) == (log, Outcome.COMPLETED)


@pytest.mark.parametrize(
    "frame",
    [
        b'data: {"error": {"message": "no capacity", "code": "busy"}}\n\n',
        b'event: error\ndata: {"type": "error", "message": "no capacity", "code": "busy"}\n\n',
        b'event: error\ndata: {"type": "error", "error": {"message": "no capacity", "type": "busy"}}\n\n',
    ],
)
def test_an_error_without_a_number_is_raised_after_what_came_before(frame: bytes) -> None:
    result = run(stream(lambda sent: Reply([*FRAMES[:3], frame])))
    assert isinstance(result.error, UpstreamError) and len(result.events) == 3
    assert "no capacity" in str(result.error) and result.error.type in ("busy", "error")


# --- not in the background ------------------------------------------------------------------------------------------

LIVE = _log(background=False)
LIVE_BODY = {"model": "m", "input": "hi", "stream": True}


@pytest.mark.parametrize(
    ("status", "outcome"), [("failed", Outcome.FAILED), ("cancelled", Outcome.CANCELLED), ("completed", None), ("500", None)]
)
def test_what_a_stored_response_says_of_itself_is_better_than_a_cut(status: str, outcome: Outcome | None) -> None:
    result = run(stream(Responses(LIVE[:6], status=(status,)), json=LIVE_BODY))
    assert result.outcome is outcome
    assert outcome is not None or isinstance(result.error, StreamInterrupted | RetriesExhausted)


def test_the_server_knows_better_than_the_request_whether_it_runs_in_the_background() -> None:
    result = run(stream(Responses(LIVE, cuts=[(900, "rst")])))
    assert isinstance(result.error, StreamInterrupted)
    first = run(stream(Responses(cuts=[(900, "rst")]), json=LIVE_BODY))
    assert first.outcome is Outcome.COMPLETED


# --- statuses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, NOT_BACKGROUND, NotResumable),
        (400, NOT_STREAMED, NotResumable),
        (400, OLD, CursorExpired),
        (400, AZURE_OLD, CursorExpired),
        (400, b"no json", CursorExpired),
        (400, BAD_CURSOR, ResponseRejected),
        (401, b"{}", ResponseRejected),
        (403, b"{}", ResponseRejected),
        (404, UNKNOWN, CursorExpired),
        (410, b"", CursorExpired),
        (405, b"", NotResumable),
        (422, b"", ResponseRejected),
        (429, b"", RetriesExhausted),
        (500, b"", RetriesExhausted),
        (503, b"", RetriesExhausted),
    ],
)
def test_what_a_status_means_when_it_resumes(status: int, body: bytes, error: type) -> None:
    result = run(stream(Responses(cuts=[(700, "rst")], refuse=(status, body))))
    assert type(result.error) is error
    assert payloads(result.events) == LOG[: len(result.events)] and result.events
    if body in (OLD, NOT_BACKGROUND):
        assert "created" in str(result.error) or "5 minutes" in str(result.error)
    assert result.error is not None and result.error.checkpoint is not None


@pytest.mark.parametrize(("status", "outcome"), [("failed", Outcome.FAILED), ("cancelled", Outcome.CANCELLED)])
def test_a_run_that_is_over_is_not_given_up_although_its_stream_cannot_be_read(status: str, outcome: Outcome) -> None:
    """How it ended is known to the API, whatever its streaming half answers. It is asked twice before it is believed."""
    result = run(stream(Responses(cuts=[(700, "rst")], refuse=(503, b""), status=(status,))))
    assert (result.outcome, result.error) == (outcome, None)
    assert [sent.params.get("stream") for sent in result.stream.sent[-3:]] == ["true", None, None]


def test_a_run_that_goes_on_is_given_up_as_it_was() -> None:
    result = run(stream(Responses(cuts=[(700, "rst")], refuse=(503, b""), status=("in_progress",))))
    assert type(result.error) is RetriesExhausted
    assert result.error.checkpoint is not None and "final" not in result.error.checkpoint.extra


def test_a_completed_run_is_given_up_with_what_failed_and_another_process_may_ask_in_peace() -> None:
    """It may well hold its events: it is its streaming half that is overloaded."""
    result = run(stream(Responses(cuts=[(700, "rst")], refuse=(503, b""))))
    assert type(result.error) is RetriesExhausted and "503" in str(result.error)
    assert result.error.checkpoint is not None and "final" not in result.error.checkpoint.extra


@pytest.mark.parametrize("status", [400, 404])
def test_a_first_request_that_is_refused_is_no_lost_stream(status: int) -> None:
    result = run(stream(lambda sent: Reply([error("bad model", "model")], status=status, type="application/json")))
    assert isinstance(result.error, ResponseRejected)


MISSING = "response resp_1 is {}, but its stream does not send the rest"


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, b'{"status": "queued"}', Resume()),
        (200, b'{"status": "in_progress"}', Resume()),
        (200, b'{"status": "completed"}', Over(Outcome.COMPLETED, lost=MISSING.format("completed"))),
        (200, b'{"status": "incomplete"}', Over(Outcome.INCOMPLETE, lost=MISSING.format("incomplete"))),
        (200, b'{"status": "failed"}', Over(Outcome.FAILED)),
        (200, b'{"status": "cancelled"}', Over(Outcome.CANCELLED)),
        (200, b'{"status": "new word"}', Resume()),
        (200, b"<html>", Resume()),
        (200, b"[]", Resume()),
        (405, b"", Resume()),
        (404, UNKNOWN, Lost("response resp_1 is unknown or has expired")),
        (401, b"", Reject("the server refused to report the status of response resp_1: 401")),
    ],
)
def test_what_the_answer_about_a_response_means(status: int, body: bytes, verdict: Any) -> None:
    assert OpenAIResponses().on_verified(Answer(status, {}, body), known()) == verdict


def test_without_an_id_or_a_stored_response_there_is_nothing_to_ask() -> None:
    protocol = OpenAIResponses()
    assert isinstance(protocol.on_clean_close(known(stream_id=None)), Interrupted)
    assert isinstance(protocol.on_clean_close(known(json={**BODY, "store": False})), Interrupted)
    assert isinstance(protocol.on_clean_close(known()), Verify)


# --- the stored result ----------------------------------------------------------------------------------------------


def test_a_response_too_old_to_be_streamed_is_delivered_from_its_stored_result() -> None:
    server = Responses(cuts=[(1100, "rst")], refuse=(400, OLD))
    result = run(stream(server, on_lost="snapshot"))
    at = next(index for index, event in enumerate(result.events) if event.reset)
    again = result.events[at:]
    assert (result.outcome, payloads(result.events[:at])) == (Outcome.COMPLETED, LOG[:at])
    assert [event.reset for event in again] == [True] + [False] * (len(again) - 1)
    assert (text_of(again), text_of(again, "reasoning"), text_of(again, "tool")) == (TEXT, "Hm…", '{"q":1}')
    assert text_of(again, "refusal") == "No."
    assert again[-1].json() == {"type": "response.completed", "response": RESULT}
    # No number, no cursor: a stop in the middle never skips an event of the stream.
    assert {event.cursor for event in again} == {None}


def test_a_response_that_still_runs_is_asked_for_until_its_result_is_there() -> None:
    server = Responses(cuts=[(1100, "rst")], refuse=(400, OLD), status=("queued", "in_progress", "completed"))
    result = run(stream(server, on_lost="snapshot"))
    assert result.outcome is Outcome.COMPLETED
    assert any(event.reset for event in result.events)


def test_a_response_that_never_ends_is_asked_for_under_the_policy() -> None:
    server = Responses(cuts=[(1100, "rst")], refuse=(400, OLD), status=("in_progress",))
    error = run(stream(server, on_lost="snapshot", delay=policy(3))).error
    assert isinstance(error, RetriesExhausted)
    assert error.checkpoint is not None


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"status": "unheard of"}', b'{"status": "completed"}', b'{"status":"failed","output":5}']
)
def test_a_stored_result_of_any_shape_is_taken_or_refused(body: bytes) -> None:
    snapshot = OpenAIResponses().on_snapshot(Answer(200, {}, body), known())
    assert (snapshot is not None) == (b"completed" in body or b"failed" in body)
    assert snapshot is None or snapshot.events[0].event == "response.created"


# --- another process ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [1, 5, 9, 12])
def test_another_process_continues_from_a_token(taken: int) -> None:
    here = stream(Responses())
    before = run(here, at_most=taken).events
    token = here.leave().token()
    there = stream(Responses(), json=None, checkpoint=rs.Checkpoint.from_token(token))
    there.server.answers = 1  # type: ignore[attr-defined]
    after = run(there)
    assert payloads([*before, *after.events]) == LOG
    assert after.outcome is Outcome.COMPLETED
    assert [sent.params for sent in there.sent] == [{"stream": "true", "starting_after": str(taken - 1)}]


def test_another_process_asks_nothing_of_a_stream_that_was_read_to_its_end() -> None:
    here = stream(Responses())
    run(here)
    there = stream(Responses(), checkpoint=here.checkpoint)
    assert (run(there).outcome, there.sent) == (Outcome.COMPLETED, [])


def test_leaving_the_loop_at_the_terminal_event_is_its_end() -> None:
    here = stream(Responses())
    run(here, at_most=len(LOG))
    there = stream(Responses(), checkpoint=here.leave())
    assert (run(there).outcome, there.sent) == (Outcome.COMPLETED, [])


def test_another_process_knows_that_a_generation_was_tied_to_its_connection() -> None:
    here = stream(Responses(LIVE), json=LIVE_BODY)
    run(here, at_most=5)
    there = stream(Responses(LIVE), json=None, checkpoint=here.leave())
    assert isinstance(run(there).error, NotResumable)


# --- reading --------------------------------------------------------------------------------------------------------


def test_the_visible_text_is_one_kind_among_others() -> None:
    assert [text_of([event(item) for item in LOG], kind) for kind in ("text", "reasoning", "tool")] == [TEXT, "Hm…", '{"q":1}']
    (delta,) = OpenAIResponses().deltas(event(LOG[10], "response.function_call_arguments.delta"))
    assert delta == Delta("tool", '{"q":1}', 2)
    for odd in ("[DONE]", "", "[]", {"type": "response.output_text.delta"}, {"type": "response.output_text.delta", "delta": 5}):
        assert list(OpenAIResponses().deltas(event(odd))) == []


def test_a_batch_is_placed_like_its_events() -> None:
    protocol = OpenAIResponses()
    rows: list[Any] = [LOG[0], LOG[1], "[DONE]", {"type": "x", "sequence_number": 0}, {"type": "x"}, LOG[3]]
    single = [protocol.position(event(row, row["type"] if isinstance(row, dict) else "message")) for row in rows]
    batch = [event(row, row["type"] if isinstance(row, dict) else "message") for row in rows]
    protocol.place(batch)
    assert [item.sequence for item in batch] == [each.sequence for each in single] == [0, 1, None, None, None, 3]


def test_padding_is_no_part_of_an_event() -> None:
    protocol = OpenAIResponses()
    one, two = (event({"type": "x.delta", "delta": ',"obfuscation":"no"', "obfuscation": pad, "n": 1}) for pad in ("a", "bcd"))
    assert protocol.fingerprint(one) == protocol.fingerprint(two)
    assert protocol.fingerprint(event({"delta": ',"obfuscation":"a"'})) != protocol.fingerprint(
        event({"delta": ',"obfuscation":"b"'})
    )


# --- requests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://a.example/v1/responses", "https://a.example/v1/responses/r%2F1"),
        ("https://a.example/v1/responses/", "https://a.example/v1/responses/r%2F1"),
        ("https://a.example/openai/responses?api-version=1", "https://a.example/openai/responses/r%2F1?api-version=1"),
        ("https://a.example/v1/agent", "https://a.example/v1/responses/r%2F1"),
    ],
)
def test_a_response_stands_below_the_url_that_made_it(url: str, place: str) -> None:
    state = known(url=url, stream_id="r/1")
    protocol = OpenAIResponses()
    resume, cancel = protocol.resume_request(state), protocol.cancel_request(state)
    assert resume is not None and (resume.method, resume.url) == ("GET", place)
    assert cancel is not None and cancel.url == place.replace("r%2F1", "r%2F1/cancel") and cancel.repeat is None
    state.forget()
    assert (protocol.resume_request(state), protocol.cancel_request(state)) == (None, None)


STREAMS = {"content-type": "text/event-stream; charset=utf-8"}


@pytest.mark.parametrize(
    ("method", "url", "body", "type", "found"),
    [
        ("POST", URL, BODY, None, True),
        ("POST", URL, {"model": "m", "input": "x", "stream": True}, None, True),
        ("POST", "https://x.example/openai/responses?api-version=1", BODY, None, True),
        ("POST", URL, None, None, False),
        ("GET", f"{URL}/resp_1?stream=true", None, None, True),
        ("GET", f"{URL}/caresp_1", None, None, True),
        ("GET", f"{URL}/corresp_1", None, None, False),
        ("POST", URL, BODY, "application/json", False),
        ("POST", URL, {"model": "m", "input": "x"}, None, False),
        ("POST", URL, {"question": "x", "stream": True}, None, False),
        ("POST", "https://x.example/v1/chat/completions", BODY, None, False),
        ("POST", "https://x.example/responses", None, None, False),
        ("GET", URL, None, None, False),
        ("GET", "https://x.example/surveys/responses/7", None, None, False),
        ("PUT", URL, BODY, None, False),
    ],
)
def test_it_is_known_by_its_request_and_head(method: str, url: str, body: Any, type: str | None, found: bool) -> None:
    headers = {"content-type": type} if type else STREAMS
    assert OpenAIResponses().matches(StreamState(method, url, body), Head(200, headers, url)) is found


def test_what_it_promises() -> None:
    assert repr(OpenAIResponses()) == "<OpenAIResponses: resumable, numbered, has_end>"
    assert repr(OpenAIResponses(numbered=False)) == "<OpenAIResponses: has_end>"
    assert (OpenAIResponses().options, OpenAIResponses(numbered=False).options) == ("", "numbered=False")


# --- sockets --------------------------------------------------------------------------------------------------------


def over_http(core: Responses) -> Callable[[RecordedRequest], HTTPReply | None]:
    """What is no stream is answered by the server above; a stream by the log."""
    from resumable_stream.testing.server import Reply as HTTPReply

    def answer(request: RecordedRequest) -> HTTPReply | None:
        if request.method == "GET" and request.query.get("stream") == "true":
            return None
        if request.method == "POST" and not request.path.endswith("/cancel"):
            return None
        sent = Sent(request.method, request.url, dict(request.headers), None, 0.0, None, True, None)  # type: ignore[arg-type]
        reply = core(sent)
        body = b"".join(step for step in reply.steps if isinstance(step, bytes))
        return HTTPReply(status=reply.status, headers={"content-type": reply.type}, body=body)

    return answer


def number_in(frame: bytes) -> str:
    return str(json.loads(frame.partition(b"data: ")[2])["sequence_number"])


@pytest.fixture
def api(flaky_server: Callable[..., FlakyServer]) -> Callable[..., FlakyServer]:
    def make(*schedule: Any, core: Responses | None = None, log: list[bytes] = FRAMES, **options: Any) -> FlakyServer:
        return flaky_server(
            log,
            schedule,
            path="/v1/responses",
            cursor_param="starting_after",
            cursor_of=number_in,
            on_request=over_http(core or Responses(status=("in_progress",))),
            **options,
        )

    return make


@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
async def test_over_sockets_every_event_arrives_once(row: Row, api: Callable[..., FlakyServer], how: Any) -> None:
    schedule = [Fault.cut(after_bytes=FIRST + 11, how=how), *(Fault.cut(after_bytes=n, how=how) for n in (0, 3, 140, 290, 97))]
    server = api(*schedule)
    opened = row.connect("POST", server.url, json=BODY, protocol=OpenAIResponses())
    events = await row.read(opened)
    assert (payloads(events), opened.outcome) == (LOG, Outcome.COMPLETED)
    assert (opened.stats.connections, opened.stream_id) == (len(schedule) + 1, ID)


async def test_over_sockets_text_cancel_and_token(row: Row, api: Callable[..., FlakyServer]) -> None:
    server = api(Fault.cut(after_bytes=FIRST + 600))
    async with row.connect("POST", server.url, json=BODY, protocol=OpenAIResponses()) as opened:
        assert "".join([piece async for piece in opened.iter_text()]) == TEXT
    core = Responses(LOG[:6], status=("cancelled",))
    server = api(core=core, log=FRAMES[:6])
    seen = []
    async with row.connect("POST", server.url, json=BODY, protocol=OpenAIResponses()) as opened:
        async for each in opened:
            seen.append(each)
            if len(seen) == 3:
                await opened.cancel()
    assert (payloads(seen), opened.outcome, core.cancelled) == (LOG[:6], Outcome.CANCELLED, True)
    server = api()
    async with row.connect("POST", server.url, json=BODY, protocol=OpenAIResponses()) as opened:
        async for each in opened:
            if each.sequence == 6:
                break
    async with row.resume(opened.token, origin=server.url, protocol=OpenAIResponses()) as there:
        rest = [each async for each in there]
    assert payloads(rest) == LOG[7:]


async def test_over_sockets_the_stored_result_resets_the_text(row: Row, api: Callable[..., FlakyServer]) -> None:
    faults = [Fault.cut(after_bytes=1000), Fault.status(400, body=OLD)]
    server = api(*faults, core=Responses())
    async with row.connect("POST", server.url, json=BODY, protocol=OpenAIResponses(), on_lost="snapshot") as opened:
        assert await opened.read_text() == TEXT
    assert opened.outcome is Outcome.COMPLETED
