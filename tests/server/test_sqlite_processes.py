"""Several processes on one log in SQLite: killed, stopped, forked, and in each other's way."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from resumable_stream import LogUnavailable, Outcome
from resumable_stream.server import Cursor, Ending, Head, Message, SQLiteLog
from resumable_stream.server.log import Appended, Done, Held, Page, Said, Unknown, Writer
from resumable_stream.testing._log_model import event_bytes, span_of

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and forks of POSIX")

HEAD = Head(content_type="text/event-stream", framing="sse")
OK = Ending(outcome=Outcome.COMPLETED)

PREAMBLE = """
import asyncio, functools, itertools, os, signal, sys
from resumable_stream import LogUnavailable
from resumable_stream.server import Cursor, Head, Message, Span, SQLiteLog
from resumable_stream.server.log import *

path = sys.argv[1]
# Several processes at once take their time on a busy machine.
SQLiteLog = functools.partial(SQLiteLog, busy_timeout=100.0)
HEAD = Head(content_type="text/event-stream", framing="sse")

def event_bytes(n):
    return b"data: %d%s\\n\\n" % (n, b"x" * (n * 7 % 23))

def spans(b=0, first=1):
    for n in itertools.count(first):
        event = event_bytes(n)
        b += len(event)
        yield Span(n=n, b=b, lengths=(len(event),), data=event)

def say(*words):
    print(*words, flush=True)

async def line():
    return (await asyncio.to_thread(sys.stdin.readline)).strip()

"""


def run(scenario: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(200):
            await scenario

    asyncio.run(bounded())


class Other:
    """Another process, which runs a script and speaks in lines."""

    def __init__(self, script: str, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + textwrap.dedent(script), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)


@contextmanager
def another(script: str, path: Path) -> Iterator[Other]:
    other = Other(script, path)
    try:
        yield other
    finally:
        other.process.kill()
        for pipe in (other.process.stdin, other.process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass
        other.process.wait(200)


async def page_of(log: SQLiteLog, stream_id: str = "s", after: Cursor | None = None) -> Page:
    page = await log.read(stream_id, after)
    assert isinstance(page, Page), page
    return page


async def text_of(log: SQLiteLog, stream_id: str = "s") -> bytes:
    return b"".join(span.data for span in (await page_of(log, stream_id)).spans)


def prefix(n: int) -> bytes:
    return b"".join(map(event_bytes, range(1, n + 1)))


# --- killed

# Appends as fast as it can, in batches of one to four spans, and says what was acknowledged.
APPENDER = """
    async def main():
        log = SQLiteLog(path)
        writer = await log.create("s", HEAD, lease=0.0)
        if isinstance(writer, Existing):
            writer = await log.claim("s", lease=0.0)
        handover = writer.handover
        more = spans(handover.b, handover.n + 1) if handover else spans()
        for size in itertools.cycle((1, 4, 2, 1)):
            batch = [(writer, next(more), None) for _ in range(size)]
            answers = await log.append(batch)
            say(answers[-1].n)

    asyncio.run(main())
"""


def kill_in_mid_append(tmp_path: Path, rounds: int, seed: int) -> None:
    path = tmp_path / "streams.db"
    chance = random.Random(seed)

    async def check(acknowledged: int) -> int:
        log = SQLiteLog(path)
        n = (await page_of(log)).n
        assert acknowledged <= n <= acknowledged + 4
        assert await text_of(log) == prefix(n)
        claimed = await log.claim("s", lease=0.0)
        assert isinstance(claimed, Writer)
        assert claimed.handover is not None
        assert (claimed.handover.n, claimed.handover.whole) == (n, True)
        b = len(prefix(n + 1))
        span = span_of(n + 1, n + 1)
        assert span.b == b
        assert await log.append([(claimed, span, None)]) == [Appended(n + 1)]
        await log.aclose()
        return n + 1

    last = 0
    for _ in range(rounds):
        with another(APPENDER, path) as other:
            acknowledged = last
            for _ in range(chance.randrange(1, 40)):
                acknowledged = int(other.hear())
            # Somewhere in the next few appends.
            time.sleep(chance.random() * 0.002)
            other.signal(signal.SIGKILL)
            while (text := other.hear()).isdigit():
                acknowledged = int(text)

        async def bounded(acknowledged: int = acknowledged) -> None:
            nonlocal last
            last = await check(acknowledged)

        run(bounded())
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_writer_killed_in_mid_append_leaves_a_prefix(tmp_path: Path) -> None:
    kill_in_mid_append(tmp_path, 4, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_writer_killed_a_hundred_times_leaves_a_prefix(tmp_path: Path) -> None:
    kill_in_mid_append(tmp_path, 100, seed=2)


# --- stopped

OBEDIENT = """
    async def main():
        log = SQLiteLog(path)
        writer = await log.create("s", HEAD, lease=0.2)
        more = spans()
        say("ready")
        while await line() == "append":
            say(*(await log.append([(writer, next(more), None)])))

    asyncio.run(main())
