"""The formulas as printed, in decimal arithmetic of 60 digits, with Python's standard library only.

Identities and tests compare the library with this module; nothing here is rearranged for accuracy. A float enters as the exact
number that it is. Call everything inside `exactly()`.
"""

from __future__ import annotations

import decimal
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from decimal import Decimal
from itertools import accumulate, pairwise
from operator import mul
from typing import Any

PI = Decimal("3.1415926535897932384626433832795028841971693993751058209749445923078164062862")


def exactly(digits: int = 60) -> AbstractContextManager[Any]:
    """Return a context in which this thread's decimal arithmetic has `digits` digits and exponents of any size."""
    return decimal.localcontext(decimal.Context(prec=digits, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX))


def cos(x: Decimal) -> Decimal:
    """The cosine for 0 <= x <= 2, by its power series."""
    total, term = Decimal(0), Decimal(1)
    for k in range(1, 64, 2):
        total += term
        term *= -x * x / (k * (k + 1))
    return total


# Schedules: beta_t as a function of t, T and the schedule's arguments.


def _line(t: int, T: int, first: Decimal, last: Decimal) -> Decimal:
    """The t-th of T numbers from `first` to `last` at equal distances."""
    return first + (last - first) * (t - 1) / max(T - 1, 1)


def _sigmoid(x: Decimal) -> Decimal:
    return 1 / (1 + (-x).exp())


def _from_alpha_bar(f: Callable[[int], Decimal], t: int, T: int, max_beta: float) -> Decimal:
    """beta_t = 1 - f(t) / f(t - 1), at most `max_beta`."""
    return Decimal(1) if t == T and max_beta == 1 else min(1 - f(t) / f(t - 1), Decimal(max_beta))


def linear(t: int, T: int, beta_1: float = 1e-4, beta_T: float = 0.02) -> Decimal:
    return _line(t, T, Decimal(beta_1), Decimal(beta_T))


def quadratic(t: int, T: int, beta_1: float = 1e-4, beta_T: float = 0.02) -> Decimal:
    return _line(t, T, Decimal(beta_1).sqrt(), Decimal(beta_T).sqrt()) ** 2


def geometric(t: int, T: int, beta_1: float = 1e-4, beta_T: float = 0.02) -> Decimal:
    return _line(t, T, Decimal(beta_1).ln(), Decimal(beta_T).ln()).exp()


def warmup(t: int, T: int, beta_1: float = 1e-4, beta_T: float = 0.02, fraction: float = 0.1) -> Decimal:
    rising = round(T * fraction)
    return linear(t, rising, beta_1, beta_T) if t <= rising else Decimal(beta_T)


def jsd(t: int, T: int) -> Decimal:
    return 1 / Decimal(T - t + 1)


def cosine(t: int, T: int, s: float = 0.008, max_beta: float = 0.999) -> Decimal:
    shift = Decimal(s)
    return _from_alpha_bar(lambda t: cos((Decimal(t) / T + shift) / (1 + shift) * PI / 2) ** 2, t, T, max_beta)


def sigmoid(t: int, T: int, beta_1: float = 1e-4, beta_T: float = 0.02, start: float = -6.0, end: float = 6.0) -> Decimal:
    first, last = Decimal(beta_1), Decimal(beta_T)
    return first + (last - first) * _sigmoid(_line(t, T, Decimal(start), Decimal(end)))


def sigmoid_alpha_bar(
    t: int, T: int, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
) -> Decimal:
    low, high, width = Decimal(start), Decimal(end), Decimal(tau)

    def f(t: int) -> Decimal:
        return _sigmoid(high / width) - _sigmoid((low + (high - low) * t / T) / width)

    return _from_alpha_bar(f, t, T, max_beta)


SCHEDULES: dict[str, Callable[..., Decimal]] = {
    f.__name__: f for f in (linear, quadratic, geometric, warmup, jsd, cosine, sigmoid, sigmoid_alpha_bar)
}


