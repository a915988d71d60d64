"""
`OpenAIChat` against a server that sends what the `openai` package 3.51 reads (`chat.completion.chunk`).

The payloads are invented; reasoning is as vLLM sends it, the comment as OpenRouter does (2026-11).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from resumable_stream._contract import Head, Interrupted, Settled, StreamState, Unproven
from resumable_stream._errors import (
    NotResumable,
    ProtocolViolation,
    ResponseRejected,
    RetriesExhausted,
    StreamInterrupted,
    UnexpectedContentType,
    UpstreamError,
)
from resumable_stream._events import Delta, Outcome, StreamEvent
from resumable_stream._text import TextReader
from resumable_stream.protocols.openai_chat import OpenAIChat
from resumable_stream.testing import Fault, FlakyServer

from ..core.simulation import NO_ANSWER, UNSENT, Reply, Stream, Wait, cut_body, run, script

if TYPE_CHECKING:
    from tests.conftest import Row

URL = "https://api.example.com/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
TEXT = 'Grüße, "世界" 🦊'
PROTOCOL = OpenAIChat()


HEAD = {"id": "c1", "object": "chat.completion.chunk", "created": 0, "model": "m"}
USAGE = {"completion_tokens": 4, "prompt_tokens": 5, "total_tokens": 9}


def chunk(delta: dict[str, Any], reason: str | None = None, index: int = 0, **fields: Any) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": reason}
    return data({**HEAD, "choices": [choice], **fields})


def data(payload: Any) -> bytes:
    return f"data: {json.dumps(payload, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def call(arguments: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": 1, "function": {"arguments": arguments}}]}


DONE = b"data: [DONE]\n\n"
BEFORE = [
    b": OPENROUTER PROCESSING\n\n",
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "Hm…"}),
    chunk({"content": "Grüße"}),
    b": OPENROUTER PROCESSING\n\n",
    chunk({"content": ", "}),
    chunk({"content": '"世界"'}),
    chunk({"content": " 🦊"}),
    chunk({"refusal": "No."}),
    chunk(call('{"q"')),
    chunk(call(":1}")),
    chunk({}),
    chunk({"content": None}),
]
AFTER = [chunk({}, "stop"), data({**HEAD, "choices": [], "usage": USAGE}), DONE]
FRAMES = [*BEFORE, *AFTER]
BODY_BYTES = b"".join(FRAMES)
PAYLOADS = [frame[6:-2].decode() for frame in FRAMES if frame.startswith(b"data")]
SETTLED = sum(map(len, FRAMES[: len(BEFORE) + 1]))


def stream(server: Any, **options: Any) -> Stream:
    return Stream(server, **{"method": "POST", "url": URL, "json": BODY, "protocol": PROTOCOL, **options})


def reply(*frames: bytes, end: str = "close", **options: Any) -> Stream:
    return stream(script(Reply([b"".join(frames), end])), **options)


def text_of(events: list[Any], kind: str = "text") -> str:
    return "".join(delta.text for event in events for delta in PROTOCOL.deltas(event) if delta.kind == kind)


# --- cut everywhere -------------------------------------------------------------------------------------------------


def test_in_whatever_chunks_it_comes() -> None:
    for size in (1, 2, 7, (1, 30, 2)):
        result = run(stream(script(Reply(cut_body(BODY_BYTES, None, size)))))
        assert (result.data, result.outcome, text_of(result.events)) == (PAYLOADS, Outcome.COMPLETED, TEXT)


# --- ends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        ("stop", Outcome.COMPLETED),
        ("tool_calls", Outcome.COMPLETED),
        ("function_call", Outcome.COMPLETED),
        ("length", Outcome.INCOMPLETE),
        ("content_filter", Outcome.INCOMPLETE),
        ("error", Outcome.FAILED),
        ("insufficient_system_resource", Outcome.INCOMPLETE),
    ],
)
@pytest.mark.parametrize("end", ["close", "rst", "fin", "silence"])
def test_the_reason_is_the_outcome(reason: str, outcome: Outcome, end: str) -> None:
    assert run(reply(*BEFORE, chunk({}, reason), end=end)).outcome is outcome


def test_the_reason_may_come_with_the_last_text() -> None:
    result = run(reply(chunk({"content": "hi"}, "stop"), DONE))
    assert (text_of(result.events), result.outcome) == ("hi", Outcome.COMPLETED)


@pytest.mark.parametrize("tail", [[], [DONE], [chunk({}, ""), DONE], [AFTER[1], DONE]])
def test_done_without_a_reason_proves_nothing(tail: list[bytes]) -> None:
    result = run(reply(*BEFORE, *tail))
    assert isinstance(result.error, StreamInterrupted) and result.error.reason == "closed before the end"


@pytest.mark.parametrize(
    "marker", [DONE, b"data:[DONE]\n\n", b"data: [DONE] \n\n", b"data: [DONE]x\n\n", b"event: done\ndata: [DONE]\n\n"]
)
@pytest.mark.parametrize("end", ["close", "rst", "silence"])
def test_an_unproven_done_is_not_delivered_and_its_error_says_what_to_pass(marker: bytes, end: str) -> None:
    """The SDK stops reading at data that begins with `[DONE]` (openai 3.51, `_streaming.py`), so the error has to come first."""
    result = run(reply(chunk({"content": "Hel"}), marker, end=end))
    assert isinstance(result.error, StreamInterrupted)
    assert [event.data[:8] for event in result.events] == ['{"id":"c']
    assert "[DONE] came without a finish_reason" in str(result.error)
    assert "pass OpenAIChat(end='[DONE]')" in str(result.error)


def test_done_after_the_reason_is_delivered() -> None:
    for frames in ([chunk({}, "stop"), DONE], [chunk({}, "length"), DONE, DONE]):
        result = run(reply(*BEFORE, *frames))
        assert (result.data[-1], result.error) == ("[DONE]", None)


def test_a_server_that_never_sends_a_reason_can_be_named() -> None:
    believing = {"protocol": OpenAIChat(end="[DONE]")}
    result = run(reply(*BEFORE, DONE, end="silence", **believing))
    assert (result.outcome, result.data[-1]) == (Outcome.COMPLETED, "[DONE]")
    assert run(reply(*BEFORE, chunk({}, "length"), DONE, **believing)).outcome is Outcome.INCOMPLETE
    assert isinstance(run(reply(*BEFORE, **believing)).error, StreamInterrupted)
    with pytest.raises(ValueError, match="end must be"):
        OpenAIChat(end="close")  # type: ignore[arg-type]


def test_a_reason_inside_the_text_is_text() -> None:
    fakes = ['{"finish_reason":"stop"}', '"finish_reason":null', '\\"finish_reason\\": \\"stop\\"']
    for text in fakes:
        result = run(reply(chunk({"content": text}), DONE))
        assert isinstance(result.error, StreamInterrupted) and text_of(result.events) == text
        assert run(reply(chunk({"content": text}), chunk({"content": text}, "length"))).outcome is Outcome.INCOMPLETE


TWO = [chunk({"content": "a"}), chunk({"content": "b"}, index=1), chunk({}, "stop"), chunk({"content": "B"}, "stop", 1)]
SEVERAL = {"json": {**BODY, "n": 2}, "protocol": OpenAIChat(choices=2)}


@pytest.mark.parametrize("end", ["close", "rst", "fin", "silence"])
@pytest.mark.parametrize("tail", [[], [DONE], AFTER[1:]])
def test_an_answer_of_several_choices_is_whole_when_each_has_a_reason(end: str, tail: list[bytes]) -> None:
    """A `finish_reason` is of its choice (API reference, "The chat completion chunk object"), so all of them are the end."""
    assert run(reply(*TWO, *tail, end=end, **SEVERAL)).outcome is Outcome.COMPLETED
    early = [*TWO[:2], chunk({}, "length", 1), chunk({}, "stop"), *tail]
    assert run(reply(*early, end=end, **SEVERAL)).outcome is Outcome.INCOMPLETE


@pytest.mark.parametrize("tail", [[], [DONE]])
def test_a_choice_without_a_reason_is_cut(tail: list[bytes]) -> None:
    again = [*TWO[:3], chunk({}, "stop"), chunk({}, "stop", 7), chunk({}, "stop", -1)]
    for frames in (TWO[:2], TWO[:3], again):
        for end in ("close", "rst"):
            result = run(reply(*frames, *tail, end=end, **SEVERAL))
            assert isinstance(result.error, StreamInterrupted)
            assert len(result.events) == len(frames)
            assert ("for each of the 2 choices" in str(result.error)) is bool(tail)


def test_one_event_may_have_the_reasons_of_several_choices() -> None:
    both = data({**HEAD, "choices": [{"index": at, "delta": {}, "finish_reason": "stop"} for at in (0, 1)]})
    mixed = data(
        {**HEAD, "choices": [{"index": at, "delta": {}, "finish_reason": each} for at, each in ((0, None), (1, "stop"))]}
    )
    assert run(reply(*TWO[:2], both, **SEVERAL)).outcome is Outcome.COMPLETED
    assert run(reply(*TWO[:2], mixed, TWO[2], **SEVERAL)).outcome is Outcome.COMPLETED
    assert isinstance(run(reply(*TWO[:2], mixed, **SEVERAL)).error, StreamInterrupted)


def test_what_other_choices_ended_with_is_kept_where_done_ends_it() -> None:
    believing = {**SEVERAL, "protocol": OpenAIChat(choices=2, end="[DONE]")}
    assert run(reply(*TWO[:3], DONE, **believing)).outcome is Outcome.COMPLETED
    assert run(reply(*TWO[:2], chunk({}, "length", 1), DONE, **believing)).outcome is Outcome.INCOMPLETE


@pytest.mark.parametrize(
    ("body", "choices"),
    [
        ({**BODY, "n": 2}, 2),
        ({"prompt": ["a", "b"], "stream": True}, 2),
        ({"prompt": ["a", "b"], "stream": True, "n": 3}, 6),
        ({"prompt": [[1, 2], [3], [4]], "stream": True}, 3),
        ({"prompt": [1, 2, 3], "stream": True}, 1),
        ({"prompt": "a", "stream": True}, 1),
        ({"prompt": [], "stream": True}, 1),
    ],
)
def test_the_choices_are_those_that_the_request_asks_for(body: Any, choices: int) -> None:
    """`n`, and for each of several prompts (API reference, "Completions", `prompt`) its own."""
    made = OpenAIChat.for_request(StreamState("POST", URL, body))
    assert made.options == (f"choices={choices}" if choices > 1 else "")


def test_choices_that_are_not_those_of_the_request_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pass OpenAIChat\(choices=2\)"):
        run(reply(*TWO, json={**BODY, "n": 2}))
    with pytest.raises(ValueError, match="choices"):
        OpenAIChat(choices=0)


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        (data({"error": {"message": "upstream died", "code": 502}}), "502"),
        (data({"id": "c1", "choices": [], "error": {"message": "upstream died", "code": 502}}), "502"),
        (chunk({}, "error", error={"message": "upstream died", "type": "provider"}), "provider"),
        (data({"error": "upstream died"}), ""),
        (b'event: error\ndata: {"message": "upstream died", "type": "busy"}\n\n', "busy"),
        (b"event: error\ndata: upstream died\n\n", ""),
    ],
)
@pytest.mark.parametrize("before", [BEFORE, [*BEFORE, AFTER[0]]])
def test_an_error_in_the_stream_is_raised_after_what_came_before(frame: bytes, kind: str, before: list[bytes]) -> None:
    result = run(reply(*before, frame, DONE))
    assert isinstance(result.error, UpstreamError)
    assert ("upstream died" in str(result.error), result.error.type) == (True, kind)
    assert text_of(result.events) == TEXT


def test_an_empty_error_is_none() -> None:
    assert run(reply(chunk({"content": "x"}, error=None), *AFTER)).outcome is Outcome.COMPLETED
    assert run(reply(chunk({"content": '"error"'}), *AFTER)).outcome is Outcome.COMPLETED


def test_silence_is_interrupted_and_comments_feed_the_clock() -> None:
    result = run(reply(*BEFORE, end="silence"))
    assert isinstance(result.error, StreamInterrupted) and result.error.reason == "idle"
    comments = [step for _ in range(20) for step in (Wait(14.0), b": OPENROUTER PROCESSING\n\n")]
    assert run(stream(script(Reply([*BEFORE, *comments, *AFTER])))).outcome is Outcome.COMPLETED


# --- statuses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error", "requests"),
    [
        (400, ResponseRejected, 1),
        (401, ResponseRejected, 1),
        (402, ResponseRejected, 1),
        (404, ResponseRejected, 1),
        (413, ResponseRejected, 1),
        (422, ResponseRejected, 1),
        (500, ResponseRejected, 1),
        (502, ResponseRejected, 1),
        (429, RetriesExhausted, 10),
        (503, RetriesExhausted, 10),
        (529, RetriesExhausted, 10),
    ],
)
def test_what_a_status_means(status: int, error: type, requests: int) -> None:
    body = b'{"error": {"message": "no", "type": "t", "param": null, "code": null}}'
    result = run(stream(lambda sent: Reply([body], status=status, type="application/json")))
    assert (type(result.error), len(result.stream.sent)) == (error, requests)


def test_a_busy_server_is_asked_again_and_a_lost_request_is_not() -> None:
    busy = Reply([b"{}"], status=429, headers={"retry-after": "3"}, type="application/json")
    result = run(stream(script(busy, UNSENT, Reply([BODY_BYTES]))))
    assert (result.outcome, result.stream.sleeps[0]) == (Outcome.COMPLETED, 3.0)
    assert isinstance(run(stream(script(NO_ANSWER))).error, StreamInterrupted)


def test_an_answer_that_is_no_stream_is_said_to_be_none() -> None:
    result = run(stream(script(Reply([b'{"choices": []}'], type="application/json"))))
    assert isinstance(result.error, UnexpectedContentType)


def test_another_process_cannot_continue() -> None:
    here = reply(*FRAMES)
    run(here, at_most=4)
    there = stream(script(), json=None, checkpoint=here.leave())
    assert isinstance(run(there).error, NotResumable)
    whole = reply(*FRAMES)
    run(whole)
    assert run(stream(script(), checkpoint=whole.checkpoint)).outcome is Outcome.COMPLETED


def test_restart_asks_for_another_answer_and_says_so() -> None:
    server = script(Reply([*BEFORE[:6], "rst"]), Reply([BODY_BYTES]))
    result = run(stream(server, on_lost="restart"))
    at = next(index for index, event in enumerate(result.events) if event.reset)
    assert (text_of(result.events[at:]), result.outcome) == (TEXT, Outcome.COMPLETED)


# --- events that are not JSON ---------------------------------------------------------------------------------------

HEL, LO = chunk({"content": "Hel"}), chunk({"content": "lo"})
JOINED = b"data: " + HEL[6:-2] + b"\ndata: " + LO[6:]


def read(*frames: bytes, n: int = 1) -> str:
    """The text of an answer, as `read_text()` has it."""
    several = {"json": {**BODY, "n": n}, "protocol": OpenAIChat(choices=n)} if n > 1 else {}
    opened = reply(*frames, **several)
    reader = TextReader(lambda: opened.machine.protocol, mode="text", resets=True, limit=10_000, strict=True)
    result = run(opened)
    assert result.error is None, result.error
    return "".join(piece for event in result.events for piece in reader.read(event))


def test_two_documents_in_one_event_are_read_as_two() -> None:
    """rexxars/eventsource-parser#31: the blank line between two events became one line feed; each line is a whole chunk."""
    assert read(JOINED, *AFTER) == "Hello"
    assert read(HEL[:-2] + b"\ndata: \n" + LO, *AFTER) == "Hello"
    assert read(HEL[:-1] + chunk({"content": "lo"}, "stop")) == "Hello"
    assert read(HEL[:-1] + LO[:-1] + chunk({}, "stop"), DONE) == "Hello"
    assert read(HEL, chunk({}, "stop", 1)[:-1] + chunk({}, "stop"), n=2) == "Hel"


