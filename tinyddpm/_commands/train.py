"""``tinyddpm train``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tinyddpm._commands import command_line, takes_output
from tinyddpm._io.progress import say
from tinyddpm.nn.weights import read_json
from tinyddpm.training import TrainConfig, train
from tinyddpm.training.checkpoint import find, read_state
from tinyddpm.training.config import refuse_unknown
from tinyddpm.training.fields import help_of

__all__ = ["EXAMPLES", "arguments", "run"]

EXAMPLES = (
    "--data digits --steps 2000 --out runs/digits",
    "--data photos/ --steps 100000 --out runs/photos --channels 128 --checkpoint-every 5000",
    "--config photos.toml --lr 1e-4",
    "--out runs/photos --resume --steps 200000",
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for each field of `TrainConfig`."""
    parser.add_argument("--config", metavar="FILE", help="a TOML file of such settings, lr = 1e-4; flags override it")
    parser.add_argument("--calibrate", action="store_true", help="run tinyddpm calibrate at the end")
    takes_output(parser, quiet="show no progress, and not the settings")
    fields = dataclasses.fields(TrainConfig)
    groups = {name: parser.add_argument_group(name) for name in dict.fromkeys(f.metadata["group"] for f in fields)}
    for field in fields:
        about, flag = field.metadata, "--" + field.name.replace("_", "-")
        given: dict[str, Any] = {"default": argparse.SUPPRESS, "help": help_of(field).replace("`", "").replace("%", "%%")}
        if about["parse"]:
            given |= {"type": about["parse"], "metavar": about["metavar"]}
        else:
            given["action"] = argparse.BooleanOptionalAction
        groups[about["group"]].add_argument(flag, **given)


def run(args: argparse.Namespace) -> Iterator[str]:
    """Train; the settings, the checkpoint's path, and commands to go on with; or the first two as JSON."""
    config = _config({k: v for k, v in vars(args).items() if k not in ("config", "quiet", "json", "calibrate")}, args.config)
    speaks = os.environ.get("RANK", "0") == "0"
    if speaks and not args.quiet and not args.json:
        yield _as_toml(config)
    resume = ("train", "--out", config.out, "--resume")
    try:
        last = train(config, progress=not args.quiet)
    except KeyboardInterrupt as interrupt:
        interrupt.args = (f"{interrupt or 'interrupted'}; go on with: {command_line(*resume)}",)
        raise
    if not speaks:
        return
    calibrated = list(_calibrated(config.out, args)) if args.calibrate else []
    record = Path(config.out, "config.json")
    skipped = json.loads(record.read_bytes())["skipped"]
    if args.json:
        about = {"checkpoint": str(last), "skipped": skipped, "settings": dataclasses.asdict(config)}
        yield json.dumps(about, indent=2)
        return
    if skipped:
        yield f"skipped:    {len(skipped)} files that can't be read; {record} names them"
    yield f"checkpoint: {last}"
    if args.calibrate:
        yield from calibrated
    yield f"samples:    {command_line('sample', '--model', config.out, '--out', Path(config.out, 'samples.png'))}"
    yield f"go on:      {command_line(*resume, '--steps', 2 * config.steps)}"


def _calibrated(out: str, args: argparse.Namespace) -> Iterator[str]:
    """What ``tinyddpm calibrate`` says of the run."""
    from tinyddpm._commands import calibrate

    parser = argparse.ArgumentParser()
    calibrate.arguments(parser)
    yield from calibrate.run(parser.parse_args(["--model", out, *(["--quiet"] if args.quiet or args.json else [])]))


def _config(flags: Mapping[str, Any], file: str | None) -> TrainConfig:
    """The flags, over the TOML file, over the run itself where it is resumed, over the defaults."""
    given = {**(_read(file) if file else {}), **flags}
    if given.get("resume"):
        given = {**_settings_of(given.get("out", TrainConfig.out), "data" in given), **given}
    return TrainConfig.from_dict(given)


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
    try:
        with open(file, "rb") as stream:
            given = tomllib.load(stream)
    except ValueError as error:
        raise ValueError(f"config: {file}: {error}") from error
    refuse_unknown(f"config: {file}", given)
    return given


def _as_toml(config: TrainConfig) -> str:
    """The settings, as ``--config`` reads them."""
    settings = dataclasses.asdict(config)
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items() if value is not None)
