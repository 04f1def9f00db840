"""What to predict and which loss to train it with: the sources' table, on digits or Fashion-MNIST.

`python benchmarks/objectives.py [--data digits] [--smoke | --full] [--json FILE] [--markdown FILE] [--plot FILE.png]`

One network, one set of images and one number of steps, for each way to predict (mu, eps, x0, v), each loss (L, L_simple,
L_hybrid), each variance (fixed, learned, learned as a part of its range) and some schedules. Bits per dimension are the bound
on images that the network never saw, with one noise for all rows. The distances are between samples and images in the features
of a classifier of the same images; they are no FID, and compare rows of this table only. Errors are standard errors over
images, and over tenths of both sets. The published columns are for CIFAR-10 [Ho et al. 2020, Nichol & Dhariwal 2021]. What the
sources lead to expect of the order of the rows is checked below: it holds, or not, at more than twice the error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import _report
import fashion
import numpy as np
from numpy.typing import NDArray

from tinyddpm import plots
from tinyddpm._commands.quality import draw
from tinyddpm._commands.runs import open_run, score
from tinyddpm._io.files import replacing
from tinyddpm.training import Images, TrainConfig, load, train
from tinyddpm.training.checkpoint import find, read_state
from tinyddpm.training.evaluation.classifier import Classifier, train_classifier
from tinyddpm.training.evaluation.distances import Estimate, compare


@dataclass(frozen=True)
class Objective:
    """A row: what the network predicts, the loss, the variance, and what was published of it."""

    name: str
    predicts: str
    objective: str
    variance: str
    fid: str = ""
    bits: str = ""
    schedule: str = "linear"

    @property
    def folder(self) -> str:
        """Its run folder's name."""
        return self.name.replace(", ", "-").replace(" ", "-")


OBJECTIVES = (
    Objective("eps, L_simple", "eps", "simple", "beta", "3.17", "<= 3.75"),
    Objective("eps, L, fixed variance", "eps", "vlb", "beta", "13.51"),
    Objective("mu, L, fixed variance", "mu", "vlb", "beta", "13.22"),
    Objective("eps, L_hybrid, learned range", "eps", "hybrid", "learned_range", "3.19", "3.17"),
    Objective("eps, L, learned range", "eps", "vlb", "learned_range", "11.47", "2.94"),
    Objective("mu, L, learned variance", "mu", "vlb", "learned", "23.69"),
    Objective("x0, L_simple", "x0", "simple", "beta"),
    Objective("v, L_simple", "v", "simple", "beta"),
    Objective("mu, L_simple", "mu", "simple", "beta", "unstable"),
    Objective("eps, L, learned variance", "eps", "vlb", "learned", "unstable"),
    Objective("eps, L_simple, quadratic betas", "eps", "simple", "beta", schedule="quadratic"),
    Objective("eps, L_simple, cosine", "eps", "simple", "beta", schedule="cosine"),
    Objective("eps, L_simple, sigmoid alpha_bar", "eps", "simple", "beta", schedule="sigmoid_alpha_bar"),
)

CLAIMS = (
    ("frechet", "eps, L_simple", "eps, L, fixed variance"),
    ("frechet", "eps, L_simple", "mu, L, fixed variance"),
    ("frechet", "eps, L_simple", "mu, L, learned variance"),
    ("kernel", "eps, L_simple", "eps, L, fixed variance"),
    ("kernel", "eps, L_simple", "mu, L, fixed variance"),
    ("kernel", "eps, L_simple", "mu, L, learned variance"),
    ("frechet", "eps, L_hybrid, learned range", "eps, L, learned range"),
    ("kernel", "eps, L_hybrid, learned range", "eps, L, learned range"),
    ("bits", "eps, L, fixed variance", "eps, L_simple"),
    ("bits", "mu, L, fixed variance", "eps, L_simple"),
    ("bits", "mu, L, fixed variance", "mu, L_simple"),
    ("bits", "eps, L, learned range", "eps, L_hybrid, learned range"),
    ("bits", "eps, L_hybrid, learned range", "eps, L_simple"),
)
"""What follows from the sources: of this measure, the first row has less than the second. L_simple with eps has the best
distance; L has better codelengths than L_simple, and than L_hybrid, which has better ones than L_simple."""

