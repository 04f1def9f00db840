"""What one reverse move costs without the network, beside other libraries and the machine's own limit.

`python benchmarks/step_speed.py [--backend numpy torch jax cupy] [--device D] [--shape B C H W] [--fresh-heap] [--json FILE]
[--markdown FILE]`

A run makes ten to a hundred moves from one start with a network output that stays the same: ours through the backend's stepper,
made anew for each run, diffusers' through `set_timesteps` and its scheduler's `step`, and "formula" as denoising-diffusion-
pytorch writes a move, with coefficients gathered on the device into the batch's shape. Ours draws reproducible noise and
refuses what is not finite; theirs draw the library's own. x_0 is clipped in all or, as diffusers' multistep solver can't, in
none. "limit" is what the machine needs at least: the arrays that a move must read and write, timed as an addition in place, and
our noise, timed alone. Microseconds a move, medians of runs that alternate; Torch and NumPy on one thread.

Before anything is timed a large array is freed, as a network's activations are: from then on the C library hands out again
what was freed. With ``--fresh-heap`` it asks the system anew, which costs those who allocate in every move up to twice the time.
"""

from __future__ import annotations

import argparse
import math
import operator
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import _report
import numpy as np

from tinyddpm import Denoiser, Diffusion, backends, noise, samplers
from tinyddpm._arrays.check import as_positive_int
from tinyddpm._sampling.run import bound_rows

Array = Any
D = Diffusion()
SHAPES = ((1, 1, 8, 8), (1, 3, 32, 32), (64, 3, 32, 32), (16, 3, 256, 256))
ARRAYS = {"ddpm": 3, "ddim": 3, "dpm++2m": 5}
"""State-sized arrays that a move reads or writes: the network's output, the state twice, and two predictions."""
CLIPPED = ("ddpm", "ddim")
"""The samplers that clip x_0 there; its multistep solver has no such option."""
SCHEDULERS = {"ddpm": "DDPMScheduler", "ddim": "DDIMScheduler", "dpm++2m": "DPMSolverMultistepScheduler"}


def ours(backend: backends.Backend, sampler: str, steps: int, x: Array, value: Array) -> Callable[[], object]:
    """A run's moves by the backend's stepper, clipped where diffusers' are."""
    denoiser, plan = Denoiser(lambda x_t, t: x_t), D.timesteps(steps)
    rows = bound_rows(samplers.NAMES[sampler], D, denoiser, plan, 0.0)
    index = np.arange(x.shape[0], dtype=np.uint64)
    make: Any = backend.stepper

    def run() -> None:
        with backends.no_grad(x):
            stepper = make(rows, x, seed=0, index=index, clip=(-1.0, 1.0) if sampler in CLIPPED else None, keep_x0=False)
            for k in range(steps):
                stepper.step(k, value)
            waited(backend, stepper.state)

    return run


def diffusers(sampler: str, steps: int, x: Array, value: Array) -> Callable[[], object]:
    """The same moves by its scheduler."""
    import diffusers
    import torch

    clipped = {"clip_sample": True} if sampler in CLIPPED else {}
    scheduler = getattr(diffusers, SCHEDULERS[sampler])(trained_betas=D.beta[1:], timestep_spacing="trailing", **clipped)

    def run() -> None:
        with torch.no_grad():
            scheduler.set_timesteps(steps)
            state = x
            for t in scheduler.timesteps:
                state = scheduler.step(value, t, state).prev_sample
            waited(backends.get("torch"), state)

    return run


def formula(sampler: str, steps: int, x: Array, value: Array) -> Callable[[], object]:
    """The same moves as denoising-diffusion-pytorch writes them."""
    import torch

    plan = np.array(D.timesteps(steps))
    t, s = plan[:-1], plan[1:]
    w_x0, w_xt, var = D.posterior_weights(t, s)
    with np.errstate(divide="ignore"):
        columns = (1 / D.sqrt_alpha_bar[t], D.sqrt_one_minus_alpha_bar[t] / D.sqrt_alpha_bar[t], w_x0, w_xt, np.log(var))
    tables = [torch.from_numpy(column).to(x.device, x.dtype) for column in columns]
    a_s, sigma_s = D.sqrt_alpha_bar[s].tolist(), D.sqrt_one_minus_alpha_bar[s].tolist()

    def at(table: Array, k: Array) -> Array:
        return table.gather(-1, k).reshape(-1, 1, 1, 1)

    def run() -> None:
        with torch.no_grad():
            state = x
            for step in range(steps):
                k = torch.full((x.shape[0],), step, device=x.device, dtype=torch.long)
                x0 = (at(tables[0], k) * state - at(tables[1], k) * value).clamp_(-1.0, 1.0)
                if sampler == "ddpm":
                    mean, log_var = at(tables[2], k) * x0 + at(tables[3], k) * state, at(tables[4], k)
                    z = torch.randn_like(state) if step + 1 < steps else 0.0
                    state = mean + (0.5 * log_var).exp() * z
                elif step + 1 < steps:
                    eps = (at(tables[0], k) * state - x0) / at(tables[1], k)
                    state = x0 * a_s[step] + sigma_s[step] * eps + 0.0 * torch.randn_like(state)
                else:
                    state = x0
            waited(backends.get("torch"), state)

    return run


def waited(backend: backends.Backend, x: Array) -> None:
    """Until the device has made x."""
    backend.to_numpy(x[(slice(0, 1),) * x.ndim])


