"""`resumable-stream relay`, as processes of its own: one that is killed, two over one log, and what they keep."""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
import socket
import sqlite3
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import redis
from click.testing import CliRunner

from resumable_stream._cli.app import app as commands
from resumable_stream._cli.relay import _HOST, _PORT
from resumable_stream._cli.relay import relay as command
from resumable_stream.testing import Fault, FlakyServer, Reply

from ..redis_server import RedisServer
from ..server.relay_wires import ANTHROPIC, GEMINI, KEY, OLLAMA, OPENAI, OTHER_KEY, PROMPT, WIRES
from .test_serve import PATIENCE, Served

QUERY_KEY = "AIza-secret-in-the-query"


@contextlib.contextmanager
def relay(*arguments: str, cwd: Path, patient: bool = True) -> Iterator[Served]:
    announcement = r"^relaying .* on (http://\S+?)(?:,|$)"
    server = Served("--port", "0", *arguments, cwd=cwd, patient=patient, command="relay", announcement=announcement)
    try:
        yield server
    finally:
        server.process.kill()
        server.end()
        assert server.process.stdout is not None
        server.process.stdout.close()


def client_of(server: Served) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=PATIENCE, trust_env=False)


def all_mounts(servers: dict[str, FlakyServer]) -> list[str]:
    return [argument for name, server in servers.items() for argument in ("--upstream", f"/{name}={server.origin}")]


def outcome_in_the_end(client: httpx.Client, location: str, headers: dict[str, str]) -> str:
    deadline = time.monotonic() + PATIENCE
    while (found := client.head(location, headers=headers).headers.get("stream-outcome")) is None:
        assert time.monotonic() < deadline, "it never ended"
        time.sleep(0.05)
    return str(found)


