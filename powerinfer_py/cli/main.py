"""`powerinfer`: lists the commands and forwards to them, `powerinfer run ...` to `powerinfer-run ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from powerinfer_py.cli.command import run_command, version_line
from powerinfer_py.cli.streams import remark
from powerinfer_py.errors import printable

PROG = "powerinfer"


@dataclass(frozen=True)
class Command:
    """A command: `powerinfer NAME`, installed as `powerinfer-NAME`, whose `module` has `main(argv) -> int`."""

    name: str
    module: str
    purpose: str


COMMANDS: tuple[Command, ...] = (
    Command("run", "powerinfer_py.cli.run", "generate text from a prompt or in a conversation"),
    Command("inspect", "powerinfer_py.cli.inspect", "print what is in a model or gpuidx file"),
    Command("convert", "powerinfer_py.cli.convert", "make a model file of a checkpoint or of a dense GGUF file"),
    Command("quantize", "powerinfer_py.cli.quantize", "make a smaller model file of a larger one"),
    Command("metadata", "powerinfer_py.cli.metadata", "change the keys of a model file"),
    Command("profile", "powerinfer_py.cli.profile", "count which neurons fire on a text"),
    Command("train-predictors", "powerinfer_py.cli.train_predictors", "make predictors of which neurons will fire"),
    Command("gpuidx", "powerinfer_py.cli.gpuidx", "choose which neurons go on the GPU"),
    Command("perplexity", "powerinfer_py.cli.perplexity", "measure how well a model predicts a text"),
    Command("bench", "powerinfer_py.cli.bench", "time prompts and decoding, beside the memory's bandwidth"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the named command with the rest of the arguments; without one prints the list."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command(PROG, lambda: _forward(arguments))


def _forward(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(help_text())
        return 0
    if name == "--version":
        print(version_line(PROG))
        return 0
    command = next((command for command in COMMANDS if command.name == name), None)
    if command is None:
        known = ", ".join(command.name for command in COMMANDS)
        remark(f"{PROG}: error: no command '{printable(name)}'; there are: {known}")
        return 2
    code: int = import_module(command.module).main(arguments[1:])
    return code


def help_text() -> str:
    """The list of commands."""
    width = max(len(command.name) for command in COMMANDS)
    lines = [f"  {PROG} {command.name:{width}}  {command.purpose}" for command in COMMANDS]
    return "\n".join(
        [
            f"usage: {PROG} COMMAND [ARGUMENTS]",
            "",
            "Inference of sparsely firing language models on a PC whose GPU is too small for them.",
            "",
            "commands (each also installed as powerinfer-COMMAND, each with its own --help):",
            *lines,
            "",
            "examples:",
            f'  {PROG} run "The capital of France is" -n 8',
            f"  {PROG} inspect model.powerinfer.gguf",
            "",
            f"{PROG} --version prints the version.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
