"""
Measure, and compare the results with the goals of the design.

    make bench
    make bench BENCH_ARGS="--quick"
    make bench BENCH_ARGS="--rows parse-* stream-event --rounds 21"

Only ratios within one run mean anything; on a shared machine a single one moves by 5 to 10 %.
See docs/performance.md for what each row measures.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import below
import capacity
import decode
import end_to_end
import frames
import growth
import latency
import logs
import memory
import paced
import relaying
import serving
import whole
from corpora import LF
from measure import Measured, Size, Skipped
from server import serve

FULL = Size(rounds=15, events=20_000, streamed=40_000, trials=200, endless=1_000_000, readers=200)
QUICK = Size(rounds=5, events=8_000, streamed=15_000, trials=60, endless=200_000, readers=50)
MANY_READERS = 1_000
RESULTS = Path(__file__).parent / "results"
VERSIONS = (
    "httpx", "httpcore", "h11", "httpx-aiohttp", "aiohttp", "httpx-sse", "httpx2", "launchdarkly-eventsource", "openai",
    "anthropic", "starlette", "uvicorn", "sse-starlette", "redis", "websockets", "wsproto",
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """Shared by the rows."""

    size: Size
    server: Callable[[], str]
    """URL of the loopback server, started on first use."""


Measure = Callable[[Bench], Measured]


@dataclass(frozen=True)
class Row:
    """
    One line of the table.

    Attributes:
        floor, aim: The run fails below the floor (for costs, above it).
        better: Which direction is good.
        unit: Written after each number.
        digits: The result is rounded to these before it is judged, so the shown number counts.
    """

    name: str
    what: str
    against: str
    floor: float
    aim: float
    measure: Measure
    better: Literal["higher", "lower"] = "higher"
    unit: str = "×"
    digits: int = 2

    def verdict(self, value: float) -> str:
        sign = 1 if self.better == "higher" else -1
        value = round(value, self.digits)
        if sign * value >= sign * self.aim:
            return "reaches the aim"
        return "above the floor" if sign * value >= sign * self.floor else "BELOW THE FLOOR"


def parse(names: Sequence[str], how: str) -> Measure:
    return lambda bench: decode.parse(names, how, bench.size)


def stream(how: str) -> Measure:
    return lambda bench: whole.whole(("langgraph",), how, bench.size)


def number_in_json(how: str) -> Measure:
    return lambda bench: whole.whole(("responses",), how, bench.size, protocol=whole.json_number)


def over_http(read: Callable[[str, str, Size], Measured], how: str) -> Measure:
    return lambda bench: read(bench.server(), how, bench.size)


def few(bench: Bench) -> int:
    """Rounds of rows whose samples take about a second."""
    return max(bench.size.rounds // 3, 3)


# A release must hold the floors; the aims are goals: see docs/performance.md.
SSE, HTTP, RAW, FRAMES = "httpx-sse", "httpx + httpx-sse", "httpx iter_raw", "websockets, no I/O"
SYNC, ASYNC = end_to_end.synchronous, end_to_end.asynchronous
ROWS = (
    Row("parse-64k", "parse, LF, 64 KiB chunks", SSE, 2.4, 3.5, parse(LF, "64k")),
    Row("parse-event", "parse, LF, one event per chunk", SSE, 1.8, 2.3, parse(LF, "event")),
    Row("parse-crlf", "parse, CRLF, one event per chunk", SSE, 1.6, 2.0, parse(("crlf",), "event")),
    Row("parse-non-ascii", "parse, non-ASCII, one event per chunk", SSE, 1.6, 2.0, parse(("non_ascii",), "event")),
    Row("parse-byte", "parse, 1-byte chunks", SSE, 1.8, 4.0, parse(LF, "byte")),
    Row("ws-parse-64k", "WebSocket frames, 64 KiB chunks", FRAMES, 4.0, 5.0, lambda bench: frames.parse("64k", bench.size)),
    Row("ws-parse-event", "WebSocket frames, one per chunk", FRAMES, 3.5, 5.0, lambda bench: frames.parse("event", bench.size)),
    Row("stream-64k", "whole stream, ids, 64 KiB chunks", SSE, 2.3, 3.0, stream("64k")),
    Row("stream-event", "whole stream, ids, one event per chunk", SSE, 1.6, 2.0, stream("event")),
    Row("json-64k", "whole stream, number in JSON, 64 KiB chunks", SSE, 1.5, 2.0, number_in_json("64k")),
    Row("json-event", "whole stream, number in JSON, one event per chunk", SSE, 1.15, 1.5, number_in_json("event")),
    Row("sync-64k", "end to end, sync, 64 KiB HTTP chunks", HTTP, 1.9, 2.3, over_http(SYNC, "64k")),
    Row("sync-event", "end to end, sync, one HTTP chunk per event", HTTP, 1.1, 1.25, over_http(SYNC, "event")),
    Row("async-64k", "end to end, async, 64 KiB HTTP chunks", HTTP, 1.9, 2.3, over_http(ASYNC, "64k")),
    Row("async-event", "end to end, async, one HTTP chunk per event", HTTP, 1.1, 1.25, over_http(ASYNC, "event")),
    Row(
        "paced-httpx",
        f"{paced.STREAMS} streams, each token alone, {paced.APART} ms apart, over httpx",
        HTTP,
        floor=1.3,
        aim=1.0,
        measure=lambda bench: paced.paced(bench.server(), "httpx", few(bench)),
        better="lower",
    ),
    Row(
        "paced-aiohttp",
        "the same over httpx-aiohttp",
        "httpx-aiohttp + httpx-sse",
        floor=1.3,
        aim=1.15,
        measure=lambda bench: paced.paced(bench.server(), "httpx-aiohttp", few(bench)),
        better="lower",
    ),
    Row(
        "below-sync",
        "under an SDK, sync, one HTTP chunk per event",
        RAW,
        floor=1.25,
        aim=1.15,
        measure=over_http(below.synchronous, "event"),
        better="lower",
    ),
    Row(
        "below-async",
        "under an SDK, async, one HTTP chunk per event",
        RAW,
        floor=1.25,
        aim=1.15,
        measure=over_http(below.asynchronous, "event"),
        better="lower",
    ),
    Row(
        "store-sync",
        "with a FileStore that keeps events, sync, one HTTP chunk per event",
        "without a store",
        floor=1.3,
        aim=1.2,
        measure=over_http(end_to_end.kept, "event"),
        better="lower",
    ),
    Row(
        "store-async",
        "with a FileStore that keeps events, async, one HTTP chunk per event",
        "without a store",
        floor=1.3,
        aim=1.2,
        measure=over_http(partial(end_to_end.kept, asynchronously=True), "event"),
        better="lower",
    ),
    Row(
        "reconnect",
        "reconnect to first replayed event, sync, wall time",
        "raw socket",
        floor=4.0,
        aim=2.0,
        measure=lambda bench: latency.reconnect(bench.server(), bench.size.trials),
        better="lower",
    ),
    Row(
        "memory",
        "memory growth over a million events (--quick: 200,000)",
        "",
        floor=2.0,
        aim=0.0,
        measure=lambda bench: memory.growth(bench.size.endless),
        better="lower",
        unit=" MB",
        digits=1,
    ),
    Row(
        "growth",
        "time when the stream doubles, worst case",
        "half of it",
        floor=2.2,
        aim=2.0,
        measure=lambda bench: growth.per_doubling(min(bench.size.rounds, 7)),
        better="lower",
        digits=1,
    ),
    Row(
        "serve-fanout",
        "one stream, 200 readers (--full: 1,000, --quick: 50)",
        "sse-starlette",
        floor=0.5,
        aim=0.4,
        measure=lambda bench: serving.fanout(bench.size.readers, few(bench)),
        better="lower",
    ),
    Row(
        "serve-bare",
        "the same",
        "bare ASGI app",
        floor=1.6,
        aim=1.15,
        measure=lambda bench: serving.bare_fanout(bench.size.readers, few(bench)),
        better="lower",
    ),
    Row(
        "serve-streams",
        "as many streams of one reader, 4 events at once",
        "bare ASGI app",
        floor=4.0,
        aim=1.15,
        measure=lambda bench: serving.streams(bench.size.readers, few(bench)),
        better="lower",
    ),
    Row(
        "replay",
        "a finished answer of 2,000 tokens, sent again",
        "its bytes in memory",
        floor=2.5,
        aim=1.15,
        measure=lambda bench: serving.replay(few(bench)),
        better="lower",
    ),
    *(
        Row(
            f"relay-{log.removesuffix('Log').lower()}",
            f"a relay over {log}, 50 streams, each token alone",
            "an app that makes its tokens",
            floor=1.5,
            aim=1.2,
            measure=lambda bench, log=log: relaying.against_hub(log, few(bench)),  # type: ignore[misc]
            better="lower",
        )
        for log in ("MemoryLog", "RedisLog")
    ),
    *(
        Row(
            f"relay-{peer}",
            "a relay over MemoryLog, the same",
            f"a proxy over {peer}",
            floor=floor,
            aim=aim,
            measure=lambda bench, peer=peer: relaying.against_proxy(peer, few(bench)),  # type: ignore[misc]
            better="lower",
        )
        for peer, floor, aim in (("httpx", 1.5, 1.0), ("aiohttp", 2.75, 2.0))
    ),
    Row(
        "log-append",
        "RedisLog, 50 streams, 100 events a second each",
        "redis-py, XADD",
        floor=0.6,
        aim=0.25,
        measure=lambda bench: logs.appended(1.0, few(bench)),
        better="lower",
    ),
    Row(
        "log-trips",
        "trips to the log for an event, 50 streams, worst log",
        "",
        floor=0.05,
        aim=0.03,
        measure=lambda bench: logs.trips(2.0),
        better="lower",
        unit="",
        digits=3,
    ),
    Row(
        "kept-bytes",
        "a finished answer of 2,000 tokens in the log, worst log",
        "",
        floor=31.0,
        aim=30.0,
        measure=lambda bench: logs.kept(8),
        better="lower",
        unit=" KB",
        digits=1,
    ),
    Row(
        "idle-reader",
        "memory for a reader that waits",
        "",
        floor=18.0,
        aim=16.0,
        measure=lambda bench: serving.idle(max(bench.size.readers, serving.IDLE)),
        better="lower",
        unit=" KB",
        digits=1,
    ),
)


def table(lines: Iterable[tuple[str, ...]]) -> str:
    lines = list(lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def measure(chosen: Sequence[Row], bench: Bench, *, details: bool) -> dict[str, Measured]:
    found: dict[str, Measured] = {}
    skipped: list[str] = []
    header = ("row", "what", "against", "floor", "aim", "measured", "quartiles", "verdict")
    printed = [header]
    for row in chosen:
        print(f"\r\033[K{row.what} …" if sys.stderr.isatty() else "", end="", file=sys.stderr, flush=True)
        bounds = ("≥" if row.better == "higher" else "≤", row.unit)
        try:
            result = found[row.name] = row.measure(bench)
        except Skipped as why:
            skipped.append(f"{row.name} is skipped: {why}")
            continue
        printed.append(
            (
                row.name,
                row.what,
                row.against,
                f"{bounds[0]} {row.floor:g}{row.unit}",
                f"{bounds[0]} {row.aim:g}{row.unit}",
                f"{result.value:.{row.digits}f}{row.unit}",
                f"{result.low:.{max(row.digits, 2)}f} … {result.high:.{max(row.digits, 2)}f}",
                row.verdict(result.value),
            )
        )
    print("\r\033[K" if sys.stderr.isatty() else "", end="", file=sys.stderr, flush=True)
    print("\n".join([table(printed), *skipped]))
    if details:
        print()
        parts = [(name, part, f"{value:.2f}") for name, result in found.items() for part, value in result.parts.items()]
        print(table([("row", "part", "measured"), *parts]))
    return found


def information(bench: Bench) -> dict[str, Mapping[str, float]]:
    """Figures without a goal."""
    size = bench.size
    found: dict[str, Mapping[str, float]] = {}
    less = replace(size, rounds=few(bench), events=size.events // 2)
    for how in ("64k", "event"):
        found[f"decoders, {how}, times httpx-sse"] = decode.compare(how, less)
    opaque = {how: whole.whole(("opaque_ids",), how, size).value for how in ("64k", "event")}
    found["whole stream, opaque ids, times httpx-sse"] = opaque
    found["reconnect, async, times the raw socket"] = {
        "httpx.AsyncClient": latency.reconnect_async(bench.server(), size.trials).value
    }
    print("\nFor information:")
    print(table([(title, name, f"{value:.2f}×") for title, values in found.items() for name, value in values.items()]))
    return found


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def save(path: Path, chosen: Sequence[Row], found: Mapping[str, Measured], other: Mapping[str, Mapping[str, float]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {
        row.name: {
            "floor": row.floor,
            "aim": row.aim,
            "better": row.better,
            "measured": found[row.name].value,
            "quartiles": [found[row.name].low, found[row.name].high],
            "parts": found[row.name].parts,
            "verdict": row.verdict(found[row.name].value),
        }
        for row in chosen
        if row.name in found
    }
    data = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "rows": results,
        "information": other,
    }
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\nsaved in {path}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure resumable_stream against what is used without it.")
    parser.add_argument("--quick", action="store_true", help="rough figures in half a minute")
    parser.add_argument("--full", action="store_true", help=f"{MANY_READERS:,} readers of a server instead of {FULL.readers}")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="only these rows; * stands for anything")
    parser.add_argument("--rounds", type=int, metavar="N", help="samples of each peer, for the medians")
    parser.add_argument("--details", action="store_true", help="show the figures behind each row")
    parser.add_argument("--no-fail", action="store_true", help="exit with 0 even when a floor is missed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go; default: a file in benchmarks/results/")
    options = parser.parse_args()

    size = QUICK if options.quick else FULL
    if options.full:
        size = replace(size, readers=MANY_READERS)
    if options.rounds is not None:
        if options.rounds < 1:
            parser.error("--rounds must be at least 1")
        size = replace(size, rounds=options.rounds)
    begun = time.monotonic()
    with ExitStack() as stack:
        address: list[str] = []

        def server() -> str:
            if not address:
                address.append(stack.enter_context(serve()))
            return address[0]

        bench = Bench(size, server)
        chosen = [row for row in ROWS if not options.rows or any(fnmatch(row.name, pattern) for pattern in options.rows)]
        if not chosen:
            parser.error(f"no such row; there are: {', '.join(row.name for row in ROWS)}")
        print(", ".join(f"{name} {number}" for name, number in versions().items()) + "\n")
        found = measure(chosen, bench, details=options.details)
        other = {} if options.quick or options.rows else information(bench)
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    save(options.json or RESULTS / f"{stamp}.json", chosen, found, other)
    for line in capacity.outdated({name: result.parts for name, result in found.items()}):
        print(f"docs/server/capacity.md may be out of date, run `make capacity`: {line}")
    missed = [row.name for row in chosen if row.name in found and row.verdict(found[row.name].value).isupper()]
    print(f"{time.monotonic() - begun:.0f} s; below the floor: {', '.join(missed) or 'none'}")
    return 1 if missed and not options.no_fail else 0


if __name__ == "__main__":
    sys.exit(main())
