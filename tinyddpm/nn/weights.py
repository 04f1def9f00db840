"""Tensors and JSON on disk, read as if a stranger had written them: safetensors, bounded, hashed, no links.

Everything here raises `FileNotFoundError` for what is not there and `ValueError` for what is damaged, naming the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "as_path",
    "new_folder",
    "read_file",
    "read_json",
    "read_names",
    "read_tensors",
    "write_bytes",
    "write_json",
    "write_tensors",
]

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_HEADER_LIMIT = 2**20
_HEADER_ROOM, _ENTRY_ROOM = 2**16, 2**10  # bytes of a header: its metadata, and each tensor's entry
_JSON_LIMIT = 16 * 2**20


def as_path(name: str, value: Any) -> Path:
    """The path that the argument `name` is."""
    try:
        return Path(value)
    except TypeError:
        raise TypeError(f"{name} must be a path, got {type(value).__name__}") from None


def read_file(file: Path, limit: int, *, links: bool = False) -> bytearray:
    """The bytes of a regular file, which has no more than `limit` of them and, but for `links`, is no link."""
    with _opened(file, links) as (stream, size):
        if size > limit:
            raise ValueError(f"{file}: has {size} bytes, at most {limit} are expected")
        content = bytearray(size)
        if stream.readinto(content) != size:
            raise ValueError(f"{file}: changed while it was read")
        return content


def read_json(file: Path, *, links: bool = False) -> dict[str, Any]:
    """A JSON object; a key that comes twice is damage."""
    return _parse(f"{file}: it", read_file(file, _JSON_LIMIT, links=links))


def read_tensors(
    file: Path, expected: Mapping[str, Tensor], sha256: str | None = None, *, links: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and its metadata.

    `expected` gives the names and shapes (its tensors may be on the meta device). They bound the header, which is compared
    with them and with the file's size before any tensor is made or read. All must have one floating dtype and finite
    values, and the file the hash `sha256`.
    """
    digest = hashlib.sha256()
    with _opened(file, links) as (stream, size):
        header, head = _header(file, stream, size, _HEADER_ROOM + _ENTRY_ROOM * len(expected))
        digest.update(head)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise ValueError(f"{file}: its metadata is malformed")
        for name in (*sorted(expected.keys() - header.keys()), *sorted(header.keys() - expected.keys())):
            raise ValueError(f"{file}: tensor {name!r} is {'missing' if name in expected else 'unknown'}")
        dtype, places = _places(file, header, expected, len(head))
        if size != (end := max((stop for _, stop in places.values()), default=len(head))):
            raise ValueError(f"{file}: has {size} bytes, its tensors need {end}")
        tensors = {}
        for name in places:  # in the order in which they lie
            tensors[name] = torch.empty(expected[name].shape, dtype=dtype)
            content = tensors[name].reshape(-1).view(torch.uint8).numpy().data
            if stream.readinto(content) != content.nbytes:
                raise ValueError(f"{file}: changed while it was read")
            digest.update(content)
    if sha256 is not None and digest.hexdigest() != sha256:
        raise ValueError(f"{file}: its SHA-256 is not the recorded one")
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{file}: tensor {name!r} holds NaN or infinity")
    return tensors, metadata


def read_names(file: Path) -> list[str]:
    """The names of the tensors in a safetensors file, which may be a link; nothing else of it is checked."""
    with _opened(file, links=True) as (stream, size):
        header, _ = _header(file, stream, size, _HEADER_LIMIT)
    return [name for name in header if name != "__metadata__"]


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write a safetensors file and return its SHA-256."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    flat, end = [], 0
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        flat.append(tensor.reshape(-1).view(torch.uint8).numpy())
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors start aligned
    return write_bytes(file, len(text).to_bytes(8, "little"), text, *flat)


def write_json(file: Path, value: Mapping[str, Any]) -> str:
    """Write a JSON object and return its SHA-256."""
    return write_bytes(file, json.dumps(value, indent=2).encode() + b"\n")


