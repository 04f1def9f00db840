"""Fixtures and settings that every test shares."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, settings

from tinyddpm import backends
from tinyddpm.verify._truth import exactly

settings.register_profile("default", deadline=None, derandomize=True)
settings.register_profile(
    "mutation", settings.get_profile("default"), max_examples=20, phases=(Phase.explicit, Phase.generate)
)  # chosen by --hypothesis-profile: many short runs, of which only the verdict counts
settings.load_profile("default")

TINY = [
    *("--data", "digits", "--steps", "3", "--T", "6", "--channels", "4", "--mults", "1,2", "--res-blocks", "1"),
    *("--batch-size", "8", "--checkpoint-every", "2", "--cooldown", "0", "--precision", "float32"),
]
"""A run of seconds, as `tinyddpm train` takes it."""


sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "array-api-strict-backend"))
backends.register(replace(importlib.import_module("tinyddpm_array_api_strict").BACKEND, name="strict"))  # not yet installed


@pytest.fixture(autouse=True, scope="session")
def sixty_digits() -> Iterator[None]:
    """Decimal arithmetic in tests has 60 digits."""
    with exactly():
        yield


@dataclass(frozen=True)
class Library:
    """One backend as the tests use it."""

    backend: backends.Backend

    @property
    def name(self) -> str:
        return self.backend.name

    @property
    def xp(self) -> Any:
        return self.backend.namespace()

    def array(self, x: Any, dtype: str | None = None) -> Any:
        """x on the backend's default device; in x's own dtype where none is named."""
        return self.backend.from_numpy(np.asarray(x), dtype=dtype)

    def host(self, x: Any) -> np.ndarray:
        return self.backend.to_numpy(x)


def _library(name: str) -> Library:
    if name == "torch":
        pytest.importorskip("torch")
    if name == "jax":
        pytest.importorskip("jax").config.update("jax_enable_x64", True)
    return Library(backends.get(name))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trained run's folder, for tests that leave it as it is."""
    from tinyddpm.cli import main

    out = str(tmp_path_factory.mktemp("runs") / "digits")
    assert main(["train", *TINY, "--out", out, "--quiet"]) == 0
    return out


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A benchmark as a module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return __import__


@pytest.fixture(params=["numpy", "torch", "jax", "strict"])
def library(request: pytest.FixtureRequest) -> Library:
    """Every array library that runs on a CPU, in turn; JAX in double precision."""
    return _library(request.param)


@pytest.fixture(params=["numpy", "torch", "jax"])
def native(request: pytest.FixtureRequest) -> Library:
    """The built-in backends that run on a CPU, in turn."""
    return _library(request.param)


@pytest.fixture(params=["torch", "jax"])
def differentiable(request: pytest.FixtureRequest) -> Library:
    """The backends with gradients, in turn."""
    return _library(request.param)


@pytest.fixture(params=["torch", "cupy", "jax"])
def cuda(request: pytest.FixtureRequest) -> Library:
    """Every built-in backend with a CUDA device, in turn."""
    status = backends.available()[request.param]
    if not any(device.startswith("cuda") for device in status.devices):
        pytest.skip(f"no CUDA device for {request.param}: {status}")
    return _library(request.param)
