"""The key-values of a file: parsing them, and typed access that refuses a wrong type.

What a value means for a model is not judged here. Invariant: a `MetadataEntry` repeats exactly what the file holds
(type, element type, place), so that a writer can copy it and a tool can edit it where it lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np
import numpy.typing as npt

from powerinfer_py.errors import FileFormatError, printable
from powerinfer_py.gguf.cursor import Cursor
from powerinfer_py.gguf.types import FLOAT_VALUE_TYPES, INTEGER_VALUE_TYPES, VALUE_DTYPES, ValueType

MetadataValue: TypeAlias = int | float | bool | str | list[str] | npt.NDArray[Any]

# key length, one byte of key, value type, one byte of value
SMALLEST_ENTRY_BYTES = 8 + 1 + 4 + 1
MAX_KEY_BYTES = 65535
_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class MetadataEntry:
    """One key-value as it stands in the file.

    element_type: of an array's elements, None for other values. offset, n_bytes: the encoded value in the first file of
    the model, after its type id (an array begins with its element type and count, a string with its length).
    value: int, float, bool or str; arrays of strings are list[str], all others read-only numpy arrays.
    """

    key: str
    type: ValueType
    element_type: ValueType | None
    value: MetadataValue
    offset: int
    n_bytes: int

    @property
    def type_name(self) -> str:
        """`UINT32`, `ARRAY of STRING` and the like, as messages and listings show it."""
        return self.type.name if self.element_type is None else f"ARRAY of {self.element_type.name}"


def read_entries(cursor: Cursor, count: int) -> dict[str, MetadataEntry]:
    """`count` key-values from the cursor on, in file order. Raises FileFormatError."""
    entries: dict[str, MetadataEntry] = {}
    for _ in range(count):
        start = cursor.offset
        key = _read_key(cursor)
        if key in entries:
            raise cursor.error(f"key {printable(key)} occurs twice", start)
        value_type = _read_type(cursor, f"value type of {printable(key)}")
        offset = cursor.offset
        value, element_type = _read_value(cursor, value_type, f"value of {printable(key)}")
        entries[key] = MetadataEntry(key, value_type, element_type, value, offset, cursor.offset - offset)
    return entries


def _read_key(cursor: Cursor) -> str:
    start = cursor.offset
    key = cursor.text("metadata key")
    if not key:
        raise cursor.error("empty metadata key", start)
    if cursor.offset - start - 8 > MAX_KEY_BYTES:
        raise cursor.error(f"metadata key of more than {MAX_KEY_BYTES} bytes", start)
    if not key.isprintable():
        raise cursor.error(f"metadata key holds control characters: {printable(key)}", start)
    return key


def _read_type(cursor: Cursor, what: str) -> ValueType:
    start = cursor.offset
    type_id = cursor.u32(what)
    try:
        return ValueType(type_id)
    except ValueError:
        raise cursor.error(f"{what} is {type_id}, expected 0 to {max(ValueType).value}", start) from None


def _read_value(cursor: Cursor, value_type: ValueType, what: str) -> tuple[MetadataValue, ValueType | None]:
    if value_type is ValueType.STRING:
        start = cursor.offset
        text = cursor.text(what)
        if "\0" in text:
            raise cursor.error(f"{what} holds a NUL character", start)
        return text, None
    if value_type is ValueType.ARRAY:
        return _read_array(cursor, what)
    dtype = np.dtype(VALUE_DTYPES[value_type])
    scalar = np.frombuffer(cursor.bytes(dtype.itemsize, what), dtype)[0]
    return (bool(scalar) if value_type is ValueType.BOOL else scalar.item()), None


def _read_array(cursor: Cursor, what: str) -> tuple[MetadataValue, ValueType]:
    start = cursor.offset
    element_type = _read_type(cursor, f"element type in {what}")
    if element_type is ValueType.ARRAY:
        raise cursor.error(f"{what} is an array of arrays, expected an array of scalars or strings", start)
    if element_type is ValueType.STRING:
        return cursor.texts(cursor.count(8, f"string in {what}:"), what), element_type
    dtype = np.dtype(VALUE_DTYPES[element_type])
    n = cursor.count(dtype.itemsize, f"element in {what}:")
    # The bytes are copied out of the map: array data in a file is seldom aligned.
    array: npt.NDArray[Any] = np.frombuffer(cursor.bytes(n * dtype.itemsize, what), dtype)
    if element_type is ValueType.BOOL:
        array = array != 0
        array.flags.writeable = False
    return array, element_type


class TypedMetadata:
    """Key-values with getters that refuse a wrong type by naming key, expected and found type.

    `get_*` returns the default where the key is absent, `require_*` raises. Both raise FileFormatError.
    """

    def __init__(self, path: Path, entries: Mapping[str, MetadataEntry]) -> None:
        self.path = path
        self.entries: Mapping[str, MetadataEntry] = MappingProxyType(dict(entries))
        self.metadata: Mapping[str, MetadataValue] = MappingProxyType({k: e.value for k, e in entries.items()})

    @overload
    def get_int(self, key: str) -> int | None: ...
    @overload
    def get_int(self, key: str, default: _T) -> int | _T: ...
    def get_int(self, key: str, default: Any = None) -> Any:
        """Value of an integer type of any width; a BOOL is none."""
        return self._get(key, INTEGER_VALUE_TYPES, "an integer", default)

    @overload
    def get_float(self, key: str) -> float | None: ...
    @overload
    def get_float(self, key: str, default: _T) -> float | _T: ...
    def get_float(self, key: str, default: Any = None) -> Any:
        """Value of type FLOAT32 or FLOAT64, NaN and infinities included."""
        return self._get(key, FLOAT_VALUE_TYPES, "a float", default)

    @overload
    def get_bool(self, key: str) -> bool | None: ...
    @overload
    def get_bool(self, key: str, default: _T) -> bool | _T: ...
    def get_bool(self, key: str, default: Any = None) -> Any:
        """Value of type BOOL."""
        return self._get(key, {ValueType.BOOL}, "BOOL", default)

    @overload
    def get_str(self, key: str) -> str | None: ...
    @overload
    def get_str(self, key: str, default: _T) -> str | _T: ...
    def get_str(self, key: str, default: Any = None) -> Any:
        """Value of type STRING."""
        return self._get(key, {ValueType.STRING}, "STRING", default)

    @overload
    def get_strings(self, key: str) -> list[str] | None: ...
    @overload
    def get_strings(self, key: str, default: _T) -> list[str] | _T: ...
    def get_strings(self, key: str, default: Any = None) -> Any:
        """An array of strings."""
        return self._get_array(key, {ValueType.STRING}, "an array of STRING", default)

    @overload
    def get_array(self, key: str) -> npt.NDArray[Any] | None: ...
    @overload
    def get_array(self, key: str, default: _T) -> npt.NDArray[Any] | _T: ...
    def get_array(self, key: str, default: Any = None) -> Any:
        """An array of numbers or booleans as a read-only numpy array of the file's type."""
        return self._get_array(key, set(VALUE_DTYPES), "an array of numbers", default)

    @overload
    def get_int_array(self, key: str) -> npt.NDArray[Any] | None: ...
    @overload
    def get_int_array(self, key: str, default: _T) -> npt.NDArray[Any] | _T: ...
    def get_int_array(self, key: str, default: Any = None) -> Any:
        """An array of integers as a read-only numpy array of the file's type."""
        return self._get_array(key, INTEGER_VALUE_TYPES, "an array of integers", default)

    @overload
    def get_float_array(self, key: str) -> npt.NDArray[Any] | None: ...
    @overload
    def get_float_array(self, key: str, default: _T) -> npt.NDArray[Any] | _T: ...
    def get_float_array(self, key: str, default: Any = None) -> Any:
        """An array of floats as a read-only numpy array of the file's type."""
        return self._get_array(key, FLOAT_VALUE_TYPES, "an array of floats", default)

    def require_int(self, key: str) -> int:
        """As `get_int`; a missing key is refused."""
        return self._required(key, "an integer", self.get_int(key))

    def require_float(self, key: str) -> float:
        """As `get_float`; a missing key is refused."""
        return self._required(key, "a float", self.get_float(key))

    def require_str(self, key: str) -> str:
        """As `get_str`; a missing key is refused."""
        return self._required(key, "STRING", self.get_str(key))

    def require_strings(self, key: str) -> list[str]:
        """As `get_strings`; a missing key is refused."""
        return self._required(key, "an array of STRING", self.get_strings(key))

    def require_array(self, key: str) -> npt.NDArray[Any]:
        """As `get_array`; a missing key is refused."""
        return self._required(key, "an array of numbers", self.get_array(key))

    def _required(self, key: str, expected: str, value: _T | None) -> _T:
        if value is None:
            raise FileFormatError(f"key {printable(key)} is missing, expected {expected}", path=self.path)
        return value

    def _get(self, key: str, allowed: set[ValueType] | frozenset[ValueType], expected: str, default: Any) -> Any:
        entry = self.entries.get(key)
        if entry is None:
            return default
        if entry.type not in allowed:
            raise self._wrong_type(entry, expected)
        return entry.value

    def _get_array(self, key: str, allowed: set[ValueType] | frozenset[ValueType], expected: str, default: Any) -> Any:
        entry = self.entries.get(key)
        if entry is None:
            return default
        if entry.element_type not in allowed:
            raise self._wrong_type(entry, expected)
        return entry.value

    def _wrong_type(self, entry: MetadataEntry, expected: str) -> FileFormatError:
        message = f"key {printable(entry.key)} is {entry.type_name}, expected {expected}"
        return FileFormatError(message, path=self.path, offset=entry.offset)
