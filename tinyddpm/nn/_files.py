"""Paths as arguments, and the files of a folder that is being written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyddpm._io.files import create, sync


def as_path(name: str, value: Any) -> Path:
    """Return the argument `name` as a path."""
    try:
        return Path(value)
    except TypeError:
        raise TypeError(f"{name} must be a path, got {type(value).__name__}") from None


def write_json(file: Path, value: Mapping[str, Any]) -> str:
    """Write a JSON object to a new file and return the file's SHA-256."""
    return write_bytes(file, json.dumps(value, indent=2).encode() + b"\n")


def write_bytes(file: Path, *parts: Any) -> str:
    """Write the parts to a new file, flush it to the disk and return its SHA-256."""
    digest = hashlib.sha256()
    with create(file) as stream:
        for part in parts:
            stream.write(part)
            digest.update(part)
        sync(stream)
    return digest.hexdigest()
