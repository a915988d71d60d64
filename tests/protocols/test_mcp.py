"""
MCP Streamable HTTP, against a server that does what the specification of 2025-11-25 and mcp 2.3 (`server/streamable_http`) say.

Source: modelcontextprotocol.io/specification/2025-11-25/basic/transports, read on 2026-11-20.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
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
)
from resumable_stream._events import Delta, Outcome
from resumable_stream.protocols.mcp import MCPStreamableHTTP
from resumable_stream.testing import Fault, FlakyServer
from resumable_stream.testing import Reply as Scripted
from resumable_stream.testing.server import RecordedRequest
from tests.conftest import Row
from tests.core.simulation import Reply, Result, Sent, Stream, cut_body, policy, run, script

URL = "https://api.example.com/mcp"
CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "ask", "_meta": {"progressToken": 1}}}


def progress(count: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progress": count, "message": message}}


RESULT = {
    "jsonrpc": "2.0",
    "id": 1,
    "result": {"content": [{"type": "text", "text": "Grüß "}, {"type": "text", "text": "dich 🦊"}]},
}
LOG: list[dict[str, Any]] = [
    progress(1, "a"),
    progress(2, "ü"),
    {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "é"}},
    # The server asks the client, with an id that is the request's own by chance.
    {"jsonrpc": "2.0", "id": 1, "method": "sampling/createMessage", "params": {}},
    *(progress(n, "…") for n in range(3, 10)),
    RESULT,
]
# The server lets go of the connection behind so many messages (SEP-1699).
POLLS = (4, 9)


def block(message: Any, id: str | None, retry: int | None = None) -> bytes:
    text = "" if message is None else json.dumps(message, ensure_ascii=False, separators=(",", ":"))
    lines = ["event: message"] if message is not None else []
    lines += [f"id: {id}"] if id is not None else []
    lines += [f"retry: {retry}"] if retry is not None else []
    return "".join(f"{line}\r\n" for line in [*lines, f"data: {text}", ""]).encode()


class Server:
    """
    Args:
        cuts: Of each stream answer in turn.
        ids: An event store is there. Without one no ids are sent and a GET opens the server's own stream.
        primes: Speaks 2025-11-25: primes each connection, and lets go at `POLLS`.
        refusal: Answers each resume.
    """

    def __init__(
        self,
        cuts: Iterable[tuple[int, str]] = (),
        *,
        ids: bool = True,
        primes: bool = True,
        chunk: int | None = None,
        refusal: Reply | None = None,
        log: list[dict[str, Any]] = LOG,
    ) -> None:
        self.cuts, self.ids, self.primes, self.chunk, self.refusal, self.log = list(cuts), ids, primes, chunk, refusal, log
        self.answers = 0

    def __call__(self, sent: Sent) -> Reply:
        if sent.method == "POST":
            assert sent.json == CALL
            return self.stream(0)
        assert (sent.method, sent.url, sent.request.repeat) == ("GET", URL, "query")
        assert sent.cursor is not None, "that would be the server's own stream"
        if self.refusal is not None:
            return self.refusal
        return self.stream(int(sent.cursor.removeprefix("s1-").partition("p")[0]))

    def stream(self, start: int) -> Reply:
        stop = next((poll for poll in POLLS if poll > start), len(self.log)) if self.primes else len(self.log)
        body = b": ping\r\n\r\n"
        if self.primes:
            body += block(None, f"s1-{start}p{self.answers}", retry=20)
        for index in range(start, stop):
            body += block(self.log[index], f"s1-{index + 1}" if self.ids else None)
        self.answers += 1
        cut = self.cuts.pop(0) if self.cuts else None
        return Reply(cut_body(body, cut, self.chunk), headers={"mcp-session-id": "secret-session"})


def called(server: Callable[[Sent], Reply], **options: Any) -> Stream:
    return Stream(server, method="POST", url=URL, json=CALL, protocol=MCPStreamableHTTP(), **options)


def messages(result: Result) -> list[Any]:
    """What was delivered, without the events that prime the cursor."""
    return [event.json() for event in result.events if event.data]


# --- cuts -----------------------------------------------------------------------------------------------------------


def test_an_answer_that_is_cut_again_and_again_arrives_whole() -> None:
    for kind in ("rst", "fin", "close", "half", "silence"):
        result = run(called(Server([(position, kind) for position in (150, 90, 333, 200, 60, 250, 0, 170)])))
        assert (messages(result), result.outcome) == (LOG, Outcome.COMPLETED), kind


# --- polling --------------------------------------------------------------------------------------------------------


def test_a_close_in_the_middle_is_normal_and_the_client_comes_back_after_retry() -> None:
    result = run(called(Server()))
    assert (messages(result), result.outcome) == (LOG, Outcome.COMPLETED)
    assert result.stream.cursors == [None, "s1-4", "s1-9"]
    assert all(wait >= 0.02 for wait in result.stream.sleeps)


def test_the_event_that_primes_moves_the_cursor_and_is_no_message() -> None:
    result = run(called(Server([(200, "rst")])))
    assert result.events[0].data == ""
    assert MCPStreamableHTTP().end(result.events[0]) is None
    assert list(MCPStreamableHTTP().deltas(result.events[0])) == []
    primed = run(called(Server([(len(b": ping\r\n\r\n") + len(block(None, "s1-0p0", retry=20)), "rst")])))
    assert primed.stream.cursors[1] == "s1-0p0"


def test_a_wait_that_the_server_asks_for_is_kept() -> None:
    first = Reply([block(None, "s1-0", retry=500), block(LOG[0], "s1-1")])
    rest = Reply([block(RESULT, "s1-2")])
    replies = [first, rest]
    result = run(called(lambda sent: replies.pop(0)))
    assert (result.stream.sleeps, result.outcome) == ([0.5], Outcome.COMPLETED)


def test_a_replay_that_brings_what_we_hold_is_dropped() -> None:
    replies = [
        Reply([block(LOG[0], "s1-1"), block(LOG[1], "s1-2"), "rst"]),
        Reply([block(LOG[1], "s1-2"), block(LOG[2], "s1-3"), block(LOG[1], "s1-2"), block(RESULT, "s1-4")]),
    ]
    result = run(called(lambda sent: replies.pop(0)))
    assert messages(result) == [*LOG[:3], RESULT]
    assert result.stream.machine.stats.duplicates == 2


# --- the end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (RESULT, Outcome.COMPLETED),
        ({"jsonrpc": "2.0", "id": 1, "result": {}}, Outcome.COMPLETED),
        ({"jsonrpc": "2.0", "id": 1, "result": {"isError": True, "content": []}}, Outcome.FAILED),
        ({"jsonrpc": "2.0", "id": 1, "error": {"code": -32602, "message": "no"}}, Outcome.FAILED),
        ({"jsonrpc": "2.0", "id": 1, "error": {"code": -32800, "message": "Request cancelled"}}, Outcome.CANCELLED),
    ],
)
def test_a_response_ends_it_and_is_delivered(answer: Any, outcome: Outcome) -> None:
    # What the socket does behind it no longer matters.
    result = run(called(lambda sent: Reply([block(LOG[0], "1"), block(answer, "2"), "rst"])))
    assert (messages(result), result.outcome) == ([LOG[0], answer], outcome)


def answered(*messages: Any, body: Any = CALL, checkpoint: Any = None, type: str = "text/event-stream") -> Result:
    """Each message in a connection's events, which close behind the last."""
    blocks = [block(message, f"s1-{n}") for n, message in enumerate(messages, 1)]
    empty = [Reply([])] * 9
    whole = Reply([json.dumps(messages[0]).encode()], type=type)
    replies = [Reply(blocks, type=type), *empty] if type == "text/event-stream" else [whole]
    stream = Stream(
        lambda sent: replies.pop(0), method="POST", url=URL, json=body, protocol=MCPStreamableHTTP(), checkpoint=checkpoint,
        delay=policy(3),
    )  # fmt: skip
    return run(stream)


