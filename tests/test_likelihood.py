"""The bound: each term by its definition, the sum against the true likelihood, and the older form of the same quantity."""

from __future__ import annotations

import itertools
import math
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from conftest import Library
from numpy.typing import NDArray
from strategies import batch

from tinyddpm import Denoiser, Diffusion, Gaussian, guidance, likelihood, schedules
from tinyddpm.analytic import GaussianData, MixtureData
from tinyddpm.conversions import KINDS
from tinyddpm.noise import normal

T = 20
CHAIN = Diffusion(schedules.linear(T, 1e-3, 0.4))
DATA = GaussianData(batch(2, 3, seed=1) / 8, 0.02)
EXACT = DATA.net(CHAIN)
X0 = np.clip(DATA.sample(5, seed=2), -1, 1)


def as_kind(kind: str, **options: Any) -> Denoiser:
    return Denoiser(lambda x_t, t: CHAIN.convert(EXACT(x_t, t), x_t, t, "eps", kind), predicts=kind, **options)


def learned(xp: Any = np, variance: str = "learned_range", raw: float = 0.3, **options: Any) -> Denoiser:
    def net(x_t: Any, t: Any) -> Any:
        return xp.concat([EXACT(x_t, t), xp.full_like(x_t, raw)], axis=1)

    return Denoiser(net, variance=variance, **options)


def by_definition(denoiser: Denoiser, x0: NDArray[np.float64], t: int, seed: int = 0) -> list[NDArray[np.float64]]:
    """(the KL or L_0, error of x_0, error of eps) of step t on the likelihood's noise."""
    eps = normal(seed, range(len(x0)), t, x0.shape[1:], stream=1, dtype="float64")
    x_t = CHAIN.q_sample(x0, t, eps)
    p = denoiser.p(CHAIN, x_t, t)
    term = -p.discretized_log_prob(x0) if t == 1 else CHAIN.posterior(x_t, x0, t).kl(p)
    errors = (x0 - denoiser.x0(CHAIN, x_t, t)) ** 2, (eps - denoiser.eps(CHAIN, x_t, t)) ** 2
    return [a.reshape(len(x0), -1) for a in (term, *errors)]


DENOISERS = {
    **{f"{kind}-{clip}": as_kind(kind, clip_x0=clip) for kind in KINDS for clip in (True, False)},
    "beta_tilde": Denoiser(EXACT, variance="beta_tilde"),
    "table": Denoiser(EXACT, variance=np.linspace(0.01, 0.3, T + 1)),
    "far": Denoiser(lambda x_t, t: 50 * x_t, predicts="x0"),
    "far, to a range": Denoiser(lambda x_t, t: 50 * x_t, predicts="x0", clip_x0=(-0.5, 2.0)),
    "table of dimensions": Denoiser(EXACT, variance=np.linspace(0.01, 0.3, 6 * T + 6).reshape(T + 1, 2, 3)),
    "learned": learned(variance="learned", raw=-2.0),
    "learned_range": learned(),
    "learned_range-unclipped": learned(clip_x0=False),
}


@pytest.mark.parametrize("denoiser", DENOISERS.values(), ids=DENOISERS)
def test_every_term_is_its_definition(denoiser: Denoiser) -> None:
    """1e-9: eps at t = 1 is read from x_0 over sigma = 0.03 there, and from what rounds in mu."""
    bound = likelihood.vlb(CHAIN, denoiser, X0)
    for t in range(1, T + 1):
        term, x0_error, eps_error = by_definition(denoiser, X0, t)
        ours = bound.decoder if t == 1 else bound.kl[:, t - 2]
        np.testing.assert_allclose(ours, term.sum(axis=1), rtol=1e-9)
        np.testing.assert_allclose(bound.x0_mse[:, t - 1], x0_error.mean(axis=1), rtol=1e-9)
        np.testing.assert_allclose(bound.eps_mse[:, t - 1], eps_error.mean(axis=1), rtol=1e-9)
    prior = CHAIN.q(X0, T).kl(Gaussian(np.zeros_like(X0), 0.0)).reshape(5, -1).sum(axis=1)
    np.testing.assert_allclose(bound.prior, prior, rtol=1e-12)
    assert bound.kl.shape == (5, T - 1)
    assert all(a.dtype == np.float64 for a in (bound.prior, bound.kl, bound.decoder, bound.x0_mse, bound.eps_mse))


