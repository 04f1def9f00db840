"""`tinyddpm.verify`: every identity holds on every backend, and each kind of mistake is noticed."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import tinyddpm.likelihood
from tinyddpm import Denoiser, Diffusion, backends, cli, gaussian, guidance, losses, samplers, schedules, verify
from tinyddpm.analytic import ExactNet
from tinyddpm.verify import _core, _gaussians, _sampling, _truth


def failed(*args: Any, **options: Any) -> dict[str, verify.Result]:
    return {r.identity: r for r in verify.identities(*args, **options) if not r.ok}


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("numpy", "float64"),
        ("numpy", "float32"),
        ("torch", "float64"),
        ("torch", "float32"),
        ("strict", "float64"),
        ("strict", "float32"),
        ("jax", "float64"),
        pytest.param("jax", "float32", marks=pytest.mark.slow),
    ],
)
def test_every_identity_holds(backend: str, dtype: str) -> None:
    if backend in ("torch", "jax"):
        pytest.importorskip(backend)
    if backend == "jax":
        pytest.importorskip("jax").config.update("jax_enable_x64", True)
    results = list(verify.identities(backend, dtype=dtype))
    assert len(results) >= 60
    assert len({r.identity for r in results}) == len(results)
    assert not [r for r in results if not r.ok]
    gradients = [r for r in results if "gradient" in r.identity or "derivative" in r.identity]
    assert len(gradients) == (2 if backend in ("torch", "jax") else 0)


def test_the_bounds_are_those_of_the_contract() -> None:
    """4 units for tables, 16 for schedules, 1e-10 nats for the decoder, 1e-12 for its bins, and 0 for what is exact."""
    bound = {identity.name: identity.bound(PLACE) for identity in verify._IDENTITIES}
    assert all(b == 4 for name, b in bound.items() if "against exact arithmetic" in name and name.partition(" ")[0] in TABLES)
    assert all(b == 16 for name, b in bound.items() if name.startswith("schedules."))
    assert all(b <= 1e-10 for name, b in bound.items() if name.startswith("the decoder"))
    assert bound["the decoder's bins sum to 1"] <= 1e-12
    assert bound["KL is positive, and 0 only for equal Gaussians"] == 0


PLACE = _core.Place(backends.get("numpy"), None, "float64")
TABLES = {"alpha_bar", "one_minus_alpha_bar", "beta_tilde", "log_snr", "sqrt(alpha_bar)"}


# A mistake is noticed.


@pytest.fixture
def off() -> Iterator[str]:
    """A plug-in whose log_ndtr is off by one in a million."""
    right = backends.get("numpy")
    wrong = dataclasses.replace(right, name="off", log_ndtr=lambda x: right.log_ndtr(x) * (1 + 1e-6))
    backends.register(wrong)
    yield wrong.name
    del backends._registered[wrong.name]


def test_a_wrong_special_function_fails(off: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "--backend", off, "--only", "Phi"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("log Phi against known values") and line.endswith("FAILED") for line in lines)
    assert cli.main(["verify", "--backend", off, "--only", "Phi", "--json"]) == 1
    wrong = {entry["identity"] for entry in json.loads(capsys.readouterr().out)["identities"] if not entry["ok"]}
    assert "log Phi against known values" in wrong


def test_a_backend_that_raises_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(x: Any) -> None:
        raise RuntimeError("no such kernel")

    backends.register(dataclasses.replace(backends.get("numpy"), name="broken", log_ndtr=broken))
    try:
        assert cli.main(["verify", "--backend", "broken", "--only", "Phi"]) == 1
        printed = capsys.readouterr()
        assert "FAILED (RuntimeError: no such kernel)" in printed.out
        assert printed.err == ""
        assert cli.main(["verify", "--backend", "broken", "--only", "Phi", "--json"]) == 1
        entries = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["identities"]  # no NaN in JSON
        wrong = {entry["identity"]: entry for entry in entries if not entry["ok"]}
        assert wrong["log Phi against known values"]["max_error"] is None
        assert "no such kernel" in wrong["log Phi against known values"]["error"]
        assert cli.main(["verify", "--backend", "broken", "--only", "KL"]) == 0  # which needs no such kernel
    finally:
        del backends._registered["broken"]


def off_by_a_little(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **options: (1 + 1e-6) * right(*args, **options)


def cosine_as_a_quotient(right: Callable[..., Any]) -> Callable[..., Any]:
    def cosine(T: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> NDArray[np.float64]:
        f = np.cos((np.arange(T + 1) / T + s) / (1 + s) * np.pi / 2) ** 2
        return np.asarray(np.minimum(1 - f[1:] / f[:-1], max_beta))

    return cosine


def running_product(d: Diffusion) -> NDArray[np.float64]:
    return np.append(1.0, np.cumprod(1 - d.beta[1:]))


def kl_that_cancels(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda m1, v1, m2, v2: 0.5 * (np.exp(v1 - v2) - 1 - (v1 - v2) + (m1 - m2) ** 2 * np.exp(-v2))


def bound_with(**wrong: Any) -> Callable[..., Any]:
    """likelihood.vlb with a field multiplied."""

    def change(right: Callable[..., Any]) -> Callable[..., Any]:
        def vlb(*args: Any, **options: Any) -> Any:
            result = right(*args, **options)
            return dataclasses.replace(result, **{name: factor * getattr(result, name) for name, factor in wrong.items()})

        return vlb

    return change


def noise_in_the_last_step(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: [dataclasses.replace(row, std=0.01 if row.std == 0 else row.std) for row in right(*args)]


# The identity, the owner of the function, the function's name there, and the mistake.
MISTAKES = {
    "cosine as a quotient": ("schedules.cosine", schedules.NAMES, "cosine", cosine_as_a_quotient),
    "alpha_bar": ("alpha_bar against", Diffusion, "alpha_bar", lambda f: property(running_product)),
    "1 - alpha_bar": (
        "one_minus_alpha_bar against", Diffusion, "one_minus_alpha_bar", lambda f: property(lambda d: 1 - running_product(d))
    ),
    "q_sample": ("q_sample is", Diffusion, "q_sample", off_by_a_little),
    "q_between": (
        "two steps of q", Diffusion, "q_between", lambda f: lambda d, x, s, t: f(d, x, s, t - 1 if t - s > 1 else t)
    ),
    "posterior": ("Bayes' rule", Diffusion, "posterior", lambda f: lambda d, x_t, x0, t, s=None: f(d, x_t, 1.001 * x0, t, s)),
    "convert": ("conversions from v", Diffusion, "convert", off_by_a_little),
    "KL": ("KL against exact", gaussian, "kl", off_by_a_little),
    "KL that cancels": ("KL is positive", gaussian, "kl", kl_that_cancels),
    "KL of full covariances": ("the full covariance's KL of diag", gaussian, "kl_full", off_by_a_little),
    "the tanh": (
        "the decoder against", gaussian, "discretized_log_likelihood", lambda f: lambda *args: f(*args[:4], "ho2020")
    ),
    "noise": ("noise is Philox", _sampling, "normal", off_by_a_little),
    "noise of the batch": (
        "noise does not depend", _sampling, "normal", lambda f: lambda seed, index, *a, **o: f(seed, range(len(index)), *a, **o)
    ),
    "noise in the last step": (
        "ancestral sampling with variance beta_tilde", samplers.NAMES, "ddpm", noise_in_the_last_step
    ),
    "eta": ("DDIM at eta = 1", samplers.NAMES, "ddim", lambda f: lambda d, plan, eta: f(d, plan, 0.9 * eta)),
    "a fixed variance": ("ancestral sampling with variance beta is", Denoiser, "log_var_from", off_by_a_little),
    "losses.vlb": ("losses.vlb is", losses, "vlb", off_by_a_little),
    "one term for the sum": ("losses.hybrid is", losses, "hybrid", lambda f: losses.simple),
    "weighting": ("weighting 'snr'", losses, "weighted", off_by_a_little),
    "the decoder's part": ("the bound is L_T plus", tinyddpm.likelihood, "vlb", bound_with(decoder=1.0001)),
    "L_T": ("L_T in closed form", tinyddpm.likelihood, "vlb", bound_with(prior=1.0001)),
    "guidance": ("classifier-free", guidance, "classifier_free", lambda f: lambda net, y, scale, null: f(net, y, 1.0, null)),
    "a known network": ("a Gaussian's E[eps", ExactNet, "__call__", off_by_a_little),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, owner, attribute, wrong = MISTAKES[mistake]
    identities = [identity for identity in verify._IDENTITIES if identity.name.startswith(name)]
    assert identities, name
    monkeypatch.setattr(verify, "_IDENTITIES", identities)
    assert not failed()
    if isinstance(owner, dict):
        monkeypatch.setitem(owner, attribute, wrong(owner[attribute]))
    else:
        monkeypatch.setattr(owner, attribute, wrong(getattr(owner, attribute)))
    assert failed()


# The oracle, against mpmath: special functions by other algorithms, formulas written once more.

mp = mpmath.mp.clone()
mp.dps = 90


def mass_above(z: mpmath.mpf) -> mpmath.mpf:
    """The standard normal's mass above z."""
    return mp.erfc(z / mp.sqrt(2)) / 2