def test_an_error_among_joined_documents_is_raised() -> None:
    result = run(reply(HEL[:-1] + data({"error": {"message": "upstream died"}})))
    assert isinstance(result.error, UpstreamError)


@pytest.mark.parametrize(
    "broken", [HEL[:40] + b"\n\n", JOINED[:-20] + b"\n\n", b"data: oops\n\n", b"data: <html>\n\n", HEL[:-1] + b"data: [DONE]\n\n"]
)
def test_a_chunk_that_is_not_json_is_an_error_with_its_place(broken: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="as the data of event 1") as caught:
        read(HEL, broken, LO, *AFTER)
    assert 0 < len(caught.value.excerpt) <= 80


def test_pings_need_not_be_json() -> None:
    odd = [
        b"event: ping\ndata: now\n\n",
        b"data:\n\n",
        b": x\n\n",
        b"event: message.ping\ndata: x\n\n",
        b"data: {}\n\n",
        b"data: null\n\n",
    ]
    assert read(HEL, *odd, LO, *AFTER) == "Hello"


# --- reading --------------------------------------------------------------------------------------------------------


def event(payload: Any) -> StreamEvent:
    return StreamEvent(data=payload if isinstance(payload, str) else json.dumps(payload))


def test_the_visible_text_is_one_kind_among_others() -> None:
    events = run(reply(*FRAMES)).events
    assert [text_of(events, kind) for kind in ("text", "reasoning", "refusal", "tool")] == [TEXT, "Hm…", "No.", '{"q":1}']


