"""How far each sampler lands from the exact solution, against network calls, beside diffusers' schedulers.

`python benchmarks/sampler_error.py [--json FILE] [--markdown FILE] [--plot FILE.png]`

The data are a mixture of Gaussians, so the network is exact and every sampler with eta = 0 approximates one ordinary
differential equation, the probability flow from x_T to x_0. SciPy solves that to 1e-10; a sampler's error is its root mean
square distance from there over the same starts, in units of the data.

Three comparisons at equal network calls. "same grid" gives both libraries one plan, diffusers' "trailing" spacing: one method in
two libraries, equal to its float32 tables. "default" is ours with one choice for every number of calls, the sampler's default
spacing ("quadratic", and "log_snr" for dpm++3m, which is better there from 10 to 30 calls), beside what diffusers does when only
the number of steps is given. "best" is the same choice of ours beside the best of all the spacings that diffusers offers for the
sampler, chosen anew for each number of calls with the truth at hand. The JSON file has every spacing of both libraries.

- The last move, into t = 0, is first order in every sampler, so that even one that is exact down to t = 1 has an error: the
  floor. Where both errors are within 1.5 of it, which is less is chance, and no ratio is given.
- diffusers' DDIM moves from t to t - 1000 // steps whatever its plan, so where steps does not divide 1000 it is not on the plan
  that it names. The numbers of calls here divide it.
- With spacing="even" ours ends at T / steps where diffusers' defaults end at t = 1: it is up to 7 % worse than
  they are with DDIM, and 2 to 7 times with Heun's method from 39 calls on. The quadratic plan ends small too.
- diffusers makes the last step but one of dpm++3m of order 2 below 15 steps; that is switched off here.

Samplers with noise have no such solution. With Gaussian data of a standard deviation of 0.2 they are linear, so their samples'
mean and standard deviation follow from their response to each number that is drawn. "noise" lists the distance of these two from
the data's for each spacing (the 2-Wasserstein distance of the distributions).
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _report
import numpy as np
from numpy.typing import NDArray

from tinyddpm import Denoiser, Diffusion, plots
from tinyddpm.analytic import GaussianData, MixtureData
from tinyddpm.samplers import BEST_SPACING

Array = NDArray[np.float64]

DATA = MixtureData([0.5, 0.3, 0.2], [[-0.6, 0.2], [0.5, 0.5], [0.1, -0.7]], [[0.02, 0.05], [0.04, 0.02], [0.03, 0.03]])
D = Diffusion()
CALLS = (5, 10, 20, 40, 100, 200)
OURS = ("even", "quadratic", "log_snr")

_MULTISTEP: dict[str, Any] = {"solver_order": 2, "final_sigmas_type": "zero"}
_DPM: dict[str, Any] = {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", **_MULTISTEP}
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": True}),
    "dpm++2m": ("DPMSolverMultistepScheduler", _DPM),
    "dpm++3m": ("DPMSolverMultistepScheduler", {**_DPM, "solver_order": 3, "lower_order_final": False}),
    "unipc": ("UniPCMultistepScheduler", {"solver_type": "bh2", "predict_x0": True, **_MULTISTEP}),
    "heun": ("HeunDiscreteScheduler", {}),
}
"""The same methods there."""
_KARRAS = {"karras": {"use_karras_sigmas": True}}
_SPACINGS = {name: {"timestep_spacing": name} for name in ("leading", "linspace", "trailing")}
SPACINGS: dict[str, dict[str, dict[str, Any]]] = {
    "ddim": _SPACINGS,
    "dpm++2m": {**_SPACINGS, **_KARRAS, "lu_lambdas": {"use_lu_lambdas": True}},
    "dpm++3m": {**_SPACINGS, **_KARRAS, "lu_lambdas": {"use_lu_lambdas": True}},
    "unipc": {**_SPACINGS, **_KARRAS},
    "heun": {**_SPACINGS, **_KARRAS},
}
"""Each one's ways to place the steps."""


@dataclass(frozen=True)
class Row:
    """One sampler's error at a number of network calls."""

    sampler: str
    library: str
    spacing: str
    calls: int
    error: float