@pytest.mark.parametrize(("scale", "levels"), [(0.1, None), (1.0, None), (30.0, None), (0.1, 65_536)])
def test_for_gaussian_data_the_bound_is_the_likelihood(scale: float, levels: int | None) -> None:
    """With the exact variance at each step the reverse chain is the forward one reversed, so nothing is lost but L_T.

    4 standard errors of 4000 samples; the chain ends at alpha_bar_T = 1e-12, where L_T is nothing. Of a density, and of bins.
    """
    d = Diffusion(schedules.linear(100, 1e-3, 0.6))
    data = GaussianData([0.3 * scale], [scale**2])
    t = np.arange(1, d.T + 1)
    w_x0, _, beta_tilde = d.posterior_weights(t)
    spread = scale**2 * d.one_minus_alpha_bar[t] / (d.alpha_bar[t] * scale**2 + d.one_minus_alpha_bar[t])
    exact = Denoiser(data.net(d), clip_x0=False, variance=np.append(np.nan, beta_tilde + w_x0**2 * spread))
    x0 = data.sample(4000, 1)
    options: dict[str, Any] = {"levels": levels} if levels else {"decoder": "density"}
    bound = likelihood.vlb(d, exact, x0, **options)
    gap = bound.total + data.log_prob(x0) + (math.log(2 / (levels - 1)) if levels else 0.0)
    assert abs(gap.mean()) < 4 * gap.std() / math.sqrt(len(gap))
    assert gap.std() / math.sqrt(len(gap)) < 0.03  # so that it says something
    wider = likelihood.vlb(d, replace(exact, variance=1.5 * np.asarray(exact.variance)), x0, **options)
    assert (wider.total - bound.total).mean() > 0.3


