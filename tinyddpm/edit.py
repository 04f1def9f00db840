"""Editing with an unconditional network: fill in what is missing, mix two images, and find the noise an image came from.

Noise is a pure function of (seed, sample, step) as in sampling, on a stream of its own. The array that is edited decides
library, dtype and device, and none is written to. A network's NaN is a `ValueError` that names ``net``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyddpm import backends, noise, plans
from tinyddpm._arrays.check import as_positive_int, as_real, lookup, one_of
from tinyddpm._arrays.namespace import Array, array_like, cast_like, check_same_shape, is_array_of, namespace_of, on_host
from tinyddpm._io.progress import progress_bar
from tinyddpm._network.nets import refuse_nonfinite
from tinyddpm._sampling import rows as methods
from tinyddpm._sampling.options import SamplerName
from tinyddpm.backends import Row
from tinyddpm.denoiser import check_model

if TYPE_CHECKING:
    from tinyddpm.denoiser import Denoiser
    from tinyddpm.diffusion import Diffusion

__all__ = ["inpaint", "interpolate", "invert"]

_STREAM = 4


def inpaint(
    d: Diffusion,
    denoiser: Denoiser,
    known: Array,
    mask: Array,
    *,
    steps: int | None = None,
    timesteps: Iterable[int] | None = None,
    jump_length: int = 10,
    resamplings: int = 10,
    seed: int = 0,
    index: Sequence[int] | None = None,
    progress: bool = False,
) -> Array:
    """Fill in what is missing of `known`, shape (n, ...), by RePaint [Lugmayr et al. 2022, alg. 1].

    Each ancestral move t -> s takes what is known from q(x_s | x_0) and the rest from p(x_s | x_t). Every `jump_length` moves
    the state goes back up by q(x_t | x_s), `resamplings` - 1 times, so that the two parts come to agree: each step is run
    again only from a state that was noised to it. The network is called `resamplings` times for each move of the plan.

    Parameters
    ----------
    known
        Its values where the mask is False don't matter.
    mask
        Booleans that broadcast to `known`'s shape, of its library or NumPy: True where it is kept. There the result equals
        `known` exactly.
    steps, timesteps
        The number of moves (default T), or the plan itself, from T to 0.
    jump_length, resamplings
        Moves in a run, and how often each run is made (1: no resampling). The published alg. 1 leaves out the repeats of the
        very last move; here a run that ends at 0 is repeated as the others are.
    seed, index
        Sample k depends on (seed, index[k]) only; default 0 and 0..n-1.
    """
    check_model(d, denoiser)
    xp = namespace_of(known=known)
    keep = _mask(mask, known, xp)
    if on_host(known) and not bool(xp.all(xp.isfinite(known) | ~keep)):
        raise ValueError("known: holds NaN or infinity where the mask keeps it")
    plan = plans.chosen(d.log_snr, steps, timesteps, started=True)
    if plan[0] != d.T:
        raise ValueError(f"timesteps: the plan starts at {plan[0]}, not at T = {d.T}")
    jump_length, resamplings = (as_positive_int("jump_length", jump_length), as_positive_int("resamplings", resamplings))
    walk = list(_walk(plan, jump_length, resamplings))
    draw = noise.like(known, seed, index, stream=_STREAM)
    x = draw(0)
    with backends.no_grad(known):
        for step, (t, s) in enumerate(progress_bar(walk, len(walk), enabled=progress, label="inpaint"), 1):
            if s > t:
                x = d.q_between(x, t, s).sample(draw(step))
                continue
            value, raw = _asked(d, denoiser, x, t)
            p = denoiser.p_from(d, value, raw, x, t, s, xp)
            # One draw serves both parts: no element is of both.
            z = draw(step) if s else None
            x = p.mean if z is None else p.sample(z)
            x = xp.where(keep, known if z is None else d.q_sample(known, s, z), x)
            if s == 0 or on_host(x):
                refuse_nonfinite(xp, t, x)
    return x


def interpolate(
    d: Diffusion,
    denoiser: Denoiser,
    a: Array,
    b: Array,
    weights: Iterable[float],
    *,
    steps: int | None = None,
    timesteps: Iterable[int] | None = None,
    encode: str = "diffuse",
    path: str = "linear",
    sampler: SamplerName = "ddim",
    seed: int = 0,
    index: Sequence[int] | None = None,
    progress: bool = False,
) -> Array:
    """Images between `a` and `b`, both (n, ...), shape (len(weights), n, ...): encoded, mixed there, decoded [Ho sec. 4.3].

    Parameters
    ----------
    weights
        b's share in each, in [0, 1].
    steps, timesteps
        The number of moves from T (default T), or the plan itself. Its first entry is the step at which they are mixed: an
        early one keeps the pixels' detail, T only what the noise holds, e.g. ``timesteps=range(500, -1, -1)``.
    encode
        "diffuse": x_t ~ q(x_t | x_0) with one noise for both and all weights, so that a mix keeps q's variance. "invert": the
        deterministic `invert`, whose ends decode to a and b.
    path
        "linear", or "spherical": along the great circle between the two, at a norm between theirs. Two inverted latents are
        nearly orthogonal, and halfway on the line between them the noise has only half its variance.
    sampler, seed, index
        Of the decoding, as in sampling; every weight has the same noise.
    """
    check_model(d, denoiser)
    xp = namespace_of(a=a, b=b)
    check_same_shape("b", b, "a", a)
    b = cast_like(b, a, xp)
    shares = _shares(weights)
    plan = plans.chosen(d.log_snr, steps, timesteps, started=True)
    one_of("encode", encode, ("diffuse", "invert"))
    mixed = lookup("path", path, {"linear": _linear, "spherical": _spherical})
    index = noise.numbers(index, a.shape[0])
    if encode == "invert":
        ends = [invert(d, denoiser, x, timesteps=plan, progress=progress) for x in (a, b)]
    else:
        eps = noise.like(a, seed, index, stream=_STREAM)(0)
        ends = [d.q_sample(x, plan[0], eps) for x in (a, b)]
    return xp.stack([
        d.sample(denoiser, a.shape, sampler=sampler, timesteps=plan, x_T=mixed(*ends, w, xp), seed=seed, index=index,
                 progress=progress)
        for w in shares
    ])  # fmt: skip


def invert(
    d: Diffusion,
    denoiser: Denoiser,
    x0: Array,
    *,
    steps: int | None = None,
    timesteps: Iterable[int] | None = None,
    iterations: int = 10,
    progress: bool = False,
) -> Array:
    """The state at the plan's first step from which DDIM with eta = 0, on the same plan, returns `x0`, shape (n, ...).

    The usual inversion reads eps at the wrong end of each move [DDIM sec. 4.3], and the error stays however exact the network
    is. Here each move's own equation, x_t = sqrt(alpha_{t|s}) x_s + (sigma_t - sqrt(alpha_{t|s}) sigma_s) eps(x_t, t), is
    solved for x_t by `iterations` network calls of fixed-point iteration with Anderson's acceleration (depth 1, each sample by
    itself). The move into s = 0 needs nothing else: there it says that the prediction at x_t is x0.

    Parameters
    ----------
    steps, timesteps
        The number of moves (default T), or the plan itself, from T or any step below it.
    iterations
        Network calls a move; 1 is the usual inversion. The iteration converges for data of one mode on any plan, and otherwise
        where the plan is fine enough. Where it does, 10 leave a round trip of a smooth network close to rounding error.
    """
    check_model(d, denoiser)
    xp = namespace_of(x0=x0)
    iterations = as_positive_int("iterations", iterations)
    if on_host(x0) and not bool(xp.all(xp.isfinite(x0))):
        raise ValueError("x0: holds NaN or infinity")
    plan = plans.chosen(d.log_snr, steps, timesteps, started=True)
    rows = methods.ddim(d, plan, 0.0)[::-1]
    x = x0
    with backends.no_grad(x0):
        for row in progress_bar(rows, len(rows), enabled=progress, label="invert"):
            x = _solved(_inverse_move(d, denoiser, row, x), x, iterations, xp)
            if row is rows[-1] or on_host(x):
                refuse_nonfinite(xp, row.t, x)
    return x


def _inverse_move(d: Diffusion, denoiser: Denoiser, row: Row, x_s: Array) -> Any:
    """The map whose fixed point is x_t: DDIM's move from there gives x_s."""
    t, s = row.t, row.s
    w_xt, w_x0 = row.state
    if d.alpha_bar[t] > 0:
        w_xs, _ = d.between_weights(t, s)
        w_eps = w_x0 * float(d.sqrt_one_minus_alpha_bar[t]) / float(d.sqrt_alpha_bar[s])
        return lambda x_t: (
            w_xs * x_s + w_eps * denoiser.eps_from(d, _asked(d, denoiser, x_t, t)[0], x_t, t, namespace_of(x_t=x_t))
        )
    if s == 0:
        raise ValueError(f"timesteps: the move from t = {t}, where alpha_bar is 0, into 0 keeps nothing of x_t to return to")
    # Here eps is x_t itself and says nothing.
    return lambda x_t: (
        x_s / w_xt - (w_x0 / w_xt) * denoiser.x0_from(d, _asked(d, denoiser, x_t, t)[0], x_t, t, namespace_of(x_t=x_t))
    )


