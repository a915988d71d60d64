"""The log in Redis: the contract of all logs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import redis
from redis.asyncio import Redis as AsyncRedis

from resumable_stream import LogUnavailable, Outcome
from resumable_stream.server import Ending, Head, Hub, RedisLog, Span, StreamLog
from resumable_stream.server import _redis_client as client
from resumable_stream.server import _redis_entries as entries
from resumable_stream.server._redis_client import RedisClient
from resumable_stream.server.log import Writer, join_spans
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


@pytest.mark.parametrize(("limit", "count"), [(None, 1), (256 << 10, 3), (16 << 10, 42)])
def test_a_finished_answer_is_one_entry_and_those_of_earlier_versions_are_read(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, limit: int | None, count: int
) -> None:
    """An entry had at most 256 KiB before compression, and has 1 MiB now; each is read, whatever it holds."""
    if limit is not None:
        monkeypatch.setattr(entries, "join_spans", partial(join_spans, limit_bytes=limit))
    chance = random.Random(4)
    events = [
        b'data: {"id":"chatcmpl-CkqY3tZ0bJ9","model":"gpt-5","text":"%d","obfuscation":"%s"%s}\n\n'
        % (chance.randrange(1000), chance.randbytes(4).hex().encode(), b" " * 240)
        for _ in range(2000)
    ]

    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        writer = await log.create("s", Head(content_type="text/event-stream", framing="sse"), lease=600.0)
        assert isinstance(writer, Writer)
        b = 0
        spans = []
        for n, event in enumerate(events, 1):
            b += len(event)
            spans.append((writer, Span(n=n, b=b, lengths=(len(event),), data=event), None))
        assert b > 600_000
        for begin in range(0, len(spans), 100):
            await log.append(spans[begin : begin + 100])
        await log.finish(writer, len(events), Ending(outcome=Outcome.COMPLETED))
        await log.compact("s")
        with redis.Redis(port=redis_server.port) as direct:
            assert abs(direct.xlen("rs:{s}:s") - count) <= count // 20
        async with Hub(log) as hub:
            for view in ("verbatim", "events"):
                found = [chunk async for chunk in hub.follow("s", view=view)]  # type: ignore[arg-type]
                assert max(map(len, found)) <= 1.1 * (256 << 10)
                body = b"".join(found)
                assert body == b"".join(events) if view == "verbatim" else body.count(b"\ndata: {") == len(events) + 1
        await log.aclose()

    asyncio.run(scenario())


@pytest.mark.parametrize("words", [(), (b"",), (b"a b", "\u00e9".encode(), b"\r\n$3\r\n", bytes(range(256)), b"x" * 100_000)])
def test_calls_are_written_as_redis_py_writes_them(words: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """By `hiredis` where it is there; everything else, and all of it without `hiredis`, by redis-py itself."""
    pytest.importorskip("hiredis")
    plain = AsyncRedis.from_url("redis://localhost").connection_pool.make_connection()
    url = "redis://localhost?encoding=utf-16"

    def ours() -> Any:
        return RedisClient(url, socket_timeout=1.0, timeout=1.0, concurrency=1)._client.connection_pool.make_connection()

    call = ("EVALSHA", "0f" * 20, 2, b"rs:{s}", b"rs:{s}:s", *words)
    (packed,) = ours().pack_command(*call)
    assert packed == b"".join(plain.pack_command(*call))
    assert b"".join(ours().pack_commands([call, call])) == 2 * packed
    assert ours().pack_command("GET", "key") == [b"".join([b"*2\r\n$3\r\nGET\r\n$8\r\n", "key".encode("utf-16"), b"\r\n"])]
    monkeypatch.setattr(client, "_pack", None)
    assert type(ours()) is type(plain)


def test_where_a_stream_lies_is_asked_without_a_server() -> None:
    async def scenario() -> None:
        for url in ("redis://127.0.0.1:1", "redis+cluster://127.0.0.1:1"):
            log = RedisLog(url, timeout=2.0)
            assert log.shard_of("s") == ""
            with pytest.raises(LogUnavailable):
                await log.read("s")
            assert log.shard_of("s") == ""
            await log.aclose()

    asyncio.run(scenario())
