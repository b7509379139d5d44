"""How well predictors name the neurons that fire, counted during a forward in `exact` mode.

In that mode every layer sees the true residual stream, so that a layer's recall is its own and not its forerunners'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from powerinfer_py.errors import OptionError
from powerinfer_py.runtime.engine import Engine

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class LayerRecall:
    """Counts of one layer over (token, neuron) pairs."""

    layer: int
    neurons: int = 0
    predicted: int = 0
    fired: int = 0
    both: int = 0

    @property
    def recall(self) -> float:
        """Share of firing neurons that were predicted; 1.0 where none fired."""
        return self.both / self.fired if self.fired else 1.0

    @property
    def precision(self) -> float:
        """Share of predicted neurons that fired; 1.0 where none was predicted."""
        return self.both / self.predicted if self.predicted else 1.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "layer": self.layer,
            "recall": self.recall,
            "precision": self.precision,
            "predicted_share": self.predicted / max(1, self.neurons),
            "fired_share": self.fired / max(1, self.neurons),
        }


class RecallCounter:
    """A `LayerObserver` that holds every layer's predictor against what really fired."""

    def __init__(self, engine: Engine) -> None:
        if not engine.config.has_predictors:
            raise OptionError("this model has no predictors (fc1, fc2) to measure")
        self._engine = engine
        self.layers = [LayerRecall(layer) for layer in engine.layers]

    def __call__(self, layer: int, predictor_input: Tensor, _predicted: Tensor | None, fired: Tensor) -> None:
        """Adds one forward of one layer; what the forward itself predicted is not used."""
        engine = self._engine
        local = layer - engine.layers.start
        predictor = engine.transformer.weights.layers[local].predictor
        assert predictor is not None  # the constructor refused a model without
        mask = engine.kernels.predict(predictor, predictor_input, engine.config.sparse_threshold)
        counts = self.layers[local]
        counts.neurons += fired.numel()
        counts.predicted += int(mask.count_nonzero())
        counts.fired += int(fired.count_nonzero())
        counts.both += int((mask & fired).count_nonzero())
