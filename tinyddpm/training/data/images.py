"""A set of images.

Images are integers 0..levels-1 of shape (N, C, H, W), and the network gets them in [-1, 1]. Small sets are kept in memory;
the images of large sets are read when they are needed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyddpm._arrays.check import as_real
from tinyddpm.training.data.order import is_held_out, read_ahead
from tinyddpm.training.data.sources import Rows

__all__ = ["Images"]


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
    value_range : (float, float), optional
        The values in the data for which the levels 0 and levels - 1 stand. Default: these numbers themselves.
    """

    pixels: NDArray[Any] | Rows
    levels: int = 256
    labels: NDArray[np.int64] | None = None
    classes: int | None = None
    skipped: tuple[str, ...] = ()
    numbers: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    value_range: tuple[float, float] | None = None

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
