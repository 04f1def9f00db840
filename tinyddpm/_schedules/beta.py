"""Checks of schedules: of their arguments, and of the betas themselves."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinyddpm._arrays.check import allocating, as_positive_int, as_real
from tinyddpm._arrays.namespace import host_numbers

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


def positive(name: str, value: float, high: float = math.inf) -> float:
    """A number in (0, high]."""
    value = as_real(name, value, 0.0, high)
    if value == 0:
        raise ValueError(f"{name} must be positive, got 0.0")
    return value


def steps_and_ends(T: int, beta_1: float, beta_T: float) -> tuple[Beta, float, float]:
    """The steps 1..T as floats, and both ends in (0, 1]; beta_1 = 1 only if T = 1."""
    t, beta_1, beta_T = steps(T), positive("beta_1", beta_1, 1.0), positive("beta_T", beta_T, 1.0)
    if beta_1 == 1 and len(t) > 1:
        raise ValueError("beta_1 must be below 1 unless T = 1, got 1.0")
    return t, beta_1, beta_T
