"""Pictures of a process, a run and a bound: each function returns a Matplotlib `Figure`, and `save` writes one.

Figures are made without pyplot, so nothing is shown and no global state changes. Curves differ in colour (Okabe and
Ito's palette, which colour-blind readers can tell apart) and in dash, so that they survive a black-and-white printer.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinyddpm import noise
from tinyddpm import schedules as _schedules
from tinyddpm._arrays.check import as_instance, as_int, as_list, lookup, one_of
from tinyddpm._arrays.namespace import Array, namespace_of
from tinyddpm.diffusion import Diffusion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tinyddpm.likelihood import VLB
    from tinyddpm.samplers import Step

__all__ = [
    "FORMATS", "bound", "columns", "forward", "loss", "rate_distortion", "sampler_error", "save", "schedules", "strip",
    "trajectory",
]  # fmt: skip

FORMATS = (".png", ".pdf", ".svg")
_STYLES = (
    ("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":"), ("#000000", (0, (5, 1, 1, 1, 1, 1))),
)  # fmt: skip
_MARKERS = "os^Dv"


def schedules(names: Sequence[str] = ("linear", "quadratic", "geometric", "cosine"), T: int = 1000) -> Figure:
    """beta, alpha_bar and log SNR of the named schedules against t."""
    processes = {name: Diffusion(lookup("names", name, _schedules.NAMES)(T)) for name in as_list("names", names)}
    figure, axes = _figure(1, 3, (10.5, 3.2))
    quantities = {"beta": r"$\beta_t$", "alpha_bar": r"$\bar\alpha_t$", "log_snr": r"$\log\,\mathrm{SNR}_t$"}
    for ax, (quantity, label) in zip(axes.flat, quantities.items(), strict=True):
        for k, (name, d) in enumerate(processes.items()):
            ax.plot(np.arange(1, T + 1), getattr(d, quantity)[1:], label=name, **_style(k))
        ax.set(title=label, xlabel="$t$", xlim=(1, max(T, 2)))
    axes[0, 0].set_yscale("log")
    axes[0, 2].legend(frameon=False, loc="lower left")
    return figure


def forward(d: Diffusion, x0: Array, t: Sequence[int] | None = None, *, seed: int = 0) -> Figure:
    """x_t of the images x0, a NumPy array (N, C, H, W) in [-1, 1]: a row for each image, a column for each t.

    By default nine steps from 0 to T, denser near the data. Each image keeps its noise eps along the row.
    """
    as_instance("d", d, Diffusion)
    x0 = _images("x0", x0)
    namespace_of(x0=x0)
    t = columns(d) if t is None else tuple(as_list("t", t))
    eps = noise.normal(seed, range(len(x0)), 0, x0.shape[1:], stream=3, dtype=str(x0.dtype))
    return strip([d.q_sample(x0, u, eps) for u in t], [f"$t = {u}$" for u in t])


def columns(d: Diffusion, count: int = 9) -> tuple[int, ...]:
    """`count` steps from 0 to T, or as many as there are: denser near the data, where pictures change most."""
    as_instance("d", d, Diffusion)
    return d.timesteps(min(d.T, as_int("count", count, 2, 1000) - 1), "quadratic")[::-1]


def trajectory(steps: Sequence[Step]) -> Figure:
    """The states of a few samples on their way, NumPy arrays (N, C, H, W): a row for each sample, a column a step."""
    from tinyddpm.samplers import Step

    states = [as_instance("steps", step, Step) for step in as_list("steps", steps)]
    return strip([step.x for step in states], [f"$t = {step.t}$" for step in states])


def strip(columns: Sequence[Array], labels: Sequence[str]) -> Figure:
    """Images in rows: column k shows ``columns[k]``, (N, C, H, W) in [-1, 1] with C = 1 or 3, under ``labels[k]``."""
    columns, labels = as_list("columns", columns), as_list("labels", labels)
    if len(columns) != len(labels):
        raise ValueError(f"labels: {len(columns)} columns need as many labels, not {len(labels)}")
    columns = [_images("columns", x) for x in columns]
    rows = len(columns[0])
    figure, axes = _figure(rows, len(columns), (0.82 * len(columns), 0.82 * rows + 0.25), hspace=0.1, wspace=0.1)
    for ax, x in zip(axes.T.flat, np.concatenate(columns), strict=True):
        pixels = np.clip((x.transpose(1, 2, 0) + 1) / 2, 0, 1)
        ax.imshow(pixels if len(x) == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set_axis_off()
    for ax, label in zip(axes[0], labels, strict=True):
        ax.set_title(label, fontsize=9, loc="center")
    return figure


def loss(records: Sequence[Mapping[str, Any]]) -> Figure:
    """The loss of a run against the step, from the lines of its ``log.jsonl``: each step's, and their running mean.

    Steps that were skipped, whose loss is None, are left out.
    """
    lines = as_list("records", records)
    try:
        lines = [line for line in lines if line["loss"] is not None]
        step, value = (np.array([line[key] for line in lines], float) for key in ("step", "loss"))
    except (KeyError, TypeError, ValueError):
        raise ValueError("records: every line needs a number of a step and of a loss") from None
    window = max(1, len(value) // 50)
    total = np.cumsum(np.append(0.0, value))
    mean = (total[window:] - total[:-window]) / window
    figure, axes = _figure(1, 1, (6, 3.4))
    ax = axes[0, 0]
    ax.plot(step, value, color="#999999", linewidth=0.6, label="each step")
    ax.plot(step[window - 1 :], mean, label=f"mean of {window} steps", **_style(0))
    ax.set(xlabel="step", ylabel="loss", yscale="log", xlim=(0, step[-1]))
    ax.legend(frameon=False)
    return figure


def bound(vlb: VLB) -> Figure:
    """Where the bits go: the bound's term for each t, in bits per dimension: mean and standard error over images."""
    _check_bound(vlb)
    per_dim = 1 / (vlb.dims * math.log(2))  # of nats summed over dimensions
    terms = np.concatenate([vlb.decoder[:, None], vlb.kl], axis=1) * per_dim
    mean, error = terms.mean(0), _error(terms)
    t = np.arange(1, len(mean) + 1)
    figure, axes = _figure(1, 1, (6, 3.4))
    ax = axes[0, 0]
    ax.fill_between(t, np.maximum(mean - error, mean * 0.1), mean + error, alpha=0.25, color=_STYLES[0][0], linewidth=0)
    ax.plot(t, mean, label=r"$L_{t-1}$, and $L_0$ at $t = 1$", **_style(0))
    prior = float(vlb.prior.mean()) * per_dim
    ax.axhline(prior, label=f"$L_T$ = {prior:.2g}", **_style(1))
    total = float(vlb.bits_per_dim.mean())
    ax.set(title=f"{total:.3f} bits/dim in all", xlabel="$t$", ylabel="bits/dim", xscale="log", yscale="log")
    ax.legend(frameon=False)
    return figure


