"""
Every SDK through a relay: unmodified it reads what the API sent, and over our transport it does so wherever it is cut.

The relay is a process of its own (`resumable-stream relay`), and everything goes over sockets; see relaying.py.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import random
import re
import types
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import anyio
import pytest

import resumable_stream as rs
from resumable_stream.protocols import (
    AnthropicMessages,
    GeminiGenerate,
    OllamaNDJSON,
    OpenAIChat,
    OpenAIResponses,
    Relayed,
    ResumeProtocol,
)

from .dropping import WAYS
from .relaying import Call, Cuts, Provider, relaying
from .sdks import PATIENCE, client, each, now, opened

if TYPE_CHECKING:
    from tests.conftest import Row

LITELLM: Final = importlib.util.find_spec("litellm") is not None
# With us and without, openai leaves generators behind on trio, and litellm is full of warnings.
pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning"),
    *([pytest.mark.filterwarnings("ignore")] if LITELLM else []),
]

ANSWERS: Final = 200  # of each SDK, in its rows together
LIKES: Final = 20  # different ones among them
CUTS: Final = 50
AT_ONCE: Final = 8
# What the cuts of a run are made of. Another one each time; that of a failure is in its message.
SEED: Final = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**6))
SILENT: Final = rs.Timeouts(idle=1.0)
RETRY: Final = rs.RetryPolicy(attempts=20, wait=lambda state: 0.0)

Got = tuple[list[Any], Any]
"""What a reader got one after the other, and what it returned in the end."""


# --- the SDKs


async def collected(stream: Any) -> list[Any]:
    return [item async for item in each(stream)]


def make_openai(row: Row, origin: str, http: Any) -> Any:
    openai = pytest.importorskip("openai")
    kind = openai.OpenAI if row.sync else openai.AsyncOpenAI
    return kind(api_key="none", base_url=f"{origin}/v1", http_client=http, timeout=PATIENCE)


async def openai_chat(sdk: Any, prompt: str) -> Got:
    async with opened(sdk.chat.completions.stream(model="m", messages=[{"role": "user", "content": prompt}])) as stream:
        return await collected(stream), await now(stream.get_final_completion())


async def openai_responses(sdk: Any, prompt: str) -> Got:
    return await collected(await now(sdk.responses.create(model="m", input=prompt, stream=True))), None


def make_anthropic(row: Row, origin: str, http: Any) -> Any:
    anthropic = pytest.importorskip("anthropic")
    kind = anthropic.Anthropic if row.sync else anthropic.AsyncAnthropic
    return kind(api_key="none", base_url=origin, http_client=http, timeout=PATIENCE)


async def anthropic_messages(sdk: Any, prompt: str) -> Got:
    asked = {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": prompt}]}
    async with opened(sdk.messages.stream(**asked)) as stream:
        return await collected(stream), await now(stream.get_final_message())


def make_google(row: Row, origin: str, http: Any) -> Any:
    genai = pytest.importorskip("google.genai")
    name = "httpx_client" if row.sync else "httpx_async_client"
    options = genai.types.HttpOptions(base_url=origin, timeout=int(PATIENCE * 1000), **{name: http})
    sdk = genai.Client(api_key="none", http_options=options)
    return sdk if row.sync else sdk.aio


async def google_generate(sdk: Any, prompt: str) -> Got:
    chunks = await collected(await now(sdk.models.generate_content_stream(model="m", contents=prompt)))
    for chunk in chunks:
        # The head of the answer, with the time of day in it.
        chunk.sdk_http_response = None
    return chunks, None


async def google_interactions(sdk: Any, prompt: str) -> Got:
    return await collected(await now(sdk.interactions.create(model="m", input=prompt, stream=True))), None


def make_ollama(row: Row, origin: str, http: Any) -> Any:
    """The SDK has no argument for a client of one's own."""
    ollama = pytest.importorskip("ollama")
    made = (ollama.Client if row.sync else ollama.AsyncClient)(host=origin, timeout=PATIENCE)
    http.base_url, http.timeout = made._client.base_url, PATIENCE
    made._client = http
    # Left alone: that of its sync client would be awaited for `None`.
    return contextlib.nullcontext(made)


