"""What the shapes of an OpenAI checkpoint tell about its network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FIXED = {"cos_first": True, "freq_shift": 0, "norm_eps": 1e-5, "norm_groups": 32, "downsample_padding": 1, "dropout": 0.0}
_Shapes = Mapping[str, tuple[int, ...]]


def layout(file: Path, shapes: _Shapes, image_size: int) -> dict[str, Any]:
    """Return the arguments of `UNet` that a checkpoint's shapes tell, and those that are the same for all checkpoints.

    Parameters
    ----------
    file, shapes : Path, mapping
        The checkpoint, and the names and shapes of its tensors.
    image_size : int
        The height of the images in pixels.

    Raises
    ------
    ValueError
        If a tensor is missing or has another number of dimensions. The message names it.
    """

    def rows(name: str, axis: int = 0) -> int:
        if name not in shapes:
            raise ValueError(f"{file}: tensor {name!r} is missing")
        if len(shapes[name]) <= axis:
            raise ValueError(f"{file}: tensor {name!r} must have more than {axis} dimensions, got shape {list(shapes[name])}")
        return shapes[name][axis]

    blocks = 1 + max((int(name.split(".")[1]) for name in shapes if _in_output(name)), default=0)
    if not any(map(_in_output, shapes)) and any(name.startswith("input_blocks.") for name in shapes):
        raise ValueError(
            f"{file}: tensor 'output_blocks.0.0.in_layers.0.weight' is missing: it is a classifier, which can't be read"
        )
    # The first output block of more than a residual block and attention ends the last level.
    ends = [i for i in range(blocks) if _ends_level(shapes, i)]
    count = ends[0] if ends else blocks - 1
    channels, first = rows("time_embed.0.weight", 1), rows("input_blocks.0.0.weight")
    starts = range(1, 1 + blocks, count + 1)  # each level's first block
    widths = [rows(f"input_blocks.{i}.0.in_layers.2.weight") for i in starts]
    attends = [f"input_blocks.{i}.1.qkv.weight" in shapes for i in starts]
    told = {
        "in_channels": rows("input_blocks.0.0.weight", 1),
        "out_channels": rows("out.2.weight"),
        "channels": channels,
        "first_channels": first if first != channels else None,
        "mults": [width / channels if channels and width % channels else width // max(channels, 1) for width in widths],
        "res_blocks": count,
        "attention": [image_size >> level for level, attend in enumerate(attends) if attend],
        "scale_shift": rows("input_blocks.1.0.emb_layers.1.weight") == 2 * widths[0],
        "resblock_updown": any(f"output_blocks.{i}.{k}.in_layers.0.weight" in shapes for i in ends for k in (1, 2)),
    }
    conditional = {"classes": rows("label_emb.weight"), "null_class": False} if "label_emb.weight" in shapes else {}
    return {**_FIXED, **told, **conditional}


def _in_output(name: str) -> bool:
    """Whether a tensor is in a numbered output block."""
    parts = name.split(".")
    return parts[0] == "output_blocks" and len(parts) > 2 and parts[1].isdecimal() and len(parts[1]) < 6


def _ends_level(shapes: _Shapes, block: int) -> bool:
    """Whether an output block has a layer that doubles the size: a convolution, or a second residual block."""
    places = [f"output_blocks.{block}.{k}." for k in (1, 2)]
    return any(f"{place}conv.weight" in shapes or f"{place}in_layers.0.weight" in shapes for place in places)
