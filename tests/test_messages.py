"""What a run and a score say where something is odd: the cause, the flag and the remedy."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

pytest.importorskip("torch")

from runs import config, noise

from tinyddpm._commands.train import _as_toml
from tinyddpm.cli import main
from tinyddpm.training import TrainConfig, train

FAST = ("--T", "20", "--channels", "8", "--batch-size", "4", "--mults", "1", "--res-blocks", "1", "--attention", "8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps on forty grey images; and data of other kinds."""
    place = tmp_path_factory.mktemp("messages")
    np.save(place / "grey.npy", noise(40, 8, 8))
    np.save(place / "five.npy", noise(10, 8, 8, 5))
    np.save(place / "odd.npy", noise(10, 9, 9))
    np.savez(place / "labels.npz", images=noise(10, 8, 8), labels=np.arange(10.0))
    options: dict[str, Any] = {"steps": 3, "T": 20, "mults": (1,), "attention": (8,), "sample_every": 0}
    train(config(place / "run", data=str(place / "grey.npy"), held_out=0.2, **options), progress=False)
    return place


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("train --data odd.npy --out new", "by 4 unless --mults is given, got 9x9: --image-size resizes, and --mults 1"),
        ("train --data labels.npz --out new", "labels must be 10 integers, got float64 of shape (10,); labels.astype(int) makes"),
        ("sample --model five --out x.png --steps 2", "out must end in .npz if samples do not have 1 or 3 channels"),
        ("edit image-to-image x.png --model five --out y.png", "model must have 1 or 3 channels for pictures, got 5"),
        ("evaluate --model five --data grey.npy", "data must have images of 5x8x8 (channels, height, width), got 1x8x8"),
    ],
)  # fmt: skip
def test_the_cause_the_flag_and_the_remedy_are_named(
    place: Path, words: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    if "--model five" in words and not Path("five").exists():
        assert main(["train", "--data", "five.npy", "--out", "five", "--steps", "1", *FAST]) == 0
        assert "five/samples.npz" in capsys.readouterr().out  # the command that draws samples, which have no picture
    assert main([*words.split(), "-q"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert told in last
    assert not Path("new").exists()


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
@example("fotos🙂é")
@example('a "b" \\c\x7f\x9b')
def test_the_printed_settings_are_toml_that_reads_back(name: str) -> None:
    settings = TrainConfig(data=name, value_range=(-1, 1), mults=(1, 2), background=name, lr=1e-5)
    printed = _as_toml(settings)
    assert all(line.isprintable() for line in printed.splitlines())
    assert TrainConfig.from_dict(tomllib.loads(printed)) == settings


def test_a_name_that_is_no_text_is_a_comment() -> None:
    printed = _as_toml(TrainConfig(data="caf\udce9"))
    assert printed.splitlines()[0] == r"# data is caf\udce9, which TOML can't hold: --data has to be given"
    assert tomllib.loads(printed)["out"] == "run"


def test_one_image_has_no_standard_error(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(place / "run")
    for command in (["evaluate", "--data", str(place / "grey.npy"), "--curve"], ["calibrate"]):
        assert main([*command, "--model", run, "--limit", "1", "-q"]) == 0
        shown = capsys.readouterr().out
        assert "nan" not in shown
        assert "(no error, of one image)" in shown
