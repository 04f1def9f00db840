"""Writing files so that each is there whole or not at all, and locking them."""

from __future__ import annotations

import errno
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


def open_in_place(file: Path) -> BinaryIO:
    """Open a regular file for reading and writing and keep its content; make a missing one; refuse links and devices."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"{file} must be a regular file, got a link") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{file} must be a regular file")
    return open(descriptor, "r+b")


@contextmanager
def locked(file: Path, *, announce: bool) -> Iterator[BinaryIO]:
    """Open `file` in place and lock it; while another process holds the lock, wait, and say so if `announce`.

    The process that holds the lock may remove the file; the one that waited for it then opens a new one.
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
            if _is_at(stream, file):
                yield stream
                return


def _is_at(stream: BinaryIO, file: Path) -> bool:
    """Return whether the open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.lstat(file))
    except FileNotFoundError:
        return False
