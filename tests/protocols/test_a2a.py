"""
A2A tasks, against servers that do what a2a-sdk 1.3 does (`server/routes`, `default_request_handler_v2`, `utils/errors`).

Read on 2026-11-20. What is promised is the state: the fold of the events delivered since the last reset.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest

import resumable_stream as rs
from resumable_stream._contract import Head, StreamState
from resumable_stream._errors import (
    CursorExpired,
    NotResumable,
    ResponseRejected,
    ResumableStreamError,
    RetriesExhausted,
    StreamInterrupted,
    StreamReset,
    UpstreamError,
)
from resumable_stream._events import Delta, Outcome
from resumable_stream.protocols.a2a import A2A
from resumable_stream.testing import Fault, FlakyServer
from resumable_stream.testing import Reply as Scripted
from resumable_stream.testing.faults import How
from resumable_stream.testing.server import RecordedRequest
from tests.conftest import Row
from tests.core.simulation import CUTS, Reply, Result, Sent, Step, Stream, cut_body, policy, run, script

RPC = "https://api.example.com/agent?tenant=a"
REST = "https://api.example.com/agent/message:stream"
TASK = "7f1c-1"
PARAMS = {"message": {"role": "ROLE_USER", "parts": [{"text": "Wie?"}]}}


def status(state: str, said: str | None = None) -> dict[str, Any]:
    message = {} if said is None else {"message": {"role": "ROLE_AGENT", "parts": [{"text": said}]}}
    return {"statusUpdate": {"taskId": TASK, "status": {"state": f"TASK_STATE_{state}", **message}}}


def piece(artifact: str, text: str, *, append: bool = True) -> dict[str, Any]:
    return {"artifactUpdate": {"taskId": TASK, "artifact": {"artifactId": artifact, "parts": [{"text": text}]}, "append": append}}


LOG: list[dict[str, Any]] = [
    {"task": {"id": TASK, "status": {"state": "TASK_STATE_SUBMITTED"}}},
    status("WORKING", "Ich suche …"),
    piece("a1", "Grüß ", append=False),
    piece("a1", "dich"),
    piece("a1", "! "),
    piece("a1", "🦊 "),
    status("WORKING"),
    piece("a2", "Und ", append=False),
    piece("a2", "noch "),
    piece("a2", "mehr"),
    {"artifactUpdate": {"taskId": TASK, "artifact": {"artifactId": "a3", "parts": [{"data": {"n": 1}}]}, "append": False}},
    piece("a2", "."),
    status("COMPLETED"),
]
TEXT = "Grüß dich! 🦊 Und noch mehr."


def old(response: dict[str, Any]) -> dict[str, Any]:
    """The same in v0.3: a `kind` beside the fields, lower case states, parts with a kind."""
    ((name, body),) = response.items()
    text = json.dumps(body, ensure_ascii=False)
    for state in ("SUBMITTED", "WORKING", "COMPLETED", "FAILED", "CANCELED", "REJECTED", "INPUT_REQUIRED", "AUTH_REQUIRED"):
        text = text.replace(f"TASK_STATE_{state}", state.lower().replace("_", "-"))
    kind = {"task": "task", "message": "message", "statusUpdate": "status-update", "artifactUpdate": "artifact-update"}[name]
    return {"kind": kind, **json.loads(text.replace('{"text":', '{"kind": "text", "text":'))}


def fold(responses: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The task that the updates make."""
    task: dict[str, Any] = {}
    for response in responses:
        ((name, body),) = response.items()
        if name == "task":
            task = json.loads(json.dumps(body))
        elif name == "statusUpdate":
            task["status"] = {"state": body["status"]["state"]}
        else:
            artifacts: list[dict[str, Any]] = task.setdefault("artifacts", [])
            new = body["artifact"]
            at = next((index for index, one in enumerate(artifacts) if one["artifactId"] == new["artifactId"]), None)
            if at is None:
                artifacts.append(json.loads(json.dumps(new)))
            elif body["append"]:
                artifacts[at]["parts"] += new["parts"]
            else:
                artifacts[at] = new
    return task


