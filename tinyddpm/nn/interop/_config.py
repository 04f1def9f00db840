"""What the two kinds of diffusers' configs have in common."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinyddpm.nn import weights


def about(kind: str) -> dict[str, Any]:
    """The keys that say what a JSON file describes, and in which version's terms."""
    return {"_class_name": kind, "_diffusers_version": "0.30.0"}


def filled(file: Path, kind: str, defaults: Mapping[str, Any], only: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The config of a `kind` with diffusers' defaults; refuses unknown keys, and values other than `only`'s by name."""
    stored = weights.read_json(file, links=True)
    if stored.get("_class_name", kind) != kind:
        raise ValueError(f"{file}: _class_name={stored['_class_name']!r}, only {kind} is known")
    stored = {key: value for key, value in stored.items() if not key.startswith("_")}
    for key, value in stored.items():
        if key not in defaults and key not in only:
            raise ValueError(f"{file}: the key {key!r} is unknown")
        if value not in only.get(key, (value,)):
            raise ValueError(f"{file}: {key}={reprlib.repr(value)} has no equal here")
    return {**defaults, **stored}


@contextmanager
def naming(file: Path, config: Mapping[str, Any], theirs: Mapping[str, str]) -> Iterator[None]:
    """Turn an error about an argument of ours into one about their key and its value."""
    try:
        yield
    except (TypeError, ValueError) as error:
        name, _, rest = str(error).partition(": ")
        key = theirs.get(name, name)
        raise ValueError(f"{file}: {key}={reprlib.repr(config.get(key))}: {rest}") from None
