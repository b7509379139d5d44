"""What lies on the GPU: whole blocks, single neurons, the head. Data alone; who decides it and who carries it out is
elsewhere (`solver`, `runtime`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class LayerPlacement:
    """One layer. A block is attention, norms, predictor and KV cache together, wholly on one side.

    block_on_gpu: whether that is the GPU. hot: int32 ids, ascending and in the file's numbering, of the neurons whose
    FFN rows are on the GPU; empty where the block is on the CPU.
    """

    block_on_gpu: bool
    hot: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        if self.hot.dtype != np.int32 or self.hot.ndim != 1 or np.any(self.hot[1:] <= self.hot[:-1]):
            raise ValueError("hot neurons must be ascending int32 ids, each once")
        if self.hot.size and (self.hot[0] < 0 or not self.block_on_gpu):
            raise ValueError("hot neurons must be ids >= 0 of a layer whose block is on the GPU")


@dataclass(frozen=True, eq=False)
class Placement:
    """Every layer of a model, in order, and whether the final norm and the head are on the GPU."""

    layers: tuple[LayerPlacement, ...]
    head_on_gpu: bool

    def is_split(self, n_ff: int) -> bool:
        """Whether a layer of `n_ff` neurons has its block on the GPU and not all of its neurons."""
        return any(layer.block_on_gpu and layer.hot.size < n_ff for layer in self.layers)

    @property
    def n_hot(self) -> int:
        """Neurons on the GPU over all layers."""
        return sum(layer.hot.size for layer in self.layers)


def everything_on_cpu(n_layer: int) -> Placement:
    """The placement of a budget of 0."""
    return Placement(tuple(LayerPlacement(False, np.zeros(0, np.int32)) for _ in range(n_layer)), head_on_gpu=False)
