"""The sampling methods: each turns a plan into rows of weights, computed on the host before the first network call.

With data prediction every sampler here is linear in the state and the last few predictions of x_0. So a method is a function
``(process, plan, eta) -> rows``, and one loop runs them all. With a_t = sqrt(alpha_bar_t), sigma_t = sqrt(1 - alpha_bar_t) and
lambda_t = log(a_t / sigma_t), the exact solution of the sampling ODE from t to s for constant x_0 is

    x_s = sigma_s / sigma_t x_t - a_s (exp(-h) - 1) x_0,  h = lambda_s - lambda_t.

That is DDIM at eta = 0, and the first order of all the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyddpm._numerics.tables import Tables
from tinyddpm.backends import Row

Method = Callable[[Tables, tuple[int, ...], float], "list[Row]"]


def ddpm(d: Tables, timesteps: tuple[int, ...], eta: float) -> list[Row]:
    """Ancestral sampling [Ho alg. 2]: x_s = w_x0 x_0 + w_xt x_t + sigma z, the posterior's mean; sigma is the denoiser's."""
    t, s = _pairs(timesteps)
    w_x0, w_xt, _ = d.posterior_weights(t, s)
    columns = zip(t.tolist(), s.tolist(), w_xt.tolist(), w_x0.tolist(), strict=True)
    return [Row(t, s, (w_xt, w_x0), std=None if s else 0.0) for t, s, w_xt, w_x0 in columns]


@np.errstate(all="ignore")
def ddim(d: Tables, timesteps: tuple[int, ...], eta: float) -> list[Row]:
    """x_s = a_s x_0 + sqrt(sigma_s^2 - sigma^2) eps + sigma z, sigma = eta sqrt(beta_tilde_{t,s}) [DDIM eq. 12, 16].

    At eta = 1 this is ancestral sampling with variance beta_tilde.
    """
    t, s = _pairs(timesteps)
    (_, posterior_xt, beta_tilde), (w_xs, _) = d.posterior_weights(t, s), d.between_weights(t, s)
    # sqrt(sigma_s^2 - sigma^2) = sigma_s k with k^2 = 1 - eta^2 beta_{t|s} / (1 - alpha_bar_t), without its cancellation.
    k2 = (1 - eta) * (1 + eta) + eta**2 * w_xs * posterior_xt
    sigma, a, lam = d.sqrt_one_minus_alpha_bar, d.sqrt_alpha_bar, d.log_snr / 2
    w_x0 = -a[s] * np.expm1(np.where(s > 0, 0.5 * np.log(k2), 0.0) - (lam[s] - lam[t]))  # log k = -inf: nothing of eps is kept
    w_xt = sigma[s] / sigma[t] * np.sqrt(k2)
    columns = zip(*(c.tolist() for c in (t, s, w_xt, w_x0, eta * np.sqrt(beta_tilde))), strict=True)
    return [Row(t, s, (w_xt, w_x0), std=std) for t, s, w_xt, w_x0, std in columns]


def dpm_solver_2m(d: Tables, timesteps: tuple[int, ...], eta: float) -> list[Row]:
    """DPM-Solver++(2M), midpoint form [DPM++ alg. 2], and its stochastic form, SDE-DPM-Solver++(2M) at eta = 1 [DPM++ sec. 5].

    x_s = exp(-eta h) sigma_s/sigma_t x_t - a_s (exp(-(1 + eta) h) - 1) D + sigma_s sqrt(1 - exp(-2 eta h)) z with
    D = (1 + 1/(2r)) x_0(t) - 1/(2r) x_0(before t), r = h_before / h; first order at the first step and into s = 0.
    """
    sigma, steps = d.sqrt_one_minus_alpha_bar, _first_order(d, timesteps)
    rows = []
    for before, step in zip([None, *steps], steps, strict=False):
        g, eta_h = 0.0 if before is None else _extrapolation(before, step), eta * step.h if eta else 0.0
        keep, take = step.keep * math.exp(-eta_h), -step.a_s * math.expm1(-step.h - eta_h)
        std = float(sigma[step.s]) * math.sqrt(-math.expm1(-2 * eta_h))
        rows.append(Row(step.t, step.s, (keep, take * (1 + g), -take * g) if g else (keep, take), std=std))
    return rows


def dpm_solver_3m(d: Tables, timesteps: tuple[int, ...], eta: float) -> list[Row]:
    """DPM-Solver++ of order 3, multistep, as its authors' code, diffusers and k-diffusion have it; it starts as the 2M does.

    x_s = sigma_s/sigma_t x_t + a_s h (phi_1 x_0(t) + phi_2 D1 + phi_3 D2), phi_k = phi_k(-h), with the differences
    d = (x_0(t) - x_0(before t)) / r0 and d' = the one before / r1, D2 = (d - d') / (r0 + r1), D1 = d + r0 D2, r = h_before / h.
    A quadratic through the three predictions has 2 phi_3 in place of phi_3, so the error falls with order 2 in the end.
    """
    steps = _first_order(d, timesteps)
    rows = dpm_solver_2m(d, timesteps[:3], 0.0)
    for earlier, before, step in zip(steps, steps[1:], steps[2:], strict=False):
        g = _extrapolation(before, step)
        if not g or min(before.h, earlier.h) * (before.h + earlier.h) <= _SHORTEST * step.h**2:
            rows.append(Row(step.t, step.s, (step.keep, step.take * (1 + g), -step.take * g)))
            continue
        _, phi2, phi3 = _phi(-step.h)
        r0, r1 = before.h / step.h, earlier.h / step.h
        curve = (phi2 * r0 + phi3) / (r0 + r1)
        first, second = step.a_s * step.h * (phi2 + curve) / r0, step.a_s * step.h * curve / r1
        rows.append(Row(step.t, step.s, (step.keep, step.take + first, -first - second, second)))
    return rows


def heun(d: Tables, timesteps: tuple[int, ...], eta: float) -> list[Row]:
    """Heun's method in sigma_t / a_t on the plan's own grid [EDM alg. 1]: two network calls a step, Euler into s = 0.

    A step over which sigma / a falls by more than 2^15 is Euler's: the trapezium would multiply rounding by as much, and its
    weights would leave float16's range.
    """
    rows = []
    for step in _first_order(d, timesteps):
        if step.s == 0 or step.h > _LONGEST:
            rows.append(step.row())
            continue
        # With rho = exp(-h), the mean of the two slopes splits x_0's weight 1 - rho into these two parts.
        rho, gain = math.exp(-step.h), -math.expm1(-step.h)
        newest = step.a_s * gain / (2 * rho)
        rows.append(Row(step.t, step.s, (step.keep, step.take), base=(1.0,), ends_step=False))
        rows.append(Row(step.s, step.s, (step.keep, newest, newest * (2 * rho - 1))))
    return rows


def unipc(d: Tables, timesteps: tuple[int, ...], eta: float) -> list[Row]:
    """UniPC of order 2 with B(h) = e^h - 1 [UniPC alg. 1 and 2, data prediction].

    The predictor is that of DPM-Solver++(2M); each network call also corrects the point at which it was made.
    """
    steps = _first_order(d, timesteps)
    rows = [steps[0].row(base=(1.0,) if len(steps) > 1 else None)]
    for k in range(1, len(steps)):
        before, step = steps[k - 1], steps[k]
        corrected = _corrector(before, steps[k - 2].h if k > 1 else None)
        g = _extrapolation(before, step)
        state = [step.keep * w for w in corrected]
        state[1] += step.take * (1 + g)
        state[2] -= step.take * g
        # The next correction starts from the corrected point, so this one becomes the base.
        rows.append(Row(step.t, step.s, tuple(state), base=corrected))
    return rows


_LONGEST = 15 * math.log(2)  # of a step of Heun's
_SHORTEST = 2**-10  # an interval, against the next, over which the difference of predictions is more than rounding

METHODS: dict[str, Method] = {
    "ddpm": ddpm, "ddim": ddim, "dpm++2m": dpm_solver_2m, "dpm++3m": dpm_solver_3m, "dpm++2m-sde": dpm_solver_2m, "heun": heun,
    "unipc": unipc,
}  # fmt: skip


def _extrapolation(before: _FirstOrder, step: _FirstOrder) -> float:
    """1 / (2 r), r = h_before / h: how far the second order extrapolates the last two predictions; 0 if r is tiny."""
    return 0.0 if step.s == 0 or before.h <= _SHORTEST * step.h else step.h / (2 * before.h)


def _corrector(step: _FirstOrder, earlier: float | None) -> tuple[float, ...]:
    """UniC's weights of (base, x_0 at the step's end, at its start, one before); `earlier` is h of the step before."""
    if math.isinf(step.h):
        return step.keep, 0.0, step.take, 0.0  # no finite polynomial spans an infinite interval
    rho0, rho1, r = 0.0, 0.5, -1.0
    if earlier is not None and earlier > _SHORTEST * step.h > 0:
        phi1, phi2, phi3 = _phi(-step.h)
        b1, b2 = phi2 / phi1, 2 * phi3 / phi1
        r = -earlier / step.h
        rho0 = (b1 - b2) / (1 - r)
        rho1 = b1 - rho0
    return step.keep, step.take * rho1, step.take * (1 - rho1 - rho0 / r), step.take * rho0 / r


def _phi(z: float) -> tuple[float, float, float]:
    """phi_1(z) = (e^z - 1) / z, phi_2 = (phi_1 - 1) / z, phi_3 = (phi_2 - 1/2) / z: near 0 from the series of phi_3."""
    if abs(z) < 1:
        phi3 = 0.0
        for k in range(19, 2, -1):  # the terms z^(k - 3) / k!
            phi3 = phi3 * z + 1 / math.factorial(k)
        return 1 + z * (0.5 + z * phi3), 0.5 + z * phi3, phi3
    phi1 = math.expm1(z) / z
    phi2 = (phi1 - 1) / z
    return phi1, phi2, (phi2 - 0.5) / z


@dataclass(frozen=True)
class _FirstOrder:
    """The first-order solution x_s = keep x_t + take x_0 of one step (t, s)."""

    t: int
    s: int
    a_s: float
    h: float
    keep: float
    take: float

    def row(self, base: tuple[float, ...] | None = None) -> Row:
        return Row(self.t, self.s, (self.keep, self.take), base=base)


@np.errstate(all="ignore")
def _first_order(d: Tables, timesteps: tuple[int, ...]) -> list[_FirstOrder]:
    t, s = _pairs(timesteps)
    sigma, a, lam = d.sqrt_one_minus_alpha_bar, d.sqrt_alpha_bar, d.log_snr / 2
    h = lam[s] - lam[t]
    columns = (t, s, a[s], h, sigma[s] / sigma[t], -a[s] * np.expm1(-h))
    return [_FirstOrder(*values) for values in zip(*(c.tolist() for c in columns), strict=True)]


def _pairs(timesteps: tuple[int, ...]) -> tuple[Any, Any]:
    plan = np.array(timesteps)
    return plan[:-1], plan[1:]
