"""How fast noise is drawn, beside NumPy's own generator: `python benchmarks/noise_speed.py [--json FILE]`.

One thread. Each round times every draw once, so that whatever else the machine does falls on all alike; the medians are
compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tinyddpm import noise

SHAPE = (64, 3, 32, 32)


def draws() -> dict[str, Callable[[], Any]]:
    """The draws to compare, the yardstick first."""
    count, *shape = SHAPE
    generator = np.random.Generator(np.random.Philox(0))
    default = np.random.default_rng(0)
    shuffled = np.random.default_rng(0).permutation(count)
    words = np.random.Philox(0)
    return {
        "numpy standard_normal (Philox)": lambda: generator.standard_normal(SHAPE, dtype=np.float32),
        "numpy standard_normal (PCG64)": lambda: default.standard_normal(SHAPE, dtype=np.float32),
        "numpy Philox, words alone": lambda: words.random_raw(int(np.prod(SHAPE)) // 2),
        "tinyddpm, a range": lambda: noise.normal(0, range(count), 1, shape),
        "tinyddpm, shuffled samples": lambda: noise.normal(0, shuffled, 1, shape),
        "tinyddpm, float64": lambda: noise.normal(0, range(count), 1, shape, dtype="float64"),
    }


def measure(rounds: int) -> list[dict[str, Any]]:
    """Alternating medians, in ns per element and as a ratio to the yardstick."""
    functions = draws()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    yardstick = next(iter(medians.values()))
    return [
        {"draw": name, "ns_per_element": 1e9 * median / np.prod(SHAPE), "ratio": median / yardstick}
        for name, median in medians.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=100, help="how often each draw is timed (default: 100)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds: {options.rounds} is not positive")
    rows = measure(options.rounds)
    print(f"{'float32 noise of shape ' + str(SHAPE):36} ns/element   ratio")
    for row in rows:
        print(f"{row['draw']:36} {row['ns_per_element']:10.2f}  {row['ratio']:6.2f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