def score(x: Array, log_sigma: float | Array) -> Array:
    """E[eps | x_t] in closed form, for x = x_t / sqrt(alpha_bar) and any sigma = sqrt((1 - alpha_bar) / alpha_bar)."""
    sigma2 = np.exp(2 * np.asarray(log_sigma))
    apart, var = x - DATA.means[:, None], DATA.vars[:, None] + sigma2
    log = np.log(DATA.weights)[:, None] - np.sum(apart**2 / var + np.log(var), axis=-1) / 2
    share = np.exp(log - log.max(0))
    return np.sqrt(sigma2) * np.sum((share / share.sum(0))[..., None] * apart / var, axis=0)


def solution(x_T: Array, end: float = math.log(1e-7)) -> Array:
    """x_t / sqrt(alpha_bar) at log sigma = `end` of the flow dx/dsigma = eps from x_T at t = T; by default x_0."""
    from scipy.integrate import solve_ivp

    start = -D.log_snr[D.T] / 2

    def slope(log_sigma: float, x: Array) -> Array:
        return (math.exp(log_sigma) * score(x.reshape(x_T.shape), log_sigma)).ravel()

    flow = solve_ivp(slope, (start, end), (x_T / D.sqrt_alpha_bar[D.T]).ravel(), "DOP853", rtol=1e-10, atol=1e-12)
    return flow.y[:, -1].reshape(x_T.shape)  # type: ignore[no-any-return]


def rms(x: Array, y: Array) -> float:
    """The root mean square distance."""
    return float(np.sqrt(np.mean((x - y) ** 2)))


def last_move(x_T: Array) -> float:
    """The floor: the error of the exact state at t = 1 after the last move."""
    x_1 = D.sqrt_alpha_bar[1] * solution(x_T, -D.log_snr[1] / 2)
    return rms(Denoiser(DATA.net(D), clip_x0=False).x0(D, x_1, 1), solution(x_T))


def ours(sampler: str, plan: Sequence[int], x_T: Array) -> Array:
    """Our sample."""
    denoiser = Denoiser(DATA.net(D), clip_x0=False)
    return D.sample(denoiser, x_T.shape, sampler=sampler, timesteps=plan, x_T=x_T)  # type: ignore[no-any-return]


def theirs(sampler: str, steps: int, x_T: Array, **options: Any) -> tuple[list[int], Array]:
    """diffusers' loop: the steps at which it calls the network, in the paper's count, and its sample.

    The network is exact at whatever level they ask for: between whole steps log sigma is interpolated, as they do.
    """
    import diffusers
    import torch

    name, config = PEERS[sampler]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = getattr(diffusers, name)(num_train_timesteps=D.T, beta_start=1e-4, beta_end=0.02,
                                             beta_schedule="linear", **config, **options)  # fmt: skip
        scheduler.set_timesteps(steps)
        # Where its state is x_t / sqrt(alpha_bar) its start is scaled to that.
        x = torch.from_numpy(x_T) * (_widest(scheduler) if sampler == "heun" else 1.0)
        plan = []
        for t in scheduler.timesteps:
            level = np.interp(float(t) + 1, np.arange(1, D.T + 1), -D.log_snr[1:] / 2)
            root = 1 / math.sqrt(1 + math.exp(2 * level))
            plan.append(round(float(t)) + 1)
            seen = scheduler.scale_model_input(x, t)
            x = scheduler.step(torch.from_numpy(score(seen.numpy() / root, level)), t, x).prev_sample
    return plan, x.numpy()


def _widest(scheduler: Any) -> float:
    return math.sqrt(float(scheduler.sigmas[0]) ** 2 + 1)


def trailing(steps: int) -> tuple[int, ...]:
    """diffusers' plan of that name, with the end."""
    return (*(round(D.T - k * D.T / steps) for k in range(steps)), 0)


def moves(sampler: str, calls: int) -> int:
    """How many moves at most `calls` network calls allow."""
    return (calls + 1) // 2 if sampler == "heun" else calls


def errors(x_T: Array, counts: Sequence[int], peer: bool) -> Iterator[Row]:
    """Every sampler, spacing and number of calls."""
    truth = solution(x_T)
    for sampler in PEERS:
        for calls in counts:
            steps = moves(sampler, calls)
            made = 2 * steps - 1 if sampler == "heun" else steps
            yield Row(sampler, "tinyddpm", "trailing", made, rms(ours(sampler, trailing(steps), x_T), truth))
            for spacing in OURS:
                yield Row(sampler, "tinyddpm", spacing, made, rms(ours(sampler, D.timesteps(steps, spacing), x_T), truth))
            for spacing, options in SPACINGS[sampler].items() if peer else ():
                plan, x = theirs(sampler, steps, x_T, **options)
                yield Row(sampler, "diffusers", spacing, len(plan), rms(x, truth))


