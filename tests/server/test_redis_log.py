"""The log in Redis: the contract of all logs, and what only a server can do to it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import redis

pytest.register_assert_rewrite("resumable_stream.testing.log_contract")

from resumable_stream.server import RedisLog, StreamLog  # noqa: E402
from resumable_stream.testing.log_contract import LogContract  # noqa: E402

from ..redis_server import RedisServer  # noqa: E402

prefixes = (f"t{number}:" for number in itertools.count())


class TestRedisLog(LogContract):
    lease = 0.5

    @pytest.fixture(autouse=True)
    def _server(self, redis_server: RedisServer) -> Any:
        self.server = redis_server
        self.direct = redis.Redis(port=redis_server.port)
        yield
        self.direct.close()

    def make_log(self) -> StreamLog:
        return RedisLog(self.server.url)

    def another_log(self, log: StreamLog) -> StreamLog:
        return RedisLog(self.server.url)

    async def lose_spans(self, log: StreamLog, stream_id: str) -> bool:
        assert self.direct.delete(f"rs:{{{stream_id}}}:s") == 1
        return True

    async def damage(self, log: StreamLog, stream_id: str) -> bool:
        key = f"rs:{{{stream_id}}}:s"
        entries: Any = self.direct.xrange(key)
        self.direct.delete(key)
        for number, fields in entries[:-1]:
            self.direct.xadd(key, fields, id=number)
        number, fields = entries[-1]
        self.direct.xadd(key, {**fields, b"l": b"1,1"}, id=number)
        return True
