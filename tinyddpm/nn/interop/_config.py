"""The common part of diffusers' configs of networks and schedulers."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinyddpm.nn import weights


def header(kind: str) -> dict[str, Any]:
    """Return the first keys of a config: the class that it describes and the version of diffusers."""
    return {"_class_name": kind, "_diffusers_version": "0.30.0"}


def filled(
    file: Path, kind: str, defaults: Mapping[str, Any], only: Mapping[str, tuple[Any, ...]], ignored: Collection[str] = ()
) -> dict[str, Any]:
    """Return the config of a `kind` completed with diffusers' defaults, without the keys to be ignored.

    Raise ValueError for an unknown key, and for a value that is not among those that `only` allows for its key.
    """
    stored = weights.read_json(file, links=True)
    if stored.get("_class_name", kind) != kind:
        raise ValueError(f"{file}: _class_name must be {kind!r}, got {reprlib.repr(stored['_class_name'])}")
    stored = {key: value for key, value in stored.items() if key in only or not (key.startswith("_") or key in ignored)}
    for key, value in stored.items():
        if key not in defaults and key not in only:
            raise ValueError(f"{file}: the key {key!r} is unknown")
        if value not in (known := only.get(key, (value,))):
            raise ValueError(f"{file}: {key} must be {' or '.join(map(repr, known))}, got {reprlib.repr(value)}")
    return {**defaults, **stored}


@contextmanager
def naming(file: Path, config: Mapping[str, Any], theirs: Mapping[str, str]) -> Iterator[None]:
    """Turn an error about an argument of this library into one that names the file and diffusers' key.

    `theirs` maps arguments to keys of another name. Every message starts with the argument's name.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        key = theirs.get(str(error).partition(" ")[0])
        value = "" if key is None else f"{key}={reprlib.repr(config.get(key))}: "
        raise ValueError(f"{file}: {value}{error}") from None
