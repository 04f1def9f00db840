"""Images that are read when they are needed: selections of a source, and image files decoded by threads.

Threads suffice: Pillow releases the interpreter's lock while it decodes. They copy no pixels between processes, and nothing
outlives a killed run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, BinaryIO, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tinyddpm.training.data.pictures import Header, decode, fit, read_header, refusing_oversized

__all__ = ["IN_MEMORY", "Files", "Mapped", "Pictures", "Rows", "Source", "each", "fit_all", "open_pictures", "toned"]

IN_MEMORY = 2**28
"""Bytes up to which images are kept in memory."""
_BLOCK = 1024
_T = TypeVar("_T")


class Source(Protocol):
    """`len` images of one shape (channels, height, width)."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The images `rows`, (len(rows), *shape)."""
        ...


class Files(Protocol):
    """`len` image files, in a folder or in archives."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """The name of file i in errors."""
        ...

    def open(self, i: int) -> BinaryIO:
        """Open file i; `OSError` or `ValueError` if it cannot be read."""
        ...


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows `index` of a source; indexing as an array (N, C, H, W) reads the chosen images."""

    source: Source
    index: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return len(self.index), *self.source.shape

    def __len__(self) -> int:
        return len(self.index)

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of what indexing gives."""
        return self.source.dtype

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        chosen = self.index[rows]
        return self.source.read(chosen.reshape(-1)).reshape(*chosen.shape, *self.source.shape)

    def take(self, which: Any) -> Rows:
        """Some of the rows; nothing is read."""
        return replace(self, index=self.index[which])


@dataclass(frozen=True, eq=False)
class Mapped:
    """A source's images as a function makes them of those that are read."""

    source: Source
    shape: tuple[int, int, int]
    function: Callable[[NDArray[Any]], NDArray[Any]]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.source.dtype

    def __len__(self) -> int:
        return len(self.source)

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        return self.function(self.source.read(rows))


def toned(pixels: NDArray[Any], channels: int) -> NDArray[Any]:
    """Images (N, 1 or 3, H, W) in one channel, by the weights of ITU-R 601-2 as Pillow rounds them, or in three equal ones."""
    if pixels.shape[1] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=1)
    red, green, blue = (pixels[:, c : c + 1].astype(np.int64) for c in range(3))
    return ((19_595 * red + 38_470 * green + 7471 * blue + 2**15) >> 16).astype(pixels.dtype)


def fit_all(pixels: NDArray[Any], size: tuple[int, int], top: int = 255) -> NDArray[Any]:
    """Images (N, C, H, W) at that size."""
    images = np.empty((*pixels.shape[:2], *size), pixels.dtype)
    for image, original in zip(images, pixels, strict=True):
        image[:] = fit(original.transpose(1, 2, 0), size, top).transpose(2, 0, 1)
    return images


