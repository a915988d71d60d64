"""A whole document in place of a stream becomes one event, at its end."""

from __future__ import annotations

import pytest

from resumable_stream._errors import EventTooLarge
from resumable_stream.framing import DocumentDecoder

BODY = '{"answer": "naïve 💡"}'.encode()


@pytest.mark.parametrize("size", range(1, len(BODY) + 1))
def test_a_document_is_one_event_at_its_end(size: int) -> None:
    decoder = DocumentDecoder(event_bytes=1_000)
    for start in range(0, len(BODY), size):
        assert decoder.feed(BODY[start : start + size]) == []
    events = decoder.eof()
    assert [event.data for event in events] == [BODY.decode()]
    assert decoder.eof() == []


@pytest.mark.parametrize("body", [b"", b" \r\n"])
def test_nothing_is_no_event(body: bytes) -> None:
    decoder = DocumentDecoder(event_bytes=1_000)
    decoder.feed(body)
    assert decoder.eof() == []


def test_a_document_over_the_limit_is_an_error_and_is_not_kept() -> None:
    decoder = DocumentDecoder(event_bytes=10)
    for _ in range(100):
        decoder.feed(b"12345")
    assert isinstance(decoder.error, EventTooLarge)
    assert decoder.eof() == []
