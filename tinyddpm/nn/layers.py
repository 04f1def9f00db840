"""What a U-Net is made of: the time embedding, residual blocks, attention, and dropout that a seed decides."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Attention", "Block", "Downsample", "DropoutKey", "Upsample", "time_embedding", "variance_scaling"]


class DropoutKey:
    """Where a network's dropout masks come from: Torch's global state, or, once set, a batch's seed.

    With a seed, the masks of a global batch of `total` rows are drawn and the rows from `first` on are used: a row's
    mask then depends on the seed, the row and the layer, not on how the batch is split over processes or passes.
    """

    def __init__(self) -> None:
        self._generator: torch.Generator | None = None
        self._first = self._total = 0

    def set(self, seed: int, first: int, total: int, device: torch.device) -> None:
        """Before each forward pass in training."""
        generator = self._generator
        if generator is None or generator.device != device:
            self._generator = generator = torch.Generator(device)
        generator.manual_seed(seed)
        self._first, self._total = first, total

    def clear(self) -> None:
        """Back to Torch's global state."""
        self._generator = None

    def __call__(self, x: Tensor, p: float) -> Tensor:
        if self._generator is None:
            return F.dropout(x, p)
        rows, channels, *size = x.shape
        keep = torch.empty((self._total, *size, channels), dtype=x.dtype, device=x.device)
        keep = keep.bernoulli_(1 - p, generator=self._generator)[self._first : self._first + rows]
        return x * keep.movedim(-1, 1) * (1 / (1 - p))

    def __deepcopy__(self, memo: dict[int, Any]) -> DropoutKey:
        return DropoutKey()

    def __reduce__(self) -> tuple[type[DropoutKey], tuple[()]]:
        return DropoutKey, ()


def time_embedding(t: Tensor, channels: int, cos_first: bool = False, freq_shift: float = 1.0) -> Tensor:
    """Sines and cosines of t at `channels` / 2 frequencies, 1 down to 1e-4: float32, of shape (B, channels).

    The i-th frequency is ``1e-4 ** (i / (channels / 2 - freq_shift))``. In float32 whatever the network's dtype, as
    published networks were trained.
    """
    half = channels // 2
    i = torch.arange(half, dtype=torch.float32, device=t.device)
    angle = t[:, None].float() * torch.exp(-math.log(1e4) * i / (half - freq_shift))
    pair = (angle.cos(), angle.sin()) if cos_first else (angle.sin(), angle.cos())
    return torch.cat(pair, dim=-1)


class Block(nn.Module):
    """norm, swish, conv, + time, norm, swish, dropout, conv, + input; then attention, where it has a head dimension.

    With `scale_shift` the time scales and shifts what the second norm returns, instead of being added before it.
    """

    def __init__(
        self, width_in: int, width: int, embedded: int, groups: int, eps: float, p: float, head: int | None,
        drop: DropoutKey, scale_shift: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width_in, eps)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.time = nn.Linear(embedded, 2 * width if scale_shift else width)
        self.norm2 = nn.GroupNorm(groups, width, eps)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()
        self.attention = Attention(width, groups, eps, head) if head else nn.Identity()
        self.p, self.drop, self.scale_shift = p, drop, scale_shift

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        h, time = self.conv1(F.silu(self.norm1(x))), self.time(embedded)[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = F.silu(self.norm2(h) * (1 + scale) + shift)
        else:
            h = F.silu(self.norm2(h + time))
        if self.training and self.p:
            h = self.drop(h, self.p)
        out: Tensor = self.attention(self.skip(x) + self.conv2(h))
        return out


class Attention(nn.Module):
    """Self-attention over the pixels, added to its input."""

    def __init__(self, width: int, groups: int, eps: float, head: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.heads = width // head

    def forward(self, x: Tensor) -> Tensor:
        h = self.qkv(self.norm(x).flatten(2).mT)  # (B, pixels, 3 * width)
        q, k, v = h.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, pixels, head_dim)
        h = _attended(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = x + self.out(h).mT.unflatten(2, x.shape[2:])
        return out


def _attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v over the last two dimensions."""
    pixels, width = q.shape[-2:]
    # Torch's own takes 2 to 3 times as long here; of many pixels the weights would take too much memory.
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and pixels <= 1024:
        weights: Tensor = torch.softmax(q * width**-0.5 @ k.mT, -1)
        return weights @ v
    return F.scaled_dot_product_attention(q, k, v)


class Downsample(nn.Module):
    def __init__(self, width: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=padding)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        out: Tensor = self.conv(x if self.conv.padding[0] else F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return out


def variance_scaling(module: nn.Conv2d | nn.Linear, scale: float = 1.0, fan: int | None = None) -> None:
    """Uniform weights of variance scale / mean(fan in, fan out), zero bias."""
    weight = module.weight
    taps = weight[0, 0].numel()
    total = (weight.shape[0] + weight.shape[1]) * taps if fan is None else fan
    bound = math.sqrt(3 * scale / (total / 2))
    nn.init.uniform_(weight, -bound, bound)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
