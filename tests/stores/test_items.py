"""How an event is written down."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resumable_stream._events import Chunk, Gap, StreamEvent
from resumable_stream.stores import Kept, item_from_json, item_to_json

FIELDS = ("event", "data", "id", "retry", "own_id", "cursor", "sequence", "offset", "gap", "reset")

any_text = st.text(st.characters(), max_size=20)  # lone surrogates too
maybe_text = st.none() | any_text
count = st.integers(min_value=0, max_value=2**63)
gaps = st.none() | st.builds(Gap, expected=st.none() | count, received=st.none() | count, after=maybe_text)


@st.composite
def items(draw: st.DrawFn) -> Kept:
    item: Kept
    if draw(st.booleans()):
        item = Chunk(draw(st.binary(min_size=1, max_size=20)), draw(count))
    else:
        item = StreamEvent(draw(any_text), draw(any_text), draw(any_text), draw(st.none() | count), draw(maybe_text))
        if draw(st.booleans()):
            item.sequence = draw(count)
    if draw(st.booleans()):
        item.cursor = draw(maybe_text)
    if draw(st.booleans()):
        item.offset = draw(count)
        item.reset = draw(st.booleans())
        item.gap = draw(gaps)
    return item


@given(items())
def test_every_field_comes_back(item: Kept) -> None:
    text = item_to_json(item)
    assert "\n" not in text and text.encode()
    again = item_from_json(text.encode())
    assert again.replayed and type(again) is type(item)
    for name in FIELDS if isinstance(item, StreamEvent) else ("data", *FIELDS[5:]):
        assert getattr(again, name) == getattr(item, name), name


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "as JSON"),
        ("{", "as JSON"),
        (b"\xff", "as JSON"),
        ("[" * 100_000, "as JSON"),
        ("[]", "got list"),
        ('{"data":1}', "'data': expected str, got 1"),
        ('{"data":null}', "'data': expected str, got None"),
        ('{"retry":true}', "'retry': expected int, got True"),
        ('{"sequence":"1"}', "'sequence': expected int"),
        ('{"offset":null}', "'offset': expected int"),
        ('{"reset":1}', "'reset': expected bool"),
        ('{"gap":[1]}', "'gap': expected three values"),
        ('{"gap":[1,"2",null]}', "'received': expected int"),
        ('{"bytes":"?"}', ""),
        ('{"bytes":"eA==","sequence":null}', "'sequence'"),
    ],
)
def test_what_is_no_event_is_refused_and_shown(text: str, complaint: str) -> None:
    with pytest.raises(ValueError) as caught:
        item_from_json(text)
    assert complaint in str(caught.value) and len(str(caught.value)) < 300
