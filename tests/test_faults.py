"""Every call on files fails once, in every way: what was saved is whole, one line names the file, the next run makes it good.

``faults/run.py`` does it; this compiles what it preloads and reads its answer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

HERE = Path(__file__).parent / "faults"
SOME = ("train, resumed", "sample, npz", "plot, page", "save_diffusers", "Calibration.save")
COMPILER = shutil.which("cc")


@pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="needs Linux and a C compiler")
@pytest.mark.parametrize(("every", "names"), [(59, SOME), pytest.param(1, (), marks=pytest.mark.slow)], ids=["some", "all"])
def test_any_call_may_fail(every: int, names: tuple[str, ...], tmp_path: Path) -> None:
    library = tmp_path / "interpose.so"
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-w", "-o", library, HERE / "interpose.c", "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-W", "ignore", str(HERE / "run.py"), str(library), str(every), *names]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    tried, wrong = (int(done.stdout.splitlines()[-1].split()[k]) for k in (0, 3))
    assert tried >= (12 if names else 2000)
    assert not wrong
