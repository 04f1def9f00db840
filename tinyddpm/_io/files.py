"""Reading files of bounded size, writing them so that each is there whole or not at all, and locking them."""

from __future__ import annotations

import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(file: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a stream whose content becomes `file` in one step when the block ends; if the block fails, nothing is written.

    A missing folder is made.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.{secrets.token_hex(4)}.new")  # process numbers repeat across machines
    try:
        with open(fresh, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(fresh, file)
    finally:
        fresh.unlink(missing_ok=True)


def read_bounded(file: str | os.PathLike[str], limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes; its links are followed."""
    with open(file, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise ValueError(f"{file} must be a regular file")
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{file} must have at most {limit} bytes")
    return content


def open_in_place(file: Path) -> BinaryIO:
    """Open a regular file for reading and writing and keep its content; make a missing one; refuse links and devices."""
    if file.is_symlink() or (file.exists() and not file.is_file()):
        raise ValueError(f"{file} must be a regular file")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK  # a link that appears meanwhile is not followed
    return open(file, "r+b", opener=lambda name, _: os.open(name, flags, 0o666))


@contextmanager
def locked(file: Path, *, announce: bool) -> Iterator[BinaryIO]:
    """Open `file` in place and lock it; while another process holds the lock, wait, and say so if `announce`.

    A process that holds the lock may remove the file; the one that waited for it then opens a new one.
    """
    import fcntl

    while True:
        with open_in_place(file) as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if announce:
                    sys.stderr.write(f"waiting for the process that writes {file}\n")
                fcntl.flock(stream, fcntl.LOCK_EX)
            if os.fstat(stream.fileno()).st_nlink:  # not removed meanwhile
                yield stream
                return
