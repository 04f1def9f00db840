"""Guidance: held against data whose conditional laws are known."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import Library
from strategies import batch

from tinyddpm import Denoiser, Diffusion, guidance, losses, schedules
from tinyddpm.analytic import GaussianData, MixtureData
from tinyddpm.conversions import KINDS

CHAIN = Diffusion(schedules.linear(30, 1e-3, 0.3))
MIXTURE = MixtureData([0.3, 0.7], batch(2, 1, 3, seed=1) / 2, [0.05, 0.2])
CLASSES = [GaussianData(m, v) for m, v in zip(MIXTURE.means, MIXTURE.vars, strict=True)]
T = np.array([1, 2, 15, 29])  # alpha_bar is far from 0: x_0 exists


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
    led = Denoiser(guidance.classifier(net, lambda x, t: xp.ones_like(x), 2.0), variance="learned", clip_x0=False)
    direct = library.host(led.net(x, t))
    np.testing.assert_allclose(direct, np.concatenate([library.host(x) + 2, np.full((3, 2, 4), 0.5)], axis=1), rtol=1e-12)
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
        guidance.classifier_free(lambda x, t, y: x, y, 0.0, 1000)


def test_a_null_is_a_value_of_the_labels_dtype(library: Library) -> None:
    """A fraction or a bool among ints would make other labels, or labels of another dtype."""
    y, flags = library.array(np.array([1, 2])), library.array(np.array([True, False]))
    for label, null in ((y, 0.5), (y, True), (flags, 1), (flags, 0.0)):
        with pytest.raises(TypeError, match=r"^null must be "):
            guidance.classifier_free(lambda x, t, y: x, label, 0.0, null)
    small = library.array(np.array([1, 2], np.uint8))
    for null in (0, 255):
        seen = guidance.classifier_free(lambda x, t, y: y, small, 0.0, null)(library.array(batch(2, 3)), None)
        assert library.host(seen).tolist() == [null, null]
    seen = guidance.classifier_free(lambda x, t, y: y, flags, 0.0, True)(library.array(batch(2, 3)), None)
    assert seen.dtype == flags.dtype
    assert library.host(seen).tolist() == [True, True]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64"])
def test_labels_of_any_integer_dtype_reach_the_network(dtype: str) -> None:
    """As the same classes: Torch looks up 32 and 64 bits only. A bool is no class."""
    torch = pytest.importorskip("torch")
    from tinyddpm.nn import UNet

    net = UNet(8, 1, channels=4, mults=(1, 2), res_blocks=1, attention=(), classes=3, norm_groups=2).eval().requires_grad_(False)
    x, t, y = torch.from_numpy(batch(2, 1, 8, 8)).float(), torch.tensor([1, 20]), torch.tensor([1, 2])
    ours = guidance.classifier_free(net, y.to(getattr(torch, dtype)), 2.0, 3)(x, t)
    assert ours.equal(guidance.classifier_free(net, y, 2.0, 3)(x, t))
    with pytest.raises(ValueError, match=r"^y must be integers of shape \(2,\), got torch.bool"):
        net(x, t, y == 1)


# -------------------------------------------------------------------------------------- the order of the clip and the shift

TWO = [GaussianData(np.array([m]), 0.02) for m in (-0.5, 0.5)]
BOTH = MixtureData([0.5, 0.5], [[-0.5], [0.5]], 0.02)


def towards_the_second(d: Diffusion) -> Callable[..., Any]:
    """grad log p(y = 1 | x_t) of the two components."""

    def score(data: Any, x: Any, t: Any) -> Any:
        return d.convert(data.net(d)(x, t), x, t, "eps", "score")

    return lambda x, t: score(TWO[1], x, t) - score(BOTH, x, t)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", ["after_clip", "before_clip"])
def test_the_shift_comes_after_the_clip_as_published(kind: Any, shift: Any) -> None:
    """guided-diffusion's loop for DDIM: x_0 clipped, eps derived again and shifted, x_0 from it, unclipped; or shifted first."""
    plan, ab, x = (30, 22, 13, 5, 0), CHAIN.alpha_bar, 2 * batch(6, 1)
    grad, net = towards_the_second(CHAIN), BOTH.net(CHAIN)

    def converted(x_t: Any, t: Any) -> Any:
        return CHAIN.convert(net(x_t, t), x_t, t, "eps", kind)

    denoiser = Denoiser(guidance.classifier(converted, grad, 3.0, shift=shift), kind)
    ours = CHAIN.sample(denoiser, x.shape, sampler="ddim", timesteps=plan, x_T=x)
    left = 0.0
    for t, s in zip(plan, plan[1:], strict=False):
        steps = np.full(len(x), t)
        root, sigma = np.sqrt(ab[t]), np.sqrt(1 - ab[t])
        eps, lean = net(x, steps), 3 * sigma * grad(x, steps)
        if shift == "after_clip":
            eps = (x - root * np.clip((x - sigma * eps) / root, -1, 1)) / sigma - lean
            x0 = (x - sigma * eps) / root
        else:
            x0 = np.clip((x - sigma * (eps - lean)) / root, -1, 1)
            eps = (x - root * x0) / sigma
        left = max(left, np.abs(x0).max())
        x = np.sqrt(ab[s]) * x0 + np.sqrt(1 - ab[s]) * eps
    np.testing.assert_allclose(ours, x, rtol=1e-9, atol=1e-9)
    assert (left > 1.01) == (shift == "after_clip")


