"""The log in Redis: the contract of all logs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from resumable_stream.server import RedisLog, StreamLog
from resumable_stream.testing.log_contract import LogContract

from ..redis_server import RedisServer

# The clock of a server cannot be moved. But everything that it measures can.
PASS_TIME = """
local ms = tonumber(ARGV[1])
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind = redis.call('TYPE', key).ok
  if kind == 'zset' then
    for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do redis.call('ZINCRBY', key, -ms, member) end
  elseif kind == 'hash' and (tonumber(redis.call('HGET', key, 'until')) or 0) > 0 then
    redis.call('HINCRBY', key, 'until', -ms)
  end
  local left = redis.call('PTTL', key)
  if left > 0 then redis.call('PEXPIRE', key, left - ms) end
end
"""


class TestRedisLog(LogContract):
    lease = 15.0
    # One order of steps in so many is played; each step is a trip to a server. `TestEveryOrder` plays them all.
    share = 12

    @pytest.fixture(autouse=True)
    def _server(self, redis_server: RedisServer) -> Iterator[None]:
        self.server = redis_server
        self.direct: Any = redis.Redis(port=redis_server.port)
        yield
        self.direct.close()

    def make_log(self) -> StreamLog:
        return RedisLog(self.server.url)

    def another_log(self, log: StreamLog) -> StreamLog:
        return RedisLog(self.server.url)

    async def _play(self, log: StreamLog, stream_id: str, *args: Any, **options: Any) -> None:
        if int(stream_id.rpartition(".")[2]) % self.share == 0:
            await super()._play(log, stream_id, *args, **options)

    async def pass_time(self, log: StreamLog, seconds: float) -> None:
        self.direct.eval(PASS_TIME, 0, round(seconds * 1000))

    async def lose_spans(self, log: StreamLog, stream_id: str) -> bool:
        assert self.direct.delete(f"rs:{{{stream_id}}}:s") == 1
        return True

    async def damage(self, log: StreamLog, stream_id: str) -> bool:
        key = f"rs:{{{stream_id}}}:s"
        entries = self.direct.xrange(key)
        self.direct.delete(key)
        for number, fields in entries[:-1]:
            self.direct.xadd(key, fields, id=number)
        number, fields = entries[-1]
        self.direct.xadd(key, {**fields, b"l": b"1,1"}, id=number)
        return True


@pytest.mark.soak
class TestEveryOrder(TestRedisLog):
    share = 1
