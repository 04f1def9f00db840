"""Editing with an unconditional network: change an image, fill in what is missing, mix two, and find an image's noise.

Noise is a pure function of (seed, sample, step) as in sampling, on a stream of its own. The array that is edited decides library,
dtype and device, and is not written to. A network's NaN is a `ValueError` that names ``net``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from tinyddpm import _editing as parts
from tinyddpm import backends, noise, plans
from tinyddpm._arrays.check import as_int, as_list, as_positive_int, as_real, lookup, names_unknown_options, one_of
from tinyddpm._arrays.namespace import A, Array, cast_like, check_same_shape, namespace_of, on_host, quiet
from tinyddpm._arrays.steps import check_host_steps
from tinyddpm._io.progress import progress_bar
from tinyddpm._network.nets import refuse_nonfinite
from tinyddpm._sampling.options import BEST_SPACING, SamplerName
from tinyddpm._sampling.rows import ddim
from tinyddpm.denoiser import Denoiser, check_model
from tinyddpm.diffusion import Diffusion

__all__ = ["image_to_image", "inpaint", "interpolate", "invert"]

_STREAM = 4


@names_unknown_options
def image_to_image(
    d: Diffusion, denoiser: Denoiser, x0: A, t: int, *, steps: int | None = None, timesteps: Iterable[int] | None = None,
    sampler: SamplerName = "ddpm", eta: float | None = None, seed: int = 0, index: Sequence[int] | None = None,
    progress: bool = False,
) -> A:  # fmt: skip
    """Images like the given ones by SDEdit [Meng et al. 2022, alg. 1]: noise to step t, and sampling from there on.

    A small t keeps an image as it is, and T hardly anything of it; a rough drawing becomes an image at about T / 2.

    Parameters
    ----------
    d : Diffusion
        The process.
    denoiser : Denoiser
        The network and how to read it.
    x0 : array (n, ...)
        The images.
    t : int
        The step in 1..T to start from, where x_t ~ q(x_t | x_0).
    steps : int, optional
        The length of a plan from T, spaced as `Diffusion.sample` does for the sampler; its entries below t are used. Default: T.
    timesteps : iterable of int, optional
        The plan itself; its entries below t are used.
    sampler, eta, seed, index, progress
        As in `Diffusion.sample`; the noise is of this module's own stream.

    Returns
    -------
    array (n, ...)

    Raises
    ------
    TypeError, ValueError, LookupError
        If an argument has the wrong type or is out of range, or the network's output is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyddpm import Denoiser, Diffusion
    >>> d, image = Diffusion([0.5, 0.9]), np.array([[0.5, -0.25]])
    >>> image_to_image(d, Denoiser(lambda x_t, t: 0 * x_t + 0.5, predicts="x0"), image, 1).tolist()
    [[0.5, 0.5]]
    """
    check_model(d, denoiser)
    xp, t = namespace_of(x0=x0), as_int("t", check_host_steps("t", t, 1, d.T), 1, d.T)
    parts.check_finite(xp, x0=x0)
    plan = plans.chosen(d.log_snr, steps, timesteps, default=lookup("sampler", sampler, BEST_SPACING), started=True)
    index = noise.numbers(index, x0.shape[0])
    draw = noise.like(x0, seed, index, stream=_STREAM)
    return d.sample(  # type: ignore[no-any-return]
        denoiser, x0.shape, sampler=sampler, timesteps=(t, *(s for s in plan if s < t)), eta=eta, index=index,
        x_T=d._q_sample(x0, t, draw(0), xp), noise=lambda t, index, shape: draw(t), progress=progress,
    )  # fmt: skip


@names_unknown_options
def inpaint(
    d: Diffusion, denoiser: Denoiser, known: A, mask: Array, *, steps: int | None = None,
    timesteps: Iterable[int] | None = None, jump_length: int = 10, resamplings: int = 10, seed: int = 0,
    index: Sequence[int] | None = None, progress: bool = False,
) -> A:  # fmt: skip
    """Fill in what is missing of images by RePaint [Lugmayr et al. 2022, alg. 1].

    Each ancestral step from t to s takes what is known from q(x_s | x_0) and the rest from p(x_s | x_t). After every
    `jump_length` steps the state goes back up by q(x_t | x_s), `resamplings` - 1 times, so that the two parts come to agree. The
    network is called `resamplings` times for each step of the plan.

    Parameters
    ----------
    d : Diffusion
        The process.
    denoiser : Denoiser
        The network and how to read it.
    known : array (n, ...)
        The images; values where the mask is False do not matter.
    mask : boolean array
        Of known's library or NumPy, broadcast to its shape: True where an image is kept.
    steps : int, optional
        The number of steps, evenly spaced. Default: T.
    timesteps : iterable of int, optional
        The plan itself, from T to 0.
    jump_length : int
        Steps in a run.
    resamplings : int
        How often each run is made; 1 is no resampling. The published algorithm does not repeat the very last step; here a run
        that ends at 0 is repeated as the others are.
    seed : int
        Seed of the noise.
    index : sequence of int, optional
        n sample numbers: sample k depends on (seed, index[k]) only. Default: 0..n-1.
    progress : bool
        Show progress on standard error.

    Returns
    -------
    array (n, ...)
        Equal to `known` where the mask is True.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or shape or is out of range, or the network's output is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyddpm import Denoiser, Diffusion
    >>> d, image = Diffusion([0.5, 0.9]), np.array([[0.5, np.nan]])
    >>> filled = inpaint(d, Denoiser(lambda x_t, t: 0 * x_t, predicts="x0"), image, np.array([True, False]))
    >>> filled.tolist()
    [[0.5, 0.0]]
    """
    check_model(d, denoiser)
    xp = namespace_of(known=known)
    keep = parts.checked_mask(mask, known, xp)
    if on_host(known) and not bool(xp.all(xp.isfinite(known) | ~keep)):
        raise ValueError("known must be finite where the mask keeps it, got NaN or infinity")
    plan = plans.chosen(d.log_snr, steps, timesteps)
    jump_length, resamplings = as_positive_int("jump_length", jump_length), as_positive_int("resamplings", resamplings)
    walk = list(parts.walk(plan, jump_length, resamplings))
    draw = noise.like(known, seed, index, stream=_STREAM)
    x = draw(0)
    with backends.no_grad(known), quiet():
        for step, (t, s) in enumerate(progress_bar(walk, len(walk), enabled=progress, label="inpaint"), 1):
            if s > t:
                x = d.q_between(x, t, s).sample(draw(step))
                continue
            value, raw = parts.call_finite(d, denoiser, x, t, xp)
            p = denoiser.p_from(d, value, raw, x, t, s, xp)
            z = draw(step) if s else None  # one draw serves both parts: no element is in both
            x = p.mean if z is None else p.sample(z)
            x = xp.where(keep, known if z is None else d._q_sample(known, s, z, xp), x)
            if s == 0 or on_host(x):
                refuse_nonfinite(xp, t, x)
    return x  # type: ignore[no-any-return]


@names_unknown_options
def interpolate(
    d: Diffusion, denoiser: Denoiser, a: A, b: A, weights: Iterable[float], *, steps: int | None = None,
    timesteps: Iterable[int] | None = None, encode: Literal["diffuse", "invert"] = "diffuse",
    path: Literal["linear", "spherical"] = "linear", sampler: SamplerName = "ddim", seed: int = 0,
    index: Sequence[int] | None = None, progress: bool = False,
) -> A:  # fmt: skip
    """Images between two: encode both, mix the codes, and decode [Ho sec. 4.3].

    Parameters
    ----------
    d : Diffusion
        The process.
    denoiser : Denoiser
        The network and how to read it.
    a, b : array (n, ...)
        The images at the ends.
    weights : iterable of float
        b's share in each image between, in [0, 1].
    steps : int, optional
        The number of steps from T, spaced as `Diffusion.sample` spaces them for the sampler. Default: T.
    timesteps : iterable of int, optional
        The plan itself. Its first entry is the step at which the codes are mixed: at an early one the images keep their detail,
        at T only what the noise holds, e.g. ``timesteps=range(500, -1, -1)``.
    encode : {"diffuse", "invert"}
        "diffuse": x_t ~ q(x_t | x_0) with one noise for both images and all weights, so that a mix keeps q's variance. "invert":
        the deterministic `invert`, whose codes decode to a and b.
    path : {"linear", "spherical"}
        "spherical" is along the great circle between the codes, at a norm between theirs. Two inverted codes are nearly
        orthogonal, and halfway on the line between them the noise has only half its variance.
    sampler, seed, index, progress
        As in `Diffusion.sample`; the sampler is that of the decoding, and every weight has the same noise.

    Returns
    -------
    array (len(weights), n, ...)

    Raises
    ------
    TypeError, ValueError, LookupError
        If an argument has the wrong type or shape, is out of range or is not a known name, or the network's output is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyddpm import Denoiser, Diffusion
    >>> d, one = Diffusion([0.5, 0.9]), np.ones((1, 2))
    >>> interpolate(d, Denoiser(lambda x_t, t: 0 * x_t, predicts="v"), one, -one, [0.0, 0.5, 1.0]).shape
    (3, 1, 2)
    """
    check_model(d, denoiser)
    xp = namespace_of(a=a, b=b)
    check_same_shape("b", b, "a", a)
    b = cast_like(b, a, xp)
    parts.check_finite(xp, a=a, b=b)
    shares = [as_real("weights", share, 0.0, 1.0) for share in as_list("weights", weights)]
    plan = plans.chosen(d.log_snr, steps, timesteps, default=lookup("sampler", sampler, BEST_SPACING), started=True)
    one_of("encode", encode, ("diffuse", "invert"))
    mixed = lookup("path", path, {"linear": parts.linear, "spherical": parts.spherical})
    index = noise.numbers(index, a.shape[0])
    if encode == "invert":
        ends = [invert(d, denoiser, x, timesteps=plan, progress=progress) for x in (a, b)]
    else:
        eps = noise.like(a, seed, index, stream=_STREAM)(0)
        with quiet():
            ends = [d._q_sample(x, plan[0], eps, xp) for x in (a, b)]
    options: Any = {"sampler": sampler, "timesteps": plan, "seed": seed, "index": index, "progress": progress}
    images = [d.sample(denoiser, a.shape, x_T=mixed(*ends, share, xp), **options) for share in shares]
    return xp.stack(images)  # type: ignore[no-any-return]


@names_unknown_options
def invert(
    d: Diffusion, denoiser: Denoiser, x0: A, *, steps: int | None = None, timesteps: Iterable[int] | None = None,
    iterations: int = 10, progress: bool = False,
) -> A:  # fmt: skip
    r"""The state from which DDIM with eta = 0, on the same plan, returns `x0`.

    .. math:: x_t = \sqrt{\alpha_{t|s}}\, x_s + (\sigma_t - \sqrt{\alpha_{t|s}}\, \sigma_s)\, \epsilon(x_t, t),
              \quad \sigma_t = \sqrt{1 - \bar\alpha_t}

    This is DDIM's own step, solved for x_t by fixed-point iteration with Anderson's acceleration (depth 3, each sample by
    itself). The usual inversion reads eps at the wrong end of each step [DDIM sec. 4.3], and its error stays however exact the
    network is.

    Parameters
    ----------
    d : Diffusion
        The process.
    denoiser : Denoiser
        The network and how to read it.
    x0 : array (n, ...)
        The images.
    steps : int, optional
        The number of steps from T, spaced as `Diffusion.sample` spaces them for ddim. Default: T.
    timesteps : iterable of int, optional
        The plan itself, from T or any step below it.
    iterations : int
        Network calls for each step; 1 is the usual inversion. The iteration converges for data of one mode on any plan, and
        otherwise if the plan is fine enough; then 10 bring a round trip of a smooth network close to rounding error.
    progress : bool
        Show progress on standard error.

    Returns
    -------
    array (n, ...)
        The state at the plan's first step.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or shape or is out of range, or the network's output is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyddpm import Denoiser, Diffusion
    >>> from tinyddpm.analytic import GaussianData
    >>> d, x0 = Diffusion(), np.array([[0.3]])
    >>> denoiser = Denoiser(GaussianData([0.2], 0.05).net(d), clip_x0=False)
    >>> z = invert(d, denoiser, x0, steps=50)
    >>> bool(abs(d.sample(denoiser, (1, 1), sampler="ddim", steps=50, x_T=z) - x0) < 1e-6)
    True
    """
    check_model(d, denoiser)
    xp = namespace_of(x0=x0)
    iterations = as_positive_int("iterations", iterations)
    parts.check_finite(xp, x0=x0)
    plan = plans.chosen(d.log_snr, steps, timesteps, default=BEST_SPACING["ddim"], started=True)
    rows = ddim(d, plan, 0.0)[::-1]
    with backends.no_grad(x0), quiet():
        return parts.inverted(d, denoiser, x0, progress_bar(rows, len(rows), enabled=progress, label="invert"), iterations, xp)  # type: ignore[no-any-return]
