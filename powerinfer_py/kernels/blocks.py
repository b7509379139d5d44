"""The two blocks of a transformer layer as data: weights and everything that does not change from token to token.

A block is prepared at load by the kernels that run it (`Kernels.prepare_attention`, `prepare_feed_forward`); what it
computes is defined in `composition.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from powerinfer_py.config import Activation
from powerinfer_py.kernels.matrix import Matrix

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Norm:
    """RMSNorm, or LayerNorm where the mean is subtracted: weight (n_embd), bias (n_embd) or None."""

    weight: Tensor
    bias: Tensor | None
    eps: float
    subtract_mean: bool


@dataclass(frozen=True, eq=False)
class Linear:
    """A matrix (n_out, n_in) and its bias (n_out)."""

    matrix: Matrix
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class Predictor:
    """`fc2 @ relu(fc1 @ x)`: fc1 (rank, n_embd), fc2 (n_ff, rank)."""

    fc1: Matrix
    fc2: Matrix


@dataclass(frozen=True, eq=False)
class LayerCache:
    """Keys and values of one layer: (n_slots, n_head_kv, n_ctx, row), see `cache_rows.cache_layout` for a row.

    float16 with rows of head_dim or head_dim_v values, or uint8 with rows of Q8_0 blocks; each of its own.
    """

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class AttentionBlock:
    """Norm, attention and output projection. `qkv` is one fused projection or three, in the order q, k, v.

    handle: what the kernels that prepared the block need (`Kernels.prepare_attention`).
    """

    norm: Norm
    qkv: tuple[Linear, ...]
    output: Linear
    n_head: int
    n_head_kv: int
    head_dim: int
    head_dim_v: int
    handle: Any = None

    @property
    def scale(self) -> float:
        """What scores are multiplied by before the softmax."""
        return 1.0 / math.sqrt(self.head_dim)


@dataclass(frozen=True, eq=False)
class FeedForwardWeights:
    """One layer's FFN. up, gate: (n_ff, n_embd), a neuron a row; gate and every bias may be absent.

    down: with down_is_transposed (n_ff, n_embd), again a neuron a row; else (n_embd, n_ff) as a dense GGUF stores it,
    which serves only where all rows are computed.
    """

    up: Matrix
    gate: Matrix | None
    down: Matrix
    down_is_transposed: bool
    up_bias: Tensor | None
    down_bias: Tensor | None
    gate_bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class FeedForwardBlock:
    """Predictor, norm and FFN. Without a predictor every neuron's first row is computed; `dense` computes all rows."""

    norm: Norm
    weights: FeedForwardWeights
    predictor: Predictor | None
    activation: Activation
    fatrelu_threshold: float
    sparse_threshold: float
    dense: bool
    handle: Any = None


@dataclass(frozen=True, eq=False)
class FeedForwardResult:
    """y: (T, n_embd), with the residual but for a part. predicted, fired: (T, n_ff) bool where they were asked for.

    Products are (token, row) pairs, counted where they were computed; 0 where the call was given a tensor to count in.
    predictor_s: seconds in the predictor.
    """

    y: Tensor
    gate_products: int
    up_products: int
    down_products: int
    n_fired: int
    predictor_s: float
    predicted: Tensor | None = None
    fired: Tensor | None = None


@dataclass(frozen=True, eq=False)
class LayerBlocks:
    """The two blocks of one layer."""

    attention: AttentionBlock
    feed_forward: FeedForwardBlock


@dataclass(frozen=True, eq=False)
class LayersResult:
    """y: (T, n_embd) after the last layer. counts: int64 (n_layers, 4), as the numbers of a `FeedForwardResult`.

    predictor_s: seconds in the predictors of all layers.
    """

    y: Tensor
    counts: npt.NDArray[np.int64]
    predictor_s: float
