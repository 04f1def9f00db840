"""The known process: tables against 60-digit arithmetic, and the laws that tie q, the posterior and the conversions together."""

from __future__ import annotations

import dataclasses
import pickle
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from itertools import pairwise
from typing import Any

import array_api_strict
import mpmath as mp
import numpy as np
import pytest
from conftest import Library
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import batch, betas, diffusions, pairs, plans, smooth_diffusions

from tinyddpm import Denoiser, Diffusion, Gaussian, samplers, schedules
from tinyddpm.conversions import KINDS
from tinyddpm.verify import _core, _truth

SPACINGS = ("even", "quadratic", "log_snr")


def ulp(value: float, exact: mp.mpf) -> float:
    """The error in units in the last place of the exact value."""
    return float(abs(mp.mpf(float(value)) - exact) / mp.mpf(float(np.spacing(abs(float(exact))))))


def exact_rows(beta: NDArray[np.float64], every: int = 1) -> Iterator[tuple[int, dict[str, mp.mpf]]]:
    """(t, tables of step t in 60 digits), for every `every`-th t and the last few."""
    with mp.workdps(60):
        alpha_bar = mp.mpf(1)
        for t, b in enumerate(map(mp.mpf, beta.tolist()), 1):
            before, alpha_bar = alpha_bar, alpha_bar * (1 - b)
            if t % every and t < len(beta) - 2:
                continue
            left_before, left = 1 - before, 1 - alpha_bar
            yield (
                t,
                {
                    "alpha": 1 - b,
                    "alpha_bar": alpha_bar,
                    "one_minus_alpha_bar": left,
                    "sqrt_alpha_bar": mp.sqrt(alpha_bar),
                    "beta_tilde": left_before / left * b,
                    "w_x0": mp.sqrt(before) * b / left,
                    "w_xt": mp.sqrt(1 - b) * left_before / left,
                    "log_snr": mp.log(alpha_bar / left) if alpha_bar else -mp.inf,
                },
            )


def worst_ulps(beta: NDArray[np.float64], every: int = 1) -> dict[str, float]:
    d = Diffusion(beta)
    worst: dict[str, float] = dict.fromkeys(
        ("alpha", "alpha_bar", "one_minus_alpha_bar", "sqrt_alpha_bar", "beta_tilde", "w_x0", "w_xt", "log_snr"), 0.0
    )
    with mp.workdps(60):
        for t, exact in exact_rows(beta, every):
            ours = {name: getattr(d, name)[t] for name in worst if not name.startswith("w_")}
            ours["w_x0"], ours["w_xt"], _ = d.posterior_weights(t)
            for name, value in ours.items():
                truth = exact[name]
                if mp.isinf(truth) or truth == 0:
                    assert value == truth
                elif abs(mp.mpf(float(value)) - truth) > (1e-28 if name == "log_snr" else 1e-310):
                    worst[name] = max(worst[name], ulp(value, truth))
    return worst


@pytest.mark.parametrize("name", ["linear", "cosine", "quadratic", "geometric", "jsd"])
def test_tables_are_within_four_ulp(name: str) -> None:
    assert max(worst_ulps(getattr(schedules, name)(1000), every=7).values()) <= 4


def test_tables_of_a_hundred_thousand_steps_are_within_four_ulp() -> None:
    beta = schedules.linear(100_000)  # alpha_bar ends near e^-1012, far below the smallest float64
    worst = worst_ulps(beta, every=997)
    assert max(worst.values()) <= 4
    d = Diffusion(beta)
    assert d.alpha_bar[-1] == 0
    assert -1020 < d.log_snr[-1] < -1000
    assert np.all(np.diff(d.log_snr) < 0)


def test_a_tiny_beta_after_a_large_one_is_not_lost() -> None:
    """A difference of log alpha_bar, in 106 bits, would hold it to 1e-32 only."""
    beta = np.array([0.5, 1e-40, 0.3, 1e-300])
    assert max(worst_ulps(beta).values()) <= 4
    assert [Diffusion(beta).between_weights(t)[1] for t in range(1, 5)] == beta.tolist()


