"""Where features of a relay meet: a cancel and events that go on coming, a refusal and a note, a takeover and a lossy log."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from typing import Any

import httpx
import pytest

from resumable_stream import Outcome
from resumable_stream.server import Generation, MemoryLog, Relay, _relay_takeover
from resumable_stream.server._relay_notes import Note
from resumable_stream.server._relay_resuming import _origin, _Port
from resumable_stream.server.hub import key_of
from resumable_stream.server.relay import _Asked
from resumable_stream.server.wire import Facts
from resumable_stream.testing.faulty_log import FaultyLog

from ..core.simulation import Reply
from ..protocols.scenarios import SCENARIOS
from .relay_upstreams import (
    AUTH,
    FakeClient,
    FakeResponse,
    HangingClient,
    Mortal,
    ended,
    logged,
    origin_of,
    owner_of,
    relaying,
    target_of,
    without_waits,
)
from .test_relay_resuming import BLOCKS, MIDDLE, RESPONSE, Two, numbers
from .virtual import run

OWNER = owner_of(AUTH)


@pytest.fixture(autouse=True)
def prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    without_waits(monkeypatch)


@pytest.mark.parametrize("name", ["key", "access_token"])
def test_a_key_in_the_query_is_in_no_log(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        stream = RESPONSE.stream((MIDDLE, "rst"), None)
        client, log = FakeClient(stream.server), MemoryLog()
        async with relaying(client, log, origin_of(stream.state.url)) as (_, http):
            # The client of this test logs its own requests.
            with caplog.filtering(_not_to_the_relay):
                await http.post(f"{target_of(stream.state.url)}?{name}=sk-hidden", json=stream.state.json)
        assert [sent.method for sent in client.sent] == ["POST", "GET"]
        assert all(sent.params[name] == "sk-hidden" for sent in client.sent)
        assert "/v1/responses" in caplog.text and "sk-hidden" not in caplog.text

    run(main)


def _not_to_the_relay(record: logging.LogRecord) -> bool:
    return "http://relay/" not in record.getMessage()


def test_a_key_in_the_query_goes_to_no_other_origin() -> None:
    async def main() -> None:
        client = FakeClient(lambda sent: Reply([b"", "close"]))
        port = _Port(
            client,  # type: ignore[arg-type]
            None,
            lambda size: None,
            origin=_origin("https://api.example.com/v1/responses"),
            params=[("key", "sk-hidden")],
        )
        for url in (
            "https://api.example.com/v1/responses/1?after=2",
            "https://api.example.com:443/v1/responses/1?key=own",
            "https://api.example.com/v1/responses/1",
            "https://elsewhere.example.com/1",
            "http://api.example.com/1",
            "https://api.example.com:8443/1",
        ):
            await port.handle_async_request(httpx.Request("GET", url))
        assert [sent.url.partition("?")[2] for sent in client.sent] == [
            "after=2&key=sk-hidden",
            "key=own",
            "key=sk-hidden",
            "",
            "",
            "",
        ]

    run(main)


def test_a_request_is_shown_without_its_keys() -> None:
    url = "https://api.example.com/v1?key=sk-hidden"
    facts = Facts("POST", {"authorization": "Bearer sk-hidden"}, "key=sk-hidden")
    asked = _Asked("POST", "/v1", url, "/", "", facts, [("authorization", "sk-hidden")], b"sk-hidden", {"key": "sk-hidden"})
    assert "sk-hidden" not in repr(asked)


class Going(HangingClient):
    """Its first answer goes on with another event while the upstream is being told to stop, which takes a while."""

    def __init__(self, server: Any) -> None:
        super().__init__(server)
        self.asked = asyncio.Event()
        self.told = 0

    async def open(self, method: str, url: str, headers: Any, body: bytes) -> FakeResponse:
        if url.endswith("/cancel"):
            self.asked.set()
            for _ in range(20):
                await asyncio.sleep(0.001)
            self.told += 1
        response = await super().open(method, url, headers, body)
        if len(self.sent) == 1:
            steps = response.content._steps
            steps[steps.index(self._hang) + 1 :] = [BLOCKS[5], asyncio.Event().wait]
        return response

    async def _hang(self) -> None:
        self.reached.set()
        await self.asked.wait()


@pytest.mark.parametrize("how", ["cancel", "delete", "delete elsewhere"])
def test_a_live_stream_is_stopped_upstream_although_its_events_go_on_coming(how: str) -> None:
    async def main() -> None:
        stream = RESPONSE.stream((MIDDLE, "rst"), None)
        client, log = Going(stream.server), MemoryLog()
        origin = origin_of(stream.state.url)
        async with relaying(client, log, origin) as (relay, http), relaying(FakeClient(stream.server), log, origin) as (_, there):
            begun = asyncio.create_task(http.post(target_of(stream.state.url), json=stream.state.json, headers=AUTH))
            await client.reached.wait()
            ((_, running),) = relay.hub._generations._running.items()
            id = running.generation.id
            if how == "cancel":
                assert (await http.post(f"/.streams/{id}/cancel", headers=AUTH)).status_code == 202
                assert (await ended(relay, id, OWNER)).ending.outcome is Outcome.CANCELLED
            else:
                by = http if how == "delete" else there
                assert (await by.delete(f"/.streams/{id}", headers=AUTH)).status_code == 204
                assert (await by.get(f"/.streams/{id}", headers=AUTH)).status_code == 404
            await begun
        assert client.told == 1

    run(main)


def test_the_place_of_a_stream_that_is_released_is_not_that_of_its_end() -> None:
    """A note that is due when the upstream refuses the key is read after the stream was closed."""

    async def main() -> None:
        stream = RESPONSE.stream((MIDDLE, "rst"), None)

        def server(sent: Any) -> Any:
            if sent.method == "GET":
                return Reply([b"{}"], status=401, type="application/json")
            return stream.server(sent)

        client, log = FakeClient(server), MemoryLog()
        # The flusher waits for its window, so the note is due after the release.
        async with relaying(client, log, origin_of(stream.state.url), flush=0.5) as (relay, http):
            answer = await http.post(target_of(stream.state.url), json=stream.state.json, headers=AUTH)
            id = answer.headers["stream-id"]
            while relay.hub._generations:
                await relay.hub._generations.changed.wait()
            page: Any = await log.read(key_of(id, OWNER), None, limit_bytes=0)
            place = Note.of(page.note).place
            assert page.ending is None
            assert (page.n, place.offset, place.complete) == (5, 5, False)

    run(main)


def test_a_reader_does_not_wait_for_a_stream_that_nobody_can_go_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        two = Two(RESPONSE, MIDDLE, None)
        async with two.dead(stored=True) as (relay, http, id):
            takeovers = relay._takeovers
            go_on = takeovers._go_on

            async def without_its_place(gen: Generation, **options: Any) -> Any:
                gen.resumed_from = gen.note_n - 1
                return await go_on(gen, **options)

            monkeypatch.setattr(takeovers, "_go_on", without_its_place)
            monkeypatch.setattr(_relay_takeover, "_PATIENCE", 3600.0)
            async with asyncio.timeout(30.0):
                answer = await http.get(f"/.streams/{id}", headers=AUTH)
            assert b"producer_lost" in answer.content
            assert not takeovers._attempts

    run(main)


def test_a_key_that_is_refused_is_shown_once_however_many_readers_have_it() -> None:
    async def main() -> None:
        two = Two(RESPONSE, MIDDLE, None)
        works = two.second.server

        def server(sent: Any) -> Any:
            return Reply([b"{}"], status=401, type="application/json") if sent.method == "GET" else works(sent)

        two.second.server = server
        async with two.dead(stored=True, lease=0.3) as (relay, http, id):
            two.clock.now -= 16.0
            reading = [asyncio.create_task(http.get(f"/.streams/{id}", headers=AUTH)) for _ in range(5)]
            while len(relay.hub._readers) < 5:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            two.clock.now += 16.0
            answers = await asyncio.wait_for(asyncio.gather(*reading), 30.0)
            assert {answer.status_code for answer in answers} == {200}
            assert relay.hub._generations.taken_over == 1

    run(main)


@pytest.mark.parametrize("id", ["resp_\ud800", "resp_" + "x" * (256 << 10)], ids=["no text", "too long"])
def test_a_place_that_no_log_takes_costs_the_stream_its_successor_and_nothing_else(id: str) -> None:
    async def main() -> None:
        stream = RESPONSE.stream((MIDDLE, "close"), None)
        body = b"".join(BLOCKS).replace(b'"resp_1"', json.dumps(id).encode())
        assert body != b"".join(BLOCKS)
        client, log = FakeClient(lambda sent: Reply([body, "close"])), MemoryLog()
        async with relaying(client, log, origin_of(stream.state.url)) as (relay, http):
            for _ in range(2):
                answer = await http.post(target_of(stream.state.url), json=stream.state.json, headers=AUTH)
                assert answer.content == body
                id_here = answer.headers["stream-id"]
                assert (await ended(relay, id_here, OWNER)).ending.outcome is Outcome.COMPLETED

    run(main)


def test_a_url_that_opens_a_stream_takes_nothing_over() -> None:
    async def main() -> None:
        two = Two(RESPONSE, MIDDLE, None)
        async with two.dead(stored=True, capability_urls=True, lease=0.3) as (relay, http, id):
            url = f"/.streams/{id}{relay._capability(OWNER, id)}"
            head = await http.head(url)
            assert (head.status_code, two.second.sent) == (200, [])
            assert (await http.head(f"/.streams/{id}", headers=AUTH)).status_code == 200
            reading = asyncio.create_task(http.get(f"{url}&view=verbatim"))
            with_another_key = asyncio.create_task(http.get(f"{url}&view=verbatim", headers={"authorization": "Bearer sk-other"}))
            while len(relay.hub._readers) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.5)
            assert not reading.done() and not with_another_key.done() and two.second.sent == []
            assert (await http.post(f"{url.replace('?', '/cancel?')}")).status_code == 404
            assert (await http.delete(url)).status_code == 404
            assert two.second.sent == []
            whole = await http.get(f"/.streams/{id}?view=verbatim", headers=AUTH)
            for each in (reading, with_another_key):
                assert (await asyncio.wait_for(each, 30.0)).content == whole.content
            assert {sent.headers.get("authorization") for sent in two.second.sent} == {AUTH["authorization"]}
            assert not any("t=" in sent.url for sent in two.second.sent)

    run(main)


@pytest.mark.parametrize("value", ["Übersetzer", "訳", b"\xdcbersetzer"], ids=["latin", "utf-8", "no utf-8"])
def test_a_header_that_is_not_ascii_passes_also_with_the_request_for_the_rest(value: str | bytes) -> None:
    async def main() -> None:
        stream = RESPONSE.stream((MIDDLE, "rst"), None)
        client, log = FakeClient(stream.server), MemoryLog()
        async with relaying(client, log, origin_of(stream.state.url)) as (relay, http):
            sent = {**AUTH, "x-title": value if isinstance(value, bytes) else value.encode(), "x-stainless": b"1"}
            answer = await http.post(target_of(stream.state.url), json=stream.state.json, headers=sent)
            assert (await ended(relay, answer.headers["stream-id"], OWNER)).ending.outcome is Outcome.COMPLETED
            assert len({each.headers["x-title"] for each in client.sent}) == 1 and len(client.sent) == 2

    run(main)


class Faulty(FaultyLog):
    """One as a process has it that dies."""

    @property
    def dead(self) -> bool:
        return self.log.dead  # type: ignore[attr-defined, no-any-return]

    @dead.setter
    def dead(self, dead: bool) -> None:
        self.log.dead = dead  # type: ignore[attr-defined]


@pytest.mark.parametrize("first", range(8))
def test_a_note_that_was_due_while_its_shard_was_away_is_stored_with_its_events(first: int) -> None:
    async def main() -> None:
        two = Two(RESPONSE, MIDDLE, 7)
        calls, back = 0, False

        def reach(verb: str, id: str) -> Any:
            nonlocal calls
            calls += verb == "append"
            return "reply_lost" if not back and verb == "append" and calls > first else None

        mortal = Mortal(two.log)
        two.mortal = Faulty(mortal, lose=0.0, double=0.0, swap=0.0, reach=reach)  # type: ignore[assignment, arg-type]

        async def later() -> None:
            nonlocal back
            await two.first.reached.wait()
            await asyncio.sleep(0.02)
            back = True

        coming_back = asyncio.create_task(later())
        async with two.dead(stored=True) as (_, http, id):
            await coming_back
            page: Any = await two.log.read(key_of(id, OWNER), None, limit_bytes=0)
            assert (page.n, Note.of(page.note).place.offset) == (5, 5)
            answer = await http.get(f"/.streams/{id}?view=verbatim", headers=AUTH)
            events = await logged(two.log, two.key)
            assert (numbers(events), answer.content) == (list(range(len(BLOCKS))), b"".join(events))

    run(main)


def test_a_reader_who_leaves_while_the_stream_is_claimed_for_him_leaves_no_stream_without_producer() -> None:
    async def main() -> None:
        two = Two(RESPONSE, MIDDLE, None)
        async with two.dead(stored=True) as (relay, http, id):
            claim, claimed = relay.hub._generations.log.claim, asyncio.Event()

            async def slow(*args: Any, **options: Any) -> Any:
                writer = await claim(*args, **options)
                claimed.set()
                await asyncio.sleep(0.05)
                return writer

            relay.hub._generations.log.claim = slow  # type: ignore[method-assign]
            reading = asyncio.create_task(http.get(f"/.streams/{id}", headers=AUTH))
            await claimed.wait()
            reading.cancel()
            await asyncio.wait([reading])
            assert (await asyncio.wait_for(ended(relay, id, OWNER), 10.0)).ending.outcome is Outcome.COMPLETED
            assert not relay._takeovers._attempts

    run(main)


def test_a_reader_does_not_wait_for_a_producer_that_is_stopped_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        two = Two(RESPONSE, MIDDLE, None)
        async with two.dead(stored=True) as (relay, http, id):
            monkeypatch.setattr(_relay_takeover, "_PATIENCE", 3600.0)
            generations = relay.hub._generations
            run = generations.run

            def stopped(*args: Any, **options: Any) -> None:
                run(*args, **options)
                generations.closing = True
                generations.tasks.spawn(generations.stop())

            monkeypatch.setattr(generations, "run", stopped)
            async with asyncio.timeout(30.0):
                begun = asyncio.create_task(http.get(f"/.streams/{id}", headers=AUTH))
                while not generations.closing:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                while relay._takeovers._attempts:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                begun.cancel()

    run(main)


def test_of_refused_streams_nothing_is_kept_when_nobody_comes_back() -> None:
    async def main() -> None:
        stream = RESPONSE.stream((MIDDLE, "rst"), None)

        def server(sent: Any) -> Any:
            return Reply([b"{}"], status=401, type="application/json") if sent.method == "GET" else first(sent)

        def first(sent: Any) -> Any:
            return RESPONSE.stream((MIDDLE, "rst"), None).server(sent)

        async with relaying(FakeClient(server), MemoryLog(), origin_of(stream.state.url)) as (relay, http):
            for _ in range(5):
                await http.post(target_of(stream.state.url), json=stream.state.json, headers=AUTH)
                while relay.hub._generations:
                    await relay.hub._generations.changed.wait()
            assert len(relay._takeovers._leaving) == 1
            assert not relay._takeovers._shown and not relay._takeovers._attempts

    run(main)


def test_who_has_the_key_and_not_the_session_ends_no_stream() -> None:
    """A session of MCP's is not in the log, so a reader without it can read and not go on."""

    async def main() -> None:
        scenario = SCENARIOS["MCPStreamableHTTP"]
        two = Two(scenario, sum(map(len, scenario.blocks[: scenario.named + 1])), None)
        works, session = two.second.server, {"mcp-session-id": "secret-session"}

        def server(sent: Any) -> Any:
            if sent.headers.get("mcp-session-id") != "secret-session":
                return Reply([b"{}"], status=400, type="application/json")
            return works(sent)

        two.second.server = server
        async with two.dead(stored=True, headers={**AUTH, **session}) as (relay, http, id):
            page: Any = await two.log.read(key_of(id, OWNER), None, limit_bytes=0)
            assert Note.of(page.note).needs == ("mcp-session-id",) and "secret-session" not in page.note  # type: ignore[union-attr]
            without = asyncio.create_task(http.get(f"/.streams/{id}?view=verbatim", headers=AUTH))
            while not relay.hub._readers:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            assert two.second.sent == [] and not without.done()
            answer = await http.get(f"/.streams/{id}?view=verbatim", headers={**AUTH, **session})
            assert (await ended(relay, id, OWNER)).ending.outcome is Outcome.COMPLETED
            assert answer.content == (await without).content == b"".join(await logged(two.log, two.key))

    run(main)


