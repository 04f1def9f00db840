"""The documents as the tests read them: their code blocks, commands and links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "benchmarks/results/**/*.md") for path in ROOT.glob(pattern)
)
"""Every page of the site."""


class Block(NamedTuple):
    """A fenced block: its language, its text, and the line on which that starts."""

    language: str
    text: str
    line: int


def name(path: Path) -> str:
    """The path from the repository's root."""
    return path.relative_to(ROOT).as_posix()


def blocks(text: str, *languages: str) -> Iterator[Block]:
    """The page's blocks, in order; of these languages, or all."""
    for found in re.finditer(r"^```(\S*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        if not languages or found[1] in languages:
            yield Block(found[1], found[2], text.count("\n", 0, found.start()) + 2)


def run(block: Block, page: Path, namespace: dict[str, object]) -> None:
    """Run Python; a failure has the page's own line numbers."""
    exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)


def prose(text: str) -> str:
    """The page without its blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def links(text: str) -> list[str]:
    """What the page links to, pictures included; code in a line is no link."""
    plain = re.sub(r"`[^`\n]*`", "code", prose(text))
    return re.findall(r"\]\(\s*([^)\s]+)(?:\s+\"[^\"]*\")?\s*\)", plain)


def anchors(text: str) -> set[str]:
    """The headings' anchors, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.+)$", prose(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def commands(text: str) -> list[str]:
    """Each ``tinyddpm ...`` of the console blocks and in the lines of the text."""
    lines = [line for block in blocks(text, "console") for line in block.text.splitlines()]
    found = [match[1] for line in lines if (match := re.search(r"(?:^|^\$ |-m )(tinyddpm(?: .*)?)$", line))]
    return found + re.findall(r"`(tinyddpm [a-z][^`\n]*)`", prose(text))
