"""Images per second on one backend, and the share of the time that is not the network's.

`python benchmarks/sample_speed.py --backend {numpy,torch,cupy,jax} [--device D] [--model analytic|unet|unet-cifar10|DIR] ...`

Each row is the median of a few whole runs, after one to warm up, until the samples are on the host. "outside" is what a further
run spends outside the network, the device waited for before and after each call: where calls overlap with other work that is
more than they cost. The default model is the exact network of a mixture of Gaussians, which runs on any backend; the others
are Torch networks, reached through `nn.to_backend`. `--peer diffusers` times its pipeline with the same weights, and for the
mixture its schedulers' loop around the same network. `--compile` and `--autocast` are those of `sample`, for ours alone; with
`--peer diffusers-fast` its network has both too, in its schedulers' loop.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import _report
import numpy as np

from tinyddpm import Denoiser, Diffusion, backends, samplers
from tinyddpm._arrays.check import as_positive_int

Array = Any
Model = tuple[Diffusion, Denoiser, tuple[int, ...]]  # and one image's shape


def analytic(backend: backends.Backend, device: str, dtype: str) -> Model:
    """A mixture of two Gaussians over 3x32x32 numbers."""
    from tinyddpm.analytic import MixtureData

    means = 0.5 * np.random.default_rng(0).standard_normal((2, 3, 32, 32))
    d = Diffusion()
    return d, Denoiser(MixtureData(np.full(2, 0.5), means, np.full(2, 0.05)).net(d)), means.shape[1:]


def unet(backend: backends.Backend, device: str, dtype: str) -> Model:
    """A small U-Net for 8x8 images, untrained."""
    from tinyddpm import nn

    net = nn.UNet(8, in_channels=1, channels=32, mults=(1, 2), res_blocks=1, attention=(4,))
    return Diffusion(), Denoiser(_placed(net, backend, device, dtype), first_t=0), (1, 8, 8)


def cifar10(backend: backends.Backend, device: str, dtype: str) -> Model:
    """[Ho]'s network of 35.7 million parameters, untrained."""
    from tinyddpm import nn

    return Diffusion(), Denoiser(_placed(nn.UNet.cifar10(), backend, device, dtype), first_t=0), (3, 32, 32)


MODELS: dict[str, Callable[..., Model]] = {"analytic": analytic, "unet": unet, "unet-cifar10": cifar10}


def trained(folder: str, backend: backends.Backend, device: str, dtype: str) -> Model:
    """A run folder's network."""
    from tinyddpm.training import load_run

    run = load_run(folder)
    return run.diffusion, replace(run.denoiser, net=_placed(run.net, backend, device, dtype)), run.shape


def _placed(net: Any, backend: backends.Backend, device: str, dtype: str) -> Any:
    """The Torch network, ready for the backend's arrays."""
    import torch

    from tinyddpm.nn import to_backend

    net = net.eval().requires_grad_(False).to(device, getattr(torch, dtype), memory_format=torch.channels_last)
    return net if backend.name == "torch" else to_backend(net, backend.name)


class Timed:
    """A network that adds up the seconds spent in it."""

    def __init__(self, net: Any, backend: backends.Backend) -> None:
        self.net, self.backend, self.seconds, self.calls = net, backend, 0.0, 0

    def __call__(self, x: Array, t: Array, **rest: Any) -> Array:
        self._wait(x)
        start = time.perf_counter()
        out = self.net(x, t, **rest)
        self._wait(out[0] if isinstance(out, tuple) else getattr(out, "sample", out))
        self.seconds += time.perf_counter() - start
        self.calls += 1
        return out

    def _wait(self, x: Array) -> None:
        if self.backend.name != "numpy" and not (self.backend.name == "torch" and x.device.type == "cpu"):
            self.backend.to_numpy(x[(slice(0, 1),) * x.ndim])  # one number on the host: whatever made it is done


def ours(model: Model, sampler: str, options: argparse.Namespace) -> Callable[[Any], Array]:
    """A run of ours, with `net` in place of the network where it is not None."""
    d, denoiser, shape = model

    def run(net: Any) -> Array:
        timed, faster = (denoiser, _faster(options)) if net is None else (replace(denoiser, net=net), {})
        return d.sample(timed, (options.batch, *shape), sampler=sampler, steps=options.steps,
                        backend=options.backend, device=options.device, dtype=options.dtype, **faster)  # fmt: skip

    return run


def _faster(options: argparse.Namespace) -> dict[str, Any]:
    """What `sample` is asked for beyond the plain run; nothing that another backend than Torch would refuse."""
    chosen = {"compile": options.compile, "autocast": options.autocast}
    return {name: value for name, value in chosen.items() if value}


def loaded(model: Model, sampler: str) -> Any:
    """diffusers' pipeline of a model."""
    import diffusers

    from tinyddpm.nn import save_diffusers

    d, denoiser, _ = model
    net: Any = denoiser.net
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, of what they will remove
        save_diffusers(Path(folder) / "model", net, d, denoiser)
        kind = getattr(diffusers, {"ddpm": "DDPMPipeline", "ddim": "DDIMPipeline"}[sampler])
        return kind.from_pretrained(Path(folder) / "model", low_cpu_mem_usage=False)


