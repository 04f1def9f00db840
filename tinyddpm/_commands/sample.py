"""``tinyddpm sample``: draw a picture, an animation, an array or a folder; a second run completes the last two."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyddpm import Diffusion, plans, samplers, schedules
from tinyddpm._arrays.check import as_int, as_positive_int, as_real
from tinyddpm._commands import takes_model
from tinyddpm._commands.calibrate import read_calibration
from tinyddpm._commands.drawing import Drawing
from tinyddpm._commands.runs import class_numbers, open_run, refuse_within_data
from tinyddpm._commands.saving import save_array, save_folder
from tinyddpm._io.files import write
from tinyddpm.calibration import Calibration
from tinyddpm.training import Run, image_grid, save_png
from tinyddpm.training.world import processes

EXAMPLES = (
    "--model runs/digits --out grid.png",
    "--model runs/digits --out denoising.gif -n 16 --columns 4",
    "--model runs/digits --out samples.npz -n 50000 --sampler dpm++2m --steps 20",
    "--model runs/digits --out grid.png --steps 20 --plan best",
    "--model runs/classes --out grid.png --label 0,1,2,3 --guidance 2 --columns 4",
    "--model runs/fruit --out apples.png --label apple",
    "--model runs/digits --out folder -n 50000 --index 10000:20000",
)
_OUT = """FILE.png: a grid; FILE.gif: an animation of the grid, from noise to samples; FILE.npz: an array `images`
(N, C, H, W), uint8, or in the values of data with 16 bits or a range of their own; else a folder with a PNG file for each sample.
The same command completes a folder or an array that was stopped. Processes started by torchrun share a folder."""
_KINDS = ("", ".npz", ".png", ".gif")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    takes_model(parser)
    spacing = f"how fewer than T steps are spaced: {', '.join(plans.SPACINGS)} (default: the sampler's best)"
    parser.add_argument("--out", required=True, metavar="PATH", help=_OUT)
    parser.add_argument("-n", type=int, metavar="N", help="draw the samples 0..N-1 (default 64)")
    parser.add_argument("--index", type=_range, metavar="A:B", help="draw only the samples A..B-1")
    parser.add_argument("--sampler", default="ddpm", metavar="NAME", help=f"{', '.join(samplers.NAMES)} (default ddpm)")
    parser.add_argument("--steps", type=int, metavar="N", help="number of sampling steps (default T)")
    parser.add_argument("--spacing", metavar="NAME", help=spacing)
    parser.add_argument("--eta", type=float, metavar="X", help="noise of ddim (default 0: none) and dpm++2m-sde (default 1)")
    plan = "best: the plan and the variances that tinyddpm calibrate found best for the bound (with ddpm)"
    parser.add_argument("--plan", choices=("best",), help=plan)
    label = "class to draw, its name or its number, if the run was trained with classes; the samples get those of K,K,... in turn"
    parser.add_argument("--label", metavar="K", help=label)
    guidance = "guidance scale: 1 (default) for the conditional model, more for samples more typical of their class"
    parser.add_argument("--guidance", type=float, default=1.0, metavar="S", help=guidance)
    parser.add_argument("--columns", type=int, default=8, metavar="N", help="columns of the grid (default 8)")
    parser.add_argument("--scale", type=int, metavar="N", help="factor by which pixels of the grid are enlarged")
    parser.add_argument("--frames", type=int, default=40, metavar="N", help="frames of the animation, at most (default 40)")


def run(args: argparse.Namespace) -> Iterator[str]:
    """Draw samples into `args.out` and yield its name."""
    rank, size = processes()
    model, out = open_run(args.model, args.device), Path(args.out)
    options = {
        "sampler": args.sampler, "steps": model.diffusion.T if args.steps is None else args.steps,
        "spacing": args.spacing or samplers.BEST_SPACING.get(args.sampler), "seed": args.seed,
        "eta": samplers.DEFAULT_ETA.get(args.sampler, 0.0) if args.eta is None else args.eta,
    }  # fmt: skip
    calibration = _best_plan(args, model, options) if args.plan else None
    labels = () if args.label is None else class_numbers(model, args.label)
    batch, show = as_positive_int("batch_size", args.batch_size), not args.quiet and rank == 0
    index = _index(args.n, args.index)
    drawing = Drawing(model, index, batch, options, labels, _guidance(args), show, rank, size, calibration)
    drawing.trajectory(range(len(labels)))  # every option is checked before anything is written
    kind = "" if out.is_dir() else out.suffix.lower()
    _check_kind(kind, out, model.shape[0], size)
    if kind in (".png", ".gif"):
        refuse_within_data(model, out)
    scale = max(1, 64 // max(model.shape[1:])) if args.scale is None else args.scale
    image_grid(np.zeros((1, 1, 1, 1), np.uint8), args.columns, scale)
    positions = _positions(options["steps"], as_int("frames", args.frames, 2, 1000))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if kind == ".npz":
            save_array(drawing, out)
        elif kind == ".png":
            save_png(image_grid(drawing.pixels(), args.columns, scale), out)
        elif kind == ".gif":
            _save_gif([image_grid(state, args.columns, scale) for state in drawing.frames(positions)], out)
        else:
            save_folder(drawing, out)
    except OSError as error:
        raise OSError(f"out {out} can't be written: {error.strerror or error}") from error
    about = {"out": os.fspath(out), "index": [index.start, index.stop], **options}
    about |= {"label": labels, "guidance": args.guidance}
    yield json.dumps(about, indent=2) if args.json else os.fspath(out)


def _best_plan(args: argparse.Namespace, model: Run, options: dict[str, Any]) -> Calibration:
    """The run's calibration; its best plan becomes one of the options."""
    if args.sampler != "ddpm" or args.spacing or args.eta is not None:
        raise ValueError("plan must be left out with --sampler, --spacing or --eta: the best one is of ddpm, with its variances")
    calibration = read_calibration(args.model, model)
    options["plan"] = calibration.timesteps(args.steps)
    options |= {"steps": len(options["plan"]) - 1, "spacing": "best"}
    return calibration


