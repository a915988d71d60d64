"""Logs that are named by a text."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from resumable_stream.server import Head, MemoryLog, RedisLog, SQLiteLog, log_of

HEAD = Head(content_type="text/event-stream", framing="sse")


def test_memory_is_a_new_log_each_time() -> None:
    first, second = log_of("memory:"), log_of("memory:")
    assert isinstance(first, MemoryLog) and isinstance(second, MemoryLog)
    assert first is not second


@pytest.mark.parametrize("relative", [True, False])
def test_three_slashes_are_relative_and_four_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool) -> None:
    monkeypatch.chdir(tmp_path)
    log = log_of("sqlite:///a/streams.db" if relative else f"sqlite:///{tmp_path}/a/streams.db")
    assert isinstance(log, SQLiteLog)
    assert list(tmp_path.iterdir()) == []  # nothing is touched before the first use

    async def use() -> None:
        await log.create("s1", HEAD, lease=5.0)
        await log.aclose()

    asyncio.run(use())
    assert (tmp_path / "a" / "streams.db").exists()


@pytest.mark.parametrize(
    "text",
    [
        "redis://:s3cr3t@host:6379/0",
        "rediss://me:s3cr3t@host",
        "unix:///run/redis.sock",
        "redis+sentinel://:s3cr3t@host:26379,other:26379/name/0",
        "redis+cluster://me:s3cr3t@host:6379,other:6379",
    ],
)
def test_every_url_of_a_redis_is_a_redis_log(text: str) -> None:
    log = log_of(text)
    assert isinstance(log, RedisLog)
    assert "s3cr3t" not in repr(log)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "expected the name of a log: memory:, sqlite:///streams.db \\(relative\\), .* got a text of another form"),
        ("streams.db", "sqlite:///streams.db .* got a text of another form"),
        ("memory", "got a text of another form"),
        ("Memory:", "got a text of another form"),
        ("me:s3cr3t@host", "got a text of another form"),
        ("mysql://me:s3cr3t@host/db", "redis\\+cluster://host:6379; got mysql://…"),
        ("s3cr3t@x://host", "got a text of another form"),
        ("sqlite://streams.db", "needs a file: expected sqlite:///relative/path or sqlite:////absolute/path"),
        ("sqlite://me:s3cr3t@host/db", "needs a file"),
        ("sqlite:///", "needs a file"),
        ("sqlite:////", "needs a file"),
        ("sqlite:///:memory:", "for a log in memory use memory:"),
        ("redis://:s3cr3t@host:port", "the URL of a Redis cannot be read"),
        ("redis://host?password=s3cr3t&db=x", "the URL of a Redis cannot be read"),
    ],
)
def test_another_text_is_refused_with_what_is_understood_and_without_the_text(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as raised:
        log_of(text)
    seen: BaseException | None = raised.value
    while seen is not None:
        assert "s3cr3t" not in str(seen)
        seen = seen.__cause__ or seen.__context__


@pytest.mark.parametrize(
    ("text", "missing", "sentence"),
    [
        ("redis://:s3cr3t@host", "redis", "RedisLog needs redis: pip install 'resumable-stream-sdk[redis]'"),
        ("sqlite:///x.db", "sqlite3", "SQLiteLog needs sqlite3, which this Python was built without"),
    ],
)
def test_what_is_not_installed_is_named(text: str, missing: str, sentence: str) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None
from resumable_stream.server import log_of
try:
    log_of({text!r})
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200)
    assert done.stdout == f"{sentence}\n"
