# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""The first half of a sparse FFN for one or a few tokens: gate, activation and up of the neurons of each token's list.

A program computes the gate rows of its neurons, decides which fired, reads the up rows of those alone, and writes what
goes into the down projection; a neuron that did not fire has exactly 0. Conditions are negations, so that NaN fires.
Moves the listed gate rows and the up rows of fired gates, once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerinfer_py.config import Activation
from powerinfer_py.kernels.triton import launch
from powerinfer_py.kernels.triton.device_rows import DeviceRows
from powerinfer_py.kernels.triton.overlap import starts_early, wait_for_kernel_ahead
from powerinfer_py.kernels.triton.weight_rows import activations, row_products, tile_products


@triton.jit
def first_fired(first, wanted, threshold, ACTIVATION: tl.constexpr):
    """Which neurons fire as far as their first row says; dReLU's up row is not known yet."""
    if ACTIVATION == "silu":
        fired = wanted
    elif ACTIVATION == "fatrelu":
        fired = wanted & ((first < threshold) == 0)
    else:
        fired = wanted & ((first <= 0.0) == 0)
    return fired


@triton.jit
def activated(first, fired, ACTIVATION: tl.constexpr):
    """The activation of `first`, 0 where the neuron did not fire."""
    if ACTIVATION == "silu":
        value = first / (1.0 + tl.exp(-first))
    elif ACTIVATION == "relu2":
        value = first * first
    else:
        value = first
    return tl.where(fired, value, 0.0)


@triton.jit
def add_counts(counts, n_first, n_up, n_fired, GATED: tl.constexpr):
    """Adds a program's products and fired neurons to the layer's. Sums of integers are the same in any order."""
    if GATED:
        tl.atomic_add(counts, n_first.to(tl.int64), sem="relaxed")
        tl.atomic_add(counts + 1, n_up.to(tl.int64), sem="relaxed")
    else:
        tl.atomic_add(counts + 1, n_first.to(tl.int64), sem="relaxed")
    tl.atomic_add(counts + 3, n_fired.to(tl.int64), sem="relaxed")