@pytest.mark.parametrize("kept", [True, False], ids=["in one piece", "stream"])
def test_who_waits_for_the_head_of_an_answer_has_not_left_it(kept: bool) -> None:
    """A request with a key has no reader before its answer begins, which may take longer than `abandon_after`."""

    async def main() -> None:
        stream = RESPONSE.stream((MIDDLE, "rst"), None)

        class Slow(FakeClient):
            async def open(self, *args: Any) -> FakeResponse:
                if not self.sent:
                    await asyncio.sleep(1.0)
                return await super().open(*args)

        answer_in_one_piece = Reply([b'{"id": "1"}', "close"], type="application/json")
        client = Slow((lambda sent: answer_in_one_piece) if kept else stream.server)
        options = {"abandon_after": 0.1, "lease": 0.3, "keep_answers": kept}
        async with relaying(client, MemoryLog(), origin_of(stream.state.url), **options) as (relay, http):
            generations = relay.hub._generations
            generations.pace = replace(generations.pace, cancel_grace=0.1)
            body = {} if kept else stream.state.json
            answer = await http.post(target_of(stream.state.url), json=body, headers={**AUTH, "idempotency-key": "one"})
            assert answer.status_code == 200 and answer.content
        assert client.posts == 1

    run(main)


def test_who_waits_for_the_upstream_of_a_stream_that_is_taken_over_has_not_left_it() -> None:
    async def main() -> None:
        two = Two(RESPONSE, MIDDLE, None)
        options = {"abandon_after": 0.1, "lease": 0.3}
        async with two.dead(stored=True) as (_, _, id):
            stream = two.second

            class Slow(FakeClient):
                async def open(self, *args: Any) -> FakeResponse:
                    await asyncio.sleep(1.0)
                    return await super().open(*args)

            client = Slow(stream.server)
            async with relaying(client, two.log, two.origin, **options) as (relay, http):
                answer = await http.get(f"/.streams/{id}?view=verbatim", headers=AUTH)
                assert (await ended(relay, id, OWNER)).ending.outcome is Outcome.COMPLETED
                assert answer.content == b"".join(await logged(two.log, two.key))
            assert [sent.method for sent in client.sent] == ["GET"]

    run(main)


def test_a_hub_that_is_given_another_log_is_still_that_of_its_relay() -> None:
    """As `resumable-stream serve --store` does."""

    async def main() -> None:
        first, second = MemoryLog(), MemoryLog()
        relay = Relay("https://api.example.com", first, secret=b"0123456789abcdef", join_retries=True)
        relay.hub.use_log(second)
        assert relay.hub._generations.successor == relay._takeovers.successor
        async with relay:
            stream = RESPONSE.stream((MIDDLE, "rst"), None)
            assert relay._client is not None
            await relay._client.aclose()
            relay._client = relay._takeovers.client = FakeClient(stream.server)  # type: ignore[assignment]
            async with httpx.AsyncClient(transport=httpx.ASGITransport(relay), base_url="http://relay") as http:
                sent = target_of(stream.state.url), stream.state.json
                answers = [await http.post(sent[0], json=sent[1], headers={**AUTH, "x-stainless-retry-count": n}) for n in "01"]
            assert answers[0].content == answers[1].content
            assert answers[0].headers["stream-id"] == answers[1].headers["stream-id"]
        assert not first._streams and second._streams

    run(main)