def joined(task: dict[str, Any]) -> list[tuple[str, str]]:
    """A task's artifacts as text: how it was cut into parts does not matter."""
    return [(one["artifactId"], "".join(part.get("text", "<data>") for part in one["parts"])) for one in task["artifacts"]]


class Server:
    """
    One task. What was sent before a cut has happened, and `away` more while nobody listened.

    Args:
        cuts: Of each stream answer in turn.
        style: `"1.0"`, `"0.3"` (JSON-RPC) or `"rest"`.
        refusal: Answers each subscription.
    """

    def __init__(
        self,
        cuts: Iterable[tuple[int, str]] = (),
        *,
        style: str = "1.0",
        away: int = 0,
        chunk: int | None = None,
        refusal: Reply | None = None,
        log: list[dict[str, Any]] = LOG,
    ) -> None:
        self.cuts, self.style, self.away, self.chunk, self.refusal, self.log = list(cuts), style, away, chunk, refusal, log
        self.happened = 0
        self.calls: list[str] = []

    def __call__(self, sent: Sent) -> Reply:
        verb = self.verb(sent)
        self.calls.append(verb)
        if verb == "start":
            return self.stream([])
        if verb == "get":
            return self.document(fold(self.log[: self.happened]))
        assert verb == "subscribe"
        if self.refusal is not None:
            return self.refusal
        if self.happened == len(self.log):
            return self.refuse()
        return self.stream([{"task": fold(self.log[: self.happened])}])

    def verb(self, sent: Sent) -> str:
        if self.style == "rest":
            task = f"/agent/tasks/{TASK}"
            verb = {task: "get", f"{task}:subscribe": "subscribe", "/agent/message:stream": "start"}[sent.path]
            assert sent.method == ("GET" if verb == "get" else "POST")
            assert verb == "start" or sent.request.repeat == "query"
            return verb
        assert (sent.method, sent.url) == ("POST", RPC)
        names = {
            "1.0": {"SendStreamingMessage": "start", "SubscribeToTask": "subscribe", "GetTask": "get"},
            "0.3": {"message/stream": "start", "tasks/resubscribe": "subscribe", "tasks/get": "get"},
        }
        verb = names[self.style][sent.json["method"]]
        assert set(sent.json) == {"jsonrpc", "id", "method", "params"}
        assert sent.json["params"] == (PARAMS if verb == "start" else {"id": TASK})
        return verb

    def wire(self, response: dict[str, Any]) -> Any:
        match self.style:
            case "rest":
                return response
            case "0.3":
                return {"jsonrpc": "2.0", "id": "r", "result": old(response)}
            case _:
                return {"jsonrpc": "2.0", "id": "r", "result": response}

    def block(self, response: dict[str, Any]) -> bytes:
        return f"data: {json.dumps(self.wire(response), ensure_ascii=False, separators=(',', ':'))}\r\n\r\n".encode()

    def stream(self, snapshot: list[dict[str, Any]]) -> Reply:
        live = self.log[self.happened :]
        blocks = [self.block(response) for response in [*snapshot, *live]]
        body = blocks[0] + b": ping - 2026-11-20\r\n\r\n" + b"".join(blocks[1:])
        cut = self.cuts.pop(0) if self.cuts else None
        sent, left = 0, (cut[0] if cut is not None else len(body))
        for index, block in enumerate(blocks):
            if left <= 0:
                break
            left -= len(block) + (len(b": ping - 2026-11-20\r\n\r\n") if index == 0 else 0)
            sent = index + 1
        # The one that was being sent has happened too.
        self.happened = min(len(self.log), self.happened + max(0, sent - len(snapshot)) + self.away)
        return Reply(cut_body(body, cut, self.chunk))

    def document(self, task: dict[str, Any]) -> Reply:
        document = task if self.style == "rest" else {"jsonrpc": "2.0", "id": "g", "result": task}
        if self.style == "0.3":
            document["result"] = old({"task": task})
        return Reply([json.dumps(document, ensure_ascii=False).encode()], type="application/json")

    def refuse(self) -> Reply:
        message = f"Task {TASK} is in terminal state: TASK_STATE_COMPLETED"
        if self.style == "rest":
            details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "UNSUPPORTED_OPERATION"}]
            error = {"code": 400, "status": "FAILED_PRECONDITION", "message": message, "details": details}
            return Reply([json.dumps({"error": error}).encode()], status=400, type="application/json")
        error = {"jsonrpc": "2.0", "id": "r", "error": {"code": -32004, "message": message}}
        return Reply([json.dumps(error).encode()], type="application/json")


