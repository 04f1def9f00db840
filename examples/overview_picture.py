"""The README's picture: held-out digits become noise, and a trained model turns noise into new digits.

Train the model with ``make demo``, then run ``python examples/overview_picture.py demo overview.png``.
"""

from __future__ import annotations

import sys

import numpy as np

from tinyddpm import backends, noise, plots
from tinyddpm.training import load, load_run


def main(model: str, path: str, rows: int = 4, columns: int = 7) -> None:
    """Write the picture to `path`: `rows` images, each at `columns` steps forwards and backwards."""
    run = load_run(model)
    d, to_numpy = run.diffusion, backends.get("torch").to_numpy
    t = plots.columns(d, columns)
    x0 = load(run.config.data).split(run.config.held_out)[1].scaled(slice(rows))
    eps = noise.normal(0, range(rows), 0, x0.shape[1:], stream=3)
    there = [d.q_sample(x0, u, eps) for u in t]
    back = [to_numpy(step.x) for step in d.trajectory(run.denoiser, x0.shape, backend="torch", seed=2) if step.t in t]
    gap = np.ones_like(x0)
    labels = [*(f"$t = {u}$" for u in t), "", *(f"$t = {u}$" for u in reversed(t))]
    plots.save(plots.strip([*there, gap, *back], labels), path)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