def pipeline(model: Model, sampler: str, options: argparse.Namespace) -> Callable[[Any], Array]:
    """The same run by diffusers' pipeline, with the same weights."""
    import torch

    made = loaded(model, sampler)
    made.unet.to(options.device, getattr(torch, options.dtype), memory_format=torch.channels_last)
    if options.peer == "diffusers-fast":
        unet = torch.compile(made.unet) if options.compile else made.unet
        return loop(model, sampler, options, lambda x, t: unet(x, t).sample)
    made.set_progress_bar_config(disable=True)

    def run(net: Any) -> Array:
        unet = made.unet
        if net is not None:
            net.net = unet.forward
            unet.forward = lambda x, t, **rest: net(x, t, **rest)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # theirs, of NumPy 2's array protocol and of what they will remove
                images = made(batch_size=options.batch, num_inference_steps=options.steps, output_type="np").images
        finally:
            vars(unet).pop("forward", None)
        return torch.from_numpy(images)

    return run


def loop(model: Model, sampler: str, options: argparse.Namespace, net: Callable[..., Array]) -> Callable[[Any], Array]:
    """The same run as diffusers' pipelines make it: the loop around the scheduler of the same name, on the same plan."""
    import diffusers
    import torch

    d, denoiser, shape = model
    name = {"ddpm": "DDPMScheduler", "ddim": "DDIMScheduler"}[sampler]
    prediction = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}[denoiser.predicts]
    scheduler = getattr(diffusers, name)(trained_betas=d.beta[1:], clip_sample=denoiser.clip_x0, prediction_type=prediction,
                                         timestep_spacing="trailing")  # fmt: skip
    place, dtype = torch.device(options.device), getattr(torch, options.dtype)
    shift = denoiser.first_t  # theirs counts from 0
    lower = getattr(torch, options.autocast or "bfloat16")

    def run(timed: Any) -> Array:
        if timed is not None:
            timed.net = net
        own_precision = torch.autocast(place.type, lower, enabled=options.peer == "diffusers-fast" and bool(options.autocast))
        with torch.no_grad(), own_precision, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # theirs, of NumPy 2's array protocol
            scheduler.set_timesteps(options.steps)
            x = torch.randn((options.batch, *shape), device=place, dtype=dtype)
            for t in scheduler.timesteps:
                out = (timed or net)(x, torch.full((options.batch,), int(t) + shift, device=place))
                x = scheduler.step(out.to(dtype), t, x).prev_sample
        return x

    return run


def measured(
    runs: dict[str, Callable[[Any], Array]], nets: dict[str, Any], backend: backends.Backend, repeats: int
) -> dict[str, dict[str, float]]:
    """Seconds of each library's whole runs, which alternate, and what of a further one is outside the network, of `nets`."""

    def once(run: Callable[[Any], Array], net: Any) -> float:
        start = time.perf_counter()
        backend.to_numpy(run(net))
        return time.perf_counter() - start

    times: dict[str, list[float]] = {library: [] for library in runs}
    for repeat in range(repeats + 1):
        for library, run in runs.items():
            if sys.stderr.isatty() or sum(map(sum, times.values())) > 10:
                print(f"{library}: run {repeat} of {repeats}", file=sys.stderr)
            times[library].append(once(run, None))
    figures = {}
    for library, run in runs.items():
        once(run, Timed(nets[library], backend))  # a compiled one may be compiled anew
        timed = Timed(nets[library], backend)
        outside = once(run, timed) - timed.seconds
        figures[library] = _figures(statistics.median(times[library][1:]), outside, timed)
    return figures


def _nets(net: Any, backend: backends.Backend, options: argparse.Namespace) -> dict[str, Any]:
    """The network as each library calls it."""
    faster: dict[str, Any] = {"compile": False, "autocast": None} | _faster(options)
    prepared: Any = backend.optimize_net
    return {"tinyddpm": prepared(net, **faster) if _faster(options) else net, "diffusers": net}


