"""WebSocket frames: by example, and beside `websockets` and `wsproto`, at every split."""

from __future__ import annotations

import codecs
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.streams import StreamReader
from websockets.uri import parse_uri
from wsproto.frame_protocol import FrameProtocol, ParseFailed
from wsproto.frame_protocol import Opcode as WsprotoOpcode

from resumable_stream._errors import EventTooLarge, ProtocolViolation
from resumable_stream._events import Chunk, StreamEvent
from resumable_stream.framing import WebSocketDecoder
from resumable_stream.framing.websocket import (
    BINARY,
    CLOSE,
    CLOSE_CODES,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    CloseMeaning,
    accept_for,
    closed_with,
    encode,
    key_from,
    meaning_of,
    refusal,
    request_headers,
)

from ..cutting import cut, every_cut

MASK = b"\x37\xfa\x21\x3d"


# --- what must come out


@dataclass
class Result:
    """
    Attributes:
        messages: Text or bytes, in order.
        pings: Payloads of the pings that were answered.
        close: Code and reason of the server's close frame.
        whole: The close frame came between two messages.
        failure: The close code with which the client gave up.
    """

    messages: list[str | bytes] = field(default_factory=list)
    pings: list[bytes] = field(default_factory=list)
    close: tuple[int, str] | None = None
    whole: bool = False
    failure: int | None = None


def new(**options: Any) -> WebSocketDecoder:
    return WebSocketDecoder(new_mask=lambda: MASK, **options)


def unmask(data: bytes) -> list[tuple[int, bytes]]:
    """What a client sent, as opcodes and payloads, read by `websockets`."""
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    frames = []
    while not next_of(reader.at_eof()):
        frame = next_of(Frame.parse(reader.read_exact, mask=True))
        frames.append((int(frame.opcode), bytes(frame.data)))
    return frames


def next_of(steps: Any) -> Any:
    try:
        next(steps)
    except StopIteration as done:
        return done.value
    raise AssertionError("the frame is not complete")


def decode(pieces: Iterable[bytes], **options: Any) -> Result:
    """What a driver sees that sends what is outgoing after each read."""
    decoder = new(**options)
    items: list[Any] = []
    written = b""
    for piece in pieces:
        items += decoder.feed(piece)
        written += b"".join(decoder.outgoing)
        decoder.outgoing.clear()
    assert decoder.feed(b"") == decoder.eof() == decoder.outgoing == []
    sent = unmask(written)
    result = Result([item.data for item in items], [payload for opcode, payload in sent if opcode == PONG])
    if decoder.code is not None:
        assert decoder.error is None
        result.close, result.whole = (decoder.code, decoder.reason), not decoder.partial
        assert sent[-1] == (CLOSE, b"" if decoder.code == 1005 else decoder.code.to_bytes(2, "big"))
    else:
        assert decoder.partial
    if decoder.error is not None:
        opcode, payload = sent[-1]
        assert opcode == CLOSE
        result.failure = int.from_bytes(payload, "big")
        assert isinstance(decoder.error, EventTooLarge if result.failure == 1009 else ProtocolViolation)
    ended = decoder.code is not None or decoder.error is not None
    assert decoder.closing is ended
    assert [opcode for opcode, _ in sent].count(CLOSE) == ended
    return result


def by_websockets(body: bytes, *, event_bytes: int | None = None) -> Result:
    """`websockets` without I/O. It hands out frames, so messages are put together here."""
    protocol = ClientProtocol(parse_uri("ws://example.com/"), state=State.OPEN, max_size=event_bytes)
    protocol.receive_data(body)
    result = Result()
    message: list[bytes] = []
    text = False
    for frame in protocol.events_received():
        assert isinstance(frame, Frame)
        if frame.opcode is Opcode.PING:
            result.pings.append(bytes(frame.data))
        elif frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            if frame.opcode is not Opcode.CONT:
                text = frame.opcode is Opcode.TEXT
            message.append(bytes(frame.data))
            if frame.fin:
                joined = b"".join(message)
                message.clear()
                try:
                    result.messages.append(joined.decode() if text else joined)
                except UnicodeDecodeError:
                    result.failure = 1007
                    return result
    if protocol.close_rcvd is not None:
        result.close = (protocol.close_rcvd.code, protocol.close_rcvd.reason)
        # It calls a close inside a message a violation; we report the code, and that the message is incomplete.
        result.whole = protocol.parser_exc is None
    elif protocol.close_sent is not None:
        result.failure = protocol.close_sent.code
    return result


