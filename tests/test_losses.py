"""Training losses: what each is zero for, what it weighs, what it leaves alone, and the samplers of t."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from conftest import Library
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import batch, smooth_diffusions

from tinyddpm import Denoiser, Diffusion, gaussian, guidance, likelihood, losses, schedules
from tinyddpm.analytic import GaussianData
from tinyddpm.conversions import KINDS
from tinyddpm.denoiser import Net

T = 20
CHAIN = Diffusion(schedules.linear(T, 1e-3, 0.3))
DATA = GaussianData(batch(2, 3, seed=1) / 5, 0.04)
EXACT = DATA.net(CHAIN)
X0, EPS = np.clip(DATA.sample(5, seed=2), -1, 1), batch(5, 2, 3, seed=3)
STEPS = np.array([1, 2, 7, T, 1])
ALL = [losses.simple, losses.vlb, losses.hybrid, losses.weighted]
KIND = pytest.mark.parametrize("kind", KINDS)


def as_kind(kind: str, net: Net = EXACT, chain: Diffusion = CHAIN) -> Denoiser:
    """The same prediction, told as another kind."""
    return Denoiser(lambda x_t, t: chain.convert(net(x_t, t), x_t, t, "eps", kind), predicts=kind, clip_x0=False)


def learned(variance: str = "learned_range", raw: float = 0.3) -> Denoiser:
    """A network that also emits its variance."""
    return Denoiser(lambda x_t, t: np.concatenate([EXACT(x_t, t), np.full_like(x_t, raw)], axis=1), variance=variance)


def per_row(f: Callable[[slice, int], Any], t: NDArray[np.int64]) -> NDArray[np.float64]:
    """f at int steps, one row at a time."""
    return np.concatenate([f(slice(i, i + 1), int(t[i])) for i in range(len(t))])


@KIND
def test_simple_is_the_mean_square_of_the_predicted_quantity(library: Library, kind: str) -> None:
    """0 for the truth, c**2 for a network that is c off; 1e-12: the conversion's rounding over sigma**2 at t = 1."""
    x0, eps, t = library.array(X0), library.array(EPS), library.array(STEPS)
    x_t = CHAIN.q_sample(x0, t, eps)
    truth = {
        "x0": x0,
        "eps": eps,
        "mu": CHAIN.posterior(x_t, x0, t).mean,
        "v": CHAIN.convert(x0, x_t, t, "x0", "v"),
        "score": CHAIN.convert(x0, x_t, t, "x0", "score"),
    }
    for c in (0.0, 0.5):
        net = Denoiser(partial(lambda c, x, t: truth[kind] + c, c), predicts=kind)
        loss = losses.simple(CHAIN, net, x0, t, eps)
        assert tuple(loss.shape) == (5,)
        np.testing.assert_allclose(library.host(loss), c**2, rtol=1e-10, atol=1e-20)


@KIND
def test_weightings_do_not_depend_on_what_is_predicted(kind: str) -> None:
    """Each weighs the same error of x_0; 1e-9: that error is divided by sqrt(SNR) from what eps rounds to."""
    x_t = CHAIN.q_sample(X0, STEPS, EPS)
    snr = (CHAIN.alpha_bar / np.maximum(CHAIN.one_minus_alpha_bar, 1e-300))[STEPS]
    x0_error = np.mean((X0 - as_kind("eps").x0(CHAIN, x_t, STEPS)) ** 2, axis=(1, 2))
    expected = {
        ("snr", None): snr * x0_error,
        ("min_snr", None): np.minimum(snr, 5) * x0_error,
        ("min_snr", 1.5): np.minimum(snr, 1.5) * x0_error,
        ("p2", None): snr * x0_error / (1 + snr),
        ("p2", 0.5): snr * x0_error / np.sqrt(1 + snr),
    }
    for (weighting, gamma), loss in expected.items():
        ours = losses.weighted(CHAIN, as_kind(kind), X0, STEPS, EPS, weighting=weighting, gamma=gamma)
        np.testing.assert_allclose(ours, loss, rtol=1e-9)
    uniform = losses.weighted(CHAIN, as_kind(kind), X0, STEPS, EPS, weighting="uniform")
    assert np.array_equal(uniform, losses.simple(CHAIN, as_kind(kind), X0, STEPS, EPS))


