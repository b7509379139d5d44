"""The rows that decide which neurons fire, with the norm before them folded in, as one affine map of a direction.

For an input of length 1, neuron j's first row gives `rows[j] @ x + offsets[j]`, up to a positive factor where the norm
subtracts the mean: LayerNorm divides by the deviation, which is the length of x but for its mean. The constants are
those of biases and of FATReLU's threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from powerinfer_py.config import Activation, ModelConfig
from powerinfer_py.gguf import GGUFFile
from powerinfer_py.models.architecture import NormKind
from powerinfer_py.models.registry import architecture_named
from powerinfer_py.predictor.row_source import Floats, RowSource, source_of_file

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class FirstRows:
    """rows: float32 (n_ff, n_embd). offsets: float32 (n_ff). second: up rows as `rows`, where they decide too (dReLU).

    is_linear: no constants and no mean to subtract, so that the sign of `rows @ x` is whether a neuron fires.
    """

    rows: Tensor
    offsets: Tensor
    second: Tensor | None
    is_linear: bool


def read_first_rows(file: GGUFFile, config: ModelConfig, layer: int) -> FirstRows:
    """Of an open file. Raises as `first_rows`."""
    return first_rows(source_of_file(file, config), layer)


def first_rows(source: RowSource, layer: int) -> FirstRows:
    """Raises ModelError for tensors that are missing or misshapen, UnsupportedError for a type that is no weight."""
    import torch

    architecture = architecture_named(source.architecture)
    subtracts_mean = architecture.norm is NormKind.LAYER
    prefix = f"blk.{layer}."
    norm = prefix + ("attn_norm" if architecture.parallel else "ffn_norm")
    weight = source.require(norm + ".weight", (source.n_embd,))
    bias = source.require(norm + ".bias", (source.n_embd,)) if subtracts_mean else None

    def folded(name: str) -> tuple[Tensor, Floats]:
        matrix = source.require(prefix + name + ".weight", (source.n_ff, source.n_embd))
        offsets = np.zeros(source.n_ff, np.float32)
        if bias is not None:
            offsets += matrix @ bias
        own = source.read(prefix + name + ".bias", (source.n_ff,))
        if own is not None:
            offsets += own
        return fold_norm(matrix, weight, subtracts_mean=subtracts_mean), offsets

    rows, offsets = folded("ffn_gate" if architecture.gated else "ffn_up")
    second = folded("ffn_up")[0] if source.activation is Activation.DRELU else None
    if source.activation is Activation.FATRELU:
        offsets -= np.float32(source.fatrelu_threshold)
    is_linear = not subtracts_mean and second is None and not offsets.any()
    return FirstRows(rows, torch.from_numpy(offsets), second, is_linear)


def fold_norm(matrix: Floats, weight: Floats, *, subtracts_mean: bool = False) -> Tensor:
    """`matrix` (n_ff, n_embd) times the norm's `weight` (n_embd), as it acts on the input before the norm; float32."""
    import torch

    rows = torch.from_numpy(matrix * weight)
    # x minus its mean is a linear map too: each row loses its mean instead.
    return rows - rows.mean(dim=1, keepdim=True) if subtracts_mean else rows
