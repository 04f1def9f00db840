"""The known process with all that is done with it: tables, q, the posterior, conversions, plans, and sampling.

A `Diffusion` is fixed by its betas. The formulas stand in `tinyddpm._process`, the tables in `tinyddpm._numerics.tables`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tinyddpm import plans
from tinyddpm._arrays.check import as_positive_int, names_unknown_options
from tinyddpm._arrays.namespace import Array, Table
from tinyddpm._numerics.double import Double
from tinyddpm._process import Process
from tinyddpm.plans import Spacing

if TYPE_CHECKING:
    from tinyddpm._sampling.options import Noise, SamplerName, Step
    from tinyddpm.denoiser import Denoiser

__all__ = ["Diffusion"]


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Diffusion(Process):
    """The forward process q with the given betas [Ho sec. 2], and all that follows from them in closed form.

    Parameters
    ----------
    beta : array_like (T,), optional
        beta_1..beta_T, each in (0, 1); beta_T = 1 is allowed. Default: ``schedules.linear()``.

    Raises
    ------
    TypeError, ValueError
        If `beta` is not a one-dimensional sequence of such numbers.

    Notes
    -----
    Tables are read-only float64 arrays of length T + 1, indexed by the paper's t; entry 0 is the clean end. Tables and
    weights are within 4 units in the last place of the exact value for the float64 betas, even where alpha_bar underflows.
    Data arguments have shape (B, ...); `t` and `s` are ints or integer arrays (B,) or (). Objects are immutable,
    picklable, and equal and hashable by content.

    Examples
    --------
    >>> from tinyddpm import Diffusion, schedules
    >>> Diffusion(schedules.cosine(T=500))
    Diffusion(T=500, beta=8.742e-05..0.999, alpha_bar_T=9.715e-09)
    """

    def timesteps(self, steps: int, spacing: Spacing = "even") -> tuple[int, ...]:
        """A plan: the steps at which a sampler calls the network, and 0.

        Parameters
        ----------
        steps : int
            The number of steps, in 1..T.
        spacing : {"even", "quadratic", "log_snr"}
            "even": gaps that differ by at most 1; "quadratic": denser near the data; "log_snr": gaps in log-SNR as even as
            whole steps allow.

        Returns
        -------
        tuple of int
            ``steps + 1`` strictly decreasing entries, the first T and the last 0.

        Raises
        ------
        TypeError, ValueError, LookupError
            If `steps` is not an int in 1..T, or `spacing` not a known name.

        Examples
        --------
        >>> from tinyddpm import Diffusion
        >>> Diffusion().timesteps(4, "quadratic")
        (1000, 563, 250, 63, 0)
        """
        return plans.spaced(self.log_snr, steps, spacing)

    def respaced(self, timesteps: Iterable[int]) -> Diffusion:
        """The shorter chain over a plan, with the same marginals: its step k is the plan's k-th entry from the end.

        Networks see the steps of the shorter chain; `Denoiser.respaced` adapts a network that counts those of this one.

        Parameters
        ----------
        timesteps : iterable of int
            Strictly decreasing, from at most T to 0.

        Returns
        -------
        Diffusion
            A chain of ``len(timesteps) - 1`` steps.

        Raises
        ------
        TypeError, ValueError
            If `timesteps` is not such a plan.

        Examples
        --------
        >>> from tinyddpm import Diffusion
        >>> d = Diffusion()
        >>> bool(d.respaced((1000, 500, 0)).alpha_bar[1] == d.alpha_bar[500])
        True
        """
        t = np.array(plans.checked(timesteps, self.T)[::-1])
        beta = self._pair_weights(t[1:], t[:-1]).beta
        return self._of(np.append(0.0, beta), self._log_alpha_bar.at(t))

    @names_unknown_options
    def sample(
        self, denoiser: Denoiser, shape: Sequence[int], *, sampler: SamplerName = "ddpm", steps: int | None = None,
        spacing: Spacing | None = None, timesteps: Iterable[int] | None = None, eta: float | None = None, seed: int = 0,
        index: Sequence[int] | None = None, x_T: Array | None = None, noise: Noise | None = None, backend: str | None = None,
        device: Any = None, dtype: Any = "float32", compile: bool = False,
        autocast: Literal["bfloat16", "float16"] | None = None, progress: bool = False,
        callback: Callable[[Step], object] | None = None,
    ) -> Array:  # fmt: skip
        """Draw samples by running the reverse process from noise.

        Parameters
        ----------
        denoiser : Denoiser
            The network and how to read it.
        shape : sequence of int
            (n, ...): the number of samples and the shape of one.
        sampler : str
            "ddpm" (ancestral sampling), "ddim", "dpm++2m" and "dpm++3m" (DPM-Solver++), "dpm++2m-sde" (with noise), "heun" or
            "unipc"; see `tinyddpm.samplers`.
        steps : int, optional
            The number of steps, in 1..T. Default: T.
        spacing : {"even", "quadratic", "log_snr"}, optional
            How fewer than T steps are spaced. Default: the sampler's best (`samplers.BEST_SPACING`).
        timesteps : iterable of int, optional
            The plan itself, instead of `steps` and `spacing`: strictly decreasing to 0, from T, or from below T if `x_T`
            is given.
        eta : float, optional
            Of ddim (default 0) and dpm++2m-sde (default 1), in [0, 1]; at 0 nothing is random but the start.
        seed : int
            Sample k is a function of (seed, index[k]) only.
        index : sequence of int, optional
            n sample numbers. Default: 0..n-1.
        x_T : array (n, ...), optional
            The state at the plan's first step. It decides library, device and dtype, but a NumPy array is moved to
            `backend` if that is named. Default: noise.
        noise : callable, optional
            ``noise(t, index, shape) -> (len(index), *shape)`` replaces the library's noise; it is called once for each
            noisy step, in order.
        backend : str, optional
            The array library to compute with. Default: that of `x_T`, else that of the network if it is a
            ``torch.nn.Module``, else "numpy".
        device : str or device, optional
            Default: the device of the network if it decides the library, else the library's own default.
        dtype : str or dtype
            Floating-point type of the state. A state in bfloat16 drifts, of which a `UserWarning` tells; see `autocast`.
        compile : bool
            Compile the network (Torch only). It is compiled at the first call of every new shape; on CUDA a whole step
            becomes one graph.
        autocast : {"bfloat16", "float16"}, optional
            Run the network in this type where that is safe (``torch.autocast``), with the weights that it has when the run
            starts; the state keeps its dtype.
        progress : bool
            Show progress on standard error.
        callback : callable, optional
            Called with every `Step` but the start.

        Returns
        -------
        array (n, ...)
            The samples at t = 0.

        Raises
        ------
        ValueError
            If an argument is out of range, or the network's output has the wrong shape, library or dtype or is not
            finite; the message then names ``net`` and the step.
        TypeError, LookupError, BackendUnavailable
            If an argument has the wrong type, a name is unknown, or a backend cannot be used here.

        Notes
        -----
        The network is called at a state that the next step may overwrite: it must copy what it means to keep.

        Examples
        --------
        >>> import numpy as np
        >>> from tinyddpm import Denoiser, Diffusion
        >>> from tinyddpm.analytic import GaussianData
        >>> d = Diffusion()
        >>> denoiser = Denoiser(GaussianData(np.full(2, 0.5), 0.01).net(d))
        >>> x = d.sample(denoiser, (1000, 2), sampler="dpm++2m", steps=20)
        >>> bool(abs(x.mean() - 0.5) < 0.01 and abs(x.std() - 0.1) < 0.01)
        True
        """
        from tinyddpm._sampling.run import run  # loaded when it is first needed

        (last,) = run(
            self, denoiser, shape, None, sampler=sampler, steps=steps, spacing=spacing, timesteps=timesteps, eta=eta, seed=seed,
            index=index, x_T=x_T, noise=noise, backend=backend, device=device, dtype=dtype, compile=compile,
            autocast=autocast, progress=progress, callback=callback,
        )  # fmt: skip
        return last.x

    @names_unknown_options
    def trajectory(
        self, denoiser: Denoiser, shape: Sequence[int], *, every: int = 1, sampler: SamplerName = "ddpm",
        steps: int | None = None, spacing: Spacing | None = None, timesteps: Iterable[int] | None = None,
        eta: float | None = None, seed: int = 0, index: Sequence[int] | None = None, x_T: Array | None = None,
        noise: Noise | None = None, backend: str | None = None, device: Any = None, dtype: Any = "float32", compile: bool = False,
        autocast: Literal["bfloat16", "float16"] | None = None, progress: bool = False,
        callback: Callable[[Step], object] | None = None,
    ) -> Iterator[Step]:  # fmt: skip
        """The states that `sample` passes through, as a generator.

        Parameters
        ----------
        denoiser, shape
            As in `sample`.
        every : int
            Yield every `every`-th state after the start, and the last.
        sampler, steps, spacing, timesteps, eta, seed, index, x_T, noise, backend, device, dtype, compile, autocast, \
