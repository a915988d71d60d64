"""The log in SQLite: the contract of all logs, and what is peculiar to a file. Several processes: `test_sqlite_processes`."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from resumable_stream import LogUnavailable, Outcome
from resumable_stream.server import Cursor, Ending, Head, Message, Span, SQLiteLog, StreamLog
from resumable_stream.server import _sqlite_file as files
from resumable_stream.server import _sqlite_rows as rows
from resumable_stream.server import _sqlite_threads as threads
from resumable_stream.server._rules import COMPACTED_BYTES
from resumable_stream.server.log import (
    Append,
    Appended,
    Bell,
    Done,
    Existing,
    Gone,
    Lost,
    Page,
    Said,
    SpanRefused,
    Unavailable,
    Unknown,
    Writer,
    join_spans,
)
from resumable_stream.testing.log_contract import LogContract, event_bytes, span_of

HEAD = Head(content_type="text/event-stream", framing="sse")
OK = Ending(outcome=Outcome.COMPLETED)
LATER = time.monotonic() + 3600.0
posix = pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")


class TestSQLiteLog(LogContract):
    lease = 15.0
    # One order of steps in so many is played. `TestEveryOrder` plays them all.
    share = 5

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "streams.db"
        self.now = 1000.0

    def make_log(self) -> StreamLog:
        return SQLiteLog(self.path, clock=lambda: self.now)

    def another_log(self, log: StreamLog) -> StreamLog:
        return self.make_log()

    async def _play(self, log: StreamLog, stream_id: str, *args: Any, **options: Any) -> None:
        if int(stream_id.rpartition(".")[2]) % self.share == 0:
            await super()._play(log, stream_id, *args, **options)

    async def pass_time(self, log: StreamLog, seconds: float) -> None:
        self.now += seconds

    async def lose_spans(self, log: StreamLog, stream_id: str) -> bool:
        change(self.path, "DELETE FROM span WHERE stream = ?", stream_id)
        return True

    async def damage(self, log: StreamLog, stream_id: str) -> bool:
        change(
            self.path, "UPDATE span SET l = '1' WHERE stream = ?1 AND n = (SELECT max(n) FROM span WHERE stream = ?1)", stream_id
        )
        return True


@pytest.mark.soak
class TestEveryOrder(TestSQLiteLog):
    share = 1


# --- tools


class Clock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run(scenario: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(200):
            await scenario

    asyncio.run(bounded())


def change(path: Path, statement: str, *values: object) -> list[Any]:
    """Run a statement in a connection of its own, as another program does."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        return database.execute(statement, values).fetchall()


def count(path: Path, table: str, where: str = "1") -> int:
    [(number,)] = change(path, f"SELECT count(*) FROM {table} WHERE {where}")
    return int(number)


async def create(
    log: SQLiteLog, stream_id: str = "s", *, last: int = 0, lease: float = 15.0, head: Head = HEAD, **more: Any
) -> Writer:
    """Create a stream, with the events 1 to `last` in spans of one."""
    writer = await log.create(stream_id, head, lease=lease, **more)
    assert isinstance(writer, Writer)
    if last:
        b, batch = 0, []
        for n in range(1, last + 1):
            event = event_bytes(n)
            b += len(event)
            batch.append((writer, Span(n=n, b=b, lengths=(len(event),), data=event), None))
        assert await log.append(batch) == [Appended(n) for n in range(1, last + 1)]
    return writer


async def page_of(log: SQLiteLog, stream_id: str = "s", after: Cursor | None = None) -> Page:
    page = await log.read(stream_id, after)
    assert isinstance(page, Page), page
    return page


async def text_of(log: SQLiteLog, stream_id: str = "s") -> bytes:
    return b"".join(span.data for span in (await page_of(log, stream_id)).spans)


def size_of(path: str | Path) -> int:
    return os.stat(path).st_size


async def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread does."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def statements_of(log: SQLiteLog) -> list[str]:
    """What its writer does from now on, statement by statement."""
    seen: list[str] = []
    assert log._engine is not None
    with log._engine._writer.lock:
        log._engine._writer.connection().set_trace_callback(seen.append)
    return seen


@contextmanager
def unavailable(text: str) -> Iterator[None]:
    with pytest.raises(LogUnavailable, match=text):
        yield


# --- the file


