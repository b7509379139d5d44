# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""The first half of a sparse FFN for a prompt: gate, activation and up, tiles of tokens with tiles of neurons.

Neurons are those that any token wants; each token's own mask decides what becomes of a product, by selection, so that a
masked neuron contributes exactly 0 even where its row holds NaN. Up rows are read where a token of the tile fired.
Products have the precision that `halves` explains.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerinfer_py.kernels.triton import launch
from powerinfer_py.kernels.triton.device_rows import Allocate
from powerinfer_py.kernels.triton.halves import EXACT_STORAGES, Halves
from powerinfer_py.kernels.triton.hidden_rows import Neurons, activated, add_counts, first_fired
from powerinfer_py.kernels.triton.matrix_product import tile_products


@triton.jit
def pairs(chosen):
    """How many elements of a (tokens, rows) tile are set."""
    return tl.sum(tl.sum(chosen.to(tl.int32), axis=1), axis=0)


@triton.jit
def scaled_products(
    x,
    high,
    low,
    back,
    tokens,
    inside,
    values,
    scales,
    bias,
    rows,
    keep,
    half_scale,
    half_inverse,
    N: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    STORAGE: tl.constexpr,
    BOTH: tl.constexpr,
    WARPS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Products and bias: float32 (TOKENS, ROWS)."""
    if STORAGE == "f32":
        total = tile_products(
            x, x, tokens, inside, values, scales, rows, keep, half_scale, 0, N, N, TOKENS, ROWS, STEP, STORAGE, BOTH,
            WARPS,
        )  # fmt: skip
    else:
        total = tile_products(
            high, low, tokens, inside, values, scales, rows, keep, half_scale, 0, N, N, TOKENS, ROWS, STEP, STORAGE,
            BOTH, WARPS,
        )  # fmt: skip
        total = total * back[:, None] * half_inverse
    if HAS_BIAS:
        total += tl.load(bias + rows, mask=keep, other=0.0)[None, :]
    return total


@triton.jit(
    do_not_specialize=[
        "mask",
        "n_tokens",
        "n",
        "groups",
        "mask_stride",
    ]
)
def hidden_tiles_kernel(
    x,
    high,
    low,
    inverse,
    gate_values,
    gate_scales,
    gate_bias,
    gate_half_scale,
    gate_half_inverse,
    up_values,
    up_scales,
    up_bias,
    up_half_scale,
    up_half_inverse,
    ids,
    count,
    mask,
    hidden,
    fired_out,
    counts,
    n_tokens,
    n,
    groups,
    mask_stride,
    threshold,
    GROUP: tl.constexpr,
    N: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    GATE: tl.constexpr,
    UP: tl.constexpr,
    GATE_BOTH: tl.constexpr,
    UP_BOTH: tl.constexpr,
    WARPS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_GATE_BIAS: tl.constexpr,
    HAS_UP_BIAS: tl.constexpr,
    LISTED: tl.constexpr,
    MASKED: tl.constexpr,
    ALL_ROWS: tl.constexpr,
    OBSERVED: tl.constexpr,
):
    """hidden[tokens, entries] of one tile; its rows lie groups * GROUP apart."""
    program = tl.program_id(1)
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    entry = program * ROWS + tl.arange(0, ROWS)
    inside = tokens < n_tokens
    if LISTED:
        end = tl.load(count)
        if program * ROWS >= end:
            return
        keep = entry < end
        rows = tl.load(ids + entry, mask=keep, other=0).to(tl.int64)
    else:
        keep = entry < n
        rows = entry.to(tl.int64)
    here = inside[:, None] & keep[None, :]  # (TOKENS, ROWS)
    back = tl.load(inverse + tokens, mask=inside, other=0.0)
    n_up = program * 0
    if GATE == "none":
        first = scaled_products(
            x, high, low, back, tokens, inside, up_values, up_scales, up_bias, rows, keep, up_half_scale,
            up_half_inverse, N, TOKENS, ROWS, STEP, UP, UP_BOTH, WARPS, HAS_UP_BIAS,
        )  # fmt: skip
    else:
        first = scaled_products(
            x, high, low, back, tokens, inside, gate_values, gate_scales, gate_bias, rows, keep, gate_half_scale,
            gate_half_inverse, N, TOKENS, ROWS, STEP, GATE, GATE_BOTH, WARPS, HAS_GATE_BIAS,
        )  # fmt: skip
    # Not before: it would be kept in registers meanwhile.
    wanted = here
    if MASKED:
        wanted = here & (tl.load(mask + tokens[:, None] * mask_stride + rows[None, :], mask=here, other=0) != 0)
    n_first = pairs(here if ALL_ROWS else wanted)
    fired = first_fired(first, wanted, threshold, ACTIVATION)
    if GATE == "none":
        value = activated(first, fired, ACTIVATION)
    else:
        n_up = pairs(here if ALL_ROWS else fired)
        reads = keep if ALL_ROWS else tl.max(fired.to(tl.int32), axis=0) > 0
        first = activated(first, fired, ACTIVATION)
        up = scaled_products(
            x, high, low, back, tokens, inside, up_values, up_scales, up_bias, rows, reads, up_half_scale,
            up_half_inverse, N, TOKENS, ROWS, STEP, UP, UP_BOTH, WARPS, HAS_UP_BIAS,
        )  # fmt: skip
        if ACTIVATION == "drelu":
            fired = fired & ((up <= 0.0) == 0)
        value = tl.where(fired, first * up, 0.0)
    tl.store(hidden + tokens[:, None] * (groups * GROUP) + entry[None, :], value, mask=here)
    if OBSERVED:
        tl.store(fired_out + tokens[:, None] * n + rows[None, :], fired.to(tl.uint8), mask=here)
    add_counts(counts, n_first, n_up, pairs(fired), GATE != "none")


def tile_config_of(neurons: Neurons, n_tokens: int, device: torch.device) -> launch.TileConfig:
    """How `hidden_tiles` runs."""
    # A gate in another storage takes what fits both.
    storages = {m.storage for m in (neurons.gate, neurons.up) if m is not None}
    storage = "f32" if "f32" in storages else neurons.up.storage
    return launch.tile_config("hidden", storage, n_tokens, neurons.up.rows, neurons.up.cols, device)


def hidden_tiles(
    neurons: Neurons,
    x: Tensor,
    hidden: Tensor,
    counts: Tensor,
    allocate: Allocate,
    *,
    union: tuple[Tensor, Tensor] | None,
    mask: Tensor | None,
    all_rows: bool,
    fired: Tensor | None,
) -> None:
    """The same as `hidden_rows.hidden_rows` with one list for all tokens.

    union: ids int32 (n) and count int32 (1).
    """
    n_tokens, n = x.shape[0], neurons.up.rows
    device = x.device
    config = tile_config_of(neurons, n_tokens, device)
    launch.require(x, "x", torch.float32, (n_tokens, neurons.up.cols), device)
    launch.require_strided(hidden, "hidden", torch.float32, (n_tokens, n), device)
    groups, group = launch.row_groups(launch.row_stride(hidden))
    launch.require(counts, "counts", torch.int64, (4,), device)
    launch.require_bias(neurons.gate_bias, n, device)
    launch.require_bias(neurons.up_bias, n, device)
    gate, up = neurons.gate or neurons.up, neurons.up
    halves = Halves(x, allocate)
    ids, count = (counts, counts) if union is None else union
    launch.run(
        hidden_tiles_kernel,
        (launch.cdiv(n_tokens, config.tokens), launch.cdiv(n, config.rows)),
        warps=config.warps,
        stages=config.stages,
        x=x,
        high=halves.high,
        low=halves.low,
        inverse=halves.inverse,
        gate_values=gate.values,
        gate_scales=gate.scales_or_values,
        gate_bias=x if neurons.gate_bias is None else neurons.gate_bias,
        gate_half_scale=gate.half_scale,
        gate_half_inverse=1.0 / gate.half_scale,
        up_values=up.values,
        up_scales=up.scales_or_values,
        up_bias=x if neurons.up_bias is None else neurons.up_bias,
        up_half_scale=up.half_scale,
        up_half_inverse=1.0 / up.half_scale,
        ids=ids,
        count=count,
        mask=hidden if mask is None else mask.view(torch.uint8),
        hidden=hidden,
        fired_out=hidden if fired is None else fired.view(torch.uint8),
        counts=counts,
        n_tokens=n_tokens,
        n=n,
        groups=groups,
        mask_stride=0 if mask is None else mask.stride(0),
        threshold=float(neurons.fatrelu_threshold),
        GROUP=group,
        N=up.cols,
        TOKENS=config.tokens,
        ROWS=config.rows,
        STEP=config.step,
        GATE="none" if neurons.gate is None else gate.storage,
        UP=up.storage,
        GATE_BOTH=gate.storage in EXACT_STORAGES,
        UP_BOTH=up.storage in EXACT_STORAGES,
        WARPS=config.warps,
        ACTIVATION=str(neurons.activation),
        HAS_GATE_BIAS=neurons.gate_bias is not None,
        HAS_UP_BIAS=neurons.up_bias is not None,
        LISTED=union is not None,
        MASKED=mask is not None,
        ALL_ROWS=all_rows,
        OBSERVED=fired is not None,
    )
