"""Draws how few neurons do most of the work: share of neurons against share of activations, a curve per layer.

    python profiling/plot_hot_neurons.py ACTIVATION_FOLDER [-o hot_neurons.png] [--share 0.8]

ACTIVATION_FOLDER holds `activation_{i}.pt`. The last line is one JSON object: the share of neurons, per layer and over
all, that captures the given share of activations. Needs the `plot` extra.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from powerinfer_py.cli.command import run_command
from powerinfer_py.errors import OptionError
from powerinfer_py.placement.statistics.layer_files import captured_shares, read_activations
from powerinfer_py.profiler.plot import require_picture, save_picture


def hot_share(counts: npt.NDArray[np.float64], share: float) -> float:
    """The smallest share of neurons that captures `share` of the activations; 0.0 where nothing fired."""
    captured = captured_shares(counts)
    return 0.0 if captured[-1] == 0 else float(np.searchsorted(captured, share, side="left") / len(counts))


def draw(layers: Sequence[npt.NDArray[np.float64]], share: float, output: Path) -> None:
    """Writes the picture; its format follows the suffix of `output`."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
    for index, (counts, colour) in enumerate(zip(layers, colours, strict=True)):
        label = f"layer {index}" if index in (0, len(layers) - 1) else None
        axes.plot(np.linspace(0, 1, len(counts) + 1), captured_shares(counts), color=colour, lw=1.2, label=label)
    axes.axhline(share, color="grey", ls=":", lw=1)
    axes.set(xlabel="share of neurons, most active first", ylabel="share of activations", xlim=(0, 1), ylim=(0, 1.01))
    axes.set_title(f"{len(layers)} layers of {len(layers[0])} neurons")
    axes.legend(loc="lower right")
    save_picture(figure, output)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="cumulative activation curve of every layer")
    parser.add_argument("folder", type=Path, help="folder with activation_{i}.pt")
    parser.add_argument("-o", "--output", type=Path, default=Path("hot_neurons.png"))
    parser.add_argument("--share", type=float, default=0.8, help="share of activations to capture (default 0.8)")
    arguments = parser.parse_args(argv)

    def run() -> int:
        require_picture(arguments.output)
        if not 0 < arguments.share <= 1:
            raise OptionError("--share must lie above 0 and at most 1")
        layers = read_activations(arguments.folder)
        draw(layers, arguments.share, arguments.output)
        per_layer = [hot_share(counts, arguments.share) for counts in layers]
        overall = float(np.average(per_layer, weights=[len(counts) for counts in layers]))
        print(json.dumps({"share_of_activations": arguments.share, "share_of_neurons": overall, "layers": per_layer}))
        return 0

    return run_command("plot_hot_neurons", run)


if __name__ == "__main__":
    raise SystemExit(main())
