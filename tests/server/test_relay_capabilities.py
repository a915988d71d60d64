"""URLs that open one stream of a relay for reading, without the API key; and what somebody learns who asks for another's."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import resumable_stream as rs
from resumable_stream.server import MemoryLog, Relay, _relay_rules
from resumable_stream.server.wire import Facts
from resumable_stream.testing import FlakyServer

from .relay_wires import GEMINI, KEY, OPENAI, OTHER_KEY, WIRES, Wire
from .serving import Served, wait_until
from .test_every_cut_of_a_hub import AT_ONCE, CuttingProxy

SECRET = b"0123456789abcdef"
OWNER = _relay_rules.principal_of(SECRET, Facts("GET", {"authorization": f"Bearer {KEY}"}))
TOKEN = re.compile(r"\d+\.[0-9a-f]{40}\.[0-9a-f]{40}")


class Capable(Served):
    """A relay that makes such URLs."""

    def __init__(self, upstream: FlakyServer, *, log: MemoryLog | None = None, on: bool = True) -> None:
        self.log = log or MemoryLog()
        super().__init__(
            Relay(upstream.origin, self.log, secret=SECRET, capability_urls=on, flush=0.0, cors=["https://page.example"])
        )


@pytest.fixture
def relay() -> Iterator[tuple[Capable, httpx.Client]]:
    with OPENAI.server() as upstream, Capable(upstream) as served, served.client() as client:
        yield served, client


def place_of(client: httpx.Client, wire: Wire = OPENAI) -> str:
    answer = client.post(wire.target, json=wire.body, headers=wire.credentials())
    assert answer.content == wire.transcript
    return str(answer.headers["content-location"])


def token_of(place: str) -> str:
    path, question, query = place.partition("?t=")
    assert path.startswith("/.streams/") and question and TOKEN.fullmatch(query)
    return query


# --- what it opens ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", WIRES, ids=repr)
def test_a_url_opens_its_stream_for_reading_without_the_key(wire: Wire) -> None:
    with wire.server() as upstream, Capable(upstream) as served, served.client() as client:
        place = place_of(client, wire)
        path = place.partition("?")[0]
        assert client.get(f"{place}&view=verbatim").content == wire.transcript
        events = client.get(place)
        assert events.text.count("\nid: ") == wire.events + 1
        assert client.head(place).headers["stream-outcome"] == "completed"
        assert client.get(f"{path}/message?t={token_of(place)}").json()["outcome"] == "completed"
        # As an `EventSource` comes back: the same URL, and the last id in a header.
        ids = re.findall(r"^id: (.*)$", events.text, re.MULTILINE)
        for n, last in enumerate(ids[:-1]):
            rest = client.get(place, headers={"last-event-id": last, "origin": "https://page.example"})
            assert rest.headers["access-control-allow-origin"] == "https://page.example"
            assert re.findall(r"^id: (.*)$", rest.text, re.MULTILINE) == ids[n + 1 :]
        assert client.get(place, headers={"last-event-id": ids[-1]}).status_code == 204
    assert len(upstream.requests) == 1


def test_a_url_neither_cancels_nor_deletes() -> None:
    server = FlakyServer(OPENAI.blocks[:3], hold_open=True, keep_alive=False)
    with server as upstream, Capable(upstream) as served, served.client() as client:
        with client.stream("POST", OPENAI.path, json=OPENAI.body, headers=OPENAI.credentials()) as answer:
            place = answer.headers["content-location"]
            path, token = place.partition("?")[0], token_of(place)
            assert client.post(f"{path}/cancel?t={token}").status_code == 404
            assert client.delete(place).status_code == 404
            assert client.post(f"{path}/cancel?t={token}", headers=OPENAI.credentials(OTHER_KEY)).status_code == 404
            assert "stream-outcome" not in client.head(place).headers
            assert client.post(f"{path}/cancel?t={token}", headers=OPENAI.credentials()).status_code == 202
            assert upstream.wait_disconnected(30.0)
    assert token.split(".")[1] == OWNER


def test_it_is_valid_for_the_retention_and_nobody_lengthens_it_by_asking(relay: tuple[Capable, httpx.Client]) -> None:
    _, client = relay
    before = time.time()
    place = place_of(client)
    expires = int(token_of(place).partition(".")[0])
    assert int(before) + 86400 <= expires <= time.time() + 86400
    older = f"{place.partition('?')[0]}?t={_relay_rules.capability_of(SECRET, OWNER, id_of(place), int(time.time()) + 60)}"
    for query in ("", "&view=verbatim"):
        # With the key too: the URL is that of the request.
        for headers in ({}, OPENAI.credentials()):
            assert client.get(f"{older}{query}", headers=headers).headers["content-location"] == older
    # Who shows the key gets one for the whole time.
    with_key = client.head(place.partition("?")[0], headers=OPENAI.credentials()).headers["content-location"]
    assert int(token_of(with_key).partition(".")[0]) >= expires


def id_of(place: str) -> str:
    return place.partition("?")[0].rpartition("/")[2]


# --- what it does not open --------------------------------------------------------------------------------------------


def calls_of(client: httpx.Client) -> dict[str, int]:
    """Calls of the log so far, by verb, but for those that the clock makes."""
    found = re.findall(r'^relay_log_calls_total\{verb="(\w+)"\} (\d+)$', client.get("/.metrics").text, re.MULTILINE)
    return {verb: int(count) for verb, count in found if verb not in ("orphans", "renew", "compact")}


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["by turns", "every"])
def test_whatever_is_wrong_is_answered_as_an_unknown_id_after_the_same_calls_of_the_log(
    relay: tuple[Capable, httpx.Client], every: bool
) -> None:
    served, client = relay
    place, other = place_of(client), place_of(client)
    wait_until(lambda: served.call(served.log.read(key(other))).ending, "their ends")
    path, id, token = place.partition("?")[0], id_of(place), token_of(place)
    now = int(time.time())

    def made(owner: str = OWNER, id: str = id, expires: int = now + 60, secret: bytes = SECRET) -> str:
        return _relay_rules.capability_of(secret, owner, id, expires)

    stranger = _relay_rules.principal_of(SECRET, Facts("GET", {"authorization": f"Bearer {OTHER_KEY}"}))
    expires, owner, digest = token.split(".")
    wrong = {
        "none": "",
        "expired": made(expires=now - 1),
        "of this moment": made(expires=now),
        "for another stream": token_of(other),
        "of another secret": made(secret=b"another secret!!"),
        "of another owner": made(owner=stranger),
        "another owner in it": f"{expires}.{stranger}.{digest}",
        "longer": f"{int(expires) + 1}.{owner}.{digest}",
        "a zero in front": f"0{token}",
        "another digest": f"{expires}.{owner}.{'0' * 40}",
        "upper case": token.upper(),
        "half": token[:-1],
        "more": f"{token}0",
        "not ASCII": token.replace("1", "١").replace("2", "２"),
        "far too long": "9" * 5000,
        "twice": f"{token}&t={token}",
    }

    def asked(target: str, headers: dict[str, str]) -> tuple[Any, ...]:
        before = calls_of(client)
        answer = client.get(target, headers=headers)
        after = calls_of(client)
        names = {name: value for name, value in answer.headers.items() if name != "date"}
        return answer.status_code, answer.content, names, {verb: after[verb] - before.get(verb, 0) for verb in after}

    ways = itertools.product(("", "/message"), ("", "&view=verbatim", "&view=snapshot", "&after=k7q2.1"))
    for way, (suffix, more) in enumerate(ways):
        unknown = asked(f"/.streams/unknown{suffix}?t={more}", OPENAI.credentials())
        assert unknown[0] == 404
        assert unknown == asked(f"/.streams/unknown{suffix}?t={token}{more}", {}), "a token for what is not there"
        assert unknown == asked(f"{path}{suffix}?t={more}", OPENAI.credentials(OTHER_KEY)), "with a key that is not its"
        for turn, (name, value) in enumerate(wrong.items()):
            # By default each in two of the eight ways, without a key and with one.
            for key_given in (False, True):
                if every or (turn + way + 4 * key_given) % 8 == 0:
                    headers = OPENAI.credentials(OTHER_KEY) if key_given else {}
                    assert asked(f"{path}{suffix}?t={value}{more}", headers) == unknown, name
    assert client.get(f"{path}?t={token}&view=verbatim").content == OPENAI.transcript


def key(place: str) -> str:
    from resumable_stream.server.hub import key_of

    return key_of(id_of(place), OWNER)


def test_no_token_that_differs_in_one_character_opens_anything() -> None:
    id, now = "q3kZ8sPb1vYw0nR7tLxCdA", 1_000_000.0
    token = _relay_rules.capability_of(SECRET, OWNER, id, int(now) + 60)
    assert _relay_rules.principal_by_capability(SECRET, id, f"t={token}", now) == OWNER
    assert _relay_rules.principal_by_capability(SECRET, id, f"t={token}", now + 60) is None
    for at in range(len(token)):
        for character in "0123456789abcdefA. ":
            if character != token[at]:
                changed = f"{token[:at]}{character}{token[at + 1 :]}"
                assert _relay_rules.principal_by_capability(SECRET, id, f"t={changed}", now) is None
        assert _relay_rules.principal_by_capability(SECRET, id, f"t={token[:at]}{token[at + 1 :]}", now) is None
    for other in (id[:-1], f"{id}0", id.lower(), ""):
        assert _relay_rules.principal_by_capability(SECRET, other, f"t={token}", now) is None


def test_without_the_option_no_url_is_made_and_none_is_taken() -> None:
    log = MemoryLog()
    with OPENAI.server() as upstream:
        with Capable(upstream, log=log) as served, served.client() as client:
            place = place_of(client)
        with Capable(upstream, log=log, on=False) as served, served.client() as client:
            assert client.get(place).status_code == 404
            again = client.get(place, headers=OPENAI.credentials())
            assert again.status_code == 200
            assert again.headers["content-location"] == place.partition("?")[0] == f"/.streams/{id_of(place)}"


# --- where it goes ----------------------------------------------------------------------------------------------------


def test_it_enters_neither_the_log_nor_a_line_nor_a_number_nor_an_error(
    relay: tuple[Capable, httpx.Client], caplog: pytest.LogCaptureFixture
) -> None:
    served, client = relay
    caplog.set_level(logging.DEBUG, "resumable_stream")
    place = place_of(client)
    token = token_of(place)
    told = [
        client.get(f"{place}&view=none").text,
        client.get(f"{place}&after=nothing").text,
        client.get(f"{place}0").text,
        client.put(place).text,
        client.get("/.metrics").text,
        repr(served.log),
        repr(vars(served.log)),
        caplog.text,
    ]
    for secret in (token, token.rpartition(".")[2]):
        assert [each for each in told if secret in each] == []


# --- our own client ---------------------------------------------------------------------------------------------------


def test_who_has_the_key_goes_on_with_it_and_his_token_holds_nothing_that_opens() -> None:
    server = FlakyServer(OPENAI.blocks[:4], hold_open=True, keep_alive=False)
    with server as upstream, Capable(upstream) as served:
        headers = OPENAI.credentials()
        with rs.connect("POST", f"{served.url}{OPENAI.path}", json=dict(OPENAI.body), headers=headers) as stream:
            before = [next(stream).data for _ in range(3)]
        assert TOKEN.search(stream.token) is None and "?t=" not in stream.token and OWNER not in stream.token
        upstream.append(*OPENAI.blocks[4:])
        with rs.resume(stream.token, origin=served.url, headers=headers, retry=AT_ONCE) as again:
            whole = before
            for event in again:
                whole.append(event.data)
                if event.data == "[DONE]":
                    break
        assert len(whole) == OPENAI.events
        with rs.resume(stream.token, origin=served.url, headers=headers) as again:
            next(again)
            again.cancel()


@pytest.mark.parametrize("step", [97, pytest.param(5, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
@pytest.mark.parametrize("wire", [OPENAI, GEMINI], ids=repr)
def test_a_url_is_followed_by_our_client_over_a_cut_at_every_place(wire: Wire, step: int) -> None:
    with wire.server() as upstream, Capable(upstream) as served, served.client() as client:
        place = place_of(client, wire)

        async def scenario() -> None:
            async with CuttingProxy([served.url]) as proxy, httpx.AsyncClient() as shared:
                for query in ("", "&view=verbatim"):
                    expected: list[str] = []
                    for at in proxy.everywhere(1, step):
                        url = f"{proxy.url}{place}{query}"
                        async with rs.aconnect("GET", url, client=shared, retry=AT_ONCE) as stream:
                            got = [event.data async for event in stream]
                        expected = expected or got
                        assert got == expected and len(got) >= wire.events, at

        asyncio.run(scenario())
