"""The one door to files: a read is of a regular file and bounded, a write is there whole or not at all, an error names the file.

Where a system lacks locks, flags or syncing, it goes without.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar, cast

_FLAGS = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NONBLOCK", "O_BINARY"))  # no pipe blocks, bytes stay as they are
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_JSON_LIMIT = 2**24  # bytes
_DEEPEST, _LARGEST = 20, 2**128
_E = TypeVar("_E", bound=Exception)


def shown(name: object) -> str:
    """A foreign name or text as it may be printed: what a terminal would obey, or can't show, is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))


def open_regular(file: str | os.PathLike[str], *, links: bool = True) -> io.BufferedReader:
    """Open a regular file for reading; `FileNotFoundError`, or `ValueError` for whatever else is there."""
    try:
        return io.BufferedReader(_open(file, os.O_RDONLY, links))
    except FileNotFoundError:
        raise _fault(FileNotFoundError, file, "no such file") from None
    except OSError as error:
        raise _fault(ValueError, file, str(error.strerror)) from None


def open_in_place(file: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading and writing and keep its content; make a missing one; refuse links."""
    return io.BufferedRandom(_open(file, os.O_RDWR | os.O_CREAT, links=False))


def create(file: str | os.PathLike[str]) -> BinaryIO:
    """Open a new file for reading and writing."""
    return io.BufferedRandom(_open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, links=False))


def size_of(stream: IO[bytes]) -> int:
    """The bytes of an open file."""
    return os.fstat(stream.fileno()).st_size


def read_at(stream: BinaryIO, start: int, size: int) -> bytes:
    """At most so many bytes of an open file from byte `start` on."""
    stream.seek(start)
    return stream.read(min(size, max(0, size_of(stream) - start)))


def read_bytes(file: str | os.PathLike[str], limit: int, *, links: bool = True) -> bytes:
    """The bytes of a regular file of at most `limit` bytes."""
    with open_regular(file, links=links) as stream:
        size = size_of(stream)
        content = b"" if size > limit else stream.read(size or limit + 1)  # files of the system itself have no size
    if max(size, len(content)) > limit:
        raise _fault(ValueError, file, f"must have at most {limit} bytes, got {size or 'more'}")
    if len(content) < size:
        raise _fault(ValueError, file, "changed while it was read")
    return content


def read_json(file: str | os.PathLike[str], *, links: bool = False, limit: int = _JSON_LIMIT) -> dict[str, Any]:
    """The JSON object in a file; errors as in `open_regular`."""
    return parse(f"{shown(file)}: it", read_bytes(file, limit, links=links))


def parse(what: str, text: bytes, form: str = "JSON") -> dict[str, Any]:
    """The object in a text of JSON or TOML, which messages call `what`; how deep it is and its integers are bounded."""
    try:
        value = _loads(text.decode(), form)
    except (ValueError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        raise ValueError(f"{what} is not {form}: {'it is nested too deeply' if deep else shown(error)}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a {form} object")
    for key, level in ((key, [each]) for key, each in value.items()):
        for _ in range(_DEEPEST):
            if any(isinstance(v, int) and abs(v) > _LARGEST for v in level):
                raise ValueError(f"{what} has too large an integer under the key {shown(key)!r}")
            inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
            level = [v for values in inner for v in values]
        if level:
            raise ValueError(f"{what} is nested too deeply under the key {shown(key)!r}")
    return value


@contextmanager
def replacing(file: str | os.PathLike[str], *, sweeps: bool = True) -> Iterator[BinaryIO]:
    """Yield a stream whose content becomes `file` in one step when the block ends; if the block fails, nothing is written.

    A missing folder is made. If it `sweeps`, what killed writers of this file left is removed.
    """
    file = Path(file)
    with naming(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        if sweeps:
            sweep(file.parent, re.escape(file.name))
        fresh, stream = _temporary(file)
        try:
            with stream:
                yield stream
                sync(stream)
                if os.name == "nt":
                    stream.close()  # an open file has a fixed name there
                os.replace(fresh, file)
        finally:
            fresh.unlink(missing_ok=True)


def write(file: str | os.PathLike[str], content: bytes) -> None:
    """Make `content` that of the file, as `replacing` does."""
    with replacing(file) as stream:
        stream.write(content)


def sync(stream: BinaryIO) -> None:
    """Flush a file to the disk, where its file system can."""
    stream.flush()
    sync_handle(stream.fileno(), stream.name)


def sync_handle(handle: int, name: str | os.PathLike[str]) -> None:
    """Flush what is open under the handle."""
    try:
        with naming(name):
            os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def lock(stream: BinaryIO | int, *, wait: bool = False) -> bool | None:
    """Lock an open file until it is closed; False if another process has it, None where there are no such locks."""
    try:
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except (ModuleNotFoundError, OSError):
        return None
    return True


def sweep(folder: Path, name: str = ".+") -> None:
    """Remove the temporary files in a folder that killed writers left of files whose names match."""
    ours = re.compile(rf"\.{name}\.[0-9a-f]{{8}}\.new", re.DOTALL)
    with os.scandir(folder) as entries:
        stale = [entry.path for entry in entries if ours.fullmatch(entry.name)]
    for file in stale:
        with suppress(OSError, ValueError), open_regular(file, links=False) as stream:
            if lock(stream):
                os.unlink(file)


def _temporary(file: Path) -> tuple[Path, BinaryIO]:
    """A new locked file beside `file`."""
    while True:
        fresh = file.with_name(f".{file.name}.{secrets.token_hex(4)}.new")  # process numbers repeat across machines
        stream = create(fresh)
        if lock(stream) is not False and os.fstat(stream.fileno()).st_nlink:  # no other process took it for a killed one's
            return fresh, stream
        stream.close()


class _File(io.FileIO):
    """A file whose errors name it."""

    def readinto(self, buffer: Any, /) -> int | None:
        with naming(self.name):
            return super().readinto(buffer)

    def readall(self) -> bytes:
        with naming(self.name):
            return super().readall() or b""

    def write(self, content: Any, /) -> int:
        with naming(self.name):
            return super().write(content) or 0


def _open(file: str | os.PathLike[str], flags: int, links: bool) -> _File:
    """Open a regular file with these flags; `ValueError` if another kind of file is there."""
    if not links and os.path.islink(file):
        raise _fault(ValueError, file, "is a link")
    flags |= _FLAGS | (0 if links else _NO_LINKS)  # a link that appears meanwhile is not followed
    mode = "rb" if flags & os.O_RDWR == 0 else "r+b"
    with suppress(IsADirectoryError):
        stream = _File(file, mode, opener=lambda name, _: os.open(name, flags, 0o666))
        if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            return stream
        stream.close()
    raise _fault(ValueError, file, "is not a regular file")


@contextmanager
def naming(file: str | os.PathLike[str]) -> Iterator[None]:
    """Let the system's errors in the block name the file."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(file)) from error


def _fault(kind: type[_E], file: str | os.PathLike[str], reason: str) -> _E:
    """An error about a file; its `strerror` is the reason alone."""
    error = kind(f"{shown(file)}: {reason}")
    cast(Any, error).strerror = reason
    return error


def _loads(text: str, form: str) -> Any:
    if form == "TOML":
        import tomllib

        return tomllib.loads(text)
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict, if no key occurs twice."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result
