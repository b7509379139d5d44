# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Rows of a matrix as float32, by ids in device memory: the embedding where it lies on the device. Moves those rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerinfer_py.kernels.triton import launch
from powerinfer_py.kernels.triton.device_rows import DeviceRows
from powerinfer_py.kernels.triton.weight_rows import high_nibbles, low_nibbles, signed_bytes

_STEP = 1024


@triton.jit
def lookup_kernel(values, scales, ids, y, n_rows, N: tl.constexpr, STEP: tl.constexpr, STORAGE: tl.constexpr):
    """STEP columns of one row; an id outside the matrix gives NaN."""
    place = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * STEP + tl.arange(0, STEP)
    row = tl.load(ids + place)
    exists = (row >= 0) & (row < n_rows)
    wanted = (at < N) & exists
    if STORAGE == "q4_0":
        byte = (at // 32) * 16 + at % 16
        packed = tl.load(values + row * (N // 2) + byte, mask=wanted, other=0)
        w = tl.where(at % 32 < 16, low_nibbles(packed), high_nibbles(packed))
    else:
        w = tl.load(values + row * N + at, mask=wanted, other=0)
        if STORAGE == "q8_0":
            w = signed_bytes(w)
    if STORAGE == "q4_0" or STORAGE == "q8_0":
        w = w * tl.load(scales + row * (N // 32) + at // 32, mask=wanted, other=0.0).to(tl.float32)
    w = tl.where(exists, w.to(tl.float32), float("nan"))
    tl.store(y + place * N + at, w, mask=at < N)


def lookup(matrix: DeviceRows, ids: Tensor, y: Tensor) -> None:
    """y[i] = row ids[i]. ids: int64 (n); y: float32 (n, cols), NaN for an id outside the matrix."""
    n = ids.shape[0]
    launch.require(ids, "ids", torch.int64, (n,), y.device)
    launch.require(y, "y", torch.float32, (n, matrix.cols), y.device)
    launch.run(
        lookup_kernel,
        (n, launch.cdiv(matrix.cols, _STEP)),
        warps=4,
        values=matrix.values,
        scales=matrix.scales_or_values,
        ids=ids,
        y=y,
        n_rows=matrix.rows,
        N=matrix.cols,
        STEP=_STEP,
        STORAGE=matrix.storage,
    )
