"""Noise and samplers on the backend, against closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinyddpm import Denoiser, Diffusion, schedules
from tinyddpm.analytic import GaussianData
from tinyddpm.noise import normal
from tinyddpm.samplers import NAMES
from tinyddpm.verify._core import Identities, Place, Table, difference

identities = Identities()

# Known answers of Philox4x64-10 from its authors' library Random123 (kat_vectors): counter, key, words.
KNOWN_ANSWERS = (
    ((0,) * 4, (0,) * 2, (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B)),
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
)
_LOW = 2**64 - 1


def philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Return one block of Philox4x64-10 (Salmon et al., 2011), computed with Python's integers."""
    (a, b, c, d), (k0, k1) = counter, key
    for turn in range(10):
        x, y = a * 0xD2E7470EE14C6C93, c * 0xCA5A826395121157
        left, right = k0 + turn * 0x9E3779B97F4A7C15, k1 + turn * 0xBB67AE8584CAA73B
        a, b, c, d = (y >> 64) ^ b ^ (left & _LOW), y & _LOW, (x >> 64) ^ d ^ (right & _LOW), x & _LOW
    return a, b, c, d


@identities.add("NumPy's Philox4x64-10 gives the published words", "absolute", why="the number of wrong words")
def _known_answers(_: Place) -> float:
    wrong = 0
    for counter, key, words in KNOWN_ANSWERS:
        before = sum(word << 64 * k for k, word in enumerate(counter)) - 1  # NumPy adds 1 before its first block
        numpy = np.random.Philox(key=_words(sum(k << 64 * i for i, k in enumerate(key)), 2), counter=_words(before, 4))
        wrong += sum(int(x) != w for x, w in zip(numpy.random_raw(4), words, strict=True))
    return float(wrong)


def _words(number: int, count: int) -> Any:
    return np.array([number >> 64 * k & _LOW for k in range(count)], dtype=np.uint64)


def _noise(place: Place, seed: int, index: Any, step: int, shape: tuple[int, ...], **options: Any) -> Table:
    options = {"backend": place.backend.name, "device": place.device, "dtype": place.dtype, **options}
    return place.host(normal(seed, index, step, shape, **options))


