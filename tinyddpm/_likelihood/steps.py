"""The network's output on noised data, step by step, and reductions of it that reach the host in few transfers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tinyddpm import backends, noise

from tinyddpm._arrays.namespace import (  # isort: skip
    Array, Table, clip_array, copy_array, device_of, dtype_name, flatten, host_values, namespace_of, on_host, widened,
)  # fmt: skip
from tinyddpm._arrays.steps import time_arrays
from tinyddpm._process import Process
from tinyddpm.conversions import Kind
from tinyddpm.denoiser import Denoiser, check_model

_STREAM = 1  # of the noise that likelihoods are estimated with


class NoisedStep(NamedTuple):
    """One call of the network on noised data."""

    t: int
    eps: Array | None
    """The noise, if it is kept."""
    x_t: Array
    value: Array
    """The prediction."""
    raw: Array | None
    """The raw variance output, if the network emits one."""


def checked_data(d: Process, denoiser: Denoiser, x0: Array) -> tuple[Array, Any]:
    """The data for arithmetic, and their namespace.

    What the host holds becomes a NumPy view, on which an operation costs less than in most libraries; the network still
    gets arrays of x0's own library.
    """
    check_model(d, denoiser)
    xp = namespace_of(x0=x0)
    if 0 in x0.shape:
        raise ValueError(f"x0 must have at least one sample of at least one dimension, got shape {tuple(x0.shape)}")
    backends.of(x0)  # a library that is not registered has no noise
    if isinstance(x0, np.ndarray) or not on_host(x0) or x0.dtype not in (xp.float32, xp.float64):
        return x0, xp
    host = host_values(x0)
    return host, namespace_of(x0=host)


def noised_steps(
    d: Process, denoiser: Denoiser, x0: Array, x: Array, seed: int, index: Sequence[int] | None, draws: int = 1,
    keep_eps: bool = False,
) -> Iterator[NoisedStep]:  # fmt: skip
    """The network's output on noised data for t = T..1 and each draw; `x` is the view of x0 from `checked_data`."""
    xp, draw, place = namespace_of(x0=x0), noise.like(x, seed, index, stream=_STREAM), device_of(x0)
    signal, spread = d.sqrt_alpha_bar.tolist(), d.sqrt_one_minus_alpha_bar.tolist()
    viewed = isinstance(x, np.ndarray) and not isinstance(x0, np.ndarray)
    plan = [(t, t + k * (d.T + 1)) for t in range(d.T, 0, -1) for k in reversed(range(draws))]
    net_ts = time_arrays([t - 1 + denoiser.first_t for t, _ in plan], x0, xp)
    for (t, step), net_t in zip(plan, net_ts, strict=True):
        x_t = draw(step)
        eps = copy_array(x_t) if keep_eps else None
        x_t *= spread[t]
        x_t += signal[t] * x
        seen = xp.asarray(x_t, device=place) if viewed else x_t
        value, raw = denoiser.call(d, seen, t, xp, net_t)
        if viewed:
            value, raw = _view(value), None if raw is None else _view(raw)
        yield NoisedStep(t, eps, x_t, value, raw)


def _view(x: Array) -> Array:
    """A NumPy view of an array that is known to be on the host."""
    return np.asarray(x.detach() if hasattr(x, "detach") else x)


def predicted_x0(d: Process, denoiser: Denoiser, xp: Any) -> Callable[[NoisedStep], Array]:
    """A function from a step to its predicted x_0, clipped if the denoiser clips, in memory of its own."""
    (values, states), clip = d.conversion(denoiser.predicts, "x0"), denoiser.clip_range
    by_value, by_state = values.tolist(), None if states is None else states.tolist()

    def predicted(step: NoisedStep) -> Array:
        x0 = by_value[step.t] * step.value
        if by_state is not None:
            x0 += by_state[step.t] * step.x_t
        if clip is None:
            return x0
        return x0.clip(*clip, out=x0) if isinstance(x0, np.ndarray) else clip_array(x0, *clip, xp)

    return predicted


def existing_slope(d: Process, source: Kind, target: Kind, x: Array, xp: Any) -> Table:
    """`target` per unit of `source` at each t; ValueError unless it exists at all of them in x's precision."""
    slope, _ = d.conversion(source, target)
    if np.any(missing := ~(np.abs(slope[1:]) <= float(xp.finfo(x.dtype).max))):
        t = 1 + np.flatnonzero(missing)[0]
        raise ValueError(f"denoiser: {target} does not follow from {source} at t = {t} in {dtype_name(x)}")
    return slope


class Columns:
    """Reductions (B,) for t = T..1, brought to the host many at a time, in float64; column k is the k-th from the end.

    With `keep` False only their sum over steps stays: memory does not grow with the number of steps.
    """

    def __init__(self, xp: Any, keep: bool = True) -> None:
        self._xp, self._keep = xp, keep
        self._waiting: list[Array] = []
        self._done: list[Table] = []

    def add(self, column: Array) -> None:
        """The next column."""
        self._waiting.append(column)
        if not self._keep and len(self._waiting) == 16:
            self._flush()

    def on_host(self) -> Table:
        """Shape (B, number of columns), in the order of t; or (B, 1), their sum."""
        self._flush()
        return self._done[0]

    def _flush(self) -> None:
        if self._waiting:
            table = self._xp.stack(self._waiting, axis=1)
            host = backends.of(table).to_numpy(table)[:, ::-1].astype(np.float64)
            if not self._keep:
                host = host.sum(axis=1, keepdims=True) + (self._done.pop() if self._done else 0.0)
            self._done.append(host)
            self._waiting = []


def sum_over_dims(x: Array, xp: Any) -> Array:
    """The sum over each sample's dimensions, (B, ...) -> (B,)."""
    return xp.sum(widened(flatten(x, xp), xp), axis=-1)


def square_sum(x: Array, xp: Any) -> Array:
    """The sum of squares over each sample's dimensions, (B, ...) -> (B,)."""
    x = widened(flatten(x, xp), xp)
    return xp.vecdot(x, x)
