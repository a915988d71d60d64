"""The scripts repeat the rules: any record, any call, compared with the functions that decide for all logs."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis

from resumable_stream import Outcome
from resumable_stream.server import Cursor, Ending, Head, Message, RedisLog, Span
from resumable_stream.server.log import (
    CANCEL,
    Append,
    Appended,
    Done,
    Existing,
    Gone,
    Held,
    Page,
    Record,
    Said,
    SpanRefused,
    Unknown,
    Writer,
    encode_lengths,
    ending_to_json,
    head_to_json,
    judge_append,
    judge_claim,
    judge_create,
    judge_finish,
    judge_read,
    judge_renew,
    judge_restore,
    judge_say,
)

from ..redis_server import RedisServer

HEAD = Head(content_type="a/b", framing="sse", owner="é", retention=1000.0)
ENDINGS = (Ending(outcome=Outcome.COMPLETED), Ending(outcome=Outcome.FAILED, reason="é", error="\n"))
EPOCHS = ("abcd", "bcdefghi")
NOW = 1_700_000_000.0
"""Before the present: a lease that ended then is over."""
FAR = 4_000_000_000.0


def span(first: int, last: int) -> Span:
    return Span(n=last, b=last * 3, lengths=(3,) * (last - first + 1), data=b"abc" * (last - first + 1))


class Case:
    """A record, as it may lie in Redis, and what is asked of it."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.record: Record | None = None
        self.spans: list[Span] = []
        self.messages: list[Message] = []
        if chance.random() < 0.08:
            return
        n = chance.randrange(6)
        cuts = sorted({n, *(chance.randrange(1, n + 1) for _ in range(2))}) if n else []
        self.spans = [span(first + 1, last) for first, last in zip([0, *cuts], cuts, strict=False)]
        for k in range(1, chance.choice((0, 0, 1, 3)) + 1):
            self.messages.append(Message(id=f"m{k}", data=f"é{k}", kind=chance.choice(("message", CANCEL)), k=k))
        note = chance.choice((None, "", "note é"))
        cancels = [message.data for message in self.messages if message.kind == CANCEL]
        self.record = Record(
            head=HEAD,
            epoch=chance.choice(EPOCHS),
            fence=chance.choice((1, 2)),
            n=n,
            b=3 * n,
            c=len(self.spans),
            oldest=1,
            until=chance.choice((0.0, NOW, FAR)),
            ending=chance.choice((None, None, None, *ENDINGS)),
            note=note,
            note_n=0 if note is None else n,
            taken=chance.randrange(3),
            k=len(self.messages),
            cancel=cancels[0] if cancels else None,
            request=chance.choice((None, b"", b"\0req")),
        )
        if self.spans and chance.random() < 0.2:
            # Some were evicted, or all.
            self.spans = self.spans[: chance.choice((0, len(self.spans) - 1))]

    @property
    def entries(self) -> int:
        return len(self.spans)

    def store(self, direct: Any, key: str) -> None:
        direct.delete(key, f"{key}:s", f"{key}:i", f"{key}:x")
        record = self.record
        if record is None:
            return
        fields: dict[str, Any] = {
            "v": 1,
            "epoch": record.epoch,
            "fence": record.fence,
            "n": record.n,
            "b": record.b,
            "c": record.c,
            "oldest": record.oldest,
            "until": round(record.until * 1000),
            "keep": 1_000_000,
            "k": record.k,
            "kc": record.k,
            "tk": record.taken,
            "head": head_to_json(record.head),
            "by": "somebody",
        }
        if record.note is not None:
            fields |= {"note": record.note, "nn": record.note_n}
        if record.ending is not None:
            fields["out"] = ending_to_json(record.ending)
        if record.cancel is not None:
            fields["cancel"] = record.cancel
        if record.request is not None:
            fields["req"] = record.request
        direct.hset(key, mapping=fields)
        for each in self.spans:
            direct.xadd(f"{key}:s", {"b": each.b, "l": encode_lengths(each.lengths), "d": each.data}, id=f"{each.n}-0")
        for message in self.messages:
            direct.xadd(f"{key}:i", {"m": message.id, "kind": message.kind, "d": message.data}, id=f"{message.k}-0")
            direct.hset(f"{key}:x", message.id, message.k)

    def stored(self, direct: Any, key: str) -> dict[str, Any] | None:
        found = {name.decode(): value for name, value in direct.hgetall(key).items()}
        if not found:
            return None
        number = {name: int(found[name]) for name in ("fence", "n", "b", "c", "oldest", "k", "kc")}
        text = {name: found.get(name) for name in ("note", "out", "cancel", "req")}
        return {
            **number,
            **text,
            "tk": int(found.get("tk", 0)),
            "nn": int(found.get("nn", 0)) if "note" in found else 0,
            "until": int(found["until"]),
            "entries": [int(number.partition(b"-")[0]) for number, _ in direct.xrange(f"{key}:s")],
        }

    def expected(self) -> dict[str, Any] | None:
        record = self.record
        if record is None:
            return None
        return {
            "fence": record.fence,
            "n": record.n,
            "b": record.b,
            "c": record.c,
            "oldest": record.oldest,
            "k": record.k,
            "kc": len(self.messages),
            "note": None if record.note is None else record.note.encode(),
            "out": None if record.ending is None else ending_to_json(record.ending).encode(),
            "cancel": None if record.cancel is None else record.cancel.encode(),
            "req": record.request,
            "tk": record.taken,
            "nn": 0 if record.note is None else record.note_n,
            "until": round(record.until * 1000),
            "entries": [each.n for each in self.spans],
        }

    # Each asks the log and the rules, does to the record what the rules allow, and returns both answers.

    def writer(self) -> Writer:
        epoch, fence = self.chance.choice(EPOCHS), self.chance.choice((1, 2))
        if self.record is not None and self.chance.random() < 0.8:
            epoch, fence = self.record.epoch, self.record.fence
        return Writer("s", epoch, fence, self.chance.choice((0.0, 500.0)), 1000.0)

    async def append(self, log: RedisLog) -> tuple[object, object]:
        writer = self.writer()
        first = self.chance.randrange(1, 8)
        last = first + self.chance.randrange(3)
        new: Span | None = span(first, last)
        if self.chance.random() < 0.2:
            new = None
        elif self.chance.random() < 0.15:
            new = Span(n=last, b=3 * last + 1, lengths=(3,) * (last - first + 1), data=b"abc" * (last - first + 1))
        note, taken = self.chance.choice((None, "", "new")), self.chance.choice((None, 0, 5))
        item = Append(writer, new, note, taken, None if new is not None else self.chance.randrange(7))
        try:
            expected: object = judge_append(self.record, self.entries, item)
        except SpanRefused:
            expected = SpanRefused
        if expected is None:
            assert self.record is not None
            self.record.append(item, FAR)
            if new is not None:
                self.spans.append(new)
            expected = Appended(self.record.n, self.record.control)
            self.moved(writer)
        try:
            (found,) = await log.append([item])
        except SpanRefused:
            return SpanRefused, expected
        return found, expected

    async def renew(self, log: RedisLog) -> tuple[object, object]:
        writer = self.writer()
        expected: object = judge_renew(self.record, writer)
        if expected is None:
            assert self.record is not None
            self.moved(writer)
            expected = self.record.control
        return (await log.renew([writer]))[0], expected

    async def finish(self, log: RedisLog) -> tuple[object, object]:
        writer, n, ending = self.writer(), self.chance.randrange(6), self.chance.choice(ENDINGS)
        if self.record is not None and self.chance.random() < 0.6:
            n = self.record.n
        expected: object = judge_finish(self.record, self.entries, writer, n, ending)
        if expected is None:
            assert self.record is not None
            self.record.finish(ending, NOW)
            expected = Done(n)
        return await log.finish(writer, n, ending), expected

    async def claim(self, log: RedisLog) -> tuple[object, object]:
        expected: object = judge_claim(self.record, NOW + 1)
        found = await log.claim("s", lease=500.0)
        if isinstance(expected, Held):
            assert isinstance(found, Held)
            # As it was put there, or as a write just now has set it.
            return 440 < found.seconds <= 500 or abs(found.seconds + time.time() - FAR) < 60, True
        if expected is None:
            assert self.record is not None
            assert isinstance(found, Writer)
            whole = self.entries == self.record.c
            writer = self.record.claim("s", lease=500.0, now=NOW, entries=self.entries, epoch=found.epoch)
            assert whole or found.epoch != "abcd"
            if not whole:
                self.spans.clear()
            self.moved(writer)
            return (found, found.handover), (writer, writer.handover)
        return found, expected

    async def say(self, log: RedisLog) -> tuple[object, object]:
        message = Message(id=f"m{self.chance.randrange(5)}", kind=self.chance.choice(("message", CANCEL)), data="new")
        known = next((each.k for each in self.messages if each.id == message.id), None)
        expected: object = judge_say(self.record, message, known)
        if expected is None:
            assert self.record is not None
            place = self.record.say(message)
            self.messages.append(replace(message, k=place))
            expected = Said(place)
        return await log.say("s", message), expected

    async def create(self, log: RedisLog) -> tuple[object, object]:
        replaces = self.chance.choice((None, *EPOCHS))
        epoch = self.chance.choice((None, *EPOCHS))
        expected: object = judge_create(self.record, replaces=replaces)
        found = await log.create("s", HEAD, lease=500.0, request=b"new", replaces=replaces, epoch=epoch)
        if self.record is not None and self.record.is_of(epoch):
            assert isinstance(found, Writer)
            self.moved(found)
            return found, Writer("s", self.record.epoch, 1)
        if expected is None:
            assert isinstance(found, Writer)
            assert self.record is None or found.epoch != self.record.epoch
            self.record = Record.create(HEAD, found.epoch, lease=500.0, now=NOW, request=b"new")
            self.spans, self.messages = [], []
            self.moved(found)
            expected = Writer("s", found.epoch, 1)
        return found, expected

    async def restore(self, log: RedisLog) -> tuple[object, object]:
        writer = replace(self.writer(), lease=500.0)
        n = self.chance.randrange(5)
        spans = [span(1, n)] if n else []
        inbox = [Message(id="r", k=4)] if self.chance.random() < 0.5 else []
        expected: object = judge_restore(self.record, self.entries, writer)
        if expected is None:
            self.record = Record.restore(writer, HEAD, "cdef", spans, now=NOW, note="again", taken=1, inbox=inbox)
            self.spans, self.messages = spans, inbox
            self.moved(writer)
            expected = Writer("s", "cdef", writer.fence + 1)
        return await log.restore(writer, HEAD, "cdef", spans, note="again", taken=1, inbox=inbox), expected

    async def read(self, log: RedisLog) -> tuple[object, object]:
        after = None
        if self.chance.random() < 0.8:
            epoch = self.record.epoch if self.record is not None and self.chance.random() < 0.8 else "abcd"
            after = Cursor(epoch, self.chance.randrange(8))
        expected: Any = judge_read(self.record, self.entries, after, now=NOW)
        if self.record is not None and self.entries not in (0, self.record.c):
            return None, None  # some are missing, which `page_of` notices
        found = await log.read("s", after)
        if isinstance(expected, int):
            assert isinstance(found, Page)
            assert self.record is not None
            data = b"".join(each.data for each in found.spans)
            return (found.n, found.ending, data), (
                self.record.n,
                self.record.ending,
                b"abc" * max(0, self.record.n - expected),
            )
        if isinstance(expected, Gone):
            assert isinstance(found, Gone)
            return (found.why, found.oldest, found.n, found.epoch), (expected.why, expected.oldest, expected.n, expected.epoch)
        return found, expected

    def moved(self, writer: Writer) -> None:
        """The lease was set: to some time that is not over, or to none."""
        assert self.record is not None
        self.record.until = FAR if writer.lease else 0.0


