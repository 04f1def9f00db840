"""How far tables and the decoder are from 60-digit arithmetic, beside diffusers and the published float64 recipe.

`python benchmarks/accuracy.py [--json FILE] [--markdown FILE] [--no-peer] [--points N]`

Tables count in units in the last place of float64, the worst over t. Each library's betas are held against the schedule's
formula, and its tables against the exact ones of its own betas, so that an error is charged once.

- "float64 recipe" is what the published code of the papers does: `np.cumprod` of 1 - beta, and every table from that and from
  1 minus that; cosine's betas as 1 - f(t) / f(t-1).
- diffusers keeps its tables in float32, of which one unit is 5.4e8 of float64's. Its log-SNR is that of its DPM solvers. Its
  posterior variance has a floor of 1e-20, so at t = 1, where the exact one is 0, it is not compared.
- "inf" stands where alpha_bar falls below the smallest number: its logarithm, or a weight divided by it, is lost.

The decoder counts in nats: the worst |log p - exact|, and the worst of that over max(1, |log p|), on 8-bit levels for means at
a distance from the level, in standard deviations. "ho2020" is the published tanh with its floor of 1e-12.

Random points of the decoder, 20 000 for each dtype: 2 to 65 536 levels, std 1e-8..1e8, means up to 1e15 std away, next to edges
too. A unit is the exact value times the spacing of the dtype's numbers at 1; an error below 1e-20 counts as 0. "Not finite" are
the values that are infinite or NaN where the exact one is in the dtype's range. Where a derivative crosses zero, its relative
error grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import _points
import _report
import numpy as np
from numpy.typing import NDArray

from tinyddpm import Diffusion, gaussian, schedules

Table = NDArray[np.float64]

SCHEDULES = (("linear", 1000), ("cosine", 1000), ("linear", 100_000))
STD = (1e-8, 1e-5, 1e-3, 0.01, 0.1, 1.0, 100.0, 1e8)
DISTANCES = (0, 1, 3, 4, 5, 7, 10, 40, 1000)


class Tables(NamedTuple):
    """What is compared, for t = 1..T."""

    beta: Table
    alpha_bar: Table
    one_minus_alpha_bar: Table
    sqrt_alpha_bar: Table
    sqrt_one_minus_alpha_bar: Table
    beta_tilde: Table
    w_x0: Table
    w_xt: Table
    log_snr: Table


def ours(name: str, T: int) -> Tables:
    """tinyddpm's."""
    d = Diffusion(schedules.NAMES[name](T))
    tables = (getattr(d, field) for field in Tables._fields[:5])
    return Tables(*(table[1:] for table in (*tables, d.beta_tilde, d.weights.w_x0, d.weights.w_xt, d.log_snr)))


def recipe(name: str, T: int) -> Tables:
    """The published float64 arithmetic."""
    beta = np.linspace(1e-4, 0.02, T) if name == "linear" else published_cosine(T)
    return from_product(beta, np.cumprod(1 - beta), np)


def published_cosine(T: int) -> Table:
    """1 - f(t) / f(t - 1), as printed."""
    f = [math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(T + 1)]
    return np.array([min(1 - b / a, 0.999) for a, b in pairwise(f)])


def diffusers(name: str, T: int) -> Tables:
    """The tables of its scheduler, in float32."""
    import torch
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(T, beta_schedule={"linear": "linear", "cosine": "squaredcos_cap_v2"}[name])
    return from_product(scheduler.betas, scheduler.alphas_cumprod, torch)


def from_product(beta: Any, alpha_bar: Any, lib: Any) -> Tables:
    """Every table by the printed formulas from alpha_bar, in the arithmetic of `lib`."""
    before = lib.ones_like(alpha_bar)
    before[1:] = alpha_bar[:-1]
    left, left_before = 1 - alpha_bar, 1 - before
    with np.errstate(divide="ignore", invalid="ignore"):
        log_snr = lib.log(alpha_bar) - lib.log(left)
    own = (
        beta,
        alpha_bar,
        left,
        lib.sqrt(alpha_bar),
        lib.sqrt(left),
        left_before / left * beta,
        lib.sqrt(before) * beta / left,
        lib.sqrt(1 - beta) * left_before / left,
        log_snr,
    )
    return Tables(*(np.asarray(table, dtype=np.float64) for table in own))


LIBRARIES: dict[str, Callable[[str, int], Tables]] = {"tinyddpm": ours, "float64 recipe": recipe, "diffusers": diffusers}


# The truth.


def precise() -> Any:
    """mpmath's context with 60 digits."""
    import mpmath

    mp = mpmath.mp.clone()
    mp.dps = 60
    return mp


def exact_betas(name: str, T: int, mp: Any) -> Iterator[Any]:
    """The schedule's formula for its float64 arguments."""
    if name == "linear":
        first, last = mp.mpf(1e-4), mp.mpf(0.02)
        return (first + (last - first) * t / (T - 1) for t in range(T))
    s, cap = mp.mpf(0.008), mp.mpf(0.999)
    f = [mp.cos((mp.mpf(t) / T + s) / (1 + s) * mp.pi / 2) ** 2 for t in range(T + 1)]
    return (min(1 - b / a, cap) for a, b in pairwise(f))


