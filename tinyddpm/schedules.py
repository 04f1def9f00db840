"""Variance schedules: each function returns beta_1..beta_T, a float64 array of shape (T,).

Every schedule is within a few units in the last place of its formula in exact arithmetic, the arguments taken as the
float64 numbers they are. Where the formula is a quotient of alpha_bar, ``1 - f(t) / f(t-1)`` would cancel; a product
form of the same quantity is evaluated instead.

`NAMES` maps each schedule's name to its function; `from_alpha_bar` and `zero_terminal_snr` transform what they are
given. A wrong argument raises `ValueError` or `TypeError`, naming it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinyddpm._arrays.check import allocating, as_positive_int, as_real
from tinyddpm._numerics import double as dd
from tinyddpm._numerics.double import Double, double

__all__ = [
    "NAMES",
    "checked",
    "constant",
    "cosine",
    "from_alpha_bar",
    "geometric",
    "jsd",
    "linear",
    "quadratic",
    "sigmoid",
    "sigmoid_alpha_bar",
    "warmup",
    "zero_terminal_snr",
]

Beta = NDArray[np.float64]


def linear(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Beta:
    """From beta_1 to beta_T in equal steps [Ho sec. 4]; either end may be the larger. With T = 1 it is beta_1."""
    t, (beta_1, beta_T) = _t(T), _ends(T, beta_1, beta_T)
    return _valid(_between(t, beta_1, beta_T))


def quadratic(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Beta:
    """sqrt(beta_t) runs from sqrt(beta_1) to sqrt(beta_T) in equal steps ("scaled linear")."""
    t, (beta_1, beta_T) = _t(T), _ends(T, beta_1, beta_T)
    return _valid(_pinned(_between(t, beta_1**0.5, beta_T**0.5) ** 2, beta_1, beta_T))


def geometric(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Beta:
    """log(beta_t) runs from log(beta_1) to log(beta_T) in equal steps."""
    t, (beta_1, beta_T) = _t(T), _ends(T, beta_1, beta_T)
    log = _ramp(t, dd.log(double(beta_1)), dd.log(double(beta_T)))
    return _valid(_pinned(dd.exp(log).hi, beta_1, beta_T))


def constant(T: int = 1000, beta: float = 0.02) -> Beta:
    """The same beta at every step."""
    t, beta = _t(T), as_real("beta", beta)
    return _valid(np.full(len(t), beta))


def warmup(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02, fraction: float = 0.1) -> Beta:
    """Linear from beta_1 to beta_T over the first ``round(T * fraction)`` steps, then beta_T; beta_1 where T = 1."""
    t, (beta_1, beta_T) = _t(T), _ends(T, beta_1, beta_T)
    rising = round(T * as_real("fraction", fraction, 0.0, 1.0)) if T > 1 else 1
    beta = np.full(len(t), beta_T)
    beta[:rising] = _between(t[:rising], beta_1, beta_T)
    return _valid(beta, "beta_T")


def jsd(T: int = 1000) -> Beta:
    """beta_t = 1 / (T - t + 1) [Sohl-Dickstein et al. 2015]: alpha_bar falls in equal steps to 0."""
    return _valid(1 / _t(T)[::-1])


def cosine(T: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Beta:
    """alpha_bar_t = f(t) / f(0), f(t) = cos((t/T + s) / (1 + s) pi/2)**2, beta_t at most `max_beta` [iDDPM eq. 17].

    For s >= 0. ``max_beta=1`` leaves beta_T = 1.
    """
    t, s, max_beta = _t(T), as_real("s", s, 0.0), _positive("max_beta", max_beta, 1.0)
    # With f(t-1) = cos(a)**2 and f(t) = cos(b)**2, beta_t = sin(b - a) sin(a + b) / cos(a)**2. Angles count in units of
    # h = b - a from whichever end is near, so that no sine is taken next to pi.
    h, left = np.pi / 2 / len(t) / (1 + s), t[::-1]
    both = np.sin(np.minimum(2 * t - 1 + 2 * s * len(t), 2 * left - 1) * h)
    return _valid(np.minimum(np.sin(h) * both / np.sin(left * h) ** 2, max_beta))


def sigmoid(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02, start: float = -6.0, end: float = 6.0) -> Beta:
    """beta_1 + (beta_T - beta_1) sigmoid(x_t), x_t from `start` to `end` in equal steps; the ends are not normalised.

    With T = 1, x_1 is `start`.
    """
    t, (beta_1, beta_T) = _t(T), _ends(T, beta_1, beta_T)
    x = _ramp(t, double(as_real("start", start)), double(as_real("end", end)))
    up, down = _sigmoid(x).hi, _sigmoid(dd.neg(x)).hi
    return _valid(_clip(beta_1 * down + beta_T * up, beta_1, beta_T))


def sigmoid_alpha_bar(T: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999) -> Beta:
    """alpha_bar_t = (g(1) - g(t/T)) / (g(1) - g(0)), g(u) = sigmoid((start + (end - start) u) / tau).

    Each beta_t is at most `max_beta`; ``start < end`` and ``tau > 0``. From Jabri et al. 2022, "Scalable adaptive
    computation for iterative generation".
    """
    t, max_beta = _t(T), _positive("max_beta", max_beta, 1.0)
    start, end, tau = as_real("start", start), as_real("end", end), _positive("tau", tau)
    if start >= end:
        raise ValueError(f"end: {end} is not above start, {start}")
    # A difference of sigmoids is a product of hyperbolic functions; with d = (x_T - x_0) / T this leaves
    # beta_t = sigmoid(x_t) / sigmoid(x_T) * (1 - exp(-d)) / (1 - exp(-(T - t + 1) d)).
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = (dd.div(double(end_), double(tau)) for end_ in (start, end))
        span = dd.sub(high, low)
        x = dd.sub(high, dd.div(dd.mul(span, double(len(t) - t)), double(len(t))))
        d = span.hi / len(t)
        ratio = dd.div(_sigmoid(x), _sigmoid(high)).hi
        beta = np.minimum(ratio * (np.expm1(-d) / np.expm1(-d * t[::-1])), max_beta)
    return _valid(beta, "start")


def from_alpha_bar(f: Callable[[float], float] | ArrayLike, T: int | None = None) -> Beta:
    """beta_t = 1 - alpha_bar_t / alpha_bar_{t-1} from alpha_bar itself.

    Parameters
    ----------
    f : callable or array (T,)
        A callable on [0, 1], called with the floats t/T, t = 0..T; alpha_bar_t is then f(t/T) / f(0). Or the values
        alpha_bar_1..alpha_bar_T, below 1. Either way strictly decreasing and positive, but the last may be 0.
    T : int, optional
        The number of steps; needed with a callable.
    """
    if callable(f):
        if T is None:
            raise ValueError("T must be the number of steps if f is a callable, got None")
        alpha_bar = np.array([_value(f, u) for u in (np.append(0.0, _t(T)) / T).tolist()])
    else:
        alpha_bar = np.append(1.0, _floats("f", f))
        if T is not None and as_positive_int("T", T) != len(alpha_bar) - 1:
            raise ValueError(f"T: {T} differs from the {len(alpha_bar) - 1} values of f")
    if not (alpha_bar[0] < np.inf and (alpha_bar[:-1] > alpha_bar[1:]).all()):
        raise ValueError("f: alpha_bar has to fall strictly, and from below 1 at t = 1")
    drop = alpha_bar[:-1] - alpha_bar[1:]  # exact to half a unit; the plain quotient's difference from 1 is not
    return _valid(drop / alpha_bar[:-1], "f")


def zero_terminal_snr(beta: ArrayLike) -> Beta:
    """The same schedule with sqrt(alpha_bar) shifted and scaled so that alpha_bar_T = 0, alpha_bar_1 kept [Lin alg. 1].

    A schedule that ends at 0 already is returned as it is; of one step it gives 1.
    """
    beta = checked(beta)
    if beta[-1] == 1 or len(beta) == 1:
        return np.append(beta[:-1], 1.0)
    # With g_t = 1 - sqrt(alpha_bar_T / alpha_bar_t), the new alpha_t is alpha_t (g_t / g_{t-1})**2.
    alpha = dd.two_sum(1.0, -beta)
    log = dd.cumsum(dd.log(alpha))
    change = dd.sub(Double(log.hi[-1], log.lo[-1]), log)
    g = dd.expm1(Double(change.hi / 2, change.lo / 2))
    g_s, g_t, alpha = (Double(x.hi[i], x.lo[i]) for x, i in ((g, np.s_[:-1]), (g, np.s_[1:]), (alpha, np.s_[1:])))
    ratio = dd.div(g_t, g_s)
    new = dd.sub(double(1.0), dd.mul(alpha, dd.mul(ratio, ratio)))
    return _valid(np.append(beta[:1], new.hi))


NAMES: dict[str, Callable[..., Beta]] = {
    f.__name__: f for f in (linear, quadratic, geometric, constant, warmup, jsd, cosine, sigmoid, sigmoid_alpha_bar)
}
"""Each schedule's function by its name."""


