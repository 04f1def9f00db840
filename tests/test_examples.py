"""The examples run and do what they say, and the plug-ins are found once they are installed beside this library."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyddpm import Denoiser, Diffusion
from tinyddpm.analytic import GaussianData

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def load(name: str) -> Any:
    """Return the example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_on_the_page_and_tested() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    distributions = [path.parent.name for path in EXAMPLES.glob("*/pyproject.toml")]
    assert len(SCRIPTS) >= 4
    assert len(distributions) >= 2
    assert all(f"]({name}" in page for name in (*SCRIPTS, *distributions))
    assert all(f"test_{name}" in globals() for name in SCRIPTS)


def test_custom_schedule(capsys: pytest.CaptureFixture[str]) -> None:
    example = load("custom_schedule")
    example.main()
    assert "-10.000" in capsys.readouterr().out
    d = example.straight(1000, 12.0, -8.0)
    # alpha_bar = 1 - 6e-6 at t = 1 is a float64: it holds log SNR = 12 to about 1e-16 / 6e-6, and the gaps to twice that.
    np.testing.assert_allclose(d.log_snr[1:], np.linspace(12.0, -8.0, 1000), atol=1e-10)


def test_custom_sampler(capsys: pytest.CaptureFixture[str]) -> None:
    """Its error falls with the square of the step size, and its result is that of a fine solver."""
    example = load("custom_sampler")
    example.main()
    assert len(capsys.readouterr().out.splitlines()) == 3
    d = Diffusion()
    denoiser = Denoiser(GaussianData(mean=np.array([0.3, -0.2]), var=np.array([0.01, 0.04])).net(d), clip_x0=False)
    x_T = np.random.default_rng(0).standard_normal((20, 2))
    truth = d.sample(denoiser, x_T.shape, x_T=x_T, sampler="unipc")
    error = [abs(example.two_stage(d, denoiser, x_T, steps) - truth).max() for steps in (5, 10, 20)]
    order = np.log2(error[:-1]) - np.log2(error[1:])
    assert (order > 1.7).all()  # 2, in the limit of small steps


def test_own_training_loop(capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    example = load("own_training_loop")
    levels = example.ring(1000, seed=0) * 127.5 + 127.5
    assert (abs(levels - levels.round()) < 1e-4).all()
    example.main(steps=300)
    radius, bits = capsys.readouterr().out.splitlines()
    assert "data: 0.70" in radius
    assert float(bits.split()[0]) < 8  # the bits of a uniform model
    assert torch.is_grad_enabled()


def test_diffusers_scheduler(capsys: pytest.CaptureFixture[str]) -> None:
    """Its steps equal those of diffusers for the same noise. The tolerance allows for alpha_bar in float32 there."""
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    example = load("diffusers_scheduler")
    example.main()
    assert "(2, 8, 8, 1)" in capsys.readouterr().out
    beta = np.linspace(1e-4, 0.02, 1000)
    ours = example.ChainScheduler(beta.tolist())
    theirs = diffusers.DDPMScheduler(trained_betas=beta, variance_type="fixed_small", clip_sample=True)
    x, eps = torch.randn(2, 3, 3, 3, dtype=torch.float64), torch.randn(2, 3, 3, 3, dtype=torch.float64)
    for t in (999, 500, 10, 1, 0):
        one, two = (each.step(eps, t, x, generator=torch.Generator().manual_seed(0)).prev_sample for each in (ours, theirs))
        torch.testing.assert_close(one, two, rtol=0, atol=2e-3)  # float32's 1 - alpha_bar_1 is 1.7e-4 off
    t = torch.tensor([999, 3])
    torch.testing.assert_close(ours.add_noise(x, eps, t), theirs.add_noise(x, eps, t), rtol=0, atol=1e-4)
    ours.set_timesteps(7)
    assert ours.timesteps.tolist()[0] == 999  # a plan always starts at T
    assert len(ours.timesteps) == 7


def test_overview_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    training = pytest.importorskip("tinyddpm.training")
    config = training.TrainConfig(out=str(tmp_path / "run"), steps=1, T=8, channels=4, batch_size=4)
    training.train(config)
    load("overview_picture").main(config.out, str(tmp_path / "overview.png"), index=(0, 3), columns=4)
    assert (tmp_path / "overview.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of a process in which both plug-ins are installed beside this library."""
    pytest.importorskip("hatchling")
    target = tmp_path_factory.mktemp("site")
    projects = [str(path.parent) for path in sorted(EXAMPLES.glob("*/pyproject.toml"))]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "--no-index", "--no-deps", "--no-build-isolation", "--target", str(target), *projects],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(target), os.environ.get("PYTHONPATH", "")])}


def measured(environment: dict[str, str], *words: str) -> tuple[int, Any]:
    """Return the exit code of ``tinyddpm`` and the JSON that it printed."""
    command = [sys.executable, "-m", "tinyddpm", *words, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_info_lists_installed_plug_ins(installed: dict[str, str]) -> None:
    code, found = measured(installed, "info")
    assert code == 0
    assert {"array-api-strict", "dask"} <= set(found["backends"])


def test_an_installed_plug_in_is_verified(installed: dict[str, str]) -> None:
    """All identities on this one are in test_verify, where it is registered by hand."""
    code, found = measured(installed, "verify", "--backend", "array-api-strict", "--only", "conversions")
    assert [entry["ok"] for entry in found["identities"]] == [True] * 6
    assert code == 0


@pytest.mark.slow
def test_identities_on_the_dask_plug_in(installed: dict[str, str]) -> None:
    pytest.importorskip("dask")
    code, found = measured(installed, "verify", "--backend", "dask")
    wrong = [entry["identity"] for entry in found["identities"] if not entry["ok"]]
    assert code == 1
    assert len(wrong) == 2
    assert all("full covariance" in identity for identity in wrong)  # Dask factorizes single matrices only


def test_dask_arrays_stay_lazy(installed: dict[str, str]) -> None:
    pytest.importorskip("dask")
    code = """
import dask.array as da, numpy as np
from tinyddpm import Diffusion, backends
d = Diffusion()
x0 = da.random.default_rng(0).uniform(-1, 1, (10_000, 8), chunks=(1000, 8))
kl = d.posterior(d.q_sample(x0, 500, x0), x0, 500).kl(d.q(x0, 499))
assert isinstance(kl, da.Array) and len(kl.chunks[0]) == 10, kl
x = backends.get("dask").to_numpy(x0)
assert np.allclose(kl.compute(), d.posterior(d.q_sample(x, 500, x), x, 500).kl(d.q(x, 499)), rtol=1e-12)
"""
    done = subprocess.run([sys.executable, "-c", code], env=installed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
