"""README.md: its code runs, its commands parse, and what it names exists."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from tinyddpm.cli import COMMANDS, parser

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


COMMAND_LINES = [line for block in blocks("console") for line in block.splitlines() if line.startswith("tinyddpm")]
COMMAND_LINES += re.findall(r"`(tinyddpm [a-z][^`]*)`", TEXT)


def test_the_code_runs_and_samples_have_the_datas_mean(capsys, monkeypatch):
    from tinyddpm import backends

    monkeypatch.setattr(backends, "_registered", dict(backends._registered))
    namespace: dict[str, object] = {}
    code = blocks("python")
    assert len(code) == 3
    assert len([line for line in code[0].splitlines() if line]) <= 8
    for block in code:
        exec(compile(block, "README.md", "exec"), namespace)
    printed = re.findall(r"-?\d+\.\d+", capsys.readouterr().out)
    # 1000 samples of std 0.6: four standard errors are 0.08. The mixture's std is sqrt(0.01 + 0.36) and sqrt(0.01 + 0.0225).
    assert [float(x) for x in printed] == pytest.approx([0.0, 0.15, 0.608, 0.180], abs=0.08)
    assert backends.get("mine").devices() == ("cpu",)


def test_the_set_up_is_two_commands():
    assert blocks("console")[0].split("\n") == ["make demo", "make test", ""]


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_commands_parse(line):
    pytest.importorskip("torch")
    _, name, *words = shlex.split(line)
    assert name in COMMANDS
    if words != ["--help"]:
        parser(name).parse_args(words)


@pytest.mark.parametrize("reference", re.findall(r"`(tests/\w+\.py::\w+)`", TEXT))
def test_named_tests_exist(reference):
    file, _, name = reference.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)]+)\)", TEXT))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
