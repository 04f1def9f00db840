"""``tinyddpm evaluate``."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator

from tinyddpm._commands import takes_model
from tinyddpm._commands.runs import held_out, open_run, score
from tinyddpm.likelihood import VLB

__all__ = ["EXAMPLES", "arguments", "in_bits", "run"]

EXAMPLES = ("--model runs/digits --data digits", "--model runs/photos --data held_out/ --limit 100 --json")
_LABELS = {
    "bits_per_dim": "bits/dim",
    "prior": "  L_T",
    "kl": "  L_{t-1}, t = 2..T",
    "decoder": "  L_0",
    "rate": "rate",
    "distortion": "distortion",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    takes_model(parser)
    data = "the images; where the run was trained on them, those that it held out"
    parser.add_argument("--data", required=True, metavar="digits|FOLDER|FILE", help=data)
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> Iterator[str]:
    """The bound and its parts, in bits per dimension: mean and standard error over the images."""
    model = open_run(args.model, args.device)
    images = held_out(model, args.data, args.limit)
    vlb = score(model, images, seed=args.seed, batch_size=args.batch_size, progress=not args.quiet)
    about, parts = {"images": len(images), "levels": images.levels}, in_bits(vlb)
    if args.json:
        entries = {name: {"mean": m, "error": e if math.isfinite(e) else None} for name, (m, e) in parts.items()}
        yield json.dumps({**entries, **about}, indent=2)
        return
    for name, (mean, error) in parts.items():
        yield f"{_LABELS[name]}: {mean:.4f} +- {error:.4f}"
    for name, count in about.items():
        yield f"{name}: {count}"


def in_bits(vlb: VLB) -> dict[str, tuple[float, float]]:
    """The bound, its terms, rate and distortion: (mean, standard error), all in bits per dimension."""
    summary = vlb.summary()
    nats, per_dim = ("prior", "kl", "decoder"), 1 / (vlb.dims * math.log(2))
    scales = {name: per_dim if name in nats else 1.0 for name in _LABELS}
    return {name: (scale * summary[name][0], scale * summary[name][1]) for name, scale in scales.items()}
