"""What the operations work on besides plain tensors: weight matrices in a file's type, rotary tables. Data alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from powerinfer_py.gguf.types import GGMLType, row_bytes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Matrix:
    """`rows` rows of `cols` weights in the layout of a file's type; row r starts at byte `r * row_bytes` of `data`.

    data: read-only uint8, one dimension, usually a view of the memory-mapped file. handle: what the implementation that
    made this matrix needs (`Kernels.matrix`); a matrix works only with the kernels that made it. packed: the rows were
    copied into another order, so that the matrix can be multiplied but not read by rows. copied: what is read is a
    copy, packed or not, and no longer `data`.
    """

    name: str
    type: GGMLType
    rows: int
    cols: int
    data: npt.NDArray[np.uint8]
    handle: Any = None
    packed: bool = False
    copied: bool = False

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return row_bytes(self.type, self.cols)


@dataclass(frozen=True, eq=False)
class StoredMatrix:
    """A weight matrix as a file holds it, of which kernels make one of their own: the fields are those of `Matrix`."""

    name: str
    type: GGMLType
    rows: int
    cols: int
    data: npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class RopeTable:
    """Cosines and sines of rotary embedding for every position of the context.

    cos, sin: (n_ctx, n_rot / 2), magnitude scaling of YaRN included.
    halves: pairs are (i, i + n_rot/2) as in Hugging Face checkpoints, else adjacent (2i, 2i + 1) as GGUF stores llama.
    """

    cos: Tensor
    sin: Tensor
    halves: bool

    @property
    def n_rot(self) -> int:
        """Number of leading dimensions of each head that are rotated."""
        return 2 * int(self.cos.shape[1])
