"""``log.jsonl``, one line a step, and the same numbers and the grids in TensorBoard and Weights & Biases."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tinyddpm._io.files import open_in_place, parse, read_bytes, sync, write
from tinyddpm.training.checkpoint import writing
from tinyddpm.training.config import TrainConfig

__all__ = ["Log", "read_lines", "require_loggers"]

_LIMIT = 2**30  # bytes: some millions of steps


class Log:
    """The log `file` of a run that has made `start` steps; lines of later steps are dropped, as these steps are made again."""

    def __init__(self, file: Path, start: int, config: TrainConfig | None = None) -> None:
        self._name = f"log {file}"
        with writing(self._name):
            kept = b""
            if start and file.exists():
                lines = read_bytes(file, _LIMIT).splitlines(keepends=True)
                kept = b"".join(line for line in lines if 1 <= _step(line) <= start)
            write(file, kept)
            self._stream = open_in_place(file)
            self._stream.seek(0, os.SEEK_END)
        wanted = () if config is None else _wanted(config.log_to)
        self._boards = [_BOARDS[name](file.parent, start, config) for name in wanted]

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line."""
        with writing(self._name):
            self._stream.write(json.dumps(record).encode() + b"\n")
            self._stream.flush()
        numbers = {name: value for name, value in record.items() if isinstance(value, float)}
        for board in self._boards:
            board.write(numbers, record["step"])

    def show(self, picture: NDArray[Any], step: int) -> None:
        """Show a sample grid (height, width, C)."""
        for board in self._boards:
            board.show(picture, step)

    def sync(self) -> None:
        """Flush the log to the disk, as a checkpoint must not be newer than the log."""
        with writing(self._name):
            sync(self._stream)
        for board in self._boards:
            board.sync()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()
        for board in self._boards:
            board.close()


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a log."""
    return [parse(f"{file}: a line", line) for line in read_bytes(file, _LIMIT).splitlines()]


def require_loggers(log_to: tuple[str, ...] | None) -> None:
    """Raise ValueError if one of the named packages is not installed."""
    for name in log_to or ():
        if find_spec(name) is None:
            raise ValueError(f"log_to must name installed packages, got {name!r}; pip install {name} brings it")


def _wanted(log_to: tuple[str, ...] | None) -> tuple[str, ...]:
    """The packages to log to; by default those that are installed and, of Weights & Biases, set up."""
    if log_to is not None:
        return log_to
    chosen = {"tensorboard": True, "wandb": any(os.environ.get(key) for key in ("WANDB_API_KEY", "WANDB_MODE"))}
    return tuple(name for name, ready in chosen.items() if ready and find_spec(name) is not None)


class _TensorBoard:
    """Events in ``DIR/tensorboard``; those of the steps after `start` are hidden."""

    def __init__(self, out: Path, start: int, config: TrainConfig) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1)

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def show(self, picture: NDArray[Any], step: int) -> None:
        self._writer.add_image("samples", picture, step, dataformats="HWC")

    def sync(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """A run of the project "tinyddpm", or of WANDB_PROJECT, under the run folder's name; a resumed run goes on in it."""

    def __init__(self, out: Path, start: int, config: TrainConfig) -> None:
        wandb = import_module("wandb")
        name = hashlib.sha256(os.fsencode(out.resolve())).hexdigest()[:16]
        project = os.environ.get("WANDB_PROJECT", "tinyddpm")
        self._run = wandb.init(
            project=project, name=out.name, id=name, resume="allow" if start else None, dir=str(out), config=asdict(config)
        )
        self._image = wandb.Image

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def show(self, picture: NDArray[Any], step: int) -> None:
        self._run.log({"samples": self._image(picture.squeeze())}, step=step)

    def sync(self) -> None:
        """It sends what it gets by itself."""

    def close(self) -> None:
        self._run.finish()


_BOARDS: dict[str, Any] = {"tensorboard": _TensorBoard, "wandb": _WandB}


def _step(line: bytes) -> int:
    """The step of a line of the log; -1 if the line is damaged."""
    try:
        step = json.loads(line)["step"] if line.endswith(b"\n") else -1
    except (ValueError, KeyError, TypeError):
        return -1
    return step if type(step) is int else -1
