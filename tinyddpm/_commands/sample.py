"""``tinyddpm sample``: a picture, an animation, an array, or a folder; the last two are completed by a second run."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinyddpm import Diffusion, plans, samplers, schedules
from tinyddpm._arrays.check import as_int, as_positive_int, as_real
from tinyddpm._commands import takes_model
from tinyddpm._commands.drawing import Drawing, processes, save_array, save_folder
from tinyddpm._commands.runs import open_run, spacing_for
from tinyddpm._io.files import replacing
from tinyddpm.training import image_grid, save_png
from tinyddpm.training.checkpoint import writing

__all__ = ["EXAMPLES", "arguments", "run"]

EXAMPLES = (
    "--model runs/digits --out grid.png",
    "--model runs/digits --out denoising.gif -n 16 --columns 4",
    "--model runs/digits --out samples.npz -n 50000 --sampler dpm++2m --steps 20",
    "--model runs/classes --out grid.png --label 0,1,2,3 --guidance 2 --columns 4",
    "--model runs/digits --out folder -n 50000 --index 10000:20000",
)
_OUT = """FILE.png: a grid; FILE.gif: the grid on its way from noise; FILE.npz: one uint8 array `images` (N, C, H, W); else a
folder with a PNG file for each sample. A folder or an array that was stopped is completed by the same command, and
processes started by torchrun share the work."""
_KINDS = ("", ".npz", ".png", ".gif")


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    takes_model(parser)
    spacing = f"of fewer than T moves: {', '.join(plans.SPACINGS)} (default even for ddpm, quadratic for the others)"
    parser.add_argument("--out", required=True, metavar="PATH", help=_OUT)
    parser.add_argument("-n", type=int, metavar="N", help="samples 0..N-1 (default 64)")
    parser.add_argument("--index", type=_range, metavar="A:B", help="just the samples A..B-1")
    parser.add_argument("--sampler", default="ddpm", metavar="NAME", help=f"{', '.join(samplers.NAMES)} (default ddpm)")
    parser.add_argument("--steps", type=int, metavar="N", help="moves (default T)")
    parser.add_argument("--spacing", metavar="NAME", help=spacing)
    parser.add_argument("--eta", type=float, default=0.0, metavar="X", help="of ddim: 0 (default) is noise-free")
    label = "the class, of a run trained with classes; of several K,K,... sample k gets the k-th in turn"
    parser.add_argument("--label", type=_labels, default=(), metavar="K", help=label)
    guidance = "how far towards the class: 1 (default) is the network as it is, more leans further"
    parser.add_argument("--guidance", type=float, default=1.0, metavar="S", help=guidance)
    parser.add_argument("--columns", type=int, default=8, metavar="N", help="of the grid (default 8)")
    parser.add_argument("--scale", type=int, metavar="N", help="enlarge the grid's pixels by this factor")
    parser.add_argument("--frames", type=int, default=40, metavar="N", help="of the animation, at most (default 40)")


def run(args: argparse.Namespace) -> Iterator[str]:
    """Draw samples into `args.out`."""
    rank, size = processes()
    model, out = open_run(args.model, args.device), Path(args.out)
    options = {
        "sampler": args.sampler, "steps": model.diffusion.T if args.steps is None else args.steps,
        "spacing": args.spacing or spacing_for(args.sampler), "eta": args.eta, "seed": args.seed,
    }  # fmt: skip
    batch, show = as_positive_int("batch_size", args.batch_size), not args.quiet and rank == 0
    index = _index(args.n, args.index)
    drawing = Drawing(model, index, batch, options, args.label, _guidance(args), show, rank, size)
    drawing.trajectory(range(len(args.label)))  # every option is checked before anything is written
    kind = "" if out.is_dir() else out.suffix.lower()
    _check_kind(kind, out, model.shape[0], size)
    scale = max(1, 64 // max(model.shape[1:])) if args.scale is None else args.scale
    image_grid(np.zeros((1, 1, 1, 1), np.uint8), args.columns, scale)
    frames = as_int("frames", args.frames, 2, 1000)
    done = True
    with writing(f"out {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        if kind == ".npz":
            done = save_array(drawing, out)
        elif kind == ".png":
            save_png(image_grid(drawing.pixels(), args.columns, scale), out)
        elif kind == ".gif":
            states = drawing.frames(_positions(options["steps"], frames))
            _save_gif([image_grid(state, args.columns, scale) for state in states], out)
        else:
            save_folder(drawing, out)
    if done:
        about = {"out": os.fspath(out), "index": [index.start, index.stop], **options}
        about |= {"label": args.label, "guidance": args.guidance}
        yield json.dumps(about, indent=2) if args.json else os.fspath(out)


def _check_kind(kind: str, out: Path, channels: int, processes: int) -> None:
    if kind not in _KINDS:
        raise ValueError(f"out: {out} ends neither in .png, .gif nor .npz, and is no folder")
    if kind != ".npz" and channels not in (1, 3):
        raise ValueError(f"out: pictures have 1 or 3 channels, but the model draws {channels}; .npz takes any")
    if kind in (".png", ".gif") and processes > 1:
        raise ValueError(f"out: {processes} processes share a folder or an .npz file, not one picture")


def _positions(moves: int, frames: int) -> frozenset[int]:
    """At most `frames` positions of a plan, from its start, 0, to its end: denser near the data, where pictures change."""
    from_the_end = Diffusion(schedules.constant(moves, 0.5)).timesteps(min(frames - 1, moves), "quadratic")
    return frozenset(moves - k for k in from_the_end)


def _save_gif(frames: list[NDArray[np.uint8]], file: Path) -> None:
    """Write pictures (height, width, 1 or 3) as an endless animation that rests on the last."""
    from PIL import Image

    first, *rest = (Image.fromarray(f[..., 0] if f.shape[-1] == 1 else f) for f in frames)
    durations = [80] * len(rest) + [2500]  # milliseconds
    with replacing(file) as stream:
        first.save(stream, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0)


def _labels(text: str) -> tuple[int, ...]:
    if not all(word.isdecimal() for word in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is no class number, nor several with commas between")
    return tuple(int(word) for word in text.split(","))


def _guidance(args: argparse.Namespace) -> float:
    scale = as_real("guidance", args.guidance)
    if scale != 1.0 and not args.label:
        raise ValueError(f"guidance: {scale} leans towards a class; --label names it")
    return scale


def _range(text: str) -> range:
    first, colon, end = text.partition(":")
    index = range(int(first), int(end)) if colon and first.isdecimal() and end.isdecimal() else range(0)
    if not index:
        raise argparse.ArgumentTypeError(f"{text!r} is no range A:B with 0 <= A < B")
    return index


def _index(n: int | None, index: range | None) -> range:
    """The samples to draw: `index`, of which there may be at most n, or 0..n-1."""
    n = n if n is None else as_positive_int("n", n)
    if index is None:
        return range(n or 64)
    if n is not None and len(index) > n:
        raise ValueError(f"index: {index.start}:{index.stop} holds more than n = {n} samples")
    return index
