"""The commands in docs/tutorials/train.md run in an empty folder and print what the page shows."""

from __future__ import annotations

import doctest
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pages
import pytest

from tinyddpm.cli import main

PAGE = pages.ROOT / "docs/tutorials/train.md"


def transcript(text: str) -> Iterator[tuple[str, str]]:
    """Each command after a prompt, and what it prints, with "..." for what differs between machines."""
    command, printed = "", ""
    for line in text.splitlines(keepends=True):
        if line.startswith("$ "):
            if command:
                yield command, printed
            command, printed = line[2:].strip(), ""
        else:
            printed += line
    if command:
        yield command, printed


def test_the_page_is_a_transcript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for library in ("torch", "diffusers", "PIL", "matplotlib"):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tinyddpm"])
    matches = doctest.OutputChecker().check_output
    namespace: dict[str, object] = {}
    walked = []
    for block in pages.blocks(PAGE.read_text(encoding="utf-8"), "console", "python"):
        if block.language == "python":
            pages.run(block, PAGE, namespace)
            continue
        for command, expected in transcript(block.text):
            walked.append(command)
            capfd.readouterr()
            assert main(shlex.split(command)[1:]) == 0, capfd.readouterr().err
            printed = capfd.readouterr().out
            assert matches(expected, printed, doctest.ELLIPSIS), f"{PAGE}:{block.line}: {command}\n{printed}"
    assert [command.split()[1] for command in walked] == ["train", "train", "evaluate", "sample", "sample", "plot"]
    assert len(list(tmp_path.glob("samples/*.png"))) == 8
    assert all((tmp_path / made).stat().st_size > 0 for made in ("grid.png", "loss.png", "pipeline/model_index.json"))
