"""Samplers: ways to run the reverse process from noise to data.

``Diffusion.sample(..., sampler=NAME)`` uses them by name. Each is a function that turns a plan into rows of weights; see
`tinyddpm._sampling.rows` for the formulas and `tinyddpm._sampling.run` for the one loop that runs them all. Noise is a pure
function of (seed, sample, step), so a sample does not depend on how a batch was split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Unpack

from tinyddpm._arrays.check import as_instance
from tinyddpm._arrays.namespace import Array
from tinyddpm._sampling.options import BEST_SPACING, DEFAULT_ETA, Noise, Options, SamplerName, Step
from tinyddpm._sampling.rows import METHODS as NAMES
from tinyddpm.denoiser import Denoiser
from tinyddpm.diffusion import Diffusion

__all__ = ["BEST_SPACING", "DEFAULT_ETA", "NAMES", "Noise", "Options", "SamplerName", "Step", "sample", "trajectory"]


def sample(d: Diffusion, denoiser: Denoiser, shape: Sequence[int], **options: Unpack[Options]) -> Array:
    """Draw samples; `Diffusion.sample` is this function as a method, and documents the options.

    Parameters
    ----------
    d : Diffusion
        The process.
    denoiser : Denoiser
        The network and how to read it.
    shape : sequence of int
        (n, ...): the number of samples and the shape of one.
    **options
        See `Diffusion.sample`.

    Returns
    -------
    array (n, ...)
        The samples at t = 0.

    Raises
    ------
    TypeError, ValueError, LookupError, BackendUnavailable
        See `Diffusion.sample`.

    Examples
    --------
    >>> from tinyddpm import Denoiser, Diffusion
    >>> sample(Diffusion(), Denoiser(lambda x_t, t: 0 * x_t), (2, 3), steps=5).shape
    (2, 3)
    """
    return as_instance("d", d, Diffusion).sample(denoiser, shape, **options)


def trajectory(
    d: Diffusion, denoiser: Denoiser, shape: Sequence[int], *, every: int = 1, **options: Unpack[Options]
) -> Iterator[Step]:
    """The states that `sample` passes through; `Diffusion.trajectory` is this function as a method.

    Parameters
    ----------
    d, denoiser, shape
        As in `sample`.
    every : int
        Yield every `every`-th state after the start, and the last.
    **options
        See `Diffusion.sample`.

    Yields
    ------
    Step
        First the start (t = T, x0 = None), last t = 0.

    Raises
    ------
    TypeError, ValueError, LookupError, BackendUnavailable
        See `Diffusion.sample`.

    Examples
    --------
    >>> from tinyddpm import Denoiser, Diffusion
    >>> [step.t for step in trajectory(Diffusion(), Denoiser(lambda x_t, t: 0 * x_t), (1, 2), steps=2)]
    [1000, 500, 0]
    """
    return as_instance("d", d, Diffusion).trajectory(denoiser, shape, every=every, **options)  # type: ignore[no-any-return]
