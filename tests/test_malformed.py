"""Every malformed call is answered by a `ValueError`, `TypeError` or `LookupError` that names the argument.

A `Call` is a public function with arguments that work, and for each argument values that it must refuse with that error. Each
value is tried by itself, on every backend where arrays are involved; nothing returns quietly, nothing shows an internal error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pytest
from conftest import Library

from tinyddpm import (
    Denoiser,
    Diffusion,
    Gaussian,
    analytic,
    backends,
    conversions,
    edit,
    gaussian,
    guidance,
    likelihood,
    losses,
    noise,
    plans,
    samplers,
    schedules,
)

NAN, INF = math.nan, math.inf
T = 5
D = Diffusion(schedules.linear(T, 0.1, 0.5))
X = np.random.default_rng(0).uniform(-1, 1, (2, 4, 3))
NO_INT = (True, 1.5, "3", None, [1], np.bool_(True), np.float64(2))
NO_LENGTH = (0, -3, 10**11, 10**18, 2**80)
NO_NUMBER = (True, "0.1", None, [0.1], 1j)
NO_NAME = (3, None, b"linear", ("linear",))
NO_OPTIONAL_NAME = (3, b"linear", ("linear",))
NO_BOOL = (1, 0.0, "yes", None)
NO_ARRAY = (None, 1.0, "x", [[0.5]], object())
NO_SEED = (-1, 2**64)

Bad = dict[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Call:
    """A function that works as it stands, and what each argument must not be."""

    label: str
    function: Callable[..., Any]
    types: Bad
    values: Bad
    names: Bad  # for which a `LookupError` lists the known

    def rows(self) -> Iterator[tuple[type[Exception], str, Any]]:
        for error, bad in ((TypeError, self.types), (ValueError, self.values), (LookupError, self.names)):
            for argument, values in bad.items():
                yield from ((error, argument, value) for value in values)


def call(
    function: Callable[..., Any],
    *,
    label: str | None = None,
    types: Bad | None = None,
    values: Bad | None = None,
    names: Bad | None = None,
    **good: Any,
) -> Call:
    label = label or function.__qualname__
    return Call(label, lambda **bad: function(**good | bad), types or {}, values or {}, names or {})


NORMAL = analytic.GaussianData(np.zeros((4, 3)), 0.1)

# On the host.


def ends(**options: Any) -> dict[str, Any]:
    """What every schedule from beta_1 to beta_T refuses."""
    return {
        "types": {"T": NO_INT, "beta_1": NO_NUMBER, "beta_T": NO_NUMBER} | options.get("types", {}),
        "values": {"T": NO_LENGTH, "beta_1": (0.0, -0.1, 1.0, 1.5, NAN, INF), "beta_T": (0.0, 1.01, NAN, -INF)}
        | options.get("values", {}),
    }


SCHEDULES = [
    call(schedules.linear, **ends()),
    call(schedules.quadratic, **ends()),
    call(schedules.geometric, **ends()),
    call(schedules.warmup, **ends(types={"fraction": NO_NUMBER}, values={"fraction": (-0.1, 1.1), "beta_T": (0, 1, NAN)})),
    call(schedules.sigmoid, **ends(types={"start": NO_NUMBER, "end": NO_NUMBER}, values={"start": (NAN, INF), "end": (NAN,)})),
    call(schedules.constant, types={"T": NO_INT, "beta": NO_NUMBER}, values={"T": NO_LENGTH, "beta": (0.0, -1, 1.0, 1.1, NAN)}),
    call(schedules.jsd, types={"T": NO_INT}, values={"T": NO_LENGTH}),
    call(schedules.cosine, types={"T": NO_INT, "s": NO_NUMBER, "max_beta": NO_NUMBER},
         values={"T": NO_LENGTH, "s": (-0.1, NAN, INF, 1e300), "max_beta": (0.0, 1.1, -1)}),
    call(schedules.sigmoid_alpha_bar,
         types={"T": NO_INT, "start": NO_NUMBER, "end": NO_NUMBER, "tau": NO_NUMBER, "max_beta": NO_NUMBER},
         values={"T": NO_LENGTH, "start": (NAN, -INF, -5e3), "end": (-3, -5, INF, NAN), "tau": (0, -1, NAN), "max_beta": (0, 2)}),
    call(schedules.from_alpha_bar, f=[0.9, 0.5],
         types={"f": (None, "f", [None, 0.5], [1j], ["a", "b"], [0.5, [0.1]], np.ma.array([0.5])), "T": (True, 1.5, "3")},
         values={"f": (3, [], [1.0, 0.5], [0.5, 0.5], [0.5, 0.9], [[0.9]], [0.9, NAN], [0.9, -0.1], [0.5, 0, 0],
                       [0.9, 1e-20, 1e-40]), "T": (3, 0)}),
    call(schedules.from_alpha_bar, label="from_alpha_bar of a function", f=lambda u: 1 - 0.9 * u, T=4,
         types={"f": (lambda u: "a", lambda u: None, lambda u: [u]), "T": (True, 1.5)},
         values={"f": (lambda u: NAN, lambda u: u, lambda u: 1.0, lambda u: 1 / u - 1 if u else INF), "T": (None, *NO_LENGTH)}),
    *(call(function, beta=[0.1, 0.2],
           types={"beta": (None, "b", ["a"], [1j], [True], [0.1, [0.1]], np.ma.array([0.1]), np.array([0.1], ">f4"))},
           values={"beta": (3, [], [0.0], [-0.1], [1.5], [[0.1]], [NAN], [1.0, 0.1], [0.1, 1.0, 0.1])})
      for function in (schedules.checked, schedules.zero_terminal_snr)),
]  # fmt: skip

PROCESS = [
    call(Diffusion, beta=[0.1, 0.2], types={"beta": ("b", ["a", "b"], [1j], {"a": 1}, [True, False])},
         values={"beta": (3, [], [0.0], [-0.1], [1.5], [1.0, 0.5], [[0.1]], [NAN], [INF], [5e-324, 0.1])}),
    call(D.timesteps, steps=3, types={"steps": NO_INT, "spacing": NO_NAME}, values={"steps": (0, -1, T + 1)},
         names={"spacing": ("odd", "")}),
    call(D.respaced, timesteps=(5, 2, 0), types={"timesteps": (None, 3, "520", (5, 2.0, 0), (5, True, 0))},
         values={"timesteps": ((), (0,), (5, 5, 0), (2, 5, 0), (6, 0), (5, 1), (-1, 0))}),
    call(D.sample_t, n=3, seed=0, types={"n": NO_INT, "seed": NO_INT}, values={"n": (-1, 2**61), "seed": NO_SEED}),
    call(D.posterior_weights, t=3, types={"t": (*NO_INT[:5], np.array([1.5]), np.ma.array([3])), "s": (True, 1.5, "1")},
         values={"t": (0, T + 1, np.array([0, 2])), "s": (3, 4, -1, T)}),
    call(D.between_weights, t=3, types={"t": (True, 1.5)}, values={"t": (0, T + 1), "s": (3, -1)}),
    call(D.conversion, source="eps", target="x0", types={"source": NO_NAME, "target": NO_NAME},
         names={"source": ("epsilon",), "target": ("sample", "")}),
    call(conversions.tables, coefficients=D._coefficients, source="eps", target="x0", types={"source": (3,)},
         names={"target": ("x",)}),
    call(plans.checked, timesteps=(3, 0), T=5, types={"timesteps": (7, (1.5, 0))}, values={"timesteps": ((9, 0), (3, 3, 0))}),
]  # fmt: skip

DENOISERS = [
    call(Denoiser, net=lambda x, t: x,
         types={"net": (None, 3, "net"), "predicts": NO_NAME, "first_t": NO_INT,
                "variance": (3, None, [], [1], [[0.1, 0.2]], np.array([1, 2]), ["a", "b"]),
                "clip_x0": (*NO_BOOL, (0.0,), (0, 1, 2), ("a", "b"), [True, False])},
         values={"variance": ([0.0, -0.1], [NAN, NAN], [0.0, INF]), "clip_x0": ((1.0, 0.0), (NAN, 1.0)),
                 "first_t": (2**40, -(2**40))},
         names={"predicts": ("epsilon", "x_0", ""), "variance": ("fixed", "")}),
    call(Denoiser(lambda x, t: x).respaced, timesteps=(5, 0), types={"timesteps": (None, 3, (1.5, 0))},
         values={"timesteps": ((), (5, 5, 0), (5,))}),
    call(guidance.classifier_free, net=lambda x, t, y: x, y=None, scale=1.0, null=None,
         types={"net": (None, 3), "scale": (*NO_NUMBER, np.array([True]), np.ma.array([1.0])), "rescale": NO_NUMBER},
         values={"scale": (NAN, INF, np.array([1.0, NAN]), np.ones((2, 1))), "rescale": (-0.1, 1.1, NAN)}),
    call(guidance.classifier, net=lambda x, t: x, log_prob_grad=lambda x, t: x, scale=1.0,
         types={"net": (None, "n"), "log_prob_grad": (None, 1), "scale": NO_NUMBER, "shift": (None, 1)},
         values={"scale": (NAN, -INF)}, names={"shift": ("after", "clip")}),
    call(guidance.dynamic_threshold, net=lambda x, t: x, d=Diffusion([0.1]), predicts="eps",
         types={"net": (None, 3), "d": (None, 3), "predicts": (None, 1), "percentile": NO_NUMBER, "first_t": NO_INT},
         values={"percentile": (0.0, -0.1, 1.1, NAN), "first_t": (2**40,)}, names={"predicts": ("epsilon",)}),
]  # fmt: skip

DATA_SETS = [
    call(analytic.GaussianData, mean=[0.0, 0.5], var=0.1,
         types={"mean": (None, ["a"], "one", [True], np.ma.array([0.0, 0.5]), np.zeros(2, ">f8")), "var": (None, "v")},
         values={"mean": ([NAN], [INF]), "var": (-0.1, [0.1, 0.2, 0.3], NAN)}),
    call(analytic.MixtureData, weights=[0.5, 0.5], means=[[0.0], [1.0]], vars=0.1,
         types={"weights": (None, "ab"), "means": (None, [["a"], ["b"]]), "vars": (None, "v")},
         values={"weights": ([0.5, 0.6], [1.5, -0.5], [[1.0]], [NAN, NAN], [1.0, 0.0], 1.0),
                 "means": ([[0.0]], [[NAN], [0.0]], 0.0), "vars": (-0.1, [0.1, 0.2, 0.3], NAN)}),
    call(NORMAL.sample, n=2, types={"n": NO_INT, "seed": NO_INT}, values={"n": (-1, 2**61), "seed": NO_SEED}),
    call(NORMAL.marginal, d=D, t=3, types={"t": NO_INT, "d": (None, 3)}, values={"t": (-1, T + 1)}),
    call(NORMAL.net, d=D, types={"d": (None, 3, "d")}),
]  # fmt: skip

NOISE = [
    call(noise.normal, seed=0, index=range(2), step=1, shape=(3,),
         types={"seed": NO_INT, "step": NO_INT, "stream": NO_INT, "exact": NO_BOOL, "dtype": NO_NAME, "backend": NO_NAME,
                "index": (None, 3, "01", [0.5], [True], np.array([0.5]), np.array([True]), np.ma.array([1])),
                "shape": (3, None, "3", (1.5,), (True,))},
         values={"seed": NO_SEED, "step": NO_SEED, "stream": NO_SEED,
                 "index": ([-1], [2**64], range(-1, 2), np.array([[0]]), np.array([-1]), range(2**62), np.array(3),
                           range(2**64, 2**64 + 2)),
                 "shape": ((-1,), (2**62,), (2**40,), (2**62, 2**62), (2**40, 2**20))},
         names={"dtype": ("int8", "float", "", "float8", "bfloat16", np.int8), "backend": ("tpu", "")}),
    call(lambda step, **o: noise.like(**o)(step), label="noise.like", x=X, seed=0, index=range(2), step=1,
         types={"index": (3, 1.5), "seed": NO_INT[:3], "step": NO_INT[:3]},
         values={"index": ([0], range(3)), "seed": NO_SEED, "step": NO_SEED}),
    call(noise.numbers, index=None, n=2, types={"index": (3, 1.5)}, values={"index": ([0], range(3))}),
]  # fmt: skip

TIMES = [
    call(losses.UniformT, T=3, types={"T": NO_INT}, values={"T": (0, -1)}),
    call(losses.LossAwareT, T=3, types={"T": NO_INT}, values={"T": (0, 2**60)}),
    *(call(sampler.sample, n=2, rng=np.random.default_rng(0), types={"n": NO_INT, "rng": (None, 0, np.random)},
           values={"n": (-1,)})
      for sampler in (losses.UniformT(3), losses.LossAwareT(3))),
    *(call(sampler.update, t=np.array([1, 2]), loss=np.array([0.1, 0.2]),
           types={"t": ([1.5, 2.0], None, "ab"), "loss": (None, "ab", ["a", "b"], {})},
           values={"t": ([0, 1], [1, 4]), "loss": ([0.1], [NAN, 0.1], [INF, 0.1], 0.1)})
      for sampler in (losses.UniformT(3), losses.LossAwareT(3))),
    call(losses.LossAwareT(3).load_state_dict, state=losses.LossAwareT(3).state_dict(),
         types={"state": (None, 3, [1], "history")},
         values={"state": ({}, losses.LossAwareT(4).state_dict(), {"history": np.zeros((3, 10))},
                           {"history": np.full((3, 10), NAN), "count": np.zeros(3, int)},
                           {"history": np.full((3, 10), "a"), "count": np.zeros(3, int)},
                           {"history": np.zeros((3, 10)), "count": np.full(3, -1)})}),
]  # fmt: skip

HERE = [name for name in ("numpy", "torch", "jax") if backends.available()[name]]
FOREIGN = (np.ma.array(X), X.astype(X.dtype.newbyteorder()))
PLAIN: dict[str, Any] = {"denoiser": Denoiser(lambda x, t: x), "shape": X.shape}
KNOWN = [
    call(lambda backend: backends.get(backend), label="backends.get", backend="numpy", types={"backend": NO_NAME},
         names={"backend": ("tpu", "")}),
    call(backends.of, array=X, names={"array": (None, 3, "x", [0.1])}),
    call(backends.register, backend=replace(backends.get("numpy"), name="malformed"),
         types={"backend": (None, "numpy", object())}, values={"backend": tuple(map(backends.get, HERE))}),
    *(call(backends.get(name).from_numpy, array=X.astype(np.float32),
           types={"array": (None, "x", [None], np.array(["a"]), np.array([1j]), np.ma.array(X)), "dtype": (3, b"float32")},
           names={"dtype": ("int3", "float128", "float8", "complex64", "f4", "", np.complex64)})
      for name in HERE),
    call(D.q_sample, label="NumPy's own kinds", x0=X, t=3, eps=X, types={"x0": FOREIGN, "eps": FOREIGN}),
    call(D.sample, label="x_T", **PLAIN, x_T=X, types={"x_T": FOREIGN}),
    call(D.sample, label="NumPy has no faster networks", **PLAIN, values={"compile": (True,), "autocast": ("bfloat16",)}),
]  # fmt: skip
if "torch" in HERE:
    KNOWN += [
        call(D.sample, label="autocast", **PLAIN, backend="torch", names={"autocast": ("float8",)}),
        call(D.sample, label="a guided network", shape=(2, 3), backend="torch", values={"compile": (True,)},
             denoiser=Denoiser(guidance.classifier(lambda x, t: x, lambda x, t: x * 0, 1.0))),
    ]  # fmt: skip


# On arrays: the same in every library.


class Libraries:
    """One library's arrays, and one of another."""

    def __init__(self, name: str) -> None:
        self.name, self.backend = name, backends.get(name)
        self.x = self.array(X)
        self.other = X if name != "numpy" else array_api_strict.asarray(X)

    def array(self, x: Any, dtype: str = "float32") -> Any:
        return self.backend.from_numpy(np.asarray(x), dtype=dtype)

    @property
    def ints(self) -> Any:
        return self.backend.from_numpy(np.ones((2, 4, 3), int))

    @property
    def not_data(self) -> tuple[Any, ...]:
        return (*NO_ARRAY, self.ints)


