"""
`LangGraphRun` against the real development server of LangGraph, whose first answer is cut on its way.

The graph writes several chunks in one millisecond, then sleeps: that server gives all of them the same id.
After the end of the run each chunk arrives once; while it runs, some may come twice, as `in_order()` says.
It runs without network and keys, with its memory as the only store.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

import resumable_stream as rs
from resumable_stream.protocols.langgraph import LangGraphRun
from tests.redis_server import free_port

from .proxy import CuttingProxy

pytest.importorskip("langgraph_api")
pytest.importorskip("langgraph_cli")

# The first test waits for the server too.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

End = Literal["fin", "rst"]

CHUNKS = 60
CUTS = 25
START = 120.0
# Runs at a time; the server polls for new ones every 0.5 s, so one after the other would take a minute.
AT_ONCE = 8
# Seconds after which a run that was cut has ended, so that the replay does not meet the live stream.
OVER = 1.2
# The end of a chunked body.
LAST_CHUNK = b"\r\n0\r\n\r\n"

GRAPH = f"""
import time
from pathlib import Path
from typing import TypedDict

from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph


class State(TypedDict, total=False):
    tag: str
    chunks: int


def tell(state):
    with Path(__file__).with_name("calls.txt").open("a") as calls:
        calls.write(state["tag"] + "\\n")
    write = get_stream_writer()
    for n in range(state.get("chunks", {CHUNKS})):
        write({{"n": n}})
        if n % 4 == 3:
            time.sleep(0.005)
    return {{"tag": state["tag"]}}


builder = StateGraph(State)
builder.add_node("tell", tell)
builder.add_edge(START, "tell")
builder.add_edge("tell", END)
graph = builder.compile()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The running server: its address, and the file to which the graph writes a line for each call."""

    port: int
    calls: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def thread(self) -> str:
        """Create a thread."""
        answer = httpx.post(f"{self.url}/threads", json={}, trust_env=False, timeout=120.0)
        thread: str = answer.raise_for_status().json()["thread_id"]
        return thread


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server, in a process group of its own; what it printed is shown if it does not start."""
    home = tmp_path_factory.mktemp("langgraph")
    home.joinpath("graph.py").write_text(GRAPH)
    home.joinpath("langgraph.json").write_text(json.dumps({"dependencies": ["."], "graphs": {"agent": "./graph.py:graph"}}))
    running = Server(port=free_port(), calls=home / "calls.txt")
    output = home / "output.txt"
    command = [sys.executable, "-m", "langgraph_cli", "dev", "--no-browser", "--no-reload", "--port", str(running.port)]
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [*command, "--config", str(home / "langgraph.json")],
            cwd=home,
            env=_offline(),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START
        while not _answers(running.url):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server did not start, exit code {process.poll()}:\n{output.read_text(errors='replace')}")
            time.sleep(0.1)
        yield running
    finally:
        _kill(process)


@pytest.fixture(scope="module")
def length(server: Server) -> int:
    """Bytes of the whole body on the wire; the same for each run, since ids and numbers have fixed lengths."""
    with _cutting(server, 1 << 30, "fin") as proxy, httpx.Client(trust_env=False) as client:
        stream = rs.connect("POST", _address(proxy, server.thread()), client=client, json=_run("whole"))
        with stream:
            events = list(stream)
        _check(server, "whole", events, stream, live=False)
        # The question for the status follows on the same connection.
        return proxy.body.index(LAST_CHUNK) + len(LAST_CHUNK)


@pytest.mark.parametrize("pause", [0.0, OVER], ids=["live", "over"])
@pytest.mark.parametrize("end", ["fin", "rst"])
def test_each_chunk_arrives_wherever_the_run_is_cut(server: Server, length: int, end: End, pause: float) -> None:
    def scenario(cut: int) -> None:
        tag = f"sync-{end}-{pause}-{cut}"
        with _cutting(server, cut, end, pause) as proxy:
            with rs.connect("POST", _address(proxy, server.thread()), client=client, json=_run(tag)) as stream:
                events = list(stream)
        assert len(proxy.body) == cut
        _check(server, tag, events, stream, live=not pause)

    with httpx.Client(trust_env=False) as client, ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(scenario, _cuts(length)))


