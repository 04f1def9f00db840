"""Images in arrays: in memory, and in files, ``.npy``, ``.npz`` and idx, gzipped or not.

A header's shape is compared with the file's size before memory is allocated, and nothing is unpickled. Large arrays that are
not compressed stay on the disk.
"""

from __future__ import annotations

import gzip
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from tinyddpm._io.files import open_regular, read_at, shown, size_of
from tinyddpm.training.data.sources import IN_MEMORY, Rows
from tinyddpm.training.data.values import Scale, level_type

__all__ = ["Block", "Stored", "archive", "array", "idx", "in_levels", "in_memory"]

_MAX_PACKED = 2**32
"""Largest number of bytes that a compressed file may unpack to."""
_PIECE = 2**24
_MOST_IMAGES = 2**24
_MAX_CLASSES = 2**24
_DAMAGE = (OSError, EOFError, ValueError, TypeError, KeyError, SyntaxError, RecursionError, OverflowError,
           NotImplementedError, RuntimeError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)  # fmt: skip

_IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_NUMBERS = "biuf"  # kinds of dtypes
_ROWS = 1024


@dataclass(frozen=True)
class Block:
    """An array in a file: numbers of `dtype` that begin at byte `start`; `order` is "C" or "F"."""

    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"] = "C"

    @property
    def size(self) -> int:
        """Bytes."""
        return self.dtype.itemsize * math.prod(self.shape)

    def of(self, content: bytes | bytearray) -> NDArray[Any]:
        """The array of these bytes."""
        return np.frombuffer(content, self.dtype).reshape(self.shape, order=self.order)

    def within(self, total: int) -> Block:
        """The block itself; `ValueError` unless it ends where the file of `total` bytes does."""
        if self.shape and self.shape[0] > _MOST_IMAGES:
            raise ValueError(f"must hold at most {_MOST_IMAGES} images, got {self.shape[0]}")
        if self.start + self.size != total:
            than = "less" if self.start + self.size > total else "more"
            raise ValueError(f"holds {than} than its header's shape {self.shape} of {self.dtype}")
        return self


