"""Rewrites the tables of the documents from `docs/results/*.json`; nothing is measured here.

    python tools/write_performance.py [--check] [DOCUMENT ...]

In docs/performance.md, docs/reliability.md, docs/gpu-index.md and README.md what stands between such marks is replaced.
LABEL=FILE names a file in docs/results that a tool wrote; a plus sign in a label is a space; where no label is shown
FILE alone will do.

    <!-- speeds Q4_0=....json -->               rates, bytes and bandwidth of each engine (compare_peers.py)
    <!-- ratios Q4_0=....json F16=....json -->  ratios of this package to its peers (the same)
    <!-- rows Q4_0=....json -->                 rows of powerinfer-bench (record_bench.py)
    <!-- reading FILE -->                       GB/s of rows (measure_row_reading.py)
    <!-- caches SmolLM2=....json -->            types of the KV cache (compare_cache_types.py)
    <!-- turns Q4_0=....json -->                powerinfer-bench against powerinfer-run (compare_bench_and_run.py)
    <!-- step FILE -->                          where a token's time goes (plot_decode_step.py)
    <!-- cost FILE -->                          the line through time against share (plot_sparse_cost.py)
    <!-- start FILE -->                         seconds and memory of a start (measure_start.py)
    <!-- origins NAME=....json -->              date, commit, CPU, kernels and torch of each file
    <!-- longer FILE -->                        the last runs of make fuzz, soak, mutants (record_long_runs.py)
    <!-- solver FILE -->                        seconds and gaps of the placement (measure_solver.py)
    <!-- captured FILE -->                      what splits of a test model capture (the same)
    <!-- gpu Q4_0=....json -->                  a model at several budgets of a GPU (measure_gpu.py)
    <!-- end -->

--check writes nothing and fails where a document is not what it would be.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from performance_tables import RENDERERS

from powerinfer_py.cli.command import run_command
from powerinfer_py.cli.streams import remark
from powerinfer_py.errors import FileFormatError
from powerinfer_py.output_files import write_bytes
from powerinfer_py.predictor.files import read_json

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
DOCUMENTS = (
    *(ROOT / "docs" / f"{name}.md" for name in ("performance", "reliability", "gpu-index")),
    ROOT / "README.md",
)
BLOCK = re.compile(rf"(<!-- ({'|'.join(RENDERERS)}) (\S+(?: \S+)*) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(document: str, results: Path = RESULTS) -> str:
    """The document with its tables made anew. Raises FileFormatError for a file that is no such result."""

    def table(match: re.Match[str]) -> str:
        head, kind, words, end = match.groups()
        named = [word.rpartition("=") for word in words.split()]
        files = [(label.replace("+", " "), results / file) for label, _, file in named]
        try:
            lines = RENDERERS[kind]([(label, read_json(path)) for label, path in files])
        except (KeyError, TypeError, ValueError, AttributeError):
            names = ", ".join(path.name for _, path in files)
            raise FileFormatError(f"expected what the tool of `{kind}` writes: {names}") from None
        return head + "\n".join(lines) + "\n" + end

    return BLOCK.sub(table, document)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", nargs="*", type=Path, default=list(DOCUMENTS), metavar="DOCUMENT")
    parser.add_argument("--check", action="store_true", help="write nothing, fail where something would change")
    arguments = parser.parse_args(argv)

    def run() -> int:
        stale = []
        for path in arguments.documents:
            before = path.read_text(encoding="utf-8")
            after = with_tables(before)
            if before == after:
                continue
            stale.append(path)
            if arguments.check:
                remark(f"{path}: its tables are not those of docs/results")
            else:
                write_bytes(path, after.encode())
        return int(arguments.check and bool(stale))

    return run_command("write_performance", run)


if __name__ == "__main__":
    raise SystemExit(main())