def response(id: Any, text: str = "x", **more: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "result": {"content": [{"type": "text", "text": text}], **more}}


@pytest.mark.parametrize("own", [1, "1", "req-7", 0])
@pytest.mark.parametrize("foreign", [2, "2", "server-error", None])
def test_only_the_response_to_the_request_ends_it(own: Any, foreign: Any) -> None:
    """JSON-RPC 2.0 section 5: the id of a response is that of its request."""
    other = response(foreign) if foreign is not None else {"jsonrpc": "2.0", "id": 2, "error": {"code": 1, "message": "no"}}
    swapped = response([own])
    result = answered(LOG[0], other, swapped, response(own), LOG[1], body={**CALL, "id": own})
    assert (messages(result), result.outcome) == ([LOG[0], other, swapped, response(own)], Outcome.COMPLETED)
    cut = answered(LOG[0], other, body={**CALL, "id": own})
    assert (messages(cut), type(cut.error)) == ([LOG[0], other], RetriesExhausted)


@pytest.mark.parametrize(("own", "echo"), [(1, "1"), ("1", 1), (0, "0")])
def test_an_id_that_the_server_spells_as_text_or_as_number_is_the_same(own: Any, echo: Any) -> None:
    result = answered(LOG[0], response(echo), LOG[1], body={**CALL, "id": own})
    assert (messages(result), result.outcome) == ([LOG[0], response(echo)], Outcome.COMPLETED)
    body = [{**CALL, "id": own}, {**CALL, "id": "b"}]
    assert answered(response("b"), response(echo), LOG[0], body=body).outcome is Outcome.COMPLETED
    # Where both are asked for they are two.
    both = [{**CALL, "id": own}, {**CALL, "id": echo}]
    result = answered(response(echo), response(echo), response(own), LOG[0], body=both)
    assert (len(result.events), result.outcome) == (3, Outcome.COMPLETED)


