"""Everything that only a GPU can show, in one run: tests, identities, bandwidth, speed, and a training.

`python benchmarks/gpu.py [--minutes 9] [--only PART ...] [--out benchmarks/results/gpu] [--dry-run]`

Each part is another script or command in a process of its own, so that a crash ends that part alone. `gpu.json` and `gpu.md` are
written anew after each part: a run that is cut short leaves what it had. A library that is not there is a line, not an end.
`--dry-run` goes through the same code on the CPU, in sizes of seconds and in this process.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import _report
import numpy as np

from tinyddpm import backends
from tinyddpm._arrays.check import as_positive_int

HERE = Path(__file__).parent
BACKENDS = {"torch": "cuda", "cupy": "cuda", "jax": "gpu"}
"""The backends that may have a device, and what its name starts with."""


@dataclass(frozen=True)
class Part:
    """One measurement: a script of this folder, "pytest" or "tinyddpm", and its arguments."""

    name: str
    script: str
    argv: Sequence[str]
    seconds: int
    """The time that it may take."""
    needs: Sequence[str] = ("torch",)
    """Modules without which it is left out."""
    writes: Sequence[str] = ("json", "markdown")
    """The files that it writes by these options."""


@dataclass
class Run:
    """Where a run stands: its devices, its end and what became of each part."""

    out: Path
    devices: dict[str, str]
    """The device of each backend that has one."""
    end: float
    dry: bool
    found: list[dict[str, Any]] = field(default_factory=list)

    def make(self, part: Part) -> None:
        """Run a part, and write down what became of it."""
        missing = [name for name in part.needs if not find_spec(name)]
        left = self.end - time.monotonic()
        if missing:
            row: dict[str, Any] = {"state": f"left out: {', '.join(missing)} is not installed", "seconds": 0.0}
        elif left < 5:
            row = {"state": "left out: no time left", "seconds": 0.0}
        else:
            argv = [*part.argv, *(word for kind in part.writes for word in (f"--{kind}", str(self._file(part, kind))))]
            print(f"{part.name}: {part.script} {' '.join(map(str, part.argv))}", flush=True)
            start = time.monotonic()
            code, output = (_here if self.dry else _apart)(part.script, argv, min(part.seconds, left))
            (self.out / f"{part.name}.txt").write_text(output, encoding="utf-8")
            last = output.strip().splitlines()[-1:] or [""]
            state = "done" if code == 0 else f"cut off after {part.seconds} s" if code is None else f"failed: {last[0]}"
            row = {"state": state, "seconds": round(time.monotonic() - start, 1)}
        self.found.append({"part": part.name, "script": part.script, "argv": list(map(str, part.argv)), **row})
        print(f"{part.name}: {row['state']} ({row['seconds']} s)", flush=True)
        self.write()

    def _file(self, part: Part, kind: str) -> Path:
        return self.out / f"{part.name}.{ {'markdown': 'md'}.get(kind, kind) }"

    def write(self) -> None:
        """The state of all parts, as JSON and as a page with their tables."""
        about = environment(self.devices)
        _report.write_json(self.out / "gpu.json", {**about, "devices": self.devices, "dry_run": self.dry, "parts": self.found})
        table = _report.table(["part", "state", "seconds"], [[r["part"], r["state"], r["seconds"]] for r in self.found])
        pages = [self.out / f"{r['part']}.md" for r in self.found if r["state"] == "done"]
        tables = [f"## {page.stem}\n\n{_body(page.read_text(encoding='utf-8'))}" for page in pages if page.exists()]
        kind = "A dry run on the CPU: its figures mean nothing.\n\n" if self.dry else ""
        text = "\n\n".join(
            [f"# On {about['hardware'].get('gpu', 'no GPU')}", kind + table, *tables, f"{_report.described(about)}."]
        )
        _report.write_text(self.out / "gpu.md", text + "\n")


def _apart(script: str, argv: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """The exit code, None for a process that was cut off, and what a process of its own printed."""
    command = {"pytest": ["-m", "pytest"], "tinyddpm": ["-m", "tinyddpm"]}.get(script, [str(HERE / f"{script}.py")])
    paths = os.pathsep.join([str(HERE.parent), str(HERE.parent / "backends"), os.environ.get("PYTHONPATH", "")])
    try:
        done = subprocess.run(
            [sys.executable, *command, *argv], cwd=HERE.parent, env=os.environ | {"PYTHONPATH": paths}, timeout=seconds,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as cut:
        return None, (cut.stdout or b"").decode(errors="replace") if isinstance(cut.stdout, bytes | None) else cut.stdout
    return done.returncode, done.stdout


def _here(script: str, argv: Sequence[str], seconds: float) -> tuple[int, str]:
    """The same in this process, for a dry run; the tests are left to who runs this."""
    from tinyddpm import cli

    if script == "pytest":
        return 0, "left to the caller\n"
    main: Callable[[Sequence[str]], Any] = cli.main if script == "tinyddpm" else import_module(script).main
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = cli.main(argv) if script == "tinyddpm" else _report.run(main, argv)
    return code, out.getvalue()


def _body(page: str) -> str:
    """A page without its title and the paragraphs before its table."""
    start = page.find("\n| ")
    return page[start + 1 :].strip() if start >= 0 else page.partition("\n")[2].strip()


def devices(dry: bool) -> dict[str, str]:
    """The device that each backend is measured on; a line says why one has none."""
    if dry:
        return {"torch": "cpu"}
    found = {}
    for name, kind in BACKENDS.items():
        status = backends.available()[name]
        on = [device for device in status.devices if device.startswith(kind)]
        if on:
            found[name] = on[0]
        else:
            print(f"{name}: {status.reason or 'no GPU among ' + ', '.join(status.devices)}", flush=True)
    return found


def environment(found: dict[str, str]) -> dict[str, Any]:
    """Versions and hardware, the GPU with its driver's version where there is one."""
    about = _report.environment(*found)
    if "torch" in found and found["torch"].startswith("cuda"):
        import torch

        about["hardware"]["gpu"] = torch.cuda.get_device_name(0)
        about["versions"]["cuda"] = torch.version.cuda
    elif "cupy" in found:
        import cupy

        about["hardware"]["gpu"] = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return about


