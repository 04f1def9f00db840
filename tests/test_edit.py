"""Editing against closed-form conditionals, the plain loops it stands for, and the way back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from conftest import Library
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import MIXTURE, batch, plans, v_net

from tinyddpm import Denoiser, Diffusion, backends, edit, noise, samplers, schedules
from tinyddpm import _editing as parts
from tinyddpm.analytic import GaussianData, MixtureData

BROAD = MixtureData([0.5, 0.5], [[-0.3, -0.4], [0.3, 0.4]], [[0.1, 0.05], [0.1, 0.05]])
RIGHT = np.array([False, True])  # the second of two numbers is known


def exact(d: Diffusion, data: GaussianData | MixtureData = MIXTURE, **options: Any) -> Denoiser:
    return Denoiser(data.net(d), clip_x0=False, **options)


def zero_net(x_t: Any, t: Any) -> Any:
    return x_t * 0


def test_inpaint_is_the_published_loop_with_its_way_back() -> None:
    """[Lugmayr et al. alg. 1] line by line, in the printed alpha_bar, on a plan with a run that is cut short."""
    d = Diffusion(schedules.linear(30, 1e-3, 0.2))
    known, mask, plan = batch(3, 4), np.array([True, False, False, True]), (30, 17, 9, 2, 0)
    denoiser = Denoiser(lambda x_t, t: 0.3 * np.roll(x_t, 1, axis=1) + 0.1, variance="beta_tilde", clip_x0=False)
    walk = [(30, 17), (17, 9), (9, 2), (2, 30), (30, 17), (17, 9), (9, 2), (2, 0), (0, 2), (2, 0)]
    step, ab = 0, d.alpha_bar

    def draw() -> NDArray[np.float64]:
        return np.asarray(noise.normal(7, range(3), step, (4,), stream=4, dtype="float64"))

    x = draw()
    for t, s in walk:
        step += 1
        if s > t:
            x = math.sqrt(ab[s] / ab[t]) * x + math.sqrt(1 - ab[s] / ab[t]) * draw()
            continue
        eps = 0.3 * np.roll(x, 1, axis=1) + 0.1  # what is known acts on the rest
        x0 = (x - math.sqrt(1 - ab[t]) * eps) / math.sqrt(ab[t])
        w_x0, w_xt, var = d.posterior_weights(t, s)
        unknown = w_x0 * x0 + w_xt * x + (math.sqrt(var) * draw() if s else 0)
        x = np.where(mask, math.sqrt(ab[s]) * known + (math.sqrt(1 - ab[s]) * draw() if s else 0), unknown)
    ours = edit.inpaint(d, denoiser, known, mask, timesteps=plan, jump_length=3, resamplings=2, seed=7)
    np.testing.assert_allclose(ours, x, rtol=1e-10, atol=1e-12)


@given(st.data())
def test_resampling_never_runs_a_step_again_without_going_back(data: st.DataObject) -> None:
    """RePaint loops that re-run the same t see a state of s < t as if it were one of t. Here every move starts where the last
    one ended, upward moves are q's own, and each move of the plan is made `resamplings` times."""
    plan = data.draw(plans(20))
    jump, times = data.draw(st.integers(1, 25)), data.draw(st.integers(1, 4))
    walk = list(parts.walk(plan, jump, times))
    assert walk[0][0] == 20
    assert walk[-1][1] == 0
    assert all(before[1] == after[0] for before, after in pairwise(walk))
    down = [move for move in walk if move[1] < move[0]]
    assert sorted(down) == sorted(list(pairwise(plan)) * times)


def conditional(data: MixtureData, value: float) -> tuple[float, float]:
    """Mean and variance of the first number given the second: the components weighed by what each says of it."""
    share = data.weights * np.exp(-((value - data.means[:, 1]) ** 2) / data.vars[:, 1] / 2) / np.sqrt(data.vars[:, 1])
    share /= share.sum()
    mean = np.sum(share * data.means[:, 0])
    return mean, np.sum(share * (data.vars[:, 0] + data.means[:, 0] ** 2)) - mean**2


def moments(T: int, n: int, resamplings: int) -> tuple[float, float]:
    d = Diffusion(schedules.linear(T, 0.1 / T, 15 / T))
    known = np.full((n, 2), 0.2)
    x = edit.inpaint(d, exact(d, BROAD), known, RIGHT, jump_length=1, resamplings=resamplings, seed=1)[:, 0]
    return x.mean(), x.var()


