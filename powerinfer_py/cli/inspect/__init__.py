"""`powerinfer-inspect`: prints what is in a model or gpuidx file. A parser over `inspection.inspect_file`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence

from powerinfer_py.cli.command import run_command, version_line
from powerinfer_py.cli.inspect.inspection import Inspection, inspect_file

PROG = "powerinfer-inspect"
_EXAMPLES = """\
examples:
  powerinfer-inspect model.powerinfer.gguf             what is in the file
  powerinfer-inspect --tensors model.gguf              with one line a tensor
  powerinfer-inspect --json model.gguf | jq .types     for machines: one JSON object
  powerinfer-inspect model.gguf.generated.gpuidx       which neurons a GPU index puts on the GPU
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Print what is in a GGUF, PowerInfer or gpuidx file. Its magic decides what it is, not its name.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", help="model or gpuidx file; any part of a split model")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--tensors", action="store_true", help="list every tensor: type, shape, bytes, offset")
    parser.add_argument("--version", action="version", version=version_line(PROG))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; argparse leaves through SystemExit for usage errors and --help."""
    arguments = build_parser().parse_args(argv)
    return run_command(PROG, lambda: _inspect(arguments.file, as_json=arguments.json, tensors=arguments.tensors))


def to_json(inspection: Inspection, *, tensors: bool) -> str:
    """One line of JSON; the list of tensors is left out unless asked for."""
    fields = dataclasses.asdict(inspection)
    if not tensors:
        del fields["tensors"]
    return json.dumps(fields, allow_nan=False)


def _inspect(path: str, *, as_json: bool, tensors: bool) -> int:
    inspection = inspect_file(path)
    if as_json:
        print(to_json(inspection, tensors=tensors))
        return 0
    # rich takes 0.1 s to import, which a JSON reader need not wait for.
    from powerinfer_py.cli.inspect.tables import print_inspection

    print_inspection(inspection, tensors=tensors)
    return 0
