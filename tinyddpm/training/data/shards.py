"""Image files in folders and in tar archives, whose members are read in place."""

from __future__ import annotations

import glob
import io
import itertools
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyddpm._io.files import open_regular, read_at, shown, size_of
from tinyddpm.training.data.bounds import MAX_FILE
from tinyddpm.training.data.pictures import SUFFIXES

__all__ = [
    "Folder", "Labels", "Shards", "counted", "expand", "folder_labels", "is_hidden", "is_image", "kind",
]  # fmt: skip

_BLOCK = 512
_MAX_NAME = 2**16  # bytes of a header that holds the next member's name
_MAX_SHARDS = 10**5
_KINDS = 6  # of what is ignored, named
_WITHOUT_CONTENT = (
    tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE
)  # fmt: skip


class Labels(NamedTuple):
    """Each image's class, the number of classes, and their names if they have any."""

    of: NDArray[np.int64]
    classes: int
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Folder:
    """The image files below `root`, by sorted names."""

    root: Path
    names: tuple[str, ...]
    ignored: str = ""
    """What else is there, with counts."""

    @classmethod
    def of(cls, root: Path) -> Folder:
        """Every image file below `root`, except in hidden folders and in runs.

        Links to files are followed, and those to folders within `root`, but not from within such a folder.
        """
        names, ignored = list[str](), Counter[str]()
        for folder, folders, files in os.walk(root, onerror=_refuse, followlinks=True):
            reasons = {name: _why_not(root, Path(folder, name)) for name in folders}
            ignored.update(reason for reason in reasons.values() if reason)
            folders[:] = sorted(name for name in folders if not reasons[name])
            inside = os.path.relpath(folder, root)
            for name in files:
                if is_image(name) and not is_hidden(name):
                    names.append(os.path.normpath(os.path.join(inside, name)))
                else:
                    ignored["hidden file" if is_hidden(name) else kind(name)] += 1
        return cls(root, tuple(sorted(names, key=lambda name: name.split(os.sep))), counted(ignored))

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        return shown(self.root / self.names[i])

    def open(self, i: int) -> BinaryIO:
        return open_regular(self.root / self.names[i])

    def inside(self) -> list[str]:
        """The files' names in `root`, with slashes."""
        return [name.replace(os.sep, "/") for name in self.names]

    def labels(self) -> Labels | None:
        """The number of each file's folder in `root`; None if a file is in `root` itself."""
        return folder_labels([tuple(name.split(os.sep)) for name in self.names])


@dataclass(frozen=True, eq=False)
class Shards:
    """Images in tar archives laid out as WebDataset's: ``KEY.png`` and, beside it, ``KEY.cls`` with its label."""

    shards: tuple[Path, ...]
    names: tuple[str, ...]
    places: NDArray[np.int64]
    """Each image's archive, its first byte there, and its number of bytes, shape (N, 3)."""
    numbers: NDArray[np.int64] | None
    ignored: str = ""
    """What else is there, with counts."""

    @classmethod
    def of(cls, shards: tuple[Path, ...]) -> Shards:
        """The images in the archives; only the headers of their members are read, and the labels."""
        names, places, numbers = list[str](), list[tuple[int, int, int]](), dict[tuple[int, str], int]()
        ignored = Counter[str]()
        for k, shard in enumerate(shards):
            try:
                with open_regular(shard) as stream:
                    for name, start, size in _members(stream):
                        if any(map(is_hidden, name.split("/"))):
                            ignored["hidden file"] += 1
                        elif name.endswith(".cls"):
                            numbers[k, _key(name)] = _number(read_at(stream, start, min(size, 32)), name)
                        elif is_image(name):
                            names.append(name)
                            places.append((k, start, size))
                        else:
                            ignored[kind(name)] += 1
            except (OSError, ValueError, tarfile.HeaderError) as error:
                raise ValueError(f"data: {shown(shard)}: {shown(getattr(error, 'strerror', None) or error)}") from None
        if not names:
            raise ValueError(f"data: {shown(shards[0])}: holds no image ({', '.join(sorted(SUFFIXES))})")
        keys = [(k, _key(name)) for name, (k, _, _) in zip(names, places, strict=True)] if numbers else []
        for key, name in zip(keys, names, strict=False):
            if key not in numbers:
                raise ValueError(f"data: {shown(shards[key[0]])}: {shown(name)} must have a .cls, as others have")
        labels = np.array([numbers[key] for key in keys], np.int64) if numbers else None
        return cls(shards, tuple(names), np.array(places, np.int64), labels, counted(ignored))

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        return shown(f"{self.shards[self.places[i, 0]]}: {self.names[i]}")

    def open(self, i: int) -> BinaryIO:
        shard, start, size = self.places[i].tolist()
        if size > MAX_FILE:
            raise ValueError(f"data: {self.name(i)}: must have at most {MAX_FILE} bytes, got {size}")
        with open_regular(self.shards[shard]) as stream:
            return io.BytesIO(read_at(stream, start, size))

    def inside(self) -> list[str]:
        """The members' names."""
        return list(self.names)

    def labels(self) -> Labels | None:
        """The numbers in the images' ``.cls``; None if there are no ``.cls``."""
        return None if self.numbers is None else Labels(self.numbers, int(self.numbers.max()) + 1, ())


