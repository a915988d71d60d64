"""Byte streams with positions, and the text in them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resumable_stream._events import Chunk
from resumable_stream.framing import RawDecoder, TextView

from ..cutting import cut


def test_positions_run_on() -> None:
    decoder = RawDecoder()
    chunks = [chunk for data in (b"abc", b"d", b"", b"ef") for chunk in decoder.feed(data)]
    assert chunks == [Chunk(b"abc", 0), Chunk(b"d", 3), Chunk(b"ef", 4)]
    assert [chunk.cursor for chunk in chunks] == ["3", "4", "6"]
    assert decoder.eof() == []
    assert decoder.error is None
    assert not decoder.partial


def test_positions_start_where_the_body_was_resumed() -> None:
    assert RawDecoder(start=100).feed(b"abc") == [Chunk(b"abc", 100)]


def test_chunks_are_handed_on_uncopied() -> None:
    data = b"x" * 1000
    decoder = RawDecoder(skip=3)
    assert decoder.feed(b"abc") == []
    (chunk,) = decoder.feed(data)
    assert chunk.data is data


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100])
def test_body_that_began_again_is_skipped_up_to_what_we_have(size: int) -> None:
    body = b"0123456789"
    decoder = RawDecoder(start=4, skip=4)
    chunks = [chunk for start in range(0, 10, size) for chunk in decoder.feed(body[start : start + size])]
    assert b"".join(chunk.data for chunk in chunks) == b"456789"
    assert chunks[0].sequence == 4
    assert all(body[chunk.sequence :].startswith(chunk.data) for chunk in chunks)


def test_body_shorter_than_what_we_have_delivers_nothing() -> None:
    decoder = RawDecoder(start=10, skip=10)
    assert decoder.feed(b"01234") == []
    assert decoder.eof() == []


def test_text_never_splits_a_character() -> None:
    for size in range(1, 12):
        body = "aé日😀b".encode()
        view = TextView()
        pieces = [view.decode(piece) for piece in cut(body, size)]
        assert "\ufffd" not in "".join(pieces)
        assert "".join(pieces) == "aé日😀b"
        assert view.flush() == ""


def test_text_cut_in_a_character_says_so_and_may_begin_anew() -> None:
    view = TextView()
    assert view.decode(b"a\xe6\x97") == "a"
    assert view.flush() == "\ufffd"
    assert view.flush() == ""
    assert view.decode(b"\xa5b") == "\ufffdb"


@settings(max_examples=50, deadline=None, database=None)
@given(
    pieces=st.lists(st.lists(st.sampled_from([b"a", b"\xc3", b"\xa9", b"\xe2\x82", b"\xac", b"\xf0\x9f", b"\xff"])).map(b"".join))
)
def test_text_in_pieces_equals_the_text_as_a_whole(pieces: list[bytes]) -> None:
    view = TextView()
    text = "".join([*map(view.decode, pieces), view.flush()])
    assert text == b"".join(pieces).decode("utf-8", "replace")