def rerun_without_going_back(T: int, n: int, times: int) -> tuple[float, float]:
    """The defect: each step `times` over, its own output taken for its input."""
    d = Diffusion(schedules.linear(T, 0.1 / T, 15 / T))
    denoiser, rng = exact(d, BROAD), np.random.default_rng(0)
    x = rng.standard_normal((n, 2))
    for t in range(T, 0, -1):
        for _ in range(times):
            p = denoiser.p(d, x, t)
            z = rng.standard_normal((n, 2)) if t > 1 else np.zeros((n, 2))
            known = d.q_sample(np.full((n, 2), 0.2), t - 1, z)
            x = np.asarray(np.where(RIGHT, known, p.sample(z) if t > 1 else p.mean))
    return x[:, 0].mean(), x[:, 0].var()


def test_inpainting_nears_the_conditional_as_resamplings_grow() -> None:
    """The mean's error falls by more than 4 from 1 to 10 resamplings, and the variance is right to 20% (5 standard errors are
    28%); a loop that re-runs steps in place loses half of the variance."""
    mean, var = conditional(BROAD, 0.2)
    n = 600
    once, often = moments(100, n, 1), moments(100, n, 10)
    assert abs(once[0] - mean) > 0.14
    assert abs(often[0] - mean) < abs(once[0] - mean) / 4 + 2 * math.sqrt(var / n)
    assert abs(often[1] / var - 1) < 0.2
    assert abs(rerun_without_going_back(100, n, 10)[1] / var - 1) > 0.4


@pytest.mark.slow
def test_inpainting_reaches_the_conditional() -> None:
    """On a finer chain with 30 resamplings the moments are within 5 standard errors of the conditional's."""
    mean, var = conditional(BROAD, 0.2)
    n = 1500
    ours = moments(200, n, 30)
    assert abs(ours[0] - mean) < 5 * math.sqrt(var / n)
    assert abs(ours[1] - var) < 5 * var * math.sqrt(2 / n)


def test_independent_parts_keep_their_own_law() -> None:
    """Where the known part says nothing of the rest, inpainting is sampling."""
    d = Diffusion(schedules.linear(100, 1e-3, 0.15))
    data, n = GaussianData([0.3, -0.5], [0.04, 0.2]), 4000
    x = edit.inpaint(d, exact(d, data), np.full((n, 2), 0.7), RIGHT, jump_length=20, resamplings=2)
    assert abs(x[:, 0].mean() - 0.3) < 5 * math.sqrt(0.04 / n)
    assert abs(x[:, 0].var() / 0.04 - 1) < 0.1 + 5 * math.sqrt(2 / n)  # the chain's own variance is 5% off


def test_inpaint_on_every_library(library: Library) -> None:
    """The kept part is returned bit for bit, what was never known does not matter, and every library gives the same."""
    d = Diffusion(schedules.cosine(12))
    known, mask = batch(3, 2, 2), np.array([[True, False], [False, False]])
    options: dict[str, Any] = {"jump_length": 4, "resamplings": 2, "seed": 3}
    truth = edit.inpaint(d, Denoiser(zero_net), known, mask, **options)
    np.testing.assert_array_equal(truth[:, mask], known[:, mask])
    hidden = np.where(mask, known, np.nan)
    x = library.array(hidden)
    for own in (mask, library.array(mask, dtype=None) if library.name != "strict" else library.xp.asarray(mask)):
        ours = edit.inpaint(d, Denoiser(zero_net), x, own, **options)
        assert type(ours) is type(x)
        assert ours.dtype == x.dtype
        np.testing.assert_allclose(library.host(ours), truth, rtol=1e-9, atol=1e-6)  # noise agrees within 2e-6
        np.testing.assert_array_equal(library.host(ours)[:, mask], known[:, mask])


def test_an_edit_does_not_depend_on_its_batch() -> None:
    d = Diffusion(schedules.linear(15))
    a, b, rows = batch(4, 3), batch(4, 3, seed=1), [5, 0, 2**64 - 1, 6]
    edits: dict[str, Callable[[slice, list[int]], Any]] = {
        "inpaint": lambda k, i: edit.inpaint(d, Denoiser(zero_net), a[k], np.eye(1, 3) > 0, index=i, jump_length=3),
        "interpolate": lambda k, i: edit.interpolate(d, Denoiser(zero_net), a[k], b[k], [0.3], index=i, sampler="ddpm")[0],
        "invert": lambda k, i: edit.invert(d, Denoiser(lambda x, t: 0.1 * x**2), a[k]),
        "image_to_image": lambda k, i: edit.image_to_image(d, Denoiser(zero_net), a[k], 9, index=i),
    }
    for run in edits.values():
        whole = run(slice(None), rows)
        for k, row in enumerate(rows):
            np.testing.assert_array_equal(run(slice(k, k + 1), [row])[0], whole[k])


