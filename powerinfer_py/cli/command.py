"""What all commands share: how errors end a process, and the version they print.

Invariant: an error raised on purpose is one line on stderr and exit code 1, never a traceback; any other exception is a
defect and passes through. Usage errors are argparse's (exit code 2).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from powerinfer_py.errors import PowerInferError

EXIT_ERROR = 1
# What a shell reports for a process ended by SIGINT or SIGPIPE: 128 + the signal's number.
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def run_command(prog: str, function: Callable[[], int]) -> int:
    """Calls `function` and returns its exit code, or the one that belongs to the way it failed."""
    try:
        code = function()
        sys.stdout.flush()
    except PowerInferError as error:
        print(f"{prog}: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`| head`). Python flushes stdout once more at exit; that must find somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    return code


def version_line(prog: str) -> str:
    """What `--version` prints."""
    # Here and not above, so that the package may import commands while it is being imported itself.
    from powerinfer_py import __version__

    return f"{prog} (powerinfer-py) {__version__}"
