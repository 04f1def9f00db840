"""What several commands do with a trained run: load it, score images, draw trajectories, read its log."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyddpm import backends
from tinyddpm._arrays.check import as_positive_int, nearest
from tinyddpm._commands.models import Saved, is_saved, open_saved
from tinyddpm._io.files import shown
from tinyddpm._io.progress import progress_bar, say
from tinyddpm.likelihood import VLB, vlb
from tinyddpm.samplers import Step
from tinyddpm.training import Images, Run, load_run
from tinyddpm.training.data.reading import in_channels
from tinyddpm.training.log import read_lines


def open_run(model: str, device: str | None = None) -> Run:
    """Load the run, the saved network with its chain or the diffusers pipeline in the folder `model`.

    The default device is this process's CUDA device, else the CPU.
    """
    torch = backends.get("torch")
    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if len(torch.devices()) > 1 else "cpu"
    torch.from_numpy(np.empty(0, np.float32), device=device)  # refuses a wrong device by name
    return open_saved(model, device) if is_saved(model) else load_run(model, device)


def data_of(run: Run, data: str | None) -> str:
    """The given data, else those that the run was trained on."""
    if data is None and isinstance(run, Saved):
        raise ValueError("data must be given, as the model does not say what it was trained on: --data digits|FOLDER|FILE")
    return run.config.data if data is None else data


def device_of(run: Run) -> str:
    """The name of the device that holds the run's network."""
    return str(next(run.net.parameters()).device)


def images_for(run: Run, data: str, tell: bool = False) -> Images:
    """The images of `data` as the run reads its own, grey or in colour as these are; with `tell`, a line says what was done."""
    config = run.config
    same = config.labels is not None and os.path.realpath(data) == os.path.realpath(config.data)
    given: dict[str, Any] = {"data": data, "labels": config.labels if same else None}
    try:
        images = dataclasses.replace(config, **given).images()
    except ValueError as error:
        if not str(error).startswith("value_range must be left out"):
            raise
        given["value_range"] = None  # pictures of 8 or 16 bits have a range of their own
        images = dataclasses.replace(config, **given).images()
    channels = run.shape[0]
    if images.shape[0] == channels or {images.shape[0], channels} != {1, 3}:
        return images
    if tell:
        say(f"data: {'colour images, made grey' if channels == 1 else 'grey images, in three equal channels'}, as the run's are")
    return in_channels(images, channels)


def held_out(run: Run, data: str, limit: int | None = None, tell: bool = False) -> Images:
    """The images of `data` without those that the run was trained on; with `tell`, a line says which these are."""
    images = images_for(run, data, tell)
    chosen, told = _unseen(run, data, images)
    if tell:
        say(f"data: {told}")
    if not len(chosen):
        raise ValueError(f"data must have images that the run held out, got {data}")
    return chosen if limit is None else chosen.rows(slice(as_positive_int("limit", limit)))


def _unseen(run: Run, data: str, images: Images) -> tuple[Images, str]:
    """The images that the run was not trained on, and what is known of them."""
    if run.record is None:
        if not isinstance(run, Saved) and data == run.config.data:
            chosen = images.split(run.config.held_out)[1]
            return chosen, f"the {len(chosen)} images of {data} that the run held out by its name, as it records no images"
        return images, f"{len(images)} images of {data}; the model does not record on which it was trained"
    held, trained = run.record.parts(images)
    count = int((held >= 0).sum())
    if not count and not trained.any():
        return images, f"{len(images)} images of {data}, none of which the run was trained on"
    rows = np.argsort(np.where(held < 0, len(run.record.held_out), held), kind="stable")  # the run's order gives each its noise
    chosen = images.rows(rows[~trained[rows]])
    new = f" and {len(chosen) - count} others" if len(chosen) > count else ""
    left = f"; {trained.sum()} that it was trained on are left out" if trained.any() else ""
    return chosen, f"{count} images of {data} that the run held out{new}{left}"


def refuse_within_data(run: Run, out: Path) -> None:
    """Raise ValueError if a picture at `out` would be among the images that the run is trained on."""
    root, folder = Path(os.path.realpath(run.config.data)), out.parent.resolve()
    within = root.is_dir() and (folder == root or folder.is_relative_to(root)) and not isinstance(run, Saved)
    parts = [part for part in (folder, *folder.parents) if part.is_relative_to(root)]
    if within and not any((part / "log.jsonl").exists() for part in parts):  # a run there is left out
        remedy = "the run's own folder is left out"
        raise ValueError(f"out must not be in the folder of the run's data, where it would be trained on; {remedy}, got {out}")