progress, callback
            As in `sample`.

        Yields
        ------
        Step
            ``Step(t, x, x0)``: first the start (t = T, x0 = None), last t = 0.

        Raises
        ------
        TypeError, ValueError, LookupError, BackendUnavailable
            As in `sample`; arguments are checked by the call, before the first step.

        Examples
        --------
        >>> from tinyddpm import Denoiser, Diffusion
        >>> d, denoiser = Diffusion(), Denoiser(lambda x_t, t: 0 * x_t)
        >>> [step.t for step in d.trajectory(denoiser, (1, 2), steps=4)]
        [1000, 750, 500, 250, 0]
        """
        from tinyddpm._sampling.run import run

        return run(
            self, denoiser, shape, as_positive_int("every", every), sampler=sampler, steps=steps, spacing=spacing,
            timesteps=timesteps, eta=eta, seed=seed, index=index, x_T=x_T, noise=noise, backend=backend, device=device,
            dtype=dtype, compile=compile, autocast=autocast, progress=progress, callback=callback,
        )  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.beta, *self._log_alpha_bar)

    def __repr__(self) -> str:
        return f"Diffusion(T={self.T}, beta={self.beta[1]:.4g}..{self.beta[-1]:.4g}, alpha_bar_T={self.alpha_bar[-1]:.4g})"


def _restored(beta: Table, hi: Table, lo: Table) -> Diffusion:
    """The chain with these tables; pickles of earlier versions name this function."""
    return Diffusion._of(beta, Double(hi, lo))
