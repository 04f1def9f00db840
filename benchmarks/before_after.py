"""What a change costs or gains: the same work in the working tree and at an earlier commit, in turn.

`python benchmarks/before_after.py --before COMMIT [--only WORD] [--pairs P] [--rounds N] [--json FILE] [--markdown FILE]`

Each tree runs in a process of its own; every round does each piece of work once in both, so that what else the machine does falls
on both alike. Where a process's memory lies can change a time by a fifth, so there are several pairs of processes. "change" is
the mean over them of the rounds' median quotient, after over before, in percent, and "error" three standard errors. One thread.
The work: a run of each sampler of 20 steps around a network that costs nothing, the bound over 100 steps, a loss of a tiny batch,
and passes and steps of the network for 16x16 images.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import _report

from tinyddpm._arrays.check import as_int, as_positive_int

ROOT = Path(__file__).parents[1]
WORKER = """
import json, sys, time
from functools import partial
tree = sys.argv[1]
sys.path[:0] = [tree, f"{tree}/backends", f"{tree}/benchmarks"]
import numpy as np, torch
import tinyddpm
from tinyddpm import Denoiser, Diffusion, likelihood, losses
assert tinyddpm.__file__.startswith(tree), tinyddpm.__file__
torch.set_num_threads(1)
d, rng = Diffusion(), np.random.default_rng(0)
net = Denoiser(lambda x, t: x)

def data(library, *shape):
    x = rng.uniform(-1, 1, shape).astype("f4")
    return x if library == "numpy" else torch.from_numpy(x)

def several(call, times):
    return lambda: [call() for _ in range(times)]

def sampling(library, sampler, shape):
    x = data(library, *shape)
    return several(partial(d.sample, net, x.shape, sampler=sampler, steps=20, x_T=x), 1 if x.shape[0] > 1 else 10)

def bound(library):
    return partial(likelihood.vlb, Diffusion(d.beta[1:101]), net, data(library, 16, 3, 32, 32))

def loss(library):
    x, eps, t = data(library, 8, 1, 4, 4), data(library, 8, 1, 4, 4), np.arange(1, 9)
    return several(partial(losses.simple, d, net, x, t if library == "numpy" else torch.from_numpy(t), eps), 100)

def trainer(precision):
    from train_speed import prepared
    return prepared("small", None, None, precision, False)

def training(precision):
    made, steps = trainer(precision), iter(range(1, 10**6))
    return lambda: made.step(next(steps))

def forward(precision):
    made = trainer(precision)
    batch = next(iter(made.batches(1)))
    def run():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            made.ema(batch.x0, torch.from_numpy(batch.t - 1))
    return run

work, ready = {}, {}
for library in ("numpy", "torch"):
    for sampler in ("ddpm", "ddim", "dpm++2m"):
        for shape in ((64, 3, 32, 32), (1, 1, 8, 8)):
            work[f"{sampler}, {'x'.join(map(str, shape))}, {library}"] = partial(sampling, library, sampler, shape)
    work[f"bound, 16x3x32x32, {library}"] = partial(bound, library)
    work[f"loss, 8x1x4x4, {library}"] = partial(loss, library)
for precision in ("float32", "bf16"):
    work[f"training step, 16x16 network, {precision}"] = partial(training, precision)
    work[f"forward, 16x16 network, {precision}"] = partial(forward, precision)
print(json.dumps(list(work)), flush=True)
for line in sys.stdin:
    name = line.rstrip()
    if name not in ready:
        ready[name] = work[name]()
    start = time.perf_counter()
    ready[name]()
    print(time.perf_counter() - start, flush=True)
"""


class Tree:
    """A process that does the work of one tree."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-c", WORKER, str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder)
        self.work: list[str] = json.loads(self._answer())

    def seconds(self, name: str) -> float:
        """The time of a piece of work."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise ValueError("--before: the work could not be done there")
        return line


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """The files of a commit, in a folder that is removed at the end."""
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)
        if packed.returncode:
            raise ValueError(f"--before: {packed.stderr.decode().strip().splitlines()[-1]}")
        subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
        yield Path(folder)


def measure(commit: str, only: str, pairs: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each piece of work whose name holds `only`."""
    found: dict[str, list[dict[str, float]]] = {}
    with checked_out(commit) as folder:
        for _ in range(pairs):
            for work, medians in _one_pair({"before": folder, "after": ROOT}, only, rounds):
                found.setdefault(work, []).append(medians)
    rows = []
    for work, each in found.items():
        seconds = {name: statistics.median(medians[name] for medians in each) for name in ("before", "after")}
        changes = [100 * (medians["quotient"] - 1) for medians in each]
        error = 3 * statistics.stdev(changes) / math.sqrt(pairs)
        rows.append({"work": work, **seconds, "change": statistics.mean(changes), "error": error})
    return rows


def _one_pair(folders: dict[str, Path], only: str, rounds: int) -> Iterator[tuple[str, dict[str, float]]]:
    """The medians of each piece of work in a new process for each tree."""
    with ExitStack() as stack:
        trees = {name: Tree(folder) for name, folder in folders.items()}
        for tree in trees.values():
            stack.callback(tree.close)
        for work in (name for name in trees["after"].work if only in name):
            times: dict[str, list[float]] = {name: [] for name in trees}
            for k in range(rounds + 1):  # the first does not count
                for name in sorted(trees, reverse=k % 2 == 0):
                    times[name].append(trees[name].seconds(work))
            quotients = [after / before for before, after in zip(*(times[name][1:] for name in folders), strict=True)]
            medians = {name: statistics.median(seconds[1:]) for name, seconds in times.items()}
            yield work, {**medians, "quotient": statistics.median(quotients)}


def main(argv: Sequence[str]) -> None:
    parser = _report.Parser(description=_report.about(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, metavar="COMMIT", help="the commit to compare with")
    parser.add_argument("--only", default="", metavar="WORD", help="the work whose name holds this word (default: all)")
    parser.add_argument("--pairs", type=int, default=5, metavar="P", help="pairs of processes (default 5)")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="in each pair (default 9)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows and the environment there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    options = parser.parse_args(argv)
    pairs, rounds = as_int("--pairs", options.pairs, 2, 1000), as_positive_int("--rounds", options.rounds)
    rows = measure(options.before, options.only, pairs, rounds)
    if not rows:
        raise ValueError(f"--only must be in the name of some work, got {options.only!r}")
    text = _report.table(
        ("work", "before, ms", "after, ms", "change %", "error"),
        [(row["work"], 1e3 * row["before"], 1e3 * row["after"], row["change"], row["error"]) for row in rows],
    )
    environment = _report.environment("torch")
    said = f"Before: {options.before}. {_report.described(environment)}"
    print(f"{said}\n\n{text}")
    _report.write_json(options.json, {**environment, "before": options.before, "rows": rows})
    _report.write_text(options.markdown, f"# {_report.about(__doc__)}\n\n{text}\n\n{said}\n")


if __name__ == "__main__":
    raise SystemExit(_report.run(main))
