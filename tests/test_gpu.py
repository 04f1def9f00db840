"""The run on a GPU, gone through on the CPU: every part of it, what is missing, what fails and what is cut off."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return __import__("gpu")


def test_a_dry_run_goes_through_every_part(gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a real run would start is a part of the dry one, up to its sizes; nothing fails; the page has the tables."""
    gpu.main(["--dry-run", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "gpu.json").read_text())
    missing = [row for row in found["parts"] if row["state"] != "done"]
    assert all(row["state"].endswith("is not installed") for row in missing), missing
    real = gpu.parts({"torch": "cuda:0", "cupy": "cuda:0", "jax": "gpu:0"}, tmp_path, False)
    assert {part.script for part in real} == {row["script"] for row in found["parts"]}
    page = (tmp_path / "gpu.md").read_text()
    assert page.count("| of copy") == page.count("## bandwidth")
    assert "its figures mean nothing" in page
    assert (tmp_path / "samples.png").read_bytes()[:4] == b"\x89PNG"
    assert '"samples": "done"' in capsys.readouterr().out


def test_without_a_gpu_it_is_one_line(gpu: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert __import__("_report").run(gpu.main, ["--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "--dry-run" in said.err
    assert said.out.startswith("torch: no GPU among cpu")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def run(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The state of a part whose script has this code."""
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(gpu, "HERE", tmp_path)

    def state(code: str, seconds: int = 60, left: float = 60, needs: tuple[str, ...] = ()) -> str:
        (tmp_path / "script.py").write_text(code)
        made = gpu.Run(tmp_path / "out", {"numpy": "cpu"}, time.monotonic() + left, False)
        made.make(gpu.Part("part", "script", ["--word"], seconds, needs))
        (row,) = json.loads((tmp_path / "out" / "gpu.json").read_text())["parts"]
        return str(row["state"])

    return state


def test_a_part_is_a_process_and_its_files(run: Callable[..., Any], tmp_path: Path) -> None:
    code = "import sys; print(sys.argv[1]); open(sys.argv[5], 'w').write('# Title\\n\\nwords\\n\\n| a |\\n| - |\\n| 1 |\\n')"
    assert run(code) == "done"
    assert (tmp_path / "out/part.txt").read_text() == "--word\n"
    assert (tmp_path / "out/gpu.md").read_text().count("## part\n\n| a |\n| - |\n| 1 |\n") == 1


@pytest.mark.parametrize(
    ("code", "options", "said"),
    [
        ("raise SystemExit('no such device')", {}, "failed: no such device"),
        ("import os; print('begun', flush=True); os.abort()", {}, "failed: begun"),
        ("import time; time.sleep(60)", {"seconds": 1}, "cut off after 1 s"),
        ("", {"left": 1.0}, "left out: no time left"),
        ("", {"needs": ("no_such_library",)}, "left out: no_such_library is not installed"),
    ],
)
def test_what_goes_wrong_is_a_line(run: Callable[..., Any], code: str, options: dict[str, Any], said: str) -> None:
    assert run(code, **options) == said


def test_the_pictures_are_discs(gpu: Any) -> None:
    """Two colours each: that of the corners, and that of the centre."""
    images = gpu.pictures(20, 32).astype(float)
    assert images.shape == (20, 3, 32, 32)
    assert np.abs(images[:, :, 0, 0] - images[:, :, 31, 31]).max() <= 60  # a disc may reach near a corner
    spread = images.reshape(20, 3, -1).std(axis=2)
    assert (spread.max(axis=1) > 5).all()


def test_it_needs_no_other_path(gpu: Any) -> None:
    """A part finds the library and the other scripts whatever the caller's folder is."""
    code, output = gpu._apart("bandwidth", ["--help"], 60)
    assert code == 0, output
    assert "--megabytes" in output
