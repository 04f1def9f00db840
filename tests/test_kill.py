"""SIGKILL at random moments: a run goes on from where it was saved and ends with the same bits; no sample is drawn twice.

A fresh interpreter would spend two seconds on importing Torch for each kill. So one process imports it, does nothing else,
and forks a child for each life of a run. Files are kept in memory where the system has such a folder: they outlive a kill
there as well, and a life costs a tenth.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from runs import log, tensors  # noqa: E402

from tinyddpm.cli import main  # noqa: E402
from tinyddpm.training import TrainConfig, load_run, train  # noqa: E402
from tinyddpm.training.checkpoint import LAST  # noqa: E402

NURSERY = """
import json, os, signal, sys, time
import torch
torch.set_num_threads(1)
from tinyddpm import cli, training, verify
from tinyddpm._commands import evaluate, sample
training.load("digits")
for line in sys.stdin:
    words, seconds = json.loads(line)
    child = os.fork()
    if not child:
        code = 1
        try:
            sys.stdout = sys.stderr
            code = cli.main(words)
        finally:
            os._exit(code)
    end, ended = time.monotonic() + seconds, os.WEXITED | os.WNOHANG | os.WNOWAIT
    while time.monotonic() < end and os.waitid(os.P_PID, child, ended) is None:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)  # in vain where it has ended; its number is its own until the next line
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

Live = Callable[[list[str], float], bool]
SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder to run in."""
    if not os.access(SHARED_MEMORY, os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(dir=SHARED_MEMORY) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    """Run a command of tinyddpm for at most so many seconds; returns whether it came to its end."""
    nursery = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip

    def run(words: list[str], seconds: float) -> bool:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        nursery.stdin.write(json.dumps([words, seconds]) + "\n")
        nursery.stdin.flush()
        code = int(nursery.stdout.readline())
        assert code in (0, -signal.SIGKILL)
        return code == 0

    yield run
    nursery.communicate()


def lives(live: Live, command: Callable[[Path], list[str]], place: Path, kills: int, seed: int) -> Iterator[tuple[Path, bool]]:
    """First an undisturbed life of a command in place/whole, then lives in other folders, so many of them killed at random
    moments: the folder, and whether it came to its end, after which the next one begins in a new folder."""
    began, random, killed, ends, ended = time.monotonic(), np.random.default_rng(seed), 0, 0, False
    assert live(command(place / "whole"), 600)
    span = time.monotonic() - began
    yield place / "whole", True
    while killed < kills or not ended:
        out, began = place / f"out{ends}", time.monotonic()
        ended = live(command(out), random.uniform(0, span) if killed < kills else 600)
        span = min(span, time.monotonic() - began) if ended else span  # the first life is slow
        killed, ends = killed + (not ended), ends + ended
        yield out, ended
    assert killed == kills


def settings(out: Path, **options: Any) -> TrainConfig:
    return TrainConfig.from_dict({
        "out": str(out), "steps": 30, "batch_size": 4, "channels": 4, "mults": (1,), "res_blocks": 1, "dropout": 0.2,
        "T": 3, "time_sampler": "loss_aware", "classes": True, "checkpoint_every": 2, "sample_every": 10, "samples": 2,
        "device": "cpu", **options,
    })  # fmt: skip


def words(config: TrainConfig) -> list[str]:
    """The command that trains so."""
    file = Path(config.out).with_suffix(".toml")
    from tinyddpm._commands.train import _as_toml

    file.write_text(_as_toml(config))
    return ["train", "--config", str(file), "--resume", "--quiet"]


def content(out: Path) -> dict[str, bytes]:
    """The last checkpoint's tensors and the grids."""
    return tensors(out) | {file.name: file.read_bytes() for file in (out / "samples").iterdir()}


@pytest.mark.parametrize("kills", [3, pytest.param(200, marks=pytest.mark.slow)])
def test_a_killed_training_run_ends_with_the_same_bits(live: Live, place: Path, kills: int) -> None:
    runs, saved = lives(live, lambda out: words(settings(out)), place, kills, 0), 0
    whole, _ = next(runs)
    expected, lines = content(whole), log(whole)
    for out, ended in runs:
        before, saved = saved, load_run(out).step if (out / LAST).exists() else 0
        assert saved >= before  # nothing that was saved is lost
        assert saved % 2 == 0
        if (out / "log.jsonl").exists() and saved:
            got = (out / "log.jsonl").read_bytes().splitlines(keepends=True)[:saved]
            assert [json.loads(line)["step"] for line in got] == list(range(1, saved + 1))
        if ended:
            assert log(out) == lines
            assert content(out) == expected
            assert not [p for p in out.rglob(".*") if p.name != ".lock"]
            saved = 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "run"
    train(settings(out, steps=2, T=10, classes=False, sample_every=0, time_sampler="uniform"), progress=False)
    return out


@pytest.mark.parametrize("kills", [3, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_sampling_draws_each_sample_once(live: Live, model: Path, place: Path, kills: int) -> None:
    def command(out: Path) -> list[str]:
        return ["sample", "--model", str(model), "--out", str(out), "-n", "24", "--batch-size", "2", "--quiet"]

    def pngs(out: Path) -> dict[str, Path]:
        return {file.name: file for file in out.glob("[!.]*.png")}

    runs, seen = lives(live, command, place, kills, 1), dict[str, int]()
    whole, _ = next(runs)
    expected = {name: file.read_bytes() for name, file in pngs(whole).items()}
    assert len(expected) == 24
    for out, ended in runs:
        now = {name: file.stat().st_ino for name, file in pngs(out).items()}
        assert seen.items() <= now.items()  # what was there is the same file still
        assert {name: pngs(out)[name].read_bytes() for name in now}.items() <= expected.items()
        seen = {} if ended else now
        if ended:
            assert {file.name for file in out.iterdir()} - {"samples.json"} == set(expected)


@pytest.mark.parametrize("kills", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_scoring_scores_each_image_once(
    live: Live, model: Path, place: Path, kills: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(out: Path, *options: str) -> list[str]:
        words = ["evaluate", "--model", str(model), "--data", "digits", "--limit", "24", "--batch-size", "2", "--quiet"]
        return [*words, "--keep", str(out), *options]

    def figures(out: Path) -> str:
        assert main(command(out, "--json")) == 0
        return capsys.readouterr().out

    runs, seen = lives(live, command, place, kills, 2), dict[str, int]()
    whole, _ = next(runs)
    expected = {file.name: file.read_bytes() for file in whole.iterdir()}
    assert len(expected) == 12 + 1
    for out, ended in runs:
        files = list(out.glob("[!.]*"))
        now = {file.name: file.stat().st_ino for file in files}
        assert seen.items() <= now.items()  # what was there is the same file still
        assert {file.name: file.read_bytes() for file in files}.items() <= expected.items()
        seen = {} if ended else now
        if ended:
            assert {file.name for file in out.iterdir()} == set(expected)
            assert figures(out) == figures(whole)
