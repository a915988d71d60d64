"""A place that `FileStore` kept in a directory is found by `SQLiteStore`, which goes on with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from resumable_stream._errors import StoreError
from resumable_stream.stores import FileStore, SQLiteStore
from resumable_stream.testing.store_contract import ODD_KEYS, checkpoint_at, events_at


def old(directory: Path, **options: bool) -> FileStore:
    return FileStore(directory, **{"keep_events": True, **options})


def new(directory: Path, **options: bool) -> SQLiteStore:
    return SQLiteStore(directory, **{"keep_events": True, **options})


def start(store: SQLiteStore | FileStore, key: str = "k", *, upto: int = 2) -> int:
    _, fence = store.open(key)
    store.save(key, checkpoint_at(upto), events_at(0, upto), fence=fence)
    return fence


def test_an_old_place_is_found_with_its_events_and_continued(tmp_path: Path) -> None:
    fence = start(old(tmp_path))
    store = new(tmp_path)
    place, new_fence = store.open("k")
    assert place == checkpoint_at(2)
    assert new_fence > fence
    assert list(store.replay("k")) == events_at(0, 2)
    store.save("k", checkpoint_at(5), events_at(2, 5), fence=new_fence)
    assert list(new(tmp_path).replay("k")) == events_at(0, 5)
    assert new(tmp_path).open("k")[0] == checkpoint_at(5)
    # It lives in one place only, so that nobody goes on with the old one.
    assert list(old(tmp_path).places()) == []
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["places.db", "places.db-shm", "places.db-wal"]


@pytest.mark.parametrize("key", ODD_KEYS)
def test_any_key_is_found(key: str, tmp_path: Path) -> None:
    start(old(tmp_path), key)
    assert new(tmp_path).open(key)[0] == checkpoint_at(2)


def test_reading_an_old_place_leaves_it_where_it_is(tmp_path: Path) -> None:
    fence = start(old(tmp_path))
    store = new(tmp_path)
    assert store.load("k") == checkpoint_at(2)
    assert list(store.replay("k")) == events_at(0, 2)
    assert [(listed.key, listed.events) for listed in store.places()] == [("k", 2)]
    assert not (tmp_path / "places.db").exists()
    old(tmp_path).save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert store.load("k") == checkpoint_at(3)


def test_a_writer_of_the_old_place_learns_that_it_was_moved(tmp_path: Path) -> None:
    writer = old(tmp_path)
    fence = start(writer)
    new(tmp_path).open("k")
    with pytest.raises(StoreError, match="key 'k' was deleted since it was opened"):
        writer.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert list(new(tmp_path).replay("k")) == events_at(0, 2)


def test_a_key_that_the_database_has_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    store = new(tmp_path)
    start(store)
    start(old(tmp_path), upto=5)
    assert store.load("k") == checkpoint_at(2)
    assert store.open("k")[0] == checkpoint_at(2)
    assert list(store.replay("k")) == events_at(0, 2)
    assert [(listed.key, listed.events) for listed in store.places()] == [("k", 2)]
    assert old(tmp_path).load("k") == checkpoint_at(5)


def test_a_crash_before_the_old_files_are_removed_leaves_the_new_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(old(tmp_path))
    store = new(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(FileStore, "_remove", lambda self, files: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.open("k")
    _, fence = store.open("k")
    store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert list(store.replay("k")) == events_at(0, 3)
    # And it does not come back when the new one is deleted.
    store.delete("k")
    assert store.open("k")[0] is None


@pytest.mark.parametrize("where", ["_append", "_read_events"])
def test_a_crash_while_it_is_moved_leaves_the_old_place(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(old(tmp_path))
    store = new(tmp_path)

    def crash(*args: object) -> object:
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patch:
        if where == "_append":
            patch.setattr("resumable_stream.stores.sqlite._append", lambda *args: next(crash()))  # type: ignore[call-overload]
        else:
            patch.setattr("resumable_stream.stores.file._read_events", crash)
        with pytest.raises(KeyboardInterrupt):
            store.open("k")
    assert old(tmp_path).load("k") == checkpoint_at(2)
    assert store.load("k") == checkpoint_at(2)
    assert store.open("k")[0] == checkpoint_at(2)
    assert list(store.replay("k")) == events_at(0, 2)


def test_a_deleted_key_is_deleted_in_both(tmp_path: Path) -> None:
    start(old(tmp_path))
    store = new(tmp_path)
    store.delete("k")
    assert store.open("k")[0] is None
    assert list(store.replay("k")) == []


def test_a_place_without_its_events_stays_one(tmp_path: Path) -> None:
    keeping, forgetting = old(tmp_path), old(tmp_path, keep_events=False)
    start(keeping)
    forgetting.save("k", checkpoint_at(3), fence=forgetting.open("k")[1])
    store = new(tmp_path)
    for _ in range(2):
        with pytest.raises(StoreError, match="not all events up to its place were kept|not all events of the key 'k'"):
            list(store.replay("k"))
        assert store.open("k")[0] == checkpoint_at(3)


def test_a_key_that_was_opened_and_never_saved_is_moved_too(tmp_path: Path) -> None:
    _, fence = old(tmp_path).open("k")
    place, new_fence = new(tmp_path).open("k")
    assert place is None
    assert new_fence > fence


def test_events_are_moved_also_by_a_store_that_keeps_none(tmp_path: Path) -> None:
    start(old(tmp_path))
    assert new(tmp_path, keep_events=False).open("k")[0] == checkpoint_at(2)
    assert list(new(tmp_path).replay("k")) == events_at(0, 2)


@pytest.mark.parametrize("damaged", ["*.checkpoint", "*.events"])
def test_a_damaged_old_place_is_an_error_until_it_is_deleted(damaged: str, tmp_path: Path) -> None:
    start(old(tmp_path))
    [path] = tmp_path.glob(damaged)
    path.write_bytes(content := path.read_bytes()[:-5])
    store = new(tmp_path)
    with pytest.raises(StoreError, match="is damaged"):
        store.open("k")
    assert path.read_bytes() == content
    [listed] = store.places()
    assert listed.damage is not None and "is damaged" in listed.damage
    store.delete("k")
    assert store.open("k")[0] is None


def test_a_file_of_somebody_else_in_the_directory_is_listed_as_what_it_is(tmp_path: Path) -> None:
    start(old(tmp_path))
    (tmp_path / "model.checkpoint").write_bytes(os.urandom(100))
    (tmp_path / "z.checkpoint").write_bytes(b'{"resumable_stream.checkpoint":1,"key":7}\n')
    first, second, third = new(tmp_path).places()
    assert (first.key, first.damage) == ("k", None)
    assert second.key == "model.checkpoint" and second.damage is not None and "is not ours" in second.damage
    assert third.key == "z.checkpoint" and third.damage is not None and "expected a key" in third.damage


def test_one_file_is_listed_too(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "answer.place", one_file=True)
    assert list(store.places()) == []
    start(store)
    [listed] = store.places()
    assert (listed.key, listed.checkpoint, listed.events) == ("k", checkpoint_at(2), 0)
    assert listed.size_bytes == (tmp_path / "answer.place").stat().st_size
    assert listed.saved == (tmp_path / "answer.place").stat().st_mtime
