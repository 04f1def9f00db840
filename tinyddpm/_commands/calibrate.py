"""``tinyddpm calibrate``: measure a run's errors, from which its best chain of any length follows."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinyddpm import backends
from tinyddpm._arrays.check import as_positive_int
from tinyddpm._commands import plus_minus, takes_model
from tinyddpm._commands.runs import check_shape, data_of, device_of, network_digest, open_run, trained_on
from tinyddpm.calibration import Calibration
from tinyddpm.likelihood import calibrate
from tinyddpm.training import Images, Run

EXAMPLES = ("--model runs/digits", "--model runs/photos --per-dimension --limit 2000")
FILE = "calibration.json"
LIMIT = 512
_CALLS = (5, 10, 20, 50, 100)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    takes_model(parser)
    data = "images to measure on (default: those that the run was trained on; never those that it held out)"
    parser.add_argument("--data", metavar="digits|FOLDER|FILE", help=data)
    parser.add_argument("--limit", type=int, default=LIMIT, metavar="N", help=f"images at most, evenly spaced (default {LIMIT})")
    parser.add_argument("--per-dimension", action="store_true", help="a variance for each pixel; better with many images")


def run(args: argparse.Namespace) -> Iterator[str]:
    """Measure, write ``calibration.json`` into the run, and yield what was used and the bounds that follow."""
    model = open_run(args.model, args.device)
    data = data_of(model, args.data)
    images = trained_on(model, data, args.limit, tell=not args.quiet)
    found = measure(
        model, images, seed=args.seed, batch_size=args.batch_size, per_dimension=args.per_dimension, progress=not args.quiet
    )
    file = Path(args.model, FILE)
    found.save(file)
    table = predicted(found)
    if args.json:
        rows = [{"calls": n, "bits_per_dim": bits, "error": error} for n, (bits, error) in table.items()]
        yield json.dumps(
            {"calibration": str(file), "images": found.rows, "per_dimension": args.per_dimension, "chains": rows}, indent=2
        )
        return
    kind = "a variance for each pixel" if args.per_dimension else "one variance a step"
    yield f"calibration: {file} ({found.rows} images of {data}, none held out; {kind})"
    for n, (bits, error) in table.items():
        best = ", the best of all lengths" if n == max(table) else ""
        yield f"{n} calls: {plus_minus(bits, error, 3)} bits/dim{best}"
    yield "(on these images; others cost a little more: tinyddpm evaluate --steps N)"


def measure(
    model: Run, images: Images, *, seed: int = 0, batch_size: int = 250, per_dimension: bool = False, progress: bool = False
) -> Calibration:
    """The errors of the run's network on the images."""
    check_shape(model, images)
    x0 = backends.get("torch").from_numpy(images.scaled(slice(None)), device=device_of(model))
    decoder: Any = model.config.decoder
    found = calibrate(
        model.diffusion, model.denoiser, x0, seed=seed, levels=images.levels, decoder=decoder, per_dimension=per_dimension,
        batch_size=as_positive_int("batch_size", batch_size), progress=progress,
    )  # fmt: skip
    return dataclasses.replace(found, network=network_digest(model))


def predicted(found: Calibration) -> dict[int, tuple[float, float]]:
    """(bits per dimension, standard error) of the best chains of a few lengths, and last of the best length of all."""
    best = found.timesteps()
    plans = [*(found.timesteps(n) for n in _CALLS if n < len(best) - 1), best]
    return {len(plan) - 1: (found.bits_per_dim(plan), found.standard_error(plan)) for plan in plans}


def read_calibration(model: str, run: Run) -> Calibration:
    """The calibration in the run's folder; ValueError if there is none, or it is of other weights."""
    file, again = Path(model, FILE), f"tinyddpm calibrate --model {model}"
    if not file.exists():
        raise ValueError(f"model {model} has no {FILE}; {again} makes it")
    found = Calibration.load(file)
    if found.network != network_digest(run):
        raise ValueError(f"{file} was made of other weights than the run has now; {again} makes it anew")
    return found


def best_chain(model: str, run: Run, steps: int | None) -> Run:
    """The run with its best chain of so many steps."""
    d, denoiser = read_calibration(model, run).chain(run.diffusion, run.denoiser, steps)
    return dataclasses.replace(run, diffusion=d, denoiser=denoiser)
