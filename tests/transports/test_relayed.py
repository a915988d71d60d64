"""A relayed answer below an SDK that knows nothing of it: its bytes are the provider's, wherever the connections are cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import resumable_stream as rs
from resumable_stream._contract import Request
from resumable_stream.framing import NDJSONDecoder, SSEDecoder
from resumable_stream.protocols import HubStream, OpenAIChat, Relayed
from tests.core.simulation import DROPPED, NO_ANSWER, UNSENT, Failure, Sent
from tests.core.simulation import Reply as Answer
from tests.cutting import Where, at_every_byte, chunk_at, in_turn
from tests.protocols.test_relayed import BEATS, CHAT, GEMINI, LINES, MESSAGES, OLLAMA, PROVIDERS, UPSTREAM_CUT, Provider, Relay

from .conftest import CUTS, Reply, Rig

each_provider = pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
# Their requests say that they ask for a stream, so that they get a key.
KNOWN = [provider for provider in PROVIDERS if provider.name not in ("LastEventID", "NDJSON")]
each_known = pytest.mark.parametrize("provider", KNOWN, ids=lambda provider: provider.name)


def serve(rig: Rig, relay: Callable[[Sent], Answer | Failure]) -> Callable[[Any], Reply | BaseException]:
    """The relay of the protocol's own tests, over the requests of a library."""
    module = rig.module

    def answer(request: Any) -> Reply | BaseException:
        content = json.loads(request.content) if request.content else None
        headers = {name.lower(): value for name, value in request.headers.items()}
        url = str(request.url)
        told = relay(Sent(request.method, url, headers, content, 0.0, None, False, Request(method=request.method, url=url)))
        if isinstance(told, Failure):
            if told.unsent:
                return module.ConnectError("refused")
            return module.ReadTimeout("timed out") if told.timeout else module.RemoteProtocolError("disconnected")
        *steps, last = [*told.steps, "close"] if not told.steps or isinstance(told.steps[-1], bytes) else told.steps
        head = told.head(url)
        return Reply([step for step in steps if isinstance(step, bytes)], str(last), told.status, dict(head.headers))

    return answer


def events(provider: Provider, body: bytes) -> list[str]:
    decoder = NDJSONDecoder() if provider.kind == LINES else SSEDecoder()
    return [event.data for event in [*decoder.feed(body), *decoder.eof()]]


def written(provider: Provider) -> bytes:
    """What the reader gets of it: an empty line between lines of JSON could be a heartbeat."""
    return b"".join(block for block in provider.blocks if block != BEATS[provider.kind])


def post(rig: Rig, client: Any, provider: Provider, **options: Any) -> Any:
    return rig.read(client, "POST", provider.url, json=provider.body, **options)


def failures(rig: Rig) -> tuple[type[BaseException], ...]:
    return (rig.module.TransportError,)


@pytest.mark.parametrize("how", CUTS)
@each_provider
async def test_wherever_it_is_cut(rig: Rig, provider: Provider, how: str, where: Where) -> None:
    relays: list[Relay] = []
    client = rig.client(lambda request: serve(rig, relays[-1])(request))
    for index, position in enumerate(where(provider.blocks)):
        turn = CUTS.index(how)
        # At every byte in one of the ways: an answer has thousands, and all ways at each of them are tried in tests/protocols.
        if not in_turn(where, index, turn) or (where is at_every_byte and position % len(CUTS) != turn):
            continue
        # By default one row takes what the other leaves.
        if where is not at_every_byte and index % 2 == rig.row.sync:
            continue
        relays.append(provider.relay(cuts=[(position, how)], chunk=chunk_at(where, position)))
        response, chunks = await post(rig, client, provider)
        place = f"{how} at {position}"
        stream = rs.stream_of(response)
        found = events(provider, b"".join(chunks))
        assert found == provider.data[: len(found)], place
        # A clean close behind the event that settles the outcome is believed; what follows it is no piece of the answer.
        tail = {"OpenAIChat": 2, "AnthropicMessages": 1}.get(provider.name, 0) if how == "close" else 0
        assert len(found) >= len(provider.data) - tail, place
        assert isinstance(stream.protocol, Relayed) and stream.outcome is rs.Outcome.COMPLETED, place
        assert sum(sent.method == "POST" for sent in rig.sent) == len(relays), place


@each_provider
async def test_the_bytes_are_those_of_the_provider(rig: Rig, provider: Provider) -> None:
    """Comments of the provider's too, and none of the relay's, which readers like google-genai cannot bear."""
    client = rig.client(serve(rig, provider.relay()))
    _, chunks = await post(rig, client, provider)
    assert b"".join(chunks) == written(provider)


@each_known
async def test_heartbeats_that_we_asked_for_stay_with_us(rig: Rig, provider: Provider) -> None:
    for size in (None, 1, 2, 7):
        client = rig.client(serve(rig, provider.relay(chunk=size)), protocols=[Relayed(provider.protocol)])
        _, chunks = await post(rig, client, provider)
        assert rig.sent[-1].headers["stream-heartbeat"] == "15", size
        assert b"".join(chunks) == written(provider), size


