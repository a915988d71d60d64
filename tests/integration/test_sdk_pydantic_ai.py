"""`pydantic-ai` over `openai` over our transport: two layers above, and none of them knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import resumable_stream as rs
from benchmarks.wires import WORDS, chat, responses
from resumable_stream.testing.faults import How

from .sdks import PATIENCE, assert_honest, assert_whole, cut, drops, rows, run, undisturbed

if TYPE_CHECKING:
    from resumable_stream.testing import FlakyServer
    from tests.conftest import Row

pydantic_ai = pytest.importorskip("pydantic_ai", minversion="2")

pytestmark = [pytest.mark.integration]

# Its models are async alone; `run_stream_sync()` runs them on a loop of its own.
NAMES = ["asyncio-httpx2"]


def agent(kind: str, server: FlakyServer, http: Any) -> Any:
    from pydantic_ai.models import openai as models
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(api_key="none", base_url=f"{server.origin}/v1", http_client=http)
    return pydantic_ai.Agent(getattr(models, kind)("m", provider=provider))


class Made:
    """An agent, in the place of an SDK's client."""

    def __init__(self, made: Any) -> None:
        self.agent = made

    async def __aenter__(self) -> Any:
        return self.agent

    async def __aexit__(self, *error: object) -> None:
        pass


def over_responses(row: Row, server: FlakyServer, http: Any, timeout: float = PATIENCE) -> Made:
    http.timeout = timeout
    return Made(agent("OpenAIResponsesModel", server, http))


def over_chat(row: Row, server: FlakyServer, http: Any, timeout: float = PATIENCE) -> Made:
    http.timeout = timeout
    return Made(agent("OpenAIChatModel", server, http))


async def stream_text(made: Any, got: list[Any]) -> Any:
    async with made.run_stream("Count.") as result:
        async for text in result.stream_text(delta=True, debounce_by=None):
            got.append(text)
        parts = [(type(part), part.content) for part in result.response.parts]
        return parts, result.response.finish_reason, result.response.provider_response_id, await result.get_output()


@drops(NAMES, stream_text)
async def test_a_response_is_whole(row: Row, how: How, read: Any) -> None:
    whole = await undisturbed(over_responses, read, row, responses())
    assert whole.got == WORDS
    ran = await cut(over_responses, read, row, responses(), how, upgrade_background=True)
    assert_whole(ran, whole)
    assert ran.posts[0].json()["background"] is True


@drops(NAMES, stream_text)
async def test_half_a_completion_is_an_error(row: Row, how: How, read: Any) -> None:
    wire = chat()
    ran = await cut(over_chat, read, row, wire, how)
    assert isinstance(ran.error, pydantic_ai.exceptions.ModelAPIError)
    assert_honest(ran, wire, how, list)


@rows(*NAMES)
async def test_a_whole_completion_is_what_it_is_without_us(row: Row) -> None:
    whole = await undisturbed(over_chat, stream_text, row, chat())
    ran = await run(over_chat, stream_text, row, chat())
    assert ran == whole
    assert ran.got == WORDS
    assert ran.streams[0].outcome is rs.Outcome.COMPLETED