async def ollama_chat(sdk: Any, prompt: str) -> Got:
    asked = [{"role": "user", "content": prompt}]
    return await collected(await now(sdk.chat(model="m", messages=asked, stream=True))), None


def make_langgraph(row: Row, origin: str, http: Any) -> Any:
    clients = pytest.importorskip("langgraph_sdk.client")
    http.base_url, http.timeout = origin, PATIENCE
    kind = clients.SyncLangGraphClient if row.sync else clients.LangGraphClient
    return contextlib.nullcontext(kind(http))


async def langgraph_run(sdk: Any, prompt: str) -> Got:
    thread = "2c0e0000-0000-4000-8000-000000000000"
    asked = {"messages": [{"role": "user", "content": prompt}]}
    return await collected(sdk.runs.stream(thread, "agent", input=asked, stream_mode=["messages-tuple", "values"])), None


def make_pydantic(row: Row, origin: str, http: Any) -> Any:
    pydantic_ai = pytest.importorskip("pydantic_ai")
    openai = pytest.importorskip("pydantic_ai.models.openai")
    from pydantic_ai.providers.openai import OpenAIProvider

    http.timeout = PATIENCE
    provider = OpenAIProvider(api_key="none", base_url=f"{origin}/v1", http_client=http)
    return contextlib.nullcontext(pydantic_ai.Agent(openai.OpenAIChatModel("m", provider=provider)))


async def pydantic_run(agent: Any, prompt: str) -> Got:
    async with agent.run_stream(prompt) as result:
        texts = [text async for text in result.stream_text(delta=True, debounce_by=None)]
        parts = [(type(part), part.content) for part in result.response.parts]
        return texts, (parts, result.response.finish_reason, result.response.provider_response_id, await result.get_output())


@contextlib.contextmanager
def make_litellm(row: Row, origin: str, http: Any) -> Iterator[Any]:
    # It fetches a list of prices when it is imported, unless it is told not to.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm")
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler, HTTPHandler

    name = "client_session" if row.sync else "aclient_session"
    setattr(litellm, name, http)
    try:
        # The transport of the client, which will close it.
        handler = HTTPHandler(client=http) if row.sync else AsyncHTTPHandler(transport=http._transport)
        options = {"api_key": "none", "timeout": PATIENCE, "stream": True}
        call = litellm.completion if row.sync else litellm.acompletion
        yield types.SimpleNamespace(litellm=litellm, call=call, handler=handler, origin=origin, options=options)
    finally:
        setattr(litellm, name, None)
        # It keeps the SDKs' clients, and ours is closed.
        litellm.in_memory_llm_clients_cache.flush_cache()


async def _litellm(lite: Any, prompt: str, **asked: Any) -> Got:
    stream = await now(lite.call(messages=[{"role": "user", "content": prompt}], **asked, **lite.options))
    # Its streams are both sync and async, whatever they were asked for.
    chunks = await collected((chunk for chunk in stream) if lite.call is lite.litellm.completion else stream)
    # The ids and the time are litellm's own.
    return [chunk.model_dump(exclude={"id", "created"}) for chunk in chunks], None


async def litellm_openai(lite: Any, prompt: str) -> Got:
    return await _litellm(lite, prompt, model="openai/m", api_base=f"{lite.origin}/v1")


async def litellm_anthropic(lite: Any, prompt: str) -> Got:
    return await _litellm(lite, prompt, model="anthropic/m", api_base=lite.origin, max_tokens=100, client=lite.handler)


