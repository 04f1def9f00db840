"""Drawing a run's samples into files that a second run completes and several processes may fill.

A sample is a function of the run, its number and the options, so whoever finds it missing can draw it. What is there was
written in one step and is kept; a note beside it, ``samples.json``, says what it is, so that samples of two kinds never mix.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyddpm import backends
from tinyddpm._arrays.check import as_int
from tinyddpm._commands.runs import batches, device_of
from tinyddpm._io.files import replacing
from tinyddpm.samplers import Step
from tinyddpm.training import Run, save_png, to_uint8

__all__ = ["Drawing", "processes", "save_array", "save_folder"]

MANIFEST = "samples.json"
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Drawing:
    """Which samples of a run to draw, and how."""

    run: Run
    index: range
    batch_size: int
    options: dict[str, Any]
    """Of `Diffusion.sample`."""
    labels: tuple[int, ...] = ()
    """Classes, which the samples get in turn by their numbers."""
    guidance: float = 1.0
    progress: bool = False
    rank: int = 0
    processes: int = 1
    """This process takes every `processes`-th batch, from the batch `rank` on."""

    def trajectory(self, index: range, progress: bool = False) -> Iterator[Step]:
        """The samples `index` on their way."""
        labels = [self.labels[k % len(self.labels)] for k in index] if self.labels else None
        return self.run.diffusion.trajectory(
            self.run.denoiser_for(labels, self.guidance), (len(index), *self.run.shape), index=index,
            backend="torch", device=device_of(self.run), progress=progress, **self.options,
        )  # fmt: skip

    def batch(self, index: range, progress: bool) -> Pixels:
        """The samples `index` as pixels (n, C, H, W)."""
        x = None
        for step in self.trajectory(index, progress):
            x = step.x
        return _pixels(x)

    def pixels(self) -> Pixels:
        """All samples as pixels (n, C, H, W)."""
        return np.concatenate([self.batch(part, show) for part, show in self._batches()])

    def frames(self, positions: frozenset[int]) -> Pixels:
        """All samples at these positions of their plan, 0 being the start: pixels (positions, n, C, H, W)."""
        return np.concatenate(
            [
                np.stack([_pixels(s.x) for k, s in enumerate(self.trajectory(part, show)) if k in positions])
                for part, show in self._batches()
            ],
            axis=1,
        )

    @property
    def parts(self) -> list[range]:
        """The batches."""
        return [part for part, _ in batches(self.index, self.batch_size, False)]

    def share(self, present: Callable[[range], bool]) -> Iterator[tuple[range, Pixels]]:
        """This process's batches, drawn, without those that are `present` when their turn comes."""
        for number, (part, show) in enumerate(self._batches()):
            if number % self.processes == self.rank and not present(part):
                yield part, self.batch(part, show)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What makes the samples what they are: the options, the classes and the weights."""
        weights = hashlib.sha256()
        for tensor in self.run.net.state_dict().values():
            weights.update(tensor.cpu().contiguous().numpy().tobytes())
        condition = {"label": list(self.labels), "guidance": self.guidance} if self.labels else {}
        return {**self.options, **condition, "step": self.run.step, "weights": weights.hexdigest()}

    def _batches(self) -> Iterator[tuple[range, bool]]:
        return batches(self.index, self.batch_size, self.progress)


def processes() -> tuple[int, int]:
    """This process's rank among those that torchrun started, and their number; (0, 1) without it."""
    given = {name: os.environ.get(name, default) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0"))}
    for name, value in given.items():
        if not value.isdecimal():
            raise ValueError(f"{name}: {value!r} is no number")
    size = as_int("WORLD_SIZE", int(given["WORLD_SIZE"]), 1, 2**31)
    return as_int("RANK", int(given["RANK"]), 0, size - 1), size


def save_folder(drawing: Drawing, folder: Path) -> None:
    """Write each sample of this process's share to a PNG file of the folder, named by its number.

    A batch that lacks one file is drawn as a whole, so that a run that was stopped ends with the same files.
    """
    _claim(folder, drawing.about, "*.png")
    for picture in folder.glob("[0-9]*.png"):
        _check_picture(picture, drawing.run.shape)
    unfinished = list(folder.glob(".*.new"))  # by a process that was killed, or is at it

    def file(k: int) -> Path:
        return folder / f"{k:06d}.png"

    for part, pixels in drawing.share(lambda part: all(file(k).exists() for k in part)):
        for k, image in zip(part, pixels, strict=True):
            if not file(k).exists():
                with _unless_done(file(k).exists):
                    save_png(image.transpose(1, 2, 0), file(k))
    for rest in unfinished:
        if (folder / rest.name[1:].rsplit(".", 2)[0]).exists():
            rest.unlink(missing_ok=True)


def save_array(drawing: Drawing, file: Path) -> bool:
    """Draw all samples into the array `images` of an .npz file; whether the file is complete.

    Batches wait in the folder ``FILE.parts`` until all are there; the process that finds them so joins them, with one
    in memory at a time, and removes the folder. The file's comment says what it holds: a complete one is kept.
    """
    folder = file.with_name(f"{file.name}.parts")
    index = f"{drawing.index.start}:{drawing.index.stop}"
    about = {**drawing.about, "index": index, "batch_size": drawing.batch_size}
    parts = {part: folder / f"{part.start:06d}-{part.stop:06d}.npz" for part in drawing.parts}

    def complete() -> bool:
        return _comment(file) == _as_json(about)

    if folder.exists() or not complete():
        _claim(folder, about, "*.npz")
        if strange := {p for p in folder.glob("*.npz") if p.name[0] != "."} - {*parts.values()}:
            raise ValueError(f"out: {min(strange)} is no part of these samples; remove it")
        for part, pixels in drawing.share(lambda part: parts[part].exists() or complete()):
            with replacing(parts[part]) as stream:
                np.savez_compressed(stream, images=pixels)
        if all(p.exists() for p in parts.values()):
            with _unless_done(complete):
                _join(parts, drawing.run.shape, file, about)
    if complete():
        _remove(folder)
    return complete()


def _join(parts: Mapping[range, Path], shape: tuple[int, ...], file: Path, about: Mapping[str, Any]) -> None:
    """The parts as the one array of an .npz file, the same bytes however the work went."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (sum(map(len, parts)), *shape)}
    with replacing(file) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = _as_json(about)
        with archive.open("images.npy", "w", force_zip64=True) as entry:
            np.lib.format.write_array_header_1_0(entry, header)
            for part, path in parts.items():
                entry.write(_read(path, (len(part), *shape)).tobytes())


def _read(part: Path, shape: tuple[int, ...]) -> Pixels:
    try:
        with open(part, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
            pixels = np.asarray(stored["images"])
    except (ValueError, TypeError, LookupError, EOFError, zipfile.BadZipFile, zlib.error):
        raise ValueError(f"out: {part} is damaged; remove it and draw again") from None
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise ValueError(f"out: {part} is no part of these samples; remove it and draw again")
    return pixels


def _check_picture(file: Path, shape: tuple[int, ...]) -> None:
    from PIL import Image

    channels, height, width = shape
    try:
        with Image.open(file) as picture:
            fits = picture.size == (width, height) and picture.mode == ("L" if channels == 1 else "RGB")
            picture.verify()
    except (OSError, SyntaxError):  # which is what Pillow raises for a broken PNG file
        raise ValueError(f"out: {file} is damaged; remove it and draw again") from None
    if not fits:
        raise ValueError(f"out: {file} is no sample of this run; remove it and draw again")


def _claim(folder: Path, about: Mapping[str, Any], files: str) -> None:
    """Note in the folder what its samples are, or find that noted; refuse a folder with others."""
    strange = any(p.name[0] != "." for p in folder.glob(files))  # before the note is looked for: it is written first
    note = folder / MANIFEST
    if not note.exists():
        if strange:
            raise ValueError(f"out: {folder} holds files that are not samples of ours; choose another path")
        fresh = folder / f".{MANIFEST}.{secrets.token_hex(4)}.new"
        with replacing(fresh) as stream:
            stream.write(_as_json(about))
        try:
            os.link(fresh, note)
        except (FileExistsError, FileNotFoundError):  # another process was first, and may have tidied up
            pass
        except OSError:  # a file system without links
            os.replace(fresh, note)
        fresh.unlink(missing_ok=True)
    try:
        theirs = dict(json.loads(note.read_bytes()))
    except (ValueError, TypeError):
        raise ValueError(f"out: {note} is damaged; choose another path, or remove the folder") from None
    for key, value in about.items():
        if theirs.get(key) != value:
            there = f"differs from the {theirs.get(key)} of the samples in {folder}"
            raise ValueError(f"{key}: {value} {there}; choose another path, or remove the folder")


def _comment(file: Path) -> bytes | None:
    """What an .npz file of ours says of itself."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.comment
    except (OSError, zipfile.BadZipFile):
        return None


def _remove(folder: Path) -> None:
    """Remove the folder of parts, its note last: what a kill leaves is still known for ours."""
    with suppress(OSError):  # another process may be at it too
        for part in folder.iterdir():
            if part.name != MANIFEST:
                part.unlink(missing_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        folder.rmdir()


@contextmanager
def _unless_done(done: Callable[[], bool]) -> Iterator[None]:
    """Pass over a file that is gone where another process has done the same work and tidied up."""
    try:
        yield
    except FileNotFoundError:
        if not done():
            raise


def _as_json(about: Mapping[str, Any]) -> bytes:
    return json.dumps(about, indent=2).encode() + b"\n"


def _pixels(x: Any) -> Pixels:
    return to_uint8(backends.get("torch").to_numpy(x))
