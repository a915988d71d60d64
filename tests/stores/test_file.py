"""What only files can do wrong: crashes, permissions, other processes, other people's files."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resumable_stream._errors import StoreError
from resumable_stream.stores import FileStore, _lock
from resumable_stream.testing.store_contract import checkpoint_at, events_at

posix = pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")


def kept(directory: Path) -> FileStore:
    return FileStore(directory, keep_events=True)


def start(store: FileStore, key: str = "k", *, upto: int = 2) -> int:
    """Save the first `upto` events and return the fence."""
    _, fence = store.open(key)
    store.save(key, checkpoint_at(upto), events_at(0, upto), fence=fence)
    return fence


def the(directory: Path, pattern: str) -> Path:
    [path] = directory.glob(pattern)
    return path


class Crash(BaseException):
    """Not an `Exception`: nothing that tidies up after errors sees it, as after a power cut."""


CRASHES = [
    "before os.replace",
    "after os.replace",
    "before os.fsync 1",
    "before os.fsync 2",
    "before os.fsync 3",
    "before os.open 3",
]


@pytest.mark.parametrize("where", CRASHES)
def test_a_crash_leaves_the_old_place_and_its_events_or_the_new_ones(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore(tmp_path, keep_events=True, fsync=True)
    fence = start(store)
    when, name, *count = where.split()
    left = int(*count or [1])
    real = getattr(os, name.removeprefix("os."))

    def crash(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and when == "after":
            real(*args, **kwargs)
        if left <= 0:
            raise Crash
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(name, crash)
        with pytest.raises(Crash):
            store.save("k", checkpoint_at(5), events_at(2, 5), fence=fence)

    # fsync: events, temporary file, directory (the rename is done by then). open: lock, events, temporary file.
    now = 5 if where in ("after os.replace", "before os.fsync 3") else 2
    again = kept(tmp_path)
    assert list(again.replay("k")) == events_at(0, now)
    place, fence = again.open("k")
    assert place == checkpoint_at(now)
    # What the crash left behind the bytes that count is cut off, and the stream goes on.
    again.save("k", checkpoint_at(now + 1), events_at(now, now + 1), fence=fence)
    assert list(again.replay("k")) == events_at(0, now + 1)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("size", [1, 10, 33, 60, 100])
def test_any_leftover_of_an_unfinished_append_does_not_count(size: int, tmp_path: Path) -> None:
    store = kept(tmp_path)
    fence = start(store)
    events = the(tmp_path, "*.events")
    with events.open("ab") as file:
        file.write((b'{"data":"never saved"}\n' * 5)[:size])
    assert list(store.replay("k")) == events_at(0, 2)
    store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert list(store.replay("k")) == events_at(0, 3)
    assert b"never" not in events.read_bytes()


@pytest.mark.parametrize("size", [0, 1, 20, 40])
def test_a_first_append_that_was_cut_off_is_done_again(size: int, tmp_path: Path) -> None:
    store = kept(tmp_path)
    start(store)
    events = the(tmp_path, "*.events")
    content = events.read_bytes()
    store.delete("k")
    events.write_bytes(content[:size])
    start(store)
    assert list(store.replay("k")) == events_at(0, 2)
    assert events.read_bytes() == content


def test_a_full_disk_is_an_error_that_can_be_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = kept(tmp_path)
    fence = start(store)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(StoreError, match="No space left") as caught:
            store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert isinstance(caught.value.__cause__, OSError)
    assert list(store.replay("k")) == events_at(0, 2)
    store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert list(store.replay("k")) == events_at(0, 3)


def run_python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    prelude = """
        import os, sys
        from resumable_stream.stores import FileStore
        from resumable_stream._checkpoint import Checkpoint
        from resumable_stream._events import StreamEvent
        from resumable_stream._errors import StoreError

        def place(offset):
            return Checkpoint(protocol="LastEventID", method="GET", url="https://example.com/", offset=offset)

        store = FileStore(sys.argv[1], keep_events=True)
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def test_a_process_that_dies_inside_a_save_loses_only_that_save(tmp_path: Path) -> None:
    died = run_python(
        """
        _, fence = store.open("k")
        store.save("k", place(1), [StreamEvent(data="one")], fence=fence)
        os.replace = lambda *args: os._exit(9)
        store.save("k", place(2), [StreamEvent(data="two")], fence=fence)
        """,
        tmp_path,
    )
    assert died.returncode == 9, died.stderr
    store = kept(tmp_path)
    assert [item.data for item in store.replay("k")] == ["one"]
    place, fence = store.open("k")  # its lock died with it
    assert place is not None and place.offset == 1
    store.save("k", checkpoint_at(2), events_at(1, 2), fence=fence)
    assert [item.data for item in store.replay("k")] == ["one", "token 1"]


