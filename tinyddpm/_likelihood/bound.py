"""The bound's terms for each sample, what is computed from them, and their sums over dimensions, one step at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tinyddpm import gaussian
from tinyddpm._arrays.namespace import Array, Table
from tinyddpm._arrays.value import FrozenValue
from tinyddpm._likelihood import steps as noised
from tinyddpm._losses.call import Decoder, eps_error, reconstruction, target
from tinyddpm._process import Process
from tinyddpm.conversions import Kind
from tinyddpm.denoiser import Denoiser


class Curve(NamedTuple):
    """Rate against distortion as the receiver of x_T..x_t sees them [Ho fig. 5], for t = T..1."""

    rate: Table
    """What has been sent, in bits per dimension, shape (T,)."""
    rmse: Table
    """Root mean square error of the prediction of x_0, in units of 0..levels-1, shape (T,)."""


@dataclass(frozen=True, eq=False)
class VLB(FrozenValue):
    """The terms of the bound on -log p(x_0) for each of B samples: nats summed over dimensions, float64 on the host."""

    prior: Table
    """L_T = KL(q(x_T | x_0) || N(0, I)), shape (B,)."""
    kl: Table
    """L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t = 2..T, shape (B, T - 1).

    Without terms it has one column, the sum.
    """
    decoder: Table
    """L_0 = -log p(x_0 | x_1), shape (B,)."""
    x0_mse: Table
    """Squared error of the predicted x_0, mean over dimensions, shape (B, T); column t - 1 is step t.

    Without terms it has no columns.
    """
    eps_mse: Table
    """Squared error of the predicted eps, mean over dimensions, shape (B, T); without terms it has no columns."""
    dims: int
    """Dimensions of a sample."""
    levels: int
    """Levels of the data."""

    @property
    def total(self) -> Table:
        """The bound in nats, shape (B,)."""
        return self.prior + self.kl.sum(axis=1) + self.decoder  # type: ignore[no-any-return]

    @property
    def bits_per_dim(self) -> Table:
        """The bound in bits per dimension, shape (B,); with the decoder "density", that of the density."""
        return self._bits(self.total)

    @property
    def rate(self) -> Table:
        """L_T and all KLs in bits per dimension, shape (B,): what it takes to send x_1."""
        return self._bits(self.prior + self.kl.sum(axis=1))

    @property
    def distortion(self) -> Table:
        """L_0 in bits per dimension, shape (B,)."""
        return self._bits(self.decoder)

    def curve(self) -> Curve:
        """Rate against root mean square error as t falls, over the whole batch.

        Returns
        -------
        Curve
            Arrays (T,) for t = T..1.

        Raises
        ------
        ValueError
            If the bound was computed with ``terms=False``.
        """
        if not self.x0_mse.shape[1]:
            raise ValueError("terms must be True in the call of vlb for a curve, got False")
        sent = np.cumsum(np.column_stack([self.prior, self.kl[:, ::-1]]), axis=1)
        rmse = np.sqrt(self.x0_mse.mean(axis=0)) * (self.levels - 1) / 2
        return Curve(self._bits(sent).mean(axis=0), rmse[::-1])

    def summary(self) -> dict[str, tuple[float, float]]:
        """Mean and standard error over samples.

        Returns
        -------
        dict of (float, float)
            For "total", "prior", "kl" (summed over steps) and "decoder" in nats, and for "bits_per_dim", "rate" and
            "distortion" in bits per dimension. The standard error of one sample is NaN.
        """
        columns = {"total": self.total, "prior": self.prior, "kl": self.kl.sum(axis=1), "decoder": self.decoder}
        columns |= {name: getattr(self, name) for name in ("bits_per_dim", "rate", "distortion")}
        return {name: (float(x.mean()), _standard_error(x)) for name, x in columns.items()}

    def _bits(self, nats: Table) -> Table:
        return nats / (self.dims * math.log(2))


def _standard_error(x: Table) -> float:
    return float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.nan


class Sums:
    """The bound's reductions over dimensions, as the steps come for t = T..1; to be used within `quiet`."""

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
        # At alpha_bar next to 0, an error of eps is a boundless one of x_0.
        x0_mse = square / dims * d.conversion(self.kind, "x0")[0][1:] ** 2 if self.terms else empty
        eps_mse = square / dims * eps_error(d, self.kind)[1:] if self.terms else empty
        prior = d.alpha_bar[-1] / 2 * norm + dims * _variance_kl(np.log(d.one_minus_alpha_bar[-1:]), np.zeros(1))
        return VLB(prior, kl, l_0, x0_mse, eps_mse, dims, self.levels)

    def _l_0(self, value: Array, step: noised.NoisedStep) -> Array:
        """-log p(x_0 | x_1), shape (B,), from the prediction at t = 1."""
        xp = self.xp
        mean = self.d._convert(value, step.x_t, 1, self.kind, "mu", xp)
        log_var = self.denoiser.log_var_from(self.d, step.raw, step.x_t, 1, None, xp)
        return noised.sum_over_dims(reconstruction(self.x, mean, log_var, self.decoder, self.levels), xp)


def _variance_kl(log_var1: Table, log_var2: Table) -> Table:
    """KL between centred Gaussians."""
    centre = np.zeros_like(log_var1)
    return gaussian.kl(centre, log_var1, centre, log_var2)


def refuse(wrong: Any, what: str, by_step: bool = True) -> None:
    """Blame the network if any entry is wrong; column t - 1 is step t if the columns are those of steps."""
    if np.any(wrong):
        at = f" at t = {1 + np.flatnonzero(np.any(wrong, axis=0))[-1]}" if by_step else ""
        raise ValueError(f"net: its output {what}{at}")