def expectation(f: Callable[..., Any], *shape_of_noise: Any) -> float:
    """Over standard normals, exact for polynomials of degree 5 in each (Gauss and Hermite)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    grid = np.array(list(itertools.product(nodes, repeat=len(shape_of_noise))))
    mass = np.prod(list(itertools.product(weights / weights.sum(), repeat=len(shape_of_noise))), axis=1)
    return float(np.sum(mass * f(*(column for column in grid.T))))


@pytest.mark.parametrize("x0", [-0.7, 0.3])
def test_the_older_form_of_the_bound_has_the_same_value_and_more_variance(x0: float) -> None:
    """Reconstruction, prior matching and consistency of x_t from both its sides, E[log q(x_t | x_{t-1}) - log p(x_t | x_{t+1})]
    over paths of q: exact by quadrature, as every logarithm is a polynomial of degree 2. (Written as a KL from q(x_t | x_{t-1}),
    which forgets that x_t and x_{t+1} go together, a consistency term would have another value.)"""
    d = Diffusion(schedules.linear(5, 0.05, 0.6))
    denoiser = Denoiser(GaussianData(0.1, 0.2).net(d), variance="beta_tilde", clip_x0=False)
    prior = Gaussian(np.zeros(1), 0.0)

    def start(z: Any) -> Any:
        return np.full_like(z, x0)

    def at(t: int, z: Any) -> Any:
        return d.q(start(z), t).sample(z) if t else start(z)

    def first(z: Any) -> Any:
        return -denoiser.p(d, at(1, z), 1).log_prob(start(z))

    def ours(t: int) -> Callable[..., Any]:
        return lambda z: d.posterior(at(t, z), start(z), t).kl(denoiser.p(d, at(t, z), t))

    def consistency(t: int) -> Callable[..., Any]:
        def f(z0: Any, z1: Any, z2: Any) -> Any:
            before = at(t - 1, z0)
            x_t = d.q_between(before, t - 1, t).sample(z1)
            after = d.q_between(x_t, t, t + 1).sample(z2)
            return d.q_between(before, t - 1, t).log_prob(x_t) - denoiser.p(d, after, t + 1).log_prob(x_t)

        return f

    def as_printed(t: int) -> Callable[..., Any]:
        def f(z0: Any, z1: Any, z2: Any) -> Any:
            before = at(t - 1, z0)
            after = d.q_between(d.q_between(before, t - 1, t).sample(z1), t, t + 1).sample(z2)
            return d.q_between(before, t - 1, t).kl(denoiser.p(d, after, t + 1))

        return f

    def prior_matching(z: Any) -> Any:
        q = d.q_between(at(d.T - 1, z), d.T - 1, d.T)
        return q.kl(Gaussian(np.zeros_like(z), 0.0))

    head = expectation(first, 1)
    newer = head + d.q(np.array([x0]), d.T).kl(prior)[0] + sum(expectation(ours(t), 1) for t in range(2, d.T + 1))
    rest = head + expectation(prior_matching, 1)
    older = rest + sum(expectation(consistency(t), 1, 1, 1) for t in range(1, d.T))
    assert older == pytest.approx(newer, rel=1e-12)
    assert abs(rest + sum(expectation(as_printed(t), 1, 1, 1) for t in range(1, d.T)) - newer) > 0.1
    for t in range(1, d.T):  # of one draw of each term, at steps t and t + 1
        spread = [expectation(lambda *z, f=f: f(*z) ** 2, *n) - expectation(f, *n) ** 2
                  for f, n in ((consistency(t), (1, 1, 1)), (ours(t + 1), (1,)))]  # fmt: skip
        assert spread[0] > 2 * spread[1]
    many = likelihood.vlb(d, denoiser, np.full(20_000, x0))
    for t in range(2, d.T + 1):
        drawn = many.kl[:, t - 2]
        assert drawn.mean() == pytest.approx(expectation(ours(t), 1), abs=5 * drawn.std() / math.sqrt(20_000))


# Every library, any batches, any chain.


@pytest.mark.parametrize("variance", ["beta", "learned_range"])
def test_the_bound_agrees_in_every_library(library: Library, variance: str) -> None:
    x0 = library.array(X0)
    if variance == "beta":
        denoiser = expected = Denoiser(EXACT)
    else:
        denoiser, expected = learned(library.xp), learned()
    ours, truth = likelihood.vlb(CHAIN, denoiser, x0, seed=3), likelihood.vlb(CHAIN, expected, X0, seed=3)
    for name in ("prior", "kl", "decoder", "x0_mse", "eps_mse"):
        np.testing.assert_allclose(getattr(ours, name), getattr(truth, name), rtol=2e-5)  # noise agrees within 2e-6
    single = likelihood.vlb(CHAIN, denoiser, library.array(X0, "float32"), seed=3)
    np.testing.assert_allclose(single.total, truth.total, rtol=1e-4)


@pytest.mark.parametrize("predicts", ["eps", "v"])
@pytest.mark.parametrize(("shift", "clip"), [("before_clip", True), ("after_clip", False)])
def test_the_bound_of_a_guided_network(library: Library, predicts: str, shift: Any, clip: bool) -> None:
    """A classifier shifts the score by its gradient, so eps by -sqrt(1 - alpha_bar) times that, whatever is predicted."""
    spread = CHAIN.sqrt_one_minus_alpha_bar

    def shifted(x_t: Any, t: Any) -> Any:
        eps = EXACT(x_t, t) - 0.3 * spread[np.asarray(t)].reshape(-1, 1, 1) * -x_t
        return CHAIN.convert(eps, x_t, t, "eps", predicts)

    net = guidance.classifier(as_kind(predicts).net, lambda x_t, t: -x_t, 0.3, shift=shift)
    guided = likelihood.vlb(CHAIN, Denoiser(net, predicts=predicts, clip_x0=clip), library.array(X0, "float64"))
    plain = likelihood.vlb(CHAIN, Denoiser(shifted, predicts=predicts, clip_x0=clip), X0)
    np.testing.assert_allclose(guided.kl, plain.kl, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(guided.decoder, plain.decoder, rtol=1e-9)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_stays_within_a_percent(native: Library, dtype: str) -> None:
    """float16 rounds data by 5e-4, and eps at t = 1, where sigma is 0.03, by 2e-2; bfloat16 by 8 times as much."""
    if native.name == "numpy" and dtype == "bfloat16":
        pytest.skip("NumPy has no bfloat16")
    half = likelihood.vlb(CHAIN, Denoiser(EXACT), native.array(X0, dtype))
    np.testing.assert_allclose(half.total, likelihood.vlb(CHAIN, Denoiser(EXACT), X0).total, rtol=1e-2)


def test_half_precision_sums_large_samples() -> None:
    """The squares of 100 000 ones leave float16's range, 65 504."""
    d = Diffusion([0.1, 0.2])
    bound = likelihood.vlb(d, Denoiser(lambda x_t, t: np.zeros_like(x_t)), np.ones((1, 100_000), np.float16))
    truth = d.q(np.ones((1, 1)), 2).kl(Gaussian(np.zeros((1, 1)), 0.0))[0, 0]
    np.testing.assert_allclose(bound.prior, 100_000 * truth, rtol=1e-6)
    assert np.isfinite(bound.total).all()


