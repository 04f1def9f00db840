"""The command ``tinyddpm``: one table of commands, one place where errors become a line.

Results go to standard output; progress and errors to standard error. Exit codes: 0, 2 for bad input with one line that names
it, 130 after an interrupt. A command's own imports happen when it runs, so that the others start fast.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tinyddpm import __version__, backends

if TYPE_CHECKING:
    from tinyddpm.likelihood import VLB
    from tinyddpm.training import TrainConfig

__all__ = ["COMMANDS", "Command", "command_line", "main"]

_BAD_INPUT = (ValueError, TypeError, LookupError, OSError, backends.BackendUnavailable)


@dataclass(frozen=True)
class Command:
    """One command: a line about it, examples, its arguments, and what it does with them; `run` returns the exit code."""

    about: str
    examples: tuple[str, ...]
    arguments: Callable[[argparse.ArgumentParser], object]
    run: Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, by default this process's; returns the exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    name = next((word for word in given[:1] if word in COMMANDS), None)
    try:
        if name is None:
            return _without_command(given)
        command = COMMANDS[name]
        parser = _Parser(f"tinyddpm {name}", command.about, [f"tinyddpm {name} {e}".strip() for e in command.examples])
        command.arguments(parser)
        return command.run(parser.parse_args(given[1:]))
    except KeyboardInterrupt as interrupt:
        _complain(name, str(interrupt) or "interrupted")
        return 128 + getattr(interrupt, "signum", 2)
    except ModuleNotFoundError as error:
        _complain(name, f"{error.name} is not installed; pip install 'tinyddpm[train,plots]' brings it")
    except _BAD_INPUT as error:
        _complain(name, str(error))
    except SystemExit as end:  # argparse printed help or the version
        return int(end.code or 0)
    return 2


def command_line(*words: object) -> str:
    """A command as it can be pasted into the shell that started this process."""
    started = sys.argv[0]
    if Path(started).name != "tinyddpm":
        program = f"{Path(sys.executable).name} -m tinyddpm"
    else:
        program = "tinyddpm" if shutil.which("tinyddpm") == os.path.abspath(started) else started
    return f"{program} {shlex.join(map(str, words))}"


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are `ValueError`s, for `main` to print as one line."""

    def __init__(self, prog: str, about: str, examples: Sequence[str]) -> None:
        super().__init__(
            prog,
            description=about,
            epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _without_command(given: list[str]) -> int:
    width = max(map(len, COMMANDS))
    parser = _Parser("tinyddpm", "Diffusion mathematics you can trust.", ["tinyddpm demo", "tinyddpm train --help"])
    parser.usage = "tinyddpm COMMAND ..."
    parser.epilog = (
        "commands:\n" + "\n".join(f"  {n:{width}}  {c.about}" for n, c in COMMANDS.items()) + f"\n\n{parser.epilog}"
    )
    parser.add_argument("--version", action="version", version=f"tinyddpm {__version__}")
    if given and not given[0].startswith("-"):
        raise LookupError(f"command: {given[0]!r} is unknown; known are {', '.join(COMMANDS)}")
    parser.parse_args(given)
    parser.print_help(sys.stderr)
    return 2


def _complain(name: str | None, message: str) -> None:
    program = f"tinyddpm {name}" if name else "tinyddpm"
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr)


def _quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="a run folder, or one checkpoint of it")
    parser.add_argument("--device", help="where to compute; by default the first CUDA device, else the CPU")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument("--batch-size", type=int, default=250, help="images at a time (default 250)")


# demo


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="demo", metavar="DIR", help="where everything goes (default demo)")
    parser.add_argument("--steps", type=int, help="training steps; by default about 90 seconds' worth on two cores")
    parser.add_argument("--seed", type=int, default=0, help="(default 0)")
    _quiet(parser)


def _demo(args: argparse.Namespace) -> int:
    from tinyddpm.demo import demo

    demo(args.out, steps=args.steps, seed=args.seed, progress=not args.quiet)
    return 0


