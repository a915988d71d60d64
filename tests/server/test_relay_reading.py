"""What a relay makes of an upstream's body, with plain bytes: every split, every cut."""

from __future__ import annotations

import json
from typing import Any

import pytest

from resumable_stream import Outcome
from resumable_stream.framing import NDJSONDecoder, SSEDecoder
from resumable_stream.protocols import Head
from resumable_stream.server._relay_reading import UpstreamReading, protocol_of, text_in
from resumable_stream.server.log import Ending

from ..cutting import Where, at_every_byte
from .relay_wires import ANTHROPIC, GEMINI, INTERACTIONS, OLLAMA, OPENAI, TEXT, WIRES, Wire

COMPLETED = Ending(outcome=Outcome.COMPLETED)
ENDED = Ending(outcome=Outcome.ENDED)
CUT = Ending(outcome=Outcome.FAILED, reason="upstream_cut")
REPORTED = Ending(outcome=Outcome.FAILED, reason="upstream_reported")


def reading(wire: Wire, body: Any = None, **options: Any) -> UpstreamReading:
    head = Head(200, {"content-type": wire.content_type, **wire.headers}, "")
    framing: Any = wire.format
    protocol = protocol_of("POST", f"https://upstream{wire.path}", wire.body if body is None else body, head, framing)
    return UpstreamReading(framing, protocol, **options)


def read(made: UpstreamReading, pieces: list[bytes], *, clean: bool = True) -> tuple[list[bytes], Ending]:
    events = [event for piece in pieces for event in made.feed(piece)]
    last, ending = made.close(clean=clean)
    return [*events, *last], ending


def unknown(*pieces: bytes, clean: bool = True) -> tuple[list[bytes], Ending]:
    """An SSE answer of a server that nobody knows."""
    protocol = protocol_of("POST", "https://upstream/x", {}, Head(200, {"content-type": "text/event-stream"}, ""), "sse")
    return read(UpstreamReading("sse", protocol), list(pieces), clean=clean)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("wire", WIRES, ids=repr)
def test_a_body_is_cut_into_its_events_however_it_arrives(wire: Wire, size: int) -> None:
    body = wire.transcript
    events, ending = read(reading(wire), [body[at : at + size] for at in range(0, len(body), size)])
    assert (b"".join(events), ending) == (body, COMPLETED)
    assert len(events) == wire.events
    # A client counts the same.
    decoder: Any = NDJSONDecoder() if wire.format == "ndjson" else SSEDecoder()
    assert len(decoder.feed(body)) == wire.events


def test_half_of_the_event_that_would_be_the_last_is_no_end_whatever_its_name_says() -> None:
    head = Head(200, {"content-type": "text/event-stream"}, "")
    asked = {"model": "m", "input": "hi", "stream": True}
    data = b'{"type": "response.completed", "sequence_number": 1, "response": {"id": "resp_1", "status": "completed"}}'
    body = b"event: response.completed\ndata: " + data
    for at in range(len(body) + 1):
        protocol = protocol_of("POST", "https://upstream/v1/responses", asked, head, "sse")
        _, ending = read(UpstreamReading("sse", protocol), [body[:at]])
        assert ending == (COMPLETED if at == len(body) else CUT), at


@pytest.mark.parametrize("wire", WIRES, ids=repr)
def test_one_event_a_chunk_is_the_same(wire: Wire) -> None:
    assert read(reading(wire), list(wire.blocks)) == (list(wire.blocks), COMPLETED)


@pytest.mark.parametrize("wire", WIRES, ids=repr)
def test_events_that_arrive_together_are_the_same_in_every_grouping(wire: Wire) -> None:
    blocks = wire.blocks
    # All groupings of up to nine events, and an odd part of those of more.
    for together in range(0, 1 << (len(blocks) - 1), 1 if len(blocks) < 10 else 13):
        pieces = [blocks[0]]
        for at, block in enumerate(blocks[1:]):
            if together >> at & 1:
                pieces[-1] += block
            else:
                pieces.append(block)
        events, ending = read(reading(wire), pieces)
        assert (b"".join(events), len(events), ending) == (wire.transcript, wire.events, COMPLETED)


