"""A folder that is saved to is the old one or the new one, complete, whatever fails and however many write."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from networks import small  # noqa: E402

from tinyddpm import Denoiser, Diffusion, schedules  # noqa: E402
from tinyddpm.nn import UNet, _folders, load_diffusers, save_diffusers  # noqa: E402

CHAIN = Diffusion(schedules.linear(30, 1e-3, 0.3))
TINY: dict[str, Any] = {"channels": 4, "mults": (1,), "res_blocks": 1, "attention": ()}


def pipeline(folder: Path, net: UNet) -> None:
    save_diffusers(folder, net, CHAIN, Denoiser(net, first_t=0))


SAVES: dict[str, tuple[Callable[[Path, UNet], None], Callable[[Path], UNet]]] = {
    "save": (lambda folder, net: net.save(folder), UNet.load),
    "save_diffusers": (pipeline, lambda folder: load_diffusers(folder)[0]),
}
both = pytest.mark.parametrize("kind", SAVES)


@pytest.fixture(params=["exchange", "two renames"])
def renames(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without renameat2."""
    if request.param == "two renames":
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    elif not hasattr(ctypes.CDLL(None), "renameat2"):
        pytest.skip("this system has no renameat2")
    return str(request.param)


@both
def test_whatever_call_fails_the_old_or_the_new_is_there(
    tmp_path: Path, kind: str, renames: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, load = SAVES[kind]
    nets = [small(**TINY), small(**TINY, std=0.2)]
    weights = [net.conv_in.weight[0, 0, 0, 0].item() for net in nets]
    calls, fail_at = 0, 0
    for name in ("rename", "fsync", "mkdir", "open"):
        original = getattr(os, name)

        def failing(*args: Any, original: Any = original, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == fail_at:
                raise OSError(errno.EIO, "injected", str(args[0]))
            return original(*args, **options)

        monkeypatch.setattr(os, name, failing)
    save(tmp_path / "a", nets[0])
    made = calls
    for k in range(1, made + 4):  # replacing takes a few calls more than making
        calls, fail_at = 0, 10**9
        save(tmp_path / "a", nets[0])
        calls, fail_at = 0, k
        try:
            save(tmp_path / "a", nets[1])
            failed = False
        except OSError:
            failed = True
        fail_at = 10**9
        found = load(tmp_path / "a").conv_in.weight[0, 0, 0, 0].item()
        assert found in (weights if failed else weights[1:])
        assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


@both
def test_two_threads_and_a_reader_share_a_folder(tmp_path: Path, kind: str, renames: str) -> None:
    """Without renameat2 a reader may come between the two renames; then it tries again."""
    save, load = SAVES[kind]
    nets, faults, done = [small(**TINY), small(**TINY, std=0.2)], list[BaseException](), threading.Event()
    weights = {net.conv_in.weight[0, 0, 0, 0].item() for net in nets}
    save(tmp_path / "a", nets[0])

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            faults.append(error)

    def write(net: UNet) -> None:
        for _ in range(25):
            save(tmp_path / "a", net)

    def read() -> None:
        while not done.is_set():
            assert load(tmp_path / "a").conv_in.weight[0, 0, 0, 0].item() in weights

    writers = [threading.Thread(target=run, args=(lambda net=net: write(net),)) for net in nets]
    readers = [threading.Thread(target=run, args=(read,))] if renames == "exchange" else []
    for thread in writers + readers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert not faults, faults
    load(tmp_path / "a")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


KILLED = """
import os, sys, signal
from pathlib import Path
from tinyddpm.nn._folders import new_folder
with new_folder(Path(sys.argv[1]), frozenset({"x"})) as fresh:
    (fresh / "x").write_text("new")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_save_removes_what_a_killed_one_left_and_no_living_ones(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "net")], timeout=60, check=False)
    assert result.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    with _folders.new_folder(tmp_path / "net") as living:
        small(**TINY).save(tmp_path / "net")
        assert {entry.name for entry in tmp_path.iterdir()} == {"net", living.name}
        (living / "unet.json").write_text("{}")
        with pytest.raises(ValueError, match="holds other files"), _folders.new_folder(tmp_path / "net"):
            pass
        with pytest.raises(RuntimeError, match="stop"), _folders.new_folder(tmp_path / "other"):
            raise RuntimeError("stop")
        for file in (tmp_path / "net").iterdir():
            file.unlink()  # so that the block's end may replace it
    assert [entry.name for entry in tmp_path.iterdir()] == ["net"]
    assert [entry.name for entry in (tmp_path / "net").iterdir()] == ["unet.json"]


@pytest.mark.slow
def test_two_threads_and_two_processes_save_a_thousand_times(tmp_path: Path) -> None:
    code = """
import sys, threading
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from networks import small
from tinyddpm.nn import UNet
net = small(channels=4, mults=(1,), res_blocks=1, attention=())
def write():
    for _ in range(250):
        net.save(sys.argv[1])
        UNet.load(sys.argv[1])
threads = [threading.Thread(target=write) for _ in range(2)]
[t.start() for t in threads]; [t.join() for t in threads]
"""
    words = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "a"), *sys.path]
    running = [subprocess.Popen(words, stderr=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate(timeout=600)[1] for process in running] == [b"", b""]
    UNet.load(tmp_path / "a")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
