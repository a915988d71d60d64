"""A mirror is exact, whatever is done to the bells."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest

from resumable_stream import LogUnavailable, Outcome
from resumable_stream.server.log import (
    Bell,
    Control,
    Cursor,
    Ending,
    Gone,
    Head,
    Page,
    Record,
    Span,
    Unknown,
    judge_read,
    page_of,
)
from resumable_stream.server.mirror import Follower, Listen, Phase, Read, Step, Wake
from resumable_stream.testing.log_contract import span_of

EPOCH = "k7q2"
HEAD = Head(content_type="text/event-stream", framing="sse")
OK = Ending(outcome=Outcome.COMPLETED)


class Log:
    """A log of one stream, and the bells that it rings."""

    def __init__(self, *, epoch: str = EPOCH) -> None:
        self.record = Record(head=HEAD, epoch=epoch, until=100.0)
        self.spans: list[Span] = []
        self.bells: deque[Bell] = deque()

    def append(self, span: Span) -> None:
        self.spans.append(span)
        self.record.n, self.record.b, self.record.c = span.n, span.b, len(self.spans)
        self.ring(span)

    def finish(self) -> None:
        self.record.ending = OK
        self.ring(OK)

    def ring(self, item: Span | Ending | None) -> None:
        self.bells.append(Bell(id="s", item=item, epoch=self.record.epoch, n=self.record.n))

    def trim(self, oldest: int) -> None:
        self.spans = [span for span in self.spans if span.n >= oldest]
        self.record.oldest, self.record.c = self.spans[0].first, len(self.spans)

    def read(self, after: Cursor | None, limit: int = 1 << 20) -> Page | Gone | Unknown:
        start = judge_read(self.record, len(self.spans), after, now=40.0)
        if not isinstance(start, int):
            return start
        spans = [span for span in self.spans if span.n > start]
        return page_of("s", self.record, len(self.spans), start, spans, limit_bytes=limit, now=40.0)


class Driver:
    """Does what the follower says, at moments that the test chooses."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.follower = Follower()
        self.listening = False
        self.reads: list[Cursor | None] = []
        self.answers: list[Page | Gone | Unknown] = []
        self.woken = 0
        self.seen = 0

    def do(self, steps: Iterable[Step]) -> None:
        for step in steps:
            match step:
                case Listen():
                    self.listening = True
                case Read(after):
                    self.reads.append(after)
                case Wake():
                    self.woken += 1
        assert len(self.reads) + len(self.answers) <= 1, "two reads at a time"
        self.check()

    def check(self) -> None:
        """At no moment does the mirror hold anything but the beginning of the log, and readers are woken for all of it."""
        mirror = self.follower.mirror
        if mirror is None:
            return
        if mirror.n >= mirror.oldest:
            assert mirror.after(mirror.oldest - 1) == (span_of(mirror.oldest, mirror.n).data, mirror.n)
        assert mirror.ending is None or (mirror.ending == self.log.record.ending and mirror.n == self.log.record.n)
        if mirror.n > self.seen:
            assert self.woken, "readers were not woken"
            self.seen, self.woken = mirror.n, 0

    def begin(self) -> None:
        self.do(self.follower.listen())
        self.do(self.follower.heard())

    def look(self, limit: int = 1 << 20) -> None:
        """Read the log; the answer is on its way."""
        if self.reads:
            self.answers.append(self.log.read(self.reads.pop(), limit))

    def receive(self) -> None:
        """The answer arrives."""
        if self.answers:
            self.do(self.follower.read(self.answers.pop()))

    def settle(self) -> None:
        """Until there is nothing to do."""
        for _ in range(100):
            self.look()
            self.receive()
            if not self.reads and not self.answers:
                return
        raise AssertionError("a follower that reads for ever")

    def hear(self, bell: Bell) -> None:
        self.do(self.follower.bell(bell))

    def finished(self) -> None:
        mirror = self.follower.mirror
        assert mirror is not None
        assert (mirror.n, mirror.ending) == (self.log.record.n, self.log.record.ending)
        self.check()


def grown(*pieces: tuple[int, int], ended: bool = False) -> Log:
    log = Log()
    for first, last in pieces:
        log.append(span_of(first, last))
    if ended:
        log.finish()
    return log


