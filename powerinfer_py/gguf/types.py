"""The types a tensor of a GGUF or PWRI file can have: ids, block sizes, and which of them this package computes with.

Numbers follow ggml's `enum ggml_type`. PWRI files keep an older numbering for plain integers, see `PWRI_TYPE_IDS`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class GGMLType(IntEnum):
    """Tensor types by their id in GGUF files (magic `GGUF`)."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    BF16 = 30


class BlockLayout(NamedTuple):
    """A row is stored as whole blocks of `n_weights` weights, each of `n_bytes` bytes."""

    n_weights: int
    n_bytes: int


BLOCK_LAYOUTS: dict[GGMLType, BlockLayout] = {
    GGMLType.F32: BlockLayout(1, 4),
    GGMLType.F16: BlockLayout(1, 2),
    GGMLType.BF16: BlockLayout(1, 2),
    GGMLType.F64: BlockLayout(1, 8),
    GGMLType.I8: BlockLayout(1, 1),
    GGMLType.I16: BlockLayout(1, 2),
    GGMLType.I32: BlockLayout(1, 4),
    GGMLType.I64: BlockLayout(1, 8),
    GGMLType.Q4_0: BlockLayout(32, 18),
    GGMLType.Q4_1: BlockLayout(32, 20),
    GGMLType.Q5_0: BlockLayout(32, 22),
    GGMLType.Q5_1: BlockLayout(32, 24),
    GGMLType.Q8_0: BlockLayout(32, 34),
    GGMLType.Q2_K: BlockLayout(256, 84),
    GGMLType.Q3_K: BlockLayout(256, 110),
    GGMLType.Q4_K: BlockLayout(256, 144),
    GGMLType.Q5_K: BlockLayout(256, 176),
    GGMLType.Q6_K: BlockLayout(256, 210),
}

# PWRI files branched off before the IQ types took 16 to 23: there 16, 17 and 18 are the plain integers.
# A PWRI file is written with these ids, or PowerInfer cannot read it; today's ids are accepted in one too.
PWRI_TYPE_IDS: dict[int, GGMLType] = {16: GGMLType.I8, 17: GGMLType.I16, 18: GGMLType.I32}

# Types a weight matrix may have; every kernel handles all of them.
WEIGHT_TYPES: tuple[GGMLType, ...] = (
    GGMLType.F32,
    GGMLType.F16,
    GGMLType.BF16,
    GGMLType.Q4_0,
    GGMLType.Q4_1,
    GGMLType.Q5_0,
    GGMLType.Q5_1,
    GGMLType.Q8_0,
    GGMLType.Q2_K,
    GGMLType.Q3_K,
    GGMLType.Q4_K,
    GGMLType.Q5_K,
    GGMLType.Q6_K,
)


def row_bytes(ggml_type: GGMLType, n_weights: int) -> int:
    """Bytes of a row of `n_weights` weights. Raises ValueError when the row is no whole number of blocks."""
    layout = BLOCK_LAYOUTS[ggml_type]
    n_blocks, rest = divmod(n_weights, layout.n_weights)
    if rest:
        raise ValueError(
            f"a row of {n_weights} weights is no multiple of the {ggml_type.name} block of {layout.n_weights}"
        )
    return n_blocks * layout.n_bytes


# Ids that ggml gives to types this package does not compute with; a file that holds one is well-formed.
UNSUPPORTED_TYPE_NAMES: dict[int, str] = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
}


class ValueType(IntEnum):
    """Types of a metadata value by their id in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


INTEGER_VALUE_TYPES = frozenset(
    {
        ValueType.UINT8,
        ValueType.INT8,
        ValueType.UINT16,
        ValueType.INT16,
        ValueType.UINT32,
        ValueType.INT32,
        ValueType.UINT64,
        ValueType.INT64,
    }
)
FLOAT_VALUE_TYPES = frozenset({ValueType.FLOAT32, ValueType.FLOAT64})

# numpy's name of each value of fixed size, little endian; a BOOL is a byte and any byte but 0 is true.
VALUE_DTYPES: dict[ValueType, str] = {
    ValueType.UINT8: "<u1",
    ValueType.INT8: "<i1",
    ValueType.UINT16: "<u2",
    ValueType.INT16: "<i2",
    ValueType.UINT32: "<u4",
    ValueType.INT32: "<i4",
    ValueType.FLOAT32: "<f4",
    ValueType.BOOL: "<u1",
    ValueType.UINT64: "<u8",
    ValueType.INT64: "<i8",
    ValueType.FLOAT64: "<f8",
}