def started(server: Server, **options: Any) -> Stream:
    if server.style == "rest":
        return Stream(server, method="POST", url=REST, json=PARAMS, protocol=A2A(), **options)
    method = "message/stream" if server.style == "0.3" else "SendStreamingMessage"
    call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": PARAMS}
    return Stream(server, method="POST", url=RPC, json=call, protocol=A2A(), **options)


def new(event: Any) -> dict[str, Any]:
    """What an event says, in the names of v1."""
    message = event.json()
    message = message.get("result", message)
    if "kind" not in message:
        return dict(message)
    kinds = {"task": "task", "status-update": "statusUpdate", "artifact-update": "artifactUpdate", "message": "message"}
    return {kinds[message["kind"]]: {name: value for name, value in message.items() if name != "kind"}}


def since_reset(events: list[Any]) -> list[Any]:
    start = max((index for index, event in enumerate(events) if event.reset), default=0)
    return events[start:]


def text_of(events: list[Any]) -> str:
    return "".join(delta.text for event in since_reset(events) for delta in A2A().deltas(event) if delta.kind == "text")


def in_order(result: Result) -> bool:
    """Whatever happened, the artifacts that we hold are the server's."""
    return joined(fold(map(new, since_reset(result.events)))) == joined(fold(LOG))


# --- cuts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["1.0", "0.3", "rest"])
def test_a_task_that_is_cut_again_and_again_arrives_whole(style: str) -> None:
    for kind in CUTS:
        for step in (150, 270, 420):
            result = run(started(Server([(step, kind)] * 9, style=style, away=1), on_lost="snapshot"))
            assert (text_of(result.events), result.outcome) == (TEXT, Outcome.COMPLETED), (kind, step)
            assert in_order(result)


def test_each_resume_is_a_reset_to_the_task_as_it_stands() -> None:
    result = run(started(Server([(700, "rst")])))
    (reset,) = [event for event in result.events if event.reset]
    assert (reset.offset, list(new(reset))) == (0, ["task"])
    assert [delta.text for delta in A2A().deltas(reset)] == ["Grüß ", "dich", "! "]


@pytest.mark.parametrize("name", ["a-7", 7])
@pytest.mark.parametrize("away", [1, 99])
def test_answers_to_a_resume_bear_the_id_of_the_first_request(name: str | int, away: int) -> None:
    """ "It MUST be the same as the value of the id member in the Request Object" (JSON-RPC 2.0, section 5)."""
    server = Server([(700, "rst")], away=away)
    sent: list[Any] = []

    def answer(request: Sent) -> Reply:
        sent.append(request.json)
        return server(request)

    call = {"jsonrpc": "2.0", "id": name, "method": "SendStreamingMessage", "params": PARAMS}
    result = run(Stream(answer, method="POST", url=RPC, json=call, protocol=A2A(), delay=policy(4)))
    assert result.outcome is Outcome.COMPLETED
    assert len(sent) > 1 and {each["id"] for each in sent} == {name}


def rpc(*responses: dict[str, Any]) -> bytes:
    return b"".join(Server().block(response) for response in responses)


def scripted(answer: Callable[[Sent], Reply], **options: Any) -> Stream:
    call = {"jsonrpc": "2.0", "id": 1, "method": "SendStreamingMessage", "params": PARAMS}
    return Stream(answer, method="POST", url=RPC, json=call, protocol=A2A(), delay=policy(4), **options)


WORKING = {"task": fold(LOG[:2])}


@pytest.mark.parametrize("end", ["close", "rst", "fin", "half"])
@pytest.mark.parametrize("more", [[], [LOG[2]], [LOG[2], LOG[3]]], ids=["the task", "one update", "two updates"])
def test_a_task_that_comes_again_as_it_was_is_no_progress(more: list[dict[str, Any]], end: str) -> None:
    """A server that tells the same and closes for ever is not asked for ever."""
    last = b"data: {" if end == "half" else end
    result = run(scripted(lambda sent: Reply([rpc(WORKING, *more), last])))
    assert type(result.error) is RetriesExhausted
    # The first answer, a free reconnect, and four attempts.
    assert len(result.stream.sent) == 6
    assert [event.reset for event in result.events] == [False, *[False] * len(more), *[True, *[False] * len(more)] * 5]