LABELS = {"bits": "bits/dim", "frechet": "Frechet", "kernel": "kernel", "precision": "precision", "recall": "recall"}
_DIVERGED = ("loss:", "gradient:", "net:")  # the errors that name what is not finite
_UNET = {"mults": (1, 2), "res_blocks": 1, "attention": (7,)}


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    settings: Mapping[str, Any]
    """Of `TrainConfig`."""
    images: int
    """Test images whose bound is taken, at most."""
    samples: int
    side: int = 14


SIZES = {
    "smoke": Size({**_UNET, "steps": 150, "batch_size": 32, "T": 20, "channels": 8, "lr": 2e-3, "ema": 0.95}, 50, 100),
    "small": Size(
        {**_UNET, "steps": 1500, "batch_size": 32, "T": 100, "channels": 24, "warmup": 100, "cooldown": 500, "ema": 0.99},
        200, 500,
    ),
    "full": Size(
        {"mults": (1, 2, 2), "attention": (14,), "steps": 20_000, "batch_size": 128, "T": 1000, "channels": 64,
         "lr": 5e-4, "warmup": 500, "cooldown": 5000, "dropout": 0.1},
        1000, 10_000, 28,
    ),
    "digits": Size(
        {"mults": (1, 2), "res_blocks": 1, "attention": (4,), "steps": 1000, "batch_size": 64, "T": 200, "channels": 32,
         "lr": 2e-3, "warmup": 100, "cooldown": 300, "ema": 0.99},
        180, 500, 8,
    ),
}  # fmt: skip
"""On Fashion-MNIST two minutes of one core, half an hour of one core, and hours of a GPU; on digits a quarter of an hour."""


@dataclass(frozen=True)
class Row:
    """What came of an objective."""

    name: str
    measures: dict[str, Estimate]
    """None where the training failed."""
    each: NDArray[np.float64]
    """Bits per dimension of each image."""
    pixels: NDArray[np.uint8]
    """The first samples."""
    failed: str = ""


@dataclass(frozen=True)
class Study:
    """The images, their classifier, and where the runs are kept."""

    size: Size
    out: Path
    data: str
    """Of `TrainConfig`."""
    held_out: float
    trained_on: Images
    test: Images
    real: Images
    """What samples are compared with: the test images, or all images if those are few."""
    classifier: Classifier
    features: NDArray[np.float64]
    """Of `real`."""
    device: str | None
    progress: bool

    @classmethod
    def of(cls, size: Size, data: Path, out: Path, device: str | None, progress: bool) -> Study:
        """With the classifier that is kept beside the runs, or a new one."""
        if data == DIGITS:
            source, held_out, real = "digits", 0.1, load("digits")
            training, test = real.split(held_out)
        else:
            files = fashion.prepare(data, size.side)
            source, held_out, training, test = str(files["train"]), 0.0, load(files["train"]), load(files["test"])
            real = test
        kept = out / "classifier"
        if not kept.exists():
            train_classifier(training, device=device, progress=progress).save(kept)
        classifier = Classifier.load(kept)
        return cls(
            size, out, source, held_out, training, test, real, classifier, classifier.features(real), device, progress
        )  # fmt: skip

    def row(self, objective: Objective) -> Row:
        """Train, score and draw, as far as it is not done yet; then compare."""
        try:
            folder = self.trained(objective)
            each, samples = self.scored(folder), self.drawn(folder)
        except ValueError as error:
            if not str(error).startswith(_DIVERGED):
                raise
            return Row(objective.name, {}, np.zeros(0), np.zeros((0, 1, 1, 1), np.uint8), str(error))
        bits = Estimate(float(each.mean()), float(each.std(ddof=1) / math.sqrt(len(each))))
        drawn = Images(samples, levels=self.real.levels)
        found = compare(self.classifier.features(drawn), self.features)
        return Row(objective.name, {"bits": bits, **found}, each, shown(drawn))

    def trained(self, objective: Objective) -> Path:
        """The run folder of an objective, its training finished."""
        folder = self.out / objective.folder
        config = TrainConfig(
            data=self.data, out=str(folder), held_out=self.held_out, resume=True, checkpoint_every=250, device=self.device,
            predicts=objective.predicts, objective=objective.objective, variance=objective.variance,
            schedule=objective.schedule, **self.size.settings,
        )  # fmt: skip
        last = find(folder)
        if last is None or read_state(last)["step"] < config.steps:
            train(config, progress=self.progress)
        return folder

    def scored(self, folder: Path) -> NDArray[np.float64]:
        """Bits per dimension of the first test images."""
        file = folder / f"bits-{self.size.images}.npy"
        if not file.exists():
            images = self.test.rows(slice(self.size.images))
            _save(file, score(open_run(str(folder), self.device), images, batch_size=100).bits_per_dim)
        each: NDArray[np.float64] = np.load(file)
        return each

    def drawn(self, folder: Path) -> NDArray[np.uint8]:
        """Samples by the full chain."""
        file = folder / f"samples-{self.size.samples}.npy"
        if not file.exists():
            samples = draw(open_run(str(folder), self.device), self.size.samples, {"sampler": "ddpm"}, batch_size=125)
            _save(file, samples.pixels.astype(np.uint8))
        pixels: NDArray[np.uint8] = np.load(file)
        return pixels

    def itself(self) -> Row:
        """As many training images: what a perfect sampler would have."""
        images = self.trained_on.rows(slice(self.size.samples))
        found = compare(self.classifier.features(images), self.features)
        return Row("(training images)", dict(found), np.zeros(0), shown(images))


