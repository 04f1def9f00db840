"""What every benchmark says of itself: the machine, the versions, a table, and files that are whole or not there."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from tinyddpm import backends
from tinyddpm._io.files import replacing

BAD_INPUT = (ValueError, TypeError, LookupError, OSError, ImportError, backends.BackendUnavailable)

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito: told apart by all eyes


class Parser(argparse.ArgumentParser):
    """A parser whose errors are `ValueError`s, which `run` prints as one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def environment(*packages: str) -> dict[str, Any]:
    """Versions and hardware."""
    versions = {"python": platform.python_version()}
    for name in ("tinyddpm", "numpy", *packages):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {"versions": versions, "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.system()}}


def described(about: Mapping[str, Any]) -> str:
    """The environment as one line."""
    hardware = about["hardware"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    return f"{hardware['cpu']}, {hardware['cores']} cores; {versions}"


def about(doc: str | None) -> str:
    """A script's docstring without its command line: what a results file says first."""
    return "\n\n".join(part for part in (doc or "").strip().split("\n\n") if not part.startswith("`python"))


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table in aligned columns; numbers to the right."""
    cells = [[c if isinstance(c, str) else f"{c:.4g}" for c in row] for row in rows]
    widths = [max(len(line[k]) for line in (header, *cells)) for k in range(len(header))]
    right = [all(not isinstance(row[k], str) for row in rows) for k in range(len(header))]

    def line(words: Sequence[str]) -> str:
        padded = (w.rjust(n) if r else w.ljust(n) for w, n, r in zip(words, widths, right, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = [("-" * (n - 1) + ":") if r else "-" * n for n, r in zip(widths, right, strict=True)]
    return "\n".join([line(header), line(rule), *map(line, cells)])


def alternating(tasks: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each task. Every round runs each once, so that what else the machine does falls on all alike; a round
    that does not count goes first."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def write_json(file: Path | None, value: Any) -> None:
    """`value` into `file`, where one is named."""
    write_text(file, json.dumps(value, indent=1) + "\n")


def write_text(file: Path | None, text: str) -> None:
    """`text` into `file`, where one is named."""
    if file is not None:
        with replacing(file) as stream:
            stream.write(text.encode())


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """The exit code of `main`: 2 and one line on standard error for bad input."""
    try:
        main(sys.argv[1:] if argv is None else argv)
    except BAD_INPUT as error:
        print(f"{Path(sys.argv[0]).name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
