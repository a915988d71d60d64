"""
How much one server can handle: a calculation from measured figures, and the page that shows it.

    make capacity                                              measure here and write the page
    python benchmarks/capacity.py --check                      does the page agree with the figures?
    python benchmarks/capacity.py --answers 300 --rate 80 --readers 2 --log SQLiteLog

`carrying.py` measures the figures in `capacity.json`; each is the CPU time or memory of one operation. The load determines how
often each happens, and the rest is multiplication. Everything except `measure()` needs only the standard library.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
FIGURES: Final = Path(__file__).with_name("capacity.json")
PAGE: Final = ROOT / "docs" / "server" / "capacity.md"
HALF: Final = 0.5
"""Share of a core for a process or a Redis server: the rest is for peaks, for TLS and for other work of the process."""
LOGS: Final = ("MemoryLog", "SQLiteLog", "RedisLog")
FLUSH: Final = 0.025
ID_BYTES: Final = 20
"""Bytes that an id adds to an event on the wire."""
DRIFT: Final = 1.4
"""From this factor on, two figures differ; on a shared machine a figure varies by a fifth."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """
    The load of a server.

    Attributes:
        answers: Streams produced at the same time.
        rate: Events per stream and second.
        readers: Readers per stream, on average.
        log: The log that stores them.
        event_bytes: Size of a stored event.
        seconds: How long a stream is in memory: while it runs, and 30 s after its last reader left.
        flush: The window of the hub, in seconds.
        by_stream: The balancer sends all readers of a stream to the process that produces it.
    """

    answers: int
    rate: float
    readers: float
    log: str = "RedisLog"
    event_bytes: int = 60
    seconds: float = 90.0
    flush: float = FLUSH
    by_stream: bool = False

    @property
    def sends(self) -> float:
        """Spans per stream and second, each sent to each reader; limited by the window."""
        return min(self.rate, 1 / self.flush)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """
    The resources that a load needs.

    Attributes:
        producing, reading, listening: Cores for appending, sending to readers, receiving what other processes have produced.
        redis: Cores of the Redis server.
        processes: Processes with half a core of work each.
        shards: Redis servers, likewise.
        sockets, megabytes: Per process.
        join_seconds: CPU time of one process when all its readers reconnect at once.
        fanout_seconds: For a load with one stream: time from the first to the last reader of a span in a process.
        megabits: Per second, to readers.
    """

    producing: float
    reading: float
    listening: float
    redis: float
    processes: int
    shards: int
    sockets: float
    megabytes: float
    join_seconds: float
    fanout_seconds: float
    megabits: float


def copies(processes: int, readers: float) -> float:
    """How many other processes read one stream, if a balancer sends each reader to any of them."""
    return (processes - 1) * (1 - (1 - 1 / processes) ** readers)


def plan(load: Load, figures: Mapping[str, float]) -> Plan:
    """The processes and Redis servers that a load needs."""
    spans = load.answers * load.sends
    producing = (load.answers * load.rate * figures[f"{load.log}_event_us"] + spans * figures[f"{load.log}_span_us"]) / 1e6
    reading = spans * load.readers * figures["send_us"] / 1e6
    processes, listening, others = 1, 0.0, 0.0
    # More processes need more bells, and those need processes.
    for _ in range(100):
        others = 0.0 if load.by_stream else copies(processes, load.readers)
        listening = spans * others * figures["bell_us"] / 1e6
        wanted = max(math.ceil((producing + reading + listening) / HALF), 1)
        if wanted <= processes:
            break
        processes = wanted
    shared = load.log == "RedisLog"
    redis = spans * (figures["redis_span_us"] + others * figures["redis_copy_us"]) / 1e6 if shared else 0.0
    sockets = load.answers * load.readers / processes
    held = load.answers / processes * (1 + others)
    beside = figures["event_bytes"] - 2 * figures["event_data_bytes"]  # each event is held twice: without and with its id
    memory = sockets * figures["reader_kb"] * 1e3 + load.answers / processes * figures["generation_kb"] * 1e3
    memory += held * load.rate * load.seconds * (2 * load.event_bytes + beside)
    return Plan(
        producing=producing,
        reading=reading,
        listening=listening,
        redis=redis,
        processes=processes,
        shards=math.ceil(redis / HALF),
        sockets=sockets,
        megabytes=memory / 1e6,
        join_seconds=sockets * figures["join_us"] / 1e6,
        fanout_seconds=sockets * figures["send_us"] / 1e6 if load.answers == 1 else 0.0,
        megabits=load.answers * load.readers * load.rate * (load.event_bytes + ID_BYTES) * 8 / 1e6,
    )


def carried(rate: float, log: str, figures: Mapping[str, float]) -> float:
    """Answers with one reader each that one process handles on half a core."""
    one = plan(Load(answers=1, rate=rate, readers=1, log=log), figures)
    return HALF / (one.producing + one.reading)


# --- the page -----------------------------------------------------------------------------------------------------------


def rounded(value: float, digits: int = 2) -> str:
    """Round to significant digits: no figure here is more exact."""
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    value = round(value, places)
    return f"{value:,.{max(places, 0)}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def figures_part(data: Mapping[str, object]) -> str:
    """The measured figures, and where they were measured."""
    figures = _figures(data)

    def shown(name: str, unit: str = "µs") -> str:
        return f"{rounded(figures[name])} {unit}"

    trips = max(figures[f"{log}_trips"] for log in LOGS)
    beside = rounded(figures["event_bytes"] - 2 * figures["event_data_bytes"])
    rows = [
        ("a span is sent to a reader", f"{shown('send_us')} of CPU"),
        ("the same, by a bare ASGI app", shown("bare_send_us")),
        *(
            (f"a span is appended to `{log}`", f"{shown(f'{log}_span_us')}, and {shown(f'{log}_event_us')} for each event in it")
            for log in LOGS
        ),
        ("a span arrives from another process", shown("bell_us")),
        ("a reader connects or reconnects", shown("join_us")),
        ("a CPU second of replay, from memory", shown("replay_held_mb_per_s", "MB")),
        ("the same, from an SQLite file", shown("replay_read_mb_per_s", "MB")),
        ("a span in the Redis server", f"{shown('redis_span_us')} of its CPU, and {shown('redis_copy_us')} for each listener"),
        ("trips to the log for an event, 50 streams", rounded(trips, 1)),
        ("memory of a waiting reader", shown("reader_kb", "KB")),
        ("memory of a generation", shown("generation_kb", "KB")),
        ("memory of an event", f"twice its bytes, and {beside} bytes"),
    ]
    return f"On {data['at']}, on {data['machine']}:\n\n" + table(("operation", "cost"), rows)


def process_part(figures: Mapping[str, float]) -> str:
    """How much one process handles."""
    rows = []
    for rate in (5, 20, 50, 100):
        found = [rounded(carried(rate, log, figures), 1) for log in LOGS]
        rows.append((f"{rate}", *found, rounded(HALF / (min(rate, 1 / FLUSH) * figures["send_us"] / 1e6), 1)))
    return table(("events a second", *(f"answers in `{log}`" for log in LOGS), "readers of one stream"), rows)


def plan_part(loads: Mapping[str, Load], figures: Mapping[str, float]) -> str:
    """The calculated loads, a column each."""
    plans = [(load, plan(load, figures)) for load in loads.values()]
    one = all(load.answers == 1 for load, _ in plans)
    rows = [
        ("spans a second", [rounded(load.answers * load.sends) for load, _ in plans]),
        ("sends to readers a second", [rounded(load.answers * load.sends * load.readers) for load, _ in plans]),
        ("appending", [_cores(found.producing) for _, found in plans]),
        ("sending to readers", [_cores(found.reading) for _, found in plans]),
        ("receiving spans from other processes", [_cores(found.listening) for _, found in plans]),
        ("**processes, half a core each**", [f"**{_range(found.processes)}**" for _, found in plans]),
        ("the Redis server", [_cores(found.redis) for _, found in plans]),
        ("**Redis servers, half a core each**", [f"**{max(found.shards, 1)}**" for _, found in plans]),
        ("readers per process", [rounded(found.sockets) for _, found in plans]),
        ("memory per process, in addition to 60 MB of Python", [f"{rounded(found.megabytes)} MB" for _, found in plans]),
        ("network traffic to readers", [f"{rounded(found.megabits)} Mbit/s" for _, found in plans]),
        ("all readers of a process reconnect at once", [f"{rounded(found.join_seconds, 1)} s of CPU" for _, found in plans]),
    ]
    if one:
        fanouts = [f"{rounded(found.fanout_seconds * 1e3, 1)} ms" for _, found in plans]
        rows.append(("from the first to the last reader of a process", fanouts))
    return table(("", *loads), [(name, *cells) for name, cells in rows])


def _cores(value: float) -> str:
    if value < 0.01:
        return "less than 0.01 cores"
    return f"{rounded(value)} core{'' if value == 1 else 's'}"


def _range(processes: int) -> str:
    """Up to half as many again: generators, TLS and slower machines are not in the figures."""
    return f"{processes} to {math.ceil(1.5 * processes)}"


_CHAT: Final = Load(answers=1_000, rate=50, readers=1.3)
_LIVE: Final = Load(answers=1, rate=5, readers=50_000, event_bytes=200, seconds=3_600)
CHAT: Final = {
    "as it comes": _CHAT,
    "`Hub(flush=0.1)`": replace(_CHAT, flush=0.1),
    "the same, balanced by stream": replace(_CHAT, flush=0.1, by_stream=True),
}
LIVE: Final = {"5 events a second": _LIVE, "1 event a second": replace(_LIVE, rate=1)}


def parts(data: Mapping[str, object]) -> dict[str, str]:
    """The calculated parts of the page, by name."""
    figures = _figures(data)
    return {
        "figures": figures_part(data),
        "process": process_part(figures),
        "chat": plan_part(CHAT, figures),
        "live": plan_part(LIVE, figures),
    }


def with_parts(page: str, calculated: Mapping[str, str]) -> str:
    """The page with each part in its place."""
    for name, text in calculated.items():
        begin, end = f"<!-- measured: {name} begin -->", f"<!-- measured: {name} end -->"
        head, found, rest = page.partition(begin)
        _, closed, tail = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"{PAGE.name} has no {begin} … {end}")
        page = f"{head}{begin}\n\n{text}\n\n{end}{tail}"
    return page


def is_current() -> bool:
    """Whether the page agrees with the figures."""
    page = PAGE.read_text(encoding="utf-8")
    return page == with_parts(page, parts(read()))


# --- figures ------------------------------------------------------------------------------------------------------------


def read() -> dict[str, object]:
    """The stored figures, with where and when they were measured."""
    found: dict[str, object] = json.loads(FIGURES.read_text(encoding="utf-8"))
    return found


def _figures(data: Mapping[str, object]) -> Mapping[str, float]:
    figures = data["figures"]
    assert isinstance(figures, dict)
    return figures


def outdated(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """
    Where a run of `make bench` differs from the stored figures by more than machines do.

    It compares ratios of two things measured on the same machine.

    Args:
        rows: The parts of each row of the benchmark.
    """
    kept = _figures(read())
    found = []

    def compare(what: str, now: float, before: float) -> None:
        if not 1 / DRIFT <= now / before <= DRIFT:
            found.append(f"{what}: {now:.2f} in this run, {before:.2f} in {FIGURES.name}")

    sends = rows.get("serve-bare", {})
    names = [f"{kind}, CPU µs per event and reader" for kind in ("hub", "bare")]
    if all(name in sends for name in names):
        compare("a send, in sends of a bare app", sends[names[0]] / sends[names[1]], kept["send_us"] / kept["bare_send_us"])
    idle = rows.get("idle-reader", {})
    if "hub, KB per reader" in idle:
        compare("KB of a reader", idle["hub, KB per reader"], kept["reader_kb"])
    return found


def measure() -> dict[str, object]:
    """All figures, from this machine."""
    import carrying

    versions = []
    for name in ("uvicorn", "uvloop", "redis", "hiredis"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"no {name}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "at": datetime.now(UTC).date().isoformat(),
        "machine": f"{cores} shared cores, {platform.system()}, Python {platform.python_version()}, {', '.join(versions)}",
        "figures": {name: float(f"{value:.4g}") for name, value in carrying.measure().items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="How much one server can handle.")
    parser.add_argument("--measure", action="store_true", help=f"measure here, update {FIGURES.name}; takes two minutes")
    parser.add_argument("--write", action="store_true", help="write the figures into the page")
    parser.add_argument("--check", action="store_true", help="fail if the page does not agree with the figures")
    parser.add_argument("--answers", type=int, metavar="N", help="streams that run at the same time")
    parser.add_argument("--rate", type=float, default=50.0, metavar="N", help="events per stream and second (50)")
    parser.add_argument("--readers", type=float, default=1.3, metavar="N", help="readers per stream, on average (1.3)")
    parser.add_argument("--flush", type=float, default=FLUSH, metavar="N", help="the window of the hub, in seconds (0.025)")
    parser.add_argument("--log", choices=LOGS, default="RedisLog")
    options = parser.parse_args()
    if options.measure:
        FIGURES.write_text(json.dumps(measure(), indent=2) + "\n", encoding="utf-8")
        print(f"saved in {FIGURES}")
    if options.write:
        PAGE.write_text(with_parts(PAGE.read_text(encoding="utf-8"), parts(read())), encoding="utf-8")
    if options.check and not is_current():
        print(f"{PAGE} does not agree with {FIGURES}: run python benchmarks/capacity.py --write", file=sys.stderr)
        return 1
    if options.answers is not None:
        load = Load(answers=options.answers, rate=options.rate, readers=options.readers, log=options.log, flush=options.flush)
        print(plan_part({f"{load.answers} answers": load}, _figures(read())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
