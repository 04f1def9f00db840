"""``tinyddpm train``."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from tinyddpm import schedules
from tinyddpm._arrays.check import one_of
from tinyddpm._commands import command_line, takes_output
from tinyddpm.conversions import KINDS
from tinyddpm.training import TrainConfig, train
from tinyddpm.training.checkpoint import find, read_state
from tinyddpm.training.config import OBJECTIVES

__all__ = ["EXAMPLES", "arguments", "run"]

EXAMPLES = (
    "--data digits --steps 2000 --out runs/digits",
    "--data photos/ --steps 100000 --out runs/photos --channels 128 --checkpoint-every 5000",
    "--config photos.toml --lr 1e-4",
    "--out runs/photos --resume --steps 200000",
)
_METAVARS = {"data": "digits|FOLDER|FILE", "out": "DIR"}
_HEADINGS = {
    "data": "images", "out": "run", "optimizer": "optimiser", "T": "diffusion", "classes": "classes",
    "channels": "network", "flip": "images", "precision": "machine", "checkpoint_every": "files", "device": "machine",
}  # fmt: skip
"""Of the flags, from this one on."""
_ABOUT = {
    "data": "scikit-learn's digits, a folder of images or of .tar files, or a .tar, .npy, .npz or idx file",
    "lr": "the learning rate",
    "T": "steps of the diffusion",
    "schedule": f"of the betas: {', '.join(schedules.NAMES)}",
    "predicts": f"what the network returns: {', '.join(KINDS)}",
    "objective": f"the loss: {', '.join(OBJECTIVES)}",
    "variance": "of the reverse process: beta, beta_tilde, learned, learned_range",
    "channels": "the network's width",
    "dropout": "within each block",
    "weight_decay": "of adamw",
    "res_blocks": "at each level of the network",
    "checkpoint_every": "steps between checkpoints",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for each field of `TrainConfig`."""
    parser.add_argument("--config", metavar="FILE", help="a TOML file of such settings, lr = 1e-4; flags override it")
    takes_output(parser, quiet="show no progress, and not the settings")
    groups = {heading: parser.add_argument_group(heading) for heading in dict.fromkeys(_HEADINGS.values())}
    about, heading = _docs(TrainConfig), ""
    for field in dataclasses.fields(TrainConfig):
        heading = _HEADINGS.get(field.name, heading)
        flag, kind = "--" + field.name.replace("_", "-"), str(field.type).removesuffix(" | None")
        text = _ABOUT.get(field.name) or _plain(about[field.name])
        default = "" if field.default is None or kind == "bool" else f" (default {field.default})"
        given: dict[str, Any] = {"default": argparse.SUPPRESS, "help": f"{text}{default}".replace("%", "%%")}
        if kind == "bool":
            groups[heading].add_argument(flag, action=argparse.BooleanOptionalAction, **given)
        elif "tuple" in kind:
            groups[heading].add_argument(flag, type=_ints, metavar="N,N,...", **given)
        else:
            parse = {"int": int, "float": float}.get(kind, str)
            metavar = _METAVARS.get(field.name, {int: "N", float: "X"}.get(parse, "NAME"))
            groups[heading].add_argument(flag, type=parse, metavar=metavar, **given)


def run(args: argparse.Namespace) -> Iterator[str]:
    """Train; the settings, the checkpoint's path, and commands to go on with; or the first two as JSON."""
    config = _config({k: v for k, v in vars(args).items() if k not in ("config", "quiet", "json")}, args.config)
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
    record = Path(config.out, "config.json")
    skipped = json.loads(record.read_bytes())["skipped"]
    if args.json:
        about = {"checkpoint": str(last), "skipped": skipped, "settings": dataclasses.asdict(config)}
        yield json.dumps(about, indent=2)
        return
    if skipped:
        yield f"skipped:    {len(skipped)} files that can't be read; {record} names them"
    yield f"checkpoint: {last}"
    yield f"samples:    {command_line('sample', '--model', config.out, '--out', Path(config.out, 'samples.png'))}"
    yield f"go on:      {command_line(*resume, '--steps', 2 * config.steps)}"


def _config(flags: Mapping[str, Any], file: str | None) -> TrainConfig:
    """The flags, over the TOML file, over the run itself where it is resumed, over the defaults."""
    given = {**(_read(file) if file else {}), **flags}
    if given.get("resume") and (checkpoint := find(given.get("out", TrainConfig.out))):
        given = {**read_state(checkpoint)["config"], **given}
    return TrainConfig.from_dict(given)


def _read(file: str) -> dict[str, Any]:
    try:
        with open(file, "rb") as stream:
            given = tomllib.load(stream)
    except ValueError as error:
        raise ValueError(f"config: {file}: {error}") from error
    known = tuple(field.name for field in dataclasses.fields(TrainConfig))
    for name in given:
        one_of(f"config: {file}", name, known)
    return given


def _as_toml(config: TrainConfig) -> str:
    """The settings, as ``--config`` reads them."""
    settings = dataclasses.asdict(config)
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items() if value is not None)


def _docs(cls: type) -> dict[str, str]:
    """The docstrings of a dataclass's fields, which stand below them in its source."""
    (tree,) = ast.parse(inspect.getsource(cls)).body
    pairs = pairwise(tree.body) if isinstance(tree, ast.ClassDef) else ()
    return {
        field.target.id: " ".join(below.value.value.split()).rstrip(".")
        for field, below in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }  # fmt: skip


def _plain(text: str) -> str:
    """A docstring as help: without markup, and as part of a line."""
    text = text.replace("`", "")
    return text if text[1:2].isupper() else text[0].lower() + text[1:]


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))
