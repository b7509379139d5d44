"""One tensor where it lies in the file that holds it. It is not loaded: its words are a view of the file's map."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from powerinfer_py.convert.regular_file import open_regular
from powerinfer_py.errors import FileFormatError, UnsupportedError, printable
from powerinfer_py.gguf import BLOCK_LAYOUTS, GGMLType
from powerinfer_py.gguf.file_watch import FileWatch

# Beyond this a shape is nonsense, and sizes computed from it prove nothing.
MAX_DIMS = 8
MAX_ELEMENTS = 1 << 40


class MappedFile:
    """A file mapped for reading, and watched from before that."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_regular(path) as file:
                self.n_bytes = os.fstat(file.fileno()).st_size
                if self.n_bytes == 0:
                    raise FileFormatError("the file is empty", path=path)
                self.watch = FileWatch(path, file.fileno())
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise FileFormatError(f"cannot read: {error.strerror}", path=path) from None

    def release(self, offset: int, n_bytes: int) -> None:
        """Lets the system take back the pages of a range; they are read again when touched."""
        start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        whole = (offset + n_bytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
        if whole > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self.map.madvise(mmap.MADV_DONTNEED, start, whole)


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor of `file`: C-contiguous, little endian, `offset` bytes after the file's start, within the file.

    dtype: name of the element type as safetensors spells it (`F16`, `I64`, ...).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: MappedFile
    offset: int
    n_bytes: int

    @property
    def ggml_type(self) -> GGMLType:
        """The type of its words. Raises UnsupportedError where they are no F32, F16 or BF16."""
        found = {"F32": GGMLType.F32, "F16": GGMLType.F16, "BF16": GGMLType.BF16}.get(self.dtype)
        if found is None:
            raise UnsupportedError(
                f"{printable(str(self.file.path))}: tensor {printable(self.name)} has type {printable(self.dtype)}, "
                "expected F32, F16 or BF16"
            )
        return found

    def words(self) -> npt.NDArray[Any]:
        """Its elements as unsigned integers of their width, of `shape`: a read-only view of the map."""
        width = BLOCK_LAYOUTS[self.ggml_type].n_bytes
        if self.n_bytes == 0:
            return np.zeros(self.shape, f"<u{width}")
        words = np.frombuffer(self.file.map, f"<u{width}", self.n_bytes // width, self.offset)
        return words.reshape(self.shape)

    def release(self) -> None:
        """Lets the system take back the memory of its pages."""
        self.file.release(self.offset, self.n_bytes)


def checked_shape(name: str, shape: Sequence[Any], path: Path) -> tuple[int, ...]:
    """`shape` as integers. Raises FileFormatError for anything that is no possible shape."""
    dims = tuple(shape)
    is_shape = len(dims) <= MAX_DIMS and all(type(dim) is int and dim >= 0 for dim in dims)
    if not is_shape or math.prod(max(dim, 1) for dim in dims) > MAX_ELEMENTS:
        raise FileFormatError(f"tensor {printable(name)} has the impossible shape {printable(str(dims))}", path=path)
    return dims
