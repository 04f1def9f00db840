"""Distances between a run's samples and real images: the part of ``tinyddpm evaluate`` that draws samples."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyddpm import backends, samplers
from tinyddpm._arrays.check import as_int
from tinyddpm._commands.models import Saved
from tinyddpm._commands.runs import batches, device_of, held_out, trained_on
from tinyddpm.training import Images, Run, to_levels
from tinyddpm.training.data.reading import IN_MEMORY
from tinyddpm.training.data.record import by_name
from tinyddpm.training.evaluation import fid
from tinyddpm.training.evaluation.classifier import Classifier, train_classifier
from tinyddpm.training.evaluation.distances import GROUPS, Estimate, compare, frechet, jackknife, kernel

_LABELS = {
    "frechet": "classifier Frechet distance",
    "kernel": "classifier kernel distance",
    "precision": "precision",
    "recall": "recall",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    distances = """draw N samples and compare them with the images: Frechet and kernel distance, precision and recall, in the
    features of a classifier trained on the run's own data, which must have labels; with --fid none is needed"""
    classifier = "folder of the classifier; if it is missing, one is trained and saved there (default: train one, save none)"
    sampler = f"sampler for --distances: {', '.join(samplers.NAMES)} (default ddpm)"
    parser.add_argument("--distances", type=int, metavar="N", help=distances)
    parser.add_argument("--classifier", metavar="DIR", help=classifier)
    parser.add_argument("--sampler", default="ddpm", metavar="NAME", help=sampler)
    parser.add_argument("--sampler-steps", type=int, metavar="N", help="its number of steps (default T)")
    in_inception = "FID and kernel distance (KID) in Inception's features, by torch-fidelity, which must be installed; no labels"
    parser.add_argument("--fid", action="store_true", help=f"{in_inception}; with --classifier, both kinds of distances")


@dataclass(frozen=True)
class Quality:
    """The comparison that `args` ask for; `measure` does the work. No classifier is made if only FID and KID are wanted."""

    args: argparse.Namespace
    run: Run
    real: Images
    classifier: Classifier | None
    training: Images | None
    """For the classifier's distances."""
    inception: Callable[[Any], Any] | None

    @classmethod
    def prepared(cls, args: argparse.Namespace, run: Run) -> Quality | None:
        """Check the options and get the networks; None if no distances are asked for."""
        if args.distances is None:
            for name in ("fid", "classifier"):
                if getattr(args, name):
                    raise ValueError(f"{name} must come with --distances N, the number of samples to compare")
            return None
        as_int("distances", args.distances, 2 * GROUPS, 2**31)
        run.diffusion.trajectory(run.denoiser, (0, *run.shape), backend="torch", **_options(args))  # checks the options at once
        inception = fid.inception(device_of(run)) if args.fid else None
        real = held_out(run, args.data)
        as_int("data: the number of images", len(real), 2 * GROUPS, 2**62)
        if args.fid and args.classifier is None:
            return cls(args, run, real, None, None, inception)
        if isinstance(run, Saved):
            raise ValueError(
                "distances need a run, unless --fid is given: a saved model does not say on which images it was trained"
            )
        if run.config.data == IN_MEMORY:
            training = trained_on(run, args.data, 2**62)
        else:
            training = run.config.images().split(run.config.held_out)[0]
        training = by_name(training, run.class_names)
        real = by_name(real, training.class_names)
        if args.classifier is not None and Path(args.classifier).exists():
            classifier = Classifier.load(args.classifier).to(device_of(run))
        else:
            classifier = train_classifier(training, device=device_of(run), progress=not args.quiet)
            if args.classifier is not None:
                classifier.save(args.classifier)
        return cls(args, run, real, classifier, training, inception)

    def measure(self) -> dict[str, Any]:
        """The distances between samples and images."""
        args = self.args
        samples = draw(self.run, args.distances, _options(args), batch_size=args.batch_size, progress=not args.quiet)
        found: dict[str, Any] = {"samples": len(samples)}
        if self.classifier is not None and self.training is not None:
            found |= self._in_classifier(self.classifier, samples, self.training.rows(slice(len(samples))))
        if self.inception is not None:
            x, y = (fid.features(self.inception, images, device_of(self.run)) for images in (samples, self.real))
            found |= {"fid": frechet(x, y), "kid": _entry(jackknife(kernel, x, y))}
        return found

    def _in_classifier(self, classifier: Classifier, samples: Images, few: Images) -> dict[str, Any]:
        """Each distance of the samples, and beside it that of as many training images (at most all)."""
        real = classifier.features(self.real)
        own, training = compare(classifier.features(samples), real), compare(classifier.features(few), real)
        found: dict[str, Any] = {
            name: {**_entry(estimate), **{f"training_{key}": value for key, value in _entry(training[name]).items()}}
            for name, estimate in own.items()
        }
        return found if self.real.labels is None else {**found, "accuracy": _entry(classifier.accuracy(self.real))}


def draw(run: Run, count: int, options: dict[str, Any], *, batch_size: int = 250, progress: bool = False) -> Images:
    """Draw the samples 0..count-1 on the levels of the data; `options` are those of `Diffusion.sample`."""
    torch, parts = backends.get("torch"), []
    for index, show in batches(range(count), batch_size, progress):
        x = run.diffusion.sample(
            run.denoiser, (len(index), *run.shape), index=index,
            backend="torch", device=device_of(run), progress=show, **options,
        )  # fmt: skip
        parts.append(to_levels(torch.to_numpy(x), run.levels))
    return Images(np.concatenate(parts), run.levels)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    return {"sampler": args.sampler, "steps": args.sampler_steps, "seed": args.seed}


def _entry(estimate: Estimate) -> dict[str, float]:
    return {"mean": estimate.value, "error": estimate.error}


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The results of `Quality.measure` as lines for people."""
    yield f"samples: {found['samples']}"
    for name, label in _LABELS.items() if "frechet" in found else ():
        entry = found[name]
        training = f"(training images: {entry['training_mean']:.4f} +- {entry['training_error']:.4f})"
        yield f"{label}: {entry['mean']:.4f} +- {entry['error']:.4f} {training}"
    if "accuracy" in found:
        yield f"classifier accuracy: {found['accuracy']['mean']:.4f} +- {found['accuracy']['error']:.4f}"
    if "fid" in found:
        yield f"FID: {found['fid']:.4f}"
        yield f"KID: {found['kid']['mean']:.6f} +- {found['kid']['error']:.6f}"
