"""Prepared blocks of a small layer, random but the same every time."""

from __future__ import annotations

import torch
from helpers_blocks import random_rows
from helpers_kernels import matrix_of
from torch import Tensor

from powerinfer_py.config import Activation
from powerinfer_py.gguf.types import GGMLType
from powerinfer_py.kernels.blocks import (
    AttentionBlock,
    FeedForwardBlock,
    FeedForwardWeights,
    LayerCache,
    Linear,
    Norm,
    Predictor,
)
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import Matrix

N_EMBD, N_FF, RANK = 64, 352, 32
N_HEAD, N_HEAD_KV, HEAD_DIM, HEAD_DIM_V = 6, 2, 20, 12
N_SLOTS, N_CTX = 3, 24


def matrix(kernels: Kernels, rows: int, cols: int, seed: int) -> Matrix:
    ggml_type = GGMLType.Q4_0 if cols % 32 == 0 else GGMLType.F16
    return matrix_of(kernels, random_rows(ggml_type, rows, cols, seed))


def vector(n: int, seed: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def norm(layer_norm: bool) -> Norm:
    return Norm(vector(N_EMBD, 1), vector(N_EMBD, 2) if layer_norm else None, 1e-5, layer_norm)


def feed_forward_block(
    kernels: Kernels, activation: Activation, gated: bool, mode: str, transposed: bool = True
) -> FeedForwardBlock:
    down = matrix(kernels, N_FF, N_EMBD, 5) if transposed else matrix(kernels, N_EMBD, N_FF, 5)
    weights = FeedForwardWeights(
        up=matrix(kernels, N_FF, N_EMBD, 3),
        gate=matrix(kernels, N_FF, N_EMBD, 4) if gated else None,
        down=down,
        down_is_transposed=transposed,
        up_bias=vector(N_FF, 6),
        down_bias=vector(N_EMBD, 7),
        gate_bias=vector(N_FF, 8) if gated else None,
    )
    predictor = Predictor(matrix(kernels, RANK, N_EMBD, 9), matrix(kernels, N_FF, RANK, 10))
    return kernels.prepare_feed_forward(
        FeedForwardBlock(
            norm=norm(layer_norm=not gated),
            weights=weights,
            predictor=predictor if mode == "predictor" else None,
            activation=activation,
            fatrelu_threshold=0.5 if activation is Activation.FATRELU else 0.0,
            sparse_threshold=0.3,
            dense=mode == "dense",
        )
    )


def attention_block(
    kernels: Kernels, fused: bool, head_dim: int = HEAD_DIM, head_dim_v: int = HEAD_DIM_V
) -> AttentionBlock:
    n_q, n_k, n_v = N_HEAD * head_dim, N_HEAD_KV * head_dim, N_HEAD_KV * head_dim_v
    rows = [n_q + n_k + n_v] if fused else [n_q, n_k, n_v]
    return kernels.prepare_attention(
        AttentionBlock(
            norm=norm(layer_norm=fused),
            qkv=tuple(Linear(matrix(kernels, n, N_EMBD, 20 + i), vector(n, 30 + i)) for i, n in enumerate(rows)),
            output=Linear(matrix(kernels, N_EMBD, N_HEAD * head_dim_v, 40), vector(N_EMBD, 41)),
            n_head=N_HEAD,
            n_head_kv=N_HEAD_KV,
            head_dim=head_dim,
            head_dim_v=head_dim_v,
        )
    )


def empty_cache() -> LayerCache:
    nan = float("nan")
    keys = torch.full((N_SLOTS, N_HEAD_KV, N_CTX, HEAD_DIM), nan, dtype=torch.float16)
    return LayerCache(keys, torch.full((N_SLOTS, N_HEAD_KV, N_CTX, HEAD_DIM_V), nan, dtype=torch.float16))
