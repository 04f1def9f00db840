r"""The best chain of any length for a network as it is, from its errors at each step.

With the error e_t, the mean square of x_0 minus the predicted x_0, a step (t, s) costs on average

.. math:: \tfrac12 \Big[\log\frac{v}{\tilde\beta} + \frac{\tilde\beta + w_{x_0}^2 e_t}{v} - 1\Big]
          \;\ge\; \tfrac12 \log\big(1 + (\mathrm{SNR}_s - \mathrm{SNR}_t)\, e_t\big)

nats a dimension if its variance is v. The least is at v = beta_tilde + w_x0^2 e_t [Analytic], as w_x0^2 / beta_tilde is the
difference of the SNRs. The costs of steps add up, so dynamic programming finds the plan with the least sum [Watson et al. 2021].
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from tinyddpm import plans
from tinyddpm._arrays import check
from tinyddpm._arrays.namespace import Table
from tinyddpm._arrays.value import FrozenValue
from tinyddpm._calibration import best_plan, best_plan_of_length, read, with_floor, write
from tinyddpm._losses.call import Decoder
from tinyddpm._network.nets import FirstHalf
from tinyddpm._numerics.double import Double
from tinyddpm.denoiser import Denoiser
from tinyddpm.diffusion import Diffusion

__all__ = ["Calibration"]


@dataclass(frozen=True, eq=False)
class Calibration(FrozenValue):
    """The errors of a network at each step of a chain, as `likelihood.calibrate` measures them, and the chains that follow.

    Tables have T + 1 entries, by the paper's t; entry 0 is NaN. Costs are in nats per dimension. A group is every tenth row.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyddpm import Denoiser, Diffusion, likelihood
    >>> from tinyddpm.analytic import GaussianData
    >>> d, data = Diffusion(), GaussianData(np.zeros(100), 0.04)
    >>> denoiser = Denoiser(data.net(d))
    >>> found = likelihood.calibrate(d, denoiser, data.sample(100, 0), decoder="density")
    >>> chain, best = found.chain(d, denoiser, 10)
    >>> bound = likelihood.vlb(chain, best, data.sample(100, 1), decoder="density").bits_per_dim.mean()
    >>> bool(abs(bound - found.bits_per_dim(found.timesteps(10))) < 0.1)
    True
    """

    d: Diffusion
    """The chain."""
    x0_mse: Table
    """Mean squared error of the predicted x_0, shape (T + 1,) or (T + 1, *sample shape)."""
    last_scale: Table
    """The decoder's best variance at a last step from t, in units of x0_mse[t], shape (T + 1,)."""
    group_mse: Table
    """Mean squared error of the predicted x_0 in each group, shape (groups, T + 1)."""
    group_last: Table
    """Cost of a last step from t in each group, shape (groups, T + 1)."""
    group_prior: Table
    """L_T of each group, shape (groups,)."""
    rows: int
    """The number of rows that were measured."""
    levels: int
    """Levels of the data."""
    decoder: Decoder
    """What p(x_0 | x_t) of the last step is."""
    predicts: str
    """What the network predicts."""
    clip_range: tuple[float, float] | None
    """The range that x_0 was clipped to, or None."""
    network: str = ""
    """What the caller knows the network by, such as a digest of its weights."""

    def timesteps(self, steps: int | None = None) -> tuple[int, ...]:
        """The plan with the least bound on the calibration data, exactly.

        Parameters
        ----------
        steps : int, optional
            The number of steps, each a network call, in 1..T. Default: the number whose best plan is best of all. More steps
            cost more: the variances of a chain can't tell it that errors at neighbouring steps are alike.

        Returns
        -------
        tuple of int
            ``steps + 1`` strictly decreasing entries from T to 0.

        Raises
        ------
        TypeError, ValueError
            If `steps` is not an int in 1..T.
        """
        last = np.append(np.inf, self._last_cost[1:])
        if steps is None:
            return best_plan(self._costs, last)
        return best_plan_of_length(self._costs, last, check.as_int("steps", steps, 1, self.d.T))

    def variance(self, timesteps: Iterable[int]) -> Table:
        """The best variances of the chain over a plan.

        Parameters
        ----------
        timesteps : iterable of int
            A plan from T to 0.

        Returns
        -------
        float64 array (len(timesteps),) or (len(timesteps), *sample shape)
            A table for ``Denoiser(variance=...)`` on ``d.respaced(timesteps)``; entry 0 is NaN.

        Raises
        ------
        TypeError, ValueError
            If `timesteps` is not a plan of this chain.
        """
        plan = np.array(self._plan(timesteps)[::-1])
        w_x0, _, beta_tilde = self.d.posterior_weights(plan[2:], plan[1:-1])
        along = (slice(None),) + (None,) * (self.x0_mse.ndim - 1)
        longer = beta_tilde[along] + w_x0[along] ** 2 * self.x0_mse[plan[2:]]
        last = np.asarray(self.last_scale[plan[1]] * with_floor(self.x0_mse[plan[1]], self.rows))
        return np.concatenate([np.full_like(last, np.nan)[None], last[None], longer])

    def bits_per_dim(self, timesteps: Iterable[int]) -> float:
        """The bound of the chain over a plan, with its best variances, on the calibration data.

        On other data of the same kind it is somewhat higher, the more the fewer the rows and the more the variances.

        Parameters
        ----------
        timesteps : iterable of int
            A plan from T to 0.

        Returns
        -------
        float
            Bits per dimension.

        Raises
        ------
        TypeError, ValueError
            If `timesteps` is not a plan of this chain.
        """
        plan = self._plan(timesteps)
        longer = sum(float(self._cost(t, [s])[0]) for t, s in zip(plan[:-2], plan[1:-1], strict=True))
        return (float(self._weights @ self.group_prior) + longer + float(self._last_cost[plan[-2]])) / math.log(2)

    def standard_error(self, timesteps: Iterable[int]) -> float:
        """The standard error of `bits_per_dim` over rows, from the groups, to first order in their errors.

        Parameters
        ----------
        timesteps : iterable of int
            A plan from T to 0.

        Returns
        -------
        float
            Bits per dimension; NaN for one row.

        Raises
        ------
        TypeError, ValueError
            If `timesteps` is not a plan of this chain.
        """
        plan, groups = self._plan(timesteps), len(self.group_prior)
        cost = self.group_prior + self.group_last[:, plan[-2]]
        for t, s in zip(plan[:-2], plan[1:-1], strict=True):
            gain = self._gain(t, [s])
            cost = cost + float(np.mean(gain / (2 * (1 + gain * self.x0_mse[t])))) * self.group_mse[:, t]
        return float(cost.std(ddof=1)) / math.sqrt(groups) / math.log(2) if groups > 1 else math.nan

    def chain(
        self, d: Diffusion, denoiser: Denoiser, steps: int | None = None, *, timesteps: Iterable[int] | None = None
    ) -> tuple[Diffusion, Denoiser]:
        """The best chain of this many steps, for `likelihood.vlb` and `Diffusion.sample`.

        Parameters
        ----------
        d : Diffusion
            The chain that was calibrated.
        denoiser : Denoiser
            The network that was calibrated. If it emits a variance, only its prediction is read from now on.
        steps : int, optional
            The number of steps. Default: as in `timesteps`.
        timesteps : iterable of int, optional
            The plan itself, instead of `steps`.

        Returns
        -------
        Diffusion, Denoiser
            The shorter chain, and the denoiser with its best variances.

        Raises
        ------
        TypeError, ValueError
            If `d` is another chain, `denoiser` predicts something else or clips otherwise, or the plan is wrong or named twice.
        """
        if steps is not None and timesteps is not None:
            raise ValueError("steps must be left out if timesteps is given")
        if check.as_instance("d", d, Diffusion) != self.d:
            raise ValueError(f"d must be the chain that was calibrated, {self.d}, got {d}")
        given = check.as_instance("denoiser", denoiser, Denoiser)
        for name, found, known in (("predicts", given.predicts, self.predicts), ("clip_x0", given.clip_range, self.clip_range)):
            if found != known:
                raise ValueError(f"denoiser must have {name} = {known!r} as when it was calibrated, got {found!r}")
        plan = self.timesteps(steps) if timesteps is None else self._plan(timesteps)
        fixed = replace(denoiser, net=FirstHalf(denoiser.net) if denoiser.learned else denoiser.net, variance="beta")
        return d.respaced(plan), replace(fixed.respaced(plan), variance=self.variance(plan))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, whole or not at all. Numbers are kept exactly.

        Parameters
        ----------
        path : path
            The file.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        log = self.d._log_alpha_bar
        values = [self.d.beta, log.hi, log.lo, *(getattr(self, name) for name in _TABLES[3:])]
        write(path, {name: getattr(self, name) for name in _PLAIN}, dict(zip(_TABLES, values, strict=True)))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read a file that `save` wrote.

        Parameters
        ----------
        path : path
            The file.

        Returns
        -------
        Calibration
            Equal to the one that was saved.

        Raises
        ------
        FileNotFoundError, ValueError
            If the file is missing, or is no such file; the message names it.
        """
        try:
            plain, tables = read(path, _PLAIN, _TABLES)
            beta, *log = (tables[name] for name in _TABLES[:3])
            clip = plain.pop("clip_range")
            values: dict[str, Any] = {name: tables[name] for name in _TABLES[3:]} | plain
            return cls(Diffusion._of(beta, Double(*log)), **values, clip_range=clip and tuple(clip))
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise ValueError(f"path must be a file that Calibration.save wrote, got {path}: {error}") from None

    def _plan(self, timesteps: Iterable[int]) -> tuple[int, ...]:
        plan = plans.checked(timesteps, self.d.T)
        if plan[0] != self.d.T:
            raise ValueError(f"timesteps must start at the calibrated chain's T = {self.d.T}, got {plan[0]}")
        return plan

    @cached_property
    def _weights(self) -> Table:
        """Each group's share of the rows."""
        return np.bincount(np.arange(self.rows) % len(self.group_prior)) / self.rows

    @cached_property
    def _last_cost(self) -> Table:
        return self._weights @ self.group_last

    @cached_property
    def _costs(self) -> Table:
        """The cost of each step (t, s), s >= 1, shape (T + 1, T + 1); infinite elsewhere."""
        costs = np.full((self.d.T + 1, self.d.T + 1), np.inf)
        for t in range(2, self.d.T + 1):
            costs[t, 1:t] = self._cost(t, np.arange(1, t))
        return costs

    def _gain(self, t: int, s: Any) -> Table:
        """SNR_s - SNR_t, shape (len(s), 1, ...) to go with the errors at t."""
        log_snr = self.d.log_snr
        gain: Table = np.exp(np.minimum(log_snr[s], 700.0)) * -np.expm1(log_snr[t] - log_snr[s])
        return gain.reshape(-1, *[1] * (self.x0_mse.ndim - 1))

    def _cost(self, t: int, s: Any) -> Table:
        """The cost of the steps from t to each s: 1/2 log(1 + (SNR_s - SNR_t) e_t), a mean over dimensions."""
        return np.log1p(self._gain(t, s) * self.x0_mse[t]).reshape(len(s), -1).mean(axis=1) / 2  # type: ignore[no-any-return]


_TABLES = ("beta", "log_alpha_bar", "log_alpha_bar_rest", "x0_mse", "last_scale", "group_mse", "group_last", "group_prior")
_PLAIN = ("rows", "levels", "decoder", "predicts", "clip_range", "network")