def test_another_process_that_opens_the_key_takes_it_over(tmp_path: Path) -> None:
    store = kept(tmp_path)
    fence = start(store)
    other = run_python(
        """
        found, fence = store.open("k")
        store.save("k", place(found.offset + 1), [StreamEvent(data="elsewhere")], fence=fence)
        print(fence)
        """,
        tmp_path,
    )
    assert other.returncode == 0, other.stderr
    with pytest.raises(StoreError, match=f"another writer: expected fence {int(other.stdout)}, received {fence}"):
        store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert [item.data for item in store.replay("k")] == ["token 0", "token 1", "elsewhere"]


def test_a_lock_that_is_never_released_is_an_error_not_a_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = kept(tmp_path)
    fence = start(store)
    with _lock.locked(tmp_path / ".lock"):
        monkeypatch.setattr("resumable_stream.stores.file.locked", lambda path: _lock.locked(path, patience=0.01))
        with pytest.raises(StoreError, match="another user has held its lock for 0.01 s"):
            store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)


@posix
def test_only_the_owner_can_read_what_is_kept(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = kept(tmp_path / "new" / "places")
        start(store)
    finally:
        os.umask(before)
    directory = tmp_path / "new" / "places"
    modes = {path.name.rpartition(".")[2]: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes == {"checkpoint": 0o600, "events": 0o600, "lock": 0o600}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@posix
def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    store = kept(tmp_path)
    fence = start(store)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    checkpoint = the(tmp_path, "*.checkpoint")
    checkpoint.with_name(f".{checkpoint.stem}.tmp").symlink_to(victim)
    store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert victim.read_text() == "precious"


def test_nothing_is_touched_before_the_first_open(tmp_path: Path) -> None:
    store = kept(tmp_path / "places")
    assert list(store.replay("k")) == []
    store.delete("k")
    assert list(tmp_path.iterdir()) == []


def test_no_key_leaves_the_directory(tmp_path: Path) -> None:
    store = kept(tmp_path / "a" / "places")
    for key in ("../../x", "/x", "..", "a/../../x", "x" * 4096, "\0"):
        start(store, key)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "places"] == []
    assert len(list((tmp_path / "a" / "places").glob("*.checkpoint"))) == 6
    assert max(len(path.name) for path in (tmp_path / "a" / "places").iterdir()) < 100


def actions(store: FileStore) -> list[Callable[[], object]]:
    return [
        lambda: store.open("k"),
        lambda: store.save("k", checkpoint_at(3), events_at(2, 3), fence=1),
        lambda: list(store.replay("k")),
    ]


@pytest.mark.parametrize("content", [b"precious", b'{"not": "ours"}\n', b"\x00\xff" * 100_000])
def test_a_foreign_file_is_named_shown_and_left_alone(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    store = FileStore(file, one_file=True, keep_events=True)
    for action in [*actions(store), lambda: store.delete("k")]:
        with pytest.raises(StoreError, match="is not ours and was left unchanged: expected it to begin with") as caught:
            action()
        assert "notes.txt" in str(caught.value) and repr(content[:20])[:-1] in str(caught.value)
    assert file.read_bytes() == content


def test_a_foreign_file_where_the_events_go_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run.events").write_text("precious")
    store = FileStore(tmp_path / "run", one_file=True, keep_events=True)
    _, fence = store.open("k")
    with pytest.raises(StoreError, match="run.events is not ours"):
        store.save("k", checkpoint_at(1), events_at(0, 1), fence=fence)
    with pytest.raises(StoreError, match="run.events is not ours"):
        store.delete("k")
    assert store.open("k")[0] is None
    assert (tmp_path / "run.events").read_text() == "precious"


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:10],
        lambda content: content[:60],
        lambda content: content[:-1],
        lambda content: content + b"more\n",
        lambda content: content.replace(b'"fence":', b'"fence":"x","was":'),
        lambda content: content[:-1] + b" " * 100_000 + b"\n",
    ],
)
def test_a_damaged_checkpoint_is_an_error_until_it_is_deleted(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    store = kept(tmp_path)
    start(store)
    path = the(tmp_path, "*.checkpoint")
    path.write_bytes(damaged := damage(path.read_bytes()))
    for action in actions(store):
        with pytest.raises(StoreError, match=r"is damaged: expected .* delete\(\) the key"):
            action()
    assert path.read_bytes() == damaged
    store.delete("k")
    start(store)
    assert list(store.replay("k")) == events_at(0, 2)


def test_a_checkpoint_of_another_schema_is_refused_and_kept(tmp_path: Path) -> None:
    store = kept(tmp_path)
    start(store)
    path = the(tmp_path, "*.checkpoint")
    path.write_bytes(content := path.read_bytes().replace(b'"schema":1', b'"schema":2'))
    with pytest.raises(StoreError, match="expected a checkpoint of schema 1, got 2"):
        store.open("k")
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda content: content[:-5], "damaged"),
        (lambda content: b"", "damaged"),
        (lambda content: content.replace(b'"token 0"', b'"token 0 '), "damaged in line 2: expected an event as JSON"),
        (lambda content: content.replace(b'"token 0"', b"123456789"), "damaged in line 2: event field 'data'"),
        (lambda content: content.replace(b'"token 1"', b'"token 10"'), "damaged: expected"),
        (lambda content: b"x" + content[1:], "is not ours"),
    ],
)
def test_damaged_events_are_an_error_not_a_shorter_answer(
    damage: Callable[[bytes], bytes], complaint: str, tmp_path: Path
) -> None:
    store = kept(tmp_path)
    start(store)
    path = the(tmp_path, "*.events")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StoreError, match=complaint):
        list(store.replay("k"))


