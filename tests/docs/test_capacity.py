"""The page that says what a server carries is what the kept figures say, and the calculation behind it makes sense."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import capacity

LOAD = capacity.Load(answers=1_000, rate=50, readers=1.3)


def figures() -> dict[str, float]:
    found = capacity.read()["figures"]
    assert isinstance(found, dict)
    return dict(found)


def plan(load: capacity.Load) -> capacity.Plan:
    return capacity.plan(load, figures())


def test_the_page_is_what_the_figures_say() -> None:
    assert capacity.is_current(), "run: python benchmarks/capacity.py --write"


@pytest.mark.parametrize("name", sorted(name for name in figures() if not name.endswith("_trips")))
def test_every_figure_is_used(name: str) -> None:
    data = capacity.read()
    other = {**data, "figures": {**figures(), name: figures()[name] * 3}}
    assert capacity.parts(other) != capacity.parts(data)


def test_a_stream_has_no_more_spans_than_the_window_lets_through() -> None:
    assert replace(LOAD, rate=5).sends == 5
    assert replace(LOAD, rate=5_000).sends == pytest.approx(40)
    assert replace(LOAD, flush=0.1).sends == pytest.approx(10)


def test_more_of_anything_takes_no_less() -> None:
    found = plan(LOAD)
    for more in (replace(LOAD, answers=2_000), replace(LOAD, readers=5.0)):
        other = plan(more)
        assert other.reading > found.reading and other.processes >= found.processes and other.redis >= found.redis
    assert plan(replace(LOAD, flush=0.1)).producing < found.producing
    assert plan(replace(LOAD, by_stream=True)).listening == 0 < found.listening


def test_the_processes_have_half_a_core_of_work_each() -> None:
    found = plan(LOAD)
    work = found.producing + found.reading + found.listening
    assert work / found.processes <= 0.5
    # The last one is needed: with one less there would be a little less to take from others, but not so much.
    assert work / (found.processes - 1) > 0.5


def test_a_single_process_takes_nothing_from_others() -> None:
    assert capacity.copies(1, 50.0) == 0
    # Every one of many readers' processes takes a copy.
    assert capacity.copies(10, 100_000.0) == pytest.approx(9)
    assert capacity.copies(10, 1.0) == pytest.approx(0.9)


def test_a_run_of_the_benchmarks_that_has_drifted_away_is_reported() -> None:
    bare, send = figures()["bare_send_us"], figures()["send_us"]
    names = [f"{kind}, CPU µs per event and reader" for kind in ("hub", "bare")]
    # A machine that is twice as slow at everything is no news.
    assert capacity.outdated({"serve-bare": dict(zip(names, (2 * send, 2 * bare), strict=True))}) == []
    (line,) = capacity.outdated({"serve-bare": dict(zip(names, (2 * send, bare), strict=True))})
    assert "a send" in line
    assert len(capacity.outdated({"idle-reader": {"hub, KB per reader": 3 * figures()["reader_kb"]}})) == 1


def test_numbers_have_two_digits_that_mean_something() -> None:
    assert [capacity.rounded(value) for value in (0, 0.01234, 0.98765, 1.26, 12.6, 1_264, 51_999)] == [
        "0", "0.012", "0.99", "1.3", "13", "1,300", "52,000",
    ]  # fmt: skip
