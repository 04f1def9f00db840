"""``tinyddpm edit``: fill in a part of a picture, morph one into another, or redraw one."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyddpm import backends, samplers
from tinyddpm import edit as editing
from tinyddpm._arrays.check import as_int, as_positive_int, as_real, lookup
from tinyddpm._commands import takes_model
from tinyddpm._commands.inputs import read_mask, read_picture
from tinyddpm._commands.runs import batches, class_numbers, device_of, open_run, refuse_within_data
from tinyddpm.denoiser import Denoiser
from tinyddpm.training import Run, image_grid, save_png, to_uint8

EXAMPLES = (
    "inpaint --model runs/photos --image face.png --mask hole.png --out filled.png",
    "interpolate a.png b.png --model runs/photos --out morph.png --count 9",
    "image-to-image sketch.png --model runs/photos --strength 0.6 --out redrawn.png -n 4",
)
_STEPS = 50
_STRENGTH = 0.5
_WHAT = "inpaint (fill in where --mask is white), interpolate (from picture A to B), or image-to-image (redraw X by --strength)"
_ABOUT_STRENGTH = f"""noise put on the pictures, as a share of the chain's T steps: little keeps them, 1 hardly keeps anything
(default {_STRENGTH}; of image-to-image and interpolate)"""
_OF_SOME = {  # flags that not every edit has, and their defaults
    "strength": (("interpolate", "image-to-image"), _STRENGTH),
    "sampler": (("interpolate", "image-to-image"), "dpm++2m"),
    "count": (("interpolate",), 8),
    "resamplings": (("inpaint",), 10),
}
_MASK = "picture of the image's size: white is filled in, black is kept"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    takes_model(parser)
    parser.add_argument("what", metavar="WHAT", help=_WHAT)
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="A and B of interpolate; X of the others, or --image X")
    parser.add_argument("--image", metavar="X", help="the picture; any size, cropped and resized to the model's")
    parser.add_argument("--mask", metavar="Y", help=_MASK)
    parser.add_argument("--out", required=True, metavar="PATH", help="FILE.png: a grid; else a folder with a PNG for each result")
    parser.add_argument("-n", type=int, default=1, metavar="N", help="results from different noise (default 1)")
    parser.add_argument("--strength", type=float, metavar="S", help=_ABOUT_STRENGTH)
    parser.add_argument("--count", type=int, metavar="N", help="pictures of interpolate, with both ends (default 8)")
    parser.add_argument("--steps", type=int, metavar="N", help=f"steps of a plan from T (default {_STEPS}, at most T)")
    names = f"of interpolate and image-to-image: {', '.join(samplers.NAMES)} (default dpm++2m)"
    parser.add_argument("--sampler", metavar="NAME", help=names)
    times = "how often inpaint repeats each 10 steps, so that the parts come to agree (default 10)"
    parser.add_argument("--resamplings", type=int, metavar="N", help=times)
    parser.add_argument("--label", metavar="K", help="class, its name or its number, if the model has classes")
    parser.add_argument("--guidance", type=float, default=1.0, metavar="S", help="guidance scale, with --label (default 1)")
    parser.add_argument("--columns", type=int, metavar="N", help="columns of the grid (default 8; interpolate: --count)")
    parser.add_argument("--scale", type=int, default=1, metavar="N", help="factor by which pixels of the grid are enlarged")


def run(args: argparse.Namespace) -> Iterator[str]:
    """Edit the pictures into `args.out` and yield its name."""
    edited = lookup("what", args.what, _EDITS)
    pictures = _pictures(args)
    out = Path(args.out)
    kind = "" if out.is_dir() else out.suffix.lower()
    if kind not in ("", ".png"):
        raise ValueError(f"out must be a folder or end in .png, got {out}")
    columns = as_positive_int("columns", args.count if args.columns is None else args.columns)
    image_grid(np.zeros((1, 1, 1, 1), np.uint8), columns, args.scale)
    size, n = as_positive_int("batch_size", args.batch_size), as_positive_int("n", args.n)
    as_int("count", args.count, 2, 1000)
    model = open_run(args.model, args.device)
    refuse_within_data(model, out if kind else out / "000000.png")
    if model.shape[0] not in (1, 3):
        raise ValueError(f"model must have 1 or 3 channels for pictures, got {model.shape[0]}")
    given = [read_picture(name, file, model, quiet=args.quiet) for name, file in pictures.items()]
    # Noise is a function of the sample's number, so the parts are those of one call.
    results = [edited(args, model, given, index, show) for index, show in batches(range(n), size, not args.quiet)]
    found = np.concatenate(results)
    try:
        if kind == ".png":
            one = len(found) == 1
            save_png(image_grid(found, 1 if one else columns, args.scale, gap=0 if one else 2), out)
        else:
            for k, image in enumerate(found):
                out.mkdir(parents=True, exist_ok=True)
                save_png(image.transpose(1, 2, 0), out / f"{k:06d}.png")
    except OSError as error:
        raise OSError(f"out {out} can't be written: {error.strerror or error}") from error
    about = {"out": os.fspath(out), "what": args.what, "images": len(found), "seed": args.seed}
    yield json.dumps(about, indent=2) if args.json else os.fspath(out)


def _pictures(args: argparse.Namespace) -> dict[str, str]:
    """The pictures' files by their names in messages; flags that the edit does not have are refused."""
    files = [*args.pictures, *([] if args.image is None else [args.image])]
    names = ("A", "B") if args.what == "interpolate" else ("image",)
    if len(files) != len(names):
        wanted = "two pictures, A and B" if len(names) == 2 else "one picture, X or --image X"
        raise ValueError(f"{args.what} must have {wanted}, got {len(files)}")
    if (args.mask is None) == (args.what == "inpaint"):
        raise ValueError(f"mask must {'be given: --mask Y' if args.mask is None else 'be left out'} for {args.what}")
    for name, (edits, default) in _OF_SOME.items():
        if (value := getattr(args, name)) is not None and args.what not in edits:
            raise ValueError(f"{name} must be left out for {args.what}, got {value}")
        setattr(args, name, default if value is None else value)
    if args.label is None and args.guidance != 1:
        raise ValueError(f"guidance must be 1 without --label, got {args.guidance}")
    return dict(zip(names, files, strict=True))


