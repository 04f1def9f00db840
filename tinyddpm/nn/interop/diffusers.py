"""Folders of ``diffusers.DDPMPipeline``, read and written without diffusers.

A folder holds ``model_index.json``, ``unet/`` (``config.json`` and safetensors) and ``scheduler/scheduler_config.json``. The
oldest folders, such as ``google/ddpm-cifar10-32``, have all files in one place.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from tinyddpm._arrays.check import as_instance
from tinyddpm.denoiser import Denoiser
from tinyddpm.diffusion import Diffusion
from tinyddpm.nn import weights
from tinyddpm.nn.interop import _scheduler, _unet
from tinyddpm.nn.interop._config import header
from tinyddpm.nn.unet import UNet

__all__ = ["load_diffusers", "save_diffusers"]

_INDEX, _CONFIG, _SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_SHARDS = f"{_WEIGHTS}.index.json"
_PARTS = {"unet": "UNet2DModel", "scheduler": "DDPMScheduler"}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def load_diffusers(dir: str | os.PathLike[str]) -> tuple[UNet, Diffusion, Denoiser]:
    """Return the network, process and denoiser in the folder of a diffusers DDPM pipeline.

    Parameters
    ----------
    dir : path
        The folder. Links, which the hub's cache uses, are followed.

    Returns
    -------
    net : UNet
        The network in eval mode, on the CPU. One with classes (`num_class_embeds`) needs y at every call, unless
        `save_diffusers` wrote it with an embedding for no class.
    diffusion : Diffusion
        The process. diffusers computes its betas in float32; here a named schedule is this library's own in float64, and
        `trained_betas` are used as they are written.
    denoiser : Denoiser
        The denoiser of `net`, with ``first_t=0``. Options of the sampling loop only (`timestep_spacing`, `steps_offset`) are not
        read.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is damaged, or describes a network or scheduler that this library does not have. The message names the file
        and the key or tensor.
    """
    folder = weights.as_path("dir", dir)

    def read() -> tuple[UNet, Diffusion, Denoiser]:
        if os.path.lexists(folder / _INDEX):
            _check_index(folder / _INDEX)
        config, scheduler = _part(folder, "unet") / _CONFIG, _part(folder, "scheduler") / _SCHEDULER
        net = _unet.network(config)
        diffusion, read_as = _scheduler.process(scheduler, net)
        net.load_state_dict(_read_weights(config.parent, net), assign=True)
        return net, diffusion, Denoiser(net.eval(), **read_as)

    return weights.reading_whole(folder, read)


def save_diffusers(dir: str | os.PathLike[str], net: UNet, diffusion: Diffusion, denoiser: Denoiser) -> None:
    """Write a folder that ``diffusers.DDPMPipeline.from_pretrained`` reads, completely or not at all.

    Parameters
    ----------
    dir : path
        The folder. An earlier save in it is replaced.
    net : UNet
        The network. One with an embedding for no class has ``num_class_embeds = classes + 1`` there, and no class is the last.
    diffusion : Diffusion
        The process. If diffusers has no name for its schedule, the betas are written as `trained_betas`.
    denoiser : Denoiser
        The denoiser of `net`, with ``first_t=0``.

    Raises
    ------
    ValueError
        If diffusers can't express an option of `net` or `denoiser`, or if `dir` holds other files.
    """
    for name, value, kind in (("net", net, UNet), ("diffusion", diffusion, Diffusion), ("denoiser", denoiser, Denoiser)):
        as_instance(name, value, kind)
    scheduler, config = _scheduler.config_of(diffusion, denoiser, net), _unet.config_of(net)
    names, tensors = _names(net), dict[str, Tensor]()
    for name, tensor in net.state_dict().items():
        tensors |= dict(zip(names[name], tensor.chunk(len(names[name])), strict=True))
    written = frozenset({_INDEX, f"unet/{_CONFIG}", f"unet/{_WEIGHTS}", f"scheduler/{_SCHEDULER}"})
    with weights.new_folder(weights.as_path("dir", dir), replaces=written) as folder:
        for part in _PARTS:
            (folder / part).mkdir()
        weights.write_json(folder / "unet" / _CONFIG, config)
        weights.write_tensors(folder / "unet" / _WEIGHTS, tensors, {"format": "pt"})
        weights.write_json(folder / "scheduler" / _SCHEDULER, scheduler)
        parts = {part: ["diffusers", kind] for part, kind in _PARTS.items()}
        weights.write_json(folder / _INDEX, {**header("DDPMPipeline"), **parts})


def _check_index(file: Path) -> None:
    """Raise ValueError unless a pipeline's parts are a UNet2DModel and a DDPMScheduler."""
    index = weights.read_json(file, links=True)
    parts = {key: value for key, value in index.items() if not key.startswith("_")}
    for part in parts.keys() | _PARTS.keys():
        wanted = ["diffusers", _PARTS[part]] if part in _PARTS else "absent"
        if parts.get(part) != wanted:
            raise ValueError(f"{file}: {part} must be {wanted!r} in a DDPM pipeline, got {reprlib.repr(parts.get(part))}")


