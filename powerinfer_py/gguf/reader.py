"""Opening a model file, or the several files of one model.

No judgement on what the tensors and keys mean for a model: that is for `models`. Invariant: a `GGUFFile` is handed out
only when every file of it has been checked whole; from then on tensor data is read from the map, lazily.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType

import numpy as np
import numpy.typing as npt

from powerinfer_py.errors import FileFormatError
from powerinfer_py.gguf import keys
from powerinfer_py.gguf.file_watch import FileWatch
from powerinfer_py.gguf.metadata import TypedMetadata
from powerinfer_py.gguf.shard import Shard, read_shard
from powerinfer_py.gguf.split import is_split, read_split
from powerinfer_py.gguf.tensors import TensorInfo


class GGUFFile(TypedMetadata):
    """A checked model: metadata of its first file, tensors of all of them, in file order.

    Key-values are in `metadata` (key -> value) and `entries` (key -> type, place, value); typed getters are inherited.
    Views given out by `tensor_data` stay valid after `close`; the map goes when the last of them does. `watches` say,
    then too, whether a file was changed since.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        first = shards[0]
        super().__init__(first.path, first.entries)
        self.shards: tuple[Shard, ...] = tuple(shards)
        self.paths: tuple[Path, ...] = tuple(shard.path for shard in shards)
        self.magic = first.magic
        self.is_powerinfer = first.magic == "PWRI"
        self.version = first.version
        self.alignment = first.alignment
        self.watches: tuple[FileWatch, ...] = tuple(shard.watch for shard in shards)
        self.n_bytes = sum(shard.n_bytes for shard in shards)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(
            {name: info for shard in shards for name, info in shard.tensors.items()}
        )

    @property
    def architecture(self) -> str:
        """Value of `general.architecture`; raises FileFormatError where it is missing."""
        return self.require_str(keys.ARCHITECTURE)

    def tensor_data(self, name: str) -> npt.NDArray[np.uint8]:
        """Bytes of a tensor: one dimension, read-only, a view of the map. KeyError for an unknown name."""
        info = self.tensors[name]
        if not self.shards:
            raise ValueError(f"{self.path}: the file is closed")
        if info.n_bytes == 0:
            return np.frombuffer(b"", np.uint8)
        return np.frombuffer(self.shards[info.file_index].map, np.uint8, info.n_bytes, info.offset)

    def release(self, name: str) -> None:
        """Lets the system take back the memory that a tensor's pages occupy; they are read again when touched."""
        info = self.tensors[name]
        start = -(-info.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        n_bytes = (info.offset + info.n_bytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
        if n_bytes > 0 and self.shards and hasattr(mmap, "MADV_DONTNEED"):
            self.shards[info.file_index].map.madvise(mmap.MADV_DONTNEED, start, n_bytes)

    def require_unchanged(self) -> None:
        """Raises FileFormatError where one of the files was written to or cut since it was opened."""
        for watch in self.watches:
            watch.require_unchanged()

    def close(self) -> None:
        """Lets go of the files; a second call does nothing. Views that still exist keep their map alive."""
        self.shards = ()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Maps and checks a GGUF or PWRI file, or all files of a split model whichever of them is named.

    Raises FileFormatError with file, offset and what was expected; UnsupportedError for a tensor type of ggml that this
    package does not handle. Time and memory are proportional to the metadata; tensor data is not touched.
    """
    if not os.fspath(path):
        raise FileFormatError("no file name given")
    shard = read_shard(Path(path))
    return GGUFFile(read_split(shard) if is_split(shard) else [shard])
