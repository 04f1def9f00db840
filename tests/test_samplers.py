"""Sampling against closed-form truth, and the promises that plans, noise and the loop make."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import array_api_strict
import numpy as np
import pytest
from conftest import Library
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import MIXTURE, batch, plans, v_net

from tinyddpm import Denoiser, Diffusion, backends, guidance, noise, samplers, schedules
from tinyddpm.analytic import GaussianData, MixtureData
from tinyddpm.samplers import Step

SAMPLERS = tuple(samplers.NAMES)


def zero_net(x_t: Any, t: Any) -> Any:
    return x_t * 0


def exact(d: Diffusion, data: GaussianData | MixtureData = MIXTURE, **options: Any) -> Denoiser:
    return Denoiser(data.net(d), clip_x0=False, **options)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_is_the_published_update(eta: float) -> None:
    """[DDIM eq. 12] in float64, with x0 clipped and eps derived from the clipped x0; peers derive it from the raw output."""
    d = Diffusion(schedules.linear(30, 1e-3, 0.2))
    plan = (30, 17, 16, 4, 0)
    z = {t: batch(3, 2, seed=t) for t in plan}
    raw = exact(d)
    x_T = 3 * batch(3, 2)
    x = x_T
    for t, s in zip(plan, plan[1:], strict=False):
        a_t, a_s = d.alpha_bar[t], d.alpha_bar[s]
        x0 = np.clip(raw.x0(d, x, t), -1, 1)
        eps = (x - np.sqrt(a_t) * x0) / np.sqrt(1 - a_t)
        sigma = eta * np.sqrt((1 - a_s) / (1 - a_t)) * np.sqrt(1 - a_t / a_s)
        x = np.sqrt(a_s) * x0 + np.sqrt(1 - a_s - sigma**2) * eps + sigma * z[t]
    drawn = []

    def source(t: int, index: Sequence[int], shape: tuple[int, ...]) -> Any:
        drawn.append(t)
        return z[t]

    ours = d.sample(replace(raw, clip_x0=True), (3, 2), sampler="ddim", eta=eta, timesteps=plan, x_T=x_T, noise=source)
    np.testing.assert_allclose(ours, x, rtol=1e-10, atol=1e-12)
    assert drawn == ([30, 17, 16] if eta else [])  # never into s = 0, never at eta = 0


CALLS = [40, 80, 160, 320]


@pytest.fixture(scope="module")
def errors() -> dict[str, list[float]]:
    """The error of each method at so many network calls on a fine chain, beside Heun's method with many more steps."""
    d, x_T = Diffusion(schedules.linear(20_000, 5e-6, 1e-3)), batch(64, 2)

    def end(sampler: Any, steps: int) -> NDArray[np.float64]:
        plan = d.timesteps(steps, "log_snr")
        return np.asarray(d.sample(exact(d), x_T.shape, sampler=sampler, timesteps=plan, x_T=x_T))

    truth, methods = end("heun", 4_000), ("ddim", "dpm++2m", "dpm++3m", "unipc", "heun")
    moves = {name: [(n + 1) // 2 if name == "heun" else n for n in CALLS] for name in methods}
    return {name: [float(np.sqrt(np.mean((end(name, n) - truth) ** 2))) for n in moves[name]] for name in methods}


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpm++2m", 2), ("dpm++3m", 2), ("heun", 2), ("unipc", 2)])
def test_error_falls_with_the_methods_order(errors: dict[str, list[float]], sampler: str, order: int) -> None:
    """Doubling the steps divides the error by 2^order: the slope over three doublings is at least order - 0.3."""
    slope = np.polyfit(np.log2(CALLS), np.log2(errors[sampler]), 1)[0]
    assert -slope > order - 0.3, errors[sampler]
    assert errors[sampler][-1] < (0.05 if order == 1 else 0.003)


def test_a_higher_order_is_better_at_equal_calls(errors: dict[str, list[float]]) -> None:
    """The third by more than twice: its published weights make its error fall faster than with order 2, not with order 3."""
    for sampler in ("dpm++2m", "unipc", "heun"):
        assert all(a < b for a, b in zip(errors[sampler][:3], errors["ddim"], strict=False))
    assert all(a < b / 2 for a, b in zip(errors["dpm++3m"], errors["dpm++2m"], strict=True))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("predicts", ["eps", "x0", "mu", "v", "score"])
def test_every_prediction_gives_the_same_samples(sampler: str, predicts: str) -> None:
    d = Diffusion(schedules.cosine(20, max_beta=0.9))
    eps_net = MIXTURE.net(d)

    def net(x_t: Any, t: Any) -> Any:
        return d.convert(eps_net(x_t, t), x_t, t, "eps", predicts)

    one = d.sample(exact(d), (3, 2), sampler=sampler, dtype="float64")
    other = d.sample(Denoiser(net, predicts, clip_x0=False), (3, 2), sampler=sampler, dtype="float64")
    np.testing.assert_allclose(other, one, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_zero_terminal_snr_with_v(sampler: str) -> None:
    """Where alpha_bar_T = 0 every sampler works with v, stays finite, and lands on the data's moments."""
    d = Diffusion(schedules.zero_terminal_snr(schedules.linear(250, 4e-4, 0.08)))
    data = GaussianData([0.3, -0.4], [0.05, 0.02])
    denoiser = Denoiser(v_net(d, data), "v", variance="beta_tilde", clip_x0=False)
    x = d.sample(denoiser, (4000, 2), sampler=sampler, seed=2, dtype="float64")
    np.testing.assert_allclose(x.mean(0), data.mean, atol=5 * 0.224 / 4000**0.5)
    np.testing.assert_allclose(x.std(0), np.sqrt(data.var), rtol=0.08)  # 5 standard errors and DDIM's first-order error
    with pytest.raises(ValueError, match=r"^predicts must be .*, got 'eps': x_0 does not follow from it at t = 250"):
        d.sample(Denoiser(zero_net), (1, 2), sampler=sampler)


def test_a_chain_too_long_for_the_dtype_is_refused_before_the_network_is_called() -> None:
    """linear(100_000) ends at alpha_bar = e^-1000: 1 / sqrt(alpha_bar) is a float64, but no float32."""
    d = Diffusion(schedules.linear(100_000))
    net = Denoiser(lambda x, t: x)
    with pytest.raises(ValueError, match=r"^predicts must be .* in float32 at t = 100000, got 'eps' for the sampler 'ddpm'$"):
        d.sample(net, (2, 3), steps=5)
    assert np.all(np.isfinite(d.sample(net, (2, 3), steps=5, dtype="float64")))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_range_of_x0_holds_in_every_dtype(sampler: Any, dtype: str) -> None:
    """Also where guidance leads far out of it: the last step lands on the prediction."""
    torch = pytest.importorskip("torch")
    d, signs = Diffusion(schedules.linear(30, 1e-3, 0.2)), torch.tensor([1, -1, 1, -1, 1])
    steep = guidance.classifier_free(lambda x_t, t, y: 0 * x_t + y * signs.to(x_t.dtype), 9.0, 3.0, 5.0)
    for low, high in ((0.25, 0.75), (-2.0, -0.5)):
        options: dict[str, Any] = {"sampler": sampler, "steps": 6, "backend": "torch", "dtype": dtype, "seed": 1}
        with pytest.warns(UserWarning, match="drift") if dtype == "bfloat16" else nullcontext():
            *_, last = d.trajectory(Denoiser(steep, "x0", clip_x0=(low, high)), (8, 5), **options)
        x = last.x
        assert x.dtype == getattr(torch, dtype)
        assert (x.min().item(), x.max().item()) == (low, high)


def test_a_state_in_bfloat16_drifts_and_warns() -> None:
    """The figures that the documents state: over 1000 steps its std is a quarter too large, where a float32 state with a network
    whose output is rounded to bfloat16 is within a percent, and one of 20 steps within two."""
    torch = pytest.importorskip("torch")
    d, data = Diffusion(), GaussianData([0.3], [0.04])
    net = data.net(d)

    def rounded(x: Any, t: Any) -> Any:
        return net(x.double(), t).to(torch.bfloat16).to(x.dtype)

    def std(net: Any, dtype: str, **options: Any) -> float:
        x = d.sample(Denoiser(net, clip_x0=False), (2000, 1), sampler="ddim", backend="torch", dtype=dtype, seed=1, **options)
        return float(x.double().std())

    exact_std = std(net, "float64")
    assert std(rounded, "float32") == pytest.approx(exact_std, rel=0.01)
    with pytest.warns(UserWarning, match=r"^dtype bfloat16 rounds the state .* autocast='bfloat16'$") as told:
        assert std(rounded, "bfloat16") > 1.25 * exact_std
    assert [warning.filename for warning in told] == [__file__]
    with pytest.warns(UserWarning, match="^dtype bfloat16"):
        assert std(rounded, "bfloat16", steps=20) == pytest.approx(std(net, "float64", steps=20), rel=0.02)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_network_calls(sampler: str) -> None:
    d = Diffusion(schedules.linear(40))
    calls = []

    def net(x_t: Any, t: Any) -> Any:
        calls.append(int(t[0]))
        return x_t * 0

    plan = (40, 22, 9, 1, 0)
    d.sample(Denoiser(net), (2, 3), sampler=sampler, timesteps=plan)
    assert calls == ([40, 22, 22, 9, 9, 1, 1] if sampler == "heun" else [40, 22, 9, 1])
    calls.clear()
    d.sample(Denoiser(net, first_t=0), (2, 3), sampler="ddim", timesteps=plan)
    assert calls == [39, 21, 8, 0]


@settings(max_examples=30)
@given(st.data(), st.sampled_from(SAMPLERS))
def test_a_sample_does_not_depend_on_its_batch(data: st.DataObject, sampler: str) -> None:
    """Noise by layout makes peers' images depend on how the batch was cut; ours are rows of one whole, bit for bit."""
    d = Diffusion(schedules.linear(12, 1e-3, 0.3))
    rows = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5))
    options: dict[str, Any] = {"sampler": sampler, "seed": 9, "timesteps": data.draw(plans(12))}
    whole = d.sample(Denoiser(zero_net), (len(rows), 3, 5), index=rows, **options)
    for k, row in enumerate(rows):
        np.testing.assert_array_equal(d.sample(Denoiser(zero_net), (1, 3, 5), index=[row], **options)[0], whole[k])


def test_noise_is_drawn_where_the_contract_says() -> None:
    """x_T is step 0, the move from t is step t, and the last move is noise-free whatever the plan's last t."""
    d = Diffusion(schedules.linear(30))
    plan = (30, 12, 7, 0)
    seen = []

    def source(t: int, index: Sequence[int], shape: tuple[int, ...]) -> Any:
        seen.append((t, tuple(index), shape))
        return noise.normal(11, index, t, shape)

    index = [5, 900]
    injected = d.sample(Denoiser(zero_net), (2, 3, 4), timesteps=plan, seed=11, index=index, noise=source)
    assert seen == [(30, (5, 900), (3, 4)), (12, (5, 900), (3, 4))]
    drawn = d.sample(Denoiser(zero_net), (2, 3, 4), timesteps=plan, seed=11, index=index)
    np.testing.assert_allclose(injected, drawn, rtol=0, atol=5e-7)  # ours has the std in its radius
    x_T = noise.normal(11, index, 0, (3, 4))
    np.testing.assert_array_equal(drawn, d.sample(Denoiser(zero_net), (2, 3, 4), timesteps=plan, seed=11, index=index, x_T=x_T))


def test_strided_moves_follow_the_plan_given() -> None:
    """Peers take s = t - T // n whatever the plan says; ours uses the plan's own pairs."""
    d = Diffusion(schedules.linear(100))
    x_T, plan = batch(2, 2), (100, 61, 60, 2, 0)
    x = x_T
    for t, s in zip(plan, plan[1:], strict=False):
        p = exact(d).p(d, x, t, s)
        x = p.mean + (p.std * np.ones((2, 2)) if s else 0)
    ours = d.sample(exact(d), (2, 2), timesteps=plan, x_T=x_T, noise=lambda t, i, s: np.ones((2, 2)))
    np.testing.assert_allclose(ours, x, rtol=1e-12)


def test_trajectory_is_what_sample_passes_through() -> None:
    d = Diffusion(schedules.linear(20))
    told: list[Step] = []
    x = d.sample(exact(d), (3, 2), steps=6, seed=1, callback=told.append)
    steps = list(d.trajectory(exact(d), (3, 2), steps=6, seed=1))
    assert [s.t for s in steps] == list(d.timesteps(6))
    assert steps[0].x0 is None
    np.testing.assert_array_equal(steps[-1].x, x)
    np.testing.assert_array_equal(steps[-1].x, steps[-1].x0)  # the last move is noise-free and lands on the prediction
    assert [s.t for s in told] == list(d.timesteps(6))[1:]
    for a, b in zip(told, steps[1:], strict=True):
        np.testing.assert_array_equal(a.x, b.x)
    thin = list(d.trajectory(exact(d), (3, 2), steps=6, seed=1, every=4))
    assert [s.t for s in thin] == [d.timesteps(6)[k] for k in (0, 4, 6)]


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 120, 120)])
def test_noisy_runs_may_interleave_and_change_threads(native: Library, shape: tuple[int, ...]) -> None:
    """What is kept of the newest noise is a thread's own, and earlier predictions are a run's."""
    d = Diffusion(schedules.linear(15))
    options: dict[str, Any] = {"steps": 6, "backend": native.name, "sampler": "dpm++2m-sde"}
    half = Denoiser(lambda x_t, t: 0.5 * x_t)
    alone = [native.host(d.sample(half, shape, seed=s, **options)) for s in (1, 2)]
    runs = [d.trajectory(half, shape, seed=s, **options) for s in (1, 2)]
    with ThreadPoolExecutor(1) as pool:
        ends = [[next(r) if k % 2 else pool.submit(next, r).result() for r in runs] for k in range(7)][-1]
    for step, expected in zip(ends, alone, strict=True):
        np.testing.assert_array_equal(native.host(step.x), expected)


