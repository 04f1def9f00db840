"""The errors of the predicted x_0 at each step, and the decoder's best variance at a last step from there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyddpm._arrays.namespace import Table
from tinyddpm._losses.call import Decoder
from tinyddpm.gaussian import Gaussian, discretized_log_likelihood

GROUPS = 10
_FEWEST = 4096  # elements that the search looks at, if there are as many
_OCTAVE = 4  # candidates for each factor of 2


class Errors:
    """Means over rows, and over dimensions unless `per_dimension`; `x0` is on the host, shape (rows, dimensions)."""

    def __init__(self, x0: NDArray[Any], T: int, draws: int, levels: int, decoder: Decoder, per_dimension: bool) -> None:
        self.x0 = np.concatenate([x0] * draws)
        self.levels = levels
        self.decoder: Decoder = decoder
        self.rows, self.dims = x0.shape
        self.group = np.arange(len(self.x0)) % self.rows % GROUPS
        self.sizes = np.bincount(self.group)
        self.mse = np.full((T + 1, self.dims) if per_dimension else T + 1, np.nan)
        self.scale = np.full(T + 1, np.nan)
        self.group_mse, self.group_last = np.full((2, len(self.sizes), T + 1), np.nan)
        self._candidate = 0  # the last step's best, where the next search starts
        self._draws, self._parts = draws, list[NDArray[Any]]()

    def add(self, t: int, predicted: Sequence[NDArray[Any]]) -> None:
        """Take note of the predictions of one draw at t, in batches of shape (rows, dimensions)."""
        self._parts += predicted
        if len(self._parts) == self._draws * len(predicted):
            self._add_all(t, np.concatenate(self._parts).astype(self.x0.dtype, copy=False))
            self._parts = []

    def _add_all(self, t: int, predicted: NDArray[Any]) -> None:
        square = np.square(predicted - self.x0, dtype=np.float64)
        by_row = square.mean(axis=1)
        self.mse[t] = square.mean(axis=0) if self.mse.ndim > 1 else by_row.mean()
        variance = with_floor(self.mse[t], self.rows)
        self.scale[t] = 1.0 if self.decoder == "density" else self._best_scale(predicted, variance)
        self.group_mse[:, t] = self.group_means(by_row)
        self.group_last[:, t] = self.group_means(self._cost(self.x0, predicted, self.scale[t] * variance))

    def group_means(self, by_row: Table) -> Table:
        """The mean over each group of rows."""
        means: Table = np.bincount(self.group, by_row) / self.sizes
        return means

    def _best_scale(self, predicted: NDArray[Any], variance: Any) -> float:
        """The multiple of `variance` that costs least: a descent over powers of 2^(1/4), then a parabola."""
        rows = min(len(self.x0), max(16, -(-_FEWEST // self.dims)))
        some = np.linspace(0, len(self.x0) - 1, rows).astype(np.int64)
        x0, predicted, costs = self.x0[some], predicted[some], {}

        def cost(k: int) -> float:
            if k not in costs:
                costs[k] = float(self._cost(x0, predicted, 2.0 ** (k / _OCTAVE) * variance).mean())
            return costs[k]

        k = self._candidate
        while abs(k) < 16 * _OCTAVE and cost(lower := min((k - 1, k + 1), key=cost)) < cost(k):
            k = lower
        self._candidate = k
        bend = cost(k - 1) - 2 * cost(k) + cost(k + 1)
        shift = (cost(k - 1) - cost(k + 1)) / (2 * bend) if 0 < bend < math.inf else 0.0
        return float(2.0 ** ((k + min(max(shift, -0.5), 0.5)) / _OCTAVE))

    def _cost(self, x0: NDArray[Any], mean: NDArray[Any], variance: Any) -> Table:
        """-log p(x_0 | x_t) in nats per dimension for each row."""
        with np.errstate(divide="ignore"):
            log_var = np.broadcast_to(np.log(variance), x0.shape[1:]).astype(x0.dtype)
        decoder = self.decoder
        if decoder == "density":
            log_p = Gaussian(mean, log_var).log_prob(x0)
        else:
            log_p = discretized_log_likelihood(x0, mean, log_var / 2, self.levels, decoder)
        cost: Table = -log_p.mean(axis=1, dtype=np.float64)
        return cost


def with_floor(mse: Any, rows: int) -> Any:
    """The errors, of which none of several dimensions is 0 only because so few rows had none: one row more has the mean's."""
    return mse if np.ndim(mse) == 0 else (rows * mse + mse.mean()) / (rows + 1)