def tasks(options: argparse.Namespace, sampler: str, shape: tuple[int, ...], steps: int) -> dict[str, Callable[[], object]]:
    """What is timed for one sampler and shape."""
    rng = np.random.default_rng(0)
    host = [scale * rng.standard_normal(shape).astype(np.float32) for scale in (1.0, 0.1)]
    found: dict[str, Callable[[], object]] = {}
    for name in options.backend:
        backend = backends.get(name)
        x, value = (backend.from_numpy(array, device=options.device) for array in host)
        found[name] = ours(backend, sampler, steps, x, value)
    device = None if options.device == "cpu" else options.device if "torch" in options.backend else "cuda"
    x, value = (backends.get("torch").from_numpy(array, device=device) for array in host)
    if find_spec("diffusers"):
        found["diffusers"] = diffusers(sampler, steps, x, value)
    if sampler != "dpm++2m":
        found["formula"] = formula(sampler, steps, x, value)
    backend = backends.get(options.backend[0])
    x, value = (backend.from_numpy(array, device=options.device) for array in host)

    def drawn() -> None:
        draw = noise.like(x, 0, None)
        for step in range(1, steps):
            z = draw(step)
        waited(backend, z)

    def added() -> None:
        total = x
        for _ in range(steps):
            total = operator.iadd(total, value)
        waited(backend, total)

    return found | {"noise": drawn, "addition": added} if sampler == "ddpm" else found | {"addition": added}


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each shape, sampler and backend."""
    for shape in options.shapes:
        size = math.prod(shape)
        steps = max(10, min(100, 4_000_000 // size))  # as few as are made of large images
        rounds = options.rounds or max(5, min(40, 20_000_000 // (size * steps)))
        for sampler in options.sampler:
            if sys.stderr.isatty():
                print(f"{sampler} {shape} ...", file=sys.stderr)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # diffusers', of NumPy 2's array protocol
                seconds = _report.alternating(tasks(options, sampler, shape, steps), rounds)
            micro = {name: 1e6 * value / steps for name, value in seconds.items()}
            limit = micro["addition"] * ARRAYS[sampler] / 3 + micro.get("noise", 0.0)
            for name in options.backend:
                yield {
                    "sampler": sampler, "shape": list(shape), "backend": name, "device": options.device, "us": micro[name],
                    "diffusers_us": micro.get("diffusers"), "diffusers_ratio": micro.get("diffusers", math.nan) / micro[name],
                    "formula_us": micro.get("formula"), "formula_ratio": micro.get("formula", math.nan) / micro[name],
                    "limit_us": limit, "over_limit": micro[name] / limit, "noise_us": micro.get("noise"),
                    "ns_per_element": 1e3 * micro[name] / size,
                }  # fmt: skip


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, checked."""
    parser = _report.Parser(description=_report.about(__doc__).splitlines()[0])
    parser.add_argument("--backend", nargs="+", default=["numpy", "torch"], metavar="B", help="default: numpy torch")
    parser.add_argument("--device", default="cpu", help="of all of them (default: cpu)")
    parser.add_argument("--sampler", nargs="+", default=list(ARRAYS), metavar="S", help=f"default: {' '.join(ARRAYS)}")
    parser.add_argument("--shape", type=int, nargs=4, metavar="N", help="one shape instead of the usual four")
    parser.add_argument("--fresh-heap", action="store_true", help="as in a process that has freed nothing large")
    parser.add_argument("--rounds", type=int, metavar="N", help="timed runs of each (default: by size)")
    for name in ("json", "markdown"):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"write the rows there, as {name}")
    options = parser.parse_args(argv)
    if options.rounds is not None:
        as_positive_int("--rounds", options.rounds)
    options.shapes = [tuple(as_positive_int("--shape", n) for n in options.shape)] if options.shape else SHAPES
    if unknown := [s for s in options.sampler if s not in ARRAYS]:
        raise LookupError(f"--sampler: {unknown[0]!r} is unknown here; known are {', '.join(ARRAYS)}")
    for name in options.backend:
        backend = backends.get(name)
        if backend.stepper is None:
            raise ValueError(f"--backend: {name} has no stepper of its own")
        backend.from_numpy(np.zeros(1, np.float32), device=options.device)  # refused here where it is missing
    return options


def main(argv: Sequence[str]) -> None:
    """Measure, print, write."""
    import torch

    torch.set_num_threads(1)
    options = parsed(argv)
    if not options.fresh_heap:
        torch.zeros(2**23 - 2**12)  # just below 32 MiB, up to which glibc learns
    found = list(rows(options))
    header = ["sampler", "shape", "backend", "us/move", "diffusers", "ratio", "formula", "ratio", "limit", "over limit"]
    cells = [
        [r["sampler"], "x".join(map(str, r["shape"])), r["backend"],
         *(math.nan if r[k] is None else r[k] for k in ("us", "diffusers_us", "diffusers_ratio", "formula_us", "formula_ratio")),
         r["limit_us"], r["over_limit"]]
        for r in found
    ]  # fmt: skip
    about = _report.environment("torch", "diffusers", *(["jax"] if "jax" in options.backend else []))
    heap = "; fresh heap" if options.fresh_heap else ""
    text = f"{_report.table(header, cells)}\n\n{_report.described(about)}{heap}.\n"
    print(text)
    _report.write_text(options.markdown, f"# {_report.about(__doc__)}\n\n{text}")
    for row in found:
        for peer in ("formula", "diffusers"):
            row[f"{peer}_ratio"] = None if row[f"{peer}_us"] is None else row[f"{peer}_ratio"]
    _report.write_json(options.json, {**about, "rows": found})


if __name__ == "__main__":
    raise SystemExit(_report.run(main))
