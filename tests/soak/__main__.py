"""
Random faults from the command line.

    python -m tests.soak --seed 1234             one seed, and everything about it
    python -m tests.soak --count 20000           seeds 0 to 19,999, in memory
    python -m tests.soak --count 300 --sockets   over real sockets
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.soak.cases import draw
from tests.soak.playing import play

BLOCK = 250


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Streams with random faults.")
    parser.add_argument("--seed", type=int, help="play this seed alone and show its case")
    parser.add_argument("--first", type=int, default=0, help="first seed (default 0)")
    parser.add_argument("--count", type=int, default=20_000, help="how many seeds (default 20000)")
    parser.add_argument("--sockets", action="store_true", help="over real sockets instead of in memory")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once")
    options = parser.parse_args()
    if options.seed is not None:
        print(draw(options.seed, sockets=options.sockets).describe())
        failures = play([options.seed], sockets=options.sockets)
        print(failures[0].partition("\n")[0] if failures else f"seed {options.seed}: exact")
        return bool(failures)
    started = time.perf_counter()
    seeds = range(options.first, options.first + options.count)
    blocks = [list(seeds[at : at + BLOCK]) for at in range(0, len(seeds), BLOCK)]
    found: list[str] = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for failures in pool.map(_block, [(block, options.sockets) for block in blocks]):
            found += failures
            for failure in failures:
                print(failure.partition("\n")[0], flush=True)
    print(f"{len(seeds):,} streams, {len(found)} wrong, {time.perf_counter() - started:.0f} s; seeds {seeds[0]} to {seeds[-1]}")
    return bool(found)


def _block(work: tuple[list[int], bool]) -> list[str]:
    return play(work[0], sockets=work[1])


if __name__ == "__main__":
    sys.exit(main())