@pytest.fixture
def direct(redis_server: RedisServer) -> Iterator[Any]:
    with redis.Redis(port=redis_server.port) as client:
        yield client


VERBS = ("append", "append", "append", "renew", "finish", "claim", "say", "create", "restore", "read")


def play(server: RedisServer, direct: Any, seed: int, count: int) -> None:
    async def scenario() -> None:
        log = RedisLog(server.url)
        seen: dict[str, set[str]] = {}
        for number in range(count):
            chance = random.Random(seed * 1_000_000 + number)
            case = Case(chance)
            case.store(direct, "rs:{s}")
            for step in range(3):
                verb = chance.choice(VERBS)
                where = f"case {number} of seed {seed}, step {step}: {verb}"
                found, expected = await getattr(case, verb)(log)
                assert found == expected, f"{where}: the log says {found}, the rules {expected}"
                kind = found if isinstance(found, type) else type(found[0] if isinstance(found, tuple) else found)
                seen.setdefault(verb, set()).add(kind.__name__)
                stored, wanted = case.stored(direct, "rs:{s}"), case.expected()
                if stored is not None and wanted is not None and wanted["until"] == round(FAR * 1000):
                    assert stored["until"] > (NOW + 1) * 1000, where
                    wanted["until"] = stored["until"]
                assert stored == wanted, where
        if count >= 300:
            assert seen["append"] >= {"Appended", "Fenced", "Ended", "Behind", "Lost", "SpanRefused"}
            assert seen["finish"] >= {"Done", "Fenced", "Ended", "Behind", "Lost"}
            assert seen["claim"] >= {"Writer", "bool", "Ended", "Unknown"}
            assert seen["create"] == {"Writer", "Existing"} == seen["restore"]
            assert seen["say"] >= {"Said", "Ended", "Unknown"}
        await log.aclose()

    asyncio.run(scenario())


