"""One picture: what its header says, its pixels, its size made to order. Everything else is refused, naming the file.

Pillow tells formats by their content, so it is told which ones may be: no reader of another format, some of which run
programs, ever sees a file.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["SUFFIXES", "Header", "careful", "decode", "fit", "look"]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"})
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Header:
    """The size and the channels, 1 or 3, that `decode` will give."""

    height: int
    width: int
    channels: int


def look(stream: BinaryIO, name: str) -> Header:
    """What the header of the image file `stream`, called `name` in errors, says; no pixel is decoded."""
    from PIL import ImageOps

    with _opened(stream, name) as picture:
        width, height = picture.size
        # Pillow would decode a PNG to look for EXIF behind the pixels.
        known = picture.format != "PNG" or "exif" in picture.info
        if known and picture.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8):
            # Whether a TIFF's size is turned already depends on Pillow's version.
            tiff = picture.format == "TIFF"
            width, height = ImageOps.exif_transpose(picture).size if tiff else (height, width)
        return Header(height, width, 1 if _grey(picture) else 3)


def decode(stream: BinaryIO, name: str) -> NDArray[np.uint8]:
    """(height, width, 1 or 3): turned as its EXIF says, grey where the file is, transparent parts on black."""
    from PIL import Image, ImageOps

    with _opened(stream, name) as opened:
        grey = _grey(opened)
        picture = ImageOps.exif_transpose(opened)
        if picture.mode == "P" or "a" in picture.mode.lower() or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
        array = np.asarray(picture.convert("L" if grey else "RGB"))
    return array.reshape(*array.shape[:2], -1)


def fit(picture: NDArray[np.uint8], size: tuple[int, int], top: int = 255) -> NDArray[np.uint8]:
    """The largest centred part of the shape of `size` (height, width), made that size; values are 0..`top`.

    An antialiased bicubic filter in floating point, rounded once, to the nearest.
    """
    from PIL import Image

    if picture.shape[:2] == size:
        return picture
    height, width = picture.shape[:2]
    scale = min(height / size[0], width / size[1])
    tall, wide = min(scale * size[0], height), min(scale * size[1], width)
    y, x = (height - tall) / 2, (width - wide) / 2
    fitted = np.empty((*size, picture.shape[2]), np.uint8)
    for c in range(picture.shape[2]):
        plane = Image.fromarray(picture[..., c].astype(np.float32))
        resized = plane.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=(x, y, x + wide, y + tall))
        fitted[..., c] = np.rint(np.clip(np.asarray(resized), 0, top))
    return fitted


@contextmanager
def careful() -> Iterator[None]:
    """Within the block a picture so large that Pillow would only warn is refused too. One thread at a time."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextmanager
def _opened(stream: BinaryIO, name: str) -> Iterator[Image]:
    """The open picture; whatever goes wrong with it in the block is a `ValueError` that names it."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(stream, formats=_FORMATS) as picture:
            if _deep(picture):
                raise ValueError(f"has more than 8 bits per channel ({picture.mode}); 8 bits are needed")
            yield picture
    except UnidentifiedImageError:
        raise ValueError(f"data: {name}: is no {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]} image") from None
    except Exception as error:  # on damaged files Pillow's readers raise nearly everything
        raise ValueError(f"data: {name}: {' '.join(str(error).split()) or type(error).__name__}") from None


def _deep(picture: Image) -> bool:
    """Whether a channel has more than 8 bits, of which Pillow drops some without a word in "RGB;16B" and its like."""
    stored = " ".join(str(tile[3]) for tile in getattr(picture, "tile", ()))
    wide = picture.format == "PPM" and any(int(n) > 255 for n in re.findall(r"\d+", stored))
    return wide or picture.mode.startswith(("I", "F")) or re.search(r";16[BLN]", stored) is not None


def _grey(picture: Image) -> bool:
    return picture.mode in ("1", "L", "LA", "La")