@pytest.mark.parametrize("denoiser", [Denoiser(EXACT), learned()], ids=["fixed", "learned"])
def test_the_bound_does_not_depend_on_how_the_data_are_cut(denoiser: Denoiser) -> None:
    """Noise belongs to the sample's number, not to its row."""
    whole = likelihood.vlb(CHAIN, denoiser, X0, seed=9)
    order = [3, 0, 4]
    part = likelihood.vlb(CHAIN, denoiser, X0[order], seed=9, index=order)
    for name in ("prior", "kl", "decoder", "x0_mse", "eps_mse"):
        np.testing.assert_allclose(getattr(part, name), getattr(whole, name)[order], rtol=1e-12)
    by_row = likelihood.vlb(CHAIN, denoiser, X0[order], seed=9)  # the wrong way: the same data, other noise
    assert np.abs(by_row.total - whole.total[order]).max() > 0.1
    assert np.abs(likelihood.vlb(CHAIN, denoiser, X0, seed=8).total - whole.total).min() > 1e-3


def test_a_respaced_chain_has_its_own_bound() -> None:
    """With fewer steps the data cost more, and a table of the short chain's own variances serves."""
    short = CHAIN.respaced(CHAIN.timesteps(5))
    x0 = np.clip(DATA.sample(300, seed=5), -1, 1)
    net = DATA.net(short)
    variance = likelihood.optimal_variance(short, Denoiser(net), x0)
    assert variance.shape == (6,)
    best = likelihood.vlb(short, Denoiser(net, variance=variance), x0)
    assert best.kl.shape == (300, 4)
    adapted = Denoiser(EXACT).respaced(CHAIN.timesteps(5))
    plain = likelihood.vlb(short, Denoiser(net), x0).total
    np.testing.assert_allclose(likelihood.vlb(short, adapted, x0).total, plain, rtol=1e-9)
    assert best.total.mean() < plain.mean()


def test_the_network_is_called_once_a_step_on_the_rows_in_their_order(native: Library) -> None:
    calls = []

    def net(x_t: Any, t: Any) -> Any:
        calls.append((tuple(x_t.shape), native.host(t).tolist(), getattr(x_t, "requires_grad", False)))
        return x_t

    leaf = native.array(X0)
    likelihood.vlb(CHAIN, Denoiser(net, first_t=0), leaf)
    assert calls == [((5, 2, 3), [t - 1] * 5, False) for t in range(T, 0, -1)]


def test_no_gradient_is_recorded() -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.Conv1d(2, 2, 1).double()
    recorded = []

    def net(x_t: Any, t: Any) -> Any:
        out = layer(x_t)
        recorded.append(out.requires_grad)
        return out

    likelihood.vlb(CHAIN, Denoiser(net), torch.tensor(X0))
    likelihood.optimal_variance(CHAIN, Denoiser(net), torch.tensor(X0))
    assert not any(recorded)
    assert layer(torch.tensor(X0)).requires_grad  # and the switch is back