DEFAULTS = {"ddim": "leading", "dpm++2m": "linspace", "dpm++3m": "linspace", "unipc": "linspace", "heun": "linspace"}
"""What diffusers' schedulers do when only the number of steps is given."""


def comparisons() -> dict[str, Callable[[Row], bool]]:
    """The three ways to compare: which rows take part; of those the least error counts."""
    return {
        "same grid": lambda row: row.spacing == "trailing",
        "default": lambda row: row.spacing == (BEST_SPACING if row.library == "tinyddpm" else DEFAULTS)[row.sampler],
        "best": lambda row: row.library == "diffusers" or row.spacing == BEST_SPACING[row.sampler],
    }


def compared(rows: Sequence[Row], floor: float) -> list[dict[str, Any]]:
    """Ours over theirs, for each comparison, sampler and number of calls; no ratio where both are at the floor."""
    groups = dict.fromkeys((row.sampler, row.calls) for row in rows)
    result = []
    for comparison, wanted in comparisons().items():
        for sampler, calls in groups:
            least: dict[str, Row] = {}
            for row in rows:
                if (row.sampler, row.calls) == (sampler, calls) and wanted(row):
                    least[row.library] = min(row, least.get(row.library, row), key=lambda r: r.error)
            entry: dict[str, Any] = {"comparison": comparison, "sampler": sampler, "calls": calls}
            for library, row in least.items():
                entry |= {library: row.error, f"{library}_spacing": row.spacing}
            if len(least) == 2 and max(row.error for row in least.values()) > 1.5 * floor:
                entry["ratio"] = entry["tinyddpm"] / entry["diffusers"]
            result.append(entry)
    return result


def law(sampler: str, plan: Sequence[int], **options: Any) -> tuple[float, float]:
    """Mean and standard deviation of the samples of Gaussian data, from the response to x_T and to each noise by itself."""
    data, n = GaussianData([0.5], [0.04]), len(plan) + 1
    x_T = np.eye(n, 1, k=-1)  # sample 0 has only zeros, sample 1 a one in x_T, sample k + 2 a one in the noise of step k

    def noise(t: int, index: Any, shape: Any) -> Array:
        return np.eye(n, 1, k=-2 - plan.index(t))

    denoiser = Denoiser(data.net(D), variance="beta_tilde", clip_x0=False)
    x = D.sample(denoiser, (n, 1), sampler=sampler, timesteps=plan, x_T=x_T, noise=noise, **options)[:, 0]
    return float(x[0]), float(np.linalg.norm(x[1:] - x[0]))


def laws(counts: Sequence[int]) -> list[dict[str, Any]]:
    """The distance of each random sampler's distribution from the data's."""
    result = []
    for sampler, spacing, calls in itertools.product(("ddpm", "dpm++2m-sde"), OURS, counts):
        mean, std = law(sampler, D.timesteps(calls, spacing))
        result.append({"sampler": sampler, "spacing": spacing, "calls": calls, "error": math.hypot(mean - 0.5, std - 0.2)})
    return result


def law_report(entries: Sequence[dict[str, Any]]) -> str:
    """`laws` as Markdown, a column for each number of calls."""
    counts = list(dict.fromkeys(e["calls"] for e in entries))
    found = {(e["sampler"], e["spacing"], e["calls"]): e["error"] for e in entries}
    names = dict.fromkeys((sampler, spacing) for sampler, spacing, _ in found)
    lines = [[*name, *(found[*name, calls] for calls in counts)] for name in names]
    return f"### noise\n\n{_report.table(['sampler', 'spacing', *map(str, counts)], lines)}"


def report(entries: Sequence[dict[str, Any]]) -> str:
    """The comparisons as Markdown."""
    parts = []
    for comparison in dict.fromkeys(e["comparison"] for e in entries):
        lines = [
            [e["sampler"], e["calls"], e["tinyddpm"], e["tinyddpm_spacing"], e.get("diffusers", math.nan),
             e.get("diffusers_spacing", "-"), f"{e['ratio']:.3f}" if "ratio" in e else "-"]
            for e in entries if e["comparison"] == comparison
        ]  # fmt: skip
        header = ["sampler", "calls", "tinyddpm", "spacing", "diffusers", "its spacing", "ratio"]
        parts.append(f"### {comparison}\n\n{_report.table(header, lines)}\n\n{verdict(entries, comparison)}")
    return "\n\n".join(parts)