ODD = (
    b"\n",
    b"\r\n",
    b": a comment\n\n",
    b": a comment\n",
    b"id: 7\n\n",
    b"id: 7\n",
    b"event: content_block_delta\n",
    b"event: message_stop\n",
    b"event:message_stop\n",
    b"event:  message_stop\n",
    b"event\n",
    b"event: \n",
    b"data\n",
    b"data: \n\n",
    b"data:\n\n",
    b"data: {}\n",
    b"data: x\n\n",
    b'data:{"error":{"message":"no"}}\n\n',
    b'data: {"error":{"message":"no"}}\n\n',
    b"data: [DONE]\n\n",
    b"data: [DONE]\ndata: more\n\n",
    b"retry: 5\n\n",
    b"\xef\xbb\xbf",
    b"\xc3",
    b"data: \xff\xfe{}\n\n",
)


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize("wire", [OPENAI, ANTHROPIC], ids=repr)
def test_what_is_not_read_is_what_reading_it_would_have_given(wire: Wire, odd: bytes, where: Where) -> None:
    """At any place between two events, in a read of its own or together with its neighbours."""
    blocks = wire.blocks
    turn = ODD.index(odd)
    for at in range(len(blocks) + 1):
        # Each place with a part of what is odd, and in each of the ways; all of it in `make soak`.
        if where is not at_every_byte and (at + turn) % 4:
            continue
        front, back = blocks[:at], blocks[at:]
        body = b"".join(front) + odd + b"".join(back)
        for clean in (True, False):
            # Byte by byte, every event is read.
            expected = read(reading(wire), [body[each : each + 1] for each in range(len(body))], clean=clean)
            for pieces in (
                [*front, odd, *back],
                [b"".join(front) + odd, b"".join(back)],
                [b"".join(front), odd + b"".join(back)],
                [*front[:-1], b"".join(front[-1:]) + odd + b"".join(back[:1]), *back[1:]],
                [body],
            ):
                events, ending = read(reading(wire), [each for each in pieces if each], clean=clean)
                # A line feed too many may go with the event before it, or with the one after it if there is one.
                assert [each.strip() for each in events] == [each.strip() for each in expected[0]], (at, clean, pieces)
                assert ending == expected[1], (at, clean, pieces)


@pytest.mark.parametrize("wire", [OPENAI, ANTHROPIC], ids=repr)
def test_pieces_of_an_answer_that_come_whole_are_not_read(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[bytes] = []
    feed = SSEDecoder.feed
    monkeypatch.setattr(SSEDecoder, "feed", lambda self, data: fed.append(data) or feed(self, data))
    pieces = [block for block in wire.blocks if b"delta" in block and TEXT[3].encode() in block] * 3
    made = reading(wire)
    assert made.feed(pieces[0]) + made.feed(pieces[1] + pieces[2]) == pieces
    assert fed == []
    made.feed(wire.blocks[-1])
    assert fed == [wire.blocks[-1]]


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("wire", WIRES, ids=repr)
def test_a_body_that_is_cut_at_any_byte_has_its_whole_events_and_an_honest_end(wire: Wire, clean: bool, where: Where) -> None:
    body = wire.transcript
    ends = [len(b"".join(wire.blocks[: n + 1])) for n in range(len(wire.blocks))]
    # Of these the outcome is known one or two events before the last.
    settled = {"openai": ends[-2], "anthropic": ends[-2], "interactions": ends[-2]}.get(wire.name, ends[-1])
    # Without its last line ends it is whole if the body was ended in order; and a CR is a line end, whether a LF follows or not.
    lacking = {"ndjson": 1, "sse": 4 if wire is GEMINI else 2}[wire.format] if clean else int(wire is GEMINI)
    # The last bytes of all, too: which of them are lacking decides what is believed.
    for at in sorted({*where(wire.blocks), *range(settled - 8, len(body))} - {len(body)}):
        events, ending = read(reading(wire), [body[:at]], clean=clean)
        assert b"".join(events)[:at] == body[: len(b"".join(events))][:at]
        whole = [end for end in ends if end <= at]
        assert len(b"".join(events)) >= (whole[-1] if whole else 0)
        assert ending == (COMPLETED if at >= settled - lacking else CUT), at


@pytest.mark.parametrize("clean", [True, False])
def test_an_error_of_the_provider_fails_the_stream_with_the_event_that_says_so(clean: bool) -> None:
    for wire, error in (
        (OPENAI, b'data: {"error":{"message":"secret","code":500}}\n\n'),
        (ANTHROPIC, b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"secret"}}\n\n'),
        (GEMINI, b'data: {"error":{"code":503,"status":"UNAVAILABLE","message":"secret"}}\r\n\r\n'),
    ):
        events, ending = read(reading(wire), [*wire.blocks[:2], error], clean=clean)
        # Nothing of what it says is in the ending, which is logged and shown.
        assert (events, ending) == ([*wire.blocks[:2], error], REPORTED)