def test_gradients_of_the_data_or_of_the_networks_own_are_dropped() -> None:
    torch = pytest.importorskip("torch")

    def guided(x_t: Any, t: Any) -> Any:
        with torch.enable_grad():
            return x_t.detach().requires_grad_() / 2

    leaf = torch.tensor(X0, requires_grad=True)
    truth = likelihood.vlb(CHAIN, Denoiser(lambda x_t, t: x_t / 2), X0).total
    np.testing.assert_allclose(likelihood.vlb(CHAIN, Denoiser(guided), leaf).total, truth, rtol=1e-5)


def test_one_step_is_a_prior_and_a_decoder() -> None:
    d = Diffusion([0.5])
    bound = likelihood.vlb(d, Denoiser(DATA.net(d)), X0)
    assert bound.kl.shape == (5, 0)
    np.testing.assert_allclose(bound.total, bound.prior + bound.decoder)
    assert bound.curve().rate.shape == (1,)


def test_zero_terminal_snr() -> None:
    """Nothing is left of the data at T: the prior costs nothing, and v says what eps can't."""
    d = Diffusion(schedules.zero_terminal_snr(schedules.linear(T, 1e-3, 0.4)))
    v = Denoiser(lambda x_t, t: np.zeros_like(x_t), predicts="v")
    for denoiser in (v, replace(v, clip_x0=False)):
        bound = likelihood.vlb(d, denoiser, X0)
        assert not bound.prior.any()
        assert np.isfinite(bound.total).all()
    for clip in (True, False):
        with pytest.raises(ValueError, match=f"from eps at t = {T}"):
            likelihood.vlb(d, Denoiser(lambda x_t, t: x_t, clip_x0=clip), X0)


def test_decoders_and_levels_change_the_last_term_only() -> None:
    exact, published = (likelihood.vlb(CHAIN, Denoiser(EXACT), X0, decoder=name) for name in ("exact", "ho2020"))
    coarse, signs = (likelihood.vlb(CHAIN, Denoiser(EXACT), X0, levels=n) for n in (17, 2))
    for other in (published, coarse, signs):
        assert np.array_equal(other.kl, exact.kl)
        assert (np.abs(other.decoder - exact.decoder) > 1e-6).any()
    np.testing.assert_allclose(published.decoder, exact.decoder, atol=1)  # the approximation is off by tenths of a nat


# What is made of the terms.


def test_rate_distortion_bits_and_standard_errors() -> None:
    bound = likelihood.vlb(CHAIN, Denoiser(EXACT), X0)
    assert (bound.dims, bound.levels) == (6, 256)
    nats = bound.prior + bound.decoder + bound.kl.sum(axis=1)
    np.testing.assert_allclose(bound.total, nats, rtol=1e-15)
    np.testing.assert_allclose(bound.bits_per_dim, nats / (6 * math.log(2)), rtol=1e-14)
    np.testing.assert_allclose(bound.rate + bound.distortion, bound.bits_per_dim, rtol=1e-14)
    np.testing.assert_allclose(bound.distortion, bound.decoder / (6 * math.log(2)), rtol=1e-14)
    summary = bound.summary()
    columns = {"total": nats, "prior": bound.prior, "kl": bound.kl.sum(axis=1), "decoder": bound.decoder,
               "bits_per_dim": bound.bits_per_dim, "rate": bound.rate, "distortion": bound.distortion}  # fmt: skip
    assert list(summary) == list(columns)
    for name, x in columns.items():
        spread = math.sqrt(sum((a - x.mean()) ** 2 for a in x) / 4) / math.sqrt(5)
        assert summary[name] == pytest.approx((x.mean(), spread), rel=1e-12)
    pair = likelihood.vlb(CHAIN, Denoiser(EXACT), X0[:2])
    assert pair.summary()["total"][1] == pytest.approx(abs(np.subtract(*pair.total)) / 2, rel=1e-12)
    mean, error = likelihood.vlb(CHAIN, Denoiser(EXACT), X0[:1]).summary()["total"]
    assert math.isfinite(mean)
    assert math.isnan(error)


