"""The U-Net of Ho et al. 2020, with the options that published relatives of it need.

A level is `res_blocks` residual blocks (one more on the way up), attention where its resolution is listed, and a
change of resolution. The middle is block, attention, block. Every block gets the embedded time.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyddpm._arrays.check import as_int, as_real
from tinyddpm.nn import weights
from tinyddpm.nn.layers import Attention, Block, Downsample, DropoutKey, Upsample, time_embedding, variance_scaling

__all__ = ["UNet"]

CONFIG, WEIGHTS, EMA_WEIGHTS = "unet.json", "model.safetensors", "ema.safetensors"


class UNet(nn.Module):
    """The network of Ho et al. 2020: ``net(x, t)`` or ``net(x, t, y)``, of x's shape with `out_channels` on axis 1.

    Parameters
    ----------
    image_size : int or (height, width)
        Each must be divisible by ``2 ** (len(mults) - 1)``.
    in_channels, out_channels : int
        `out_channels` defaults to `in_channels`; twice that for a learned variance.
    channels, mults : int, sequence of int
        Level i works on ``channels * mults[i]`` channels at ``image_size / 2**i``.
    attention : sequence of int
        Resolutions (heights, where they differ from widths) with self-attention after each block.
    dropout : float
        Within each block. Its masks come from `drop_by` where a key is set there, else from Torch's own state.
    classes : int, optional
        Class-conditional: `y` holds 0..classes-1, or `classes` for "none", which is also what leaving it out means.
    head_dim, heads : int, optional
        Channels of an attention head, or the number of heads; one head by default, as in the paper.
    norm_groups, norm_eps
        Of every group norm. By default the largest number of groups up to 32 that divides `channels` and leaves four
        channels to a group: 32 for the paper's 128.
    cos_first, freq_shift
        The time embedding: see `time_embedding`. The paper's order is sin, cos with a shift of 1.
    downsample_padding : 0 or 1
        0 pads right and below only, as the paper does under TensorFlow; 1 pads all sides.
    scale_shift : bool
        The embedded time scales and shifts the second norm of a block [iDDPM], instead of being added before it.

    The network embeds t as it comes. The paper counts 0..T-1 here, which is ``Denoiser(net, first_t=0)``.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        in_channels: int = 3,
        out_channels: int | None = None,
        channels: int = 128,
        mults: Sequence[int] = (1, 2, 2, 2),
        res_blocks: int = 2,
        attention: Sequence[int] = (16,),
        dropout: float = 0.1,
        classes: int | None = None,
        *,
        head_dim: int | None = None,
        norm_groups: int | None = None,
        norm_eps: float = 1e-6,
        cos_first: bool = False,
        freq_shift: float = 1.0,
        downsample_padding: int = 0,
        scale_shift: bool = False,
        heads: int | None = None,
    ) -> None:
        super().__init__()
        self.config = config = _checked(
            image_size=image_size, in_channels=in_channels, out_channels=out_channels, channels=channels, mults=mults,
            res_blocks=res_blocks, attention=attention, dropout=dropout, classes=classes, head_dim=head_dim,
            norm_groups=norm_groups, norm_eps=norm_eps, cos_first=cos_first, freq_shift=freq_shift,
            downsample_padding=downsample_padding, scale_shift=scale_shift, heads=heads,
        )  # fmt: skip
        self.drop_by = DropoutKey()
        embedded = 4 * channels
        self.time = nn.Sequential(nn.Linear(channels, embedded), nn.SiLU(), nn.Linear(embedded, embedded))
        self.label = nn.Embedding(classes + 1, embedded) if classes is not None else None
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.down, self.mid, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.norm_out = nn.GroupNorm(_groups(channels, norm_groups), channels * mults[0], norm_eps)
        self.conv_out = nn.Conv2d(channels * mults[0], config["out_channels"] or in_channels, 3, padding=1)
        self._build_levels()
        self.reset()

    def _build_levels(self) -> None:
        config, size = self.config, self.config["image_size"]
        height, count = size if isinstance(size, int) else size[0], config["res_blocks"]
        groups, embedded = self.norm_out.num_groups, 4 * config["channels"]

        def block(width_in: int, width: int, attend: bool) -> Block:
            head = (config["head_dim"] or width // (config["heads"] or 1)) if attend else None
            eps, p, scale_shift = config["norm_eps"], config["dropout"], config["scale_shift"]
            return Block(width_in, width, embedded, groups, eps, p, head, self.drop_by, scale_shift)

        levels = [(config["channels"] * m, height >> i in config["attention"]) for i, m in enumerate(config["mults"])]
        skips = [width := config["channels"]]
        for level, (out, attend) in enumerate(levels, 1):
            for _ in range(count):
                self.down.append(block(width, width := out, attend))
                skips.append(width)
            if level < len(levels):
                self.down.append(Downsample(width, config["downsample_padding"]))
                skips.append(width)
        self.mid.extend([block(width, width, True), block(width, width, False)])
        for level, (out, attend) in reversed(list(enumerate(levels))):
            for _ in range(count + 1):
                self.up.append(block(width + skips.pop(), width := out, attend))
            if level:
                self.up.append(Upsample(width))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x: (B, in_channels, height, width); t: (B,), integers; y: (B,), integers, for a class-conditional network."""
        self._check(x, t, y)
        cos_first, freq_shift = self.config["cos_first"], self.config["freq_shift"]
        embedded = self.time(time_embedding(t, self.conv_in.out_channels, cos_first, freq_shift).to(x.dtype))
        if self.label is not None:
            classes = self.label.num_embeddings - 1
            embedded = embedded + self.label(torch.full_like(t, classes, dtype=torch.long) if y is None else y)
        embedded = F.silu(embedded)
        skips = [self.conv_in(x)]
        for layer in self.down:
            skips.append(layer(skips[-1], embedded))
        h = skips[-1]
        for layer in self.mid:
            h = layer(h, embedded)
        for layer in self.up:
            h = layer(h if isinstance(layer, Upsample) else torch.cat([h, skips.pop()], dim=1), embedded)
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out

    def reset(self) -> None:
        """Ho et al.'s initial weights, drawn from Torch's global random state."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                variance_scaling(module)
        for module in (self.conv_out, *(m.conv2 for m in self.modules() if isinstance(m, Block))):
            variance_scaling(module, 1e-10)
        for module in self.modules():
            if isinstance(module, Attention):
                variance_scaling(module.qkv, fan=2 * module.qkv.in_features)
                variance_scaling(module.out, 1e-10)

    def cast_for_autocast(self, dtype: torch.dtype) -> UNet:
        """The network as autocast to `dtype` runs it: the weights that it casts at every call are cast now, to the same numbers.

        Everything else is shared, hooks too. Weights that change later are not followed.
        """
        network: UNet = _cast(self, dtype)
        return network

    @classmethod
    def cifar10(cls) -> UNet:
        """Ho et al.'s network for CIFAR-10: 35 746 307 parameters."""
        return cls(image_size=32)

    def save(self, dir: str | os.PathLike[str]) -> None:
        """Write the weights and the constructor's arguments to the folder `dir`, all or nothing.

        A folder with an earlier save is replaced; one with other files is refused (`ValueError`).
        """
        with weights.new_folder(weights.as_path("dir", dir), replaces=frozenset({CONFIG, WEIGHTS})) as folder:
            self.write(folder, WEIGHTS)

    def write(self, folder: Path, name: str) -> str:
        """Write the two files of `save` into `folder`, the weights as `name`; returns the weights' SHA-256."""
        digest = weights.write_tensors(folder / name, self.state_dict(), {"unet": json.dumps(self.config)})
        weights.write_json(folder / CONFIG, {**self.config, "sha256": digest})
        return digest

    @classmethod
    def load(cls, dir: str | os.PathLike[str]) -> UNet:
        """The network saved in `dir`, in eval mode; of a training checkpoint, the one with averaged (EMA) weights.

        Raises `FileNotFoundError` where a file is missing and `ValueError` where one is damaged, each naming it.
        """
        folder = weights.as_path("dir", dir)
        stored = weights.read_json(folder / CONFIG)
        digest = stored.pop("sha256", None)
        if not isinstance(digest, str):
            raise ValueError(f"{folder / CONFIG}: the key sha256 is missing or no string")
        name = EMA_WEIGHTS if os.path.lexists(folder / EMA_WEIGHTS) else WEIGHTS
        return cls.read(folder / name, stored, digest, folder / CONFIG)

    @classmethod
    def read(cls, file: Path, stored: dict[str, Any], digest: str, source: Path) -> UNet:
        """The network with the arguments `stored` (read from `source`) and the weights of `file`."""
        known = set(UNet(4, mults=(1,), channels=4).config)
        for key in sorted(stored.keys() ^ known):
            raise ValueError(f"{source}: the key {key!r} is {'missing' if key in known else 'unknown'}")
        try:
            with torch.device("meta"):  # names and shapes, without the memory
                net = cls(**stored)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}: {error}") from None
        tensors, noted = weights.read_tensors(file, expected=net.state_dict(), sha256=digest)
        if noted.get("unet", json.dumps(net.config)) != json.dumps(net.config):
            raise ValueError(f"{source}: differs from the arguments that were saved with {file.name}")
        net.load_state_dict(tensors, assign=True)
        return net.eval()

    def _check(self, x: Tensor, t: Tensor, y: Tensor | None) -> None:
        for name, value in (("x", x), ("t", t), ("y", y)):
            if not isinstance(value, Tensor) and not (name == "y" and value is None):
                raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if not x.is_floating_point():
            raise TypeError(f"x must be a floating-point tensor, got {x.dtype}")
        channels, scale = self.conv_in.in_channels, 2 ** (len(self.config["mults"]) - 1)
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % scale or x.shape[3] % scale:
            raise ValueError(f"x: (B, {channels}, height, width), both divisible by {scale}, not {tuple(x.shape)}")
        if t.shape != x.shape[:1]:
            raise ValueError(f"t must have shape ({x.shape[0]},), got {tuple(t.shape)}")
        if y is None:
            return
        if self.label is None:
            raise ValueError("y: this network has no classes")
        if y.shape != x.shape[:1] or y.is_floating_point():
            raise ValueError(f"y must be integers of shape ({x.shape[0]},), got {y.dtype} of {tuple(y.shape)}")
        top = self.label.num_embeddings - 1
        if y.device.type == "cpu" and y.numel() and not 0 <= int(y.min()) <= int(y.max()) <= top:
            raise ValueError(f"y: classes are 0..{top - 1}, or {top} for none, not {y.tolist()}")