def steps(L: Libraries, low: int = 0, name: str = "t") -> dict[str, Any]:
    """What a step t in low..T must not be."""
    return {
        "types": {name: (*NO_INT, L.array([1.0, 2.0]), np.array([1.0, 2.0]), "ab")},
        "values": {name: (low - 1, T + 1, 2**70, np.array([low, T + 1]), L.backend.from_numpy(np.array([-1, 2])),
                          np.array([1]), np.array([[1, 2]]), np.array(T + 1))},
    }  # fmt: skip


def merged(*bad: dict[str, Any], **more: Bad) -> dict[str, Any]:
    parts = [*bad, more]
    return {kind: {k: v for part in parts for k, v in part.get(kind, {}).items()} for kind in ("types", "values", "names")}


def maths(L: Libraries) -> list[Call]:
    x, short, wrong = L.x, L.array(X[:, :3]), (*L.not_data, L.other)
    scalar = L.array(np.float32(0.5))
    p = Gaussian(x, -1.0)
    kinds: dict[str, Bad] = {"types": {"source": NO_NAME, "target": NO_NAME}, "names": {"source": ("noise",), "target": ("x_0",)}}
    return [
        call(D.q, x0=x, t=3, **merged(steps(L), types={"x0": L.not_data}, values={"x0": (scalar,)})),
        call(D.q_sample, x0=x, t=3, eps=x, **merged(steps(L), types={"x0": NO_ARRAY, "eps": wrong}, values={"eps": (short,)})),
        call(D.q_between, x_s=x, s=1, t=3, **merged(steps(L, 1),
             types={"x_s": L.not_data, "s": NO_INT[:3]}, values={"s": (3, 4, -1)})),
        call(D.posterior, x_t=x, x0=x, t=3, **merged(steps(L, 1), types={"x_t": NO_ARRAY, "x0": wrong, "s": (True, 1.5)},
                                                    values={"x0": (short,), "s": (3, -1, np.array([0, 3]))})),
        call(D.convert, value=x, x_t=x, t=3, source="eps", target="x0",
             **merged(steps(L, 1), kinds, types={"value": NO_ARRAY, "x_t": wrong} | kinds["types"], values={"value": (short,)})),
        call(Gaussian, mean=x, log_var=0.0, types={"mean": L.not_data, "log_var": (None, "a", True, L.other, L.ints)},
             values={"log_var": (NAN, INF, np.float32(INF), short, L.array(np.zeros(4)), L.array(np.zeros((1, 2, 4, 3))))}),
        call(p.sample, eps=x, types={"eps": wrong}, values={"eps": (short,)}),
        call(p.log_prob, x=x, types={"x": wrong}, values={"x": (short,)}),
        call(p.discretized_log_prob, x=x, types={"levels": NO_INT}, values={"x": (x * 3, x * NAN), "levels": (1, 0, 65537)}),
        call(p.kl, other=p, types={"other": (None, 3, x)}),
        call(gaussian.kl, mean1=x, log_var1=0.0, mean2=x, log_var2=0.0,
             types={"mean1": (None, "a", L.ints), "log_var1": (None, True, L.ints), "mean2": (None, L.other),
                    "log_var2": ("a", L.other)},
             values={"log_var1": (NAN, INF), "mean2": (short, NAN), "log_var2": (INF, short)}),
        call(gaussian.kl_full, mean1=x[:, 0, :], cov1=L.array(np.eye(3)), mean2=x[:, 1, :], cov2=L.array(np.eye(3)),
             types={"mean1": NO_ARRAY, "cov1": (None, 1.0, L.ints), "mean2": (None, L.other), "cov2": (None, L.other)},
             values={"cov1": tuple(map(L.array, (-np.eye(3), np.eye(2), np.ones((3, 3)) + np.arange(3), np.eye(3) * NAN))),
                     "cov2": tuple(map(L.array, (np.zeros((3, 3)), [np.eye(3), np.tri(3)], np.ones((5, 3, 3)), np.ones(3)))),
                     "mean2": (x[:, 0, :2], scalar, L.array(np.ones((5, 3)))),
                     "mean1": (scalar,)}),
        call(gaussian.discretized_log_likelihood, x=x, mean=x, log_std=-1.0,
             types={"x": (None, "a", L.ints), "mean": (None, L.other), "log_std": (None, True, "a", L.ints), "levels": NO_INT,
                    "method": NO_NAME},
             values={"x": (x * 3, x * INF, x * NAN, x * 0 + 1.004), "mean": (short, NAN, -INF), "log_std": (NAN, INF, short),
                     "levels": (1, 65537)},
             names={"method": ("tanh", "")}),
        call(NORMAL.log_prob, x=x, types={"x": L.not_data}, values={"x": (short, scalar, L.array(X[0]))}),
        call(NORMAL.net(D), label="ExactNet", x_t=x, t=3,
             **merged(steps(L, 1), types={"x_t": L.not_data}, values={"x_t": (short, scalar)})),
    ]  # fmt: skip


