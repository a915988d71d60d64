"""`GeminiInteractions`: every event once, whatever byte it is cut at, and no outcome that nobody vouched for."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from resumable_stream import (
    Checkpoint,
    CursorExpired,
    NotResumable,
    Outcome,
    ResponseRejected,
    ResumableStreamError,
    RetriesExhausted,
    StreamInterrupted,
    Timeouts,
    UpstreamError,
)
from resumable_stream._contract import Answer, Head, Interrupted, Lost, Over, Reject, Resume, Retry, Settled, StreamState, Verify
from resumable_stream._events import Delta, StreamEvent
from resumable_stream.protocols.gemini_interactions import GeminiInteractions
from resumable_stream.testing import Fault, FlakyServer
from resumable_stream.testing import Reply as Whole
from resumable_stream.testing.server import RecordedRequest

from ..core.simulation import CUTS, DROPPED, UNSENT, Failure, Reply, Sent, Stream, cut_body, run

if TYPE_CHECKING:
    from tests.conftest import Row

URL = "https://generativelanguage.googleapis.com/v1beta/interactions"
BODY = {"model": "gemini-x", "input": "Weather?", "stream": True}


def frame(kind: str, id: str | None = None, **data: Any) -> bytes:
    """One event, as the API writes it: its type twice, its `event_id` in the JSON if it has one."""
    payload = {"event_type": kind, **({} if id is None else {"event_id": id}), **data}
    return f"event: {kind}\ndata: {json.dumps(payload, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def part(id: str | None, index: int, **delta: Any) -> bytes:
    return frame("step.delta", id, index=index, delta=delta)


def completed(status: str | None = "completed") -> bytes:
    return frame("interaction.completed", "z", interaction={"id": "i1"} | ({} if status is None else {"status": status}))


CREATED = frame("interaction.created", "a", interaction={"id": "i1", "status": "in_progress"})
MIDDLE = [
    frame("interaction.status_update", interaction_id="i1", status="in_progress", continuation_token="t"),
    part("c", 0, type="thought_summary", content={"type": "text", "text": "Där?"}),
    part(None, 0, type="thought_signature", signature="s"),
    frame("step.stop", "d", index=0),
    part("f", 1, type="text", text="Hé"),
    b": alive\n\n",
    # Alike, and without an id: known by their order behind the cursor.
    part(None, 1, type="text", text="l"),
    part(None, 1, type="text", text="l"),
    part("g/ü+1", 1, type="text", text="o 🦊"),
    part("h", 2, type="arguments_delta", arguments='{"a":1}'),
]
DONE = b"data: [DONE]\n\n"
FRAMES = [CREATED, *MIDDLE, completed(), DONE]
DATA = [raw.decode().split("data: ")[1].rstrip() for raw in FRAMES if b"data:" in raw]
TEXT = "Héllo 🦊"


def ends(frames: Sequence[bytes]) -> list[int]:
    """Where each event is complete."""
    return [end for end, raw in zip(itertools.accumulate(map(len, frames)), frames, strict=True) if b"data:" in raw]


ENDS = ends(FRAMES)
WHOLE = ENDS[-1]


def id_of(raw: bytes) -> str | None:
    if b"data: {" not in raw:
        return None
    found = json.loads(raw.split(b"data: ")[1]).get("event_id")
    return found if isinstance(found, str) else None


BEHIND = {cursor: index + 1 for index, raw in enumerate(FRAMES) if (cursor := id_of(raw))}


def document(status: str, **more: Any) -> bytes:
    steps = [
        {"type": "user_input", "content": [{"type": "text", "text": "Weather?"}]},
        {"type": "thought", "summary": [{"type": "text", "text": "Där?"}]},
        {"type": "model_output", "content": [{"type": "text", "text": TEXT}, {"type": "image", "data": ""}]},
        {"type": "function_call", "id": "f", "name": "w", "arguments": {"a": 1}},
    ]
    return json.dumps({"id": "i1", "status": status, "steps": steps, **more}, ensure_ascii=False).encode()


def trouble(status: int, message: str = "told") -> Reply:
    return Reply(
        [json.dumps({"error": {"code": status, "message": message, "status": "X"}}).encode()],
        status=status,
        type="application/json",
    )


class API:
    """
    The endpoints to the letter.

    Args:
        cuts: For each stream in turn where and how it is cut.
        status: How the interaction stands whenever it is asked.
        refuse: Answers to the requests behind the first, one each.
    """

    def __init__(
        self,
        cuts: Sequence[tuple[int, str] | None] = (),
        *,
        frames: Sequence[bytes] = FRAMES,
        status: str = "completed",
        refuse: Sequence[Reply | Failure] = (),
    ) -> None:
        self.cuts, self.frames, self.status, self.refuse = list(cuts), list(frames), status, list(refuse)
        self.posts = 0
        self.asked = 0

    def __call__(self, sent: Sent) -> Reply | Failure:
        if sent.method == "POST" and sent.path == "/v1beta/interactions":
            assert sent.json == BODY
            self.posts += 1
            return self.stream(0)
        if self.refuse:
            return self.refuse.pop(0)
        assert (sent.method, sent.json) == ("GET", None)
        if sent.path != "/v1beta/interactions/i1":
            return trouble(404)
        params = sent.params
        if "stream" not in params:
            assert "last_event_id" not in params
            self.asked += 1
            return Reply([document(self.status)], type="application/json; charset=UTF-8")
        assert params["stream"] == "true"
        cursor = params.get("last_event_id")
        return self.stream(0 if cursor is None else BEHIND[cursor])

    def stream(self, start: int) -> Reply:
        cut = self.cuts.pop(0) if self.cuts else None
        return Reply(cut_body(b"".join(self.frames[start:]), cut, None), type="text/event-stream")


def stream(server: Any, **options: Any) -> Stream:
    made = {"method": "POST", "url": URL, "json": BODY, "protocol": GeminiInteractions(), **options}
    return Stream(server, **made)


def event(data: object, name: str = "message") -> StreamEvent:
    return StreamEvent(event=name, data=data if isinstance(data, str) else json.dumps(data))


# --- cuts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", CUTS)
def test_it_is_resumed_however_often_it_is_cut(cut: str) -> None:
    # More than lies between two events that have a cursor.
    for step in (330, 345, 500):
        result = run(stream(API([(ENDS[0] + 1, cut)] + [(step, cut)] * 20)))
        assert (result.outcome, result.error) == (Outcome.COMPLETED, None)
        assert result.data in (DATA, DATA[:-1])
        assert result.stream.machine.stats.reconnects > 2


def test_clean_closes_without_anything_new_are_no_end() -> None:
    result = run(stream(API([(ENDS[4], "close"), (0, "close"), (0, "close"), None])))
    assert (result.data, result.outcome) == (DATA, Outcome.COMPLETED)


def test_the_cursor_is_that_of_the_last_event_that_has_one() -> None:
    result = run(stream(API([(ENDS[2], "rst")])))
    first, second = result.stream.sent
    assert (first.method, second.method) == ("POST", "GET")
    assert (second.path, second.params) == ("/v1beta/interactions/i1", {"stream": "true", "last_event_id": "c"})
    assert (second.json, second.side) == (None, False)
    assert [item.cursor for item in result.events][:5] == ["a", "a", "c", "c", "d"]


def test_a_key_in_the_url_goes_along() -> None:
    result = run(stream(API([(ENDS[3], "close")]), url=f"{URL}?key=k"))
    assert [sent.params.get("key") for sent in result.stream.sent] == ["k"] * 3
    assert result.error is None


def test_events_that_come_again_are_dropped() -> None:
    server = API([(ENDS[5], "rst")])

    def inclusive(sent: Sent) -> Any:
        cursor = sent.params.get("last_event_id")
        return server(sent) if cursor is None else server.stream(BEHIND[cursor] - 2)

    result = run(stream(inclusive))
    assert (result.data, result.outcome) == (DATA, Outcome.COMPLETED)
    assert result.stream.machine.stats.duplicates > 0


def test_a_stream_that_has_not_shown_an_event_id_cannot_be_resumed() -> None:
    bare = [frame("interaction.created", interaction={"id": "i1"}), part(None, 0, type="text", text="Hi")]
    for cut in CUTS:
        result = run(stream(API([(ends(bare)[1], cut)], frames=[*bare, completed()])))
        assert len(result.data) == 2
        assert type(result.error) is StreamInterrupted


@pytest.mark.parametrize("cut", CUTS)
def test_what_is_not_stored_cannot_be_resumed(cut: str) -> None:
    result = run(stream(lambda sent: API([(ENDS[6], cut)]).stream(0), json={**BODY, "store": False}))
    assert (result.data, type(result.error)) == (DATA[:7], StreamInterrupted)
    assert result.error is not None and result.error.checkpoint is not None
    again = run(stream(API(), checkpoint=result.error.checkpoint))
    assert isinstance(again.error, NotResumable)


def test_an_interaction_of_another_process_is_read_by_get() -> None:
    for position in range(0, WHOLE, 61):
        result = run(stream(API([(position, "rst")]), method="GET", url=f"{URL}/i1?stream=true", json=None))
        assert result.data in (DATA, DATA[:-1])
        assert result.outcome is Outcome.COMPLETED


@pytest.mark.parametrize("taken", [1, 2, 6, 8, 11])
def test_another_process_goes_on_where_this_one_stopped(taken: int) -> None:
    first = stream(API())
    before = [next(first).data for _ in range(taken)]
    token = first.leave().token()
    checkpoint = Checkpoint.from_token(token)
    assert (checkpoint.protocol, checkpoint.stream_id, checkpoint.offset) == ("GeminiInteractions", "i1", taken)
    api = API()
    second = run(stream(api, json=None, checkpoint=checkpoint))
    assert (before + second.data, second.outcome, api.posts) == (DATA, Outcome.COMPLETED, 0)


# --- how it ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("completed", Outcome.COMPLETED),
        ("requires_action", Outcome.COMPLETED),
        (None, Outcome.COMPLETED),
        ("requires_continuation", Outcome.INCOMPLETE),
        ("incomplete", Outcome.INCOMPLETE),
        ("budget_exceeded", Outcome.INCOMPLETE),
        ("failed", Outcome.FAILED),
        ("cancelled", Outcome.CANCELLED),
    ],
)
def test_the_last_event_says_how_it_ended(status: str | None, outcome: Outcome) -> None:
    for tail in ([DONE], []):
        assert run(stream(API(frames=[CREATED, completed(status), *tail]))).outcome is outcome


@pytest.mark.parametrize("name", ["interaction.complete", "message"])
def test_earlier_names_and_events_without_one_are_understood(name: str) -> None:
    kind = "interaction.complete" if name != "message" else "interaction.completed"
    last = event({"event_type": kind, "interaction": {"status": "failed"}}, name)
    assert GeminiInteractions().end(last) == Settled(Outcome.FAILED)


def test_the_sentinel_alone_proves_nothing() -> None:
    result = run(stream(API(frames=[CREATED, DONE], status="completed")))
    assert isinstance(result.error, CursorExpired)
    assert result.data == [DATA[0]], "the SDK stops reading at [DONE]"


@pytest.mark.parametrize(
    ("status", "outcome"), [("failed", Outcome.FAILED), ("cancelled", Outcome.CANCELLED), ("incomplete", Outcome.INCOMPLETE)]
)
def test_a_run_that_ended_badly_without_an_event_to_say_so_is_asked_three_times(status: str, outcome: Outcome) -> None:
    api = API(frames=FRAMES[:6], status=status)
    result = run(stream(api))
    assert (result.data, result.outcome, result.error, api.asked) == (DATA[:6], outcome, None, 4)


def test_a_completed_run_that_does_not_bring_its_end_is_not_believed() -> None:
    result = run(stream(API(frames=FRAMES[:6])))
    assert isinstance(result.error, CursorExpired)
    assert result.data == DATA[:6]


def test_a_run_that_runs_and_says_nothing_spends_the_retries() -> None:
    assert isinstance(run(stream(API(frames=FRAMES[:6], status="in_progress"))).error, RetriesExhausted)


def test_a_silent_run_that_runs_is_waited_for() -> None:
    api = API([(ENDS[3], "silence"), *[(0, "silence")] * 15], status="in_progress")
    result = run(stream(api))
    assert (result.data, result.outcome) == (DATA, Outcome.COMPLETED)
    assert api.asked == 15


@pytest.mark.parametrize(
    ("raw", "kind", "message"),
    [
        (frame("error", "e", error={"code": "uri:x", "message": "kaputt"}), "uri:x", "kaputt"),
        (b'data: {"event_type":"error","error":{"message":"kaputt"}}\n\n', "", "kaputt"),
        (b'data: {"error":{"code":503,"message":"kaputt"}}\n\n', "503", "kaputt"),
        (b"event: error\ndata: kaputt\n\n", "", "kaputt"),
    ],
)
def test_an_error_in_the_stream_is_raised_and_keeps_the_place(raw: bytes, kind: str, message: str) -> None:
    result = run(stream(API(frames=[*FRAMES[:4], raw, *FRAMES[4:]])))
    assert isinstance(result.error, UpstreamError)
    assert (result.error.type, result.data) == (kind, DATA[:4])
    assert message in str(result.error)
    assert result.error.checkpoint is not None and result.error.checkpoint.cursor == "c"


# --- statuses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, ResponseRejected),
        (401, ResponseRejected),
        (403, ResponseRejected),
        (404, CursorExpired),
        (405, NotResumable),
        (410, CursorExpired),
        (408, None),
        (429, None),
        (500, None),
        (503, None),
    ],
)
def test_what_the_answer_to_a_resume_request_means(status: int, error: type[ResumableStreamError] | None) -> None:
    api = API([(ENDS[4], "rst")], refuse=[trouble(status)] * (2 if status in (401, 403) else 1))
    result = run(stream(api))
    assert type(result.error) is (error or type(None))
    assert result.data == (DATA[:5] if error else DATA)


def test_an_empty_answer_without_content_is_no_end() -> None:
    result = run(stream(API([(ENDS[4], "rst")], refuse=[Reply(status=204, type="")])))
    assert isinstance(result.error, CursorExpired)


@pytest.mark.parametrize(
    ("status", "again"), [(400, False), (401, False), (403, False), (404, False), (429, True), (500, False), (503, True)]
)
def test_the_post_is_repeated_only_when_it_was_not_accepted(status: int, again: bool) -> None:
    replies = [trouble(status)]
    api = API()
    result = run(stream(lambda sent: replies.pop() if replies else api(sent)))
    assert (type(result.error), result.data) == ((type(None), DATA) if again else (ResponseRejected, []))


def test_without_an_answer_only_what_was_never_sent_is_sent_again() -> None:
    replies: list[Any] = [UNSENT]
    api = API()
    assert run(stream(lambda sent: replies.pop() if replies else api(sent))).data == DATA
    assert isinstance(run(stream(lambda sent: DROPPED)).error, StreamInterrupted)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (Answer(200, {}, document("in_progress")), Resume),
        (Answer(200, {}, document("queued")), Resume),
        (Answer(200, {}, document("completed")), Over),
        (Answer(200, {}, document("paused")), Retry),
        (Answer(200, {}, b"<html>"), Retry),
        (Answer(200, {}, b"[]"), Retry),
        (Answer(404, {}, b""), Lost),
        (Answer(410, {}, b""), Lost),
        (Answer(400, {}, b""), Reject),
        (Answer(403, {}, b""), Reject),
    ],
)
def test_how_it_stands(answer: Answer, verdict: type) -> None:
    assert isinstance(GeminiInteractions().on_verified(answer, known()), verdict)


def test_a_status_check_that_fails_is_tried_again() -> None:
    refuse: list[Reply | Failure] = [trouble(503), DROPPED, Reply([b"{}"], type="application/json")]
    result = run(stream(API([(ENDS[4], "close")], refuse=refuse)))
    assert (result.data, result.outcome) == (DATA, Outcome.COMPLETED)


# --- the stored result ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "outcome"), [("completed", Outcome.COMPLETED), ("failed", Outcome.FAILED)])
def test_the_stored_result_replaces_what_is_lost(status: str, outcome: Outcome) -> None:
    api = API([(ENDS[4], "rst")], refuse=[trouble(404)], status=status)
    result = run(stream(api, on_lost="snapshot"))
    assert (result.outcome, result.error) == (outcome, None)
    last = result.events[-1]
    assert (last.event, last.reset, last.offset, last.json()["id"]) == ("interaction", True, 0, "i1")
    assert list(GeminiInteractions().deltas(last)) == [
        Delta("reasoning", "Där?", 1),
        Delta("text", TEXT, 2),
        Delta("tool", '{"a": 1}', 3),
    ]


@pytest.mark.parametrize("body", [document("in_progress"), b"no", b"[]", b"{}"])
def test_a_stored_piece_is_of_no_use(body: bytes) -> None:
    assert GeminiInteractions().on_snapshot(Answer(200, {}, body), known()) is None
    refuse = [trouble(404), Reply([body], type="application/json")]
    result = run(stream(API([(ENDS[4], "rst")], refuse=refuse), on_lost="snapshot"))
    assert isinstance(result.error, CursorExpired)


@pytest.mark.parametrize("steps", [None, [], [None, 5, {}, {"type": "model_output"}], [{"type": "model_output", "content": [1]}]])
def test_a_stored_result_without_content_has_no_text(steps: Any) -> None:
    assert tuple(GeminiInteractions().deltas(event({"status": "completed", "steps": steps}, "interaction"))) == ()


# --- content --------------------------------------------------------------------------------------------------------


def test_the_deltas_of_an_answer() -> None:
    found = [piece for item in run(stream(API())).events for piece in GeminiInteractions().deltas(item)]
    assert found == [
        Delta("reasoning", "Där?", 0),
        *(Delta("text", text, 1) for text in ("Hé", "l", "l", "o 🦊")),
        Delta("tool", '{"a":1}', 2),
    ]


def test_the_earlier_name_of_a_delta_is_text_too() -> None:
    old = event({"event_type": "content.delta", "index": 3, "delta": {"type": "text", "text": "x"}})
    assert tuple(GeminiInteractions().deltas(old)) == (Delta("text", "x", 3),)


@pytest.mark.parametrize(
    "data",
    ["", "{", "[]", "{}", {"delta": 1}, {"delta": {"type": "text"}}, {"delta": {"type": "text", "text": 5}},
     {"delta": {"type": "thought_summary", "content": "x"}}, {"delta": {"type": "image", "data": "x"}}],
)  # fmt: skip
def test_what_is_no_content_is_no_text(data: Any) -> None:
    assert tuple(GeminiInteractions().deltas(event(data, "step.delta"))) == ()


# --- requests and detection -----------------------------------------------------------------------------------------


def known(**facts: Any) -> StreamState:
    state = StreamState("POST", f"{URL}?key=k", BODY)
    for name, value in {"stream_id": "i/1 é", "cursor": "f", **facts}.items():
        setattr(state, name, value)
    return state


def test_its_requests() -> None:
    protocol, state = GeminiInteractions(), known()
    url = f"{URL}/i%2F1%20%C3%A9"
    resume, status, cancel = protocol.resume_request(state), protocol.status_request(state), protocol.cancel_request(state)
    assert resume is not None and status is not None and cancel is not None
    assert (resume.method, resume.url, resume.params, resume.repeat) == (
        "GET",
        f"{url}?key=k",
        {"stream": "true", "last_event_id": "f"},
        None,
    )
    assert (status.method, status.url) == ("GET", f"{url}?key=k")
    assert (cancel.method, cancel.url, cancel.json) == ("POST", f"{url}/cancel?key=k", None)
    assert isinstance(protocol.on_clean_close(state), Verify)
    unknown = known(stream_id=None)
    assert (protocol.resume_request(unknown), protocol.status_request(unknown), protocol.cancel_request(unknown)) == (None,) * 3
    assert isinstance(protocol.on_clean_close(unknown), Interrupted)


SSE = {"content-type": "text/event-stream"}
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("method", "url", "body", "headers", "found"),
    [
        ("POST", URL, BODY, SSE, True),
        ("POST", URL, {"agent": "deep-research", "input": "x", "stream": True, "background": True}, SSE, True),
        ("POST", "https://x.googleapis.com/v1beta1/projects/p/locations/l/interactions", None, SSE, True),
        ("GET", f"{URL}/i1?stream=true", None, SSE, True),
        ("POST", URL, {**BODY, "stream": False}, SSE, False),
        ("POST", URL, {"input": "x", "stream": True}, SSE, False),
        ("POST", "https://api.example.com/v1/interactions", None, SSE, False),
        ("POST", f"{URL}/i1/cancel", BODY, SSE, False),
        ("POST", URL, BODY, JSON, False),
        ("GET", f"{URL}/i1", None, SSE, False),
        ("GET", f"{URL}?stream=true", None, SSE, False),
        ("GET", f"{URL}/i1?stream=true", None, JSON, False),
        ("PUT", URL, BODY, SSE, False),
    ],
)
def test_it_knows_its_own_endpoint(method: str, url: str, body: Any, headers: dict[str, str], found: bool) -> None:
    assert GeminiInteractions().matches(StreamState(method, url, body), Head(200, headers, url)) is found


def test_what_it_promises() -> None:
    assert repr(GeminiInteractions()) == "<GeminiInteractions: resumable, has_end>"


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ({"interaction": {"id": "i9"}}, "i9"),
        ({"interaction_id": "i9"}, "i9"),
        ({"interaction": {"id": ""}}, None),
        ({"interaction": {"id": 5}}, None),
        ({}, None),
        ("[DONE]", None),
        ("x", None),
    ],
)
def test_the_id_is_in_the_first_events(data: Any, found: str | None) -> None:
    state = StreamState("POST", URL, BODY)
    GeminiInteractions().identify(state, event(data))
    assert state.stream_id == found


# --- real sockets ---------------------------------------------------------------------------------------------------

QUICKLY = Timeouts(first_event=2, idle=2)
PATH = "/v1beta/interactions"


@pytest.fixture
def api(flaky_server: Callable[..., FlakyServer]) -> Callable[..., FlakyServer]:
    """The endpoints over a socket: the streams take the schedule, everything else is answered whole."""

    def make(schedule: Sequence[Any] = (), status: str = "completed") -> FlakyServer:
        def beside(request: RecordedRequest) -> Whole | None:
            if request.path.endswith("/cancel"):
                return Whole(headers={"content-type": "application/json"}, body=document("cancelled"))
            if request.method == "POST" or "stream" in request.query:
                return None
            return Whole(headers={"content-type": "application/json"}, body=document(status))

        return flaky_server(
            FRAMES, schedule, path=PATH, cursor_param="last_event_id", cursor_of=id_of, unknown_id=404, on_request=beside
        )

    return make


@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
async def test_over_a_socket_every_event_arrives_once(row: Row, api: Callable[..., FlakyServer], how: Any) -> None:
    # The first answer has the id; each of the others is cut a little later than the one before brought us.
    cuts = [ENDS[0] + 2, 0, 70, 139, 222, 1, 190]
    server = api([Fault.cut(after_bytes=at, how=how) for at in cuts])
    answer = row.connect("POST", server.url, json=BODY, protocol=GeminiInteractions(), timeouts=QUICKLY)
    events = await row.read(answer)
    assert [item.data for item in events][: len(DATA) - 1] == DATA[:-1]
    assert len(events) <= len(DATA)
    assert (answer.outcome, answer.stream_id, answer.stats.connections) == (Outcome.COMPLETED, "i1", len(cuts) + 1)
    assert [request.method for request in server.requests].count("POST") == 1


async def test_over_a_socket_a_token_resumes_and_the_text_is_whole(row: Row, api: Callable[..., FlakyServer]) -> None:
    server = api([Fault.cut(after_bytes=ENDS[6], how="rst")])
    answer = row.connect("POST", server.url, json=BODY, protocol=GeminiInteractions())
    async with answer:
        async for piece in answer.iter_text():
            assert piece == "Hé"
            break
    rest = row.resume(answer.token, origin=server.origin, protocol=GeminiInteractions())
    async with rest:
        assert "Hé" + await rest.read_text() == TEXT


async def test_over_a_socket_cancel_is_a_post(row: Row, api: Callable[..., FlakyServer]) -> None:
    server = api()
    answer = row.connect("POST", server.url, json=BODY, protocol=GeminiInteractions())
    async with answer:
        async for _ in answer:
            await answer.cancel()
            break
    assert (server.requests[-1].method, server.requests[-1].path) == ("POST", f"{PATH}/i1/cancel")
    assert server.requests[-1].body == b""


def test_an_end_that_was_delivered_in_another_process_is_known_when_it_comes_again() -> None:
    last = frame("interaction.completed", interaction={"id": "i1", "status": "failed"})
    api = API(frames=[*FRAMES[:-2], last, DONE])
    first = stream(api)
    before = [next(first).data for _ in range(11)]
    second = run(stream(API(frames=[*FRAMES[:-2], last, DONE]), checkpoint=first.leave()))
    assert (len(before), second.outcome, second.error) == (11, Outcome.FAILED, None)
