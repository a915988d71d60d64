"""The client of `a2a-sdk` over the transport, dropped in mid-answer: its task is that of an undisturbed run."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import httpx
import pytest

import resumable_stream as rs
from resumable_stream.transports.httpx import AsyncResumableTransport

from .dropping import WAYS, DroppingProxy, Seen, Way
from .serving import serving, settle

execution: Any = pytest.importorskip("a2a.server.agent_execution", reason="needs a2a-sdk 1")
handlers: Any = pytest.importorskip("a2a.server.request_handlers", reason="needs a2a-sdk 1")
routes: Any = pytest.importorskip("a2a.server.routes", reason="needs a2a-sdk[http-server] 1")
tasks: Any = pytest.importorskip("a2a.server.tasks", reason="needs a2a-sdk 1")
sdk: Any = pytest.importorskip("a2a.client", reason="needs a2a-sdk 1")
errors: Any = pytest.importorskip("a2a.utils.errors", reason="needs a2a-sdk 1")
types: Any = pytest.importorskip("a2a.types", reason="needs a2a-sdk 1")
applications: Any = pytest.importorskip("starlette.applications")
pytest.importorskip("uvicorn")

pytestmark = [pytest.mark.integration]

Door = Literal["JSONRPC", "HTTP+JSON", "v0.3"]

WORDS = [f"wörd {n} 🦊 " for n in range(14)]
# Turns: 20 seconds at least, for a machine that is busy. Each client comes back here.
PATIENCE = 4000
RETRY = rs.RetryPolicy(attempts=20, wait=lambda state: 0.02)

PROXIES: list[DroppingProxy] = []
runs: collections.Counter[str] = collections.Counter()
numbers = itertools.count(10_000)


class Agent(execution.AgentExecutor):  # type: ignore[misc, name-defined, unused-ignore]
    """Says a word at a time in one artifact, and as much as it says in a second one at the end."""

    async def execute(self, context: Any, event_queue: Any) -> None:
        said = context.message.parts[0].text
        runs[context.message.message_id] += 1
        state = types.TaskState.TASK_STATE_SUBMITTED
        status = types.TaskStatus(state=state)
        await event_queue.enqueue_event(types.Task(id=context.task_id, context_id=context.context_id, status=status))
        updater = tasks.TaskUpdater(event_queue, context.task_id, context.context_id)
        await settle(PROXIES[-1], PATIENCE)
        await updater.start_work()
        for place, word in enumerate(WORDS):
            if said == "leave" and place == 6:
                # The client has been cut, and is back. It will leave now, and come back once more.
                while len(PROXIES[-1].bodies) < 2 or not PROXIES[-1].settled:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
                PROXIES[-1].hold()
            if said != "hurry":
                await settle(PROXIES[-1], PATIENCE)
            last = place == len(WORDS) - 1
            if said == "raise" and place == 6:
                raise RuntimeError("the agent is broken")
            await updater.add_artifact([types.Part(text=word)], artifact_id="answer", append=place > 0, last_chunk=last)
            if said == "fail" and place == 6:
                await settle(PROXIES[-1], PATIENCE)
                await updater.failed(updater.new_agent_message([types.Part(text="out of words")]))
                return
        if said != "hurry":
            await settle(PROXIES[-1], PATIENCE)
        await updater.add_artifact([types.Part(text="the end")], artifact_id="notes")
        await updater.complete()

    async def cancel(self, context: Any, event_queue: Any) -> None:
        await tasks.TaskUpdater(event_queue, context.task_id, context.context_id).cancel()


@pytest.fixture(scope="module")
def proxy() -> Iterator[DroppingProxy]:
    handler = handlers.DefaultRequestHandler(
        agent_executor=Agent(), task_store=tasks.InMemoryTaskStore(), agent_card=card("JSONRPC", "http://127.0.0.1/")
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        await handler.aclose()

    paths = [*routes.create_jsonrpc_routes(handler, "/rpc", enable_v0_3_compat=True), *routes.create_rest_routes(handler)]
    with serving(applications.Starlette(routes=paths, lifespan=lifespan)) as plain:
        # A task, as it stands, is always the first thing that this server says.
        proxy = DroppingProxy(plain.upstream, late=None)
        PROXIES.append(proxy)
        try:
            yield proxy
        finally:
            proxy.close()


def card(door: Door, url: str) -> Any:
    return types.AgentCard(
        name="agent",
        description="Says a few words.",
        version="1",
        capabilities=types.AgentCapabilities(streaming=True),
        supported_interfaces=[
            types.AgentInterface(
                url=url,
                protocol_binding="JSONRPC" if door == "v0.3" else door,
                protocol_version="0.3" if door == "v0.3" else "1.0",
            )
        ],
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[types.AgentSkill(id="say", name="say", description="Says a few words.", tags=["words"])],
    )


def updates(seen: Seen) -> bool:
    names = (b"SendStreamingMessage", b"SubscribeToTask", b"message/stream", b"tasks/resubscribe")
    return any(name in seen.body for name in names) or seen.path.endswith((":stream", ":subscribe"))


@contextlib.asynccontextmanager
async def client_of(proxy: DroppingProxy, door: Door = "JSONRPC", *, read: float = 3.0, **options: Any) -> AsyncIterator[Any]:
    """The SDK's client, and its responses, for `rs.stream_of()`. `read`: its patience with silence, in seconds."""
    responses: list[Any] = []

    async def keep(response: Any) -> None:
        responses.append(response)

    http = httpx.AsyncClient(
        transport=AsyncResumableTransport(retry=RETRY, **options),
        headers={"A2A-Version": "0.3" if door == "v0.3" else "1.0"},
        timeout=httpx.Timeout(5.0, read=read),
        event_hooks={"response": [keep]},
        trust_env=False,
    )
    async with http:
        config = sdk.ClientConfig(httpx_client=http, supported_protocol_bindings=["JSONRPC", "HTTP+JSON"])
        agent = card(door, proxy.url + ("" if door == "HTTP+JSON" else "/rpc"))
        client = sdk.ClientFactory(config).create(agent)
        client.responses = responses
        yield client