@pytest.mark.parametrize("lost", ["cut", "gone"])
def test_events_that_vanished_are_an_error_for_the_writer_too(lost: str, tmp_path: Path) -> None:
    store = kept(tmp_path)
    fence = start(store)
    path = the(tmp_path, "*.events")
    if lost == "cut":
        path.write_bytes(path.read_bytes()[:50])
    else:
        path.unlink()
        with pytest.raises(StoreError, match="cannot read the kept events"):
            list(store.replay("k"))
    with pytest.raises(StoreError, match="is damaged: expected at least"):
        store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert store.open("k")[0] == checkpoint_at(2)


def test_a_replay_does_not_load_everything(tmp_path: Path) -> None:
    store = kept(tmp_path)
    _, fence = store.open("k")
    events = events_at(0, 4000)
    for event in events:
        event.data = "x" * 1000
    store.save("k", checkpoint_at(4000), events, fence=fence)
    del events, event
    tracemalloc.start()
    try:
        count = sum(1 for _ in store.replay("k"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 4000
    assert peak < 500_000, f"{peak} bytes for a file of 4 MB"


def test_one_file_holds_the_place_of_one_stream(tmp_path: Path) -> None:
    file = tmp_path / "answer.place"
    store = FileStore(file, one_file=True, keep_events=True)
    start(store, "https://example.com/a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".answer.place.lock", "answer.place", "answer.place.events"]
    again = FileStore(file, one_file=True, keep_events=True)
    assert list(again.replay("https://example.com/a")) == events_at(0, 2)
    assert again.open("https://example.com/a")[0] == checkpoint_at(2)
    with pytest.raises(StoreError, match="another key: expected 'https://example.com/b', found 'https://example.com/a'"):
        again.open("https://example.com/b")
    again.delete("https://example.com/a")
    assert again.open("https://example.com/b")[0] is None


@posix
def test_a_link_to_the_one_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "place")
    start(FileStore(tmp_path / "link", one_file=True))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "place").is_file()


def test_a_relative_path_means_the_directory_it_was_made_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    store = kept(Path("places"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    start(store)
    assert (tmp_path / "places").is_dir()


def test_a_file_for_a_directory_and_a_directory_for_a_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "directory").mkdir()
    with pytest.raises(StoreError, match="expected a directory at .*file, found a file; pass one_file=True"):
        FileStore(tmp_path / "file").open("k")
    with pytest.raises(StoreError, match="expected a checkpoint file at .*directory, found a directory"):
        FileStore(tmp_path / "directory", one_file=True).open("k")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_store_shows_where_it_is(tmp_path: Path) -> None:
    assert repr(FileStore(tmp_path)) == f"FileStore({str(tmp_path.resolve())!r}, keep_events=False)"
