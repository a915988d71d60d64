"""The agent of `examples/agent_backend` over HTTP: steered, stopped, and continued by another process."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

import resumable_stream as rs
from resumable_stream import LogUnavailable
from resumable_stream.protocols import HubStream
from resumable_stream.server import MemoryLog

from ..forked import Forked
from ..redis_server import RedisServer
from ..server.serving import PATIENCE, Gate, Served, wait_until
from .agent_process import FOLDER, load

ROOT = FOLDER.parents[1]
ID = "agent-of-this-test"
STREAM = f"/streams/{ID}"
ENVIRON = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "PYTHONUNBUFFERED": "1", "NO_PROXY": "*"}


@pytest.fixture
def server() -> Iterator[ModuleType]:
    module = load()
    yield module
    del sys.modules[module.__name__]


@contextmanager
def served(server: ModuleType, **options: Any) -> Iterator[httpx.Client]:
    with Served(server.agent_app(MemoryLog(), **options)) as running, running.client() as client:
        yield client


def begin(client: httpx.Client, goal: str, **body: str) -> httpx.Response:
    headers = {"Idempotency-Key": ID, "Prefer": "respond-async"}
    return client.post("/agents", json={"goal": goal, **body}, headers=headers)


def say(client: httpx.Client, text: str, key: str) -> httpx.Response:
    return client.post(f"{STREAM}/messages", json={"data": text}, headers={"Idempotency-Key": key})


def events(client: httpx.Client) -> list[tuple[str, Any]]:
    """All events of the agent, to its end."""
    with rs.connect("GET", f"{client.base_url}{STREAM}") as stream:
        return [(event.event, json.loads(event.data)) for event in stream]


def named(found: list[tuple[str, Any]], *names: str) -> list[Any]:
    return [data for name, data in found if name in names]


def text_of(found: list[tuple[str, Any]]) -> str:
    """The text that is valid at the end."""
    text = ""
    for name, data in found:
        text = "" if name == "reset" else text + data["text"] if name == "message" else text
    return text


def feed(client: httpx.Client, session: str = ID) -> list[tuple[str, Any]]:
    """The events of the session, up to the end of its agent."""
    found = []
    with rs.connect("GET", f"{client.base_url}/sessions/{session}/feed") as stream:
        for event in stream:
            found.append((event.event, json.loads(event.data)))
            if event.event == "ended":
                break
    return found


def holding(server: ModuleType, name: str, gate: Gate) -> threading.Event:
    """Let a tool wait for a gate. What is returned is set as soon as it was called."""
    called, tool = threading.Event(), server.TOOLS[name]

    async def held(**arguments: Any) -> Any:
        called.set()
        await gate.wait()
        return await tool(**arguments)

    server.TOOLS[name] = held
    return called


# --- a run


def test_an_agent_plans_calls_its_tools_and_answers(server: ModuleType) -> None:
    with served(server) as client:
        body = {"goal": "bread, milk", "session": "session-of-this-test"}
        url = f"{client.base_url}/agents"
        with rs.connect("POST", url, json=body, protocol=HubStream(), headers={"Idempotency-Key": ID}) as stream:
            found = [(event.event, json.loads(event.data)) for event in stream]
        plan = ["bread", "milk"]
        assert found == [
            ("step", {"step": 1, "plan": plan}),
            ("tool_call", {"call": 1, "tool": "price", "arguments": {"item": "bread"}}),
            ("tool_result", {"call": 1, "result": 240}),
            ("step", {"step": 2, "plan": plan}),
            ("tool_call", {"call": 2, "tool": "add", "arguments": {"total": 0, "price": 240}}),
            ("tool_result", {"call": 2, "result": 240}),
            ("step", {"step": 3, "plan": plan}),
            ("tool_call", {"call": 3, "tool": "price", "arguments": {"item": "milk"}}),
            ("tool_result", {"call": 3, "result": 130}),
            ("step", {"step": 4, "plan": plan}),
            ("tool_call", {"call": 4, "tool": "add", "arguments": {"total": 240, "price": 130}}),
            ("tool_result", {"call": 4, "result": 370}),
            *[("message", {"text": f"{word} "}) for word in ["bread,", "milk:", "3.70", "in", "all."]],
            ("end", {"outcome": "completed"}),
        ]
        assert feed(client, "session-of-this-test") == [
            ("started", {"id": ID}),
            ("message", {"mid": f"{ID}.goal", "role": "user", "data": "bread, milk"}),
            ("message", {"mid": f"{ID}.answer", "role": "assistant", "data": "bread, milk: 3.70 in all. "}),
            ("ended", {"id": ID, "outcome": "completed"}),
        ]


def test_an_agent_that_is_started_twice_runs_once(server: ModuleType) -> None:
    gate = Gate()
    holding(server, "price", gate)
    with served(server) as client:
        first, second = begin(client, "tea"), begin(client, "tea")
        assert (first.status_code, second.status_code) == (202, 202)
        assert first.headers["location"] == second.headers["location"] == STREAM
        assert begin(client, "milk").status_code == 409
        gate.open()
        assert [data["call"] for data in named(events(client), "tool_call")] == [1, 2]


@pytest.mark.parametrize("body", [{"goal": ""}, {"goal": "x" * 4001}, {}, {"goal": "tea", "session": "guessed"}])
def test_what_makes_no_sense_starts_nothing(server: ModuleType, body: dict[str, str]) -> None:
    with served(server) as client:
        assert client.post("/agents", json=body, headers={"Idempotency-Key": ID}).status_code == 422
        assert client.get(STREAM).status_code == 404


# --- steered


def test_a_message_is_taken_in_the_middle_of_a_tool(server: ModuleType) -> None:
    gate = Gate()
    called = holding(server, "price", gate)
    with served(server) as client:
        begin(client, "bread")
        assert called.wait(PATIENCE)
        assert say(client, "tea", "message-1").json() == {"position": 1}
        with rs.connect("GET", f"{client.base_url}{STREAM}") as stream:
            for event in stream:
                if event.event == "steered":
                    break
        gate.open()
        found = events(client)
        assert [name for name, _ in found][:4] == ["step", "tool_call", "steered", "tool_result"]
        assert [data["plan"] for data in named(found, "step")] == [["bread"], *[["bread", "tea"]] * 3]
        assert text_of(found) == "bread, tea: 5.20 in all. "
        assert ("message", {"mid": f"{ID}.1", "role": "user", "data": "tea"}) in feed(client)


def test_what_is_said_while_the_answer_is_written_changes_it(server: ModuleType) -> None:
    written, gate, write = threading.Event(), Gate(), server.answer

    async def slow(state: Any) -> Any:
        async for word in write(state):
            yield word
            written.set()
            await gate.wait()

    server.answer = slow
    with served(server) as client:
        begin(client, "bread")
        assert written.wait(PATIENCE)
        say(client, "tea", "message-1")
        with rs.connect("GET", f"{client.base_url}{STREAM}") as stream:
            for event in stream:
                if event.event == "steered":
                    break
        gate.open()
        found = events(client)
        assert len(named(found, "reset")) == 1 and len(named(found, "tool_call")) == 4
        assert text_of(found) == "bread, tea: 5.20 in all. "
        assert client.get(f"{STREAM}/message").json()["text"] == "bread, tea: 5.20 in all. "


def lose_the_answer(client: httpx.Client, text: str, key: str) -> None:
    """Send a message, and leave before it is answered."""
    try:
        client.post(f"{STREAM}/messages", json={"data": text}, headers={"Idempotency-Key": key}, timeout=0.001)
    except httpx.TransportError:
        pass


def test_a_hundred_messages_of_four_clients_are_each_applied_once_in_the_order_of_their_acceptance(server: ModuleType) -> None:
    gate = Gate()
    called = holding(server, "price", gate)
    positions: dict[str, set[int]] = {}

    def speak(name: int) -> None:
        chance = random.Random(name)
        with httpx.Client(base_url=client.base_url, timeout=PATIENCE, trust_env=False) as own:
            for n in range(25):
                key = f"message-{name}-{n}"
                while chance.random() < 0.4:
                    lose_the_answer(own, key, key)
                for _ in range(chance.choice([1, 1, 2, 3])):
                    answer = say(own, key, key)
                    assert answer.status_code == 202
                    positions.setdefault(key, set()).add(answer.json()["position"])

    with served(server) as client:
        begin(client, "bread")
        assert called.wait(PATIENCE)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(speak, range(4)))
        gate.open()
        found = events(client)
        assert len(positions) == 100 and all(len(places) == 1 for places in positions.values())
        accepted = sorted(positions, key=lambda key: min(positions[key]))
        steered = named(found, "steered")
        assert [data["id"] for data in steered] == accepted
        assert [data["position"] for data in steered] == list(range(1, 101))
        # Applied, and not only announced: each is priced once, in this order.
        calls = named(found, "tool_call")
        assert [call["arguments"]["item"] for call in calls if call["tool"] == "price"] == ["bread", *accepted]
        assert text_of(found).endswith(f": {(240 + 100 * 100) / 100:.2f} in all. ")
        said = [data["data"] for name, data in feed(client) if name == "message" and data["role"] == "user"]
        assert said == ["bread", *accepted]
        late = say(client, "too late", "message-101")
        assert (late.status_code, late.json()["outcome"]) == (409, "completed")


def test_more_than_an_agent_can_remember_is_refused_for_all_to_see(server: ModuleType) -> None:
    gate = Gate()
    called = holding(server, "price", gate)
    with served(server) as client:
        begin(client, "bread")
        assert called.wait(PATIENCE)
        say(client, "x" * (server.ROOM + 1), "message-1")
        say(client, "tea", "message-2")
        gate.open()
        found = events(client)
        assert [data["id"] for data in named(found, "refused")] == ["message-1"]
        assert text_of(found) == "bread, tea: 5.20 in all. "


# --- stopped


@pytest.mark.parametrize("where", ["tool", "answer"])
def test_a_cancel_stops_it_at_once(server: ModuleType, where: str) -> None:
    begun, stopped = threading.Event(), threading.Event()

    async def forever() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async def tool(**arguments: Any) -> None:
        await forever()

    async def answer(state: Any) -> Any:
        yield "bread"
        await forever()

    if where == "tool":
        server.TOOLS["add"] = tool
    else:
        server.answer = answer
    # The hub would cancel an agent that did not look by itself, but not within this test.
    with served(server, cancel_grace=3600.0) as client:
        begin(client, "bread, milk")
        assert begun.wait(PATIENCE)
        assert client.post(f"{STREAM}/cancel").status_code == 202
        found = events(client)
        assert stopped.wait(PATIENCE)
        assert found[-1] == ("end", {"outcome": "cancelled", "reason": "cancelled_by_user"})
        assert len(named(found, "tool_result")) == (1 if where == "tool" else 4)
        assert feed(client)[-1] == ("ended", {"id": ID, "outcome": "cancelled", "reason": "cancelled_by_user"})
        assert client.post(f"{STREAM}/cancel").status_code == 200
        assert say(client, "tea", "message-1").status_code == 409


def test_a_tool_that_raises_ends_it_as_failed(server: ModuleType) -> None:
    async def tool(**arguments: Any) -> None:
        raise RuntimeError("s3cr3t")

    server.TOOLS["add"] = tool
    with served(server) as client:
        begin(client, "bread")
        found = events(client)
        assert found[-1][1]["outcome"] == "failed" and found[-1][1]["error"]["reason"] == "producer_error"
        assert "s3cr3t" not in json.dumps(found)


def test_a_log_that_is_away_is_asked_again(server: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        tries = 0

        async def publish(self, event: str, data: Any, *, mid: str) -> None:
            self.tries += 1
            if self.tries <= fails:
                raise LogUnavailable("away")

    async def no_wait(seconds: float) -> None:
        pass

    monkeypatch.setattr(server.asyncio, "sleep", no_wait)
    fails, session = 4, Session()
    asyncio.run(server.tell(session, "user", "tea", "m1"))
    assert session.tries == 5
    fails, session = 5, Session()
    with pytest.raises(LogUnavailable):
        asyncio.run(server.tell(session, "user", "tea", "m1"))


# --- continued


class Process:
    """The agent's back end in a process of its own."""

    def __init__(self, home: Path, store: str, lease: float) -> None:
        self._process = Forked("tests.examples.agent_process", store, str(lease), cwd=home, environment=ENVIRON)
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        assert port, "it did not start"
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False)
        wait_until(self._answers, "the server")

    def _answers(self) -> bool:
        try:
            return self.client.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        return self._process.wait(PATIENCE)

    def close(self) -> None:
        self.client.close()
        self._process.kill()
        self._process.wait(PATIENCE)
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'agents.db'}"
    redis: RedisServer = request.getfixturevalue("redis_server")
    return redis.url


