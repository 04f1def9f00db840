"""How fast our U-Net trains, beside diffusers' UNet2DModel with the same configuration and the same weights.

`python benchmarks/train_speed.py [--network {small,cifar10}] [--device D] [--batch B] [--precision P] [--compile] [--rounds N]`
`    [--json F] [--markdown F]`

"forward" is the network alone, in evaluation; "backward" is forward and backward in training, to the gradient of a sum. "step"
is a whole training step: t and noise drawn, x_t, the loss, the gradient, its norm clipped, Adam, the average of the weights.
Ours is the library's own, with reproducible noise; theirs is the loop of diffusers' example for unconditional images, its
EMAModel included, with our optimiser, which is fused. "small" is a network for 16x16 images, "cifar10" Ho et al.'s. Medians of
runs that alternate, on one thread of a CPU; on a GPU each run ends when the device is done.

On a CPU "kernels" is the share of our time, by Torch's profiler, in its convolutions, matrix products, attention, group norms and
SiLU, which both networks call, and "limit" the ratio if all else that we do took no time.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import _report
import numpy as np
import torch
import torch.nn.functional as F

from tinyddpm._arrays.check import as_positive_int, lookup
from tinyddpm.nn import save_diffusers
from tinyddpm.training import Images, TrainConfig
from tinyddpm.training.trainer import Trainer
from tinyddpm.training.world import World

NETWORKS: dict[str, tuple[int, int, dict[str, Any]]] = {  # image size, batch, settings
    "small": (16, 16, {"channels": 32, "mults": (1, 2, 2), "attention": (8,)}),
    "cifar10": (32, 128, {"channels": 128, "mults": (1, 2, 2, 2), "attention": (16,), "dropout": 0.1}),
}
KERNELS = (
    "aten::convolution_backward", "aten::mkldnn_convolution", "aten::mm", "aten::bmm", "aten::addmm", "attention", "softmax",
    "group_norm", "silu",
)  # fmt: skip
"""What Torch spends its time in for both networks, in the profiler's words."""


class Peer:
    """diffusers' network with a trainer's configuration and weights, and the training step of its example."""

    def __init__(self, trainer: Trainer, compiled: bool) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own imports
            from diffusers import DDPMScheduler, UNet2DModel
            from diffusers.training_utils import EMAModel
        self.trainer, config = trainer, trainer.config
        with tempfile.TemporaryDirectory() as folder:
            save_diffusers(folder, trainer.net, trainer.diffusion, config.denoiser(trainer.net))
            model = UNet2DModel.from_pretrained(folder, subfolder="unet", low_cpu_mem_usage=False).to(trainer.world.device)
            self.scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        self.model = model.train()
        self.network = torch.compile(model) if compiled else model
        self.ema = EMAModel(model.parameters(), decay=config.ema, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)

    def step(self, x0: torch.Tensor) -> None:
        """One step on the images x0."""
        noise = torch.randn(x0.shape, device=x0.device)
        t = torch.randint(0, self.trainer.config.T, (len(x0),), device=x0.device)
        x_t = self.scheduler.add_noise(x0, noise, t)
        with autocast(self.trainer):
            loss = F.mse_loss(self.network(x_t, t).sample.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.trainer.config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.model.parameters())


def tasks(trainer: Trainer, compiled: bool) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """What is timed: ours and theirs."""
    peer, device = Peer(trainer, compiled), trainer.world.device
    batch = next(iter(trainer.batches(1)))
    x0, t = batch.x0, torch.from_numpy(batch.t - 1).to(device)
    ours = trainer._network
    trainer.net.drop_by.set(0, 0, len(x0), device)
    steps = iter(range(1, trainer.config.steps + 1))

    def forward(net: Any, model: torch.nn.Module) -> Any:
        model.eval()
        with torch.no_grad(), autocast(trainer):
            out = net(x0, t)
        model.train()
        return out

    def backward(net: Any, model: torch.nn.Module, read: Callable[[Any], torch.Tensor]) -> None:
        with autocast(trainer):
            out = read(net(x0, t))
        out.float().sum().backward()
        model.zero_grad(set_to_none=True)

    same = forward(ours, trainer.net).float(), forward(peer.network, peer.model).sample.float()
    if trainer.config.precision == "float32" and not torch.allclose(*same, rtol=1e-3, atol=1e-4):
        raise ValueError("network: the two networks' outputs differ")
    return {
        "forward": (lambda: forward(ours, trainer.net), lambda: forward(peer.network, peer.model)),
        "backward": (
            lambda: backward(ours, trainer.net, lambda out: out),
            lambda: backward(peer.network, peer.model, lambda out: out.sample),
        ),
        "step": (lambda: trainer.step(next(steps)), lambda: peer.step(x0)),
    }


