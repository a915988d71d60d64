"""`resumable-stream serve`, as a process of its own: what it says, how it drains, who may share it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from click.testing import CliRunner

import resumable_stream as rs
from resumable_stream._cli.app import app as commands
from resumable_stream.server import Hub, MemoryLog

from ..forked import Forked
from ..redis_server import RedisServer

COMMAND = [sys.executable, "-m", "resumable_stream"]
SERVE = [*COMMAND, "serve"]
PATIENCE = 120.0

MODULE = """
import asyncio, json, os
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from resumable_stream.server import Hub, MemoryLog
from resumable_stream.server.asgi import create_app

hub = Hub(MemoryLog())

if os.environ.get("PATIENT"):
    # On a busy machine a second is nothing: what is cut then is tested elsewhere.
    from resumable_stream._cli import serving
    serving.SPARE, serving._AT_ONCE = 30.0, 20.0

@hub.kind("count")
async def count(gen):
    asked = json.loads(gen.request)["input"]
    for n in range(asked["events"]):
        while n == 30 and asked.get("gate") and not os.path.exists(asked["gate"]):
            await asyncio.sleep(0.05)
        await gen.send(str(n))
        await asyncio.sleep(asked["pause"])

async def hello(request):
    return PlainTextResponse("hello")

def app_with(lifespan):
    return Starlette(routes=[Route("/hello", hello), Mount("/api", create_app(hub))], lifespan=lifespan)

app = app_with(hub.lifespan)
forgetful = app_with(None)
"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    (tmp_path / "counting.py").write_text(MODULE)
    return tmp_path


class Served:
    """A running command: its output is read all the time, so that it never waits for us."""

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        patient: bool = True,
        command: str = "serve",
        announcement: str = r"^serving .* on (http://\S+?)(?:,|$)",
        forked: bool = True,
    ) -> None:
        environment = os.environ | {"PYTHONIOENCODING": "utf-8", "PYTHONPATH": os.pathsep.join(sys.path)}
        environment["PATIENT"] = "yes" if patient else ""
        self.process: Forked | subprocess.Popen[str]
        if forked:
            self.process = Forked("resumable_stream", command, *arguments, cwd=cwd, environment=environment)
        else:
            self.process = subprocess.Popen(
                [*COMMAND, command, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=cwd,
                env=environment,
            )
        self.lines: deque[str] = deque()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.wait_for(announcement)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, pattern: str) -> str:
        deadline = time.monotonic() + PATIENCE
        while True:
            ended = not self._reader.is_alive()
            for line in list(self.lines):
                if found := re.search(pattern, line):
                    return found[1] if found.groups() else line
            assert not ended and time.monotonic() < deadline, f"never said: {pattern}\n{self.text}"
            time.sleep(0.01)

    @property
    def text(self) -> str:
        return "\n".join(list(self.lines))

    def end(self, *numbers: int) -> int:
        for number in numbers:
            self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.end(signal.SIGTERM, signal.SIGTERM)
        self._reader.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def served(*arguments: str, cwd: Path, patient: bool = True, forked: bool = True) -> Iterator[Served]:
    server = Served("counting:hub", "--port", "0", *arguments, cwd=cwd, patient=patient, forked=forked)
    try:
        yield server
    finally:
        server.close()


def start(url: str, id: str, *, events: int, pause: float, gate: Path | None = None) -> None:
    body = {"kind": "count", "input": {"events": events, "pause": pause, "gate": gate and str(gate)}}
    headers = {"idempotency-key": id, "prefer": "respond-async"}
    assert httpx.post(f"{url}/streams", json=body, headers=headers, timeout=PATIENCE, trust_env=False).status_code == 202


def outcome(url: str, id: str) -> str | None:
    return httpx.head(f"{url}/streams/{id}", timeout=PATIENCE, trust_env=False).headers.get("stream-outcome")


# --- what is wrong is said in a line ---------------------------------------------------------------------------------


