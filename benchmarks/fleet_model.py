"""
A large fleet as a model: every reader, every mirror and every Redis command is an event on a heap. No hubs run.

A cohort is all readers of one stream on one instance. They share a mirror, so they are alike as long as they stay. Between two
incidents of a cohort nothing is simulated: a stream has an event every `interval`, so its place is arithmetic.

The decisive parts are the package's own: the waits of readers (`RetryPolicy`, `Budget.PROMPT`), `wire.retry_line` with its
bounds, the back-off while the log is unavailable. Leases, polls and sweeps have the defaults of `Hub`. For one stream in
`SAMPLE` the whole path is real: a `Record` with the judgements of the log, a `Follower` with its `Mirror` for each cohort, with
one bell in fifty lost, and readers that check each event.
"""

from __future__ import annotations

import gc
import heapq
import random
from collections.abc import Callable
from typing import Any, Final

from fleet_plan import COSTS, Plan, Report, client_wait

from resumable_stream.server import wire
from resumable_stream.server._backoff import FIRST_RETRY, LAST_RETRY
from resumable_stream.server._rules import Record, judge_append, judge_claim, judge_read, judge_restore, page_of
from resumable_stream.server.following import _EARLIEST_POLL, _RELEASED
from resumable_stream.server.log import Append, Bell, Cursor, Gone, Head, Lost, Span, Unknown, Writer
from resumable_stream.server.mirror import Follower, Listen, Read

__all__ = ["SAMPLE", "run_model"]

SAMPLE: Final = 400
LEASE, POLL, IDLE, TICK = 15.0, 5.0, 30.0, 1.0
_HEAD: Final = Head(content_type="text/event-stream", framing="sse")


class Cohort:
    """The mirror of a stream on an instance, and its readers there."""

    __slots__ = ("empty_since", "instance", "last", "live", "n", "readers", "stream", "waiting")

    def __init__(self, stream: int, instance: int) -> None:
        self.stream, self.instance = stream, instance
        self.live = False
        self.n = 0
        self.last = 0.0
        self.readers: list[int] = []
        self.waiting: list[int] | None = []
        self.empty_since = 0.0


class Real:
    """One stream with the real rules: its log, the mirrors of its cohorts, and what its readers received."""

    def __init__(self, number: int, rng: random.Random) -> None:
        self.id = f"s{number}"
        self.rng = rng
        self.record: Record | None = Record.create(_HEAD, "aaaa", lease=LEASE, now=0.0)
        self.spans: list[Span] = []
        self.held: list[Span] = []
        """The producer's own mirror."""
        self.writer = Writer(self.id, "aaaa", 1, LEASE, _HEAD.retention)
        self.followers: dict[int, Follower] = {}
        self.deaf: set[int] = set()
        self.places: dict[int, tuple[int, int]] = {}
        """The instance of each connected reader, and the last event that it has."""

    def append(self, n: int, now: float) -> None:
        """The producer appends its events up to `n` to the log, one span each."""
        while (self.held[-1].n if self.held else 0) < n:
            last = self.held[-1] if self.held else None
            number = last.n + 1 if last else 1
            data = b"data: %s:%d\n\n" % (self.id.encode(), number)
            span = Span(n=number, b=(last.b if last else 0) + len(data), lengths=(len(data),), data=data)
            verdict = judge_append(self.record, len(self.spans), Append(self.writer, span))
            if isinstance(verdict, Lost):
                assert judge_restore(self.record, len(self.spans), self.writer) is None
                self.record = Record.restore(self.writer, _HEAD, "aaaa", self.held, now=now)
                self.spans = list(self.held)
                self.writer = Writer(self.id, "aaaa", self.record.fence, LEASE, _HEAD.retention)
                self.ring(Bell(id=self.id))
                continue
            assert verdict is None, verdict
            assert self.record is not None
            self.record.append(Append(self.writer, span), now)
            self.spans.append(span)
            self.held.append(span)
            if self.rng.random() > 0.02:
                self.ring(Bell(id=self.id, item=span, epoch=self.record.epoch, n=span.n))

    def ring(self, bell: Bell) -> None:
        for instance, follower in self.followers.items():
            if instance not in self.deaf:
                self.do(instance, follower.bell(bell))

    def claim(self, now: float) -> None:
        """Another instance takes the stream over, and continues after the last event in the log."""
        assert self.record is not None
        assert judge_claim(self.record, now) is None
        self.writer = self.record.claim(self.id, lease=LEASE, now=now, entries=len(self.spans), epoch="bbbb")
        self.held = list(self.spans)

    def listen(self, instance: int) -> None:
        """A mirror starts here, or receives bells again."""
        self.deaf.discard(instance)
        follower = self.followers.get(instance)
        if follower is None:
            follower = self.followers[instance] = Follower()
            self.do(instance, follower.listen())
        else:
            self.do(instance, follower.bell(Bell(id=self.id)))

    def do(self, instance: int, steps: list[Any]) -> None:
        follower = self.followers[instance]
        for step in steps:
            if isinstance(step, Listen):
                self.do(instance, follower.heard())
            elif isinstance(step, Read):
                self.do(instance, follower.read(self.read(step.after)))

    def read(self, after: Cursor | None) -> Any:
        start: int | Gone | Unknown = judge_read(self.record, len(self.spans), after, now=0.0)
        if not isinstance(start, int) or self.record is None:
            return start
        entries = [span for span in self.spans if span.n > start]
        return page_of(self.id, self.record, len(self.spans), start, entries, limit_bytes=4 << 20, now=0.0)

    def attach(self, reader: int, instance: int, n: int) -> None:
        self.places[reader] = instance, n
        self.take(reader)

    def take(self, reader: int) -> None:
        """A reader takes what its mirror has, and checks each event."""
        instance, n = self.places[reader]
        mirror = self.followers[instance].mirror
        assert mirror is not None
        while True:
            chunk, end = mirror.after(n)
            if not chunk:
                break
            wanted = b"".join(b"data: %s:%d\n\n" % (self.id.encode(), number) for number in range(n + 1, end + 1))
            assert chunk == wanted, f"reader {reader} of {self.id} wanted {n + 1} to {end}, and got {chunk[:100]!r}"
            n = end
        self.places[reader] = instance, n

    def detach(self, reader: int) -> int:
        self.take(reader)
        return self.places.pop(reader)[1]


