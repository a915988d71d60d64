"""The `anthropic` package over our transport: half an answer is an error, and whole ones are what they were."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import resumable_stream as rs
from benchmarks.wires import ASK, TOKENS, WORDS, messages, sse
from resumable_stream.testing import Fault
from resumable_stream.testing.faults import How

from .every_byte import SHORT, answers, fewer, tally
from .sdks import PATIENCE, assert_honest, client, cut, drops, each, first, now, opened, rows, run, undisturbed

if TYPE_CHECKING:
    from resumable_stream.testing import FlakyServer
    from tests.conftest import Row

anthropic = pytest.importorskip("anthropic", minversion="2")

pytestmark = [pytest.mark.integration]

# The SDK takes clients of httpx2 alone.
ROWS = ["sync-httpx2", "asyncio-httpx2", "trio-httpx2"]
PAIR = rows("sync-httpx2", "asyncio-httpx2")
ASKED = {"model": "m", "max_tokens": TOKENS, "messages": ASK}


def make(row: Row, server: FlakyServer, http: Any, timeout: float = PATIENCE, **options: Any) -> Any:
    kind = anthropic.Anthropic if row.sync else anthropic.AsyncAnthropic
    return kind(api_key="none", base_url=server.origin, http_client=http, timeout=timeout, **options)


async def create(sdk: Any, got: list[Any]) -> None:
    async for event in each(await now(sdk.messages.create(**ASKED, stream=True))):
        got.append(event)


async def helper(sdk: Any, got: list[Any]) -> Any:
    async with opened(sdk.messages.stream(**ASKED)) as stream:
        async for event in each(stream):
            got.append(event)
        return await now(stream.get_final_message())


async def text_stream(sdk: Any, got: list[Any]) -> Any:
    async with opened(sdk.messages.stream(**ASKED)) as stream:
        async for text in each(stream.text_stream):
            got.append(text)
        return await now(stream.get_final_text())


def texts(got: list[Any]) -> list[str]:
    deltas = [item.delta for item in got if getattr(item, "type", None) == "content_block_delta"]
    return [item for item in got if isinstance(item, str)] or [delta.text for delta in deltas]


@drops(ROWS, create, helper, text_stream)
async def test_half_an_answer_is_an_error(row: Row, how: How, read: Any) -> None:
    wire = messages()
    ran = await cut(make, read, row, wire, how)
    ours = assert_honest(ran, wire, how, texts)
    # The SDK lets the HTTP library's errors through, so ours comes as it is.
    assert ran.error is ours
    assert isinstance(ours, row.module.TransportError)


@rows(*ROWS)
@pytest.mark.parametrize("read", [create, helper, text_stream])
async def test_a_whole_answer_is_what_it_is_without_us(row: Row, read: Any) -> None:
    whole = await undisturbed(make, read, row, messages())
    ran = await run(make, read, row, messages())
    assert ran == whole
    assert texts(ran.got) == WORDS
    assert ran.streams[0].outcome is rs.Outcome.COMPLETED


# --- whatever the last bytes are


def sdk_of(row: Row) -> Any:
    kind = anthropic.Anthropic if row.sync else anthropic.AsyncAnthropic
    return lambda http: kind(api_key="none", base_url="http://example.test", http_client=http, max_retries=0)


def whole_text(got: list[Any]) -> str:
    return "".join(texts(got))


@rows("sync-httpx2")
@pytest.mark.parametrize("read", [create, helper, text_stream])
async def test_no_half_answer_is_a_success_whatever_the_last_bytes_are(row: Row, read: Any) -> None:
    told = (answers if read is create else fewer)(messages(SHORT).frames)
    found = await tally(row, sdk_of(row), read, told, whole_text)
    assert found.wrong == []
    assert found.whole > 10
    assert found.raised > found.whole


@rows("asyncio-httpx2")
async def test_no_half_answer_is_a_success_for_an_async_client_either(row: Row) -> None:
    found = await tally(row, sdk_of(row), create, fewer(messages(SHORT).frames), whole_text)
    assert (found.wrong, found.whole > 10) == ([], True)


REFUSED = {"content-type": "application/json", "retry-after-ms": "1"}
BEFORE = {
    "no answer": Fault.no_answer(how="rst"),
    "529": Fault.status(
        529, headers=REFUSED, body=b'{"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}'
    ),
    "400": Fault.status(400, headers=REFUSED, body=b'{"type": "error", "error": {"type": "x", "message": "no"}}'),
}


@PAIR
@pytest.mark.parametrize("name", BEFORE)
async def test_a_request_is_sent_as_often_as_the_sdk_sends_it(row: Row, name: str) -> None:
    faults = [BEFORE[name]] * 2
    alone = await run(make, create, row, messages(), *faults, through=False, sdk={"max_retries": 1})
    ran = await run(make, create, row, messages(), *faults, sdk={"max_retries": 1})
    assert ran == alone
    assert len(ran.requests) == len(alone.requests) == (1 if name == "400" else 2)


@PAIR
async def test_an_error_in_the_stream_is_the_sdks(row: Row) -> None:
    told = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    wire = messages()
    wire = replace(wire, frames=[*wire.frames[:9], *sse(told, named=True)])
    alone = await run(make, create, row, wire, through=False)
    ran = await run(make, create, row, wire)
    assert isinstance(ran.error, anthropic.APIStatusError)
    assert ran.error.body == told
    assert ran == alone
    assert len(ran.requests) == 1


@PAIR
@pytest.mark.usefixtures("spotless")
@pytest.mark.parametrize("way", ["close", "with"])
async def test_leaving_in_the_middle(row: Row, way: str) -> None:
    with messages().serve(Fault.cut(after_events=40, how="silence")) as server:
        async with opened(client(row)) as http, opened(make(row, server, http)) as sdk:
            stream = await now(sdk.messages.create(**ASKED, stream=True))
            if way == "close":
                await first(stream)
                await now(stream.close())
            else:
                async with opened(stream):
                    await first(stream)
            assert rs.stream_of(stream).outcome is None
            assert rs.stream_of(stream).checkpoint.stream_id == "msg_1"
        await row.until(lambda: server.wait_disconnected(0))
        assert len(server.requests) == 1


@PAIR
async def test_the_stream_below_is_found_in_what_the_sdk_hands_out(row: Row) -> None:
    with messages().serve() as server:
        async with opened(client(row)) as http, opened(make(row, server, http)) as sdk:
            async with opened(sdk.messages.stream(**ASKED)) as stream:
                assert rs.stream_of(stream).stats.reconnects == 0
            async with opened(sdk.messages.with_streaming_response.create(**ASKED, stream=True)) as response:
                assert rs.stream_of(response).stats.reconnects == 0
