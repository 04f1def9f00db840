"""``tinyddpm train``."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tinyddpm._commands import command_line, takes_output
from tinyddpm._io.files import parse, read_bytes, read_json, shown
from tinyddpm._io.progress import say
from tinyddpm.training import TrainConfig, presets, train
from tinyddpm.training.checkpoint import find, read_state
from tinyddpm.training.config import refuse_unknown
from tinyddpm.training.fields import help_of
from tinyddpm.training.initial import settings_of
from tinyddpm.training.world import processes

__all__ = ["EXAMPLES", "arguments", "run"]

_CONFIG_LIMIT = 2**20  # bytes

EXAMPLES = (
    "--data digits --steps 2000 --out runs/digits",
    "--data photos/ --out runs/photos --minutes 20",
    "--data photos/ --steps 100000 --out runs/photos --channels 128 --checkpoint-every 5000",
    "--config photos.toml --lr 1e-4",
    "--out runs/photos --resume --steps 200000",
    "--data cats/ --out runs/cats --init-from runs/photos --minutes 5",
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for each field of `TrainConfig`."""
    parser.add_argument("--config", metavar="FILE", help="a TOML file of such settings, lr = 1e-4; flags override it")
    parser.add_argument("--calibrate", action="store_true", help="run tinyddpm calibrate at the end")
    takes_output(parser, quiet="show no progress, and not the settings")
    which = "settings to begin with, which the others override: cpu, gpu or ho2020 (default: by the device; none with --config)"
    parser.add_argument("--preset", metavar="NAME", default=argparse.SUPPRESS, help=which)
    fits = "choose the number of steps for so many minutes, by the time that the first ones take"
    parser.add_argument("--minutes", metavar="X", type=float, default=argparse.SUPPRESS, help=fits)
    fields = dataclasses.fields(TrainConfig)
    groups = {name: parser.add_argument_group(name) for name in dict.fromkeys(f.metadata["group"] for f in fields)}
    for field in fields:
        about, flag = field.metadata, "--" + field.name.replace("_", "-")
        text = help_of(field, presets.SIZED).replace("`", "").replace("%", "%%")
        given: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
        if about["parse"]:
            words = {"nargs": len(about["metavar"])} if isinstance(about["metavar"], tuple) else {}
            given |= {"type": about["parse"], "metavar": about["metavar"], **words}
        else:
            given["action"] = argparse.BooleanOptionalAction
        groups[about["group"]].add_argument(flag, **given)


def run(args: argparse.Namespace) -> Iterator[str]:
    """Train; the settings, the checkpoint's path, and commands to go on with; or the first two as JSON."""
    flags = {k: v for k, v in vars(args).items() if k not in ("config", "quiet", "json", "calibrate")}
    config, reasons = _config(flags, args.config)
    speaks = processes()[0] == 0
    if speaks and not args.quiet and not args.json:
        yield "\n".join([*(f"# {reason}" for reason in reasons), _as_toml(config)])
    resume = ("train", "--out", config.out, "--resume")
    try:
        last = train(config, progress=not args.quiet)
    except KeyboardInterrupt as interrupt:
        interrupt.args = (f"{str(interrupt) or 'interrupted'}; go on with: {command_line(*resume)}",)
        raise
    if not speaks:
        return
    calibrated = list(_calibrated(config.out, args)) if args.calibrate else []
    record = Path(config.out, "config.json")
    skipped = read_json(record)["skipped"]
    if args.json:
        about = {"checkpoint": str(last), "skipped": skipped, "settings": dataclasses.asdict(config)}
        yield json.dumps(about, indent=2)
        return
    if skipped:
        yield f"skipped:    {len(skipped)} files that can't be read; {record} names them"
    yield f"checkpoint: {last}"
    if args.calibrate:
        yield from calibrated
    fast = ("--sampler", "dpm++2m", "--steps", min(20, config.T))
    samples = Path(config.out, "samples.png" if read_json(record)["shape"][0] in (1, 3) else "samples.npz")
    yield f"samples:    {command_line('sample', '--model', config.out, '--out', samples, *fast)}"
    yield f"go on:      {command_line(*resume, '--steps', 2 * config.steps)}"


def _calibrated(out: str, args: argparse.Namespace) -> Iterator[str]:
    """What ``tinyddpm calibrate`` says of the run."""
    from tinyddpm._commands import calibrate

    parser = argparse.ArgumentParser()
    calibrate.arguments(parser)
    yield from calibrate.run(parser.parse_args(["--model", out, *(["--quiet"] if args.quiet or args.json else [])]))


def _config(flags: Mapping[str, Any], file: str | None) -> tuple[TrainConfig, list[str]]:
    """The flags, over the TOML file, over the run itself where it is resumed, else over a preset; and lines that say why.

    A file brings its own settings: without a flag for it there is no preset then.
    """
    given = {**(_read(file) if file else {}), **flags}
    name, minutes = given.pop("preset", None), given.pop("minutes", None)
    if given.get("resume") and (own := _settings_of(given.get("out", TrainConfig.out), "data" in given)):
        for key, value in (("preset", name), ("minutes", minutes)):
            if value is not None:
                raise ValueError(f"{key} must not be given to a run that goes on with its own settings, got {value}")
        return TrainConfig.from_dict({**own, **given}), []
    if given.get("init_from"):
        given = {**settings_of(given["init_from"]), **given}
    preset = None if file and name is None else presets.chosen(name, given)
    reasons = list[str]()
    if minutes is not None:
        if "steps" in flags:
            raise ValueError(f"minutes must be left out if --steps is given, got {minutes:g}")
        found, reasons = presets.steps_in(minutes, _settled(preset, given))
        given |= found
    config = _settled(preset, given)
    return config, [presets.reason(preset, name is not None, given, config), *reasons] if preset else reasons


def _settled(preset: str | None, given: Mapping[str, Any]) -> TrainConfig:
    """What is given, over the preset if there is one."""
    return TrainConfig.from_dict(dict(given)) if preset is None else presets.preset(preset, **given)


def _settings_of(out: str, starts: bool) -> dict[str, Any]:
    """The settings of the run in `out`; of one without a checkpoint those that it began with, or none if `starts`."""
    if checkpoint := find(out):
        return dict(read_state(checkpoint)["config"])
    begun = Path(out, "config.json")
    if begun.is_file():
        say(f"resume: the run in {out} has no checkpoint yet; it starts afresh with its settings")
        return dict(read_json(begun)["config"])
    if not starts:
        raise FileNotFoundError(f"resume: {out} holds no run to go on with; name --data to start one there")
    say(f"resume: {out} holds no run to go on with; one starts there")
    return {}


def _read(file: str) -> dict[str, Any]:
    given = parse(f"config: {shown(file)}: it", read_bytes(file, _CONFIG_LIMIT), "TOML")
    refuse_unknown(f"config: {shown(file)}", given)
    return given


def _as_toml(config: TrainConfig) -> str:
    """The settings, as ``--config`` reads them."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    return "\n".join(_toml_line(name, value) for name, value in settings.items())


def _toml_line(name: str, value: Any) -> str:
    """A setting; TOML has no word for a name of a file that is no text."""
    if not isinstance(value, str):
        return f"{name} = {json.dumps(value)}"
    if any(0xD800 <= ord(c) < 0xE000 for c in value):
        return f"# {name} is {shown(value)}, which TOML can't hold: --{name.replace('_', '-')} has to be given"
    text = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08X}" for c in value)
    return f'{name} = "{text}"'
