"""``tinyddpm plot``: draw one of the figures of `tinyddpm.plots`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinyddpm import Denoiser, Diffusion, backends, plots
from tinyddpm._arrays.check import lookup, one_of
from tinyddpm._commands import lessons, takes_device, takes_output
from tinyddpm._io.files import write
from tinyddpm.analytic import MixtureData

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tinyddpm.training import Run

EXAMPLES = ("schedules schedules.pdf", "forward forward.png --data photos/", "bound bound.png --model runs/digits", "play.html")
_PAGE = "play"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("what", metavar="WHAT", help=", ".join([*_FIGURES, f"or {_PAGE}, a page to play with"]))
    path = "FILE.png, FILE.pdf or FILE.svg, for play FILE.html; without it WHAT is the file, for example kl.png"
    parser.add_argument("path", metavar="PATH", nargs="?", help=path)
    parser.add_argument("--model", metavar="DIR", help="run folder, for denoising, loss, bound, rate-distortion and one-jump")
    parser.add_argument("--data", metavar="digits|FOLDER|FILE", help="images (default: those of the run, else digits)")
    parser.add_argument("--limit", type=int, default=64, metavar="N", help="images to score for a bound (default 64)")
    takes_device(parser)
    takes_output(parser)


def run(args: argparse.Namespace) -> Iterator[str]:
    """Draw the figure `args.what` into `args.path` and yield its name."""
    if args.path is None:
        if not Path(args.what).suffix:
            raise ValueError(f"path must be given, for example {args.what}.png")
        args.what, args.path = Path(args.what).stem, args.what
    if args.what == _PAGE:
        one_of("path", Path(args.path).suffix.lower(), (".html",))
        write(args.path, resources.files("tinyddpm._commands").joinpath("play.html").read_bytes())
    else:
        make = lookup("what", args.what, _FIGURES)
        one_of("path", Path(args.path).suffix.lower(), plots.FORMATS)
        plots.save(make(args), args.path)
    yield json.dumps({"path": args.path}, indent=2) if args.json else args.path


def _schedules(args: argparse.Namespace) -> Figure:
    return plots.schedules()


def _forward(args: argparse.Namespace) -> Figure:
    from tinyddpm._commands.runs import data_of
    from tinyddpm.training import load

    if args.model is None:
        return plots.forward(Diffusion(), load(args.data or "digits").scaled(slice(8)), seed=args.seed)
    model = _run(args)
    images = dataclasses.replace(model.config, data=data_of(model, args.data)).images()
    return plots.forward(model.diffusion, images.scaled(slice(8)), seed=args.seed)


def _denoising(args: argparse.Namespace) -> Figure:
    from tinyddpm._commands.runs import follow

    model = _run(args)
    columns = plots.columns(model.diffusion)[::-1]
    return plots.trajectory(follow(model, range(8), columns, seed=args.seed, progress=not args.quiet))


def _loss(args: argparse.Namespace) -> Figure:
    from tinyddpm._commands.runs import read_log

    return plots.loss(read_log(_model_path(args)))


def _of_bound(figure: str, args: argparse.Namespace) -> Figure:
    from tinyddpm._commands.runs import data_of, held_out, score

    model = _run(args)
    images = held_out(model, data_of(model, args.data), args.limit, tell=not args.quiet)
    bound = score(model, images, seed=args.seed, terms=True, progress=not args.quiet)
    return plots.bound(bound) if figure == "bound" else plots.rate_distortion(bound)


def _sampler_error(args: argparse.Namespace) -> Figure:
    """The samplers' error on a mixture with its exact network: RMS distance from Heun's method with all T steps."""
    d = _run(args).diffusion if args.model else Diffusion()
    spots = MixtureData([0.5, 0.3, 0.2], [[-0.6, 0.2], [0.5, 0.5], [0.1, -0.7]], [0.02, 0.03, 0.04])
    draw = partial(d.sample, Denoiser(spots.net(d), clip_x0=False), (64, 2), seed=args.seed, dtype="float64")
    truth, errors = draw(sampler="heun"), {}
    for sampler in ("ddim", "dpm++2m", "dpm++3m", "unipc", "heun"):
        calls = 2 if sampler == "heun" else 1  # per step
        lengths = [n // calls for n in (6, 10, 20, 40, 80, 160) if n // calls <= d.T // 2] or [1]
        found = {n: draw(sampler=sampler, steps=n, spacing="quadratic") - truth for n in lengths}
        errors[sampler] = {calls * (n - 1) + 1: float(np.sqrt(np.mean(e**2))) for n, e in found.items()}
    return plots.sampler_error(errors)


def _plan(args: argparse.Namespace) -> Figure:
    from tinyddpm._commands import planning
    from tinyddpm._commands.calibrate import read_calibration
    from tinyddpm._commands.runs import data_of, held_out

    model = _run(args)
    found = read_calibration(_model_path(args), model)
    images = held_out(model, data_of(model, args.data), args.limit, tell=not args.quiet)
    table = planning.bounds(model, found, images, planning.CALLS, seed=args.seed, progress=not args.quiet)
    return planning.figure(table)


def _one_jump(args: argparse.Namespace) -> Figure:
    from tinyddpm._commands.runs import device_of, follow

    model = _run(args)
    columns = plots.columns(model.diffusion)[:0:-1]
    *steps, end = follow(model, range(1), (*columns, 0), seed=args.seed, progress=not args.quiet)
    torch, guesses = backends.get("torch"), []
    for step in steps:
        x = torch.from_numpy(step.x, device=device_of(model))
        with backends.no_grad(x):
            guesses.append(torch.to_numpy(model.denoiser.x0(model.diffusion, x, step.t)))
    return lessons.one_jump([step.x for step in steps], guesses, columns, end.x)


def _run(args: argparse.Namespace) -> Run:
    from tinyddpm._commands.runs import open_run

    return open_run(_model_path(args), args.device)


def _model_path(args: argparse.Namespace) -> str:
    """The path after --model, which must be given."""
    if args.model is None:
        raise ValueError(f"model must be given for plot {args.what}: --model DIR")
    return str(args.model)


_FIGURES: dict[str, Callable[[argparse.Namespace], Figure]] = {
    "schedules": _schedules,
    "forward": _forward,
    "denoising": _denoising,
    "loss": _loss,
    "bound": partial(_of_bound, "bound"),
    "rate-distortion": partial(_of_bound, "rate-distortion"),
    "sampler-error": _sampler_error,
    "one-jump": _one_jump,
    "plan": _plan,
    "kl": lambda args: lessons.kl_divergence(),
    "decoder": lambda args: lessons.decoder_bins(),
    "objectives": lambda args: lessons.objectives(_run(args).diffusion if args.model else Diffusion()),
}
