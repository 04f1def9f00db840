"""Reading a network: every prediction and variance, strided moves, clipping."""

from __future__ import annotations

import math
import pickle
from dataclasses import FrozenInstanceError
from typing import Any

import array_api_strict
import numpy as np
import pytest
from conftest import Library
from hypothesis import given
from hypothesis import strategies as st
from strategies import batch, pairs, smooth_diffusions

from tinyddpm import Denoiser, Diffusion, schedules
from tinyddpm.conversions import KINDS
from tinyddpm.denoiser import Net

X = batch(2, 4, 3)


def eps_net(x_t: Any, t: Any) -> Any:
    return 0.3 * x_t + 0.1


def as_kind(d: Diffusion, kind: str, net: Net = eps_net) -> Denoiser:
    return Denoiser(lambda x_t, t: d.convert(net(x_t, t), x_t, t, "eps", kind), kind, clip_x0=False)


@given(st.data(), smooth_diffusions, st.sampled_from(KINDS))
def test_every_prediction_is_read_alike(data: st.DataObject, d: Diffusion, kind: str) -> None:
    t, s = data.draw(pairs(d))
    plain, other = Denoiser(eps_net, clip_x0=False), as_kind(d, kind)
    np.testing.assert_allclose(other.x0(d, X, t), plain.x0(d, X, t), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(other.eps(d, X, t), plain.eps(d, X, t), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(other.p(d, X, t, s).mean, plain.p(d, X, t, s).mean, rtol=1e-6, atol=1e-7)


@given(st.data(), smooth_diffusions)
def test_p_is_the_posterior_at_the_predicted_x0(data: st.DataObject, d: Diffusion) -> None:
    t, s = data.draw(pairs(d))
    denoiser = Denoiser(eps_net)
    p = denoiser.p(d, X, t, s)
    np.testing.assert_array_equal(p.mean, d.posterior(X, denoiser.x0(d, X, t), t, s).mean)


def log_variances(d: Diffusion, variance: Any, net: Net = eps_net, t: Any = None) -> Any:
    t = np.arange(1, d.T + 1) if t is None else t
    return np.ravel(Denoiser(net, variance=variance).p(d, np.zeros((len(t), 1)), t).log_var)


def test_fixed_variances_are_the_published_ones() -> None:
    """beta or beta_tilde, with beta_tilde_2 at t = 1: 5.4532e-5 on the linear schedule."""
    d = Diffusion()
    first = np.log(d.beta_tilde[2])
    assert math.exp(first) == pytest.approx(5.4532e-5, rel=1e-4)
    np.testing.assert_allclose(log_variances(d, "beta"), np.append(first, np.log(d.beta[2:])), rtol=1e-14)
    np.testing.assert_allclose(log_variances(d, "beta_tilde"), np.append(first, np.log(d.beta_tilde[2:])), rtol=1e-14)
    for variance in ("beta", "beta_tilde"):
        ints = [Denoiser(eps_net, variance=variance).p(d, X, t).log_var for t in range(1, d.T + 1)]
        np.testing.assert_array_equal(ints, log_variances(d, variance))
        single = Diffusion([0.25])
        assert Denoiser(eps_net, variance=variance).p(single, X, 1).log_var == math.log(0.25)


def test_strided_variances() -> None:
    d = Diffusion(schedules.cosine(100))
    for t, s in ((80, 40), (100, 99), (3, 1)):
        beta = 1 - d.alpha_bar[t] / d.alpha_bar[s]
        tilde = beta * (1 - d.alpha_bar[s]) / (1 - d.alpha_bar[t])
        assert Denoiser(eps_net).p(d, X, t, s).log_var == pytest.approx(math.log(beta), rel=1e-9)
        assert Denoiser(eps_net, variance="beta_tilde").p(d, X, t, s).log_var == pytest.approx(math.log(tilde), rel=1e-9)
    assert Denoiser(eps_net).p(d, X, 50, 0).log_var == math.log(d.one_minus_alpha_bar[50])
    assert Denoiser(eps_net, variance="beta_tilde").p(d, X, 50, 0).log_var == -math.inf
    tilde_net, moves = Denoiser(eps_net, variance="beta_tilde"), ((50, 0), (7, 3))
    each = [tilde_net.p(d, X[i : i + 1], *move).log_var for i, move in enumerate(moves)]
    np.testing.assert_allclose(np.ravel(tilde_net.p(d, X, *np.transpose(moves)).log_var), each, rtol=1e-14)


def range_net(v: float) -> Net:
    def net(x_t: Any, t: Any) -> Any:
        return np.concatenate([eps_net(x_t, t), np.full_like(x_t, v)], axis=1)

    return net


def test_learned_range_interpolates_between_beta_tilde_and_beta() -> None:
    """[iDDPM eq. 15]: v = 1 is beta, v = -1 is beta_tilde (beta_tilde_2 at t = 1), v = 0 their geometric mean."""
    d = Diffusion()
    low, high = log_variances(d, "beta_tilde"), np.log(d.beta[1:])
    np.testing.assert_allclose(log_variances(d, "learned_range", range_net(-1.0)), low, rtol=1e-13)
    np.testing.assert_allclose(log_variances(d, "learned_range", range_net(1.0)), high, rtol=1e-13)
    np.testing.assert_allclose(log_variances(d, "learned_range", range_net(0.0)), (low + high) / 2, rtol=1e-13)
    into_zero = Denoiser(range_net(-1.0), variance="learned_range").p(d, X, 30, 0)
    np.testing.assert_allclose(into_zero.log_var, math.log(d.one_minus_alpha_bar[30]), rtol=1e-13)


def test_learned_is_the_second_half_of_the_channels() -> None:
    d = Diffusion(schedules.linear(10))
    p = Denoiser(range_net(-3.5), variance="learned").p(d, X, 4)
    np.testing.assert_array_equal(p.log_var, np.full_like(X, -3.5))
    np.testing.assert_array_equal(p.mean, Denoiser(eps_net).p(d, X, 4).mean)


def test_a_table_of_variances() -> None:
    d = Diffusion(schedules.linear(10))
    table = np.linspace(0.1, 0.5, 11)
    np.testing.assert_allclose(np.exp(log_variances(d, table)), table[1:], rtol=1e-14)
    denoiser = Denoiser(eps_net, variance=table)
    assert denoiser.p(d, X, 4, 3).log_var == math.log(table[4])
    with pytest.raises(ValueError, match="variance must be a name for longer steps"):
        denoiser.p(d, X, 4, 2)
    with pytest.raises(ValueError, match=r"^variance\b"):
        denoiser.p(Diffusion(schedules.linear(20)), X, 4)
    with pytest.raises(ValueError, match="variance must be a name for longer steps"):
        d.sample(denoiser, (2, 4, 3), steps=5)
    table[:] = 7  # the denoiser keeps its own copy
    assert denoiser.p(d, X, 10).log_var == math.log(0.5)


def test_networks_are_told_the_step_as_they_count_it() -> None:
    seen = []

    def net(x_t: Any, t: Any) -> Any:
        seen.append(t)
        return 0 * x_t

    d = Diffusion(schedules.linear(10))
    Denoiser(net).x0(d, X, 10)
    Denoiser(net, first_t=0).x0(d, X, 10)
    Denoiser(net, first_t=0).x0(d, X, np.array([1, 5]))
    assert [t.tolist() for t in seen] == [[10, 10], [9, 9], [0, 4]]
    assert all(t.dtype == np.int64 and t.shape == (2,) for t in seen)


def test_respaced_denoiser_sees_the_long_chains_steps() -> None:
    d = Diffusion(schedules.linear(100))
    plan = (100, 70, 12, 0)
    for first_t in (0, 1):
        seen: list[Any] = []

        def net(x_t: Any, t: Any, seen: list[Any] = seen) -> Any:
            seen.append(t.tolist())
            return eps_net(x_t, t)

        long = Denoiser(net, first_t=first_t)
        short = long.respaced(plan)
        r = d.respaced(plan)
        for k, (t, s) in enumerate(zip(plan, plan[1:], strict=False)):
            a, b = long.p(d, X, t, s), short.p(r, X, 3 - k)
            np.testing.assert_allclose(b.mean, a.mean, rtol=1e-13)
            if s:
                assert b.log_var == pytest.approx(a.log_var, rel=1e-13)
        assert seen[::2] == seen[1::2]
        np.testing.assert_array_equal(short.x0(r, X, np.array([1, 3])), long.x0(d, X, np.array([12, 100])))
    with pytest.raises(ValueError, match="variance"):
        Denoiser(eps_net, variance=np.ones(101)).respaced(plan)


def test_every_library_agrees(library: Library) -> None:
    d = Diffusion(schedules.cosine(30))
    x = library.array(X)
    for t in (7, np.array([1, 30]), library.array(np.array([1, 30]))):
        host_t = t if isinstance(t, int) else np.array([1, 30])
        for variance in ("beta", "beta_tilde"):
            denoiser = Denoiser(eps_net, variance=variance)
            p, truth = denoiser.p(d, x, t), denoiser.p(d, X, host_t)
            np.testing.assert_allclose(library.host(p.mean), truth.mean, rtol=1e-12)
            spread = p.log_var if isinstance(p.log_var, float) else library.host(p.log_var)
            np.testing.assert_allclose(spread, truth.log_var, rtol=1e-12)


def test_steps_on_a_device() -> None:
    xp, device = array_api_strict, array_api_strict.Device("device1")
    d = Diffusion(schedules.linear(10))
    x = xp.asarray(batch(4, 3), device=device)
    t = xp.asarray([1, 2, 10, 0], device=device)
    for variance in ("beta", "beta_tilde", np.linspace(0.1, 0.2, 11)):
        denoiser = Denoiser(eps_net, variance=variance)
        log_var = denoiser.p(d, x, t).log_var
        host = np.ravel(np.array(xp.asarray(log_var, device=xp.Device("CPU_DEVICE"))))
        truth = np.ravel(denoiser.p(d, batch(3, 3), np.array([1, 2, 10])).log_var)
        np.testing.assert_allclose(host[:3], truth, rtol=1e-14)
        assert np.isnan(host[3])


def test_equal_hashable_and_picklable_by_content() -> None:
    table = np.linspace(0.1, 0.2, 11)
    a, b = Denoiser(eps_net, variance=table), Denoiser(eps_net, variance=table.copy())
    assert a == b
    assert hash(a) == hash(b)
    assert pickle.loads(pickle.dumps(a)) == a
    assert a != Denoiser(eps_net)
    assert a != "a"
    with pytest.raises(FrozenInstanceError):
        a.predicts = "v"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda x, t: x[:, :2], r"net must return shape \(2, 4, 3\), got \(2, 2, 3\) at t = 3"),
        (lambda x, t: x.astype(np.float32), "net must return float64, got float32 at t = 3"),
        (lambda x, t: array_api_strict.asarray(x), "net must return ndarray, got Array at t = 3"),
        (lambda x, t: None, r"^net\b"),
    ],
)
def test_a_wrong_output_names_the_network_and_the_step(net: Net, message: str) -> None:
    d = Diffusion(schedules.linear(10))
    for use in (Denoiser(net).x0, Denoiser(net).eps, Denoiser(net).p):
        with pytest.raises(ValueError, match=message):
            use(d, X, 3)


