"""docs/learn/: the code runs, what is named exists, and each equation names what computes and what checks it."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pages
import pytest

LESSONS = sorted((pages.ROOT / "docs/learn").glob("*.md"))
NAMES = sorted({name for page in LESSONS for name in re.findall(r"`(tinyddpm(?:\.\w+)+)`", page.read_text("utf-8"))})
WITHOUT_FUNCTION = {"The older form, and why it is not used", "Beside a variational autoencoder"}
"""Sections whose equations are shown and not computed."""


@pytest.mark.parametrize("page", LESSONS, ids=pages.name)
def test_the_code_runs(page: Path) -> None:
    """Blocks in order, in one namespace; most compare a formula with the library."""
    namespace: dict[str, object] = {}
    found = list(pages.blocks(page.read_text(encoding="utf-8"), "python"))
    for block in found:
        pages.run(block, page, namespace)
    assert len(found) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_every_function_named_exists(name: str) -> None:
    words = name.split(".")
    found: object = import_module("tinyddpm")
    if words[1] in ("nn", "training"):
        pytest.importorskip("torch")
    for k, word in enumerate(words[1:], start=2):
        found = getattr(found, word, None) or import_module(".".join(words[:k]))
    assert getattr(found, "__doc__", None), "a public name is documented"


@pytest.mark.parametrize("page", LESSONS, ids=pages.name)
def test_every_equation_names_what_computes_it_and_what_checks_it(page: Path) -> None:
    for title, body in re.findall(r"^## (.+)\n((?:(?!^## ).*\n)*)", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
        if "$$" in body and title not in WITHOUT_FUNCTION:
            assert re.search(r"`tinyddpm\.\w+", body), f"{title}: no function"
            assert re.search(r"`tests/\w+\.py::", body), f"{title}: no test"
