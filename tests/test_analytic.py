"""Closed-form data: the exact network against gradients of the density, quadrature, and each array library."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import mpmath as mp
import numpy as np
import pytest
from conftest import Library
from hypothesis import given
from hypothesis import strategies as st
from strategies import batch, smooth_diffusions

from tinyddpm import Denoiser, Diffusion, schedules
from tinyddpm.analytic import GaussianData, MixtureData

CHAIN = Diffusion(schedules.linear(50, 1e-3, 0.2))
GAUSSIAN = GaussianData(batch(2, 3, seed=1) / 3, 0.1 + batch(2, 3, seed=2) ** 2)
MIXTURE = MixtureData([0.2, 0.5, 0.3], batch(3, 2, 3, seed=3) / 2, [0.02, 0.1, 0.5])
DATA = pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])


def gradient(library: Library, f: Callable[..., Any], x: Any) -> Any:
    if library.name == "jax":
        import jax

        return np.asarray(jax.grad(lambda x: f(x).sum())(library.array(x)))
    x = library.array(x).requires_grad_()
    f(x).sum().backward()
    return x.grad.numpy()


@DATA
@pytest.mark.parametrize("t", [1, 7, 50])
def test_the_exact_net_is_the_score_of_the_marginal(differentiable: Library, data: GaussianData | MixtureData, t: int) -> None:
    """eps = -sqrt(1 - alpha_bar) grad log q(x_t); 1e-11: rounding of about 20 operations, times 1 / var at t = 1."""
    x = batch(5, 2, 3)
    score = gradient(differentiable, data.marginal(CHAIN, t).log_prob, x)
    np.testing.assert_allclose(data.net(CHAIN)(x, t), -CHAIN.sqrt_one_minus_alpha_bar[t] * score, rtol=1e-11, atol=1e-11)


@DATA
def test_the_net_differentiates_and_agrees_in_every_library(library: Library, data: GaussianData | MixtureData) -> None:
    x, t = batch(4, 2, 3), np.array([1, 3, 20, 50])
    expected = np.concatenate([data.net(CHAIN)(x[i : i + 1], int(t[i])) for i in range(4)])
    for steps in (t, library.array(t)):
        np.testing.assert_allclose(library.host(data.net(CHAIN)(library.array(x), steps)), expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(library.host(data.log_prob(library.array(x))), data.log_prob(x), rtol=1e-12)
    single = data.net(CHAIN)(library.array(x, "float32"), 20)
    assert single.dtype == library.xp.float32
    # float32 rounds x by 6e-8, and squared distances over variances of 0.02 by more
    np.testing.assert_allclose(library.host(single), data.net(CHAIN)(x, 20), rtol=1e-4, atol=1e-5)


@DATA
def test_the_net_runs_under_jit(data: GaussianData | MixtureData) -> None:
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    x, t = batch(4, 2, 3), np.array([1, 3, 20, 50])
    compiled = jax.jit(data.net(CHAIN))(jax.numpy.asarray(x), jax.numpy.asarray(t))
    np.testing.assert_allclose(compiled, data.net(CHAIN)(x, t), rtol=1e-12, atol=1e-13)


@given(d=smooth_diffusions, share=st.floats(0, 1))
def test_a_marginal_of_a_shorter_chain_is_the_same_law(d: Diffusion, share: float) -> None:
    t = 1 + round(share * (d.T - 1))
    short = d.respaced((d.T, *([t] if t < d.T else []), 0))
    k = 1
    for data in (GAUSSIAN, MIXTURE):
        long, other = data.marginal(d, t), data.marginal(short, k if t < d.T else short.T)
        np.testing.assert_allclose(long.log_prob(batch(3, 2, 3)), other.log_prob(batch(3, 2, 3)), rtol=1e-12)
        assert data.marginal(d, 0) == data


def test_log_prob_against_fifty_digits() -> None:
    x = batch(4, 2, 3)
    with mp.workdps(50):
        for row, ours in zip(x, MIXTURE.log_prob(x), strict=True):
            joint = [
                w
                * mp.fprod(mp.npdf(mp.mpf(a), m, mp.sqrt(mp.mpf(v))) for a, m, v in zip(row.flat, ms.flat, vs.flat, strict=True))
                for w, ms, vs in zip(MIXTURE.weights, MIXTURE.means, MIXTURE.vars, strict=True)
            ]
            assert ours == pytest.approx(float(mp.log(mp.fsum(joint))), rel=1e-13)  # a few roundings of a sum of 6 terms


def test_samples_follow_the_law() -> None:
    """The probability integral transform of a two-component mixture is uniform (Kolmogorov and Smirnov's distance; at
    n = 20 000 it passes 0.0145 with probability 5e-4), and each component has its weight."""
    from scipy.stats import kstest, norm

    data = MixtureData([0.25, 0.75], [-0.5, 0.4], [0.01, 0.09])
    x = data.sample(20_000, seed=4)
    cdf = 0.25 * norm.cdf(x, -0.5, 0.1) + 0.75 * norm.cdf(x, 0.4, 0.3)
    assert kstest(cdf, "uniform").statistic < 0.0145
    y = GAUSSIAN.sample(20_000, seed=5)
    assert kstest(norm.cdf(((y - GAUSSIAN.mean) / np.sqrt(GAUSSIAN.var)).ravel()), "uniform").statistic < 0.006  # n = 120 000


@DATA
def test_a_sample_is_a_function_of_seed_and_number(data: GaussianData | MixtureData) -> None:
    assert np.array_equal(data.sample(10, seed=1)[:4], data.sample(4, seed=1))
    assert not np.array_equal(data.sample(4, seed=1), data.sample(4, seed=2))
    assert data.sample(0, seed=1).shape == (0, 2, 3)


def test_a_mixture_of_one_is_the_gaussian(library: Library) -> None:
    """The general path with two equal components, and the short one with a single component, agree with it."""
    x = library.array(batch(3, 2, 3))
    expected = library.host(GAUSSIAN.net(CHAIN)(x, 9))
    for weights in ([1.0], [0.3, 0.7]):
        k = len(weights)
        same = MixtureData(weights, [GAUSSIAN.mean] * k, [GAUSSIAN.var] * k)
        np.testing.assert_allclose(library.host(same.net(CHAIN)(x, 9)), expected, rtol=1e-13)
        np.testing.assert_allclose(library.host(same.log_prob(x)), library.host(GAUSSIAN.log_prob(x)), rtol=1e-13)


def test_pure_noise_is_its_own_prediction(library: Library) -> None:
    """At alpha_bar = 0, x_T is eps."""
    d = Diffusion(schedules.zero_terminal_snr(schedules.linear(20)))
    x = library.array(batch(3, 2, 3))
    for data in (GAUSSIAN, MIXTURE):
        np.testing.assert_allclose(library.host(data.net(d)(x, 20)), library.host(x), rtol=1e-12)


@pytest.mark.parametrize("far", [1e3, 1e8, 1e15])
def test_far_from_every_component_the_prediction_stays_finite(native: Library, far: float) -> None:
    """The densities underflow there, their ratios don't: beyond both components the nearer one takes all."""
    data = MixtureData([0.5, 0.5], [[-0.5], [0.5]], 0.01)
    for dtype in ("float32", "float64"):
        x = native.array([[-far], [far]], dtype)
        eps = native.host(data.net(CHAIN)(x, 1))
        alone = native.host(GaussianData([0.5], 0.01).net(CHAIN)(x, 1))
        np.testing.assert_allclose(eps[1], alone[1], rtol=1e-6)  # a float32's rounding
        assert np.isfinite(eps).all()


