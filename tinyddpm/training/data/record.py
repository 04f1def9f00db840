"""What a run knows of its data: each image's digest and whether it was held out, so that names of folders decide nothing."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyddpm._io.files import shown
from tinyddpm.training.data.images import Images

__all__ = ["Record", "by_name", "digests", "read_names", "read_record"]

_MOST, _MOST_ON_DISK = 2**17, 2**14  # images of each part that a run remembers; those on the disk are decoded for it
_BLOCK = 1024
_HEX = 16  # digits of a digest


@dataclass(frozen=True, eq=False)
class Record:
    """The images of a run's data."""

    held_out: NDArray[np.uint64]
    """Digests of the images that were held out."""
    trained_on: NDArray[np.uint64]
    """Digests of the others."""
    complete: bool
    """Whether these are all images. Of a large set only some are kept, and none that can't be read."""

    @classmethod
    def of(cls, images: Images, held_out: float) -> Record:
        """The record of a run on the images with that share held out."""
        most = _MOST if isinstance(images.pixels, np.ndarray) else _MOST_ON_DISK
        trained, held = images.split(held_out)
        parts = [_readable(part.rows(_spread(len(part), most))) for part in (held, trained)]
        return cls(parts[0], parts[1], sum(map(len, parts)) == len(images))

    @classmethod
    def from_json(cls, value: Any) -> Record:
        """The record that `as_json` described; `ValueError` if it is malformed."""
        given = value if isinstance(value, dict) else {}
        held, trained = (given.get(name) for name in ("held_out", "trained_on"))
        for text in (held, trained):
            if not isinstance(text, str) or len(text) % _HEX or not re.fullmatch("[0-9a-f]*", text):
                raise ValueError("the digests of the data are malformed")
        parts = [np.frombuffer(bytes.fromhex(str(text)), ">u8").astype(np.uint64) for text in (held, trained)]
        return cls(parts[0], parts[1], given.get("complete") is True)

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        held, trained = (part.astype(">u8").tobytes().hex() for part in (self.held_out, self.trained_on))
        return {"held_out": held, "trained_on": trained, "complete": self.complete}

    def after(self, earlier: Record) -> tuple[Record, int]:
        """The record of a run that went on with these images after `earlier`, and how many of these are new to it.

        Whatever was trained on once counts as trained on.
        """
        mine, theirs = (np.sort(np.concatenate([r.held_out, r.trained_on])) for r in (self, earlier))
        if np.array_equal(mine, theirs) and np.array_equal(np.sort(self.held_out), np.sort(earlier.held_out)):
            return self, 0
        trained = np.union1d(self.trained_on, earlier.trained_on)
        held = np.concatenate([self.held_out, earlier.held_out])
        found = replace(
            self, held_out=np.setdiff1d(held, trained), trained_on=trained, complete=self.complete and earlier.complete
        )
        return found, int((~np.isin(mine, theirs)).sum())

    def parts(self, images: Images) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Each image's place among those that were held out, -1 if it was not; and which may have been trained on.

        Of images with the same content, as many are held out as there were.
        """
        found, places = digests(images), defaultdict[int, list[int]](list)
        for k, digest in reversed(list(enumerate(self.held_out.tolist()))):
            places[digest].append(k)
        held = np.array([places[d].pop() if places.get(d) else -1 for d in found.tolist()], np.int64)
        trained = np.isin(found, self.trained_on)
        if not self.complete and (trained.any() or held.max(initial=-1) >= 0):
            trained[:] = True
        return held, trained & (held < 0)

    def never_held_out(self, images: Images) -> NDArray[np.bool_]:
        """Which images have no copy among those held out, as far as the record tells."""
        found = digests(images)
        held, trained = np.isin(found, self.held_out), np.isin(found, self.trained_on)
        return trained & ~held if not self.complete and (held | trained).any() else ~held


def digests(images: Images) -> NDArray[np.uint64]:
    """64 bits of BLAKE2 of each image's pixels and their shape: the same for any file and folder that holds it."""
    shape = np.array(images.shape, "<i8").tobytes()
    found = np.empty(len(images), np.uint64)
    for start in range(0, len(images), _BLOCK):
        for i, image in enumerate(np.ascontiguousarray(images.pixels[start : start + _BLOCK]), start):
            digest = hashlib.blake2b(image.tobytes(), digest_size=_HEX // 2, key=shape).digest()
            found[i] = int.from_bytes(digest, "big")
    return found


def _readable(images: Images) -> NDArray[np.uint64]:
    """The digests of the images that can be read; a run stops at the others when their turn comes."""
    try:
        return digests(images)
    except ValueError:
        if len(images) < 2:
            return np.empty(0, np.uint64)
        half = len(images) // 2
        return np.concatenate([_readable(images.rows(part)) for part in (slice(half), slice(half, None))])


def read_record(state: Mapping[str, Any]) -> Record | None:
    """The record in a checkpoint's state; None if the run has none."""
    return None if state.get("data") is None else Record.from_json(state["data"])


def read_names(state: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes' names in a checkpoint's state."""
    names = state.get("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("class_names must be a list of names")
    return tuple(names)


def by_name(images: Images, names: tuple[str, ...]) -> Images:
    """The images with the numbers that their classes have in `names`; `ValueError` for a class that is not there."""
    if not names or not images.class_names or images.labels is None:
        return images
    for name in images.class_names:
        if name not in names:
            raise ValueError(f"data: class {name!r} is none of the run's, which are {shown(', '.join(names))}")
    number = np.array([names.index(name) for name in images.class_names], np.int64)
    return replace(images, labels=number[images.labels], classes=len(names), class_names=names)


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """All numbers below `count`, or `most` of them, evenly spaced."""
    few = min(count, most)
    return np.arange(few) * count // max(few, 1)
