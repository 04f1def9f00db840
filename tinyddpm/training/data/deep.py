"""Pictures with 16 bits a channel: grey ones as Pillow reads them, colour ones in two passes, as it keeps 8 bits of them."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["deep_pixels", "is_deep", "is_grey_with_alpha", "kind_of", "refuse_unreadable"]

_TOP = 2**16 - 1
_GREYS = ("I;16", "I;16B", "I;16L", "I;16N")
_COLOURS = r"(RGB|RGBA|LA);16[BLN]"
_OTHER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def is_deep(picture: Image) -> bool:
    """Whether a channel has more than 8 bits; Pillow silently drops some of them in modes such as "RGB;16B"."""
    stored = " ".join(map(str, _stored(picture)))
    wide = picture.format == "PPM" and any(int(n) > 255 for n in re.findall(r"\d+", stored))
    return wide or picture.mode.startswith(("I", "F")) or re.search(r";16[BLN]", stored) is not None


def kind_of(picture: Image) -> Literal["u1", "u2", "f8"]:
    """What the picture holds: bytes, 16 bits, or measured values, which are floats, signed, or of 32 bits."""
    if picture.format == "TIFF" and picture.mode in ("F", "I"):
        return "f8"
    return "u2" if is_deep(picture) else "u1"


def refuse_unreadable(picture: Image) -> None:
    """Raise `ValueError` for a deep picture that `deep_pixels` does not read."""
    grey = picture.mode in _GREYS or (picture.format == "PPM" and picture.mode == "I") or kind_of(picture) == "f8"
    if not grey and not (picture.format in ("PNG", "TIFF") and re.fullmatch(_COLOURS, str(_stored(picture)[0]))):
        kept = f"{picture.mode}, stored as {_stored(picture)[0]}" if _stored(picture) else picture.mode
        raise ValueError(f"must have 8 or 16 bits a channel, in a PNG, TIFF or PGM, got {kept}; an .npy array can hold others")


def is_grey_with_alpha(picture: Image) -> bool:
    """Whether it is one that Pillow takes for a colour picture."""
    return str(_stored(picture)[0]) == "LA;16B" if _stored(picture) else False


def deep_pixels(picture: Image, stream: BinaryIO, background: str) -> NDArray[Any]:
    """The pixels (height, width, 1 or 3) of a picture that is open in `stream`, turned as EXIF says, before the background."""
    from PIL import Image, ImageColor, ImageOps

    if kind_of(picture) == "f8":
        return np.asarray(ImageOps.exif_transpose(picture)).astype(np.float64)[..., None]
    key = picture.info.get("transparency")
    if picture.mode in (*_GREYS, "I"):
        planes = np.asarray(ImageOps.exif_transpose(picture)).astype(np.uint16)[..., None]
    elif is_grey_with_alpha(picture):  # its four bytes, taken for four channels
        _reread(picture, "RGBA")
        high_low = np.asarray(ImageOps.exif_transpose(picture)).astype(np.uint16)
        planes = 256 * high_low[..., ::2] + high_low[..., 1::2]
    else:
        mode = str(_stored(picture)[0])
        high = np.asarray(ImageOps.exif_transpose(picture)).astype(np.uint16)
        stream.seek(0)
        with Image.open(stream, formats=[str(picture.format)]) as again:
            _reread(again, mode[:-1] + _OTHER[mode[-1]])
            planes = 256 * high + np.asarray(ImageOps.exif_transpose(again))
    alpha = None if key is None else np.where((planes == np.array(key)).all(axis=-1, keepdims=True), 0, _TOP)
    if planes.shape[-1] in (2, 4):
        planes, alpha = planes[..., :-1], planes[..., -1:]
    if alpha is None:
        return planes
    behind: Any = 257 * np.array(ImageColor.getrgb(background)[:3], np.int64)
    if planes.shape[-1] == 1:
        behind = (behind @ np.array([19_595, 38_470, 7471]) + 2**15) >> 16
    weight = alpha.astype(np.int64)
    return np.asarray((planes * weight + behind * (_TOP - weight) + _TOP // 2) // _TOP, np.uint16)


def _stored(picture: Image) -> tuple[Any, ...]:
    """What Pillow's reader is told of the stored bytes; their layout, such as "RGB;16B", comes first."""
    for tile in getattr(picture, "tile", ()):
        return tuple(tile[3]) if isinstance(tile[3], tuple) else (tile[3],)
    return ()


def _reread(picture: Any, layout: str) -> None:
    """Have the picture's bytes read in another layout, of as many bits a pixel."""
    picture.tile = [
        tile._replace(args=(layout, *tile.args[1:]) if isinstance(tile.args, tuple) else layout) for tile in picture.tile
    ]
