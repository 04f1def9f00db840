"""The bound's terms for each sample, and what is computed from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tinyddpm._arrays.namespace import Table
from tinyddpm._arrays.value import FrozenValue


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
        total: Table = self.prior + self.kl.sum(axis=1) + self.decoder
        return total

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
        bits: Table = nats / (self.dims * math.log(2))
        return bits


def _standard_error(x: Table) -> float:
    return float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.nan