@pytest.mark.parametrize("how", ["an update", "another task"])
def test_whatever_is_new_in_a_task_is_progress(how: str) -> None:
    def answer(sent: Sent) -> Reply:
        turn = len(answers)
        answers.append(turn)
        if turn == 30:
            return Reply([rpc({"task": fold(LOG)})])
        # Five times the same, then something new.
        said = status("TASK_STATE_WORKING", f"step {turn // 5}")
        task = {**WORKING["task"], "status": said["statusUpdate"]["status"]}
        return Reply([rpc(WORKING, said)] if how == "an update" else [rpc({"task": task})])

    answers: list[int] = []
    result = run(scripted(answer))
    assert (result.outcome, result.error) == (Outcome.COMPLETED, None)


def test_a_task_that_works_in_silence_is_no_failure() -> None:
    """The task that comes first says that it still works: as much as a status check could."""
    replies = [Reply([rpc(WORKING), "silence"]) for _ in range(20)]
    replies.append(Reply([rpc({"task": fold(LOG)})]))
    result = run(scripted(lambda sent: replies.pop(0)))
    assert (result.outcome, result.error) == (Outcome.COMPLETED, None)


def test_another_process_compares_from_its_first_task_on() -> None:
    stream = scripted(lambda sent: Reply([rpc(WORKING)]))
    next(stream)
    place = rs.Checkpoint.from_token(stream.leave().token())
    result = run(scripted(lambda sent: Reply([rpc(WORKING)]), checkpoint=place))
    assert (type(result.error), len(result.stream.sent)) == (RetriesExhausted, 6)


def test_a_snapshot_that_is_cut_is_asked_for_again() -> None:
    result = run(started(Server([(700, "rst"), (0, "close"), (20, "rst"), (30, "half"), (10, "silence")])))
    assert (text_of(result.events), result.outcome) == (TEXT, Outcome.COMPLETED)
    assert [event.reset for event in result.events].count(True) == 1


# --- the end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.0", "0.3"])
@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        ("COMPLETED", Outcome.COMPLETED),
        ("FAILED", Outcome.FAILED),
        ("REJECTED", Outcome.FAILED),
        ("CANCELED", Outcome.CANCELLED),
        ("INPUT_REQUIRED", Outcome.INCOMPLETE),
        ("AUTH_REQUIRED", Outcome.INCOMPLETE),
    ],
)
def test_the_last_state_is_the_outcome(version: str, state: str, outcome: Outcome) -> None:
    server = Server(style=version)
    steps: list[Step] = [*map(server.block, [LOG[0], LOG[2], status(state, "?")]), "rst"]
    result = run(Stream(lambda sent: Reply(steps), method="POST", url=RPC, json={}, protocol=A2A()))
    assert (len(result.events), result.outcome) == (3, outcome)
    # A question, and what is said at the end, belong to the answer.
    assert text_of(result.events) == "Grüß ?"


def test_a_task_that_waited_may_go_on() -> None:
    """The first event of an answer to its question is the task as it stood before."""
    waiting = {"task": {"id": TASK, "status": {"state": "TASK_STATE_INPUT_REQUIRED"}, "artifacts": []}}
    result = run(started(Server(log=[waiting, *LOG[1:]])))
    assert (text_of(result.events), result.outcome) == (TEXT, Outcome.COMPLETED)


def test_a_task_that_waits_and_a_close_are_the_end() -> None:
    waiting = {"task": {"id": TASK, "status": {"state": "TASK_STATE_INPUT_REQUIRED"}}}
    result = run(started(Server(log=[LOG[0], waiting])))
    assert (len(result.events), result.outcome) == (2, Outcome.INCOMPLETE)


def test_a_single_message_is_a_whole_answer() -> None:
    for style in ("1.0", "0.3", "rest"):
        result = run(started(Server(style=style, log=[{"message": {"role": "ROLE_AGENT", "parts": [{"text": "Hé"}]}}])))
        assert (text_of(result.events), result.outcome) == ("Hé", Outcome.COMPLETED)