def test_a_learned_variance_needs_twice_the_channels() -> None:
    with pytest.raises(ValueError, match=r"net must return shape \(2, 8, 3\), got \(2, 4, 3\) at t = 3"):
        Denoiser(eps_net, variance="learned").p(Diffusion(schedules.linear(10)), X, 3)


def test_x0_is_clipped_to_the_range_given(library: Any) -> None:
    d, x = Diffusion(schedules.linear(10)), library.array(X)
    far = Denoiser(lambda x_t, t: 0 * x_t + 5.0, predicts="x0", clip_x0=(-2, 3))
    assert (library.host(far.x0(d, x, 4)) == 3.0).all()
    assert (library.host(d.sample(far, (2, 3), sampler="ddim", steps=4, backend=library.name)) == 3.0).all()
    assert Denoiser(lambda x_t, t: x_t, clip_x0=(-1, 1)).clip_range == Denoiser(lambda x_t, t: x_t).clip_range


def test_a_step_of_no_shape_is_one_for_the_whole_batch(library: Any) -> None:
    d, x = Diffusion(schedules.linear(10)), library.array(X)
    t, denoiser = library.backend.from_numpy(np.array(4)), Denoiser(lambda x_t, t: 0.5 * x_t)
    for one, same in (
        (d.q(x, t), d.q(x, 4)),
        (d.posterior(x, x, t), d.posterior(x, x, 4)),
        (denoiser.p(d, x, t), denoiser.p(d, x, 4)),
    ):
        np.testing.assert_array_equal(library.host(one.mean), library.host(same.mean))


def test_a_table_for_each_dimension_is_used_for_each(library: Any) -> None:
    d = Diffusion(schedules.linear(10))
    table = np.linspace(0.1, 0.3, 11)[:, None, None] * np.linspace(1.0, 2.0, X.shape[2])
    denoiser = Denoiser(lambda x_t, t: 0.5 * x_t, variance=np.broadcast_to(table, (11, *X.shape[1:])))
    x, t = library.array(X), np.array([3, 10])
    np.testing.assert_allclose(np.broadcast_to(library.host(denoiser.p(d, x, 3).var), X.shape)[0, 0], table[3, 0], rtol=1e-6)
    per_row = np.broadcast_to(library.host(denoiser.p(d, x, t).var), X.shape)
    np.testing.assert_allclose(per_row[:, 0], table[t, 0], rtol=1e-6)
    assert tuple(d.sample(denoiser, X.shape, backend=library.name).shape) == X.shape
    with pytest.raises(ValueError, match=r"^variance must be a table of shape \(T \+ 1"):
        denoiser.p(d, library.array(X[:, :2]), 3)
