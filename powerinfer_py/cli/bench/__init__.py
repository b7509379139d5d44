"""`powerinfer-bench`: times models over combinations of options, a row each, with llama-bench's conventions.

A parser over `generation.benchmark`; combinations are made in `combinations.py` and run in `execution.py`,
what is printed is made in `rows.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TypeVar

from powerinfer_py.cli.command import command_parser, run_command, version_line

PROG = "powerinfer-bench"
T = TypeVar("T")
_DESCRIPTION = """\
Time prompts (pp) and decoding (tg) of one model or several. Options that take a list are combined each with each; a
combination is loaded once, warmed up, and measured -r times; the row shows the median and the range.

MB/token are the bytes a token needs: weights by the neurons that were computed, and the keys and values it attends to;
in prompts every matrix once a batch of -b tokens. GB/s are those times tokens a second, beside the read bandwidth that
a probe finds just before: what adding up a large buffer reaches, which careful code may exceed a little."""
_EPILOG = """\
examples:
  powerinfer-bench -m model.powerinfer.gguf
  powerinfer-bench -m model.powerinfer.gguf -p 0 -n 64 -t 1,2,4 --sparsity predictor,exact,dense
  powerinfer-bench -m model.powerinfer.gguf --vram-budget 0,4,8 --depth 0,2048 -o json
  powerinfer-bench -m a.gguf -m b.gguf -o csv | head -n -1 > rows.csv

Times are those of forwards; sampling is apart. The last line of standard output is one JSON object, with the raw
seconds of every repetition, machine, versions and command; -o json prints nothing else. Run it on an idle machine."""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    from powerinfer_py.cli.values import integer, nonempty_text, vram_budget
    from powerinfer_py.config import CacheType, Sparsity

    count, size = integer(1), integer(0)
    parser = command_parser(
        PROG,
        _DESCRIPTION,
        _EPILOG,
    )

    def add_list(names: tuple[str, ...], read: Callable[[str], T], metavar: str, help_text: str) -> None:
        parser.add_argument(*names, metavar=metavar, type=listed(read), action="extend", help=help_text)

    parser.add_argument("-m", "--model", metavar="FILE", required=True, action="append", help="model file; may repeat")
    add_list(("-p", "--n-prompt"), size, "N,...", "tokens of the prompt; 0 for no such test (default: 512)")
    add_list(("-n", "--n-gen"), size, "N,...", "tokens to decode; 0 for no such test (default: 128)")
    add_list(("-d", "--depth", "--n-depth"), size, "N,...", "tokens in the cache before the test (default: 0)")
    parser.add_argument("-r", "--repetitions", metavar="N", type=count, default=5, help="repetitions (default: 5)")
    add_list(("-t", "--threads"), integer(1, 1024), "N,...", "CPU threads (default: physical cores)")
    add_list(("-b", "--batch-size"), count, "N,...", "most prompt tokens of one forward (default: 512)")
    add_list(("--sparsity",), choice(Sparsity), "MODE,...", f"{', '.join(Sparsity)} (default: auto)")
    add_list(("--vram-budget",), vram_budget, "GIB,...", "GPU memory the process may use (default: unset)")
    add_list(("-ctk", "--cache-type-k"), choice(CacheType), "TYPE,...", "how keys are stored: f16 or q8_0")
    add_list(("-ctv", "--cache-type-v"), choice(CacheType), "TYPE,...", "how values are stored: f16 or q8_0")
    parser.add_argument("--gpu-index", metavar="FILE", type=nonempty_text, help="file that says which neurons go there")
    parser.add_argument("--no-warmup", action="store_true", help="time the first run too")
    parser.add_argument("--probe-mib", metavar="N", type=count, default=2048, help="the probe's buffer (default: 2048)")
    parser.add_argument("-o", "--output", choices=("md", "csv", "json"), default="md", help="format (default: md)")
    parser.add_argument("--json", action="store_const", const="json", dest="output", help="the same as -o json")
    parser.add_argument("--version", action="version", version=version_line(PROG))
    return parser


def listed(read: Callable[[str], T]) -> Callable[[str], list[T]]:
    """A reader of values with commas between them."""

    def read_all(text: str) -> list[T]:
        return [read(part) for part in text.split(",")]

    return read_all


def choice(names: type) -> Callable[[str], str]:
    """A reader of one of an enumeration's values."""
    known = [str(name) for name in names]  # type: ignore[attr-defined]  # an enumeration iterates over its members

    def read(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"expected one of {', '.join(known)}, not {text!r}")
        return text

    return read


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; argparse leaves through SystemExit for usage errors and --help."""
    return run_command(PROG, lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if not any(arguments.n_prompt or [512]) and not any(arguments.n_gen or [128]):
        parser.error("nothing to measure: both -p and -n are 0")
    # torch takes a second to import, which a usage error need not wait for.
    from powerinfer_py.cli.bench.execution import execute

    return execute(arguments, argv)
