"""Checkpoints: whole or not there, checked when read, and never lost to a failed write."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from test_hostile import forge  # noqa: E402

from tinyddpm.nn import UNet  # noqa: E402
from tinyddpm.training import CheckpointError, TrainConfig, load_run, train  # noqa: E402
from tinyddpm.training.checkpoint import find, locked, read_state  # noqa: E402
from tinyddpm.training.log import Log  # noqa: E402

FILES = {"model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "unet.json"}


def tiny(out: Path, **options: Any) -> TrainConfig:
    settings = {"steps": 3, "batch_size": 4, "channels": 4, "mults": (1,), "res_blocks": 1, "T": 20, "checkpoint_every": 2}
    return TrainConfig.from_dict({"out": str(out), "device": "cpu", **settings, **options})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "run"
    train(tiny(out), progress=False)
    return out


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of a finished run of three steps with checkpoints at 2 and 3."""
    shutil.copytree(made, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def test_layout(run: Path) -> None:
    assert os.readlink(run / "last") == "checkpoints/step-00000003"
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"step-00000002", "step-00000003"}
    assert {p.name for p in (run / "last").iterdir()} == FILES
    assert {p.name for p in run.iterdir()} == {"checkpoints", "last", "log.jsonl", "config.json", ".lock"}
    state = read_state(run / "last")
    assert (state["step"], state["shape"], state["levels"]) == (3, [1, 8, 8], 17)
    assert state["random"] == {"kind": "counter", "seed": 0}
    noted = json.loads((run / "config.json").read_text())["versions"]["torch"]
    assert torch.__version__.startswith(noted)  # which may lack the build's name
    assert noted


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_so_many_checkpoints_stay(tmp_path: Path, keep: int) -> None:
    train(tiny(tmp_path, steps=5, checkpoint_every=1, keep=keep), progress=False)
    names = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert names == {f"step-0000000{k}" for k in range(6 - keep, 6)}
    assert load_run(tmp_path).step == 5


