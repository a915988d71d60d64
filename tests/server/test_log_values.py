"""The values of a log: what they refuse, and how they are written."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from resumable_stream import Outcome
from resumable_stream.server.log import (
    MAX_PLACE,
    Append,
    Control,
    Cursor,
    Ending,
    Head,
    Message,
    Page,
    Span,
    SpanRefused,
    Writer,
    check_stream_id,
    epoch_of,
)

HEAD = Head(content_type="text/event-stream", framing="sse")
SPAN = Span(n=2, b=5, lengths=(2, 3), data=b"aabbb")


@pytest.mark.parametrize("text", ["k7q2.0", "k7q2.1247", "abcdefgh.1", f"k7q2.{MAX_PLACE}"])
def test_a_cursor_is_read_as_it_is_written(text: str) -> None:
    assert str(Cursor.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "k7q2",
        "k7q2.",
        ".1",
        "k7q.1",  # three letters
        "abcdefghi.1",
        "K7Q2.1",
        "k1q2.1",  # 1 is not in the alphabet
        "k7q2.01",
        "k7q2.-1",
        "k7q2.+1",
        "k7q2. 1",
        "k7q2.1 ",
        "k7q2.1\n",
        "k7q2.1.2",
        "k7q2.٣",
        f"k7q2.{MAX_PLACE + 1}",
        "k7q2." + "9" * 5000,
        "k7q2.1e3",
        None,
        7,
    ],
)
def test_what_is_no_cursor_is_refused(text: Any) -> None:
    with pytest.raises(ValueError):
        Cursor.parse(text)


def test_a_cursor_says_what_was_seen() -> None:
    with pytest.raises(ValueError, match=r"as in 'k7q2\.1247'; got 'tail'"):
        Cursor.parse("tail")


def test_an_epoch_is_made_of_random_bytes() -> None:
    for size in range(4, 9):
        epoch = epoch_of(bytes(range(size)))
        assert len(epoch) == size
        assert Cursor.parse(f"{epoch}.3") == Cursor(epoch, 3)
    assert epoch_of(bytes([32, 33, 34, 35])) == epoch_of(bytes([0, 1, 2, 3]))
    with pytest.raises(ValueError):
        epoch_of(b"abc")


def test_a_span_knows_where_it_begins() -> None:
    assert (SPAN.first, SPAN.start) == (1, 0)
    later = Span(n=12, b=105, lengths=(2, 3), data=b"aabbb")
    assert (later.first, later.start) == (11, 100)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lengths": ()},
        {"lengths": (), "data": b""},
        {"lengths": (5, 0)},
        {"lengths": (6, -1)},
        {"lengths": (2, 2)},
        {"lengths": (2, 4)},
        {"lengths": (2, 3.0)},
        {"lengths": (4, True)},
        {"lengths": [2, 3]},
        {"data": "aabbb"},
        {"data": bytearray(b"aabbb")},
        {"n": 1},
        {"n": 0},
        {"n": 2.0},
        {"n": True, "lengths": (5,)},
        {"n": MAX_PLACE + 1},
        {"b": 4},
        {"b": -5},
        {"b": "5"},
        {"b": MAX_PLACE + 1},
    ],
)
def test_a_span_that_does_not_fit_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Span(**{"n": 2, "b": 5, "lengths": (2, 3), "data": b"aabbb", **wrong})


def test_a_span_does_not_show_its_data() -> None:
    assert "aabbb" not in repr(SPAN)


@pytest.mark.parametrize(
    "wrong",
    [
        {"outcome": "completed"},
        {"outcome": None},
        {"reason": "\ud800"},
        {"reason": "x" * 257},
        {"error": "\udfff"},
        {"error": "x" * 8193},
        {"error": 7},
    ],
)
def test_an_ending_is_an_outcome_and_texts(wrong: dict[str, Any]) -> None:
    Ending(outcome=Outcome.FAILED, reason="x" * 256, error="x" * 8192)
    with pytest.raises((ValueError, TypeError)):
        Ending(**{"outcome": Outcome.FAILED, **wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        {"content_type": ""},
        {"content_type": "a\r\nb: c"},
        {"content_type": None},
        {"framing": "xml"},
        {"status": 199},
        {"status": 600},
        {"status": "200"},
        {"headers": [("a", "b")]},
        {"headers": (("a", "b", "c"),)},
        {"headers": (("a b", "c"),)},
        {"headers": (("a", "b\nc"),)},
        {"headers": (("a", 7),)},
        {"headers": (("a", "b"),) * 101},
        {"owner": "\ud800"},
        {"owner": "x" * 1025},
        {"fingerprint": None},
        {"session": "x" * 1025},
        {"retention": -1.0},
        {"retention": float("inf")},
        {"retention": True},
    ],
)
def test_a_head_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    Head(content_type="a/b", framing="raw", headers=(("a", "b\tc"),) * 100, owner="x" * 1024, session="x" * 1024)
    with pytest.raises((ValueError, TypeError)):
        Head(**{"content_type": "text/event-stream", "framing": "sse", **wrong})


def test_the_value_of_a_wrong_header_is_not_in_the_message() -> None:
    with pytest.raises(ValueError) as caught:
        Head(content_type="a/b", framing="raw", headers=(("x-key", "sk-secret\n"),))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": ""},
        {"id": "x" * 257},
        {"id": "\ud800"},
        {"data": "\ud800"},
        {"data": b"bytes"},
        {"data": "é" * ((1 << 19) + 1)},
        {"kind": ""},
        {"kind": "\udc80"},
        {"kind": "x" * 65},
        {"k": -1},
    ],
)
def test_a_message_is_text_of_a_bounded_size(wrong: dict[str, Any]) -> None:
    Message(id="x" * 256, data="é" * (1 << 19), kind="x" * 64)
    with pytest.raises((ValueError, TypeError)):
        Message(**{"id": "m1", **wrong})


def test_a_note_is_text_of_a_bounded_size() -> None:
    writer = Writer("s", "k7q2", 1)
    Append(writer, SPAN, "x" * (256 << 10))
    for note in ("\ud800", "x" * ((256 << 10) + 1), b"bytes"):
        with pytest.raises((ValueError, TypeError)):
            Append(writer, SPAN, note)  # type: ignore[arg-type]


def test_a_note_without_events_says_where_it_belongs() -> None:
    writer = Writer("s", "k7q2", 1)
    alone = Append(writer, None, "note", n=4)
    assert (alone.first, alone.last) == (5, 4)
    assert (Append(writer, SPAN).first, Append(writer, SPAN).last) == (1, 2)
    with pytest.raises(ValueError):
        Append(writer, None, "note")
    with pytest.raises(ValueError):
        Append(writer, SPAN, "note", n=7)
    with pytest.raises(ValueError):
        Append(writer, SPAN, taken=-1)


def test_a_writer_is_compared_by_its_right() -> None:
    writer = Writer("s", "k7q2", 2, lease=5.0)
    assert writer.token == "k7q2.2"
    assert writer == Writer("s", "k7q2", 2, lease=0.0)
    assert writer != Writer("s", "k7q2", 3)
    for wrong in (("s/1", "k7q2", 1), ("s", "k7q", 1), ("s", "k7q2", 0)):
        with pytest.raises(ValueError):
            Writer(*wrong)
    with pytest.raises(ValueError):
        Writer("s", "k7q2", 1, lease=-1.0)


@pytest.mark.parametrize("good", ["a", "A-z_0.9~", "x" * 256])
def test_a_stream_id_has_harmless_characters(good: str) -> None:
    assert check_stream_id(good) == good


@pytest.mark.parametrize("wrong", ["", "x" * 257, "a/b", "a b", "a\n", "é", "{a}", "a:b", "\0", None, b"a"])
def test_what_cannot_be_a_stream_id_is_refused(wrong: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        check_stream_id(wrong)


def test_a_page_says_how_long_the_lease_is() -> None:
    assert Page(head=HEAD, epoch="k7q2", oldest=1, n=0, b=0, running_until=112.5, now=100.0).lease_left == 12.5
    assert Page(head=HEAD, epoch="k7q2", oldest=1, n=0, b=0, running_until=0.0, now=100.0).lease_left == 0.0
    assert Page(head=HEAD, epoch="k7q2", oldest=1, n=0, b=0).lease_left == 0.0


def test_a_refused_span_says_whose_it_was_in_another_process_too() -> None:
    error = pickle.loads(pickle.dumps(SpanRefused("no", stream_id="s")))
    assert isinstance(error, ValueError)
    assert (str(error), error.stream_id) == ("no", "s")


def test_values_of_the_inbox_compare() -> None:
    assert Control(3) == Control(3, None) != Control(3, "")
