"""The clients are genuine; only their network is a script."""

from __future__ import annotations

import importlib
import itertools
from typing import Any, Literal

import anyio
import pytest

from resumable_stream.testing import RecordedRequest, Reply, ScriptedClient

pytest_plugins = ["pytester"]

Family = Literal["httpx", "httpx2"]
NAMES = {
    "close_error": "CloseError",
    "connect_error": "ConnectError",
    "connect_timeout": "ConnectTimeout",
    "pool_timeout": "PoolTimeout",
    "proxy_error": "ProxyError",
    "read_error": "ReadError",
    "read_timeout": "ReadTimeout",
    "remote_protocol_error": "RemoteProtocolError",
    "write_error": "WriteError",
    "write_timeout": "WriteTimeout",
}


@pytest.fixture(params=["httpx", "httpx2"])
def family(request: pytest.FixtureRequest) -> Any:
    return pytest.importorskip(request.param)


def scripted(script: Any, family: Any) -> ScriptedClient:
    return ScriptedClient(script, family=family.__name__)


def read(script: ScriptedClient, colour: str, url: str = "https://example.com/s", **options: Any) -> list[bytes]:
    """The chunks of one GET, by either colour; what goes wrong is raised."""
    chunks: list[bytes] = []

    async def read_async() -> None:
        async with script.asynchronous() as client, client.stream("GET", url, **options) as response:
            async for chunk in response.aiter_raw():
                chunks.append(chunk)

    if colour == "async":
        anyio.run(read_async)
    else:
        with script.sync() as client, client.stream("GET", url, **options) as response:
            chunks.extend(response.iter_raw())
    return chunks


colours = pytest.mark.parametrize("colour", ["sync", "async"])


@colours
def test_each_request_takes_the_next_reply_and_is_recorded(family: Any, colour: str) -> None:
    script = scripted([Reply(body=[b"a", b"b"]), Reply(status=503, headers={"Retry-After": "2"}, body=b"busy")], family)
    assert read(script, colour, headers={"Last-Event-ID": "7"}) == [b"a", b"b"]
    assert read(script, colour, "https://example.com/other?x=1") == [b"busy"]
    first, second = script.requests
    assert (first.method, first.path, first.last_event_id) == ("GET", "/s", "7")
    assert (second.query, second.connection) == ({"x": "1"}, 1)
    assert script.unclosed == 0


def test_the_clients_are_those_of_the_family(family: Any) -> None:
    script = scripted([Reply(body=b"data: 1\n\n"), Reply(status=404)], family)
    with script.sync(base_url="https://example.com", headers={"X-A": "b"}) as client:
        assert type(client) is family.Client
        response = client.post("/v1", json={"n": 1})
        assert response.headers["content-type"].startswith("text/event-stream") and response.text == "data: 1\n\n"
        assert "content-type" not in client.get("/v1").headers
    assert script.requests[0].json() == {"n": 1} and script.requests[0].headers["x-a"] == "b"
    assert type(script.asynchronous()) is family.AsyncClient
    assert isinstance(script.transport(), family.BaseTransport) and isinstance(script.transport(), family.AsyncBaseTransport)


@colours
@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_neutral_name_becomes_the_familys_exception_before_and_inside_a_body(family: Any, colour: str, name: str) -> None:
    script = scripted([name, Reply(body=[b"a", name, b"never"])], family)
    for _ in range(2):
        with pytest.raises(getattr(family, NAMES[name]), match=f"scripted {name}") as caught:
            read(script, colour)
        assert caught.value.request.url.path == "/s"
    assert script.unclosed == 0


@colours
def test_an_exception_of_your_own_is_raised_as_it_is(family: Any, colour: str) -> None:
    class Interrupt(BaseException):
        pass

    script = scripted([OSError("refused"), Reply(body=[Interrupt()])], family)
    with pytest.raises(OSError, match="refused"):
        read(script, colour)
    with pytest.raises(Interrupt):
        read(script, colour)


@colours
def test_a_callable_answers_from_the_request_and_a_callable_in_a_body_runs_there(family: Any, colour: str) -> None:
    seen: list[str] = []

    def answer(request: RecordedRequest) -> Reply:
        start = int(request.last_event_id or 0)
        return Reply(body=[b"%d" % n for n in range(start, start + 2)])

    script = scripted(answer, family)
    assert read(script, colour) == [b"0", b"1"]
    assert read(script, colour, headers={"Last-Event-ID": "5"}) == [b"5", b"6"]
    script = scripted([Reply(body=[b"a", lambda: seen.append("between"), b"b"])], family)
    assert read(script, colour) == [b"a", b"b"] and seen == ["between"]


def test_an_awaitable_in_a_body_is_awaited_and_can_be_cancelled(family: Any) -> None:
    script = scripted([Reply(body=[b"a", anyio.sleep_forever])], family)
    chunks: list[bytes] = []

    async def main() -> None:
        async with script.asynchronous() as client:
            with anyio.move_on_after(0.5):
                async with client.stream("GET", "https://example.com") as response:
                    async for chunk in response.aiter_raw():
                        chunks.append(chunk)

    anyio.run(main)
    assert chunks == [b"a"] and script.unclosed == 0


@colours
def test_a_script_may_be_endless_and_a_used_up_one_says_which_request_was_too_many(family: Any, colour: str) -> None:
    script = scripted(itertools.repeat(Reply(status=500)), family)
    for _ in range(5):
        read(script, colour)
    script = scripted([Reply()], family)
    read(script, colour)
    with pytest.raises(AssertionError, match=r"request 2 \(GET https://example.com/s\) was not expected"):
        read(script, colour)


def test_a_body_is_read_once(family: Any) -> None:
    with scripted([Reply(body=[b"a", b"b"])], family).sync() as client, client.stream("GET", "https://example.com") as response:
        assert next(iter(response.stream)) == b"a"
        with pytest.raises(AssertionError, match="twice"):
            next(iter(response.stream))


def test_what_cannot_be_played_is_named(family: Any) -> None:
    for script in (["explode"], [Reply(body=["explode"])], [7]):
        with pytest.raises(TypeError, match="connect_error"):
            read(scripted(script, family), "sync")


def test_families() -> None:
    with pytest.raises(ValueError, match="httpx2"):
        ScriptedClient([], family="requests")  # type: ignore[arg-type]


def test_httpx2_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r"resumable-stream-sdk\[httpx2\]"):
        ScriptedClient([], family="httpx2")


# --- the fixtures

FIXTURE_TESTS = """
import httpx
import pytest
from resumable_stream.testing import Fault, Reply, numbered

def test_server(flaky_server):
    other = flaky_server(numbered(1))
    server = flaky_server(numbered(3), [Fault.redirect(other.url)])
    assert httpx.get(server.url, follow_redirects=True, trust_env=False).content == other.transcript

def test_client(scripted_client):
    with scripted_client([Reply(body=b"x")]).sync() as client:
        assert client.get("https://example.com").content == b"x"

def test_leak(scripted_client):
    client = scripted_client([Reply(body=[b"x"])]).sync()
    client.send(client.build_request("GET", "https://example.com"), stream=True)
"""


def test_the_fixtures_clean_up_and_find_a_body_left_open(pytester: pytest.Pytester) -> None:
    pytester.makeconftest('pytest_plugins = ["resumable_stream.testing.pytest_plugin"]')
    pytester.makepyfile(FIXTURE_TESTS)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-W", "error")
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*1 response bodies were never closed*"])
