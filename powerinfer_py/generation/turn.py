"""One generation at a time: an engine's cache belongs to whoever is generating."""

from __future__ import annotations

import threading
from types import TracebackType

from powerinfer_py.errors import OptionError


class Turn:
    """A lock that other threads wait for, and that refuses the thread that holds it already.

    A stream holds it between two of its pieces, so a second call from the same loop could only wait for itself.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._closed = False

    def close(self) -> None:
        """Refuses everybody from now on."""
        self._closed = True

    def __enter__(self) -> None:
        if self._owner == threading.get_ident():
            raise OptionError("a stream of this model is still open in this thread: exhaust or close it first")
        if self._closed:
            raise OptionError("this model has been closed")
        self._lock.acquire()
        self._owner = threading.get_ident()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._owner = None
        self._lock.release()