def test_the_callers_arrays_are_left_alone() -> None:
    d = Diffusion(schedules.linear(10))
    a, b, mask = batch(2, 3), batch(2, 3, seed=1), np.array([True, False, True])
    before = [x.copy() for x in (a, b, mask)]
    for x in (a, b, mask):
        x.flags.writeable = False
    edit.inpaint(d, Denoiser(zero_net), a, mask, jump_length=2)
    for encode in ("diffuse", "invert"):
        edit.interpolate(d, Denoiser(zero_net), a, b, [0.0, 1.0], encode=encode)
    for x, old in zip((a, b, mask), before, strict=True):
        np.testing.assert_array_equal(x, old)


@pytest.mark.parametrize(("sampler", "eta"), [("ddpm", None), ("ddim", 0.0), ("ddim", 1.0)])
def test_image_to_image_on_gaussian_data_has_its_exact_law(sampler: Any, eta: float | None) -> None:
    """x_t ~ N(a x_0, sigma^2), then a chain of linear steps; 20 000 samples of one image, 5 standard errors."""
    d, data, n, image, t = (
        Diffusion(schedules.linear(60, 1e-3, 0.15)),
        GaussianData([0.3, -0.5], [0.04, 0.5]),
        20_000,
        [1.0, 0.6],
        37,
    )
    denoiser = exact(d, data, variance="beta_tilde")
    x = edit.image_to_image(d, denoiser, np.tile(image, (n, 1)), t, steps=12, sampler=sampler, eta=eta, seed=3)
    plan = (t, *(s for s in d.timesteps(12, "even" if sampler == "ddpm" else "quadratic") if s < t))
    a, left = d.sqrt_alpha_bar, d.one_minus_alpha_bar
    mean, var = a[t] * np.array(image), left[t] * np.ones(2)
    for t, s in pairwise(plan):
        gain = a[t] * data.var / (a[t] ** 2 * data.var + left[t])  # E[x_0 | x_t] = gain x_t + rest
        rest = (1 - gain * a[t]) * data.mean
        noise_var = 0.0 if eta == 0 else d.posterior_weights(t, s)[2]
        of_eps = np.sqrt(left[s] - noise_var)
        slope = a[s] * gain + of_eps * (1 - a[t] * gain) / np.sqrt(left[t])
        mean = slope * mean + (a[s] - of_eps * a[t] / np.sqrt(left[t])) * rest
        var = slope**2 * var + noise_var
    assert np.all(np.abs(x.mean(0) - mean) < 5 * np.sqrt(var / n))
    assert np.all(np.abs(x.var(0) - var) < 5 * var * math.sqrt(2 / n))


@pytest.mark.parametrize("sampler", samplers.NAMES)
def test_image_to_image_is_sample_from_a_noisy_image(library: Library, sampler: Any) -> None:
    """On the part below t of the plan that `sample` takes; x_t's noise is step 0 of stream 4, and a step's its own t."""
    d, x0, t, index = Diffusion(schedules.cosine(30)), batch(3, 2), 14, [4, 0, 2**64 - 1]
    image = library.array(x0)
    ours = edit.image_to_image(d, exact(d), image, t, steps=9, sampler=sampler, seed=5, index=index)
    draw = noise.like(x0, 5, index, stream=4)
    plan = (t, *(s for s in d.timesteps(9, samplers.BEST_SPACING[sampler]) if s < t))
    x = d.sample(exact(d), (3, 2), sampler=sampler, x_T=d.q_sample(x0, t, draw(0)), timesteps=plan, noise=lambda t, i, s: draw(t))
    assert type(ours) is type(image)
    np.testing.assert_allclose(library.host(ours), x, rtol=1e-9, atol=2e-5)  # noise agrees within 2e-6
    given = edit.image_to_image(d, exact(d), image, t, timesteps=(20, 14, 3, 0), sampler=sampler, seed=5, index=index)
    same = edit.image_to_image(d, exact(d), image, t, timesteps=(14, 3, 0), sampler=sampler, seed=5, index=index)
    np.testing.assert_array_equal(library.host(given), library.host(same))


