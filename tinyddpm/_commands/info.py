"""``tinyddpm info``: versions, backends and devices."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator

from tinyddpm import __version__, backends
from tinyddpm._commands import takes_output

EXAMPLES = ("", "--quiet", "--json")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    takes_output(parser, quiet="print only the backends that can be used")


def run(args: argparse.Namespace) -> Iterator[str]:
    """Yield the versions, and each backend with its devices or the reason why it cannot be used."""
    about = {"version": __version__, "python": platform.python_version(), "platform": platform.platform()}
    known = backends.available()
    if args.json:
        rows = {
            name: {"version": status.version, "devices": list(status.devices)} if status else {"reason": status.reason}
            for name, status in known.items()
        }
        yield json.dumps({**about, "backends": rows}, indent=2)
        return
    if not args.quiet:
        yield f"tinyddpm {about['version']}, Python {about['python']}, {about['platform']}"
    width = max(map(len, known))
    for name, status in known.items():
        if status or not args.quiet:
            yield f"  {name:{width}}  {status}"
