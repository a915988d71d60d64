"""The verbs of a hub for programs without an event loop, and what becomes of their threads."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import resumable_stream as rs
from resumable_stream.framing import SSEDecoder
from resumable_stream.server import Cursor, Generation, Hub, MemoryLog, RedisLog, SQLiteLog, SyncHub

PATIENCE = 120.0
END = ("end", '{"outcome":"completed"}')
STEERED_END = ("end", '{"outcome":"completed","applied":1}')
WORDS = [("message", "one"), ("message", "two"), ("message", "three")]


@pytest.fixture
def portal() -> Iterator[SyncHub]:
    with Hub(MemoryLog(), flush=0.0).portal() as portal:
        yield portal


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


async def words() -> AsyncIterator[str]:
    for word in ("one", "two", "three"):
        yield word


def plain_words() -> Iterator[str]:
    yield from ("one", "two", "three")


async def waits(gen: Generation) -> None:
    gen.text("first")
    for message in await gen.wait_steered():
        await gen.send(message.data)


async def fails(gen: Generation) -> None:
    gen.text("half")
    gen.fail("upstream_cut")


def events(body: bytes) -> list[tuple[str, str]]:
    return [(event.event, event.data) for event in SSEDecoder().feed(body)]


def read(chunks: Any) -> list[tuple[str, str]]:
    return events(b"".join(chunks))


def readers(portal: SyncHub) -> int:
    return len(portal.hub._readers)


# --- verbs --------------------------------------------------------------------------------------------------------------


def test_a_stream_is_started_once_and_read_from_any_place(portal: SyncHub) -> None:
    stream = portal.start("s", words())
    assert not stream.joined and portal.start("s", words()).joined
    whole = read(portal.follow("s"))
    assert whole == [*WORDS, END]
    for n in range(5):
        assert read(portal.follow("s", f"{stream.epoch}.{n}")) == whole[n:]
    assert portal.state("s").cursor == Cursor(stream.epoch, 3)
    assert readers(portal) == 0


def test_many_threads_read_one_stream(portal: SyncHub, threads: ThreadPoolExecutor) -> None:
    portal.start("s", waits)
    reading = [threads.submit(lambda: read(portal.follow("s"))) for _ in range(8)]
    wait_until(lambda: readers(portal) == 8)
    assert portal.say("s", "go on") == 1
    expected = [("message", '{"text":"first"}'), ("message", "go on"), STEERED_END]
    assert [each.result(PATIENCE) for each in reading] == [expected] * 8


def test_a_stream_is_cancelled_and_forgotten(portal: SyncHub) -> None:
    async def endless() -> AsyncIterator[str]:
        yield "first"
        await asyncio.Event().wait()

    portal.start("s", endless)
    assert portal.cancel("s")
    assert json.loads(read(portal.follow("s"))[-1][1])["outcome"] == "cancelled"
    portal.forget("s")
    with pytest.raises(rs.StreamUnknown):
        portal.state("s")
    with pytest.raises(rs.StreamUnknown):
        next(portal.follow("s"))
    with pytest.raises(ValueError):
        portal.follow("s", "nonsense")


def test_a_failed_stream_is_cut_without_ids(portal: SyncHub) -> None:
    portal.start("s", fails)
    chunks = portal.follow("s", view="verbatim")
    assert next(chunks) == b'data: {"text":"half"}\n\n'
    with pytest.raises(rs.ReaderCut, match="upstream_cut"):
        next(chunks)
    assert list(chunks) == []


def test_an_answer_has_its_status(portal: SyncHub) -> None:
    post = portal.answer("POST", {"Idempotency-Key": "s"}, run=plain_words, path="/chat", body=b"hello")
    assert (post.status, post.header("content-location")) == (200, "/chat/s")
    assert read(post) == read(post) == [*WORDS, END]
    epoch = portal.state("s").epoch
    rest = portal.answer("GET", [("Last-Event-ID", f"{epoch}.2")], b"", id="s")
    assert rest.live and read(rest) == [WORDS[2], END]
    done = portal.answer("GET", {}, f"after={epoch}.4", id="s")
    assert (done.status, list(done), done.body) == (204, [], b"")
    unknown = portal.answer("GET", {}, id="t")
    assert unknown.status == 404 and list(unknown) == [unknown.body]
    assert "404" in repr(unknown)
    assert portal.answer("POST", {}, id="s", run=plain_words, body=b"other").status == 409


def test_closing_an_answer_lets_its_readers_go(portal: SyncHub) -> None:
    portal.start("s", waits)
    answer = portal.answer("GET", {}, id="s")
    assert readers(portal) == 0
    next(iter(answer))
    assert readers(portal) == 1
    answer.close()
    wait_until(lambda: readers(portal) == 0)
    assert portal.state("s").ending is None


@pytest.mark.parametrize("verb", ["start", "state", "message", "say", "cancel", "forget", "follow", "answer", "drain"])
def test_a_verb_takes_what_that_of_the_hub_takes(verb: str) -> None:
    own, hubs = (inspect.signature(getattr(each, verb)).parameters for each in (SyncHub, Hub))
    assert [(each.name, each.kind, each.default) for each in own.values()] == [
        (each.name, each.kind, each.default) for each in hubs.values()
    ]


def test_the_text_so_far_is_one_value(portal: SyncHub) -> None:
    portal.start("s", fails)
    read(portal.follow("s"))
    assert portal.message("s").text == "half"


# --- plain generators ---------------------------------------------------------------------------------------------------


def test_a_plain_generator_runs_in_a_thread_of_its_own(portal: SyncHub) -> None:
    seen = []

    def produce() -> Iterator[str]:
        seen.append(threading.current_thread())
        # It may block, and use the portal.
        portal.start("inner", plain_words())
        for name, data in read(portal.follow("inner")):
            if name == "message":
                yield data

    for id, run in (("a", produce()), ("b", produce)):
        portal.start(id, run)
        assert read(portal.follow(id)) == [*WORDS, END]
        portal.forget("inner")
    assert len({*seen, threading.current_thread()}) == 3


def test_a_plain_generator_that_is_cancelled_is_closed_after_its_next_item(portal: SyncHub) -> None:
    go_on, closed = threading.Event(), threading.Event()

    def produce() -> Iterator[str]:
        try:
            yield "first"
            assert go_on.wait(PATIENCE)
            yield "second"
            yield "third"
        finally:
            closed.set()

    portal.start("s", produce())
    chunks = portal.follow("s")
    got = b""
    while b"first" not in got:
        got += next(chunks)
    portal.cancel("s", "enough")
    go_on.set()
    assert closed.wait(PATIENCE)
    name, data = read(chunks)[-1]
    assert (name, json.loads(data)) == ("end", {"outcome": "cancelled", "reason": "enough"})


def test_a_plain_generator_that_is_not_needed_is_closed(portal: SyncHub) -> None:
    portal.start("s", plain_words())
    unused = plain_words()
    assert portal.start("s", unused).joined
    assert list(unused) == []


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_plain_generator_that_raises_fails_its_stream_and_nothing_else(
    portal: SyncHub, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def produce() -> Iterator[str]:
        yield "first"
        raise error("secret")

    portal.start("s", produce)
    name, data = read(portal.follow("s"))[-1]
    assert (name, json.loads(data)["outcome"]) == ("end", "failed")
    assert "secret" not in data
    portal.start("t", plain_words)
    assert read(portal.follow("t")) == [*WORDS, END]
    assert "the producer of stream s failed" in caplog.text


# --- iterators ----------------------------------------------------------------------------------------------------------


def test_an_iterator_opens_its_reader_late_and_lets_it_go_when_it_is_dropped(portal: SyncHub) -> None:
    portal.start("s", waits)
    chunks = portal.follow("s")
    assert readers(portal) == 0
    next(chunks)
    assert readers(portal) == 1
    del chunks
    gc.collect()
    wait_until(lambda: readers(portal) == 0)
    never_read = portal.follow("s")
    never_read.close()
    assert list(never_read) == []


def test_an_iterator_is_closed_by_another_thread_while_it_waits(portal: SyncHub, threads: ThreadPoolExecutor) -> None:
    portal.start("s", waits)
    for _ in range(20):
        chunks = portal.follow("s")
        reading = threads.submit(list, chunks)
        wait_until(lambda: readers(portal) == 1)
        chunks.close()
        assert isinstance(reading.result(PATIENCE), list)
        wait_until(lambda: readers(portal) == 0)


def interrupted(portal: SyncHub, chunks: Iterator[bytes]) -> None:
    """Ctrl-C while a thread waits for a piece."""

    def result(self: Future[Any], timeout: float | None = None) -> Any:
        wait_until(lambda: readers(portal) == 1)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Future, "result", result)
        with pytest.raises(KeyboardInterrupt):
            next(chunks)


def test_who_is_interrupted_while_it_waits_lets_the_reader_go(portal: SyncHub) -> None:
    portal.start("s", waits)
    chunks = portal.follow("s")
    interrupted(portal, chunks)
    wait_until(lambda: readers(portal) == 0)
    assert list(chunks) == []


# --- life ---------------------------------------------------------------------------------------------------------------


def test_a_portal_opens_when_it_is_first_used_and_its_thread_ends() -> None:
    # Not how many there are: those that other tests have left idle end in between.
    before = set(threading.enumerate())

    def new() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread not in before]

    portal = Hub(MemoryLog()).portal()
    assert not new() and "not open yet" in repr(portal)
    portal.start("s", words())
    assert new() == ["resumable_stream hub"] and "(open)" in repr(portal)
    assert portal.open() is portal
    portal.close()
    portal.close()
    assert not new() and "closed" in repr(portal)
    for use in (portal.open, lambda: portal.state("s")):
        with pytest.raises(RuntimeError, match="closed"):
            use()
    with pytest.raises(rs.ReaderCut, match="closed"):
        next(portal.follow("s"))


def test_a_portal_that_was_never_opened_closes() -> None:
    Hub(MemoryLog()).portal().close()


@pytest.mark.parametrize("view", ["events", "verbatim"])
def test_no_read_hangs_when_the_portal_closes(view: Any, threads: ThreadPoolExecutor) -> None:
    portal = Hub(MemoryLog(), flush=0.0).portal()
    portal.start("s", waits)
    at_rest = portal.follow("s", view=view)
    next(at_rest)

    begun: list[bytes] = []

    def follow() -> tuple[bytes, bool]:
        got = b""
        try:
            for chunk in portal.follow("s", view=view):
                got += chunk
                if b"first" in chunk:
                    begun.append(chunk)
        except rs.ReaderCut:
            return got, True
        return got, False

    reading = [threads.submit(follow) for _ in range(6)]
    # All have read what there is, and wait for more.
    wait_until(lambda: len(begun) == len(portal._waiting) == 6)
    portal.close()
    for each in reading:
        got, cut = each.result(PATIENCE)
        # With ids: a clean end, without the event `end`, and the client comes back.
        assert cut == (view == "verbatim")
        assert b"event: end" not in got
    with pytest.raises(rs.ReaderCut, match="portal"):
        next(at_rest)


def test_no_call_hangs_when_the_portal_closes(threads: ThreadPoolExecutor) -> None:
    class Stuck(MemoryLog):
        entered = threading.Event()

        async def say(self, *args: Any) -> Any:
            self.entered.set()
            await asyncio.Event().wait()

    portal = Hub(Stuck()).portal()
    portal.start("s", waits)
    saying = threads.submit(portal.say, "s", "hello")
    assert Stuck.entered.wait(PATIENCE)
    portal.close()
    with pytest.raises(RuntimeError, match="closed before the call finished"):
        saying.result(PATIENCE)


def test_a_close_that_takes_too_long_says_so_and_lets_everybody_go(threads: ThreadPoolExecutor) -> None:
    class Slow(MemoryLog):
        may_close = threading.Event()

        async def aclose(self) -> None:
            await asyncio.to_thread(self.may_close.wait, PATIENCE)
            await super().aclose()

    portal = Hub(Slow()).portal().open()
    with pytest.raises(TimeoutError, match="0.01 s"):
        portal.close(0.01)
    Slow.may_close.set()
    portal.close()


def test_a_drained_portal_starts_nothing(portal: SyncHub) -> None:
    portal.start("s", words())
    portal.drain(timeout=PATIENCE, spread=0.0)
    assert portal.state("s").ending is not None
    with pytest.raises(rs.HubDraining):
        portal.start("t", words())
    assert portal.answer("POST", {}, run=words()).status == 503


def test_a_hub_that_runs_already_has_no_portal() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:
            portal = hub.portal()
            with pytest.raises(RuntimeError, match="already running"):
                portal.open()
            portal.close()

    asyncio.run(scenario())


def test_a_call_from_the_loop_itself_is_refused(portal: SyncHub) -> None:
    refused: Future[str] = Future()

    async def produce() -> AsyncIterator[str]:
        try:
            portal.state("s")
        except RuntimeError as error:
            refused.set_result(str(error))
        yield "done"

    portal.start("s", produce)
    assert "await the methods of the hub" in refused.result(PATIENCE)


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_what_a_portal_keeps_goes_on_in_the_next_one(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resumable_stream.server.generations._QUIET", 0.1)
    monkeypatch.setattr("resumable_stream.server.generations._LOOK", 0.05)

    def portal() -> SyncHub:
        log = SQLiteLog(tmp_path / "streams.db") if kind == "sqlite" else RedisLog(request.getfixturevalue("redis_server").url)
        return Hub(log).portal()

    with portal() as first, portal() as second:
        stream = first.start("s", waits)
        chunks = second.follow("s")
        got = b""
        while b"first" not in got:
            got += next(chunks)
        # From another loop, to the producer in the first one.
        second.say("s", "go on")
        assert read(chunks)[-1] == STEERED_END
    with portal() as third:
        assert read(third.follow("s", f"{stream.epoch}.1")) == [("message", "go on"), STEERED_END]


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def test_a_portal_that_was_opened_before_a_fork_refuses_to_work() -> None:
    code = """
    import os, warnings
    warnings.simplefilter("ignore")  # newer Pythons warn of forks with threads
    from resumable_stream.server import Hub, MemoryLog

    early, late = Hub(MemoryLog()).portal(), Hub(MemoryLog()).portal()
    early.start("s", (word for word in ("one",)))
    chunks = early.follow("s")
    child = os.fork()
    if child == 0:
        for use in (lambda: early.state("s"), lambda: next(chunks)):
            try:
                use()
            except RuntimeError as error:
                assert "does not survive a fork" in str(error), error
            else:
                os._exit(1)
        early.close()
        def words():
            yield "one"
        late.start("s", words)
        assert b"one" in b"".join(late.follow("s"))
        late.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    early.close()
    print("done")
    """
    assert run_python(code) == "done\n"


@pytest.mark.parametrize("log", ["MemoryLog()", "SQLiteLog('streams.db')"])
def test_a_portal_that_nobody_closes_ends_with_the_interpreter(log: str, tmp_path: Path) -> None:
    code = f"""
    import os
    os.chdir({str(tmp_path)!r})
    from resumable_stream.server import Hub, MemoryLog, SQLiteLog

    async def endless(gen):
        gen.text("first")
        await gen.wait_steered()

    portal = Hub({log}).portal()
    portal.start("s", endless)
    chunks = portal.follow("s")
    print(b"retry" in next(chunks))
    """
    assert run_python(code) == "True\n"
    if "SQLite" in log:
        with Hub(SQLiteLog(tmp_path / "streams.db")).portal() as portal:
            # The first process has said so, so nobody has to wait for its lease.
            assert json.loads(read(portal.follow("s"))[-1][1])["error"]["reason"] == "shutdown"
