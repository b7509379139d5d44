"""Ctrl-C while a command starts: everything it imports for its work is imported where an interrupt ends it quietly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

# Interrupts the process as soon as the module is looked for.
_INTERRUPT = """
import importlib.abc, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from powerinfer_py.cli.{command} import main
sys.exit(main({argv!r}))
"""


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("run", "powerinfer_py.cli.run.execution"),
        ("run", "powerinfer_py.cli.run.flags"),
        ("run", "powerinfer_py.config"),
        ("run", "argparse"),
        ("inspect", "powerinfer_py.cli.inspect.inspection"),
        ("inspect", "numpy"),
        ("main", "powerinfer_py.cli.run"),
    ],
)
def test_an_interrupt_while_importing_is_quiet(command: str, module: str) -> None:
    argv = {"run": ["--version"], "inspect": ["absent"], "main": ["run", "--version"]}[command]
    code = _INTERRUPT.format(module=module, command=command, argv=argv)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=ENVIRONMENT, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize("command", ["main", "run", "inspect"])
def test_a_command_before_its_main_is_light(command: str) -> None:
    code = f"import sys, powerinfer_py.cli.{command}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=ENVIRONMENT, timeout=60, check=True)
    loaded = done.stdout.decode().split()
    assert "powerinfer_py.cli.streams" in loaded
    for module in (
        "powerinfer_py.config",
        "powerinfer_py.cli.run.flags",
        "powerinfer_py.gguf",
        "numpy",
        "rich",
        "torch",
    ):
        assert module not in loaded
