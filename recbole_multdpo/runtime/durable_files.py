"""Files and folders that are there as a whole or not at all, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: no folder is known to be a dead process's
    fcntl = None  # type: ignore[assignment]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by new text in one step: a reader, or a crash, sees the old or the new one.

    Raises:
        OSError: the folder is read-only or the disk full; the old file is then untouched.
    """
    number, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only the owner reads
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Gives a temporary sibling to fill, and renames it to `folder` if nothing was raised.

    Its files and names are flushed to the disk. An existing folder is moved aside, replaced and
    deleted; a kill between the two renames leaves it aside, from where `restore_interrupted` brings
    it back. A kill before them leaves `folder` untouched.

    Raises:
        OSError: the disk is full or the folder cannot be written; what was there before stays.
    """
    with temporary_sibling(folder) as temporary:
        replaced = temporary.with_suffix(".old")
        try:
            yield temporary
            for path in [*temporary.rglob("*"), temporary]:
                _sync(path)
            if folder.is_dir():
                folder.rename(replaced)
            temporary.rename(folder)
            _sync(folder.parent)
        except BaseException:
            if replaced.is_dir() and not folder.exists():
                replaced.rename(folder)
            raise
        finally:
            shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def temporary_sibling(folder: Path) -> Iterator[Path]:
    """Gives a new hidden folder beside `folder`, and removes it unless it was renamed.

    Those that killed processes left there under the same name are removed before. A living process
    is known by the lock that it holds on its folder.

    Raises:
        OSError: the folder cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    while True:
        temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:12]}.tmp"
        temporary.mkdir()
        lock = _lock(temporary, wait=True)
        if lock is None or temporary.is_dir():  # not taken for a leftover before it was locked
            break
        os.close(lock)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary siblings that no living process holds; nothing where locks do not work."""
    ours = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{12}}\.tmp")
    for path in folder.parent.glob(".*.tmp"):
        if not ours.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue
        lock = _lock(path, wait=False)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path, *, wait: bool) -> int | None:
    """An open handle that locks a folder until it is closed; None if that cannot be had."""
    if fcntl is None:
        return None
    with suppress(OSError):  # no rights, no such folder, or somebody holds it
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            os.close(handle)
            raise
        return handle
    return None


def restore_interrupted(path: Path) -> None:
    """Clear up after a killed writer; for files and folders that no other process writes.

    Where a folder is missing, what had been moved aside is put back; the rest of the kill is
    removed.
    """
    aside = sorted(path.parent.glob(f".{path.name}.*.old"), key=lambda p: p.stat().st_mtime)
    if aside and not path.exists():
        aside.pop().rename(path)
    for leftover in [*aside, *path.parent.glob(f".{path.name}.*.tmp")]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink()


def restore_all_interrupted(parent: Path) -> None:
    """`restore_interrupted` of everything in a folder, if there is such a folder."""
    hidden = [*parent.glob(".*.*.tmp"), *parent.glob(".*.*.old")]
    for name in sorted({path.name[1:].rsplit(".", 2)[0] for path in hidden}):
        restore_interrupted(parent / name)


def is_write_failure(error: Exception) -> bool:
    """Whether a file could not be written because the disk is full, read-only or not ours.

    safetensors reports what the system said as text.
    """
    if isinstance(error, OSError):
        return error.errno in _NO_ROOM
    return any(f"os error {number})" in str(error) for number in _NO_ROOM)


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    if path.is_file():
        with path.open("r+b") as handle:  # some systems refuse to sync what is only read
            os.fsync(handle.fileno())
    elif os.name == "posix":  # elsewhere a folder cannot be opened
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
