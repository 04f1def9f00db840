"""diffusers' schedulers on the same network output and the same noise: equal where their float32 tables are right.

Where they differ for a reason, the reason is stated and ours is compared with the published update.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from strategies import MIXTURE, batch

from tinyddpm import Denoiser, Diffusion
from tinyddpm.denoiser import Net

torch = pytest.importorskip("torch")
peers = pytest.importorskip("diffusers", reason="diffusers is not installed (it is in the extra 'test')")

D = Diffusion()
FLOAT32 = 2e-5  # their tables are float32 running products, a few of whose units compound over the plan
X_T = batch(8, 2)


def peer_run(
    name: str,
    steps: int,
    options: dict[str, Any] | None = None,
    step: dict[str, Any] | None = None,
    noise_kind: str | None = None,
    predicts: str = "epsilon",
    **config: Any,
) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Their loop over their plan: (plan with 0 appended, final sample)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # theirs, of NumPy 2's array protocol
        scheduler = getattr(peers, name)(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear",
                                         prediction_type=predicts, **config)  # fmt: skip
        scheduler.set_timesteps(steps, **(options or {}))
        x = torch.from_numpy(X_T) * getattr(scheduler, "init_noise_sigma", 1.0)
        plan = []
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t)
            plan.append(int(t) + 1)
            out = torch.from_numpy(net(predicts)(scaled.numpy(), np.full(len(x), int(t) + 1)))
            x = scheduler.step(out, t, x, **(step or {})).prev_sample
    return (*plan, 0), x.numpy()


def net(predicts: str = "epsilon") -> Net:
    ours = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}[predicts]
    exact = MIXTURE.net(D)

    def eps(x_t: Any, t: Any) -> Any:
        return 0.9 * exact(x_t, t) + 0.2  # wrong enough that x0 leaves [-1, 1]

    return lambda x_t, t: D.convert(eps(x_t, t), x_t, t, "eps", ours)


def our_run(
    sampler: str, plan: Sequence[int], predicts: str = "epsilon", clip_x0: bool = False, variance: str = "beta", **options: Any
) -> NDArray[np.float64]:
    ours = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}[predicts]
    denoiser = Denoiser(net(predicts), ours, variance=variance, clip_x0=clip_x0)
    return np.asarray(D.sample(denoiser, X_T.shape, sampler=sampler, timesteps=plan, x_T=X_T, **options))


@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip", [False, True])
def test_ddim(predicts: str, clip: bool) -> None:
    """The same update from the same plan; with clipping they re-derive eps only when told to."""
    plan, theirs = peer_run("DDIMScheduler", 20, {}, {"use_clipped_model_output": clip}, predicts=predicts, clip_sample=clip,
                            set_alpha_to_one=True, timestep_spacing="trailing")  # fmt: skip
    assert plan[0] == 1000
    np.testing.assert_allclose(our_run("ddim", plan, predicts, clip_x0=clip), theirs, atol=FLOAT32)


def test_ddim_that_clips_x0_and_keeps_eps_is_another_sampler() -> None:
    """Their default: x0 is clipped, eps is not derived again, and the step leaves the line between x0 and x_t."""
    plan, theirs = peer_run("DDIMScheduler", 20, clip_sample=True, set_alpha_to_one=True, timestep_spacing="trailing")
    published = our_run("ddim", plan, clip_x0=True)
    assert np.abs(published - theirs).max() > 5 * FLOAT32


@pytest.mark.parametrize(("theirs", "ours"), [("fixed_large", "beta"), ("fixed_small", "beta_tilde")])
def test_ddpm(theirs: str, ours: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One move, with the same noise put in. Their strided plans use their own pairs, so the plan here is t - 1 at every step."""
    scheduler = peers.DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", variance_type=theirs, clip_sample=False)
    z = batch(8, 2, seed=5)
    module = type(scheduler).__module__
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *args, **kwargs: torch.from_numpy(z))
    denoiser = Denoiser(net(), variance=ours, clip_x0=False)
    for t in (1000, 600, 50, 2):  # at t = 1 no noise is added
        out = torch.from_numpy(net()(X_T, np.full(8, t)))
        their_x = scheduler.step(out, t - 1, torch.from_numpy(X_T)).prev_sample.numpy()
        p = denoiser.p(D, X_T, t)
        wrong = 2e-4 if t <= 50 else 2e-5  # their 1 - alpha_bar is off by that where it is small
        np.testing.assert_allclose(p.sample(z), their_x, rtol=wrong, atol=wrong)


DPM_SOLVER: dict[str, Any] = {"solver_type": "midpoint", "final_sigmas_type": "zero", "timestep_spacing": "trailing"}


@pytest.mark.parametrize(("order", "steps"), [(2, 15), (3, 18)])
def test_dpm_solver(order: int, steps: int) -> None:
    """With fewer than 15 steps, and unless told not to, theirs makes the step before the last one of lower order."""
    options = {"algorithm_type": "dpmsolver++", "solver_order": order, "lower_order_final": True, **DPM_SOLVER}
    plan, theirs = peer_run("DPMSolverMultistepScheduler", steps, **options)
    np.testing.assert_allclose(our_run(f"dpm++{order}m", plan), theirs, atol=FLOAT32)


def test_dpm_solver_2m_sde(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the same noise."""
    made: list[Any] = []

    def noise(*args: Any, **kwargs: Any) -> Any:
        made.append(batch(8, 2, seed=len(made)))
        return torch.from_numpy(made[-1])

    monkeypatch.setattr(f"{peers.DPMSolverMultistepScheduler.__module__}.randn_tensor", noise)
    plan, theirs = peer_run("DPMSolverMultistepScheduler", 15, algorithm_type="sde-dpmsolver++", solver_order=2, **DPM_SOLVER)
    z = iter(made)
    ours = our_run("dpm++2m-sde", plan, noise=lambda t, index, shape: next(z))
    np.testing.assert_allclose(ours, theirs, atol=FLOAT32)


def test_unipc() -> None:
    plan, theirs = peer_run("UniPCMultistepScheduler", 15, solver_order=2, solver_type="bh2", predict_x0=True,
                            final_sigmas_type="zero", timestep_spacing="trailing")  # fmt: skip
    np.testing.assert_allclose(our_run("unipc", plan), theirs, atol=FLOAT32)
