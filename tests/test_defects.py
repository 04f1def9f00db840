"""Defects of well-known implementations: each is run the wrong way beside ours, to show the size of its error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any, Literal

import array_api_strict
import numpy as np
import pytest
from conftest import Library
from numpy.typing import NDArray
from strategies import batch

from tinyddpm import Denoiser, Diffusion, gaussian, guidance, losses, noise, schedules
from tinyddpm.analytic import GaussianData, MixtureData
from tinyddpm.verify import _truth

D = Diffusion()
X = batch(4, 3)


def zero(x_t: Any, t: Any) -> Any:
    return 0 * x_t


def test_defect_01_tanh_in_the_decoder(differentiable: Library) -> None:
    """A tanh for the normal CDF is 0.05 bits off at 3 std, 0.6 at 4, 2.2 at 5, and its floor stops the gradient."""
    from test_gaussian import gradients

    x, log_std, std = np.zeros(1), math.log(0.02), 0.02

    def bits(method: Literal["exact", "ho2020"], distance: float) -> float:
        mean = np.array([distance * std])
        return float(gaussian.discretized_log_likelihood(x, mean, log_std, 255, method)[0]) / math.log(2)

    for distance, off in ((3, 0.05), (4, 0.6), (5, 2.2)):
        truth = float(_truth.log_mass(127, 255, distance * std, log_std) / Decimal(2).ln())
        assert bits("exact", distance) == pytest.approx(truth, abs=1e-13)
        assert abs(bits("ho2020", distance) - truth) == pytest.approx(off, rel=0.3)

    def slope(method: Literal["exact", "ho2020"]) -> Any:
        def f(mean: Any) -> Any:
            return gaussian.discretized_log_likelihood(differentiable.array(x), mean, log_std, 255, method)

        return gradients(differentiable, f, np.array([10 * std]))[0].item()

    assert bits("ho2020", 10) * math.log(2) == pytest.approx(-27.631, abs=1e-3)
    assert slope("ho2020") == 0
    assert slope("exact") == pytest.approx(float(_truth.log_mass_gradient(127, 255, 10 * std, log_std)[0]), rel=1e-12)


def test_defect_02_float32_running_product() -> None:
    """It puts 1 - alpha_bar_1 off by 1.7e-4 and a posterior variance by over 1e-4."""
    alpha_bar = np.cumprod(1 - D.beta[1:].astype(np.float32), dtype=np.float32)
    theirs = 1 - alpha_bar.astype(np.float64)
    tilde = (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:]) * (1 - alpha_bar[1:] / alpha_bar[:-1])
    assert 1e-4 < abs(theirs[0] / D.one_minus_alpha_bar[1] - 1) < 3e-4
    assert 1e-4 < np.max(np.abs(tilde / D.beta_tilde[2:] - 1)) < 6e-4
    assert D.one_minus_alpha_bar[1] == D.beta[1]


def ddim(d: Diffusion, data: GaussianData, x: NDArray[np.float64], moves: Iterable[tuple[int, int]]) -> Any:
    """[DDIM eq. 12] at eta = 0 from t to s in turn."""
    for t, s in moves:
        eps = data.net(d)(x, np.full(len(x), t))
        x0 = d.convert(eps, x, t, "eps", "x0")
        x = math.sqrt(d.alpha_bar[s]) * x0 + math.sqrt(d.one_minus_alpha_bar[s]) * eps
    return x


def test_defect_03_moves_and_plans_that_are_not_the_plans_own() -> None:
    """s = t - T // n whatever the plan says; float ranges with an entry too many; "leading" plans that never see x_T."""
    d, data, plan = Diffusion(schedules.linear(100)), GaussianData(np.zeros(3), 0.1), (100, 61, 60, 2, 0)
    ours = d.sample(Denoiser(data.net(d), clip_x0=False), X.shape, sampler="ddim", timesteps=plan, x_T=X)
    np.testing.assert_allclose(ours, ddim(d, data, X, zip(plan, plan[1:], strict=False)), rtol=1e-10)
    wrong = ddim(d, data, X, ((t, max(t - 100 // 4, 0)) for t in plan[:-1]))
    assert np.abs(wrong - ours).max() > 0.1
    ranges = [np.round(np.arange(1000, 0, -1000 / n)).astype(int) - 1 for n in range(1, 1001)]
    assert sum(len(plan) != n or plan.min() < 0 for n, plan in enumerate(ranges, 1)) == 62
    assert {(len(plan), plan[-1]) for plan in map(D.timesteps, range(1, 1001))} == {(n + 1, 0) for n in range(1, 1001)}
    leading = 1 + np.arange(10) * (1000 // 10)
    assert (leading.max(), D.timesteps(10)[0]) == (901, 1000)
    assert math.exp(D.log_snr[901] - D.log_snr[1000]) > 6  # noise is put in where 6 times the SNR is due


def test_defect_04_noise_on_the_last_move() -> None:
    """Switched off at t = 1 only, it stays in the image where the plan's last t is another."""
    plan, z = (1000, 20, 0), np.ones_like(X)
    denoiser = Denoiser(zero, predicts="x0")
    ours = D.sample(denoiser, X.shape, timesteps=plan, x_T=X, noise=lambda t, index, shape: z)
    np.testing.assert_array_equal(ours, 0 * X)
    p = denoiser.p(D, X, 20, 0)
    assert np.abs(p.sample(z) - ours).min() > 0.06


def test_defect_05_eta_of_three_meanings() -> None:
    """The variance at eta = 0.5 is a quarter of beta_tilde; and it comes out of the part along eps, not on top of it."""
    t, s, z = 800, 400, np.ones_like(X)
    tilde, left = D.posterior_weights(t, s)[2], D.one_minus_alpha_bar[s]
    eps = X / math.sqrt(D.one_minus_alpha_bar[t])  # of x_0 = 0

    def ours(eta: float) -> Any:
        steps = D.trajectory(Denoiser(zero, predicts="x0"), X.shape, sampler="ddim", eta=eta, timesteps=(t, s, 0), x_T=X,
                             noise=lambda t, index, shape: z)  # fmt: skip
        return [step.x for step in steps][1]

    for eta, share in ((0.5, 0.25), (1.0, 1.0)):
        sigma = math.sqrt(share * tilde)
        np.testing.assert_allclose(ours(eta), math.sqrt(left - sigma**2) * eps + sigma * z, rtol=1e-12)
    assert 0.5 * tilde / (0.25 * tilde) == 2  # eta as a share of the variance: twice the paper's
    assert (left + 0.25 * tilde) / left > 1.1  # noise on top: x_s has more variance than q(x_s)


def test_defect_06_eps_at_zero_terminal_snr() -> None:
    """x_0 from eps divides by alpha_bar_T = 0; a floor of 2^-24 in its place magnifies eps's error 4096 times."""
    d = Diffusion(schedules.zero_terminal_snr(schedules.linear()))
    with np.errstate(divide="ignore", invalid="ignore"):
        assert not np.isfinite((X - math.sqrt(1 - d.alpha_bar[1000]) * X) / np.sqrt(d.alpha_bar[1000])).any()
    floored = math.sqrt(1 - 2**-24) / math.sqrt(2**-24) * 1e-3  # what an error of 1e-3 becomes
    assert floored > 4
    with pytest.raises(ValueError, match="t must be a step at which x0 follows from eps, got 1000, where alpha_bar is 0"):
        Denoiser(zero).x0(d, X, 1000)
    exact_v = Denoiser(lambda x_t, t: 1e-3 - X, predicts="v", clip_x0=False)
    np.testing.assert_allclose(exact_v.x0(d, X, 1000), X, rtol=0, atol=1.001e-3)


def test_defect_07_x0_clipped_and_eps_kept() -> None:
    """Then sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps is not x_t any more, by more than 1."""
    x, t = 4 * X, 700
    denoiser, raw = Denoiser(zero), Denoiser(zero, clip_x0=False)
    x0 = denoiser.x0(D, x, t)
    assert np.abs(x0).max() == 1
    np.testing.assert_allclose(D.q_sample(x0, t, denoiser.eps(D, x, t)), x, rtol=1e-13)
    assert np.abs(D.q_sample(x0, t, raw.eps(D, x, t)) - x).max() > 1


def test_defect_08_one_term_of_the_bound_for_its_sum() -> None:
    """L_simple + 0.001 L_{t-1} trains the variance T = 1000 times less than L_simple + 0.001 L_vlb."""
    torch = pytest.importorskip("torch")
    x0, eps = torch.tensor(np.tanh(X)), torch.tensor(batch(4, 3, seed=1))
    t = np.array([1, 2, 500, 1000])

    def slope(loss: Callable[[Denoiser], Any]) -> Any:
        raw = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
        denoiser = Denoiser(lambda x_t, t: torch.cat([0 * x_t, raw], 1), variance="learned_range")
        loss(denoiser).sum().backward()
        return raw.grad.numpy()

    ours = slope(lambda denoiser: losses.hybrid(D, denoiser, x0, t, eps))
    wrong = slope(lambda p: losses.simple(D, p, x0, t, eps) + 0.001 * losses.vlb(D, p, x0, t, eps))
    np.testing.assert_allclose(ours, 1000 * wrong, rtol=1e-10)
    assert np.abs(ours).min() > 0


def second_order() -> Callable[..., Any]:
    """The move of DPM-Solver++(2M), with the last x_0 and step size kept inside: a scheduler object."""
    last: list[tuple[Any, float]] = []

    def move(x: Any, x0: Any, t: int, s: int) -> Any:
        a, sigma = np.sqrt(D.alpha_bar), np.sqrt(D.one_minus_alpha_bar)
        h = (D.log_snr[s] - D.log_snr[t]) / 2
        ahead = x0 + (x0 - last[0][0]) * h / (2 * last[0][1]) if last and s else x0
        last[:] = [(x0, h)]
        return x0 if s == 0 else sigma[s] / sigma[t] * x - a[s] * math.expm1(-h) * ahead

    return move


def test_defect_09_a_scheduler_that_remembers_another_run() -> None:
    """Two runs in turns through one object differ from each alone; ours keeps nothing between moves but the run's own list."""
    plan, data = (1000, 700, 400, 100, 0), GaussianData(np.zeros(3), 0.1)
    denoiser = Denoiser(data.net(D), clip_x0=False)

    def run(moves: Sequence[Callable[..., Any]], starts: Sequence[Any]) -> list[Any]:
        states = list(starts)
        for t, s in zip(plan, plan[1:], strict=False):
            for k, move in enumerate(moves):
                states[k] = move(states[k], denoiser.x0(D, states[k], t), t, s)
        return states

    starts = X, -X
    ours = [D.trajectory(denoiser, X.shape, sampler="dpm++2m", timesteps=plan, x_T=x) for x in starts]
    in_turns = [step.x for step in list(zip(*ours, strict=True))[-1]]
    one = second_order()
    np.testing.assert_allclose(in_turns, run([second_order(), second_order()], starts), rtol=1e-10)
    assert np.abs(np.divide(run([one, one], starts), in_turns) - 1).max() > 0.05


def test_defect_10_reading_the_device_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coefficient looked up by a step on the device waits for it at each move; ours are numbers before the first."""
    device, reads = array_api_strict.Device("device1"), []
    x = array_api_strict.asarray(X, device=device)
    for name in ("__float__", "__int__", "__index__", "__bool__", "__array__", "__buffer__"):
        if hasattr(original := type(x), name):
            method = getattr(original, name)

            def counted(self: Any, *args: Any, method: Callable[..., Any] = method, **options: Any) -> Any:
                reads.extend([self] * (self.device == device))
                return method(self, *args, **options)

            monkeypatch.setattr(original, name, counted)
    table = array_api_strict.asarray(D.alpha_bar, device=device)
    for t in (500, 400, 300):
        float(table[t])
    assert len(reads) == 3  # one a step
    reads.clear()
    steps = D.trajectory(Denoiser(zero, predicts="x0"), X.shape, sampler="ddim", steps=20, x_T=x)
    assert [len(reads) for _ in steps] == [1] * 20 + [2]  # are x_T and the result numbers? and nothing in between


def test_defect_11_noise_that_depends_on_the_batch_or_the_run() -> None:
    """One generator for the batch gives a sample other noise in another batch; seeded again at a resume it repeats itself; and
    noise scaled in place is not the caller's any more."""
    wrong = [np.random.default_rng(0).standard_normal((2, n, 3)) for n in (4, 2)]  # (moves, batch, ...)
    assert np.abs(wrong[0][1, 0] - wrong[1][1, 0]).max() > 0.5
    ours = [noise.normal(0, range(n), 1, (3,)) for n in (4, 2)]
    np.testing.assert_array_equal(ours[0][:2], ours[1])
    first, resumed = (np.random.default_rng(0).standard_normal(3) for _ in range(2))
    np.testing.assert_array_equal(first, resumed)  # of step 0, and of the step after the resume
    assert np.abs(noise.normal(0, [0], 0, (3,)) - noise.normal(0, [0], 1, (3,))).max() > 0.5
    eps, kept = batch(4, 3, seed=1), batch(4, 3, seed=1)
    x_t = D.q_sample(X, 500, eps)
    D.sample(Denoiser(zero), X.shape, steps=3, x_T=eps, noise=lambda t, index, shape: eps)
    np.testing.assert_array_equal(eps, kept)
    eps *= math.sqrt(D.one_minus_alpha_bar[500])  # the wrong way: the loss then compares with another eps
    assert np.abs(D.q_sample(X, 500, eps) - x_t).max() > 0.05


def test_defect_12_a_classifiers_gradient_at_one_point_used_at_another() -> None:
    """Bayes' rule shifts the score at x_t. The same gradient added to the mean, times the variance, is right for short moves
    only. Loops of RePaint that re-run a step in place are in test_edit.py."""
    classes = [GaussianData(np.array([m]), 0.02) for m in (-0.5, 0.5)]
    mixture, t, s, x = MixtureData([0.5, 0.5], [[-0.5], [0.5]], 0.02), 500, 250, np.array([[0.1], [0.4]])

    def score(data: GaussianData | MixtureData, x: Any, t: Any) -> Any:
        return D.convert(data.net(D)(x, np.full(len(x), t)), x, t, "eps", "score")

    def gradient(x: Any, t: Any) -> Any:  # of log p(y = 1 | x_t)
        return score(classes[1], x, t[0]) - score(mixture, x, t[0])

    truth = Denoiser(classes[1].net(D), clip_x0=False).p(D, x, t, s).mean
    ours = Denoiser(guidance.classifier(mixture.net(D), gradient, 1.0), clip_x0=False).p(D, x, t, s).mean
    p = Denoiser(mixture.net(D), clip_x0=False).p(D, x, t, s)
    np.testing.assert_allclose(ours, truth, rtol=1e-9)
    assert np.abs(p.mean + p.var * gradient(x, [t]) - truth).max() > 0.05


def test_defect_13_an_image_averaged_with_its_neighbours() -> None:
    """A mean over the batch inside a step makes an image another one when a neighbour changes."""

    def mixed(x_t: Any, t: Any) -> Any:
        return np.broadcast_to(x_t.mean(axis=0), x_t.shape)

    far = np.concatenate([X[:1], 5 + X[1:]])
    for net, moved in ((lambda x_t, t: x_t / 2, False), (mixed, True)):
        a, b = (D.sample(Denoiser(net, clip_x0=False), X.shape, sampler="ddim", steps=5, x_T=x) for x in (X, far))
        assert (np.abs(a[0] - b[0]).max() > 1) == moved
        assert moved or np.array_equal(a[0], b[0])


def test_defect_14_pixels_cut_off_instead_of_rounded() -> None:
    """Half a level darker on average, a whole one at worst; 8-bit images no longer come back as they were."""
    pytest.importorskip("torch")
    from tinyddpm.training import to_uint8

    x = np.linspace(-1, 1, 100_001)
    exact_level = 127.5 * (x + 1)
    cut, ours = (level.astype(float) - exact_level for level in (exact_level.astype(np.uint8), to_uint8(x)))
    assert cut.mean() == pytest.approx(-0.5, abs=1e-3)
    assert cut.min() < -0.99
    assert abs(ours.mean()) < 1e-3
    assert np.abs(ours).max() <= 0.5 + 1e-9
    levels = np.arange(256, dtype=np.uint8)
    back = levels.astype(np.float32) / np.float32(127.5) - 1
    np.testing.assert_array_equal(to_uint8(back), levels)
    assert (((back + 1) * np.float32(127.5)).astype(np.uint8) != levels).any()
