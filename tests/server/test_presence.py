"""How many follow a session: over each log, several instances and processes, also when one of them is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from resumable_stream.framing import SSEDecoder
from resumable_stream.server import Hub, MemoryLog
from resumable_stream.server.hub import key_of
from resumable_stream.server.log import Page, Unknown
from resumable_stream.server.presence import Record, _id_of, read

from ..forked import Forked
from ..stopping import stop_between_writes
from .producing import log_at
from .test_hub_faults import Scripted, away, until
from .test_hub_over_logs import Make, hub_over, make, text  # noqa: F401  fixtures
from .test_sessions import feed_id_key
from .virtual import run, run_in_real_time


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resumable_stream.server.presence.APART", 0.02)
    monkeypatch.setattr("resumable_stream.server.presence._LOOK", 0.02)


class Tab:
    """Somebody who follows a session, and what the tab shows."""

    def __init__(self, hub: Hub, session: str = "chat", after: str | None = None) -> None:
        self.readers: list[int] = []
        self.events: list[Any] = []
        self.ids: list[str] = []
        self._chunks = hub.session(session).follow(after, presence=True)
        self._task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        decoder = SSEDecoder()
        async for chunk in self._chunks:
            for event in decoder.feed(chunk):
                if event.event == "presence":
                    assert not event.own_id
                    data = json.loads(event.data)
                    assert set(data) == {"readers"}
                    self.readers.append(data["readers"])
                else:
                    self.events.append(json.loads(event.data)["data"])
                    self.ids.append(event.own_id or "")

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._chunks.aclose()


async def shows(count: int, *tabs: Tab) -> None:
    """Wait until all of them show so many."""
    await until(lambda: all(tab.readers[-1:] == [count] for tab in tabs))


@contextlib.asynccontextmanager
async def elsewhere(text: str, lease: float, readers: int) -> AsyncIterator[Forked]:  # noqa: F811
    process = await asyncio.to_thread(Forked, "tests.server.following", text, str(lease), str(readers))
    try:
        yield process
    finally:
        process.close()


def test_tabs_at_several_instances_see_how_many_they_are(make: Make) -> None:  # noqa: F811
    async def scenario() -> None:
        async with (
            hub_over(make(), presence=True, poll=0.2) as one,
            hub_over(make(), presence=True, poll=0.2) as two,
            hub_over(make(), presence=True, poll=0.2) as three,
        ):
            first = Tab(one)
            await shows(1, first)
            second, third = Tab(two), Tab(two)
            await shows(3, first, second, third)
            fourth = Tab(three)
            # Who does not ask is neither counted nor told.
            silent = three.session("chat").follow()
            assert (await anext(silent)).startswith(b"retry:")
            other = Tab(three, "another")
            await shows(4, first, second, third, fourth)
            await shows(1, other)
            await third.close()
            await fourth.close()
            await shows(2, first, second)
            # An instance that shuts down says so.
            await two.aclose()
            await shows(1, first)
            await one.session("chat").publish("note", 1)
            got = b""
            while b"note" not in got:
                got += await anext(silent)
            assert b"presence" not in got
            await silent.aclose()
            for tab in (first, other):
                await tab.close()

    run_in_real_time(scenario)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_the_readers_of_a_process_that_dies_are_not_counted_for_ever(text: str, how: signal.Signals) -> None:  # noqa: F811
    """A process that is only paused counts again when it goes on."""

    async def scenario() -> None:
        async with hub_over(log_at(text), presence=True, lease=0.5, poll=0.1) as hub, elsewhere(text, 0.5, 3) as process:
            tab = Tab(hub)
            await shows(4, tab)
            if how == signal.SIGSTOP:
                await stop_between_writes(process.pid, text)
            else:
                process.send_signal(how)
            await shows(1, tab)
            late = Tab(hub)
            await shows(2, tab, late)
            if how == signal.SIGSTOP:
                process.send_signal(signal.SIGCONT)
                await shows(5, tab, late)
            for each in (tab, late):
                await each.close()

    run_in_real_time(scenario)


def test_who_comes_after_all_have_died_is_alone(text: str) -> None:  # noqa: F811
    """The record of the dead is still there, and its readers are left out once they have been silent here for long enough."""

    async def scenario() -> None:
        async with hub_over(log_at(text), presence=True, lease=0.5, poll=0.1) as hub:
            async with elsewhere(text, 0.5, 2) as process:
                key = key_of(_id_of("chat"), "")
                while await hub.log.read(key, None, limit_bytes=0) == Unknown():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                process.kill()
                process.wait(30.0)
            tab = Tab(hub)
            await shows(1, tab)
            await tab.close()

    run_in_real_time(scenario)


def test_presence_is_no_part_of_the_history_and_the_log_does_not_grow(make: Make) -> None:  # noqa: F811
    """Nobody's place moves by it, a replay does not have it, and the record has one event, however often it was written."""

    async def scenario() -> None:
        async with hub_over(make(), presence=True, poll=0.2) as one, hub_over(make(), presence=True) as two:
            tab = Tab(one)
            for n in range(5):
                await two.session("chat").publish("note", n)
                guest = Tab(two)
                await shows(2, tab)
                await guest.close()
                await shows(1, tab)
            await until(lambda: len(tab.events) == 5)
            assert tab.events == list(range(5))
            epoch = tab.ids[0].partition(".")[0]
            assert tab.ids == [f"{epoch}.{n}" for n in range(1, 6)]
            back = Tab(two, after=tab.ids[2])
            await shows(2, tab, back)
            assert back.events == [3, 4]
            page = await one.log.read(feed_id_key(one))
            assert isinstance(page, Page) and page.n == 5 and b"presence" not in b"".join(span.data for span in page.spans)
            key = key_of(_id_of("chat"), "")
            record = await two.log.read(key, None, limit_bytes=0)
            assert isinstance(record, Page) and record.n > 10 and record.oldest == record.n
            for each in (tab, back):
                await each.close()

    run_in_real_time(scenario)