def _asked(d: Diffusion, denoiser: Denoiser, x_t: Array, t: int) -> tuple[Array, Array | None]:
    """The network's output, which clipping would make finite, refused by the step where the host sees that it is not."""
    value, raw = denoiser.call(d, x_t, t, namespace_of(x_t=x_t))
    if on_host(value):
        refuse_nonfinite(namespace_of(x_t=x_t), t, value, raw)
    return value, raw


def _solved(move: Any, x: Array, iterations: int, xp: Any) -> Array:
    """x = move(x) after as many calls, from the x given; each sample (axis 0) by itself."""
    value = move(x)
    residual = value - x
    x = value
    for _ in range(iterations - 1):
        last_value, last_residual = value, residual
        value = move(x)
        residual = value - x
        change = residual - last_residual
        size = _dot(change, change, xp)
        curved = size > 1e-4 * _dot(residual, residual, xp)  # else a plain step: the quotient would be of rounding errors
        mix = xp.where(curved, _dot(residual, change, xp) / xp.where(curved, size, xp.ones_like(size)), xp.zeros_like(size))
        x = value - mix * (value - last_value)
    return x


def _dot(x: Array, y: Array, xp: Any) -> Array:
    """The inner product of each sample, broadcasting against x."""
    return xp.sum(x * y, axis=tuple(range(1, x.ndim)), keepdims=True)


