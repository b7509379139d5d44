"""Files that are almost valid: whole ones built part by part, then spoilt in a place or two. For hypothesis."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any

import helpers_gguf_bytes as b
from hypothesis import strategies as st

EXTREMES = [0, 1, 2, 3, 31, 32, 2**7, 2**8 - 1, 2**16, 2**28, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]
FORMATS = {b.U8: "<B", b.I8: "<b", b.U16: "<H", b.I16: "<h", b.U32: "<I", b.I32: "<i", b.F32: "<f", b.BOOL: "<?"}
FORMATS |= {b.U64: "<Q", b.I64: "<q", b.F64: "<d"}
# Type id, weights and bytes of a block.
BLOCKS = [(0, 1, 4), (1, 1, 2), (30, 1, 2), (2, 32, 18), (3, 32, 20), (6, 32, 22), (7, 32, 24), (8, 32, 34)]
BLOCKS += [(10, 256, 84), (11, 256, 110), (12, 256, 144), (13, 256, 176), (14, 256, 210), (24, 1, 1), (26, 1, 4)]

names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12)
words = st.integers(0, 2**64 - 1) | st.sampled_from(EXTREMES)


@dataclass
class Plan:
    """A file before it is spoilt. n_tensors, n_entries: what the header says; None for what there is."""

    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32
    entries: list[bytes] = field(default_factory=list)
    tensors: list[tuple[str, tuple[int, ...], int, int]] = field(default_factory=list)
    n_tensors: int | None = None
    n_entries: int | None = None

    def encode(self) -> bytes:
        infos, offset = [], 0
        for name, dims, type_id, n_bytes in self.tensors:
            infos.append(b.info(name, dims, type_id, offset))
            offset += -(-n_bytes // self.alignment) * self.alignment
        data = b.gguf_bytes(
            self.entries, infos, bytes(offset), magic=self.magic, version=self.version, alignment=self.alignment
        )
        counts = (self.n_tensors, self.n_entries)
        for at, count in zip((8, 16), counts, strict=True):
            if count is not None:
                data = data[:at] + struct.pack("<Q", count) + data[at + 8 :]
        return data


@st.composite
def entries(draw: st.DrawFn, key: str) -> bytes:
    kind = draw(st.sampled_from([*FORMATS, b.STRING, b.ARRAY]))
    if kind == b.STRING:
        return b.string_entry(key, draw(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)))
    element = draw(st.sampled_from([*FORMATS, b.STRING])) if kind == b.ARRAY else kind
    n = draw(st.integers(0, 5)) if kind == b.ARRAY else 1
    size = struct.calcsize(FORMATS[element]) if element in FORMATS else 0
    values = draw(st.binary(min_size=n * size, max_size=n * size)) if size else b.text("é") * n
    return b.array_entry(key, element, n, values) if kind == b.ARRAY else b.entry(key, kind, values)


@st.composite
def valid_files(draw: st.DrawFn) -> bytes:
    """GGUF and PWRI files with keys of every type and tensors of many, each of them right."""
    keys = draw(st.lists(names, max_size=5, unique=True))
    plan = Plan(draw(st.sampled_from([b"GGUF", b"PWRI"])), draw(st.sampled_from([2, 3])))
    plan.entries = [draw(entries(key)) for key in keys if key != "general.alignment"]
    plan.alignment = draw(st.sampled_from([1, 8, 32, 64, 4096]))
    plan.entries.append(b.entry("general.alignment", b.U32, struct.pack("<I", plan.alignment)))
    for name in draw(st.lists(names, max_size=4, unique=True)):
        type_id, n_weights, n_bytes = draw(st.sampled_from(BLOCKS))
        outer = draw(st.lists(st.integers(0, 3), max_size=3))
        n_blocks = draw(st.integers(0, 2))
        n = n_blocks
        for dim in outer:
            n *= dim
        plan.tensors.append((name, (n_blocks * n_weights, *outer), type_id, n * n_bytes))
    return plan.encode()


@st.composite
def almost_valid(draw: st.DrawFn, valid: st.SearchStrategy[bytes]) -> bytes:
    """One or two places changed: a word set to an extreme, a bit, bytes put in or taken out, the end cut."""
    data = bytearray(draw(valid))
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["u64", "u32", "bit", "insert", "delete", "cut"]))
        if kind == "u64":
            data[at : at + 8] = struct.pack("<Q", draw(words))
        elif kind == "u32":
            data[at : at + 4] = struct.pack("<I", draw(words) % 2**32)
        elif kind == "bit" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "delete":
            del data[at : at + draw(st.integers(1, 9))]
        else:
            del data[at:]
    return bytes(data)


@st.composite
def gpu_indexes(draw: st.DrawFn) -> bytes:
    """gpuidx files of one to three layers that agree with themselves, or nearly."""
    from hostile.gpuidx_cases import GOOD_KEYS, SOLVED_KEYS, index_bytes, u32

    from powerinfer_py.gguf import keys

    n_layer, n_ff = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    tensors: dict[str, list[int]] = {}
    for layer in range(n_layer):
        flags = draw(st.lists(st.sampled_from([0, 1]), min_size=n_ff, max_size=n_ff))
        tensors[f"blk.{layer}.gpu_idx"] = flags
        tensors[f"blk.{layer}.gpu_bucket"] = [i for i, flag in enumerate(flags) if flag]
    if draw(st.booleans()):
        spoilt = draw(st.sampled_from([*tensors]))
        tensors[spoilt] = draw(st.lists(st.integers(-2, 7) | st.sampled_from([2**31 - 1, -(2**31)]), max_size=6))
    entries = dict(GOOD_KEYS | (SOLVED_KEYS if draw(st.booleans()) else {}))
    entries[keys.GPU_INDEX_BLOCK_COUNT] = u32(keys.GPU_INDEX_BLOCK_COUNT, n_layer)
    if keys.GPU_INDEX_BLOCKS in entries:
        entries[keys.GPU_INDEX_BLOCKS] = b.string_entry(keys.GPU_INDEX_BLOCKS, "1" * n_layer)
    return index_bytes(tensors, entries)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def safetensors_files(draw: st.DrawFn) -> bytes:
    """A header of two tensors in which any field may be any JSON, and data of some length."""
    header: dict[str, Any] = {}
    end = 0
    for name in draw(st.lists(names, max_size=2, unique=True)):
        dims = draw(st.lists(st.integers(0, 4), max_size=3))
        n_bytes = 2
        for dim in dims:
            n_bytes *= dim
        fields: dict[str, Any] = {"dtype": "F16", "shape": dims, "data_offsets": [end, end + n_bytes]}
        end += n_bytes
        if draw(st.booleans()):
            fields[draw(st.sampled_from([*fields]))] = draw(json_values)
        header[name] = fields
    encoded = json.dumps(header).encode()
    length = draw(st.just(len(encoded)) | words)
    return struct.pack("<Q", length) + encoded + bytes(draw(st.just(end) | st.integers(0, 64)))
