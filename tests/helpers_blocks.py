"""Random weights in every stored type, with their float32 values, for tests of what reads them."""

from __future__ import annotations

from typing import NamedTuple

import gguf
import numpy as np
import numpy.typing as npt

from powerinfer_py.gguf.quants import dequantize
from powerinfer_py.gguf.types import BLOCK_LAYOUTS, GGMLType

# Byte offsets of the float16 scales and minima of a block, for types that gguf cannot quantise to.
_SCALES: dict[GGMLType, tuple[int, ...]] = {
    GGMLType.Q2_K: (80, 82),
    GGMLType.Q3_K: (108,),
    GGMLType.Q4_K: (0, 2),
    GGMLType.Q5_K: (0, 2),
    GGMLType.Q6_K: (208,),
}


class StoredRows(NamedTuple):
    """data: uint8, one dimension, read-only. values: (rows, cols) float32, what the data means."""

    type: GGMLType
    data: npt.NDArray[np.uint8]
    values: npt.NDArray[np.float32]


def random_rows(ggml_type: GGMLType, rows: int, cols: int, seed: int = 0, offset: int = 0) -> StoredRows:
    """Random weights of magnitude about 1; `data` starts `offset` bytes after an aligned address."""
    rng = np.random.default_rng([seed, int(ggml_type), rows, cols])
    if ggml_type in _SCALES:
        raw = _random_superblocks(rng, ggml_type, rows * cols // 256)
    else:
        values = rng.standard_normal((rows, cols)).astype(np.float32)
        raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType(int(ggml_type))).view(np.uint8).reshape(-1)
    return stored(ggml_type, raw, rows, cols, offset)


def stored(ggml_type: GGMLType, raw: npt.NDArray[np.uint8], rows: int, cols: int, offset: int = 0) -> StoredRows:
    """The bytes `raw` as read-only data `offset` bytes after an aligned address, with their values."""
    buffer = np.zeros(raw.size + 128 + offset, np.uint8)
    start = -buffer.ctypes.data % 64 + offset
    data = buffer[start : start + raw.size]
    data[:] = raw
    data.flags.writeable = False
    return StoredRows(ggml_type, data, dequantize(data, ggml_type, rows, cols))


def smallest_cols(ggml_type: GGMLType) -> int:
    """Weights of one block."""
    return BLOCK_LAYOUTS[ggml_type].n_weights


def _random_superblocks(rng: np.random.Generator, ggml_type: GGMLType, n_blocks: int) -> npt.NDArray[np.uint8]:
    blocks = rng.integers(0, 256, (n_blocks, BLOCK_LAYOUTS[ggml_type].n_bytes), dtype=np.uint8)
    for at in _SCALES[ggml_type]:
        scales = rng.uniform(-0.002, 0.002, (n_blocks, 1)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8)
    return blocks.reshape(-1)