def live(*pieces: tuple[int, int]) -> Driver:
    driver = Driver(grown(*pieces))
    driver.begin()
    driver.settle()
    driver.log.bells.clear()
    assert driver.follower.phase is Phase.LIVE
    return driver


# --- the order of steps


def test_the_bell_is_heard_before_the_log_is_read() -> None:
    follower = Follower()
    assert follower.phase is Phase.COLD
    assert follower.poll() == follower.heard() == follower.bell(Bell(id="s", item=span_of(1, 1))) == []
    assert follower.listen() == [Listen()]
    assert follower.listen() == []
    assert follower.phase is Phase.LISTENING
    assert follower.heard() == [Read(None)]
    assert follower.heard() == []
    assert follower.phase is Phase.HYDRATING
    log = grown((1, 3))
    page = log.read(None)
    assert follower.read(page) == [Wake()]
    assert follower.phase is Phase.LIVE
    assert (follower.head, follower.running_until, follower.lease_left) == (HEAD, 100.0, 60.0)


def test_bells_that_ring_while_the_log_is_read_are_kept() -> None:
    driver = Driver(grown((1, 2)))
    driver.do(driver.follower.listen())
    driver.log.append(span_of(3, 3))
    driver.hear(driver.log.bells.pop())
    driver.do(driver.follower.heard())
    driver.look()
    for n in (4, 5, 6):
        driver.log.append(span_of(n, n))
        driver.hear(driver.log.bells.pop())
    assert driver.follower.mirror is None
    driver.receive()
    assert (driver.follower.phase, driver.reads) == (Phase.LIVE, [])
    driver.finished()


def test_bells_kept_aside_that_overtook_each_other_make_no_hole() -> None:
    driver = Driver(grown((1, 2)))
    driver.begin()
    driver.look()
    for n in (3, 4, 5):
        driver.log.append(span_of(n, n))
    driver.log.finish()
    for bell in reversed(driver.log.bells):
        driver.hear(bell)
    driver.receive()
    assert (driver.follower.phase, driver.reads) == (Phase.ENDED, [])
    driver.finished()


def test_a_bell_without_content_while_the_log_is_read_is_a_reason_to_read_again() -> None:
    driver = Driver(grown((1, 2)))
    driver.begin()
    driver.look()
    driver.log.append(span_of(3, 3))
    driver.hear(Bell(id="s"))
    driver.receive()
    assert driver.reads == [Cursor(EPOCH, 2)]
    driver.settle()
    driver.finished()


def test_a_live_mirror_takes_bells_and_fills_holes() -> None:
    driver = live((1, 2))
    driver.log.append(span_of(3, 3))
    driver.hear(driver.log.bells.pop())
    assert driver.reads == []
    driver.finished()
    for n in (4, 5, 6):
        driver.log.append(span_of(n, n))
    driver.hear(driver.log.bells.pop())
    assert (driver.follower.phase, driver.reads) == (Phase.HYDRATING, [Cursor(EPOCH, 3)])
    driver.hear(driver.log.bells.pop())
    assert driver.follower.holes_filled == 0
    driver.settle()
    assert driver.follower.phase is Phase.LIVE
    assert driver.follower.holes_filled == 1
    driver.finished()


def test_the_ending_closes_it() -> None:
    driver = live((1, 2))
    driver.log.append(span_of(3, 3))
    driver.log.finish()
    ending = driver.log.bells.pop()
    driver.hear(ending)
    assert driver.follower.phase is Phase.HYDRATING
    driver.settle()
    assert driver.follower.phase is Phase.ENDED
    driver.finished()
    assert driver.follower.poll() == driver.follower.bell(ending) == []
    # It may have been deleted: who can tell?
    driver.hear(Bell(id="s"))
    driver.look()
    driver.hear(Bell(id="s"))
    driver.receive()
    assert driver.reads == [Cursor(EPOCH, 3)]
    driver.settle()
    assert driver.follower.phase is Phase.ENDED


def test_an_ended_log_is_read_once() -> None:
    driver = Driver(grown((1, 2), (3, 4), ended=True))
    driver.begin()
    driver.settle()
    assert driver.follower.phase is Phase.ENDED
    driver.finished()
    empty = Driver(grown(ended=True))
    empty.begin()
    empty.settle()
    assert (empty.follower.phase, empty.woken) == (Phase.ENDED, 1)


