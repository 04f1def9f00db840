"""Training, checkpoints and sampling under any sequence of work, stops, damage and repair: the bits are always the same."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from tinyddpm import cli  # noqa: E402
from tinyddpm.training import Interrupted, TrainConfig, train  # noqa: E402
from tinyddpm.training.checkpoint import LAST  # noqa: E402
from tinyddpm.training.trainer import Trainer  # noqa: E402

LONGEST = 10


def config(out: Path, steps: int) -> TrainConfig:
    """A run of a few milliseconds a step."""
    return TrainConfig(
        out=str(out), steps=steps, resume=True, batch_size=4, channels=4, mults=(1,), res_blocks=1, dropout=0.2, T=3,
        checkpoint_every=3, device="cpu",
    )  # fmt: skip


@cache
def straight() -> tuple[Path, dict[int, bytes]]:
    """A run that nothing stops, and its averaged weights after each step."""
    out = Path(tempfile.mkdtemp(prefix="tinyddpm-")) / "run"
    train(dataclasses.replace(config(out, LONGEST), checkpoint_every=1, keep=LONGEST), progress=False)
    kept = sorted((out / "checkpoints").iterdir())
    return out, {step: (folder / "ema.safetensors").read_bytes() for step, folder in enumerate(kept, 1)}


class Training(RuleBasedStateMachine):
    """One run folder: trained on, interrupted, damaged and repaired."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="tinyddpm-"))
        self.out, self.step, self.damaged = self.folder / "run", 0, ""

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @precondition(lambda self: not self.damaged)
    @rule(more=st.integers(0, 4))
    def go_on(self, more: int) -> None:
        self.step = min(LONGEST, max(1, self.step + more))
        train(config(self.out, self.step), progress=False)

    @contextmanager
    def at_step(self, stop: int, event: Callable[[], object]) -> Iterator[None]:
        """Within the block, the event happens when the step `stop` begins."""
        original = Trainer.step

        def step(trainer: Trainer, number: int) -> object:
            if number == stop:
                event()
            return original(trainer, number)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "step", step)
            yield

    @precondition(lambda self: not self.damaged and self.step < LONGEST)
    @rule(after=st.integers(1, 3))
    def interrupt(self, after: int) -> None:
        """The step in which the signal comes is finished and saved."""
        self.step = min(LONGEST, self.step + after)
        # A signal in the last step has nothing left to interrupt.
        ends = nullcontext() if self.step == LONGEST else pytest.raises(Interrupted, match=f"step {self.step} ")
        with self.at_step(self.step, lambda: os.kill(os.getpid(), signal.SIGTERM)), ends:
            train(config(self.out, LONGEST), progress=False)

    @precondition(lambda self: not self.damaged and self.step < LONGEST)
    @rule(after=st.integers(1, 3))
    def fail(self, after: int) -> None:
        """An error in the middle of a step loses only the steps since the last checkpoint."""
        stop = min(LONGEST, self.step + after)
        with self.at_step(stop, Mock(side_effect=RuntimeError("a fault"))), pytest.raises(RuntimeError, match="a fault"):
            train(config(self.out, LONGEST), progress=False)
        self.step = max(self.step, (stop - 1) // 3 * 3)

    @precondition(lambda self: self.step and not self.damaged)
    @rule(name=st.sampled_from(["model", "ema", "optimizer"]), data=st.data())
    def damage(self, name: str, data: st.DataObject) -> None:
        file = self.out / LAST / f"{name}.safetensors"
        self.whole = file.read_bytes()
        place = data.draw(st.integers(0, len(self.whole) - 1))
        file.write_bytes(self.whole[:place] + bytes([self.whole[place] ^ 1]) + self.whole[place + 1 :])
        self.damaged = file.name

    @precondition(lambda self: self.damaged)
    @rule()
    def is_refused(self) -> None:
        with pytest.raises(ValueError, match=self.damaged):
            train(config(self.out, LONGEST), progress=False)

    @precondition(lambda self: self.damaged)
    @rule()
    def repair(self) -> None:
        (self.out / LAST / self.damaged).write_bytes(self.whole)
        self.damaged = ""

    @precondition(lambda self: self.step)
    @rule(change=st.sampled_from([{"seed": 1}, {"T": 4}, {"channels": 8}]))
    def another_run_is_refused(self, change: dict[str, int]) -> None:
        with pytest.raises((ValueError, TypeError)):
            train(dataclasses.replace(config(self.out, LONGEST), **change), progress=False)  # type: ignore[arg-type]

    @invariant()
    def holds_what_the_straight_run_has(self) -> None:
        if self.step and not self.damaged:
            assert json.loads((self.out / LAST / "state.json").read_bytes())["step"] == self.step
            assert (self.out / LAST / "ema.safetensors").read_bytes() == straight()[1][self.step]
            lines = (self.out / "log.jsonl").read_text().splitlines()[: self.step]
            assert [json.loads(line)["step"] for line in lines] == list(range(1, self.step + 1))


class Sampling(RuleBasedStateMachine):
    """One output folder: parts of it drawn, lost, damaged."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="tinyddpm-"))
        self.out, self.damaged = self.folder / "samples", ""

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @staticmethod
    @cache
    def reference() -> dict[str, bytes]:
        out = Path(tempfile.mkdtemp(prefix="tinyddpm-")) / "samples"
        assert Sampling.sample(out, 0, 12, 12) == 0
        return {file.name: file.read_bytes() for file in out.glob("*.png")}

    @staticmethod
    def sample(out: Path, first: int, end: int, batch: int) -> int:
        words = ["sample", "--model", str(straight()[0]), "--out", str(out), "--index", f"{first}:{end}"]
        return cli.main([*words, "--batch-size", str(batch), "--quiet"])

    @rule(first=st.integers(0, 11), count=st.integers(1, 6), batch=st.integers(1, 5))
    def draw(self, first: int, count: int, batch: int) -> None:
        end = min(12, first + count)
        assert self.sample(self.out, first, end, batch) == (2 if self.damaged else 0)
        if not self.damaged:
            assert {f"{k:06d}.png" for k in range(first, end)} <= {file.name for file in self.out.iterdir()}

    @precondition(lambda self: not self.damaged and any(self.out.glob("*.png")))
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(sorted(self.out.glob("*.png")))).unlink()

    @precondition(lambda self: not self.damaged and any(self.out.glob("*.png")))
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(sorted(self.out.glob("*.png"))))
        file.write_bytes(file.read_bytes()[:20])
        self.damaged = file.name

    @precondition(lambda self: self.damaged)
    @rule()
    def remove_the_damaged(self) -> None:
        (self.out / self.damaged).unlink()
        self.damaged = ""

    @invariant()
    def holds_the_reference_only(self) -> None:
        there = {file.name: file.read_bytes() for file in self.out.glob("*.png") if file.name != self.damaged}
        assert there.items() <= self.reference().items()


QUICK = settings(max_examples=8, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=150, stateful_step_count=30)

TestTraining = Training.TestCase
TestTraining.settings = QUICK
TestSampling = Sampling.TestCase
TestSampling.settings = QUICK


@pytest.mark.slow
class TestLongTraining(Training.TestCase):  # type: ignore[misc, valid-type]
    settings = LONG


@pytest.mark.slow
class TestLongSampling(Sampling.TestCase):  # type: ignore[misc, valid-type]
    settings = LONG