@pytest.mark.parametrize("variance", ["beta", "beta_tilde", "learned", "learned_range", "table"])
def test_vlb_is_the_divergence_from_the_posterior(variance: str) -> None:
    """KL(q(x_{t-1} | x_t, x_0) || p) by its definition for t > 1, the decoder at t = 1; the output is never clipped."""
    table = np.linspace(0.001, 0.2, T + 1)
    if variance.startswith("learned"):
        denoiser = learned(variance, -2.0 if variance == "learned" else 0.3)
    else:
        denoiser = Denoiser(EXACT, variance=table if variance == "table" else variance)
    unclipped = replace(denoiser, clip_x0=False)

    def definition(row: slice, t: int) -> NDArray[np.float64]:
        x_t = CHAIN.q_sample(X0[row], t, EPS[row])
        p = unclipped.p(CHAIN, x_t, t)
        term = -p.discretized_log_prob(X0[row]) if t == 1 else CHAIN.posterior(x_t, X0[row], t).kl(p)
        return np.asarray(term.mean(axis=(1, 2)))

    loss = losses.vlb(CHAIN, denoiser, X0, STEPS, EPS)
    np.testing.assert_allclose(loss, per_row(definition, STEPS), rtol=1e-10)
    np.testing.assert_allclose(loss, per_row(lambda row, t: losses.vlb(CHAIN, denoiser, X0[row], t, EPS[row]), STEPS), rtol=1e-12)


def test_every_loss_agrees_in_every_library(library: Library) -> None:
    xp = library.xp

    def net(x_t: Any, t: Any) -> Any:
        return xp.concat([EXACT(x_t, t), xp.full_like(x_t, 0.3)], axis=1)

    for loss in ALL:
        expected = loss(CHAIN, learned(), X0, STEPS, EPS)
        for t in (STEPS, library.array(STEPS)):
            ours = loss(CHAIN, Denoiser(net, variance="learned_range"), library.array(X0), t, library.array(EPS))
            np.testing.assert_allclose(library.host(ours), expected, rtol=1e-9)  # log Phi: 1e-10
    single = losses.vlb(CHAIN, Denoiser(EXACT), library.array(X0, "float32"), STEPS, library.array(EPS))
    assert single.dtype == xp.float32


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("loss", ALL)
def test_half_precision_is_finite_and_near(native: Library, loss: Callable[..., Any], dtype: str) -> None:
    """Within 8 of its units of a loss of size 1 at mid-chain steps, where no weight magnifies what x_t lost to rounding."""
    if native.name == "numpy" and dtype == "bfloat16":
        pytest.skip("NumPy has no bfloat16")
    x0, eps = native.array(X0, dtype), native.array(EPS, dtype)
    net = Denoiser(lambda x_t, t: native.xp.concat([x_t / 2, 0 * x_t], axis=1), variance="learned_range")
    exact = loss(CHAIN, Denoiser(lambda x_t, t: np.concatenate([x_t / 2, 0 * x_t], 1), variance="learned_range"), X0, STEPS, EPS)
    low = native.host(loss(CHAIN, net, x0, STEPS, eps)).astype(float)
    assert np.isfinite(low).all()
    unit = 2.0**-10 if dtype == "float16" else 2.0**-7
    np.testing.assert_allclose(low[2:4], exact[2:4], rtol=8 * unit)


# Gradients.