@contextmanager
def two_processes(home: Path, store: str, lease: float) -> Iterator[tuple[Process, Process]]:
    allow(home, 0)
    for name in ("begun", "ended"):
        (home / name).touch()
    first = Process(home, store, lease)
    try:
        second = Process(home, store, lease)
        try:
            yield first, second
        finally:
            second.close()
    finally:
        first.close()


def allow(home: Path, calls: int) -> None:
    new = home / "allowed.new"
    new.write_text(str(calls))
    new.replace(home / "allowed")


def lines(home: Path, name: str) -> list[str]:
    return (home / name).read_text().splitlines()


@pytest.mark.parametrize(("how", "lease"), [(signal.SIGKILL, 5.0), (signal.SIGTERM, 600.0)], ids=["killed", "drained"])
def test_another_process_goes_on_and_repeats_no_call_that_was_done(
    tmp_path: Path, store: str, how: signal.Signals, lease: float
) -> None:
    with two_processes(tmp_path, store, lease) as (first, second):
        assert begin(first.client, "bread, milk").status_code == 202
        found: list[tuple[str, Any]] = []
        reading = threading.Thread(target=lambda: found.extend(events(second.client)), daemon=True)
        reading.start()
        allow(tmp_path, 2)
        wait_until(lambda: lines(tmp_path, "begun") == [f"{ID}.1", f"{ID}.2", f"{ID}.3"], "the third call")
        # Said to the process that does not run it, and applied before that one is gone.
        assert say(second.client, "tea", "message-1").json() == {"position": 1}
        wait_until(lambda: '"tea"' in json.dumps(said(second.client)), "the message")
        first.send(how)
        first.wait()
        # Said while nobody runs it, or the second does already.
        assert say(second.client, "cheese", "message-2").json() == {"position": 2}
        wait_until(lambda: len(lines(tmp_path, "begun")) == 4, "the second process")
        allow(tmp_path, 100)
        reading.join(PATIENCE)
        assert not reading.is_alive()
        # The third call was under way, and is made again under its key; no other one is.
        keys = [f"{ID}.{number}" for number in range(1, 9)]
        assert lines(tmp_path, "begun") == sorted([*keys, keys[2]])
        assert lines(tmp_path, "ended") == keys
        assert [data["call"] for data in named(found, "tool_call")] == list(range(1, 9))
        assert [data["call"] for data in named(found, "tool_result")] == list(range(1, 9))
        assert [data["step"] for data in named(found, "step")] == list(range(1, 9))
        assert [(data["position"], data["data"]) for data in named(found, "steered")] == [(1, "tea"), (2, "cheese")]
        assert text_of(found) == "bread, milk, tea, cheese: 11.00 in all. "
        assert found[-1] == ("end", {"outcome": "completed", "applied": 2})
        messages = [data["data"] for name, data in feed(second.client) if name == "message"]
        assert messages == ["bread, milk", "tea", "cheese", "bread, milk, tea, cheese: 11.00 in all. "]
        late = say(second.client, "too late", "message-3")
        assert late.status_code == 409


