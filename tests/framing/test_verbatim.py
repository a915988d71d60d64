"""Items that know their bytes: nothing is lost, doubled or cut in two between them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resumable_stream._events import StreamEvent
from resumable_stream.framing import NDJSONDecoder, SSEDecoder, VerbatimDecoder, encoded

BLOCKS = st.sampled_from(
    [
        "data: x\n\n",
        ": ping\n\n",
        "id: 7\n\n",
        "event: e\nid: 1\ndata: a\ndata: b\n\n",
        "retry: 10\n\n",
        "\n",
        "data: é☔\n\n",
        "data\n\n",
    ]
)
ENDS = st.sampled_from(["\n", "\r\n", "\r"])


def sse(**options: object) -> VerbatimDecoder:
    return VerbatimDecoder(SSEDecoder(), framing="sse", **options)  # type: ignore[arg-type]


def feed(decoder: VerbatimDecoder | SSEDecoder, body: bytes, sizes: list[int]) -> list[StreamEvent]:
    items: list[StreamEvent] = []
    at = turn = 0
    while at < len(body):
        size = sizes[turn % len(sizes)]
        items += decoder.feed(body[at : at + size])
        at += size
        turn += 1
    return items


@given(st.lists(BLOCKS, max_size=12), ENDS, st.booleans(), st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_the_bytes_of_the_items_are_those_of_the_body(blocks: list[str], end: str, bom: bool, sizes: list[int]) -> None:
    body = ("\ufeff" * bom + "".join(blocks).replace("\n", end)).encode()
    expected = SSEDecoder().feed(body)
    decoder = sse()
    items = feed(decoder, body, sizes)
    assert items == expected
    wire = b"".join(item.wire for item in items)
    assert (body + b"\n").startswith(wire)
    # What no item has is no event; of a CRLF that was cut in two, the LF is handed out early.
    assert SSEDecoder().feed(body[len(wire) :]) == []
    # Each item's bytes are an event by themselves, and say where they end.
    for item in items:
        assert [event.data for event in SSEDecoder().feed(item.wire)] == [item.data]
    ends = [item.ends for item in items]
    assert ends == sorted(set(ends))  # type: ignore[type-var]
    assert not ends or len(wire) - 1 <= ends[-1] <= len(wire)  # type: ignore[operator]


@given(st.lists(BLOCKS, max_size=12), ENDS, st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_silent_ids_stand_where_they_stood(blocks: list[str], end: str, sizes: list[int]) -> None:
    body = "".join(blocks).replace("\n", end).encode()

    def places(decoder: SSEDecoder | VerbatimDecoder) -> list[tuple[int, str]]:
        found, count, at, turn = [], 0, 0, 0
        while at < len(body):
            size = sizes[turn % len(sizes)]
            items = decoder.feed(body[at : at + size])
            found += [(count + before, own_id) for before, own_id in decoder.silent]
            decoder.silent = []
            count += len(items)
            at += size
            turn += 1
        return found

    assert places(sse()) == places(SSEDecoder())


def test_an_id_without_an_event_is_carried_to_the_next_connection() -> None:
    first = sse()
    assert [item.wire for item in first.feed(b"data: a\n\n: ping\n\nid: 7\n\n: pong\n\ndata: ha")] == [b"data: a\n\n"]
    # It has moved the cursor, so it does not come again; the half event and the comment behind it do.
    assert first.carry() == b": ping\n\nid: 7\n\n"
    second = sse(carried=first.carry(), spliced=True)
    assert [item.wire for item in second.feed(b"\xef\xbb\xbf: pong\n\ndata: half\n\n")] == [b": pong\n\ndata: half\n\n"]
    # The first that comes need not be the first that is delivered.
    assert second.take_carried() == b": ping\n\nid: 7\n\n"
    assert second.take_carried() == b""


def test_a_mark_in_front_of_a_later_connection_is_dropped() -> None:
    assert [item.wire for item in sse(spliced=True).feed(b"\xef\xbb\xbfdata: a\n\ndata: b\n\n")] == [
        b"data: a\n\n",
        b"data: b\n\n",
    ]


def test_a_blank_line_is_handed_out_whole() -> None:
    decoder = sse()
    [item] = decoder.feed(b"data: a\r\n\r")
    assert (item.wire, item.ends) == (b"data: a\r\n\r\n", 10)
    [item] = decoder.feed(b"\ndata: b\r\n\r\n")
    assert (item.wire, item.ends) == (b"data: b\r\n\r\n", 22)


def test_comments_without_an_event_do_not_pile_up() -> None:
    decoder = sse()
    for _ in range(100_000):
        decoder.feed(b": keep-alive\n\n")
    [item] = decoder.feed(b"data: x\n\n")
    assert len(item.wire) < 70_000
    assert SSEDecoder().feed(item.wire)[0].data == "x"


def test_a_long_event_in_small_chunks_costs_linear_time() -> None:
    decoder = sse()
    data = b"x" * 1000
    decoder.feed(b"data: ")
    for _ in range(2000):
        assert decoder.feed(data) == []
    [item] = decoder.feed(b"\n\n")
    assert len(item.wire) == 2_000_008


@given(st.lists(st.sampled_from(['{"a":1}\n', "\n", '"é"\r\n', "5\n"]), max_size=8), st.lists(st.integers(1, 9), min_size=1))
def test_json_lines(lines: list[str], sizes: list[int]) -> None:
    body = "".join(lines).encode() + b'{"last":1}'
    decoder = VerbatimDecoder(NDJSONDecoder(), framing="ndjson")
    items = feed(decoder, body, sizes)
    items += decoder.eof()
    assert [item.data for item in items] == [text.strip() for text in lines if text.strip()] + ['{"last":1}']
    assert b"".join(item.wire for item in items) == body


@pytest.mark.parametrize(
    ("event", "wire"),
    [
        (StreamEvent(data="a"), b"data: a\n\n"),
        (StreamEvent("e", "a\nb", "9", None, "7"), b"id: 7\nevent: e\ndata: a\ndata: b\n\n"),
        (StreamEvent(data=""), b"data: \n\n"),
    ],
)
def test_what_was_never_on_a_wire_is_written_as_the_standard_reads_it(event: StreamEvent, wire: bytes) -> None:
    assert encoded(event, "sse") == wire
    [read] = SSEDecoder().feed(wire)
    assert (read.event, read.data, read.own_id) == (event.event, event.data, event.own_id)


def test_a_line_of_json_is_written_as_one() -> None:
    assert encoded(StreamEvent(data='{"a":1}'), "ndjson") == b'{"a":1}\n'


@pytest.mark.parametrize("size", [1000, 7, 70_000, 200_000])
def test_what_is_too_long_between_two_events_leaves_no_piece_behind(size: int) -> None:
    long = [
        b": " + b"data: never sent as an event\n: ".replace(b"\n", b" ") * 5000 + b"\n\n",
        b": line\n" * 20_000 + b"\n",
        b"event: big\nunknown: " + b"x" * 150_000 + b"\n\n",
        b"unknown: " + b"x" * 150_000 + b"\nid: 99\n\n",
    ]
    for block in long:
        body = b"data: one\n\n" + block * 2 + b"data: two\n\n"
        decoder = sse()
        wires = b"".join(item.wire for item in feed(decoder, body, [size]))
        reader, plain = SSEDecoder(), SSEDecoder()
        assert reader.feed(wires) == plain.feed(body)
        assert reader.last_event_id == plain.last_event_id
        assert len(wires) < 150_000


def test_comments_in_one_endless_block_do_not_pile_up() -> None:
    decoder = sse()
    for _ in range(50_000):
        assert decoder.feed(b": keep-alive, and no blank line\n") == []
    assert len(decoder._held) < 70_000
    [item] = decoder.feed(b"data: x\n\n")
    assert [event.data for event in SSEDecoder().feed(item.wire)] == ["x"]


@pytest.mark.parametrize("start", ["", "data: w\n\n", ": ping\r\r"])
@pytest.mark.parametrize("tail", ["", "\n", "\r", "\r\n"])
def test_an_event_without_its_blank_line_is_handed_out_as_a_whole_block(start: str, tail: str) -> None:
    """After a CR, one LF would only end the line: for whoever reads the bytes the event would still be open."""
    decoder = sse()
    before = decoder.feed(f"{start}id: 1\ndata: x{tail}".encode())
    items = before + decoder.unfinished()
    reader = SSEDecoder()
    assert [(event.id, event.data) for event in reader.feed(b"".join(item.wire or b"" for item in items))] == [
        (event.id, event.data) for event in items
    ]
    assert not reader.partial and items[-1].data == "x"


@pytest.mark.parametrize(("framing", "beat"), [("sse", b":\n\n"), ("ndjson", b"\n")])
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_heartbeat_is_nobodys_bytes(framing: str, beat: bytes, size: int) -> None:
    """What we asked the server for is not what our reader asked for; its own comments stay."""
    if framing == "sse":
        blocks = [b": of the provider\n\n", b"data: a\n\n", b"::\n\n", b"data: b\n\n", b"id: 7\n\n", b"data: c\n\n"]
    else:
        blocks = [b'{"a":1}\n', b'{"b":1}\n', b"7\n"]
    body = beat + beat.join(blocks)
    decoder: VerbatimDecoder = VerbatimDecoder(
        SSEDecoder() if framing == "sse" else NDJSONDecoder(),
        framing=framing,  # type: ignore[arg-type]
        beat=beat,
    )
    items = [item for at in range(0, len(body), size) for item in decoder.feed(body[at : at + size])]
    assert b"".join(item.wire or b"" for item in items) == b"".join(blocks)
    assert len(items) == 3


@pytest.mark.parametrize(("end", "led"), [(b"", b"\n"), (b"\n", b"")])
def test_what_follows_a_line_without_its_end_begins_another_line(end: bytes, led: bytes) -> None:
    first = VerbatimDecoder(NDJSONDecoder(), framing="ndjson")
    items = [*first.feed(b'{"a":1}' + end), *first.eof()]
    again = VerbatimDecoder(NDJSONDecoder(), framing="ndjson", carried=first.carry(), spliced=True)
    more = again.feed(b'{"b":1}\n')
    wire = b"".join(item.wire for item in items) + again.take_carried() + b"".join(item.wire for item in more)
    assert (first.carry(), wire) == (led, b'{"a":1}\n{"b":1}\n')