def exact_tables(beta: Table, mp: Any) -> Iterator[Sequence[Any]]:
    """Each table of these betas but the first, in the order of `Tables`."""
    exact = [mp.mpf(b) for b in beta.tolist()]
    ab = list(accumulate((1 - b for b in exact), lambda x, y: x * y))
    before = [mp.mpf(1), *ab[:-1]]
    yield ab
    yield [1 - a for a in ab]
    yield [mp.sqrt(a) for a in ab]
    yield [mp.sqrt(1 - a) for a in ab]
    yield [(1 - p) / (1 - a) * b for a, p, b in zip(ab, before, exact, strict=True)]
    yield [mp.sqrt(p) * b / (1 - a) for a, p, b in zip(ab, before, exact, strict=True)]
    yield [mp.sqrt(1 - b) * (1 - p) / (1 - a) for a, p, b in zip(ab, before, exact, strict=True)]
    yield [mp.log(a) - mp.log(1 - a) for a in ab]


def worst_ulp(values: Table, exact: Sequence[Any], mp: Any) -> float:
    """The largest distance in float64's units; where the exact value is 0, it has to be 0 or is left out."""
    worst = 0.0
    for value, truth in zip(values.tolist(), exact, strict=True):
        if not truth:
            continue
        if not math.isfinite(value):
            return math.inf
        worst = max(worst, float(abs(mp.mpf(value) - truth) / mp.mpf(float(np.spacing(abs(float(truth)))))))
    return worst


def table_rows(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each schedule and table."""
    mp = precise()
    for schedule, T in SCHEDULES:
        formula = list(exact_betas(schedule, T, mp))
        errors: dict[str, list[float]] = {}
        for name in names:
            tables = LIBRARIES[name](schedule, T)
            pairs = zip(tables, (formula, *exact_tables(tables.beta, mp)), strict=True)
            errors[name] = [worst_ulp(values, exact, mp) for values, exact in pairs]
        for k, field in enumerate(Tables._fields):
            yield {"schedule": schedule, "T": T, "table": field, **{name: errors[name][k] for name in names}}


# The decoder.


def decoder_rows() -> Iterator[dict[str, Any]]:
    """A row for each distance, over levels and standard deviations."""
    mp = precise()
    for distance in DISTANCES:
        grid = [
            (level, 2 * level / 255 - 1 + sign * distance * std, math.log(std))
            for level in (0, 1, 100, 200, 255)
            for sign in (-1, 1)
            for std in STD
        ]
        level, mean, log_std = (np.array(column) for column in zip(*grid, strict=True))
        exact = [log_mass(*row, mp) for row in grid]
        size = np.array([max(1.0, abs(float(e))) for e in exact])
        row: dict[str, Any] = {"std away": distance}
        for method in ("exact", "ho2020"):
            found = gaussian.discretized_log_likelihood(2 * level / 255 - 1, mean, log_std, method=method)
            error = np.array([float(abs(mp.mpf(v) - e)) for v, e in zip(found.tolist(), exact, strict=True)])
            row |= {f"{method}, nats": float(error.max()), f"{method}, relative": float((error / size).max())}
        yield row


def log_mass(level: int, mean: float, log_std: float, mp: Any) -> Any:
    """The log of the mass in a level's bin of 256, the first and the last open-ended."""
    std = mp.exp(mp.mpf(log_std))
    low, high = ((mp.mpf(2 * level + side - 255) / 255 - mp.mpf(mean)) / std for side in (-1, 1))
    low, high = (-mp.inf if level == 0 else low), (mp.inf if level == 255 else high)
    if low + high < 0:
        low, high = -high, -low
    tail = mp.erfc(low / mp.sqrt(2)) - (0 if mp.isinf(high) else mp.erfc(high / mp.sqrt(2)))
    return mp.log(tail / 2)


def printed(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""
    return _report.table(list(rows[0]), [list(row.values()) for row in rows])


def finite(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For JSON, which has no infinity: null."""
    return [{k: None if isinstance(v, float) and math.isinf(v) else v for k, v in row.items()} for row in rows]


def main(argv: Sequence[str]) -> None:
    """Measure, print, write."""
    parser = _report.Parser(description=_report.about(__doc__).splitlines()[0])
    parser.add_argument("--no-peer", action="store_true", help="leave out diffusers")
    for name in ("json", "markdown"):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE")
    parser.add_argument("--points", type=int, default=20_000, metavar="N", help="random points of the decoder (default 20000)")
    options = parser.parse_args(argv)
    names = [name for name in LIBRARIES if not (options.no_peer and name == "diffusers")]
    tables, decoder = list(table_rows(names)), list(decoder_rows())
    points = list(_points.rows(options.points, precise()))
    about = _report.environment("scipy", "mpmath", "torch", "diffusers")
    text = (
        f"Tables, worst error in units in the last place:\n\n{printed(tables)}\n\n"
        f"Decoder, worst error over levels and std from {STD[0]:g} to {STD[-1]:g}:\n\n{printed(decoder)}\n\n"
        f"Decoder at {options.points} random points:\n\n{printed(points)}\n\n"
        f"{_report.described(about)}.\n"
    )
    print(text)
    _report.write_text(options.markdown, f"# {_report.about(__doc__)}\n\n{text}")
    _report.write_json(
        options.json, {**about, "tables_ulp": finite(tables), "decoder_nats": finite(decoder), "decoder_points": points}
    )


if __name__ == "__main__":
    raise SystemExit(_report.run(main))
