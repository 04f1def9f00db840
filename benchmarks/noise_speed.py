"""How fast noise is drawn, beside NumPy's own generators.

`python benchmarks/noise_speed.py [--rounds N] [--json FILE] [--markdown FILE]`

float32 unless it says otherwise, on one thread; medians of runs of five draws, as a sampler draws one kind again and again, that
alternate. "words" are the random bits alone, which the layout needs whatever is made of them: ours can't be faster than they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import _report
import numpy as np

from tinyddpm import noise
from tinyddpm._arrays.check import as_positive_int

SHAPE = (64, 3, 32, 32)
RUN = 5  # draws


def draws() -> dict[str, Callable[[], Any]]:
    """The draws to compare, the yardstick first."""
    count, *shape = SHAPE
    generator = np.random.Generator(np.random.Philox(0))
    default = np.random.default_rng(0)
    shuffled = np.random.default_rng(0).permutation(count)
    words = np.random.Philox(0)
    return {
        "numpy standard_normal (PCG64)": lambda: default.standard_normal(SHAPE, dtype=np.float32),
        "numpy standard_normal (Philox)": lambda: generator.standard_normal(SHAPE, dtype=np.float32),
        "words (Philox)": lambda: words.random_raw(int(np.prod(SHAPE)) // 2),
        "tinyddpm, a range": lambda: noise.normal(0, range(count), 1, shape),
        "tinyddpm, shuffled samples": lambda: noise.normal(0, shuffled, 1, shape),
        "tinyddpm, float64": lambda: noise.normal(0, range(count), 1, shape, dtype="float64"),
    }


def run(draw: Callable[[], Any]) -> None:
    for _ in range(RUN):
        draw()


def measure(rounds: int) -> list[dict[str, Any]]:
    """Medians, in ns per element, and how many times as fast as the yardstick."""
    medians = _report.alternating({name: partial(run, draw) for name, draw in draws().items()}, rounds)
    yardstick = next(iter(medians.values()))
    return [
        {"draw": name, "ns_per_element": 1e9 * median / np.prod((RUN, *SHAPE)), "speed": yardstick / median}
        for name, median in medians.items()
    ]


def main(argv: Sequence[str]) -> None:
    """Measure, print, write."""
    parser = _report.Parser(description=_report.about(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="runs of each (default: 40)")
    for name in ("json", "markdown"):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"write the rows there, as {name}")
    options = parser.parse_args(argv)
    rows = measure(as_positive_int("--rounds", options.rounds))
    cells = [[row["draw"], row["ns_per_element"], row["speed"]] for row in rows]
    about = _report.environment()
    text = f"{_report.table(['draw', 'ns/element', 'speed'], cells)}\n\n{SHAPE}; {_report.described(about)}.\n"
    print(text)
    _report.write_text(options.markdown, f"# {_report.about(__doc__)}\n\n{text}")
    _report.write_json(options.json, {**about, "shape": list(SHAPE), "rows": rows})


if __name__ == "__main__":
    raise SystemExit(_report.run(main))