def test_the_curve_sends_more_for_less_distortion() -> None:
    data = MixtureData([0.5, 0.5], [-0.5 * np.ones(4), 0.5 * np.ones(4)], 0.01)
    x0 = data.sample(200, seed=6)
    bound = likelihood.vlb(CHAIN, Denoiser(data.net(CHAIN)), np.clip(x0, -1, 1), levels=17)
    rate, rmse = bound.curve()
    assert rate.shape == rmse.shape == (T,)
    assert (np.diff(rate) >= 0).all()
    assert rate[0] == pytest.approx((bound.prior / (4 * math.log(2))).mean(), rel=1e-12)
    assert rate[1] == pytest.approx(((bound.prior + bound.kl[:, -1]) / (4 * math.log(2))).mean(), rel=1e-12)
    assert rate[-1] == pytest.approx(bound.rate.mean(), rel=1e-12)
    assert rmse[0] == pytest.approx(8 * math.sqrt(bound.x0_mse[:, -1].mean()), rel=1e-12)
    assert rmse[-1] == pytest.approx(8 * math.sqrt(bound.x0_mse[:, 0].mean()), rel=1e-12)
    assert rmse[-1] < rmse[0] / 3


def test_a_bound_is_a_value() -> None:
    bound, again = (likelihood.vlb(CHAIN, Denoiser(EXACT), X0) for _ in range(2))
    assert bound == again == pickle.loads(pickle.dumps(bound))
    assert hash(bound) == hash(again)
    assert bound != likelihood.vlb(CHAIN, Denoiser(EXACT), X0, seed=1)
    with pytest.raises(ValueError, match="read-only"):
        pickle.loads(pickle.dumps(bound)).kl[0] = 0


# The optimal variance.


def test_the_optimal_variance_of_a_constant_network(library: Library) -> None:
    """G_t = c**2 for eps_theta = c, so the published formula is exact; clipped to [0, 1] at both ends."""
    x0 = library.array(X0)
    lam2, t = CHAIN.beta_tilde, np.arange(1, T + 1)
    for c in (0.0, 0.6, 1.5):
        ours = likelihood.optimal_variance(CHAIN, Denoiser(partial(lambda c, x_t, t: 0 * x_t + c, c)), x0)
        ab, left, before = CHAIN.alpha_bar[t], CHAIN.one_minus_alpha_bar[t], CHAIN.alpha_bar[t - 1]
        factor = np.sqrt(before) - np.sqrt((1 - before - lam2[t]).clip(0) * ab / left)
        expected = lam2[t] + factor**2 * np.clip(left / ab * (1 - c**2), 0, 1)
        np.testing.assert_allclose(ours[1:], expected, rtol=1e-9)  # the published form cancels


def test_draws_add_noise_of_their_own() -> None:
    """One draw is the first of many, and each row's draws are its own."""
    drawn = []

    def net(x_t: Any, t: Any) -> Any:
        k = int(t[0])
        drawn.append((x_t - CHAIN.sqrt_alpha_bar[k] * X0) / CHAIN.sqrt_one_minus_alpha_bar[k])
        return x_t

    likelihood.optimal_variance(CHAIN, Denoiser(net), X0, draws=3)
    numbered = [normal(0, range(5), T + k * (T + 1), (2, 3), stream=1, dtype="float64") for k in (2, 1, 0)]
    np.testing.assert_allclose(drawn[:3], numbered, rtol=1e-9)
    for a, b in itertools.combinations(drawn, 2):
        assert np.abs(a - b).max() > 1e-3
    one, two = (likelihood.optimal_variance(CHAIN, Denoiser(EXACT), X0, draws=k) for k in (1, 2))
    assert not np.array_equal(one[1:], two[1:])
    default = likelihood.optimal_variance(CHAIN, Denoiser(EXACT), X0)
    np.testing.assert_array_equal(likelihood.optimal_variance(CHAIN, Denoiser(EXACT), X0, seed=0, draws=1), default)
    assert not np.array_equal(likelihood.optimal_variance(CHAIN, Denoiser(EXACT), X0, seed=1)[1:], one[1:])
    order = [4, 3, 2, 1, 0]
    again = likelihood.optimal_variance(CHAIN, Denoiser(EXACT), X0[order], draws=2, index=order)
    np.testing.assert_allclose(again[1:], two[1:], rtol=1e-12)


