"""Where images come from: scikit-learn's digits, folders, tar archives, array and idx files.

Whatever the source, images are integers 0..levels-1 of shape (N, C, H, W), and the network sees them in [-1, 1]. Small
sets are kept in memory; of large ones only what is asked for is read, ahead of time where the order is known.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyddpm._arrays.check import as_int, as_real, one_of
from tinyddpm.training.data import arrays
from tinyddpm.training.data.pictures import SUFFIXES, fit
from tinyddpm.training.data.shards import Folder, Shards, expand
from tinyddpm.training.data.sources import Rows, Source, open_pictures

__all__ = ["BAD_FILES", "Images", "load"]

BAD_FILES = ("stop", "skip")
_GOLDEN = 0.6180339887498949
_MAX_SIDE = 2**14


@dataclass(frozen=True, eq=False)
class Images:
    """Images as integers 0..levels-1: `pixels` (N, C, H, W), and optionally `labels` (N,), integers from 0.

    `pixels` is an array, or stands for one that is read when it is indexed.
    """

    pixels: NDArray[Any] | Rows
    levels: int = 256
    labels: NDArray[np.int64] | None = None
    classes: int | None = None
    """How many labels there are, whether or not these images have each: by default the largest and one."""
    skipped: tuple[str, ...] = ()
    """What was wrong with each file that was left out."""

    def __post_init__(self) -> None:
        if self.labels is not None and self.classes is None:
            object.__setattr__(self, "classes", int(self.labels.max(initial=0)) + 1)

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

    def reader(self, orders: Iterable[Any], ahead: int = 2) -> closing[Generator[NDArray[np.float32], None, None]]:
        """A context manager: within it, an iterator over `scaled` of each of `orders`.

        Unless the images are in memory, a thread reads up to `ahead` of them before they are asked for.
        """
        return closing(_read_ahead(self, orders, 0 if isinstance(self.pixels, np.ndarray) else ahead))

    def rows(self, which: Any) -> Images:
        """Some of the images."""
        pixels = self.pixels.take(which) if isinstance(self.pixels, Rows) else self.pixels[which]
        return replace(self, pixels=pixels, labels=None if self.labels is None else self.labels[which])

    def split(self, held_out: float = 0.1) -> tuple[Images, Images]:
        """The images to train on, and about the share `held_out` of them that training never sees.

        Image i is held out where the fractional part of i times the golden ratio is at least ``1 - held_out``: evenly
        spread, the same everywhere and always, and unchanged for the first images when others follow.
        """
        share = as_real("held_out", held_out, 0, 1)
        out = np.arange(len(self)) * _GOLDEN % 1 >= 1 - share
        return self.rows(~out), self.rows(out)


def load(
    source: str | os.PathLike[str],
    *,
    image_size: int | tuple[int, int] | None = None,
    bad_files: str = "stop",
    workers: int | None = None,
) -> Images:
    """The images that `source` names.

    "digits": scikit-learn's 1797 digits, 8x8, 17 levels. A folder: every image below it, in the order of the names; its
    own folders are the labels. A folder of ``.tar`` files, or one, or a pattern such as ``train-{000..099}.tar`` or
    ``train-*.tar``: their images, labelled by the ``.cls`` beside them, as WebDataset has it. ``.npy`` or ``.npz``:
    integers 0..255 of shape (N, H, W), (N, H, W, C) or (N, C, H, W), with C up to 4; in an ``.npz`` the array ``images``,
    ``x`` or the only one, and ``labels`` or ``y``. Else an idx file, which may be gzipped; its labels are in the file
    whose name has labels in place of images.

    `image_size`, a side or (height, width): the images are cut to its shape around their middle, and resized. Without it
    all must have one size. `bad_files`: "stop" at an image that can't be read, or "skip" it: every file is decoded once
    then, and `Images.skipped` says what was left out. `workers`: threads that decode; by default as many as there are
    CPUs, up to 8; the images don't depend on it.

    Raises `FileNotFoundError` where nothing is there and `ValueError` for what can't be read, naming the file.
    """
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"data must be a name or a path, got {type(source).__name__}")
    size, skip = _size(image_size), one_of("bad_files", bad_files, BAD_FILES) == "skip"
    threads = min(os.cpu_count() or 1, 8) if workers is None else as_int("workers", workers, 0, 256)
    if source == "digits":
        return _fitted(_digits(), size)
    files = _files(os.fspath(source))
    if files is not None:
        pixels, kept, skipped = open_pictures(files, size, skip, threads)
        labels, classes = files.labels() or (None, None)
        return Images(pixels, 256, None if labels is None else labels[kept], classes, skipped)
    path = Path(source)
    reader = {".npy": arrays.array, ".npz": arrays.archive}.get(path.suffix.lower(), arrays.idx)
    try:
        pixels, labels = reader(path)
        return _fitted(Images(pixels, labels=labels), size)
    except MemoryError:
        raise ValueError(f"data: {path}: does not fit into memory") from None


def _files(source: str) -> Folder | Shards | None:
    """The image files or archives that `source` names; None where it is a file of another kind."""
    path = Path(source)
    if path.is_dir():
        shards = tuple(sorted(path.glob("*.tar")))
        folder = Folder.of(path)
        if shards and folder.names:
            raise ValueError(f"data: {path}: holds both images and .tar files; name one kind of them")
        if not shards and not folder.names:
            raise ValueError(f"data: {path}: holds no image ({', '.join(sorted(SUFFIXES))}) and no .tar file")
        return Shards.of(shards) if shards else folder
    named = (path,) if path.exists() else expand(source)
    for file in named:
        if not file.exists():
            raise FileNotFoundError(f"data: {file}: there is no such file or folder (and no source but 'digits')")
    if not named:
        raise FileNotFoundError(f"data: {source}: no file has such a name")
    if all(file.suffix.lower() == ".tar" for file in named):
        return Shards.of(named)
    if named != (path,):
        raise ValueError(f"data: {source}: only .tar files can be several")
    return None


def _digits() -> Images:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    return Images(digits.images.astype(np.uint8)[:, None], levels=17, labels=digits.target.astype(np.int64))


def _size(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    sides = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(sides) != 2:
        raise ValueError(f"image_size must be a side or (height, width), got {value!r}")
    height, width = (as_int("image_size", side, 1, _MAX_SIDE) for side in sides)
    return height, width


def _fitted(images: Images, size: tuple[int, int] | None) -> Images:
    """The images at that size: made at once where they are in memory, else when they are read."""
    if size is None or images.shape[1:] == size:
        return images
    if isinstance(images.pixels, Rows):
        return replace(images, pixels=replace(images.pixels, source=_Fitted(images.pixels.source, size)))
    return replace(images, pixels=_fit_all(images.pixels, size, images.levels - 1))


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A source's images at another size."""

    source: Source
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.source.shape[0], *self.size

    def __len__(self) -> int:
        return len(self.source)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return _fit_all(self.source.read(rows), self.size)


def _fit_all(pixels: NDArray[np.uint8], size: tuple[int, int], top: int = 255) -> NDArray[np.uint8]:
    images = np.empty((*pixels.shape[:2], *size), np.uint8)
    for image, own in zip(images, pixels, strict=True):
        image[:] = fit(own.transpose(1, 2, 0), size, top).transpose(2, 0, 1)
    return images


def _read_ahead(images: Images, orders: Iterable[Any], ahead: int) -> Generator[NDArray[np.float32], None, None]:
    if not ahead:
        yield from map(images.scaled, orders)
        return
    waiting = deque[Future[NDArray[np.float32]]]()
    with ThreadPoolExecutor(1, "tinyddpm-reader") as thread:
        try:
            for rows in orders:
                waiting.append(thread.submit(images.scaled, rows))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
