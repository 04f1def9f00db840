"""What the full chain buys over one jump from x_T to x_0.

`python benchmarks/one_jump.py [--model DIR] [--json FILE] [--markdown FILE] [--plot FILE.png]`

A plan of one move returns the network's E[x_0 | x_T]: where x_T says next to nothing of x_0, that is the mean of the data,
whatever x_T is. Shorter chains end between. The data here are a mixture of Gaussians with its exact network, so that what is
missing is missing for want of moves and not of training. The distance to fresh data is the energy distance,
sqrt(2 E|X - Y| - E|X - X'| - E|Y - Y'|), mean and standard error over independent runs; that of the data to
themselves is what sampling alone makes of it. With `--model`, the grids are of a trained run's images, and the distance is
between random projections of them (sliced Wasserstein-1) and those of the full chain's, so that its floor is two full chains'.
There one jump is not even the mean: x_0 = (x_T - sigma_T eps) / sqrt(alpha_bar_T) multiplies what eps has of error, by 157
with the linear schedule, and the clipping leaves black and white.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _report
import numpy as np
from numpy.typing import NDArray

from tinyddpm import Denoiser, Diffusion, plots
from tinyddpm.analytic import MixtureData

Array = NDArray[np.float64]

ANGLES = np.arange(6) * math.pi / 3
DATA = MixtureData(np.ones(6) / 6, 0.7 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1), np.full(6, 0.006))
"""Six spots on a circle, nothing at its centre, which is their mean."""
SAMPLERS = ("ddpm", "ddim", "dpm++2m")
LENGTHS = (1, 2, 5, 10, 20, 50, 200, 1000)


@dataclass(frozen=True)
class Row:
    """How far samples of a chain of `moves` are from the data."""

    sampler: str
    moves: int
    distance: float
    error: float
    std: float
    """Of the samples, over all numbers."""


def energy_distance(x: Array, y: Array) -> float:
    """Between two sets of points (n, dimensions); equally large sets of one law are about sqrt(2 E|X - X'| / n) apart."""

    def apart(a: Array, b: Array) -> float:
        square = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1) - 2 * a @ b.T
        return float(np.mean(np.sqrt(np.maximum(square, 0))))

    return math.sqrt(max(2 * apart(x, y) - apart(x, x) - apart(y, y), 0.0))


def sliced_distance(x: Array, y: Array, directions: int = 200) -> float:
    """Wasserstein-1 between equally large sets (n, ...), averaged over random directions (the same in every call)."""
    x, y = (a.reshape(len(a), -1) for a in (x, y))
    axes = np.random.default_rng(0).standard_normal((x.shape[1], directions))
    axes /= np.linalg.norm(axes, axis=0)
    return float(np.mean(np.abs(np.sort(x @ axes, axis=0) - np.sort(y @ axes, axis=0))))


@dataclass(frozen=True)
class Study:
    """A process, its network, what to compare with, and how."""

    d: Diffusion
    denoiser: Denoiser
    shape: tuple[int, ...]
    truth: Callable[[int], Array]
    """Fresh samples of the target for a run's number."""
    distance: Callable[[Array, Array], float]
    n: int
    runs: int
    backend: str = "numpy"
    what: str = "Six spots with their exact network"

    def sample(self, sampler: str, moves: int, run: int) -> Array:
        """Run `run`'s samples, on the host."""
        from tinyddpm import backends

        x = self.d.sample(self.denoiser, (self.n, *self.shape), sampler=sampler, steps=moves, backend=self.backend,
                          index=range(run * self.n, (run + 1) * self.n))  # fmt: skip
        return backends.get(self.backend).to_numpy(x).astype(np.float64)

    def row(self, sampler: str, moves: int, samples: Callable[[int], Array]) -> Row:
        """The distance's mean and standard error over the runs."""
        sets = [samples(run) for run in range(self.runs)]
        distances = np.array([self.distance(x, self.truth(run)) for run, x in enumerate(sets)])
        error = float(distances.std(ddof=1) / math.sqrt(self.runs)) if self.runs > 1 else math.nan
        return Row(sampler, moves, float(distances.mean()), error, float(np.std(np.stack(sets))))

    def rows(self, lengths: Sequence[int]) -> list[Row]:
        """Every sampler and length; the target against itself is first, with no moves."""
        found = [self.row("(target)", 0, lambda run: self.truth(self.runs + run))]
        for sampler in SAMPLERS:
            for moves in lengths:
                found.append(self.row(sampler, moves, lambda run, s=sampler, m=moves: self.sample(s, m, run)))  # noqa: PERF401
        return found


def mixture(n: int, runs: int) -> Study:
    """The six spots."""
    d = Diffusion()
    return Study(d, Denoiser(DATA.net(d), variance="beta_tilde", clip_x0=False), (2,),
                 lambda run: DATA.sample(n, 1000 + run), energy_distance, n, runs)  # fmt: skip


def trained(folder: str, n: int, runs: int) -> Study:
    """A trained run's images, whose target is its own full chain."""
    from tinyddpm.training import load_run

    model = load_run(folder)
    study = Study(model.diffusion, model.denoiser, model.shape, lambda run: np.zeros(0), sliced_distance, n, runs, "torch")
    chains: dict[int, Array] = {}

    def full(run: int) -> Array:
        if run not in chains:
            chains[run] = study.sample("ddpm", study.d.T, 10_000 + run)
        return chains[run]

    return Study(study.d, study.denoiser, study.shape, full, sliced_distance, n, runs, "torch",
                 f"A U-Net trained on {model.config.data} for {model.step} steps")  # fmt: skip


