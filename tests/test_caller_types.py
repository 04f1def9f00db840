"""Type checkers find a mistake in a caller before anything runs. `make lint` installs them and runs this, not `make test`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CALLER = Path(__file__).parent / "caller.py"
LINES = CALLER.read_text(encoding="utf-8").splitlines()
MISTAKES = {number for number, line in enumerate(LINES, 1) if line.endswith("# mistake")}
COMMANDS = {
    "mypy": ["-m", "mypy", "--strict", "--config-file", "", "--cache-dir", ".mypy_cache"],
    "pyright": ["-m", "pyright", "--pythonpath", sys.executable],
}


@pytest.mark.parametrize("checker", COMMANDS)
def test_every_mistake_is_found_and_an_arrays_type_is_kept(checker: str, tmp_path: Path) -> None:
    if find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed; make lint installs it")
    shutil.copy(CALLER, tmp_path)  # away from this project's settings
    command = [sys.executable, *COMMANDS[checker], CALLER.name]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    told = [line for line in result.stdout.splitlines() if "caller.py:" in line]
    found = {int(number) for line in told if "error" in line and (number := re.search(r"caller\.py:(\d+)", line)[1])}  # type: ignore[index]
    assert found == MISTAKES, result.stdout
    assert "ndarray[tuple[int, int], " in next(line for line in told if f"caller.py:{len(LINES)}" in line)
