"""A model file as a list of tensors, each made only when it is its turn to be written.

Invariant: no more than two chunks of one tensor are held at a time, the one being written and the next, whatever the
size of the model.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from powerinfer_py.gguf import GGMLType, GGUFWriter, MetadataEntry, row_bytes
from powerinfer_py.gguf.file_watch import FileWatch
from powerinfer_py.gguf.writer import Chunk

_Item = TypeVar("_Item")
# Told the number of bytes written since the last call.
Progress = Callable[[int], None]


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to be written: `chunks` yields its bytes in order, each chunk C-contiguous.

    watches: of the mapped files that it is made from, which must not change until it is written.
    """

    name: str
    ggml_type: GGMLType
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[Chunk]]
    watches: tuple[FileWatch, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Bytes in the file, padding apart."""
        return math.prod(self.shape[:-1]) * row_bytes(self.ggml_type, self.shape[-1])


def total_bytes(tensors: Sequence[OutputTensor]) -> int:
    """Bytes of all tensors, padding and metadata apart: the file's size but for less than 1 %."""
    return sum(tensor.n_bytes for tensor in tensors)


def write_model(
    path: str | os.PathLike[str],
    magic: str,
    metadata: Iterable[MetadataEntry],
    tensors: Sequence[OutputTensor],
    progress: Progress = lambda _: None,
) -> None:
    """Writes the file; under its name there is nothing new until it is whole. magic: "GGUF" or "PWRI".

    Raises FileFormatError where a file that a tensor is made from was written to meanwhile.
    """
    with GGUFWriter(path, magic) as writer:
        for entry in metadata:
            writer.add_entry(entry)
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.ggml_type, tensor.shape)
        for tensor in tensors:
            writer.write_tensor(tensor.name, reported(ahead(tensor.chunks()), progress))
            for watch in tensor.watches:
                watch.require_unchanged()


def ahead(items: Iterable[_Item]) -> Iterator[_Item]:
    """The items, the next one in the making while the last is used: making takes a core, writing waits for a disk.

    What making raises is raised here in its turn. Leaving early waits for the item in the making.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(1) as maker:
        pending = maker.submit(next, iterator, None)
        while (item := pending.result()) is not None:
            pending = maker.submit(next, iterator, None)
            yield item


def reported(chunks: Iterable[Chunk], progress: Progress) -> Iterable[Chunk]:
    """The chunks; `progress` is told of each when the next one is asked for, which is when it was written."""
    for chunk in chunks:
        yield chunk
        progress(len(chunk) if isinstance(chunk, (bytes, bytearray)) else chunk.nbytes)