def log_mass(level: int, levels: int, mean: mpmath.mpf, log_std: mpmath.mpf) -> mpmath.mpf:
    """The log of the mass of N(mean, exp(log_std)**2) in a level's bin."""
    n = levels - 1
    low = -mp.inf if level == 0 else (mp.mpf(2 * level - 1 - n) / n - mean) / mp.exp(log_std)
    high = mp.inf if level == n else (mp.mpf(2 * level + 1 - n) / n - mean) / mp.exp(log_std)
    if low + high < 0:
        low, high = -high, -low
    return mp.log(mass_above(low) - (0 if mp.isinf(high) else mass_above(high)))


def close(ours: Decimal, theirs: mpmath.mpf, digits: int = 40) -> None:
    assert abs(mp.mpf(str(ours)) - theirs) <= abs(theirs) * mp.mpf(10) ** -digits + mp.mpf(10) ** -55


def test_special_functions_are_mpmaths() -> None:
    for z in (-1e6, -50.0, -20.0, -3.0, 0.0, 0.7, 3.999, 4.0, 30.0, 1e8):
        close(_truth.log_upper(Decimal(z)), mp.log(mass_above(mp.mpf(z))))
    for x in (0.0, 0.3, 1.5):
        close(_truth.cos(Decimal(x)), mp.cos(mp.mpf(x)))