def test_an_id_of_any_length_is_the_id_of_the_request() -> None:
    own = "x" * 2000
    result = answered(LOG[0], response(7), response(own), LOG[1], body={**CALL, "id": own})
    assert (len(result.events), result.outcome) == (3, Outcome.COMPLETED)


def test_an_error_that_belongs_to_no_request_is_about_this_one() -> None:
    """JSON-RPC 2.0 section 5: the id is null where the server could not read that of the request."""
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "Parse error"}}
    result = answered(LOG[0], error, LOG[1])
    assert (messages(result), result.outcome) == ([LOG[0], error], Outcome.FAILED)


def test_where_the_request_is_not_known_any_response_ends_it() -> None:
    for body in (None, {"jsonrpc": "2.0", "method": "notifications/initialized"}):
        result = answered(LOG[0], response(7), LOG[1], body=body)
        assert (len(result.events), result.outcome) == (2, Outcome.COMPLETED)


BATCH = [
    {**CALL, "id": 1},
    {"jsonrpc": "2.0", "method": "notifications/x"},
    {"jsonrpc": "2.0", "id": 7, "result": {}},
    {**CALL, "id": "b"},
    {**CALL, "id": 3},
]


@pytest.mark.parametrize("failed", [False, True])
def test_a_batch_ends_with_the_last_of_its_responses(failed: bool) -> None:
    """2025-03-26: one stream answers all requests of a POST."""
    bad = {"jsonrpc": "2.0", "id": "b", "error": {"code": 1, "message": "no"}}
    log = [LOG[0], response(3), response(3), bad if failed else response("b"), LOG[1], response(9), response(1)]
    result = answered(*log, LOG[2], body=BATCH)
    assert (messages(result), result.outcome) == (log, Outcome.FAILED if failed else Outcome.COMPLETED)
    assert type(answered(*log[:-1], body=BATCH).error) is RetriesExhausted
    # The responses may come as a batch too, and as JSON.
    together = [response(3), response("b"), response(1)]
    assert answered(together[:2], together[2:], LOG[0], body=BATCH).outcome is Outcome.COMPLETED
    assert answered(together, body=BATCH, type="application/json").outcome is Outcome.COMPLETED


def test_another_process_ends_with_the_response_to_the_request_too() -> None:
    log = [LOG[0], response(2), RESULT, LOG[1]]
    for count in (1, 2):
        stream = called(lambda sent: Reply([block(message, f"s1-{n}") for n, message in enumerate(log, 1)]))
        first = [next(stream) for _ in range(count)]
        place = rs.Checkpoint.from_token(stream.leave().token())
        rest = Reply([block(message, f"s1-{n}") for n, message in enumerate(log, 1) if n > count])
        other = run(Stream(lambda sent: rest, method="POST", url=URL, protocol=MCPStreamableHTTP(), checkpoint=place))  # noqa: B023
        assert [event.json() for event in first] + messages(other) == log[:3]
        assert other.outcome is Outcome.COMPLETED


