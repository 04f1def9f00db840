"""Odd places to run in: closed and dead streams, systems that lack locks, links or memory, strange names, wrong environments.

In each the command does its work, or says in one line why it can't. A process that has imported everything forks a child for
each, which makes its own place odd.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

NURSERY = """
import io, json, os, sys, time
import torch, torch._dynamo, sklearn.datasets
torch.set_num_threads(1)
import tinyddpm._commands.train, tinyddpm._commands.sample, tinyddpm._commands.evaluate, tinyddpm.plots
from tinyddpm import cli, training
training.load("digits")
for line in sys.stdin:
    before, words, out, err = json.loads(line)
    child = os.fork()
    if not child:
        code = 1
        try:
            for number, file in ((1, out), (2, err)):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(n, "w", closefd=False), line_buffering=True) for n in (1, 2))
            sys.argv = ["tinyddpm", *words]
            exec(before)
            code = cli.main()
        except BaseException as error:
            print(f"Traceback: {error!r}", file=sys.stderr)
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

Place = Callable[[str, list[str]], tuple[int, str, str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Run a command after some code that makes its place odd; returns the exit code and what it wrote to both streams."""
    streams = [tmp_path_factory.mktemp("streams") / name for name in ("out", "err")]
    nursery = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip

    def run(before: str, words: list[str]) -> tuple[int, str, str]:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        nursery.stdin.write(json.dumps([before, words, *map(str, streams)]) + "\n")
        nursery.stdin.flush()
        code = int(nursery.stdout.readline())
        out, err = (stream.read_text(errors="replace") for stream in streams)
        return code, out, err

    yield run
    nursery.communicate()


TINY = ["--channels", "4", "--mults", "1", "--res-blocks", "1", "--T", "4", "--batch-size", "4", "--device", "cpu",
        "--precision", "float32", "--samples", "2", "--sample-every", "0"]  # fmt: skip
WORDS: dict[str, list[str]] = {
    "train": ["train", "--data", "digits", "--out", "{new}", "--steps", "2", "--checkpoint-every", "1", *TINY],
    "sample": ["sample", "--model", "{run}", "--out", "{new}", "-n", "4", "--batch-size", "2"],
    "array": ["sample", "--model", "{run}", "--out", "{new}.npz", "-n", "4", "--batch-size", "2"],
    "evaluate": ["evaluate", "--model", "{run}", "--data", "digits", "--limit", "2"],
}
DEAD = "read, write = os.pipe(); os.close(read); os.dup2(write, {0}); os.close(write)"
CLOSED = "os.close({0}); sys.{1} = None"
WORK: dict[str, str] = {  # the command does its work
    "standard error closed": CLOSED.format(2, "stderr"),
    "standard output closed": CLOSED.format(1, "stdout"),
    "all streams closed": "; ".join(("os.close(0)", CLOSED.format(1, "stdout"), CLOSED.format(2, "stderr"))),
    "a closed stream object": "sys.stderr.close()",
    "nobody reads standard error": DEAD.format(2),
    "a full standard error": "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)",
    "no fcntl": "sys.modules['fcntl'] = None",
    "no locks": "import fcntl, errno\ndef flock(*_): raise OSError(errno.ENOLCK, 'no locks')\nfcntl.flock = flock",
    "no links": "def link(*_, **__): raise PermissionError(1, 'not permitted')\nos.link = os.symlink = link",
    "no syncing": "import errno\ndef fsync(_): raise OSError(errno.EINVAL, 'no')\nos.fsync = fsync",
    "a clock that stands still": "time.perf_counter = time.monotonic = lambda: 1.0",
    "no tqdm": "sys.modules['tqdm'] = None",
    "an ASCII standard output": "sys.stdout.reconfigure(encoding='ascii', errors='strict')",
    "no home": "os.environ.pop('HOME', None)",
    "no programs": "os.environ['PATH'] = ''",
    "a folder that takes no files": "os.chdir('/proc')",
    "few files": "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))",
    "errors of floating point": "import numpy; numpy.seterr(all='raise')",
    "rank 0 of 1": "os.environ |= {'RANK': '0', 'WORLD_SIZE': '1'}",
}
FULL = """
import errno, tinyddpm._io.files as files
def write(self, content):
    raise OSError(errno.ENOSPC, 'No space left on device', self.name)
files._File.write = write
"""
MEMORY = """
import tinyddpm.nn
def forward(*_, **__):
    raise {}
tinyddpm.nn.UNet.forward = forward
"""
SMALLER = "out of memory; smaller --batch-size"
COMPILER = MEMORY.format("torch._dynamo.exc.TorchDynamoException('No working C++ compiler\\n')")
REFUSED: dict[str, tuple[str, str]] = {  # one line says why not
    "rank x": ("os.environ['RANK'] = 'x'", "RANK must be a number, got 'x'"),
    "rank 1 without a size": ("os.environ['RANK'] = '1'", "RANK must be in 0..0, got 1"),
    "size 0": ("os.environ['WORLD_SIZE'] = '0'", "WORLD_SIZE must be in 1"),
    "a full disk": (FULL, "No space left on device"),
    "no memory": (MEMORY.format("MemoryError"), SMALLER),
    "no memory on the device": (MEMORY.format("torch.OutOfMemoryError('CUDA out of memory. Tried 20 GiB')"), SMALLER),
    "no compiler": (f"import torch._dynamo\n{COMPILER}", "compile: No working C++ compiler; it works without --compile"),
    "no memory for Torch": (MEMORY.format("RuntimeError('[fail] DefaultCPUAllocator: can\\'t allocate memory')"), SMALLER),
}  # fmt: skip
NAMES = (
    "\x1b[31mred", "a\nb", os.fsdecode(b"\xff\xfe"), "日本", "-x", "a b", "ä", "x" * 200, "\u202egnp", "$(touch hacked)", "%s{0}"
)  # fmt: skip


@pytest.fixture(scope="module")
def run(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "run"
    code, _, err = place("", [word.format(new=out) for word in WORDS["train"]])
    assert code == 0, err
    return out


def check(name: str, new: Path, code: int, err: str) -> None:
    """The work is done, and nothing was left beside it."""
    assert code == 0, err
    assert "Traceback" not in err
    made = {"train": new / "last", "sample": new / "000003.png", "array": new.with_name(f"{new.name}.npz")}.get(name)
    assert made is None or made.exists()
    assert not [p for p in new.parent.rglob("*") if p.name.endswith((".new", ".part"))]
    if name == "array":
        assert np.load(str(made))["images"].shape == (4, 1, 8, 8)


def some(odd: Iterable[str], names: Sequence[str]) -> list[Any]:
    """Each place with each command; of these, all but one are slow."""
    return [
        pytest.param(place, name, marks=() if number == k % 2 else pytest.mark.slow)
        for k, place in enumerate(odd) for number, name in enumerate(names)
    ]  # fmt: skip


@pytest.mark.parametrize(("odd", "name"), some(WORK, ("train", "array", "sample", "evaluate")))
def test_the_work_is_done(odd: str, name: str, place: Place, run: Path, tmp_path: Path) -> None:
    code, _, err = place(WORK[odd], [word.format(new=tmp_path / "new", run=run) for word in WORDS[name]])
    check(name, tmp_path / "new", code, err)


@pytest.mark.parametrize(("odd", "name"), some(REFUSED, ("train", "array")))
def test_one_line_says_why_not(odd: str, name: str, place: Place, run: Path, tmp_path: Path) -> None:
    before, said = REFUSED[odd]
    code, _, err = place(before, [word.format(new=tmp_path / "new", run=run) for word in (*WORDS[name], "--quiet")])
    assert code == 2
    assert len(err.splitlines()) == 1, err
    assert said in err
    if odd == "a full disk":
        assert str(tmp_path / "new") in err


@pytest.mark.parametrize("odd", [*range(4), *(pytest.param(k, marks=pytest.mark.slow) for k in range(4, len(NAMES)))])
def test_names_are_used_as_they_are_and_shown_escaped(odd: int, place: Place, run: Path, tmp_path: Path) -> None:
    new = tmp_path / NAMES[odd]
    code, out, err = place(
        WORK["an ASCII standard output"], [w.replace("{run}", str(run)).replace("{new}", str(new)) for w in WORDS["array"]]
    )
    assert code == 0, err
    assert Path(f"{new}.npz").is_file()
    assert (out + err).replace("\n", "").isprintable()
    code, _, err = place("", ["evaluate", "--model", str(new), "--data", "digits"])
    assert code == 2
    assert len(err.splitlines()) == 1
    assert err.rstrip("\n").isprintable()


def test_a_full_standard_output_is_named(place: Place, run: Path, tmp_path: Path) -> None:
    words = [word.format(new=tmp_path / "new", run=run) for word in (*WORDS["array"], "--quiet")]
    code, _, err = place("os.dup2(os.open('/dev/full', os.O_WRONLY), 1)", words)
    assert code == 2
    assert err == "tinyddpm sample: standard output can't be written: No space left on device\n"
    assert (tmp_path / "new.npz").exists()


def test_a_dead_pipe_ends_a_command_as_it_ends_others_and_no_work_is_lost(place: Place, tmp_path: Path) -> None:
    both = f"{DEAD.format(1)}; os.dup2(1, 2)"
    code, _, _ = place(both, [word.format(new=tmp_path / "new") for word in (*WORDS["train"], "--quiet")])
    assert code == 141
    assert (tmp_path / "new" / "last").exists()


def test_an_interrupt_before_the_first_step_is_one_line(place: Place, tmp_path: Path) -> None:
    before = """
import signal, tinyddpm.training.trainer as trainer
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have turned off
def made(self, *_):
    signal.raise_signal(signal.SIGINT)
trainer.Trainer.__init__ = made
"""
    code, _, err = place(before, [word.format(new=tmp_path / "new") for word in (*WORDS["train"], "--quiet")])
    assert code == 130
    (line,) = err.splitlines()
    assert line.startswith("tinyddpm train: interrupted; go on with: ")


OTHER_SYSTEM = """
import os, sys
import torch, torch._dynamo, sklearn.datasets, subprocess, tempfile, multiprocessing, concurrent.futures  # have their own ways
sys.modules["fcntl"] = None
for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "register_at_fork", "pread", "link"):
    delattr(os, name)
def symlink(*_, **__): raise OSError(1314, "a privilege is not held")
os.symlink = symlink
torch.set_num_threads(1)
from tinyddpm import cli
for words in sys.argv[1:]:
    code = cli.main(words.split())
    assert code == 0, (words, code)
"""


def test_a_system_that_lacks_what_windows_lacks(tmp_path: Path) -> None:
    """No flock, no link that is not followed, no handler at forks, no reads at a place, no links."""
    words = [" ".join(WORDS[name]).format(new=tmp_path / "new", run=tmp_path / "new") for name in ("train", "array", "evaluate")]
    words += [f"{words[0]} --resume".replace("--steps 2", "--steps 3")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OTHER_SYSTEM, *words], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"out: {tmp_path / 'new'} is on a system without locks") >= 1
    assert not [p.name for p in tmp_path.rglob("*.new")]


@pytest.mark.slow
def test_without_the_sources(tmp_path: Path) -> None:
    """Only ``.pyc`` files, as some packagers ship them."""
    import compileall
    import shutil

    import tinyddpm

    root = Path(tinyddpm.__file__).parent
    shutil.copytree(root, tmp_path / "bare" / "tinyddpm", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(root.parent / "backends" / "tinyddpm_backends", tmp_path / "bare" / "tinyddpm_backends")
    assert compileall.compile_dir(tmp_path / "bare", legacy=True, quiet=1)
    for source in (tmp_path / "bare").rglob("*.py"):
        source.unlink()
    for name in ("train", "array"):
        words = [word.format(new=tmp_path / "new", run=tmp_path / "new") for word in WORDS[name]]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path / "bare")}
        subprocess.run([sys.executable, "-m", "tinyddpm", *words], env=environment, cwd=tmp_path, check=True, timeout=120)
