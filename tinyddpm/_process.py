"""The known process: q, its posterior, and conversions between predictions.

`Diffusion` adds plans and sampling; what stands below those, such as `Denoiser` and the losses, needs `Process` only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinyddpm import schedules
from tinyddpm._arrays.check import allocating, as_int
from tinyddpm._arrays.namespace import A, cast_like, check_same_shape, dtype_name, namespace_of, quietly, widened
from tinyddpm._arrays.steps import Named, Steps, check_steps, gather, number
from tinyddpm._numerics import double
from tinyddpm._numerics.tables import Tables
from tinyddpm.conversions import Kind
from tinyddpm.gaussian import Gaussian


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Process(Tables):
    """The forward process q with given betas; `Diffusion` documents it."""

    def __init__(self, beta: ArrayLike | None = None) -> None:
        table = np.append(0.0, schedules.checked(schedules.linear() if beta is None else beta))
        self._set(table, double.cumsum(double.log(double.two_sum(1.0, -table))))

    @quietly
    def q(self, x0: A, t: Steps) -> Gaussian:
        r"""The distribution of x_t given x_0.

        .. math:: q(x_t | x_0) = N(\sqrt{\bar\alpha_t}\, x_0, (1 - \bar\alpha_t) I)  \qquad \text{[Ho eq. 4]}

        Parameters
        ----------
        x0 : array (B, ...)
            Data.
        t : int or integer array (B,) or ()
            Step in 0..T.

        Returns
        -------
        Gaussian
            Its mean has the shape, library, dtype and device of `x0`.

        Raises
        ------
        TypeError, ValueError
            If `x0` is not a floating-point array, or `t` not a step in 0..T.

        Examples
        --------
        >>> import numpy as np
        >>> from tinyddpm import Diffusion
        >>> Diffusion([0.36]).q(np.ones((1, 2)), 1).mean.tolist()
        [[0.8, 0.8]]
        """
        xp = namespace_of(x0=x0)
        t = check_steps("t", t, x0, xp, 0, self.T)
        mean = gather(Named(self, "sqrt_alpha_bar"), t, x0, xp) * x0
        return Gaussian(mean, gather(Named(self, "_log_one_minus_alpha_bar"), t, x0, xp))

    def q_sample(self, x0: A, t: Steps, eps: A) -> A:
        r"""A sample of x_t given x_0, as a function of the noise.

        .. math:: x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon  \qquad \text{[Ho eq. 4]}

        Parameters
        ----------
        x0 : array (B, ...)
            Data.
        t : int or integer array (B,) or ()
            Step in 0..T.
        eps : array (B, ...)
            Standard normal noise of x0's shape and library.

        Returns
        -------
        array (B, ...)
            x_t, in the library, dtype and on the device of `x0`.

        Raises
        ------
        TypeError, ValueError
            If an array is not floating point, the libraries or shapes differ, or `t` is not a step in 0..T.

        Examples
        --------
        >>> import numpy as np
        >>> from tinyddpm import Diffusion
        >>> Diffusion([0.36]).q_sample(np.ones((1, 2)), 1, np.array([[0.0, 1.0]])).round(6).tolist()
        [[0.8, 1.4]]
        """
        xp = namespace_of(x0=x0, eps=eps)
        check_same_shape("eps", eps, "x0", x0)
        t = check_steps("t", t, x0, xp, 0, self.T)
        return self._q_sample(x0, t, eps, xp)

    @quietly
    def _q_sample(self, x0: A, t: Any, eps: A, xp: Any) -> A:
        """`q_sample` of checked arguments."""
        signal, noise = (gather(Named(self, f"sqrt_{name}"), t, x0, xp) for name in ("alpha_bar", "one_minus_alpha_bar"))
        return signal * x0 + noise * cast_like(eps, x0, xp)  # type: ignore[no-any-return]

    @quietly
    def q_between(self, x_s: A, s: Steps, t: Steps) -> Gaussian:
        r"""The distribution of x_t given an earlier state x_s.

        .. math:: q(x_t | x_s) = N(\sqrt{\alpha_{t|s}}\, x_s, \beta_{t|s} I),
                  \quad \alpha_{t|s} = \alpha_{s+1} \cdots \alpha_t, \quad \beta_{t|s} = 1 - \alpha_{t|s}

        This is [Ho eq. 2], composed.

        Parameters
        ----------
        x_s : array (B, ...)
            The state at s.
        s, t : int or integer array (B,) or ()
            Steps with 0 <= s < t <= T.

        Returns
        -------
        Gaussian
            Its mean has the shape, library, dtype and device of `x_s`.

        Raises
        ------
        TypeError, ValueError
            If `x_s` is not a floating-point array, or (t, s) not a pair of steps.

        Examples
        --------
        >>> import numpy as np
        >>> from tinyddpm import Diffusion
        >>> Diffusion([0.5, 0.36]).q_between(np.ones((1, 1)), 1, 2).mean.tolist()
        [[0.8]]
        """
        xp = namespace_of(x_s=x_s)
        w_xs, log_beta = self._step_weights(*self._checked_pair(t, s, x_s, xp), x_s, xp, "w_xs", "log_beta")
        return Gaussian(w_xs * x_s, log_beta)

    @quietly
    def posterior(self, x_t: A, x0: A, t: Steps, s: Steps | None = None) -> Gaussian:
        r"""The distribution of an earlier state x_s given x_t and x_0; by default s = t - 1.

        .. math:: q(x_s | x_t, x_0) = N\Big(\frac{\sqrt{\bar\alpha_s}\, \beta_{t|s}}{1 - \bar\alpha_t} x_0
                  + \frac{\sqrt{\alpha_{t|s}} (1 - \bar\alpha_s)}{1 - \bar\alpha_t} x_t,
                  \frac{1 - \bar\alpha_s}{1 - \bar\alpha_t} \beta_{t|s} I\Big)  \qquad \text{[Ho eq. 6, 7]}

        Parameters
        ----------
        x_t, x0 : array (B, ...)
            The state at t, and the data.
        t : int or integer array (B,) or ()
            Step in 1..T.
        s : int or integer array (B,) or (), optional
            Step in 0..t-1. Default: t - 1. At s = 0 the posterior is the point x_0.

        Returns
        -------
        Gaussian
            Its mean has the shape, library, dtype and device of `x_t`.

        Raises
        ------
        TypeError, ValueError
            If an array is not floating point, the libraries or shapes differ, or (t, s) is not a pair of steps.

        Examples
        --------
        >>> import numpy as np
        >>> from tinyddpm import Diffusion
        >>> posterior = Diffusion([0.1, 0.2]).posterior(np.ones((1, 1)), np.zeros((1, 1)), 2)
        >>> round(posterior.mean.item(), 4), round(posterior.var.item(), 4)
        (0.3194, 0.0714)
        """
        xp = namespace_of(x_t=x_t, x0=x0)
        check_same_shape("x0", x0, "x_t", x_t)
        pair = self._checked_pair(t, s, x_t, xp)
        w_x0, w_xt, log_beta_tilde = self._step_weights(*pair, x_t, xp, "w_x0", "w_xt", "log_beta_tilde")
        return Gaussian(w_x0 * cast_like(x0, x_t, xp) + w_xt * x_t, log_beta_tilde)

    def convert(self, value: A, x_t: A, t: Steps, source: Kind, target: Kind) -> A:
        """A prediction at (x_t, t) as the equivalent prediction of another kind; `tinyddpm.conversions` has the formulas.

        Parameters
        ----------
        value : array (B, ...)
            The prediction.
        x_t : array (B, ...)
            The state at which it was made.
        t : int or integer array (B,) or ()
            Step in 1..T.
        source, target : {"eps", "x0", "mu", "v", "score"}
            What `value` predicts and what is wanted; "mu" is the posterior's mean at s = t - 1.

        Returns
        -------
        array (B, ...)
            In the library, dtype and on the device of `value`. NaN at steps of a device array `t` without an equivalent.

        Raises
        ------
        ValueError
            If there is no equivalent at a step that the host can read, e.g. x_0 from eps at alpha_bar_t = 0.
        TypeError, LookupError
            If an array is not floating point, the libraries differ, or a kind is unknown.

        Examples
        --------
        >>> import numpy as np
        >>> from tinyddpm import Diffusion
        >>> eps, x_t = np.zeros((1, 1)), np.full((1, 1), 0.8)
        >>> Diffusion([0.36]).convert(eps, x_t, 1, "eps", "x0").tolist()
        [[1.0]]
        """
        xp = namespace_of(value=value, x_t=x_t)
        check_same_shape("value", value, "x_t", x_t)
        return self._convert(value, x_t, check_steps("t", t, value, xp, 1, self.T), source, target, xp)

    @quietly
    def _convert(self, value: A, x_t: A, t: Any, source: Kind, target: Kind, xp: Any) -> A:
        """`convert` of checked arrays and steps."""
        wide = widened(value, xp)
        slope = self._slope(wide, t, source, target, xp)
        if source == target and isinstance(t, int | np.ndarray):
            return value
        converted = slope * wide
        if source != target and {source, target} != {"eps", "score"}:  # else x_t has no part in it
            part = (source, target, float(xp.finfo(wide.dtype).max), 1)
            converted = converted + gather(Named(self, Process._conversion_part, part), t, wide, xp) * cast_like(x_t, wide, xp)
        return cast_like(converted, value, xp)  # type: ignore[no-any-return]

    def _slope(self, value: A, t: Any, source: Kind, target: Kind, xp: Any) -> Any:
        """What a prediction is multiplied by in `convert`; ValueError if there is none at a step t that the host can read."""
        limit = float(xp.finfo(value.dtype).max)
        if isinstance(t, int | np.ndarray):
            missing = number(self, Process._missing, (source, target, limit, t))
            if missing > 0:
                wrong = int(missing)
                raise ValueError(f"t must be a step at which {target} follows from {source}, got {wrong}, where alpha_bar is "
                                 f"{number(self, 'alpha_bar', (), wrong)}, in {dtype_name(value)}")  # fmt: skip
        return gather(Named(self, Process._conversion_part, (source, target, limit, 0)), t, value, xp)

    def _missing(self, source: Kind, target: Kind, limit: float, t: Any) -> int:
        """The first of the steps t at which there is no conversion, or 0."""
        missing = np.isnan(self._conversion_part(source, target, limit, 0)[t])
        return int(np.extract(missing, t)[0]) if np.any(missing) else 0

    def _conversion_part(self, source: Kind, target: Kind, limit: float, part: int) -> Any:
        """The table of one coefficient of `conversion`, NaN where one is beyond `limit`, the data's range."""
        parts = [table for table in self.conversion(source, target) if table is not None]
        return np.where(np.logical_and.reduce([np.abs(table) <= limit for table in parts]), parts[part], np.nan)

    def sample_t(self, n: int, seed: int) -> NDArray[np.int64]:
        """Steps drawn uniformly from 1..T: a pure function of the seed.

        Parameters
        ----------
        n : int
            How many.
        seed : int
            In 0..2**64 - 1.

        Returns
        -------
        int64 array (n,)

        Raises
        ------
        TypeError, ValueError
            If an argument is not such an int.

        Examples
        --------
        >>> from tinyddpm import Diffusion
        >>> Diffusion().sample_t(3, seed=0).tolist()
        [35, 12, 612]
        """
        n = as_int("n", n, 0, 2**62)
        rng = np.random.Generator(np.random.Philox(key=as_int("seed", seed, 0, 2**64 - 1)))
        with allocating("n", n):
            return rng.integers(1, self.T, size=n, endpoint=True)
