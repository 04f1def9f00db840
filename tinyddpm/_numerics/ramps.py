"""Ramps, the arithmetic of schedules: from one value to another in equal steps, right to the last places."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyddpm._numerics import double as dd
from tinyddpm._numerics.double import Double, double

Values = NDArray[np.float64]


def ramp(t: Values, first: float, last: float) -> Values:
    """From `first` to `last`, both positive, in equal steps at t = 1..T: nothing cancels, and both ends are exact."""
    n = max(len(t) - 1, 1)
    return clip((n + 1 - t) / n * first + (t - 1) / n * last, first, last)


def double_ramp(t: Values, first: Double, last: Double) -> Double:
    """The same in double-double, for ends of any sign."""
    n = max(len(t) - 1, 1)
    total = dd.add(dd.mul(double(n + 1 - t), first), dd.mul(double(t - 1), last))
    return dd.div(total, double(n))


def clip(values: Values, first: float, last: float) -> Values:
    """The values clipped to the range between `first` and `last`, in either order."""
    return np.clip(values, min(first, last), max(first, last))


def pinned(values: Values, first: float, last: float) -> Values:
    """The values clipped to the range between the ends, and set to them at the ends, so that rounding does not show."""
    values[-1], values[0] = last, first  # in this order: the only value of a chain of one step is the first
    return clip(values, first, last)


def sigmoid(x: Double) -> Double:
    """1 / (1 + exp(-x)), without overflow."""
    negative = x.hi < 0
    e = dd.exp(dd.where(negative, x, dd.neg(x)))
    return dd.div(dd.where(negative, e, double(1.0)), dd.add(e, double(1.0)))