def measure(trainer: Trainer, compiled: bool, rounds: int) -> list[dict[str, Any]]:
    """Alternating medians in seconds, and how many times as fast as theirs ours is."""
    rows = []
    for what, pair in tasks(trainer, compiled).items():
        kernels = {} if trainer.world.device.type == "cuda" else {"kernels": _kernels(pair[0], max(2, rounds // 3))}
        timed = {name: _until_done(task, trainer) for name, task in zip(("ours", "diffusers"), pair, strict=True)}
        seconds = _report.alternating(timed, rounds)
        ratio = seconds["diffusers"] / seconds["ours"]
        limit = {"limit": ratio / kernels["kernels"]} if kernels else {}
        rows.append({"what": what, **seconds, "ratio": ratio, **kernels, **limit})
    return rows


def _kernels(task: Callable[[], Any], calls: int) -> float:
    """The share of `KERNELS` in a task's time."""
    from torch.profiler import ProfilerActivity, profile

    for _ in range(2):
        task()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(calls):
            task()
    spent = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    shared = sum(time for key, time in spent.items() if any(name in key for name in KERNELS))
    return float(shared / sum(spent.values()))


def autocast(trainer: Trainer) -> AbstractContextManager[Any]:
    """The precision that the network runs in."""
    kind = trainer.world.device.type
    return torch.autocast(kind, torch.bfloat16, enabled=trainer.config.precision == "bf16")


def prepared(name: str, device: str | None, batch: int | None, precision: str, compiled: bool) -> Trainer:
    """A trainer for random images, with the network `name`."""
    size, usual, settings = lookup("network", name, NETWORKS)
    batch = usual if batch is None else as_positive_int("batch", batch)
    config = TrainConfig(batch_size=batch, steps=10**6, precision=precision, compile=compiled, device=device, **settings)
    pixels = np.random.default_rng(0).integers(0, 256, (4 * batch, 3, size, size), np.uint8)
    trainer = Trainer(config, Images(pixels), World(0, 1, _device(device)))
    for parameter in trainer.parameters:  # past the zeros that both start from, so that the outputs can be compared
        torch.nn.init.normal_(parameter, std=0.02)
    return trainer


def main(argv: Sequence[str]) -> None:
    """Measure, print the table, and write it where asked."""
    parser = _report.Parser(description=_report.about(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="small", help=f"{' or '.join(NETWORKS)} (default small)")
    parser.add_argument("--device", help="by default the CPU")
    parser.add_argument("--batch", type=int, metavar="B", help="by default 16 (small) or 128 (cifar10)")
    parser.add_argument("--precision", default="float32", metavar="P", help="float32 (default) or bf16, of both networks")
    parser.add_argument("--compile", action="store_true", help="compile both networks")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="(default 15)")
    parser.add_argument("--json", type=Path, metavar="F", help="write the rows there")
    parser.add_argument("--markdown", type=Path, metavar="F", help="write the table there")
    options = parser.parse_args(argv)
    rounds = as_positive_int("rounds", options.rounds)
    torch.set_num_threads(1)
    trainer = prepared(options.network, options.device, options.batch, options.precision, options.compile)
    rows = measure(trainer, options.compile, rounds)
    environment = _report.environment("torch", "diffusers")
    count = sum(p.numel() for p in trainer.parameters)
    setting = {
        "network": options.network, "parameters": count, "batch": trainer.config.batch_size,
        "device": str(trainer.world.device), "precision": options.precision, "compile": options.compile, "rounds": rounds,
    }  # fmt: skip
    if trainer.world.device.type == "cuda":
        environment["hardware"]["gpu"] = torch.cuda.get_device_name(trainer.world.device)
    columns = {"ours": 1e3, "diffusers": 1e3, "ratio": 1, "kernels": 100, "limit": 1}
    titles = {"ours": "ours, ms", "diffusers": "diffusers, ms", "ratio": "times as fast", "kernels": "kernels %"}
    known = [name for name in columns if name in rows[0]]
    text = _report.table(
        ("what", *(titles.get(name, name) for name in known)),
        [(row["what"], *(columns[name] * row[name] for name in known)) for row in rows],
    )
    said = f"{', '.join(f'{key} {value}' for key, value in setting.items())}\n\n{_report.described(environment)}"
    print(f"{said}\n\n{text}")
    _report.write_json(options.json, {**environment, **setting, "rows": rows})
    if options.markdown:
        _report.write_text(options.markdown, f"# Training speed\n\n{_report.about(__doc__)}\n\n{said}\n\n{text}\n")


def _until_done(task: Callable[[], Any], trainer: Trainer) -> Callable[[], None]:
    def run() -> None:
        task()
        if trainer.world.device.type == "cuda":
            torch.cuda.synchronize(trainer.world.device)

    return run


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or "cpu")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} can't be used: {str(error).splitlines()[0]}") from None
    return device


if __name__ == "__main__":
    raise SystemExit(_report.run(main))
