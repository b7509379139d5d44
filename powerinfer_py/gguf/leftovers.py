"""Temporary files of writers: what they may replace, how their names reach the disk, and which a killed one left.

A writer holds an exclusive lock on its temporary file from creation on; the system drops it with the process.
Invariant: a file that a living writer holds is never removed, and a writer never goes on with a file that was.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

_PREFIX, _SUFFIX = ".powerinfer-", ".tmp"
# Names that were asked for, and the process that did: an interrupt may come before a writer has heard of its file.
_asked_for: dict[Path, int] = {}


def create_locked(folder: Path) -> tuple[Path, int]:
    """A new temporary file in `folder`, open for writing and locked: its path and descriptor. Raises OSError.

    Where the file system has no locks the file is not locked, and there nothing is ever taken for a leftover.
    """
    _forget_gone()
    while True:
        path = folder / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"
        _asked_for[path] = os.getpid()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        # Between creation and lock another process may take the file for a leftover. It holds the lock until the name
        # is gone, so this waits no longer than that, and then sees it.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)


def refuse_unlike_file(path: Path) -> None:
    """Raises OSError where `path` is a folder, a device or a pipe, which a rename would fail on or take away for good.

    ValueError for a name that no file can have.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "no regular file, and would be replaced by one")


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files that nobody holds. What cannot be opened, locked or removed stays, in silence."""
    with suppress(OSError, ValueError):
        for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
            with suppress(OSError):
                _remove_unless_held(path)


def sync_folder(folder: Path) -> None:
    """A rename is on disk only when the folder is. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder; the file itself is on disk by now.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def _forget_gone() -> None:
    """Files that have got their real names, or were removed."""
    for path in list(_asked_for):
        with suppress(OSError):
            if not path.exists():
                _asked_for.pop(path, None)


@atexit.register
def _remove_own() -> None:
    """What is left when the process ends in order. A forked one leaves alone what its parent writes."""
    for path, process in list(_asked_for.items()):
        if process == os.getpid():
            with suppress(OSError):
                path.unlink()


def _remove_unless_held(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Under the lock: a creator that is about to ask for it sees that the name is gone.
        path.unlink()
    finally:
        os.close(descriptor)