def test_an_update_of_another_task_is_neither_the_end_nor_text() -> None:
    """Updates name their task (specification v1.0, `TaskStatusUpdateEvent.taskId`), and the stream is about one."""

    def of_another(update: dict[str, Any]) -> dict[str, Any]:
        return json.loads(json.dumps(update).replace(TASK, "another"))

    foreign = [of_another(piece("b", "no")), of_another(status("INPUT_REQUIRED", "no")), of_another(status("COMPLETED", "no"))]
    log = [*LOG[:4], *foreign, *LOG[4:]]
    result = run(scripted(lambda sent: Reply([rpc(*log)])))
    assert (len(result.events), result.outcome) == (len(log), Outcome.COMPLETED)
    state = result.stream.machine.state
    text = [delta.text for event in result.events for delta in A2A().deltas_in(state, event) if delta.kind == "text"]
    assert "".join(text) == TEXT
    # A task that waits is over at the close, but not because another one waits.
    answers = [Reply([rpc(*LOG[:4], *foreign[:2]), "close"]), Reply([rpc(WORKING, *LOG[2:])])]
    assert run(scripted(lambda sent: answers.pop(0))).outcome is Outcome.COMPLETED
    assert answers == []


def test_a_task_whose_id_is_escaped_in_the_url_is_the_task_of_its_events() -> None:
    url = "https://api.example.com/agent/tasks/a%2Fb:subscribe"
    task = [json.loads(json.dumps(each).replace(TASK, "a/b")) for each in LOG]
    server = Server(style="rest")

    def answer(sent: Sent) -> Reply:
        urls.append(sent.url)
        return Reply([b"".join(map(server.block, task)), "close"] if len(urls) > 1 else [server.block(task[0]), "close"])

    urls: list[str] = []
    result = run(Stream(answer, method="POST", url=url, protocol=A2A(), delay=policy(4)))
    assert (result.outcome, urls) == (Outcome.COMPLETED, [url, url])


# --- a task that ended while nobody listened ------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["1.0", "0.3", "rest"])
def test_a_task_that_finished_while_nobody_listened_is_fetched(style: str) -> None:
    """It can no longer be subscribed to; here the stored result is the way on, so no `on_lost` is needed."""
    server = Server([(500, "rst")], style=style, away=99)
    result = run(started(server))
    last = result.events[-1]
    assert (last.reset, text_of(result.events), result.outcome) == (True, TEXT, Outcome.COMPLETED)
    assert in_order(result)
    assert server.calls == ["start", "subscribe", "get"]


@pytest.mark.parametrize("body", [b"", b": ping\r\n\r\n"])
@pytest.mark.parametrize("style", ["1.0", "0.3", "rest"])
def test_a_subscription_that_brings_nothing_is_followed_by_a_question_for_the_task(style: str, body: bytes) -> None:
    """a2aproject/A2A#174: a server answers the subscription to a finished task with an empty 200. `GetTask` says how it ended."""
    server = Server([(500, "rst")], style=style, away=99, refusal=Reply([body] if body else []))
    result = run(started(server))
    assert (text_of(result.events), result.outcome) == (TEXT, Outcome.COMPLETED)
    assert in_order(result)
    assert server.calls == ["start", "subscribe", "get", "get"]


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_a_subscription_that_is_always_cut_is_followed_by_a_question_for_the_task(how: str) -> None:
    """The same server behind a proxy that does not pass on an empty answer. Before it is given up, the task is asked for."""
    server = Server([(500, "rst")], away=99, refusal=Reply([how]))
    result = run(started(server, delay=policy(3)))
    assert (text_of(result.events), result.outcome) == (TEXT, Outcome.COMPLETED)
    assert server.calls == ["start", *["subscribe"] * 4, "get", "get"]
    working = run(started(Server([(500, "rst")], refusal=Reply([how])), delay=policy(3)))
    assert isinstance(working.error, RetriesExhausted)


def test_empty_subscriptions_to_a_task_that_still_works_end_bounded() -> None:
    result = run(started(Server([(500, "rst")], refusal=Reply([])), delay=policy(3)))
    assert isinstance(result.error, RetriesExhausted)
    assert len(result.stream.sent) < 12


