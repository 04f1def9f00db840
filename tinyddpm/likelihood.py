"""The variational bound on a data set's likelihood, term by term, and the variances that make it tightest.

At fixed x_t all predictions are linear in each other, so with a fixed variance every term of step t, its KL and its errors of x_0 and
eps, is a number times one squared distance: the loop does one reduction a step, and the rest is host arithmetic in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyddpm import _array, backends, gaussian
from tinyddpm._array import Array
from tinyddpm._progress import progress as shown
from tinyddpm.losses import check_range, eps_error, target
from tinyddpm.noise import normal

if TYPE_CHECKING:
    from tinyddpm.denoiser import Denoiser
    from tinyddpm.diffusion import Diffusion

__all__ = ["VLB", "Curve", "optimal_variance", "vlb"]

Table = NDArray[np.float64]

_STREAM = 1  # of the noise that likelihoods are estimated with
