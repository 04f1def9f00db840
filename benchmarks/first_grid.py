"""How long it takes from `tinyddpm train` to the first grid of samples, and what the time goes to.

`python benchmarks/first_grid.py [--threads N] [--json FILE] [--markdown FILE] [-- OPTIONS OF TRAIN]`

The command runs in a process of its own, which ends when the first grid is written. "start" is the interpreter and the imports,
of which Torch's optimiser is a large one, "data" the images read, "precision" the steps in float32 and bf16 by which one of them
is chosen, "network" the network and its optimiser, "steps" the training until the grid, "grid" its drawing. Without options, the
digits are trained on, with the preset of the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _report

from tinyddpm._arrays.check import as_positive_int

PARTS = ("start", "data", "precision", "network", "steps", "grid")
CHILD = """
import json, os, sys, time
began, *words = json.loads(sys.argv[1])
import torch
from tinyddpm import cli
from tinyddpm.training.config import TrainConfig
from tinyddpm.training.grids import Grids
torch.optim.Adam([torch.zeros(1)])  # imports what is imported once
seconds = {"start": time.time() - began}
run = sys.modules["tinyddpm.training.train"]

def timed(owner, name, part):
    function = getattr(owner, name)
    def call(*given, **options):
        start = time.time()
        try:
            return function(*given, **options)
        finally:
            seconds[part] = time.time() - start
    setattr(owner, name, call)

timed(TrainConfig, "images", "data")
timed(run, "settled", "precision")
timed(run, "Trainer", "network")
draw = Grids.draw
def first(grids, log, step):
    before = time.time() - began
    start = time.time()
    draw(grids, log, step)
    if not any(grids.folder.glob("*.png")):
        return  # it would have taken too much of the run's time
    seconds["steps"] = before - sum(seconds.values())
    seconds["grid"] = time.time() - start
    about = {"step": step, "precision": grids.trainer.config.precision, "batch": grids.trainer.config.batch_size}
    print(json.dumps({"seconds": seconds, **about}), flush=True)
    os._exit(0)
Grids.draw = first
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
cli.main(words)
"""


def measure(words: Sequence[str], threads: int) -> dict[str, Any]:
    """The parts' seconds, and which step, precision and batch they are of."""
    with tempfile.TemporaryDirectory() as folder:
        given = json.dumps([time.time(), "train", *words, "--out", f"{folder}/run"])
        env = os.environ | {"OMP_NUM_THREADS": str(threads)}
        ended = subprocess.run([sys.executable, "-c", CHILD, given], env=env, capture_output=True, text=True, check=False)
    line = (ended.stdout.strip().splitlines() or [""])[-1]
    if ended.returncode or not line.startswith("{"):
        raise ValueError(f"train: {(ended.stderr.strip().splitlines() or ['no grid was drawn'])[-1]}")
    return dict(json.loads(line))


def main(argv: Sequence[str]) -> None:
    cut = list(argv).index("--") if "--" in argv else len(argv)
    parser = _report.Parser(description=_report.about(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of the network (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and the environment there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    options = parser.parse_args(list(argv[:cut]))
    words = list(argv[cut + 1 :])
    found = measure(words, as_positive_int("--threads", options.threads))
    seconds = found["seconds"]
    text = _report.table(("part", "s"), [*((part, seconds[part]) for part in PARTS), ("all", sum(seconds.values()))])
    environment = _report.environment("torch")
    said = (
        f"{' '.join(('tinyddpm train', *words))}: step {found['step']} of batches of {found['batch']} in {found['precision']}, "
        f"threads {options.threads}"
    )
    print(f"{said}\n\n{text}")
    _report.write_json(options.json, {**found, "words": words, "threads": options.threads, **environment})
    page = f"# {_report.about(__doc__)}\n\n{said}\n\n{text}\n\n{_report.described(environment)}\n"
    _report.write_text(options.markdown, page)


if __name__ == "__main__":
    raise SystemExit(_report.run(main))
