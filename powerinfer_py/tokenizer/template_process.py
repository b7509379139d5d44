"""The process that renders untrusted chat templates, as its owner sees it: started on first use, replaced when it dies.

Why a process: jinja2's sandbox keeps a template away from Python's internals, but not from `'a' * 10**9`, huge
paddings, `x ** y ** z` or strings doubled in nested macros, and no count of operations in the interpreter sees inside
one C call. The kernel does: it bounds memory and processor time whatever the template calls. It costs 0.1 s to start,
once, and about a millisecond for each rendering after that.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from powerinfer_py.errors import ChatTemplateError, printable

WORKER = Path(__file__).with_name("template_worker.py")
# Processor time is what bounds a rendering; the wall clock only ends a worker that the machine never lets run.
START_TIMEOUT_S = 30.0
REPLY_TIMEOUT_S = 15.0
# The output cap of the worker, at most 12 bytes a character where JSON escapes it as a surrogate pair.
MAX_REPLY_BYTES = 64 << 20


class TemplateProcess:
    """Renders templates one after the other; safe to call from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, source: str, variables: dict[str, Any], now: float) -> str:
        """Text of the template. Raises ChatTemplateError, in about a second where it is a limit that is met."""
        try:
            request = json.dumps({"source": source, "variables": variables, "now": now})
        except (TypeError, ValueError, RecursionError) as error:
            raise ChatTemplateError(f"chat template: values must be JSON: {printable(str(error))}") from None
        with self._lock:
            reply = self._ask(request.encode() + b"\n")
        if "error" in reply:
            raise ChatTemplateError(f"chat template: {printable(reply['error'], 200)}")
        return reply["text"]

    def close(self) -> None:
        """Ends the process; the next rendering starts another."""
        with self._lock:
            self._discard()

    def _ask(self, request: bytes) -> dict[str, str]:
        process = self._process if self._process is not None and self._process.poll() is None else self._start()
        try:
            reply = _exchange(process, request, REPLY_TIMEOUT_S)
        except BaseException:
            # Ctrl-C included: an answer that nobody read must not be taken for the next one.
            self._discard()
            raise
        if reply is None:
            self._discard()
            raise ChatTemplateError("chat template: it takes too long or too much memory to render")
        decoded: dict[str, str] = json.loads(reply)
        return decoded

    def _start(self) -> subprocess.Popen[bytes]:
        self._discard()
        if not sys.executable:
            raise ChatTemplateError("chat template: no Python executable to start the process that renders it")
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # Ctrl-C at a terminal goes to the whole group and is not meant for the worker.
                start_new_session=True,
            )
        except OSError as error:
            raise ChatTemplateError(f"chat template: cannot start a process to render it: {error}") from error
        self._process = process
        self._finalizer = weakref.finalize(self, _end, process)
        if (
            _exchange(process, json.dumps([str(entry) for entry in sys.path]).encode() + b"\n", START_TIMEOUT_S)
            != b"ready\n"
        ):
            self._discard()
            raise ChatTemplateError("chat template: the process that renders it does not start")
        return process

    def _discard(self) -> None:
        if self._process is not None:
            self._finalizer()
            self._process = None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            # What is left to flush would only meet a closed pipe.
            with contextlib.suppress(OSError):
                pipe.close()


def _exchange(process: subprocess.Popen[bytes], request: bytes, timeout_s: float) -> bytes | None:
    """The line that answers `request`; None where the process ended or the time is up."""
    assert process.stdin is not None and process.stdout is not None
    deadline = time.monotonic() + timeout_s
    try:
        process.stdin.write(request)
        process.stdin.flush()
    except BrokenPipeError:
        return None
    chunks: list[bytes] = []
    size = 0
    descriptor = process.stdout.fileno()
    # Not select(), which fails for descriptors above 1023.
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0 and size <= MAX_REPLY_BYTES:
        if not poll.poll(left * 1000):
            break
        chunk = os.read(descriptor, 1 << 16)
        if not chunk:
            break
        chunks.append(chunk)
        size += len(chunk)
        if chunk.endswith(b"\n"):
            return b"".join(chunks)
    return None
