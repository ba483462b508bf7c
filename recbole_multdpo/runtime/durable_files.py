"""Write files and folders atomically and durably: after a crash, they are complete or absent."""

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
except ImportError:  # Windows: leftovers of killed processes cannot be told from those in use
    fcntl = None  # type: ignore[assignment]

_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by new text in one step: a reader, or a crash, sees the old or the new one.

    Raises:
        OSError: the folder is read-only or the disk full; the old file stays as it was.
    """
    number, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only the owner reads
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary sibling directory, and rename it to `folder` unless the block raised.

    Files and names are flushed to the disk. An existing folder is moved aside, replaced and
    deleted. A kill between the two renames leaves it moved aside, and `restore_interrupted` puts it
    back. A kill before them leaves `folder` untouched.

    Raises:
        OSError: the disk is full or the folder cannot be written; an existing folder stays.
    """
    with temporary_sibling(folder) as temporary:
        replaced = temporary.with_suffix(".old")
        try:
            yield temporary
            for path in [*temporary.rglob("*"), temporary]:
                sync(path)
            if folder.is_dir():
                folder.rename(replaced)
            temporary.rename(folder)
            sync(folder.parent)
        except BaseException:
            if replaced.is_dir() and not folder.exists():
                replaced.rename(folder)
            raise
        finally:
            shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def temporary_sibling(folder: Path) -> Iterator[Path]:
    """Yield a new hidden sibling directory, and remove it unless it was renamed.

    Siblings left by killed processes are removed first. A running process holds a lock on its own.

    Raises:
        OSError: the folder cannot be created.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    while True:
        temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:12]}.tmp"
        temporary.mkdir()
        lock = _lock(temporary, wait=True)
        if lock is None or temporary.is_dir():  # not removed as a leftover before it was locked
            break
        os.close(lock)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary siblings that no running process has locked; none if locks do not work."""
    ours = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{12}}\.tmp")
    for path in folder.parent.glob(".*.tmp"):
        if not ours.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue
        lock = _lock(path, wait=False)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path, *, wait: bool) -> int | None:
    """Lock a folder; returns the file descriptor that holds the lock, or None on failure."""
    if fcntl is None:
        return None
    with suppress(OSError):  # no permission, no such folder, or already locked
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            os.close(handle)
            raise
        return handle
    return None


def restore_interrupted(path: Path) -> None:
    """Clean up after a killed writer; no other process may write to the path.

    A missing folder that was moved aside is put back; other leftovers are removed.
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
    """Call `restore_interrupted` for every entry of a folder, if it exists."""
    hidden = [*parent.glob(".*.*.tmp"), *parent.glob(".*.*.old")]
    for name in sorted({path.name[1:].rsplit(".", 2)[0] for path in hidden}):
        restore_interrupted(parent / name)


def is_write_failure(error: Exception) -> bool:
    """True if a write failed because the disk is full or read-only, or permission is denied.

    safetensors reports the system's error number in its message only.
    """
    if isinstance(error, OSError):
        return error.errno in _WRITE_ERRORS
    return any(f"os error {number})" in str(error) for number in _WRITE_ERRORS)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    if path.is_file():
        with path.open("r+b") as handle:  # some systems refuse to sync a file opened for reading
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
