"""The library's mathematics in a training loop of your own: any Torch module, optimizer and data.

The loop is plain Torch. tinyddpm computes the loss, draws t so that the loss varies least, draws samples, and evaluates the
bound in bits.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from tinyddpm import Denoiser, Diffusion, schedules
from tinyddpm.likelihood import vlb
from tinyddpm.losses import LossAwareT, simple


class Mlp(nn.Module):
    """A network that predicts v from (x_t, t) for points in the plane."""

    def __init__(self, T: int, width: int = 128) -> None:
        super().__init__()
        self.T = T
        self.frequency = nn.Buffer(torch.pi * 2.0 ** torch.arange(-1, 3))
        self.layers = nn.Sequential(
            nn.Linear(3 * 2 * 4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        phase = torch.cat((x, t[:, None] / self.T), dim=1)[:, :, None] * self.frequency
        result: Tensor = self.layers(torch.cat((phase.sin(), phase.cos()), dim=1).flatten(1))
        return result


def ring(n: int, seed: int) -> Tensor:
    """Return n points near a circle, rounded to the 256 levels in [-1, 1] for which the bound is defined."""
    rng = np.random.default_rng(seed)
    angle, radius = rng.uniform(0, 2 * np.pi, n), rng.normal(0.7, 0.03, n)
    x = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1)
    return torch.from_numpy((x.clip(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1).float()


def train(steps: int, T: int = 200, batch: int = 256, seed: int = 0) -> tuple[Diffusion, Denoiser]:
    """Return the process and the trained denoiser."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    d, net, times, data = Diffusion(schedules.sigmoid_alpha_bar(T)), Mlp(T), LossAwareT(T), ring(4096, seed)
    denoiser = Denoiser(net, predicts="v")
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(steps):
        x0 = data[torch.from_numpy(rng.integers(len(data), size=batch))]
        t, weight = times.sample(batch, rng)
        loss = simple(d, denoiser, x0, t, torch.randn_like(x0))
        times.update(t, loss.detach().numpy())
        optimizer.zero_grad()
        (torch.from_numpy(weight).float() * loss).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return d, denoiser


def main(steps: int = 2000) -> None:
    """Train the network, then print the radius of its samples and the bound on held-out data."""
    d, denoiser = train(steps)
    x = d.sample(denoiser, (1000, 2), sampler="dpm++2m", steps=20, backend="torch")
    mean, error = vlb(d, denoiser, ring(500, seed=1)).summary()["bits_per_dim"]
    print(f"radius of samples: {x.norm(dim=1).mean():.2f} +- {x.norm(dim=1).std():.2f}; data: 0.70 +- 0.03")
    print(f"{mean:.2f} +- {error:.2f} bits/dim; 256 equally likely levels would have 8")


if __name__ == "__main__":
    main()
