"""One hostile (or odd but honest) file: what it breaks, how it is made, and what reading it must come to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Builder = Callable[[Path], Path]


@dataclass(frozen=True)
class HostileCase:
    """clause: the line of the checklist, as docs/reliability.md groups them. name: what of it this file breaks.

    reader: which of `readers.READERS` gets it. build: writes into an empty folder and returns what is to be read.
    error: the one exception type that may come of it, None for a file that must be accepted. match: a regular
    expression that its message holds. may_die: read in a process of its own, since readers that trust it crash.
    has_place: the error must name the file and an offset in it.
    """

    clause: str
    name: str
    reader: str
    build: Builder
    error: str | None = "FileFormatError"
    match: str = ""
    may_die: bool = False
    has_place: bool = False

    @property
    def id(self) -> str:
        """Unique among all cases."""
        return f"{self.clause}: {self.name}"


def with_bytes(data: bytes | Callable[[], bytes], name: str = "hostile.gguf") -> Builder:
    """A builder of one file; `data` may be a function, for files that are large or slow to make."""

    def build(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(data if isinstance(data, bytes) else data())
        return path

    return build