def trained_on(run: Run, data: str, limit: int, tell: bool = False) -> Images:
    """At most `limit` of the images of `data`, evenly spaced, none that the run held out; `tell` is as in `images_for`."""
    images = images_for(run, data, tell)
    if run.record is not None:
        images = images.rows(run.record.never_held_out(images))
    elif not isinstance(run, Saved) and data == run.config.data:
        images = images.split(run.config.held_out)[0]
    if not len(images):
        raise ValueError(f"data must have images that the run did not hold out, got {data}")
    count = min(len(images), as_positive_int("limit", limit))
    return images.rows(np.arange(count) * len(images) // count)


def class_numbers(run: Run, text: str) -> tuple[int, ...]:
    """The classes in a text: names or numbers, with commas between; only names if one of the names is a number."""
    names = run.class_names
    words = [text] if text in names else text.split(",")
    numbered = not any(name.isdecimal() for name in names)
    for word in words:
        if word not in names and not (numbered and word.isdecimal()):
            known = f"one or several of {shown(', '.join(names))}" if names else "numbers of classes"
            raise ValueError(f"label must be {known}, with commas between, got {word!r}{nearest(word, names)}")
    return tuple(names.index(word) if word in names else int(word) for word in words)


def check_shape(run: Run, images: Images) -> None:
    """Raise ValueError unless the images have the shape of the run's."""
    if images.shape != run.shape:
        given, expected = ("x".join(map(str, shape)) for shape in (images.shape, run.shape))
        raise ValueError(f"data must have images of {expected} (channels, height, width), got {given}")


def network_digest(run: Run) -> str:
    """SHA-256 of the network's weights."""
    weights = hashlib.sha256()
    for tensor in run.net.state_dict().values():
        weights.update(tensor.cpu().contiguous().numpy().tobytes())
    return weights.hexdigest()


def score(run: Run, images: Images, *, seed: int = 0, batch_size: int = 250, terms: bool = False, progress: bool = False) -> VLB:
    """The bound of the run's model on the images, with the terms of each step only if `terms`; see `vlb`."""
    check_shape(run, images)
    parts = [
        score_batch(run, images, rows, seed=seed, terms=terms, progress=show)
        for rows, show in batches(range(len(images)), batch_size, progress)
    ]
    return parts[0] if len(parts) == 1 else VLB(**{
        field.name: _joined([getattr(part, field.name) for part in parts]) for field in dataclasses.fields(VLB)
    })  # fmt: skip


def score_batch(run: Run, images: Images, rows: range, *, seed: int, terms: bool, progress: bool = False) -> VLB:
    """The bound on the images `rows`; the noise of each is a function of the seed and its number."""
    x0 = backends.get("torch").from_numpy(images.scaled(slice(rows.start, rows.stop)), device=device_of(run))
    decoder: Any = run.config.decoder
    options: dict[str, Any] = {"levels": images.levels, "decoder": decoder, "terms": terms, "progress": progress}
    return vlb(run.diffusion, run.denoiser, x0, seed=seed, index=rows, **options)


def follow(run: Run, index: range, t: Sequence[int], *, seed: int = 0, progress: bool = False) -> list[Step]:
    """Draw samples with the full chain and return their states at the steps `t`, in decreasing order, as NumPy arrays."""
    wanted = frozenset(t)
    steps = run.diffusion.trajectory(
        run.denoiser, (len(index), *run.shape), index=index, seed=seed,
        backend="torch", device=device_of(run), progress=progress,
    )  # fmt: skip
    to_numpy = backends.get("torch").to_numpy
    return [Step(step.t, to_numpy(step.x), None) for step in steps if step.t in wanted]


def read_log(model: str) -> list[dict[str, Any]]:
    """Read the lines of the run's log."""
    file = Path(model, "log.jsonl")
    try:
        return read_lines(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"model must be a run folder with a log.jsonl, got {model}") from None
    except ValueError as error:
        raise ValueError(f"model: {error}") from error


def batches(index: range, size: int, progress: bool) -> Iterator[tuple[range, bool]]:
    """Cut the index at multiples of `size`; with each part comes whether to show progress within it, if it is the only one."""
    size = as_positive_int("batch_size", size)
    first, end = index.start, index.stop
    parts = [range(max(first, k), min(end, k + size)) for k in range(first - first % size, end, size)]
    inside = progress and len(parts) == 1
    for part in progress_bar(parts, len(parts), enabled=progress and not inside, label="batches"):
        yield part, inside


def _joined(values: list[Any]) -> Any:
    """Concatenate arrays; other values are the same for all batches."""
    return np.concatenate(values) if isinstance(values[0], np.ndarray) else values[0]
