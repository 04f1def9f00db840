"""Calibration: plans against enumeration, costs and variances against their definitions, and bounds against what they predict."""

from __future__ import annotations

import itertools
import json
import math
import pickle
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from conftest import Library
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tinyddpm import Denoiser, Diffusion, backends, guidance, likelihood, schedules
from tinyddpm._calibration import Errors
from tinyddpm.analytic import GaussianData, MixtureData
from tinyddpm.likelihood import Calibration

T = 24
D = Diffusion(schedules.linear(T, 1e-3, 0.35))
DATA = MixtureData([0.5, 0.5], [[-0.5] * 48, [0.4] * 48], [0.02, 0.05])
NET = DATA.net(D)
LEVEL = np.linspace(-1, 1, 17)
X0 = LEVEL[np.abs(DATA.sample(300, 0)[..., None] - LEVEL).argmin(-1)]


def measured(denoiser: Denoiser = Denoiser(NET), **options: Any) -> Calibration:  # noqa: B008
    return likelihood.calibrate(D, denoiser, X0, **{"levels": 17, **options})


@pytest.fixture(scope="module")
def scalar() -> Calibration:
    return measured()


@pytest.fixture(scope="module")
def each() -> Calibration:
    return measured(per_dimension=True)


def made_up(seed: int, steps: int, *shape: int) -> Calibration:
    """Errors without any order, as a bad network has them."""
    rng = np.random.default_rng(seed)
    d = Diffusion(rng.uniform(0.01, 0.6, steps))
    mse, groups = rng.exponential(size=(steps + 1, *shape)), rng.exponential(size=(1, steps + 1))
    return Calibration(d, mse, np.ones(steps + 1), groups, groups, np.zeros(1), 1, 256, "exact", "eps", None)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 9), st.sampled_from([(), (3,)]))
def test_the_plan_is_the_best_of_all_plans(seed: int, steps: int, shape: tuple[int, ...]) -> None:
    calibration = made_up(seed, steps, *shape)
    best = {}
    for k in range(1, steps + 1):
        plans = [(steps, *sorted(inner, reverse=True), 0) for inner in itertools.combinations(range(1, steps), k - 1)]
        best[k] = min(map(calibration.bits_per_dim, plans))
        assert calibration.bits_per_dim(calibration.timesteps(k)) == pytest.approx(best[k], rel=1e-12)
        assert len(calibration.timesteps(k)) == k + 1
    assert calibration.bits_per_dim(calibration.timesteps()) == pytest.approx(min(best.values()), rel=1e-12)


@pytest.mark.parametrize("calibration", ["scalar", "each"])
def test_variances_and_costs_are_their_definitions(calibration: str, request: pytest.FixtureRequest) -> None:
    """By the divergence that is written out in [Ho]: least at the variance that is given, and there as much as is said."""
    found, plan = request.getfixturevalue(calibration), (T, 15, 4, 0)
    variance = found.variance(plan)
    assert np.isnan(variance[0]).all()
    total = 0.0
    for k, (t, s) in ((3, (T, 15)), (2, (15, 4))):
        w_x0, _, beta_tilde = D.posterior_weights(t, s)
        np.testing.assert_allclose(variance[k], beta_tilde + w_x0**2 * found.x0_mse[t], rtol=1e-12)
        cost = [
            np.mean(np.log(v / beta_tilde) + (beta_tilde + w_x0**2 * found.x0_mse[t]) / v - 1) / 2
            for v in (variance[k], 0.9 * variance[k], 1.1 * variance[k])
        ]
        assert cost[0] < min(cost[1:])
        total += cost[0]
    ends = found.bits_per_dim((T, 4, 0)) - found.bits_per_dim(plan)
    w_x0, _, beta_tilde = D.posterior_weights(T, 4)
    single = np.mean(np.log1p(w_x0**2 * found.x0_mse[T] / beta_tilde)) / 2
    assert ends * math.log(2) == pytest.approx(single - total, rel=1e-9)


@pytest.mark.parametrize("decoder", ["exact", "density"])
@pytest.mark.parametrize("per_dimension", [False, True])
def test_the_bound_of_the_chain_is_what_was_predicted(decoder: Literal["exact", "density"], per_dimension: bool) -> None:
    """On the same rows with other noise, within four standard errors of the noise; every seventh step, which nobody chose.

    One dimension's variance is fitted to 300 rows, which makes its own figure better by about 1 / 300 nats a step.
    """
    found, plan = measured(decoder=decoder, per_dimension=per_dimension, draws=2), D.timesteps(4)
    chain, best = found.chain(D, Denoiser(NET), timesteps=plan)
    bound = likelihood.vlb(chain, best, X0, seed=9, levels=17, decoder=decoder).bits_per_dim
    slack = 4 * 2 / 300 if per_dimension else 0.0
    assert abs(bound.mean() - found.bits_per_dim(plan)) < 4 * found.standard_error(plan) + slack
    assert found.standard_error(plan) == pytest.approx(bound.std() / math.sqrt(300), rel=0.6)  # ten groups: a quarter off


