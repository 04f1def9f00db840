"""Progress on standard error: tqdm's bar on a terminal if tqdm is installed, else a few plain lines.

Nothing is coloured. Without a terminal, as in logs and notebooks, the output has no carriage returns or control sequences.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import TypeVar

from tinyddpm._arrays.check import as_bool
from tinyddpm._io.files import shown

Item = TypeVar("Item")


def progress_bar(
    items: Iterable[Item], total: int, *, enabled: bool, label: str, start: int = 0, note: Callable[[], str] | None = None
) -> Iterator[Item]:
    """Yield the items and show on standard error how many of `total` have been taken, `start` of them before, and a note."""
    if not as_bool("progress", enabled):
        yield from items
        return
    if on_terminal() and find_spec("tqdm"):
        from tqdm import tqdm

        with tqdm(items, total=total, desc=label, file=sys.stderr, initial=start) as bar:
            for item in bar:
                yield item
                if note is not None:
                    bar.set_postfix_str(note(), refresh=False)
    else:
        yield from _lines(items, total, label, start, note or str)


def on_terminal() -> bool:
    """Whether standard error is a terminal; it may be closed, or not there at all."""
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()


def say(line: str) -> None:
    """Write a line to standard error, above a bar if there is one; one that can't be written is dropped."""
    line = shown(line)
    try:
        if tqdm := sys.modules.get("tqdm"):
            tqdm.tqdm.write(line, file=sys.stderr)
        else:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # closed, or nobody reads it
        pass


def _lines(items: Iterable[Item], total: int, label: str, start: int, note: Callable[[], str]) -> Iterator[Item]:
    """Write a line at the end, and each time a tenth of the run so far has passed, but at least 5 s and at most 600 s."""
    began = last = time.monotonic()
    for count, item in enumerate(items, start + 1):
        yield item
        now = time.monotonic()
        if count == total or now - last > min(max((now - began) / 10, 5), 600):
            last = now
            left = f"{duration((now - began) / (count - start) * (total - count))} left" if count < total else ""
            say(f"{label}: {', '.join(filter(None, (f'{count}/{total}', note(), left)))}")


def duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
