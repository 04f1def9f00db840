"""docs/derivation.md: its code runs, what it names exists, and each equation names what computes and what checks it."""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs/derivation.md").read_text(encoding="utf-8")
SECTIONS = dict(zip(*[iter(re.split(r"^## (.+)\n", TEXT, flags=re.MULTILINE)[1:])] * 2, strict=True))
TESTS = sorted(set(re.findall(r"`(tests/\w+\.py::\w+)`", TEXT)))
NAMES = sorted(set(re.findall(r"`(tinyddpm(?:\.\w+)+)`", TEXT)))


def test_the_code_runs() -> None:
    """Blocks in order, in one namespace; each compares a formula with the library."""
    namespace: dict[str, object] = {}
    blocks = [(m.start(), m[1]) for m in re.finditer(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)]
    assert len(blocks) >= 14
    for start, code in blocks:
        line = TEXT.count("\n", 0, start) + 1
        exec(compile("\n" * line + code, "docs/derivation.md", "exec"), namespace)


@cache
def defined_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("reference", TESTS)
def test_every_test_named_exists(reference: str) -> None:
    file, _, name = reference.partition("::")
    assert name.startswith("test_")
    assert name in defined_in(file)


@pytest.mark.parametrize("name", NAMES)
def test_every_function_named_exists(name: str) -> None:
    words = name.split(".")
    found: object = import_module("tinyddpm")
    for k, word in enumerate(words[1:], start=2):
        found = getattr(found, word, None) or import_module(".".join(words[:k]))
    assert getattr(found, "__doc__", None), "a public name is documented"


def test_every_section_names_what_computes_it_and_what_checks_it() -> None:
    numbered = {title: body for title, body in SECTIONS.items() if title[0].isdigit()}
    assert [int(title.partition(".")[0]) for title in numbered] == list(range(1, len(numbered) + 1))
    for title, body in numbered.items():
        assert re.search(r"`tests/\w+\.py::", body), f"{title}: no test"
        if not title.startswith("7."):  # the older form of the bound is shown, and not computed
            assert re.search(r"`tinyddpm\.\w+", body), f"{title}: no function"
            assert "```python" in body, f"{title}: no code"


@pytest.mark.parametrize(
    "mathematics",
    [
        r"q(x_t \mid x_{t-1}) = \mathcal N",
        r"\alpha_t(1-\alpha_{t-1}) + 1 - \alpha_t = 1 - \alpha_t\alpha_{t-1}",
        r"q(x_t \mid x_0) = \mathcal N",
        r"\tilde\beta_t = \frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\beta_t",
        r"\frac1{\sqrt{\alpha_t}}\left(x_t - \frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\,\epsilon\right)",
        r"x_0 = \frac{x_t - \sqrt{1-\bar\alpha_t}\,\epsilon}{\sqrt{\bar\alpha_t}}",
        r"x_{t-1} = \mu_\theta(x_t, t) + \sigma_t z",
        r"\text{prior matching}",
        r"\text{consistency}",
        r"\frac{\beta_t^2}{2\sigma_t^2\,\alpha_t(1-\bar\alpha_t)}",
        r"L_{\mathrm{simple}} = \mathbb E",
        r"\mathrm{tr}(\Sigma_2^{-1}\Sigma_1)",
        r"x \pm \frac1{255}",
        r"\log\sigma_t^2 = \nu\log\beta_t",
    ],
)
def test_nothing_of_the_mathematics_is_missing(mathematics: str) -> None:
    assert mathematics in TEXT


def test_formulas_are_closed() -> None:
    """Dollars and braces balance, in displays and in lines."""
    plain = re.sub(r"^```.*?^```", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    displays = re.findall(r"\$\$(.+?)\$\$", plain, flags=re.DOTALL)
    inline = re.findall(r"\$(.+?)\$", re.sub(r"\$\$.+?\$\$", "", plain, flags=re.DOTALL), flags=re.DOTALL)
    assert plain.count("$") == 4 * len(displays) + 2 * len(inline)
    for formula in (*displays, *inline):
        assert formula.count("{") == formula.count("}"), formula
        assert len(re.findall(r"\\left\b", formula)) == len(re.findall(r"\\right\b", formula)), formula
        assert "\n\n" not in formula, formula