def folder_labels(names: Sequence[tuple[str, ...]]) -> Labels | None:
    """The number of the folder that each name begins with; None if one has no folder."""
    if any(len(name) < 2 for name in names):
        return None
    number = {top: k for k, top in enumerate(sorted({name[0] for name in names}))}
    return Labels(np.array([number[name[0]] for name in names], np.int64), len(number), tuple(number))


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is no data: hidden ones, and those that macOS and network stores add."""
    return (name.startswith(".") and name not in (".", "..")) or name in ("__MACOSX", "@eaDir")


def counted(ignored: Counter[str]) -> str:
    """Such as "3 .heic, 2 hidden folders", the most frequent first."""
    most = sorted(ignored.items(), key=lambda item: (-item[1], item[0]))[:_KINDS]
    rest = ignored.total() - sum(count for _, count in most)
    shown = [f"{count} {what}{'s' if count > 1 and ' ' in what else ''}" for what, count in most]
    return ", ".join([*shown, *([f"{rest} others"] if rest else [])])


def kind(name: str) -> str:
    """What files such as this one are called in counts."""
    return shown(os.path.splitext(name)[1].lower()) or "file without a suffix"


def _why_not(root: Path, folder: Path) -> str:
    """Why a folder below `root` is left out; empty if it is not."""
    if is_hidden(folder.name):
        return "hidden folder"
    if (folder / "log.jsonl").exists() or (folder / "checkpoints").is_dir():
        return "run folder"
    if (folder / "samples.json").exists():
        return "folder of samples"
    if not folder.is_symlink():
        return ""
    target, top = folder.resolve(), root.resolve()
    linked = any(parent.is_symlink() for parent in folder.parents if parent != root and parent.is_relative_to(root))
    within = target.is_relative_to(top) and not folder.parent.resolve().is_relative_to(target)
    return "" if within and not linked else "linked folder"


def expand(pattern: str) -> tuple[Path, ...]:
    """The archives that a pattern names: ``{000..099}`` and ``{a,b}`` as in a shell, then ``*``, ``?`` and ``[...]``."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [_choices(part) if k % 2 else [part] for k, part in enumerate(parts)]
    if np.prod([len(choice) for choice in choices], dtype=object) > _MAX_SHARDS:
        raise ValueError(f"data: {pattern}: must name at most {_MAX_SHARDS} files")
    names = ["".join(choice) for choice in itertools.product(*choices)]
    found = [name for one in names for name in (sorted(glob.glob(one)) if glob.has_magic(one) else [one])]
    return tuple(Path(name) for name in found)


def _members(stream: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Each file's name, first byte and number of bytes. In older Pythons a hostile header makes tarfile's own loop endless."""
    total, place, longer = size_of(stream), 0, ""
    while place + _BLOCK <= total and (block := read_at(stream, place, _BLOCK)).strip(b"\0"):
        member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        start, size = place + _BLOCK, 0 if member.type in _WITHOUT_CONTENT else member.size
        if not 0 <= size <= total - start:
            raise ValueError(f"{member.name}: is cut short: its {size} bytes from byte {start} on exceed the archive's {total}")
        place = start + -(-size // _BLOCK) * _BLOCK
        if member.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
            if member.size > _MAX_NAME:
                raise ValueError(f"{member.name}: must have a name of at most {_MAX_NAME} bytes, got {member.size}")
            text = read_at(stream, start, member.size)
            longer = _long_name(text, member.type == tarfile.XHDTYPE) or longer
        elif member.type == tarfile.GNUTYPE_SPARSE:
            raise ValueError(f"{member.name}: must not be sparse")
        else:
            if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
                yield longer or member.name, start, member.size
            longer = ""
    if not place:
        raise ValueError("must be a tar archive")


def _long_name(text: bytes, pax: bool) -> str:
    """The next member's name in a header of GNU's kind, or in the path record of a pax header."""
    if pax:
        if re.search(rb"^\d+ (GNU\.sparse|size=)", text, re.MULTILINE):
            raise ValueError("a member's size must be in its own header, got one in a pax record")
        found = re.search(rb"^\d+ path=(.*)$", text, re.MULTILINE)
        text = found[1] if found else b""
    return text.rstrip(b"\0").decode("utf-8", "surrogateescape")


def is_image(name: str) -> bool:
    """Whether the suffix is an image's."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _key(name: str) -> str:
    """The sample that a member belongs to: its name up to the first dot after the last slash."""
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}"


def _number(text: bytes, name: str) -> int:
    if not re.fullmatch(rb"\s*\d{1,9}\s*", text):
        raise ValueError(f"{name} must be a class number, got {text!r}")
    return int(text)


def _choices(inside: str) -> list[str]:
    if found := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = int(found[1]), int(found[2])
        if last - first >= _MAX_SHARDS:
            raise ValueError(f"data: {{{inside}}}: must name at most {_MAX_SHARDS} files")
        return [str(k).zfill(len(found[1])) for k in range(first, last + 1)]
    return inside.split(",")


def _refuse(error: OSError) -> None:
    raise ValueError(f"data: {shown(error.filename)}: {error.strerror}")
