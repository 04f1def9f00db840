"""How fast the bound on the likelihood is evaluated, beside the loop of the published code.

`python benchmarks/likelihood_speed.py [--backend {numpy,torch}] [--device D] [--batch B] [--steps T] [--rounds N] [--json F]
[--markdown F]`

Both take a batch of images through every step of Ho et al.'s chain, around a network that costs nothing. "published" does at
each step what the published evaluation does, in float32: coefficients gathered into arrays of the batch's shape, x_t, the
clipped x_0, the means of p and q, the KL, the tanh decoder (needed at t = 1 only) and the errors of x_0 and eps. It draws its
noise with the library's own generator. One thread; medians of runs that alternate. "noise" is what our reproducible noise takes
of our time, "limit" the ratio if nothing but the noise took time.
"""

from __future__ import annotations

import argparse
import math
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _report
import numpy as np

from tinyddpm import Denoiser, Diffusion, backends, likelihood, noise, schedules
from tinyddpm._arrays.check import as_positive_int

Array = Any
SHAPE = (3, 32, 32)
BACKENDS = ("numpy", "torch")


class Published:
    """The terms of the bound as the published code evaluates them; steps are the paper's."""

    def __init__(self, d: Diffusion, xp: Any) -> None:
        self.T, self.xp = d.T, xp
        beta = d.beta[1:]
        alpha_bar = np.cumprod(1 - beta)
        before = np.append(1.0, alpha_bar[:-1])
        beta_tilde = beta * (1 - before) / (1 - alpha_bar)
        first = beta_tilde[1]
        self.tables = {
            "signal": np.sqrt(alpha_bar),
            "spread": np.sqrt(1 - alpha_bar),
            "x0_from_x_t": np.sqrt(1 / alpha_bar),
            "x0_from_eps": np.sqrt(1 / alpha_bar - 1),
            "mean_from_x0": beta * np.sqrt(before) / (1 - alpha_bar),
            "mean_from_x_t": (1 - before) * np.sqrt(1 - beta) / (1 - alpha_bar),
            "log_beta_tilde": np.log(np.append(first, beta_tilde[1:])),
            "log_var": np.log(np.append(first, beta[1:])),
        }

    def __call__(self, net: Any, x0: Array, draw: Callable[[int], Array]) -> tuple[Array, Array, Array]:
        """The terms for t = T..1, in nats per dimension, and the mean squared errors of x_0 and eps, each (B, T)."""
        columns = [self.step(net, x0, t, draw(t)) for t in range(self.T, 0, -1)]
        terms, x0_mse, eps_mse = (self.xp.stack(column, 1) for column in zip(*columns, strict=True))
        return terms, x0_mse, eps_mse

    def step(self, net: Any, x0: Array, step: int, eps: Array) -> tuple[Array, Array, Array]:
        xp = self.xp
        t = xp.full((len(x0),), step) if isinstance(x0, np.ndarray) else xp.full((len(x0),), step, device=x0.device)
        c = {name: self.gathered(table, t, x0) for name, table in self.tables.items()}
        x_t = c["signal"] * x0 + c["spread"] * eps
        out = net(x_t, t)
        predicted = (c["x0_from_x_t"] * x_t - c["x0_from_eps"] * out).clip(-1, 1)
        mean = c["mean_from_x0"] * predicted + c["mean_from_x_t"] * x_t
        true_mean = c["mean_from_x0"] * x0 + c["mean_from_x_t"] * x_t
        gap, ratio = true_mean - mean, c["log_beta_tilde"] - c["log_var"]
        kl = 0.5 * (-1.0 - ratio + xp.exp(ratio) + gap**2 * xp.exp(-c["log_var"]))
        term = xp.where(t == 1, self.decoder(x0 - mean, x0, c["log_var"] / 2), _mean(kl))
        read = (c["x0_from_x_t"] * x_t - predicted) / c["x0_from_eps"]
        return term, _mean((predicted - x0) ** 2), _mean((read - eps) ** 2)

    def decoder(self, centred: Array, x0: Array, log_std: Array) -> Array:
        xp, inverse = self.xp, self.xp.exp(-log_std)
        upper, lower = (self.cdf(inverse * (centred + side / 255)) for side in (1, -1))
        log = lambda mass: xp.log(mass.clip(1e-12))  # noqa: E731
        inside = xp.where(x0 > 0.999, log(1 - lower), log(upper - lower))
        return -_mean(xp.where(x0 < -0.999, log(upper), inside))

    def cdf(self, z: Array) -> Array:
        return 0.5 * (1 + self.xp.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * (z * z * z))))

    def gathered(self, table: Any, t: Array, x0: Array) -> Array:
        """The table's entries at t in float32, as an array of x0's shape."""
        if isinstance(x0, np.ndarray):
            return np.broadcast_to(table[t - 1].astype(np.float32).reshape(-1, 1, 1, 1), x0.shape)
        return self.xp.from_numpy(table).to(x0.device)[t - 1].float()[:, None, None, None].expand(x0.shape)