@pytest.mark.parametrize("cut", ["rst", "fin", "silence", "clean"])
@pytest.mark.parametrize("chunked", [False, True], ids=["one by one", "all at once"])
@pytest.mark.parametrize("failed", [False, True])
def test_a_batch_ends_with_the_last_of_its_responses_in_any_process(cut: str, chunked: bool, failed: bool) -> None:
    """Each message is read in a process of its own, and its connection is lost behind it."""
    bad = {"jsonrpc": "2.0", "id": "b", "error": {"code": 1, "message": "no"}}
    log = [LOG[0], response(3), bad if failed else response("b"), LOG[1], response(1)]

    def server(sent: Sent) -> Reply:
        held = int(sent.headers.get("last-event-id", "s1-0")[3:])
        rest = [block(message, f"s1-{n}") for n, message in enumerate(log, 1) if n > held]
        if chunked:
            # All that is left comes at once, but only its first message is taken.
            return Reply([b"".join(rest)])
        return Reply(rest[:1] if cut == "clean" else [*rest[:1], cut])

    place, got, outcome = None, [], None
    while outcome is None:
        assert len(got) < len(log)
        options: dict[str, Any] = {"json": BATCH} if place is None else {"checkpoint": place}
        stream = Stream(server, method="POST", url=URL, protocol=MCPStreamableHTTP(), **options)
        got.append(next(stream).json())
        place = rs.Checkpoint.from_token(stream.leave().token())
        outcome = stream.outcome
        if place.complete:
            break
    assert (got, place.extra["outcome"]) == (log, "failed" if failed else "completed")
    # And in one go, in the second process.
    first = Stream(server, method="POST", url=URL, json=BATCH, protocol=MCPStreamableHTTP())
    begun = [next(first).json() for _ in range(2)]
    rest = run(Stream(server, method="POST", url=URL, protocol=MCPStreamableHTTP(), checkpoint=first.leave()))
    assert (begun + messages(rest), rest.outcome) == (log, Outcome.FAILED if failed else Outcome.COMPLETED)


def test_another_process_is_told_where_a_response_of_a_batch_never_comes() -> None:
    log = [response(3), response("b")]
    stream = Stream(
        lambda sent: Reply([block(log[0], "s1-1"), "rst"]), method="POST", url=URL, json=BATCH, protocol=MCPStreamableHTTP()
    )
    next(stream)
    replies = [Reply([block(log[1], "s1-2"), "rst"]), *[Reply([])] * 9]
    other = Stream(
        lambda sent: replies.pop(0),
        method="POST",
        url=URL,
        protocol=MCPStreamableHTTP(),
        checkpoint=stream.leave(),
        delay=policy(3),
    )
    result = run(other)
    assert (messages(result), result.outcome, type(result.error)) == (log[1:], None, RetriesExhausted)


MANY = [{**CALL, "id": f"{n:04}-{'x' * 40}"} for n in range(40)]


def test_a_batch_of_many_long_ids_ends_with_its_last_response() -> None:
    log = [response(call["id"]) for call in MANY]
    result = answered(*log, LOG[0], body=MANY)
    assert (messages(result), result.outcome) == (log, Outcome.COMPLETED)


def test_another_process_knows_what_is_left_of_many_ids_once_that_is_little() -> None:
    log = [response(call["id"]) for call in MANY]
    blocks = [block(message, f"s1-{n}") for n, message in enumerate(log, 1)]
    for taken, expected in ((1, RetriesExhausted), (39, type(None))):
        stream = Stream(lambda sent: Reply(blocks), method="POST", url=URL, json=MANY, protocol=MCPStreamableHTTP())
        for _ in range(taken):
            next(stream)
        place = stream.leave()
        assert len(place.to_json()) < 8192
        server = script(Reply([*blocks[taken:], block(LOG[0], "s1-99")]), *[Reply([])] * 9)
        result = run(Stream(server, method="POST", url=URL, protocol=MCPStreamableHTTP(), checkpoint=place, delay=policy(3)))
        # Until then nothing says which response is the last: that is an error, and no response is lost.
        assert messages(result)[: 40 - taken] == log[taken:]
        assert type(result.error) is expected


@pytest.mark.parametrize("data", ["", "no json", "[]", "null", "{}", '{"id":1}', '{"id":1,"method":"ping"}'])
def test_nothing_else_ends_it(data: str) -> None:
    assert MCPStreamableHTTP().end(rs.StreamEvent("message", data)) is None


