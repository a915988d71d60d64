"""One contract for all stores."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.register_assert_rewrite("resumable_stream.testing.store_contract")

from resumable_stream.stores import FileStore, MemoryStore, SQLiteStore, Store  # noqa: E402
from resumable_stream.testing.store_contract import StoreContract  # noqa: E402


class TestMemoryStore(StoreContract):
    def make_store(self, *, keep_events: bool = False) -> Store:
        return MemoryStore(keep_events=keep_events)


class TestFileStore(StoreContract):
    persistent = True

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "places"

    def make_store(self, *, keep_events: bool = False) -> Store:
        return FileStore(self.path, keep_events=keep_events)


class TestFileStoreWithFsync(TestFileStore):
    def make_store(self, *, keep_events: bool = False) -> Store:
        return FileStore(self.path, keep_events=keep_events, fsync=True)


class TestSQLiteStore(StoreContract):
    persistent = True

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "places.db"

    def make_store(self, *, keep_events: bool = False) -> Store:
        return SQLiteStore(self.path, keep_events=keep_events)

    def make_expiring_store(self, seconds: float) -> Store:
        return SQLiteStore(self.path, keep_events=True, expires=seconds)


class TestSQLiteStoreInADirectory(TestSQLiteStore):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.path = tmp_path


class TestDurableSQLiteStore(TestSQLiteStore):
    def make_store(self, *, keep_events: bool = False) -> Store:
        return SQLiteStore(self.path, keep_events=keep_events, durable=True)
