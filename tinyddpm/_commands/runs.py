"""What several commands do with a trained run: load it, score images, follow a few samples, read its log."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyddpm import backends
from tinyddpm._arrays.check import as_positive_int
from tinyddpm._io.progress import progress_bar
from tinyddpm.likelihood import VLB, vlb
from tinyddpm.samplers import Step
from tinyddpm.training import Images, Run, load_run

__all__ = ["batches", "device_of", "follow", "held_out", "open_run", "read_log", "score", "spacing_for"]


def open_run(model: str, device: str | None = None) -> Run:
    """The run in the folder `model`, on `device`: by default this process's CUDA device, else the CPU."""
    torch = backends.get("torch")
    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if len(torch.devices()) > 1 else "cpu"
    torch.from_numpy(np.empty(0, np.float32), device=device)  # a wrong device is told by name
    return load_run(model, device)


def device_of(run: Run) -> str:
    """Where the run's network is."""
    return str(next(run.net.parameters()).device)


def held_out(run: Run, data: str, limit: int | None = None) -> Images:
    """The images of `data` to score: where the run was trained on them, those that it held out."""
    images = dataclasses.replace(run.config, data=data).images()
    if data == run.config.data:
        images = images.split(run.config.held_out)[1]
    if not len(images):
        raise ValueError(f"data: the run held out no image of {data}")
    return images if limit is None else images.rows(slice(as_positive_int("limit", limit)))


def spacing_for(sampler: str) -> str:
    """The spacing of few moves that served best: ddpm on trained networks, the others also with exact ones."""
    return "even" if sampler == "ddpm" else "quadratic"


def score(run: Run, images: Images, *, seed: int = 0, batch_size: int = 250, progress: bool = False) -> VLB:
    """The bound of the run's model on the images, in batches, on which the noise does not depend."""
    if images.shape != run.shape:
        theirs, own = ("x".join(map(str, shape)) for shape in (images.shape, run.shape))
        raise ValueError(f"data: its images are {theirs}, but the model's are {own} (channels, height, width)")
    torch, device = backends.get("torch"), device_of(run)
    parts = []
    for rows, show in batches(range(len(images)), batch_size, progress):
        x0 = torch.from_numpy(images.scaled(slice(rows.start, rows.stop)), device=device)
        part = vlb(run.diffusion, run.denoiser, x0, seed=seed, index=rows, levels=images.levels, progress=show)
        parts.append(part)
    return parts[0] if len(parts) == 1 else VLB(**{
        field.name: _joined([getattr(part, field.name) for part in parts]) for field in dataclasses.fields(VLB)
    })  # fmt: skip


def follow(run: Run, index: range, t: Sequence[int], *, seed: int = 0, progress: bool = False) -> list[Step]:
    """Samples on their way, by the full chain: their states at each t in the decreasing `t`, as NumPy arrays."""
    wanted = frozenset(t)
    steps = run.diffusion.trajectory(
        run.denoiser, (len(index), *run.shape), index=index, seed=seed,
        backend="torch", device=device_of(run), progress=progress,
    )  # fmt: skip
    to_numpy = backends.get("torch").to_numpy
    return [Step(step.t, to_numpy(step.x), None) for step in steps if step.t in wanted]


def read_log(model: str) -> list[dict[str, Any]]:
    """The lines of the run's log."""
    file = Path(model, "log.jsonl")
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise FileNotFoundError(f"model: {model}: is no run: it holds no log.jsonl") from None
    except ValueError as error:
        raise ValueError(f"model: {file}: {error}") from error


def batches(index: range, size: int, progress: bool) -> Iterator[tuple[range, bool]]:
    """The index cut at multiples of `size`, and whether to show progress within a part: where it is the only one."""
    size = as_positive_int("batch_size", size)
    first, end = index.start, index.stop
    parts = [range(max(first, k), min(end, k + size)) for k in range(first - first % size, end, size)]
    inside = progress and len(parts) == 1
    for part in progress_bar(parts, len(parts), enabled=progress and not inside, label="batches"):
        yield part, inside


def _joined(values: list[Any]) -> Any:
    """The arrays of the batches in a row; what is no array is the same for all."""
    return np.concatenate(values) if isinstance(values[0], np.ndarray) else values[0]