@posix
def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "a" / "b" / "streams.db"
        log = SQLiteLog(path)
        assert not path.parent.exists()
        await create(log, last=1)
        names = sorted(each.name for each in path.parent.iterdir())
        assert names == ["streams.db", "streams.db-shm", "streams.db-wal"]
        assert {stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()} == {0o600}
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        await log.aclose()
        assert [each.name for each in path.parent.iterdir()] == ["streams.db"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    before = os.umask(0)
    try:
        run(scenario())
    finally:
        os.umask(before)


def test_what_cannot_be_a_file_is_refused_at_once(tmp_path: Path) -> None:
    for path in (tmp_path, "", ":memory:", "file:x?mode=memory", "a\0b", b"bytes"):
        with pytest.raises(ValueError, match="path must be the name of a file"):
            SQLiteLog(path)  # type: ignore[arg-type]
    for options in ({"busy_timeout": -1.0}, {"busy_timeout": 1e9}, {"poll": 0.0}, {"poll": float("nan")}):
        with pytest.raises(ValueError, match="must be"):
            SQLiteLog(tmp_path / "s.db", **options)


def test_a_directory_that_takes_the_place_of_the_file_is_an_error_that_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "streams.db"
        log = SQLiteLog(path)
        path.mkdir()
        for call in (log.read("s"), log.create("s", HEAD, lease=1.0), log.bells().add("s")):
            with unavailable("found a directory"):
                await call
        path.rmdir()
        await create(log, last=2)
        assert await text_of(log) == span_of(1, 2).data
        await log.aclose()

    run(scenario())


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        text = tmp_path / "notes.txt"
        text.write_text("my notes\n" * 200)
        theirs = tmp_path / "theirs.db"
        change(theirs, "CREATE TABLE customers (name)")
        similar = tmp_path / "similar.db"
        change(similar, "CREATE TABLE stream (id, title)")
        for path in (text, theirs, similar):
            before = path.read_bytes()
            log = SQLiteLog(path)
            for call in (log.read("s"), log.create("s", HEAD, lease=1.0), log.orphans()):
                with unavailable("is not ours and was left unchanged"):
                    await call
            await log.aclose()
            assert path.read_bytes() == before

    run(scenario())


def test_a_store_may_live_in_the_same_file(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "both.db"
        change(path, "CREATE TABLE place (key TEXT PRIMARY KEY, fence)")
        change(path, "CREATE TABLE kept (key, first, z)")
        change(path, "INSERT INTO place VALUES ('k', 7)")
        log = SQLiteLog(path)
        await create(log, last=2)
        assert await text_of(log) == span_of(1, 2).data
        await log.aclose()
        assert change(path, "SELECT * FROM place") == [("k", 7)]

    run(scenario())


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "streams.db"
        log = SQLiteLog(path)
        await create(log, last=2)
        await log.aclose()
        for value, text in ((2, "written by a later version .*format 2.*upgrade"), ("x", "damaged"), (0, "damaged")):
            change(path, "UPDATE stream_log SET version = ?", value)
            for call in (log.read("s"), log.create("t", HEAD, lease=1.0)):
                with unavailable(text):
                    await call
            await log.aclose()
        change(path, "UPDATE stream_log SET version = 1")
        assert await text_of(log) == span_of(1, 2).data
        await log.aclose()

    run(scenario())


def test_the_mode_of_the_file_is_as_promised(tmp_path: Path) -> None:
    async def scenario() -> None:
        for durable, level in ((False, 1), (True, 2)):
            log = SQLiteLog(tmp_path / f"{durable}.db", durable=durable)
            await create(log)
            assert log._engine is not None
            with log._engine._writer.lock:
                database = log._engine._writer.connection()
                found = [database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
            assert found == ["wal", level]
            await log.aclose()

    run(scenario())


def test_a_file_deleted_in_use_is_a_lost_log_that_its_writer_restores(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(ends: tuple[str, ...]) -> None:
        path = tmp_path / "streams.db"
        log, other = SQLiteLog(path), SQLiteLog(path)
        writer = await create(log, last=3)
        bells = other.bells()
        await bells.add("s")
        assert await text_of(log) == await text_of(other) == span_of(1, 3).data
        beside = os.stat(f"{path}-shm").st_ino
        for end in ends:
            os.unlink(f"{path}{end}")
        assert await log.append([(writer, span_of(4, 4), None)]) == [Lost()]
        assert "was deleted or replaced while it was in use" in caplog.text
        # Connections to the old file may still have it in their memory.
        assert os.stat(f"{path}-shm").st_ino != beside
        again = await log.restore(writer, HEAD, writer.epoch, [span_of(1, 3)])
        assert isinstance(again, Writer)
        assert await log.append([(again, span_of(4, 4), None)]) == [Appended(4)]
        assert await text_of(log) == await text_of(other) == span_of(1, 4).data
        while (await anext(bells)).n != 4:
            pass
        await other.aclose()
        await log.aclose()
        assert change(path, "PRAGMA integrity_check") == [("ok",)]
        assert count(path, "span") == 2
        path.unlink()

    with caplog.at_level(logging.WARNING, "resumable_stream.server"):
        run(scenario(("",)))
        run(scenario(("", "-wal", "-shm")))


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("what", ["nothing", "machine started again", "from a backup", "moved to another machine"])
def test_whoever_goes_on_with_a_file_that_may_lack_events_gives_no_number_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, durable: bool
) -> None:
    """
    A machine that lost its power may have lost the last transactions, and a copy lacks all that came after it.

    The events that are appended then have numbers that some reader may have seen with other events, so they get another epoch.
    A file that is durable loses nothing with the power, and keeps its epoch; a copy is a copy in any case.
    """
    path = tmp_path / "streams.db"
    boots = ["first", "second"]
    monkeypatch.setattr(files, "_boot", lambda: boots[0])

    async def scenario() -> None:
        log = SQLiteLog(path, durable=durable)
        writer = await create(log, last=5)
        ended = await create(log, "ended", last=2)
        assert await log.finish(ended, 2, OK) == Done(2)
        assert await log.renew([replace(writer, lease=0.0)]) == [None]
        await log.aclose()
        if what in ("from a backup", "moved to another machine"):
            copy = tmp_path / "copy"
            shutil.copyfile(path, copy)
            os.replace(copy, path)
        if what in ("machine started again", "moved to another machine"):
            boots.pop(0)
        doubtful = what in ("from a backup", "moved to another machine") or (what == "machine started again" and not durable)
        for _ in range(3):
            # However often the file is opened, and by however many.
            log, other = SQLiteLog(path, durable=durable), SQLiteLog(path, durable=durable)
            await text_of(other)
            # Whoever only ends it changes no number.
            found = await log.claim("s", lease=0.0)
            assert isinstance(found, Writer) and found.epoch == writer.epoch
            await log.aclose()
            await other.aclose()
        log = SQLiteLog(path, durable=durable)
        new = await log.claim("s", lease=0.0, go_on=True)
        assert isinstance(new, Writer) and new.handover is not None
        assert (new.handover.n, new.handover.whole) == (5, True)
        assert new.handover.before == (writer.epoch if doubtful else None)
        assert (new.epoch != writer.epoch) == doubtful
        span = span_of(6, 9)
        assert await log.append([(new, span, None)]) == [Appended(9)]
        assert await text_of(log) == span_of(1, 9).data
        for n in range(11):
            answer = await log.read("s", Cursor(writer.epoch, n))
            if doubtful:
                assert isinstance(answer, Gone) and answer.why == "other_epoch"
            else:
                assert isinstance(answer, Page) == (n < 10)
        # What had ended is as it was, and the next takeover has nothing to doubt.
        assert isinstance(await log.read("ended", Cursor(ended.epoch, 2)), Page)
        last = await log.claim("s", lease=0.0, go_on=True)
        assert isinstance(last, Writer) and last.epoch == new.epoch
        assert count(path, "doubt") == 0
        await log.aclose()

    run(scenario())


@posix
def test_a_file_that_cannot_be_written_is_an_error_that_says_what_is_needed() -> None:
    script = """
        import asyncio, os, sys
        from resumable_stream import LogUnavailable
        from resumable_stream.server import Head, SQLiteLog

        path = sys.argv[1]
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)

        async def main():
            for name in (path, path + ".new"):
                for write in (True, False):
                    log = SQLiteLog(name)
                    try:
                        if write:
                            await log.create("t", Head(content_type="a/b", framing="raw"), lease=1.0)
                        else:
                            await log.read("s")
                    except LogUnavailable as error:
                        print(error)
                    await log.aclose()

        asyncio.run(main())
    """

    async def write(path: Path) -> None:
        log = SQLiteLog(path)
        await create(log, last=3)
        await log.aclose()

    # Not `tmp_path`: root tries it as another user, who may not look into pytest's directories.
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "streams.db")
        run(write(path))
        path.chmod(0o444)
        Path(name).chmod(0o555)
        try:
            done = subprocess.run(
                [sys.executable, "-c", textwrap.dedent(script), str(path)],
                capture_output=True,
                text=True,
                timeout=200,
                check=False,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        finally:
            Path(name).chmod(0o700)
        run(check_that_nothing_is_lost(path))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4, lines
    for line in lines[:2]:
        assert "this process needs to write to the file and to its directory" in line
    for line in lines[2:]:
        assert "cannot use" in line
        assert "ermission denied" in line


async def check_that_nothing_is_lost(path: Path) -> None:
    log = SQLiteLog(path)
    assert await text_of(log) == span_of(1, 3).data
    await log.aclose()


# --- transactions


def test_one_batch_is_one_transaction(tmp_path: Path) -> None:
    async def scenario() -> None:
        log = SQLiteLog(tmp_path / "streams.db")
        writers = [await create(log, f"s{number}") for number in range(20)]
        seen = statements_of(log)
        batch = [Append(writer, span_of(n, n), f"note {n}") for n in (1, 2, 3) for writer in writers]
        assert await log.append(batch) == [Appended(n) for n in (1, 2, 3) for _ in writers]
        assert (seen.count("BEGIN IMMEDIATE"), seen.count("COMMIT")) == (1, 1)
        # The record of each stream is read once and written once.
        assert len([each for each in seen if each.startswith("UPDATE stream")]) == 20
        assert len([each for each in seen if "FROM stream WHERE id" in each]) == 20
        assert len([each for each in seen if each.startswith("INSERT INTO span")]) == 60
        seen.clear()
        await log.renew(writers)
        assert (seen.count("BEGIN IMMEDIATE"), seen.count("COMMIT")) == (1, 1)
        await log.aclose()

    run(scenario())


def test_calls_that_wait_share_a_transaction(tmp_path: Path) -> None:
    async def scenario() -> None:
        log = SQLiteLog(tmp_path / "streams.db")
        writers = [await create(log, f"s{number}") for number in range(50)]
        seen = statements_of(log)
        assert log._engine is not None
        with log._engine._writer.lock:  # the writer is busy
            calls = [asyncio.create_task(log.append([(writer, span_of(1, 1), None)])) for writer in writers]
            calls += [asyncio.create_task(log.append([(writer, span_of(2, 2), None)])) for writer in writers]
            await asyncio.sleep(0.01)
        answers = await asyncio.gather(*calls)
        assert answers == [[Appended(1)]] * 50 + [[Appended(2)]] * 50
        # One that was taken before the lock, and all others.
        assert seen.count("COMMIT") <= 2
        await log.aclose()

    run(scenario())


def test_a_call_that_fails_does_not_take_others_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = rows.Step.add_span

    def fails(step: rows.Step, stream_id: str, row: rows.Row, span: Span) -> None:
        real(step, stream_id, row, span)
        if stream_id == "s3":
            raise sqlite3.OperationalError("the disk fell off")

    async def scenario() -> None:
        log = SQLiteLog(tmp_path / "streams.db")
        writers = [await create(log, f"s{number}") for number in range(6)]
        monkeypatch.setattr(rows.Step, "add_span", fails)
        assert log._engine is not None
        with log._engine._writer.lock:
            calls = [asyncio.create_task(log.append([(writer, span_of(1, 2), None)])) for writer in writers]
            await asyncio.sleep(0.01)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(answers[3], LogUnavailable)
        assert "the disk fell off" in str(answers[3])
        assert answers[:3] + answers[4:] == [[Appended(2)]] * 5
        assert (await page_of(log, "s3")).n == 0
        monkeypatch.setattr(rows.Step, "add_span", real)
        assert await log.append([(writers[3], span_of(1, 2), None)]) == [Appended(2)]
        for number in range(6):
            assert await text_of(log, f"s{number}") == span_of(1, 2).data
        await log.aclose()

    run(scenario())


def test_calls_do_not_wait_for_a_lock_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "streams.db"
    held: list[sqlite3.Connection] = []

    def fails(step: rows.Step) -> None:
        raise sqlite3.OperationalError("the disk fell off")

    def roll_back(engine: threads.Engine, database: sqlite3.Connection, exc: Exception) -> None:
        database.execute("ROLLBACK")
        held.append(sqlite3.connect(path, isolation_level=None, check_same_thread=False))
        held[-1].execute("BEGIN IMMEDIATE")

    async def scenario() -> None:
        log = SQLiteLog(path, busy_timeout=0.01)
        await create(log)
        seen = statements_of(log)
        assert log._engine is not None
        with monkeypatch.context() as broken:
            broken.setattr(rows.Step, "flush", fails)
            broken.setattr(threads.Engine, "_roll_back", roll_back)
            with log._engine._writer.lock:
                calls = [asyncio.create_task(log.say("s", Message(id=f"m{number}"))) for number in range(50)]
                await asyncio.sleep(0.01)
            answers = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(answer) for answer in answers} == {LogUnavailable}
        assert len({id(answer) for answer in answers}) == 50
        # The one of all, the first of its calls, and maybe one before.
        assert seen.count("BEGIN IMMEDIATE") <= 4
        for database in held:
            database.close()
        assert await log.say("s", Message(id="m7")) == Said(1)
        await log.aclose()

    run(scenario())


def test_a_call_that_nobody_waits_for_any_more_harms_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        log = SQLiteLog(tmp_path / "streams.db")
        writer = await create(log)
        assert log._engine is not None
        for n in range(1, 20):
            with log._engine._writer.lock:
                call = asyncio.create_task(log.append([(writer, span_of(n, n), None)]))
                await asyncio.sleep(0)
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
            # Stored or not, and sent again it is stored once.
            assert await log.append([(writer, span_of(n, n), None)]) == [Appended(n)]
        assert await text_of(log) == span_of(1, 19).data
        await log.aclose()

    run(scenario())


def test_more_calls_than_may_wait_take_turns(tmp_path: Path) -> None:
    async def scenario() -> None:
        log = SQLiteLog(tmp_path / "streams.db")
        await create(log)
        said = await asyncio.gather(*(log.say("s", Message(id=f"m{number}")) for number in range(3000)))
        assert said == [Said(number) for number in range(1, 3001)]
        await log.aclose()

    run(scenario())


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        log = SQLiteLog(tmp_path / "streams.db")
        writer = await create(log, last=3)
        other = await create(log, "other")
        assert log._engine is not None
        with log._engine._writer.lock:
            database = log._engine._writer.connection()
            [pages] = database.execute("PRAGMA page_count").fetchone()
            database.execute(f"PRAGMA max_page_count = {pages + 8}")
        large = 20_000
        span = Span(n=4, b=span_of(1, 3).b + large, lengths=(large,), data=b"x" * large)
        more = replace(span, n=5, b=span.b + large)
        assert await log.append([(writer, span, "note")]) == [Appended(4)]
        for _ in range(2):
            with unavailable("nothing was stored: free some space"):
                await log.append([(writer, more, "more"), (other, span_of(1, 1), None)])
            page = await page_of(log)
            assert (page.n, page.spans[-1]) == (4, span)
            assert (await page_of(log, "other")).n == 0
        # What fits is still taken, and so is the rest when there is room.
        assert await log.renew([writer, other]) == [None, None]
        with log._engine._writer.lock:
            log._engine._writer.connection().execute(f"PRAGMA max_page_count = {pages + 1000}")
        assert await log.append([(writer, more, None), (other, span_of(1, 1), None)]) == [Appended(5), Appended(1)]
        assert (await page_of(log)).spans[-1] == more
        await log.aclose()
        assert change(tmp_path / "streams.db", "PRAGMA integrity_check") == [("ok",)]

    run(scenario())


# --- damage


def test_a_damaged_stream_harms_no_other_of_its_batch(tmp_path: Path) -> None:
    damages = [
        "UPDATE stream SET head = 'x' WHERE id = 's'",
        "UPDATE stream SET head = '{\"v\": 1}' WHERE id = 's'",
        "UPDATE stream SET n = 'seven' WHERE id = 's'",
        "UPDATE stream SET n = -1 WHERE id = 's'",
        "UPDATE stream SET n = 1 << 60 WHERE id = 's'",
        "UPDATE stream SET fence = 0 WHERE id = 's'",
        "UPDATE stream SET epoch = 'ABC' WHERE id = 's'",
        "UPDATE stream SET b = 1.5 WHERE id = 's'",
        "UPDATE stream SET epoch = x'00' WHERE id = 's'",
        "UPDATE stream SET note = x'00' WHERE id = 's'",
        "UPDATE stream SET out = '[]' WHERE id = 's'",
        # A span where the record says there is none.
        "INSERT INTO span VALUES ('s', 4, 200, '1', x'00', NULL)",
    ]

    async def scenario(number: int, damage: str) -> None:
        path = tmp_path / f"{number}.db"
        log = SQLiteLog(path)
        writer, other = await create(log, last=3), await create(log, "t", last=3)
        change(path, damage)
        mine, others = await log.append([(writer, span_of(4, 4), None), (other, span_of(4, 4), None)])
        assert isinstance(mine, Unavailable) and mine.stream_id == "s" and "'s': the log is damaged" in mine.why
        assert others == Appended(4)
        assert await text_of(log, "t") == span_of(1, 4).data
        if "INSERT" not in damage:
            lease, mine = await log.renew([other, writer])
            assert lease is None and isinstance(mine, Unavailable) and mine.stream_id == "s"
            for call in (log.read("s"), log.renew([writer]), log.finish(writer, 3, OK), log.claim("s", lease=1.0)):
                with pytest.raises(LogUnavailable, match="'s': the log is damaged") as caught:
                    await call
                assert caught.value.stream_id == "s"
        # Getting rid of it works.
        await log.delete("s")
        assert await log.read("s") == Unknown()
        assert await log.append([(writer, span_of(4, 4), None)]) == [Lost()]
        await create(log, last=2)
        assert await text_of(log) == span_of(1, 2).data
        await log.aclose()

    for number, damage in enumerate(damages):
        run(scenario(number, damage))


def test_damaged_spans_messages_and_requests_are_errors_that_name_the_stream(tmp_path: Path) -> None:
    path = tmp_path / "streams.db"

    async def scenario() -> None:
        log = SQLiteLog(path)
        writer = await create(log, last=4, request=b"request")
        await log.say("s", Message(id="m1"))
        await log.finish(await create(log, "z", last=50), 50, OK)
        await log.compact("z")
        for damage, stream_id in (
            ("UPDATE span SET d = NULL WHERE stream = 's' AND n = 2", "s"),
            ("UPDATE span SET d = 'text' WHERE stream = 's' AND n = 2", "s"),
            ("UPDATE span SET d = x'00' WHERE stream = 's' AND n = 2", "s"),
            ("UPDATE span SET l = x'00' WHERE stream = 's' AND n = 2", "s"),
            ("UPDATE span SET z = d WHERE stream = 's' AND n = 2", "s"),
            ("UPDATE span SET b = b + 1000 WHERE stream = 's' AND n = 4", "s"),
            ("UPDATE span SET z = substr(z, 1, 20) WHERE stream = 'z'", "z"),
            ("UPDATE span SET l = substr(l, 1, 10) WHERE stream = 'z'", "z"),
            ("UPDATE span SET l = 'text' WHERE stream = 'z'", "z"),
            ("UPDATE span SET l = x'00' WHERE stream = 'z'", "z"),
        ):
            change(path, "CREATE TABLE saved AS SELECT * FROM span")
            change(path, damage)
            if "b + 1000" not in damage:
                with pytest.raises(LogUnavailable, match=f"'{stream_id}': the log is damaged") as caught:
                    await log.read(stream_id)
                assert caught.value.stream_id == stream_id
            change(path, "DELETE FROM span")
            change(path, "INSERT INTO span SELECT * FROM saved")
            change(path, "DROP TABLE saved")
            change(path, "UPDATE stream SET held = (SELECT count(*) FROM span WHERE stream = id)")
        change(path, "UPDATE inbox SET d = x'00'")
        with unavailable("'s': the log is damaged: its message 1"):
            await log.inbox("s", 0)
        await log.renew([replace(writer, lease=0.0)])
        change(path, "UPDATE request SET d = 'text'")
        with unavailable("'s': the log is damaged: its request"):
            await log.claim("s", lease=1.0)
        # The claim that failed changed nothing.
        change(path, "UPDATE request SET d = x'01'")
        claimed = await log.claim("s", lease=1.0)
        assert isinstance(claimed, Writer)
        assert (claimed.fence, claimed.handover and claimed.handover.request) == (2, b"\1")
        await log.aclose()

    run(scenario())


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "streams.db"

    async def scenario() -> None:
        log = SQLiteLog(path)
        writer = await create(log, last=200)
        await log.aclose()
        content = bytearray(path.read_bytes())
        content[4096:] = random.Random(1).randbytes(len(content) - 4096)
        path.write_bytes(content)
        for call in (log.read("s"), log.append([(writer, span_of(201, 201), None)]), log.create("t", HEAD, lease=1.0)):
            with unavailable("is damaged: .*malformed.*take it from a backup, or delete it"):
                await call
        await log.aclose()

    run(scenario())


def test_some_spans_missing_in_the_middle_are_noticed(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "streams.db"
        log = SQLiteLog(path)
        writer = await create(log, last=9)
        change(path, "DELETE FROM span WHERE stream = 's' AND n = 5")
        assert await log.append([(writer, span_of(10, 10), None)]) == [Lost()]
        assert await log.finish(writer, 9, OK) == Lost()
        with unavailable("event 5 is missing"):
            await log.read("s")
        again = await log.restore(writer, HEAD, writer.epoch, [span_of(1, 9)])
        assert isinstance(again, Writer)
        assert await log.append([(again, span_of(10, 10), None)]) == [Appended(10)]
        assert await text_of(log) == span_of(1, 10).data
        # A row of a stream that is gone is no span of the next one.
        change(path, "DELETE FROM stream")
        await create(log, last=12)
        assert await text_of(log) == span_of(1, 12).data
        assert count(path, "span") == 12
        await log.aclose()

    run(scenario())


# --- what it costs


def test_a_finished_answer_is_one_small_row(tmp_path: Path) -> None:
    path = tmp_path / "streams.db"
    chance = random.Random(4)
    words = [word for word in Path(rows.__file__).read_text().split() if word.isalpha()]

    def chunk(number: int) -> bytes:
        choice = {"index": 0, "delta": {"content": f" {chance.choice(words)}"}, "logprobs": None, "finish_reason": None}
        body = {
            "id": "chatcmpl-CkqY3tZ0bJ9",
            "object": "chat.completion.chunk",
            "created": 1764422400,
            "model": "gpt-5.2-2025-12-11",
            "service_tier": "default",
            "system_fingerprint": "fp_9c0e0b7e5d",
            "choices": [choice],
            "obfuscation": chance.randbytes(3).hex(),
        }
        return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"

    async def scenario() -> None:
        log = SQLiteLog(path)
        events = [chunk(number) for number in range(2000)]
        sizes = {}
        for stream_id in ("first", "second"):
            writer = await create(log, stream_id)
            b = 0
            for start in range(0, 2000, 4):
                data = b"".join(events[start : start + 4])
                b += len(data)
                lengths = tuple(map(len, events[start : start + 4]))
                await log.append([(writer, Span(n=start + 4, b=b, lengths=lengths, data=data), None)])
            assert await log.finish(writer, 2000, OK) == Done(2000)
            await log.compact(stream_id)
            assert await text_of(log, stream_id) == b"".join(events)
            await log.aclose()
            # What is in use: which pages are free, and given back later, says nothing about the answer.
            [(pages,)], [(free,)] = change(path, "PRAGMA page_count"), change(path, "PRAGMA freelist_count")
            sizes[stream_id] = 4096 * (pages - free)
        [(content,)] = change(path, "SELECT sum(length(z) + length(l)) FROM span WHERE stream = 'second' AND d IS NULL")
        assert content <= 24 << 10
        assert count(path, "span") == 2
        assert sizes["second"] - sizes["first"] <= 30 << 10
        assert sizes["first"] <= 84 << 10  # the empty tables are 13 pages
        assert size_of(path) <= 1.25 * sizes["second"]  # a fifth may be free
        await log.aclose()

    run(scenario())


def test_the_file_gives_back_what_is_free_a_little_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "streams.db"

    async def scenario() -> None:
        log = SQLiteLog(path)
        for number in range(8):
            writer = await create(log, f"s{number}")
            span = Span(n=1, b=1 << 20, lengths=(1 << 20,), data=bytes(1 << 20))
            assert await log.append([(writer, span, None)]) == [Appended(1)]

        def pages() -> tuple[int, int]:
            [(total,)], [(free,)] = change(path, "PRAGMA page_count"), change(path, "PRAGMA freelist_count")
            return total, free

        before, _ = pages()
        for number in range(7):
            await log.delete(f"s{number}")
            after, free = pages()
            assert 0 <= before - after <= 256 + 1
            before = after
        while True:
            await log.renew([writer])
            after, free = pages()
            assert 0 <= before - after <= 256 + 1
            if before == after:
                break
            before = after
        assert free <= after / 5
        assert after <= 400
        assert await text_of(log, "s7") == bytes(1 << 20)
        await log.aclose()
        assert size_of(path) == after * 4096
        assert change(path, "PRAGMA integrity_check") == [("ok",)]

    run(scenario())


@pytest.mark.parametrize("limit", [1000, 256 << 10])
def test_rows_of_earlier_versions_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """A row had at most 256 KiB before compression; now it has 1 MiB."""
    path = tmp_path / "streams.db"
    monkeypatch.setattr(rows, "join_spans", partial(join_spans, limit_bytes=limit))

    async def scenario() -> None:
        log = SQLiteLog(path)
        writer = await create(log)
        events, b = [b"data: %s\n\n" % (b"%d " % n * 90) for n in range(2000)], 0
        for start in range(0, 2000, 100):
            data = b"".join(events[start : start + 100])
            b += len(data)
            span = Span(n=start + 100, b=b, lengths=tuple(map(len, events[start : start + 100])), data=data)
            await log.append([(writer, span, None)])
        await log.finish(writer, 2000, OK)
        await log.compact("s")
        assert count(path, "span") >= b // limit
        assert await text_of(log) == b"".join(events)
        await log.aclose()

    run(scenario())


def test_compaction_leaves_what_it_cannot_improve(tmp_path: Path) -> None:
    path = tmp_path / "streams.db"

    async def scenario() -> None:
        log = SQLiteLog(path)
        size = COMPACTED_BYTES
        noise = random.Random(8).randbytes(size)
        writer = await create(log)
        assert await log.append([(writer, Span(n=1, b=size, lengths=(size,), data=noise), None)]) == [Appended(1)]
        assert await log.append([(writer, Span(n=2, b=size + 5, lengths=(5,), data=b"small"), None)]) == [Appended(2)]
        await log.finish(writer, 2, OK)
        for _ in range(2):
            await log.compact("s")
            assert change(path, "SELECT n, d IS NULL, z IS NULL FROM span ORDER BY n") == [(1, 0, 1), (2, 0, 1)]
        assert await text_of(log) == noise + b"small"
        await log.aclose()

    run(scenario())


def test_compaction_does_not_touch_what_came_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "streams.db"
    packing, go_on = threading.Event(), threading.Event()

    def slow(database: sqlite3.Connection, stream_id: str) -> Any:
        found = rows.packed(database, stream_id)
        packing.set()
        assert go_on.wait(60)
        return found

    async def scenario() -> None:
        log, other = SQLiteLog(path), SQLiteLog(path)
        for replaced in (True, False):
            packing.clear()
            go_on.clear()
            await log.finish(await create(log, last=5), 5, OK)
            with monkeypatch.context() as slowed:
                slowed.setattr("resumable_stream.server.sqlite.packed", slow)
                compacting = asyncio.create_task(log.compact("s"))
                assert await asyncio.to_thread(packing.wait, 60)
            if replaced:
                await other.delete("s")
                again = await create(other)
                b = 0
                for n in range(1, 6):
                    b += 100
                    await other.append([(again, Span(n=n, b=b, lengths=(100,), data=b"%100d" % n), None)])
                await other.finish(again, 5, OK)
            else:
                await other.compact("s")
            go_on.set()
            await compacting
            expected = b"".join(b"%100d" % n for n in range(1, 6)) if replaced else span_of(1, 5).data
            assert await text_of(log) == expected
            await log.delete("s")
        await other.aclose()
        await log.aclose()

    run(scenario())


def test_what_is_deleted_is_not_left_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "streams.db"

    async def scenario() -> None:
        log = SQLiteLog(path)
        secrets = [b"secret-in-a-span", b"secret-in-a-request", b"secret-in-a-message", b"secret-in-a-note"]
        writer = await create(log, request=secrets[1] * 1000)
        text = secrets[0] * 1000
        assert await log.append(
            [Append(writer, Span(n=1, b=len(text), lengths=(len(text),), data=text), secrets[3].decode() * 100)]
        )
        await log.say("s", Message(id="m", data=secrets[2].decode() * 1000))
        await log.aclose()
        assert all(secret in path.read_bytes() for secret in secrets)
        await log.delete("s")
        await log.aclose()
        assert [secret for secret in secrets if secret in path.read_bytes()] == []

    run(scenario())


def test_an_append_does_not_write_the_request_again(tmp_path: Path) -> None:
    path = tmp_path / "streams.db"

    async def scenario() -> None:
        log = SQLiteLog(path)
        writer = await create(log, request=b"r" * (3 << 20))
        change(path, "PRAGMA wal_checkpoint(TRUNCATE)")
        before = size_of(f"{path}-wal")
        for n in range(1, 21):
            await log.append([Append(writer, span_of(n, n), "note")])
        # Two or three pages each.
        assert size_of(f"{path}-wal") - before <= 20 * 4 * 4200
        await log.aclose()

    run(scenario())


# --- time


def test_what_has_expired_is_forgotten_by_others_a_little_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "streams.db"

    async def scenario() -> None:
        clock = Clock()
        log = SQLiteLog(path, clock=clock)
        short = replace(HEAD, retention=60.0)
        for number in range(30):
            writer = await create(log, f"ended{number}", head=short, last=5, request=b"r")
            await log.say(writer.stream_id, Message(id="m"))
            await log.finish(writer, 5, OK)
            await create(log, f"left{number}", head=short, last=5)
        long = await create(log, "long", head=short, last=2500)
        kept = await create(log, "kept", lease=600.0, head=short, last=3)
        clock.now += 70.0
        await log.renew([kept, replace(long, lease=1.0)])
        assert count(path, "stream") == 32 + 30 - 10  # those that ended; the others had a lease
        clock.now += 61.0
        assert await log.read("left3") == Unknown()
        seen = []
        for _ in range(40):
            await log.renew([kept])
            seen.append((count(path, "stream"), count(path, "span")))
        for (streams, spans), (fewer_streams, fewer_spans) in pairwise(seen):
            assert 0 <= streams - fewer_streams <= 10
            assert 0 <= spans - fewer_spans <= 1050
        assert seen[-1] == (1, 3)
        assert (count(path, "inbox"), count(path, "request")) == (0, 0)
        assert await text_of(log, "kept") == span_of(1, 3).data
        await log.aclose()

    run(scenario())


def test_an_expired_stream_that_is_half_forgotten_can_be_created_again(tmp_path: Path) -> None:
    path = tmp_path / "streams.db"

    async def scenario() -> None:
        clock = Clock()
        log = SQLiteLog(path, clock=clock)
        old = await create(log, head=replace(HEAD, retention=1.0), last=2500)
        clock.now += 100.0
        await create(log, "other")
        assert 0 < count(path, "span") < 2500
        assert await log.read("s") == Unknown()
        assert await log.append([(old, span_of(2501, 2501), None)]) == [Lost()]
        await create(log, last=2)
        assert await text_of(log) == span_of(1, 2).data
        assert count(path, "span") == 2
        await log.aclose()

    run(scenario())


def test_orphans_are_found_whatever_happened_to_their_leases(tmp_path: Path) -> None:
    """`lapse` is moved now and then only; what counts is `until`."""
    path = tmp_path / "streams.db"

    async def scenario() -> None:
        clock, chance = Clock(), random.Random(12)
        log = SQLiteLog(path, clock=clock)
        writers: dict[str, Writer] = {}
        until: dict[str, float] = {}
        for turn in range(400):
            clock.now += chance.choice((0.0, 0.5, 3.0))
            stream_id = f"s{chance.randrange(12)}"
            lease = chance.choice((0.0, 1.0, 10.0))
            match chance.choice(("create", "renew", "append", "claim", "finish", "delete")):
                case "create" if stream_id not in until:
                    writers[stream_id] = await create(log, stream_id, lease=lease)
                    until[stream_id] = clock.now + lease
                case "renew" if stream_id in until:
                    await log.renew([replace(writers[stream_id], lease=lease)])
                    until[stream_id] = clock.now + lease if lease else 0.0
                case "append" if stream_id in until:
                    n = (await page_of(log, stream_id)).n + 1
                    writer = writers[stream_id] = replace(writers[stream_id], lease=max(lease, 1.0))
                    assert await log.append([(writer, span_of(n, n), None)]) == [Appended(n)]
                    until[stream_id] = clock.now + writer.lease
                case "claim" if stream_id in until:
                    claimed = await log.claim(stream_id, lease=lease)
                    assert isinstance(claimed, Writer) == (until[stream_id] <= clock.now)
                    if isinstance(claimed, Writer):
                        writers[stream_id], until[stream_id] = claimed, clock.now + lease
                case "finish" if stream_id in until and chance.random() < 0.3:
                    n = (await page_of(log, stream_id)).n
                    assert await log.finish(writers[stream_id], n, OK) == Done(n)
                    await log.delete(stream_id)
                    del until[stream_id]
                case "delete" if chance.random() < 0.3:
                    await log.delete(stream_id)
                    until.pop(stream_id, None)
            expected = sorted((end, name) for name, end in until.items() if end <= clock.now)
            found = await log.orphans()
            assert sorted(found) == sorted(name for _, name in expected), turn
            assert [until[name] for name in found] == [end for end, _ in expected]
            assert await log.orphans(limit=1) == found[:1]
        assert count(path, "stream", "lapse > until OR due > expires + 10000") == 0
        assert await log.orphans(limit=0) == await log.orphans(limit=-1) == []
        await log.aclose()

    run(scenario())


def test_leases_and_retentions_of_any_length_are_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        log = SQLiteLog(tmp_path / "streams.db")
        for number, seconds in enumerate((0.0, 0.0004, 1e9, 1e18, 1e300)):
            writer = await create(log, f"s{number}", lease=seconds, head=replace(HEAD, retention=max(seconds, 100.0)))
            assert await log.append([(writer, span_of(1, 1), None)]) == [Appended(1)]
            assert (await page_of(log, f"s{number}")).n == 1
            assert await log.finish(writer, 1, OK) == Done(1)
            assert (await page_of(log, f"s{number}")).ending == OK
        await log.aclose()

    run(scenario())


# --- bells


def test_own_bells_carry_what_was_written_and_come_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        log = SQLiteLog(tmp_path / "streams.db", poll=3600.0)
        writer = await create(log)
        bells = log.bells()
        await bells.add("s")
        assert log._engine is not None
        log._engine._next_look = LATER
        await log.append([(writer, span_of(1, 1), None), (writer, span_of(2, 3), None), Append(writer, None, "note", n=3)])
        await log.say("s", Message(id="m"))
        await log.finish(writer, 3, OK)
        heard = [await anext(bells) for _ in range(4)]
        assert heard == [
            Bell(id="s", item=span_of(1, 1), epoch=writer.epoch, n=1),
            Bell(id="s", item=span_of(2, 3), epoch=writer.epoch, n=3),
            Bell(id="s", item=heard[2].item, epoch=writer.epoch, n=3),
            Bell(id="s", item=OK, epoch=writer.epoch, n=3),
        ]
        assert [type(each.item).__name__ for each in heard] == ["Span", "Span", "Control", "Ending"]
        await log.aclose()

    run(scenario())


def test_what_others_wrote_is_heard_also_where_own_writing_would_hide_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "streams.db"
        log, other = SQLiteLog(path), SQLiteLog(path)
        writer = await create(log)
        bells = log.bells()
        await bells.add("s")
        assert log._engine is not None
        for number in range(1, 20):
            log._engine._next_look = LATER  # it does not look in between
            await other.say("s", Message(id=f"m{number}"))
            log._engine._next_look = LATER
            assert isinstance((await log.append([(writer, span_of(number, number), None)]))[0], Appended)
            first, second = await anext(bells), await anext(bells)
            assert (first.item, first.n) == (None, number - 1)
            assert second.item == span_of(number, number)
        await other.aclose()
        await log.aclose()

    run(scenario())


def test_bells_for_what_others_wrote_carry_small_spans(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "streams.db"
        log, other = SQLiteLog(path), SQLiteLog(path)
        writer = await create(other, last=2)
        bells = log.bells()
        await bells.add("s")
        await other.append([(writer, span_of(3, 5), None), (writer, span_of(6, 6), None)])
        assert [(await anext(bells)).item for _ in range(2)] == [span_of(3, 5), span_of(6, 6)]
        # Many, or large ones, ring once without their bytes.
        await other.append([(writer, span_of(n, n), None) for n in range(7, 20)])
        assert await anext(bells) == Bell(id="s", epoch=writer.epoch, n=19)
        b = span_of(19, 19).b + 100_000
        await other.append([(writer, Span(n=20, b=b, lengths=(100_000,), data=b"x" * 100_000), None)])
        assert await anext(bells) == Bell(id="s", epoch=writer.epoch, n=20)
        await other.finish(writer, 20, OK)
        assert await anext(bells) == Bell(id="s", epoch=writer.epoch, n=20)
        await other.delete("s")
        assert await anext(bells) == Bell(id="s")
        await other.aclose()
        await log.aclose()

    run(scenario())


def test_who_could_not_hear_for_a_time_is_rung_for_every_stream(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_DEAF", 0.05)

    async def scenario() -> None:
        path = tmp_path / "streams.db"
        log = SQLiteLog(path)
        for stream_id in ("a", "b"):
            await create(log, stream_id, last=1)
        bells = log.bells()
        for stream_id in ("a", "b", "unknown"):
            await bells.add(stream_id)
        await log.aclose()  # what follows is a bare file, so that it can be moved
        log = SQLiteLog(path)
        bells = log.bells()
        for stream_id in ("a", "b", "unknown"):
            await bells.add(stream_id)
        assert log._engine is not None
        aside = tmp_path / "aside.db"
        with log._engine._writer.lock:
            log._engine._writer.close()
            os.rename(path, aside)
            path.mkdir()
        await until(lambda: "cannot hear other processes" in caplog.text)
        path.rmdir()
        os.rename(aside, path)
        assert {(await anext(bells)).id for _ in range(3)} == {"a", "b", "unknown"}
        assert caplog.text.count("cannot hear other processes") == 1
        await log.aclose()

    with caplog.at_level(logging.WARNING, "resumable_stream.server"):
        run(scenario())


def test_bells_that_are_closed_while_they_begin_to_listen_are_forgotten(tmp_path: Path) -> None:
    async def scenario() -> None:
        log = SQLiteLog(tmp_path / "streams.db")
        await create(log)
        assert log._engine is not None
        engine = log._engine
        for _ in range(5):
            bells = log.bells()
            with engine._writer.lock:
                adding = asyncio.create_task(bells.add("s"))
                await asyncio.sleep(0)
                await bells.aclose()
            await adding
            assert engine._listeners == {}
        await until(lambda: not engine._watched)
        await log.aclose()

    run(scenario())


def test_nobody_looks_when_nobody_listens(tmp_path: Path) -> None:
    async def scenario() -> None:
        log = SQLiteLog(tmp_path / "streams.db", poll=0.001)
        await create(log)
        bells = log.bells()
        await bells.add("s")
        assert log._engine is not None
        seen = statements_of(log)
        await until(lambda: any("data_version" in each for each in seen))
        await bells.discard("s")
        await create(log, "t")
        engine = log._engine
        await until(lambda: not engine._watched)
        seen.clear()
        await asyncio.sleep(0.03)
        assert seen == []
        await bells.aclose()
        with unavailable("closed"):
            await bells.add("s")
        await log.aclose()

    run(scenario())


# --- its life


def test_a_closed_log_may_be_used_again_and_ends_its_threads(tmp_path: Path) -> None:
    def running() -> set[str]:
        return {thread.name for thread in threading.enumerate() if "streams.db" in thread.name}

    async def scenario() -> None:
        log = SQLiteLog(tmp_path / "streams.db")
        await log.aclose()
        for number in range(3):
            await create(log, f"s{number}", last=2)
            assert len(await asyncio.gather(*(log.read(f"s{number}") for _ in range(20)))) == 20
            assert 2 <= len(running()) <= 5
            calls = [asyncio.create_task(log.say(f"s{number}", Message(id=str(each)))) for each in range(50)]
            await asyncio.sleep(0)
            await log.aclose()
            # What was under way is done.
            assert await asyncio.gather(*calls) == [Said(each) for each in range(1, 51)]
            await log.aclose()
            assert running() == set()
            assert os.listdir(tmp_path) == ["streams.db"]
        assert await text_of(log, "s1") == span_of(1, 2).data
        await log.aclose()

    run(scenario())


def test_a_log_that_is_forgotten_closes_its_file(tmp_path: Path) -> None:
    async def scenario() -> None:
        log = SQLiteLog(tmp_path / "streams.db")
        await create(log, last=2)
        await log.read("s")
        del log
        gc.collect()
        assert os.listdir(tmp_path) == ["streams.db"]

    run(scenario())


def test_one_log_serves_one_loop_after_the_other(tmp_path: Path) -> None:
    log = SQLiteLog(tmp_path / "streams.db")
    kept: list[Any] = []

    async def first() -> None:
        kept.append(await create(log, last=2))
        kept.append(log.bells())
        await kept[1].add("s")

    async def second() -> None:
        # The bells of the first loop are nobody's any more.
        assert await log.append([(kept[0], span_of(3, 3), None)]) == [Appended(3)]
        bells = log.bells()
        await bells.add("s")
        assert await log.append([(kept[0], span_of(4, 4), None)]) == [Appended(4)]
        assert (await anext(bells)).item == span_of(4, 4)
        assert await text_of(log) == span_of(1, 4).data

    async def third() -> None:
        await log.aclose()

    for scenario in (first, second, third):
        run(scenario())


def test_wrong_values_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "streams.db"
        log = SQLiteLog(path)
        for lease in (-1.0, float("inf"), "1"):
            for call in (log.create("s", HEAD, lease=lease), log.claim("s", lease=lease)):  # type: ignore[arg-type]
                with pytest.raises(ValueError, match="lease"):
                    await call
        assert not path.exists()
        writer = await create(log, last=1)
        with pytest.raises(SpanRefused):
            await log.append([(writer, replace(span_of(2, 2), b=500), None)])
        assert isinstance(await log.create("s", HEAD, lease=1.0), Existing)
        assert isinstance(await log.read("s", Cursor("zzzzz", 0)), Gone)
        assert await text_of(log) == event_bytes(1)
        await log.aclose()

    run(scenario())


def test_a_writer_that_fails_leaves_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        log = SQLiteLog(tmp_path / "streams.db")
        writer = await create(log)
        failed: list[Any] = []
        monkeypatch.setattr(threading, "excepthook", failed.append)
        with monkeypatch.context() as broken:
            broken.setattr(threads.Engine, "_transaction", lambda engine, calls, bells: 1 / 0)
            calls = [log.append([(writer, span_of(1, 1), None)]), log.renew([writer]), log.say("s", Message(id="m"))]
            for answer in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(answer, LogUnavailable)
        await until(lambda: failed)
        assert failed[0].exc_type is ZeroDivisionError
        assert await log.append([(writer, span_of(1, 1), None)]) == [Appended(1)]
        await log.aclose()

    run(scenario())