def scatter(study: Study, rows: Sequence[Row], lengths: Sequence[int]) -> Any:
    """The data, the jump and longer chains as points, and the distance against the number of moves."""
    from matplotlib.figure import Figure

    shown = [m for m in (1, 5, 20, 1000) if m in lengths]
    drawn = Figure(figsize=(2.1 * (len(shown) + 1) + 3.8, 2.6), layout="constrained")
    axes = drawn.subplots(1, len(shown) + 2, gridspec_kw={"width_ratios": [1] * (len(shown) + 1) + [1.6]})
    clouds = {"data": study.truth(0)} | {_moves(m): study.sample("ddpm", m, 0) for m in shown}
    for ax, (name, x) in zip(axes, clouds.items(), strict=False):
        ax.scatter(*x[:1000].T, s=1.5, alpha=0.5, color="#000000" if name == "data" else _report.COLOURS[0], linewidths=0)
        ax.set_title(name, fontsize=10)
        ax.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), xticks=[], yticks=[], aspect="equal")
    curves(axes[-1], rows, "energy distance to the data")
    return drawn


def grids(study: Study, rows: Sequence[Row], lengths: Sequence[int]) -> Any:
    """Six images of each length from the same starts, a column for each, and the distance."""
    from matplotlib.figure import Figure

    shown = [*lengths, *([] if study.d.T in lengths else [study.d.T])]
    drawn = Figure(figsize=(0.85 * len(shown) + 4.4, 5), layout="constrained")
    left, right = drawn.subfigures(1, 2, width_ratios=[0.85 * len(shown), 4.4])
    axes = left.subplots(6, len(shown), squeeze=False)
    for column, moves in zip(axes.T, shown, strict=True):
        column[0].set_title(str(moves), fontsize=9)
        images = study.sample("ddpm", moves, 0)[:6]
        for ax in column:
            ax.set_axis_off()
        for ax, image in zip(column, images, strict=False):
            pixels = np.clip((image.transpose(1, 2, 0) + 1) / 2, 0, 1)
            ax.imshow(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
    left.suptitle("moves (ddpm, the same starts)", fontsize=9)
    curves(right.subplots(), rows, "sliced distance to the full chain")
    return drawn


def curves(ax: Any, rows: Sequence[Row], label: str) -> None:
    """Distance against moves with error bars, and the target's own distance."""
    target = rows[0]
    ax.axhspan(target.distance - target.error, target.distance + target.error, color="#999999", alpha=0.4, linewidth=0)
    ax.axhline(target.distance, color="#555555", linestyle=":", linewidth=1, label="target to itself")
    for sampler, colour, style in zip(SAMPLERS, _report.COLOURS, ("-o", "--s", "-.^"), strict=False):
        of = [row for row in rows if row.sampler == sampler]
        x, y, e = ([getattr(row, name) for row in of] for name in ("moves", "distance", "error"))
        ax.errorbar(x, y, e, fmt=style, color=colour, markersize=3.5, linewidth=1.2, capsize=2, label=sampler)
    ax.set(xscale="log", yscale="log", xlabel="moves")
    ax.set_title(label, fontsize=10)
    ticks = [v for v in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if ax.get_ylim()[0] <= v <= ax.get_ylim()[1]]
    ax.set_yticks(ticks, [f"{v:g}" for v in ticks])
    ax.minorticks_off()
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)


def _moves(count: int) -> str:
    return "one jump" if count == 1 else f"{count} moves of ddpm"


def main(argv: Sequence[str]) -> None:
    """Measure, print, write."""
    parser = _report.Parser(description=_report.about(__doc__).splitlines()[0])
    parser.add_argument("--model", metavar="DIR", help="a trained run, instead of the mixture")
    parser.add_argument("-n", type=int, metavar="N", help="samples a run (default: 1000; with --model 64)")
    parser.add_argument("--runs", type=int, default=10, metavar="N", help="independent runs (default: 10)")
    parser.add_argument("--moves", type=int, nargs="+", metavar="N", help="lengths (default: 1 2 5 10 20 50 200 1000)")
    for name in ("json", "markdown", "plot"):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    if options.n is None:
        options.n = 64 if options.model else 1000
    if options.n < 2 or options.runs < 1:
        raise ValueError("-n and --runs: at least 2 samples and 1 run are needed")
    study = trained(options.model, options.n, options.runs) if options.model else mixture(options.n, options.runs)
    lengths = options.moves or [m for m in LENGTHS if m <= study.d.T]
    rows = study.rows(lengths)
    cells = [[r.sampler, r.moves, f"{r.distance:.4f} +- {r.error:.4f}", r.std] for r in rows]
    text = _report.table(["sampler", "moves", "distance", "std of samples"], cells)
    about = _report.environment(*(["torch"] if options.model else []))
    text += f"\n\n{study.what}; {options.runs} runs of {options.n} samples. {_report.described(about)}.\n"
    print(text)
    _report.write_text(options.markdown, f"# {_report.about(__doc__)}\n\n{text}")
    _report.write_json(
        options.json, {**about, "what": study.what, "samples": options.n, "runs": options.runs, "rows": [vars(r) for r in rows]}
    )
    if options.plot:
        plots.save((grids if options.model else scatter)(study, rows, lengths), options.plot)


if __name__ == "__main__":
    raise SystemExit(_report.run(main))
