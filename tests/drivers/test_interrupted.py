"""An interrupt between the arrival of events and their handing out loses none of them, if the caller goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import resumable_stream as rs
from resumable_stream._drivers.base import StreamBase
from resumable_stream.testing import FlakyServer, numbered


@pytest.mark.parametrize("at", range(1, 9))
def test_an_interrupt_before_the_events_are_handed_out_loses_none(
    at: int, flaky_server: Callable[..., FlakyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = flaky_server(numbered(8), pace=0.0)
    hand_out, calls = StreamBase._hand_out, 0

    def interrupted(self: StreamBase, events: object) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        hand_out(self, events)  # type: ignore[arg-type]

    monkeypatch.setattr(StreamBase, "_hand_out", interrupted)
    seen: list[str] = []
    with rs.connect("GET", server.url) as stream:
        while True:
            try:
                for event in stream:
                    seen.append(event.id)
                break
            except KeyboardInterrupt:
                assert stream.checkpoint.offset == len(seen)
    assert seen == [str(number) for number in range(1, 9)]
