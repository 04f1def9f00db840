"""What a picture's file may ask of its reader: bytes, parts, sides and passes, so that none takes more than its pixels do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["MAX_FILE", "Bounded", "refuse_long", "refuse_scans"]

MAX_FILE = 2**28  # bytes of one image file
_PARTS, _BYTES_A_PART = 2**16, 2**10
_MAX_SIDE = 2**16
_PASSES = 2**30  # pixels that a JPEG's scans may go over, together


class Bounded:
    """A picture's stream whose reads are counted: a header of a million empty parts, or of one long comment, is refused."""

    def __init__(self, stream: BinaryIO) -> None:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        if size > MAX_FILE:
            raise ValueError(f"must have at most {MAX_FILE} bytes, got {size}")
        self._stream, self._left = stream, _PARTS + size // _BYTES_A_PART

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        self._left -= 1
        if self._left < 0:
            raise ValueError("must have fewer parts for its length")
        return self._stream.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def refuse_long(picture: Image) -> None:
    """Raise ValueError if a side is longer than any camera's."""
    if max(picture.size) > _MAX_SIDE:
        raise ValueError(f"must have sides of at most {_MAX_SIDE} pixels, got {picture.width}x{picture.height}")


def refuse_scans(picture: Image, stream: BinaryIO) -> None:
    """Raise ValueError if a JPEG is drawn over and over: each of its scans goes over all pixels."""
    if picture.format not in ("JPEG", "MPO"):
        return
    place, last, scans = stream.tell(), b"", 0
    stream.seek(0)
    while piece := stream.read(2**20):
        scans += (last + piece).count(b"\xff\xda")
        last = piece[-1:]
    stream.seek(place)
    if scans * picture.width * picture.height > _PASSES:
        raise ValueError(f"must have fewer scans of {picture.width}x{picture.height} pixels, got {scans}")