def test_the_best_chain_beats_the_usual_ones() -> None:
    found = measured()
    fresh = LEVEL[np.abs(DATA.sample(300, 1)[..., None] - LEVEL).argmin(-1)]
    for steps in (3, 6, 12):
        chain, best = found.chain(D, Denoiser(NET), steps)
        ours = likelihood.vlb(chain, best, fresh, levels=17).bits_per_dim.mean()
        for variance in ("beta", "beta_tilde"):
            for spacing in ("even", "quadratic", "log_snr"):
                usual = Denoiser(NET, variance=variance).respaced(plan := D.timesteps(steps, spacing))
                assert ours < likelihood.vlb(D.respaced(plan), usual, fresh, levels=17).bits_per_dim.mean()


def test_a_call_pays_where_precision_grows_faster_than_snr() -> None:
    """For any network; for the best one of data that are no Gaussian it always does, so that the full chain is best."""
    bad, snr = made_up(0, 9), np.exp(made_up(0, 9).d.log_snr)
    for t, u, s in itertools.combinations(range(8, 0, -1), 3):
        pays = 1 / bad.x0_mse[u] - 1 / bad.x0_mse[t] > snr[u] - snr[t]
        assert (bad.bits_per_dim((9, t, u, s, 0)) < bad.bits_per_dim((9, t, s, 0))) == pays
    values, weights = np.array([-0.7, 0.1, 0.6]), np.array([0.3, 0.3, 0.4])
    z, share = np.polynomial.hermite_e.hermegauss(80)
    mse = np.full(T + 1, np.nan)
    for t in range(1, T + 1):  # of E[x_0 | x_t] by Bayes' rule, averaged by quadrature
        x = D.sqrt_alpha_bar[t] * values[:, None] + D.sqrt_one_minus_alpha_bar[t] * z
        logit = np.log(weights) - (x[..., None] - D.sqrt_alpha_bar[t] * values) ** 2 / (2 * D.one_minus_alpha_bar[t])
        p = np.exp(logit - logit.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        mse[t] = weights @ ((p @ values**2 - (p @ values) ** 2) @ share) / share.sum()
    groups = np.zeros((1, T + 1))
    exact = replace(made_up(0, 9), d=D, x0_mse=mse, last_scale=groups[0], group_mse=groups, group_last=1e3 * D.beta_tilde[None])
    assert len(exact.timesteps()) == T + 1


def test_the_errors_are_those_of_the_bound(scalar: Calibration, each: Calibration) -> None:
    """The same noise as `vlb` has, so the same errors; a dimension's mean over dimensions is the scalar."""
    errors = likelihood.vlb(D, Denoiser(NET), X0, levels=17).x0_mse.mean(axis=0)
    np.testing.assert_allclose(scalar.x0_mse[1:], errors, rtol=1e-9)
    np.testing.assert_allclose(each.x0_mse[1:].mean(axis=1), errors, rtol=1e-9)
    assert np.isnan(scalar.x0_mse[0])


def test_each_dimensions_variance_helps_on_the_data_given() -> None:
    """Jensen's inequality; the decoder's variances, of one scale, are not bound by it: 1e-3 is left to them."""
    wide = GaussianData(np.zeros(48), np.linspace(0.001, 0.3, 48))
    x0, denoiser = wide.sample(300, 0), Denoiser(wide.net(D), clip_x0=False)
    one, many = (likelihood.calibrate(D, denoiser, x0, decoder="density", per_dimension=p) for p in (False, True))
    for plan in (D.timesteps(3), D.timesteps(12)):
        assert many.bits_per_dim(plan) < one.bits_per_dim(plan) + 1e-3
    assert many.bits_per_dim(D.timesteps(3)) < one.bits_per_dim(D.timesteps(3)) - 0.1


@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0])
def test_on_gaussian_data_the_chain_has_the_exact_likelihood(scale: float) -> None:
    """The error is the posterior variance; every chain is exact. The likelihood's own noise cancels, as the rows are the same."""
    data = GaussianData(np.zeros(100), 0.09 * scale**2)
    d = Diffusion(schedules.linear(200, 5e-4, 0.1))
    x0, denoiser = data.sample(400, 0), Denoiser(data.net(d), clip_x0=False)
    found = likelihood.calibrate(d, denoiser, x0, decoder="density")
    exact = 1 / (1 / data.var[0] + np.exp(d.log_snr[1:]))
    np.testing.assert_allclose(found.x0_mse[1:], exact, rtol=5 * math.sqrt(2 / 40_000))
    for steps in (1, 5, 30):
        chain, best = found.chain(d, denoiser, steps)
        bound = likelihood.vlb(chain, best, x0, seed=3, decoder="density").bits_per_dim
        gap = bound + data.log_prob(x0) / 100 / math.log(2)
        assert abs(gap.mean()) < 4 * gap.std() / 20 + steps * 1e-3  # 1e-3: what errors of 1 % in a variance cost


