"""The chat of `examples/fastapi_chat` over HTTP. What a browser makes of it is tested in `tests/browser`."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import resumable_stream as rs
from resumable_stream._cli.chat import folder, load
from resumable_stream.protocols import LastEventID
from resumable_stream.server import Hub, MemoryLog
from resumable_stream.testing import FlakyServer, ServerEvent

from ..server.serving import PATIENCE, Gate, Served, wait_until

SID = "conversation-of-this-test"
URL = f"/c/{SID}"


class Model:
    """In place of a model: writes words, the last ones when it may."""

    def __init__(self) -> None:
        self.asked: list[list[dict[str, str]]] = []
        self.gate = Gate()

    async def __call__(self, messages: list[dict[str, str]]) -> AsyncIterator[dict[str, str]]:
        self.asked.append(messages)
        yield {"text": "To "}
        yield {"text": messages[-1]["content"]}
        await self.gate.wait()
        yield {"text": ": yes."}


@contextmanager
def served(answer: Callable[[Any], Any]) -> Iterator[tuple[Served, httpx.Client]]:
    hub = Hub(MemoryLog())
    with Served(load().chat_app(hub, answer)) as server, server.client() as client:
        yield server, client


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def client(model: Model) -> Iterator[httpx.Client]:
    with served(model) as (_, client):
        yield client
        model.gate.open()


def ask(client: httpx.Client, text: str, key: str, *, mid: str = "message-1", **more: str) -> httpx.Response:
    body = {"text": text, "mid": mid, **more}
    return client.post(URL, json=body, headers={"Idempotency-Key": key, "Prefer": "respond-async"})


def feed(client: httpx.Client, until: Callable[[list[tuple[str, Any]]], bool]) -> list[tuple[str, Any]]:
    """The events of the feed, up to the one after which it is true."""
    found: list[tuple[str, Any]] = []
    with rs.connect("GET", f"{client.base_url}/sessions/{SID}/feed", protocol=LastEventID(end="never")) as stream:
        for event in stream:
            found.append((event.event, json.loads(event.data)))
            if until(found):
                break
    return found


def ends(count: int) -> Callable[[list[tuple[str, Any]]], bool]:
    return lambda found: [name for name, _ in found].count("ended") == count


# --- the page


def test_every_conversation_has_an_address_that_nobody_guesses(client: httpx.Client) -> None:
    places = {client.get("/").headers["location"] for _ in range(10)}
    assert len(places) == 10
    assert all(re.fullmatch(r"/c/[A-Za-z0-9_-]{22}", place) for place in places)
    assert client.get("/").headers["cache-control"] == "no-store"


@pytest.mark.parametrize("sid", ["short", "x" * 65, "with%20space-and-more"])
def test_an_address_that_somebody_made_up_is_refused(client: httpx.Client, sid: str) -> None:
    assert client.get(f"/c/{sid}").status_code == 422


def test_the_page_loads_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get(URL)
    assert page.status_code == 200
    assert page.headers["content-security-policy"] == "default-src 'self'"
    assert page.headers["referrer-policy"] == "no-referrer"
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(links) >= 4 and all(link.startswith("/") for link in links)
    for file in sorted((folder() / "static").iterdir()):
        text = file.read_text()
        assert not re.findall(r"https?://(?!www\.w3\.org/)", text), file
        assert client.get(f"/static/{file.name}").text == text


def test_the_code_for_a_phone_is_the_address(client: httpx.Client) -> None:
    answer = client.get(f"{URL}/qr.svg")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/svg+xml")
    assert "<path" in answer.text and answer.text != client.get("/c/another-conversation/qr.svg").text


# --- what is sent


def test_a_message_is_in_the_feed_before_its_answer(client: httpx.Client, model: Model) -> None:
    answer = ask(client, "one", "answer-to-message-1")
    assert (answer.status_code, answer.headers["location"]) == (202, "/streams/answer-to-message-1")
    model.gate.open()
    assert feed(client, ends(1)) == [
        ("message", {"mid": "message-1", "role": "user", "data": {"text": "one", "answer": "answer-to-message-1"}}),
        ("started", {"id": "answer-to-message-1"}),
        ("ended", {"id": "answer-to-message-1", "outcome": "completed"}),
    ]
    with rs.connect("GET", f"{client.base_url}/streams/answer-to-message-1") as stream:
        assert (stream.read_text(), stream.outcome) == ("To one: yes.", rs.Outcome.COMPLETED)


def test_a_message_that_is_sent_twice_is_answered_once(client: httpx.Client, model: Model) -> None:
    first, second = (ask(client, "one", "answer-to-message-1") for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 202)
    assert ask(client, "another", "answer-to-message-1").status_code == 409
    model.gate.open()
    assert [name for name, _ in feed(client, ends(1))] == ["message", "started", "ended"]
    assert len(model.asked) == 1


def test_a_changed_message_supersedes_its_answer(client: httpx.Client, model: Model) -> None:
    ask(client, "one", "answer-to-message-1")
    assert ask(client, "two", "answer-to-message-2", supersedes="answer-to-message-1").status_code == 202
    model.gate.open()
    found = feed(client, ends(2))
    assert ("edited", {"mid": "message-1", "data": {"text": "two", "answer": "answer-to-message-2"}}) in found
    assert ("started", {"id": "answer-to-message-2", "supersedes": ["answer-to-message-1"]}) in found
    assert ("ended", {"id": "answer-to-message-1", "outcome": "cancelled", "reason": "superseded"}) in found
    assert [asked[-1]["content"] for asked in model.asked] == ["one", "two"]
    assert len(model.asked[1]) == 1  # the message before it was changed is not in the history


def test_the_model_is_told_what_was_said_before(client: httpx.Client, model: Model) -> None:
    model.gate.open()
    ask(client, "one", "answer-to-message-1")
    feed(client, ends(1))
    ask(client, "two", "answer-to-message-2", mid="message-2")
    feed(client, ends(2))
    assert model.asked[1] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "To one: yes."},
        {"role": "user", "content": "two"},
    ]


def test_a_message_that_is_not_there_cannot_be_changed(client: httpx.Client, model: Model) -> None:
    assert ask(client, "two", "answer-to-message-2", supersedes="answer-to-message-1").status_code == 404
    assert model.asked == []


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ({"text": "", "mid": "message-1"}, "answer-to-message-1"),
        ({"text": "x" * 32_001, "mid": "message-1"}, "answer-to-message-1"),
        ({"text": "one", "mid": "a b c d e f g"}, "answer-to-message-1"),
        ({"text": "one", "mid": "message-1"}, "guessed"),
        ({"text": "one"}, "answer-to-message-1"),
    ],
)
def test_what_makes_no_sense_is_refused_and_leaves_no_trace(client: httpx.Client, model: Model, body: Any, key: str) -> None:
    assert client.post(URL, json=body, headers={"Idempotency-Key": key}).status_code == 422
    model.gate.open()
    ask(client, "one", "answer-to-message-1")
    assert [name for name, _ in feed(client, ends(1))] == ["message", "started", "ended"]


def test_the_longest_message_is_taken(client: httpx.Client, model: Model) -> None:
    assert ask(client, "x" * 32_000, "answer-to-message-1").status_code == 202


def test_an_earlier_message_is_changed_and_its_answer_stays(client: httpx.Client, model: Model) -> None:
    model.gate.open()
    ask(client, "one", "answer-to-message-1")
    feed(client, ends(1))
    assert client.put(f"{URL}/messages/message-1", json={"text": "first"}).status_code == 204
    ask(client, "two", "answer-to-message-2", mid="message-2")
    found = feed(client, ends(2))
    assert ("edited", {"mid": "message-1", "data": {"text": "first", "answer": "answer-to-message-1"}}) in found
    assert [message["content"] for message in model.asked[1]] == ["first", "To one: yes.", "two"]


def test_a_message_is_deleted_with_its_answer(client: httpx.Client, model: Model) -> None:
    ask(client, "one", "answer-to-message-1")
    # Its receipt may get lost: it is sent again, and nothing more happens.
    for _ in range(2):
        assert client.delete(f"{URL}/messages/message-1").status_code == 204
    model.gate.open()
    ask(client, "two", "answer-to-message-2", mid="message-2")
    found = feed(client, ends(2))
    assert [data for name, data in found if name == "deleted"] == [{"mid": "message-1"}]
    assert ("ended", {"id": "answer-to-message-1", "outcome": "cancelled", "reason": "deleted"}) in found
    assert model.asked[1] == [{"role": "user", "content": "two"}]
    # It stays deleted: a change that comes too late is refused, and its POST that is sent again brings nothing back.
    assert client.put(f"{URL}/messages/message-1", json={"text": "first"}).status_code == 404
    assert ask(client, "one", "answer-to-message-1").status_code == 202
    assert [name for name, _ in feed(client, ends(2))].count("message") == 2


def test_a_message_that_never_was_is_neither_changed_nor_deleted(client: httpx.Client) -> None:
    assert client.put(f"{URL}/messages/message-1", json={"text": "first"}).status_code == 404
    assert client.delete(f"{URL}/messages/message-1").status_code == 404
    assert client.put(f"{URL}/messages/message-1", json={"text": ""}).status_code == 422
    assert client.delete(f"{URL}/messages/bad").status_code == 422


def test_stopping_is_for_everybody(client: httpx.Client, model: Model) -> None:
    ask(client, "one", "answer-to-message-1")
    assert client.post("/streams/answer-to-message-1/cancel").status_code == 202
    assert feed(client, ends(1))[-2:] == [
        ("cancelled", {"id": "answer-to-message-1"}),
        ("ended", {"id": "answer-to-message-1", "outcome": "cancelled", "reason": "cancelled_by_user"}),
    ]


# --- the answers


def test_the_words_are_always_the_same() -> None:
    async def read() -> str:
        app = load()
        return "".join([event["text"] async for event in app.words([{"role": "user", "content": "Why?"}])])

    app = load()
    pause, app.PAUSE = app.PAUSE, 0.0
    try:
        first, second = asyncio.run(read()), asyncio.run(read())
    finally:
        app.PAUSE = pause
    assert first == second == f"You asked: Why?\n\n{app.LESSON} "


def chunk(content: str | None, finish_reason: str | None = None) -> ServerEvent:
    choice = {"index": 0, "delta": {} if content is None else {"content": content}, "finish_reason": finish_reason}
    value = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return ServerEvent(data=json.dumps(value))


@pytest.mark.parametrize(
    ("last", "outcome"), [([chunk(None, "stop"), ServerEvent(data="[DONE]")], "completed"), ([], "failed")], ids=["whole", "cut"]
)
def test_a_model_is_asked_through_its_sdk(
    last: list[ServerEvent], outcome: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "s3cr3t")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with FlakyServer([chunk("Hel"), chunk("lo"), *last]) as upstream:
        with served(load().model("tiny", upstream.origin)) as (_, client):
            ask(client, "one", "answer-to-message-1")
            found = feed(client, ends(1))
            with rs.connect("GET", f"{client.base_url}/streams/answer-to-message-1") as stream:
                text = stream.read_text()
        [request] = upstream.requests
    assert (text, found[-1][1]["outcome"]) == ("Hello", outcome)
    assert json.loads(request.body)["messages"] == [{"role": "user", "content": "one"}]
    assert request.headers["authorization"] == "Bearer s3cr3t"
    assert "s3cr3t" not in json.dumps(found) + caplog.text


# --- the reader


def test_a_program_reads_along(model: Model) -> None:
    with served(model) as (server, client):
        ask(client, "one", "answer-to-message-1")
        reader = subprocess.Popen(
            [sys.executable, str(folder() / "reader.py"), f"{server.url}{URL}"],
            stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        lines: list[str] = []
        assert reader.stdout is not None
        reading = threading.Thread(target=lambda out: lines.extend(iter(out.readline, "")), args=[reader.stdout], daemon=True)
        reading.start()
        try:
            wait_until(lambda: "> one\n" in lines, "the message")
            model.gate.open()
            ask(client, "two", "answer-to-message-2", mid="message-2")
            wait_until(lambda: lines.count("[completed]\n") == 2, "the second answer")
        finally:
            reader.kill()
            reader.wait(PATIENCE)
            reading.join(PATIENCE)
            reader.stdout.close()
    assert "".join(lines) == "\n> one\n\nTo one: yes.\n[completed]\n\n> two\n\nTo two: yes.\n[completed]\n"


def test_the_readme_names_every_file() -> None:
    text = (folder() / "README.md").read_text()
    names = [path.name for path in [*folder().iterdir(), *(folder() / "static").iterdir()] if path.is_file()]
    assert [name for name in names if name not in text and name not in ("README.md", "icon.svg")] == []
    assert Path(folder(), "app.py").read_text().count("hub.respond(") == 1
