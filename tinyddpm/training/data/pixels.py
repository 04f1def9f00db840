"""From the network's [-1, 1] to pictures: rounding to levels, grids, PNG files."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyddpm._arrays.check import as_int
from tinyddpm._io.files import write

__all__ = ["image_grid", "save_png", "to_levels", "to_uint8"]


def to_levels(x: NDArray[Any], levels: int) -> NDArray[np.int64]:
    """Round values in [-1, 1] to the nearest level.

    Parameters
    ----------
    x : real array
        Values; those outside [-1, 1] count as its nearer end.
    levels : int
        The number of levels, in 2..65536.

    Returns
    -------
    int64 array
        Integers 0..levels-1 in x's shape.

    Raises
    ------
    TypeError, ValueError
        If `levels` is not such an int.
    """
    top = as_int("levels", levels, 2, 2**16) - 1
    return np.rint((np.clip(np.asarray(x, np.float64), -1, 1) + 1) * (top / 2)).astype(np.int64)


def to_uint8(x: NDArray[Any]) -> NDArray[np.uint8]:
    """Round values in [-1, 1] to the nearest of 256 levels.

    Parameters
    ----------
    x : real array
        Values; those outside [-1, 1] count as its nearer end.

    Returns
    -------
    uint8 array
        Integers 0..255 in x's shape.
    """
    return to_levels(x, 256).astype(np.uint8)


def image_grid(images: NDArray[np.uint8], columns: int = 8, scale: int = 1, gap: int = 2, fill: int = 255) -> NDArray[np.uint8]:
    """Arrange images in rows of a picture.

    Parameters
    ----------
    images : uint8 array (N, C, H, W)
        Images of C = 1 or 3 channels.
    columns : int
        Images in a row. Default: 8.
    scale : int
        Factor by which each image is enlarged. Default: 1.
    gap : int
        Pixels between the images and around them. Default: 2.
    fill : int
        Value of the gaps, in 0..255. Default: 255.

    Returns
    -------
    uint8 array (height, width, C)
        The picture.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or shape or is out of range.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype != np.uint8 or not len(images):
        raise ValueError(f"images must be uint8 of shape (N, C, H, W) with C = 1 or 3, got {images.dtype} of {images.shape}")
    columns, scale = as_int("columns", columns, 1, 10_000), as_int("scale", scale, 1, 1_000)
    gap, fill = as_int("gap", gap, 0, 10_000), as_int("fill", fill, 0, 255)
    tiles = images.repeat(scale, axis=2).repeat(scale, axis=3)
    count, channels, height, width = tiles.shape
    rows = -(-count // columns)
    grid = np.full((gap + rows * (height + gap), gap + columns * (width + gap), channels), fill, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        grid[top : top + height, left : left + width] = tile.transpose(1, 2, 0)
    return grid


def save_png(picture: NDArray[np.uint8], file: Path) -> None:
    """Write a picture as a PNG file, which replaces an earlier one whole.

    Parameters
    ----------
    picture : uint8 array (height, width, C)
        A picture of C = 1 or 3 channels.
    file : Path
        The file to write.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    write(file, png(picture))


def png(picture: NDArray[np.uint8]) -> bytes:
    """The content of a PNG file."""
    from PIL import Image

    content = BytesIO()  # Pillow's own writing names neither the file nor a full disk
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(content, format="PNG")
    return content.getvalue()
