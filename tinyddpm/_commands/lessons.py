"""The figures of the lessons in ``docs/learn``, each also a figure of ``tinyddpm plot``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tinyddpm import Diffusion, Gaussian, plots
from tinyddpm._arrays.namespace import Array
from tinyddpm.gaussian import discretized_log_likelihood
from tinyddpm.plots._style import STYLES, curve_style, new_figure, one_panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE, _RED = STYLES[0][0], STYLES[1][0]


def kl_divergence() -> Figure:
    """Two Gaussians, and the integrands of both divergences, whose areas are the divergences."""
    x = np.linspace(-4.5, 6, 1001)
    q, p = Gaussian(np.full_like(x, -0.5), math.log(0.36)), Gaussian(np.full_like(x, 0.6), math.log(1.2))
    log_q, log_p = q.log_prob(x), p.log_prob(x)
    figure, (axes,) = new_figure(1, 3, (10.5, 3.2))
    for k, (name, log) in enumerate({"q": log_q, "p": log_p}.items()):
        axes[0].plot(x, np.exp(log), label=f"${name}$", **curve_style(k))
    axes[0].legend(frameon=False)
    axes[0].set(title="densities", xlabel="$x$")
    for ax, colour, a, b, log, gap in (
        (axes[1], _BLUE, "q", "p", log_q, log_q - log_p),
        (axes[2], _RED, "p", "q", log_p, log_p - log_q),
    ):
        integrand = np.exp(log) * gap
        ax.fill_between(x, np.maximum(integrand, 0), color=colour, alpha=0.4, linewidth=0)
        ax.fill_between(x, np.minimum(integrand, 0), color=colour, alpha=0.4, linewidth=0, hatch="///")
        ax.plot(x, integrand, color=colour, linewidth=1.2)
        area = float(np.trapezoid(integrand, x))
        ax.set(title=rf"$\mathrm{{KL}}({a} \| {b})$ = area = {area:.3f}", xlabel="$x$", ylabel=rf"${a} \log({a}/{b})$")
    top = max(ax.get_ylim()[1] for ax in axes[1:])
    for ax in axes[1:]:
        ax.set_ylim(min(ax.get_ylim()[0] for ax in axes[1:]), top)
    return figure


def decoder_bins(levels: int = 8, mean: float = 0.55, std: float = 0.3) -> Figure:
    """A Gaussian cut into the bins of the data's levels; the first and the last bin are open."""
    centre = np.linspace(-1, 1, levels)
    mass = np.exp(discretized_log_likelihood(centre, np.full(levels, mean), math.log(std), levels))
    half, ends = 1 / (levels - 1), (-1.9, 1.9)
    edges = np.array([ends[0], *(centre[:-1] + half), ends[1]])
    figure, ax = one_panel((7, 3.4))
    for k, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        x = np.linspace(low, high, 100)
        density = np.exp(Gaussian(np.full_like(x, mean), 2 * math.log(std)).log_prob(x))
        ax.fill_between(x, density, color=STYLES[k % 2][0], alpha=0.35, linewidth=0)
        ax.plot(x, density, color="black", linewidth=1)
        ax.text(centre[k], 1.42, f"{mass[k]:.3f}", ha="center", fontsize=8)
    ax.set(xlim=ends, ylim=(0, 1.55), xlabel="$x_0$", title=f"the {levels} levels' probabilities; together {mass.sum():.3f}")
    ax.set_xticks(centre, [f"{c:.2f}" for c in centre])
    return figure


def one_jump(states: Sequence[Array], guesses: Sequence[Array], t: Sequence[int], end: Array) -> Figure:
    """A sample on its way (above), what one jump from each state gives (middle), and where the whole chain ends (below).

    Each array is (1, C, H, W).
    """
    columns = [np.concatenate([x, x0, end]) for x, x0 in zip(states, guesses, strict=True)]
    return plots.strip(columns, [f"$t = {u}$" for u in t])


def objectives(d: Diffusion) -> Figure:
    """The weight that each objective gives to the squared error of eps, against t; each has mean 1.

    Where alpha_bar is 0 no error of x_0 follows from one of eps, so that t is left out.
    """
    t = np.arange(2, d.T + 1)
    t = t[np.isfinite(d.log_snr[t])]
    if not len(t):
        raise ValueError(f"model must have a chain with a step t >= 2 of alpha_bar > 0, got {d}")
    snr = np.exp(d.log_snr[t])
    vlb = d.weights.w_x0[t] ** 2 / (2 * d.beta_tilde[t]) / snr  # of an error of x_0, which is that of eps over SNR
    weights = {
        r"$L_{\mathrm{simple}}$": np.ones(len(t)),
        r"$L$, with variance $\tilde\beta_t$": vlb,
        "min(SNR, 5) times the error of $x_0$": np.minimum(snr, 5) / snr,
        "1 / (1 + SNR) (P2)": 1 / (1 + snr),
    }
    figure, ax = one_panel((6.5, 3.8))
    for k, (name, weight) in enumerate(weights.items()):
        ax.plot(t, weight / weight.mean(), label=name, **curve_style(k))
    ax.set(xlabel="$t$", ylabel=r"weight of $\|\epsilon - \epsilon_\theta\|^2$, mean 1", xscale="log", yscale="log")
    ax.legend(frameon=False)
    return figure
