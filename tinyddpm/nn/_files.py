"""Files: bounded reads of regular files as untrusted input, and writes that are complete or absent.

A missing file raises `FileNotFoundError` and a damaged one `ValueError`; both messages name the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

_JSON_LIMIT = 16 * 2**20


def as_path(name: str, value: Any) -> Path:
    """Return the argument `name` as a path."""
    try:
        return Path(value)
    except TypeError:
        raise TypeError(f"{name} must be a path, got {type(value).__name__}") from None


def read_file(file: Path, limit: int, *, links: bool = False) -> bytearray:
    """Return the bytes of a regular file.

    Parameters
    ----------
    file : Path
        The file.
    limit : int
        The largest size allowed, in bytes.
    links : bool, default False
        Whether the file may be a symbolic link.

    Returns
    -------
    bytearray
        The content.

    Raises
    ------
    FileNotFoundError
        If the file is missing.
    ValueError
        If it is a link, not a regular file, too large, or changed while it is read.
    """
    with open_regular(file, links) as (stream, size):
        if size > limit:
            raise ValueError(f"{file}: must have at most {limit} bytes, got {size}")
        content = bytearray(size)
        if stream.readinto(content) != size:
            raise ValueError(f"{file}: changed while it was read")
        return content


def read_json(file: Path, *, links: bool = False) -> dict[str, Any]:
    """Return the JSON object in a file.

    Parameters
    ----------
    file : Path
        The file.
    links : bool, default False
        Whether the file may be a symbolic link.

    Returns
    -------
    dict
        The object.

    Raises
    ------
    FileNotFoundError
        If the file is missing.
    ValueError
        If it does not hold one JSON object, or a key occurs twice.
    """
    return parse_json(f"{file}: it", read_file(file, _JSON_LIMIT, links=links))


def write_json(file: Path, value: Mapping[str, Any]) -> str:
    """Write a JSON object to a new file and return the file's SHA-256."""
    return write_bytes(file, json.dumps(value, indent=2).encode() + b"\n")


def write_bytes(file: Path, *parts: Any) -> str:
    """Write the parts to a new file, flush it to the disk and return its SHA-256."""
    digest = hashlib.sha256()
    with open(file, "xb") as stream:
        for part in parts:
            stream.write(part)
            digest.update(part)
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that they survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def open_regular(file: Path, links: bool) -> Iterator[tuple[BufferedReader, int]]:
    """Open a regular file for reading; yields the stream and the file's size."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: no such file") from None
    except OSError as error:
        raise ValueError(f"{file}: {'is a link' if file.is_symlink() and not links else error.strerror}") from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{file}: is not a regular file")
        with os.fdopen(handle, "rb", closefd=False) as stream:
            yield stream, status.st_size
    finally:
        os.close(handle)


def parse_json(what: str, text: bytes | bytearray) -> dict[str, Any]:
    """The JSON object in a text that messages call `what`."""
    try:
        value = json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict, if no key occurs twice."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result
