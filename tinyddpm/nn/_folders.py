"""Folders that are replaced as a whole: at every moment the old one or the new one is there, complete."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from tinyddpm._io.files import lock, naming, shown, sync_handle

_R = TypeVar("_R")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux
_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES)  # what renaming to a folder that is there ends with; Windows: EACCES
_ATTEMPTS = 1000


@contextmanager
def new_folder(folder: Path, replaces: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Give the block a temporary folder that becomes `folder` at its end, or is deleted if the block raises.

    Several threads and processes may write one folder at once: the last one's content stays. What killed ones left is removed.

    Parameters
    ----------
    folder : Path
        The folder to create.
    replaces : frozenset of str
        The files that an existing `folder` may hold. Then it is replaced.

    Yields
    ------
    Path
        The temporary folder.

    Raises
    ------
    ValueError
        If `folder` is not a folder or holds other files.
    """
    folder = Path(os.path.abspath(folder))
    _check_replaceable(folder, replaces)
    with naming(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh, handle = _locked_folder(folder)
        try:
            yield fresh
            sync_folder(fresh)
            _check_replaceable(folder, replaces)
            _put(fresh, folder)
            sync_folder(folder.parent)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)  # what was replaced, or what was not finished
            if handle is not None:
                os.close(handle)
        for entry in list(folder.parent.iterdir()):
            if entry.name.startswith((f".{folder.name}.new-", f".{folder.name}.old-")):
                _remove_unless_locked(entry)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that they survive a power cut, where the file system can."""
    if (handle := _opened(folder)) is None:
        return
    try:
        sync_handle(handle, folder)
    finally:
        os.close(handle)


def reading_whole(folder: Path, read: Callable[[], _R]) -> _R:
    """Return ``read()``, which reads files of `folder`; read again if the folder was replaced meanwhile."""
    for _ in range(_ATTEMPTS):
        before = _identity(folder)
        try:
            result = read()
        except (OSError, ValueError):
            if _identity(folder) == before:
                raise
        else:
            if _identity(folder) == before:
                return result
    return read()


def _identity(folder: Path) -> tuple[int, int, int] | None:
    """What changes if another folder takes this one's place."""
    with suppress(OSError):
        status = os.stat(folder)
        return status.st_dev, status.st_ino, status.st_ctime_ns
    return None


def _check_replaceable(folder: Path, replaces: frozenset[str]) -> None:
    """Raise ValueError unless a folder is absent or holds known files only."""
    if os.path.lexists(folder):
        if folder.is_symlink() or not folder.is_dir():
            raise ValueError(f"{shown(folder)}: exists and is not a folder")
        files = (Path(place, name).relative_to(folder).as_posix() for place, _, names in os.walk(folder) for name in names)
        if other := set(files) - replaces:
            raise ValueError(f"{shown(folder)}: holds other files, such as {shown(min(other))}; choose another folder")


def _put(fresh: Path, folder: Path) -> None:
    """Make `fresh` the folder; what was there before is at `fresh` then, if anything was."""
    for _ in range(_ATTEMPTS):
        try:
            return os.rename(fresh, folder)
        except OSError as error:
            if error.errno not in _OCCUPIED:
                raise
        try:
            return _exchange(fresh, folder)
        except OSError as error:  # another writer moved the folder away meanwhile, or put its own there
            if error.errno not in (errno.ENOENT, *_OCCUPIED):
                raise
    raise OSError(errno.EBUSY, "is being replaced all the time", os.fspath(folder))


def _exchange(fresh: Path, folder: Path) -> None:
    """Swap two folders, at once where the system can."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is not None:
        if rename(_AT_FDCWD, os.fsencode(fresh), _AT_FDCWD, os.fsencode(folder), _RENAME_EXCHANGE) == 0:
            return
        if (code := ctypes.get_errno()) not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
            raise OSError(code, os.strerror(code), os.fspath(folder))
    aside = fresh.with_name(f"{fresh.name}-old")
    os.rename(folder, aside)
    try:
        os.rename(fresh, folder)
    except BaseException:
        with suppress(OSError):  # fails if another writer's folder is there, which is newer
            os.rename(aside, folder)
        raise
    finally:
        if folder.is_dir():
            shutil.rmtree(aside, ignore_errors=True)


def _locked_folder(folder: Path) -> tuple[Path, int | None]:
    """A new temporary folder beside `folder`, and the handle that keeps others from taking it for a killed run's."""
    while True:
        fresh = folder.with_name(f".{folder.name}.new-{secrets.token_hex(6)}")  # process numbers repeat across machines
        fresh.mkdir()
        try:
            handle = _opened(fresh)
        except OSError:
            if not fresh.exists():  # removed by another writer before it was locked
                continue
            fresh.rmdir()
            raise
        if handle is None or (lock(handle) is not False and fresh.is_dir()):
            return fresh, handle
        os.close(handle)


def _opened(folder: Path) -> int | None:
    """A handle of the folder; None on systems that open none."""
    return None if os.name == "nt" else os.open(folder, os.O_RDONLY)


def _remove_unless_locked(folder: Path) -> None:
    """Remove the temporary folder of a writer that is no longer there."""
    with suppress(OSError):
        if (handle := _opened(folder)) is not None:
            if lock(handle):
                shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)