@pytest.mark.parametrize(
    ("payload", "deltas"),
    [
        ({"choices": [{"index": 2, "delta": {"content": "x"}}]}, [Delta("text", "x", 2)]),
        ({"choices": [{"delta": {"content": "x", "reasoning": "y"}}]}, [Delta("reasoning", "y"), Delta("text", "x")]),
        ({"choices": [{"delta": {"reasoning": "y", "reasoning_content": "y"}}]}, [Delta("reasoning", "y")]),
        ({"choices": [{"index": 0, "text": "old"}]}, [Delta("text", "old")]),
        ({"choices": [{"delta": call("{}")}]}, [Delta("tool", "{}", 1)]),
        (
            {"choices": [{"delta": {"tool_calls": [5, {"function": None}, {"function": {"arguments": "a"}}]}}]},
            [Delta("tool", "a")],
        ),
        ({"choices": [5, {"delta": None}, {"delta": {"content": 5}}, {"index": "a", "delta": {"content": ""}}]}, []),
        ({"choices": None}, []),
        ([1], []),
        ("[DONE]", []),
        ("", []),
    ],
)
def test_deltas_of_every_shape(payload: Any, deltas: list[Delta]) -> None:
    assert list(PROTOCOL.deltas(event(payload))) == deltas


def test_the_end_of_every_shape() -> None:
    assert PROTOCOL.end(event({"choices": [{"finish_reason": "stop"}]})) == Settled(Outcome.COMPLETED)
    assert isinstance(PROTOCOL.end(event("[DONE]")), Unproven)
    for payload in (
        "",
        {"finish_reason": "stop"},
        {"choices": [{"finish_reason": None}]},
        {"choices": ["finish_reason"]},
    ):
        assert PROTOCOL.end(event(payload)) is None


