"""The network of a run: its levels where the settings leave them open."""

from __future__ import annotations

from typing import Any

from tinyddpm.nn import UNet
from tinyddpm.training.data.images import Images

__all__ = ["network"]


def network(settings: Any, images: Images) -> UNet:
    """A new network with the settings of a `TrainConfig` for such images."""
    if settings.classes and images.classes is None:
        raise ValueError(f"classes must be false, as {settings.data} has no labels")
    channels, height, width = images.shape
    mults = _mults(height, width) if settings.mults is None else settings.mults
    attention = settings.attention
    return UNet(
        height if height == width else (height, width),
        in_channels=channels,
        out_channels=2 * channels if settings.learned else None,
        channels=settings.channels,
        mults=mults,
        res_blocks=settings.res_blocks,
        attention=_attention(height, width, len(mults), settings.attention_side) if attention is None else attention,
        dropout=settings.dropout,
        classes=images.classes if settings.classes else None,
    )


def _mults(height: int, width: int) -> tuple[int, ...]:
    """The widths of the levels in units of channels, as many as the sides can be halved; a side of 1, a signal's, stays."""
    sides = [side for side in (height, width) if side > 1] or [1]
    halvings = min((side & -side).bit_length() - 1 for side in sides)
    if halvings < 2:
        remedy = "--image-size resizes, and --mults 1 (in Python mults=(1,)) trains without halving"
        raise ValueError(f"image_size must be divisible by 4 unless --mults is given, got {height}x{width}: {remedy}")
    return (1, 2, 2, 2) if halvings > 2 and min(sides) >= 32 else (1, 2, 2)


def _attention(height: int, width: int, levels: int, most: int) -> tuple[int, ...]:
    """The height of the first level below the top with sides of at most `most`."""
    return tuple([height >> i for i in range(1, levels) if height > 1 and max(height, width) >> i <= most][:1])