@given(
    st.sampled_from([2, 17, 256, 65_536]),
    st.floats(0, 1),
    st.floats(-18.4, 18.4),
    st.floats(-2, 2),
    st.sampled_from([0, 1, 5000]),
)
@settings(max_examples=60)
def test_the_mass_of_a_bin_and_its_gradient_are_mpmaths(
    levels: int, place: float, log_std: float, offset: float, distance: int
) -> None:
    level = round(place * (levels - 1))
    mean = 2 * level / (levels - 1) - 1 + offset * (distance * math.exp(log_std) + 1 / levels)
    m, v = mp.mpf(mean), mp.mpf(log_std)
    # A bin of 1e-12 standard deviations costs the decimal oracle 24 of its digits.
    close(_truth.log_mass(level, levels, mean, log_std), log_mass(level, levels, m, v), digits=25)
    step = mp.mpf(10) ** -30
    differences = (
        (log_mass(level, levels, m + dm, v + dv) - log_mass(level, levels, m - dm, v - dv)) / (2 * step)
        for dm, dv in ((step * mp.exp(v), 0), (0, step))
    )
    slope, log_std_slope = _truth.log_mass_gradient(level, levels, mean, log_std)
    scale = 1 + abs(offset * distance) ** 2  # the error of a difference, step**2 times a third derivative
    for ours, theirs in zip((slope * Decimal(log_std).exp(), log_std_slope), differences, strict=True):
        assert abs(mp.mpf(str(ours)) - theirs) <= 1e-20 * scale


