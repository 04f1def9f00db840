"""Does memory stay flat when sampling, scoring and training go on and on?

`python benchmarks/soak.py [--minutes 30] [--json FILE] [--markdown FILE]`

One process samples by every method on NumPy and on Torch, scores with the bound, and trains a run a few steps further, in
turns; after each round it reads its resident memory, open files and threads. The drift is the slope of the line through the
second half of the readings, when caches and allocators have their size: at most 1% of the memory in an hour.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import _report
import numpy as np

from tinyddpm import Denoiser, Diffusion, likelihood, samplers, schedules
from tinyddpm._arrays.check import as_real
from tinyddpm.analytic import GaussianData

DRIFT = 0.01
"""The most by which memory may grow in an hour, as a share of it."""


@dataclass(frozen=True)
class Reading:
    """The process after a round."""

    seconds: float
    memory_mib: float
    files: int
    threads: int


def soak(minutes: float, folder: Path) -> Iterator[Reading]:
    """Work for so long; a reading after each round."""
    import torch

    from tinyddpm.nn import UNet
    from tinyddpm.training import TrainConfig, train

    torch.set_num_threads(1)
    d, shape = Diffusion(schedules.linear(50, 1e-3, 0.4)), (1, 8, 8)
    data = GaussianData(np.zeros(shape), np.full(shape, 0.1))
    exact, learned = (Denoiser(net) for net in (data.net(d), UNet(8, 1, channels=32, mults=(1, 2), attention=()).eval()))
    run = TrainConfig(out=str(folder / "run"), batch_size=16, mults=(1, 2), res_blocks=1, T=50, checkpoint_every=2)
    start, rounds = time.monotonic(), 0
    while time.monotonic() - start < 60 * minutes:
        rounds += 1
        for name in samplers.NAMES:
            d.sample(exact, (64, *shape), sampler=name, seed=rounds)
            d.sample(learned, (16, *shape), sampler=name, steps=10, seed=rounds, backend="torch")
        likelihood.vlb(d, exact, np.clip(data.sample(64, rounds), -1, 1), seed=rounds)
        train(replace(run, steps=4 * rounds, resume=True), progress=False)
        gc.collect()
        yield Reading(time.monotonic() - start, *_process())


def drift(found: Sequence[Reading]) -> float:
    """The memory's growth over the second half of the readings, in shares of it an hour."""
    half = found[len(found) // 2 :]
    memory = np.array([r.memory_mib for r in half])
    return float(np.polyfit([r.seconds / 3600 for r in half], memory, 1)[0] / memory.mean())


def _process() -> tuple[float, int, int]:
    """Resident memory in MiB, open files, threads."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        files = len(list(Path("/proc/self/fd").iterdir()))
    except OSError:
        raise ValueError("soak: this system has no /proc to read memory and files from") from None
    return pages * 4096 / 2**20, files, threading.active_count()


def main(argv: Sequence[str]) -> None:
    """Soak, print, and write what is asked for; memory, files or threads that grow are an error."""
    parser = _report.Parser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args(argv)
    minutes = as_real("minutes", args.minutes, 0.01, 10_000)
    found: list[Reading] = []
    with tempfile.TemporaryDirectory() as folder:
        for reading in soak(minutes, Path(folder)):
            found.append(reading)
            if len(found) % 20 == 1:
                said = f"{reading.seconds / 60:.1f} of {minutes:g} minutes, {reading.memory_mib:.1f} MiB"
                print(said, file=sys.stderr, flush=True)
    grown, middle, last = drift(found), found[len(found) // 2], found[-1]
    table = _report.table(
        ["at", "memory, MiB", "open files", "threads"],
        [[f"{r.seconds / 60:.1f} min", f"{r.memory_mib:.1f}", r.files, r.threads] for r in (found[0], middle, last)],
    )
    verdict = f"{len(found)} rounds in {last.seconds / 60:.1f} minutes; memory drifts by {100 * grown:+.2f}% an hour"
    print(f"{table}\n\n{verdict}")
    about = _report.environment("torch")
    _report.write_json(args.json, {**about, "drift_per_hour": grown, "readings": [asdict(r) for r in found]})
    heading = f"# Soak\n\n{_report.about(__doc__)}\n\n"
    _report.write_text(args.markdown, f"{heading}{table}\n\n{verdict}. {_report.described(about)}\n")
    if grown > DRIFT or last.files > middle.files or last.threads > middle.threads:
        raise ValueError(f"minutes: in {minutes:g} of them memory, open files or threads grew")


if __name__ == "__main__":
    raise SystemExit(_report.run(main))
