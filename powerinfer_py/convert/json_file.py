"""A JSON object from a stranger's file, read by key with types and ranges. What a value means is not judged here.

Invariant: a value handed out has the type and range that was asked for; a refusal names file, key and what was found.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from powerinfer_py.convert.regular_file import open_regular
from powerinfer_py.errors import FileFormatError, printable

# A tokenizer.json of 256,000 tokens with its merges takes 35 MB.
MAX_JSON_BYTES = 256 << 20


def load_json(path: Path) -> Any:
    """The content of a JSON file. Raises FileFormatError where it cannot be read or is too large to be meant so."""
    return parse_json(read_limited(path), path)


def parse_json(data: bytes, path: Path) -> Any:
    """`data` as JSON; `path` is what a refusal names."""
    try:
        return json.loads(data)
    except RecursionError:
        raise FileFormatError("JSON nested too deep", path=path) from None
    except ValueError as error:
        raise FileFormatError(f"no JSON: {printable(str(error))}", path=path) from None


def read_limited(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """The bytes of a file of at most `limit`. Raises FileFormatError."""
    try:
        with open_regular(path) as file:
            # Not read(limit + 1), which would reserve that much for a file of two bytes.
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(size, limit) + 1)
    except OSError as error:
        raise FileFormatError(f"cannot read: {error.strerror}", path=path) from None
    if len(data) > limit:
        raise FileFormatError(f"larger than {limit} bytes, which no honest file of its kind is", path=path)
    return data


class JsonObject:
    """A JSON object with getters; a key that holds null counts as absent.

    Getters without a default require the key. All raise FileFormatError.
    """

    def __init__(self, values: Any, path: Path, name: str = "") -> None:
        self.path = path
        self.name = name
        if not isinstance(values, dict):
            raise self.error(f"{name or 'the file'} holds no JSON object")
        self.values: dict[str, Any] = {key: value for key, value in values.items() if value is not None}

    def error(self, message: str) -> FileFormatError:
        """An error that names the file."""
        return FileFormatError(message, path=self.path)

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def count(self, key: str, maximum: int, default: int | None = None) -> int:
        """An integer from 1 to `maximum`."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= maximum:
            raise self._wrong(key, value, f"an integer from 1 to {maximum}")
        return value

    def number(self, key: str, default: float | None = None, *, low: float = -math.inf, high: float = 1e30) -> float:
        """A finite number above `low` and up to `high`."""
        value = self._get(key, default)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not (abs(value) < 1e38 and low < value <= high):
            raise self._wrong(key, value, "a finite number" + (f" above {low:g}" if low > -math.inf else ""))
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def object(self, key: str) -> JsonObject | None:
        """A nested object, None where the key is absent."""
        value = self.values.get(key)
        return None if value is None else JsonObject(value, self.path, f"{self.name}{key}.")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key, default)
        if value is None:
            raise self.error(f"{self.name}{key} is missing")
        return value

    def _wrong(self, key: str, value: Any, expected: str) -> FileFormatError:
        return self.error(f"{self.name}{key} is {printable(repr(value), 60)}, expected {expected}")


def load_object(path: Path) -> JsonObject:
    """The object that a JSON file holds."""
    return JsonObject(load_json(path), path)


def load_optional_object(path: Path) -> JsonObject:
    """The same, an empty object where there is no such file."""
    return load_object(path) if path.exists() else JsonObject({}, path)
