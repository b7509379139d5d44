"""Rewrites the tables of speeds in the documents from `docs/results/*.json`; nothing is measured here.

    python tools/write_performance.py [--check] [DOCUMENT ...]

In docs/performance.md and README.md what stands between such marks is replaced. LABEL=FILE names a file that
compare_peers.py or powerinfer-bench wrote, in docs/results; a plus sign in a label is a space.

    <!-- speeds Q4_0=relullama-7b-8-layers-q4_0.json -->      rates, bytes and bandwidth of each engine
    <!-- ratios Q4_0=....json F16=....json -->                ratios of this package to its peers
    <!-- rows Q4_0=bench-....json -->                        rows of powerinfer-bench
    <!-- end -->

--check writes nothing and fails where a document is not what it would be.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from powerinfer_py.cli.command import run_command
from powerinfer_py.cli.streams import remark
from powerinfer_py.errors import FileFormatError
from powerinfer_py.output_files import write_bytes
from powerinfer_py.predictor.files import read_json

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
DOCUMENTS = (ROOT / "docs" / "performance.md", ROOT / "README.md")
BLOCK = re.compile(r"(<!-- (speeds|ratios|rows) (\S+(?: \S+)*) -->\n).*?(<!-- end -->)", re.DOTALL)
NAMES = {"llama.cpp dense": "llama.cpp, dense", "transformers": "transformers, dense"}
Results = Sequence[tuple[str, dict[str, Any]]]


def engine_name(name: str) -> str:
    """As documents call an engine of a result file."""
    return f"this package, `{name.removeprefix('ours ')}`" if name.startswith("ours ") else NAMES.get(name, name)


def speeds(results: Results) -> list[str]:
    """A row for each engine of each file."""
    lines = [
        "| weights | engine | decode, tokens/s | prompt, tokens/s | MB a token | GB/s | of the bandwidth | neurons |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for label, result in results:
        for name, row in result["summary"].items():
            if name == "read bandwidth":
                continue
            rates = (row.get(f"{what}_tokens_per_s", {}).get("median") for what in ("decode", "prompt"))
            cells = [label, engine_name(name), *(_number(rate) for rate in rates)]
            if "bytes_per_token" in row:
                cells += [
                    f"{sum(row['bytes_per_token'].values()) / 1e6:.0f}",
                    f"{row['gb_per_s']['median']:.1f}",
                    f"{row['share_of_bandwidth']:.0%}",
                    f"{row['share_computed']:.1%}",
                ]
            lines.append(f"| {' | '.join([*cells, *[''] * (8 - len(cells))])} |")
    return lines


def ratios(results: Results) -> list[str]:
    """A row for each pair of engines: median, lowest and highest over the rounds."""
    lines = ["| ratio, median (lowest to highest) | decode | prompt |", "|---|---:|---:|"]
    for label, result in results:
        pairs: dict[tuple[str, str], dict[str, str]] = {}
        for ratio in result["ratios"]:
            text = f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
            pairs.setdefault((ratio["ours"], ratio["peer"]), {})[ratio["what"]] = text
        for (ours, peer), texts in pairs.items():
            who = f"{label}: {engine_name(ours)}, against {engine_name(peer)}"
            lines.append(f"| {who} | {texts.get('decode', '')} | {texts.get('prompt', '')} |")
    return lines


def rows(results: Results) -> list[str]:
    """The rows of powerinfer-bench, the columns that tell them apart and what was measured."""
    lines = [
        "| weights | mode | threads | test | tokens/s | range | MB a token | GB/s | probe | neurons | host peak |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for label, result in results:
        for row in result["rows"]:
            rate = row["tokens_per_s"]
            cells = [
                label,
                f"`{row['sparsity']}`",
                str(row["threads"]),
                row["test"],
                _number(rate["median"]),
                f"{_number(rate['min'])} to {_number(rate['max'])}",
                _number(row["bytes_per_token"]["total"] / 1e6),
                f"{row['gb_per_s']:.1f}",
                f"{row['read_bandwidth_gb_per_s']:.1f}",
                f"{row['share_computed']:.1%}",
                f"{row['host_peak_bytes'] / 2**20:.0f} MiB",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


RENDERERS: dict[str, Callable[[Results], list[str]]] = {"speeds": speeds, "ratios": ratios, "rows": rows}


def with_tables(document: str, results: Path = RESULTS) -> str:
    """The document with its tables made anew. Raises FileFormatError for a file that is no such result."""

    def table(match: re.Match[str]) -> str:
        head, kind, words, end = match.groups()
        named = [word.partition("=") for word in words.split()]
        files = [(label.replace("+", " "), results / file) for label, _, file in named]
        try:
            lines = RENDERERS[kind]([(label, read_json(path)) for label, path in files])
        except (KeyError, TypeError, ValueError, AttributeError):
            names = ", ".join(path.name for _, path in files)
            raise FileFormatError(f"expected what compare_peers.py or powerinfer-bench writes: {names}") from None
        return head + "\n".join(lines) + "\n" + end

    return BLOCK.sub(table, document)


def _number(rate: float | None) -> str:
    """Three digits, or as many as stand before the point."""
    if rate is None:
        return ""
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 10 else f"{rate:.2f}"


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