# --- an answer that got lost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [DROPPED, NO_ANSWER], ids=["dropped", "silent"])
@each_known
async def test_a_lost_head_is_asked_for_again_and_paid_once(rig: Rig, provider: Provider, lost: Failure) -> None:
    relay = provider.relay(lost=[lost, lost, UNSENT], cuts=[(60, "rst")])
    notices: list[Any] = []
    client = rig.client(serve(rig, relay), protocols=[Relayed(provider.protocol)], observer=notices.append)
    _, chunks = await post(rig, client, provider)
    assert events(provider, b"".join(chunks)) == provider.data
    assert len(relay.calls) == 1
    posts = [sent for sent in rig.sent if sent.method == "POST"]
    assert len(posts) == 4 and len({sent.headers["idempotency-key"] for sent in posts}) == 1
    assert all(len(sent.headers["idempotency-key"]) == 32 for sent in posts)
    assert all("idempotency-key" not in sent.headers for sent in rig.sent if sent.method == "GET")
    assert [type(notice).__name__ for notice in notices[:3]] == ["Retrying"] * 3 and "start" in str(notices[0])


async def test_once_an_answer_got_lost_a_busy_relay_is_asked_again_too(rig: Rig) -> None:
    """The SDK's own retry would carry another key."""
    relay = CHAT.relay(lost=[DROPPED])
    steps: list[Any] = [relay, lambda sent: Answer(status=503, headers={"retry-after": "0"}, type=""), relay]
    client = rig.client(lambda request: serve(rig, steps.pop(0))(request), protocols=[Relayed(OpenAIChat())])
    response, chunks = await post(rig, client, CHAT)
    assert (response.status_code, events(CHAT, b"".join(chunks))) == (200, CHAT.data)
    assert (len(relay.calls), rig.closed) == (1, 3)


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_refusal_without_a_loss_is_the_sdks(rig: Rig, status: int) -> None:
    refused = Answer([b'{"error":{}}'], status=status, type="application/json")
    client = rig.client(serve(rig, lambda sent: refused), protocols=[Relayed(OpenAIChat())])
    response, chunks = await post(rig, client, CHAT)
    assert (response.status_code, b"".join(chunks), len(rig.sent)) == (status, b'{"error":{}}', 1)


async def test_what_was_never_sent_is_the_sdks(rig: Rig) -> None:
    client = rig.client(serve(rig, lambda sent: UNSENT), protocols=[Relayed(OpenAIChat())])
    with pytest.raises(rig.module.ConnectError):
        await post(rig, client, CHAT)
    assert len(rig.sent) == 1


async def test_a_relay_that_never_answers_is_given_up_with_the_librarys_error(rig: Rig) -> None:
    retry = rs.RetryPolicy(attempts=3, wait=lambda state: 0.0)
    client = rig.client(serve(rig, lambda sent: DROPPED), protocols=[Relayed(OpenAIChat())], retry=retry)
    with pytest.raises(rig.module.RemoteProtocolError, match="disconnected"):
        await post(rig, client, CHAT)
    assert len(rig.sent) == 3


async def test_the_deadline_holds_for_the_start_too(rig: Rig) -> None:
    retry, timeouts = rs.RetryPolicy(wait=lambda state: 60.0), rs.Timeouts(deadline=30.0)
    client = rig.client(serve(rig, lambda sent: DROPPED), protocols=[Relayed(OpenAIChat())], retry=retry, timeouts=timeouts)
    with pytest.raises(rig.module.RemoteProtocolError):
        await post(rig, client, CHAT)
    assert len(rig.sent) == 1


async def test_the_key_and_the_heartbeat_of_the_sdk_are_the_only_ones(rig: Rig) -> None:
    relay = CHAT.relay(lost=[DROPPED])
    client = rig.client(serve(rig, relay), protocols=[Relayed(OpenAIChat())])
    headers = {"Idempotency-Key": "mine", "Stream-Heartbeat": "5"}
    _, chunks = await post(rig, client, CHAT, headers=headers)
    assert (events(CHAT, b"".join(chunks)), relay.calls) == (CHAT.data, {"mine"})
    assert {sent.headers["stream-heartbeat"] for sent in rig.sent} == {"5"}


@pytest.mark.parametrize("body", [{"model": "m", "messages": []}, {"model": "m", "messages": [], "stream": False}])
async def test_a_request_for_no_stream_gets_no_key(rig: Rig, body: Any) -> None:
    whole = Answer([b"{}"], type="application/json")
    client = rig.client(serve(rig, lambda sent: whole), protocols=[Relayed(OpenAIChat())])
    await rig.read(client, "POST", CHAT.url, json=body)
    assert not {"idempotency-key", "stream-heartbeat"} & set(rig.sent[0].headers)


