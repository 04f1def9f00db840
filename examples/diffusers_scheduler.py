"""A scheduler for diffusers' pipelines, made from a `Diffusion`: any betas, any plan, and the steps of this library.

diffusers counts steps from 0, so its ``timestep`` is the paper's t - 1. The scheduler keeps no state between steps
except the plan.
"""
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from torch import Tensor

from tinyddpm import Diffusion, conversions, schedules

KINDS: dict[str, conversions.Kind] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
SCHEDULES = {"linear": schedules.linear, "scaled_linear": schedules.quadratic, "sigmoid": schedules.sigmoid}


class ChainScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """DDIM's steps on an evenly spaced plan, or on one of the caller's; ancestral sampling, which is eta = 1, by default.

    Parameters
    ----------
    trained_betas : sequence of float, optional
        beta_1..beta_T. By default those of `beta_schedule`, as other schedulers' configs name them.
    prediction_type, clip_sample, num_train_timesteps, beta_start, beta_end, beta_schedule
        As in diffusers' own schedulers.
    """

    _compatibles = [kind.name for kind in KarrasDiffusionSchedulers]  # noqa: RUF012  # the schedulers that take our config
    order = 1
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, trained_betas: Sequence[float] | NDArray[np.float64] | None = None, prediction_type: str = "epsilon",
        clip_sample: bool = True, num_train_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02,
        beta_schedule: str = "linear",
    ) -> None:  # fmt: skip
        given: dict[str, Any] = {}
        if trained_betas is not None:
            self.d = Diffusion(trained_betas)
            given = {"trained_betas": self.d.beta[1:].tolist(), "num_train_timesteps": self.d.T}
        elif beta_schedule == "squaredcos_cap_v2":
            self.d = Diffusion(schedules.cosine(num_train_timesteps))
        else:
            self.d = Diffusion(SCHEDULES[beta_schedule](num_train_timesteps, beta_start, beta_end))
        # diffusers takes arguments without a name for defaults, which a pipeline that makes its own scheduler drops.
        if "_use_default_values" in self.config:
            given["_use_default_values"] = sorted({*self.config["_use_default_values"]} - {*given})
        self.register_to_config(**given)  # type: ignore[no-untyped-call]
        self.clip = clip_sample
        self.kind: conversions.Kind = KINDS[prediction_type]
        self.betas, self.alphas_cumprod = (torch.tensor(x[1:], dtype=torch.float32) for x in (self.d.beta, self.d.alpha_bar))
        self.set_timesteps(self.d.T)

    def __len__(self) -> int:
        return self.d.T

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, timesteps: Sequence[int] | None = None
    ) -> None:
        """Choose a plan of `num_inference_steps` steps, or the plan `timesteps`, which count from 0 and decrease."""
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("set_timesteps needs one of num_inference_steps and timesteps")
        if num_inference_steps is not None:
            self.plan = self.d.timesteps(num_inference_steps)
        elif timesteps is not None:
            plan = (*(int(t) + 1 for t in timesteps), 0)
            if plan[0] > self.d.T or any(t <= s for t, s in zip(plan, plan[1:], strict=False)):
                raise ValueError(f"timesteps must decrease from at most {self.d.T - 1} to at least 0, got {list(timesteps)}")
            self.plan = plan
        self.num_inference_steps = len(self.plan) - 1
        self.timesteps = torch.tensor([t - 1 for t in self.plan[:-1]], device=device)

    def previous_timestep(self, timestep: Any) -> Tensor:
        """Return the plan's timestep after `timestep`, which is -1 at the end."""
        return torch.tensor(next(s for s in self.plan if s <= int(timestep)) - 1)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the network's input, which is x_t itself."""
        return sample

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, generator: Any = None, return_dict: bool = True,
        *, eta: float = 1.0, variance_noise: Tensor | None = None,
    ) -> Any:  # fmt: skip
        """Return x_s, computed from x_t and the network's output; a list of generators has one for each sample."""
        t, s = int(timestep) + 1, int(self.previous_timestep(timestep)) + 1
        x0 = self.d.convert(model_output.to(sample.dtype), sample, t, self.kind, "x0")
        x0 = x0.clamp(-1, 1) if self.clip else x0
        # x_s = sqrt(ab_s) x_0 + sqrt(1 - ab_s - sigma^2) eps + sigma z [DDIM eq. 12], with sigma = eta sqrt(beta_tilde)
        eps, var = self.d.convert(x0, sample, t, "x0", "eps"), eta**2 * self.d.posterior_weights(t, s)[2]
        x_s = self.d.q(x0, s).mean + max(self.d.one_minus_alpha_bar[s] - var, 0.0) ** 0.5 * eps
        if var:
            if variance_noise is None:
                variance_noise = randn_tensor(sample.shape, generator, sample.device, sample.dtype)
            x_s = x_s + var**0.5 * variance_noise
        return DDPMSchedulerOutput(prev_sample=x_s, pred_original_sample=x0) if return_dict else (x_s, x0)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return x_t, for training with diffusers' own scripts; one timestep serves the whole batch."""
        t = timesteps.to(original_samples.device).long() + 1
        return self.d.q_sample(original_samples, t.reshape(()) if t.numel() == 1 else t, noise)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return v, the training target of ``prediction_type="v_prediction"``."""
        t = timesteps.to(sample.device).long() + 1
        t = t.reshape(()) if t.numel() == 1 else t
        return self.d.convert(noise, self.d.q_sample(sample, t, noise), t, "eps", "v")


def main() -> None:
    """Draw two images with an untrained network in a `DDPMPipeline`."""
    from diffusers import DDPMPipeline, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(  # type: ignore[no-untyped-call]
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(32,), layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    scheduler = ChainScheduler(schedules.cosine(100))
    pipeline: Any = DDPMPipeline(unet, scheduler)  # type: ignore[no-untyped-call]
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=2, num_inference_steps=10, output_type="np").images
    print(f"{type(scheduler).__name__} in a DDPMPipeline: images of shape {images.shape}")


if __name__ == "__main__":
    main()
