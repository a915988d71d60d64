"""
SDKs, as they are, behind two relays of which one is killed (`kill -9`) in mid-answer.

Where the API cannot resume, the SDK raises, and what was logged can be read. Where it can, the other relay goes on, and the SDK
over our transport reads all of it.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from resumable_stream.testing import FlakyServer
from resumable_stream.transports.httpx import ResumableTransport
from tests.cli.test_relay import client_of, outcome_in_the_end, relay
from tests.cli.test_relay_killed import FRAMES, Responses, RoundRobin, kill
from tests.cli.test_serve import Served
from tests.redis_server import RedisServer
from tests.server.relay_wires import ANTHROPIC, GEMINI, KEY, OLLAMA, OPENAI, Wire

pytestmark = [pytest.mark.integration]

PATIENCE = 120.0
ASK: Any = [{"role": "user", "content": "Why?"}]


def openai_texts(url: str, transport: Any = None) -> Iterator[str]:
    import openai

    http = httpx.Client(transport=transport, trust_env=False)
    with openai.OpenAI(api_key=KEY, base_url=f"{url}/v1", max_retries=0, timeout=PATIENCE, http_client=http) as sdk:
        for chunk in sdk.chat.completions.create(model="m", messages=ASK, stream=True):
            yield chunk.choices[0].delta.content or ""


def anthropic_texts(url: str) -> Iterator[str]:
    import anthropic

    with anthropic.Anthropic(api_key=KEY, base_url=url, max_retries=0, timeout=PATIENCE) as sdk:
        for event in sdk.messages.create(model="m", max_tokens=9, messages=ASK, stream=True):
            yield getattr(getattr(event, "delta", None), "text", "")


def gemini_texts(url: str) -> Iterator[str]:
    genai = pytest.importorskip("google.genai")
    sdk = genai.Client(api_key=KEY, http_options={"base_url": url, "timeout": int(PATIENCE * 1000)})
    for chunk in sdk.models.generate_content_stream(model="m", contents="Why?"):
        yield chunk.text or ""


def ollama_texts(url: str) -> Iterator[str]:
    import ollama

    for chunk in ollama.Client(host=url, timeout=PATIENCE, headers=OLLAMA.credentials()).chat(
        model="m", messages=ASK, stream=True
    ):
        yield chunk["message"]["content"]


@pytest.fixture
def store(redis_server: RedisServer) -> str:
    return redis_server.url


@contextlib.contextmanager
def two_relays(upstream: FlakyServer, store: str, tmp_path: Path) -> Iterator[tuple[list[Served], RoundRobin]]:
    (tmp_path / "relay.toml").write_text("lease = 4.0")
    arguments = ("--upstream", upstream.origin, "--store", store, "--config", "relay.toml")
    with relay(*arguments, cwd=tmp_path) as first, relay(*arguments, cwd=tmp_path) as second:
        proxy = RoundRobin([first, second])
        try:
            yield [first, second], proxy
        finally:
            proxy.close()


def kill_the_one_that_serves(relays: list[Served], proxy: RoundRobin) -> Served:
    """The other one is left."""
    dead = next(each for each in relays if each.url.endswith(f":{proxy.taken[-1]}"))
    kill(dead)
    return next(each for each in relays if each is not dead)


@pytest.mark.parametrize(
    ("wire", "texts"),
    [(OPENAI, openai_texts), (ANTHROPIC, anthropic_texts), (GEMINI, gemini_texts), (OLLAMA, ollama_texts)],
    ids=lambda value: repr(value) if isinstance(value, Wire) else "",
)
def test_an_sdk_raises_when_its_relay_is_killed_and_what_was_logged_can_be_read(
    wire: Wire, texts: Any, store: str, tmp_path: Path
) -> None:
    sent = wire.blocks[:6]
    server = FlakyServer(sent, hold_open=True, keep_alive=False, format=wire.format, content_type=wire.content_type)
    with server, two_relays(server, store, tmp_path) as (relays, proxy):
        answer = texts(proxy.url)
        next(answer)
        left = kill_the_one_that_serves(relays, proxy)
        with pytest.raises(Exception) as raised:
            list(answer)
        assert not isinstance(raised.value, StopIteration)
        import redis

        with contextlib.closing(redis.Redis.from_url(store)) as log, client_of(left) as client:
            # The id is in the head of the answer, which these SDKs do not hand out.
            ids = [key.split(b'"public_id":"')[1].split(b'"')[0] for key in heads(log) if b'"public_id":"' in key]
            places = [
                f"/.streams/{id.decode()}"
                for id in ids
                if client.head(f"/.streams/{id.decode()}", headers=wire.credentials()).is_success
            ]
            (place,) = places
            assert outcome_in_the_end(client, place, wire.credentials()) == "failed; reason=producer_lost"
            got = b""
            with client.stream("GET", f"{place}?view=verbatim", headers=wire.credentials()) as rest:
                with contextlib.suppress(httpx.RemoteProtocolError):
                    for piece in rest.iter_raw():
                        got += piece
            assert got == b"".join(sent)
        assert left.end(signal.SIGTERM) == 0
    assert len(server.requests) == 1


def heads(log: Any) -> list[bytes]:
    return [value for key in log.keys("*") if log.type(key) == b"hash" for value in log.hgetall(key).values()]


def test_the_openai_sdk_over_our_transport_reads_a_background_response_through_the_death_of_its_relay(
    store: str, tmp_path: Path
) -> None:
    openai = pytest.importorskip("openai")
    fake = Responses(5)
    with fake.server, two_relays(fake.server, store, tmp_path) as (relays, proxy):
        http = httpx.Client(transport=ResumableTransport(httpx.HTTPTransport(trust_env=False)), trust_env=False)
        numbers = []
        with openai.OpenAI(api_key=KEY, base_url=f"{proxy.url}/v1", max_retries=0, timeout=PATIENCE, http_client=http) as sdk:
            for event in sdk.responses.create(model="m", input="Why?", background=True, stream=True):
                numbers.append(event.sequence_number)
                if len(numbers) == 5:
                    kill_the_one_that_serves(relays, proxy)
        assert numbers == list(range(len(FRAMES)))
    assert fake.posts == 1
