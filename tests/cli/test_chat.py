"""`resumable-stream chat`, as a process of its own."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

import resumable_stream as rs
from resumable_stream._cli.app import app
from resumable_stream.testing import FlakyServer

from ..examples.test_fastapi_chat import chunk
from .test_serve import PATIENCE, Served

ANSWER = "answer-to-message-1"
URL = "/c/conversation-of-this-test"
BODY = {"text": "Hello", "mid": "message-1"}


@contextmanager
def served(*arguments: str, cwd: Path) -> Iterator[Served]:
    server = Served("--port", "0", *arguments, cwd=cwd, command="chat", announcement=r"^serving a chat on (\S+)$")
    try:
        yield server
    finally:
        server.close()


def ask(server: Served) -> None:
    headers = {"Idempotency-Key": ANSWER, "Prefer": "respond-async"}
    answer = httpx.post(f"{server.url}{URL}", json=BODY, headers=headers, timeout=PATIENCE, trust_env=False)
    assert answer.status_code == 202


def read(server: Served) -> str:
    with rs.connect("GET", f"{server.url}/streams/{ANSWER}") as stream:
        return stream.read_text()


def test_a_conversation_outlives_the_server(tmp_path: Path) -> None:
    with served(cwd=tmp_path) as first:
        assert first.wait_for("^kept ") == "kept in sqlite:///chat.db"
        assert first.wait_for("^answers: ") == "answers: always the same text; --model asks a model"
        page = httpx.get(first.url, follow_redirects=True, timeout=PATIENCE, trust_env=False)
        assert page.status_code == 200 and "<title>Chat</title>" in page.text
        ask(first)
        # The answer comes to its end while it drains.
        assert first.end(signal.SIGTERM) == 0
    with served(cwd=tmp_path) as second:
        assert read(second).startswith("You asked: Hello\n\nThis answer is written word by word")
        assert second.end(signal.SIGINT) == 0
        # No line for a request: it would hold the address of a conversation.
        assert not re.search("GET|POST", first.text + second.text)


def test_a_model_answers_and_the_key_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "s3cr3t")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with FlakyServer([chunk("Hel"), chunk("lo", "stop")]) as upstream:
        with served("--upstream", f"{upstream.origin}/v1", "--model", "tiny", cwd=tmp_path) as server:
            assert server.wait_for("^answers: ") == f"answers: tiny at {upstream.origin}/v1"
            ask(server)
            assert read(server) == "Hello"
            pages = "".join(
                httpx.get(f"{server.url}{path}", timeout=PATIENCE, trust_env=False).text
                for path in (URL, "/static/chat.js", f"/streams/{ANSWER}")
            )
            assert server.end(signal.SIGTERM) == 0
        assert [request.headers["authorization"] for request in upstream.requests] == ["Bearer s3cr3t"]
    assert "s3cr3t" not in server.text + pages
    assert all(b"s3cr3t" not in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--upstream", "http://127.0.0.1:1/v1"], "--upstream needs --model"),
        (["--upstream", "127.0.0.1:1", "--model", "m"], "expected a URL such as http://127.0.0.1:11434/v1"),
        (["--upstream", "https://me:s3cr3t@example.com/v1", "--model", "m"], "put the key into OPENAI_API_KEY"),
        (["--upstream", "https://example.com/v1?key=s3cr3t", "--model", "m"], "put the key into OPENAI_API_KEY"),
        (["--model", "m"], "needs a key in the variable OPENAI_API_KEY"),
        (["--store", "mysql://me:s3cr3t@db/x"], "--store: "),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments: list[str], sentence: str) -> None:
    done = CliRunner(env={"OPENAI_API_KEY": None}).invoke(app, ["chat", *arguments])
    assert done.exit_code == 2
    assert sentence in done.output and done.output.count("\n") == 1
    assert "s3cr3t" not in done.output


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "segno", "openai"])
def test_a_missing_extra_is_named(
    missing: str, app_without: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["chat", "--upstream", "http://127.0.0.1:1/v1", "--model", "m", "--port", "0"]
    done = CliRunner().invoke(app_without(missing), arguments)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"error: chat needs {missing}: pip install 'resumable-stream-sdk[chat]'\n"
