"""``LD_PRELOAD=interpose.so python run.py interpose.so [EVERY] [SCENARIO ...]``: fail each call on files, and see what is left.

Each command is run once for every k and every error: the k-th call below its folder (open, read, write, fsync, rename, mkdir,
flock, unlink, ...) fails, or the process is killed there. Then the last good state must load, the error must be one line that
names a file, and a second run must end with the bytes of one that nothing disturbed and leave no temporary file. With EVERY,
only each EVERY-th of these is tried. A process that has imported everything forks a child for each.
"""

from __future__ import annotations

import ctypes
import errno
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tinyddpm import Denoiser, Diffusion, cli, plots, schedules
from tinyddpm.calibration import Calibration
from tinyddpm.nn import UNet, load_diffusers, load_model, save_diffusers
from tinyddpm.training import load, load_run

FAULTS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EINTR": errno.EINTR, "ENOTSUP": errno.ENOTSUP, "kill": -1}
CONFIG = {
    "data": "digits", "channels": 4, "mults": [1], "res_blocks": 1, "T": 4, "batch_size": 4, "checkpoint_every": 1, "samples": 2,
    "device": "cpu", "held_out": 0.99,
}  # fmt: skip
TRAIN = ["train", "--config", "CONFIG", "--resume", "--quiet", "--out", "FOLDER/run"]


@dataclass(frozen=True)
class Scenario:
    """What is done in a folder that begins as a copy of `template`; `loads` reads the state that must always be there."""

    do: Callable[[Path], Any]
    template: str = ""
    loads: Callable[[Path], Any] = lambda folder: None


def command(*words: str) -> Callable[[Path], int]:
    """A command line; FOLDER stands for the folder."""
    return lambda folder: cli.main([word.replace("FOLDER", str(folder)).replace("CONFIG", f"{folder}.toml") for word in words])


def net(seed: int) -> UNet:
    torch.manual_seed(seed)
    return UNet(8, in_channels=1, channels=4, mults=(1,), res_blocks=1, attention=())


def pipeline(folder: Path, seed: int) -> None:
    made = net(seed)
    save_diffusers(folder / "pipe", made, Diffusion(schedules.linear(4)), Denoiser(made, first_t=0))


def load_if_there(folder: Path) -> None:
    if os.path.lexists(folder / "run" / "last"):
        load_run(folder / "run")


def pictures_are_whole(folder: Path) -> None:
    for file in folder.glob("out/[0-9]*.png"):
        with Image.open(file) as picture:
            picture.load()


EVALUATE = ("evaluate", "--model", "FOLDER/run", "--data", "digits", "--limit", "2", "--json", "--quiet")
SAMPLE = ("sample", "--model", "FOLDER/run", "-n", "4", "--batch-size", "2", "--quiet", "--out")
SCENARIOS = {
    "train": Scenario(command(*TRAIN, "--steps", "2", "--sample-every", "0"), "", load_if_there),
    "train, resumed": Scenario(
        command(*TRAIN, "--steps", "3", "--sample-every", "0"), "run", lambda folder: load_run(folder / "run")
    ),
    "train with grids": Scenario(
        command(*TRAIN, "--steps", "1", "--sample-every", "1"), "", load_if_there),
    "sample, folder": Scenario(command(*SAMPLE, "FOLDER/out"), "run", pictures_are_whole),
    "sample, npz": Scenario(command(*SAMPLE, "FOLDER/out.npz"), "run"),
    "sample, png": Scenario(command(*SAMPLE, "FOLDER/out.png"), "run"),
    "sample, gif": Scenario(command(*SAMPLE, "FOLDER/out.gif"), "run"),
    "evaluate": Scenario(command(*EVALUATE), "run"),
    "evaluate, kept": Scenario(command(*EVALUATE, "--batch-size", "1", "--keep", "FOLDER/kept"), "run"),
    "plot": Scenario(command("plot", "schedules", "FOLDER/schedules.svg"), ""),
    "plot, loss": Scenario(command("plot", "loss", "FOLDER/loss.png", "--model", "FOLDER/run"), "run"),
    "plot, page": Scenario(command("plot", "FOLDER/play.html"), ""),
    "calibrate": Scenario(
        command("calibrate", "--model", "FOLDER/run", "--limit", "4", "--json", "--quiet"), "calibrated",
        lambda folder: Calibration.load(folder / "run" / "calibration.json"),
    ),
    "UNet.save": Scenario(lambda folder: net(1).save(folder / "net"), "nets", lambda folder: UNet.load(folder / "net")),
    "UNet.save with its chain": Scenario(
        lambda folder: (made := net(1)).save(folder / "net", Diffusion(schedules.linear(4)), Denoiser(made)), "nets",
        lambda folder: load_model(folder / "net"),
    ),
    "save_diffusers": Scenario(lambda folder: pipeline(folder, 1), "nets", lambda folder: load_diffusers(folder / "pipe")),
    "Calibration.save": Scenario(
        lambda folder: Calibration.load(CALIBRATION[0]).save(folder / "calibration.json"), "saved",
        lambda folder: Calibration.load(folder / "calibration.json"),
    ),
}  # fmt: skip
CALIBRATION: list[Path] = []


