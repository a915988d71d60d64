"""Rules 1, 5, 6: a batch whose entering is interrupted has not come. No attribute of the ledger may be left behind."""

from __future__ import annotations

import gc
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import pytest

from resumable_stream._contract import ResumeProtocol
from resumable_stream._core.examining import Examiner
from resumable_stream._core.ledger import Ledger
from resumable_stream._core.memory import Memory
from resumable_stream._core.overlap import Prefix, SinceLog
from resumable_stream._core.parts import Part
from resumable_stream._core.seams import Seams
from resumable_stream._notices import Notice
from resumable_stream.framing.sse import SSEDecoder
from resumable_stream.protocols import CursorProtocol, LastEventID, ReplayFromZero

from .simulation import ev, evs

HERE = __file__.rpartition("/")[2]
# Constants and functions; notices, which an observer has been told; an index that is made anew; and ids, which stay known.
LEFT_OUT = {"_notices", "_index", "ids", "raw", "_base", "_keep", "_enter_id", "_lineage", "_newest", "_name", "_fingerprint"}
LEFT_OUT |= {"_protocol", "_digest", "_names", "_proven", "_single"}


def state(value: Any) -> Any:
    """Everything that a ledger knows, attribute by attribute, whatever their names."""
    if isinstance(value, Ledger | Examiner | Memory | Seams | Part | SinceLog):
        names = [*getattr(value, "__dict__", ()), *getattr(type(value), "__slots__", ())]
        return type(value).__name__, {name: state(getattr(value, name)) for name in names if name not in LEFT_OUT}
    if isinstance(value, tuple | list | deque):
        return type(value), [state(each) for each in value]
    if hasattr(value, "own_id") and hasattr(value, "data"):
        return value.data, value.own_id, value.offset if hasattr(value, "offset") else None
    return value


@dataclass
class Scene:
    """What came before, on the connections before and on this one, and the batch that is interrupted."""

    batch: bytes
    protocol: Callable[[], ResumeProtocol] = LastEventID
    before: Sequence[bytes] = ()
    now: Sequence[bytes] | None = None
    opened: dict[str, Any] = field(default_factory=dict)
    on_gap: Any = "refetch"
    refetch: bool = True
    restart: bool = False


def numbered() -> ResumeProtocol:
    return LastEventID(sequence="contiguous")


def placed() -> ResumeProtocol:
    return CursorProtocol(read="seq", send="query:after", sequence="contiguous", first_sequence=1, name="Acme")


def seq(*numbers: int) -> bytes:
    return b"".join(b'data: {"seq": %d}\n\n' % number for number in numbers)


class Unique(LastEventID):
    unique_ids = True


def named(*names: str) -> bytes:
    return b"".join(ev(f"d-{name}", name) for name in names)


MANY = [f"e{n}" for n in range(60)]
SCENES = {
    "the first": Scene(ev("a") + evs(1, 3)),
    "mixed": Scene(ev("b") + ev(None, "2") + ev("c") + evs(3, 3) + ev("d"), before=[], now=[ev("a", "1") + ev("b")]),
    "ids begin to count": Scene(evs(6, 12), now=[evs(1, 5)]),
    "ids count no more": Scene(evs(20, 20) + named("x", "y"), now=[evs(1, 12)]),
    "ids jump": Scene(ev(None, "13") + evs(16, 18), now=[evs(1, 12)]),
    "a long batch": Scene(ev(None, "m") + named(*MANY), now=[named("a", "b")]),
    "a long batch after a cut": Scene(named(*MANY), before=[named("a", "b", "c")], now=[]),
    "a long batch without ids": Scene(b"".join(ev(name) for name in MANY)),
    "repeats by id": Scene(named("b", "c", "d", "c", "e"), before=[named("a", "b", "c")], now=[]),
    "repeats by order": Scene(ev("y") + ev("z") + ev("new"), before=[ev("a", "1") + ev("x") + ev("y") + ev("z")], now=[ev("x")]),
    "repeats after a move": Scene(ev("y") + ev("n", "3"), before=[ev("a", "1") + ev("x") + ev("y")], now=[ev(None, "2")]),
    "repeats after one of them": Scene(
        ev("d", "q") + ev("u") + ev("v") + ev("w"), before=[ev("d", "p") + ev("d", "q") + ev("u") + ev("v")], now=[]
    ),
    "the beginning": Scene(evs(1, 4), before=[evs(1, 3)], now=[]),
    "half of the beginning": Scene(ev("a", "1") + evs(2, 4), before=[ev("x") + ev("a", "1") + evs(2, 3)], now=[ev("x")]),
    "the beginning, asked": Scene(evs(1, 4), before=[evs(1, 3)], now=[], opened={"asking": True}),
    "a seam": Scene(named("a", "b", "c", "d"), now=[named("a", "b", "c")]),
    "a seam that is none": Scene(named("a", "b") + ev("other", "c") + named("d"), now=[named("a", "b", "c")]),
    "a hole": Scene(evs(3, 4), numbered, now=[evs(1, 1)]),
    "a hole that is granted": Scene(evs(3, 4), numbered, now=[evs(1, 1)], refetch=False, before=[evs(1, 1)], on_gap="deliver"),
    "a hole that nobody can be asked about": Scene(evs(3, 4) + evs(2, 2) + evs(5, 6), numbered, now=[evs(1, 1)], refetch=False),
    "numbers of a replay": Scene(seq(2, 3, 4, 6), placed, before=[seq(1, 2, 3)], now=[]),
    "numbers that differ": Scene(b'data: {"seq": 2, "x": 1}\n\n' + seq(3), placed, before=[seq(1, 2, 3)], now=[]),
    "a replay from zero": Scene(ev("b") + ev("c") + ev("d"), ReplayFromZero, before=[ev("a") + ev("b") + ev("c")], now=[ev("a")]),
    "another replay from zero": Scene(ev("b") + ev("x"), ReplayFromZero, before=[ev("a") + ev("b") + ev("c")], now=[ev("a")]),
    "after a reset": Scene(evs(1, 2) + ev("x") + evs(4, 4), before=[evs(1, 3)], now=[], restart=True),
    "unique ids": Scene(named("b", "d", "b", "e"), Unique, now=[named("a", "b", "c")]),
}  # fmt: skip


