"""Counts of fired and predicted neurons over some tokens. Data alone: who counts them is `profiler.counts`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


@dataclass(eq=False)
class ActivationCounts:
    """int64 arrays (n_layer, n_ff) over some tokens.

    fired: tokens for which the neuron fired. predicted: for which its predictor named it; both: for which it was named
    and fired. The last two are None for a model without predictors.
    """

    fired: Counts
    predicted: Counts | None = None
    both: Counts | None = None

    @classmethod
    def zeros(cls, n_layer: int, n_ff: int, *, has_predictors: bool) -> ActivationCounts:
        """No token counted yet."""
        arrays = [np.zeros((n_layer, n_ff), np.int64) for _ in range(3 if has_predictors else 1)]
        return cls(*arrays)

    def arrays(self) -> dict[str, Counts]:
        """Those that are there, by name."""
        named = {"fired": self.fired, "predicted": self.predicted, "both": self.both}
        return {name: array for name, array in named.items() if array is not None}

    def add(self, other: ActivationCounts) -> None:
        """Adds the counts of other tokens of the same model, in place."""
        mine, theirs = self.arrays(), other.arrays()
        if mine.keys() != theirs.keys():
            raise ValueError("counts with and without predictors do not add up")
        for name, array in mine.items():
            array += theirs[name]
