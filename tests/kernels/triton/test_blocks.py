"""Whole blocks against the reference: norms, RoPE, attention with fused and separate projections, and the FFN block."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers_kernels import tokens
from helpers_triton import Layer, nmse, on_device, stored_matrix, weights_device
from torch import Tensor

from powerinfer_py.config import Activation
from powerinfer_py.gguf.types import GGMLType
from powerinfer_py.kernels.blocks import AttentionBlock, LayerCache, Linear, Norm, Predictor
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import RopeTable
from powerinfer_py.kernels.reference import ReferenceKernels
from powerinfer_py.kernels.triton.kernels import TritonKernels

N_EMBD, N_HEAD, N_HEAD_KV, HEAD_DIM, N_CTX = 64, 4, 2, 20, 12


def vector(kernels: Kernels, n: int, seed: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).to(weights_device(kernels))


def table(kernels: Kernels, halves: bool, n_rot: int = 16) -> RopeTable:
    angle = torch.outer(torch.arange(N_CTX).float(), torch.logspace(0, -2, n_rot // 2))
    return RopeTable(angle.cos().to(weights_device(kernels)), angle.sin().to(weights_device(kernels)), halves)


@pytest.mark.parametrize("n", [1, 45, 4096, 5000])
@pytest.mark.parametrize("biased", [False, True])
def test_norms(triton_kernels: TritonKernels, reference: ReferenceKernels, n: int, biased: bool) -> None:
    x = tokens(3, n) * 3 + 1
    x[2] *= 1e-4
    got, want = [], []
    for kernels, results in ((triton_kernels, got), (reference, want)):
        weight, bias = vector(kernels, n, 1), vector(kernels, n, 2) if biased else None
        on = on_device(kernels, x)
        assert on is not None
        results.append(kernels.rms_norm(on, weight, 1e-5).cpu())
        results.append(kernels.layer_norm(on, weight, bias, 1e-5).cpu())
    for a, b in zip(got, want, strict=True):
        # Sums of n squares in another order, root and quotient: some 10 roundings of the result.
        assert float((a - b).abs().max()) <= 2e-6 * float(b.abs().max()) + 1e-9


def test_norms_pass_nan_on(triton_kernels: TritonKernels) -> None:
    x = tokens(2, 45)
    x[1, 3] = float("nan")
    y = triton_kernels.rms_norm(on_device(triton_kernels, x), vector(triton_kernels, 45, 1), 1e-5).cpu()  # type: ignore[arg-type]
    assert torch.isfinite(y[0]).all()
    assert torch.isnan(y[1]).all()


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize(("heads", "dim", "n_rot"), [(3, 20, 16), (1, 64, 64), (2, 6, 2)])
def test_rope(
    triton_kernels: TritonKernels, reference: ReferenceKernels, halves: bool, heads: int, dim: int, n_rot: int
) -> None:
    q = torch.randn(5, heads, dim, generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([3, 0, 11, 7, 7])
    on = [one.to(triton_kernels.device) for one in (q, positions)]
    got = triton_kernels.rope(*on, table(triton_kernels, halves, n_rot))
    want = reference.rope(q, positions, table(reference, halves, n_rot))
    assert torch.allclose(got.cpu(), want, rtol=0, atol=2.0**-22 * float(q.abs().max()))


def test_a_position_outside_the_table_is_refused(triton_kernels: TritonKernels) -> None:
    if triton_kernels.device.type != "cpu":
        pytest.skip("looking at a position would wait for the device")
    with pytest.raises(IndexError, match="position 12"):
        triton_kernels.rope(torch.ones(1, 1, 16), torch.tensor([N_CTX]), table(triton_kernels, True))


def attention(kernels: Kernels, fused: bool, layer_norm: bool, biases: bool) -> AttentionBlock:
    n_q, n_kv = N_HEAD * HEAD_DIM, N_HEAD_KV * HEAD_DIM

    def linear(rows: int, cols: int, seed: int) -> Linear:
        matrix = stored_matrix(kernels, GGMLType.F16, rows, cols, seed)
        return Linear(matrix, vector(kernels, rows, seed) if biases else None)

    rows = [n_q + 2 * n_kv] if fused else [n_q, n_kv, n_kv]
    return AttentionBlock(
        norm=Norm(vector(kernels, N_EMBD, 1), vector(kernels, N_EMBD, 2) if layer_norm else None, 1e-5, layer_norm),
        qkv=tuple(linear(n, N_EMBD, 3 + i) for i, n in enumerate(rows)),
        output=linear(N_EMBD, n_q, 9),
        n_head=N_HEAD,
        n_head_kv=N_HEAD_KV,
        head_dim=HEAD_DIM,
        head_dim_v=HEAD_DIM,
    )


@pytest.mark.parametrize(
    ("fused", "layer_norm", "biases", "halves"),
    [(False, False, False, False), (True, True, False, True), (False, True, True, None)],
    ids=["llama", "falcon", "opt"],
)
@pytest.mark.parametrize("n_tokens", [3, 20])
def test_attention_block(
    triton_kernels: TritonKernels,
    reference: ReferenceKernels,
    fused: bool,
    layer_norm: bool,
    biases: bool,
    halves: bool | None,
    n_tokens: int,
) -> None:
    x, residual = tokens(n_tokens, N_EMBD), tokens(n_tokens, N_EMBD, seed=5)
    # Sequences side by side, in an order of slots that is not ascending; the last two tokens go on with the first.
    slots = torch.tensor([2, 0, 2] if n_tokens == 3 else [2] * 8 + [0] * 6 + [1] * 4 + [2] * 2)
    positions = torch.tensor([0, 0, 1] if n_tokens == 3 else [*range(8), *range(6), *range(4), 8, 9])
    results = []
    for kernels in (triton_kernels, reference):
        device = weights_device(kernels)
        cache = LayerCache(*(torch.full((3, N_HEAD_KV, N_CTX, HEAD_DIM), float("nan")).half().to(device) for _ in "kv"))
        rope = None if halves is None else table(kernels, halves)
        block = kernels.prepare_attention(attention(kernels, fused, layer_norm, biases))
        y = kernels.attention_block(
            block, *(one.to(device) for one in (x, residual)), cache, slots.to(device), positions.to(device), rope
        )
        results.append((y, cache.keys[slots, :, positions].cpu()))
    (got, keys), (want, other_keys) = results
    assert nmse(got, want) < 1e-6
    # A key may fall on the other side of a tie between two float16.
    assert nmse(keys.float(), other_keys.float()) < 1e-7


@pytest.mark.parametrize("n_tokens", [1, 7])
@pytest.mark.parametrize("ggml_type", [GGMLType.F16, GGMLType.Q4_0], ids=str)
def test_feed_forward_block(
    triton_kernels: TritonKernels, reference: ReferenceKernels, n_tokens: int, ggml_type: GGMLType
) -> None:
    layer = Layer(ggml_type, n_ff=90, n_embd=64, activation=Activation.DRELU)
    x, residual = tokens(n_tokens, 64), tokens(n_tokens, 64, seed=3)
    results = []
    for kernels in (triton_kernels, reference):
        # The predictor in F32, so that both agree on the mask.
        predictor = Predictor(
            stored_matrix(kernels, GGMLType.F32, 16, 64, 4), stored_matrix(kernels, GGMLType.F32, 90, 16, 5)
        )
        block = kernels.prepare_feed_forward(replace(layer.block(kernels), predictor=predictor))
        on = [one.to(weights_device(kernels)) for one in (x, residual)]
        results.append(kernels.feed_forward_block(block, on[0], on[1], observe=True))
    got, want = results
    assert got.predicted is not None
    assert got.fired is not None
    assert want.predicted is not None
    assert want.fired is not None
    assert torch.equal(got.predicted.cpu(), want.predicted)
    assert nmse(got.y, want.y) < (1e-6 if ggml_type is GGMLType.F16 else 5e-4)
    assert torch.equal(got.fired.cpu(), want.fired)
    assert (got.gate_products, got.up_products, got.down_products) == (
        want.gate_products,
        want.up_products,
        want.down_products,
    )
