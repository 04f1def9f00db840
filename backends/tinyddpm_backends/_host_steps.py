"""Reverse steps in host memory, in place: NumPy's stepper, and the folded rows that Torch's uses too."""

from __future__ import annotations

import contextvars
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from tinyddpm.backends import Row, depth

from ._host_noise import PIECE, StepNoise

__all__ = ["FoldedRow", "NumpyStepper", "folded", "without_warnings"]

Array = NDArray[Any]
Clip = tuple[float, float] | None
Piece = tuple[slice, Array, Array, Array, Array]
"""A range of elements; the state and the base there; two arrays of the same size for intermediate results."""


class FoldedRow(NamedTuple):
    """A row whose prediction of x_0 is computed and kept times its own weight, which saves the pass that multiplies by it."""

    of_value: float
    """The folded prediction's weight of the network's output."""
    of_state: float
    """The folded prediction's weight of the state."""
    clip: Clip
    """The range that the folded prediction is clipped to."""
    state: tuple[float, ...]
    """The new state's weights of (base, newest folded prediction, older ones)."""
    base: tuple[float, ...] | None
    """The new base's weights of the same arrays; None if the base is the new state."""


def folded(rows: Sequence[Row], clip: Clip) -> Sequence[FoldedRow]:
    """Return the rows over predictions that are kept times their weight; the newest result is kept for the next run."""
    global _newest
    newest_rows, newest_clip, result = _newest
    if newest_rows is not rows or newest_clip != clip or not isinstance(rows, tuple):
        result = _folded(rows, clip)
        _newest = rows, clip, result
    return result


_newest: tuple[Sequence[Row], Clip, Sequence[FoldedRow]] = ((), None, ())
"""The newest rows and range that were folded, with the result: folding a row takes a fifth of a small step."""


def _folded(rows: Sequence[Row], clip: Clip) -> list[FoldedRow]:
    """`folded`, computed."""
    reach, factors, result = depth(rows), list[float](), list[FoldedRow]()
    for row in rows:
        factor = row.state[1]
        if not 2**-10 < abs(factor) < 2**10:  # a prediction times this could leave the range of its dtype
            factor = 1.0
        factors = [factor, *factors][:reach]
        of_value, of_state = row.x0_from
        state, base = _over(row.state, factors), None if row.base is None else _over(row.base, factors)
        result.append(FoldedRow(factor * of_value, factor * of_state, _times(factor, clip), state, base))
    return result


def _times(factor: float, clip: Clip) -> Clip:
    """The range times a factor, which may be negative."""
    if clip is None:
        return None
    ends = factor * clip[0], factor * clip[1]
    return min(ends), max(ends)


def _over(weights: tuple[float, ...], factors: Sequence[float]) -> tuple[float, ...]:
    """Weights of (base, predictions) as weights of (base, predictions times their factors)."""
    return (weights[0], *(weight / factor for weight, factor in zip(weights[1:], factors, strict=False)))


def without_warnings() -> contextvars.Context:
    """A context without NumPy's warnings and errors of range; entering it costs a twentieth of `numpy.errstate`."""
    context = contextvars.copy_context()
    context.run(np.seterr, all="ignore")
    return context