def test_the_optimal_variance_at_zero_snr_is_bounded() -> None:
    d = Diffusion(schedules.zero_terminal_snr(schedules.linear(T, 1e-3, 0.4)))
    zero = Denoiser(lambda x_t, t: np.zeros_like(x_t), predicts="v")
    variance = likelihood.optimal_variance(d, zero, X0)
    assert variance[T] == pytest.approx(d.beta_tilde[T] + d.weights.w_x0[T] ** 2, rel=1e-12)


def test_the_optimal_variance_where_the_snr_underflows() -> None:
    """1 / SNR leaves float64's range; the variance of x_0 given x_t is then bounded by 1."""
    d = Diffusion(np.full(150, 0.999))
    variance = likelihood.optimal_variance(d, Denoiser(lambda x_t, t: 0 * x_t + 0.6), X0)
    np.testing.assert_allclose(variance[2:], (d.beta_tilde + d.weights.w_x0**2)[2:], rtol=1e-12)


# Refusals, and progress.


@pytest.mark.parametrize("call", [likelihood.vlb, likelihood.optimal_variance])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_network_that_fails_is_named_with_the_step(native: Library, call: Callable[..., Any], wrong: float) -> None:
    def net(x_t: Any, t: Any) -> Any:
        return x_t * (wrong if int(t[0]) == 7 else 1.0)

    with pytest.raises(ValueError, match=r"^net: its output is not finite at t = 7$"):
        call(CHAIN, Denoiser(net, clip_x0=False), native.array(X0))


def test_a_variance_that_fails_is_named_with_the_step() -> None:
    def net(x_t: Any, t: Any) -> Any:
        return np.concatenate([x_t, np.full_like(x_t, math.nan if t[0] == 7 else 0.0)], axis=1)

    with pytest.raises(ValueError, match=r"^net: its output gives no likelihood at t = 7$"):
        likelihood.vlb(CHAIN, Denoiser(net, variance="learned_range"), X0)


