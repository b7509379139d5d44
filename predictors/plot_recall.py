"""Draws what `compare_methods.py` measured: recall and the share of neurons named, per layer and method.

    python predictors/plot_recall.py predictors/results/NAME.json -o recall.png

The last line is one JSON object: per method, the mean over layers of neurons named for each one that fires. Needs the
`plot` extra.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from powerinfer_py.cli.command import run_command
from powerinfer_py.errors import FileFormatError
from powerinfer_py.predictor.files import read_json
from powerinfer_py.profiler.plot import require_picture, save_picture

KEYS = ("layer", "recall", "precision", "predicted_share", "fired_share", "bytes")


def read_layers(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Per method the figures of each layer. Raises FileFormatError for a file of another kind."""
    layers = read_json(path).get("layers")
    entries = [entry for of_method in layers.values() for entry in of_method] if isinstance(layers, dict) else []
    if not entries or not all(isinstance(entry, dict) and set(KEYS) <= set(entry) for entry in entries):
        raise FileFormatError("expected what compare_methods.py writes", path=path)
    assert isinstance(layers, dict)
    return layers


def named_per_fired(layers: Sequence[dict[str, Any]]) -> float:
    """Neurons named for each one that fires, the mean over layers in which any fires."""
    ratios = [layer["predicted_share"] / layer["fired_share"] for layer in layers if layer["fired_share"]]
    return sum(ratios) / max(1, len(ratios))


def draw(layers: dict[str, list[dict[str, Any]]], output: Path) -> None:
    """Writes the picture; its format follows the suffix of `output`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 7), layout="constrained")
    recall, share = figure.subplots(2, 1, sharex=True)
    for method, entries in layers.items():
        numbers = [entry["layer"] for entry in entries]
        recall.plot(numbers, [entry["recall"] for entry in entries], marker=".", label=method)
        share.plot(numbers, [entry["predicted_share"] for entry in entries], marker=".", label=method)
    first = next(iter(layers.values()))
    share.plot([e["layer"] for e in first], [e["fired_share"] for e in first], color="black", ls=":", label="fire")
    recall.set(ylabel="recall")
    share.set(ylabel="share of neurons named", xlabel="layer", ylim=(0, None))
    for axes in (recall, share):
        axes.legend()
        axes.xaxis.get_major_locator().set_params(integer=True)
    save_picture(figure, output)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="recall and share of neurons named, per layer and method")
    parser.add_argument("results", type=Path, help="JSON file of compare_methods.py")
    parser.add_argument("-o", "--output", type=Path, default=Path("recall.png"))
    arguments = parser.parse_args(argv)

    def run() -> int:
        require_picture(arguments.output)
        layers = read_layers(arguments.results)
        draw(layers, arguments.output)
        print(json.dumps({method: named_per_fired(entries) for method, entries in layers.items()}))
        return 0

    return run_command("plot_recall", run)


if __name__ == "__main__":
    raise SystemExit(main())
