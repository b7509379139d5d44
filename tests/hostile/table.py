"""The outcomes of all cases as figures (docs/results/hostile_files.json) and as the table in docs/reliability.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hostile.running import Outcome

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "docs" / "results" / "hostile_files.json"
BEGIN, END = "<!-- hostile files: begin -->\n", "<!-- hostile files: end -->"


def figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Counts and worst cases, over all and for each clause of the checklist."""
    clauses: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        clauses.setdefault(outcome.case.clause, []).append(outcome)
    return _row(outcomes) | {"clauses": {clause: _row(own) for clause, own in clauses.items()}}


def _row(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "cases": len(outcomes),
        "to_refuse": sum(outcome.case.error is not None for outcome in outcomes),
        "to_accept": sum(outcome.case.error is None for outcome in outcomes),
        "accepted_wrongly": sum(outcome.accepted_wrongly for outcome in outcomes),
        "refused_wrongly": sum(outcome.error is not None and outcome.case.error is None for outcome in outcomes),
        "crashes": sum(outcome.crashed for outcome in outcomes),
        "worst_bytes": max(outcome.bytes for outcome in outcomes),
        "worst_seconds": round(max(outcome.seconds for outcome in outcomes), 3),
    }


def as_json(values: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """The result file: the figures, and what each case took, a line a case."""
    samples = ",\n".join(
        f"{json.dumps(o.case.id)}: {json.dumps({'error': o.error, 'seconds': round(o.seconds, 4), 'bytes': o.bytes})}"
        for o in outcomes
    )
    return f'{json.dumps(values, indent=1)[:-2]},\n"samples": {{\n{samples}\n}}}}\n'


def table(values: dict[str, Any]) -> str:
    """The figures as a table in Markdown."""
    columns = ("cases", "to refuse", "to accept", "accepted wrongly", "refused wrongly", "crashes")
    lines = [
        "| checklist | " + " | ".join(columns) + " | worst memory | worst time |",
        "|---|" + "---:|" * 8,
    ]
    for name, row in [*values["clauses"].items(), ("**all**", values)]:
        counts = " | ".join(str(row[column.replace(" ", "_")]) for column in columns)
        lines.append(f"| {name} | {counts} | {row['worst_bytes'] / 2**20:.1f} MiB | {row['worst_seconds']:.2f} s |")
    return "\n".join(lines) + "\n"


def in_document(text: str) -> str:
    """The table that stands in the document's text."""
    return text.split(BEGIN)[1].split(END)[0]


def with_table(text: str, values: dict[str, Any]) -> str:
    """The document's text with the table replaced."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table(values) + END + rest.split(END, 1)[1]