def zero_terminal_snr(beta: Iterable[float]) -> list[Decimal]:
    """[Lin alg. 1], line by line, with alpha_bar_0 = 1 before and after."""
    root = [a.sqrt() for a in Chain(beta).alpha_bar[1:]]
    first, last = root[0], root[-1]
    alpha_bar = [Decimal(1), *(((r - last) * first / (first - last)) ** 2 for r in root)]
    return [1 - b / a for a, b in pairwise(alpha_bar)]


# Tables and weights.


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
        return a_s.sqrt() * beta / (1 - a_t), (a_t / a_s).sqrt() * kept, beta * kept

    def to_x0(self, kind: str, t: int) -> tuple[Decimal, Decimal]:
        """(a, b) of x_0 = a * value + b * x_t for a prediction of this kind."""
        a, var = self.alpha_bar[t].sqrt(), 1 - self.alpha_bar[t]
        w_x0, w_xt, _ = self.weights(t, t - 1)
        forms = {
            "x0": (Decimal(1), Decimal(0)),
            "eps": (-var.sqrt() / a, 1 / a),
            "v": (-var.sqrt(), a),
            "score": (var / a, 1 / a),
            "mu": (1 / w_x0, -w_xt / w_x0),
        }
        return forms[kind]

    def convert(self, source: str, target: str, t: int) -> tuple[Decimal, Decimal]:
        """(a, b) of target = a * source + b * x_t, through x_0."""
        (a, b), (c, e) = self.to_x0(source, t), self.to_x0(target, t)
        return a / c, (b - e) / c


# Gaussians.


def kl(mean1: float, log_var1: float, mean2: float, log_var2: float) -> Decimal:
    """KL(N(mean1, exp(log_var1)) || N(mean2, exp(log_var2)))."""
    m1, l1, m2, l2 = map(Decimal, (mean1, log_var1, mean2, log_var2))
    return ((l1 - l2).exp() - 1 - (l1 - l2) + (m1 - m2) ** 2 / l2.exp()) / 2


def log_upper(z: Decimal) -> Decimal:
    """The log of the standard normal's mass above z: erf's series near 0, Laplace's continued fraction from 4 on."""
    if z < 0:
        tail = log_upper(-z).exp()
        return (1 - tail).ln() if tail > Decimal("1e-20") else -tail - tail**2 / 2 - tail**3 / 3
    if z < 4:
        total, term = Decimal(0), z
        for k in range(3, 301, 2):
            total += term
            term *= z * z / k
        return (Decimal("0.5") - total * (-z * z / 2).exp() / (2 * PI).sqrt()).ln()
    mills = z
    for k in range(200, 0, -1):
        mills = z + k / mills
    return -z * z / 2 - (mills * (2 * PI).sqrt()).ln()


def log_mass(level: int, levels: int, mean: float, log_std: float) -> Decimal:
    """The log of the mass of N(mean, exp(log_std)**2) in a level's bin; the first and the last bin are open-ended."""
    n = levels - 1
    low, high = _ends(level, n, mean, log_std)
    if level == n or (level > 0 and low + high > 0):
        near, far, is_open = low, high, level == n
    else:
        near, far, is_open = -high, -low, level == 0
    log = log_upper(near)
    return log if is_open else log + (1 - (log_upper(far) - log).exp()).ln()


def log_mass_gradient(level: int, levels: int, mean: float, log_std: float) -> tuple[Decimal, Decimal]:
    """The derivatives of `log_mass` with respect to mean and log_std."""
    n, log = levels - 1, log_mass(level, levels, mean, log_std)
    ends = _ends(level, n, mean, log_std)
    low, high = ((-z * z / 2 - log).exp() / (2 * PI).sqrt() for z in ends)
    low, high = low * (level > 0), high * (level < n)
    return (low - high) / Decimal(log_std).exp(), ends[0] * low - ends[1] * high


def _ends(level: int, n: int, mean: float, log_std: float) -> tuple[Decimal, Decimal]:
    """The ends of a bin, in standard deviations from the mean."""
    low, high = ((Decimal(2 * level + side - n) / n - Decimal(mean)) / Decimal(log_std).exp() for side in (-1, 1))
    return low, high
