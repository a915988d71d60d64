"""One contract for all stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

from resumable_stream.stores import FileStore, MemoryStore, RedisStore, SQLiteStore, Store
from resumable_stream.testing.store_contract import StoreContract

if TYPE_CHECKING:
    from tests.redis_server import RedisCluster, RedisServer


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
        # The contract waits for whole seconds, since a store may know no others. Ours do.
        return SQLiteStore(self.path, keep_events=True, expires=seconds / 5)


class TestSQLiteStoreInADirectory(TestSQLiteStore):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.path = tmp_path


class TestDurableSQLiteStore(TestSQLiteStore):
    def make_store(self, *, keep_events: bool = False) -> Store:
        return SQLiteStore(self.path, keep_events=keep_events, durable=True)


class TestRedisStore(StoreContract):
    persistent = True

    @pytest.fixture(autouse=True)
    def _place(self, redis_server: RedisServer) -> None:
        self.url = redis_server.url

    def make_store(self, *, keep_events: bool = False) -> Store:
        return RedisStore(self.url, keep_events=keep_events)

    def make_expiring_store(self, seconds: float) -> Store:
        return RedisStore(self.url, keep_events=True, expires=seconds / 5)


class TestRedisStoreOfAClientThatDecodes(TestRedisStore):
    @pytest.fixture(autouse=True)
    def _place(self, redis_server: RedisServer) -> Iterator[None]:
        with redis.Redis.from_url(redis_server.socket_url, decode_responses=True) as self.client:
            yield

    def make_store(self, *, keep_events: bool = False) -> Store:
        return RedisStore(self.client, keep_events=keep_events)

    def make_expiring_store(self, seconds: float) -> Store:
        return RedisStore(self.client, keep_events=True, expires=seconds / 5)


class TestRedisStoreInACluster(TestRedisStore):
    @pytest.fixture(autouse=True)
    def _place(self, redis_cluster: RedisCluster) -> Iterator[None]:
        client = redis.RedisCluster.from_url(redis_cluster.url)
        self.client = client
        yield
        client.close()

    def make_store(self, *, keep_events: bool = False) -> Store:
        return RedisStore(self.client, keep_events=keep_events)

    def make_expiring_store(self, seconds: float) -> Store:
        return RedisStore(self.client, keep_events=True, expires=seconds / 5)