@given(st.floats(-17, 0), st.sampled_from([-1, 1]), st.integers(1, 5))
def test_log_snr_keeps_its_digits_next_to_zero(exponent: float, sign: int, T: int) -> None:
    """Where log alpha_bar and log(1 - alpha_bar) cancel."""
    alpha_bar = 0.5 * np.exp(sign * 10.0**exponent / 2)
    assert worst_ulps(np.full(T, 1 - alpha_bar ** (1 / T)))["log_snr"] <= 4


def test_alpha_bar_keeps_its_digits_down_to_the_smallest_normal_numbers() -> None:
    beta = schedules.linear(100_000)
    alpha_bar = Diffusion(beta).alpha_bar
    with mp.workdps(60):
        exact, worst = mp.mpf(1), 0.0
        for t, b in enumerate(map(mp.mpf, beta.tolist()), 1):
            exact *= 1 - b
            if 1e-312 < alpha_bar[t] < 1e-300 and t % 7 == 0:
                worst = max(worst, ulp(alpha_bar[t], exact))
    assert 0 < worst <= 4


@given(betas)
def test_tables_are_within_four_ulp_for_any_betas(beta: NDArray[np.float64]) -> None:
    assert max(worst_ulps(beta).values()) <= 4


@given(diffusions)
def test_entry_zero_is_the_clean_end(d: Diffusion) -> None:
    assert d.beta.shape == d.alpha_bar.shape == d.log_snr.shape == d.beta_tilde.shape == (d.T + 1,)
    assert (d.beta[0], d.alpha[0], d.alpha_bar[0], d.one_minus_alpha_bar[0], d.log_snr[0]) == (0, 1, 1, 0, np.inf)
    assert np.isnan(d.beta_tilde[0])
    assert d.beta_tilde[1] == 0
    for table in (d.beta, d.alpha, d.alpha_bar, d.one_minus_alpha_bar, d.beta_tilde, d.log_snr):
        assert table.dtype == np.float64
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 1


@given(st.data(), smooth_diffusions)
def test_two_moves_of_q_compose_to_one(data: st.DataObject, d: Diffusion) -> None:
    """N(0, alpha_t (1 - alpha_s)) + N(0, 1 - alpha_t) = N(0, 1 - alpha_t alpha_s), for any 0 <= s < t."""
    t, s = data.draw(pairs(d))
    x0 = batch(3, 4)
    direct = d.q(x0, t)
    first = d.q(x0, s)
    second = d.q_between(first.mean, s, t)
    w = d.between_weights(t, s)[0]
    np.testing.assert_allclose(second.mean, direct.mean, rtol=1e-13, atol=1e-300)
    var = w**2 * np.exp(first.log_var) + np.exp(second.log_var)
    np.testing.assert_allclose(var, np.exp(direct.log_var), rtol=1e-13)


@given(st.data(), smooth_diffusions)
def test_posterior_obeys_bayes_rule(data: st.DataObject, d: Diffusion) -> None:
    """log q(x_s|x_0) + log q(x_t|x_s) = log q(x_t|x_0) + log q(x_s|x_t, x_0) at any x_s and x_t."""
    t, s = data.draw(pairs(d))
    if s == 0:
        return
    x0, z, y = (batch(2, 3, seed=k) for k in range(3))
    x_s = d.q(x0, s).sample(z)
    x_t = d.q_between(x_s, s, t).sample(y)
    left = d.q(x0, s).log_prob(x_s) + d.q_between(x_s, s, t).log_prob(x_t)
    right = d.q(x0, t).log_prob(x_t) + d.posterior(x_t, x0, t, s).log_prob(x_s)
    np.testing.assert_allclose(left, right, rtol=1e-7, atol=1e-7)  # densities of width 1e-2 magnify rounding in x


@given(st.data(), diffusions)
def test_weights_agree_between_one_move_and_many(data: st.DataObject, d: Diffusion) -> None:
    """The default s = t - 1, an explicit one, arrays and ints give the same weights to the last place."""
    t = data.draw(st.integers(1, d.T))
    assert d.posterior_weights(t) == d.posterior_weights(t, t - 1)
    every = np.arange(1, d.T + 1)
    for one, many in zip(d.posterior_weights(t), d.posterior_weights(every), strict=True):
        assert type(one) is float
        assert one == many[t - 1]
    t, s = data.draw(pairs(d))
    one, many = d.posterior_weights(t, s), d.posterior_weights(np.array([t, t]), s)
    assert one == tuple(w[0] for w in many)