def test_the_text_is_that_of_the_result() -> None:
    protocol = MCPStreamableHTTP()
    deltas = [delta for event in run(called(Server([(200, "rst")]))).events for delta in protocol.deltas(event)]
    assert deltas == [Delta("text", "Grüß ", 0), Delta("text", "dich 🦊", 1)]


@pytest.mark.parametrize("driver", ["sync-httpx", "trio-httpx2"])
@pytest.mark.parametrize("batch", [False, True])
def test_the_response_to_another_request_is_no_text(driver: str, batch: bool, flaky_server: Callable[..., FlakyServer]) -> None:
    """
    A response belongs to the request whose id it has (JSON-RPC 2.0, section 5), so only ours is the answer.

    It is delivered as an event, since the stream carries it; a replay of the session's messages may bring it.
    """
    row = Row(*driver.split("-"))
    body = [{**CALL, "id": 7}, {**CALL, "id": "b"}] if batch else {**CALL, "id": 7}
    answers = [response(6, "other "), response(7, "ours"), *([response(6, "other"), response("b", "!")] if batch else [])]
    sent = [answers[0], *answers[1:]]
    frames = [block(message, f"s1-{n}") for n, message in enumerate(sent, 1)]

    async def scenario() -> None:
        server = flaky_server(frames, [Fault.cut(after_bytes=len(frames[0]), how="clean")], path="/mcp")
        for read in ("iter_text", "read_text"):
            async with row.connect("POST", server.url, json=body, protocol=MCPStreamableHTTP()) as stream:
                if read == "iter_text":
                    text = "".join([piece async for piece in stream.iter_text()])
                else:
                    text = await stream.read_text()
            assert (text, stream.outcome, stream.stats.events) == ("ours!" if batch else "ours", Outcome.COMPLETED, len(sent))

    row.run(scenario)


def test_an_id_that_is_not_known_or_in_a_document_is_that_of_the_answer() -> None:
    state = StreamState("POST", URL, None)
    event = rs.StreamEvent("message", json.dumps(response(6, "x")))
    assert list(MCPStreamableHTTP().deltas_in(state, event)) == [Delta("text", "x", 0)]
    state, head = StreamState("POST", URL, {**CALL, "id": 7}), Head(200, {"content-type": "application/json"}, URL)
    state.head = head
    MCPStreamableHTTP().identify(state, head)
    assert list(MCPStreamableHTTP().deltas_in(state, event)) == [Delta("text", "x", 0)]


# --- statuses -------------------------------------------------------------------------------------------------------


def refused(status: int, type: str = "application/json") -> Reply:
    error = {"jsonrpc": "2.0", "id": "server-error", "error": {"code": -32600, "message": "no"}}
    return Reply([json.dumps(error).encode()], status=status, type=type)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (refused(404), CursorExpired),
        (refused(405), NotResumable),
        (refused(400), ResponseRejected),
        (refused(401), ResponseRejected),
        (refused(406), ResponseRejected),
        (refused(415), ResponseRejected),
        (refused(409), RetriesExhausted),
        (refused(429), RetriesExhausted),
        (refused(500), RetriesExhausted),
        (refused(503), RetriesExhausted),
        (Reply([]), RetriesExhausted),
    ],
    ids=["404", "405", "400", "401", "406", "415", "409", "429", "500", "503", "unknown id: an empty stream"],
)
def test_what_a_refused_resume_becomes(reply: Reply, expected: type[ResumableStreamError]) -> None:
    result = run(called(Server([(200, "rst")], refusal=reply)))
    assert type(result.error) is expected
    assert result.error.checkpoint is not None
    assert result.error.checkpoint.cursor in ("s1-0p0", "s1-1")


@pytest.mark.parametrize(
    ("body", "reply", "expected"),
    [
        (CALL, Reply([b"{}"], type="application/json"), StreamInterrupted),
        (CALL, Reply(status=202, type=""), ResponseRejected),
        (CALL, refused(400), ResponseRejected),
        (CALL, refused(404), ResponseRejected),
        (CALL, refused(500), ResponseRejected),
        ({"jsonrpc": "2.0", "method": "notifications/initialized"}, Reply(status=202, type=""), None),
        ([{"jsonrpc": "2.0", "method": "notifications/initialized"}] * 2, Reply(status=202, type=""), None),
        ({"jsonrpc": "2.0", "id": 1, "result": {}}, Reply(status=202, type=""), None),
        ([{"jsonrpc": "2.0", "id": 1, "error": {}}, {"jsonrpc": "2.0", "method": "x"}], Reply(status=202, type=""), None),
        ([{"jsonrpc": "2.0", "id": 1, "result": {}}, CALL], Reply(status=202, type=""), ResponseRejected),
        (None, Reply(status=202, type=""), ResponseRejected),
    ],
)
def test_what_the_first_answer_becomes(body: Any, reply: Reply, expected: type[ResumableStreamError] | None) -> None:
    result = run(Stream(lambda sent: reply, method="POST", url=URL, json=body, protocol=MCPStreamableHTTP()))
    assert (type(result.error) if result.error else None) is expected
    assert len(result.stream.sent) == 1
    if expected is None:
        assert result.outcome is Outcome.COMPLETED