def round_trip(d: Diffusion, denoiser: Denoiser, x0: NDArray[np.float64], plan: Sequence[int], iterations: int) -> float:
    x_t = edit.invert(d, denoiser, x0, timesteps=plan, iterations=iterations)
    back = d.sample(denoiser, x0.shape, sampler="ddim", timesteps=plan, x_T=x_t)
    return float(np.abs(back - x0).max())


def test_inversion_returns_to_the_same_x0() -> None:
    """200 points of a mixture there and back in 50 moves: within 1e-6, where the usual inversion is 0.1 off; one extra call a
    move brings a third of that already."""
    d = Diffusion()
    x0 = MIXTURE.sample(200, 1)
    for plan in (d.timesteps(50), d.timesteps(50, "log_snr"), d.timesteps(50)[20:]):
        usual = round_trip(d, exact(d), x0, plan, 1)
        assert usual > 0.05
        assert round_trip(d, exact(d), x0, plan, 2) < usual / 2
        assert round_trip(d, exact(d), x0, plan, 10) < 1e-6
        assert round_trip(d, exact(d), x0, plan, 25) < 1e-12


@pytest.mark.parametrize("clip", [False, True])
def test_inversion_on_data_of_one_mode_converges_on_coarse_plans(clip: bool) -> None:
    d = Diffusion()
    data = GaussianData([0.3, -0.5], [0.04, 0.5])
    x0 = np.clip(data.sample(50, 1), -1, 1)  # the ends of the range, too
    for steps in (10, 20):
        error = round_trip(d, exact(d, data) if not clip else Denoiser(data.net(d)), x0, d.timesteps(steps), 30)
        assert error < 1e-10


def test_inversion_finds_the_latent_it_came_from() -> None:
    """Unique for a smooth flow: the inverse of a decoded x_T is that x_T."""
    d = Diffusion()
    x_T = 0.8 * batch(50, 2)
    plan = d.timesteps(200, "log_snr")
    x0 = d.sample(exact(d), x_T.shape, sampler="ddim", timesteps=plan, x_T=x_T)
    # The flow contracts by the data's std / 1 and more between modes, so rounding errors grow on the way back.
    np.testing.assert_allclose(edit.invert(d, exact(d), x0, timesteps=plan, iterations=20), x_T, atol=1e-9)


def test_interpolation_ends_at_its_ends() -> None:
    """Inverted, the ends decode to a and b; diffused, to what each becomes alone; and half way is symmetric."""
    d = Diffusion(schedules.cosine(200))
    a, b = MIXTURE.sample(20, 1), MIXTURE.sample(20, 2)
    for path in ("linear", "spherical"):
        ends = edit.interpolate(d, exact(d), a, b, [0.0, 1.0], encode="invert", path=path)
        np.testing.assert_allclose(ends, [a, b], atol=1e-5)  # the inversion's own error
        ours = edit.interpolate(d, exact(d), a, b, [0.0, 0.5, 1.0], path=path, seed=4)
        swapped = edit.interpolate(d, exact(d), b, a, [1.0, 0.5, 0.0], path=path, seed=4)
        np.testing.assert_allclose(ours, swapped, atol=1e-9)
        eps = noise.normal(4, range(20), 0, (2,), stream=4, dtype="float64")
        for end, x in ((ours[0], a), (ours[2], b)):
            alone = d.sample(exact(d), a.shape, sampler="ddim", x_T=d.q_sample(x, 200, eps))
            np.testing.assert_allclose(end, alone, atol=1e-9)


def test_a_mix_at_a_small_t_is_near_the_pixels_mix() -> None:
    """From t = 2 of 1000 hardly anything is decoded: the mix is the images' own."""
    d = Diffusion()
    a, b = batch(4, 3), batch(4, 3, seed=1)
    mix = edit.interpolate(d, Denoiser(zero_net, clip_x0=False), a, b, [0.25], timesteps=(2, 1, 0))[0]
    np.testing.assert_allclose(mix, 0.75 * a + 0.25 * b, atol=5 * math.sqrt(1 - d.alpha_bar[2]))


