"""
Checkpoints that earlier versions wrote are read, and the stream goes on from them.

`recorded_checkpoints.json` has two for each row of `scenarios.py`: one from the middle of an answer, and one from the connection
after a cut. They are recorded once. What is in the file never changes: a new row is added to it with

    python -m tests.protocols.test_recorded_checkpoints
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from resumable_stream import NotResumable, StreamInterrupted
from resumable_stream._checkpoint import Checkpoint

from ..core.simulation import Result, Stream, run
from .scenarios import SCENARIOS, Scenario

FILE = Path(__file__).with_name("recorded_checkpoints.json")
RECORDED: dict[str, dict[str, Any]] = json.loads(FILE.read_text()) if FILE.exists() else {}
NEVER = 10**9
RANDOM = "idempotency_key"
"""Another in each stream: the server of the test has to know the one that the checkpoint holds."""


def opened(scenario: Scenario, kind: str) -> Stream:
    return scenario.stream((position_of(scenario) if kind == "cut" else NEVER, "rst"), None)


def position_of(scenario: Scenario) -> int:
    """After the block in the middle, or after the first one that names the way back."""
    middle = len(scenario.blocks) // 2
    if scenario.settled is not None:
        # After that nothing more would be asked for.
        middle = min(middle, scenario.settled - 1)
    return len(b"".join(scenario.blocks[: max(scenario.named, middle)]))


def written(place: Checkpoint) -> dict[str, Any]:
    found = json.loads(place.to_json())
    if RANDOM in found["extra"]:
        found["extra"][RANDOM] = "random"
    return found


def record(scenario: Scenario, kind: str) -> dict[str, Any]:
    every = len(run(opened(scenario, kind), at_most=scenario.at_most).events)
    taken = max(1, every - 1 if kind == "cut" else every // 2)
    stream = opened(scenario, kind)
    for _ in range(taken):
        next(stream)
    return {"taken": taken, "checkpoint": written(stream.leave())}


ROWS = [(name, kind) for name, kinds in RECORDED.items() for kind in kinds]


@pytest.mark.parametrize(("name", "kind"), ROWS)
def test_a_stream_goes_on_from_a_checkpoint_of_an_earlier_version(name: str, kind: str) -> None:
    scenario, recorded = SCENARIOS[name], RECORDED[name][kind]
    first = opened(scenario, kind)
    events = [next(first) for _ in range(recorded["taken"])]
    extra = dict(recorded["checkpoint"]["extra"])
    if RANDOM in extra:
        extra[RANDOM] = first.state.extra[RANDOM]
    place = Checkpoint.from_json(json.dumps({**recorded["checkpoint"], "extra": extra}))
    second = run(first.again(place), at_most=scenario.at_most - len(events))
    if not scenario.resumes:
        assert isinstance(second.error, StreamInterrupted | NotResumable) and second.events == []
        return
    assert (second.outcome, second.error) == (scenario.outcome, None)
    arrived = scenario.read(Result([*events, *second.events], second.outcome, None, second.stream))
    if name == "CursorProtocol":
        # `event.id` of an event without one is the last id of its own process; the cursor of this protocol need not be an id.
        assert [row[:2] for row in arrived] == [row[:2] for row in scenario.whole]
    else:
        assert arrived == scenario.whole


@pytest.mark.parametrize(("name", "kind"), ROWS)
def test_what_is_written_is_what_earlier_versions_wrote(name: str, kind: str) -> None:
    """So an earlier version can go on from it, too: processes are replaced one by one."""
    recorded = RECORDED[name][kind]
    first = opened(SCENARIOS[name], kind)
    for _ in range(recorded["taken"]):
        next(first)
    assert written(first.leave()) == recorded["checkpoint"]


def test_every_row_has_its_recorded_checkpoints() -> None:
    assert list(RECORDED) == list(SCENARIOS), "add the new ones: python -m tests.protocols.test_recorded_checkpoints"


if __name__ == "__main__":
    found = {
        name: RECORDED.get(name)
        or {kind: record(scenario, kind) for kind in (("middle", "cut") if scenario.resumes else ("middle",))}
        for name, scenario in SCENARIOS.items()
    }
    lines = [f" {json.dumps(name)}: {json.dumps(kinds, ensure_ascii=False)}" for name, kinds in found.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
