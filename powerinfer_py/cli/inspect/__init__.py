"""`powerinfer-inspect`: prints what is in a model or gpuidx file, how two differ, or what the machine offers.

A parser over `inspection.inspect_file`, `difference.compare_files` and `system.inspect_system`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from powerinfer_py.cli.command import EXIT_ERROR, command_parser, run_command, version_line
from powerinfer_py.cli.streams import remark
from powerinfer_py.errors import PowerInferError

if TYPE_CHECKING:
    from powerinfer_py.cli.inspect.inspection import Inspection
    from powerinfer_py.gguf.tensor_check import TensorFault

PROG = "powerinfer-inspect"
_EXAMPLES = """\
examples:
  powerinfer-inspect model.powerinfer.gguf             what is in the file
  powerinfer-inspect --tensors model.gguf              with one line a tensor
  powerinfer-inspect --json model.gguf | jq .types     for machines: one JSON object
  powerinfer-inspect model.gguf.generated.gpuidx       which neurons a GPU index puts on the GPU
  powerinfer-inspect a.gguf --diff b.gguf              which keys and tensors differ, and by how much
  powerinfer-inspect --check-tensors model.gguf        are there NaN, infinities or absurd scales in it
  powerinfer-inspect --system                          CPU, kernels, memory, devices, versions

exit code: 0, or 1 after an error or where --check-tensors found something;
with --diff 0 where the files are equal, 1 where they differ, 2 after an error
"""
_EXIT_DIFFERENT = 1
_EXIT_DIFF_ERROR = 2


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = command_parser(
        PROG,
        "Print what is in a GGUF, PowerInfer or gpuidx file (its magic decides what it is, not its name); "
        "with --system, what this machine offers.",
        _EXAMPLES,
    )
    parser.add_argument("file", metavar="FILE", nargs="?", help="model or gpuidx file; any part of a split model")
    parser.add_argument(
        "--diff",
        metavar="FILE",
        help="compare with this file: keys and tensors, not their order; NMSE of every tensor that differs",
    )
    parser.add_argument("--system", action="store_true", help="describe the machine and the kernels that run on it")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--tensors", action="store_true", help="list every tensor: type, shape, bytes, offset")
    parser.add_argument(
        "--check-tensors",
        action="store_true",
        help="read all weights; name tensors with NaN, infinities, absurd scales",
    )
    parser.add_argument("--version", action="version", version=version_line(PROG))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; argparse leaves through SystemExit for usage errors and --help."""
    return run_command(PROG, lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.system:
        if arguments.file is not None or arguments.tensors or arguments.diff is not None or arguments.check_tensors:
            parser.error("--system describes the machine and takes no file")
        return _inspect_system(as_json=arguments.json)
    if arguments.file is None:
        parser.error("name a FILE, or --system for the machine")
    if arguments.diff is not None:
        if arguments.tensors or arguments.check_tensors:
            parser.error("--diff lists the tensors that differ and takes neither --tensors nor --check-tensors")
        return _diff(arguments.file, arguments.diff, as_json=arguments.json)
    return _inspect(arguments)


def to_json(inspection: Inspection, *, tensors: bool, faults: Sequence[TensorFault] | None = None) -> str:
    """One line of JSON, without the list of tensors unless asked for, without faults unless they were looked for."""
    fields = dataclasses.asdict(inspection)
    if not tensors:
        del fields["tensors"]
    if faults is not None:
        fields["tensor_faults"] = [dataclasses.asdict(fault) for fault in faults]
    return json.dumps(fields, allow_nan=False)


def _inspect(arguments: argparse.Namespace) -> int:
    # numpy and the models' declarations take 0.15 s to import, in which Ctrl-C already ends the command quietly.
    from powerinfer_py.cli.inspect.inspection import inspect_file

    inspection = inspect_file(arguments.file)
    faults = _faults(arguments.file) if arguments.check_tensors else None
    if arguments.json:
        print(to_json(inspection, tensors=arguments.tensors, faults=faults))
    else:
        # rich takes 0.1 s to import, which a JSON reader need not wait for.
        from powerinfer_py.cli.inspect.inspection_table import print_faults, print_inspection

        print_inspection(inspection, tensors=arguments.tensors)
        if faults is not None:
            print_faults(faults)
    return EXIT_ERROR if faults else 0


def _faults(path: str) -> list[TensorFault]:
    from powerinfer_py.cli.progress import byte_progress
    from powerinfer_py.gguf import open_gguf
    from powerinfer_py.gguf.tensor_check import check_tensors

    with open_gguf(path) as file, byte_progress("checking", file.n_bytes) as progress:
        return check_tensors(file, progress)


def _diff(path_a: str, path_b: str, *, as_json: bool) -> int:
    from powerinfer_py.cli.inspect.difference import compare_files
    from powerinfer_py.cli.progress import byte_progress
    from powerinfer_py.gguf import open_gguf

    try:
        with open_gguf(path_a) as file:
            n_bytes = file.n_bytes
        with byte_progress("comparing", n_bytes) as progress:
            difference = compare_files(path_a, path_b, progress)
    except PowerInferError as error:
        # Not left to `run_command`: its exit code for errors would say that the files differ.
        remark(f"{PROG}: error: {' '.join(str(error).splitlines())}")
        return _EXIT_DIFF_ERROR
    if as_json:
        print(json.dumps(dataclasses.asdict(difference), allow_nan=False))
    else:
        from powerinfer_py.cli.inspect.difference_table import print_difference

        print_difference(difference)
    return 0 if difference.equal else _EXIT_DIFFERENT


def _inspect_system(*, as_json: bool) -> int:
    from powerinfer_py.cli.inspect.system import inspect_system

    report = inspect_system()
    if as_json:
        print(json.dumps(dataclasses.asdict(report), allow_nan=False))
        return 0
    from powerinfer_py.cli.inspect.system_table import print_system

    print_system(report)
    return 0
