"""The bytes of packed rows against the order as csrc/isa/packed_rows.hpp states it, written out with numpy."""

from __future__ import annotations

from itertools import pairwise

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from helpers_blocks import random_rows
from helpers_kernels import same_bits, tokens

from powerinfer_py import _native
from powerinfer_py.gguf.types import BLOCK_LAYOUTS, GGMLType
from powerinfer_py.kernels.cpu import PACKED_TYPES, NativeKernels

Bytes = npt.NDArray[np.uint8]
# Whole runs of 16 blocks of 32, and rests of 1 to 15.
COLS = [32, 64, 96, 160, 224, 480, 512, 544, 1120]
K_COLS = [256, 512, 768]
SUPERBLOCKS = (GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q6_K)
BITS = {GGMLType.Q8_0: 8, GGMLType.Q6_K: 6, GGMLType.Q5_0: 5, GGMLType.Q5_1: 5, GGMLType.Q5_K: 5}
CASES = [(t, n) for t in PACKED_TYPES for n in (K_COLS if t in SUPERBLOCKS else COLS)]


def nibbles(data: Bytes, n: int) -> Bytes:
    """Low halves of each `n` bytes, then their high halves."""
    return np.stack([data.reshape(-1, n) & 15, data.reshape(-1, n) >> 4], axis=1).reshape(len(data), -1)


def fifth_bits(data: Bytes) -> Bytes:
    return np.unpackbits(data, axis=1, bitorder="little") << 4


def simple_blocks(ggml_type: GGMLType, blocks: Bytes) -> tuple[Bytes, Bytes]:
    """Heads (scale, and minimum where there is one) and quants in the order of the weights."""
    n_head = 4 if ggml_type in (GGMLType.Q4_1, GGMLType.Q5_1) else 2
    head, rest = blocks[:, :n_head].reshape(len(blocks), -1, 2), blocks[:, n_head:]
    if ggml_type is GGMLType.Q8_0:
        return head, rest ^ 0x80
    if BITS.get(ggml_type) == 5:
        return head, nibbles(rest[:, 4:], 16) | fifth_bits(rest[:, :4])
    return head, nibbles(rest, 16)


def superblocks(ggml_type: GGMLType, blocks: Bytes) -> tuple[Bytes, Bytes]:
    """Those of 32 weights each that Q4_K and Q5_K become."""
    d, d_minimum = (np.ascontiguousarray(blocks[:, i : i + 2]).view(np.float16).astype(np.float32) for i in (0, 2))
    scales, minima = gguf.quants.Q4_K.get_scale_min(blocks[:, 4:16])
    both = np.stack([d * scales.astype(np.float32), -d_minimum * minima.astype(np.float32)], axis=2)
    quants = nibbles(blocks[:, -128:], 32)
    if ggml_type is GGMLType.Q5_K:
        bits = np.unpackbits(blocks[:, 16:48].reshape(-1, 32, 1), axis=2, bitorder="little")  # (block, i, run)
        quants |= bits.transpose(0, 2, 1).reshape(len(blocks), 256) << 4
    return both.astype(np.float16).reshape(-1, 2, 1).view(np.uint8), quants.reshape(-1, 32)


def six_bits(blocks: Bytes) -> Bytes:
    quants = np.empty((len(blocks), 2, 4, 32), np.uint8)
    for half in range(2):
        low, high = blocks[:, 64 * half :][:, :64], blocks[:, 128 + 32 * half :][:, :32]
        for quarter in range(4):
            part = low[:, 32 * (quarter % 2) :][:, :32] >> (4 * (quarter // 2)) & 15
            quants[:, half, quarter] = part | (high >> (2 * quarter) & 3) << 4
    return quants.reshape(-1, 16)


def lines(quants: Bytes, bits: int) -> Bytes:
    """One run: (lanes, weights of a lane) as its lines."""
    steps = quants.reshape(len(quants), -1, 4).transpose(1, 0, 2)  # (step, lane, 4)
    if bits == 8:
        return steps.reshape(-1)
    result = [(steps[::2] & 15) | (steps[1::2] & 15) << 4]
    if bits > 4:
        high = [(step >> 4) << (i * (bits - 4)) for i, step in enumerate(steps)]
        result.append(np.bitwise_or.reduce(high)[None])
    return np.concatenate(result).reshape(-1)


def packed_row(ggml_type: GGMLType, row: Bytes) -> Bytes:
    blocks = row.reshape(-1, BLOCK_LAYOUTS[ggml_type].n_bytes)
    if ggml_type is GGMLType.Q6_K:
        head, quants = [blocks[:, 208:].reshape(-1), blocks[:, 192:208].reshape(-1)], six_bits(blocks)
    else:
        split = superblocks if ggml_type in SUPERBLOCKS else simple_blocks
        heads, quants = split(ggml_type, blocks)
        head = [heads[:, i].reshape(-1) for i in range(heads.shape[1])]
    starts = [*range(0, len(quants), 16), len(quants)]
    runs = [lines(quants[begin:end], BITS.get(ggml_type, 4)) for begin, end in pairwise(starts)]
    return np.concatenate([*head, *runs])


@pytest.mark.parametrize(("ggml_type", "cols"), CASES, ids=str)
def test_order(native: NativeKernels, ggml_type: GGMLType, cols: int) -> None:
    rows = random_rows(ggml_type, 5, cols, offset=2)
    matrix = native.matrix("w", ggml_type, 5, cols, rows.data, pack=True)
    expected = [packed_row(ggml_type, row) for row in rows.data.reshape(5, -1)]
    assert matrix.handle.to_bytes() == np.concatenate(expected).tobytes()


@pytest.mark.parametrize("ggml_type", PACKED_TYPES, ids=lambda t: t.name)
def test_packed_bytes_serve_as_they_are(native: NativeKernels, ggml_type: GGMLType) -> None:
    rows, x = random_rows(ggml_type, 37, 512), tokens(3, 512)
    matrix = native.matrix("w", ggml_type, 37, 512, rows.data, pack=True)
    data = np.frombuffer(matrix.handle.to_bytes(), np.uint8)
    again = _native.Matrix(data, int(ggml_type), 37, 512, True)
    assert again.packed
    y = torch.full((3, 37), float("nan"))
    native._native.linear(again, x.data_ptr(), 3, 0, 0, y.data_ptr())
    assert same_bits(y, native.linear(matrix, x))
    with pytest.raises(ValueError, match="bytes"):
        _native.Matrix(data[:-1], int(ggml_type), 37, 512, True)


def test_types_without_a_packed_order() -> None:
    data = np.zeros(128, np.uint8)
    with pytest.raises(ValueError, match="can be packed"):
        _native.Matrix(data, int(GGMLType.F32), 1, 32, True)
