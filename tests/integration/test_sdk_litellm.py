"""`litellm` over our transport, with OpenAI and Anthropic below. It has its own environment: see the Makefile."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import pytest

import resumable_stream as rs
from benchmarks.wires import ASK, TOKENS, WORDS, chat, messages, responses
from resumable_stream.testing import Fault
from resumable_stream.testing.faults import How

from .sdks import PATIENCE, assert_honest, client, cut, drops, each, now, opened, rows, run, undisturbed

if TYPE_CHECKING:
    from resumable_stream.testing import FlakyServer
    from tests.conftest import Row

# It fetches a list of prices when it is imported, unless it is told not to.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    litellm = pytest.importorskip("litellm")

# Its logging warns of usage that it made itself, and leaves tasks behind.
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]

NAMES = ["sync-httpx", "asyncio-httpx"]
BOTH = rows(*NAMES)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litellm, "suppress_debug_info", True)


class Lite:
    """What a call needs, in the place of an SDK's client."""

    def __init__(self, row: Row, server: FlakyServer, http: Any, timeout: float = PATIENCE, **options: Any) -> None:
        self.row, self.http = row, http
        self.options = {"api_key": "none", "timeout": timeout, "stream": True, **options}
        self.origin = server.origin

    def __enter__(self) -> Lite:
        setattr(litellm, self.session, self.http)
        return self

    def __exit__(self, *error: object) -> None:
        setattr(litellm, self.session, None)
        # It keeps the SDKs' clients, and ours is closed.
        litellm.in_memory_llm_clients_cache.flush_cache()

    @property
    def session(self) -> str:
        return "client_session" if self.row.sync else "aclient_session"

    @property
    def handler(self) -> Any:
        from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler, HTTPHandler

        # The transport of the client, which will close it.
        return HTTPHandler(client=self.http) if self.row.sync else AsyncHTTPHandler(transport=self.http._transport)

    def call(self, name: str, **arguments: Any) -> Any:
        function = getattr(litellm, name if self.row.sync else f"a{name}")
        return function(**arguments, **self.options)

    def items(self, stream: Any) -> Any:
        """Its streams are both sync and async, whatever they were asked for."""
        return each(item for item in stream) if self.row.sync else each(stream)


async def over_openai(lite: Lite, got: list[Any]) -> None:
    stream = await now(lite.call("completion", model="openai/m", messages=ASK, api_base=f"{lite.origin}/v1"))
    async for chunk in lite.items(stream):
        got.append(chunk.choices[0].delta.content or "")


async def over_anthropic(lite: Lite, got: list[Any]) -> None:
    arguments = {"model": "anthropic/m", "messages": ASK, "max_tokens": TOKENS, "client": lite.handler}
    async for chunk in lite.items(await now(lite.call("completion", **arguments, api_base=lite.origin))):
        got.append(chunk.choices[0].delta.content or "")


async def over_responses(lite: Lite, got: list[Any]) -> None:
    # A model that litellm knows to stream: another one it would ask for a whole answer.
    arguments = {"model": "openai/gpt-4o", "input": "Count.", "background": True, "client": lite.handler}
    async for event in lite.items(await now(lite.call("responses", **arguments, api_base=f"{lite.origin}/v1"))):
        if event.type == "response.output_text.delta":
            got.append(event.delta)


def texts(got: list[Any]) -> list[str]:
    return [text for text in got if text]


@drops(NAMES, over_responses)
async def test_a_background_response_is_whole(row: Row, how: How, read: Any) -> None:
    ran = await cut(Lite, read, row, responses(), how)
    assert ran.error is None
    assert ran.got == WORDS
    assert len(ran.posts) == 1


@drops(NAMES, over_openai, over_anthropic)
async def test_half_an_answer_is_an_error(row: Row, how: How, read: Any) -> None:
    wire = messages() if read is over_anthropic else chat()
    # Its retries are for the request: a cut in the middle is none of them.
    ran = await cut(Lite, read, row, wire, how, sdk={"num_retries": 2})
    # Since 1.110 a silence is a timeout of litellm's own under the openai package.
    kinds = (litellm.exceptions.MidStreamFallbackError, *([litellm.Timeout] if how == "silence" else []))
    assert isinstance(ran.error, kinds)
    assert_honest(ran, wire, how, texts)


@BOTH
@pytest.mark.parametrize("read", [over_openai, over_anthropic])
async def test_a_whole_answer_is_what_it_is_without_us(row: Row, read: Any) -> None:
    wire = messages() if read is over_anthropic else chat()
    whole = await undisturbed(Lite, read, row, wire)
    ran = await run(Lite, read, row, wire)
    assert ran == whole
    assert texts(ran.got) == WORDS


@BOTH
async def test_a_request_is_sent_as_often_as_without_us(row: Row) -> None:
    busy = Fault.status(503, headers={"retry-after-ms": "1"}, body=b'{"error": {"message": "busy"}}')
    alone = await run(Lite, over_openai, row, chat(), *[busy] * 4, through=False, sdk={"max_retries": 1})
    ran = await run(Lite, over_openai, row, chat(), *[busy] * 4, sdk={"max_retries": 1})
    assert type(ran.error) is type(alone.error)
    assert len(ran.requests) == len(alone.requests) == 2


@BOTH
async def test_the_stream_below_is_found_in_what_it_hands_out(row: Row) -> None:
    with chat().serve() as server:
        async with opened(client(row)) as http:
            with Lite(row, server, http) as lite:
                stream = await now(lite.call("completion", model="openai/m", messages=ASK, api_base=f"{server.origin}/v1"))
                # Before the end: since 1.110 litellm lets go of the response there.
                below = rs.stream_of(stream)
                assert [chunk async for chunk in lite.items(stream)]
                assert below.outcome is rs.Outcome.COMPLETED
