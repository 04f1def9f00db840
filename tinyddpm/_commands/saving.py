"""Saving samples to a folder or an array; the same command completes what an earlier one began.

A note says which samples a folder or an unfinished array holds, so that those of two kinds never mix.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tinyddpm._commands.drawing import Drawing
from tinyddpm._io.files import lock, open_in_place, open_regular, parse, read_json, replacing, sweep, write
from tinyddpm._io.progress import say
from tinyddpm.training import to_uint8
from tinyddpm.training.data.pixels import png

NOTE = "samples.json"
_NOTE_LIMIT = 2**20  # bytes
_CHECKSUM = 4  # bytes
_REMEDY = "choose another path, or remove the old samples"


def save_folder(drawing: Drawing, folder: Path) -> None:
    """Save each sample of this process's share as a PNG file of the folder, named by its number.

    A batch that lacks one file is drawn as a whole, so that a run that was stopped ends with the same files.
    """
    _claim(folder, drawing.about)
    for picture in folder.glob("[0-9]*.png"):
        _check_picture(picture, drawing.run.shape)
    sweep(folder)

    def file(k: int) -> Path:
        return folder / f"{k:06d}.png"

    for part, images in drawing.missing(lambda part: all(file(k).exists() for k in part)):
        for k, image in zip(part, images, strict=True):
            if not file(k).exists():
                with replacing(file(k), sweeps=False) as stream:
                    stream.write(png(to_uint8(image).transpose(1, 2, 0)))


def save_array(drawing: Drawing, file: Path) -> None:
    """Save all samples as the array `images` of an .npz file.

    Batches are appended to ``FILE.part``, which is removed when the array is complete. It is locked meanwhile, so that two
    commands run one after the other. The array's comment says which samples it holds; a complete array is kept.
    """
    index = f"{drawing.index.start}:{drawing.index.stop}"
    about = {**drawing.about, "index": index, "batch_size": drawing.batch_size}
    note, part = json.dumps(about).encode() + b"\n", file.with_name(f"{file.name}.part")
    if _comment(file) == _as_json(about) and not part.exists():
        return
    with _locked(part, announce=drawing.progress) as stream:
        started = stream.read(len(note))
        ours = note.startswith(started)  # a new file is empty; a note may have been cut by a kill
        if _comment(file) != _as_json(about):
            if not ours:
                stream.seek(0)
                _compare(_parse(stream.readline(_NOTE_LIMIT), part), about, part)
            _append(drawing, stream, note)
            _write_array(drawing, stream, len(note), file, about)
        if ours:
            part.unlink(missing_ok=True)


@contextmanager
def _locked(file: Path, *, announce: bool) -> Iterator[BinaryIO]:
    """Open `file` in place and lock it; while another process holds the lock, wait, and say so if `announce`.

    A process that holds the lock may remove the file; the one that waited for it then opens a new one.
    """
    while True:
        with open_in_place(file) as stream:
            if lock(stream) is False:
                if announce:
                    say(f"waiting for the process that writes {file}")
                lock(stream, wait=True)
            if os.fstat(stream.fileno()).st_nlink:  # not removed meanwhile
                yield stream
                return


def _append(drawing: Drawing, stream: BinaryIO, note: bytes) -> None:
    """Draw the batches that the part file lacks; the first damaged one and all behind it are drawn again."""
    stream.seek(0)
    if stream.read(len(note)) != note:
        stream.seek(0)
        stream.truncate()
        stream.write(note)
    size = math.prod(drawing.run.shape) * drawing.kind.itemsize
    kept = set(takewhile(lambda part: _read_batch(stream, len(part) * size) is not None, drawing.parts))
    stream.seek(len(note) + sum(len(part) * size + _CHECKSUM for part in kept))
    stream.truncate()
    for _, images in drawing.missing(kept.__contains__):
        content = drawing.values(images).tobytes()
        stream.write(zlib.crc32(content).to_bytes(_CHECKSUM, "little") + content)
        stream.flush()


def _read_batch(stream: BinaryIO, size: int) -> bytes | None:
    """Return the next batch, or None if it is cut or its checksum differs."""
    checksum, content = stream.read(_CHECKSUM), stream.read(size)
    return content if len(content) == size and zlib.crc32(content).to_bytes(_CHECKSUM, "little") == checksum else None


def _write_array(drawing: Drawing, stream: BinaryIO, start: int, file: Path, about: Mapping[str, Any]) -> None:
    """Write the .npz file with one batch at a time in memory; its bytes do not depend on interruptions."""
    shape, size = drawing.run.shape, math.prod(drawing.run.shape) * drawing.kind.itemsize
    header = {"descr": drawing.kind.str, "fortran_order": False, "shape": (len(drawing.index), *shape)}
    stream.seek(start)
    with replacing(file) as target, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = _as_json(about)
        with archive.open("images.npy", "w", force_zip64=True) as entry:
            np.lib.format.write_array_header_1_0(entry, header)
            for part in drawing.parts:
                if (content := _read_batch(stream, len(part) * size)) is None:
                    raise ValueError(f"out: {file}.part changed while it was read; run the command again")
                entry.write(content)
        if drawing.labels:
            labels = np.array([drawing.labels[k % len(drawing.labels)] for k in drawing.index], np.int64)
            with archive.open("labels.npy", "w") as entry:
                np.lib.format.write_array(entry, labels, version=(1, 0))


def _check_picture(file: Path, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the file is a whole picture of this shape."""
    from PIL import Image

    channels, height, width = shape
    try:
        with open_regular(file, links=False) as stream, Image.open(stream, formats=["PNG"]) as picture:
            fits = picture.size == (width, height) and picture.mode == ("L" if channels == 1 else "RGB")
            picture.verify()
    except (OSError, ValueError, SyntaxError):  # Pillow raises SyntaxError for a broken PNG file
        raise ValueError(f"out: {file} is damaged; remove it and run the command again") from None
    if not fits:
        raise ValueError(f"out: {file} is not a sample of this run; remove it and run the command again")