def test_scripts_and_rules_agree(redis_server: RedisServer, direct: Any) -> None:
    play(redis_server, direct, 1, 300)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 12))
def test_scripts_and_rules_agree_about_many_more(redis_server: RedisServer, direct: Any, seed: int) -> None:
    play(redis_server, direct, seed, 3000)


def test_an_inbox_takes_so_many_messages_and_then_one_cancel(redis_server: RedisServer, direct: Any) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        assert isinstance(await log.create("s", HEAD, lease=500.0), Writer)
        # As if 9,999 had been said and were gone: the record counts those that it holds.
        direct.hset("rs:{s}", "k", 9_999)
        assert await log.say("s", Message(id="a")) == Said(10_000)
        full = await log.say("s", Message(id="b"))
        assert type(full).__name__ == "Full"
        assert await log.say("s", Message(id="a")) == Said(10_000)
        assert await log.say("s", Message(id="c", kind=CANCEL)) == Said(10_001)
        assert type(await log.say("s", Message(id="d", kind=CANCEL))).__name__ == "Full"
        assert [message.id for message in await log.inbox("s", 0)] == ["a", "c"]
        await log.aclose()

    asyncio.run(scenario())


def test_an_existing_stream_is_told_as_the_rules_tell_it(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        writer = await log.create("s", HEAD, lease=500.0)
        assert isinstance(writer, Writer)
        await log.append([(writer, span(1, 4), None)])
        other = Head(content_type="c/d", framing="raw")
        assert await log.create("s", other, lease=500.0) == Existing(writer.epoch, 4, HEAD)
        assert await log.restore(writer, other, "cdef", []) == Existing(writer.epoch, 4, HEAD)
        await log.finish(writer, 4, ENDINGS[1])
        assert await log.create("s", other, lease=500.0) == Existing(writer.epoch, 4, HEAD, ENDINGS[1])
        assert await log.read("t") == Unknown()
        await log.aclose()

    asyncio.run(scenario())
