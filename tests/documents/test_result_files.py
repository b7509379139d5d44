"""Every result file says where its figures come from, holds the samples that they were made of, and names no folder."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers_documents import ROOT

RESULTS = sorted(
    path.relative_to(ROOT)
    for path in ROOT.glob("**/results/*.json")
    if path.parts[-3] in {"docs", "predictors", "profiling", "tools"}
)
# Made before there was a header; each lacks a part of it. A file that is made again leaves this list.
WITHOUT_HEADER = {
    # Of another machine, before files had one.
    "docs/results/relullama-7b-8-layers-q4_0-avx512.json",
    # The record of one training, half an hour of two cores, which what ships was made from.
    "tools/results/demo_model.json",
}
# Names under which a result file keeps single measurements.
SAMPLES = {"samples", "seconds", "steps_s", "starts"}


@pytest.fixture
def header(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("result_header")


def load(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((ROOT / path).read_text(encoding="utf-8"))
    return result


def missing(header: ModuleType, result: dict[str, Any]) -> list[str]:
    """Keys of the header that a result lacks."""
    names = [name for name in header.REQUIRED if result.get(name) is None]
    for name, parts in header.REQUIRED.items():
        names += [f"{name}.{part}" for part in parts if part not in (result.get(name) or {})]
    return names


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for part in value.values():
            yield from strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)


def medians_without_samples(value: Any, where: str = "", held: bool = False) -> list[str]:
    """Places of medians that have no list of single measurements beside or above them."""
    if isinstance(value, list):
        return [place for i, part in enumerate(value) for place in medians_without_samples(part, f"{where}[{i}]", held)]
    if not isinstance(value, dict):
        return []
    held = held or any(value.get(name) for name in SAMPLES)
    found = [f"{where}.{key}" for key in value if re.match(r"median(_|$)", key) and not held]
    for key, part in value.items():
        found += medians_without_samples(part, f"{where}.{key}", held)
    return found


@pytest.mark.parametrize("path", RESULTS, ids=str)
def test_a_header_says_where_it_comes_from(header: ModuleType, path: Path) -> None:
    result = load(path)
    if str(path) in WITHOUT_HEADER:
        assert missing(header, result), "has its header: take it off the list"
        return
    assert missing(header, result) == []
    assert re.fullmatch(r"[0-9a-f]{12}", result["commit"]), "made from a checkout with changes"
    assert datetime.fromisoformat(result["date"]).tzinfo is not None
    assert (ROOT / result["command"][0]).is_file()
    assert result["machine"]["ram_bytes"] > 2**30


@pytest.mark.parametrize("path", RESULTS, ids=str)
def test_no_folder_of_a_machine_is_named(path: Path) -> None:
    assert [text for text in strings(load(path)) if re.search(r"(?:^|[\s=:'\"(,])[~]?/\w", text)] == []


@pytest.mark.parametrize("path", RESULTS, ids=str)
def test_medians_have_their_samples(path: Path) -> None:
    if str(path) != "docs/results/sparse_cost.json" or "median_s" in load(path):
        assert medians_without_samples(load(path)) == []


def test_what_is_looked_for_is_found(header: ModuleType) -> None:
    assert RESULTS
    assert {*WITHOUT_HEADER} <= {str(path) for path in RESULTS}
    whole = {name: dict.fromkeys(parts, 1) or "x" for name, parts in header.REQUIRED.items()}
    assert missing(header, whole) == []
    assert missing(header, {**whole, "date": None, "versions": {}}) == [
        "date",
        *(f"versions.{part}" for part in header.REQUIRED["versions"]),
    ]
    assert medians_without_samples({"a": {"median": 1}, "samples": []}) == [".a.median"]
    assert medians_without_samples({"a": [{"median_s": 1}]}) == [".a[0].median_s"]
    assert medians_without_samples({"a": [{"median_s": 1, "seconds": [1, 1]}]}) == []