# train


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    import dataclasses

    from tinyddpm.training import TrainConfig

    parser.add_argument("--config", metavar="FILE", help="a TOML file with any of the settings below; flags override it")
    _quiet(parser)
    for field in dataclasses.fields(TrainConfig):
        flag = "--" + field.name.replace("_", "-")
        if field.type == "bool":
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS)
            continue
        kind = {"int": int, "float": float}.get(str(field.type), _ints if "tuple" in str(field.type) else str)
        help = "" if field.default is None else f"(default {field.default})"
        metavar = _METAVARS.get(field.name, kind.__name__.strip("_").upper())
        parser.add_argument(flag, type=kind, default=argparse.SUPPRESS, metavar=metavar, help=help)


_METAVARS = {"data": "digits|FOLDER|FILE", "out": "DIR", "schedule": "NAME", "predicts": "eps|x0|v|mu|score"}


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(",") if word)


def _train(args: argparse.Namespace) -> int:
    from tinyddpm.training import train

    config = _train_config({k: v for k, v in vars(args).items() if k not in ("config", "quiet")}, args.config)
    speaks = int(os.environ.get("RANK", 0)) == 0
    again = command_line("train", "--out", config.out, "--resume")
    if speaks and not args.quiet:
        print(_as_toml(config), flush=True)
    try:
        last = train(config, progress=not args.quiet)
    except KeyboardInterrupt as interrupt:
        interrupt.args = (f"{interrupt}; go on with: {again}",)
        raise
    if speaks:
        print(f"checkpoint: {last}")
        print(f"go on with: {command_line('sample', '--model', config.out, '--out', Path(config.out, 'samples.png'))}")
        print(f"        or: {again} --steps {2 * config.steps}")
    return 0


def _train_config(flags: Mapping[str, Any], file: str | None) -> TrainConfig:
    """What the flags say, else the TOML file, else, when resuming, the run itself, else the defaults."""
    from tinyddpm.training import TrainConfig
    from tinyddpm.training.checkpoint import find, read_state

    stated = _read_toml(file) if file else {}
    given = {**stated, **flags}
    if given.get("resume") and (run := find(given.get("out", TrainConfig.out))):
        given = {**read_state(run)["config"], **given}
    return TrainConfig.from_dict(given)


def _read_toml(file: str) -> dict[str, Any]:
    import tomllib

    from tinyddpm.training import TrainConfig

    try:
        with open(file, "rb") as stream:
            stated = tomllib.load(stream)
        TrainConfig.from_dict(stated)
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{file}: {error}") from error
    return stated


def _as_toml(config: TrainConfig) -> str:
    import dataclasses

    values = dataclasses.asdict(config)
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items() if value is not None)


# sample


