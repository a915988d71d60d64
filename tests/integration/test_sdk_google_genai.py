"""The `google-genai` package over our transport: interactions go on, and half of a generated answer is an error."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import resumable_stream as rs
from benchmarks.wires import WORDS, gemini, interactions, sse
from resumable_stream.testing import Fault
from resumable_stream.testing.faults import How

from .every_byte import SHORT, TEXT, answers, fewer, tally
from .sdks import (
    PATIENCE,
    assert_honest,
    assert_whole,
    client,
    cut,
    drops,
    each,
    first,
    now,
    opened,
    rows,
    run,
    transport,
    undisturbed,
)

if TYPE_CHECKING:
    from resumable_stream.testing import FlakyServer
    from tests.conftest import Row

genai = pytest.importorskip("google.genai", minversion="3")

pytestmark = [pytest.mark.integration]

# The SDK's async half runs on asyncio alone; without its extra for httpx it uses httpx2.
NAMES = ["sync-httpx2", "asyncio-httpx2"]
ROWS = rows(*NAMES)


def make(row: Row, server: FlakyServer, http: Any, timeout: float = PATIENCE, **options: Any) -> Any:
    from google.genai import types

    name = "httpx_client" if row.sync else "httpx_async_client"
    wanted = types.HttpOptions(base_url=server.origin, timeout=int(timeout * 1000), **{name: http}, **options)
    sdk = genai.Client(api_key="none", http_options=wanted)
    return sdk if row.sync else sdk.aio


def make_by_arguments(row: Row, server: FlakyServer, http: Any, timeout: float = PATIENCE, **options: Any) -> Any:
    """The other way in: arguments for the client that the SDK makes."""
    from google.genai import types

    name = "client_args" if row.sync else "async_client_args"
    wanted = types.HttpOptions(base_url=server.origin, timeout=int(timeout * 1000), **{name: {"transport": transport(row)}})
    sdk = genai.Client(api_key="none", http_options=wanted)
    return sdk if row.sync else sdk.aio


async def interact(sdk: Any, got: list[Any]) -> None:
    async for event in each(await now(sdk.interactions.create(model="m", input="Count.", stream=True))):
        got.append(event)


async def generate(sdk: Any, got: list[Any]) -> None:
    async for chunk in each(await now(sdk.models.generate_content_stream(model="m", contents="Count."))):
        # The head of the HTTP response, with the time of day in it.
        chunk.sdk_http_response = None
        got.append(chunk)


def texts(got: list[Any]) -> list[str]:
    return [text for item in got if (text := getattr(item, "text", None))]


@drops(NAMES, interact)
async def test_an_interaction_is_whole(row: Row, how: How, read: Any) -> None:
    whole = await undisturbed(make, read, row, interactions())
    ran = await cut(make, read, row, interactions(), how)
    assert_whole(ran, whole)
    assert [event.delta.text for event in ran.got if event.event_type == "step.delta"] == WORDS


@ROWS
@pytest.mark.parametrize("how", ["rst", "clean"])
async def test_an_interaction_that_is_cut_before_its_first_event_is_not_created_twice(row: Row, how: How) -> None:
    ran = await run(make, interact, row, interactions(), Fault.cut(after_events=0, how=how))
    assert type(ran.error).__name__ == "APIConnectionError"
    assert isinstance(rs.error_of(ran.error), rs.StreamInterrupted)
    assert len(ran.requests) == 1


@drops(NAMES, generate)
async def test_half_an_answer_is_an_error(row: Row, how: How, read: Any) -> None:
    wire = gemini()
    ran = await cut(make, read, row, wire, how)
    ours = assert_honest(ran, wire, how, texts)
    # The SDK lets the HTTP library's errors through, so ours comes as it is.
    assert ran.error is ours
    assert isinstance(ours, row.module.TransportError)


@ROWS
async def test_the_transport_among_the_arguments_of_the_client(row: Row) -> None:
    ran = await cut(make_by_arguments, generate, row, gemini(), "clean")
    assert_honest(ran, gemini(), "clean", texts)
    ran = await cut(make_by_arguments, interact, row, interactions(), "clean")
    assert ran == await undisturbed(make, interact, row, interactions())


@ROWS
@pytest.mark.parametrize("read", [generate, interact])
async def test_a_whole_answer_is_what_it_is_without_us(row: Row, read: Any) -> None:
    wire = gemini() if read is generate else interactions()
    whole = await undisturbed(make, read, row, wire)
    ran = await run(make, read, row, wire)
    assert ran == whole
    assert ran.streams[0].outcome is rs.Outcome.COMPLETED


# --- whatever the last bytes are


def sdk_of(row: Row) -> Any:
    from google.genai import types

    def sdk(http: Any) -> Any:
        name = "httpx_client" if row.sync else "httpx_async_client"
        wanted = types.HttpOptions(
            base_url="http://example.test", **{name: http}, retry_options=types.HttpRetryOptions(attempts=1)
        )
        made = genai.Client(api_key="none", http_options=wanted)
        return made if row.sync else made.aio

    return sdk


def whole_text(got: list[Any]) -> str:
    deltas = [event.delta for event in got if getattr(event, "event_type", None) == "step.delta"]
    return "".join([delta.text or "" for delta in deltas] or texts(got))


async def generate_two(sdk: Any, got: list[Any]) -> None:
    wanted = {"candidate_count": 2}
    async for chunk in each(await now(sdk.models.generate_content_stream(model="m", contents="Count.", config=wanted))):
        got.append(chunk)


@rows("sync-httpx2")
async def test_no_half_of_several_candidates_is_a_success(row: Row) -> None:
    payloads = [json.loads(frame[6:]) for frame in gemini(SHORT).frames]
    frames = sse(
        *({**payload, "candidates": [{**payload["candidates"][0], "index": index}]} for payload in payloads for index in (0, 1))
    )

    def both(got: list[Any]) -> str:
        parts: dict[int, str] = {}
        for candidate in (candidate for chunk in got for candidate in chunk.candidates or ()):
            for part in (candidate.content and candidate.content.parts) or ():
                parts[candidate.index or 0] = parts.get(candidate.index or 0, "") + (part.text or "")
        return "|".join(parts[index] for index in sorted(parts))

    found = await tally(row, sdk_of(row), generate_two, fewer(frames), both, whole=f"{TEXT}|{TEXT}")
    assert (found.wrong, found.whole > 3) == ([], True)


@ROWS
@pytest.mark.parametrize("read", [generate, interact])
async def test_no_half_answer_is_a_success_whatever_the_last_bytes_are(row: Row, read: Any) -> None:
    frames = (gemini if read is generate else interactions)(SHORT).frames
    if read is generate and row.sync:
        told = answers(frames)
    else:
        told = fewer(frames, 7 if read is generate else 23)
    found = await tally(row, sdk_of(row), read, told, whole_text)
    assert found.wrong == []
    assert found.whole > 3
    assert found.raised > found.whole


BUSY = Fault.status(503, body=b'{"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}}')


@ROWS
@pytest.mark.parametrize("read", [generate, interact])
@pytest.mark.parametrize("fault", [BUSY, Fault.no_answer(how="fin")], ids=["503", "no answer"])
async def test_a_request_is_sent_as_often_as_the_sdk_sends_it(row: Row, fault: Fault, read: Any) -> None:
    from google.genai import types

    wire = gemini() if read is generate else interactions()
    retries = {"retry_options": types.HttpRetryOptions(attempts=2, initial_delay=0.01, jitter=0.0)}
    alone = await run(make, read, row, wire, *[fault] * 3, through=False, sdk=retries)
    ran = await run(make, read, row, wire, *[fault] * 3, sdk=retries)
    assert type(ran.error) is type(alone.error)
    assert ran.error is not None
    assert len(ran.requests) == len(alone.requests) > 0


@ROWS
async def test_an_error_in_the_stream_is_the_sdks(row: Row) -> None:
    told = {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}
    wire = gemini()
    wire = replace(wire, frames=[*wire.frames[:9], *sse(told)])
    alone = await run(make, generate, row, wire, through=False)
    ran = await run(make, generate, row, wire)
    assert isinstance(ran.error, genai.errors.ServerError)
    assert ran == alone


@ROWS
async def test_an_error_among_the_events_of_an_interaction(row: Row) -> None:
    told = {"event_type": "error", "error": {"code": "internal", "message": "boom"}, "event_id": "e9"}
    wire = interactions()
    frame = f"event: error\ndata: {json.dumps(told)}\n\n".encode()
    wire = replace(wire, frames=[*wire.frames[:9], frame])
    alone = await run(make, interact, row, wire, through=False)
    ran = await run(make, interact, row, wire)
    assert ran == alone
    assert ran.got[-1].event_type == "error"


@ROWS
@pytest.mark.usefixtures("spotless")
async def test_leaving_in_the_middle(row: Row) -> None:
    with interactions().serve(Fault.cut(after_events=40, how="silence")) as server:
        async with opened(client(row)) as http, opened(make(row, server, http)) as sdk:
            stream = await now(sdk.interactions.create(model="m", input="Count.", stream=True))
            await first(stream)
            await now(stream.close())
            below = rs.stream_of(stream)
            assert below.outcome is None
            assert below.checkpoint.stream_id == "i1"
        await row.until(lambda: server.wait_disconnected(0))
        assert len(server.requests) == 1
