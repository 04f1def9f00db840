"""Schedules, tables and weights against exact arithmetic. They are float64 on the host, whatever the dtype."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import numpy as np

from tinyddpm import Diffusion, schedules
from tinyddpm.verify._core import Laws, Place, ulp
from tinyddpm.verify._truth import PI, Chain, cos, sqrt

laws = Laws()

_T = 1000
_FIRST, _LAST, _CAP, _SHIFT = map(Decimal, (1e-4, 0.02, 0.999, 0.008))  # the floats, not the numbers printed


# Schedules: beta_t as a function of t, with the default arguments.


def _line(t: int, first: Decimal, last: Decimal, n: int = _T) -> Decimal:
    return first + (last - first) * (t - 1) / (n - 1)


def _sigmoid(x: Decimal) -> Decimal:
    return 1 / (1 + (-x).exp())


def _cosine(t: int) -> Decimal:
    def f(t: int) -> Decimal:
        return cos((Decimal(t) / _T + _SHIFT) / (1 + _SHIFT) * PI / 2) ** 2

    return min(1 - f(t) / f(t - 1), _CAP)


def _sigmoid_alpha_bar(t: int) -> Decimal:
    def f(t: int) -> Decimal:
        return _sigmoid(Decimal(3)) - _sigmoid(-3 + 6 * Decimal(t) / _T)

    return min(1 - f(t) / f(t - 1), _CAP)


_FORMULAS: dict[str, Callable[[int], Decimal]] = {
    "linear": lambda t: _line(t, _FIRST, _LAST),
    "quadratic": lambda t: _line(t, sqrt(_FIRST), sqrt(_LAST)) ** 2,
    "geometric": lambda t: (_line(t, _FIRST.ln(), _LAST.ln())).exp(),
    "constant": lambda t: _LAST,
    "warmup": lambda t: _line(t, _FIRST, _LAST, 100) if t <= 100 else _LAST,
    "jsd": lambda t: Decimal(1) / (_T - t + 1),
    "cosine": _cosine,
    "sigmoid": lambda t: _FIRST + (_LAST - _FIRST) * _sigmoid(_line(t, Decimal(-6), Decimal(6))),
    "sigmoid_alpha_bar": _sigmoid_alpha_bar,
}


def _schedule(name: str, _: Place) -> float:
    return ulp(schedules.NAMES[name](_T), map(_FORMULAS[name], range(1, _T + 1)))


for _name in _FORMULAS:
    laws.enter(f"schedules.{_name} is its formula", "ulp", fixed=16, why="the contract of schedules")(partial(_schedule, _name))


@laws.enter("schedules.from_alpha_bar is 1 - alpha_bar_t / alpha_bar_{t-1}", "ulp", fixed=16, why="the contract of schedules")
def _from_alpha_bar(_: Place) -> float:
    alpha_bar = [math.cos(1.5 * t / _T) ** 2 for t in range(1, _T + 1)]
    exact = [Decimal(1), *map(Decimal, alpha_bar)]
    return ulp(schedules.from_alpha_bar(alpha_bar), (1 - b / a for a, b in pairwise(exact)))


@laws.enter("schedules.zero_terminal_snr shifts sqrt(alpha_bar) to 0", "ulp", fixed=16, why="the contract of schedules")
def _zero_terminal_snr(_: Place) -> float:
    beta = schedules.linear(_T)
    root = [sqrt(a) for a in Chain(beta).alpha_bar]
    shifted = [Decimal(1), *((r - root[-1]) * root[1] / (root[1] - root[-1]) for r in root[1:])]
    exact = (1 - (b / a) ** 2 for a, b in pairwise(shifted))
    return ulp(schedules.zero_terminal_snr(beta), exact)


# Tables and weights, given the float64 betas.


@lru_cache(maxsize=1)
def _chains() -> list[tuple[Diffusion, Chain, list[int]]]:
    """The chains, and the steps that are looked at: all, or of 100 000 those at even ratios and where alpha_bar underflows."""
    betas = [schedules.linear(_T), schedules.cosine(_T), schedules.zero_terminal_snr(schedules.quadratic(100))]
    betas.append(schedules.linear(100_000))  # alpha_bar ends near exp(-1000)
    steps = [list(range(1, len(b) + 1)) for b in betas[:-1]]
    last = int(np.argmin(np.log1p(-betas[-1]).cumsum() > -708.4))  # alpha_bar leaves float64's normal range here
    spread = np.geomspace(1, 100_000, 400).round().astype(int)
    steps.append(np.unique([*spread, *range(last - 40, last + 400, 5)]).tolist())
    return [(Diffusion(b), Chain(b.tolist()), t) for b, t in zip(betas, steps, strict=True)]


_TABLES: dict[str, tuple[Callable[[Diffusion], Any], Callable[[Chain, int], Decimal]]] = {
    "alpha_bar": (lambda d: d.alpha_bar, lambda c, t: c.alpha_bar[t]),
    "one_minus_alpha_bar": (lambda d: d.one_minus_alpha_bar, lambda c, t: 1 - c.alpha_bar[t]),
    "sqrt(alpha_bar)": (lambda d: d.sqrt_alpha_bar, lambda c, t: sqrt(c.alpha_bar[t])),
    "sqrt(1 - alpha_bar)": (lambda d: d.sqrt_one_minus_alpha_bar, lambda c, t: sqrt(1 - c.alpha_bar[t])),
    "beta_tilde": (lambda d: d.beta_tilde, lambda c, t: c.weights(t, t - 1)[2]),
    "the posterior's weight of x_0": (lambda d: d.weights.w_x0, lambda c, t: c.weights(t, t - 1)[0]),
    "the posterior's weight of x_t": (lambda d: d.weights.w_xt, lambda c, t: c.weights(t, t - 1)[1]),
}
_WHY = "the contract of the tables, T up to 100 000"


def _table(name: str, _: Place) -> float:
    table, exact = _TABLES[name]
    return max(ulp(table(d)[steps], (exact(c, t) for t in steps)) for d, c, steps in _chains())


for _name in _TABLES:
    laws.enter(f"{_name} against exact arithmetic", "ulp", fixed=4, why=_WHY)(partial(_table, _name))


@laws.enter("log_snr against exact arithmetic", "ulp", fixed=4, why=f"{_WHY}; a unit is at least 2.5e-29, for its zero")
def _log_snr(_: Place) -> float:
    return max(ulp(d.log_snr[steps], (c.log_snr(t) for t in steps), floor=2.5e-29) for d, c, steps in _chains())


def _moves(d: Diffusion, steps: list[int]) -> list[tuple[int, int]]:
    """Moves (t, s) of every length."""
    return [(t, s) for t in (*steps[2::37], steps[-1]) for s in {0, 1, t // 3, t - 2} if 0 <= s < t]


@laws.enter("the strided posterior's weights against exact arithmetic", "ulp", fixed=4, why=_WHY)
def _strided(_: Place) -> float:
    return max(ulp(d.posterior_weights(t, s), c.weights(t, s)) for d, c, steps in _chains() for t, s in _moves(d, steps))


@laws.enter("beta_{t|s} against exact arithmetic", "ulp", fixed=4, why=_WHY)
def _between(_: Place) -> float:
    return max(
        ulp(d.between_weights(t, s), (sqrt(c.alpha_bar[t] / c.alpha_bar[s]), c.beta_between(t, s)))
        for d, c, steps in _chains()
        for t, s in _moves(d, steps)
    )


@laws.enter("a respaced chain keeps the marginals", "ulp", fixed=4, why="the short chain keeps the logarithms of alpha_bar")
def _respaced(_: Place) -> float:
    d, c, _steps = _chains()[0]
    plan = d.timesteps(37, "quadratic")
    short = d.respaced(plan)
    kept = ulp(short.alpha_bar, (c.alpha_bar[t] for t in reversed(plan)))
    moves = zip(plan[-2::-1], plan[:0:-1], strict=True)
    return max(kept, ulp(short.beta[1:], (c.beta_between(t, s) for t, s in moves)))
