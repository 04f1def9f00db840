"""The arguments of `UNet` and of its call, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tinyddpm._arrays.check import as_bool, as_int, as_real

_MOST_LEVELS, _MOST_BLOCKS, _LARGEST_SIZE = 12, 128, 2**16


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """Return the constructor's arguments as JSON holds them, or raise an error that names the wrong one."""
    config = {**config, **_scalars(config)}
    config["mults"] = mults = _multipliers(config["mults"])
    config["attention"] = _ints("attention", config["attention"], _LARGEST_SIZE)
    if not 1 <= len(mults) <= _MOST_LEVELS:
        raise ValueError(f"mults must have 1..{_MOST_LEVELS} levels, got {len(mults)}")
    if config["res_blocks"] * len(mults) > _MOST_BLOCKS:
        most = _MOST_BLOCKS // len(mults)
        raise ValueError(f"res_blocks must be at most {most} for {len(mults)} levels, got {config['res_blocks']}")
    config["image_size"] = _image_size(config["image_size"], len(mults) - 1)
    _check_divisors(config)
    return config


def _scalars(config: dict[str, Any]) -> dict[str, Any]:
    """The ints, floats and bools, each within its own bounds."""
    result: dict[str, Any] = {}
    for name, top in (("in_channels", 2**12), ("channels", 2**14), ("res_blocks", 64)):
        result[name] = as_int(name, config[name], 1, top)
    for name in ("out_channels", "classes", "head_dim", "heads", "norm_groups", "heads_upsample", "first_channels"):
        result[name] = None if config[name] is None else as_int(name, config[name], 1, 2**24)
    if (groups := config["mid_norm_groups"]) is not None:
        result["mid_norm_groups"] = as_int("mid_norm_groups", groups, 0, 2**24)
    for name, low, high in (("dropout", 0, 0.999), ("norm_eps", 0, 1), ("freq_shift", -1, 1)):
        result[name] = as_real(name, config[name], low, high)
    for name in ("cos_first", "scale_shift", "resblock_updown", "null_class"):
        result[name] = as_bool(name, config[name])
    result["downsample_padding"] = as_int("downsample_padding", config["downsample_padding"], 0, 1)
    return result


def _image_size(size: Any, halvings: int) -> int | list[int]:
    """The size as an int or as [height, width], each side 1 or divisible by 2**halvings."""
    if hasattr(size, "__len__"):
        sides = _ints("image_size", size, _LARGEST_SIZE)
        if len(sides) != 2:
            raise ValueError(f"image_size must be an int or (height, width), got {sides}")
        checked: int | list[int] = sides
    else:
        checked = as_int("image_size", size, 1, _LARGEST_SIZE)
        sides = [checked]
    if any(side % 2**halvings and side > 1 for side in sides) or (halvings and max(sides) == 1):
        raise ValueError(f"image_size must be divisible by {2**halvings} for {halvings + 1} levels, got {checked}")
    return checked


def _check_divisors(config: dict[str, Any]) -> None:
    """Check the numbers of channels, groups and heads against each other."""
    channels, heads, head_dim = (config[name] for name in ("channels", "heads", "head_dim"))
    if channels % 2 or channels < 4:
        raise ValueError(f"channels must be an even number of at least 4, got {channels}")
    widths, groups = widths_of(config), norm_groups_of(config)
    for name, width in (("channels", config["first_channels"] or channels), *(("a level's channels", w) for w in widths)):
        if width % groups:
            raise ValueError(f"norm_groups must divide {name}={width}, got {groups}")
    if config["mid_norm_groups"] and widths[-1] % config["mid_norm_groups"]:
        raise ValueError(f"mid_norm_groups must divide the {widths[-1]} channels there, got {config['mid_norm_groups']}")
    for name in ("heads", "heads_upsample"):
        if config[name] is not None and head_dim is not None:
            raise ValueError(f"{name} must be None if head_dim is given, got {name}={config[name]} and head_dim={head_dim}")
    size = config["image_size"]
    height = size if isinstance(size, int) else size[0]
    attends = {width for i, width in enumerate(widths) if height >> i in config["attention"]}
    for name, value in (("head_dim", head_dim), ("heads", heads), ("heads_upsample", config["heads_upsample"])):
        for width in sorted(attends | {widths[-1]} if name != "heads_upsample" else attends):
            if value is not None and width % value:
                raise ValueError(f"{name} must divide the {width} channels of a level with attention, got {value}")