def learning(L: Libraries) -> list[Call]:
    x, short, wrong = L.x, L.array(X[:, :3]), (*L.not_data, L.other)
    denoiser = Denoiser(lambda x_t, t: x_t)
    model = {"d": (None, 3, "d"), "denoiser": (None, 3, lambda x_t, t: x_t)}
    loss = merged(steps(L, 1), types={"x0": NO_ARRAY, "eps": wrong} | model, values={"eps": (short,)})
    good = {"d": D, "denoiser": denoiser, "x0": x, "t": 3, "eps": x}
    far = (x * 10, x * NAN, x * 0 + 1.005)
    evaluated = merged(
        types={"x0": L.not_data, "seed": NO_INT, "index": (3, "ab", [0.5, 1.5])} | model,
        values={"x0": (*far, x[:0, ...], L.array(np.float32(0.5))), "seed": NO_SEED, "index": ([0], [-1, 2], range(3))},
    )
    return [
        *(call(getattr(denoiser, name), d=D, x_t=x, t=3,
               **merged(steps(L, 1), types={"x_t": L.not_data, "d": model["d"]}, values={"x_t": (L.array(np.float32(0.5)),)}))
          for name in ("x0", "eps", "p")),
        call(denoiser.p, d=D, x_t=x, t=3, types={"s": (True, 1.5, "1")}, values={"s": (3, 4, -1)}),
        call(losses.simple, **good, **loss),
        call(losses.vlb, **good, **merged(loss, types={"x0": L.not_data, "decoder": NO_NAME}, values={"x0": far},
                                          names={"decoder": ("tanh",)})),
        call(losses.hybrid, **good, **merged(loss, types=loss["types"] | {"weight": NO_NUMBER}, values={"weight": (NAN, INF)})),
        call(losses.weighted, **good, **merged(loss, types=loss["types"] | {"weighting": NO_NAME}, names={"weighting": ("p3",)})),
        call(losses.weighted, label="weighted p2", weighting="p2", **good, types={"gamma": ("1", True)},
             values={"gamma": (-1, NAN)}),
        call(losses.weighted, label="weighted snr", weighting="snr", **good, types={}, values={"gamma": (1.0,)}),
        call(likelihood.vlb, d=D, denoiser=denoiser, x0=x,
             **merged(evaluated, types=evaluated["types"] | {"levels": NO_INT, "decoder": NO_NAME},
                      values=evaluated["values"] | {"levels": (1, 65537)}, names={"decoder": ("tanh",)})),
        call(likelihood.vlb, label="vlb terms", d=D, denoiser=denoiser, x0=x, types={"terms": NO_BOOL, "stepz": (3,)}),
        call(likelihood.optimal_variance, d=D, denoiser=denoiser, x0=x,
             **merged(evaluated, types=evaluated["types"] | {"draws": NO_INT}, values=evaluated["values"] | {"draws": (0, -1)})),
        call(likelihood.calibrate, d=D, denoiser=denoiser, x0=x,
             **merged(evaluated, types=evaluated["types"] | {"draws": NO_INT, "levels": NO_INT, "decoder": NO_NAME,
                                                            "per_dimension": NO_BOOL, "batch_size": (True, 1.5, "3")},
                      values=evaluated["values"] | {"draws": (0, -1), "levels": (1, 65537), "batch_size": (0,)},
                      names={"decoder": ("tanh",)})),
    ]  # fmt: skip


