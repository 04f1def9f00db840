"""Losses, the terms of the bound, guidance, and data with a known distribution, on the backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np

from tinyddpm import Denoiser, Diffusion, conversions, guidance, likelihood, losses, schedules
from tinyddpm._losses.call import target
from tinyddpm.analytic import GaussianData, MixtureData
from tinyddpm.noise import normal
from tinyddpm.verify._core import Identities, Place, difference, relative_error
from tinyddpm.verify._process import STEPS, chain
from tinyddpm.verify._truth import Chain

identities = Identities()

_LATE = np.array([2, 3, 5, 10, 100, 500, 999, 1000])  # from t = 2 on the terms of the bound are divergences


def _levels(place: Place) -> Any:
    """Return data on 256 levels."""
    return place.rounded(np.random.default_rng(3).integers(0, 256, (8, 4)) * 2 / 255 - 1)


def _net(x: Any, t: Any) -> Any:
    return 0.3 * x + 0.1


def _returning(out: Any) -> Callable[[Any, Any], Any]:
    """Return a network whose output is always `out`."""
    return lambda x, t: out


@identities.add(
    "losses.vlb is KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))",
    "nats",
    eps=256,
    why="relative to 1 + KL; the rounding of the two means counts in units of a standard deviation of 1/200",
)
def _divergence(place: Place) -> float:
    d, x0, eps = chain(), place.array(_levels(place)), place.array(place.draw())
    x_t, error = d.q_sample(x0, _LATE, eps), 0.0
    for kind in conversions.KINDS:
        for variance in ("beta", "beta_tilde"):
            right = d.convert(d.convert(eps, x_t, _LATE, "eps", "x0"), x_t, _LATE, "x0", kind)
            denoiser = Denoiser(_returning(0.95 * right), kind, variance=variance, clip_x0=False)
            q, p = d.posterior(x_t, x0, _LATE), denoiser.p(d, x_t, _LATE)
            kl = np.mean(place.host(q.kl(p)), axis=1)
            error = max(error, difference(place.host(losses.vlb(d, denoiser, x0, _LATE, eps)), kl, 1 + kl))
    return error


@identities.add(
    "L_{t-1} is beta^2 / (2 sigma^2 alpha (1 - alpha_bar)) times the squared error of eps",
    "relative",
    eps=64,
    why="a few roundings, and a variance from its logarithm",
)
def _weight(place: Place) -> float:
    d, exact, x0, eps = chain(), Chain(schedules.linear(1000).tolist()), _levels(place), place.draw()
    denoiser = Denoiser(_net, variance="beta_tilde", clip_x0=False)
    found = losses.vlb(d, denoiser, place.array(x0), _LATE, place.array(eps))
    square = place.host(losses.simple(d, denoiser, place.array(x0), _LATE, place.array(eps)))
    weights = [
        exact.beta[t] ** 2 / (2 * exact.weights(t, t - 1)[2] * (1 - exact.beta[t]) * (1 - exact.alpha_bar[t])) for t in _LATE
    ]
    return relative_error(place.host(found), (w * Decimal(float(v)) for w, v in zip(weights, square, strict=True)))


@identities.add("L_T in closed form", "nats", eps=64, why="relative to itself: a sum of positive terms")
def _prior(place: Place) -> float:
    d, x0 = Diffusion(schedules.linear(30, 1e-3, 0.2)), _levels(place)
    found = likelihood.vlb(d, Denoiser(_net), place.array(x0)).prior
    a = Chain(schedules.linear(30, 1e-3, 0.2).tolist()).alpha_bar[-1]
    squares = [a * sum(Decimal(float(x)) ** 2 for x in row) for row in x0]
    return relative_error(found, [(square - 4 * (a + (1 - a).ln())) / 2 for square in squares])


@identities.add(
    "the bound is L_T plus T times the mean of losses.vlb", "nats", eps=64, why="relative to itself: the same sum in two orders"
)
def _sum(place: Place) -> float:
    d, x0, error = Diffusion(schedules.linear(12, 1e-3, 0.3)), place.array(_levels(place)), 0.0
    for variance in ("beta", "beta_tilde"):
        denoiser = Denoiser(_net, variance=variance, clip_x0=False)
        bound = likelihood.vlb(d, denoiser, x0, seed=5)
        total = bound.prior.copy()
        for t in range(1, d.T + 1):
            eps = normal(5, range(8), t, (4,), stream=1, backend=place.backend.name, device=place.device, dtype=place.dtype)
            total += 4 * place.host(losses.vlb(d, denoiser, x0, t, eps))
        error = max(error, difference(bound.total, total, total))
    return error


@identities.add("losses.hybrid is simple + weight T vlb", "relative", eps=16, why="one rounded sum")
def _hybrid(place: Place) -> float:
    d, x0, eps = chain(), place.array(_levels(place)), place.array(place.draw())
    args = d, Denoiser(_net), x0, STEPS, eps
    simple, vlb, hybrid = (place.host(f(*args)) for f in (losses.simple, losses.vlb, losses.hybrid))
    return difference(hybrid / (simple + 0.001 * d.T * vlb), 1.0)


@identities.add(
    "weighting 'snr' is SNR times the squared error of x_0, for every kind of prediction",
    "relative",
    eps=64,
    why="an error is a difference of numbers of its own size",
)
def _snr(place: Place) -> float:
    d, x0, eps, error = chain(), place.array(_levels(place)), place.array(place.draw()), 0.0
    snr = np.exp(d.log_snr[STEPS])
    for kind in conversions.KINDS:
        denoiser = Denoiser(lambda x, t: 0.0 * x, kind, clip_x0=False)
        found = place.host(losses.weighted(d, denoiser, x0, STEPS, eps, "snr"))
        x_t, slope = d.q_sample(x0, STEPS, eps), d.conversion(kind, "x0")[0][STEPS]
        truth = place.host(target(d, kind, x0, x_t, STEPS, eps, place.backend.namespace()))
        error = max(error, difference(found / (snr * slope**2 * np.mean(truth**2, axis=1)), 1.0))
    return error


@identities.add(
    "the learned range runs from beta_tilde at -1 to beta at 1", "relative", eps=32, why="exponentials of logarithms of up to 10"
)
def _learned_range(place: Place) -> float:
    d, x, error = chain(), place.draw(8, 4), 0.0
    for end, table in ((-1.0, d.beta_tilde), (1.0, d.beta)):
        out = place.array(np.concatenate([x, np.full_like(x, end)], axis=1))
        p = Denoiser(_returning(out), variance="learned_range").p(d, place.array(x), _LATE)
        error = max(error, difference(place.host(p.var) / table[_LATE][:, None], 1.0))
    return error


@identities.add(
    "p is the posterior at the predicted x_0, for every kind of prediction",
    "relative",
    eps=16,
    why="relative to the size of the terms; x_0 from mu or eps is magnified and then reduced again",
)
def _p(place: Place) -> float:
    d, x0, x_t = chain(), place.draw(seed=1), place.draw(seed=2)
    mean, error = place.host(d.posterior(place.array(x_t), place.array(x0), _LATE).mean), 0.0
    for kind in conversions.KINDS:
        out = d.convert(place.array(x0), place.array(x_t), _LATE, "x0", kind)
        p = Denoiser(_returning(out), kind, clip_x0=False).p(d, place.array(x_t), _LATE)
        a, b = d.conversion("x0", kind)
        c, _ = d.conversion(kind, "mu")
        parts = np.abs((c * a)[_LATE][:, None] * x0) + (0 if b is None else np.abs((c * b)[_LATE][:, None] * x_t))
        error = max(error, difference(place.host(p.mean), mean, parts + np.abs(x_t)))
    return error


@identities.add(
    "optimal_variance of a network that returns 0",
    "relative",
    eps=32,
    why="G_t is 0, so the variance is beta_tilde + w_x0^2 min(1 / SNR, 1)",
)
def _optimal(place: Place) -> float:
    d = Diffusion(schedules.cosine(20))
    found = likelihood.optimal_variance(d, Denoiser(lambda x, t: 0.0 * x), place.array(_levels(place)))[1:]
    w_x0, _, beta_tilde = d.posterior_weights(np.arange(1, d.T + 1))
    return difference(found / (beta_tilde + w_x0**2 * np.minimum(np.exp(-d.log_snr[1:]), 1.0)), 1.0)


# Guidance, and data with a known distribution.


@identities.add(
    "classifier-free guidance is linear in the scale: 0 is unconditional, 1 is conditional",
    "absolute",
    eps=16,
    why="numbers of order 1; at 0 and 1 the output is the network's own",
)
def _classifier_free(place: Place) -> float:
    x, t = place.array(place.draw()), 5

    def net(x_t: Any, t: Any, y: float) -> Any:
        return x_t * (0.5 + y)

    out = {s: place.host(guidance.classifier_free(net, 0.25, s, 0.0)(x, t)) for s in (0.0, 1.0, 3.0)}
    ends = max(difference(out[0.0], place.host(net(x, t, 0.0))), difference(out[1.0], place.host(net(x, t, 0.25))))
    return max(difference(out[3.0], 3 * out[1.0] - 2 * out[0.0]), math.inf if ends else 0.0)


_MIXTURE = MixtureData([0.3, 0.7], [[-0.5, 0.2, 0.0, 0.3], [0.4, 0.1, -0.3, 0.3]], [[0.04], [0.02]])


def _parts() -> list[GaussianData]:
    return [GaussianData(m, v) for m, v in zip(_MIXTURE.means, _MIXTURE.vars, strict=True)]


@identities.add(
    "a Gaussian's E[eps | x_t] is -sigma times its score", "relative", eps=16, why="relative to the sizes of x_t and the mean"
)
def _gaussian_net(place: Place) -> float:
    d, x_t, data = chain(), place.draw(), _parts()[0]
    found = place.host(data.net(d)(place.array(x_t), STEPS))
    error = 0.0
    for row, x, t in zip(found, x_t, STEPS.tolist(), strict=True):
        law, sigma = data.marginal(d, t), d.sqrt_one_minus_alpha_bar[t]
        error = max(error, difference(row, sigma * (x - law.mean) / law.var, sigma * (np.abs(x) + np.abs(law.mean)) / law.var))
    return error


@identities.add(
    "a mixture's E[eps | x_t] is its components' average, weighted by their posterior probabilities",
    "absolute",
    eps=256,
    why="a probability is the exponential of a log density of up to 200",
)
def _mixture_net(place: Place) -> float:
    d, x_t, error = chain(), place.array(place.draw()), 0.0
    for t in STEPS.tolist():
        joint = [np.log(w) + place.host(p.marginal(d, t).log_prob(x_t)) for w, p in zip(_MIXTURE.weights, _parts(), strict=True)]
        total = place.host(_MIXTURE.marginal(d, t).log_prob(x_t))
        means = [np.exp(j - total)[:, None] * place.host(p.net(d)(x_t, t)) for j, p in zip(joint, _parts(), strict=True)]
        error = max(error, difference(place.host(_MIXTURE.net(d)(x_t, t)), sum(means)))
    return error


@identities.add(
    "classifier guidance with the exact classifier is the network of the class",
    "absolute",
    eps=64,
    why="scores of up to 100 cancel",
)
def _classifier(place: Place) -> float:
    d, x_t, part = chain(), place.array(place.draw()), _parts()[1].net(chain())

    def gradient(x: Any, t: Any) -> Any:
        return d.convert(part(x, STEPS) - _MIXTURE.net(d)(x, STEPS), x, STEPS, "eps", "score")

    guided = Denoiser(guidance.classifier(_MIXTURE.net(d), gradient, 1.0), clip_x0=False)
    return difference(place.host(guided.eps(d, x_t, STEPS)), place.host(part(x_t, STEPS)))
