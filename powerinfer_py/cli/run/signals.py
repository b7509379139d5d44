"""Ctrl-C and SIGTERM. The first signal during generation asks it to stop, the second ends the process.

Python runs handlers between its own instructions: either waits for the native call at work to return, which computes
layers of at most `models.transformer.STEP_BYTES` for up to 16 tokens, one block for more, or a step on a GPU.

Outside generation Ctrl-C raises KeyboardInterrupt and SIGTERM raises SystemExit, so that files and terminals are left
in order. Handlers are installed for the length of a `with` block and need the main thread.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from powerinfer_py.cli.command import EXIT_INTERRUPTED

EXIT_TERMINATED = 143
_EXIT_CODES = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_TERMINATED}


class Signals:
    """What signals have asked for.

    Attributes:
        exit_code: the code of the last signal that stopped a generation, None before any.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._cancel: threading.Event | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def terminated(self) -> bool:
        """Whether SIGTERM has been received."""
        return self.exit_code == EXIT_TERMINATED

    def __enter__(self) -> Signals:
        self._previous = {number: signal.signal(number, self._handle) for number in _EXIT_CODES}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def generating(self) -> Iterator[threading.Event]:
        """A fresh event that the first signal sets."""
        self._cancel = threading.Event()
        try:
            yield self._cancel
        finally:
            self._cancel = None

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002, the signature is Python's
        code = _EXIT_CODES[signal.Signals(number)]
        if self._cancel is None:
            if code == EXIT_INTERRUPTED:
                raise KeyboardInterrupt
            raise SystemExit(code)
        if self._cancel.is_set():
            # Nothing is buffered: every piece of text was flushed as it was written.
            os._exit(code)
        self.exit_code = code
        self._cancel.set()