def test_the_id_is_of_the_answer() -> None:
    result = run(reply(*FRAMES))
    assert result.stream.state.stream_id == "c1"
    assert result.stream.machine.stats.duplicates == 0


STREAMS = {"content-type": "text/event-stream"}


@pytest.mark.parametrize(
    ("method", "url", "body", "head", "found"),
    [
        ("POST", URL, BODY, STREAMS, True),
        ("POST", "https://x.example/api/v1/completions/", {"prompt": "x", "stream": True, "n": 1}, STREAMS, True),
        ("POST", "https://x.example/openai/deployments/m/chat/completions?api-version=1", BODY, STREAMS, True),
        ("POST", URL, {**BODY, "n": 2}, STREAMS, True),
        ("POST", URL, {**BODY, "stream": False}, STREAMS, False),
        ("POST", URL, {"stream": True, "question": "x"}, STREAMS, False),
        ("POST", URL, None, STREAMS, False),
        ("GET", URL, BODY, STREAMS, False),
        ("POST", "https://x.example/v1/responses", BODY, STREAMS, False),
        ("POST", URL, BODY, {"content-type": "application/json"}, False),
    ],
)
def test_it_is_known_by_its_request_and_head(method: str, url: str, body: Any, head: Any, found: bool) -> None:
    assert PROTOCOL.matches(StreamState(method, url, body), Head(200, head, url)) is found


