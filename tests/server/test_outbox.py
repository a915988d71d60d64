"""What waits for the log: spans by leading edge, then a window; the same span again until it is acknowledged."""

from __future__ import annotations

import random

import pytest

from resumable_stream.server.outbox import SPAN_BYTES, Outbox


def test_the_first_event_after_a_silence_waits_for_nothing() -> None:
    outbox = Outbox()
    assert outbox.due() is None
    outbox.put(b"a")
    due = outbox.due()
    assert due is not None and due <= 0.0


def test_the_next_one_waits_for_the_window() -> None:
    outbox = Outbox(flush=0.025)
    outbox.put(b"a")
    outbox.take(10.0)
    outbox.acknowledged()
    outbox.put(b"b")
    assert outbox.due() == pytest.approx(10.025)


def test_many_bytes_wait_for_no_window() -> None:
    outbox = Outbox(flush_bytes=10)
    outbox.put(b"a")
    outbox.take(10.0)
    outbox.acknowledged()
    outbox.put(b"x" * 9)
    assert outbox.due() == pytest.approx(10.025)
    outbox.put(b"y")
    assert outbox.due() == float("-inf")


def test_what_is_not_acknowledged_is_sent_again_unchanged() -> None:
    outbox = Outbox()
    outbox.put(b"a")
    first = outbox.take(0.0)
    outbox.put(b"b")
    assert outbox.take(1.0) is first
    assert outbox.acknowledged() is first
    second = outbox.take(2.0)
    assert second is not None and (second.n, second.b, second.data) == (2, 2, b"b")


def test_a_log_that_lost_its_end_gets_it_again_before_anything_new() -> None:
    outbox = Outbox()
    spans = []
    for event in (b"a", b"b", b"c"):
        outbox.put(event)
        spans.append(outbox.take(0.0))
        if event != b"c":
            outbox.acknowledged()
    outbox.put(b"d")
    outbox.resend(spans[1:2])  # type: ignore[arg-type]
    again = []
    while (span := outbox.take(0.0)) is not None:
        again.append(span.data)
        outbox.acknowledged()
    assert again == [b"b", b"c", b"d"]
    assert outbox.empty and outbox.size == 0 and outbox.acked == 4


def test_a_span_is_bounded_unless_one_event_is_larger() -> None:
    outbox = Outbox()
    for size in (SPAN_BYTES - 1, 1, 1, SPAN_BYTES * 2, 5):
        outbox.put(b"x" * size)
    sizes = []
    while (span := outbox.take(0.0)) is not None:
        sizes.append(len(span.data))
        outbox.acknowledged()
    assert sizes == [SPAN_BYTES, 1, SPAN_BYTES * 2, 5]


def test_a_span_ends_with_the_event_that_a_note_belongs_to() -> None:
    outbox = Outbox()
    for event in (b"a", b"b", b"c", b"d"):
        outbox.put(event)
    sizes = []
    while (span := outbox.take(0.0, until=3)) is not None:
        sizes.append((span.n, span.data))
        outbox.acknowledged()
    assert sizes == [(3, b"abc"), (4, b"d")]


@pytest.mark.parametrize("seed", range(20))
def test_every_event_goes_out_once_in_order_whatever_comes_between(seed: int) -> None:
    draw = random.Random(seed)
    outbox, sent, stored, log = Outbox(5, 50), [], [], 5
    spans = []
    for step in range(300):
        match draw.randrange(4):
            case 0 | 1:
                event = b"%d;" % step
                assert outbox.put(event) == 6 + len(sent)
                sent.append(event)
            case 2:
                span = outbox.take(float(step))
                if span is None:
                    continue
                if span.first == log + 1:
                    log = span.n
                    stored.append(span)
                # The reply may get lost: then it is taken again.
                if draw.random() < 0.7:
                    outbox.acknowledged()
                    spans = stored
            case _:
                # A failover loses acknowledged spans.
                lose = draw.randrange(3)
                if lose and spans and outbox.due() is not None:
                    keep = [span for span in stored if span.n <= outbox.acked][:-lose]
                    back = [span for span in stored if span.n <= outbox.acked][len(keep) :]
                    stored, log = keep, keep[-1].n if keep else 5
                    outbox.resend(back)
    while (span := outbox.take(1000.0)) is not None:
        assert span.first == log + 1 or span.n <= log
        if span.first == log + 1:
            log = span.n
            stored.append(span)
        outbox.acknowledged()
    assert b"".join(span.data for span in stored) == b"".join(sent)
    assert (outbox.n, outbox.b, outbox.size) == (5 + len(sent), 50 + len(b"".join(sent)), 0)
