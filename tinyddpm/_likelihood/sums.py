"""The bound's reductions over dimensions, one step at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinyddpm import gaussian
from tinyddpm._arrays.namespace import Array, Table
from tinyddpm._likelihood import steps as noised
from tinyddpm._likelihood.result import VLB
from tinyddpm._losses.call import Decoder, eps_error, target
from tinyddpm._process import Process
from tinyddpm.conversions import Kind
from tinyddpm.denoiser import Denoiser


class Sums:
    """The bound's reductions over dimensions, as the steps come for t = T..1."""

    def __init__(self, d: Process, denoiser: Denoiser, x: Array, xp: Any, terms: bool, levels: int, decoder: Decoder) -> None:
        self.d, self.denoiser, self.x, self.xp = d, denoiser, x, xp
        self.terms, self.levels = terms, levels
        self.decoder: Decoder = decoder
        self.kind: Kind = "x0" if denoiser.clip_range else denoiser.predicts
        noised.existing_slope(d, denoiser.predicts, self.kind, x, xp)
        self.slope, self.dims = noised.existing_slope(d, self.kind, "mu", x, xp), math.prod(x.shape[1:])
        self.clipped = noised.predicted_x0(d, denoiser, xp) if denoiser.clip_range else None
        self.elementwise = denoiser.learned or np.ndim(denoiser.variance) > 1  # the variance differs between dimensions
        self.per_square, self.constant = np.zeros((2, d.T + 1))  # of a KL, if it does not
        if not self.elementwise:  # [Ho eq. 8, with the part of the variances]
            t = np.arange(2, d.T + 1)
            log_var = np.broadcast_to(denoiser.log_var_from(d, None, np.empty(len(t)), t, None, np), t.shape)
            with np.errstate(all="ignore"):
                self.per_square[2:] = self.slope[2:] ** 2 * np.exp(-log_var) / 2
            self.constant[2:] = self.dims * _variance_kl(np.log(d.beta_tilde[2:]), log_var)
        self.sizes, self.squares, self.kls = (noised.Columns(xp, terms) for _ in range(3))
        self.lasts = noised.Columns(xp)  # L_0 and the data's norm

    def add(self, step: noised.NoisedStep) -> None:
        """Take note of a step."""
        d, xp, t = self.d, self.xp, step.t
        self.sizes.add(noised.square_sum(step.value, xp))  # NaN here, which clipping would hide
        value = self.clipped(step) if self.clipped else step.value
        if t == 1:
            self.lasts.add(self._l_0(value, step))
            self.lasts.add(noised.square_sum(self.x, xp))
        error = value - (self.x if self.clipped else target(d, self.kind, self.x, step.x_t, t, step.eps, xp))
        square = noised.square_sum(error, xp)
        self.squares.add(square if self.terms else float(self.per_square[t]) * square)
        if self.elementwise and t > 1:
            log_var = self.denoiser.log_var_from(d, step.raw, step.x_t, t, None, xp)
            gap = float(self.slope[t]) * error
            self.kls.add(noised.sum_over_dims(gaussian.kl(gap, math.log(d.beta_tilde[t]), xp.zeros_like(gap), log_var), xp))

    def result(self) -> VLB:
        """All terms on the host."""
        d, dims, (norm, l_0) = self.d, self.dims, self.lasts.on_host().T
        square, empty = self.squares.on_host(), np.empty((len(norm), 0))
        refuse(~np.isfinite(self.sizes.on_host() + square), "is not finite", self.terms)
        if self.elementwise:
            kl = self.kls.on_host() if d.T > 1 else empty
        else:
            kl = self.per_square[2:] * square[:, 1:] + self.constant[2:] if self.terms else square + self.constant.sum()
        refuse(np.isnan(np.column_stack([l_0, kl])), "gives no likelihood", self.terms)
        with np.errstate(all="ignore"):  # at alpha_bar next to 0, an error of eps is a boundless one of x_0
            x0_mse = square / dims * d.conversion(self.kind, "x0")[0][1:] ** 2 if self.terms else empty
        eps_mse = square / dims * eps_error(d, self.kind)[1:] if self.terms else empty
        prior = d.alpha_bar[-1] / 2 * norm + dims * _variance_kl(np.log(d.one_minus_alpha_bar[-1:]), np.zeros(1))
        return VLB(prior, kl, l_0, x0_mse, eps_mse, dims, self.levels)

    def _l_0(self, value: Array, step: noised.NoisedStep) -> Array:
        """-log p(x_0 | x_1), shape (B,), from the prediction at t = 1."""
        xp = self.xp
        mean = self.d._convert(value, step.x_t, 1, self.kind, "mu", xp)
        log_var = self.denoiser.log_var_from(self.d, step.raw, step.x_t, 1, None, xp)
        decoder = self.decoder
        if decoder == "density":
            return -noised.sum_over_dims(gaussian.Gaussian(mean, log_var).log_prob(self.x), xp)
        return -noised.sum_over_dims(gaussian.discretized_log_likelihood(self.x, mean, log_var / 2, self.levels, decoder), xp)


def _variance_kl(log_var1: Table, log_var2: Table) -> Table:
    """KL between centred Gaussians."""
    centre = np.zeros_like(log_var1)
    kl: Table = gaussian.kl(centre, log_var1, centre, log_var2)
    return kl


def refuse(wrong: Any, what: str, by_step: bool = True) -> None:
    """Blame the network if any entry is wrong; column t - 1 is step t if the columns are those of steps."""
    if np.any(wrong):
        at = f" at t = {1 + np.flatnonzero(np.any(wrong, axis=0))[-1]}" if by_step else ""
        raise ValueError(f"net: its output {what}{at}")
