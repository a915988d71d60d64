"""What a relay leaves in the log for who goes on: what stands in a note, who goes on from it, and when it is stored."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import resumable_stream as rs
from resumable_stream import Checkpoint, Outcome
from resumable_stream.server import Generation, Hub, MemoryLog
from resumable_stream.server._relay_notes import (
    Credentials,
    Note,
    Refused,
    credentials_of,
    described,
    end_of,
    ending_of,
    merged,
    next_of,
    shown_by,
    without_keys,
)
from resumable_stream.server.log import Append

from .virtual import run

PLACE = Checkpoint(
    protocol="OpenAIResponses", method="POST", url="https://api.example.com/v1/responses", stream_id="resp_1", cursor="4"
)
NOTE = Note("/openai", PLACE, (("openai-organization", "org-1"),))
HERE = {"/openai": "https://api.example.com"}


# --- what stands in it --------------------------------------------------------------------------------------------------


def test_a_note_is_read_as_it_was_written() -> None:
    assert Note.of(NOTE.text()) == NOTE


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "a note of an application",
        '{"relay":2,' + NOTE.text()[11:],
        NOTE.text()[:-5],
        '{"relay":1,"mount":"/"}',
        '{"relay":1,"mount":"/","headers":[["a"]],"place":"{}"}',
        '{"relay":1,"mount":"/","headers":[],"place":"{}"}',
        '{"relay":1,"mount":"/","headers":[],"place":7}',
    ],
)
def test_what_is_no_note_of_this_version_is_none(text: str | None) -> None:
    assert Note.of(text) is None


def test_of_the_first_request_only_what_describes_it_is_noted() -> None:
    sent = [
        ("Authorization", "Bearer k"), ("X-Api-Key", "k"), ("api-key", "k"), ("x-goog-api-key", "k"), ("X-Custom-Auth", "k"),
        ("OpenAI-Organization", "org-1"), ("anthropic-version", "2023-06-01"), ("mcp-session-id", "grants access"),
        ("a2a-notification-token", "k"), ("OpenAI-API-Key", "k"), ("anthropic-auth", "k"),
        ("openai-long", "x" * 2000), ("openai-odd", "a\x7fb"), ("user-agent", "sdk/1"),
    ]  # fmt: skip
    assert described(sent) == (("openai-organization", "org-1"), ("anthropic-version", "2023-06-01"))
    assert len(described([(f"openai-{n}", "x") for n in range(100)])) == 20


def test_a_reader_shows_his_key_and_nothing_of_his_own_request() -> None:
    sent = [("Authorization", "Bearer k"), ("accept", "x/y"), ("origin", "https://page.example")]
    sent += [("anthropic-beta", "b"), ("Mcp-Session-Id", "s")]
    found = shown_by(sent, "view=verbatim&after=k7q2.4&key=AIza")
    assert (found.headers, found.params) == (
        (("Authorization", "Bearer k"), ("anthropic-beta", "b"), ("Mcp-Session-Id", "s")),
        (("key", "AIza"),),
    )
    assert "sk-" not in repr(Credentials((("a", "sk-1"),)))


def test_one_key_is_known_wherever_else_a_request_differs() -> None:
    one = Credentials((("Authorization", "Bearer k"), ("openai-project", "a")), (("key", "AIza"),))
    assert one.grants_like(Credentials((("authorization", "Bearer k"), ("x-tenant", "t")), (("key", "AIza"),)))
    for other in (
        Credentials((("authorization", "Bearer k"),)),
        Credentials((("authorization", "Bearer l"),), (("key", "AIza"),)),
        Credentials((*one.headers, ("mcp-session-id", "s")), one.params),
    ):
        assert not one.grants_like(other)


def test_the_first_request_goes_along_but_for_what_was_its_own() -> None:
    sent = [("authorization", "Bearer k"), ("idempotency-key", "1"), ("content-type", "application/json"), ("x-tenant", "t")]
    assert credentials_of(sent, "").headers == (("authorization", "Bearer k"), ("x-tenant", "t"))


def test_who_asks_may_say_otherwise_than_what_was_noted() -> None:
    assert merged([("openai-beta", "a"), ("openai-project", "p")], [("OpenAI-Beta", "b")]) == (
        ("OpenAI-Beta", "b"),
        ("openai-project", "p"),
    )


def test_a_url_loses_its_keys_and_nothing_else() -> None:
    assert without_keys("https://a.example/x?alt=sse&key=AIza&a=%20b") == "https://a.example/x?alt=sse&a=+b"
    assert without_keys("https://a.example/x?a=%20b&alt=sse") == "https://a.example/x?a=%20b&alt=sse"


# --- who goes on --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("note", "upstreams", "shown", "waited", "expected"),
    [
        (NOTE, HERE, True, 0.0, "go_on"),
        (NOTE, HERE, True, 1e9, "go_on"),
        (NOTE, HERE, False, 599.0, "wait"),
        (NOTE, HERE, False, 600.0, "end"),
        (NOTE, {"/openai": "https://api.example.com.evil.example"}, True, 0.0, "wait"),
        (NOTE, {"/other": "https://api.example.com"}, True, 0.0, "wait"),
        (NOTE, {"/openai": "https://api.example.com/v2"}, True, 600.0, "end"),
        (Note("/openai", rs.Checkpoint(protocol="A2A", method="POST", url=PLACE.url, complete=True)), HERE, False, 0.0, "go_on"),
        (NOTE, {"/openai": PLACE.url}, True, 0.0, "go_on"),
        (NOTE, {"/openai": PLACE.url[:-1]}, True, 0.0, "wait"),
        (None, HERE, True, 0.0, "end"),
    ],
)
def test_what_becomes_of_a_stream_without_a_relay(note: Any, upstreams: Any, shown: bool, waited: float, expected: str) -> None:
    assert next_of(note, upstreams, shown=shown, waited=waited, patience=600.0) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (rs.ResponseRejected("x", status=401, headers={}, body=b""), Refused(401)),
        (rs.ResponseRejected("x", status=403, headers={}, body=b""), Refused(403)),
        (rs.ResponseRejected("x", status=422, headers={}, body=b""), "upstream_refused"),
        (rs.CursorExpired("x"), "upstream_gone"),
        (rs.RetriesExhausted("x", attempts=1, last_error="y"), "upstream_cut"),
        (rs.StreamInterrupted("x", reason="idle"), "upstream_cut"),
        (rs.NotResumable("x"), "upstream_cut"),
        (rs.ReplayDiverged("x"), "upstream_error"),
        (rs.ProtocolViolation("x"), "upstream_error"),
    ],
)
def test_an_error_of_the_upstream_ends_a_stream_without_quoting_it(error: Any, expected: Any) -> None:
    found = end_of(error)
    if isinstance(expected, Refused):
        assert found == expected
    else:
        assert not isinstance(found, Refused)
        assert (found.outcome, found.reason) == (Outcome.FAILED, expected)
        assert "x" not in (found.error or "").replace("expected", "")


def test_each_outcome_has_its_ending() -> None:
    found = {outcome: ending_of(outcome) for outcome in Outcome}
    assert {outcome: ending.outcome for outcome, ending in found.items()} == {outcome: outcome for outcome in Outcome}
    assert found[Outcome.FAILED].reason == "upstream_reported" and found[Outcome.CANCELLED].reason == "upstream_cancelled"


# --- when it is stored --------------------------------------------------------------------------------------------------


class Slow(MemoryLog):
    """Keeps what it was given, and takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Append] = []

    async def append(self, batch: Any, *args: Any, **options: Any) -> Any:
        self.given += batch
        await asyncio.sleep(0.002)
        return await super().append(batch, *args, **options)


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("size", [10, 100_000])
def test_a_note_is_stored_with_the_event_before_it_and_makes_spans_no_shorter(size: int, lazy: bool) -> None:
    log = Slow()
    asked: list[int] = []
    here = 0

    def note() -> str:
        asked.append(here)
        return str(here)

    async def produce(gen: Generation) -> None:
        nonlocal here
        for here in range(1, 301):
            n = here
            await gen.pass_on([f"data: {n}{'x' * size}\n\n".encode()], note if lazy else str(n))
            if n % 7 == 0:
                await asyncio.sleep(0)

    async def main() -> None:
        async with Hub(log, flush=0.0) as hub:
            await hub.start("s", produce)
            with await hub.reader("s") as reader:
                while await reader.next():
                    pass
            page: Any = await log.read("s", limit_bytes=0)
            assert (page.n, page.note) == (300, "300")

    run(main)
    noted = [item for item in log.given if item.note is not None]
    assert all(item.note == str(item.last) for item in noted)
    spans = [item for item in log.given if item.span is not None]
    assert not lazy or len(asked) == len(set(asked)) == len({item.note for item in noted})
    # Each span ends at a note; only one that was too large for its events does not.
    assert len(spans) < 200 if size == 10 else len(spans) >= 30


def test_a_producer_that_releases_its_stream_leaves_it_without_an_end_for_the_next_one() -> None:
    async def first(gen: Generation) -> None:
        await gen.pass_on([b"data: 1\n\n"], "one")
        gen.release()

    async def second(gen: Generation) -> None:
        assert (gen.resumed_from, gen.note) == (1, "one")
        await gen.send("2")

    async def main() -> None:
        log = MemoryLog()
        async with Hub(log, flush=0.0) as hub:
            await hub.start("s", first)
            while "s" in hub._generations:
                await hub._generations.changed.wait(1.0)
            assert (await hub.state("s")).ending is None
        async with Hub(log, flush=0.0, on_lost=second) as hub:
            with await hub.reader("s") as reader:
                got = b""
                while chunk := await reader.next():
                    got += chunk
                assert reader.ending is not None and reader.ending.outcome is Outcome.COMPLETED
            assert b"data: 1\n" in got and b"data: 2\n" in got

    run(main)