def test_an_answer_that_stopped_early_is_incomplete() -> None:
    length = OPENAI.blocks[-2].replace(b'"stop"', b'"length"')
    assert read(reading(OPENAI), [*OPENAI.blocks[:-2], length, OPENAI.blocks[-1]])[1] == Ending(outcome=Outcome.INCOMPLETE)
    blocked = b'data: {"promptFeedback":{"blockReason":"SAFETY"}}\r\n\r\n'
    assert read(reading(GEMINI), [blocked]) == ([blocked], REPORTED)


def test_a_done_without_a_reason_proves_nothing() -> None:
    events, ending = read(reading(OPENAI), [*OPENAI.blocks[:-2], OPENAI.blocks[-1]])
    # It is passed on all the same: a relay takes nothing away.
    assert (events[-1], ending) == (OPENAI.blocks[-1], CUT)


def test_a_piece_of_the_answer_after_its_end_disproves_it() -> None:
    assert read(reading(OPENAI), [*OPENAI.blocks[:-1], OPENAI.blocks[2]])[1] == CUT
    assert read(reading(OPENAI), [*OPENAI.blocks[:-1], OPENAI.blocks[2], *OPENAI.blocks[-2:]])[1] == COMPLETED


def test_several_choices_are_all_waited_for() -> None:
    first, second = (OPENAI.blocks[-2].replace(b'"index":0', b'"index":%d' % n) for n in range(2))
    body = {**OPENAI.body, "n": 2}
    assert read(reading(OPENAI, body), [*OPENAI.blocks[:-2], first])[1] == CUT
    assert read(reading(OPENAI, body), [*OPENAI.blocks[:-2], first, second])[1] == COMPLETED


def test_an_unknown_stream_ends_with_done_or_as_its_body_ends() -> None:
    one, done = b"data: 1\n\n", b"data: [DONE]\n\n"
    assert unknown(one, done) == ([one, done], COMPLETED)
    assert unknown(one, done, clean=False) == ([one, done], COMPLETED)
    assert unknown(one) == ([one], ENDED)
    assert unknown(one, clean=False) == ([one], CUT)
    assert unknown(one, b"data: 2") == ([one], CUT)
    assert unknown(one, b"data: 2\n") == ([one], CUT)
    assert unknown(one, b"data: [DONE]\n") == ([one, done], COMPLETED)
    assert unknown() == ([], ENDED)


def test_what_has_no_data_goes_with_the_next_event() -> None:
    events = [b": hi\n\nid: 7\n\ndata: 1\n\n", b":\n\nretry: 5\ndata: 2\r\r"]
    assert unknown(b"".join(events), b": over\n\n")[0] == events


