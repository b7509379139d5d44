# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""RMSNorm and LayerNorm: one program a token, sums in float32. Moves a token's row twice (three times: LayerNorm)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerinfer_py.kernels.triton import launch
from powerinfer_py.kernels.triton.overlap import starts_early, wait_for_kernel_ahead

# Columns at once: 16 float32 for each of 256 threads.
_STEP = 4096


@triton.jit
def norm_kernel(
    x,
    weight,
    bias,
    y,
    eps,
    N: tl.constexpr,
    STEP: tl.constexpr,
    SUBTRACT_MEAN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One token's row."""
    wait_for_kernel_ahead(EARLY)
    token = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, STEP)
    mean = 0.0
    if SUBTRACT_MEAN:
        total = tl.zeros((STEP,), tl.float32)
        for start in range(0, N, STEP):
            at = start + offsets
            total += tl.load(x + token * N + at, mask=at < N, other=0.0)
        mean = tl.sum(total, axis=0) / N
    squares = tl.zeros((STEP,), tl.float32)
    for start in range(0, N, STEP):
        at = start + offsets
        centred = tl.where(at < N, tl.load(x + token * N + at, mask=at < N, other=0.0) - mean, 0.0)
        squares += centred * centred
    inverse = 1.0 / tl.sqrt_rn(tl.sum(squares, axis=0) / N + eps)
    for start in range(0, N, STEP):
        at = start + offsets
        centred = tl.load(x + token * N + at, mask=at < N, other=0.0) - mean
        value = centred * inverse * tl.load(weight + at, mask=at < N, other=0.0)
        if HAS_BIAS:
            value += tl.load(bias + at, mask=at < N, other=0.0)
        tl.store(y + token * N + at, value, mask=at < N)


def norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, y: Tensor, *, subtract_mean: bool) -> None:
    """x, y: float32 (T, n); weight, bias: float32 (n)."""
    n_tokens, n = x.shape[0], weight.shape[0]
    launch.require(x, "x", torch.float32, (n_tokens, n), x.device)
    launch.require(weight, "weight", torch.float32, (n,), x.device)
    launch.require_bias(bias, n, x.device)
    launch.require(y, "y", torch.float32, (n_tokens, n), x.device)
    launch.run(
        norm_kernel,
        (n_tokens,),
        warps=8,
        x=x,
        weight=weight,
        bias=x if bias is None else bias,
        y=y,
        eps=float(eps),
        N=n,
        STEP=min(_STEP, launch.next_power_of_2(n)),
        SUBTRACT_MEAN=subtract_mean,
        HAS_BIAS=bias is not None,
        EARLY=starts_early(x.device),
    )
