"""One mapped file: header, key-values and tensor infos, all of them checked.

A model may consist of several, see `reader`. Invariant: a `Shard` exists only for a file in which every length, count,
type and range has been checked against the bytes that are really there.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from powerinfer_py.errors import FileFormatError
from powerinfer_py.gguf.cursor import Cursor
from powerinfer_py.gguf.file_watch import FileWatch
from powerinfer_py.gguf.keys import ALIGNMENT
from powerinfer_py.gguf.metadata import SMALLEST_ENTRY_BYTES, MetadataEntry, read_entries
from powerinfer_py.gguf.tensors import SMALLEST_INFO_BYTES, TensorInfo, TensorTable, padded
from powerinfer_py.gguf.types import ValueType

MAGICS = {b"GGUF": "GGUF", b"PWRI": "PWRI"}
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
# Alignment serves reading by pages or device blocks; more than 1 MiB would only be a way to inflate a file.
MAX_ALIGNMENT = 1 << 20
HEADER_BYTES = 24


@dataclass(frozen=True, eq=False)
class Shard:
    """A checked file. data_offset: where its data section begins (or would, in a file without tensor data)."""

    path: Path
    map: mmap.mmap
    watch: FileWatch
    n_bytes: int
    magic: str
    version: int
    alignment: int
    entries: Mapping[str, MetadataEntry]
    tensors: Mapping[str, TensorInfo]
    data_offset: int


def read_shard(path: Path, file_index: int = 0) -> Shard:
    """Maps and checks one file. Raises FileFormatError, or UnsupportedError for a tensor type not handled here."""
    mapping, watch = map_file(path)
    try:
        return _parse(Cursor(mapping, path), watch, file_index)
    except BaseException:
        mapping.close()
        raise


def map_file(path: Path) -> tuple[mmap.mmap, FileWatch]:
    """The file mapped read-only, and watched from before that.

    Raises FileFormatError for anything that is not a readable, non-empty regular file.
    """
    try:
        # O_NONBLOCK: opening a named pipe must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no possible file name"
        raise FileFormatError(f"cannot open: {reason}", path=path) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise FileFormatError(f"{kind}, expected a GGUF or PWRI file", path=path)
        if status.st_size == 0:
            raise FileFormatError("empty file, expected a GGUF or PWRI file", path=path, offset=0)
        watch = FileWatch(path, descriptor)
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ), watch
    except OSError as error:
        raise FileFormatError(f"cannot map: {error.strerror}", path=path) from None
    finally:
        os.close(descriptor)


def _parse(cursor: Cursor, watch: FileWatch, file_index: int) -> Shard:
    magic, version = _read_magic(cursor), _read_version(cursor)
    n_tensors = cursor.count(SMALLEST_INFO_BYTES, "tensor")
    n_entries = cursor.count(SMALLEST_ENTRY_BYTES, "key-value")
    entries = read_entries(cursor, n_entries)
    table = TensorTable(cursor, n_tensors, is_powerinfer=magic == "PWRI")
    alignment = _alignment(cursor, entries)
    data_offset = padded(cursor.offset, alignment)
    tensors = table.place(data_offset, alignment, file_index)
    return Shard(
        cursor.path, cursor.buffer, watch, cursor.end, magic, version, alignment, entries, tensors, data_offset
    )


def _read_magic(cursor: Cursor) -> str:
    magic = cursor.bytes(4, "the magic")
    if magic[::-1] in MAGICS:
        raise cursor.error("byte-swapped file, expected little endian", 0)
    if magic not in MAGICS:
        shown = re.sub(r"[^A-Za-z0-9]", "?", magic.decode("latin-1"))
        raise cursor.error(f"not a GGUF or PWRI file: it begins with {shown} ({magic.hex()})", 0)
    return MAGICS[magic]


def _read_version(cursor: Cursor) -> int:
    version = cursor.u32("the version")
    if version in VERSIONS:
        return version
    if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, *VERSIONS):
        raise cursor.error("byte-swapped (big-endian) file, expected little endian", 4)
    raise cursor.error(f"version {version}, expected {' or '.join(map(str, VERSIONS))}", 4)


def _alignment(cursor: Cursor, entries: Mapping[str, MetadataEntry]) -> int:
    entry = entries.get(ALIGNMENT)
    if entry is None:
        return DEFAULT_ALIGNMENT
    value = entry.value
    if entry.type is not ValueType.UINT32 or not isinstance(value, int):
        raise cursor.error(f"{ALIGNMENT} is {entry.type_name}, expected UINT32", entry.offset)
    if not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise cursor.error(f"{ALIGNMENT} is {value}, expected a power of two up to {MAX_ALIGNMENT}", entry.offset)
    return value
