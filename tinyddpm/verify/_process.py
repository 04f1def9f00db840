"""The known process on the backend: q, the posterior, and conversions of predictions."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache, partial
from itertools import permutations
from typing import Any

import numpy as np

from tinyddpm import Diffusion, Gaussian, conversions, schedules
from tinyddpm.verify._core import Identities, Place, difference, relative_error
from tinyddpm.verify._truth import Chain

identities = Identities()

STEPS = np.array([1, 2, 3, 10, 100, 500, 999, 1000])
"""A step t for each of 8 samples."""
_PAIRS = ((2, 1), (10, 3), (500, 100), (1000, 999), (1000, 2))  # (t, s)


@lru_cache(maxsize=1)
def chain() -> Diffusion:
    """Return the process of [Ho]."""
    return Diffusion(schedules.linear(1000))


@lru_cache(maxsize=1)
def _exact() -> Chain:
    return Chain(schedules.linear(1000).tolist())


@identities.add(
    "q(x_t | x_0) is N(sqrt(alpha_bar_t) x_0, 1 - alpha_bar_t)",
    "relative",
    eps=32,
    why="a variance is the exponential of a logarithm of up to 9, which magnifies the logarithm's rounding",
)
def _q(place: Place) -> float:
    x0, a = place.draw(), [_exact().alpha_bar[t] for t in STEPS]
    q = chain().q(place.array(x0), STEPS)
    mean = relative_error(place.host(q.mean), (v.sqrt() * Decimal(float(x)) for v, row in zip(a, x0, strict=True) for x in row))
    return max(mean, relative_error(place.host(q.var), [1 - v for v in a]))


@identities.add(
    "q_sample is q's mean plus q's standard deviation times eps", "relative", eps=32, why="the same rounding as in q's variance"
)
def _q_sample(place: Place) -> float:
    x0, eps = (place.array(place.draw(seed=k)) for k in range(2))
    q = chain().q(x0, STEPS)
    scale = np.abs(place.host(q.mean)) + np.abs(place.host(q.std) * place.host(eps))
    return difference(place.host(chain().q_sample(x0, STEPS, eps)), place.host(q.sample(eps)), scale)


@identities.add("two steps of q compose to one", "relative", eps=64, why="sums of positive terms with a few roundings each")
def _composes(place: Place) -> float:
    d, one, error = chain(), place.array(np.ones((8, 4))), 0.0
    for s, u, t in ((0, 1, 2), (1, 2, 3), (3, 10, 500), (100, 500, 1000), (0, 999, 1000)):
        first, last, both = (d.q_between(one, *pair) for pair in ((s, u), (u, t), (s, t)))
        mean, var = place.host(last.mean), place.host(last.var)
        error = max(error, difference(place.host(first.mean) * mean / place.host(both.mean), 1.0))
        error = max(error, difference((mean**2 * place.host(first.var) + var) / place.host(both.var), 1.0))
    return error


@identities.add(
    "Bayes' rule: q(x_s | x_t, x_0) q(x_t | x_0) = q(x_t | x_s) q(x_s | x_0)",
    "nats",
    eps=2048,
    why="a density depends on differences of numbers up to 200 standard deviations in size",
)
def _bayes(place: Place) -> float:
    d, (x0, z, w) = chain(), (place.array(place.draw(seed=k)) for k in range(3))
    error = 0.0
    for t, s in _PAIRS:
        x_s = d.q_sample(x0, s, z)
        forward = d.q_between(x_s, s, t)
        x_t = forward.sample(w)
        left = d.posterior(x_t, x0, t, s).log_prob(x_s) + d.q(x0, t).log_prob(x_t)
        right = forward.log_prob(x_t) + d.q(x0, s).log_prob(x_s)
        error = max(error, difference(place.host(left), place.host(right)))
    return error


@identities.add("the posterior into s = 0 is the point x_0", "absolute", why="the weights there are 1 and 0")
def _posterior_at_zero(place: Place) -> float:
    x_t, x0 = (place.draw(seed=k) for k in range(2))
    p = chain().posterior(place.array(x_t), place.array(x0), STEPS, 0)
    return max(difference(place.host(p.mean), x0), difference(place.host(p.var), 0.0))


@identities.add("the posterior averaged over q(x_t | x_0) is q(x_s | x_0)", "relative", eps=64, why="sums of positive terms")
def _tower(place: Place) -> float:
    d, one, zero, error = chain(), place.array(np.ones((8, 4))), place.array(np.zeros((8, 4))), 0.0
    for t, s in _PAIRS:
        q_t, q_s = d.q(one, t), d.q(one, s)
        mean, per_x_t = d.posterior(q_t.mean, one, t, s), d.posterior(one, zero, t, s)
        var = place.host(mean.var) + place.host(per_x_t.mean) ** 2 * place.host(q_t.var)
        error = max(error, difference(place.host(mean.mean) / place.host(q_s.mean), 1.0))
        error = max(error, difference(var / place.host(q_s.var), 1.0))
    return error


# Conversions. Each is a sum a * value + b * x_t, so its error is relative to |a * value| + |b * x_t|.


def _convert(source: conversions.Kind, place: Place) -> float:
    value, x_t = place.draw(seed=1), place.draw(seed=2)
    error = 0.0
    for target in conversions.KINDS:
        weights = [_exact().convert(source, target, t) for t in STEPS]
        parts = [
            (a * Decimal(float(v)), b * Decimal(float(x)))
            for (a, b), *rows in zip(weights, value, x_t, strict=True)
            for v, x in zip(*rows, strict=True)
        ]
        result = chain().convert(place.array(value), place.array(x_t), STEPS, source, target)
        error = max(error, relative_error(place.host(result), [p + q for p, q in parts], [abs(p) + abs(q) for p, q in parts]))
    return error


for _kind in conversions.KINDS:
    identities.add(
        f"conversions from {_kind} against exact arithmetic", "relative", eps=8, why="two rounded products and their sum"
    )(partial(_convert, _kind))


@identities.add("conversions there and back", "relative", eps=16, why="relative to the condition of the two maps together")
def _there_and_back(place: Place) -> float:
    d, value, x_t = chain(), place.draw(seed=1), place.draw(seed=2)
    error = 0.0
    for source, target in permutations(conversions.KINDS, 2):
        there = d.convert(place.array(value), place.array(x_t), STEPS, source, target)
        back = d.convert(there, place.array(x_t), STEPS, target, source)
        pairs: list[tuple[conversions.Kind, conversions.Kind]] = [(source, target), (target, source)]
        (a, b), (c, e) = (_on_host(d.conversion(*pair)) for pair in pairs)
        scale = np.abs(c) * (np.abs(a * value) + np.abs(b * x_t)) + np.abs(e * x_t)
        error = max(error, difference(place.host(back), value, scale))
    return error


def _on_host(tables: tuple[Any, Any]) -> list[Any]:
    return [np.zeros((8, 1)) if table is None else table[STEPS][:, None] for table in tables]


@identities.add("v is a rotation: x_0 = a x_t - sigma v, eps = sigma x_t + a v", "absolute", eps=16, why="numbers of at most 4")
def _v(place: Place) -> float:
    d, x0, eps = chain(), place.draw(seed=1), place.draw(seed=2)
    x_t = d.q_sample(place.array(x0), STEPS, place.array(eps))
    v = d.q_sample(place.array(eps), STEPS, place.array(-x0))
    back = (d.convert(v, x_t, STEPS, "v", kind) for kind in ("x0", "eps"))
    return max(difference(place.host(x), y) for x, y in zip(back, (x0, eps), strict=True))


@identities.add(
    "at alpha_bar_T = 0: x_T is eps, v is -x_0, and x_0 from eps is refused", "absolute", why="weights of 0, 1 and -1"
)
def _zero_terminal(place: Place) -> float:
    d = Diffusion(schedules.zero_terminal_snr(schedules.linear(100)))
    x0, eps = place.array(place.draw(seed=1)), place.array(place.draw(seed=2))
    x_T = d.q_sample(x0, 100, eps)
    v = d.convert(x0, x_T, 100, "x0", "v")
    pairs = [(x_T, eps), (-v, x0), (d.convert(v, x_T, 100, "v", "x0"), x0), (d.convert(v, x_T, 100, "v", "eps"), eps)]
    refused = _raises(ValueError, lambda: d.convert(eps, x_T, 100, "eps", "x0"))
    return max(float(not refused), *(difference(place.host(x), place.host(y)) for x, y in pairs))


def _raises(kind: type[Exception], call: Callable[[], object]) -> bool:
    try:
        call()
    except kind:
        return True
    return False


@identities.add(
    "an int t is the same as an array of that t for each sample", "relative", eps=8, why="a coefficient may be rounded once more"
)
def _step_forms(place: Place) -> float:
    d, x, y = chain(), place.array(place.draw(seed=1)), place.array(place.draw(seed=2))
    calls: list[Callable[[Any, Any], Any]] = [
        lambda t, s: d.q_sample(x, t, y),
        lambda t, s: d.q_between(x, s, t).mean,
        lambda t, s: d.posterior(x, y, t, s).mean,
        lambda t, s: d.convert(x, y, t, "v", "mu"),
    ]
    error = 0.0
    for t, s in _PAIRS:
        for call in calls:
            one, each = (place.host(call(*pair)) for pair in ((t, s), (np.full(8, t), np.full(8, s))))
            error = max(error, difference(one, each, np.abs(place.host(x)) + np.abs(place.host(y))))
    return error


# Values and copies.


@identities.add("a Gaussian is equal, hashed and pickled by content", "absolute", why="the number of comparisons that fail")
def _values(place: Place) -> float:
    first, second = (Gaussian(place.array(np.arange(3.0)), -1.0) for _ in range(2))
    copies = second, pickle.loads(pickle.dumps(first))
    wrong = sum(first != other or hash(first) != hash(other) for other in copies)
    return float(wrong + (first == Gaussian(place.array(np.ones(3)), -1.0)))


@identities.add("an array copied to the device and back keeps every bit", "absolute", why="the number of values that changed")
def _round_trip(place: Place) -> float:
    tiny = np.finfo(place.dtype).smallest_subnormal
    sent = np.append(place.draw(1000), place.rounded([0.0, -0.0, np.inf, -np.inf, np.nan, float(tiny), -float(tiny)]))
    back = place.backend.to_numpy(place.array(sent))
    bits = f"u{sent.itemsize}"
    return float(np.sum(back.astype(place.dtype).view(bits) != sent.view(bits)))