def _mean(x: Array) -> Array:
    return x.mean((1, 2, 3))


def measure(backend: str, batch: int, steps: int, rounds: int, device: str = "cpu") -> dict[str, Any]:
    """Seconds of both, the ratio, and what they find."""
    d, own = Diffusion(schedules.linear(steps)), backends.get(backend)
    xp = own.namespace() if backend == "numpy" else __import__(backend)
    data = (np.random.default_rng(0).integers(0, 256, (batch, *SHAPE)) / 127.5 - 1).astype(np.float32)
    x0, net, published = own.from_numpy(data, device=device), lambda x_t, t: xp.zeros_like(x_t), Published(d, xp)
    random = np.random.Generator(np.random.Philox(0))
    drawn = {"numpy": lambda t: random.standard_normal(data.shape, dtype=np.float32), "torch": lambda t: xp.randn_like(x0)}[
        backend
    ]
    found: dict[str, Any] = {}
    tasks = {
        "ours": lambda: found.update(ours=likelihood.vlb(d, Denoiser(net), x0)),  # ends in a check of the values: it waits
        "published": lambda: found.update(published=own.to_numpy(published(net, x0, drawn)[0])),
        "noise": lambda: own.to_numpy(deque(map(noise.like(x0, 0, None, stream=1), range(1, steps + 1)), maxlen=1)[0][:1]),
    }
    with backends.no_grad(x0):
        seconds = _report.alternating(tasks, rounds)
    ours, theirs = found["ours"], found["published"].sum(1)
    bits = (theirs + ours.prior / ours.dims) / math.log(2)
    return {
        "backend": backend,
        "device": device,
        "batch": batch,
        "steps": steps,
        **{f"{name}_seconds": value for name, value in seconds.items()},
        "ratio": seconds["published"] / seconds["ours"],
        "noise_share": seconds["noise"] / seconds["ours"],
        "limit": seconds["published"] / seconds["noise"],
        "bits_per_dim": float(ours.bits_per_dim.mean()),
        "published_bits_per_dim": float(bits.mean()),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    header = ("backend", "batch", "steps", "published s", "ours s", "ratio", "noise %", "limit",
              "bits/dim, published", "bits/dim, ours")  # fmt: skip
    return _report.table(header, [
        (r["backend"], r["batch"], r["steps"], r["published_seconds"], r["ours_seconds"], r["ratio"], 100 * r["noise_share"],
         r["limit"], r["published_bits_per_dim"], r["bits_per_dim"]) for r in rows])  # fmt: skip


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = _report.Parser(description=_report.about(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", nargs="+", default=list(BACKENDS), choices=BACKENDS, help="default: both")
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--batch", type=int, default=16, help="images (default: 16)")
    parser.add_argument("--steps", type=int, default=1000, help="T (default: 1000)")
    parser.add_argument("--rounds", type=int, default=7, help="how often each is timed (default: 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows and the environment there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    options = parser.parse_args(argv)
    for name in ("batch", "steps", "rounds"):
        as_positive_int(f"--{name}", getattr(options, name))
    if options.steps < 2:
        raise ValueError(f"--steps: {options.steps} is below 2")
    return options


def main(argv: Sequence[str]) -> None:
    options = parsed(argv)
    if "torch" in options.backend:
        backends.get("torch").version()  # says what is missing
        import torch

        torch.set_num_threads(1)
    rows = [measure(name, options.batch, options.steps, options.rounds, options.device) for name in options.backend]
    environment = _report.environment("torch")
    print(table(rows))
    _report.write_json(options.json, {"rows": rows, **environment})
    _report.write_text(options.markdown, f"# {_report.about(__doc__)}\n\n{table(rows)}\n\n{_report.described(environment)}\n")


if __name__ == "__main__":
    raise SystemExit(_report.run(main))