def _part(folder: Path, name: str) -> Path:
    """The folder of a part: the one of its name, or the pipeline's in the oldest layout."""
    part = folder / name
    flat = folder / {"unet": _CONFIG, "scheduler": _SCHEDULER}[name]
    return folder if not os.path.lexists(part) and os.path.lexists(flat) else part


def _read_weights(folder: Path, net: UNet) -> dict[str, Tensor]:
    """The network's tensors under our names, from one file or from the files that an index lists."""
    names, parts = _names(net), dict[str, Tensor]()
    for ours, tensor in net.state_dict().items():
        parts |= dict(zip(names[ours], tensor.chunk(len(names[ours])), strict=True))
    current = {_older(name): name for name in parts}
    found: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        present = {name: current.get(name, name) for name in weights.read_shapes(file)}
        expected = {name: parts[new] for name, new in present.items() if new in parts}
        tensors, _ = weights.read_tensors(file, expected, links=True)
        for name, tensor in tensors.items():
            if present[name] in found:
                raise ValueError(f"{file}: tensor {name!r} occurs twice")
            found[present[name]] = tensor
            if tensor.dtype != next(iter(found.values())).dtype:
                raise ValueError(f"{file}: tensor {name!r} must have the dtype of the other files")
    for name in parts:
        if name not in found:
            raise ValueError(f"{folder / _WEIGHTS}: tensor {name!r} is missing")
    return {ours: torch.cat([found[name] for name in theirs]) for ours, theirs in names.items()}


def _weight_files(folder: Path) -> list[Path]:
    """The one file of weights, or the files that an index lists."""
    file, index = folder / _WEIGHTS, folder / _SHARDS
    if os.path.lexists(file):
        return [file]
    if os.path.lexists(index):
        shards = weights.read_json(index, links=True).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
            raise ValueError(f"{index}: the key 'weight_map' is missing or malformed")
        for name in (listed := sorted(set(shards.values()))):
            if os.path.basename(name) != name or "\\" in name or not name.endswith(".safetensors"):
                raise ValueError(f"{index}: {name!r} is not a safetensors file in this folder")
        return [folder / name for name in listed]
    stem, suffix = _WEIGHTS.split(".")
    for entry in sorted(_entries(folder)):
        variant = entry.name.removeprefix(f"{stem}.").removesuffix(f".{suffix}")
        if entry.name == f"{stem}.{variant}.{suffix}":
            raise FileNotFoundError(f"{file}: no such file; {entry.name} is the variant {variant!r}: rename it to read it")
    pickle = next((entry.name for entry in sorted(_entries(folder)) if entry.suffix in _PICKLES), None)
    hint = "" if pickle is None else f"; {pickle} is a pickle, which is never read: save it as safetensors"
    raise FileNotFoundError(f"{file}: no such file{hint}")


def _entries(folder: Path) -> Iterator[Path]:
    """The files in a folder, none if it is missing."""
    return folder.iterdir() if folder.is_dir() else iter(())


def _older(name: str) -> str:
    """The tensor's name in the oldest versions of diffusers, as in ``google/ddpm-cifar10-32``."""
    if ".attentions." in name:
        for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
            name = name.replace(f".{new}.", f".{old}.")
    return name


def _names(net: UNet) -> dict[str, tuple[str, ...]]:
    """diffusers' name of each of our tensors; three names if ours holds queries, keys and values."""
    levels, blocks = len(net.config["mults"]), net.config["res_blocks"]
    places = {"time.0": "time_embedding.linear_1", "time.2": "time_embedding.linear_2", "norm_out": "conv_norm_out"}
    places["label"] = "class_embedding"
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
