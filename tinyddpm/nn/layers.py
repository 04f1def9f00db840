"""The parts of a U-Net: the time embedding, residual blocks, attention, and dropout whose masks follow from a seed."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Attention", "Block", "Downsample", "DropoutKey", "GroupNorm", "Upsample", "cast_weights", "time_embedding",
    "variance_scaling",
]  # fmt: skip


class DropoutKey:
    """The source of a network's dropout masks: Torch's global state or, after `set`, a seed.

    With a seed, the masks of a whole batch of `total` rows are drawn and those of the rows from `first` on are used. The mask of
    a row then depends on the seed, the row and the layer, but not on how the batch is split over processes or passes.
    """

    def __init__(self) -> None:
        self._generator: torch.Generator | None = None
        self._first = self._total = 0

    def set(self, seed: int, first: int, total: int, device: torch.device) -> None:
        """Draw the masks of the next forward pass from a seed; call it before each pass in training.

        Parameters
        ----------
        seed : int
            The seed of the batch.
        first, total : int
            The index of the pass's first row in the batch, and the number of rows in the batch.
        device : torch.device
            The device of the network.
        """
        generator = self._generator
        if generator is None or generator.device != device:
            self._generator = generator = torch.Generator(device)
        generator.manual_seed(seed)
        self._first, self._total = first, total

    def clear(self) -> None:
        """Draw the masks from Torch's global state again."""
        self._generator = None

    def __call__(self, x: Tensor, p: float) -> Tensor:
        if self._generator is None:
            return F.dropout(x, p)
        rows, channels, *size = x.shape
        shape = (self._total, *size, channels)
        # Four masks from each 64-bit number take a fifth of bernoulli_'s time on a CPU. p is rounded to a multiple of 2^-16.
        count = min(round(p * 2**16), 2**16 - 1)
        bits = torch.empty(-(-math.prod(shape) // 4), dtype=torch.int64, device=x.device)
        bits.random_(-(2**63), None, generator=self._generator)
        keep = bits.view(torch.int16)[: math.prod(shape)].view(shape)[self._first : self._first + rows] >= count - 2**15
        return x * keep.movedim(-1, 1) * (2**16 / (2**16 - count))

    def __deepcopy__(self, memo: dict[int, Any]) -> DropoutKey:
        return DropoutKey()

    def __reduce__(self) -> tuple[type[DropoutKey], tuple[()]]:
        return DropoutKey, ()


def time_embedding(t: Tensor, channels: int, cos_first: bool = False, freq_shift: float = 1.0) -> Tensor:
    """Return sines and cosines of t at `channels` / 2 frequencies from 1 down to 1e-4.

    The i-th frequency is ``1e-4 ** (i / (channels / 2 - freq_shift))``. The result is float32 for every dtype of the network,
    because published networks were trained in this way.

    Parameters
    ----------
    t : torch.Tensor
        The steps, of shape (B,).
    channels : int
        The number of sines and cosines, an even number.
    cos_first : bool, default False
        Whether the cosines come before the sines.
    freq_shift : float, default 1.0
        The shift in the formula of the frequencies.

    Returns
    -------
    torch.Tensor
        The embedding, float32 of shape (B, channels).
    """
    half = channels // 2
    i = torch.arange(half, dtype=torch.float32, device=t.device)
    angle = t[:, None].float() * torch.exp(-math.log(1e4) * i / (half - freq_shift))
    pair = (angle.cos(), angle.sin()) if cos_first else (angle.sin(), angle.cos())
    return torch.cat(pair, dim=-1)


class GroupNorm(nn.GroupNorm):
    """Group norm in the precision of its weights.

    Autocast runs it in float32 on a GPU, but in bfloat16 on a CPU, where Torch's kernel for channels-last arrays then takes up
    to seven times as long as the float32 one.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.group_norm(input.to(self.weight.dtype), self.num_groups, self.weight, self.bias, self.eps)


class Block(nn.Module):
    """A residual block: norm, swish, conv, + time, norm, swish, dropout, conv, + input; then attention if `head` is given.

    With `scale_shift` the embedded time scales and shifts the output of the second norm, instead of being added before it. With
    `resample`, "down" or "up", the block halves or doubles the resolution, before its first convolution and beside it.
    """

    def __init__(
        self, width_in: int, width: int, embedded: int, groups: int, eps: float, p: float, head: int | None,
        drop: DropoutKey, scale_shift: bool, resample: str | None = None, factor: tuple[int, int] = (2, 2),
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm1 = GroupNorm(groups, width_in, eps)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.time = nn.Linear(embedded, 2 * width if scale_shift else width)
        self.norm2 = GroupNorm(groups, width, eps)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()
        self.attention = Attention(width, groups, eps, head) if head else nn.Identity()
        self.p, self.drop, self.scale_shift, self.resample, self.factor = p, drop, scale_shift, resample, factor

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            h, x = (_resampled(a, self.resample, self.factor) for a in (h, x))
        h, time = self.conv1(h), self.time(embedded)[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = F.silu(self.norm2(h) * (1 + scale) + shift)
        else:
            h = F.silu(self.norm2(h + time))
        if self.training and self.p:
            h = self.drop(h, self.p)
        out: Tensor = self.attention(self.skip(x) + self.conv2(h))
        return out


def _resampled(x: Tensor, way: str, factor: tuple[int, int]) -> Tensor:
    """x at half the resolution, by means of 2x2 pixels, or at twice."""
    return F.avg_pool2d(x, factor) if way == "down" else F.interpolate(x, scale_factor=factor, mode="nearest")


class Attention(nn.Module):
    """Self-attention over the pixels, added to its input; without a norm if `groups` is 0."""

    def __init__(self, width: int, groups: int, eps: float, head: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, width, eps) if groups else nn.Identity()
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
    # Torch's function takes 2 to 3 times as long here. For many pixels the weights would need too much memory.
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and pixels <= 1024:
        weights: Tensor = torch.softmax(q * width**-0.5 @ k.mT, -1)
        return weights @ v
    return F.scaled_dot_product_attention(q, k, v)


class Downsample(nn.Module):
    """Half the resolution, by a convolution with stride 2; a side of 1 stays."""

    def __init__(self, width: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=padding)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        around = [pad for side in (x.shape[3], x.shape[2]) for pad in ((1, 1) if side == 1 else (0, 1))]
        out: Tensor = self.conv(x if self.conv.padding[0] else F.pad(x, around))
        return out


class Upsample(nn.Module):
    """Twice the resolution, in each direction by a factor of its own: each pixel four times, then a convolution."""

    def __init__(self, width: int, factor: tuple[int, int] = (2, 2)) -> None:
        super().__init__()
        self.conv, self.factor = nn.Conv2d(width, width, 3, padding=1), factor

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=self.factor, mode="nearest"))
        return out


def variance_scaling(module: nn.Conv2d | nn.Linear, scale: float = 1.0, fan: int | None = None) -> None:
    """Set uniform weights with variance scale / mean(fan_in, fan_out), and zero bias.

    Parameters
    ----------
    module : nn.Conv2d or nn.Linear
        The layer to initialize.
    scale : float, default 1.0
        The scale in the formula.
    fan : int, optional
        fan_in + fan_out, by default that of the layer.
    """
    weight = module.weight
    taps = weight[0, 0].numel()
    total = (weight.shape[0] + weight.shape[1]) * taps if fan is None else fan
    bound = math.sqrt(3 * scale / (total / 2))
    nn.init.uniform_(weight, -bound, bound)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def cast_weights(module: Any, dtype: torch.dtype) -> Any:
    """Return a module that shares everything with `module` except the weights of convolutions and linear layers, which are cast.

    Parameters
    ----------
    module : nn.Module
        A module, which is not changed.
    dtype : torch.dtype
        The dtype of the new weights.

    Returns
    -------
    nn.Module
        A module of the same type.
    """
    twin = copy.copy(module)
    twin._modules = {name: part if part is None else cast_weights(part, dtype) for name, part in module._modules.items()}
    if isinstance(module, nn.Conv2d | nn.Linear):
        twin._parameters = {
            name: p if p is None else nn.Parameter(p.detach().to(dtype), requires_grad=False)
            for name, p in module._parameters.items()
        }
    return twin
