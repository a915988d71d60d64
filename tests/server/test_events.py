"""What an application yields, and the bytes that it becomes: the short ways give what the long way gives."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resumable_stream.framing import SSEDecoder
from resumable_stream.server.events import encode, encode_text

TEXTS = st.text(st.characters(exclude_categories=("Cs",))) | st.sampled_from(
    ["", "\n", "a\r\nb", '"\\', "\u2028", "\ufeff", "\0", "\x85", "tab\t"]
)


@given(TEXTS)
@pytest.mark.parametrize("framing", ["sse", "ndjson"])
def test_a_piece_of_text_is_written_like_its_json(framing: Any, text: str) -> None:
    assert encode_text(framing, text) == encode(framing, {"text": text})


@given(TEXTS)
def test_a_piece_of_text_arrives_as_it_was_sent(text: str) -> None:
    (block,) = encode_text("sse", text)
    (event,) = SSEDecoder().feed(block)
    assert json.loads(event.data) == {"text": text}


@given(TEXTS)
def test_text_arrives_with_its_line_ends_as_line_feeds(text: str) -> None:
    (block,) = encode("sse", text)
    found = SSEDecoder().feed(block)
    assert [event.data for event in found] == [text.replace("\r\n", "\n").replace("\r", "\n")]


@pytest.mark.parametrize("framing", ["sse", "ndjson"])
def test_half_of_a_character_is_escaped_since_utf_8_cannot_carry_it(framing: Any) -> None:
    """A model may cut a character in two; joined, the halves are the character again."""
    for encoded in (encode_text, lambda framing, text: encode(framing, {"text": text})):
        (event,) = encoded(framing, "\ud83d")
        assert event.isascii() and json.loads(event.removeprefix(b"data: ")) == {"text": "\ud83d"}


def test_raw_bytes_take_no_pieces_of_text() -> None:
    with pytest.raises(TypeError, match="raw bytes"):
        encode_text("raw", "text")


def test_what_is_not_text_is_written_as_json_writes_it() -> None:
    assert encode_text("sse", 5) == [b'data: {"text":5}\n\n']  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "a\nb", "a\rb", "a\0b"])
def test_a_name_that_would_break_the_event_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="the name of an event"):
        encode("sse", "text", event=name)