def test_the_published_order_leans_further() -> None:
    """The figure of the migration page: the mean of two components at -0.5 and 0.5, guided to the second at scale 3."""
    d = Diffusion()
    means = []
    for shift in ("after_clip", "before_clip"):
        net = guidance.classifier(BOTH.net(d), towards_the_second(d), 3.0, shift=shift)
        means.append(float(d.sample(Denoiser(net), (4000, 1), sampler="ddim", steps=50).mean()))
    np.testing.assert_allclose(means, [0.646, 0.612], atol=5e-3)


def test_a_net_that_clips_is_asked_for_it_on_shorter_chains_and_not_by_losses() -> None:
    plan, x = (30, 15, 2, 1, 0), 3 * batch(3, 1)
    net = guidance.classifier(BOTH.net(CHAIN), towards_the_second(CHAIN), 3.0)
    long, short = Denoiser(net), Denoiser(net).respaced(plan)
    k, t = np.array([4, 3, 2]), np.array([30, 15, 2])
    np.testing.assert_allclose(short.x0(CHAIN.respaced(plan), x, k), long.x0(CHAIN, x, t), rtol=1e-9)
    free, eps = Denoiser(net, clip_x0=False), batch(3, 1, seed=2)
    assert np.abs(long.x0(CHAIN, x, t) - free.x0(CHAIN, x, t)).max() > 0.1
    np.testing.assert_array_equal(*(losses.simple(CHAIN, model, x / 3, t, eps) for model in (long, free)))


def test_two_classifiers_are_one_with_the_sum_of_their_gradients() -> None:
    """The inner one is told the chain and the range too; x_0 is clipped once, before both shifts."""
    grad, x, exact = towards_the_second(CHAIN), 3 * batch(4, 1), BOTH.net(CHAIN)

    def rough(x_t: Any, t: Any) -> Any:
        return 0.3 * exact(x_t, t)  # whose x_0 leaves the range

    inner = guidance.classifier(rough, grad, 7.0)
    for clip in (True, False):
        twice, once = (
            Denoiser(net, clip_x0=clip).x0(CHAIN, x, T)
            for net in (guidance.classifier(inner, grad, 2.0), guidance.classifier(rough, grad, 9.0))
        )
        np.testing.assert_allclose(twice, once, rtol=1e-9, atol=1e-12)


# --------------------------------------------------------------------------------- scales of each sample and step, rescaling


def test_a_scale_for_each_sample_or_step(library: Library) -> None:
    """Each row is that of its own scale."""
    x, y, scales = batch(4, 1, 3), np.array([0, 1, 1, 0]), np.array([0.0, 1.0, 2.5, -0.5])

    def net(x_t: Any, t: Any, y: Any) -> Any:
        return 0.3 * x_t + library.xp.reshape(y, (-1, 1, 1))

    def grad(x_t: Any, t: Any) -> Any:
        return 0.5 * x_t

    here, labels, t = library.array(x), library.array(1.0 * y), library.array(T)
    one = [guidance.classifier_free(net, labels, float(s), 7.0)(here, t) for s in scales]
    led = [guidance.classifier(lambda x, t: -x, grad, float(s))(here, t) for s in scales]
    by_time = library.array(np.where(T < 10, 2.0, 0.5))
    for scale in (scales, library.array(scales), lambda t: scales, lambda t: library.array(scales, "float32")):
        many = library.host(guidance.classifier_free(net, labels, scale, 7.0)(here, t))
        np.testing.assert_allclose(many, [library.host(row)[k] for k, row in enumerate(one)], rtol=1e-12)
        many = library.host(guidance.classifier(lambda x, t: -x, grad, scale)(here, t))
        np.testing.assert_allclose(many, [library.host(row)[k] for k, row in enumerate(led)], rtol=1e-12)
    stepped = guidance.classifier(lambda x, t: -x, grad, lambda t: by_time)(here, t)
    np.testing.assert_allclose(library.host(stepped), (0.5 * np.where(T < 10, 2.0, 0.5)[:, None, None] - 1) * x, rtol=1e-12)


