"""Guidance: held against data whose conditional laws are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import Library
from strategies import batch

from tinyddpm import Denoiser, Diffusion, guidance, schedules
from tinyddpm.analytic import GaussianData, MixtureData
from tinyddpm.conversions import KINDS

CHAIN = Diffusion(schedules.linear(30, 1e-3, 0.3))
MIXTURE = MixtureData([0.3, 0.7], batch(2, 1, 3, seed=1) / 2, [0.05, 0.2])
CLASSES = [GaussianData(m, v) for m, v in zip(MIXTURE.means, MIXTURE.vars, strict=True)]
T = np.array([1, 2, 15, 29])  # alpha_bar is far from 0: x_0 exists


def classed(x_t: Any, t: Any, y: Any) -> Any:
    """The exact network: of class y where y is 0 or 1, of the mixture where it is -1."""
    nets = [data.net(CHAIN)(x_t, t) for data in (*CLASSES, MIXTURE)]
    return sum((y == k)[:, None, None] * out for k, out in zip((0, 1, -1), nets, strict=True))


def class_gradient(t_of: Callable[[Any], Any] = lambda t: t, y: int = 1) -> Callable[..., Any]:
    """grad log p(y | x_t) by Torch's differentiation of Bayes' rule."""
    torch = pytest.importorskip("torch")

    def grad(x_t: Any, t: Any) -> Any:
        steps = t_of(np.asarray(t))
        x = torch.tensor(np.asarray(x_t), requires_grad=True)
        log_p = [
            CLASSES[y].marginal(CHAIN, int(k)).log_prob(row[None]) - MIXTURE.marginal(CHAIN, int(k)).log_prob(row[None])
            for row, k in zip(x, steps, strict=True)
        ]
        sum(log_p).sum().backward()
        return x.grad.numpy()

    return grad


class Converted:
    """The mixture's exact network in another kind of prediction."""

    def __init__(self, kind: str, first_t: int = 1) -> None:
        self.kind, self.first_t = kind, first_t

    def __call__(self, x_t: Any, t: Any) -> Any:
        t = t + 1 - self.first_t
        return CHAIN.convert(MIXTURE.net(CHAIN)(x_t, t), x_t, t, "eps", self.kind)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5, -0.5])
def test_classifier_free_is_the_tilted_score(scale: float) -> None:
    """The score of q(x | y)^scale q(x)^(1 - scale); scales 0 and 1 are the two networks, bit for bit."""
    x, y = batch(4, 1, 3), np.array([0, 1, 1, 0])
    guided = guidance.classifier_free(classed, y, scale, -1)(x, T)
    null, given = classed(x, T, np.full(4, -1)), classed(x, T, y)
    if scale in (0.0, 1.0):
        assert np.array_equal(guided, given if scale else null)
    np.testing.assert_allclose(guided, (1 - scale) * null + scale * given, rtol=1e-12, atol=1e-12)


def test_classifier_free_hands_over_conditions_as_they_are(library: Library) -> None:
    """A scalar condition, None, and arrays of the library; a number beside an array y is spread over it."""
    seen = []

    def net(x_t: Any, t: Any, y: Any) -> Any:
        seen.append(y)
        return x_t

    x, t = library.array(batch(3, 2)), library.array(np.array([1, 2, 3]))
    y = library.array(np.array([4, 5, 6]))
    guidance.classifier_free(net, y, 2.0, 10)(x, t)
    guidance.classifier_free(net, 3, 2.0, None)(x, t)
    assert seen[0] is y
    assert library.host(seen[1]).tolist() == [10, 10, 10]
    assert seen[1].dtype == y.dtype
    assert seen[2:] == [3, None]


