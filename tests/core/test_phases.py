"""
The phases of a stream: their table, the machine that keeps it, and the drawing of it in docs/architecture.md.

`Watched` in simulation.py holds every stream that the tests of the core play to the table.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from resumable_stream._contract import Answer, Head, Request, StreamState, Verdict, Verify
from resumable_stream._core import actions as act
from resumable_stream._core import plan
from resumable_stream._core.machine import Machine
from resumable_stream._core.phases import TRANSITIONS, IllegalInput, Phase
from resumable_stream._errors import ResumableStreamError
from resumable_stream._events import Gap, Outcome
from resumable_stream.protocols import CursorProtocol, LastEventID

from .simulation import DROPPED, Inside, Reply, Stream, Watched, ev, evs, script, seqs
from .test_backfill import Live, page

ROOT = Path(__file__).parents[2]
INPUTS = sorted({name for inputs in TRANSITIONS.values() for name in inputs})
DONE = ev("[DONE]")
NOW = 2000.0

# What a driver would pass, if it could.
ARGUMENTS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "next": ((NOW,), {}),
    "woken": ((NOW, NOW), {}),
    "put_back": ((act.Disconnect(),), {}),
    "receive_head": ((Head(200, {"content-type": "text/event-stream"}, ""), NOW), {"wall": NOW}),
    "connect_failed": ((OSError("reset"), NOW), {"sent": True}),
    "receive_answer": ((Answer(200, {}, b""), NOW), {}),
    "fetch_failed": ((OSError("reset"), NOW), {}),
    "receive_data": ((b"data: 1\n\n", NOW), {}),
    "receive_eof": ((NOW,), {}),
    "read_failed": ((OSError("reset"), NOW), {}),
    "read_timed_out": ((NOW,), {}),
}


class Asked(LastEventID):
    """Asks for the run's status after a clean close."""

    def on_clean_close(self, state: StreamState) -> Verdict:
        return Verify(Request(method="GET", url="/run"))


def in_phase(phase: Phase) -> Machine:
    """A stream that stands in a phase, driven there by nothing but legal inputs."""
    stream = Stream(script(), protocol=Asked())
    machine = stream.machine
    if phase is Phase.BETWEEN:
        return machine
    assert isinstance(machine.next(NOW), act.Connect)
    if phase is Phase.CONNECTING:
        return machine
    status = 503 if phase is Phase.JUDGING else 200
    machine.receive_head(Head(status, {"content-type": "text/event-stream"}, stream.state.url), NOW, wall=NOW)
    if phase is Phase.JUDGING:
        assert isinstance(machine.next(NOW), act.Fetch)
    elif phase is Phase.READING:
        assert machine.next(NOW) == act.Read()
    elif phase is Phase.ASKING:
        machine.receive_data(evs(1, 2), NOW)
        machine.receive_eof(NOW)
        assert machine.next(NOW) == act.Disconnect()
        assert isinstance(machine.next(NOW), act.Fetch)
    else:
        machine.receive_data(evs(1, 2) + DONE, NOW)
        assert [machine.next(NOW) for _ in range(2)] == [act.Disconnect(), act.Finish(Outcome.COMPLETED)]
    return machine


@pytest.mark.parametrize("phase", Phase)
def test_each_phase_takes_the_inputs_of_its_row(phase: Phase) -> None:
    for given in TRANSITIONS[phase]:
        machine = in_phase(phase)
        assert machine.phase is phase
        positional, named = ARGUMENTS[given]
        getattr(machine, given)(*positional, **named)
        assert machine.phase in TRANSITIONS[phase][given]


@pytest.mark.parametrize("phase", Phase)
def test_any_other_input_is_an_error_that_says_what_was_expected(phase: Phase) -> None:
    for given in set(INPUTS) - set(TRANSITIONS[phase]):
        machine = in_phase(phase)
        planned = machine.planned
        positional, named = ARGUMENTS[given]
        with pytest.raises(IllegalInput) as raised:
            getattr(machine, given)(*positional, **named)
        message = str(raised.value)
        assert message.startswith(f"{given}() is not possible while the stream is {phase.value}: expected one of ")
        assert all(f"{legal}()" in message for legal in TRANSITIONS[phase])
        assert (machine.phase, machine.planned) == (phase, planned), "a mistake changes nothing"


def test_every_transition_of_the_table_is_made() -> None:
    seen = Watched.seen
    before = set(seen)
    seen.clear()
    try:
        for phase in Phase:
            test_each_phase_takes_the_inputs_of_its_row(phase)
        for server, options in (
            (script(Reply([evs(1, 2), "rst"]), DROPPED, Reply(status=503), Reply([evs(3, 4), DONE])), {}),
            (script(Reply(status=302, headers={"location": "/there"}), Reply([evs(1, 2), DONE])), {}),
            (script(Reply(status=400)), {}),
        ):
            with suppress(ResumableStreamError):
                list(Stream(server, **options))
        slept = Stream(script(DROPPED, Reply([evs(1, 1), DONE])))
        slept.patience = 0.1
        with pytest.raises(Inside):
            next(slept)
        slept.patience = 10
        assert len(list(slept)) == 2
        history = (Reply([seqs(1), "rst"]), Reply([seqs(3) + DONE]), page(2, last=True))
        assert [event.sequence for event in Stream(script(*history), protocol=Live())] == [1, 2, 3, None]
        table = {
            (phase.name, given, to.name) for phase, row in TRANSITIONS.items() for given, after in row.items() for to in after
        }
        assert table == seen
    finally:
        seen |= before


def test_the_plan_of_a_stream_can_be_read() -> None:
    stream = Stream(script(Reply([evs(1, 2) + DONE])))
    assert next(stream).data == "d1"
    assert stream.machine.planned == (plan.Ended(Outcome.COMPLETED),)


def test_a_hole_that_the_server_reports_is_a_turn() -> None:
    protocol = CursorProtocol(read="seq", send="query:after", sequence="contiguous", first_sequence=1)
    stream = Stream(script(Reply([seqs(1, 3)])), protocol=protocol)
    assert next(stream).data
    assert stream.machine.planned == (plan.Problem(),)


def test_the_wait_and_the_next_request_after_a_cut_are_steps() -> None:
    stream = Stream(script(), protocol=LastEventID())
    machine = stream.machine
    machine.next(NOW)
    machine.receive_head(Head(200, {"content-type": "text/event-stream"}, stream.state.url), NOW, wall=NOW)
    machine.next(NOW)
    machine.receive_data(evs(1, 2), NOW)
    machine.read_failed(OSError("reset"), NOW)
    match machine.planned:
        case (act.Disconnect(), act.Sleep(), plan.Send(request, resuming=True, asking=False)):
            assert request.headers["Last-Event-ID"] == "2"
        case other:
            pytest.fail(repr(other))


def test_turns_and_steps_are_values() -> None:
    for kind in (*plan.Turn.__args__, *plan.Step.__args__):  # type: ignore[attr-defined]
        assert "__eq__" in vars(kind) and "__dict__" not in vars(kind), kind
    assert plan.Announced(Gap(), (), ()) == plan.Announced(Gap(), (), ())


def test_every_input_of_the_table_is_a_method_of_the_machine() -> None:
    for given in INPUTS:
        assert inspect.isfunction(getattr(Machine, given))
        assert given in ARGUMENTS
