"""How far `edit.invert` and DDIM back from there miss the image, on every named schedule.

`python benchmarks/inversion.py [--json FILE] [--markdown FILE]`

The data are Gaussian, in 1 dimension of variance 0.05 and in 64 of variances from 0.01 to 0.3, so that the network is exact and
what is left is the inversion's own. Each entry is the largest error of 100 images that are inverted and sampled again with the
same steps, their default spacing and the default of 10 network calls a step. "usual" is one call a step, which reads eps at the
wrong end of each step. "ends" is `edit.interpolate(encode="invert")` at the weights 0 and 1, in 50 steps.

- In float32 a network that predicts eps has its rounding errors multiplied by 1 / sqrt(alpha_bar_T) where x_0 is read at T:
  20 000 with cosine. One that predicts v has not.
- jsd ends at alpha_bar = 0, where x_0 does not follow from eps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _report
import numpy as np
from numpy.typing import NDArray

from tinyddpm import Denoiser, Diffusion, edit, schedules
from tinyddpm.analytic import GaussianData

Array = NDArray[Any]

VARS = {1: [0.05], 64: np.geomspace(0.01, 0.3, 64)}
LENGTHS = (20, 50)


@dataclass(frozen=True)
class Row:
    """The errors on one schedule."""

    schedule: str
    dimensions: int
    errors: dict[str, float | None]
    """By column; None where x_0 does not follow from the prediction."""


def network(d: Diffusion, data: GaussianData, predicts: str) -> Denoiser:
    """E[x_0 | x_t] in closed form, also at alpha_bar = 0, as a prediction of eps or v."""

    def net(x_t: Array, t: Array) -> Array:
        a, left = (c[t][:, None] for c in (d.sqrt_alpha_bar, d.one_minus_alpha_bar))
        x0 = data.mean + a * data.var / (a**2 * data.var + left) * (x_t - a * data.mean)
        return d.convert(x0.astype(x_t.dtype), x_t, t, "x0", predicts)  # type: ignore[arg-type]

    return Denoiser(net, predicts, clip_x0=False)  # type: ignore[arg-type]


def round_trip(d: Diffusion, denoiser: Denoiser, x0: Array, steps: int, **options: Any) -> float:
    """The largest error."""
    x_T = edit.invert(d, denoiser, x0, steps=steps, **options)
    return float(np.abs(d.sample(denoiser, x0.shape, sampler="ddim", steps=steps, x_T=x_T) - x0).max())


def measured(names: Sequence[str]) -> Iterator[Row]:
    """Every schedule in 1 and 64 dimensions."""
    for name in names:
        d = Diffusion(schedules.NAMES[name]())
        for dims, variances in VARS.items():
            data = GaussianData(np.linspace(-0.5, 0.5, dims) if dims > 1 else [0.2], variances)
            x0, v = data.sample(100, 1), network(d, data, "v")
            eps = network(d, data, "eps") if d.alpha_bar[-1] else None
            exact = v if eps is None else eps
            a, b = x0[:50], x0[50:]
            ends = edit.interpolate(d, exact, a, b, [0.0, 1.0], encode="invert", steps=50) - np.stack([a, b])
            errors: dict[str, float | None] = {"usual, 50": round_trip(d, exact, x0, 50, iterations=1)}
            errors |= {f"{steps} steps": round_trip(d, exact, x0, steps) for steps in LENGTHS}
            errors["ends"] = float(np.abs(ends).max())
            single = x0.astype(np.float32)
            errors["float32 eps, 50"] = None if eps is None else round_trip(d, eps, single, 50)
            errors["float32 v, 50"] = round_trip(d, v, single, 50)
            yield Row(name, dims, errors)


def main(argv: Sequence[str]) -> None:
    """Measure, print, write."""
    parser = _report.Parser(description=_report.about(__doc__).splitlines()[0])
    parser.add_argument("--schedules", nargs="+", default=list(schedules.NAMES), metavar="NAME", help="default: all")
    for name in ("json", "markdown"):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    rows = list(measured(options.schedules))
    cells = [[r.schedule, str(r.dimensions), *("-" if e is None else f"{e:.1e}" for e in r.errors.values())] for r in rows]
    about = _report.environment()
    text = f"{_report.table(['schedule', 'dimensions', *rows[0].errors], cells)}\n\n{_report.described(about)}.\n"
    print(text)
    _report.write_text(options.markdown, f"# {_report.about(__doc__)}\n\n{text}")
    _report.write_json(options.json, {**about, "rows": [vars(row) for row in rows]})


if __name__ == "__main__":
    raise SystemExit(_report.run(main))
