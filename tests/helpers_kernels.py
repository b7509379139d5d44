"""Error bounds and memory guards shared by the tests of the kernels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from helpers_blocks import StoredRows
from torch import Tensor

from powerinfer_py.gguf.types import WEIGHT_TYPES, GGMLType
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import Matrix

TYPE_IDS = [ggml_type.name for ggml_type in WEIGHT_TYPES]

# Unit roundoff of float32: one operation is off by at most this times its result.
ROUNDOFF = 2.0**-24

# Smallest subnormal number: what underflow may cost a product.
TINY = 2.0**-149


def matrix_of(kernels: Kernels, rows: StoredRows) -> Matrix:
    """The stored rows as a matrix of these kernels."""
    return kernels.matrix("w", rows.type, *rows.values.shape, rows.data)


def dot_bound(n: int, magnitude: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Largest error of a float32 dot product of length `n`; magnitude: the sums of |w * x|.

    The narrowest kernel has 4 lanes, each adding n / 4 products (two roundings each without FMA), then 3 more lanes and
    at most 15 columns of a rest: every product passes at most n / 4 + 20 additions and its own rounding. torch, which
    the reference uses, has no narrower lanes.
    """
    return (n / 4 + 21) * ROUNDOFF * magnitude * 1.01 + n * TINY


def sum_bound(n: int, magnitude: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Largest error of a float32 sum of `n` rows times coefficients, added one after the other in chunks of 64.

    The reference multiplies with torch, whose order is not stated: n additions in a row are the worst there is.
    """
    return (n + 3) * ROUNDOFF * magnitude * 1.01 + n * TINY


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two float32 tensors are equal bit for bit, NaN included."""
    return a.shape == b.shape and bool((a.view(torch.int32) == b.view(torch.int32)).all())


def tokens(n_tokens: int, n: int, seed: int = 0) -> Tensor:
    """Random activations (n_tokens, n)."""
    return torch.randn(n_tokens, n, generator=torch.Generator().manual_seed(seed * 1000 + n_tokens))


def mask_of(n_tokens: int, n: int, density: float, seed: int = 0) -> Tensor:
    """Random mask (n_tokens, n): none for 0.0, all for 1.0."""
    return torch.rand(n_tokens, n, generator=torch.Generator().manual_seed(seed * 1000 + n)) < density


class Guarded:
    """An output full of NaN between guard values, for calls that take an address."""

    def __init__(self, *shape: int) -> None:
        self._all = torch.full((int(np.prod(shape)) + 64,), 12345.0)
        self.values = self._all[32:-32].view(*shape)
        self.values.fill_(float("nan"))

    @property
    def address(self) -> int:
        """Address of the output proper."""
        return self.values.data_ptr()

    def untouched_outside(self) -> bool:
        """Whether the guards still have their values."""
        return bool((self._all[:32] == 12345.0).all() and (self._all[-32:] == 12345.0).all())


def wide_types() -> list[GGMLType]:
    """One type of each way the kernels unpack: straight, 16-bit, blocks of 32, blocks of 256."""
    return [GGMLType.F32, GGMLType.F16, GGMLType.Q4_0, GGMLType.Q8_0, GGMLType.Q4_K]