@pytest.mark.parametrize("levels", [17, 256])
def test_no_other_variance_of_the_decoder_is_better(levels: int) -> None:
    x0 = np.round((X0 + 1) / 2 * (levels - 1)) / (levels - 1) * 2 - 1
    found = likelihood.calibrate(D, Denoiser(NET), x0, levels=levels)
    chain, best = found.chain(D, Denoiser(NET), timesteps=(T, 3, 0))

    def decoder(factor: float) -> float:
        table = np.array(best.variance)
        table[1] *= factor
        return float(likelihood.vlb(chain, replace(best, variance=table), x0, levels=levels).decoder.mean())

    assert decoder(1.0) < min(decoder(f) for f in (0.5, 0.8, 1.25, 2.0)) + 0.01


def test_a_dimension_without_error_keeps_a_variance() -> None:
    """A pixel that is black in all rows that were measured may be white in the next."""

    def net(x_t: NDArray[Any], t: NDArray[Any]) -> NDArray[Any]:
        return np.where(np.arange(48) == 0, -1.0, NET(x_t, t))

    black = X0.copy()
    black[:, 0] = -1.0
    denoiser = Denoiser(net, predicts="x0")
    found = likelihood.calibrate(D, denoiser, black, levels=17, per_dimension=True)
    assert (found.x0_mse[1:, 0] == 0).all()
    chain, best = found.chain(D, denoiser, 4)
    assert np.isfinite(likelihood.vlb(chain, best, X0, levels=17).total).all()


def test_rows_in_batches_and_draws(scalar: Calibration) -> None:
    for size in (7, 1000):
        other = measured(batch_size=size)
        np.testing.assert_allclose(other.x0_mse, scalar.x0_mse, rtol=1e-12)
        np.testing.assert_allclose(other.group_last, scalar.group_last, rtol=1e-9)
    part = slice(100, 200)
    alone = likelihood.calibrate(D, Denoiser(NET), X0[part], index=range(100, 200), levels=17)
    rows = likelihood.vlb(D, Denoiser(NET), X0, levels=17).x0_mse[part]
    np.testing.assert_allclose(alone.x0_mse[1:], rows.mean(axis=0), rtol=1e-9)
    twice = measured(draws=2)
    assert 0 < np.abs(twice.x0_mse[1:] / scalar.x0_mse[1:] - 1).max() < 0.2


