"""What each sampler computes, as rows of weights: the whole plan is folded on the host before the first network call.

With data prediction every sampler here is linear in the state and the last few predictions of x_0, so a sampler is a function
``(d, timesteps, eta) -> rows``. With lambda = log(a / sigma), a = sqrt(alpha_bar) and sigma = sqrt(1 - alpha_bar), the exact
solution over a move with constant x_0 is x_s = sigma_s/sigma_t x_t - a_s expm1(-h) x_0, h = lambda_s - lambda_t: that is
DDIM at eta = 0, and the first order of all the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyddpm.backends import Row

if TYPE_CHECKING:
    from tinyddpm.denoiser import Denoiser
    from tinyddpm.diffusion import Diffusion

__all__ = ["Sampler", "ddim", "ddpm", "denoised", "dpm_solver_2m", "heun", "unipc"]


Sampler = Callable[[Any, tuple[int, ...], float], "list[Row]"]


def ddpm(d: Diffusion, timesteps: tuple[int, ...], eta: float) -> list[Row]:
    """Ancestral sampling [Ho alg. 2]; the variance is the denoiser's."""
    t, s = _pairs(timesteps)
    w_x0, w_xt, _ = d.posterior_weights(t, s)
    rows = zip(t.tolist(), s.tolist(), w_xt.tolist(), w_x0.tolist(), strict=True)
    return [Row(t, s, (w_xt, w_x0), std=None if s else 0.0) for t, s, w_xt, w_x0 in rows]


def ddim(d: Diffusion, timesteps: tuple[int, ...], eta: float) -> list[Row]:
    """DDIM [DDIM eq. 12] with sigma = eta sqrt(beta_tilde_{t,s}) [eq. 16]; eta = 1 is DDPM with that variance."""
    t, s = _pairs(timesteps)
    beta_tilde = d.posterior_weights(t, s)[2]
    # sqrt(1 - alpha_bar_s - var) = sigma_s k, with k^2 = 1 - eta^2 beta_{t|s} / (1 - alpha_bar_t)
    k2 = 1 - eta**2 * d.between_weights(t, s)[1] / d.one_minus_alpha_bar[t]
    sigma, a, lam = d.sqrt_one_minus_alpha_bar, d.sqrt_alpha_bar, d.log_snr / 2
    with np.errstate(divide="ignore", invalid="ignore"):  # log k = -inf: nothing of eps is kept
        w_x0 = -a[s] * np.expm1(np.where(s > 0, 0.5 * np.log(k2), 0.0) - (lam[s] - lam[t]))
    w_xt = sigma[s] / sigma[t] * np.sqrt(k2)
    rows = zip(*(c.tolist() for c in (t, s, w_xt, w_x0, eta * np.sqrt(beta_tilde))), strict=True)
    return [Row(t, s, (w_xt, w_x0), std=std) for t, s, w_xt, w_x0, std in rows]


def dpm_solver_2m(d: Diffusion, timesteps: tuple[int, ...], eta: float) -> list[Row]:
    """DPM-Solver++(2M), midpoint form [DPM++ alg. 2]; first order at the first move and into s = 0."""
    moves = _first_order(d, timesteps)
    rows = [moves[0].row()]
    for before, move in zip(moves, moves[1:], strict=False):
        g = 0.0 if move.s == 0 else move.h / (2 * before.h)  # 1 / (2 r)
        rows.append(Row(move.t, move.s, (move.keep, move.take * (1 + g), -move.take * g)))
    return rows


def heun(d: Diffusion, timesteps: tuple[int, ...], eta: float) -> list[Row]:
    """Heun's method in sigma / a on the plan's own grid [EDM alg. 1]: two calls a move, Euler into s = 0.

    Leaving sigma / a = infinity (alpha_bar_T = 0) the trapezium has no finite weight: that move is Euler's too.
    """
    rows = []
    for move in _first_order(d, timesteps):
        if move.s == 0 or math.isinf(move.h):
            rows.append(move.row())
            continue
        # With rho = exp(-h), the mean of the two slopes gives x_0's weight 1 - rho as these two parts.
        rho, gain = math.exp(-move.h), -math.expm1(-move.h)
        newest = move.a_s * gain / (2 * rho)
        rows.append(Row(move.t, move.s, (move.keep, move.take), base=(1.0,), ends_step=False))
        rows.append(Row(move.s, move.s, (move.keep, newest, newest * (2 * rho - 1))))
    return rows