@pytest.mark.parametrize("spacing", ["even", "quadratic", "log_snr"])
def test_a_spacing_is_its_plan(spacing: str) -> None:
    d = Diffusion(schedules.linear(40))
    one = d.sample(exact(d), (2, 2), steps=7, spacing=spacing)
    np.testing.assert_array_equal(one, d.sample(exact(d), (2, 2), timesteps=d.timesteps(7, spacing)))
    steps = d.trajectory(exact(d), (2, 2), steps=7, spacing=spacing)
    assert tuple(step.t for step in steps) == d.timesteps(7, spacing)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_library_agrees(library: Library, sampler: str) -> None:
    """The same states on every array library, one of which knows nothing but the standard."""
    d = Diffusion(schedules.cosine(10))
    x_T = library.array(batch(3, 2))
    x = d.sample(exact(d), (3, 2), sampler=sampler, x_T=x_T, seed=4)
    assert type(x) is type(x_T)
    assert x.dtype == x_T.dtype
    truth = d.sample(exact(d), (3, 2), sampler=sampler, x_T=batch(3, 2), seed=4)
    np.testing.assert_allclose(library.host(x), truth, rtol=1e-9, atol=1e-9)


def test_backend_device_and_dtype(native: Library) -> None:
    d = Diffusion(schedules.linear(8))
    x = d.sample(Denoiser(zero_net), (2, 3), backend=native.name, dtype="float32")
    assert backends.of(x).name == native.name
    assert str(x.dtype).endswith("float32")
    np.testing.assert_allclose(native.host(x), d.sample(Denoiser(zero_net), (2, 3)), rtol=1e-5, atol=2e-5)
    moved = d.sample(Denoiser(zero_net), (2, 3), backend=native.name, x_T=batch(2, 3))
    assert backends.of(moved).name == native.name


