"""The `openai` package over our transport: it knows nothing of it, and its objects are those of an answer that was not cut."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import resumable_stream as rs
from benchmarks.wires import ASK, WORDS, Wire, chat, responses, sse
from resumable_stream.protocols import OpenAIChat
from resumable_stream.testing import Fault
from resumable_stream.testing.faults import How

from .every_byte import SHORT, TEXT, answers, fewer, tally
from .sdks import PATIENCE, assert_honest, assert_whole, client, cut, drops, each, first, now, opened, rows, run, undisturbed

if TYPE_CHECKING:
    from resumable_stream.testing import FlakyServer
    from tests.conftest import Row

openai = pytest.importorskip("openai", minversion="3")

pytestmark = [pytest.mark.integration]

# The SDK takes clients of httpx2, and the older ones of httpx.
ROWS = ["sync-httpx2", "asyncio-httpx2", "trio-httpx2", "sync-httpx"]
PAIR = rows("sync-httpx2", "asyncio-httpx2")


def make(row: Row, server: FlakyServer, http: Any, timeout: float = PATIENCE, **options: Any) -> Any:
    kind = openai.OpenAI if row.sync else openai.AsyncOpenAI
    return kind(api_key="none", base_url=f"{server.origin}/v1", http_client=http, timeout=timeout, **options)


# --- readers: as the SDK's README has them


async def create(sdk: Any, got: list[Any]) -> None:
    async for event in each(await now(sdk.responses.create(model="m", input="Count.", background=True, stream=True))):
        got.append(event)


async def create_plain(sdk: Any, got: list[Any]) -> None:
    async for event in each(await now(sdk.responses.create(model="m", input="Count.", stream=True))):
        got.append(event)


async def helper(sdk: Any, got: list[Any]) -> Any:
    async with opened(sdk.responses.stream(model="m", input="Count.", background=True)) as stream:
        async for event in each(stream):
            got.append(event)
        return await now(stream.get_final_response())


async def raw(sdk: Any, got: list[Any]) -> None:
    way = sdk.responses.with_streaming_response.create(model="m", input="Count.", background=True, stream=True)
    async with opened(way) as response:
        async for line in each(response.iter_lines()):
            got.append(line)


async def retrieve(sdk: Any, got: list[Any]) -> None:
    async for event in each(await now(sdk.responses.retrieve("resp_1", stream=True, starting_after=9))):
        got.append(event)


async def complete(sdk: Any, got: list[Any]) -> None:
    async for chunk in each(await now(sdk.chat.completions.create(model="m", messages=ASK, stream=True))):
        got.append(chunk)


async def complete_helper(sdk: Any, got: list[Any]) -> Any:
    async with opened(sdk.chat.completions.stream(model="m", messages=ASK)) as stream:
        async for event in each(stream):
            got.append(event)
        return await now(stream.get_final_completion())


def texts(got: list[Any]) -> list[str]:
    """The tokens in whatever a reader got."""
    found = []
    for item in got:
        if getattr(item, "type", None) in ("response.output_text.delta", "content.delta"):
            found.append(item.delta)
        elif hasattr(item, "choices"):
            found += [choice.delta.content for choice in item.choices]
    return [text for text in found if text]


# --- Responses


@drops(ROWS, create, helper)
async def test_a_background_response_is_whole(row: Row, how: How, read: Any) -> None:
    whole = await undisturbed(make, read, row, responses())
    assert texts(whole.got) == WORDS
    assert_whole(await cut(make, read, row, responses(), how), whole)


@drops(ROWS[:2], create_plain)
async def test_a_plain_response_is_turned_into_a_background_one(row: Row, how: How, read: Any) -> None:
    whole = await undisturbed(make, read, row, responses())
    ran = await cut(make, read, row, responses(), how, upgrade_background=True)
    assert_whole(ran, whole)
    assert ran.posts[0].json()["background"] is True


@drops(ROWS[:2], create_plain)
async def test_a_plain_response_that_is_cut_is_an_error(row: Row, how: How, read: Any) -> None:
    wire = responses(background=False)
    ran = await cut(make, read, row, wire, how)
    assert isinstance(ran.error, openai.APITimeoutError if how == "silence" else openai.APIConnectionError)
    assert_honest(ran, wire, how, texts)


@PAIR
async def test_the_lines_below_the_objects(row: Row) -> None:
    whole = await undisturbed(make, raw, row, responses())
    assert_whole(await cut(make, raw, row, responses(), "clean_inside"), whole)


@PAIR
async def test_a_response_that_is_taken_up_again(row: Row) -> None:
    whole = await undisturbed(make, retrieve, row, responses())
    ran = await cut(make, retrieve, row, responses(), "clean")
    assert ran == whole
    assert [request.query.get("starting_after") for request in ran.requests if request.query] == ["9", "163"]


@PAIR
@pytest.mark.parametrize("how", ["rst", "clean"])
async def test_what_cannot_be_known_by_its_id_is_not_created_twice(row: Row, how: How) -> None:
    ran = await run(make, create, row, responses(), Fault.cut(after_events=0, how=how))
    assert isinstance(ran.error, openai.APIConnectionError)
    assert isinstance(rs.error_of(ran.error), rs.StreamInterrupted)
    assert len(ran.requests) == 1


# --- Chat Completions


@drops(ROWS, complete, complete_helper)
async def test_half_a_completion_is_an_error(row: Row, how: How, read: Any) -> None:
    wire = chat()
    ran = await cut(make, read, row, wire, how)
    assert isinstance(ran.error, openai.APITimeoutError if how == "silence" else openai.APIConnectionError)
    ours = assert_honest(ran, wire, how, texts)
    assert isinstance(ours, row.module.TransportError), "for those who catch what the HTTP library raises"


# Not on trio: there the SDK leaves generators of its own open behind `[DONE]`, with a warning, also without us.
@rows("sync-httpx2", "asyncio-httpx2", "sync-httpx")
@pytest.mark.parametrize("read", [complete, complete_helper], ids=["create", "stream"])
async def test_a_whole_completion_is_what_it_is_without_us(row: Row, read: Any) -> None:
    whole = await undisturbed(make, read, row, chat())
    ran = await run(make, read, row, chat())
    assert ran == whole
    assert texts(ran.got) == WORDS
    assert ran.streams[0].outcome is rs.Outcome.COMPLETED


# --- whatever the last bytes are


def sdk_of(row: Row) -> Any:
    kind = openai.OpenAI if row.sync else openai.AsyncOpenAI
    return lambda http: kind(api_key="none", base_url="http://example.test/v1", http_client=http, max_retries=0)


async def complete_two(sdk: Any, got: list[Any]) -> None:
    async for chunk in each(await now(sdk.chat.completions.create(model="m", messages=ASK, stream=True, n=2))):
        got.append(chunk)


async def complete_plain(sdk: Any, got: list[Any]) -> None:
    async for chunk in each(await now(sdk.completions.create(model="m", prompt="Count.", stream=True))):
        got.append(chunk)


def two() -> list[bytes]:
    """Both choices say the same, in turn, and do not end together."""
    one = [json.loads(frame[6:]) for frame in chat(SHORT).frames[:-1]]

    def of(payload: dict[str, Any], index: int) -> dict[str, Any]:
        return {**payload, "choices": [{**payload["choices"][0], "index": index}]}

    return sse(*[of(payload, index) for payload in one for index in (0, 1)], "[DONE]")


def plain_completion() -> list[bytes]:
    head = {"id": "c1", "object": "text_completion", "created": 1, "model": "m"}
    pairs = [*((word, None) for word in SHORT), ("", "stop")]
    return sse(*({**head, "choices": [{"index": 0, "text": text, "finish_reason": end}]} for text, end in pairs), "[DONE]")


def whole_text(got: list[Any]) -> str:
    chunks = [item for item in got if hasattr(item, "choices")]
    pieces: dict[int, str] = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices or ()):
        text = choice.text if hasattr(choice, "text") else choice.delta.content
        pieces[choice.index] = pieces.get(choice.index, "") + (text or "")
    return "|".join(pieces[index] for index in sorted(pieces)) if chunks else "".join(texts(got))


EVERYWHERE = {
    "chat": (complete, lambda: chat(SHORT).frames, TEXT),
    "chat of two": (complete_two, two, f"{TEXT}|{TEXT}"),
    "the helper": (complete_helper, lambda: chat(SHORT).frames, TEXT),
    "completions": (complete_plain, plain_completion, TEXT),
    "responses": (create_plain, lambda: responses(SHORT, background=False).frames, TEXT),
}


@rows("sync-httpx2")
@pytest.mark.parametrize("name", EVERYWHERE)
async def test_no_half_answer_is_a_success_whatever_the_last_bytes_are(row: Row, name: str) -> None:
    read, frames, whole = EVERYWHERE[name]
    found = await tally(row, sdk_of(row), read, (answers if name == "chat" else fewer)(frames()), whole_text, whole=whole)
    assert found.wrong == []
    assert found.whole > 10
    assert found.raised > found.whole


@rows("asyncio-httpx2")
@pytest.mark.parametrize("name", ["chat", "responses"])
async def test_no_half_answer_is_a_success_for_an_async_client_either(row: Row, name: str) -> None:
    read, frames, whole = EVERYWHERE[name]
    found = await tally(row, sdk_of(row), read, fewer(frames()), whole_text, whole=whole)
    assert (found.wrong, found.whole > 10) == ([], True)


@PAIR
async def test_done_without_a_reason_is_an_error_over_sockets(row: Row) -> None:
    wire = chat()
    wire = replace(wire, frames=[*wire.frames[:151], b"data: [DONE]\n\n"])
    ran = await run(make, complete, row, wire)
    assert isinstance(ran.error, openai.APIConnectionError)
    ours = rs.error_of(ran.error)
    assert isinstance(ours, rs.StreamInterrupted)
    assert isinstance(ours, row.module.TransportError)
    assert "[DONE] came without a finish_reason" in str(ours)
    assert texts(ran.got) == WORDS[:150]
    assert len(ran.requests) == 1


@PAIR
async def test_a_server_that_never_sends_a_reason_can_be_named_to_the_transport(row: Row) -> None:
    wire = chat()
    wire = replace(wire, frames=[*wire.frames[:-2], b"data: [DONE]\n\n"])
    ran = await run(make, complete, row, wire, protocols=[OpenAIChat(end="[DONE]")])
    assert ran.error is None
    assert texts(ran.got) == WORDS
    assert ran.streams[0].outcome is rs.Outcome.COMPLETED


# --- the SDK's retries

REFUSED = {"content-type": "application/json", "retry-after-ms": "1"}
BEFORE = {
    "no answer": Fault.no_answer(how="fin"),
    "503": Fault.status(503, headers=REFUSED, body=b'{"error": {"message": "busy"}}'),
    "429": Fault.status(429, headers=REFUSED, body=b'{"error": {"message": "slowly"}}'),
    "400": Fault.status(400, headers=REFUSED, body=b'{"error": {"message": "no"}}'),
}


@PAIR
@pytest.mark.parametrize("name", BEFORE)
async def test_a_request_is_sent_as_often_as_the_sdk_sends_it(row: Row, name: str) -> None:
    faults = [BEFORE[name]] * 2
    alone = await run(make, create, row, responses(), *faults, through=False, sdk={"max_retries": 1})
    ran = await run(make, create, row, responses(), *faults, sdk={"max_retries": 1})
    assert ran == alone
    assert len(ran.requests) == len(alone.requests) == (1 if name == "400" else 2)


@PAIR
async def test_the_sdk_asks_for_the_answer_and_we_for_the_rest(row: Row) -> None:
    whole = await undisturbed(make, create, row, responses())
    faults = [BEFORE["503"], responses().cut("rst"), Fault.status(503), Fault.status(503)]
    ran = await run(make, create, row, responses(), *faults)
    assert ran == whole
    # Refused, and accepted; then ours, which the SDK does not see.
    assert [request.method for request in ran.requests] == ["POST", "POST", "GET", "GET", "GET"]


@PAIR
async def test_our_giving_up_is_not_answered_with_a_new_request(row: Row) -> None:
    faults = [responses().cut("rst"), *[Fault.status(503)] * 3]
    policy = rs.RetryPolicy(attempts=2, wait=lambda state: 0.0)
    ran = await run(make, create, row, responses(), *faults, retry=policy)
    assert isinstance(ran.error, openai.APIConnectionError)
    ours = rs.error_of(ran.error)
    assert isinstance(ours, rs.RetriesExhausted)
    assert ours.checkpoint is not None
    assert ours.checkpoint.cursor == "153"
    assert len(ran.posts) == 1


# --- what the provider says in the stream


def ended_by(wire: Wire, *payloads: dict[str, Any], named: bool = False) -> Wire:
    """The wire's first events, then these."""
    return replace(wire, frames=[*wire.frames[:9], *sse(*payloads, named=named)])


