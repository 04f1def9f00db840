"""The notebooks hold the code of their pages, which other tests run, and need no other file."""

from __future__ import annotations

import base64
import re
import sys
from pathlib import Path
from typing import Any

import pages
import pytest

sys.path.insert(0, str(pages.ROOT / "docs"))
import notebooks

PAGES = notebooks.pages()


def sources(page: Path, kind: str) -> list[str]:
    return [cell["source"] for cell in notebooks.notebook(page)["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("page", PAGES, ids=pages.name)
def test_its_cells_are_the_pages_blocks(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    code = sources(page, "code")
    blocks = [block.text.rstrip("\n") for block in pages.blocks(text, "python")]
    assert [cell for cell in code if not cell.startswith("!")] == blocks
    commands = [line[2:] for block in pages.blocks(text, "console") for line in block.text.splitlines() if line[:2] == "$ "]
    assert [line[1:] for cell in code if cell.startswith("!") for line in cell.splitlines()] == commands


@pytest.mark.parametrize("page", PAGES, ids=pages.name)
def test_it_stands_alone(page: Path) -> None:
    """Every sentence is there; pictures are inside; no link leads to a file beside it."""
    cells = [cell for cell in notebooks.notebook(page)["cells"] if cell["cell_type"] == "markdown"]
    for cell in cells:
        attached: dict[str, Any] = cell.get("attachments", {})
        targets = re.findall(r"\]\(([^)\s]+)\)", cell["source"])
        assert {t.partition(":")[2] for t in targets if t.startswith("attachment:")} == set(attached)
        assert all(re.match(r"[a-z]+:", target) for target in targets), targets
        for kind in attached.values():
            assert all(base64.b64decode(data)[:4] in (b"\x89PNG", b"<svg") for data in kind.values())
    words = re.findall(r"\w+", re.sub(r"\]\([^)]*\)", "]", pages.prose(page.read_text(encoding="utf-8"))))
    kept = re.findall(r"\w+", re.sub(r"\]\([^)]*\)", "]", pages.prose("\n".join(cell["source"] for cell in cells))))
    assert [word for word in kept if word not in re.findall(r"\w+", notebooks.INSTALL)] == [
        word for word in words if word not in re.findall(r"\w+", notebooks.INSTALL)
    ]


def test_it_is_of_jupyters_format() -> None:
    nbformat = pytest.importorskip("nbformat")
    for page in PAGES:
        nbformat.validate(notebooks.notebook(page))


def test_each_has_a_name_of_its_own(tmp_path: Path) -> None:
    files = notebooks.write(tmp_path)
    assert len(set(files)) == len(PAGES) >= 15
