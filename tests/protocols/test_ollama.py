"""
`OllamaNDJSON` against a server that sends what Ollama's docs/api.md shows. The payloads are invented (2026-11).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from resumable_stream._contract import Head, Interrupted, StreamState
from resumable_stream._errors import (
    EventTooLarge,
    NotResumable,
    ResponseRejected,
    RetriesExhausted,
    StreamInterrupted,
    UpstreamError,
)
from resumable_stream._events import Delta, Outcome, StreamEvent
from resumable_stream._settings import Limits
from resumable_stream.protocols.ollama import OllamaNDJSON
from resumable_stream.testing import Fault, FlakyServer

from ..core.simulation import NO_ANSWER, UNSENT, Reply, Stream, cut_body, run, script

if TYPE_CHECKING:
    from tests.conftest import Row

URL = "http://localhost:11434/api/chat"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TYPE = "application/x-ndjson"
TEXT = "Grüße, 世界 🦊\u2028"
PROTOCOL = OllamaNDJSON()


def line(done: bool = False, **fields: Any) -> bytes:
    made = {"model": "m", "created_at": "2026-11-20T00:00:00Z", **fields, "done": done}
    return json.dumps(made, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def say(content: str = "", done: bool = False, **more: Any) -> bytes:
    reason = {"done_reason": more.pop("done_reason")} if "done_reason" in more else {}
    return line(done, message={"role": "assistant", "content": content, **more}, **reason)


CHAT = [
    say(thinking="Hm"),
    say(thinking="…"),
    say("Grü"),
    say("ße"),
    b"\n",
    say(", "),
    say("世"),
    say("界"),
    say(" "),
    say("🦊"),
    say("\u2028"),
    say(tool_calls=[{"function": {"name": "f", "arguments": {"ü": 1, "done": True}}}]),
    say(tool_calls=[]),
    say("", True, done_reason="stop"),
]
WHOLE = b"".join(CHAT)
LINES = [each.decode()[:-1] for each in CHAT if each != b"\n"]


def stream(server: Any, **options: Any) -> Stream:
    return Stream(server, **{"method": "POST", "url": URL, "json": BODY, "protocol": PROTOCOL, **options})


def reply(*lines: bytes, end: str = "close", **options: Any) -> Stream:
    return stream(script(Reply([b"".join(lines), end], type=TYPE)), **options)


def text_of(events: list[Any], kind: str = "text") -> str:
    return "".join(delta.text for event in events for delta in PROTOCOL.deltas(event) if delta.kind == kind)


# --- cut everywhere -------------------------------------------------------------------------------------------------


def test_in_whatever_chunks_it_comes() -> None:
    for size in (1, 2, 7, (1, 30, 2)):
        for body in (WHOLE, WHOLE[:-1], WHOLE.replace(b"\n", b"\r\n")):
            result = run(stream(script(Reply(cut_body(body, None, size), type=TYPE))))
            assert (result.data, result.outcome, text_of(result.events)) == (LINES, Outcome.COMPLETED, TEXT)


# --- ends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        ("stop", Outcome.COMPLETED),
        ("load", Outcome.COMPLETED),
        ("unload", Outcome.COMPLETED),
        (None, Outcome.COMPLETED),
        ("length", Outcome.INCOMPLETE),
        ("new word", Outcome.INCOMPLETE),
    ],
)
@pytest.mark.parametrize("end", ["close", "rst", "fin", "silence"])
def test_the_last_line_is_the_end_whatever_the_socket_does(reason: str | None, outcome: Outcome, end: str) -> None:
    last = say("", True, done_reason=reason) if reason else say("", True)
    result = run(reply(*CHAT[:5], last, end=end))
    assert (result.outcome, len(result.events)) == (outcome, 5)


@pytest.mark.parametrize(
    "near", [say('"done":true'), line(message={"tool_calls": [{"function": {"arguments": {"done": True}}}]})]
)
def test_done_inside_a_line_is_not_its_end(near: bytes) -> None:
    assert isinstance(run(reply(near)).error, StreamInterrupted)


def test_json_with_spaces_is_read_as_well() -> None:
    assert run(reply(b'{"response" : "x", "done" : false}\n{"done" : true}\n')).outcome is Outcome.COMPLETED
    assert isinstance(run(reply(b'{"done": "true"}\n')).error, StreamInterrupted)


@pytest.mark.parametrize("frame", [b'{"error":"llama runner died"}\n', b'{"error": "llama runner died"}'])
def test_an_error_line_is_raised_after_what_came_before(frame: bytes) -> None:
    result = run(reply(*CHAT[:6], frame))
    assert isinstance(result.error, UpstreamError) and "llama runner died" in str(result.error)
    assert (len(result.events), result.error.body) == (5, {"error": "llama runner died"})


def test_lines_that_are_no_json_are_delivered_and_prove_nothing() -> None:
    result = run(reply(b'oops "done" true\n', b'[1, "done", true]\n'))
    assert (result.data, type(result.error)) == (['oops "done" true', '[1, "done", true]'], StreamInterrupted)


def test_a_line_without_end_is_bounded() -> None:
    assert isinstance(run(reply(b"x" * 300, limits=Limits(line_bytes=200))).error, EventTooLarge)


def test_silence_is_interrupted() -> None:
    assert isinstance(run(reply(*CHAT[:5], end="silence")).error, StreamInterrupted)


# --- statuses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "error", "requests"),
    [
        (400, b'{"error":"invalid options"}', ResponseRejected, 1),
        (404, b'{"error":"model \'m\' not found"}', ResponseRejected, 1),
        (500, b'{"error":"out of memory"}', ResponseRejected, 1),
        (503, b'{"error":"server busy, please try again"}', RetriesExhausted, 10),
        (429, b"", RetriesExhausted, 10),
    ],
)
def test_what_a_status_means(status: int, body: bytes, error: type, requests: int) -> None:
    result = run(stream(lambda sent: Reply([body], status=status, type="application/json")))
    assert (type(result.error), len(result.stream.sent)) == (error, requests)
    assert error is RetriesExhausted or body.decode() in str(result.error)


def test_a_server_that_is_not_up_yet_is_asked_again_and_a_lost_request_is_not() -> None:
    assert run(stream(script(UNSENT, UNSENT, Reply([WHOLE], type=TYPE)))).outcome is Outcome.COMPLETED
    assert isinstance(run(stream(script(NO_ANSWER))).error, StreamInterrupted)


def test_another_process_cannot_continue() -> None:
    here = reply(WHOLE)
    run(here, at_most=4)
    assert isinstance(run(stream(script(), checkpoint=here.leave())).error, NotResumable)
    whole = reply(WHOLE)
    run(whole)
    assert run(stream(script(), checkpoint=whole.checkpoint)).outcome is Outcome.COMPLETED


def test_restart_asks_for_another_answer_and_says_so() -> None:
    server = script(Reply([*CHAT[:5], "rst"], type=TYPE), Reply([WHOLE], type=TYPE))
    result = run(stream(server, on_lost="restart"))
    at = next(index for index, event in enumerate(result.events) if event.reset)
    assert (text_of(result.events[at:]), result.outcome) == (TEXT, Outcome.COMPLETED)


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "deltas"),
    [
        (LINES[0], [Delta("reasoning", "Hm")]),
        (LINES[2], [Delta("text", "Grü")]),
        ('{"response":"x","thinking":"y","done":false}', [Delta("reasoning", "y"), Delta("text", "x")]),
        ('{"message":{"tool_calls":[{"function":{"arguments":{"ü":1}}}]}}', [Delta("tool", '{"ü": 1}')]),
        ('{"message":{"content":5,"tool_calls":[5,{"function":{}},{"function":{"arguments":{}}}]}}', [Delta("tool", "{}", 2)]),
        ('{"message":{"content":"","thinking":null,"tool_calls":5}}', []),
        ('{"done":true}', []),
        ("[1]", []),
        ("oops", []),
    ],
)
def test_deltas_of_every_shape(data: str, deltas: list[Delta]) -> None:
    assert list(PROTOCOL.deltas(StreamEvent(data=data))) == deltas


def test_generate_is_read_like_chat() -> None:
    lines = [line(response=text) for text in ("Grüße", ", 世界")] + [line(True, response="", done_reason="stop", context=[1])]
    result = run(reply(*lines, url="http://localhost:11434/api/generate", json={"model": "m", "prompt": "hi"}))
    assert (text_of(result.events), result.outcome) == ("Grüße, 世界", Outcome.COMPLETED)


@pytest.mark.parametrize(
    ("method", "path", "body", "type", "found"),
    [
        ("POST", "/api/chat", BODY, TYPE, True),
        ("POST", "/api/generate", {"model": "m", "prompt": "x"}, TYPE, True),
        ("POST", "/ollama/api/chat", BODY, TYPE, True),
        ("POST", "/api/pull", {"model": "m"}, TYPE, False),
        ("POST", "/api/chat", {"question": "x"}, TYPE, False),
        ("POST", "/api/chat", None, TYPE, False),
        ("GET", "/api/chat", BODY, TYPE, False),
        ("POST", "/v1/chat/completions", BODY, "text/event-stream", False),
        ("POST", "/api/chat", BODY, "text/event-stream", False),
        ("POST", "/api/chat", BODY, "application/json", False),
    ],
)
def test_it_is_known_by_its_request_and_head(method: str, path: str, body: Any, type: str, found: bool) -> None:
    url = f"http://localhost:11434{path}"
    assert PROTOCOL.matches(StreamState(method, url, body), Head(200, {"content-type": type}, url)) is found


def test_what_it_promises() -> None:
    assert (repr(PROTOCOL), PROTOCOL.options) == ("<OllamaNDJSON: has_end, tied>", "")
    state = StreamState("POST", URL, BODY)
    assert (PROTOCOL.resume_request(state), PROTOCOL.cancel_request(state), PROTOCOL.snapshot_request(state)) == (None,) * 3
    assert isinstance(PROTOCOL.on_clean_close(state), Interrupted)


# --- sockets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
async def test_over_sockets_a_cut_is_never_silent(row: Row, flaky_server: Callable[..., FlakyServer], how: Any) -> None:
    for position in (0, 30, len(CHAT[0]), len(WHOLE) // 2, len(WHOLE) - 2, len(WHOLE)):
        fault = Fault.cut(after_bytes=position, how=how)
        server = flaky_server(CHAT, [fault], format="ndjson", path="/api/chat")
        opened = row.connect("POST", server.url, json=BODY, protocol=PROTOCOL)
        if position == len(WHOLE):
            async with opened:
                assert await opened.read_text() == TEXT
            assert opened.outcome is Outcome.COMPLETED
            continue
        pieces: list[str] = []
        with pytest.raises(StreamInterrupted) as caught:  # noqa: PT012
            async with opened:
                async for piece in opened.iter_text():
                    pieces.append(piece)
        assert caught.value.text_so_far in (None, "".join(pieces))
        assert TEXT.startswith("".join(pieces)) and len(server.requests) == 1


async def test_over_sockets_leaving_closes_the_connection(row: Row, flaky_server: Callable[..., FlakyServer]) -> None:
    server = flaky_server(CHAT[:6], format="ndjson", path="/api/chat", hold_open=True)
    async with row.connect("POST", server.url, json=BODY, protocol=PROTOCOL) as opened:
        async for each in opened:
            if text_of([each]):
                break
        with pytest.raises(Exception, match="no call that stops"):
            await opened.cancel()
    await row.close_clients()
    assert server.wait_disconnected(30.0)
