"""A `UNet` as the config of a UNet2DModel, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tinyddpm.nn.interop._config import about, filled, naming
from tinyddpm.nn.unet import UNet

# What a config leaves out where an older version wrote it.
DEFAULTS: dict[str, Any] = {
    "sample_size": None, "in_channels": 3, "out_channels": 3, "center_input_sample": False,
    "time_embedding_type": "positional", "time_embedding_dim": None, "freq_shift": 0, "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896], "layers_per_block": 2, "mid_block_scale_factor": 1,
    "downsample_padding": 1, "downsample_type": "conv", "upsample_type": "conv", "dropout": 0.0, "act_fn": "silu",
    "attention_head_dim": 8, "norm_num_groups": 32, "attn_norm_num_groups": None, "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default", "add_attention": True, "class_embed_type": None, "num_class_embeds": None,
    "num_train_timesteps": None,
}  # fmt: skip
_ONLY: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,), "time_embedding_type": ("positional",), "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,), "downsample_type": ("conv",), "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"), "resnet_time_scale_shift": ("default", "scale_shift"), "add_attention": (True,),
    "class_embed_type": (None,), "num_class_embeds": (None,),
}  # fmt: skip
_THEIRS = {
    "image_size": "sample_size", "channels": "block_out_channels", "mults": "block_out_channels",
    "res_blocks": "layers_per_block", "attention": "down_block_types", "head_dim": "attention_head_dim",
    "norm_groups": "norm_num_groups", "cos_first": "flip_sin_to_cos",
}  # fmt: skip
_UP = {"DownBlock2D": "UpBlock2D", "AttnDownBlock2D": "AttnUpBlock2D"}


def network(file: Path) -> UNet:
    """The `UNet` that equals the UNet2DModel of a config, on the meta device."""
    config = filled(file, "UNet2DModel", DEFAULTS, _ONLY)
    with naming(file, config, _THEIRS), torch.device("meta"):
        return UNet(**_options(config))


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    widths, down, scale_shift = (config[k] for k in ("block_out_channels", "down_block_types", "resnet_time_scale_shift"))
    if not isinstance(widths, list) or not widths or not all(type(w) is int and w > 0 for w in widths):
        raise ValueError("block_out_channels: a list of positive ints is needed")
    if any(w % widths[0] for w in widths):
        raise ValueError(f"block_out_channels: not all are multiples of the first, {widths[0]}")
    if not isinstance(down, list) or len(down) != len(widths) or not all(kind in [*_UP] for kind in down):
        raise ValueError(f"down_block_types: one of {', '.join(_UP)} is needed for each of {len(widths)} levels")
    if config["up_block_types"] != [_UP[kind] for kind in reversed(down)]:
        raise ValueError("up_block_types: does not mirror down_block_types")
    if config["time_embedding_dim"] not in (None, 4 * widths[0]):
        raise ValueError(f"time_embedding_dim: only 4 * {widths[0]} has an equal here")
    if config["norm_num_groups"] is None:
        raise ValueError("norm_num_groups: a number is needed")
    groups = config["attn_norm_num_groups"]
    if groups != config["norm_num_groups"] and (groups is not None or scale_shift != "default"):
        raise ValueError("attn_norm_num_groups: differs from norm_num_groups")  # None is no norm at all with scale_shift
    # Without a size, the smallest that has all levels: it only says at which of them attention is.
    size = config["sample_size"] if config["sample_size"] is not None else 2 ** (len(widths) - 1)
    height = size[0] if isinstance(size, list) and size else size
    if type(height) is not int:
        raise ValueError("sample_size: an int or [height, width] is needed")
    return {
        "image_size": size,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "channels": widths[0],
        "mults": [w // widths[0] for w in widths],
        "res_blocks": config["layers_per_block"],
        "attention": [height >> i for i, kind in enumerate(down) if kind == "AttnDownBlock2D"],
        "dropout": config["dropout"],
        "head_dim": config["attention_head_dim"],
        "norm_groups": config["norm_num_groups"],
        "norm_eps": config["norm_eps"],
        "cos_first": config["flip_sin_to_cos"],
        "freq_shift": config["freq_shift"],
        "downsample_padding": config["downsample_padding"],
        "scale_shift": scale_shift == "scale_shift",
    }


def config_of(net: UNet) -> dict[str, Any]:
    """The config of the UNet2DModel that equals `net`."""
    own, size = net.config, net.config["image_size"]
    if own["classes"] is not None:
        raise ValueError("net: a class-conditional network has no equal in a DDPM pipeline")
    if own["heads"] not in (None, 1):
        raise ValueError(f"net: heads={own['heads']} has no equal in diffusers, which fixes head_dim")
    height = size if isinstance(size, int) else size[0]
    attends = [height >> i in own["attention"] for i in range(len(own["mults"]))]
    groups = net.norm_out.num_groups
    return {
        **about("UNet2DModel"),
        **DEFAULTS,
        "sample_size": size,
        "in_channels": net.conv_in.in_channels,
        "out_channels": net.conv_out.out_channels,
        "freq_shift": own["freq_shift"],
        "flip_sin_to_cos": own["cos_first"],
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "block_out_channels": [own["channels"] * m for m in own["mults"]],
        "layers_per_block": own["res_blocks"],
        "downsample_padding": own["downsample_padding"],
        "dropout": own["dropout"],
        "attention_head_dim": own["head_dim"],
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups if own["scale_shift"] else None,
        "norm_eps": own["norm_eps"],
        "resnet_time_scale_shift": "scale_shift" if own["scale_shift"] else "default",
    }
