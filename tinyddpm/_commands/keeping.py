"""Keeping the bound of each image in a folder, so that a command that was stopped goes on, and several processes share it.

A batch is a file that is written whole or not at all, and a note says what the files belong to. The noise of an image is a
function of the seed and its number, so any process can score any batch, and the batches are the same for any number of processes.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from tinyddpm._arrays.namespace import Table
from tinyddpm._commands.runs import batches, check_shape, network_digest, score_batch
from tinyddpm._commands.saving import claim
from tinyddpm._io.files import read_bytes, replacing, sweep
from tinyddpm._io.progress import progress_bar
from tinyddpm.likelihood import VLB
from tinyddpm.training import Images, Run
from tinyddpm.training.data.record import digests

NOTE = "scores.json"
_REMEDY = "choose another folder, or remove the old one"
_CHECKSUM = 4  # bytes


@dataclass(frozen=True)
class Kept:
    """The bound of a run on images, each batch of which is a file of the folder."""

    folder: Path
    run: Run
    images: Images
    seed: int
    batch_size: int
    terms: bool

    def claim(self) -> None:
        """Take the folder, or raise ValueError if it holds anything but this bound's batches."""
        check_shape(self.run, self.images)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"keep must be a folder, got {self.folder}")
        foreign = self.folder.exists() and any(path.name[0] != "." for path in self.folder.iterdir())
        note = self.folder / NOTE  # looked for after the files, which are written after it
        if foreign and not note.exists():
            raise ValueError(f"keep must be a new folder or one of this command, got {self.folder}, which holds other files")
        about = self.about
        try:
            claim(note, about, _REMEDY)
            sweep(self.folder)
        except OSError as error:
            raise OSError(f"keep {self.folder} can't be written: {error.strerror or error}") from error

    @cached_property
    def about(self) -> dict[str, Any]:
        """What determines each term to the last bit, on one kind of device."""
        data = hashlib.sha256(digests(self.images).tobytes()).hexdigest()
        return {
            "images": len(self.images), "data": data, "levels": self.images.levels, "decoder": self.run.config.decoder,
            "weights": network_digest(self.run), "calls": self.run.diffusion.T, "chain": _chain_digest(self.run),
            "seed": self.seed, "batch_size": self.batch_size, "curve": self.terms,
        }  # fmt: skip

    @cached_property
    def parts(self) -> list[range]:
        """The numbers of each batch's images."""
        return [rows for rows, _ in batches(range(len(self.images)), self.batch_size, False)]

    def missing(self, parts: Sequence[range]) -> list[range]:
        """Those of the batches that have no file yet."""
        return [rows for rows in parts if self._read(rows) is None]

    def score(self, rank: int, processes: int, progress: bool) -> None:
        """Score every `processes`-th batch from batch `rank` on; the first process then whatever the others have not done.

        So none waits for another, and one that was killed is replaced.
        """
        own = self.parts[rank::processes]
        others = [] if rank else [rows for k, rows in enumerate(self.parts) if k % processes][::-1]  # they come from the front
        inside = progress and len(self.parts) == 1
        for share, label in ((own, "batches"), (others, "batches of other processes")):
            if missing := self.missing(share):
                options: dict[str, Any] = {"enabled": progress and not inside, "start": len(share) - len(missing)}
                for rows in progress_bar(missing, len(share), label=label, **options):
                    self._score(rows, inside)

    def bound(self) -> VLB:
        """The terms of all images."""
        tables = [self._read(rows) for rows in self.parts]
        whole = [table for table in tables if table is not None]
        if len(whole) < len(tables):
            raise ValueError(f"keep: files of {self.folder} were removed meanwhile; run the command again")
        T = self.run.diffusion.T
        ends = np.cumsum([1, 1, T - 1, T] if self.terms else [1, 1, 1])
        prior, decoder, kl, *errors = map(np.ascontiguousarray, np.split(np.concatenate(whole), ends, axis=1))
        x0_mse, eps_mse = errors if self.terms else errors * 2
        return VLB(prior[:, 0], kl, decoder[:, 0], x0_mse, eps_mse, int(np.prod(self.run.shape)), self.images.levels)

    def _score(self, rows: range, progress: bool) -> None:
        """Score a batch and write its file, unless another process has meanwhile."""
        if self._read(rows) is not None:
            return
        part = score_batch(self.run, self.images, rows, seed=self.seed, terms=self.terms, progress=progress)
        kl = part.kl if self.terms else part.kl.sum(axis=1)
        table = np.column_stack([part.prior, part.decoder, kl, part.x0_mse, part.eps_mse])
        content = self._header(rows) + table.astype("<f8").tobytes()
        with replacing(self._file(rows), sweeps=False) as stream:
            stream.write(content + zlib.crc32(content).to_bytes(_CHECKSUM, "little"))

    def _read(self, rows: range) -> Table | None:
        """The terms of a batch, a row for each image; None if there is no file."""
        file, header = self._file(rows), self._header(rows)
        size = len(header) + 8 * len(rows) * self._columns
        try:
            stored = read_bytes(file, size + _CHECKSUM, links=False)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"keep: {error}") from None
        content, checksum = stored[:size], zlib.crc32(stored[:size]).to_bytes(_CHECKSUM, "little")
        if not stored.startswith(header) or stored[size:] != checksum:
            raise ValueError(f"keep: {file} is damaged; remove it and run the command again")
        return np.frombuffer(content, "<f8", offset=len(header)).reshape(len(rows), self._columns)

    @property
    def _columns(self) -> int:
        """L_T, L_0 and the sum of the KLs; or L_T, L_0, the KL of t = 2..T, and the errors of x_0 and eps at t = 1..T."""
        return 1 + 3 * self.run.diffusion.T if self.terms else 3

    def _file(self, rows: range) -> Path:
        return self.folder / f"{rows.start:06d}.npy"

    def _header(self, rows: range) -> bytes:
        """That of the array in a batch's file, which its checksum follows."""
        header = BytesIO()
        about = {"descr": "<f8", "fortran_order": False, "shape": (len(rows), self._columns)}
        np.lib.format.write_array_header_1_0(header, about)
        return header.getvalue()


def _chain_digest(run: Run) -> str:
    """SHA-256 of the network's settings, of how it is read, and of the chain."""
    d, denoiser = run.diffusion, run.denoiser
    named = denoiser.variance if isinstance(denoiser.variance, str) else "table"
    settings = [run.net.config, denoiser.predicts, named, denoiser.clip_x0, denoiser.first_t]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for table in (d.alpha_bar, d.one_minus_alpha_bar, *([] if isinstance(denoiser.variance, str) else [denoiser.variance])):
        digest.update(np.ascontiguousarray(table, "<f8").tobytes())
    return digest.hexdigest()