"""


def test_a_writer_stopped_past_its_lease_writes_nothing_after(tmp_path: Path) -> None:
    async def scenario() -> None:
        log = SQLiteLog(tmp_path / "streams.db")
        with another(OBEDIENT, tmp_path / "streams.db") as other:
            assert other.hear() == "ready"
            other.tell("append")
            assert other.hear() == "Appended(n=1, control=None)"
            other.signal(signal.SIGSTOP)
            other.tell("append")
            claimed = await log.claim("s", lease=600.0)
            if isinstance(claimed, Held):
                assert claimed.seconds <= 0.2
                await asyncio.sleep(claimed.seconds + 0.002)
                claimed = await log.claim("s", lease=600.0)
            assert isinstance(claimed, Writer)
            assert await log.append([(claimed, span_of(2, 2), None)]) == [Appended(2)]
            other.signal(signal.SIGCONT)
            assert other.hear() == f"Fenced(current='{claimed.token}')"
            assert await log.append([(claimed, span_of(3, 3), None)]) == [Appended(3)]
            assert await log.finish(claimed, 3, OK) == Done(3)
            other.tell("append")
            assert other.hear() == f"Fenced(current='{claimed.token}')"
        assert await text_of(log) == prefix(3)
        await log.aclose()

    run(scenario())


def stop_at_any_moment(tmp_path: Path, rounds: int, seed: int) -> None:
    """The writer runs at full speed. Stopped inside a transaction it holds the lock, and whoever claims is told who has it."""
    path = tmp_path / "streams.db"
    chance = random.Random(seed)

    async def scenario() -> None:
        log = SQLiteLog(path, busy_timeout=0.1)
        refusals: list[str] = []
        for _ in range(rounds):
            with another(APPENDER, path) as other:
                acknowledged = 0
                for _ in range(chance.randrange(1, 30)):
                    acknowledged = int(other.hear())
                await asyncio.sleep(chance.random() * 0.002)
                other.signal(signal.SIGSTOP)
                claimed: object = None
                while claimed is None:
                    try:
                        claimed = await log.claim("s", lease=600.0)
                    except LogUnavailable as error:
                        refusals.append(str(error))
                        other.signal(signal.SIGCONT)
                        await asyncio.sleep(chance.random() * 0.002)
                        other.signal(signal.SIGSTOP)
                if sys.platform == "linux":
                    assert [text for text in refusals if f"held by the process {other.process.pid} (" not in text] == []
                refusals.clear()
                assert isinstance(claimed, Writer)
                n = (await page_of(log)).n
                other.signal(signal.SIGCONT)
                while (text := other.hear()).isdigit():
                    acknowledged = int(text)
                # It was told that it is fenced, and has no `n`.
                assert text == ""
                assert acknowledged <= n
                assert (await page_of(log)).n == n
                assert await log.append([(claimed, span_of(n + 1, n + 1), None)]) == [Appended(n + 1)]
                assert await text_of(log) == prefix(n + 1)
                await log.delete("s")
        await log.aclose()

    run(scenario())


def test_a_writer_stopped_at_any_moment_writes_nothing_after(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stop_at_any_moment(tmp_path, 2, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_writer_stopped_at_fifty_moments_writes_nothing_after(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stop_at_any_moment(tmp_path, 50, seed=2)


# --- in the way

HOLDER = """
    import sqlite3
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("BEGIN IMMEDIATE")
    say("held")
    sys.stdin.readline()
    database.execute("COMMIT")
    say("free")
    sys.stdin.readline()
