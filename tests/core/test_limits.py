"""How large an event and a line may get (guarantee G6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from resumable_stream._errors import EventTooLarge, ProtocolViolation
from resumable_stream._events import Outcome
from resumable_stream._settings import Limits
from resumable_stream.protocols import NDJSON, LastEventID

from .simulation import Reply, Stream, ev, evs, play, script

DONE = ev("[DONE]")


@pytest.mark.parametrize("chunk", [3, 1000])
def test_an_event_that_is_too_large_ends_the_stream_after_what_came_before_it(chunk: int) -> None:
    body = evs(1, 2) + ev("x" * 200, "3")
    pieces = [body[at : at + chunk] for at in range(0, len(body), chunk)]
    result = play(Reply(pieces), limits=Limits(event_bytes=100))
    assert result.data == ["d1", "d2"]
    assert isinstance(result.error, EventTooLarge)
    assert result.error.checkpoint is not None and result.error.checkpoint.cursor == "2"
    assert len(result.stream.sent) == 1


def test_a_line_that_never_ends_is_bounded() -> None:
    result = play(Reply([evs(1, 1), b"data: ", *[b"x" * 50] * 10]), limits=Limits(line_bytes=200))
    assert isinstance(result.error, EventTooLarge)
    lines = play(
        Reply([b'{"a": 1}\n', *[b"x" * 50] * 10], type="application/x-ndjson"), limits=Limits(line_bytes=200), protocol=NDJSON()
    )
    assert isinstance(lines.error, EventTooLarge)
    assert lines.data == ['{"a": 1}']


def test_a_marker_in_front_of_what_is_too_large_is_still_the_end() -> None:
    result = play(Reply([evs(1, 1) + DONE + ev("x" * 200)]), limits=Limits(event_bytes=100))
    assert (result.data, result.outcome) == (["d1", "[DONE]"], Outcome.COMPLETED)


class Picky(LastEventID):
    """Takes batches apart, and refuses one that it cannot read."""

    def unpack(self, event: Any) -> Sequence[Any]:
        if event.data == "odd":
            raise ProtocolViolation("expected a batch")
        return (event,)


@pytest.mark.parametrize("together", [True, False])
def test_a_batch_that_cannot_be_read_ends_the_stream_after_what_came_before_it(together: bool) -> None:
    parts = [evs(1, 2), ev("odd", "3"), evs(4, 4)]
    result = play(Reply([b"".join(parts)] if together else parts), protocol=Picky())
    assert (result.data, type(result.error)) == (["d1", "d2"], ProtocolViolation)
    assert result.error is not None and result.error.checkpoint is not None and result.error.checkpoint.cursor == "2"


def test_a_protocol_may_keep_only_so_many_texts() -> None:
    """A place is 8 KiB at most, wherever it is kept."""

    class Hoarder(LastEventID):
        keeps = tuple(f"text {number}" for number in range(17))

    with pytest.raises(TypeError, match="at most 16"):
        Stream(script(), protocol=Hoarder()).open()
