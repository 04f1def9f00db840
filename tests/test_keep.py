"""``tinyddpm evaluate --keep``: the figures of a command that keeps nothing, to the last digit, however the work was cut."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyddpm.cli import main

pytest.importorskip("torch")
pytest.importorskip("tinyddpm.training")

from tinyddpm._commands import keeping
from tinyddpm._commands.runs import score_batch
from tinyddpm.likelihood import VLB
from tinyddpm.training import Images, load_run
from tinyddpm.training.data.sources import Rows

Evaluate = Callable[..., str]
KEPT = [f"{k:06d}.npy" for k in range(0, 40, 8)]


@pytest.fixture
def evaluate(model: str, capsys: pytest.CaptureFixture[str]) -> Evaluate:
    """Score 37 digits, in five batches, and return what is printed: all digits of every figure."""

    def run(*options: Any, code: int = 0) -> str:
        words = ["evaluate", "--model", model, "--data", "digits", "--limit", "37", "--batch-size", "8", "--json", "-q"]
        assert main([*words, *map(str, options)]) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    return run


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first image of each batch that is scored from now on."""
    seen = []

    def counted(run: Any, images: Images, rows: range, **options: Any) -> VLB:
        seen.append(rows.start)
        return score_batch(run, images, rows, **options)

    monkeypatch.setattr(keeping, "score_batch", counted)
    return seen


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("options", [(), ("--curve",), ("--batch-size", "64", "--seed", "3")])
def test_figures_are_those_of_a_command_that_keeps_nothing(evaluate: Evaluate, tmp_path: Path, options: Any) -> None:
    expected = evaluate(*options)
    assert evaluate(*options, "--keep", tmp_path / "kept") == expected
    assert evaluate(*options, "--keep", tmp_path / "kept") == expected


@pytest.mark.parametrize("lost", [KEPT[2::2], []], ids=len)
def test_only_what_is_missing_is_scored(evaluate: Evaluate, scored: list[int], tmp_path: Path, lost: list[str]) -> None:
    kept = tmp_path / "kept"
    expected, whole = evaluate("--keep", kept), contents(kept)
    assert sorted(whole) == [*KEPT, "scores.json"]
    scored.clear()
    for name in lost:
        (kept / name).unlink()
    assert evaluate("--keep", kept) == expected
    assert [f"{k:06d}.npy" for k in scored] == lost
    assert contents(kept) == whole