class NumpyStepper:
    """The steps of one run in NumPy's memory (see `tinyddpm.backends.Stepper`)."""

    def __init__(self, rows: Sequence[Row], x: Array, *, seed: int, index: NDArray[np.uint64], clip: Clip, keep_x0: bool) -> None:
        self._rows, self._folded, self._clip = rows, folded(rows, clip), clip
        self.state = np.array(x, order="C")
        self._flat = self.state.reshape(-1)
        self._base = self._flat.copy() if any(row.base is not None for row in rows) else self._flat
        self._noise = StepNoise(rows, self.state, seed, index)
        self._value_copy, self._work = np.empty(0), np.empty((2, min(PIECE, self._flat.size)), x.dtype)
        self._pieces = [self._piece(slice(start, start + PIECE)) for start in range(0, self._flat.size, PIECE)]
        self._history = [np.empty_like(self._flat) for _ in range(depth(rows) if depth(rows) > 1 else 0)]
        self._x0 = np.empty_like(self._flat) if keep_x0 else None
        self._context = without_warnings()  # overflow is reported by the result

    @property
    def x0(self) -> Array:
        """The newest prediction of x_0, if it is kept."""
        return cast(Array, self._x0).reshape(self.state.shape)

    def step(self, k: int, value: Array, std: Array | None = None, z: Array | None = None) -> bool:
        """Make the step of row k; return whether the network's output is finite."""
        return self._context.run(self._step, k, value, std, z)

    def _step(self, k: int, value: Array, std: Array | None, z: Array | None) -> bool:
        """`step`, without warnings."""
        row, value, finite = self._rows[k], self._flattened(value), True
        self._history = self._history[-1:] + self._history[:-1]
        for piece in self._pieces:
            finite &= self._combine(k, value, piece)
        if row.std != 0.0:
            self._add_noise(k, std, z)
            if row.base is None and self._base is not self._flat:
                np.copyto(self._base, self._flat)
        return finite

    def _add_noise(self, k: int, std: Array | None, z: Array | None) -> None:
        """Add row k's noise to the state."""
        if z is not None:
            np.add(self.state, z * (self._rows[k].std if std is None else std), out=self.state)
        elif std is None and (drawn := self._noise.drawn(k)) is not None:
            np.add(self.state, drawn, out=self.state)
        else:
            self._noise.add(k, std)

    def _piece(self, part: slice) -> Piece:
        """One range of elements with the memory that its steps need."""
        x = self._flat[part]
        return part, x, self._base[part], *self._work[:, : len(x)]

    def _combine(self, k: int, value: Array, piece: Piece) -> bool:
        """The step without noise in one piece; returns whether the network's output is finite there."""
        part, x, base, prediction, work = piece
        of_value, of_state, clip, to_state, to_base = self._folded[k]
        value = value[part]
        history = [x0[part] for x0 in self._history] or [prediction]
        if self._x0 is not None:
            _predict(*self._rows[k].x0_from, self._clip, value, x, self._x0[part], work)
        _predict(of_value, of_state, clip, value, x, history[0], work)
        _weighted_sum(to_state, base, history, x, work)
        if to_base is not None:
            _weighted_sum(to_base, base, history, base, work)
        elif self._base is not self._flat and self._rows[k].std == 0.0:
            np.copyto(base, x)
        return math.isfinite(value.dot(value)) or bool(np.isfinite(value).all())  # the square may overflow

    def _flattened(self, value: Array) -> Array:
        """The network's output in C order, copied only if it is in another."""
        if value.flags.c_contiguous:
            return value.reshape(-1)
        if not self._value_copy.size:
            self._value_copy = np.empty_like(self._flat)
        np.copyto(self._value_copy.reshape(value.shape), value)
        return self._value_copy


def _predict(of_value: float, of_state: float, clip: Clip, value: Array, x: Array, out: Array, work: Array) -> None:
    """out = clip(of_value value + of_state x)."""
    np.multiply(value, of_value, out=out)
    if of_state:
        np.add(out, np.multiply(x, of_state, out=work), out=out)
    if clip is not None:
        low, high = clip
        out.clip(low, high, out=out)


def _weighted_sum(weights: Sequence[float], base: Array, history: Sequence[Array], out: Array, work: Array) -> None:
    """out = weights[0] * base + weights[1] * newest prediction + ..., in this order; `out` may be the base."""
    np.multiply(base, weights[0], out=out)
    for weight, x0 in zip(weights[1:], history, strict=False):
        if weight:
            np.add(out, x0 if weight == 1.0 else np.multiply(x0, weight, out=work), out=out)