def items_of(protocol: ResumeProtocol, data: bytes) -> tuple[Sequence[Any], Sequence[tuple[int, str]]]:
    decoder = SSEDecoder()
    items = decoder.feed(data)
    if protocol.places:
        protocol.place(items)
    return items, decoder.silent


def ledger_of(scene: Scene, notices: list[Notice]) -> tuple[Ledger, ResumeProtocol]:
    protocol = scene.protocol()
    ledger = Ledger(protocol, window=64, on_gap=scene.on_gap, notices=notices)
    ledger.open_connection(resuming=False, asking=False)
    for data in scene.before:
        ledger.receive(*items_of(protocol, data))
    if scene.restart:
        ledger.restart(offset=0)
        ledger.open_connection(resuming=False, asking=False)
    elif scene.before:
        ledger.open_connection(resuming=True, **{"asking": False, **scene.opened})
    ledger.refetch = scene.refetch
    for data in scene.now or ():
        ledger.receive(*items_of(protocol, data))
    return ledger, protocol


class Struck(BaseException):
    """As Ctrl-C."""


class Strike:
    """Raises at the `at`th call within the part of the ledger that can be rolled back, and sees how all was before."""

    def __init__(self, ledger: Ledger, at: int) -> None:
        self.ledger, self.at, self.calls, self.before = ledger, at, 0, None

    def __enter__(self) -> Strike:
        self._inside = False
        # What hears of a search for garbage, as hypothesis does, is called within the ledger too, and lets nothing out.
        gc.disable()
        sys.setprofile(self._called)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)
        gc.enable()

    def _called(self, frame: FrameType, event: str, argument: Any) -> None:
        if frame.f_code is Examiner.examine.__code__:
            if event == "call":
                sys.setprofile(None)
                self.before = state(self.ledger)
                self._inside = True
                sys.setprofile(self._called)
            elif event == "return":
                self._inside = False
        if self._inside and event in ("call", "c_call", "return", "c_return"):
            self.calls += 1
            if self.calls == self.at:
                self._inside = False
                raise Struck


def taken(items: Sequence[Any]) -> list[Any]:
    return [(item.data, item.cursor, item.offset, item.sequence, item.gap, item.reset) for item in items]


def strikes(scene: Scene, step: int) -> Iterator[int]:
    ledger, protocol = ledger_of(scene, [])
    batch = items_of(protocol, scene.batch)
    with Strike(ledger, 0) as strike:
        ledger.receive(*batch)
    assert strike.calls > 10
    yield from range(1, strike.calls + 1, step)


@pytest.mark.parametrize("step", [23, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", SCENES)
def test_an_interrupted_batch_has_not_come(name: str, step: int) -> None:
    scene = SCENES[name]
    whole, protocol = ledger_of(scene, [])
    wanted = taken(whole.receive(*items_of(protocol, scene.batch)))
    struck = 0
    for at in strikes(scene, step):
        ledger, protocol = ledger_of(scene, [])
        batch = items_of(protocol, scene.batch)
        try:
            with Strike(ledger, at) as strike:
                ledger.receive(*batch)
        except Struck:
            struck += 1
        else:
            continue
        assert strike.before is not None
        assert state(ledger) == strike.before
        # It comes again, and all is as it would have been.
        assert taken(ledger.receive(*items_of(protocol, scene.batch))) == wanted
        assert type(ledger.problem) is type(whole.problem)
        assert state(ledger.place(100)) == state(whole.place(100))
        assert (ledger.duplicates, ledger.gaps) == (whole.duplicates, whole.gaps)
    assert struck > 1


@pytest.mark.parametrize("step", [23, pytest.param(1, marks=pytest.mark.soak)])
def test_what_was_held_before_the_batch_is_delivered_if_nothing_new_comes(step: int) -> None:
    """The run may be a repeat, or new: its server was never heard again."""
    scene = Scene(named("b", "c", "d"), now=[named("a", "b", "c"), named("a")])
    struck = 0
    for at in strikes(scene, step):
        ledger, protocol = ledger_of(scene, [])
        batch = items_of(protocol, scene.batch)
        try:
            with Strike(ledger, at):
                ledger.receive(*batch)
        except Struck:
            struck += 1
            ledger.open_connection(resuming=True, asking=True)
            assert [item.data for item in ledger.release()] == ["d-a"]
    assert struck > 1


def test_a_part_keeps_every_slot() -> None:
    kinds = [kind for kind in Part.__subclasses__() if kind.__module__.startswith("resumable_stream.")]
    assert Prefix in kinds
    ledger, _ = ledger_of(SCENES["half of the beginning"], [])
    known = ledger._examiner
    for part in (known.numbers, known.repeats, known.resets, known.repeats.beginning):
        kept = part.kept()
        before = state(part)
        for slot in part.__slots__:
            if not isinstance(getattr(part, slot), Part):
                setattr(part, slot, "changed")
        part.put_back(kept)
        assert state(part) == before