@dataclass(frozen=True, eq=False)
class Pictures:
    """Image files as a source: `shape` is the (channels, height, width) to which each is fitted.

    If one has 16 bits, so have all: 8-bit values are multiplied by 257, which takes 255 to 65535. Other numbers stay as they are.
    """

    files: Files
    shape: tuple[int, int, int]
    workers: int
    background: str = "black"
    kind: str = "u1"
    levels: int = 2**16
    """More than each value."""

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.kind)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The images `rows`, decoded by `workers` threads; `ValueError` names a file that cannot be decoded."""
        images = np.empty((len(rows), *self.shape), self.dtype)
        for image, decoded in zip(images, each(self.image, rows.tolist(), self.workers), strict=True):
            image[:] = decoded
        return images

    def image(self, row: int) -> NDArray[Any]:
        """One image; a grey one is repeated over the channels of `shape`."""
        decoded = _with(partial(decode, background=self.background), self.files, row)
        if self.kind == "u2" and decoded.dtype == np.uint8:
            decoded = 257 * decoded.astype(np.uint16)
        measured = self.kind == "f8"
        picture = (decoded if measured else fit(decoded, self.shape[1:], np.iinfo(decoded.dtype).max)).transpose(2, 0, 1)
        if picture.shape[1:] != self.shape[1:] or len(picture) > self.shape[0] or picture.dtype != self.dtype:
            raise ValueError(f"data: {self.files.name(row)}: changed after its header was read")
        if not measured and (most := picture.max()) >= self.levels:
            raise ValueError(
                f"data: {self.files.name(row)}: levels must be more than its largest value, {most}, got {self.levels}"
            )
        return np.broadcast_to(picture, self.shape)

    def fault(self, row: int) -> str:
        """Why an image cannot be read; empty if it can."""
        try:
            self.image(row)
        except ValueError as error:
            return str(error)
        return ""


def open_pictures(
    files: Files, size: tuple[int, int] | None, skip: bool, workers: int, background: str
) -> tuple[Rows | NDArray[Any], NDArray[np.int64], tuple[str, ...]]:
    """The images of the files, in memory if they are few; the numbers of these files; the errors of the files left out.

    Without `size`, all images must have the same size. With `skip`, every file is decoded once and left out if that fails.
    Without `skip`, only headers are read; a file with damaged pixels raises when it is used.
    """
    headers, bad = _headers(files, skip)
    _refuse_none(len(headers), bad)
    (first, one), channels = next(iter(headers.items())), max(header.channels for header in headers.values())
    kinds = {header.kind: files.name(i) for i, header in reversed(headers.items())}
    if "f8" in kinds and len(kinds) > 1:
        other = next(name for kind, name in kinds.items() if kind != "f8")
        raise ValueError(f"data: {kinds['f8']}: must have 8 or 16 bits a channel, as {other} has")
    measured = "f8" in kinds
    for i, header in headers.items() if size is None or measured else ():
        if (header.height, header.width) != (one.height, one.width):
            size_i, size_1 = f"{header.width}x{header.height}", f"{one.width}x{one.height}"
            what = f"is {size_i}, but {files.name(first).rpartition('/')[2]} is {size_1}"
            raise ValueError(f"data: {files.name(i)}: {what}; image_size must be given if images differ in size")
    shape = (channels, *((one.height, one.width) if size is None or measured else size))
    source = Pictures(files, shape, workers, background, max(kinds) if not measured else "f8")
    kept = list(headers)
    if skip:
        bad |= {i: fault for i, fault in zip(kept, each(source.fault, kept, workers), strict=True) if fault}
        kept = [i for i in kept if i not in bad]
        _refuse_none(len(kept), bad)
    rows = Rows(source, np.array(kept, np.int64))
    small = math.prod(rows.shape) * source.dtype.itemsize <= IN_MEMORY
    return rows[:] if small else rows, rows.index, tuple(bad[i] for i in sorted(bad))


def each(function: Callable[[int], _T], items: Sequence[int], workers: int) -> Iterator[_T]:
    """Map a function over items with threads, in order, one block of items at a time."""
    if workers < 2 or len(items) < 2:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers, "tinyddpm-images") as pool:
        for start in range(0, len(items), _BLOCK):
            yield from pool.map(function, items[start : start + _BLOCK])


def _headers(files: Files, skip: bool) -> tuple[dict[int, Header], dict[int, str]]:
    """The files' headers and, with `skip`, the errors of the files without one."""
    headers, bad = dict[int, Header](), dict[int, str]()
    with refusing_oversized():
        for i in range(len(files)):
            try:
                headers[i] = _with(read_header, files, i)
            except ValueError as error:
                if not skip:
                    raise
                bad[i] = str(error)
    return headers, bad


def _refuse_none(count: int, bad: dict[int, str]) -> None:
    if not count:
        raise ValueError(f"{bad[0]}; none of the {len(bad)} images can be read")


def _with(read: Callable[[BinaryIO, str], _T], files: Files, i: int) -> _T:
    """Apply `read` to file i."""
    try:
        with files.open(i) as stream:
            return read(stream, files.name(i))
    except (OSError, ValueError) as error:
        if (reason := getattr(error, "strerror", None)) is None:
            raise
        raise ValueError(f"data: {files.name(i)}: {reason}") from None