@PAIR
async def test_an_error_in_the_stream_is_the_sdks(row: Row) -> None:
    told = {"error": {"message": "The server had an error.", "type": "server_error", "code": "x"}}
    wire = ended_by(chat(), told)
    alone = await run(make, complete, row, wire, through=False)
    ran = await run(make, complete, row, wire)
    assert type(ran.error) is openai.APIError
    assert ran.error.body == told["error"]
    assert ran == alone
    assert len(ran.requests) == 1


@PAIR
async def test_an_error_among_the_events_of_a_response(row: Row) -> None:
    error = {"type": "error", "sequence_number": 9, "code": "server_error", "message": "boom", "param": None}
    failed = json.loads(responses().frames[0].split(b"data: ")[1])["response"] | {"status": "failed"}
    events = [error, {"type": "response.failed", "sequence_number": 10, "response": failed}]
    wire = ended_by(responses(), *events, named=True)
    whole = await undisturbed(make, create, row, wire)
    ran = await run(make, create, row, wire)
    assert ran == whole
    assert [event.type for event in ran.got[-2:]] == ["error", "response.failed"]
    assert ran.streams[0].outcome is rs.Outcome.FAILED


# --- leaving


@PAIR
@pytest.mark.usefixtures("spotless")
@pytest.mark.parametrize("way", ["close", "break"])
async def test_leaving_in_the_middle(row: Row, way: str) -> None:
    with responses().serve(Fault.cut(after_events=40, how="silence")) as server:
        async with opened(client(row)) as http, opened(make(row, server, http)) as sdk:
            stream = await now(sdk.responses.create(model="m", input="Count.", background=True, stream=True))
            if way == "close":
                await first(stream)
                await now(stream.close())
            else:
                async with opened(stream):
                    await first(stream)
            below = rs.stream_of(stream)
            assert below.outcome is None
            # What was handed to the SDK is taken: its place is behind that, and the response goes on without us.
            assert below.checkpoint.offset <= 40
            assert below.checkpoint.stream_id == "resp_1"
        await row.until(lambda: server.wait_disconnected(0))
        assert len(server.requests) == 1