def test_a_long_log_is_read_page_by_page() -> None:
    driver = Driver(grown((1, 3), (4, 6), (7, 9)))
    driver.begin()
    for n in (3, 6):
        driver.look(limit=len(span_of(n - 2, n).data))
        driver.receive()
        assert driver.follower.phase is Phase.HYDRATING
        assert driver.reads == [Cursor(EPOCH, n)]
    driver.log.append(span_of(10, 10))
    driver.hear(driver.log.bells.pop())
    driver.settle()
    assert driver.follower.phase is Phase.LIVE
    assert driver.follower.holes_filled == 0, "what was there before the first bell is not a hole"
    driver.finished()


def test_a_bell_without_content_is_a_reason_to_read() -> None:
    driver = live((1, 2))
    driver.log.append(span_of(3, 3))
    driver.hear(Bell(id="s"))
    driver.look()
    # It rings again while the answer is on its way: the answer may be too old.
    driver.log.append(span_of(4, 4))
    driver.hear(Bell(id="s"))
    driver.receive()
    assert driver.reads == [Cursor(EPOCH, 3)]
    driver.settle()
    driver.finished()


def test_the_last_bell_is_lost_and_the_poll_finds_out() -> None:
    driver = live((1, 2))
    driver.log.append(span_of(3, 3))
    driver.log.finish()
    driver.do(driver.follower.poll())
    # While the poll is under way bells are taken as always.
    driver.look()
    driver.hear(driver.log.bells.popleft())
    driver.receive()
    driver.settle()
    assert driver.follower.phase is Phase.ENDED
    assert driver.follower.holes_filled == 1
    driver.finished()


def test_lost_bells_begin_again_with_listening() -> None:
    for phase in (Phase.LISTENING, Phase.HYDRATING, Phase.LIVE):
        driver = Driver(grown((1, 2)))
        driver.do(driver.follower.listen())
        if phase is not Phase.LISTENING:
            driver.do(driver.follower.heard())
            driver.look()
        if phase is Phase.LIVE:
            driver.receive()
        assert driver.follower.phase is phase
        driver.do(driver.follower.deaf())
        assert driver.follower.phase is Phase.STALE
        driver.log.append(span_of(3, 3))
        driver.hear(driver.log.bells.pop())
        assert driver.follower.poll() == driver.follower.heard() == []
        driver.receive()  # an answer that was on its way is as good as any
        assert driver.follower.phase is Phase.STALE
        assert driver.follower.listen() == [Listen()]
        driver.do(driver.follower.heard())
        driver.settle()
        assert driver.follower.phase is Phase.LIVE
        driver.finished()


def test_a_read_that_fails_is_tried_again() -> None:
    driver = Driver(grown((1, 2)))
    driver.begin()
    driver.reads.clear()
    assert driver.follower.unread() == []
    driver.do(driver.follower.retry())
    driver.settle()
    assert driver.follower.phase is Phase.LIVE
    driver.do(driver.follower.poll())
    driver.reads.clear()
    driver.follower.unread()
    driver.log.append(span_of(3, 3))
    driver.do(driver.follower.retry())
    driver.settle()
    driver.finished()


def test_a_read_that_fails_is_not_tried_again_beside_another() -> None:
    driver = Driver(grown((1, 2)))
    driver.begin()
    driver.settle()
    driver.do(driver.follower.poll())
    driver.reads.clear()
    driver.follower.unread()
    driver.hear(Bell(id="s"))  # the bells are back, and some were lost
    assert len(driver.reads) == 1
    driver.do(driver.follower.retry())
    driver.look()
    driver.receive()
    # That read began after the failure, so nothing is read once more.
    assert driver.reads == []
    driver.finished()


def test_the_inbox_rings_too() -> None:
    driver = live((1, 2))
    driver.hear(Bell(id="s", item=Control(3, "stop"), epoch=EPOCH, n=2))
    assert driver.follower.control == Control(3, "stop")
    assert driver.reads == []


# --- when the log has something else


