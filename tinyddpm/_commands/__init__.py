"""The commands of `tinyddpm.cli`, one module each, and the flags that they share."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import shutil
import sys
from pathlib import Path


def command_line(*words: object) -> str:
    """A `tinyddpm` command that can be pasted into the shell that started this process."""
    started = sys.argv[0]
    if Path(started).name != "tinyddpm":
        program = f"{Path(sys.executable).name} -m tinyddpm"
    else:
        program = "tinyddpm" if shutil.which("tinyddpm") == os.path.abspath(started) else started
    return f"{program} {shlex.join(map(str, words))}"


def plus_minus(value: float, error: float, digits: int = 4) -> str:
    """A value with its standard error, which one image does not have."""
    return f"{value:.{digits}f} +- {error:.{digits}f}" if math.isfinite(error) else f"{value:.{digits}f} (no error, of one image)"


def takes_output(parser: argparse.ArgumentParser, quiet: str = "show no progress") -> None:
    """Add ``--quiet`` and ``--json``, which every command has."""
    parser.add_argument("-q", "--quiet", action="store_true", help=quiet)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def takes_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device`` and ``--seed``."""
    parser.add_argument("--device", metavar="NAME", help="Torch device (default: the first CUDA device, else the CPU)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the noise (default 0)")


def takes_model(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``, ``--batch-size``, ``--device``, ``--seed``, ``--quiet`` and ``--json``."""
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="run, saved network with its chain, or diffusers pipeline: its folder"
    )
    parser.add_argument("--batch-size", type=int, default=250, metavar="N", help="images per call of the network (default 250)")
    takes_device(parser)
    takes_output(parser)
