"""A part of an FFN and buffers for it, for tests of the jobs that run without Python."""

from __future__ import annotations

import torch
from helpers_blocks import random_rows
from helpers_kernels import mask_of, matrix_of, tokens

from powerinfer_py.config import Activation
from powerinfer_py.gguf.types import GGMLType
from powerinfer_py.kernels.blocks import FeedForwardBlock, FeedForwardWeights, Norm
from powerinfer_py.kernels.cpu import NativeKernels
from powerinfer_py.kernels.mask_bits import bytes_of_bits, pack_columns

N_EMBD, N_FF = 64, 331


def block_of(kernels: NativeKernels, n_ff: int = N_FF) -> FeedForwardBlock:
    up, gate, down = (matrix_of(kernels, random_rows(GGMLType.Q4_0, n_ff, N_EMBD, seed)) for seed in (1, 2, 3))
    weights = FeedForwardWeights(up, gate, down, True, None, None)
    norm = Norm(torch.ones(N_EMBD), None, 1e-5, False)
    return kernels.prepare_feed_forward(FeedForwardBlock(norm, weights, None, Activation.RELU, 0.0, 0.0, False))


class Buffers:
    """Input, bits and result of a job."""

    def __init__(self, n_tokens: int) -> None:
        self.h = torch.full((n_tokens, N_EMBD), float("nan"))
        self.bits = torch.zeros(n_tokens, bytes_of_bits(N_FF), dtype=torch.uint8)
        self.y = torch.full((n_tokens, N_EMBD), float("nan"))

    def fill(self, seed: int) -> torch.Tensor:
        self.h.copy_(tokens(len(self.h), N_EMBD, seed))
        mask = mask_of(len(self.h), N_FF, 0.4, seed)
        self.bits.copy_(pack_columns(mask, 0))
        return mask
