"""Text of a generation as it grows, token by token. Not a tokenizer: it never chooses tokens.

Invariant: the pieces handed out, joined, are the text of all tokens pushed; each piece is whole characters, and U+FFFD
stands only for bytes that no later token could have completed.
"""

from __future__ import annotations

import codecs
from typing import Protocol


class TokenBytes(Protocol):
    """What a stream needs of a tokenizer."""

    strips_first_space: bool

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        """Bytes that the token contributes to text."""


class TextStream:
    """Incremental decoding; made by `Tokenizer.stream`.

    first: the stream is the start of a text, so the space that encoding put in front of it is taken out again. A
    generation that continues a prompt is not: there the same space is part of the text.
    """

    def __init__(self, tokenizer: TokenBytes, *, first: bool = False, special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._at_start = first and tokenizer.strips_first_space
        # CPython's incremental UTF-8 decoder holds back just the bytes that may still become a character.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Text that is certain once `token` has come. Raises TokenizerError for an id outside the vocabulary."""
        data = self._tokenizer.token_bytes(token, special=self._special)
        if self._at_start and data:
            self._at_start = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def flush(self) -> str:
        """Text of bytes still held back (one U+FFFD for an unfinished character); the stream can then go on."""
        return self._decoder.decode(b"", final=True)
