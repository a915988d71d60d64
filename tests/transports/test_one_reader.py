"""A spliced body has one reader: a second one is told so, in an error of the library's that no SDK takes for the network's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import resumable_stream as rs
from resumable_stream.testing import Fault, FlakyServer, numbered

from .conftest import Rig
from .test_polling import head

Start = Callable[..., FlakyServer]


@pytest.mark.parametrize("pace", [None, 0.0], ids=["at once", "calm"])
async def test_a_second_reader_of_a_body_is_refused_and_the_first_one_goes_on(
    rig: Rig, flaky_server: Start, pace: float | None
) -> None:
    row = rig.row
    server = flaky_server(numbered(12), [Fault.cut(after_events=5, how="silence")], pace=pace)
    transport = rig.transport(timeouts=rs.Timeouts(idle=30.0))
    response = await head(rig, transport, server.url)
    whole = b"".join(event.encode() for event in numbered(5))
    seen = b""

    async def step() -> Any:
        return next(response.stream) if row.sync else await anext(response.stream)

    async def second() -> None:
        await row.until(lambda: seen == whole)
        await row.sleep(0.02)
        for _ in range(2):
            with pytest.raises(rs.StreamBusy) as caught:
                await step()
            assert isinstance(caught.value, rig.module.StreamError)
            assert not isinstance(caught.value, rig.module.RequestError)
        assert len(server.requests) == 1
        await (close() if not row.sync else _now(close))

    close = response.close if row.sync else response.aclose
    async with row.beside(second):
        with pytest.raises(rs.StreamClosed):  # noqa: PT012 - out of a whole loop: that is what is tested
            while True:
                seen += await step()
    assert seen == whole
    await (transport.aclose() if not row.sync else _now(transport.close))


async def _now(call: Callable[[], Any]) -> None:
    call()