def test_nothing_is_left_where_everybody_has_gone(make: Make) -> None:  # noqa: F811
    async def scenario() -> None:
        async with hub_over(make(), presence=True, lease=0.1, poll=0.1) as one:
            tabs = [Tab(one, f"chat{n}") for n in range(3)]
            await shows(1, *tabs)
            for tab in tabs:
                await tab.close()
            await until(lambda: not one._presence._rooms)
            for n in range(3):
                while await one.log.read(key_of(_id_of(f"chat{n}"), ""), None, limit_bytes=0) != Unknown():  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert await one.log.orphans() == []

    run_in_real_time(scenario)


def test_at_most_one_event_comes_in_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred tabs that come and go at once are few events, and the last one is right."""
    monkeypatch.setattr("resumable_stream.server.presence.APART", 1.0)

    async def scenario() -> None:
        async with Hub(MemoryLog(), presence=True) as one:
            clock = asyncio.get_running_loop().time
            began = clock()
            tab = Tab(one)
            others = [Tab(one) for _ in range(100)]
            await shows(101, tab)
            for other in others:
                await other.close()
            await shows(1, tab)
            assert len(tab.readers) <= 2 + (clock() - began) / 1.0
            await tab.close()

    run(scenario)


@pytest.mark.parametrize("seed", range(3))
def test_any_coming_and_going_ends_at_the_right_number(make: Make, seed: int) -> None:  # noqa: F811
    async def scenario() -> None:
        chance = random.Random(seed)
        async with hub_over(make(), presence=True, poll=0.2) as one, hub_over(make(), presence=True, poll=0.2) as two:
            tabs = [Tab(one)]
            for _ in range(40):
                if chance.random() < 0.6 or len(tabs) == 1:
                    tabs.append(Tab(chance.choice([one, two])))
                else:
                    await tabs.pop(chance.randrange(1, len(tabs))).close()
                await asyncio.sleep(chance.choice([0, 0, 0.01]))
            await shows(len(tabs), *tabs)
            for tab in tabs:
                await tab.close()

    run_in_real_time(scenario)


@pytest.mark.parametrize("call", ["append", "create", "read"])
def test_a_log_that_is_away_changes_no_number(call: str) -> None:
    """Nobody can know then who is there, so nobody is counted out; what has changed here is known."""

    async def scenario() -> None:
        log = Scripted()
        async with Hub(log, presence=True, lease=0.2, poll=0.1) as one, Hub(log, presence=True, lease=0.2, poll=0.1) as two:
            tab, other = Tab(one), Tab(two)
            await shows(2, tab, other)
            log.on[call] = away
            if call == "append":
                log.on["read"] = away
            told = len(tab.readers)
            await asyncio.sleep(1.5)
            assert len(tab.readers) == told or call != "append"
            log.on.clear()
            third = Tab(two)
            await shows(3, tab, other, third)
            for each in (tab, other, third):
                await each.close()

    run(scenario)


def test_a_record_that_the_log_lost_is_made_again(make: Make) -> None:  # noqa: F811
    async def scenario() -> None:
        async with (
            hub_over(make(), presence=True, lease=0.3, poll=0.1) as one,
            hub_over(make(), presence=True, lease=0.3, poll=0.1) as two,
        ):
            tab, other = Tab(one), Tab(two)
            await shows(2, tab, other)
            for _ in range(3):
                await one.log.delete(key_of(_id_of("chat"), ""))
                third = Tab(two)
                await shows(3, tab, other, third)
                await third.close()
                await shows(2, tab, other)
            for each in (tab, other):
                await each.close()

    run_in_real_time(scenario)


def test_it_is_asked_for_twice() -> None:
    """By whoever runs the server, since it costs writes, and by the reader."""

    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:
            with pytest.raises(ValueError, match="presence=True"):
                hub.session("chat").follow(presence=True)
            answer = await hub.session("chat").answer("GET", {}, "presence=1", path="/feed")
            chunks = aiter(answer)
            assert b"retry" in await anext(chunks) and not hub._presence._rooms
            await chunks.aclose()  # type: ignore[attr-defined]
            assert (await hub.session("chat").answer("GET", {}, "presence=yes", path="/feed")).status == 400
        async with Hub(MemoryLog(), presence=True) as hub:
            for query in ("presence=1", "presence=1&view=snapshot", "presence=1&control=1"):
                chunks = aiter(await hub.session("chat").answer("GET", {}, query, path="/feed"))
                got = b""
                while b'event: presence\ndata: {"readers":1}\n\n' not in got:
                    got += await anext(chunks)
                await chunks.aclose()  # type: ignore[attr-defined]
                await until(lambda: not hub._presence._rooms)

    run(scenario)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b"null",
        b'{"a":1}',
        b'{"a":[1]}',
        b'{"a":[-1,2]}',
        b'{"a":["1",2]}',
        b'{"a":[true,2]}',
        b"[" * 9999,
    ],
)
def test_what_is_no_record_says_nothing(data: bytes) -> None:
    assert read(data) == {}


def test_a_record_is_bounded() -> None:
    said = {f"{n:012x}": (1, n + 1) for n in range(5000)}
    span = Record("abcd").next(said)
    kept = read(span.data)
    assert len(kept) == 1000 and min(tick for _, tick in kept.values()) == 4001
    assert len(span.data) < 40_000
