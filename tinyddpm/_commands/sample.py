"""``tinyddpm sample``: a grid, an array, or a folder that a second run completes."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyddpm import backends, samplers
from tinyddpm._array import positive_int
from tinyddpm._commands import takes_model
from tinyddpm._commands.runs import batches, device_of, open_run
from tinyddpm._files import replacing
from tinyddpm.samplers import Step
from tinyddpm.training import Run, image_grid, save_png, to_uint8
from tinyddpm.training.checkpoint import naming

__all__ = ["EXAMPLES", "Drawing", "arguments", "run"]

EXAMPLES = (
    "--model runs/digits --out grid.png",
    "--model runs/digits --out samples.npz -n 50000 --sampler dpm++2m --steps 20",
    "--model runs/digits --out folder -n 50000 --index 10000:20000",
)
MANIFEST = "samples.json"


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    takes_model(parser)
    out = "FILE.png: a grid; FILE.npz: one uint8 array; else a folder: a PNG file for each sample, those there are kept"
    parser.add_argument("--out", required=True, metavar="PATH", help=out)
    parser.add_argument("-n", type=int, metavar="N", help="samples 0..N-1 (default 64)")
    parser.add_argument("--index", type=_range, metavar="A:B", help="just the samples A..B-1")
    parser.add_argument("--sampler", default="ddpm", help=f"{', '.join(samplers.NAMES)} (default ddpm)")
    parser.add_argument("--steps", type=int, metavar="N", help="moves, evenly spaced (default T)")
    parser.add_argument("--eta", type=float, default=0.0, metavar="X", help="of ddim: 0 (default) is noise-free")
    parser.add_argument("--columns", type=int, default=8, metavar="N", help="of the grid (default 8)")
    parser.add_argument("--scale", type=int, metavar="N", help="enlarge the grid's pixels by this factor")


def run(args: argparse.Namespace) -> Iterator[str]:
    """Draw samples into `args.out`."""
    model, out = open_run(args.model, args.device), Path(args.out)
    options = {"sampler": args.sampler, "steps": args.steps, "eta": args.eta, "seed": args.seed}
    size = positive_int("batch_size", args.batch_size)
    drawing = Drawing(model, _index(args.n, args.index), size, options, not args.quiet)
    drawing.trajectory(range(0))  # every option is checked before anything is written
    kind = "" if out.is_dir() else out.suffix.lower()
    if kind not in ("", ".png", ".npz"):
        raise ValueError(f"out: {out} ends neither in .png nor in .npz, and is no folder")
    if kind != ".npz" and model.shape[0] not in (1, 3):
        raise ValueError(f"out: PNG files hold 1 or 3 channels, but the model draws {model.shape[0]}; .npz takes any")
    scale = max(1, 64 // max(model.shape[1:])) if args.scale is None else args.scale
    image_grid(np.zeros((1, 1, 1, 1), np.uint8), args.columns, scale)  # they are checked before the work
    with naming(f"out {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        if kind == ".npz":
            with replacing(out) as stream:
                np.savez_compressed(stream, images=drawing.pixels())
        elif kind == ".png":
            save_png(image_grid(drawing.pixels(), args.columns, scale), out)
        else:
            drawing.fill(out)
    yield os.fspath(out)


@dataclass(frozen=True)
class Drawing:
    """Which samples of a run to draw, and how: a sample is a function of the run, its number and `options` only."""

    run: Run
    index: range
    batch_size: int
    options: dict[str, Any]
    """Of `Diffusion.sample`."""
    progress: bool = False

    def trajectory(self, index: range, progress: bool = False) -> Iterator[Step]:
        """The samples `index` on their way."""
        return self.run.diffusion.trajectory(
            self.run.denoiser, (len(index), *self.run.shape), index=index,
            backend="torch", device=device_of(self.run), progress=progress, **self.options,
        )  # fmt: skip

    def batch(self, index: range, progress: bool) -> NDArray[np.uint8]:
        """The samples `index` as pixels (n, C, H, W)."""
        x = None
        for step in self.trajectory(index, progress):
            x = step.x
        return to_uint8(backends.get("torch").to_numpy(x))

    def pixels(self) -> NDArray[np.uint8]:
        """All samples as pixels (n, C, H, W)."""
        return np.concatenate([self.batch(part, show) for part, show in self._batches(self.index)])

    def fill(self, folder: Path) -> None:
        """Write each sample to a file of the folder, named by its number; those that are there are kept.

        A batch that lacks one file is drawn as a whole, so that a run that was stopped ends with the same files. Under
        torchrun each process takes its share of the batches.
        """
        self._claim(folder)
        rank, size = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
        for number, (part, show) in enumerate(self._batches(self.index)):
            missing = [k for k in part if not (folder / f"{k:06d}.png").exists()]
            if missing and number % size == rank:
                pixels = self.batch(part, show)
                for k in missing:
                    save_png(pixels[k - part.start].transpose(1, 2, 0), folder / f"{k:06d}.png")

    def _batches(self, index: range) -> Iterator[tuple[range, bool]]:
        return batches(index, self.batch_size, self.progress)

    def _claim(self, folder: Path) -> None:
        """Note in the folder what its samples are; refuse a folder with others."""
        weights = hashlib.sha256()
        for tensor in self.run.net.state_dict().values():
            weights.update(tensor.cpu().contiguous().numpy().tobytes())
        own = {**self.options, "step": self.run.step, "weights": weights.hexdigest()}
        file = folder / MANIFEST
        if file.exists():
            try:
                theirs = dict(json.loads(file.read_bytes()))
            except (ValueError, TypeError):
                raise ValueError(f"out: {file} is damaged; choose another folder") from None
            for key, value in own.items():
                if theirs.get(key) != value:
                    raise ValueError(f"{key}: {value} differs from the {theirs.get(key)} of the samples in {folder}")
            return
        if folder.is_dir() and any(folder.glob("*.png")):
            raise ValueError(f"out: {folder} holds pictures that are not samples of ours; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(file) as stream:
            stream.write(json.dumps(own, indent=2).encode() + b"\n")


def _range(text: str) -> range:
    first, colon, end = text.partition(":")
    index = range(int(first), int(end)) if colon and first.isdecimal() and end.isdecimal() else range(0)
    if not index:
        raise argparse.ArgumentTypeError(f"{text!r} is no range A:B with 0 <= A < B")
    return index


def _index(n: int | None, index: range | None) -> range:
    """The samples to draw: `index`, of which there may be at most n, or 0..n-1."""
    n = n if n is None else positive_int("n", n)
    if index is None:
        return range(n or 64)
    if n is not None and len(index) > n:
        raise ValueError(f"index: {index.start}:{index.stop} holds more than n = {n} samples")
    return index
