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
BACKENDS = ROOT.parent / "backends/tinyddpm_backends"
FLOORS = (  # from the ground up: a module may import from its own floor or from below
    {"_arrays"},
    {"_io", "_backends"},
    {"backends"},
    {"conversions", "plans"},
    {"_numerics", "noise"},
    {"_schedules"},
    {"schedules"},
    {"gaussian"},
    {"_process"},
    {"_network"},
    {"denoiser"},
    {"_sampling", "_losses"},
    {"_calibration"},
    {"losses", "_likelihood"},
    {"diffusion", "samplers", "guidance", "_editing"},
    {"calibration"},
    {"likelihood"},
    {"analytic", "edit"},
    {"plots"},
    {"nn", "training", "verify"},
    {"_commands"},
    {"cli"},
    {"__main__"},
)
HEAVY = {"array_api_compat", "cupy", "jax", "matplotlib", "PIL", "safetensors", "scipy", "sklearn", "torch", "tqdm"}


def floor(module: str) -> int:
    found = [height for height, names in enumerate(FLOORS) if module in names]
    assert found, f"{module} has no floor: add it to FLOORS"
    return found[0]


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of whatever a file imports: at its head, in functions, and for types only."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module_name(path).split(".")
            package = parts if path.name == "__init__.py" else parts[:-1]
            base = ".".join([*package[: len(package) + 1 - node.level], *([node.module] if node.module else [])])
            base = base if node.level else node.module or ""
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def module_name(path: Path) -> str:
    root = BACKENDS if BACKENDS in path.parents else ROOT
    return ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__")


FILES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py" or path.parent != ROOT)
MODULES = {module_name(path): path for path in (*FILES, *BACKENDS.glob("*.py"))}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    here = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for line, name in imported(path):
        root, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if root == "tinyddpm" and target not in ("", "__version__", "Denoiser", "Diffusion", "Gaussian"):
            assert floor(target) <= floor(here), f"{path.name}:{line}: {here} must not import {target}"
        assert root != "tinyddpm_backends", f"{path.name}:{line}: the core reaches plug-ins through backends.get only"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_imports_no_heavy_library_at_its_head(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] not in {"nn", "training"}:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.partition(".")[0] not in HEAVY, f"{path.name}:{node.lineno}: {name}"


def test_no_files_import_each_other_in_a_circle() -> None:
    """Whatever the kind of import: a graph without circles can be taken apart from its leaves."""
    graph = {}
    for name, path in MODULES.items():
        targets = {t if t in MODULES else t.rpartition(".")[0] for _, t in imported(path)} & set(MODULES)
        graph[name] = {t for t in targets if t != name and not name.startswith(f"{t}.")}
    while leaves := [name for name, targets in graph.items() if not targets & set(graph)]:
        for name in leaves:
            del graph[name]
    assert not graph, f"in a circle, or above one: {sorted(graph)}"


OPENING = {
    "FileIO", "NamedTemporaryFile", "TemporaryFile", "TarFile", "ZipFile", "fdopen", "fromfile", "genfromtxt", "imread", "imsave",
    "loadtxt", "memmap", "mkstemp", "mmap", "open", "open_binary", "pread", "read_bytes", "read_text", "savetxt", "savez",
    "savez_compressed", "tofile", "write_bytes", "write_text",
}  # fmt: skip
WITHIN = ("stream", "bounded", "packed", "archive", "target", "files", "content")  # names of what came through the door


def opened_elsewhere(path: Path) -> Iterator[str]:
    """The calls of a file that open files by themselves, and not what `tinyddpm._io.files` has opened."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
        of = called.value.id if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) else ""
        first = ast.unparse(node.args[0]) if node.args else ""
        numpys = of in ("np", "torch", "json", "pickle", "tomllib", "configparser") and name in ("load", "save")
        ours = isinstance(called, ast.Name) and name in ("read_bytes", "write_bytes")
        if (name in OPENING or numpys) and of not in WITHIN and first not in WITHIN and not ours:
            yield f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)[:60]}"


def test_files_are_opened_at_one_door() -> None:
    allowed = {  # the door; folders; what stands in for a closed stream; the package's own page
        "_io/files.py", "nn/_folders.py: os.open(folder, os.O_RDONLY)",
        "cli.py: os.open(os.devnull, ", "cli.py: open(os.devnull, ",
        "_commands/plot.py: resources.files('tinyddpm._commands').joinpath('play.html').",
    }  # fmt: skip
    found = set()
    for path in FILES:
        for call in opened_elsewhere(path):
            file, _, text = call.split(":", 2)
            assert file in allowed or any(f"{file}:{text}".startswith(each) for each in allowed), call
            found.add(file)
    assert "_io/files.py" in found


@pytest.mark.parametrize(
    "line", ["open(x)", "Path(x).read_text()", "p.write_bytes(b'')", "np.load(x)", "Image.open(path)", "os.open(x, 0)",
             "ZipFile(x)", "json.load(open(x))", "os.fdopen(3)", "io.FileIO(x)"],
)  # fmt: skip
def test_the_search_for_other_doors_finds_them(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "a.py").write_text(line)
    assert list(opened_elsewhere(tmp_path / "a.py"))


@pytest.mark.parametrize("path", sorted(BACKENDS.glob("*.py")), ids=lambda p: p.name)
def test_plug_ins_import_the_registry_and_their_own_library(path: Path) -> None:
    for line, name in imported(path):
        if name.startswith("tinyddpm."):
            assert name.startswith("tinyddpm.backends"), f"{path.name}:{line}: imports {name}"


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


def test_dir_lists_the_public_names_once_each() -> None:
    names = dir(tinyddpm)
    assert len(names) == len(set(names))
    assert set(names) == {*tinyddpm.__all__, "cli", "nn", "plots", "training", "verify", "__version__"}
