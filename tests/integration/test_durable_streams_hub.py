"""
Our server of Durable Streams, judged by others: the protocol's own conformance suite, and its client (both npm).

The server's own tests are in tests/server/test_durable_streams.py.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resumable_stream.server import Hub, MemoryLog, RedisLog, SQLiteLog, StreamLog
from resumable_stream.server.durable_streams import durable_streams
from resumable_stream.server.log import Head

from .node_server import HERE, node
from .proxy import CuttingProxy, sample
from .serving import closing, serving

pytestmark = [pytest.mark.integration]

LONG_POLL = 2.0
NO_FORKS = "this server does not fork streams: a PUT that asks for it is answered 501"
EXCLUDED = {
    "Fork - Creation": NO_FORKS,
    "Fork - Reading": NO_FORKS,
    "Fork - Appending": NO_FORKS,
    "Fork - Recursive": NO_FORKS,
    "Fork - Live Modes": NO_FORKS,
    "Fork - Deletion and Lifecycle": NO_FORKS,
    "Fork - TTL and Expiry": NO_FORKS,
    "Fork - JSON Mode": NO_FORKS,
    "Fork - Edge Cases": NO_FORKS,
    # The suite registers these only where `subscriptions` is set.
    "Reserved subscription APIs": "this server has no subscriptions: /__ds is answered 501",
}


def needs(package: str) -> None:
    if not (HERE / "node_modules" / package).is_dir():
        pytest.skip(f"needs npm {package}: run `make integration`")


@pytest.fixture(params=["memory", "sqlite", "redis"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> StreamLog:
    match request.param:
        case "memory":
            return MemoryLog()
        case "sqlite":
            return SQLiteLog(tmp_path / "streams.db")
    return RedisLog(request.getfixturevalue("redis_server").url)


def test_the_conformance_suite_passes(log: StreamLog, tmp_path: Path) -> None:
    needs("@durable-streams/server-conformance-tests")
    excluded = "|".join(EXCLUDED)
    report = tmp_path / "report.json"
    app = durable_streams(Hub(log), write=True, long_poll=LONG_POLL, cors=["*"])
    with serving(closing(app, log)) as proxy:
        command = [
            *(node(), "node_modules/vitest/vitest.mjs", "run", "durable_streams_conformance.test.mjs"),
            *("--reporter=json", f"--outputFile={report}", "--testNamePattern", f"^(?!({excluded}) )"),
        ]
        environ = {
            **os.environ,
            "CONFORMANCE_TEST_URL": f"http://127.0.0.1:{proxy.upstream}",
            "CONFORMANCE_LONG_POLL_MS": str(int(LONG_POLL * 1000)),
        }
        done = subprocess.run(command, cwd=HERE, env=environ, capture_output=True, text=True, timeout=280, check=False)
    assert report.is_file(), done.stdout + done.stderr
    found = json.loads(report.read_text())
    tests = [test for suite in found["testResults"] for test in suite["assertionResults"]]
    failed = [f"{test['fullName']}: {''.join(test['failureMessages'])[:500]}" for test in tests if test["status"] == "failed"]
    assert failed == []
    skipped = {test["fullName"] for test in tests if test["status"] != "passed"}
    assert [name for name in skipped if not name.startswith(tuple(EXCLUDED))] == []
    # Of version 0.3.6: a suite that runs nothing has passed, too.
    assert len(tests) - len(skipped) >= 250


def run_client(*words: str, check: bool = True) -> list[Any]:
    done = subprocess.run(
        [node(), "durable_streams_client.mjs", *words], cwd=HERE, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0 or not check, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


PIECES: dict[str, list[Any]] = {
    "json": [{"t": "Über "}, ["a", 1.5, None], "last"],
    "text": ["Hello\n", " wörld\n", "\n", "data: x"],
    "binary": [bytes(range(256)), b"\0", b"\xff\xfe"],
}
HEADS = {
    "json": Head(content_type="application/json", framing="ndjson"),
    "text": Head(content_type="text/plain", framing="raw"),
    "binary": Head(content_type="application/octet-stream", framing="raw"),
}


@pytest.fixture(scope="module")
def server() -> Iterator[CuttingProxy]:
    """Streams of a hub, one of each kind, started by the first who reads them; and what clients write."""
    needs("@durable-streams/client")
    hub = Hub(MemoryLog(), flush=0.0)
    app = durable_streams(hub, write=True, long_poll=LONG_POLL)

    async def begin(kind: str) -> None:
        async def run(gen: Any) -> None:
            for piece in PIECES[kind]:
                await gen.send(json.dumps(piece) if kind == "json" else piece)
                await gen.flush()

        await hub.start(kind, run, head=HEADS[kind])

    async def started(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            kind = scope["path"].strip("/")
            if kind in PIECES:
                await begin(kind)
                if b"live" not in scope["query_string"]:
                    # Who does not wait for more wants a stream that is over.
                    async for _ in hub.follow(kind, view="verbatim"):
                        pass
        await app(scope, receive, send)

    with serving(started) as proxy:
        yield proxy


def joined(kind: str, batches: list[Any]) -> Any:
    if kind == "json":
        return [message for batch in batches for message in batch["content"]]
    if kind == "text":
        return "".join(batch["content"] for batch in batches)
    return b"".join(base64.b64decode(batch["content"]) for batch in batches)


def whole(kind: str) -> Any:
    pieces = PIECES[kind]
    return pieces if kind == "json" else ("" if kind == "text" else b"").join(pieces)


@pytest.mark.parametrize("live", ["none", "long-poll", "sse"])
@pytest.mark.parametrize("kind", PIECES)
def test_its_client_reads_all_of_it(kind: str, live: str, server: CuttingProxy) -> None:
    url = f"http://127.0.0.1:{server.upstream}/{kind}"
    batches = run_client("read", url, kind, live, "-1", "0")
    assert joined(kind, batches) == whole(kind)
    assert batches[-1]["streamClosed"] is True


@pytest.mark.parametrize("kind", PIECES)
def test_its_client_goes_on_in_another_process(kind: str, server: CuttingProxy) -> None:
    """What one has read before it was stopped, and what the other reads from its offset, is all of it, once."""
    url = f"http://127.0.0.1:{server.upstream}/{kind}"
    tail = run_client("read", url, kind, "none", "-1", "0")[-1]["offset"]
    epoch, _, size = tail.partition("_")
    ends = [0, *(int(size) // 2 for _ in "x" if kind == "binary"), int(size)]
    for end in ends:
        rest = run_client("read", url, kind, "sse", f"{epoch}_{end:016d}", "0")
        if kind == "binary":
            assert joined(kind, rest) == whole(kind)[end:]
        else:
            assert joined(kind, rest) == (whole(kind) if end == 0 else type(whole(kind))())
    first = run_client("read", url, kind, "sse", "-1", "1")
    rest = run_client("read", url, kind, "long-poll", first[-1]["offset"], "0") if first[-1]["offset"] != tail else []
    assert joined(kind, first + rest) == whole(kind)


@pytest.mark.parametrize(
    ("kind", "live", "how"), [("json", "sse", "fin"), ("text", "long-poll", "rst"), ("binary", "none", "rst")]
)
def test_its_client_reads_all_of_it_over_connections_that_are_cut(kind: str, live: str, how: str, server: CuttingProxy) -> None:
    """
    It may ask again by itself, or end with an error, or without one (0.2.7, where the body of an answer is cut). What it has
    delivered is a beginning in any case, and its offset goes on.
    """
    server.cut(1_000_000, how)
    url = f"http://127.0.0.1:{server.port}/{kind}"
    run_client("read", url, kind, live, "-1", "0")
    body = len(server.body)
    tried = 0
    for after in sample(body)[::8]:
        server.cut(after, how)
        batches = run_client("read", url, kind, live, "-1", "0", check=False)
        got = joined(kind, batches)
        assert whole(kind)[: len(got)] == got, f"cut after {after} bytes: {batches}"
        if not batches or not batches[-1]["streamClosed"]:
            offset = batches[-1]["offset"] if batches else "-1"
            batches += run_client("read", url, kind, live, offset, "0")
        assert joined(kind, batches) == whole(kind), f"cut after {after} bytes: {batches}"
        tried += 1
    assert tried >= 3


def test_its_producer_writes_each_message_once(server: CuttingProxy) -> None:
    url = f"http://127.0.0.1:{server.upstream}/written/by/its/producer"
    run_client("write", url, "300")
    batches = run_client("read", url, "json", "none", "-1", "0")
    assert [message["n"] for message in joined("json", batches)] == list(range(300))
    assert batches[-1]["streamClosed"] is True
