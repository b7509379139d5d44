"""`powerinfer-run`: loads a model and generates text from prompts or in a conversation.

The work is execution.py's. Exit codes: 0 done, 1 error, 2 wrong usage, 130 interrupted, 141 the reader of standard
output has gone, 143 terminated.
"""

from __future__ import annotations

from collections.abc import Sequence

from powerinfer_py.cli.command import run_command

PROG = "powerinfer-run"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code, or leaves through SystemExit for --help and wrong usage."""

    def run() -> int:
        # 30 ms in which Ctrl-C already ends the command quietly.
        from powerinfer_py.cli.run.execution import execute

        return execute(argv)

    return run_command(PROG, run)