def sampling(L: Libraries) -> list[Call]:
    x, short = L.x, L.array(X[:, :3])
    denoiser = Denoiser(lambda x_t, t: x_t)
    here: dict[str, Any] = {"backend": L.name}
    model: Bad = {"denoiser": (None, 3, lambda x_t, t: x_t)}
    plan: dict[str, Any] = {
        "types": {"steps": NO_INT[:3], "timesteps": (3, "50", (5, 1.5, 0)), "seed": NO_INT, "index": (3, [0.5, 1.5])},
        "values": {"steps": (0, T + 1), "timesteps": ((), (5, 5, 0), (9, 0), (5, 1)), "seed": NO_SEED, "index": ([0], [-1, 0])},
    }
    edited = merged(plan, types=plan["types"] | model | {"d": (None, 3)})
    mask = np.ones((2, 4, 3), bool)
    wrong_noise: tuple[dict[str, Any], ...] = (
        {"types": {"noise": (lambda *a: None, lambda *a: 1.0, lambda *a: [0.1])}},
        {"values": {"noise": (lambda *a: short, lambda *a: X[:1], lambda *a: x[0, ...])}},
    )
    return [
        call(D.sample, denoiser=denoiser, shape=(2, 4, 3), **here, **merged(plan, types=plan["types"] | model | {
                 "shape": (None, 3, "24", (2, 1.5), (True,)), "sampler": NO_NAME, "eta": (True, "0.1", [0.1]), "stepz": (3,),
                 "spacing": NO_OPTIONAL_NAME,
                 "noise": (3, "z"), "callback": (3, "f"), "progress": ("yes", 3), "x_T": (1.0, "x", L.ints),
                 "dtype": (3, None, ("float32",)),
                 "backend": NO_OPTIONAL_NAME, "compile": (1, None)},
             values=plan["values"] | {"shape": ((), (-1, 3), (2, 2**62), (2, 2**40)), "eta": (0.5, -0.1, NAN),
                                      "x_T": (short, x * NAN, x * INF), "timesteps": (*plan["values"]["timesteps"], (3, 0))},
             names={"sampler": ("euler", ""), "spacing": ("odd",), "backend": ("tpu",), "dtype": ("int8", "float")})),
        call(lambda **o: list(D.trajectory(denoiser, (2, 4, 3), **here, **o)), label="trajectory",
             types={"every": NO_INT, "sampler": (3,)}, values={"every": (0, -1), "steps": (0,)}, names={"sampler": ("x",)}),
        call(D.sample, label="sample ddim", denoiser=denoiser, shape=(2, 4, 3), sampler="ddim", **here,
             types={"eta": (True, "0.1", [0.1])}, values={"eta": (-0.1, 1.1, NAN)}),
        *(call(D.sample, label=f"sample, noise {k}", denoiser=denoiser, shape=(2, 4, 3), **here, **bad)
          for k, bad in enumerate(wrong_noise)),
        call(edit.image_to_image, d=D, denoiser=denoiser, x0=x, t=3, **merged(edited,
             types=edited["types"] | {"x0": L.not_data, "t": NO_INT, "sampler": NO_NAME, "eta": (True, "0.1"), "progress": (1,)},
             values=edited["values"] | {"x0": (x * NAN,), "t": (0, T + 1), "eta": (0.5,)}, names={"sampler": ("euler",)})),
        call(edit.inpaint, d=D, denoiser=denoiser, known=x, mask=mask, resamplings=1, **merged(edited,
             types=edited["types"] | {"known": L.not_data, "mask": (None, "m", 1, [True], X, L.ints), "jump_length": NO_INT,
                                      "resamplings": NO_INT},
             values=edited["values"] | {"mask": (mask[:, :3], mask[:1, :2]), "jump_length": (0,), "resamplings": (0, -1),
                                        "known": (x * NAN,)})),
        call(edit.interpolate, d=D, denoiser=denoiser, a=x, b=x, weights=[0.5], **merged(edited,
             types=edited["types"] | {"a": L.not_data, "b": (*NO_ARRAY, L.other), "weights": (None, 3, "1", ["a"], [True]),
                                      "encode": NO_NAME, "path": NO_NAME, "sampler": NO_NAME},
             values=edited["values"] | {"a": (x * NAN,), "b": (short, x * NAN), "weights": ((), [1.5], [-0.1], [NAN])},
             names={"encode": ("x",), "path": ("curve",), "sampler": ("euler",)})),
        call(edit.invert, d=D, denoiser=denoiser, x0=x, types=model | {"d": (None, 3), "x0": L.not_data, "iterations": NO_INT,
             "steps": (1.5,), "timesteps": (3,)},
             values={"x0": (x * NAN,), "iterations": (0,), "steps": (0, 9), "timesteps": ((), (5, 5, 0))}),
    ]  # fmt: skip


