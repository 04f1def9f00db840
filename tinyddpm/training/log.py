"""``log.jsonl``, one line a step, and the same numbers as TensorBoard events if TensorBoard is installed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tinyddpm._io.files import replacing
from tinyddpm.training.checkpoint import writing

__all__ = ["Log"]


class Log:
    """The log `file` of a run that has made `start` steps; lines of later steps are dropped, as these steps are made again."""

    def __init__(self, file: Path, start: int) -> None:
        self._name = f"log {file}"
        with writing(self._name):
            kept = b""
            if start and file.exists():
                lines = file.read_bytes().splitlines(keepends=True)
                kept = b"".join(line for line in lines if 1 <= _step(line) <= start)
            with replacing(file) as stream:
                stream.write(kept)
            self._stream = open(file, "a", encoding="utf-8")  # noqa: SIM115
        self._board = _board(file.with_name("tensorboard"), start)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line."""
        with writing(self._name):
            self._stream.write(json.dumps(record) + "\n")
            self._stream.flush()
        if self._board is not None:
            for name, value in record.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, record["step"])

    def show(self, picture: NDArray[Any], step: int) -> None:
        """Show a sample grid (height, width, C) in TensorBoard."""
        if self._board is not None:
            self._board.add_image("samples", picture, step, dataformats="HWC")

    def sync(self) -> None:
        """Flush the log to the disk, as a checkpoint must not be newer than the log."""
        with writing(self._name):
            os.fsync(self._stream.fileno())
        if self._board is not None:
            self._board.flush()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()
        if self._board is not None:
            self._board.close()


def _board(folder: Path, start: int) -> Any:
    """TensorBoard's writer, which hides earlier events of the steps after `start`; None if TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=start + 1)


def _step(line: bytes) -> int:
    """The step of a line of the log; -1 if the line is damaged."""
    try:
        step = json.loads(line)["step"] if line.endswith(b"\n") else -1
    except (ValueError, KeyError, TypeError):
        return -1
    return step if type(step) is int else -1
