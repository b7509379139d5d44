"""`powerinfer-inspect`: prints what is in a model or gpuidx file, or what the machine offers.

A parser over `inspection.inspect_file` and `system.inspect_system`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from powerinfer_py.cli.command import run_command, version_line

if TYPE_CHECKING:
    from powerinfer_py.cli.inspect.inspection import Inspection

PROG = "powerinfer-inspect"
_EXAMPLES = """\
examples:
  powerinfer-inspect model.powerinfer.gguf             what is in the file
  powerinfer-inspect --tensors model.gguf              with one line a tensor
  powerinfer-inspect --json model.gguf | jq .types     for machines: one JSON object
  powerinfer-inspect model.gguf.generated.gpuidx       which neurons a GPU index puts on the GPU
  powerinfer-inspect --system                          CPU, kernels, memory, devices, versions
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Print what is in a GGUF, PowerInfer or gpuidx file (its magic decides what it is, not its name); "
        "with --system, what this machine offers.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", nargs="?", help="model or gpuidx file; any part of a split model")
    parser.add_argument("--system", action="store_true", help="describe the machine and the kernels that run on it")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--tensors", action="store_true", help="list every tensor: type, shape, bytes, offset")
    parser.add_argument("--version", action="version", version=version_line(PROG))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; argparse leaves through SystemExit for usage errors and --help."""
    return run_command(PROG, lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.system:
        if arguments.file is not None or arguments.tensors:
            parser.error("--system describes the machine and takes no file")
        return _inspect_system(as_json=arguments.json)
    if arguments.file is None:
        parser.error("name a FILE, or --system for the machine")
    return _inspect(arguments.file, as_json=arguments.json, tensors=arguments.tensors)


def to_json(inspection: Inspection, *, tensors: bool) -> str:
    """One line of JSON; the list of tensors is left out unless asked for."""
    fields = dataclasses.asdict(inspection)
    if not tensors:
        del fields["tensors"]
    return json.dumps(fields, allow_nan=False)


def _inspect(path: str, *, as_json: bool, tensors: bool) -> int:
    # numpy and the models' declarations take 0.15 s to import, in which Ctrl-C already ends the command quietly.
    from powerinfer_py.cli.inspect.inspection import inspect_file

    inspection = inspect_file(path)
    if as_json:
        print(to_json(inspection, tensors=tensors))
        return 0
    # rich takes 0.1 s to import, which a JSON reader need not wait for.
    from powerinfer_py.cli.inspect.tables import print_inspection

    print_inspection(inspection, tensors=tensors)
    return 0


def _inspect_system(*, as_json: bool) -> int:
    from powerinfer_py.cli.inspect.system import inspect_system

    report = inspect_system()
    if as_json:
        print(json.dumps(dataclasses.asdict(report), allow_nan=False))
        return 0
    from powerinfer_py.cli.inspect.system_table import print_system

    print_system(report)
    return 0
