"""A benchmark's rows as Markdown, CSV and JSON. What a terminal shows of a path passes through `printable`."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

from powerinfer_py.cli.bench.combinations import Combination
from powerinfer_py.errors import printable
from powerinfer_py.generation.benchmark import Measurement

# Heading of a column and whether it is a number.
_COLUMNS = (
    ("model", False),
    ("size", True),
    ("sparsity", False),
    ("threads", True),
    ("budget", True),
    ("test", True),
    ("tokens/s", True),
    ("range", True),
    ("MB/token", True),
    ("GB/s", True),
    ("of bandwidth", True),
    ("neurons", True),
    ("GPU / CPU", True),
    ("host peak", True),
    ("GPU peak", True),
)


def row_dict(combination: Combination, measured: Measurement, passes: list[float], load_s: float) -> dict[str, Any]:
    """Everything about a row as JSON values. passes: GB/s of the probe, run just before."""
    return {
        **asdict(combination),
        "load_s": load_s,
        **measured.to_dict(),
        "read_bandwidth_gb_per_s": max(passes),
        "read_bandwidth_passes": passes,
        "share_of_bandwidth": measured.gb_per_s / max(passes),
    }


def markdown_head() -> str:
    """The two lines above the rows."""
    names = " | ".join(name for name, _ in _COLUMNS)
    rule = " | ".join("---:" if is_number else "---" for _, is_number in _COLUMNS)
    return f"| {names} |\n| {rule} |"


def markdown_row(row: dict[str, Any]) -> str:
    """One row."""
    rate = row["tokens_per_s"]
    budget = row["vram_budget"]
    cells = (
        printable(Path(row["model"]).name).replace("|", r"\|"),
        f"{row['size_bytes'] / 2**20:.1f} MiB",
        row["sparsity"],
        str(row["threads"]) + _unusual(row),
        "-" if budget is None else "all" if budget == -1 else f"{budget:g} GiB",
        row["test"],
        f"{rate['median']:.2f}",
        f"{rate['min']:.2f} to {rate['max']:.2f}",
        f"{row['bytes_per_token']['total'] / 1e6:.1f}",
        f"{row['gb_per_s']:.1f}",
        f"{row['share_of_bandwidth']:.0%}",
        f"{row['share_computed']:.1%}",
        f"{row['gpu_share']:.0%} / {row['cpu_share']:.0%}",
        _mebibytes(row["host_peak_bytes"]),
        _mebibytes(row["device_peak_bytes"]),
    )
    return f"| {' | '.join(cells)} |"


def csv_head(row: dict[str, Any]) -> str:
    """The names of the columns of `csv_row`."""
    return _csv_line(_flat(row).keys())


def csv_row(row: dict[str, Any]) -> str:
    """The values of a row; nested ones have columns of their own, lists are joined by spaces."""
    return _csv_line(_flat(row).values())


def _unusual(row: dict[str, Any]) -> str:
    """What a row was loaded with beside the threads where that is not the default."""
    parts = [] if row["batch_size"] == 512 else [f"-b {row['batch_size']}"]
    parts += [
        f"{flag} {row[key]}" for flag, key in (("-ctk", "cache_type_k"), ("-ctv", "cache_type_v")) if row[key] != "f16"
    ]
    return f" ({', '.join(parts)})" if parts else ""


def _mebibytes(n_bytes: int | None) -> str:
    return "unknown" if n_bytes is None else f"{n_bytes / 2**20:.0f} MiB" if n_bytes else "0"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = " ".join(map(str, value)) if isinstance(value, list) else value
    return result


def _csv_line(values: Any) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(values)
    return buffer.getvalue()
