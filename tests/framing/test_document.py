"""A whole document in place of a stream is read at its end."""

from __future__ import annotations

import pytest

from resumable_stream._contract import Document, Documents, StreamState
from resumable_stream._errors import EventTooLarge
from resumable_stream._events import StreamEvent
from resumable_stream.framing import DocumentDecoder

BODY = '{"answer": "naïve 💡"}'.encode()
STATE = StreamState("GET", "https://api.example.com")


def words(body: bytes) -> list[StreamEvent] | None:
    return [StreamEvent(data=word) for word in body.decode().split()] if body.endswith(b"}") else None


@pytest.mark.parametrize("size", range(1, len(BODY) + 1))
def test_a_document_is_read_at_its_end(size: int) -> None:
    decoder = DocumentDecoder(event_bytes=1_000, read=words)
    for start in range(0, len(BODY), size):
        assert decoder.feed(BODY[start : start + size]) == []
    assert [event.data for event in decoder.eof()] == BODY.decode().split()
    assert not decoder.partial


def test_one_that_is_not_whole_is_partial() -> None:
    decoder = DocumentDecoder(event_bytes=1_000, read=words)
    decoder.feed(BODY[:-1])
    assert not decoder.eof()
    assert decoder.partial


def test_a_document_over_the_limit_is_an_error_and_is_not_kept() -> None:
    decoder = DocumentDecoder(event_bytes=10, read=words)
    for _ in range(100):
        decoder.feed(b"12345")
    assert isinstance(decoder.error, EventTooLarge)
    assert not decoder.eof()


@pytest.mark.parametrize(("body", "texts"), [(BODY, [BODY.decode()]), (b"", []), (b" \r\n", [])])
def test_by_default_its_text_is_one_event(body: bytes, texts: list[str]) -> None:
    found = Documents().on_document(body, STATE)
    assert isinstance(found, Document)
    assert ([event.data for event in found.events], found.cursor) == (texts, None)