@pytest.fixture(params=[pytest.param("sqlite", marks=[pytest.mark.soak, pytest.mark.timeout(900)]), "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/streams.db"
    server: RedisServer = request.getfixturevalue("redis_server")
    return server.url


def dump_of(store: str, tmp_path: Path) -> bytes:
    """All that is kept, and again what is compressed in it."""
    found: list[bytes] = []

    def add(value: Any) -> None:
        match value:
            case bytes():
                found.append(value)
                with contextlib.suppress(zlib.error):
                    found.append(zlib.decompress(value))
            case dict():
                add([*value.keys(), *value.values()])
            case list() | tuple():
                for each in value:
                    add(each)
            case _:
                found.append(str(value).encode())

    if store.startswith("sqlite"):
        add([path.read_bytes() for path in tmp_path.glob("streams.db*")])
        with contextlib.closing(sqlite3.connect(tmp_path / "streams.db")) as connection:
            for (table,) in connection.execute("select name from sqlite_master where type = 'table'").fetchall():
                add(connection.execute(f"select * from {table}").fetchall())
        return b"\n".join(found)
    with contextlib.closing(redis.Redis.from_url(store)) as client:
        reading: dict[bytes, Any] = {
            b"hash": client.hgetall,
            b"string": client.get,
            b"stream": client.xrange,
            b"zset": lambda key: client.zrange(key, 0, -1),
        }
        for key in client.keys("*"):
            add([key, reading[client.type(key)](key)])
    return b"\n".join(found)


def test_a_relay_that_is_killed_leaves_what_was_logged_and_an_honest_end_and_no_secret(store: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        servers = {
            wire.name: stack.enter_context(
                FlakyServer(wire.blocks[:4], hold_open=True, keep_alive=False, format=wire.format, content_type=wire.content_type)
            )
            for wire in WIRES
        }
        # On a busy machine a process may be late by seconds, and must not be taken for dead.
        (tmp_path / "relay.toml").write_text("lease = 6.0")
        arguments = (*all_mounts(servers), "--store", store, "--config", "relay.toml")
        first, second = (stack.enter_context(relay(*arguments, cwd=tmp_path)) for _ in range(2))
        places = {}
        with client_of(first) as client:
            for wire in WIRES:
                got = b""
                target = f"/{wire.name}{wire.target}" + (f"&key={QUERY_KEY}" if wire is GEMINI else "")
                headers = wire.credentials() if wire is not GEMINI else {}
                answer = stack.enter_context(client.stream("POST", target, json=wire.body, headers=headers))
                pieces = answer.iter_raw()
                while got != b"".join(wire.blocks[:4]):
                    got += next(pieces)
                places[wire.name] = answer.headers["content-location"], answer.headers["stream-epoch"]
            # A reader at the other relay, while it is live.
            with client_of(second) as other:
                location = places["openai"][0]
                with other.stream("GET", f"{location}?view=verbatim", headers=OPENAI.credentials()) as live:
                    pieces, got = live.iter_raw(), b""
                    while got != b"".join(OPENAI.blocks[:4]):
                        got += next(pieces)
                    first.process.send_signal(signal.SIGKILL)
                    first.process.wait(PATIENCE)
                    with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
                        next(pieces)
        with client_of(second) as client:
            for wire in WIRES:
                location, epoch = places[wire.name]
                headers = wire.credentials(QUERY_KEY if wire is GEMINI else KEY)
                assert outcome_in_the_end(client, location, headers) == "failed; reason=producer_lost"
                got = b""
                with client.stream("GET", f"{location}?view=verbatim", headers=headers) as answer:
                    with contextlib.suppress(httpx.RemoteProtocolError):
                        for piece in answer.iter_raw():
                            got += piece
                assert got == b"".join(wire.blocks[:4])
                last = client.get(f"{location}?view=verbatim&after={epoch}.4", headers=headers)
                assert (last.status_code, last.headers["stream-outcome"]) == (204, "failed; reason=producer_lost")
                for theirs in (wire.credentials(OTHER_KEY), {}):
                    assert client.get(location, headers=theirs).status_code == 404
            metrics = client.get("/.metrics").text
        assert second.end(signal.SIGTERM) == 0
        kept = dump_of(store, tmp_path)
        for secret in (KEY, QUERY_KEY, OTHER_KEY, PROMPT):
            assert secret.encode() not in kept
            assert secret not in first.text + second.text + metrics
        # The answers are there.
        assert b"chat.completion.chunk" in kept and b"candidates" in kept


def test_two_relays_over_one_log_send_a_request_once_and_both_serve_it(store: str, tmp_path: Path) -> None:
    with OPENAI.server(Fault.delay(0.3)) as upstream, contextlib.ExitStack() as stack:
        arguments = ("--upstream", upstream.origin, "--store", store)
        relays = [stack.enter_context(relay(*arguments, cwd=tmp_path)) for _ in range(2)]
        clients = [stack.enter_context(client_of(each)) for each in relays]
        headers = {**OPENAI.credentials(), "idempotency-key": "k1"}
        import concurrent.futures

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: clients[n % 2].post(OPENAI.path, json=OPENAI.body, headers=headers), range(8)))
        assert {answer.content for answer in answers} == {OPENAI.transcript}
        assert len({answer.headers["stream-id"] for answer in answers}) == 1
        location, epoch = answers[0].headers["content-location"], answers[0].headers["stream-epoch"]
        for client in clients:
            for n in range(OPENAI.events):
                rest = client.get(f"{location}?view=verbatim&after={epoch}.{n}", headers=OPENAI.credentials())
                assert rest.content == b"".join(OPENAI.blocks[n:])
    assert len(upstream.requests) == 1


def test_a_stream_of_one_relay_is_cancelled_at_the_other(store: str, tmp_path: Path) -> None:
    with FlakyServer(ANTHROPIC.blocks[:3], hold_open=True, keep_alive=False) as upstream, contextlib.ExitStack() as stack:
        arguments = ("--upstream", upstream.origin, "--store", store)
        first, second = (stack.enter_context(client_of(stack.enter_context(relay(*arguments, cwd=tmp_path)))) for _ in range(2))
        with first.stream("POST", ANTHROPIC.path, json=ANTHROPIC.body, headers=ANTHROPIC.credentials()) as answer:
            location = answer.headers["content-location"]
            assert second.post(f"{location}/cancel", headers=ANTHROPIC.credentials(OTHER_KEY)).status_code == 404
            assert second.post(f"{location}/cancel", headers=ANTHROPIC.credentials()).status_code in (200, 202)
            assert upstream.wait_disconnected(PATIENCE)
        assert outcome_in_the_end(second, location, ANTHROPIC.credentials()) == "cancelled; reason=cancelled_by_user"


def test_the_log_of_requests_holds_no_query_and_a_cut_is_no_traceback(tmp_path: Path) -> None:
    with GEMINI.server(Fault.cut(after_events=2)) as upstream, relay("--upstream", upstream.origin, cwd=tmp_path) as server:
        with client_of(server) as client, pytest.raises(httpx.RemoteProtocolError):
            client.post(f"{GEMINI.target}&key={QUERY_KEY}", json=GEMINI.body)
        assert server.wait_for(r"POST (.*)$").startswith("/v1beta/models/")
        server.wait_for("so its body is cut on purpose")
        assert server.end(signal.SIGTERM) == 0
        assert QUERY_KEY not in server.text and PROMPT not in server.text and "Traceback" not in server.text


def test_a_url_that_opens_a_stream_is_in_no_line_and_not_in_the_store(store: str, tmp_path: Path) -> None:
    with OPENAI.server() as upstream, contextlib.ExitStack() as stack:
        arguments = ("--upstream", upstream.origin, "--store", store, "--capability-urls")
        servers = [stack.enter_context(relay(*arguments, cwd=tmp_path)) for _ in range(2)]
        first, second = (stack.enter_context(client_of(each)) for each in servers)
        place = first.post(OPENAI.path, json=OPENAI.body, headers=OPENAI.credentials()).headers["content-location"]
        token = place.partition("?t=")[2]
        assert token
        # At any relay over the same log.
        for client in (first, second):
            assert client.get(f"{place}&view=verbatim").content == OPENAI.transcript
            assert client.get(place[:-1]).status_code == 404
        metrics = first.get("/.metrics").text + second.get("/.metrics").text
        for server in servers:
            server.wait_for(r"GET /\.streams/\S+ 404$")
            assert server.end(signal.SIGTERM) == 0
        kept = dump_of(store, tmp_path)
        for part in (token, token[:-1], token.rpartition(".")[2]):
            assert part.encode() not in kept
            assert part not in metrics + "".join(server.text for server in servers)


def test_a_retry_of_an_sdk_joins_at_the_other_relay_and_a_kept_answer_is_there(store: str, tmp_path: Path) -> None:
    json = Reply(headers={"content-type": "application/json"}, body=b'{"answer":42}')
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(OPENAI.server(on_request=lambda request: None if "chat" in request.path else json))
        arguments = ("--upstream", upstream.origin, "--store", store, "--join-retries", "--keep-answers")
        first, second = (stack.enter_context(client_of(stack.enter_context(relay(*arguments, cwd=tmp_path)))) for _ in range(2))
        headers = OPENAI.credentials()
        answer = first.post(OPENAI.path, json=OPENAI.body, headers={**headers, "x-stainless-retry-count": "0"})
        again = second.post(OPENAI.path, json=OPENAI.body, headers={**headers, "x-stainless-retry-count": "1"})
        assert again.content == answer.content == OPENAI.transcript
        assert again.headers["stream-id"] == answer.headers["stream-id"]
        assert len(upstream.requests) == 1
        for client in (first, second, first):
            kept = client.post("/v1/embeddings", json={"input": PROMPT}, headers={**headers, "idempotency-key": "k1"})
            assert kept.content == b'{"answer":42}'
        assert len(upstream.requests) == 2
        for secret in (KEY, PROMPT):
            assert secret.encode() not in dump_of(store, tmp_path)


def test_it_drains_at_sigterm_and_the_next_one_serves_what_was_kept(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/streams.db"
    with FlakyServer(OLLAMA.blocks[:3], hold_open=True, keep_alive=False, format="ndjson") as upstream:
        arguments = ("--upstream", upstream.origin, "--store", store)
        with relay(*arguments, cwd=tmp_path) as server, client_of(server) as client:
            with client.stream("POST", OLLAMA.path, json=OLLAMA.body, headers=OLLAMA.credentials()) as answer:
                location = answer.headers["content-location"]
                next(answer.iter_raw())
                server.process.send_signal(signal.SIGTERM)
                server.wait_for("draining")
                assert client.post(OLLAMA.path, json=OLLAMA.body).status_code == 503
                upstream.append(*OLLAMA.blocks[3:])
            assert server.end() == 0
        with relay(*arguments, cwd=tmp_path) as server, client_of(server) as client:
            again = client.get(f"{location}?view=verbatim", headers=OLLAMA.credentials())
            assert again.content == OLLAMA.transcript
            assert again.headers["stream-outcome"] == "completed"


def test_a_file_names_several_upstreams(tmp_path: Path) -> None:
    with OPENAI.server() as first, ANTHROPIC.server() as second:
        (tmp_path / "relay.toml").write_text(
            f'store = "sqlite:///kept.db"\nport = 0\nkeep_alive = 1\nkeep_answers = true\nanswer_bytes = 1000\n'
            f'allow = ["x-mine"]\nretention = 60\n'
            f'[upstreams]\n"/openai" = "{first.origin}"\n"/anthropic" = "{second.origin}"\n'
        )
        with relay("--config", "relay.toml", cwd=tmp_path) as server, client_of(server) as client:
            for wire in (OPENAI, ANTHROPIC):
                answer = client.post(f"/{wire.name}{wire.path}", json=wire.body, headers=wire.credentials())
                assert answer.content == wire.transcript
            assert (tmp_path / "kept.db").exists()
            with socket.create_connection(("127.0.0.1", urlsplit(server.url).port or 0), PATIENCE) as connection:
                connection.sendall(b"GET /.health HTTP/1.1\r\nhost: x\r\n\r\n")
                answer = b""
                while piece := connection.recv(65536):
                    answer += piece
                assert answer.endswith(b'{"status":"ok"}'), "the connection is closed as the file says"
            assert f"base URL: {server.url}/openai in place of {first.origin}" in server.text
            assert server.end(signal.SIGTERM) == 0


ROOT = Path(__file__).resolve().parents[2]


def test_what_the_pages_say_to_type_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "relay.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    lines = [line for page in pages for line in page.read_text().splitlines() if line.startswith("$ resumable-stream relay ")]
    assert len(lines) >= 4
    for line in lines:
        command.make_context("relay", shlex.split(line)[3:])
    # The page says which line of a client changes, without a port on the command line.
    (url,) = re.findall(r'^\+client = OpenAI\(base_url="(.*)/v1"\)$', (ROOT / "README.md").read_text(), re.MULTILINE)
    assert url == f"http://{_HOST}:{_PORT}"


def wrong(*arguments: str, **environment: str) -> str:
    result = CliRunner().invoke(commands, ["relay", *arguments], env=environment)
    assert result.exit_code == 2, result.output
    return result.output


def test_a_wrong_command_says_what_is_wrong(tmp_path: Path) -> None:
    def config(text: str) -> str:
        (tmp_path / "relay.toml").write_text(text)
        return str(tmp_path / "relay.toml")

    assert "name the API with --upstream" in wrong()
    assert "https://api.openai.com" in wrong("--upstream", "api.openai.com")
    assert "need a path each" in wrong("--upstream", "https://a.example", "--upstream", "https://b.example")
    assert "two upstreams" in wrong("--upstream", "/a=https://a.example", "--upstream", "/a=https://b.example")
    assert "the relay's own" in wrong("--upstream", "/.streams=https://a.example")
    assert "--store" in wrong("--upstream", "https://a.example", "--store", "nonsense")
    assert "at least 16 bytes" in wrong("--upstream", "https://a.example", RESUMABLE_STREAM_SECRET="short")
    assert "cannot be read" in wrong("--config", str(tmp_path / "none.toml"))
    assert "is not TOML" in wrong("--config", config("upstreams ="))
    assert "not a setting; the settings are store, host" in wrong("--config", config("upstream = 'https://a.example'"))
    assert "the wrong type" in wrong("--config", config("port = 'x'"))
    assert "the wrong type" in wrong("--config", config("keep_alive = 0"))
    assert "the wrong type" in wrong("--config", config("capability_urls = 1"))
    said = wrong("--upstream", "https://user:s3cr3t@a.example")
    assert "s3cr3t" not in said and "only scheme, host and path" in said
