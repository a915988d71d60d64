"""
How a fleet behaves when something breaks: reconnects, Redis commands, and how long readers wait.

    python benchmarks/fleet.py                                  100 instances, 100,000 streams, 1,000,000 readers, on 16 shards
    python benchmarks/fleet.py --scenario region --scale 0.1    one scenario, a tenth of it
    python benchmarks/fleet.py --real                           real hubs on a virtual clock beside the model, at a small size
    python benchmarks/fleet.py --svg docs/assets/fleet.svg      the picture of the docs

There is no network and no waiting: the clock is virtual, and the same seed gives the same figures. The run fails unless every
reader gets each event once, in order, or gets an error that its stream lost both its log and its producer.

`fleet_model.py` has the large fleet, `fleet_real.py` the small one of real hubs, `fleet_plan.py` their common parts.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

from fleet_model import run_model
from fleet_plan import SCENARIOS, Plan, Report
from fleet_real import run_real

_TITLES = {
    "deploy": "a rolling deploy, a tenth at a time",
    "shard": "a shard of Redis is lost for 30 s, and comes back empty",
    "shard+kill": "the same, and an instance dies meanwhile",
    "region": "a third of the instances are cut off for 60 s",
}


def plan_of(scenario: str, scale: float, seed: int) -> Plan:
    """The large fleet, times `scale`; readers per instance and streams per shard are the same at any scale."""
    instances = max(4, round(100 * scale))
    return Plan(
        scenario=scenario,
        seed=seed,
        instances=instances,
        streams=max(20, round(100_000 * scale)),
        readers=max(100, round(1_000_000 * scale)),
        shards=max(2, round(16 * scale)),
        at_once=max(1, instances // 10),
    )


def small_plan(scenario: str, scale: float, seed: int) -> Plan:
    """At most what real hubs simulate in about a minute."""
    part = min(1.0, 10 * scale)
    return Plan(
        scenario=scenario,
        seed=seed,
        instances=max(4, round(10 * part)),
        streams=max(20, round(300 * part)),
        readers=max(60, round(3000 * part)),
        shards=4,
        at_once=2,
    )


def show(rows: dict[str, Report]) -> None:
    """Print the figures of some runs, a column each."""
    names = list(next(iter(rows.values())).figures)
    width = max(12, *(len(name) + 2 for name in rows))
    print(f"{'':<22}" + "".join(f"{name:>{width}}" for name in rows))
    for name in names:
        cells = [report.figures[name] for report in rows.values()]
        print(f"{name:<22}" + "".join(f"{cell:>{width},.{0 if cell >= 100 or cell == int(cell) else 2}f}" for cell in cells))


def svg(reports: dict[str, Report]) -> str:
    """A chart for each scenario: reconnects a second, and commands a second of the busiest shard."""
    width, height, left, gap = 720, 120, 70, 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {len(reports) * (height + gap) + 10}" '
        'font-family="sans-serif" font-size="12" role="img" aria-label="Reconnects and commands of Redis over time">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for place, (scenario, report) in enumerate(reports.items()):
        top = place * (height + gap) + 30
        last = int(report.plan.lasts - report.plan.begin)
        seconds = range(-5, last)
        busiest = {second: max(report.redis[shard, second] for shard in range(report.plan.shards)) for second in seconds}
        parts.append(f'<text x="{left}" y="{top - 10}" font-weight="bold">{_TITLES[scenario]}</text>')
        for color, values in (("#c2410c", report.reconnects), ("#1d4ed8", busiest)):
            most = max((values[second] for second in seconds), default=0)
            step = (width - left - 20) / len(seconds)
            points = " ".join(
                f"{left + index * step:.1f},{top + height - values[second] / max(most, 1) * height:.1f}"
                for index, second in enumerate(seconds)
            )
            parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5"/>')
            y = top + (12 if color == "#c2410c" else 28)
            parts.append(f'<text x="{left - 6}" y="{y}" fill="{color}" text-anchor="end">{most:,}</text>')
        parts.append(f'<path d="M{left} {top}V{top + height}H{width - 20}" fill="none" stroke="#888"/>')
        for second in range(0, last, 30 if last < 150 else 60):
            x = left + (second + 5) * (width - left - 20) / len(seconds)
            parts.append(f'<text x="{x:.1f}" y="{top + height + 15}" text-anchor="middle" fill="#555">{second} s</text>')
    legend = '<text x="710" y="20" text-anchor="end"><tspan fill="#c2410c">reconnects a second</tspan>'
    parts.append(f'{legend}<tspan dx="12" fill="#1d4ed8">commands a second, busiest shard</tspan></text></svg>')
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", choices=SCENARIOS, action="append", help="this one; default: all")
    parser.add_argument("--scale", type=float, default=1.0, help="of the large fleet (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--real", action="store_true", help="compare the model with real hubs, at a small size")
    parser.add_argument("--svg", type=Path, help="write a picture of the large fleet")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # the hubs log that their log is unavailable, as expected here
    reports: dict[str, Report] = {}
    for scenario in options.scenario or SCENARIOS:
        began = time.perf_counter()
        if options.real:
            plan = small_plan(scenario, options.scale, options.seed)
            rows = {"real hubs": run_real(plan), "model": run_model(plan)}
        else:
            plan = plan_of(scenario, options.scale, options.seed)
            rows = {"model": run_model(plan)}
            reports[scenario] = rows["model"]
        sizes = f"{plan.instances} instances, {plan.streams:,} streams, {plan.readers:,} readers, {plan.shards} shards"
        print(f"\n{scenario}: {_TITLES[scenario]} ({sizes}; {time.perf_counter() - began:.0f} s)")
        show(rows)
        for report in rows.values():
            report.assert_exact()
            print(f"exactly once: {report.exact:,} of {plan.readers:,} readers; {report.lost:,} got an error for a lost stream")
    if options.svg:
        options.svg.write_text(svg(reports), encoding="utf-8")


if __name__ == "__main__":
    main()
