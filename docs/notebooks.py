"""Make Jupyter notebooks of the lessons and tutorials, whose code the tests run.

`python docs/notebooks.py [--out notebooks]`

Python blocks are cells, and so are commands that stand after a ``$``; what they print is left out. A notebook stands alone: its
pictures are in it, and links to other pages are plain text.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\S*)\n(.*?)^```$\n?", re.MULTILINE | re.DOTALL)
INSTALL = "*Needs tinyddpm: `pip install '.[train,plots]'` in its folder.*"


def pages() -> list[Path]:
    """The pages with Python in them."""
    found = sorted(path for folder in ("learn", "tutorials") for path in (ROOT / "docs" / folder).glob("*.md"))
    return [page for page in found if "```python" in page.read_text(encoding="utf-8")]


def notebook(page: Path) -> dict[str, Any]:
    """A page as a notebook, in version 4.5 of Jupyter's format."""
    return {
        "cells": [{"id": f"cell-{k}", "metadata": {}, **cell} for k, cell in enumerate(_cells(page))],
        "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _cells(page: Path) -> Iterator[dict[str, Any]]:
    text, end, prose = page.read_text(encoding="utf-8"), 0, ""
    title, _, text = text.partition("\n")
    yield _markdown(f"{title}\n\n{INSTALL}", page)
    for block in BLOCK.finditer(text):
        prose += text[end : block.start()]
        end = block.end()
        code = block[2]
        if block[1] == "console":
            code = "".join(f"!{line[2:]}\n" for line in code.splitlines() if line.startswith("$ "))
        if not code or block[1] not in ("python", "console"):
            prose += block[0]  # shown, not run
            continue
        if prose.strip():
            yield _markdown(prose, page)
        prose = ""
        yield {"cell_type": "code", "source": code.rstrip("\n"), "execution_count": None, "outputs": []}
    if (prose + text[end:]).strip():
        yield _markdown(prose + text[end:], page)


def _markdown(text: str, page: Path) -> dict[str, Any]:
    attached: dict[str, Any] = {}

    def link(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        if re.match(r"[a-z]+:", target):
            return found[0]
        if not picture:
            return words
        file = page.parent / target
        kind = {".png": "image/png", ".svg": "image/svg+xml"}[file.suffix]
        attached[file.name] = {kind: base64.b64encode(file.read_bytes()).decode()}
        return f"![{words}](attachment:{file.name})"

    source = re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", link, text).strip()
    return {"cell_type": "markdown", "source": source} | ({"attachments": attached} if attached else {})


def write(out: Path) -> list[Path]:
    """Write every notebook to a folder; return the files."""
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for page in pages():
        file = out / f"{page.stem}.ipynb"
        file.write_text(json.dumps(notebook(page), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        files.append(file)
    return files


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("notebooks"), help="(default notebooks)")
    for file in write(parser.parse_args().out):
        print(file)
