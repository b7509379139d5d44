"""An `Explanation` as a picture: how much of each layer fired for each token, and how few neurons did most of it.

Needs matplotlib, the `plot` extra. Under the final name there is a whole picture or none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from powerinfer_py.generation.explanation import Explanation, Phase
from powerinfer_py.profiler.plot import require_matplotlib, save_picture
from powerinfer_py.profiler.report import HOT_SHARE, curve


def draw_explanation(explanation: Explanation, output: Path) -> None:
    """Writes the picture in the format of the suffix. Raises as `require_matplotlib` and `write_bytes`."""
    require_matplotlib(output)
    # A figure made without pyplot opens no window, whatever backend the user has configured.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_map(figure, left, explanation)
    _draw_curves(right, explanation)
    save_picture(figure, output)


def _draw_map(figure: Any, axes: Any, explanation: Explanation) -> None:
    shares = 100 * explanation.fired_by_token.T / explanation.n_ff  # (n_layer, tokens)
    image = axes.imshow(shares, aspect="auto", origin="lower", interpolation="nearest", cmap="viridis", vmin=0)
    figure.colorbar(image, ax=axes, label="neurons fired, %")
    phases = explanation.token_phases
    starts = [i for i in range(1, len(phases)) if phases[i] is Phase.DECODE and phases[i - 1] is Phase.PROMPT]
    for start in starts:
        axes.axvline(start - 0.5, color="white", lw=1, ls="--")
    axes.set(xlabel="token; dashed: decoding begins" if starts else "token", ylabel="layer")
    axes.yaxis.get_major_locator().set_params(integer=True)


def _draw_curves(axes: Any, explanation: Explanation) -> None:
    import matplotlib as mpl

    colours = mpl.colormaps["viridis"](np.linspace(0, 0.9, explanation.n_layer))
    shares = np.linspace(0, 1, len(curve(explanation.fired[0])))
    for layer, colour in enumerate(colours):
        label = f"layer {layer}" if layer in (0, explanation.n_layer - 1) else None
        axes.plot(shares, curve(explanation.fired[layer]), color=colour, lw=1.1, label=label)
    axes.plot(shares, curve(explanation.fired.reshape(-1)), color="black", lw=1.8, label="all neurons")
    axes.axhline(HOT_SHARE, color="grey", ls=":", lw=1)
    axes.set(xlabel="share of neurons, most active first", ylabel="share of activations", xlim=(0, 1), ylim=(0, 1.01))
    axes.legend(loc="lower right")
