"""What the figures of `tinyddpm.plots` share: axes without pyplot, styles of curves, and images as an argument."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = (
    ("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":"), ("#000000", (0, (5, 1, 1, 1, 1, 1))),
)  # fmt: skip
MARKERS = "os^Dv"


def new_figure(rows: int, columns: int, size: tuple[float, float], **grid: float) -> tuple[Figure, NDArray[Any]]:
    """Return a figure and its axes of shape (rows, columns); `grid` is the spacing between images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout=None if grid else "constrained")
    axes: NDArray[Any] = figure.subplots(rows, columns, squeeze=False, gridspec_kw=grid)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
        ax.set_axisbelow(True)
    return figure, axes


def one_panel(size: tuple[float, float]) -> tuple[Figure, Any]:
    """Return a figure with one axes, and the axes."""
    figure, axes = new_figure(1, 1, size)
    return figure, axes[0, 0]


def curve_style(k: int) -> dict[str, Any]:
    """Return the options of the k-th curve."""
    colour, dash = STYLES[k % len(STYLES)]
    return {"color": colour, "linestyle": dash, "linewidth": 1.6}


def label_x(ax: Any, values: list[int]) -> None:
    """Label the x axis at these ascending values, except where labels would touch on a logarithmic axis."""
    few = [n for n, later in zip(values, [*values[1:], math.inf], strict=True) if later > 1.2 * n]
    ax.set_xticks(few, [str(n) for n in few])
    ax.minorticks_off()


def as_images(name: str, x: ArrayLike) -> NDArray[Any]:
    """Return the argument `name` as images (N, C, H, W) on the host."""
    x = np.asarray(x)
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not x.size:
        raise ValueError(f"{name} must be images of shape (N, C, H, W) with C = 1 or 3, got {x.shape}")
    return x


def standard_error(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard error of the mean over axis 0."""
    return values.std(0, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else np.zeros(values.shape[1:])
