"""How long it takes to import `Diffusion` and `Denoiser`, beside NumPy alone and diffusers' scheduler.

`python benchmarks/import_time.py [--rounds N] [--json FILE] [--markdown FILE]`

Each is imported in an interpreter of its own, in turn, after a round that warms the file cache; the time is the import
statement's, without the interpreter's start. Medians. `import tinyddpm` itself loads next to nothing.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _report

from tinyddpm._arrays.check import as_positive_int

IMPORTS = {
    "numpy": "import numpy",
    "tinyddpm": "from tinyddpm import Denoiser, Diffusion",
    "diffusers": "from diffusers import DDPMScheduler",
}


def seconds(statement: str) -> float:
    """The import's time in a fresh interpreter."""
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise ImportError(f"{statement}: {(ended.stderr.strip().splitlines() or ['failed'])[-1]}")
    return float(ended.stdout.split()[-1])


def measure(rounds: int) -> dict[str, float]:
    """Median milliseconds by name, and the two figures that are promised."""
    found: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(rounds + 1):
        for name, statement in IMPORTS.items():
            found[name].append(1e3 * seconds(statement))
    ms = {name: statistics.median(times[1:]) for name, times in found.items()}
    beyond = statistics.median(a - b for a, b in list(zip(found["tinyddpm"], found["numpy"], strict=True))[1:])
    return {**ms, "beyond_numpy_ms": beyond, "ratio": ms["diffusers"] / ms["tinyddpm"]}


def table(found: dict[str, float]) -> str:
    return _report.table(("import", "ms", "times tinyddpm's"), [
        (statement, found[name], found[name] / found["tinyddpm"]) for name, statement in IMPORTS.items()])  # fmt: skip


def main(argv: Sequence[str]) -> None:
    parser = _report.Parser(description=_report.about(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="how often each is imported (default: 9)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and the environment there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    options = parser.parse_args(argv)
    found = measure(as_positive_int("--rounds", options.rounds))
    environment = _report.environment("diffusers", "torch")
    text = f"{table(found)}\n\ntinyddpm is {found['beyond_numpy_ms']:.1f} ms beyond NumPy.\n"
    print(text)
    result: dict[str, Any] = {"milliseconds": found, **environment}
    _report.write_json(options.json, result)
    _report.write_text(options.markdown, f"# {_report.about(__doc__)}\n\n{text}\n{_report.described(environment)}\n")


if __name__ == "__main__":
    raise SystemExit(_report.run(main))
