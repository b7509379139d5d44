"""Texts to run a model over: each known by the SHA-256 of its bytes, checked to be UTF-8 before any of it is used.

Not tokens: those are cut by `chunks.py`. Invariant: `read` gives the text whose digest the document states.
"""

from __future__ import annotations

import codecs
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from powerinfer_py.errors import FileFormatError, OptionError, printable

STANDARD_INPUT = "-"
# Chapters of a novel in the public domain; calibration/README.md names source and licence.
CALIBRATION_TEXT = Path(__file__).parent / "calibration" / "persuasion.txt"
_BLOCK_BYTES = 1 << 20
# Of a text that is kept since it cannot be read twice: some 250 million tokens. A device such as /dev/zero never ends.
_MAX_STREAM_BYTES = 1 << 30


@dataclass(frozen=True)
class Document:
    """One text. data: its bytes where it came from a stream that cannot be read twice, else None."""

    name: str
    sha256: str
    n_bytes: int
    data: bytes | None = None

    def read(self) -> str:
        """The text without a byte-order mark. Raises FileFormatError where the file changed since it was checked."""
        data = self.data
        if data is None:
            try:
                data = Path(self.name).read_bytes()
            except OSError as error:
                raise FileFormatError(f"cannot be read: {error.strerror or error}", path=self.name) from None
            if hashlib.sha256(data).hexdigest() != self.sha256:
                raise FileFormatError("changed while it was in use", path=self.name)
        return data.decode("utf-8").removeprefix("\ufeff")


def open_documents(paths: Sequence[str]) -> list[Document]:
    """The texts of files, `-` for standard input, in order.

    Raises FileFormatError for a file that cannot be read or is not UTF-8, OptionError for an empty text and for one
    given twice.
    """
    documents = [_open(path) for path in paths]
    seen: dict[str, str] = {}
    for document in documents:
        if document.sha256 in seen:
            first, second = printable(seen[document.sha256]), printable(document.name)
            raise OptionError(f"{second} holds the same text as {first}: each text counts once")
        seen[document.sha256] = document.name
    return documents


def _open(path: str) -> Document:
    name = "standard input" if path == STANDARD_INPUT else path
    try:
        if path == STANDARD_INPUT:
            return _scan(name, sys.stdin.buffer, keep=True)
        with Path(path).open("rb") as file:
            # A pipe such as <(zcat text.gz) gives its bytes once.
            return _scan(name, file, keep=not Path(path).is_file())
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FileFormatError(f"cannot be read: {reason}", path=name) from None


def _scan(name: str, file: IO[bytes], *, keep: bool) -> Document:
    digest = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8")()
    kept = bytearray()
    n_bytes, has_text = 0, False
    while block := file.read(_BLOCK_BYTES):
        has_text |= bool(_decoded(decoder, block, n_bytes, name).strip("\ufeff \t\r\n\v\f"))
        digest.update(block)
        n_bytes += len(block)
        if keep:
            kept += block
            if n_bytes > _MAX_STREAM_BYTES:
                most = f"{_MAX_STREAM_BYTES >> 20} MiB"
                raise FileFormatError(f"is no file and gives more than {most}: write it to one", path=name)
    _decoded(decoder, b"", n_bytes, name, final=True)
    if not has_text:
        raise OptionError(f"{printable(name)}: the text is empty")
    return Document(name, digest.hexdigest(), n_bytes, bytes(kept) if keep else None)


def _decoded(decoder: codecs.IncrementalDecoder, block: bytes, offset: int, name: str, *, final: bool = False) -> str:
    held = len(decoder.getstate()[0])
    try:
        return decoder.decode(block, final)
    except UnicodeDecodeError as error:
        raise FileFormatError("is not UTF-8 text", path=name, offset=offset - held + error.start) from None
