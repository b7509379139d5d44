"""`powerinfer-gpuidx`: chooses which neurons of a model go on the GPU, and writes that as PowerInfer reads it.

The parser alone. What is solved lies in `split.py`, what is printed in `output.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from powerinfer_py.cli.command import command_parser, run_command, version_line

PROG = "powerinfer-gpuidx"
_DESCRIPTION = """\
Choose which blocks and neurons of a model go on the GPU under a budget, and write the choice as a gpuidx file, which
powerinfer-run and PowerInfer read. Needs no GPU: sizes come from the model file, rates from this machine, from flags,
or from stated defaults, so that a split for another machine can be made here.

powerinfer-run makes and keeps such a file by itself. This command is for looking at a split before running it, for
other budgets, and for PowerInfer."""
_EPILOG = """\
examples:
  powerinfer-gpuidx -m model.powerinfer.gguf --vram-budget 8              whole process in 8 GiB
  powerinfer-gpuidx -m model.powerinfer.gguf --vram-budget 8 --dry-run    only show what it would be
  powerinfer-gpuidx -m ReluLLaMA-7B/ --ffn-budget 4 -o split.gpuidx       4 GiB of neurons, as PowerInfer counts
  powerinfer-gpuidx -m model.powerinfer.gguf --neurons 0.375 --method frequency
  powerinfer-gpuidx -m model.powerinfer.gguf --vram-budget 12 --gpu-bandwidth 360 --cpu-bandwidth 60 --json

Times are estimates from bandwidths; powerinfer-bench measures. Statistics come from activation/ beside the model, or
from --activation; without any, neurons are spread evenly, and the command that makes statistics is printed."""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    from powerinfer_py.cli.values import integer, nonempty_text, number, vram_budget
    from powerinfer_py.config import CacheType, Sparsity

    count, positive = integer(1, 2**31 - 1), number(above=0)
    caches = tuple(cache.value for cache in CacheType)
    parser = command_parser(
        PROG,
        _DESCRIPTION,
        _EPILOG,
    )
    add = parser.add_argument
    add("-m", "--model", metavar="PATH", required=True, type=nonempty_text, help="model file, or a folder with one")
    add("--activation", metavar="DIR", type=nonempty_text, help="statistics (default: activation/ beside the model)")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--vram-budget", metavar="GIB", type=vram_budget, help="GPU memory of the whole process")
    budget.add_argument("--ffn-budget", metavar="GIB", type=number(0), help="GPU memory for FFN neurons alone")
    budget.add_argument("--neurons", metavar="SHARE", type=number(0, 1), help="share of all neurons, 0 to 1")
    add("-o", "--output", metavar="FILE", type=nonempty_text, help="file to write (default: NAME.generated.gpuidx)")
    add("--method", choices=("milp", "frequency"), default="milp", help="least expected time, or hottest first")
    add("--sparsity", choices=[mode.value for mode in Sparsity], default="auto", help="mode the split is made for")
    add("-c", "--ctx-size", metavar="N", type=count, help="context (default: the smaller of 4096 and the model's)")
    add("-np", "--parallel", metavar="N", type=count, default=1, help="sequences at once (default: 1)")
    add("-b", "--batch-size", metavar="N", type=count, default=512, help="most prompt tokens at once (default: 512)")
    add("-ctk", "--cache-type-k", choices=caches, default="f16", help="how the KV cache stores keys (default: f16)")
    add("-ctv", "--cache-type-v", choices=caches, default="f16", help="the same for values (default: f16)")
    add("-t", "--threads", metavar="N", type=count, help="CPU threads (default: physical cores)")
    machine = parser.add_argument_group(
        "the machine that will run it (default: this one, as far as it can be measured)"
    )
    for flag, what in (
        ("--gpu-bandwidth", "10^9 bytes a second the GPU reads"),
        ("--gpu-rows-bandwidth", "the same of neurons' rows (default with --gpu-bandwidth: as it)"),
        ("--cpu-bandwidth", "10^9 bytes a second the CPU reads"),
        ("--cpu-rows-bandwidth", "the same of neurons' rows (default with --cpu-bandwidth: as it)"),
    ):
        machine.add_argument(flag, metavar="GB/S", type=positive, help=what)
    for flag, what in (
        ("--sync-time", "microseconds to hand a layer's cold neurons to the CPU and back"),
        ("--change-time", "microseconds to change sides (default with --sync-time: as it)"),
        ("--layer-time", "microseconds to launch a layer's kernels"),
        ("--rows-time", "the same of its hot neurons' kernels alone (default with --layer-time: 0)"),
    ):
        machine.add_argument(flag, metavar="US", type=number(0), help=what)
    machine.add_argument("--gpu-context", metavar="MIB", type=number(0), help="GPU memory of context and modules")
    add("--plot", metavar="FILE", type=nonempty_text, help="draw split and estimates, as .png, .svg or .pdf")
    add("--dry-run", action="store_true", help="write no gpuidx file")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    add("--version", action="version", version=version_line(PROG))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; argparse leaves through SystemExit for usage errors and --help."""
    return run_command(PROG, lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.vram_budget == 0:
        parser.error("argument --vram-budget: 0 uses no GPU: there is nothing to choose")
    # numpy and scipy take a while to import, which a usage error need not wait for.
    from powerinfer_py.cli.gpuidx.execution import execute

    return execute(arguments)
