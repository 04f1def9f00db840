"""One image file: its header, its pixels, and fitting them to a size. Errors name the file.

Pillow recognises formats by content. It gets a list of those allowed, as some readers of others run programs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from tinyddpm._io.files import shown
from tinyddpm.training.data.bounds import Bounded, refuse_long, refuse_scans
from tinyddpm.training.data.deep import deep_pixels, is_deep, is_grey_with_alpha, kind_of, refuse_unreadable

if TYPE_CHECKING:
    from PIL.Image import Exif, Image

__all__ = ["SUFFIXES", "Header", "decode", "fit", "read_header", "refusing_oversized"]

SUFFIXES = frozenset({
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff",
    ".avif", ".tga",
})  # fmt: skip
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF", "AVIF")
_ORIENTATION = 0x0112
_MAX_CHUNKS = 2**16


@dataclass(frozen=True)
class Header:
    """The size of the array that `decode` returns; `channels` is 1 or 3, and `kind` its dtype."""

    height: int
    width: int
    channels: int
    kind: Literal["u1", "u2", "f8"] = "u1"


def read_header(stream: BinaryIO, name: str) -> Header:
    """The header of an image file, which errors call `name`; no pixel is decoded."""
    from PIL import ImageOps

    with _open_picture(stream, name) as picture:
        width, height = picture.size
        # For EXIF behind a PNG's pixels, Pillow would decode them.
        late = picture.format == "PNG" and "exif" not in picture.info
        if (_late_exif(stream) if late else picture.getexif()).get(_ORIENTATION, 1) in (5, 6, 7, 8):
            # Some versions of Pillow have already turned a TIFF's size.
            tiff = picture.format == "TIFF"
            width, height = ImageOps.exif_transpose(picture).size if tiff else (height, width)
        return Header(height, width, 1 if _grey(picture) else 3, kind_of(picture))


def decode(stream: BinaryIO, name: str, background: str = "black") -> NDArray[Any]:
    """The pixels (height, width, C), turned as EXIF says, before the background; C is 1 if the file is grey, else 3.

    They are uint8, uint16 if the file has 16 bits a channel, or float64 if a TIFF holds other numbers.
    """
    from PIL import Image, ImageOps

    with _open_picture(stream, name) as stored:
        refuse_scans(stored, stream)
        if is_deep(stored):
            return deep_pixels(stored, stream, background)
        grey = _grey(stored)
        picture = ImageOps.exif_transpose(stored)
        if picture.mode == "P" or "a" in picture.mode.lower() or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, background), picture)
        array = np.asarray(picture.convert("L" if grey else "RGB"))
    return array.reshape(*array.shape[:2], -1)


def fit(picture: NDArray[Any], size: tuple[int, int], top: int = 255) -> NDArray[Any]:
    """The largest centred part with the shape of `size` (height, width), resized to it; values are 0..`top`.

    The filter is bicubic and antialiased, in floating point, and the result is rounded once, to the nearest.
    """
    from PIL import Image

    if picture.shape[:2] == size:
        return picture
    height, width = picture.shape[:2]
    scale = min(height / size[0], width / size[1])
    tall, wide = min(scale * size[0], height), min(scale * size[1], width)
    y, x = (height - tall) / 2, (width - wide) / 2
    fitted = np.empty((*size, picture.shape[2]), picture.dtype)
    for c in range(picture.shape[2]):
        plane = Image.fromarray(picture[..., c].astype(np.float32))
        resized = plane.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=(x, y, x + wide, y + tall))
        fitted[..., c] = np.rint(np.clip(np.asarray(resized), 0, top))
    return fitted


@contextmanager
def refusing_oversized() -> Iterator[None]:
    """Within the block, refuse pictures so large that Pillow would warn. Not for several threads at a time."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextmanager
def _open_picture(stream: BinaryIO, name: str) -> Iterator[Image]:
    """Open a picture; any error in the block becomes a `ValueError` that names the file."""
    from PIL import Image, UnidentifiedImageError

    try:
        bounded: Any = Bounded(stream)
        with Image.open(bounded, formats=_formats(name)) as picture:
            refuse_long(picture)
            if is_deep(picture):
                refuse_unreadable(picture)
            yield picture
    except UnidentifiedImageError:
        raise ValueError(f"data: {name}: must be a {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]} image") from None
    except Exception as error:  # on damaged files Pillow's readers raise nearly everything
        raise ValueError(f"data: {name}: {shown(' '.join(str(error).split())) or type(error).__name__}") from None


def _late_exif(stream: BinaryIO) -> Exif:
    """The EXIF of a PNG, by its chunks."""
    from PIL import Image

    exif, place = Image.Exif(), 8
    for _ in range(_MAX_CHUNKS):
        stream.seek(place)
        head = stream.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or kind == b"IEND":
            return exif
        if kind == b"eXIf" and length < 2**16:
            exif.load(stream.read(length))
            return exif
        place += 12 + length
    return exif


def _formats(name: str) -> tuple[str, ...]:
    """The formats that a file may have; TGA's content has no mark, so that its name must tell."""
    from PIL import Image

    if name.lower().endswith(".tga"):
        return ("TGA",)
    Image.preinit()
    if "AVIF" not in Image.OPEN:
        Image.init()
    return tuple(form for form in _FORMATS if form in Image.OPEN)


def _grey(picture: Image) -> bool:
    return picture.mode.startswith(("I", "F")) or picture.mode in ("1", "L", "LA", "La") or is_grey_with_alpha(picture)