class Model:
    """A fleet."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.report = plan, Report(plan)
        self.rng = random.Random(plan.seed)
        self.now = 0.0
        self.heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.seq = 0
        # Instances.
        self.cohorts: list[dict[int, Cohort]] = []
        """The cohorts of each instance, by stream."""
        self.alive: list[bool] = []
        self.reachable: list[bool] = []
        self.open_until: list[float] = []
        self.tick: list[float] = []
        self.here: list[int] = []
        self.routed: list[int] = []
        for _ in range(plan.instances):
            self.add_instance()
        # Shards.
        self.up = [True] * plan.shards
        self.busy_until = [0.0] * plan.shards
        load = plan.streams / plan.shards / plan.interval
        self.load = load * COSTS["append"] * 1e-6
        self.speed = 1 / max(1 - self.load, 0.01)
        # Streams.
        self.phase = [self.rng.random() * plan.interval for _ in range(plan.streams)]
        self.producer = [number % plan.instances for number in range(plan.streams)]
        self.stopped: dict[int, tuple[int, float]] = {}
        """Streams that do not grow: the last event in the log, and the time of the stop."""
        self.lost: set[int] = set()
        self.of_stream: list[list[Cohort]] = [[] for _ in range(plan.streams)]
        self.real = {number: Real(number, self.rng) for number in range(0, plan.streams, SAMPLE)}
        # Readers.
        self.n = [0] * plan.readers
        self.got = [0] * plan.readers
        self.place: list[Cohort | None] = [None] * plan.readers
        self.retry = [0.0] * plan.readers
        self.attempts = bytearray(plan.readers)
        self.browser = bytearray(self.rng.random() < plan.browsers for _ in range(plan.readers))
        self.last = [0.0] * plan.readers
        self.longest = [plan.interval] * plan.readers

    def add_instance(self) -> int:
        self.cohorts.append({})
        self.alive.append(True)
        self.reachable.append(True)
        self.open_until.append(0.0)
        self.tick.append(self.rng.random() * TICK)
        self.here.append(0)
        self.routed.append(len(self.alive) - 1)
        return len(self.alive) - 1

    # --- time

    def at(self, when: float, do: Callable[..., None], *args: Any) -> None:
        self.seq += 1
        heapq.heappush(self.heap, (when, self.seq, do, args))

    def run(self, until: float) -> None:
        heap = self.heap
        while heap and heap[0][0] <= until:
            self.now, _, do, args = heapq.heappop(heap)
            do(*args)
        self.now = until

    # --- Redis

    def shard_of(self, stream: int) -> int:
        return stream * 7919 % 1_000_003 % self.plan.shards

    def serves(self, instance: int, stream: int) -> bool:
        return self.up[self.shard_of(stream)] and self.reachable[instance]

    def command(self, shard: int, name: str, times: int = 1) -> float:
        """When these commands are answered."""
        work = times * COSTS[name] * 1e-6
        self.busy_until[shard] = max(self.now, self.busy_until[shard]) + work * self.speed
        self.report.commands(shard, self.busy_until[shard], name, times)
        return self.busy_until[shard] + self.plan.latency

    def back(self, first: float = FIRST_RETRY, last: float = LAST_RETRY, *, since: float, until: float) -> float:
        """The first attempt after `until`, with a back-off that began at `since`."""
        wait, when = first, since
        while when < until:
            when += min(wait, last) * self.rng.uniform(0.5, 1.0)
            wait *= 2
        return when

    # --- streams

    def n_of(self, stream: int) -> int:
        """The last event in the log."""
        if stream in self.stopped:
            return self.stopped[stream][0]
        return max(0, int((self.now - self.phase[stream]) / self.plan.interval))

    def when(self, stream: int, n: int) -> float:
        return self.phase[stream] + n * self.plan.interval

    def stop(self, stream: int) -> None:
        if stream not in self.stopped:
            self.sync(stream)
            n = self.n_of(stream)
            self.stopped[stream] = n, self.when(stream, n)

    def sync(self, stream: int) -> None:
        """Advance a stream with the real rules to this moment."""
        if (real := self.real.get(stream)) is not None and stream not in self.lost:
            real.append(self.n_of(stream), self.now)

    def go_on(self, stream: int) -> None:
        """The log accepts its events again; waiting ones are in it at once."""
        if stream in self.lost or stream not in self.stopped:
            return
        _, since = self.stopped.pop(stream)
        self.sync(stream)
        for cohort in self.of_stream[stream]:
            if cohort.live:
                for reader in cohort.readers:
                    self.waited(reader, self.now - since)

    def live(self, cohort: Cohort) -> None:
        """A mirror has all of the log, and receives its bells."""
        if cohort.live or cohort.stream in self.lost:
            return
        if (real := self.real.get(cohort.stream)) is not None:
            self.sync(cohort.stream)
            real.listen(cohort.instance)
        cohort.live = True
        if cohort.stream not in self.stopped:
            for reader in cohort.readers:
                self.waited(reader, self.now - cohort.last)
        waiting, cohort.waiting = cohort.waiting, None
        for reader in waiting or ():
            self.attach(reader, cohort)

    def deafen(self, cohort: Cohort) -> None:
        if cohort.live:
            cohort.n = self.n_of(cohort.stream)
            cohort.last = self.stopped[cohort.stream][1] if cohort.stream in self.stopped else self.when(cohort.stream, cohort.n)
            self.sync(cohort.stream)
            cohort.live = False
            if (real := self.real.get(cohort.stream)) is not None:
                real.deaf.add(cohort.instance)
                real.listen(cohort.instance)  # the last bells
                real.deaf.add(cohort.instance)

    def waited(self, reader: int, seconds: float) -> None:
        if seconds > self.longest[reader]:
            self.longest[reader] = seconds

    # --- readers

    def attach(self, reader: int, cohort: Cohort) -> None:
        stream = cohort.stream
        cohort.readers.append(reader)
        self.place[reader] = cohort
        self.here[cohort.instance] += 1
        self.retry[reader] = _seconds(wire.retry_line(self.rng.random(), wire.retry_bounds(self.here[cohort.instance])))
        if (real := self.real.get(stream)) is not None:
            self.sync(stream)
            real.attach(reader, cohort.instance, self.n[reader])
        n = self.n_of(stream) if cohort.live else cohort.n
        if n > self.n[reader]:
            self.waited(reader, self.now - self.last[reader])
            self.attempts[reader] = 0

    def detach(self, reader: int) -> None:
        """Its next cursor names all that it has until now."""
        cohort = self.place[reader]
        assert cohort is not None
        stream = cohort.stream
        n = self.n_of(stream) if cohort.live else cohort.n
        if (real := self.real.get(stream)) is not None:
            self.sync(stream)
            if n > self.n[reader]:
                n = real.detach(reader)
            else:
                real.detach(reader)
        if n > self.n[reader]:
            self.got[reader] += n - self.n[reader]
            self.n[reader] = n
            self.last[reader] = self.when(stream, n)
        self.place[reader] = None
        self.here[cohort.instance] -= 1

    def leave(self, reader: int) -> None:
        """The instance disconnects it."""
        cohort = self.place[reader]
        if cohort is not None:
            self.detach(reader)
            cohort.readers.remove(reader)
            cohort.empty_since = self.now
            self.come_back(reader)

    def come_back(self, reader: int, retry_after: float = 0.0) -> None:
        attempt = self.attempts[reader]
        self.attempts[reader] = min(attempt + 1, 9)
        wait = client_wait(bool(self.browser[reader]), self.retry[reader], retry_after, attempt, self.rng)
        self.at(self.now + wait, self.attempt, reader)

    def attempt(self, reader: int) -> None:
        instance = self.rng.choice(self.routed)
        self.report.reconnect(self.now, instance)
        if not self.alive[instance]:
            self.come_back(reader)
            return
        self.open_until[instance] = max(self.now, self.open_until[instance]) + self.plan.open_seconds
        self.at(self.open_until[instance], self.open, reader, instance)

    def open(self, reader: int, instance: int) -> None:
        stream = reader % self.plan.streams
        if stream in self.lost:
            self.report.lost += 1
            self.n[reader] = -1
            return
        if not self.alive[instance] or instance not in self.routed_set:
            self.come_back(reader)
            return
        cohort = self.cohorts[instance].get(stream)
        if cohort is not None and not cohort.readers and not cohort.waiting and self.now - cohort.empty_since > IDLE:
            self.forget(cohort)
            cohort = None
        if cohort is None:
            if not self.serves(instance, stream):
                self.refuse(reader)
                return
            cohort = self.cohorts[instance][stream] = Cohort(stream, instance)
            self.of_stream[stream].append(cohort)
            shard = self.shard_of(stream)
            self.command(shard, "subscribe")
            self.at(self.command(shard, "read") + self.plan.latency, self.live, cohort)
        if cohort.waiting is not None:
            cohort.waiting.append(reader)
        else:
            self.attach(reader, cohort)

    def refuse(self, reader: int) -> None:
        """The log is unavailable and this instance has no part of the stream: the reader is asked to come back later."""
        if self.browser[reader]:
            self.retry[reader] = _seconds(wire.retry_line(self.rng.random(), wire.COME_BACK_MS))
            self.come_back(reader)
        else:
            answer = wire.unavailable("log_unavailable", random=self.rng.random())
            self.come_back(reader, float(answer.header("Retry-After") or 0))

    def forget(self, cohort: Cohort) -> None:
        del self.cohorts[cohort.instance][cohort.stream]
        self.of_stream[cohort.stream].remove(cohort)
        if (real := self.real.get(cohort.stream)) is not None:
            real.followers.pop(cohort.instance, None)

    # --- instances

    @property
    def routed_set(self) -> set[int]:
        if len(self.routed) != self._routed_size:
            self._routed_size, self._routed_set = len(self.routed), set(self.routed)
        return self._routed_set

    _routed_size = -1
    _routed_set: set[int]

    def unroute(self, *instances: int) -> None:
        self.routed = [each for each in self.routed if each not in instances]
        self._routed_size = -1

    def route(self, *instances: int) -> None:
        self.routed += instances
        self._routed_size = -1

    def of_instance(self, *instances: int) -> list[Cohort]:
        return [cohort for instance in instances for cohort in self.cohorts[instance].values()]

    def cut(self, *instances: int) -> None:
        """All readers connected there are cut, at the same moment."""
        for cohort in self.of_instance(*instances):
            for reader in cohort.readers:
                self.detach(reader)
                self.come_back(reader)
            for reader in cohort.waiting or ():
                self.come_back(reader)
            cohort.readers, cohort.waiting = [], None
            self.forget(cohort)

    # --- streams without a producer

    def poll_wait(self) -> float:
        """Seconds before a silent mirror polls."""
        return POLL * self.rng.uniform(_EARLIEST_POLL, 1.0)

    def orphaned(self, stream: int, when: float, *, released: bool = False) -> None:
        """From then on, any instance that polls the stream or sweeps may claim it; a bell announces a released one."""
        polls = []
        _, last = self.stopped[stream]
        for cohort in self.of_stream[stream]:
            if cohort.readers and self.alive[cohort.instance] and self.reachable[cohort.instance]:
                if released:
                    if cohort.instance in self.routed_set:
                        polls.append((when + self.rng.uniform(0.0, _RELEASED), cohort.instance))
                    continue
                due = last + self.poll_wait()
                while due < when:
                    due += self.poll_wait() + TICK / 2
                # An instance polls at its ticks.
                polls.append((due + (self.tick[cohort.instance] - due) % TICK, cohort.instance))
        polls.sort()
        if not polls:
            due = max(when, self.now)
            polls = [(due + LEASE * self.rng.random(), self.rng.choice(self.routed))]
        first = polls[0][0]
        for due, instance in polls:
            if due <= first + 5 * self.plan.latency:
                self.at(max(due, self.now), self.claim, stream, instance)

    def claim(self, stream: int, instance: int) -> None:
        shard = self.shard_of(stream)
        if not self.serves(instance, stream):
            self.at(self.now + POLL, self.claim, stream, instance)
            return
        self.report.claims += 1
        self.command(shard, "read")
        answered = self.command(shard, "claim")
        if not self.alive[self.producer[stream]] or not self.reachable[self.producer[stream]]:
            self.producer[stream] = instance
            if (real := self.real.get(stream)) is not None:
                real.claim(1e9)
            self.at(answered, self.go_on, stream)


def _seconds(line: bytes) -> float:
    return int(line[7:]) / 1000


# --- scenarios ----------------------------------------------------------------------------------------------------------


def _deploy(model: Model) -> None:
    plan = model.plan
    begun = plan.begin

    def drain(instance: int) -> None:
        model.unroute(instance)
        model.add_instance()
        readers = [reader for cohort in model.of_instance(instance) for reader in cohort.readers]
        for index, reader in enumerate(readers):
            model.at(model.now + index * plan.drain_spread / len(readers), model.leave, reader)

    def stop(instance: int) -> None:
        model.alive[instance] = False
        for cohort in model.of_instance(instance):
            for reader in list(cohort.readers):
                model.leave(reader)
            model.forget(cohort)
        for stream, producer in enumerate(model.producer):
            if producer == instance:
                model.stop(stream)
                model.orphaned(stream, model.now, released=True)

    for start in range(0, plan.instances, plan.at_once):
        for instance in range(start, min(start + plan.at_once, plan.instances)):
            model.at(begun, drain, instance)
            model.at(begun + plan.drain_timeout, stop, instance)
        begun += plan.drain_timeout + 1.0


def _shard(model: Model) -> None:
    plan, lost = model.plan, 0
    begin, back = plan.begin, plan.begin + plan.outage
    of_shard = [stream for stream in range(plan.streams) if model.shard_of(stream) == lost]

    def lose() -> None:
        model.up[lost] = False
        for stream in of_shard:
            model.stop(stream)
            if (real := model.real.get(stream)) is not None:
                real.record, real.spans = None, []
            for cohort in model.of_stream[stream]:
                model.deafen(cohort)

    by_instance: list[list[Cohort]] = [[] for _ in range(plan.instances)]

    def gather() -> None:
        for instance in range(plan.instances):
            by_instance[instance] = model.of_instance(instance)

    def return_() -> None:
        model.up[lost] = True
        for instance in range(plan.instances):
            if not model.alive[instance]:
                continue
            model.at(model.back(since=begin, until=back), write, instance)
            model.at(model.back(0.1, since=begin, until=back), hear, instance)
            for cohort in by_instance[instance]:
                if model.shard_of(cohort.stream) == lost and cohort.readers:
                    model.at(model.back(since=begin + POLL, until=back), retry, cohort)

    def retry(cohort: Cohort) -> None:
        # Each mirror on its own, unless a bell has caused a read before.
        if not cohort.live and cohort.instance not in heard:
            model.command(lost, "read")

    def write(instance: int) -> None:
        for stream in range(plan.streams):
            if model.producer[stream] == instance:
                if model.shard_of(stream) == lost:
                    model.at(model.command(lost, "restore"), restored, stream)
                else:
                    model.go_on(stream)

    def restored(stream: int) -> None:
        model.go_on(stream)
        for cohort in model.of_stream[stream]:
            if not cohort.live and cohort.instance in heard:
                model.at(model.command(lost, "read"), model.live, cohort)

    heard: set[int] = set()

    def hear(instance: int) -> None:
        mine = [cohort for cohort in by_instance[instance] if model.shard_of(cohort.stream) == lost]
        answered = model.command(lost, "subscribe", len(mine)) if mine else model.now
        model.at(answered, hydrate, instance, mine)

    def hydrate(instance: int, mine: list[Cohort]) -> None:
        heard.add(instance)
        for cohort in mine:
            # The bell that reports lost bells.
            answered = model.command(lost, "read")
            if cohort.stream not in model.stopped and cohort.stream not in model.lost:
                model.at(answered, model.live, cohort)

    def kill() -> None:
        model.alive[0] = False
        mine = [stream for stream in range(plan.streams) if model.producer[stream] == 0]
        model.cut(0)
        for stream in mine:
            model.stop(stream)
            if model.shard_of(stream) == lost:
                model.lost.add(stream)
            else:
                model.orphaned(stream, begin + LEASE)
        model.at(model.now + plan.probe, model.unroute, 0)

    def tell() -> None:
        # A lease after the log is available again, instances give up: 410 or 404.
        for stream in model.lost:
            for cohort in list(model.of_stream[stream]):
                for reader in [*cohort.readers, *(cohort.waiting or ())]:
                    model.report.lost += 1
                    model.n[reader] = -1
                cohort.readers, cohort.waiting = [], None

    model.at(begin, gather)
    model.at(begin, lose)
    if plan.kill:
        model.at(begin + plan.outage / 3, kill)
        model.at(back + LEASE, tell)
    model.at(back, return_)


def _region(model: Model) -> None:
    plan = model.plan
    cut = list(range(plan.instances // 3))
    back = plan.begin + 2 * plan.outage

    def lose() -> None:
        streams = [stream for stream in range(plan.streams) if model.producer[stream] in set(cut)]
        for instance in cut:
            model.alive[instance] = model.reachable[instance] = False
        model.cut(*cut)
        for stream in streams:
            model.stop(stream)
        # Readers have moved by the time the leases expire.
        model.at(plan.begin + LEASE - 1.0, over, streams)

    def over(streams: list[int]) -> None:
        for stream in streams:
            model.orphaned(stream, plan.begin + LEASE)

    def return_() -> None:
        for instance in cut:
            model.alive[instance] = model.reachable[instance] = True
        model.route(*cut)

    model.at(plan.begin, lose)
    model.at(plan.begin + plan.probe, model.unroute, *cut)
    model.at(back, return_)


_HAPPENS: Final = {"deploy": _deploy, "shard": _shard, "shard+kill": _shard, "region": _region}


def run_model(plan: Plan) -> Report:
    """Run a scenario as a model."""
    # Millions of small objects without cycles.
    gc.disable()
    try:
        return _run(plan)
    finally:
        gc.enable()


def _run(plan: Plan) -> Report:
    model = Model(plan)
    for reader in range(plan.readers):
        stream, instance = reader % plan.streams, model.rng.choice(model.routed)
        cohort = model.cohorts[instance].get(stream)
        if cohort is None:
            cohort = model.cohorts[instance][stream] = Cohort(stream, instance)
            model.of_stream[stream].append(cohort)
            model.live(cohort)
        model.attach(reader, cohort)
    appends = plan.streams / plan.shards / plan.interval
    _HAPPENS[plan.scenario](model)
    end = plan.lasts
    model.run(end)
    report = model.report
    for stream, real in model.real.items():
        # A last bell may be lost: the poll finds it.
        model.sync(stream)
        for instance, follower in real.followers.items():
            real.do(instance, follower.poll())
    for shard in range(plan.shards):
        for second in range(-10, int(end - plan.begin)):
            report.commands(shard, plan.begin + second, "append", round(appends))
    for reader in range(plan.readers):
        if model.n[reader] < 0:
            report.waits.append(model.longest[reader])
            continue
        if model.place[reader] is None:
            report.wrong.append(f"reader {reader} is not connected at the end")
            continue
        model.detach(reader)
        stream = reader % plan.streams
        report.check(
            model.got[reader] == model.n[reader], f"reader {reader} got {model.got[reader]} events up to {model.n[reader]}"
        )
        report.check(stream not in model.stopped, f"stream {stream} has no producer at the end")
        expected = int((end - model.phase[stream]) / plan.interval)
        lost = report.lost
        report.finished(reader, model.n[reader] - expected + plan.events, plan.events, False, model.longest[reader])
        assert report.lost == lost
    return report
