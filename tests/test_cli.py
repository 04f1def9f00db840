"""The command line: flags in, files out, and one line for bad input."""

from __future__ import annotations

import ast
import json
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY

import tinyddpm
from tinyddpm import likelihood
from tinyddpm.cli import COMMANDS, main, parser

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("torch")
training = pytest.importorskip("tinyddpm.training")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders and files, each wrong in one way."""
    root = tmp_path_factory.mktemp("data")
    for name in ("empty", "mixed", "corrupt", "odd"):
        (root / name).mkdir()
    for folder, file, size in (("mixed", "a", 8), ("mixed", "b", 12), ("corrupt", "a", 8), ("odd", "a", 9)):
        Image.new("L", (size, size)).save(root / folder / f"{file}.png")
    (root / "corrupt" / "b.png").write_bytes((root / "corrupt" / "a.png").read_bytes()[:40])
    (root / "file").write_text("no folder")
    (root / "bad.toml").write_text("stepz = 3\n")
    (root / "broken.toml").write_text("steps = \n")
    np.save(root / "large.npy", np.zeros((2, 16, 16), np.uint8))
    return root


# Bad input.

WRONG = {
    "train --data digits --out {out} --quiet": [
        "--data {data}/nowhere -> nowhere", "--data {data}/mixed -> b.png", "--data {data}/empty -> empty",
        "--data {data}/corrupt -> b.png", "--data {data}/odd -> 9x9", "--mults 1,2,2,2,2 -> image_size 8",
        "--schedule zigzag -> zigzag", "--predicts pixels -> pixels", "--objective fun -> fun", "--steps 0 -> steps 0",
        "--steps many -> many", "--lr -1 -> lr -1", "--device tpu:7 -> tpu:7", "--out {data}/file/run -> file",
        "--device cuda:99 -> cuda:99", "--variance learned_range -> objective", "--channels 7 -> channels",
        "--colour blue -> --colour", "--config {data}/bad.toml -> bad.toml stepz",
        "--config {data}/broken.toml -> broken.toml", "--config {data}/nowhere.toml -> nowhere.toml",
    ],
    "sample --model {model} --out {out}": [
        "--model {data}/nowhere -> nowhere", "--model {data}/empty -> empty", "--model {data}/file -> file",
        "--sampler euler -> euler", "--steps 0 -> steps 0", "--steps 7 -> steps 7", "--eta 0.5 -> eta 0.5", "-n 0 -> n 0",
        "--index 9:3 -> --index 9:3", "--index 9 -> --index '9'", "-n 4 --index 0:9 -> index 0:9", "--seed -1 -> seed -1",
        "--batch-size 0 -> batch_size 0", "--device tpu:7 -> tpu:7", "--out {out}.jpg -> .jpg", "--spacing odd -> odd",
        "--label 1 -> label 1", "--label one -> label 'one'", "--guidance 2 -> guidance 2.0",
        "--out {out}.gif --frames 1 -> frames 1", "--out {out}.png --columns 0 -> columns 0",
        "--out {data}/file/a.png -> file", "--out {data}/file/a.npz -> file", "--out {data}/file/folder -> file",
        "--out {data}/mixed -> mixed",
    ],
    "sample --model {model}": ["-> --out"],
    "evaluate --model {model} --data digits": [
        "--data {data}/large.npy -> 16x16", "--data {data}/corrupt -> b.png", "--limit 0 -> limit 0",
        "--model {data}/empty -> empty", "--fid -> fid --distances", "--classifier a -> classifier --distances",
        "--distances 3 -> distances 3", "--distances 40 --sampler euler -> euler", "--distances 40 --sampler-steps 9 -> steps 9",
        "--distances 40 --classifier {data}/file -> classifier.json", "--distances 40 --fid -> torch-fidelity",
        "--keep {data}/corrupt -> keep corrupt", "--keep {data}/file/kept -> keep file/kept",
    ],
    "calibrate --model {model}": ["--model {data}/empty -> empty", "--limit 0 -> limit 0", "--data {data}/large.npy -> 16x16"],
    "evaluate --data digits --model {model} --steps 3": ["-> calibration.json tinyddpm calibrate --model"],
    "sample --model {model} --out {out} --plan best": [
        "-> calibration.json", "--sampler ddim -> plan --sampler", "--spacing even -> plan --spacing", "--eta 0 -> plan --eta",
    ],
    "plot": [
        "wheel {out}.png -> wheel", "schedules {out}.doc -> .doc", "schedules {data}/file/a.png -> file",
        "loss {out}.png -> --model", "loss {out}.png --model {data}/empty -> empty",
        "denoising {out}.png --model {data}/nowhere -> nowhere",
    ],
    "demo --out {out} --quiet": ["--steps 0 -> steps 0", "--out {data}/file -> file"],
    "": ["paint -> paint", "--colour -> --colour"],
}  # fmt: skip
LINES = [f"{command} {case}" for command, cases in WRONG.items() for case in cases]


@pytest.mark.parametrize("case", LINES)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(
    case: str, model: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each case is a command, an arrow, and the words that the message must contain. What the data are may be said before it."""
    words, _, named = case.partition("->")
    before = {p: p.stat().st_mtime_ns for p in data.rglob("*")}
    assert main([word.format(out=tmp_path / "out", model=model, data=data) for word in words.split()]) == 2
    *before_it, line = capsys.readouterr().err.splitlines()
    assert all(said.startswith(("data: ", "evaluate: ")) for said in before_it)
    assert line.startswith("tinyddpm")
    assert all(name in line for name in named.split())
    assert not list(tmp_path.iterdir())
    assert {p: p.stat().st_mtime_ns for p in data.rglob("*")} == before


