"""Memory that is full of NaN when kernels get it, and blocks for kernels on a GPU or under Triton's interpreter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from helpers_blocks import random_rows
from helpers_kernels import ROUNDOFF, dot_bound
from torch import Tensor

from powerinfer_py.config import Activation
from powerinfer_py.gguf.types import GGMLType
from powerinfer_py.kernels.blocks import FeedForwardBlock, FeedForwardWeights, Norm
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import Matrix

# Every storage on the device, and one type that becomes F16.
DEVICE_TYPES = [GGMLType.F32, GGMLType.F16, GGMLType.BF16, GGMLType.Q8_0, GGMLType.Q4_0, GGMLType.Q4_K]
QUANTISED = (GGMLType.Q8_0, GGMLType.Q4_0)
DEVICE_IDS = [ggml_type.name for ggml_type in DEVICE_TYPES]


@dataclass(frozen=True)
class Poison:
    """An allocator whose memory is all ones: NaN as floats, -1 as integers."""

    device: str

    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        n_bytes = math.prod(shape) * dtype.itemsize
        return torch.full((n_bytes,), 255, dtype=torch.uint8, device=self.device).view(dtype).view(shape)


def weights_on_device(ggml_type: GGMLType, values: np.ndarray) -> np.ndarray:
    """Stored values as the device has them: of a type without a storage of its own, rounded to F16."""
    return values.astype(np.float16).astype(np.float32) if ggml_type is GGMLType.Q4_K else values


def product_bound(ggml_type: GGMLType, n_tokens: int, values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Largest error (T, rows) of a product on the device: see `kernels.triton.halves` for what tl.dot gets.

    Up to 4 tokens, and F32 weights: float32 throughout. Else x is off by 2^-22 of itself and 2^-38 of the largest of
    its token in two halves; quantised weights and their activations by 2^-11 each, with 2^-24 of the largest below the
    normal numbers of float16 (2^-38 of it after scaling; 2^-32 of the largest weight, as a scale that small is rounded
    before it is multiplied by up to 128).
    """
    w, a = np.abs(values).astype(np.float64), np.abs(x).astype(np.float64)
    magnitude = a @ w.T
    n = values.shape[1]
    # The narrowest sum: one column of a tile at a time over a whole row.
    bound = dot_bound(n, magnitude) + n * ROUNDOFF * magnitude
    if n_tokens <= 4 or ggml_type is GGMLType.F32:
        return bound
    smallest = 2.0**-38 * a.max(axis=1, keepdims=True) * w.sum(axis=1)[None, :]
    if ggml_type not in QUANTISED:
        return bound + 2.0**-22 * magnitude + smallest
    weights_too = 2.0**-32 * w.max() * a.sum(axis=1, keepdims=True)
    return bound + (2.0**-11 + 2.0**-11 + 2.0**-22) * magnitude + smallest + weights_too


def on_device(kernels: Kernels, tensor: Tensor | None) -> Tensor | None:
    """A vector where these kernels want it."""
    return None if tensor is None else tensor.to(getattr(kernels, "device", "cpu"))


def stored_matrix(
    kernels: Kernels, ggml_type: GGMLType, rows: int, cols: int, seed: int, poisoned: np.ndarray | None = None
) -> Matrix:
    """Random rows; those of `poisoned` (rows; bool) have every byte 0xff, which is NaN in every type."""
    data = random_rows(ggml_type, rows, cols, seed).data.copy()
    if poisoned is not None:
        data.reshape(rows, -1)[poisoned] = 0xFF
    return kernels.matrix("w", ggml_type, rows, cols, data)


@dataclass(frozen=True)
class Layer:
    """An FFN of random weights that any kernels can have. poisoned: rows of NaN in gate, up and down, by number."""

    ggml_type: GGMLType
    n_ff: int = 70
    n_embd: int = 96
    activation: Activation = Activation.RELU
    gated: bool = True
    biases: bool = True
    dense: bool = False
    transposed: bool = True

    def block(self, kernels: Kernels, poisoned: dict[str, np.ndarray] | None = None) -> FeedForwardBlock:
        """The block for `kernels`."""
        n_ff, n_embd, bad = self.n_ff, self.n_embd, poisoned or {}
        down = (n_ff, n_embd) if self.transposed else (n_embd, n_ff)
        up_bias = torch.linspace(-0.5, 0.5, n_ff) if self.biases else None
        weights = FeedForwardWeights(
            up=stored_matrix(kernels, self.ggml_type, n_ff, n_embd, 1, bad.get("up")),
            gate=stored_matrix(kernels, self.ggml_type, n_ff, n_embd, 2, bad.get("gate")) if self.gated else None,
            down=stored_matrix(kernels, self.ggml_type, *down, 3, bad.get("down")),
            down_is_transposed=self.transposed,
            up_bias=on_device(kernels, up_bias),
            down_bias=on_device(kernels, torch.linspace(-1, 1, n_embd) if self.biases else None),
            gate_bias=on_device(kernels, torch.linspace(0.5, -0.5, n_ff) if self.biases and self.gated else None),
        )
        norm = Norm(torch.ones(n_embd).to(weights_device(kernels)), None, 1e-5, False)
        return FeedForwardBlock(norm, weights, None, self.activation, 0.8, 0.0, self.dense)


def weights_device(kernels: Kernels) -> torch.device:
    """Where vectors of blocks for these kernels lie."""
    return torch.device(getattr(kernels, "device", "cpu"))


def nmse_of_sums(kernels: Kernels, largest: float) -> float:
    """`largest`, or where tensor cores add up what those of an H200 leave: they keep fewer bits of a sum than float32
    does, 6.6e-12 was measured of F16 where the interpreter stays below 1e-12."""
    return max(largest, 2e-11) if weights_device(kernels).type == "cuda" else largest


def nmse(got: Tensor, want: Tensor) -> float:
    """Squared error relative to the squared values, in float64."""
    a, b = got.cpu().double(), want.cpu().double()
    return float((a - b).square().sum() / b.square().sum().clamp_min(1e-300))