def test_guidance_leaves_the_variance_to_the_conditional_network(library: Library) -> None:
    """2C channels: the raw variance is not extrapolated, which would leave its range."""
    xp = library.xp

    def net(x_t: Any, t: Any, y: Any = 1.0) -> Any:
        return xp.concat([x_t * y, xp.full_like(x_t, 0.5 * y)], axis=1)

    x, t = library.array(batch(3, 2, 4)), library.array(np.array([1, 2, 3]))
    free = library.host(guidance.classifier_free(net, 1.0, 3.0, 0.0)(x, t))
    np.testing.assert_allclose(free[:, :2], 3 * library.host(x))
    assert (free[:, 2:] == 0.5).all()
    led = Denoiser(guidance.classifier(net, lambda x, t: xp.ones_like(x), 2.0), variance="learned")
    value, raw = led.call(CHAIN, x, 5, library.xp)
    np.testing.assert_allclose(library.host(value), library.host(x) - 2 * CHAIN.sqrt_one_minus_alpha_bar[5], rtol=1e-12)
    assert (library.host(raw) == 0.5).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first_t", [0, 1])
def test_a_true_classifier_turns_the_mixture_into_its_class(kind: str, first_t: int) -> None:
    """Bayes: grad log q(x_t) + grad log p(y | x_t) = grad log q(x_t | y), for every kind of prediction."""
    x = batch(4, 1, 3) / 3
    net = guidance.classifier(Converted(kind, first_t), class_gradient(lambda t: t + 1 - first_t), 1.0)
    ours = Denoiser(net, predicts=kind, first_t=first_t, clip_x0=False).eps(CHAIN, x, T)
    np.testing.assert_allclose(ours, CLASSES[1].net(CHAIN)(x, T), rtol=1e-9, atol=1e-9)  # x_0 over sigma at t = 1


def test_a_classifier_on_a_shorter_chain() -> None:
    plan = (30, 15, 2, 1, 0)
    short = CHAIN.respaced(plan)
    denoiser = Denoiser(guidance.classifier(Converted("v"), class_gradient(), 1.0), predicts="v", clip_x0=False)
    x, k = batch(3, 1, 3) / 3, np.array([1, 2, 3])
    expected = CLASSES[1].net(CHAIN)(x, np.array([1, 2, 15]))
    np.testing.assert_allclose(denoiser.respaced(plan).eps(short, x, k), expected, rtol=1e-9, atol=1e-9)


def test_a_classifier_by_itself_shifts_the_score_unless_the_network_tells_its_chain() -> None:
    x, grad = batch(4, 1, 3), lambda x, t: np.full_like(x, 0.3)
    score = guidance.classifier(Converted("score"), grad, 2.0)(x, T)
    np.testing.assert_allclose(score, Converted("score")(x, T) + 0.6, rtol=1e-12)
    eps = guidance.classifier(MIXTURE.net(CHAIN), grad, 2.0)(x, T)
    sigma = CHAIN.sqrt_one_minus_alpha_bar[T][:, None, None]
    np.testing.assert_allclose(eps, MIXTURE.net(CHAIN)(x, T) - 0.6 * sigma, rtol=1e-12, atol=1e-14)


def test_the_gradient_is_taken_at_x_t() -> None:
    """Not at the mean of p(x_{t-1} | x_t), where the shift would be that of another point."""
    x, at = batch(4, 1, 3), []

    def grad(x_t: Any, t: Any) -> Any:
        at.append((x_t, t))
        return x_t

    guidance.classifier(Converted("score"), grad, 1.0)(x, T)
    assert at[0][0] is x
    assert at[0][1] is T


def test_a_nets_guidance_differentiates_in_jax_under_jit() -> None:
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    net = Denoiser(guidance.classifier(MIXTURE.net(CHAIN), lambda x, t: -x, 0.5))
    x = batch(4, 1, 3)
    compiled = jax.jit(lambda x, t: net.eps(CHAIN, x, t))(jax.numpy.asarray(x), jax.numpy.asarray(T))
    np.testing.assert_allclose(compiled, net.eps(CHAIN, x, T), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_a_null_that_the_labels_dtype_does_not_reach_is_refused(library: Library, dtype: str) -> None:
    """1000 in 8 bits would be class 232."""
    y = library.array(np.array([1, 2], dtype))
    with pytest.raises(ValueError, match=r"^null must be in .*, got 1000$"):
        guidance.classifier_free(classed, y, 0.0, 1000)
