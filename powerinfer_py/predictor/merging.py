"""Folders that several machines filled with some layers each, put together to the folder that one would have filled.

Invariant: the layers of the result were all made with the same settings, ranks included, and each file is the one that
its folder recorded; the bytes are those of a run that was never split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from powerinfer_py.errors import FileFormatError, OptionError, printable
from powerinfer_py.output_files import require_writable_folder
from powerinfer_py.predictor.files import read_json
from powerinfer_py.predictor.folder import STATE, LayerSummary, PredictorFolder


def merge_folders(sources: Sequence[Path], output: Path) -> tuple[LayerSummary, ...]:
    """Fills `output`, new or begun with the same settings; returns the figures of all layers, layer 0 first.

    Raises OptionError where folders differ in their settings, a layer differs between them, or one is in none of them;
    FileFormatError for a folder without a record, and for a layer whose file is not the recorded one.
    """
    if not sources:
        raise OptionError("no folder to merge")
    require_writable_folder(output)
    records = [_record(source) for source in sources]
    settings: dict[str, Any] = records[0]["settings"]
    ranks: list[int] = records[0]["ranks"]
    _require_same(sources, records)
    found: dict[int, tuple[PredictorFolder, LayerSummary]] = {}
    for source, record in zip(sources, records, strict=True):
        folder = PredictorFolder(source, settings)
        for layer in map(int, record["layers"]):
            summary = folder.finished(layer)
            if summary is None:
                raise FileFormatError(f"model_{layer}.pt is not the file that was recorded", path=source)
            before = found.setdefault(layer, (folder, summary))
            if before[1] != summary:
                raise OptionError(f"layer {layer} of {_name(source)} is not that of {_name(before[0].path)}")
    if missing := [layer for layer in range(len(ranks)) if layer not in found]:
        raise OptionError(f"layer {missing[0]} is in none of these folders ({len(missing)} of {len(ranks)} missing)")
    result = PredictorFolder(output, settings)
    result.set_ranks(ranks)
    for layer in range(len(ranks)):
        result.adopt(*found[layer])
    result.complete(len(ranks))
    return tuple(found[layer][1] for layer in range(len(ranks)))


def _require_same(sources: Sequence[Path], records: Sequence[dict[str, Any]]) -> None:
    first, settings = _name(sources[0]), records[0]["settings"]
    for source, record in zip(sources, records, strict=True):
        theirs = record["settings"]
        for name in [*settings, *theirs]:
            if theirs.get(name) != settings.get(name):
                what = printable(name.replace("_", " "))
                raise OptionError(f"{_name(source)}: was made with another {what} than {first}")
        if record["ranks"] != records[0]["ranks"]:
            raise OptionError(f"{_name(source)}: has other ranks than {first}")


def _record(folder: Path) -> dict[str, Any]:
    record = read_json(folder / STATE)
    layers, ranks = record.get("layers"), record.get("ranks")
    if (
        not isinstance(record.get("settings"), dict)
        or not isinstance(layers, dict)
        or not isinstance(ranks, list)
        or not all(layer.isdecimal() and int(layer) < len(ranks) for layer in layers)
    ):
        raise FileFormatError("is no record of a training that has begun", path=folder / STATE)
    return record


def merged_dict(layers: Sequence[LayerSummary]) -> dict[str, Any]:
    """As JSON values."""
    return {"layers": [asdict(layer) for layer in layers], "bytes": sum(layer.bytes for layer in layers)}


def _name(path: Path) -> str:
    return printable(str(path))