def _cast(module: Any, dtype: torch.dtype) -> Any:
    """A module of the same parts, save the weights of convolutions and linear layers, which are cast."""
    twin = copy.copy(module)
    twin._modules = {name: part if part is None else _cast(part, dtype) for name, part in module._modules.items()}
    if isinstance(module, nn.Conv2d | nn.Linear):
        twin._parameters = {
            name: p if p is None else nn.Parameter(p.detach().to(dtype), requires_grad=False)
            for name, p in module._parameters.items()
        }
    return twin


def _groups(channels: int, given: int | None) -> int:
    if given is not None:
        return given
    return max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels // g >= 4))


def _checked(**config: Any) -> dict[str, Any]:
    """The constructor's arguments as JSON holds them; raises `ValueError` or `TypeError` naming the wrong one."""
    for name, top in (("in_channels", 2**12), ("channels", 2**14), ("res_blocks", 64)):
        config[name] = as_int(name, config[name], 1, top)
    for name in ("out_channels", "classes", "head_dim", "heads", "norm_groups"):
        if config[name] is not None:
            config[name] = as_int(name, config[name], 1, 2**24)
    mults = config["mults"] = _ints("mults", config["mults"], 64)
    config["attention"] = _ints("attention", config["attention"], 2**16)
    if not 1 <= len(mults) <= 12:
        raise ValueError(f"mults must be one to twelve levels, got {len(mults)}")
    if config["res_blocks"] * len(mults) > 128:
        raise ValueError(f"res_blocks: {config['res_blocks']} on each of {len(mults)} levels is more than 128 in all")
    size = config["image_size"]
    if hasattr(size, "__len__"):
        sides = size = _ints("image_size", size, 2**16)
        if len(sides) != 2:
            raise ValueError(f"image_size must be an int or (height, width), got {sides}")
    else:
        sides = [size := as_int("image_size", size, 1, 2**16)]
    config["image_size"] = size
    for side in sides:
        if side % 2 ** (len(mults) - 1):
            raise ValueError(f"image_size: {side} cannot be halved {len(mults) - 1} times, as mults={mults} needs")
    channels = config["channels"]
    if channels % 2 or channels < 4:
        raise ValueError(f"channels must be an even number from 4 on, got {channels}")
    if config["norm_groups"] is not None and channels % config["norm_groups"]:
        raise ValueError(f"norm_groups: {config['norm_groups']} does not divide channels={channels}")
    if config["heads"] is not None and config["head_dim"] is not None:
        raise ValueError(f"heads: {config['heads']}, but head_dim={config['head_dim']} sets them already")
    for name in ("head_dim", "heads"):
        for m in mults:
            if config[name] is not None and channels * m % config[name]:
                raise ValueError(f"{name}: {config[name]} does not divide a level's {channels * m} channels")
    config["dropout"] = as_real("dropout", config["dropout"], 0, 0.999)
    config["norm_eps"] = as_real("norm_eps", config["norm_eps"], 0, 1)
    config["freq_shift"] = as_real("freq_shift", config["freq_shift"], -1, 1)
    for name in ("cos_first", "scale_shift"):
        if not isinstance(config[name], bool):
            raise TypeError(f"{name} must be a bool, got {type(config[name]).__name__}")
    config["downsample_padding"] = as_int("downsample_padding", config["downsample_padding"], 0, 1)
    return config


def _ints(name: str, values: Any, top: int) -> list[int]:
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a sequence of ints, got {type(values).__name__}")
    return [as_int(name, v, 1, top) for v in values]
