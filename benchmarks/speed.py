"""The measurements of speed on one page: what was aimed at, and what came out, on each machine that was measured.

`python benchmarks/speed.py [--results DIR] [--markdown FILE] [--plot FILE.png]`

Nothing is timed here: each figure is read from the table named beside it, and one machine's tables lie in a folder of their own
below the first's. A ratio is of two medians of one run. A line has a tick if every machine reaches the aim.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _report

from tinyddpm import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
RETIRED = """What is not aimed at, and why:

- A step without noise at the speed of memory. Torch makes five passes over the state and NumPy seven, where one kernel with all
  of them would make one, and no library of arrays has that kernel without a compiler at run time. What could be gained is small
  beside a network's call.
- A network in float32 that is much faster than the peer's. Both spend most of their time in the same kernels of Torch, and the
  convolutions run as fast as matrix products do. The limits below are the ratios if all but these kernels took no time.
- Noise added to x_t in place, for the bound: it would save a twentieth of the time of x_t
  ([where the time goes](xeon/where_time_goes.md)).

The limits:
"""
LARGE, USUAL, TINY = (16, 3, 256, 256), (64, 3, 32, 32), (1, 1, 8, 8)
BACKENDS = ("numpy", "torch")


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


@dataclass(frozen=True)
class Aim:
    """A ratio that should be at least `least`."""

    what: str
    beside: str
    least: float
    table: str
    read: Callable[[Any], float]
    """The ratio in the table."""


def _step(sampler: str, shape: tuple[int, ...], backend: str, least: float) -> Aim:
    what = f"{sampler} step, {_times(shape)}, {backend}"
    return Aim(what, "diffusers' step", least, "step_speed", lambda t: _row(t, sampler, shape, backend)["diffusers_ratio"])


def _sampling(name: str, what: str, least: float) -> Aim:
    def read(table: Any) -> float:
        speed = {row["library"]: row["images_per_s"] for row in table}
        return float(speed["tinyddpm"] / speed["diffusers"])

    return Aim(what, "diffusers' pipeline", least, name, read)


def _bound(backend: str, least: float) -> Aim:
    def read(table: Any) -> float:
        return float(next(row["ratio"] for row in table["rows"] if row["backend"] == backend))

    return Aim(f"bits/dim, {backend}", "the published loop", least, "likelihood_speed", read)


def _training(name: str, what: str, least: float, network: str) -> Aim:
    def read(table: Any) -> float:
        return float(next(row["ratio"] for row in table["rows"] if row["what"] == what))

    return Aim(f"{'training step' if what == 'step' else what}, {network}", "diffusers' UNet2DModel", least, name, read)


AIMS = (
    *(_step("ddpm", TINY, name, 5.0) for name in BACKENDS),
    *(_step("ddpm", USUAL, name, least) for name, least in zip(BACKENDS, (1.0, 1.1), strict=True)),
    *(_step("ddim", USUAL, name, least) for name, least in zip(BACKENDS, (1.2, 2.0), strict=True)),
    *(_step("dpm++2m", USUAL, name, least) for name, least in zip(BACKENDS, (2.5, 3.0), strict=True)),
    Aim("reproducible noise, float32, 64x3x32x32", "NumPy's standard_normal", 2.5, "noise_speed",
        lambda t: next(row["speed"] for row in t["rows"] if row["draw"] == "tinyddpm, a range")),
    _bound("numpy", 5.0),
    _bound("torch", 6.0),
    _sampling("sample_speed", "DDIM, 20 steps, 8x8 network", 1.05),
    _sampling("sample_speed_compiled", "the same, ours compiled", 1.5),
    _sampling("sample_speed_bf16", "DDIM, 20 steps, CIFAR-10 network, ours in bfloat16", 1.8),
    _training("train_speed", "forward", 1.35, "16x16 network"),
    _training("train_speed", "step", 1.3, "16x16 network"),
    _training("train_speed_cifar10", "step", 1.3, "CIFAR-10 network"),
    _training("train_speed_bf16", "step", 1.3, "16x16 network, both in bfloat16"),
    Aim("import", "from diffusers import DDPMScheduler", 25.0, "import_time", lambda t: t["milliseconds"]["ratio"]),
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """A folder of tables, and the processor that they are of."""

    folder: Path
    cpu: str

    def value(self, aim: Aim) -> float | None:
        """The ratio, or None if the table was not made there."""
        file = self.folder / f"{aim.table}.json"
        return float(aim.read(json.loads(file.read_bytes()))) if file.exists() else None


def machines(results: Path) -> list[Machine]:
    """The machine of the folder itself, then those of the folders in it that hold such tables."""
    files = (results / "step_speed.json", *sorted(results.glob("*/step_speed.json")))
    return [Machine(file.parent, json.loads(file.read_bytes())["hardware"]["cpu"]) for file in files if file.exists()]


def table(found: Sequence[Machine]) -> str:
    """A line for each aim, a column for each machine."""
    cells = []
    for aim in AIMS:
        values = [machine.value(aim) for machine in found]
        first = next((m.folder for m, value in zip(found, values, strict=True) if value is not None), found[0].folder)
        file = (first / f"{aim.table}.md").relative_to(found[0].folder)
        known = [value for value in values if value is not None]
        shown = ["" if value is None else f"{value:.2f}" for value in values]
        cells.append([aim.what, aim.beside, f"{aim.least:.4g}", *shown, "✓" if known and min(known) >= aim.least else "",
                      f"[{aim.table}]({file.as_posix()})"])  # fmt: skip
    return _report.table(["what", "beside", "aim", *(machine.cpu for machine in found), "met", "table"], cells)


def limits(found: Sequence[Machine]) -> str:
    """What is no longer aimed at, with the limit that was measured."""
    lines = []
    for machine in found:
        steps = json.loads((machine.folder / "step_speed.json").read_bytes())
        over = {s: max(_row(steps, s, LARGE, name)["over_limit"] for name in BACKENDS) for s in ("ddpm", "ddim", "dpm++2m")}
        listed = ", ".join(f"{sampler} {value:.1f}" for sampler, value in over.items())
        longest = max(_row(steps, s, USUAL, name)["us"] for s in ("ddim", "dpm++2m") for name in BACKENDS) / 1e3
        lines.append(f"- {machine.cpu}: {listed} times what memory and noise alone need at {_times(LARGE)}; a step without noise "
                     f"at {_times(USUAL)} takes at most {longest:.1f} ms.{_networks(machine)}")  # fmt: skip
    return "\n".join(lines)


def _networks(machine: Machine) -> str:
    """How much faster than the peer's the network could be if all but Torch's kernels took no time."""
    file = machine.folder / "train_speed.json"
    rows = json.loads(file.read_bytes())["rows"] if file.exists() else []
    limits = [f"{row['what']} {row['limit']:.2f}" for row in rows if "limit" in row]
    return f" The 16x16 network if all but Torch's kernels took no time: {', '.join(limits)}." if limits else ""


def figure(found: Sequence[Machine]) -> Figure:
    """How many times as fast as the peer on each machine, with the aim as a bar across each line."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    drawn = Figure(figsize=(9, 0.36 * len(AIMS) + 1), layout="constrained")
    ax = drawn.subplots()
    places = range(len(AIMS), 0, -1)
    ax.axvline(1, color="0.6", lw=1)
    for machine, colour, marker in zip(found, _report.COLOURS[::2], "os^", strict=False):
        points = [(machine.value(aim), place) for aim, place in zip(AIMS, places, strict=True)]
        x, y = zip(*(point for point in points if point[0] is not None), strict=True)
        ax.scatter(x, y, color=colour, marker=marker, s=36, zorder=3, label=machine.cpu)
    ax.scatter([aim.least for aim in AIMS], places, color=_report.COLOURS[1], marker="|", s=160, lw=2, zorder=2, label="aim")
    ax.set(xscale="log", xlabel="times as fast", xlim=(0.9, 40), yticks=list(places))
    ax.set_yticklabels([f"{aim.what}  /  {aim.beside}" for aim in AIMS], fontsize=8)
    ax.set_xticks(ticks := [1, 2, 3, 5, 10, 20, 30], [str(k) for k in ticks])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="y", alpha=0.2)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="upper right", frameon=False)
    return drawn


def _row(table: Any, sampler: str, shape: tuple[int, ...], backend: str) -> dict[str, Any]:
    """A row of the table of steps."""
    wanted = {"sampler": sampler, "shape": list(shape), "backend": backend}
    return next(row for row in table["rows"] if wanted.items() <= row.items())


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = _report.Parser(description=_report.about(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the tables are")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios there")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    options = parsed(argv)
    found = machines(options.results)
    if not found:
        raise FileNotFoundError(f"--results: {options.results} holds no step_speed.json")
    print(table(found))
    if options.plot is not None:
        plots.save(figure(found), options.plot)
    text = f"# {_report.about(__doc__)}\n\n{table(found)}\n\n{RETIRED}\n\n{limits(found)}\n"
    if options.plot is not None and options.markdown is not None and options.plot.parent == options.markdown.parent:
        text += f"\n![How many times as fast each is as its peer, beside the aim]({options.plot.name})\n"
    about = [json.loads((machine.folder / "step_speed.json").read_bytes()) for machine in found]
    _report.write_text(options.markdown, text + "".join(f"\n{_report.described(each)}\n" for each in about))


if __name__ == "__main__":
    raise SystemExit(_report.run(main))
