"""A picture of a split: what of each layer is on the GPU, and what other budgets are expected to give."""

from __future__ import annotations

from pathlib import Path

from powerinfer_py.cli.gpuidx.output import layer_rows
from powerinfer_py.cli.gpuidx.split import Split
from powerinfer_py.profiler.plot import require_matplotlib, save_picture


def draw_split(split: Split, output: Path) -> None:
    """Writes the picture in the format of the suffix. Raises as `require_matplotlib` and `write_bytes`."""
    require_matplotlib(output)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = layer_rows(split)
    layers = [row["layer"] for row in rows]
    left.bar(layers, [row["share"] for row in rows], label="neurons")
    if split.frequencies is not None:
        left.plot(layers, [row["captured"] for row in rows], "o-", color="black", ms=3, label="activations")
    left.set(xlabel="layer", ylabel="share on the GPU", ylim=(0, 1.02))
    left.legend(loc="lower right")
    points = [(point.budget_gib, 1 / point.seconds) for point in split.curve if point.seconds is not None]
    right.plot([gib for gib, _ in points], [speed for _, speed in points], "o-", ms=4)
    right.set(xlabel="GPU memory of the process, GiB (0: CPU only)", ylabel="expected tokens/s (estimate)")
    right.set_ylim(bottom=0)
    figure.suptitle(
        f"{split.config.architecture}, {len(rows)} layers of {split.config.n_ff} neurons, {split.method}", fontsize=11
    )
    save_picture(figure, output)
