"""The stored form: what is written is read again, and what is damaged is named."""

from __future__ import annotations

import json
import random
import zlib
from typing import Any

import pytest

from resumable_stream import LogUnavailable, Outcome
from resumable_stream.server.log import (
    Ending,
    Head,
    Span,
    compressed,
    compressed_lengths,
    decode_lengths,
    encode_lengths,
    ending_from_json,
    ending_to_json,
    head_from_json,
    head_to_json,
    stored_span,
)

HEAD = Head(
    content_type="text/event-stream; charset=utf-8",
    framing="sse",
    status=201,
    headers=(("x-request-id", "req_1"), ("x-é".replace("é", "e"), "wörld")),
    owner="ö",
    fingerprint="00ff",
    session="chat 1",
    retention=60.5,
)


@pytest.mark.parametrize(
    ("lengths", "text"),
    [
        ((1,), "1"),
        ((24, 24), "2*24"),
        ((24, 24, 24, 7), "3*24,7"),
        ((1, 2, 1, 2), "1,2,1,2"),
        ((5, 7, 7, 7, 5), "5,3*7,5"),
    ],
)
def test_lengths_are_written_as_runs(lengths: tuple[int, ...], text: str) -> None:
    assert encode_lengths(lengths) == text
    assert decode_lengths(text) == lengths == decode_lengths(text, size=sum(lengths))


def test_any_lengths_come_back() -> None:
    chance = random.Random(7)
    for _ in range(300):
        lengths = tuple(chance.choice((1, 2, 24, 1 << 20)) for _ in range(chance.randrange(1, 60)))
        assert decode_lengths(encode_lengths(lengths), size=sum(lengths)) == lengths


def test_lengths_without_runs_are_read_too() -> None:
    assert decode_lengths("24,24,7", size=55) == (24, 24, 7)


@pytest.mark.parametrize("text", ["", ",", "1,", "0", "01", "2*", "*2", "0*2", "2*0", "-1", "1.5", "a", "1 ", "2*3*4", "٣"])
def test_what_are_no_lengths_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        decode_lengths(text)


@pytest.mark.parametrize(("text", "size"), [("24", 23), ("24", 25), ("999999999999*1", 100), ("3*24,7", 72)])
def test_lengths_that_do_not_add_up_are_refused_before_they_take_memory(text: str, size: int) -> None:
    with pytest.raises(ValueError):
        decode_lengths(text, size=size)


def test_a_run_without_a_size_is_bounded_too() -> None:
    with pytest.raises(ValueError):
        decode_lengths("999999999999*1")


def test_a_span_comes_back_plain_and_compressed() -> None:
    data = b'data: {"text":"a"}\n\n' * 200
    span = Span(n=300, b=9000, lengths=(20,) * 200, data=data)
    assert stored_span("s", n="300", b=b"9000".decode(), lengths="200*20", data=data) == span
    packed = compressed(span)
    assert len(packed) < len(data) / 20
    assert stored_span("s", n=300, b=9000, lengths=encode_lengths(span.lengths), data=packed, is_compressed=True) == span
    assert stored_span("s", n=300, b=9000, lengths=compressed_lengths(span), data=packed, is_compressed=True) == span


def test_the_lengths_of_a_chat_take_a_third_compressed() -> None:
    chance = random.Random(7)
    lengths = tuple(chance.randrange(310, 335) for _ in range(2000))
    span = Span(n=2000, b=sum(lengths), lengths=lengths, data=b"x" * sum(lengths))
    assert len(compressed_lengths(span)) < len(encode_lengths(lengths)) / 2.5


def test_lengths_that_would_unpack_to_more_than_any_span_has_are_refused() -> None:
    with pytest.raises(LogUnavailable, match="too large"):
        stored_span("s", n=1, b=1, lengths=zlib.compress(b"1" * (17 << 20)), data=b"x")


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": "one"},
        {"n": 1},
        {"n": None},
        {"n": True},
        {"n": "1" * 30},
        {"b": "-5"},
        {"b": 4},
        {"lengths": "2,4"},
        {"lengths": "2*2"},
        {"lengths": ""},
        {"lengths": None},
        {"lengths": b""},
        {"lengths": b"2,3"},
        {"lengths": zlib.compress(b"2,3")[:-3]},
        {"lengths": zlib.compress(b"2,4")},
        {"lengths": zlib.compress(b"\xff")},
        {"data": b"aabb"},
        {"data": "aabbb"},
        {"data": None},
        {"is_compressed": True},
        {"is_compressed": True, "data": zlib.compress(b"aabbb")[:-3]},
        {"is_compressed": True, "data": zlib.compress(b"aabbbc")},
    ],
)
def test_a_damaged_span_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(LogUnavailable, match="'msg_7'.*damaged.*event") as caught:
        stored_span("msg_7", **{"n": 2, "b": 5, "lengths": "2,3", "data": b"aabbb", **wrong})
    assert caught.value.stream_id == "msg_7"


def test_a_head_comes_back() -> None:
    assert head_from_json("s", head_to_json(HEAD)) == HEAD
    assert head_from_json("s", head_to_json(HEAD).encode()) == HEAD
    assert json.loads(head_to_json(HEAD))["v"] == 1


@pytest.mark.parametrize("outcome", list(Outcome))
def test_an_ending_comes_back(outcome: Outcome) -> None:
    for ending in (Ending(outcome=outcome), Ending(outcome=outcome, reason="shutdown", error="dé\nployed")):
        assert ending_from_json("s", ending_to_json(ending)) == ending
        assert json.loads(ending_to_json(ending))["v"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no",
        "[]",
        "{}",
        "[" * 100_000,
        b"\xff\xfe",
        None,
        '{"v":1}',
        '{"v":true,"outcome":"failed"}',
        '{"v":"1","outcome":"failed"}',
        '{"v":0,"outcome":"failed"}',
        '{"v":1,"outcome":"exploded","reason":null,"error":null}',
        '{"v":1,"outcome":"failed","reason":7,"error":null}',
        '{"v":1,"outcome":"failed","reason":null,"error":null,"more":1}',
    ],
)
def test_a_damaged_ending_is_named(text: Any) -> None:
    with pytest.raises(LogUnavailable, match="'msg_7'.*ending") as caught:
        ending_from_json("msg_7", text)
    assert caught.value.stream_id == "msg_7"


@pytest.mark.parametrize(
    "change",
    [{"framing": "xml"}, {"headers": None}, {"headers": [["a"]]}, {"headers": [[1, 2]]}, {"status": "200"}, {"owner": 7}],
)
def test_a_damaged_head_is_named(change: dict[str, Any]) -> None:
    text = json.dumps({**json.loads(head_to_json(HEAD)), **change})
    with pytest.raises(LogUnavailable, match="'msg_7'.*head"):
        head_from_json("msg_7", text)


def test_a_later_version_is_not_taken_for_damage() -> None:
    for read, text in ((head_from_json, head_to_json(HEAD)), (ending_from_json, ending_to_json(Ending(outcome=Outcome.ENDED)))):
        with pytest.raises(LogUnavailable, match="later version.*upgrade"):
            read("s", text.replace('"v":1', '"v":2'))
