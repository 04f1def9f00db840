"""Image files in a zip archive, as in the folder that was packed."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tinyddpm._io.files import open_regular, read_at, shown
from tinyddpm.training.data.bounds import MAX_FILE
from tinyddpm.training.data.shards import Labels, counted, folder_labels, is_hidden, is_image, kind

__all__ = ["Zip"]

_DAMAGE = (OSError, ValueError, EOFError, OverflowError, NotImplementedError, RuntimeError, zipfile.BadZipFile, struct.error)


@dataclass(frozen=True, eq=False)
class Zip:
    """The images in a zip archive, by sorted names, without the folder that holds them all."""

    file: Path
    parts: tuple[tuple[str, ...], ...]
    """Each image's name, from folder to folder."""
    places: tuple[tuple[int, int, int, int], ...]
    """The first byte of each image's entry, its packed and its own number of bytes, and how it is packed."""
    ignored: str

    @classmethod
    def of(cls, file: Path) -> Zip:
        """The images in the archive; only its directory is read."""
        try:
            with open_regular(file) as stream, zipfile.ZipFile(stream) as packed:
                entries = [e for e in packed.infolist() if not e.is_dir()]
        except _DAMAGE as error:
            raise ValueError(f"data: {shown(file)}: {shown(getattr(error, 'strerror', None) or error)}") from None
        found, ignored = dict[tuple[str, ...], tuple[int, int, int, int]](), Counter[str]()
        for entry in entries:
            parts = tuple(part for part in entry.filename.split("/") if part not in ("", "."))
            hidden = any(map(is_hidden, parts))
            if hidden or not is_image(entry.filename) or entry.flag_bits & 1:
                ignored["hidden file" if hidden else "encrypted file" if entry.flag_bits & 1 else kind(entry.filename)] += 1
            else:
                found[parts] = (entry.header_offset, entry.compress_size, entry.file_size, entry.compress_type)
        if not found:
            raise ValueError(f"data: {shown(file)}: holds no image")
        names = sorted(found)
        while len({name[0] for name in names}) == 1 and all(len(name) > 1 for name in names):
            names, found = [name[1:] for name in names], {name[1:]: place for name, place in found.items()}
        return cls(file, tuple(names), tuple(found[name] for name in names), counted(ignored))

    def __len__(self) -> int:
        return len(self.parts)

    def name(self, i: int) -> str:
        return f"{shown(self.file)}: {shown('/'.join(self.parts[i]))}"

    def open(self, i: int) -> BinaryIO:
        start, packed, size, how = self.places[i]
        if max(packed, size) > MAX_FILE or how not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"data: {self.name(i)}: must be stored or deflated and have at most {MAX_FILE} bytes")
        with open_regular(self.file) as stream:
            head = read_at(stream, start, 30)
            start += 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
            content = read_at(stream, start, packed)
        try:
            return io.BytesIO(content if how == zipfile.ZIP_STORED else zlib.decompressobj(-15).decompress(content, size))
        except zlib.error as error:
            raise ValueError(f"data: {self.name(i)}: {error}") from None

    def inside(self) -> list[str]:
        """The images' names, with slashes."""
        return ["/".join(name) for name in self.parts]

    def labels(self) -> Labels | None:
        """The number of each image's folder; None if an image is in none."""
        return folder_labels(self.parts)
