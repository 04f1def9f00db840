"""What a run leaves on disk: checkpoints that are whole or not there, and the lock that keeps two runs apart.

``DIR/checkpoints/step-N`` is one checkpoint, ``DIR/last`` a relative link to the newest.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from tinyddpm.nn import UNet, weights
from tinyddpm.nn.unet import CONFIG, EMA_WEIGHTS, WEIGHTS
from tinyddpm.training.config import TrainConfig

__all__ = [
    "EMA_WEIGHTS",
    "LAST",
    "LOCK",
    "OPTIMIZER",
    "SAMPLER",
    "WEIGHTS",
    "CheckpointError",
    "about",
    "find",
    "locked",
    "naming",
    "read_state",
    "restore",
    "save",
    "sweep",
]

OPTIMIZER, SAMPLER, STATE, LAST = "optimizer.safetensors", "sampler.safetensors", "state.json", "last"
LOCK = ".lock"
_FILES = frozenset({CONFIG, WEIGHTS, EMA_WEIGHTS, OPTIMIZER, SAMPLER, STATE})


class CheckpointError(OSError):
    """A file of a run could not be written; the message names it and the cause. What was whole before still is."""


def find(dir: str | os.PathLike[str]) -> Path | None:
    """The checkpoint folder that `dir` is or leads to; None where there is none."""
    folder = Path(dir)
    if os.path.lexists(folder / LAST):
        last = Path(os.path.realpath(folder / LAST))
        if not last.is_relative_to(folder.resolve()):
            raise ValueError(f"{folder / LAST}: leads out of the run's folder")
        return last  # what is missing there is damage, not a fresh start
    return folder.resolve() if (folder / STATE).exists() else None


def save(
    out: Path, step: int, ema: UNet, tensors: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Any], keep: int
) -> None:
    """Write the checkpoint of `step`, with a file for each entry of `tensors`, and make it the last one of `keep`."""
    target = out / "checkpoints" / f"step-{step:08d}"
    with naming(f"checkpoint {target}"):
        with weights.new_folder(target, replaces=_FILES) as folder:
            hashes = {name: weights.write_tensors(folder / name, values) for name, values in tensors.items()}
            hashes[EMA_WEIGHTS] = ema.write(folder, EMA_WEIGHTS)
            state = {"step": step, **about, "files": hashes}
            weights.write_json(folder / STATE, {**state, "sha256": _digest(state)})
        fresh = out / f".{LAST}.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(Path("checkpoints") / target.name)
        os.replace(fresh, out / LAST)
        weights.sync_folder(out)
    _prune(target, keep)


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


def restore(folder: Path, state: Mapping[str, Any], into: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Copy a checkpoint's tensors into the given ones, which are named by file."""
    for name, own in into.items():
        tensors, _ = weights.read_tensors(folder / name, own, state["files"].get(name, ""))
        for key, tensor in tensors.items():
            own[key].copy_(tensor)


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
        stream = open(out / LOCK, "w")  # noqa: SIM115
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"out: another run is writing to {out}") from None
        _locks.add(stream)
        try:
            yield
        finally:
            _locks.discard(stream)


_locks: set[TextIO] = set()


def _unlocked() -> None:
    """A forked child, a worker say, does not hold its parent's locks: they must end with the parent."""
    for stream in _locks:
        os.close(stream.fileno())


os.register_at_fork(after_in_child=_unlocked)


def sweep(out: Path) -> None:
    """Remove the temporary files that killed runs left in a locked folder."""
    with naming(f"out {out}"):
        for stale in (*out.glob(".*.new"), *out.glob("samples/.*.new")):
            stale.unlink()


def about(config: TrainConfig, shape: tuple[int, int, int], levels: int, images: int) -> dict[str, Any]:
    """What ``state.json`` says besides the step."""
    return {
        "config": asdict(config),
        "shape": list(shape),
        "levels": levels,
        "images": images,
        "random": {"kind": "counter", "seed": config.seed},  # (seed, step, row) is all the randomness there is
        "versions": _versions(),
        "commit": _commit(),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in ("tinyddpm", "torch", "numpy")}}


def _commit() -> str | None:
    """Of the Git repository that the run is started in, where it is started in one."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def _prune(newest: Path, keep: int) -> None:
    """Remove old checkpoints and what killed runs left."""
    steps = sorted(p for p in newest.parent.iterdir() if re.fullmatch(r"step-\d{8,}", p.name) and p.name <= newest.name)
    stale = [p for p in newest.parent.iterdir() if p.name.startswith(".step-")]
    for folder in (*steps[:-keep], *stale):
        shutil.rmtree(folder, ignore_errors=True)


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
