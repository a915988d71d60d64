"""
Some streams of a log cannot be reached, and others can: those go on, and what waited comes in order, each event once.

None of these tests measures time. A stream is away until others, which must not wait for it, have come to their ends.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, get_args

import pytest

import resumable_stream as rs
from resumable_stream.server import Ending, Generation, Hub, HubLimits, MemoryLog, _backoff
from resumable_stream.server.log import Appended, Behind, Head, Unavailable, Writer, only, reached
from resumable_stream.testing.faulty_log import FaultyLog, Trouble
from resumable_stream.testing.log_contract import span_of

from .test_hub import data_of, read_all
from .virtual import run

HEAD = Head(content_type="text/event-stream", framing="sse")
COMPLETED = Ending(outcome=rs.Outcome.COMPLETED)
EVENTS = 4
VERBS = ["append", "finish", "bells", "read", "renew", "inbox"]
"""What a hub asks of a log for a stream that runs, and one that follows it. Starting it answers by an error."""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backoff, "FIRST_RETRY", 0.0005)
    monkeypatch.setattr(_backoff, "LAST_RETRY", 0.002)


async def until(true: Any) -> None:
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(0.0005)


def expected(name: str, count: int = EVENTS) -> list[str]:
    return [f"{name} {n}" for n in range(count)]


def answer(name: str, count: int = EVENTS) -> Any:
    async def produce(gen: Generation) -> None:
        for n in range(count):
            await gen.send(f"{name} {n}")
            # One trip for each event, so that there are places between them.
            await gen.flush(note=str(n))

    return produce


# --- the log itself -------------------------------------------------------------------------------------------------------


def test_a_faulty_log_answers_for_each_stream_by_itself() -> None:
    async def scenario() -> None:
        log = FaultyLog(MemoryLog(), lose=0.0, double=0.0, swap=0.0)
        a, b, c = [await log.create(name, HEAD, lease=60.0) for name in "abc"]
        assert isinstance(a, Writer) and isinstance(b, Writer) and isinstance(c, Writer)
        for n, trouble in enumerate(get_args(Trouble), start=1):
            log.reach = lambda verb, stream_id: trouble if stream_id == "b" else None  # noqa: B023
            verdicts = await log.append([(writer, span_of(n, n), None) for writer in (a, b, c)])
            assert [verdicts[0], verdicts[2]] == [Appended(n), Appended(n)]
            assert isinstance(verdicts[1], Unavailable) and verdicts[1].stream_id == "b"
            assert [type(each) for each in await log.renew([a, b])] == [type(None), Unavailable]
            # Whether it was done is known to nobody, and whoever sends it again finds out.
            log.reach = None
            assert await log.append([(b, span_of(n, n), None)]) == [Appended(n)]
            log.reach = lambda verb, stream_id: trouble  # noqa: B023
            for call in (log.append([(a, span_of(9, 9), None)]), log.renew([a, b]), log.read("a"), log.bells().add("a")):
                with pytest.raises(rs.LogUnavailable):
                    await call
        assert log.faults["not_done"] and log.faults["reply_lost"]

    run(scenario)


def test_what_cannot_be_reached_at_all_is_an_error() -> None:
    one, all_of_them = rs.LogUnavailable("one", stream_id="a"), rs.LogUnavailable("all")
    assert reached([Appended(1), one, Behind(2)], "abc") == [Appended(1), Unavailable("b", "one"), Behind(2)]
    assert reached([], []) == []
    for found in ([one], [one, all_of_them], [all_of_them, one]):
        with pytest.raises(rs.LogUnavailable) as caught:
            reached(found, "abc"[: len(found)])
        assert caught.value is found[-1] or caught.value is all_of_them
    assert only([Appended(1)]) == Appended(1)
    with pytest.raises(rs.LogUnavailable, match="one") as caught:
        only([Unavailable("b", "one")])
    assert caught.value.stream_id == "b"


# --- every step -------------------------------------------------------------------------------------------------------------


class Steps:
    """One stream is unavailable from its step number `first` on, until somebody says that it is back."""

    def __init__(self, stream_id: str, first: int, trouble: Trouble, *, times: int | None = None) -> None:
        self.stream_id, self.first, self.trouble, self.times = stream_id, first, trouble, times
        self.step = 0
        self.hit: Counter[str] = Counter()
        self.back = False

    def __call__(self, verb: str, stream_id: str) -> Trouble | None:
        if stream_id != self.stream_id or self.back or verb not in VERBS:
            return None
        self.step += 1
        if self.step <= self.first or (self.times is not None and self.hit.total() >= self.times):
            return None
        self.hit[verb] += 1
        return self.trouble


async def through(reach: Steps, *, alone: bool) -> list[str]:
    """What a stream that was away brings to its reader elsewhere; the others have ended before it was back."""
    log = FaultyLog(MemoryLog(), lose=0.0, double=0.0, swap=0.0, reach=reach)
    async with Hub(log, flush=0.0, poll=0.05, lease=60.0) as one, Hub(log, flush=0.0, poll=0.05, lease=60.0) as two:
        names = ["b"] if alone else ["a", "b", "c"]
        for name in names:
            await one.start(name, answer(name))
        reading = {name: asyncio.create_task(follow(two, name)) for name in names}
        for name in names:
            if name != "b":
                assert data_of(await reading[name])[:-1] == expected(name)
        if reach.times is None:
            # It may have come through in time. Otherwise it has been tried, and nobody has waited for it.
            await until(lambda: reach.hit.total() or reading["b"].done())
        reach.back = reach.times is None
        body = await reading["b"]
        assert (await log.log.read("b")).ending == COMPLETED  # type: ignore[union-attr]
        return data_of(body)


async def follow(hub: Hub, name: str) -> bytes:
    """Read it all, from the beginning; a log that cannot be reached is asked again, as by a client."""
    body, after = b"", None
    while True:
        try:
            with await hub.reader(name, after) as reader:
                while chunk := await reader.next():
                    body += chunk
                    after = reader.cursor
                assert reader.ending == COMPLETED, reader.ending
                return body + b"event: end\ndata: {}\n\n"
        except rs.LogUnavailable:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("trouble", get_args(Trouble))
@pytest.mark.parametrize("times", [1, 3, None])
def test_a_stream_that_is_unavailable_from_any_step_on_loses_nothing(trouble: Trouble, times: int | None) -> None:
    async def scenario() -> None:
        met: Counter[str] = Counter()
        for first in range(60):
            reach = Steps("b", first, trouble, times=times)
            found = await through(reach, alone=False)
            assert found[:-1] == expected("b"), (first, reach.hit, found)
            met += reach.hit
            if not reach.hit:
                break
        else:
            raise AssertionError("there are more steps than this test has looked at")
        assert met["append"] and met["finish"] and met["read"] and met["bells"], met

    run(scenario)


@pytest.mark.parametrize("trouble", get_args(Trouble))
def test_the_only_stream_is_unavailable_from_any_step_on(trouble: Trouble) -> None:
    async def scenario() -> None:
        for first in range(60):
            reach = Steps("b", first, trouble, times=4)
            assert (await through(reach, alone=True))[:-1] == expected("b")
            if not reach.hit:
                return
        raise AssertionError("there are more steps than this test has looked at")

    run(scenario)


def test_what_waits_is_bounded_and_whoever_makes_too_much_waits() -> None:
    async def scenario() -> None:
        reach = Steps("b", 0, "not_done")
        log = FaultyLog(MemoryLog(), lose=0.0, double=0.0, swap=0.0, reach=reach)
        sent: Counter[str] = Counter()

        def much(name: str) -> Any:
            async def produce(gen: Generation) -> None:
                for n in range(40):
                    await gen.send(f"{name} {n} " + "x" * 100)
                    sent[name] += 1

            return produce

        async with Hub(log, flush=0.0, limits=HubLimits(pending_bytes=1000)) as hub:
            for name in "abc":
                await hub.start(name, much(name))
            for name in "ac":
                assert len(data_of((await read_all(hub, name))[0])) == 40
            assert sent == {"a": 40, "c": 40, "b": sent["b"]}
            assert 8 <= sent["b"] <= 10
            reach.back = True
            found = data_of((await read_all(hub, "b"))[0])
            assert [each.rsplit(" ", 1)[0] for each in found] == expected("b", 40)

    run(scenario)


def test_a_stream_that_stays_away_ends_here_and_the_others_go_on() -> None:
    async def scenario() -> None:
        reach = Steps("b", 2, "not_done")
        log = FaultyLog(MemoryLog(), lose=0.0, double=0.0, swap=0.0, reach=reach)
        go = asyncio.Event()

        async def waits(gen: Generation) -> None:
            await gen.send("first")
            await go.wait()
            await gen.send("last")

        async with Hub(log, flush=0.0, log_timeout=0.05) as hub:
            for name in "ac":
                await hub.start(name, waits)
            await hub.start("b", answer("b"))
            _, reader = await read_all(hub, "b")
            assert reader.ending == Ending(outcome=rs.Outcome.FAILED, reason="log_unavailable")
            go.set()
            for name in "ac":
                body, reader = await read_all(hub, name)
                assert (data_of(body), reader.ending) == (["first", "last"], COMPLETED)

    run(scenario)


# --- a shard that hangs ---------------------------------------------------------------------------------------------------


class Shards(MemoryLog):
    """The streams whose name begins with "b" lie on a machine that does not answer until `back` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.back = asyncio.Event()
        self.back.set()
        self.asked: Counter[tuple[str, str]] = Counter()

    def shard_of(self, stream_id: str) -> str:
        return stream_id[0]

    async def _hang(self, verb: str, *stream_ids: str) -> None:
        for shard in {each[0] for each in stream_ids}:
            self.asked[verb, shard] += 1
        if any(self.shard_of(each) == "b" for each in stream_ids):
            await self.back.wait()

    async def append(self, batch: Any) -> Any:
        assert len({item.writer.stream_id[0] for item in batch}) == 1, "streams of two shards in one trip"
        await self._hang("append", *(item.writer.stream_id for item in batch))
        return await super().append(batch)

    async def renew(self, writers: Any) -> Any:
        assert len({writer.stream_id[0] for writer in writers}) == 1, "streams of two shards in one trip"
        await self._hang("renew", *(writer.stream_id for writer in writers))
        return await super().renew(writers)

    async def read(self, stream_id: str, *args: Any, **options: Any) -> Any:
        await self._hang("read", stream_id)
        return await super().read(stream_id, *args, **options)

    async def orphans(self, limit: int = 100) -> Any:
        # Its index lies there, too.
        await self._hang("orphans", "b")
        return await super().orphans(limit)


