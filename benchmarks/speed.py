"""The measurements of speed on one page: what was aimed at, and what came out.

`python benchmarks/speed.py [--results DIR] [--markdown FILE] [--plot FILE.png]`

Nothing is timed here: each figure is read from the table named beside it. A ratio is of two medians of one run. A line without a
tick missed its aim; "Where the time of a move goes" and the page on the design say what limits it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _report

from tinyddpm import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
MOVES = {
    ("ddpm", (1, 1, 8, 8)): {"numpy": 5.0, "torch": 5.0},
    ("ddpm", (64, 3, 32, 32)): {"numpy": 1.0, "torch": 1.1},
    ("ddim", (64, 3, 32, 32)): {"numpy": 1.2, "torch": 2.0},
    ("dpm++2m", (64, 3, 32, 32)): {"numpy": 2.5, "torch": 3.0},
}
LARGE = (16, 3, 256, 256)


@dataclass(frozen=True)
class Line:
    """One aim: a ratio that should be at least `aim`, or, where `least` is False, a figure that should be at most that."""

    what: str
    beside: str
    value: float
    aim: float
    table: str
    least: bool = True

    @property
    def met(self) -> bool:
        return self.value >= self.aim if self.least else self.value <= self.aim


def lines(results: Path) -> Iterator[Line]:
    """Every aim, from the tables in `results`."""
    moves = {(r["sampler"], tuple(r["shape"]), r["backend"]): r for r in _read(results, "step_speed")["rows"]}
    for (sampler, shape), aims in MOVES.items():
        for backend, aim in aims.items():
            ratio = moves[sampler, shape, backend]["diffusers_ratio"]
            yield Line(f"{sampler} move, {_times(shape)}, {backend}", "diffusers' step", ratio, aim, "step_speed")
    noise = next(r for r in _read(results, "noise_speed")["rows"] if r["draw"] == "tinyddpm, a range")
    yield Line("reproducible noise, float32, 64x3x32x32", "NumPy's standard_normal", noise["speed"], 2.5, "noise_speed")
    aims = {"numpy": 5.0, "torch": 6.0}
    for row in _read(results, "likelihood_speed")["rows"]:
        aim = aims[row["backend"]]
        yield Line(f"bits/dim, {row['backend']}", "the published loop", row["ratio"], aim, "likelihood_speed")
    for name, what, aim in (
        ("sample_speed", "DDIM, 20 moves, 8x8 network", 1.05),
        ("sample_speed_compiled", "the same, compiled", 1.5),
        ("sample_speed_bf16", "DDIM, 20 moves, CIFAR-10 network, bfloat16", 1.8),
    ):
        speed = {row["library"]: row["images_per_s"] for row in _read(results, name)}
        yield Line(what, "diffusers' pipeline", speed["tinyddpm"] / speed["diffusers"], aim, name)
    ratio = _read(results, "import_time")["milliseconds"]["ratio"]
    yield Line("import", "from diffusers import DDPMScheduler", ratio, 25.0, "import_time")
    for sampler in ("ddpm", "ddim", "dpm++2m"):
        over = max(moves[sampler, LARGE, backend]["over_limit"] for backend in ("numpy", "torch"))
        what = f"{sampler} move, {_times(LARGE)}: times the machine's limit"
        yield Line(what, "memory and noise alone", over, 1.3, "step_speed", least=False)
    (row,) = _read(results, "sample_speed_1000")
    what = "percent of a run outside the network, 8x8 network"
    yield Line(what, "the run", 100 * row["outside_share"], 1.0, "sample_speed_1000", least=False)


def table(found: Sequence[Line]) -> str:
    header = ("what", "beside", "aim", "measured", "met", "table")
    return _report.table(header, [
        (r.what, r.beside, f"{'at least' if r.least else 'at most'} {r.aim:.4g}", f"{r.value:.4g}", "✓" if r.met else "",
         f"[{r.table}]({r.table}.md)") for r in found])  # fmt: skip


def figure(found: Sequence[Line]) -> Figure:
    """How many times as fast as the peer, with the aim as a bar across each line."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    ratios = [r for r in found if r.least]
    drawn = Figure(figsize=(9, 0.36 * len(ratios) + 1), layout="constrained")
    ax = drawn.subplots()
    places = range(len(ratios), 0, -1)
    ax.axvline(1, color="0.6", lw=1)
    ax.hlines(places, 1, [r.value for r in ratios], color=_report.COLOURS[0], lw=1.5)
    ax.scatter([r.value for r in ratios], places, color=_report.COLOURS[0], s=36, zorder=3, label="measured")
    aims = [r.aim for r in ratios]
    ax.scatter(aims, places, color=_report.COLOURS[1], marker="|", s=160, lw=2, zorder=2, label="aim")
    ax.set(xscale="log", xlabel="times as fast", xlim=(0.9, 40), yticks=list(places))
    ax.set_yticklabels([f"{r.what}  /  {r.beside}" for r in ratios], fontsize=8)
    ax.set_xticks(ticks := [1, 2, 3, 5, 10, 20, 30], [str(k) for k in ticks])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="upper right", frameon=False)
    return drawn


def _read(results: Path, name: str) -> Any:
    return json.loads((results / f"{name}.json").read_bytes())


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = _report.Parser(description=_report.about(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the tables are")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios there")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    options = parsed(argv)
    found = list(lines(options.results))
    print(table(found))
    if options.plot is not None:
        plots.save(figure(found), options.plot)
    text = f"# {_report.about(__doc__)}\n\n{table(found)}\n"
    if options.plot is not None and options.markdown is not None and options.plot.parent == options.markdown.parent:
        text += f"\n![How many times as fast each is as its peer, beside the aim]({options.plot.name})\n"
    _report.write_text(options.markdown, f"{text}\n{_report.described(_read(options.results, 'step_speed'))}\n")


if __name__ == "__main__":
    raise SystemExit(_report.run(main))
