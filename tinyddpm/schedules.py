r"""Variance schedules: each function returns beta_1..beta_T, a float64 array of shape (T,).

Every schedule is within a few units in the last place of its formula in exact arithmetic, with the arguments taken as the
float64 numbers that they are. If the formula is a quotient of alpha_bar, ``1 - f(t) / f(t-1)`` would cancel; a product form of
the same quantity is evaluated instead.

`NAMES` maps each schedule's name to its function. `from_alpha_bar` and `zero_terminal_snr` transform what they are given.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tinyddpm._arrays.check import as_real
from tinyddpm._numerics import double as dd
from tinyddpm._numerics.double import double
from tinyddpm._schedules.alpha_bar import cosine, from_alpha_bar, sigmoid_alpha_bar, zero_terminal_snr
from tinyddpm._schedules.beta import Beta, checked, clip, double_ramp, logistic, pinned, ramp, steps, steps_and_ends, valid

__all__ = [
    "NAMES", "checked", "constant", "cosine", "from_alpha_bar", "geometric", "jsd", "linear", "quadratic", "sigmoid",
    "sigmoid_alpha_bar", "warmup", "zero_terminal_snr",
]  # fmt: skip


@np.errstate(all="ignore")
def linear(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Beta:
    r"""From beta_1 to beta_T in equal steps.

    .. math:: \beta_t = \beta_1 + \frac{t - 1}{T - 1} (\beta_T - \beta_1)  \qquad \text{[Ho sec. 4]}

    Parameters
    ----------
    T : int
        The number of steps. With T = 1 the only beta is beta_1.
    beta_1, beta_T : float
        The first and the last beta, in (0, 1], either the larger; beta_1 = 1 only if T = 1.

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
    >>> linear(3, 0.1, 0.3).round(4).tolist()
    [0.1, 0.2, 0.3]
    """
    t, beta_1, beta_T = steps_and_ends(T, beta_1, beta_T)
    return valid(ramp(t, beta_1, beta_T))


@np.errstate(all="ignore")
def quadratic(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Beta:
    r"""sqrt(beta_t) runs from sqrt(beta_1) to sqrt(beta_T) in equal steps ("scaled linear").

    .. math:: \sqrt{\beta_t} = \sqrt{\beta_1} + \frac{t - 1}{T - 1} (\sqrt{\beta_T} - \sqrt{\beta_1})

    Parameters
    ----------
    T, beta_1, beta_T
        As in `linear`.

    Returns
    -------
    float64 array (T,)
        beta_1..beta_T.

    Raises
    ------
    TypeError, ValueError
        As in `linear`.

    Examples
    --------
    >>> quadratic(3, 0.01, 0.09).round(4).tolist()
    [0.01, 0.04, 0.09]
    """
    t, beta_1, beta_T = steps_and_ends(T, beta_1, beta_T)
    return valid(pinned(ramp(t, beta_1**0.5, beta_T**0.5) ** 2, beta_1, beta_T))


@np.errstate(all="ignore")
def geometric(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Beta:
    r"""log(beta_t) runs from log(beta_1) to log(beta_T) in equal steps.

    .. math:: \beta_t = \beta_1 (\beta_T / \beta_1)^{(t - 1) / (T - 1)}

    Parameters
    ----------
    T, beta_1, beta_T
        As in `linear`.

    Returns
    -------
    float64 array (T,)
        beta_1..beta_T.

    Raises
    ------
    TypeError, ValueError
        As in `linear`.

    Examples
    --------
    >>> geometric(3, 0.001, 0.1).round(4).tolist()
    [0.001, 0.01, 0.1]
    """
    t, beta_1, beta_T = steps_and_ends(T, beta_1, beta_T)
    log = double_ramp(t, dd.log(double(beta_1)), dd.log(double(beta_T)))
    return valid(pinned(dd.exp(log).hi, beta_1, beta_T))


def constant(T: int = 1000, beta: float = 0.02) -> Beta:
    """The same beta at every step.

    Parameters
    ----------
    T : int
        The number of steps.
    beta : float
        In (0, 1), or 1 if T = 1.

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
    >>> constant(3, 0.1).tolist()
    [0.1, 0.1, 0.1]
    """
    t, beta = steps(T), as_real("beta", beta)
    return valid(np.full(len(t), beta))


@np.errstate(all="ignore")
def warmup(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02, fraction: float = 0.1) -> Beta:
    """Linear from beta_1 to beta_T over the first ``round(T * fraction)`` steps, then beta_T; beta_1 if T = 1.

    Parameters
    ----------
    T : int
        The number of steps.
    beta_1, beta_T : float
        The first and the last beta, as in `linear`.
    fraction : float
        The share of the steps in which beta rises, in [0, 1].

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
    >>> warmup(5, 0.1, 0.3, 0.6).round(4).tolist()
    [0.1, 0.2, 0.3, 0.3, 0.3]
    """
    t, beta_1, beta_T = steps_and_ends(T, beta_1, beta_T)
    rising = round(T * as_real("fraction", fraction, 0.0, 1.0)) if T > 1 else 1
    beta = np.full(len(t), beta_T)
    beta[:rising] = ramp(t[:rising], beta_1, beta_T)
    return valid(beta, "beta_T must be")


def jsd(T: int = 1000) -> Beta:
    r"""alpha_bar decreases to 0 in equal steps.

    .. math:: \beta_t = 1 / (T - t + 1)  \qquad \text{[Sohl-Dickstein et al. 2015, sec. 2.4.1]}

    Parameters
    ----------
    T : int
        The number of steps.

    Returns
    -------
    float64 array (T,)
        beta_1..beta_T.

    Raises
    ------
    TypeError, ValueError
        If `T` is not a positive int.

    Examples
    --------
    >>> jsd(4).round(4).tolist()
    [0.25, 0.3333, 0.5, 1.0]
    """
    return valid(1 / steps(T)[::-1])


@np.errstate(all="ignore")
def sigmoid(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02, start: float = -6.0, end: float = 6.0) -> Beta:
    r"""A sigmoid from beta_1 to beta_T. It reaches neither: the ends are not normalised.

    .. math:: \beta_t = \beta_1 + (\beta_T - \beta_1) \operatorname{sigmoid}(x_t), \quad
       x_t = \text{start} + \frac{t - 1}{T - 1} (\text{end} - \text{start})

    Parameters
    ----------
    T : int
        The number of steps. With T = 1, x_1 is `start`.
    beta_1, beta_T : float
        The limits of beta at x = -inf and x = inf, as in `linear`.
    start, end : float
        The sigmoid's argument at t = 1 and at t = T.

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
    >>> sigmoid(3, 0.1, 0.3, -1.0, 1.0).round(4).tolist()
    [0.1538, 0.2, 0.2462]
    """
    t, beta_1, beta_T = steps_and_ends(T, beta_1, beta_T)
    x = double_ramp(t, double(as_real("start", start)), double(as_real("end", end)))
    up, down = logistic(x).hi, logistic(dd.neg(x)).hi
    return valid(clip(beta_1 * down + beta_T * up, beta_1, beta_T), "start must give betas")


NAMES: dict[str, Callable[..., Beta]] = {
    f.__name__: f for f in (linear, quadratic, geometric, constant, warmup, jsd, cosine, sigmoid, sigmoid_alpha_bar)
}
"""Each schedule's function by its name."""
