"""Runs of the Workflow DevKit (npm `@workflow/core`, its local world), cut at a sample of all bytes: each part arrives once."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest

import resumable_stream as rs
from resumable_stream.protocols.workflow import WorkflowRun

from .node_server import NodeServer, node_server
from .proxy import sample

pytestmark = [pytest.mark.integration]

Driver = Literal["sync", "asyncio"]

RETRY = rs.RetryPolicy(attempts=100, wait=lambda state: 0.01)
numbers = itertools.count(10_000)

# Behind which parts the workflow waits for its reader.
GATES = ("Sieben", '"text-end"', '"finish"')
FINISH = b'{"type":"finish","finishReason":"stop"}\n\n'
TEXT = "Sieben ☔ finish finish"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeServer]:
    environ = {"WORKFLOW_TARGET_WORLD": "local", "WORKFLOW_LOCAL_DATA_DIR": str(tmp_path_factory.mktemp("workflow"))}
    with node_server("workflow.mjs", "@workflow/core", environ) as server:
        yield server


def read(
    driver: Driver, method: str, url: str, seen: Callable[[Any], None] | None = None, **options: Any
) -> tuple[list[Any], Any]:
    options = {"retry": RETRY, **options}
    events = []
    if driver == "sync":
        with rs.connect(method, url, **options) as stream:
            for event in stream:
                events.append(event)
                if seen is not None:
                    seen(event)
            return events, stream

    async def read() -> tuple[list[Any], Any]:
        async with rs.aconnect(method, url, **options) as stream:
            async for event in stream:
                events.append(event)
                if seen is not None:
                    seen(event)
            return events, stream

    return asyncio.run(read())


def run(driver: Driver, server: NodeServer) -> tuple[list[Any], Any]:
    """Start a run and read it, as it waits for its reader."""
    name = f"run-{next(numbers)}"

    def seen(event: Any) -> None:
        if any(gate in event.data for gate in GATES):
            server.go_on(name)

    return read(driver, "POST", f"{server.url}/api/chat", seen, json={"name": name})


@pytest.fixture(scope="module")
def stored(server: NodeServer) -> tuple[str, list[str]]:
    """URL and parts of a run that is over: its stream is kept."""
    events, stream = run("sync", server)
    assert isinstance(stream.protocol, WorkflowRun)
    assert (stream.outcome, stream.stats.reconnects) == (rs.Outcome.COMPLETED, 0)
    text = "".join(delta.text for event in events for delta in stream.protocol.deltas(event))
    assert (text, events[-1].json()) == (TEXT, {"type": "finish", "finishReason": "stop"})
    return f"{server.url}/api/chat/{stream.stream_id}/stream", [event.data for event in events]


@pytest.mark.parametrize(("driver", "how"), [("sync", "rst"), ("asyncio", "fin")])
def test_each_part_arrives_once_wherever_the_run_is_cut(
    driver: Driver, how: str, server: NodeServer, stored: tuple[str, list[str]]
) -> None:
    server.proxy.cut(1_000_000, how)
    run(driver, server)
    body = bytes(server.proxy.body)
    # A run takes as long as its parts are apart, so not at every position.
    for after in sample(len(body))[::4]:
        server.proxy.cut(after, how)
        events, cut = run(driver, server)
        where = f"cut after {after} bytes: {[event.data for event in events]}"
        assert ([event.data for event in events], cut.outcome) == (stored[1], rs.Outcome.COMPLETED), where
        assert (cut.stats.reconnects, cut.stats.duplicates) == (FINISH not in server.proxy.body, 0), where


@pytest.mark.parametrize(("driver", "how", "start"), [("sync", "fin", 0), ("asyncio", "rst", 3), ("sync", "rst", -4)])
def test_each_part_of_a_run_that_is_over_arrives_once(
    driver: Driver, how: str, start: int, server: NodeServer, stored: tuple[str, list[str]]
) -> None:
    url, parts = stored
    options = {"params": {"startIndex": str(start)}}
    server.proxy.cut(1_000_000, how)
    events, stream = read(driver, "GET", url, **options)
    assert isinstance(stream.protocol, WorkflowRun)
    assert [event.data for event in events] == parts[start:]
    body = bytes(server.proxy.body)
    for after in sample(len(body)):
        server.proxy.cut(after, how)
        events, cut = read(driver, "GET", url, **options)
        where = f"cut after {after} bytes: {[event.data for event in events]}"
        assert ([event.data for event in events], cut.outcome) == (parts[start:], rs.Outcome.COMPLETED), where
        assert (cut.stats.reconnects, cut.stats.duplicates) == (FINISH not in server.proxy.body, 0), where


def test_an_unknown_run_is_silent(server: NodeServer) -> None:
    """The route of the guide knows no 404: it waits for a run that may begin."""
    with pytest.raises(rs.RetriesExhausted):
        read(
            "sync",
            "GET",
            f"{server.url}/api/chat/wrun_none/stream",
            retry=rs.RetryPolicy(attempts=2, wait=lambda state: 0.01),
            timeouts=rs.Timeouts(first_event=0.3, idle=0.3),
        )