def networks(folder: Path) -> list[Call]:
    """Of Torch networks, training and pictures."""
    import torch
    from matplotlib.figure import Figure

    from tinyddpm import nn, plots, training
    from tinyddpm.training.evaluation import distances

    small: dict[str, Any] = {"image_size": 8, "in_channels": 1, "channels": 4, "mults": (1, 2), "res_blocks": 1, "attention": ()}
    net, labelled = nn.UNet(**small), nn.UNet(**small, classes=3)
    read = Denoiser(net, first_t=0)
    x, t, y = torch.zeros(2, 1, 8, 8), torch.tensor([1, 2]), torch.tensor([0, 3])
    no_ints: dict[str, Any] = {"types": (*NO_INT[:2], "3"), "values": (0, -1, 2**40)}
    sizes = ("in_channels", "out_channels", "channels", "res_blocks", "classes", "head_dim", "heads", "norm_groups")
    numbers = ("dropout", "norm_eps", "freq_shift")
    pictures = np.zeros((3, 1, 8, 8), np.uint8)
    images = training.Images(pictures)
    clean = np.zeros((2, 1, 4, 4), np.float32)
    names = ("optimizer", "precision", "time_sampler", "on_nonfinite", "predicts", "objective", "variance", "schedule")
    counts = ("steps", "batch_size", "accumulate", "checkpoint_every", "keep", "T", "samples")
    shares = ("held_out", "lr", "weight_decay", "grad_clip", "ema", "label_dropout")
    flags = ("flip", "classes", "compile", "verify_first", "resume")
    run = training.Run(labelled, D, Denoiser(labelled), training.TrainConfig(), 1, (1, 8, 8), 256)
    sets = np.random.default_rng(0).normal(size=(2, 6, 1))
    return [
        call(nn.UNet, **small,
             types={"image_size": (None, 8.0, True), "mults": (None, 3, "12", ("1",), (True,)),
                    "attention": (None, 4, "4", (True,)),
                    **dict.fromkeys(sizes, no_ints["types"]), **dict.fromkeys(numbers, NO_NUMBER),
                    "cos_first": NO_BOOL, "scale_shift": NO_BOOL, "resblock_updown": NO_BOOL, "null_class": NO_BOOL,
                    "downsample_padding": NO_INT},
             values={"image_size": (0, -8, 7, (8,), (8, 8, 8), (8, 7)), "mults": ((), (0,), (1,) * 13, (1, 1.1), (-0.5,), (NAN,)),
                     "mid_norm_groups": (-1, 3),
                     **dict.fromkeys(sizes, no_ints["values"]), **dict.fromkeys(numbers, (-2, 1.5, NAN)),
                     "channels": (5, 2, 0), "norm_groups": (3, 0), "head_dim": (3,), "heads": (3,), "downsample_padding": (2,)}),
        call(net.forward, label="UNet", x=x, t=t, types={"x": (None, X, x.to(torch.int64)), "t": (1, None, np.array([1, 2]))},
             values={"x": (x[:, :, :7], x[0], torch.zeros(2, 3, 8, 8)), "t": (t[:1], t[None], torch.tensor(1)), "y": (y,)}),
        call(labelled.forward, label="UNet with classes", x=x, t=t, y=y, types={"y": (1, [0, 1])},
             values={"y": (y.float(), y[:1], torch.tensor([0, 4]), torch.tensor([-1, 0]))}),
        call(nn.UNet(**small, classes=3, null_class=False).forward, label="UNet without a null class", x=x, t=t, y=y % 3,
             values={"y": (None, y)}),
        call(nn.to_backend, net=net, backend="numpy", types={"net": (None, lambda x, t: x), "backend": NO_NAME},
             names={"backend": ("tpu",)}),
        call(nn.to_backend(net, "numpy"), label="bridged", x=x.numpy(), t=t.numpy(), types={"x": (None, x, 3), "t": (None, 1)},
             values={}),
        call(training.TrainConfig,
             types={"data": (None, 3, ""), "out": (None, ""), **dict.fromkeys((*counts, "warmup", "seed"), NO_INT),
                    **dict.fromkeys(shares, NO_NUMBER), **dict.fromkeys(names, NO_NAME), **dict.fromkeys(flags, NO_BOOL),
                    "mults": (3, "12", (1.5,)), "attention": (4, "4", ("a",)), "channels": (1.5, None), "device": (3,),
                    "dropout": NO_NUMBER},
             values={**dict.fromkeys(counts, (0, -1, 2 ** 40)), "warmup": (-1,), "cooldown": (-1,), "seed": NO_SEED,
                     **{name: (-0.1, 11.0, NAN) for name in shares if name != "grad_clip"}, "grad_clip": (0, -1, NAN),
                     "channels": (0, -4), "mults": ((), (0,)), "attention": ((0,),), "res_blocks": (0,), "dropout": (-0.1, 1.0)},
             names=dict.fromkeys(names, ("other", ""))),
        call(lambda config: training.TrainConfig.from_dict(config), label="from_dict", config={}, types={"config": (None, 3)},
             names={"config": ({"step": 3}, {"": 1})}),
        call(lambda data: training.load(data), label="load", data="digits", types={"data": (None, 3, ["a"])}),
        call(images.split, types={"held_out": NO_NUMBER}, values={"held_out": (-0.1, 1.1, NAN)}),
        call(training.to_levels, x=clean, levels=17, types={"levels": NO_INT}, values={"levels": (1, 2**17)}),
        call(training.image_grid, images=pictures,
             types={"columns": NO_INT, "scale": NO_INT, "gap": NO_INT, "fill": NO_INT},
             values={"images": (None, pictures[0], pictures.astype(float), pictures[:0], "x", np.zeros((1, 2, 3, 3), np.uint8)),
                     "columns": (0,), "scale": (0, -1), "gap": (-1,), "fill": (-1, 256)}),
        call(plots.schedules, types={"names": (3, None, "linear", (3,)), "T": NO_INT}, values={"T": (0,), "names": ((),)},
             names={"names": (("other",),)}),
        call(plots.forward, d=D, x0=clean, types={"d": (None, 3), "t": (3, (1.5,)), "seed": NO_INT, "x0": (clean.astype(int),)},
             values={"x0": (None, clean[0], clean[:0], np.zeros((1, 2, 4, 4)), "x"), "t": ((6,), (-1,), ()), "seed": NO_SEED}),
        call(plots.columns, d=D, types={"d": (None, 3), "count": NO_INT}, values={"count": (1, 0, 2**20)}),
        call(plots.strip, columns=[clean], labels=["a"], types={"columns": (None, 3), "labels": (None, 3, "a")},
             values={"columns": ([clean[0]], ["x"], [clean[:0]]), "labels": ([], ["a", "b"])}),
        call(plots.trajectory, steps=[samplers.Step(1, clean, None)], types={"steps": (None, 3, [clean])},
             values={"steps": ((),)}),
        call(plots.loss, records=[{"step": 1, "loss": 0.5}], types={"records": (None, 3)},
             values={"records": ([], [3], [{}], [{"step": 1}], [{"step": 1, "loss": "a"}])}),
        call(plots.bound, vlb=likelihood.vlb(D, Denoiser(lambda x_t, t: x_t), X), types={"vlb": (None, 3, X)}),
        call(plots.rate_distortion, vlb=likelihood.vlb(D, Denoiser(lambda x_t, t: x_t), X), types={"vlb": (None, X)}),
        call(plots.save, figure=Figure(), file=folder / "a.png", types={"figure": (None, 3), "file": (None, 3)},
             names={"file": ("a.gif", "a", "")}),
        call(nn.save_diffusers, label="save_diffusers, options", dir=folder / "pipe", net=net, diffusion=D, denoiser=read,
             values={"denoiser": (Denoiser(net), Denoiser(net, "mu", first_t=0), Denoiser(labelled, first_t=0))}),
        call(nn.load_diffusers, dir=folder / "pipe", types={"dir": (None, 5)}),
        call(nn.UNet, label="UNet, more", **{**small, "attention": (4,), "norm_groups": 4},
             values={"dropout": (1.0,), "res_blocks": (65,), "image_size": (9,), "heads_upsample": (3,), "norm_groups": (8,)}),
        call(lambda net: nn.to_backend(net, "numpy")(x.numpy(), t.numpy()), label="bridged network", net=net,
             values={"net": (type("Pair", (torch.nn.Module,), {"forward": lambda self, x, t: (x, t)})(),)}),
        call(nn.to_backend(net, "numpy"), label="bridged lists", x=x.numpy(), t=t.numpy(), types={"x": (x.tolist(),)}),
        call(plots.sampler_error, errors={"ddim": {10: 0.1}}, types={"errors": (None, 3, [1], {"ddim": 0.1})},
             values={"errors": ({}, {"ddim": {}})}),
        call(net.save, dir=folder / "net", types={"dir": (None, 3)}),
        call(nn.UNet.load, dir=folder / "net", types={"dir": (None, 5)}),
        call(nn.save_diffusers, dir=folder / "pipe", net=net, diffusion=D, denoiser=read,
             types={"dir": (None, 3), "net": (None, 3), "diffusion": (None, 3), "denoiser": (None, 3)}),
        call(training.TrainConfig, types={"image_size": (2.5, True), "workers": ("2",), "levels": ("2",)},
             names={"bad_files": ("ignore",), "log_to": (("paper",),)},
             values={"image_size": (0, (4, 4, 4)), "workers": (-1, 257), "sample_every": (-1,), "held_out": (1.0,), "ema": (1.5,),
                     "label_dropout": (1.5,)}),
        call(training.preset, name="cpu", steps=5, types={"name": (3,), "steps": ("5",)}, names={"name": ("tpu",)},
             values={"steps": (0,)}),
        call(training.load, source="digits",
             types={"image_size": (2.5, True), "workers": ("2",), "levels": ("2",), "background": (1,)},
             values={"image_size": (0, (4, 4, 4)), "workers": (-1,), "levels": (1, 16, 2**17), "background": ("no colour",),
                     "value_range": ((1, 0), 3, (0, 1)), "channels": (0, 2), "labels": ("a.csv",)},
             names={"bad_files": ("ignore",)}),
        call(training.load, source=np.zeros((2, 2, 2)), types={"value_range": ((0, None),), "channels": (True,), "labels": (3,)},
             values={"labels": (np.zeros(2), np.arange(3))}),
        call(lambda **given: run.denoiser_for(**{"label": 1, "scale": 2.0} | given), label="Run.denoiser_for",
             types={"label": (True, "3"), "scale": ("2",)}, values={"label": (3, -1, [2, 3]), "scale": (NAN,)}),
        call(run.denoiser_for, values={"scale": (2.0,)}),
        call(distances.kernel, x=sets[0], y=sets[1],
             values={"x": (np.zeros(3), sets[0] * NAN), "y": (sets[1][:1], np.zeros((3, 2)))}),
        call(distances.precision, x=sets[0], y=sets[1], values={"k": (0, 6)}),
        call(distances.jackknife, measure=distances.kernel, x=sets[0], y=sets[1], groups=2, values={"groups": (1, 4)}),
        call(distances.frechet_gaussian, mean1=[0, 0], cov1=np.eye(2), mean2=[0, 0], cov2=np.eye(2),
             values={"cov1": (-np.eye(2),), "cov2": ([[1.0, 1.0], [0.0, 1.0]],), "mean2": ([0],)}),
        call(training.TrainConfig().denoiser, label="TrainConfig.denoiser", net=net, types={"net": (None, 3)}),
    ]  # fmt: skip


