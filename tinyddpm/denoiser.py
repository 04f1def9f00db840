"""A network and how to read it: x_0, eps and p(x_s | x_t) from whatever it predicts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyddpm import plans
from tinyddpm._arrays.check import as_callable, as_instance, as_int, one_of
from tinyddpm._arrays.namespace import A, Array, cast_like, clip_array, namespace_of, quietly, widened
from tinyddpm._arrays.steps import Named, Steps, check_steps, time_array
from tinyddpm._arrays.value import FrozenValue
from tinyddpm._network import variance
from tinyddpm._network.nets import Net, Respaced, call_net, check_output, checked_clip, clips, halves, refuse_nonfinite
from tinyddpm._network.variance import Variance
from tinyddpm._process import Process
from tinyddpm.conversions import KINDS, Kind
from tinyddpm.gaussian import Gaussian

__all__ = ["Denoiser", "Net", "check_model", "refuse_nonfinite"]

Output = tuple[Array, Array | None]


@dataclass(frozen=True, eq=False)
class Denoiser(FrozenValue):
    """The learned reverse process p(x_s | x_t), as a network gives it.

    Parameters
    ----------
    net : callable
        ``net(x_t, t)`` with x_t of shape (B, ...) and an integer array t of shape (B,); it gets ``t - 1 + first_t``.
    predicts : {"eps", "x0", "mu", "v", "score"}
        What it returns; see `tinyddpm.conversions`.
    variance : {"beta", "beta_tilde", "learned", "learned_range"} or float array (T + 1,) or (T + 1, *sample shape)
        Variance of p(x_s | x_t). "beta" is beta_{t|s} and "beta_tilde" the posterior's variance, both with beta_tilde_2 in
        place of their entry at t = 1, as [Ho] do (beta_1 if T = 1). "learned": the network emits 2C channels on axis 1, and
        the second half is the log-variance. "learned_range": that half, v in [-1, 1], interpolates between the two,
        log var = (1 + v)/2 log beta + (1 - v)/2 log beta_tilde [iDDPM eq. 15]. A table is indexed by t and holds for steps
        s = t - 1 only. A longer step into s = 0 has beta_{t|0}, or the point x_0 for "beta_tilde"; the chain that
        `Diffusion.respaced` makes has variances of its own.
    clip_x0 : bool or (low, high)
        Clip the predicted x_0, to [-1, 1] or to the given range; everything else is derived from the clipped x_0.
    first_t : int
        The number by which the network knows the paper's t = 1.

    Raises
    ------
    TypeError, ValueError, LookupError
        If an argument has the wrong type, is out of range, or is not a known name.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyddpm import Denoiser, Diffusion
    >>> denoiser = Denoiser(lambda x_t, t: np.zeros_like(x_t), predicts="v")
    >>> denoiser.x0(Diffusion([0.36]), np.full((1, 1), 0.5), 1).tolist()
    [[0.4]]
    """

    net: Net
    predicts: Kind = "eps"
    variance: Variance | NDArray[np.float64] = "beta"
    clip_x0: bool | tuple[float, float] = True
    first_t: int = 1

    def __post_init__(self) -> None:
        as_callable("net", self.net, "net(x_t, t)")
        one_of("predicts", self.predicts, KINDS)
        if isinstance(self.variance, str):
            one_of("variance", self.variance, variance.NAMES)
        else:
            object.__setattr__(self, "variance", variance.checked_table(self.variance))
        object.__setattr__(self, "clip_x0", checked_clip(self.clip_x0))
        object.__setattr__(self, "first_t", as_int("first_t", self.first_t, -(2**31), 2**31))

    @property
    def learned(self) -> bool:
        """Whether the network emits its variance."""
        return isinstance(self.variance, str) and self.variance in variance.LEARNED

    @property
    def clip_range(self) -> tuple[float, float] | None:
        """The range (low, high) that x_0 is clipped to, or None; None too if the network clips it itself."""
        return None if clips(self.net) else self._clip

    @property
    def _clip(self) -> tuple[float, float] | None:
        return self.clip_x0 if isinstance(self.clip_x0, tuple) else (-1.0, 1.0) if self.clip_x0 else None

    def x0(self, d: Process, x_t: A, t: Steps) -> A:
        """The predicted x_0, clipped if `clip_x0` says so.

        Parameters
        ----------
        d : Diffusion
            The process.
        x_t : array (B, ...)
            The state.
        t : int or integer array (B,) or ()
            Step in 1..T.

        Returns
        -------
        array (B, ...)
            Of x_t's library, dtype and device.

        Raises
        ------
        ValueError
            If `t` is out of range, x_0 does not follow from the prediction at t, or the network's output has the wrong
            shape, library or dtype.
        TypeError
            If an argument has the wrong type.
        """
        t, xp = self._checked(d, x_t, t)
        return self.x0_from(d, self.call(d, x_t, t, xp)[0], x_t, t, xp)  # type: ignore[no-any-return]

    def eps(self, d: Process, x_t: A, t: Steps) -> A:
        """The predicted eps, consistent with the clipped x_0; parameters and errors are those of `x0`.

        Returns
        -------
        array (B, ...)
            Of x_t's library, dtype and device.
        """
        t, xp = self._checked(d, x_t, t)
        return self.eps_from(d, self.call(d, x_t, t, xp)[0], x_t, t, xp)  # type: ignore[no-any-return]

    def p(self, d: Process, x_t: A, t: Steps, s: Steps | None = None) -> Gaussian:
        r"""The learned distribution of x_s given x_t; by default s = t - 1.

        .. math:: p(x_s | x_t) = q(x_s | x_t, x_0 = \hat x_0(x_t)) \text{ with the variance of this denoiser}

        Parameters
        ----------
        d : Diffusion
            The process.
        x_t : array (B, ...)
            The state.
        t : int or integer array (B,) or ()
            Step in 1..T.
        s : int or integer array (B,) or (), optional
            Step in 0..t-1. Default: t - 1.

        Returns
        -------
        Gaussian
            Its mean has the shape, library, dtype and device of `x_t`.

        Raises
        ------
        TypeError, ValueError
            As in `x0`; `ValueError` also if a table of variances is asked for a step longer than s = t - 1.

        Examples
        --------
        >>> import numpy as np
        >>> from tinyddpm import Denoiser, Diffusion
        >>> denoiser = Denoiser(lambda x_t, t: np.zeros_like(x_t), predicts="x0")
        >>> p = denoiser.p(Diffusion([0.1, 0.2]), np.ones((1, 1)), 2)
        >>> round(p.mean.item(), 4), round(p.var.item(), 4)
        (0.3194, 0.2)
        """
        _, xp = self._checked(d, x_t, t)
        t, s = d._checked_pair(t, s, x_t, xp)
        value, raw = self.call(d, x_t, t, xp)
        return self.p_from(d, value, raw, x_t, t, s, xp)

    def respaced(self, timesteps: Iterable[int]) -> Denoiser:
        """The denoiser of the shorter chain ``d.respaced(timesteps)``.

        Its network is called with the steps of d, on which it was trained.

        Parameters
        ----------
        timesteps : iterable of int
            The plan, strictly decreasing to 0.

        Returns
        -------
        Denoiser

        Raises
        ------
        TypeError, ValueError
            If `timesteps` is not a plan, or the variance is a table, which belongs to the steps of one chain.
        """
        if not isinstance(self.variance, str):
            raise ValueError("variance must be a name in a denoiser that is respaced; a table belongs to one chain's steps")
        return replace(self, net=Respaced(self.net, plans.checked(timesteps, 2**62)[::-1], self.first_t))

    # The stages of the above, for losses, bounds and samplers. Their arguments are checked: x_t is an array of the
    # namespace xp, and t and s are steps in the forms of `check_steps`.

    def call(self, d: Process, x_t: Array, t: Any, xp: Any, net_t: Array | None = None, clip: bool = True) -> Output:
        """The network's prediction, and its raw variance output if `learned`; a wrong output is a ValueError.

        With ``clip=False`` a network that clips x_0 itself, as `guidance.classifier` makes, does not.

        Returns
        -------
        value : array (B, ...)
        raw : array (B, ...) or None
        """
        if net_t is None:
            net_t = time_array(t, self.first_t - 1, x_t, xp)
        out = call_net(self.net, x_t, net_t, d, t, self.predicts, self._clip if clip else None)
        check_output(out, x_t, t, xp, self.learned)
        return halves(out) if self.learned else (out, None)

    def x0_from(self, d: Process, value: Array, x_t: Array, t: Any, xp: Any) -> Array:
        """x_0 from a prediction, clipped if `clip_x0` says so.

        Returns
        -------
        array (B, ...)
        """
        x0 = d._convert(value, x_t, t, self.predicts, "x0", xp)
        return x0 if self.clip_range is None else clip_array(x0, *self.clip_range, xp)

    def eps_from(self, d: Process, value: Array, x_t: Array, t: Any, xp: Any) -> Array:
        """eps from a prediction, consistent with the clipped x_0.

        Returns
        -------
        array (B, ...)
        """
        if self.clip_range is None:
            return d._convert(value, x_t, t, self.predicts, "eps", xp)
        return d._convert(self.x0_from(d, value, x_t, t, xp), x_t, t, "x0", "eps", xp)

    @quietly
    def p_from(self, d: Process, value: Array, raw: Array | None, x_t: Array, t: Any, s: Any, xp: Any) -> Gaussian:
        """p(x_s | x_t) from a prediction and the raw variance output.

        Returns
        -------
        Gaussian
        """
        wide = widened(x_t, xp)
        w_x0, w_xt = d._step_weights(t, s, wide, xp, "w_x0", "w_xt")
        mean = cast_like(w_x0 * self.x0_from(d, widened(value, xp), wide, t, xp) + w_xt * wide, x_t, xp)
        return Gaussian(mean, self.log_var_from(d, raw, x_t, t, s, xp))

    @quietly
    def log_var_from(self, d: Process, raw: Array | None, x_t: Array, t: Any, s: Any, xp: Any) -> Any:
        """Natural log of p's variance.

        Returns
        -------
        float or array
            A float if t and s are ints and one number serves, else an array that broadcasts to x_t.
        """
        if not isinstance(self.variance, str):
            return variance.table_log_var(Named(self, "_log_table"), d.T, t, s, x_t, xp)
        if self.learned and raw is None:
            raise ValueError(f"raw must be the network's variance output, as variance is {self.variance!r}, got None")
        if self.variance == "learned":
            return raw
        if self.learned:
            return variance.interpolated_log_var(d, raw, t, s, x_t, xp)
        return variance.fixed_log_var(d, self.variance, t, s, x_t, xp)

    def _checked(self, d: Process, x_t: Array, t: Steps) -> tuple[Any, Any]:
        """The step in the form of `check_steps`, and the namespace."""
        as_instance("d", d, Process, "Diffusion")
        xp = namespace_of(x_t=x_t)
        return check_steps("t", t, x_t, xp, 1, d.T), xp

    @cached_property
    def _log_table(self) -> Any:
        with np.errstate(divide="ignore"):
            return np.log(np.asarray(self.variance))


def check_model(d: Process, denoiser: Denoiser) -> None:
    """Raise TypeError unless `d` is a Diffusion and `denoiser` a Denoiser.

    Raises
    ------
    TypeError
        If one of them is something else.
    """
    as_instance("d", d, Process, "Diffusion")
    as_instance("denoiser", denoiser, Denoiser)
