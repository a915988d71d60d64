"""`ByteRange`: RFC 9110 sections 13 and 14."""

from __future__ import annotations

from typing import Any

import pytest

from resumable_stream._contract import Ask, Consume, Finished, Head, Lost, Reject, Resume, StreamState
from resumable_stream._errors import CursorExpired, NotResumable, ResponseRejected, StreamInterrupted
from resumable_stream._events import Outcome
from resumable_stream.protocols import ByteRange

from ..core.simulation import Reply, play

URL = "https://api.example.com/log"
RANGE = ByteRange()


def reply(*steps: Any, status: int = 200, **headers: str) -> Reply:
    return Reply(
        steps, status=status, headers={name.replace("_", "-"): value for name, value in headers.items()}, type="application/x-log"
    )


FIRST = reply(b"012345", "rst", etag='"v1"', content_length="10", accept_ranges="bytes")


def known(held: int = 6, *, etag: str | None = '"v1"', resuming: bool = True, asking: bool = False, **extra: str) -> StreamState:
    state = StreamState("GET", URL)
    state.cursor, state.offset = str(held), 1
    state.resuming, state.asking = resuming, asking
    if etag:
        state.extra["etag"] = etag
    state.extra.update(extra)
    return state


# --- the answers to a range -----------------------------------------------------------------------------------------


def test_a_range_is_asked_for_with_the_strong_validator() -> None:
    result = play(FIRST, reply(b"6789", status=206, content_range="bytes 6-9/10"), protocol=RANGE)
    assert b"".join(result.data) == b"0123456789"
    assert result.outcome is Outcome.COMPLETED
    first, second = result.stream.sent
    assert first.headers["accept-encoding"] == "identity" and "range" not in first.headers
    assert (second.headers["range"], second.headers["if-range"], second.headers["accept-encoding"]) == (
        "bytes=6-",
        '"v1"',
        "identity",
    )


def test_a_new_document_is_no_continuation() -> None:
    result = play(FIRST, reply(b"ABCDEFGHIJ", etag='"v2"', content_length="10"), protocol=RANGE)
    assert isinstance(result.error, CursorExpired | NotResumable)
    assert b"".join(result.data) == b"012345"


def test_a_range_behind_the_end_proves_that_it_was_all() -> None:
    result = play(FIRST, reply(status=416, content_range="bytes */6"), protocol=RANGE)
    assert (b"".join(result.data), result.outcome) == (b"012345", Outcome.COMPLETED)


@pytest.mark.parametrize("total", ["bytes */4", "bytes */9", "bytes */*", "nonsense", ""])
def test_a_range_that_cannot_be_had_is_a_loss(total: str) -> None:
    result = play(FIRST, reply(status=416, **({"content_range": total} if total else {})), protocol=RANGE)
    assert isinstance(result.error, CursorExpired)


# --- the rest of the table ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers", "verdict"),
    [
        (206, {"content-range": "bytes 6-9/10"}, Consume()),
        (206, {"content-range": "bytes 6-9/*"}, Consume()),
        (206, {"content-range": "BYTES 6-9/10 "}, Consume()),
        (206, {"content-range": "bytes 4-9/10"}, Consume(skip=2)),
        (206, {"content-range": "bytes 0-9/10"}, Consume(skip=6)),
        (206, {"content-range": "bytes 7-9/10"}, Reject),
        (206, {"content-range": "items 6-9/10"}, Reject),
        (206, {"content-range": "bytes */10"}, Reject),
        (206, {}, Reject),
        (206, {"content-range": "bytes 6-9/10", "etag": '"v1"'}, Consume()),
        (206, {"content-range": "bytes 6-9/10", "etag": '"v2"'}, Lost),
        (200, {"etag": '"v1"'}, Consume(skip=6)),
        (200, {"etag": 'W/"v1"'}, Lost),
        (200, {"etag": '"v2"'}, Lost),
        (200, {}, Lost),
        (416, {"content-range": "bytes */6"}, Finished(Outcome.COMPLETED)),
        (416, {"content-range": "bytes */5"}, Lost),
        (416, {}, Lost),
        (404, {}, None),
        (500, {}, None),
    ],
)
def test_what_an_answer_to_a_range_means(status: int, headers: dict[str, str], verdict: Any) -> None:
    found = RANGE.on_status(status, headers, b"", known())
    assert isinstance(found, verdict) if isinstance(verdict, type) else found == verdict


def test_a_weak_validator_proves_nothing() -> None:
    request = RANGE.resume_request(known(etag='W/"v1"'))
    assert request is not None and "If-Range" not in request.headers and request.headers["Range"] == "bytes=6-"
    assert isinstance(RANGE.on_status(200, {"etag": 'W/"v1"'}, b"", known(etag='W/"v1"')), Lost)


def test_without_a_validator_a_206_is_believed_and_a_200_is_not() -> None:
    assert RANGE.on_status(206, {"content-range": "bytes 6-9/10"}, b"", known(etag=None)) == Consume()
    assert isinstance(RANGE.on_status(200, {}, b"", known(etag=None)), Lost)


def test_the_date_is_a_weak_proof_but_a_difference_is_one() -> None:
    before = known(etag=None, modified="Fri, 20 Nov 2026 00:00:00 GMT")
    headers = {"content-range": "bytes 6-9/10", "last-modified": "Fri, 20 Nov 2026 00:00:01 GMT"}
    assert isinstance(RANGE.on_status(206, headers, b"", before), Lost)
    assert RANGE.on_status(206, {**headers, "last-modified": before.extra["modified"]}, b"", before) == Consume()


