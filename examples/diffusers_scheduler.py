"""A scheduler for diffusers' pipelines, made from a `Diffusion`: any betas, any plan, and the steps of this library.

diffusers counts steps from 0, so its ``timestep`` is the paper's t - 1. The scheduler keeps no state between steps
except the plan.
"""
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from tinyddpm import Diffusion, conversions, schedules

KINDS: dict[str, conversions.Kind] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


class ChainScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Ancestral sampling on an evenly spaced plan, with the posterior's variance."""

    order = 1
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, trained_betas: list[float], prediction_type: str = "epsilon", clip_sample: bool = True) -> None:
        self.d = Diffusion(trained_betas)
        self.kind: conversions.Kind = KINDS[prediction_type]
        self.clip = clip_sample
        self.num_train_timesteps = self.d.T
        self.set_timesteps(self.d.T)

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Choose a plan of `num_inference_steps` steps."""
        self.plan = self.d.timesteps(num_inference_steps)
        self.timesteps = torch.tensor([t - 1 for t in self.plan[:-1]], device=device)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the network's input, which is x_t itself."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Return x_s, computed from x_t and the network's output."""
        t = int(timestep) + 1
        s = next(s for s in self.plan if s < t)
        x0 = self.d.convert(model_output, sample, t, self.kind, "x0")
        x0 = x0.clamp(-1, 1) if self.clip else x0
        q = self.d.posterior(sample, x0, t, s)
        eps = torch.randn(sample.shape, generator=generator, dtype=sample.dtype, device=sample.device)
        x_s = q.sample(eps) if s else q.mean
        return SimpleNamespace(prev_sample=x_s, pred_original_sample=x0) if return_dict else (x_s,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return x_t, for training with diffusers' own scripts."""
        x_t: Tensor = self.d.q_sample(original_samples, timesteps + 1, noise)
        return x_t


def main() -> None:
    """Draw two images with an untrained network in a `DDPMPipeline`."""
    from diffusers import DDPMPipeline, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(  # type: ignore[no-untyped-call]
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(32,), layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    scheduler = ChainScheduler(schedules.cosine(100).tolist())
    pipeline: Any = DDPMPipeline(unet, scheduler)  # type: ignore[no-untyped-call]
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=2, num_inference_steps=10, output_type="np").images
    print(f"{type(scheduler).__name__} in a DDPMPipeline: images of shape {images.shape}")


if __name__ == "__main__":
    main()
