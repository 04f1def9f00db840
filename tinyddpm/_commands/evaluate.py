"""``tinyddpm evaluate``: the bound of a run on images, and distances between its samples and the images."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tinyddpm import backends
from tinyddpm._arrays.check import as_int, as_positive_int
from tinyddpm._commands import plus_minus, quality, takes_model
from tinyddpm._commands.calibrate import best_chain
from tinyddpm._commands.keeping import Kept
from tinyddpm._commands.runs import check_shape, device_of, held_out, open_run, score
from tinyddpm._io.progress import duration, say
from tinyddpm.likelihood import VLB
from tinyddpm.training import Images, Run
from tinyddpm.training.world import processes

EXAMPLES = (
    "--model runs/digits --data digits",
    "--model runs/digits --data digits --steps 20",
    "--model runs/photos --data held_out/ --limit 100 --json",
    "--model runs/photos --data held_out/ --limit 50000 --keep scores",
    "--model runs/fashion --data test.npz --limit 500 --distances 2000 --classifier runs/classifier",
)
_LIMIT = 256  # images: the standard error is then about a sixteenth of their spread
_LABELS = {
    "bits_per_dim": "bits/dim",
    "prior": "  L_T",
    "kl": "  L_{t-1}, t = 2..T",
    "decoder": "  L_0",
    "rate": "rate",
    "distortion": "distortion",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    takes_model(parser)
    data = "images to score; those that the run was trained on are left out, whatever the folder is called"
    parser.add_argument("--data", required=True, metavar="digits|FOLDER|FILE", help=data)
    parser.add_argument("--limit", type=int, default=_LIMIT, metavar="N", help=f"score the first N images (default {_LIMIT})")
    steps = "network calls an image: the best chain of this length, which tinyddpm calibrate found (default: the full chain)"
    parser.add_argument("--steps", type=int, metavar="N", help=steps)
    curve = "print the bound's term and the errors of x0 and eps at each t; takes memory for as many terms an image"
    parser.add_argument("--curve", action="store_true", help=curve)
    keep = """keep each image's terms in this folder: the same command goes on where it was stopped and prints the same figures;
    processes started by torchrun share it (default: keep nothing)"""
    parser.add_argument("--keep", metavar="FOLDER", help=keep)
    quality.arguments(parser)


def run(args: argparse.Namespace) -> Iterator[str]:
    """Yield the bound and its parts in bits per dimension, and the distances, each with its standard error."""
    rank, size = processes()
    if size > 1 and args.keep is None:
        raise ValueError(f"keep must be given, a folder in which {size} processes share the work")
    args.quiet |= rank > 0
    model = open_run(args.model, args.device)
    found = held_out(model, args.data, tell=not args.quiet)
    images = found.rows(slice(as_positive_int("limit", args.limit)))
    judged = None if rank else quality.Quality.prepared(args, model)  # checks the options before the long work
    model = model if args.steps is None else best_chain(args.model, model, args.steps)
    vlb = _bound(args, model, images, len(found), rank, size)
    if vlb is not None:  # the first process prints
        yield from _report(args, model, images, vlb, judged)


def _bound(args: argparse.Namespace, model: Run, images: Images, found: int, rank: int, size: int) -> VLB | None:
    """The bound on the images, which one process gets; what it takes is said before."""
    check_shape(model, images)
    seed, batch_size = as_int("seed", args.seed, 0, 2**64 - 1), as_positive_int("batch_size", args.batch_size)
    options = {"seed": seed, "batch_size": batch_size, "terms": args.curve}
    kept = None if args.keep is None else Kept(Path(args.keep), model, images, **options)
    left, there = len(images), ""
    if kept:
        kept.claim()
        left = sum(map(len, kept.missing(kept.parts)))
        there = f", {len(images) - left} of them in {args.keep}" if left < len(images) else ""
    if not args.quiet:
        took = _estimate(model, left, batch_size, size)
        say(f"evaluate: {len(images)} of {found} images{there}, {took} (--limit and --steps take others)")
    if not kept:
        return score(model, images, progress=not args.quiet, **options)
    kept.score(rank, size, not args.quiet)
    return None if rank else kept.bound()


def _report(args: argparse.Namespace, model: Run, images: Images, vlb: VLB, judged: quality.Quality | None) -> Iterator[str]:
    """What is printed, after the samples have been drawn and judged if that was asked for."""
    about: dict[str, Any] = {"images": len(images), "levels": images.levels, "calls": model.diffusion.T}
    about |= {"bound_of": "density"} if model.config.decoder == "density" else {}
    parts = in_bits(vlb)
    curve, distances = _curve(vlb) if args.curve else {}, judged.measure() if judged else {}
    if args.json:
        entries = {name: {"mean": m, "error": _or_none(e)} for name, (m, e) in parts.items()}
        columns = {name: [_or_none(value) for value in column] for name, column in curve.items()}
        extra = {name: value for name, value in (("curve", columns), ("distances", distances)) if value}
        yield json.dumps({**entries, **about, **extra}, indent=2)
        return
    for name, (mean, error) in parts.items():
        yield f"{_LABELS[name]}: {plus_minus(mean, error)}"
    for name, count in about.items():
        yield f"{name}: {count}"
    for t, bits, error, x0, eps in zip(*curve.values(), strict=True):
        yield f"t = {t}: {plus_minus(bits, error, 5)} bits/dim, x0 rmse {x0:.3f} levels, eps rmse {eps:.5f}"
    if distances:
        yield from quality.lines(distances)


def _estimate(model: Run, count: int, batch_size: int, processes: int) -> str:
    """The network calls that the bound takes, and the time that `count` images take by that of one call."""
    size, calls = max(1, min(count, batch_size)), model.diffusion.T
    x = backends.get("torch").from_numpy(np.zeros((size, *model.shape), np.float32), device=device_of(model))
    took = 0.0
    for _ in range(2 if count else 0):  # the first makes what is made once
        began = time.perf_counter()
        float(model.denoiser.x0(model.diffusion, x, calls).sum())
        took = time.perf_counter() - began
    seconds = took * calls * count / size / processes
    return f"{calls} network calls each, about {duration(seconds)}"


def in_bits(vlb: VLB) -> dict[str, tuple[float, float]]:
    """(mean, standard error) of the bound, its parts, rate and distortion, all in bits per dimension."""
    summary = vlb.summary()
    nats, per_dim = ("prior", "kl", "decoder"), 1 / (vlb.dims * math.log(2))
    scales = {name: per_dim if name in nats else 1.0 for name in _LABELS}
    return {name: (scale * summary[name][0], scale * summary[name][1]) for name, scale in scales.items()}


def _or_none(value: float) -> float | None:
    """`value`, or None if it is not finite, which JSON has no word for."""
    return value if math.isfinite(value) else None


def _curve(vlb: VLB) -> dict[str, list[float]]:
    """For t = 1..T: the bound's term in bits per dimension, its standard error, the RMSE of x_0 in levels and that of eps."""
    terms = np.column_stack([vlb.decoder, vlb.kl]) / (vlb.dims * math.log(2))
    spread = terms.std(axis=0, ddof=1) if len(terms) > 1 else np.full(terms.shape[1], np.nan)
    columns = {
        "bits_per_dim": terms.mean(axis=0),
        "error": spread / math.sqrt(len(terms)),
        "x0_rmse": np.sqrt(vlb.x0_mse.mean(axis=0)) * (vlb.levels - 1) / 2,
        "eps_rmse": np.sqrt(vlb.eps_mse.mean(axis=0)),
    }
    return {"t": list(range(1, terms.shape[1] + 1)), **{name: column.tolist() for name, column in columns.items()}}