def test_a_question_answered_with_the_whole_body_is_an_end() -> None:
    assert RANGE.on_status(200, {}, b"", known(etag=None, asking=True)) == Finished(Outcome.ENDED)


def test_nothing_delivered_is_no_range() -> None:
    request = RANGE.resume_request(known(0))
    assert request is not None and "Range" not in request.headers and "If-Range" not in request.headers
    assert RANGE.on_status(200, {}, b"", known(0)) is None


def test_only_a_get_resumes() -> None:
    state = known()
    state.method = "POST"
    assert RANGE.resume_request(state) is None
    result = play(FIRST, protocol=RANGE, method="POST")
    assert isinstance(result.error, StreamInterrupted)


def test_a_coded_body_cannot_be_resumed() -> None:
    """Its offsets are those of the coded representation, which we never see."""
    result = play(reply(b"012", "rst", content_encoding="gzip", etag='"v1"'), protocol=RANGE)
    assert isinstance(result.error, StreamInterrupted)


# --- the end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "head", "verdict"),
    [
        ({"length": "6"}, {}, Finished(Outcome.COMPLETED)),
        ({"length": "10"}, {}, Resume()),
        ({}, {"accept-ranges": "bytes"}, Ask()),
        ({}, {"accept-ranges": "none"}, Finished(Outcome.ENDED)),
        ({}, {}, Finished(Outcome.ENDED)),
        ({"coded": "1"}, {"accept-ranges": "bytes"}, Finished(Outcome.ENDED)),
    ],
)
def test_what_a_clean_close_means(extra: dict[str, str], head: dict[str, str], verdict: Any) -> None:
    state = known(**extra)
    state.head = Head(200, head, URL)
    assert RANGE.on_clean_close(state) == verdict


def test_the_length_of_a_chunked_body_is_not_believed() -> None:
    state = StreamState("GET", URL)
    RANGE.identify(state, Head(200, {"content-length": "5", "transfer-encoding": "chunked"}, URL))
    assert "length" not in state.texts()


@pytest.mark.parametrize("length", ["abc", "-1", "", "²", "1e3"])
def test_a_length_that_is_none_is_ignored(length: str) -> None:
    assert play(reply(b"0123", content_length=length), protocol=RANGE).outcome is Outcome.ENDED


def test_a_short_body_is_a_cut_even_if_it_closes_cleanly() -> None:
    result = play(
        reply(b"012345", content_length="10", etag='"v1"'),
        reply(b"6789", status=206, content_range="bytes 6-9/10"),
        protocol=RANGE,
    )
    assert (b"".join(result.data), result.outcome) == (b"0123456789", Outcome.COMPLETED)


def test_the_total_of_a_range_is_learned() -> None:
    result = play(
        reply(b"012345", "rst", etag='"v1"', accept_ranges="bytes"),
        reply(b"67", status=206, content_range="bytes 6-9/10"),
        reply(b"89", status=206, content_range="bytes 8-9/10"),
        protocol=RANGE,
    )
    assert (b"".join(result.data), result.outcome) == (b"0123456789", Outcome.COMPLETED)


def test_a_body_that_grows_is_read_on() -> None:
    """A log: the total is not known, and each range brings what was written since."""
    result = play(
        reply(b"012345", accept_ranges="bytes"),
        reply(b"67", status=206, content_range="bytes 6-7/*", accept_ranges="bytes"),
        reply(status=416, content_range="bytes */8"),
        protocol=RANGE,
    )
    assert (b"".join(result.data), result.outcome) == (b"01234567", Outcome.COMPLETED)


def test_a_validator_belongs_to_the_answer_that_brought_the_bytes() -> None:
    """The first answer brought none: the document may change before the second without harm."""
    result = play(
        reply("rst", etag='"v1"', content_length="10"),
        reply(b"ABCDEF", "rst", etag='"v2"', content_length="8"),
        reply(b"GH", status=206, content_range="bytes 6-7/8", etag='"v2"'),
        protocol=RANGE,
    )
    assert (b"".join(result.data), result.outcome) == (b"ABCDEFGH", Outcome.COMPLETED)
    assert result.stream.sent[2].headers["if-range"] == '"v2"'


def test_an_answer_from_before_our_place_is_skipped_across_cuts() -> None:
    whole = reply(b"0123456789", etag='"v1"', content_length="10")
    half = reply(b"0123", "rst", etag='"v1"', content_length="10")
    result = play(FIRST, half, whole, protocol=RANGE)
    assert b"".join(result.data) == b"0123456789"


def test_a_range_that_starts_behind_our_place_is_rejected() -> None:
    result = play(FIRST, reply(b"89", status=206, content_range="bytes 8-9/10"), protocol=RANGE)
    assert isinstance(result.error, ResponseRejected)


def test_a_restart_begins_at_zero() -> None:
    result = play(
        FIRST,
        reply(b"AB", etag='"v2"', content_length="2"),
        reply(b"AB", etag='"v2"', content_length="2"),
        protocol=RANGE,
        on_lost="restart",
    )
    assert [(chunk.data, chunk.sequence) for chunk in result.events] == [(b"012345", 0), (b"AB", 0)]
    assert result.outcome is Outcome.COMPLETED