def test_a_shard_that_does_not_answer_holds_up_nobody_else() -> None:
    async def scenario() -> None:
        log = Shards()
        async with Hub(log, flush=0.0, poll=0.02, lease=60.0) as one, Hub(log, flush=0.0, poll=0.02, lease=60.0) as two:
            for name in ("b1", "b2"):
                await one.start(name, answer(name))
            readers = [asyncio.create_task(read_all(two, name)) for name in ("b1", "b2")]
            await until(lambda: all(name in one._generations for name in ("b1", "b2")) and log.asked["append", "b"])
            log.back.clear()
            # Begun and ended meanwhile: producers, readers here and readers elsewhere.
            for turn in range(5):
                for shard in "ac":
                    name = f"{shard}{turn}"
                    await one.start(name, answer(name))
                    for hub in (one, two):
                        assert data_of((await read_all(hub, name))[0]) == expected(name)
            log.back.set()
            for name, reader in zip(("b1", "b2"), readers, strict=True):
                assert data_of((await reader)[0]) == expected(name)

    run(scenario)


def test_a_shard_that_does_not_answer_lets_no_other_lease_run_out() -> None:
    async def scenario() -> None:
        log = Shards()
        log.back.clear()
        stop = asyncio.Event()

        async def silent(gen: Generation) -> None:
            await stop.wait()

        async with Hub(log, flush=0.0, lease=0.3) as hub:
            for name in ("a1", "b1", "c1"):
                await hub.start(name, silent)
            # Sweeps hang as well.
            await until(lambda: all(log.asked["renew", shard] >= 8 for shard in "ac") and log.asked["orphans", "b"] >= 1)
            # One that hangs, and one more when a quiet producer begins to listen.
            assert log.asked["renew", "b"] <= 2
            assert log.asked["orphans", "b"] == 1
            log.back.set()
            await until(lambda: log.asked["renew", "b"] >= 4)
            stop.set()
            for name in ("a1", "b1", "c1"):
                assert (await read_all(hub, name))[1].ending == COMPLETED

    run(scenario)


