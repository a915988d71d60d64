"""
SDKs over our transport, through a relay: what they read is whole however it is dropped, although their APIs cannot resume.

The relay is a `FlakyServer` that knows the wire: the head of its answers, and `?after=<epoch>.<events>`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.wires import ASK, WORDS, Wire, chat, gemini, messages, responses
from resumable_stream.protocols import AnthropicMessages, GeminiGenerate, OllamaNDJSON, OpenAIChat, OpenAIResponses, Relayed
from resumable_stream.testing import Fault, RecordedRequest, Reply
from resumable_stream.testing.faults import How

from .sdks import HOWS, PATIENCE, assert_whole, cut, each, now, run, undisturbed

if TYPE_CHECKING:
    from resumable_stream.testing import FlakyServer
    from tests.conftest import Row

pytestmark = [pytest.mark.integration]

SSE, LINES = "text/event-stream", "application/x-ndjson"
HEAD = {"Stream-Epoch": "k7q2", "Stream-Id": "q3k", "Content-Location": "/.streams/q3k"}


def relayed(wire: Wire, kind: str = SSE) -> Wire:
    """The same answer through a relay, whose log has all of it."""

    def log(request: RecordedRequest) -> Reply | None:
        if request.method != "GET":
            return None
        assert (request.path, request.query["view"]) == ("/.streams/q3k", "verbatim")
        after = int(request.query["after"].removeprefix("k7q2."))
        if after == len(wire.frames):
            return Reply(status=204, headers={**HEAD, "Stream-Outcome": "completed"})
        return Reply(headers={"content-type": kind, **HEAD}, body=b"".join(wire.frames[after:]))

    form: Any = {"format": "ndjson"} if kind == LINES else {}
    return replace(wire, options={"headers": HEAD, "on_request": log, **form})


def lines() -> Wire:
    """Ollama's."""
    said = [{"model": "m", "message": {"role": "assistant", "content": word}, "done": False} for word in WORDS]
    last = {"model": "m", "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"}
    return Wire(frames=[json.dumps(line).encode() + b"\n" for line in [*said, last]], lead=0)


async def chatted(sdk: Any, got: list[Any]) -> None:
    async for part in each(await now(sdk.chat(model="m", messages=ASK, stream=True))):
        got.append(part)


def make_ollama(row: Row, server: FlakyServer, http: Any, timeout: float = PATIENCE, **options: Any) -> Any:
    """The SDK has no argument for a client of one's own."""
    import ollama

    made = (ollama.Client if row.sync else ollama.AsyncClient)(host=server.origin, timeout=timeout)
    http.base_url, http.timeout = made._client.base_url, timeout
    made._client = http
    # Left alone: that of its sync client would be awaited for `None`.
    return contextlib.nullcontext(made)


Case = tuple[Callable[..., Any], Any, Wire, Relayed]


def case(name: str) -> Case:
    """How the SDK is made, a reader, the answer, and the protocol."""
    match name:
        case "openai":
            openai = pytest.importorskip("tests.integration.test_sdk_openai")
            return openai.make, openai.complete_helper, relayed(chat()), Relayed(OpenAIChat())
        case "openai-responses":
            openai = pytest.importorskip("tests.integration.test_sdk_openai")
            return openai.make, openai.create_plain, relayed(responses(background=False)), Relayed(OpenAIResponses())
        case "anthropic":
            anthropic = pytest.importorskip("tests.integration.test_sdk_anthropic")
            return anthropic.make, anthropic.helper, relayed(messages()), Relayed(AnthropicMessages())
        case "google-genai":
            genai = pytest.importorskip("tests.integration.test_sdk_google_genai")
            return genai.make, genai.generate, relayed(gemini()), Relayed(GeminiGenerate())
        case _:
            pytest.importorskip("ollama")
            return make_ollama, chatted, relayed(lines(), LINES), Relayed(OllamaNDJSON())


SDKS = ["openai", "openai-responses", "anthropic", "google-genai", "ollama"]
# Ollama's is built on httpx, the others on httpx2.
CASES = [(name, f"{driver}-{'httpx' if name == 'ollama' else 'httpx2'}") for name in SDKS for driver in ("sync", "asyncio")]
each_case = pytest.mark.parametrize(("name", "row"), CASES, indirect=["row"])


@pytest.mark.parametrize("how", HOWS)
@each_case
async def test_an_answer_is_whole_however_it_is_dropped(name: str, row: Row, how: How) -> None:
    make, read, wire, _ = case(name)
    whole = await undisturbed(make, read, row, wire)
    assert len(whole.got) >= len(WORDS)
    ran = await cut(make, read, row, wire, how)
    assert_whole(ran, whole)
    assert ran.streams[0].protocol.name.startswith("Relayed(")


@pytest.mark.parametrize("behind", [0, 1])
@each_case
async def test_what_follows_the_reason_is_part_of_it(name: str, row: Row, behind: int) -> None:
    """The usage, and the last event: cut right before them."""
    make, read, wire, _ = case(name)
    whole = await undisturbed(make, read, row, wire)
    ran = await run(make, read, row, wire, Fault.cut(after_events=len(wire.frames) - 1 - behind, how="rst"))
    assert ran.error is None and ran == whole
    assert len(ran.posts) == 1


@each_case
async def test_an_answer_of_which_not_even_the_head_arrives_is_paid_once(name: str, row: Row) -> None:
    make, read, wire, protocol = case(name)
    whole = await undisturbed(make, read, row, wire)
    faults = (Fault.no_answer(how="rst"), Fault.no_answer(), wire.cut("rst"))
    ran = await run(make, read, row, wire, *faults, protocols=[protocol])
    assert ran.error is None and ran == whole
    # One key, and the SDK tried nothing again by itself.
    assert len(ran.posts) == 3 and len({post.headers["idempotency-key"] for post in ran.posts}) == 1
    assert len({post.headers.get("x-stainless-retry-count") for post in ran.posts}) == 1