"""


def test_whoever_holds_the_lock_for_too_long_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "streams.db"
        log = SQLiteLog(path, busy_timeout=1.0)
        writer = await log.create("s", HEAD, lease=600.0)
        assert isinstance(writer, Writer)
        bells = log.bells()
        await bells.add("s")
        with another(HOLDER, path) as other:
            assert other.hear() == "held"
            text = "its lock was not free for 1 s, held by "
            text += rf"the process {other.process.pid} \(python" if sys.platform == "linux" else "another process"
            calls = [log.append([(writer, span_of(1, 1), None)]), *(log.say("s", Message(id=f"m{n}")) for n in range(100))]
            started = time.monotonic()
            answers = await asyncio.gather(*calls, return_exceptions=True)
            # All wait once, not one after the other, which would take 101 s.
            assert time.monotonic() - started < 50
            for answer in answers:
                assert isinstance(answer, LogUnavailable)
                with pytest.raises(LogUnavailable, match=text):
                    raise answer
            # Readers and listeners wait for nobody.
            assert (await page_of(log)).n == 0
            await bells.add("t")
            other.tell("go")
            assert other.hear() == "free"
            assert await log.append([(writer, span_of(1, 1), None)]) == [Appended(1)]
            assert await log.say("s", Message(id="m1")) == Said(1)
        assert (await anext(bells)).item == span_of(1, 1)
        await log.aclose()

    run(scenario())


def test_a_lock_that_is_released_in_time_is_waited_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "streams.db"
        log = SQLiteLog(path, busy_timeout=60.0)
        writer = await log.create("s", HEAD, lease=600.0)
        assert isinstance(writer, Writer)
        with another(HOLDER, path) as other:
            assert other.hear() == "held"
            waiting = asyncio.create_task(log.append([(writer, span_of(1, 1), None)]))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            other.tell("go")
            assert await waiting == [Appended(1)]
        await log.aclose()

    run(scenario())


# --- together

ECHO = """
    async def main():
        log = SQLiteLog(path)
        writer = await log.create("theirs", HEAD, lease=600.0)
        bells = log.bells()
        await bells.add("ours")
        say("ready")
        more = spans()
        n = 0
        async for bell in bells:
            page = await log.read("ours", Cursor(bell.epoch or "aaaa", n))
            for span in page.spans:
                n = span.n
                await log.append([(writer, next(more), None)])
            if page.ending:
                break
        await log.finish(writer, n, page.ending)
        await log.aclose()

    asyncio.run(main())
"""


def test_two_processes_hear_each_other(tmp_path: Path) -> None:
    """Each event of ours is answered by one of theirs, found by bells alone."""

    async def scenario() -> None:
        path = tmp_path / "streams.db"
        log = SQLiteLog(path)
        writer = await log.create("ours", HEAD, lease=600.0)
        assert isinstance(writer, Writer)
        bells = log.bells()
        await bells.add("theirs")
        with another(ECHO, path) as other:
            assert other.hear() == "ready"
            seen = 0
            for n in range(1, 21):
                assert await log.append([(writer, span_of(n, n), None)]) == [Appended(n)]
                while seen < n:
                    bell = await anext(bells)
                    seen = max(seen, bell.n or 0)
            assert await log.finish(writer, 20, OK) == Done(20)
            while (await page_of(log, "theirs")).ending is None:
                await anext(bells)
            assert await text_of(log, "theirs") == prefix(20)
            assert other.process.wait(200) == 0
        await log.aclose()

    run(scenario())


RACER = """
    async def main():
        log = SQLiteLog(path)
        for number in range(int(sys.stdin.readline())):
            found = await log.create(f"s{number}", HEAD, lease=0.0)
            if isinstance(found, Writer):
                say("created", number)
            claimed = await log.claim(f"c{number}", lease=600.0)
            if isinstance(claimed, Writer):
                say("claimed", number)
        say("done")
        await log.aclose()

    asyncio.run(main())
"""


def test_of_several_processes_one_creates_and_one_claims(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "streams.db"
        log = SQLiteLog(path)
        for number in range(100):
            await log.create(f"c{number}", HEAD, lease=0.0)
        others = [Other(RACER, path) for _ in range(3)]
        for other in others:
            other.tell("100")
        heard: list[str] = []
        for other in others:
            while (text := other.hear()) != "done":
                assert text
                heard.append(text)
            with other.process:
                other.process.communicate(timeout=200)
        assert sorted(heard) == sorted(f"{what} {number}" for what in ("created", "claimed") for number in range(100))
        await log.aclose()

    run(scenario())


def test_processes_that_start_at_once_share_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "streams.db"
    script = """
        async def main():
            log = SQLiteLog(path)
            await line()
            writer = await log.create(f"s{os.getpid()}", HEAD, lease=600.0)
            say(*await log.append([(writer, next(spans()), None)]))
            await line()
            await log.aclose()

        say("ready")
        asyncio.run(main())
    """
    others = [Other(script, path) for _ in range(4)]
    assert [other.hear() for other in others] == ["ready"] * 4
    for other in others:
        other.tell("go")
    assert [other.hear() for other in others] == ["Appended(n=1, control=None)"] * 4

    async def check() -> None:
        log = SQLiteLog(path)
        for other in others:
            assert await text_of(log, f"s{other.process.pid}") == prefix(1)
        await log.aclose()

    run(check())
    for other in others:
        with other.process:
            other.process.communicate("go", timeout=200)
    assert os.listdir(path.parent) == ["streams.db"]


RESTORER = """
    async def again(call):
        for _ in range(1000):
            try:
                return await call()
            except LogUnavailable:
                await asyncio.sleep(0.01)
        raise AssertionError("the log does not come back")

    async def main():
        log, mirror, lost = SQLiteLog(path), [], 0
        writer = await again(lambda: log.create(f"s{os.getpid()}", HEAD, lease=600.0))
        stopped = asyncio.create_task(line())
        more = spans()
        say("ready")
        while not stopped.done():
            span = next(more)
            while not isinstance(verdict := (await again(lambda: log.append([(writer, span, None)])))[0], Appended):
                assert verdict == Lost(), verdict
                restored = await again(lambda: log.restore(writer, HEAD, writer.epoch, mirror))
                assert isinstance(restored, Writer), restored
                writer, lost = restored, lost + 1
            mirror.append(span)
        say(len(mirror), lost)
        while await line() != "end":
            pass
        await log.aclose()

    asyncio.run(main())
