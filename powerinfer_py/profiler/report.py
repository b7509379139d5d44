"""What activation statistics say about a model: how sparse each layer is, and how few neurons do most of its work."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from powerinfer_py.placement.statistics.counts import Counts
from powerinfer_py.placement.statistics.layer_files import captured_shares
from powerinfer_py.placement.statistics.profile import ActivationProfile

# Shares of the neurons, hottest first, at which tables show the share of activations they capture.
POINTS = (0.05, 0.1, 0.2, 0.3, 0.5)
HOT_SHARE = 0.8
CURVE_STEPS = 100


@dataclass(frozen=True)
class SparsityFigures:
    """One layer, or all (layer None). Shares are of (token, neuron) pairs unless another whole is named.

    silent: share that did not fire. never_fired: neurons that fired for no token. hot: the fewest neurons that capture
    80 % of the activations; hot_share: as a share of all neurons. captured: share of the activations that the hottest
    5, 10, 20, 30 and 50 % of the neurons capture. predicted: share that the predictor named; recall: share of firing
    ones that it named; precision: share of named ones that fired; None without predictors or where there were none.
    """

    layer: int | None
    neurons: int
    silent: float
    never_fired: int
    hot: int
    hot_share: float
    captured: tuple[float, ...]
    predicted: float | None = None
    recall: float | None = None
    precision: float | None = None


def layer_figures(profile: ActivationProfile) -> list[SparsityFigures]:
    """The figures of every layer."""
    counts = profile.counts
    return [
        _figures(
            layer,
            fired,
            profile.n_tokens,
            None if counts.predicted is None else counts.predicted[layer],
            None if counts.both is None else counts.both[layer],
        )
        for layer, fired in enumerate(counts.fired)
    ]


def overall_figures(profile: ActivationProfile) -> SparsityFigures:
    """The figures of all layers' neurons as one pool, as a budget for the whole model meets them."""
    counts = profile.counts
    predicted = None if counts.predicted is None else counts.predicted.reshape(-1)
    both = None if counts.both is None else counts.both.reshape(-1)
    return _figures(None, counts.fired.reshape(-1), profile.n_tokens, predicted, both)


def curve(fired: Counts) -> list[float]:
    """Share of the activations that the hottest 0, 1, .. 100 % of the neurons capture (their number rounded down)."""
    captured = captured_shares(fired.astype(np.float64))
    return [float(captured[step * len(fired) // CURVE_STEPS]) for step in range(CURVE_STEPS + 1)]


def report_dict(profile: ActivationProfile) -> dict[str, Any]:
    """Everything as JSON values; `curves` holds a curve a layer and one of the pool."""
    return {
        **profile.to_dict(),
        "captured_at": list(POINTS),
        "layers": [asdict(figures) for figures in layer_figures(profile)],
        "overall": asdict(overall_figures(profile)),
        "curves": {
            "layers": [curve(fired) for fired in profile.counts.fired],
            "overall": curve(profile.counts.fired.reshape(-1)),
        },
    }


def hot_count(captured: npt.NDArray[np.float64], share: float = HOT_SHARE) -> int:
    """The fewest neurons that capture `share` of the activations, given `captured_shares`; 0 where nothing fired."""
    return 0 if captured[-1] == 0 else int(np.searchsorted(captured, share, side="left"))


def _figures(
    layer: int | None, fired: Counts, n_tokens: int, predicted: Counts | None, both: Counts | None
) -> SparsityFigures:
    captured = captured_shares(fired.astype(np.float64))
    n_neurons, n_fired = len(fired), int(fired.sum())
    pairs = max(1, n_neurons * n_tokens)
    hot = hot_count(captured)
    predicted_share = recall = precision = None
    if predicted is not None and both is not None:
        n_predicted, n_both = int(predicted.sum()), int(both.sum())
        predicted_share = n_predicted / pairs
        recall = n_both / n_fired if n_fired else None
        precision = n_both / n_predicted if n_predicted else None
    return SparsityFigures(
        layer=layer,
        neurons=n_neurons,
        silent=1 - n_fired / pairs,
        never_fired=int((fired == 0).sum()),
        hot=hot,
        hot_share=hot / n_neurons,
        captured=tuple(float(captured[int(point * n_neurons)]) for point in POINTS),
        predicted=predicted_share,
        recall=recall,
        precision=precision,
    )