@pytest.mark.parametrize("size", [2])
def test_processes_share_the_work(
    evaluate: Evaluate, scored: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Each scores its share; the first one scores what another that was killed has left, and prints."""
    expected = evaluate()
    monkeypatch.setenv("WORLD_SIZE", str(size))
    shares = {}
    for rank in reversed(range(size)):
        monkeypatch.setenv("RANK", str(rank))
        printed = evaluate("--keep", tmp_path / "kept")
        assert printed == ("" if rank else expected)
        shares[rank] = scored[:]
        scored.clear()
    assert shares == {rank: list(range(8 * rank, 40, 8 * size)) for rank in range(size)}
    monkeypatch.setenv("RANK", "0")
    assert evaluate("--keep", tmp_path / "alone") == expected
    own = list(range(0, 40, 8 * size))
    assert scored == [*own, *sorted(set(range(0, 40, 8)) - set(own), reverse=True)]


def test_a_batch_that_another_process_has_scored_meanwhile_is_taken(
    evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, scored = evaluate("--keep", tmp_path / "theirs"), []

    def raced(run: Any, images: Images, rows: range, **options: Any) -> VLB:
        scored.append(rows.start)
        for name in KEPT[1:]:
            shutil.copy(tmp_path / "theirs" / name, tmp_path / "ours")
        return score_batch(run, images, rows, **options)

    monkeypatch.setattr(keeping, "score_batch", raced)
    assert evaluate("--keep", tmp_path / "ours") == expected
    assert scored == [0]


def test_processes_need_a_folder_to_share(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "keep must be given, a folder in which 2 processes share the work" in evaluate(code=2)


def test_a_folder_of_another_bound_is_refused(evaluate: Evaluate, model: str, tmp_path: Path) -> None:
    kept, other = tmp_path / "kept", tmp_path / "run"
    evaluate("--keep", kept)
    before = contents(kept)
    for name, option in {"seed": 1, "batch_size": 9, "images": 36}.items():
        flag = {"images": "--limit"}.get(name, f"--{name.replace('_', '-')}")
        assert f"{name} must be " in (said := evaluate("--keep", kept, flag, option, code=2))
        assert "scores.json, got " in said
        assert "choose another folder, or remove the old one" in said
    assert "curve must be False, as in" in evaluate("--keep", kept, "--curve", code=2)
    np.save(tmp_path / "own.npy", np.zeros((37, 8, 8), np.uint8))
    assert "data must be " in evaluate("--keep", kept, "--data", tmp_path / "own.npy", code=2)
    assert "seed must be in 0.." in evaluate("--keep", tmp_path / "new", "--seed", -1, code=2)
    assert contents(kept) == before
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "own.npy"}
    assert not other.exists()


def test_the_note_tells_models_apart(model: str, tmp_path: Path) -> None:
    """Weights, the chain and how the network is read: each has a part in the note."""
    from dataclasses import replace

    import torch

    run, images = load_run(model), Images(np.zeros((4, 1, 8, 8), np.uint8), 17)
    plan = run.diffusion.timesteps(3)
    others: dict[str, Any] = {
        "chain": replace(run, diffusion=run.diffusion.respaced(plan), denoiser=run.denoiser.respaced(plan)),
        "variance": replace(run, denoiser=replace(run.denoiser, variance="beta_tilde")),
        "table": replace(run, denoiser=replace(run.denoiser, variance=np.full(7, 0.1))),
        "other table": replace(run, denoiser=replace(run.denoiser, variance=np.full(7, 0.2))),
        "clip": replace(run, denoiser=replace(run.denoiser, clip_x0=False)),
        "decoder": replace(run, config=replace(run.config, decoder="density")),
        "weights": load_run(model),
    }
    with torch.no_grad():
        next(others["weights"].net.parameters()).add_(1e-6)
    notes = [json.dumps(keeping.Kept(tmp_path, each, images, 0, 2, False).about) for each in (run, *others.values())]
    assert len(set(notes)) == len(notes)


def test_what_is_not_ours_is_refused_by_name_and_kept(evaluate: Evaluate, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    evaluate("--keep", kept)
    file = kept / KEPT[2]
    whole = file.read_bytes()
    flipped = bytes([*whole[:150], whole[150] ^ 1, *whole[151:]])
    for content in (b"", whole[:-1], whole + b"0", flipped, b"\x94" + whole[1:]):
        file.write_bytes(content)
        assert str(file) in (said := evaluate("--keep", kept, code=2))
        assert said.startswith("tinyddpm evaluate: error: keep: " if "error: " in said else "tinyddpm")
        assert len(said.splitlines()) == 1
        assert file.read_bytes() == content
    file.unlink()
    os.mkfifo(file)
    assert "is not a regular file" in evaluate("--keep", kept, code=2)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("mine")
    assert "which holds other files" in evaluate("--keep", tmp_path / "photos", code=2)
    assert "keep must be a folder, got" in evaluate("--keep", tmp_path / "photos" / "a.txt", code=2)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.txt"]


def test_files_are_arrays_of_each_images_terms(evaluate: Evaluate, tmp_path: Path) -> None:
    found = json.loads(evaluate("--keep", tmp_path / "kept"))
    terms = np.concatenate([np.load(file) for file in sorted((tmp_path / "kept").glob("*.npy"))])
    assert terms.shape == (37, 3)
    bits = terms.sum(axis=1) / (64 * np.log(2))
    assert found["bits_per_dim"]["mean"] == pytest.approx(bits.mean(), rel=1e-12)
    assert found["prior"]["mean"] == pytest.approx(terms[:, 0].mean() / (64 * np.log(2)), rel=1e-12)
    assert found["distortion"]["mean"] == pytest.approx(terms[:, 1].mean() / (64 * np.log(2)), rel=1e-12)


def test_memory_does_not_grow_with_the_images(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 000 images at most one block is held, and of their bound three numbers each."""

    @dataclass(frozen=True)
    class Drawn:
        count: int
        shape: tuple[int, int, int] = (1, 8, 8)
        dtype: Any = np.uint8

        def __len__(self) -> int:
            return self.count

        def read(self, rows: Any) -> Any:
            return np.broadcast_to((rows % 251).astype(np.uint8)[:, None, None, None], (len(rows), *self.shape)).copy()

    def score(run: Any, images: Images, rows: range, **options: Any) -> VLB:
        means = images.scaled(slice(rows.start, rows.stop)).mean(axis=(1, 2, 3), dtype=np.float64)
        return VLB(means, means[:, None], means, np.empty((len(rows), 0)), np.empty((len(rows), 0)), 64, 256)

    monkeypatch.setattr(keeping, "score_batch", score)
    run, count = load_run(model), 40_000
    tracemalloc.start()
    kept = keeping.Kept(tmp_path / "kept", run, Images(Rows(Drawn(count), np.arange(count))), 0, 1000, False)
    held, _ = tracemalloc.get_traced_memory()
    kept.claim()
    kept.score(0, 1, False)
    found = kept.bound()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_allclose(found.prior, np.arange(count) % 251 * (2 / 255) - 1, atol=1e-6)  # float32's rounding
    assert peak - held < 64 * count * 2 + 1000 * 64 * 8 * 2 < 64 * count * 4  # as float32 the images take 4 bytes a pixel


@pytest.mark.slow
def test_under_torchrun(evaluate: Evaluate, model: str, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "tinyddpm"]
    words = ["evaluate", "--model", model, "--data", "digits", "--limit", "37", "--batch-size", "8", "--json", "-q", "--keep"]
    done = subprocess.run([*torchrun, *words, tmp_path / "kept"], check=True, capture_output=True, timeout=200, text=True)
    alone = subprocess.run(
        [sys.executable, "-m", "tinyddpm", *words, tmp_path / "alone"], check=True, capture_output=True, timeout=200, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout == alone.stdout
    assert contents(tmp_path / "kept") == contents(tmp_path / "alone")