def test_half_precision_is_finite(native: Library) -> None:
    """16 bits: squared distances over a variance of 1e-4 would leave float16's range; 4e-3 is a few of its roundings."""
    data = MixtureData([0.5, 0.5], [[-3.0], [3.0]], 1e-4)
    x = np.array([[3.5], [-3.5], [0.25], [40.0]])
    half = data.net(CHAIN)(native.array(x, "float16"), 2)
    assert half.dtype == native.xp.float16
    np.testing.assert_allclose(native.host(half), data.net(CHAIN)(x.astype(np.float16).astype(float), 2), rtol=4e-3)


@DATA
def test_data_are_values(data: GaussianData | MixtureData) -> None:
    again = pickle.loads(pickle.dumps(data))
    assert again == data
    assert hash(again) == hash(data)
    assert hash(data.net(CHAIN)) == hash(pickle.loads(pickle.dumps(data.net(CHAIN))))
    assert data != GaussianData(0.0, 1.0)
    assert data != "data"
    for value in again._values:
        with pytest.raises(ValueError, match="read-only"):
            value[...] = 0


def test_a_caller_keeps_its_arrays() -> None:
    mean = np.zeros(3)
    data = GaussianData(mean, 1.0)
    mean[:] = 7
    assert not data.mean.any()
    assert mean.flags.writeable


def test_a_point_has_predictions_but_no_density(library: Library) -> None:
    point = GaussianData(np.full(3, 0.25), 0.0)
    x = library.array(batch(2, 3))
    x0 = Denoiser(point.net(CHAIN)).x0(CHAIN, x, 30)
    np.testing.assert_allclose(library.host(x0), 0.25, rtol=1e-13)
    with pytest.raises(ValueError, match="x has a density only"):
        point.log_prob(x)


def test_what_the_host_can_read_is_read() -> None:
    torch = pytest.importorskip("torch")
    data = GaussianData(torch.tensor([0.1, 0.2], requires_grad=True), torch.tensor(0.5, dtype=torch.bfloat16))
    np.testing.assert_array_equal(data.mean, np.array([0.1, 0.2], np.float32))
    assert data.var.tolist() == [0.5, 0.5]


def test_far_points_are_no_error_where_numpy_raises(recwarn: pytest.WarningsRecorder) -> None:
    """Densities underflow there, which is right."""
    mixture = MixtureData([0.5, 0.5], [[-0.5], [0.5]], 1e-4)
    with np.errstate(all="raise"):
        log_prob = mixture.log_prob(np.array([[0.5], [-40.0]]))
        eps = mixture.net(CHAIN)(np.array([[0.5], [-40.0]]), 1)
    assert np.isfinite(log_prob).all()
    assert np.isfinite(eps).all()
    assert not recwarn