def test_libraries_agree(library: Library, scalar: Calibration) -> None:
    def net(x_t: Any, t: Any) -> Any:
        return library.array(NET(library.host(x_t), library.host(t)))

    found = likelihood.calibrate(D, Denoiser(net), library.array(X0), levels=17, batch_size=130)
    np.testing.assert_allclose(found.x0_mse, scalar.x0_mse, rtol=1e-5)  # noise agrees within 2e-6
    assert found.timesteps(5) == scalar.timesteps(5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_numbers_and_those_of_a_device_stay_in_their_library(dtype: str, scalar: Calibration) -> None:
    """Arithmetic on them can't be NumPy's; what holds of the one holds of the other."""
    pytest.importorskip("torch")
    torch = backends.get("torch")

    def net(x_t: Any, t: Any) -> Any:
        return torch.from_numpy(NET(torch.to_numpy(x_t), torch.to_numpy(t)), dtype=dtype)

    for batch_size in (None, 100):
        found = likelihood.calibrate(D, Denoiser(net), torch.from_numpy(X0, dtype=dtype), levels=17, batch_size=batch_size)
        np.testing.assert_allclose(found.x0_mse[1:], scalar.x0_mse[1:], rtol=0.1)


def test_of_a_learned_variance_the_first_half_is_read(scalar: Calibration) -> None:
    def net(x_t: NDArray[Any], t: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([NET(x_t, t), np.ones_like(x_t)], axis=1)

    denoiser = Denoiser(net, variance="learned_range")
    found = measured(denoiser)
    np.testing.assert_array_equal(found.x0_mse, scalar.x0_mse)
    chain, best = found.chain(D, denoiser, 5)
    expected = scalar.chain(D, Denoiser(NET), 5)[1]
    ours, theirs = (likelihood.vlb(chain, one, X0, levels=17).total for one in (best, expected))
    np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match="net must return shape"):
        likelihood.vlb(chain, found.chain(D, replace(denoiser, net=NET), 5)[1], X0, levels=17)


def test_a_guided_network_that_clips_is_not_clipped_again() -> None:
    """Nor in the chain that follows from its calibration, in which only its prediction is read."""

    def net(x_t: NDArray[Any], t: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([NET(x_t, t), np.ones_like(x_t)], axis=1)

    denoiser = Denoiser(guidance.classifier(net, lambda x_t, t: -x_t, 0.5), variance="learned_range")
    assert measured(denoiser).chain(D, denoiser, 5)[1].clip_range is denoiser.clip_range is None


def test_guided_networks_have_chains() -> None:
    """Of a network that needs to know the chain, too: a classifier's."""
    guided = guidance.classifier(NET, lambda x_t, t: -x_t, 0.5)
    found = measured(Denoiser(guided))
    chain, best = found.chain(D, Denoiser(guided), 5)
    bound = likelihood.vlb(chain, best, X0, levels=17).bits_per_dim
    assert abs(bound.mean() - found.bits_per_dim(found.timesteps(5))) < 4 * found.standard_error(found.timesteps(5)) + 0.02


def test_another_chain_or_reading_is_refused(scalar: Calibration) -> None:
    short = Diffusion(schedules.linear(T, 1e-3, 0.3))
    for d, denoiser, message in (
        (short, Denoiser(NET), "d must be the chain that was calibrated"),
        (D, Denoiser(NET, predicts="v"), "predicts = 'eps'"),
        (D, Denoiser(NET, clip_x0=False), r"clip_x0 = \(-1.0, 1.0\)"),
    ):
        with pytest.raises(ValueError, match=message):
            scalar.chain(d, denoiser, 5)
    for call in (scalar.variance, scalar.bits_per_dim, scalar.standard_error):
        with pytest.raises(ValueError, match="timesteps must start at the calibrated chain's T = 24"):
            call((20, 3, 0))


@pytest.mark.parametrize("calibration", ["scalar", "each"])
def test_files_and_pickles_hold_all(calibration: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    found = request.getfixturevalue(calibration)
    found.save(tmp_path / "new" / "c.json")
    for other in (Calibration.load(tmp_path / "new" / "c.json"), pickle.loads(pickle.dumps(found))):
        assert other == found
        assert hash(other) == hash(found)
        assert other.timesteps(7) == found.timesteps(7)
        assert all(not getattr(other, f.name).flags.writeable for f in fields(other) if f.type == "Table")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["c.json"]


def test_damaged_files_are_named(scalar: Calibration, tmp_path: Path) -> None:
    scalar.save(file := tmp_path / "c.json")
    good = json.loads(file.read_text())

    def changed(**tables: Any) -> dict[str, Any]:
        return {**good, "tables": {**good["tables"], **tables}}

    mse = good["tables"]["x0_mse"]
    bad: list[Any] = [
        [], {}, "[" * 100_000, '{"format": ', {**good, "format": "2"}, {**good, "rows": "many"}, {**good, "rows": 3},
        {**good, "decoder": "none"}, {**good, "predicts": 3}, {**good, "clip_range": 5}, {**good, "levels": 10**9},
        changed(x0_mse=None), changed(x0_mse={**mse, "shape": [10**12]}), changed(x0_mse={**mse, "shape": [5, 5]}),
        changed(x0_mse={**mse, "float64": "%"}), changed(x0_mse={**mse, "float64": mse["float64"][:8]}),
        changed(beta={"shape": [0], "float64": ""}), changed(group_prior={"shape": [1], "float64": "AAAAAAAA+P8="}),
    ]  # fmt: skip
    for content in bad:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(ValueError, match=r"path must be a file that Calibration.save wrote, got .*c\.json"):
            Calibration.load(file)
    with pytest.raises(FileNotFoundError):
        Calibration.load(tmp_path / "missing.json")


def test_a_network_that_is_not_finite_is_named() -> None:
    with pytest.raises(ValueError, match="net: its output is not finite at t = 24"):
        measured(Denoiser(lambda x_t, t: np.full_like(x_t, np.inf)))
    end = Diffusion(schedules.zero_terminal_snr(schedules.linear(9)))
    with pytest.raises(ValueError, match="x0 does not follow from eps at t = 9"):
        likelihood.calibrate(end, Denoiser(NET), X0)


@pytest.mark.parametrize("start", [-9, -1, 1, 7])
def test_the_decoders_best_variance_does_not_depend_on_where_its_search_starts(start: int) -> None:
    """The search begins at the step before; from there it may have to pass 1, which is candidate 0."""
    found = []
    for candidate in (0, start):
        errors = Errors(X0, 1, 1, 17, "exact", per_dimension=False)
        errors._candidate = candidate
        errors.add(1, [X0 + np.where(np.arange(48) % 4, 0.03, 0.08)])
        found.append(errors.scale[1])
    assert found[1] == pytest.approx(found[0], rel=1e-9)
    assert abs(math.log2(found[0])) > 0.5
