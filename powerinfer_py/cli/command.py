"""What all commands share: how errors end a process, how options are parsed, and the version they print.

Invariant: an error raised on purpose is one line on stderr and exit code 1, never a traceback, and so is a standard
output that cannot be written; any other exception is a defect and passes through. Usage errors are argparse's (exit
code 2).

A command's `main` does everything inside `run_command`, its imports included, so that Ctrl-C finds it at work as soon
as it can: what remains, with a traceback, is the time in which Python starts and imports this package's first modules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from powerinfer_py.cli.streams import remark, standard_streams
from powerinfer_py.errors import PowerInferError

if TYPE_CHECKING:
    import argparse

EXIT_ERROR = 1
# What a shell reports for a process ended by SIGINT or SIGPIPE: 128 + the signal's number.
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def run_command(prog: str, function: Callable[[], int]) -> int:
    """Calls `function` and returns its exit code, or the one that belongs to the way it failed."""
    try:
        with standard_streams():
            # Here for the same reason as in `version_line`.
            from powerinfer_py.kernels.file_faults import report_file_faults

            report_file_faults()
            return function()
    except PowerInferError as error:
        remark(f"{prog}: error: {' '.join(str(error).splitlines())}")
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_BROKEN_PIPE


def command_parser(prog: str, description: str, epilog: str, usage: str | None = None) -> argparse.ArgumentParser:
    """A parser that takes texts as they are laid out, and no abbreviated options: a later option would break those."""
    # Here, so that a command which makes its parser inside `run_command` imports argparse there too.
    import argparse

    return argparse.ArgumentParser(
        prog=prog,
        usage=usage,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def version_line(prog: str) -> str:
    """What `--version` prints."""
    # Here and not above, so that the package may import commands while it is being imported itself.
    from powerinfer_py import __version__

    return f"{prog} (powerinfer-py) {__version__}"
