"""The U-Net of Ho et al. 2020, with the options of its published variants.

A level has `res_blocks` residual blocks (one more on the way up), attention if its resolution is listed, and a change of
resolution. The middle is a block, attention and a block. Every block takes the embedded time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyddpm.denoiser import Denoiser
from tinyddpm.diffusion import Diffusion
from tinyddpm.nn import weights
from tinyddpm.nn._arguments import check_inputs, checked, norm_groups_of, widths_of
from tinyddpm.nn._chain import described
from tinyddpm.nn._levels import build_levels, initialize, takes_skip
from tinyddpm.nn.layers import DropoutKey, GroupNorm, cast_weights, time_embedding

__all__ = ["UNet"]

CONFIG, WEIGHTS, EMA_WEIGHTS, CHAIN = "unet.json", "model.safetensors", "ema.safetensors", "chain.json"
_ADDED: dict[str, Any] = {  # arguments that files of version 0.1 do not hold
    "heads_upsample": None, "first_channels": None, "resblock_updown": False, "mid_norm_groups": None, "null_class": True
}  # fmt: skip


class UNet(nn.Module):
    """The U-Net of Ho et al. 2020, a function ``net(x, t)`` or ``net(x, t, y)``.

    Parameters
    ----------
    image_size : int or (int, int)
        Height and width in pixels, each divisible by ``2 ** (len(mults) - 1)``; a side of 1, as signals have, is not halved.
    in_channels : int, default 3
        The channels of x.
    out_channels : int, optional
        The channels of the output, by default `in_channels`; a learned variance needs twice as many.
    channels : int, default 128
        The channels of the first level; an even number of at least 4.
    mults : sequence of int or float, default (1, 2, 2, 2)
        Level i has ``channels * mults[i]`` channels, a whole number, at the resolution ``image_size / 2**i``.
    res_blocks : int, default 2
        The residual blocks of a level.
    attention : sequence of int, default (16,)
        The resolutions (heights) at which each block is followed by self-attention.
    dropout : float, default 0.1
        The probability in each block. The masks come from `drop_by` if a key is set there, else from Torch's global state.
    classes : int, optional
        The number of classes of a class-conditional network. Then y holds 0..classes-1, or, with `null_class`, `classes` for no
        class, which is also the meaning of a missing y.
    head_dim, heads : int, optional
        The channels of an attention head, or the number of heads; by default one head, as in the paper.
    norm_groups : int, optional
        The groups of every group norm. By default the largest number up to 32 that divides `channels` and leaves at least
        four channels for each group: 32 for the paper's 128 channels.
    norm_eps : float, default 1e-6
        The number that every group norm adds to the variance.
    cos_first, freq_shift : bool, float
        The time embedding, see `time_embedding`. The paper's is sines first with a shift of 1, the default.
    downsample_padding : {0, 1}, default 0
        0 pads on the right and below only, as the paper does under TensorFlow; 1 pads all sides.
    scale_shift : bool, default False
        If True, the embedded time scales and shifts the second norm of a block [iDDPM] instead of being added before it.
    heads_upsample : int, optional
        The number of attention heads on the way up, by default `heads`.
    first_channels : int, optional
        The channels of the first convolution, by default `channels`.
    resblock_updown : bool, default False
        If True, residual blocks change the resolution [BigGAN, guided-diffusion] instead of convolutions.
    mid_norm_groups : int, optional
        The groups of the norm before the middle's attention, by default those of every norm; 0 is no norm.
    null_class : bool, default True
        Whether there is an embedding for no class. If not, y must be given.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range. The message names it.

    Notes
    -----
    The network embeds t as it is given. The paper counts 0..T-1 here, which is ``Denoiser(net, first_t=0)``.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        in_channels: int = 3,
        out_channels: int | None = None,
        channels: int = 128,
        mults: Sequence[float] = (1, 2, 2, 2),
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
        heads_upsample: int | None = None,
        first_channels: int | None = None,
        resblock_updown: bool = False,
        mid_norm_groups: int | None = None,
        null_class: bool = True,
    ) -> None:
        super().__init__()
        self.config = config = checked({
            "image_size": image_size, "in_channels": in_channels, "out_channels": out_channels, "channels": channels,
            "mults": mults, "res_blocks": res_blocks, "attention": attention, "dropout": dropout, "classes": classes,
            "head_dim": head_dim, "norm_groups": norm_groups, "norm_eps": norm_eps, "cos_first": cos_first,
            "freq_shift": freq_shift, "downsample_padding": downsample_padding, "scale_shift": scale_shift, "heads": heads,
            "heads_upsample": heads_upsample, "first_channels": first_channels, "resblock_updown": resblock_updown,
            "mid_norm_groups": mid_norm_groups, "null_class": null_class,
        })  # fmt: skip
        self.drop_by = DropoutKey()
        embedded = 4 * channels
        self.time = nn.Sequential(nn.Linear(channels, embedded), nn.SiLU(), nn.Linear(embedded, embedded))
        self.label = nn.Embedding(classes + null_class, embedded) if classes is not None else None
        self.conv_in = nn.Conv2d(in_channels, config["first_channels"] or channels, 3, padding=1)
        self.down, self.mid, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        width, groups = widths_of(config)[0], norm_groups_of(config)
        self.norm_out = GroupNorm(groups, width, norm_eps)
        self.conv_out = nn.Conv2d(width, config["out_channels"] or in_channels, 3, padding=1)
        for part, layers in zip((self.down, self.mid, self.up), build_levels(config, groups, self.drop_by), strict=True):
            part.extend(layers)
        self.reset()

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the network's output.

        Parameters
        ----------
        x : torch.Tensor
            Images of shape (B, in_channels, height, width) and a floating dtype.
        t : torch.Tensor
            The steps, integers of shape (B,).
        y : torch.Tensor, optional
            The classes, integers of shape (B,), for a class-conditional network.

        Returns
        -------
        torch.Tensor
            A tensor of shape (B, out_channels, height, width) and x's dtype.
        """
        check_inputs(self.config, x, t, y)
        cos_first, freq_shift = self.config["cos_first"], self.config["freq_shift"]
        embedded = self.time(time_embedding(t, self.config["channels"], cos_first, freq_shift).to(x.dtype))
        if self.label is not None:
            none = self.label.num_embeddings - 1
            embedded = embedded + self.label(torch.full_like(t, none, dtype=torch.long) if y is None else y.long())
        embedded = F.silu(embedded)
        skips = [self.conv_in(x)]
        for layer in self.down:
            skips.append(layer(skips[-1], embedded))
        h = skips[-1]
        for layer in self.mid:
            h = layer(h, embedded)
        for layer in self.up:
            h = layer(torch.cat([h, skips.pop()], dim=1) if takes_skip(layer) else h, embedded)
        return self.conv_out(F.silu(self.norm_out(h)))  # type: ignore[no-any-return]

    def reset(self) -> None:
        """Draw the initial weights of Ho et al. from Torch's global random state."""
        initialize(self)

    def cast_for_autocast(self, dtype: torch.dtype) -> UNet:
        """Return a network whose weights are cast now, as autocast to `dtype` would cast them at every call.

        It shares all else with this network, hooks included, and does not follow later changes of the weights.

        Parameters
        ----------
        dtype : torch.dtype
            The dtype of autocast, ``torch.bfloat16`` or ``torch.float16``.

        Returns
        -------
        UNet
            The network to call under autocast. Its outputs are equal bit for bit.
        """
        return cast_weights(self, dtype)  # type: ignore[no-any-return]

    @classmethod
    def cifar10(cls) -> UNet:
        """Return a new network as Ho et al. used for CIFAR-10, with 35 746 307 parameters."""
        return cls(image_size=32)

    def save(self, dir: str | os.PathLike[str], diffusion: Diffusion | None = None, denoiser: Denoiser | None = None) -> None:
        """Write the weights and the constructor's arguments to a folder, completely or not at all.

        Parameters
        ----------
        dir : path
            The folder. An earlier save in it is replaced.
        diffusion, denoiser : Diffusion, Denoiser, optional
            The network's chain and how the network is read, which `load_model` and the commands need.

        Raises
        ------
        TypeError, ValueError
            If only one of the two is given, `denoiser` has another network or a variance for each pixel, or `dir` other files.
        """
        chain = described(self, diffusion, denoiser)
        with weights.new_folder(weights.as_path("dir", dir), replaces=frozenset({CONFIG, WEIGHTS, CHAIN})) as folder:
            self.write(folder, WEIGHTS)
            if chain is not None:
                weights.write_json(folder / CHAIN, chain)

    def write(self, folder: Path, name: str) -> str:
        """Write the two files of `save` into a folder.

        Parameters
        ----------
        folder, name : Path, str
            The folder, and the name of the file of weights.

        Returns
        -------
        str
            The SHA-256 of the weights.
        """
        digest = weights.write_tensors(folder / name, self.state_dict(), {"unet": json.dumps(self.config)})
        weights.write_json(folder / CONFIG, {**self.config, "sha256": digest})
        return digest

    @classmethod
    def load(cls, dir: str | os.PathLike[str]) -> UNet:
        """Return the network saved in a folder, in eval mode.

        Parameters
        ----------
        dir : path
            A folder written by `save`, or a training checkpoint, whose averaged (EMA) weights are read.

        Returns
        -------
        UNet
            The network, with the dtype that it was saved in, on the CPU.

        Raises
        ------
        FileNotFoundError
            If a file is missing.
        ValueError
            If a file is damaged. The message names the file and what is wrong in it.
        """
        folder = weights.as_path("dir", dir)

        def read() -> UNet:
            stored = weights.read_json(folder / CONFIG)
            digest = stored.pop("sha256", None)
            if not isinstance(digest, str):
                raise ValueError(f"{folder / CONFIG}: the key 'sha256' is missing or not a string")
            name = EMA_WEIGHTS if os.path.lexists(folder / EMA_WEIGHTS) else WEIGHTS
            return cls.read(folder / name, stored, digest, folder / CONFIG)

        return weights.reading_whole(folder, read)

    @classmethod
    def read(cls, file: Path, stored: dict[str, Any], digest: str, source: Path) -> UNet:
        """Return the network with stored arguments and weights, in eval mode. It raises what `load` raises.

        Parameters
        ----------
        file, digest : Path, str
            The weights, and their SHA-256.
        stored, source : dict, Path
            The constructor's arguments, and the file that they were read from.

        Returns
        -------
        UNet
            The network, on the CPU.
        """
        known, stored = set(UNet(4, mults=(1,), channels=4).config), {**_ADDED, **stored}
        for key in sorted(stored.keys() ^ known):
            raise ValueError(f"{source}: the key {key!r} is {'missing' if key in known else 'unknown'}")
        try:
            with torch.device("meta"):  # names and shapes without memory
                net = cls(**stored)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}: {error}") from None
        tensors, noted = weights.read_tensors(file, expected=net.state_dict(), sha256=digest)
        if "unet" in noted and {**_ADDED, **weights.parse(f"{file}: its metadata", noted["unet"].encode())} != net.config:
            raise ValueError(f"{source}: differs from the arguments that were saved with {file.name}")
        net.load_state_dict(tensors, assign=True)
        return net.eval()