def make_a2a(row: Row, origin: str, http: Any) -> Any:
    sdk = pytest.importorskip("a2a.client")
    a2a = pytest.importorskip("a2a.types")
    http.timeout = PATIENCE
    http.headers["A2A-Version"] = "1.0"
    door = a2a.AgentInterface(url=f"{origin}/a2a", protocol_binding="JSONRPC", protocol_version="1.0")
    card = a2a.AgentCard(
        name="agent", version="1", capabilities=a2a.AgentCapabilities(streaming=True), supported_interfaces=[door]
    )
    return contextlib.nullcontext(sdk.ClientFactory(sdk.ClientConfig(httpx_client=http)).create(card))


async def a2a_task(sdk: Any, prompt: str) -> Got:
    a2a = pytest.importorskip("a2a.types")
    message = a2a.Message(message_id="m1", role=a2a.Role.ROLE_USER, parts=[a2a.Part(text=prompt)])
    return await collected(sdk.send_message(a2a.SendMessageRequest(message=message))), None


@dataclass(frozen=True)
class SDK:
    """
    One SDK, one API.

    Attributes:
        make: Of the row, where the API is, and a client of the row's library: an SDK's client, in a context.
        read: Reads an answer to a prompt.
        named: What may be named, so that an answer whose head got lost is asked for again. `None`: nothing.
    """

    make: Callable[[Row, str, Any], Any]
    read: Callable[[Any, str], Awaitable[Got]]
    rows: Sequence[str]
    named: ResumeProtocol | None = None


_TWO, _THREE = ("sync-httpx2", "asyncio-httpx2"), ("sync-httpx2", "asyncio-httpx2", "trio-httpx2")
_OLDER: Final = ("sync-httpx", "asyncio-httpx")
SDKS: Final[dict[str, SDK]] = {
    "openai-chat": SDK(make_openai, openai_chat, (*_THREE, "sync-httpx"), OpenAIChat()),
    "openai-responses": SDK(make_openai, openai_responses, _TWO, OpenAIResponses()),
    "anthropic": SDK(make_anthropic, anthropic_messages, _THREE, AnthropicMessages()),
    "google-genai": SDK(make_google, google_generate, _TWO, GeminiGenerate()),
    "google-interactions": SDK(make_google, google_interactions, _TWO),
    "ollama": SDK(make_ollama, ollama_chat, _OLDER, OllamaNDJSON()),
    "langgraph": SDK(make_langgraph, langgraph_run, _OLDER),
    "pydantic-ai": SDK(make_pydantic, pydantic_run, ("asyncio-httpx2",), OpenAIChat()),
    "a2a": SDK(make_a2a, a2a_task, ("asyncio-httpx",)),
    "litellm-openai": SDK(make_litellm, litellm_openai, _OLDER, OpenAIChat()),
    "litellm-anthropic": SDK(make_litellm, litellm_anthropic, _OLDER, AnthropicMessages()),
}
# litellm has an environment of its own, where what it is built on need not be tested again.
HERE: Final = [name for name in SDKS if name.startswith("litellm") is LITELLM]
each_row = pytest.mark.parametrize(("name", "row"), [(name, row) for name in HERE for row in SDKS[name].rows], indirect=["row"])


# --- what they are read through


class Way(NamedTuple):
    provider: Provider
    relay: str
    cuts: Cuts


@pytest.fixture(scope="module")
def way() -> Iterator[Way]:
    provider = Provider()
    with relaying({f"/{name}": provider.origin for name in SDKS}) as relay:
        cuts = Cuts(int(relay.rpartition(":")[2]))
        try:
            yield Way(provider, relay, cuts)
        finally:
            cuts.close()
            provider.close()


