"""SentencePiece-type vocabularies (`tokenizer.ggml.model = llama`): BPE by score, bytes for what has no piece.

The merging is the sentencepiece library's own, run on a model built from the file's arrays. What that library refuses
in a model but a file may hold (duplicate or empty pieces, no or several unknown tokens, missing bytes) is given to it
under stand-in names that no text can spell, so ids stay those of the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from powerinfer_py.errors import TokenizerError, printable
from powerinfer_py.tokenizer.tokenizer import Tokenizer
from powerinfer_py.tokenizer.vocabulary import PREFIX, TokenType, Vocabulary, byte_of_piece

# Field numbers of sentencepiece_model.proto: ModelProto, SentencePiece, TrainerSpec, NormalizerSpec.
PIECES, TRAINER_SPEC, NORMALIZER_SPEC = 1, 2, 3
PIECE_TEXT, PIECE_SCORE, PIECE_TYPE = 1, 2, 3
MODEL_TYPE, VOCAB_SIZE, BYTE_FALLBACK = 3, 4, 35
UNK_ID, BOS_ID, EOS_ID, PAD_ID, UNK_PIECE = 40, 41, 42, 43, 45
NORMALIZER_NAME, ADD_DUMMY_PREFIX, REMOVE_EXTRA_WHITESPACES, ESCAPE_WHITESPACES = 1, 3, 4, 5
BPE = 2
WORD_BOUNDARY = "▁"


class SentencePieceTokenizer(Tokenizer):
    """Tokenizer of a SentencePiece-type vocabulary. Raises TokenizerError where the vocabulary cannot be used."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        scores = vocabulary.scores
        if scores is None:
            raise TokenizerError(f"{PREFIX}scores is missing, which a vocabulary of type llama needs")
        vocabulary = replace(vocabulary, types=_types_with_bytes(vocabulary))
        self._add_space_prefix = vocabulary.add_space_prefix is not False
        super().__init__(vocabulary, add_bos=True, strips_first_space=self._add_space_prefix)
        self._processor = _load(_model_proto(vocabulary, scores, self._add_space_prefix))

    def _encode_plain(self, text: str) -> list[int]:
        try:
            ids: list[int] = self._processor.EncodeAsIds(text)
        except Exception as error:
            raise TokenizerError(f"sentencepiece cannot encode the text: {printable(str(error))}") from error
        if ids and max(ids) >= self.n_vocab:
            # A stand-in for a byte or an unknown token that the file lacks.
            if self.unk_id is None:
                raise TokenizerError("the vocabulary has no token for part of the text, and no unknown token")
            ids = [token if token < self.n_vocab else self.unk_id for token in ids]
        return ids

    def _piece_bytes(self, token: int) -> bytes:
        piece = self._vocabulary.tokens[token]
        if self._vocabulary.types[token] == TokenType.BYTE:
            byte = byte_of_piece(piece)
            return piece.encode() if byte is None else bytes([byte])
        return piece.replace(WORD_BOUNDARY, " ").encode()


def _types_with_bytes(vocabulary: Vocabulary) -> list[int]:
    """The types, a piece spelled like a byte being one whatever the file says, unless it is control or unknown."""
    kept = (TokenType.CONTROL, TokenType.UNKNOWN)
    return [
        kind if kind in kept or byte_of_piece(text) is None else int(TokenType.BYTE)
        for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
    ]


def _load(model: bytes) -> Any:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except Exception as error:
        raise TokenizerError(f"sentencepiece refuses the vocabulary: {printable(str(error))}") from error
    return processor


def _model_proto(vocabulary: Vocabulary, scores: list[float], add_space_prefix: bool) -> bytes:
    """The vocabulary as a serialised sentencepiece ModelProto."""
    pieces = list(_pieces(vocabulary, scores))
    unk_id = next(i for i, (_, _, kind) in enumerate(pieces) if kind == TokenType.UNKNOWN)
    trainer = (
        _varint_field(MODEL_TYPE, BPE)
        + _varint_field(VOCAB_SIZE, len(pieces))
        + _varint_field(BYTE_FALLBACK, 1)
        + _varint_field(UNK_ID, unk_id)
        + b"".join(_varint_field(field, (1 << 64) - 1) for field in (BOS_ID, EOS_ID, PAD_ID))
        + _bytes_field(UNK_PIECE, pieces[unk_id][0].encode())
    )
    normalizer = (
        _bytes_field(NORMALIZER_NAME, b"identity")
        + _varint_field(ADD_DUMMY_PREFIX, int(add_space_prefix))
        + _varint_field(REMOVE_EXTRA_WHITESPACES, int(vocabulary.remove_extra_whitespaces))
        + _varint_field(ESCAPE_WHITESPACES, 1)
    )
    encoded = b"".join(_bytes_field(PIECES, _piece(*piece)) for piece in pieces)
    return encoded + _bytes_field(TRAINER_SPEC, trainer) + _bytes_field(NORMALIZER_SPEC, normalizer)


def _pieces(vocabulary: Vocabulary, scores: list[float]) -> Iterator[tuple[str, float, TokenType]]:
    """(piece, score, type) of every token, then stand-ins for the unknown token and the bytes that the file lacks."""
    taken = set(vocabulary.tokens)
    seen: set[str] = set()
    bytes_seen: set[int] = set()
    has_unknown = False
    for token, (text, score, number) in enumerate(zip(vocabulary.tokens, scores, vocabulary.types, strict=True)):
        kind = TokenType.NORMAL if number == TokenType.UNDEFINED else TokenType(number)
        byte = byte_of_piece(text)
        name = text if byte is None else f"<0x{byte:02X}>"
        if kind is TokenType.BYTE:
            usable = byte is not None and byte not in bytes_seen
        elif kind is TokenType.UNKNOWN:
            usable = not has_unknown
        else:
            usable = byte is None
        # NUL ends a key in the library's tries, so a piece with one could never be found there.
        if not name or name in seen or "\0" in name or not usable:
            yield _stand_in(token, taken), score, TokenType.CONTROL
            continue
        if kind is TokenType.UNKNOWN:
            has_unknown = True
            name = name if byte is None else _stand_in(token, taken)
        if kind is TokenType.BYTE and byte is not None:
            bytes_seen.add(byte)
        seen.add(name)
        yield name, score, kind
    if not has_unknown:
        yield _stand_in(len(scores), taken), 0.0, TokenType.UNKNOWN
    for byte in range(256):
        if byte not in bytes_seen:
            yield f"<0x{byte:02X}>", 0.0, TokenType.BYTE


def _stand_in(token: int, taken: set[str]) -> str:
    """A name for token `token` that is no piece; control and unknown pieces are never looked up in text."""
    name = f"<stand-in {token}>"
    while name in taken:
        name += ">"
    return name


def _piece(text: str, score: float, kind: TokenType) -> bytes:
    return (
        _bytes_field(PIECE_TEXT, text.encode())
        + bytes([PIECE_SCORE << 3 | 5])
        + struct.pack("<f", score)
        + _varint_field(PIECE_TYPE, kind)
    )


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _varint_field(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes_field(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data
