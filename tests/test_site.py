"""The site as a browser shows it: no page is wider than the window, and the search finds what a reader looks for."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pages
import pytest

SITE = pages.ROOT / "site"
WIDTHS = (360, 390, 820, 1100, 1366, 1600, 1920, 2560)
KINDS = ("index", "docs/learn/bound", "docs/api/process", "docs/api/commands", "docs/evidence", "docs/migration/names",
         "docs/tutorials/train", "docs/sources", "docs/gallery", "benchmarks/results/objectives", "CHANGELOG",
         "search")  # fmt: skip
"""A page of each kind; all of them are looked at by make test-all."""

MEASURE = """<!doctype html><pre id="found"></pre><script>
const wide = [];
async function look(page) {
  const frame = document.createElement('iframe');
  frame.style.cssText = 'height: 900px; border: 0';
  document.body.append(frame);
  await new Promise(done => { frame.onload = done; frame.src = BASE + page; });
  const math = frame.contentWindow.MathJax;
  if (math && math.startup) await math.startup.promise;
  for (const width of WIDTHS) {
    frame.style.width = width + 'px';
    const needed = frame.contentDocument.documentElement.scrollWidth;
    if (needed > width) wide.push([page, width, needed]);
  }
  frame.remove();
}
(async () => {
  for (const page of PAGES) await look(page);
  document.getElementById('found').textContent = JSON.stringify(wide);
})();
</script>"""


def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("Chromium is not installed")
    if not (SITE / "index.html").exists():
        pytest.skip("site/ is not there: make docs builds it")
    return found


def shown(url: str, folder: Path) -> str:
    """The page's elements as Chromium has them in the end."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
               "--disable-component-update", "--disable-sync", "--allow-file-access-from-files",
               f"--user-data-dir={folder}", "--virtual-time-budget=600000", "--dump-dom"]  # fmt: skip
    done = subprocess.run([browser(), *options, url], capture_output=True, text=True, check=True, timeout=300)
    return done.stdout


def too_wide(names: Sequence[str], site: Path, folder: Path) -> list[Any]:
    """The pages that scroll sideways: their name, the window's width, and the width that they take."""
    values = {"BASE": site.as_uri() + "/", "PAGES": [f"{name}.html" for name in names], "WIDTHS": WIDTHS}
    code = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in values.items())
    (folder / "measure.html").write_text(MEASURE.replace("<script>", f"<script>\n{code}"), encoding="utf-8")
    found = re.search(r'<pre id="found">(.+?)</pre>', shown((folder / "measure.html").as_uri(), folder / "profile"), re.DOTALL)
    assert found is not None
    return json.loads(html.unescape(found[1]))  # type: ignore[no-any-return]


def test_no_page_scrolls_sideways(tmp_path: Path) -> None:
    browser()
    assert too_wide(KINDS, SITE, tmp_path) == []


@pytest.mark.slow
def test_none_of_all_pages_scrolls_sideways(tmp_path: Path) -> None:
    browser()
    names = [path.relative_to(SITE).with_suffix("").as_posix() for path in sorted(SITE.rglob("*.html"))]
    assert too_wide([name for name in names if not name.startswith(("_static", "py-modindex"))], SITE, tmp_path) == []


def test_a_page_that_is_too_wide_is_found(tmp_path: Path) -> None:
    browser()
    (tmp_path / "wide.html").write_text('<!doctype html><div style="width: 1000px">wide</div>', encoding="utf-8")
    assert [width for _, width, _ in too_wide(["wide"], tmp_path, tmp_path)] == [360, 390, 820]


@pytest.mark.parametrize(
    ("words", "page"),
    [("inpaint", "docs/api/sampling.html"), ("bits per dim", "docs/learn/bound.html"), ("equation 7", "docs/derivation.html")],
)
def test_the_search_finds(words: str, page: str, tmp_path: Path) -> None:
    browser()
    text = shown(f"{(SITE / 'search.html').as_uri()}?q={words.replace(' ', '+')}", tmp_path)
    assert page in re.findall(r'<li[^>]*><a href="([^"#?]+)', text)[:12]
