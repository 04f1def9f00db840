"""How good a run's samples are, by distances between images.

`python benchmarks/demo_quality.py [--model demo] [--sampler S --steps N] [--json FILE] [--markdown FILE]`

The distance of an image to a set is that to its nearest neighbour there, Euclidean over pixels of 0..levels-1. Samples near the
held-out images are like them; samples no nearer to the training images than held-out ones are new, and not copies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _report
import numpy as np
from numpy.typing import NDArray

SAMPLES = 256
FIDELITY, NOVELTY = 1.1, 0.95
"""What the ratios to the held-out images' own distances should be for the digits: at most, and at least."""


def nearest(images: NDArray[Any], others: NDArray[Any], *, same: bool = False) -> NDArray[np.float64]:
    """Each image's distance to its nearest neighbour among the others; with `same`, other than itself."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (images, others))
    square = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1) - 2 * a @ b.T
    if same:
        np.fill_diagonal(square, math.inf)
    return np.sqrt(np.maximum(square.min(axis=1), 0))


def measure(run: Any, samples: int = SAMPLES, seed: int = 1, **options: Any) -> dict[str, float]:
    """The four mean distances and the two ratios, for samples that the run draws."""
    from tinyddpm import backends
    from tinyddpm.training import load, to_levels

    training, held_out = load(run.config.data).split(run.config.held_out)
    drawn = run.diffusion.sample(run.denoiser, (samples, *run.shape), seed=seed, backend="torch", progress=True, **options)
    images = to_levels(backends.get("torch").to_numpy(drawn), run.levels)
    means = {
        "samples to held-out": nearest(images, held_out.pixels),
        "held-out to each other": nearest(held_out.pixels, held_out.pixels, same=True),
        "samples to training": nearest(images, training.pixels),
        "held-out to training": nearest(held_out.pixels, training.pixels),
    }
    found = {name: float(distances.mean()) for name, distances in means.items()}
    return {
        **found,
        "fidelity": found["samples to held-out"] / found["held-out to each other"],
        "novelty": found["samples to training"] / found["held-out to training"],
    }


def main(argv: Sequence[str]) -> None:
    """Measure, print, and write what is asked for; a ratio of the digits outside its bound is an error."""
    parser = _report.Parser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--sampler", default="ddpm", help="(default ddpm)")
    parser.add_argument("--steps", type=int, help="(default all)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args(argv)
    from tinyddpm.training import load_run

    run = load_run(args.model)
    found, digits = measure(run, sampler=args.sampler, steps=args.steps), run.config.data == "digits"
    about = _report.environment("torch", "scikit-learn")
    bounds = {"fidelity": f"at most {FIDELITY}", "novelty": f"at least {NOVELTY}"} if digits else {}
    rows = [[name, f"{value:.3f}", bounds.get(name, "")] for name, value in found.items()]
    table = _report.table(["mean distance, or ratio", "measured", "wanted"], rows)
    print(table)
    _report.write_json(args.json, {**about, **found})
    heading = f"# The samples of {Path(args.model).name}\n\n{_report.about(__doc__)}\n\n"
    how = f"{SAMPLES} samples by {args.sampler}, {args.steps or 'all'} steps; {_report.described(about)}"
    _report.write_text(args.markdown, f"{heading}{table}\n\n{how}\n")
    if digits and (found["fidelity"] > FIDELITY or found["novelty"] < NOVELTY):
        raise ValueError(f"model: the samples of {args.model} miss a bound")


if __name__ == "__main__":
    raise SystemExit(_report.run(main))
