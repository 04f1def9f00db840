"""Progress on standard error: tqdm's bar on a terminal where it is installed, else a plain line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import TypeVar

__all__ = ["progress"]

Item = TypeVar("Item")


def progress(items: Iterable[Item], total: int, *, enabled: bool, label: str) -> Iterator[Item]:
    """`items`, counted on standard error as they are taken."""
    if not enabled:
        yield from items
        return
    if sys.stderr.isatty() and find_spec("tqdm"):
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=label, file=sys.stderr)
    else:
        yield from _lines(items, total, label)


def _lines(items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    shown = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        if count == total or time.monotonic() - shown > 5:
            shown = time.monotonic()
            sys.stderr.write(f"{label}: {count}/{total}\n")
