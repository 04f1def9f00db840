"""Reading a set of images from wherever it is: the digits, folders, archives, arrays in files and in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyddpm._arrays.check import as_int, one_of
from tinyddpm._io.files import shown
from tinyddpm.training.data import arrays
from tinyddpm.training.data.images import Images
from tinyddpm.training.data.listed import listed_labels
from tinyddpm.training.data.notes import check_colour, dark, of_folder
from tinyddpm.training.data.pictures import SUFFIXES
from tinyddpm.training.data.shards import Folder, Labels, Shards, expand
from tinyddpm.training.data.sources import IN_MEMORY as MOST
from tinyddpm.training.data.sources import Mapped, Pictures, Rows, fit_all, open_pictures, toned
from tinyddpm.training.data.values import Scale, as_ends, as_levels
from tinyddpm.training.data.zips import Zip

__all__ = ["BAD_FILES", "IN_MEMORY", "in_channels", "load"]

BAD_FILES = ("stop", "skip")
IN_MEMORY = "(array)"
"""What the settings of a run call data that were an array in memory."""
_MAX_SIDE = 2**14
_Files = Folder | Shards | Zip


def load(
    source: Any,
    *,
    image_size: int | tuple[int, int] | None = None,
    bad_files: str = "stop",
    workers: int | None = None,
    background: str = "black",
    levels: int | None = None,
    value_range: tuple[float, float] | None = None,
    channels: int | None = None,
    labels: Any = None,
) -> Images:
    """Load a set of images.

    - "digits": scikit-learn's 1797 digits, 8x8, 17 levels.
    - A folder: all images in it and below, in the order of their names; the folders in it are the labels.
    - A ``.tar`` file, a folder of them, or a pattern such as ``train-{000..099}.tar`` or ``train-*.tar``: their images, with
      the labels of the ``.cls`` members of the same name, as in WebDataset.
    - A ``.zip`` file: as the folder that was packed.
    - ``.npy`` or ``.npz``: numbers of shape (N, H, W), (N, H, W, C) or (N, C, H, W), where C is the shorter of the two axes in
      question, or (N, L), which are signals; in an ``.npz``, the array ``images``, ``x``, ``arr_0`` or the only one, and the
      labels ``labels``, ``y`` or, beside ``arr_0``, ``arr_1``, whose names may be in an array of strings, ``class_names``.
    - An array in memory, of NumPy or Torch: as one in a file.
    - Any other file is read as idx, gzipped or not; its labels are in the file with "labels" for "images" in its name.

    Parameters
    ----------
    source : str, path, array or Images
        What to load, see above; `Images` keep their levels and labels.
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
        The number of levels, in 2..65536. Integers are 0..levels-1 then, unless there is a `value_range`; floats are rounded to
        so many levels. Default: 256 for values of 8 bits, 65536 for others, and 17 for the digits.
    value_range : (float, float), optional
        The values in an array that the network gets as -1 and 1. Default: the first that holds all values of 0..255, 0..65535,
        -128..127 and -32768..32767 for integers, of 0..1 and -1..1 for floats; else the smallest and the largest value.
    channels : {1, 3}, optional
        Make colour images grey, or grey ones colour. Default: they stay as they are.
    labels : str, path or array, optional
        A CSV or JSON file with the class of each image file, by its name; or, for an array in memory, the classes in another.
        Default: as above.

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
    size, skip = _size(image_size), one_of("bad_files", bad_files, BAD_FILES) == "skip"
    threads = min(os.cpu_count() or 1, 8) if workers is None else as_int("workers", workers, 0, 256)
    check_colour(background)
    levels, ends = as_levels(levels), None if value_range is None else as_ends("value_range", value_range)
    if isinstance(source, Images):
        images = _as_they_are(source, levels, ends, labels)
    elif not isinstance(source, str | os.PathLike):
        images = _of_array("the array", arrays.in_memory(source, labels), levels, ends)
    elif os.fspath(source) == IN_MEMORY:
        raise ValueError("data must be given again: the run was trained on an array in memory, and --data FILE.npy can hold it")
    elif source != "digits" and (files := _files(os.fspath(source))) is not None:
        pixels, kept, skipped = open_pictures(files, size, skip, threads, background)
        found = files.labels() if labels is None else listed_labels(labels, files.inside())
        scale = _measured(pixels, os.fspath(source), levels, ends)
        if scale is not None and isinstance(pixels, np.ndarray):
            levels, pixels = scale.levels, scale.pixels(pixels)
        else:
            levels = _levels_of(pixels, os.fspath(source), levels, ends)
        images = _of_files(files, pixels, found, kept, skipped, levels)
        images = images if scale is None else replace(images, value_range=scale.ends)
    else:
        images = _of_one_file(os.fspath(source), labels, levels, ends)
    images = _fitted(images, size)
    return images if channels is None else in_channels(images, as_int("channels", channels, 1, 3))