def test_what_it_promises() -> None:
    assert repr(PROTOCOL) == "<OpenAIChat: has_end, tied>"
    assert (PROTOCOL.options, OpenAIChat(choices=2).options) == ("", "choices=2")
    assert OpenAIChat(choices=2, end="[DONE]").options == "choices=2 end=[DONE]"
    state = StreamState("POST", URL, BODY)
    assert (PROTOCOL.resume_request(state), PROTOCOL.cancel_request(state), PROTOCOL.snapshot_request(state)) == (None,) * 3
    assert isinstance(PROTOCOL.on_clean_close(state), Interrupted)


# --- sockets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
async def test_over_sockets_a_cut_is_the_end_only_behind_the_reason(
    row: Row, flaky_server: Callable[..., FlakyServer], how: Any
) -> None:
    for position in (0, 45, SETTLED // 2, SETTLED - 1, SETTLED, SETTLED + 9, len(BODY_BYTES) - 1):
        server = flaky_server(FRAMES, [Fault.cut(after_bytes=position, how=how)], path="/v1/chat/completions")
        opened = row.connect("POST", server.url, json=BODY, protocol=PROTOCOL)
        # A clean close needs no empty line after the event that proves the end.
        if position >= SETTLED or (position == SETTLED - 1 and how.startswith("clean")):
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


async def test_over_sockets_there_is_no_cancel_but_close(row: Row, flaky_server: Callable[..., FlakyServer]) -> None:
    server = flaky_server(BEFORE, path="/v1/chat/completions", hold_open=True)
    async with row.connect("POST", server.url, json=BODY, protocol=PROTOCOL) as opened:
        async for each in opened:
            if text_of([each]):
                break
        with pytest.raises(Exception, match="no call that stops"):
            await opened.cancel()
    await row.close_clients()
    assert server.wait_disconnected(30.0)