def rate_distortion(vlb: VLB) -> Figure:
    """Distortion (RMSE of the predicted x_0, in levels) against the bits sent, as t falls from T."""
    _check_bound(vlb)
    rate, rmse = (np.asarray(a) for a in vlb.curve())
    figure, axes = _figure(1, 1, (6, 3.4))
    ax = axes[0, 0]
    ax.plot(rate, rmse, **_style(0))
    ax.set(xlabel="rate, bits/dim", ylabel="RMSE of $x_0$, levels", ylim=(0, None))
    return figure


def sampler_error(errors: Mapping[str, Mapping[int, float]]) -> Figure:
    """Samplers' errors against network calls, ``errors[sampler][calls]``: straight lines whose slopes are the orders."""
    if not isinstance(errors, Mapping) or not all(isinstance(of, Mapping) for of in errors.values()):
        raise TypeError("errors must be a mapping of mappings, errors[sampler][calls]")
    if not errors or not all(errors.values()):
        raise ValueError("errors must hold at least one sampler with one number of calls")
    figure, axes = _figure(1, 1, (6, 3.8))
    ax = axes[0, 0]
    for k, (name, of) in enumerate(errors.items()):
        ax.plot(*zip(*sorted(of.items()), strict=True), label=name, marker=_MARKERS[k % 5], markersize=5, **_style(k))
    ax.set(xlabel="network calls", ylabel="RMS error of $x_0$", xscale="log", yscale="log")
    calls = sorted({calls for of in errors.values() for calls in of})
    few = [n for n, later in zip(calls, [*calls[1:], math.inf], strict=True) if later > 1.2 * n]
    ax.set_xticks(few, [str(n) for n in few])
    ax.minorticks_off()
    ax.legend(frameon=False)
    return figure


def save(figure: Figure, file: str | os.PathLike[str]) -> None:
    """Write `figure` as PNG, PDF or SVG by the file's suffix, whole or not at all."""
    from tinyddpm._io.files import replacing

    if not hasattr(figure, "savefig"):
        raise TypeError(f"figure must be a Matplotlib figure, got {type(figure).__name__}")
    if not isinstance(file, str | os.PathLike):
        raise TypeError(f"file must be a path, got {type(file).__name__}")
    kind = one_of("file", Path(file).suffix.lower(), FORMATS)
    with replacing(file) as stream:
        figure.savefig(stream, format=kind[1:], dpi=160, bbox_inches="tight")


def _figure(rows: int, columns: int, size: tuple[float, float], **grid: float) -> tuple[Figure, NDArray[Any]]:
    """A figure and its axes (rows, columns); `grid` spaces them for images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout=None if grid else "constrained")
    axes: NDArray[Any] = figure.subplots(rows, columns, squeeze=False, gridspec_kw=grid)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
        ax.set_axisbelow(True)
    return figure, axes


def _style(k: int) -> dict[str, Any]:
    colour, dash = _STYLES[k % len(_STYLES)]
    return {"color": colour, "linestyle": dash, "linewidth": 1.6}


def _images(name: str, x: ArrayLike) -> NDArray[Any]:
    x = np.asarray(x)
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not x.size:
        raise ValueError(f"{name} must be images of shape (N, C, H, W) with C = 1 or 3, got {x.shape}")
    return x


def _check_bound(vlb: VLB) -> None:
    from tinyddpm.likelihood import VLB

    as_instance("vlb", vlb, VLB)


def _error(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The standard error of the mean over axis 0."""
    return values.std(0, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else np.zeros(values.shape[1:])
