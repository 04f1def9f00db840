"""The registry finds backends; each built-in one copies arrays, knows the normal CDF and says why it can't be used."""

from __future__ import annotations

import importlib
import importlib.metadata
import math
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from decimal import Decimal
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinyddpm_backends
from cuda_on_host import compiled, pointer
from tinyddpm_backends import _cupy_kernels

from tinyddpm import backends, noise
from tinyddpm.backends import BackendUnavailable
from tinyddpm.verify import _core, _truth

BUILT_IN = ("numpy", "torch", "cupy", "jax")

# -------------------------------------------------------------------------------------------------------- the registry


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The registry, put back afterwards."""
    monkeypatch.setattr(backends, "_registered", dict(backends._registered))
    return backends


def _announce(monkeypatch: pytest.MonkeyPatch, **plugins: Any) -> None:
    """Let an installed distribution announce these objects as its plug-ins."""
    module = types.ModuleType("someones_plugin")
    vars(module).update(plugins)
    monkeypatch.setitem(sys.modules, "someones_plugin", module)
    entries = [EntryPoint(name, f"someones_plugin:{name}", "tinyddpm.backends") for name in plugins]
    entries.append(EntryPoint("missing", "no_such_module_anywhere:BACKEND", "tinyddpm.backends"))
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: entries)


def test_the_built_in_ones_are_found_under_their_names() -> None:
    assert backends.names()[:4] == BUILT_IN
    for name in BUILT_IN:
        assert backends.get(name).name == name
        assert backends.get(name) is backends.get(name)
    with pytest.raises(LookupError, match=r"^backend must be one of numpy, torch, cupy, jax, .* got 'tensorflow'"):
        backends.get("tensorflow")


def test_a_third_party_registers_under_a_free_name(registry: Any) -> None:
    mine = replace(backends.get("numpy"), name="mine")
    registry.register(mine)
    assert registry.get("mine") is mine
    assert "mine" in registry.names()
    assert registry.available()["mine"].devices == ("cpu",)
    for taken in ("mine", "torch"):
        with pytest.raises(ValueError, match=f"backend must have a name that is not taken, got '{taken}'"):
            registry.register(replace(mine, name=taken))
    with pytest.raises(FrozenInstanceError):
        mine.name = "other"


def test_a_plug_in_is_loaded_by_get_or_available_only(registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def factory() -> backends.Backend:
        loaded.append(1)
        return replace(backends.get("numpy"), name="factory", roots=("nobody",))

    instance = replace(backends.get("numpy"), name="instance", roots=("nobody",))
    _announce(monkeypatch, factory=factory, instance=instance)
    assert {"factory", "instance"} <= set(registry.names())
    assert registry.of(np.ones(2)).name == "numpy"
    assert not loaded
    assert registry.get("instance") is instance
    assert registry.get("factory") is registry.get("factory")
    assert loaded == [1]
    assert registry.available()["factory"]
    with pytest.raises(ValueError, match="taken"):
        registry.register(instance)


def test_a_broken_plug_in_harms_its_own_name_only(registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises() -> Any:
        raise KeyError("the third party's mistake")

    fine = replace(backends.get("numpy"), name="fine")
    later = {"devices": replace(fine, name="devices", devices=raises), "version": replace(fine, name="version", version=raises)}
    _announce(monkeypatch, raises=raises, wrong=lambda: 3, fine=fine, **later)
    for name, reason in (("raises", "third party's mistake"), ("wrong", "int"), ("missing", "no_such_module_anywhere")):
        with pytest.raises(BackendUnavailable, match=rf"^{name}\b"):
            registry.get(name)
        assert not registry.available()[name]
        assert reason in str(registry.available()[name])
    known = registry.available()
    for name in later:
        assert not known[name]
        assert str(known[name]).startswith(f"{name} can't be used: KeyError")
    assert known["fine"]
    assert known["numpy"]
    assert registry.of(np.ones(2)).name == "numpy"


# --------------------------------------------------------------------------------------------- installed or not, devices


def test_an_available_backend_has_a_version_and_devices(native: Any) -> None:
    status = backends.available()[native.name]
    assert status
    assert status.version == importlib.import_module(native.name).__version__
    assert "cpu" in status.devices
    for device in status.devices:
        moved = native.backend.from_numpy(np.arange(3.0), device=device)
        assert (native.host(moved) == [0, 1, 2]).all()


@pytest.mark.parametrize("name", ["torch", "cupy", "jax"])
def test_a_missing_library_is_reported_with_the_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as if not installed
    backend = backends.get(name)
    for use in (backend.version, backend.devices, backend.namespace, lambda: backend.from_numpy(np.ones(2))):
        with pytest.raises(BackendUnavailable, match=rf'{name} .*pip install "tinyddpm\[{name}\]"'):
            use()
    assert backends.of(np.ones(2)).name == "numpy"


def test_cupy_without_a_device_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> int:
        raise RuntimeError("cudaErrorInsufficientDriver")

    for count, reason in ((no_driver, "cudaErrorInsufficientDriver"), (lambda: 0, "NVIDIA GPU")):
        runtime = types.SimpleNamespace(getDeviceCount=count)
        fake = types.SimpleNamespace(__version__="13.0", cuda=types.SimpleNamespace(runtime=runtime))
        monkeypatch.setitem(sys.modules, "cupy", fake)
        backend = backends.get("cupy")
        for use in (backend.version, backend.devices, backend.namespace, lambda b=backend: b.from_numpy(np.ones(2))):
            with pytest.raises(BackendUnavailable, match=f"no CUDA device.*{reason}"):
                use()


@pytest.mark.parametrize("device", ["cpu:3", "nonsense", "", "cuda:99", 3])
def test_a_device_that_is_not_here_is_named(native: Any, device: Any) -> None:
    with pytest.raises(BackendUnavailable, match=f"^device must be .*, got ({str(device)!r}|{device!r})$"):
        native.backend.from_numpy(np.ones(2), device=device)


def test_a_librarys_own_device_object_is_accepted(differentiable: Any) -> None:
    x = differentiable.backend.from_numpy(np.ones(2))
    again = differentiable.backend.from_numpy(np.ones(2), device=x.device)
    assert again.device == x.device


def test_imports_load_no_library() -> None:
    code = (
        "import sys, tinyddpm.backends as b\n"
        "heavy = {'scipy', 'torch', 'cupy', 'jax', 'array_api_compat', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "import numpy; [b.get(name) for name in ('numpy', 'torch', 'cupy', 'jax')]; b.of(numpy.ones(2))\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]


# --------------------------------------------------------------------------------------------------- copies of arrays


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "int32", "uint8", "bool"])
def test_a_copy_there_and_back_changes_nothing(native: Any, dtype: str) -> None:
    host = np.random.default_rng(0).exponential(2, (2, 3, 4)).astype(dtype)
    there = native.backend.from_numpy(host)
    assert backends.of(there).name == native.name
    assert dtype in str(there.dtype)
    back = native.host(there)
    assert back.dtype == host.dtype
    assert (back == host).all()
    if dtype.startswith("float"):
        assert dtype in str(native.backend.from_numpy(host.astype(np.float64), dtype=dtype).dtype)


AWKWARD: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "negative strides": lambda a: a[::-1, ::-2],
    "transposed": lambda a: a.T,
    "0-d": lambda a: a[0, 0, ...],
    "empty": lambda a: a[:0],
    "big-endian": lambda a: a.astype(">f8"),
    "a row of zeros' stride": lambda a: np.broadcast_to(a[0], (3, 4)),
}


@pytest.mark.parametrize("case", AWKWARD)
def test_any_layout_is_copied(native: Any, case: str) -> None:
    host = AWKWARD[case](np.arange(24.0).reshape(6, 4))
    there = native.host(native.backend.from_numpy(host))
    assert there.shape == host.shape
    assert (there == host).all()


def test_no_copy_shares_memory_with_the_caller(native: Any) -> None:
    host = np.arange(4096.0)
    there = native.backend.from_numpy(host)
    host[:] = -1
    back = native.host(there)
    assert (back == np.arange(4096.0)).all()
    back[:] = -2  # writable, and ours
    assert (native.host(there) == np.arange(4096.0)).all()
    frozen = np.arange(3.0)
    frozen.flags.writeable = False
    there = native.backend.from_numpy(frozen)
    if native.name != "jax":
        there += 1
    assert (frozen == [0, 1, 2]).all()


def test_a_dtype_may_be_given_itself(library: Any) -> None:
    for dtype in (library.xp.float64, np.float64, np.dtype("float64"), "float64"):
        drawn = noise.normal(0, range(2), 1, (3,), backend=library.name, dtype=dtype)
        assert drawn.dtype == library.xp.float64
        if library.name != "strict":
            assert library.backend.from_numpy(np.ones(2, np.float32), dtype=dtype).dtype == library.xp.float64


def test_jax_without_x64_refuses_double_precision() -> None:
    jax = pytest.importorskip("jax")
    backend = backends.get("jax")
    jax.config.update("jax_enable_x64", False)
    try:
        for options in ({}, {"dtype": "float64"}):
            with pytest.raises(ValueError, match=r"dtype must be at most 32 bits wide.*got float64.*jax_enable_x64"):
                backend.from_numpy(np.ones(2), **options)
        with pytest.raises(ValueError, match=r"dtype must be .*got int64"):
            backend.from_numpy(np.array([2**40]))
        assert str(backend.from_numpy(np.ones(2), dtype="float32").dtype) == "float32"
        assert backend.to_numpy(backend.from_numpy(np.arange(3))).tolist() == [0, 1, 2]
    finally:
        jax.config.update("jax_enable_x64", True)


# ---------------------------------------------------------------------------------------------- log of the normal CDF


def _log_ndtr(x: float) -> Decimal:
    return _truth.log_upper(-Decimal(x))


def _hazard(x: float) -> Decimal:
    return (-(Decimal(x) ** 2) / 2 - _log_ndtr(x)).exp() / (2 * _truth.PI).sqrt()


def _worst(values: np.ndarray, exact: Callable[[float], Decimal], x: np.ndarray) -> float:
    """The largest relative error."""
    return _core.relative_error(values, (exact(float(xi)) for xi in x))


GRID = np.concatenate((-np.logspace(1, 8, 80), np.linspace(-10, 12, 441) + 0.0123, np.linspace(12, 37, 51) + 0.0321))
# Near 0.4 XLA's own log and log1p are some ulp off; in single precision the libraries' erfc and exp are.
VALUE_BOUND = {"float64": 1e-14, "float32": 2e-6}
SLOPE_BOUND = {"float64": 1e-14, "float32": 2e-6}


def _grid(dtype: str) -> np.ndarray:
    x = GRID.astype(dtype)
    return x if dtype == "float64" else x[x < 12.5]  # beyond, results are below float32's normal numbers


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_log_ndtr_is_the_log_of_the_normal_cdf(native: Any, dtype: str) -> None:
    x = _grid(dtype)
    value = native.host(native.backend.log_ndtr(native.array(x)))
    assert value.dtype == dtype
    assert _worst(value, _log_ndtr, x) < VALUE_BOUND[dtype]


def _slope(name: str, x: np.ndarray) -> np.ndarray:
    backend = backends.get(name)
    if name == "torch":
        leaf = backend.from_numpy(x).requires_grad_()
        backend.log_ndtr(leaf).sum().backward()
        return backend.to_numpy(leaf.grad)
    jax = importlib.import_module("jax")
    return np.asarray(jax.grad(lambda v: backend.log_ndtr(v).sum())(backend.from_numpy(x)))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_gradient_of_log_ndtr_holds_in_both_tails(differentiable: Any, dtype: str) -> None:
    x = _grid(dtype)
    slope = _slope(differentiable.name, x)
    assert slope.dtype == dtype
    assert _worst(slope, _hazard, x) < SLOPE_BOUND[dtype]


def test_far_out_the_gradient_is_minus_x(differentiable: Any) -> None:
    x = -np.array([1e8, 1e12, 1e100, 1e150])  # relative to -x the rest, 1/x**2, is below rounding
    assert np.abs(_slope(differentiable.name, x) / -x - 1).max() < 1e-15
    assert _slope(differentiable.name, np.array([1e3, 1e100, np.inf])).tolist() == [0, 0, 0]


def test_the_second_derivative_of_log_ndtr(differentiable: Any) -> None:
    x = np.linspace(-6, 6, 25)
    backend = differentiable.backend
    if differentiable.name == "torch":
        torch = importlib.import_module("torch")
        second = torch.func.vmap(torch.func.grad(torch.func.grad(backend.log_ndtr)))(backend.from_numpy(x)).numpy()
    else:
        jax = importlib.import_module("jax")
        second = np.asarray(jax.vmap(jax.grad(jax.grad(backend.log_ndtr)))(backend.from_numpy(x)))
    exact = [float(-h * (Decimal(float(xi)) + h)) for xi in x for h in [_hazard(float(xi))]]
    assert np.abs(second - exact).max() < 1e-12  # differences of terms as large as x**2


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_log_ndtr_of_infinity_and_nan(native: Any, dtype: str) -> None:
    x = native.array(np.array([-np.inf, np.inf, np.nan, 0.0]), dtype)
    value = native.host(native.backend.log_ndtr(x))
    assert value.dtype == dtype
    assert value[0] == -np.inf
    assert value[1] == 0
    assert np.isnan(value[2])
    assert value[3] == np.asarray(math.log(0.5), dtype)
    extreme = native.array(np.array([np.finfo(dtype).max, np.finfo(dtype).min]))
    assert native.host(native.backend.log_ndtr(extreme)).tolist() == [0, -np.inf]


def test_log_ndtr_of_bfloat16_is_the_float32_one_rounded(differentiable: Any) -> None:
    backend = differentiable.backend
    x = backend.from_numpy(np.linspace(-50, 5, 23), dtype="bfloat16")
    wide = backend.from_numpy(backend.to_numpy(x), dtype="float32")
    expected = backend.from_numpy(backend.to_numpy(backend.log_ndtr(wide)), dtype="bfloat16")
    assert (backend.to_numpy(backend.log_ndtr(x)) == backend.to_numpy(expected)).all()


ON_HOST = """
#include <cmath>
using std::isinf;
static double erfcx(double x)
{
    long double z = x, w = 1 / (z * z);
    return z < 100 ? expl(z * z) * erfcl(z) : (1 - w / 2 + w * w * 3 / 4 - w * w * w * 15 / 8) / (z * sqrtl(M_PIl));
}
extern "C" void log_ndtr(int n, const double *from, double *to)
{
    for (int i = 0; i < n; ++i) {
        const double x = from[i];
        double &y = to[i];
        BODY
    }
}
"""


def test_cupys_log_ndtr_run_on_the_host(tmp_path: Path) -> None:
    run = compiled(tmp_path, ON_HOST.replace("BODY", _cupy_kernels.LOG_NDTR)).log_ndtr
    x = np.concatenate((_grid("float64"), [-np.inf, np.inf, np.nan]))
    value = np.empty_like(x)
    run(len(x), pointer(x), pointer(value))
    assert _worst(value[:-3], _log_ndtr, x[:-3]) < 1e-14
    assert str(value[-3:]) == "[-inf  -0.  nan]"


@pytest.mark.gpu
def test_a_device_knows_the_normal_cdf(cuda: Any) -> None:
    x = _grid("float64")
    value = cuda.host(cuda.backend.log_ndtr(cuda.backend.from_numpy(x, device="cuda")))
    assert _worst(value, _log_ndtr, x) < 1e-14


def test_no_grad_switches_gradients_off(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, torch = library.array(np.ones(2)), pytest.importorskip("torch")
    for context in (backends.no_grad(x), backends.gradients_off(x)()):
        with context:
            assert torch.is_grad_enabled() == (library.name != "torch")
    assert torch.is_grad_enabled()
    monkeypatch.setattr(backends, "_registered", {})
    with backends.no_grad(x):  # also for a library that no backend knows
        pass


def test_the_package_says_what_it_holds() -> None:
    for name in BUILT_IN:
        module = importlib.import_module(f"tinyddpm_backends.{name}_backend")
        assert module.__doc__
        assert "BACKEND" in module.__all__
    assert tinyddpm_backends.__doc__
