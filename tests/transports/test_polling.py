"""Reads of a spliced body that the caller gives up: the next read goes on, and nothing counts as a failure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

import resumable_stream as rs
from resumable_stream.testing import Fault, FlakyServer, Reply, ScriptedClient, numbered

from .conftest import Rig

Start = Callable[..., FlakyServer]
NO_MERCY = rs.RetryPolicy(attempts=1, wait=lambda state: 60.0)


class Boom(BaseException):
    pass


async def head(rig: Rig, transport: Any, url: str) -> Any:
    """The response as the transport gives it: a client's own iterator around the body ends with the first interruption."""
    request = rig.module.Request("GET", url, headers={"accept": "text/event-stream"})
    return transport.handle_request(request) if rig.row.sync else await transport.handle_async_request(request)


async def test_reads_of_a_body_that_are_interrupted_cost_neither_an_attempt_nor_a_wait(rig: Rig) -> None:
    blocks = [event.encode() for event in numbered(6)]
    script = ScriptedClient(
        [Reply(body=[*blocks[:3], Boom()]), *[Reply(body=[Boom()])] * 4, Reply(body=[*blocks[3:], b"data: [DONE]\n\n"])],
        rig.row.family,
    )
    response = await head(rig, rig.transport(script.transport(), retry=NO_MERCY), "https://example.com/stream")
    body = iter(response.stream) if rig.row.sync else aiter(response.stream)
    seen, struck = b"", 0
    while True:
        try:
            seen += next(body) if rig.row.sync else await anext(body)
        except (StopIteration, StopAsyncIteration):
            break
        except Boom:
            struck += 1
    assert struck == 5
    assert seen == b"".join([*blocks, b"data: [DONE]\n\n"])
    assert [request.last_event_id for request in script.requests] == [None, *["3"] * 5]
    if rig.row.sync:
        response.close()
    else:
        await response.aclose()


async def test_a_body_can_be_polled(rig: Rig, flaky_server: Start) -> None:
    if rig.row.sync:
        pytest.skip("nothing cancels a sync read")
    silence = Fault.cut(after_bytes=0, how="silence")
    server = flaky_server(numbered(6), [Fault.cut(after_events=3, how="silence"), *[silence] * 4], no_content_at_end=True)
    transport = rig.transport(retry=NO_MERCY)
    response = await head(rig, transport, server.url)
    body = aiter(response.stream)
    seen, polls = b"", 0
    while True:
        # On a busy machine an answer takes longer.
        with anyio.move_on_after(min(0.05 * 1.3 ** max(polls - 10, 0), 10.0)):
            try:
                seen += await anext(body)
            except StopAsyncIteration:
                break
            continue
        polls += 1
    assert polls >= 5
    assert seen == b"".join(event.encode() for event in numbered(6))
    await response.aclose()
    await transport.aclose()
