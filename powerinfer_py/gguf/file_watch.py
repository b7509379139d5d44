"""Whether a mapped file still is the one that was checked when it was opened.

Not a lock: others may write to the file. A file that was renamed away, deleted or replaced by a rename is still there
for whoever mapped it, and unchanged; one that was written to or cut is not. Invariant: a change that was made before
`require_unchanged` returns is seen by it, for the system notes the time of a write before it takes the bytes.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from powerinfer_py.errors import FileFormatError


class FileWatch:
    """Keeps a duplicate of `descriptor`, which is open on the file at `path`, and what its status was."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = os.dup(descriptor)
        self._finalizer = weakref.finalize(self, os.close, self._descriptor)
        self._seen = self._status()

    def require_unchanged(self) -> None:
        """Raises FileFormatError where the file was written to or cut since. Takes a microsecond."""
        if self._status() != self._seen:
            raise FileFormatError("the file was changed while it was in use: load it again", path=self._path)

    def _status(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns
