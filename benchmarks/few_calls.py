"""How good samples of one trained network are with few network calls, by sampler, beside diffusers' schedulers.

`python benchmarks/few_calls.py --model demo [--samples 500] [--calls 3,5,10,20,50] [--out DIR]`

Frechet distance in the features of a small classifier between samples and the images that the network was trained on; lower is
better. The error leaves out each tenth of both sets in turn. Ours: each sampler with its own spacing (`samplers.BEST_SPACING`),
ddpm also with the best variances, and with the best plan for the bound (`likelihood.calibrate`). diffusers' schedulers have the
same betas and network, clip where they can, and of their spacings "trailing". All start from the same noise.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _report
import numpy as np

CALLS = (3, 5, 10, 20, 50)
OURS = ("ddpm", "ddim", "dpm++2m", "dpm++3m", "unipc")
SCHEDULERS = {
    "ddpm": ("DDPMScheduler", {"variance_type": "fixed_small"}),
    "ddim": ("DDIMScheduler", {"set_alpha_to_one": True}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {"solver_order": 2, "final_sigmas_type": "zero"}),
    "dpm++3m": ("DPMSolverMultistepScheduler", {"solver_order": 3, "final_sigmas_type": "zero"}),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 2, "final_sigmas_type": "zero"}),
}


def diffusers_samples(run: Any, sampler: str, calls: int, start: Any) -> Any:
    """The loop that diffusers' users write."""
    import diffusers
    import torch

    name, options = SCHEDULERS[sampler]
    clips = {"clip_sample": True} if sampler in ("ddpm", "ddim") else {}
    scheduler = getattr(diffusers, name)(
        num_train_timesteps=run.diffusion.T, trained_betas=run.diffusion.beta[1:], timestep_spacing="trailing", **clips, **options
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # some of its versions call NumPy as before version 2
        scheduler.set_timesteps(calls)
    x, generator = start, torch.Generator().manual_seed(0)
    noisy = {"generator": generator} if sampler == "ddpm" else {}
    with torch.no_grad():
        for t in scheduler.timesteps:
            steps = torch.full((len(x),), int(t) + run.denoiser.first_t)
            x = scheduler.step(run.denoiser.net(x, steps), t, x, **noisy).prev_sample
    return x


def measure(model: str, samples: int, calls: Sequence[int], progress: bool = True) -> dict[str, Any]:
    """The Frechet distance and its error for every sampler and number of calls."""
    from tinyddpm import noise
    from tinyddpm._commands import runs
    from tinyddpm._commands.calibrate import measure as calibrated
    from tinyddpm._io.progress import progress_bar
    from tinyddpm.training import Images, to_levels
    from tinyddpm.training.evaluation.classifier import train_classifier
    from tinyddpm.training.evaluation.distances import compare

    run = runs.open_run(model)
    known = runs.trained_on(run, run.config.data, 2**31)
    classifier = train_classifier(known, device=runs.device_of(run), progress=progress)
    found = calibrated(run, runs.trained_on(run, run.config.data, 512), progress=progress)
    real = classifier.features(known)
    start = noise.normal(0, range(samples), 0, run.shape, backend="torch", dtype="float32")

    def distance(x: Any) -> tuple[float, float]:
        images = Images(to_levels(np.asarray(x), run.levels), run.levels)
        return tuple(compare(classifier.features(images), real)["frechet"])  # type: ignore[return-value]

    def drawn(one: Any, **options: Any) -> Any:
        return one.diffusion.sample(one.denoiser, (samples, *run.shape), x_T=start, **options)

    table: dict[str, dict[int, tuple[float, float]]] = {}
    jobs = [(n, sampler) for n in calls for sampler in OURS]
    for n, sampler in progress_bar(jobs, len(jobs), enabled=progress, label="few calls"):
        table.setdefault(sampler, {})[n] = distance(drawn(run, sampler=sampler, steps=n))
        table.setdefault(f"{sampler}, diffusers", {})[n] = distance(diffusers_samples(run, sampler, n, start))
        if sampler == "ddpm":
            d, denoiser = found.chain(run.diffusion, run.denoiser, n)
            best = dataclasses.replace(run, diffusion=d, denoiser=denoiser)
            table.setdefault("ddpm, best plan for the bound", {})[n] = distance(drawn(best))
            even = found.chain(run.diffusion, run.denoiser, timesteps=run.diffusion.timesteps(n))
            best = dataclasses.replace(run, diffusion=even[0], denoiser=even[1])
            table.setdefault("ddpm, even plan, best variances", {})[n] = distance(drawn(best))
    return {"table": table, "samples": samples, "real": len(known), "step": run.step}


def main(argv: Sequence[str]) -> None:
    """Measure, print, and write the JSON and the table."""
    parser = _report.Parser(description=_report.about(__doc__).splitlines()[0])
    parser.add_argument("--model", required=True, metavar="DIR", help="a run folder, whose data have labels")
    parser.add_argument("--samples", type=int, default=500, metavar="N", help="samples for each figure (default 500)")
    parser.add_argument("--calls", default=",".join(map(str, CALLS)), metavar="N,N,...", help="numbers of network calls")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write few_calls.json and few_calls.md there")
    args = parser.parse_args(argv)
    found = measure(args.model, args.samples, [int(n) for n in args.calls.split(",")])
    lengths = sorted({n for row in found["table"].values() for n in row})
    rows = [[name, *(f"{row[n][0]:.2f} ± {row[n][1]:.2f}" for n in lengths)] for name, row in found["table"].items()]
    text = _report.table(["sampler", *(f"{n} calls" for n in lengths)], rows)
    text += f"\n\n{found['samples']} samples beside {found['real']} images; {found['step']} training steps."
    print(text)
    if args.out:
        about = _report.environment("torch", "diffusers")
        _report.write_json(args.out / "few_calls.json", {**about, **found})
        heading = f"# Samples with few network calls\n\n{_report.about(__doc__)}\n\n"
        _report.write_text(args.out / "few_calls.md", f"{heading}{text}\n\n{_report.described(about)}\n")


if __name__ == "__main__":
    raise SystemExit(_report.run(main))
