"""
Upstreams that can resume, behind a relay: each protocol is cut everywhere in every way, and its relay dies at every event.

The servers are those of `tests/protocols/scenarios.py`. What a relay has logged is read by the same protocol, so "exact" means
here what it means for a client without a relay.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest

from resumable_stream import Outcome, ResumableStreamError
from resumable_stream.server import MemoryLog, Relay
from resumable_stream.server.hub import key_of
from resumable_stream.server.log import Append, Span
from resumable_stream.testing import Fault, FlakyServer, RecordedRequest
from resumable_stream.testing import Reply as HTTPReply

from ..core.simulation import CUTS, Failure, Reply, Result, Stream
from ..cutting import Where, around_each_event, at_every_byte, chunk_at
from ..protocols import test_a2a as a2a
from ..protocols import test_openai_responses as openai_responses
from ..protocols.scenarios import SCENARIOS, Scenario
from .relay_upstreams import (
    AUTH,
    KEY,
    Clock,
    FakeClient,
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
from .serving import Served
from .virtual import run

OWNER = owner_of(AUTH)
RESUMABLE = [
    *(f"A2A-{style}-{away} missed" for style, away in (("rest", 0), ("rest", 3), ("1.0", 1), ("0.3", 0), ("0.3", 2))),
    *("Agno", "Agno-over when we come back", "AISDKStream", "GeminiInteractions-completed", "GeminiInteractions-in progress"),
    *("HubStream", "LangGraphRun", "LangGraphRun-brief", "Letta", "MCPStreamableHTTP", "MCPStreamableHTTP-without polling"),
    *("OpenAIResponses", "Relayed-OpenAIChat", "Relayed-AnthropicMessages", "Relayed-GeminiGenerate", "Relayed-OllamaNDJSON"),
    *("Relayed-OpenAIResponses", "Relayed-LastEventID", "Relayed-NDJSON", "WorkflowRun"),
]


LONG = ("LangGraphRun", "Relayed-AnthropicMessages", "A2A-rest-3 missed", "A2A-0.3-2 missed")


def in_part(names: list[str], ways: Sequence[Any]) -> list[Any]:
    """Each protocol in one of the ways, by turns; `make soak` leaves none out."""
    soak = [pytest.mark.soak, pytest.mark.timeout(1800)]
    return [
        pytest.param(name, way, id=f"{name}-{way}", marks=soak if name in LONG or (row + column) % len(ways) else ())
        for row, name in enumerate(names)
        for column, way in enumerate(ways)
    ]


@pytest.fixture(autouse=True)
def prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    without_waits(monkeypatch)


def places(name: str, where: Where, turn: int) -> list[int]:
    """
    Around each event, by default at a quarter of the places, which differ from one protocol to the next.

    All of them in `make soak`: what a byte more changes is tried without a relay.
    """
    found = around_each_event(SCENARIOS[name].blocks)
    turn += RESUMABLE.index(name)
    return [position for index, position in enumerate(found) if where is at_every_byte or (index + turn) % 4 == 0]


class Over(Exception):
    """The log has been read."""


def read_again(scenario: Scenario, events: list[bytes]) -> Any:
    """What a client makes of the events of a log."""
    made = scenario.stream((0, "rst"), None)
    kind = "application/x-ndjson" if events[0].startswith(b"{") else "text/event-stream"
    replies = [Reply([b"".join(events), "close"], type=kind)]

    def answer(sent: Any) -> Any:
        if not replies:
            raise Over
        return replies.pop()

    state = made.state
    again = Stream(answer, method="POST", url=state.url, json=state.json, protocol=made.machine.protocol, detecting=True)
    found: list[Any] = []
    with contextlib.suppress(Over, ResumableStreamError):
        for event in again:
            found.append(event)
            if len(found) == scenario.at_most:
                break
    return Result(found, again.outcome, None, again)


def what_arrived(name: str, scenario: Scenario, events: list[bytes]) -> Any:
    """As `Scenario.whole` has it."""
    result = read_again(scenario, events)
    if not name.startswith("A2A"):
        return scenario.read(result)
    # A state that comes again stands in place of what came before it, as each reader of the protocol knows.
    since = max((at for at, event in enumerate(result.events) if "task" in a2a.new(event)), default=0)
    return a2a.text_of(result.events[since:])


async def relayed_once(scenario: Scenario, cut: Any, size: int | None) -> tuple[list[bytes], Any, httpx.Response, FakeClient]:
    """Send the request of a scenario through a relay; what is logged, how it ended, and what the client got."""
    stream = scenario.stream(cut, size)
    url = stream.state.url
    client, log = FakeClient(stream.server), MemoryLog()
    async with relaying(client, log, origin_of(url)) as (relay, http):
        answer = await http.post(target_of(url), json=stream.state.json, headers=AUTH)
        id = answer.headers["stream-id"]
        state = await ended(relay, id, OWNER)
        return await logged(log, key_of(id, OWNER)), state, answer, client


@pytest.mark.parametrize(("name", "kind"), in_part(RESUMABLE, CUTS))
def test_an_upstream_that_is_cut_anywhere_is_read_to_its_end(name: str, kind: str, where: Where) -> None:
    scenario = SCENARIOS[name]

    async def main() -> None:
        for position in places(name, where, CUTS.index(kind)):
            place = f"{kind} after byte {position}"
            events, state, answer, client = await relayed_once(scenario, (position, kind), chunk_at(where, position))
            whole, outcome, interrupted = scenario.expected(position, kind)
            assert client.posts == 1, f"{place}: the first request was sent again"
            if interrupted:
                assert (state.ending.outcome, state.ending.reason) == (Outcome.FAILED, "upstream_cut"), place
            else:
                assert state.ending.outcome is outcome, f"{place}: {state.ending}"
                assert answer.content == b"".join(events), place
            if whole is None:
                assert events == [], place
            else:
                assert what_arrived(name, scenario, events) == whole, place

    run(main)


# --- a relay that dies ------------------------------------------------------------------------------------------------


class Two:
    """Two relays over one log; the first one has begun a stream, whose upstream sends no more."""

    def __init__(self, scenario: Scenario, position: int, size: int | None) -> None:
        stream = scenario.stream((position, "rst"), size)
        self.state = stream.state
        self.clock = Clock()
        self.log = MemoryLog(clock=self.clock)
        self.mortal = Mortal(self.log)
        self.first, self.second = HangingClient(stream.server), FakeClient(stream.server)
        self.origin = origin_of(self.state.url)

    @contextlib.asynccontextmanager
    async def dead(
        self, *, stored: bool, headers: Mapping[str, str] = AUTH, **options: Any
    ) -> AsyncIterator[tuple[Any, httpx.AsyncClient, str]]:
        """
        The second relay, when the first one has died, and its lease is over.

        `stored`: the log had all that it had read. Its id is empty where the first one came to the end.
        """
        async with relaying(self.first, self.mortal, self.origin, **options) as (relay, http):
            begun = asyncio.create_task(http.post(target_of(self.state.url), json=self.state.json, headers=headers))
            reached = asyncio.create_task(self.first.reached.wait())
            await asyncio.wait({begun, reached}, timeout=30.0, return_when=asyncio.FIRST_COMPLETED)
            reached.cancel()
            if begun.done():
                yield relay, http, ""
                return
            while len(relay.hub._generations) > 1:
                # The claim of a request with a key.
                await relay.hub._generations.changed.wait()
            ((self.key, running),) = relay.hub._generations._running.items()
            generation = running.generation
            while stored and (generation.acked < generation.n or (generation.note_n < generation.n and generation.continues)):
                await generation._moved.wait()
            self.mortal.dead = True
            self.clock.now += 16.0
            try:
                async with relaying(self.second, self.log, self.origin, **options) as (other, there):
                    yield other, there, generation.id
            finally:
                # What it still does reaches no log, and nobody waits for it.
                running.fenced = True
                begun.cancel()

    @property
    def posts(self) -> int:
        """What costs money, at both relays."""
        first = self.first.sent[0]
        same = (first.method, first.path, first.json)
        return sum((sent.method, sent.path, sent.json) == same for sent in (*self.first.sent, *self.second.sent))


# They send the body of the first request again to resume, and no relay leaves that in a log.
BY_BODY = [name for name in RESUMABLE if name.startswith(("Agno", "Letta"))]
TAKEN_OVER = [name for name in RESUMABLE if name not in BY_BODY]


@pytest.mark.parametrize(("name", "stored"), in_part(TAKEN_OVER, (True, False)))
def test_a_stream_whose_relay_dies_anywhere_goes_on_at_the_next_one(name: str, stored: bool, where: Where) -> None:
    scenario = SCENARIOS[name]

    async def main() -> None:
        for position in places(name, where, stored):
            place = f"dead after byte {position}"
            two = Two(scenario, position, chunk_at(where, position))
            async with two.dead(stored=stored) as (relay, http, id):
                if not id:
                    continue
                known = await two.log.read(two.key, limit_bytes=0)
                answer = await http.get(f"/.streams/{id}?view=verbatim", headers=AUTH)
                state = await ended(relay, id, OWNER)
                events = await logged(two.log, two.key)
            assert two.posts == 1, place
            assert KEY not in f"{known.note}", place
            if known.note is None:
                assert (state.ending.outcome, state.ending.reason) == (Outcome.FAILED, "producer_lost"), place
                assert len(events) <= scenario.named, f"{place}: {len(events)} events and no note"
                continue
            assert state.ending.outcome is scenario.outcome, f"{place}: {state.ending}"
            assert (answer.status_code, answer.content) == (200, b"".join(events)), place
            assert what_arrived(name, scenario, events) == scenario.whole, place

    run(main)


@pytest.mark.parametrize("name", BY_BODY)
def test_a_stream_that_needs_the_first_request_to_resume_ends_with_its_relay(name: str) -> None:
    scenario = SCENARIOS[name]

    async def main() -> None:
        two = Two(scenario, sum(map(len, scenario.blocks[:3])), None)
        async with two.dead(stored=True) as (relay, http, id):
            assert (await two.log.read(two.key, limit_bytes=0)).note is None
            await http.get(f"/.streams/{id}?view=verbatim", headers=AUTH)
            state = await ended(relay, id, OWNER)
            assert (state.ending.reason, state.n) == ("producer_lost", len(await logged(two.log, two.key)))
        assert (two.posts, two.second.sent) == (1, [])

    run(main)


# --- who may take it over, and what may come of it ---------------------------------------------------------------------

BLOCKS = openai_responses.FRAMES
MIDDLE = sum(map(len, BLOCKS[:5]))
RESPONSE = SCENARIOS["OpenAIResponses"]


def numbers(events: list[bytes]) -> list[int]:
    return [json.loads(event.split(b"data: ")[1])["sequence_number"] for event in events]


WHOLE = list(range(len(BLOCKS)))


def test_only_who_shows_the_key_takes_it_over() -> None:
    async def main() -> None:
        two = Two(RESPONSE, MIDDLE, None)
        async with two.dead(stored=True) as (relay, http, id):
            for headers in ({}, {"authorization": "Bearer sk-another"}):
                assert (await http.get(f"/.streams/{id}", headers=headers)).status_code == 404
            # Who asks how it stands, or what its text is, does not go on with it.
            assert "stream-outcome" not in (await http.head(f"/.streams/{id}", headers=AUTH)).headers
            assert (await http.get(f"/.streams/{id}/message", headers=AUTH)).json()["outcome"] is None
            assert two.second.sent == []
            await http.get(f"/.streams/{id}", headers=AUTH)
            assert (await ended(relay, id, OWNER)).ending.outcome is Outcome.COMPLETED
            assert numbers(await logged(two.log, two.key)) == WHOLE
        # The key of the request is that of the reader: nothing else has it.
        assert two.second.keys == [AUTH["authorization"]] * len(two.second.keys)

    run(main)


def test_of_readers_at_several_relays_one_takes_it_over() -> None:
    async def main() -> None:
        two = Two(RESPONSE, MIDDLE, 7)
        third = FakeClient(two.second.server)
        async with two.dead(stored=True) as (_, http, id), relaying(third, two.log, two.origin) as (_, elsewhere):
            clients = [http, elsewhere] * 5
            answers = await asyncio.gather(*(each.get(f"/.streams/{id}?view=verbatim", headers=AUTH) for each in clients))
            events = await logged(two.log, two.key)
            assert numbers(events) == WHOLE
            assert {answer.content for answer in answers} == {b"".join(events)}
            assert sum("starting_after" in sent.params for sent in (*two.second.sent, *third.sent)) == 1
        assert two.posts == 1

    run(main)


def test_a_reader_who_was_there_before_its_lease_was_over_goes_on_without_asking_again() -> None:
    async def main() -> None:
        two = Two(RESPONSE, MIDDLE, None)
        async with two.dead(stored=True, lease=0.3) as (_, http, id):
            two.clock.now -= 16.0
            reading = asyncio.create_task(http.get(f"/.streams/{id}?view=verbatim", headers=AUTH))
            await asyncio.sleep(0.05)
            assert not reading.done() and two.second.sent == []
            two.clock.now += 16.0
            answer = await asyncio.wait_for(reading, 30.0)
            assert numbers(await logged(two.log, two.key)) == WHOLE
            assert answer.content == b"".join(await logged(two.log, two.key))

    run(main)


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_the_upstream_refuses_is_answered_so_and_the_stream_stays_for_the_next(status: int) -> None:
    async def main() -> None:
        two = Two(RESPONSE, MIDDLE, None)
        works, refuses = two.second.server, True

        def server(sent: Any) -> Any:
            return Reply([b"{}"], status=status, type="application/json") if refuses else works(sent)

        two.second.server = server
        async with two.dead(stored=True) as (relay, http, id):
            for _ in range(3):
                for view in ("", "?view=verbatim"):
                    answer = await http.get(f"/.streams/{id}{view}", headers=AUTH)
                    assert (answer.status_code, answer.json()["error"]) == (status, "upstream_refused")
                    assert (await relay.hub.state(id, owner=OWNER)).ending is None
            refuses = False
            answer = await http.get(f"/.streams/{id}?view=verbatim", headers=AUTH)
            events = await logged(two.log, two.key)
            assert (numbers(events), answer.content) == (WHOLE, b"".join(events))
        assert two.posts == 1

    run(main)


def test_a_key_that_runs_out_in_mid_answer_cuts_the_readers_and_a_reader_goes_on_when_it_is_taken_again() -> None:
    async def main() -> None:
        stream = RESPONSE.stream((MIDDLE, "rst"), None)
        works, refuses = stream.server, True

        def server(sent: Any) -> Any:
            if sent.method == "GET" and refuses:
                return Reply([b"{}"], status=401, type="application/json")
            return works(sent)

        client, log = FakeClient(server), MemoryLog()
        async with relaying(client, log, origin_of(stream.state.url)) as (relay, http):
            answer = await http.post(target_of(stream.state.url), json=stream.state.json, headers=AUTH)
            id = answer.headers["stream-id"]
            assert answer.content == b"".join(BLOCKS[:5]).replace(b'"x"', b'"y"')
            assert (await http.get(f"/.streams/{id}", headers=AUTH)).status_code == 401
            refuses = False
            rest = await http.get(f"/.streams/{id}?view=verbatim", headers=AUTH)
            events = await logged(log, key_of(id, OWNER))
            assert (numbers(events), rest.content) == (WHOLE, b"".join(events))
            assert (await ended(relay, id, OWNER)).ending.outcome is Outcome.COMPLETED
        assert client.posts == 1

    run(main)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply([openai_responses.UNKNOWN], status=404, type="application/json"), "upstream_gone"),
        (Reply([openai_responses.OLD], status=400, type="application/json"), "upstream_gone"),
        (Reply([b"{}"], status=410, type="application/json"), "upstream_gone"),
        (Reply([b"{}"], status=422, type="application/json"), "upstream_refused"),
        (Reply([b"<html>"], type="text/html"), "upstream_error"),
        (Reply([b"{}"], status=503, type="application/json"), "upstream_cut"),
        (Failure(unsent=True), "upstream_cut"),
        (Failure(), "upstream_cut"),
    ],
)
@pytest.mark.parametrize("dies", [True, False], ids=["relay dies", "upstream cut"])
def test_what_an_upstream_says_to_the_resume_is_how_the_stream_ends(reply: Any, reason: str, dies: bool) -> None:
    async def main() -> None:
        two = Two(RESPONSE, MIDDLE, None)
        works = two.second.server

        def server(sent: Any) -> Any:
            return works(sent) if sent.method == "POST" else reply

        two.second.server = server
        if dies:
            async with two.dead(stored=True) as (relay, http, id):
                answer = await http.get(f"/.streams/{id}", headers=AUTH)
                state = await ended(relay, id, OWNER)
                events = await logged(two.log, two.key)
        else:
            log = MemoryLog()
            async with relaying(two.second, log, two.origin) as (relay, http):
                id = (await http.post(target_of(two.state.url), json=two.state.json, headers=AUTH)).headers["stream-id"]
                state = await ended(relay, id, OWNER)
                answer = await http.get(f"/.streams/{id}", headers=AUTH)
                events = await logged(log, key_of(id, OWNER))
        assert (state.ending.outcome, state.ending.reason) == (Outcome.FAILED, reason)
        assert numbers(events) == WHOLE[:5]
        assert 'event: end\ndata: {"outcome":"failed"' in answer.text
        assert KEY not in answer.text

    run(main)


def test_a_log_that_is_ahead_of_its_note_gets_no_event_twice() -> None:
    async def main() -> None:
        two = Two(RESPONSE, MIDDLE, None)
        async with two.dead(stored=True) as (relay, http, id):
            # A span was full before the event that the note belongs to.
            page = await two.log.read(two.key, limit_bytes=0)
            writer: Any = await two.log.claim(two.key, lease=0.0)
            more = BLOCKS[5:8]
            span = Span(n=8, b=page.b + sum(map(len, more)), lengths=tuple(map(len, more)), data=b"".join(more))
            await two.log.append([Append(writer, span)])
            answer = await http.get(f"/.streams/{id}?view=verbatim", headers=AUTH)
            events = await logged(two.log, two.key)
            assert (numbers(events), answer.content) == (WHOLE, b"".join(events))
            assert (await ended(relay, id, OWNER)).ending.outcome is Outcome.COMPLETED
        assert [sent.params.get("starting_after") for sent in two.second.sent] == ["4"]

    run(main)


def test_a_stream_for_which_nobody_comes_ends_after_a_while() -> None:
    async def main() -> None:
        two = Two(RESPONSE, MIDDLE, None)
        async with two.dead(stored=True, lease=0.2, takeover_wait=100.0) as (relay, _, id):
            await asyncio.sleep(0.7)  # some sweeps
            assert (await relay.hub.state(id, owner=OWNER)).ending is None
            two.clock.now += 85.0
            state = await ended(relay, id, OWNER)
            assert (state.ending.outcome, state.ending.reason) == (Outcome.FAILED, "producer_lost")
        assert two.second.sent == []

    run(main)


def test_streams_that_wait_do_not_keep_others_from_being_found() -> None:
    async def main() -> None:
        two = Two(RESPONSE, MIDDLE, None)
        async with two.dead(stored=True, lease=0.2) as (relay, _, id):
            page = await two.log.read(two.key, limit_bytes=0)
            for each in range(150):
                writer: Any = await two.log.create(f"waits-{each}", page.head, lease=0.0)
                await two.log.append([Append(writer, None, page.note, None, n=0)])
            await asyncio.sleep(0.5)
            plain = replace(page.head, fingerprint="")
            await two.log.create("plain", plain, lease=0.0)
            for _ in range(20_000):
                found: Any = await two.log.read("plain", limit_bytes=0)
                if found.ending is not None:
                    break
                await asyncio.sleep(0.001)
            assert found.ending.reason == "producer_lost"
            assert (await relay.hub.state(id, owner=OWNER)).ending is None

    run(main)


@pytest.mark.parametrize("over", [True, False], ids=["lease over", "lease not over"])
def test_a_cancel_reaches_the_upstream_though_the_relay_is_dead(over: bool) -> None:
    async def main() -> None:
        two = Two(RESPONSE, MIDDLE, None)
        async with two.dead(stored=True, lease=15.0) as (relay, http, id):
            if not over:
                two.clock.now -= 16.0
            answer = await http.post(f"/.streams/{id}/cancel", headers=AUTH)
            assert answer.status_code == 202
            two.clock.now += 16.0 * (not over)
            state = await ended(relay, id, OWNER)
            assert (state.ending.outcome, state.ending.reason) == (Outcome.CANCELLED, "cancelled_by_user")
            assert (await http.post(f"/.streams/{id}/cancel", headers=AUTH)).status_code == 200
        assert [sent.path for sent in two.second.sent] == ["/v1/responses/resp_1/cancel"]
        assert two.second.keys == [AUTH["authorization"]]

    run(main)


def test_a_stream_that_waits_and_is_deleted_is_stopped_upstream_too() -> None:
    async def main() -> None:
        two = Two(RESPONSE, MIDDLE, None)
        async with two.dead(stored=True) as (_, http, id):
            assert (await http.delete(f"/.streams/{id}", headers={"authorization": "Bearer sk-another"})).status_code == 404
            assert two.second.sent == []
            assert (await http.delete(f"/.streams/{id}", headers=AUTH)).status_code == 204
            assert (await http.get(f"/.streams/{id}", headers=AUTH)).status_code == 404
        assert [sent.path for sent in two.second.sent] == ["/v1/responses/resp_1/cancel"]

    run(main)


def test_a_note_of_a_protocol_that_is_not_known_here_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        two = Two(RESPONSE, MIDDLE, None)
        async with two.dead(stored=True) as (relay, http, id):
            monkeypatch.setattr("resumable_stream.server._relay_takeover.named", lambda name: None)
            reading = asyncio.create_task(http.get(f"/.streams/{id}", headers=AUTH))
            await asyncio.sleep(0.1)
            assert (await relay.hub.state(id, owner=OWNER)).ending is None and two.second.sent == []
            reading.cancel()

    run(main)


def test_a_cancel_of_a_live_stream_is_said_to_the_upstream() -> None:
    async def main() -> None:
        stream = RESPONSE.stream((MIDDLE, "rst"), None)
        client, log = HangingClient(stream.server), MemoryLog()
        async with relaying(client, log, origin_of(stream.state.url)) as (relay, http):
            begun = asyncio.create_task(http.post(target_of(stream.state.url), json=stream.state.json, headers=AUTH))
            await client.reached.wait()
            ((_, running),) = relay.hub._generations._running.items()
            id = running.generation.id
            assert (await http.post(f"/.streams/{id}/cancel", headers=AUTH)).status_code == 202
            assert (await ended(relay, id, OWNER)).ending.outcome is Outcome.CANCELLED
            await begun
        assert [sent.path for sent in client.sent] == ["/v1/responses", "/v1/responses/resp_1/cancel"]

    run(main)


def test_a_relay_that_shuts_down_leaves_the_stream_to_the_next_one() -> None:
    async def main() -> None:
        stream = RESPONSE.stream((MIDDLE, "rst"), None)
        first, second, log = HangingClient(stream.server), FakeClient(stream.server), MemoryLog()
        origin = origin_of(stream.state.url)
        async with relaying(first, log, origin) as (relay, http), relaying(second, log, origin) as (other, there):
            begun = asyncio.create_task(http.post(target_of(stream.state.url), json=stream.state.json, headers=AUTH))
            await first.reached.wait()
            ((_, running),) = relay.hub._generations._running.items()
            id = running.generation.id
            await relay.hub.drain(timeout=0.0, spread=0.0)
            await begun
            answer = await there.get(f"/.streams/{id}?view=verbatim", headers=AUTH)
            events = await logged(log, key_of(id, OWNER))
            assert (numbers(events), answer.content) == (WHOLE, b"".join(events))
            assert (await ended(other, id, OWNER)).ending.outcome is Outcome.COMPLETED

    run(main)


def test_who_sends_the_request_again_with_its_key_goes_on_with_it() -> None:
    async def main() -> None:
        two = Two(RESPONSE, MIDDLE, None)
        headers = {**AUTH, "idempotency-key": "k1"}
        async with two.dead(stored=True, headers=headers) as (_, http, id):
            answer = await http.post(target_of(two.state.url), json=two.state.json, headers=headers)
            events = await logged(two.log, two.key)
            assert answer.headers["stream-id"] == id
            assert (numbers(events), answer.content) == (WHOLE, b"".join(events))
        assert two.posts == 1

    run(main)


def test_a_wait_begins_anew_when_a_stream_has_grown_and_not_when_a_key_was_refused() -> None:
    async def main() -> None:
        two = Two(RESPONSE, MIDDLE, None)
        async with two.dead(stored=True) as (relay, _, _):
            takeovers = relay._takeovers
            page: Any = replace(await two.log.read(two.key, limit_bytes=0), running_until=0.0)
            takeovers._waited(two.key, page)
            (stands, since) = takeovers._seen[two.key]
            takeovers._seen[two.key] = stands, since - 50.0
            assert 50.0 <= takeovers._waited(two.key, page) < 60.0
            assert takeovers._waited(two.key, replace(page, n=page.n + 1)) < 10.0
            # On the log's clock, where that knows.
            assert takeovers._waited(two.key, replace(page, running_until=page.now - 70.0)) == 70.0

    run(main)


def test_an_upstream_that_is_not_configured_here_is_not_asked() -> None:
    async def main() -> None:
        two = Two(RESPONSE, MIDDLE, None)
        stranger = FakeClient(two.second.server)
        async with two.dead(stored=True) as (_, _, id), relaying(stranger, two.log, "https://other.example") as (relay, http):
            reading = asyncio.create_task(http.get(f"/.streams/{id}", headers=AUTH))
            await asyncio.sleep(0.1)
            assert stranger.sent == []
            assert (await relay.hub.state(id, owner=OWNER)).ending is None
            reading.cancel()

    run(main)


# --- over sockets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["rst", "fin", "clean"])
def test_over_sockets_a_reader_notices_nothing_of_an_upstream_that_is_cut(how: Any) -> None:
    ends = list(itertools.accumulate(map(len, BLOCKS)))

    def resume(request: RecordedRequest) -> Any:
        if request.method == "POST":
            return None
        if request.query.get("stream") != "true":
            return HTTPReply(headers={"content-type": "application/json"}, body=b'{"status": "in_progress"}')
        after = int(request.query["starting_after"]) + 1
        return HTTPReply(headers={"content-type": "text/event-stream"}, body=b"".join(BLOCKS[after:]))

    for at in (ends[0], ends[3], ends[3] + 5, ends[7] - 1):
        with FlakyServer(BLOCKS, [Fault.cut(after_bytes=at, how=how)], on_request=resume, keep_alive=False) as upstream:
            with Served(Relay(upstream.origin, MemoryLog(), flush=0.0)) as served, served.client() as client:
                answer = client.post("/v1/responses?key=AIza-in-the-query", json=openai_responses.BODY, headers=AUTH)
                assert answer.content == b"".join(BLOCKS), f"{how} at {at}"
                metrics = client.get("/.metrics").text
                assert 'relay_streams_total{outcome="completed",reason="",upstream="/"} 1' in metrics
                assert 'relay_resumes_total{upstream="/"} 1' in metrics
        assert [request.method for request in upstream.requests].count("POST") == 1
        # The key goes where it went at first, and the API's own parameters beside it.
        assert {request.query["key"] for request in upstream.requests} == {"AIza-in-the-query"}
        assert {request.headers["authorization"] for request in upstream.requests} == {AUTH["authorization"]}
