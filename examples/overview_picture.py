"""The README's picture: held-out images become noise, and a trained model turns noise into new images.

Train a model, then run ``python examples/overview_picture.py runs/emoji overview.png 6 32 41 27``; the numbers are those of the
samples to draw, by default the first four.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyddpm import backends, noise, plots
from tinyddpm.training import load, load_run


def main(model: str, path: str, index: Sequence[int] = (0, 1, 2, 3), columns: int = 7) -> None:
    """Write the picture to `path`: an image a row, at `columns` steps forwards and backwards."""
    run, rows = load_run(model), len(index)
    d, to_numpy = run.diffusion, backends.get("torch").to_numpy
    options: dict[str, Any] = {"sampler": "dpm++2m", "steps": min(25, d.T), "index": index, "backend": "torch"}
    states = list(d.trajectory(run.denoiser, (rows, *run.shape), **options))
    shown = [states[k] for k in np.linspace(0, len(states) - 1, columns).round().astype(int)]
    t = [state.t for state in reversed(shown)]
    x0 = load(run.config.data).split(run.config.held_out)[1].scaled(slice(rows))
    eps = noise.normal(0, range(rows), 0, x0.shape[1:], stream=3)
    there = [d.q_sample(x0, u, eps) for u in t]
    back = [to_numpy(state.x) for state in shown]
    gap = np.ones_like(x0)
    labels = [*(f"$t = {u}$" for u in t), "", *(f"$t = {u}$" for u in reversed(t))]
    plots.save(plots.strip([*there, gap, *back], labels), path)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], [int(k) for k in sys.argv[3:]] or (0, 1, 2, 3))
