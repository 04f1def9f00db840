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
from tinyddpm.verify import _truth
from tinyddpm.verify._core import Identities, Place, ulp_error
from tinyddpm.verify._truth import Chain

identities = Identities()

_T = 1000


# Schedules, with their default arguments.


def _schedule(name: str, _: Place) -> float:
    return ulp_error(schedules.NAMES[name](_T), (_truth.SCHEDULES[name](t, _T) for t in range(1, _T + 1)))


for _name in _truth.SCHEDULES:
    identities.add(f"schedules.{_name} is its formula", "ulp", fixed=16, why="the contract of schedules")(
        partial(_schedule, _name)
    )


@identities.add("schedules.from_alpha_bar is 1 - alpha_bar_t / alpha_bar_{t-1}", "ulp", fixed=16, why="the contract of schedules")
def _from_alpha_bar(_: Place) -> float:
    alpha_bar = [math.cos(1.5 * t / _T) ** 2 for t in range(1, _T + 1)]
    exact = [Decimal(1), *map(Decimal, alpha_bar)]
    return ulp_error(schedules.from_alpha_bar(alpha_bar), (1 - b / a for a, b in pairwise(exact)))


@identities.add("schedules.zero_terminal_snr shifts sqrt(alpha_bar) to 0", "ulp", fixed=16, why="the contract of schedules")
def _zero_terminal_snr(_: Place) -> float:
    beta = schedules.linear(_T)
    return ulp_error(schedules.zero_terminal_snr(beta), _truth.zero_terminal_snr(beta))


# Tables and weights, given the float64 betas.


@lru_cache(maxsize=1)
def _chains() -> list[tuple[Diffusion, Chain, list[int]]]:
    """Return each chain as a `Diffusion`, as an exact `Chain`, and the steps that are compared.

    These are all steps, except for T = 100 000: there 400 steps in equal ratios and those around the underflow of alpha_bar.
    """
    betas = [schedules.linear(_T), schedules.cosine(_T), schedules.zero_terminal_snr(schedules.quadratic(100))]
    betas.append(schedules.linear(100_000))  # alpha_bar_T is near exp(-1000)
    steps = [list(range(1, len(b) + 1)) for b in betas[:-1]]
    last = int(np.argmin(np.log1p(-betas[-1]).cumsum() > -708.4))  # the last alpha_bar in the normal range of float64
    spread = np.geomspace(1, 100_000, 400).round().astype(int)
    steps.append(np.unique([*spread, *range(last - 40, last + 400, 5)]).tolist())
    return [(Diffusion(b), Chain(b.tolist()), t) for b, t in zip(betas, steps, strict=True)]


_TABLES: dict[str, tuple[Callable[[Diffusion], Any], Callable[[Chain, int], Decimal]]] = {
    "alpha_bar": (lambda d: d.alpha_bar, lambda c, t: c.alpha_bar[t]),
    "one_minus_alpha_bar": (lambda d: d.one_minus_alpha_bar, lambda c, t: 1 - c.alpha_bar[t]),
    "sqrt(alpha_bar)": (lambda d: d.sqrt_alpha_bar, lambda c, t: c.alpha_bar[t].sqrt()),
    "sqrt(1 - alpha_bar)": (lambda d: d.sqrt_one_minus_alpha_bar, lambda c, t: (1 - c.alpha_bar[t]).sqrt()),
    "beta_tilde": (lambda d: d.beta_tilde, lambda c, t: c.weights(t, t - 1)[2]),
    "the posterior's weight of x_0": (lambda d: d.weights.w_x0, lambda c, t: c.weights(t, t - 1)[0]),
    "the posterior's weight of x_t": (lambda d: d.weights.w_xt, lambda c, t: c.weights(t, t - 1)[1]),
}
_WHY = "the contract of the tables, T up to 100 000"


def _table(name: str, _: Place) -> float:
    table, exact = _TABLES[name]
    return max(ulp_error(table(d)[steps], (exact(c, t) for t in steps)) for d, c, steps in _chains())


for _name in _TABLES:
    identities.add(f"{_name} against exact arithmetic", "ulp", fixed=4, why=_WHY)(partial(_table, _name))


@identities.add(
    "log_snr against exact arithmetic", "ulp", fixed=4, why=f"{_WHY}; a unit counts as at least 2.5e-29, because log_snr passes 0"
)
def _log_snr(_: Place) -> float:
    return max(ulp_error(d.log_snr[steps], (c.log_snr(t) for t in steps), floor=2.5e-29) for d, c, steps in _chains())


def _pairs(steps: list[int]) -> list[tuple[int, int]]:
    """Return pairs (t, s) of different lengths t - s."""
    return [(t, s) for t in (*steps[2::37], steps[-1]) for s in {0, 1, t // 3, t - 2} if 0 <= s < t]


@identities.add("the strided posterior's weights against exact arithmetic", "ulp", fixed=4, why=_WHY)
def _strided(_: Place) -> float:
    return max(ulp_error(d.posterior_weights(t, s), c.weights(t, s)) for d, c, steps in _chains() for t, s in _pairs(steps))


@identities.add("beta_{t|s} against exact arithmetic", "ulp", fixed=4, why=_WHY)
def _between(_: Place) -> float:
    return max(
        ulp_error(d.between_weights(t, s), ((c.alpha_bar[t] / c.alpha_bar[s]).sqrt(), c.beta_between(t, s)))
        for d, c, steps in _chains()
        for t, s in _pairs(steps)
    )


@identities.add(
    "a respaced chain keeps the marginals", "ulp", fixed=4, why="a respaced chain starts from the same logarithms of alpha_bar"
)
def _respaced(_: Place) -> float:
    d, c, _steps = _chains()[0]
    plan = d.timesteps(37, "quadratic")
    short = d.respaced(plan)
    kept = ulp_error(short.alpha_bar, (c.alpha_bar[t] for t in reversed(plan)))
    pairs = zip(plan[-2::-1], plan[:0:-1], strict=True)
    return max(kept, ulp_error(short.beta[1:], (c.beta_between(t, s) for t, s in pairs)))