def _claim(folder: Path, about: Mapping[str, Any]) -> None:
    """Write the folder's note, or check the one that is there; refuse a folder with other pictures."""
    foreign = any(p.name[0] != "." for p in folder.glob("*.png"))  # looked for before the note, which is written first
    note = folder / NOTE
    if foreign and not note.exists():
        raise ValueError(f"out: {folder} holds pictures that this command did not draw; choose another path")
    claim(note, about, _REMEDY)


def claim(note: Path, about: Mapping[str, Any], remedy: str) -> None:
    """Write a folder's note, which one of several processes does, or raise ValueError if the one there says something else."""
    if not note.exists():
        fresh = note.with_name(f".{note.name}.{secrets.token_hex(4)}.new")
        write(fresh, _as_json(about))
        try:
            os.link(fresh, note)
        except (FileExistsError, FileNotFoundError):  # another process was first, and may have removed our file
            pass
        except OSError:  # a file system without links
            os.replace(fresh, note)
        fresh.unlink(missing_ok=True)
    _compare(read_json(note), about, note, remedy)


def _parse(line: bytes, file: Path) -> dict[str, Any]:
    """The note in the first line of `file`."""
    try:
        return parse("it", line)
    except ValueError:
        raise ValueError(f"out: {file} is damaged or foreign; {_REMEDY}") from None


def _compare(stored: Mapping[str, Any], about: Mapping[str, Any], file: Path, remedy: str = _REMEDY) -> None:
    """Raise ValueError unless the note stored in `file` says what `about` says."""
    for key, value in about.items():
        if stored.get(key) != value:
            raise ValueError(f"{key} must be {stored.get(key)}, as in {file}, got {value}; {remedy}")


def _comment(file: Path) -> bytes | None:
    """The comment of an .npz file, or None if it is not there or damaged."""
    try:
        with open_regular(file) as stream, zipfile.ZipFile(stream) as archive:
            return archive.comment
    except (OSError, ValueError, zipfile.BadZipFile):
        return None


def _as_json(about: Mapping[str, Any]) -> bytes:
    return json.dumps(about, indent=2).encode() + b"\n"