@triton.jit
def neuron_products(
    values, scales, rows, keep, x, n, x_0, x_1, x_2, x_3, x_4, x_5, x_6, x_7, offset,
    N: tl.constexpr, STEP: tl.constexpr, STORAGE: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """`row_products`, of `activations` that are there already where they are SHARED."""
    if SHARED:
        tile = tile_products(
            values, scales, rows, keep, x_0, x_1, x_2, x_3, x_4, x_5, x_6, x_7, offset, 0, n, N, STEP, STORAGE
        )
        total = tl.sum(tile, axis=1)
    else:
        total = row_products(values, scales, rows, keep, x, n, N, STEP, STORAGE)
    return total


@triton.jit(do_not_specialize=["mask", "n", "mask_stride"])
def hidden_kernel(
    x,
    gate_values,
    gate_scales,
    gate_bias,
    up_values,
    up_scales,
    up_bias,
    ids,
    list_counts,
    mask,
    hidden,
    fired_out,
    counts,
    n,
    mask_stride,
    threshold,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    GATE: tl.constexpr,
    UP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_GATE_BIAS: tl.constexpr,
    HAS_UP_BIAS: tl.constexpr,
    LISTED: tl.constexpr,
    MASKED: tl.constexpr,
    ALL_UP: tl.constexpr,
    OBSERVED: tl.constexpr,
    EARLY: tl.constexpr,
):
    """hidden[t, i] for entries i of a token's list, or without LISTED for neurons i themselves: ROWS of them, and those
    that lie a grid further on."""
    wait_for_kernel_ahead(EARLY)
    token = tl.program_id(0).to(tl.int64)
    end = tl.load(list_counts + token) if LISTED else n
    start = tl.program_id(1) * ROWS
    x += token * N
    # What one reading of the input serves: the first row and the other, of every group.
    FIRST: tl.constexpr = UP if GATE == "none" else GATE
    SHARED: tl.constexpr = (N <= STEP) & (FIRST == UP)
    x_0, x_1, x_2, x_3, x_4, x_5, x_6, x_7, offset = activations(x, 0, N, STEP, FIRST)
    n_first = start * 0
    n_up = start * 0
    n_fired = start * 0
    while start < end:
        entry = start + tl.arange(0, ROWS)
        keep = entry < end
        rows = tl.load(ids + token * n + entry, mask=keep, other=0).to(tl.int64) if LISTED else entry.to(tl.int64)
        wanted = keep
        if MASKED:
            wanted = keep & (tl.load(mask + token * mask_stride + rows, mask=keep, other=0) != 0)
        if GATE == "none":
            first = neuron_products(
                up_values, up_scales, rows, keep, x, n, x_0, x_1, x_2, x_3, x_4, x_5, x_6, x_7, offset,
                N, STEP, UP, N <= STEP,
            )  # fmt: skip
            if HAS_UP_BIAS:
                first += tl.load(up_bias + rows, mask=keep, other=0.0)
            fired = first_fired(first, wanted, threshold, ACTIVATION)
            value = activated(first, fired, ACTIVATION)
        else:
            first = neuron_products(
                gate_values, gate_scales, rows, keep, x, n, x_0, x_1, x_2, x_3, x_4, x_5, x_6, x_7, offset,
                N, STEP, GATE, N <= STEP,
            )  # fmt: skip
            if HAS_GATE_BIAS:
                first += tl.load(gate_bias + rows, mask=keep, other=0.0)
            fired = first_fired(first, wanted, threshold, ACTIVATION)
            reads = keep if ALL_UP else fired
            up_rows = tl.sum(reads.to(tl.int32), axis=0)
            n_up += up_rows
            up = tl.zeros((ROWS,), tl.float32)
            if up_rows > 0:
                up = neuron_products(
                    up_values, up_scales, rows, reads, x, n, x_0, x_1, x_2, x_3, x_4, x_5, x_6, x_7, offset,
                    N, STEP, UP, SHARED,
                )  # fmt: skip
            if HAS_UP_BIAS:
                up += tl.load(up_bias + rows, mask=reads, other=0.0)
            if ACTIVATION == "drelu":
                fired = fired & ((up <= 0.0) == 0)
            value = tl.where(fired, activated(first, fired, ACTIVATION) * up, 0.0)
        tl.store(hidden + token * n + entry, value, mask=keep)
        if OBSERVED:
            tl.store(fired_out + token * n + rows, fired.to(tl.uint8), mask=keep)
        n_first += tl.sum(keep.to(tl.int32), axis=0)
        n_fired += tl.sum(fired.to(tl.int32), axis=0)
        start += tl.num_programs(1) * ROWS
    if n_first > 0:
        add_counts(counts, n_first, n_up, n_fired, GATE != "none")


@dataclass(frozen=True, eq=False)
class Neurons:
    """gate (None without), up: (n, n_embd), with their biases or None; what makes a neuron fire."""

    gate: DeviceRows | None
    up: DeviceRows
    gate_bias: Tensor | None
    up_bias: Tensor | None
    activation: Activation
    fatrelu_threshold: float


def row_config_of(neurons: Neurons, device: torch.device) -> launch.RowConfig:
    """How `hidden_rows` runs."""
    storages = [m.storage for m in (neurons.gate, neurons.up) if m is not None]
    # Matrices of two storages share the shorter step.
    configs = [launch.row_config("hidden", s, neurons.up.rows, neurons.up.cols, device) for s in storages]
    return min(configs, key=lambda config: config.step)


def hidden_rows(
    neurons: Neurons,
    x: Tensor,
    hidden: Tensor,
    counts: Tensor,
    *,
    lists: tuple[Tensor, Tensor] | None,
    mask: Tensor | None,
    all_up: bool,
    fired: Tensor | None,
) -> None:
    """hidden: float32 (T, n), in the order of the list where there is one, past its count left alone.

    x: (T, n_embd). lists: ids int32 (T, n) and counts int32 (T), or None for every neuron. mask: bool (T, n) of neurons
    that may fire, None for those of the list. all_up: read up rows whether or not the gate fired.
    counts: int64 (4), to which first and up products and fired neurons are added.
    fired: bool (T, n), written at listed neurons alone.
    """
    n_tokens, n = x.shape[0], neurons.up.rows
    device = x.device
    config = row_config_of(neurons, device)
    launch.require(x, "x", torch.float32, (n_tokens, neurons.up.cols), device)
    launch.require(hidden, "hidden", torch.float32, (n_tokens, n), device)
    launch.require(counts, "counts", torch.int64, (4,), device)
    launch.require_bias(neurons.gate_bias, n, device)
    launch.require_bias(neurons.up_bias, n, device)
    gate = neurons.gate
    ids, list_counts = (counts, counts) if lists is None else lists
    launch.run(
        hidden_kernel,
        (n_tokens, config.programs_for(n)),
        warps=config.warps,
        stages=config.stages,
        x=x,
        gate_values=neurons.up.values if gate is None else gate.values,
        gate_scales=neurons.up.values if gate is None else gate.scales_or_values,
        gate_bias=x if neurons.gate_bias is None else neurons.gate_bias,
        up_values=neurons.up.values,
        up_scales=neurons.up.scales_or_values,
        up_bias=x if neurons.up_bias is None else neurons.up_bias,
        ids=ids,
        list_counts=list_counts,
        mask=hidden if mask is None else mask.view(torch.uint8),
        hidden=hidden,
        fired_out=hidden if fired is None else fired.view(torch.uint8),
        counts=counts,
        n=n,
        mask_stride=0 if mask is None else mask.stride(0),
        threshold=float(neurons.fatrelu_threshold),
        N=neurons.up.cols,
        ROWS=config.rows,
        STEP=config.step,
        GATE="none" if gate is None else gate.storage,
        UP=neurons.up.storage,
        ACTIVATION=str(neurons.activation),
        HAS_GATE_BIAS=neurons.gate_bias is not None,
        HAS_UP_BIAS=neurons.up_bias is not None,
        LISTED=lists is not None,
        MASKED=mask is not None,
        ALL_UP=all_up,
        OBSERVED=fired is not None,
        EARLY=starts_early(device),
    )
