"""
One scenario, six rows: {sync, asyncio, trio} × {httpx, httpx2}. Where it matters what carries the bytes, two more over aiohttp.

A test that takes `row` is written once, as `async def`, and runs in all six. On asyncio and trio it is what it seems.
In the sync rows nothing ever waits at an `await`: `row.connect()` then returns a sync stream behind an async face, each
call blocks where the async one would suspend, and the coroutine runs from its first line to its last in one `send()`.
A difference between rows is the bug.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import inspect
import math
import signal
import ssl
import threading
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from types import SimpleNamespace, TracebackType
from typing import Any, Literal

import anyio
import pytest
from hypothesis import HealthCheck, settings

import resumable_stream as rs

from .cutting import Where, around_each_event, at_every_byte
from .redis_server import _shared_cluster, _shared_redis, own_redis, redis_cluster, redis_server  # noqa: F401

# Before any test imports them, so that their assertions say what they saw.
pytest.register_assert_rewrite("resumable_stream.testing.store_contract", "resumable_stream.testing.log_contract")
pytest_plugins = ["resumable_stream.testing.pytest_plugin"]

DRIVERS: tuple[Literal["sync", "asyncio", "trio"], ...] = ("sync", "asyncio", "trio")
FAMILIES: tuple[Literal["httpx", "httpx2"], ...] = ("httpx", "httpx2")
# Properties: few examples on every run, many in `make soak`. A busy machine is slow, which is not the property's fault.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.register_profile("quick", patient, max_examples=15)
settings.register_profile("soak", patient, max_examples=500)
settings.load_profile("quick")
# A scenario that hangs fails after this many seconds, well before pytest's own timeout kills the run.
LONGEST = 200.0


class Eager:
    """A sync object behind an async face: what has an async name or must be awaited elsewhere is called at once."""

    AWAITED = frozenset({"open", "commit", "cancel", "read_text"})
    RENAMED = {"aclose": "close"}  # noqa: RUF012

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.wrapped, self.RENAMED.get(name, name))
        if name in self.AWAITED or name in self.RENAMED:

            @functools.wraps(value)
            async def call(*args: Any, **options: Any) -> Any:
                result = value(*args, **options)
                return self if result is self.wrapped else result

            return call
        if name.startswith("iter_"):
            return lambda *args, **options: Eager(value(*args, **options))
        return value

    def __repr__(self) -> str:
        return repr(self.wrapped)

    async def __aenter__(self) -> Eager:
        self.wrapped.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> Any:
        return self.wrapped.__exit__(kind, exc, traceback)

    def __aiter__(self) -> Eager:
        # What a `for` loop would use; it need not be the object itself.
        iterator = iter(self.wrapped)
        return self if iterator is self.wrapped else Eager(iterator)

    async def __anext__(self) -> Any:
        try:
            return next(self.wrapped)
        except StopIteration:
            raise StopAsyncIteration from None


class Row:
    """One driver over one family of clients; `over`: whose connections these use, if not httpcore's."""

    def __init__(
        self,
        driver: Literal["sync", "asyncio", "trio"],
        family: Literal["httpx", "httpx2"],
        over: Literal["httpcore", "aiohttp"] = "httpcore",
    ) -> None:
        self.driver = driver
        self.family = family
        self.over = over
        # How often the client itself sends a GET whose connection closes without an answer.
        self.sends = 2 if over == "aiohttp" else 1
        self.sync = driver == "sync"
        self.longest = LONGEST
        self.module = importlib.import_module(family)
        self._clients: list[Any] = []
        self._shared: Any = None

    def __repr__(self) -> str:
        return f"{self.driver}-{self.family}" + ("" if self.over == "httpcore" else f"-{self.over}")

    # --- running

    def run(self, scenario: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **options: Any) -> Any:
        """Run a coroutine function in this row, and close the clients that it made."""

        async def bounded() -> Any:
            if self.sync:
                return await self._and_close(scenario, *args, **options)
            with anyio.fail_after(self.longest):
                return await self._and_close(scenario, *args, **options)

        if self.sync:
            return drive(bounded())
        return anyio.run(bounded, backend=self.driver)

    async def _and_close(self, scenario: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **options: Any) -> Any:
        try:
            return await scenario(*args, **options)
        finally:
            with anyio.CancelScope(shield=True) if not self.sync else contextlib.nullcontext():
                await self.close_clients()

    async def close_clients(self) -> None:
        """Drop the connections that are kept alive, so that `server.wait_disconnected()` can come true."""
        clients, self._clients, self._shared = self._clients, [], None
        for client in clients:
            await self.close(client)

    async def disconnected(self, server: Any) -> bool:
        """Whether no connection to the server is open. Aiohttp closes one in the next turn of the loop, so it gets some turns."""
        if self.over == "aiohttp":
            await self.until(lambda: server.wait_disconnected(0.0))
        return bool(server.wait_disconnected(30.0))

    async def close(self, client: Any) -> None:
        if self.sync:
            client.close()
        else:
            await client.aclose()

    # --- making

    def client(self, **options: Any) -> Any:
        """A new client of this row; closed at the end of the run."""
        return self.keep(self.client_class(**{"trust_env": False, **options}))

    @property
    def client_class(self) -> Any:
        if self.over == "aiohttp":
            name = "httpx_aiohttp" if self.family == "httpx" else "httpx_aiohttp.httpx2"
            return getattr(importlib.import_module(name), f"{self.family.capitalize()}AiohttpClient")
        return self.module.Client if self.sync else self.module.AsyncClient

    def scripted(self, script: Any, **options: Any) -> Any:
        """A client of this row that plays a `ScriptedClient`."""
        return self.keep(script.sync(**options) if self.sync else script.asynchronous(**options))

    def keep(self, client: Any) -> Any:
        self._clients.append(client)
        return client

    def connect(self, method: str, url: Any, **options: Any) -> Any:
        """`rs.connect()` or `rs.aconnect()`, with a client of this row and without waits; see `QUICK`."""
        return self._stream(rs.connect if self.sync else rs.aconnect, method, url, **options)

    def resume(self, token: Any, **options: Any) -> Any:
        """`rs.resume()` or `rs.aresume()`, likewise."""
        return self._stream(rs.resume if self.sync else rs.aresume, token, **options)

    def _stream(self, make: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if options.get("client") is None:
            self._shared = options["client"] = self._shared or self.client()
        stream = make(*args, **{"retry": QUICK, **options})
        return Eager(stream) if self.sync else stream

    # --- waiting and working beside the scenario

    async def sleep(self, seconds: float) -> None:
        if self.sync:
            time.sleep(seconds)  # noqa: ASYNC251
        else:
            await anyio.sleep(seconds)

    async def until(self, condition: Callable[[], object], seconds: float = 120.0) -> None:
        """Wait for something that another thread or task does."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s in vain"
            await self.sleep(0.002)

    @contextlib.asynccontextmanager
    async def beside(self, work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        """Run `work` in another thread (sync) or another task; on leaving, wait for it."""
        if self.sync:
            failures: list[BaseException] = []

            def run() -> None:
                try:
                    drive(work())
                except BaseException as failure:
                    failures.append(failure)

            thread = threading.Thread(target=run, name="beside")
            thread.start()
            try:
                yield
            finally:
                thread.join(LONGEST)
            assert not thread.is_alive()
            if failures:
                raise failures[0]
            return
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            yield

    # --- reading

    async def read(self, stream: Any) -> list[Any]:
        """Every event of a stream that is not open yet."""
        async with stream:
            return [event async for event in stream]


def drive(coroutine: Any) -> Any:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise AssertionError("a scenario waited for an event loop in a sync row")


# 1000 attempts: a test that cuts a stream 500 times without progress is about something else than giving up.
QUICK = rs.RetryPolicy(attempts=1000, wait=lambda state: 0.0)


@pytest.fixture(scope="session", autouse=True)
def one_context() -> Iterator[None]:
    """Make the context for TLS that a client has by default once: it costs 17 ms, and nearly every test needs a client."""
    with pytest.MonkeyPatch.context() as patch:
        # httpx makes one, and httpx2 loads more into what is made.
        for module, name in ((ssl, "create_default_context"), (importlib.import_module("httpcore2"), "default_ssl_context")):
            patch.setattr(module, name, functools.cache(getattr(module, name)))
        yield


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Row:
    """Each of the rows in turn, most of them in `make soak` alone. An `async def` test that takes it runs in that row."""
    made = Row(*request.param.split("-"))
    if request.node.get_closest_marker("soak"):
        made.longest = math.inf  # pytest's own timeout bounds it
    if made.over == "aiohttp" and (mark := request.node.get_closest_marker("limit_of_aiohttp")):
        request.applymarker(pytest.mark.xfail(reason=mark.args[0], **mark.kwargs))
    return made


def pytest_configure() -> None:
    """Hear Ctrl-C, here and in each process that a test starts: a shell that runs all this in the background has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """
    Keep the tests themselves out of every search for garbage, to the end: they are half a million objects in each process.

    Neither this nor `spotless` undoes it at the end of the session, where pytest and the interpreter look ten times more.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """
    Give a test that takes `row` its rows, and one that takes `where` its places.

    Those that are for `make soak` are not even made where they would only be left out: they are a third of all.
    """
    named = {name for mark in metafunc.definition.iter_markers("parametrize") for name in _names(mark.args[0])}
    for name, found in (("row", _rows(metafunc)), ("where", {"events": True, "bytes": False})):
        if name in metafunc.fixturenames and name not in named:
            left_out = "not soak" in metafunc.config.option.markexpr
            params = [pytest.param(one, marks=() if quick else pytest.mark.soak) for one, quick in found.items()]
            metafunc.parametrize(name, [param for param in params if not (left_out and param.marks)], indirect=True)


def _names(given: str | list[str] | tuple[str, ...]) -> list[str]:
    return given.replace(",", " ").split() if isinstance(given, str) else list(given)


def _rows(metafunc: pytest.Metafunc) -> dict[str, bool]:
    """
    All six rows. True are two of them: sync over one family, and one of the two loops over the other.

    Which two, goes by the test's name, so that every row is tried by many tests. Where the loops differ, in how they cancel,
    a test is marked `each_loop`, and there are three.

    A driver's test over sockets has two more, of clients whose connections are aiohttp's, and one of these is true.
    """
    turn = zlib.crc32(metafunc.definition.originalname.encode())
    loop = DRIVERS[1 + turn // 2 % 2]
    drivers = DRIVERS if metafunc.definition.get_closest_marker("each_loop") else ("sync", loop)
    rows = {
        f"{driver}-{family}": driver in drivers and family == FAMILIES[(turn + (driver == loop)) % 2]
        for driver in DRIVERS
        for family in FAMILIES
    }
    over_sockets = {"flaky_server", "raw_server"} & set(metafunc.fixturenames)
    if over_sockets and metafunc.definition.path.parent.name == "drivers":
        rows |= {f"asyncio-{family}-aiohttp": family == FAMILIES[turn // 4 % 2] for family in FAMILIES}
    return rows


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run `async def` tests that take `row`."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj) or not isinstance(row := pyfuncitem.funcargs.get("row"), Row):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    row.run(pyfuncitem.obj, **{name: pyfuncitem.funcargs[name] for name in names})
    return True


@pytest.fixture
def where(request: pytest.FixtureRequest) -> Where:
    """Where to cut a body: around each of its events, and in `make soak` at every byte. A test that takes it runs as both."""
    return around_each_event if request.param == "events" else at_every_byte


@pytest.fixture(scope="session", autouse=True)
def prompt() -> Iterator[None]:
    """
    Take the jitter out of the reconnect after progress: it waits uniform(0, 0.25) s, an eighth of a second for each of 500 cuts.

    The name in `_api` is replaced, not `random.random` itself: that is nobody's business here.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resumable_stream._api.random", SimpleNamespace(random=lambda: 0.0))
        yield


@pytest.fixture
def spotless() -> Iterator[None]:
    """
    Fail a test that leaves a thread, or something whose finaliser complains (an open socket, a suspended async generator).

    What finalisers raise, pytest reports with the test in whose teardown they ran; hence the collection here.
    """
    # Frozen until the session ends: the collections of 600 tests then look only at what each of them made.
    gc.collect()
    gc.freeze()
    before = set(threading.enumerate())
    yield
    gc.collect()
    new = [thread for thread in set(threading.enumerate()) - before if not _is_foreign(thread)]
    for thread in new:
        # A loop tells its idle workers to stop and does not wait for them.
        thread.join(30.0)
    left = [thread.name for thread in new if thread.is_alive()]
    assert not left, f"threads left behind: {left}"


def _is_foreign(thread: threading.Thread) -> bool:
    # Trio keeps idle workers of `to_thread` for 10 s, for whoever needs one next; the servers of a test are closed after this.
    return thread.name.startswith(("Trio thread", "flaky-server")) or not thread.is_alive()
