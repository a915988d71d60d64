"""The programs of examples/servers, each with the server of its framework, over sockets that are cut."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

import resumable_stream as rs
from resumable_stream.framing import SSEDecoder
from resumable_stream.protocols import HubStream, LastEventID
from tests.redis_server import free_port

from .proxy import CuttingProxy

pytestmark = [pytest.mark.integration]

EXAMPLES = Path(__file__).parents[2] / "examples" / "servers"
TEXT = "You said: {}. I have thought about it for a while, and I agree with every word of it. "
PATIENCE = 120.0
BODY = {"prompt": "Hello"}
RETRY = rs.RetryPolicy(attempts=100, wait=lambda state: 0.01)


class Way(NamedTuple):
    """How a program is served."""

    example: str
    needs: str
    command: Callable[[Path, int], list[str]]

    def __str__(self) -> str:
        return f"{self.example}-{self.needs}"


def itself(program: Path, port: int) -> list[str]:
    return [sys.executable, str(program)]


def gunicorn(program: Path, port: int) -> list[str]:
    options = ["--worker-class", "gthread", "--threads", "20", "--bind", f"127.0.0.1:{port}", "--no-control-socket"]
    known = subprocess.run([sys.executable, "-m", "gunicorn", "--help"], capture_output=True, text=True, check=True).stdout
    options = [option for option in options if option != "--no-control-socket" or option in known]
    return [sys.executable, "-m", "gunicorn", *options, "--chdir", str(program.parent), f"{program.stem}:app"]


WAYS = [
    Way("django_app", "django", itself),
    Way("quart_app", "quart", itself),
    Way("aiohttp_app", "aiohttp", itself),
    Way("fastapi_app", "fastapi", itself),
    Way("flask_app", "flask", itself),
    Way("flask_app", "gunicorn", gunicorn),
]


@contextlib.contextmanager
def served(way: Way, program: Path) -> Iterator[CuttingProxy]:
    if importlib.util.find_spec(way.needs) is None:
        pytest.skip(f"needs {way.needs}")
    port = free_port()
    environ = {**os.environ, "PORT": str(port), "PYTHONPATH": os.pathsep.join([str(EXAMPLES.parents[1]), *sys.path])}
    process = subprocess.Popen(
        way.command(program, port), env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(httpx.TransportError):
                assert httpx.get(f"http://127.0.0.1:{port}/chat/nothing", trust_env=False).status_code == 404
                break
            assert process.poll() is None and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.05)
        proxy = CuttingProxy(port)
        try:
            yield proxy
        finally:
            proxy.close()
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module", params=WAYS, ids=str)
def proxy(request: pytest.FixtureRequest) -> Iterator[CuttingProxy]:
    way: Way = request.param
    with served(way, EXAMPLES / f"{way.example}.py") as proxy:
        yield proxy


@pytest.fixture
def client(proxy: CuttingProxy) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{proxy.port}", timeout=PATIENCE, trust_env=False) as client:
        yield client


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    return re.sub(r"\W", "_", request.node.name)


def post(client: httpx.Client, key: str, prompt: str = "Hello", **options: Any) -> httpx.Response:
    return client.post("/chat", json={"prompt": prompt}, headers={"Idempotency-Key": key, **options})


def whole(client: httpx.Client, key: str) -> list[tuple[str, str | None]]:
    """All events of a stream, with their ids, from a connection that is not cut."""
    got = client.get(f"/chat/{key}")
    assert got.status_code == 200
    events = [(event.data, event.own_id) for event in SSEDecoder().feed(got.content)]
    assert events[-1][0] == '{"outcome":"completed"}' and len(events) == 20
    return events


# Within the retry line, the first block, some block, and near the end: chunk sizes are counted too.
@pytest.mark.parametrize("cut", [0, 1, 9, 30, 55, 111, 300, 555, 700])
@pytest.mark.parametrize("how", ["rst", "fin"])
def test_our_client_reads_on_after_a_cut_post(proxy: CuttingProxy, key: str, cut: int, how: str) -> None:
    proxy.cut(cut, how)
    url = f"http://127.0.0.1:{proxy.port}/chat"
    with rs.connect("POST", url, json={"prompt": key}, headers={"Idempotency-Key": key}, retry=RETRY) as stream:
        assert stream.read_text() == TEXT.format(key)
    assert stream.outcome is rs.Outcome.COMPLETED
    assert stream.stats.reconnects == 1 and stream.stats.duplicates == 0
    assert isinstance(stream.protocol, HubStream)


@pytest.mark.parametrize("cut", [0, 30, 111, 555])
def test_plain_last_event_id_reads_on_after_every_cut(proxy: CuttingProxy, client: httpx.Client, key: str, cut: int) -> None:
    assert post(client, key).status_code == 200
    expected = whole(client, key)
    got: list[tuple[str, str | None]] = []
    cuts = 0
    while not got or got[-1] != expected[-1]:
        # A connection a cut, up to the one that gets no further; then one that is whole.
        before = len(got)
        headers = {"Last-Event-ID": got[-1][1] or ""} if got else {}
        if cuts < 3:
            proxy.cut(cut, "rst" if cuts % 2 else "fin")
        cuts += 1
        decoder = SSEDecoder()
        with contextlib.suppress(httpx.TransportError), httpx.Client(timeout=PATIENCE, trust_env=False) as fresh:
            with fresh.stream("GET", f"http://127.0.0.1:{proxy.port}/chat/{key}", headers=headers) as answer:
                assert answer.status_code == 200
                for piece in answer.iter_raw():
                    got += [(event.data, event.own_id) for event in decoder.feed(piece)]
        assert got == expected[: len(got)] and len(got) >= before
        assert cuts < 10
    assert got == expected and cuts >= 2
    done = client.get(f"/chat/{key}", headers={"Last-Event-ID": got[-1][1] or ""})
    assert (done.status_code, done.content, done.headers["stream-outcome"]) == (204, b"", "completed")


def test_any_client_of_last_event_id_reads_on(proxy: CuttingProxy, client: httpx.Client, key: str) -> None:
    assert post(client, key).status_code == 200
    proxy.cut(333, "rst")
    protocol = LastEventID(end=lambda event: event.event == "end", text="text")
    with rs.connect("GET", f"http://127.0.0.1:{proxy.port}/chat/{key}", protocol=protocol, retry=RETRY) as stream:
        ids = [event.id for event in stream]
    assert ids == [id for _, id in whole(client, key)]
    assert stream.stats.reconnects == 1


def test_who_leaves_leaves_it_running(client: httpx.Client, key: str) -> None:
    with client.stream("POST", "/chat", json={"prompt": "Hello"}, headers={"Idempotency-Key": key}) as answer:
        assert answer.headers["content-location"] == f"/chat/{key}"
        assert answer.headers["stream-id"] == key
        assert next(answer.iter_raw())
    # In the middle of it: what has come, and what is live.
    whole(client, key)


def test_events_arrive_while_they_are_made(client: httpx.Client, key: str) -> None:
    with client.stream("POST", "/chat", json={"prompt": "Hello"}, headers={"Idempotency-Key": key}) as answer:
        pieces = [piece for piece in answer.iter_raw() if piece]
    # A server or a framework that collected them would have one or two.
    assert len(pieces) > 5


def test_a_post_that_is_sent_twice_starts_one_stream(client: httpx.Client, key: str) -> None:
    first, second = post(client, key), post(client, key)
    read = [[(event.data, event.own_id) for event in SSEDecoder().feed(answer.content)] for answer in (first, second)]
    assert read[0] == read[1] == whole(client, key)
    assert post(client, key, "something else").status_code == 409
    accepted = post(client, key, Prefer="respond-async")
    assert (accepted.status_code, accepted.headers["location"]) == (202, f"/chat/{key}")


def test_what_cannot_be_read_has_its_status(client: httpx.Client, key: str) -> None:
    assert client.get(f"/chat/{key}").json() == {"error": "not_found"}
    post(client, key)
    gone = client.get(f"/chat/{key}", headers={"Last-Event-ID": "zzzz.1"})
    assert (gone.status_code, gone.json()["why"]) == (410, "other_epoch")
    assert client.get(f"/chat/{key}?after=nonsense").status_code == 400
    head = client.head(f"/chat/{key}")
    assert (head.status_code, head.headers["stream-outcome"], head.content) == (200, "completed", b"")
    last = whole(client, key)[2][1]
    rest = client.get(f"/chat/{key}?view=verbatim&after={last}")
    assert rest.content.startswith(b'data: {"text":') and rest.content.count(b"data:") == 16


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_stream_that_fails_is_cut_where_it_has_no_ids(way: Way, tmp_path: Path) -> None:
    program = tmp_path / f"{way.example}.py"
    source = (EXAMPLES / program.name).read_text()
    # The same program, with a model that breaks down.
    program.write_text(re.sub(r'^( +)(yield {"text".*)$', r"\1assert word != 'thought'\n\1\2", source, flags=re.MULTILINE))
    assert program.read_text() != source
    with (
        served(way, program) as proxy,
        httpx.Client(base_url=f"http://127.0.0.1:{proxy.port}", timeout=PATIENCE, trust_env=False) as client,
    ):
        answer = post(client, "broken")
        *words, end = [event.data for event in SSEDecoder().feed(answer.content)]
        assert len(words) == 5 and '"failed"' in end
        with client.stream("GET", "/chat/broken?view=verbatim") as verbatim:
            pieces = verbatim.iter_raw()
            got = b""
            while got.count(b"\n\n") < 5:
                got += next(pieces)
            # Not the end of the body: the connection is closed within it.
            with pytest.raises(httpx.RemoteProtocolError):
                next(pieces)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_who_leaves_frees_a_reader(way: Way, tmp_path: Path) -> None:
    program = tmp_path / f"{way.example}.py"
    source = (EXAMPLES / program.name).read_text()
    # The same program, with a model that falls silent and room for two readers.
    # With heartbeats, since a WSGI server only notices that somebody has left when it writes.
    limited = source.replace("Hub(MemoryLog())", "Hub(MemoryLog(), heartbeat=0.1, limits=HubLimits(readers=2))")
    limited = limited.replace("import Hub, ", "import Hub, HubLimits, ").replace(
        "sleep(0.02)", "sleep(word == 'thought' and 600)"
    )
    assert "HubLimits(" in limited and "600" in limited
    program.write_text(limited)
    with (
        served(way, program) as proxy,
        httpx.Client(base_url=f"http://127.0.0.1:{proxy.port}", timeout=PATIENCE, trust_env=False) as client,
    ):
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(client.stream("POST", "/chat", json=BODY, headers={"Idempotency-Key": "long"}))
            second = stack.enter_context(client.stream("GET", "/chat/long"))
            # An iterator of httpx that is dropped closes its connection.
            reading = [answer.iter_raw() for answer in (first, second)]
            assert all(next(pieces) for pieces in reading)
            with client.stream("GET", "/chat/long") as third:
                assert third.status_code == 503
        deadline = time.monotonic() + PATIENCE
        left = 0
        while left < 6:
            with client.stream("GET", "/chat/long") as answer:
                if answer.status_code == 200:
                    assert next(answer.iter_raw())
                    left += 1
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_two_processes_of_gunicorn_share_a_log_in_a_file(tmp_path: Path) -> None:
    program = tmp_path / "flask_app.py"
    source = (EXAMPLES / program.name).read_text()
    shared = source.replace("import Hub, MemoryLog", "import Hub, SQLiteLog")
    program.write_text(shared.replace("MemoryLog()", f"SQLiteLog({str(tmp_path / 'streams.db')!r})"))
    assert program.read_text().count("SQLiteLog(") >= 2

    def command(program: Path, port: int) -> list[str]:
        return [*gunicorn(program, port), "--workers", "2"]

    reconnects = 0
    with served(Way("flask_app", "gunicorn", command), program) as proxy:
        for n in range(12):
            proxy.cut(100 * n % 700, "rst")
            url = f"http://127.0.0.1:{proxy.port}/chat"
            with rs.connect("POST", url, json={"prompt": n}, headers={"Idempotency-Key": f"m{n}"}, retry=RETRY) as stream:
                assert stream.read_text() == TEXT.format(n)
            reconnects += stream.stats.reconnects
    assert reconnects == 12


@pytest.mark.parametrize("program", sorted(EXAMPLES.glob("*.py")), ids=lambda program: program.stem)
def test_a_program_is_short_and_tested(program: Path) -> None:
    assert len(program.read_text().splitlines()) <= 60
    assert program.stem in {way.example for way in WAYS}
