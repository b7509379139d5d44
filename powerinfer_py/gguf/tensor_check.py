"""NaN, infinities and absurd scales in the weights of a file, found by name without dequantising anything.

Of quantised blocks only the float16 scales and minima are read, of floats their bits as integers: a float's magnitude
grows with them. Whether the weights make sense otherwise is not judged. Invariant: the file's pages are let go tensor
by tensor, so that checking a model larger than memory needs little of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from powerinfer_py.errors import NumericalError, printable
from powerinfer_py.gguf.reader import GGUFFile
from powerinfer_py.gguf.tensors import TensorInfo
from powerinfer_py.gguf.types import BLOCK_LAYOUTS, GGMLType

# The largest weight of published models is in the hundreds; scales of random bytes exceed this in one block of ten.
MAX_MAGNITUDE = 4096.0
# Factors of frequencies, for which 1e30 is a customary way to say: none.
_UNBOUNDED = frozenset({"rope_freqs.weight"})
_CHUNK_BYTES = 16 << 20
_NAMED = 3

Words = npt.NDArray[np.unsignedinteger]


class Fault(StrEnum):
    """What a weight or a block's scale can be beside plain."""

    NAN = "NaN"
    INFINITE = "infinite"
    ABSURD = "absurd"


@dataclass(frozen=True)
class TensorFault:
    """One kind of fault in one tensor. n: weights, or blocks in quantised types, that have it. first: index of one."""

    tensor: str
    fault: Fault
    n: int
    first: int
    in_blocks: bool

    def __str__(self) -> str:
        what = "block" if self.in_blocks else "weight"
        return f"{printable(self.tensor)}: {self.n} {self.fault} {what}{'s' * (self.n != 1)}, the first is {self.first}"


@dataclass(frozen=True)
class _Float:
    """Bits of a floating-point type: without the sign, a number of `infinity` or more is no finite one."""

    dtype: str
    infinity: int
    limit: int

    @property
    def magnitude(self) -> int:
        return (1 << (8 * np.dtype(self.dtype).itemsize - 1)) - 1


@dataclass(frozen=True)
class _Scale:
    """A float16 in a block, `offset` bytes from its start; the block's weights have up to `factor` times it."""

    offset: int
    factor: float


_FLOATS: dict[GGMLType, _Float] = {
    GGMLType.F32: _Float("<u4", 0x7F800000, int(np.float32(MAX_MAGNITUDE).view(np.uint32))),
    GGMLType.F16: _Float("<u2", 0x7C00, int(np.float16(MAX_MAGNITUDE).view(np.uint16))),
    GGMLType.BF16: _Float("<u2", 0x7F80, int(np.float32(MAX_MAGNITUDE).view(np.uint32)) >> 16),
}
# The factors are the largest product of a block's integers: sub-scale times quantum.
_SCALES: dict[GGMLType, tuple[_Scale, ...]] = {
    GGMLType.Q4_0: (_Scale(0, 8),),
    GGMLType.Q4_1: (_Scale(0, 15), _Scale(2, 1)),
    GGMLType.Q5_0: (_Scale(0, 16),),
    GGMLType.Q5_1: (_Scale(0, 31), _Scale(2, 1)),
    GGMLType.Q8_0: (_Scale(0, 128),),
    GGMLType.Q2_K: (_Scale(80, 15 * 3), _Scale(82, 15)),
    GGMLType.Q3_K: (_Scale(108, 32 * 4),),
    GGMLType.Q4_K: (_Scale(0, 63 * 15), _Scale(2, 63)),
    GGMLType.Q5_K: (_Scale(0, 63 * 31), _Scale(2, 63)),
    GGMLType.Q6_K: (_Scale(208, 128 * 32),),
}


def check_tensors(file: GGUFFile, progress: Callable[[int], None] = lambda _n_bytes: None) -> list[TensorFault]:
    """The faults of every tensor of weights, in file order. progress: called with the bytes of each after its check."""
    faults: list[TensorFault] = []
    for name, info in file.tensors.items():
        faults += _check_tensor(file, info)
        file.release(name)
        progress(info.n_bytes)
    return faults


def require_sound_tensors(file: GGUFFile) -> None:
    """Raises NumericalError that names the tensors with faults."""
    faults = check_tensors(file)
    if faults:
        named = "; ".join(map(str, faults[:_NAMED]))
        more = f"; and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise NumericalError(f"{printable(str(file.path))}: {named}{more}")


def _check_tensor(file: GGUFFile, info: TensorInfo) -> Iterator[TensorFault]:
    """One entry for each kind of fault."""
    found: dict[Fault, tuple[int, int]] = {}
    n_block = BLOCK_LAYOUTS[info.ggml_type].n_bytes
    data = file.tensor_data(info.name)
    step = _CHUNK_BYTES // n_block * n_block
    for start in range(0, data.size, step):
        for fault, hits in _chunk_faults(data[start : start + step], info):
            n, first = found.get(fault, (0, start // n_block + int(hits.argmax())))
            found[fault] = n + int(hits.sum()), first
    for fault, (n, first) in found.items():
        yield TensorFault(info.name, fault, n, first, in_blocks=info.ggml_type in _SCALES)


def _chunk_faults(data: npt.NDArray[np.uint8], info: TensorInfo) -> Iterator[tuple[Fault, npt.NDArray[np.bool_]]]:
    """Kinds of fault in whole blocks of data, and which weights or blocks have them."""
    bounded = info.name not in _UNBOUNDED
    if info.ggml_type in _FLOATS:
        form = _FLOATS[info.ggml_type]
        yield from _word_faults(data.view(form.dtype), form, form.limit if bounded else form.infinity)
    n_block = BLOCK_LAYOUTS[info.ggml_type].n_bytes
    for scale in _SCALES.get(info.ggml_type, ()):
        form = _FLOATS[GGMLType.F16]
        column = data.reshape(-1, n_block)[:, scale.offset : scale.offset + 2]
        limit = int(np.float16(MAX_MAGNITUDE / scale.factor).view(np.uint16))
        yield from _word_faults(np.ascontiguousarray(column).view(form.dtype).reshape(-1), form, limit)


def _word_faults(words: Words, form: _Float, limit: int) -> Iterator[tuple[Fault, npt.NDArray[np.bool_]]]:
    magnitude = words & form.magnitude
    # One pass where all is well, as it is in nearly every chunk of every file.
    if magnitude.max(initial=0) <= limit:
        return
    faults = {
        Fault.NAN: magnitude > form.infinity,
        Fault.INFINITE: magnitude == form.infinity,
        Fault.ABSURD: (magnitude > limit) & (magnitude < form.infinity),
    }
    yield from ((fault, hits) for fault, hits in faults.items() if hits.any())