DIGITS = Path("digits")
"""The value of ``--data`` for the digits that ship with scikit-learn."""
SHOWN = 14
"""Samples of a row in the picture."""


def shown(images: Images) -> NDArray[np.uint8]:
    """The first images as the picture has them, black at 0 and white at 255."""
    return np.rint((images.scaled(slice(SHOWN)) + 1) * 127.5).astype(np.uint8)


def verdict(measure: str, less: Row, more: Row) -> dict[str, Any]:
    """Whether a row has less than another of a measure, and by how much; bits are compared image by image."""
    found: dict[str, Any] = {"measure": measure, "less": less.name, "more": more.name}
    if less.failed or more.failed:
        return {**found, "difference": None, "error": None, "verdict": "no figures: a training failed"}
    if measure == "bits":
        gaps = more.each - less.each
        gap, error = float(gaps.mean()), float(gaps.std(ddof=1) / math.sqrt(len(gaps)))
    else:  # the test images are in both, so that this error is on the safe side
        one, two = less.measures[measure], more.measures[measure]
        gap, error = two.value - one.value, math.hypot(one.error, two.error)
    holds = "undecided" if abs(gap) <= 2 * error else "holds" if gap > 0 else "does not hold"
    return {**found, "difference": gap, "error": error, "verdict": holds}


def main_table(rows: Sequence[Row], objectives: Mapping[str, Objective]) -> str:
    """The table, with the published columns."""
    cells = []
    for row in rows:
        own = [_shown(row, name) for name in LABELS]
        published = objectives.get(row.name, Objective("", "", "", ""))
        cells.append([row.name, *own, published.fid, published.bits])
    return _report.table(["predicts, loss, variance", *LABELS.values(), "CIFAR FID", "CIFAR bits/dim"], cells)


def claims_table(claims: Sequence[Mapping[str, Any]]) -> str:
    """What the sources say, and what is found."""
    cells = [
        [LABELS[c["measure"]], c["less"], c["more"],
         "" if c["difference"] is None else f"{c['difference']:.4f} +- {c['error']:.4f}", c["verdict"]]
        for c in claims
    ]  # fmt: skip
    return _report.table(["measure", "less is expected of", "than of", "found: second - first", "which"], cells)


