"""What only a database can do wrong: crashes, locks, forks, full disks, damage, other people's files."""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resumable_stream._errors import StoreError
from resumable_stream.stores import FileStore, SQLiteStore
from resumable_stream.stores import sqlite as module
from resumable_stream.testing.store_contract import checkpoint_at, events_at

posix = pytest.mark.skipif(os.name != "posix", reason="forks, signals and modes of POSIX")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "places.db"


def kept(path: Path, **options: Any) -> SQLiteStore:
    return SQLiteStore(path, keep_events=True, **options)


def start(store: SQLiteStore | FileStore, key: str = "k", *, upto: int = 2) -> int:
    """Save the first `upto` events and return the fence."""
    _, fence = store.open(key)
    store.save(key, checkpoint_at(upto), events_at(0, upto), fence=fence)
    return fence


def raw(path: Path, *statements: str) -> list[Any]:
    """Run statements behind the store's back."""
    connection = sqlite3.connect(path)
    try:
        found = [row for statement in statements for row in connection.execute(statement).fetchall()]
        connection.commit()
        return found
    finally:
        connection.close()


PRELUDE = """
import os, signal, sqlite3, sys
from resumable_stream.stores import SQLiteStore
from resumable_stream.stores import sqlite as module
from resumable_stream._errors import StoreError
from resumable_stream.testing.store_contract import checkpoint_at, events_at

# Several processes at once take their time on a busy machine.
store = SQLiteStore(sys.argv[1], keep_events=True, busy_timeout=100)
"""


def program(code: str, *args: object) -> list[str]:
    return [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(code), *map(str, args)]


def run_python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(program(code, *args), capture_output=True, text=True, timeout=200)


# --- both or neither


class Crash(BaseException):
    """Not an `Exception`: nothing that tidies up after errors sees it."""


