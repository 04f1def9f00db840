"""The truth in 60-digit decimal arithmetic, by Python's standard library: the printed formulas, nothing rearranged.

Floats enter as the exact numbers that they are. Call everything here inside `exactly()`.
"""

from __future__ import annotations

import decimal
from collections.abc import Iterable
from contextlib import AbstractContextManager
from decimal import Decimal
from itertools import accumulate
from operator import mul
from typing import Any

PI = Decimal("3.1415926535897932384626433832795028841971693993751058209749445923078164062862")
_CONTEXT = decimal.Context(prec=60, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX)


def exactly() -> AbstractContextManager[Any]:
    """Arithmetic with 60 digits, and exponents for likelihoods of any size, on this thread while the context lasts."""
    return decimal.localcontext(_CONTEXT)


def sqrt(x: Decimal) -> Decimal:
    """The square root."""
    return x.sqrt()


def cos(x: Decimal) -> Decimal:
    """The cosine for 0 <= x <= 2, by its series."""
    total, term = Decimal(0), Decimal(1)
    for k in range(1, 64, 2):
        total += term
        term *= -x * x / (k * (k + 1))
    return total


class Chain:
    """Tables and weights of the chain with the float64 betas beta_1..beta_T, indexed by the paper's t."""

    def __init__(self, beta: Iterable[float]) -> None:
        self.beta = [Decimal(0), *map(Decimal, beta)]
        self.alpha_bar: list[Decimal] = list(accumulate((1 - b for b in self.beta), mul))

    def log_snr(self, t: int) -> Decimal:
        """log(alpha_bar_t / (1 - alpha_bar_t)); -inf at alpha_bar_t = 0."""
        return (self.alpha_bar[t] / (1 - self.alpha_bar[t])).ln()

    def beta_between(self, t: int, s: int) -> Decimal:
        """beta_{t|s}, the variance of q(x_t | x_s)."""
        return 1 - self.alpha_bar[t] / self.alpha_bar[s]

    def weights(self, t: int, s: int) -> tuple[Decimal, Decimal, Decimal]:
        """(w_x0, w_xt, variance) of q(x_s | x_t, x_0)."""
        a_t, a_s, beta = self.alpha_bar[t], self.alpha_bar[s], self.beta_between(t, s)
        kept = (1 - a_s) / (1 - a_t)
        return sqrt(a_s) * beta / (1 - a_t), sqrt(a_t / a_s) * kept, beta * kept

    def to_x0(self, kind: str, t: int) -> tuple[Decimal, Decimal]:
        """(a, b) of x_0 = a * value + b * x_t for a prediction of this kind."""
        a, var = sqrt(self.alpha_bar[t]), 1 - self.alpha_bar[t]
        w_x0, w_xt, _ = self.weights(t, t - 1)
        forms = {
            "x0": (Decimal(1), Decimal(0)),
            "eps": (-sqrt(var) / a, 1 / a),
            "v": (-sqrt(var), a),
            "score": (var / a, 1 / a),
            "mu": (1 / w_x0, -w_xt / w_x0),
        }
        return forms[kind]

    def convert(self, source: str, target: str, t: int) -> tuple[Decimal, Decimal]:
        """(a, b) of target = a * source + b * x_t, by way of x_0."""
        (a, b), (c, e) = self.to_x0(source, t), self.to_x0(target, t)
        return a / c, (b - e) / c


def kl(mean1: float, log_var1: float, mean2: float, log_var2: float) -> Decimal:
    """KL(N(mean1, exp(log_var1)) || N(mean2, exp(log_var2)))."""
    m1, l1, m2, l2 = map(Decimal, (mean1, log_var1, mean2, log_var2))
    return ((l1 - l2).exp() - 1 - (l1 - l2) + (m1 - m2) ** 2 / l2.exp()) / 2


def log_upper(z: Decimal) -> Decimal:
    """The log of the standard normal's mass above z: erf's series next to 0, Laplace's continued fraction beyond 4."""
    if z < 0:
        tail = log_upper(-z).exp()
        return (1 - tail).ln() if tail > Decimal("1e-20") else -tail - tail**2 / 2 - tail**3 / 3
    if z < 4:
        total, term = Decimal(0), z
        for k in range(3, 301, 2):
            total += term
            term *= z * z / k
        return (Decimal("0.5") - total * (-z * z / 2).exp() / sqrt(2 * PI)).ln()
    mills = z
    for k in range(200, 0, -1):
        mills = z + k / mills
    return -z * z / 2 - (mills * sqrt(2 * PI)).ln()


def log_mass(level: int, levels: int, mean: float, log_std: float) -> Decimal:
    """The log of N(mean, exp(log_std)**2)'s mass in a level's bin; the first and the last bin are open-ended."""
    n = levels - 1
    low, high = _ends(level, n, mean, log_std)
    if level == n or (level > 0 and low + high > 0):
        near, far, is_open = low, high, level == n
    else:
        near, far, is_open = -high, -low, level == 0
    log = log_upper(near)
    return log if is_open else log + (1 - (log_upper(far) - log).exp()).ln()


def log_mass_slope(level: int, levels: int, mean: float, log_std: float) -> Decimal:
    """The derivative of `log_mass` with respect to the mean."""
    n, log = levels - 1, log_mass(level, levels, mean, log_std)
    low, high = ((-z * z / 2 - log).exp() / sqrt(2 * PI) for z in _ends(level, n, mean, log_std))
    return ((level > 0) * low - (level < n) * high) / Decimal(log_std).exp()


def _ends(level: int, n: int, mean: float, log_std: float) -> tuple[Decimal, Decimal]:
    """A bin's ends in deviations from the mean."""
    low, high = ((Decimal(2 * level + side - n) / n - Decimal(mean)) / Decimal(log_std).exp() for side in (-1, 1))
    return low, high
