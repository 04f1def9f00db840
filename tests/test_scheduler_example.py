"""The example scheduler does what diffusers' own do: the checks of its common scheduler suite, and what users call beside them.

All of the suite's checks of a scheduler are here. Its other classes test diffusers' configs and the hub, which needs the network.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_examples import load

from tinyddpm import Diffusion, schedules

diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of diffusers' imports

Scheduler: Any = load("diffusers_scheduler").ChainScheduler
CONFIGS: dict[str, dict[str, Any]] = {
    "as DDPMScheduler's tests": {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"},
    "betas": {"trained_betas": schedules.cosine(1000)},
    "a short chain": {"trained_betas": schedules.linear(50, 1e-3, 0.2).tolist(), "prediction_type": "v_prediction"},
    "named": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 60, "clip_sample": False, "prediction_type": "sample"},
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
SAMPLE = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def step(scheduler: Any, t: Any, seed: int = 0, **options: Any) -> Any:
    return scheduler.step(0.1 * SAMPLE, t, SAMPLE, generator=torch.manual_seed(seed), **options)


@every_config
@pytest.mark.parametrize("num_inference_steps", [None, 1, 10])
def test_a_saved_scheduler_steps_alike(tmp_path: Path, config: dict[str, Any], num_inference_steps: int | None) -> None:
    """check_over_configs, check_over_forward, test_from_save_pretrained, test_step_shape, test_scheduler_outputs_equivalence."""
    scheduler = Scheduler(**config)
    scheduler.save_config(tmp_path)
    again = Scheduler.from_pretrained(tmp_path)
    for each in (scheduler, again):
        if num_inference_steps:
            each.set_timesteps(num_inference_steps)
    for t in (0, 1, len(scheduler) // 2, len(scheduler) - 1, torch.tensor(3)):
        out, other = step(scheduler, t), step(again, t)
        assert out.prev_sample.shape == SAMPLE.shape
        assert torch.equal(out.prev_sample, other.prev_sample)
        assert all(torch.equal(a, b) for a, b in zip(out.to_tuple(), step(scheduler, t, return_dict=False), strict=True))
        assert torch.equal(out[0], out.prev_sample)


@every_config
def test_configs_survive_every_compatible_scheduler(tmp_path: Path, config: dict[str, Any]) -> None:
    """test_compatibles, test_from_pretrained."""
    scheduler = Scheduler(**config)
    kinds = [kind for kind in scheduler.compatibles if not hasattr(kind, "_backends")]  # which need a library that is not here
    assert len(kinds) > 10
    for kind in kinds:
        other = kind.from_config(scheduler.config)
        if kind is not diffusers.EDMEulerScheduler:  # which has sigmas in place of betas
            torch.testing.assert_close(other.betas.double(), torch.tensor(scheduler.d.beta[1:]), rtol=2e-5, atol=1e-6)  # float32
            assert len(other.betas) == len(scheduler)
        assert other.config.num_train_timesteps == len(scheduler)
        again = Scheduler.from_config(other.config)
        assert {key: again.config[key] for key in scheduler.config} == dict(scheduler.config)
        assert again.d == scheduler.d
    scheduler.save_pretrained(tmp_path)
    kept = {key: value for key, value in scheduler.config.items() if key != "_use_default_values"}
    assert kept == dict(Scheduler.from_pretrained(tmp_path).config)


def test_the_public_interface() -> None:
    """test_scheduler_public_api, test_deprecated_kwargs, test_trained_betas, test_add_noise_device, test_getattr_is_correct."""
    scheduler = Scheduler(**CONFIGS["as DDPMScheduler's tests"], trained_betas=np.array([0.1, 0.3]))
    assert (scheduler.init_noise_sigma, scheduler.order, scheduler._deprecated_kwargs) == (1.0, 1, [])
    assert scheduler.scale_model_input(SAMPLE, 0.0).shape == SAMPLE.shape
    assert (len(scheduler), scheduler.config.num_train_timesteps, scheduler.config.trained_betas) == (2, 2, [0.1, 0.3])
    scheduler = Scheduler(schedules.cosine(1000))
    scheduler.set_timesteps(100)
    assert scheduler.num_inference_steps == 100
    assert scheduler.add_noise(SAMPLE, SAMPLE, scheduler.timesteps[5][None]).shape == SAMPLE.shape
    scheduler.dummy, _ = 5, scheduler.register_to_config(test_attribute=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scheduler.dummy == 5
        assert scheduler.save_pretrained == scheduler.save_pretrained
    with pytest.warns(FutureWarning, match="test_attribute"):
        assert scheduler.test_attribute == 5
    with pytest.raises(AttributeError, match="'ChainScheduler' object has no attribute 'nothing'"):
        scheduler.nothing  # noqa: B018


@pytest.mark.parametrize("T", [50, 1000])
@pytest.mark.parametrize("pipeline", ["DDPMPipeline", "DDIMPipeline"])
def test_pipelines_keep_the_chain(T: int, pipeline: str) -> None:
    """`DDIMPipeline` makes a DDIMScheduler of whatever it gets."""
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(32,), layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    made = getattr(diffusers, pipeline)(unet, Scheduler(schedules.cosine(T)))
    made.set_progress_bar_config(disable=True)
    np.testing.assert_allclose(made.scheduler.betas, schedules.cosine(T), rtol=1e-6)
    generators = [torch.Generator().manual_seed(k) for k in (1, 2)]
    images = made(batch_size=2, num_inference_steps=5, output_type="np", generator=generators).images
    assert images.shape == (2, 8, 8, 1)
    assert np.isfinite(images).all()


def test_a_list_of_generators_makes_each_sample_its_own() -> None:
    scheduler = Scheduler(schedules.linear())
    made = [torch.Generator().manual_seed(k) for k in range(4)]
    together = scheduler.step(0.1 * SAMPLE, 500, SAMPLE, generator=made)[0]
    alone = scheduler.step(0.1 * SAMPLE[2:3], 500, SAMPLE[2:3], generator=torch.Generator().manual_seed(2))[0]
    assert torch.equal(together[2:3], alone)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_eta_is_ddims(eta: float) -> None:
    """Its own, with eps from the clipped x_0; on a plan that both have, "trailing"."""
    theirs = diffusers.DDIMScheduler(timestep_spacing="trailing")
    ours = Scheduler(schedules.linear())
    for each in (theirs, ours):
        each.set_timesteps(10)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    for t in ours.timesteps:
        noise = torch.randn(SAMPLE.shape, generator=torch.Generator().manual_seed(int(t)))
        expected = theirs.step(0.1 * SAMPLE, t, SAMPLE, eta=eta, use_clipped_model_output=True, variance_noise=noise)
        found = ours.step(0.1 * SAMPLE, t, SAMPLE, eta=eta, variance_noise=noise)
        # Their tables are float32, and 1 - alpha_bar of the last step is 1e-3.
        torch.testing.assert_close(found.prev_sample, expected.prev_sample, rtol=1e-4, atol=1e-4)


def test_noise_and_velocity_are_those_of_ddpm() -> None:
    theirs, ours = diffusers.DDPMScheduler(), Scheduler(schedules.linear())
    noise = torch.randn(SAMPLE.shape, generator=torch.Generator().manual_seed(1))
    for t in (torch.tensor([3]), torch.tensor([999]), torch.tensor([0, 5, 900, 30])):
        for name in ("add_noise", "get_velocity"):
            expected, found = getattr(theirs, name)(SAMPLE, noise, t), getattr(ours, name)(SAMPLE, noise, t)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # float32's 1 - alpha_bar_1 is 1.7e-4 off
    assert torch.equal(ours.add_noise(SAMPLE, noise, torch.tensor(7)), ours.add_noise(SAMPLE, noise, torch.tensor([7] * 4)))


def test_custom_timesteps() -> None:
    """The checks of DDPMScheduler's own tests."""
    scheduler = Scheduler(schedules.linear())
    scheduler.set_timesteps(timesteps=[100, 87, 50, 1, 0])
    assert [scheduler.previous_timestep(t).item() for t in scheduler.timesteps] == [87, 50, 1, 0, -1]
    for wrong in ({"timesteps": [100, 50, 51, 0]}, {"timesteps": [1000]}, {"timesteps": [5, -1]}, {},
                  {"num_inference_steps": 2, "timesteps": [1, 0]}, {"num_inference_steps": 1001}):  # fmt: skip
        with pytest.raises(ValueError, match=r"timesteps|steps"):
            scheduler.set_timesteps(**wrong)


def test_ancestral_steps_are_the_posterior() -> None:
    d, ours = Diffusion(schedules.cosine(60)), Scheduler(schedules.cosine(60), clip_sample=False, prediction_type="sample")
    x = SAMPLE.double()
    ours.set_timesteps(7)
    for t, s in zip(ours.plan, ours.plan[1:], strict=False):
        noise = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(t))
        expected = d.posterior(x, 0.3 * x, t, s).sample(noise) if s else 0.3 * x
        torch.testing.assert_close(ours.step(0.3 * x, t - 1, x, variance_noise=noise)[0], expected, rtol=1e-10, atol=1e-10)
