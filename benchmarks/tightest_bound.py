"""Bits per dimension of one trained network against the number of its calls: the best chains beside the usual ones.

`python benchmarks/tightest_bound.py --model demo [--data digits] [--calibrate 1600] [--limit 180] [--name digits] [--out DIR]`

Usual chains have even, quadratic or log-SNR plans and the variances beta, beta_tilde or, if the network emits one, its own.
"Analytic-DPM" is the even plan with `likelihood.optimal_variance`, Bao et al.'s estimate, on 256 calibration images. The best
chains come from one calibration on images that the network was trained on. All are scored on images that it never saw, with
standard errors over images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _report

CALLS = (5, 10, 20, 50, 100)
NAMES = tuple(f"tightest_bound_{name}" for name in ("digits", "fashion14", "emoji"))


def measure(
    model: str, data: str | None, calibrate: int, limit: int, calls: Sequence[int], progress: bool = True
) -> dict[str, Any]:
    """The bounds of every way and number of calls, with what the calibrations predicted."""
    from tinyddpm import backends, likelihood
    from tinyddpm._commands import planning, runs
    from tinyddpm._commands.calibrate import measure as calibrated

    run = runs.open_run(model)
    known = runs.trained_on(run, run.config.data, calibrate)
    images = runs.held_out(run, data or run.config.data, limit)
    found = {per: calibrated(run, known, per_dimension=per, progress=progress, batch_size=256) for per in (False, True)}
    table = planning.bounds(run, found[False], images, calls, seed=0, progress=progress)
    predicted: dict[str, dict[int, float]] = {}
    x0 = backends.get("torch").from_numpy(known.scaled(slice(256)), device=runs.device_of(run))
    for n in (n for n in calls if n <= run.diffusion.T):
        ways = {}
        plan = run.diffusion.timesteps(n)
        chain = run.diffusion.respaced(plan)
        plain = dataclasses.replace(run.denoiser, variance="beta").respaced(plan) if not run.denoiser.learned else None
        if plain is not None:
            variance = likelihood.optimal_variance(chain, plain, x0)
            ways["even, Analytic-DPM"] = chain, dataclasses.replace(plain, variance=variance)
        ways["best plan, a variance for each dimension"] = found[True].chain(run.diffusion, run.denoiser, n)
        for name, (d, denoiser) in ways.items():
            table.setdefault(name, {})[n] = planning.bound_of(run, d, denoiser, images)
        for name, per in (("best plan and variances", False), ("best plan, a variance for each dimension", True)):
            predicted.setdefault(name, {})[n] = found[per].bits_per_dim(found[per].timesteps(n))
    best = found[False].timesteps()
    return {
        "table": table, "predicted": predicted, "calibration_images": len(known), "images": len(images), "T": run.diffusion.T,
        "step": run.step, "best_length": len(best) - 1, "plan_of_20": found[False].timesteps(min(20, run.diffusion.T)),
    }  # fmt: skip


def as_markdown(found: dict[str, Any], name: str) -> str:
    """The table, its picture and what stands around it."""
    table, predicted = found["table"], found["predicted"]
    lengths = sorted({n for bounds in table.values() for n in bounds})
    rows = [
        [way, *(f"{bounds[n][0]:.3f} ± {bounds[n][1]:.3f}" if n in bounds else "" for n in lengths)]
        for way, bounds in table.items()
    ]
    rows += [
        [f"{way}: predicted", *(f"{bounds[n]:.3f}" if n in bounds else "" for n in lengths)] for way, bounds in predicted.items()
    ]
    text = _report.table(["plan, variances", *(f"{n} calls" for n in lengths)], rows)
    about = (
        f"T = {found['T']}, {found['step']} training steps; {found['calibration_images']} calibration images, "
        f"{found['images']} images scored. The best length of all on the calibration images is {found['best_length']} calls. "
        f"The best plan of 20: {', '.join(map(str, found['plan_of_20']))}."
    )
    return f"{text}\n\n![The same as curves]({name}.png)\n\n{about}"


def main(argv: Sequence[str]) -> None:
    """Measure, print, and write the JSON, the table and the picture."""
    from tinyddpm import plots
    from tinyddpm._commands import planning

    parser = _report.Parser(description=_report.about(__doc__).splitlines()[0])
    parser.add_argument("--model", required=True, metavar="DIR", help="a run folder")
    parser.add_argument("--data", metavar="FOLDER|FILE", help="images to score (default: those that the run held out)")
    parser.add_argument("--calibrate", type=int, default=512, metavar="N", help="training images to calibrate on (default 512)")
    parser.add_argument("--limit", type=int, default=200, metavar="N", help="images to score (default 200)")
    parser.add_argument("--calls", default=",".join(map(str, CALLS)), metavar="N,N,...", help="numbers of network calls")
    parser.add_argument("--name", choices=NAMES, default=NAMES[0], help="name of the files")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write NAME.json, NAME.md and NAME.png there")
    args = parser.parse_args(argv)
    found = measure(args.model, args.data, args.calibrate, args.limit, [int(n) for n in args.calls.split(",")])
    text = as_markdown(found, args.name)
    print(text)
    if args.out:
        about = _report.environment("torch")
        _report.write_json(args.out / f"{args.name}.json", {**about, **found})
        heading = f"# The tightest bound: {args.name.rpartition('_')[2]}\n\n{_report.about(__doc__)}\n\n"
        _report.write_text(args.out / f"{args.name}.md", f"{heading}{text}\n\n{_report.described(about)}\n")
        plots.save(planning.figure(found["table"]), args.out / f"{args.name}.png")


if __name__ == "__main__":
    raise SystemExit(_report.run(main))
