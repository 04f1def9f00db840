"""Where the time of a move goes on a CPU: what keeps it from the limits that the other tables state.

`python benchmarks/where_time_goes.py [--rounds N] [--json FILE] [--markdown FILE]`

"Passes" are the operations of which a move of DDIM consists, over arrays of (64, 3, 32, 32), in nanoseconds an element: NumPy's
in pieces as its moves take them, Torch's, which multiplies and adds in one; beside them the one pass that a kernel with all of
them inside would need, which is the limit in the table of moves. "After a network" are the calls of one move of 16 images of
8x8 beside the demo's network on Torch, in microseconds: repeated at once, and each the first time after a call of the network,
which has taken the caches. "The network" is the time of one call by kind of operation, ours, ours compiled (whose own kernels
are among "other"), and diffusers' with the same weights; profiled, so that the sum is more than a call costs. "Noise for the
bound" makes x_t of 16 images of 3x32x32 on NumPy: the noise alone, then as the bound does, which draws it and scales it, and by
adding it in place, scaled while it is drawn. One thread, medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import _report
import numpy as np
import sample_speed
from tinyddpm_backends._host_noise import Noise

from tinyddpm import backends, noise
from tinyddpm._arrays.check import as_positive_int
from tinyddpm._network.nets import check_output

Task = Callable[[], object]
PIECE = 65_536  # what the moves take
KINDS = {
    "convolution": ("conv",), "matrix product": ("mm", "linear"), "attention": ("attention", "softmax"),
    "GroupNorm and SiLU": ("norm", "silu"), "copies": ("copy", "clone", "contiguous", "cat"), "sums": ("add", "mul", "div"),
}  # fmt: skip


def passes(rounds: int) -> list[dict[str, Any]]:
    """Nanoseconds an element of each operation of a move, and how many a move of DDIM has."""
    import torch

    rng = np.random.default_rng(0)
    value, x, x0, work = rng.standard_normal((4, 64 * 3 * 32 * 32), dtype=np.float32)
    pieces = [slice(start, start + PIECE) for start in range(0, x.size, PIECE)]
    output, state, read = (torch.from_numpy(array.copy()) for array in (value, x, x0))

    def over(operation: Callable[[slice], object]) -> Task:
        return lambda: [operation(piece) for piece in pieces]

    tasks: dict[tuple[str, str], tuple[int, Task]] = {
        ("numpy", "multiply"): (3, over(lambda p: np.multiply(value[p], 0.5, out=x0[p]))),
        ("numpy", "add"): (2, over(lambda p: np.add(work[p], value[p], out=x0[p]))),
        ("numpy", "clip"): (1, over(lambda p: x0[p].clip(-1.0, 1.0, out=x0[p]))),
        ("numpy", "is it finite"): (1, over(lambda p: value[p].dot(value[p]))),
        ("torch", "multiply"): (1, lambda: torch.mul(state, 0.5, out=read)),
        ("torch", "multiply and add"): (2, lambda: read.add_(output, alpha=0.5)),
        ("torch", "clip"): (1, lambda: read.clamp_(-1.0, 1.0)),
        ("torch", "is it finite"): (1, lambda: output.sum().item()),
        ("either", "one pass of a fused kernel"): (0, lambda: np.add(x, value, out=x)),
    }
    seconds = _report.alternating({" ".join(name): task for name, (_, task) in tasks.items()}, rounds)
    return [
        {"library": name[0], "pass": name[1], "ns": 1e9 * seconds[" ".join(name)] / x.size, "in_ddim": count}
        for name, (count, _) in tasks.items()
    ]


def after_network(net: Any, rounds: int) -> list[dict[str, Any]]:
    """Microseconds of each call of a move, repeated and after the network."""
    import torch

    x, t = torch.randn(16, 1, 8, 8), torch.full((16,), 5)
    out, half = net(x, t), torch.tensor(0.5)
    state, x0, z = (torch.zeros_like(x) for _ in range(3))
    parts: dict[str, Task] = {
        "the output's shape, dtype, device": lambda: check_output(out, x, 5, torch, False),
        "is it finite": lambda: out.sum().item(),
        "multiply": lambda: torch.mul(state, half, out=x0),
        "multiply and add": lambda: x0.add_(out, alpha=0.5),
        "clip": lambda: x0.clamp_(-0.5, 0.5),
        "multiply and add into the state": lambda: torch.add(x0, state, alpha=0.5, out=state),
        "add noise drawn before": lambda: state.add_(z),
    }
    cold: dict[str, list[float]] = {name: [] for name in parts}
    warm = {name: _median_of(part, 20 * rounds) for name, part in parts.items()}
    with torch.no_grad():
        for _ in range(10 * rounds):
            net(x, t)
            for name, part in parts.items():
                start = time.perf_counter()
                part()
                cold[name].append(time.perf_counter() - start)
        whole = _median_of(lambda: net(x, t), 10 * rounds)
    rows = [{"call": n, "repeated_us": 1e6 * warm[n], "after_us": 1e6 * statistics.median(cold[n])} for n in parts]
    total = {"call": "all", **{key: sum(row[key] for row in rows) for key in ("repeated_us", "after_us")}}
    return [*rows, total, {"call": "the network", "repeated_us": 1e6 * whole, "after_us": 1e6 * whole}]


def _median_of(task: Task, times: int) -> float:
    return _report.alternating({"": task}, times)[""]


def network(model: sample_speed.Model, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of a call by kind of operation."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    x, t = torch.randn(16, 1, 8, 8).contiguous(memory_format=torch.channels_last), torch.full((16,), 5)
    net: Any = model[1].net
    ours = torch.compile(net, dynamic=False)
    columns: dict[str, dict[str, float]] = {}
    with torch.no_grad():
        for name, called in {"ours": net, "compiled": ours, "diffusers": theirs(model)}.items():
            for _ in range(3):
                called(x, t)
            with profile(activities=[ProfilerActivity.CPU]) as found:
                for _ in range(10 * rounds):
                    called(x, t)
            columns[name] = _by_kind(found.key_averages(), 10 * rounds)
            columns[name]["a call, not profiled"] = 1e3 * _median_of(lambda f=called: f(x, t), 10 * rounds)  # type: ignore[misc]
    kinds = [*KINDS, "other", "a call, not profiled"]
    return [{"kind": kind, **{name: column.get(kind, 0.0) for name, column in columns.items()}} for kind in kinds]


def theirs(model: sample_speed.Model) -> Callable[[Any, Any], Any]:
    """diffusers' network with the same weights."""
    import torch

    made = sample_speed.loaded(model, "ddpm").unet.to(memory_format=torch.channels_last)
    return lambda x, t: made(x, t).sample


