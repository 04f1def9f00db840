"""A run's files: checkpoints, each written whole or not at all, and the lock that keeps other runs out of the folder.

``DIR/checkpoints/step-N`` is one checkpoint, ``DIR/last`` a relative link to the newest; copies of a run may have a folder there,
or nothing.
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
from typing import Any, BinaryIO

from torch import Tensor

from tinyddpm._io import files
from tinyddpm._io.progress import say
from tinyddpm.nn import UNet, weights
from tinyddpm.nn._folders import sync_folder
from tinyddpm.nn.unet import CONFIG, EMA_WEIGHTS, WEIGHTS
from tinyddpm.training.config import TrainConfig

__all__ = [
    "EMA_WEIGHTS",
    "LAST",
    "LOCK",
    "OPTIMIZER",
    "SAMPLER",
    "STATE",
    "WEIGHTS",
    "CheckpointError",
    "about",
    "check_place",
    "find",
    "link",
    "locked",
    "prune",
    "read_state",
    "restore",
    "save",
    "sweep",
    "writing",
]

OPTIMIZER, SAMPLER, STATE, LAST = "optimizer.safetensors", "sampler.safetensors", "state.json", "last"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"
_FILES = frozenset({CONFIG, WEIGHTS, EMA_WEIGHTS, OPTIMIZER, SAMPLER, STATE})


class CheckpointError(OSError):
    """A file of a run could not be written; the message names it and the cause. Earlier checkpoints are unharmed."""


def find(dir: str | os.PathLike[str]) -> Path | None:
    """The checkpoint in a run folder or checkpoint folder.

    Parameters
    ----------
    dir : str or path
        A run folder, whose last checkpoint is meant, or a checkpoint folder.

    Returns
    -------
    Path or None
        The checkpoint folder; None if there is none.

    Raises
    ------
    ValueError
        If the link to the last checkpoint points outside the run folder.
    """
    folder = Path(dir)
    last = Path(os.path.realpath(folder / LAST))
    if not any(last.is_relative_to(place.resolve()) for place in (folder, folder / CHECKPOINTS)):
        raise ValueError(f"{folder / LAST}: points outside the run folder")
    if last.is_dir() or (folder / LAST).is_symlink():
        return last  # even if it is missing: that is damage, not a new run
    return folder.resolve() if (folder / STATE).exists() else _newest(folder)


def check_place(out: Path) -> None:
    """Raise ValueError if `out` is a checkpoint, or within one or among those of another run."""
    whole = out.resolve()
    for folder in (whole, *whole.parents):
        among = folder.name == CHECKPOINTS and (folder.parent / "log.jsonl").exists()
        if among or (folder / STATE).exists():
            run = folder.parent if among else folder.parent.parent if folder.parent.name == CHECKPOINTS else folder.parent
            where = "which is a checkpoint" if folder == whole and not among else f"which is within the run {run}"
            raise ValueError(f"out must be a run folder, got {out}, {where}")


def _newest(out: Path) -> Path | None:
    """The newest whole checkpoint of a run folder whose ``last`` leads to none, as when a copy or an archive lost the link."""
    for folder in reversed(_steps(out / CHECKPOINTS)):
        try:
            recorded = read_state(folder)["files"]
            if recorded.keys() <= _FILES and all(_sha256(folder / name) == value for name, value in recorded.items()):
                return folder.resolve()
        except (OSError, ValueError):
            continue
    return None


def _sha256(file: Path) -> str:
    """The hash of a regular file's content."""
    with files.open_regular(file, links=False) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _steps(checkpoints: Path) -> list[Path]:
    """The checkpoint folders, from the oldest to the newest."""
    found = checkpoints.glob("step-*") if checkpoints.is_dir() else ()
    named = (p for p in found if re.fullmatch(r"step-\d{8,18}", p.name) and not p.is_symlink())
    return sorted(named, key=lambda p: int(p.name[5:]))


def save(
    out: Path, step: int, ema: UNet, tensors: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Any], keep: int
) -> None:
    """Write the checkpoint of `step`, with a file for each entry of `tensors`, and make it the last one of `keep`."""
    target = out / CHECKPOINTS / f"step-{step:08d}"
    with writing(f"checkpoint {target}"):
        with weights.new_folder(target, replaces=_FILES) as folder:
            hashes = {name: weights.write_tensors(folder / name, values) for name, values in tensors.items()}
            hashes[EMA_WEIGHTS] = ema.write(folder, EMA_WEIGHTS)
            state = {"step": step, **about, "files": hashes}
            weights.write_json(folder / STATE, {**state, "sha256": _digest(state)})
        link(out, target)
    prune(target, keep)