def test_a_shard_that_is_back_delays_takeovers_of_its_own_streams_alone() -> None:
    async def scenario() -> None:
        log = Shards()
        async with Hub(log, lease=60.0) as hub:
            generations = hub._generations
            assert generations.may_claim("a1") and generations.may_claim("b1")
            generations.log_is_back("b1")
            assert generations.may_claim("a1") and not generations.may_claim("b2")

    run(scenario)


async def words() -> AsyncIterator[str]:
    yield "one"


def test_lanes_of_shards_that_are_gone_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resumable_stream.server.flusher._IDLE", 0.01)

    async def scenario() -> None:
        log = Shards()
        async with Hub(log, flush=0.0) as hub:
            lanes = hub._generations._flusher._lanes
            for turn in range(3):
                for shard in "acdefgh":
                    await hub.start(f"{shard}{turn}", words)
                    assert data_of((await read_all(hub, f"{shard}{turn}"))[0]) == ["one"]
                await until(lambda: not lanes)

    run(scenario)


class Stuck(MemoryLog):
    """It does not say where streams lie. "b" is unavailable at first, and whoever asks for it again gets no answer at all."""

    def __init__(self) -> None:
        super().__init__()
        self.back = asyncio.Event()
        self.asked: Counter[tuple[str, str]] = Counter()

    async def _each(self, verb: str, names: list[str], call: Any) -> Any:
        for name in names:
            self.asked[verb, name] += 1
        if "b" not in names or self.back.is_set():
            return await call(list(range(len(names))))
        if self.asked[verb, "b"] > 1:
            await self.back.wait()
            return await call(list(range(len(names))))
        places = [place for place, name in enumerate(names) if name != "b"]
        found = dict(zip(places, await call(places), strict=True))
        failure = rs.LogUnavailable("away", stream_id="b")
        return reached([found.get(place, failure) for place in range(len(names))], names)

    async def append(self, batch: Any) -> Any:
        below, items = super().append, list(batch)
        return await self._each("append", [item.writer.stream_id for item in items], lambda some: below([items[n] for n in some]))

    async def renew(self, writers: Any) -> Any:
        below, items = super().renew, list(writers)
        return await self._each("renew", [writer.stream_id for writer in items], lambda some: below([items[n] for n in some]))