def test_no_command_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    usage, line = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: tinyddpm")
    assert all(name in line for name in COMMANDS)


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["plot", "schedules", str(tmp_path / "a.png")]) == 2
    assert "matplotlib is not installed; pip install" in capsys.readouterr().err


# Help.


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_quiet_json_and_examples_that_parse(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert {"--quiet", "--json"} <= set(text.split())
    assert "\x1b" not in text  # without a terminal there is no colour
    examples = text.partition("examples:\n")[2].split("\n")
    assert len(examples) >= 2
    for example in filter(None, examples):
        program, command, *words = example.split()
        assert (program, command) == ("tinyddpm", name)
        parser(name).parse_args(words)


def test_a_reader_that_leaves_is_not_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As in ``tinyddpm verify | head -1``: no traceback and no message, not at exit either."""
    import os

    from tinyddpm._commands import info

    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(info, "run", lambda args: iter(["one", "two"]))
    with open(write, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["info"]) == 141
        monkeypatch.undo()
    assert capsys.readouterr().err == ""


def test_every_setting_has_a_flag_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "--help"])
    text = capsys.readouterr().out
    for name in training.TrainConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')} " in text
    assert "tinyddpm.training" not in text  # help does not name modules


def test_help_and_version_load_no_library() -> None:
    code = (
        "import sys; from tinyddpm.cli import main; rc = main(['--help']), main(['--version']);"
        "assert rc == (0, 0); print(sorted({'torch', 'scipy', 'matplotlib', 'jax'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-2:] == [f"tinyddpm {tinyddpm.__version__}", "[]"]


def test_only_the_command_line_prints() -> None:
    root = Path(tinyddpm.__file__).parent
    printing = {
        path.name
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printing == {"cli.py"}


@pytest.mark.parametrize(
    ("line", "about"),
    [
        ("train --out {out} --quiet", {"checkpoint", "skipped", "settings"}),
        ("sample --model {model} --out {out}.npz -n 2 --quiet", {"out", "index", "sampler", "steps"}),
        ("sample --model {model} --out {out}.png -n 2", {"out", "index"}),
        ("evaluate --model {model} --data digits --limit 2", {"bits_per_dim", "images", "levels"}),
        ("plot schedules {out}.png --quiet", {"path"}),
        ("info", {"version", "backends"}),
        ("info --quiet", {"version", "backends"}),
    ],
)
def test_json_is_all_that_is_printed(
    line: str, about: set[str], model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = line.format(out=tmp_path / "out", model=model).split()
    assert main([*words, *(TINY if words[0] == "train" else ()), "--json"]) == 0
    shown = capsys.readouterr()
    assert about <= json.loads(shown.out).keys()
    assert not ("--quiet" in words and shown.err)


def test_train_prints_its_results_as_json(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert main(["train", *TINY, "--out", out, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["checkpoint"] == str(Path(out, "last"))
    assert told["settings"] == json.loads(Path(out, "config.json").read_bytes())["config"]
    assert told["skipped"] == []


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["version"] == tinyddpm.__version__
    assert info["backends"]["numpy"] == {"version": np.__version__, "devices": ["cpu"]}
    for name, entry in info["backends"].items():
        assert set(entry) in ({"version", "devices"}, {"reason"}), name
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"  numpy   {np.__version__} on cpu" in lines
    assert [line.split()[0] for line in lines[1:]] == list(info["backends"])
    assert main(["info", "--quiet"]) == 0
    here = [name for name, entry in info["backends"].items() if "version" in entry]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == here


def test_quiet_verification_prints_only_failures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from tinyddpm import verify

    found = [verify.Result(name, error, 1.0, "ulp", "why") for name, error in (("one", 0.5), ("two", 2.0), ("three", 1.0))]
    monkeypatch.setattr(verify, "identities", lambda *args: iter(found))
    assert main(["verify", "--quiet"]) == 1
    failure, count = capsys.readouterr().out.splitlines()
    assert failure.startswith("two ")
    assert failure.endswith("FAILED")
    assert count.startswith("3 identities, 1 failed")


# Train.


def test_train_prints_its_settings_as_a_file_that_repeats_it(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["train", *TINY, "--out", str(out)]) == 0
    text, _, rest = capsys.readouterr().out.partition("checkpoint: ")
    assert rest.splitlines()[0] == str(out / "last")
    assert f"sample --model {out}" in rest
    assert f"--resume --steps {6}" in rest
    settings = tomllib.loads(text)
    assert {"steps": 3, "mults": [1, 2], "data": "digits"}.items() <= settings.items()
    file = tmp_path / "run.toml"
    file.write_text(text)
    again = tmp_path / "again"
    assert main(["train", "--config", str(file), "--out", str(again), "--quiet"]) == 0
    for weights in ("model.safetensors", "ema.safetensors"):
        assert (again / "last" / weights).read_bytes() == (Path(model) / "last" / weights).read_bytes()


def test_resume_takes_the_settings_from_the_run(model: str, tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert main(["train", *TINY, "--steps", "5", "--out", str(whole), "--quiet"]) == 0
    assert main(["train", *TINY, "--out", str(parted), "--quiet"]) == 0
    assert main(["train", "--out", str(parted), "--resume", "--steps", "5", "--quiet"]) == 0
    assert (whole / "last/model.safetensors").read_bytes() == (parted / "last/model.safetensors").read_bytes()
    assert [json.loads(line)["step"] for line in (parted / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5]


def test_a_run_is_not_overwritten_and_changed_settings_are_refused(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, "--out", model, "--quiet"]) == 2
    assert model in capsys.readouterr().err
    assert main(["train", "--out", model, "--resume", "--T", "7", "--quiet"]) == 2
    line = capsys.readouterr().err
    assert "T must stay 6" in line
    assert "got 7" in line


def test_an_interrupted_run_is_saved_and_says_how_to_resume(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "tinyddpm", "train", *TINY, "--steps", "100000", "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (out / "log.jsonl").exists() or not (out / "log.jsonl").read_bytes():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=60)
    assert process.returncode == 130
    step = json.loads((out / "last" / "state.json").read_text())["step"]
    last = shown.splitlines()[-1]
    assert f"step {step} is saved" in last
    assert f"-m tinyddpm train --out {out} --resume" in last
    assert "Traceback" not in shown


# Evaluate.


def test_evaluate_gives_the_bound_on_held_out_images(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--model", model, "--data", "digits", "--json", "-q", "--batch-size", "100"]) == 0
    stated = json.loads(capsys.readouterr().out)
    run = training.load_run(model)
    _, held_out = training.load("digits").split(run.config.held_out)
    import torch

    bound = likelihood.vlb(run.diffusion, run.denoiser, torch.from_numpy(held_out.scaled()), levels=17)
    summary = bound.summary()
    assert (stated["images"], stated["levels"]) == (len(held_out), 17)
    # The network sees batches of another size, which may round another way in float32.
    for name in ("bits_per_dim", "rate", "distortion"):
        np.testing.assert_allclose([stated[name][k] for k in ("mean", "error")], summary[name], rtol=1e-4)
    assert stated["prior"]["mean"] + stated["kl"]["mean"] == pytest.approx(stated["rate"]["mean"])
    assert stated["decoder"]["mean"] == pytest.approx(stated["distortion"]["mean"])
    assert stated["rate"]["mean"] + stated["distortion"]["mean"] == pytest.approx(stated["bits_per_dim"]["mean"])
    assert main(["evaluate", "--model", model, "--data", "digits", "-q", "--batch-size", "100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main(["evaluate", "--model", model, "--data", "digits", "--limit", "5"]) == 0
    said = capsys.readouterr().err
    assert re.search(
        r"\nevaluate: 5 of 180 images, 6 network calls each, about \d+ s \(--limit and --steps take others\)\n", said
    )
    assert lines[0] == f"bits/dim: {stated['bits_per_dim']['mean']:.4f} +- {stated['bits_per_dim']['error']:.4f}"


def test_evaluate_scores_all_of_other_images(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "own.npy", np.random.default_rng(0).integers(0, 256, (7, 8, 8), np.uint8))
    assert main(["evaluate", "--model", model, "--data", str(tmp_path / "own.npy"), "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 7
    assert main(["evaluate", "--model", model, "--data", str(tmp_path / "own.npy"), "--limit", "3", "-q"]) == 0
    assert "images: 3" in capsys.readouterr().out
    assert main(["evaluate", "--model", model, "--data", str(tmp_path / "own.npy"), "--limit", "1", "--json", "-q"]) == 0
    alone = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert alone["bits_per_dim"]["error"] is None


# Plot.


@pytest.mark.parametrize(
    "what", ["schedules", "forward", "denoising", "loss", "bound", "rate-distortion", "sampler-error", "one-jump"]
)
def test_every_figure_is_drawn(what: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / f"{what}.png"
    assert main(["plot", what, str(file), "--model", model, "--limit", "8", "-q"]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    with Image.open(file) as picture:
        assert min(picture.size) > 200
