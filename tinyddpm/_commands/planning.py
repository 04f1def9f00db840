"""``tinyddpm plot plan``: bits per dimension against network calls, by plan and by variance."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, get_args

from tinyddpm import Denoiser, Diffusion, plans
from tinyddpm._commands.evaluate import in_bits
from tinyddpm._commands.runs import score
from tinyddpm._io.progress import progress_bar
from tinyddpm._network.variance import Variance
from tinyddpm.calibration import Calibration
from tinyddpm.plots._style import MARKERS, curve_style, label_x, one_panel
from tinyddpm.training import Images, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIXED: tuple[Variance, ...] = ("beta", "beta_tilde")
CALLS = (5, 10, 20, 50, 100)
Bounds = dict[str, dict[int, tuple[float, float]]]
"""Bits per dimension and their standard error for each way and number of calls."""


def ways(model: Run, found: Calibration, calls: int) -> Iterator[tuple[str, Diffusion, Denoiser]]:
    """Every plan of so many calls with every variance, each under its name."""
    learned = model.denoiser.learned
    usual = [model.denoiser] if learned else [dataclasses.replace(model.denoiser, variance=name) for name in _FIXED]
    for spacing in get_args(plans.Spacing) if calls < model.diffusion.T else ("even",):  # of T calls there is one plan
        plan = model.diffusion.timesteps(calls, spacing)
        chain = model.diffusion.respaced(plan)
        for denoiser in usual:
            yield f"{spacing}, {denoiser.variance}", chain, denoiser.respaced(plan)
        yield f"{spacing}, best variances", *found.chain(model.diffusion, model.denoiser, timesteps=plan)
    if calls < model.diffusion.T:
        yield "best plan and variances", *found.chain(model.diffusion, model.denoiser, calls)


def bounds(model: Run, found: Calibration, images: Images, calls: Sequence[int], *, seed: int, progress: bool) -> Bounds:
    """The bound of each way on the images."""
    table: Bounds = {}
    lengths = sorted({n for n in (*calls, model.diffusion.T) if n <= model.diffusion.T})
    jobs = [(n, *way) for n in lengths for way in ways(model, found, n)]
    for n, name, chain, denoiser in progress_bar(jobs, len(jobs), enabled=progress, label="plan"):
        table.setdefault(name, {})[n] = bound_of(model, chain, denoiser, images, seed=seed)
    return table


def bound_of(model: Run, d: Diffusion, denoiser: Denoiser, images: Images, *, seed: int = 0) -> tuple[float, float]:
    """Bits per dimension of the images by this chain of the model, and their standard error."""
    return in_bits(score(dataclasses.replace(model, diffusion=d, denoiser=denoiser), images, seed=seed))["bits_per_dim"]


def figure(table: Mapping[str, Mapping[int, tuple[float, float]]]) -> Figure:
    """A curve for each way; a variance has its colour and dash, a plan its marker."""
    figure, ax = one_panel((7, 4.2))
    variances = list(dict.fromkeys(name.partition(", ")[2] for name in table))
    spacings = list(dict.fromkeys(name.partition(", ")[0] for name in table))
    for name, bounds in table.items():
        spacing, _, variance = name.partition(", ")
        calls, bits = zip(*((n, bits) for n, (bits, _) in sorted(bounds.items())), strict=True)
        style = curve_style(variances.index(variance)) | ({"linewidth": 3, "color": "black"} if not variance else {})
        ax.plot(calls, bits, label=name, marker=MARKERS[spacings.index(spacing) % 5], markersize=4.5, **style)
    ax.set(xlabel="network calls", ylabel="bits/dim", xscale="log")
    label_x(ax, sorted({n for bounds in table.values() for n in bounds}))
    lowest = min(bits for bounds in table.values() for bits, _ in bounds.values())
    ax.set_ylim(0.95 * lowest, 2.4 * lowest)
    ax.legend(frameon=False, fontsize=7, ncols=2)
    return figure
