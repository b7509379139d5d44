"""Metadata values as bytes of a file: the inverse of `metadata`. A value that does not fit its type is refused."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from powerinfer_py.errors import printable
from powerinfer_py.gguf.metadata import MetadataValue
from powerinfer_py.gguf.types import FLOAT_VALUE_TYPES, VALUE_DTYPES, ValueType


def encode_text(text: str) -> bytes:
    """A u64 length and UTF-8."""
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def encode_value(
    key: str, value: MetadataValue | Sequence[Any], value_type: ValueType, element_type: ValueType | None = None
) -> bytes:
    """Key, type and value as a file holds them. ValueError where the value is not of the type, or out of its range."""
    head = encode_text(key) + struct.pack("<I", value_type)
    if value_type is not ValueType.ARRAY:
        if element_type is not None:
            raise ValueError(f"key {printable(key)}: an element type is for arrays alone")
        return head + _encode_scalar(key, value, value_type)
    if element_type is None or element_type is ValueType.ARRAY:
        raise ValueError(f"key {printable(key)}: an array needs an element type that is a scalar or STRING")
    if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, np.ndarray)):
        raise ValueError(f"key {printable(key)}: a {type(value).__name__}, expected a sequence")
    return head + struct.pack("<IQ", element_type, len(value)) + _encode_elements(key, value, element_type)


def _encode_scalar(key: str, value: Any, value_type: ValueType) -> bytes:
    if value_type is ValueType.STRING:
        if not isinstance(value, str) or "\0" in value:
            raise ValueError(f"key {printable(key)}: {printable(repr(value))}, expected a string without NUL")
        return encode_text(value)
    return _encode_elements(key, [value], value_type)


def _encode_elements(key: str, values: Sequence[Any] | np.ndarray[Any, Any], element_type: ValueType) -> bytes:
    if element_type is ValueType.STRING:
        if not all(isinstance(text, str) for text in values):
            raise ValueError(f"key {printable(key)}: expected strings alone")
        return b"".join(map(encode_text, values))
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in _KINDS[_family(element_type)]):
        raise ValueError(f"key {printable(key)}: {array.dtype} of shape {array.shape}, expected {element_type.name}")
    dtype = np.dtype(VALUE_DTYPES[element_type])
    if array.size and dtype.kind in "iu" and element_type is not ValueType.BOOL:
        limits = np.iinfo(dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise ValueError(f"key {printable(key)}: value out of the range of {element_type.name}")
    with np.errstate(over="ignore"):
        encoded = array.astype(dtype)
    if dtype.kind == "f" and np.isinf(encoded).sum() != np.isinf(array).sum():
        raise ValueError(f"key {printable(key)}: value out of the range of {element_type.name}")
    return encoded.tobytes()


# numpy kinds that each family of types takes; a float never becomes an integer, nor a number a boolean, in silence.
_KINDS = {"bool": "b", "integer": "iu", "float": "fiu"}


def _family(element_type: ValueType) -> str:
    if element_type is ValueType.BOOL:
        return "bool"
    return "float" if element_type in FLOAT_VALUE_TYPES else "integer"
