"""
Every protocol is cut everywhere, in every way (guarantees G1 and G2): all of it arrives once, or its end is an honest one.

The table is in `scenarios.py`. Where a stream is cut is decided in `tests/cutting.py`.
"""

from __future__ import annotations

import pytest

from resumable_stream import StreamInterrupted, protocols
from resumable_stream._contract import ResumeProtocol

from ..core.simulation import CUTS, run
from ..cutting import Where, chunk_at, in_turn
from .scenarios import ELSEWHERE, SCENARIOS, Scenario, protocols_of


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_a_server_sends_arrives_once_wherever_it_is_cut(name: str, where: Where) -> None:
    scenario = SCENARIOS[name]
    for turn, kind in enumerate(CUTS):
        for index, position in enumerate(where(scenario.blocks)):
            if in_turn(where, index, turn):
                check_cut(scenario, position, kind, chunk_at(where, position))


def check_cut(scenario: Scenario, position: int, kind: str, size: int | None) -> None:
    place = f"{kind} after byte {position}"
    stream = scenario.stream((position, kind), size)
    result = run(stream, at_most=scenario.at_most)
    whole, outcome, interrupted = scenario.expected(position, kind)
    if whole is None:
        assert result.events == [], place
    else:
        assert scenario.read(result) == whole, place
    assert (result.outcome, type(result.error)) == (outcome, StreamInterrupted if interrupted else type(None)), place
    assert scenario.holds(result), place
    assert scenario.resumes or sum(not sent.side for sent in stream.sent) == 1, place
    first, *later = [(sent.method, sent.url, sent.json, sent.headers) for sent in stream.sent]
    assert first[0] == "GET" or first not in later, f"{place}: the first request was sent again"


def test_every_protocol_is_cut() -> None:
    exported = {name: getattr(protocols, name) for name in protocols.__all__}
    ours = {name for name, made in exported.items() if isinstance(made, type) and issubclass(made, ResumeProtocol)}
    assert protocols_of(SCENARIOS) | {*ELSEWHERE} == ours - {"ResumeProtocol", "NDJSON"}