CALIBRATION = likelihood.calibrate(D, Denoiser(lambda x_t, t: x_t), X)
CALIBRATIONS = [
    call(CALIBRATION.timesteps, types={"steps": (True, 1.5, "3")}, values={"steps": (0, T + 1, -1)}),
    *(
        call(method, timesteps=(T, 0), types={"timesteps": (3, "50", None)}, values={"timesteps": ((3, 0), (T, 2), ())})
        for method in (CALIBRATION.variance, CALIBRATION.bits_per_dim, CALIBRATION.standard_error)
    ),
    call(CALIBRATION.chain, d=D, denoiser=Denoiser(lambda x_t, t: x_t),
         types={"d": (None, 3), "denoiser": (None, 3), "steps": (True, 1.5, "3")}, values={"steps": (0, T + 1)}),
    call(CALIBRATION.chain, d=D, denoiser=Denoiser(lambda x_t, t: x_t), timesteps=(T, 0), values={"steps": (1,)}),
]  # fmt: skip

HOST = [*CALIBRATIONS, *SCHEDULES, *PROCESS, *DENOISERS, *DATA_SETS, *NOISE, *TIMES, *KNOWN]


def on(name: str) -> list[Call]:
    L = Libraries(name)
    return [*maths(L), *learning(L), *sampling(L)]