def by_wsproto(body: bytes) -> Result:
    protocol = FrameProtocol(client=True, extensions=[])
    protocol.receive_bytes(body)
    result = Result()
    message: list[Any] = []
    try:
        for frame in protocol.received_frames():
            if frame.opcode is WsprotoOpcode.PING:
                result.pings.append(bytes(frame.payload))  # type: ignore[arg-type]
            elif frame.opcode is WsprotoOpcode.CLOSE:
                code, reason = frame.payload
                result.close, result.whole = (int(code), str(reason)), not message
            elif frame.opcode is not WsprotoOpcode.PONG:
                message.append(frame.payload)
                if frame.message_finished:
                    result.messages.append(("" if frame.opcode is WsprotoOpcode.TEXT else b"").join(message))
                    message.clear()
    except ParseFailed as error:
        result.failure = int(error.code)
    return result


def same(ours: Result, exact: Result) -> bool:
    """Whether they differ in nothing but the pings that a later one made unnecessary."""
    wanted = iter(exact.pings)
    answered = all(ping in wanted for ping in ours.pings) and ours.pings[-1:] == exact.pings[-1:]
    return answered and replace(ours, pings=[]) == replace(exact, pings=[])


def frame(first: int, payload: bytes = b"", *, mask: bytes = b"") -> bytes:
    """A frame with any first byte, allowed or not."""
    return bytes((first,)) + encode(BINARY, payload, mask)[1:]


def text(payload: str) -> bytes:
    return encode(TEXT, payload.encode())


def close(code: int | None = None, reason: bytes = b"") -> bytes:
    return encode(CLOSE, b"" if code is None else code.to_bytes(2, "big") + reason)


