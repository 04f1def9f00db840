"""What stands behind `tinyddpm.calibration`: the errors as they are measured, the search for the best plan, and the file."""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from tinyddpm._arrays import check
from tinyddpm._arrays.namespace import Table
from tinyddpm._io import files
from tinyddpm._losses.call import Decoder, reconstruction
from tinyddpm.conversions import KINDS

GROUPS = 10
_FEWEST = 4096  # elements that the search for the best variance looks at, if there are as many
_OCTAVE = 4  # its candidates for each factor of 2
_FORMAT = "tinyddpm calibration 1"
_LIMIT = 2**31  # bytes


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
        return np.bincount(self.group, by_row) / self.sizes

    def _best_scale(self, predicted: NDArray[Any], variance: Any) -> float:
        """The multiple of `variance` that costs least: a descent over powers of 2^(1/4), then a parabola."""
        rows = min(len(self.x0), max(16, -(-_FEWEST // self.dims)))
        some = np.linspace(0, len(self.x0) - 1, rows).astype(np.int64)
        x0, predicted = self.x0[some], predicted[some]

        @cache
        def cost(k: int) -> float:
            return float(self._cost(x0, predicted, 2.0 ** (k / _OCTAVE) * variance).mean())

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
        cost = reconstruction(x0, mean, log_var, self.decoder, self.levels)
        return cost.mean(axis=1, dtype=np.float64)  # type: ignore[no-any-return]


def with_floor(mse: Any, rows: int) -> Any:
    """The errors, of which none of several dimensions is 0 only because so few rows had none: one row more has the mean's."""
    return mse if np.ndim(mse) == 0 else (rows * mse + mse.mean()) / (rows + 1)


# The plan of least cost, exactly, by dynamic programming [Watson et al. 2021]. ``costs[t, s]`` is the cost of the step from t to
# s >= 1, infinite unless t > s, and ``last[t]`` that of the step from t to 0; ``last[0]`` is infinite.


def best_plan(costs: Table, last: Table) -> tuple[int, ...]:
    """The best plan of any length."""
    best, ends = last.copy(), np.zeros(len(last), np.int64)
    for t in range(2, len(last)):
        through = costs[t, :t] + best[:t]
        s = int(np.argmin(through))
        if through[s] < best[t]:
            best[t], ends[t] = through[s], s
    plan = [len(last) - 1]
    while plan[-1]:
        plan.append(int(ends[plan[-1]]))
    return tuple(plan)


def best_plan_of_length(costs: Table, last: Table, steps: int) -> tuple[int, ...]:
    """The best plan of so many steps: k steps from t are a step to some s and the best k - 1 from there."""
    best, ends, through = last, [], np.empty_like(costs)
    rows = np.arange(len(last))
    for _ in range(steps - 1):
        np.add(costs, best, out=through)
        ends.append(through.argmin(axis=1).astype(np.int32))
        best = through[rows, ends[-1]]
    plan = [len(last) - 1]
    for end in reversed(ends):
        plan.append(int(end[plan[-1]]))
    return (*plan, 0)


# The file: JSON, with tables as base64 of float64, which keeps every number exactly.


def write(path: str | os.PathLike[str], plain: Mapping[str, Any], tables: Mapping[str, Table]) -> None:
    """Write the file, whole or not at all."""
    encoded = {
        name: {"shape": x.shape, "float64": base64.b64encode(x.astype("<f8").tobytes()).decode()} for name, x in tables.items()
    }
    files.write(path, json.dumps({"format": _FORMAT, **plain, "tables": encoded}, indent=1).encode())


def read(path: str | os.PathLike[str], plain: Sequence[str], tables: Sequence[str]) -> tuple[dict[str, Any], dict[str, Table]]:
    """The plain values and the tables; whatever is wrong with the file is a ValueError, LookupError or TypeError."""
    known = files.read_json(path, links=True, limit=_LIMIT)
    if known.get("format") != _FORMAT:
        raise ValueError(f"its format must be {_FORMAT!r}")
    found = {name: _table(known["tables"][name]) for name in tables}
    values = {name: known[name] for name in plain}
    _check(values, found)
    return values, found


def _table(encoded: Any) -> Table:
    values = np.frombuffer(base64.b64decode(encoded["float64"], validate=True), "<f8").astype(np.float64)
    return values.reshape([check.as_int("shape", n, 0, len(values)) for n in encoded["shape"]])


def _check(plain: Mapping[str, Any], tables: Mapping[str, Table]) -> None:
    """Raise unless the values are those of a calibration, and the tables' shapes fit."""
    groups = min(check.as_positive_int("rows", plain["rows"]), GROUPS)
    check.as_int("levels", plain["levels"], 2, 65536)
    check.one_of("decoder", plain["decoder"], get_args(Decoder))
    check.one_of("predicts", plain["predicts"], KINDS)
    check.as_instance("network", plain["network"], str)
    steps = check.as_int("the number of betas", len(tables["beta"]), 1, check.MOST_STEPS)
    for name, table in tables.items():
        shape = (groups,) if name == "group_prior" else (groups, steps) if name.startswith("group") else (steps,)
        if steps < 2 or table.shape[: table.ndim if name != "x0_mse" else 1] != shape:
            raise ValueError(f"{name} must have shape {shape}, got {table.shape}")
        counted = table[1:] if name == "x0_mse" else table if name == "group_prior" else table[..., 1:]
        if np.any(np.isnan(counted)) or (name in ("beta", "x0_mse", "last_scale", "group_mse") and np.any(counted < 0)):
            raise ValueError(f"{name} must hold numbers that are not negative")
