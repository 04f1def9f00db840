"""Pictures as a command's input: read, cropped and resized to the model's shape, with a line that says so."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyddpm._io.files import open_regular
from tinyddpm._io.progress import say
from tinyddpm.nn.weights import as_path
from tinyddpm.training import Run
from tinyddpm.training.data.pictures import decode, fit, refusing_oversized
from tinyddpm.training.data.sources import toned


def read_picture(name: str, file: str, model: Run, *, quiet: bool) -> NDArray[np.float32]:
    """Return a picture as the model takes it, in [-1, 1], on the background and levels of its data; say what was changed."""
    (channels, *size), levels = model.shape, model.config.levels
    stored = _decoded(name, file, model.config.background or "black")
    picture, changes = stored, list[str]()
    top = _top(stored)
    if levels is not None and levels <= top and stored.max() < levels:
        top = levels - 1
        changes.append(f"values 0..{top} are black to white, as the model's data")
    if stored.shape[2] != channels:
        changes.append("made grey" if channels == 1 else "grey, in three equal channels")
        picture = _grey(stored) if channels == 1 else stored.repeat(3, axis=2)
    if stored.shape[:2] != tuple(size):
        cropped = "" if stored.shape[0] * size[1] == stored.shape[1] * size[0] else "cropped and "
        changes.append(f"{cropped}resized from {stored.shape[1]}x{stored.shape[0]} to {size[1]}x{size[0]}")
    if changes and not quiet:
        say(f"{name}: {file}: {', '.join(changes)}")
    return np.asarray(fit(picture, (size[0], size[1]), top).transpose(2, 0, 1) * (2 / top) - 1, np.float32)


def read_mask(name: str, file: str, image: tuple[str, str], shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Return where a mask is black, as (1, 1, height, width): there the image, given by its name and file, is kept."""
    mask, expected = _grey(_decoded(name, file)), _decoded(*image).shape[:2]
    if mask.shape[:2] != expected:
        given, wanted = (f"{width}x{height}" for height, width in (mask.shape[:2], expected))
        raise ValueError(f"{name} must have the size of the image, {wanted}, got {given}")
    keep = fit(mask, (shape[1], shape[2]), _top(mask))[None, None, ..., 0] < (_top(mask) + 1) // 2
    if keep.all():
        raise ValueError(f"{name} must have white parts, which are filled in, got {file} without any")
    return np.asarray(keep)


def _decoded(name: str, file: str, background: str = "black") -> NDArray[Any]:
    """A file's pixels (height, width, C); errors begin with the argument's name."""
    try:
        with open_regular(as_path(name, file)) as stream, refusing_oversized():
            pixels = decode(stream, file, background)
        if pixels.dtype.kind == "f":
            raise ValueError(f"{file}: must have 8 or 16 bits a channel")
        return pixels
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{name}: {str(error).removeprefix('data: ')}") from None


def _top(picture: NDArray[Any]) -> int:
    """The value of white: 255, or 65535 of a picture with 16 bits."""
    return int(np.iinfo(picture.dtype).max)


def _grey(picture: NDArray[Any]) -> NDArray[Any]:
    """The picture (height, width, C) in one channel."""
    return np.asarray(toned(picture.transpose(2, 0, 1)[None], 1)[0].transpose(1, 2, 0))
