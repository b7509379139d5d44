"""The tensors of a safetensors file: a u64 length, a JSON header of that length, then the data.

The safetensors package would hand out copies; here tensors stay where they lie. Invariant: every range lies within the
file and holds exactly what type and shape need.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

from powerinfer_py.convert.checkpoint.stored_tensor import MappedFile, StoredTensor, checked_shape
from powerinfer_py.convert.json_file import parse_json
from powerinfer_py.errors import FileFormatError, printable

# As in the format's own library.
_MAX_HEADER_BYTES = 100_000_000
_METADATA = "__metadata__"
_ELEMENT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_ELEMENT_BYTES |= {"U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1}


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Tensors by name. Raises FileFormatError."""
    file = MappedFile(path)
    header, data_offset = _header(file)
    header.pop(_METADATA, None)
    return {name: _tensor(name, info, file, data_offset) for name, info in header.items()}


def read_safetensors_metadata(path: Path) -> dict[str, str]:
    """The strings that the file says about itself, by key. Raises FileFormatError."""
    header, _ = _header(MappedFile(path))
    metadata = header.get(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileFormatError(f"{_METADATA} is no JSON object of strings", path=path)
    return metadata


def _header(file: MappedFile) -> tuple[dict[str, Any], int]:
    """The header's object, and where the data begins."""
    path = file.path
    if file.n_bytes < 8:
        raise FileFormatError("truncated: no safetensors header", path=path)
    (n_header,) = struct.unpack_from("<Q", file.map)
    if n_header > min(_MAX_HEADER_BYTES, file.n_bytes - 8):
        raise FileFormatError(f"truncated: a header of {n_header} bytes in a file of {file.n_bytes}", path=path)
    header = parse_json(file.map[8 : 8 + n_header], path)
    if not isinstance(header, dict):
        raise FileFormatError("the header is no JSON object", path=path)
    return header, 8 + n_header


def _tensor(name: str, info: object, file: MappedFile, data_offset: int) -> StoredTensor:
    path = file.path
    fields = info if isinstance(info, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not (isinstance(dtype, str) and isinstance(shape, list) and isinstance(offsets, list)) or len(offsets) != 2:
        raise FileFormatError(f"tensor {printable(name)} lacks dtype, shape or data_offsets", path=path)
    dims = checked_shape(name, shape, path)
    width = _ELEMENT_BYTES.get(dtype)
    if width is None:
        raise FileFormatError(f"tensor {printable(name)} has the unknown type {printable(dtype)}", path=path)
    begin, end = offsets
    if not (type(begin) is int and type(end) is int and 0 <= begin <= end):
        raise FileFormatError(f"tensor {printable(name)} has data_offsets {printable(repr(offsets), 60)}", path=path)
    if data_offset + end > file.n_bytes:
        raise FileFormatError(
            f"truncated: tensor {printable(name)} ends at byte {data_offset + end}, the file at {file.n_bytes}",
            path=path,
        )
    needed = math.prod(dims) * width
    if end - begin != needed:
        raise FileFormatError(
            f"tensor {printable(name)} has {end - begin} bytes, {dtype} of shape {dims} needs {needed}",
            path=path,
        )
    return StoredTensor(name, dtype, dims, file, data_offset + begin, end - begin)
