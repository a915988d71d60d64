"""One process's copy of a stream: what it takes, what readers get, and what it lets go of."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from resumable_stream import Outcome
from resumable_stream.framing import SSEDecoder
from resumable_stream.server.log import Ending, Span
from resumable_stream.server.mirror import CHUNK_BYTES, Grown, Hole, Known, Mirror, NotHeld, with_ids
from resumable_stream.testing.log_contract import event_bytes, span_of

OK = Ending(outcome=Outcome.COMPLETED)
FAILED = Ending(outcome=Outcome.FAILED)


def mirror_of(*spans: Span, framing: Any = "sse") -> Mirror:
    mirror = Mirror("k7q2", framing)
    for span in spans:
        assert mirror.apply(span) == Grown(span.n)
    return mirror


def span_from(events: list[bytes], n: int = 0, b: int = 0) -> Span:
    data = b"".join(events)
    return Span(n=n + len(events), b=b + len(data), lengths=tuple(map(len, events)), data=data)


# --- what it takes


def test_what_continues_is_taken() -> None:
    mirror = mirror_of(span_of(1, 3), span_of(4, 4))
    assert (mirror.n, mirror.b, mirror.oldest) == (4, span_of(4, 4).b, 1)
    assert mirror.apply(OK) == Grown(4)
    assert mirror.ending == OK


@pytest.mark.parametrize("span", [span_of(1, 3), span_of(4, 6), span_of(2, 5), span_of(6, 6)])
def test_what_is_there_is_known(span: Span) -> None:
    mirror = mirror_of(span_of(1, 3), span_of(4, 6))
    assert mirror.apply(span) == Known()
    assert mirror.after(0) == (span_of(1, 6).data, 6)


@pytest.mark.parametrize("span", [span_of(8, 8), span_of(9, 12)])
def test_what_leaves_something_out_is_a_hole(span: Span) -> None:
    mirror = mirror_of(span_of(1, 6))
    assert mirror.apply(span) == Hole(6)
    assert mirror.n == 6


@pytest.mark.parametrize("first", range(1, 8))
def test_of_what_overlaps_the_rest_is_taken(first: int) -> None:
    mirror = mirror_of(span_of(1, 3), span_of(4, 6))
    assert mirror.apply(span_of(first, 9)) == Grown(9)
    assert mirror.after(0) == (span_of(1, 9).data, 9)
    assert mirror.b == span_of(9, 9).b


def test_of_another_log_nothing_is_taken() -> None:
    mirror = mirror_of(span_of(1, 3))
    for item in (span_of(4, 4), OK):
        assert mirror.apply(item, epoch="zzzz", n=3) == Hole(3)
    assert mirror.apply(Span(n=4, b=999, lengths=(5,), data=b"wrong")) == Hole(3)
    assert (mirror.n, mirror.ending) == (3, None)
    assert mirror.apply(span_of(4, 4), epoch="k7q2") == Grown(4)


def test_an_ending_waits_for_what_is_before_it() -> None:
    mirror = mirror_of(span_of(1, 3))
    assert mirror.apply(OK, n=5) == Hole(3)
    assert mirror.apply(OK, n=2) == Hole(3)
    assert mirror.ending is None
    mirror.apply(span_of(4, 5))
    assert mirror.apply(OK, n=5) == Grown(5)
    assert mirror.apply(OK, n=5) == Known()
    assert mirror.apply(FAILED, n=5) == Hole(5)
    assert mirror.apply(span_of(6, 6)) == Hole(5)
    assert mirror.ending == OK


def test_it_may_begin_in_the_middle() -> None:
    mirror = Mirror("k7q2", "sse", n=3)
    assert (mirror.oldest, mirror.b) == (4, None)
    assert mirror.apply(span_of(3, 3)) == Known()
    assert mirror.apply(span_of(5, 5)) == Hole(3)
    assert mirror.apply(span_of(2, 5)) == Grown(5)
    assert (mirror.b, mirror.after(3)) == (span_of(5, 5).b, (span_of(4, 5).data, 5))
    with pytest.raises(NotHeld):
        mirror.after(2)
    strict = Mirror("k7q2", "sse", n=3, b=7)
    assert strict.apply(span_of(4, 5)) == Hole(3)


# --- what readers get


@pytest.mark.parametrize("n", range(10))
def test_every_place_gets_the_rest(n: int) -> None:
    mirror = mirror_of(span_of(1, 1), span_of(2, 5), span_of(6, 9))
    for _ in range(2):
        assert mirror.after(n) == (span_of(n + 1, 9).data if n < 9 else b"", 9)
        assert mirror.after_with_ids(n) == (with_ids(span_of(n + 1, 9), "k7q2", "sse") if n < 9 else b"", 9)


def test_there_is_nothing_after_the_last_event() -> None:
    mirror = mirror_of(span_of(1, 3))
    for n in (3, 4, 99):
        assert mirror.after(n) == (b"", n)
        assert mirror.after_with_ids(n) == (b"", n)
    assert Mirror("k7q2", "sse").after(0) == (b"", 0)


def test_readers_at_one_place_get_one_object() -> None:
    spans = [span_of(1, 3), span_of(4, 6), span_of(7, 9)]
    mirror = mirror_of(*spans)
    # The tail is the span itself.
    assert mirror.after(6)[0] is spans[2].data
    for after in (mirror.after, mirror.after_with_ids):
        for n in (0, 2, 3, 6):
            assert after(n)[0] is after(n)[0]
    tail = mirror.after_with_ids(6)[0]
    mirror.apply(span_of(10, 10))
    assert mirror.after_with_ids(6)[0].startswith(tail)
    assert mirror.after(9)[0] == event_bytes(10)


def test_a_chunk_has_whole_spans_and_a_bound() -> None:
    size = CHUNK_BYTES // 4
    spans = [span_from([b"%d" % n * size], n, n * size) for n in range(10)]
    mirror = mirror_of(*spans, framing="raw")
    n, chunks = 0, []
    while n < 10:
        chunk, n = mirror.after(n)
        chunks.append(chunk)
    assert [len(chunk) for chunk in chunks] == [4 * size, 4 * size, 2 * size]
    assert b"".join(chunks) == b"".join(span.data for span in spans)
    # An event that is larger than that is given as it is.
    large = span_from([b"x" * 3 * CHUNK_BYTES], 10, 10 * size)
    mirror.apply(large)
    assert mirror.after(10)[0] == large.data
    assert mirror.after(8) == (spans[8].data + spans[9].data, 10)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("known", [0, 1, 700])
def test_a_span_of_many_chunks_is_handed_out_in_chunks(known: int, large: bool) -> None:
    """As it comes from an entry of an ended stream; some of it may be here already."""
    events = [b"data: %s\n\n" % (b"%d " % n * 90) for n in range(3000)]
    if large:
        events[2000] = b"data: %s\n\n" % (b"x" * 2 * CHUNK_BYTES)
    whole = span_from(events)
    mirror = mirror_of(*([span_from(events[:known])] if known else []), whole)
    assert (mirror.n, mirror.b, mirror.size) == (3000, whole.b, len(whole.data))
    most = max(CHUNK_BYTES, *map(len, events))
    for begin in (0, 1, known, 1999, 2000, 2001, 2999):
        for view in (mirror.after, mirror.after_with_ids):
            n, chunks = begin, []
            while n < 3000:
                chunk, n = view(n)
                chunks.append(chunk)
            if view == mirror.after:
                assert b"".join(chunks) == b"".join(events[begin:])
            assert b"".join(chunks).count(b"data: ") == 3000 - begin
            # The ids of 400 events make a chunk larger by some kilobytes.
            assert max(map(len, chunks)) <= (most if view == mirror.after else 1.1 * most)
        b, found = sum(map(len, events[:begin])) + 3, b""
        while b < whole.b:
            piece, b = mirror.after_byte(b)
            assert len(piece) <= most
            found += piece
        assert found == b"".join(events[begin:])[3:]


def test_random_readers_of_a_growing_mirror_miss_nothing() -> None:
    chance = random.Random(5)
    for framing in ("sse", "raw"):
        mirror = Mirror("k7q2", framing)
        events: list[bytes] = []
        readers = [(0, b"")] * 8
        positions = [(0, b"")] * 4
        for _ in range(200):
            new = [b"data: %s\n\n" % (b"x" * chance.choice((1, 30, 9000))) for _ in range(chance.randrange(1, 4))]
            mirror.apply(span_from(new, len(events), sum(map(len, events))))
            events += new
            for number in range(8):
                if chance.random() < 0.3:
                    n, got = readers[number]
                    chunk, n = mirror.after(n)
                    readers[number] = n, got + chunk
            for number in range(4):
                if chance.random() < 0.3:
                    b, got = positions[number]
                    chunk, b = mirror.after_byte(b)
                    # A reader of bytes may stop anywhere.
                    kept = chance.randrange(len(chunk) + 1)
                    positions[number] = b - len(chunk) + kept, got + chunk[:kept]
        whole = b"".join(events)
        for n, got in readers:
            while n < mirror.n:
                chunk, n = mirror.after(n)
                got += chunk
            assert got == whole
        for b, got in positions:
            while b < len(whole):
                chunk, b = mirror.after_byte(b)
                got += chunk
            assert got == whole


def test_every_byte_position_gets_the_rest() -> None:
    mirror = mirror_of(span_of(1, 1), span_of(2, 5), span_of(6, 7), framing="raw")
    whole = span_of(1, 7).data
    for b in range(len(whole) + 1):
        place, got = b, b""
        while place < len(whole):
            chunk, place = mirror.after_byte(place)
            assert chunk
            got += chunk
        assert got == whole[b:]
    assert mirror.after_byte(len(whole) + 5) == (b"", len(whole) + 5)


# --- ids


def decoded(data: bytes) -> list[tuple[str, str]]:
    decoder = SSEDecoder()
    return [(event.data, event.id) for event in decoder.feed(data)]


@pytest.mark.parametrize(
    ("block", "shown"),
    [
        (b"data: a\n\n", b"id: k7q2.7\ndata: a\n\n"),
        (b"data: a\r\n\r\n", b"id: k7q2.7\ndata: a\r\n\r\n"),
        (b"data: a\r\r", b"id: k7q2.7\ndata: a\r\r"),
        (b"data:\n\n", b"id: k7q2.7\ndata:\n\n"),
        (b"event: x\ndata: a\ndata: b\n\n", b"id: k7q2.7\nevent: x\ndata: a\ndata: b\n\n"),
        # The last id of a block counts.
        (b"id: 5\ndata: a\n\n", b"id: 5\ndata: a\nid: k7q2.7\n\n"),
        (b"data: a\nid: 5\n\n", b"data: a\nid: 5\nid: k7q2.7\n\n"),
        (b"data: a\r\nid: 5\r\n\r\n", b"data: a\r\nid: 5\r\nid: k7q2.7\n\n"),
        (b"data: a\rid: 5\r\r", b"data: a\rid: 5\rid: k7q2.7\n\n"),
        (b"data: a\nid\n\n", b"data: a\nid\nid: k7q2.7\n\n"),
        # A block without data must not move the place of a reader that is cut behind it.
        (b"event: ping\n\ndata: a\n\n", b"event: ping\n\ndata: a\nid: k7q2.7\n\n"),
        (b"event: ping\r\n\r\ndata: a\r\n\r\n", b"event: ping\n\ndata: a\nid: k7q2.7\n\n"),
        (b"event: ping\r\rdata: a\r\r", b"event: ping\n\ndata: a\nid: k7q2.7\n\n"),
        (b"id: 5\n\nid\ndata: a\nid: 6\n\n", b"data: a\nid: k7q2.7\n\n"),
        (b"data: a\n\nid: 6\nretry: 5\n\n", b"data: a\nid: k7q2.7\n\nretry: 5\n\n"),
        (b"\n\ndata: a\n\n", b"data: a\nid: k7q2.7\n\n"),
        (b"\r\ndata\n\n", b"data\nid: k7q2.7\n\n"),
        # The last block of a body may lack its end.
        (b"data: a\n", b"data: a\nid: k7q2.7\n\n"),
        (b"data: a\r\n", b"data: a\r\nid: k7q2.7\n\n"),
        (b"data: a", b"data: a\nid: k7q2.7\n\n"),
    ],
)
def test_where_the_id_of_a_block_goes(block: bytes, shown: bytes) -> None:
    view = with_ids(Span(n=7, b=100, lengths=(len(block),), data=block), "k7q2", "sse")
    assert view == shown
    # Alone and before another one, it is the same data with another id.
    plain = decoded(block if block.endswith((b"\n\n", b"\r\r", b"\r\n\r\n")) else block + b"\n\n")
    for data in (view, view + view):
        assert [each for each, _ in decoded(data)] == [each for each, _ in plain] * (len(data) // len(view))
        assert {identity for _, identity in decoded(data)} == {"k7q2.7"}


def test_a_byte_order_mark_goes() -> None:
    first = b"\xef\xbb\xbfdata: a\n\n"
    assert with_ids(Span(n=1, b=len(first), lengths=(len(first),), data=first), "k7q2", "sse") == b"id: k7q2.1\ndata: a\n\n"
    later = Span(n=2, b=99, lengths=(len(first),), data=first)
    assert b"\xef\xbb\xbf" in with_ids(later, "k7q2", "sse")
    line = b'\xef\xbb\xbf{"a":1}\n'
    view = with_ids(Span(n=1, b=len(line), lengths=(len(line),), data=line), "k7q2", "ndjson")
    assert view == b'id: k7q2.1\ndata: {"a":1}\n\n'


@pytest.mark.parametrize("line", [b'{"a": 1}\n', b"[1]\r\n", b'\n \n{"a":\r[1,\r\n2]} \n', b'"\xc3\xa9"'])
def test_a_line_of_json_becomes_data(line: bytes) -> None:
    view = with_ids(Span(n=7, b=100, lengths=(len(line),), data=line), "k7q2", "ndjson")
    ((data, identity),) = decoded(view)
    assert identity == "k7q2.7"
    assert json.loads(data) == json.loads(line)


def test_raw_bytes_have_no_ids() -> None:
    mirror = mirror_of(span_of(1, 3), framing="raw")
    with pytest.raises(ValueError):
        mirror.after_with_ids(0)
    assert mirror.after_with_ids(3) == (b"", 3)


def test_a_reader_cut_at_any_byte_comes_back_for_exactly_the_rest() -> None:
    blocks = [
        b"data: one\n\n",
        b"event: ping\n\nid: x\ndata: two\n\n",
        b": c\ndata: 3a\ndata: 3b\n\n",
        b"id: 4\r\ndata: four\r\n\r\n",
        b"data: five\r\r",
        b"id: six\n\nevent: a\ndata: six\n\n",
        b"data: seven\n\n",
    ]
    mirror = mirror_of(span_from(blocks[:3]), span_from(blocks[3:], 3, sum(map(len, blocks[:3]))))
    whole, _ = mirror.after_with_ids(0)
    expected = decoded(b"".join(blocks))
    for cut in range(len(whole) + 1):
        decoder = SSEDecoder()
        taken = [event.data for event in decoder.feed(whole[:cut])]
        # What a browser sends as Last-Event-ID, also after a block without data.
        place = int(decoder.last_event_id.partition(".")[2] or 0)
        assert place == len(taken), cut
        taken += [data for data, _ in decoded(mirror.after_with_ids(place)[0])]
        assert taken == [data for data, _ in expected]


# --- what it lets go of


def test_the_front_is_let_go_of_by_whole_spans() -> None:
    spans = [span_of(1, 3), span_of(4, 6), span_of(7, 9)]
    mirror = mirror_of(*spans)
    size = mirror.size
    assert size == sum(len(span.data) for span in spans)
    assert mirror.trim(size) == 0
    assert mirror.trim(size - 1) == len(spans[0].data)
    assert (mirror.oldest, mirror.n, mirror.size) == (4, 9, size - len(spans[0].data))
    for n in range(3):
        with pytest.raises(NotHeld) as caught:
            mirror.after(n)
        assert caught.value.oldest == 4
    assert mirror.after(3) == (span_of(4, 9).data, 9)
    assert mirror.after_byte(spans[0].b) == (span_of(4, 9).data, spans[2].b)
    with pytest.raises(NotHeld):
        mirror.after_byte(spans[0].b - 1)
    mirror.trim(0)
    assert (mirror.oldest, mirror.n, mirror.size) == (10, 9, 0)
    with pytest.raises(NotHeld):
        mirror.after(8)
    with pytest.raises(NotHeld):
        mirror.after_byte(spans[2].b - 1)
    assert mirror.after(9) == (b"", 9)
    assert mirror.apply(span_of(10, 10)) == Grown(10)
    assert mirror.after(9) == (event_bytes(10), 10)


def test_everything_held_counts() -> None:
    mirror = mirror_of(span_of(1, 3), span_of(4, 6))
    plain = mirror.size
    mirror.after_with_ids(3)
    with_tail = mirror.size
    assert with_tail == plain + len(with_ids(span_of(4, 6), "k7q2", "sse"))
    for _ in range(100):
        for n in range(6):
            mirror.after(n)
            mirror.after_with_ids(n)
    assert mirror.size < 12 * with_tail
    mirror.apply(span_of(7, 7))
    assert mirror.size == plain + len(with_ids(span_of(1, 6), "k7q2", "sse")) + len(event_bytes(7))
    mirror.trim(0)
    assert mirror.size == 0


def test_it_shows_no_content() -> None:
    assert "data" not in repr(mirror_of(span_of(1, 3)))