def test_another_log_is_never_mixed_in() -> None:
    driver = live((1, 2), (3, 4))
    other = Log(epoch="zzzz")
    other.append(span_of(1, 4))
    other.append(span_of(5, 5))
    driver.log = other
    before = driver.follower.mirror
    assert before is not None
    steps = driver.follower.bell(other.bells.pop())
    assert steps == [Read(Cursor(EPOCH, 4))]
    answer = other.read(Cursor(EPOCH, 4))
    assert driver.follower.read(answer) == [Wake()]
    assert driver.follower.phase is Phase.GONE
    assert isinstance(driver.follower.gone, Gone) and driver.follower.gone.why == "other_epoch"
    assert (before.n, before.ending) == (4, None)


def test_a_log_that_went_back_is_waited_for() -> None:
    driver = live((1, 2), (3, 4))
    lost = driver.log.spans.pop()
    driver.log.record.n, driver.log.record.b, driver.log.record.c = 2, span_of(2, 2).b, 1
    steps = driver.follower.poll()
    assert steps == [Read(Cursor(EPOCH, 4))]
    assert driver.follower.read(driver.log.read(Cursor(EPOCH, 4))) == [Wake()]
    assert driver.follower.phase is Phase.GONE
    assert isinstance(driver.follower.gone, Gone) and driver.follower.gone.why == "went_back"
    # Still so: nobody is woken again.
    assert driver.follower.poll() == [Read(Cursor(EPOCH, 4))]
    assert driver.follower.read(driver.log.read(Cursor(EPOCH, 4))) == []
    # The producer has sent its copy again.
    driver.log.append(lost)
    driver.log.append(span_of(5, 5))
    driver.hear(driver.log.bells.pop())
    driver.settle()
    assert (driver.follower.phase, driver.follower.gone) == (Phase.LIVE, None)
    driver.finished()


def test_a_log_that_is_away_and_comes_back() -> None:
    driver = live((1, 2))
    driver.do(driver.follower.poll())
    driver.reads.clear()
    driver.do(driver.follower.read(Unknown()))
    assert (driver.follower.phase, driver.follower.gone) == (Phase.GONE, Unknown())
    driver.do(driver.follower.deaf())
    driver.begin()
    assert driver.reads == [Cursor(EPOCH, 2)]
    driver.woken = 0
    driver.settle()
    assert (driver.follower.phase, driver.follower.gone) == (Phase.LIVE, None)
    assert driver.woken == 1


def test_a_trimmed_log_is_followed_from_its_oldest_event() -> None:
    log = grown((1, 3), (4, 6), (7, 9))
    log.trim(4)
    driver = Driver(log)
    driver.begin()
    driver.settle()
    mirror = driver.follower.mirror
    assert mirror is not None
    assert (driver.follower.phase, mirror.oldest, mirror.n) == (Phase.LIVE, 4, 9)
    driver.finished()
    # Trimmed past what the mirror has.
    driver.log.bells.clear()
    for first in (10, 13, 16):
        driver.log.append(span_of(first, first + 2))
    driver.log.trim(16)
    driver.hear(driver.log.bells.pop())
    driver.settle()
    after = driver.follower.mirror
    assert after is not None and after is not mirror
    assert (driver.follower.phase, after.oldest, after.n) == (Phase.LIVE, 16, 18)
    assert (mirror.oldest, mirror.n) == (4, 9)


def test_a_log_that_contradicts_itself_is_damaged() -> None:
    driver = live((1, 2))
    page = driver.log.read(Cursor(EPOCH, 2))
    assert isinstance(page, Page)
    wrong = replace(page, n=4, spans=(span_of(3, 3), replace(span_of(4, 4), b=999)))
    driver.follower.poll()
    with pytest.raises(LogUnavailable, match="damaged"):
        driver.follower.read(wrong)