def test_another_process_writes_the_answer_again(tmp_path: Path) -> None:
    with two_processes(tmp_path, f"sqlite:///{tmp_path / 'agents.db'}", 5.0) as (first, second):
        begin(first.client, "bread")
        allow(tmp_path, 2)
        wait_until(lambda: second.client.get(f"{STREAM}/message").json()["text"] == "bread: ", "the first word")
        first.send(signal.SIGKILL)
        first.wait()
        allow(tmp_path, 100)
        found = events(second.client)
        assert len(named(found, "reset")) == 1 and len(named(found, "message")) == 5
        assert text_of(found) == "bread: 2.40 in all. "
        assert lines(tmp_path, "begun") == lines(tmp_path, "ended") == [f"{ID}.1", f"{ID}.2"]


def said(client: httpx.Client) -> list[Any]:
    """What was said in the session so far."""
    with client.stream("GET", f"/sessions/{ID}/feed?view=snapshot") as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                return [message["data"] for message in json.loads(line.removeprefix("data: "))["messages"]]
    raise AssertionError("no snapshot")


# --- the program


def test_a_program_shows_it_steers_it_and_stops_it(server: ModuleType) -> None:
    gates = {"price": Gate(), "add": Gate()}
    for name, gate in gates.items():
        holding(server, name, gate)
    with Served(server.agent_app(MemoryLog())) as running:
        program = subprocess.Popen(
            [sys.executable, str(FOLDER / "agent.py"), "bread", running.url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRON,
        )  # fmt: skip
        assert program.stdin is not None and program.stdout is not None
        out, pieces = program.stdout, [""]

        def read() -> None:
            while piece := out.read(1):
                pieces[0] += piece

        reading = threading.Thread(target=read, daemon=True)
        reading.start()
        try:
            wait_until(lambda: "price {'item': 'bread'}" in pieces[0], "the first call")
            program.stdin.write("tea\n")
            program.stdin.flush()
            wait_until(lambda: "steered: tea" in pieces[0], "the message")
            gates["price"].open()
            wait_until(lambda: "step 2: bread, tea" in pieces[0] and "add" in pieces[0], "the second call")
            program.send_signal(signal.SIGINT)
            wait_until(lambda: "[cancelled]" in pieces[0], "the end")
            assert program.wait(PATIENCE) == 0
        finally:
            program.kill()
            program.wait(PATIENCE)
            reading.join(PATIENCE)
            program.stdin.close()
            out.close()
    assert "→ 240" in pieces[0] and "Traceback" not in pieces[0]


def test_the_readme_names_every_file() -> None:
    text = (FOLDER / "README.md").read_text()
    assert [path.name for path in FOLDER.glob("*.py") if path.name not in text] == []
