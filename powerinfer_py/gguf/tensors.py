"""Tensor infos: what the file says about each tensor, believed only after all of it has been checked.

It does not touch the data. Invariant: the byte range of every `TensorInfo` lies inside the data section of its file,
aligned, after the tensor before it, without overlap or hole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from powerinfer_py.errors import UnsupportedError, printable
from powerinfer_py.gguf.cursor import Cursor
from powerinfer_py.gguf.types import BLOCK_LAYOUTS, PWRI_TYPE_IDS, UNSUPPORTED_TYPE_NAMES, GGMLType

# name length, one byte of name, n_dims, one dim, type, offset
SMALLEST_INFO_BYTES = 8 + 1 + 4 + 8 + 4 + 8
# ggml keeps a name and its final NUL in 64 bytes.
MAX_NAME_BYTES = 63
MAX_DIMS = 4
# 2^40 weights take 320 GiB in the smallest type; beyond that a shape is nonsense even beside a dim of 0.
MAX_WEIGHTS = 1 << 40


@dataclass(frozen=True)
class TensorInfo:
    """Where and what one tensor is.

    shape: as numpy shows it, outermost first; the last dimension runs along quantisation blocks.
    offset: of the first byte from the beginning of its file. file_index: which of the model's files holds it.
    """

    name: str
    ggml_type: GGMLType
    shape: tuple[int, ...]
    n_bytes: int
    offset: int
    file_index: int = 0

    @property
    def n_weights(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def padded(n_bytes: int, alignment: int) -> int:
    """`n_bytes` rounded up to a multiple of `alignment`."""
    return -(-n_bytes // alignment) * alignment


@dataclass(frozen=True)
class _Claim:
    """One tensor info as read; `relative_offset` is from the start of the data section, `at` the info's own place."""

    name: str
    ggml_type: GGMLType
    shape: tuple[int, ...]
    n_bytes: int
    relative_offset: int
    at: int


class TensorTable:
    """The tensor infos of one file: read first, placed once the start of the data section is known."""

    def __init__(self, cursor: Cursor, count: int, *, is_powerinfer: bool) -> None:
        self._cursor = cursor
        self._is_powerinfer = is_powerinfer
        self._claims: dict[str, _Claim] = {}
        for _ in range(count):
            start = cursor.offset
            claim = self._read_claim()
            if claim.name in self._claims:
                raise cursor.error(f"tensor {printable(claim.name)} occurs twice", start)
            self._claims[claim.name] = claim

    def place(self, data_offset: int, alignment: int, file_index: int) -> dict[str, TensorInfo]:
        """Infos with absolute offsets, in file order. Raises FileFormatError where a range is not as it must be."""
        tensors: dict[str, TensorInfo] = {}
        expected = 0
        for claim in self._claims.values():
            self._check_range(claim, expected, data_offset, alignment)
            offset = data_offset + expected
            tensors[claim.name] = TensorInfo(
                claim.name, claim.ggml_type, claim.shape, claim.n_bytes, offset, file_index
            )
            expected += padded(claim.n_bytes, alignment)
        return tensors

    def _check_range(self, claim: _Claim, expected: int, data_offset: int, alignment: int) -> None:
        cursor, name, relative = self._cursor, printable(claim.name), claim.relative_offset
        if relative % alignment:
            raise cursor.error(
                f"offset {relative} of tensor {name} is no multiple of the alignment {alignment}", claim.at
            )
        if relative != expected:
            fault = "overlaps the tensor before it" if relative < expected else "leaves a hole before it"
            raise cursor.error(f"tensor {name} at offset {relative} {fault}, expected {expected}", claim.at)
        # The padding after the data is part of the file: every writer emits it, its absence means a cut.
        end = data_offset + relative + padded(claim.n_bytes, alignment)
        if claim.n_bytes and end > cursor.end:
            raise cursor.error(f"truncated: tensor {name} ends at byte {end}, the file at {cursor.end}", claim.at)

    def _read_claim(self) -> _Claim:
        cursor, start = self._cursor, self._cursor.offset
        name = self._read_name()
        shape = self._read_shape(name)
        ggml_type = self._read_type(name)
        layout = BLOCK_LAYOUTS[ggml_type]
        n_blocks, rest = divmod(shape[-1], layout.n_weights)
        if rest:
            raise cursor.error(
                f"row of {shape[-1]} weights in tensor {printable(name)} is no multiple of the {ggml_type.name} "
                f"block of {layout.n_weights}",
                start,
            )
        n_bytes = math.prod(shape[:-1]) * n_blocks * layout.n_bytes
        offset = cursor.u64(f"offset of tensor {printable(name)}")
        return _Claim(name, ggml_type, shape, n_bytes, offset, start)

    def _read_name(self) -> str:
        cursor, start = self._cursor, self._cursor.offset
        name = cursor.text("tensor name")
        n_bytes = cursor.offset - start - 8
        if not 1 <= n_bytes <= MAX_NAME_BYTES:
            raise cursor.error(f"tensor name of {n_bytes} bytes, expected 1 to {MAX_NAME_BYTES}", start)
        if not name.isprintable():
            raise cursor.error(f"tensor name holds control characters: {printable(name)}", start)
        return name

    def _read_shape(self, name: str) -> tuple[int, ...]:
        cursor, start = self._cursor, self._cursor.offset
        n_dims = cursor.u32(f"number of dims of tensor {printable(name)}")
        if not 1 <= n_dims <= MAX_DIMS:
            raise cursor.error(f"tensor {printable(name)} has {n_dims} dims, expected 1 to {MAX_DIMS}", start)
        dims = [cursor.u64(f"dims of tensor {printable(name)}") for _ in range(n_dims)]
        if math.prod(max(dim, 1) for dim in dims) > MAX_WEIGHTS:
            raise cursor.error(f"dims {dims} of tensor {printable(name)} exceed {MAX_WEIGHTS} weights", start)
        return tuple(reversed(dims))

    def _read_type(self, name: str) -> GGMLType:
        cursor, start = self._cursor, self._cursor.offset
        type_id = cursor.u32(f"type of tensor {printable(name)}")
        if self._is_powerinfer and type_id in PWRI_TYPE_IDS:
            return PWRI_TYPE_IDS[type_id]
        if type_id in UNSUPPORTED_TYPE_NAMES:
            raise UnsupportedError(
                f"{printable(str(cursor.path))}: tensor {printable(name)} has type {UNSUPPORTED_TYPE_NAMES[type_id]}, "
                f"which is not supported (at byte {start})"
            )
        try:
            return GGMLType(type_id)
        except ValueError:
            raise cursor.error(f"tensor {printable(name)} has unknown type {type_id}", start) from None
