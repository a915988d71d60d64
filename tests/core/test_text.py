"""Events as text: what `iter_text()`, `iter_deltas()` and `read_text()` are made of."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resumable_stream._contract import ResumeProtocol
from resumable_stream._errors import EventTooLarge, ProtocolViolation, StreamReset
from resumable_stream._events import Chunk, Delta, StreamEvent, TextReset
from resumable_stream._text import Mode, TextReader
from resumable_stream.protocols import ByteRange, CursorProtocol, LastEventID


def reader(
    protocol: ResumeProtocol | None = None, *, mode: Mode = "text", resets: bool = False, limit: int = 1000, strict: bool = False
) -> TextReader:
    return TextReader(lambda: protocol or LastEventID(), mode=mode, resets=resets, limit=limit, strict=strict)


def event(data: str, offset: int = 0, *, reset: bool = False) -> StreamEvent:
    made = StreamEvent(data=data)
    made.offset = offset
    if reset:
        made.reset = True
    return made


class Parts(LastEventID):
    """Data like `text:a|reasoning:b|tool:c`."""

    def deltas(self, event: Any) -> Iterable[Delta]:
        for index, part in enumerate(filter(None, event.data.split("|"))):
            kind, _, text = part.partition(":")
            yield Delta(kind, text, index)


def test_text_is_the_data_of_plain_events() -> None:
    read = reader()
    assert [list(read.read(event(data, offset))) for offset, data in enumerate(["Hel", "lo", "", " world\n"])] == [
        ["Hel"], ["lo"], [], [" world\n"]
    ]  # fmt: skip
    assert list(read.finish()) == []
    assert read.so_far() == "Hello world\n"


def test_text_leaves_out_what_a_person_does_not_read() -> None:
    read = reader(Parts())
    assert list(read.read(event("reasoning:hm|text:A|tool:{}|text:B"))) == ["A", "B"]
    assert list(read.read(event("reasoning:hm", 1))) == []
    assert read.so_far() == "AB"


def test_deltas_are_all_of_it() -> None:
    read = reader(Parts(), mode="deltas")
    assert list(read.read(event("reasoning:hm|text:A|tool:{}"))) == [
        Delta("reasoning", "hm"),
        Delta("text", "A", 1),
        Delta("tool", "{}", 2),
    ]
    assert read.so_far() == "A"


def test_a_path_names_the_text_in_json() -> None:
    protocol = CursorProtocol(read="seq", send="query:after", text="choices.delta", end="[DONE]")
    read = reader(protocol)
    data = [
        '{"choices": {"delta": "a"}}',
        '{"choices": {"delta": ""}}',
        '{"choices": {"delta": null}}',
        "{}",
        "[]",
        "",
        "[DONE]",
    ]
    assert [list(read.read(event(text))) for text in data] == [["a"], [], [], [], [], [], []]


@pytest.mark.parametrize("data", ["no json", '{"choices": {"delta": "a', '{"a": 1}\n{"a": 2}', "[DONE", "x" * 200])
def test_an_event_that_is_not_json_is_an_error_where_a_path_names_the_text(data: str) -> None:
    """Its text was lost on the way: a half that is read as nothing makes a whole answer of the rest."""
    protocol = CursorProtocol(read="seq", send="query:after", text="choices.delta", end="[DONE]")
    with pytest.raises(ProtocolViolation, match="as the data of event 7") as caught:
        reader(protocol).read(event(data, 7))
    assert (caught.value.offset, caught.value.excerpt[:79]) == (7, data[:79])
    assert len(caught.value.excerpt) <= 80


def test_what_keeps_a_connection_alive_need_not_be_json() -> None:
    for protocol in (LastEventID(text="delta"), LastEventID(text="delta", end="over"), LastEventID(text=lambda event: None)):
        read = reader(protocol)
        for name in ("ping", "heartbeat", "keep-alive"):
            assert list(read.read(StreamEvent(name, "now"))) == []
    assert list(reader(LastEventID(text="delta", end="over")).read(event("over"))) == []
    assert list(reader(LastEventID(text=lambda event: None)).read(event("no json"))) == []


# --- resets ---------------------------------------------------------------------------------------------------------


def test_a_reset_raises_where_it_cannot_be_said() -> None:
    read = reader()
    read.read(event("a", 0))
    with pytest.raises(StreamReset) as caught:
        read.read(event("b", 0, reset=True))
    assert caught.value.offset == 0
    assert read.so_far() == "a"


def test_a_reset_is_told_in_the_stream_on_request() -> None:
    read = reader(resets=True)
    for offset, data in enumerate("abc"):
        read.read(event(data, offset))
    assert list(read.read(event("X", 0, reset=True))) == [TextReset(0), "X"]
    assert read.so_far() == "X"


def test_a_reset_keeps_the_text_before_its_offset() -> None:
    read = reader(resets=True)
    for offset, data in enumerate("abcd"):
        read.read(event(data, offset))
    assert list(read.read(event("X", 2, reset=True))) == [TextReset(2), "X"]
    assert read.so_far() == "abX"


def test_a_reset_of_an_event_without_text_still_counts() -> None:
    read = reader(Parts(), resets=True)
    read.read(event("text:a", 0))
    assert list(read.read(event("tool:{}", 0, reset=True))) == [TextReset(0)]
    assert read.so_far() == ""


def test_deltas_cannot_say_it_either() -> None:
    read = reader(Parts(), mode="deltas")
    with pytest.raises(StreamReset):
        read.read(event("text:a", 3, reset=True))


# --- steps that are taken back --------------------------------------------------------------------------------------


class Steps(Parts):
    """`begin` begins a step, `void` takes it back."""

    steps = True

    def step(self, event: Any) -> Any:
        return event.data if event.data in ("begin", "void") else None

    def deltas(self, event: Any) -> Iterable[Delta]:
        return () if self.step(event) else super().deltas(event)


def told(read: TextReader, *data: str, offset: int = 0) -> list[Any]:
    return [each for at, text in enumerate(data, offset) for each in read.read(event(text, at))]


def test_a_step_that_is_taken_back_leaves_the_text_before_it() -> None:
    read = reader(Steps(), resets=True)
    data = ["begin", "text:a", "begin", "void", "text:b", "reasoning:c", "void", "text:d"]
    assert told(read, *data) == ["a", "b", TextReset(2), "d"]
    assert read.so_far() == "ad"


def test_a_step_of_which_nothing_was_told_is_taken_back_in_silence() -> None:
    assert told(reader(Steps()), "text:a", "begin", "void", "reasoning:b", "void", "text:c") == ["a", "c"]
    with pytest.raises(StreamReset) as caught:
        told(reader(Steps(), mode="deltas"), "text:a", "begin", "reasoning:b", "void")
    assert caught.value.offset == 1


def test_it_is_told_once() -> None:
    read = reader(Steps(), resets=True)
    assert told(read, "text:a", "void", "void", "text:b", "void") == ["a", TextReset(0), "b", TextReset(0)]
    assert read.so_far() == ""


def test_text_beyond_the_limit_counts_too() -> None:
    with pytest.raises(StreamReset):
        told(reader(Steps(), limit=1), "text:aa", "void")


def test_who_comes_in_the_middle_of_a_step_is_told_where_it_began() -> None:
    """Another reader may have told some of it; finished steps stand."""
    data = ["void", "void", "begin", "text:a", "void"]
    for began, offset in ((3, 3), (0, 0), (None, 5)):
        read = TextReader(Steps, mode="text", resets=True, limit=1000, strict=False, step_at=lambda at, began=began: began)  # type: ignore[misc]
        assert told(read, *data, offset=5) == [TextReset(offset), "a", TextReset(7)]


# --- limits ---------------------------------------------------------------------------------------------------------


def test_text_beyond_the_limit_is_not_remembered_but_delivered() -> None:
    read = reader(limit=5)
    assert [list(read.read(event("abc", offset))) for offset in range(4)] == [["abc"]] * 4
    assert read.so_far() == "abc"


def test_text_that_must_be_held_raises_beyond_the_limit() -> None:
    read = reader(limit=5, strict=True)
    read.read(event("abcde"))
    with pytest.raises(EventTooLarge) as caught:
        read.read(event("f", 1))
    assert caught.value.limit == 5
    assert read.so_far() == "abcde"


def test_the_limit_is_bytes() -> None:
    """`Limits.text_bytes`: sizes end in `_bytes`."""
    read = reader(limit=4, strict=True)
    read.read(event("éé"))
    with pytest.raises(EventTooLarge):
        read.read(event("x", 1))


def test_a_reset_gives_the_room_back() -> None:
    read = reader(limit=5, resets=True, strict=True)
    read.read(event("abcde"))
    read.read(event("vwxyz", 0, reset=True))
    assert read.so_far() == "vwxyz"


# --- bytes ----------------------------------------------------------------------------------------------------------


def chunks_of(data: bytes, cuts: list[int]) -> list[Chunk]:
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    made = []
    for offset, (start, end) in enumerate(pairwise(edges)):
        if start < end:
            chunk = Chunk(data[start:end], start)
            chunk.offset = offset
            made.append(chunk)
    return made


@given(st.text(max_size=40), st.lists(st.integers(0, 200), max_size=8))
def test_characters_are_never_cut_in_two(text: str, cuts: list[int]) -> None:
    read = reader(ByteRange())
    pieces = [piece for chunk in chunks_of(text.encode(), cuts) for piece in read.read(chunk)] + list(read.finish())
    assert "".join(pieces) == text
    assert read.so_far() == text
    assert "" not in pieces


def test_bytes_that_end_inside_a_character_say_so() -> None:
    read = reader(ByteRange(), mode="deltas")
    assert [delta.text for delta in read.read(Chunk(b"caf\xc3", 0))] == ["caf"]
    assert list(read.finish()) == [Delta("text", "\ufffd")]
    assert list(read.finish()) == []


def test_a_reset_of_bytes_forgets_half_a_character() -> None:
    read = reader(ByteRange(), resets=True)
    read.read(Chunk(b"caf\xc3", 0))
    again = Chunk(b"th\xc3\xa9", 0)
    again.reset = True
    assert list(read.read(again)) == [TextReset(0), "thé"]
    assert list(read.finish()) == []


def test_before_the_protocol_is_known_text_is_the_data() -> None:
    read = TextReader(lambda: None, mode="text", resets=False, limit=100, strict=False)
    assert list(read.read(event("a"))) == ["a"]