@pytest.mark.parametrize("code", [-32001, -32004])
def test_a_refusal_in_an_event_is_one_too(code: int) -> None:
    """a2a-sdk 1.3 answers those who speak v0.3 so."""
    refusal = Reply([RPC_ERROR.replace(b"-32004", str(code).encode())])
    server = Server([(500, "rst")], style="0.3", away=99, refusal=refusal)
    result = run(started(server))
    assert (text_of(result.events), result.outcome) == (TEXT, Outcome.COMPLETED)
    assert server.calls == ["start", "subscribe", "get"]
    # To a first request it is an error like any other.
    result = run(Stream(lambda sent: refusal, method="POST", url=RPC, json={}, protocol=A2A()))
    assert isinstance(result.error, UpstreamError)


def test_a_task_that_still_runs_goes_on_behind_the_one_that_was_fetched() -> None:
    """A server may refuse one subscription and take the next."""

    class Moody(Server):
        def __call__(self, sent: Sent) -> Reply:
            self.refusal = self.refuse() if self.calls.count("subscribe") == 0 else None
            return super().__call__(sent)

    server = Moody([(500, "rst")])
    result = run(started(server, on_lost="snapshot"))
    assert (text_of(result.events), result.outcome) == (TEXT, Outcome.COMPLETED)
    assert server.calls == ["start", "subscribe", "get", "subscribe"]


@pytest.mark.parametrize("body", [b"no json", b"[]", b'{"jsonrpc":"2.0","error":{"code":-32001,"message":"no"}}', b"{}", b"null"])
def test_a_task_that_is_unknown_is_of_no_use(body: bytes) -> None:
    server = Server([(500, "rst")], refusal=Reply([b"{}"], type="application/json"))
    answer: Callable[[Sent], Reply] = lambda sent: (  # noqa: E731
        Reply([body], type="application/json") if sent.json["method"] == "GetTask" else server(sent)
    )
    call = {"jsonrpc": "2.0", "id": 1, "method": "SendStreamingMessage", "params": PARAMS}
    result = run(Stream(answer, method="POST", url=RPC, json=call, protocol=A2A(), on_lost="snapshot"))
    assert isinstance(result.error, CursorExpired)


# --- errors ---------------------------------------------------------------------------------------------------------


def answered(status: int, body: bytes = b"{}") -> Reply:
    return Reply([body], status=status, type="application/json")


@pytest.mark.parametrize("cut", ["fin", "clean"])
def test_nothing_of_half_an_error_in_json_is_delivered(cut: str) -> None:
    """The error comes with status 200, and a close that HTTP finds in order does not make half of it whole."""
    call = {"jsonrpc": "2.0", "id": 1, "method": "SendStreamingMessage", "params": PARAMS}
    body = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"no"}}'
    for position in range(len(body)):
        steps = [body[:position], *[cut] * (cut != "clean")]
        result = run(Stream(script(Reply(steps, type="application/json")), method="POST", url=RPC, json=call, protocol=A2A()))
        assert (result.events, type(result.error)) == ([], StreamInterrupted)


RPC_ERROR = b'data: {"jsonrpc":"2.0","id":"r","error":{"code":-32004,"message":"terminal"}}\r\n\r\n'


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (answered(200, b'{"jsonrpc":"2.0","id":1,"error":{"code":-32004,"message":"terminal"}}'), RetriesExhausted),
        (answered(200, b'{"jsonrpc":"2.0","id":1,"error":{"code":-32001,"message":"unknown"}}'), RetriesExhausted),
        (answered(400, b'{"error":{"details":[{"reason":"UNSUPPORTED_OPERATION"}]}}'), RetriesExhausted),
        (answered(400, b'{"type":"UnsupportedOperationError"}'), RetriesExhausted),
        (answered(400, b'{"error":{"details":[{"reason":"INVALID_PARAMS"}]}}'), ResponseRejected),
        (answered(404, b'{"error":{"details":[{"reason":"TASK_NOT_FOUND"}]}}'), CursorExpired),
        (answered(405), NotResumable),
        (answered(501), NotResumable),
        (answered(401), ResponseRejected),
        (answered(429), RetriesExhausted),
        (answered(500), RetriesExhausted),
        (answered(503), RetriesExhausted),
        (Reply([RPC_ERROR]), RetriesExhausted),
        (Reply([b"event: error\r\n", RPC_ERROR.replace(b"-32004", b"-32603")]), UpstreamError),
        (Reply([RPC_ERROR.replace(b"-32004", b"-32603")]), UpstreamError),
    ],
    ids=[
        "-32004",
        "-32001",
        "400 v1",
        "400 v0.3",
        "400",
        "404",
        "405",
        "501",
        "401",
        "429",
        "500",
        "503",
        "told",
        "event",
        "data",
    ],
)
def test_what_a_refused_subscription_becomes(reply: Reply, expected: type[ResumableStreamError]) -> None:
    result = run(started(Server([(500, "rst")], refusal=reply)))
    assert type(result.error) is expected


