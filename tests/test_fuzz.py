"""Thousands of damaged files raise only documented errors."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("PIL.Image")

from fuzz.targets import TARGETS, inputs

FOLDER = Path(__file__).parent
RUNS, TIME = 50_000, 20


@st.composite
def tampered(draw: Any, seeds: list[bytes]) -> bytes:
    """A seed with some bytes changed, removed, inserted or repeated, and sometimes its end removed."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 8))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.sampled_from([0, 1, 1, 1, 2, 4, 8, 64]))
        kind = draw(st.sampled_from(["set", "flip", "put", "double"]))
        if kind == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "double":
            data[place:place] = data[place : place + length]
        else:
            end = place if kind == "put" else place + length
            data[place:end] = draw(st.binary(min_size=length, max_size=length) | st.just(b"\xff" * length))
    return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.integers(0, 7)) == 0 else bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_accepted(name: str) -> None:
    assert all(TARGETS[name](seed) for seed in TARGETS[name].seeds())


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_that_once_found_a_bug_raise_only_documented_errors(name: str) -> None:
    for data in inputs(name):
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_bytes_are_accepted_or_refused(name: str) -> None:
    counts = [0, 0]

    @settings(max_examples=200)
    @given(tampered(TARGETS[name].seeds()))
    def try_some(data: bytes) -> None:
        counts[TARGETS[name](data)] += 1

    try_some()
    assert counts[False], "nothing was refused, so the bytes are not read"


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_atheris_finds_nothing(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed; pip install atheris")
    command = [sys.executable, "-m", "fuzz.run", name, f"-runs={RUNS}", f"-max_total_time={TIME}", "-max_len=4096",
               "-timeout=10", "-rss_limit_mb=4096", f"-artifact_prefix={tmp_path}/"]  # fmt: skip
    run = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr[-3000:]
    done = re.search(r"Done (\d+) runs", run.stderr)
    assert done is not None, run.stderr[-3000:]
    print(f"atheris {name}: {done[1]} runs")
