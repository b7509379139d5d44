"""Rewrites the tables in the READMEs of the workbench from recipes and results; nothing is measured here.

    python tools/write_tables.py [--check]

In predictors/README.md and profiling/README.md what stands between the marks of `results` is made from `results/*.json`
beside it, and between those of `recipes` from `recipes/*.toml`. --check writes nothing and fails where a README is not
what it would be.
"""

from __future__ import annotations

import argparse
import json
import math
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from powerinfer_py.cli.command import run_command
from powerinfer_py.cli.streams import remark
from powerinfer_py.errors import FileFormatError, PowerInferError
from powerinfer_py.output_files import write_bytes
from powerinfer_py.predictor.files import read_json

ROOT = Path(__file__).parent.parent
FOLDERS = ("predictors", "profiling")
NONE = "No results yet.\n"


def result_tables(folder: Path) -> str:
    """A heading and a table for each result, by name. Raises FileFormatError for a file of another kind."""
    parts = []
    for path in sorted(folder.glob("*.json")):
        result = read_json(path)
        try:
            parts.append(RENDERERS[result["script"]](path.stem, result))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise FileFormatError(f"expected what {' or '.join(RENDERERS)} writes", path=path) from None
    return "\n".join(parts) or NONE


def recipe_table(folder: Path) -> str:
    """A row a family: its options, and what was seen of it at full size."""
    recipes = {path: tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.toml"))}
    names = list(dict.fromkeys(name for recipe in recipes.values() for name in recipe["options"]))
    rows = [["family", *(name.replace("_", " ") for name in names), "measured"], ["---"] * (len(names) + 2)]
    for path, recipe in recipes.items():
        options = [str(recipe["options"].get(name, "")) for name in names]
        rows.append([f"[{recipe['family']}](recipes/{path.name})", *options, recipe["measured"]])
    return _lines(rows)


def _methods(name: str, result: dict[str, Any]) -> str:
    speeds, perplexity = result["decode_tokens_per_s"], result["perplexity"]
    held_out = result["held_out_tokens"]
    seen = "a part of it" if held_out is None else f"{held_out} tokens of {', '.join(result['held_out'])}"
    made_from = f"{result['text_tokens']} tokens of {', '.join(result['texts'])}"
    rows = [
        ["method", "recall", "precision", "named", "named / fired", "KiB", "perplexity / dense", "decode tokens/s"],
        ["---"] * 8,
    ]
    for method, total in result["totals"].items():
        shares = [f"{total[key]:.2%}" for key in ("recall", "precision", "predicted_share")]
        ratio = f"{total['predicted_share'] / max(total['fired_share'], 1e-12):.2f}"
        speed = speeds.get(method)
        cells = [
            f"{total['bytes'] / 1024:.0f}",
            _worse(perplexity.get(method)),
            "-" if speed is None else f"{speed:.0f}",
        ]
        rows.append([method, *shares, ratio, *cells])
    lines = [
        f"### {name}: {result['model']}, made from {made_from}, measured on {seen}",
        "",
        _lines(rows),
        f"{_targets(result)} Of all (token, neuron) pairs {total['fired_share']:.2%} fire.",
    ]
    others = [f"{mode} {speed:.0f}" for mode, speed in speeds.items() if mode not in result["totals"]]
    if others:
        lines[-1] += f" Decode without predictors: {', '.join(others)} tokens/s."
    if "exact" in perplexity:
        compared = perplexity["exact"]["compared"]["perplexity"]
        lines[-1] += (
            f" Perplexity: dense {compared['value']:.2f} +- {compared['error']:.2f},"
            f" exact {_worse(perplexity['exact'])}."
        )
    return "\n".join([*lines, ""])


def _targets(result: dict[str, Any]) -> str:
    """What recall the methods were calibrated to."""
    before = [
        f"{method} was made before, calibrated to {'a recall that is not known' if target is None else f'{target:.1%}'}"
        for method, target in result["made_before"].items()
    ]
    return "; ".join([f"Calibrated to a recall of {result['target_recall']:.1%}", *before]) + "."


def _worse(perplexity: dict[str, Any] | None) -> str:
    """By how much the perplexity is above that of dense, with the error of the difference."""
    if perplexity is None:
        return "-"
    log_ratio = perplexity["compared"]["log_perplexity_ratio"]
    ratio = math.exp(log_ratio["value"])
    return f"{ratio - 1:+.3%} +- {ratio * log_ratio['error']:.3%}"


def _corpora(name: str, result: dict[str, Any]) -> str:
    rows = [["layer", "hot", "overlap", "captured", "best", "rank correlation"], ["---"] * 6]
    for row in [*result["layers"], result["overall"]]:
        shares = ["-" if row[key] is None else f"{row[key]:.1%}" for key in ("overlap", "captured", "best")]
        correlation = "-" if row["rank_correlation"] is None else f"{row['rank_correlation']:.3f}"
        layer = "all" if row["layer"] is None else str(row["layer"])
        rows.append([layer, f"{row['hot']} of {row['neurons']}", *shares, correlation])
    tokens = [f"{result[side]['name']} ({result[side].get('tokens', 'unknown')} tokens)" for side in ("a", "b")]
    heading = f"### {name}: hot set of {tokens[0]} at {result['share']:.0%}, held against {tokens[1]}"
    return "\n".join([heading, "", _lines(rows)])


RENDERERS: dict[str, Callable[[str, dict[str, Any]], str]] = {"compare_methods": _methods, "compare_corpora": _corpora}


def _lines(rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows).replace("| --- |", "|---|").replace(" --- |", "---|")


def with_block(readme: str, name: str, text: str) -> str:
    """The README with `text` between the marks of a name. Raises PowerInferError where it has none."""
    begin_mark, end_mark = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    head, begin, rest = readme.partition(begin_mark)
    _, end, tail = rest.partition(end_mark)
    if not begin or not end:
        raise PowerInferError(f"the README has no marks for its {name}")
    return head + begin + text + end + tail


def readme_of(folder: Path) -> tuple[str, str]:
    """The README as it is and as it would be."""
    before = (folder / "README.md").read_text(encoding="utf-8")
    after = with_block(before, "results", result_tables(folder / "results"))
    return before, with_block(after, "recipes", recipe_table(folder / "recipes"))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="the READMEs' tables from results/*.json and recipes/*.toml")
    parser.add_argument("--check", action="store_true", help="write nothing, fail where something would change")
    arguments = parser.parse_args(argv)

    def run() -> int:
        stale = []
        for name in FOLDERS:
            before, after = readme_of(ROOT / name)
            if before != after:
                stale.append(f"{name}/README.md")
                if not arguments.check:
                    write_bytes(ROOT / name / "README.md", after.encode())
        print(json.dumps({"changed": stale}))
        if stale and arguments.check:
            remark(f"not what results and recipes make of them: {', '.join(stale)}")
            return 1
        return 0

    return run_command("write_tables", run)


if __name__ == "__main__":
    raise SystemExit(main())