def test_an_error_of_the_first_answer_is_told_as_it_is() -> None:
    error = Reply([b'event: error\r\ndata: {"error":{"code":500,"message":"unknown exception"}}\r\n\r\n'])
    result = run(Stream(lambda sent: error, method="POST", url=REST, json=PARAMS, protocol=A2A()))
    assert isinstance(result.error, UpstreamError)
    assert result.error.type == "500"
    upfront = answered(200, b'{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"Invalid params"}}')
    result = run(Stream(lambda sent: upfront, method="POST", url=RPC, json={}, protocol=A2A()))
    assert isinstance(result.error, UpstreamError)
    assert result.error.type == "-32602"


@pytest.mark.parametrize("data", ["no json", "[]", "null", "7", '{"jsonrpc":"2.0","result":[]}', '{"result":{"task":7}}', "{}"])
def test_an_event_of_another_shape_says_nothing(data: str) -> None:
    protocol, event = A2A(), rs.StreamEvent("message", data)
    assert (protocol.end(event), protocol.error(event), list(protocol.deltas(event))) == (None, None, [])
    assert protocol.position(event).cursor is None


# --- content --------------------------------------------------------------------------------------------------------


def test_what_the_agent_says_while_it_works_is_no_part_of_the_answer() -> None:
    deltas = [delta for event in run(started(Server())).events for delta in A2A().deltas(event)]
    assert deltas[0] == Delta("reasoning", "Ich suche …")
    assert "".join(delta.text for delta in deltas if delta.kind == "text") == TEXT


# --- another process ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["1.0", "0.3", "rest"])
def test_another_process_goes_on_with_the_task(style: str) -> None:
    """It is cut twice more there: what a reset forgets is not needed."""
    for count in range(1, len(LOG) - 1):
        server = Server(style=style)
        stream = started(server)
        first = [next(stream) for _ in range(count)]
        place = rs.Checkpoint.from_token(stream.leave().token())
        server.happened, server.cuts = count, [(300, "rst"), (20, "rst")]
        rest = run(Stream(server, method="POST", url=place.url, json={}, protocol=A2A(), checkpoint=place, on_lost="snapshot"))
        assert first
        assert rest.events[0].reset
        assert (text_of(rest.events), rest.outcome) == (TEXT, Outcome.COMPLETED), (style, count)


# --- detection ------------------------------------------------------------------------------------------------------

SSE = {"content-type": "text/event-stream; charset=utf-8"}


@pytest.mark.parametrize(
    ("method", "url", "body", "headers", "expected"),
    [
        ("POST", RPC, {"jsonrpc": "2.0", "method": "SendStreamingMessage"}, SSE, True),
        ("POST", RPC, {"jsonrpc": "2.0", "method": "message/stream"}, SSE, True),
        ("POST", RPC, {"jsonrpc": "2.0", "method": "tasks/resubscribe"}, SSE, True),
        ("POST", "https://h/v1/message:stream", None, SSE, True),
        ("GET", "https://h/tasks/t1:subscribe", None, SSE, True),
        ("POST", RPC, {"jsonrpc": "2.0", "method": "tools/call"}, SSE, False),
        ("POST", RPC, {"method": "message/stream"}, SSE, False),
        ("POST", RPC, None, SSE, False),
        ("POST", "https://h/v1beta/models/m:streamGenerateContent", None, SSE, False),
        ("POST", "https://h/message:stream", None, {"content-type": "application/json"}, False),
    ],
)
def test_what_is_detected(method: str, url: str, body: Any, headers: dict[str, str], expected: bool) -> None:
    assert A2A().matches(StreamState(method, url, body), Head(200, headers, url)) is expected