def picture(rows: Sequence[Row]) -> Any:
    """A line of samples for each row."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9.2, 0.56 * len(rows) + 0.1), layout="constrained")
    for ax, row in zip(np.atleast_1d(drawn.subplots(len(rows), 1)), rows, strict=True):
        ax.set_axis_off()
        ax.text(-0.01, 0.5, row.name, ha="right", va="center", fontsize=8, transform=ax.transAxes)
        if len(row.pixels):
            strip = np.concatenate(list(np.pad(row.pixels[:, 0], ((0, 0), (0, 0), (0, 1)), constant_values=255)), axis=1)
            ax.imshow(strip, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    return drawn


def _shown(row: Row, name: str) -> str:
    if name not in row.measures:
        return "failed" if row.failed else ""
    value, error = row.measures[name]
    digits = 3 if name == "bits" else max(0, 1 - math.floor(math.log10(error))) if error > 0 else 3
    return f"{value:.{digits}f} +- {error:.{digits}f}"


def _save(file: Path, array: NDArray[Any]) -> None:
    with replacing(file) as stream:
        np.save(stream, array)


def main(argv: Sequence[str]) -> None:
    """Train what is missing, measure, print, write."""
    parser = _report.Parser(description=_report.about(__doc__).splitlines()[0])
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--smoke", action="store_const", const="smoke", dest="size", help="a few minutes of one core")
    sizes.add_argument("--full", action="store_const", const="full", dest="size", help="28x28 pixels; hours of a GPU")
    parser.add_argument("--device", metavar="D", help="by default the first CUDA device, else the CPU")
    parser.add_argument("--data", type=Path, metavar="digits|DIR", help="train.npz and test.npz, made where they are missing")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="run folders; what is finished there is kept")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"some of the rows: {'; '.join(o.name for o in OBJECTIVES)}")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of Torch on a CPU (default 1)")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    for name in ("json", "markdown", "plot"):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    name, known = args.size or ("digits" if args.data == DIGITS else "small"), {o.name: o for o in OBJECTIVES}
    if unknown := set(args.only or ()) - set(known):
        raise LookupError(f"--only: {min(unknown)!r} is unknown; known are {'; '.join(known)}")
    if args.size and args.data == DIGITS:
        raise ValueError(f"--{args.size} is a size for Fashion-MNIST, and --data digits has its own")
    chosen = [o for o in OBJECTIVES if not args.only or o.name in args.only]
    size = SIZES[name]
    out, data = args.runs or Path(f"runs/objectives-{name}"), args.data or Path(f"data/fashion{size.side}")
    _threads(args.threads)
    study = Study.of(size, data, out, args.device, not args.quiet)
    rows = [study.row(objective) for objective in chosen] + [study.itself()]
    by_name = {row.name: row for row in rows}
    claims = [verdict(m, by_name[a], by_name[b]) for m, a, b in CLAIMS if a in by_name and b in by_name]
    accuracy = study.classifier.accuracy(study.test)
    write(args, study, rows, claims, f"classifier accuracy {accuracy.value:.4f} +- {accuracy.error:.4f}")


def write(args: Any, study: Study, rows: Sequence[Row], claims: Sequence[Mapping[str, Any]], judge: str) -> None:
    """Print the tables; write the files that are asked for."""
    about, size = _report.environment("torch"), study.size
    text = f"{main_table(rows, {o.name: o for o in OBJECTIVES})}\n\n{claims_table(claims)}\n"
    failures = "".join(f"\n{row.name}: {row.failed}." for row in rows if row.failed)
    scored, real = min(size.images, len(study.test)), len(study.real)
    text += f"{failures}\n{size.side}x{size.side} pixels, {scored} images scored, {size.samples} samples beside {real} images, "
    text += f"{judge}; "
    text += f"{', '.join(f'{k} {v}' for k, v in size.settings.items())}.\n{_report.described(about)}.\n"
    print(text)
    beside = args.plot and args.markdown and args.plot.parent == args.markdown.parent
    figure = f"![A line of samples for each row]({args.plot.name})\n\n" if beside else ""
    _report.write_text(args.markdown, f"# {_report.about(__doc__)}\n\n{figure}{text}")
    entries = [
        {"name": row.name, "failed": row.failed or None, **{k: e._asdict() for k, e in row.measures.items()}} for row in rows
    ]
    _report.write_json(args.json, {**about, "size": asdict(size), "classifier": judge, "rows": entries, "claims": claims})
    if args.plot:
        plots.save(picture(rows), args.plot)


def _threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


if __name__ == "__main__":
    raise SystemExit(_report.run(main))