@identities.add(
    "noise is Philox and Box-Muller in the fixed layout",
    "absolute",
    eps=32,
    why="numbers of at most 6.7; those that float32 does not resolve (u close to 1) are left out",
)
def _layout(place: Place) -> float:
    error = 0.0
    for seed, stream, index, step, n in ((1, 0, 0, 0, 3), (2, 5, 7, 1000, 24), (_LOW, 1, _LOW, 3, 13), (0, 4, 2**63, _LOW, 8)):
        blocks = -(-n // 8)
        counts = [index * blocks + 1 + j for j in range(blocks)]
        words = [w for i in counts for w in philox((i & _LOW, i >> 64, step, 0), (seed, stream))]
        halves = np.array([half for w in words for half in (w & 0xFFFFFFFF, w >> 32)])
        b, c = halves[: 4 * blocks], halves[4 * blocks :].astype(np.uint32).view(np.int32)
        r, angle = np.sqrt(-2 * np.log((b + 0.5) * 2.0**-32)), 2 * math.pi * c * 2.0**-32
        z = np.concatenate([r * np.cos(angle), r * np.sin(angle)])[:n]
        resolved = (np.tile(r, 2)[:n] >= 0.02) | (place.dtype == "float64")
        error = max(error, difference(_noise(place, seed, [index], step, (n,), stream=stream)[0][resolved], z[resolved]))
    return error


@identities.add("noise with exact=True has the bits of the host's noise", "absolute", why="it is drawn on the host and copied")
def _exact(place: Place) -> float:
    there = _noise(place, 3, range(5), 9, (3, 7), exact=True)
    return difference(there, _noise(place, 3, range(5), 9, (3, 7), backend="numpy", device=None))


@identities.add("noise does not depend on the batch", "absolute", why="the noise of a sample is a function of its index")
def _split(place: Place) -> float:
    whole = _noise(place, 5, range(40), 2, (4, 3))
    parts = [_noise(place, 5, cut, 2, (4, 3)) for cut in (range(7), range(7, 8), range(8, 40))]
    shuffled = np.random.default_rng(0).permutation(40)
    return max(difference(np.concatenate(parts), whole), difference(_noise(place, 5, shuffled, 2, (4, 3)), whole[shuffled]))


_DRAWS = 2**17


@identities.add(
    "noise has mean 0, variance 1 and fourth moment 3",
    "absolute",
    fixed=5,
    why="in standard errors of 131 072 draws, which are the same in every run",
)
def _moments(place: Place) -> float:
    z = _noise(place, 0, range(64), 0, (_DRAWS // 64,)).ravel()
    moments = (z.mean(), 1.0), ((z**2).mean() - 1, 2.0), ((z**4).mean() - 3, 96.0)
    return max(abs(float(error)) * math.sqrt(_DRAWS / var) for error, var in moments)


# Samplers, on data with one number for each sample. If the network is affine, so is the chain.


def _short() -> Diffusion:
    return Diffusion(schedules.linear(40, 1e-3, 0.3))


def _sample(place: Place, d: Diffusion, denoiser: Denoiser, x_T: Any, **options: Any) -> Any:
    where = {"backend": place.backend.name, "device": place.device, "dtype": place.dtype}
    return place.host(d.sample(denoiser, x_T.shape, x_T=place.array(x_T), **where, **options))


def _moments_of_x0(place: Place, data: GaussianData, variance: Any, steps: int) -> tuple[float, float]:
    """Return mean and variance of the chain's x_0 if x_T has its exact distribution, from the response to each number drawn."""
    d, plan = _short(), _short().timesteps(steps)
    unit = np.eye(d.T + 1)  # row 0: no noise; row 1: x_T; row k + 2: the noise of step k
    denoiser = Denoiser(data.net(d), variance=variance, clip_x0=False)
    noise = {t: unit[:, [k]] for k, t in enumerate(plan[:-2], start=2)}
    x_0 = _sample(place, d, denoiser, unit[:, [1]], timesteps=plan, noise=lambda t, index, shape: noise[t])[:, 0]
    response, start = x_0[1:] - x_0[0], data.marginal(d, d.T)
    mean, var = x_0[0] + response[0] * start.mean[0], response[0] ** 2 * start.var[0] + np.sum(response[1:] ** 2)
    return float(mean), float(var)


def _chain_law(place: Place, data: GaussianData, variance: Any, plans: tuple[int, ...]) -> float:
    """Compare the chain with the distribution of E[x_0 | x_t] at the last step's t, because the last step adds no noise."""
    error, var = 0.0, float(data.var[0])
    for steps in plans:
        mean, found = _moments_of_x0(place, data, variance, steps)
        ab = float(_short().alpha_bar[_short().timesteps(steps)[-2]])
        kept = var**2 * ab / (ab * var + 1 - ab)
        error = max(error, difference(mean, data.mean[0]), difference(found, kept))
    return error


_WHY_CHAIN = "rounding errors add up over 40 steps"


@identities.add("ancestral sampling with variance beta is exact for N(0, 1) data", "absolute", eps=32, why=_WHY_CHAIN)
def _law_beta(place: Place) -> float:
    return _chain_law(place, GaussianData([0.0], 1.0), "beta", (40, 7, 2))


@identities.add("ancestral sampling with variance beta_tilde is exact for data of one point", "absolute", eps=32, why=_WHY_CHAIN)
def _law_beta_tilde(place: Place) -> float:
    return _chain_law(place, GaussianData([0.6], 0.0), "beta_tilde", (40, 7, 2))


@identities.add("ancestral sampling with the optimal variance is exact for Gaussian data", "absolute", eps=32, why=_WHY_CHAIN)
def _law_optimal(place: Place) -> float:
    d, var = _short(), 0.09
    w_x0, _, beta_tilde = d.posterior_weights(np.arange(1, d.T + 1))
    ab = d.alpha_bar[1:]
    table = np.append(np.nan, beta_tilde + w_x0**2 * var * (1 - ab) / (ab * var + 1 - ab))
    return _chain_law(place, GaussianData([-0.4], var), table, (d.T,))


@identities.add("DDIM at eta = 1 is ancestral sampling with variance beta_tilde", "absolute", eps=32, why=_WHY_CHAIN)
def _eta(place: Place) -> float:
    d, x_T = _short(), place.draw(seed=1)
    denoiser = Denoiser(GaussianData([0.3, 0.0, -0.5, 0.7], 0.04).net(d), variance="beta_tilde")
    ddim, ddpm = (
        [_sample(place, d, denoiser, x_T, steps=steps, **options) for steps in (d.T, 7)]
        for options in ({"sampler": "ddim", "eta": 1.0, "spacing": "even"}, {"sampler": "ddpm"})
    )
    return difference(ddim, ddpm)


@identities.add("the first-order steps of DPM-Solver++, UniPC and Heun are steps of DDIM", "absolute", eps=32, why=_WHY_CHAIN)
def _first_order(place: Place) -> float:
    """These are the first and the last step of DPM-Solver++, and the only step of a plan of one."""
    d, x_T = _short(), place.draw(seed=1)
    denoiser = Denoiser(GaussianData([0.3, 0.0, -0.5, 0.7], 0.04).net(d))

    def run(sampler: str, steps: int) -> Any:
        return _sample(place, d, denoiser, x_T, steps=steps, sampler=sampler, spacing="even")

    pairs = [("dpm++2m", 2), ("dpm++2m", 1), ("dpm++3m", 2), ("dpm++3m", 1), ("unipc", 1), ("heun", 1)]
    return max(difference(run(sampler, steps), run("ddim", steps)) for sampler, steps in pairs)


@identities.add("every sampler with one step returns the predicted x_0", "absolute", eps=8, why="numbers of order 1")
def _jump(place: Place) -> float:
    d, x_T = _short(), place.draw(seed=1)
    denoiser = Denoiser(lambda x, t: 0.2 * x, "x0")
    return max(difference(_sample(place, d, denoiser, x_T, steps=1, sampler=s), np.clip(0.2 * x_T, -1, 1)) for s in NAMES)


@identities.add("every sampler returns the point if the data are one point", "absolute", eps=32, why=_WHY_CHAIN)
def _point(place: Place) -> float:
    d, x_T, point = _short(), place.draw(seed=1), np.array([0.3, 0.0, -0.5, 0.7])
    denoiser = Denoiser(GaussianData(point, 0.0).net(d))
    return max(difference(_sample(place, d, denoiser, x_T, steps=n, sampler=s), point) for s in NAMES for n in (13, 3))


@identities.add(
    "a sample does not depend on its batch",
    "absolute",
    why="each sample has its own noise, and the network treats samples separately",
)
def _batch(place: Place) -> float:
    d, x_T = _short(), place.draw(seed=1)
    denoiser = Denoiser(lambda x, t: 0.5 * x)
    whole = _sample(place, d, denoiser, x_T, steps=5)
    cuts = (range(3), range(3, 4), range(4, 8))
    parts = [_sample(place, d, denoiser, x_T[cut], steps=5, index=cut) for cut in cuts]
    return difference(np.concatenate(parts), whole)
