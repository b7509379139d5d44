"""A picture of activation statistics: how few neurons do most of the work, and how sparse each layer is.

Needs matplotlib, the `plot` extra. Under the final name there is a whole picture or none.
"""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from powerinfer_py.errors import OptionError, UnsupportedError, printable
from powerinfer_py.output_files import require_writable, write_bytes
from powerinfer_py.placement.statistics.profile import ActivationProfile
from powerinfer_py.profiler.report import HOT_SHARE, curve, layer_figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")


def require_matplotlib(output: Path) -> None:
    """Raises UnsupportedError without matplotlib, OptionError for a suffix other than .png, .svg and .pdf."""
    if output.suffix.lower() not in SUFFIXES:
        raise OptionError(f"{printable(str(output))}: the name of a picture must end in {', '.join(SUFFIXES)}")
    if find_spec("matplotlib") is None:
        raise UnsupportedError("a picture needs matplotlib, which is not installed: pip install 'powerinfer-py[plot]'")


def require_picture(output: Path) -> None:
    """What would keep a picture from being made, before the work: as `require_matplotlib` and `require_writable`."""
    require_matplotlib(output)
    require_writable(output)


def save_picture(figure: Figure, output: Path) -> None:
    """Writes a figure in the format of the suffix, beside its place and then into it. Raises as `write_bytes`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=output.suffix.lower()[1:], dpi=120)
    write_bytes(output, buffer.getvalue())


def draw_profile(profile: ActivationProfile, output: Path) -> None:
    """Writes the picture in the format of the suffix. Raises as `require_matplotlib` and `write_bytes`."""
    require_matplotlib(output)
    import matplotlib as mpl

    # A figure made without pyplot opens no window, whatever backend the user has configured.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.9, profile.model.n_layer))
    _draw_curves(left, profile, colours)
    _draw_layers(right, profile)
    model = profile.model
    figure.suptitle(
        f"{model.architecture}, {model.n_layer} layers of {model.n_ff} neurons, {profile.n_tokens} tokens", fontsize=11
    )
    save_picture(figure, output)


def _draw_curves(axes: Any, profile: ActivationProfile, colours: Any) -> None:
    fired = profile.counts.fired
    shares = np.linspace(0, 1, len(curve(fired[0])))
    for layer, colour in enumerate(colours):
        label = f"layer {layer}" if layer in (0, len(fired) - 1) else None
        axes.plot(shares, curve(fired[layer]), color=colour, lw=1.1, label=label)
    axes.plot(shares, curve(fired.reshape(-1)), color="black", lw=1.8, label="all neurons")
    axes.axhline(HOT_SHARE, color="grey", ls=":", lw=1)
    axes.set(xlabel="share of neurons, most active first", ylabel="share of activations", xlim=(0, 1), ylim=(0, 1.01))
    axes.legend(loc="lower right")


def _draw_layers(axes: Any, profile: ActivationProfile) -> None:
    figures = layer_figures(profile)
    layers = [figure.layer for figure in figures]
    axes.plot(layers, [figure.silent for figure in figures], marker="o", ms=3, label="silent")
    axes.plot(layers, [figure.hot_share for figure in figures], marker="s", ms=3, label=f"hot at {HOT_SHARE:.0%}")
    if profile.model.has_predictors:
        axes.plot(layers, [figure.predicted for figure in figures], marker="^", ms=3, label="predicted")
    axes.set(xlabel="layer", ylabel="share of neurons", ylim=(0, 1.01))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="best")
