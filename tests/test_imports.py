"""Imports point one way, and the core stands on NumPy alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tinyddpm

ROOT = Path(tinyddpm.__file__).parent
FLOORS = (  # from the ground up: a module may import from its own floor or from below
    {"_arrays"},
    {"_io", "_backends"},
    {"backends"},
    {"conversions", "plans"},
    {"_numerics", "noise"},
    {"schedules"},
    {"gaussian"},
    {"_process"},
    {"_network"},
    {"denoiser"},
    {"_sampling", "_losses"},
    {"samplers", "losses", "_likelihood"},
    {"diffusion", "guidance", "likelihood"},
    {"analytic", "edit"},
    {"nn", "training", "verify"},
    {"plots", "_figures"},
    {"_commands"},
    {"cli"},
    {"__main__"},
)
HEAVY = {"array_api_compat", "cupy", "jax", "matplotlib", "PIL", "safetensors", "scipy", "sklearn", "torch", "tqdm"}


def floor(module: str) -> int:
    found = [height for height, names in enumerate(FLOORS) if module in names]
    assert found, f"{module} has no floor: add it to FLOORS"
    return found[0]


def module_level(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements that run when the module is imported; those for types only don't."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node


def imported(node: ast.Import | ast.ImportFrom) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if node.module == "tinyddpm":
        return {f"tinyddpm.{alias.name}" for alias in node.names}
    return {node.module or ""}


FILES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py" or path.parent != ROOT)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for node in module_level(ast.parse(path.read_text(encoding="utf-8"))):
        for name in imported(node):
            root, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if root == "tinyddpm" and target not in ("", "__version__", "Denoiser", "Diffusion", "Gaussian"):
                assert floor(target) <= floor(own), f"{path.name}:{node.lineno}: {own} must not import {target}"
            if own not in {"nn", "training"}:
                assert root not in HEAVY, f"{path.name}:{node.lineno}: {root} is imported at module level"
            assert root != "tinyddpm_backends", "the core reaches plug-ins through backends.get only"


@pytest.mark.parametrize("path", sorted((ROOT.parent / "backends/tinyddpm_backends").glob("*.py")), ids=lambda p: p.name)
def test_plug_ins_import_the_registry_and_their_own_library(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom) and not (isinstance(node, ast.ImportFrom) and node.level):
            for name in imported(node):
                if name.startswith("tinyddpm"):
                    assert name == "tinyddpm.backends", f"{path.name}:{node.lineno}: imports {name}"


def test_importing_the_package_loads_numpy_only() -> None:
    code = f"import sys, tinyddpm; print(*sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_every_public_module_says_what_it_is_and_what_it_offers() -> None:
    for name in tinyddpm.__all__:
        module = getattr(tinyddpm, name)
        assert module.__doc__, f"{name} has no docstring"
        if name[0].islower():
            assert module.__all__, f"{name} has no __all__"
            for public in module.__all__:
                assert hasattr(module, public)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tinyddpm.nonsense  # noqa: B018
    assert "nn" in dir(tinyddpm)
