"""The multistep samplers beside their published formulas: in sigma / a, as k-diffusion writes them, and in 50 digits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from strategies import MIXTURE, batch

from tinyddpm import Denoiser, Diffusion, samplers, schedules
from tinyddpm._sampling import rows
from tinyddpm.analytic import GaussianData

D = Diffusion(schedules.linear(60, 1e-3, 0.15))
PLAN = (60, 51, 33, 32, 18, 9, 4, 0)


def published(order: int, eta: float, z: dict[int, NDArray[np.float64]], x_T: NDArray[np.float64]) -> NDArray[np.float64]:
    """DPM-Solver++ of order 2 (midpoint) and 3 for y = x / a and sigma / a, with SDE-DPM-Solver++'s noise times eta."""
    ratio = np.sqrt(D.one_minus_alpha_bar / D.alpha_bar)
    denoiser, y = Denoiser(MIXTURE.net(D)), x_T / D.sqrt_alpha_bar[PLAN[0]]
    predictions, intervals = list[Any](), list[float]()
    for t, s in zip(PLAN, PLAN[1:], strict=False):
        m = [denoiser.x0(D, y * D.sqrt_alpha_bar[t], t), *predictions]
        if s == 0:
            return np.asarray(m[0])
        h, n = math.log(ratio[t] / ratio[s]), min(len(predictions), order - 1)
        long = h * (1 + eta)
        r = [earlier / h for earlier in intervals]
        y = math.exp(-long) * y + (1 - math.exp(-long)) * m[0]
        if n == 1:
            y = y + 0.5 * (1 - math.exp(-long)) * (m[0] - m[1]) / r[0]
        if n == 2:
            slope, before = (m[0] - m[1]) / r[0], (m[1] - m[2]) / r[1]
            d1, d2 = slope + (slope - before) * r[0] / (r[0] + r[1]), (slope - before) / (r[0] + r[1])
            phi2 = (math.exp(-h) - 1) / h + 1
            y = y + phi2 * d1 - (phi2 / h - 0.5) * d2
        y = y + ratio[s] * math.sqrt(1 - math.exp(-2 * eta * h)) * z[t]
        predictions, intervals = m, [h, *intervals]
    raise AssertionError("the plan ends at 0")


@pytest.mark.parametrize(("sampler", "order", "eta"), [
    ("dpm++2m", 2, 0.0), ("dpm++3m", 3, 0.0), ("dpm++2m-sde", 2, 0.0), ("dpm++2m-sde", 2, 0.3), ("dpm++2m-sde", 2, 1.0),
])  # fmt: skip
def test_it_is_the_published_update(sampler: Any, order: int, eta: float) -> None:
    """On a plan of uneven steps, with noise put in, which is drawn once for each noisy step."""
    z, x_T, drawn = {t: batch(4, 2, seed=t) for t in PLAN}, batch(4, 2), list[int]()

    def source(t: int, index: Sequence[int], shape: tuple[int, ...]) -> Any:
        drawn.append(t)
        return z[t]

    x = D.sample(Denoiser(MIXTURE.net(D)), (4, 2), sampler=sampler, timesteps=PLAN, x_T=x_T, noise=source, eta=eta)
    np.testing.assert_allclose(x, published(order, eta, z, x_T), rtol=1e-9, atol=1e-11)
    assert drawn == (list(PLAN[:-2]) if eta else [])


def test_the_stochastic_forms_eta_is_one_unless_given() -> None:
    denoiser = Denoiser(MIXTURE.net(D))
    one, given, none = (
        D.sample(denoiser, (4, 2), timesteps=PLAN, sampler="dpm++2m-sde", eta=eta, seed=3) for eta in (None, 1.0, 0.0)
    )
    np.testing.assert_array_equal(one, given)
    np.testing.assert_array_equal(none, D.sample(denoiser, (4, 2), timesteps=PLAN, seed=3, sampler="dpm++2m"))
    others: list[Any] = [name for name in samplers.NAMES if name not in samplers.DEFAULT_ETA]
    for sampler in others:
        with pytest.raises(ValueError, match=r"^eta must be 0 or left out unless the sampler is ddim or dpm\+\+2m-sde, got 0.5"):
            D.sample(denoiser, (4, 2), sampler=sampler, eta=0.5)


