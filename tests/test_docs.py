"""The documents: their code runs, their commands parse, what they name exists, and the site builds from them alone."""

from __future__ import annotations

import ast
import importlib
import itertools
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pages
import pytest

import tinyddpm
from tinyddpm import backends
from tinyddpm.cli import COMMANDS, parser

README = pages.ROOT / "README.md"
ELSEWHERE = {"README.md", "docs/tutorials/train.md"}
"""Their code runs below and in test_newcomer; that of docs/learn runs in test_learn."""


@cache
def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def with_code(page: Path) -> bool:
    return pages.name(page) not in ELSEWHERE and page.parent.name != "learn" and any(pages.blocks(text(page), "python"))


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backends that a page registers are forgotten after it; array-api-strict has none but the page's."""
    known = {name: known for name, known in backends._registered.items() if name != "strict"}
    monkeypatch.setattr(backends, "_registered", known)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers
@pytest.mark.parametrize("page", [page for page in pages.PAGES if with_code(page)], ids=pages.name)
def test_the_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: None) -> None:
    imported = r"^(?:from|import) (torch|diffusers|jax|PIL|tinyddpm\.(?:nn|training))\b"
    for library in set(re.findall(imported, text(page), flags=re.MULTILINE)):
        pytest.importorskip("torch" if library.startswith("tinyddpm") else library)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in pages.blocks(text(page), "python"):
        pages.run(block, page, namespace)


def test_the_readmes_code_runs_and_samples_have_the_datas_mean(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {}
    code = list(pages.blocks(text(README), "python"))
    assert len([line for line in code[0].text.splitlines() if line]) <= 8
    for block in code:
        pages.run(block, README, namespace)
    printed = re.findall(r"-?\d+\.\d+", capsys.readouterr().out)
    # 1000 samples of std 0.6: four standard errors are 0.08. The mixture's std is sqrt(0.01 + 0.36) and sqrt(0.01 + 0.0225).
    assert [float(x) for x in printed] == pytest.approx([0.0, 0.15, 0.608, 0.180], abs=0.08)


def test_the_set_up_is_two_commands() -> None:
    assert next(pages.blocks(text(README), "console")).text == "make demo\nmake test\n"


@pytest.mark.parametrize("line", sorted({line for page in pages.PAGES for line in pages.commands(text(page))}))
def test_commands_parse(line: str) -> None:
    pytest.importorskip("torch")
    _, *words = shlex.split(line)
    if not words or words[0].startswith("-"):
        return
    name, *words = words
    assert name in COMMANDS
    if words and words != ["--help"]:
        parser(name).parse_intermixed_args(words)


@cache
def functions(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_what_is_named_exists(page: Path) -> None:
    """Tests by name, files of the repository, make's targets."""
    for file, name in re.findall(r"`(tests/\w+\.py)::(\w+)`", text(page)):
        assert name in functions(pages.ROOT / file), f"{file}::{name}"
    for file in re.findall(r"(?:`|python )((?:benchmarks|tests|examples|docs|tinyddpm)/[\w./-]+\.\w+)", text(page)):
        assert (pages.ROOT / file).exists() or "MODULE" in file, file
    targets = set(re.findall(r"^([a-z-]+):", (pages.ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text(page), flags=re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in pages.links(text(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in pages.anchors(text(target)), link


def test_every_page_is_fenced_in_pairs() -> None:
    for page in pages.PAGES:
        assert len(re.findall("^```", text(page), flags=re.MULTILINE)) == 2 * len(list(pages.blocks(text(page)))), page


def test_every_command_has_its_reference() -> None:
    page = text(pages.ROOT / "docs/api/commands.md")
    assert re.findall(r"^\.\. help:: (\w+)$", page, flags=re.MULTILINE) == list(COMMANDS)


def test_every_public_module_has_its_reference() -> None:
    documented = " ".join(text(page) for page in pages.PAGES if "docs/api" in pages.name(page))
    for module in pkgutil.iter_modules(tinyddpm.__path__, "tinyddpm."):
        if not module.name.rpartition(".")[2].startswith("_"):
            assert re.search(rf"(automodule|autoclass):: {re.escape(module.name)}\b", documented) or any(
                f"autoclass:: tinyddpm.{name}" in documented for name in importlib.import_module(module.name).__all__
            ), module.name


def attribute_docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """The strings that document attributes: those that follow an assignment in a module or class."""
    for node in ast.walk(ast.parse(text(path))):
        body = node.body if isinstance(node, ast.Module | ast.ClassDef) else []
        for before, after in itertools.pairwise(body):
            value = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
            if isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(value, str):
                yield after.lineno, value


def test_no_attribute_is_rendered_with_its_description_for_a_type() -> None:
    """Napoleon takes what precedes a colon in an attribute's first line for its type, unless it is code."""
    for path in sorted((pages.ROOT / "tinyddpm").rglob("*.py")):
        for line, docstring in attribute_docstrings(path):
            first = re.sub(r"``.*?``|`.*?`", "", docstring.splitlines()[0])
            assert not re.search(r":\s", first), f"{path.name}:{line}: {docstring.splitlines()[0]}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-c", "docs"]
    done = subprocess.run(
        [*command, "-d", tmp_path / "trees", ".", tmp_path / "site"],
        cwd=pages.ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*") if path.is_file()}
    assert {pages.name(page).removesuffix(".md") + ".html" for page in pages.PAGES} <= made
    assert {"index.html", "_static/mathjax/tex-chtml.js"} <= made
    for path in (tmp_path / "site").rglob("*.html"):
        html = path.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|link)[^>]*(?:src|href)=\"(?:https?:)?//[^>]*>", html), path
        for link in re.findall(r"<a[^>]* href=\"(?![a-z]+:)([^\"#]+)", html):
            assert (path.parent / link).exists(), f"{path}: {link}"
        if "docs/api" in path.as_posix():
            assert r"\*" not in re.sub(
                r'<(?:span|div) class="(?:math|highlight)[^>]*>.*?</(?:span|div)>', "", html, flags=re.DOTALL
            ), path
