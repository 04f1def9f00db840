"""``tinyddpm verify``: measure the identities behind the library on this machine."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict

from tinyddpm import backends, verify
from tinyddpm._commands import takes_output
from tinyddpm.verify import Result

EXAMPLES = ("", "--backend torch --dtype float32", "--only KL", "--backend jax --json")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("--backend", default="numpy", metavar="B", help="numpy (default), torch, cupy, jax or a plug-in's name")
    parser.add_argument("--device", metavar="D", help="device of the backend (default: its own choice)")
    parser.add_argument("--dtype", default="float64", metavar="F", help="float64 (default) or float32")
    parser.add_argument("--only", default="", metavar="WORD", help="only identities whose names contain this")
    takes_output(parser, quiet="print only failures and the count")


def run(args: argparse.Namespace) -> Iterator[str]:
    """Yield each identity with its largest error, its bound and the verdict; exit with code 1 if one fails."""
    if args.dtype == "float64":
        _widen(args.backend)
    measured = verify.identities(args.backend, args.device, args.dtype, args.only)
    if args.json:
        results = list(measured)
        about = {"backend": args.backend, "device": args.device, "dtype": args.dtype}
        yield json.dumps({**about, "ok": all(r.ok for r in results), "identities": [_entry(r) for r in results]}, indent=2)
    else:
        results = []
        width = max(map(len, verify.NAMES))
        if not args.quiet:
            yield f"{'identity':{width}}  max error      bound  unit      verdict"
        for r in measured:
            results.append(r)
            if r.ok and args.quiet:
                continue
            verdict = "ok" if r.ok else "FAILED" if r.error is None else f"FAILED ({' '.join(r.error.split())})"
            yield f"{r.identity:{width}}  {r.max_error:9.2g}  {r.bound:9.2g}  {r.unit:8}  {verdict}"
        failed = sum(not r.ok for r in results)
        yield f"{len(results)} identities, {failed} failed: {args.backend}, {args.dtype}"
    if not all(r.ok for r in results):
        raise SystemExit(1)


def _entry(r: Result) -> dict[str, object]:
    """A result for JSON, with None for numbers that are not finite."""
    error = r.max_error if math.isfinite(r.max_error) else None
    return {**asdict(r), "max_error": error, "ok": r.ok}


def _widen(backend: str) -> None:
    """Switch JAX, which has float64 only in its x64 mode, to that mode; it is a setting of the whole process."""
    if "jax" in backends.get(backend).roots:
        backends.get(backend).version()  # raises BackendUnavailable if there is no JAX
        import jax

        jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]
