"""Weights to and from diffusers: DDPM pipeline folders, read and written without diffusers and without pickle.

A folder holds ``unet/`` (UNet2DModel: ``config.json`` and safetensors) and ``scheduler/scheduler_config.json``. What this
library has no equal of is refused by name, never ignored.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyddpm import schedules
from tinyddpm.denoiser import Denoiser
from tinyddpm.diffusion import Diffusion
from tinyddpm.nn import weights
from tinyddpm.nn.unet import UNet

__all__ = ["load_diffusers", "save_diffusers"]

_VERSION = "0.30.0"  # of the format written
_INDEX = "model_index.json"
_CONFIG = "unet/config.json"
_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
_SCHEDULER = "scheduler/scheduler_config.json"

# diffusers' defaults, which a config leaves out where it was written by an older version
_UNET: dict[str, Any] = {
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
_ONLY_UNET: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,), "time_embedding_type": ("positional",), "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,), "downsample_type": ("conv",), "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"), "resnet_time_scale_shift": ("default",), "add_attention": (True,),
    "class_embed_type": (None,), "num_class_embeds": (None,),
}  # fmt: skip
_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "trained_betas": None,
    "variance_type": "fixed_small", "clip_sample": True, "prediction_type": "epsilon", "thresholding": False,
    "dynamic_thresholding_ratio": 0.995, "clip_sample_range": 1.0, "sample_max_value": 1.0,
    "timestep_spacing": "leading", "steps_offset": 0, "rescale_betas_zero_snr": False,
}  # fmt: skip
_ONLY_SCHEDULE: dict[str, tuple[Any, ...]] = {"thresholding": (False,), "clip_sample_range": (1,)}
_PREDICTS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_VARIANCE = {
    "fixed_small": "beta_tilde", "fixed_small_log": "beta_tilde", "fixed_large": "beta", "learned_range": "learned_range"
}  # fmt: skip
_BETA = {"linear": schedules.linear, "scaled_linear": schedules.quadratic, "squaredcos_cap_v2": schedules.cosine}
_OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def load_diffusers(dir: str | os.PathLike[str]) -> tuple[UNet, Diffusion, Denoiser]:
    """The network, process and denoiser (``first_t=0``) of a diffusers DDPM pipeline folder.

    Links, as the hub's cache has them, are followed; only JSON and safetensors are read. Raises `FileNotFoundError` for a
    missing file and `ValueError` naming the file and the key or tensor that is damaged or has no equal here.
    """
    folder = Path(dir)
    if os.path.lexists(folder / _INDEX):
        index = _read_json(folder / _INDEX)
        for part, kind in (("unet", "UNet2DModel"), ("scheduler", "DDPMScheduler")):
            if index.get(part) != ["diffusers", kind]:
                raise ValueError(f"{folder / _INDEX}: {part!r} is {index.get(part)!r}, only {kind} is known")
    config = _filled(folder / _CONFIG, _UNET, _ONLY_UNET)
    scheduler = _filled(folder / _SCHEDULER, _SCHEDULE, _ONLY_SCHEDULE)
    try:
        with torch.device("meta"):
            net = UNet(**_arguments(config))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / _CONFIG}: {error}") from None
    net.load_state_dict(_read_weights(folder, net), assign=True)
    try:
        diffusion, denoiser = _process(scheduler, net.eval())
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / _SCHEDULER}: {error}") from None
    return net, diffusion, denoiser


def save_diffusers(dir: str | os.PathLike[str], net: UNet, diffusion: Diffusion, denoiser: Denoiser) -> None:
    """Write a folder that ``diffusers.DDPMPipeline.from_pretrained`` reads. `ValueError` for what it can't express."""
    scheduler, config = _scheduler_config(diffusion, denoiser, net), _unet_config(net)
    names, tensors = _names(net), dict[str, Tensor]()
    for name, tensor in net.state_dict().items():
        theirs = names[name]
        tensors |= dict(zip(theirs, tensor.chunk(len(theirs)), strict=True))
    about = {
        "_class_name": "DDPMPipeline", "_diffusers_version": _VERSION,
        "scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"],
    }  # fmt: skip
    with weights.new_folder(Path(dir), replaces=frozenset({_INDEX, _CONFIG, _WEIGHTS, _SCHEDULER})) as folder:
        for part in ("unet", "scheduler"):
            (folder / part).mkdir()
        weights.write_json(folder / _CONFIG, config)
        weights.write_tensors(folder / _WEIGHTS, tensors, {"format": "pt"})
        weights.write_json(folder / _SCHEDULER, scheduler)
        weights.write_json(folder / _INDEX, about)


def _read_json(file: Path) -> dict[str, Any]:
    return weights.read_json(file.resolve())