@dataclass(frozen=True, eq=False)
class Stored:
    """The images of a large array as a source that reads them from the file."""

    file: Path
    block: Block
    shape: tuple[int, int, int]
    scale: Scale | None = None
    """How values become levels; if None, `read` returns the values themselves."""

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.block.dtype if self.scale is None else np.dtype(level_type(self.scale.levels))

    def __len__(self) -> int:
        return self.block.shape[0]

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The images `rows`; `ValueError` if the file has become shorter, or if its values have left their range."""
        one = replace(self.block, shape=self.block.shape[1:])
        images = np.empty((len(rows), *self.shape), self.block.dtype)
        with _named(self.file), open_regular(self.file) as stream:
            for image, row in zip(images, rows.tolist(), strict=True):
                content = read_at(stream, one.start + row * one.size, one.size)
                if len(content) != one.size:
                    raise ValueError("became shorter while it was in use")
                image[:] = _channels_first(one.of(content)[None])[0]
            if self.scale is None:
                return images
            if images.size and not self.scale.holds(images.min(), images.max()):
                raise ValueError("changed while it was in use")
            return self.scale.pixels(images)


class Found(NamedTuple):
    """The images' values, (N, C, H, W), their labels if there are any, and the classes' names if they have any."""

    values: Stored | NDArray[Any]
    labels: NDArray[np.int64] | None = None
    names: tuple[str, ...] = ()


def in_levels(
    found: Stored | NDArray[Any], name: str, levels: int | None, ends: tuple[float, float] | None
) -> tuple[Rows | NDArray[Any], Scale]:
    """The images on levels, and the values for which these stand; see `Scale.of`. Errors name the data as `name`."""
    with _named(name):
        if isinstance(found, np.ndarray):
            scale = Scale.of(found.dtype.kind, found.min().item(), found.max().item(), levels, ends, _whole(found))
            return scale.pixels(found), scale
        parts = (found.read(np.arange(k, min(k + _ROWS, len(found)))) for k in range(0, len(found), _ROWS))
        bounds = np.array([(part.min(), part.max(), _whole(part)) for part in parts], object)
        (least, most), whole = (bounds[:, 0].min().item(), bounds[:, 1].max().item()), bool(bounds[:, 2].all())
        scale = Scale.of(found.block.dtype.kind, least, most, levels, ends, whole)
        return Rows(replace(found, scale=scale), np.arange(len(found))), scale


def _whole(values: NDArray[Any]) -> bool:
    """Whether these are floats without fractions."""
    return values.dtype.kind == "f" and bool((values == np.floor(values)).all())


def in_memory(data: Any, labels: Any = None) -> Found:
    """The images of an array of NumPy or a Torch tensor, and the labels in another."""
    values = _host("data", data)
    with _named("the array"):
        values = _channels_first(values)
    return Found(values, None if labels is None else _labels(_host("labels", labels), len(values)))


def _host(name: str, data: Any) -> NDArray[Any]:
    """The array on the host."""
    if isinstance(data, np.ma.MaskedArray) or not hasattr(data, "__array__"):
        raise TypeError(f"{name} must be an array of NumPy or a Torch tensor, got {type(data).__name__}")
    if hasattr(data, "detach"):
        data = data.detach().cpu()
        data = data.float() if str(data.dtype) == "torch.bfloat16" else data
    return np.asarray(data)


def array(file: Path) -> Found:
    """The images of an ``.npy`` file."""
    with _named(file), open_regular(file) as stream:
        return Found(_images(file, stream, _npy(stream)))


def archive(file: Path) -> Found:
    """The images of an ``.npz`` file, and its labels and their names if there are any."""
    with _named(file), open_regular(file) as stream, zipfile.ZipFile(stream) as packed:
        names = [name.removesuffix(".npy") for name in packed.namelist()]
        named = [name for name in names if name != "class_names"]
        name = next((n for n in ("images", "x", "arr_0") if n in names), named[0] if len(named) == 1 else None)
        if name is None:
            raise ValueError(f"must have an array called images, got {', '.join(names) or 'none'}")
        images = _channels_first(_member(packed, name))
        beside = next((n for n in ("labels", "y", *(["arr_1"] if name == "arr_0" else [])) if n in names and n != name), None)
        labels = None if beside is None else _labels(_member(packed, beside), len(images))
        return Found(images, labels, _names(_member(packed, "class_names", "U"), labels) if "class_names" in names else ())


def idx(file: Path) -> Found:
    """The images of an idx file (MNIST's format), and the labels of the file with "labels" for "images" in its name."""
    with _named(file), _unpacked(file) as (stream, packed):
        block = _idx(stream, (2, 3, 4))
        images = _channels_first(block.of(_read(stream, block))) if packed else _images(file, stream, block)
    beside = file.with_name(file.name.replace("images", "labels").replace("idx3", "idx1"))
    if beside == file or not beside.is_file():
        return Found(images)
    with _named(beside), _unpacked(beside) as (stream, _):
        block = _idx(stream, (1,))
        return Found(images, _labels(block.of(_read(stream, block)), len(images)))


@contextmanager
def _unpacked(file: Path) -> Iterator[tuple[IO[bytes], bool]]:
    """The content of a file that may be gzipped, and whether it is."""
    with open_regular(file) as stream:
        packed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        with gzip.open(stream) if packed else nullcontext(stream) as content:
            yield cast(IO[bytes], content), packed


def _idx(stream: IO[bytes], axes: tuple[int, ...]) -> Block:
    """What an idx header describes: 0, 0, the type, the number of axes, their lengths."""
    head = stream.read(4)
    if len(head) != 4 or head[:2] != b"\0\0" or head[2] not in _IDX_TYPES or head[3] not in axes:
        kind = "labels" if axes == (1,) else "images"
        raise ValueError(f"must be a folder, .zip, .tar, .npy, .npz or idx file of {kind}")
    lengths = stream.read(4 * head[3])
    if len(lengths) != 4 * head[3]:
        raise ValueError("its header is cut short")
    return Block(4 + len(lengths), np.dtype(_IDX_TYPES[head[2]]), tuple(np.frombuffer(lengths, ">u4").tolist()))


def _npy(stream: IO[bytes], kinds: str = _NUMBERS) -> Block:
    """Read the header of an ``.npy`` stream: the block of its numbers, or of another of NumPy's `kinds`."""
    if np.lib.format.read_magic(stream) != (1, 0):  # the version of arrays of numbers; its header is short
        raise ValueError("must be an array file of version 1.0")
    shape, first_fastest, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.kind not in kinds or min(shape, default=0) < 0:
        what = "real numbers" if kinds == _NUMBERS else "names"
        raise ValueError(f"must hold {what}, got {dtype} of shape {shape}")
    return Block(stream.tell(), dtype, shape, "F" if first_fastest else "C")


def _member(packed: zipfile.ZipFile, name: str, kinds: str = _NUMBERS) -> NDArray[Any]:
    """An array of an ``.npz`` archive."""
    entry = next(e for e in packed.infolist() if e.filename.removesuffix(".npy") == name)
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} must be stored or deflated, got another compression")
    with packed.open(entry) as stream:
        block = _npy(stream, kinds).within(entry.file_size)
        return block.of(_read(stream, block))


