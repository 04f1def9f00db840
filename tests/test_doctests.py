"""Every example in a docstring of the core runs, and every public function of the core has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import tinyddpm

ROOT = Path(tinyddpm.__file__).parent
OUTSIDE = {"nn", "training", "_commands", "plots", "cli", "__main__"}  # these need Torch, Matplotlib or a terminal


def modules() -> list[str]:
    """The core's modules and `verify`, by their dotted names."""
    paths = (path.relative_to(ROOT.parent).with_suffix("") for path in sorted(ROOT.rglob("*.py")))
    names = (".".join(path.parts).removesuffix(".__init__") for path in paths if path.parts[1] not in OUTSIDE)
    return [name for name in names if name != "tinyddpm"]


@pytest.mark.parametrize("name", modules())
def test_the_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(module)
    assert result.failed == 0, f"{name}: run python -m doctest to see which"


def members(module: ModuleType) -> dict[str, Any]:
    """Public functions and methods of a module by their names, those of classes it defines or re-exports included."""
    found = {}
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isfunction(value):
            found[name] = value
        elif inspect.isclass(value) and value.__module__.startswith("tinyddpm"):
            own = {f"{name}.{key}": f for key, f in inspect.getmembers(value, inspect.isfunction) if key[0] != "_"}
            found |= {key: f for key, f in own.items() if f.__module__.startswith("tinyddpm")}
    return found


CORE = [name for name in tinyddpm.__all__ if name[0].islower()]


@pytest.mark.parametrize("name", CORE)
def test_functions_say_what_they_take_and_return(name: str) -> None:
    """Parameters where there are any, Returns or Yields where there is a result; errors only need a word where they occur."""
    for label, function in members(getattr(tinyddpm, name)).items():
        text, signature = inspect.getdoc(function) or "", inspect.signature(function)
        takes = any(p not in ("self", "cls") for p in signature.parameters)
        if takes:
            assert "Parameters" in text or "parameters" in text.lower(), f"{name}.{label} does not say what it takes"
        if signature.return_annotation not in (None, "None"):
            assert "Returns\n" in text or "Yields\n" in text, f"{name}.{label} does not say what it returns"
