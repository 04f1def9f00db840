"""What is released: the sdist holds all it takes to build the wheel, and the wheel works where there is nothing else."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import tinyddpm

ROOT = Path(__file__).parent.parent


def run(*command: object, **environment: str) -> str:
    """The standard output of a process that has to succeed."""
    done = subprocess.run(
        [str(word) for word in command], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("sdist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", out], cwd=ROOT, check=True)
    return next(out.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the unpacked sdist, not from the repository."""
    out = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(out, filter="data")
    (tree,) = out.iterdir()
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out], cwd=tree, check=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of ``python -S`` that finds the wheel and its three dependencies, and nothing else."""
    target = tmp_path_factory.mktemp("bare")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", target, wheel)
    for name in ("numpy", "scipy", "array_api_compat"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        package = Path(spec.origin).parent
        for folder in (package, package.with_name(f"{name}.libs")):
            if folder.exists():
                (target / folder.name).symlink_to(folder)
    return {"PYTHONPATH": str(target), "PYTHONDONTWRITEBYTECODE": "1"}


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == tinyddpm.__version__ == importlib.metadata.version("tinyddpm")
    assert f"\n## {tinyddpm.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, flags=re.MULTILINE)[1] == tinyddpm.__version__  # type: ignore[index]


def test_the_wheel_is_the_library_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = message_from_string(archive.read(next(n for n in names if n.endswith("/METADATA"))).decode())
    assert {name.partition("/")[0] for name in names} == {
        "tinyddpm", "tinyddpm_backends", f"tinyddpm-{tinyddpm.__version__}.dist-info",
    }  # fmt: skip
    assert {"tinyddpm/py.typed", "tinyddpm_backends/py.typed", "tinyddpm_backends/torch_backend.py"} <= names
    here = {str(path.relative_to(ROOT)) for path in (ROOT / "tinyddpm").rglob("*.py")}
    assert here == {name for name in names if name.startswith("tinyddpm/") and name.endswith(".py")}
    assert metadata["License-Expression"] == "MIT"
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra" not in line]
    assert sorted(re.split(r"[<>=]", line)[0] for line in needed) == ["array-api-compat", "numpy", "scipy"]


def test_the_sdist_has_what_its_tests_and_documents_need(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for needed in ("tests/conftest.py", "docs/conf.py", "docs/derivation.md", "benchmarks/results/accuracy.md", "Makefile",
                   "examples/array-api-strict-backend/pyproject.toml", "LICENSE", "CITATION.cff",
                   "constraints.txt", "constraints-lowest.txt"):  # fmt: skip
        assert needed in names


def test_it_works_where_nothing_else_is(bare: dict[str, str]) -> None:
    code = """
import sys, tinyddpm
assert not {"scipy", "array_api_compat", "torch"} & set(sys.modules)
from tinyddpm import Denoiser, Diffusion, backends
from tinyddpm.analytic import GaussianData
from tinyddpm.likelihood import vlb
d, data = Diffusion(), GaussianData([0.0, 0.1], [0.01, 0.01])
x = d.sample(Denoiser(data.net(d)), (3, 2), steps=5, sampler="unipc")
assert x.shape == (3, 2) and vlb(d.respaced(d.timesteps(5)), Denoiser(data.net(d)), x.clip(-1, 1)).total.shape == (3,)
print(tinyddpm.__file__, *(f"{name}: {status}" for name, status in backends.available().items()), sep="\\n")
"""
    where, *status = run(sys.executable, "-SP", "-c", code, **bare).splitlines()
    assert where.startswith(bare["PYTHONPATH"])
    assert any(line.startswith("torch: ") and 'pip install "tinyddpm[torch]"' in line for line in status)


def test_its_command_starts_there(bare: dict[str, str]) -> None:
    script = Path(bare["PYTHONPATH"], "bin", "tinyddpm")
    help_text = run(sys.executable, "-S", script, "--help", **bare)
    assert "train" in help_text
    assert run(sys.executable, "-S", script, "--version", **bare).strip() == f"tinyddpm {tinyddpm.__version__}"
    done = subprocess.run(
        [sys.executable, "-S", script, "train"], env={**os.environ, **bare}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert re.search(r"torch is not installed; pip install 'tinyddpm\[.*\]' brings it", done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_its_extras_resolve(wheel: Path) -> None:
    pytest.importorskip("torch")
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--dry-run", "--no-index"]
    assert f"Would install tinyddpm-{tinyddpm.__version__}" in run(*pip, "--force-reinstall", "--no-deps", wheel)
    assert "already satisfied: torch" in run(*pip, f"tinyddpm[torch] @ {wheel.as_uri()}")
