"""Load images: scikit-learn's digits, folders, tar archives, array and idx files.

Images are integers 0..levels-1 of shape (N, C, H, W), and the network gets them in [-1, 1]. Small sets are kept in memory;
the images of large sets are read when they are needed.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyddpm._arrays.check import as_int, as_real, one_of
from tinyddpm.training.data import arrays
from tinyddpm.training.data.notes import check_colour, dark, of_folder
from tinyddpm.training.data.order import is_held_out, read_ahead
from tinyddpm.training.data.pictures import SUFFIXES
from tinyddpm.training.data.shards import Folder, Shards, expand
from tinyddpm.training.data.sources import Fitted, Rows, fit_all, open_pictures
from tinyddpm.training.data.zips import Zip

__all__ = ["BAD_FILES", "Images", "load"]

BAD_FILES = ("stop", "skip")
_MAX_SIDE = 2**14


@dataclass(frozen=True, eq=False)
class Images:
    """Images as integers 0..levels-1, and optionally their labels.

    Parameters
    ----------
    pixels : integer array (N, C, H, W) or Rows
        The images; `Rows` are read when they are indexed.
    levels : int
        The number of levels. Default: 256.
    labels : int64 array (N,), optional
        Class numbers from 0.
    classes : int, optional
        The number of classes, which may exceed those in `labels`. Default: the largest label plus one.
    skipped : tuple of str
        The error of each file that was left out. Default: none.
    numbers : int64 array (N,), optional
        The images' places among all, those left out included. Default: 0..N-1, as none was left out.
    class_names : tuple of str
        The classes' names, those of their folders. Default: they have none.
    notes : tuple of str
        What was ignored, and what may be a mistake. Default: nothing.
    """

    pixels: NDArray[Any] | Rows
    levels: int = 256
    labels: NDArray[np.int64] | None = None
    classes: int | None = None
    skipped: tuple[str, ...] = ()
    numbers: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

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
        """The images as the network gets them: level k is 2 k / (levels - 1) - 1.

        Parameters
        ----------
        rows : index
            What indexes an array's first axis. Default: all.

        Returns
        -------
        float32 array (n, C, H, W)
            In [-1, 1].
        """
        return np.asarray(self.pixels[rows] * (2 / (self.levels - 1)) - 1, np.float32)

    def reader(self, orders: Iterable[Any], ahead: int = 2) -> closing[Generator[NDArray[np.float32], None, None]]:
        """Read batches ahead of their use.

        Parameters
        ----------
        orders : iterable of index
            The rows of each batch.
        ahead : int
            The batches that a thread reads before they are needed, unless the images are in memory. Default: 2.

        Returns
        -------
        context manager
            Its value is an iterator over `scaled` of each of `orders`.
        """
        return closing(read_ahead(self.scaled, orders, 0 if isinstance(self.pixels, np.ndarray) else ahead))

    def rows(self, which: Any) -> Images:
        """Some of the images.

        Parameters
        ----------
        which : index
            What indexes an array's first axis.

        Returns
        -------
        Images
            The chosen ones, with their labels.
        """
        pixels = self.pixels.take(which) if isinstance(self.pixels, Rows) else self.pixels[which]
        labels, numbers = (None if each is None else each[which] for each in (self.labels, self.numbers))
        return replace(self, pixels=pixels, labels=labels, numbers=numbers)

    def split(self, held_out: float = 0.1) -> tuple[Images, Images]:
        """Split into the images to train on and those held out.

        Image i is held out if the fractional part of i times the golden ratio is at least ``1 - held_out``. So they are
        evenly spread, the same on every machine, and do not change if images are appended or left out.

        Parameters
        ----------
        held_out : float
            Share of the images that training never sees, in [0, 1]. Default: 0.1.

        Returns
        -------
        tuple of Images
            Those to train on, and those held out.

        Raises
        ------
        TypeError, ValueError
            If `held_out` is not such a number.
        """
        share = as_real("held_out", held_out, 0, 1)
        out = is_held_out(np.arange(len(self)) if self.numbers is None else self.numbers, share)
        return self.rows(~out), self.rows(out)


def load(
    source: str | os.PathLike[str],
    *,
    image_size: int | tuple[int, int] | None = None,
    bad_files: str = "stop",
    workers: int | None = None,
    background: str = "black",
    levels: int | None = None,
) -> Images:
    """Load a set of images.

    - "digits": scikit-learn's 1797 digits, 8x8, 17 levels.
    - A folder: all images in it and below, in the order of their names; the folders in it are the labels.
    - A ``.tar`` file, a folder of them, or a pattern such as ``train-{000..099}.tar`` or ``train-*.tar``: their images, with
      the labels of the ``.cls`` members of the same name, as in WebDataset.
    - A ``.zip`` file: as the folder that was packed.
    - ``.npy`` or ``.npz``: integers 0..255 of shape (N, H, W), (N, H, W, C) or (N, C, H, W), with C up to 4; in an ``.npz``,
      the array ``images``, ``x``, ``arr_0`` or the only one, and the labels ``labels``, ``y`` or, beside ``arr_0``, ``arr_1``.
    - Any other file is read as idx, gzipped or not; its labels are in the file with "labels" for "images" in its name.

    Parameters
    ----------
    source : str or path
        What to load, see above.
    image_size : int or (int, int), optional
        A side, or (height, width): each image is cut around its centre to this shape and resized. Default: all images have
        one size already.
    bad_files : {"stop", "skip"}
        What an image that cannot be read does: raise, or be left out and described in `Images.skipped`. With "skip" every
        file is decoded once in advance.
    workers : int, optional
        Threads that decode images, in 0..256; the images do not depend on it. Default: the number of CPUs, up to 8.
    background : str
        The colour behind transparent parts, such as "white" or "#ff8000". Default: black.
    levels : int, optional
        The number of levels, in 2..256: values are 0..levels-1. Default: 256, and 17 for the digits.

    Returns
    -------
    Images
        The images, with labels if there are any.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    TypeError, ValueError, LookupError
        If an argument is wrong or a file cannot be read; the message names it.
    """
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"data must be a name or a path, got {type(source).__name__}")
    size, skip = _size(image_size), one_of("bad_files", bad_files, BAD_FILES) == "skip"
    threads = min(os.cpu_count() or 1, 8) if workers is None else as_int("workers", workers, 0, 256)
    check_colour(background)
    images = _read(source, size, skip, threads, background)
    if levels is None:
        return images if images.levels != 256 else replace(images, notes=(*images.notes, *dark(images.pixels)))
    levels, pixels = as_int("levels", levels, 2, 256), images.pixels
    if isinstance(pixels, np.ndarray) and pixels.max(initial=0) >= levels:
        raise ValueError(f"levels must be more than the largest value in {source}, which is {pixels.max()}, got {levels}")
    return replace(images, levels=levels)


def _read(source: str | os.PathLike[str], size: tuple[int, int] | None, skip: bool, threads: int, background: str) -> Images:
    """The images of checked arguments, with the levels that their source has."""
    if source == "digits":
        return _fitted(_digits(), size)
    files = _files(os.fspath(source))
    if files is not None:
        pixels, kept, skipped = open_pictures(files, size, skip, threads, background)
        labels, classes, names = files.labels() or (None, None, ())
        numbers = kept if skipped else None
        labels = None if labels is None else labels[kept]
        return Images(pixels, 256, labels, classes, skipped, numbers, names, of_folder(files.ignored, names))
    path = Path(source)
    reader = {".npy": arrays.array, ".npz": arrays.archive}.get(path.suffix.lower(), arrays.idx)
    try:
        pixels, labels = reader(path)
        return _fitted(Images(pixels, labels=labels), size)
    except MemoryError:
        raise ValueError(f"data: {path}: must fit into memory") from None


def _files(source: str) -> Folder | Shards | Zip | None:
    """The image files or archives that `source` names; None if it is a file of another kind."""
    path = Path(source)
    if path.is_dir():
        shards = tuple(sorted(path.glob("*.tar")))
        folder = Folder.of(path)
        if shards and folder.names:
            raise ValueError(f"data: {path}: must hold either images or .tar files, got both")
        if not shards and not folder.names:
            raise ValueError(f"data: {path}: must hold images ({', '.join(sorted(SUFFIXES))}) or .tar files")
        return Shards.of(shards) if shards else folder
    named = (path,) if path.exists() else expand(source)
    for file in named:
        if not file.exists():
            raise FileNotFoundError(f"data: {file}: there is no such file or folder, and the only source by name is 'digits'")
    if not named:
        raise FileNotFoundError(f"data: {source}: no file matches")
    if all(file.suffix.lower() == ".tar" for file in named):
        return Shards.of(named)
    if named == (path,) and path.suffix.lower() == ".zip":
        return Zip.of(path)
    if named != (path,):
        raise ValueError(f"data: {source}: must match .tar files only")
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
    """The images at that size, resized now if they are in memory, else when they are read."""
    if size is None or images.shape[1:] == size:
        return images
    if isinstance(images.pixels, Rows):
        return replace(images, pixels=replace(images.pixels, source=Fitted(images.pixels.source, size)))
    return replace(images, pixels=fit_all(images.pixels, size, images.levels - 1))