def in_child(work: Callable[[], Any]) -> tuple[int, dict[str, Any]]:
    """Run `work` in a fork; returns its exit code, 2 for a documented error, and what it reported."""
    out, into = os.pipe()
    child = os.fork()
    if not child:
        os.close(out)
        report: dict[str, Any] = {"code": 1}
        errors, printed = io.StringIO(), io.StringIO()
        try:
            with redirect_stderr(errors), redirect_stdout(printed):
                try:
                    report["code"] = work() or 0
                except (OSError, ValueError) as error:
                    report["code"] = 2
                    errors.write(f"{error}\n")
        except BaseException as error:
            errors.write(f"Traceback: {error!r}\n")
        finally:
            report |= {**SEEN, "errors": errors.getvalue(), "printed": printed.getvalue()}
            report["modules"] = list(sys.modules)
            os.write(into, json.dumps(report).encode())
            os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as stream:
        text = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    report = json.loads(text) if text else {"errors": "", "printed": ""}
    return (report["code"] if status == 0 else status), report


SEEN: dict[str, Any] = {}
FAULT: Any = ctypes.CDLL(sys.argv[1])
FAULT.fault_made.restype, FAULT.fault_what.restype = ctypes.c_long, ctypes.c_char_p
FAULT.fault_arm.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_int)


def armed(scenario: Scenario, folder: Path, k: int, code: int) -> Callable[[], Any]:
    def work() -> Any:
        FAULT.fault_arm(f"{folder}/".encode(), k, code)
        try:
            return scenario.do(folder)
        finally:
            SEEN.update(made=FAULT.fault_made(), what=FAULT.fault_what().decode())
            FAULT.fault_arm(b"", 0, 0)

    return work