def test_strided_weights_where_alpha_bar_underflows() -> None:
    """A quotient of alpha_bar is 0/0 here; the logarithms know the answer."""
    d = Diffusion(schedules.linear(100_000))
    t, s = 100_000, 99_000
    assert d.alpha_bar[s] == 0
    w, beta = d.between_weights(t, s)
    log_alpha = np.sum(np.log1p(-d.beta[s + 1 : t + 1]))
    np.testing.assert_allclose([w, beta], [np.exp(log_alpha / 2), -np.expm1(log_alpha)], rtol=1e-13)


@given(st.data(), smooth_diffusions, st.sampled_from(KINDS), st.sampled_from(KINDS))
def test_convert_gives_the_same_prediction_in_every_kind(data: st.DataObject, d: Diffusion, source: str, target: str) -> None:
    t = data.draw(st.integers(1, d.T))
    x0, eps = batch(2, 5), batch(2, 5, seed=1)
    x_t = d.q_sample(x0, t, eps)
    a, sigma = np.sqrt(d.alpha_bar[t]), np.sqrt(d.one_minus_alpha_bar[t])
    truth = {"x0": x0, "eps": eps, "v": a * eps - sigma * x0, "score": -eps / sigma, "mu": d.posterior(x_t, x0, t).mean}
    value = d.convert(truth[source], x_t, t, source, target)
    size = np.abs(truth[target]).max() + np.abs(x_t).max() / min(a, sigma) ** 2  # the map's own condition
    np.testing.assert_allclose(value, truth[target], rtol=1e-11, atol=1e-12 * size)


@given(st.data(), smooth_diffusions, st.sampled_from(KINDS), st.sampled_from(KINDS))
def test_convert_there_and_back(data: st.DataObject, d: Diffusion, source: str, target: str) -> None:
    t = data.draw(st.integers(1, d.T))
    value, x_t = batch(2, 5), batch(2, 5, seed=1)
    there = d.convert(value, x_t, t, source, target)
    back = d.convert(there, x_t, t, target, source)
    np.testing.assert_allclose(back, value, rtol=1e-6, atol=1e-6)
    a, b = d.conversion(source, target)
    np.testing.assert_allclose(there, a[t] * value + (0 if b is None else b[t] * x_t), rtol=1e-13, atol=0)


def test_conversions_at_zero_terminal_snr() -> None:
    """Division by zero where peers predict eps on a zero-terminal schedule; here it is refused, and all that exists works."""
    d = Diffusion(schedules.zero_terminal_snr(schedules.linear(50)))
    value, x_t = batch(2, 3), batch(2, 3, seed=1)
    for source, target in (("eps", "x0"), ("eps", "mu"), ("eps", "v"), ("score", "x0"), ("score", "mu"), ("score", "v")):
        with pytest.raises(ValueError, match=f"t must be a step at which {target} follows from {source}, got 50"):
            d.convert(value, x_t, 50, source, target)
        t = np.array([50, 49])
        with pytest.raises(ValueError, match="got 50"):
            d.convert(value, x_t, t, source, target)
    np.testing.assert_array_equal(d.convert(value, x_t, 50, "v", "x0"), -value)
    np.testing.assert_array_equal(d.convert(value, x_t, 50, "v", "eps"), x_t)
    np.testing.assert_array_equal(d.convert(value, x_t, 50, "x0", "eps"), x_t)
    np.testing.assert_array_equal(d.convert(value, x_t, 50, "eps", "score"), -value)
    np.testing.assert_array_equal(d.convert(value, x_t, 50, "score", "eps"), -value)
    for kind in KINDS:
        np.testing.assert_array_equal(d.convert(value, x_t, 50, kind, kind), value)


