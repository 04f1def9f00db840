"""Reverse steps in host memory, for NumPy."""

from __future__ import annotations

import contextvars
import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from . import depth
from ._host_noise import BLOCK, StepNoise

__all__ = ["Stepper", "silence"]

Array = NDArray[Any]


def silence() -> contextvars.Context:
    """Where NumPy says nothing of what overflows: entering costs a twentieth of `np.errstate`."""
    context = contextvars.copy_context()
    context.run(np.seterr, over="ignore", invalid="ignore")
    return context


class Stepper:
    """The moves of one run, in place (see `tinyddpm.backends.Stepper`)."""

    def __init__(self, rows: Sequence[Any], x: Array, *, seed: int, index: NDArray[np.uint64], clip: bool, keep_x0: bool) -> None:
        self.rows, self.clip = rows, clip
        self.state = np.array(x, order="C")
        self._flat = self.state.reshape(-1)
        self._base = self._flat.copy() if any(row.base is not None for row in rows) else self._flat
        self._noise = StepNoise(rows, self.state, seed, index)
        self._value, self._work = np.empty(0), np.empty((2, min(BLOCK, self._flat.size)), x.dtype)
        self._places = [self._views(slice(cut, cut + BLOCK)) for cut in range(0, self._flat.size, BLOCK)]
        self._history = [np.empty_like(self._flat) for _ in range(depth(rows) if depth(rows) > 1 else 0)]
        self._shown = np.empty_like(self._flat) if keep_x0 else None
        self._silent = silence()  # what overflows is told by the result

    @property
    def x0(self) -> Array:
        """The newest prediction, where it is shown."""
        return cast(Array, self._shown).reshape(self.state.shape)

    def step(self, k: int, value: Array, std: Array | None = None, z: Array | None = None) -> bool:
        """Row k's move; whether the network's output was finite."""
        return self._silent.run(self._step, k, value, std, z)

    def _step(self, k: int, value: Array, std: Array | None, z: Array | None) -> bool:
        row, value, finite = self.rows[k], self._contiguous(value), True
        self._history = self._history[-1:] + self._history[:-1]
        for views in self._places:
            finite &= self._combine(row, value, views)
        if z is not None:
            np.add(self.state, z * (row.std if std is None else std), out=self.state)
        elif std is None and row.std != 0.0 and (drawn := self._noise.drawn(k)) is not None:
            np.add(self.state, drawn, out=self.state)
        elif row.std != 0.0:
            self._noise.add(k, std)
        return finite

    def _views(self, place: slice) -> tuple[slice, Array, Array, Array, Array]:
        """A place, the state and the base there, and as much of two workspaces."""
        x = self._flat[place]
        return place, x, self._base[place], *self._work[:, : len(x)]

    def _combine(self, row: Any, value: Array, views: tuple[slice, Array, Array, Array, Array]) -> bool:
        """The row's move in one place; whether the network's output was finite there."""
        place, x, base, own, work = views
        value, history = value[place], [x0[place] for x0 in self._history] or [own]
        if self._shown is not None:
            self._read(row, value, x, 1.0, self._shown[place], work)
        self._read(row, value, x, row.factor, history[0], work)
        _weighed(row.over_kept, base, history, x, work)
        if row.base is not None:
            _weighed(row.base_over_kept, base, history, base, work)
        elif self._base is not self._flat:
            np.copyto(base, x)
        return math.isfinite(value.dot(value)) or bool(np.isfinite(value).all())  # the square may overflow

    def _read(self, row: Any, value: Array, x: Array, factor: float, out: Array, work: Array) -> None:
        """factor * x_0."""
        a_value, a_state = row.x0_from
        np.multiply(value, factor * a_value, out=out)
        if a_state:
            np.add(out, np.multiply(x, factor * a_state, out=work), out=out)
        if self.clip:
            out.clip(-abs(factor), abs(factor), out=out)

    def _contiguous(self, value: Array) -> Array:
        """The network's output in C order, copied only where it must be."""
        if value.flags.c_contiguous:
            return value.reshape(-1)
        if not self._value.size:
            self._value = np.empty_like(self._flat)
        np.copyto(self._value.reshape(value.shape), value)
        return self._value


def _weighed(weights: Sequence[float], base: Array, history: Sequence[Array], out: Array, work: Array) -> None:
    """weights[0] * base + weights[1] * newest x_0 + ..., in that order; `out` may be the base."""
    np.multiply(base, weights[0], out=out)
    for weight, x0 in zip(weights[1:], history, strict=False):
        if weight:
            np.add(out, x0 if weight == 1.0 else np.multiply(x0, weight, out=work), out=out)
