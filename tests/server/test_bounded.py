"""A log that answers within a time or is unavailable, whatever its calls do before they answer."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from resumable_stream import LogUnavailable
from resumable_stream.server import MemoryLog
from resumable_stream.server._bounded import bounded

from .virtual import run


def log_of(call: Any, seconds: float = 30.0) -> Any:
    log: Any = SimpleNamespace(read=call)
    return bounded(log, seconds)


def test_what_is_answered_at_once_has_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(asyncio, "timeout", None)
        assert await bounded(MemoryLog(), 1.0).delete("s") is None

    run(main)


@pytest.mark.parametrize("waits", [0, 1, 3])
def test_the_answer_comes_through_however_often_the_log_waits(waits: int) -> None:
    async def read(key: str, *, limit: int) -> tuple[str, int, int]:
        told = 0
        for _ in range(waits):
            told += await asyncio.get_running_loop().run_in_executor(None, int, "1")
            await asyncio.sleep(0)
        return key, limit, told

    assert asyncio.run(log_of(read).read("s", limit=7)) == ("s", 7, waits)


@pytest.mark.parametrize("waits", [0, 1, 3])
@pytest.mark.parametrize("error", [KeyError("x"), TimeoutError(), StopAsyncIteration(), asyncio.CancelledError()], ids=repr)
def test_an_error_of_the_log_comes_through_as_it_is(waits: int, error: BaseException) -> None:
    async def read() -> None:
        for _ in range(waits):
            await asyncio.sleep(0)
        raise error

    async def main() -> None:
        with pytest.raises(type(error)) as caught:
            await log_of(read).read()
        assert caught.value is error

    run(main)


@pytest.mark.parametrize("waits", [0, 1, 3])
def test_a_call_that_hangs_is_cancelled_and_the_log_unavailable(waits: int) -> None:
    cleaned = []

    async def read() -> None:
        for _ in range(waits):
            await asyncio.sleep(0)
        try:
            await asyncio.Event().wait()
        finally:
            # It may wait to clean up.
            await asyncio.sleep(0)
            cleaned.append(True)

    async def main() -> None:
        with pytest.raises(LogUnavailable, match=r"did not answer read\(\) within 0.01 s"):
            await log_of(read, 0.01).read()

    run(main)
    assert cleaned == [True]


@pytest.mark.parametrize("waits", [0, 1, 3])
def test_who_is_cancelled_cancels_the_call(waits: int) -> None:
    cleaned = []

    async def read() -> None:
        for _ in range(waits):
            await asyncio.sleep(0)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cleaned.append(True)
            raise

    async def main() -> None:
        task = asyncio.create_task(log_of(read).read())
        for _ in range(waits + 2):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cleaned == [True]

    run(main)


@pytest.mark.parametrize("waits", [0, 1])
def test_a_call_that_heeds_no_cancel_may_still_answer(waits: int) -> None:
    async def read() -> str:
        for _ in range(waits):
            await asyncio.sleep(0)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return "done"

    async def main() -> None:
        assert await log_of(read, 0.01).read() == "done"

    run(main)


def test_a_call_that_is_dropped_is_closed() -> None:
    cleaned = []

    async def read() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    async def main() -> None:
        call = log_of(read).read()
        call.send(None)
        call.close()
        assert cleaned == [True]

    run(main)
