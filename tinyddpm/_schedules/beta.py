"""What schedules share: checks of their arguments and of the betas, and ramps in equal steps, right to the last places."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinyddpm._arrays.check import allocating, as_positive, as_positive_int
from tinyddpm._arrays.namespace import host_numbers
from tinyddpm._numerics import double as dd
from tinyddpm._numerics.double import Double, double

Beta = NDArray[np.float64]
_WORKSPACE = 32  # arrays of T numbers, more than any schedule allocates


def checked(beta: ArrayLike) -> Beta:
    """Check a schedule, and copy it.

    Parameters
    ----------
    beta : sequence of float, or array (T,) of any library
        The betas beta_1..beta_T: 0 < beta_t < 1, but beta_T = 1 is allowed.

    Returns
    -------
    float64 array (T,)
        A read-only copy.

    Raises
    ------
    TypeError
        If `beta` is not a sequence of real numbers, or cannot be read by the host.
    ValueError
        If it is empty or not one-dimensional, or a beta_t is out of range.

    Examples
    --------
    >>> checked([0.1, 0.2]).tolist()
    [0.1, 0.2]
    """
    copy = valid(as_floats("beta", beta))
    copy.flags.writeable = False
    return copy


_LEAST = float(np.finfo(np.float64).tiny)


def valid(beta: Beta, rule: str = "beta must be") -> Beta:
    """The betas if each is in (0, 1), or the last is 1, and none so small that digits are lost; `rule` begins the message."""
    inside = (beta >= _LEAST) & (beta < 1)
    inside[-1] |= beta[-1] == 1
    if not inside.all():
        i = int(np.argmin(inside))
        if 0 < beta[i] < 1:
            raise ValueError(f"{rule} at least {_LEAST:.4g}, float64's least normal number, got beta_{i + 1} = {beta[i]}")
        raise ValueError(f"{rule} in (0, 1), got beta_{i + 1} = {beta[i]}; only beta_{len(beta)} may be 1")
    return beta


def as_floats(name: str, values: ArrayLike) -> Beta:
    """A float64 copy of a non-empty one-dimensional sequence of real numbers."""
    array = host_numbers(name, values)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} must be a non-empty sequence of shape (T,), got shape {array.shape}")
    with np.errstate(all="ignore"):  # float128 may leave the range; `valid` sees it
        return array.astype(np.float64)


def steps(T: int) -> Beta:
    """The steps 1..T as floats."""
    T = as_positive_int("T", T)
    with allocating("T", T):
        np.empty((_WORKSPACE, T))  # fail here, not half way
        return np.arange(1.0, T + 1.0)


def steps_and_ends(T: int, beta_1: float, beta_T: float) -> tuple[Beta, float, float]:
    """The steps 1..T as floats, and both ends in (0, 1]; beta_1 = 1 only if T = 1."""
    t, beta_1, beta_T = steps(T), as_positive("beta_1", beta_1, 1.0), as_positive("beta_T", beta_T, 1.0)
    if beta_1 == 1 and len(t) > 1:
        raise ValueError("beta_1 must be below 1 unless T = 1, got 1.0")
    return t, beta_1, beta_T


def ramp(t: Beta, first: float, last: float) -> Beta:
    """From `first` to `last`, both positive, in equal steps at t = 1..T: nothing cancels, and both ends are exact."""
    n = max(len(t) - 1, 1)
    return clip((n + 1 - t) / n * first + (t - 1) / n * last, first, last)


def double_ramp(t: Beta, first: Double, last: Double) -> Double:
    """The same in double-double, for ends of any sign."""
    n = max(len(t) - 1, 1)
    total = dd.add(dd.mul(double(n + 1 - t), first), dd.mul(double(t - 1), last))
    return dd.div(total, double(n))


def clip(values: Beta, first: float, last: float) -> Beta:
    """The values clipped to the range between `first` and `last`, in either order."""
    return np.clip(values, min(first, last), max(first, last))


def pinned(values: Beta, first: float, last: float) -> Beta:
    """The values clipped to the range between the ends, and set to them at the ends, so that rounding does not show."""
    values[-1], values[0] = last, first  # in this order: the only value of a chain of one step is the first
    return clip(values, first, last)


def logistic(x: Double) -> Double:
    """1 / (1 + exp(-x)), without overflow."""
    negative = x.hi < 0
    e = dd.exp(dd.where(negative, x, dd.neg(x)))
    return dd.div(dd.where(negative, e, double(1.0)), dd.add(e, double(1.0)))