def verdict(entries: Sequence[dict[str, Any]], comparison: str) -> str:
    """The range of the ratios, and where ours is worse."""
    of = [e for e in entries if e["comparison"] == comparison and "ratio" in e]
    if not of:
        return "Nothing to compare."
    low, high = (end(e["ratio"] for e in of) for end in (min, max))
    worse = [f"{e['sampler']} at {e['calls']}" for e in of if e["ratio"] > 1.001]
    return f"Ratios from {low:.3f} to {high:.3f}; ours is worse {'at ' + ', '.join(worse) if worse else 'nowhere'}."


def figure(entries: Sequence[dict[str, Any]], floor: float) -> Any:
    """Error against calls: a panel for each comparison, colour and marker for the sampler, dashes and hollow for diffusers."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    kinds = list(dict.fromkeys(e["comparison"] for e in entries))
    styles = {s: {"color": c, "marker": m} for s, c, m in zip(PEERS, _report.COLOURS, "os^Dv", strict=False)}
    libraries: dict[str, dict[str, Any]] = {"tinyddpm": {"linestyle": "-"}, "diffusers": {"linestyle": "--", "mfc": "white"}}
    titles = {
        "same grid": "one grid for both",
        "default": "our default; diffusers' default",
        "best": "our default; diffusers' best",
    }
    drawn = Figure(figsize=(4 * len(kinds), 3.9), layout="constrained")
    axes = drawn.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for ax, kind in zip(axes, kinds, strict=True):
        for sampler, style in styles.items():
            of = [e for e in entries if e["comparison"] == kind and e["sampler"] == sampler]
            for library, dash in libraries.items():
                points = [(e["calls"], e[library]) for e in of if library in e]
                if points:
                    ax.loglog(*zip(*points, strict=True), **style, **dash, markersize=5, linewidth=1.3)
        ax.axhline(floor, color="#777777", linestyle=":", linewidth=1)
        ax.set(title=titles[kind], xlabel="network calls")
        calls = sorted({e["calls"] for e in entries if e["sampler"] != "heun"})
        ax.set_xticks(calls, [str(n) for n in calls], minor=False)
        ax.minorticks_off()
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("RMS error of $x_0$")
    axes[0].text(axes[0].get_xlim()[0] * 1.1, floor * 1.08, "the last move's own error", color="#555555", fontsize=8)
    keys = [Line2D([], [], label=sampler, linestyle="", **style) for sampler, style in styles.items()]
    keys += [Line2D([], [], label=name, color="black", marker="o", markersize=5, **dash) for name, dash in libraries.items()]
    axes[0].legend(handles=keys, frameon=False, fontsize=8, loc="upper right")
    return drawn


def main(argv: Sequence[str]) -> None:
    """Measure, print, write."""
    parser = _report.Parser(description=_report.about(__doc__).splitlines()[0])
    parser.add_argument("--calls", type=int, nargs="+", default=CALLS, metavar="N", help="network calls (default: 5..200)")
    parser.add_argument("--samples", type=int, default=256, metavar="N", help="starts (default: 256)")
    parser.add_argument("--no-peer", action="store_true", help="leave out diffusers")
    for name in ("json", "markdown", "plot"):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    if options.samples < 1 or min(options.calls) < 1 or max(options.calls) > D.T:
        raise ValueError(f"--samples and --calls: at least 1 is needed, and at most {D.T} calls")
    x_T = np.random.default_rng(0).standard_normal((options.samples, 2))
    rows = list(errors(x_T, options.calls, not options.no_peer))
    floor = last_move(x_T)
    entries = compared(rows, floor)
    about = _report.environment("scipy", "torch", "diffusers")
    random = laws(options.calls)
    text = (
        f"{report(entries)}\n\n{law_report(random)}\n\nFloor {floor:.2g}; {options.samples} starts. {_report.described(about)}.\n"
    )
    print(text)
    _report.write_text(options.markdown, f"# {_report.about(__doc__)}\n\n{text}")
    result = {
        "samples": options.samples,
        "floor": floor,
        "comparisons": entries,
        "noise": random,
        "rows": [vars(row) for row in rows],
    }
    _report.write_json(options.json, {**about, **result})
    if options.plot:
        plots.save(figure(entries, floor), options.plot)


if __name__ == "__main__":
    raise SystemExit(_report.run(main))