@settings(max_examples=50)
@given(st.floats(0, 1), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_the_spherical_path_keeps_a_norm_between_the_ends(weight: float, size_a: float, size_b: float) -> None:
    """On a circle about the origin where the norms are equal, at constant speed; parallel ends give the line."""
    a, b = batch(3, 5), batch(3, 5, seed=1)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    mix = parts.spherical(a, b, weight, np)
    np.testing.assert_allclose(np.linalg.norm(mix, axis=1), 1, rtol=1e-9)
    angle, whole = (np.arccos(np.clip(np.sum(a * x, axis=1), -1, 1)) for x in (mix, b))
    np.testing.assert_allclose(angle, weight * whole, atol=1e-7)  # arccos resolves no more near 1
    np.testing.assert_allclose(parts.spherical(size_a * a, size_b * a, weight, np),
                               ((1 - weight) * size_a + weight * size_b) * a, rtol=1e-9)  # fmt: skip


def test_interpolate_on_every_library(library: Library) -> None:
    d = Diffusion(schedules.cosine(10))
    a, b = batch(3, 2), batch(3, 2, seed=1)
    given: list[dict[str, Any]] = [{"encode": "invert", "path": "spherical"}, {"sampler": "ddpm"}]
    for options in given:
        truth = edit.interpolate(d, exact(d), a, b, [0.2, 0.8], timesteps=(9, 5, 2, 0), **options)
        assert truth.shape == (2, 3, 2)
        ours = edit.interpolate(d, exact(d), library.array(a), library.array(b), [0.2, 0.8], timesteps=(9, 5, 2, 0), **options)
        assert type(ours) is type(library.array(a))
        np.testing.assert_allclose(library.host(ours), truth, atol=2e-5)  # noise agrees within 2e-6


def test_no_gradients_are_recorded() -> None:
    torch = pytest.importorskip("torch")
    d, weight = Diffusion(schedules.linear(5)), torch.ones(1, dtype=torch.float64, requires_grad=True)
    x = backends.get("torch").from_numpy(batch(2, 3))
    net = Denoiser(lambda x_t, t: weight * x_t)
    assert not edit.invert(d, net, x).requires_grad
    assert not edit.inpaint(d, net, x, np.array([True, False, True]), jump_length=2).requires_grad


@pytest.mark.parametrize("name", schedules.NAMES)
@pytest.mark.parametrize("dims", [1, 64])
def test_inversion_goes_there_and_back_on_every_schedule(name: str, dims: int) -> None:
    """Within 3e-4 from 20 steps on and 1e-6 from 50, for data of one mode with variances that differ by a factor of 30.

    The eps form alone misses by 1e-2 where alpha_bar falls to 1e-5 within the first steps, and one change of the residual is too
    few where the first step of the chain hides data of small variance, as that of "constant" does. In float32 a network that
    predicts v is as good as its rounding; one that predicts eps loses it times 1 / sqrt(alpha_bar_T). At alpha_bar_T = 0, where
    eps is x_T itself, only v exists.
    """
    d, data = Diffusion(schedules.NAMES[name]()), GaussianData(np.linspace(-0.5, 0.5, dims), np.geomspace(0.3, 0.01, dims))
    v, x0 = Denoiser(v_net(d, data), "v", clip_x0=False), data.sample(8, 1)
    denoiser = exact(d, data) if d.alpha_bar[-1] else v
    for steps, error in ((20, 3e-4), (50, 1e-6)):
        z = edit.invert(d, denoiser, x0, steps=steps)
        np.testing.assert_allclose(d.sample(denoiser, x0.shape, sampler="ddim", steps=steps, x_T=z), x0, rtol=0, atol=error)
    ends = edit.interpolate(d, denoiser, x0[:4], x0[4:], [0.0, 1.0], encode="invert", steps=50)
    np.testing.assert_allclose(ends, [x0[:4], x0[4:]], rtol=0, atol=1e-6)
    single: Any = x0.astype(np.float32)
    z = edit.invert(d, v, single, steps=50)
    np.testing.assert_allclose(d.sample(v, x0.shape, sampler="ddim", steps=50, x_T=z), single, rtol=0, atol=1e-5)
    if not d.alpha_bar[-1]:
        with pytest.raises(ValueError, match="timesteps must not step from t = 1000"):
            edit.invert(d, v, x0, steps=1)


def test_inversion_of_an_affine_chain_is_exact() -> None:
    """On Gaussian data each DDIM step is affine; its inverse over 20 even steps of the cosine schedule, by 50 digits."""
    d = Diffusion(schedules.cosine())
    denoiser, x = Denoiser(GaussianData([0.2], [0.05]).net(d), clip_x0=False), 0.45
    z = edit.invert(d, denoiser, np.array([[x]]), timesteps=d.timesteps(20))
    assert z.item() == pytest.approx(1.305651150193, abs=1e-9)
