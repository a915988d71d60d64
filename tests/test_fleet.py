"""The simulated fleet, at the smallest size: the script runs, and every reader gets each event once."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).parents[1]


def fleet(*options: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "fleet.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_model_runs_every_scenario_and_draws_it(tmp_path: Path) -> None:
    picture = tmp_path / "fleet.svg"
    printed = fleet("--scale", "0.0001", "--svg", str(picture))
    exact = [
        (int(right), int(lost)) for right, lost in re.findall(r"exactly once: (\d+) of 100 readers; (\d+) got an error", printed)
    ]
    assert len(exact) == 4
    assert all(right + lost == 100 for right, lost in exact)
    assert [lost for _, lost in exact][:2] == [0, 0]
    assert len(ET.parse(picture).getroot().findall("{*}polyline")) == 8


def test_the_same_seed_gives_the_same_figures() -> None:
    def figures() -> list[str]:
        printed = fleet("--scenario", "region", "--scale", "0.0001", "--seed", "7")
        return [line for line in printed.splitlines() if " s)" not in line]

    first = figures()
    assert len(first) > 5
    assert first == figures()


def test_real_hubs_reconnect_about_as_often_as_the_model_says() -> None:
    printed = fleet("--real", "--scenario", "region", "--scale", "0.001")
    (numbers,) = re.findall(r"^reconnects +(\d+) +(\d+)$", printed, re.MULTILINE)
    real, model = map(int, numbers)
    # A quarter of 60 readers, and some try again.
    assert 5 <= real <= 60
    assert 5 <= model <= 60
