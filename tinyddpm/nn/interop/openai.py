"""Checkpoints of OpenAI's improved-diffusion and guided-diffusion, from safetensors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyddpm._arrays.check import as_bool, as_positive_int
from tinyddpm.nn import weights
from tinyddpm.nn.interop._layout import layout
from tinyddpm.nn.layers import Attention, Block, Downsample
from tinyddpm.nn.unet import UNet

__all__ = ["load_openai"]

_PICKLE = "; pickles (.pt) are never read, save the weights as safetensors"
_HEADS = 4
_BLOCK = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "skip": "skip_connection",
    "attention.norm": "norm", "attention.qkv": "qkv", "attention.out": "proj_out",
}  # fmt: skip


def load_openai(
    path: str | os.PathLike[str], image_size: int | Sequence[int], *, heads: int = 4,
    new_attention_order: bool = False, **options: Any,
) -> UNet:  # fmt: skip
    """Return the network of a checkpoint of improved-diffusion or guided-diffusion, in eval mode.

    The shapes of the weights tell the widths, blocks, levels with attention, classes and most flags. They do not tell the image
    size, the attention heads and the order within attention: give these as the model's flags do, or they are OpenAI's defaults.

    Parameters
    ----------
    path : path
        A safetensors file, or a folder with one. The published ``.pt`` files are pickles, which are never read.
    image_size : int or (int, int)
        The size of the images in pixels, as in `UNet`.
    heads : int, default 4
        The flag ``num_heads``, which does not matter if `head_dim` is given.
    new_attention_order : bool, default False
        The flag ``use_new_attention_order``: the rows of an attention layer are the queries of all heads, then the keys, then
        the values. If False, they are ordered head by head.
    **options
        Other arguments of `UNet`: `head_dim` for the flag ``num_head_channels``, `heads_upsample` for ``num_heads_upsample`` (by
        default `heads`), `dropout` (default 0) to train on. What the weights tell need not be given; given, it must agree.

    Returns
    -------
    UNet
        The network on the CPU, with the dtype of the checkpoint. That of a class-conditional one needs y.

    Raises
    ------
    FileNotFoundError
        If the file is missing.
    TypeError
        If an argument is unknown or has the wrong type.
    ValueError
        If a tensor is damaged, does not fit the arguments, or belongs to a classifier. The message names it.

    Notes
    -----
    A learned variance is ``Denoiser(net, first_t=0, variance="learned_range")``: steps count from 0. If T is not 1000, the flag
    ``rescale_timesteps`` means ``net(x, t * 1000 / T)``. An upsampler takes its 6 channels from the noisy image and the enlarged
    small one.
    """
    new_attention_order = as_bool("new_attention_order", new_attention_order)
    file = _file(weights.as_path("path", path))
    if options.get("head_dim") is None:
        options["heads"] = heads
    elif as_positive_int("heads", heads) != _HEADS:
        raise ValueError(f"heads must be left out if head_dim is given, got heads={heads} and head_dim={options['head_dim']}")
    height = image_size[0] if isinstance(image_size, tuple | list) and image_size else image_size
    told = layout(file, weights.read_shapes(file), as_positive_int("image_size", height))
    with torch.device("meta"):  # names and shapes without memory
        net = UNet(image_size, **{**told, **options})
    names, shapes = _names(net), net.state_dict()
    expected = {theirs: _as_theirs(ours, shapes[ours]) for ours, theirs in names.items()}
    tensors, _ = weights.read_tensors(file, expected, links=True)
    state = {ours: tensors[theirs].reshape(shapes[ours].shape) for ours, theirs in names.items()}
    if not new_attention_order:
        for layer, module in net.named_modules():
            if isinstance(module, Attention):
                for kind in ("weight", "bias"):
                    state[f"{layer}.qkv.{kind}"] = _kinds_first(state[f"{layer}.qkv.{kind}"], module.heads)
    net.load_state_dict(state, assign=True)
    return net.eval()


def _file(path: Path) -> Path:
    """The safetensors file at a path or in the folder at a path."""
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"{path}: holds {len(found)} .safetensors files; give the path of one of them")
        raise FileNotFoundError(f"{path}: holds no .safetensors file{_PICKLE}")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: is not a .safetensors file{_PICKLE}")
    return path


def _kinds_first(tensor: Tensor, heads: int) -> Tensor:
    """Reorder rows from (head, kind) to (kind, head), where a kind is query, key or value."""
    return tensor.reshape(heads, 3, -1, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


def _as_theirs(name: str, tensor: Tensor) -> Tensor:
    """The tensor in their shape: the matrices of attention are convolutions of width 1 there."""
    return tensor[..., None] if name.endswith(("qkv.weight", "attention.out.weight")) else tensor


def _names(net: UNet) -> dict[str, str]:
    """OpenAI's name of each of our tensors."""
    places = {"time.0": "time_embed.0", "time.2": "time_embed.2", "conv_in": "input_blocks.0.0"}
    places |= {"norm_out": "out.0", "conv_out": "out.2", "label": "label_emb"}
    blocks = {f"mid.{i}": ("middle_block", 2 * i) for i in range(2)}
    for i, module in enumerate(net.down):
        blocks[f"down.{i}"] = f"input_blocks.{i + 1}", 0
        if isinstance(module, Downsample):
            places[f"down.{i}.conv"] = f"input_blocks.{i + 1}.0.op"
    n, after = -1, 0
    for i, module in enumerate(net.up):
        if isinstance(module, Block) and module.resample is None:
            n, after = n + 1, 1 + isinstance(module.attention, Attention)
            blocks[f"up.{i}"] = f"output_blocks.{n}", 0
        else:  # a layer that doubles the size belongs to the output block before it
            blocks[f"up.{i}"] = f"output_blocks.{n}", after
            places[f"up.{i}.conv"] = f"output_blocks.{n}.{after}.conv"
    result = {}
    for name in net.state_dict():
        layer, _, kind = name.rpartition(".")
        if layer in places:
            result[name] = f"{places[layer]}.{kind}"
        else:
            block, part = ".".join(layer.split(".")[:2]), ".".join(layer.split(".")[2:])
            place, first = blocks[block]
            result[name] = f"{place}.{first + part.startswith('attention')}.{_BLOCK[part]}.{kind}"
    return result