def parts(on: dict[str, str], out: Path, dry: bool) -> Iterator[Part]:
    """All parts in order: what proves that it works, then what it costs, then a training."""
    yield Part("tests", "pytest", ["-q", "-m", "gpu", "-p", "no:cacheprovider"], 150, ("pytest", "hypothesis"), ())
    for name, device in on.items():
        for dtype in ("float32",) if dry else ("float64", "float32"):
            argv = ["--backend", name, "--device", device, "--dtype", dtype, "--json", *(["--only", "KL"] if dry else [])]
            yield Part(f"verify-{name}-{dtype}", "tinyddpm", ["verify", *argv], 60, (name,), ())
    small = ["--megabytes", "1", "--rounds", "1"] if dry else []
    for name, device in on.items():
        yield Part(f"bandwidth-{name}", "bandwidth", ["--backend", name, "--device", device, *small], 40, (name, "torch"))
    few = ["--shape", "2", "3", "8", "8", "--rounds", "1"] if dry else []
    for name, device in on.items():
        yield Part(f"steps-{name}", "step_speed", ["--backend", name, "--device", device, *few], 40, (name, "torch"))
    if "torch" not in on:
        return
    device, size = on["torch"], ["--batch", "2", "--steps", "3", "--rounds", "1"] if dry else ["--batch", "256", "--rounds", "3"]
    yield Part("likelihood", "likelihood_speed", ["--backend", "torch", "--device", device, *size], 40)
    yield from sampling(on, dry)
    for precision in ("float32", "bf16"):
        argv = ["--device", device, "--precision", precision, *_training_size(dry)]
        yield Part(f"training-{precision}", "train_speed", argv, 60, ("torch", "diffusers"))
    yield from training(device, out, dry)