@pytest.mark.parametrize("where", ["BEGIN", "SELECT fence", "INSERT INTO kept", "UPDATE place", "COMMIT"])
@posix
def test_a_process_killed_inside_a_save_leaves_the_old_place_and_its_events(where: str, path: Path) -> None:
    died = run_python(
        """
        class Connection(sqlite3.Connection):
            def execute(self, statement, *args):
                if armed and statement.startswith(sys.argv[2]):
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().execute(statement, *args)

        connect = sqlite3.connect
        sqlite3.connect = lambda *args, **options: connect(*args, factory=Connection, **options)
        armed = False
        _, fence = store.open("k")
        store.save("k", checkpoint_at(2), events_at(0, 2), fence=fence)
        armed = True
        store.save("k", checkpoint_at(5), events_at(2, 5), fence=fence)
        """,
        path,
        where,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    store = kept(path)
    assert list(store.replay("k")) == events_at(0, 2)
    place, fence = store.open("k")  # its lock died with it
    assert place == checkpoint_at(2)
    store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert list(store.replay("k")) == events_at(0, 3)


@posix
def test_a_process_killed_at_any_moment_loses_at_most_the_save_it_was_in(path: Path) -> None:
    writes = """
        place, fence = store.open("k")
        offset = place.offset if place is not None else 0
        print(offset, flush=True)
        while True:
            store.save("k", checkpoint_at(offset + 3), events_at(offset, offset + 3), fence=fence)
            offset += 3
            print(offset, flush=True)
        """
    last = 0
    for number in range(8):
        process = subprocess.Popen(program(writes, path), stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(2 + number * 7):
            process.stdout.readline()
        process.kill()
        said = process.stdout.read().split()
        process.wait(200)
        process.stdout.close()
        store = kept(path)
        place = store.load("k")
        assert place is not None
        # What was said to be saved is there; what was not said may be.
        assert place.offset >= max(last, *(int(word) for word in said[:-1]), 0)
        assert list(store.replay("k")) == events_at(0, place.offset)
        assert place == checkpoint_at(place.offset)
        last = place.offset
    assert raw(path, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("where", ["_append", "_forget"])
def test_an_interrupt_inside_a_transaction_undoes_it(where: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = kept(path)
    fence = start(store)
    real = getattr(module, where)

    def interrupted(*args: Any) -> None:
        real(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, where, interrupted)
        action = {
            "_append": lambda: store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence),
            "_forget": lambda: store.delete("k"),
        }[where]
        with pytest.raises(KeyboardInterrupt):
            action()
    # Nobody else waits for a lock that was left behind.
    other = kept(path, busy_timeout=0)
    assert list(other.replay("k")) == events_at(0, 2)
    start(other, "another")
    store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert list(store.replay("k")) == events_at(0, 3)


def test_a_transaction_that_was_left_open_is_undone_by_the_next_use(path: Path) -> None:
    """As an interrupt between its last two statements would leave it."""
    store = kept(path)
    fence = start(store)
    connection = store._connection(store._handle())
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("DELETE FROM kept")
    assert list(store.replay("k")) == events_at(0, 2)
    store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert list(store.replay("k")) == events_at(0, 3)


def test_a_full_disk_is_an_error_that_can_be_mended(path: Path) -> None:
    store = kept(path)
    fence = start(store)
    connection = store._connection(store._handle())
    [pages] = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    # Not the same letters, which would be compressed to nothing.
    events = events_at(2, 3)
    events[0].data = os.urandom(50_000).hex()
    with pytest.raises(StoreError, match="is full; nothing was saved: free some space and try again") as caught:
        store.save("k", checkpoint_at(3), events, fence=fence)
    assert isinstance(caught.value.__cause__, sqlite3.Error)
    assert list(store.replay("k")) == events_at(0, 2)
    assert store.load("k") == checkpoint_at(2)
    connection.execute("PRAGMA max_page_count = 1000000")
    store.save("k", checkpoint_at(3), events, fence=fence)
    assert list(store.replay("k")) == events_at(0, 2) + events


def test_what_sqlite_cannot_hold_is_an_error(path: Path) -> None:
    store = kept(path)
    fence = start(store)
    connection = store._connection(store._handle())
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 20_000)
    events = events_at(2, 3)
    events[0].data = os.urandom(50_000).hex()
    with pytest.raises(StoreError, match="too big"):
        store.save("k", checkpoint_at(3), events, fence=fence)
    assert list(store.replay("k")) == events_at(0, 2)


# --- several processes and threads


def test_another_process_that_opens_the_key_takes_it_over(path: Path) -> None:
    store = kept(path)
    fence = start(store)
    other = run_python(
        """
        found, fence = store.open("k")
        store.save("k", checkpoint_at(found.offset + 1), events_at(found.offset, found.offset + 1), fence=fence)
        print(fence)
        """,
        path,
    )
    assert other.returncode == 0, other.stderr
    with pytest.raises(StoreError, match=f"another writer: expected fence {int(other.stdout)}, received {fence}"):
        store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert list(store.replay("k")) == events_at(0, 3)


def test_processes_that_begin_at_once_make_one_database(path: Path) -> None:
    """Each makes the file, turns on the log, makes the tables and writes a key of its own; and all fight for one key."""
    writes = """
        print("ready", flush=True)
        sys.stdin.readline()
        mine = sys.argv[2]
        _, fence = store.open(mine)
        won = 0
        for offset in range(30):
            store.save(mine, checkpoint_at(offset + 1), events_at(offset, offset + 1), fence=fence)
            place, shared = store.open("shared")
            at = place.offset if place is not None else 0
            try:
                store.save("shared", checkpoint_at(at + 1), events_at(at, at + 1), fence=shared)
                won += 1
            except StoreError as error:
                assert "another writer" in str(error), error
        print(won)
        """
    processes = [
        subprocess.Popen(program(writes, path, f"k{number}"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for number in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    won = [int(process.communicate(timeout=200)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    store = kept(path)
    for number in range(4):
        assert list(store.replay(f"k{number}")) == events_at(0, 30)
    assert list(store.replay("shared")) == events_at(0, sum(won))
    assert store.load("shared") == checkpoint_at(sum(won))


def test_a_lock_that_is_never_released_is_an_error_not_a_hang(path: Path) -> None:
    store = kept(path, busy_timeout=0.05)
    fence = start(store)
    holder = subprocess.Popen(
        program(
            """
            connection = sqlite3.connect(sys.argv[1], isolation_level=None)
            connection.execute("BEGIN IMMEDIATE")
            print("locked", flush=True)
            sys.stdin.readline()
            """,
            path,
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    for action in (
        lambda: store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence),
        lambda: store.open("k"),
        lambda: store.delete("k"),
    ):
        with pytest.raises(StoreError, match="cannot use .*: another user has held its lock for 0.05 s; try again"):
            action()
    # Who reads waits for nobody.
    assert list(store.replay("k")) == events_at(0, 2)
    assert store.load("k") == checkpoint_at(2)
    holder.communicate("\n", timeout=200)
    store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert list(store.replay("k")) == events_at(0, 3)


def test_the_default_patience_is_five_seconds(path: Path) -> None:
    store = kept(path)
    start(store)
    assert store.busy_timeout == 5.0
    assert store._connection(store._handle()).execute("PRAGMA busy_timeout").fetchone() == (5000,)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), True, "1"])
def test_a_patience_that_is_no_duration_is_refused(seconds: Any, path: Path) -> None:
    with pytest.raises(ValueError, match="busy_timeout"):
        SQLiteStore(path, busy_timeout=seconds)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), True, "1"])
def test_an_expiry_that_is_no_duration_is_refused(seconds: Any, path: Path) -> None:
    with pytest.raises(ValueError, match="expires"):
        SQLiteStore(path, expires=seconds)


def test_a_thread_has_a_connection_of_its_own_which_ends_with_it(path: Path) -> None:
    store = kept(path)
    start(store)
    mine = store._connection(store._handle())
    assert store._connection(store._handle()) is mine
    seen: list[sqlite3.Connection] = []

    def look() -> None:
        start(store, "other")
        seen.append(store._connection(store._handle()))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    del thread
    gc.collect()
    assert seen[0] is not mine
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        seen[0].execute("SELECT 1")
    mine.execute("SELECT 1")


def test_a_closed_store_opens_again_when_it_is_used(path: Path) -> None:
    store = kept(path)
    fence = start(store)
    assert path.with_name("places.db-wal").exists()
    store.close()
    store.close()
    assert sorted(each.name for each in path.parent.iterdir()) == ["places.db"]
    store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert list(store.replay("k")) == events_at(0, 3)


def test_a_store_that_nobody_has_any_more_closes_its_connections(path: Path) -> None:
    start(kept(path))
    gc.collect()
    assert sorted(each.name for each in path.parent.iterdir()) == ["places.db"]


def test_leaving_the_program_leaves_one_file_and_no_warning(path: Path) -> None:
    done = run_python("store.open('k')", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(each.name for each in path.parent.iterdir()) == ["places.db"]


# --- forks


@posix
def test_a_fork_shares_no_connection(path: Path) -> None:
    done = run_python(
        """
        _, fence = store.open("parent")
        store.save("parent", checkpoint_at(1), events_at(0, 1), fence=fence)
        handle = store._handle()
        assert handle.connection is not None
        saved, closed = os.pipe(), os.pipe()
        child = os.fork()
        # Neither side goes on with the connection of before the fork.
        assert handle.connection is None
        if child == 0:
            _, fence = store.open("child")
            store.save("child", checkpoint_at(2), events_at(0, 2), fence=fence)
            os.write(saved[1], b".")
            os.read(closed[0], 1)
            store.save("child", checkpoint_at(4), events_at(2, 4), fence=fence)
            os._exit(0)
        store.save("parent", checkpoint_at(2), events_at(1, 2), fence=fence)
        os.read(saved[0], 1)
        # Closing its last connection must not take the log away from the child.
        store.close()
        os.write(closed[1], b".")
        assert os.waitpid(child, 0)[1] == 0
        store.save("parent", checkpoint_at(3), events_at(2, 3), fence=fence)
        """,
        path,
    )
    assert done.returncode == 0, done.stderr
    store = kept(path)
    assert list(store.replay("child")) == events_at(0, 4)
    assert list(store.replay("parent")) == events_at(0, 3)
    assert raw(path, "PRAGMA integrity_check") == [("ok",)]


@posix
def test_forks_while_threads_are_saving_lose_nothing(path: Path) -> None:
    done = run_python(
        """
        import threading, warnings

        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what is tested
        stop = threading.Event()
        saved = {}

        def write(key):
            _, fence = store.open(key)
            offset = 0
            while not stop.is_set():
                store.save(key, checkpoint_at(offset + 1), events_at(offset, offset + 1), fence=fence)
                offset += 1
                saved[key] = offset

        threads = [threading.Thread(target=write, args=(f"thread {n}",)) for n in range(3)]
        for thread in threads:
            thread.start()
        for number in range(15):
            child = os.fork()
            if child == 0:
                _, fence = store.open(f"child {number}")
                store.save(f"child {number}", checkpoint_at(2), events_at(0, 2), fence=fence)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        for thread in threads:
            thread.join()
        for key, offset in saved.items():
            assert list(store.replay(key)) == events_at(0, offset), key
        for number in range(15):
            assert list(store.replay(f"child {number}")) == events_at(0, 2)
        print(len(saved))
        """,
        path,
    )
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
    assert raw(path, "PRAGMA integrity_check") == [("ok",)]


# --- the file


@posix
def test_only_the_owner_can_read_what_is_kept(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = kept(tmp_path / "new" / "places.db")
        start(store)
    finally:
        os.umask(before)
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "new").iterdir()}
    assert modes == {"places.db": 0o600, "places.db-wal": 0o600, "places.db-shm": 0o600}
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_nothing_is_touched_before_the_first_open(tmp_path: Path) -> None:
    store = kept(tmp_path / "new" / "places.db")
    assert list(store.replay("k")) == []
    assert store.load("k") is None
    assert list(store.places()) == []
    store.delete("k")
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_deleted_is_not_left_in_the_file(path: Path) -> None:
    store = kept(path)
    events = events_at(0, 1)
    events[0].data = "confidential " + os.urandom(20_000).hex()
    _, fence = store.open("very-private-key")
    store.save("very-private-key", checkpoint_at(1), events, fence=fence)
    [(z,)] = raw(path, "SELECT z FROM kept")
    store.close()
    assert z[3000:3100] in path.read_bytes() and b"very-private-key" in path.read_bytes()
    store.delete("very-private-key")
    store.close()
    assert z[3000:3100] not in path.read_bytes() and b"very-private-key" not in path.read_bytes()


@pytest.mark.parametrize("how", ["deleted", "deleted alone", "replaced"])
def test_a_file_that_is_deleted_under_a_writer_is_noticed(how: str, path: Path, tmp_path: Path) -> None:
    """SQLite would go on writing into a file that nobody can find any more."""
    store = kept(path)
    fence = start(store)
    for each in [path] if how == "deleted alone" else list(tmp_path.iterdir()):
        each.unlink()
    if how == "replaced":
        start(kept(tmp_path / "other.db"), "another key")
        gc.collect()
        (tmp_path / "other.db").replace(path)
    with pytest.raises(StoreError, match="key 'k' was deleted since it was opened"):
        store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert start(store) > fence
    assert list(store.replay("k")) == events_at(0, 2)
    assert list(kept(path).replay("k")) == events_at(0, 2)


def test_a_relative_path_means_the_directory_it_was_made_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    store = kept(Path("places.db"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    start(store)
    assert (tmp_path / "places.db").is_file()


def test_a_store_shows_where_it_is(path: Path) -> None:
    assert repr(SQLiteStore(path)) == f"SQLiteStore({str(path)!r}, keep_events=False)"


def actions(store: SQLiteStore) -> list[Callable[[], object]]:
    return [
        lambda: store.open("k"),
        lambda: store.save("k", checkpoint_at(3), events_at(2, 3), fence=1),
        lambda: list(store.replay("k")),
        lambda: store.load("k"),
        lambda: store.delete("k"),
        lambda: list(store.places()),
    ]


@pytest.mark.parametrize("content", [b"precious", b'{"not": "ours"}\n', b"\x00\xff" * 100_000])
def test_a_foreign_file_is_named_shown_and_left_alone(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    for action in actions(kept(file)):
        with pytest.raises(StoreError, match="is not ours and was left unchanged: expected an SQLite database") as caught:
            action()
        assert "notes.txt" in str(caught.value) and repr(content[:20])[:-1] in str(caught.value)
    assert file.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        (
            "CREATE TABLE moz_places (id, url)",
            "expected an SQLite database with the tables place and kept, found the tables moz",
        ),
        ("CREATE TABLE place (id, name)", "expected a table place with the columns .*, found id, name"),
        ("CREATE TABLE kept (key, first)", "expected a table kept with the columns first, key, z, found first, key"),
    ],
)
def test_a_database_of_somebody_else_is_named_and_left_alone(table: str, complaint: str, path: Path) -> None:
    raw(path, table)
    content = path.read_bytes()
    for action in actions(kept(path)):
        with pytest.raises(StoreError, match=f"is not ours and was left unchanged: {complaint}"):
            action()
    assert path.read_bytes() == content


def test_a_file_of_file_store_says_which_store_reads_it(tmp_path: Path) -> None:
    start(FileStore(tmp_path / "answer.place", one_file=True))
    with pytest.raises(StoreError, match=r"is a file of FileStore and was left unchanged: use FileStore\('.*', one_file=True\)"):
        kept(tmp_path / "answer.place").open("k")


def test_the_file_of_a_log_is_shared_with_it(path: Path) -> None:
    raw(path, "CREATE TABLE stream (id)", "CREATE TABLE span (stream)")
    store = kept(path)
    start(store)
    assert list(store.replay("k")) == events_at(0, 2)


def test_an_empty_file_becomes_a_database(path: Path) -> None:
    path.touch()
    start(kept(path))
    assert list(kept(path).replay("k")) == events_at(0, 2)


def test_a_directory_where_the_file_should_be_is_named(path: Path) -> None:
    store = kept(path)
    path.mkdir()
    with pytest.raises(StoreError, match="cannot use .*places.db: .*expected a file, found a directory"):
        store.open("k")


def test_a_file_where_the_directory_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(StoreError, match="cannot use .*file/places.db"):
        kept(tmp_path / "file" / "places.db").open("k")
    assert (tmp_path / "file").read_text() == "precious"


# --- damage


DAMAGED_PLACES = [
    ("UPDATE place SET checkpoint = '{'", "the place of the key 'k' cannot be read: expected the JSON of a checkpoint"),
    ("UPDATE place SET checkpoint = x'00'", "damaged: expected fence, checkpoint and number of events of the key 'k', found"),
    ("UPDATE place SET fence = 'x'", "damaged: expected fence"),
    ("UPDATE place SET events = -1", "damaged: expected fence"),
    ("UPDATE place SET expires = 'x'", "damaged: expected fence"),
]


@pytest.mark.parametrize(("damage", "complaint"), DAMAGED_PLACES)
def test_a_damaged_place_is_an_error_until_it_is_deleted(damage: str, complaint: str, path: Path) -> None:
    store = kept(path)
    start(store)
    start(store, "other")
    raw(path, damage + " WHERE key = 'k'")
    before = raw(path, "SELECT * FROM place ORDER BY key")
    for action in (lambda: store.open("k"), lambda: store.load("k")):
        with pytest.raises(StoreError, match=rf"{complaint}.*delete\(\) the key to start over"):
            action()
    assert raw(path, "SELECT * FROM place ORDER BY key") == before
    damaged, other = store.places()
    assert damaged.key == "k" and damaged.checkpoint is None
    assert damaged.damage is not None and complaint.partition(":")[0] in damaged.damage
    assert (other.key, other.checkpoint, other.damage) == ("other", checkpoint_at(2), None)
    assert list(store.replay("other")) == events_at(0, 2)
    store.delete("k")
    start(store)
    assert list(store.replay("k")) == events_at(0, 2)


def test_a_checkpoint_of_another_schema_is_refused_and_kept(path: Path) -> None:
    store = kept(path)
    start(store)
    raw(path, """UPDATE place SET checkpoint = replace(checkpoint, '"schema":1', '"schema":2')""")
    before = raw(path, "SELECT * FROM place")
    with pytest.raises(StoreError, match="expected a checkpoint of schema 1, got 2"):
        store.open("k")
    assert raw(path, "SELECT * FROM place") == before


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ("DELETE FROM kept", "damaged: expected 6 events of the key 'k', found 0"),
        ("DELETE FROM kept WHERE first = 2", "damaged: expected 6 events of the key 'k', found 2"),
        ("DELETE FROM kept WHERE first = 4", "damaged: expected 6 events of the key 'k', found 4"),
        ("UPDATE kept SET first = 3 WHERE first = 2", "damaged: expected 6 events of the key 'k', found 2"),
        (
            "UPDATE kept SET z = substr(z, 1, length(z) - 1) WHERE first = 2",
            "in event 2 of the key 'k': expected .* bytes",
        ),
        ("UPDATE kept SET z = 'text' WHERE first = 2", "in event 2 of the key 'k': expected events as bytes"),
        ("UPDATE kept SET z = x'00' WHERE first = 2", "in event 2 of the key 'k': expected .* compressed events"),
        ("UPDATE place SET events = 5", "damaged in event 6 of the key 'k': expected 5 events, found more"),
        ("UPDATE place SET events = 7", "damaged: expected 7 events of the key 'k', found 6"),
    ],
)
def test_damaged_events_are_an_error_not_a_shorter_answer(damage: str, complaint: str, path: Path) -> None:
    store = kept(path)
    _, fence = store.open("k")
    for offset in (0, 2, 4):
        store.save("k", checkpoint_at(offset + 2), events_at(offset, offset + 2), fence=fence)
    raw(path, damage)
    with pytest.raises(StoreError, match=complaint):
        list(store.replay("k"))


def test_a_row_of_another_format_is_shown(path: Path) -> None:
    store = kept(path)
    start(store)
    connection = sqlite3.connect(path)
    for content, complaint in ((b'{"data":1}\n', "event field 'data'"), (b'{"data":"x"}', "expected whole lines")):
        connection.execute("UPDATE kept SET z = ?", (zlib.compress(content),))
        connection.commit()
        with pytest.raises(StoreError, match=complaint):
            list(store.replay("k"))
    connection.close()


def test_a_broken_page_is_an_error(path: Path) -> None:
    store = kept(path)
    _, fence = store.open("k")
    for offset in range(200):
        store.save("k", checkpoint_at(offset + 1), events_at(offset, offset + 1), fence=fence)
    store.close()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xaa" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="is damaged: database disk image is malformed; take it from a backup, or delete it"):
        list(kept(path).replay("k"))


# --- events


def test_a_replay_does_not_load_everything(path: Path) -> None:
    store = kept(path)
    _, fence = store.open("k")
    events = events_at(0, 4000)
    for event in events:
        event.data = os.urandom(500).hex()
    store.save("k", checkpoint_at(4000), events, fence=fence)
    del events, event
    tracemalloc.start()
    try:
        count = sum(1 for _ in store.replay("k"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 4000
    assert peak < 1_500_000, f"{peak} bytes for events of 4 MB"


def test_the_events_of_one_save_are_one_row(path: Path) -> None:
    store = kept(path)
    _, fence = store.open("k")
    for start_, stop in ((0, 1), (1, 1), (1, 200)):
        store.save("k", checkpoint_at(stop), events_at(start_, stop), fence=fence)
    assert raw(path, "SELECT key, first FROM kept ORDER BY first") == [("k", 0), ("k", 1)]
    assert raw(path, "SELECT key, fence, events FROM place") == [("k", fence, 200)]


def test_a_key_that_is_deleted_while_it_is_replayed_is_an_error(path: Path) -> None:
    store = kept(path)
    _, fence = store.open("k")
    for offset in (0, 1, 2):
        store.save("k", checkpoint_at(offset + 1), events_at(offset, offset + 1), fence=fence)
    first, second, third = store.replay("k"), store.replay("k"), store.replay("k")
    assert [next(each).data for each in (first, second, third)] == ["token 0"] * 3
    store.delete("k")
    with pytest.raises(StoreError, match="was deleted while its events were read"):
        next(first)
    # Neither are the events of a new answer taken for the rest of the old one.
    start(store, upto=5)
    with pytest.raises(StoreError, match="was deleted while its events were read"):
        next(second)
    store.close()
    for each in path.parent.iterdir():
        each.unlink()
    with pytest.raises(StoreError, match="was deleted while its events were read"):
        next(third)
    assert list(path.parent.iterdir()) == []


# --- expiry


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr("resumable_stream.stores.sqlite.time.time", made)
    yield made
    monkeypatch.undo()


def test_a_place_expires_after_its_last_use(path: Path, clock: Clock) -> None:
    store = kept(path, expires=100)
    fence = start(store)
    clock.now += 99
    store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    clock.now += 99
    assert list(store.replay("k")) == events_at(0, 3)
    place, fence = store.open("k")
    assert place == checkpoint_at(3)
    clock.now += 99
    assert store.load("k") == checkpoint_at(3)
    [listed] = store.places()
    assert (listed.saved, listed.expires) == (clock.now - 99, clock.now + 1)
    clock.now += 1
    assert store.load("k") is None
    assert list(store.replay("k")) == []
    assert list(store.places()) == []
    with pytest.raises(StoreError, match="key 'k' was deleted or has expired since it was opened"):
        store.save("k", checkpoint_at(4), events_at(3, 4), fence=fence)
    # Whoever opens any key removes what has expired.
    start(store, "other")
    assert raw(path, "SELECT key FROM place UNION SELECT key FROM kept") == [("other",)]


def test_without_expiry_a_place_stays(path: Path, clock: Clock) -> None:
    start(kept(path, expires=100))
    # The last one to save decides.
    start(kept(path))
    clock.now += 1e9
    assert kept(path).load("k") == checkpoint_at(2)


def test_of_many_expired_places_some_are_removed_at_each_open(path: Path, clock: Clock) -> None:
    store = kept(path, expires=100)
    for number in range(120):
        store.open(f"k{number:03}")
    clock.now += 100
    assert store.open("k119")[0] is None
    assert raw(path, "SELECT count(*) FROM place") == [(21,)]
    store.open("k119")
    assert raw(path, "SELECT key FROM place") == [("k119",)]


# --- listing


def test_places_are_listed_with_what_they_are(path: Path) -> None:
    store = kept(path)
    start(store, "b", upto=3)
    store.open("a")
    first, second = store.places()
    assert (first.key, first.checkpoint, first.events, first.damage) == ("a", None, 0, None)
    assert (second.key, second.checkpoint, second.events, second.expires) == ("b", checkpoint_at(3), 3, None)
    assert first.size_bytes == 0
    [(z,)] = raw(path, "SELECT z FROM kept")
    assert second.size_bytes == len(z) + len(checkpoint_at(3).to_json().encode())
    assert abs(second.saved - path.stat().st_mtime) < 100


def test_any_number_of_places_is_listed(path: Path) -> None:
    store = kept(path)
    for number in range(250):
        store.open(f"k{number:03}")
    assert [listed.key for listed in store.places()] == [f"k{number:03}" for number in range(250)]