def read(name: str, row: Row, origin: str, calls: Sequence[Call], **options: Any) -> list[Got | Exception]:
    """Make the calls with one client, `AT_ONCE` at a time; `options` are those of `sdks.client`."""
    sdk = SDKS[name]
    found: dict[int, Got | Exception] = {}

    async def one(made: Any, call: Call) -> None:
        try:
            found[call.number] = await sdk.read(made, call.prompt)
        except Exception as error:
            found[call.number] = error

    async def all_of_them() -> None:
        async with opened(client(row, **options)) as http, opened(sdk.make(row, origin, http)) as made:
            if row.sync:
                with ThreadPoolExecutor(AT_ONCE) as pool:
                    list(pool.map(lambda call: row.run(one, made, call), calls))
                return
            limiter = anyio.CapacityLimiter(AT_ONCE)

            async def limited(call: Call) -> None:
                async with limiter:
                    await one(made, call)

            async with anyio.create_task_group() as group:
                for call in calls:
                    group.start_soon(limited, call)

    row.run(all_of_them)
    return [found[call.number] for call in calls]


def directly(name: str, row: Row, way: Way, likes: int) -> list[Got | Exception]:
    """What the SDK reads without a relay and without us."""
    found = read(name, row, way.provider.origin, [Call.new(like) for like in range(likes)], through=False)
    for got in found:
        assert not isinstance(got, Exception) and len(got[0]) >= 3, repr(got)
    return found


# --- the tests


@each_row
def test_an_sdk_that_is_unmodified_reads_what_the_api_sent(name: str, row: Row, way: Way) -> None:
    whole = directly(name, row, way, LIKES)
    calls = [Call.new(n % LIKES) for n in range(ANSWERS // len(SDKS[name].rows))]
    for call, got in zip(calls, read(name, row, f"{way.relay}/{name}", calls, through=False), strict=True):
        assert got == whole[call.like], call
        assert way.provider.calls[call.number] == 1, call


@pytest.mark.parametrize(
    ("name", "row", "named"),
    [(name, row, named) for name in HERE for row in SDKS[name].rows for named in (False, True) if SDKS[name].named or not named],
    indirect=["row"],
)
def test_an_answer_is_whole_and_made_once_wherever_it_is_cut(name: str, row: Row, named: bool, way: Way) -> None:
    """Detected: anywhere in the body. Named: in the head too, or before it."""
    protocol = SDKS[name].named
    [whole] = directly(name, row, way, 1)
    origin = f"{way.cuts.origin}/{name}"
    first = Call.new()
    [got] = read(name, row, origin, [first], through=False)
    assert got == whole
    head, body = way.cuts.answers[first.number]

    chance = random.Random(f"{SEED} {name} {row!r} {named}")
    calls = []
    for n, how in zip(range(CUTS), itertools.cycle(WAYS[:3])):
        place = chance.randrange(0 if named else head, head + len(body))
        if n % 10 == 0:
            # It takes its time, so it is rarer.
            how = "silence"
        elif how == "clean" and body[: max(place - head, 0)].endswith((b"\n\n", b"\r\n", b"}\n")):
            # Right after the reason of its end, an answer that is closed properly is whole for all that is known.
            how = "fin"
        calls.append(Call.new(0, place, how))
    # And before the last events, which bring the usage and the end.
    ends = [len(body) - len(rest) for rest in itertools.accumulate(reversed(pieces(body)[-3:]), lambda a, b: b + a)]
    calls += [Call.new(0, head + end, how) for end in ends for how in ("rst", "fin")]

    options: dict[str, Any] = {"protocols": [Relayed(protocol)]} if named and protocol is not None else {}
    for call, got in zip(calls, read(name, row, origin, calls, retry=RETRY, timeouts=SILENT, **options), strict=True):
        where = f"SEED={SEED}: {call}, of a head of {head} bytes and a body of {len(body)}"
        assert got == whole, where
        assert call.number in way.cuts.cut, where
        assert way.provider.calls[call.number] == 1, where


def pieces(body: bytes) -> list[bytes]:
    """Its events, as they were sent."""
    return re.findall(rb".+?(?:\r\n\r\n|\n\n|(?<=})\n)", body, re.DOTALL)