def check(calls: list[Call]) -> int:
    """The number of malformed calls made, all answered."""
    wrong, count = [], 0
    for call in calls:
        call.function()
        for error, argument, value in call.rows():
            count += 1
            answer = answered(call, argument, value)
            if type(answer) is not error or not re.match(rf"{re.escape(argument)}\b", str(answer)):
                wrong.append(f"{call.label}({argument}={str(value)[:60]}): {answer!r}, {error.__name__} is due")
    assert not wrong, "\n".join(wrong)
    return count


def answered(call: Call, argument: str, value: Any) -> BaseException | None:
    try:
        call.function(**{argument: value})
    except Exception as error:
        return error
    return None


def test_on_the_host() -> None:
    assert check(HOST) > 600


def test_in_every_library(library: Library) -> None:
    assert check(on(library.name)) > 800


def test_of_networks_and_pictures(tmp_path: Path) -> None:
    for module in ("torch", "matplotlib", "safetensors"):
        pytest.importorskip(module)
    assert check(networks(tmp_path)) > 400


def test_the_check_sees_what_it_should() -> None:
    """It fails on a call that returns quietly, on an internal error, and on a message that names another argument."""
    for function in (lambda x=0: x, lambda x=0: [x][min(x, 1)], lambda x=0: D.timesteps(x or 1), lambda x=0: x and {}[x]):
        with pytest.raises(AssertionError, match="is due"):
            check([call(function, values={"x": (9,)})])


# Without CUDA's library or device.


@pytest.mark.skipif(bool(backends.available()["cupy"]), reason="CuPy works here")
@pytest.mark.parametrize(
    "function",
    [
        lambda: noise.normal(0, range(2), 1, (3,), backend="cupy"),
        lambda: D.sample(Denoiser(lambda x, t: x), (2, 3), backend="cupy"),
        lambda: list(D.trajectory(Denoiser(lambda x, t: x), (2, 3), backend="cupy", x_T=np.zeros((2, 3)))),
        lambda: backends.get("cupy").from_numpy(X),
        lambda: backends.get("cupy").namespace(),
        lambda: backends.get("cupy").devices(),
        lambda: noise.normal(0, range(2), 1, (3,), backend="numpy", device="cuda:0"),
        lambda: noise.normal(0, range(2), 1, (3,), backend="torch", device="cuda:7"),
        lambda: noise.normal(0, range(2), 1, (3,), backend="torch", device="nowhere"),
        lambda: noise.normal(0, range(2), 1, (3,), backend="jax", device="cuda:7"),
        lambda: D.sample(Denoiser(lambda x, t: x), (2, 3), device="cuda:0"),
        lambda: D.sample(Denoiser(lambda x, t: x), (2, 3), backend="torch", device="meta"),
    ],
)
def test_what_is_not_here_says_so(function: Callable[[], object]) -> None:
    with pytest.raises(backends.BackendUnavailable, match=r"^(device|cupy|CuPy|torch can't be imported)\b"):
        function()


