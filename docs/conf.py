"""How Sphinx makes the site. Its source folder is the repository's root, so that a link means the same there as on the site."""

from __future__ import annotations

import os
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

from tinyddpm import __version__
from tinyddpm.cli import parser

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import notebooks  # noqa: E402

project = "tinyddpm"
version = release = __version__
author = copyright = "The tinyddpm authors"

root_doc = "README"
include_patterns = ["*.md", "docs/**.md", "examples/**.md", "benchmarks/results/**.md"]
exclude_patterns = [".*", "build", "demo", "dist", "runs", "site"]
suppress_warnings = ["myst.xref_missing", "myst.header", "ref.python"]  # tests/test_docs.py checks links

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # the signatures' annotations are long; the text says shapes and units
napoleon_google_docstring = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"tinyddpm {__version__}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
mathjax_path = "mathjax/tex-chtml.js"


def others(pattern: str, *first: str) -> list[str]:
    """These pages, and then whichever others match the pattern."""
    found = sorted(path.relative_to(ROOT).with_suffix("").as_posix() for path in ROOT.glob(pattern))
    return [*first, *(page for page in found if page not in first)]


def named(pages: list[str]) -> list[str]:
    """Entries with the file's name for a title, and its machine's: a measurement's own is a sentence."""
    made = []
    for page in pages:
        folder, _, name = page.removeprefix("benchmarks/results/").rpartition("/")
        machine = f", {folder.capitalize()}" if folder not in ("", "docs") else ""
        made.append(f"{name.replace('_', ' ').capitalize()}{machine} <{page}>")
    return made


NOTEBOOKS = frozenset(notebooks.pages())
TUTORIALS = [f"docs/tutorials/{name}" for name in ("train", "likelihood", "diffusers", "many-machines", "backend")]
API = [f"docs/api/{name}" for name in ("process", "sampling", "likelihood", "backends", "torch", "tools", "commands")]
LESSONS = [f"docs/learn/{name}" for name in ("forward", "reverse", "bound", "decoder", "objective", "algorithms")]
LESSONS += ["docs/learn/tightest", "docs/learn/experiments"]
TEXTS = [f"docs/{name}" for name in ("derivation", "sources", "design", "sample-flow", "data", "how-to", "gallery")]
NAVIGATION = {
    "Learn": others("docs/learn/*.md", *LESSONS),
    "Use": [
        *others("docs/tutorials/*.md", *TUTORIALS),
        "docs/data",
        "docs/how-to",
        "docs/gallery",
        "examples/README",
        *others("examples/*/README.md"),
        *others("docs/migration/*.md"),
    ],
    "Understand": ["docs/derivation", "docs/sources", "docs/design", "docs/sample-flow"],
    "Reference": others("docs/api/*.md", *API),
    "Evidence": named([*others("docs/*.md", *TEXTS)[len(TEXTS) :], *others("benchmarks/results/**/*.md")]),
    "Project": [page for page in others("*.md", "CHANGELOG", "CONTRIBUTING") if page != root_doc],
}
"""The sidebar. Pages of docs/ that have no place above are evidence, as the measurements are."""


class Help(Directive):
    """``.. help:: COMMAND``: what ``tinyddpm COMMAND --help`` prints."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        os.environ["COLUMNS"] = "100"
        text = parser(self.arguments[0]).format_help()
        return [nodes.literal_block(text, text, language="none")]


def setup(app: Any) -> None:
    """Sphinx's hook."""
    app.add_directive("help", Help)
    app.connect("env-get-outdated", lambda app, env, *_: env.found_docs)  # a new page is in every page's sidebar
    app.connect("source-read", add_navigation)
    app.connect("source-read", add_notebook)
    app.connect("autodoc-process-docstring", prepare, priority=100)  # before napoleon's
    app.connect("build-finished", finish)


def add_navigation(app: Any, page: str, source: list[str]) -> None:
    """The home page is the README, which has no sidebar on it."""
    if page == root_doc:
        for caption, pages in NAVIGATION.items():
            source[0] += "\n".join(["\n```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```\n"])


def add_notebook(app: Any, page: str, source: list[str]) -> None:
    """A page that is a notebook too says so below its title."""
    if (ROOT / page).with_suffix(".md") in NOTEBOOKS:
        title, _, text = source[0].partition("\n")
        file = f"{'../' * page.count('/')}notebooks/{page.rpartition('/')[2]}.ipynb"
        source[0] = f'{title}\n\n<a href="{file}" download>This page as a notebook</a>\n{text}'


def prepare(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make a docstring reStructuredText: escape asterisks outside code, and end the parameters before a paragraph."""
    code = r"``[^`]+``|`[^`]+`|^ *>>> .*$|^ *\.\. math:: .*$"
    escaped = re.sub(rf"({code})|(?<![\w(*])(\*+)(?=\w)", lambda m: m[1] or "\\" + m[2], "\n".join(lines), flags=re.MULTILINE)
    lines[:] = escaped.split("\n")
    if "Parameters" in lines:
        start = lines.index("Parameters") + 2
        for k in range(start, len(lines)):
            line, after = lines[k], lines[k + 1] if k + 1 < len(lines) else ""
            if line[:1].strip() and not lines[k - 1] and not after.startswith((" ", "---")):
                lines[k:k] = ["Notes", "-----"]
                break


def finish(app: Any, error: Exception | None) -> None:
    """Put MathJax, its fonts and the notebooks beside the pages, which then need no network; the home page is index.html."""
    spec = find_spec("sphinx-mathjax-offline")
    if error is None and spec is not None and spec.origin is not None:
        mathjax, out = Path(spec.origin).parent / "static/mathjax", Path(app.outdir)
        shutil.copytree(mathjax / "output/chtml/fonts", out / "_static/mathjax/output/chtml/fonts", dirs_exist_ok=True)
        shutil.copy(mathjax / "tex-chtml.js", out / "_static/mathjax")
        shutil.copy(out / f"{root_doc}.html", out / "index.html")
        notebooks.write(out / "notebooks")
