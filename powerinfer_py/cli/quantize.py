"""`powerinfer-quantize`: makes a smaller model file of a larger one. A parser over `convert.quantise`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from powerinfer_py.cli.command import command_parser, run_command, version_line
from powerinfer_py.cli.streams import remark
from powerinfer_py.cli.values import integer

if TYPE_CHECKING:
    from powerinfer_py.convert.quantise import Keep, QuantisationPlan
    from powerinfer_py.gguf import GGMLType

PROG = "powerinfer-quantize"
_TYPE_NAMES = ("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "F16", "BF16", "F32")
_EXAMPLES = f"""\
types: {" ".join(_TYPE_NAMES)}
  The head becomes Q6_K with every type below Q8_0; norms, biases and other vectors are F32, learned positions keep
  their type. Where rows are no multiple of 256, Q5_0 stands in for Q4_K, Q5_1 for Q5_K and Q8_0 for Q6_K; where they
  are no multiple of 32 they become F16. PowerInfer itself runs F16 and Q4_0.

examples:
  powerinfer-quantize model.f16.gguf model.q4_0.gguf Q4_0
  powerinfer-quantize model.gguf small.gguf Q4_K --keep 'blk.*.fc?.weight=Q8_0' --keep token_embd.weight=F16
  powerinfer-quantize model.gguf small.gguf Q4_K --dry-run          what would become what, and how large the file
  powerinfer-quantize model.gguf small.gguf Q5_K --report --json    with the error of every tensor, for machines
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = command_parser(
        PROG,
        "Write a model (GGUF or PowerInfer file, predictors included) with its matrices in another type.",
        _EXAMPLES,
    )
    parser.add_argument("source", metavar="IN", help="model file; any part of a split model")
    parser.add_argument("target", metavar="OUT", help="file to be written, in one piece")
    parser.add_argument("type", metavar="TYPE", type=_type_name, help="type of the matrices, see below")
    parser.add_argument(
        "--keep",
        metavar="PATTERN=TYPE",
        type=_keep,
        action="append",
        default=[],
        help="another type for the matrices whose names match, as file names match in a shell; the last one wins",
    )
    parser.add_argument("--allow-requantize", action="store_true", help="accept a quantised IN: the losses add up")
    parser.add_argument("-t", "--threads", metavar="N", type=integer(1), help="default: one a performance core")
    parser.add_argument("--dry-run", action="store_true", help="list what each tensor would become and write nothing")
    parser.add_argument("--report", action="store_true", help="measure and list the error (NMSE) of each tensor")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--version", action="version", version=version_line(PROG))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; argparse leaves through SystemExit for usage errors and --help."""
    return run_command(PROG, lambda: _run(build_parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    from powerinfer_py.cli.progress import byte_progress
    from powerinfer_py.convert.quantise import plan_quantisation, quantise_model
    from powerinfer_py.gguf import open_gguf
    from powerinfer_py.kernels.quantisation import make_quantizer
    from powerinfer_py.output_files import require_writable
    from powerinfer_py.runtime.threads import default_threads

    if not arguments.dry_run:
        require_writable(Path(arguments.target))
    quantizer = make_quantizer(default_threads() if arguments.threads is None else arguments.threads)
    with open_gguf(arguments.source) as file:
        plan = plan_quantisation(
            file,
            _ggml_type(arguments.type),
            [_parsed_keep(*pair) for pair in arguments.keep],
            allow_requantize=arguments.allow_requantize,
        )
        for line in plan.remarks:
            remark(line)
        if quantizer.notice is not None:
            remark(quantizer.notice)
        started, errors = time.perf_counter(), {}
        if not arguments.dry_run:
            with byte_progress(f"quantising to {arguments.type}", plan.n_bytes) as progress:
                errors = quantise_model(plan, arguments.target, quantizer, progress, report=arguments.report)
        seconds = time.perf_counter() - started
        listed = arguments.dry_run or arguments.report
        if arguments.json:
            print(
                json.dumps(_summary(plan, arguments, quantizer.name, seconds, errors, listed=listed), allow_nan=False)
            )
        else:
            _print_tables(plan, errors, listed=listed)
    return 0


def _type_name(text: str) -> str:
    name = text.upper()
    if name not in _TYPE_NAMES:
        raise argparse.ArgumentTypeError(f"unknown type {text!r}, expected one of {', '.join(_TYPE_NAMES)}")
    return name


def _keep(text: str) -> tuple[str, str]:
    pattern, equals, name = text.rpartition("=")
    if not equals or not pattern:
        raise argparse.ArgumentTypeError(f"{text!r}, expected PATTERN=TYPE like 'blk.*.attn_v.weight=Q8_0'")
    return pattern, _type_name(name)


def _ggml_type(name: str) -> GGMLType:
    from powerinfer_py.gguf import GGMLType

    return GGMLType[name]


def _parsed_keep(pattern: str, name: str) -> Keep:
    from powerinfer_py.convert.quantise import Keep

    return Keep(pattern, _ggml_type(name))


def _shares(plan: QuantisationPlan) -> list[tuple[str, int, int, int, int]]:
    """Type, tensors and bytes before, tensors and bytes after; the largest first."""
    counts: dict[str, tuple[int, int, int, int]] = {}
    for tensor in plan.tensors:
        name = tensor.source.ggml_type.name
        n, size, n_new, new_size = counts.get(name, (0, 0, 0, 0))
        counts[name] = (n + 1, size + tensor.source.n_bytes, n_new, new_size)
        name = tensor.ggml_type.name
        n, size, n_new, new_size = counts.get(name, (0, 0, 0, 0))
        counts[name] = (n, size, n_new + 1, new_size + tensor.n_bytes)
    return sorted(((name, *numbers) for name, numbers in counts.items()), key=lambda row: -max(row[2], row[4]))


def _tensor_rows(plan: QuantisationPlan, errors: dict[str, float]) -> list[dict[str, Any]]:
    return [
        {
            "name": tensor.source.name,
            "shape": list(tensor.source.shape),
            "type_before": tensor.source.ggml_type.name,
            "type_after": tensor.ggml_type.name,
            "bytes_before": tensor.source.n_bytes,
            "bytes_after": tensor.n_bytes,
            "nmse": errors.get(tensor.source.name),
        }
        for tensor in plan.tensors
    ]


def _summary(
    plan: QuantisationPlan,
    arguments: argparse.Namespace,
    quantizer: str,
    seconds: float,
    errors: dict[str, float],
    *,
    listed: bool,
) -> dict[str, Any]:
    names = ("tensors_before", "bytes_before", "tensors_after", "bytes_after")
    summary: dict[str, Any] = {
        "source": [str(path) for path in plan.file.paths],
        "target": arguments.target,
        "written": not arguments.dry_run,
        "type": plan.ggml_type.name,
        "magic": plan.file.magic,
        "bytes_before": sum(tensor.source.n_bytes for tensor in plan.tensors),
        "bytes_after": plan.n_bytes,
        "types": {row[0]: dict(zip(names, row[1:], strict=True)) for row in _shares(plan)},
        "remarks": list(plan.remarks),
        "quantizer": quantizer,
        "seconds": seconds,
    }
    if listed:
        summary["tensors"] = _tensor_rows(plan, errors)
    return summary


def _print_tables(plan: QuantisationPlan, errors: dict[str, float], *, listed: bool) -> None:
    from powerinfer_py.cli.tables import make_console, make_table, size_text

    console = make_console()
    if listed:
        rows = (
            (
                row["name"],
                " x ".join(map(str, row["shape"])),
                row["type_before"],
                row["type_after"],
                size_text(row["bytes_after"]),
                "" if row["nmse"] is None else f"{row['nmse']:.3g}",
            )
            for row in _tensor_rows(plan, errors)
        )
        console.print(make_table(None, _columns("tensor", "shape", "before", "after", "size", "NMSE"), rows))
    shares = _shares(plan)
    lines = [(name, str(n), size_text(size), str(m), size_text(new)) for name, n, size, m, new in shares]
    before, after = sum(share[2] for share in shares), sum(share[4] for share in shares)
    n_tensors = str(len(plan.tensors))
    total = f"{size_text(after)} ({after / before:.1%})" if before else size_text(after)
    lines.append(("all", n_tensors, size_text(before), n_tensors, total))
    columns = _columns("type", "tensors before", "size before", "tensors after", "size after")
    console.print(make_table(None, columns, lines))


def _columns(first: str, *others: str) -> tuple[tuple[str, str], ...]:
    return (first, "left"), *((name, "right") for name in others)


if __name__ == "__main__":
    sys.exit(main())
