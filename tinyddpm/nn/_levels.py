"""The levels of a U-Net: the blocks of the way down, the middle and the way up."""

from __future__ import annotations

from typing import Any

from torch import nn

from tinyddpm.nn._arguments import sides_of, widths_of
from tinyddpm.nn.layers import Attention, Block, Downsample, DropoutKey, Upsample, variance_scaling


def build_levels(
    config: dict[str, Any], groups: int, drop: DropoutKey
) -> tuple[list[nn.Module], list[nn.Module], list[nn.Module]]:
    """Return the blocks of the way down, the middle and the way up for checked arguments of `UNet`."""
    count, eps = config["res_blocks"], config["norm_eps"]
    height, heads, by_blocks = sides_of(config)[0], config["heads"], config["resblock_updown"]
    factor = (1 if sides_of(config)[0] == 1 else 2, 1 if sides_of(config)[1] == 1 else 2)

    def block(width_in: int, width: int, attend: bool = False, resample: str | None = None, heads: int | None = heads) -> Block:
        head = (config["head_dim"] or width // (heads or 1)) if attend else None
        p, scale_shift = config["dropout"], config["scale_shift"]
        return Block(width_in, width, 4 * config["channels"], groups, eps, p, head, drop, scale_shift, resample, factor)

    levels = [(width, height >> i in config["attention"]) for i, width in enumerate(widths_of(config))]
    skips = [width := config["first_channels"] or config["channels"]]
    down, up = list[nn.Module](), list[nn.Module]()
    for level, (out, attend) in enumerate(levels, 1):
        for _ in range(count):
            down.append(block(width, width := out, attend))
            skips.append(width)
        if level < len(levels):
            narrow = block(width, width, resample="down") if by_blocks else Downsample(width, config["downsample_padding"])
            down.append(narrow)
            skips.append(width)
    mid = [block(width, width, True), block(width, width)]
    if config["mid_norm_groups"] is not None:
        attention: Any = mid[0].attention
        mid[0].attention = Attention(width, config["mid_norm_groups"], eps, width // attention.heads)
    for level, (out, attend) in reversed(list(enumerate(levels))):
        for _ in range(count + 1):
            up.append(block(width + skips.pop(), width := out, attend, heads=config["heads_upsample"] or heads))
        if level:
            up.append(block(width, width, resample="up") if by_blocks else Upsample(width, factor))
    return down, [*mid], up


def takes_skip(layer: nn.Module) -> bool:
    """Whether a layer of the way up takes an output of the way down beside its input; those that double the size do not."""
    return isinstance(layer, Block) and layer.resample is None


def initialize(net: Any) -> None:
    """Draw the initial weights of Ho et al. for a `UNet`."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            variance_scaling(module)
    for module in (net.conv_out, *(m.conv2 for m in net.modules() if isinstance(m, Block))):
        variance_scaling(module, 1e-10)
    for module in net.modules():
        if isinstance(module, Attention):
            variance_scaling(module.qkv, fan=2 * module.qkv.in_features)
            variance_scaling(module.out, 1e-10)