def checked(beta: ArrayLike) -> Beta:
    """A read-only float64 copy of beta_1..beta_T.

    Raises `ValueError` unless it is a non-empty sequence with 0 < beta_t < 1 (beta_T = 1 is allowed).
    """
    copy = _valid(_floats("beta", beta))
    copy.flags.writeable = False
    return copy


def _valid(beta: Beta, name: str = "beta") -> Beta:
    inside = (beta > 0) & (beta < 1)
    inside[-1] |= beta[-1] == 1
    if not inside.all():
        i = int(np.argmin(inside))
        raise ValueError(f"{name} must be in (0, 1), got beta_{i + 1} = {beta[i]}; only beta_{len(beta)} may be 1")
    return beta


def _floats(name: str, values: Any) -> Beta:
    """A float64 copy of a non-empty 1-D sequence of real numbers."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):  # ragged, or on a device
        array = np.asarray(None)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be a sequence of numbers, got {type(values).__name__}")
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} must be a non-empty sequence of shape (T,), got shape {array.shape}")
    return array.astype(np.float64)


def _value(f: Callable[[float], Any], u: float) -> float:
    try:
        return float(f(u))
    except (TypeError, ValueError) as error:
        raise TypeError(f"f: f({u}) is no number: {error}") from error


def _t(T: int) -> Beta:
    """The steps 1..T as floats."""
    T = as_positive_int("T", T)
    with allocating("T", T):
        np.empty((_WORKSPACE, T))  # as much as the arithmetic needs: refused here, not half way
        return np.arange(1.0, T + 1.0)


def _positive(name: str, value: float, high: float = np.inf) -> float:
    """A number in (0, high]."""
    value = as_real(name, value, 0.0, high)
    if value == 0:
        raise ValueError(f"{name}: 0 is not positive")
    return value


def _ends(T: int, beta_1: float, beta_T: float) -> tuple[float, float]:
    beta_1, beta_T = _positive("beta_1", beta_1, 1.0), _positive("beta_T", beta_T, 1.0)
    if beta_1 == 1 and T > 1:
        raise ValueError("beta_1: 1 is allowed for the last step only")
    return beta_1, beta_T


def _between(t: Beta, first: float, last: float) -> Beta:
    """From `first` to `last` in equal steps: a sum of positive terms, so nothing cancels, and both ends are exact."""
    n = max(len(t) - 1, 1)
    return _clip((n + 1 - t) / n * first + (t - 1) / n * last, first, last)


def _ramp(t: Beta, first: Double, last: Double) -> Double:
    """The same in double-double, of any sign."""
    n = max(len(t) - 1, 1)
    total = dd.add(dd.mul(double(n + 1 - t), first), dd.mul(double(t - 1), last))
    return dd.div(total, double(n))


def _clip(beta: Beta, first: float, last: float) -> Beta:
    return np.clip(beta, min(first, last), max(first, last))


def _pinned(beta: Beta, first: float, last: float) -> Beta:
    """Within the ends and, whatever the rounding, at them."""
    beta[-1], beta[0] = last, first  # in this order: one step is the first
    return _clip(beta, first, last)


def _sigmoid(x: Double) -> Double:
    """1 / (1 + exp(-x)), without overflow."""
    below = x.hi < 0
    e = dd.exp(dd.where(below, x, dd.neg(x)))
    return dd.div(dd.where(below, e, double(1.0)), dd.add(e, double(1.0)))


_WORKSPACE = 32