# Networks that go wrong at one step.


def faulty(out: Callable[[Any], Any], at: int = 3) -> Callable[[Any, Any], Any]:
    return lambda x_t, t: out(x_t) if int(t[0]) == at else x_t


def faults(L: Libraries) -> dict[str, Callable[[Any], Any]]:
    wide = "float64"
    found = {
        "nothing": lambda x: None,
        "number": lambda x: 0.5,
        "list": lambda x: [[0.5]],
        "other": lambda x: L.other[:, :, :],
        "short": lambda x: x[:, :3, :],
        "flat": lambda x: L.array(np.zeros(24)),
        "doubled": lambda x: L.array(np.zeros((2, 8, 3))),
        "wide": lambda x: L.array(np.zeros((2, 4, 3)), wide),
        "integers": lambda x: L.ints,
        "nan": lambda x: x * NAN,
        "one nan": lambda x: L.array(np.where(np.arange(24).reshape(2, 4, 3) == 7, NAN, 0.0)),
        "inf": lambda x: L.array(np.full((2, 4, 3), INF)),
        "minus inf": lambda x: L.array(np.full((2, 4, 3), -INF)),
    }
    if L.name == "torch":
        found["meta"] = lambda x: x.to("meta")
    return found


USES: dict[str, Callable[[Any, Denoiser], Any]] = {
    **{name: partial(lambda name, x, net: D.sample(net, (2, 4, 3), sampler=name, x_T=x), name) for name in samplers.NAMES},
    "vlb": lambda x, net: likelihood.vlb(D, net, x),
    "optimal_variance": lambda x, net: likelihood.optimal_variance(D, net, x),
    "calibrate": lambda x, net: likelihood.calibrate(D, net, x),
    "inpaint": lambda x, net: edit.inpaint(D, net, x, np.zeros((2, 4, 3), bool), resamplings=1),
    "invert": lambda x, net: edit.invert(D, net, x),
    "interpolate": lambda x, net: edit.interpolate(D, net, x, x, [0.5]),
}


@pytest.mark.parametrize("use", USES)
def test_a_network_that_goes_wrong_is_named_with_the_step(library: Library, use: str) -> None:
    L = Libraries(library.name)
    for fault, out in faults(L).items():
        for clip in (True, False):
            denoiser = Denoiser(faulty(out), predicts="x0", clip_x0=clip)
            answer = answered(Call(use, partial(USES[use], L.x), {}, {}, {}), "net", denoiser)
            assert type(answer) is ValueError, f"{fault}, clip_x0={clip}: {answer!r}"
            assert re.match(r"net\b.*\bt = 3($|,)", str(answer)), f"{fault}, clip_x0={clip}: {answer}"


# What is legal and extreme.


def test_chains_of_one_step_and_of_many() -> None:
    for d in (Diffusion([0.5]), Diffusion([1e-12]), Diffusion(schedules.cosine(100_000))):
        net = Denoiser(lambda x_t, t: np.zeros_like(x_t), predicts="v")
        plan = d.timesteps(min(d.T, 4))
        for sampler in samplers.NAMES:
            x = d.sample(net, (2, 3), sampler=sampler, timesteps=plan)
            assert np.isfinite(x).all(), sampler
        assert np.isfinite(losses.vlb(d, net, X, d.T, X)).all()
    assert np.isfinite(likelihood.vlb(Diffusion([0.5]), net, X).total).all()


def test_where_float32_ends() -> None:
    """At sqrt(alpha_bar) = 1e-217 float32 has no x_0 of eps, which is said of the denoiser; float64 has, and v serves in both."""
    d = Diffusion(schedules.linear(100_000))
    d = d.respaced((100_000, 50_000, 0))
    x = X.astype(np.float32)
    net = Denoiser(lambda x_t, t: np.tanh(x_t))
    with pytest.raises(ValueError, match=r"^denoiser: x0 does not follow from eps at t = \d in float32$"):
        likelihood.vlb(d, net, x)
    for denoiser, data in ((net, X), (replace(net, predicts="v"), x)):
        assert np.isfinite(likelihood.vlb(d, denoiser, data).total).all()


def test_tiny_betas() -> None:
    """x_1 differs from x_0 by 1e-6 of noise: the bound is finite and eps is still read from x_t in float64."""
    d = Diffusion([1e-12] * 3)
    eps = noise.normal(0, range(2), 1, (4, 3), dtype="float64")
    np.testing.assert_allclose(d.convert(X, d.q_sample(X, 3, eps), 3, "x0", "eps"), eps, atol=1e-9)
    assert np.isfinite(likelihood.vlb(d, Denoiser(lambda x_t, t: x_t, predicts="x0"), X).total).all()


@pytest.mark.parametrize("levels", [2, 65_536])
@pytest.mark.parametrize("std", [1e-8, 1e8])
def test_tiny_and_huge_deviations(std: float, levels: int) -> None:
    x = np.linspace(-1, 1, levels)
    log_p = gaussian.discretized_log_likelihood(x, x, math.log(std), levels)
    assert np.isfinite(log_p).all()
    assert np.all(log_p <= 0)
    if std < 1:  # all of the mass is in the mean's bin
        np.testing.assert_allclose(log_p, 0.0, atol=1e-12)


def test_no_samples_at_all(library: Library) -> None:
    """n = 0: an empty answer of the right shape, whatever is asked."""
    name, net = library.name, Denoiser(lambda x_t, t: x_t)
    empty = library.array(np.zeros((0, 4, 3)), "float32")
    assert noise.normal(0, [], 1, (4, 3), backend=name).shape == (0, 4, 3)
    for sampler in samplers.NAMES:
        assert tuple(D.sample(net, (0, 4, 3), sampler=sampler, backend=name).shape) == (0, 4, 3)
    assert tuple(D.q_sample(empty, 3, empty).shape) == (0, 4, 3)
    assert tuple(losses.simple(D, net, empty, 3, empty).shape) == (0,)
    assert tuple(edit.inpaint(D, net, empty, np.zeros((0, 4, 3), bool)).shape) == (0, 4, 3)
    assert D.sample_t(0, 0).shape == (0,)
    assert NORMAL.sample(0).shape == (0, 4, 3)