def _inpaint(
    args: argparse.Namespace, model: Run, given: list[NDArray[np.float32]], index: range, show: bool
) -> NDArray[np.uint8]:
    """The picture with its hole filled, once for each number of `index`."""
    known = _repeated(model, given[0], index)
    keep = read_mask("mask", args.mask, ("image", (args.image, *args.pictures)[args.image is None]), model.shape)
    filled = editing.inpaint(
        model.diffusion, _denoiser(args, model), known, keep, steps=_steps(args, model),
        resamplings=args.resamplings, seed=args.seed, index=index, progress=show,
    )  # fmt: skip
    return to_uint8(backends.get("torch").to_numpy(filled))


def _interpolate(
    args: argparse.Namespace, model: Run, given: list[NDArray[np.float32]], index: range, show: bool
) -> NDArray[np.uint8]:
    """For each number of `index`, the pictures from one to the other."""
    a, b = (_repeated(model, picture, index) for picture in given)
    mixed = editing.interpolate(
        model.diffusion, _denoiser(args, model), a, b, np.linspace(0, 1, args.count).tolist(), timesteps=_plan(args, model),
        sampler=args.sampler, seed=args.seed, index=index, progress=show,
    )  # fmt: skip
    images = to_uint8(backends.get("torch").to_numpy(mixed))
    return images.swapaxes(0, 1).reshape(-1, *model.shape)


def _redraw(
    args: argparse.Namespace, model: Run, given: list[NDArray[np.float32]], index: range, show: bool
) -> NDArray[np.uint8]:
    """The picture redrawn, once for each number of `index`."""
    plan = _plan(args, model)
    drawn = editing.image_to_image(
        model.diffusion, _denoiser(args, model), _repeated(model, given[0], index), plan[0], timesteps=plan,
        sampler=args.sampler, seed=args.seed, index=index, progress=show,
    )  # fmt: skip
    return to_uint8(backends.get("torch").to_numpy(drawn))


_EDITS = {"inpaint": _inpaint, "interpolate": _interpolate, "image-to-image": _redraw}


def _repeated(model: Run, picture: NDArray[np.float32], index: range) -> Any:
    """The picture on the model's device, once for each number of `index`."""
    return backends.get("torch").from_numpy(np.repeat(picture[None], len(index), axis=0), device=device_of(model))


def _denoiser(args: argparse.Namespace, model: Run) -> Denoiser:
    """The model's denoiser for the class that is asked for."""
    label = None if args.label is None else class_numbers(model, args.label)
    if label and len(label) > 1:
        raise ValueError(f"label must be one class, got {args.label}")
    return model.denoiser_for(label and label[0], args.guidance)


def _steps(args: argparse.Namespace, model: Run) -> int:
    """The number of steps from T."""
    return min(_STEPS, model.diffusion.T) if args.steps is None else as_int("steps", args.steps, 1, model.diffusion.T)


def _plan(args: argparse.Namespace, model: Run) -> tuple[int, ...]:
    """The plan from the step that `strength` tells: the later part of one from T."""
    d, sampler = model.diffusion, args.sampler
    first = max(1, round(as_real("strength", args.strength, 0, 1) * d.T))
    whole = d.timesteps(_steps(args, model), lookup("sampler", sampler, samplers.BEST_SPACING))
    return (first, *(s for s in whole if s < first))