def write_bytes(file: Path, *parts: Any) -> str:
    """Write a new file, to the disk itself, and return its SHA-256."""
    digest = hashlib.sha256()
    with open(file, "xb") as stream:
        for part in parts:
            stream.write(part)
            digest.update(part)
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()


@contextmanager
def new_folder(folder: Path, replaces: frozenset[str] = frozenset()) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends, or vanishes where it fails.

    An existing `folder` is replaced if it holds nothing but the files in `replaces`.
    """
    folder = Path(os.path.abspath(folder))
    if os.path.lexists(folder):
        if folder.is_symlink() or not folder.is_dir():
            raise ValueError(f"{folder}: is there already, and no folder")
        inside = {entry.relative_to(folder).as_posix() for entry in folder.rglob("*") if not entry.is_dir()}
        if other := inside - replaces:
            raise ValueError(f"{folder}: holds other files, {min(other)} for one; another folder is needed")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        yield fresh
        sync_folder(fresh)
        old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
        if folder.is_dir():
            os.rename(folder, old)
        os.rename(fresh, folder)
        sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make a folder's entries last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _opened(file: Path, links: bool) -> Iterator[tuple[BufferedReader, int]]:
    """A regular file, open for reading, and its size."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: there is no such file") from None
    except OSError as error:
        raise ValueError(f"{file}: {'is a link' if file.is_symlink() and not links else error.strerror}") from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{file}: is no regular file")
        with os.fdopen(handle, "rb", closefd=False) as stream:
            yield stream, status.st_size
    finally:
        os.close(handle)


def _header(file: Path, stream: BufferedReader, size: int, limit: int) -> tuple[dict[str, Any], bytes]:
    """The parsed header, of at most `limit` bytes, and all the bytes before the tensors; no more is read."""
    head = stream.read(8)
    length = int.from_bytes(head, "little")
    if not 2 <= length <= size - 8:
        raise ValueError(f"{file}: is no safetensors file: a header of {length} bytes in a file of {size}")
    if length > limit:
        raise ValueError(f"{file}: its header has {length} bytes, at most {limit} are expected")
    head += stream.read(length)
    if len(head) != 8 + length:
        raise ValueError(f"{file}: changed while it was read")
    return _parse(f"{file}: its header", head[8:]), head


def _places(
    file: Path, header: Mapping[str, Any], expected: Mapping[str, Tensor], start: int
) -> tuple[torch.dtype, dict[str, tuple[int, int]]]:
    """The tensors' dtype, and each one's bytes, which must follow each other without a gap."""
    places: dict[str, tuple[int, int]] = {}
    dtype, end = torch.float32, start
    for name in sorted(header, key=lambda name: _begin(file, name, header[name])):
        entry, shape = header[name], list(expected[name].shape)
        own = _DTYPES.get(str(entry.get("dtype")))
        if own is None or (places and own is not dtype):
            raise ValueError(f"{file}: tensor {name!r} has dtype {entry.get('dtype')!r}, not the others' floating one")
        if entry.get("shape") != shape:
            raise ValueError(f"{file}: tensor {name!r} has shape {entry.get('shape')}, {shape} is needed")
        dtype, begin, end = own, end, end + math.prod(shape) * own.itemsize
        if entry["data_offsets"] != [begin - start, end - start]:
            raise ValueError(f"{file}: tensor {name!r} is not where its neighbours and shape put it")
        places[name] = (begin, end)
    return dtype, places


def _begin(file: Path, name: str, entry: Any) -> int:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(o) is int for o in offsets)):
        raise ValueError(f"{file}: tensor {name!r} is described wrongly")
    return int(offsets[0])


def _parse(what: str, text: bytes | bytearray) -> dict[str, Any]:
    try:
        value = json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{what} is no JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key comes twice")
    return result