def test_an_unregistered_library_samples_where_no_noise_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_registered", {})
    x_T = array_api_strict.asarray(batch(2, 2))
    d = Diffusion(schedules.linear(10))
    x = d.sample(exact(d), (2, 2), sampler="dpm++2m", x_T=x_T)
    assert type(x) is type(x_T)
    with pytest.raises(LookupError, match=r"array must belong to a loaded backend, .* got array_api_strict"):
        d.sample(exact(d), (2, 2), x_T=x_T)


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_learned_variances_are_used(variance: str) -> None:
    """A network that emits the fixed log-variance, in either form, samples like the fixed one."""
    d = Diffusion(schedules.linear(10, 1e-3, 0.2))
    raw = 1.0 if variance == "learned_range" else None

    def net(x_t: Any, t: Any) -> Any:
        v = np.full_like(x_t, raw) if raw is not None else np.log(d.beta[t])[:, None] + np.zeros_like(x_t)
        return np.concatenate([MIXTURE.net(d)(x_t, t), v], axis=1)

    learned = d.sample(Denoiser(net, variance=variance, clip_x0=False), (5, 2), seed=8, dtype="float64")
    np.testing.assert_allclose(learned, d.sample(exact(d), (5, 2), seed=8, dtype="float64"), rtol=1e-10, atol=1e-12)