"""


@pytest.mark.soak
def test_processes_whose_file_is_deleted_again_and_again_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "streams.db"
    chance = random.Random(3)
    others = [Other(RESTORER, path) for _ in range(3)]
    assert [other.hear() for other in others] == ["ready"] * 3
    for _ in range(30):
        time.sleep(chance.random() * 0.3)
        path.unlink(missing_ok=True)
    for other in others:
        other.tell("stop")
    counts = [tuple(map(int, other.hear().split())) for other in others]
    assert all(lost > 0 for _, lost in counts), counts

    async def check() -> None:
        log = SQLiteLog(path)
        for other, (n, _) in zip(others, counts, strict=True):
            page = await log.read(f"s{other.process.pid}")
            # One whose file went after its last append has not noticed yet; what is there is right.
            assert isinstance(page, Unknown) or await text_of(log, f"s{other.process.pid}") == prefix(n)
        await log.aclose()

    run(check())
    for other in others:
        with other.process:
            other.process.communicate("end\n", timeout=200)
            assert other.process.returncode == 0


# --- forked

FORKED = """
    async def work(name, log):
        writer = await log.create(name, HEAD, lease=600.0)
        for span in itertools.islice(spans(), 200):
            assert await log.append([(writer, span, None)]) == [Appended(span.n)]
            page = await log.read(name, Cursor(writer.epoch, span.n - 1))
            assert page.spans == (span,)

    async def first(log):
        bells = log.bells()
        await bells.add("child0")
        await work("before", log)

    def child(number, log):
        try:
            asyncio.run(work(f"child{number}", log))
            asyncio.run(log.aclose())
        except BaseException as error:
            say(repr(error))
            os._exit(1)
        os._exit(0)

    async def busy(log):
        # Forks while the writer and the readers are at work.
        tasks = [asyncio.create_task(work(f"busy{number}", log)) for number in range(4)]
        children = []
        for number in range(3):
            await asyncio.sleep(0.02)
            pid = os.fork()
            if pid == 0:
                asyncio._set_running_loop(None)
                asyncio.set_event_loop(None)
                child(number, log)
            children.append(pid)
        await asyncio.gather(*tasks)
        for pid in children:
            _, status = await asyncio.to_thread(os.waitpid, pid, 0)
            say(os.waitstatus_to_exitcode(status))
        await log.aclose()

    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    log = SQLiteLog(path)
    asyncio.run(first(log))
    asyncio.run(busy(log))
    say("parent done")
"""


def test_a_log_goes_on_on_both_sides_of_a_fork(tmp_path: Path) -> None:
    path = tmp_path / "streams.db"
    with another(FORKED, path) as other:
        heard = []
        while text := other.hear():
            heard.append(text)
        assert heard == ["0", "0", "0", "parent done"]

    async def check() -> None:
        log = SQLiteLog(path)
        for name in ("before", "child0", "child1", "child2", "busy0", "busy1", "busy2", "busy3"):
            assert await text_of(log, name) == prefix(200)
        assert await log.read("other") == Unknown()
        await log.aclose()

    run(check())
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


CARRIED = """
    from resumable_stream import _forks

    async def main():
        log = SQLiteLog(path)
        await log.create("s", HEAD, lease=600.0)
        await log.read("s")
        handles = list(_forks._known)
        say(len(handles))
        pid = os.fork()
        if pid == 0:
            say([handle._connection for handle in handles], all(handle.lock.acquire(blocking=False) for handle in handles))
            os._exit(0)
        os.waitpid(pid, 0)
        assert isinstance(await log.create("s", HEAD, lease=600.0), Existing)
        await log.aclose()

    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    asyncio.run(main())
"""


def test_no_connection_is_carried_across_a_fork(tmp_path: Path) -> None:
    with another(CARRIED, tmp_path / "streams.db") as other:
        assert other.hear() == "2"
        assert other.hear() == "[None, None] True"
        assert other.process.wait(200) == 0
