"""``tinyddpm demo``: train a model on 1797 images of digits, draw samples and score the model."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tinyddpm import plots
from tinyddpm._commands import command_line, takes_output
from tinyddpm._commands.calibrate import FILE, LIMIT, best_chain, measure
from tinyddpm._commands.evaluate import in_bits
from tinyddpm._commands.runs import follow, held_out, open_run, read_log, score, trained_on
from tinyddpm.training import DEMO, image_grid, load, save_png, to_uint8, train

EXAMPLES = ("", "--out somewhere", "--json")
SAMPLES, SCALE, GAP, CALLS = 64, 8, 8, 20


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("--out", default="demo", metavar="DIR", help="folder of the run and its pictures (default demo)")
    parser.add_argument("--steps", type=int, default=DEMO.steps, metavar="N", help=f"training steps (default {DEMO.steps})")
    parser.add_argument("--seed", type=int, default=DEMO.seed, metavar="N", help=f"seed of all noise (default {DEMO.seed})")
    takes_output(parser)


def run(args: argparse.Namespace) -> Iterator[str]:
    """Train on the digits, or resume the run in `args.out`; then draw samples, plot and score."""
    found: dict[str, Any] = {}
    with _one_thread():
        for line, facts in _demo(args, Path(args.out), progress=not args.quiet):
            found |= facts
            if not args.json:
                yield line
    if args.json:
        yield json.dumps(found, indent=2)


def _demo(args: argparse.Namespace, out: Path, progress: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each result as a line for people and as a dict for programs."""
    config = dataclasses.replace(DEMO, data="digits", out=args.out, steps=args.steps, seed=args.seed, resume=True)
    images = load("digits")
    yield f"training: {len(images)} handwritten digits of 8x8 pixels, {config.steps} steps of {config.batch_size}", {}
    train(config, progress=progress)
    model = open_run(args.out)
    yield f"model:    {out}", {"model": str(out)}

    records = read_log(args.out)
    started = time.perf_counter()
    columns = plots.columns(model.diffusion, 12)[::-1]
    steps = follow(model, range(SAMPLES), columns, seed=args.seed, progress=progress)
    drawn = SAMPLES / max(time.perf_counter() - started, 1e-9)
    save_png(image_grid(to_uint8(steps[-1].x), 8, SCALE, GAP), out / "samples.png")
    few = [dataclasses.replace(step, x=step.x[:8]) for step in steps]
    plots.save(plots.trajectory(few), out / "denoising.png")
    plots.save(plots.forward(model.diffusion, images.scaled(slice(8))), out / "forward.png")
    plots.save(plots.loss(records), out / "loss.png")
    yield f"samples:  {out / 'samples.png'}", {"samples": str(out / "samples.png")}
    pictures = [str(out / f"{name}.png") for name in ("denoising", "forward", "loss")]
    yield f"pictures: {', '.join(pictures)}", {"pictures": pictures}

    held = held_out(model, "digits")
    bits, error = in_bits(score(model, held, progress=progress))["bits_per_dim"]
    trained = float(np.mean([record["images_per_s"] for record in records]))
    speed = {"trained": round(trained), "drawn": round(drawn, 1)}
    yield f"images/s: {speed['trained']} trained on, {speed['drawn']} drawn", {"images_per_s": speed}
    yield f"bits/dim: {bits:.3f} +- {error:.3f}", {"bits_per_dim": {"mean": bits, "error": error}}
    measure(model, trained_on(model, "digits", LIMIT), progress=progress).save(out / FILE)
    best = best_chain(args.out, model, min(CALLS, model.diffusion.T))
    fewer, wide = in_bits(score(best, held, progress=progress))["bits_per_dim"]
    calls = best.diffusion.T
    yield (f"calls:    {model.diffusion.T} calls {bits:.3f}; {calls} calls {fewer:.3f} +- {wide:.3f}, the network's best chain",
           {"best_chain": {"calls": calls, "mean": fewer, "error": wide}})  # fmt: skip
    yield f"levels: {images.levels}", {"levels": images.levels}
    yield f"go on:    {command_line('sample', '--model', out, '--out', out / 'more.png', '-n', 256)}", {}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run Torch on one thread: with a network this small a second one gains little, and costs much on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