@PAIR
async def test_the_stream_below_is_found_in_what_the_sdk_hands_out(row: Row) -> None:
    with responses().serve() as server, chat().serve() as other:
        async with opened(client(row)) as http, opened(make(row, server, http)) as sdk, opened(make(row, other, http)) as second:
            stream = await now(sdk.responses.create(model="m", input="Count.", background=True, stream=True))
            await first(stream)
            below = rs.stream_of(stream)
            assert below.protocol.name == "OpenAIResponses"
            assert below.checkpoint.method == "POST"
            await now(stream.close())
            async with opened(sdk.responses.stream(model="m", input="Count.", background=True)) as helped:
                assert rs.stream_of(helped).stats.reconnects == 0
            async with opened(second.chat.completions.stream(model="m", messages=ASK)) as helped:
                assert rs.stream_of(helped).stats.reconnects == 0
            ask = second.chat.completions.with_streaming_response.create(model="m", messages=ASK, stream=True)
            async with opened(ask) as response:
                assert rs.stream_of(response).stats.reconnects == 0


@PAIR
async def test_a_response_is_stopped_by_the_stream_below(row: Row) -> None:
    cancelled = json.dumps({"id": "resp_1", "status": "cancelled"}).encode()
    wire = responses()
    usual = wire.options["on_request"]

    def answer(request: Any) -> Any:
        from resumable_stream.testing import Reply

        if request.path.endswith("/cancel"):
            return Reply(headers={"content-type": "application/json"}, body=cancelled)
        return usual(request)

    wire = replace(wire, options={**wire.options, "on_request": answer})
    with wire.serve(Fault.cut(after_events=40, how="silence")) as server:
        async with opened(client(row)) as http, opened(make(row, server, http)) as sdk:
            stream = await now(sdk.responses.create(model="m", input="Count.", background=True, stream=True))
            await first(stream)
            await now(rs.stream_of(stream).cancel())
            await now(stream.close())
        assert [request.path for request in server.requests] == ["/v1/responses", "/v1/responses/resp_1/cancel"]