def _images(file: Path, stream: IO[bytes], block: Block) -> Stored | NDArray[Any]:
    """The images of a block that ends the file, in memory if it is small."""
    block.within(size_of(stream))
    if block.size > IN_MEMORY and block.order == "F":
        raise ValueError(f"must be in C order, as np.ascontiguousarray makes it, above {IN_MEMORY} bytes, got {block.size}")
    if block.size <= IN_MEMORY:
        return _channels_first(block.of(_read(stream, block)))
    one = _channels_first(np.zeros((1, *block.shape[1:]), block.dtype))
    return Stored(file, block, (one.shape[1], one.shape[2], one.shape[3]))


def _read(stream: IO[bytes], block: Block) -> bytearray:
    """The bytes of a block, which must end the stream; memory grows with what is read, not with what the header says."""
    if block.size > _MAX_PACKED:
        raise ValueError(f"its shape {block.shape} of {block.dtype} must fit into memory")
    content = bytearray()
    while len(content) <= block.size and (piece := stream.read(min(block.size + 1 - len(content), _PIECE))):
        content += piece
    block.within(block.start + len(content))
    return content


def _channels_first(values: NDArray[Any]) -> NDArray[Any]:
    """The array as (N, C, H, W): of four axes the shorter of the second and the last is C; (N, H, W) and (N, L) have C = 1."""
    if values.dtype.kind not in _NUMBERS:
        raise ValueError(f"must hold real numbers, got {values.dtype}")
    if values.ndim == 2:
        values = values[:, None, :, None]
    elif values.ndim == 3:
        values = values[:, None]
    elif values.ndim == 4 and values.shape[3] < values.shape[1]:
        values = values.transpose(0, 3, 1, 2)
    if values.ndim != 4 or not values.size:
        raise ValueError(f"must have shape (N, L), (N, H, W), (N, H, W, C) or (N, C, H, W), got {values.shape}")
    return values


def _labels(labels: NDArray[Any], count: int) -> NDArray[np.int64]:
    top = _MAX_CLASSES - 1
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        remedy = "; labels.astype(int) makes integers of whole numbers" if labels.dtype.kind == "f" else ""
        raise ValueError(f"labels must be {count} integers, got {labels.dtype} of shape {labels.shape}{remedy}")
    least, most = labels.min(), labels.max()
    if least < 0 or most > top:
        raise ValueError(f"labels must be integers 0..{top}, got {least}..{most}")
    return labels.astype(np.int64)


def _names(names: NDArray[Any], labels: NDArray[np.int64] | None) -> tuple[str, ...]:
    """The classes' names, one for each number."""
    found = tuple(map(str, names.ravel().tolist()))
    least = 0 if labels is None else int(labels.max()) + 1
    if names.ndim != 1 or len(set(found)) < len(found) or "" in found or len(found) < least:
        raise ValueError(f"class_names must be {least} or more names that differ, got {len(found)}")
    return found if labels is not None else ()


@contextmanager
def _named(file: Path | str) -> Iterator[None]:
    """Turn any error of reading damaged data into a `ValueError` that names the file."""
    try:
        yield
    except _DAMAGE as error:
        if str(error).startswith("data: "):  # named already
            raise
        text = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        raise ValueError(f"data: {shown(file)}: {shown(text)}") from None
