"""The truth in 60-digit arithmetic: the printed formulas, evaluated without any of the library's rearrangements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import mpmath
import numpy as np

mp = mpmath.mp.clone()
mp.dps = 60

Exact = Any  # an mpf


def ulp_error(value: float, exact: Exact) -> float:
    """|value - exact| in units in the last place of the float64 nearest to `exact`."""
    if mp.isinf(exact) or mp.isnan(exact) or not math.isfinite(value):
        return 0.0 if float(exact) == value else math.inf
    return float(abs(mp.mpf(float(value)) - exact) / mp.mpf(float(np.spacing(abs(float(exact))))))


def worst_ulp(values: Any, exact: Sequence[Exact]) -> float:
    """The largest `ulp_error` over a sequence."""
    return max((ulp_error(float(v), e) for v, e in zip(values, exact, strict=True)), default=0.0)


def exact(value: float) -> Exact:
    """A float64 as the exact number it is."""
    return mp.mpf(float(value))


# Schedules: each gives beta_t as a function of t.


def _position(t: int, T: int) -> Exact:
    return mp.mpf(t - 1) / max(T - 1, 1)


def _line(t: int, T: int, first: Exact, last: Exact) -> Exact:
    return first + (last - first) * _position(t, T)


def linear(t: int, T: int, beta_1: float, beta_T: float) -> Exact:
    return _line(t, T, exact(beta_1), exact(beta_T))


def quadratic(t: int, T: int, beta_1: float, beta_T: float) -> Exact:
    return _line(t, T, mp.sqrt(exact(beta_1)), mp.sqrt(exact(beta_T))) ** 2


def geometric(t: int, T: int, beta_1: float, beta_T: float) -> Exact:
    return exact(beta_1) * (exact(beta_T) / exact(beta_1)) ** _position(t, T)


def warmup(t: int, T: int, beta_1: float, beta_T: float, fraction: float) -> Exact:
    rising = round(T * fraction)
    return _line(t, rising, exact(beta_1), exact(beta_T)) if t <= rising else exact(beta_T)


def jsd(t: int, T: int) -> Exact:
    return mp.mpf(1) / (T - t + 1)


def cosine(t: int, T: int, s: float, max_beta: float) -> Exact:
    def f(t: int) -> Exact:
        return mp.cos((mp.mpf(t) / T + exact(s)) / (1 + exact(s)) * mp.pi / 2) ** 2

    return mp.mpf(1) if t == T and max_beta == 1 else min(1 - f(t) / f(t - 1), exact(max_beta))


def _sigmoid(x: Exact) -> Exact:
    return 1 / (1 + mp.exp(-x))


def sigmoid(t: int, T: int, beta_1: float, beta_T: float, start: float, end: float) -> Exact:
    return exact(beta_1) + (exact(beta_T) - exact(beta_1)) * _sigmoid(_line(t, T, exact(start), exact(end)))


def sigmoid_alpha_bar(t: int, T: int, start: float, end: float, tau: float, max_beta: float) -> Exact:
    low, high, tau = exact(start), exact(end), exact(tau)

    def f(t: int) -> Exact:
        return _sigmoid(high / tau) - _sigmoid((low + (high - low) * mp.mpf(t) / T) / tau)

    return mp.mpf(1) if t == T and max_beta == 1 else min(1 - f(t) / f(t - 1), exact(max_beta))


def zero_terminal_snr(beta: Any) -> list[Exact]:
    """[Lin alg. 1], line by line, with alpha_bar_0 = 1 before and after."""
    root = [mp.sqrt(a) for a in Tables(beta).alpha_bar[1:]]
    first, last = root[0], root[-1]
    root = [(r - last) * first / (first - last) for r in root]
    alpha_bar = [mp.mpf(1)] + [r**2 for r in root]
    return [1 - b / a for a, b in pairwise(alpha_bar)]


class Tables:
    """The tables and weights of a `Diffusion`, exact for the float64 betas beta_1..beta_T; indexed by the paper's t."""

    def __init__(self, beta: Any) -> None:
        self.beta = [mp.mpf(0)] + [exact(b) for b in np.asarray(beta, dtype=np.float64)]
        self.T = len(self.beta) - 1

    @cached_property
    def alpha_bar(self) -> list[Exact]:
        """All of alpha_bar_0..alpha_bar_T."""
        product = [mp.mpf(1)]
        for b in self.beta[1:]:
            product.append(product[-1] * (1 - b))
        return product

    def alpha(self, t: int) -> Exact:
        return 1 - self.beta[t]

    def one_minus_alpha_bar(self, t: int) -> Exact:
        return 1 - self.alpha_bar[t]

    def log_snr(self, t: int) -> Exact:
        a = self.alpha_bar[t]
        return mp.inf if a == 1 else -mp.inf if a == 0 else mp.log(a) - mp.log(1 - a)

    def beta_between(self, t: int, s: int) -> Exact:
        """beta_{t|s}, the variance of q(x_t | x_s)."""
        return 1 - self.alpha_bar[t] / self.alpha_bar[s]

    def beta_tilde(self, t: int, s: int | None = None) -> Exact:
        """The variance of q(x_s | x_t, x_0)."""
        s = t - 1 if s is None else s
        return (1 - self.alpha_bar[s]) / (1 - self.alpha_bar[t]) * self.beta_between(t, s)

    def posterior_weights(self, t: int, s: int | None = None) -> tuple[Exact, Exact, Exact]:
        """(w_x0, w_xt, var) of q(x_s | x_t, x_0)."""
        s = t - 1 if s is None else s
        a_t, a_s = self.alpha_bar[t], self.alpha_bar[s]
        w_x0 = mp.sqrt(a_s) * self.beta_between(t, s) / (1 - a_t)
        return w_x0, mp.sqrt(a_t / a_s) * (1 - a_s) / (1 - a_t), self.beta_tilde(t, s)


