"""How many bytes a weight takes on a device. Knows types and shapes, no model and no budget.

Invariant: what `matrix_bytes` says is what the device kernels' matrix occupies, to the byte: a quantised matrix holds
the quants of all its rows and behind them all scales, which together are as many bytes as in the file.
"""

from __future__ import annotations

from powerinfer_py.gguf.types import WEIGHT_TYPES, GGMLType, row_bytes

# What torch's own allocator rounds to on CUDA devices, and more than any vector load wants.
ALIGNMENT = 256
# Kernels exist for these; a weight of another type becomes F16 at load.
DEVICE_TYPES = (GGMLType.F32, GGMLType.F16, GGMLType.BF16, GGMLType.Q8_0, GGMLType.Q4_0)
FLOAT32_BYTES = 4


def device_type(ggml_type: GGMLType) -> GGMLType:
    """The type that a weight matrix has on the device. Raises ValueError for what is no weight type."""
    if ggml_type not in WEIGHT_TYPES:
        raise ValueError(f"{ggml_type.name} is no weight type")
    return ggml_type if ggml_type in DEVICE_TYPES else GGMLType.F16


def matrix_bytes(ggml_type: GGMLType, rows: int, cols: int) -> int:
    """Bytes on the device of a matrix that the file holds in `ggml_type`, without the rounding of its allocation."""
    return rows * row_bytes(device_type(ggml_type), cols)


def aligned(n_bytes: int) -> int:
    """`n_bytes` as a device allocation takes them: rounded up to a multiple of `ALIGNMENT`."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT
