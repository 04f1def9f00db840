"""Tensors in safetensors files, which are read as untrusted input.

A missing file raises `FileNotFoundError` and a damaged one `ValueError`; both messages name the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyddpm._io.files import open_regular, parse, read_json, shown, size_of
from tinyddpm.nn._files import as_path, write_bytes, write_json
from tinyddpm.nn._folders import new_folder, reading_whole, sync_folder

__all__ = [
    "as_path",
    "new_folder",
    "parse",
    "read_json",
    "read_shapes",
    "read_tensors",
    "reading_whole",
    "sync_folder",
    "write_bytes",
    "write_json",
    "write_tensors",
]

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_HEADER_LIMIT = 2**20
_METADATA_LIMIT, _ENTRY_LIMIT = 2**16, 2**10  # bytes of a header: its metadata, and the entry of each tensor


def read_tensors(
    file: Path, expected: Mapping[str, Tensor], sha256: str | None = None, *, links: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    The header is compared with the expected tensors and with the file's size before any tensor is allocated.

    Parameters
    ----------
    file : Path
        The file.
    expected : mapping of str to torch.Tensor
        The names and shapes of the tensors. They may be on the meta device.
    sha256 : str, optional
        The file's hash.
    links : bool, default False
        Whether the file may be a symbolic link.

    Returns
    -------
    tensors : dict of str to torch.Tensor
        The tensors on the CPU, all of one floating dtype and with finite values.
    metadata : dict of str to str
        The metadata.

    Raises
    ------
    FileNotFoundError
        If the file is missing.
    ValueError
        If the file differs from what is expected. The message names the tensor.
    """
    digest = hashlib.sha256()
    with open_regular(file, links=links) as stream:
        header, head = _header(file, stream, size := size_of(stream), _METADATA_LIMIT + _ENTRY_LIMIT * len(expected))
        digest.update(head)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise ValueError(f"{file}: its metadata is malformed")
        for name in (*sorted(expected.keys() - header.keys()), *sorted(header.keys() - expected.keys())):
            raise ValueError(f"{file}: tensor {name!r} is {'missing' if name in expected else 'unknown'}")
        dtype, places = _places(file, header, expected, len(head))
        if size != (end := max((stop for _, stop in places.values()), default=len(head))):
            raise ValueError(f"{file}: must have {end} bytes for its tensors, got {size}")
        tensors = {}
        for name in places:  # in the order of the file
            tensors[name] = torch.empty(expected[name].shape, dtype=dtype, device="cpu")
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


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors in a safetensors file, without further checks.

    Parameters
    ----------
    file : Path
        The file, or a link to one.

    Returns
    -------
    dict of str to tuple of int
        The shapes, in the order of the header.

    Raises
    ------
    FileNotFoundError
        If the file is missing.
    ValueError
        If it has no valid header.
    """
    with open_regular(file) as stream:
        header, _ = _header(file, stream, size_of(stream), _HEADER_LIMIT)
    shapes = {}
    for name, entry in header.items():
        if name != "__metadata__":
            shape = entry.get("shape") if isinstance(entry, dict) else None
            if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
                raise ValueError(f"{file}: tensor {name!r} must have a list of ints as shape, got {reprlib.repr(shape)}")
            shapes[name] = tuple(shape)
    return shapes


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write a new safetensors file.

    Parameters
    ----------
    file : Path
        The file, which must not exist.
    tensors : mapping of str to torch.Tensor
        The tensors.
    metadata : mapping of str to str, optional
        The metadata.

    Returns
    -------
    str
        The file's SHA-256.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    flat, end = [], 0
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        flat.append(tensor.reshape(-1).view(torch.uint8).numpy())
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the first tensor
    return write_bytes(file, len(text).to_bytes(8, "little"), text, *flat)


def _header(file: Path, stream: BufferedReader, size: int, limit: int) -> tuple[dict[str, Any], bytes]:
    """Return the parsed header, of at most `limit` bytes, and all bytes before the tensors."""
    head = stream.read(8)
    length = int.from_bytes(head, "little")
    if not 2 <= length <= size - 8:
        raise ValueError(f"{file}: is not a safetensors file: a header of {length} bytes in a file of {size}")
    if length > limit:
        raise ValueError(f"{file}: its header must have at most {limit} bytes, got {length}")
    head += stream.read(length)
    if len(head) != 8 + length:
        raise ValueError(f"{file}: changed while it was read")
    return parse(f"{shown(file)}: its header", head[8:]), head


def _places(
    file: Path, header: Mapping[str, Any], expected: Mapping[str, Tensor], start: int
) -> tuple[torch.dtype, dict[str, tuple[int, int]]]:
    """Return the common dtype and each tensor's first and last byte; the tensors must follow each other without a gap."""
    places: dict[str, tuple[int, int]] = {}
    dtype, end = torch.float32, start
    for name in sorted(header, key=lambda name: _begin(file, name, header[name])):
        entry, shape = header[name], list(expected[name].shape)
        found = _DTYPES.get(str(entry.get("dtype")))
        if found is None or (places and found is not dtype):
            raise ValueError(f"{file}: tensor {name!r} must have one floating dtype with the others, got {entry.get('dtype')!r}")
        if entry.get("shape") != shape:
            raise ValueError(f"{file}: tensor {name!r} must have shape {shape}, got {entry.get('shape')}")
        dtype, begin, end = found, end, end + math.prod(shape) * found.itemsize
        expected_offsets = [begin - start, end - start]
        if entry["data_offsets"] != expected_offsets:
            raise ValueError(f"{file}: tensor {name!r} must have data_offsets {expected_offsets}, got {entry['data_offsets']}")
        places[name] = (begin, end)
    return dtype, places


def _begin(file: Path, name: str, entry: Any) -> int:
    """The offset of a tensor's first byte."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(o) is int for o in offsets)):
        raise ValueError(f"{file}: tensor {name!r} must have two ints as data_offsets, got {reprlib.repr(offsets)}")
    return int(offsets[0])
