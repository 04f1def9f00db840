"""``tinyddpm evaluate``: the bound of a run on images, and distances between its samples and the images."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from tinyddpm import backends
from tinyddpm._arrays.check import as_positive_int
from tinyddpm._commands import plus_minus, quality, takes_model
from tinyddpm._commands.calibrate import best_chain
from tinyddpm._commands.runs import device_of, held_out, open_run, score
from tinyddpm._io.progress import duration, say
from tinyddpm.likelihood import VLB
from tinyddpm.training import Images, Run

EXAMPLES = (
    "--model runs/digits --data digits",
    "--model runs/digits --data digits --steps 20",
    "--model runs/photos --data held_out/ --limit 100 --json",
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
    parser.add_argument("--curve", action="store_true", help="print the bound's term and the errors of x0 and eps at each t")
    quality.arguments(parser)


def run(args: argparse.Namespace) -> Iterator[str]:
    """Yield the bound and its parts in bits per dimension, and the distances, each with its standard error."""
    model = open_run(args.model, args.device)
    found = held_out(model, args.data, tell=not args.quiet)
    images = found.rows(slice(as_positive_int("limit", args.limit)))
    judged = quality.Quality.prepared(args, model)  # checks the options before the long work
    model = model if args.steps is None else best_chain(args.model, model, args.steps)
    options = {"seed": args.seed, "batch_size": args.batch_size, "progress": not args.quiet}
    if not args.quiet and images.shape == model.shape:  # `score` refuses others
        took = _estimate(model, images, args.batch_size)
        say(f"evaluate: {len(images)} of {len(found)} images, {took} (--limit and --steps take others)")
    vlb = score(model, images, terms=args.curve, **options)
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


def _estimate(model: Run, images: Images, batch_size: int) -> str:
    """The network calls that the bound takes, and their time by that of one."""
    size, calls = min(len(images), as_positive_int("batch_size", batch_size)), model.diffusion.T
    x = backends.get("torch").from_numpy(np.zeros((size, *model.shape), np.float32), device=device_of(model))
    took = 0.0
    for _ in range(2):  # the first makes what is made once
        began = time.perf_counter()
        float(model.denoiser.x0(model.diffusion, x, calls).sum())
        took = time.perf_counter() - began
    seconds = took * calls * len(images) / size
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
