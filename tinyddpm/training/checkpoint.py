"""What a run leaves on disk: checkpoints that are whole or not there, a log, and the lock that keeps two runs apart.

``DIR/checkpoints/step-N`` is one checkpoint, ``DIR/last`` a relative link to the newest.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyddpm._files import replacing
from tinyddpm.denoiser import Denoiser
from tinyddpm.diffusion import Diffusion
from tinyddpm.nn import UNet, weights
from tinyddpm.nn.unet import CONFIG, EMA_WEIGHTS, WEIGHTS
from tinyddpm.training.config import TrainConfig

__all__ = ["CheckpointError", "Log", "Run", "find", "load_run", "locked", "naming", "read_state", "save", "versions"]

OPTIMIZER, STATE, LAST = "optimizer.safetensors", "state.json", "last"
_FILES = frozenset({CONFIG, WEIGHTS, EMA_WEIGHTS, OPTIMIZER, STATE})
_KEEP = 2


class CheckpointError(OSError):
    """A file of a run could not be written; the message names it and the cause. What was whole before still is."""


@dataclass(frozen=True)
class Run:
    """A trained network, as a checkpoint holds it."""

    net: UNet
    """With averaged weights, in eval mode."""
    diffusion: Diffusion
    denoiser: Denoiser
    config: TrainConfig
    step: int
    shape: tuple[int, int, int]
    """One image's (channels, height, width)."""
    levels: int
    """Of the images that it was trained on."""


def load_run(dir: str | os.PathLike[str], device: str | None = None) -> Run:
    """The run in a run folder (its last checkpoint) or in a checkpoint folder, ready to sample from.

    Raises `FileNotFoundError` or `ValueError` naming what is missing or damaged.
    """
    folder = find(dir)
    if folder is None:
        there = "is no run: it holds neither last nor state.json" if Path(dir).is_dir() else "there is no such folder"
        raise FileNotFoundError(f"model: {os.fspath(dir)}: {there}")
    state = read_state(folder)
    config = TrainConfig.from_dict(state["config"])
    net = UNet.load(folder)
    return Run(
        net.to(device or "cpu", memory_format=torch.channels_last).requires_grad_(False),  # type: ignore[call-overload]
        config.diffusion(), config.denoiser(net), config, state["step"], tuple(state["shape"]), state["levels"],
    )  # fmt: skip


def find(dir: str | os.PathLike[str]) -> Path | None:
    """The checkpoint folder that `dir` is or leads to; None where there is none."""
    folder = Path(dir)
    if os.path.lexists(folder / LAST):
        return (folder / LAST).resolve()  # what is missing there is damage, not a fresh start
    return folder.resolve() if (folder / STATE).exists() else None


def save(out: Path, step: int, net: UNet, ema: UNet, optimizer: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write the checkpoint of `step` and make it the last one; older ones but one are removed."""
    target = out / "checkpoints" / f"step-{step:08d}"
    with naming(f"checkpoint {target}"):
        with weights.new_folder(target, replaces=_FILES) as folder:
            hashes = {
                WEIGHTS: weights.write_tensors(folder / WEIGHTS, net.state_dict()),
                EMA_WEIGHTS: ema.write(folder, EMA_WEIGHTS),
                OPTIMIZER: weights.write_tensors(folder / OPTIMIZER, optimizer),
            }
            state = {"step": step, **about, "files": hashes}
            weights.write_json(folder / STATE, {**state, "sha256": _digest(state)})
        fresh = out / f".{LAST}.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(Path("checkpoints") / target.name)
        os.replace(fresh, out / LAST)
        weights.sync_folder(out)
    _prune(target)


def read_state(folder: Path) -> dict[str, Any]:
    """``state.json`` of a checkpoint, checked."""
    file = folder / STATE
    state = weights.read_json(file)
    recorded = state.pop("sha256", None)
    if recorded != _digest(state):
        raise ValueError(f"{file}: its SHA-256 is not the recorded one")
    for key, kind in (("step", int), ("config", dict), ("files", dict), ("shape", list), ("levels", int)):
        if type(state.get(key)) is not kind:
            raise ValueError(f"{file}: the key {key!r} is missing or malformed")
    return state


def restore(folder: Path, state: Mapping[str, Any], net: UNet, ema: UNet, optimizer: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's tensors into the given ones."""
    for name, into in ((WEIGHTS, net.state_dict()), (EMA_WEIGHTS, ema.state_dict()), (OPTIMIZER, optimizer)):
        tensors, _ = weights.read_tensors(folder / name, into, state["files"].get(name, ""))
        for key, tensor in tensors.items():
            into[key].copy_(tensor)


class Log:
    """``log.jsonl``: one line a step. Lines after the step `start` are dropped: that part of the run comes again."""

    def __init__(self, file: Path, start: int) -> None:
        self._name = f"log {file}"
        with naming(self._name):
            kept = b""
            if start and file.exists():
                lines = file.read_bytes().splitlines(keepends=True)
                kept = b"".join(line for line in lines if 1 <= _step(line) <= start)
            with replacing(file) as stream:
                stream.write(kept)
            self._stream = open(file, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line."""
        with naming(self._name):
            self._stream.write(json.dumps(record) + "\n")
            self._stream.flush()

    def sync(self) -> None:
        """Make what was written last: before a checkpoint that counts on it."""
        with naming(self._name):
            os.fsync(self._stream.fileno())

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Any failure to write becomes a `CheckpointError` that names `what`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{what}: can't be written: {error.strerror or error}") from error


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other runs out of the folder `out` until the block, or this process, ends."""
    import fcntl

    with naming(f"out {out}"):
        out.mkdir(parents=True, exist_ok=True)
        stream = open(out / ".lock", "w")  # noqa: SIM115
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"out: another run is writing to {out}") from None
        yield


def versions() -> dict[str, str]:
    """What the run was made with."""
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in ("tinyddpm", "torch", "numpy")}}


def about(config: TrainConfig, shape: tuple[int, int, int], levels: int, images: int) -> dict[str, Any]:
    """What ``state.json`` says besides the step."""
    return {
        "config": asdict(config),
        "shape": list(shape),
        "levels": levels,
        "images": images,
        "random": {"kind": "counter", "seed": config.seed},  # (seed, step, row) is all the randomness there is
        "versions": versions(),
    }


def _prune(newest: Path) -> None:
    """Remove old checkpoints and what killed runs left."""
    steps = sorted(p for p in newest.parent.iterdir() if re.fullmatch(r"step-\d{8,}", p.name) and p.name <= newest.name)
    stale = [p for p in newest.parent.iterdir() if p.name.startswith(".step-")]
    for folder in (*steps[:-_KEEP], *stale):
        shutil.rmtree(folder, ignore_errors=True)


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _step(line: bytes) -> int:
    """The step of a line of the log; -1 where it was cut short."""
    try:
        step = json.loads(line)["step"] if line.endswith(b"\n") else -1
    except (ValueError, KeyError, TypeError):
        return -1
    return step if type(step) is int else -1