@pytest.mark.parametrize("text", [json.dumps(RESULT), json.dumps(RESULT, indent=2, ensure_ascii=False)])
def test_an_answer_in_json_is_one_event(text: str) -> None:
    body = text.encode()
    for position in range(len(body)):
        # HTTP may close half of it as it should: a proxy that gives up, or a wrong length.
        for cut in ("rst", "fin", "clean"):
            steps = [body[:position], *[cut] * (cut != "clean")]
            result = run(called(lambda sent: Reply(steps, type="application/json")))  # noqa: B023
            assert (result.events, type(result.error)) == ([], StreamInterrupted)
    result = run(called(lambda sent: Reply([body[:20], body[20:]], type="application/json")))
    assert (messages(result), result.outcome) == ([RESULT], Outcome.COMPLETED)


# --- the session ----------------------------------------------------------------------------------------------------


def test_the_session_goes_along_with_a_resume_and_into_no_checkpoint() -> None:
    stream = called(Server([(300, "rst")]))
    for count, _ in enumerate(stream):
        text = stream.checkpoint.to_json()
        assert "secret-session" not in text, count
    assert [sent.headers.get("mcp-session-id") for sent in stream.sent] == [None] + ["secret-session"] * (len(stream.sent) - 1)


def test_another_process_continues_behind_any_message() -> None:
    for count in range(1, len(LOG)):
        stream = called(Server())
        first = [next(stream) for _ in range(count)]
        place = rs.Checkpoint.from_token(stream.leave().token())
        rest = run(Stream(Server(), method="POST", url=place.url, protocol=MCPStreamableHTTP(), checkpoint=place))
        assert [event.json() for event in first if event.data] + messages(rest) == LOG, count
        assert rest.outcome is Outcome.COMPLETED


# --- detection ------------------------------------------------------------------------------------------------------

SSE = {"content-type": "text/event-stream"}


@pytest.mark.parametrize(
    ("method", "body", "headers", "expected"),
    [
        ("POST", CALL, SSE, True),
        ("POST", {"jsonrpc": "2.0", "id": 0, "method": "initialize"}, {"content-type": "text/event-stream; charset=utf-8"}, True),
        ("POST", {"jsonrpc": "2.0", "id": 0, "method": "message/stream"}, SSE, False),
        ("POST", {"jsonrpc": "2.0", "id": 0, "method": "SendStreamingMessage"}, SSE, False),
        ("POST", {"jsonrpc": "2.0", "id": 0, "method": "subscriptions/listen"}, SSE, False),
        ("POST", [CALL], SSE, False),
        ("POST", {"model": "m", "stream": True}, SSE, False),
        ("POST", None, SSE, False),
        ("POST", CALL, {"content-type": "application/json"}, True),
        ("POST", CALL, {"content-type": "text/html"}, False),
        ("GET", None, SSE, False),
    ],
)
def test_what_is_detected(method: str, body: Any, headers: dict[str, str], expected: bool) -> None:
    assert MCPStreamableHTTP().matches(StreamState(method, URL, body), Head(200, headers, URL)) is expected


# --- sockets --------------------------------------------------------------------------------------------------------


def served(flaky_server: Callable[..., FlakyServer], schedule: Iterable[Any] = ()) -> FlakyServer:
    def guard(request: RecordedRequest) -> Scripted | None:
        if request.method == "GET":
            assert "content-type" not in request.headers
            if request.headers.get("mcp-session-id") != "secret-session":
                return Scripted(status=400, headers={"content-type": "application/json"}, body=b"{}")
        return None

    frames = [block(None, "s1-0", retry=1), *(block(message, f"s1-{n}") for n, message in enumerate(LOG, 1))]
    return flaky_server(frames, schedule, path="/mcp", headers={"mcp-session-id": "secret-session"}, on_request=guard)


