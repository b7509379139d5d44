"""Byte-level BPE (`tokenizer.ggml.model = gpt2`): words by a pre-tokenizer, then merges by rank, over bytes.

Merging is the `tokenizers` library's. Pieces are spelled in GPT-2's alphabet, in which each byte is one printable
character. A byte that has no token contributes no token, as in `tokenizers` and llama.cpp: real vocabularies lack bytes
that no UTF-8 text holds, and a few control characters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from powerinfer_py.errors import TokenizerError, printable
from powerinfer_py.tokenizer.pretokenizers import PreTokenizer
from powerinfer_py.tokenizer.spellings import SpellingMatcher
from powerinfer_py.tokenizer.tokenizer import Tokenizer
from powerinfer_py.tokenizer.vocabulary import PREFIX, TokenType, Vocabulary

_T = TypeVar("_T")


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte: printable Latin-1 stands for itself, the other bytes are numbered from U+0100 on."""
    printable_bytes = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable_bytes]
    return {chr(byte): byte for byte in printable_bytes} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_alphabet()


class ByteLevelBPETokenizer(Tokenizer):
    """Tokenizer of a byte-level BPE vocabulary. Raises TokenizerError where the vocabulary cannot be used."""

    def __init__(self, vocabulary: Vocabulary, pre_tokenizer: PreTokenizer) -> None:
        if vocabulary.merges is None:
            raise TokenizerError(f"{PREFIX}merges is missing, which a vocabulary of type gpt2 needs")
        super().__init__(vocabulary, add_bos=pre_tokenizer.add_bos, strips_first_space=False)
        self._user_defined = SpellingMatcher(vocabulary.user_defined_tokens())
        self._bpe = _guarded("build the vocabulary", lambda: _build(vocabulary, pre_tokenizer))

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._user_defined.split(text):
            ids += [part] if isinstance(part, int) else self._merge(part)
        return ids

    def _merge(self, text: str) -> list[int]:
        ids: list[int] = _guarded("encode the text", lambda: self._bpe.encode(text, add_special_tokens=False).ids)
        return ids

    def _piece_bytes(self, token: int) -> bytes:
        piece = self._vocabulary.tokens[token]
        if self._vocabulary.types[token] == TokenType.USER_DEFINED:
            return piece.encode()
        data = bytearray()
        for character in piece:
            byte = BYTE_OF_CHARACTER.get(character)
            data += character.encode() if byte is None else bytes([byte])
        return bytes(data)


def _build(vocabulary: Vocabulary, pre_tokenizer: PreTokenizer) -> Any:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    ids = _mergeable(vocabulary)
    model = models.BPE(
        vocab=ids, merges=_merges(vocabulary, ids), ignore_merges=pre_tokenizer.ignore_merges, fuse_unk=False
    )
    bpe = Tokenizer(model)
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre_tokenizer.patterns]
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([*cuts, spelling])
    return bpe


def _mergeable(vocabulary: Vocabulary) -> dict[str, int]:
    """Piece -> id of tokens that text may become; of equal pieces the first id. Control tokens are not among them."""
    ids: dict[str, int] = {}
    for token, (piece, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if piece and kind not in (TokenType.CONTROL, TokenType.UNKNOWN):
            ids.setdefault(piece, token)
    return ids


def _merges(vocabulary: Vocabulary, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs in order of rank. Merges into or out of control tokens are left out: text must not become one."""
    control = vocabulary.control_tokens()
    pairs: list[tuple[str, str]] = []
    for rank, merge in enumerate(vocabulary.merges or ()):
        # A piece is never empty, so a space at the start belongs to the left one.
        cut = merge.find(" ", 1)
        left, right = (merge[:cut], merge[cut + 1 :]) if cut > 0 else (merge, "")
        if left in ids and right in ids and left + right in ids:
            pairs.append((left, right))
        elif not all(piece in ids or piece in control for piece in (left, right, left + right)):
            raise TokenizerError(f"{PREFIX}merges: entry {rank} ({printable(repr(merge), 60)}) names an unknown token")
    return pairs


def _guarded(what: str, action: Callable[[], _T]) -> _T:
    """Result of `action`; whatever `tokenizers` raises, a Rust panic included, becomes a TokenizerError."""
    try:
        return action()
    except TokenizerError:
        raise
    except BaseException as error:
        # pyo3 derives its PanicException from BaseException and exports it nowhere.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"tokenizers cannot {what}: {printable(str(error))}") from error
