"""Writing files so that each is there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(file: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A stream whose content becomes `file` in one step when the block ends, and vanishes when it fails.

    The folder is made where it is missing.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.{secrets.token_hex(4)}.new")  # process numbers repeat across machines
    try:
        with open(fresh, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(fresh, file)
    finally:
        fresh.unlink(missing_ok=True)