def test_no_gradients_are_recorded() -> None:
    torch = pytest.importorskip("torch")
    weight = torch.ones((), requires_grad=True)
    x = Diffusion(schedules.linear(4)).sample(Denoiser(lambda x_t, t: weight * x_t), (2, 3), backend="torch")
    assert not x.requires_grad
    assert torch.is_grad_enabled()


def test_progress_is_shown_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    Diffusion(schedules.linear(4)).sample(Denoiser(zero_net), (1, 3), progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "4/4" in captured.err


def test_bad_arguments_are_refused_before_the_first_step() -> None:
    """A trajectory is a generator, yet its arguments are checked when it is made."""
    with pytest.raises(LookupError):
        Diffusion(schedules.linear(4)).trajectory(Denoiser(zero_net), (1, 2), sampler="euler")
    with pytest.raises(ValueError, match=r"^every\b"):
        Diffusion(schedules.linear(4)).trajectory(Denoiser(zero_net), (1, 2), every=0)


LONG = [Diffusion(b) for b in (schedules.constant(6000, 0.5), schedules.linear(100_000), [0.01, 1 - 3e-10], [0.01, 1 - 1e-9])]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_longer_than_the_number_range_are_finite(sampler: Any, dtype: str) -> None:
    """sigma / a falls by e^1000 and more in one step, where Heun's weights divided by zero, and by more than float16 holds."""
    net = Denoiser(lambda x_t, t: x_t.dtype.type(0.3) * x_t, predicts="v")
    for d in LONG:
        for steps in (2, 1):
            x = d.sample(net, (2, 2), sampler=sampler, steps=steps, dtype=dtype)
            assert np.isfinite(x).all()
            assert np.abs(x).max() <= 1
    with pytest.raises(ValueError, match=rf"^predicts must be .* got 'eps'( for the sampler '{re.escape(sampler)}')?"):
        LONG[0].sample(replace(net, predicts="eps"), (2, 2), sampler=sampler, dtype=dtype)


def test_the_network_decides_the_library_if_nothing_else_does() -> None:
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, x: Any, t: Any) -> Any:
            return self.layer(x)

    d = Diffusion(schedules.linear(10))
    for net in (Net(), guidance.classifier(Net(), lambda x, t: 0 * x, 1.0)):
        assert isinstance(d.sample(Denoiser(net), (3, 2)), torch.Tensor)
    assert isinstance(d.sample(Denoiser(Net()), (3, 2), x_T=torch.zeros(3, 2)), torch.Tensor)
    assert isinstance(d.sample(Denoiser(lambda x, t: 0 * x), (3, 2)), np.ndarray)
    with pytest.raises(TypeError, match=r'backend="torch"'):
        d.sample(Denoiser(Net()), (3, 2), backend="numpy")
