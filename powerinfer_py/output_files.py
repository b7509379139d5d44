"""Files other than models that are whole or absent: written beside, synced, renamed. For bytes that fit in memory.

Model files have a writer of their own (`gguf.writer`), which streams; the temporary files of both are of one kind.
Invariant: under a name there is either what was there before or all of the new bytes, on disk.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from powerinfer_py.errors import OptionError, PowerInferError, printable
from powerinfer_py.gguf.leftovers import create_locked, refuse_unlike_file, remove_leftovers, sync_folder


def write_bytes(path: Path, data: bytes, advice: str = "") -> None:
    """Puts `data` under `path`. Raises PowerInferError, `advice` at its end; then what was there before still is."""
    temporary: Path | None = None
    try:
        refuse_unlike_file(path)
        remove_leftovers(path.parent)
        # The lock lasts as long as the file is open, which is until it has its name.
        temporary, descriptor = create_locked(path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        sync_folder(path.parent)
    except (OSError, ValueError) as error:
        raise PowerInferError(f"{printable(str(path))}: cannot write: {_reason(error)}{advice}") from None
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


def require_writable(path: Path) -> None:
    """Raises PowerInferError where a file could not be put under `path` now: to be asked before hours of work."""
    with _reported(path, "write"):
        refuse_unlike_file(path)
        _try_file(path.parent)


def require_writable_folder(path: Path) -> None:
    """The same of a folder to be filled, which need not be there: what is made to find out goes again."""
    with _reported(path, "write into this folder"):
        for folder in (path, *path.parents):
            with suppress(FileNotFoundError):
                _try_file(folder)
                return
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def make_folder(path: Path) -> None:
    """Makes a folder and those above it. Raises PowerInferError."""
    with _reported(path, "make this folder"):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def locked_folder(path: Path, work: str) -> Iterator[None]:
    """Makes a folder and keeps other processes from the same work in it, `work` in words. Raises PowerInferError.

    Some network file systems have no locks; renames keep each file whole there all the same.
    """
    make_folder(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise PowerInferError(f"{printable(str(path))}: cannot read this folder: {_reason(error)}") from None
    try:
        with suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OptionError(f"{printable(str(path))}: another process is {work} this folder") from None
        yield
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file; one that is not there is fine. Raises PowerInferError."""
    with _reported(path, "remove"):
        path.unlink(missing_ok=True)


def _try_file(folder: Path) -> None:
    """Makes a file in `folder` and removes it. The system's answer counts, not what the permissions seem to say."""
    temporary, descriptor = create_locked(folder)
    try:
        temporary.unlink()
    finally:
        os.close(descriptor)


@contextmanager
def _reported(path: Path, work: str) -> Iterator[None]:
    """What the system refuses, or a name that no file can have, as PowerInferError; `work` in words."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise PowerInferError(f"{printable(str(path))}: cannot {work}: {_reason(error)}") from None


def _reason(error: OSError | ValueError) -> str:
    return str(error.strerror or error) if isinstance(error, OSError) else "no possible file name"