def test_an_event_that_is_too_large_fails_the_stream() -> None:
    made = reading(OPENAI, event_bytes=1000)
    events, ending = read(made, [OPENAI.blocks[0], b"data: {" + b"x" * 1001])
    assert made.broken
    assert (events, ending.reason) == ([OPENAI.blocks[0]], "too_long")


def test_after_the_last_event_nobody_needs_to_wait() -> None:
    made = reading(ANTHROPIC)
    for block in ANTHROPIC.blocks:
        assert not made.over
        made.feed(block)
    assert made.over
    made = reading(OPENAI)
    for block in OPENAI.blocks[:-1]:
        made.feed(block)
    # Usage and `[DONE]` may follow.
    assert not made.over


def test_raw_bytes_end_as_their_body_ends() -> None:
    for clean, ending in ((True, ENDED), (False, CUT)):
        assert read(UpstreamReading("raw"), [b"a", b"bc"], clean=clean) == ([b"a", b"bc"], ending)
    for body, ending in ((b'[{"a":1}]\r\n', COMPLETED), (b'[{"a":1}', CUT), (b"", COMPLETED)):
        pieces = [body[at : at + 1] for at in range(len(body))]
        assert read(UpstreamReading("raw", array=True), pieces)[1] == ending


def test_the_text_of_each_provider_is_known_without_knowing_which_it_is() -> None:
    for wire in WIRES:
        decoder: Any = NDJSONDecoder() if wire.format == "ndjson" else SSEDecoder()
        assert "".join(text_in(event) or "" for event in decoder.feed(wire.transcript)) == "".join(TEXT)
    decoder = SSEDecoder()
    response = {"type": "response.output_text.delta", "delta": "Hi", "output_index": 1}
    events = decoder.feed(f"data: {json.dumps(response)}\n\ndata: [DONE]\n\ndata: 1\n\ndata: {{}}\n\n".encode())
    assert [text_in(event) for event in events] == ["Hi", None, None, None]


def test_each_provider_is_known_by_its_request() -> None:
    names = {}
    for wire in WIRES:
        head = Head(200, {"content-type": wire.content_type}, "")
        protocol = protocol_of("POST", f"https://upstream{wire.path}", wire.body, head, wire.format)  # type: ignore[arg-type]
        names[wire.name] = type(protocol).__name__
    assert names == {
        OPENAI.name: "OpenAIChat",
        ANTHROPIC.name: "AnthropicMessages",
        GEMINI.name: "GeminiGenerate",
        OLLAMA.name: "OllamaNDJSON",
        INTERACTIONS.name: "GeminiInteractions",
    }
    head = Head(200, {"content-type": "text/event-stream"}, "")
    body = {"model": "m", "input": "hi", "stream": True}
    assert type(protocol_of("POST", "https://upstream/v1/responses", body, head, "sse")).__name__ == "OpenAIResponses"
    # Azure's path, and a prefix of a gateway.
    chat = protocol_of("POST", "https://upstream/openai/deployments/d/chat/completions", OPENAI.body, head, "sse")
    assert type(chat).__name__ == "OpenAIChat"


@pytest.mark.parametrize("wire", WIRES, ids=repr)
def test_the_last_event_of_each_provider_is_known_for_the_last_and_none_before_it(wire: Wire) -> None:
    made = reading(wire)
    known = []
    for block in wire.blocks:
        made.feed(block)
        known.append(made.over)
    if wire is GEMINI:
        # Its outcome may be followed by more, and nothing confirms it.
        assert not any(known)
    else:
        assert known == [False] * (len(known) - 1) + [True]
    assert made.close(clean=False)[1] == COMPLETED


def test_done_alone_is_not_the_last_event() -> None:
    made = reading(OPENAI)
    made.feed(OPENAI.blocks[0] + OPENAI.blocks[1] + OPENAI.blocks[-1])
    assert not made.over
    assert made.close(clean=True)[1] == CUT