@pytest.mark.parametrize("seen", range(2, 6))
@pytest.mark.parametrize("now", range(2, 6))
@pytest.mark.parametrize("ended", [False, True])
def test_a_history_that_was_written_anew_is_gone_for_who_has_read_the_old_one(seen: int, now: int, ended: bool) -> None:
    """
    The log lost all but its first event, and somebody else wrote others in their place, under the same epoch.

    No log of this package does so, but one of the caller may. The mirror must not splice the two: readers would get the first
    history up to a number and the second one after it. They are told that theirs is gone, and read the other one from its start.
    """
    driver = live((1, 1), *((n, n) for n in range(2, seen + 1)))
    old = b"".join(span_of(n, n).data for n in range(1, seen + 1))
    log = driver.log
    del log.spans[1:]
    log.record.n, log.record.b, log.record.c = 1, log.spans[0].b, 1
    for n in range(2, now + 1):
        data = b"data: another %d\n\n" % n
        log.append(Span(n=n, b=log.record.b + len(data), lengths=(len(data),), data=data))
    if ended:
        log.finish()
    log.bells.clear()
    driver.do(driver.follower.poll())
    driver.settle()
    mirror = driver.follower.mirror
    assert mirror is not None and mirror.ending is None
    assert mirror.after(0) == (old, seen)
    assert driver.follower.phase is Phase.GONE


# --- with a producer in this process


def test_a_producer_in_this_process_needs_no_bell() -> None:
    follower = Follower()
    assert follower.own(EPOCH, HEAD) == [Wake()]
    assert follower.phase is Phase.LIVE
    for n in (1, 2, 3):
        assert follower.appended(span_of(n, n)) == [Wake()]
        # Its bell, if somebody listens all the same.
        assert follower.bell(Bell(id="s", item=span_of(n, n), epoch=EPOCH, n=n)) == []
    assert follower.appended(span_of(3, 3)) == follower.deaf() == follower.poll() == []
    assert follower.finished(OK, 3) == [Wake()]
    assert follower.phase is Phase.ENDED
    assert follower.mirror is not None
    assert (follower.mirror.n, follower.mirror.ending) == (3, OK)


def test_a_fenced_producer_leaves_the_mirror_to_the_bells() -> None:
    driver = Driver(Log())
    assert driver.follower.disown() == []
    driver.do(driver.follower.own(EPOCH, HEAD))
    driver.log.append(span_of(1, 1))
    driver.do(driver.follower.appended(span_of(1, 1)))
    driver.log.append(span_of(2, 2))  # by the other one
    assert driver.follower.disown() == [Listen()]
    assert driver.follower.phase is Phase.LISTENING
    driver.do(driver.follower.heard())
    driver.settle()
    assert driver.follower.phase is Phase.LIVE
    assert driver.follower.holes_filled == 0
    driver.finished()


def test_a_takeover_reads_what_the_mirror_lacks() -> None:
    driver = Driver(grown((1, 3), (4, 6)))
    driver.do(driver.follower.own(EPOCH, HEAD, n=6))
    assert driver.follower.phase is Phase.HYDRATING
    driver.look()
    # It appends before the answer is there.
    driver.log.append(span_of(7, 7))
    driver.do(driver.follower.appended(span_of(7, 7)))
    driver.log.finish()
    driver.do(driver.follower.finished(OK, 7))
    driver.receive()
    driver.settle()
    assert driver.follower.phase is Phase.ENDED
    driver.finished()


def test_an_answer_about_an_older_log_is_not_taken() -> None:
    driver = Driver(grown((1, 3)))
    driver.begin()
    driver.look()
    new = Log(epoch="zzzz")
    new.append(span_of(1, 2))
    driver.log = new
    driver.do(driver.follower.own("zzzz", HEAD, n=2))
    driver.receive()
    assert driver.reads == [Cursor("zzzz", 0)]
    driver.settle()
    assert driver.follower.mirror is not None and driver.follower.mirror.epoch == "zzzz"
    driver.finished()


def test_a_takeover_of_a_live_mirror_goes_on_with_it() -> None:
    driver = live((1, 2))
    mirror = driver.follower.mirror
    driver.do(driver.follower.own(EPOCH, HEAD, n=2))
    assert driver.follower.phase is Phase.LIVE
    driver.log.append(span_of(3, 3))
    driver.do(driver.follower.appended(span_of(3, 3)))
    assert driver.follower.mirror is mirror
    driver.finished()


def test_a_takeover_behind_the_mirror_begins_another_one() -> None:
    driver = live((1, 2), (3, 4))
    mirror = driver.follower.mirror
    driver.log.spans.pop()
    driver.log.record.n, driver.log.record.b, driver.log.record.c = 2, span_of(2, 2).b, 1
    driver.seen = 0
    driver.do(driver.follower.own(EPOCH, HEAD, n=2))
    driver.settle()
    assert driver.follower.mirror is not mirror
    driver.finished()


