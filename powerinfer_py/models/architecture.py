"""What distinguishes one supported architecture from another, as data.

A declaration (llama.py, opt.py, ...) names its choices among the shared blocks of `transformer.py`; it holds no code.
Hyperparameters are not here: they come from the file (`hyperparameters.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from powerinfer_py.config import Activation


class NormKind(StrEnum):
    """Normalisation before attention, before the FFN and before the head."""

    RMS = "rms"
    LAYER = "layer"


class PositionKind(StrEnum):
    """How positions enter: rotation of adjacent pairs, rotation of halves, or a learned table."""

    ROPE_ADJACENT = "rope_adjacent"
    ROPE_HALVES = "rope_halves"
    LEARNED = "learned"


@dataclass(frozen=True)
class Architecture:
    """One architecture as a choice among the shared blocks.

    name: `general.architecture`. gated: the FFN has a gate besides up and down.
    parallel: attention and FFN both read the layer's input (falcon) instead of one after the other; the predictor then
    reads the layer's input too, else the residual stream after attention.
    powerinfer_activation: what a PWRI file means without saying so; dense_activation: what a GGUF file means, a name
    outside `Activation` where this package does not compute it.
    position_offset: rows of the learned position table that lie before position 0 (OPT: 2).
    """

    name: str
    norm: NormKind
    positions: PositionKind
    gated: bool
    powerinfer_activation: Activation
    dense_activation: Activation | str
    parallel: bool = False
    position_offset: int = 0

    @property
    def uses_rope(self) -> bool:
        """Whether queries and keys are rotated."""
        return self.positions is not PositionKind.LEARNED