def test_load_takes_the_averaged_weights(run: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    ema = library.load_file(run / "last" / "ema.safetensors")
    model = library.load_file(run / "last" / "model.safetensors")
    for name, p in UNet.load(run / "last").named_parameters():
        assert torch.equal(p, ema[name])
    assert any(not torch.equal(ema[name], model[name]) for name in ema)


def test_load_run_from_the_run_its_link_and_its_folder(run: Path) -> None:
    for path in (run, run / "last", run / "checkpoints" / "step-00000003", str(run)):
        loaded = load_run(path)
        assert (loaded.step, loaded.shape, loaded.levels) == (3, (1, 8, 8), 17)
        assert loaded.denoiser.net is loaded.net
        assert loaded.denoiser.first_t == 0
        assert loaded.diffusion.T == 20
        assert not any(p.requires_grad for p in loaded.net.parameters())
    sample = loaded.diffusion.sample(loaded.denoiser, (2, 1, 8, 8), backend="torch", steps=4)
    assert bool(torch.isfinite(sample).all())
    shutil.move(run / "checkpoints" / "step-00000003", run.parent / "alone")
    assert load_run(run.parent / "alone").step == 3


def test_what_is_no_checkpoint_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, message in ((tmp_path / "empty", "not a run"), (tmp_path / "nowhere", "no such folder")):
        with pytest.raises(FileNotFoundError, match=rf"^model: .*{path.name}.*{message}"):
            load_run(path)
    (run / "last").unlink()
    shutil.rmtree(run / "checkpoints")
    assert find(run) is None


def test_optimizer_of_another_network_is_refused(run: Path, tmp_path: Path) -> None:
    train(tiny(tmp_path / "other", channels=8), progress=False)
    shutil.copy(tmp_path / "other" / "last" / "optimizer.safetensors", run / "last" / "optimizer.safetensors")
    forge(run / "last")
    with pytest.raises(ValueError, match=r"optimizer\.safetensors: tensor 'exp_avg\.\S+' must have shape"):
        train(tiny(run, resume=True, steps=4), progress=False)


@pytest.mark.parametrize("fails_at", range(8))
def test_a_full_disk_leaves_the_last_checkpoint_whole(run: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
    """The n-th fsync of the checkpoint of step 4 fails: five files, their folder, its parent, the link's folder."""
    calls, sync = [0], os.fsync
    counting = [False]

    def full(handle: int) -> None:
        calls[0] += counting[0]
        if counting[0] and calls[0] > fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    wait = Log.sync

    def start_counting(log: Log) -> None:
        wait(log)
        counting[0] = True

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(Log, "sync", start_counting)
    with pytest.raises(CheckpointError, match=r"checkpoint .*step-00000004: .*No space left on device") as caught:
        train(tiny(run, resume=True, steps=4), progress=False)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert load_run(run).step in (3, 4)  # the link is switched before its folder is synced
    assert {p.name for p in (run / "last").iterdir()} == FILES
    assert not [p for p in (run / "checkpoints").iterdir() if p.name.startswith(".")]
    train(tiny(run, resume=True, steps=4), progress=False)
    assert load_run(run).step == 4


def test_a_place_that_takes_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"out .*file"):
        train(tiny(tmp_path / "file" / "run"), progress=False)


def test_a_read_only_place_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the system's answer for such a place is played where a file would be made."""
    if os.geteuid():
        for folder in (run, run / "checkpoints"):
            folder.chmod(0o500)
    else:
        opened = os.open

        def refused(file: Any, flags: int, *rest: Any, **options: Any) -> Any:
            if str(file).startswith(str(run)) and flags & os.O_RDWR:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
            return opened(file, flags, *rest, **options)

        monkeypatch.setattr(os, "open", refused)
    with pytest.raises(CheckpointError, match=rf"^out {run}: cannot be written: Permission denied$"):
        train(tiny(run, resume=True, steps=4), progress=False)
    monkeypatch.undo()
    for folder in (run, run / "checkpoints"):
        folder.chmod(0o700)
    assert load_run(run).step == 3


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(ValueError, match=r"^out must not be in use, but another run"):
        train(tiny(tmp_path / "run", data="nowhere"), progress=False)  # before its data are read
    train(tiny(tmp_path / "run"), progress=False)
    with pytest.raises(ValueError, match=r"^out must be a new folder .* holds a run"):
        train(tiny(tmp_path / "run"), progress=False)


def test_the_lock_ends_with_its_process_whatever_that_has_forked(tmp_path: Path) -> None:
    """The child stands for a worker that outlives a killed run."""
    script = f"""
import os, sys, time
from pathlib import Path
from tinyddpm.training.checkpoint import locked
with locked(Path({str(tmp_path)!r})):
    if os.fork() == 0:
        os.close(1)
        time.sleep(60)
        os._exit(0)
    print("locked", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, process_group=0)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(ValueError, match=r"^out must not be in use, but another run"):
            train(tiny(tmp_path), progress=False)
        holder.kill()
        holder.wait()
        train(tiny(tmp_path), progress=False)
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.stdout.close()
        holder.wait()


@pytest.mark.parametrize("room", [0, 3000, 8000])
def test_files_that_cannot_grow_leave_the_last_checkpoint_whole(run: Path, room: int) -> None:
    """The system's own refusal, at a limit for the size of files: of the log (0), of the state, of the weights."""
    before = {p.name: p.read_bytes() for p in (run / "last").iterdir()}
    words = ["train", "--out", str(run), "--resume", "--steps", "9", "--quiet"]
    script = f"""
import resource, sys
from tinyddpm import cli
from tinyddpm.training import load
load("digits")
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))
sys.exit(cli.main({words!r}))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode not in (0, -signal.SIGXFSZ)
    (line,) = ended.stderr.splitlines()
    named = str(run) if room == 0 else str(run / "checkpoints" / "step-00000004")
    assert named in line
    assert "File too large" in line
    assert {p.name: p.read_bytes() for p in (run / "last").iterdir()} == before
    train(tiny(run, resume=True, steps=4), progress=False)
    assert load_run(run).step == 4
    assert not [p for p in run.rglob(".*") if p.name != ".lock"]


def test_what_a_killed_write_left_is_swept_and_harmless(run: Path) -> None:
    """A half-written temporary folder, a finished one that `last` does not lead to, a link not yet moved."""
    (run / "checkpoints" / ".step-00000004.new-1").mkdir()
    (run / "checkpoints" / ".step-00000004.new-1" / "model.safetensors").write_text("half")
    shutil.copytree(run / "checkpoints" / "step-00000003", run / "checkpoints" / "step-00000004")
    (run / ".last.new").symlink_to("checkpoints/step-00000004")
    (run / ".log.jsonl.0123abcd.new").write_text("half")
    assert load_run(run).step == 3
    train(tiny(run, resume=True, steps=4), progress=False)
    assert load_run(run).step == 4
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"step-00000003", "step-00000004"}
    assert not [p for p in run.iterdir() if p.name.endswith(".new")]


def test_log_drops_what_comes_again_and_half_lines(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": k, "loss": k / 7}) + "\n" for k in range(1, 6)]
    file.write_text("".join(lines) + '{"step": 6, "lo')
    with Log(file, 4) as log:
        log.write({"step": 5, "loss": 0.5})
        log.sync()
    assert file.read_text() == "".join(lines[:4]) + '{"step": 5, "loss": 0.5}\n'


def test_a_lock_that_is_a_link_is_refused_and_its_target_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match=r"\.lock: is a link$"), locked(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "precious"