def asking(text: str = "Hello") -> Any:
    message = types.Message(message_id=f"m-{next(numbers)}", role=types.Role.ROLE_USER, parts=[types.Part(text=text)])
    return types.SendMessageRequest(message=message)


def folded(events: list[Any]) -> Any:
    """The task, as A2A says to keep it: a `task` stands for all that was told before it, updates go into it."""
    task = types.Task()
    for event in events:
        match event.WhichOneof("payload"):
            case "task":
                task.CopyFrom(event.task)
            case "status_update":
                task.status.CopyFrom(event.status_update.status)
            case "artifact_update":
                update = event.artifact_update
                known = next((each for each in task.artifacts if each.artifact_id == update.artifact.artifact_id), None)
                if known is None:
                    task.artifacts.add().CopyFrom(update.artifact)
                elif update.append:
                    known.parts.extend(update.artifact.parts)
                else:
                    known.CopyFrom(update.artifact)
    return task


def plain(task: Any) -> Any:
    """Without what is random in each run, and the question, which only a stored task has."""
    found = types.Task()
    found.CopyFrom(task)
    found.id = found.context_id = ""
    found.status.ClearField("timestamp")
    if found.status.HasField("message"):
        for name in ("message_id", "task_id", "context_id"):
            found.status.message.ClearField(name)
    del found.history[:]
    return found


async def ask(client: Any, request: Any) -> list[Any]:
    return [event async for event in client.send_message(request)]