# --- sockets --------------------------------------------------------------------------------------------------------


def served(flaky_server: Callable[..., FlakyServer], position: int, how: How, *, away: int = 0) -> FlakyServer:
    """REST over sockets: the first answer is cut by the server's schedule, subscriptions are answered in full."""
    inner = Server([(position, "rst")], style="rest", away=away)
    body = b"".join(step for step in Server(style="rest").stream([]).steps if isinstance(step, bytes))
    inner.stream([])

    def answer(request: RecordedRequest) -> Scripted | None:
        if request.path.endswith(":cancel"):
            return Scripted(headers={"content-type": "application/json"}, body=b"{}")
        if request.path == "/agent/message:stream":
            return None
        asked = SimpleNamespace(repeat="query")
        sent: Any = SimpleNamespace(method=request.method, path=request.path, url=request.url, request=asked)
        reply = inner(sent)
        content = b"".join(step for step in reply.steps if isinstance(step, bytes))
        return Scripted(status=reply.status, headers={"content-type": reply.type}, body=content)

    return flaky_server(
        body,
        [Fault.cut(after_bytes=position, how=how)],
        path="/agent/message:stream",
        on_request=answer,
    )


@pytest.mark.parametrize("driver", ["sync-httpx", "asyncio-httpx2"])
@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
def test_the_state_is_exact_over_sockets(driver: Any, how: How, flaky_server: Callable[..., FlakyServer]) -> None:
    row = Row(*driver.split("-"))

    async def scenario() -> None:
        for position in range(90, 1000, 180):
            server = served(flaky_server, position, how, away=99 if position > 700 else 0)
            stream = row.connect("POST", server.url, json=PARAMS, protocol=A2A(), on_lost="snapshot")
            async with stream:
                text = await stream.read_text()
            assert (text, stream.outcome) == (TEXT, Outcome.COMPLETED), position
            assert sum(request.path == "/agent/message:stream" for request in server.requests) == 1

    row.run(scenario)


def test_plain_text_cannot_tell_of_a_reset(flaky_server: Callable[..., FlakyServer]) -> None:
    server = served(flaky_server, 700, "rst")
    with rs.connect("POST", server.url, json=PARAMS, protocol=A2A()) as stream, pytest.raises(StreamReset):
        list(stream.iter_text())
    server = served(flaky_server, 700, "rst")
    with rs.connect("POST", server.url, json=PARAMS, protocol=A2A()) as stream:
        pieces = list(stream.iter_text(resets=True))
    start = pieces.index(rs.TextReset(0))
    assert "".join(piece for piece in pieces[start + 1 :] if isinstance(piece, str)) == TEXT


def test_a_task_is_cancelled_at_its_own_address(flaky_server: Callable[..., FlakyServer]) -> None:
    server = served(flaky_server, 9999, "rst")
    with rs.connect("POST", server.url, json=PARAMS, protocol=A2A()) as stream:
        next(stream)
        stream.cancel()
    assert (server.requests[-1].method, server.requests[-1].path) == ("POST", f"/agent/tasks/{TASK}:cancel")


@pytest.mark.parametrize(("method", "expected"), [("SendStreamingMessage", "CancelTask"), ("message/stream", "tasks/cancel")])
def test_a_task_is_cancelled_by_json_rpc(method: str, expected: str, flaky_server: Callable[..., FlakyServer]) -> None:
    server = flaky_server(
        [Server(style="1.0" if expected == "CancelTask" else "0.3").block(LOG[0])], path="/agent", hold_open=True
    )
    call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": PARAMS}
    with rs.connect("POST", server.url, json=call, protocol=A2A()) as stream:
        next(stream)
        request = stream._machine.requests.cancel()
    assert request is not None
    assert (request.method, request.json) == (
        "POST",
        {"jsonrpc": "2.0", "id": "resumable-cancel", "method": expected, "params": {"id": TASK}},
    )