def _check_kind(kind: str, out: Path, channels: int, processes: int) -> None:
    """Raise ValueError unless the model's samples can be written to `out` by so many processes."""
    if kind not in _KINDS:
        raise ValueError(f"out must be a folder or end in .png, .gif or .npz, got {out}")
    if kind != ".npz" and channels not in (1, 3):
        raise ValueError(f"out must end in .npz if samples do not have 1 or 3 channels, got {out} for {channels} channels")
    if kind and processes > 1:
        raise ValueError(f"out must be a folder, which {processes} processes can share, got {out}")


def _positions(steps: int, frames: int) -> frozenset[int]:
    """At most `frames` of the positions 0..steps of a plan, with both ends; denser near the data, where pictures change."""
    from_end = Diffusion(schedules.constant(steps, 0.5)).timesteps(min(frames - 1, steps), "quadratic")
    return frozenset(steps - k for k in from_end)


def _save_gif(frames: list[NDArray[np.uint8]], file: Path) -> None:
    """Write pictures (height, width, 1 or 3) as an endless animation that pauses on the last one."""
    from PIL import Image

    first, *rest = (Image.fromarray(f[..., 0] if f.shape[-1] == 1 else f) for f in frames)
    durations = [80] * len(rest) + [2500]  # milliseconds
    content = BytesIO()
    first.save(content, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0)
    write(file, content.getvalue())


def _guidance(args: argparse.Namespace) -> float:
    """The guidance scale, which needs a class unless it is 1."""
    scale = as_real("guidance", args.guidance)
    if scale != 1.0 and args.label is None:
        raise ValueError(f"guidance must be 1 without --label, got {scale}")
    return scale


def _range(text: str) -> range:
    """Parse A:B."""
    first, colon, end = text.partition(":")
    index = range(int(first), int(end)) if colon and first.isdecimal() and end.isdecimal() else range(0)
    if not index:
        raise argparse.ArgumentTypeError(f"must be A:B with 0 <= A < B, got {text!r}")
    return index


def _index(n: int | None, index: range | None) -> range:
    """The samples to draw: `index`, which may hold at most n, or 0..n-1."""
    n = n if n is None else as_positive_int("n", n)
    if index is None:
        return range(n or 64)
    if n is not None and len(index) > n:
        raise ValueError(f"index must be of at most n = {n} samples, got {index.start}:{index.stop}")
    return index
