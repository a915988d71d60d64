"""The server of `a2a-sdk`, cut at a sample of all bytes: the state after each resume is exact, and the agent runs once."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import pytest

import resumable_stream as rs
from resumable_stream.protocols.a2a import A2A

from .proxy import CuttingProxy, sample
from .serving import serving, settle

execution: Any = pytest.importorskip("a2a.server.agent_execution", reason="needs a2a-sdk 1")
handlers: Any = pytest.importorskip("a2a.server.request_handlers", reason="needs a2a-sdk 1")
routes: Any = pytest.importorskip("a2a.server.routes", reason="needs a2a-sdk[http-server] 1")
tasks: Any = pytest.importorskip("a2a.server.tasks", reason="needs a2a-sdk 1")
types: Any = pytest.importorskip("a2a.types", reason="needs a2a-sdk 1")
applications: Any = pytest.importorskip("starlette.applications")
pytest.importorskip("uvicorn")

pytestmark = [pytest.mark.integration]

Driver = Literal["sync", "asyncio"]
Door = Literal["jsonrpc", "rest"]

WORDS = ["ünï", "¢ödé ", "🦊 done"]
TEXT = "".join(WORDS)
RETRY = rs.RetryPolicy(attempts=100, wait=lambda state: 0.01)

PROXIES: list[CuttingProxy] = []
runs: collections.Counter[str] = collections.Counter()
numbers = itertools.count(10_000)


class Agent(execution.AgentExecutor):  # type: ignore[misc, name-defined, unused-ignore]
    """Says one word at a time, in one artifact."""

    async def execute(self, context: Any, event_queue: Any) -> None:
        runs[context.message.message_id] += 1
        state = types.TaskState.TASK_STATE_SUBMITTED
        await event_queue.enqueue_event(
            types.Task(id=context.task_id, context_id=context.context_id, status=types.TaskStatus(state=state))
        )
        updater = tasks.TaskUpdater(event_queue, context.task_id, context.context_id)
        await settle(PROXIES[-1])
        await updater.start_work()
        for place, word in enumerate(WORDS):
            await settle(PROXIES[-1])
            last = place == len(WORDS) - 1
            await updater.add_artifact([types.Part(text=word)], artifact_id="answer", append=place > 0, last_chunk=last)
        await settle(PROXIES[-1])
        await updater.complete()

    async def cancel(self, context: Any, event_queue: Any) -> None:
        await tasks.TaskUpdater(event_queue, context.task_id, context.context_id).cancel()


@pytest.fixture(scope="module")
def proxy() -> Iterator[CuttingProxy]:
    card = types.AgentCard(
        name="agent",
        description="Says a few words.",
        version="1",
        capabilities=types.AgentCapabilities(streaming=True),
        supported_interfaces=[types.AgentInterface(url="http://127.0.0.1/", protocol_binding="JSONRPC", protocol_version="1.0")],
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[types.AgentSkill(id="say", name="say", description="Says a few words.", tags=["words"])],
    )
    handler = handlers.DefaultRequestHandler(agent_executor=Agent(), task_store=tasks.InMemoryTaskStore(), agent_card=card)

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        await handler.aclose()

    paths = [*routes.create_jsonrpc_routes(handler, "/rpc"), *routes.create_rest_routes(handler)]
    with serving(applications.Starlette(routes=paths, lifespan=lifespan)) as proxy:
        PROXIES.append(proxy)
        yield proxy


def read(driver: Driver, door: Door, proxy: CuttingProxy) -> tuple[str, list[Any], Any]:
    """
    Send one message.

    Returns:
        Its id, the events, and the stream that they came from.
    """
    name = f"m-{next(numbers)}"
    params = {"message": {"role": "ROLE_USER", "messageId": name, "parts": [{"text": "Hello"}]}}
    call = {"jsonrpc": "2.0", "id": 1, "method": "SendStreamingMessage", "params": params}
    url = f"http://127.0.0.1:{proxy.port}/" + {"jsonrpc": "rpc", "rest": "message:stream"}[door]
    options: dict[str, Any] = {
        "json": {"jsonrpc": call, "rest": params}[door],
        "headers": {"A2A-Version": "1.0"},
        "retry": RETRY,
        "on_lost": "snapshot",
    }
    if driver == "sync":
        with rs.connect("POST", url, **options) as stream:
            return name, list(stream), stream

    async def read() -> tuple[str, list[Any], Any]:
        async with rs.aconnect("POST", url, **options) as stream:
            return name, [event async for event in stream], stream

    return asyncio.run(read())


def state_of(events: list[Any]) -> tuple[str, str]:
    """Fold the events, as a reader of the protocol does: the artifact's text, and the task's state."""
    text, state = "", ""
    for event in events:
        message = event.json()
        message = message.get("result", message)
        if event.reset:
            assert "task" in message, "a reset is the whole task"
        match message:
            case {"task": task}:
                parts = [part for artifact in task.get("artifacts", ()) for part in artifact["parts"]]
                text, state = "".join(part["text"] for part in parts), task["status"]["state"]
            case {"artifactUpdate": {"artifact": artifact, **update}}:
                added = "".join(part["text"] for part in artifact["parts"])
                text = text + added if update.get("append") else added
            case {"statusUpdate": {"status": status}}:
                state = status["state"]
    return text, state


@pytest.mark.parametrize("driver", ["sync", "asyncio"])
@pytest.mark.parametrize(("door", "how"), [("jsonrpc", "rst"), ("rest", "fin")])
def test_the_state_is_exact_wherever_the_updates_are_cut(driver: Driver, door: Door, how: str, proxy: CuttingProxy) -> None:
    proxy.cut(1_000_000, how)
    name, events, stream = read(driver, door, proxy)
    assert isinstance(stream.protocol, A2A)
    assert state_of(events) == (TEXT, "TASK_STATE_COMPLETED") and stream.stats.reconnects == 0
    # The first event names the task: a cut before its end cannot be resumed.
    body = bytes(proxy.body)
    named = body.index(b"\r\n\r\n") + 4
    resumed = 0
    for after in sample(len(body)):
        proxy.cut(after, how)
        try:
            name, events, stream = read(driver, door, proxy)
        except rs.StreamInterrupted:
            assert after < named, f"not resumed after {after} bytes"
            continue
        where = f"cut after {after} bytes: {[(event.reset, event.data) for event in events]}"
        assert state_of(events) == (TEXT, "TASK_STATE_COMPLETED"), where
        assert stream.outcome is rs.Outcome.COMPLETED and runs[name] == 1, where
        resets = [event.reset for event in events].count(True)
        assert resets == (proxy.connections > 1), where
        resumed += resets
    assert resumed > 20
