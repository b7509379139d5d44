"""What the native operations require of the tensors whose addresses they are given.

Arithmetic and index checks are in C++; dtype, shape, contiguity and place are checked here, where torch knows them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from powerinfer_py.config import CacheType
from powerinfer_py.gguf.types import GGMLType
from powerinfer_py.kernels.blocks import Norm
from powerinfer_py.kernels.cache_rows import cache_row_bytes
from powerinfer_py.kernels.matrix import RopeTable


def norm_addresses(norm: Norm, n: int) -> tuple[int, int, float, bool]:
    """Addresses of weight and bias (n), epsilon, and whether the mean is subtracted."""
    require_tensor(norm.weight, "weight", torch.float32, (n,))
    return norm.weight.data_ptr(), optional_address(norm.bias, n), norm.eps, norm.subtract_mean


def require_tensor(tensor: Tensor, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Raises TypeError for another dtype, ValueError for another shape, another device, or gaps in memory."""
    if tensor.dtype is not dtype:
        raise TypeError(f"{name} must be {dtype}, not {tensor.dtype}")
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, not {tuple(tensor.shape)}")
    if not (tensor.is_cpu and tensor.is_contiguous()):
        raise ValueError(f"{name} must be a contiguous CPU tensor")


def cache_rows_type(cache: Tensor, name: str, places: tuple[int, ...], dim: int) -> int:
    """Type of the rows of `cache`: float16 values (*places, dim), or as uint8 the bytes of their Q8_0 blocks."""
    if cache.dtype is torch.uint8:
        require_tensor(cache, name, torch.uint8, (*places, cache_row_bytes(CacheType.Q8_0, dim)))
        return int(GGMLType.Q8_0)
    require_tensor(cache, name, torch.float16, (*places, dim))
    return int(GGMLType.F16)


def token_count(x: Tensor, n: int) -> int:
    """Number of rows of `x`, which must be float32 (T, n)."""
    n_tokens = x.shape[0] if x.dim() else 0
    require_tensor(x, "x", torch.float32, (n_tokens, n))
    return n_tokens


def three_sizes(x: Tensor, name: str) -> tuple[int, int, int]:
    """Shape of `x`, which must be float32 with three dimensions."""
    if x.dim() != 3:
        raise ValueError(f"{name} must have three dimensions, not {x.dim()}")
    a, b, c = x.shape
    require_tensor(x, name, torch.float32, (a, b, c))
    return a, b, c


def optional_address(bias: Tensor | None, n: int) -> int:
    """Address of `bias`, which must be float32 (n), or 0 for none."""
    if bias is None:
        return 0
    require_tensor(bias, "bias", torch.float32, (n,))
    return bias.data_ptr()


def rope_addresses(rope: RopeTable | None, n_ctx: int) -> tuple[int, int, int, bool]:
    """Cosines, sines, n_rot and whether halves are turned; zeros without a table. It must cover `n_ctx` positions."""
    if rope is None:
        return 0, 0, 0, False
    n_positions = rope.cos.shape[0]
    require_tensor(rope.cos, "cos", torch.float32, (n_positions, rope.n_rot // 2))
    require_tensor(rope.sin, "sin", torch.float32, (n_positions, rope.n_rot // 2))
    if n_positions < n_ctx:
        raise ValueError(f"the RoPE table has {n_positions} positions, the cache {n_ctx}")
    return rope.cos.data_ptr(), rope.sin.data_ptr(), rope.n_rot, rope.halves
