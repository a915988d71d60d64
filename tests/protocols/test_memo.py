"""What a protocol remembers of one stream: typed while the stream is read, and as text in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from resumable_stream import Outcome
from resumable_stream.protocols import LastEventID, Memo, ResumeProtocol, StreamState

from ..core.simulation import Reply, Stream, ev, evs, run, script


@dataclass(slots=True)
class Run(Memo):
    name: str = ""
    paid: bool = False
    token: str = ""
    seen: int = 0


class Remembers(LastEventID):
    """It keeps the name and whether it was paid, and neither the token nor a count."""

    keeps = frozenset({"name", "paid"})

    def identify(self, state: StreamState, source: Any) -> None:
        super().identify(state, source)
        memo = state.memo(Run)
        if not state.resuming:
            memo.name, memo.paid, memo.token = "first", True, "secret"
        memo.seen += 1


def state(**extra: str) -> StreamState:
    made = StreamState("GET", "https://api.example.com/stream")
    made.extra.update(extra)
    return made


def test_there_is_one_of_each_class_and_each_starts_empty() -> None:
    made = state()
    assert made.memo(Run) is made.memo(Run)
    assert made.memo(Run) == Run()
    assert made.texts() == {}


@pytest.mark.parametrize(
    ("memo", "texts"),
    [
        (Run(), {}),
        (Run("n"), {"name": "n"}),
        (Run(paid=True, token="t", seen=3), {"paid": "1", "token": "t"}),
    ],
)
def test_texts_and_flags_go_there_and_back(memo: Run, texts: dict[str, str]) -> None:
    assert memo.keep() == texts
    there = Run.back(texts)
    assert (there.name, there.paid, there.token, there.seen) == (memo.name, memo.paid, memo.token, 0)


def test_what_a_checkpoint_brings_is_not_trusted_to_be_whole_or_to_fit() -> None:
    assert Run.back({"seen": "many", "paid": "0", "other": "x"}) == Run(paid=True)


def test_a_text_that_is_forgotten_does_not_come_back_from_the_checkpoint() -> None:
    made = state(name="old", own="kept")
    assert made.texts() == {"name": "old", "own": "kept"}
    made.memo(Run).name = ""
    assert made.texts() == {"own": "kept"}
    made.forget()
    assert (made.texts(), made.memo(Run)) == ({}, Run())


def test_one_can_go_back_to_what_was_noted() -> None:
    made = state(own="1")
    made.memo(Run).name = "then"
    notes = made.notes()
    made.memo(Run).name = "now"
    made.extra["own"] = "2"
    assert made.notes() != notes
    made.go_back(notes)
    assert (made.texts(), made.memo(Run).name) == ({"name": "then", "own": "1"}, "then")


@dataclass(slots=True)
class PaidRun(Run):
    turns: list[str] = field(default_factory=list)
    region: str = ""


@dataclass
class WithoutSlots(Memo):
    region: str = ""


def test_every_field_is_kept_of_whatever_class_it_comes() -> None:
    memo = PaidRun(name="n", paid=True, region="eu")
    assert memo.keep() == {"name": "n", "paid": "1", "region": "eu"}
    assert PaidRun.back(memo.keep()) == memo
    assert WithoutSlots.back(WithoutSlots("eu").keep()) == WithoutSlots("eu")
    made = state(name="old", region="old")
    made.memo(PaidRun).name = made.memo(PaidRun).region = ""
    assert made.texts() == {}


def test_a_list_goes_back_too() -> None:
    made = state()
    made.memo(PaidRun).turns.append("then")
    notes = made.notes()
    made.memo(PaidRun).turns.append("now")
    assert made.notes() != notes
    made.go_back(notes)
    assert made.memo(PaidRun).turns == ["then"]


def test_a_look_notes_nothing() -> None:
    made = state(name="n")
    notes = made.notes()
    made.memo(Run)
    assert made.notes() == notes


def test_a_checkpoint_has_what_the_protocol_keeps_and_another_process_has_it_again() -> None:
    first = Stream(script(Reply([evs(1, 2), "rst"])), protocol=Remembers())
    assert [next(first).data for _ in range(2)]
    place = first.leave()
    assert {name: place.extra.get(name) for name in ("name", "paid", "token", "seen")} == {
        "name": "first",
        "paid": "1",
        "token": None,
        "seen": None,
    }
    second = Stream(script(Reply([ev("x", "3") + ev("[DONE]")])), protocol=Remembers(), checkpoint=place)
    assert run(second).outcome is Outcome.COMPLETED
    memo = second.machine.state.memo(Run)
    assert (memo.name, memo.paid, memo.token) == ("first", True, "")
    assert second.leave().extra["name"] == "first"


def test_a_restart_forgets_it() -> None:
    answers = [Reply([evs(1, 2), "rst"]), Reply(status=410, type=""), Reply([ev("y") + ev("[DONE]")])]

    class Once(Remembers):
        def identify(self, state: StreamState, source: Any) -> None:
            if not state.memo(Run).seen:
                state.memo(Run).name = f"from {len(answers)}"
            state.memo(Run).seen += 1

    stream = Stream(lambda sent: answers.pop(0), protocol=Once(), on_lost="restart")
    assert run(stream).outcome is Outcome.COMPLETED
    assert stream.machine.state.memo(Run).name == "from 0"


def test_the_base_remembers_nothing() -> None:
    made = state()
    ResumeProtocol().identify(made, ev)  # type: ignore[arg-type]
    assert made.notes() == state().notes()