def gradients(
    library: Library, loss: Callable[..., Any], t: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of the loss's sum with respect to the network's output, (mean half, variance half)."""
    out = np.concatenate([EXACT(CHAIN.q_sample(X0, t, EPS), t), np.full_like(X0, 0.3)], axis=1)
    x0, eps = library.array(X0), library.array(EPS)

    def total(out: Any) -> Any:
        return loss(CHAIN, Denoiser(lambda x, t: out, variance="learned_range"), x0, t, eps).sum()

    if library.name == "jax":
        import jax

        grad = np.asarray(jax.grad(total)(library.array(out)))
    else:
        leaf = library.array(out).requires_grad_()
        total(leaf).backward()
        grad = leaf.grad.numpy()
    return grad[:, :2], grad[:, 2:]


def test_hybrid_trains_the_mean_by_simple_and_the_variance_by_the_whole_bound(differentiable: Library) -> None:
    """The mean is detached inside vlb, and vlb counts T times: with one term where the sum is meant, as well-known code
    once had it, the variance would learn T times more slowly."""
    simple, vlb, hybrid = (gradients(differentiable, f, STEPS) for f in (losses.simple, losses.vlb, losses.hybrid))
    np.testing.assert_allclose(hybrid[0], simple[0], rtol=1e-12)
    assert not simple[1].any()
    np.testing.assert_allclose(hybrid[1], 0.001 * T * vlb[1], rtol=1e-12)
    one_term = 0.001 * vlb[1]
    np.testing.assert_allclose(hybrid[1] / one_term, T, rtol=1e-12)
    assert np.abs(vlb[0]).min() > 0  # so detaching matters
    doubled = gradients(differentiable, partial(losses.hybrid, weight=0.002), STEPS)
    np.testing.assert_allclose(doubled[1], 2 * hybrid[1], rtol=1e-12)


def test_gradients_of_the_bound_are_those_of_finite_differences(differentiable: Library) -> None:
    """At t = 1 beside other steps too: no branch that is not taken leaks a NaN. 1e-5: a central difference of step 1e-5."""
    mean, raw = gradients(differentiable, losses.vlb, STEPS)
    out = np.concatenate([EXACT(CHAIN.q_sample(X0, STEPS, EPS), STEPS), np.full_like(X0, 0.3)], axis=1)

    def total(out: Any) -> Any:
        return losses.vlb(CHAIN, Denoiser(lambda x, t: out, variance="learned_range"), X0, STEPS, EPS).sum()

    for row in range(5):
        for channel in range(4):
            step = np.zeros_like(out)
            step[row, channel, 1] = 1e-5
            difference = (total(out + step) - total(out - step)) / 2e-5
            assert np.concatenate([mean, raw], axis=1)[row, channel, 1] == pytest.approx(difference, rel=1e-5, abs=1e-8)


def test_losses_and_gradients_under_jit() -> None:
    """A traced t is read by nobody: all branches are computed, and the right one is taken."""
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    jnp = jax.numpy

    def net(scale: float) -> Net:
        return lambda x_t, t: jnp.concat([scale * EXACT(x_t, t), jnp.full_like(x_t, 0.3)], axis=1)

    for loss in ALL:

        def total(scale: Any, x0: Any, t: Any, eps: Any, loss: Callable[..., Any] = loss) -> Any:
            return loss(CHAIN, Denoiser(net(scale), variance="learned_range"), x0, t, eps).sum()

        arguments = jnp.asarray(X0), jnp.asarray(STEPS), jnp.asarray(EPS)
        value, slope = jax.jit(jax.value_and_grad(total))(1.0, *arguments)
        assert value == pytest.approx(loss(CHAIN, learned(), X0, STEPS, EPS).sum(), rel=1e-9)
        assert slope == pytest.approx(float(jax.grad(total)(1.0, *arguments)), rel=1e-9)


# Corners.


@pytest.mark.parametrize("kind", ["v", "x0", "mu"])
def test_zero_terminal_snr_has_finite_losses(kind: str) -> None:
    d = Diffusion(schedules.zero_terminal_snr(schedules.linear(T)))
    denoiser = Denoiser(lambda x_t, t: np.zeros_like(x_t), predicts=kind)
    for weighting in ("snr", "min_snr", "p2"):
        loss = losses.weighted(d, denoiser, X0, T, EPS, weighting=weighting)
        np.testing.assert_allclose(loss, 0, atol=1e-30)  # the SNR is 0
    truth = d.posterior(EPS, X0, T).mean if kind == "mu" else X0  # v is -x_0 there, and x_t is eps
    np.testing.assert_allclose(losses.simple(d, denoiser, X0, T, EPS), np.mean(truth**2, axis=(1, 2)), rtol=1e-12)
    assert np.isfinite(losses.vlb(d, denoiser, X0, T, EPS)).all()


def test_where_alpha_bar_underflows_the_weights_hold() -> None:
    """linear(100 000) ends at SNR e^-1000: min_snr is SNR there, and snr of eps's error is 1."""
    d = Diffusion(schedules.linear(100_000))
    denoiser = Denoiser(lambda x_t, t: np.zeros_like(x_t))
    for weighting in ("uniform", "snr", "min_snr", "p2"):
        loss = losses.weighted(d, denoiser, X0, d.T, EPS, weighting=weighting)
        np.testing.assert_allclose(loss, np.mean(EPS**2, axis=(1, 2)), rtol=1e-12)


@given(d=smooth_diffusions, seed=st.integers(0, 100))
def test_the_bounds_terms_are_never_negative(d: Diffusion, seed: int) -> None:
    denoiser = Denoiser(GaussianData(np.zeros(3), 0.1).net(d))
    x0, eps = np.tanh(batch(4, 3, seed=seed)), batch(4, 3, seed=seed + 1)
    assert (losses.vlb(d, denoiser, x0, np.array([1, 2, d.T, d.T // 2 + 1]), eps) >= 0).all()


@pytest.mark.parametrize("loss", ALL)
def test_shapes_that_differ_are_named(loss: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"^net\b"):
        loss(CHAIN, Denoiser(lambda x, t: x[:, :1]), X0, 1, EPS)
    with pytest.raises(ValueError, match=r"^eps must have the shape of x0, \(5, 2, 3\), got \(5, 1, 3\)$"):
        loss(CHAIN, Denoiser(EXACT), X0, 1, EPS[:, :1])


def test_a_guided_network_is_told_the_chain() -> None:
    lean = Denoiser(guidance.classifier(EXACT, lambda x, t: np.ones_like(x), 2.0), clip_x0=False)
    x_t = CHAIN.q_sample(X0, 3, EPS)
    expected = np.mean((EPS - lean.eps(CHAIN, x_t, 3)) ** 2, axis=(1, 2))
    np.testing.assert_allclose(losses.simple(CHAIN, lean, X0, 3, EPS), expected, rtol=1e-12)


@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_data_a_little_outside_count_as_the_last_level(end: float) -> None:
    """By less than half a bin; in L_0, as in the bound; the network still sees them as they are."""
    level = np.full((1, 2, 3), end)
    denoiser = Denoiser(lambda x_t, t: 0.9 * end + 0 * x_t, predicts="x0")
    inside = losses.vlb(CHAIN, denoiser, level, 1, EPS[:1])
    outside = 1.0039 * level
    np.testing.assert_allclose(losses.vlb(CHAIN, denoiser, outside, 1, EPS[:1]), inside, rtol=1e-12)
    outside, inside = (likelihood.vlb(CHAIN, denoiser, x).decoder for x in (outside, level))
    np.testing.assert_allclose(outside, inside, rtol=1e-12)


# Samplers of t.


def filled(T: int = 6, seed: int = 0) -> losses.LossAwareT:
    sampler, rng = losses.LossAwareT(T), np.random.default_rng(seed)
    for _ in range(12):
        sampler.update(np.arange(1, T + 1), rng.exponential(np.arange(1, T + 1)))
    return sampler


def test_loss_aware_steps_follow_the_root_mean_square_of_the_last_ten() -> None:
    sampler, history = losses.LossAwareT(3), []
    for k in range(15):
        loss = np.array([1.0 + k % 4, 2.0 + k % 3, 3.0 + k % 5])
        history.append(loss)
        sampler.update(np.array([1, 2, 3]), loss)
        size = np.sqrt(np.mean(np.square(history[-10:]), axis=0))
        expected = 0.999 * size / size.sum() + 0.001 / 3 if k >= 9 else np.full(3, 1 / 3)
        np.testing.assert_allclose(sampler.prob, expected, rtol=1e-12)


def test_until_every_step_has_ten_losses_t_is_uniform() -> None:
    sampler = losses.LossAwareT(2)
    sampler.update(np.repeat([1, 2], [30, 9]), np.ones(39))
    assert sampler.prob.tolist() == [0.5, 0.5]
    sampler.update(2, 5.0)
    assert sampler.prob[1] != 0.5
    np.testing.assert_allclose(sampler.prob.sum(), 1, rtol=1e-15)


def test_losses_of_zero_keep_t_uniform() -> None:
    sampler = losses.LossAwareT(2)
    sampler.update(np.repeat([1, 2], 10), np.zeros(20))
    assert sampler.prob.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("sampler", [losses.UniformT(6), filled()], ids=["uniform", "loss_aware"])
def test_weights_keep_the_mean_of_uniform_steps(sampler: losses.UniformT | losses.LossAwareT) -> None:
    """Importance sampling is unbiased, by drawing and in expectation. 5 standard errors of the drawn mean."""
    t, weight = sampler.sample(200_000, np.random.default_rng(1))
    assert t.dtype == np.int64
    assert (t.min(), t.max()) == (1, 6)
    f = np.array([0.0, 1, 4, 9, 16, 25, 36])[t] * weight
    assert f.mean() == pytest.approx(91 / 6, abs=5 * f.std() / np.sqrt(len(f)))
    if isinstance(sampler, losses.LossAwareT):
        np.testing.assert_allclose(weight, 1 / (6 * sampler.prob[t - 1]), rtol=1e-12)


@pytest.mark.parametrize("make", [losses.UniformT, filled])
def test_a_restored_sampler_goes_on_as_the_first(make: Callable[..., losses.UniformT | losses.LossAwareT]) -> None:
    first, second = make(6), type(make(6))(6)
    state = first.state_dict()
    second.load_state_dict(state)
    for sampler in (first, second):
        sampler.update(np.array([1, 1, 4]), np.array([9.0, 1.0, 2.0]))
    draws = [s.sample(50, np.random.default_rng(2)) for s in (first, second)]
    assert all(np.array_equal(a, b) for a, b in zip(*draws, strict=True))
    third = type(first)(6)
    third.load_state_dict(state)  # which the updates have not touched
    assert all(np.array_equal(a, third.state_dict()[k]) for k, a in state.items())


def test_a_state_of_another_T_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^state: history must have shape \(6, 10\), got \(5, 10\)"):
        losses.LossAwareT(6).load_state_dict(losses.LossAwareT(5).state_dict())
    damaged = filled().state_dict() | {"history": np.full((6, 10), np.nan)}
    with pytest.raises(ValueError, match=r"^state: history must hold finite numbers"):
        losses.LossAwareT(6).load_state_dict(damaged)
    with pytest.raises(ValueError, match=r"^state: count must not be negative$"):
        losses.LossAwareT(6).load_state_dict(filled().state_dict() | {"count": np.full(6, -1)})
    losses.LossAwareT(6).load_state_dict(losses.LossAwareT(6).state_dict())  # counts of 0 are fine
    with pytest.raises(ValueError, match=r"^T is more than can be allocated: 1000000000000000$"):
        losses.LossAwareT(10**15)


def test_a_state_is_kept_in_double_precision() -> None:
    sampler, state = losses.LossAwareT(6), filled().state_dict()
    sampler.load_state_dict({"history": state["history"].astype(np.float32), "count": state["count"].astype(np.int32)})
    for own in (sampler.state_dict(), losses.LossAwareT(6).state_dict()):
        assert [own[name].dtype.name for name in ("history", "count")] == ["float64", "int64"]
    sampler.update([1, 2], [0.1, 0.2])  # lists will do
    assert sampler.state_dict()["history"][:2, -1].tolist() == [0.1, 0.2]


@pytest.mark.parametrize("t", [1000, np.array([1000, 5, 1]), np.array([1000, 5, 7])])
def test_the_bound_of_eps_at_zero_snr_is_refused(t: Any) -> None:
    """The mean does not follow from eps there; it was NaN where the batch had no t = 1."""
    d = Diffusion(schedules.zero_terminal_snr(schedules.linear()))
    for loss in (losses.vlb, losses.hybrid):
        with pytest.raises(ValueError, match=r"^t must be a step at which mu follows from eps, got 1000"):
            loss(d, Denoiser(lambda x, t: 0.5 * x), X0[:3], t, EPS[:3])


def test_the_density_is_the_bounds_first_term_for_continuous_data() -> None:
    denoiser, x0 = Denoiser(EXACT, clip_x0=False), 5 * X0
    p = Denoiser(EXACT, clip_x0=False).p(CHAIN, CHAIN.q_sample(x0, 1, EPS), 1)
    expected = -p.log_prob(x0).mean(axis=(1, 2))
    np.testing.assert_allclose(losses.vlb(CHAIN, denoiser, x0, 1, EPS, decoder="density"), expected, rtol=1e-12)
    published = gaussian.discretized_log_likelihood(X0, CHAIN.q_sample(X0, 1, EPS), -2.0, 256, "ho2020")
    read = Denoiser(lambda x, t: x, predicts="mu", variance=np.full(T + 1, np.exp(-4.0)))
    found = losses.vlb(CHAIN, read, X0, 1, EPS, decoder="ho2020")
    np.testing.assert_allclose(found, -published.mean(axis=(1, 2)), rtol=1e-9)


@pytest.mark.parametrize("loss", [losses.vlb, losses.hybrid])
def test_data_more_than_half_a_bin_outside_are_refused_with_the_remedy(loss: Callable[..., Any]) -> None:
    x0, message = np.array([[[0.0, 1.00393, 2.0]]]), "scale the data, or use decoder='density' for continuous data"
    with pytest.raises(ValueError, match=rf"^x0 must be in \[-1, 1\], got 1\.00393; {message}$"):
        loss(CHAIN, Denoiser(EXACT), x0, 3, x0)
    assert np.isfinite(loss(CHAIN, Denoiser(lambda x, t: 0 * x), 0 * x0 + 1 + 1 / 255, 3, x0)).all()


@pytest.mark.parametrize("make", [losses.UniformT, losses.LossAwareT])
def test_what_samplers_of_steps_refuse_is_named(make: Any) -> None:
    sampler = make(6)
    with pytest.raises(TypeError, match=r"^rng must be a numpy.random.Generator, got RandomState$"):
        sampler.sample(3, np.random.RandomState(0))
    with pytest.raises(ValueError, match=rf"^n is more than can be allocated: {2**61}$"):
        sampler.sample(2**61, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"^loss must be finite, got nan$"):
        sampler.update([1, 2], [1.0, np.nan])
    assert [a.shape for a in sampler.sample(0, np.random.default_rng(0))] == [(0,), (0,)]


def test_losses_whose_squares_overflow_have_probabilities() -> None:
    """As Torch tensors that require grad, and of any size."""
    torch, sampler = pytest.importorskip("torch"), losses.LossAwareT(2)
    for _ in range(10):
        sampler.update(torch.tensor([1, 2]), torch.tensor([3e200, 1e200], dtype=torch.float64, requires_grad=True))
    np.testing.assert_allclose(sampler.prob, 0.999 * np.array([0.75, 0.25]) + 0.0005, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_losses_of_half_precision_are_rounded_from_float32(dtype: str) -> None:
    """A score of 1e8 is infinite in float16; the bound's term, of which it is a part, is not."""
    torch = pytest.importorskip("torch")
    d, model = Diffusion([1e-16, 0.3]), Denoiser(lambda x, t: -1e8 * x, "score")
    x0, eps = (torch.tensor(v, dtype=getattr(torch, dtype)) for v in ([[0.25, -0.5]], [[0.5, 0.75]]))
    for loss in (losses.vlb, losses.hybrid, losses.simple, partial(losses.weighted, weighting="min_snr")):
        half, single = loss(d, model, x0, 2, eps), loss(d, model, x0.float(), 2, eps.float())
        assert half.dtype == x0.dtype
        assert float(half) == pytest.approx(float(single.to(x0.dtype)), rel=2e-2)  # x_t is rounded to 8 bits
    assert not torch.isnan(losses.vlb(d, model, x0, 1, eps, "density")).any()
