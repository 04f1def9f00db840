"""What the command line does with a trained network: draw samples into files, and score images."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinyddpm import _array
from tinyddpm._files import replacing
from tinyddpm._progress import progress as shown

if TYPE_CHECKING:
    from tinyddpm.likelihood import VLB
    from tinyddpm.training import Images, Run

__all__ = ["Drawing", "draw", "load_model", "score"]

MANIFEST = "samples.json"
_PICTURES = "a PNG file holds 1 or 3 channels"


def load_model(model: str, device: str | None) -> Run:
    """The run in the folder `model`, on `device`: by default the first CUDA device, else the CPU."""
    from tinyddpm import backends
    from tinyddpm.training import load_run

    torch = backends.get("torch")
    if device is None:
        device = "cuda" if len(torch.devices()) > 1 else "cpu"
    torch.from_numpy(np.empty(0, np.float32), device=device)  # a wrong device is told by name
    return load_run(model, device)


@dataclass(frozen=True)
class Drawing:
    """Which samples of a run to draw, and how. A sample is a function of the run, its own number and `options` only."""

    run: Run
    index: range
    batch_size: int
    options: dict[str, Any]
    """Of `Diffusion.sample`: sampler, steps, eta, seed."""

    def __post_init__(self) -> None:
        _array.as_int("batch_size", self.batch_size, 1, 2**31)
        self.states(range(0))  # every option is checked before anything is drawn or written

    def states(self, index: range, **more: Any) -> Iterator[Any]:
        """The trajectory of the samples `index`."""
        device = next(self.run.net.parameters()).device
        return self.run.diffusion.trajectory(
            self.run.denoiser,
            (len(index), *self.run.shape),
            index=index,
            backend="torch",
            device=str(device),
            **self.options,
            **more,
        )

    def pixels(self, index: range, progress: bool = False) -> NDArray[np.uint8]:
        """The samples `index` as uint8 (n, C, H, W)."""
        from tinyddpm.training import to_uint8

        *_, last = self.states(index, progress=progress)
        return to_uint8(last.x.cpu().numpy())

    def blocks(self) -> list[range]:
        """The index in blocks that end at multiples of the batch size, so that a block is always the same computation."""
        first, end, size = self.index.start, self.index.stop, self.batch_size
        return [range(max(first, k), min(end, k + size)) for k in range(first - first % size, end, size)]


def draw(drawing: Drawing, out: Path, *, columns: int = 8, scale: int = 1, progress: bool = False) -> None:
    """Draw samples into `out`: a grid (``.png``), one array ``images`` (``.npz``), or a folder of PNG files named by number.

    A file is there whole or not at all. In a folder, files that are there are kept; of a block that lacks one, all samples are
    drawn again, so a run that was stopped ends with the same files. Under torchrun each process takes its share of a folder.
    """
    write = _writer(out, drawing, columns, scale)
    if write is None:
        _draw_folder(drawing, out, progress)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    write(np.concatenate([drawing.pixels(block, show) for block, show in _counted(drawing.blocks(), progress)]))


def score(
    run: Run, images: Images, *, seed: int = 0, batch_size: int = 250, levels: int | None = None, progress: bool = False
) -> VLB:
    """The bound of the run's model on `images`, batch by batch; the result does not depend on the batch size."""
    from tinyddpm import backends
    from tinyddpm.likelihood import VLB, vlb

    if images.shape != run.shape:
        theirs, own = ("x".join(map(str, shape)) for shape in (images.shape, run.shape))
        raise ValueError(f"data: its images are {theirs}, but the model's are {own} (channels, height, width)")
    torch = backends.get("torch")
    device = next(run.net.parameters()).device
    parts: list[VLB] = []
    starts = range(0, len(images), _array.as_int("batch_size", batch_size, 1, 2**31))
    for start, show in _counted([range(k, min(k + batch_size, len(images))) for k in starts], progress):
        x0 = torch.from_numpy(images.scaled(slice(start.start, start.stop)), device=str(device))
        part = vlb(
            run.diffusion, run.denoiser, x0, seed=seed, index=start, levels=levels or images.levels, progress=show
        )
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    return VLB(**{f.name: _joined([getattr(part, f.name) for part in parts]) for f in dataclasses.fields(VLB)})


def _joined(values: list[Any]) -> Any:
    """Arrays of the batches in a row; what is not an array is the same for all."""
    return np.concatenate(values) if isinstance(values[0], np.ndarray) else values[0]


def _counted(blocks: list[range], progress: bool) -> Iterator[tuple[range, bool]]:
    """Each block, and whether to show the progress within it: where there is only one."""
    alone = len(blocks) == 1
    for block in shown(blocks, len(blocks), enabled=progress and not alone, label="batches"):
        yield block, progress and alone


def _writer(out: Path, drawing: Drawing, columns: int, scale: int) -> Callable[[NDArray[np.uint8]], None] | None:
    """What writes all samples at once to the file `out`; None where it is a folder."""
    from tinyddpm.training import image_grid, save_png

    if out.suffix.lower() == ".npz" and not out.is_dir():
        return lambda pixels: _save_array(out, pixels)
    if drawing.run.shape[0] not in (1, 3):
        raise ValueError(f"out: {_PICTURES}, but the model draws {drawing.run.shape[0]}; a .npz file holds any")
    if out.suffix.lower() == ".png" and not out.is_dir():
        image_grid(np.zeros((1, 1, 1, 1), np.uint8), columns, scale)  # a wrong argument is told before the work
        return lambda pixels: save_png(image_grid(pixels, columns, scale), out)
    if out.suffix and not out.is_dir():
        raise ValueError(f"out: {out} ends neither in .png nor in .npz, and is no folder")
    return None


def _save_array(out: Path, pixels: NDArray[np.uint8]) -> None:
    with replacing(out) as stream:
        np.savez_compressed(stream, images=pixels)


def _draw_folder(drawing: Drawing, out: Path, progress: bool) -> None:
    from tinyddpm.training import save_png

    out.mkdir(parents=True, exist_ok=True)
    _claim(out, drawing)
    blocks = drawing.blocks()[int(os.environ.get("RANK", 0)) :: int(os.environ.get("WORLD_SIZE", 1))]
    missing = {block: [k for k in block if not _file(out, k).exists()] for block in blocks}
    for block, show in _counted([block for block in blocks if missing[block]], progress):
        pixels = drawing.pixels(block, show)
        for k in missing[block]:
            save_png(pixels[k - block.start].transpose(1, 2, 0), _file(out, k))


def _file(out: Path, k: int) -> Path:
    return out / f"{k:06d}.png"


def _claim(out: Path, drawing: Drawing) -> None:
    """Note in the folder what its samples are; refuse one that holds others."""
    weights = hashlib.sha256()
    for tensor in drawing.run.net.state_dict().values():
        weights.update(tensor.cpu().contiguous().numpy().tobytes())
    own = {**drawing.options, "step": drawing.run.step, "weights": weights.hexdigest()}
    file = out / MANIFEST
    if not file.exists():
        with replacing(file) as stream:
            stream.write(json.dumps(own, indent=1).encode() + b"\n")
        return
    try:
        theirs = json.loads(file.read_bytes())
        differing = next((key for key in own if theirs[key] != own[key]), None)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"out: {file} is damaged; remove it, or choose another folder") from None
    if differing is not None:
        raise ValueError(
            f"{differing}: {own[differing]} is not the {theirs[differing]} of the samples in {out}; choose another folder"
        )