def _filled(file: Path, defaults: Mapping[str, Any], only: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """A config with its defaults; refuses keys that are unknown and values that have no equal here."""
    stored = {key: value for key, value in _read_json(file).items() if not key.startswith("_")}
    for key, value in stored.items():
        if key not in defaults:
            raise ValueError(f"{file}: the key {key!r} is unknown")
        if value not in only.get(key, (value,)):
            raise ValueError(f"{file}: {key}={value!r} has no equal here")
    return {**defaults, **stored}


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the `UNet` that equals a UNet2DModel."""
    widths, size, down = config["block_out_channels"], config["sample_size"], config["down_block_types"]
    if not isinstance(widths, list) or not widths or not all(type(w) is int and w > 0 for w in widths):
        raise ValueError(f"block_out_channels: ints are needed, not {widths!r}")
    if any(w % widths[0] for w in widths):
        raise ValueError(f"block_out_channels: {widths} are not multiples of the first")
    if not isinstance(size, int | list) or not size:
        raise ValueError(f"sample_size: a size is needed, not {size!r}")
    kinds = {"DownBlock2D": "UpBlock2D", "AttnDownBlock2D": "AttnUpBlock2D"}
    if not isinstance(down, list) or len(down) != len(widths) or any(kind not in kinds for kind in down):
        raise ValueError(f"down_block_types: {down!r} has no equal here")
    if config["up_block_types"] != [kinds[kind] for kind in reversed(down)]:
        raise ValueError(f"up_block_types: {config['up_block_types']!r} does not mirror the way down")
    if config["time_embedding_dim"] not in (None, 4 * widths[0]):
        raise ValueError(f"time_embedding_dim: {config['time_embedding_dim']!r} is not 4 * {widths[0]}")
    if config["attn_norm_num_groups"] not in (None, config["norm_num_groups"]):
        raise ValueError("attn_norm_num_groups: differs from norm_num_groups")
    height = size if isinstance(size, int) else size[0]
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
    }


def _unet_config(net: UNet) -> dict[str, Any]:
    """The config of the UNet2DModel that equals a `UNet`."""
    own, size = net.config, net.config["image_size"]
    if own["classes"] is not None:
        raise ValueError("net: a class-conditional network has no equal in a DDPM pipeline")
    height = size if isinstance(size, int) else size[0]
    attends = [height >> i in own["attention"] for i in range(len(own["mults"]))]
    return {
        "_class_name": "UNet2DModel", "_diffusers_version": _VERSION,
        **_UNET,
        "sample_size": size,
        "in_channels": own["in_channels"],
        "out_channels": own["out_channels"] or own["in_channels"],
        "freq_shift": own["freq_shift"],
        "flip_sin_to_cos": own["cos_first"],
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "block_out_channels": [own["channels"] * m for m in own["mults"]],
        "layers_per_block": own["res_blocks"],
        "downsample_padding": own["downsample_padding"],
        "dropout": own["dropout"],
        "attention_head_dim": own["head_dim"],
        "norm_num_groups": net.norm_out.num_groups,
        "norm_eps": own["norm_eps"],
    }  # fmt: skip


def _process(config: Mapping[str, Any], net: UNet) -> tuple[Diffusion, Denoiser]:
    """The process and the denoiser of a DDPMScheduler."""
    for key, known in (("beta_schedule", _BETA), ("variance_type", _VARIANCE), ("prediction_type", _PREDICTS)):
        if not (key == "beta_schedule" and config["trained_betas"]) and config[key] not in known:
            raise ValueError(f"{key}: {config[key]!r} has no equal here; known are {', '.join(known)}")
    T = config["num_train_timesteps"]
    if (given := config["trained_betas"]) is not None:
        beta = np.array(given, np.float64)
        if beta.shape != (T,):
            raise ValueError(f"trained_betas: {T} numbers are needed, not shape {beta.shape}")
    elif config["beta_schedule"] == "squaredcos_cap_v2":
        beta = schedules.cosine(T)
    else:
        beta = _BETA[config["beta_schedule"]](T, config["beta_start"], config["beta_end"])
    if config["rescale_betas_zero_snr"]:
        beta = schedules.zero_terminal_snr(beta)
    variance = _VARIANCE[config["variance_type"]]
    channels = net.conv_out.out_channels // (2 if variance == "learned_range" else 1)
    if channels != net.conv_in.in_channels or (variance == "learned_range" and net.conv_out.out_channels % 2):
        raise ValueError(
            f"variance_type: {config['variance_type']!r} does not fit {net.conv_out.out_channels} channels"
        )
    predicts, clip = _PREDICTS[config["prediction_type"]], config["clip_sample"]
    return Diffusion(beta), Denoiser(net, predicts=predicts, variance=variance, clip_x0=clip, first_t=0)


def _scheduler_config(diffusion: Diffusion, denoiser: Denoiser, net: UNet) -> dict[str, Any]:
    """The config of the DDPMScheduler that equals a process and a denoiser."""
    if denoiser.net is not net:
        raise ValueError("denoiser: its net is not the one given")
    if denoiser.first_t != 0:
        raise ValueError(f"denoiser: first_t is {denoiser.first_t}; diffusers counts from 0")
    predicts = {ours: theirs for theirs, ours in _PREDICTS.items()}
    variance = {"beta_tilde": "fixed_small", "beta": "fixed_large", "learned_range": "learned_range"}
    if denoiser.predicts not in predicts:
        raise ValueError(f"denoiser: predicts={denoiser.predicts!r} has no equal in diffusers")
    if not isinstance(denoiser.variance, str) or denoiser.variance not in variance:
        raise ValueError(f"denoiser: variance={denoiser.variance!r} has no equal in diffusers")
    beta = np.array(diffusion.beta[1:])
    named = {"beta_schedule": "linear", "trained_betas": beta.tolist()}
    for name, schedule in _BETA.items():
        ends = {} if name == "squaredcos_cap_v2" else {"beta_1": float(beta[0]), "beta_T": float(beta[-1])}
        if np.allclose(schedule(len(beta), **ends), beta, rtol=1e-13, atol=0):
            named = {"beta_schedule": name, "trained_betas": None}
            break
    return {
        "_class_name": "DDPMScheduler", "_diffusers_version": _VERSION,
        **_SCHEDULE,
        "num_train_timesteps": diffusion.T, "beta_start": float(beta[0]), "beta_end": float(beta[-1]), **named,
        "variance_type": variance[denoiser.variance],
        "prediction_type": predicts[denoiser.predicts],
        "clip_sample": denoiser.clip_x0,
    }  # fmt: skip


def _read_weights(folder: Path, net: UNet) -> dict[str, Tensor]:
    """The network's tensors under our names, from one file or from the shards that an index lists."""
    index = folder / f"{_WEIGHTS}.index.json"
    files = [folder / _WEIGHTS]
    if not files[0].exists() and os.path.lexists(index):
        shards = _read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise ValueError(f"{index}: the key 'weight_map' is missing or malformed")
        for name in (listed := sorted(set(shards.values()))):
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ValueError(f"{index}: {name!r} is no safetensors file of this folder")
        files = [index.with_name(name) for name in listed]
    names, parts = _names(net), dict[str, Tensor]()
    for ours, tensor in net.state_dict().items():
        parts |= dict(zip(names[ours], tensor.chunk(len(names[ours])), strict=True))
    older = {_older(name): name for name in parts}
    found: dict[str, Tensor] = {}
    for file in files:
        present = {name: older.get(name, name) for name in weights.read_names(file.resolve())}
        expected = {name: parts[new] for name, new in present.items() if new in parts}
        tensors, _ = weights.read_tensors(file.resolve(), expected)
        found |= {present[name]: tensor for name, tensor in tensors.items()}
    for name in parts.keys() - found.keys():
        raise ValueError(f"{files[0]}: tensor {name!r} is missing")
    return {ours: torch.cat([found[name] for name in theirs]) for ours, theirs in names.items()}


def _older(name: str) -> str:
    """The name that diffusers gave a tensor before its attention was rewritten, as in google/ddpm-cifar10-32."""
    if ".attentions." in name:
        for new, old in _OLD.items():
            name = name.replace(f".{new}.", f".{old}.")
    return name


def _names(net: UNet) -> dict[str, tuple[str, ...]]:
    """For each of our tensors, diffusers' name; three of them where ours is the queries', keys' and values' in one."""
    levels, blocks = len(net.config["mults"]), net.config["res_blocks"]
    places = {"time.0": "time_embedding.linear_1", "time.2": "time_embedding.linear_2", "norm_out": "conv_norm_out"}
    places |= {f"mid.{i}": f"mid_block.{{}}.{i}" for i in range(2)}
    for way, count in (("down", blocks), ("up", blocks + 1)):
        for level in range(levels):
            first = level * (count + 1)
            places |= {f"{way}.{first + i}": f"{way}_blocks.{level}.{{}}.{i}" for i in range(count)}
            places[f"{way}.{first + count}.conv"] = f"{way}_blocks.{level}.{way}samplers.0.conv"
    inner = {"time": "time_emb_proj", "skip": "conv_shortcut", "norm": "group_norm", "out": "to_out.0"}
    result: dict[str, tuple[str, ...]] = {}
    for name in net.state_dict():
        layer, _, kind = name.rpartition(".")
        if layer.endswith(".conv") or layer in places or "." not in layer:
            result[name] = (f"{places.get(layer, layer)}.{kind}",)
            continue
        block, part = ".".join(layer.split(".")[:2]), layer.split(".")[2:]
        place = places[block].format("attentions" if part[0] == "attention" else "resnets")
        leaves = ["to_q", "to_k", "to_v"] if part[-1] == "qkv" else [inner.get(part[-1], part[-1])]
        result[name] = tuple(f"{place}.{leaf}.{kind}" for leaf in leaves)
    return result
