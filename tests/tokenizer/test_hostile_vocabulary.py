"""Vocabularies that a broken or hostile file may hold: one exception type and one line, or a stated behaviour."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers_vocabulary import PREFIX, byte_level_metadata, sentencepiece_metadata

from powerinfer_py.errors import PowerInferError, TokenizerError, UnsupportedError
from powerinfer_py.tokenizer import Tokenizer, load_tokenizer

MAKERS: dict[str, Callable[..., dict[str, Any]]] = {"llama": sentencepiece_metadata, "gpt2": byte_level_metadata}
FLOATS = np.zeros(271, np.float32)
# Converting it raises the processor's invalid flag, of which numpy warns.
SIGNALLING_NAN = np.full(271, 0x7FA00000, np.uint32).view(np.float32)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokens": None}, "tokens is missing or empty"),
        ({"tokens": []}, "tokens is missing or empty"),
        ({"tokens": np.zeros(0, np.float32)}, "tokens is missing or empty"),
        ({"tokens": "abc"}, "tokens must be an array of strings"),
        ({"tokens": np.zeros(5, np.int32)}, "tokens must be an array of strings"),
        ({"tokens": ["a", 3]}, "tokens must hold strings, entry 1 is int"),
        ({"tokens": ["a", "\ud800"]}, "tokens: entry 1 is not UTF-8"),
        ({"token_type": np.zeros(3, np.int32)}, "token_type has 3 entries for"),
        ({"token_type": 3}, "token_type must be an array of numbers"),
        ({"token_type": ["a", "b"]}, "token_type has 2 entries for"),
        ({"token_type": [[1], [1, 2]]}, "token_type must be an array of numbers"),
        ({"bos_token_id": 100_000}, "bos_token_id is 100000, the vocabulary has"),
        ({"eos_token_id": -1}, "eos_token_id is -1"),
        ({"eot_token_id": 2**64}, "eot_token_id is 18446744073709551616"),
        ({"unknown_token_id": 1.5}, "unknown_token_id must be an integer, not 1.5"),
        ({"padding_token_id": True}, "padding_token_id must be an integer, not True"),
        ({"bos_token_id": "\x1b[31m" * 100}, "bos_token_id must be an integer"),
        ({"add_bos_token": 1}, "add_bos_token must be true or false, not 1"),
        ({"add_bos_token": True, "bos_token_id": None}, "names no bos token"),
        ({"add_eos_token": True, "eos_token_id": None}, "names no eos token"),
        ({"model": None}, "model is missing"),
    ],
)
def test_refused_in_one_line(kind: str, change: dict[str, Any], named: str) -> None:
    with pytest.raises(TokenizerError, match=named) as caught:
        load_tokenizer(MAKERS[kind](**change))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"token_type": np.full(271, 7, np.int32)}, "token 0 has type 7, expected 0 to 6"),
        ({"token_type": np.full(271, -1, np.int32)}, "token 0 has type -1"),
        ({"token_type": FLOATS}, "token_type must hold integers, not float32"),
        ({"scores": None}, "scores is missing"),
        ({"scores": np.full(271, np.nan, np.float32)}, "token 0 has score nan"),
        ({"scores": SIGNALLING_NAN}, "token 0 has score nan"),
        ({"scores": np.full(271, np.inf, np.float32)}, "token 0 has score inf"),
        ({"scores": np.full(271, 1e300)}, "token 0 has score 1e[+]300"),
        ({"scores": FLOATS[:5]}, "scores has 5 entries for 271 tokens"),
        ({"scores": ["a"] * 271}, "scores must hold numbers"),
    ],
)
def test_sentencepiece_arrays_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(TokenizerError, match=named):
        load_tokenizer(sentencepiece_metadata(**change))


def test_normalisation_tables_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="precompiled_charsmap"):
        load_tokenizer(sentencepiece_metadata(precompiled_charsmap=np.ones(8, np.uint8)))


@pytest.mark.parametrize(
    ("merges", "named"),
    [
        (None, "merges is missing"),
        (["a b", "a nosuch"], "entry 1 .* names an unknown token"),
        (["b a"], "names an unknown token"),
        (["ab"], "names an unknown token"),
        ([""], "names an unknown token"),
        ([" "], "names an unknown token"),
        (["a b c"], "names an unknown token"),
        (["a \x1b"], "names an unknown token"),
        ([3], "merges must hold strings"),
        (np.ones(4), "merges must be an array of strings"),
    ],
)
def test_merges_refused(merges: Any, named: str) -> None:
    with pytest.raises(TokenizerError, match=named) as caught:
        load_tokenizer(byte_level_metadata(merges=merges))
    assert str(caught.value).isprintable()


def with_token(kind: str, token: int, text: str) -> Tokenizer:
    metadata = MAKERS[kind](merges=["a b"] if kind == "gpt2" else None)
    metadata[PREFIX + "tokens"][token] = text
    return load_tokenizer(metadata)


@pytest.mark.parametrize("kind", MAKERS)
def test_of_equal_pieces_text_becomes_the_first(kind: str) -> None:
    first = MAKERS[kind]()[PREFIX + "tokens"].index("c")
    last = 265 if kind == "llama" else 259
    twice = with_token(kind, last, "c")
    assert twice.encode("c", add_bos=False)[-1] == first
    assert twice.token_bytes(last) == b"c" == twice.token_bytes(first)


def test_sentencepiece_stand_ins_never_come_from_text() -> None:
    # Empty, duplicate and NUL pieces, a broken and a repeated byte, a second unknown token.
    odd = sentencepiece_metadata(token_type=np.array([2, 2, 3, 4] + [6] * 256 + [1] * 11, np.int32))
    for token, text in {261: "", 262: "c", 264: "a\0b", 10: "<0x0G>", 11: "<0x0C>"}.items():
        odd[PREFIX + "tokens"][token] = text
    loaded = load_tokenizer(odd)
    for text in ("<stand-in 261>", "a\0b", "ab c", "<unk><s>", "\x06\x07\x0c"):
        ids = loaded.encode(text, add_bos=False)
        if "\x06" not in text and "\x07" not in text:
            assert loaded.decode(ids) == text
        assert 261 not in ids and 264 not in ids


def test_sentencepiece_without_bytes_or_unknown() -> None:
    pieces = ["▁", "a", "b", "▁a"]
    small = {
        "tokens": pieces,
        "scores": np.zeros(4, np.float32),
        "token_type": np.ones(4, np.int32),
        "bos_token_id": None,
        "eos_token_id": None,
    }
    loaded = load_tokenizer(sentencepiece_metadata(**small))
    assert loaded.decode(loaded.encode("ab a")) == "ab a"
    with pytest.raises(TokenizerError, match="no token for part of the text"):
        loaded.encode("é")
    with pytest.raises(TokenizerError, match="names none"):
        loaded.encode("a", add_bos=True)
    with_unknown = load_tokenizer(sentencepiece_metadata(**{**small, "token_type": np.array([1, 1, 2, 1], np.int32)}))
    assert set(with_unknown.encode("é")) <= {0, 2}


def test_byte_level_bytes_without_a_token_contribute_none() -> None:
    loaded = with_token("gpt2", 0, "nosuch")
    assert byte_level_metadata()[PREFIX + "tokens"][0] == "!"
    assert loaded.decode(loaded.encode("ab!c!")) == "abc"


def test_byte_spellings_are_bytes_whatever_their_type() -> None:
    types = np.array([2, 3, 3, 4] + [1] * 256 + [1] * 11, np.int32)
    loaded = load_tokenizer(sentencepiece_metadata(token_type=types))
    assert loaded.encode("\n", add_bos=False)[-1] == 4 + 10 and loaded.token_bytes(4 + 10) == b"\n"
    types[4 + 10] = 3
    assert 4 + 10 not in load_tokenizer(sentencepiece_metadata(token_type=types, unknown_token_id=0)).encode("\n")


def test_types_are_guessed_where_the_file_has_none() -> None:
    loaded = load_tokenizer(sentencepiece_metadata(token_type=None, unknown_token_id=0))
    assert loaded.decode(loaded.encode("é\n\x00 abc")) == "é\n\x00 abc"
    assert loaded.is_control(1) and 1 not in loaded.encode("<s>", add_bos=False)


def test_pieces_outside_the_byte_alphabet_are_their_own_text() -> None:
    assert with_token("gpt2", 259, "漢 字").token_bytes(259) == "漢 字".encode()


def test_thousands_of_special_tokens_do_not_slow_text_down() -> None:
    names = [f"<{'x' * (i % 40)}{i}>" for i in range(20_000)]
    base = byte_level_metadata()
    metadata = byte_level_metadata(
        tokens=[*base[PREFIX + "tokens"], *names], token_type=np.array([1] * 265 + [4] * len(names), np.int32)
    )
    loaded = load_tokenizer(metadata)
    start = time.process_time()
    assert loaded.encode("<" * 20_000 + names[7])[-1] == 272
    assert time.process_time() - start < 3.0


@pytest.mark.parametrize("kind", MAKERS)
def test_random_damage_never_crashes(kind: str) -> None:
    chance = random.Random(5)
    values: list[Any] = ["", "\0", "\U0010ffff", "<0x41>", "<0xZZ>", "▁", "Ġ", "a b", "<s>", "x" * 3000, "▁" * 50]
    loads = 0
    for _ in range(250):
        metadata = MAKERS[kind]()
        tokens, types = metadata[PREFIX + "tokens"], metadata[PREFIX + "token_type"]
        for _ in range(chance.randrange(1, 30)):
            tokens[chance.randrange(len(tokens))] = chance.choice(values)
            types[chance.randrange(len(types))] = chance.randrange(0, 7)
        try:
            loaded = load_tokenizer(metadata)
            for text in ("abc <s>\0é<0x41>", "▁" * 20, "x" * 3001):
                loaded.decode(loaded.encode(text, special=chance.random() < 0.5))
            loads += 1
        except PowerInferError as error:
            assert str(error).isprintable()
            assert "sentencepiece refuses" not in str(error)
    assert loads > 20
