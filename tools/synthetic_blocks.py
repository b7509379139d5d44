"""Weights for made-up models as encoded blocks: pools of random values, rows cut from them, blocks of one constant.

Not a quantiser for real weights: K-quants get one flat scale per super-block, which suits Gaussian values alone. What
it keeps: the same pool at the same scale decodes to the same values wherever a row is cut from it, up to the rounding
of the type, and a constant block decodes to its constant within the rounding of one float16 scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from powerinfer_py.gguf.quants import dequantize
from powerinfer_py.gguf.types import BLOCK_LAYOUTS, GGMLType, row_bytes

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]

FLOAT_TYPES = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)
# Constants and features are laid out in groups of this many weights where the type itself has no blocks.
SMALLEST_GROUP = 32


@dataclass(frozen=True)
class FlatKQuant:
    """A K-quant type used with one scale: weights are `d * (q - centre)`, q from 0 to `levels - 1`.

    pack: quants (n_blocks, 256) and d (n_blocks, float16) to blocks (n_blocks, bytes of a block).
    """

    levels: int
    centre: float
    pack: Callable[[Bytes, npt.NDArray[np.float16]], Bytes]


def _half_bytes(values: npt.NDArray[np.float16]) -> Bytes:
    return np.ascontiguousarray(values).view(np.uint8).reshape(-1, 2)


# Scales of 1 for all eight sub-blocks and, in their other half, minimums of 1: see ggml's packing of 6-bit pairs.
_UNIT_SCALES = np.array([1] * 4 + [1] * 4 + [0x11] * 4, np.uint8)


def _pack_pairs(q: Bytes, d: npt.NDArray[np.float16], centre: float) -> list[Bytes]:
    """What Q4_K and Q5_K share: d, dmin, scales; and the low nibbles, two sub-blocks of 32 to each 32 bytes."""
    pairs = (q & 15).reshape(-1, 4, 2, 32)
    dmin = (d.astype(np.float32) * centre).astype(np.float16)
    scales = np.broadcast_to(_UNIT_SCALES, (len(q), 12))
    return [
        _half_bytes(d),
        _half_bytes(dmin),
        scales,
        np.uint8(pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(len(q), 128),
    ]


def _pack_q4_k(q: Bytes, d: npt.NDArray[np.float16]) -> Bytes:
    return np.concatenate(_pack_pairs(q, d, 7.5), axis=1)


def _pack_q5_k(q: Bytes, d: npt.NDArray[np.float16]) -> Bytes:
    head = _pack_pairs(q, d, 15.5)
    fifth_bits = (q >> 4).reshape(-1, 8, 32)
    weights = (1 << np.arange(8, dtype=np.uint8)).reshape(1, 8, 1)
    return np.concatenate([*head[:3], (fifth_bits * weights).sum(axis=1, dtype=np.uint8), head[3]], axis=1)


def _pack_q6_k(q: Bytes, d: npt.NDArray[np.float16]) -> Bytes:
    halves = q.reshape(-1, 2, 4, 32)
    low, high = halves & 15, halves >> 4
    nibbles = np.concatenate([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], axis=2)
    upper = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    scales = np.ones((len(q), 16), np.uint8)
    return np.concatenate([nibbles.reshape(len(q), 128), upper.reshape(len(q), 64), scales, _half_bytes(d)], axis=1)


K_QUANTS = {
    GGMLType.Q4_K: FlatKQuant(16, 7.5, _pack_q4_k),
    GGMLType.Q5_K: FlatKQuant(32, 15.5, _pack_q5_k),
    GGMLType.Q6_K: FlatKQuant(64, 32.0, _pack_q6_k),
}
# What a weight of a block is per unit of d when every quant is the one given in `_CONSTANT_FILL`.
_CONSTANT_FILL: dict[GGMLType, tuple[int, int, float]] = {
    GGMLType.Q4_0: (2, 0x00, -8.0),
    GGMLType.Q4_1: (4, 0x11, 1.0),
    GGMLType.Q5_0: (2, 0x00, -16.0),
    GGMLType.Q5_1: (8, 0x11, 1.0),
    GGMLType.Q8_0: (2, 0x7F, 127.0),
}
WEIGHT_TYPES = (*FLOAT_TYPES, *_CONSTANT_FILL, *K_QUANTS)


def group_size(ggml_type: GGMLType) -> int:
    """Weights that are laid out together: a block, or 32 where the type has none."""
    return max(SMALLEST_GROUP, BLOCK_LAYOUTS[ggml_type].n_weights)


def encode(values: Floats, ggml_type: GGMLType) -> Bytes:
    """Rows of values (n, cols) as bytes (n, row_bytes)."""
    flat = K_QUANTS.get(ggml_type)
    if flat is None:
        encoded = quantize(values, GGMLQuantizationType(int(ggml_type)))
        return np.ascontiguousarray(encoded).view(np.uint8).reshape(len(values), -1)
    # Chunks bound the memory: the steps below hold several copies of their input.
    step = max(1, (1 << 22) // values.shape[1])
    return np.concatenate([_encode_flat(values[i : i + step], flat) for i in range(0, len(values), step)])


def _encode_flat(values: Floats, flat: FlatKQuant) -> Bytes:
    blocks = values.reshape(-1, 256)
    reach = min(flat.centre, flat.levels - 1 - flat.centre)
    d = (np.abs(blocks).max(axis=1) / reach).astype(np.float16)
    inverse = np.divide(1.0, d, out=np.zeros(len(d), np.float32), where=d != 0, dtype=np.float32)
    q = np.clip(np.rint(blocks * inverse[:, None] + np.float32(flat.centre)), 0, flat.levels - 1)
    return flat.pack(q.astype(np.uint8), d).reshape(len(values), -1)


def constant_groups(values: npt.NDArray[np.floating], ggml_type: GGMLType) -> Bytes:
    """One group a row, all its weights equal to `values` (n): (n, bytes of a group)."""
    n = group_size(ggml_type)
    if ggml_type in FLOAT_TYPES:
        return encode(np.repeat(values[:, None], n, axis=1), ggml_type)
    flat = K_QUANTS.get(ggml_type)
    if flat is not None:
        quant = flat.levels - 1
        d = (values / (quant - flat.centre)).astype(np.float16)
        return flat.pack(np.full((len(values), n), quant, np.uint8), d)
    at_quants, byte, unit = _CONSTANT_FILL[ggml_type]
    blocks = np.zeros((len(values), BLOCK_LAYOUTS[ggml_type].n_bytes), np.uint8)
    blocks[:, at_quants:] = byte
    blocks[:, :2] = _half_bytes((values / unit).astype(np.float16))
    return blocks


@dataclass(eq=False)
class Pool:
    """Gaussian values of standard deviation 1, from which rows are cut at multiples of `unit` weights.

    Rows cut at different places are as good as independent, so a pool of a few million values makes a matrix of any
    size at the speed of copying memory. A place is a number of weights from the start of the pool.
    """

    values: Floats
    unit: int
    _encoded: dict[tuple[GGMLType, float], Bytes] = field(default_factory=dict)

    @classmethod
    def random(cls, rng: np.random.Generator, n_units: int, unit: int) -> Pool:
        """`n_units * unit` values."""
        return cls(rng.standard_normal(n_units * unit, dtype=np.float32), unit)

    def places(self, rng: np.random.Generator, n: int, cols: int) -> Places:
        """`n` random places at which rows of `cols` weights can be cut."""
        return rng.integers(0, (len(self.values) - cols) // self.unit + 1, n) * self.unit

    def rows(self, places: Places, cols: int, ggml_type: GGMLType, scale: float) -> Bytes:
        """The rows of `cols` weights at `places` times `scale`, encoded: (n, row_bytes)."""
        n_weights, n_bytes = BLOCK_LAYOUTS[ggml_type]
        data = self.encoded(ggml_type, scale)
        windows = np.lib.stride_tricks.sliding_window_view(data, row_bytes(ggml_type, cols))[::n_bytes]
        return windows[places // n_weights]

    def decoded_rows(self, places: Places, cols: int, ggml_type: GGMLType, scale: float) -> Floats:
        """What an engine reads in `rows`: float32 (n, cols)."""
        data = self.rows(places, cols, ggml_type, scale)
        return dequantize(data.reshape(-1), ggml_type, len(places), cols)

    def encoded(self, ggml_type: GGMLType, scale: float) -> Bytes:
        """The whole pool times `scale`."""
        key = (ggml_type, scale)
        if key not in self._encoded:
            blocks = (self.values * np.float32(scale)).reshape(-1, group_size(ggml_type))
            self._encoded[key] = encode(blocks, ggml_type).reshape(-1)
        return self._encoded[key]