def test_a_scale_as_a_function_is_asked_at_every_call() -> None:
    """It gets the network's steps; 0 and 1 cost one call."""
    seen, calls = [], []

    def net(x_t: Any, t: Any, y: Any) -> Any:
        calls.append(y)
        return x_t * y

    def scale(t: Any) -> float:
        seen.append(t.tolist())
        return 1.0 if t[0] > 14 else 3.0

    CHAIN.sample(Denoiser(guidance.classifier_free(net, 0.5, scale, 0.1), first_t=0), (2, 3), timesteps=(30, 15, 1, 0))
    assert seen == [[29, 29], [14, 14], [0, 0]]
    assert calls == [0.5, 0.5, 0.1, 0.5, 0.1]
    for bad in (lambda t: np.ones(3), lambda t: "much", lambda t: math.nan, lambda t: np.ones((2, 1))):
        with pytest.raises((TypeError, ValueError), match=r"^scale must (be|have)"):
            guidance.classifier_free(net, 0.5, bad, 0.1)(batch(2, 3), np.array([1, 2]))


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_rescaled_guidance_has_the_conditional_networks_spread(library: Library, rescale: float) -> None:
    """[Lin et al. 2023, eq. 15, 16], each sample by itself; a constant prediction stays as it is."""
    x, xp = batch(4, 2, 5), library.xp

    def net(x_t: Any, t: Any, y: Any) -> Any:
        return xp.concat([x_t * xp.reshape(y, (-1, 1, 1)) + 0.1, 0.2 * x_t], axis=1)

    y = np.array([1.3, 0.5, 0.45, 2.0])
    guided = guidance.classifier_free(net, library.array(y), 4.0, 0.4, rescale=rescale)(library.array(x), T)
    given, without = y[:, None, None] * x + 0.1, 0.4 * x + 0.1
    leaning = without + 4 * (given - without)
    ratio = given.std((1, 2), keepdims=True) / leaning.std((1, 2), keepdims=True)
    np.testing.assert_allclose(library.host(guided)[:, :2], rescale * leaning * ratio + (1 - rescale) * leaning, rtol=1e-9)
    np.testing.assert_array_equal(library.host(guided)[:, 2:], 0.2 * x)
    flat = guidance.classifier_free(lambda x, t, y: 0 * x + y, 1.0, 4.0, 0.5, rescale=rescale)(library.array(x), T)
    np.testing.assert_allclose(library.host(flat), 2.5, rtol=1e-9)


# --------------------------------------------------------------------------------------------------- dynamic thresholding


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.995, 1.0])
def test_dynamic_thresholding_is_a_quantile_of_each_sample(library: Library, kind: Any, percentile: float) -> None:
    x0, x_t = np.array([3.0, 0.5, 1.5, 0.9])[:, None, None] * batch(4, 3, 7), batch(4, 3, 7, seed=1)
    s = np.maximum(np.quantile(np.abs(x0).reshape(4, -1), percentile, axis=1), 1)[:, None, None]

    def net(x: Any, t: Any) -> Any:
        return CHAIN.convert(library.array(x0), x, T, "x0", kind)

    thresholded = guidance.dynamic_threshold(net, CHAIN, kind, percentile, first_t=0)
    ours = Denoiser(thresholded, "x0", first_t=0).x0(CHAIN, library.array(x_t), T)
    np.testing.assert_allclose(library.host(ours), np.clip(x0, -s, s) / s, rtol=1e-7, atol=1e-9)


def test_dynamic_thresholding_is_diffusers() -> None:
    torch, peers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    x0 = torch.from_numpy(2 * batch(4, 3, 8, 8)).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = peers.DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1e9)
        theirs = scheduler._threshold_sample(x0)
    ours = guidance.dynamic_threshold(lambda x, t: x, CHAIN, "x0", 0.9)(x0, torch.ones(4, dtype=torch.int64))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_dynamic_thresholding_of_a_guided_net_with_a_variance() -> None:
    """The classifier learns of the chain, and its shift is thresholded; the raw variance passes."""
    grad, x = towards_the_second(CHAIN), batch(4, 1, 5)

    def net(x_t: Any, t: Any) -> Any:
        return np.concatenate([BOTH.net(CHAIN)(x_t[..., 0], t)[..., None] + 0 * x_t, 0 * x_t + 0.3], axis=1)

    led = guidance.classifier(net, lambda x, t: grad(x[..., 0], t)[..., None] + 0 * x, 9.0)
    free = Denoiser(led, variance="learned", clip_x0=False).x0(CHAIN, x, T)
    denoiser = Denoiser(guidance.dynamic_threshold(led, CHAIN, "eps", 1.0), "x0", variance="learned")
    s = np.maximum(np.abs(free).max((1, 2), keepdims=True), 1)
    assert s.max() > 1
    np.testing.assert_allclose(denoiser.x0(CHAIN, x, T), free / s, rtol=1e-9)
    np.testing.assert_array_equal(denoiser.p(CHAIN, x, T).log_var, np.full(x.shape, 0.3))


def test_names_of_a_nets_own_mean_nothing() -> None:
    """Only what the library makes is told the chain or clips: a user's network may have attributes of any name."""
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):  # type: ignore[name-defined,misc]
        guided = clips = clips_x0 = True

        def call_with_chain(self, *args: Any) -> Any:
            raise AssertionError

        call = call_with_chain

        def forward(self, x: Any, t: Any) -> Any:
            return 9 * x

    x = CHAIN.sample(Denoiser(Net(), "x0"), (2, 3), steps=4, autocast="bfloat16", backend="torch")
    assert x.abs().max() == 1
