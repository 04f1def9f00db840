"""Fashion-MNIST with its labels, at 14x14 for a CPU or as it is.

`python benchmarks/fashion.py [--source DIR] [--out DIR] [--side 14|28]`

Reads the idx files as Debian's package dataset-fashion-mnist and the set's own page have them, averages blocks of 2x2
pixels, and writes ``train.npz`` (60 000 images) and ``test.npz`` (10 000): ``images`` (N, side, side), uint8, ``labels``
and ``class_names``. A mean of four bytes ends in .0, .25, .5 or .75; it is rounded to the nearest integer and .5 to the even one,
so that the set gets neither brighter nor darker.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _report
import numpy as np
from numpy.typing import NDArray

from tinyddpm._io.files import replacing

SOURCE = Path("/usr/share/datasets/fashion-mnist")
SIDES = (14, 28)
NAMES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_PARTS = {"train": "train", "test": "t10k"}


def halved(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images (N, H, W) with even sides at half the size: each pixel the rounded mean of 2x2."""
    count, height, width = images.shape
    blocks = images.reshape(count, height // 2, 2, width // 2, 2)
    return np.rint(blocks.sum(axis=(2, 4), dtype=np.uint16) / 4).astype(np.uint8)


def prepare(out: Path, side: int = 14, source: Path | None = None) -> dict[str, Path]:
    """The two files by name, made where they are missing."""
    source = SOURCE if source is None else source
    files = {part: out / f"{part}.npz" for part in _PARTS}
    for part, file in files.items():
        if not file.exists():
            images, labels = (_idx(source / f"{_PARTS[part]}-{name}-ubyte.gz") for name in ("images-idx3", "labels-idx1"))
            with replacing(file) as stream:
                pixels = halved(images) if side == 14 else images
                np.savez_compressed(stream, images=pixels, labels=labels, class_names=np.array(NAMES))
    return files


def _idx(file: Path) -> NDArray[Any]:
    """0, 0, type 8 (uint8), the number of axes, their lengths as big-endian uint32, the bytes."""
    try:
        content = gzip.decompress(file.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"source: {file} is not there; the package dataset-fashion-mnist has it") from None
    axes = content[3]
    shape = np.frombuffer(content, ">u4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def main(argv: Sequence[str]) -> None:
    """Write the files and name them."""
    parser = _report.Parser(description=_report.about(__doc__).splitlines()[0])
    parser.add_argument("--source", type=Path, metavar="DIR", help=f"the idx files (default {SOURCE})")
    parser.add_argument("--out", type=Path, metavar="DIR", help="(default data/fashion14 or data/fashion28)")
    parser.add_argument("--side", type=int, choices=SIDES, default=14, help="pixels to a side (default 14)")
    args = parser.parse_args(argv)
    for file in prepare(args.out or Path(f"data/fashion{args.side}"), args.side, args.source).values():
        print(file)


if __name__ == "__main__":
    raise SystemExit(_report.run(main))