@pytest.mark.parametrize("pause", [0.0, OVER], ids=["live", "over"])
@pytest.mark.parametrize("end", ["fin", "rst"])
def test_each_chunk_arrives_on_asyncio(server: Server, length: int, end: End, pause: float) -> None:
    async def scenario(client: httpx.AsyncClient, slots: asyncio.Semaphore, cut: int) -> None:
        tag = f"asyncio-{end}-{pause}-{cut}"
        async with slots:
            thread = await asyncio.to_thread(server.thread)
            with _cutting(server, cut, end, pause) as proxy:
                async with rs.aconnect("POST", _address(proxy, thread), client=client, json=_run(tag)) as stream:
                    events = [event async for event in stream]
            assert len(proxy.body) == cut
            _check(server, tag, events, stream, live=not pause)

    async def main() -> None:
        slots = asyncio.Semaphore(AT_ONCE)
        async with httpx.AsyncClient(trust_env=False) as client, asyncio.TaskGroup() as group:
            for cut in _cuts(length):
                group.create_task(scenario(client, slots, cut))

    asyncio.run(main())


@contextlib.contextmanager
def _cutting(server: Server, after: int, how: End, pause: float = 0.0) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(server.port, pause=pause)
    proxy.cut(after, how)
    try:
        yield proxy
    finally:
        proxy.close()


def _address(proxy: CuttingProxy, thread: str) -> str:
    return f"http://127.0.0.1:{proxy.port}/threads/{thread}/runs/stream"


def _run(tag: str) -> dict[str, Any]:
    return {"assistant_id": "agent", "input": {"tag": tag}, "stream_mode": ["custom"], "stream_resumable": True}


def _cuts(length: int) -> list[int]:
    """Before the first byte, within the first event, before the last byte, and evenly between."""
    return sorted({0, 1, 40, length - 1, *(length * n // (CUTS - 3) for n in range(1, CUTS - 3))})


def _check(
    server: Server, tag: str, events: list[Any], stream: rs.ResumableStream | rs.AsyncResumableStream, *, live: bool
) -> None:
    twice = in_order(events, CHUNKS, tag)
    assert live or not twice, tag
    assert [event.event for event in events].count("metadata") == 1, tag
    assert isinstance(stream.protocol, LangGraphRun)
    assert stream.outcome is rs.Outcome.COMPLETED, tag
    assert server.calls.read_text().splitlines().count(tag) == 1, tag


def in_order(events: list[Any], chunks: int, where: str) -> int:
    """
    Every chunk arrived, in order, and once.

    Where replay meets live the server sends again all that came since the reader arrived. What it repeats within the newest
    millisecond has the id of the newest event, and so has a word that was said twice. Such a chunk alone may come twice.

    Returns:
        How many did.
    """
    twice = expected = 0
    ids: dict[int, str] = {}
    for event in events:
        if event.event != "custom":
            continue
        n, own_id = event.json()["n"], event.own_id.partition("/")[0]
        if n < expected:
            assert own_id == ids[n] == ids[expected - 1], f"{where}: chunk {n} came again after chunk {expected - 1}"
            twice += 1
            continue
        assert n == expected, f"{where}: expected chunk {expected}, received {n}"
        ids[n] = own_id
        expected += 1
    assert expected == chunks, f"{where}: the last chunk is {expected - 1}, expected {chunks - 1}"
    return twice


def _offline() -> dict[str, str]:
    """The environment without anybody's keys, and with everything off that would ask the network."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("LANGSMITH_", "LANGCHAIN_", "LANGGRAPH_"))
    }
    off = {"LANGSMITH_TRACING": "false", "LANGGRAPH_NO_VERSION_CHECK": "true", "LANGGRAPH_CLI_NO_ANALYTICS": "1"}
    return inherited | off


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ok", trust_env=False, timeout=2.0).is_success
    except httpx.TransportError:
        return False


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the server and its children: gently, then at once."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        try:
            process.wait(30.0)
        except subprocess.TimeoutExpired:
            continue
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