def _figures(whole: float, outside: float, timed: Timed) -> dict[str, float]:
    return {"seconds": whole, "outside_share": outside / (outside + timed.seconds), "outside_s": outside, "calls": timed.calls}


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each sampler, ours and the peer's."""
    backend = backends.get(options.backend)
    options.device = options.device or backend.devices()[0]
    backend.from_numpy(np.zeros(1, np.float32), device=options.device)  # a device that is not here is refused before any work
    if options.backend == "torch" or options.model != "analytic":
        import torch

        torch.set_num_threads(options.threads)  # two that share a core with anything else wait for each other
    d, denoiser, shape = model = _model(options, backend)
    options.steps = min(50, d.T) if options.steps is None else options.steps
    about = _report.environment(*(root.replace("cupy", "cupy-cuda12x") for root in backend.roots))
    for sampler in options.sampler:
        runs = {"tinyddpm": ours(model, sampler, options)}
        if options.peer and sampler in ("ddpm", "ddim"):
            mixture = options.model == "analytic"
            runs["diffusers"] = (
                loop(model, sampler, options, denoiser.net) if mixture else pipeline(model, sampler, options)
            )  # fmt: skip
        for library, figures in measured(runs, _nets(denoiser.net, backend, options), backend, options.repeats).items():
            yield {
                "library": library, "backend": options.backend, "device": options.device, "model": options.model,
                "sampler": sampler, "shape": list(shape), "dtype": options.dtype, "threads": options.threads,
                "compile": options.compile, "autocast": options.autocast, "batch": options.batch,
                "steps": options.steps, "images_per_s": options.batch / figures["seconds"],
                "ms_per_move": 1e3 * figures["seconds"] / options.steps,
                "outside_ms_per_move": 1e3 * figures["outside_s"] / options.steps,
                **figures, "peak_memory_mb": _peak_memory(options), **about,
            }  # fmt: skip


def _model(options: argparse.Namespace, backend: backends.Backend) -> Model:
    place = (backend, options.device, options.dtype)
    if options.model in MODELS:
        return MODELS[options.model](*place)
    if not Path(options.model).is_dir():
        raise LookupError(f"--model: {options.model!r} is unknown; known are {', '.join(MODELS)}, and a trained run's folder")
    return trained(options.model, *place)


def _peak_memory(options: argparse.Namespace) -> float:
    """The most this process has held so far: on the device where Torch counts it, else on the host."""
    if options.backend == "torch" and options.device.startswith("cuda"):
        import torch

        return float(torch.cuda.max_memory_allocated(options.device) / 2**20)
    try:
        import resource
    except ImportError:  # not on this system
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, checked."""
    parser = _report.Parser(description=_report.about(__doc__).splitlines()[0])
    parser.add_argument("--backend", default="numpy", help="numpy (default), torch, cupy, jax, or a plug-in's name")
    parser.add_argument("--device", help="its device (default: its first)")
    parser.add_argument("--model", default="analytic", metavar="NAME", help=f"{', '.join(MODELS)} or a trained run's folder")
    parser.add_argument("--sampler", nargs="+", default=["ddpm", "ddim"], metavar="S", help="default: ddpm ddim")
    parser.add_argument("--steps", type=int, metavar="N", help="moves (default: 50)")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="images at a time (default: 16)")
    parser.add_argument("--dtype", default="float32", help="default: float32")
    parser.add_argument("--compile", action="store_true", help="compile the network (Torch)")
    parser.add_argument("--autocast", metavar="DTYPE", help="run the network in bfloat16 or float16 (Torch)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of Torch on the CPU (default: 1)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs to take the median of (default: 3)")
    parser.add_argument("--peer", choices=["diffusers", "diffusers-fast"], help="time its loop beside ours (Torch only)")
    for name in ("json", "markdown"):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"write the rows there, as {name}")
    options = parser.parse_args(argv)
    for name in ("batch", "threads", "repeats", *(["steps"] if options.steps is not None else [])):
        as_positive_int(f"--{name}", getattr(options, name))
    if unknown := [s for s in options.sampler if s not in samplers.NAMES]:
        raise LookupError(f"--sampler: {unknown[0]!r} is unknown; known are {', '.join(samplers.NAMES)}")
    for name in ("compile", "autocast"):
        if getattr(options, name) and backends.get(options.backend).optimize_net is None:
            raise ValueError(f"--{name}: is Torch's, not {options.backend}'s")
    if options.peer and options.backend != "torch":
        raise ValueError(f"--peer: diffusers runs on the torch backend, not on {options.backend}")
    if options.peer == "diffusers" and options.dtype == "bfloat16":
        raise ValueError("--dtype: diffusers' pipelines end in NumPy, which has no bfloat16; use --peer diffusers-fast")
    return options


def main(argv: Sequence[str]) -> None:
    """Measure, print, write."""
    options = parsed(argv)
    found = list(rows(options))
    cells = [
        [r["library"], r["backend"], r["device"], r["model"], r["sampler"], r["batch"], r["steps"], r["seconds"],
         r["images_per_s"], r["ms_per_move"], f"{100 * r['outside_share']:.1f}%", r["outside_ms_per_move"],
         round(r["peak_memory_mb"])]
        for r in found
    ]  # fmt: skip
    header = ["library", "backend", "device", "model", "sampler", "batch", "steps", "seconds", "images/s", "ms/move",
              "outside", "ms outside", "peak MB"]  # fmt: skip
    text = f"{_report.table(header, cells)}\n\n{_report.described(found[0])}\n"
    print(text)
    _report.write_json(options.json, found)
    how = "".join(f", {word}" for word in (options.model, options.compile and "compiled", options.autocast) if word)
    _report.write_text(options.markdown, f"# Sampling{how}\n\n{_report.about(__doc__)}\n\n{text}")


if __name__ == "__main__":
    raise SystemExit(_report.run(main))