def _sample_arguments(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument(
        "--out", required=True, metavar="PATH", help="FILE.png: a grid; FILE.npz: one array; else a folder of PNG files"
    )
    parser.add_argument("-n", type=int, metavar="N", help="samples 0..N-1 (default 64)")
    parser.add_argument("--index", type=_range, metavar="A:B", help="just the samples A..B-1 of them")
    parser.add_argument("--sampler", default="ddpm", metavar="NAME", help="ddpm, ddim, dpm++2m, heun or unipc (default ddpm)")
    parser.add_argument("--steps", type=int, help="moves, evenly spaced (default T)")
    parser.add_argument("--eta", type=float, default=0.0, help="of ddim: 0 (default) adds no noise on the way")
    parser.add_argument("--columns", type=int, default=8, help="of the grid (default 8)")
    parser.add_argument("--scale", type=int, help="enlarge the grid's pixels by this factor")
    _quiet(parser)


def _range(text: str) -> range:
    first, colon, end = text.partition(":")
    if not colon or not 0 <= int(first or 0) < int(end) <= 2**62:
        raise argparse.ArgumentTypeError(f"{text!r} is no range A:B with 0 <= A < B")
    return range(int(first or 0), int(end))


def _sample(args: argparse.Namespace) -> int:
    from tinyddpm._array import positive_int
    from tinyddpm._tasks import Drawing, draw, load_model

    n = positive_int("n", args.n or 64) if args.n != 0 else positive_int("n", 0)
    index = args.index or range(n)
    if args.n is not None and len(index) > n:
        raise ValueError(f"index: {index.start}:{index.stop} holds more than n = {n} samples")
    run = load_model(args.model, args.device)
    options = {"sampler": args.sampler, "steps": args.steps, "eta": args.eta, "seed": args.seed}
    scale = args.scale or max(1, 64 // max(run.shape[1:]))
    draw(
        Drawing(run, index, args.batch_size, options),
        Path(args.out),
        columns=args.columns,
        scale=scale,
        progress=not args.quiet,
    )
    print(args.out)
    return 0


# evaluate


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument(
        "--data", required=True, metavar="digits|FOLDER|FILE", help="digits: those held out from training; else all images"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--json", action="store_true", help="print JSON")
    _quiet(parser)


def _evaluate(args: argparse.Namespace) -> int:
    from tinyddpm._array import positive_int
    from tinyddpm._tasks import load_model, score
    from tinyddpm.training import load

    run = load_model(args.model, args.device)
    images = load(args.data)
    if args.data == run.config.data == "digits":
        images = images.split(run.config.held_out)[1]
    if args.limit is not None:
        images = images.rows(slice(positive_int("limit", args.limit)))
    if not len(images):
        raise ValueError(f"data: the run in {args.model} held out no image of {args.data}")
    result = score(run, images, seed=args.seed, batch_size=args.batch_size, progress=not args.quiet)
    if args.json:
        about = {"images": len(images), "levels": images.levels, "step": run.step}
        print(json.dumps({**about, **{k: {"mean": m, "error": e} for k, (m, e) in _in_bits(result).items()}}))
        return 0
    for name, (mean, error) in _in_bits(result).items():
        print(f"{_LABELS.get(name, name)}: {mean:.4f} +- {error:.4f}")
    print(f"images: {len(images)}\nlevels: {images.levels}")
    return 0


_LABELS = {
    "bits_per_dim": "bits/dim",
    "prior": "  L_T",
    "kl": "  L_{t-1}, t = 2..T",
    "decoder": "  L_0",
    "rate": "rate",
    "distortion": "distortion",
}


def _in_bits(vlb: VLB) -> dict[str, tuple[float, float]]:
    """The summary's terms, (mean, standard error), all in bits per dimension."""
    summary = vlb.summary()
    per_dim = summary["bits_per_dim"][0] / summary["total"][0]
    nats = ("prior", "kl", "decoder")
    order = ("bits_per_dim", *nats, "rate", "distortion")
    return {k: (summary[k][0] * per_dim, summary[k][1] * per_dim) if k in nats else tuple(summary[k]) for k in order}


# plot


def _plot_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="WHAT", help=", ".join(_PLOTS))
    parser.add_argument("path", metavar="PATH", help="the picture: FILE.png, .pdf or .svg")
    parser.add_argument("--model", metavar="DIR", help="the run to show; schedules and forward need none")
    parser.add_argument("--data", default="digits", metavar="digits|FOLDER|FILE", help="the images (default digits)")
    parser.add_argument("--limit", type=int, default=64, metavar="N", help="images that a bound is taken over (default 64)")
    parser.add_argument("--device", help="where to compute; by default the first CUDA device, else the CPU")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    _quiet(parser)


def _plot(args: argparse.Namespace) -> int:
    from tinyddpm import _array, plots

    make = _array.lookup("what", args.what, _PLOTS)
    _array.one_of("path", Path(args.path).suffix.lower(), plots.FORMATS)
    plots.save(make(args), args.path)
    print(args.path)
    return 0


def _needs_model(args: argparse.Namespace) -> Any:
    from tinyddpm._tasks import load_model

    if args.model is None:
        raise ValueError(f"model: plot {args.what} needs --model DIR")
    return load_model(args.model, args.device)


def _plot_schedules(args: argparse.Namespace) -> Any:
    from tinyddpm import plots

    return plots.schedules()


def _plot_forward(args: argparse.Namespace) -> Any:
    from tinyddpm import Diffusion, plots
    from tinyddpm.training import load

    d = Diffusion() if args.model is None else _needs_model(args).diffusion
    return plots.forward(d, load(args.data).scaled(slice(8)), seed=args.seed)


def _plot_loss(args: argparse.Namespace) -> Any:
    from tinyddpm import plots
    from tinyddpm._tasks import read_log

    if args.model is None:
        raise ValueError("model: plot loss needs --model DIR")
    return plots.loss(read_log(args.model))


def _plot_denoising(args: argparse.Namespace) -> Any:
    from tinyddpm import plots
    from tinyddpm._tasks import path

    return plots.trajectory(path(_needs_model(args), range(8), seed=args.seed, progress=not args.quiet))


def _plot_of_bound(name: str) -> Callable[[argparse.Namespace], Any]:
    def make(args: argparse.Namespace) -> Any:
        from tinyddpm import plots
        from tinyddpm._tasks import score
        from tinyddpm.training import load

        run = _needs_model(args)
        images = load(args.data).split(run.config.held_out)[1].rows(slice(args.limit))
        return getattr(plots, name)(score(run, images, seed=args.seed, progress=not args.quiet))

    return make


_PLOTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "schedules": _plot_schedules,
    "forward": _plot_forward,
    "denoising": _plot_denoising,
    "loss": _plot_loss,
    "bound": _plot_of_bound("bound"),
    "rate-distortion": _plot_of_bound("rate_distortion"),
}


# info


def _info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _info(args: argparse.Namespace) -> int:
    known = backends.available()
    if args.json:
        rows = {
            name: {"version": s.version, "devices": list(s.devices)} if s else {"reason": s.reason}
            for name, s in known.items()
        }
        about = {"version": __version__, "python": platform.python_version(), "platform": platform.platform()}
        print(json.dumps({**about, "backends": rows}))
        return 0
    print(f"tinyddpm {__version__}, Python {platform.python_version()}, {platform.platform()}")
    width = max(map(len, known))
    for name, status in known.items():
        print(f"  {name:{width}}  {status}")
    return 0


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "train on real digits, draw new ones, score the model: a few minutes on two cores",
        ("", "--out somewhere"),
        _demo_arguments,
        _demo,
    ),
    "train": Command(
        "train a U-Net on images",
        (
            "--data digits --steps 2000 --out runs/digits",
            "--data photos/ --steps 100000 --out runs/photos --channels 128 --checkpoint-every 5000",
            "--config photos.toml --lr 1e-4",
            "--out runs/photos --resume --steps 200000",
        ),
        _train_arguments,
        _train,
    ),
    "sample": Command(
        "draw samples from a trained run",
        (
            "--model runs/digits --out grid.png",
            "--model runs/digits --out samples.npz -n 50000 --sampler dpm++2m --steps 20",
            "--model runs/digits --out folder -n 50000 --index 10000:20000",
        ),
        _sample_arguments,
        _sample,
    ),
    "evaluate": Command(
        "bits per dimension of images under a trained run, with standard errors",
        ("--model runs/digits --data digits", "--model runs/photos --data held_out/ --limit 100 --json"),
        _evaluate_arguments,
        _evaluate,
    ),
    "plot": Command(
        "draw a figure",
        ("schedules schedules.pdf", "forward forward.png --data photos/", "bound bound.png --model runs/digits"),
        _plot_arguments,
        _plot,
    ),
    "info": Command("versions, backends and devices here", ("", "--json"), _info_arguments, _info),
}
"""Every command by name."""
