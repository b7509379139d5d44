"""The standard streams of a command: what a closed one becomes, their encoding, and what failing to write one means.

Not what is written. Invariant: between `standard_streams` and its end none of the three is None, and an error of
standard output is a PowerInferError, or BrokenPipeError where its reader has gone; after either it takes everything
and keeps nothing, so that Python finds nothing left to complain of when it flushes the stream at exit.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from powerinfer_py.errors import PowerInferError


@contextmanager
def standard_streams() -> Iterator[None]:
    """Makes the standard streams fit for a command, and flushes standard output at the end.

    A closed standard input is empty, what goes to a closed standard error is lost, a closed standard output is refused.
    Raises PowerInferError for that and where standard output cannot be written.
    """
    _replace_closed()
    _use_utf8()
    output = sys.stdout
    checked = _CheckedOutput(output)
    sys.stdout = cast(TextIO, checked)
    try:
        yield
    finally:
        sys.stdout = output
        checked.flush()


def remark(line: str) -> None:
    """One line on standard error; where that cannot be written the line is lost, and what is going on goes on."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        _silence(sys.stderr)


class _CheckedOutput:
    """A stream whose `write` and `flush` fail as the module says; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._checked():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._checked():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            _silence(self._stream)
            raise
        except OSError as error:
            _silence(self._stream)
            raise PowerInferError(f"standard output cannot be written: {error.strerror or error}") from None


def _replace_closed() -> None:
    # Python sets the stream of a closed descriptor to None, and print(file=None) means standard output. In this order
    # each null device gets the descriptor that is missing: a model file must not become descriptor 2, where native
    # libraries write their messages.
    if sys.stdin is None:
        sys.stdin = _null_device("r")
    if sys.stdout is None:
        if sys.stderr is None:
            sys.stderr = _null_device("w")
        raise PowerInferError("standard output is closed; > /dev/null discards what is written there")
    if sys.stderr is None:
        sys.stderr = _null_device("w")


def _null_device(mode: str) -> TextIO:
    return cast(TextIO, Path(os.devnull).open(mode, encoding="utf-8"))


def _use_utf8() -> None:
    """UTF-8 whatever the locale; text that cannot be written becomes a replacement mark."""
    for stream, errors in ((sys.stdin, "strict"), (sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        reconfigure = getattr(stream, "reconfigure", None)
        # A stream that has been read from cannot be reconfigured, and one that was prepared before need not be.
        if reconfigure is not None and (stream.encoding.lower(), stream.errors) != ("utf-8", errors):
            reconfigure(encoding="utf-8", errors=errors)


def _silence(stream: TextIO) -> None:
    """Points the stream at the null device, so that what it still holds can be flushed."""
    with suppress(OSError):  # a stream without a descriptor holds its text itself
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
