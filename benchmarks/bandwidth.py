"""Sampling steps and noise against the speed at which the device copies memory.

`python benchmarks/bandwidth.py [--backend torch cupy jax] [--device D] [--megabytes 256] [--json FILE] [--markdown FILE]`

A step can't be faster than the memory that it reads and writes: ddpm and ddim three arrays of the state's size, dpm++2m five;
noise writes one. "of copy" is that many bytes a second over those of a copy of the same array, which reads one and writes one.
float32; medians of runs that alternate, of which each ends when the device is done.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _report
import numpy as np
from step_speed import ARRAYS, ours, waited

from tinyddpm import backends, noise
from tinyddpm._arrays.check import as_positive_int

BATCH, REPEATS = 64, 10


def measure(name: str, device: str | None, megabytes: int, rounds: int) -> list[dict[str, Any]]:
    """A row for the copy, the noise and each sampler's step."""
    backend = backends.get(name)
    device = device or backend.devices()[-1]  # the host comes first
    numbers = megabytes * 2**18 // BATCH
    host = np.random.default_rng(0).standard_normal((BATCH, 1, 1, numbers), dtype=np.float32)
    x, value = backend.from_numpy(host, device=device), backend.from_numpy(0.1 * host, device=device)
    xp, draw = backend.namespace(), noise.like(x, 0, None)

    def repeated(task: Callable[[int], Any]) -> Callable[[], None]:
        def run() -> None:
            for k in range(1, REPEATS + 1):
                out = task(k)
            waited(backend, out)

        return run

    tasks: dict[str, Callable[[], object]] = {"copy": repeated(lambda k: xp.asarray(x, copy=True)), "noise": repeated(draw)}
    arrays = {"copy": 2, "noise": 1, **ARRAYS}
    tasks |= {sampler: ours(backend, sampler, REPEATS, x, value) for sampler in ARRAYS}
    with backends.no_grad(x):
        seconds = {task: time / REPEATS for task, time in _report.alternating(tasks, rounds).items()}
    speed = {task: arrays[task] * host.nbytes / 1e9 / time for task, time in seconds.items()}
    return [
        {"backend": name, "device": str(device), "what": task, "arrays": arrays[task], "ms": 1e3 * seconds[task],
         "gb_per_s": speed[task], "of_copy": speed[task] / speed["copy"]}
        for task in tasks
    ]  # fmt: skip


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, checked."""
    parser = _report.Parser(description=_report.about(__doc__).splitlines()[0])
    parser.add_argument("--backend", nargs="+", default=["torch"], metavar="B", help="default: torch")
    parser.add_argument("--device", help="of all of them (default: the last that each has)")
    parser.add_argument("--megabytes", type=int, default=256, metavar="N", help="the state's size (default: 256)")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="timed runs of each (default: 7)")
    for name in ("json", "markdown"):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"write the rows there, as {name}")
    options = parser.parse_args(argv)
    for name in ("megabytes", "rounds"):
        as_positive_int(f"--{name}", getattr(options, name))
    return options


def main(argv: Sequence[str]) -> None:
    """Measure, print, write."""
    options = parsed(argv)
    rows = [row for name in options.backend for row in measure(name, options.device, options.megabytes, options.rounds)]
    about = _report.environment(*options.backend)
    cells = [[r["backend"], r["device"], r["what"], r["arrays"], r["ms"], r["gb_per_s"], r["of_copy"]] for r in rows]
    text = _report.table(["backend", "device", "what", "arrays", "ms", "GB/s", "of copy"], cells)
    text += f"\n\n{options.megabytes} MB of float32. {_report.described(about)}.\n"
    print(text)
    _report.write_json(options.json, {**about, "megabytes": options.megabytes, "rows": rows})
    _report.write_text(options.markdown, f"# {_report.about(__doc__)}\n\n{text}")


if __name__ == "__main__":
    raise SystemExit(_report.run(main))
