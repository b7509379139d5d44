"""How many neurons a model computed, counted by the code that read their rows; and a way to watch a forward.

No decision is taken here: these are observations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from powerinfer_py.kernels.blocks import FeedForwardResult, LayersResult

if TYPE_CHECKING:
    from torch import Tensor


class LayerObserver(Protocol):
    """Called once a layer and forward, after its FFN; profilers and predictor training stand on this."""

    def __call__(self, layer: int, predictor_input: Tensor, predicted: Tensor | None, fired: Tensor, /) -> None:
        """predictor_input (T, n_embd); predicted, fired (T, n_ff; bool). The tensors are only valid during the call."""


@dataclass(eq=False)
class Activity:
    """Counts per layer (int64 arrays of n_layer) since the last `clear`; predictor_s in seconds over all layers.

    neurons: neurons there were, tokens x n_ff. first, second, down: (token, row) products of the rows read first (gate,
    or up without a gate), of the up rows behind a gate, and of the down rows. fired: neurons that fired. on_device: all
    products that a device computed rather than the CPU.
    """

    n_layer: int
    neurons: npt.NDArray[np.int64] = field(init=False)
    first: npt.NDArray[np.int64] = field(init=False)
    second: npt.NDArray[np.int64] = field(init=False)
    down: npt.NDArray[np.int64] = field(init=False)
    fired: npt.NDArray[np.int64] = field(init=False)
    on_device: npt.NDArray[np.int64] = field(init=False)
    gated: bool = False
    predictor_s: float = 0.0

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Sets every count to zero."""
        for name in ("neurons", "first", "second", "down", "fired", "on_device"):
            setattr(self, name, np.zeros(self.n_layer, dtype=np.int64))
        self.predictor_s = 0.0

    def record(self, layer: int, neurons: int, result: FeedForwardResult) -> None:
        """Adds what one forward of `layer` computed of its `neurons` (tokens x n_ff)."""
        counts = (result.gate_products, result.up_products, result.down_products, result.n_fired)
        self.record_counts(layer, neurons, counts)
        self.predictor_s += result.predictor_s

    def record_layers(self, layers: slice, neurons: int, result: LayersResult) -> None:
        """The same of one forward of several layers, each of `neurons`."""
        gate, up, down, fired = result.counts.T
        self.neurons[layers] += neurons
        self.fired[layers] += fired
        self.down[layers] += down
        self.first[layers] += gate if self.gated else up
        if self.gated:
            self.second[layers] += up
        self.predictor_s += result.predictor_s

    def record_counts(self, layer: int, neurons: int, counts: Sequence[int]) -> None:
        """Adds gate, up and down products, and neurons that fired."""
        gate, up, down, fired = counts
        self.neurons[layer] += neurons
        self.fired[layer] += fired
        self.down[layer] += down
        self.first[layer] += gate if self.gated else up
        self.second[layer] += up if self.gated else 0

    def record_on_device(self, layer: int, neurons: int, counts: Sequence[int]) -> None:
        """The same for what a device computed."""
        self.record_counts(layer, neurons, counts)
        self.on_device[layer] += sum(counts[:3])

    @property
    def share_on_device(self) -> float:
        """Share of the rows read for a token that were read on a device; 0.0 before any token."""
        read = self.first.sum() + self.second.sum() + self.down.sum()
        return float(self.on_device.sum() / max(1, read))

    @property
    def share_computed(self) -> float:
        """Share of neurons whose first row was computed; 0.0 before any token."""
        return float(self.first.sum() / max(1, self.neurons.sum()))

    @property
    def share_fired(self) -> float:
        """Share of neurons that fired."""
        return float(self.fired.sum() / max(1, self.neurons.sum()))

    @property
    def share_of_rows(self) -> float:
        """Share of all FFN rows (gate, up and down) that were read for a token."""
        kinds = 3 if self.gated else 2
        read = self.first.sum() + self.second.sum() + self.down.sum()
        return float(read / max(1, kinds * self.neurons.sum()))

    def to_dict(self) -> dict[str, Any]:
        """Totals for `--json`."""
        return {
            "neurons_computed_share": self.share_computed,
            "neurons_fired_share": self.share_fired,
            "ffn_rows_read_share": self.share_of_rows,
            "predictor_s": self.predictor_s,
        }
