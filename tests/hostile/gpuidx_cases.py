"""gpuidx files for a model of two layers with four neurons each: damaged, at odds with themselves, of another model."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers_gguf_bytes as b
from helpers_models import FIXTURES
from hostile.case import HostileCase, with_bytes

from powerinfer_py.gguf import keys

N_LAYER, N_FF = 2, 4
I32_OF_POWERINFER = 18
ERROR = "GpuIndexError"
Values = dict[str, list[int]]
GOOD_KEYS = {
    keys.ARCHITECTURE: b.string_entry(keys.ARCHITECTURE, keys.GPU_INDEX_ARCHITECTURE),
    keys.GPU_INDEX_BLOCK_COUNT: b.entry(keys.GPU_INDEX_BLOCK_COUNT, b.U32, struct.pack("<I", N_LAYER)),
    keys.VRAM_CAPACITY: b.entry(keys.VRAM_CAPACITY, b.U64, struct.pack("<Q", 4096)),
}
SOLVED_KEYS = {
    keys.GPU_INDEX_FINGERPRINT: b.string_entry(keys.GPU_INDEX_FINGERPRINT, "ab" * 32),
    keys.GPU_INDEX_ACTIVATION_HASH: b.string_entry(keys.GPU_INDEX_ACTIVATION_HASH, "none"),
    keys.GPU_INDEX_BUDGET_BYTES: b.entry(keys.GPU_INDEX_BUDGET_BYTES, b.U64, struct.pack("<Q", 1)),
    keys.GPU_INDEX_RATES: b.string_entry(keys.GPU_INDEX_RATES, "{}"),
    keys.GPU_INDEX_GAP: b.entry(keys.GPU_INDEX_GAP, b.F64, struct.pack("<d", 0.0)),
    keys.GPU_INDEX_BLOCKS: b.string_entry(keys.GPU_INDEX_BLOCKS, "11"),
    keys.GPU_INDEX_HEAD: b.entry(keys.GPU_INDEX_HEAD, b.BOOL, b"\0"),
}
GOOD_TENSORS: Values = {
    "blk.0.gpu_idx": [1, 0, 1, 1],
    "blk.0.gpu_bucket": [0, 2, 3],
    "blk.1.gpu_idx": [0, 1, 0, 0],
    "blk.1.gpu_bucket": [1],
}


def index_bytes(
    tensors: Values, entries: dict[str, bytes], magic: bytes = b"PWRI", type_id: int = I32_OF_POWERINFER
) -> bytes:
    infos, data = [], b""
    for name, values in tensors.items():
        infos.append(b.info(name, (len(values),), type_id, len(data)))
        packed = struct.pack(f"<{len(values)}i", *values)
        data += packed + bytes(-len(packed) % b.ALIGNMENT)
    return b.gguf_bytes([*entries.values()], infos, data, magic=magic)


def tensors(name: str, match: str = "", drop: tuple[str, ...] = (), **changed: list[int]) -> HostileCase:
    """Tensors set by name, with `__` for the dots."""
    values = GOOD_TENSORS | {key.replace("__", "."): value for key, value in changed.items()}
    kept = {key: value for key, value in values.items() if key not in drop}
    return whole(name, lambda: index_bytes(kept, GOOD_KEYS), match)


def entries(name: str, key: str, entry: bytes | None, match: str = "") -> HostileCase:
    """A key set, or left out."""
    changed = {**GOOD_KEYS, **SOLVED_KEYS}
    if entry is None:
        del changed[key]
    else:
        changed[key] = entry
    return whole(name, lambda: index_bytes(GOOD_TENSORS, changed), match)


def whole(name: str, data: Callable[[], bytes], match: str = "", error: str | None = ERROR) -> HostileCase:
    return HostileCase("H gpuidx", name, "gpuidx", with_bytes(data, "a.gpuidx"), error, match)


def f64(value: float) -> bytes:
    return b.entry(keys.GPU_INDEX_GAP, b.F64, struct.pack("<d", value))


def u32(key: str, value: int) -> bytes:
    return b.entry(key, b.U32, struct.pack("<I", value))


def good(**more: Any) -> bytes:
    return index_bytes(GOOD_TENSORS, GOOD_KEYS, **more)


def fixture(name: str) -> HostileCase:
    def build(folder: Path) -> Path:
        del folder
        return FIXTURES / name

    return HostileCase("H gpuidx", f"of another model: {name}", "gpuidx", build, ERROR, "of a model with|no GPU index")


THREE = {"blk__2__gpu_idx": [1, 0, 0, 0], "blk__2__gpu_bucket": [0]}
CASES = [
    tensors("id out of range", "ids outside 0 to 3", blk__0__gpu_bucket=[0, 2, 4]),
    tensors("id of 2^31-1", "ids outside", blk__0__gpu_bucket=[0, 2, 2**31 - 1]),
    tensors("negative id", "ids outside", blk__0__gpu_bucket=[-1, 2, 3]),
    tensors("repeated id", "strictly ascending", blk__0__gpu_bucket=[0, 2, 2]),
    tensors("unsorted ids", "strictly ascending", blk__0__gpu_bucket=[2, 0, 3]),
    tensors("gpu_idx of 2", "other than 0 and 1", blk__0__gpu_idx=[1, 0, 2, 1]),
    tensors("gpu_idx of -1", "other than 0 and 1", blk__0__gpu_idx=[1, 0, -1, 1]),
    tensors("gpu_idx not agreeing with the bucket", "different neurons", blk__0__gpu_idx=[1, 1, 0, 1]),
    tensors("a bucket shorter than gpu_idx says", "different neurons", blk__0__gpu_bucket=[0, 2]),
    tensors("a bucket missing", "missing", drop=("blk.0.gpu_bucket",)),
    tensors("a gpu_idx missing", "missing", drop=("blk.1.gpu_idx",)),
    tensors("a layer missing", "found 1 layers", drop=("blk.1.gpu_idx", "blk.1.gpu_bucket")),
    tensors("a layer too many", "found 3 layers", **THREE),
    tensors("no layer", "found 0 layers", drop=tuple(GOOD_TENSORS)),
    tensors("another tensor", "in order", output=[1]),
    tensors("layers of other FFN lengths", "neurons a layer", blk__1__gpu_idx=[0, 1, 0]),
    whole(
        "another FFN length",
        lambda: index_bytes({k: v + [0] * k.endswith("idx") for k, v in GOOD_TENSORS.items()}, GOOD_KEYS),
        "5 neurons a layer, this one has 4",
    ),
    whole(
        "another layer count",
        lambda: index_bytes(
            GOOD_TENSORS | {"blk.2.gpu_idx": [1, 0, 0, 0], "blk.2.gpu_bucket": [0]},
            GOOD_KEYS | {keys.GPU_INDEX_BLOCK_COUNT: u32(keys.GPU_INDEX_BLOCK_COUNT, 3)},
        ),
        "model with 3 layers",
    ),
    whole("floats for ids", lambda: good(type_id=0), "F32"),
    whole("the magic of dense models", lambda: good(magic=b"GGUF", type_id=26), "no GPU index"),
    whole("truncated", lambda: good()[:-40], "truncated"),
    whole("cut in a key", lambda: good()[:60]),
    whole("empty", lambda: b"", "empty"),
    entries("another architecture", keys.ARCHITECTURE, b.string_entry(keys.ARCHITECTURE, "llama"), "no GPU index"),
    entries("no architecture", keys.ARCHITECTURE, None, "no GPU index"),
    entries("no layer count", keys.GPU_INDEX_BLOCK_COUNT, None, "block_count"),
    entries(
        "a layer count of 2^32-1", keys.GPU_INDEX_BLOCK_COUNT, u32(keys.GPU_INDEX_BLOCK_COUNT, 2**32 - 1), "found 2"
    ),
    entries("no capacity", keys.VRAM_CAPACITY, None, "vram_capacity"),
    entries(
        "negative capacity",
        keys.VRAM_CAPACITY,
        b.entry(keys.VRAM_CAPACITY, b.I64, struct.pack("<q", -1)),
        "vram_capacity is -1",
    ),
    entries("a fingerprint of nothing", keys.GPU_INDEX_FINGERPRINT, b.string_entry(keys.GPU_INDEX_FINGERPRINT, "x")),
    entries("a hash of nothing", keys.GPU_INDEX_ACTIVATION_HASH, b.string_entry(keys.GPU_INDEX_ACTIVATION_HASH, "x")),
    entries("no fingerprint", keys.GPU_INDEX_FINGERPRINT, None),
    entries("blocks for one layer", keys.GPU_INDEX_BLOCKS, b.string_entry(keys.GPU_INDEX_BLOCKS, "1")),
    entries("blocks that are no flags", keys.GPU_INDEX_BLOCKS, b.string_entry(keys.GPU_INDEX_BLOCKS, "1x")),
    entries("neurons of a block on the CPU", keys.GPU_INDEX_BLOCKS, b.string_entry(keys.GPU_INDEX_BLOCKS, "10")),
    entries("a gap of NaN", keys.GPU_INDEX_GAP, f64(float("nan")), "nan"),
    entries("a negative gap", keys.GPU_INDEX_GAP, f64(-1.0), "-1"),
    entries("rates that are no JSON", keys.GPU_INDEX_RATES, b.string_entry(keys.GPU_INDEX_RATES, "{")),
    entries("rates that are a list", keys.GPU_INDEX_RATES, b.string_entry(keys.GPU_INDEX_RATES, "[]")),
    entries("rates nested deep", keys.GPU_INDEX_RATES, b.string_entry(keys.GPU_INDEX_RATES, "[" * 50_000)),
    entries("a budget that is text", keys.GPU_INDEX_BUDGET_BYTES, b.string_entry(keys.GPU_INDEX_BUDGET_BYTES, "1")),
    fixture("relu-llama.reference.gpuidx"),
    fixture("bamboo.reference.gpuidx"),
    fixture("bamboo.q4.powerinfer.gguf"),
    whole("as PowerInfer writes it", good, error=None),
    whole("as this package writes it", lambda: index_bytes(GOOD_TENSORS, GOOD_KEYS | SOLVED_KEYS), error=None),
    whole("the type id of today's GGUF", lambda: good(type_id=26), error=None),
    whole(
        "nothing on the GPU",
        lambda: index_bytes({k: [0] * 4 if k.endswith("idx") else [] for k in GOOD_TENSORS}, GOOD_KEYS),
        error=None,
    ),
]