@pytest.mark.parametrize("driver", ["sync-httpx", "asyncio-httpx2"])
@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
def test_an_answer_arrives_whole_over_sockets(driver: Any, how: Any, flaky_server: Callable[..., FlakyServer]) -> None:
    row = Row(*driver.split("-"))

    async def scenario() -> None:
        for position in range(60, 1200, 230):
            server = served(flaky_server, [Fault.cut(after_bytes=position, how=how), Fault.cut(after_bytes=130, how=how)])
            stream = row.connect("POST", server.url, json=CALL, protocol=MCPStreamableHTTP())
            async with stream:
                text = "".join([piece async for piece in stream.iter_text()])
            assert (text, stream.outcome) == ("Grüß dich 🦊", Outcome.COMPLETED), position
            assert [request.method for request in server.requests].count("POST") == 1

    row.run(scenario)


def test_a_token_continues_the_answer_with_the_session_given_again(flaky_server: Callable[..., FlakyServer]) -> None:
    server = served(flaky_server)
    with rs.connect("POST", server.url, json=CALL, protocol=MCPStreamableHTTP()) as stream:
        events = [next(stream) for _ in range(6)]
    headers = {"Mcp-Session-Id": "secret-session", "MCP-Protocol-Version": "2025-11-25"}
    with rs.resume(stream.token, origin=server.url, headers=headers, protocol=MCPStreamableHTTP()) as rest:
        events += list(rest)
    assert [event.json() for event in events if event.data] == LOG
    with pytest.raises(ResponseRejected), rs.resume(stream.token, origin=server.url, protocol=MCPStreamableHTTP()):
        pass


CANCELLED = {"jsonrpc": "2.0", "id": 1, "error": {"code": -32800, "message": "Request cancelled"}}


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "in another process"])
async def test_cancel_tells_the_server_in_the_session(
    row: Row, elsewhere: bool, flaky_server: Callable[..., FlakyServer]
) -> None:
    """MCP 2025-11-25, "Cancellation"; mcp 2.3 answers a request that was cancelled with the code -32800."""

    def guard(request: RecordedRequest) -> Scripted | None:
        if request.method == "POST" and request.json() == CALL:
            return None
        assert request.headers["mcp-session-id"] == "secret-session"
        return Scripted(status=202) if request.method == "POST" else Scripted(body=block(CANCELLED, "s1-9"))

    headers = {"mcp-session-id": "secret-session"}
    frames = [block(None, "s1-0", retry=1), block(LOG[0], "s1-1")]
    server = flaky_server(frames, [Fault.cut(after_events=2, how="clean")], path="/mcp", headers=headers, on_request=guard)
    async with row.connect("POST", server.url, json=CALL, params={"tenant": "t"}) as stream:
        events = [await anext(stream), await anext(stream)]
        if not elsewhere:
            await stream.cancel()
            events += [event async for event in stream]
    if elsewhere:
        given = {"headers": {**headers, "MCP-Protocol-Version": "2025-11-25"}, "params": {"tenant": "t"}}
        async with row.resume(stream.token, origin=server.url, protocol=MCPStreamableHTTP(), **given) as stream:
            await stream.cancel()
            events += [event async for event in stream]
    assert ([event.json() for event in events if event.data], stream.outcome) == ([LOG[0], CANCELLED], Outcome.CANCELLED)
    (told,) = [request for request in server.requests[1:] if request.method == "POST"]
    assert told.json() == {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    assert (told.path, told.query, told.headers["content-type"]) == ("/mcp", {"tenant": "t"}, "application/json")
    assert told.headers["accept"] == "application/json, text/event-stream"


@pytest.mark.parametrize(
    "body",
    [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize"},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        [CALL, {**CALL, "id": 2}],
    ],
    ids=["initialize", "a notification", "a batch"],
)
def test_what_no_notification_stops(body: Any, flaky_server: Callable[..., FlakyServer]) -> None:
    """A client must not cancel `initialize`, and one notification names one request."""
    server = served(flaky_server)
    stream = rs.connect("POST", server.url, json=body, protocol=MCPStreamableHTTP())
    with stream, pytest.raises(ResumableStreamError, match="no call that stops"):
        stream.cancel()
    assert len(server.requests) == 1