def _by_kind(events: Iterable[Any], calls: int) -> dict[str, float]:
    """Milliseconds a call of each kind, by the names of the operations that spend them."""
    found: dict[str, float] = {}
    for event in events:
        kind = next((k for k, names in KINDS.items() if any(name in event.key for name in names)), "other")
        found[kind] = found.get(kind, 0.0) + event.self_cpu_time_total / 1e3 / calls
    return found


def noise_for_the_bound(rounds: int) -> list[dict[str, Any]]:
    """Microseconds of the noise alone and of x_t, made in two ways."""
    x0 = np.random.default_rng(0).standard_normal((16, 3, 32, 32), dtype=np.float32)
    index, n = noise.as_words(range(len(x0))), x0[0].size
    draw, adder = noise.like(x0, 0, None, stream=1), Noise(0, 1, index, n, "float32")

    def scaled() -> None:
        x_t = draw(1)
        x_t *= 0.6
        x_t += 0.8 * x0

    def added() -> None:
        x_t = np.float32(0.8) * x0
        adder.add(1, 0.6, x_t.reshape(len(x0), n))

    tasks: dict[str, Task] = {"the noise": lambda: draw(1), "x_t, noise scaled": scaled, "x_t, noise added in place": added}
    return [{"call": name, "us": 1e6 * time} for name, time in _report.alternating(tasks, 20 * rounds).items()]


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = _report.Parser(description=_report.about(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=15, metavar="N", help="how often each is timed, and some of it ten times so"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows and the environment there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    options = parser.parse_args(argv)
    as_positive_int("--rounds", options.rounds)
    return options


def main(argv: Sequence[str]) -> None:
    import torch

    options = parsed(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = sample_speed.unet(backends.get("torch"), "cpu", "float32")
    found = {
        "passes": passes(options.rounds),
        "after_network": after_network(model[1].net, options.rounds),
        "network": network(model, options.rounds),
        "noise_for_the_bound": noise_for_the_bound(options.rounds),
    }
    titles = {
        "passes": ("library", "pass", "ns/element", "in a DDIM move"),
        "after_network": ("call", "repeated us", "after the network us"),
        "network": ("ms a call", "ours", "ours compiled", "diffusers"),
        "noise_for_the_bound": ("call", "us"),
    }
    tables = {name: _report.table(titles[name], [tuple(row.values()) for row in rows]) for name, rows in found.items()}
    text = "\n\n".join(f"## {name.replace('_', ' ').capitalize()}\n\n{body}" for name, body in tables.items())
    print(text)
    environment = _report.environment("torch", "diffusers")
    _report.write_json(options.json, {**found, **environment})
    page = f"# {_report.about(__doc__)}\n\n{text}\n\n{_report.described(environment)}\n"
    _report.write_text(options.markdown, page)


if __name__ == "__main__":
    raise SystemExit(_report.run(main))