def test_a_step_is_an_int_an_array_or_on_a_device(library: Library) -> None:
    """The three forms give the same, on every library."""
    d = Diffusion(schedules.cosine(40))
    host = batch(3, 2, 2)
    x, e = library.array(host), library.array(batch(3, 2, 2, seed=1))
    t = [1, 17, 40]
    each = np.concatenate([library.host(d.posterior(x[i : i + 1, ...], e[i : i + 1, ...], t[i]).mean) for i in range(3)])
    for steps in (np.array(t), library.array(np.array(t))):
        np.testing.assert_array_equal(library.host(d.posterior(x, e, steps).mean), each)
        together = library.host(d.convert(x, e, steps, "v", "x0"))
        np.testing.assert_array_equal(together[1], library.host(d.convert(x, e, 17, "v", "x0"))[1])
        np.testing.assert_array_equal(library.host(d.q_sample(x, steps, e))[2], library.host(d.q_sample(x, 40, e))[2])
        between = d.q_between(x, 0, steps)
        np.testing.assert_array_equal(library.host(between.mean)[1], library.host(d.q_between(x, 0, 17).mean)[1])
    assert d.q_sample(x, np.int64(3), e).dtype == x.dtype
    np.testing.assert_array_equal(library.host(d.q_sample(x, 0, e)), host)


def test_a_row_of_many_moves_is_the_move_alone(library: Library) -> None:
    d = Diffusion(schedules.cosine(40))
    x, e = library.array(batch(3, 2, 2)), library.array(batch(3, 2, 2, seed=1))
    for t, s in (([1, 17, 40], [0, 3, 20]), ([30, 17, 40], 5), (40, [39, 3, 20]), (40, [39, 39, 39])):
        host_t, host_s = (u if isinstance(u, int) else np.array(u) for u in (t, s))
        posterior, between = d.posterior(x, e, host_t, host_s), d.q_between(x, host_s, host_t)
        for k, (one_t, one_s) in enumerate(np.broadcast(host_t, host_s)):
            alone = d.posterior(x, e, int(one_t), int(one_s)), d.q_between(x, int(one_s), int(one_t))
            for many, one in zip((posterior, between), alone, strict=True):
                np.testing.assert_array_equal(library.host(many.mean)[k], library.host(one.mean)[k])
                log_var = np.broadcast_to(np.ravel(library.host(many.log_var)), 3)[k]
                assert log_var == one.log_var


def test_the_first_array_says_the_dtype(library: Library) -> None:
    d, x = Diffusion(schedules.linear(10)), library.array(batch(2, 3))
    single = library.array(batch(2, 3), "float32")
    for value in (d.q_sample(single, 4, x), d.posterior(single, x, 4).mean, d.convert(single, x, 4, "eps", "x0")):
        assert value.dtype == single.dtype