def test_a_stream_that_was_unavailable_is_asked_for_apart_from_the_others() -> None:
    async def scenario() -> None:
        log = Stuck()
        async with Hub(log, flush=0.0) as hub:
            for name in "abc":
                await hub.start(name, answer(name))
            await until(lambda: log.asked["append", "b"] == 2)
            for name in "acde":
                if name in "de":
                    await hub.start(name, answer(name))
                assert data_of((await read_all(hub, name))[0]) == expected(name)
            assert log.asked["append", "b"] == 2
            log.back.set()
            assert data_of((await read_all(hub, "b"))[0]) == expected("b")

    run(scenario)


def test_the_lease_of_a_stream_that_was_unavailable_is_renewed_apart_from_the_others() -> None:
    async def scenario() -> None:
        log = Stuck()
        stop = asyncio.Event()

        async def silent(gen: Generation) -> None:
            await stop.wait()

        async with Hub(log, flush=0.0, lease=0.3) as hub:
            for name in "abc":
                await hub.start(name, silent)
            await until(lambda: all(log.asked["renew", name] >= 8 for name in "ac"))
            # One that says so and one that hangs, and one more when a quiet producer begins to listen.
            assert log.asked["renew", "b"] <= 3
            log.back.set()
            await until(lambda: log.asked["renew", "b"] >= 5)
            stop.set()
            for name in "abc":
                assert (await read_all(hub, name))[1].ending == COMPLETED

    run(scenario)
