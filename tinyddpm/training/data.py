"""Where images come from: scikit-learn's digits, a folder, an array file, an idx file.

Whatever the source, images are integers 0..levels-1 of shape (N, C, H, W), and the network sees them in [-1, 1].
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyddpm._array import real

__all__ = ["Images", "load"]

_GOLDEN = 0.6180339887498949
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"})
_MAX_BYTES = 2**36


@dataclass(frozen=True, eq=False)
class Images:
    """Images as integers 0..levels-1: `pixels` (N, C, H, W), and optionally `labels` (N,), integers from 0."""

    pixels: NDArray[Any]
    levels: int = 256
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """One image's (channels, height, width)."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def scaled(self, rows: Any = slice(None)) -> NDArray[np.float32]:
        """The images `rows` as the network sees them: level k at 2 k / (levels - 1) - 1."""
        return np.asarray(self.pixels[rows] * (2 / (self.levels - 1)) - 1, np.float32)

    def rows(self, which: Any) -> Images:
        """Some of the images."""
        return replace(self, pixels=self.pixels[which], labels=None if self.labels is None else self.labels[which])

    def split(self, held_out: float = 0.1) -> tuple[Images, Images]:
        """The images to train on, and about the share `held_out` of them that training never sees.

        Image i is held out where the fractional part of i times the golden ratio is at least ``1 - held_out``: evenly
        spread, the same everywhere and always, and unchanged for the first images when others follow.
        """
        share = real("held_out", held_out, 0, 1)
        out = np.arange(len(self)) * _GOLDEN % 1 >= 1 - share
        return self.rows(~out), self.rows(out)


def load(source: str | os.PathLike[str]) -> Images:
    """The images that `source` names.

    "digits": scikit-learn's 1797 digits, 8x8, 17 levels. A folder: every image below it, in the order of the names; its
    own folders are the labels. ``.npy`` or ``.npz``: integers 0..255 of shape (N, H, W), (N, H, W, C) or
    (N, C, H, W), with C up to 4; in an ``.npz`` the array ``images``, ``x`` or the only
    one, and ``labels`` or ``y``. Else an idx file, which may be gzipped.

    Raises `FileNotFoundError` where nothing is there and `ValueError` for what can't be read, naming the file.
    """
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"data: a name or a path is needed, not {type(source).__name__}")
    if source == "digits":
        return _digits()
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"data: {path}: there is no such file or folder (and no source but 'digits')")
    reader: Callable[[Path], Images] = {".npy": _array, ".npz": _archive}.get(path.suffix.lower(), _idx)
    try:
        return reader(path)
    except MemoryError:
        raise ValueError(f"data: {path}: does not fit into memory") from None


def _digits() -> Images:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    return Images(digits.images.astype(np.uint8)[:, None], levels=17, labels=digits.target.astype(np.int64))


def _folder(folder: Path) -> Images:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and not p.name.startswith("."))
    if not files:
        raise ValueError(f"data: {folder}: holds no image ({', '.join(sorted(_SUFFIXES))})")
    first = _image(files[0])
    if len(files) * first.nbytes * 3 > _MAX_BYTES:
        raise ValueError(f"data: {folder}: {len(files)} images of {first.shape[:2]} do not fit into memory")
    pictures = [first]
    for file in files[1:]:
        picture = _image(file)
        if picture.shape[:2] != first.shape[:2]:
            size, own = ("x".join(map(str, p.shape[1::-1])) for p in (first, picture))
            raise ValueError(f"data: {file}: is {own}, but {files[0].name} is {size}; all images must have one size")
        pictures.append(picture)
    channels = max(p.shape[2] for p in pictures)  # grey ones among coloured ones become coloured
    pixels = np.stack([np.broadcast_to(p, (*p.shape[:2], channels)) for p in pictures])
    names = sorted({f.relative_to(folder).parts[0] for f in files if f.parent != folder})
    labelled = names and all(f.parent != folder for f in files)
    labels = [names.index(f.relative_to(folder).parts[0]) for f in files] if labelled else None
    return Images(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), 256, None if labels is None else np.array(labels))


