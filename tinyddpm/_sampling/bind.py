"""A method's rows with what the denoiser decides: how x_0 follows from its network's output, and the variance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from tinyddpm._arrays.namespace import Array, dtype_name, namespace_of
from tinyddpm._network.nets import Net
from tinyddpm._process import Process
from tinyddpm._sampling.rows import Method
from tinyddpm.backends import Row
from tinyddpm.denoiser import Denoiser


def bound_rows(method: Method, d: Process, denoiser: Denoiser, timesteps: tuple[int, ...], eta: float) -> tuple[Row, ...]:
    """The rows of a run. Those of the last runs are kept: they depend on how the network is read, not on the network."""
    return _bound_rows(method, d, replace(denoiser, net=_NO_NET), timesteps, eta)


@lru_cache(maxsize=2)  # a plan has as many rows as steps: those of a long chain are not small
def _bound_rows(method: Method, d: Process, denoiser: Denoiser, timesteps: tuple[int, ...], eta: float) -> tuple[Row, ...]:
    rows = method(d, timesteps, eta)
    of_output, of_state = d.conversion(denoiser.predicts, "x0")
    if bad := [row.t for row in rows if math.isnan(of_output[row.t])]:
        raise ValueError(f"predicts must be 'v' or 'x0' on such a schedule, got {denoiser.predicts!r}: x_0 does not follow "
                         f"from it at t = {bad[0]}, where alpha_bar is {d.alpha_bar[bad[0]]}")  # fmt: skip
    return tuple(
        replace(
            row,
            std=std,
            x0_from=(float(of_output[row.t]), 0.0 if of_state is None else float(of_state[row.t])),
            net_t=row.t - 1 + denoiser.first_t,
        )
        for row, std in zip(rows, _fixed_std(d, denoiser, rows), strict=True)
    )


def check_range(rows: Sequence[Row], denoiser: Denoiser, x: Array, sampler: str) -> None:
    """Raise ValueError if x_0 leaves the range of x's dtype along the plan."""
    limit = float(namespace_of(x_T=x).finfo(x.dtype).max)
    if bad := [row.t for row in rows if max(map(abs, row.x0_from)) > limit]:
        raise ValueError(f"predicts must be a kind from which x_0 follows in {dtype_name(x)} at t = {bad[0]}, "
                         f"got {denoiser.predicts!r} for the sampler {sampler!r}")  # fmt: skip


def _fixed_std(d: Process, denoiser: Denoiser, rows: Sequence[Row]) -> list[float | None]:
    """The standard deviation of each row's noise; None if it is not one number that is known before the run."""
    std = [row.std for row in rows]
    if None not in std or denoiser.learned or np.ndim(denoiser.variance) > 1:
        return std
    x = np.zeros((len(rows), 1))
    t, s = (np.array([getattr(row, name) for row in rows]) for name in "ts")
    log_var = denoiser.log_var_from(d, None, x, t, s, namespace_of(x=x))
    known = np.broadcast_to(log_var, x.shape)[:, 0].tolist()
    return [math.exp(value / 2) if row.std is None else row.std for row, value in zip(rows, known, strict=True)]


def _no_net(x_t: Array, t: Array) -> Array:
    return x_t


_NO_NET: Net = _no_net
