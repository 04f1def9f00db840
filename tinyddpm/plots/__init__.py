"""Figures of a process, a run and a bound. Each function returns a Matplotlib `Figure`, and `save` writes one to a file.

Figures are made without pyplot: nothing is shown and no global state changes. Curves differ in colour (Okabe and Ito's palette,
for colour-blind readers) and in dash pattern (for black-and-white print).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyddpm import noise
from tinyddpm import schedules as _schedules
from tinyddpm._arrays.check import as_instance, as_int, as_list, lookup, one_of
from tinyddpm._arrays.namespace import Array, namespace_of
from tinyddpm._io.files import write
from tinyddpm.diffusion import Diffusion
from tinyddpm.likelihood import VLB
from tinyddpm.plots._style import MARKERS, STYLES, as_images, curve_style, label_x, new_figure, one_panel, standard_error
from tinyddpm.samplers import Step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "FORMATS", "bound", "columns", "forward", "loss", "rate_distortion", "sampler_error", "save", "schedules", "strip",
    "trajectory",
]  # fmt: skip

FORMATS = (".png", ".pdf", ".svg")


def schedules(names: Sequence[str] = ("linear", "quadratic", "geometric", "cosine"), T: int = 1000) -> Figure:
    """Plot beta, alpha_bar and log SNR of schedules against t.

    Parameters
    ----------
    names : sequence of str
        The schedules, by their names in `tinyddpm.schedules.NAMES`.
    T : int, default 1000
        The number of steps.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.

    Raises
    ------
    LookupError
        If a name is unknown.
    """
    processes = {name: Diffusion(lookup("names", name, _schedules.NAMES)(T)) for name in as_list("names", names)}
    figure, axes = new_figure(1, 3, (10.5, 3.2))
    quantities = {"beta": r"$\beta_t$", "alpha_bar": r"$\bar\alpha_t$", "log_snr": r"$\log\,\mathrm{SNR}_t$"}
    for ax, (quantity, label) in zip(axes.flat, quantities.items(), strict=True):
        for k, (name, d) in enumerate(processes.items()):
            ax.plot(np.arange(1, T + 1), getattr(d, quantity)[1:], label=name, **curve_style(k))
        ax.set(title=label, xlabel="$t$", xlim=(1, max(T, 2)))
    axes[0, 0].set_yscale("log")
    axes[0, 2].legend(frameon=False, loc="lower left")
    return figure


def forward(d: Diffusion, x0: Array, t: Sequence[int] | None = None, *, seed: int = 0) -> Figure:
    """Show x_t of clean images: a row for each image, a column for each t.

    Parameters
    ----------
    d : Diffusion
        The process.
    x0 : NumPy array
        The images, in [-1, 1] and of shape (N, C, H, W) with C = 1 or 3.
    t : sequence of int, optional
        The steps, by default ``columns(d)``.
    seed : int, default 0
        The seed of the noise eps. Each image has the same eps at every t.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.
    """
    as_instance("d", d, Diffusion)
    x0 = as_images("x0", x0)
    namespace_of(x0=x0)
    t = columns(d) if t is None else tuple(as_list("t", t))
    eps = noise.normal(seed, range(len(x0)), 0, x0.shape[1:], stream=3, dtype=str(x0.dtype))
    return strip([d.q_sample(x0, u, eps) for u in t], [f"$t = {u}$" for u in t])


def columns(d: Diffusion, count: int = 9) -> tuple[int, ...]:
    """Return steps from 0 to T for a figure's columns, closer together near the data, where images change most.

    Parameters
    ----------
    d : Diffusion
        The process.
    count : int, default 9
        The number of steps, at least 2; at most T + 1 are returned.

    Returns
    -------
    tuple of int
        The steps in ascending order.
    """
    as_instance("d", d, Diffusion)
    return d.timesteps(min(d.T, as_int("count", count, 2, 1000) - 1), "quadratic")[::-1]


def trajectory(steps: Sequence[Step]) -> Figure:
    """Show the states of a few samples while they are drawn: a row for each sample, a column for each state.

    Parameters
    ----------
    steps : sequence of Step
        The states from `Diffusion.trajectory`, with NumPy arrays of shape (N, C, H, W).

    Returns
    -------
    matplotlib.figure.Figure
        The figure.
    """
    states = [as_instance("steps", step, Step) for step in as_list("steps", steps)]
    return strip([step.x for step in states], [f"$t = {step.t}$" for step in states])


def strip(columns: Sequence[Array], labels: Sequence[str]) -> Figure:
    """Show images in N rows, a column for each array.

    Parameters
    ----------
    columns : sequence of NumPy arrays
        The images of each column, in [-1, 1] and of shape (N, C, H, W) with C = 1 or 3.
    labels : sequence of str
        The title of each column.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.
    """
    columns, labels = as_list("columns", columns), as_list("labels", labels)
    if len(columns) != len(labels):
        raise ValueError(f"labels must have one label for each of {len(columns)} columns, got {len(labels)}")
    columns = [as_images("columns", x) for x in columns]
    rows = len(columns[0])
    figure, axes = new_figure(rows, len(columns), (0.82 * len(columns), 0.82 * rows + 0.25), hspace=0.1, wspace=0.1)
    for ax, x in zip(axes.T.flat, np.concatenate(columns), strict=True):
        pixels = np.clip((x.transpose(1, 2, 0) + 1) / 2, 0, 1)
        ax.imshow(pixels if len(x) == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set_axis_off()
    for ax, label in zip(axes[0], labels, strict=True):
        ax.set_title(label, fontsize=9, loc="center")
    return figure


def loss(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot the loss of a run against the step, with its running mean.

    Parameters
    ----------
    records : sequence of mappings
        The lines of the run's ``log.jsonl``, each with "step" and "loss". Skipped steps, whose loss is None, are left out.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.
    """
    lines = as_list("records", records)
    try:
        lines = [line for line in lines if line["loss"] is not None]
        step, value = (np.array([line[key] for line in lines], float) for key in ("step", "loss"))
    except (KeyError, TypeError, ValueError):
        raise ValueError("records must have a number as 'step' and as 'loss' in every line") from None
    window = max(1, len(value) // 50)
    total = np.cumsum(np.append(0.0, value))
    mean = (total[window:] - total[:-window]) / window
    figure, ax = one_panel((6, 3.4))
    ax.plot(step, value, color="#999999", linewidth=0.6, label="each step")
    ax.plot(step[window - 1 :], mean, label=f"mean of {window} steps", **curve_style(0))
    ax.set(xlabel="step", ylabel="loss", yscale="log", xlim=(0, step[-1]))
    ax.legend(frameon=False)
    return figure


def bound(vlb: VLB) -> Figure:
    """Plot the terms of the bound against t in bits/dim, as mean and standard error over images.

    Parameters
    ----------
    vlb : VLB
        The bound, from `tinyddpm.likelihood.vlb`.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.
    """
    as_instance("vlb", vlb, VLB)
    per_dim = 1 / (vlb.dims * math.log(2))  # from nats summed over dimensions
    terms = np.concatenate([vlb.decoder[:, None], vlb.kl], axis=1) * per_dim
    mean, error = terms.mean(0), standard_error(terms)
    t = np.arange(1, len(mean) + 1)
    figure, ax = one_panel((6, 3.4))
    ax.fill_between(t, np.maximum(mean - error, mean * 0.1), mean + error, alpha=0.25, color=STYLES[0][0], linewidth=0)
    ax.plot(t, mean, label=r"$L_{t-1}$, and $L_0$ at $t = 1$", **curve_style(0))
    prior = float(vlb.prior.mean()) * per_dim
    ax.axhline(prior, label=f"$L_T$ = {prior:.2g}", **curve_style(1))
    total = float(vlb.bits_per_dim.mean())
    ax.set(title=f"{total:.3f} bits/dim in all", xlabel="$t$", ylabel="bits/dim", xscale="log", yscale="log")
    ax.legend(frameon=False)
    return figure


def rate_distortion(vlb: VLB) -> Figure:
    """Plot the distortion, the RMSE of the predicted x_0 in levels, against the rate in bits/dim, as t falls from T.

    Parameters
    ----------
    vlb : VLB
        The bound, from `tinyddpm.likelihood.vlb`.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.
    """
    as_instance("vlb", vlb, VLB)
    rate, rmse = (np.asarray(a) for a in vlb.curve())
    figure, ax = one_panel((6, 3.4))
    ax.plot(rate, rmse, **curve_style(0))
    ax.set(xlabel="rate, bits/dim", ylabel="RMSE of $x_0$, levels", ylim=(0, None))
    return figure


def sampler_error(errors: Mapping[str, Mapping[int, float]]) -> Figure:
    """Plot the errors of samplers against the number of network calls, on logarithmic axes: the slopes are the orders.

    Parameters
    ----------
    errors : mapping of str to mappings
        ``errors[sampler][calls]`` is the RMS error of x_0.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.
    """
    if not isinstance(errors, Mapping) or not all(isinstance(of, Mapping) for of in errors.values()):
        raise TypeError(f"errors must be a mapping of mappings, errors[sampler][calls], got {type(errors).__name__}")
    if not errors or not all(errors.values()):
        raise ValueError("errors must have at least one sampler, and one number of calls for each, got an empty mapping")
    figure, ax = one_panel((6, 3.8))
    for k, (name, of) in enumerate(errors.items()):
        ax.plot(*zip(*sorted(of.items()), strict=True), label=name, marker=MARKERS[k % 5], markersize=5, **curve_style(k))
    ax.set(xlabel="network calls", ylabel="RMS error of $x_0$", xscale="log", yscale="log")
    label_x(ax, sorted({calls for of in errors.values() for calls in of}))
    ax.legend(frameon=False)
    return figure


def save(figure: Figure, file: str | os.PathLike[str]) -> None:
    """Write a figure to a file, completely or not at all.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        The figure.
    file : path
        The file, whose suffix .png, .pdf or .svg is the format. Its folder is created if it is missing.

    Raises
    ------
    LookupError
        If the suffix is another one.
    """
    if not hasattr(figure, "savefig"):
        raise TypeError(f"figure must be a Matplotlib figure, got {type(figure).__name__}")
    if not isinstance(file, str | os.PathLike):
        raise TypeError(f"file must be a path, got {type(file).__name__}")
    kind = one_of("file", Path(file).suffix.lower(), FORMATS)
    content = BytesIO()
    figure.savefig(content, format=kind[1:], dpi=160, bbox_inches="tight")
    write(file, content.getvalue())