def wrong(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [*SERVE, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def ended(*arguments: str, cwd: Path) -> tuple[int, str]:
    """The exit code of a command that ends by itself, and all that it said."""
    process = Forked("resumable_stream", *arguments, cwd=cwd)
    assert process.stdout is not None
    with process.stdout:
        said = process.stdout.read()
    return process.wait(PATIENCE), said


@pytest.fixture
def modules(module: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (module / "broken.py").write_text("import asyncio\n\n1 / 0\n")
    (module / "crooked.py").write_text("def (\n")
    (module / "leaving.py").write_text("raise SystemExit('no configuration')\n")
    (module / "needy.py").write_text("import nothing_of_this_name\n")
    monkeypatch.chdir(module)
    before = set(sys.modules), list(sys.path)
    yield module
    for name in set(sys.modules) - before[0]:
        if name in ("broken", "crooked", "leaving", "needy", "counting"):
            del sys.modules[name]
    sys.path[:] = before[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["counting"], "expected MODULE:HUB, such as app:hub for hub in app.py, got 'counting'"),
        (["counting.py:hub"], "expected MODULE:HUB, such as app:hub for hub in app.py, got 'counting.py:hub'"),
        (["counting:"], "expected MODULE:HUB"),
        ([":hub"], "expected MODULE:HUB"),
        (["../counting:hub"], "expected MODULE:HUB"),
        (["nowhere_at_all:hub"], "there is no module 'nowhere_at_all' in "),
        (["nowhere_at_all.sub:hub"], "there is no module 'nowhere_at_all' in "),
        (["counting:hob"], "module 'counting' has no 'hob'; it has the hub 'hub'"),
        (["counting:hub.nothing"], "module 'counting' has no 'hub.nothing'"),
        (["counting:app"], "counting:app is a Starlette, but a Hub was expected; pass an app with --app"),
        (["counting:Hub"], "counting:Hub is the class Hub, but a Hub was expected"),
        (["broken:hub"], "module 'broken' cannot be imported: ZeroDivisionError: division by zero ("),
        (["crooked:hub"], "module 'crooked' cannot be imported: SyntaxError: "),
        (["leaving:hub"], "module 'leaving' cannot be imported: SystemExit: no configuration"),
        (["needy:hub"], "module 'needy' cannot be imported: ModuleNotFoundError: No module named 'nothing_of_this_name' ("),
        (["counting:hub", "--app", "counting:hub"], "counting:hub is not an ASGI app"),
        (["counting:hub", "--app", "counting"], "expected MODULE:APP"),
        (
            ["counting:hub", "--store", "mysql://me:s3cr3t@db"],
            "--store: expected the name of a log: memory:, sqlite:///streams.db",
        ),
        (["counting:hub", "--store", "redis://:s3cr3t@db:port"], "--store: the URL of a Redis cannot be read"),
        (
            ["counting:hub", "--workers", "2"],
            "--workers 2 needs a log that processes share. The streams of this hub are in a Memor",
        ),
        (["counting:hub", "--workers", "3", "--store", "memory:"], "--workers 3 needs a log that processes share"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(modules: Path, arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(commands, ["serve", *arguments])
    [line] = result.stderr.splitlines()
    assert line.startswith(f"error: {sentence}"), line
    assert "s3cr3t" not in result.output
    assert (result.exit_code, result.stdout) == (2, "")


def test_where_a_module_failed_is_named(modules: Path) -> None:
    assert CliRunner().invoke(commands, ["serve", "broken:hub"]).stderr.endswith(f"({modules / 'broken.py'}, line 3)\n")


def test_the_command_itself_exits_like_that(module: Path) -> None:
    assert wrong("counting:hob", cwd=module) == "error: module 'counting' has no 'hob'; it has the hub 'hub'"


def test_an_app_that_does_not_enter_the_hub_is_not_served(module: Path) -> None:
    code, said = ended("serve", "counting:hub", "--app", "counting:forgetful", "--port", "0", cwd=module)
    assert code == 2
    assert said == "* error: the app does not enter the hub when it starts; give it lifespan=hub.lifespan\n"


def test_a_port_that_is_taken_is_exit_code_1(module: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, said = ended("serve", "counting:hub", "--port", port, cwd=module)
    assert code == 1
    assert said == (
        f"error: cannot listen on 127.0.0.1, port {port}: Address already in use; "
        "use --port to name another, or 0 for any free port\n"
    )


def test_without_the_extra_the_message_names_it(modules: Path, app_without: Callable[..., Any]) -> None:
    done = CliRunner().invoke(app_without("uvicorn"), ["serve", "counting:hub"])
    assert (done.exit_code, done.output) == (1, "error: serve needs uvicorn: pip install 'resumable-stream-sdk[server]'\n")


def test_a_hub_takes_another_log_only_before_it_runs() -> None:
    async def scenario() -> None:
        first, second = MemoryLog(), MemoryLog()
        hub = Hub(first)
        hub.use_log(second)
        assert hub.log is second and not hub.running

        async def one() -> rs.Outcome:
            return rs.Outcome.COMPLETED

        async with hub:
            assert hub.running
            await hub.start("s", lambda gen: one())
            assert [type(await log.read("s")).__name__ for log in (first, second)] == ["Unknown", "Page"]
            with pytest.raises(RuntimeError, match="change its log before it is entered"):
                hub.use_log(first)

    asyncio.run(scenario())


# --- what it says ----------------------------------------------------------------------------------------------------


def test_what_it_prints_can_be_typed_in(module: Path) -> None:
    with served(cwd=module) as server:
        command = server.wait_for(r"^ +(curl -N \S+/streams -H .*)$")
        body = json.loads(re.findall(r"-d '(.*)'$", command)[0])
        assert body == {"kind": "count", "input": "Hi"}
        assert command.startswith(f"curl -N {server.url}/streams -H 'Idempotency-Key: try-1' ")
        answer = httpx.post(
            f"{server.url}/streams", json=body, headers={"idempotency-key": "try-1"}, timeout=PATIENCE, trust_env=False
        )
        # The producer of this module wants another input: what counts is that the command was understood.
        assert (answer.status_code, answer.headers["stream-id"]) == (200, "try-1")
        assert server.wait_for("^log: ") == (
            "log: MemoryLog, gone when this process ends; --store sqlite:///streams.db keeps the streams"
        )
        assert server.end(signal.SIGINT) == 0


def test_the_access_log_holds_no_secret(module: Path) -> None:
    long = "q3kZ8sPb1vYw0nR7tLxCd2"
    with served(cwd=module) as server:
        start(server.url, long, events=1, pause=0)
        headers = {"authorization": "Bearer s3cr3t", "last-event-id": "s3cr3t.1"}
        url = f"{server.url}/streams/{long}?token=s3cr3t&key=s3cr3t"
        assert httpx.get(url, headers=headers, timeout=PATIENCE, trust_env=False).status_code == 410
        assert server.wait_for(r"GET (.*)$") == "/streams/q3kZ8sPb… 410"
        assert server.wait_for(r"POST (.*)$") == "/streams 202"
        assert server.end(signal.SIGTERM) == 0
        assert "s3cr3t" not in server.text and long not in server.text


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_there_may_be_no_access_log(module: Path, workers: int) -> None:
    store = f"sqlite:///{module}/streams.db"
    with served("--no-access-log", "--workers", str(workers), "--store", store, cwd=module) as server:
        start(server.url, "s", events=1, pause=0)
        assert server.end(signal.SIGTERM) == 0
        assert "POST" not in server.text and "draining" in server.text


@pytest.mark.parametrize("workers", [1, 2])
def test_a_connection_without_a_request_is_kept_as_long_as_is_wished(module: Path, workers: int) -> None:
    # A `MemoryLog` is not shared by workers.
    arguments = ("--keep-alive", "1", "--workers", str(workers), "--store", "sqlite:///streams.db")
    with served(*arguments, cwd=module) as server:
        parts = urlsplit(server.url)
        with socket.create_connection((parts.hostname, parts.port), PATIENCE) as connection:
            for _ in range(2):
                connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                answer = b""
                while b'{"status":"ok"}' not in answer:
                    answer += (piece := connection.recv(65536))
                    assert piece, "it was closed between two requests"
            assert connection.recv(1) == b"", "it is closed after that time, without another request"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_no_write_waits_for_an_acknowledgement(host: str) -> None:
    from resumable_stream._cli.serve import listen

    if ":" in host and not has_ipv6():
        pytest.skip("no IPv6 here")
    with listen(host, 0) as listener, socket.create_connection(listener.getsockname()[:2], PATIENCE):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_a_connection_is_kept_for_longer_than_balancers_keep_it() -> None:
    from resumable_stream._cli.options import KEEP_ALIVE
    from resumable_stream._cli.serving import HubServer

    hub = Hub(MemoryLog())
    server = HubServer(hub, timeout=1.0, spread=0.0, announce=lambda: None)
    assert server.config.timeout_keep_alive == KEEP_ALIVE > 60
    assert HubServer(hub, timeout=1.0, spread=0.0, announce=lambda: None, keep_alive=630).config.timeout_keep_alive == 630


def test_a_body_that_is_cut_on_purpose_is_no_traceback_in_the_log(module: Path) -> None:
    with served("--drain-timeout", "0", cwd=module) as server:
        start(server.url, "s", events=1_000_000, pause=0.01)
        with httpx.stream("GET", f"{server.url}/streams/s?view=verbatim", timeout=PATIENCE, trust_env=False) as response:
            pieces = response.iter_raw()
            next(pieces)
            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
                deque(pieces, maxlen=0)
        assert server.end() == 0
        assert "so the body is cut" in server.text and "Traceback" not in server.text


def test_an_app_is_served_beside_its_hub(module: Path) -> None:
    with served("--app", "counting:app", "--drain-timeout", "5", cwd=module) as server:
        assert httpx.get(f"{server.url}/hello", timeout=PATIENCE, trust_env=False).text == "hello"
        start(f"{server.url}/api", "s", events=3, pause=0.0)
        assert "curl" not in server.text
        assert server.end(signal.SIGTERM) == 0


# --- draining --------------------------------------------------------------------------------------------------------


def test_a_generation_comes_to_its_end_while_it_drains(module: Path) -> None:
    store = f"sqlite:///{module}/streams.db"
    with served("--store", store, "--drain-timeout", "100", cwd=module) as first:
        start(first.url, "s", events=20, pause=0.05)
        began = time.monotonic()
        assert first.end(signal.SIGTERM) == 0
        assert time.monotonic() - began < 80.0  # it does not wait for the timeout
    with served("--store", store, cwd=module) as second:
        assert outcome(second.url, "s") == "completed"


def test_what_does_not_end_in_time_is_stopped_and_says_so(module: Path) -> None:
    store = f"sqlite:///{module}/streams.db"
    with served("--store", store, "--drain-timeout", "1", cwd=module) as first:
        start(first.url, "s", events=1_000_000, pause=0.01)
        began = time.monotonic()
        assert first.end(signal.SIGTERM) == 0
        assert time.monotonic() - began >= 1.0
    with served("--store", store, cwd=module) as second:
        assert outcome(second.url, "s") == "failed; reason=shutdown"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.soak)])
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_a_second_signal_stops_at_once(module: Path, number: int, code: int, workers: int) -> None:
    store = f"sqlite:///{module}/streams.db"
    with served("--store", store, "--drain-timeout", "600", "--workers", str(workers), cwd=module) as server:
        start(server.url, "s", events=1_000_000, pause=0.01)
        server.process.send_signal(number)
        server.wait_for("draining, 600 s at most")
        began = time.monotonic()
        assert server.end(number) == code
        assert time.monotonic() - began < 50.0
    with served("--store", store, cwd=module) as second:
        assert outcome(second.url, "s") == "failed; reason=shutdown"


@pytest.mark.soak
def test_a_second_signal_reaches_a_worker_that_has_not_got_to_the_first(module: Path) -> None:
    """Two signals of one kind that wait for a process are one."""
    store = f"sqlite:///{module}/streams.db"
    with served("--store", store, "--drain-timeout", "600", "--workers", "2", cwd=module) as server:
        start(server.url, "s", events=1_000_000, pause=0.01)
        workers = psutil.Process(server.process.pid).children()
        for worker in workers:
            worker.suspend()
        for said in ("draining", "stopping at once"):
            server.process.send_signal(signal.SIGTERM)
            server.wait_for(f"SIGTERM: {said}")
        for worker in workers:
            worker.resume()
        assert server.end() == 143
    with served("--store", store, cwd=module) as second:
        assert outcome(second.url, "s") == "failed; reason=shutdown"


@pytest.mark.soak
def test_something_that_hangs_does_not_keep_the_process(module: Path) -> None:
    """A thread that never ends: Python itself would wait for it."""
    with (module / "counting.py").open("a") as file:
        file.write("\nimport threading\nthreading.Thread(target=threading.Event().wait).start()\n")
    with served("--drain-timeout", "0.5", cwd=module, patient=False, forked=False) as server:
        began = time.monotonic()
        assert server.end(signal.SIGTERM) == 1
        # A second and a half, and what a busy machine takes.
        assert 1.0 < time.monotonic() - began < 60.0
        assert "error: something did not end in time and was cut off" in server.text


class Reader:
    """Reads one stream to its end, from whichever instance there is, with nothing but sockets."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.data: list[str] = []
        self.last_event_id = ""
        self.outcome: str | None = None
        self.came_back_at: list[float] = []
        self.began = asyncio.Event()

    async def read(self, first: str, second: str) -> None:
        await self._once(first)
        while self.outcome is None:
            assert len(self.came_back_at) < 20
            self.came_back_at.append(time.monotonic())
            await self._once(second)

    async def _once(self, url: str) -> None:
        place = urlsplit(url)
        assert place.hostname is not None
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        head = f"GET /streams/{self.id} HTTP/1.1\r\nHost: {place.netloc}\r\nLast-Event-ID: {self.last_event_id}\r\n"
        head = head.replace("Last-Event-ID: \r\n", "")
        writer.write(f"{head}\r\n".encode())
        try:
            status = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0]
            assert status == b"HTTP/1.1 200 OK", status
            text = ""
            while size := int(await reader.readline(), 16):
                text += (await reader.readexactly(size + 2))[:-2].decode()
                *blocks, text = text.split("\n\n")
                for block in blocks:
                    self._take(dict(line.partition(": ")[::2] for line in block.split("\n")))
            assert text == ""  # a clean close, between two events
        finally:
            writer.close()

    def _take(self, fields: dict[str, str]) -> None:
        if "id" not in fields:
            return
        self.last_event_id = fields["id"]
        if fields.get("event") == "end":
            self.outcome = json.loads(fields["data"])["outcome"]
        else:
            self.data.append(fields["data"])
            self.began.set()


@pytest.mark.parametrize(
    ("readers", "generations", "timeout", "spread", "workers"),
    [
        pytest.param(40, 10, 100.0, 2.0, 1, id="40 readers"),
        pytest.param(200, 50, 100.0, 3.0, 1, id="200 readers", marks=pytest.mark.soak),
        pytest.param(200, 50, 100.0, 3.0, 2, id="200 readers, 2 workers", marks=pytest.mark.soak),
        pytest.param(1000, 50, 100.0, 5.0, 1, id="1000 readers", marks=pytest.mark.soak),
    ],
)
def test_no_reader_loses_an_event_when_an_instance_goes(
    module: Path, readers: int, generations: int, timeout: float, spread: float, workers: int
) -> None:
    options = ["--store", f"sqlite:///{module}/streams.db", "--no-access-log", "--spread", str(spread)]
    options += ["--workers", str(workers)]
    events = 60

    async def until(true: Callable[[], bool]) -> None:
        while not true():  # noqa: ASYNC110  # it is looked for in other processes
            await asyncio.sleep(0.01)

    async def scenario(first: Served, second: Served) -> tuple[list[Reader], float]:
        # The producers stop in the middle until every reader has come back elsewhere: the rest is written while it drains.
        gate = module / "gate"
        for number in range(generations):
            await asyncio.to_thread(start, first.url, f"s{number}", events=events, pause=0.01, gate=gate)
        everybody = [Reader(f"s{number % generations}") for number in range(readers)]
        tasks = [asyncio.create_task(reader.read(first.url, second.url)) for reader in everybody]
        everything = asyncio.gather(*tasks)
        await until(lambda: everything.done() or all(reader.began.is_set() for reader in everybody))
        began = time.monotonic()
        first.process.send_signal(signal.SIGTERM)
        await until(lambda: everything.done() or all(reader.came_back_at for reader in everybody))
        gate.touch()
        code = await asyncio.to_thread(first.process.wait, PATIENCE)
        took = time.monotonic() - began
        assert code == 0, first.text
        await everything
        return everybody, took

    with (
        served(*options, "--drain-timeout", str(timeout), cwd=module) as first,
        served(*options, cwd=module) as second,
    ):
        everybody, took = asyncio.run(asyncio.wait_for(scenario(first, second), 280.0))
        texts = first.text + second.text
    assert took <= timeout + 1.0
    for reader in everybody:
        assert reader.data == [str(n) for n in range(events)]
        assert reader.outcome == "completed"
    back = sorted(reader.came_back_at[0] for reader in everybody)
    # The first ones are late on a busy machine, and the last ones are not.
    assert back[-1] - back[0] >= 0.4 * spread
    assert "Traceback" not in texts


@pytest.mark.soak
def test_several_instances_share_a_redis(module: Path, redis_server: RedisServer) -> None:
    with (
        served("--store", redis_server.url, "--workers", "2", cwd=module) as first,
        served("--store", redis_server.url, cwd=module) as second,
    ):
        start(first.url, "s", events=40, pause=0.05)

        async def read() -> Reader:
            reader = Reader("s")
            reading = asyncio.create_task(reader.read(first.url, second.url))
            await reader.began.wait()
            assert await asyncio.to_thread(first.end, signal.SIGTERM) == 0
            await reading
            return reader

        reader = asyncio.run(asyncio.wait_for(read(), PATIENCE))
        assert reader.data == [str(n) for n in range(40)]
        assert reader.outcome == "completed"


# --- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_workers_share_the_streams_and_a_dead_one_is_replaced(module: Path) -> None:
    with served("--store", "sqlite:///streams.db", "--workers", "2", "--drain-timeout", "5", cwd=module) as server:
        start(server.url, "s", events=3, pause=0.0)
        pids: set[str] = set()
        deadline = time.monotonic() + PATIENCE
        while len(pids) < 2:
            assert time.monotonic() < deadline
            # Each request on a connection of its own: the system chooses who takes it.
            answer = httpx.get(f"{server.url}/streams/s", timeout=PATIENCE, trust_env=False)
            assert answer.status_code == 200 and answer.text.count("data: ") == 4
            pids |= set(re.findall(r"\[(\d+)\] GET", server.text))
        victim = int(pids.pop())
        os.kill(victim, signal.SIGKILL)
        server.wait_for(r"^\* a worker ended \(SIGKILL\); starting another one")
        while not set(re.findall(r"\[(\d+)\] GET", server.text)) - {str(victim), *pids}:
            assert time.monotonic() < deadline + PATIENCE
            try:
                httpx.get(f"{server.url}/health", timeout=PATIENCE, trust_env=False)
            except httpx.TransportError:
                continue  # it was the dead one's connection
        assert server.end(signal.SIGTERM) == 0


@pytest.mark.soak
def test_a_worker_that_is_slow_to_leave_has_drained_all_the_same(module: Path) -> None:
    """Its connection has ended, and Python is not done yet: as on a busy machine."""
    with (module / "counting.py").open("a") as file:
        file.write("\nimport atexit, sys, time\nif '--control' in sys.argv:\n    atexit.register(time.sleep, 2.5)\n")
    with served("--store", "sqlite:///streams.db", "--workers", "2", cwd=module) as server:
        start(server.url, "s", events=1, pause=0.0)
        assert server.end(signal.SIGTERM) == 0, server.text


@pytest.mark.soak
def test_the_place_of_the_log_is_not_in_the_arguments_of_the_workers(module: Path) -> None:
    with served("--store", "sqlite:///s3cr3t.db", "--workers", "2", cwd=module) as server:
        arguments = [child.cmdline() for child in psutil.Process(server.process.pid).children()]
        assert len(arguments) == 2
        assert all("--control" in each and "s3cr3t" not in " ".join(each) for each in arguments)
        start(server.url, "s", events=1, pause=0.0)
        assert server.end(signal.SIGTERM) == 0
    assert (module / "s3cr3t.db").exists()


@pytest.mark.soak
def test_workers_end_with_who_started_them(module: Path) -> None:
    with served("--store", "sqlite:///streams.db", "--workers", "2", cwd=module) as server:
        server.process.kill()
        server.process.wait(PATIENCE)
        # They hold the pipe of the output, which ends with the last of them.
        server._reader.join(PATIENCE)
        assert not server._reader.is_alive()


@pytest.mark.soak
def test_a_worker_that_cannot_start_ends_all(module: Path) -> None:
    (module / "moody.py").write_text(
        "import sys\nfrom counting import hub\nif '--control' in sys.argv:\n    raise RuntimeError('not here')\n"
    )
    done = subprocess.run(
        [*SERVE, "moody:hub", "--store", "sqlite:///streams.db", "--workers", "2", "--port", "0"],
        capture_output=True, text=True, check=False, timeout=PATIENCE, cwd=module,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 2
    assert "module 'moody' cannot be imported: RuntimeError: not here" in done.stderr
    assert "* error: a worker did not start (exit code 2)" in done.stderr
    assert "serving" not in done.stdout