def _as_they_are(images: Images, levels: int | None, ends: tuple[float, float] | None, labels: Any) -> Images:
    """The images, if what is given besides is theirs."""
    given = {"levels": (levels, images.levels), "value_range": (ends, images.value_range), "labels": (labels, images.labels)}
    for name, (value, own) in given.items():
        if value is not None and value is not own and (name == "labels" or value != own):
            raise ValueError(f"{name} must be left out for Images, which have their own")
    return images


def _measured(pixels: NDArray[Any] | Rows, source: str, levels: int | None, ends: tuple[float, float] | None) -> Scale | None:
    """The range and the levels of pictures of measured values; None of other pictures."""
    if pixels.dtype.kind != "f":
        return None
    if isinstance(pixels, Rows):
        raise ValueError(f"data: {source}: pictures of floats must fit into {MOST} bytes; an .npy array may have more")
    return arrays.in_levels(pixels, source, levels, ends)[1]


def _of_files(
    files: _Files, pixels: NDArray[Any] | Rows, found: Labels | None, kept: NDArray[np.int64], skipped: tuple[str, ...],
    levels: int | None,
) -> Images:  # fmt: skip
    """The pictures `kept` of the files."""
    stored = np.iinfo(pixels.dtype).max + 1
    if levels is not None and isinstance(pixels, Rows) and isinstance(pixels.source, Pictures):
        pixels = replace(pixels, source=replace(pixels.source, levels=levels))  # checked when they are read
    labels, classes, names = found or (None, None, ())
    notes = (*of_folder(files.ignored, names), *(dark(pixels, stored) if levels is None else ()))
    chosen, numbers = None if labels is None else labels[kept], kept if skipped else None
    return Images(pixels, levels or stored, chosen, classes, skipped, numbers, names, notes)


def _levels_of(pixels: NDArray[Any] | Rows, source: str, levels: int | None, ends: tuple[float, float] | None) -> int | None:
    """The levels that are given for pictures, checked."""
    if ends is not None:
        raise ValueError(f"value_range must be left out for image files, whose values are 0..255 or 0..65535, got {source}")
    if levels is not None and isinstance(pixels, np.ndarray) and pixels.max(initial=0) >= levels:
        raise ValueError(f"levels must be more than the largest value in {source}, which is {pixels.max()}, got {levels}")
    return levels


def _of_one_file(source: str, labels: Any, levels: int | None, ends: tuple[float, float] | None) -> Images:
    """The images of an array file, or the digits."""
    if labels is not None:
        raise ValueError(f"labels must be left out, as {source} holds no image files; in an .npz they are the array labels")
    if source == "digits":
        images = _digits()
        return replace(images, levels=_levels_of(images.pixels, source, levels, ends) or images.levels)
    path = Path(source)
    reader = {".npy": arrays.array, ".npz": arrays.archive}.get(path.suffix.lower(), arrays.idx)
    try:
        return _of_array(str(path), reader(path), levels, ends)
    except MemoryError:
        raise ValueError(f"data: {path}: must fit into memory") from None


def _of_array(name: str, found: arrays.Found, levels: int | None, ends: tuple[float, float] | None) -> Images:
    """The images of an array that errors call `name`."""
    pixels, scale = arrays.in_levels(found.values, name, levels, ends)
    notes = tuple(dark(pixels, scale.levels)) if levels is None and scale.ends is None else ()
    classes = len(found.names) or None
    return Images(pixels, scale.levels, found.labels, classes, class_names=found.names, notes=notes, value_range=scale.ends)


def _files(source: str) -> _Files | None:
    """The image files or archives that `source` names; None if it is a file of another kind."""
    path = Path(source)
    if path.is_dir():
        if (path / "log.jsonl").exists() and (path / "checkpoints").is_dir():
            raise ValueError(f"data: {shown(path)}: must not be a run, whose pictures are samples")
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
    """The images at that size."""
    if size is None or images.shape[1:] == size:
        return images
    return _mapped(images, (images.shape[0], *size), partial(fit_all, size=size, top=images.levels - 1))


def in_channels(images: Images, channels: int) -> Images:
    """The images in grey (1 channel) or in colour (3)."""
    if channels == 2:
        raise ValueError("channels must be 1 or 3, got 2")
    if (given := images.shape[0]) not in (1, 3):
        raise ValueError(f"{'grey' if channels == 1 else 'rgb'} must be of images with 1 or 3 channels, got {given}")
    return _mapped(images, (channels, *images.shape[1:]), partial(toned, channels=channels))


def _mapped(images: Images, shape: tuple[int, int, int], function: Callable[[NDArray[Any]], NDArray[Any]]) -> Images:
    """The images through a function that gives them that shape: now if they are in memory, else when they are read."""
    pixels = images.pixels
    if isinstance(pixels, Rows):
        return replace(images, pixels=replace(pixels, source=Mapped(pixels.source, shape, function)))
    return replace(images, pixels=function(pixels))