def test_weights_are_those_of_bayes_rule() -> None:
    """The precision of q(x_s | x_t, x_0) is the sum of the two precisions, and its mean their weighted mean."""
    chain = _truth.Chain(schedules.linear(50).tolist())
    for t, s in ((2, 1), (50, 49), (50, 7)):
        kept, prior = chain.alpha_bar[t] / chain.alpha_bar[s], 1 - chain.alpha_bar[s]
        var = 1 / (kept / (1 - kept) + 1 / prior)
        expected = (var * chain.alpha_bar[s].sqrt() / prior, var * kept.sqrt() / (1 - kept), var)
        for ours, bayes in zip(chain.weights(t, s), expected, strict=True):
            assert abs(ours / bayes - 1) < Decimal("1e-50")
        snr = mp.mpf(str(chain.alpha_bar[t] / (1 - chain.alpha_bar[t])))
        close(chain.log_snr(t), mp.log(snr))
    assert list(chain.weights(1, 0)) == [1, 0, 0]


def test_the_embedded_values_are_mpmaths() -> None:
    for x, log, slope in _gaussians._LOG_NDTR:
        z = mp.mpf(x)
        assert float(np.float32(x)) == x
        log_ndtr = mp.log(mass_above(-z))
        assert abs(mp.mpf(log) / log_ndtr - 1) < 1e-20
        density = mp.exp(-z * z / 2 - log_ndtr) / mp.sqrt(2 * mp.pi)
        assert abs(mp.mpf(slope) / density - 1) < 1e-20


def test_philox_of_pythons_integers_gives_the_published_words() -> None:
    top = 2**64 - 1  # the third of Random123's vectors
    last = (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0)
    for counter, key, words in (*_sampling.KNOWN_ANSWERS, ((top,) * 4, (top,) * 2, last)):
        assert _sampling.philox(counter, key) == words


# The command.


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "--only", "KL"]) == 0
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["identity", "max", "error", "bound", "unit", "verdict"]
    assert 0 < len(rows) < 10
    assert all("KL" in row and row.endswith("  ok") for row in rows)
    assert last == f"{len(rows)} identities, 0 failed: numpy, float64"
    assert cli.main(["verify", "--only", "kl of"]) == 2
    assert "only must be part of the name of an identity, got 'kl of'" in capsys.readouterr().err


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "--dtype", "float32", "--json", "--only", "KL"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["dtype"] == "float32"
    assert len(printed["identities"]) > 1
    for entry in printed["identities"]:
        assert {"identity", "max_error", "bound", "unit", "ok"} <= set(entry)
        assert entry["ok"] is (entry["max_error"] <= entry["bound"])
        assert entry["unit"] in {"ulp", "nats", "relative", "absolute"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backend", "nope"], "backend must be one of"),
        (["--device", "cuda:9"], "device must be 'cpu' for NumPy, got 'cuda:9'"),
        (["--dtype", "float8"], "dtype must be one of"),
        (["--backend", "cupy"], "cupy"),
    ],
)
def test_what_cannot_be_measured_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if words == ["--backend", "cupy"] and backends.available()["cupy"]:
        pytest.skip("CuPy can be used here")
    assert cli.main(["verify", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert message in err


@pytest.mark.slow
def test_the_command_switches_jax_to_float64_and_the_function_does_not() -> None:
    pytest.importorskip("jax")
    run = subprocess.run([sys.executable, "-m", "tinyddpm", "verify", "--backend", "jax"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    code = "from tinyddpm import verify; verify.identities('jax')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ValueError: dtype must be at most 32 bits wide in JAX's default mode, got float64" in run.stderr