@pytest.mark.parametrize("door", ["JSONRPC", "HTTP+JSON", "v0.3"])
@pytest.mark.parametrize("how", WAYS)
def test_the_task_is_that_of_an_undisturbed_run(how: Way, door: Door, proxy: DroppingProxy) -> None:
    async def main() -> None:
        async with client_of(proxy, door, read=0.6 if how == "silence" else 3.0) as client:
            proxy.drop(updates)
            whole = await ask(client, asking())
            task = folded(whole)
            assert plain(task) == plain(await client.get_task(types.GetTaskRequest(id=task.id)))
            assert [part.text for part in task.artifacts[0].parts] == WORDS
            body = bytes(proxy.bodies[0])
            assert len(proxy.bodies) == 1 and len(whole) == len(WORDS) + 4
            cuts = [body.index(b"\r\n\r\n") + 4, len(body) // 2 + 7, len(body) - 90]
            # The client waits for the rest of the silence, each time.
            for after in cuts[1:2] if how == "silence" else cuts:
                proxy.drop(updates, (after, how), (len(body) // 5, how))
                request = asking()
                events = await ask(client, request)
                where = f"{how} after {after}"
                assert len(proxy.bodies) > 1, where
                assert plain(folded(events)) == plain(task), where
                assert events[-1].WhichOneof("payload") in ("status_update", "task")
                assert runs[request.message.message_id] == 1, where

    asyncio.run(main())


@pytest.mark.parametrize("how", WAYS)
def test_a_task_that_ends_while_nobody_listens_is_had_whole(how: Way, proxy: DroppingProxy) -> None:
    async def main() -> None:
        async with client_of(proxy) as client:
            proxy.drop(updates)
            task = folded(await ask(client, asking("hurry")))
            proxy.drop(updates, (len(proxy.bodies[0]) // 2, how))
            events = await ask(client, asking("hurry"))
            assert plain(folded(events)) == plain(task)
            assert events[-1].HasField("task")

    asyncio.run(main())


@pytest.mark.parametrize("how", WAYS)
def test_a_failure_comes_as_the_sdk_tells_it(how: Way, proxy: DroppingProxy) -> None:
    async def main() -> None:
        async with client_of(proxy) as client:
            proxy.drop(updates)
            task = folded(await ask(client, asking("fail")))
            assert task.status.state == types.TaskState.TASK_STATE_FAILED
            assert task.status.message.parts[0].text == "out of words"
            proxy.drop(updates, (len(proxy.bodies[0]) // 2, how))
            assert plain(folded(await ask(client, asking("fail")))) == plain(task)

    asyncio.run(main())


@pytest.mark.parametrize("door", ["JSONRPC", "HTTP+JSON"])
def test_an_error_is_the_sdks_own(door: Door, proxy: DroppingProxy) -> None:
    async def main() -> None:
        async with client_of(proxy, door) as client:
            proxy.drop(updates)
            with pytest.raises(errors.TaskNotFoundError):
                [event async for event in client.subscribe(types.SubscribeToTaskRequest(id="nobody's"))]
            assert len(proxy.requests) == 1
            with pytest.raises(errors.A2AError) as caught:
                await ask(client, asking("raise"))
            assert bytes(proxy.bodies[1]).count(b"w\\u00f6rd") + bytes(proxy.bodies[1]).count("wörd".encode()) == 6
            assert rs.error_of(caught.value) is None
            assert len(proxy.requests) == 2

    asyncio.run(main())


def test_a_cut_before_the_task_is_known_is_an_error(proxy: DroppingProxy) -> None:
    async def main() -> None:
        async with client_of(proxy) as client:
            for how in ("rst", "clean"):
                proxy.drop(updates, (20, how))
                request = asking()
                with pytest.raises(sdk.A2AClientError) as caught:
                    await ask(client, request)
                assert isinstance(rs.error_of(caught.value), rs.StreamInterrupted)
                # Nobody knows whether the agent works; so it is not asked again.
                assert len(proxy.requests) == 1 and runs[request.message.message_id] == 1

    asyncio.run(main())


def test_leaving_in_mid_answer(proxy: DroppingProxy) -> None:
    async def main() -> None:
        async with client_of(proxy) as client:
            proxy.drop(updates, (900, "clean"))
            request = asking("leave")
            answer = client.send_message(request)
            events = []
            async for event in answer:
                events.append(event)
                if any(part.text == WORDS[5] for artifact in folded(events).artifacts for part in artifact.parts):
                    break
            stream = rs.stream_of(client.responses[-1])
            assert stream.stream_id == folded(events).id and len(proxy.bodies) == 2
            # The server taps the task's events first and reads the task then, so it says twice what comes between: nothing may.
            assert await asyncio.to_thread(proxy.holding.wait, 30)
            await answer.aclose()
            # The task goes on, for whoever comes back with the id.
            wanted = types.SubscribeToTaskRequest(id=stream.stream_id)
            assert [part.text for part in folded([each async for each in client.subscribe(wanted)]).artifacts[0].parts] == WORDS
            assert runs[request.message.message_id] == 1

    asyncio.run(main())


def test_the_place_of_a_stream_continues_it_elsewhere(proxy: DroppingProxy) -> None:
    async def main() -> tuple[str, list[Any]]:
        async with client_of(proxy) as client:
            proxy.drop(updates)
            answer = client.send_message(asking())
            events = []
            async for event in answer:
                events.append(event)
                if len(events) == 6:
                    break
            await answer.aclose()
            return rs.stream_of(client.responses[-1]).token, events

    token, _ = asyncio.run(main())
    with rs.resume(token, origin=proxy.url, headers={"A2A-Version": "1.0"}, retry=RETRY) as stream:
        events = list(stream)
    assert events[0].reset and stream.outcome is rs.Outcome.COMPLETED