def _multipliers(values: Any) -> list[float]:
    """The multipliers as positive numbers, ints where they are whole."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise TypeError(f"mults must be a sequence of numbers, got {type(values).__name__}")
    whole = [as_int("mults", v, 1, 64) if not isinstance(v, float) else as_real("mults", v, 2**-14, 64.0) for v in values]
    return [int(v) if v == int(v) else v for v in whole]


def widths_of(config: dict[str, Any]) -> list[int]:
    """Return the channels of each level."""
    exact = [config["channels"] * m for m in config["mults"]]
    for m, width in zip(config["mults"], exact, strict=True):
        if (
            round(width) < 1 or abs(width - round(width)) > 1e-9 * width
        ):  # a quotient of widths times the first is whole but for rounding
            raise ValueError(f"mults must give whole numbers of channels, got {m} of channels={config['channels']}")
    return [round(width) for width in exact]


def sides_of(config: dict[str, Any]) -> tuple[int, int]:
    """Return the height and the width."""
    size = config["image_size"]
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _ints(name: str, values: Any, top: int) -> list[int]:
    """The values as a list of ints in 1..top."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a sequence of ints, got {type(values).__name__}")
    return [as_int(name, v, 1, top) for v in values]


def norm_groups_of(config: dict[str, Any]) -> int:
    """Return the number of groups of every group norm, by the rule in `UNet` if none is given."""
    given: int | None = config["norm_groups"]
    if given is not None:
        return given
    channels = math.gcd(*widths_of(config), config["first_channels"] or config["channels"])
    return max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels // g >= 4))


def check_inputs(config: dict[str, Any], x: Tensor, t: Tensor, y: Tensor | None) -> None:
    """Check the types, dtypes and shapes of a call's arguments, and the range of y if it is on the CPU."""
    for name, value in (("x", x), ("t", t), ("y", y)):
        if not isinstance(value, Tensor) and not (name == "y" and value is None):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"x must be a floating-point tensor, got {x.dtype}")
    channels, scale, classes = config["in_channels"], 2 ** (len(config["mults"]) - 1), config["classes"]
    sides = sides_of(config) if scale > 1 else (0, 0)  # a side of 1 is not halved
    if (
        x.ndim != 4
        or x.shape[1] != channels
        or any(n != 1 if one == 1 else n % scale for n, one in zip(x.shape[2:], sides, strict=True))
    ):
        height, width = ("1" if side == 1 else name for side, name in zip(sides, ("height", "width"), strict=True))
        what = " and ".join(name for name in (height, width) if name != "1")
        shape = f"(B, {channels}, {height}, {width}) with {what} divisible by {scale}"
        raise ValueError(f"x must have shape {shape}, got {tuple(x.shape)}")
    if t.shape != x.shape[:1]:
        raise ValueError(f"t must have shape ({x.shape[0]},), got {tuple(t.shape)}")
    if y is None:
        if classes is not None and not config["null_class"]:
            raise ValueError(f"y must be given, classes in 0..{classes - 1}, as the network has none for no class")
        return
    if classes is None:
        raise ValueError("y must be None for a network without classes, got a tensor")
    if y.shape != x.shape[:1] or y.is_floating_point() or y.dtype == torch.bool:
        raise ValueError(f"y must be integers of shape ({x.shape[0]},), got {y.dtype} of shape {tuple(y.shape)}")
    most, none = (classes, f", or {classes} for no class,") if config["null_class"] else (classes - 1, ",")
    if y.device.type == "cpu" and y.numel() and not 0 <= int(y.min()) <= int(y.max()) <= most:
        raise ValueError(f"y must hold classes in 0..{classes - 1}{none} got {y.tolist()}")