def link(out: Path, target: Path) -> None:
    """Make ``last`` a link to `target`, or a copy of it where the file system has no links.

    A folder, as copies of a run have it, is moved aside first; if the process is killed then, `find` takes the newest checkpoint.
    """
    last, fresh, aside = out / LAST, out / f".{LAST}.new", out / CHECKPOINTS / f".step-{LAST}"
    _remove(fresh)
    try:
        fresh.symlink_to(Path(CHECKPOINTS) / target.name)
    except OSError:
        shutil.copytree(target, fresh)
    if last.is_dir() and not last.is_symlink():
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(last, aside)
    elif fresh.is_dir() and not fresh.is_symlink():
        last.unlink(missing_ok=True)
    os.replace(fresh, last)
    sync_folder(out)


def _remove(path: Path) -> None:
    """Remove a folder, a file or a link, if it is there."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def read_state(folder: Path) -> dict[str, Any]:
    """Read and check ``state.json`` of a checkpoint.

    Parameters
    ----------
    folder : Path
        The checkpoint folder.

    Returns
    -------
    dict
        The keys step, config, files, shape, levels and others.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file is missing or damaged.
    """
    file = folder / STATE
    state = weights.read_json(file)
    recorded = state.pop("sha256", None)
    if recorded != _digest(state):
        raise ValueError(f"{file}: the SHA-256 differs from the recorded one")
    for key, kind in (("step", int), ("config", dict), ("files", dict), ("shape", list), ("levels", int)):
        if type(state.get(key)) is not kind:
            raise ValueError(f"{file}: the key {key!r} is missing or malformed")
    return state


def restore(folder: Path, state: Mapping[str, Any], into: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Copy the tensors of a checkpoint's files into the given ones, by file and name."""
    for name, targets in into.items():
        tensors, _ = weights.read_tensors(folder / name, targets, state["files"].get(name, ""))
        for key, tensor in tensors.items():
            targets[key].copy_(tensor)


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Turn any failure to write in the block into a `CheckpointError` that names `what`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{what}: cannot be written: {error.strerror or error}") from error


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other runs out of the folder `out` until the block, or this process, ends."""
    with writing(f"out {out}"):
        out.mkdir(parents=True, exist_ok=True)
        stream = files.open_in_place(out / LOCK)
    with stream:
        found = files.lock(stream)
        if found is False:
            raise ValueError(f"out must not be in use, but another run is writing to {out}")
        if found is None:
            say(f"out: {out} is on a system without locks: keep other runs out of it yourself")
        _locks.add(stream)
        try:
            yield
        finally:
            _locks.discard(stream)


_locks: set[BinaryIO] = set()


def _release_locks() -> None:
    """Close the locks in a forked child, so that they end with the parent."""
    for stream in _locks:
        os.close(stream.fileno())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_locks)


def sweep(out: Path) -> None:
    """Remove the temporary files that killed runs left in a locked folder."""
    with writing(f"out {out}"):
        for folder in (out, out / "samples"):
            if folder.is_dir():
                files.sweep(folder)
        _remove(out / f".{LAST}.new")


def about(config: TrainConfig, shape: tuple[int, int, int], levels: int, images: int) -> dict[str, Any]:
    """The content of ``state.json`` besides the step and the files."""
    return {
        "config": asdict(config),
        "shape": list(shape),
        "levels": levels,
        "images": images,
        "random": {"kind": "counter", "seed": config.seed},  # all draws are functions of (seed, step, row)
        "versions": _versions(),
        "commit": _commit(),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in ("tinyddpm", "torch", "numpy")}}


def _commit() -> str | None:
    """The Git commit of the working directory, if it is in a repository."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def prune(newest: Path, keep: int) -> None:
    """Remove old checkpoints and the temporary folders of killed runs."""
    steps = [p for p in _steps(newest.parent) if int(p.name[5:]) <= int(newest.name[5:])]
    stale = [p for p in newest.parent.iterdir() if p.name.startswith(".step-")]
    for folder in (*steps[:-keep], *stale):
        shutil.rmtree(folder, ignore_errors=True)


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
