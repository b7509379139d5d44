"""The process that reads hostile files: `worker.py FOLDER FIRST` reads the cases from number FIRST on, a line each.

While it reads a case its address space is bounded to what it has, and 64 MiB. Before a case it writes the case's
number, after it what came of it as JSON; a worker that dies in between has been killed by the case. Cases that kill
readers which trust them are read in a child.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LIMIT_BYTES = 64 << 20
HERE = Path(__file__).parent
_LIBC = ctypes.CDLL(None)


def main() -> None:
    """Reads the cases that its arguments name."""
    # A folder of its own name stands first in the path of a script; the tests' folder belongs there.
    sys.path[0] = str(HERE.parent)
    os.environ["OMP_NUM_THREADS"] = "1"
    from hostile.all_cases import CASES

    folder, first = Path(sys.argv[1]), int(sys.argv[2])
    warm_up(folder)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number, case in enumerate(CASES[first:], first):
        own = folder / str(number)
        own.mkdir()
        path = case.build(own)
        print(number, flush=True)
        outcome = in_child(case, path) if case.may_die else read(case, path)
        print(json.dumps(outcome), flush=True)


def warm_up(folder: Path) -> None:
    """Reads one honest file of each kind, so that a case is not charged for imports."""
    from hostile.all_cases import CASES
    from hostile.readers import READERS

    honest: dict[str, Any] = {}
    for case in CASES:
        if case.error is None:
            honest.setdefault(case.reader, case)
    for kind, case in honest.items():
        own = folder / f"warm-up-{kind}"
        own.mkdir()
        READERS[kind](case.build(own))


def read(case: Any, path: Path) -> dict[str, Any]:
    """What came of reading: error (type name, None for none), message, place, seconds of processor time, bytes."""
    from hostile.readers import READERS

    _LIBC.malloc_trim(0)
    # Sets the high-water mark of resident memory to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before, of_files, started = status_bytes("VmRSS"), status_bytes("RssFile"), processor_s()
    outcome: dict[str, Any] = {"error": None, "message": "", "place": None}
    try:
        with bounded():
            READERS[case.reader](path)
    except BaseException as error:
        names = [kind.__name__ for kind in type(error).__mro__]
        outcome = {"error": type(error).__name__, "message": str(error), "place": place_of(error, path)}
        outcome["documented"] = "PowerInferError" in names
    outcome["seconds"] = processor_s() - started
    # Pages of files are the page cache's. A forked child maps those of libraries anew: 74 MB of torch's code where
    # an error is unwound through it for the first time.
    of_files = max(0, status_bytes("RssFile") - of_files)
    outcome["bytes"] = max(0, status_bytes("VmHWM") - before - of_files)
    return outcome


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Bounds the address space while a case is read; making one may take more."""
    unbounded = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (status_bytes("VmSize") + LIMIT_BYTES, unbounded[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, unbounded)


def place_of(error: BaseException, path: Path) -> int | None:
    """The offset that an error names, if it names the file too."""
    return getattr(error, "offset", None) if getattr(error, "path", None) == path else None


def in_child(case: Any, path: Path) -> dict[str, Any]:
    """As `read`, in a fork; a child that dies gives an outcome without a documented error."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.write(writer, json.dumps(read(case, path)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        data = stream.read()
    _, status = os.waitpid(child, 0)
    if not data:
        message = f"the process died: status {status}"
        return {"error": "died", "message": message, "place": None, "seconds": 0.0, "bytes": 0}
    return json.loads(data)


def processor_s() -> float:
    """Processor time of this process and of the children it has waited for."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.process_time() + usage[1].ru_utime + usage[1].ru_stime


def status_bytes(field: str) -> int:
    """A figure of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise KeyError(field)


if __name__ == "__main__":
    main()
