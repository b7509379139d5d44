"""A process that has imported every command and forks a child for each run: what is killed is at work, not at imports.

Run as a script it is that process; `Zygote` is its owner's view. Children write standard error to a file.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import struct
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

COMMANDS = ("convert", "quantize", "gpuidx", "profile", "train_predictors", "run", "inspect", "metadata")
# torch._dynamo is what torch.optim imports when it is first used, for a second and a half.
HEAVY = ("torch._dynamo", "scipy.optimize", "sentencepiece", "gguf.quants", "safetensors.torch")
HEAVY += ("rich.progress", "rich.table", "powerinfer_py._native", "powerinfer_py.generation.llm")
# Of linux/capability.h: the version of the interface, and passing over permissions of files and folders.
CAPABILITY_VERSION_3, DAC_CAPABILITIES = 0x20080522, (1 << 1) | (1 << 2)


@dataclass(frozen=True)
class Run:
    """One call of a command. file_limit: RLIMIT_FSIZE. unprivileged: permissions hold for root too."""

    command: str
    argv: list[str]
    stderr: str
    stdout: str = os.devnull
    file_limit: int | None = None
    unprivileged: bool = False
    environment: dict[str, str] = field(default_factory=dict)


class Zygote:
    """The process, started and ended by a `with` block."""

    def __enter__(self) -> Zygote:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self._reply() == "ready"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.communicate()

    def start(self, run: Run) -> int:
        """The process id of a child at work."""
        return int(self._ask(asdict(run)))

    def wait(self, pid: int) -> int:
        """The exit code of a child; minus the number of the signal that ended it."""
        return int(self._ask({"wait": pid}))

    def call(self, run: Run) -> int:
        """Start and wait."""
        return self.wait(self.start(run))

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return self._reply()

    def _reply(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def main() -> None:
    """Serves requests until standard input ends."""
    for name in HEAVY:
        import_module(name)
    for command in COMMANDS:
        import_module(f"powerinfer_py.cli.{command}")
    reply("ready")
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            reply(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]))
            continue
        pid = os.fork()
        if pid == 0:
            child(Run(**request))
        reply(pid)


def reply(value: object) -> None:
    print(json.dumps(value), flush=True)


def child(run: Run) -> None:
    """Never returns."""
    code = 1
    try:
        os.setsid()
        for target, stream in ((run.stdout, 1), (run.stderr, 2)):
            os.dup2(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        os.environ.update(run.environment)
        if run.file_limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (run.file_limit, run.file_limit))
        if run.unprivileged:
            drop_privileges()
        code = import_module(f"powerinfer_py.cli.{run.command}").main(run.argv)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def drop_privileges() -> None:
    """Takes from root what lets it write into folders that are shut; others never had it."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("<Ii", CAPABILITY_VERSION_3, 0)
    sets = ctypes.create_string_buffer(24)  # effective, permitted, inheritable, twice
    if libc.capget(header, sets) == 0:
        words = [word & ~DAC_CAPABILITIES if i < 3 else word for i, word in enumerate(struct.unpack("<6I", sets.raw))]
        assert libc.capset(header, struct.pack("<6I", *words)) == 0


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])
    main()
