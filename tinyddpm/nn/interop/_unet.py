"""A `UNet` as the config of a UNet2DModel, and back."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tinyddpm._arrays.check import as_positive_int
from tinyddpm.nn._arguments import sides_of, widths_of
from tinyddpm.nn.interop._config import filled, header, naming
from tinyddpm.nn.layers import Attention
from tinyddpm.nn.unet import UNet

# Older versions wrote fewer keys; these are diffusers' values for missing ones.
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
    "class_embed_type": (None,), "_null_class": (True, False),  # ours: the last class is no class
}  # fmt: skip
_EMA = ("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power")  # of `EMAModel`
_THEIRS = {
    "image_size": "sample_size", "channels": "block_out_channels", "mults": "block_out_channels",
    "res_blocks": "layers_per_block", "attention": "down_block_types", "head_dim": "attention_head_dim",
    "norm_groups": "norm_num_groups", "cos_first": "flip_sin_to_cos", "mid_norm_groups": "attn_norm_num_groups",
    "classes": "num_class_embeds",
}  # fmt: skip
_UP = {"DownBlock2D": "UpBlock2D", "AttnDownBlock2D": "AttnUpBlock2D"}


def network(file: Path) -> UNet:
    """Return the `UNet` that equals the UNet2DModel of a config, on the meta device."""
    config = filled(file, "UNet2DModel", DEFAULTS, _ONLY, ignored=_EMA)
    with naming(file, config, _THEIRS), torch.device("meta"):
        return UNet(**_options(config))


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `UNet` for a config."""
    widths, attends, size = _widths(config), _attention_levels(config), _sample_size(config)
    height, null_class = size[0] if isinstance(size, list) else size, config.get("_null_class", False)
    classes, groups = config["num_class_embeds"], _mid_norm_groups(config)
    return {
        "image_size": size,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "channels": widths[0],
        "mults": [w / widths[0] if w % widths[0] else w // widths[0] for w in widths],
        "res_blocks": config["layers_per_block"],
        "attention": [height >> i for i, attend in enumerate(attends) if attend],
        "dropout": config["dropout"],
        "head_dim": config["attention_head_dim"],
        "norm_groups": config["norm_num_groups"],
        "norm_eps": config["norm_eps"],
        "cos_first": config["flip_sin_to_cos"],
        "freq_shift": config["freq_shift"],
        "downsample_padding": config["downsample_padding"],
        "scale_shift": config["resnet_time_scale_shift"] == "scale_shift",
        "mid_norm_groups": groups,
        "classes": classes - 1 if null_class and type(classes) is int else classes,
        "null_class": null_class or classes is None,
    }


def _widths(config: Mapping[str, Any]) -> list[int]:
    """The channels of each level."""
    widths = config["block_out_channels"]
    if not isinstance(widths, list) or not widths or not all(type(w) is int and w > 0 for w in widths):
        raise ValueError(f"block_out_channels must be a list of positive ints, got {reprlib.repr(widths)}")
    return widths


def _attention_levels(config: Mapping[str, Any]) -> list[bool]:
    """Whether each level has attention."""
    down, count = config["down_block_types"], len(config["block_out_channels"])
    if not isinstance(down, list) or len(down) != count or not all(kind in [*_UP] for kind in down):
        raise ValueError(f"down_block_types must be a list of {count} of {', '.join(_UP)}, got {reprlib.repr(down)}")
    if config["up_block_types"] != [_UP[kind] for kind in reversed(down)]:
        raise ValueError(f"up_block_types must mirror down_block_types, got {reprlib.repr(config['up_block_types'])}")
    return [kind == "AttnDownBlock2D" for kind in down]


def _sample_size(config: Mapping[str, Any]) -> Any:
    """The size of the images; if none is given, the smallest that has all levels, since it only says which have attention."""
    size = config["sample_size"]
    if size is None:
        return 2 ** (len(config["block_out_channels"]) - 1)
    if type(size[0] if isinstance(size, list) and size else size) is not int:
        raise ValueError(f"sample_size must be an int or [height, width], got {reprlib.repr(size)}")
    return size


def _mid_norm_groups(config: Mapping[str, Any]) -> Any:
    """The groups of the norm before the middle's attention: None for those of all norms, 0 for no norm."""
    first, groups, given = (config[k] for k in ("block_out_channels", "norm_num_groups", "attn_norm_num_groups"))
    if config["time_embedding_dim"] not in (None, 4 * first[0]):
        got = reprlib.repr(config["time_embedding_dim"])
        raise ValueError(f"time_embedding_dim must be 4 times the first of block_out_channels, got {got}")
    if groups is None:
        raise ValueError("norm_num_groups must be an int, got None")
    if given is None:
        return 0 if config["resnet_time_scale_shift"] == "scale_shift" else None
    return None if given == groups else as_positive_int("attn_norm_num_groups", given)


def config_of(net: UNet) -> dict[str, Any]:
    """Return the config of the UNet2DModel that equals `net`."""
    ours, size = net.config, net.config["image_size"]
    height = size if isinstance(size, int) else size[0]
    attends = [height >> i in ours["attention"] for i in range(len(ours["mults"]))]
    groups, mid_groups, widths = net.norm_out.num_groups, ours["mid_norm_groups"], widths_of(ours)
    _refuse_others(net, widths)
    return {
        **header("UNet2DModel"),
        **DEFAULTS,
        "sample_size": size,
        "in_channels": net.conv_in.in_channels,
        "out_channels": net.conv_out.out_channels,
        "freq_shift": ours["freq_shift"],
        "flip_sin_to_cos": ours["cos_first"],
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "block_out_channels": widths,
        "layers_per_block": ours["res_blocks"],
        "downsample_padding": ours["downsample_padding"],
        "dropout": ours["dropout"],
        "attention_head_dim": _head_dim(net),
        "norm_num_groups": groups,
        "attn_norm_num_groups": mid_groups or (groups if ours["scale_shift"] and mid_groups is None else None),
        "norm_eps": ours["norm_eps"],
        "resnet_time_scale_shift": "scale_shift" if ours["scale_shift"] else "default",
        "num_class_embeds": None if net.label is None else net.label.num_embeddings,
        **({"_null_class": True} if net.label is not None and ours["null_class"] else {}),
    }


def _refuse_others(net: UNet, widths: list[int]) -> None:
    """Raise ValueError for an option that a UNet2DModel does not have."""
    ours = net.config
    for name, value in (("mults", ours["mults"]), ("first_channels", ours["first_channels"])):
        if (widths[0] if name == "mults" else value or ours["channels"]) != ours["channels"]:
            raise ValueError(
                f"net must have channels={ours['channels']} at the first level, as diffusers does, got {name}={value}"
            )
    if 1 in sides_of(ours) and len(widths) > 1:
        raise ValueError(f"net must have no side of 1, which diffusers would halve and double, got {ours['image_size']}")
    if ours["resblock_updown"]:
        raise ValueError("net must not have resblock_updown=True, which diffusers' UNet2DModel does not have")
    if ours["mid_norm_groups"] == 0 and not ours["scale_shift"]:
        raise ValueError("net must have a norm before the middle's attention, as diffusers does, got mid_norm_groups=0")


def _head_dim(net: UNet) -> int | None:
    """The channels of an attention head; None for one head, which is as wide as its level."""
    layers = [module for module in net.modules() if isinstance(module, Attention)]
    if all(layer.heads == 1 for layer in layers):
        return None
    found = {layer.out.in_features // layer.heads for layer in layers}
    if len(found) > 1:
        given = ", ".join(f"{name}={net.config[name]}" for name in ("heads", "heads_upsample") if net.config[name])
        raise ValueError(
            f"net must have attention heads of one width, as diffusers does, got {sorted(found)} channels from {given}"
        )
    return found.pop()
