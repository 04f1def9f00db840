"""Small U-Nets with weights that leave nothing at zero."""

from __future__ import annotations

from typing import Any

import torch

from tinyddpm.nn import UNet

SMALL: dict[str, Any] = {"image_size": 8, "in_channels": 1, "channels": 8, "mults": (1, 2), "attention": (4,)}


def small(std: float = 0.1, **options: Any) -> UNet:
    """Return a network of a few thousand parameters in eval mode, the same for the same arguments."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = UNet(**SMALL | options)
        for p in net.parameters():
            torch.nn.init.normal_(p, std=std)
    return net.eval()
