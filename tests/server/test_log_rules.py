"""The rules of a log, row by row."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from resumable_stream import LogUnavailable, Outcome
from resumable_stream.server.log import (
    CANCEL,
    MAX_INBOX,
    Append,
    Appended,
    Behind,
    Control,
    Cursor,
    Done,
    Ended,
    Ending,
    Existing,
    Fenced,
    Full,
    Gone,
    Head,
    Held,
    Lost,
    Message,
    Record,
    Said,
    Span,
    SpanRefused,
    Unknown,
    Writer,
    check_batch,
    check_restore,
    join_spans,
    judge_append,
    judge_claim,
    judge_create,
    judge_finish,
    judge_read,
    judge_renew,
    judge_restore,
    judge_say,
    page_of,
    spans_after,
    split_span,
)

HEAD = Head(content_type="text/event-stream", framing="sse", retention=1000.0)
OK = Ending(outcome=Outcome.COMPLETED)
FAILED = Ending(outcome=Outcome.FAILED, reason="producer_lost")
WRITER = Writer("s", "k7q2", 1)
OTHER = Writer("s", "k7q2", 2)
ELSEWHERE = Writer("s", "zzzz", 1)


def span(first: int, last: int, size: int = 10) -> Span:
    """Events `first` to `last`, of `size` bytes each, of a log in which all events have that size."""
    lengths = (size,) * (last - first + 1)
    data = b"".join(b"%0*d" % (size, number) for number in range(first, last + 1))
    return Span(n=last, b=last * size, lengths=lengths, data=data)


def record(**fields: Any) -> Record:
    """A stream with ten events in two spans."""
    return Record(**{"head": HEAD, "epoch": "k7q2", "n": 10, "b": 100, "c": 2, "until": 50.0, **fields})


@pytest.mark.parametrize(
    ("stored", "entries", "append", "verdict"),
    [
        (None, 0, Append(WRITER, span(11, 12)), Lost()),
        (record(fence=2), 2, Append(WRITER, span(11, 12)), Fenced("k7q2.2")),
        (record(), 2, Append(OTHER, span(11, 12)), Fenced("k7q2.1")),
        (record(), 2, Append(ELSEWHERE, span(11, 12)), Fenced("k7q2.1")),
        (record(fence=2, ending=OK), 2, Append(WRITER, span(11, 12)), Fenced("k7q2.2")),
        (record(ending=OK), 2, Append(WRITER, span(11, 12)), Ended(OK, 10)),
        (record(ending=OK), 2, Append(WRITER, span(9, 10)), Ended(OK, 10)),
        (record(), 1, Append(WRITER, span(11, 12)), Lost()),
        (record(), 0, Append(WRITER, span(9, 10)), Lost()),
        (record(), 3, Append(WRITER, span(11, 12)), Lost()),
        (record(fence=2), 1, Append(WRITER, span(11, 12)), Fenced("k7q2.2")),
        (record(), 2, Append(WRITER, span(11, 12)), None),
        (record(), 2, Append(WRITER, span(9, 10)), Appended(10)),
        (record(), 2, Append(WRITER, span(1, 4)), Appended(10)),
        (record(), 2, Append(WRITER, span(9, 12)), Behind(10)),
        (record(), 2, Append(WRITER, span(12, 12)), Behind(10)),
        (record(k=3), 2, Append(WRITER, span(9, 10)), Appended(10, Control(3))),
        (record(k=1, cancel=""), 2, Append(WRITER, span(9, 10)), Appended(10, Control(1, ""))),
        (record(), 2, Append(WRITER, None, "note", n=10), None),
        (record(), 2, Append(WRITER, None, "note", n=11), Behind(10)),
        (record(), 2, Append(WRITER, None, "note", n=9), Behind(10)),
        (record(), 1, Append(WRITER, None, "note", n=10), Lost()),
        (record(ending=OK), 2, Append(WRITER, None, "note", n=10), Ended(OK, 10)),
    ],
)
def test_append(stored: Record | None, entries: int, append: Append, verdict: object) -> None:
    assert judge_append(stored, entries, append) == verdict


@pytest.mark.parametrize(
    "wrong",
    [replace(span(11, 12), b=121), replace(span(11, 12), b=119), replace(span(9, 10), b=101), replace(span(9, 10), b=99)],
)
def test_a_span_that_does_not_continue_the_bytes_is_an_error(wrong: Span) -> None:
    with pytest.raises(SpanRefused, match="'s'.*byte 100") as caught:
        judge_append(record(), 2, Append(WRITER, wrong))
    assert caught.value.stream_id == "s"


def test_a_writer_that_lost_its_right_learns_that_before_its_fault() -> None:
    wrong = replace(span(11, 12), b=121)
    assert judge_append(record(fence=2), 2, Append(WRITER, wrong)) == Fenced("k7q2.2")
    assert judge_append(None, 0, Append(WRITER, wrong)) == Lost()


def test_an_append_moves_everything_in_one_step() -> None:
    stored = record(note="old", note_n=4)
    stored.append(Append(replace(WRITER, lease=15.0), span(11, 13)), now=40.0)
    assert (stored.n, stored.b, stored.c, stored.note, stored.note_n) == (13, 130, 3, "old", 4)
    assert (stored.until, stored.expires) == (55.0, 1055.0)
    stored.append(Append(WRITER, span(14, 14), "new", 7), now=41.0)
    assert (stored.note, stored.note_n, stored.taken) == ("new", 14, 7)
    stored.append(Append(WRITER, None, "alone", n=14), now=42.0)
    assert (stored.n, stored.c, stored.note, stored.note_n, stored.taken) == (14, 4, "alone", 14, 7)


@pytest.mark.parametrize(
    ("stored", "entries", "writer", "n", "ending", "verdict"),
    [
        (None, 0, WRITER, 10, OK, Lost()),
        (record(fence=2), 2, WRITER, 10, OK, Fenced("k7q2.2")),
        (record(fence=2, ending=OK), 2, WRITER, 10, OK, Fenced("k7q2.2")),
        (record(ending=OK), 2, WRITER, 10, OK, Done(10)),
        (record(ending=OK), 2, WRITER, 10, FAILED, Ended(OK, 10)),
        (record(ending=OK), 2, WRITER, 11, OK, Ended(OK, 10)),
        # Compaction changes the number of entries; the ending stays what it is.
        (record(ending=OK), 1, WRITER, 10, OK, Done(10)),
        (record(), 1, WRITER, 10, OK, Lost()),
        (record(), 2, WRITER, 11, OK, Behind(10)),
        (record(), 2, WRITER, 9, OK, Behind(10)),
        (record(), 2, WRITER, 10, OK, None),
    ],
)
def test_finish(stored: Record | None, entries: int, writer: Writer, n: int, ending: Ending, verdict: object) -> None:
    assert judge_finish(stored, entries, writer, n, ending) == verdict


def test_an_ended_stream_is_kept_for_its_retention() -> None:
    stored = record()
    stored.finish(OK, now=40.0)
    assert (stored.ending, stored.until, stored.expires) == (OK, 0.0, 1040.0)


@pytest.mark.parametrize(
    ("stored", "writer", "verdict"),
    [
        (None, WRITER, Lost()),
        (record(fence=2), WRITER, Fenced("k7q2.2")),
        (record(), ELSEWHERE, Fenced("k7q2.1")),
        (record(ending=OK), WRITER, Ended(OK, 10)),
        (record(), WRITER, None),
        # A lease that is over is still the writer's until somebody claims.
        (record(until=0.0), WRITER, None),
    ],
)
def test_renew(stored: Record | None, writer: Writer, verdict: object) -> None:
    assert judge_renew(stored, writer) == verdict


def test_renewing_with_a_lease_of_nothing_releases() -> None:
    stored = record()
    stored.renew(replace(WRITER, lease=0.0), now=40.0)
    assert stored.until == 0.0
    assert judge_claim(stored, now=0.5) is None


@pytest.mark.parametrize(
    ("stored", "now", "verdict"),
    [
        (None, 0.0, Unknown()),
        (record(ending=OK), 99.0, Ended(OK, 10)),
        (record(), 49.0, Held(1.0)),
        (record(), 50.0, None),
        (record(until=0.0), 1.0, None),
    ],
)
def test_claim(stored: Record | None, now: float, verdict: object) -> None:
    assert judge_claim(stored, now) == verdict


def test_a_claim_of_a_whole_log_keeps_its_epoch() -> None:
    stored = record(note="n", note_n=8, taken=2, k=3, request=b"{}")
    writer = stored.claim("s", lease=5.0, now=60.0, entries=2, epoch="zzzz")
    assert (writer.token, writer.lease, writer.retention) == ("k7q2.2", 5.0, 1000.0)
    assert (stored.token, stored.until, stored.expires) == ("k7q2.2", 65.0, 1065.0)
    found = writer.handover
    assert found is not None
    assert (found.head, found.n, found.b, found.note, found.note_n) == (HEAD, 10, 100, "n", 8)
    assert (found.taken, found.control, found.request, found.whole) == (2, Control(3), b"{}", True)


def test_a_claim_of_a_doubtful_log_keeps_its_events_and_not_its_epoch() -> None:
    """
    A log that may have lost its last events without a trace cannot say to which of its readers it is behind.

    What the new writer appends would have numbers that some have seen with other events, so the numbers get another epoch. The
    events that are left are good, and have been paid for.
    """
    stored = record(note="n", note_n=8, taken=2, k=3, request=b"{}")
    writer = stored.claim("s", lease=5.0, now=60.0, entries=2, epoch="zzzz", doubtful=True)
    assert (writer.token, stored.token) == ("zzzz.2", "zzzz.2")
    assert (stored.n, stored.b, stored.c, stored.oldest, stored.note, stored.note_n) == (10, 100, 2, 1, "n", 8)
    found = writer.handover
    assert found is not None
    assert (found.n, found.b, found.note, found.note_n, found.whole, found.before) == (10, 100, "n", 8, True, "k7q2")
    for n in range(12):
        answer = judge_read(stored, 2, Cursor("k7q2", n), now=60.0)
        assert isinstance(answer, Gone) and answer.why == "other_epoch"
    # What is known to be lost is gone, and not in doubt.
    lost = record()
    gone = lost.claim("s", lease=5.0, now=60.0, entries=1, epoch="zzzz", doubtful=True).handover
    assert gone is not None and (gone.n, gone.whole, gone.before) == (0, False, None)


def test_a_claim_of_a_log_that_lost_spans_begins_again_under_another_epoch() -> None:
    stored = record(note="n", note_n=8, taken=2, k=3, oldest=3)
    writer = stored.claim("s", lease=5.0, now=60.0, entries=1, epoch="zzzz")
    assert writer.token == "zzzz.2"
    assert (stored.epoch, stored.n, stored.b, stored.c, stored.oldest, stored.note) == ("zzzz", 0, 0, 0, 1, None)
    found = writer.handover
    assert found is not None
    assert (found.n, found.note, found.note_n, found.taken, found.whole) == (0, None, 0, 2, False)
    assert judge_append(stored, 0, Append(WRITER, span(11, 12))) == Fenced("zzzz.2")
    gone = judge_read(stored, 0, Cursor("k7q2", 4), now=60.0)
    assert isinstance(gone, Gone)
    assert gone.why == "other_epoch"


@pytest.mark.parametrize(
    ("stored", "replaces", "verdict"),
    [
        (None, None, None),
        (None, "k7q2", None),
        (record(), None, Existing("k7q2", 10, HEAD)),
        (record(ending=OK), None, Existing("k7q2", 10, HEAD, OK)),
        (record(), "k7q2", Existing("k7q2", 10, HEAD)),
        (record(ending=OK), "zzzz", Existing("k7q2", 10, HEAD, OK)),
        (record(ending=OK), "k7q2", None),
    ],
)
def test_create(stored: Record | None, replaces: str | None, verdict: object) -> None:
    assert judge_create(stored, replaces=replaces) == verdict


def test_a_stream_that_begins_holds_nothing() -> None:
    stored = Record.create(HEAD, "k7q2", lease=5.0, now=10.0, request=b"body")
    assert (stored.token, stored.n, stored.b, stored.c, stored.oldest) == ("k7q2.1", 0, 0, 0, 1)
    assert (stored.until, stored.expires, stored.request, stored.control) == (15.0, 1015.0, b"body", None)


@pytest.mark.parametrize(
    ("stored", "entries", "verdict"),
    [
        (None, 0, None),
        (record(), 0, None),
        (record(), 1, None),
        (record(), 2, Existing("k7q2", 10, HEAD)),
        (record(fence=2), 0, Existing("k7q2", 10, HEAD)),
        (record(epoch="zzzz"), 0, Existing("zzzz", 10, HEAD)),
        (record(ending=OK), 0, Existing("k7q2", 10, HEAD, OK)),
    ],
)
def test_restore(stored: Record | None, entries: int, verdict: object) -> None:
    assert judge_restore(stored, entries, WRITER) == verdict


def test_a_restored_stream_has_the_next_fence_and_numbers_its_messages_on() -> None:
    inbox = [Message(id="a", k=4), Message(id="b", kind=CANCEL, data="enough", k=5)]
    stored = Record.restore(
        replace(WRITER, lease=5.0), HEAD, "k7q2", [span(1, 4), span(5, 9)], now=10.0, note="n", taken=4, inbox=inbox
    )
    assert (stored.token, stored.n, stored.b, stored.c, stored.oldest, stored.until) == ("k7q2.2", 9, 90, 2, 1, 15.0)
    assert (stored.note, stored.note_n, stored.taken, stored.control) == ("n", 9, 4, Control(5, "enough"))
    front = Record.restore(WRITER, HEAD, "k7q2", [span(5, 9)], now=10.0, note="n", note_n=7, taken=6)
    assert (front.oldest, front.k, front.note_n) == (5, 6, 7)
    empty = Record.restore(WRITER, HEAD, "k7q2", [], now=10.0)
    assert (empty.n, empty.b, empty.c, empty.oldest, empty.note_n) == (0, 0, 0, 1, 0)


@pytest.mark.parametrize(
    "spans",
    [
        [span(1, 4), span(6, 9)],
        [span(1, 4), span(4, 9)],
        [span(5, 9), span(1, 4)],
        [span(1, 4), replace(span(5, 9), b=91)],
        [replace(span(1, 4), b=41)],
        [Span(n=7, b=4, lengths=(4,), data=b"aaaa")],
    ],
)
def test_what_is_restored_is_one_piece(spans: list[Span]) -> None:
    check_restore([])
    check_restore([span(1, 4), span(5, 9)])
    check_restore([span(5, 9), span(10, 10)])
    with pytest.raises(ValueError):
        check_restore(spans)


@pytest.mark.parametrize(
    ("stored", "message", "known", "verdict"),
    [
        (None, Message(id="m"), None, Unknown()),
        (record(), Message(id="m"), None, None),
        (record(), Message(id="m"), 3, Said(3)),
        (record(ending=OK), Message(id="m"), 3, Said(3)),
        (record(ending=OK), Message(id="m"), None, Ended(OK, 10)),
        (record(k=MAX_INBOX - 1), Message(id="m"), None, None),
        (record(k=MAX_INBOX), Message(id="m"), None, Full(MAX_INBOX)),
        (record(k=MAX_INBOX), Message(id="m"), 3, Said(3)),
        (record(k=MAX_INBOX), Message(id="m", kind=CANCEL), None, None),
        (record(k=MAX_INBOX + 1, cancel=""), Message(id="m", kind=CANCEL), None, Full(MAX_INBOX)),
    ],
)
def test_say(stored: Record | None, message: Message, known: int | None, verdict: object) -> None:
    assert judge_say(stored, message, known) == verdict


def test_the_first_reason_of_a_cancel_stays() -> None:
    stored = record()
    assert stored.say(Message(id="a", data="hi")) == 1
    assert stored.control == Control(1)
    assert stored.say(Message(id="b", kind=CANCEL, data="first")) == 2
    assert stored.say(Message(id="c", kind=CANCEL, data="second")) == 3
    assert stored.control == Control(3, "first")


@pytest.mark.parametrize(
    ("stored", "entries", "after", "verdict"),
    [
        (None, 0, None, Unknown()),
        (None, 0, Cursor("k7q2", 3), Unknown()),
        (record(), 2, None, 0),
        (record(), 2, Cursor("k7q2", 0), 0),
        (record(), 2, Cursor("k7q2", 4), 4),
        (record(), 2, Cursor("k7q2", 10), 10),
        (record(), 2, Cursor("k7q2", 11), "went_back"),
        (record(ending=OK), 2, Cursor("k7q2", 10), 10),
        (record(ending=OK), 2, Cursor("k7q2", 11), 11),
        (record(ending=OK), 2, Cursor("k7q2", 12), "went_back"),
        (record(), 2, Cursor("zzzz", 0), "other_epoch"),
        (record(), 2, Cursor("zzzz", 99), "other_epoch"),
        (record(oldest=5), 2, None, "trimmed"),
        (record(oldest=5), 2, Cursor("k7q2", 3), "trimmed"),
        (record(oldest=5), 2, Cursor("k7q2", 4), 4),
        # The spans were evicted, the record was not.
        (record(), 0, None, "trimmed"),
        (record(), 0, Cursor("k7q2", 9), "trimmed"),
        (record(), 0, Cursor("k7q2", 10), 10),
        # Nothing was appended yet.
        (record(n=0, b=0, c=0), 0, None, 0),
        (record(n=0, b=0, c=0), 0, Cursor("k7q2", 0), 0),
    ],
)
def test_read(stored: Record | None, entries: int, after: Cursor | None, verdict: object) -> None:
    found = judge_read(stored, entries, after, now=40.0)
    if isinstance(verdict, str):
        assert isinstance(found, Gone)
        assert stored is not None
        assert (found.why, found.n, found.epoch, found.head, found.ending) == (verdict, 10, "k7q2", HEAD, stored.ending)
        assert found.oldest == (stored.oldest if entries else 11)
        assert found.running_until == (50.0 if stored.ending is None else None)
        assert found.now == 40.0
    else:
        assert found == verdict


def read_all(stored: Record, spans: list[Span], after: int, limit: int) -> list[Span]:
    """Page by page, as a reader does."""
    found: list[Span] = []
    for _ in range(1000):
        page = page_of("s", stored, stored.c, after, [each for each in spans if each.n > after], limit_bytes=limit, now=0.0)
        if not page.spans:
            return found
        found += page.spans
        after = page.spans[-1].n
    raise AssertionError("a reader that gets no further")


@pytest.mark.parametrize("limit", [1, 9, 10, 11, 25, 30, 1000])
def test_pages_hold_everything_after_the_cursor_once(limit: int) -> None:
    spans = [span(1, 4), span(5, 5), span(6, 10)]
    for after in range(11):
        found = read_all(record(c=3), spans, after, limit)
        assert b"".join(each.data for each in found) == b"".join(b"%010d" % number for number in range(after + 1, 11)), after
        assert [each.first for each in found] == [after + 1, *(each.n + 1 for each in found[:-1])][: len(found)], after
        assert all(each.b == each.n * 10 for each in found), after


def test_a_page_is_as_large_as_asked_for() -> None:
    spans = [span(1, 4), span(5, 5), span(6, 10)]

    def sizes(limit: int) -> list[int]:
        return [len(each.data) for each in page_of("s", record(c=3), 3, 0, spans, limit_bytes=limit, now=0.0).spans]

    assert sizes(0) == []
    assert sizes(1) == [10]
    assert sizes(39) == [30]
    assert sizes(40) == [40]
    assert sizes(55) == [40, 10]
    assert sizes(60) == [40, 10, 10]
    assert sizes(100) == [40, 10, 50]


def test_a_page_says_how_the_stream_stands() -> None:
    page = page_of("s", record(oldest=5), 2, 10, [], limit_bytes=100, now=40.0)
    assert (page.head, page.epoch, page.oldest, page.n, page.b) == (HEAD, "k7q2", 5, 10, 100)
    assert (page.spans, page.ending, page.running_until, page.lease_left) == ((), None, 50.0, 10.0)
    ended = page_of("s", record(ending=OK, until=0.0), 2, 11, [], limit_bytes=100, now=40.0)
    assert (ended.spans, ended.ending, ended.running_until) == ((), OK, None)


@pytest.mark.parametrize(
    "spans",
    [
        [],
        [span(1, 4)],
        [span(1, 4), span(6, 10)],
        [span(2, 4), span(5, 10)],
        [span(1, 4), span(1, 4), span(5, 10)],
        [span(5, 10), span(1, 4)],
    ],
)
def test_a_hole_is_never_passed_over(spans: list[Span]) -> None:
    with pytest.raises(LogUnavailable, match="'s'.*event \\d+ is missing") as caught:
        page_of("s", record(), 2, 0, spans, limit_bytes=1000, now=0.0)
    assert caught.value.stream_id == "s"


def test_a_batch_is_brought_into_one_form() -> None:
    append = Append(WRITER, span(3, 3), taken=4)
    assert check_batch([(WRITER, span(1, 2), "note"), append]) == [Append(WRITER, span(1, 2), "note"), append]
    with pytest.raises(TypeError):
        check_batch([WRITER])  # type: ignore[list-item]
    with pytest.raises(ValueError):
        check_batch([(WRITER, span(1, 2), "\ud800")])


@pytest.mark.parametrize("after", range(6))
def test_the_rest_of_a_span(after: int) -> None:
    whole = Span(n=7, b=115, lengths=(1, 2, 3, 4, 5), data=b"abbcccddddeeeee")
    rest = spans_after(whole, after + 1)
    assert (rest.n, rest.b, rest.lengths) == (7, 115, whole.lengths[max(0, after - 1) :])
    assert rest.data == whole.data[sum(whole.lengths[: max(0, after - 1)]) :]
    with pytest.raises(ValueError):
        spans_after(whole, 7)


@pytest.mark.parametrize("limit", range(17))
def test_a_span_is_split_between_events(limit: int) -> None:
    whole = Span(n=7, b=115, lengths=(1, 2, 3, 4, 5), data=b"abbcccddddeeeee")
    first, second = split_span(whole, limit)
    parts = [part for part in (first, second) if part is not None]
    check_restore(parts)
    assert b"".join(part.data for part in parts) == whole.data
    assert sum((part.lengths for part in parts), ()) == whole.lengths
    assert (parts[0].first, parts[0].start, parts[-1].n, parts[-1].b) == (3, 100, 7, 115)
    assert first is None or len(first.data) <= limit
    assert second is None or len(first.data if first else b"") + second.lengths[0] > limit


def test_joined_spans_hold_the_same_events() -> None:
    chance = random.Random(11)
    for _ in range(200):
        spans, n, b = [], chance.randrange(5), 0
        b = n * 7
        for _ in range(chance.randrange(1, 12)):
            lengths = tuple(chance.choice((1, 3, 8, 30)) for _ in range(chance.randrange(1, 6)))
            n, b = n + len(lengths), b + sum(lengths)
            spans.append(Span(n=n, b=b, lengths=lengths, data=chance.randbytes(sum(lengths))))
        limit = chance.choice((1, 10, 40, 10_000))
        joined = join_spans(spans, limit_bytes=limit)
        assert b"".join(each.data for each in joined) == b"".join(each.data for each in spans)
        assert sum((each.lengths for each in joined), ()) == sum((each.lengths for each in spans), ())
        assert (joined[0].first, joined[0].start, joined[-1].n, joined[-1].b) == (spans[0].first, spans[0].start, n, b)
        for before, following in pairwise(joined):
            assert (following.first, following.start) == (before.n + 1, before.b)
            assert len(before.data) + following.lengths[0] > limit
        assert all(len(each.data) <= limit or len(each.lengths) == 1 for each in joined)
    assert join_spans([]) == []