def sampling(on: dict[str, str], dry: bool) -> Iterator[Part]:
    """Whole runs of two networks, beside diffusers in its fast setting where that is installed."""
    peer = ["--peer", "diffusers-fast"] if find_spec("diffusers") else []
    settings: dict[str, list[str]] = {"eager": [], "bf16": ["--autocast", "bfloat16"], "compiled": ["--compile"]}
    settings["compiled-bf16"] = [*settings["compiled"], *settings["bf16"]]
    if dry:
        settings.pop("compiled"), settings.pop("compiled-bf16")
    steps = ["--steps", "2" if dry else "20", "--repeats", "1" if dry else "3", "--sampler", "ddpm"]
    for model in ("unet",) if dry else ("unet", "unet-cifar10"):
        for batch in ("2",) if dry else ("1", "16", "256"):
            common = ["--model", model, "--batch", batch, *steps]
            for name, how in settings.items():
                argv = ["--backend", "torch", "--device", on["torch"], *common, *how, *peer]
                yield Part(f"sampling-{model}-{batch}-{name}", "sample_speed", argv, 60)
            if "cupy" in on:
                argv = ["--backend", "cupy", "--device", on["cupy"], *common]
                yield Part(f"sampling-{model}-{batch}-cupy", "sample_speed", argv, 40, ("torch", "cupy"))


def _training_size(dry: bool) -> list[str]:
    return ["--network", "small", "--batch", "2", "--rounds", "1"] if dry else ["--network", "cifar10", "--rounds", "10"]


def training(device: str, out: Path, dry: bool) -> Iterator[Part]:
    """Three minutes on colour pictures, and a grid of what it drew."""
    run, data = out / "run", out / "pictures.npz"
    if not data.exists():
        np.savez_compressed(data, images=pictures(64 if dry else 5000, 8 if dry else 32))
    tiny = ["--steps", "2", "--T", "4", "--channels", "8", "--mults", "1", "--res-blocks", "1", "--attention", "8"]
    size = [*tiny, "--batch-size", "4"] if dry else ["--minutes", "3"]
    argv = ["train", "--data", str(data), "--out", str(run), "--device", device, "--quiet", *size]
    yield Part("train", "tinyddpm", argv, 240, (), ())
    argv = ["sample", "--model", str(run), "--out", str(out / "samples.png"), "-n", "4" if dry else "64"]
    yield Part(
        "samples", "tinyddpm", [*argv, "--device", device, "--sampler", "dpm++2m", "--steps", "2" if dry else "20"], 60, (), ()
    )


def pictures(count: int, side: int) -> np.ndarray[Any, Any]:
    """Discs of one colour before a ground of another, drawn without an edge: (count, 3, side, side), uint8."""
    rng = np.random.default_rng(0)
    disc, ground = rng.uniform(0, 255, (2, count, 3, 1, 1))
    x, y = rng.uniform(0.25, 0.75, (2, count, 1, 1, 1)) * side
    radius = rng.uniform(0.15, 0.35, (count, 1, 1, 1)) * side
    grid = np.arange(side) + 0.5
    inside = 1 / (1 + np.exp(2 * (np.hypot(grid - x, grid[:, None] - y) - radius)))
    return np.rint(ground + inside * (disc - ground)).astype(np.uint8)


def main(argv: Sequence[str]) -> None:
    """Make every part that there is time for."""
    parser = _report.Parser(description=_report.about(__doc__).splitlines()[0])
    parser.add_argument("--minutes", type=int, default=9, metavar="N", help="for all parts together (default: 9)")
    parser.add_argument("--only", nargs="+", metavar="PART", help="parts whose names start so")
    parser.add_argument("--out", type=Path, default=HERE / "results/gpu", metavar="DIR", help="(default: results/gpu here)")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, in tiny sizes")
    options = parser.parse_args(argv)
    end = time.monotonic() + 60 * as_positive_int("--minutes", options.minutes)
    on = devices(options.dry_run)
    if not on:
        raise ValueError("no backend has a GPU here; --dry-run goes through the same code on the CPU")
    options.out.mkdir(parents=True, exist_ok=True)
    run = Run(options.out, on, end, options.dry_run)
    chosen = [p for p in parts(on, options.out, options.dry_run) if not options.only or p.name.startswith(tuple(options.only))]
    if not chosen:
        raise LookupError(f"--only: no part starts with {' or '.join(options.only)}")
    for part in chosen:
        run.make(part)
    print(json.dumps({row["part"]: row["state"] for row in run.found}, indent=1))


if __name__ == "__main__":
    raise SystemExit(_report.run(main))
