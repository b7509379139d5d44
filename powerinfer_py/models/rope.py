"""Rotary position embedding: the angle of every position and pair, with linear, YaRN and llama3-type scaling.

The rotation itself is a kernel. Sources: RoFormer (arXiv 2104.09864), YaRN (arXiv 2309.00071).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from powerinfer_py.config import RopeConfig, RopeScaling
from powerinfer_py.kernels.matrix import RopeTable

if TYPE_CHECKING:
    from torch import Tensor


# Positions whose float64 angles exist at once.
_CHUNK = 4096


def rope_table(rope: RopeConfig, n_ctx: int, *, halves: bool, frequency_factors: Tensor | None = None) -> RopeTable:
    """Cosines and sines for positions 0 .. n_ctx - 1.

    frequency_factors: (n_rot / 2), the tensor `rope_freqs.weight` that divides each frequency (llama3-type scaling).
    """
    import torch

    # float64 here: at position 100,000 a float32 angle is off by 0.004 rad before the cosine is even taken.
    pairs = torch.arange(rope.n_rot // 2, dtype=torch.float64)
    frequency = rope.freq_base ** (-2.0 * pairs / rope.n_rot)
    if frequency_factors is not None:
        frequency = frequency / frequency_factors.double()
    magnitude = rope.attn_factor
    if rope.scaling is RopeScaling.LINEAR:
        frequency = frequency / rope.factor
    elif rope.scaling is RopeScaling.YARN:
        ramp = _extrapolated_share(rope, pairs)
        frequency = frequency * (ramp + (1.0 - ramp) / rope.factor)
        magnitude *= 1.0 + 0.1 * math.log(rope.factor)
    cos, sin = torch.empty(2, n_ctx, rope.n_rot // 2).unbind()
    for start in range(0, n_ctx, _CHUNK):
        positions = torch.arange(start, min(start + _CHUNK, n_ctx), dtype=torch.float64)
        angle = torch.outer(positions, frequency)  # (chunk, n_rot / 2)
        cos[start : start + _CHUNK] = magnitude * angle.cos()
        sin[start : start + _CHUNK] = magnitude * angle.sin()
    return RopeTable(cos, sin, halves)


def _extrapolated_share(rope: RopeConfig, pairs: Tensor) -> Tensor:
    """Per pair, 1 where YaRN keeps the frequency as it is and 0 where it divides it by the factor, a ramp between."""

    def pair_turning(turns: float) -> float:
        """The pair index that makes `turns` rotations over the original context."""
        return rope.n_rot * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.freq_base))

    low = max(0.0, math.floor(pair_turning(rope.beta_fast)))
    high = min(rope.n_rot - 1.0, math.ceil(pair_turning(rope.beta_slow)))
    return 1.0 - ((pairs - low) / max(0.001, high - low)).clamp(0.0, 1.0)