def pieces_of(body: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    at = 0
    for size in sizes:
        if at >= len(body):
            return
        yield body[at : at + size]
        at += size
    yield body[at:]


def every_split(body: bytes) -> Iterator[list[bytes]]:
    """All ways to cut a body, in any number of pieces."""
    for chosen in range(2 ** max(len(body) - 1, 0)):
        places = [place + 1 for place in range(len(body) - 1) if chosen >> place & 1]
        yield [body[a:b] for a, b in zip([0, *places], [*places, len(body)], strict=True)]


# --- by example

# name: body, messages, code and reason of the close frame, code of our own failure
EXAMPLES: dict[str, tuple[bytes, list[str | bytes], tuple[int, str] | None, int | None]] = {
    "nothing": (b"", [], None, None),
    # RFC 6455 section 5.7
    "rfc: text": (bytes.fromhex("810548656c6c6f"), ["Hello"], None, None),
    "rfc: fragments": (bytes.fromhex("010348656c") + bytes.fromhex("80026c6f"), ["Hello"], None, None),
    "rfc: ping": (bytes.fromhex("890548656c6c6f"), [], None, None),
    "rfc: 256 bytes": (bytes.fromhex("827e0100") + bytes(256), [bytes(256)], None, None),
    "rfc: masked text": (bytes.fromhex("818537fa213d7f9f4d5158"), [], None, 1002),
    # messages
    "empty messages": (text("") + frame(0x82) + text(""), ["", b"", ""], None, None),
    "empty fragments": (frame(0x01) + frame(0x00) + frame(0x80) + text("a"), ["", "a"], None, None),
    "a character in two fragments": (frame(0x01, b"caf\xc3") + frame(0x80, b"\xa9"), ["café"], None, None),
    "binary in fragments": (frame(0x02, b"\xff") + frame(0x00, b"\xfe") + frame(0x80, b"\xfd"), [b"\xff\xfe\xfd"], None, None),
    "control frames between fragments": (
        frame(0x01, b"a") + frame(0x89, b"1") + frame(0x00, b"b") + frame(0x8A, b"2") + frame(0x89, b"3") + frame(0x80, b"c"),
        ["abc"],
        None,
        None,
    ),
    "text after binary in fragments": (frame(0x02, b"\xff") + frame(0x80) + text("é"), [b"\xff", "é"], None, None),
    "half a frame": (text("a") + text("b")[:-1], ["a"], None, None),
    "half a header": (text("a") + text("b" * 200)[:3], ["a"], None, None),
    "half a message": (text("a") + frame(0x01, b"b"), ["a"], None, None),
    "a byte-order mark is a character": (encode(TEXT, codecs.BOM_UTF8 + b"a"), ["\ufeffa"], None, None),
    "an unasked pong": (frame(0x8A, b"x") + text("a"), ["a"], None, None),
    # not UTF-8
    "invalid text": (text("a") + frame(0x81, b"\xff"), ["a"], None, 1007),
    "text ends inside a character": (frame(0x81, b"\xe2\x82"), [], None, 1007),
    "a surrogate": (frame(0x81, b"\xed\xa0\x80"), [], None, 1007),
    "invalid over fragments": (frame(0x01, b"\xe2\x82") + frame(0x80, b"a"), [], None, 1007),
    "fragments end inside a character": (frame(0x01, b"a") + frame(0x80, b"\xe2\x82"), [], None, 1007),
    "nothing after invalid text": (frame(0x81, b"\xff") + text("a"), [], None, 1007),
    # violations
    "masked": (text("a") + frame(0x81, b"b", mask=MASK), ["a"], None, 1002),
    "masked ping": (frame(0x89, b"", mask=MASK), [], None, 1002),
    "reserved bit 1": (frame(0xC1, b"a"), [], None, 1002),
    "reserved bit 2": (frame(0xA1, b"a"), [], None, 1002),
    "reserved bit 3": (frame(0x91, b"a"), [], None, 1002),
    "reserved bit in a ping": (frame(0xC9), [], None, 1002),
    **{f"opcode {code}": (text("a") + frame(0x80 | code), ["a"], None, 1002) for code in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "unknown opcode in fragments": (frame(0x03), [], None, 1002),
    "nothing to continue": (text("a") + frame(0x80, b"b"), ["a"], None, 1002),
    "nothing left to continue": (frame(0x01, b"a") + frame(0x80) + frame(0x80), ["a"], None, 1002),
    "text inside text": (frame(0x01, b"a") + text("b"), [], None, 1002),
    "binary inside text": (frame(0x01, b"a") + frame(0x02, b"b"), [], None, 1002),
    "fragmented ping": (frame(0x09, b"a"), [], None, 1002),
    "fragmented close": (frame(0x08), [], None, 1002),
    "long ping": (frame(0x89, bytes(126)), [], None, 1002),
    "very long pong": (frame(0x8A, bytes(65536)), [], None, 1002),
    "long close": (frame(0x88, b"\x03\xe8" + b"x" * 124), [], None, 1002),
    # closing
    "close": (text("a") + close(1000, b"bye"), ["a"], (1000, "bye"), None),
    "close without a code": (close(), [], (1005, ""), None),
    "close without a reason": (close(1001), [], (1001, ""), None),
    "close with the longest reason": (close(4999, "é".encode() * 61 + b"x"), [], (4999, "é" * 61 + "x"), None),
    "close with half a code": (frame(0x88, b"\x03"), [], None, 1002),
    "close with an invalid reason": (close(1000, b"\xff"), [], None, 1007),
    "data after close": (text("a") + close(1000) + text("b") + frame(0xFF) + frame(0x89), ["a"], (1000, ""), None),
    "two closes": (close(1001) + close(1000), [], (1001, ""), None),
    "close inside a message": (frame(0x01, b"a") + close(1000), [], (1000, ""), None),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_for_every_cut(name: str) -> None:
    body, messages, closing, failure = EXAMPLES[name]
    exact = decode(cut(body, 1))
    assert (exact.messages, exact.close, exact.failure) == (messages, closing, failure)
    assert exact.whole is (closing is not None and name != "close inside a message")
    for pieces in every_split(body) if len(body) <= 12 else every_cut(body) if len(body) < 1000 else [cut(body, 7)]:
        assert same(decode(pieces), exact), pieces


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_equals_websockets_and_wsproto(name: str) -> None:
    body = EXAMPLES[name][0]
    assert decode(cut(body, 1)) == by_websockets(body) == by_wsproto(body)


LENGTHS = [0, 1, 124, 125, 126, 127, 255, 256, 65534, 65535, 65536, 70000]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_every_form_of_a_length(opcode: int, length: int) -> None:
    one = encode(opcode, b"x" * length)
    body = one + encode(opcode, b"y") + one
    expected = by_websockets(body)
    assert [len(message) for message in expected.messages] == [length, 1, length]
    assert by_wsproto(body) == expected
    around = [*range(12), *range(max(len(one) - 2, 0), len(one) + 14), len(body) - 1]
    for place in around if length > 300 else range(len(body) + 1):
        assert decode([body[:place], body[place:]]) == expected, place
    assert decode(cut(body, 1)) == expected


def test_the_length_in_the_header_counts_and_not_the_end_of_the_chunk() -> None:
    lengths = [*range(4), *range(122, 133), 250, 65535]
    for announced in lengths:
        header = encode(TEXT, b"x" * announced)[: -announced or None]
        for length in lengths:
            body = header + b"x" * length
            expected = ["x" * announced] if announced <= length else []
            for size in len(body), 1000, 3:
                assert decode(cut(body, size)).messages[:1] == expected, (announced, length)


def test_a_length_in_more_bytes_than_it_needs_is_read() -> None:
    # Not allowed (section 5.2). `websockets` reads it, `wsproto` does not.
    body = bytes.fromhex("817e0001") + b"a" + bytes.fromhex("827f000000000000007e") + bytes(126)
    for pieces in every_cut(body):
        assert decode(pieces) == by_websockets(body) == Result(["a", bytes(126)])


@pytest.mark.parametrize("limit", [1, 5, 125, 126, 300, 65534, 65535, 65536])
def test_the_limit_is_that_of_a_message(limit: int) -> None:
    fits, exceeds, half = b"x" * limit, b"x" * (limit + 1), limit // 2
    for body in (
        encode(TEXT, fits) + encode(TEXT, exceeds),
        encode(BINARY, fits) + encode(BINARY, exceeds),
        encode(TEXT, fits[:half], final=False)
        + encode(CONTINUATION, fits[half:])
        + encode(TEXT, exceeds[:half], final=False)
        + encode(PING, b"")
        + encode(CONTINUATION, exceeds[half:], final=False),
    ):
        exact = by_websockets(body, event_bytes=limit)
        assert exact.failure == 1009 and [len(message) for message in exact.messages] == [limit]
        for pieces in [body], cut(body, 1), cut(body, 1000):
            assert decode(pieces, event_bytes=limit) == exact
        assert decode([body]).failure is None


def test_a_message_over_the_limit_is_refused_before_it_arrives() -> None:
    decoder = new(event_bytes=1000)
    assert decoder.feed(text("a") + bytes.fromhex("817f7fffffffffffffff")) == [StreamEvent("message", "a")]
    assert isinstance(decoder.error, EventTooLarge)
    assert decoder.error.limit == 1000
    assert str(decoder.error) == "message of at least 9223372036854775807 bytes, the limit is 1000"
    assert decoder.feed(b"x" * 5000) == []


def test_endless_fragments_are_bounded() -> None:
    decoder = new(event_bytes=1000)
    assert decoder.feed(frame(0x01)) == []
    for _ in range(10_000):
        assert decoder.feed(frame(0x00)) == []
    assert len(decoder._message) == 0
    fed = 0
    while decoder.error is None:
        assert decoder.feed(frame(0x00, b"x" * 10)) == []
        fed += 10
    assert fed == 1010 and isinstance(decoder.error, EventTooLarge)
    assert decoder._message == decoder._held == b""


def test_a_long_frame_is_put_together_once() -> None:
    looked: list[int] = []

    class Counting(WebSocketDecoder):
        def _read_frame(self, data: bytes, at: int, items: list[Any]) -> int:
            looked.append(len(data))
            return super()._read_frame(data, at, items)

    decoder = Counting(new_mask=lambda: MASK)
    pieces = cut(encode(BINARY, b"x" * 1_000_000), 100)
    for piece in pieces[:-1]:
        assert decoder.feed(piece) == []
    assert decoder.feed(pieces[-1]) == [Chunk(b"x" * 1_000_000, 0)]
    # Its header, and all of it.
    assert looked == [100, 1_000_010]


# --- by chance

# Longer ones are in `test_every_form_of_a_length`.
TEXTS = st.one_of(st.text(max_size=20), st.sampled_from(["", "x" * 125, "é" * 63, "x" * 126]))
PAYLOADS = st.one_of(st.binary(max_size=20), st.sampled_from([b"", bytes(125), bytes(126), bytes(300)]))
SMALL = st.binary(max_size=12) | st.just(bytes(125))
CONTROLS = st.lists(st.builds(encode, st.sampled_from([PING, PONG]), SMALL), max_size=2).map(b"".join)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A message in one frame or in many, with control frames between them."""
    opcode, payload = draw(st.one_of(TEXTS.map(lambda t: (TEXT, t.encode())), PAYLOADS.map(lambda p: (BINARY, p))))
    if draw(st.booleans()):
        return draw(CONTROLS) + encode(opcode, payload)
    places = sorted(draw(st.lists(st.integers(0, len(payload)), min_size=1, max_size=4)))
    parts = [payload[a:b] for a, b in zip([0, *places], [*places, len(payload)], strict=True)]
    body = b""
    for number, part in enumerate(parts):
        body += encode(CONTINUATION if number else opcode, part, final=number == len(parts) - 1) + draw(CONTROLS)
    return body


CODES = st.sampled_from([0, 999, *range(1000, 1014), 1015, 1016, 2999, 3000, 3003, 3999, 4000, 4999, 5000, 65535])
CLOSES = st.one_of(
    st.just(close()),
    st.builds(close, CODES, st.text(max_size=30).map(str.encode)),
    # One fault at a time: which of two is reported is anybody's choice.
    st.builds(close, st.sampled_from([1000, 4000]), st.binary(max_size=8)),
    st.binary(min_size=1, max_size=1).map(lambda byte: frame(0x88, byte)),
)
ANY_FRAME = st.builds(
    lambda first, payload, masked: frame(first, payload, mask=MASK if masked else b""),
    st.integers(0, 255),
    SMALL | st.just(bytes(126)),
    st.sampled_from([False, False, False, True]),
)
NOT_UTF8 = st.sampled_from([b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xf8", b"\xc0\x80"])
FAULTS = CLOSES | ANY_FRAME | NOT_UTF8.map(lambda p: frame(0x81, p)) | NOT_UTF8.map(lambda p: frame(0x01, p) + frame(0x80))
BODIES = st.builds(
    lambda before, fault, after: b"".join(before) + fault + b"".join(after),
    st.lists(messages(), max_size=5),
    st.just(b"") | FAULTS,
    st.lists(messages(), max_size=2),
)


@settings(max_examples=250, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=BODIES, seed=st.integers(0, 2**32), longest=st.sampled_from([1, 2, 5, 30, 300, 70_000]))
def test_any_frames_in_any_chunks_equal_websockets_and_wsproto(body: bytes, seed: int, longest: int) -> None:
    exact = by_websockets(body)
    chance = random.Random(seed)
    pieces = pieces_of(body, iter(lambda: chance.randint(1, longest), None))
    assert same(decode(pieces), exact)
    assert same(decode([body]), exact)
    theirs = by_wsproto(body)
    if theirs.failure == 1007 != exact.failure:
        # It does not wait for the end of a message whose first fragments are not UTF-8.
        assert exact.close is None or not exact.whole
    else:
        assert theirs == exact


@settings(max_examples=250, deadline=None, database=None)
@given(body=st.binary(max_size=60), seed=st.integers(0, 2**32))
def test_any_bytes_in_any_chunks_are_one_result(body: bytes, seed: int) -> None:
    chance = random.Random(seed)
    exact = decode(cut(body, 1))
    assert same(decode([body]), exact)
    assert same(decode(pieces_of(body, iter(lambda: chance.randint(1, 9), None))), exact)


# --- items


def test_the_items_are_events_and_chunks() -> None:
    decoder = new(start=100)
    body = text('{"a":1}') + encode(BINARY, b"abc") + frame(0x01, b"b") + frame(0x80, b"c") + frame(0x82) + encode(BINARY, b"d")
    items = decoder.feed(body)
    assert items == [
        StreamEvent("message", '{"a":1}'),
        Chunk(b"abc", 100),
        StreamEvent("message", "bc"),
        Chunk(b"", 103),
        Chunk(b"d", 103),
    ]
    # The two quick ways set each slot themselves.
    for item in [*items, *decoder.feed(text("alone")), *decoder.feed(text("alone" * 50))]:
        if isinstance(item, StreamEvent):
            made = StreamEvent("message", item.data)
            for cls in StreamEvent.__mro__[:-1]:
                for name in cls.__slots__:  # type: ignore[attr-defined]
                    assert getattr(item, name) == getattr(made, name), name
            assert (item.cursor, item.own_id, item.offset) == (None, None, 0)


# --- what is said


def test_a_ping_that_waits_for_its_pong_makes_way_for_the_next() -> None:
    decoder = new()
    decoder.feed(encode(PING, b"1") + encode(PING, b"2"))
    decoder.feed(encode(PING, b"3"))
    assert unmask(b"".join(decoder.outgoing)) == [(PONG, b"3")]
    assert decoder.say("between")
    decoder.feed(encode(PING, b"4") + encode(PING, b"5"))
    assert unmask(b"".join(decoder.outgoing)) == [(PONG, b"3"), (TEXT, b"between"), (PONG, b"5")]
    decoder.outgoing = []
    decoder.feed(encode(PING, b"6"))
    assert unmask(b"".join(decoder.outgoing)) == [(PONG, b"6")]


def test_a_flood_of_pings_fills_nothing() -> None:
    decoder = new()
    for _ in range(100):
        decoder.feed(encode(PING, bytes(125)) * 500)
    assert len(decoder.outgoing) == 1


def test_messages_are_masked_and_nothing_follows_a_close_frame() -> None:
    masks = iter([b"abcd", b"efgh", b"ijkl"])
    decoder = WebSocketDecoder(new_mask=lambda: next(masks))
    assert decoder.say("é") and decoder.say(b"\xff")
    assert not decoder.closing
    assert decoder.close(4000, "ü" * 100)
    assert decoder.closing
    assert not decoder.say("late") and not decoder.close()
    assert b"".join(decoder.outgoing)[2:6] == b"abcd"
    assert unmask(b"".join(decoder.outgoing)) == [
        (TEXT, "é".encode()),
        (BINARY, b"\xff"),
        (CLOSE, b"\x0f\xa0" + "ü".encode() * 61),
    ]


def test_after_our_close_frame_messages_are_read_until_the_server_has_closed() -> None:
    decoder = new()
    decoder.close()
    decoder.outgoing.clear()
    assert decoder.feed(text("a") + encode(PING, b"") + text("b") + close(1000, b"bye")) == [
        StreamEvent("message", "a"),
        StreamEvent("message", "b"),
    ]
    assert (decoder.code, decoder.reason, decoder.partial, decoder.outgoing) == (1000, "bye", False, [])


def test_the_end_of_the_connection_is_no_close_frame() -> None:
    decoder = new()
    assert decoder.partial
    decoder.feed(text("a") + text("b")[:1])
    assert decoder.eof() == []
    assert (decoder.partial, decoder.code, decoder.error, decoder._held) == (True, None, None, b"")


@pytest.mark.parametrize("opcode", [CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG])
@settings(max_examples=60, deadline=None, database=None)
@given(payload=SMALL | PAYLOADS, mask=st.binary(min_size=4, max_size=4), final=st.booleans())
def test_encoded_frames_are_read_by_websockets(opcode: int, payload: bytes, mask: bytes, final: bool) -> None:
    if opcode >= CLOSE:
        payload, final = payload[:125], True
    for used in (mask, b""):
        data = encode(opcode, payload, used, final=final)
        reader = StreamReader()
        reader.feed_data(data)
        read = next_of(Frame.parse(reader.read_exact, mask=bool(used)))
        assert (read.opcode, bytes(read.data), read.fin) == (opcode, payload, final)
        assert next_of(reader.read_exact(0)) == b"" and not reader.buffer
        assert (used in data) or not used


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((PING, bytes(126)), "at most 125 bytes, got 126"), ((TEXT, b"a", b"abc"), "a mask has 4 bytes, got 3")],
)
def test_a_frame_that_cannot_be_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(*arguments)


# --- close codes


def test_the_codes_that_a_server_may_send_are_those_of_websockets() -> None:
    allowed = set()
    for code in range(5100):
        ours = decode([close(code)])
        assert ours == by_websockets(close(code)), code
        if ours.close is not None:
            allowed.add(code)
    assert set(CLOSE_CODES) - allowed == {1005, 1006}
    assert {code for code in allowed if meaning_of(code) is CloseMeaning.PRIVATE} == set(range(3000, 5000)) - {3000, 3003}


@pytest.mark.parametrize(
    ("codes", "meaning"),
    [
        ([1000], CloseMeaning.END),
        ([1001, 1005, 1006, None, 1011, 1012, 1014], CloseMeaning.CUT),
        ([1013], CloseMeaning.BUSY),
        ([1008, 3000, 3003], CloseMeaning.REFUSED),
        ([1002, 1003, 1007, 1009, 1010], CloseMeaning.REJECTED),
        ([3001, 3500, 3999, 4000, 4401, 4999], CloseMeaning.PRIVATE),
    ],
)
def test_what_a_code_means(codes: list[int | None], meaning: CloseMeaning) -> None:
    assert [meaning_of(code) for code in codes] == [meaning] * len(codes)


@pytest.mark.parametrize(
    ("code", "reason", "said"),
    [
        (1011, "out of memory", "closed with 1011: out of memory"),
        (1011, "", "closed with 1011: internal error"),
        (4401, "", "closed with 4401"),
        (4401, "a\nb\x1b[1m", "closed with 4401: a\ufffdb\ufffd[1m"),
        (1005, "", "closed with 1005: no code"),
        (1006, "", "closed without a close frame"),
        (None, "", "closed without a close frame"),
    ],
)
def test_how_an_end_is_described(code: int | None, reason: str, said: str) -> None:
    assert closed_with(code, reason) == said


# --- handshake

KEY = key_from(b"the sample nonce")


def test_the_key_of_the_standard() -> None:
    assert KEY == "dGhlIHNhbXBsZSBub25jZQ=="
    assert accept_for(KEY) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    with pytest.raises(ValueError, match="16 bytes, got 4"):
        key_from(MASK)


@pytest.mark.parametrize("offered", [[], ["chat"], ["a", "chat"]])
def test_websockets_accepts_the_request_and_we_its_answer(offered: list[str]) -> None:
    server = ServerProtocol(subprotocols=["chat"] if offered else None)  # type: ignore[list-item]
    headers = {"Host": "example.com", **request_headers(KEY, subprotocols=offered)}
    response = server.accept(Request("/", Headers(headers)))
    assert response.status_code == 101, response.body
    assert server.subprotocol == ("chat" if offered else None)
    received = {name.lower(): value for name, value in response.headers.raw_items()}
    assert refusal(response.status_code, received, key=KEY, subprotocols=offered) == ""


ACCEPTED = {"upgrade": "websocket", "connection": "Upgrade", "sec-websocket-accept": accept_for(KEY)}


@pytest.mark.parametrize(
    ("status", "changes", "problem"),
    [
        (101, {}, ""),
        (101, {"upgrade": "WebSocket", "connection": "keep-alive, UPGRADE"}, ""),
        (101, {"sec-websocket-protocol": "b", "sec-websocket-extensions": ""}, ""),
        (200, {}, "did not upgrade: it answered 200"),
        (101, {"upgrade": None}, "not a WebSocket"),
        (101, {"upgrade": "h2c"}, "not a WebSocket"),
        (101, {"upgrade": "websockets"}, "not a WebSocket"),
        (101, {"connection": None}, "not a WebSocket"),
        (101, {"connection": "close"}, "not a WebSocket"),
        (101, {"sec-websocket-accept": None}, "does not belong to our key"),
        (101, {"sec-websocket-accept": accept_for("another")}, "does not belong to our key"),
        (101, {"sec-websocket-accept": accept_for(KEY).upper()}, "does not belong to our key"),
        (101, {"sec-websocket-extensions": "permessage-deflate"}, "extension that was not offered: 'permessage-deflate'"),
        (101, {"sec-websocket-protocol": "c"}, "subprotocol that was not offered: 'c'"),
        (101, {"sec-websocket-protocol": "a, b"}, "subprotocol that was not offered: 'a, b'"),
    ],
)
def test_why_an_answer_is_refused(status: int, changes: dict[str, str | None], problem: str) -> None:
    headers = {name: value for name, value in {**ACCEPTED, **changes}.items() if value is not None}
    found = refusal(status, headers, key=KEY, subprotocols=["a", "b"])
    assert found == "" if not problem else problem in found