# Gaussians.


def _log_upper(z: Exact) -> Exact:
    """The log of the normal's mass above z."""
    return mp.log(mp.erfc(z / mp.sqrt(2)) / 2)


def log_ndtr(z: float) -> Exact:
    """The log of the normal CDF."""
    return _log_upper(-exact(z))


def bin_ends(level: int, levels: int) -> tuple[Exact, Exact]:
    """The ends of a level's bin, the first and the last open."""
    n = levels - 1
    low = -mp.inf if level == 0 else mp.mpf(2 * level - 1 - n) / n
    return low, mp.inf if level == n else mp.mpf(2 * level + 1 - n) / n


def log_mass(level: int, levels: int, mean: Exact, log_std: Exact) -> Exact:
    """The log of N(mean, exp(log_std)**2)'s mass in a level's bin."""
    low, high = ((end - mean) / mp.exp(log_std) for end in bin_ends(level, levels))
    if low + high < 0:
        low, high = -high, -low
    upper = mp.erfc(low / mp.sqrt(2)) - (0 if mp.isinf(high) else mp.erfc(high / mp.sqrt(2)))
    return mp.log(upper / 2)


def log_mass_gradient(level: int, levels: int, mean: float, log_std: float) -> tuple[Exact, Exact]:
    """The gradient of `log_mass` with respect to mean and log_std."""
    std = mp.exp(exact(log_std))
    ends = [(end - exact(mean)) / std for end in bin_ends(level, levels)]
    log = log_mass(level, levels, exact(mean), exact(log_std))
    low, high = (mp.mpf(0) if mp.isinf(z) else mp.exp(-(z**2) / 2 - log) / mp.sqrt(2 * mp.pi) for z in ends)
    z_low, z_high = (mp.mpf(0) if mp.isinf(z) else z for z in ends)
    return (low - high) / std, z_low * low - z_high * high


def kl(mean1: float, log_var1: float, mean2: float, log_var2: float) -> Exact:
    m1, v1, m2, v2 = exact(mean1), exact(log_var1), exact(mean2), exact(log_var2)
    return (mp.exp(v1 - v2) - 1 - (v1 - v2) + (m1 - m2) ** 2 * mp.exp(-v2)) / 2


def kl_full(mean1: Any, cov1: Any, mean2: Any, cov2: Any) -> Exact:
    """[log|S2|/|S1| - d + tr(S2^-1 S1) + (m2 - m1)^T S2^-1 (m2 - m1)] / 2."""
    a, b = (mp.matrix(np.asarray(c).tolist()) for c in (cov1, cov2))
    gap = mp.matrix([exact(p) - exact(q) for p, q in zip(mean2, mean1, strict=True)])
    inverse = b**-1
    trace = sum((inverse * a)[i, i] for i in range(a.rows))
    return (mp.log(mp.det(b)) - mp.log(mp.det(a)) - a.rows + trace + (gap.T * inverse * gap)[0]) / 2


SCHEDULES: dict[str, Callable[..., Exact]] = {
    f.__name__: f for f in (linear, quadratic, geometric, warmup, jsd, cosine, sigmoid, sigmoid_alpha_bar)
}