async def test_without_the_name_nothing_is_added_and_nothing_sent_again(rig: Rig) -> None:
    relay = CHAT.relay(lost=[DROPPED])
    client = rig.client(serve(rig, relay))
    with pytest.raises(rig.module.RemoteProtocolError):
        await post(rig, client, CHAT)
    assert len(rig.sent) == 1 and not {"idempotency-key", "stream-heartbeat"} & set(rig.sent[0].headers)


async def test_a_body_that_is_sent_once_is_not_sent_again(rig: Rig) -> None:
    def pieces() -> Iterator[bytes]:
        yield json.dumps(CHAT.body).encode()

    async def apieces() -> Any:
        yield json.dumps(CHAT.body).encode()

    def answer(request: Any) -> Any:
        return rig.module.RemoteProtocolError("disconnected")

    client = rig.client(answer, protocols=[Relayed(OpenAIChat()), HubStream()])
    with pytest.raises(rig.module.RemoteProtocolError):
        await rig.read(client, "POST", CHAT.url, content=pieces() if rig.row.sync else apieces())
    assert len(rig.sent) == 1 and "idempotency-key" not in rig.sent[0].headers


async def test_a_callable_names_it_too(rig: Rig) -> None:
    relay = MESSAGES.relay(lost=[DROPPED])
    named = {MESSAGES.url: Relayed(MESSAGES.protocol)}
    client = rig.client(serve(rig, relay), protocols=lambda request: named.get(str(request.url)))
    _, chunks = await post(rig, client, MESSAGES)
    assert (events(MESSAGES, b"".join(chunks)), len(relay.calls)) == (MESSAGES.data, 1)


async def test_a_repeated_start_has_fresh_credentials(rig: Rig) -> None:
    relay = CHAT.relay(lost=[DROPPED])

    def refresh(request: Any) -> Any:
        request.headers["Authorization"] = "Bearer fresh"
        return request

    client = rig.client(serve(rig, relay), protocols=[Relayed(OpenAIChat())], refresh=refresh)
    seen: list[str | None] = []
    relay_of = relay.__call__

    def look(sent: Sent) -> Any:
        seen.append(sent.headers.get("authorization"))
        return relay_of(sent)

    client = rig.client(serve(rig, look), protocols=[Relayed(OpenAIChat())], refresh=refresh)
    _, chunks = await post(rig, client, CHAT, headers={"Authorization": "Bearer stale"})
    assert (events(CHAT, b"".join(chunks)), seen) == (CHAT.data, ["Bearer stale", "Bearer fresh"])


# --- ends, and what is not trusted ----------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", [CHAT, MESSAGES, GEMINI, OLLAMA], ids=lambda provider: provider.name)
async def test_a_failed_upstream_raises_as_a_cut_does(rig: Rig, provider: Provider) -> None:
    half = provider.blocks[: len(provider.blocks) // 2]
    client = rig.client(serve(rig, Relay(half, kind=provider.kind, ending=UPSTREAM_CUT)))
    response = await rig.send(client, "POST", provider.url, json=provider.body)
    chunks: list[bytes] = []
    with pytest.raises(failures(rig)) as caught:
        await rig.drain(response, chunks)
    await rig.close(response)
    error = rs.error_of(caught.value)
    assert isinstance(error, rs.StreamInterrupted) and "upstream_cut" in str(error)
    assert events(provider, b"".join(chunks)) == provider.data[: len(events(provider, b"".join(half)))]


async def test_a_log_that_was_made_anew_is_an_error(rig: Rig) -> None:
    client = rig.client(serve(rig, CHAT.relay(cuts=[(300, "rst")], epoch="zz77")))
    with pytest.raises(rig.module.RemoteProtocolError) as caught:
        await post(rig, client, CHAT)
    assert isinstance(rs.error_of(caught.value), rs.CursorExpired)


@pytest.mark.parametrize("named", [False, True])
async def test_credentials_stay_at_their_origin(rig: Rig, named: bool) -> None:
    elsewhere = {"stream-epoch": "k7q2", "content-location": "https://evil.example.net/.streams/q3k"}
    half = Answer([b"".join(CHAT.blocks[:4]), "rst"], headers=elsewhere)
    client = rig.client(serve(rig, lambda sent: half), protocols=[Relayed(OpenAIChat())] if named else None)
    with pytest.raises(failures(rig)) as caught:
        await post(rig, client, CHAT, headers={"Authorization": "Bearer s3cret"})
    assert isinstance(rs.error_of(caught.value), rs.OriginMismatch if named else rs.StreamInterrupted)
    assert {sent.url.host for sent in rig.sent} == {"api.example.com"}


async def test_the_rest_is_asked_for_with_the_credentials_of_the_start(rig: Rig) -> None:
    client = rig.client(serve(rig, CHAT.relay(cuts=[(300, "rst")])))
    await post(rig, client, CHAT, headers={"Authorization": "Bearer s3cret", "x-api-key": "k"})
    rest = rig.sent[1]
    assert (rest.method, rest.headers["authorization"], rest.headers["x-api-key"]) == ("GET", "Bearer s3cret", "k")
    assert "content-type" not in rest.headers and "content-length" not in rest.headers