def _walk(plan: tuple[int, ...], jump_length: int, resamplings: int) -> Iterator[tuple[int, int]]:
    """Moves (from, to): down the plan in runs of `jump_length`, each made `resamplings` times with a jump back between."""
    for first in range(0, len(plan) - 1, jump_length):
        run = plan[first : first + jump_length + 1]
        for repeat in range(resamplings):
            if repeat:
                yield run[-1], run[0]
            yield from pairwise(run)


def _linear(a: Array, b: Array, weight: float, xp: Any) -> Array:
    return (1 - weight) * a + weight * b


def _spherical(a: Array, b: Array, weight: float, xp: Any) -> Array:
    """Along the great circle through the directions of a and b, each sample by itself; linear where they (anti)align."""
    norms = [xp.sqrt(_dot(x, x, xp)) for x in (a, b)]
    u, v = (x / xp.where(norm > 0, norm, xp.ones_like(norm)) for x, norm in zip((a, b), norms, strict=True))
    apart, along = (xp.sqrt(_dot(w, w, xp)) for w in (u - v, u + v))
    angle = 2 * xp.atan2(apart, along)
    sine = xp.sin(angle)
    curved = sine > 1e-4
    sine = xp.where(curved, sine, xp.ones_like(sine))
    w_a, w_b = (xp.where(curved, xp.sin(w * angle) / sine, xp.full_like(sine, w)) for w in (1 - weight, weight))
    return w_a * a + w_b * b


def _shares(weights: Iterable[float]) -> list[float]:
    if not isinstance(weights, Iterable) or isinstance(weights, str):
        raise TypeError(f"weights must be a sequence of numbers, got {type(weights).__name__}")
    shares = [as_real("weights", w, 0.0, 1.0) for w in weights]
    if not shares:
        raise ValueError("weights must not be empty")
    return shares


def _mask(mask: Array, known: Array, xp: Any) -> Array:
    """The mask as booleans of `known`'s library, device and shape."""
    if not isinstance(mask, np.ndarray) and not is_array_of(xp, mask):
        raise TypeError(f"mask must be a boolean array of known's library or NumPy, got {type(mask).__name__}")
    kind = np.dtype(bool) if isinstance(mask, np.ndarray) else xp.bool
    if mask.dtype != kind:
        raise TypeError(f"mask must be booleans (True is kept), got {mask.dtype}")
    if isinstance(mask, np.ndarray):
        mask = array_like(mask, known, xp, dtype=xp.bool)
    try:
        return xp.broadcast_to(mask, tuple(known.shape))
    except (ValueError, RuntimeError, TypeError):
        raise ValueError(f"mask: shape {tuple(mask.shape)} does not broadcast to known's {tuple(known.shape)}") from None