def _image(file: Path) -> NDArray[np.uint8]:
    """(height, width, 1 or 3): turned as its EXIF says, grey where the file is, transparent parts on black."""
    import warnings

    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                if opened.mode.startswith(("I", "F")):
                    raise ValueError(f"has {opened.mode} pixels; 8 bits per channel are needed")
                picture = ImageOps.exif_transpose(opened)
                grey = picture.mode in ("1", "L", "LA")
                if picture.mode == "P" or "A" in picture.mode:
                    picture = picture.convert("RGBA")
                    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
                array = np.asarray(picture.convert("L" if grey else "RGB"))
    except UnidentifiedImageError:
        raise ValueError(f"data: {file}: is no image that Pillow can read") from None
    except (OSError, ValueError, SyntaxError, EOFError, zlib.error, Image.DecompressionBombWarning,
            Image.DecompressionBombError) as error:  # fmt: skip
        raise ValueError(f"data: {file}: {error}") from None
    return array.reshape(*array.shape[:2], -1)


def _array(file: Path) -> Images:
    try:
        with open(file, "rb") as stream:
            pixels = np.load(stream, allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        raise ValueError(f"data: {file}: is no array file: {error}") from None
    if not isinstance(pixels, np.ndarray):
        raise ValueError(f"data: {file}: is no array file")
    return Images(_channels_first(file, pixels))


def _archive(file: Path) -> Images:
    from zipfile import BadZipFile

    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
            names = stored.files
            name = next((n for n in ("images", "x") if n in names), names[0] if len(names) == 1 else None)
            if name is None:
                raise ValueError(f"its arrays are {', '.join(names) or 'none'}; one must be called images")
            pixels = stored[name]
            labels = next((stored[n] for n in ("labels", "y") if n in names and n != name), None)
    except (ValueError, TypeError, OSError, EOFError, KeyError, SyntaxError, BadZipFile, zlib.error) as error:
        raise ValueError(f"data: {file}: {error}") from None
    images = Images(_channels_first(file, pixels))
    return images if labels is None else replace(images, labels=_labels(file, labels, len(pixels)))


def _labels(file: Path, labels: NDArray[Any], count: int) -> NDArray[np.int64]:
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
        raise ValueError(f"data: {file}: labels must be {count} integers from 0, not {labels.dtype} of {labels.shape}")
    return labels.astype(np.int64)


def _idx(file: Path) -> Images:
    """The format of MNIST and its relatives: 0, 0, type 8 (uint8), the number of axes, their lengths, the bytes."""
    try:
        with open(file, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(file) if packed else open(file, "rb") as stream:
            head = stream.read(4)
            if len(head) != 4 or head[:3] != b"\0\0\x08" or head[3] not in (3, 4):
                raise ValueError("is no folder, .npy, .npz or idx file of uint8 images")
            shape = tuple(int(n) for n in np.frombuffer(stream.read(4 * head[3]), ">u4"))
            size = int(np.prod(shape, dtype=object))
            if len(shape) != head[3] or size > _MAX_BYTES:
                raise ValueError(f"its header gives the shape {shape}")
            content = _read(stream, size + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"data: {file}: {error}") from None
    if len(content) != size:
        raise ValueError(f"data: {file}: holds {'more' if len(content) > size else 'less'} than its header's {shape}")
    return Images(_channels_first(file, np.frombuffer(content, np.uint8).reshape(shape)))


def _read(stream: Any, size: int) -> bytearray:
    """Up to `size` bytes, in pieces: what a header promises is not allocated before it is there."""
    content = bytearray()
    while len(content) < size and (piece := stream.read(min(size - len(content), 2**24))):
        content += piece
    return content


def _channels_first(file: Path, pixels: NDArray[Any]) -> NDArray[np.uint8]:
    if pixels.dtype.kind not in "iu" or (pixels.size and not 0 <= pixels.min() <= pixels.max() <= 255):
        raise ValueError(f"data: {file}: holds {pixels.dtype}; integers 0..255 are needed")
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4 and pixels.shape[3] <= 4 < pixels.shape[1]:
        pixels = pixels.transpose(0, 3, 1, 2)
    if pixels.ndim != 4 or not 1 <= pixels.shape[1] <= 4 or not pixels.size:
        raise ValueError(f"data: {file}: has shape {pixels.shape}; (N, H, W), (N, H, W, C) or (N, C, H, W) is needed")
    return np.ascontiguousarray(pixels, np.uint8)
