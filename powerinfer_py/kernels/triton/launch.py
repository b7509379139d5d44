"""How kernels are launched: sizes of tiles, warps and stages, and the one place every launch goes through.

Nothing is tuned at run time. `RECORDED` holds only what was measured on a device for one shape; until something is, the
fixed fallbacks below serve every shape. Those of kernels that read whole rows are rules that fit what was best on an
H200 (tools/tune_triton.py); those of tiles follow from hardware facts alone:
- a warp reads 128 bytes at once (32 x 4 bytes), so a tile's rows are read in runs of at least 128 bytes;
- to keep DRAM busy, some 20 to 40 KB must be in flight on each multiprocessor (bandwidth x latency / processors);
- a program of 4 warps with tiles of 2 to 4 KB and 3 stages holds 6 to 12 KB, and several run on a multiprocessor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from powerinfer_py.placement.sizes import most_parts


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
    """A kernel around `tl.dot`: `tokens` x `rows` results a program, sums taken `step` at a time. All at least 16.

    parts: pieces of a sum, each a program's; more than one are added by a second kernel.
    """

    tokens: int
    rows: int
    step: int
    warps: int
    stages: int
    parts: int = 1


# (kernel, compute capability, storage, rows, cols, token bucket) -> configuration, recorded on that device. The bucket
# is 0 for kernels that read whole rows; rows are 0 for tiles of "hidden" and "down", whose neurons differ from layer to
# layer.
Key = tuple[str, tuple[int, int], str, int, int, int]
RECORDED: dict[Key, RowConfig | TileConfig] = {}

# More tokens than this go through tl.dot, whose smallest tile has 16: up to 4, reading the rows once for each token
# (from the L2 cache but for the first) moves fewer bytes through it than the tile wastes work.
MAX_VECTOR_TOKENS = 4
# The first compute capability for whose tensor cores Triton compiles tl.dot.
TENSOR_CORES = (8, 0)
# Columns of activations in whose multiples rows lie apart, where how many are wanted differs from layer to layer.
GROUP = 16
# Weights of a row that a warp reads at once. Of blocks it takes 16 bytes a lane, two of Q8_0, and keeps the activations
# that belong to them; of the others more warps would have no 128 bytes each.
_WARP_STEPS = {"f32": 256, "f16": 512, "bf16": 512, "q8_0": 1024, "q4_0": 1024}
_LEAST_WARP_STEP = 256
_MOST_WARPS = 8
# Programs of blocks share out all rows, since making activations takes as long as some rows: as many as fill an H200's
# 132 multiprocessors with 8 warps each, but two for each at least.
_PROGRAM_WARPS, _LEAST_PROGRAMS = 1056, 264
_ANY_PROGRAMS = 1 << 30

# Numbers of tokens that tiles are configured for: a chunk counts as the next larger, more as the last.
TOKEN_BUCKETS = (16, 32, 64, 128, 256, 512)
# Two for each of an H200's 132 multiprocessors: fewer programs than this are worth cutting sums into parts.
_PROGRAMS = 264
# A part shorter than this many steps does not fill the pipeline of loads.
_LEAST_STEPS = 4
# How storages are multiplied: in float32, in two halves, in one half after unpacking bytes or nibbles.
STORAGE_CLASSES = {"f32": "f32", "f16": "halves", "bf16": "halves", "q8_0": "bytes", "q4_0": "nibbles"}


def _buckets(*configs: TileConfig) -> dict[int, TileConfig]:
    """One for each of `TOKEN_BUCKETS`, the last for all that are left."""
    return dict(zip(TOKEN_BUCKETS, (*configs, *[configs[-1]] * (len(TOKEN_BUCKETS) - len(configs))), strict=True))


# (kernel, class) -> configurations of the buckets where none is recorded, none of which ptxas spilled on 8.0, 8.9 and
# 9.0 in any storage of its class, and none with more than 99 KB of shared memory, the least of those.
# - From 64 tokens on there is a warp for every 16: with more, the warps of a warp group of 9.0 compute what others do,
#   and layouts are exchanged between products; once that gave wrong results (`attention_tiles`).
# - Few tokens: some 10 KB of weights in flight a program, several programs on a multiprocessor.
# - Bytes and nibbles: best with 2 scales a thread (rows * step >= 2048 * warps), see `halves.block_scales`. "hidden"
#   holds gate and up products; with 64 rows of bytes 8.0 spilled 8 bytes of them.
TILES: dict[tuple[str, str], dict[int, TileConfig]] = {
    ("product", "f32"): _buckets(TileConfig(16, 64, 32, 4, 3), TileConfig(32, 64, 32, 4, 3)),
    ("product", "halves"): _buckets(
        TileConfig(16, 64, 64, 4, 4),
        TileConfig(32, 64, 64, 4, 4),
        TileConfig(64, 64, 64, 4, 3),
        TileConfig(128, 128, 32, 8, 3),
    ),
    ("product", "bytes"): _buckets(
        TileConfig(16, 64, 128, 4, 4),
        TileConfig(32, 64, 128, 4, 3),
        TileConfig(64, 64, 128, 4, 3),
        TileConfig(128, 128, 64, 8, 3),
    ),
    ("product", "nibbles"): _buckets(
        TileConfig(16, 64, 128, 4, 4),
        TileConfig(32, 64, 128, 4, 3),
        TileConfig(64, 64, 128, 4, 3),
        TileConfig(128, 128, 64, 8, 3),
    ),
    ("hidden", "f32"): _buckets(TileConfig(16, 64, 32, 8, 3), TileConfig(32, 64, 32, 8, 3)),
    ("hidden", "halves"): _buckets(
        TileConfig(16, 32, 64, 4, 4),
        TileConfig(32, 64, 64, 4, 3),
        TileConfig(64, 64, 64, 4, 3),
        TileConfig(128, 64, 32, 8, 3),
    ),
    ("hidden", "bytes"): _buckets(
        TileConfig(16, 32, 256, 4, 3),
        TileConfig(32, 64, 128, 4, 3),
        TileConfig(64, 32, 64, 4, 3),
        TileConfig(128, 32, 64, 8, 3),
    ),
    ("hidden", "nibbles"): _buckets(
        TileConfig(16, 32, 256, 2, 3),
        TileConfig(32, 64, 128, 4, 3),
        TileConfig(64, 64, 64, 4, 3),
        TileConfig(128, 64, 64, 8, 3),
    ),
    ("down", "f32"): _buckets(TileConfig(16, 64, 32, 8, 3), TileConfig(32, 64, 32, 8, 3)),
    ("down", "halves"): _buckets(
        TileConfig(16, 128, 64, 4, 3),
        TileConfig(32, 128, 64, 4, 3),
        TileConfig(64, 64, 64, 4, 3),
        TileConfig(128, 64, 32, 8, 3),
    ),
    ("down", "bytes"): _buckets(
        TileConfig(16, 128, 64, 4, 3),
        TileConfig(32, 128, 64, 4, 3),
        TileConfig(64, 64, 64, 4, 3),
        TileConfig(128, 64, 64, 8, 3),
    ),
    ("down", "nibbles"): _buckets(
        TileConfig(16, 128, 64, 4, 3),
        TileConfig(32, 128, 64, 4, 3),
        TileConfig(64, 64, 64, 4, 3),
        TileConfig(128, 64, 64, 8, 3),
    ),
}


def row_config(kernel: str, storage: str, rows: int, cols: int, device: torch.device) -> RowConfig:
    """Configuration of a kernel that reads `rows` rows of `cols` weights each for itself."""
    recorded = _recorded(kernel, storage, rows, cols, device)
    if isinstance(recorded, RowConfig):
        return recorded
    width = max(32, next_power_of_2(cols))
    step = min(_MOST_WARPS * _WARP_STEPS[storage], width)
    if device.type == "cpu":
        # Triton's interpreter takes some 10 ms a program, whatever its size.
        return RowConfig(rows=32, step=step, warps=4, stages=1, programs=_ANY_PROGRAMS)
    return _row_fallback(kernel, storage, step)


def _row_fallback(kernel: str, storage: str, step: int) -> RowConfig:
    """What tools/tune_triton.py found best on an H200 over the shapes of 7B and 70B models, as rules."""
    if storage not in ("q4_0", "q8_0"):
        if kernel == "hidden":
            step = min(step, 1024)
        warps = max(1, min(_MOST_WARPS, step // (_WARP_STEPS[storage] if step > 1024 else _LEAST_WARP_STEP)))
        rows, programs = (4, 528) if kernel == "hidden" else (2, _ANY_PROGRAMS)
        return RowConfig(rows=rows, step=step, warps=warps, stages=1, programs=programs)
    warps = max(1, step // _WARP_STEPS[storage])
    programs = max(_LEAST_PROGRAMS, _PROGRAM_WARPS // warps)
    return RowConfig(
        rows=4 if warps <= 4 and storage == "q4_0" else 2, step=step, warps=warps, stages=3, programs=programs
    )


def token_bucket(n_tokens: int) -> int:
    """The number of `TOKEN_BUCKETS` that `n_tokens` count as."""
    return next((bucket for bucket in TOKEN_BUCKETS if n_tokens <= bucket), TOKEN_BUCKETS[-1])


def tile_config(kernel: str, storage: str, n_tokens: int, rows: int, cols: int, device: torch.device) -> TileConfig:
    """Configuration of a product of `n_tokens` tokens with `rows` rows of `cols` weights; "down": with its columns.

    The same for all tokens of a bucket, and of "hidden" and "down" for all numbers of neurons, so that a warm-up has
    compiled what a step launches.
    """
    bucket = token_bucket(n_tokens)
    # Results of a token, and what is summed where that is the same for all layers.
    outputs, summed = (cols, None) if kernel == "down" else (rows, cols)
    recorded = _recorded(kernel, storage, rows if kernel == "product" else 0, cols, device, bucket)
    config = recorded if isinstance(recorded, TileConfig) else TILES[kernel, STORAGE_CLASSES[storage]][bucket]
    if kernel == "hidden" or n_tokens > TOKEN_BUCKETS[-1]:
        return replace(config, parts=1)
    most = most_parts(bucket, outputs)
    if summed is not None:
        most = min(most, max(1, summed // (config.step * _LEAST_STEPS)))
    wanted = config.parts
    if recorded is None:
        wanted = _PROGRAMS // (cdiv(bucket, config.tokens) * cdiv(max(outputs, 1), config.rows))
    if device.type == "cpu":
        # Enough for both ways through the kernels: the interpreter takes some 10 ms a program, whatever its size.
        wanted = min(wanted, 2)
    return replace(config, parts=max(1, min(wanted, most)))


def _recorded(
    kernel: str, storage: str, rows: int, cols: int, device: torch.device, bucket: int = 0
) -> RowConfig | TileConfig | None:
    if not RECORDED or device.type != "cuda":
        return None
    return RECORDED.get((kernel, torch.cuda.get_device_capability(device), storage, rows, cols, bucket))


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
    options = {"launch_pdl": True} if arguments.get("EARLY") else {}
    kernel[grid](**arguments, num_warps=warps, num_stages=stages, enable_fp_fusion=fusion, **options)


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
