"""
The requirements on every log of streams, as tests.

Subclass `LogContract` in a test module and implement `make_log()`; a test runner that collects classes named `Test…` finds the
rest:

    class TestMyLog(LogContract):
        lease = 0.5

        @pytest.fixture(autouse=True)
        def _place(self, tmp_path):
            self.path = tmp_path / "my.db"

        def make_log(self):
            return MyLog(self.path)

        def another_log(self, log):
            return MyLog(self.path)

Every test runs in its own event loop, for at most a minute. The module itself imports no test runner.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate, combinations, count
from typing import Any, Final

from .._errors import LogUnavailable
from .._events import Outcome
from ..server.log import (
    CANCEL,
    AlsoRefused,
    Append,
    Appended,
    Behind,
    Bell,
    Bells,
    Control,
    Cursor,
    Done,
    Ended,
    Ending,
    Existing,
    Fenced,
    Gone,
    Handover,
    Head,
    Held,
    Lost,
    Message,
    Page,
    Released,
    Said,
    Span,
    SpanRefused,
    StreamLog,
    Unknown,
    Writer,
)
from ._log_model import COMPLETED, FAILED, HEAD, STEPS, LogActor, LogModel, event_bytes, span_of

__all__ = ["LogContract", "LogModel", "event_bytes", "span_of"]

ODD_IDS: Final = ["a", "A", "-", ".", "..", "~", "_", "0", "x" * 256, "a.b", "a-b", "CON", "rs"]
WRONG_IDS: Final = ["", "a/b", "a b", "a\n", "é", "{a}", "a:b", "\0", "x" * 257]
ODD_TEXTS: Final = ["", " ", "\0", "a\nb\r\n", "é", "🦊" * 10, '{"a": [1, "\\u0000"]}', "x" * 100_000]


def _scenario(test: Callable[[Any, Any], Awaitable[None]]) -> Callable[[Any], None]:
    """Run an async test in an event loop, with its own log."""

    def run(self: LogContract) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(self.longest):
                log = self.make_log()
                self._others = []
                try:
                    await test(self, log)
                finally:
                    for each in [*self._others, log]:
                        await each.aclose()

        asyncio.run(bounded())

    # Not functools.wraps: a test runner would follow `__wrapped__` and take `log` for a fixture.
    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@contextmanager
def _raises(*kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kinds:
        return
    raise AssertionError(f"{' or '.join(kind.__name__ for kind in kinds)} was not raised")


class LogContract:
    """
    The tests. Override `make_log()`, and anything else that differs.

    Attributes:
        lease: Seconds of the leases in tests that wait for one to end. Override it together with `pass_time()`: a clock that the
            test moves can have long leases, a real one needs short ones, but long enough for a busy machine.
        longest: Most seconds for one test.
        one_step: An append to another stream is one step with `create` and `finish`. False for a log whose streams are spread
            over several machines.
    """

    lease: float = 0.5
    longest: float = 60.0
    one_step: bool = True
    _others: list[StreamLog]

    # Provided by a log

    def make_log(self) -> StreamLog:
        """Make a log without streams; called once per test, in its event loop."""
        raise NotImplementedError

    def another_log(self, log: StreamLog) -> StreamLog:
        """Make another log object over the same streams, as in another process; by default it is the same object."""
        return log

    async def pass_time(self, log: StreamLog, seconds: float) -> None:
        """Let time pass on the clock of the log."""
        await asyncio.sleep(seconds)

    async def lose_spans(self, log: StreamLog, stream_id: str) -> bool:
        """Remove the spans of a stream without the log's knowledge, as an eviction does; False if that cannot happen."""
        return False

    async def damage(self, log: StreamLog, stream_id: str) -> bool:
        """Make the last stored span of a stream unreadable; False if that cannot happen."""
        return False

    # Helpers

    def _another(self, log: StreamLog) -> StreamLog:
        other = self.another_log(log)
        if other is not log:
            self._others.append(other)
        return other

    async def _begin(self, log: StreamLog, stream_id: str = "s", *, lease: float = 600.0, last: int = 0, **head: Any) -> Writer:
        """Create a stream, with the events 1 to `last` in spans of three."""
        writer = await log.create(stream_id, replace(HEAD, **head), lease=lease)
        assert isinstance(writer, Writer)
        for first in range(1, last + 1, 3):
            span = span_of(first, min(first + 2, last))
            assert await log.append([(writer, span, None)]) == [Appended(span.n)]
        return writer

    async def _page(self, log: StreamLog, stream_id: str = "s", after: Cursor | None = None, **options: Any) -> Page:
        page = await log.read(stream_id, after, **options)
        assert isinstance(page, Page), page
        return page

    async def _rest(self, log: StreamLog, after: Cursor | None, stream_id: str = "s", **options: Any) -> bytes:
        """Everything after a cursor, page by page, checked for holes."""
        found = b""
        for _ in range(100_000):
            page = await self._page(log, stream_id, after, **options)
            n = after.n if after is not None else 0
            for span in page.spans:
                assert span.first == n + 1, f"a span from {span.first} follows event {n}"
                n = span.n
                found += span.data
            if not page.spans:
                assert n >= page.n
                return found
            after = Cursor(page.epoch, n)
        raise AssertionError("a reader that gets no further")

    async def _claim(self, log: StreamLog, stream_id: str = "s", **options: Any) -> tuple[Writer, Handover]:
        writer = await log.claim(stream_id, **{"lease": 600.0, **options})
        assert isinstance(writer, Writer), writer
        assert writer.handover is not None
        return writer, writer.handover

    async def _released(self, log: StreamLog, writer: Writer) -> None:
        (verdict,) = await log.renew([replace(writer, lease=0.0)])
        assert verdict is None or isinstance(verdict, Control), verdict

    async def _hear(self, bells: Bells, fits: Callable[[Bell], bool]) -> Bell:
        """Wait for a bell that fits; other bells may come before it."""
        while True:
            bell = await anext(bells.__aiter__())
            if fits(bell):
                return bell

    # Create or join

    @_scenario
    async def test_it_is_a_log(self, log: StreamLog) -> None:
        assert isinstance(log, StreamLog)
        bells = log.bells()
        assert isinstance(bells, Bells)
        await bells.aclose()

    @_scenario
    async def test_a_created_stream_is_empty_and_has_its_head(self, log: StreamLog) -> None:
        writer = await log.create("s", HEAD, lease=600.0, request=b"\0{}\xff")
        assert isinstance(writer, Writer)
        assert (writer.stream_id, writer.fence, writer.lease, writer.retention) == ("s", 1, 600.0, HEAD.retention)
        page = await self._page(self._another(log))
        assert (page.head, page.epoch, page.oldest, page.n, page.b) == (HEAD, writer.epoch, 1, 0, 0)
        assert (page.spans, page.ending) == ((), None)
        assert 0.0 < page.lease_left <= 600.0

    @_scenario
    async def test_any_head_comes_back(self, log: StreamLog) -> None:
        heads = [
            Head(content_type="application/octet-stream", framing="raw"),
            Head(content_type="application/x-ndjson", framing="ndjson", owner="\0", session="", retention=1.5),
            Head(content_type="a/b", framing="sse", headers=tuple((f"x-{n}", "v" * n) for n in range(100))),
        ]
        for number, head in enumerate(heads):
            await log.create(f"s{number}", head, lease=600.0)
        for number, head in enumerate(heads):
            assert (await self._page(self._another(log), f"s{number}")).head == head

    @_scenario
    async def test_the_second_to_create_joins(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=4)
        other = Head(content_type="a/b", framing="raw", fingerprint="ff", owner="somebody else")
        for each in (log, self._another(log)):
            found = await each.create("s", other, lease=600.0, request=b"other")
            assert found == Existing(writer.epoch, 4, HEAD, None)
        await log.finish(writer, 4, FAILED)
        assert await log.create("s", other, lease=600.0) == Existing(writer.epoch, 4, HEAD, FAILED)

    @_scenario
    async def test_of_many_that_create_at_once_one_becomes_the_writer(self, log: StreamLog) -> None:
        logs = [log, self._another(log), self._another(log)]
        for number in range(10):
            heads = [replace(HEAD, fingerprint=str(caller)) for caller in range(12)]
            found = await asyncio.gather(
                *(logs[caller % 3].create(f"s{number}", head, lease=600.0) for caller, head in enumerate(heads))
            )
            (winner,) = [caller for caller, each in enumerate(found) if isinstance(each, Writer)]
            joined = {(each.epoch, each.head) for each in found if isinstance(each, Existing)}
            assert joined == {(each.epoch, heads[winner]) for each in found if isinstance(each, Writer)}

    @_scenario
    async def test_streams_have_epochs_of_their_own(self, log: StreamLog) -> None:
        epochs = [(await self._begin(log, f"s{number}")).epoch for number in range(20)]
        for number in range(20):
            await log.delete(f"s{number}")
            epochs.append((await self._begin(log, f"s{number}")).epoch)
        # At least four letters: 40 of 2**20 collide once in a thousand runs, and two of one id hardly ever.
        assert all(before != after for before, after in zip(epochs[:20], epochs[20:], strict=True))

    @_scenario
    async def test_an_ended_stream_can_be_replaced_by_its_epoch(self, log: StreamLog) -> None:
        old = await self._begin(log, last=4)
        await log.say("s", Message(id="m"))
        assert isinstance(await log.create("s", HEAD, lease=600.0, replaces=old.epoch), Existing)
        await log.finish(old, 4, FAILED)
        assert isinstance(await log.create("s", HEAD, lease=600.0, replaces="zzzzz"), Existing)
        found = await asyncio.gather(*(self._another(log).create("s", HEAD, lease=600.0, replaces=old.epoch) for _ in range(5)))
        (writer,) = [each for each in found if isinstance(each, Writer)]
        assert writer.epoch != old.epoch
        page = await self._page(log)
        assert (page.epoch, page.n, page.b, page.ending) == (writer.epoch, 0, 0, None)
        assert await log.inbox("s", 0) == []
        gone = await log.read("s", Cursor(old.epoch, 4))
        assert isinstance(gone, Gone)
        assert gone.why == "other_epoch"
        assert await log.append([(old, span_of(1, 1), None)]) == [Fenced(writer.token)]
        assert await log.append([(writer, span_of(1, 1), None)]) == [Appended(1)]

    @_scenario
    async def test_whoever_creates_again_with_the_same_epoch_is_the_same(self, log: StreamLog) -> None:
        """The first call got no reply. The stream is its caller's at once, with a full lease, and nobody else's."""
        first = await log.create("s", HEAD, lease=0.3, request=b"1", epoch="abcdefgh")
        assert isinstance(first, Writer)
        assert (first.token, first.lease) == ("abcdefgh.1", 0.3)
        for again in range(3):
            mine = await self._another(log).create("s", HEAD, lease=600.0, request=b"1", epoch="abcdefgh")
            assert mine == first and isinstance(mine, Writer) and mine.lease == 600.0
            for other in (None, "bcdefghi"):
                found = await log.create("s", HEAD, lease=600.0, epoch=other)
                assert isinstance(found, Existing) and found.epoch == "abcdefgh"
            held = await log.claim("s", lease=1.0)
            assert isinstance(held, Held) and held.seconds > 500.0, again
        assert await log.append([(first, span_of(1, 1), None)]) == [Appended(1)]
        # It had its reply: a caller who asks now is another one.
        assert isinstance(await log.create("s", HEAD, lease=600.0, epoch="abcdefgh"), Existing)
        await log.finish(first, 1, FAILED)
        assert isinstance(await log.create("s", HEAD, lease=600.0, epoch="abcdefgh"), Existing)
        # A stream that replaces another one always gets another epoch.
        new = await log.create("s", HEAD, lease=600.0, replaces="abcdefgh", epoch="abcdefgh")
        assert isinstance(new, Writer) and new.epoch != "abcdefgh"
        try:
            await log.create("t", HEAD, lease=600.0, epoch="no epoch")
        except ValueError:
            assert await log.read("t") == Unknown()
        else:
            raise AssertionError("'no epoch' is not an epoch, but was accepted")

    @_scenario
    async def test_a_stream_that_was_claimed_is_no_longer_that_of_who_created_it(self, log: StreamLog) -> None:
        first = await log.create("s", HEAD, lease=600.0, epoch="abcdefgh")
        assert isinstance(first, Writer)
        await self._released(log, first)
        claimed, _ = await self._claim(log)
        assert isinstance(await log.create("s", HEAD, lease=600.0, epoch="abcdefgh"), Existing)
        assert await log.append([(claimed, span_of(1, 1), None)]) == [Appended(1)]

    @_scenario
    async def test_any_id_is_a_stream_of_its_own(self, log: StreamLog) -> None:
        for number, stream_id in enumerate(ODD_IDS, 1):
            await self._begin(log, stream_id, last=number)
        other = self._another(log)
        for number, stream_id in enumerate(ODD_IDS, 1):
            assert await self._rest(other, None, stream_id) == b"".join(event_bytes(n) for n in range(1, number + 1))

    @_scenario
    async def test_what_cannot_be_an_id_is_refused_everywhere(self, log: StreamLog) -> None:
        bells = log.bells()
        for stream_id in WRONG_IDS:
            for call in (
                log.create(stream_id, HEAD, lease=600.0),
                log.read(stream_id),
                log.claim(stream_id, lease=600.0),
                log.say(stream_id, Message(id="m")),
                log.inbox(stream_id, 0),
                log.compact(stream_id),
                log.delete(stream_id),
                bells.add(stream_id),
            ):
                with _raises(ValueError):
                    await call
        await bells.aclose()
        assert await log.orphans() == []

    @_scenario
    async def test_nothing_is_known_of_a_stream_that_was_never_created(self, log: StreamLog) -> None:
        writer = Writer("s", "abcd", 1)
        assert await log.read("s") == Unknown()
        assert await log.read("s", Cursor("abcd", 3)) == Unknown()
        assert await log.claim("s", lease=600.0) == Unknown()
        assert await log.say("s", Message(id="m")) == Unknown()
        assert await log.inbox("s", 0) == []
        assert await log.append([(writer, span_of(1, 1), None)]) == [Lost()]
        assert await log.finish(writer, 0, COMPLETED) == Lost()
        assert await log.renew([writer]) == [Lost()]
        await log.compact("s")
        await log.delete("s")
        assert await log.read("s") == Unknown()

    # The verdicts of append

    @_scenario
    async def test_events_come_back_as_they_were_appended(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=7)
        page = await self._page(self._another(log))
        assert page.spans == (span_of(1, 3), span_of(4, 6), span_of(7, 7))
        assert (page.n, page.b, page.epoch) == (7, span_of(7, 7).b, writer.epoch)

    @_scenario
    async def test_an_exact_span_is_stored_only_where_the_log_ends(self, log: StreamLog) -> None:
        """Of several who append as one writer, the first must not be taken for the other."""
        writer = await self._begin(log, last=3)
        for first, last in ((1, 1), (1, 3), (3, 3), (3, 4), (5, 5)):
            assert await log.append([Append(writer, span_of(first, last), exact=True)]) == [Behind(3)]
        assert await log.append([Append(writer, span_of(4, 4), exact=True)]) == [Appended(4)]
        assert await log.append([Append(writer, span_of(4, 4), exact=True)]) == [Behind(4)]
        assert await log.append([Append(replace(writer, fence=2), span_of(5, 5), exact=True)]) == [Fenced(writer.token)]
        assert await self._rest(log, None) == b"".join(event_bytes(n) for n in range(1, 5))
        await log.finish(writer, 4, COMPLETED)
        assert await log.append([Append(writer, span_of(5, 5), exact=True)]) == [Ended(COMPLETED, 4)]
        assert await log.append([Append(replace(writer, stream_id="t"), span_of(1, 1), exact=True)]) == [Lost()]

    @_scenario
    async def test_many_append_to_one_log_with_one_writer(self, log: StreamLog) -> None:
        writer = await self._begin(log)

        async def add(each: StreamLog, times: int) -> None:
            n = 0
            while times:
                (verdict,) = await each.append([Append(writer, span_of(n + 1, n + 1), exact=True)])
                assert isinstance(verdict, Appended | Behind)
                times -= isinstance(verdict, Appended)
                n = verdict.n

        await asyncio.gather(*(add(self._another(log), 5) for _ in range(6)))
        assert await self._rest(log, None) == b"".join(event_bytes(n) for n in range(1, 31))

    @_scenario
    async def test_an_append_that_trims_drops_the_front_in_one_step(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=9)  # spans of three
        with _raises(ValueError):
            Append(writer, span_of(10, 10), trims=11)
        assert await log.append([Append(writer, span_of(11, 11), exact=True, trims=7)]) == [Behind(9)]
        assert (await self._page(log)).oldest == 1
        assert await log.append([Append(writer, span_of(10, 11), exact=True, trims=7)]) == [Appended(11)]
        for other in (log, self._another(log)):
            page = await self._page(other, after=Cursor(writer.epoch, 6))
            assert (page.oldest, page.n, [span.first for span in page.spans]) == (7, 11, [7, 10])
            for after in (None, Cursor(writer.epoch, 0), Cursor(writer.epoch, 5)):
                gone = await other.read("s", after)
                assert isinstance(gone, Gone)
                assert (gone.why, gone.oldest, gone.n) == ("trimmed", 7, 11)
        # An event that shares a span with it is kept, but not offered.
        assert await log.append([Append(writer, span_of(12, 12), trims=8)]) == [Appended(12)]
        assert (await self._page(log, after=Cursor(writer.epoch, 7))).oldest == 8
        assert isinstance(await log.read("s", Cursor(writer.epoch, 6)), Gone)
        assert await self._rest(log, Cursor(writer.epoch, 7)) == b"".join(event_bytes(n) for n in range(8, 13))
        # Nothing comes back, and a repeated append changes nothing.
        assert await log.append([Append(writer, span_of(12, 12), trims=8)]) == [Appended(12)]
        assert await log.append([Append(writer, span_of(13, 13), trims=2)]) == [Appended(13)]
        assert await log.append([Append(writer, span_of(14, 14), trims=14)]) == [Appended(14)]
        page = await self._page(log, after=Cursor(writer.epoch, 13))
        assert (page.oldest, [span.first for span in page.spans]) == (14, [14])
        assert await log.append([(writer, span_of(15, 15), None)]) == [Appended(15)]
        assert await log.finish(writer, 15, COMPLETED) == Done(15)
        await log.compact("s")
        assert await self._rest(log, Cursor(writer.epoch, 13)) == event_bytes(14) + event_bytes(15)

    @_scenario
    async def test_a_stream_is_created_and_another_one_grows_or_neither(self, log: StreamLog) -> None:
        feed = await self._begin(log, "feed", last=3)
        for wrong in (Append(feed, span_of(4, 4)), Append(feed, span_of(4, 4), exact=True)):
            with _raises(ValueError):
                await log.create("s" if not wrong.exact else "feed", HEAD, lease=600.0, also=wrong)
        for also, verdict in (
            (Append(feed, span_of(5, 5), exact=True), Behind(3)),
            (Append(feed, span_of(3, 3), exact=True), Behind(3)),
            (Append(replace(feed, fence=2), span_of(4, 4), exact=True), Fenced(feed.token)),
            (Append(replace(feed, stream_id="none"), span_of(4, 4), exact=True), Lost()),
        ):
            assert await log.create("s", HEAD, lease=600.0, also=also) == AlsoRefused(verdict)
            assert await log.read("s") == Unknown()
        assert isinstance(await log.create("s", HEAD, lease=600.0, also=Append(feed, span_of(4, 4), exact=True)), Writer)
        assert await self._rest(log, None, "feed") == b"".join(event_bytes(n) for n in range(1, 5))
        # An existing stream is joined, and nothing is appended again.
        assert isinstance(await log.create("s", HEAD, lease=600.0, also=Append(feed, span_of(5, 5), exact=True)), Existing)
        assert (await self._page(log, "feed")).n == 4

    @_scenario
    async def test_a_stream_ends_and_another_one_grows_or_neither(self, log: StreamLog) -> None:
        feed, writer = await self._begin(log, "feed", last=3), await self._begin(log, last=2)
        for also in (Append(feed, span_of(4, 4)), Append(writer, span_of(3, 3), exact=True)):
            with _raises(ValueError):
                await log.finish(writer, 2, COMPLETED, also=also)
        ahead, fits = Append(feed, span_of(5, 5), exact=True), Append(feed, span_of(4, 4), exact=True)
        assert await log.finish(writer, 1, COMPLETED, also=fits) == Behind(2)
        assert await log.finish(replace(writer, fence=2), 2, COMPLETED, also=fits) == Fenced(writer.token)
        assert (await self._page(log, "feed")).n == 3
        assert await log.finish(writer, 2, COMPLETED, also=ahead) == AlsoRefused(Behind(3))
        if self.one_step:
            assert (await self._page(log)).ending is None
        assert await log.finish(writer, 2, COMPLETED, also=fits) == Done(2)
        assert ((await self._page(log)).ending, (await self._page(log, "feed")).n) == (COMPLETED, 4)
        # The reply may have been lost: then the other stream has the append already.
        assert await log.finish(writer, 2, COMPLETED, also=fits) == AlsoRefused(Behind(4))
        assert await log.finish(writer, 2, COMPLETED) == Done(2)
        assert await log.finish(writer, 2, FAILED, also=ahead) == Ended(COMPLETED, 2)
        assert (await self._page(log, "feed")).n == 4

    @_scenario
    async def test_bells_ring_for_what_was_also_appended(self, log: StreamLog) -> None:
        bells = self._another(log).bells()
        feed = await self._begin(log, "feed")
        await bells.add("feed")
        writer = await log.create("s", HEAD, lease=600.0, also=Append(feed, span_of(1, 1), exact=True))
        assert isinstance(writer, Writer)
        await self._hear(bells, lambda bell: bell.id == "feed" and bell.n in (1, None))
        await log.finish(writer, 0, COMPLETED, also=Append(feed, span_of(2, 2), exact=True))
        await self._hear(bells, lambda bell: bell.id == "feed" and bell.n in (2, None))
        assert await log.append([Append(feed, span_of(3, 3), exact=True, trims=3)]) == [Appended(3)]
        await self._hear(bells, lambda bell: bell.id == "feed" and (bell.n, bell.oldest) in ((3, 3), (None, None)))
        await bells.aclose()

    @_scenario
    async def test_any_bytes_come_back(self, log: StreamLog) -> None:
        writer = await self._begin(log)
        events = [bytes(range(256)), b"\0", b"\xff\xfe", b"\r\n\r\n", random.Random(3).randbytes(1 << 20), b"end"]
        b = 0
        for n, event in enumerate(events, 1):
            b += len(event)
            assert await log.append([(writer, Span(n=n, b=b, lengths=(len(event),), data=event), None)]) == [Appended(n)]
        assert await self._rest(self._another(log), None) == b"".join(events)
        assert (await self._page(log, limit_bytes=0)).b == b

    @_scenario
    async def test_a_span_sent_again_is_stored_once(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=7)
        for first, last in ((7, 7), (4, 6), (1, 3), (2, 5), (7, 7)):
            assert await log.append([(writer, span_of(first, last), None)]) == [Appended(7)]
        assert await self._rest(log, None) == b"".join(event_bytes(n) for n in range(1, 8))
        # Split differently, as when a writer has gathered more since the lost reply.
        assert await log.append([(writer, span_of(7, 9), None)]) == [Behind(7)]
        assert await log.append([(writer, span_of(8, 9), None)]) == [Appended(9)]
        assert await self._rest(log, None) == b"".join(event_bytes(n) for n in range(1, 10))

    @_scenario
    async def test_a_span_that_leaves_something_out_is_not_stored(self, log: StreamLog) -> None:
        writer = await self._begin(log)
        assert await log.append([(writer, span_of(2, 2), None)]) == [Behind(0)]
        await log.append([(writer, span_of(1, 3), None)])
        assert await log.append([(writer, span_of(5, 6), "note")]) == [Behind(3)]
        assert await self._rest(log, None) == span_of(1, 3).data
        await self._released(log, writer)
        assert (await self._claim(log))[1].note is None

    @_scenario
    async def test_a_span_whose_bytes_do_not_follow_is_an_error_and_not_stored(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=3)
        other = await self._begin(log, "other")
        good = span_of(4, 5)
        for wrong in (replace(good, b=good.b + 1), replace(good, b=good.b - 1), replace(span_of(1, 3), b=span_of(1, 3).b + 5)):
            with _raises(SpanRefused):
                await log.append([(other, span_of(1, 1), None), (writer, wrong, "note")])
        page = await self._page(log)
        assert (page.n, page.b, page.spans) == (3, span_of(1, 3).b, (span_of(1, 3),))
        # Neither the other stream of the batch nor this one is harmed.
        assert await log.append([(other, span_of(1, 1), None), (writer, good, None)]) == [Appended(1), Appended(5)]
        await self._released(log, writer)
        assert (await self._claim(log))[1].note is None

    @_scenario
    async def test_after_another_epoch_or_fence_nothing_is_stored(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=3)
        elsewhere = replace(writer, epoch="abcdefg" if writer.epoch != "abcdefg" else "bcdefgh")
        for wrong in (elsewhere, replace(writer, fence=2)):
            assert await log.append([(wrong, span_of(4, 4), "note")]) == [Fenced(writer.token)]
            assert await log.append([(wrong, None, "note", None, 3)]) == [Fenced(writer.token)]  # type: ignore[list-item]
            assert await log.finish(wrong, 3, FAILED) == Fenced(writer.token)
            assert await log.renew([wrong]) == [Fenced(writer.token)]
        assert await self._rest(log, None) == span_of(1, 3).data
        assert await log.append([(writer, span_of(4, 4), None)]) == [Appended(4)]

    @_scenario
    async def test_nothing_follows_an_end(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=3)
        assert await log.finish(writer, 3, FAILED) == Done(3)
        for span in (span_of(4, 4), span_of(1, 3)):
            assert await log.append([(writer, span, "note")]) == [Ended(FAILED, 3)]
        assert await log.append([Append(writer, None, "note", n=3)]) == [Ended(FAILED, 3)]
        assert await log.renew([writer]) == [Ended(FAILED, 3)]
        assert await log.claim("s", lease=600.0) == Ended(FAILED, 3)
        assert await self._rest(log, None) == span_of(1, 3).data

    @_scenario
    async def test_a_stream_ends_once(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=3)
        for n in (0, 2, 4):
            assert await log.finish(writer, n, COMPLETED) == Behind(3)
        assert await log.finish(writer, 3, COMPLETED) == Done(3)
        assert await log.finish(writer, 3, COMPLETED) == Done(3)
        assert await log.finish(writer, 3, FAILED) == Ended(COMPLETED, 3)
        assert (await self._page(log)).ending == COMPLETED

    @_scenario
    async def test_a_stream_without_events_can_end(self, log: StreamLog) -> None:
        writer = await self._begin(log)
        assert await log.finish(writer, 0, FAILED) == Done(0)
        page = await self._page(self._another(log))
        assert (page.n, page.spans, page.ending, page.running_until) == (0, (), FAILED, None)
        assert (await self._page(log, after=Cursor(writer.epoch, 1))).ending == FAILED

    @_scenario
    async def test_any_ending_comes_back(self, log: StreamLog) -> None:
        for number, outcome in enumerate(Outcome):
            reason = ["é", None, "x" * 256, "", "a\nb"][number]
            ending = Ending(outcome=outcome, reason=reason, error=ODD_TEXTS[number], applied=number * 1000)
            await log.finish(await self._begin(log, f"s{number}"), 0, ending)
            found = (await self._page(self._another(log), f"s{number}")).ending
            assert found == ending and found is not None and found.applied == ending.applied

    @_scenario
    async def test_a_batch_carries_many_streams(self, log: StreamLog) -> None:
        writers = [await self._begin(log, f"s{number}") for number in range(30)]
        await log.finish(writers[3], 0, COMPLETED)
        await log.delete("s5")
        batch = [(writer, span_of(1, 1 + number % 3), f"note {number}") for number, writer in enumerate(writers)]
        expected: list[object] = [Appended(1 + number % 3) for number in range(30)]
        expected[3], expected[5] = Ended(COMPLETED, 0), Lost()
        assert await log.append(batch) == expected
        assert await log.append([]) == []
        # Several spans of one stream keep their order.
        items = [(writers[0], span_of(n, n), None) for n in (2, 3, 4)]
        assert await log.append([items[0], (writers[1], span_of(3, 3), None), *items[1:], (writers[0], span_of(6, 6), None)]) == [
            Appended(2),
            Appended(3),
            Appended(3),
            Appended(4),
            Behind(4),
        ]
        assert await self._rest(log, None, "s0") == b"".join(event_bytes(n) for n in range(1, 5))

    # Every interleaving

    @_scenario
    async def test_every_interleaving_of_two_writers(self, log: StreamLog) -> None:
        """924 orders of twice six steps, once with leases that are always over and once with one that lasts."""
        first = ("create", "append", "append_two", "again", "complete", "read")
        second = ("claim", "append", "say", "renew", "fail", "create")
        for lease in (0.0, 600.0):
            for number, places in enumerate(combinations(range(12), 6)):
                turns = [0 if place in places else 1 for place in range(12)]
                await self._play(log, f"i{int(lease)}.{number}", (first, second), turns, lease=lease)

    @_scenario
    async def test_random_steps_of_two_writers(self, log: StreamLog) -> None:
        chance = random.Random(2024)
        for number in range(400):
            steps = tuple(tuple(chance.choice(STEPS) for _ in range(6)) for _ in range(2))
            turns = chance.sample([0] * 6 + [1] * 6, 12)
            await self._play(
                log, f"r.{number}", (("create", *steps[0]), steps[1]), [0, *turns], lease=chance.choice((0.0, 600.0))
            )

    async def _play(
        self, log: StreamLog, stream_id: str, scripts: tuple[tuple[str, ...], ...], turns: list[int], *, lease: float
    ) -> None:
        model = LogModel(claimable=lease == 0.0)
        actors = [LogActor(log, model, stream_id, lease=lease, name=name) for name in "ab"]
        steps = [iter(script) for script in scripts]
        for turn in turns:
            await actors[turn].take(next(steps[turn]))
        await actors[0].take("read")

    # Reading

    @_scenario
    async def test_every_cursor_gets_the_rest(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=20)
        other = self._another(log)
        for compacted in (False, True):
            for n in range(21):
                rest = b"".join(event_bytes(each) for each in range(n + 1, 21))
                for limit in (1, 30, 100, 1 << 20):
                    assert await self._rest(other, Cursor(writer.epoch, n), limit_bytes=limit) == rest
            if not compacted:
                await log.finish(writer, 20, COMPLETED)
                await log.compact("s")

    @_scenario
    async def test_random_spans_and_cursors(self, log: StreamLog) -> None:
        chance = random.Random(77)
        streams = 6
        other = self._another(log)
        events: list[list[bytes]] = [[] for _ in range(streams)]
        writers = [await self._begin(log, f"s{number}") for number in range(streams)]
        sent: list[list[Span]] = [[] for _ in range(streams)]
        for _ in range(120):
            batch = []
            for number in chance.sample(range(streams), chance.randrange(1, streams + 1)):
                if sent[number] and chance.random() < 0.2:
                    batch.append((writers[number], chance.choice(sent[number][-3:]), None))  # its reply was lost
                new = [chance.randbytes(chance.choice((1, 5, 200, 3000))) for _ in range(chance.choice((1, 1, 3, 20)))]
                events[number] += new
                size = sum(map(len, events[number]))
                span = Span(n=len(events[number]), b=size, lengths=tuple(map(len, new)), data=b"".join(new))
                sent[number].append(span)
                batch.append((writers[number], span, None))
            verdicts = await log.append(batch)
            for (writer, span, _), verdict in zip(batch, verdicts, strict=True):
                assert isinstance(verdict, Appended)
                assert verdict.n >= span.n, writer
            number = chance.randrange(streams)
            after = chance.randrange(len(events[number]) + 1)
            await self._compare(other, f"s{number}", writers[number].epoch, events[number], after, chance)
        for number, writer in enumerate(writers):
            assert await log.finish(writer, len(events[number]), COMPLETED) == Done(len(events[number]))
            await log.compact(f"s{number}")
            for after in chance.sample(range(len(events[number]) + 1), 10):
                await self._compare(other, f"s{number}", writer.epoch, events[number], after, chance)

    async def _compare(
        self, log: StreamLog, stream_id: str, epoch: str, events: list[bytes], after: int, chance: random.Random
    ) -> None:
        limit = chance.choice((1, 700, 10_000, 4 << 20))
        place = after
        sizes = list(accumulate(map(len, events), initial=0))
        while True:
            page = await self._page(log, stream_id, Cursor(epoch, place), limit_bytes=limit)
            assert page.n == len(events)
            assert page.b == sizes[-1]
            if not page.spans:
                assert place == page.n
                return
            assert len(page.spans) == 1 or sum(len(span.data) for span in page.spans) <= limit
            for span in page.spans:
                assert span.first == place + 1
                assert span.start == sizes[place]
                assert span.lengths == tuple(map(len, events[place : span.n]))
                assert span.data == b"".join(events[place : span.n])
                place = span.n
            if limit < 10_000 and place - after > 10:
                return  # enough small pages

    @_scenario
    async def test_a_page_is_no_larger_than_asked_for(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=20)
        for limit in (1, 10, 50, 200):
            page = await self._page(log, limit_bytes=limit)
            size = sum(len(span.data) for span in page.spans)
            assert size <= limit or sum(len(span.lengths) for span in page.spans) == 1
            assert page.n == 20
        state = await self._page(log, limit_bytes=0)
        assert (state.spans, state.n, state.epoch) == ((), 20, writer.epoch)

    @_scenario
    async def test_how_a_stream_stands_includes_its_note(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=3)
        assert (await self._page(log, limit_bytes=0)).note is None
        await log.append([Append(writer, span_of(4, 4), note="Ü")])
        for reader in (log, self._another(log)):
            state = await self._page(reader, limit_bytes=0)
            assert (state.note, state.n) == ("Ü", 4)
            # Readers of events do not need it.
            assert (await self._page(reader)).note is None
        await log.append([Append(writer, None, note="later", n=4)])
        await log.finish(writer, 4, COMPLETED)
        await log.compact("s")
        assert (await self._page(self._another(log), limit_bytes=0)).note == "later"
        fresh = Writer("t", "abcdefg", 1)
        made = await log.restore(fresh, HEAD, "abcdefg", [span_of(1, 2)], note="first")
        assert made == Writer("t", "abcdefg", 2)
        found = await log.read("t", None, limit_bytes=0)
        assert isinstance(found, Page)
        assert (found.note, found.n) == ("first", 2)

    @_scenario
    async def test_what_a_reader_is_told_about_its_cursor(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=4)
        other = replace(writer, epoch="abcdefg" if writer.epoch != "abcdefg" else "bcdefgh")

        async def why(epoch: str, n: int) -> str | None:
            found = await log.read("s", Cursor(epoch, n))
            if isinstance(found, Page):
                return None
            assert isinstance(found, Gone)
            assert (found.oldest, found.n, found.epoch, found.head) == (1, 4, writer.epoch, HEAD)
            return found.why

        assert [await why(writer.epoch, n) for n in (0, 4, 5, 6)] == [None, None, "went_back", "went_back"]
        assert [await why(other.epoch, n) for n in (0, 4, 5)] == ["other_epoch"] * 3
        assert (await self._page(log, after=Cursor(writer.epoch, 4))).spans == ()
        await log.finish(writer, 4, COMPLETED)
        assert [await why(writer.epoch, n) for n in (0, 4, 5, 6)] == [None, None, None, "went_back"]
        for n in (4, 5):
            page = await self._page(log, after=Cursor(writer.epoch, n))
            assert (page.spans, page.ending, page.running_until) == ((), COMPLETED, None)

    # Leases

    @_scenario
    async def test_a_stream_is_claimed_when_its_lease_is_over_and_not_before(self, log: StreamLog) -> None:
        writer = await self._begin(log, lease=600.0, last=3)
        held = await self._another(log).claim("s", lease=600.0)
        assert isinstance(held, Held)
        assert 0.0 < held.seconds <= 600.0
        short = await self._begin(log, "short", lease=self.lease)
        await self.pass_time(log, self.lease * 1.5)
        claimed, _ = await self._claim(self._another(log), "short")
        assert (claimed.epoch, claimed.fence, claimed.lease) == (short.epoch, 2, 600.0)
        assert isinstance(await log.claim("short", lease=600.0), Held)
        assert await log.append([(writer, span_of(4, 4), None), (short, span_of(1, 1), None)]) == [
            Appended(4),
            Fenced(claimed.token),
        ]

    @_scenario
    async def test_a_takeover_keeps_the_epoch_and_the_readers(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=3)
        await log.append([Append(writer, span_of(4, 5), "note", 2)])
        await log.append([(writer, span_of(6, 6), None)])
        await self._released(log, writer)
        new, found = await self._claim(self._another(log))
        assert (new.epoch, new.fence, new.retention) == (writer.epoch, writer.fence + 1, HEAD.retention)
        assert (found.head, found.n, found.b, found.whole) == (HEAD, 6, span_of(6, 6).b, True)
        assert (found.note, found.note_n, found.taken, found.control) == ("note", 5, 2, None)
        assert await log.append([(new, span_of(7, 7), None)]) == [Appended(7)]
        assert await log.append([(writer, span_of(7, 8), None)]) == [Fenced(new.token)]
        assert await self._rest(log, Cursor(writer.epoch, 2)) == span_of(3, 7).data

    @_scenario
    async def test_the_request_is_handed_over(self, log: StreamLog) -> None:
        for number, request in enumerate([None, b"", b"\0{}\xff", b"r" * 500_000]):
            writer = await log.create(f"s{number}", HEAD, lease=600.0, request=request)
            assert isinstance(writer, Writer)
            await self._released(log, writer)
            assert (await self._claim(self._another(log), f"s{number}"))[1].request == request

    @_scenario
    async def test_of_many_that_claim_at_once_one_gets_it(self, log: StreamLog) -> None:
        logs = [log, self._another(log), self._another(log)]
        for number in range(10):
            stream_id = f"s{number}"
            await self._released(log, await self._begin(log, stream_id, last=2))
            found = await asyncio.gather(*(logs[caller % 3].claim(stream_id, lease=600.0) for caller in range(9)))
            assert sorted(type(each).__name__ for each in found) == ["Held"] * 8 + ["Writer"]

    @_scenario
    async def test_whoever_claims_again_under_the_same_name_is_the_same(self, log: StreamLog) -> None:
        """The first call got no reply. The stream is its caller's at once, with a whole lease, and nobody else's."""
        other = self._another(log)
        writer = await self._begin(log, last=3)
        await log.append([Append(writer, None, "note", 2, 3)])
        await self._released(log, writer)
        first, given = await self._claim(log, claimant="me", lease=60.0)
        for go_on in (False, True):
            for each in (log, other):
                again, found = await self._claim(each, claimant="me", go_on=go_on)
                assert (again, again.lease, found) == (first, 600.0, given)
                # Neither a name with the same beginning nor no name is that name.
                for name in (None, "m", "me2", "you"):
                    held = await other.claim("s", lease=1.0, claimant=name)
                    assert isinstance(held, Held) and held.seconds > 500.0, name
        assert await other.append([(first, span_of(4, 4), None)]) == [Appended(4)]
        # Another process has it by now, and then it has ended.
        await self._released(log, first)
        second, _ = await self._claim(log, claimant="you")
        assert isinstance(await log.claim("s", lease=600.0, claimant="me"), Held)
        assert await log.append([(first, span_of(5, 5), None)]) == [Fenced(second.token)]
        assert await log.append([(second, span_of(5, 5), None)]) == [Appended(5)]
        # A late call takes nothing from the writer who has continued.
        late, _ = await self._claim(other, claimant="you")
        assert late == second and len((await self._page(log)).spans) > 0 and (await self._page(log)).n == 5
        assert isinstance(await log.finish(second, 5, FAILED), Done)
        assert await log.claim("s", lease=600.0, claimant="you") == Ended(FAILED, 5)
        for wrong in ("", "x" * 65, "a-b", "a+", "é"):
            with _raises(ValueError):
                await log.claim("s", lease=1.0, claimant=wrong)

    @_scenario
    async def test_whoever_claims_lost_spans_again_is_the_same(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=6)
        await self._released(log, writer)
        if not await self.lose_spans(log, "s"):
            return
        first, given = await self._claim(log, claimant="me", go_on=True)
        again, found = await self._claim(self._another(log), claimant="me", go_on=True)
        assert again == first and found == given and not found.whole
        assert first.epoch != writer.epoch
        assert await log.append([(first, span_of(1, 2), None)]) == [Appended(2)]
        late, _ = await self._claim(log, claimant="me", go_on=True)
        assert late == first
        assert await self._rest(log, None) == span_of(1, 2).data

    @_scenario
    async def test_renewing_and_appending_keep_the_lease(self, log: StreamLog) -> None:
        renewed = await self._begin(log, "renewed", lease=self.lease)
        appended = await self._begin(log, "appended", lease=self.lease)
        noted = await self._begin(log, "noted", lease=self.lease)
        for n in range(1, 5):
            await self.pass_time(log, self.lease * 0.5)
            assert await log.renew([renewed]) == [None]
            await log.append([(appended, span_of(n, n), None), Append(noted, None, str(n), n=0)])
        for stream_id in ("renewed", "appended", "noted"):
            assert isinstance(await log.claim(stream_id, lease=self.lease), Held)
        await self.pass_time(log, self.lease * 1.5)
        for stream_id in ("renewed", "appended", "noted"):
            assert isinstance(await log.claim(stream_id, lease=self.lease), Writer)

    @_scenario
    async def test_a_writer_whose_lease_is_over_goes_on_until_somebody_claims(self, log: StreamLog) -> None:
        writer = await self._begin(log, lease=self.lease)
        await self.pass_time(log, self.lease * 1.5)
        assert await log.append([(writer, span_of(1, 1), None)]) == [Appended(1)]
        await self.pass_time(log, self.lease * 1.5)
        assert await log.renew([writer]) == [None]
        await self.pass_time(log, self.lease * 1.5)
        assert await log.finish(writer, 1, COMPLETED) == Done(1)

    @_scenario
    async def test_a_released_stream_is_claimed_at_once(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=2)
        await self._released(log, writer)
        assert await log.orphans() == ["s"]
        page = await self._page(log)
        assert (page.running_until, page.lease_left, page.ending) == (0.0, 0.0, None)
        new, _ = await self._claim(self._another(log))
        assert await log.renew([writer, new]) == [Fenced(new.token), None]
        assert await log.orphans() == []

    @_scenario
    async def test_orphans_are_running_streams_whose_lease_is_over(self, log: StreamLog) -> None:
        for number in range(5):
            await self._begin(log, f"old{number}", lease=self.lease)
        await self._begin(log, "alive", lease=600.0)
        done = await self._begin(log, "done", lease=self.lease)
        await log.finish(done, 0, COMPLETED)
        gone = await self._begin(log, "gone", lease=self.lease)
        await log.delete(gone.stream_id)
        await self.pass_time(log, self.lease * 1.5)
        other = self._another(log)
        assert sorted(await other.orphans()) == [f"old{number}" for number in range(5)]
        assert len(await other.orphans(limit=2)) == 2
        claimed, _ = await self._claim(other, "old3")
        await log.finish(claimed, 0, FAILED)
        assert sorted(await other.orphans()) == ["old0", "old1", "old2", "old4"]

    @_scenario
    async def test_an_ended_stream_is_forgotten_after_its_retention(self, log: StreamLog) -> None:
        writer = await self._begin(log, lease=self.lease, retention=self.lease, last=2)
        await log.say("s", Message(id="m"))
        kept = await self._begin(log, "kept", lease=self.lease, last=2)
        for each in (writer, kept):
            await log.finish(each, 2, COMPLETED)
        assert (await self._page(log)).ending == COMPLETED
        await self.pass_time(log, self.lease * 2.5)
        other = self._another(log)
        assert await other.read("s") == Unknown()
        assert await other.inbox("s", 0) == []
        assert (await self._page(other, "kept")).n == 2
        again = await self._begin(other, last=1)
        assert again.epoch != writer.epoch
        assert await self._rest(log, None) == event_bytes(1)

    @_scenario
    async def test_a_running_stream_outlives_its_retention(self, log: StreamLog) -> None:
        writer = await self._begin(log, lease=self.lease, retention=self.lease)
        for n in range(1, 7):
            await self.pass_time(log, self.lease * 0.6)
            assert await log.append([(writer, span_of(n, n), None)]) == [Appended(n)]
        assert await self._rest(log, None) == span_of(1, 6).data
        for _ in range(6):
            await self.pass_time(log, self.lease * 0.6)
            assert await log.renew([writer]) == [None]
        assert await self._rest(log, None) == span_of(1, 6).data

    # Notes

    @_scenario
    async def test_a_note_moves_with_its_events_or_not_at_all(self, log: StreamLog) -> None:
        writer = await self._begin(log)
        await log.append([Append(writer, span_of(1, 2), "one", 1)])
        await log.append([(writer, span_of(3, 3), None)])
        for refused in (
            Append(writer, span_of(5, 5), "behind", 9),
            Append(replace(writer, fence=9), span_of(4, 4), "fenced", 9),
            Append(writer, None, "elsewhere", 9, n=2),
            Append(writer, None, "elsewhere", 9, n=4),
        ):
            assert not isinstance((await log.append([refused]))[0], Appended)
        await self._released(log, writer)
        writer, found = await self._claim(self._another(log))
        assert (found.n, found.note, found.note_n, found.taken) == (3, "one", 2, 1)
        assert await log.append([Append(writer, None, "two", n=3)]) == [Appended(3)]
        assert await log.append([Append(writer, None, None, 4, 3)]) == [Appended(3)]
        await self._released(log, writer)
        _, found = await self._claim(log)
        assert (found.n, found.note, found.note_n, found.taken) == (3, "two", 3, 4)

    @_scenario
    async def test_a_late_append_without_a_span_moves_nothing(self, log: StreamLog) -> None:
        """
        An append repeated after a lost reply, or delayed, may be processed twice, and the first one last.

        One with a span is recognised by its events. One without would overwrite a newer note, or a newer number of messages.
        """
        other = self._another(log)
        writer = await self._begin(log, last=3)
        sent = [
            Append(writer, None, "one", None, 3, mark=1),
            Append(writer, None, "two", 1, 3, mark=2),
            Append(writer, None, None, 2, 3, mark=3),
            Append(writer, None, "four", None, 3, mark=4),
        ]
        for item in sent:
            assert await log.append([item]) == [Appended(3)]
            for late in sent[: sent.index(item) + 1]:
                assert await other.append([late]) == [Appended(3)]
        assert (await self._page(log, limit_bytes=0)).note == "four"
        # Marks start again after later events, and with a new writer.
        assert await log.append([Append(writer, span_of(4, 4), "five", 3)]) == [Appended(4)]
        assert await log.append([sent[3]]) == [Behind(4)]
        assert await log.append([Append(writer, None, "six", 4, 4, mark=5)]) == [Appended(4)]
        await self._released(log, writer)
        taken_over, found = await self._claim(other)
        assert (found.n, found.note, found.note_n, found.taken) == (4, "six", 4, 4)
        assert await other.append([Append(taken_over, None, "seven", 5, 4, mark=1)]) == [Appended(4)]
        assert isinstance((await log.append([Append(writer, None, "eight", 9, 4, mark=6)]))[0], Fenced)
        # An unnumbered one replaces the stored values in any case.
        assert await other.append([Append(taken_over, None, "nine", 6, 4)]) == [Appended(4)]
        await self._released(log, taken_over)
        _, found = await self._claim(log)
        assert (found.note, found.note_n, found.taken) == ("nine", 4, 6)

    @_scenario
    async def test_any_text_is_a_note(self, log: StreamLog) -> None:
        for number, note in enumerate(ODD_TEXTS):
            writer = await self._begin(log, f"s{number}")
            await log.append([(writer, span_of(1, 1), note)])
            await self._released(log, writer)
            assert (await self._claim(self._another(log), f"s{number}"))[1].note == note

    @_scenario
    async def test_what_is_no_text_is_refused_before_anything_is_stored(self, log: StreamLog) -> None:
        writer = await self._begin(log)
        with _raises(ValueError, TypeError):
            await log.append([(writer, span_of(1, 1), "\ud800")])
        with _raises(ValueError, TypeError):
            await log.append([(writer, span_of(1, 1), b"bytes")])  # type: ignore[list-item]
        assert (await self._page(log)).n == 0

    # The inbox

    @_scenario
    async def test_messages_come_in_the_order_accepted_each_once(self, log: StreamLog) -> None:
        other = self._another(log)
        await self._begin(log)
        for number, text in enumerate(ODD_TEXTS, 1):
            message = Message(id=f"m é {number}", data=text, kind=f"kind {number % 3}")
            for each in (log, other):
                assert await each.say("s", message) == Said(number)
        # Only the id counts.
        assert await other.say("s", Message(id="m é 1", data="something else")) == Said(1)
        expected = [
            Message(id=f"m é {number}", data=text, kind=f"kind {number % 3}", k=number)
            for number, text in enumerate(ODD_TEXTS, 1)
        ]
        for after in range(len(ODD_TEXTS) + 2):
            assert await other.inbox("s", after) == expected[after:]

    @_scenario
    async def test_messages_of_many_at_once_are_numbered_without_holes(self, log: StreamLog) -> None:
        await self._begin(log)
        logs = [log, self._another(log), self._another(log)]

        async def speak(speaker: int) -> list[object]:
            said: list[object] = []
            for number in range(25):
                message = Message(id=f"{speaker}.{number}", data=str(number))
                first, second = await asyncio.gather(
                    logs[speaker % 3].say("s", message), logs[(speaker + 1) % 3].say("s", message)
                )
                assert first == second
                said.append(first)
            return said

        answers = await asyncio.gather(*(speak(speaker) for speaker in range(4)))
        inbox = await log.inbox("s", 0)
        assert [message.k for message in inbox] == list(range(1, 101))
        for speaker, said in enumerate(answers):
            mine = [message for message in inbox if message.id.startswith(f"{speaker}.")]
            assert [message.data for message in mine] == [str(number) for number in range(25)]
            assert said == [Said(message.k) for message in mine]

    @_scenario
    async def test_after_the_end_only_what_was_said_is_known(self, log: StreamLog) -> None:
        writer = await self._begin(log)
        await log.say("s", Message(id="m1"))
        await log.finish(writer, 0, FAILED)
        again = await log.say("s", Message(id="m1"))
        assert again == Said(1) and isinstance(again, Said) and again.ending == FAILED
        assert await log.say("s", Message(id="m2")) == Ended(FAILED, 0)
        assert await log.say("s", Message(id="c", kind=CANCEL)) == Ended(FAILED, 0)
        assert [message.id for message in await log.inbox("s", 0)] == ["m1"]

    @_scenario
    async def test_the_writer_learns_of_messages_and_of_a_cancel(self, log: StreamLog) -> None:
        writer = await self._begin(log)
        other = self._another(log)
        assert await log.renew([writer]) == [None]
        await other.say("s", Message(id="m1"))
        assert await log.renew([writer]) == [Control(1)]
        assert await log.append([(writer, span_of(1, 1), None)]) == [Appended(1, Control(1))]
        await other.say("s", Message(id="c1", kind=CANCEL, data="é"))
        await other.say("s", Message(id="c2", kind=CANCEL, data="again"))
        assert await log.append([(writer, span_of(1, 1), None)]) == [Appended(1, Control(3, "é"))]
        assert await log.renew([writer]) == [Control(3, "é")]
        await self._released(log, writer)
        new, found = await self._claim(other)
        assert found.control == Control(3, "é")
        assert [message.kind for message in await log.inbox("s", 1)] == [CANCEL, CANCEL]
        empty = await self._begin(log, "t")
        await other.say("t", Message(id="c", kind=CANCEL))
        assert await log.renew([new, empty]) == [Control(3, "é"), Control(1, "")]

    @_scenario
    async def test_a_long_inbox_is_read_in_pieces(self, log: StreamLog) -> None:
        await self._begin(log)
        for number in range(1, 1006):
            assert await log.say("s", Message(id=str(number))) == Said(number)
        found: list[Message] = []
        while piece := await log.inbox("s", found[-1].k if found else 0):
            assert len(piece) <= 1000
            found += piece
        assert [message.k for message in found] == list(range(1, 1006))

    # Compaction

    @_scenario
    async def test_compaction_changes_nothing_for_readers(self, log: StreamLog) -> None:
        chance = random.Random(5)
        writer = await self._begin(log)
        events = [b"data: %d\n\n" % n + b"x" * chance.choice((0, 0, 50, 200_000)) for n in range(60)]
        b = 0
        for n, event in enumerate(events, 1):
            b += len(event)
            await log.append([(writer, Span(n=n, b=b, lengths=(len(event),), data=event), "note")])
        await log.say("s", Message(id="m"))
        await log.finish(writer, 60, FAILED)
        await asyncio.gather(log.compact("s"), self._another(log).compact("s"), log.compact("s"))
        other = self._another(log)
        page = await self._page(other)
        assert (page.head, page.epoch, page.oldest, page.n, page.b) == (HEAD, writer.epoch, 1, 60, b)
        assert (page.ending, page.running_until) == (FAILED, None)
        for after in range(61):
            found = [event for span in await self._spans(other, Cursor(writer.epoch, after)) for event in _events_of(span)]
            assert found == events[after:]
        assert (await self._page(other, after=Cursor(writer.epoch, 61))).spans == ()
        assert isinstance(await other.read("s", Cursor(writer.epoch, 62)), Gone)
        assert await log.finish(writer, 60, FAILED) == Done(60)
        assert await log.append([(writer, span_of(61, 61), None)]) == [Ended(FAILED, 60)]
        assert await log.say("s", Message(id="m")) == Said(1)
        assert isinstance(await log.create("s", HEAD, lease=600.0), Existing)

    async def _spans(self, log: StreamLog, after: Cursor) -> list[Span]:
        found: list[Span] = []
        while (page := await self._page(log, after=after)).spans:
            found += page.spans
            after = Cursor(page.epoch, page.spans[-1].n)
        return found

    @_scenario
    async def test_a_running_stream_is_not_compacted(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=9)
        await log.compact("s")
        assert len((await self._page(log)).spans) == 3
        assert await log.append([(writer, span_of(10, 10), None)]) == [Appended(10)]
        await self._begin(log, "empty")
        await log.compact("empty")
        await log.compact("unknown")
        assert await self._rest(log, None) == span_of(1, 10).data

    @_scenario
    async def test_a_stream_without_events_is_compacted(self, log: StreamLog) -> None:
        await log.finish(await self._begin(log), 0, COMPLETED)
        await log.compact("s")
        page = await self._page(log)
        assert (page.n, page.oldest, page.spans, page.ending) == (0, 1, (), COMPLETED)

    # Loss

    @_scenario
    async def test_a_lost_stream_is_written_again_under_the_same_epoch(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=6)
        messages = [Message(id="m1", k=1), Message(id="c", kind=CANCEL, data="why", k=2)]
        for message in messages:
            await log.say("s", replace(message, k=0))
        await log.delete("s")
        assert await log.append([(writer, span_of(7, 7), None)]) == [Lost()]
        spans = [span_of(1, 3), span_of(4, 6)]
        again = await log.restore(
            writer, HEAD, writer.epoch, spans, request=b"req", note="note", note_n=5, taken=1, inbox=messages
        )
        assert isinstance(again, Writer)
        assert (again.epoch, again.fence, again.lease) == (writer.epoch, writer.fence + 1, writer.lease)
        other = self._another(log)
        assert await self._rest(other, Cursor(writer.epoch, 2)) == span_of(3, 6).data
        assert await log.append([(writer, span_of(7, 7), None)]) == [Fenced(again.token)]
        assert await log.append([(again, span_of(7, 7), None)]) == [Appended(7, Control(2, "why"))]
        assert await other.inbox("s", 0) == messages
        assert await other.say("s", Message(id="m1")) == Said(1)
        assert await other.say("s", Message(id="m2")) == Said(3)
        assert isinstance(await other.claim("s", lease=600.0), Held)
        await self._released(log, again)
        _, found = await self._claim(other)
        assert (found.head, found.n, found.request, found.note, found.note_n) == (HEAD, 7, b"req", "note", 5)
        assert (found.taken, found.control, found.whole) == (1, Control(3, "why"), True)

    @_scenario
    async def test_a_lost_stream_may_come_back_without_its_front_or_without_events(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=6)
        await log.delete("s")
        again = await log.restore(writer, HEAD, "abcdefg", [span_of(4, 5), span_of(6, 6)])
        assert isinstance(again, Writer)
        gone = await log.read("s")
        assert isinstance(gone, Gone)
        assert (gone.why, gone.oldest, gone.n, gone.epoch) == ("trimmed", 4, 6, "abcdefg")
        assert await self._rest(log, Cursor("abcdefg", 3)) == span_of(4, 6).data
        assert isinstance(await log.read("s", Cursor("abcdefg", 2)), Gone)
        assert (await self._page(log, limit_bytes=0)).oldest == 4
        empty = await self._begin(log, "t")
        await log.delete("t")
        assert isinstance(await log.restore(empty, HEAD, empty.epoch, []), Writer)
        assert (await self._page(log, "t")).n == 0
        # No message gets a number that was already dealt with.
        taken = await self._begin(log, "u")
        await log.delete("u")
        assert isinstance(await log.restore(taken, HEAD, taken.epoch, [], taken=7), Writer)
        assert await log.say("u", Message(id="m")) == Said(8)

    @_scenario
    async def test_nobody_writes_over_what_somebody_else_has(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=3)
        assert isinstance(await log.restore(writer, HEAD, writer.epoch, [span_of(1, 3)]), Existing)
        await log.delete("s")
        new = await self._begin(self._another(log), last=1)
        found = await log.restore(writer, HEAD, writer.epoch, [span_of(1, 3)])
        assert found == Existing(new.epoch, 1, HEAD, None)
        assert await log.append([(writer, span_of(2, 2), None)]) == [Fenced(new.token)]
        assert await self._rest(log, None) == event_bytes(1)
        await log.delete("s")
        logs = [log, self._another(log)]
        answers = await asyncio.gather(*(logs[n % 2].restore(writer, HEAD, writer.epoch, [span_of(1, 3)]) for n in range(4)))
        assert sorted(type(each).__name__ for each in answers) == ["Existing"] * 3 + ["Writer"]

    @_scenario
    async def test_what_is_no_piece_of_a_log_is_not_restored(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=6)
        await log.delete("s")
        for spans in ([span_of(1, 3), span_of(5, 6)], [span_of(4, 6), span_of(1, 3)], [replace(span_of(1, 3), b=100)]):
            with _raises(ValueError):
                await log.restore(writer, HEAD, writer.epoch, spans)
        assert await log.read("s") == Unknown()

    @_scenario
    async def test_lost_spans_are_noticed(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=6)
        if not await self.lose_spans(log, "s"):
            return
        assert await log.append([(writer, span_of(7, 7), None)]) == [Lost()]
        assert await log.append([(writer, span_of(4, 6), None)]) == [Lost()]
        assert await log.finish(writer, 6, COMPLETED) == Lost()
        for after in (None, Cursor(writer.epoch, 0), Cursor(writer.epoch, 5)):
            gone = await log.read("s", after)
            assert isinstance(gone, Gone)
            assert (gone.why, gone.oldest, gone.n) == ("trimmed", 7, 6)
        assert (await self._page(log, after=Cursor(writer.epoch, 6))).spans == ()
        again = await log.restore(writer, HEAD, writer.epoch, [span_of(1, 6)])
        assert isinstance(again, Writer)
        assert await self._rest(log, Cursor(writer.epoch, 5)) == span_of(6, 6).data
        assert await log.append([(again, span_of(7, 7), None)]) == [Appended(7)]

    @_scenario
    async def test_whoever_goes_on_with_a_log_that_lost_nothing_keeps_its_epoch(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=4)
        for fence in (2, 3, 4):
            await self._released(log, writer)
            new, found = await self._claim(self._another(log), go_on=True)
            assert (new.epoch, new.fence) == (writer.epoch, fence)
            assert (found.n, found.whole, found.before) == (2 + fence, True, None)
            assert await log.append([(new, span_of(found.n + 1, found.n + 1), None)]) == [Appended(found.n + 1)]
            assert await self._rest(log, Cursor(writer.epoch, found.n)) == span_of(found.n + 1, found.n + 1).data
            writer = new

    @_scenario
    async def test_a_claim_of_lost_spans_begins_another_epoch(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=4)
        await log.append([(writer, span_of(5, 5), "note")])
        if not await self.lose_spans(log, "s"):
            return
        await self._released(log, writer)
        new, found = await self._claim(self._another(log))
        assert new.epoch != writer.epoch
        assert (found.n, found.b, found.note, found.whole) == (0, 0, None, False)
        for n in (0, 5):
            gone = await log.read("s", Cursor(writer.epoch, n))
            assert isinstance(gone, Gone)
            assert gone.why == "other_epoch"
        assert await log.append([(writer, span_of(6, 6), None)]) == [Fenced(new.token)]
        assert await log.append([(new, span_of(1, 2), None)]) == [Appended(2)]
        assert await self._rest(log, None) == span_of(1, 2).data

    @_scenario
    async def test_a_damaged_span_is_an_error_that_names_the_stream(self, log: StreamLog) -> None:
        await self._begin(log, last=6)
        if not await self.damage(log, "s"):
            return
        caught: LogUnavailable | None = None
        try:
            await self._rest(self._another(log), None)
        except LogUnavailable as error:
            caught = error
        assert caught is not None, "a damaged span was read"
        assert caught.stream_id == "s"
        assert "'s'" in str(caught)

    @_scenario
    async def test_a_deleted_stream_is_unknown(self, log: StreamLog) -> None:
        for ended in (False, True):
            writer = await self._begin(log, last=4)
            await self._begin(log, f"other{ended}", last=2)
            await log.say("s", Message(id="m", data="secret"))
            if ended:
                await log.finish(writer, 4, COMPLETED)
                await log.compact("s")
            other = self._another(log)
            await other.delete("s")
            await other.delete("s")
            assert await log.read("s") == Unknown()
            assert await log.inbox("s", 0) == []
            assert await log.append([(writer, span_of(5, 5), None)]) == [Lost()]
            assert await log.finish(writer, 4, COMPLETED) == Lost()
            assert await log.claim("s", lease=600.0) == Unknown()
            assert (await self._page(log, f"other{ended}")).n == 2
            new = await self._begin(log, last=1)
            assert await log.say("s", Message(id="m")) == Said(1)
            assert await log.append([(writer, span_of(2, 2), None)]) == [Fenced(new.token)]
            await log.delete("s")

    # Bells

    @_scenario
    async def test_bells_ring_for_what_is_appended_once_they_are_heard(self, log: StreamLog) -> None:
        other = self._another(log)
        writer = await self._begin(log, last=3)
        bells = other.bells()
        await bells.add("s")
        await bells.add("s")
        for n in range(4, 10):
            await log.append([(writer, span_of(n, n), None)])
            bell = await self._hear(bells, lambda bell: bell.id == "s" and (bell.n is None or bell.n >= n))  # noqa: B023
            assert bell.item is None or bell.item == span_of(n, n)
            assert bell.epoch in (None, writer.epoch)
            # A bell's content is already in the log.
            assert (await self._page(other, after=Cursor(writer.epoch, n - 1))).spans[0].n == n
        await log.finish(writer, 9, FAILED)
        bell = await self._hear(bells, lambda bell: not isinstance(bell.item, Span))
        assert bell.item in (None, FAILED)
        assert bell.n in (None, 9)
        assert (await self._page(other)).ending == FAILED
        await bells.aclose()

    @_scenario
    async def test_bells_ring_for_messages(self, log: StreamLog) -> None:
        other = self._another(log)
        await self._begin(log)
        bells = log.bells()
        await bells.add("s")
        await other.say("s", Message(id="m1"))
        bell = await self._hear(bells, lambda bell: bell.id == "s")
        assert bell.item in (None, Control(1))
        assert [message.id for message in await log.inbox("s", 0)] == ["m1"]
        await other.say("s", Message(id="c", kind=CANCEL, data="stop"))
        bell = await self._hear(bells, lambda bell: bell.item != Control(1))
        assert bell.item in (None, Control(2, "stop"))
        await bells.aclose()

    @_scenario
    async def test_bells_ring_when_a_stream_is_released(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=2)
        other = self._another(log)
        bells, others = log.bells(), other.bells()
        await bells.add("s")
        await others.add("s")
        await self._released(log, writer)
        for each in (bells, others):
            bell = await self._hear(each, lambda bell: bell.id == "s")
            assert bell.item in (None, Released())
            assert (bell.epoch, bell.n) in ((writer.epoch, 2), (None, None))
        # A renewal alone does not ring.
        new, _ = await self._claim(other)
        assert await log.renew([new]) == [None]
        assert await log.append([(new, span_of(3, 3), None)]) == [Appended(3)]
        await self._hear(bells, lambda bell: bell.n == 3)
        for each in (bells, others):
            await each.aclose()

    @_scenario
    async def test_bells_ring_when_a_stream_is_lost_and_when_it_is_back(self, log: StreamLog) -> None:
        writer = await self._begin(log, last=2)
        other = self._another(log)
        bells = other.bells()
        await bells.add("s")
        await log.delete("s")
        await self._hear(bells, lambda bell: bell.id == "s")
        assert await other.read("s") == Unknown()
        assert isinstance(await log.restore(writer, HEAD, writer.epoch, [span_of(1, 2)]), Writer)
        await self._hear(bells, lambda bell: bell.id == "s")
        assert await self._rest(other, None) == span_of(1, 2).data
        await bells.aclose()

    @_scenario
    async def test_bells_ring_only_for_the_streams_that_were_added(self, log: StreamLog) -> None:
        writers = {stream_id: await self._begin(log, stream_id) for stream_id in ("a", "b", "c")}
        bells = self._another(log).bells()
        for stream_id in ("a", "b", "c"):
            await bells.add(stream_id)
        await bells.discard("a")
        await bells.discard("never added")
        await log.append([(writer, span_of(1, 1), None) for writer in writers.values()])
        heard: set[str] = set()
        while heard < {"b", "c"}:
            heard.add((await anext(bells.__aiter__())).id)
        assert heard == {"b", "c"}
        await bells.add("a")
        await log.append([(writers["a"], span_of(2, 2), None)])
        await self._hear(bells, lambda bell: bell.id == "a")
        await bells.aclose()

    @_scenario
    async def test_every_listener_hears(self, log: StreamLog) -> None:
        writer = await self._begin(log)
        listeners = [each.bells() for each in (log, log, self._another(log))]
        for bells in listeners:
            await bells.add("s")
        await log.append([(writer, span_of(1, 1), None)])
        for bells in listeners:
            await self._hear(bells, lambda bell: bell.id == "s")
            await bells.aclose()

    @_scenario
    async def test_closed_bells_end(self, log: StreamLog) -> None:
        await self._begin(log)
        bells = log.bells()
        await bells.add("s")

        async def listen() -> int:
            return len([bell async for bell in bells])

        listening = asyncio.create_task(listen())
        await asyncio.sleep(0)
        await bells.aclose()
        await bells.aclose()
        assert await listening == 0

    @_scenario
    async def test_who_adds_before_reading_misses_nothing(self, log: StreamLog) -> None:
        """Readers attach at random moments of a stream that is appended to at full speed, and rely only on bells."""
        chance = random.Random(9)
        writer = await self._begin(log)
        last, readers = 300, 12
        logs = [log, self._another(log)]
        starts = sorted(chance.randrange(last) for _ in range(readers))
        written = asyncio.Condition()
        progress = 0

        async def follow(number: int) -> bytes:
            async with written:
                await written.wait_for(lambda: progress >= starts[number])
            mine, n, found = logs[number % 2], 0, b""
            bells = mine.bells()
            await bells.add("s")
            listening = bells.__aiter__()
            while True:
                page = await self._page(mine, after=Cursor(writer.epoch, n))
                for span in page.spans:
                    assert span.first == n + 1
                    n, found = span.n, found + span.data
                if page.ending is not None and not page.spans:
                    await bells.aclose()
                    return found
                if not page.spans:
                    await anext(listening)

        async def write() -> None:
            nonlocal progress
            numbers = count(1)
            first = next(numbers)
            while first <= last:
                span = span_of(first, min(last, first + chance.randrange(3)))
                assert await log.append([(writer, span, None)]) == [Appended(span.n)]
                async with written:
                    progress = span.n
                    written.notify_all()
                first = span.n + 1
                await asyncio.sleep(0)
            assert await log.finish(writer, last, COMPLETED) == Done(last)

        following = [asyncio.create_task(follow(number)) for number in range(readers)]
        await write()
        assert await asyncio.gather(*following) == [span_of(1, last).data] * readers


def _events_of(span: Span) -> Iterator[bytes]:
    place = 0
    for length in span.lengths:
        yield span.data[place : place + length]
        place += length