@pytest.mark.parametrize("h", [1e-12, 1e-9, 1e-6, 1e-3, 0.3, 0.99, 1.01, 5.0, 60.0])
def test_weights_of_short_steps_keep_their_digits(h: float) -> None:
    """UniPC's corrector and the third order in 50 digits; quotients of exp(-h) - 1 lose all of them at h = 1e-9."""
    mp = pytest.importorskip("mpmath")
    earlier = 0.7 * h
    with mp.workdps(50):
        z, r = -mp.mpf(h), -mp.mpf(earlier) / mp.mpf(h)
        grown = mp.expm1(z)
        slope = grown / z - 1
        curve = slope / z - mp.mpf(1) / 2
        rho0, rho1 = mp.lu_solve(mp.matrix([[1, 1], [r, 1]]), mp.matrix([slope / grown, 2 * curve / grown]))
        unic = [-grown * rho1, -grown * (1 - rho1 - rho0 / r), -grown * rho0 / r]
        phi = [grown / z, slope / z, curve / z]
    step = rows._FirstOrder(2, 1, 1.0, h, math.exp(-h), -math.expm1(-h))
    np.testing.assert_allclose(rows._corrector(step, earlier)[1:], [float(w) for w in unic], rtol=2e-14)
    np.testing.assert_allclose(rows._phi(-h), [float(value) for value in phi], rtol=2e-15)


def chain_of(*h: float) -> Diffusion:
    """A chain whose log(a / sigma) rises by these amounts in its steps from T to 1."""
    lam = 1.5 - np.concatenate([[0.0], np.cumsum(h[::-1])])
    return Diffusion(schedules.from_alpha_bar(1 / (1 + np.exp(-2 * lam))))


@pytest.mark.parametrize("size", [0.2, 1.0, 2.0])
@pytest.mark.parametrize(("earlier", "before", "third"), [
    (0.9 * 2**-10, 1, False), (1.1 * 2**-10, 1, True), (1, 0.9 * 2**-10, False), (1, 1.1 * 2**-10, True),
    (0.9 * 2**-5.5, 2**-5.5, False), (1.1 * 2**-5.5, 2**-5.5, True),
])  # fmt: skip
def test_the_third_order_falls_back_where_it_would_magnify_rounding(
    size: float, earlier: float, before: float, third: bool
) -> None:  # fmt: skip
    """It divides differences by both r's and their sum. Below 2^-10 the rows are those of the second order."""
    d = chain_of(size * earlier, size * before, size, size)
    plan = tuple(range(d.T, -1, -1))
    second, ours = samplers.NAMES["dpm++2m"](d, plan, 0.0), samplers.NAMES["dpm++3m"](d, plan, 0.0)
    assert [(row.t, row.s) for row in ours] == [(t, t - 1) for t in plan[:-1]]
    assert len(ours[2].state) == (4 if third else 3)
    for k in (0, 1, 4) if third else (0, 1, 2, 4):
        np.testing.assert_allclose(ours[k].state, [*second[k].state, 0.0][: len(ours[k].state)], rtol=1e-12)
    for row, other in zip(ours, second, strict=True):  # a constant prediction gives the exact solution
        np.testing.assert_allclose(sum(row.state[1:]), sum(other.state[1:]), rtol=1e-9)


@pytest.mark.parametrize("sampler", samplers.NAMES)
def test_intervals_of_no_length(sampler: Any) -> None:
    """Betas of 1e-300 leave log-SNR as it is: steps that do nothing, and no earlier interval to extrapolate from."""
    d = Diffusion([0.3, 0.3, 1e-300, 1e-300, 1e-300, 0.3, 0.3, 0.3])
    x = d.sample(Denoiser(GaussianData([0.2] * 3, [0.1] * 3).net(d), clip_x0=False), (500, 3), sampler=sampler, seed=1)
    assert np.isfinite(x).all()
    assert 0.1 < x.std() < 0.4
