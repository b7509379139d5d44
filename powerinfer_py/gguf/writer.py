"""Writing a GGUF or PWRI file as a stream: declare everything, then hand over the data of each tensor in order.

It converts nothing. Invariant: under the final name there is either what was there before or the whole new file, on
disk; it appears only through a rename after fsync, and a writer that fails removes its temporary file.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from powerinfer_py.errors import PowerInferError, printable
from powerinfer_py.gguf.encoding import encode_text, encode_value
from powerinfer_py.gguf.keys import ALIGNMENT
from powerinfer_py.gguf.leftovers import create_locked, refuse_unlike_file, remove_leftovers, sync_folder
from powerinfer_py.gguf.metadata import MAX_KEY_BYTES, MetadataEntry, MetadataValue
from powerinfer_py.gguf.shard import DEFAULT_ALIGNMENT, MAX_ALIGNMENT
from powerinfer_py.gguf.tensors import MAX_DIMS, MAX_NAME_BYTES, padded
from powerinfer_py.gguf.types import PWRI_TYPE_IDS, GGMLType, ValueType, row_bytes

Chunk: TypeAlias = bytes | bytearray | memoryview | npt.NDArray[Any]

_PWRI_IDS = {ggml_type: type_id for type_id, ggml_type in PWRI_TYPE_IDS.items()}
VERSION = 3


class GGUFWriter:
    """A context manager: leaving it normally completes the file, leaving it by an exception removes every trace.

        with GGUFWriter(path, "PWRI") as writer:
            writer.add("general.architecture", "llama", ValueType.STRING)
            writer.add_tensor("token_embd.weight", GGMLType.F16, (n_vocab, n_embd))
            writer.write_tensor("token_embd.weight", chunks)

    magic: "GGUF" or "PWRI". alignment: of the data section and each tensor; one other than 32 is recorded in the file.
    Misuse (duplicate names, wrong sizes or order, a tensor left out) is a ValueError; a failure of the file system is a
    PowerInferError naming the file.
    """

    def __init__(self, path: str | os.PathLike[str], magic: str = "GGUF", alignment: int = DEFAULT_ALIGNMENT) -> None:
        if magic not in ("GGUF", "PWRI"):
            raise ValueError(f"magic {magic!r}, expected 'GGUF' or 'PWRI'")
        if not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise ValueError(f"alignment {alignment}, expected a power of two up to {MAX_ALIGNMENT}")
        self.path = Path(path)
        self.magic = magic
        self.alignment = alignment
        self._values: dict[str, bytes] = {}
        self._tensors: dict[str, tuple[GGMLType, tuple[int, ...], int]] = {}
        self._pending: list[str] | None = None
        self._output = _AtomicFile(self.path)
        if alignment != DEFAULT_ALIGNMENT:
            self.add(ALIGNMENT, alignment, ValueType.UINT32)

    def add(
        self,
        key: str,
        value: MetadataValue | Sequence[Any],
        value_type: ValueType,
        element_type: ValueType | None = None,
    ) -> None:
        """Adds a key-value. element_type: for ARRAY alone. ValueError where value and type disagree."""
        self._require_declaring()
        if not key.isprintable() or not 1 <= len(key.encode()) <= MAX_KEY_BYTES:
            raise ValueError(f"key {printable(key)!r}, expected 1 to {MAX_KEY_BYTES} printable bytes")
        if key in self._values:
            raise ValueError(f"key {key} was added before")
        if key == ALIGNMENT and value != self.alignment:
            raise ValueError(f"{ALIGNMENT} is {value!r}, the writer was made with {self.alignment}")
        self._values[key] = encode_value(key, value, value_type, element_type)

    def add_entry(self, entry: MetadataEntry) -> None:
        """Adds a key-value as another file holds it; `general.alignment` only where it was not added by this writer."""
        if entry.key == ALIGNMENT and ALIGNMENT in self._values:
            return
        self.add(entry.key, entry.value, entry.type, entry.element_type)

    def add_tensor(self, name: str, ggml_type: GGMLType, shape: Sequence[int]) -> None:
        """Declares a tensor. shape: as numpy shows it, 1 to 4 dimensions, the last one along the blocks."""
        self._require_declaring()
        if not name.isprintable() or not 1 <= len(name.encode()) <= MAX_NAME_BYTES:
            raise ValueError(f"tensor name {printable(name)!r}, expected 1 to {MAX_NAME_BYTES} printable bytes")
        if name in self._tensors:
            raise ValueError(f"tensor {name} was declared before")
        if not 1 <= len(shape) <= MAX_DIMS or any(dim < 0 for dim in shape):
            raise ValueError(f"tensor {name} has shape {tuple(shape)}, expected 1 to {MAX_DIMS} dimensions")
        n_bytes = math.prod(shape[:-1]) * row_bytes(ggml_type, shape[-1])
        self._tensors[name] = (ggml_type, tuple(int(dim) for dim in shape), n_bytes)

    def write_tensor(self, name: str, data: Chunk | Iterable[Chunk]) -> None:
        """Writes the data of the next declared tensor, whole or in chunks; the first call writes the header.

        Chunks are bytes or C-contiguous arrays, whose bytes are taken as they lie.
        """
        pending = self._begin_data()
        if not pending or pending[-1] != name:
            expected = pending[-1] if pending else "no further tensor"
            raise ValueError(f"data of tensor {name}, expected {expected}")
        pending.pop()
        try:
            self._write_data(name, data)
        except BaseException:
            # Part of the tensor may be in the file already: there is no way on from here.
            self.abort()
            raise

    def finish(self) -> None:
        """Completes the file: checks that nothing is missing, syncs, renames. ValueError where a tensor is missing."""
        pending = self._begin_data()
        if pending:
            self.abort()
            raise ValueError(f"no data for {len(pending)} tensors, the next is {pending[-1]}")
        self._output.commit()

    def abort(self) -> None:
        """Removes the temporary file; after `finish`, or a second time, it does nothing."""
        self._output.discard()

    def __enter__(self) -> GGUFWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.abort()

    def _write_data(self, name: str, data: Chunk | Iterable[Chunk]) -> None:
        n_bytes = self._tensors[name][2]
        written = 0
        for chunk in _chunks(data):
            written += chunk.nbytes
            if written > n_bytes:
                raise ValueError(f"tensor {name} got more bytes than {n_bytes}")
            self._output.write(chunk)
        if written != n_bytes:
            raise ValueError(f"tensor {name} got {written} bytes, expected {n_bytes}")
        self._output.write(memoryview(bytes(padded(n_bytes, self.alignment) - n_bytes)))

    def _require_declaring(self) -> None:
        if self._pending is not None:
            raise ValueError("keys and tensors must be declared before the first data is written")

    def _begin_data(self) -> list[str]:
        """Writes the header unless that is done; returns the tensors without data, the next one last."""
        if self._pending is None:
            self._pending = list(reversed(self._tensors))
            self._output.write(memoryview(b"".join(self._header())))
        return self._pending

    def _header(self) -> Iterator[bytes]:
        parts = [self.magic.encode(), struct.pack("<IQQ", VERSION, len(self._tensors), len(self._values))]
        parts += self._values.values()
        offset = 0
        for name, (ggml_type, shape, n_bytes) in self._tensors.items():
            parts.append(encode_text(name))
            parts.append(struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape)))
            parts.append(struct.pack("<IQ", self._type_id(ggml_type), offset))
            offset += padded(n_bytes, self.alignment)
        yield from parts
        n_bytes = sum(map(len, parts))
        yield bytes(padded(n_bytes, self.alignment) - n_bytes)

    def _type_id(self, ggml_type: GGMLType) -> int:
        return _PWRI_IDS.get(ggml_type, int(ggml_type)) if self.magic == "PWRI" else int(ggml_type)


def _chunks(data: Chunk | Iterable[Chunk]) -> Iterator[memoryview]:
    if isinstance(data, (bytes, bytearray, memoryview, np.ndarray)):
        yield _byte_view(data)
    else:
        for chunk in data:
            yield _byte_view(chunk)


def _byte_view(chunk: Chunk) -> memoryview:
    array = chunk if isinstance(chunk, np.ndarray) else np.frombuffer(chunk, np.uint8)
    if not array.flags.c_contiguous:
        raise ValueError("tensor data must be C-contiguous")
    # numpy gives no view of an array without elements.
    return array.reshape(-1).view(np.uint8).data if array.nbytes else memoryview(b"")


class _AtomicFile:
    """A temporary file beside `path` that takes its place on `commit`, or vanishes on `discard`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._temporary: Path | None = None
        with self._reported():
            # Now, not at the rename hours later.
            refuse_unlike_file(path)
            remove_leftovers(path.parent)
            self._temporary, self._descriptor = create_locked(path.parent)

    def write(self, data: memoryview) -> None:
        """All of `data`. After a failure the temporary file is gone."""
        if self._descriptor is None:
            raise ValueError(f"{self._path}: the writer is finished")
        with self._reported():
            while data:
                data = data[os.write(self._descriptor, data) :]

    def commit(self) -> None:
        """Data on disk first, then the name, then the folder that holds the name."""
        if self._descriptor is None or self._temporary is None:
            raise ValueError(f"{self._path}: the writer is finished")
        with self._reported():
            os.fsync(self._descriptor)
            # The lock lives as long as one descriptor does: without it the file would be a leftover until its rename.
            keeper = os.dup(self._descriptor)
            try:
                descriptor, self._descriptor = self._descriptor, None
                os.close(descriptor)
                self._temporary.replace(self._path)
                self._temporary = None
            finally:
                with suppress(OSError):
                    os.close(keeper)
            sync_folder(self._path.parent)

    def discard(self) -> None:
        """Removes the temporary file; nothing happens where there is none any more."""
        temporary, self._temporary = self._temporary, None
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            self.discard()
            reason = error.strerror if isinstance(error, OSError) else "no possible file name"
            raise PowerInferError(f"{printable(str(self._path))}: cannot write: {reason}") from error
