"""Runs all cases through the worker: what came of each, in order. For the tests and for the table."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hostile.all_cases import CASES
from hostile.case import HostileCase

WORKER = Path(__file__).with_name("worker.py")
MAX_S = 1.0
MAX_BYTES = 64 << 20
# A wall clock for a case that never ends; what it may take is counted in processor time.
PATIENCE_S = 30.0


@dataclass(frozen=True)
class Outcome:
    """error: the exception's type, None where the file was accepted, "died" where reading ended the process."""

    case: HostileCase
    error: str | None
    message: str
    place: int | None
    seconds: float
    bytes: int
    documented: bool = False

    @property
    def crashed(self) -> bool:
        """Whether reading ended the process, or in an exception that is no documented one."""
        return self.error is not None and not self.documented

    @property
    def accepted_wrongly(self) -> bool:
        """Whether a file that must be refused was not."""
        return self.error is None and self.case.error is not None


def run_cases(folder: Path) -> list[Outcome]:
    """Every case's outcome. A worker that dies is replaced, and the case at fault has killed it."""
    outcomes: list[Outcome] = []
    while len(outcomes) < len(CASES):
        own = folder / f"worker-{len(outcomes)}"
        own.mkdir()
        before = len(outcomes)
        _run_worker(own, outcomes)
        if len(outcomes) < len(CASES):
            outcomes.append(Outcome(CASES[len(outcomes)], "died", "the worker died or hung", None, 0.0, 0))
            if len(outcomes) == before + 1 == 1:
                raise RuntimeError("the worker does not start")
    return outcomes


def _run_worker(folder: Path, outcomes: list[Outcome]) -> None:
    command = [sys.executable, str(WORKER), str(folder), str(len(outcomes))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        poll = select.poll()
        poll.register(process.stdout.fileno(), select.POLLIN | select.POLLHUP)
        buffer = b""
        while poll.poll(PATIENCE_S * 1000):
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                break
            buffer += chunk
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                value = json.loads(line)
                if isinstance(value, dict):
                    outcomes.append(Outcome(CASES[len(outcomes)], **value))
        process.kill()
