"""Schedules that are defined by alpha_bar: beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}, without the quotient's cancellation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from tinyddpm._arrays.check import as_positive, as_positive_int, as_real
from tinyddpm._numerics import double as dd
from tinyddpm._numerics.double import double
from tinyddpm._schedules.beta import Beta, as_floats, checked, logistic, steps, valid


@np.errstate(all="ignore")
def cosine(T: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Beta:
    r"""A squared cosine as alpha_bar.

    .. math:: \bar\alpha_t = f(t) / f(0), \quad f(t) = \cos^2\!\left(\frac{t/T + s}{1 + s} \cdot \frac\pi2\right)
       \qquad \text{[iDDPM eq. 17]}

    Parameters
    ----------
    T : int
        The number of steps.
    s : float
        Offset that keeps the first betas from being tiny; not negative.
    max_beta : float
        Upper limit of each beta_t, in (0, 1]; with 1, beta_T = 1.

    Returns
    -------
    float64 array (T,)
        beta_1..beta_T.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.

    Examples
    --------
    >>> cosine(4).round(4).tolist()
    [0.153, 0.417, 0.7079, 0.999]
    """
    t, s, max_beta = steps(T), as_real("s", s, 0.0), as_positive("max_beta", max_beta, 1.0)
    # With f(t-1) = cos(a)**2 and f(t) = cos(b)**2, beta_t = sin(b - a) sin(a + b) / cos(a)**2. Angles are counted in units
    # of h = b - a from the nearer end, so that no sine is taken next to pi.
    h, left = np.pi / 2 / len(t) / (1 + s), t[::-1]
    both = np.sin(np.minimum(2 * t - 1 + 2 * s * len(t), 2 * left - 1) * h)
    return valid(np.minimum(np.sin(h) * both / np.sin(left * h) ** 2, max_beta), "s must give betas")


@np.errstate(all="ignore")
def sigmoid_alpha_bar(T: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999) -> Beta:
    r"""A falling sigmoid as alpha_bar.

    .. math:: \bar\alpha_t = \frac{g(1) - g(t/T)}{g(1) - g(0)}, \quad
       g(u) = \operatorname{sigmoid}\frac{\text{start} + (\text{end} - \text{start})\, u}{\tau}
       \qquad \text{[Jabri et al. 2022, "Scalable adaptive computation for iterative generation"]}

    Parameters
    ----------
    T : int
        The number of steps.
    start, end : float
        The sigmoid's argument at t = 0 and at t = T, before the division by `tau`; start < end.
    tau : float
        Temperature, positive.
    max_beta : float
        Upper limit of each beta_t, in (0, 1].

    Returns
    -------
    float64 array (T,)
        beta_1..beta_T.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range, or a beta_t is not positive in float64.

    Examples
    --------
    >>> sigmoid_alpha_bar(4).round(4).tolist()
    [0.1491, 0.4124, 0.7017, 0.999]
    """
    t, max_beta = steps(T), as_positive("max_beta", max_beta, 1.0)
    start, end, tau = as_real("start", start), as_real("end", end), as_positive("tau", tau)
    if start >= end:
        raise ValueError(f"end must be greater than start, {start}, got {end}")
    # A difference of sigmoids is a product of hyperbolic functions; with d = (x_T - x_0) / T this leaves
    # beta_t = sigmoid(x_t) / sigmoid(x_T) * (1 - exp(-d)) / (1 - exp(-(T - t + 1) d)).
    low, high = (dd.div(double(x), double(tau)) for x in (start, end))
    span = dd.sub(high, low)
    x = dd.sub(high, dd.div(dd.mul(span, double(len(t) - t)), double(len(t))))
    d = span.hi / len(t)
    ratio = dd.div(logistic(x), logistic(high)).hi
    return valid(np.minimum(ratio * (np.expm1(-d) / np.expm1(-d * t[::-1])), max_beta), "start must give betas")


def from_alpha_bar(f: Callable[[float], float] | ArrayLike, T: int | None = None) -> Beta:
    r"""The betas of given alpha_bar.

    .. math:: \beta_t = 1 - \bar\alpha_t / \bar\alpha_{t-1}

    Parameters
    ----------
    f : callable or array (T,)
        A function on [0, 1]; alpha_bar_t is then f(t/T) / f(0). Or the values alpha_bar_1..alpha_bar_T, below 1. Either way
        positive and strictly decreasing, but the last value may be 0.
    T : int, optional
        The number of steps; needed if `f` is a callable.

    Returns
    -------
    float64 array (T,)
        beta_1..beta_T.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type, `T` is missing or is not the number of values, or alpha_bar does not decrease.

    Examples
    --------
    >>> from_alpha_bar([0.5, 0.25, 0.0]).tolist()
    [0.5, 0.5, 1.0]
    """
    if not callable(f):
        alpha_bar = np.append(1.0, as_floats("f", f))
        if T is not None and as_positive_int("T", T) != len(alpha_bar) - 1:
            raise ValueError(f"T must be the number of values of f, {len(alpha_bar) - 1}, got {T}")
    elif T is None:
        raise ValueError("T must be the number of steps if f is a callable, got None")
    else:
        alpha_bar = np.array([_value(f, u) for u in (np.append(0.0, steps(T)) / T).tolist()])
    if not (alpha_bar[0] < np.inf and (alpha_bar[:-1] > alpha_bar[1:]).all()):
        raise ValueError("f must decrease strictly from f(0), or from below 1 if f is an array")
    with np.errstate(all="ignore"):
        drop = alpha_bar[:-1] - alpha_bar[1:]  # exact to half a unit; the plain quotient's difference from 1 is not
        return valid(drop / alpha_bar[:-1], "f must give betas")


def _value(f: Callable[[float], float], u: float) -> float:
    """f(u) as a float."""
    try:
        return float(f(u))
    except (TypeError, ValueError) as error:
        raise TypeError(f"f must return a number, got an error at f({u}): {error}") from error


@np.errstate(all="ignore")
def zero_terminal_snr(beta: ArrayLike) -> Beta:
    r"""Shift and scale sqrt(alpha_bar) so that it ends at 0 and keeps its first value.

    .. math:: \sqrt{\bar\alpha_t'} = \sqrt{\bar\alpha_1}\, \frac{\sqrt{\bar\alpha_t} - \sqrt{\bar\alpha_T}}
       {\sqrt{\bar\alpha_1} - \sqrt{\bar\alpha_T}}  \qquad \text{[Lin et al. 2023, alg. 1]}

    Parameters
    ----------
    beta : array (T,)
        beta_1..beta_T.

    Returns
    -------
    float64 array (T,)
        The new betas, with beta_T = 1. The same if beta_T was 1 already; [1.0] if T = 1.

    Raises
    ------
    TypeError, ValueError
        If `beta` is not a schedule.

    Examples
    --------
    >>> zero_terminal_snr([0.1, 0.2, 0.3]).round(4).tolist()
    [0.1, 0.663, 1.0]
    """
    beta = checked(beta)
    if beta[-1] == 1 or len(beta) == 1:
        return np.append(beta[:-1], 1.0)
    # With g_t = 1 - sqrt(alpha_bar_T / alpha_bar_t), the new alpha_t is alpha_t (g_t / g_{t-1})**2.
    alpha = dd.two_sum(1.0, -beta)
    log = dd.cumsum(dd.log(alpha))
    g = dd.expm1(dd.half(dd.sub(log.at(-1), log)))
    ratio = dd.div(g.at(slice(1, None)), g.at(slice(None, -1)))
    new = dd.sub(double(1.0), dd.mul(alpha.at(slice(1, None)), dd.mul(ratio, ratio)))
    return valid(np.append(beta[:1], new.hi))