def content(folder: Path) -> dict[str, bytes]:
    """Every file, the log without what the clock decides, the config without the number of the commit."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.is_file() and not file.is_symlink() and not name.endswith(".lock") and "last/" not in name:
            data = file.read_bytes()
            if name.endswith("log.jsonl"):
                clock = ("seconds", "images_per_s", "changed")
                lines = [{k: v for k, v in json.loads(line).items() if k not in clock} for line in data.splitlines()]
                data = json.dumps(lines).encode()
            elif name.endswith("state.json"):
                data = json.dumps(json.loads(data)["files"]).encode()
            elif name.endswith(("config.json", "loss.png", ".svg")) and "net" not in name and "pipe" not in name:
                data = b""
            found[name] = data
    return found


def temporaries(folder: Path) -> list[str]:
    return [str(p) for p in folder.rglob(".*") if p.name != ".lock"] + [str(p) for p in folder.rglob("*.part")]


class Trial:
    """One scenario: its template, what it should end with, and the faults found."""

    def __init__(self, name: str, place: Path) -> None:
        self.name, self.scenario, self.place = name, SCENARIOS[name], place
        self.faults: list[str] = []
        self.tried = self.failed = self.killed = 0
        folder = self.fresh()
        code, report = in_child(armed(self.scenario, folder, 0, 0))
        assert code == 0, (name, code, report)
        for module in report["modules"]:  # so that no child need
            with suppress(Exception):
                import_module(module)
        self.calls, self.printed, self.expected = report["made"], report["printed"], content(folder)
        assert not temporaries(folder), temporaries(folder)

    def fresh(self) -> Path:
        folder = self.place / "work"
        shutil.rmtree(folder, ignore_errors=True)
        template = self.place / "templates" / self.scenario.template
        shutil.copytree(template, folder, symlinks=True) if self.scenario.template else folder.mkdir()
        return folder

    def one(self, k: int, fault: str) -> None:
        folder = self.fresh()
        code, report = in_child(armed(self.scenario, folder, k, FAULTS[fault]))
        lines = [line for line in report["errors"].splitlines() if not line.startswith("resume: ")]
        errors, what = "\n".join(lines), report.get("what", "")
        self.tried += 1
        self.failed += code not in (0, -signal.SIGKILL)
        self.killed += code == -signal.SIGKILL
        try:
            if code not in (0, 2, -signal.SIGKILL) or "Traceback" in errors:
                raise ValueError(f"code {code}: {errors}")
            if code == 2 and (len(lines) != 1 or str(folder) not in errors or ".new" in errors):
                raise ValueError(f"not one line that names a file: {errors!r}")
            if code == 0 and not self.expected.items() <= content(folder).items():  # what can't be removed is left to the next
                raise ValueError(f"ends without an error, but differs: {self.difference(folder)}")
            self.scenario.loads(folder)
            code, report = in_child(armed(self.scenario, folder, 0, 0))
            if code != 0:
                raise ValueError(f"the second run fails: {report['errors']}")
            if content(folder) != self.expected or temporaries(folder):
                raise ValueError(f"the second run differs: {self.difference(folder)}")
            if self.name.startswith("evaluate") and report["printed"] != self.printed:
                raise ValueError("the second run prints something else")
        except (ValueError, OSError) as error:
            self.faults.append(f"{self.name}, call {k} of {self.calls} ({what}), {fault}: {error}")

    def difference(self, folder: Path) -> list[str]:
        now = content(folder)
        return [name for name in now.keys() | self.expected.keys() if now.get(name) != self.expected.get(name)] + temporaries(
            folder
        )


def templates(place: Path) -> None:
    """A run, one with a calibration, saved networks, a saved calibration."""
    for name in ("run", "calibrated", "nets", "saved"):
        (place / name).mkdir(parents=True)
    toml = "\n".join(f"{name} = {json.dumps(value)}" for name, value in CONFIG.items())
    for file in (place / "run.toml", place.parent / "work.toml"):
        file.write_text(toml)
    code, report = in_child(lambda: command(*TRAIN, "--steps", "2", "--sample-every", "0")(place / "run"))
    assert code == 0, report
    shutil.copytree(place / "run" / "run", place / "calibrated" / "run", symlinks=True)
    calibrate = command("calibrate", "--model", "FOLDER/run", "--limit", "2", "--json", "--quiet")
    assert in_child(lambda: calibrate(place / "calibrated"))[0] == 0
    shutil.copy(place / "calibrated" / "run" / "calibration.json", place / "saved")
    CALIBRATION.append(place / "calibration.json")
    shutil.copy(place / "calibrated" / "run" / "calibration.json", CALIBRATION[0])
    first = net(0)
    first.save(place / "nets" / "net", Diffusion(schedules.linear(4)), Denoiser(first))
    pipeline(place / "nets", 0)


def main() -> int:
    """Try all, or each EVERY-th, of the scenarios named."""
    every, names = int(sys.argv[2]) if len(sys.argv) > 2 else 1, sys.argv[3:] or list(SCENARIOS)
    torch.set_num_threads(1)
    load("digits")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    faults, tried, number = list[str](), 0, 0
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        place = Path(folder)
        if any(name.startswith("plot") for name in names):
            plots.save(plots.schedules(), place / "fonts.png")
        templates(place / "templates")
        for name in names:
            began, trial = time.perf_counter(), Trial(name, place)
            for k in range(1, trial.calls + 1):
                for fault in FAULTS:
                    number += 1
                    if number % every == 0:
                        trial.one(k, fault)
            took = time.perf_counter() - began
            print(f"{name}: {trial.calls} calls, {trial.tried} faults, {trial.failed} errors, {trial.killed} kills, "
                  f"{len(trial.faults)} wrong, {took:.0f} s", flush=True)  # fmt: skip
            faults += trial.faults
            tried += trial.tried
            for fault in trial.faults[:8]:
                print(f"  {fault}", flush=True)
    print(f"{tried} faults injected, {len(faults)} wrong")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
