"""How kernels are launched: sizes of tiles, warps and stages, and the one place every launch goes through.

Nothing is tuned at run time. `RECORDED` holds only what was measured on a device; until something is, the fixed
fallbacks below serve every shape. They follow from hardware facts, not from measurements:
- a warp reads 128 bytes at once (32 x 4 bytes), so a tile's rows are read in runs of at least 128 bytes;
- to keep DRAM busy, some 20 to 40 KB must be in flight on each multiprocessor (bandwidth x latency / processors);
- a program of 4 warps with tiles of 2 to 4 KB and 3 stages holds 6 to 12 KB, and several run on a multiprocessor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowConfig:
    """A kernel that reads whole rows: `rows` a program at a time, `step` weights of each. step: multiple of 32.

    programs: most of them a token; they share out what there are more rows.
    """

    rows: int
    step: int
    warps: int
    stages: int
    programs: int

    def programs_for(self, n_rows: int) -> int:
        """Programs of a token for so many rows."""
        return max(1, min(cdiv(n_rows, self.rows), self.programs))


@dataclass(frozen=True)
class TileConfig:
    """A kernel around `tl.dot`: `tokens` x `rows` results a program, sums cut into `step`. All at least 16."""

    tokens: int
    rows: int
    step: int
    warps: int
    stages: int


# (kernel, compute capability, storage, rows, cols) -> configuration, recorded on that device.
RECORDED: dict[tuple[str, tuple[int, int], str, int, int], RowConfig | TileConfig] = {}

# More tokens than this go through tl.dot, whose smallest tile has 16: up to 4, reading the rows once for each token
# (from the L2 cache but for the first) moves fewer bytes through it than the tile wastes work.
MAX_VECTOR_TOKENS = 4
# The first compute capability for whose tensor cores Triton compiles tl.dot.
TENSOR_CORES = (8, 0)
# Columns of activations in whose multiples rows lie apart, where how many are wanted differs from layer to layer.
GROUP = 16
# Fewer rows than this leave multiprocessors without a program at 4 rows each.
_FEW_ROWS = 2048
# Weights that a warp reads of a row at once, 16 bytes a lane; warps of a program lie side by side in a row, so that
# each lane multiplies the activations it has with every row.
_WARP_STEPS = {"f32": 128, "f16": 256, "bf16": 256, "q8_0": 512, "q4_0": 1024}
_MOST_WARPS = 4
# Four on each of 132 multiprocessors.
_PROGRAMS = 528

# (rows, step, warps) of the kernels around tl.dot at up to 64 tokens: the largest that ptxas did not spill on 8.0, 8.9
# and 9.0. "hidden" holds gate and up products, "down" two sums of half the columns for Q4_0. F32 weights, which no
# tensor core multiplies in full, take at most 32 tokens, 64 rows and steps of 32.
_TILES = {"product": (64, 64, 4), "hidden": (64, 64, 8), "down": (128, 32, 8)}


def row_config(kernel: str, storage: str, rows: int, cols: int, device: torch.device) -> RowConfig:
    """Configuration of a kernel that reads `rows` rows of `cols` weights each for itself."""
    recorded = _recorded(kernel, storage, rows, cols, device)
    if isinstance(recorded, RowConfig):
        return recorded
    step = min(_MOST_WARPS * _WARP_STEPS[storage], max(32, next_power_of_2(cols)))
    if device.type == "cpu":
        # Triton's interpreter takes some 10 ms a program, whatever its size.
        return RowConfig(rows=32, step=step, warps=4, stages=1, programs=_PROGRAMS)
    warps = max(1, step // _WARP_STEPS[storage])
    return RowConfig(rows=4 if rows >= _FEW_ROWS else 2, step=step, warps=warps, stages=1, programs=_PROGRAMS)


def tile_config(kernel: str, storage: str, n_tokens: int, rows: int, cols: int, device: torch.device) -> TileConfig:
    """Configuration of a product of `n_tokens` tokens with `rows` rows of `cols` weights."""
    recorded = _recorded(kernel, storage, rows, cols, device)
    if isinstance(recorded, TileConfig):
        return recorded
    rows, step, warps = _TILES[kernel]
    tokens = 16 if n_tokens <= 16 else 32 if n_tokens <= 32 else 64
    if storage == "f32":
        tokens, rows, step = min(tokens, 32), min(rows, 64), 32
    return TileConfig(tokens=tokens, rows=rows, step=step, warps=warps, stages=3)


def _recorded(kernel: str, storage: str, rows: int, cols: int, device: torch.device) -> RowConfig | TileConfig | None:
    if not RECORDED or device.type != "cuda":
        return None
    return RECORDED.get((kernel, torch.cuda.get_device_capability(device), storage, rows, cols))


def has_tensor_cores(device: torch.device) -> bool:
    """Whether Triton multiplies tiles on tensor cores: from 8.0 on. On 7.5 it adds up product by product and spills."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= TENSOR_CORES


def aligned_columns(n: int) -> int:
    """Columns of rows of `n` that begin at multiples of `GROUP` columns: 64 bytes of float32, 32 of float16."""
    return cdiv(n, GROUP) * GROUP


def row_stride(x: Tensor) -> int:
    """Columns from one row of x (T, n) to the next. Of a single row torch may say anything."""
    return x.stride(0) if x.shape[0] > 1 else max(x.stride(0), x.shape[1])


def row_groups(stride: int) -> tuple[int, int]:
    """(groups, columns of a group), whose product is `stride`: a kernel that multiplies by a constant group knows how
    rows are aligned, without being compiled anew for every number of neurons."""
    group = GROUP if stride % GROUP == 0 else 1
    return stride // group, group


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n (and 1)."""
    return 1 << max(n - 1, 0).bit_length()


def cdiv(n: int, d: int) -> int:
    """n / d, rounded up."""
    return -(-n // d)


def run(
    kernel: Any, grid: tuple[int, ...], *, warps: int, stages: int = 1, fusion: bool = True, **arguments: Any
) -> None:
    """Launches `kernel` on `grid`, unless that is empty.

    fusion: whether a product and a sum may become one instruction with one rounding; False where bytes must equal those
    of a definition.
    """
    if 0 in grid:
        return
    kernel[grid](**arguments, num_warps=warps, num_stages=stages, enable_fp_fusion=fusion)


def require(tensor: Tensor, name: str, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> None:
    """Raises TypeError for another dtype, ValueError for another shape, another device, or gaps in memory."""
    require_strided(tensor, name, dtype, shape, device)
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous")


def require_strided(
    tensor: Tensor, name: str, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device
) -> None:
    """The same for a tensor whose last dimension alone must be without gaps."""
    if tensor.dtype is not dtype:
        raise TypeError(f"{name} must be {dtype}, not {tensor.dtype}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, not {tuple(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, not on {tensor.device}")
    if tensor.numel() and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"{name} must have its last dimension without gaps")


def require_bias(bias: Tensor | None, n: int, device: torch.device) -> None:
    """Raises as `require` unless `bias` is None or float32 (n)."""
    if bias is not None:
        require(bias, "bias", torch.float32, (n,), device)
