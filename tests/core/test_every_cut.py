"""
Cut everywhere (guarantee G1): a stream is cut, in each way, in chunks of several sizes, and arrives whole.

    the short transcript      each third byte × each size of chunk for a reset; around each event for the other kinds of cut
    the long one              likewise, each seventh byte; the sizes take turns
    each way of resuming      around each event; the kinds of cut and the sizes take turns

`make soak` cuts at each byte in each way.

In chunks of 1 or 7 bytes only the last blocks before the cut are sent that way: what came long before has been read,
and a run costs what it reads. One test below sends everything in small chunks.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from resumable_stream._contract import ResumeProtocol
from resumable_stream._events import Outcome
from resumable_stream.protocols import ByteRange, CursorProtocol, LastEventID, ReplayFromZero

from ..cutting import Where, in_turn
from .simulation import CUTS, Block, EventServer, Reply, Sent, Stream, cut_body, ev, rows_of, run, transcript

# --- what is streamed -----------------------------------------------------------------------------------------------

OPENING = (
    ev(None, "p"),  # a block without data moves the cursor (MCP's priming event)
    ev("a", "1"),
    b": ping\n\n",
    ev("b"),  # no id of its own: known by its order behind the cursor
    ev("b"),  # ... and one like it
    b"id: 2\r\ndata: c\r\n\r\n",
    b"id: 3\ndata: \xc3\xa9\xf0\x9f\x98\x80\ndata: two\n\n",
)
SHORT = transcript(*OPENING, ev(None, "4"), ev("d"), ev("e", "5"), b"retry: 1\n\n", ev("[DONE]"))
LONG = transcript(
    *OPENING,
    ev("x", "4", "delta"),
    b"data\n\n",  # a field without a colon: empty data
    b"retry: 20\n\n",
    b"event: d\r\ndata: no id\r\n\r\n",
    *(ev(f"t{number}", str(number)) for number in range(5, 12)),
    *(ev("same", str(number)) for number in range(12, 15)),
    ev("same"),
    ev("same"),
    ev(None, "16"),
    ev(None, "17"),
    ev("behind", None),
    b'data: {\r\ndata:  "k": 1\r\ndata: }\r\n\r\n',
    b": \xe2\x98\x83\n\n",
    b"id: 20\r\ndata: cr\r\n\r\n",
    *(ev(f"u{number}", str(number)) for number in range(21, 27)),
    b"foo: bar\ndata: unknown field\nid: 27\n\n",
    b"data:no space\nid:28\n\n",
    *(ev(f"{number}", f"op-{number}") for number in range(5)),
    ev("\u2028 is no line end", "z1"),
    ev("y", "z2"),
    ev("z"),
    ev("[DONE]", "z3"),
)
assert len([block for block in LONG if block.row]) >= 40


def end_of(blocks: list[Block]) -> int:
    return sum(len(block.raw) for block in blocks)


def raw(blocks: list[Block]) -> list[bytes]:
    return [block.raw for block in blocks]


def positions(blocks: list[Block], cut: str, where: Where, step: int) -> list[int]:
    """
    A reset comes every few bytes, too, and just behind each event.

    The other kinds differ from it only in what they say of the event that they cut.
    """
    found = where(raw(blocks))
    if cut != "rst":
        return found
    ends = itertools.accumulate(map(len, raw(blocks)), initial=0)
    return sorted({*found, *range(0, end_of(blocks), step), *(end + 1 for end in ends if end < end_of(blocks))})


# --- plain SSE, in full ---------------------------------------------------------------------------------------------


CHUNKS = (None, 7, 1)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("chunk", CHUNKS, ids=["whole", "sevens", "bytes"])
def test_every_event_arrives_once_and_in_order_wherever_the_stream_is_cut(chunk: int | None, cut: str, where: Where) -> None:
    expected = rows_of(SHORT)
    for position in positions(SHORT, cut, where, 3):
        result = run(Stream(EventServer(SHORT, cuts=[(position, cut)], chunk=chunk, rest=None)))
        assert (result.rows, result.outcome, result.error) == (expected, Outcome.COMPLETED, None), f"{cut} after byte {position}"


@pytest.mark.parametrize("cut", CUTS)
def test_a_long_stream_with_every_kind_of_block_survives_every_cut(cut: str, where: Where) -> None:
    expected = rows_of(LONG)
    turn = CUTS.index(cut)
    for position in positions(LONG, cut, where, 7):
        server = EventServer(LONG, cuts=[(position, cut)], chunk=CHUNKS[(position + turn) % 3], rest=None, tail=42)
        result = run(Stream(server))
        assert (result.rows, result.outcome, result.error) == (expected, Outcome.COMPLETED, None), f"{cut} after byte {position}"


def test_the_size_of_the_chunks_never_matters_behind_a_cut() -> None:
    expected = rows_of(LONG)
    for chunk in (1, 2, 7, (1, 30, 2), 64):
        for position in (0, 16, 150, end_of(LONG) // 2, end_of(LONG) - 9):
            result = run(Stream(EventServer(LONG, cuts=[(position, "rst")], chunk=chunk)))
            assert (result.rows, result.outcome) == (expected, Outcome.COMPLETED), f"chunks of {chunk}, cut after byte {position}"


# --- the same for each way of resuming ------------------------------------------------------------------------------

# The price of a case is the square of its bytes: the least that has a block of each kind.
BRIEF = transcript(ev(None, "p"), ev("a", "1"), ev("b"), ev("b"), b": x\n\n", ev(None, "4"), ev("é"), ev("d", "5"), ev("[DONE]"))
SMALL = BRIEF[:-1]
NUMBERS = transcript(*(ev(f'{{"seq": {number}}}') for number in range(1, 5)), ev('{"t": "é"}'), ev('{"seq": 5}'), ev("[DONE]"))


def by_number(read: Callable[[Sent], Any]) -> Callable[[Sent], str | None]:
    return lambda sent: None if read(sent) is None else str(read(sent))


class NumberServer(EventServer):
    """The cursor is the number in the JSON, not the SSE id."""

    def __init__(self, blocks: list[Block], **options: Any) -> None:
        super().__init__(blocks, **options)
        self.behind = {
            str(json.loads(block.row[1])["seq"]): index + 1
            for index, block in enumerate(blocks)
            if block.row and '"seq"' in block.row[1]
        }


Case = tuple[Callable[..., Stream], list[Block], Outcome]


def get(protocol: ResumeProtocol, blocks: list[Block], outcome: Outcome = Outcome.COMPLETED, **server: Any) -> Case:
    kind = server.pop("kind", EventServer)
    return lambda **faults: Stream(kind(blocks, **server, **faults), protocol=protocol), blocks, outcome


def post(protocol: ResumeProtocol, blocks: list[Block], kind: type[EventServer] = EventServer, **server: Any) -> Case:
    def make(**faults: Any) -> Stream:
        return Stream(kind(blocks, **server, **faults), protocol=protocol, method="POST", json={"prompt": "p"})

    return make, blocks, Outcome.COMPLETED


CASES: dict[str, Case] = {
    "no marker": get(LastEventID(), SMALL, Outcome.ENDED),
    "no marker, 204 at the end": get(LastEventID(), SMALL, Outcome.ENDED, empty="204"),
    "marker named": get(LastEventID(end="[DONE]"), BRIEF),
    "marker found by a callable": get(LastEventID(end=lambda event: event.data == "[DONE]"), BRIEF),
    "inclusive server": get(
        LastEventID(end="[DONE]"), transcript(*(ev(f"{n}", f"i{n}") for n in range(6)), ev("[DONE]", "i6")), replay="inclusive"
    ),
    "server resends three": get(
        LastEventID(end="[DONE]"), transcript(*(ev("same", f"i{n}") for n in range(6)), ev("[DONE]", "i6")), replay=3
    ),
    "server ignores the cursor": get(LastEventID(end="[DONE]"), BRIEF, replay="zero"),
    "sequence contiguous": get(
        LastEventID(sequence="contiguous"), transcript(*(ev(f"{n}", f"{n}") for n in range(1, 8)), ev("[DONE]"))
    ),
    "cursor in a parameter": get(LastEventID(cursor_param="after"), BRIEF, cursor=lambda sent: sent.params.get("after")),
    "resume elsewhere": get(LastEventID(resume="/again"), BRIEF),
    "POST with Location": post(LastEventID(end="[DONE]"), BRIEF, head={"location": "/runs/7"}),
    "POST with Content-Location": post(LastEventID(), BRIEF, head={"content-location": "runs/7"}),
    "POST with resume=": post(LastEventID(resume=lambda state: "/runs/8"), BRIEF),
    "number in the JSON": get(
        CursorProtocol(read="seq", send="query:after", end="[DONE]", sequence="contiguous", first_sequence=1),
        NUMBERS,
        kind=NumberServer,
        cursor=lambda sent: sent.params.get("after"),
    ),
    "number in the JSON, inclusive": get(
        CursorProtocol(read="seq", send="query:from", end="[DONE]", sequence="contiguous", inclusive=True),
        NUMBERS,
        kind=NumberServer,
        cursor=lambda sent: str(int(sent.params["from"]) - 1) if int(sent.params.get("from", 1)) > 1 else None,
    ),
    "number in the body of a POST": post(
        CursorProtocol(read="seq", send="body:after", method="POST", end="[DONE]", sequence="contiguous"),
        NUMBERS,
        kind=NumberServer,
        cursor=by_number(lambda sent: sent.json.get("after")),
    ),
    "opaque cursor in a header": get(
        CursorProtocol(read="id", send="header:X-Cursor", end="[DONE]"),
        transcript(ev("a", "k1"), ev("b"), ev("b"), ev("c", "k2"), ev("d", "k3"), ev("e"), ev("[DONE]")),
        cursor=lambda sent: sent.headers.get("x-cursor"),
    ),
    "replay from zero": get(ReplayFromZero(end="[DONE]"), BRIEF, replay="zero"),
    "replay from zero, ids and repeats": get(
        ReplayFromZero(end="[DONE]"), transcript(*(ev("a") for _ in range(4)), ev("b"), ev("[DONE]")), replay="zero"
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_way_of_resuming_survives_every_cut(name: str, where: Where) -> None:
    make, blocks, outcome = CASES[name]
    expected = rows_of(blocks)
    for index, position in enumerate(where(raw(blocks))):
        for turn, cut in enumerate(CUTS):
            if in_turn(where, index, turn):
                result = run(make(cuts=[(position, cut)], chunk=CHUNKS[(position + turn) % 3], rest=None, tail=21))
                assert (result.rows, result.outcome, result.error) == (expected, outcome, None), f"{cut} after byte {position}"


def test_contiguous_numbers_are_in_the_events_whatever_is_cut(where: Where) -> None:
    make, blocks, _ = CASES["number in the JSON"]
    for position in where(raw(blocks)):
        result = run(make(cuts=[(position, "rst")]))
        assert [event.sequence for event in result.events] == [*range(1, 5), None, 5, None]
        assert [event.offset for event in result.events] == list(range(7))


def test_the_body_of_a_post_is_sent_with_the_cursor_and_the_first_request_never_twice(where: Where) -> None:
    make, blocks, _ = CASES["POST with Location"]
    for position in where(raw(blocks)):
        result = run(make(cuts=[(position, "rst")]))
        methods = [sent.method for sent in result.stream.sent]
        assert methods == ["POST"] + ["GET"] * (len(methods) - 1)
        assert all(sent.path == "/runs/7" and sent.json is None for sent in result.stream.sent[1:])


# --- without ids ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", CUTS)
def test_a_stream_without_ids_never_pretends_to_be_whole(cut: str) -> None:
    """Rule 7e: what was delivered is a prefix; only a clean close between events looks like an end."""
    blocks = transcript(*(ev(f"{number}") for number in range(6)))
    expected = rows_of(blocks)
    for position in range(end_of(blocks)):
        result = run(Stream(EventServer(blocks, cuts=[(position, cut)])))
        body = b"".join(block.raw for block in blocks)[:position]
        delivered = body.count(b"\n\n")
        if delivered == 0:
            assert (result.rows, result.outcome) == (expected, Outcome.ENDED), position
        elif cut == "close" and body.endswith(b"\n\n"):
            assert (result.rows, result.outcome) == (expected[:delivered], Outcome.ENDED), position
        else:
            assert result.rows == expected[:delivered]
            assert result.error is not None, position


# --- bytes ----------------------------------------------------------------------------------------------------------


class ByteServer:
    """A document that honours ranges, or answers with all of it."""

    def __init__(
        self,
        body: bytes,
        *,
        cuts: list[Any],
        chunk: int | None = None,
        ranges: bool = True,
        length: bool = True,
        etag: str = '"v1"',
    ) -> None:
        self.body, self.cuts, self.chunk, self.ranges, self.length, self.etag = body, cuts, chunk, ranges, length, etag
        self.answers = 0

    def __call__(self, sent: Sent) -> Reply:
        cut = self.cuts[self.answers] if self.answers < len(self.cuts) else None
        self.answers += 1
        total = len(self.body)
        headers = {"accept-ranges": "bytes"} | ({"etag": self.etag} if self.etag else {})
        asked = sent.headers.get("range") if self.ranges else None
        if asked is None:
            if self.length:
                headers["content-length"] = str(total)
            return Reply(cut_body(self.body, cut, self.chunk), headers=headers, type="application/octet-stream")
        assert sent.headers.get("if-range", self.etag) == self.etag
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= total:
            return Reply(status=416, headers={"content-range": f"bytes */{total}"}, type="")
        headers["content-range"] = f"bytes {start}-{total - 1}/{total}"
        return Reply(cut_body(self.body[start:], cut, self.chunk), status=206, headers=headers, type="application/octet-stream")


@pytest.mark.parametrize("chunk", [None, 7, 1], ids=["whole", "sevens", "bytes"])
@pytest.mark.parametrize(
    ("ranges", "length"), [(True, True), (True, False), (False, True)], ids=["ranges", "unknown length", "ranges ignored"]
)
def test_the_bytes_are_equal_wherever_the_body_is_cut(ranges: bool, length: bool, chunk: int | None, where: Where) -> None:
    body = bytes(range(256))[:90]
    sampled = where([body[at : at + 9] for at in range(0, 90, 9)])
    for turn, cut in enumerate(("rst", "fin", "close", "silence")):
        for index, position in enumerate(sampled):
            if not in_turn(where, index, turn):
                continue
            server = ByteServer(body, cuts=[(position, cut)], chunk=chunk, ranges=ranges, length=length)
            result = run(Stream(server, protocol=ByteRange()))
            if not length and cut == "close" and position == 0:
                assert result.error is None
                assert b"".join(result.data) == body
                continue
            assert (b"".join(result.data), result.error) == (body, None), f"{cut} after byte {position}"
            assert result.outcome is Outcome.COMPLETED, f"{cut} after byte {position}"
            at = 0
            for piece in result.events:
                assert piece.sequence == at
                at += len(piece.data)
                assert piece.cursor == str(at)