@pytest.mark.parametrize("tqdm", [True, False])
def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tqdm: bool) -> None:
    if tqdm:
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    likelihood.vlb(CHAIN, Denoiser(EXACT), X0)
    assert capsys.readouterr().err == ""
    likelihood.vlb(CHAIN, Denoiser(EXACT), X0, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{T}/{T}" in err
    assert "likelihood" in err
    likelihood.optimal_variance(CHAIN, Denoiser(EXACT), X0, draws=2)
    assert capsys.readouterr().err == ""
    likelihood.optimal_variance(CHAIN, Denoiser(EXACT), X0, draws=2, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{2 * T}/{2 * T}" in err
    assert "variance" in err


@pytest.mark.parametrize("variance", ["beta", "learned_range"])
def test_without_terms_the_sums_are_the_same(native: Library, variance: Any) -> None:
    def net(x_t: Any, t: Any) -> Any:
        xp = native.xp
        return xp.concat([0.5 * x_t, 0.1 * x_t], axis=1) if variance == "learned_range" else 0.5 * x_t

    denoiser, x0 = Denoiser(net, variance=variance), native.array(X0)
    whole, sums = (likelihood.vlb(CHAIN, denoiser, x0, terms=terms) for terms in (True, False))
    for name in ("prior", "decoder", "total", "bits_per_dim", "rate"):
        np.testing.assert_allclose(getattr(sums, name), getattr(whole, name), rtol=1e-6)
    assert sums.x0_mse.size == sums.eps_mse.size == 0
    with pytest.raises(ValueError, match=r"^terms must be True"):
        sums.curve()
    with pytest.raises(ValueError, match=r"^net: its output is not finite$"):
        likelihood.vlb(CHAIN, Denoiser(lambda x_t, t: net(x_t, t) * math.nan, variance=variance), x0, terms=False)
    for d in (Diffusion([0.5]), Diffusion([0.3, 0.5])):
        whole, sums = (likelihood.vlb(d, denoiser, x0, terms=terms) for terms in (True, False))
        np.testing.assert_allclose(sums.total, whole.total, rtol=1e-6)
        assert whole.kl.shape == (5, d.T - 1)


def test_the_optimal_variance_of_data_beyond_the_unit_range_without_clipping() -> None:
    """Two points at +-1.9: Var(x_0 | x_t) = 1.9^2 (1 - tanh^2(1.9 a x_t / sigma^2)), averaged by quadrature."""
    d, t, m = Diffusion([0.3, 0.5, 0.8, 0.95]), 3, 1.9
    data = MixtureData([0.5, 0.5], [[-m], [m]], 1e-12)
    x0 = np.repeat([[-m], [m]], 20_000, axis=0)
    found = likelihood.optimal_variance(d, Denoiser(data.net(d), clip_x0=False), x0)
    a, var = d.sqrt_alpha_bar[t], d.one_minus_alpha_bar[t]
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    x_t = a * m + math.sqrt(var) * nodes
    spread = m**2 * np.sum(weights * (1 - np.tanh(m * a * x_t / var) ** 2)) / math.sqrt(2 * math.pi)
    w_x0, _, beta_tilde = d.posterior_weights(t)
    assert found[t] == pytest.approx(beta_tilde + w_x0**2 * spread, rel=0.03)  # 3 standard errors
    assert beta_tilde + w_x0**2 * spread == pytest.approx(1.29, abs=0.001)
    with pytest.raises(ValueError, match=r"^x0 must be in \[-1, 1\]"):
        likelihood.vlb(d, Denoiser(data.net(d)), np.full((1, 1), 1.9))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_density_bound_of_data_of_any_scale_meets_their_likelihood(scale: float, kind: str) -> None:
    """With the exact network the bound's gap is that of 300 discrete steps: below 0.02 nats a dimension, at any scale."""
    shift = np.array([0.5, -2.0])
    if kind == "gaussian":
        data: Any = GaussianData(scale * shift, (0.5 * scale) ** 2)
    else:
        data = MixtureData([0.3, 0.7], scale * np.stack([shift, -shift]), (0.3 * scale) ** 2)
    x0 = data.sample(400, 0)
    least, most = scale * 2.5e-4, max(16 * scale, 100.0)  # of the noise in units of the signal's
    d = Diffusion(schedules.from_alpha_bar(lambda u: 1 / (1 + (u > 0) * (least ** (1 - u) * most**u) ** 2), 300))
    denoiser = Denoiser(data.net(d), clip_x0=False)
    best = replace(denoiser, variance=likelihood.optimal_variance(d, denoiser, x0))
    bound = likelihood.vlb(d, best, x0, decoder="density")
    exact = -data.log_prob(x0)
    gap = bound.total - exact
    assert gap.mean() > -5 * gap.std() / 20  # a bound, up to the error of 400 rows
    assert gap.mean() / 2 < 0.02 + 5 * gap.std() / 40


@pytest.mark.parametrize(("clip", "expected"), [((0.0, 4.0), 4.0), (False, None)])
def test_the_optimal_variance_where_nothing_is_known(clip: Any, expected: float | None) -> None:
    """At alpha_bar = 0, x_0 has the variance of data at both ends of the range or, without one, that of the data."""
    d = Diffusion([0.1, 0.5, 1.0])
    x0 = np.random.default_rng(0).uniform(0, 4, (50, 3))
    denoiser = Denoiser(lambda x, t: x * 0 + 1, predicts="x0", clip_x0=clip)
    w_x0, _, beta_tilde = d.posterior_weights(3)
    x0_var = x0.var(axis=0).mean() if expected is None else expected
    assert likelihood.optimal_variance(d, denoiser, x0)[3] == pytest.approx(beta_tilde + w_x0**2 * x0_var, rel=1e-12)
    if clip:
        likelihood.optimal_variance(d, denoiser, np.array([[0.0, 4.0]]))
        for wrong in (-0.1, 4.1):
            with pytest.raises(ValueError, match=r"^x0\b"):
                likelihood.optimal_variance(d, denoiser, np.array([[wrong, 2.0]]))
