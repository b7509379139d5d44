"""A place in a mapped file, and the reading of little-endian values from it.

It knows nothing of what the values mean. Invariant: no byte past the end of the file is read and nothing is allocated
for a length that the rest of the file cannot hold; every refusal names the file and the offset.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from powerinfer_py.errors import FileFormatError

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Cursor:
    """Reads forward through `buffer`. `what` in its methods names the value for the message of a refusal."""

    def __init__(self, buffer: mmap.mmap, path: Path) -> None:
        self.buffer = buffer
        self.path = path
        self.offset = 0
        self.end = len(buffer)

    @property
    def remaining(self) -> int:
        """Bytes between the cursor and the end of the file."""
        return self.end - self.offset

    def error(self, message: str, offset: int | None = None) -> FileFormatError:
        """An error at `offset`, or at the cursor."""
        return FileFormatError(message, path=self.path, offset=self.offset if offset is None else offset)

    def skip(self, n_bytes: int, what: str) -> int:
        """Moves over `n_bytes` and returns the offset at which they begin; refuses to pass the end of the file."""
        start = self.offset
        if n_bytes > self.end - start:
            raise self.error(f"truncated: {what} needs {n_bytes} bytes, {self.end - start} are left")
        self.offset = start + n_bytes
        return start

    def bytes(self, n_bytes: int, what: str) -> bytes:
        """The next `n_bytes` bytes, copied."""
        start = self.skip(n_bytes, what)
        return self.buffer[start : start + n_bytes]

    def u32(self, what: str) -> int:
        """The next 4 bytes as an unsigned integer."""
        value: int = _U32.unpack_from(self.buffer, self.skip(4, what))[0]
        return value

    def u64(self, what: str) -> int:
        """The next 8 bytes as an unsigned integer."""
        value: int = _U64.unpack_from(self.buffer, self.skip(8, what))[0]
        return value

    def count(self, smallest_bytes: int, what: str) -> int:
        """A u64 that counts things of at least `smallest_bytes` each, refused where the file cannot hold so many."""
        start = self.offset
        value = self.u64(f"{what} count")
        if value > self.remaining // smallest_bytes:
            raise self.error(
                f"{what} count is {value}, the rest of the file holds at most {self.remaining // smallest_bytes}", start
            )
        return value

    def text(self, what: str) -> str:
        """A u64 length and as many bytes of UTF-8."""
        data = self.bytes(self.u64(f"length of {what}"), what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8", self.offset - len(data) + error.start) from None

    def texts(self, n: int, what: str) -> list[str]:
        """`n` strings one after another, any UTF-8 content allowed.

        One loop without method calls: 408,000 tokens and merges take 0.2 s.
        """
        buffer, end, position = self.buffer, self.end, self.offset
        unpack_length = _U64.unpack_from
        strings: list[str] = []
        append = strings.append
        try:
            for _ in range(n):
                start = position + 8
                stop = start + unpack_length(buffer, position)[0]
                if stop > end:
                    raise self.error(f"truncated: string {len(strings)} of {what} runs past the end", position)
                append(buffer[start:stop].decode())
                position = stop
        except UnicodeDecodeError as error:
            place = position + 8 + error.start
            raise self.error(f"string {len(strings)} of {what} is not UTF-8", place) from None
        except struct.error:
            raise self.error(f"truncated: string {len(strings)} of {what} is missing", position) from None
        self.offset = position
        return strings