def unipc(d: Diffusion, timesteps: tuple[int, ...], eta: float) -> list[Row]:
    """UniPC of order 2 with B(h) = e^h - 1 [UniPC alg. 1 and 2, data prediction]: predictor as in DPM-Solver++(2M); each
    network call also corrects the point at which it was made."""
    moves = _first_order(d, timesteps)
    rows = [moves[0].row(base=(1.0,) if len(moves) > 1 else None)]
    for k in range(1, len(moves)):
        before, move = moves[k - 1], moves[k]
        earlier = moves[k - 2].h if k > 1 else None
        corrected = _corrector(before, earlier)
        g = 0.0 if move.s == 0 else move.h / (2 * before.h)
        state = [move.keep * w for w in corrected]
        state[1] += move.take * (1 + g)
        state[2] -= move.take * g
        # The next correction starts from the corrected point, so this one becomes the base.
        rows.append(Row(move.t, move.s, tuple(state), base=corrected))
    return rows


@lru_cache(maxsize=2)  # as many moves as there are steps: a long chain is not small
def denoised(
    fold: Sampler, d: Diffusion, denoiser: Denoiser, timesteps: tuple[int, ...], eta: float
) -> tuple[Row, ...]:
    """A sampler's rows as they are with this denoiser, whose fixed standard deviation goes to the moves that have none yet."""
    rows = fold(d, timesteps, eta)
    values, states = d.conversion(denoiser.predicts, "x0")
    if bad := [row.t for row in rows if math.isnan(values[row.t])]:
        raise ValueError(f"predicts: x_0 does not follow from {denoiser.predicts!r} at t = {bad[0]}, where alpha_bar is "
                         f"{d.alpha_bar[bad[0]]}; predict 'v' or 'x0' on such a schedule")  # fmt: skip
    std = [row.std for row in rows] if denoiser.learned else _fixed_std(d, denoiser, rows)
    return tuple(
        replace(
            row,
            std=sigma,
            x0_from=(float(values[row.t]), 0.0 if states is None else float(states[row.t])),
            net_t=row.t - 1 + denoiser.first_t,
        )
        for row, sigma in zip(rows, std, strict=True)
    )


def _fixed_std(d: Diffusion, denoiser: Denoiser, rows: Sequence[Row]) -> list[float | None]:
    if all(row.std is not None for row in rows):
        return [row.std for row in rows]
    x = np.zeros((len(rows), 1))
    t, s = (np.array([getattr(row, name) for row in rows]) for name in "ts")
    single = None if not isinstance(denoiser.variance, str) and np.all(t - s == 1) else s
    log_var = np.broadcast_to(denoiser.log_var_from(d, None, x, t, single), x.shape)[:, 0]
    return [math.exp(v / 2) if row.std is None else row.std for row, v in zip(rows, log_var.tolist(), strict=True)]


def _corrector(move: _Move, earlier: float | None) -> tuple[float, ...]:
    """UniC's weights of (base, x_0 at the move's end, at its start, one before), `earlier` the h of the move before."""
    if math.isinf(move.h):
        return move.keep, 0.0, move.take, 0.0  # no finite polynomial spans an infinite interval
    rho0, rho1, r = 0.0, 0.5, -1.0
    if earlier is not None:
        z = -move.h
        phi1 = math.expm1(z)
        phi2 = phi1 / z - 1
        b1, b2 = phi2 / phi1, 2 * (phi2 / z - 0.5) / phi1
        r = -earlier / move.h
        rho0 = (b1 - b2) / (1 - r)
        rho1 = b1 - rho0
    return move.keep, move.take * rho1, move.take * (1 - rho1 - rho0 / r), move.take * rho0 / r


@dataclass(frozen=True)
class _Move:
    """The first-order solution x_s = keep x_t + take x_0 of one move."""

    t: int
    s: int
    a_s: float
    h: float
    keep: float
    take: float

    def row(self, base: tuple[float, ...] | None = None) -> Row:
        return Row(self.t, self.s, (self.keep, self.take), base=base)


def _first_order(d: Diffusion, timesteps: tuple[int, ...]) -> list[_Move]:
    t, s = _pairs(timesteps)
    sigma, a, lam = d.sqrt_one_minus_alpha_bar, d.sqrt_alpha_bar, d.log_snr / 2
    h = lam[s] - lam[t]
    columns = (t, s, a[s], h, sigma[s] / sigma[t], -a[s] * np.expm1(-h))
    return [_Move(*values) for values in zip(*(c.tolist() for c in columns), strict=True)]


def _pairs(timesteps: tuple[int, ...]) -> tuple[Any, Any]:
    plan = np.array(timesteps)
    return plan[:-1], plan[1:]