# --- every order


def played(driver: Driver, heard: Sequence[Bell], moments: tuple[int, int]) -> None:
    """Deliver the bells; the first read happens before bell `moments[0]`, and its answer comes before bell `moments[1]`."""
    for place, bell in enumerate(heard):
        if place == moments[0]:
            driver.look()
        if place == moments[1]:
            driver.receive()
        driver.hear(bell)
    driver.settle()
    driver.do(driver.follower.poll())
    driver.settle()
    assert driver.follower.phase is Phase.ENDED
    driver.finished()


# By default the first read comes at one moment, and each way of ringing meets one state of the log; in `make soak` all of them.
@pytest.mark.parametrize("moments", [[(1, 1)], pytest.param([(0, 1), (0, 2), (1, 1), (2, 4)], marks=pytest.mark.soak)])
def test_every_order_of_lost_doubled_and_swapped_bells(moments: list[tuple[int, int]]) -> None:
    """Three spans and the ending: all orders, each bell lost, once or twice, and all moments of the first read."""
    count = 0
    each = len(moments) > 1
    for turn, order in enumerate(itertools.permutations(range(4))):
        for times in itertools.product((0, 1, 2), repeat=4):
            for grown_before in range(4) if each else [(turn + sum(times)) % 4]:
                for moment in moments:
                    log = Log()
                    pieces = [(1, 1), (2, 4), (5, 5)]
                    for piece in pieces[:grown_before]:
                        log.append(span_of(*piece))
                    driver = Driver(log)
                    driver.begin()
                    driver.look()  # the log as it was when the bell was heard
                    for piece in pieces[grown_before:]:
                        log.append(span_of(*piece))
                    log.finish()
                    bells = list(log.bells)
                    heard = [bells[place] for place in order for _ in range(times[place])]
                    played(driver, heard, moment)
                    count += 1
    assert count == 24 * 81 * (4 * len(moments) if each else 1)


def test_random_faults_of_a_long_stream() -> None:
    """Bells lost, doubled and swapped, reads that overlap with them, bells that are lost altogether, polls in between."""
    for seed in range(150):
        chance = random.Random(seed)
        log = Log()
        driver = Driver(log)
        driver.do(driver.follower.listen())
        waiting: list[Bell] = []
        n = 0
        while log.record.ending is None:
            if n >= 120:
                log.finish()
            else:
                size = chance.randrange(1, 4)
                log.append(span_of(n + 1, n + size))
                n += size
            bell = log.bells.popleft()
            waiting += [bell] * chance.choice((0, 1, 1, 1, 2))
            for _ in range(chance.randrange(4)):
                match chance.randrange(8):
                    case 0:
                        driver.do(driver.follower.heard())
                    case 1:
                        driver.look(limit=chance.choice((30, 1 << 20)))
                    case 2:
                        driver.receive()
                    case 3:
                        driver.do(driver.follower.poll())
                    case 4 if chance.random() < 0.1:
                        driver.do(driver.follower.deaf())
                    case 5:
                        driver.do(driver.follower.listen())
                    case 6 if (driver.reads or driver.answers) and chance.random() < 0.2:
                        driver.reads.clear()
                        driver.answers.clear()
                        driver.do(driver.follower.unread())
                        driver.do(driver.follower.retry())
                    case _ if waiting:
                        driver.hear(waiting.pop(chance.choice((0, 0, 0, -1))))
        driver.do(driver.follower.listen())
        driver.do(driver.follower.heard())
        driver.settle()
        driver.do(driver.follower.poll())
        driver.settle()
        assert driver.follower.phase is Phase.ENDED, seed
        driver.finished()


def test_bells_kept_aside_are_bounded() -> None:
    driver = Driver(grown((1, 1)))
    driver.begin()
    driver.look()
    for n in range(2, 1200):
        driver.log.append(span_of(n, n))
        driver.hear(driver.log.bells.pop())
    assert len(driver.follower._aside) <= 1000
    driver.receive()
    driver.settle()
    mirror = driver.follower.mirror
    assert mirror is not None and mirror.n == 1199
