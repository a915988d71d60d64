"""Events that are handed on unread: what is recognised, and that nothing can be told from having read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resumable_stream._contract import Alarm, Head, ResumeProtocol, StreamState
from resumable_stream._core.ledger import COUNTING, NUMBERED, OPAQUE, PLAIN
from resumable_stream._core.machine import Machine
from resumable_stream._core.seams import Seams
from resumable_stream._core.settings import Settings
from resumable_stream._core.skimming import Skimmer
from resumable_stream._settings import Limits, Timeouts
from resumable_stream.framing import SSEDecoder
from resumable_stream.protocols import CursorProtocol, LastEventID, OpenAIResponses

ALARMED = Alarm(frozenset({"error", "end"}), frozenset({"[DONE]", '{"error', "ende — "}))


class Alarming(ResumeProtocol):
    alarm = ALARMED


def _own_id(event: Any) -> str | None:
    own_id: str | None = event.own_id
    return own_id


def skimmer(lane: int, number: int | None = None, protocol: ResumeProtocol | None = None) -> Skimmer:
    made = Skimmer(protocol or Alarming(), lambda: False)
    made.start(lane, number, Seams(list, _own_id, str, window=4096))
    return made


# --- what is recognised

LONG = b"data: a long enough text\n\n"


@pytest.mark.parametrize(
    ("lane", "chunk"),
    [
        (PLAIN, LONG),
        (PLAIN, b"event: token\ndata:a long enough text\n\n"),
        (OPAQUE, b"id: a-1\ndata: a long enough text\n\n"),
        (OPAQUE, b"event: e\nid: a-1\ndata: a long enough text\n\n"),
        (OPAQUE, b"event: e\ndata: a long enough text\nid:a-1\n\n"),
        (COUNTING, b"id: 8\ndata: a long enough text\n\n"),
        (PLAIN, "data: ünïcode is no matter\n\n".encode()),
    ],
)
def test_it_goes_unread(lane: int, chunk: bytes) -> None:
    made = skimmer(lane, 7)
    assert made.skim(chunk) is chunk
    assert made.held == [chunk]


@pytest.mark.parametrize(
    ("lane", "chunk"),
    [
        (PLAIN, b"data: [DONE]\n\n"),
        (PLAIN, b'data: {"error": "so"}\n\n'),
        (PLAIN, b"event: error\ndata: a long enough text\n\n"),
        (PLAIN, b"data: short\n\n"),  # a longer one might raise the alarm
        (PLAIN, b"data: a long enough text\ndata: and more\n\n"),
        (PLAIN, b"data: a long enough text\nevent: error\n\n"),
        (PLAIN, b"data: a long enough text\revent: error\n\n"),
        (PLAIN, b"data: a long enough text\r\n\r\n"),
        (PLAIN, b"data: a long enough text\nretry: 5\n\n"),
        (PLAIN, b": comment\n\n"),
        (PLAIN, b": comment\ndata: a long enough text\n\n"),
        (PLAIN, LONG + LONG),
        (PLAIN, b"id: 1\ndata: a long enough text\n\n"),
        (PLAIN, b"id:\ndata: a long enough text\n\n"),
        (PLAIN, b"event: \ndata: a long enough text\n\n"),  # a "message", which may be alarming
        (OPAQUE, b"id: \ndata: a long enough text\n\n"),  # makes the stream forget its place
        (OPAQUE, b"data: a long enough text\nid: \n\n"),
        (PLAIN, "data: ende — das war es\n\n".encode()),
        (OPAQUE, LONG),
        (OPAQUE, b"id: a\0b\ndata: a long enough text\n\n"),
        (OPAQUE, b"id: a\ndata: a long enough text\nid: b\n\n"),
        (COUNTING, LONG),
        (NUMBERED, LONG),
        (PLAIN, b"\xef\xbb\xbfdata: a long enough text\n\n"),
    ],
)
def test_it_has_to_be_read(lane: int, chunk: bytes) -> None:
    made = skimmer(lane, 7)
    assert made.skim(chunk) is None
    # And also behind one that did not.
    made = skimmer(lane, 6)
    before = b"id: 7\ndata: a long enough text\n\n" if lane in (OPAQUE, COUNTING) else LONG
    if lane != NUMBERED:
        assert made.skim(before)
        assert made.skim(chunk) is None
        assert made.held == [before]


def test_an_event_in_two_pieces_goes_out_whole() -> None:
    for cut in range(1, len(LONG)):
        made = skimmer(PLAIN)
        assert made.skim(LONG) is LONG
        assert made.skim(LONG[:cut]) == b""
        assert made.front == LONG[:cut]
        assert made.skim(LONG[cut:]) == LONG
        assert (made.held, made.front) == ([LONG, LONG], b"")


def test_one_in_three_pieces_is_read() -> None:
    made = skimmer(PLAIN)
    assert made.skim(LONG[:5]) == b""
    assert made.skim(LONG[5:9]) is None
    assert made.front == LONG[:5]


def test_what_is_kept_is_bounded() -> None:
    made = skimmer(PLAIN)
    assert sum(made.skim(LONG) is not None for _ in range(10_000)) < 1_000
    assert made.skim(b"data: " + b"x" * 60_000 + b"\n\n") is None


def test_the_next_number_is_known_where_the_protocol_knows_its_place() -> None:
    def event(number: int) -> bytes:
        return b'data: {"type":"delta","sequence_number":%d,"delta":"x"}\n\n' % number

    protocol = OpenAIResponses()
    made = skimmer(NUMBERED, 4, protocol)
    assert made.skim(event(5)) is None
    # The protocol learns it from an event that is read.
    protocol.place(SSEDecoder().feed(event(4)))
    protocol = CursorProtocol(read="sequence_number", send="query:after", sequence="contiguous")
    protocol.place(SSEDecoder().feed(event(4)))
    made = skimmer(NUMBERED, 4, protocol)
    assert made.skim(event(5)) is not None
    assert made.skim(event(7)) is None
    assert made.skim(event(6)) is not None


# --- nothing can be told from having read them


def machine(protocol: ResumeProtocol, *, verbatim: bool, window: int = 4096) -> Machine:
    made = Machine(
        state=StreamState("GET", "https://x.example/"),
        protocol=protocol,
        detect=lambda state, head: None,
        settings=Settings(
            timeouts=Timeouts(),
            limits=Limits(window=window),
            delay=lambda state: 0.0,
            jitter=lambda: 0.0,
            statuses=frozenset({500}),
            max_server_wait=60.0,
            verbatim=verbatim,
        ),
    )
    made.next(0.0)
    made.receive_head(Head(200, {"content-type": "text/event-stream"}, "https://x.example/"), 0.0, wall=0.0)
    made.next(0.0)
    return made


def feed(made: Machine, chunks: Sequence[bytes], *, skimming: bool) -> tuple[bytes, int]:
    """As a transport does. Returns: what went out, and how many events of it unread."""
    out, unread = bytearray(), 0
    found = None
    for chunk in chunks:
        if found is not None:
            whole = found.skim(chunk)
            if whole is not None:
                out += whole
                unread += bool(whole)
                continue
            made.settle()
        for event in made.receive_live(chunk):
            out += event.wire
        found = made.skimmer() if skimming and not made.due else None
        if made.due:
            break
    made.settle()
    return bytes(out), unread


def plain(number: int) -> bytes:
    return b"event: token\ndata: this is token %d\n\n" % number


def counted(number: int) -> bytes:
    return b"id: %d\nevent: token\ndata: this is token %d\n\n" % (number, number)


def opaque(number: int) -> bytes:
    return b"event: token\ndata: this is token %d\nid: x-%d\n\n" % (number, number)


def in_json(number: int) -> bytes:
    return f"data: {json.dumps({'type': 'token', 'n': number, 'text': 'x' * (number % 7)}, separators=(',', ':'))}\n\n".encode()


KINDS: dict[str, tuple[Callable[[int], bytes], Callable[[], ResumeProtocol]]] = {
    "plain": (plain, LastEventID),
    "counted": (counted, LastEventID),
    "opaque": (opaque, LastEventID),
    "in json": (in_json, lambda: CursorProtocol(read="n", send="query:after", sequence="contiguous")),
}
SPECIAL = st.sampled_from(
    [b": ping\n\n", b"retry: 5\n\n", b"data: two\ndata: lines\n\n", b"id: 7000\n\n", b"data: [DONE]\n\n", b"\n"]
)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_the_place_and_the_memory_are_the_same(kind: str, data: st.DataObject) -> None:
    event, protocol = KINDS[kind]
    window = data.draw(st.sampled_from([8, 64, 4096]))
    count = data.draw(st.integers(1, 200))
    events = [event(number) for number in range(1, count + 1)]
    for _ in range(data.draw(st.integers(0, 3))):
        events.insert(data.draw(st.integers(0, len(events))), data.draw(SPECIAL))
    body = b"".join(events)
    sizes = data.draw(st.lists(st.integers(1, 120), max_size=20))
    # As they come from a live server, but for a few that are cut in two.
    chunks = list(events)
    for size in sizes:
        index = size % len(chunks)
        chunk = chunks[index]
        if len(chunk) > 1:
            cut = 1 + size % (len(chunk) - 1)
            chunks[index : index + 1] = [chunk[:cut], chunk[cut:]]
    assert b"".join(chunks) == body
    one, two = machine(protocol(), verbatim=True, window=window), machine(protocol(), verbatim=True, window=window)
    read, _ = feed(one, chunks, skimming=False)
    skimmed, _ = feed(two, chunks, skimming=True)
    assert skimmed == read
    assert one.due == two.due
    assert one.checkpoint(10**6) == two.checkpoint(10**6)
    assert one.stats == two.stats
    # What is remembered for the overlap.
    memories = [made._ledger._examiner.memory for made in (one, two)]  # type: ignore[union-attr]
    for memory in memories:
        list(memory.newest_first())
    seen = [[(item.offset, item.own_id, item.sequence, item.data) for item in memory.items] for memory in memories]
    # Unread ones are kept by whole runs, so there may be more of them; of those within the window none is missing.
    assert seen[1][-min(window, len(seen[0])) :] == seen[0][-min(window, len(seen[0])) :]


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_calm_stream_goes_unread(kind: str) -> None:
    event, protocol = KINDS[kind]
    made = machine(protocol(), verbatim=True)
    chunks = [event(number) for number in range(1, 20_001)]
    out, unread = feed(made, chunks, skimming=True)
    assert out == b"".join(chunks)
    assert unread > 19_900
    place = made.checkpoint(10**6)
    assert place.offset == 20_000
    assert place.cursor == {"plain": None, "counted": "20000", "opaque": "x-20000", "in json": "20000"}[kind]


def test_a_long_id_is_read_since_it_is_remembered_by_its_digest() -> None:
    def event(own_id: str) -> bytes:
        return b"event: token\ndata: this is the token\nid: %s\n\n" % own_id.encode()

    long = event("x" * 300)
    chunks = [*(event(f"x-{n}") for n in range(90)), long, *(event(f"y-{n}") for n in range(90))]
    made = machine(LastEventID(), verbatim=True)
    out, unread = feed(made, chunks, skimming=True)
    assert out == b"".join(chunks)
    assert unread > 100
    assert not made.receive_live(long), "it came before"
    assert made.stats.duplicates == 1


def test_without_bytes_to_hand_on_every_event_is_read() -> None:
    made = machine(LastEventID(), verbatim=False)
    made.receive_live(b"".join(counted(number) for number in range(1, 30)))
    made.receive_live(counted(30))
    assert made.skimmer() is None


def test_many_short_runs_stay_bounded() -> None:
    made = machine(LastEventID(), verbatim=True)
    chunks: list[bytes] = []
    for number in range(1, 30_000):
        chunks.append(b"id: %d\ndata: %s\n\n" % (number, b"x" * 600))
        if not number % 100:
            chunks.append(b": ping\n\n")
    feed(made, chunks, skimming=True)
    memory: Any = made._ledger._examiner.memory  # type: ignore[union-attr]
    assert sum(run.size for run in memory._unread) < 10 * 1024 * 1024
    assert len(memory.items) <= 4096