def test_steps_on_a_device_are_not_checked_but_give_nan() -> None:
    """array-api-strict's second device can't be read from the host, as a GPU should not be."""
    xp, device = array_api_strict, array_api_strict.Device("device1")
    d = Diffusion(schedules.linear(10))
    host = batch(4, 3)
    x = xp.asarray(host, device=device)
    t = xp.asarray([0, 1, 10, 11], device=device)

    def rows(value: Any) -> NDArray[np.float64]:
        assert value.device == device
        return np.array(xp.asarray(value, device=xp.Device("CPU_DEVICE")))

    for value in (d.convert(x, x, t, "x0", "eps"), d.posterior(x, x, t).mean, d.convert(x, x, t, "x0", "x0")):
        assert np.isnan(rows(value)).any(axis=1).tolist() == [True, False, False, True]
    assert np.isnan(rows(d.q(x, t).mean)).any(axis=1).tolist() == [False, False, False, True]
    s = xp.asarray([0, 1, 4, 3], device=device)
    strided = d.posterior(x, x, t, s)
    assert np.isnan(rows(strided.mean)).any(axis=1).tolist() == [True, True, False, True]
    exact = d.posterior(host, host, 10, 4)
    np.testing.assert_allclose(rows(strided.mean)[2], exact.mean[2], rtol=1e-14)
    np.testing.assert_allclose(rows(strided.log_var)[2], exact.log_var, rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_strided_weights_on_a_device_are_as_exact_as_the_dtype(dtype: str) -> None:
    """Differences of log alpha_bar lose no digits, whatever the precision there."""
    xp, device = array_api_strict, array_api_strict.Device("device1")
    if not hasattr(xp, dtype):
        pytest.skip(f"array-api-strict has no {dtype}")
    d = Diffusion()
    t, s = np.array([2, 500, 1000, 1000]), np.array([1, 499, 999, 0])
    x = xp.ones((4, 1), dtype=getattr(xp, dtype), device=device)
    on = [xp.asarray(u, device=device) for u in (t, s)]
    value = d.posterior(x, xp.zeros_like(x), *on).mean
    w = np.array(xp.asarray(value, device=xp.Device("CPU_DEVICE")))[:, 0]
    np.testing.assert_allclose(w, d.posterior_weights(t, s)[1], rtol=8 * float(np.finfo(dtype).eps))


def test_low_precision_stays_finite_and_close(native: Library) -> None:
    """float16: every quantity finite, within a few units of its own precision relative to the data's size."""
    d = Diffusion()
    x, e = batch(4, 8), batch(4, 8, seed=1)
    t = np.array([1, 10, 500, 1000])
    for dtype in ("float16",) if native.name == "numpy" else ("float16", "bfloat16"):
        low_x, low_e = native.array(x, dtype), native.array(e, dtype)
        low = native.host(d.q_sample(low_x, t, low_e)).astype(np.float64)
        eps = 2.0**-10 if dtype == "float16" else 2.0**-7
        np.testing.assert_allclose(low, d.q_sample(x, t, e), atol=4 * eps * 3.5)
        back = native.host(d.convert(low_e, low_x, t, "eps", "x0")).astype(np.float64)
        assert np.isfinite(back).all()


@given(st.data(), diffusions, st.sampled_from(SPACINGS))
def test_timesteps_are_a_plan(data: st.DataObject, d: Diffusion, spacing: str) -> None:
    steps = data.draw(st.integers(1, d.T))
    plan = d.timesteps(steps, spacing)
    assert len(plan) == steps + 1
    assert plan[0] == d.T
    assert plan[-1] == 0
    assert all(t > s for t, s in pairwise(plan))
    assert all(type(t) is int for t in plan)


def test_every_number_of_steps_gives_a_plan() -> None:
    """Peers' plans from float ranges yield n + 1 entries or -1 for 62 values of n <= 1000, and some never start at T."""
    d = Diffusion()
    for steps in range(1, 1001):
        plan = d.timesteps(steps)
        gaps = -np.diff(plan)
        assert (plan[0], plan[-1], len(plan)) == (1000, 0, steps + 1)
        assert gaps.max() - gaps.min() <= 1
    wrong = [
        n
        for n in range(1, 1001)
        if len(np.arange(0, 1000, 1000 / n)) != n or (1000 - np.arange(0, 1000, 1000 / n).round()).min() < 1
    ]
    assert wrong  # the float range, beside ours


def test_log_snr_spacing_is_evener_than_even() -> None:
    d = Diffusion()
    for steps in (10, 20, 50):
        spread = {s: np.std(np.diff(d.log_snr[list(d.timesteps(steps, s)[:-1])])) for s in SPACINGS}
        assert spread["log_snr"] < min(spread["quadratic"], spread["even"]) / 2


@given(st.data(), diffusions)
def test_respaced_chain_has_the_same_marginals(data: st.DataObject, d: Diffusion) -> None:
    plan = data.draw(plans(d.T))
    short = d.respaced(plan)
    at = np.array(plan[::-1])
    np.testing.assert_array_equal(short.alpha_bar, d.alpha_bar[at])
    np.testing.assert_array_equal(short.one_minus_alpha_bar, d.one_minus_alpha_bar[at])
    np.testing.assert_array_equal(short.log_snr, d.log_snr[at])
    assert short.beta[0] == 0
    np.testing.assert_array_equal(short.beta[1:], d.between_weights(at[1:], at[:-1])[1])
    assert d.respaced(range(d.T, -1, -1)) == d


def test_sample_t_is_uniform_and_a_function_of_the_seed() -> None:
    d = Diffusion(schedules.linear(10))
    t = d.sample_t(20_000, seed=3)
    assert t.shape == (20_000,)
    assert t.dtype.kind == "i"
    counts = np.bincount(t, minlength=11)[1:]
    assert counts.sum() == 20_000
    assert ((counts - 2000) ** 2 / 2000).sum() < 27.9  # chi-squared with 9 degrees of freedom, p = 0.001
    np.testing.assert_array_equal(t, d.sample_t(20_000, seed=3))
    assert not np.array_equal(t, d.sample_t(20_000, seed=4))
    assert d.sample_t(0, seed=0).shape == (0,)
    assert not np.array_equal(d.sample_t(50, seed=2**64 - 1), d.sample_t(50, seed=2**64 - 2))


def test_samples_are_the_samplers() -> None:
    d, x0 = Diffusion(schedules.linear(10)), batch(2, 3)
    denoiser = Denoiser(lambda x_t, t: np.broadcast_to(x0[0], x_t.shape).astype(x_t.dtype), predicts="x0")
    options: dict[str, Any] = {"seed": 3, "timesteps": (10, 7, 2, 0), "dtype": "float64"}
    ours = d.sample(denoiser, (2, 3), **options)
    np.testing.assert_array_equal(ours, samplers.sample(d, denoiser, (2, 3), **options))
    np.testing.assert_array_equal(ours, np.clip(np.broadcast_to(x0[0], (2, 3)), -1, 1))
    assert [step.t for step in d.trajectory(denoiser, (2, 3), **options)] == [10, 7, 2, 0]
    assert [step.t for step in d.trajectory(denoiser, (2, 3), every=2, **options)] == [10, 2, 0]


@given(betas)
def test_equal_hashable_and_picklable_by_content(beta: NDArray[np.float64]) -> None:
    d = Diffusion(beta)
    assert d == Diffusion(beta.copy())
    assert hash(d) == hash(Diffusion(beta.copy()))
    again = pickle.loads(pickle.dumps(d))
    assert again == d
    np.testing.assert_array_equal(again.beta_tilde, d.beta_tilde)
    assert not again.beta.flags.writeable
    assert d != Diffusion(np.append(beta * 0.5, 0.5))
    assert hash(d) != hash(Diffusion(np.append(beta * 0.5, 0.5)))
    assert d != "d"


def test_nothing_is_mutated_or_shared() -> None:
    beta = schedules.linear(5)
    d = Diffusion(beta)
    beta[0] = 0.5
    assert d.beta[1] == 1e-4
    with pytest.raises(FrozenInstanceError):
        d.beta = beta  # type: ignore[misc]
    x = batch(2, 3)
    before = x.copy()
    d.q_sample(x, 2, x), d.posterior(x, x, 3), d.convert(x, x, 2, "v", "eps")
    np.testing.assert_array_equal(x, before)


def test_threads_that_share_a_chain_agree_with_serial_use() -> None:
    d, x = Diffusion(schedules.linear(300)), batch(2, 3)

    def work(t: Any) -> Any:
        return d.convert(d.posterior(x, x, t).mean, x, t, "v", "mu")

    serial = [Diffusion(schedules.linear(300)).convert(d.posterior(x, x, t).mean, x, t, "v", "mu") for t in range(1, 301)]
    with ThreadPoolExecutor(8) as pool:
        np.testing.assert_array_equal(list(pool.map(work, range(1, 301))), serial)


def test_a_hundred_thousand_steps_take_less_than_a_second() -> None:
    """Of processor time, with all tables; the fastest of three, since others may use the machine."""

    def seconds() -> float:
        start = time.process_time()
        d = Diffusion(schedules.linear(100_000))
        assert len(d.log_snr) == len(d.beta_tilde) == len(d.alpha) == len(d.one_minus_alpha_bar) == 100_001
        return time.process_time() - start

    assert min(seconds() for _ in range(3)) < 1


def test_repr_says_what_it_is() -> None:
    assert repr(Diffusion(schedules.linear(10))) == "Diffusion(T=10, beta=0.0001..0.02, alpha_bar_T=0.9037)"


X = batch(2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.q_sample(X, 1, X[:1]), "eps must have the shape of x0, (2, 3), got (1, 3)"),
        (lambda d: d.posterior(X, X[:1], 1), "x0 must have the shape of x_t, (2, 3), got (1, 3)"),
        (lambda d: d.convert(X[:1], X, 1, "eps", "x0"), "value must have the shape of x_t, (2, 3), got (1, 3)"),
        (lambda d: d.posterior_weights(np.array([3, 4]), np.arange(3)), "s must broadcast against t's shape (2,), got (3,)"),
        (lambda d: d.posterior_weights(10, 10), "s must be in 0..9, got 10"),
        (lambda d: d.posterior(X, X, 10, 10), "s must be in 0..9, got 10"),
        (lambda d: d.sample_t(2**61, 0), f"n is more than can be allocated: {2**61}"),
    ],
)
def test_messages_name_the_rule_and_what_was_given(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(Diffusion(schedules.linear(10)))


def test_the_least_betas_keep_every_digit() -> None:
    """Next to float64's least normal number; what is smaller is refused, with its reason."""
    beta = [1e-300, 3e-307, 1e-307, 0.5, 1e-306, 1 - 1e-16]
    d = Diffusion(beta)
    with _truth.exactly(400):
        exact = _truth.Chain(beta)
        for t in range(1, 7):
            pair = [1 - exact.alpha_bar[t], exact.weights(t, t - 1)[0]]
            assert _core.ulp_error([d.one_minus_alpha_bar[t], d.posterior_weights(t)[0]], pair) <= 4
    assert not np.signbit(d.one_minus_alpha_bar[0])
    with pytest.raises(
        ValueError, match=r"^beta must be at least 2.225e-308, float64's least normal number, got beta_1 = 5e-324$"
    ):
        Diffusion([5e-324, 0.1])


def test_replace_makes_the_chain_of_other_betas() -> None:
    assert dataclasses.replace(Diffusion(), beta=[0.1, 0.2]) == Diffusion([0.1, 0.2])
    with pytest.raises(ValueError, match=r"^beta must be in \(0, 1\), got beta_1 = 0.0"):
        dataclasses.replace(Diffusion([0.1, 0.2]))


def test_a_flat_piece_after_a_steep_one_keeps_its_digits() -> None:
    """Sums of log alpha of size 37 cannot show betas of 1e-300; the variance between was 0 or negative."""
    beta = [0.5, 1 - 1e-16, 1e-300, 2e-300, 1e-40, 0.1]
    d = Diffusion(beta)
    exact = [1e-300, 3e-300, 1e-40]
    for found in (d.between_weights(np.array([3, 4, 5]), 2)[1], [d.between_weights(t, 2)[1] for t in (3, 4, 5)]):
        np.testing.assert_allclose(found, exact, rtol=4e-16)
    np.testing.assert_allclose(d.respaced((6, 4, 2, 0)).beta[2], 3e-300, rtol=4e-16)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_coefficients_beyond_the_dtype_make_no_nan(dtype: str) -> None:
    d = Diffusion([1 - 1e-10, 1 - 1e-16, 1e-300])  # 1 / sqrt(alpha_bar) is 1e5, 1e13
    x = np.array([[0.5, -0.25]], dtype)
    assert np.isfinite(d.convert(d.convert(x, x, 2, "eps", "x0"), x, 2, "x0", "eps")).all() or dtype == "float16"
    eps = Denoiser(lambda x_t, t: 0 * x_t + x).eps(d, 2 * x, 2)
    assert np.isfinite(eps).all()
    with pytest.raises(ValueError, match=r"^t must be a step at which x0 follows from eps, got 6, where .*, in float32$"):
        Diffusion([1 - 1e-16] * 6).convert(x, x, np.array([6]), "eps", "x0")
    assert Gaussian(np.zeros(1, np.float32), -400.0).kl(Gaussian(np.zeros(1, np.float32), -400.0)) == 0  # exp(200) is infinite
